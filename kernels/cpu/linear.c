/* linear.c - y = activation(x w^T + b): OpenBLAS for many rows, dot products for few.
 *
 * A row of y has the same bits whatever rows stand beside it, and however many threads there are,
 * if it lies as far behind a multiple of SL_CPU_GRANULE: ranks that share a job's rows by granules
 * compute what one rank does. sgemm does not give that by itself. Its sums depend on a row's place
 * in a register tile (Zen's kernel, OpenBLAS 0.3.21: places 0 to 2 of 6 and 3 to 5 differ in 7 %
 * of the values), its kernels for the last rows sum in another order, and its threads cut the rows
 * by their number. So a thread multiplies tiles of whole granules, each by sgemm on that thread
 * alone, and the last rows are filled up with zeros. Up to FEW rows dot products are taken, which
 * have other last bits: what decides is ctx's whole_rows, not the rows of a share.
 *
 * WHAT THIS BUILDS ON: OpenBLAS cuts a product's rows, from the first on, into pieces of three
 * register tiles, which are 6, 12 or 24 rows (interface/gemm.c and driver/level3/level3.c of
 * 0.3.21, 0.3.26 and 0.3.28). So rows that follow change no bit of a call as long as every call
 * has a multiple of 24. It has other kernels for small calls on some processors, so narrow tiles
 * are multiplied a granule at a time, in calls that are all alike.
 *
 * OpenBLAS wants float32 weights, so BF16 and F16 are converted a panel of output columns at a
 * time, once however many rows x has: the panel is kept in a buffer of the calling thread that is
 * taken once and grows to the largest layer's need. Bias and activation follow each tile while it
 * is in the cache.
 * With few rows the weights' bytes are the cost, and a conversion would be as much work
 * as the product: there each weight is read once, converted within the first cache and
 * used for all rows. */
#include "kernels/cpu/cpu.h"

#include <string.h>

#include <cblas.h>

#include "common/minmax.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vmath.h"

static int64_t parts(int64_t all, int64_t of) /* all / of, rounded up */
{
    return (all + of - 1) / of;
}

/* y[rows, cols] = activation(y + b), on the calling thread */
static void epilogue(float *y, int64_t pitch, int64_t rows, int64_t cols, const float *b,
                     sl_activation activation)
{
    if (!b && activation == SL_ACT_NONE) return;
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

/* ---- few rows ---- */

enum {
    /* up to so many rows of x, dot products; measured: at 24 sgemm is even, at 12 it
     * takes twice as long */
    FEW = 24,
    XROWS = 4,   /* rows of x and ... */
    WROWS = 2,   /* ... rows of w whose dot products are computed together */
    CHUNK = 1024 /* the part of K that dot products take at a time */
};

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

/* ---- many rows ---- */

enum {
    GRANULE = SL_CPU_GRANULE,
    HALF = GRANULE / 2,      /* rows of the last call: the smallest multiple of it */
    COLS = 512,              /* columns of a tile; one tile's weights are converted at a time, or */
    PANEL_WEIGHTS = 1 << 24, /* of several that make up to so many */
    MOST = 24 * GRANULE,     /* rows of a tile: at most so many, and while a thread has one, */
    PLENTY = 10 * GRANULE,   /* at least so many: at 48 packing the weights costs 15 % */
    /* a tile of fewer columns or weights is multiplied a granule at a time: OpenBLAS has
     * other kernels for up to 1,200 sums (AVX-512) or 64^3 products (Arm) */
    NARROW = 64,
    SMALL = 1 << 14
};

/* How a product is cut: `down` tiles of rows times `across` tiles of columns at a time. */
typedef struct {
    int64_t granules, down, across;
} cut;

/* Two tiles a thread, or more of MOST rows; with fewer than PLENTY rows rather more columns at a
 * time, then one tile a thread. */
static cut cut_of(int64_t m, int64_t n, int64_t k)
{
    const int64_t threads = sl_cpu_threads(), tiles = threads > 1 ? 2 * threads : 1,
                  plenty = sl_larger(1, m / PLENTY),
                  room = sl_larger(1, PANEL_WEIGHTS / (k * COLS));
    cut c = {.granules = parts(m, GRANULE)};
    c.across = sl_smaller(parts(tiles, plenty), sl_smaller(parts(n, COLS), room));
    c.down = sl_smaller(parts(tiles, c.across), sl_larger(plenty, parts(threads, c.across)));
    c.down = sl_larger(c.down, parts(m, MOST));
    c.down = parts(parts(c.down * c.across, threads) * threads, c.across); /* all have as many */
    c.down = sl_smaller(c.down, c.granules);
    return c;
}

/* First row of tile `i` of those that lie one below the other. */
static int64_t row_of(const cut *c, int64_t i)
{
    return c->granules * i / c->down * GRANULE;
}

/* Columns that are multiplied at a time, for their tiles. */
typedef struct {
    int64_t rows, k, cols;
    const float *x, *last, *w; /* last: x's rows from the last multiple of GRANULE on, filled up */
    int64_t x_pitch, y_pitch;
    float *y;
    const float *bias; /* NULL: none */
    sl_activation activation;
} panel;

/* Rows of x from `first` on, and zeros: [GRANULE, k]. */
static void fill_up(float *last, const sl_tensor *x, int64_t first)
{
    const int64_t k = x->shape[1], rows = x->shape[0] - first;
    for (int64_t r = 0; r < rows; r++)
        memcpy(last + r * k, (const float *)x->data + (first + r) * x->pitch,
               (size_t)k * sizeof *last);
    memset(last + rows * k, 0, (size_t)((GRANULE - rows) * k) * sizeof *last);
}

static void multiply(float *y, int64_t y_pitch, const float *x, int64_t x_pitch, const float *w,
                     int64_t rows, int64_t cols, int64_t k)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)k, 1, x,
                (int)x_pitch, w, (int)k, 0, y, (int)y_pitch);
}

