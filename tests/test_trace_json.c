/* test_trace_json.c - `run --trace`: events that viewers take, whose lengths are the report's
 * figures. takes: 2 s. limit: 240 s */
#include "tests/t_run.h"

#include <jansson.h>

#include "stages/job/trace_json.h"

static t_run run;

/* ---- reading ---- */

static json_t *load(const char *path)
{
    json_error_t why;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!root) fail_msg("%s: %s", path, why.text);
    return root;
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* What every event must have; events of a track come in order and do not overlap. */
static json_t *events_of(const json_t *root)
{
    json_t *events = json_object_get(root, "traceEvents"), *e;
    size_t i, k;
    if (!json_is_array(events)) fail_msg("no traceEvents");
    json_array_foreach(events, i, e)
    {
        json_t *other;
        const bool complete = !strcmp(text(e, "ph"), "X");
        if (!*text(e, "name") || (!complete && strcmp(text(e, "ph"), "M")) ||
            !json_is_integer(json_object_get(e, "pid")) ||
            !json_is_integer(json_object_get(e, "tid")) ||
            !json_is_object(json_object_get(e, "args")))
            fail_msg("event %zu: %s", i, json_dumps(e, JSON_COMPACT));
        if (!complete) continue;
        if (!json_is_number(json_object_get(e, "ts")) || !(number(e, "ts") >= 0) ||
            !json_is_number(json_object_get(e, "dur")) || !(number(e, "dur") >= 0) ||
            !*text(e, "cat"))
            fail_msg("event %zu: %s", i, json_dumps(e, JSON_COMPACT));
        int names = 0;
        json_array_foreach(events, k, other)
        {
            const bool same = number(other, "pid") == number(e, "pid") &&
                              number(other, "tid") == number(e, "tid");
            if (same && !strcmp(text(other, "name"), "thread_name")) names++;
            if (same && !strcmp(text(other, "ph"), "X") && k > i &&
                number(e, "ts") + number(e, "dur") > number(other, "ts") + 0.0015)
                fail_msg("events %zu and %zu overlap in a track", i, k);
        }
        if (names != 1) fail_msg("event %zu: its track has %d names", i, names);
    }
    return events;
}

/* The process of this name; 0: none. */
static int process_of(const json_t *events, const char *stage)
{
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) if (!strcmp(text(e, "name"), "process_name") &&
                                         !strcmp(text(json_object_get(e, "args"), "name"),
                                                 stage)) return (int)number(e, "pid");
    return 0;
}

/* Seconds of a stage's events of this kind, of one job or, "", of none; their number in *n. */
static double sum(const json_t *events, const char *stage, const char *kind, const char *job,
                  int *n)
{
    const int process = process_of(events, stage);
    double s = 0;
    size_t i;
    json_t *e;
    *n = 0;
    json_array_foreach(events, i, e)
    {
        if (strcmp(text(e, "cat"), kind) || number(e, "pid") != process ||
            strcmp(text(json_object_get(e, "args"), "job"), job))
            continue;
        s += number(e, "dur") * 1e-6;
        ++*n;
    }
    return s;
}

