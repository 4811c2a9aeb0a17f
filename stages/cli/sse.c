/* sse.c - lines end with CR, LF or both; an empty one ends an event. */
#include "stages/cli/sse.h"

#include <stdio.h>
#include <string.h>

static void end_event(sl_sse *s, sl_sse_event *on, void *ctx)
{
    if (s->has_data) {
        s->data.at[--s->data.n] = 0; /* the last line's end is none of the data's */
        on(ctx, *s->event ? s->event : "message", s->data.at, s->data.n);
    }
    s->data.n = 0;
    s->has_data = false;
    *s->event = 0;
}

static sl_code end_line(sl_sse *s, sl_sse_event *on, void *ctx, sl_err *err)
{
    const char *line = sl_buffer_text(&s->line);
    size_t n = s->line.n;
    s->line.n = 0;
    if (!s->after_start) {
        s->after_start = true;
        if (n >= 3 && !memcmp(line, "\xEF\xBB\xBF", 3)) line += 3, n -= 3;
    }
    if (!n) {
        end_event(s, on, ctx);
        return SL_OK;
    }
    const char *colon = memchr(line, ':', n);
    const size_t name = colon ? (size_t)(colon - line) : n;
    const char *value = colon ? colon + 1 : line + n;
    size_t length = n - (size_t)(value - line);
    if (length && *value == ' ') value++, length--;
    if (name == 5 && !memcmp(line, "event", 5)) {
        snprintf(s->event, sizeof s->event, "%.*s", (int)length, value);
    } else if (name == 4 && !memcmp(line, "data", 4)) {
        sl_code rc = sl_buffer_add(&s->data, value, length, SL_SSE_MAX, "an event", err);
        if (rc || (rc = sl_buffer_add(&s->data, "\n", 1, SL_SSE_MAX, "an event", err))) return rc;
        s->has_data = true;
    } /* a comment, an id, a time to wait, or something that nobody knows yet */
    return SL_OK;
}

sl_code sl_sse_feed(sl_sse *s, const char *bytes, size_t n, sl_sse_event *on, void *ctx,
                    sl_err *err)
{
    sl_code rc;
    for (size_t i = 0; i < n;) {
        if (s->after_cr && bytes[i] == '\n') { /* CR LF is one end */
            s->after_cr = false;
            i++;
            continue;
        }
        s->after_cr = false;
        size_t k = i;
        while (k < n && bytes[k] != '\r' && bytes[k] != '\n') k++;
        if (k > i &&
            (rc = sl_buffer_add(&s->line, bytes + i, k - i, SL_SSE_MAX, "an event's line", err)))
            return rc;
        if (k == n) return SL_OK;
        s->after_cr = bytes[k] == '\r';
        if ((rc = end_line(s, on, ctx, err))) return rc;
        i = k + 1;
    }
    return SL_OK;
}

void sl_sse_free(sl_sse *s)
{
    sl_buffer_free(&s->line);
    sl_buffer_free(&s->data);
    memset(s, 0, sizeof *s);
}
