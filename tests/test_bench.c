/* test_bench - what `sluice bench` measures on the CPU, of a team of ranks and in 8 bits: the
 * figures hang together, and all ranks make one rank's bytes. takes: 8 s. limit: 180 s */
#include "tests/t_run.h"

#include <jansson.h>
#include <math.h>

static t_run run;

/* `sluice bench WHAT` of a small size on these devices. The caller frees the results. */
static json_t *bench_in(const char *what, const char *precision, const char *devices, int status)
{
    char report[300];
    snprintf(report, sizeof report, "%s/report.json", run.base);
    char *args[] = {"sluice",        "bench",     (char *)what,  "--model",         T_MODEL,
                    "--size",        "160x96x17", "--quick",     "--guidance",      "5",
                    "--json",        report,      "--precision", (char *)precision, "--device",
                    (char *)devices, NULL};
    t_run_start(&run, args);
    t_run_ends(&run, status);
    t_run_nothing_left(&run, 0);
    json_t *told = json_load_file(report, 0, NULL);
    if (!told) return NULL;
    json_t *results = json_incref(json_object_get(told, "results"));
    json_decref(told);
    return results;
}

static json_t *bench(const char *devices, int status)
{
    return bench_in("dit", "bf16", devices, status);
}

static json_t *result(const json_t *results, const char *what)
{
    for (size_t i = 0; i < json_array_size(results); i++) {
        json_t *k = json_array_get(results, i);
        if (!strcmp(json_string_value(json_object_get(k, "what")), what)) return k;
    }
    return NULL;
}

static double number(const json_t *results, const char *what, const char *key)
{
    json_t *v = json_object_get(result(results, what), key);
    if (!json_is_number(v)) t_run_fail(&run, "%s has no %s", what, key);
    return json_number_value(v);
}

/* A rank's number in an array of all; none: 0. */
static double of_rank(const json_t *results, const char *what, const char *key, size_t rank)
{
    return json_number_value(json_array_get(json_object_get(result(results, what), key), rank));
}

/* Each rank's part of a forward's rows. */
static double rows_of(const json_t *results, const char *what, size_t rank)
{
    return of_rank(results, what, "rows", rank);
}

static void a_team_is_measured_beside_one_rank(void **state)
{
    (void)state;
    t_run_open(&run);
    json_t *r = bench("cpu,cpu", 0);
    for (int halves = 0; halves < 2; halves++) {
        const char *one = halves ? "step 1 rank" : "dit 1 rank",
                   *two = halves ? "step 2 ranks" : "dit 2 ranks";
        const double alone = number(r, one, "seconds"), team = number(r, two, "seconds");
        assert_true(json_is_true(json_object_get(result(r, two), "same_bytes")));
        assert_int_equal(number(r, two, "ranks"), 2);
        assert_int_equal(number(r, two, "shards"), halves ? 1 : 2);
        assert_true(number(r, two, "one_rank") == alone);
        assert_true(fabs(number(r, two, "efficiency") - alone / team / 2) < 1e-6);
        assert_true(number(r, two, "waited") >= 0 && number(r, two, "waited") < team);
        assert_true((number(r, two, "exchange_seconds") > 0) == !halves);
        assert_true(fabs(rows_of(r, two, 0) + rows_of(r, two, 1) - !halves) < 1e-9);
        assert_in_range(number(r, two, "warm_runs"), halves ? 1 : 3, halves ? 1 : 8);
        double most = 0; /* that a rank waited */
        for (size_t k = 0; k < 2; k++) {
            const double computing = of_rank(r, two, "computing", k),
                         waiting = of_rank(r, two, "waiting", k);
            assert_true(computing > 0 && waiting >= 0 && computing + waiting < 1.01 * team + 0.01);
            most = fmax(most, waiting);
        }
        assert_true(fabs(most - number(r, two, "waited")) < 1e-9);
        /* a guided step is two forwards, and by halves one */
        assert_true(number(r, one, "linear_ops") > 0);
        assert_true(number(r, two, "linear_ops") < number(r, one, "linear_ops"));
    }
    assert_true(number(r, "step 1 rank", "linear_ops") ==
                2 * number(r, "dit 1 rank", "linear_ops"));
    /* halves exchange v alone, F32 [16, 5, 12, 20] */
    assert_int_equal(number(r, "step 2 ranks", "sent_bytes"), 16 * 5 * 12 * 20 * 4);
    assert_true(number(r, "dit 2 ranks", "sent_bytes") > 100000);
    json_decref(r);
    t_run_close(&run);
}

