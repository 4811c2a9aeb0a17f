/* attention_eight.c - attention with scores of 8-bit integers and values of e4m3, a block of keys
 * after the other: plain loops over the numbers that a GPU multiplies, in float32.
 *
 * Weights of a row are 2^(score - top + START). `top` is the largest of the row's first block, as
 * on a GPU (attention_eight.cu), until a later block holds a weight above 448, the largest code:
 * then it is that block's largest, and what was summed is scaled down. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

#include "common/e4m3.h"
#include "kernels/cpu/vmath.h"

enum { BLOCK = SL_EIGHT_KEYS, QUERIES = 32 };
static const float START = 3, LN_2 = 0.69314718056f, LOG2_E = 1.44269504089f;

/* ---- codes ---- */

/* The larger magnitude; NaN is the largest of all. */
static float larger(float m, float x)
{
    x = fabsf(x);
    return x > m || isnan(x) ? x : m;
}

static float at_least_tiny(float m)
{
    return m < 0x1p-100f ? 0x1p-100f : m; /* its inverse is finite; NaN stays */
}

static int8_t whole(float x)
{
    return isnan(x) ? 0 : (int8_t)lrintf(x < -127 ? -127 : x > 127 ? 127 : x);
}

static void mean_of_columns(float *mean, const sl_tensor *x, int64_t first, int64_t cols)
{
    for (int64_t c = first; c < first + cols; c++) {
        double sum = 0;
        for (int64_t r = 0; r < x->shape[0]; r++) sum += ((const float *)x->data)[r * x->pitch + c];
        mean[c] = (float)(sum / (double)x->shape[0]);
    }
}

static void code_block_of_keys(const sl_keys_eight *y, const sl_tensor *k, int64_t head, int64_t d,
                               int64_t block)
{
    const int64_t w = k->shape[1], from = block * BLOCK,
                  n = y->rows - from < BLOCK ? y->rows - from : BLOCK;
    const float *mean = (const float *)y->k_mean.data + head * d;
    int8_t *codes = (int8_t *)y->k.data + from * w + head * d;
    float most = 0;
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < d; c++)
            most = larger(most,
                          ((const float *)k->data)[(from + r) * k->pitch + head * d + c] - mean[c]);
    most = at_least_tiny(most);
    ((float *)y->k_scale.data)[head * y->k_scale.shape[1] + block] = most / 127;
    for (int64_t r = 0; r < BLOCK; r++)
        for (int64_t c = 0; c < d; c++)
            codes[r * w + c] =
                r < n ? whole((((const float *)k->data)[(from + r) * k->pitch + head * d + c] -
                               mean[c]) *
                              (127 / most))
                      : 0;
}

static void code_values(const sl_keys_eight *y, const sl_tensor *v, int64_t c)
{
    const int64_t w = v->shape[1], n = y->rows;
    const float *x = (const float *)v->data + c, mean = ((const float *)y->v_mean.data)[c];
    float most = 0;
    for (int64_t r = 0; r < n; r++) most = larger(most, x[r * v->pitch] - mean);
    most = at_least_tiny(most);
    ((float *)y->v_scale.data)[c] = most / SL_E4M3_MOST;
    for (int64_t r = 0; r < y->v.shape[0]; r++)
        ((uint8_t *)y->v.data)[r * w + c] =
            r < n ? sl_to_e4m3((x[r * v->pitch] - mean) * (SL_E4M3_MOST / most)) : 0;
}

void sl_cpu_code_keys(sl_ctx *ctx, const sl_keys_eight *y, const sl_tensor *k, const sl_tensor *v,
                      int heads)
{
    const int64_t d = k->shape[1] / heads;
    (void)ctx;
#pragma omp parallel for schedule(dynamic)
    for (int64_t h = 0; h < heads; h++) {
        mean_of_columns(y->k_mean.data, k, h * d, d);
        mean_of_columns(y->v_mean.data, v, h * d, d);
        for (int64_t b = 0; b < y->k_scale.shape[1]; b++) code_block_of_keys(y, k, h, d, b);
        for (int64_t c = h * d; c < (h + 1) * d; c++) code_values(y, v, c);
    }
}

/* Row r of head h, its scale times `by`. */
static void code_query(const sl_queries_eight *y, const sl_tensor *q, int64_t r, int64_t h,
                       int64_t d, float by)
{
    const float *x = (const float *)q->data + r * q->pitch + h * d;
    int8_t *codes = (int8_t *)y->codes.data + r * q->shape[1] + h * d;
    float most = 0;
    for (int64_t c = 0; c < d; c++) most = larger(most, x[c]);
    most = at_least_tiny(most);
    ((float *)y->scale.data)[r * y->scale.shape[1] + h] = most / 127 * by;
    for (int64_t c = 0; c < d; c++) codes[c] = whole(x[c] * (127 / most));
}

