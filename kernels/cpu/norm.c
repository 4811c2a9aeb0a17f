/* norm.c - LayerNorm, RMSNorm with and without rotary embedding, and the gated residual,
 * a row a time. */
#include "kernels/cpu/cpu.h"

#include <math.h>

#include "kernels/cpu/vmath.h"

#define GRAIN 32768 /* elements below which a second thread costs more than it brings */

/* Sum of n floats in 16 interleaved partial sums: one order for every machine. */
static float sum(const float *x, int64_t n)
{
    sl_v16 s = {0};
    float total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) s += *(const sl_v16 *)(x + i);
    for (int l = 0; l < 16; l++) total += s[l];
    for (; i < n; i++) total += x[i];
    return total;
}

/* Sum of (x - mean)^2. */
static float sum_squares(const float *x, int64_t n, float mean)
{
    sl_v16 s = {0}, m;
    float total = 0;
    int64_t i = 0;
    for (int l = 0; l < 16; l++) m[l] = mean;
    for (; i + 16 <= n; i += 16) {
        sl_v16 e = *(const sl_v16 *)(x + i) - m;
        s += e * e;
    }
    for (int l = 0; l < 16; l++) total += s[l];
    for (; i < n; i++) total += (x[i] - mean) * (x[i] - mean);
    return total;
}

void sl_cpu_layernorm_row(float *out, const float *in, int64_t d, const float *w, const float *b,
                          float one, float eps)
{
    float mean = sum(in, d) / (float)d;
    float rstd = 1.0f / sqrtf(sum_squares(in, d, mean) / (float)d + eps);
    if (w)
        for (int64_t c = 0; c < d; c++) out[c] = (in[c] - mean) * rstd * (one + w[c]) + b[c];
    else
        for (int64_t c = 0; c < d; c++) out[c] = (in[c] - mean) * rstd;
}

static void layernorm_rows(const sl_tensor *y, const sl_tensor *x, const float *w, const float *b,
                           float one, float eps)
{
    int64_t rows = x->shape[0], d = x->shape[1];
#pragma omp parallel for schedule(static) if (rows * d > GRAIN)
    for (int64_t r = 0; r < rows; r++)
        sl_cpu_layernorm_row((float *)y->data + r * d, (const float *)x->data + r * d, d, w, b, one,
                             eps);
}

void sl_cpu_layernorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                      const sl_tensor *b, float eps)
{
    (void)ctx;
    layernorm_rows(y, x, w ? w->data : NULL, b ? b->data : NULL, 0, eps);
}

void sl_cpu_layernorm_modulate(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    (void)ctx;
    layernorm_rows(y, x, scale->data, shift->data, 1, eps);
}

void sl_cpu_rmsnorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                    float eps)
{
    (void)ctx;
    int64_t rows = x->shape[0], d = x->shape[1];
    const float *wd = w->data;
#pragma omp parallel for schedule(static) if (rows * d > GRAIN)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = (const float *)x->data + r * x->pitch;
        float *out = (float *)y->data + r * y->pitch;
        float rms = 1.0f / sqrtf(sum_squares(in, d, 0) / (float)d + eps);
        for (int64_t c = 0; c < d; c++) out[c] = in[c] * rms * wd[c];
    }
}

void sl_cpu_rmsnorm_rope(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                         float eps, const sl_tensor *cos, const sl_tensor *sin, int heads)
{
    (void)ctx;
    int64_t rows = x->shape[0], d = x->shape[1], half = d / heads / 2;
    const float *wd = w->data;
#pragma omp parallel for schedule(static) if (rows * d > GRAIN)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = (const float *)x->data + r * x->pitch;
        const float *c = (const float *)cos->data + r * half,
                    *s = (const float *)sin->data + r * half;
        float *out = (float *)y->data + r * y->pitch;
        float rms = 1.0f / sqrtf(sum_squares(in, d, 0) / (float)d + eps);
        for (int64_t h = 0; h < heads; h++) {
            const float *xi = in + h * 2 * half, *wi = wd + h * 2 * half;
            float *yi = out + h * 2 * half;
            for (int64_t k = 0; k < half; k++) {
                float a = xi[2 * k] * rms * wi[2 * k], b = xi[2 * k + 1] * rms * wi[2 * k + 1];
                yi[2 * k] = a * c[k] - b * s[k];
                yi[2 * k + 1] = a * s[k] + b * c[k];
            }
        }
    }
}

void sl_cpu_gated_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    (void)ctx;
    int64_t rows = x->shape[0], d = x->shape[1];
    const float *g = gate->data;
#pragma omp parallel for schedule(static) if (rows * d > GRAIN)
    for (int64_t r = 0; r < rows; r++) {
        float *xr = (float *)x->data + r * d;
        const float *yr = (const float *)y->data + r * d;
        for (int64_t c = 0; c < d; c++) xr[c] += yr[c] * g[c];
    }
}
