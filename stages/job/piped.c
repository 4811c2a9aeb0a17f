/* piped.c - a pipe's bytes in an unnamed memory file, reached by its number. */
#include "stages/job/piped.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/picture.h"

#define FIRST_MS 3000 /* for the first writer of a named pipe */

static bool is_piped(const char *path)
{
    struct stat st;
    if (!strcmp(path, "-")) return true;
    return *path && !stat(path, &st) && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode));
}

/* `first`: it is a named pipe, to which nobody may ever write. */
static sl_code copy_all(int to, int from, bool first, const char *name, sl_err *err)
{
    char buf[1 << 16];
    size_t total = 0;
    for (;;) {
        struct pollfd p = {from, POLLIN, 0};
        const bool late = !poll(&p, 1, total || !first ? -1 : FIRST_MS);
        const ssize_t n = read(from, buf, sizeof buf);
        /* a writer that has come (EAGAIN) may take its time */
        if (!n && late)
            return sl_fail(err, SL_ARG, "%s is a pipe that nobody writes to, want a file", name);
        if (n < 0 && errno == EAGAIN) continue;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sl_fail_errno(err, errno, "%s: cannot be read", name);
        if (!n) return SL_OK;
        if ((total += (size_t)n) > SL_PICTURE_MAX_FILE)
            return sl_fail(err, SL_FORMAT, "%s: a pipe with more than %zu bytes, want a file", name,
                           SL_PICTURE_MAX_FILE);
        for (ssize_t at = 0, put; at < n; at += put)
            if ((put = write(to, buf + at, (size_t)(n - at))) < 0)
                return sl_fail_errno(err, errno, "%s: no memory for what the pipe gives", name);
    }
}

static sl_code take(char *path, sl_err *err)
{
    const bool input = !strcmp(path, "-");
    const int from = input ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK),
              to = memfd_create("sluice-input", MFD_CLOEXEC);
    sl_code rc = SL_OK;
    if (from < 0) rc = sl_fail_errno(err, errno, "%s: cannot be opened", path);
    else if (to < 0) rc = sl_fail_errno(err, errno, "memfd_create");
    else rc = copy_all(to, from, !input, path, err);
    if (from >= 0) close(from);
    if (rc && to >= 0) close(to);
    /* by this process's number: a relative of it may look, too */
    if (!rc) snprintf(path, SL_PATH, "/proc/%d/fd/%d", (int)getpid(), to);
    return rc;
}

sl_code sl_take_pipes(char *const *paths, int n, sl_err *err)
{
    sl_code rc = SL_OK;
    for (int i = 0; i < n && !rc; i++) {
        char was[SL_PATH];
        if (!is_piped(paths[i])) continue;
        snprintf(was, sizeof was, "%s", paths[i]);
        rc = take(paths[i], err);
        for (int k = i + 1; k < n && !rc; k++)
            if (!strcmp(paths[k], was)) memcpy(paths[k], paths[i], strlen(paths[i]) + 1);
    }
    return rc;
}

sl_code sl_batch_take_pipes(sl_batch *b, sl_err *err)
{
    char **paths = malloc(3 * (size_t)b->job_count * sizeof *paths);
    if (!paths) return sl_fail(err, SL_NOMEM, "no memory for %d jobs", b->job_count);
    for (int i = 0; i < b->job_count; i++) {
        sl_job *s = &b->jobs[i].spec;
        paths[3 * i] = s->image;
        paths[3 * i + 1] = s->last_image;
        paths[3 * i + 2] = s->noise;
    }
    sl_code rc = sl_take_pipes(paths, 3 * b->job_count, err);
    free(paths);
    return rc;
}
