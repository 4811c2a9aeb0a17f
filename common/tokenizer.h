/* tokenizer.h - sentencepiece behind a C header; the ids that transformers'
 * T5TokenizerFast gives. Spec 3.2. */
#ifndef SL_TOKENIZER_H
#define SL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "common/err.h" /* C functions */

typedef struct sl_tokenizer sl_tokenizer;

/* Load spiece.model, or tokenizer.json (common/unigram.h), or the `spiece_model` in a text
 * encoder's safetensors: told by what is in the file and not by its name. A tokenizer.json beside
 * spiece.model says whether unknown characters become byte pieces (transformers' fast tokenizer),
 * else the model does. *out is the caller's to close. Errors: SL_SYS; SL_FORMAT, also of a file of
 * more than 100 MiB. No C++ exception crosses. */
sl_code sl_tokenizer_open(sl_tokenizer **out, const char *path, sl_err *err);
void sl_tokenizer_close(sl_tokenizer **t);
/* Write the sentencepiece model that sl_tokenizer_open would use as spiece.model. Errors: its, and
 * SL_SYS. */
sl_code sl_tokenizer_write(const char *from, const char *to, sl_err *err);

/* ids[0..*n-1]: the pieces, at most max_ids - 1 of them, then </s> (1). Empty text gives
 * just </s>. A control piece that the text spells out becomes that piece; "<extra_id_0>"
 * and its like, which lie outside the model, do not. One tokenizer may serve several
 * threads. */
sl_code sl_tokenizer_encode(const sl_tokenizer *t, const char *text, size_t length, int32_t *ids,
                            int max_ids, int *n, sl_err *err);

#ifdef __cplusplus
}
#endif

#endif