void sl_cpu_code_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *q, int heads,
                         float scale)
{
    const int64_t n = q->shape[0], d = q->shape[1] / heads;
    (void)ctx;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < heads; h++) code_query(y, q, r, h, d, scale * LOG2_E);
}

/* The CPU leaves it to the front's two operations. */
bool sl_cpu_rmsnorm_rope_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *x,
                                 const sl_tensor *w, float eps, const sl_tensor *cos,
                                 const sl_tensor *sin, int heads, float scale)
{
    (void)ctx, (void)y, (void)x, (void)w, (void)eps, (void)cos, (void)sin, (void)heads, (void)scale;
    return false;
}

/* ---- attention ---- */

typedef struct {
    float top, sum; /* of weights that are not rounded */
    float *acc;     /* [d] */
} row;

/* One row of queries against a block of n keys, values [n][d]. */
static void take_block(row *w, const int8_t *q, const int8_t *k, int64_t pitch, const float *v,
                       int64_t n, int64_t d, float scale, bool first)
{
    float score[BLOCK], largest = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        int32_t dot = 0;
        for (int64_t c = 0; c < d; c++) dot += q[c] * k[i * pitch + c];
        score[i] = (float)dot * scale;
        largest = score[i] > largest ? score[i] : largest;
    }
    largest -= START;
    if (first) w->top = largest;
    else if (!(largest + START - w->top <= 8.8073549f)) { /* log2(448) */
        const float top = largest > w->top ? largest : w->top,
                    keep = sl_expf((w->top - top) * LN_2);
        for (int64_t c = 0; c < d; c++) w->acc[c] *= keep;
        w->sum *= keep, w->top = top;
    }
    for (int64_t i = 0; i < n; i++) {
        const float p = sl_expf((score[i] - w->top) * LN_2), code = sl_from_e4m3(sl_to_e4m3(p));
        w->sum += p;
        for (int64_t c = 0; c < d; c++) w->acc[c] += code * v[i * d + c];
    }
}

static bool attend(const sl_tensor *o, const sl_queries_eight *q, const sl_keys_eight *keys,
                   int64_t h, int64_t d, int64_t from, int64_t n)
{
    const int64_t w = o->shape[1];
    float *mem = sl_cpu_scratch(SL_SCRATCH_EIGHT, (size_t)(BLOCK * d + QUERIES * d) * sizeof *mem),
          *v = mem;
    row rows[QUERIES];
    if (!mem) return false;
    for (int64_t r = 0; r < n; r++) {
        rows[r] = (row){.acc = mem + (BLOCK + r) * d};
        memset(rows[r].acc, 0, (size_t)d * sizeof *mem);
    }
    for (int64_t b = 0; b < keys->k_scale.shape[1]; b++) {
        const int64_t at = b * BLOCK, m = keys->rows - at < BLOCK ? keys->rows - at : BLOCK;
        const float k_scale = ((const float *)keys->k_scale.data)[h * keys->k_scale.shape[1] + b];
        for (int64_t i = 0; i < m; i++)
            for (int64_t c = 0; c < d; c++)
                v[i * d + c] =
                    sl_from_e4m3(((const uint8_t *)keys->v.data)[(at + i) * w + h * d + c]);
        for (int64_t r = 0; r < n; r++)
            take_block(&rows[r], (const int8_t *)q->codes.data + (from + r) * w + h * d,
                       (const int8_t *)keys->k.data + at * w + h * d, w, v, m, d,
                       ((const float *)q->scale.data)[(from + r) * q->scale.shape[1] + h] * k_scale,
                       b == 0);
    }
    for (int64_t r = 0; r < n; r++) {
        float *to = (float *)o->data + (from + r) * o->pitch + h * d;
        for (int64_t c = 0; c < d; c++)
            to[c] = rows[r].acc[c] / rows[r].sum * ((const float *)keys->v_scale.data)[h * d + c] +
                    ((const float *)keys->v_mean.data)[h * d + c];
    }
    return true;
}

void sl_cpu_attention_eight(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                            const sl_keys_eight *keys, int heads, int parts, const int64_t *first,
                            int last, sl_done *done)
{
    const int64_t n = o->shape[0], d = o->shape[1] / heads, groups = (n + QUERIES - 1) / QUERIES;
    bool failed = false;
    (void)parts, (void)first, (void)last, (void)done; /* nobody else works while this thread does */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < heads * groups; i++) {
        const int64_t h = i / groups, from = i % groups * QUERIES,
                      rows = n - from < QUERIES ? n - from : QUERIES;
        if (!attend(o, q, keys, h, d, from, rows)) {
#pragma omp atomic write
            failed = true;
        }
    }
    if (failed) sl_ctx_fail(ctx, SL_NOMEM, "attention in 8 bits: no memory for a block of keys");
}
