/* control.c - a stage's control socket, in a thread of its own.
 *
 * Who runs where:
 *   main thread       sl_control_*: sends through `out`, receives through `in`, owns inbox
 *   socket's thread   socket_main alone: owns the DEALER; calls `hear`
 *   other threads     an end of their own (sl_control_open_end)
 * Between threads there are inproc sockets, and:
 *   lock              guards current, early wishes and the pulse
 *   wished            is read without the lock, by operations that run, so atomically
 *   quit, draining    are atomics
 * `hear` and `note` are called without the lock: what they guard has locks of its own. */
#include "stages/seat/control.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <zmq.h>

#include "common/log.h"

#define TICK_MS 100       /* the main thread looks for SIGTERM as often */
#define START_MS 5000     /* longest start of the socket's thread */
#define LAST_WORDS_MS 200 /* longest wait for the dispatcher to take what was said */

static volatile sig_atomic_t term_seen;

static void on_term(int sig)
{
    (void)sig;
    term_seen = 1;
}

void sl_control_catch_term(void)
{
    struct sigaction drain = {.sa_handler = on_term};
    sigaction(SIGTERM, &drain, NULL);
}

bool sl_control_term_seen(void)
{
    return term_seen;
}

/* ---- the socket's thread ---- */

static void note_wish(sl_control *c, sl_wish wish, uint64_t job, uint32_t attempt)
{
    pthread_mutex_lock(&c->lock);
    if (c->current.job == job && c->current.attempt == attempt)
        __atomic_store_n(&c->wished[wish], 1, __ATOMIC_RELAXED);
    else c->early[wish][c->early_count[wish]++ % SL_CONTROL_EARLY] = (sl_attempt){job, attempt};
    pthread_mutex_unlock(&c->lock);
}

/* What came from the dispatcher: dealt with here, answered, or the main thread's. */
static void deal(sl_control *c, const sl_msg *m, void *dealer, void *to_main)
{
    sl_msg reply = {0};
    /* the main thread sees a CANCEL too: mux waits between messages */
    if (m->type == SL_MSG_CANCEL) note_wish(c, SL_WISH_CANCEL, m->cancel.job, m->cancel.attempt);
    if (m->type == SL_MSG_PARK) note_wish(c, SL_WISH_PARK, m->park.job, m->park.attempt);
    else if (m->type == SL_MSG_DRAIN) atomic_store(&c->draining, true);
    else if (!c->hear(c->self, m, &reply)) sl_wire_send(to_main, NULL, 0, m, NULL);
    else if (reply.type) sl_wire_send(dealer, NULL, 0, &reply, NULL);
}

static void beat(sl_control *c, void *dealer, uint64_t beats)
{
    sl_msg m = {.type = SL_MSG_HEARTBEAT, .heartbeat = {.beats = beats}};
    pthread_mutex_lock(&c->lock);
    m.heartbeat.job = c->current.job;
    pthread_mutex_unlock(&c->lock);
    sl_wire_send(dealer, NULL, 0, &m, NULL);
}

/* Tell who wants to know that this process lives. Milliseconds until it is to be told again; -1:
 * nobody wants to know. */
static int64_t pulse(sl_control *c)
{
    pthread_mutex_lock(&c->lock);
    bool wanted = c->pulse != NULL;
    if (wanted) c->pulse(c->pulse_of);
    pthread_mutex_unlock(&c->lock);
    return wanted ? SL_CONTROL_PULSE_MS : -1;
}

