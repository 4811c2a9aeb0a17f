/* test_attention_eight.c - attention in 8 bits on the CPU: against attention in float64 within a
 * bound that follows from the codes, on odd sizes; means, outliers, large scores, what is not a
 * number; what the front refuses; which steps and blocks attend so. */
#include "t.h"

#include <math.h>
#include <string.h>

#include "common/precision.h"
#include "kernels/ops.h"

static sl_ctx ctx;
static sl_err err;

static uint32_t seed;
static float uniform(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed / 2147483648.0f;
}

/* Sums of three: a bell of deviation 1. */
static void fill(const sl_tensor *t, float by, float mean)
{
    for (int64_t r = 0; r < t->shape[0]; r++)
        for (int64_t c = 0; c < t->shape[1]; c++)
            ((float *)t->data)[r * t->pitch + c] = mean + by * (uniform() + uniform() + uniform());
}

typedef struct {
    sl_tensor q, k, v, o;
    int heads;
    float scale;
} numbers;

static numbers numbers_of(int64_t nq, int64_t nk, int heads, int64_t d)
{
    numbers n = {.heads = heads, .scale = 1 / sqrtf((float)d)};
    sl_tensor *all[] = {&n.q, &n.k, &n.v, &n.o};
    for (int i = 0; i < 4; i++) {
        const sl_tensor wide =
            sl_new2(&ctx, SL_F32, i == 1 || i == 2 ? nk : nq, heads * d + 8); /* pitched */
        *all[i] = sl_cols(&wide, 0, heads * d);
    }
    fill(&n.q, 1, 0), fill(&n.k, 1, 0), fill(&n.v, 1, 0);
    return n;
}

static void run(const numbers *n)
{
    const sl_keys_eight keys = sl_new_keys_eight(&ctx, n->k.shape[0], n->k.shape[1], n->heads);
    const sl_queries_eight codes =
        sl_new_queries_eight(&ctx, n->q.shape[0], n->q.shape[1], n->heads);
    sl_code_keys(&ctx, &keys, &n->k, &n->v, n->heads);
    sl_code_queries(&ctx, &codes, &n->q, n->heads, n->scale);
    sl_attention_eight(&ctx, &n->o, &codes, &keys, n->heads, 1, NULL, 0, NULL);
}

static float at(const sl_tensor *t, int64_t r, int64_t c)
{
    return ((const float *)t->data)[r * t->pitch + c];
}

/* How far the result is from attention in float64, against a bound for each of its numbers:
 * sum_i w_i |v_i - mean| (e^(2 s) - 1 + 1/16 + 1/16) + 2^-10 scales, where s bounds what a score is
 * off: half a step of q times |k|, half a step of k times |q|, and both; the larger of found and
 * bound over all numbers. */