/* Rows r to `end` of the tile from column c on, by one of a team of threads. */
static void tile(const panel *p, int64_t r, int64_t end, int64_t c)
{
    const int64_t rows = sl_smaller(end, p->rows) - r, cols = sl_smaller(COLS, p->cols - c),
                  left = rows % GRANULE, whole = rows - left;
    const bool small = cols < NARROW || cols * p->k < SMALL;
    const float *x = p->x + r * p->x_pitch, *w = p->w + c * p->k;
    float *y = p->y + r * p->y_pitch + c, more[GRANULE * COLS];
    sl_cpu_alone();
    for (int64_t i = 0, n; i < whole; i += n) {
        n = small ? GRANULE : whole;
        multiply(y + i * p->y_pitch, p->y_pitch, x + i * p->x_pitch, p->x_pitch, w, n, cols, p->k);
    }
    if (left) {
        multiply(more, COLS, p->last, p->k, w, small || left > HALF ? GRANULE : HALF, cols, p->k);
        for (int64_t i = 0; i < left; i++)
            memcpy(y + (whole + i) * p->y_pitch, more + i * COLS, (size_t)cols * sizeof *more);
    }
    epilogue(y, p->y_pitch, rows, cols, p->bias ? p->bias + c : NULL, p->activation);
}

static void many_rows(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                      const float *bias, sl_activation activation)
{
    const int64_t m = x->shape[0], k = x->shape[1], n = w->shape[0], left = m % GRANULE;
    const cut c = cut_of(m, n, k);
    const int64_t at_once = sl_smaller(n, c.across * COLS), last_rows = left ? GRANULE : 0,
                  converted = w->dtype == SL_F32 ? 0 : at_once;
    const size_t size = sl_dtype_size(w->dtype);
    float *last = NULL;
    if (last_rows + converted &&
        !(last = sl_cpu_scratch(SL_SCRATCH_PANEL,
                                (size_t)((last_rows + converted) * k) * sizeof *last))) {
        sl_ctx_fail(ctx, SL_NOMEM, "linear: no memory for a panel of %lld x %lld weights",
                    (long long)(last_rows + converted), (long long)k);
        return;
    }
    float *floats = converted ? last + last_rows * k : NULL;
    if (left) fill_up(last, x, m - left);
    for (int64_t col = 0; col < n; col += at_once) {
        const char *from = (const char *)w->data + (size_t)(col * k) * size;
        const panel p = {.rows = m,
                         .k = k,
                         .cols = sl_smaller(at_once, n - col),
                         .x = x->data,
                         .last = last,
                         .w = converted ? floats : (const float *)(const void *)from,
                         .x_pitch = x->pitch,
                         .y_pitch = y->pitch,
                         .y = (float *)y->data + col,
                         .bias = bias ? bias + col : NULL,
                         .activation = activation};
        if (converted) {
#pragma omp parallel for schedule(static)
            for (int64_t r = 0; r < p.cols; r++)
                sl_cpu_to_floats(floats + r * k, from + (size_t)(r * k) * size, w->dtype, k);
        }
#pragma omp parallel for schedule(dynamic) collapse(2)
        for (int64_t i = 0; i < c.down; i++)
            for (int64_t j = 0; j < p.cols; j += COLS)
                tile(&p, row_of(&c, i), row_of(&c, i + 1), j);
    }
}

