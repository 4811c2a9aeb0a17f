/* test_fbcache.c - each rule of the First Block Cache's decision. */
#include "tests/t_net.h"

#include "graphs/fbcache.h"

#define TOKENS 3
#define DIM 4
#define CELLS (TOKENS * DIM)

static sl_ctx ctx;
static sl_err err;
static void *memory;

static int open_all(void **state)
{
    (void)state;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 4096, &err));
    memory = aligned_alloc(256, sl_fbcache_bytes(&ctx, TOKENS, DIM));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    free(memory);
    sl_ctx_close(&ctx);
    return 0;
}

/* Decide on a first block that changed every element by `r`. */
static sl_fbcache_report decide(sl_fbcache *c, float r)
{
    float values[CELLS];
    sl_tensor t = sl_view2(values, SL_F32, TOKENS, DIM);
    sl_fbcache_report report = {0};
    for (int i = 0; i < CELLS; i++) values[i] = r;
    bool compute = sl_fbcache_decide(&ctx, c, &t, NULL, &report);
    assert_int_equal(compute, report.computed);
    c->step++;
    return report;
}

static sl_fbcache start(sl_fbcache_rules rules)
{
    sl_fbcache c;
    sl_fbcache_init(&ctx, &c, &rules, memory, TOKENS, DIM);
    return c;
}

static void first_step_computes_without_a_metric(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.1f});
    sl_fbcache_report r = decide(&c, 1);
    assert_true(r.computed);
    assert_true(isnan(r.metric));
    assert_true(c.filled);
}

/* 0.25 and its neighbours are exact in float32: equality is a hit. */
static void computes_above_the_threshold_only(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.25f});
    decide(&c, 1);
    sl_fbcache_report r = decide(&c, 1.25f);
    assert_true(!r.computed && r.metric == 0.25f);
    r = decide(&c, 0.75f);
    assert_true(!r.computed && r.metric == 0.25f);
    r = decide(&c, 1.375f);
    assert_true(r.computed && r.metric == 0.375f);
}

/* A hit leaves prev alone, so small drifts add up until they trip. */
static void compares_with_the_last_computed_step(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.25f});
    decide(&c, 1);
    assert_false(decide(&c, 1.125f).computed);
    assert_false(decide(&c, 1.25f).computed);
    assert_int_equal(c.hits, 2);
    assert_true(decide(&c, 1.375f).computed);
    assert_int_equal(c.hits, 0);
    assert_false(decide(&c, 1.5f).computed);
}

static void threshold_zero_is_off(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0});
    decide(&c, 1);
    sl_fbcache_report r = decide(&c, 1.5f);
    assert_true(r.computed);
    assert_true(isnan(r.metric));
}

static void nan_computes(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f});
    decide(&c, 1);
    assert_true(decide(&c, NAN).computed);
    assert_true(decide(&c, 1).computed); /* prev is NaN now */
    assert_false(decide(&c, 1).computed);
}

/* mean|prev| = 0 makes the metric 0/0 or x/0. */
static void a_first_block_that_did_nothing_computes(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f});
    decide(&c, 0);
    assert_true(decide(&c, 0).computed);
    assert_true(decide(&c, 1).computed);
}

static void warmup_steps_compute(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f, .warmup = 3});
    for (int i = 0; i < 3; i++) assert_true(decide(&c, 1).computed);
    assert_false(decide(&c, 1).computed);
}

static void final_steps_compute(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f, .final = 2});
    c.steps = 6;
    bool want[] = {true, false, false, false, true, true};
    for (int i = 0; i < 6; i++) assert_int_equal(decide(&c, 1).computed, want[i]);
}

static void hits_in_a_row_are_capped(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f, .max_hits = 2});
    bool want[] = {true, false, false, true, false, false, true};
    for (int i = 0; i < 7; i++) assert_int_equal(decide(&c, 1).computed, want[i]);
}

/* Resuming replays the decisions of the run that died. */
static void a_forced_decision_overrides_the_rules(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f});
    decide(&c, 1);
    c.force = 1;
    assert_true(decide(&c, 1).computed);
    c.force = -1;
    sl_fbcache_report r = decide(&c, 9);
    assert_false(r.computed);
    assert_true(r.metric == 8);
}

static void a_forced_hit_needs_a_residual(void **state)
{
    (void)state;
    sl_fbcache c = start((sl_fbcache_rules){.threshold = 0.5f});
    c.force = -1;
    decide(&c, 1);
    T_CODE(sl_ctx_error(&ctx, &err), SL_ARG);
    T_SAYS(err.msg, "fbcache: step 0 is to reuse a cached residual, but none is held");
    assert_false(c.filled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_step_computes_without_a_metric),
        cmocka_unit_test(computes_above_the_threshold_only),
        cmocka_unit_test(compares_with_the_last_computed_step),
        cmocka_unit_test(threshold_zero_is_off),
        cmocka_unit_test(nan_computes),
        cmocka_unit_test(a_first_block_that_did_nothing_computes),
        cmocka_unit_test(warmup_steps_compute),
        cmocka_unit_test(final_steps_compute),
        cmocka_unit_test(hits_in_a_row_are_capped),
        cmocka_unit_test(a_forced_decision_overrides_the_rules),
        cmocka_unit_test(a_forced_hit_needs_a_residual),
    };
    return cmocka_run_group_tests_name("fbcache", tests, open_all, close_all);
}