static double worst(const numbers *n)
{
    const int64_t d = n->q.shape[1] / n->heads, nk = n->k.shape[0];
    double most = 0, *w = malloc((size_t)nk * sizeof *w);
    assert_non_null(w);
    for (int h = 0; h < n->heads; h++) {
        double k_mean[256] = {0}, v_mean[256] = {0}, v_most[256] = {0}, k_most = 0;
        for (int64_t c = 0; c < d; c++) {
            for (int64_t i = 0; i < nk; i++)
                k_mean[c] += at(&n->k, i, h * d + c) / (double)nk,
                    v_mean[c] += at(&n->v, i, h * d + c) / (double)nk;
            for (int64_t i = 0; i < nk; i++) {
                k_most = fmax(k_most, fabs(at(&n->k, i, h * d + c) - k_mean[c]));
                v_most[c] = fmax(v_most[c], fabs(at(&n->v, i, h * d + c) - v_mean[c]));
            }
        }
        for (int64_t r = 0; r < n->q.shape[0]; r++) {
            double top = -INFINITY, sum = 0, q_most = 0, q_sum = 0, k_sum = 0;
            for (int64_t c = 0; c < d; c++) {
                q_most = fmax(q_most, fabs(at(&n->q, r, h * d + c)));
                q_sum += fabs(at(&n->q, r, h * d + c));
            }
            for (int64_t i = 0; i < nk; i++) {
                double dot = 0, size = 0;
                for (int64_t c = 0; c < d; c++) {
                    const double k = at(&n->k, i, h * d + c) - k_mean[c];
                    dot += at(&n->q, r, h * d + c) * k, size += fabs(k);
                }
                w[i] = dot * n->scale, top = fmax(top, w[i]), k_sum = fmax(k_sum, size);
            }
            for (int64_t i = 0; i < nk; i++) sum += w[i] = exp(w[i] - top);
            const double q_off = q_most / 254, k_off = k_most / 254,
                         s = n->scale * (q_off * k_sum + k_off * q_sum + (double)d * q_off * k_off),
                         off = exp(2 * s) - 1 + 1.0 / 16 + 1.0 / 16 + 1.0 / 256;
            for (int64_t c = 0; c < d; c++) {
                double o = v_mean[c], spread = 0;
                for (int64_t i = 0; i < nk; i++) {
                    const double v = at(&n->v, i, h * d + c) - v_mean[c];
                    o += w[i] / sum * v, spread += w[i] / sum * fabs(v);
                }
                /* codes below 2^-6 of a weight of 8 at most have steps of 2^-9 */
                const double bound = off * spread +
                                     v_most[c] *
                                         (1.0 / 448 / 1024 + 1.0 / 1024 / 8 * (double)nk / sum) +
                                     1e-5,
                             found = fabs(at(&n->o, r, h * d + c) - o) / bound;
                if (!(found <= most)) most = found;
            }
        }
    }
    free(w);
    return most;
}

static void within_the_bound(const numbers *n)
{
    run(n);
    assert_int_equal(ctx.err.code, SL_OK);
    const double found = worst(n);
    if (!(found <= 1)) fail_msg("%.3f times the bound", found);
    ctx.arena_used = 0;
}

static void odd_sizes_are_within_the_codes_bound(void **state)
{
    static const int64_t NQ[] = {1, 5, 33, 64, 100}, NK[] = {1, 127, 128, 129, 300, 1000};
    (void)state;
    seed = 1;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 6; j++) {
            const numbers n = numbers_of(NQ[i], NK[j], 1 + (i + j) % 3, j % 2 ? 64 : 128);
            within_the_bound(&n);
        }
}

/* What the means take off costs no step of a code; a key far from the rest costs its own block. */
static void means_and_outliers_are_within_it(void **state)
{
    (void)state;
    seed = 2;
    numbers n = numbers_of(40, 500, 2, 64);
    fill(&n.k, 1, 30), fill(&n.v, 1, -50);
    within_the_bound(&n);
    n = numbers_of(40, 500, 2, 64);
    for (int64_t r = 0; r < 500; r++) ((float *)n.k.data)[r * n.k.pitch + 7] *= 50; /* a column */
    within_the_bound(&n);
}

/* The largest score comes in the last block, 2^80 above the first's. */
static void a_late_large_score_is_met(void **state)
{
    (void)state;
    seed = 3;
    numbers n = numbers_of(20, 400, 1, 64);
    for (int64_t c = 0; c < 64; c++) {
        for (int64_t r = 0; r < 20; r++) ((float *)n.q.data)[r * n.q.pitch + c] = 1;
        ((float *)n.k.data)[390 * n.k.pitch + c] = 8;
    }
    run(&n);
    assert_int_equal(ctx.err.code, SL_OK);
    for (int64_t r = 0; r < 20; r++)
        for (int64_t c = 0; c < 64; c++)
            if (!(fabs(at(&n.o, r, c) - at(&n.v, 390, c)) <= 0.08 * fabs(at(&n.v, 390, c)) + 0.02))
                fail_msg("row %d, column %d: %g, want about %g", (int)r, (int)c,
                         (double)at(&n.o, r, c), (double)at(&n.v, 390, c));
    ctx.arena_used = 0;
}

