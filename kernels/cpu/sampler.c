/* sampler.c - DiT's edges (patches in and out), guidance, the sampler's arithmetic and
 * the cache's means. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

#define GRAIN 32768 /* elements below which a second thread costs more than it brings */

void sl_cpu_patchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                     const sl_tensor *condition)
{
    (void)ctx;
    int64_t c1 = latents->shape[0], channels = c1 + (condition ? condition->shape[0] : 0);
    int64_t height = latents->shape[2], width = latents->shape[3], frame = height * width,
            volume = latents->shape[1] * frame;
    int64_t hp = height / 2, wp = width / 2, rows = latents->shape[1] * hp;
#pragma omp parallel for schedule(static) if (sl_count(y) > GRAIN)
    for (int64_t r = 0; r < rows; r++) { /* r = t * hp + yp: one line of patches */
        int64_t at = r / hp * frame + r % hp * 2 * width;
        for (int64_t xp = 0; xp < wp; xp++) {
            float *out = (float *)y->data + (r * wp + xp) * channels * 4;
            for (int64_t c = 0; c < channels; c++, out += 4) {
                const float *in = c < c1 ? (const float *)latents->data + c * volume
                                         : (const float *)condition->data + (c - c1) * volume;
                in += at + 2 * xp;
                out[0] = in[0];
                out[1] = in[1];
                out[2] = in[width];
                out[3] = in[width + 1];
            }
        }
    }
}

void sl_cpu_unpatchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    (void)ctx;
    int64_t channels = y->shape[0], height = y->shape[2], width = y->shape[3],
            frame = height * width, volume = y->shape[1] * frame;
    int64_t hp = height / 2, wp = width / 2, rows = y->shape[1] * hp;
#pragma omp parallel for schedule(static) if (sl_count(y) > GRAIN)
    for (int64_t r = 0; r < rows; r++) {
        int64_t at = r / hp * frame + r % hp * 2 * width;
        for (int64_t xp = 0; xp < wp; xp++) {
            const float *in = (const float *)x->data + (r * wp + xp) * channels * 4;
            for (int64_t c = 0; c < channels; c++) {
                float *out = (float *)y->data + c * volume + at + 2 * xp;
                out[0] = in[c];
                out[1] = in[channels + c];
                out[width] = in[2 * channels + c];
                out[width + 1] = in[3 * channels + c];
            }
        }
    }
}

void sl_cpu_guidance(sl_ctx *ctx, const sl_tensor *v, const sl_tensor *cond,
                     const sl_tensor *uncond, float g)
{
    (void)ctx;
    int64_t n = sl_count(v);
    float *out = v->data;
    const float *c = cond->data, *u = uncond->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) {
        float d = c[i] - u[i], gd = g * d;
        out[i] = u[i] + gd;
    }
}

/* round(sigma * v[i]) to v's own dtype. */
static float flow_step(const sl_tensor *v, int64_t i, float sigma)
{
    if (v->dtype == SL_BF16)
        return sl_from_bf16(sl_to_bf16(sigma * sl_from_bf16(((const sl_bf16 *)v->data)[i])));
    if (v->dtype == SL_F16)
        return sl_from_f16(sl_to_f16(sigma * sl_from_f16(((const sl_f16 *)v->data)[i])));
    return sigma * ((const float *)v->data)[i];
}

void sl_cpu_flow_x0(sl_ctx *ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v,
                    float sigma)
{
    (void)ctx;
    int64_t n = sl_count(x);
    float *out = x0->data;
    const float *in = x->data;
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t i = 0; i < n; i++) out[i] = in[i] - flow_step(v, i, sigma);
}

void sl_cpu_lincomb(sl_ctx *ctx, const sl_tensor *y, int n, const sl_tensor *const x[],
                    const float a[])
{
    (void)ctx;
    enum { PART = 1024 };
    int64_t count = sl_count(y);
#pragma omp parallel for schedule(static) if (count > GRAIN)
    for (int64_t i = 0; i < count; i += PART) {
        int64_t m = count - i < PART ? count - i : PART;
        float s[PART]; /* so that y may be any of x */
        for (int64_t j = 0; j < m; j++) s[j] = a[0] * ((const float *)x[0]->data)[i + j];
        for (int k = 1; k < n; k++) {
            const float *in = (const float *)x[k]->data + i, f = a[k];
            for (int64_t j = 0; j < m; j++) s[j] += f * in[j];
        }
        memcpy((float *)y->data + i, s, (size_t)m * sizeof *s);
    }
}

/* elements summed by one thread before the chunks' sums are added in order */
#define CHUNK 65536

void sl_cpu_mean_abs(sl_ctx *ctx, float out[2], const sl_tensor *prev, const sl_tensor *r)
{
    int64_t n = sl_count(prev), chunks = (n + CHUNK - 1) / CHUNK;
    const float *p = prev->data, *q = r->data;
    double *part = sl_cpu_scratch(SL_SCRATCH_SUMS, (size_t)chunks * 2 * sizeof *part), diff = 0,
           size = 0;
    if (!part) {
        sl_ctx_fail(ctx, SL_NOMEM, "mean_abs: no memory for %lld partial sums", (long long)chunks);
        return;
    }
#pragma omp parallel for schedule(static) if (n > GRAIN)
    for (int64_t c = 0; c < chunks; c++) {
        int64_t end = n - c * CHUNK < CHUNK ? n : (c + 1) * CHUNK, i = c * CHUNK;
        double d[8] = {0}, s[8] = {0};
        for (; i + 8 <= end; i += 8)
            for (int l = 0; l < 8; l++) {
                d[l] += fabsf(p[i + l] - q[i + l]);
                s[l] += fabsf(p[i + l]);
            }
        for (; i < end; i++) {
            d[0] += fabsf(p[i] - q[i]);
            s[0] += fabsf(p[i]);
        }
        for (int l = 1; l < 8; l++) {
            d[0] += d[l];
            s[0] += s[l];
        }
        part[2 * c] = d[0];
        part[2 * c + 1] = s[0];
    }
    for (int64_t c = 0; c < chunks; c++) {
        diff += part[2 * c];
        size += part[2 * c + 1];
    }
    out[0] = (float)(diff / (double)n);
    out[1] = (float)(size / (double)n);
}

void sl_cpu_abs_rows(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *prev, const sl_tensor *r)
{
    const int64_t rows = prev->shape[0], cols = prev->shape[1];
    const float *p = prev->data, *q = r->data;
    float *out = y->data;
    (void)ctx;
#pragma omp parallel for schedule(static) if (rows * cols > GRAIN)
    for (int64_t i = 0; i < rows; i++) {
        const float *a = p + i * cols, *b = q + i * cols;
        double d[8] = {0}, s[8] = {0};
        int64_t c = 0;
        for (; c + 8 <= cols; c += 8)
            for (int l = 0; l < 8; l++) {
                d[l] += fabsf(a[c + l] - b[c + l]);
                s[l] += fabsf(a[c + l]);
            }
        for (; c < cols; c++) {
            d[0] += fabsf(a[c] - b[c]);
            s[0] += fabsf(a[c]);
        }
        for (int l = 1; l < 8; l++) {
            d[0] += d[l];
            s[0] += s[l];
        }
        out[2 * i] = (float)d[0];
        out[2 * i + 1] = (float)s[0];
    }
}

void sl_cpu_sum_rows(sl_ctx *ctx, double out[2], const sl_tensor *y)
{
    const float *x = y->data;
    (void)ctx;
    for (int64_t i = 0; i < y->shape[0]; i++) {
        out[0] += x[2 * i];
        out[1] += x[2 * i + 1];
    }
}
