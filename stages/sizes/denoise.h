/* denoise.h - the device memory of one denoising job: taken for real by the denoiser, only
 * counted by `sluice plan`. */
#ifndef SL_SIZES_DENOISE_H
#define SL_SIZES_DENOISE_H

#include "graphs/fbcache.h"
#include "graphs/unipc.h"
#include "graphs/wan_dit.h"
#include "stages/sizes/sizes.h"

#define SL_EXPERTS 2
#define SL_BRANCHES 2 /* 0 cond, 1 uncond */

/* What decides the sizes. Nothing is owned. */
typedef struct {
    const sl_model *model;
    sl_dit *const *dit; /* model->family.experts of them */
    const sl_job *job;
    const sl_schedule *schedule;
    bool round_rope; /* denoise.rope = "bfloat16" */
    sl_tap_fn *tap;  /* of the first expert's tables; may be NULL */
} sl_denoise_sizes;

/* All of it lies in the arena, taken in this order both for real and when planning. */
typedef struct {
    sl_tensor condition;      /* F32 [20, T, h/8, w/8]; rank 0 without a picture */
    sl_tensor v[SL_BRANCHES]; /* model output */
    sl_sampler sampler;
    sl_dit_rope rope;
    sl_dit_times times[SL_EXPERTS];
    sl_dit_context context[SL_EXPERTS][SL_BRANCHES];
    void *context_memory[SL_EXPERTS][SL_BRANCHES]; /* of the contexts, made when inputs come */
    sl_fbcache cache[SL_EXPERTS][SL_BRANCHES];
} sl_denoise_memory;

/* Branches of a forward: 2 with guidance, else 1. */
int sl_denoise_branches(const sl_job *job);
/* The shape of the latents, [16, T, h/8, w/8]. */
void sl_denoise_shape(const sl_model *model, const sl_job *job, int64_t shape[4]);

/* Take what the job keeps over its steps and compute its tables; errors are ctx's. */
void sl_denoise_take(sl_ctx *ctx, sl_denoise_memory *m, const sl_denoise_sizes *of);
/* How many bytes the arena must have for what the job keeps, and for contexts and steps on
 * top. The job has been checked. */
sl_code sl_denoise_arena(sl_arena *out, const sl_ops *ops, const sl_denoise_sizes *of, sl_err *err);

#endif
