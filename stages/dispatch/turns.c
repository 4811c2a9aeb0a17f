/* turns.c - turns of a device: one seat at a time computes there, or a team of ranks.
 *
 *   ASK    the seat waits, and gives back what it held
 *   GIVE   of the turn that the seat holds: it holds none; of the one asked for: it waits no more
 *   death  both
 *   then   the device is handed on: GRANT to the seat that order.h says, free if no other seat
 *          of the device has asked yet; REVOKE to a holder whose turn is free, if one waits
 *   team   GRANT also to whoever asks for the very piece of work that a holder has; the turn is
 *          over when the last gives it back
 *   tick   where one waits: is the holder too late, is its connection still there?
 * A stage numbers its turns itself, growing. There is no queue that could be wrong after a
 * death: who waits and who holds stands with the seat, and goes with its process. One
 * thread, the loop's. */
#include "stages/dispatch/turns.h"

#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/dispatch/order.h"

#define MS 1000000ll
#define PROBE_MS 50 /* how often a holder's connection is looked at while others wait for it */

void sl_turns_open(sl_turns *t, sl_bus *bus, const sl_conf *conf, sl_once *once)
{
    memset(t, 0, sizeof *t);
    t->once = once;
    t->bus = bus;
    t->patience_ns = conf->dispatch.turn_timeout_s * 1000 * MS;
}

void sl_turns_add(sl_turns *t, int seat, const char *name, const char *device, int team)
{
    t->seats[seat] = (sl_turns_seat){.name = name, .device = device, .team = team};
}

static bool on_one_device(const sl_turns *t, int a, int b)
{
    const char *x = t->seats[a].device, *y = t->seats[b].device;
    return x && y && !strcmp(x, y);
}

static bool are_of_one_team(const sl_turns *t, int a, int b)
{
    return t->seats[a].team >= 0 && t->seats[a].team == t->seats[b].team && on_one_device(t, a, b);
}

/* Both are about one piece of work, by what they have asked for last. */
static bool is_same_piece(const sl_turns *t, int a, int b)
{
    const sl_msg_ask *x = &t->seats[a].ask, *y = &t->seats[b].ask;
    return are_of_one_team(t, a, b) && x->job == y->job && !strcmp(x->what, y->what);
}

/* A seat that holds this seat's device, the first of a team; -1: none. */
static int holder_beside(const sl_turns *t, int seat)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (t->seats[i].held && on_one_device(t, i, seat)) return i;
    return -1;
}

/* No other seat on the device has asked for a turn of it since its process was started, nor may
 * one of its team: a rank that did not ask for each piece could not be seen to be at the same. */
static bool is_alone(const sl_turns *t, int seat)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (i != seat && on_one_device(t, i, seat) &&
            (t->seats[i].asks || are_of_one_team(t, i, seat)))
            return false;
    return true;
}

/* The seat on this seat's device that goes next; -1: none waits. */
static int next_beside(const sl_turns *t, int seat)
{
    sl_order_wait waits[SL_CONF_SEATS];
    int who[SL_CONF_SEATS], n = 0;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const sl_turns_seat *s = &t->seats[i];
        if (!s->asked || !on_one_device(t, i, seat)) continue;
        waits[n] = (sl_order_wait){s->ask.kind == SL_TURN_STEP, s->since_ns};
        who[n++] = i;
    }
    return n ? who[sl_order_next(waits, n, sl_now_ns(), t->patience_ns)] : -1;
}

static sl_code send_grant(sl_turns *t, int seat)
{
    const sl_turns_seat *s = &t->seats[seat];
    sl_msg m = {.type = SL_MSG_GRANT, .grant = {.turn = s->held, .free = s->free}};
    return sl_bus_send(t->bus, seat, &m);
}

/* The device is the waiting seat's. */
static void grant(sl_turns *t, int seat)
{
    sl_turns_seat *s = &t->seats[seat];
    s->held = s->asked;
    s->asked = 0;
    s->free = is_alone(t, seat);
    s->late = false;
    s->since_ns = sl_now_ns();
    sl_log(SL_LOG_DEBUG, "-> %s GRANT turn=%" PRIu64 " free=%d of %s", s->name, s->held, s->free,
           s->device);
    if (send_grant(t, seat) == SL_GONE) s->held = 0; /* its pidfd will tell */
}

/* Give this seat's device to who is next, if nobody holds it, and to who waits for the holder's
 * piece of work; if somebody holds it for good, that ends. */
