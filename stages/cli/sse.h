/* sse.h - server-sent events (the WHATWG's text/event-stream), taken apart as their bytes come.
 *
 * Bounded: a line or the data of an event of more than SL_SSE_MAX bytes ends the stream. The parser
 * belongs to one thread and holds no file; {0} is an empty one. */
#ifndef SL_CLI_SSE_H
#define SL_CLI_SSE_H

#include <stdbool.h>
#include <stddef.h>

#include "stages/cli/buffer.h"

#define SL_SSE_MAX ((size_t)1 << 20)

typedef struct {
    sl_buffer line, data; /* what has come of the line, and of the event */
    char event[32];
    bool has_data, after_cr, after_start;
} sl_sse;

/* An event: its name ("message" if it has none) and data, of `n` bytes and with a NUL behind
 * them; both are the parser's and valid during the call. */
typedef void sl_sse_event(void *ctx, const char *event, const char *data, size_t n);

/* The next `n` bytes; every event that they complete is told. Errors: SL_FORMAT a line or an event
 * is too long; SL_NOMEM. */
sl_code sl_sse_feed(sl_sse *s, const char *bytes, size_t n, sl_sse_event *on, void *ctx,
                    sl_err *err);
/* Forget what has come: another stream begins. */
void sl_sse_free(sl_sse *s);

#endif
