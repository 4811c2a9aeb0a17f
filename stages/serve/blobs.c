/* blobs.c - the folder that all servers of a queue share. */
#include "stages/serve/blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/temporary.h"
#include "common/word.h"
#include "stages/job/files.h"

#define PIECE (1 << 20) /* bytes that are copied between two looks at the rate */

static sl_code sync_dir(const char *path, sl_err *err)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    sl_code rc = fd < 0 || fsync(fd) ? sl_fail_errno(err, errno, "%s", path) : SL_OK;
    if (fd >= 0) close(fd);
    return rc;
}

static void wait_until(int64_t until_ns)
{
    const int64_t left = until_ns - sl_now_ns();
    const struct timespec t = {left / 1000000000, left % 1000000000};
    if (left > 0) nanosleep(&t, NULL);
}

/* All of `in`, no faster than the rate. */
static sl_code copy_all(int in, int out, int64_t bytes_per_s, uint64_t *bytes, sl_err *err)
{
    const int64_t t0 = sl_now_ns();
    char *piece = malloc(PIECE);
    sl_code rc = piece ? SL_OK : sl_fail(err, SL_NOMEM, "no memory to copy a file");
    *bytes = 0;
    for (ssize_t n = 1; !rc && n > 0;) {
        if ((n = read(in, piece, PIECE)) < 0) {
            if (errno != EINTR) rc = sl_fail_errno(err, errno, "read");
            n = 1;
            continue;
        }
        for (ssize_t at = 0, k; !rc && at < n; at += k)
            if ((k = write(out, piece + at, (size_t)(n - at))) < 0) {
                if (errno != EINTR) rc = sl_fail_errno(err, errno, "write");
                k = 0;
            }
        *bytes += (uint64_t)n;
        if (bytes_per_s) wait_until(t0 + (int64_t)((double)*bytes / (double)bytes_per_s * 1e9));
    }
    free(piece);
    return rc;
}

/* `from` into a new file `to`, synced, renamed when it is whole. */
static sl_code copy_to(const char *from, const char *to, int64_t bytes_per_s, uint64_t *bytes,
                       sl_err *err)
{
    char *temporary = NULL;
    int out = -1;
    const int in = open(from, O_RDONLY | O_CLOEXEC);
    if (in < 0)
        return errno == ENOENT ? sl_fail(err, SL_GONE, "there is no %s", from)
                               : sl_fail_errno(err, errno, "%s", from);
    sl_code rc = sl_temporary_make(&temporary, &out, to, err);
    if (!rc) rc = copy_all(in, out, bytes_per_s, bytes, err);
    if (!rc && fsync(out)) rc = sl_fail_errno(err, errno, "fsync");
    if (!rc && rename(temporary, to)) rc = sl_fail_errno(err, errno, "rename");
    if (rc && temporary) unlink(temporary);
    if (out >= 0) close(out);
    close(in);
    free(temporary);
    return rc ? sl_context(err, rc, "%s", to) : SL_OK;
}

/* ---- open ---- */

static bool word_of(const sl_blobs *b, char out[40])
{
    char path[SL_PATH];
    memset(out, 0, 40);
    FILE *f = sl_path_join(path, b->dir, "store", NULL) ? NULL : fopen(path, "re");
    const bool whole = f && fread(out, 1, 40, f) == 32 && strspn(out, "0123456789abcdef") == 32;
    if (f) fclose(f);
    return whole;
}

/* The folder's word; the first server writes it, whole or not at all. */
static sl_code read_word(sl_blobs *b, sl_err *err)
{
    char path[SL_PATH], word[40];
    char *temporary = NULL;
    int fd = -1;
    sl_code rc = sl_path_join(path, b->dir, "store", err);
    if (!rc) rc = sl_temporary_make(&temporary, &fd, path, err);
    if (rc) return rc;
    sl_new_word(word);
    if (write(fd, word, 32) != 32 || fsync(fd)) rc = sl_fail_errno(err, errno, "%s", path);
    /* a link is made by one of those that come together */
    if (!rc && link(temporary, path) && errno != EEXIST) rc = sl_fail_errno(err, errno, "%s", path);
    unlink(temporary);
    free(temporary);
    close(fd);
    if (rc) return rc;
    return word_of(b, b->word) ? SL_OK
                               : sl_fail(err, SL_ARG, "%s is no word of a shared folder", path);
}

/* The folder is there: not one that another is mounted on when all is well. */
static sl_code is_there(const sl_blobs *b, sl_err *err)
{
    char word[40];
    return word_of(b, word) && !strcmp(word, b->word)
               ? SL_OK
               : sl_fail(err, SL_SYS, "the shared folder %s is not there", b->dir);
}

