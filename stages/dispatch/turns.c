/* turns.c - turns of a device: one stage at a time computes there; who asks waits, who
 * gives back or dies makes room.
 *
 * A stage's turns are numbered by itself, growing. There is no queue that could be wrong
 * after a death: who waits and who holds stands with the stage (peer.turn), and goes with
 * it. */
#include "stages/dispatch/dispatch.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>

#include "common/log.h"
#include "stages/dispatch/order.h"
#include "stages/seat/turn.h"

#define MS 1000000ll
#define PROBE_MS 50 /* how often a holder's connection is looked at while others wait for it */

static bool same_device(const peer *a, const peer *b)
{
    return !strcmp(a->conf->device, b->conf->device);
}

static peer *holder_beside(dispatcher *d, const peer *p)
{
    for (int i = 0; i < d->peer_count; i++)
        if (d->peers[i].turn.held && same_device(&d->peers[i], p)) return &d->peers[i];
    return NULL;
}

/* No other stage on the device has asked for a turn of it since it was started. */
static bool alone(const dispatcher *d, const peer *p)
{
    for (int i = 0; i < d->peer_count; i++)
        if (&d->peers[i] != p && d->peers[i].turn.asks && same_device(&d->peers[i], p))
            return false;
    return true;
}

static int64_t patience_ns(const dispatcher *d)
{
    return d->conf.dispatch.turn_timeout_s * 1000 * MS;
}

/* The stage on p's device that goes next; NULL: none waits. */
static peer *next_beside(dispatcher *d, const peer *p)
{
    turn_wait waits[SL_ROLE_COUNT];
    peer *who[SL_ROLE_COUNT];
    int n = 0;
    for (int i = 0; i < d->peer_count; i++) {
        peer *q = &d->peers[i];
        if (!q->turn.asked || !same_device(q, p)) continue;
        waits[n] = (turn_wait){q->turn.ask.kind == SL_TURN_STEP, q->turn.since_ns};
        who[n++] = q;
    }
    return n ? who[turn_next(waits, n, sl_now_ns(), patience_ns(d))] : NULL;
}

static sl_code send_grant(dispatcher *d, const peer *p)
{
    sl_msg m = {.type = SL_MSG_GRANT, .grant = {.turn = p->turn.held, .free = p->turn.free}};
    return peer_send(d, p, &m);
}

/* Give p's device to who is next, if nobody holds it; if somebody holds it for good, that
 * ends. */
static void hand_on(dispatcher *d, const peer *beside)
{
    peer *holder, *next;
    while (!(holder = holder_beside(d, beside)) && (next = next_beside(d, beside))) {
        turn_state *t = &next->turn;
        t->held = t->asked;
        t->asked = 0;
        t->free = alone(d, next);
        t->late = false;
        t->since_ns = sl_now_ns();
        sl_log(SL_LOG_DEBUG, "-> %s GRANT turn=%" PRIu64 " free=%d of %s", sl_role_name(next->role),
               t->held, t->free, next->conf->device);
        if (send_grant(d, next) == SL_GONE) t->held = 0; /* its pidfd will tell */
    }
    if (holder && holder->turn.free && next_beside(d, beside)) {
        sl_msg m = {.type = SL_MSG_REVOKE, .revoke = {.turn = holder->turn.held}};
        holder->turn.free = false;
        holder->turn.since_ns = sl_now_ns(); /* from now on it keeps somebody waiting */
        peer_send(d, holder, &m);
    }
}

void turns_on_ask(dispatcher *d, peer *p, const sl_msg_ask *m)
{
    turn_state *t = &p->turn;
    if (t->asked || m->turn <= t->newest || m->kind > SL_TURN_STEP) {
        sl_log(SL_LOG_WARN,
               "ASK of %s for turn %" PRIu64 " of kind %u: ignored, want a number over %" PRIu64
               " and a kind up to %d%s",
               sl_role_name(p->role), m->turn, m->kind, t->newest, SL_TURN_STEP,
               t->asked ? ", one at a time" : "");
        return;
    }
    t->held = 0; /* it is between two pieces, and others may go first */
    t->free = false;
    t->asks = true;
    t->asked = t->newest = m->turn;
    t->since_ns = sl_now_ns();
    t->ask = *m;
    hand_on(d, p);
}

void turns_on_give(dispatcher *d, peer *p, const sl_msg_give *m)
{
    turn_state *t = &p->turn;
    if (m->turn && m->turn == t->held) t->held = 0;
    else if (m->turn && m->turn == t->asked) t->asked = 0;
    else {
        sl_log(SL_LOG_WARN,
               "GIVE of %s of turn %" PRIu64 ": ignored, it holds %" PRIu64
               " and waits for %" PRIu64,
               sl_role_name(p->role), m->turn, t->held, t->asked);
        return;
    }
    hand_on(d, p);
}

void turns_forget(dispatcher *d, peer *p)
{
    memset(&p->turn, 0, sizeof p->turn);
    hand_on(d, p);
}

/* It holds the device, and another stage waits for that. */
static void look_at_holder(dispatcher *d, peer *p, const peer *waits, int64_t now)
{
    turn_state *t = &p->turn;
    int64_t limit_ns = patience_ns(d),
            expected_ns = (int64_t)(t->ask.expected_ms % (86400ull * 1000)) * 4 * MS;
    if (expected_ns > limit_ns) limit_ns = expected_ns;
    if (!t->late && now - t->since_ns > limit_ns) {
        t->late = true; /* said once; nobody is preempted: its process still beats */
        sl_log(SL_LOG_WARN,
               "%s has held its turn of %s for %.1f s (job %" PRIu64 ", %s), and %s waits",
               sl_role_name(p->role), p->conf->device, (double)(now - t->since_ns) * 1e-9,
               t->ask.job, t->ask.what, sl_role_name(waits->role));
    }
    struct pollfd ended = {p->pidfd, POLLIN, 0};
    if (poll(&ended, 1, 0) == 1) return; /* peer_check is next */
    /* once more, which changes nothing there, but tells us whether it can still be
     * reached */
    if (send_grant(d, p) == SL_GONE) {
        sl_log(SL_LOG_WARN, "%s[%d] lost its connection while it held the turn of %s: killed",
               sl_role_name(p->role), (int)p->pid, p->conf->device);
        if (p->pid > 0) kill(p->pid, SIGKILL);
        turns_forget(d, p);
    }
}

void turns_tick(dispatcher *d)
{
    int64_t now = sl_now_ns();
    if (now - d->turns_looked_ns < PROBE_MS * MS) return;
    d->turns_looked_ns = now;
    for (int i = 0; i < d->peer_count; i++) {
        peer *p = &d->peers[i], *waits = p->turn.held ? next_beside(d, p) : NULL;
        if (waits) look_at_holder(d, p, waits, now);
    }
}
