/* linear.c - y = activation(x w^T + b): OpenBLAS for many rows, dot products for few.
 *
 * OpenBLAS wants float32 weights, so BF16 and F16 are converted a panel of output rows at
 * a time, once however many rows x has: the panel is kept in a buffer of the calling
 * thread that is taken once and grows to the largest layer's need. Bias and activation
 * follow each block of rows while it is in the cache.
 * With few rows the weights' bytes are the cost, and a conversion would be as much work
 * as the product: there each weight is read once, converted within the first cache and
 * used for all rows. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vmath.h"

enum {
    /* up to so many rows of x, dot products; measured: at 24 sgemm is even, at 12 it
     * takes twice as long */
    FEW = 24,
    XROWS = 4,    /* rows of x and ... */
    WROWS = 2,    /* ... rows of w whose dot products are computed together */
    CHUNK = 1024, /* the part of K that dot products take at a time */
    PANEL = 512,  /* output columns converted and multiplied at a time by sgemm */
    ROWS = 1024   /* rows of x multiplied before their bias and activation */
};

/* y[rows, cols] = activation(y + b) */
static void epilogue(float *y, int64_t pitch, int64_t rows, int64_t cols, const float *b,
                     sl_activation activation)
{
    if (!b && activation == SL_ACT_NONE) return;
#pragma omp parallel for schedule(static) if (rows * cols > 8192)
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

/* total[r][c] += x row r . w row c over n floats, for `rows` rows of x and `cols` of w:
 * constants where it is called. */
static inline __attribute__((always_inline)) void dots(const int rows, const int cols,
                                                       float total[][WROWS], const float *x,
                                                       int64_t x_pitch, const float *w,
                                                       int64_t w_pitch, int64_t n)
{
    vec acc[XROWS][WROWS];
    int64_t i = 0;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) acc[r][c] = (vec){0};
    for (; i + LANES <= n; i += LANES)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                acc[r][c] = FMA(*(const vec *)(x + r * x_pitch + i),
                                *(const vec *)(w + c * w_pitch + i), acc[r][c]);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            float s = 0;
            for (int l = 0; l < LANES; l++) s += acc[r][c][l];
            for (int64_t j = i; j < n; j++) s += x[r * x_pitch + j] * w[c * w_pitch + j];
            total[r][c] += s;
        }
}

/* Few rows: every thread takes pairs of output columns and walks down their weight rows
 * once. */
static void few_rows(const sl_tensor *y, const sl_tensor *x, const sl_tensor *w)
{
    int64_t m = x->shape[0], k = x->shape[1], n = w->shape[0];
    size_t size = sl_dtype_size(w->dtype);
#pragma omp parallel for schedule(static) if (n * k > 32768)
    for (int64_t c = 0; c < n; c += WROWS) {
        int64_t cols = n - c < WROWS ? n - c : WROWS;
        float part[WROWS * CHUNK], total[FEW][WROWS] = {0};
        for (int64_t i = 0; i < k; i += CHUNK) {
            int64_t len = k - i < CHUNK ? k - i : CHUNK, pitch = w->dtype == SL_F32 ? k : CHUNK,
                    r = 0;
            const char *from = (const char *)w->data + (size_t)(c * k + i) * size;
            for (int64_t j = 0; j < cols && w->dtype != SL_F32; j++)
                sl_cpu_to_floats(part + j * CHUNK, from + (size_t)(j * k) * size, w->dtype, len);
            const float *wp = w->dtype == SL_F32 ? (const float *)(const void *)from : part,
                        *xp = (const float *)x->data + i;
            for (; r + XROWS <= m && cols == WROWS; r += XROWS)
                dots(XROWS, WROWS, total + r, xp + r * x->pitch, x->pitch, wp, pitch, len);
            for (; r < m; r++)
                if (cols == WROWS)
                    dots(1, WROWS, total + r, xp + r * x->pitch, x->pitch, wp, pitch, len);
                else dots(1, 1, total + r, xp + r * x->pitch, x->pitch, wp, pitch, len);
        }
        for (int64_t r = 0; r < m; r++)
            for (int64_t j = 0; j < cols; j++)
                ((float *)y->data)[r * y->pitch + c + j] = total[r][j];
    }
}

void sl_cpu_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation activation)
{
    int64_t m = x->shape[0], k = x->shape[1], n = w->shape[0];
    size_t size = sl_dtype_size(w->dtype);
    const float *bias = b ? b->data : NULL;
    float *panel = NULL;
    if (!m || !n) return;
    if (m <= FEW) {
        few_rows(y, x, w);
        epilogue(y->data, y->pitch, m, n, bias, activation);
        return;
    }
    if (w->dtype != SL_F32 &&
        !(panel = sl_cpu_scratch(SL_SCRATCH_PANEL, (size_t)(PANEL * k) * sizeof *panel))) {
        sl_ctx_fail(ctx, SL_NOMEM, "linear: no memory for a panel of %d x %lld weights", PANEL,
                    (long long)k);
        return;
    }
    for (int64_t c = 0; c < n; c += PANEL) {
        int64_t cols = n - c < PANEL ? n - c : PANEL;
        const char *from = (const char *)w->data + (size_t)(c * k) * size;
        if (panel) {
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < cols; r++)
                sl_cpu_to_floats(panel + r * k, from + (size_t)(r * k) * size, w->dtype, k);
        }
        for (int64_t r = 0; r < m; r += ROWS) {
            int64_t rows = m - r < ROWS ? m - r : ROWS;
            float *out = (float *)y->data + r * y->pitch + c;
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)k, 1,
                        (const float *)x->data + r * x->pitch, (int)x->pitch,
                        panel ? panel : (const float *)(const void *)from, (int)k, 0, out,
                        (int)y->pitch);
            epilogue(out, y->pitch, rows, cols, bias ? bias + c : NULL, activation);
        }
    }
}

/* The CPU leaves it to the front's two operations. */
bool sl_cpu_linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                       const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    (void)ctx, (void)x, (void)y, (void)a, (void)w, (void)b, (void)gate;
    return false;
}