sl_code sl_blobs_open(sl_blobs *b, const char *dir, sl_err *err)
{
    sl_code rc = sl_absolute_path(b->dir, dir, err);
    memset(b->word, 0, sizeof b->word);
    if (!rc) rc = sl_make_dirs(b->dir, err);
    if (!rc) rc = read_word(b, err);
    if (rc) *b->dir = 0;
    return rc ? sl_context(err, rc, "--blobs") : SL_OK;
}

/* ---- files ---- */

sl_code sl_blobs_path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *name,
                      const char *version, sl_err *err)
{
    char dir[SL_PATH], last[SL_PATH];
    sl_code rc = sl_path_join(dir, b->dir, id, err);
    if (rc) return rc;
    snprintf(last, sizeof last, "%s-%s", version, name);
    for (char *c = last; *c; c++)
        if (*c == '/') *c = '+'; /* of a folder in the job's */
    return sl_path_join(out, dir, last, err);
}

sl_code sl_blobs_put(const sl_blobs *b, const char *id, const char *name, const char *version,
                     const char *from, uint64_t *bytes, sl_err *err)
{
    char to[SL_PATH], dir[SL_PATH];
    sl_code rc;
    *bytes = 0;
    if ((rc = is_there(b, err)) || (rc = sl_path_join(dir, b->dir, id, err)) ||
        (rc = sl_blobs_path(to, b, id, name, version, err)))
        return rc;
    const bool made = !mkdir(dir, 0700);
    if (!made && errno != EEXIST) return sl_fail_errno(err, errno, "%s", dir);
    if ((rc = copy_to(from, to, b->bytes_per_s, bytes, err)) || (rc = sync_dir(dir, err)))
        return rc;
    return made ? sync_dir(b->dir, err) : SL_OK;
}

sl_code sl_blobs_get(const sl_blobs *b, const char *id, const char *name, const char *version,
                     uint64_t bytes, const char *to, sl_err *err)
{
    char from[SL_PATH];
    uint64_t got;
    sl_code rc = sl_blobs_path(from, b, id, name, version, err);
    if (!rc) rc = copy_to(from, to, 0, &got, err);
    if (rc == SL_GONE && is_there(b, NULL)) return is_there(b, err);
    if (rc || got == bytes) return rc;
    unlink(to);
    return sl_fail(err, SL_GONE, "%s has %llu bytes, want %llu", from, (unsigned long long)got,
                   (unsigned long long)bytes);
}

void sl_blobs_drop(const sl_blobs *b, const char *id, const char *name, const char *version)
{
    char path[SL_PATH];
    if (*version && !sl_blobs_path(path, b, id, name, version, NULL)) unlink(path);
    /* of a job that was removed meanwhile the folder, too */
    if (!sl_path_join(path, b->dir, id, NULL)) rmdir(path);
}

void sl_blobs_remove(const sl_blobs *b, const char *id)
{
    char path[SL_PATH];
    if (*id && !sl_path_join(path, b->dir, id, NULL)) sl_remove_tree(path);
}

static sl_code mark_of(char out[SL_PATH], const sl_blobs *b, const char *id, sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_path_join(dir, b->dir, id, err);
    return rc ? rc : sl_path_join(out, dir, "new", err);
}

sl_code sl_blobs_mark(const sl_blobs *b, const char *id, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc;
    if ((rc = is_there(b, err)) || (rc = sl_path_join(path, b->dir, id, err))) return rc;
    if (mkdir(path, 0700)) return sl_fail_errno(err, errno, "%s", path);
    if ((rc = mark_of(path, b, id, err))) return rc;
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", path);
    close(fd);
    return sync_dir(b->dir, err);
}

void sl_blobs_unmark(const sl_blobs *b, const char *id)
{
    char path[SL_PATH];
    if (!mark_of(path, b, id, NULL)) unlink(path);
}

void sl_blobs_each_marked(const sl_blobs *b, int64_t old_s,
                          void (*look)(void *self, const char *id), void *self)
{
    DIR *d = opendir(b->dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char path[SL_PATH];
        struct stat st;
        if (*e->d_name != '.' && !mark_of(path, b, e->d_name, NULL) && !stat(path, &st) &&
            time(NULL) - st.st_mtime > old_s)
            look(self, e->d_name);
    }
    if (d) closedir(d);
}

uint64_t sl_blobs_free(const sl_blobs *b)
{
    struct statvfs v;
    if (statvfs(b->dir, &v)) return UINT64_MAX;
    return (uint64_t)v.f_bavail * v.f_frsize;
}
