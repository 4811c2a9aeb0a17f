/* store.c - folders, files, syncs. */
#include "stages/serve/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/clock.h"
#include "stages/job/dump.h"
#include "stages/job/files.h"

static sl_code take_lock(sl_store *s, int wait_ms, sl_err *err)
{
    char path[SL_PATH];
    const int64_t until = sl_now_ns() + wait_ms * 1000000ll;
    sl_code rc = sl_path_join(path, s->dir, "lock", err);
    if (rc) return rc;
    /* not closed by exec: each process of the pipeline holds the lock with this one */
    if ((s->lock = open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600)) < 0)
        return sl_fail_errno(err, errno, "%s", path);
    while (flock(s->lock, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK && errno != EINTR) rc = sl_fail_errno(err, errno, "%s", path);
        else if (sl_now_ns() > until)
            rc = sl_fail(err, SL_BUSY, "state folder %s belongs to another running server", s->dir);
        if (rc) { /* not ours to close */
            close(s->lock);
            s->lock = -1;
            return rc;
        }
        usleep(20000);
    }
    return SL_OK;
}

sl_code sl_store_open(sl_store *s, const char *dir, int wait_ms, sl_err *err)
{
    struct stat st;
    sl_code rc;
    s->lock = -1;
    mode_t mask = umask(077);
    rc = sl_absolute_path(s->dir, dir, err);
    if (!rc) rc = sl_make_dirs(s->dir, err);
    umask(mask);
    if (rc) return sl_context(err, rc, "--state");
    if (stat(s->dir, &st)) return sl_fail_errno(err, errno, "--state %s", s->dir);
    if (st.st_uid != geteuid())
        return sl_fail(err, SL_ARG, "state folder %s belongs to user %u, want this one, %u", s->dir,
                       (unsigned)st.st_uid, (unsigned)geteuid());
    if (chmod(s->dir, 0700)) return sl_fail_errno(err, errno, "--state %s", s->dir);
    if ((rc = sl_path_join(s->jobs, s->dir, "jobs", err)) ||
        (rc = sl_path_join(s->run, s->dir, "run", err)) ||
        (rc = sl_path_join(s->log, s->dir, "log", err)) || (rc = take_lock(s, wait_ms, err)) ||
        (rc = sl_make_dirs(s->jobs, err)) || (rc = sl_make_dirs(s->run, err)) ||
        (rc = sl_make_dirs(s->log, err)))
        return rc;
    return SL_OK;
}

void sl_store_close(sl_store *s)
{
    if (s->lock < 0) return;
    sl_remove_tree(s->run);
    close(s->lock);
    s->lock = -1;
}

sl_code sl_store_path(char out[SL_PATH], const sl_store *s, const char *id, const char *name,
                      sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_path_join(*name ? dir : out, s->jobs, id, err);
    return rc || !*name ? rc : sl_path_join(out, dir, name, err);
}

sl_code sl_store_make(const sl_store *s, const char *id, sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_store_path(dir, s, id, "", err);
    if (!rc && mkdir(dir, 0700)) rc = sl_fail_errno(err, errno, "%s", dir);
    return rc;
}

sl_code sl_store_write(const sl_store *s, const char *id, const char *name, const void *bytes,
                       size_t size, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = sl_store_path(path, s, id, name, err);
    if (rc) return rc;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", path);
    const char *at = bytes;
    for (ssize_t n; size && !rc; at += n, size -= (size_t)n)
        if ((n = write(fd, at, size)) < 0) {
            if (errno != EINTR) rc = sl_fail_errno(err, errno, "%s", path);
            n = 0;
        }
    if (!rc && !s->copies && fsync(fd)) rc = sl_fail_errno(err, errno, "%s", path);
    if (close(fd) && !rc) rc = sl_fail_errno(err, errno, "%s", path);
    return rc;
}

static sl_code sync_dir(const char *path, sl_err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sl_code rc = fd < 0 || fsync(fd) ? sl_fail_errno(err, errno, "%s", path) : SL_OK;
    if (fd >= 0) close(fd);
    return rc;
}

sl_code sl_store_sync(const sl_store *s, const char *id, sl_err *err)
{
    char dir[SL_PATH];
    if (s->copies) return SL_OK;
    sl_code rc = sl_store_path(dir, s, id, "", err);
    if (rc || (rc = sync_dir(dir, err))) return rc;
    return sync_dir(s->jobs, err);
}

/* Every file of a job's folder, and of the folders in it. */
static void each_file(const char *dir, int depth,
                      void (*look)(void *self, const char *path, const char *name,
                                   const struct stat *st),
                      void *self)
{
    char path[SL_PATH];
    struct stat st;
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ||
            sl_path_join(path, dir, e->d_name, NULL) || lstat(path, &st))
            continue;
        if (S_ISDIR(st.st_mode) && depth < 2) each_file(path, depth + 1, look, self);
        look(self, path, depth ? "" : e->d_name, &st);
    }
    if (d) closedir(d);
}

static void add_bytes(void *self, const char *path, const char *name, const struct stat *st)
{
    (void)path, (void)name;
    *(uint64_t *)self += (uint64_t)st->st_blocks * 512;
}

uint64_t sl_store_bytes(const sl_store *s, const char *id)
{
    char dir[SL_PATH];
    uint64_t bytes = 0;
    if (!sl_store_path(dir, s, id, "", NULL)) each_file(dir, 0, add_bytes, &bytes);
    return bytes;
}

static void prune_one(void *self, const char *path, const char *name, const struct stat *st)
{
    static const char *const KEPT[] = {SL_STORE_VIDEO,   SL_STORE_REPORT,  SL_STORE_TRACE,
                                       SL_STORE_LOG,     SL_STORE_PREVIEW, SL_STORE_THUMBNAIL,
                                       SL_STORE_SPRITES, "job.json",       SL_DUMP_NOTE};
    const bool *dump = self;
    const size_t n = strlen(name);
    const bool temporary = strstr(path, ".tmp") != NULL;
    for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++)
        if (!strcmp(name, KEPT[i])) return;
    if (*dump && !temporary && strcmp(name, "state.safetensors") &&
        (!*name || S_ISDIR(st->st_mode) || (n > 6 && !strcmp(name + n - 6, ".input")) ||
         (n > 12 && !strcmp(name + n - 12, ".safetensors"))))
        return;
    if (S_ISDIR(st->st_mode)) rmdir(path);
    else unlink(path);
}

void sl_store_prune(const sl_store *s, const char *id, bool dump)
{
    char dir[SL_PATH];
    if (!sl_store_path(dir, s, id, "", NULL)) each_file(dir, 0, prune_one, &dump);
}

void sl_store_remove(const sl_store *s, const char *id)
{
    char dir[SL_PATH];
    if (*id && !sl_store_path(dir, s, id, "", NULL)) sl_remove_tree(dir);
}

void sl_store_each(const sl_store *s, void (*look)(void *self, const char *id), void *self)
{
    DIR *d = opendir(s->jobs);
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (*e->d_name != '.') look(self, e->d_name);
    if (d) closedir(d);
}

uint64_t sl_store_free(const sl_store *s)
{
    struct statvfs v;
    if (statvfs(s->dir, &v)) return UINT64_MAX;
    return (uint64_t)v.f_bavail * v.f_frsize;
}
