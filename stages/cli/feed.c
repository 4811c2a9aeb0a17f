/* feed.c - lines of a pipe. */
#include "stages/cli/feed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE 65536

sl_code sl_feed_open(sl_feed *f, const char *path, sl_err *err)
{
    *f = (sl_feed){.own = strcmp(path, "-") != 0};
    /* a named pipe is opened though nobody writes to it yet */
    f->fd = f->own ? open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : STDIN_FILENO;
    return f->fd < 0 ? sl_fail_errno(err, errno, "%s", path) : SL_OK;
}

void sl_feed_close(sl_feed *f)
{
    if (f->own && f->fd >= 0) close(f->fd);
    free(f->text);
    *f = (sl_feed){.fd = -1};
}

/* Room for a piece more, and a NUL. */
static sl_code make_room(sl_feed *f, sl_err *err)
{
    if (f->used + PIECE + 1 < f->room) return SL_OK;
    const size_t room = 2 * f->room + PIECE + 1;
    char *more = realloc(f->text, room);
    if (!more) return sl_fail(err, SL_NOMEM, "no memory for a line of %zu bytes", f->used);
    f->text = more;
    f->room = room;
    return SL_OK;
}

sl_code sl_feed_read(sl_feed *f, sl_err *err)
{
    sl_code rc;
    if (f->at) memmove(f->text, f->text + f->at, f->used - f->at);
    f->used -= f->at;
    f->at = 0;
    if ((rc = make_room(f, err))) return rc;
    const ssize_t n = read(f->fd, f->text + f->used, PIECE);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return SL_OK;
    if (n < 0) return sl_fail_errno(err, errno, "the jobs cannot be read");
    f->used += (size_t)n;
    if (n) return SL_OK;
    if (f->used && f->text[f->used - 1] != '\n') f->text[f->used++] = '\n'; /* of the last line */
    if (f->own) close(f->fd);
    f->fd = -1;
    return SL_OK;
}

/* What is behind the last newline is no line yet; of one that is too long nothing is kept. */
static bool wait_for_more(sl_feed *f, const char **text, size_t *length)
{
    if (f->used - f->at <= SL_FEED_LINE) return false;
    f->at = f->used = 0;
    if (f->skip) return false;
    f->skip = true;
    f->line++;
    *text = NULL;
    *length = 0;
    return true;
}

bool sl_feed_next(sl_feed *f, const char **text, size_t *length)
{
    while (f->used > f->at) {
        char *at = f->text + f->at, *newline = memchr(at, '\n', f->used - f->at);
        if (!newline) return wait_for_more(f, text, length);
        const bool rest = f->skip; /* of a line that has been told */
        *newline = 0;
        *length = (size_t)(newline - at);
        *text = *length > SL_FEED_LINE ? NULL : at;
        f->at += *length + 1;
        f->skip = false;
        if (rest) continue;
        f->line++;
        return true;
    }
    return false;
}

bool sl_feed_goes_on(const sl_feed *f)
{
    return f->fd >= 0 || f->used > f->at;
}
