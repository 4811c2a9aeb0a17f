/* fair.h - the order in which queued jobs are claimed.
 *
 * The largest priority first. Within it, jobs that were claimed before and released, in the order
 * of their claims; then owners in turn: the oldest job of each, then the second of each, and so on.
 * The round begins with owners that never had a claim, the one whose job waits longest first; then
 * it is the owner's turn whose newest claim is the longest ago. So who submits a thousand jobs at
 * once delays another's single job by one of them.
 * A claim of the first job leaves the order of the others as it is: what a job is told of its place
 * only gets better, unless others come. */
#ifndef SL_FAIR_H
#define SL_FAIR_H

#include <stdint.h>

typedef struct {
    int64_t seq; /* grows with the time of submission */
    int priority;
    int owner;             /* a number for the owner, another for another */
    int64_t claimed;       /* number of its own claim, growing; 0: none. Others were released */
    int64_t last;          /* number of its owner's newest claim in this priority; 0: none */
    int64_t place, oldest; /* scratch of sl_fair_order */
} sl_fair_job;

/* Sorts the n jobs into the order. They come with those of one owner and priority side by side, the
 * older first. */
void sl_fair_order(sl_fair_job *jobs, int n);

#endif
