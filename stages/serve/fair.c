/* fair.c - the order in which queued jobs are claimed. */
#include "stages/serve/fair.h"

#include <stdlib.h>

static int compare(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

static int before(const void *x, const void *y)
{
    const sl_fair_job *a = x, *b = y;
    int order = compare(b->priority, a->priority);
    if (!order) order = compare(!a->claimed, !b->claimed);
    if (!order) order = compare(a->claimed, b->claimed);
    if (!order) order = compare(a->place, b->place); /* which round */
    if (!order) order = compare(a->last, b->last);   /* whose turn in the round */
    if (!order) order = compare(a->oldest, b->oldest);
    return order ? order : compare(a->seq, b->seq);
}

void sl_fair_order(sl_fair_job *jobs, int n)
{
    int64_t place = 0, oldest = 0;
    for (int i = 0; i < n; i++) {
        sl_fair_job *job = &jobs[i];
        if (!i || job->owner != job[-1].owner || job->priority != job[-1].priority) place = 0;
        if (job->claimed) continue; /* released jobs are in no round */
        if (!place) oldest = job->seq;
        job->place = place++;
        job->oldest = oldest;
    }
    if (n) qsort(jobs, (size_t)n, sizeof *jobs, before);
}
