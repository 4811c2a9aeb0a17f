/* follow.h - a server's job until it has ended, with its progress on stderr.
 *
 * News come as server-sent events. A connection that is lost is taken up again, over restarts of
 * the server, as long as it has been heard of in the last retry_s seconds; where events do not get
 * through (a proxy that keeps them back), the job is asked about every two seconds. */
#ifndef SL_CLI_FOLLOW_H
#define SL_CLI_FOLLOW_H

#include "stages/cli/progress.h"
#include "stages/cli/remote.h"

/* *video: the object of the job that has ended, completed or failed; the caller's to json_decref.
 * `number`: the job's among those that are waited for. After SL_CANCELLED (interrupt_fd) it may be
 * called again. Errors: those of remote.h; SL_ARG also a job that is not there (any more). */
sl_code sl_follow(sl_remote *r, sl_progress *p, uint64_t number, const char *id, json_t **video,
                  sl_err *err);

#endif
