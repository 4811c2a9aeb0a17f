/* team.h - how many ranks each job should have: the policy alone, without processes. */
#ifndef SL_TEAM_H
#define SL_TEAM_H

#include <stdbool.h>

/* A job that is to be worked on by ranks, now or in a moment. */
typedef struct {
    bool guided;
    bool alone;    /* one rank must see all of its rows: it is asked for intermediates */
    int ranks;     /* that work on it now; 0: none */
    bool runnable; /* none do, and it could begin; false: what it begins from is being made */
    bool may_park; /* some do, and their attempt may be ended at a step */

    int want;  /* set: how many ranks the job should have; 0: it waits */
    bool park; /* set: end the attempt, so that the job goes on with `want` */
} sl_team_job;

/* Set want and park of n jobs, oldest first. ranks: how many there are, at work or not; team: how
 * many work on one job, 0: as it suits. stages/README.md tells the reasons.
 *   team N   each job has the largest team of at most N that fits, as long as there are ranks
 *   team 0   the jobs that run, then the oldest, have one each; then the smallest team of all is
 *            raised to its next size that fits (ties: in this order), until nothing can be raised
 *   always   a job that runs and may not be parked keeps what it has
 * Parked is a job that is to have less, if one that could begin now has to get its ranks, those
 * that give most first; and one that is to have more, if ranks are idle that nobody is to get. */
void sl_team_share(sl_team_job *jobs, int n, int ranks, int team, int heads);

#endif
