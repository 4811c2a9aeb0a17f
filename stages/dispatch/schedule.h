/* schedule.h - which crew may work on which job next, and what a job still lacks. */
#ifndef SL_DISPATCH_SCHEDULE_H
#define SL_DISPATCH_SCHEDULE_H

#include "stages/dispatch/table.h"

/* The role whose DONE ends its crew's work: it hands no chunks on. */
bool sl_crew_ends_with(sl_role role);
/* The crew hands nothing on: what it makes is the job's end. */
bool sl_crew_is_last(sl_role crew);
/* Nobody will ask for this hand-over again, as things stand. */
bool sl_schedule_is_past(const job *j, int h);
/* Some stage still works on the job, or writes its files. */
bool sl_schedule_is_busy(const job *j);
/* Everything that the job asked for is there. */
bool sl_schedule_is_complete(const sl_jobs *d, const job *j);
/* The video is there, if this deployment makes one. */
bool sl_schedule_is_made(const sl_jobs *d, const job *j);
/* This deployment has the role. */
bool sl_schedule_has(const sl_jobs *d, sl_role role);
/* This deployment has the role, or one that works on what comes of it. */
bool sl_schedule_reaches(const sl_jobs *d, sl_role role);
/* The first stage that the job needs and this deployment leaves out; NULL: none. */
const char *sl_schedule_lacks(const sl_jobs *d, const job *j);
/* Where a role has teams: decide how many of its seats each job should have, and tell attempts to
 * park for it. */
void sl_schedule_teams(sl_jobs *d);
/* Start the attempts that can be. */
void sl_schedule_start(sl_jobs *d, job *j);

#endif
