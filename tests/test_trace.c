/* test_trace.c - spans add up and their union leaves exactly the gaps; log lines are
 * whole lines. */
#include "tests/t.h"

#include <fcntl.h>
#include <errno.h>
#include <pthread.h>
#include <regex.h>
#include <sys/wait.h>

#include "common/log.h"
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

/* ---- log: stderr is turned to a file while a test logs ---- */

static int kept_stderr;

static FILE *capture(void)
{
    FILE *f = tmpfile();
    fflush(stderr);
    kept_stderr = dup(STDERR_FILENO);
    dup2(fileno(f), STDERR_FILENO);
    fcntl(STDERR_FILENO, F_SETFL, O_APPEND);
    return f;
}
static void release(FILE *f)
{
    dup2(kept_stderr, STDERR_FILENO);
    close(kept_stderr);
    rewind(f);
}

static void a_line_has_time_name_pid_level_text(void **state)
{
    (void)state;
    char line[SL_LOG_LINE + 1], want[64];
    regex_t re;
    FILE *f = capture();
    sl_log_open("denoise", SL_LOG_INFO);
    errno = ENOENT;
    sl_log(SL_LOG_INFO, "step %d of\n%d\x1b[31m", 3, 50);
    int kept = errno;
    sl_log(SL_LOG_DEBUG, "not shown");
    sl_err err = {.code = SL_ARG, .msg = "limits.frames is 82, want 4n + 1"};
    sl_log_err("conf/demo.cfg", &err);
    release(f);
    assert_int_equal(kept, ENOENT);
    assert_non_null(fgets(line, sizeof line, f));
    assert_int_equal(regcomp(&re,
                             "^[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{3} denoise\\[[0-9]+\\] "
                             "info: step 3 of 50 \\[31m\n$",
                             REG_EXTENDED),
                     0);
    if (regexec(&re, line, 0, NULL, 0)) fail_msg("line \"%s\"", line);
    regfree(&re);
    snprintf(want, sizeof want, "denoise[%d]", (int)getpid());
    T_SAYS(line, want);
    assert_non_null(fgets(line, sizeof line, f));
    T_SAYS(line, "error: conf/demo.cfg: limits.frames is 82, want 4n + 1\n");
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
}

static void a_long_message_is_cut_and_says_so(void **state)
{
    (void)state;
    static char text[3 * SL_LOG_LINE], line[2 * SL_LOG_LINE];
    memset(text, 'x', sizeof text - 1);
    FILE *f = capture();
    sl_log(SL_LOG_ERROR, "%s", text);
    release(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_int_equal(strlen(line), SL_LOG_LINE);
    assert_string_equal(line + SL_LOG_LINE - 5, "x...\n");
    fclose(f);
}

static void *log_many(void *arg)
{
    for (int i = 0; i < 500; i++) sl_log(SL_LOG_INFO, "%s %d end", (const char *)arg, i);
    return NULL;
}

static void lines_of_threads_and_processes_stay_whole(void **state)
{
    (void)state;
    char line[SL_LOG_LINE];
    pthread_t th[2];
    int n = 0;
    FILE *f = capture();
    pid_t pid = fork();
    if (!pid) {
        log_many("child");
        _exit(0);
    }
    pthread_create(&th[0], NULL, log_many, "one");
    pthread_create(&th[1], NULL, log_many, "two");
    pthread_join(th[0], NULL);
    pthread_join(th[1], NULL);
    waitpid(pid, NULL, 0);
    release(f);
    while (fgets(line, sizeof line, f)) {
        const char *text = strstr(line, "info: ");
        int i, at = 0;
        if (!text || sscanf(text, "info: %*s %d end%n", &i, &at) != 1 || !at ||
            strcmp(text + at, "\n"))
            fail_msg("line \"%s\"", line);
        n++;
    }
    assert_int_equal(n, 1500);
    fclose(f);
}

static void levels_have_names(void **state)
{
    (void)state;
    sl_log_level l = SL_LOG_INFO;
    assert_true(sl_log_level_parse("warn", &l));
    assert_int_equal(l, SL_LOG_WARN);
    assert_false(sl_log_level_parse("loud", &l));
    assert_string_equal(sl_log_level_name(SL_LOG_DEBUG), "debug");
    assert_string_equal(sl_log_level_name((sl_log_level)9), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(union_counts_overlaps_once),
        cmocka_unit_test(sums_count_every_span_clipped),
        cmocka_unit_test(union_equals_a_marked_line),
        cmocka_unit_test(bad_spans_are_refused),
        cmocka_unit_test(the_clock_goes_forward),
        cmocka_unit_test(a_line_has_time_name_pid_level_text),
        cmocka_unit_test(a_long_message_is_cut_and_says_so),
        cmocka_unit_test(lines_of_threads_and_processes_stay_whole),
        cmocka_unit_test(levels_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
