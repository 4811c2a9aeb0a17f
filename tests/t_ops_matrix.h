/* t_ops_matrix.h - every operation but the VAE's, on any body: worked values, then a
 * double reference over odd sizes, views and aliases.
 *
 * Each case takes the body under test as its state, makes its tensors on that body's
 * device and reads results back through it, so the list CASES runs unchanged on any
 * sl_ops. Inputs are rounded to the tensor's dtype before the reference sees them; a
 * limit is `units` half-units in the last place of the activations' dtype, of the largest
 * value wanted. Where no other reason stands beside it, `units` counts the operation's
 * own roundings: 0 moves numbers, 1 or 2 add and multiply, 8 a norm (sums, root,
 * products). */
#ifndef T_OPS_MATRIX_H
#define T_OPS_MATRIX_H

#include "tests/t_cases.h"

#include "kernels/comm.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vmath.h"

/* ---- tensors on the body under test, with their values on the host ---- */

typedef struct {
    sl_ctx ctx;
    sl_dtype act;
    uint64_t seed;
    void *owned[4096];
    int count;
} rig;

typedef struct {
    sl_tensor t; /* what the operation gets: columns pad .. pad + cols of `whole`, or `whole` */
    sl_tensor whole;
    int64_t pad, n; /* n: elements of t */
    float *x;       /* input: t's values, dense */
} arg;

static rig *rig_open(void **state)
{
    sl_err err;
    rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->act = ((const sl_ops *)*state)->act;
    r->seed = 1;
    if (sl_ctx_open(&r->ctx, *state, (size_t)256 << 20, &err)) fail_msg("%s", err.msg);
    return r;
}

static void *own(rig *r, size_t bytes)
{
    assert_true(r->count < 4096);
    void *p = calloc(1, bytes + 1);
    assert_non_null(p);
    return r->owned[r->count++] = p;
}

/* Forget the tensors so far: the next combination starts with an empty arena. */
static void rig_clear(rig *r)
{
    while (r->count) free(r->owned[--r->count]);
    sl_release(&r->ctx, 0);
}

static void rig_close(rig *r)
{
    sl_err err = {0};
    T_OK(sl_ctx_error(&r->ctx, &err));
    rig_clear(r);
    sl_ctx_close(&r->ctx);
    free(r);
}

static void put(rig *r, const sl_tensor *t, const float *x)
{
    void *raw = own(r, sl_bytes(t));
    assert_int_equal(sl_from_floats(raw, t->dtype, x, sl_count(t), NULL), SL_OK);
    sl_upload(&r->ctx, t, raw);
}

static float *get(rig *r, const sl_tensor *t)
{
    void *raw = own(r, sl_bytes(t));
    float *x = own(r, (size_t)sl_count(t) * sizeof *x);
    sl_download(&r->ctx, raw, t);
    assert_int_equal(sl_to_floats(x, raw, t->dtype, sl_count(t), NULL), SL_OK);
    return x;
}

/* A tensor of this shape holding `x` rounded to dtype (NULL: random numbers). */
static arg input(rig *r, sl_dtype dtype, int rank, const int64_t *shape, const float *x)
{
    arg a = {.t = sl_new(&r->ctx, dtype, rank, shape)};
    a.whole = a.t;
    a.n = sl_count(&a.t);
    a.x = own(r, (size_t)a.n * sizeof *a.x);
    if (x) memcpy(a.x, x, (size_t)a.n * sizeof *x);
    else t_fill(a.x, a.n, r->seed++);
    put(r, &a.t, a.x);
    a.x = get(r, &a.t);
    return a;
}
#define IN(r, dtype, ...)                                                                          \
    input(r, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                     \
          (int64_t[]){__VA_ARGS__}, NULL)
#define GIVEN(r, dtype, x, ...)                                                                    \
    input(r, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                     \
          (int64_t[]){__VA_ARGS__}, x)

/* A random [rows, cols] in the middle of a wider matrix, `pad` columns on each side. */
static arg columns(rig *r, sl_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    arg w = IN(r, dtype, rows, cols + 2 * pad), a = {.whole = w.t, .pad = pad, .n = rows * cols};
    a.t = sl_cols(&a.whole, pad, cols);
    a.x = own(r, (size_t)a.n * sizeof *a.x);
    for (int64_t i = 0; i < rows; i++)
        memcpy(a.x + i * cols, w.x + i * (cols + 2 * pad) + pad, (size_t)cols * sizeof *a.x);
    return a;
}

/* Where a result goes: filled with a number that nothing computes, around it too. */
static arg output(rig *r, sl_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    arg a = columns(r, dtype, rows, cols, pad);
    float *x = own(r, (size_t)sl_count(&a.whole) * sizeof *x);
    for (int64_t i = 0; i < sl_count(&a.whole); i++) x[i] = SENTINEL;
    put(r, &a.whole, x);
    return a;
}

/* t's values now, dense; what lies beside its columns must be untouched. */
static float *values(rig *r, const arg *a)
{
    float *all = get(r, &a->whole);
    if (!a->pad) return all;
    int64_t rows = a->t.shape[0], cols = a->t.shape[1], width = cols + 2 * a->pad;
    float *x = own(r, (size_t)(rows * cols) * sizeof *x);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < width; c++) {
            if (c >= a->pad && c < a->pad + cols) x[i * cols + c - a->pad] = all[i * width + c];
            else if (a->whole.data != NULL && all[i * width + c] != SENTINEL)
                fail_msg("column %lld beside the result was written", (long long)c);
        }
    return x;
}

/* `floor`: the size of what went into the last step, where that may be more than what
 * came out. */
static void check_from(rig *r, const arg *got, const double *want, double units, double floor,
                       const char *what)
{
    sl_err err = {0};
    float *x = values(r, got);
    if (!sl_ok(&r->ctx)) T_OK(sl_ctx_error(&r->ctx, &err));
    double big = floor, eps = got->t.dtype == SL_F32   ? 0x1p-24
                              : got->t.dtype == SL_F16 ? 0x1p-11
                                                       : 0x1p-8;
    for (int64_t i = 0; i < got->n; i++) big = fabs(want[i]) > big ? fabs(want[i]) : big;
    for (int64_t i = 0; i < got->n; i++)
        if (!(fabs(x[i] - want[i]) <= units * eps * big))
            fail_msg("%s: element %lld is %.9g, want %.9g (limit %.3g)", what, (long long)i,
                     (double)x[i], want[i], units * eps * big);
}

static void check(rig *r, const arg *got, const double *want, double units, const char *what)
{
    check_from(r, got, want, units, 0, what);
}

static double *doubles(rig *r, int64_t n)
{
    return own(r, (size_t)n * sizeof(double));
}

/* The activations' dtype, then F32 where that is another: what LayerNorm, linear and
 * attention take. How many. */