static void what_is_no_number_stays_none(void **state)
{
    (void)state;
    seed = 4;
    numbers n = numbers_of(3, 200, 2, 64);
    ((float *)n.q.data)[1 * n.q.pitch + 5] = NAN; /* a row of the first head */
    run(&n);
    for (int64_t c = 0; c < 64; c++) {
        assert_true(isnan(at(&n.o, 1, c)));
        assert_false(isnan(at(&n.o, 0, c)));
        assert_false(isnan(at(&n.o, 1, 64 + c)));
    }
    ctx.arena_used = 0;
    n = numbers_of(3, 200, 2, 64);
    ((float *)n.k.data)[150 * n.k.pitch + 70] = INFINITY; /* the second head */
    run(&n);
    assert_true(isnan(at(&n.o, 0, 64)));
    assert_false(isnan(at(&n.o, 0, 0)));
    ctx.arena_used = 0;
    n = numbers_of(3, 200, 2, 64);
    ((float *)n.v.data)[150 * n.v.pitch + 70] = NAN; /* a column */
    run(&n);
    assert_true(isnan(at(&n.o, 0, 70)));
    assert_false(isnan(at(&n.o, 0, 71)));
    ctx.arena_used = 0;
}

/* The queries of a layer: codes of sl_rmsnorm_rope's numbers, by pieces of rows the same. */
static void queries_are_coded_as_they_are_made(void **state)
{
    enum { N = 37, HEADS = 3, D = 16, W = HEADS * D };
    (void)state;
    seed = 5;
    const numbers n = numbers_of(N, 5, HEADS, D);
    const sl_tensor w = sl_new1(&ctx, SL_F32, W), cos = sl_new2(&ctx, SL_F32, N, D / 2),
                    sin = sl_new2(&ctx, SL_F32, N, D / 2), y = sl_new2(&ctx, SL_F32, N, W),
                    weights = sl_view2(w.data, SL_F32, 1, W);
    fill(&weights, 1, 0);
    for (int i = 0; i < N * D / 2; i++)
        ((float *)cos.data)[i] = cosf((float)i), ((float *)sin.data)[i] = sinf((float)i);
    const sl_queries_eight made = sl_new_queries_eight(&ctx, N, W, HEADS),
                           want = sl_new_queries_eight(&ctx, N, W, HEADS);
    sl_rmsnorm_rope(&ctx, &y, &n.q, &w, 1e-6f, &cos, &sin, HEADS);
    sl_code_queries(&ctx, &want, &y, HEADS, 0.25f);
    for (int64_t from = 0, rows; from < N; from += rows) {
        rows = from + 10 < N ? 10 : N - from;
        const sl_queries_eight part = sl_queries_eight_rows(&made, from, rows);
        const sl_tensor x = sl_rows(&n.q, from, rows), c = sl_rows(&cos, from, rows),
                        s = sl_rows(&sin, from, rows);
        sl_rmsnorm_rope_queries(&ctx, &part, &x, &w, 1e-6f, &c, &s, HEADS, 0.25f);
    }
    assert_int_equal(ctx.err.code, SL_OK);
    assert_memory_equal(made.codes.data, want.codes.data, N * W);
    assert_memory_equal(made.scale.data, want.scale.data, N * HEADS * sizeof(float));
    for (int r = 0; r < N; r++)
        for (int h = 0; h < HEADS; h++) { /* and what they stand for */
            const float scale = ((const float *)want.scale.data)[r * HEADS + h];
            float most = 0;
            for (int c = 0; c < D; c++) {
                const float by = 0.25f * 1.44269504f,
                            x = ((const float *)y.data)[r * W + h * D + c] * by,
                            code = ((const int8_t *)want.codes.data)[r * W + h * D + c];
                assert_true(fabsf(x - code * scale) <= scale * 0.5001f);
                most = fmaxf(most, fabsf(code));
            }
            assert_true(most == 127);
        }
    ctx.arena_used = 0;
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    const numbers n = numbers_of(4, 130, 2, 64);
    sl_keys_eight keys = sl_new_keys_eight(&ctx, 130, 128, 2);
    keys.rows = 300;
    sl_code_keys(&ctx, &keys, &n.k, &n.v, 2);
    sl_ctx_error(&ctx, &err);
    T_SAYS(err.msg, "code_keys: k's codes");
    const numbers m = numbers_of(4, 130, 2, 64);
    keys = sl_new_keys_eight(&ctx, 130, 128, 3);
    sl_code_keys(&ctx, &keys, &m.k, &m.v, 3);
    sl_ctx_error(&ctx, &err);
    T_SAYS(err.msg, "code_keys: the columns");
    sl_queries_eight codes = sl_new_queries_eight(&ctx, 3, 128, 2);
    sl_code_queries(&ctx, &codes, &n.q, 2, 1);
    sl_ctx_error(&ctx, &err);
    T_SAYS(err.msg, "code_queries: q's codes");
    codes = sl_new_queries_eight(&ctx, 4, 128, 1);
    sl_attention_eight(&ctx, &n.o, &codes, &keys, 2, 1, NULL, 0, NULL);
    sl_ctx_error(&ctx, &err);
    T_SAYS(err.msg, "attention_eight: q's scales");
}

