/* logger.c - a pipe, a thread, files. */
#include "stages/serve/logger.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/serve/journal.h"

#define FILE_BYTES (16 << 20)
#define FILES 4
#define JOB_BYTES (1 << 20)
#define LINE (2 * SL_LOG_LINE)

struct sl_logger {
    const sl_store *store;
    bool text;
    int old;     /* standard error as it was */
    int read_fd; /* of the pipe */
    int file;    /* sluice.log; -1: cannot be written */
    off_t size;
    bool stuck; /* nobody reads the old standard error */
    atomic_bool closing;
    pthread_t thread;
};

static void open_file(sl_logger *l)
{
    char path[SL_PATH];
    struct stat st;
    if (sl_path_join(path, l->store->log, "sluice.log", NULL)) return;
    l->file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    l->size = l->file >= 0 && !fstat(l->file, &st) ? st.st_size : 0;
}

static void rotate(sl_logger *l)
{
    char from[SL_PATH + 32], to[SL_PATH + 32];
    for (int i = FILES - 1; i >= 0; i--) {
        if (i) snprintf(from, sizeof from, "%s/sluice.log.%d", l->store->log, i);
        else snprintf(from, sizeof from, "%s/sluice.log", l->store->log);
        snprintf(to, sizeof to, "%s/sluice.log.%d", l->store->log, i + 1);
        rename(from, to);
    }
    close(l->file);
    l->file = -1;
    open_file(l);
}

/* A full disk loses lines, and nothing else. */
static void put(int fd, const char *line, size_t n)
{
    for (ssize_t done; n; line += done, n -= (size_t)done)
        if ((done = write(fd, line, n)) < 0) {
            if (errno != EINTR) return;
            done = 0;
        }
}

static void to_job(const sl_logger *l, const char *id, const char *line, size_t n)
{
    char path[SL_PATH];
    struct stat st;
    if (strchr(id, '/') || *id == '.' || sl_store_path(path, l->store, id, SL_STORE_LOG, NULL))
        return;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return; /* not a job of this server's */
    if (!fstat(fd, &st) && st.st_size + (off_t)n <= JOB_BYTES) put(fd, line, n);
    close(fd);
}

/* Who reads the old standard error may be slow, but does not stop the pipeline. */
static void to_old(sl_logger *l, const char *line, size_t n)
{
    struct pollfd p = {l->old, POLLOUT, 0};
    l->stuck = poll(&p, 1, l->stuck ? 0 : 1000) != 1 || !(p.revents & POLLOUT);
    if (!l->stuck) put(l->old, line, n);
}

/* "12:34:56.789 denoise[4711] info: ID: text" of a JSON line; 0: it is none. */
static size_t for_people(char *out, size_t room, const json_t *line)
{
    const char *at = json_string_value(json_object_get(line, "time")),
               *level = json_string_value(json_object_get(line, "level")),
               *process = json_string_value(json_object_get(line, "process")),
               *job = json_string_value(json_object_get(line, "job")),
               *message = json_string_value(json_object_get(line, "message"));
    const long long pid = json_integer_value(json_object_get(line, "pid"));
    if (!at || strlen(at) < 23 || !level || !process || !message) return 0;
    int n = snprintf(out, room, "%.12s %s[%lld] %s: %s%s%s\n", at + 11, process, pid, level,
                     job ? job : "", job ? ": " : "", message);
    return n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;
}

static void take_line(sl_logger *l, const char *line, size_t n)
{
    char people[LINE + 64];
    json_t *root = json_loadb(line, n, JSON_DISABLE_EOF_CHECK, NULL);
    const char *job = json_string_value(json_object_get(root, "job"));
    size_t shown = root && l->text ? for_people(people, sizeof people, root) : 0;
    if (l->size + (off_t)n > FILE_BYTES) rotate(l);
    if (l->file < 0) open_file(l);
    if (l->file >= 0) put(l->file, line, n);
    l->size += (off_t)n;
    if (job) to_job(l, job, line, n);
    if (shown) to_old(l, people, shown);
    else to_old(l, line, n);
    json_decref(root);
}

static void *work(void *arg)
{
    sl_logger *l = arg;
    char buf[LINE];
    size_t used = 0;
    for (;;) {
        struct pollfd p = {l->read_fd, POLLIN, 0};
        const int ready = poll(&p, 1, 200);
        if (ready <= 0) {
            if (atomic_load(&l->closing)) break;
            continue;
        }
        ssize_t n = read(l->read_fd, buf + used, sizeof buf - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        used += (size_t)n;
        for (char *end; (end = memchr(buf, '\n', used));) {
            const size_t length = (size_t)(end - buf) + 1;
            take_line(l, buf, length);
            memmove(buf, end + 1, used -= length);
        }
        if (used == sizeof buf) { /* no line is that long: somebody else's output */
            buf[used - 1] = '\n';
            take_line(l, buf, used);
            used = 0;
        }
    }
    return NULL;
}

sl_code sl_logger_open(sl_logger **out, const sl_store *store, bool text, sl_err *err)
{
    int ends[2];
    sl_logger *l = *out = calloc(1, sizeof *l);
    if (!l) return sl_fail(err, SL_NOMEM, "serve: no memory");
    *l = (sl_logger){.store = store, .text = text, .old = -1, .read_fd = -1, .file = -1};
    open_file(l);
    if (pipe2(ends, O_CLOEXEC) || (l->old = fcntl(2, F_DUPFD_CLOEXEC, 10)) < 0) {
        free(l);
        *out = NULL;
        return sl_fail_errno(err, errno, "log");
    }
    l->read_fd = ends[0];
    dup2(ends[1], 2); /* the copy is not closed by exec */
    close(ends[1]);
    if (pthread_create(&l->thread, NULL, work, l)) {
        dup2(l->old, 2);
        close(l->old);
        close(l->read_fd);
        free(l);
        *out = NULL;
        return sl_fail(err, SL_SYS, "serve: no thread to be had");
    }
    return SL_OK;
}

void sl_logger_close(sl_logger **lp)
{
    sl_logger *l = *lp;
    *lp = NULL;
    if (!l) return;
    dup2(l->old, 2); /* the pipe's last end of this process */
    atomic_store(&l->closing, true);
    pthread_join(l->thread, NULL);
    close(l->read_fd);
    close(l->old);
    if (l->file >= 0) close(l->file);
    free(l);
}