static int widths(const rig *r, sl_dtype d[2])
{
    d[0] = r->act;
    d[1] = SL_F32;
    return r->act == SL_F32 ? 1 : 2;
}

/* Matrices may have any float dtype. */
static bool stored(const rig *r)
{
    return r->ctx.ops->stored_matrices;
}

static const int64_t ROWS[] = {0, 1, 3, 5}, DIMS[] = {8, 96, 128, 5120};

/* ---- linear ---- */

static double activated(double x, sl_activation a)
{
    switch (a) {
    case SL_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case SL_ACT_GELU_ERF: return 0.5 * x * (1 + erf(x / sqrt(2)));
    case SL_ACT_SILU: return x / (1 + exp(-x));
    default: return x;
    }
}

static void linear_case(rig *r, int64_t m, int64_t n, int64_t k, sl_dtype dtype, bool bias,
                        sl_activation act, int64_t pad)
{
    arg x = columns(r, r->act, m, k, pad), w = IN(r, dtype, n, k), b = IN(r, SL_F32, n),
        y = output(r, r->act, m, n, pad);
    double *want = doubles(r, m * n), largest = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double s = bias ? b.x[j] : 0;
            for (int64_t c = 0; c < k; c++) s += (double)x.x[i * k + c] * w.x[j * k + c];
            largest = fmax(largest, fabs(s));
            want[i * n + j] = activated(s, act);
        }
    sl_linear(&r->ctx, &y.t, &x.t, &w.t, bias ? &b.t : NULL, act);
    /* 16: sums of up to 5120 products in float32 stray by a few units from the exact one */
    check_from(r, &y, want, 16, largest,
               say("linear %lld x %lld x %lld, %s weights, activation %d, pad %lld", (long long)m,
                   (long long)n, (long long)k, sl_dtype_tag(dtype), (int)act, (long long)pad));
    rig_clear(r);
}

static void linear_of_worked_values(void **state)
{
    rig *r = rig_open(state);
    arg x = GIVEN(r, r->act, ((float[]){1, 2, 3, 4, 5, 6}), 2, 3),
        w = GIVEN(r, r->act, ((float[]){1, 0, 0, 0, 1, -1}), 2, 3);
    arg b = GIVEN(r, SL_F32, ((float[]){10, 20}), 2), y = output(r, r->act, 2, 2, 0);
    sl_linear(&r->ctx, &y.t, &x.t, &w.t, &b.t, SL_ACT_NONE);
    check(r, &y, (double[]){11, 19, 14, 19}, 0, "linear");
    rig_close(r);
}

static void linear_is_the_double_product(void **state)
{
    rig *r = rig_open(state);
    static const int64_t M[] = {0, 1, 3, 5, 24, 25, 33}, N[] = {1, 8, 96, 515},
                         K[] = {1, 8, 36, 128, 2053};
    static const sl_dtype ANY[] = {SL_F32, SL_BF16, SL_F16};
    int turn = 0;
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        sl_dtype dtype = stored(r) ? ANY[turn % 3] : r->act;
        linear_case(r, M[i], N[j], K[l], dtype, turn % 2, (sl_activation)(turn / 3 % 4),
                    turn % 5 == 0 ? 3 : 0);
        turn++;
    }
    EACH(i, ANY)
    linear_case(r, 5, 24, 5120, stored(r) ? ANY[i] : r->act, true, SL_ACT_NONE, 8);
    linear_case(r, 1, 64, 5120, r->act, true, SL_ACT_SILU, 0);
    linear_case(r, 2100, 40, 16, r->act, true, SL_ACT_GELU_TANH, 0);
    linear_case(r, 1025, 9, 8, stored(r) ? SL_BF16 : r->act, true, SL_ACT_GELU_ERF, 1);
    rig_close(r);
}

static void linear_of_float32_everywhere(void **state)
{
    /* the time embedder, CLIP: F32 in, F32 weights, F32 out on every device */
    rig *r = rig_open(state);
    static const int64_t M[] = {1, 5, 33, 257};
    EACH(i, M) for (int act = 0; act < 4; act++)
    {
        int64_t m = M[i], pad = act == 3 ? 3 : 0;
        arg x = columns(r, SL_F32, m, 256, pad), w = IN(r, SL_F32, 41, 256), b = IN(r, SL_F32, 41),
            y = output(r, SL_F32, m, 41, pad);
        double *want = doubles(r, m * 41), largest = 0;
        for (int64_t j = 0; j < m * 41; j++) {
            double s = b.x[j % 41];
            for (int64_t c = 0; c < 256; c++)
                s += (double)x.x[j / 41 * 256 + c] * w.x[j % 41 * 256 + c];
            largest = fmax(largest, fabs(s));
            want[j] = activated(s, (sl_activation)act);
        }
        sl_linear(&r->ctx, &y.t, &x.t, &w.t, &b.t, (sl_activation)act);
        check_from(r, &y, want, 16, largest,
                   say("linear of %lld rows in F32, activation %d", (long long)m, act));
        rig_clear(r);
    }
    rig_close(r);
}

static void linear_of_columns_side_by_side(void **state)
{
    /* x and y are different columns of one matrix: no overlap, and no neighbour is
     * touched */
    rig *r = rig_open(state);
    arg both = IN(r, r->act, 20, 48), w = IN(r, r->act, 16, 32);
    sl_tensor x = sl_cols(&both.t, 0, 32), y = sl_cols(&both.t, 32, 16);
    sl_linear(&r->ctx, &y, &x, &w.t, NULL, SL_ACT_NONE);
    double *want = doubles(r, 20 * 48);
    for (int64_t i = 0; i < 20; i++)
        for (int64_t j = 0; j < 48; j++) {
            want[i * 48 + j] = j < 32 ? both.x[i * 48 + j] : 0;
            for (int64_t c = 0; j >= 32 && c < 32; c++)
                want[i * 48 + j] += (double)both.x[i * 48 + c] * w.x[(j - 32) * 32 + c];
        }
    check(r, &both, want, 16, "linear within one matrix");
    rig_close(r);
}

/* ---- rows of a team ---- */

/* One layer of the DiT: what its product's rows are, and how they end. */
typedef struct {
    int64_t m, n, k, pad;
    sl_dtype dtype;
    bool bias, adds, gated;
    sl_activation act;
} product;

typedef struct {
    arg x, w, b, gate, start, y, work; /* y = start + ... where the product adds */
} operands;

static operands operands_of(rig *r, const product *p)
{
    return (operands){.x = columns(r, r->act, p->m, p->k, p->pad),
                      .w = IN(r, p->dtype, p->n, p->k),
                      .b = IN(r, r->act, p->n),
                      .gate = IN(r, SL_F32, p->n),
                      .start = IN(r, r->act, p->m, p->n),
                      .y = output(r, r->act, p->m, p->n, p->adds ? 0 : p->pad),
                      .work = IN(r, r->act, p->m, p->n)};
}

