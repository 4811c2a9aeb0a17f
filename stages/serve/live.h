/* live.h - the jobs that run now, as those who ask see them: where each is, how long it will take.
 *
 * The pipeline's thread writes, any thread reads; one lock inside, held for microseconds. Progress
 * counts finished work: each stage has a share of the whole (SHARES in live.c), and of that share
 * what it has finished. It never falls, whatever dies and begins again. Estimates come from what
 * steps and ends of earlier jobs of the same size took, else of another size by pixels x frames. */
#ifndef SL_LIVE_H
#define SL_LIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/job.h"
#include "common/wire.h"
#include "stages/serve/journal.h"

#define SL_LIVE_JOBS 256

typedef struct {
    char id[SL_JOURNAL_ID];
    char stage[SL_STR16]; /* that was heard of last; "": none yet */
    uint32_t step, steps; /* of that stage: finished, in all */
    double step_s;        /* what the newest took */
    double progress;      /* 0 to 1 */
    int preview;          /* denoising steps after which there may be a new picture */
    double left_s;        /* estimate; negative: nothing was measured yet */
} sl_live_job;

typedef struct sl_live sl_live;

/* Errors: SL_NOMEM. */
sl_code sl_live_open(sl_live **out, sl_err *err);
void sl_live_close(sl_live **l); /* NULL is fine */

/* ---- the pipeline's ---- */

/* The job runs from now on; `progress` is where an earlier life of it was. SL_LIVE_JOBS at most: a
 * bug if more. */
void sl_live_begin(sl_live *l, const char *id, const sl_job *spec, double progress);
/* A stage has finished `done` of `total` pieces, the newest in `seconds`. */
void sl_live_step(sl_live *l, const char *id, const sl_msg_progress *m);
/* A stage is through with its part of the job. */
void sl_live_stage_done(sl_live *l, const char *id, const char *stage);
/* The job does not run any more. well: it is complete, and what it took is an example. */
void sl_live_end(sl_live *l, const char *id, bool well);

/* ---- anybody's ---- */

/* All that run; how many. */
int sl_live_all(sl_live *l, sl_live_job out[SL_LIVE_JOBS]);
/* false: it does not run. */
bool sl_live_get(sl_live *l, const char *id, sl_live_job *out);
/* What a server tells others of a job that it runs (sl_journal_show), and the way back. false: it
 * tells nothing that can be read. */
void sl_live_print(const sl_live_job *j, char out[SL_JOURNAL_LIVE]);
bool sl_live_parse(sl_live_job *out, const sl_journal_job *job);
/* Seconds until a queued job with `position` jobs before it is done, `lanes` jobs denoise at a
 * time; negative: nothing was measured yet. step_work: of sl_live_step_work. */
double sl_live_queued_s(sl_live *l, int64_t step_work, int steps, int position, int lanes);
/* The work of a step: pixels x frames, twice with guidance. */
int64_t sl_live_step_work(int width, int height, int frames, bool guided);

#endif
