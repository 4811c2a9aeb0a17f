/* err.c - error codes that carry a message: the formatting. */
#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const NAMES[] = {
#define X(name, text) #name,
    SL_CODES(X)
#undef X
};
static const char *const TEXTS[] = {
#define X(name, text) text,
    SL_CODES(X)
#undef X
};

const char *sl_code_name(sl_code code)
{
    return (unsigned)code < SL_CODE_COUNT ? NAMES[code] : "?";
}

const char *sl_code_text(sl_code code)
{
    return (unsigned)code < SL_CODE_COUNT ? TEXTS[code] : "?";
}

sl_code sl_fail(sl_err *err, sl_code code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = code;
        vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
    }
    return code;
}

sl_code sl_fail_errno(sl_err *err, int errnum, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = SL_SYS;
        int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        if (n >= 0 && (size_t)n < sizeof err->msg)
            snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", strerror(errnum));
    }
    return SL_SYS;
}

sl_code sl_context(sl_err *err, sl_code code, const char *fmt, ...)
{
    if (err) {
        char old[sizeof err->msg];
        va_list ap;
        memcpy(old, err->msg, sizeof old);
        va_start(ap, fmt);
        int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        size_t at = n > 0 ? (size_t)n : 0, room = at < sizeof err->msg ? sizeof err->msg - at : 0;
        if (room > 2) { /* what does not fit of the old message is cut */
            size_t take = strnlen(old, sizeof old);
            if (take > room - 3) take = room - 3;
            memcpy(err->msg + at, ": ", 2);
            memcpy(err->msg + at + 2, old, take);
            err->msg[at + 2 + take] = 0;
        }
        err->code = code;
    }
    return code;
}