/* Rows first .. first + rows, at most `chunk` in a product. */
static void multiply_rows(rig *r, const product *p, const operands *o, int64_t first, int64_t rows,
                          int64_t chunk)
{
    for (; rows > chunk; first += chunk, rows -= chunk) multiply_rows(r, p, o, first, chunk, chunk);
    const sl_tensor x = sl_rows(&o->x.t, first, rows), y = sl_rows(&o->y.t, first, rows),
                    work = sl_rows(&o->work.t, 0, rows);
    const sl_tensor *b = p->bias ? &o->b.t : NULL, *gate = p->gated ? &o->gate.t : NULL;
    if (p->adds) sl_linear_add(&r->ctx, &y, &work, &x, &o->w.t, b, gate);
    else sl_linear(&r->ctx, &y, &x, &o->w.t, b, p->act);
}

static void shares_case(rig *r, const product *p)
{
    static const int TEAMS[] = {2, 3, 4, 8};
    const operands o = operands_of(r, p);
    const size_t row = (size_t)p->n * sizeof(float);
    r->ctx.whole_rows = p->m;
    t_threads(1);
    if (p->adds) sl_copy(&r->ctx, &o.y.t, &o.start.t);
    multiply_rows(r, p, &o, 0, p->m, p->m);
    const float *want = values(r, &o.y);
    for (int threads = 1; threads <= (r->ctx.ops->host_memory ? 2 : 1); threads++) EACH(i, TEAMS)
        {
            t_threads(threads);
            sl_copy(&r->ctx, &o.y.t, &o.start.t);
            for (int k = 0; k < TEAMS[i]; k++) {
                const int granule = r->ctx.ops->row_granule;
                const sl_team team = {.size = TEAMS[i], .granule = granule};
                const sl_share of = sl_share_of(&team, p->m, k);
                multiply_rows(r, p, &o, of.first, of.rows, threads > 1 ? 4 * granule : of.rows);
            }
            const float *got = values(r, &o.y);
            for (int64_t at = 0; at < p->m; at++)
                if (memcmp(got + at * p->n, want + at * p->n, row))
                    fail_msg("%lld x %lld x %lld, %s weights, activation %d, pad %lld%s%s: row "
                             "%lld has other bits in a team of %d, %d threads",
                             (long long)p->m, (long long)p->n, (long long)p->k,
                             sl_dtype_tag(p->dtype), (int)p->act, (long long)p->pad,
                             p->adds ? ", added" : "", p->gated ? ", gated" : "", (long long)at,
                             TEAMS[i], threads);
        }
    rig_clear(r);
    r->ctx.whole_rows = 0;
}

/* Token counts that divide by no team, from fewer than ranks to 1/10 of 1280x720x81's; layers
 * narrow and wide, among them ones whose last columns are few. */
static void rows_of_a_share_have_the_bits_of_the_whole(void **state)
{
    static const int64_t M[] = {5, 20, 41, 97, 462, 1025, 1200, 2160, 7560};
    static const struct {
        int64_t n, k;
    } AT[] = {{64, 256}, {256, 144}, {320, 192}, {192, 320}, {515, 96}, {9, 2053}, {281, 1000}};
    static const sl_dtype ANY[] = {SL_BF16, SL_F32, SL_F16};
    rig *r = rig_open(state);
    int before = sl_cpu_threads(), turn = 0;
    EACH(i, M) EACH(j, AT)
    {
        const bool adds = turn % 5 > 2;
        const product p = {.m = M[i],
                           .n = AT[j].n,
                           .k = AT[j].k,
                           .pad = !adds && turn % 4 == 3 ? 8 : 0,
                           .dtype = stored(r) ? ANY[turn % 3] : r->act,
                           .bias = turn % 7 != 6,
                           .adds = adds,
                           .gated = turn % 5 == 3,
                           .act = (sl_activation)(turn / 2 % 4)};
        turn++;
        if (p.m > 3000 && p.n * p.k > 100000) continue; /* for the time it takes */
        shares_case(r, &p);
    }
    t_threads(before);
    rig_close(r);
}

/* ---- attention ---- */

typedef struct {
    int64_t nq, nk;
    int heads;
    int64_t d;
} sizes;

static void attention_reference(double *o, const float *q, const float *k, const float *v, sizes s,
                                double scale, const float *bias)
{
    int64_t w = s.heads * s.d;
    double *p = malloc((size_t)s.nk * sizeof *p);
    assert_non_null(p);
    for (int64_t h = 0; h < s.heads; h++)
        for (int64_t i = 0; i < s.nq; i++) {
            double top = -INFINITY, total = 0;
            for (int64_t j = 0; j < s.nk; j++) {
                p[j] = 0;
                for (int64_t c = 0; c < s.d; c++)
                    p[j] += (double)q[i * w + h * s.d + c] * k[j * w + h * s.d + c];
                p[j] = p[j] * scale + (bias ? bias[h * (s.nq + s.nk - 1) + j - i + s.nq - 1] : 0);
                top = p[j] > top ? p[j] : top;
            }
            for (int64_t j = 0; j < s.nk; j++) total += p[j] = exp(p[j] - top);
            for (int64_t c = 0; c < s.d; c++) {
                double sum = 0;
                for (int64_t j = 0; j < s.nk; j++) sum += p[j] / total * v[j * w + h * s.d + c];
                o[i * w + h * s.d + c] = sum;
            }
        }
    free(p);
}

static void attention_case(rig *r, sl_dtype dtype, sizes s, double scale, bool bias,
                           bool accumulate, int64_t pad)
{
    int64_t w = s.heads * s.d;
    arg q = columns(r, dtype, s.nq, w, pad), k = columns(r, dtype, s.nk, w, pad),
        v = columns(r, dtype, s.nk, w, 2 * pad);
    arg o = output(r, dtype, s.nq, w, pad), table = IN(r, SL_F32, s.heads, s.nq + s.nk - 1);
    double *want = doubles(r, s.nq * w);
    attention_reference(want, q.x, k.x, v.x, s, scale, bias ? table.x : NULL);
    if (accumulate)
        for (int64_t i = 0; i < s.nq * w; i++) want[i] += SENTINEL;
    sl_attention(&r->ctx, &o.t, &q.t, &k.t, &v.t, s.heads, (float)scale, bias ? &table.t : NULL,
                 accumulate);
    /* 32: scores reach 4 x sqrt(d), and their float32 rounding goes through exp; a bf16
     * body rounds the weights as well */
    check(r, &o, want, 32,
          say("attention %lld x %lld, %d heads x %lld, %s, bias %d, accumulate %d, pad %lld",
              (long long)s.nq, (long long)s.nk, s.heads, (long long)s.d, sl_dtype_tag(dtype), bias,
              accumulate, (long long)pad));
    rig_clear(r);
}

