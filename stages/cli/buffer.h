/* buffer.h - bytes that come bit by bit, kept together, and never more than so many. */
#ifndef SL_CLI_BUFFER_H
#define SL_CLI_BUFFER_H

#include <stddef.h>

#include "common/err.h"

typedef struct {
    char *at; /* owned; a NUL stands behind the bytes. NULL: none have come */
    size_t n, room;
} sl_buffer; /* {0} is empty */

/* Errors: SL_FORMAT "WHAT has more than MAX bytes"; SL_NOMEM. The bytes stay as they were. */
sl_code sl_buffer_add(sl_buffer *b, const void *bytes, size_t n, size_t max, const char *what,
                      sl_err *err);
const char *sl_buffer_text(const sl_buffer *b); /* "" if none have come */
void sl_buffer_free(sl_buffer *b);              /* {0} again */

#endif
