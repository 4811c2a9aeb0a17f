/* test_feed - jobs that come by a pipe, results as lines, reports against their published
 * schema, a
 * batch's figures, the wire's log. takes: 4 s. limit: 180 s */
#include "tests/t_run.h"
#include "tests/t_schema.h"

static t_run run;

/* ---- runs ---- */

static const char *in_base(const char *name)
{
    return t_format("%s/%s", run.base, name);
}

/* `sluice run` of small jobs; more ends with NULL. */
static void start(const char *const more[])
{
    char *args[T_ARGS] = {"sluice",   "run",     "--quiet", "--conf",   run.conf,
                          "--model",  T_MODEL,   "--image", T_IMAGE,    "--prompt",
                          "Snow.",    "--width", "48",      "--height", "32",
                          "--frames", "9",       "--steps", "3"};
    int n = 0;
    while (args[n]) n++;
    for (int i = 0; more[i]; i++) args[n++] = (char *)more[i];
    t_run_start(&run, args);
}

static void open_run(const char *conf)
{
    t_run_open(&run);
    t_run_conf(&run, 1, 30, conf);
}

static void ends(int status)
{
    t_run_ends(&run, status);
    t_run_nothing_left(&run, 0);
}

static json_t *load(const char *path)
{
    json_error_t why;
    json_t *v = json_load_file(path, 0, &why);
    if (!v) t_run_fail(&run, "%s: %s", path, why.text);
    return v;
}

static const char *text(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

/* The n-th line of a file of JSON lines, from 0, the caller's; NULL: there is none. */
static json_t *line_of(const char *path, int n)
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;
    ssize_t length = -1;
    for (int i = 0; f && i <= n; i++) length = getline(&line, &room, f);
    json_t *v = length > 0 && line[length - 1] == '\n' ? json_loads(line, 0, NULL) : NULL;
    free(line);
    if (f) fclose(f);
    return v;
}

/* Wait until the file has n lines. */
static void wait_for_lines(const char *path, int n)
{
    json_t *last = NULL;
    while (!(last = line_of(path, n - 1))) {
        if (t_seconds() > run.deadline) t_run_fail(&run, "%s has no line %d", path, n);
        usleep(20000);
    }
    json_decref(last);
}

static void say(int fd, const char *line)
{
    assert_int_equal(write(fd, line, strlen(line)), strlen(line));
}

static const char *a_job(const char *name)
{
    return t_format("{\"prompt\": \"Rain.\", \"output\": \"%s/%s.mp4\"}", run.out, name);
}

/* Line n of the results has this status, of this line of the jobs, and is a report. */
static void result(int n, const char *status, int line, const char *message)
{
    json_t *v = line_of(in_base("results"), n);
    if (!v) t_run_fail(&run, "there is no result %d", n);
    t_is_report(v);
    if (strcmp(text(v, "status"), status) ||
        json_integer_value(json_object_get(v, "line")) != line ||
        !strstr(text(v, "message"), message))
        t_run_fail(&run, "result %d is %s", n, json_dumps(v, JSON_COMPACT));
    json_decref(v);
}

/* ---- jobs that come by and by ---- */

static void lines_are_jobs_as_they_come(void **state)
{
    int in[2];
    (void)state;
    open_run("");
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    run.in = in[0];
    start((const char *[]){"--jobs", "-", "--results", in_base("results"), "--json",
                           in_base("report"), NULL});
    close(in[0]);
    say(in[1], t_format("%s\n", a_job("1")));
    wait_for_lines(in_base("results"), 1); /* it is done before the next one is there */
    say(in[1], "{\"prompt\": \"Rain.\"");
    usleep(100000);
    say(in[1], ", \"wdth\": 64}\n\n"); /* in two pieces, and no option */
    wait_for_lines(in_base("results"), 2);
    say(in[1], t_format("%s\nnonsense\n", a_job("1"))); /* of line 1, and no JSON */
    char *large = calloc(1, (1 << 20) + 3);
    memset(large, 'x', (1 << 20) + 2);
    say(in[1], large);
    say(in[1], "\n");
    free(large);
    say(in[1], a_job("2")); /* a last line without its newline */
    close(in[1]);
    t_run_ends(&run, 1);
    result(0, "done", 1, "");
    result(1, "refused", 2, "stdin:2: unknown key wdth, did you mean width?");
    result(2, "refused", 4, "stdin:4: output ");
    result(3, "refused", 5, "stdin:5: want one JSON object a line");
    result(4, "refused", 6, "stdin:6: the line is longer than 1048576 bytes");
    result(5, "done", 7, "");
    assert_null(line_of(in_base("results"), 6));
    if (!t_run_said(&run, "sluice: stdin:2: unknown key wdth")) t_run_fail(&run, "not said");
    assert_int_equal(t_count_files(run.out, ".mp4"), 2);
    json_t *report = load(in_base("report"));
    t_is_report(report);
    assert_int_equal(json_array_size(json_object_get(report, "jobs")), 6);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(report, "batch"), "done")),
                     2);
    json_decref(report);
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