static void attention_is_the_double_softmax(void **state)
{
    rig *r = rig_open(state);
    static const sizes AT[] = {{0, 5, 2, 8},      {1, 1, 1, 8},     {1, 200, 2, 128},
                               {3, 5, 2, 32},     {5, 3, 1, 40},    {33, 17, 3, 64},
                               {130, 200, 2, 64}, {31, 385, 3, 80}, {129, 193, 2, 128},
                               {257, 257, 1, 80}, {7, 130, 1, 384}, {12, 13, 2, 6},
                               {9, 4, 5, 1},      {20, 24, 4, 6}};
    sl_dtype dtype[2];
    EACH(i, AT)
    for (int turn = 0, n = 4 * widths(r, dtype); turn < n; turn++)
        attention_case(r, dtype[turn / 4], AT[i], 2 / sqrt((double)AT[i].d), turn & 1, turn & 2,
                       turn % 4 == 3   ? 4
                       : turn % 4 == 1 ? 8
                                       : 0);
    rig_close(r);
}

static void attention_to_two_lists_is_the_sum(void **state)
{
    rig *r = rig_open(state);
    static const struct {
        int64_t nq, k1, k2;
        int heads;
        int64_t d, pad;
    } AT[] = {{0, 5, 3, 2, 8, 0},
              {1, 1, 1, 1, 8, 0},
              {33, 17, 40, 3, 64, 4},
              {70, 130, 150, 2, 128, 8},
              {130, 16, 257, 1, 128, 0}};
    sl_dtype dtype[2];
    EACH(i, AT)
    for (int turn = 0, n = widths(r, dtype); turn < n; turn++) {
        const int64_t w = AT[i].heads * AT[i].d, pad = AT[i].pad;
        const sl_dtype t = dtype[turn];
        const float scale = 2 / sqrtf((float)AT[i].d);
        const sizes one = {AT[i].nq, AT[i].k1, AT[i].heads, AT[i].d},
                    two = {AT[i].nq, AT[i].k2, AT[i].heads, AT[i].d};
        arg q = columns(r, t, AT[i].nq, w, pad), k1 = columns(r, t, AT[i].k1, w, pad),
            v1 = columns(r, t, AT[i].k1, w, 0), k2 = columns(r, t, AT[i].k2, w, 0),
            v2 = columns(r, t, AT[i].k2, w, pad), o = output(r, t, AT[i].nq, w, pad),
            calls = output(r, t, AT[i].nq, w, pad);
        double *want = doubles(r, AT[i].nq * w), *more = doubles(r, AT[i].nq * w);
        attention_reference(want, q.x, k1.x, v1.x, one, scale, NULL);
        attention_reference(more, q.x, k2.x, v2.x, two, scale, NULL);
        for (int64_t j = 0; j < AT[i].nq * w; j++) want[j] += more[j];
        const bool one_pass =
            sl_attention_two(&r->ctx, &o.t, &q.t, &k1.t, &v1.t, &k2.t, &v2.t, AT[i].heads, scale);
        sl_attention(&r->ctx, &calls.t, &q.t, &k1.t, &v1.t, AT[i].heads, scale, NULL, false);
        sl_attention(&r->ctx, &calls.t, &q.t, &k2.t, &v2.t, AT[i].heads, scale, NULL, true);
        check(r, &o, want, 32,
              say("attention of %lld to %lld and %lld keys, %s", (long long)one.nq,
                  (long long)one.nk, (long long)two.nk, sl_dtype_tag(t)));
        const float *a = values(r, &o), *b = values(r, &calls);
        if (!one_pass && one.nq) assert_memory_equal(a, b, (size_t)(one.nq * w) * sizeof *a);
        rig_clear(r);
    }
    rig_close(r);
}

static void attention_of_huge_scores_picks_one_key(void **state)
{
    /* exp must never see the bare score: 1e4 apart, the largest takes all */
    rig *r = rig_open(state);
    enum { N = 300, D = 8 };
    float k[N * D] = {0}, q[D] = {1};
    for (int i = 0; i < N; i++) k[i * D] = (float)(i == 207 ? 1 : -1);
    sl_dtype dtype[2];
    for (int i = 0, n = widths(r, dtype); i < n; i++) {
        sl_dtype t = dtype[i];
        arg qa = GIVEN(r, t, q, 1, D), ka = GIVEN(r, t, k, N, D), v = IN(r, t, N, D),
            o = output(r, t, 1, D, 0);
        double want[D];
        for (int c = 0; c < D; c++) want[c] = v.x[207 * D + c];
        sl_attention(&r->ctx, &o.t, &qa.t, &ka.t, &v.t, 1, 1e4f, NULL, false);
        check(r, &o, want, 1, "attention to one key");
    }
    rig_close(r);
}

static void attention_of_columns_of_one_matrix(void **state)
{
    /* q, k, v and o side by side, as a fused projection leaves them */
    rig *r = rig_open(state);
    sizes s = {40, 40, 2, 16};
    int64_t w = 32;
    arg all = IN(r, r->act, 40, 4 * w);
    float *part[3];
    for (int p = 0; p < 3; p++) {
        part[p] = own(r, (size_t)(40 * w) * sizeof(float));
        for (int64_t i = 0; i < 40 * w; i++) part[p][i] = all.x[i / w * 4 * w + p * w + i % w];
    }
    double *o = doubles(r, 40 * w), *want = doubles(r, 40 * 4 * w);
    attention_reference(o, part[0], part[1], part[2], s, 0.25, NULL);
    for (int64_t i = 0; i < 40 * 4 * w; i++)
        want[i] = i % (4 * w) < 3 * w ? all.x[i] : o[i / (4 * w) * w + i % w];
    sl_tensor q = sl_cols(&all.t, 0, w), k = sl_cols(&all.t, w, w), v = sl_cols(&all.t, 2 * w, w),
              y = sl_cols(&all.t, 3 * w, w);
    sl_attention(&r->ctx, &y, &q, &k, &v, 2, 0.25f, NULL, false);
    check(r, &all, want, 32, "attention within one matrix");
    rig_close(r);
}

static void not_a_number_is_not_lost(void **state)
{
    rig *r = rig_open(state);
    float bad[64] = {0};
    bad[37] = NAN;
    int64_t row = 37 / 16;
    sl_dtype dtype[2];
    /* the last of them takes no F32 */
    for (int turn = 0, n = 4 * widths(r, dtype) - (r->act != SL_F32); turn < n; turn++) {
        int op = turn % 4;
        sl_dtype d = dtype[turn / 4];
        arg x = GIVEN(r, d, bad, 4, 16), w = IN(r, d, 16, 16), y = output(r, d, 4, 16, 0),
            v = IN(r, SL_F32, 16);
        if (op == 0) sl_linear(&r->ctx, &y.t, &x.t, &w.t, NULL, SL_ACT_GELU_TANH);
        if (op == 1) sl_attention(&r->ctx, &y.t, &x.t, &w.t, &w.t, 1, 1, NULL, false);
        if (op == 2) sl_layernorm(&r->ctx, &y.t, &x.t, &v.t, &v.t, 1e-6f);
        if (op == 3) sl_rmsnorm(&r->ctx, &y.t, &x.t, &v.t, 1e-6f);
        float *out = values(r, &y);
        for (int64_t i = 0; i < 64; i++)
            if (!isnan(out[i]) == (i / 16 == row))
                fail_msg("operation %d in %s: element %lld is %g", op, sl_dtype_tag(d),
                         (long long)i, (double)out[i]);
    }
    rig_close(r);
}

