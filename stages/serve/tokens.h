/* tokens.h - who may use a server: a file of names and tokens.
 *
 *     # a line each: NAME TOKEN [priority=N]
 *     ana   7f0c...   priority=10
 *     nightly 93ab...
 *
 * NAME stands in the journal as a job's owner; PRIORITY is the largest that the owner may ask for,
 * and what its jobs have otherwise (0 where it is not said). The file is its owner's alone (0600).
 * Tokens are compared in a time that does not depend on them. Nothing here is shared by threads:
 * the server locks. */
#ifndef SL_TOKENS_H
#define SL_TOKENS_H

#include <stdbool.h>

#include "common/err.h"
#include "stages/serve/journal.h"

#define SL_TOKEN 256        /* bytes of a token, its NUL included */
#define SL_TOKENS_MAX 10000 /* most of them */
#define SL_PRIORITY 1000    /* priorities are from -SL_PRIORITY to SL_PRIORITY */

typedef struct {
    char name[SL_JOURNAL_OWNER], token[SL_TOKEN];
    int priority;
} sl_token;

typedef struct {
    int count;
    sl_token *at; /* malloc'd */
} sl_tokens;

/* *out is the caller's to free; it stays as it is on an error. Errors: SL_ARG the file can be read
 * or written by others, belongs to somebody else, or a line of it is wrong (FILE:LINE: ...);
 * SL_SYS. */
sl_code sl_tokens_read(sl_tokens *out, const char *path, sl_err *err);
void sl_tokens_free(sl_tokens *t); /* a zeroed one is fine */
/* NULL: nobody has this token. */
const sl_token *sl_tokens_find(const sl_tokens *t, const char *token);

#endif
