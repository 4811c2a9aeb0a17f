/* buffer.c - a buffer that doubles. */
#include "stages/cli/buffer.h"

#include <stdlib.h>
#include <string.h>

sl_code sl_buffer_add(sl_buffer *b, const void *bytes, size_t n, size_t max, const char *what,
                      sl_err *err)
{
    if (n > max || b->n > max - n)
        return sl_fail(err, SL_FORMAT, "%s has more than %zu bytes", what, max);
    if (!b->at || b->n + n + 1 > b->room) {
        size_t room = b->room ? b->room : 256;
        while (room < b->n + n + 1) room *= 2;
        char *grown = realloc(b->at, room);
        if (!grown) return sl_fail(err, SL_NOMEM, "%s: no memory", what);
        b->at = grown;
        b->room = room;
    }
    if (n) memcpy(b->at + b->n, bytes, n);
    b->n += n;
    b->at[b->n] = 0;
    return SL_OK;
}

const char *sl_buffer_text(const sl_buffer *b)
{
    return b->at ? b->at : "";
}

void sl_buffer_free(sl_buffer *b)
{
    free(b->at);
    *b = (sl_buffer){0};
}
