/* blobs_folder.c - jobs' files in a folder on a file system that all servers of a queue mount. */
#include "stages/serve/blobs_body.h"

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

/* `from` into a new file `to`, renamed when it is whole; sync: and on the disk. */
static sl_code copy_to(const char *from, const char *to, bool sync, int64_t bytes_per_s,
                       uint64_t *bytes, sl_err *err)
{
    char *temporary = NULL;
    int out = -1;
    const int in = open(from, O_RDONLY | O_CLOEXEC);
    if (in < 0)
        return errno == ENOENT ? sl_fail(err, SL_GONE, "there is no %s", from)
                               : sl_fail_errno(err, errno, "%s", from);
    sl_code rc = sl_temporary_make(&temporary, &out, to, err);
    if (!rc) rc = copy_all(in, out, bytes_per_s, bytes, err);
    if (!rc && sync && fsync(out)) rc = sl_fail_errno(err, errno, "fsync");
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
    const bool whole = f && fread(out, 1, 40, f) == SL_BLOBS_WORD &&
                       strspn(out, "0123456789abcdef") == SL_BLOBS_WORD;
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
    if (write(fd, word, SL_BLOBS_WORD) != SL_BLOBS_WORD || fsync(fd))
        rc = sl_fail_errno(err, errno, "%s", path);
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

static sl_code open_folder(sl_blobs *b, const char *where, const sl_conf *conf, sl_err *err)
{
    (void)conf;
    sl_code rc = sl_absolute_path(b->dir, where, err);
    if (!rc) rc = sl_make_dirs(b->dir, err);
    return rc ? rc : read_word(b, err);
}

static void close_folder(sl_blobs *b)
{
    (void)b;
}

/* ---- files ---- */

static sl_code find(char out[SL_PATH], const sl_blobs *b, const char *id, const char *file,
                    sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_path_join(dir, b->dir, id, err);
    return rc ? rc : sl_path_join(out, dir, file, err);
}

static bool path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *file)
{
    return !find(out, b, id, file, NULL);
}

static sl_code put(const sl_blobs *b, const char *id, const char *file, const char *from,
                   uint64_t *bytes, sl_err *err)
{
    char to[SL_PATH], dir[SL_PATH];
    sl_code rc;
    if ((rc = is_there(b, err)) || (rc = sl_path_join(dir, b->dir, id, err)) ||
        (rc = find(to, b, id, file, err)))
        return rc;
    const bool made = !mkdir(dir, 0700);
    if (!made && errno != EEXIST) return sl_fail_errno(err, errno, "%s", dir);
    if (made && (rc = sync_dir(b->dir, err))) return rc;
    return copy_to(from, to, true, b->bytes_per_s, bytes, err);
}

static sl_code settle(const sl_blobs *b, const char *id, sl_err *err)
{
    char dir[SL_PATH];
    sl_code rc = sl_path_join(dir, b->dir, id, err);
    return rc ? rc : sync_dir(dir, err);
}

static sl_code get(const sl_blobs *b, const char *id, const char *file, uint64_t bytes,
                   const char *to, sl_err *err)
{
    char from[SL_PATH];
    uint64_t got;
    sl_code rc = find(from, b, id, file, err);
    if (!rc) rc = copy_to(from, to, false, 0, &got, err);
    if (rc == SL_GONE && is_there(b, NULL)) return is_there(b, err);
    if (rc || got == bytes) return rc;
    unlink(to);
    return sl_fail(err, SL_GONE, "%s has %llu bytes, want %llu", from, (unsigned long long)got,
                   (unsigned long long)bytes);
}

