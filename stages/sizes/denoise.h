/* denoise.h - the device memory of one denoising job: taken for real by the denoiser, only
 * counted by `sluice plan`. */
#ifndef SL_SIZES_DENOISE_H
#define SL_SIZES_DENOISE_H

#include "graphs/fbcache.h"
#include "graphs/unipc.h"
#include "graphs/wan_dit.h"
#include "stages/sizes/sizes.h"

#define SL_EXPERTS 2
#define SL_BRANCHES 2      /* 0 cond, 1 uncond */
#define SL_PREVIEW_SCALE 4 /* a preview's pixels for one of the latents, across and down */

/* What a member of a team does in a step. A team of an even size has halves where the job is
 * guided, a branch each; who has the same branch shares its rows. */
typedef struct {
    int size, me;      /* of the whole team */
    bool halves;       /* this member has one branch: */
    int branch;        /* which; without halves 0, and it has all */
    int shards, shard; /* how many share a forward, and which of them this member is */
} sl_denoise_split;
sl_denoise_split sl_denoise_split_of(const sl_job *job, int size, int me);
/* The member has branch b of the job. */
bool sl_denoise_has(const sl_denoise_split *split, const sl_job *job, int b);

/* What decides the sizes. Nothing is owned. */
typedef struct {
    const sl_model *model;
    sl_dit *const *dit; /* model->family.experts of them */
    const sl_job *job;
    const sl_schedule *schedule;
    const sl_denoise_split *split; /* NULL: of one rank */
    sl_comm *comm;                 /* of the ranks; NULL: of one rank, or while planning */
    bool round_rope;               /* denoise.rope = "bfloat16" */
    sl_tap_fn *tap;                /* of the first expert's tables; may be NULL */
} sl_denoise_sizes;

/* All of it lies in the arena, taken in this order both for real and when planning. */
typedef struct {
    sl_tensor condition;      /* F32 [20, T, h/8, w/8]; rank 0 without a picture, and where */
    sl_tensor kept;           /* F32 [48, 1, h/16, w/16], the first latent frame: TI2V-5B */
    sl_tensor v[SL_BRANCHES]; /* model output */
    sl_sampler sampler;
    sl_dit_rope rope;
    sl_dit_times times[SL_EXPERTS];
    sl_dit_context context[SL_EXPERTS][SL_BRANCHES];
    void *context_memory[SL_EXPERTS][SL_BRANCHES]; /* of the contexts, made when inputs come */
    sl_fbcache cache[SL_EXPERTS][SL_BRANCHES];     /* of this member's rows */
    sl_dit_share share;                            /* in the window; team.size 0: nobody shares */
} sl_denoise_memory;

/* Branches of a forward: 2 with guidance, else 1. */
int sl_denoise_branches(const sl_job *job);
/* The shape of the latents, [16, T, h/8, w/8] (TI2V-5B: [48, T, h/16, w/16]). */
void sl_denoise_shape(const sl_model *model, const sl_job *job, int64_t shape[4]);

/* Take what the job keeps over its steps and compute its tables; errors are ctx's. */
void sl_denoise_take(sl_ctx *ctx, sl_denoise_memory *m, const sl_denoise_sizes *of);
/* How many bytes the arena must have for what the job keeps, and for contexts and steps on
 * top. The job has been checked. */
sl_code sl_denoise_arena(sl_arena *out, const sl_ops *ops, const sl_denoise_sizes *of, sl_err *err);

/* Host memory of a job's preview, without the picture as its file has it; 0: none is wanted. */
size_t sl_denoise_preview_bytes(const sl_model *model, const sl_job *job);

/* The window of one of `ranks` that work on videos of up to so many pixels and frames: the shares
 * of a forward from its beginning, where a job's inputs lie before its first step; at its end the
 * velocities of both branches (sl_denoise_pair_bytes). */
sl_code sl_denoise_window(size_t *out, const sl_ops *ops, const sl_model *model, sl_dit *const *dit,
                          int64_t pixels, int frames, int ranks, sl_err *err);
size_t sl_denoise_pair_bytes(const sl_ctx *ctx, const int64_t shape[4]);

#endif
