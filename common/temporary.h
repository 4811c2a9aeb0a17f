/* temporary.h - files that are not whole yet, and what writers leave beside a file that they did
 * not finish.
 *
 * A file that is not whole has the name PATH.tmp-WHERE-PID-N (of a long name its first 200 bytes),
 * WHERE a number of the machine's boot and of the pid namespace, PID the writer's in there; it is
 * renamed to PATH when it is whole. Its writer holds a lock on it (flock), which the kernel drops
 * with the writer: hosts and containers that share a folder know by the lock, not by a PID that
 * means something else to each of them, which writers are dead. */
#ifndef SL_TEMPORARY_H
#define SL_TEMPORARY_H

#include "common/err.h"

/* Make a temporary beside `path`, mode 0666 less the umask: *name (malloc'd, the caller's) and *fd,
 * open for writing and locked until it is closed. Errors: SL_SYS with errno's words, SL_NOMEM;
 * *name is NULL and *fd -1 then. */
sl_code sl_temporary_make(char **name, int *fd, const char *path, sl_err *err);

/* Remove the temporaries beside `path` whose writers are dead (SIGKILL). One of another pid
 * namespace, on a file system whose locks do not reach it, is safe for a day. */
void sl_temporary_sweep(const char *path);

#endif
