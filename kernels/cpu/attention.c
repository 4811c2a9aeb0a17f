/* attention.c - softmax(q k^T * scale + bias) v, a block of queries against blocks of keys with a running softmax. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <math.h>

#include "kernels/cpu/vmath.h"

#define QUERIES 64
#define KEYS 256

typedef struct {
    const sl_tensor *o, *q, *k, *v;
    const float *bias; /* of this head, [Nq + Nk - 1], or NULL */
    float scale;
    bool accumulate;
} job;

/* Queries first .. first+n of head h. s [QUERIES, KEYS] and acc [QUERIES, D] are scratch. */
static void block(const job *j, int64_t h, int64_t d, int64_t first, int64_t n, float *s, float *acc)
{
    int64_t keys = j->k->shape[0], queries = j->q->shape[0];
    const float *q = (const float *)j->q->data + first * j->q->pitch + h * d;
    float top[QUERIES], total[QUERIES];
    for (int64_t i = 0; i < n; i++) top[i] = -INFINITY, total[i] = 0;
    for (int64_t i = 0; i < n * d; i++) acc[i] = 0;
    for (int64_t at = 0; at < keys; at += KEYS) {
        int64_t m = keys - at < KEYS ? keys - at : KEYS;
        const float *k = (const float *)j->k->data + at * j->k->pitch + h * d;
        const float *v = (const float *)j->v->data + at * j->v->pitch + h * d;
        int ldk = (int)(keys > 1 ? j->k->pitch : d), ldv = (int)(keys > 1 ? j->v->pitch : d);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)m, (int)d, j->scale, q,
                    (int)(queries > 1 ? j->q->pitch : d), k, ldk, 0, s, KEYS);
        for (int64_t i = 0; i < n; i++) {
            float *row = s + i * KEYS, high = top[i], sum = 0;
            if (j->bias) {
                const float *bias = j->bias + at - (first + i) + queries - 1;
                for (int64_t c = 0; c < m; c++) row[c] += bias[c];
            }
            for (int64_t c = 0; c < m; c++) high = row[c] > high ? row[c] : high;
            for (int64_t c = 0; c < m; c++) row[c] = sl_expf(row[c] - high), sum += row[c];
            float fade = sl_expf(top[i] - high);
            top[i] = high;
            total[i] = total[i] * fade + sum;
            for (int64_t c = 0; c < d; c++) acc[i * d + c] *= fade;
        }
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)d, (int)m, 1, s, KEYS, v, ldv, 1, acc, (int)d);
    }
    for (int64_t i = 0; i < n; i++) {
        float *o = (float *)j->o->data + (first + i) * j->o->pitch + h * d;
        for (int64_t c = 0; c < d; c++) o[c] = acc[i * d + c] / total[i] + (j->accumulate ? o[c] : 0);
    }
}

void sl_cpu_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, int heads,
                      float scale, const sl_tensor *bias, bool accumulate)
{
    int64_t queries = q->shape[0], d = q->shape[1] / heads, blocks = (queries + QUERIES - 1) / QUERIES;
    bool failed = false;
#pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < blocks * heads; b++) {
        int64_t h = b / blocks, first = b % blocks * QUERIES, n = queries - first < QUERIES ? queries - first : QUERIES;
        float *s = sl_cpu_scratch(SL_SCRATCH_ATTENTION, (size_t)(QUERIES * (KEYS + d)) * sizeof *s);
        job j = {o, q, k, v, bias ? (const float *)bias->data + h * (queries + k->shape[0] - 1) : NULL, scale, accumulate};
        if (s)
            block(&j, h, d, first, n, s, s + QUERIES * KEYS);
        else
#pragma omp atomic write
            failed = true;
    }
    if (failed) sl_ctx_fail(ctx, SL_NOMEM, "attention: no memory for a block of %d x %d", QUERIES, KEYS);
}