static void *socket_main(void *arg)
{
    sl_control *c = arg;
    void *dealer = zmq_socket(c->zmq, ZMQ_DEALER), *to_main = zmq_socket(c->zmq, ZMQ_PAIR),
         *from_all = zmq_socket(c->zmq, ZMQ_PULL);
    int linger = LAST_WORDS_MS, none = 0;
    int64_t next_beat = sl_now_ns() + (int64_t)c->beat_ms * 1000000; /* HELLO goes first */
    uint64_t beats = 0;
    sl_err err = {0};
    sl_msg m = {.type = SL_MSG_HEARTBEAT};

    zmq_setsockopt(dealer, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(dealer, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(to_main, ZMQ_SNDHWM, &none, sizeof none);
    if (zmq_connect(dealer, c->endpoint) || zmq_connect(to_main, "inproc://to-main") ||
        zmq_bind(from_all, "inproc://from-all"))
        sl_log(SL_LOG_ERROR, "cannot connect to %s: %s", c->endpoint, zmq_strerror(errno));
    /* from_all is bound: the main thread, which waits for this, may connect */
    sl_wire_send(to_main, NULL, 0, &m, NULL);

    while (true) {
        int64_t now = sl_now_ns(), wait_ms = (next_beat - now) / 1000000;
        zmq_pollitem_t items[] = {{dealer, 0, ZMQ_POLLIN, 0}, {from_all, 0, ZMQ_POLLIN, 0}};
        if (wait_ms <= 0) {
            beat(c, dealer, ++beats);
            next_beat = now + (int64_t)c->beat_ms * 1000000;
            wait_ms = c->beat_ms;
        }
        int64_t pulse_ms = pulse(c);
        if (pulse_ms >= 0 && pulse_ms < wait_ms) wait_ms = pulse_ms;
        if (zmq_poll(items, 2, wait_ms) < 0 && errno != EINTR) break;
        /* out: what this process says */
        while (sl_wire_recv(from_all, NULL, NULL, &m, &err) == SL_OK)
            sl_wire_send(dealer, NULL, 0, &m, NULL);
        /* in: until the queue is empty; what is no message was taken off it */
        sl_code rc;
        while (!(rc = sl_wire_recv(dealer, NULL, NULL, &m, &err)) || rc == SL_FORMAT) {
            if (rc) sl_log_err("control socket", &err);
            else deal(c, &m, dealer, to_main);
        }
        if (atomic_load(&c->quit)) break;
    }
    zmq_close(dealer);
    zmq_close(to_main);
    zmq_close(from_all);
    return NULL;
}

/* ---- opening ---- */

void *sl_control_open_end(sl_control *c)
{
    void *s = zmq_socket(c->zmq, ZMQ_PUSH);
    int none = 0, linger = 0;
    zmq_setsockopt(s, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_connect(s, "inproc://from-all");
    return s;
}

sl_code sl_control_open(sl_control *c, sl_role role, const char *endpoint, int beat_ms,
                        sl_hear_fn *hear, sl_note_fn *note, void *self, sl_err *err)
{
    int none = 0, linger = 0, ready;
    sl_msg first;
    snprintf(c->role, sizeof c->role, "%s", sl_role_name(role));
    snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
    c->beat_ms = beat_ms, c->hear = hear, c->note = note, c->self = self;
    pthread_mutex_init(&c->lock, NULL);
    c->made = true;
    if (!(c->zmq = zmq_ctx_new()) || !(c->in = zmq_socket(c->zmq, ZMQ_PAIR)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(c->in, ZMQ_RCVHWM, &none, sizeof none);
    zmq_setsockopt(c->in, ZMQ_LINGER, &linger, sizeof linger);
    if (zmq_bind(c->in, "inproc://to-main"))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    if (pthread_create(&c->thread, NULL, socket_main, c))
        return sl_fail(err, SL_SYS, "control's thread: %s", strerror(errno));
    c->runs = true;
    /* its first message; SIGTERM may come meanwhile: the dispatcher may end before we begin */
    zmq_pollitem_t item = {c->in, 0, ZMQ_POLLIN, 0};
    do ready = zmq_poll(&item, 1, START_MS);
    while (ready < 0 && errno == EINTR);
    if (ready < 1 || sl_wire_recv(c->in, NULL, NULL, &first, err))
        return sl_fail(err, SL_SYS, "control's thread did not start");
    c->out = sl_control_open_end(c);
    return SL_OK;
}

void sl_control_close(sl_control *c)
{
    if (!c->made) return;
    c->made = false;
    if (c->runs) {
        sl_msg last = {.type = SL_MSG_HEARTBEAT};
        atomic_store(&c->quit, true);
        /* wakes the socket's thread, behind all that was said */
        if (c->out) sl_wire_send(c->out, NULL, 0, &last, NULL);
        pthread_join(c->thread, NULL);
    }
    if (c->out) zmq_close(c->out);
    if (c->in) zmq_close(c->in);
    if (c->zmq) zmq_ctx_term(c->zmq);
    pthread_mutex_destroy(&c->lock);
}

/* ---- saying ---- */

void sl_control_send(sl_control *c, const sl_msg *msg)
{
    sl_err err = {0};
    if (sl_wire_send(c->out, NULL, 0, msg, &err)) sl_log_err("control socket", &err);
}

void sl_control_span(sl_control *c, uint64_t job, sl_span_kind kind, int64_t t0_ns)
{
    sl_msg m = {.type = SL_MSG_SPAN,
                .span = {.job = job, .kind = kind, .t0_ns = t0_ns, .t1_ns = sl_now_ns()}};
    if (c->quiet && job) return;
    memcpy(m.span.stage, c->role, sizeof m.span.stage);
    sl_control_send(c, &m);
}

void sl_control_progress(sl_control *c, const sl_msg_job *job, int done, int total, double seconds)
{
    sl_msg m = {.type = SL_MSG_PROGRESS,
                .progress = {.job = job->job,
                             .attempt = job->attempt,
                             .done = (uint32_t)done,
                             .total = (uint32_t)total,
                             .seconds = seconds}};
    memcpy(m.progress.stage, c->role, sizeof m.progress.stage);
    sl_control_send(c, &m);
}

/* ---- hearing ---- */

void sl_control_look(sl_control *c)
{
    sl_msg m;
    sl_err err = {0};
    while (c->inbox_count < SL_CONTROL_INBOX &&
           sl_wire_recv(c->in, NULL, NULL, &m, &err) == SL_OK) {
        if (c->note(c->self, &m)) continue;
        if (m.type == SL_MSG_JOB || m.type == SL_MSG_CHUNK || m.type == SL_MSG_CANCEL)
            c->inbox[c->inbox_count++] = m;
        else sl_log(SL_LOG_WARN, "%s is not for a stage: ignored", sl_wire_name(m.type));
    }
}

sl_code sl_control_next(sl_control *c, bool busy, sl_msg *out, sl_err *err)
{
    while (true) {
        sl_control_look(c);
        if (c->inbox_count) {
            *out = c->inbox[0];
            memmove(c->inbox, c->inbox + 1, (size_t)--c->inbox_count * sizeof *c->inbox);
            return SL_OK;
        }
        if (!busy && (term_seen || atomic_load(&c->draining)))
            return sl_fail(err, SL_GONE, "drained");
        zmq_pollitem_t item = {c->in, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, TICK_MS); /* wakes at once for a message */
    }
}

bool sl_control_begin(sl_control *c, uint64_t job, uint32_t attempt)
{
    pthread_mutex_lock(&c->lock);
    c->current = (sl_attempt){job, attempt};
    for (int w = 0; w < SL_WISHES; w++) {
        bool was = false;
        for (int i = 0; job && i < SL_CONTROL_EARLY && i < c->early_count[w]; i++)
            was |= c->early[w][i].job == job && c->early[w][i].attempt == attempt;
        __atomic_store_n(&c->wished[w], was, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&c->lock);
    return sl_control_cancelled(c);
}

bool sl_control_is_at(sl_control *c, uint64_t job, uint32_t attempt)
{
    pthread_mutex_lock(&c->lock);
    const bool is = c->current.job == job && c->current.attempt == attempt;
    pthread_mutex_unlock(&c->lock);
    return is;
}

bool sl_control_cancelled(const sl_control *c)
{
    return __atomic_load_n(&c->wished[SL_WISH_CANCEL], __ATOMIC_RELAXED) != 0;
}

bool sl_control_parked(const sl_control *c)
{
    return __atomic_load_n(&c->wished[SL_WISH_PARK], __ATOMIC_RELAXED) != 0;
}

sl_code sl_control_wait(sl_control *c, int ms, sl_err *err)
{
    zmq_pollitem_t item = {c->in, 0, ZMQ_POLLIN, 0};
    sl_control_look(c);
    if (term_seen || atomic_load(&c->draining)) return sl_fail(err, SL_GONE, "drained");
    zmq_poll(&item, 1, ms);
    sl_control_look(c);
    return SL_OK;
}

void sl_control_pulse(sl_control *c, sl_pulse_fn *pulse_fn, void *of)
{
    sl_msg wake = {.type = SL_MSG_HEARTBEAT};
    pthread_mutex_lock(&c->lock);
    c->pulse = pulse_fn;
    c->pulse_of = of;
    pthread_mutex_unlock(&c->lock);
    sl_control_send(c, &wake); /* or it would first sleep until its next beat */
}