/* A named pipe that nobody has opened yet; SIGTERM ends the run though it is open. */
static void a_named_pipe(void **state)
{
    (void)state;
    open_run("");
    assert_int_equal(mkfifo(in_base("jobs"), 0600), 0);
    start((const char *[]){"--jobs", in_base("jobs"), "--results", in_base("results"), NULL});
    usleep(300000);
    const int fd = open(in_base("jobs"), O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    say(fd, t_format("%s\n", a_job("1")));
    wait_for_lines(in_base("results"), 1);
    kill(run.pid, SIGTERM);
    ends(0);
    close(fd);
    result(0, "done", 1, "");
    t_run_close(&run);
}

/* At most limits.jobs are held at a time; the rest waits in the pipe. */
static void no_more_than_the_limit(void **state)
{
    int in[2];
    (void)state;
    open_run("limits: { jobs = 2; };\n");
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    run.in = in[0];
    start((const char *[]){"--jobs", "-", "--results", in_base("results"), NULL});
    close(in[0]);
    for (int i = 0; i < 5; i++) {
        char name[2] = {(char)('a' + i), 0};
        say(in[1], t_format("%s\n", a_job(name)));
    }
    close(in[1]);
    ends(0);
    assert_int_equal(t_count_files(run.out, ".mp4"), 5);
    t_run_close(&run);
}

/* ---- reports ---- */

/* A failed job, a replay, a stage without a mux: each report keeps to the schema. */
static void reports_keep_to_their_schema(void **state)
{
    char dump[300],
        *args[] = {"sluice", "replay",   dump,         "--from", "decode", "--quiet", "--conf",
                   run.conf, "--output", (char *)NULL, "--json", NULL,     NULL};
    char *alone[] = {"sluice", "stage",  "text",   "--from", dump, "--quiet", "--dump",
                     NULL,     "--conf", run.conf, "--json", NULL, NULL};
    char video[300], report[300], out[300];
    (void)state;
    open_run("");
    snprintf(dump, sizeof dump, "%s/d", run.out);
    snprintf(video, sizeof video, "%s/a.mp4", run.out);
    snprintf(report, sizeof report, "%s/report", run.base);
    snprintf(out, sizeof out, "%s/text", run.out);
    start(
        (const char *[]){"--dump", dump, "-o", video, "--json", report, "--fbcache", "0.3", NULL});
    ends(0);
    json_t *v = load(report);
    t_is_report(v);
    assert_int_equal(json_array_size(json_object_get(v, "steps")), 3);
    assert_string_equal(text(v, "output"), video);
    assert_null(json_object_get(v, "from_dump"));
    json_decref(v);

    args[9] = video, args[11] = report;
    t_run_start(&run, args);
    ends(0);
    v = load(report);
    t_is_report(v);
    assert_int_equal(json_array_size(json_object_get(v, "steps")), 0); /* none ran */
    assert_int_equal(json_array_size(json_object_get(v, "from_dump")), 3);
    json_decref(v);

    alone[7] = out, alone[11] = report;
    t_run_start(&run, alone);
    ends(0);
    v = load(report);
    t_is_report(v);
    assert_true(json_is_null(json_object_get(v, "output")));
    assert_int_equal(json_object_size(json_object_get(v, "stages")), 1);
    assert_int_equal(t_count_files(run.out, ".mp4"), 1);
    json_decref(v);

    t_write(run.conf, t_stages(SL_ROLE_MUX, t_format("{ name = \"mux\"; program = \"%s\"; args = "
                                                     "[\"mux\", \"returns\"]; }",
                                                     t_helper("helper_hangs"))));
    start((const char *[]){"-o", video, "--json", report, NULL});
    t_run_ends(&run, 1);
    v = load(report);
    t_is_report(v);
    assert_string_equal(text(v, "status"), "failed");
    json_decref(v);
    t_run_close(&run);
}

/* A batch's figures are those of its jobs. */
static void a_batch_adds_up(void **state)
{
    const char *name;
    json_t *v, *jobs, *batch, *row, *job;
    size_t i;
    (void)state;
    open_run("");
    t_write(in_base("jobs"), t_format("%s\n%s\n%s\n", a_job("1"), a_job("2"), a_job("3")));
    start((const char *[]){"--jobs", in_base("jobs"), "--json", in_base("report"), NULL});
    ends(0);
    v = load(in_base("report"));
    t_is_report(v);
    jobs = json_object_get(v, "jobs"), batch = json_object_get(v, "batch");
    const double seconds = json_number_value(json_object_get(batch, "seconds"));
    assert_int_equal(json_integer_value(json_object_get(batch, "done")), 3);
    assert_true(
        fabs(json_number_value(json_object_get(batch, "jobs_per_hour")) * seconds - 3 * 3600) < 1);
    assert_true(
        fabs(json_number_value(json_object_get(batch, "frames_per_second")) * seconds - 27) < 1e-3);
    json_object_foreach(json_object_get(batch, "stages"), name, row)
    {
        double want = 0;
        json_array_foreach(jobs, i, job)
        {
            want += json_number_value(json_object_get(
                json_object_get(json_object_get(job, "stages"), name), "computing"));
        }
        const double got = json_number_value(json_object_get(row, "computing"));
        if (fabs(got - want) > 1e-6 * want + 1e-6)
            t_run_fail(&run, "%s computed %g s, of its jobs %g", name, got, want);
        assert_true(fabs(json_number_value(json_object_get(row, "occupancy")) * seconds - got) <
                    1e-6);
    }
    assert_true(json_array_size(json_object_get(batch, "waits")) > 0); /* there are three */
    json_decref(v);
    t_run_close(&run);
}

/* ---- the wire ---- */

static void the_wire_is_written(void **state)
{
    static const char *const BOTH[][2] = {{"in", "HELLO"},     {"in", "DONE"},     {"out", "JOB"},
                                          {"in", "CHUNK"},     {"out", "CHUNK"},   {"in", "SUBMIT"},
                                          {"out", "FINISHED"}, {"in", "HEARTBEAT"}};
    int seen[8] = {0}, lines = 0;
    json_int_t before = 0;
    json_t *v;
    (void)state;
    open_run("");
    start((const char *[]){"-o", t_format("%s/a.mp4", run.out), "--wire", in_base("wire"), "--log",
                           "error", NULL});
    ends(0);
    assert_int_equal(run.used, 0); /* whatever run.log says */
    FILE *f = fopen(in_base("wire"), "r");
    char *line = NULL;
    size_t room = 0;
    while (f && getline(&line, &room, f) > 0) {
        if (!(v = json_loads(line, 0, NULL))) t_run_fail(&run, "no JSON: %s", line);
        for (size_t i = 0; i < 8; i++)
            seen[i] += !strcmp(text(v, "way"), BOTH[i][0]) && !strcmp(text(v, "type"), BOTH[i][1]);
        assert_true(json_integer_value(json_object_get(v, "t_ns")) >= before);
        before = json_integer_value(json_object_get(v, "t_ns"));
        assert_true(json_is_object(json_object_get(v, "body")));
        assert_true(*text(v, "peer") != 0);
        lines++;
        json_decref(v);
    }
    free(line);
    if (f) fclose(f);
    assert_int_equal(seen[0], 6); /* five stages and the client */
    assert_int_equal(seen[1], 5);
    assert_int_equal(seen[2], 5);
    assert_int_equal(seen[3], 3);
    assert_int_equal(seen[4], 3);
    assert_int_equal(seen[5] + seen[6], 2);
    assert_true(seen[7] > 0 && lines > 40);
    start((const char *[]){"--log", "loud", NULL});
    ends(2);
    if (!t_run_said(&run, "--log is \"loud\", want error, warn, info or debug"))
        t_run_fail(&run, "a level is taken that there is not");
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_jobs_as_they_come),
        cmocka_unit_test(a_named_pipe),
        cmocka_unit_test(no_more_than_the_limit),
        cmocka_unit_test(reports_keep_to_their_schema),
        cmocka_unit_test(a_batch_adds_up),
        cmocka_unit_test(the_wire_is_written),
    };
    return cmocka_run_group_tests_name("feed", tests, NULL, NULL);
}
