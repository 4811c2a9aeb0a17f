/* pidfd.h - a file descriptor of a process, which tells its end. */
#ifndef SL_PIDFD_H
#define SL_PIDFD_H

#include <sys/types.h>

#include "common/err.h"

/* *out is the caller's to close. Errors: SL_SYS; a system without pidfd_open (Linux before 5.3, or
 * a container's filter of calls) is said in so many words. */
sl_code sl_pidfd_open(int *out, pid_t pid, sl_err *err);

/* Send a signal to the process, and to no other that has its number since. */
void sl_pidfd_send(int pidfd, int sig);

#endif
