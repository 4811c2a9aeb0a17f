/* test_ops_matrix.c - the cases of t_ops_matrix.h on the CPU body, and what holds for
 * that body alone. takes: 5 s. */
#include "tests/t_ops_matrix.h"

/* ---- what holds for the CPU body alone ---- */

#ifdef _OPENMP
/* Run every operation that has a sum in it; 4 results one after another in y. */
static void sums_into(rig *r, float *y, int64_t n, int64_t d)
{
    arg x = IN(r, SL_F32, n, d), w = IN(r, SL_F32, d), o = output(r, SL_F32, n, d, 0);
    sl_layernorm(&r->ctx, &o.t, &x.t, &w.t, &w.t, 1e-6f);
    memcpy(y, values(r, &o), (size_t)(n * d) * 4);
    sl_rmsnorm(&r->ctx, &o.t, &x.t, &w.t, 1e-6f);
    memcpy(y + n * d, values(r, &o), (size_t)(n * d) * 4);
    sl_attention(&r->ctx, &o.t, &x.t, &x.t, &x.t, 2, 0.1f, NULL, false);
    memcpy(y + 2 * n * d, values(r, &o), (size_t)(n * d) * 4);
    sl_mean_abs(&r->ctx, y + 3 * n * d, &o.t, &x.t);
    rig_clear(r);
}

static void threads_do_not_change_a_bit(void **state)
{
    rig *r = rig_open(state);
    enum { N = 700, D = 256, ALL = 3 * N * D + 2 };
    float *want = malloc(ALL * sizeof *want), *got = malloc(ALL * sizeof *got);
    assert_true(want && got);
    int before = omp_get_max_threads();
    for (int threads = 1; threads <= 4; threads++) {
        omp_set_num_threads(threads);
        r->seed = 3;
        sums_into(r, threads == 1 ? want : got, N, D);
        if (threads > 1) assert_memory_equal(want, got, ALL * sizeof *want);
    }
    omp_set_num_threads(before);
    free(want);
    free(got);
    rig_close(r);
}
#endif

/* The first rows of a product are those of a shorter one, in all of its lengths. */
static void rows_that_follow_do_not_change_a_bit(void **state)
{
    enum { M = 531, N = 300 };
    static const int64_t K[] = {30, 144, 700}, SHORTER[] = {25, 48, 49, 60, 97, 240, 257, 480, 530};
    rig *r = rig_open(state);
    EACH(i, K)
    {
        arg x = IN(r, SL_F32, M, K[i]), w = IN(r, i ? SL_F32 : SL_BF16, N, K[i]),
            y = output(r, SL_F32, M, N, 0), z = output(r, SL_F32, M, N, 0);
        sl_linear(&r->ctx, &y.t, &x.t, &w.t, NULL, SL_ACT_SILU);
        EACH(j, SHORTER)
        {
            const sl_tensor xs = sl_rows(&x.t, 0, SHORTER[j]), zs = sl_rows(&z.t, 0, SHORTER[j]);
            sl_linear(&r->ctx, &zs, &xs, &w.t, NULL, SL_ACT_SILU);
            if (memcmp(zs.data, y.t.data, sl_bytes(&zs)))
                fail_msg("%lld rows of %lld: other bits than the first of %d",
                         (long long)SHORTER[j], (long long)K[i], M);
        }
        rig_clear(r);
    }
    rig_close(r);
}

/* Cross-attention gives a rank some of the queries, self-attention some of the heads. */
static void attention_of_a_share_has_the_bits_of_the_whole(void **state)
{
    static const struct {
        int64_t n, k1, k2, d;
        int heads;
    } AT[] = {{462, 462, 37, 24, 8}, {277, 512, 257, 128, 4}, {97, 200, 13, 40, 8}};
    rig *r = rig_open(state);
    EACH(i, AT)
    {
        const int64_t n = AT[i].n, w = AT[i].heads * AT[i].d;
        arg q = IN(r, SL_F32, n, w), k = IN(r, SL_F32, AT[i].k1, w), v = IN(r, SL_F32, AT[i].k1, w),
            k2 = IN(r, SL_F32, AT[i].k2, w), v2 = IN(r, SL_F32, AT[i].k2, w),
            both = output(r, SL_F32, n, w, 0), rows = output(r, SL_F32, n, w, 0),
            one = output(r, SL_F32, n, w, 0), heads = output(r, SL_F32, n, w, 0);
        sl_attention_two(&r->ctx, &both.t, &q.t, &k.t, &v.t, &k2.t, &v2.t, AT[i].heads, 0.3f);
        sl_attention(&r->ctx, &one.t, &q.t, &k.t, &v.t, AT[i].heads, 0.3f, NULL, false);
        for (int size = 2; size <= 8; size *= 2) {
            for (int me = 0; me < size; me++) {
                const sl_share of = sl_share_of(&(sl_team){.size = size}, n, me);
                const sl_tensor qs = sl_rows(&q.t, of.first, of.rows),
                                os = sl_rows(&rows.t, of.first, of.rows);
                sl_attention_two(&r->ctx, &os, &qs, &k.t, &v.t, &k2.t, &v2.t, AT[i].heads, 0.3f);
            }
            assert_memory_equal(rows.t.data, both.t.data, sl_bytes(&both.t));
            for (int me = 0; me < size && size <= AT[i].heads; me++) {
                const int64_t wide = w / size, at = me * wide;
                const sl_tensor qs = sl_cols(&q.t, at, wide), ks = sl_cols(&k.t, at, wide),
                                vs = sl_cols(&v.t, at, wide), os = sl_cols(&heads.t, at, wide);
                sl_attention(&r->ctx, &os, &qs, &ks, &vs, AT[i].heads / size, 0.3f, NULL, false);
            }
            if (size <= AT[i].heads)
                assert_memory_equal(heads.t.data, one.t.data, sl_bytes(&one.t));
        }
        rig_clear(r);
    }
    rig_close(r);
}

