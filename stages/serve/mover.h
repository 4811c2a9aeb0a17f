/* mover.h - a job's files between its folder here and the folder or store that all servers share
 * ("the shared folder", blobs.h), off the hot path: one thread, one file at a time.
 *
 *   fetch   what the queue says a job has, into its folder, before it runs here
 *   watch   while it runs: hand-overs, the denoiser's state and the preview, every queue.spool_s
 *           what is new; from the newest another server goes on when this one dies
 *   send    when it has ended or goes back: what is in the folder then
 *   drop    when its end is in the queue: what nobody needs any more goes, and the folder here;
 *           what was asked for (job.json, pictures, noise) stays as long as the job
 *
 * The pipeline's thread calls; a job is a slot's, from fetch to clear or drop. A shared folder that
 * fails is tried again every second; a job that is another server's by then is told as SL_GONE. */
#ifndef SL_MOVER_H
#define SL_MOVER_H

#include <stdbool.h>

#include "stages/serve/blobs.h"
#include "stages/serve/journal.h"
#include "stages/serve/store.h"

#define SL_MOVER_SLOTS 256

typedef struct sl_mover sl_mover;

typedef struct {
    sl_journal *journal;
    const sl_blobs *blobs;
    const sl_store *store;
    int spool_s; /* between two looks at a running job's files that send some of them, at least */
    int wake;    /* eventfd, written when something is through */
} sl_mover_ends;

/* *ends is copied, what it names borrowed. Errors: SL_SYS, SL_NOMEM. */
sl_code sl_mover_open(sl_mover **out, const sl_mover_ends *ends, sl_err *err);
/* When it is through with the file that it is at, and what was told to go is gone; NULL is fine. */
void sl_mover_close(sl_mover **m);

/* The slot has no job, and nothing of one before is under way. */
bool sl_mover_is_free(sl_mover *m, int slot);
/* Some slot has something of this job still. */
bool sl_mover_has(sl_mover *m, const char *id);
/* A claimed job, into an empty folder of its own. */
void sl_mover_fetch(sl_mover *m, int slot, const sl_journal_job *job);
/* What was asked for has been written anew in its folder: others need not have that. It does not
 * run yet. */
void sl_mover_own(sl_mover *m, int slot);
/* It runs from now on. */
void sl_mover_watch(sl_mover *m, int slot);
/* everything: all files of its folder; else what watch would move. */
void sl_mover_send(sl_mover *m, int slot, bool everything);
/* Is the fetch, or the send, through? *rc is how: SL_OK; SL_GONE an input is not in the shared
 * folder (fetch), or the job is another server's (send); *bytes of what the job has there. */
bool sl_mover_done(sl_mover *m, int slot, sl_code *rc, uint64_t *bytes, sl_err *err);
/* Its end is in the queue: files that were not sent at the end go; then the folder here. */
void sl_mover_drop(sl_mover *m, int slot);
/* It does not run here any more: the folder here goes, what is in the shared one stays. */
void sl_mover_clear(sl_mover *m, int slot);

#endif