/* Microseconds with three places and seconds with nine digits round away this much an event. */
#define NEAR(a, b, n)                                                                              \
    do {                                                                                           \
        if (!(fabs((a) - (b)) <= 2e-9 * ((n) + 1) + 1e-8 * (b)))                                   \
            fail_msg("%s is %.9f, the report says %.9f", #a, (a), (b));                            \
    } while (0)

/* The events of one job against its report. */
static void check_job(const json_t *events, const json_t *report, const char *job)
{
    static const struct {
        const char *kind, *key;
    } KINDS[] = {{"queue", "queued"}, {"compute", "computing"}, {"handover", "handing_over"},
                 {"wait", "waiting"}, {"spool", "spooling"},    {"turn", "turn"}};
    json_t *stages = json_object_get(report, "stages"), *of,
           *steps = json_object_get(report, "steps"), *e;
    const char *stage;
    int n, more;
    assert_int_equal(json_object_size(stages), SL_ROLE_COUNT);
    json_object_foreach(stages, stage, of)
    {
        for (size_t k = 0; k < sizeof KINDS / sizeof *KINDS; k++) {
            const double took = sum(events, stage, KINDS[k].kind, job, &n);
            NEAR(took, number(of, KINDS[k].key), n);
        }
        assert_true(sum(events, stage, "compute", job, &n) > 0);
        /* one process a role: what it loaded is no overlap but its start's with its reading */
        assert_true(sum(events, stage, "start", "", &n) + sum(events, stage, "load", "", &more) >=
                    number(of, "loading") - 1e-6);
        assert_true(n == 1 && more == 1);
    }
    const double all = sum(events, "client", "job", job, &n);
    assert_int_equal(n, 1);
    NEAR(all, number(report, "total"), n);
    const double own =
        sum(events, "client", "start", "", &n) + sum(events, "client", "spool", job, &more);
    NEAR(own, number(report, "client"), n + more);

    sum(events, "denoise", "step", job, &n);
    assert_int_equal(n, json_array_size(steps));
    size_t i;
    json_array_foreach(events, i, e)
    {
        const json_t *args = json_object_get(e, "args");
        if (strcmp(text(e, "cat"), "step") || strcmp(text(args, "job"), job)) continue;
        const json_t *s = json_array_get(steps, (size_t)number(args, "step") - 1);
        const double seconds = number(e, "dur") * 1e-6;
        NEAR(seconds, number(s, "seconds"), 1);
        for (int b = 0; b < 2; b++) {
            const char *branch = b ? "uncond" : "cond";
            const json_t *x = json_object_get(args, branch), *y = json_object_get(s, branch);
            assert_int_equal(json_is_null(x), json_is_null(y));
            assert_int_equal(json_is_true(json_object_get(x, "computed")),
                             json_is_true(json_object_get(y, "computed")));
        }
    }
}

/* ---- runs ---- */

static void start(const char *first, ...)
{
    char *args[T_ARGS] = {"sluice", "run",      "--quiet", "--conf",    run.conf, "--model",
                          T_MODEL,  "--image",  T_IMAGE,   "--prompt",  "A cat.", "--width",
                          "48",     "--height", "32",      "--seed",    "7",      "--frames",
                          "9",      "--steps",  "6",       "--fbcache", "0.3"};
    int n = 0;
    va_list ap;
    while (args[n]) n++;
    va_start(ap, first);
    for (const char *a = first; a; a = va_arg(ap, const char *)) args[n++] = (char *)a;
    va_end(ap);
    t_run_start(&run, args);
}

static void a_job_has_its_trace(void **state)
{
    const char *trace = t_format("%s/trace.json", run.out), *json = t_format("%s/r.json", run.out);
    (void)state;
    start("-o", t_format("%s/a.mp4", run.out), "--json", json, "--trace", trace, NULL);
    const char *job = t_format("%d-1", (int)run.pid);
    t_run_ends(&run, 0);
    json_t *root = load(trace), *report = load(json), *events = events_of(root);
    check_job(events, report, job);
    /* a skipped forward is seen */
    int skipped = 0;
    size_t i;
    json_t *e;
    json_array_foreach(events, i, e) skipped += json_is_false(
        json_object_get(json_object_get(json_object_get(e, "args"), "cond"), "computed"));
    assert_true(skipped > 0);
    json_decref(root);
    json_decref(report);
}

static void a_batch_has_one_trace(void **state)
{
    const char *trace = t_format("%s/all.json", run.out), *json = t_format("%s/r.json", run.out),
               *jobs = t_format("%s/jobs.jsonl", run.base), *own = t_format("%s/2.json", run.out);
    (void)state;
    t_write(jobs, t_format("{\"output\": \"%s/1.mp4\"}\n{\"output\": \"%s/2.mp4\", \"seed\": 8, "
                           "\"steps\": 4, \"trace\": \"%s\"}\n",
                           run.out, run.out, own));
    start("--jobs", jobs, "--json", json, "--trace", trace, NULL);
    const int pid = (int)run.pid;
    t_run_ends(&run, 0);
    json_t *root = load(trace), *alone = load(own), *report = load(json);
    json_t *all = json_object_get(report, "jobs");
    assert_int_equal(json_array_size(all), 2);
    for (size_t i = 0; i < 2; i++)
        check_job(events_of(root), json_array_get(all, i), t_format("%d-%zu", pid, i + 1));
    /* the line's own trace has that job alone */
    int n;
    check_job(events_of(alone), json_array_get(all, 1), t_format("%d-2", pid));
    sum(json_object_get(alone, "traceEvents"), "denoise", "step", t_format("%d-1", pid), &n);
    assert_int_equal(n, 0);
    json_decref(root);
    json_decref(alone);
    json_decref(report);
}

/* ---- a report without a run ---- */

/* Jobs that have not ended, ranks, spans of other jobs and past the end. */
static void what_a_run_seldom_has(void **state)
{
    sl_request jobs[2] = {{.id = 1, .spec = {.steps = 2, .prompt = (char *)"p"}},
                          {.id = 2, .spec = {.steps = 1, .prompt = (char *)"q"}}};
    const char *path = t_format("%s/made.json", run.out);
    sl_report r;
    sl_err err = {0};
    int n;
    (void)state;
    snprintf(jobs[1].dir, sizeof jobs[1].dir, "/spool/video_2");
    T_OK(sl_report_init(&r, jobs, 2, 1000, &err));
    r.jobs[0].t1_ns = 9000, r.jobs[0].finished = true;
    r.jobs[0].code = SL_SYS;
    snprintf(r.jobs[0].message, sizeof r.jobs[0].message, "cut \xe4\xbd");
    const sl_span spans[] = {
        sl_span_make(1, "text", SL_SPAN_COMPUTE, 0, 2000),      /* cut at the job's beginning */
        sl_span_make(1, "text", SL_SPAN_COMPUTE, 8000, 12000),  /* and at its end */
        sl_span_make(1, "text", SL_SPAN_COMPUTE, 20000, 30000), /* after it */
        sl_span_make(1, "text", SL_SPAN_QUEUE, 1500, 8500),
        sl_span_make(2, "text", SL_SPAN_QUEUE, 1500, 9500),
        sl_span_make(2, "decode", SL_SPAN_COMPUTE, 9000, 15000),
        sl_span_make(7, "text", SL_SPAN_COMPUTE, 1500, 8500), /* nobody's */
        sl_span_make(0, "mux", SL_SPAN_LOAD, 500, 3000),
    };
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++)
        T_OK(sl_trace_add(&r.trace, &spans[i], &err));
    r.jobs[1].steps[0] = (sl_report_step){.t0_ns = 4000,
                                          .seconds = 2e-6,
                                          .cond_metric = NAN,
                                          .cond_computed = 1,
                                          .uncond_computed = -1};
    r.jobs[1].ranks[3] =
        (sl_report_rank){.attempts = 1, .team = 2, .steps = 1, .step_s = 2, .exchange_s = 0.5};
    snprintf(r.rank_device[3], SL_STR64, "cuda:3");

    T_OK(sl_report_trace_write(&r, NULL, path, &err));
    json_t *root = load(path), *events = events_of(root), *e;
    assert_true(fabs(sum(events, "text", "compute", "1", &n) - 2e-6) < 1e-12);
    assert_int_equal(n, 2);
    sum(events, "text", "queue", "video_2", &n);
    assert_int_equal(n, 1);
    assert_true(fabs(sum(events, "mux", "load", "", &n) - 2e-6) < 1e-12); /* cut at the first's */
    assert_true(fabs(sum(events, "client", "job", "video_2", &n) - 14e-6) < 1e-12);
    assert_true(fabs(sum(events, "denoise", "step", "video_2", &n) - 2e-6) < 1e-12);
    sum(events, "denoise", "step", "1", &n);
    assert_int_equal(n, 0);
    assert_true(fabs(sum(events, "denoise", "rank", "video_2", &n) - 2e-6) < 1e-12);
    assert_int_equal(n, 1);
    size_t i;
    int states = 0;
    json_array_foreach(events, i, e)
    {
        const json_t *args = json_object_get(e, "args");
        if (!strcmp(text(e, "cat"), "rank")) {
            assert_string_equal(text(e, "name"), "rank 3 on cuda:3");
            assert_true(number(args, "computing") == 1.5);
        }
        if (strcmp(text(e, "cat"), "job")) continue;
        states +=
            !strcmp(text(args, "status"), !strcmp(text(args, "job"), "1") ? "failed" : "running");
    }
    assert_int_equal(states, 2);
    json_decref(root);

    T_OK(sl_report_trace_write(&r, &r.jobs[1], path, &err));
    root = load(path);
    sum(events_of(root), "text", "compute", "1", &n);
    assert_int_equal(n, 0);
    json_decref(root);
    T_CODE(sl_report_trace_write(&r, NULL, "/nowhere/trace.json", &err), SL_SYS);
    T_SAYS(err.msg, "trace /nowhere/trace.json: ");
    sl_report_free(&r);

    T_OK(sl_report_init(&r, jobs, 0, 1000, &err));
    T_OK(sl_report_trace_write(&r, NULL, path, &err));
    root = load(path);
    assert_int_equal(json_array_size(events_of(root)), 0);
    json_decref(root);
    sl_report_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_has_its_trace),
        cmocka_unit_test(a_batch_has_one_trace),
        cmocka_unit_test(what_a_run_seldom_has),
    };
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    int bad = cmocka_run_group_tests(tests, NULL, NULL);
    t_run_close(&run);
    return bad;
}
