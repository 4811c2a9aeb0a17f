/* spool.c - files of a job's folder, written in the background.
 *
 * Who runs where:
 *   main thread      sl_spool_*: copies the tensors into an item, appends it
 *   spool's thread   spool_main alone: takes the first item, writes, says SPOOLED through
 *                    an end of its own, frees it
 * lock guards the list, `pending` and `quit`; an item belongs to who took it off the list.
 * wake: the list has grown, or quit. idle: pending is 0. */
#include "stages/seat/spool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zmq.h>

#include "common/log.h"
#include "common/safetensors.h"

#define FILE_TENSORS 9 /* most of a file */
#define WAIT_S 120     /* longest wait for the disk before a job is given up */

/* One file to write, its tensors copied. */
struct sl_spool_item {
    sl_spool_item *next;
    char path[SL_PATH], job[SL_LOG_JOB];
    sl_msg said; /* SPOOLED, to be completed */
    sl_origin origin;
    bool announce;
    int n;
    char names[FILE_TENSORS][64];
    sl_tensor tensors[FILE_TENSORS];
    void *memory;
};

static sl_msg spooled(const sl_msg_job *job, const char *name)
{
    sl_msg m = {.type = SL_MSG_SPOOLED, .spooled = {.job = job->job, .attempt = job->attempt}};
    snprintf(m.spooled.name, sizeof m.spooled.name, "%.23s", name);
    return m;
}

/* ---- the thread ---- */

static void write_item(sl_spool_item *it, void *end)
{
    const char *names[FILE_TENSORS];
    sl_st_note notes[SL_ORIGIN_NOTES];
    sl_err err = {0};
    int64_t t0 = sl_now_ns();
    for (int i = 0; i < it->n; i++) names[i] = it->names[i];
    sl_code rc = sl_st_save_noted(it->path, it->n, names, it->tensors,
                                  sl_origin_notes(notes, &it->origin), notes, &err);
    if (rc && !it->announce) sl_log_about(it->job, SL_LOG_WARN, "spool: %s", err.msg);
    /* whether a failure matters, and is told, is the dispatcher's decision */
    if (it->announce) {
        it->said.spooled.code = (int32_t)rc;
        snprintf(it->said.spooled.message, sizeof it->said.spooled.message, "%s", err.msg);
        sl_wire_send(end, NULL, 0, &it->said, NULL);
    }
    sl_log_about(it->job, SL_LOG_DEBUG, "spooled %s in %.1f ms", it->path,
                 (double)(sl_now_ns() - t0) * 1e-6);
    free(it->memory);
    free(it);
}

static void *spool_main(void *arg)
{
    sl_spool *s = arg;
    void *end = sl_control_open_end(s->control);
    pthread_mutex_lock(&s->lock);
    while (true) {
        while (!s->head && !s->quit) pthread_cond_wait(&s->wake, &s->lock);
        sl_spool_item *it = s->head;
        if (!it) break; /* quit, and nothing is left */
        s->head = it->next;
        if (!s->head) s->tail = &s->head;
        pthread_mutex_unlock(&s->lock);
        write_item(it, end);
        pthread_mutex_lock(&s->lock);
        if (--s->pending == 0) pthread_cond_broadcast(&s->idle);
    }
    pthread_mutex_unlock(&s->lock);
    zmq_close(end);
    return NULL;
}

sl_code sl_spool_open(sl_spool *s, sl_control *control, sl_err *err)
{
    s->control = control;
    s->tail = &s->head;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->idle, NULL);
    s->made = true;
    if (pthread_create(&s->thread, NULL, spool_main, s))
        return sl_fail(err, SL_SYS, "spool's thread: %s", strerror(errno));
    s->runs = true;
    return SL_OK;
}

void sl_spool_close(sl_spool *s)
{
    if (!s->made) return;
    s->made = false;
    if (s->runs) {
        pthread_mutex_lock(&s->lock);
        s->quit = true;
        pthread_cond_signal(&s->wake);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    pthread_cond_destroy(&s->wake);
    pthread_cond_destroy(&s->idle);
    pthread_mutex_destroy(&s->lock);
}

/* ---- the main thread ---- */

static size_t room(const sl_tensor *t)
{
    return (sl_bytes(t) + 63) / 64 * 64;
}

/* An item with copies; NULL: no memory, too many tensors, or too long a path (in *err). */
static sl_spool_item *new_item(const sl_msg_job *job, const char *name, int n,
                               const char *const names[], const sl_tensor tensors[], sl_err *err)
{
    sl_spool_item *it = n <= FILE_TENSORS ? calloc(1, sizeof *it) : NULL;
    size_t total = 0, at = 0;
    char file[64];
    for (int i = 0; i < n; i++) total += room(&tensors[i]);
    if (it) it->memory = malloc(total + 1);
    snprintf(file, sizeof file, "%s.safetensors", name);
    if (!it || !it->memory || sl_path_join(it->path, job->dir, file, err)) {
        if (it) free(it->memory);
        free(it);
        return NULL;
    }
    snprintf(it->job, sizeof it->job, "%s", sl_path_last(job->dir));
    it->n = n;
    for (int i = 0; i < n; i++) {
        snprintf(it->names[i], sizeof it->names[i], "%s", names[i]);
        it->tensors[i] = tensors[i];
        it->tensors[i].data = (char *)it->memory + at;
        memcpy(it->tensors[i].data, tensors[i].data, sl_bytes(&tensors[i]));
        at += room(&tensors[i]);
    }
    return it;
}

void sl_spool_write(sl_spool *s, const sl_msg_job *job, const char *name, bool announce, int n,
                    const char *const names[], const sl_tensor tensors[])
{
    sl_err err = {0};
    sl_msg m = spooled(job, name);
    sl_spool_item *it = new_item(job, name, n, names, tensors, &err);
    if (!it) {
        m.spooled.code = SL_NOMEM;
        snprintf(m.spooled.message, sizeof m.spooled.message, "%.15s: %.480s", name,
                 err.code ? err.msg : "no memory for a copy");
        if (announce) sl_control_send(s->control, &m);
        else sl_log(SL_LOG_WARN, "spool: %s", m.spooled.message);
        return;
    }
    it->said = m;
    it->origin = s->origin;
    it->announce = announce;
    pthread_mutex_lock(&s->lock);
    *s->tail = it;
    s->tail = &it->next;
    s->pending++;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void sl_spool_written(sl_spool *s, const sl_msg_job *job, const char *name)
{
    sl_msg m = spooled(job, name);
    sl_control_send(s->control, &m);
}

sl_code sl_spool_flush(sl_spool *s, sl_err *err)
{
    struct timespec by;
    int rc = 0;
    clock_gettime(CLOCK_REALTIME, &by);
    by.tv_sec += WAIT_S;
    pthread_mutex_lock(&s->lock);
    while (s->pending && rc != ETIMEDOUT) rc = pthread_cond_timedwait(&s->idle, &s->lock, &by);
    int left = s->pending;
    pthread_mutex_unlock(&s->lock);
    return left ? sl_fail(err, SL_TIMEOUT, "spool: %d files are not on disk after %d s", left,
                          WAIT_S)
                : SL_OK;
}
