/* prompt.h - clean a prompt as diffusers' prompt_clean does with ftfy's defaults, as far
 * as people type it. Spec 3.1.
 *
 * Done: invalid UTF-8 refused; HTML entities (twice, html5 names), curly quotes,
 * full-width forms, Latin ligatures, line breaks, control characters and terminal
 * escapes, byte-order mark, NFC, white space runs to one space, strip. UTF-8 that spells
 * surrogates is invalid. Left out: ftfy's mojibake repair (text decoded with the wrong
 * charset). */
#ifndef SL_PROMPT_H
#define SL_PROMPT_H

#include "common/err.h"

#include <stddef.h>

#define SL_PROMPT_MAX ((size_t)1 << 20) /* bytes; the model reads the first 512 tokens */

/* *out: malloc'd, NUL-terminated, the caller's to free. Errors: SL_FORMAT invalid UTF-8
 * (names the byte offset); SL_ARG longer than SL_PROMPT_MAX; SL_NOMEM. */
sl_code sl_prompt_clean(char **out, const char *text, size_t length, sl_err *err);

#endif
