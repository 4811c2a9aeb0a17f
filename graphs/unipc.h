/* unipc.h - the sampler: UniPC (order 2, bh2, predict x0, flow sigmas), flow-match Euler, and
 * LightX2V's steps of distilled models. Spec 3.8, 3.9, 12; diffusers
 * schedulers/scheduling_unipc_multistep.py, scheduling_flow_match_euler_discrete.py; LightX2V
 * lightx2v/models/schedulers/wan/step_distill/scheduler.py. */
#ifndef SL_UNIPC_H
#define SL_UNIPC_H

#include "common/model.h"
#include "kernels/ops.h"

#define SL_MAX_STEPS 1000

/* The tables of a schedule: plain host data, no device. Coefficients are computed in
 * double from float32 sigmas. */
typedef struct {
    sl_sampler_kind kind;
    int steps;
    double timesteps[SL_MAX_STEPS]; /* integers for UniPC, float32 else */
    float sigmas[SL_MAX_STEPS + 1]; /* the last is 0 */
} sl_schedule;

/* *out for `steps` 1 .. SL_MAX_STEPS and shift > 0. LIGHTX2V: the noise levels 1 - i / steps,
 * shifted, and plain Euler: with 4 steps its list 1000, 750, 500, 250, which at shift 5 are the
 * timesteps 1000, 937.5, 833.33 and 625; with any number what ComfyUI calls `simple`. Errors:
 * SL_ARG, also when two noise levels come out equal in float32. */
sl_code sl_schedule_make(sl_schedule *out, sl_sampler_kind kind, int steps, double shift,
                         sl_err *err);

/* Running state: latents and history, F32 device tensors in memory that the caller gives
 * (sl_sampler_bytes) and frees. */
typedef struct {
    const sl_schedule *schedule; /* the caller's; outlives the sampler */
    int step;                    /* how many steps are done */
    int last_order;              /* order of the previous predictor */
    int history;                 /* how many of m0, m1 are valid: a resumed run restores it; 0 at
                                  * any step: a job that another sampler began */
    sl_tensor x;                 /* the latents */
    sl_tensor last;              /* the sample before the last step */
    sl_tensor m0, m1;            /* x0 of the last step, and of the one before */
    sl_tensor x0;                /* scratch */
} sl_sampler;
size_t sl_sampler_bytes(const int64_t shape[4]);
/* *s starts at step 0 with x uninitialised: upload the noise into s->x. shape [16, T,
 * h/8, w/8]. */
void sl_sampler_init(sl_sampler *s, const sl_schedule *schedule, void *memory,
                     const int64_t shape[4]);
/* One step with model output v (act or F32, shape of x): s->x becomes the next sample.
 * Errors (kept in ctx): SL_ARG past the last step, SL_SHAPE; the state is then undefined. */
void sl_sampler_step(sl_ctx *ctx, sl_sampler *s, const sl_tensor *v);
/* What the last step took for the clean latents: w[0] * *of[0], and w[1] * *of[1] on top unless
 * of[1] is NULL. F32, of x's shape, valid until the next step. */
void sl_sampler_clean(const sl_sampler *s, const sl_tensor *of[2], float w[2]);

#endif
