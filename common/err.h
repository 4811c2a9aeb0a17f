/* err.h - error codes that carry a message.
 *
 * A library function returns a code and never prints or exits; the program's main
 * decides. The caller owns the sl_err, on its stack or in its state; NULL means "I only
 * want the code". Messages name the thing, the value found and the value wanted: "dit:
 * latent has 4 channels, want 16". */
#ifndef SL_ERR_H
#define SL_ERR_H

#define SL_CODES(X)                                                                                \
    X(OK, "ok")                                                                                    \
    X(ARG, "bad argument or setting")                                                              \
    X(SHAPE, "wrong tensor shape or type")                                                         \
    X(FORMAT, "malformed file or message")                                                         \
    X(SYS, "file, socket or shared memory")                                                        \
    X(NOMEM, "not enough memory")                                                                  \
    X(CUDA, "CUDA library call")                                                                   \
    X(BUSY, "none free in time")                                                                   \
    X(TIMEOUT, "deadline passed")                                                                  \
    X(GONE, "stale, or its owner is gone")                                                         \
    X(NUMERIC, "not a finite number")                                                              \
    X(CANCELLED, "cancelled")                                                                      \
    X(INTERNAL, "a bug in sluice")

typedef enum {
#define X(name, text) SL_##name,
    SL_CODES(X)
#undef X
        SL_CODE_COUNT
} sl_code;

typedef struct {
    sl_code code;
    char msg[512];
} sl_err;

/* How a command ends: done; a job failed; refused before any work. */
enum { SL_EXIT_OK = 0, SL_EXIT_FAILED = 1, SL_EXIT_REFUSED = 2 };

/* Fill *err (unless NULL) with `code` and the formatted message; return `code`. */
sl_code sl_fail(sl_err *err, sl_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As sl_fail, with ": " and the text of `errnum` (an errno value) at the end. Code
 * SL_SYS. */
sl_code sl_fail_errno(sl_err *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "prefix: " before the message that *err already holds; return its code. NULL err is
 * fine. */
sl_code sl_context(sl_err *err, sl_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

const char *sl_code_name(sl_code code); /* "ARG"; "?" for a number that is no code */
const char *sl_code_text(sl_code code); /* "bad argument or setting" */

#endif
