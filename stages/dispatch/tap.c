/* tap.c - the messages of the control socket as lines of JSON. */
#include "stages/dispatch/tap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/wire_json.h"

struct sl_tap {
    int fd; /* -1: it cannot be written any more */
    char path[SL_DIR];
};

sl_code sl_tap_open(sl_tap **out, const char *path, sl_err *err)
{
    sl_tap *t = *out = calloc(1, sizeof *t);
    if (!t) return sl_fail(err, SL_NOMEM, "--wire: no memory");
    snprintf(t->path, sizeof t->path, "%s", path);
    t->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    return t->fd < 0 ? sl_fail_errno(err, errno, "--wire %s", path) : SL_OK;
}

void sl_tap_close(sl_tap **tap)
{
    if (!*tap) return;
    if ((*tap)->fd >= 0) close((*tap)->fd);
    free(*tap);
    *tap = NULL;
}

/* One write, so that a line is whole. Takes the object. */
static void put_line(sl_tap *t, json_t *line)
{
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(15));
    const size_t n = text ? strlen(text) : 0;
    if (n) text[n] = '\n'; /* in the place of its NUL */
    if (n && write(t->fd, text, n + 1) != (ssize_t)n + 1) {
        sl_log(SL_LOG_WARN, "--wire %s: cannot be written any more: %s", t->path, strerror(errno));
        close(t->fd);
        t->fd = -1;
    }
    free(text);
    json_decref(line);
}

static json_t *begin_line(bool out, const char *peer, pid_t pid)
{
    json_t *line = json_pack("{s:I, s:s, s:s}", "t_ns", (json_int_t)sl_now_ns(), "way",
                             out ? "out" : "in", "peer", peer ? peer : "client");
    if (pid > 0) json_object_set_new(line, "pid", json_integer(pid));
    return line;
}

void sl_tap_message(sl_tap *t, bool out, const char *peer, pid_t pid, const sl_msg *m)
{
    if (!t || t->fd < 0) return;
    json_t *line = begin_line(out, peer, pid);
    json_object_set_new(line, "type", json_string(sl_wire_name(m->type)));
    json_object_set_new(line, "body", sl_wire_json(m));
    put_line(t, line);
}

void sl_tap_nonsense(sl_tap *t, const char *peer, pid_t pid, const sl_err *what)
{
    if (!t || t->fd < 0) return;
    json_t *line = begin_line(false, peer, pid);
    json_object_set_new(line, "error", json_string(what->msg));
    put_line(t, line);
}
