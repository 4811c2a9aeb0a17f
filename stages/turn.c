/* turn.c - the stage's side of turns: ask, wait, give back. */
#include "stages/turn.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "stages/stage.h"

#define MS 1000000ll
/* as many other stages can have had a turn, each of the longest that is sound */
#define TIMEOUTS 4

void sl_turn_open(sl_turn *t, const sl_conf *conf, const char *device)
{
    pthread_condattr_t monotonic;
    const char *turns = conf->dispatch.turns;
    t->on = !strcmp(turns, "always") || (!strcmp(turns, "gpu") && !strncmp(device, "cuda:", 5));
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
static void wait_for_grant(sl_stage *st, sl_turn *t, int64_t by_ns)
{
    struct timespec by = {.tv_sec = by_ns / (1000 * MS), .tv_nsec = by_ns % (1000 * MS)};
    int rc = 0;
    while (t->asked && rc != ETIMEDOUT && !sl_stage_cancelled(st))
        rc = pthread_cond_timedwait(&t->heard, &t->lock, &by);
}

sl_code sl_stage_turn_begin(sl_stage *st, sl_turn_kind kind, const char *what, int n, sl_err *err)
{
    sl_turn *t = sl_stage_turn(st);
    uint64_t job = sl_stage_job(st);
    int64_t t0 = sl_now_ns(),
            limit_s = (int64_t)TIMEOUTS * sl_stage_conf(st)->dispatch.turn_timeout_s;
    sl_msg ask = {.type = SL_MSG_ASK, .ask = {.job = job, .kind = kind}};
    if (!t->on) return SL_OK;
    snprintf(ask.ask.what, sizeof ask.ask.what, "%.48s %d", what, n);

    pthread_mutex_lock(&t->lock);
    bool asked = !t->held || !t->free, granted = true;
    if (asked) {
        ask.ask.turn = t->asked = ++t->last;
        ask.ask.expected_ms = t->lasted_ms[kind];
        t->held = 0; /* the dispatcher takes the question for the end of the turn */
        sl_stage_send(st, &ask);
        wait_for_grant(st, t, t0 + limit_s * 1000 * MS);
        granted = !t->asked;
        t->asked = 0;
    }
    t->busy = granted;
    t->kind = kind;
    t->begun_ns = sl_now_ns();
    pthread_mutex_unlock(&t->lock);

    if (asked) sl_stage_span(st, job, SL_SPAN_TURN, t0);
    if (granted) return SL_OK;
    sl_msg not_wanted = give(ask.ask.turn);
    sl_stage_send(st, &not_wanted);
    if (sl_stage_cancelled(st)) return sl_fail(err, SL_CANCELLED, "cancelled");
    sl_log(SL_LOG_WARN, "%s had no turn on %s for %lld s: goes on beside whoever holds it",
           ask.ask.what, sl_stage_device(st), (long long)limit_s);
    return SL_OK;
}

void sl_stage_turn_end(sl_stage *st, bool more)
{
    sl_turn *t = sl_stage_turn(st);
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
    if (back.type) sl_stage_send(st, &back);
    if (begun_ns)
        sl_log(SL_LOG_DEBUG, "had turn %llu of %s from %lld to %lld ns", (unsigned long long)turn,
               sl_stage_device(st), (long long)begun_ns, (long long)now);
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
    }
    pthread_mutex_unlock(&t->lock);
    return answer;
}

void sl_turn_wake(sl_turn *t)
{
    pthread_mutex_lock(&t->lock);
    pthread_cond_signal(&t->heard);
    pthread_mutex_unlock(&t->lock);
}
