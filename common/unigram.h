/* unigram.h - a sentencepiece model made of tokenizer.json, for folders that transformers 5 saved:
 * it writes no spiece.model. */
#ifndef SL_UNIGRAM_H
#define SL_UNIGRAM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "common/err.h"

/* The bytes of a sentencepiece ModelProto with tokenizer.json's pieces, scores and character map.
 * *out is the caller's to free. Errors: SL_SYS, SL_FORMAT what is no unigram model as T5's
 * tokenizers have it; SL_NOMEM. */
sl_code sl_unigram_model(unsigned char **out, size_t *length, const char *path, sl_err *err);
/* Likewise from text; `name` stands for the file in messages. */
sl_code sl_unigram_parse(unsigned char **out, size_t *length, const char *text, size_t text_length,
                         const char *name, sl_err *err);

#ifdef __cplusplus
}
#endif

#endif