/* ---- rows ---- */

/* mean 0: RMS only. */
static void normalise(double *y, const float *x, int64_t d, bool centred, double eps)
{
    double mean = 0, var = 0;
    for (int64_t c = 0; centred && c < d; c++) mean += x[c] / (double)d;
    for (int64_t c = 0; c < d; c++) var += (x[c] - mean) * (x[c] - mean) / (double)d;
    for (int64_t c = 0; c < d; c++) y[c] = (x[c] - mean) / sqrt(var + eps);
}

static void layernorm_is_the_double_one(void **state)
{
    rig *r = rig_open(state);
    sl_dtype dtype[2];
    EACH(i, ROWS) EACH(j, DIMS) for (int turn = 0, all = 6 * widths(r, dtype); turn < all; turn++)
    {
        int64_t n = ROWS[i], d = DIMS[j];
        int kind = turn % 6;
        bool in_place = kind >= 3;
        sl_dtype t = dtype[turn / 6];
        if (t != r->act && kind % 3 == 2) continue; /* the modulated one takes no F32 */
        arg x = IN(r, t, n, d), w = IN(r, SL_F32, d), b = IN(r, SL_F32, d),
            y = in_place ? x : output(r, t, n, d, 0);
        double *want = doubles(r, n * d);
        for (int64_t k = 0; k < n; k++) {
            normalise(want + k * d, x.x + k * d, d, true, 1e-5);
            for (int64_t c = 0; c < d && kind % 3; c++)
                want[k * d + c] = want[k * d + c] * ((kind % 3 == 2) + (double)w.x[c]) + b.x[c];
        }
        if (kind % 3 == 0) sl_layernorm(&r->ctx, &y.t, &x.t, NULL, NULL, 1e-5f);
        if (kind % 3 == 1) sl_layernorm(&r->ctx, &y.t, &x.t, &w.t, &b.t, 1e-5f);
        if (kind % 3 == 2) sl_layernorm_modulate(&r->ctx, &y.t, &x.t, &w.t, &b.t, 1e-5f);
        check(r, &y, want, 8,
              say("layernorm kind %d, %s, %lld x %lld", kind, sl_dtype_tag(t), (long long)n,
                  (long long)d));
        rig_clear(r);
    }
    rig_close(r);
}

static void layernorm_far_from_zero_keeps_its_variance(void **state)
{
    rig *r = rig_open(state);
    /* mean 1000, spread 1: a one-pass variance in float32 would be off by percents */
    float x[256];
    t_fill(x, 256, 5);
    for (int i = 0; i < 256; i++) x[i] += 1000;
    arg a = GIVEN(r, SL_F32, x, 1, 256), y = output(r, SL_F32, 1, 256, 0);
    double want[256];
    normalise(want, a.x, 256, true, 1e-6);
    sl_layernorm(&r->ctx, &y.t, &a.t, NULL, NULL, 1e-6f);
    /* the mean itself is good to 3e-5 of the spread */
    check(r, &y, want, 3000, "layernorm around 1000");
    rig_close(r);
}

static void rmsnorm_is_the_double_one(void **state)
{
    rig *r = rig_open(state);
    EACH(i, ROWS) EACH(j, DIMS) for (int64_t pad = 0; pad <= 8; pad += 8)
    {
        int64_t n = ROWS[i], d = DIMS[j];
        arg x = columns(r, r->act, n, d, pad), w = IN(r, SL_F32, d),
            y = output(r, r->act, n, d, pad);
        double *want = doubles(r, n * d);
        for (int64_t t = 0; t < n; t++) {
            normalise(want + t * d, x.x + t * d, d, false, 1e-6);
            for (int64_t c = 0; c < d; c++) want[t * d + c] *= w.x[c];
        }
        sl_rmsnorm(&r->ctx, &y.t, &x.t, &w.t, 1e-6f);
        check(r, &y, want, 8, "rmsnorm");
        if (!pad) {
            sl_rmsnorm(&r->ctx, &x.t, &x.t, &w.t, 1e-6f);
            check(r, &x, want, 8, "rmsnorm in place");
        }
        rig_clear(r);
    }
    rig_close(r);
}

static void rope_turns_pairs_within_each_head(void **state)
{
    rig *r = rig_open(state);
    static const struct {
        int64_t n, d;
        int heads;
    } AT[] = {{0, 8, 1},   {1, 8, 2},     {3, 96, 3}, {5, 128, 1},
              {3, 256, 2}, {5, 5120, 40}, {2, 12, 6}};
    EACH(i, AT) for (int64_t pad = 0; pad <= 4; pad += 4)
    {
        int64_t n = AT[i].n, d = AT[i].d, half = d / AT[i].heads / 2;
        arg x = columns(r, r->act, n, d, pad), w = IN(r, SL_F32, d),
            y = output(r, r->act, n, d, pad);
        arg cs = IN(r, SL_F32, n, half), sn = IN(r, SL_F32, n, half);
        double *want = doubles(r, n * d);
        for (int64_t t = 0; t < n; t++) {
            normalise(want + t * d, x.x + t * d, d, false, 1e-6);
            for (int64_t c = 0; c < d; c += 2) {
                double *p = want + t * d + c, a = p[0] * w.x[c], b = p[1] * w.x[c + 1];
                double co = cs.x[t * half + c / 2 % half], si = sn.x[t * half + c / 2 % half];
                p[0] = a * co - b * si;
                p[1] = a * si + b * co;
            }
        }
        sl_rmsnorm_rope(&r->ctx, &y.t, &x.t, &w.t, 1e-6f, &cs.t, &sn.t, AT[i].heads);
        check(r, &y, want, 8, "rmsnorm_rope");
        if (!pad) {
            sl_rmsnorm_rope(&r->ctx, &x.t, &x.t, &w.t, 1e-6f, &cs.t, &sn.t, AT[i].heads);
            check(r, &x, want, 8, "rmsnorm_rope in place");
        }
        rig_clear(r);
    }
    rig_close(r);
}

