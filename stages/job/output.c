/* output.c - paths followed link by link. */
#include "stages/job/output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stages/job/files.h"

#define LINKS 40 /* as the kernel */

/* The descriptor that a path stands for by its name; -1: none. */
static int descriptor_of(const char *path)
{
    static const char *const FOLDERS[] = {"/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"};
    char own[64];
    int fd, end = 0;
    if (!strcmp(path, "/dev/stdin")) return 0;
    if (!strcmp(path, "/dev/stdout")) return 1;
    if (!strcmp(path, "/dev/stderr")) return 2;
    snprintf(own, sizeof own, "/proc/%d/fd/", (int)getpid());
    for (int i = 0; i < 4; i++) {
        const char *folder = i < 3 ? FOLDERS[i] : own;
        const size_t n = strlen(folder);
        if (!strncmp(path, folder, n) && sscanf(path + n, "%d%n", &fd, &end) == 1 &&
            !path[n + (size_t)end])
            return fd;
    }
    return -1;
}

static sl_code check_descriptor(int fd, const char *what, const char *path, sl_err *err)
{
    struct stat st;
    const int mode = fcntl(fd, F_GETFL);
    const char *wrong = mode < 0 || fstat(fd, &st)       ? "it is closed"
                        : (mode & O_ACCMODE) == O_RDONLY ? "it is open for reading only"
                        : isatty(fd)                     ? "it is a terminal"
                        : S_ISBLK(st.st_mode)            ? "it is a device"
                                                         : NULL;
    if (!wrong) return SL_OK;
    return sl_fail(err, SL_ARG, "%s %s: %s, want a file or a pipe", what, path, wrong);
}

/* The folder of the path, itself free of links, and the name in it. */
static sl_code real_folder(char path[SL_PATH], sl_err *err)
{
    char folder[SL_PATH], name[SL_PATH];
    char *slash = strrchr(path, '/');
    snprintf(name, sizeof name, "%s", slash + 1);
    snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    char *real = realpath(folder, NULL);
    if (!real) return SL_OK; /* that it is not there is said when it is probed */
    sl_code rc = sl_path_join(path, strcmp(real, "/") ? real : "", name, err);
    free(real);
    return rc;
}

sl_code sl_output_resolve(char path[SL_PATH], int *stream, const char *what, sl_err *err)
{
    char given[SL_PATH], target[SL_PATH], next[SL_PATH];
    struct stat st;
    sl_code rc;
    *stream = -1;
    snprintf(given, sizeof given, "%s", path);
    if (!strcmp(path, "-")) {
        *stream = 1;
        return check_descriptor(1, what, "-", err);
    }
    if ((rc = sl_absolute_path(next, path, err))) return rc;
    memcpy(path, next, SL_PATH);
    for (int i = 0; i < LINKS; i++) {
        if ((*stream = descriptor_of(path)) >= 0)
            return check_descriptor(*stream, what, given, err);
        if ((rc = real_folder(path, err))) return rc;
        if (lstat(path, &st) || !S_ISLNK(st.st_mode)) {
            /* /dev/shm is a folder for files like any other */
            if (!strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9))
                return sl_fail(err, SL_ARG, "%s: %s is a device or socket, want a file", what,
                               given);
            return SL_OK;
        }
        const ssize_t n = readlink(path, target, sizeof target - 1);
        if (n < 0) return sl_fail_errno(err, errno, "%s %s", what, given);
        target[n] = 0;
        char *slash = strrchr(path, '/');
        slash[slash == path] = 0;
        if (*target == '/') memcpy(path, target, (size_t)n + 1);
        else if ((rc = sl_path_join(next, path, target, err))) return rc;
        else memcpy(path, next, SL_PATH);
    }
    return sl_fail(err, SL_ARG, "%s %s: links in a circle", what, given);
}

sl_code sl_output_check(const char *path, const char *what, sl_err *err)
{
    struct stat st;
    /* root may write what is protected from writing; that is not what its owner means */
    if (!stat(path, &st) && S_ISREG(st.st_mode) && (!(st.st_mode & 0222) || access(path, W_OK)))
        return sl_fail(err, SL_ARG, "%s %s cannot be written: it is protected (read-only)", what,
                       path);
    return sl_can_write_file(path, what, false, err);
}

sl_code sl_output_stream(const char *file, int fd, sl_err *err)
{
    char buf[1 << 16];
    int in = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t n = in < 0 ? -1 : 1;
    while (n > 0 && (n = read(in, buf, sizeof buf)) > 0)
        for (ssize_t at = 0; n > 0 && at < n;) {
            struct pollfd room = {fd, POLLOUT, 0};
            const ssize_t put = write(fd, buf + at, (size_t)(n - at));
            if (put >= 0) at += put;
            else if (errno == EAGAIN) poll(&room, 1, -1);
            else if (errno != EINTR) n = -1;
        }
    sl_code rc = n < 0 ? sl_fail_errno(err, errno, "the video could not be written out") : SL_OK;
    if (in >= 0) close(in);
    return rc;
}
