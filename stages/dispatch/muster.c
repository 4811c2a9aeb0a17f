/* muster.c - how ranks are reached, and who loads together. */
#include "stages/dispatch/muster.h"

#include <string.h>

#include "common/clock.h"

#define MS 1000000ll

void sl_muster_open(sl_muster *r, void *self,
                    void (*to_seat)(void *self, int seat, const sl_msg *m))
{
    memset(r, 0, sizeof *r);
    r->self = self;
    r->to_seat = to_seat;
}

void sl_muster_add(sl_muster *r, int seat, const sl_conf *conf, const sl_conf_stage *stage)
{
    if (sl_conf_teamed(conf, stage->role)) r->seats[seat] = (sl_muster_seat){.stage = stage};
}

uint32_t sl_muster_key(sl_muster *r)
{
    return ++r->last_key;
}

static bool are_of_one_role(const sl_muster *r, int a, int b)
{
    const sl_conf_stage *x = r->seats[a].stage, *y = r->seats[b].stage;
    return x && y && x->role == y->role;
}

static void tell(const sl_muster *r, int seat, const sl_msg_rank *rank)
{
    sl_msg m = {.type = SL_MSG_RANK, .rank = *rank};
    r->to_seat(r->self, seat, &m);
}

void sl_muster_on_hello(sl_muster *r, int seat)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (i != seat && are_of_one_role(r, i, seat) && r->seats[i].announced)
            tell(r, seat, &r->seats[i].rank);
}

bool sl_muster_on_rank(sl_muster *r, int seat, const sl_msg_rank *m)
{
    sl_muster_seat *s = &r->seats[seat];
    if (!s->stage || m->rank != s->stage->instance) return false;
    if (!s->announced) s->since_ns = sl_now_ns();
    s->announced = true;
    s->rank = *m;
    for (int i = 0; i < SL_CONF_SEATS; i++) /* who has not said HELLO hears of it then */
        if (i != seat && are_of_one_role(r, i, seat)) tell(r, i, m);
    return true;
}

void sl_muster_forget(sl_muster *r, int seat, bool for_good)
{
    sl_muster_seat *s = &r->seats[seat];
    *s = (sl_muster_seat){.stage = s->stage, .given_up = for_good};
}

/* ---- loading ---- */

/* LOAD for these ranks of one role, together. */
static void load(sl_muster *r, const int seats[], int n)
{
    sl_msg m = {.type = SL_MSG_LOAD,
                .load = {.team = {.size = (uint32_t)n, .key = sl_muster_key(r)}}};
    for (int i = 0; i < n; i++)
        m.load.team.member[i] = (uint32_t)r->seats[seats[i]].stage->instance;
    for (int i = 0; i < n; i++) {
        m.load.team.me = (uint32_t)i;
        r->seats[seats[i]].loads = true;
        r->to_seat(r->self, seats[i], &m);
    }
}

/* The ranks of this seat's role that wait for LOAD, if it is time. */
static void look_at_role(sl_muster *r, int seat, int64_t now_ns)
{
    int waiting[SL_RANKS], n = 0;
    bool others_load = false, others_come = false, in_time = true;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const sl_muster_seat *s = &r->seats[i];
        if (!are_of_one_role(r, i, seat)) continue;
        if (s->loads) others_load = true;
        else if (!s->announced) others_come |= !s->given_up;
        else if (n < SL_RANKS) {
            if (now_ns - s->since_ns >= SL_MUSTER_MS * MS) in_time = false;
            waiting[n++] = i;
        }
    }
    if (others_load)
        for (int i = 0; i < n; i++) load(r, &waiting[i], 1);
    else if (n && (!others_come || !in_time)) load(r, waiting, n);
}

void sl_muster_tick(sl_muster *r, int64_t now_ns)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (r->seats[i].announced && !r->seats[i].loads) look_at_role(r, i, now_ns);
}
