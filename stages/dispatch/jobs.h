/* jobs.h - the dispatcher's jobs, and what each needs next: a crew's attempt.
 *
 * A CREW is the seats that work on one attempt together and fall together: one role, or the
 * roles that chunks join (decode and mux), each played by one seat that is idle at the start.
 * A hand-over is MADE by a crew FOR a seat, LIES in that seat's pool or as a file, and is
 * taken by the next crew. All of this follows from SL_HANDOVERS; no role is named here.
 *
 * A role may have TEAMS (sl_conf_teamed): then several seats play it in one attempt. One of them
 * LEADS: it gets the hand-overs and speaks for the job; its MATES only say when they are through.
 * How many there are team.h decides, anew whenever something changes: an attempt is PARKED, which
 * is no failure, to go on with another team. All seats of a team are free again when the last of
 * them is through or dead, for any of them may write to the others' memory till then.
 *
 * Jobs know seats by number, clients by the owner's numbers (from 1), and no sockets: what
 * they have to say goes out through sl_jobs_out. One thread. */
#ifndef SL_JOBS_H
#define SL_JOBS_H

#include <sys/types.h>

#include "common/conf.h"
#include "common/model.h"
#include "common/wire.h"
#include "stages/dispatch/once.h"

#define SL_JOBS_MAX 1024 /* most jobs held at once */

/* What jobs tell their owner. */
typedef struct {
    void *self;
    void (*to_seat)(void *self, int seat, const sl_msg *m);
    void (*to_client)(void *self, uint64_t client, const sl_msg *m);
    void (*got_further)(void *self, int seat); /* a job got further by this seat */
    uint32_t (*new_key)(void *self);           /* of a team: larger than any before */
    /* When the seat's process was last seen to compute, or to wait for its turn to. */
    int64_t (*worked_ns)(void *self, int seat);
    /* Kill the seat's process for this; for_good: another would be no better. */
    void (*kill)(void *self, int seat, const char *why, bool for_good);
    sl_once *once; /* warnings that may come again */
} sl_jobs_out;

typedef struct sl_jobs sl_jobs;

/* conf and model outlive *out, which is the caller's to close. Errors: SL_NOMEM. */
sl_code sl_jobs_open(sl_jobs **out, const sl_conf *conf, const sl_model *model,
                     const sl_jobs_out *to, sl_err *err);
void sl_jobs_close(sl_jobs **d); /* NULL is fine */

/* ---- seats ---- */

/* There is such a seat. `stage` and `name` outlive d. */
void sl_jobs_add_seat(sl_jobs *d, int seat, const sl_conf_stage *stage, const char *name);
/* The seat receives a hand-over in this pool. */
void sl_jobs_on_pool(sl_jobs *d, int seat, const sl_msg_pool *m);
/* The others of the seat's role can reach its process: it may be in a team. */
void sl_jobs_on_rank(sl_jobs *d, int seat);
/* The seat's process loads its weights together with other ranks: once one of them is ready, jobs
 * wait a moment for the rest. */
void sl_jobs_on_load(sl_jobs *d, int seat);
/* The seat's process, pid, takes jobs from now on. */
void sl_jobs_on_ready(sl_jobs *d, int seat, pid_t pid);
/* The seat's process has ended: the seat's slots and work are gone. Owners of pools are
 * told. */
void sl_jobs_on_death(sl_jobs *d, int seat, pid_t pid, const char *how);
/* A seat says something of a job. false: the message is none of a job's. */
bool sl_jobs_on_message(sl_jobs *d, int seat, const sl_msg *m);
/* A team's attempt is over but for this seat and perhaps others: they cannot go on before its
 * process says that it is through, or is dead. */
bool sl_jobs_waits_for(const sl_jobs *d, int seat);

/* ---- clients ---- */

/* A new job, which gets the next number, or a folder that is one already: its news go to
 * this client from now on. closed: why no new job is taken; NULL: they are. */
void sl_jobs_submit(sl_jobs *d, const sl_msg_submit *m, uint64_t client, const sl_err *closed);
/* The job is cancelled, if it is this client's. */
void sl_jobs_cancel(sl_jobs *d, uint64_t id, uint64_t client);
/* Jobs of this client (0: all, and new ones are refused) that have not begun are not run. */
void sl_jobs_drain(sl_jobs *d, uint64_t client);
/* Every job ends with this error. */
void sl_jobs_fail_all(sl_jobs *d, sl_code code, const char *why);

/* ---- silence (watch.c) ---- */

/* Look for attempts of which nobody says anything while nobody computes, for CANCELs that are not
 * answered, for files that are waited for in vain, and for stages that are ready and of no use.
 * What they keep from going on is told, then they are killed. Often enough: every second. */
void sl_jobs_watch(sl_jobs *d, int64_t now_ns);
/* Nothing ran for so long, or nothing that is to be counted: nobody was silent meanwhile. */
void sl_jobs_skip(sl_jobs *d, int64_t ns);

/* ---- what next ---- */

/* Finish what is over; start every attempt that can be, the oldest job's first. */
void sl_jobs_schedule(sl_jobs *d);

int sl_jobs_count(const sl_jobs *d);
/* The job's folder without what it lies in; NULL: no such job. Valid until the next call that may
 * end a job. */
const char *sl_jobs_name(const sl_jobs *d, uint64_t id);
const char *sl_jobs_dir(const sl_jobs *d, int i); /* of the i-th oldest job */
const char *sl_jobs_output(const sl_jobs *d, int i);

#endif
