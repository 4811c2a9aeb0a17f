/* data.c - movement, conversion and elementwise arithmetic on the CPU. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include "common/e4m3.h"
#include "kernels/cpu/vmath.h"

#define GRAIN 32768 /* elements below which a second thread costs more than it brings */

void sl_cpu_upload(sl_ctx *ctx, const sl_tensor *dst, const void *host)
{
    (void)ctx;
    if (sl_bytes(dst)) memcpy(dst->data, host, sl_bytes(dst));
}

void sl_cpu_download(sl_ctx *ctx, void *host, const sl_tensor *src)
{
    (void)ctx;
    if (sl_bytes(src)) memcpy(host, src->data, sl_bytes(src));
}

void sl_cpu_sync(sl_ctx *ctx)
{
    (void)ctx;
}

void sl_cpu_zero(sl_ctx *ctx, const sl_tensor *y)
{
    (void)ctx;
    if (sl_bytes(y)) memset(y->data, 0, sl_bytes(y));
}

void sl_cpu_to_floats(float *dst, const void *src, sl_dtype dtype, int64_t n)
{
    if (dtype == SL_F32) {
        if (n) memcpy(dst, src, (size_t)n * sizeof *dst);
    } else if (dtype == SL_BF16) {
        const sl_bf16 *s = src;
        uint32_t *d = (uint32_t *)(void *)dst;
        for (int64_t i = 0; i < n; i++) d[i] = (uint32_t)s[i] << 16;
    } else if (dtype == SL_E4M3) {
        const uint8_t *s = src;
        for (int64_t i = 0; i < n; i++) dst[i] = sl_from_e4m3(s[i]);
    } else {
        /* Shift the 15 bits into place and multiply by 2^112: right for zeros, subnormals
         * and normals alike. Exponent 31 (infinity, NaN) becomes 143 by that and is set
         * to 255. */
        const sl_f16 *s = src;
        for (int64_t i = 0; i < n; i++) {
            uint32_t h = s[i], bits = (h & 0x7fff) << 13;
            float f;
            memcpy(&f, &bits, 4);
            f *= 0x1p112f;
            memcpy(&bits, &f, 4);
            bits |= (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
            bits |= (h & 0x8000) << 16;
            memcpy(dst + i, &bits, 4);
        }
    }
}

/* One row of `n` from one dtype to another. */
static void copy_row(void *dst, sl_dtype to, const void *src, sl_dtype from, int64_t n)
{
    if (to == from) {
        memmove(dst, src, (size_t)n * sl_dtype_size(to));
        return;
    }
    if (to == SL_F32) {
        sl_cpu_to_floats(dst, src, from, n);
        return;
    }
    float part[256];
    for (int64_t i = 0; i < n; i += 256) {
        int64_t m = n - i < 256 ? n - i : 256;
        sl_cpu_to_floats(part, (const char *)src + (size_t)i * sl_dtype_size(from), from, m);
        sl_from_floats((char *)dst + (size_t)i * sl_dtype_size(to), to, part, m, NULL);
    }
}

void sl_cpu_copy(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    (void)ctx;
    int64_t total = sl_count(x), rows = x->shape[0], cols = rows ? total / rows : 0,
            y_pitch = y->pitch, x_pitch = x->pitch;
    size_t y_size = sl_dtype_size(y->dtype), x_size = sl_dtype_size(x->dtype);
    if (!total || (y->data == x->data && y->dtype == x->dtype)) return;
    if (sl_is_dense(x) && sl_is_dense(y)) { /* any cut into rows will do */
        cols = y_pitch = x_pitch = 4096;
        rows = (total + cols - 1) / cols;
    }
#pragma omp parallel for schedule(static) if (total > GRAIN)
    for (int64_t r = 0; r < rows; r++) {
        int64_t n =
            sl_is_dense(x) && sl_is_dense(y) && total - r * cols < cols ? total - r * cols : cols;
        copy_row((char *)y->data + (size_t)(r * y_pitch) * y_size, y->dtype,
                 (const char *)x->data + (size_t)(r * x_pitch) * x_size, x->dtype, n);
    }
}

void sl_cpu_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    (void)ctx;
    int64_t n = sl_count(y);
    float *yd = y->data;
    const float *ad = a->data, *bd = b->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) yd[i] = ad[i] + bd[i];
}

void sl_cpu_sub(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    (void)ctx;
    int64_t n = sl_count(y);
    float *yd = y->data;
    const float *ad = a->data, *bd = b->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) yd[i] = ad[i] - bd[i];
}

void sl_cpu_silu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    (void)ctx;
    int64_t n = sl_count(y);
    float *yd = y->data;
    const float *xd = x->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) yd[i] = sl_siluf(xd[i]);
}

void sl_cpu_geglu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    (void)ctx;
    int64_t n = sl_count(y);
    float *yd = y->data;
    const float *ad = a->data, *bd = b->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > GRAIN)
    for (int64_t i = 0; i < n; i++) yd[i] = sl_gelu_tanhf(ad[i]) * bd[i];
}

void sl_cpu_embed(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *table, const int32_t *ids)
{
    (void)ctx;
    int64_t d = table->shape[1];
    size_t size = sl_dtype_size(table->dtype);
    for (int64_t i = 0; i < y->shape[0]; i++)
        sl_cpu_to_floats((float *)y->data + i * d,
                         (const char *)table->data + (size_t)(ids[i] * d) * size, table->dtype, d);
}