static void a_second_run_gives_the_same_bits(void **state)
{
    rig *r = rig_open(state);
    arg x = IN(r, SL_F32, 300, 256), w = IN(r, SL_BF16, 1100, 256),
        y = output(r, SL_F32, 300, 1100, 0), z = output(r, SL_F32, 300, 1100, 0);
    for (int i = 0; i < 5; i++) {
        sl_linear(&r->ctx, &y.t, &x.t, &w.t, NULL, SL_ACT_GELU_TANH);
        sl_linear(&r->ctx, &z.t, &x.t, &w.t, NULL, SL_ACT_GELU_TANH);
        assert_memory_equal(y.t.data, z.t.data, sl_bytes(&y.t));
    }
    rig_close(r);
}

static void exponential_is_good_to_two_units(void **state)
{
    (void)state;
    double worst = 0;
    for (int64_t i = 0; i <= 4000000; i++) {
        float x = -87.0f + (float)i * (175.7f / 4000000), got = sl_expf(x);
        double want = exp((double)x), ulp = want > 0x1p-126 ? ldexp(1, ilogb(want) - 23) : 0x1p-149,
               e = fabs(got - want) / ulp;
        if (!(e <= worst)) worst = e;
        if (!(e <= 2))
            fail_msg("exp(%.9g) = %.9g, want %.9g: %.2f units", (double)x, (double)got, want, e);
    }
    print_message("sl_expf: at most %.2f units off\n", worst);
    /* subnormal results: to one unit of the smallest */
    for (float x = -103.9f; x < -87; x += 0.001f)
        if (!(fabs(sl_expf(x) - exp((double)x)) <= 0x1p-149 + 2.4e-7 * exp((double)x)))
            fail_msg("exp(%g) = %g", (double)x, (double)sl_expf(x));
    assert_true(sl_expf(0) == 1 && sl_expf(-0.0f) == 1);
    assert_true(sl_expf(-200) == 0 && sl_expf(-INFINITY) == 0);
    assert_true(isinf(sl_expf(88.8f)) && isinf(sl_expf(1000)) && isinf(sl_expf(INFINITY)));
    assert_true(isnan(sl_expf(NAN)));
}

static void activations_are_good_to_a_few_units(void **state)
{
    (void)state;
    for (float x = -6; x < 6; x += 0.00013f) {
        double want = erf((double)x), ulp = ldexp(1, ilogb(want) - 23);
        if (!(fabs(sl_erff(x) - want) <= 2 * ulp))
            fail_msg("erf(%.9g) = %.9g, want %.9g", (double)x, (double)sl_erff(x), want);
    }
    assert_true(sl_erff(1000) == 1 && sl_erff(-INFINITY) == -1 && sl_erff(0) == 0 &&
                isnan(sl_erff(NAN)));
    /* absolute, of the larger of |x| and 1: what the next layer sees */
    for (float x = -12; x < 12; x += 0.00037f) {
        double unit = 0x1p-24 * fmax(1, fabs((double)x));
        if (!(fabs(sl_siluf(x) - activated(x, SL_ACT_SILU)) <= 3 * unit))
            fail_msg("silu(%g)", (double)x);
        if (!(fabs(sl_gelu_tanhf(x) - activated(x, SL_ACT_GELU_TANH)) <= 3 * unit))
            fail_msg("gelu tanh(%g)", (double)x);
        if (!(fabs(sl_gelu_erff(x) - activated(x, SL_ACT_GELU_ERF)) <= 3 * unit))
            fail_msg("gelu erf(%g)", (double)x);
    }
    assert_true(isnan(sl_siluf(NAN)) && isnan(sl_gelu_tanhf(NAN)) && isnan(sl_gelu_erff(NAN)));
    assert_true(sl_gelu_tanhf(-100) == 0 && sl_gelu_tanhf(100) == 100 && sl_gelu_erff(-100) == 0 &&
                sl_gelu_erff(100) == 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASES(&sl_ops_cpu),
#ifdef _OPENMP
        CASE(threads_do_not_change_a_bit, &sl_ops_cpu),
#endif
        CASE(rows_that_follow_do_not_change_a_bit, &sl_ops_cpu),
        CASE(attention_of_a_share_has_the_bits_of_the_whole, &sl_ops_cpu),
        CASE(a_second_run_gives_the_same_bits, &sl_ops_cpu),
        cmocka_unit_test(exponential_is_good_to_two_units),
        cmocka_unit_test(activations_are_good_to_a_few_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
