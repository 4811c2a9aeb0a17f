/* attention.c - softmax(q k^T * scale + bias) v, a block of queries against blocks of
 * keys with a running softmax.
 *
 * Everything is held transposed, with queries side by side in vector lanes: a PANEL of
 * queries times a tile of keys stays in registers while the loop runs over the head's
 * dimensions, so the maximum, exponential and sum of the softmax run down the lanes and
 * never across them, and keys and values are used as they lie in memory, one broadcast
 * number at a time. The scores of one PANEL against one block of keys are all that is
 * ever stored of [Nq, Nk].
 * Tried: OpenBLAS's sgemm for both products inside the parallel loop; it reached 60 % of
 * its own large-matrix rate at 128 wide heads, this 85 % (tests/bench_ops.c). */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vmath.h"

enum {
    PANEL = 2 * LANES, /* queries in two vectors */
    /* rows of two vectors that fill the registers but for two and a broadcast */
    TILE = REGISTERS == 32 ? 12 : 6,
    QUERIES = 128,
    PANELS = QUERIES / PANEL
};

/* out[r][0..PANEL) (+)= sum over i of a[r * row + i * step] * b[i][0..PANEL) for r < rows
 * <= TILE; rows is a constant where it is called. */
static inline __attribute__((always_inline)) void tile(const int rows, float *out, const float *a,
                                                       int64_t row, int64_t step, const float *b,
                                                       int64_t n, bool add)
{
    vec acc[TILE][2];
    for (int r = 0; r < rows; r++) {
        acc[r][0] = add ? *(const vec *)(out + r * PANEL) : (vec){0};
        acc[r][1] = add ? *(const vec *)(out + r * PANEL + LANES) : (vec){0};
    }
    for (int64_t i = 0; i < n; i++) {
        vec b0 = *(const vec *)(b + i * PANEL), b1 = *(const vec *)(b + i * PANEL + LANES);
        for (int r = 0; r < rows; r++) {
            vec x = a[r * row + i * step] - (vec){0};
            acc[r][0] = FMA(x, b0, acc[r][0]);
            acc[r][1] = FMA(x, b1, acc[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        *(vec *)(out + r * PANEL) = acc[r][0];
        *(vec *)(out + r * PANEL + LANES) = acc[r][1];
    }
}

/* As tile for any number of rows. */
static void product(float *out, int64_t rows, const float *a, int64_t row, int64_t step,
                    const float *b, int64_t n, bool add)
{
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE)
        tile(TILE, out + r * PANEL, a + r * row, row, step, b, n, add);
    for (; r + 4 <= rows; r += 4) tile(4, out + r * PANEL, a + r * row, row, step, b, n, add);
    for (; r < rows; r++) tile(1, out + r * PANEL, a + r * row, row, step, b, n, add);
}

/* One call's arguments, and one thread's scratch. */
typedef struct {
    const sl_tensor *o, *q, *k, *v;
    const float *bias; /* [heads, queries + keys - 1] or NULL */
    float scale;
    bool accumulate;
    int64_t queries, keys, d, block; /* block: keys taken at a time */
} job;
typedef struct {
    float *q, *acc;   /* [PANELS, d, PANEL]: queries times scale; weighted sums of values */
    float *score;     /* [block, PANEL] */
    float *k, *v;     /* [block, d] */
    float *top, *sum; /* [QUERIES]: largest score so far, sum of exp(score - top) */
} scratch;

static size_t scratch_floats(int64_t d, int64_t block)
{
    return (size_t)(2 * QUERIES * d + block * PANEL + 2 * block * d + 2 * QUERIES);
}

static scratch carve(float *at, int64_t d, int64_t block)
{
    scratch s;
    s.q = at;
    s.acc = s.q + QUERIES * d;
    s.score = s.acc + QUERIES * d;
    s.k = s.score + block * PANEL;
    s.v = s.k + block * d;
    s.top = s.v + block * d;
    s.sum = s.top + QUERIES;
    return s;
}

/* The scores of one panel, in place, to exp(score - top): top, sum and acc are brought up
 * to date. */
static void softmax(float *score, int64_t keys, float *top, float *sum, float *acc, int64_t d)
{
    float high[PANEL], total[PANEL], fade[PANEL];
    memcpy(high, top, sizeof high);
    for (int64_t i = 0; i < keys; i++)
        for (int l = 0; l < PANEL; l++)
            high[l] = score[i * PANEL + l] > high[l] ? score[i * PANEL + l] : high[l];
    for (int l = 0; l < PANEL; l++) {
        fade[l] = sl_expf(top[l] - high[l]);
        total[l] = sum[l] * fade[l];
    }
    for (int64_t i = 0; i < keys; i++)
        for (int l = 0; l < PANEL; l++) {
            float p = sl_expf(score[i * PANEL + l] - high[l]);
            score[i * PANEL + l] = p;
            total[l] += p;
        }
    for (int64_t i = 0; i < d; i++)
        for (int l = 0; l < PANEL; l++) acc[i * PANEL + l] *= fade[l];
    memcpy(top, high, sizeof high);
    memcpy(sum, total, sizeof total);
}

/* Queries first .. first + n of head h, n <= QUERIES. */
static void query_block(const job *j, const scratch *s, int64_t h, int64_t first, int64_t n)
{
    int64_t d = j->d, panels = (n + PANEL - 1) / PANEL;
    memset(s->q, 0, (size_t)(panels * PANEL * d) * sizeof *s->q);
    memset(s->acc, 0, (size_t)(panels * PANEL * d) * sizeof *s->acc);
    for (int64_t i = 0; i < n; i++) {
        const float *q = (const float *)j->q->data + (first + i) * j->q->pitch + h * d;
        float *to = s->q + i / PANEL * PANEL * d + i % PANEL;
        for (int64_t c = 0; c < d; c++) to[c * PANEL] = q[c] * j->scale;
    }
    for (int64_t i = 0; i < QUERIES; i++) {
        s->top[i] = -INFINITY;
        s->sum[i] = 0;
    }
    for (int64_t at = 0; at < j->keys; at += j->block) {
        int64_t m = j->keys - at < j->block ? j->keys - at : j->block;
        /* together, so that rows far apart do not fight for the same cache lines */
        for (int64_t i = 0; i < m; i++) {
            memcpy(s->k + i * d, (const float *)j->k->data + (at + i) * j->k->pitch + h * d,
                   (size_t)d * sizeof(float));
            memcpy(s->v + i * d, (const float *)j->v->data + (at + i) * j->v->pitch + h * d,
                   (size_t)d * sizeof(float));
        }
        for (int64_t p = 0; p < panels; p++) {
            float *acc = s->acc + p * PANEL * d;
            product(s->score, m, s->k, d, 1, s->q + p * PANEL * d, d, false);
            if (j->bias) {
                const float *bias = j->bias + h * (j->queries + j->keys - 1) + at -
                                    (first + p * PANEL) + j->queries - 1;
                int64_t lanes = n - p * PANEL < PANEL ? n - p * PANEL : PANEL;
                for (int64_t i = 0; i < m; i++)
                    for (int64_t l = 0; l < lanes; l++) s->score[i * PANEL + l] += bias[i - l];
            }
            softmax(s->score, m, s->top + p * PANEL, s->sum + p * PANEL, acc, d);
            product(acc, d, s->v, 1, d, s->score, m, true);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        float *o = (float *)j->o->data + (first + i) * j->o->pitch + h * d;
        const float *acc = s->acc + i / PANEL * PANEL * d + i % PANEL;
        for (int64_t c = 0; c < d; c++) {
            float r = acc[c * PANEL] / s->sum[i];
            o[c] = j->accumulate ? o[c] + r : r;
        }
    }
}

void sl_cpu_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                      const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                      bool accumulate)
{
    job j = {o,     q,          k,           v,           bias ? bias->data : NULL,
             scale, accumulate, q->shape[0], k->shape[0], q->shape[1] / heads,
             192};
    /* keys and values of a block stay in the L2 cache */
    while (j.block > TILE && j.block * j.d > 192 * 128) j.block -= TILE;
    int64_t blocks = (j.queries + QUERIES - 1) / QUERIES;
    bool failed = false;
#pragma omp parallel for schedule(dynamic) if (blocks * heads > 1)
    for (int64_t b = 0; b < blocks * heads; b++) {
        int64_t first = b % blocks * QUERIES,
                n = j.queries - first < QUERIES ? j.queries - first : QUERIES;
        float *memory =
            sl_cpu_scratch(SL_SCRATCH_ATTENTION, scratch_floats(j.d, j.block) * sizeof *memory);
        if (memory) {
            scratch s = carve(memory, j.d, j.block);
            query_block(&j, &s, b / blocks, first, n);
        } else {
#pragma omp atomic write
            failed = true;
        }
    }
    if (failed)
        sl_ctx_fail(ctx, SL_NOMEM,
                    "attention: no memory for a block of %d queries and %lld keys of %lld", QUERIES,
                    (long long)j.block, (long long)j.d);
}

/* The CPU leaves it to the front's two calls. */
bool sl_cpu_attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                          const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                          float scale)
{
    (void)ctx, (void)o, (void)q, (void)k1, (void)v1, (void)k2, (void)v2, (void)heads, (void)scale;
    return false;
}

bool sl_cpu_attention_parts(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                            const sl_tensor *v, int heads, float scale, int parts,
                            const int64_t *first, int last, sl_done *done)
{
    (void)ctx, (void)o, (void)q, (void)k, (void)v, (void)heads, (void)scale;
    (void)parts, (void)first, (void)last, (void)done;
    return false; /* nobody else works while this thread does */
}
