/* tap.h - every message of the control socket, one JSON object a line, for `run --wire FILE`.
 *
 *     {"t_ns":1051096654021,"way":"in","peer":"decode","pid":24127,"type":"TAKEN",
 *      "body":{"job":1,"attempt":4}}                              (one line, no spaces)
 *
 * t_ns is CLOCK_MONOTONIC, as in traces; way: "in" to the dispatcher, "out" of it; peer: a stage's
 * name or "client" (or who has not said HELLO yet), without pid where that is not known. What is
 * no message has "error" in the place of type and body. Each line is written at once: a file may
 * be read while it grows. One thread. */
#ifndef SL_DISPATCH_TAP_H
#define SL_DISPATCH_TAP_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/wire.h"

typedef struct sl_tap sl_tap;

/* Append to the file. *out is the caller's to close. Errors: SL_SYS, SL_NOMEM. */
sl_code sl_tap_open(sl_tap **out, const char *path, sl_err *err);
void sl_tap_close(sl_tap **tap); /* NULL is fine */

/* A message went by. peer NULL: a client; pid 0: not known. tap NULL: nobody listens. A file that
 * cannot be written any more is told once in the log, and left alone. */
void sl_tap_message(sl_tap *tap, bool out, const char *peer, pid_t pid, const sl_msg *m);
/* What came and is none. */
void sl_tap_nonsense(sl_tap *tap, const char *peer, pid_t pid, const sl_err *what);

#endif