static void gated_add_scales_each_column(void **state)
{
    rig *r = rig_open(state);
    EACH(i, ROWS) EACH(j, DIMS)
    {
        int64_t n = ROWS[i], d = DIMS[j];
        arg x = IN(r, r->act, n, d), y = IN(r, r->act, n, d), g = IN(r, SL_F32, d);
        double *want = doubles(r, n * d);
        for (int64_t t = 0; t < n * d; t++) want[t] = x.x[t] + (double)y.x[t] * g.x[t % d];
        sl_gated_add(&r->ctx, &x.t, &y.t, &g.t);
        check(r, &x, want, 2, "gated_add");
        rig_clear(r);
    }
    rig_close(r);
}

static void linear_add_is_linear_and_gated_add(void **state)
{
    rig *r = rig_open(state);
    static const int64_t M[] = {0, 1, 5, 33}, N[] = {8, 96, 515}, K[] = {8, 128};
    int turn = 0;
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        int64_t m = M[i], n = N[j], k = K[l];
        bool gated = turn % 2, bias = turn / 2 % 2;
        arg x = IN(r, r->act, m, n), y = IN(r, r->act, m, n), a = IN(r, r->act, m, k),
            w = IN(r, r->act, n, k), b = IN(r, SL_F32, n), g = IN(r, SL_F32, n);
        double *want = doubles(r, m * n), largest = 0;
        for (int64_t t = 0; t < m * n; t++) {
            double s = bias ? b.x[t % n] : 0;
            for (int64_t c = 0; c < k; c++) s += (double)a.x[t / n * k + c] * w.x[t % n * k + c];
            if (gated) s *= g.x[t % n];
            largest = fmax(largest, fabs(s));
            want[t] = x.x[t] + s;
        }
        sl_linear_add(&r->ctx, &x.t, &y.t, &a.t, &w.t, bias ? &b.t : NULL, gated ? &g.t : NULL);
        check_from(r, &x, want, 16, largest,
                   say("linear_add %lld x %lld x %lld, turn %d", (long long)m, (long long)n,
                       (long long)k, turn));
        rig_clear(r);
        turn++;
    }
    rig_close(r);
}

/* ---- elementwise ---- */

static void sums_and_differences(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[] = {0, 1, 5, 96, 70001};
    EACH(i, N) for (int turn = 0; turn < 6; turn++)
    {
        int64_t n = N[i];
        bool minus = turn % 2;
        arg a = IN(r, turn == 4 ? SL_F32 : r->act, 1, n),
            b = IN(r, turn == 5 ? SL_F32 : r->act, 1, n);
        arg y = turn < 2 ? output(r, r->act, 1, n, 0) : turn < 4 ? a : output(r, SL_F32, 1, n, 0);
        double *want = doubles(r, n);
        for (int64_t t = 0; t < n; t++)
            want[t] = minus ? (double)a.x[t] - b.x[t] : (double)a.x[t] + b.x[t];
        (minus ? sl_sub : sl_add)(&r->ctx, &y.t, &a.t, &b.t);
        check(r, &y, want, 1, "add or sub");
        rig_clear(r);
    }
    arg a = IN(r, r->act, 4, 8), b = IN(r, r->act, 4, 8);
    double *want = doubles(r, 32);
    for (int t = 0; t < 32; t++) want[t] = (double)a.x[t] - b.x[t];
    sl_sub(&r->ctx, &b.t, &a.t, &b.t);
    check(r, &b, want, 1, "sub into its second operand");
    rig_close(r);
}

static void gates(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[] = {0, 1, 5, 96, 70001};
    EACH(i, N)
    {
        int64_t n = N[i];
        float *wide = own(r, (size_t)n * sizeof *wide);
        t_fill(wide, n, 9);
        for (int64_t t = 0; t < n; t++) wide[t] *= 12;
        arg a = GIVEN(r, r->act, wide, 1, n), b = IN(r, r->act, 1, n),
            y = output(r, r->act, 1, n, 0);
        double *want = doubles(r, n);
        for (int64_t t = 0; t < n; t++) want[t] = activated(a.x[t], SL_ACT_SILU);
        sl_silu(&r->ctx, &y.t, &a.t);
        check_from(r, &y, want, 2, 12, "silu");
        for (int64_t t = 0; t < n; t++) want[t] = activated(a.x[t], SL_ACT_GELU_TANH) * b.x[t];
        sl_geglu(&r->ctx, &y.t, &a.t, &b.t);
        check_from(r, &y, want, 2, 12, "geglu");
        sl_geglu(&r->ctx, &a.t, &a.t, &b.t);
        check_from(r, &a, want, 2, 12, "geglu in place");
        sl_silu(&r->ctx, &b.t, &b.t);
        for (int64_t t = 0; t < n; t++) want[t] = activated(b.x[t], SL_ACT_SILU);
        check(r, &b, want, 2, "silu in place");
        rig_clear(r);
    }
    rig_close(r);
}

static void copies_convert(void **state)
{
    rig *r = rig_open(state);
    static const sl_dtype D[] = {SL_F32, SL_BF16, SL_F16};
    static const int64_t COLS[] = {1, 8, 300};
    EACH(i, D) EACH(j, D) EACH(l, COLS) for (int pads = 0; pads < 4; pads++)
    {
        arg x = columns(r, D[i], 5, COLS[l], pads & 1 ? 3 : 0),
            y = output(r, D[j], 5, COLS[l], pads & 2 ? 2 : 0);
        double *want = doubles(r, x.n);
        float *rounded = own(r, (size_t)x.n * 4);
        void *raw = own(r, (size_t)x.n * 4);
        /* the conversion itself is tensor.h's, tested there */
        sl_from_floats(raw, D[j], x.x, x.n, NULL);
        sl_to_floats(rounded, raw, D[j], x.n, NULL);
        for (int64_t t = 0; t < x.n; t++) want[t] = rounded[t];
        sl_copy(&r->ctx, &y.t, &x.t);
        check(r, &y, want, 0, say("copy %s to %s", sl_dtype_tag(D[i]), sl_dtype_tag(D[j])));
        rig_clear(r);
    }
    arg x = IN(r, r->act, 3, 5, 7, 900), y = IN(r, SL_F32, 3, 5, 7, 900);
    double *want = doubles(r, x.n);
    for (int64_t t = 0; t < x.n; t++) want[t] = x.x[t];
    sl_copy(&r->ctx, &y.t, &x.t);
    check(r, &y, want, 0, "copy of four extents");
    for (int64_t t = 0; t < x.n; t++) want[t] = 0;
    sl_zero(&r->ctx, &y.t);
    check(r, &y, want, 0, "zero");
    rig_close(r);
}

