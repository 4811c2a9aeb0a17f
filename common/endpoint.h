/* endpoint.h - where a pipeline's processes speak: the socket `ctl` in its run directory. */
#ifndef SL_ENDPOINT_H
#define SL_ENDPOINT_H

#include "common/path.h"

/* ZeroMQ's name of the socket in run_dir, which is there: its path, or where that has more than the
 * 107 bytes of a socket's name one through this process's folder in /proc, which any process of the
 * same user may use. *fd is what that name stands on, open for as long as the name is used, and the
 * caller's to close; -1: none. Errors: SL_SYS. */
sl_code sl_endpoint_open(char out[SL_PATH], int *fd, const char *run_dir, sl_err *err);

#endif
