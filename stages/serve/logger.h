/* logger.h - what all processes of a server say, to files and to where the server's standard error
 * went before.
 *
 * Standard error of this process, and so of every process that it starts, becomes a pipe; a thread
 * reads lines from it. Each line goes to DIR/sluice.log, which is rotated (sluice.log.1 .. .4, 16
 * MiB each); a line with "job":"ID" of a folder in `jobs` also to that job's log.jsonl, up to 1
 * MiB; and on to the old standard error, which is never waited for for longer than a second. */
#ifndef SL_LOGGER_H
#define SL_LOGGER_H

#include <stdbool.h>

#include "stages/serve/store.h"

typedef struct sl_logger sl_logger;

/* text: lines on the old standard error are printed for people. Errors: SL_SYS, SL_NOMEM. */
sl_code sl_logger_open(sl_logger **out, const sl_store *store, bool text, sl_err *err);
/* Standard error is the old one again. Waits for what is in the pipe, for at most a second. NULL is
 * fine. */
void sl_logger_close(sl_logger **l);

#endif
