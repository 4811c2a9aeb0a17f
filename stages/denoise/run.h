/* run.h - one denoising job: its memory, its steps, its resumable state. */
#ifndef SL_DENOISE_RUN_H
#define SL_DENOISE_RUN_H

#include "stages/sizes/denoise.h"
#include "stages/network.h"

/* What lives as long as the process: weights and a context. */
typedef struct {
    sl_stage *st;
    const sl_model *model;
    sl_ctx ctx;
    /* where inputs arrive; image NULL for a model without pictures */
    sl_pool *text, *image;
    sl_loader *loaders[SL_EXPERTS + 1]; /* NULL-ended */
    sl_dit *dit[SL_EXPERTS];
} denoiser;

/* Where a job's text and image are: in a lease of the pool each, or, where that is NULL,
 * in a file. Owned. */
typedef struct {
    sl_lease *text, *image;
    sl_st *text_file, *image_file;
} denoise_inputs;

typedef struct {
    denoiser *d;
    const sl_msg_job *msg;
    const sl_job *job;
    sl_schedule schedule;
    bool cfg;
    int64_t shape[4]; /* of the latents */
    sl_denoise_memory mem;
    sl_sampler sampler;  /* state; its tensors lie in mem */
    float *noise, *host; /* on the host, [16, T, h/8, w/8]: the start; a buffer */
    /* on the host, four of that: x, last, m0, m1 before the step that runs */
    float *saved;
    int since_saved; /* steps since the last spooled state */
    bool replay;     /* the next step repeats one that had computed: see denoise_step */
    float replay_metric[SL_BRANCHES];
    char tap_dir[SL_PATH]; /* where first-forward tensors go; "" nowhere */
} denoise_run;

sl_code denoiser_open(denoiser *d, sl_err *err);
void denoiser_close(denoiser *d);

/* Read the inputs, size and take the memory, compute what is constant over the steps, and
 * either begin with the noise or go on from the state in the spool. What reads the leases
 * is done, or queued on the context's stream, when it returns. */
sl_code denoise_start(denoise_run *r, denoiser *d, const sl_msg_job *msg, const sl_job *job,
                      const denoise_inputs *from, sl_err *err);
/* One sampler step, in a turn of its own: one or two forwards, guidance, update; reports
 * STEP and PROGRESS; spools the state when it is due. */
sl_code denoise_step(denoise_run *r, sl_err *err);
/* Hand the latents over, spool them, say DONE. */
sl_code denoise_finish(denoise_run *r, sl_err *err);
void denoise_end(denoise_run *r); /* frees; zeroed run is fine */

#endif
