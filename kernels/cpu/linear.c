/* linear.c - y = activation(x w^T + b) through OpenBLAS, weights of any float dtype converted by panels. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>

#include "kernels/cpu/vmath.h"

/* y[rows, cols] = activation(y + b) */
static void epilogue(float *y, int64_t pitch, int64_t rows, int64_t cols, const float *b, sl_activation activation)
{
    if (!b && activation == SL_ACT_NONE) return;
#pragma omp parallel for schedule(static) if (rows * cols > 32768)
    for (int64_t r = 0; r < rows; r++) {
        float *t = y + r * pitch;
        if (b)
            for (int64_t c = 0; c < cols; c++) t[c] += b[c];
        switch (activation) {
        case SL_ACT_NONE: break;
        case SL_ACT_GELU_TANH:
            for (int64_t c = 0; c < cols; c++) t[c] = sl_gelu_tanhf(t[c]);
            break;
        case SL_ACT_GELU_ERF:
            for (int64_t c = 0; c < cols; c++) t[c] = sl_gelu_erff(t[c]);
            break;
        case SL_ACT_SILU:
            for (int64_t c = 0; c < cols; c++) t[c] = sl_siluf(t[c]);
            break;
        }
    }
}

void sl_cpu_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w, const sl_tensor *b,
                   sl_activation activation)
{
    int64_t m = x->shape[0], k = x->shape[1], n = w->shape[0], panel = 512;
    if (!m || !n) return;
    float *scratch = NULL;
    if (w->dtype != SL_F32 && !(scratch = sl_cpu_scratch(SL_SCRATCH_PANEL, (size_t)(panel * k) * sizeof(float)))) {
        sl_ctx_fail(ctx, SL_NOMEM, "linear: no memory for a panel of %lld floats", (long long)(panel * k));
        return;
    }
    for (int64_t c = 0; c < n; c += panel) {
        int64_t cols = n - c < panel ? n - c : panel;
        const char *from = (const char *)w->data + (size_t)(c * k) * sl_dtype_size(w->dtype);
        const float *wp = (const float *)(const void *)from;
        if (scratch) {
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < cols; r++)
                sl_cpu_to_floats(scratch + r * k, from + (size_t)(r * k) * sl_dtype_size(w->dtype), w->dtype, k);
            wp = scratch;
        }
        float *out = (float *)y->data + c;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)cols, (int)k, 1, x->data,
                    (int)(m > 1 ? x->pitch : k), wp, (int)k, 0, out, (int)(m > 1 ? y->pitch : n));
        epilogue(out, y->pitch, m, cols, b ? (const float *)b->data + c : NULL, activation);
    }
}
