/* denoise_memory.h - the device memory of one denoising job: taken for real by the denoiser,
 * only counted by `sluice plan`. */
#ifndef SL_DENOISE_MEMORY_H
#define SL_DENOISE_MEMORY_H

#include "graphs/fbcache.h"
#include "graphs/unipc.h"
#include "graphs/wan_dit.h"
#include "stages/sizes.h"

#define EXPERTS 2
#define BRANCHES 2 /* 0 cond, 1 uncond */

/* What decides the sizes. Nothing is owned. */
typedef struct {
    const sl_model *model;
    sl_dit *const *dit; /* model->family.experts of them */
    const sl_job *job;
    const sl_schedule *schedule;
    bool round_rope; /* denoise.rope = "bfloat16" */
    sl_tap_fn *tap;  /* of the first expert's tables; may be NULL */
} denoise_sizes;

/* All from the arena: taken in this order both for real and when planning. */
typedef struct {
    sl_tensor condition;   /* F32 [20, T, h/8, w/8]; rank 0 without a picture */
    sl_tensor v[BRANCHES]; /* model output */
    sl_sampler sampler;
    sl_dit_rope rope;
    sl_dit_times times[EXPERTS];
    sl_dit_context context[EXPERTS][BRANCHES];
    /* where they will lie, once their inputs are there */
    void *context_memory[EXPERTS][BRANCHES];
    sl_fbcache cache[EXPERTS][BRANCHES];
} denoise_memory;

/* 2 with guidance */
int denoise_branches(const sl_job *job);
/* of the latents, [16, T, h/8, w/8] */
void denoise_shape(const sl_model *model, const sl_job *job, int64_t shape[4]);

/* Take what the job keeps over its steps and compute its tables; errors are ctx's. */
void denoise_take(sl_ctx *ctx, denoise_memory *m, const denoise_sizes *of);
/* How many bytes the arena must have for it, and for contexts and steps on top. The job
 * has been checked. */
sl_code denoise_arena(sl_arena *out, const sl_ops *ops, const denoise_sizes *of, sl_err *err);

#endif