/* Shares that are given: 300 tokens are 6 granules of 48, 2 of them the first's, and 12. */
static void shares_are_given(void **state)
{
    (void)state;
    t_run_open(&run);
    setenv("SLUICE_SHARES", "60:60:72,56:72", 1);
    json_t *r = bench("cpu,cpu", 0);
    unsetenv("SLUICE_SHARES");
    assert_true(json_is_true(json_object_get(result(r, "dit 2 ranks"), "same_bytes")));
    assert_true(fabs(rows_of(r, "dit 2 ranks", 0) - 2 * 48 / 300.0) < 1e-9);
    assert_int_equal(number(r, "dit 2 ranks", "warm_runs"), 1);
    json_decref(r);
    setenv("SLUICE_SHARES", "64:65", 1);
    json_decref(bench("cpu,cpu", 1));
    unsetenv("SLUICE_SHARES");
    if (!t_run_said(&run, "SLUICE_SHARES=64:65, want weights such as 72:56"))
        t_run_fail(&run, "said something else");
    t_run_close(&run);
}

/* Two heads do not divide by three, and three ranks have no halves. */
static void what_cannot_be_shared_is_left_out(void **state)
{
    (void)state;
    t_run_open(&run);
    json_t *r = bench("cpu,cpu,cpu", 0);
    assert_null(result(r, "dit 3 ranks"));
    assert_null(result(r, "step 3 ranks"));
    json_decref(r);
    t_run_close(&run);
}

/* With attention in 8 bits the products are as many, and two ranks make one's bytes. */
static void a_forward_in_8_bits_is_measured(void **state)
{
    (void)state;
    t_run_open(&run);
    json_t *whole = bench("cpu", 0), *eight = bench_in("dit", "fp8", "cpu,cpu", 0);
    assert_true(json_is_true(json_object_get(result(eight, "dit 2 ranks"), "same_bytes")));
    assert_true(number(whole, "dit", "attention_ops") > 0);
    assert_true(number(whole, "dit", "attention_ops") ==
                number(eight, "dit 1 rank", "attention_ops"));
    assert_true(number(whole, "dit", "linear_ops") == number(eight, "dit 1 rank", "linear_ops"));
    json_decref(whole);
    json_decref(eight);
    json_decref(bench_in("dit", "fp4", "cpu", 2));
    if (!t_run_said(&run, "precision is fp4, want bf16, fp8-linear or fp8"))
        t_run_fail(&run, "said something else");
    t_run_close(&run);
}

/* Whole, and its parts: the codes alone, which are no products, and what follows them. */
static void attention_in_8_bits_is_measured_with_its_codes(void **state)
{
    (void)state;
    t_run_open(&run);
    json_t *r = bench_in("attention", "bf16", "cpu", 0);
    const double whole = number(r, "attention in 8 bits", "attention_ops");
    assert_true(whole > 0 && whole == number(r, "attention", "attention_ops"));
    assert_true(whole == number(r, "attention of the codes", "attention_ops"));
    assert_true(number(r, "its codes", "attention_ops") == 0);
    assert_true(number(r, "its codes", "bytes") > 0);
    assert_true(number(r, "its codes", "seconds") < number(r, "attention in 8 bits", "seconds"));
    json_decref(r);
    t_run_close(&run);
}

static void a_device_that_is_none_is_refused(void **state)
{
    (void)state;
    t_run_open(&run);
    json_decref(bench("cpu,gpu", 2));
    if (!t_run_said(&run, "--device is cpu,gpu, want cpu or cuda:N"))
        t_run_fail(&run, "said something else");
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_team_is_measured_beside_one_rank),
        cmocka_unit_test(shares_are_given),
        cmocka_unit_test(what_cannot_be_shared_is_left_out),
        cmocka_unit_test(a_forward_in_8_bits_is_measured),
        cmocka_unit_test(attention_in_8_bits_is_measured_with_its_codes),
        cmocka_unit_test(a_device_that_is_none_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
