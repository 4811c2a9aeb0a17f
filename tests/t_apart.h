/* t_apart.h - a device of the CPU's bodies whose memory is not the host's and whose weights are
 * bf16. */
#ifndef T_APART_H
#define T_APART_H

#include "tests/t.h"

#include "common/tensor.h"
#include "kernels/cpu/cpu.h"

/* The CPU's body makes float32; a device rounds it. */
static inline void t_rounding_low_rank_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                           const sl_tensor *up, const sl_tensor *down, float scale)
{
    const int64_t n = sl_count(y);
    float *sum = malloc((size_t)n * sizeof *sum);
    sl_tensor s = sl_view(sum, SL_F32, y->rank, y->shape);
    assert_non_null(sum);
    sl_cpu_low_rank_add(ctx, &s, x, up, down, scale);
    assert_int_equal(sl_from_floats(y->data, y->dtype, sum, n, NULL), SL_OK);
    free(sum);
}

static inline const sl_ops *t_apart(void)
{
    static sl_ops apart;
    apart = sl_ops_cpu;
    apart.name = "apart";
    apart.act = SL_BF16;
    apart.host_memory = apart.stored_matrices = false;
    apart.low_rank_add = t_rounding_low_rank_add;
    return &apart;
}

#endif
