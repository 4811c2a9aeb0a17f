/* table.c - finding jobs and seats, and telling them. */
#include "stages/dispatch/table.h"

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
    if (h < SL_HANDOVER_COUNT) sl_table_to_seat(d, sl_table_owner(d, (int)h, t->pool), &m);
}

job *sl_table_job(sl_jobs *d, uint64_t id)
{
    for (int i = 0; i < d->count; i++)
        if (d->jobs[i].id == id) return &d->jobs[i];
    return NULL;
}

int sl_table_owner(const sl_jobs *d, int h, uint64_t pool)
{
    for (int i = 0; pool && i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && d->seats[i].pools[h].id == pool) return i;
    return NO_SEAT;
}
