/* watch.h - stages that hold an attempt up: what they say wrongly, and what they do not say.
 *
 * Words are what a seat says of the attempt that it works on; heartbeats are none. A fault ends the
 * seat's process, and with it the attempt; the second one without the job getting further ends the
 * job, with the fault as its message. For jobs.c; sl_jobs_watch, in jobs.h, is the part that looks
 * at the clock. */
#ifndef SL_DISPATCH_WATCH_H
#define SL_DISPATCH_WATCH_H

#include "stages/dispatch/table.h"

#define SL_WATCH_FAULTS 2 /* that end a job, without its getting further */

/* A message of a seat about a job. false: it is of an attempt that the seat does not work on, and
 * is to be put aside: that is in the log, and an end of another attempt is a fault. */
bool sl_watch_hears(sl_jobs *d, int number, const sl_msg *m);
/* The attempt's next CHUNK, and DONE of who hands chunks on. false: a fault. */
bool sl_watch_chunk(sl_jobs *d, job *j, attempt *a, int number, const sl_msg_chunk *m);
bool sl_watch_chunks_done(sl_jobs *d, job *j, attempt *a, int number);

#endif