/* From `from` on, of the open file. */
static sl_code read_piece(int fd, const sl_blobs_reading *r, char *piece, sl_err *err)
{
    for (uint64_t done = 0; done < r->size;) {
        const uint64_t left = r->size - done;
        const ssize_t n = pread(fd, piece, left < PIECE ? left : PIECE, (off_t)(r->from + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sl_fail_errno(err, errno, "read");
        if (!n) return sl_fail(err, SL_SYS, "the file has become shorter");
        if ((r->over && r->over(r->self)) || !r->take(r->self, piece, (size_t)n))
            return sl_fail(err, SL_CANCELLED, "nobody wants it");
        done += (uint64_t)n;
    }
    return SL_OK;
}

static sl_code read_file(const sl_blobs *b, const char *file, const sl_blobs_reading *r,
                         sl_err *err)
{
    char from[SL_PATH];
    struct stat st;
    sl_code rc = find(from, b, r->id, file, err);
    if (rc) return rc;
    const int fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return is_there(b, NULL) ? is_there(b, err) : sl_fail(err, SL_GONE, "there is no %s", from);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", from);
    char *piece = malloc(PIECE);
    if (!piece) rc = sl_fail(err, SL_NOMEM, "no memory to read a file");
    else if (fstat(fd, &st)) rc = sl_fail_errno(err, errno, "fstat");
    else if ((uint64_t)st.st_size != r->all)
        rc = sl_fail(err, SL_GONE, "%lld bytes, want %llu", (long long)st.st_size,
                     (unsigned long long)r->all);
    else rc = read_piece(fd, r, piece, err);
    free(piece);
    close(fd);
    return rc ? sl_context(err, rc, "%s", from) : SL_OK;
}

static sl_code no_link(char **url, const sl_blobs *b, const char *id, const char *file, int seconds,
                       const char *type, const char *shown, sl_err *err)
{
    (void)url, (void)id, (void)file, (void)seconds, (void)type, (void)shown;
    return sl_fail(err, SL_ARG, "%s is a folder, which has no links", b->dir);
}

static void drop(const sl_blobs *b, const char *id, const char *file)
{
    char at[SL_PATH];
    if (*file && !find(at, b, id, file, NULL)) unlink(at);
    /* of a job that was removed meanwhile the folder, too */
    if (!sl_path_join(at, b->dir, id, NULL)) rmdir(at);
}

static sl_code remove_all(const sl_blobs *b, const char *id, sl_err *err)
{
    char at[SL_PATH];
    sl_code rc = is_there(b, err);
    if (rc || (rc = sl_path_join(at, b->dir, id, err))) return rc;
    sl_remove_tree(at);
    return access(at, F_OK) && errno == ENOENT ? SL_OK
                                               : sl_fail(err, SL_SYS, "%s cannot be removed", at);
}

/* ---- marks ---- */

static sl_code mark_of(char out[SL_PATH], const sl_blobs *b, const char *id, sl_err *err)
{
    return find(out, b, id, "new", err);
}

static sl_code mark(const sl_blobs *b, const char *id, sl_err *err)
{
    char at[SL_PATH];
    sl_code rc;
    if ((rc = is_there(b, err)) || (rc = sl_path_join(at, b->dir, id, err))) return rc;
    if (mkdir(at, 0700)) return sl_fail_errno(err, errno, "%s", at);
    if ((rc = mark_of(at, b, id, err))) return rc;
    const int fd = open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", at);
    close(fd);
    return sync_dir(b->dir, err);
}

static void unmark(const sl_blobs *b, const char *id)
{
    char at[SL_PATH];
    if (!mark_of(at, b, id, NULL)) unlink(at);
}

static void each_marked(const sl_blobs *b, int64_t old_s, void (*look)(void *self, const char *id),
                        void *self)
{
    DIR *d = opendir(b->dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char at[SL_PATH];
        struct stat st;
        if (*e->d_name != '.' && !mark_of(at, b, e->d_name, NULL) && !stat(at, &st) &&
            time(NULL) - st.st_mtime > old_s)
            look(self, e->d_name);
    }
    if (d) closedir(d);
}

static uint64_t free_bytes(const sl_blobs *b)
{
    struct statvfs v;
    if (statvfs(b->dir, &v)) return UINT64_MAX;
    return (uint64_t)v.f_bavail * v.f_frsize;
}

const sl_blobs_body sl_blobs_folder = {
    .open = open_folder,
    .close = close_folder,
    .put = put,
    .settle = settle,
    .get = get,
    .path = path,
    .read = read_file,
    .link = no_link,
    .drop = drop,
    .remove = remove_all,
    .mark = mark,
    .unmark = unmark,
    .each_marked = each_marked,
    .free = free_bytes,
};
