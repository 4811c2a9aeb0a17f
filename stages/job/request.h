/* request.h - what is asked for: one job as its user gave it, then as it will run; and the
 * jobs that run together.
 *
 * The way of a request, from a command line, a line of a jobs file or any other JSON text:
 *
 *     sl_batch_init        an empty batch                                     request.h
 *     sl_option_set        the base's values                                  options.h
 *     sl_batch_add_json    a job from JSON text; sl_batch_expand: all jobs    intake.h
 *     sl_batch_check       completed from checkpoint and settings, checked    check.h
 *     sl_plan_admit        does the run fit in memory?                        plan.h
 *     sl_request_open_dir  the job's folder in the spool, for the stages      folder.h
 *     sl_request_dump      what is left of it                                 dump.h
 *     sl_report_...        where the time went                                report.h
 *                                                                             trace_json.h
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
    /* What the user or the checkpoint's sluice.json gave; the checks give the others their
     * values. */
    bool has_prompt, has_negative, has_seed, has_noise, has_image, has_last_image, has_width,
        has_height, has_max_area, has_frames, has_fps, has_steps, has_guidance, has_guidance_2,
        has_shift, has_sampler, has_crf, has_precision, has_fbcache, has_fbcache_warmup,
        has_fbcache_max_hits, has_fbcache_final, has_lora, has_lora_2;
    bool random_seed; /* asked for by --seed -1 */
    /* bit i: option i of options.h was said by whoever asks for the job, and not by the checkpoint
     * or a dump; sl_request_given asks by name */
    uint64_t given;
    /* --dump, and where the report and the trace go; "" none */
    char dump_dir[SL_PATH], json[SL_PATH], trace[SL_PATH];
    int line;                 /* of the jobs file; 0: the request has no line */
    char replay_dir[SL_PATH]; /* dumped hand-overs to start from; "" none */
    char fork_file[32];       /* of them, the state that a fork begins with */
    unsigned again; /* bit sl_role: a stage before --from that a fork asks for again (replay.h) */
    uint32_t from_dump;     /* bit h: hand-over h is taken from there */
    uint64_t id;            /* set before the job gets its folder */
    int aspect_w, aspect_h; /* of a replay's picture, where its size is to be found anew */
    bool streams;           /* the video goes into the descriptor `stream`, not to a file */
    int stream;
    bool no_video;        /* no stage of this deployment makes one */
    bool small_dump;      /* there is no room for the dump: the job's folder lies in the spool */
    bool made_dump;       /* its folder is made for this job */
    char dir[SL_PATH];    /* the job's folder, in the spool or in the dump's */
    char record[SL_PATH]; /* of the run in run.spool (record.h), which the folder names; "" none */
    /* What it was asked for and will not do, '\n' between lines; NULL: all of it is done. The
     * request's to free. */
    char *warnings;
} sl_request;

/* Requests that run together: one checkpoint, one configuration, one set of devices. */
typedef struct {
    sl_request base; /* each job starts as a copy of it */
    /* The run's own options; "": not given. */
    char conf[SL_PATH], device[SL_DEVICE_LIST], jobs_file[SL_PATH];
    sl_model_files files; /* in place of the checkpoint's; "" each: conf's, else its own */
    bool jobs_stream; /* jobs_file is a pipe or standard input, whose lines are jobs as they come */
    char results[SL_PATH]; /* where a line of JSON goes as each job ends; "": nowhere */
    char wire[SL_PATH];    /* where the messages of the control socket go; "": nowhere */
    char log[8];           /* a level, in place of run.log; "": none */
    bool quiet;
    bool resume;                        /* the jobs are those that dead runs left */
    bool stopped;                       /* the run was told to end by a signal */
    char from[16], replay_dir[SL_PATH]; /* a replay's */
    int step;       /* and where in the denoising it begins; 0: with the noise */
    char stage[16]; /* `sluice stage`: the one that runs, with its crew; "": all from `from` on */
    int job_count;
    sl_request *jobs; /* room for SL_MAX_RUN_JOBS */
    sl_gpus gpus;     /* set by the checks, for the devices that stages want */
} sl_batch;

/* An empty batch whose base has a job's defaults. sl_batch_free, also after an error; a
 * zeroed or freed batch is fine. Errors: SL_NOMEM. */
sl_code sl_batch_init(sl_batch *b, sl_err *err);
void sl_batch_free(sl_batch *b);

/* One more job, a copy of the base. *out is the batch's. Errors: SL_ARG there are
 * SL_MAX_RUN_JOBS, SL_NOMEM. */
sl_code sl_batch_add(sl_batch *b, sl_request **out, sl_err *err);

/* One more line of r->warnings; without memory it is left out. */
void sl_request_warn(sl_request *r, const char *line);

#endif
