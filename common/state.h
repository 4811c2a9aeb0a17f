/* state.h - a sampler's state in a file: state.safetensors of a job's folder, from which a killed
 * denoiser goes on; state.K of a dump, and fork.safetensors of a job that begins there.
 *
 *   x, last, m0, m1   F32, of the latents' shape (graphs/unipc.h)
 *   meta              I64 [SL_META_COUNT]
 *   metrics           F32 [2], the First Block Cache's of the step, cond and uncond
 *   lora              I64 [2], key of what was merged into each expert (common/lora.h)
 *   level             I64 [SL_LEVEL_COUNT]
 *   precision         I64 [2 * SL_PRECISION_WORDS], each expert's (common/precision.h) */
#ifndef SL_STATE_H
#define SL_STATE_H

/* The step before which it is; order of the last predictor; how many of m0, m1 are valid. */
enum { SL_META_STEP, SL_META_ORDER, SL_META_HISTORY, SL_META_COUNT };

/* Bits of the step's timestep (a double) and of its sigma (a float); did the step compute in every
 * branch; the sampler's sl_sampler_kind. */
enum { SL_LEVEL_TIMESTEP, SL_LEVEL_SIGMA, SL_LEVEL_COMPUTED, SL_LEVEL_SAMPLER, SL_LEVEL_COUNT };

#define SL_STATE_FILE "state.safetensors"
#define SL_FORK_FILE "fork.safetensors"

#endif
