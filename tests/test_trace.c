/* test_trace.c - spans add up and their union leaves exactly the gaps. */
#include "tests/t.h"

#include "common/trace.h"

static void fill(sl_trace *t, const sl_span *spans, size_t n)
{
    sl_err err = {0};
    for (size_t i = 0; i < n; i++) T_OK(sl_trace_add(t, &spans[i], &err));
}

static void union_counts_overlaps_once(void **state)
{
    (void)state;
    sl_trace t = {0};
    const sl_span spans[] = {
        sl_span_make(7, "text", SL_SPAN_COMPUTE, 100, 200),
        sl_span_make(7, "image", SL_SPAN_COMPUTE, 50, 150),
        sl_span_make(7, "image", SL_SPAN_LOAD, 60, 70),
        sl_span_make(7, "mux", SL_SPAN_WAIT, 300, 400),
        sl_span_make(7, "mux", SL_SPAN_WAIT, 400, 450),
        sl_span_make(8, "mux", SL_SPAN_WAIT, 0, 1000),
        sl_span_make(7, "mux", SL_SPAN_SPOOL, 500, 500),
    };
    fill(&t, spans, 7);
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 7, NULL, 0, 1000), 150 + 150);
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 7, NULL, 120, 320), 80 + 20);
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 7, "image", 0, 1000), 100);
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 9, NULL, 0, 1000), 0);
    assert_int_equal(sl_span_covered_ns(NULL, 0, 7, NULL, 0, 1000), 0);
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 8, NULL, 500, 400), 0);
    sl_trace_free(&t);
}

static void sums_count_every_span_clipped(void **state)
{
    (void)state;
    sl_trace t = {0};
    int64_t sums[SL_SPAN_KIND_COUNT];
    const sl_span spans[] = {
        sl_span_make(7, "text", SL_SPAN_COMPUTE, 100, 200),
        sl_span_make(7, "image", SL_SPAN_COMPUTE, 50, 150),
        sl_span_make(7, "image", SL_SPAN_QUEUE, 0, 50),
    };
    fill(&t, spans, 3);
    sl_span_sums_ns(t.spans, t.count, 7, NULL, 20, 180, sums);
    assert_int_equal(sums[SL_SPAN_COMPUTE], 180);
    assert_int_equal(sums[SL_SPAN_QUEUE], 30);
    assert_int_equal(sums[SL_SPAN_LOAD], 0);
    sl_span_sums_ns(t.spans, t.count, 7, "text", 0, 1000, sums);
    assert_int_equal(sums[SL_SPAN_COMPUTE], 100);
    sl_trace_free(&t);
}

static void union_equals_a_marked_line(void **state)
{
    (void)state;
    enum { N = 400, LINE = 2000 };
    static char line[LINE];
    sl_trace t = {0};
    sl_err err = {0};
    uint64_t seed = 5;
    for (int i = 0; i < N; i++) {
        int64_t a = (int64_t)((t_rand(&seed) + 1) / 2 * LINE),
                b = a + (int64_t)((t_rand(&seed) + 1) * 4);
        sl_span s = sl_span_make(1, "x", SL_SPAN_WAIT, a, b);
        T_OK(sl_trace_add(&t, &s, &err));
        for (int64_t k = a; k < b && k < LINE; k++) line[k] = 1;
    }
    int64_t want = 0;
    for (int k = 0; k < LINE; k++) want += line[k];
    assert_int_equal(sl_span_covered_ns(t.spans, t.count, 1, NULL, 0, LINE), want);
    sl_trace_free(&t);
}

static void bad_spans_are_refused(void **state)
{
    (void)state;
    sl_trace t = {0};
    sl_err err = {0};
    sl_span s = sl_span_make(1, "a-name-longer-than-the-field", SL_SPAN_LOAD, 20, 10);
    assert_string_equal(s.stage, "a-name-longer-t");
    T_CODE(sl_trace_add(&t, &s, &err), SL_ARG);
    assert_string_equal(err.msg, "trace: load span ends at 10 ns, before its start at 20 ns");
    s.kind = 99;
    T_CODE(sl_trace_add(&t, &s, &err), SL_ARG);
    assert_string_equal(err.msg, "trace: span of kind 99, want 0 to 7");
    assert_string_equal(sl_span_kind_name(99), "?");
    assert_string_equal(sl_span_kind_name(SL_SPAN_HANDOVER), "handover");
    assert_int_equal(t.count, 0);
}

static void the_clock_goes_forward(void **state)
{
    (void)state;
    int64_t a = sl_now_ns();
    usleep(2000);
    int64_t d = sl_now_ns() - a;
    assert_true(d >= 2000000 && d < 2000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(union_counts_overlaps_once),
        cmocka_unit_test(sums_count_every_span_clipped),
        cmocka_unit_test(union_equals_a_marked_line),
        cmocka_unit_test(bad_spans_are_refused),
        cmocka_unit_test(the_clock_goes_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
