/* request.h - what is asked for: one job as its user gave it, then as it will run; and the
 * jobs that run together.
 *
 * The way of a request, from a command line, a line of a jobs file or any other JSON text:
 *
 *     sl_batch_init        an empty batch                                       request.h
 *     sl_option_set, sl_batch_add_json, sl_batch_expand     options.h
 *     sl_batch_check       completed from checkpoint and settings, checked      check.h
 *     sl_plan_admit        does it fit in memory?                               plan.h
 *     sl_request_open_dir  its folder in the spool, for the stages              folder.h
 *     sl_report_...        where the time went                                  report.h
 *
 * Nothing in this folder exits, and nothing prints but to a FILE * that it was given: a
 * refusal is a code and one line in *err. The caller owns batches; a batch owns its
 * requests. No function here may be called for one batch from two threads at a time. */
#ifndef SL_REQUEST_H
#define SL_REQUEST_H

#include "common/job.h"
#include "stages/job/devices.h"

#define SL_MAX_RUN_JOBS 1024

/* One job. */
typedef struct {
    sl_job spec;
    int64_t max_area;
    /* given by the user, or by the checkpoint's sluice.json; the others get their values
     * in the checks */
    bool has_prompt, has_negative, has_seed, has_noise, has_image, has_last_image, has_width,
        has_height, has_max_area, has_frames, has_fps, has_steps, has_guidance, has_guidance_2,
        has_shift, has_sampler, has_crf, has_fbcache, has_fbcache_warmup, has_fbcache_max_hits,
        has_fbcache_final;
    char dump_dir[SL_PATH], json[SL_PATH]; /* --dump, and where the report goes; "" none */
    int line;                              /* of the jobs file; 0: the request has no line */
    char replay_dir[SL_PATH];              /* dumped hand-overs to start from; "" none */
    /* set when the job gets its folder */
    uint64_t id;
    char dir[SL_PATH]; /* in the spool */
} sl_request;

/* Requests that run together: one checkpoint, one configuration, one set of devices. */
typedef struct {
    sl_request base; /* each job starts as a copy of it */
    /* the run's own options; "" not given */
    char conf[SL_PATH], device[64], jobs_file[SL_PATH];
    bool quiet;
    char from[16], replay_dir[SL_PATH]; /* a replay's */
    int job_count;
    sl_request *jobs; /* room for SL_MAX_RUN_JOBS */
    sl_gpus gpus;     /* set by the checks, for the devices that stages want */
} sl_batch;

/* An empty batch whose base has a job's defaults. sl_batch_free, also after an error; a
 * zeroed or freed batch is fine. Errors: SL_NOMEM. */
sl_code sl_batch_init(sl_batch *b, sl_err *err);
void sl_batch_free(sl_batch *b);

/* The base is the dumped job in `dir`, a folder that --dump wrote; its noise is used unless
 * another one or a seed is asked for. Called before any option is set. Errors: SL_ARG, what
 * job.json says. */
sl_code sl_batch_replay(sl_batch *b, const char *dir, sl_err *err);

/* One more job, a copy of the base. *out is the batch's. Errors: SL_ARG there are
 * SL_MAX_RUN_JOBS, SL_NOMEM. */
sl_code sl_batch_add(sl_batch *b, sl_request **out, sl_err *err);
/* One more job: the base, and over it a JSON object with options as keys. Messages begin with
 * "NAME:LINE: "; line 0: the text is no line of a jobs file, they begin with "NAME: ". A job
 * without an output gets out-N.mp4. Errors: SL_FORMAT, SL_ARG. */
sl_code sl_batch_add_json(sl_batch *b, const char *text, size_t length, const char *name, int line,
                          sl_err *err);
/* All options are set: the jobs are the lines of the jobs file, or, without one, the base
 * alone. Nothing but the jobs file is looked at. Errors: SL_ARG, SL_SYS, SL_FORMAT. */
sl_code sl_batch_expand(sl_batch *b, sl_err *err);

#endif
