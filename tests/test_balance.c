/* test_balance - which shares a team's ranks get for the times that they took: case by case, then
 * ranks of given paces over many forwards. */
#include "tests/t.h"

#include <math.h>

#include "graphs/balance.h"

/* A team with shares `at` (all 0: equal) took `busy` in each of two forwards, the first one behind
 * a forward that tells nothing. */
static const struct {
    int size;
    double part;
    uint8_t at[4];
    double busy[4];
    uint8_t want[4];
    const char *why;
} CASES[] = {
    {2, 0.5, {0}, {1.2, 1.2}, {64, 64}, "equal ranks have equal shares"},
    {4, 0.5, {0}, {5, 5, 5, 5}, {64, 64, 64, 64}, "so have four"},
    {1, 0.5, {0}, {3}, {64}, "one has all"},
    {2, 0.48, {0}, {1.228, 1.186}, {62, 66}, "two cards as they were measured"},
    {2, 0.48, {0}, {1.186, 1.228}, {66, 62}, "the other way round"},
    {2, 0.48, {62, 66}, {1.208, 1.206}, {62, 66}, "what is good enough stays"},
    {2, 0.5, {0}, {1.003, 1.0}, {64, 64}, "a change would save less than it must"},
    {2, 0.25, {0}, {1.228, 1.186}, {61, 67}, "fewer rows count, more of them move"},
    {2, 1, {0}, {1.228, 1.186}, {63, 65}, "all goes by rows"},
    {2, 0.5, {66, 62}, {1.2, 1.2}, {66, 62}, "uneven shares that end together stay"},
    {2, 0.5, {70, 58}, {1.05, 0.95}, {65, 63}, "too much was moved: most of it comes back"},
    {2, 0.5, {0}, {1.5, 1.0}, {56, 72}, "no further than the bounds"},
    {2, 0.5, {56, 72}, {1.5, 1.0}, {56, 72}, "and there they stay"},
    {4, 0.5, {0}, {1.3, 1, 1, 1}, {56, 67, 67, 66}, "the slow one gives to all, as far as it may"},
    {4, 0.5, {0}, {1.04, 1.02, 1.0, 0.98}, {61, 63, 65, 67}, "each by its pace"},
    {2, 0.5, {0}, {0, 1}, {64, 64}, "none measured"},
    {2, 0.5, {0}, {-1, 1}, {64, 64}, "less than nothing"},
    {2, 0.5, {0}, {NAN, 1}, {64, 64}, "no number"},
    {2, 0.5, {0}, {INFINITY, 1}, {64, 64}, "no end"},
    {2, 0.5, {0}, {3601, 3000}, {64, 64}, "more than an hour"},
    {2, 0.5, {0}, {4.1, 1}, {64, 64}, "one was disturbed"},
    {2, 0, {0}, {1.228, 1.186}, {64, 64}, "nothing goes by rows"},
    {2, NAN, {0}, {1.228, 1.186}, {64, 64}, "a part that is none"},
    {2, 1.5, {0}, {1.228, 1.186}, {64, 64}, "more than all"},
};

static void shares_follow_times(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++) {
        sl_balance b;
        sl_err err = {0};
        bool changed = false;
        T_OK(sl_balance_begin(&b, CASES[k].size, CASES[k].at, NULL, &err));
        for (int i = 0; i < 3; i++) {
            const bool now = sl_balance_next(&b, CASES[k].part, CASES[k].busy);
            if (now && i < 2) fail_msg("%s: the shares change after %d forwards", CASES[k].why, i);
            changed |= now;
        }
        bool other = false;
        for (int i = 0; i < CASES[k].size; i++) {
            const int had = CASES[k].at[0] ? CASES[k].at[i] : SL_SHARE_EQUAL;
            if (b.weight[i] != CASES[k].want[i])
                fail_msg("%s: member %d of %d has %d, want %d", CASES[k].why, i, b.size,
                         b.weight[i], CASES[k].want[i]);
            other |= b.weight[i] != had;
        }
        assert_int_equal(changed, other);
        assert_true(sl_shares_fit(b.weight, b.size));
    }
}

/* A forward that makes no sense is as if it had not been: neither the first, which tells nothing,
 * nor one of the mean. */
static void nonsense_is_no_forward(void **state)
{
    static const double GOOD[] = {1.228, 1.186}, BAD[] = {0, 0};
    sl_balance b;
    sl_err err = {0};
    (void)state;
    T_OK(sl_balance_begin(&b, 2, NULL, NULL, &err));
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 5; k++) assert_false(sl_balance_next(&b, 0.48, BAD));
        assert_int_equal(sl_balance_next(&b, 0.48, GOOD), i == 2);
    }
    assert_int_equal(b.weight[0], 62);
}

/* Ranks of these paces, seconds of an equal share, over `forwards`, the noise among them up to so
 * much of each: how long a forward takes at the end beside what it could, and how often shares have
 * changed. */
