/* table.c - finding jobs and seats, telling them, and ending what they do. */
#include "stages/dispatch/table.h"

#include <stdio.h>

#include "common/clock.h"
#include "common/path.h"

void sl_table_to_seat(sl_jobs *d, int number, const sl_msg *m)
{
    if (number != NO_SEAT) d->to_seat(d->self, number, m);
}

void sl_table_to_client(sl_jobs *d, const job *j, const sl_msg *m)
{
    d->to_client(d->self, j->client, m);
}

void sl_table_discard(sl_jobs *d, delivery *v)
{
    sl_msg m = {.type = SL_MSG_DISCARD, .discard = {.ticket = v->ticket}};
    sl_table_to_seat(d, v->seat, &m);
    v->seat = NO_SEAT;
}

void sl_table_discard_ticket(sl_jobs *d, uint32_t h, const sl_ticket *t)
{
    sl_msg m = {.type = SL_MSG_DISCARD, .discard = {.ticket = *t}};
    if (h < (uint32_t)sl_handover_count())
        sl_table_to_seat(d, sl_table_owner(d, (int)h, t->pool), &m);
}

job *sl_table_job(sl_jobs *d, uint64_t id)
{
    for (int i = 0; i < d->count; i++)
        if (d->jobs[i].id == id) return &d->jobs[i];
    return NULL;
}

const char *sl_table_name(const job *j)
{
    return sl_path_last(j->dir);
}

bool sl_table_is_in(const attempt *a, const seat *s, int number)
{
    bool in = a->seat[s->stage->role] == number;
    for (int i = 0; i < SL_RANKS; i++) in = in || a->mates[i] == number;
    return a->number && in;
}

void sl_table_stop(sl_jobs *d, const job *j, attempt *a)
{
    sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = j->id, .attempt = a->number}};
    if (!a->number) return;
    a->ending = true;
    if (!a->stopped_ns) a->stopped_ns = sl_now_ns();
    for (int r = 0; r < sl_role_count(); r++) sl_table_to_seat(d, a->seat[r], &m);
    for (int i = 0; i < SL_RANKS; i++) sl_table_to_seat(d, a->mates[i], &m);
}

void sl_table_end(sl_jobs *d, job *j, sl_code code, const char *why)
{
    if (j->ending) return;
    j->ending = true;
    j->code = code;
    snprintf(j->message, sizeof j->message, "%s", why);
    for (int r = 0; r < sl_role_count(); r++) sl_table_stop(d, j, &j->attempts[r]);
}

int sl_table_owner(const sl_jobs *d, int h, uint64_t pool)
{
    for (int i = 0; pool && i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && d->seats[i].pools[h].id == pool) return i;
    return NO_SEAT;
}
