/* precision.h - the numbers in which a transformer's large products are computed. */
#ifndef SL_PRECISION_H
#define SL_PRECISION_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

/* Each is what the ones before it are and more; name as options have it.
 *   bf16        as the device computes: bf16 on a GPU, float32 on the CPU
 *   fp8-linear  the blocks' large matrices and what they are multiplied with in e4m3, a scale a row
 *   fp8         and attention among the tokens in 8 bits (kernels/ops.h, sl_attention_eight) */
#define SL_PRECISIONS(X) X(BF16, "bf16") X(FP8_LINEAR, "fp8-linear") X(FP8, "fp8")
typedef enum {
#define X(upper, name) SL_PRECISION_##upper,
    SL_PRECISIONS(X)
#undef X
        SL_PRECISION_COUNT
} sl_precision;

const char *sl_precision_name(sl_precision p);
/* Errors: SL_ARG, "precision is fp4, want bf16, fp8-linear or fp8". */
sl_code sl_precision_read(sl_precision *out, const char *name, sl_err *err);
/* A job with this precision's name attends in 8 bits, where weights and settings say so too. */
bool sl_precision_attends(const char *name);
/* Weights that were loaded for `loaded` can compute as a job asks: they hold bf16 or 8 bits, not
 * both. Errors: SL_ARG, both named. */
sl_code sl_precision_fits(sl_precision loaded, sl_precision asked, sl_err *err);

#define SL_MOST_BLOCKS 512 /* of a transformer */

/* How a transformer's weights are kept: zeros for bf16 everywhere. */
typedef struct {
    sl_precision is;
    uint64_t whole[SL_MOST_BLOCKS / 64]; /* bit i: block i stays in bf16 all the same */
    int attends_from, attends_to;        /* steps, from 0 on, whose attention is in 8 bits */
    bool float32_sums; /* products in 8 bits are summed as ctx's float32_sums says */
} sl_dit_precision;

/* Block i's large matrices are in 8 bits. */
bool sl_block_is_eight(const sl_dit_precision *p, int i);
/* Block i attends in 8 bits in this step (from 0 on). */
bool sl_attends_in_eight(const sl_dit_precision *p, int i, int step);
/* All of it that a job's latents may depend on, which a state keeps (common/state.h): is it in 8
 * bits, float32_sums, attends_from and attends_to + 1 if the job `attends` in 8 bits
 * (sl_precision_attends), else 0 and 0, `whole`. Zeros for bf16 everywhere. */
enum { SL_PRECISION_WORDS = 4 + SL_MOST_BLOCKS / 64 };
void sl_dit_precision_words(int64_t out[SL_PRECISION_WORDS], const sl_dit_precision *p,
                            bool attends);
/* From the settings denoise.precision, denoise.bf16_blocks ("0,39"; "": none) and
 * denoise.fp8_attention_steps ("4-26", counted from 1; "": all), for a transformer of so many
 * blocks. Errors: SL_ARG, naming the setting. */
sl_code sl_dit_precision_read(sl_dit_precision *out, const char *name, const char *bf16_blocks,
                              const char *attention_steps, int blocks, sl_err *err);

#endif