static void hand_on(sl_turns *t, int seat)
{
    int holder, next;
    while ((holder = holder_beside(t, seat)) < 0 && (next = next_beside(t, seat)) >= 0)
        grant(t, next);
    for (int i = 0; i < SL_CONF_SEATS && holder >= 0; i++)
        if (t->seats[i].asked && is_same_piece(t, i, holder)) grant(t, i);
    if (holder >= 0 && t->seats[holder].free && next_beside(t, seat) >= 0) {
        sl_turns_seat *s = &t->seats[holder];
        sl_msg m = {.type = SL_MSG_REVOKE, .revoke = {.turn = s->held}};
        s->free = false;
        s->since_ns = sl_now_ns(); /* from now on it keeps somebody waiting */
        sl_bus_send(t->bus, holder, &m);
    }
}

void sl_turns_on_ask(sl_turns *t, int seat, const sl_msg_ask *m)
{
    sl_turns_seat *s = &t->seats[seat];
    if (s->asked || m->turn <= s->newest || m->kind > SL_TURN_STEP) {
        sl_once_warn(t->once,
                     "ASK of %s for turn %" PRIu64
                     " of kind %u: ignored, want a number over %" PRIu64 " and a kind up to %d%s",
                     s->name, m->turn, m->kind, s->newest, SL_TURN_STEP,
                     s->asked ? ", one at a time" : "");
        return;
    }
    s->held = 0; /* the seat is between two pieces, and others may go first */
    s->free = false;
    s->asks = true;
    s->asked = s->newest = m->turn;
    s->since_ns = sl_now_ns();
    s->ask = *m;
    hand_on(t, seat);
}

void sl_turns_on_give(sl_turns *t, int seat, const sl_msg_give *m)
{
    sl_turns_seat *s = &t->seats[seat];
    if (m->turn && m->turn == s->held) s->held = 0;
    else if (m->turn && m->turn == s->asked) s->asked = 0;
    else {
        sl_once_warn(t->once,
                     "GIVE of %s of turn %" PRIu64 ": ignored, it holds %" PRIu64
                     " and waits for %" PRIu64,
                     s->name, m->turn, s->held, s->asked);
        return;
    }
    hand_on(t, seat);
}

bool sl_turns_waits(const sl_turns *t, int seat)
{
    return t->seats[seat].asked != 0;
}

void sl_turns_forget(sl_turns *t, int seat)
{
    const sl_turns_seat *s = &t->seats[seat];
    sl_turns_add(t, seat, s->name, s->device, s->team);
    hand_on(t, seat);
}

/* The seat holds its device, and `waits` waits for that. true: its connection is lost. */
static bool look_at_holder(sl_turns *t, int seat, int waits, int64_t now)
{
    sl_turns_seat *s = &t->seats[seat];
    int64_t limit_ns = t->patience_ns,
            expected_ns = (int64_t)(s->ask.expected_ms % (86400ull * 1000)) * 4 * MS;
    if (expected_ns > limit_ns) limit_ns = expected_ns;
    if (!s->late && now - s->since_ns > limit_ns) {
        s->late = true; /* said once; nobody is preempted: its process still beats */
        sl_log(SL_LOG_WARN,
               "%s has held its turn of %s for %.1f s (job %" PRIu64 ", %s), and %s waits", s->name,
               s->device, (double)(now - s->since_ns) * 1e-9, s->ask.job, s->ask.what,
               t->seats[waits].name);
    }
    if (sl_bus_has_ended(t->bus, seat)) return false; /* ENDED comes next */
    /* Once more, which changes nothing there, but tells whether it can still be reached. */
    if (send_grant(t, seat) != SL_GONE) return false;
    sl_turns_forget(t, seat);
    return true;
}

void sl_turns_skip(sl_turns *t, int64_t ns)
{
    for (int i = 0; i < SL_CONF_SEATS; i++) t->seats[i].since_ns += ns;
}

int sl_turns_tick(sl_turns *t)
{
    int64_t now = sl_now_ns();
    int lost = -1;
    if (now - t->looked_ns < PROBE_MS * MS) return -1;
    t->looked_ns = now;
    for (int i = 0; i < SL_CONF_SEATS && lost < 0; i++) {
        int waits = t->seats[i].held ? next_beside(t, i) : -1;
        if (waits >= 0 && look_at_holder(t, i, waits, now)) lost = i;
    }
    return lost;
}
