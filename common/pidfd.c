/* pidfd.c - a file descriptor of a process. */
#include "common/pidfd.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

sl_code sl_pidfd_open(int *out, pid_t pid, sl_err *err)
{
    *out = (int)syscall(SYS_pidfd_open, pid, 0);
    if (*out >= 0) return SL_OK;
    if (errno == ENOSYS || errno == EPERM)
        return sl_fail(err, SL_SYS,
                       "this system refuses pidfd_open (%s), want Linux 5.3 or later, and a "
                       "container whose seccomp filter lets it through",
                       errno == ENOSYS ? "ENOSYS" : "EPERM");
    return sl_fail_errno(err, errno, "pidfd_open of process %d", (int)pid);
}

void sl_pidfd_send(int pidfd, int sig)
{
    syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
}