static void every_half_becomes_the_right_float(void **state)
{
    rig *r = rig_open(state);
    /* all 65536 of both formats, subnormals, infinities and NaN among them */
    if (r->ctx.ops == &sl_ops_cpu) {
        static uint16_t all[65536];
        static float got[65536];
        for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
        sl_cpu_to_floats(got, all, SL_F16, 65536);
        for (int i = 0; i < 65536; i++) {
            float want = sl_from_f16((sl_f16)i);
            if (isnan(want) ? !isnan(got[i]) : memcmp(&want, &got[i], 4) != 0)
                fail_msg("f16 %04x: %g, want %g", i, (double)got[i], (double)want);
        }
        sl_cpu_to_floats(got, all, SL_BF16, 65536);
        for (int i = 0; i < 65536; i++) {
            float want = sl_from_bf16((sl_bf16)i);
            if (memcmp(&want, &got[i], 4) != 0)
                fail_msg("bf16 %04x: %g, want %g", i, (double)got[i], (double)want);
        }
    }
    rig_close(r);
}

static void embedding_rows_are_picked(void **state)
{
    rig *r = rig_open(state);
    static const sl_dtype D[] = {SL_F32, SL_BF16, SL_F16};
    static const int32_t ids[] = {6, 0, 3, 3, 1};
    EACH(i, D)
    {
        arg table = IN(r, stored(r) ? D[i] : r->act, 7, 96), y = output(r, r->act, 5, 96, 0);
        double *want = doubles(r, 5 * 96);
        for (int t = 0; t < 5 * 96; t++) want[t] = table.x[ids[t / 96] * 96 + t % 96];
        sl_embed(&r->ctx, &y.t, &table.t, ids);
        check(r, &y, want, 0, "embed");
        rig_clear(r);
    }
    rig_close(r);
}

/* ---- DiT's edges, the sampler, the cache ---- */

static void patches_in_and_out(void **state)
{
    rig *r = rig_open(state);
    for (int64_t c2 = 0; c2 <= 5; c2 += 5) {
        int64_t c1 = 3, t = 3, h = 4, w = 6, c = c1 + c2, hp = h / 2, wp = w / 2;
        arg x = IN(r, SL_F32, c1, t, h, w), cond = IN(r, SL_F32, c2, t, h, w),
            y = output(r, r->act, t * hp * wp, c * 4, 0);
        double *want = doubles(r, y.n);
        for (int64_t f = 0; f < t; f++)
            for (int64_t i = 0; i < h; i++)
                for (int64_t j = 0; j < w; j++)
                    for (int64_t k = 0; k < c; k++) {
                        float v = k < c1 ? x.x[((k * t + f) * h + i) * w + j]
                                         : cond.x[(((k - c1) * t + f) * h + i) * w + j];
                        want[((f * hp + i / 2) * wp + j / 2) * c * 4 + k * 4 + i % 2 * 2 + j % 2] =
                            v;
                    }
        sl_patchify(&r->ctx, &y.t, &x.t, c2 ? &cond.t : NULL);
        check(r, &y, want, r->act == SL_F32 ? 0 : 1, "patchify");

        arg rows = IN(r, r->act, t * hp * wp, 4 * c1), out = IN(r, SL_F32, c1, t, h, w);
        for (int64_t n = 0; n < rows.n; n++) {
            int64_t k = n % c1, px = n / c1 % 2, py = n / c1 / 2 % 2, j = n / (4 * c1) % wp,
                    i = n / (4 * c1) / wp % hp;
            int64_t f = n / (4 * c1) / wp / hp;
            want[((k * t + f) * h + 2 * i + py) * w + 2 * j + px] = rows.x[n];
        }
        sl_unpatchify(&r->ctx, &out.t, &rows.t);
        check(r, &out, want, 0, "unpatchify");
        rig_clear(r);
    }
    rig_close(r);
}

static void guidance_rounds_three_times(void **state)
{
    rig *r = rig_open(state);
    int64_t n = 40001;
    arg c = IN(r, r->act, 1, n), u = IN(r, r->act, 1, n), v = output(r, r->act, 1, n, 0);
    double *want = doubles(r, n);
    for (int64_t i = 0; i < n; i++) {
        float d = c.x[i] - u.x[i], g = 5.0f, s;
        if (r->act == SL_BF16) d = sl_from_bf16(sl_to_bf16(d));
        d = g * d;
        if (r->act == SL_BF16) d = sl_from_bf16(sl_to_bf16(d));
        s = u.x[i] + d;
        want[i] = r->act == SL_BF16 ? sl_from_bf16(sl_to_bf16(s)) : s;
    }
    sl_guidance(&r->ctx, &v.t, &c.t, &u.t, 5);
    check(r, &v, want, 0, "guidance");
    sl_guidance(&r->ctx, &u.t, &c.t, &u.t, 5);
    check(r, &u, want, 0, "guidance into uncond");
    rig_close(r);
}

static void flow_x0_keeps_the_rounding_of_v(void **state)
{
    rig *r = rig_open(state);
    static const sl_dtype D[] = {SL_F32, SL_BF16, SL_F16};
    EACH(i, D)
    {
        int64_t n = 40001;
        arg x = IN(r, SL_F32, 1, n), v = IN(r, D[i], 1, n), y = output(r, SL_F32, 1, n, 0);
        double *want = doubles(r, n);
        for (int64_t t = 0; t < n; t++) {
            float p = 0.9917441f * v.x[t];
            if (D[i] == SL_BF16) p = sl_from_bf16(sl_to_bf16(p));
            if (D[i] == SL_F16) p = sl_from_f16(sl_to_f16(p));
            want[t] = (double)(x.x[t] - p);
        }
        sl_flow_x0(&r->ctx, &y.t, &x.t, &v.t, 0.9917441f);
        check(r, &y, want, 0, "flow_x0");
        rig_clear(r);
    }
    rig_close(r);
}

/* A LoRA's factors, ranks 1 and up, odd sizes; a difference; on top of the weight or beside it. */
static void low_rank_products_are_added(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[][3] = {
        {1, 1, 1}, {5, 7, 3}, {64, 64, 16}, {130, 67, 33}, {33, 300, 64}};
    static const sl_dtype FACTORS[] = {SL_F32, SL_BF16, SL_F16};
    EACH(i, N) for (int f = 0; f < 3; f++) for (int way = 0; way < 6; way++)
    {
        const int64_t n = N[i][0], k = N[i][1], q = N[i][2];
        const bool factors = way < 4, onto = way % 2;
        const sl_dtype as = way / 2 % 2 ? SL_F32 : r->act;
        const float scale = -0.625f;
        arg x = IN(r, as, n, k), y = output(r, as, n, k, 0), up = IN(r, FACTORS[f], n, q),
            down = factors ? IN(r, FACTORS[f], q, k) : IN(r, FACTORS[f], n, k);
        double *want = doubles(r, n * k);
        for (int64_t a = 0; a < n; a++)
            for (int64_t b = 0; b < k; b++) {
                double s = factors ? 0 : (double)down.x[a * k + b];
                for (int64_t c = 0; factors && c < q; c++)
                    s += (double)up.x[a * q + c] * (double)down.x[c * k + b];
                want[a * k + b] = (double)x.x[a * k + b] + (double)scale * s;
            }
        arg *out = onto ? &x : &y;
        sl_low_rank_add(&r->ctx, &out->t, &x.t, factors ? &up.t : NULL, &down.t, scale);
        /* F32: a sum of up to 64 products, its order the body's; else one rounding of it */
        check(r, out, want, as == SL_F32 ? 64 : 1.01, "low_rank_add");
        rig_clear(r);
    }
    rig_close(r);
}

