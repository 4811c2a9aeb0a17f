/* turn.c - the stage's side of turns: ask, wait, give back.
 *
 * Who runs where:
 *   main thread       sl_turn_begin (waits for `heard`), sl_turn_end
 *   socket's thread   sl_turn_hear
 * lock guards what the turn is: asked, held, free, busy, and the times of pieces. `on`,
 * device and timeout_s do not change after sl_turn_open. A cancel is the control's flag,
 * set before sl_turn_hear signals. */
#include "stages/seat/turn.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"

#define MS 1000000ll
/* A stage waits for so many times the longest sound turn: as many other stages can have had
 * one each. */
#define TIMEOUTS 4

void sl_turn_open(sl_turn *t, sl_control *control, const sl_conf *conf, const char *device)
{
    pthread_condattr_t monotonic;
    const char *turns = conf->dispatch.turns;
    t->on = !strcmp(turns, "always") || (!strcmp(turns, "gpu") && !strncmp(device, "cuda:", 5));
    t->control = control;
    t->timeout_s = conf->dispatch.turn_timeout_s;
    snprintf(t->device, sizeof t->device, "%s", device);
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&t->heard, &monotonic);
    pthread_condattr_destroy(&monotonic);
    t->made = true;
}

void sl_turn_close(sl_turn *t)
{
    if (!t->made) return;
    pthread_cond_destroy(&t->heard);
    pthread_mutex_destroy(&t->lock);
    t->made = t->on = false;
}

static sl_msg give(uint64_t turn)
{
    return (sl_msg){.type = SL_MSG_GIVE, .give = {.turn = turn}};
}

/* Until the grant is there, the job is cancelled, or the deadline has passed. Under the
 * lock. */
static void wait_for_grant(sl_turn *t, int64_t by_ns)
{
    struct timespec by = {.tv_sec = by_ns / (1000 * MS), .tv_nsec = by_ns % (1000 * MS)};
    int rc = 0;
    while (t->asked && rc != ETIMEDOUT && !sl_control_cancelled(t->control))
        rc = pthread_cond_timedwait(&t->heard, &t->lock, &by);
}

/* The job that runs; 0: none. Main thread, which alone changes it. */
static uint64_t job_of(const sl_turn *t)
{
    return t->control->current.job;
}

sl_code sl_turn_begin(sl_turn *t, sl_turn_kind kind, const char *what, int n, sl_err *err)
{
    int64_t t0 = sl_now_ns(), limit_s = (int64_t)TIMEOUTS * t->timeout_s;
    sl_msg ask = {.type = SL_MSG_ASK, .ask = {.kind = kind}};
    if (!t->on) return SL_OK;
    ask.ask.job = job_of(t);
    snprintf(ask.ask.what, sizeof ask.ask.what, "%.48s %d", what, n);

    /* ask and wait, unless the turn is held until REVOKE */
    pthread_mutex_lock(&t->lock);
    bool asked = !t->held || !t->free, granted = true;
    if (asked) {
        ask.ask.turn = t->asked = ++t->last;
        ask.ask.expected_ms = t->lasted_ms[kind];
        t->held = 0; /* the dispatcher takes the question for the end of the turn */
        sl_control_send(t->control, &ask);
        wait_for_grant(t, t0 + limit_s * 1000 * MS);
        granted = !t->asked;
        t->asked = 0;
    }
    t->busy = granted;
    t->kind = kind;
    t->begun_ns = sl_now_ns();
    pthread_mutex_unlock(&t->lock);

    /* cancelled, or nobody answered: the question is taken back */
    if (asked) sl_control_span(t->control, ask.ask.job, SL_SPAN_TURN, t0);
    if (granted) return SL_OK;
    sl_msg not_wanted = give(ask.ask.turn);
    sl_control_send(t->control, &not_wanted);
    if (sl_control_cancelled(t->control)) return sl_fail(err, SL_CANCELLED, "cancelled");
    sl_log(SL_LOG_WARN, "%s had no turn on %s for %lld s: goes on beside whoever holds it",
           ask.ask.what, t->device, (long long)limit_s);
    return SL_OK;
}

void sl_turn_end(sl_turn *t, bool more)
{
    int64_t begun_ns = 0, now = sl_now_ns();
    uint64_t turn = 0;
    sl_msg back = {0};
    if (!t->on) return;
    pthread_mutex_lock(&t->lock);
    if (t->held && t->busy) {
        turn = t->held;
        begun_ns = t->begun_ns;
        if (begun_ns) t->lasted_ms[t->kind] = (uint64_t)((now - begun_ns) / MS);
        t->begun_ns = 0;
        t->busy = more;
        if (!more && !t->free) {
            back = give(t->held);
            t->held = 0;
        }
    }
    pthread_mutex_unlock(&t->lock);
    if (back.type) sl_control_send(t->control, &back);
    if (begun_ns)
        sl_log(SL_LOG_DEBUG, "had turn %llu of %s from %lld to %lld ns", (unsigned long long)turn,
               t->device, (long long)begun_ns, (long long)now);
}

bool sl_turn_hear(sl_turn *t, const sl_msg *m, sl_msg *reply)
{
    bool answer = false;
    pthread_mutex_lock(&t->lock);
    if (m->type == SL_MSG_GRANT && t->asked && m->grant.turn == t->asked) {
        t->held = t->asked;
        t->asked = 0;
        t->free = m->grant.free != 0;
        t->busy = true;
        pthread_cond_signal(&t->heard);
    } else if (m->type == SL_MSG_REVOKE && t->held && m->revoke.turn == t->held) {
        t->free = false;
        answer = !t->busy;
        if (answer) {
            *reply = give(t->held);
            t->held = 0;
        }
    } else if (m->type == SL_MSG_CANCEL) pthread_cond_signal(&t->heard); /* it looks */
    pthread_mutex_unlock(&t->lock);
    return answer;
}
