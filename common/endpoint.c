/* endpoint.c - a socket's name for a run directory of any length. */
#include "common/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/un.h>
#include <unistd.h>

sl_code sl_endpoint_open(char out[SL_PATH], int *fd, const char *run_dir, sl_err *err)
{
    const size_t most = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    const int scheme = snprintf(out, SL_PATH, "ipc://");
    *fd = -1;
    if (snprintf(out + scheme, SL_PATH - (size_t)scheme, "%.1000s/ctl", run_dir) <= (int)most)
        return SL_OK;
    if ((*fd = open(run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
        return sl_fail_errno(err, errno, "%s", run_dir);
    snprintf(out + scheme, SL_PATH - (size_t)scheme, "/proc/%d/fd/%d/ctl", (int)getpid(), *fd);
    return SL_OK;
}
