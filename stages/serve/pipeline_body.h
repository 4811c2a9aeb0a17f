/* pipeline_body.h - what the pipeline's three parts share: the jobs that run here, and what each
 * part does for the others. All of it is the main thread's.
 *
 *   pipeline.c         the loop: what the dispatcher says, its life, signals, cancels
 *   pipeline_begin.c   a job's beginning: from a claim to SUBMIT
 *   pipeline_end.c     and its end: what is kept of it, and the note in the journal */
#ifndef SL_PIPELINE_BODY_H
#define SL_PIPELINE_BODY_H

#include "common/clock.h"
#include "stages/job/dispatcher.h"
#include "stages/job/report.h"
#include "stages/serve/mover.h"
#include "stages/serve/server.h"

#define SL_SECOND_NS 1000000000ll
#define SL_PIPELINE_CULPRITS 3 /* jobs in a row that break a stage: it is not them */

typedef struct {
    bool used;
    char id[SL_JOURNAL_ID];
    sl_request req; /* id is the tag */
    sl_report rep;
    bool told_cancel, resumed;
    int deaths;             /* its server died so often before; 0 again when a step is kept */
    struct timespec begins; /* wall clock */
    bool over;              /* the dispatcher is through with it; the journal may not know yet */
    bool back;              /* it goes back to the queue */
    sl_code code;           /* of the end */
    char message[SL_TEXT];
    int64_t saved_ns;
    /* Of a queue that servers share; its files come and go by the mover's slot of its number: */
    sl_journal_job row; /* as it was claimed */
    bool waits;         /* an earlier life of it has not ended here yet */
    bool fetches;       /* its files are on their way here */
    bool sends;         /* and back */
    bool lost;          /* it is another server's by now: nothing of it counts any more */
    bool cancel;        /* that was asked for */
} sl_run;

typedef struct {
    sl_server *s;
    const sl_conf *conf; /* as the pipeline was started with */
    sl_dispatcher dispatcher;
    bool up;                         /* a dispatcher runs */
    bool broken;                     /* it has given up a stage, and is to be started again */
    bool careful;                    /* one job at a time */
    int culprits;                    /* jobs in a row that broke a stage alone */
    int64_t restart_ns;              /* when the dispatcher is to be started; 0: it is not down */
    int64_t claim_ns;                /* no claim before */
    int64_t idle_ns;                 /* likewise, unless the queue tells of a job */
    int ready[SL_ROLES_MOST];        /* instances that take jobs, a bit each */
    sl_msg processes[SL_CONF_SEATS]; /* STAGE of each that is ready, for reports that begin later */
    int process_count;
    uint64_t last_tag;
    int ahead;
    sl_run *runs;    /* SL_LIVE_JOBS of them */
    sl_mover *mover; /* NULL: the jobs' folders are here alone */
    bool draining, now;
    int64_t drain_by_ns, tick_ns;
    bool began, fatal; /* it has taken jobs; it never will */
} sl_pipeline;

int sl_pipeline_count(const sl_pipeline *p); /* jobs that run here */

/* ---- a job's beginning ---- */

/* As many as there is room for, of those whose turn it is. */
void sl_pipeline_claim(sl_pipeline *p);
/* Of a queue that servers share: jobs whose files have come meanwhile. */
void sl_pipeline_begin_fetched(sl_pipeline *p);
/* To the dispatcher, also to one that was started again. Errors: as sl_dispatcher_send's. */
sl_code sl_run_submit(sl_pipeline *p, sl_run *r, sl_err *err);
/* A file of the job's folder is there, and not empty. */
bool sl_run_has(const sl_pipeline *p, const char *id, const char *name);

/* ---- and its end ---- */

/* The dispatcher is through with the job, or never had it. */
void sl_run_end(sl_pipeline *p, sl_run *r, sl_code code, const char *message);
/* Everything that a job which is over has left behind, in memory and on the disk. false: the disk,
 * the queue or the mover is not through with it: to be tried again. */
bool sl_run_settle(sl_pipeline *p, sl_run *r);
void sl_run_forget(sl_run *r);                          /* what it has in memory */
int sl_run_slot(const sl_pipeline *p, const sl_run *r); /* the mover's */
bool sl_pipeline_is_full(const sl_pipeline *p);         /* the disk: nothing is claimed */

#endif
