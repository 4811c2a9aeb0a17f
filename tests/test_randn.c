/* test_randn.c - noise by seed is torch's. */
#include "t.h"

#include "common/safetensors.h"
#include "graphs/randn.h"

/* Below 16 numbers libm's logarithm and cosine count, in double: a rounding may turn. From 16 on
 * the bits are torch's. */
#define TOLERANCE_OF(n) ((n) < 16 ? 1e-6 : 0)

static void golden_seeds(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint64_t seed;
    } at[] = {{"randn.cpu.0", 0},
              {"randn.cpu.42", 42},
              {"randn.cpu.123456789", 123456789},
              {"randn.cpu.42.n7", 42}};
    sl_err err = {0};
    sl_st *st = NULL;
    T_OK(sl_st_open_file(&st, t_golden("tiny-i2v/scheduler.safetensors"), &err));
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        const sl_st_entry *e = sl_st_find(st, at[i].key);
        assert_non_null(e);
        int64_t n = sl_count(&e->t);
        float *want = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
        T_OK(sl_to_floats(want, e->t.data, e->t.dtype, n, &err));
        sl_randn(got, n, at[i].seed);
        T_NEAR(got, want, n, TOLERANCE_OF(n));
        free(want);
        free(got);
    }
    sl_st_close(&st);
}

/* torch 2.15: torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)) */
static void lengths_and_wide_seeds(void **state)
{
    (void)state;
    static const float few[3] = {-0.486780763f, -0.603821576f, -0.55809623f};
    static const float tail[17] = {
        0.450170755f,  0.502557337f,  0.831809342f, 1.18586898f,  -0.518711686f, -1.11109316f,
        -0.723828137f, -0.241603106f, 0.724853635f, -1.21363866f, 0.482566059f,  -0.0477662273f,
        0.248440236f,  -0.731944621f, 0.230867177f, -1.49579382f, -1.53976643f};
    static const float minus_one[4] = {1.21976304f, -0.392979473f, 1.0230751f, -0.373421133f};
    float got[17];
    sl_randn(got, 3, 5);
    T_NEAR(got, few, 3, TOLERANCE_OF(3));
    sl_randn(got, 3, ((uint64_t)1 << 63) + 5); /* the upper half of a seed does not count */
    T_NEAR(got, few, 3, TOLERANCE_OF(3));
    sl_randn(got, 17, 0x123456789abcdef0);
    T_NEAR(got, tail, 17, TOLERANCE_OF(17));
    sl_randn(got, 17, 0x9abcdef0);
    T_NEAR(got, tail, 17, TOLERANCE_OF(17));
    sl_randn(got, 4, UINT64_MAX);
    T_NEAR(got, minus_one, 4, TOLERANCE_OF(4));
    got[0] = 7;
    sl_randn(got, 0, 1);
    assert_true(got[0] == 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_seeds),
        cmocka_unit_test(lengths_and_wide_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