/* ---- the operation ---- */

static bool is_many(const sl_ctx *ctx, int64_t rows)
{
    return rows > FEW || ctx->whole_rows > FEW;
}

void sl_cpu_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation activation)
{
    const int64_t m = x->shape[0], n = w->shape[0];
    const float *bias = b ? b->data : NULL;
    if (!m || !n) return;
    if (is_many(ctx, m)) {
        many_rows(ctx, y, x, w, bias, activation);
        return;
    }
    few_rows(y, x, w);
#pragma omp parallel for schedule(static) if (m * n > 8192)
    for (int64_t r = 0; r < m; r++)
        epilogue((float *)y->data + r * y->pitch, y->pitch, 1, n, bias, activation);
}

/* The CPU leaves it to the front's two operations. */
bool sl_cpu_linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                       const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    (void)ctx, (void)x, (void)y, (void)a, (void)w, (void)b, (void)gate;
    return false;
}

/* y = y * xs[row] * ws[column] + b */
static void scale_up(const sl_tensor *y, const float *xs, const float *ws, const float *b)
{
    const int64_t m = y->shape[0], n = y->shape[1];
#pragma omp parallel for schedule(static) if (m * n > 8192)
    for (int64_t r = 0; r < m; r++) {
        float *t = (float *)y->data + r * y->pitch;
        for (int64_t c = 0; c < n; c++) t[c] = t[c] * xs[r] * ws[c];
        if (b)
            for (int64_t c = 0; c < n; c++) t[c] += b[c];
    }
}

/* The codes are multiplied as floats, in pieces of at most MOST rows, whole granules. */
void sl_cpu_linear_eight(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x, const sl_eight *w,
                         const sl_tensor *b)
{
    const int64_t m = x->codes.shape[0], k = x->codes.shape[1], n = w->codes.shape[0],
                  at_once = sl_smaller(m, MOST);
    if (!m || !n) return;
    float *floats = sl_cpu_scratch(SL_SCRATCH_EIGHT, (size_t)(at_once * k) * sizeof *floats);
    if (!floats) {
        sl_ctx_fail(ctx, SL_NOMEM, "linear_eight: no memory for %lld x %lld numbers",
                    (long long)at_once, (long long)k);
        return;
    }
    for (int64_t at = 0; at < m && !ctx->err.code; at += at_once) {
        const int64_t rows = sl_smaller(at_once, m - at);
        const sl_tensor yr = sl_rows(y, at, rows), xr = sl_view2(floats, SL_F32, rows, k);
        const uint8_t *codes = (const uint8_t *)x->codes.data + at * k;
#pragma omp parallel for schedule(static) if (rows * k > 32768)
        for (int64_t r = 0; r < rows; r++)
            sl_cpu_to_floats(floats + r * k, codes + r * k, SL_E4M3, k);
        if (is_many(ctx, m)) many_rows(ctx, &yr, &xr, &w->codes, NULL, SL_ACT_NONE);
        else few_rows(&yr, &xr, &w->codes);
        scale_up(&yr, (const float *)x->scale.data + at, w->scale.data, b ? b->data : NULL);
    }
}