static double follow(int size, const double pace[], double part, int forwards, double noise,
                     int *changes)
{
    sl_balance b;
    sl_err err = {0};
    unsigned seed = 1;
    double rate = 0, slowest = 0;
    T_OK(sl_balance_begin(&b, size, NULL, NULL, &err));
    *changes = 0;
    for (int i = 0; i < size; i++) rate += 1 / pace[i];
    for (int f = 0; f <= forwards; f++) {
        double busy[SL_RANKS];
        slowest = 0;
        for (int i = 0; i < size; i++) {
            const double s = pace[i] * (1 - part + part * b.weight[i] / SL_SHARE_EQUAL);
            seed = seed * 1664525u + 1013904223u;
            busy[i] = s * (1 + noise * ((double)(seed >> 8) / 8388608.0 - 1));
            slowest = s > slowest ? s : slowest;
        }
        if (f == forwards) break;
        *changes += sl_balance_next(&b, part, busy);
        assert_true(sl_shares_fit(b.weight, size));
        for (int i = 0; i < size; i++)
            assert_in_range(b.weight[i], SL_BALANCE_LEAST, SL_SHARE_MOST);
    }
    return slowest / (size / rate);
}

static void ranks_come_to_end_together(void **state)
{
    static const struct {
        int size;
        double part, pace[8];
        int most_changes;
    } AT[] = {
        {2, 0.48, {1.228, 1.186}, 2},
        {2, 0.28, {4.6, 4.45}, 2},
        {4, 0.48, {0.62, 0.60, 0.63, 0.61}, 2},
        {8, 0.48, {0.31, 0.30, 0.30, 0.32, 0.31, 0.30, 0.315, 0.305}, 3},
        {5, 0.35, {1, 1.01, 1.02, 1.03, 0.99}, 2},
    };
    (void)state;
    for (size_t k = 0; k < sizeof AT / sizeof *AT; k++)
        for (int noisy = 0; noisy < 2; noisy++) {
            int changes;
            const double over =
                follow(AT[k].size, AT[k].pace, AT[k].part, 30, noisy ? 0.002 : 0, &changes);
            if (over > 1.006 || changes > AT[k].most_changes || !changes)
                fail_msg("team %zu: a forward takes %.4f of the best after %d changes", k, over,
                         changes);
        }
}

/* Noise alone, even much of it, moves shares a few times at most in a long job. */
static void noise_costs_few_plans(void **state)
{
    static const double EVEN[] = {1, 1, 1, 1, 1, 1, 1, 1};
    int changes;
    (void)state;
    for (int size = 2; size <= 8; size++) {
        follow(size, EVEN, 0.5, 1000, 0.002, &changes);
        assert_int_equal(changes, 0);
        assert_true(follow(size, EVEN, 0.5, 1000, 0.2, &changes) < 1.07);
        assert_true(changes <= SL_BALANCE_MOST_CHANGES);
    }
}

static void a_fresh_team_is_equal_or_as_the_last(void **state)
{
    static const uint8_t LAST[] = {60, 68}, WRONG[] = {60, 69}, NONE[] = {0, 0};
    static const uint8_t *const AT[] = {LAST, WRONG, NONE, NULL};
    sl_balance b;
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 4; i++) {
        T_OK(sl_balance_begin(&b, 2, AT[i], NULL, &err));
        assert_int_equal(b.weight[0], i ? 64 : 60);
        assert_int_equal(b.weight[1], i ? 64 : 68);
    }
}

/* Lists take turns, whatever is measured; those of other sizes are left out. */
static void shares_may_be_given(void **state)
{
    static const double BUSY[] = {NAN, 9};
    static const uint8_t WANT[][2] = {{72, 56}, {56, 72}, {64, 64}, {72, 56}};
    static const char *const WRONG[] = {
        "",        "72",
        "72:57",   "73:55",
        "72:56,",  "72;56",
        "128:0",   "72:56:",
        ":",       "-1:129",
        "a",       "64:64,1:64",
        "64 : 64", "64:64:64:64:64:64:64:64:64:64:64:64:64:64:64:64:64"};
    sl_balance b;
    sl_err err = {0};
    (void)state;
    T_OK(sl_balance_begin(&b, 2, NULL, "72:56,72:60:60,56:72,64:64", &err));
    for (int i = 0; i < 4; i++) {
        assert_memory_equal(b.weight, WANT[i], 2);
        assert_true(sl_balance_next(&b, 0.5, BUSY));
    }
    T_OK(sl_balance_begin(&b, 2, NULL, "72:60:60,64", &err));
    assert_int_equal(b.weight[0], 64);
    assert_false(sl_balance_next(&b, 0.5, BUSY));
    for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
        T_CODE(sl_balance_begin(&b, 2, NULL, WRONG[i], &err), SL_ARG);
        T_SAYS(err.msg, "want weights such as 72:56, of each member 1 to 72, in the mean 64");
        assert_int_equal(b.weight[1], 64);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_follow_times),
        cmocka_unit_test(nonsense_is_no_forward),
        cmocka_unit_test(ranks_come_to_end_together),
        cmocka_unit_test(noise_costs_few_plans),
        cmocka_unit_test(a_fresh_team_is_equal_or_as_the_last),
        cmocka_unit_test(shares_may_be_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
