/* run.h - one denoising job: its memory, its steps, its resumable state. */
#ifndef SL_DENOISE_RUN_H
#define SL_DENOISE_RUN_H

#include "graphs/merge.h"
#include "stages/denoise/preview.h"
#include "stages/denoise/shares.h"
#include "stages/denoise/taps.h"
#include "stages/seat/loop.h"

/* What lives as long as the process: weights and a context. */
typedef struct {
    sl_seat *seat;
    const sl_model *model; /* the seat's */
    sl_ctx ctx;
    sl_team load_team;                  /* with whom the weights are loaded */
    sl_loader *loaders[SL_EXPERTS + 1]; /* NULL-ended */
    sl_dit *dit[SL_EXPERTS];
    sl_merge *merge[SL_EXPERTS]; /* NULL: no job has had a LoRA yet */
    uint64_t lora[SL_EXPERTS];   /* key of what is merged; 0: nothing, UNSET: in disorder */
    denoise_shares shares;       /* of the newest team */
} denoiser;

/* A state that a denoiser can go on from: four tensors of the latents' size on the host (x, last,
 * m0, m1), before a step that computed in every branch. */
typedef struct {
    float *data; /* NULL: none is kept */
    bool whole;
    int64_t meta[3]; /* step, order, history */
    float metrics[SL_BRANCHES];
} denoise_state;

typedef struct {
    denoiser *d;
    denoise_team team;
    const sl_msg_job *msg;
    const sl_job *job;
    sl_schedule schedule;
    bool cfg;
    int64_t shape[4]; /* of the latents */
    sl_denoise_memory mem;
    sl_sampler sampler; /* state; its tensors lie in mem */
    float *noise;       /* on the host, [16, T, h/8, w/8]: the start */
    denoise_state now;  /* before this step */
    denoise_state last; /* before the last that computed: where a parked job goes on. With the cache
                         * alone: without it the state after a step is as good */
    int since_saved;    /* steps since the last spooled state */
    sl_parcel out;      /* the latents; the host side is a buffer for those of each step, the
                         * device side is the sampler's */
    bool replay;        /* the next step repeats one that had computed: see sl_denoise_step */
    float replay_metric[SL_BRANCHES];
    int fork_sampler;    /* sl_sampler_kind under which a fork's state was made */
    sl_preview *preview; /* the leader's; NULL: none is wanted */
    denoise_taps taps;   /* tensors of forwards that the job wants in files */
    bool parked;         /* the attempt ends here, for another team to go on */
    int steps_done;      /* in this attempt, and */
    double steps_s;      /* their seconds, */
    size_t device_bytes; /* the most of the device that was taken after one of them */
} denoise_run;

sl_code sl_denoiser_open(denoiser *d, sl_err *err);
void sl_denoiser_close(denoiser *d);
/* Bring the weights to the job's LoRA, each expert's, unless they are there: before a team begins,
 * by each of its ranks. Told as a span of loading and in the log. Errors, one line: a file that is
 * another than when the job was taken, does not fit, cannot be read; another precision than the
 * weights'; SL_CANCELLED. */
sl_code sl_denoise_adapt(denoiser *d, const sl_msg_job *msg, const sl_job *job, sl_err *err);

/* Size and take the memory, compute what is constant over the steps, and either begin with
 * the noise or go on from the state in the spool. r->team is open. What reads the inputs is
 * done when it returns. */
sl_code sl_denoise_start(denoise_run *r, denoiser *d, const sl_msg_job *msg, const sl_job *job,
                         const denoise_inputs *in, sl_err *err);
/* One sampler step, in a turn of its own: one or two forwards, guidance, update; reports
 * STEP and PROGRESS; spools the state when it is due. r->parked afterwards: call park, not
 * another step. */
sl_code sl_denoise_step(denoise_run *r, sl_err *err);
/* Spool the state, say PARKED. */
sl_code sl_denoise_park(denoise_run *r, sl_err *err);
/* Hand the latents over, spool them, say DONE. */
sl_code sl_denoise_finish(denoise_run *r, sl_err *err);
void sl_denoise_end(denoise_run *r); /* frees; zeroed run is fine */

#endif
