/* voice.c - a thread a process reads what the process prints.
 *
 *   loop's thread     open, of, close: gives its hold back
 *   reader's thread   reads until nobody has the other end any more, then gives its hold back
 * Who gives the last hold back frees. `done` wakes a close that waits for the last lines. */
#include "stages/dispatch/voice.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"

#define LAST_WORDS_MS 200
#define PREFIX 128 /* room for what the log puts before a part of a line */

struct sl_voice {
    int fd;
    char name[32];
    atomic_int pid;
    atomic_int holds;
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool is_done; /* under the lock */
};

static void give_back(sl_voice *v)
{
    if (atomic_fetch_sub(&v->holds, 1) != 1) return;
    pthread_cond_destroy(&v->done);
    pthread_mutex_destroy(&v->lock);
    close(v->fd);
    free(v);
}

/* A process that has Sluice's library logs by itself: "12:34:56.789 name[pid] level: ", or JSON. */
static bool is_logged(const char *line)
{
    const char *form = "00:00:00.000 ";
    if (!strncmp(line, "{\"time\":\"", 9)) return true;
    for (; *form; form++, line++)
        if (*form == '0' ? !isdigit((unsigned char)*line) : *line != *form) return false;
    return true;
}

static void tell(const sl_voice *v, const char *line, size_t n)
{
    char text[SL_LOG_LINE];
    while (n && (line[n - 1] == '\r' || line[n - 1] == '\n')) n--;
    for (size_t part; n; line += part, n -= part) {
        part = n < sizeof text - 2 ? n : sizeof text - 2;
        memcpy(text, line, part);
        text[part] = 0;
        if (is_logged(text)) {
            text[part] = '\n';
            while (write(STDERR_FILENO, text, part + 1) < 0 && errno == EINTR) continue;
            continue;
        }
        if (part > sizeof text - PREFIX) part = sizeof text - PREFIX;
        text[part] = 0;
        sl_log_from(v->name, atomic_load(&v->pid), SL_LOG_INFO, "%s", text);
    }
}

/* Whole lines of what has come; a line that is longer than the log's is told in parts, and what a
 * progress bar paints over is a line of its own. */
static void *read_all(void *of)
{
    sl_voice *v = of;
    char buf[2 * SL_LOG_LINE];
    size_t used = 0;
    while (true) {
        ssize_t n = read(v->fd, buf + used, sizeof buf - used);
        if (n < 0 && errno == EINTR) continue;
        if (n > 0) used += (size_t)n;
        size_t from = 0;
        for (size_t i = 0; i < used; i++)
            if (buf[i] == '\n' || buf[i] == '\r') {
                tell(v, buf + from, i - from);
                from = i + 1;
            }
        if (used - from >= SL_LOG_LINE || (n <= 0 && used > from)) {
            tell(v, buf + from, used - from);
            from = used;
        }
        memmove(buf, buf + from, used - from);
        used -= from;
        if (n <= 0) break;
    }
    pthread_mutex_lock(&v->lock);
    v->is_done = true;
    pthread_cond_broadcast(&v->done);
    pthread_mutex_unlock(&v->lock);
    give_back(v);
    return NULL;
}

sl_code sl_voice_open(sl_voice **out, int *end, const char *name, sl_err *err)
{
    pthread_t thread;
    int fds[2];
    sl_voice *v = calloc(1, sizeof *v);
    *out = NULL;
    *end = -1;
    if (!v) return sl_fail(err, SL_NOMEM, "%s: no memory for its lines", name);
    if (pipe2(fds, O_CLOEXEC)) {
        free(v);
        return sl_fail_errno(err, errno, "%s: a pipe for its lines", name);
    }
    v->fd = fds[0];
    snprintf(v->name, sizeof v->name, "%s", name);
    atomic_init(&v->holds, 2);
    pthread_mutex_init(&v->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&v->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    const int rc = pthread_create(&thread, NULL, read_all, v);
    if (rc) {
        close(fds[1]);
        atomic_store(&v->holds, 1);
        give_back(v);
        return sl_fail_errno(err, rc, "%s: a thread for its lines", name);
    }
    pthread_detach(thread);
    *out = v;
    *end = fds[1];
    return SL_OK;
}

void sl_voice_of(sl_voice *v, int pid)
{
    atomic_store(&v->pid, pid);
}

void sl_voice_close(sl_voice **vp)
{
    sl_voice *v = *vp;
    struct timespec by;
    if (!v) return;
    *vp = NULL;
    clock_gettime(CLOCK_MONOTONIC, &by);
    by.tv_nsec += LAST_WORDS_MS * 1000000l;
    by.tv_sec += by.tv_nsec / 1000000000;
    by.tv_nsec %= 1000000000;
    pthread_mutex_lock(&v->lock);
    while (!v->is_done && pthread_cond_timedwait(&v->done, &v->lock, &by) != ETIMEDOUT) continue;
    pthread_mutex_unlock(&v->lock);
    give_back(v);
}