static void lincomb_sums_left_to_right(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[] = {0, 1, 1500, 40001};
    const float a[] = {0.5f, -1.25f, 3, 1e-3f};
    EACH(i, N) for (int n = 1; n <= 4; n++) for (int into = -1; into < n; into++)
    {
        arg x[4], y = output(r, SL_F32, 1, N[i], 0);
        const sl_tensor *p[4] = {0};
        for (int k = 0; k < n; k++) x[k] = IN(r, SL_F32, 1, N[i]);
        for (int k = 0; k < n; k++) p[k] = &x[k].t;
        double *want = doubles(r, N[i]);
        for (int64_t t = 0; t < N[i]; t++) {
            float s = a[0] * x[0].x[t];
            for (int k = 1; k < n; k++) {
                float term = a[k] * x[k].x[t];
                s += term;
            }
            want[t] = s;
        }
        arg *out = into < 0 ? &y : &x[into];
        sl_lincomb(&r->ctx, &out->t, n, p, a);
        /* 2: a GPU fuses multiply and add */
        check(r, out, want, r->act == SL_F32 ? 0 : 2, "lincomb");
        rig_clear(r);
    }
    rig_close(r);
}

/* Row by row, as a shared forward sums: a row's figure does not depend on the rows beside it. */
static void sums_of_absolute_differences_by_row(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[] = {1, 3, 70}, D[] = {1, 8, 100, 264};
    EACH(i, N) EACH(j, D)
    {
        const int64_t n = N[i], d = D[j];
        arg p = IN(r, r->act, n, d), q = IN(r, r->act, n, d), y = output(r, SL_F32, n, 2, 0),
            one = output(r, SL_F32, 1, 2, 0);
        double total[2], sums[2] = {0, 0};
        const float *x;
        sl_abs_rows(&r->ctx, &y.t, &p.t, &q.t);
        sl_sum_rows(&r->ctx, total, &y.t);
        x = values(r, &y);
        for (int64_t row = 0; row < n; row++) {
            double want[2] = {0, 0};
            for (int64_t c = 0; c < d; c++) {
                want[0] += fabs((double)p.x[row * d + c] - q.x[row * d + c]);
                want[1] += fabs((double)p.x[row * d + c]);
            }
            for (int k = 0; k < 2; k++) {
                double limit = r->act == SL_F32 ? 1e-6 : 4e-3;
                if (!(fabs(x[2 * row + k] - want[k]) <= limit * want[k]))
                    fail_msg("row %lld of [%lld, %lld]: sum %d is %g, want %g", (long long)row,
                             (long long)n, (long long)d, k, (double)x[2 * row + k], want[k]);
                sums[k] += x[2 * row + k];
            }
        }
        for (int k = 0; k < 2; k++)
            if (!(fabs(total[k] - sums[k]) <= 1e-12 * sums[k]))
                fail_msg("sum %d of all rows is %g, want %g", k, total[k], sums[k]);
        const sl_tensor prow = sl_rows(&p.t, n - 1, 1), qrow = sl_rows(&q.t, n - 1, 1);
        const float last[2] = {x[2 * n - 2], x[2 * n - 1]};
        sl_abs_rows(&r->ctx, &one.t, &prow, &qrow);
        if (d % 8 == 0) assert_memory_equal(values(r, &one), last, sizeof last);
        rig_clear(r);
    }
    rig_close(r);
}

static void means_of_absolute_differences(void **state)
{
    rig *r = rig_open(state);
    static const int64_t N[] = {1, 5, 96, 65536, 65537, 300001};
    EACH(i, N)
    {
        arg p = IN(r, r->act, 1, N[i]), q = IN(r, r->act, 1, N[i]);
        double d = 0, s = 0;
        for (int64_t t = 0; t < N[i]; t++) {
            d += fabs((double)p.x[t] - q.x[t]);
            s += fabs((double)p.x[t]);
        }
        float out[2], again[2];
        sl_mean_abs(&r->ctx, out, &p.t, &q.t);
        sl_mean_abs(&r->ctx, again, &p.t, &q.t);
        assert_memory_equal(out, again, sizeof out);
        double limit = r->act == SL_F32 ? 1e-6 : 4e-3; /* a bf16 body rounds each difference */
        if (!(fabs(out[0] - d / (double)N[i]) <= limit * d / (double)N[i]) ||
            !(fabs(out[1] - s / (double)N[i]) <= limit * s / (double)N[i]))
            fail_msg("mean_abs of %lld: %g %g, want %g %g", (long long)N[i], (double)out[0],
                     (double)out[1], d / (double)N[i], s / (double)N[i]);
        rig_clear(r);
    }
    rig_close(r);
}

/* clang-format off */
#define CASE(test, ops) cmocka_unit_test_prestate(test, (void *)(uintptr_t)(ops))
#define CASES(ops)                                                                                 \
    CASE(linear_of_worked_values, ops), CASE(linear_is_the_double_product, ops),                   \
    CASE(linear_of_float32_everywhere, ops), CASE(linear_of_columns_side_by_side, ops),            \
    CASE(rows_of_a_share_have_the_bits_of_the_whole, ops),                                         \
    CASE(attention_is_the_double_softmax, ops),                                                    \
    CASE(attention_of_huge_scores_picks_one_key, ops),                                             \
    CASE(attention_of_columns_of_one_matrix, ops), CASE(not_a_number_is_not_lost, ops),            \
    CASE(layernorm_is_the_double_one, ops),                                                        \
    CASE(layernorm_far_from_zero_keeps_its_variance, ops),                                         \
    CASE(rmsnorm_is_the_double_one, ops), CASE(rope_turns_pairs_within_each_head, ops),            \
    CASE(gated_add_scales_each_column, ops), CASE(sums_and_differences, ops),                      \
    CASE(linear_add_is_linear_and_gated_add, ops),                                                 \
    CASE(attention_to_two_lists_is_the_sum, ops), CASE(gates, ops), CASE(copies_convert, ops),     \
    CASE(every_half_becomes_the_right_float, ops), CASE(embedding_rows_are_picked, ops),           \
    CASE(patches_in_and_out, ops), CASE(guidance_rounds_three_times, ops),                         \
    CASE(flow_x0_keeps_the_rounding_of_v, ops), CASE(lincomb_sums_left_to_right, ops),             \
    CASE(low_rank_products_are_added, ops),                                                        \
    CASE(means_of_absolute_differences, ops), CASE(sums_of_absolute_differences_by_row, ops)
/* clang-format on */

#endif
