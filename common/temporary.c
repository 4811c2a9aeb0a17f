/* temporary.c - temporaries made, found and, where their writers are dead, removed. */
#include "common/temporary.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/path.h"

#define NAME_BYTES 200 /* of the file's own name in a temporary's: NAME_MAX is 255 */
#define DAY_S 86400
#define TRIES 8 /* after which a file system is believed that counts no links */

/* FNV-1a of what tells one machine's boot, and one pid namespace in it, from another. */
static uint32_t whereabouts(void)
{
    char text[256] = "";
    size_t n = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, 64) : 0;
    if (fd >= 0) close(fd);
    if (got > 0) n = (size_t)got;
    if ((got = readlink("/proc/self/ns/pid", text + n, sizeof text - n)) > 0) n += (size_t)got;
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (uint8_t)text[i]) * 16777619u;
    return hash;
}

/* Locked, and still there: a sweep may have come between the making and the lock. */
static bool hold(int fd)
{
    struct stat st;
    flock(fd, LOCK_EX); /* where there are no locks, PID and age have to do */
    return !fstat(fd, &st) && st.st_nlink > 0;
}

sl_code sl_temporary_make(char **name, int *fd, const char *path, sl_err *err)
{
    static atomic_uint count;
    const char *last = sl_path_last(path);
    *fd = -1;
    for (int tries = TRIES;;) {
        if (asprintf(name, "%.*s%.*s.tmp-%08x-%d-%u", (int)(last - path), path, NAME_BYTES, last,
                     (unsigned)whereabouts(), (int)getpid(), atomic_fetch_add(&count, 1u)) < 0) {
            *name = NULL;
            return sl_fail(err, SL_NOMEM, "%s: no memory", path);
        }
        *fd = open(*name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        const int why = *fd >= 0 ? EEXIST : errno;
        if (*fd >= 0 && (hold(*fd) || !--tries)) return SL_OK;
        if (*fd >= 0) close(*fd); /* swept */
        *fd = -1;
        free(*name);
        *name = NULL;
        if (why != EEXIST) return sl_fail_errno(err, why, "%s: cannot be written", path);
    }
}

/* The writer of the temporary NAME in the folder `dir` is dead. */
static bool is_dead(int dir, const char *name, unsigned where, int pid)
{
    struct stat st;
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return false;
    const bool held = flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK,
               stale = !fstat(fd, &st) && S_ISREG(st.st_mode) && time(NULL) - st.st_mtime > DAY_S;
    close(fd);
    if (held) return false;
    return stale || (where == whereabouts() && kill(pid, 0) && errno == ESRCH);
}

void sl_temporary_sweep(const char *path)
{
    const char *last = sl_path_last(path);
    const size_t n = strnlen(last, NAME_BYTES);
    char dir[PATH_MAX];
    if (snprintf(dir, sizeof dir, "%.*s", last > path ? (int)(last - path) : 2,
                 last > path ? path : "./") >= (int)sizeof dir)
        return;
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        int pid = 0, end = 0;
        unsigned where, count;
        if (strncmp(e->d_name, last, n) ||
            sscanf(e->d_name + n, ".tmp-%8x-%d-%u%n", &where, &pid, &count, &end) != 3 ||
            e->d_name[n + (size_t)end] || pid <= 0)
            continue;
        if (is_dead(dirfd(d), e->d_name, where, pid)) unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d) closedir(d);
}
