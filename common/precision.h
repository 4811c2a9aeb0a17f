/* precision.h - the numbers in which a transformer's large products are computed. */
#ifndef SL_PRECISION_H
#define SL_PRECISION_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

/* Each is what the ones before it are and more; name as options have it.
 *   bf16        as the device computes: bf16 on a GPU, float32 on the CPU
 *   fp8-linear  the blocks' large matrices and what they are multiplied with in e4m3, a scale a row
 * To come: fp8, which is fp8-linear and attention in 8 bits. */
#define SL_PRECISIONS(X) X(BF16, "bf16") X(FP8_LINEAR, "fp8-linear")
typedef enum {
#define X(upper, name) SL_PRECISION_##upper,
    SL_PRECISIONS(X)
#undef X
        SL_PRECISION_COUNT
} sl_precision;

const char *sl_precision_name(sl_precision p);
/* Errors: SL_ARG, "precision is fp4, want bf16 or fp8-linear". */
sl_code sl_precision_read(sl_precision *out, const char *name, sl_err *err);
/* Weights that were loaded for `loaded` can compute as a job asks: they hold bf16 or 8 bits, not
 * both. Errors: SL_ARG, both named. */
sl_code sl_precision_fits(sl_precision loaded, sl_precision asked, sl_err *err);

#define SL_MOST_BLOCKS 512 /* of a transformer */

/* How a transformer's weights are kept: zeros for bf16 everywhere. */
typedef struct {
    sl_precision is;
    uint64_t whole[SL_MOST_BLOCKS / 64]; /* bit i: block i stays in bf16 all the same */
} sl_dit_precision;

/* Block i's large matrices are in 8 bits. */
bool sl_block_is_eight(const sl_dit_precision *p, int i);
/* From the settings denoise.precision and denoise.bf16_blocks ("0,39"; "": none), for a transformer
 * of so many blocks. Errors: SL_ARG, naming the setting. */
sl_code sl_dit_precision_read(sl_dit_precision *out, const char *name, const char *bf16_blocks,
                              int blocks, sl_err *err);

#endif