static void steps_and_blocks_are_read(void **state)
{
    sl_dit_precision p;
    (void)state;
    assert_int_equal(sl_dit_precision_read(&p, "fp8", "0,3", "4-26", 8, &err), SL_OK);
    assert_false(sl_attends_in_eight(&p, 1, 2));
    assert_true(sl_attends_in_eight(&p, 1, 3));
    assert_true(sl_attends_in_eight(&p, 1, 25));
    assert_false(sl_attends_in_eight(&p, 1, 26));
    assert_false(sl_attends_in_eight(&p, 3, 10));
    assert_int_equal(sl_dit_precision_read(&p, "fp8", "", "", 8, &err), SL_OK);
    assert_true(sl_attends_in_eight(&p, 0, 0));
    assert_true(sl_attends_in_eight(&p, 7, 999));
    assert_int_equal(sl_dit_precision_read(&p, "fp8", "", "5-", 8, &err), SL_OK);
    assert_false(sl_attends_in_eight(&p, 0, 3));
    assert_true(sl_attends_in_eight(&p, 0, 4));
    assert_int_equal(sl_dit_precision_read(&p, "fp8", "", "2", 8, &err), SL_OK);
    assert_true(sl_attends_in_eight(&p, 0, 1));
    assert_false(sl_attends_in_eight(&p, 0, 2));
    assert_int_equal(sl_dit_precision_read(&p, "fp8-linear", "", "", 8, &err), SL_OK);
    assert_false(sl_attends_in_eight(&p, 0, 0));
    static const char *const WRONG[] = {"0-3", "4-2", "x", "4-x", "-3", "4 5", "4-5-6"};
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        assert_int_equal(sl_dit_precision_read(&p, "fp8", "", WRONG[i], 8, &err), SL_ARG);
        T_SAYS(err.msg, "denoise.fp8_attention_steps is");
    }
    assert_int_equal(sl_dit_precision_read(&p, "fp4", "", "", 8, &err), SL_ARG);
    T_SAYS(err.msg, "precision is fp4, want bf16, fp8-linear or fp8");
}

static int open_ctx(void **state)
{
    (void)state;
    return sl_ctx_open(&ctx, &sl_ops_cpu, (size_t)64 << 20, &err);
}

static int close_ctx(void **state)
{
    (void)state;
    sl_ctx_close(&ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_sizes_are_within_the_codes_bound),
        cmocka_unit_test(means_and_outliers_are_within_it),
        cmocka_unit_test(a_late_large_score_is_met),
        cmocka_unit_test(what_is_no_number_stays_none),
        cmocka_unit_test(queries_are_coded_as_they_are_made),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(steps_and_blocks_are_read),
    };
    return cmocka_run_group_tests_name("attention_eight", tests, open_ctx, close_ctx);
}
