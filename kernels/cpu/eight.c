/* eight.c - rows in 8 bits: made of a row of floats at a time, multiplied as floats. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "common/e4m3.h"
#include "kernels/cpu/vmath.h"

enum { GRAIN = 16384 }; /* elements below which a second thread costs more than it brings */

/* One row of d floats in 8 bits. Magnitudes are compared as integers: a loop that becomes vectors,
 * and NaN is the largest. */
static void quantise(uint8_t *codes, float *scale, const float *x, int64_t d)
{
    float most = 0x1p-100f; /* its inverse is finite */
    uint32_t bits;
    memcpy(&bits, &most, sizeof bits);
    for (int64_t c = 0; c < d; c++) {
        uint32_t u;
        memcpy(&u, x + c, sizeof u);
        u &= 0x7fffffffu;
        bits = u > bits ? u : bits;
    }
    memcpy(&most, &bits, sizeof most);
    const float by = SL_E4M3_MOST / most;
    *scale = most / SL_E4M3_MOST;
    for (int64_t c = 0; c < d; c++) codes[c] = sl_to_e4m3(x[c] * by);
}

/* What makes a row's floats: `out` is memory to make them in, the result is there or where they
 * were already. */
typedef const float *make_fn(float *out, const float *in, int64_t d, const void *arg);

/* Row r of x as floats: in place, or in `out` if x is BF16 (weights of a table with that act). */
static const float *row_of(float *out, const sl_tensor *x, int64_t r)
{
    const char *from = (const char *)x->data + (size_t)(r * x->pitch) * sl_dtype_size(x->dtype);
    if (x->dtype == SL_F32) return (const float *)(const void *)from;
    sl_cpu_to_floats(out, from, x->dtype, x->shape[1]);
    return out;
}

static void each_row(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, make_fn *make,
                     const void *arg)
{
    const int64_t rows = x->shape[0], d = x->shape[1];
    bool failed = false;
#pragma omp parallel if (rows * d > GRAIN)
    {
        float *made = sl_cpu_scratch(SL_SCRATCH_EIGHT, (size_t)d * sizeof *made);
        if (!made) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++)
            if (made)
                quantise((uint8_t *)y->codes.data + r * d, (float *)y->scale.data + r,
                         make(made, row_of(made, x, r), d, arg), d);
    }
    if (failed)
        sl_ctx_fail(ctx, SL_NOMEM, "rows in 8 bits: no memory for a row of %lld", (long long)d);
}

static const float *as_it_is(float *out, const float *in, int64_t d, const void *arg)
{
    (void)out, (void)d, (void)arg;
    return in;
}

void sl_cpu_quantise_rows(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    each_row(ctx, y, x, as_it_is, NULL);
}

static const float *gelu(float *out, const float *in, int64_t d, const void *arg)
{
    (void)arg;
    for (int64_t c = 0; c < d; c++) out[c] = sl_gelu_tanhf(in[c]);
    return out;
}

void sl_cpu_gelu_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    each_row(ctx, y, x, gelu, NULL);
}

typedef struct {
    const float *w, *b;
    float one, eps;
} norm;

static const float *normed(float *out, const float *in, int64_t d, const void *arg)
{
    const norm *n = arg;
    sl_cpu_layernorm_row(out, in, d, n->w, n->b, n->one, n->eps);
    return out;
}

void sl_cpu_layernorm_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
                            const sl_tensor *b, float eps)
{
    each_row(ctx, y, x, normed,
             &(norm){.w = w ? w->data : NULL, .b = b ? b->data : NULL, .eps = eps});
}

void sl_cpu_layernorm_modulate_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x,
                                     const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    each_row(ctx, y, x, normed, &(norm){.w = scale->data, .b = shift->data, .one = 1, .eps = eps});
}

/* The CPU leaves it to the front's two operations. */
bool sl_cpu_linear_add_eight(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_eight *a,
                             const sl_eight *w, const sl_tensor *b, const sl_tensor *gate)
{
    (void)ctx, (void)x, (void)y, (void)a, (void)w, (void)b, (void)gate;
    return false;
}
