/* test_log.c - lines of the log are whole lines, in text and as JSON, whatever they are told
 * to say; a run whose log is JSON names the job in each line about one. limit: 240 s */
#include "tests/t_run.h"

#include <pthread.h>
#include <regex.h>

#include <jansson.h>

#include "common/log.h"

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

/* ---- JSON ---- */

static FILE *capture_json(void)
{
    FILE *f = capture();
    sl_log_open("denoise", SL_LOG_INFO);
    sl_log_use_format(SL_LOG_AS_JSON);
    return f;
}
static void release_json(FILE *f)
{
    release(f);
    sl_log_use_format(SL_LOG_AS_TEXT);
    sl_log_job(NULL);
}

/* The next line as an object, which has what every line has; NULL: the end. */
static json_t *next_json(FILE *f)
{
    char line[SL_LOG_LINE + 2];
    json_error_t why;
    if (!fgets(line, sizeof line, f)) return NULL;
    if (strlen(line) > SL_LOG_LINE || line[strlen(line) - 1] != '\n')
        fail_msg("a line of %zu bytes: %s", strlen(line), line);
    json_t *o = json_loads(line, JSON_REJECT_DUPLICATES, &why);
    if (!o) fail_msg("%s: %s", why.text, line);
    if (!json_is_integer(json_object_get(o, "pid"))) fail_msg("no pid: %s", line);
    for (int i = 0; i < 4; i++) {
        static const char *const KEYS[] = {"time", "level", "process", "message"};
        if (!json_is_string(json_object_get(o, KEYS[i]))) fail_msg("no %s: %s", KEYS[i], line);
    }
    assert_int_equal(json_object_size(o), 5 + (json_object_get(o, "job") != NULL));
    return o;
}

/* The next line says this about this job ("": none). */
static void expect_json(FILE *f, const char *level, const char *job, const char *message)
{
    json_t *o = next_json(f);
    assert_non_null(o);
    const char *has = json_string_value(json_object_get(o, "job"));
    assert_string_equal(json_string_value(json_object_get(o, "level")), level);
    assert_string_equal(json_string_value(json_object_get(o, "message")), message);
    assert_string_equal(json_string_value(json_object_get(o, "process")), "denoise");
    assert_int_equal(json_integer_value(json_object_get(o, "pid")), getpid());
    assert_string_equal(has ? has : "", job);
    json_decref(o);
}

static void json_lines_name_the_job(void **state)
{
    (void)state;
    sl_err err = {.code = SL_ARG, .msg = "frames is 82"};
    FILE *f = capture_json();
    sl_log(SL_LOG_INFO, "step %d of %d", 3, 50);
    sl_log_job("video_1");
    errno = ENOENT;
    sl_log(SL_LOG_WARN, "late");
    int kept = errno;
    sl_log(SL_LOG_DEBUG, "not shown");
    sl_log_about("video_2", SL_LOG_DEBUG, "not shown");
    sl_log_about("video_2", SL_LOG_INFO, "another");
    sl_log_about(NULL, SL_LOG_INFO, "of none");
    sl_log_err("job.json", &err);
    sl_complain("out.mp4: failed");
    sl_log_job(NULL);
    sl_log(SL_LOG_INFO, "%s", "");
    release_json(f);
    assert_int_equal(kept, ENOENT);
    expect_json(f, "info", "", "step 3 of 50");
    expect_json(f, "warn", "video_1", "late");
    expect_json(f, "info", "video_2", "another");
    expect_json(f, "info", "", "of none");
    expect_json(f, "error", "video_1", "job.json: frames is 82");
    expect_json(f, "error", "video_1", "out.mp4: failed");
    expect_json(f, "info", "", "");
    assert_null(next_json(f));
    fclose(f);
}

static void json_has_the_time_in_utc(void **state)
{
    (void)state;
    char line[SL_LOG_LINE + 1];
    struct tm tm = {0};
    int ms = 0;
    FILE *f = capture_json();
    setenv("TZ", "Asia/Kathmandu", 1); /* 5:45 ahead */
    tzset();
    time_t before = time(NULL);
    sl_log(SL_LOG_INFO, "x");
    time_t after = time(NULL);
    unsetenv("TZ");
    tzset();
    release_json(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_int_equal(sscanf(line, "{\"time\":\"%d-%d-%dT%d:%d:%d.%3dZ\",\"level\":", &tm.tm_year,
                            &tm.tm_mon, &tm.tm_mday, &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &ms),
                     7);
    tm.tm_year -= 1900, tm.tm_mon--;
    assert_in_range(timegm(&tm), before, after);
    assert_in_range(ms, 0, 999);
    fclose(f);
}

static void json_repairs_what_is_no_text(void **state)
{
    static const struct {
        const char *said, *reads;
    } CASES[] = {
        {"a \"quote\" and a back\\slash", "a \"quote\" and a back\\slash"},
        {"two\nlines\ttab\x1b[31m\x7f", "two\nlines\ttab\x1b[31m\x7f"},
        {"\xc2\x85\xc2\x9b next, csi", "\xc2\x85\xc2\x9b next, csi"},
        {"gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x90\x88",
         "gr\xc3\xbc\xc3\x9f \xe4\xbd\xa0 \xf0\x9f\x90\x88"},
        {"\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd"},
        {"cut \xe4\xbd", "cut \xef\xbf\xbd\xef\xbf\xbd"},
        {"cut \xf0\x9f\x90", "cut \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xc0\x80 longer than needed", "\xef\xbf\xbd\xef\xbf\xbd longer than needed"},
        {"\xe0\x9f\xbf", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xed\xa0\x80 half a pair", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd half a pair"},
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    };
    (void)state;
    const int n = (int)(sizeof CASES / sizeof *CASES);
    FILE *f = capture_json();
    for (int i = 0; i < n; i++) sl_log(SL_LOG_INFO, "%s", CASES[i].said);
    sl_log_about("a\"\xff\n", SL_LOG_INFO, "job");
    release_json(f);
    for (int i = 0; i < n; i++) expect_json(f, "info", "", CASES[i].reads);
    expect_json(f, "info", "a\"\xef\xbf\xbd\n", "job");
    rewind(f);
    for (int c; (c = getc(f)) != EOF;) /* a terminal gets no control character but line ends */
        if ((c < ' ' && c != '\n') || c == 127) fail_msg("byte %d", c);
    fclose(f);
}

/* Wherever the limit falls, in a character or an escape: the line is whole and says that there
 * was more; one that fits exactly is left as it is. */
static void json_is_cut_and_stays_valid(void **state)
{
    static const char *const UNITS[] = {"x", "\n", "\xff", "\xe4\xbd\xa0", "\xf0\x9f\x90\x88",
                                        "\""};
    static char text[4 * SL_LOG_LINE];
    (void)state;
    int cut = 0, whole = 0;
    for (int u = 0; u < 6; u++)
        for (int x = SL_LOG_LINE - 260; x < SL_LOG_LINE; x++) {
            const size_t unit = strlen(UNITS[u]);
            size_t at = 0;
            /* x bytes of one kind before the rest, which moves the limit through all places */
            const int one = u ? x - (SL_LOG_LINE - 260) : x;
            for (int i = 0; i < one; i++) text[at++] = 'a';
            for (int i = 0; u && i < 400; i++, at += unit) memcpy(text + at, UNITS[u], unit);
            text[at] = 0;
            FILE *f = capture_json();
            sl_log_job("name");
            sl_log(SL_LOG_INFO, "%s", text);
            release_json(f);
            json_t *o = next_json(f);
            assert_non_null(o);
            const char *m = json_string_value(json_object_get(o, "message"));
            const size_t n = strlen(m);
            const bool is_cut = n > 3 && !strcmp(m + n - 3, "...");
            is_cut ? cut++ : whole++;
            if (!is_cut && u == 0) assert_string_equal(m, text);
            if (is_cut && ftell(f) < SL_LOG_LINE - 6)
                fail_msg("cut at %ld of %d bytes", ftell(f), SL_LOG_LINE);
            json_decref(o);
            assert_null(next_json(f));
            fclose(f);
        }
    assert_true(cut > 0 && whole > 0);
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

static void *log_json(void *arg)
{
    for (int i = 0; i < 500; i++) sl_log(SL_LOG_INFO, "%s %d", (const char *)arg, i);
    return NULL;
}

/* One thread says what the job is while others log: each line has one name or the other. */
static void a_job_may_change_while_threads_log(void **state)
{
    (void)state;
    pthread_t th[2];
    int n = 0;
    json_t *o;
    FILE *f = capture_json();
    pthread_create(&th[0], NULL, log_json, "one");
    pthread_create(&th[1], NULL, log_json, "two");
    for (int i = 0; i < 2000; i++) sl_log_job(i % 2 ? "a-rather-long-name-of-a-job" : "short");
    pthread_join(th[0], NULL);
    pthread_join(th[1], NULL);
    release_json(f);
    for (; (o = next_json(f)); n++) {
        const char *job = json_string_value(json_object_get(o, "job"));
        if (job && strcmp(job, "short") && strcmp(job, "a-rather-long-name-of-a-job"))
            fail_msg("job \"%s\"", job);
        json_decref(o);
    }
    assert_int_equal(n, 1000);
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

/* ---- a run ---- */

/* Two jobs whose every line is JSON. Lines of a stage that are said while it works on a job, and
 * the dispatcher's about a job, name it. */
static void a_run_logs_json(void **state)
{
    static t_run run;
    int denoise[2] = {0, 0}, dispatch[2] = {0, 0}, client[2] = {0, 0}, lines = 0;
    (void)state;
    t_run_open(&run);
    t_write(run.conf, "run: { log = \"debug\"; log_format = \"json\"; };\nvideo: { preset = "
                      "\"veryfast\"; threads = 2; };\n");
    const char *jobs = t_format("%s/jobs.jsonl", run.base);
    t_write(jobs, t_format("{\"output\": \"%s/1.mp4\"}\n{\"output\": \"%s/2.mp4\", \"seed\": 8}\n",
                           run.out, run.out));
    char *args[] = {"sluice",   "run",   "--conf",   run.conf,     "--model",  T_MODEL,
                    "--image",  T_IMAGE, "--prompt", "A cat.",     "--width",  "48",
                    "--height", "32",    "--seed",   "7",          "--frames", "9",
                    "--steps",  "4",     "--jobs",   (char *)jobs, NULL};
    t_run_start(&run, args);
    const pid_t pid = run.pid;
    while (t_run_line(&run)) {
        json_error_t why;
        json_t *o = json_loads(run.line, JSON_REJECT_DUPLICATES, &why);
        if (!o) t_run_fail(&run, "%s: %s", why.text, run.line);
        lines++;
        const char *process = json_string_value(json_object_get(o, "process")),
                   *job = json_string_value(json_object_get(o, "job")),
                   *message = json_string_value(json_object_get(o, "message"));
        int which = 0, said = 0;
        if (job && (sscanf(job, "%*d-%d", &which) != 1 || which < 1 || which > 2 ||
                    strcmp(job, t_format("%d-%d", (int)pid, which))))
            t_run_fail(&run, "a job called %s", job);
        if (sscanf(message, "job %d", &said) == 1 && said != which)
            t_run_fail(&run, "a line about job %d names %s", said, job ? job : "none");
        if (job && !strcmp(process, "denoise")) denoise[which - 1]++;
        if (job && !strcmp(process, "dispatch")) dispatch[which - 1]++;
        if (job && !strcmp(process, "sluice")) client[which - 1]++;
        if (!job && !strcmp(process, "dispatch") && strstr(message, "<- denoise STEP"))
            t_run_fail(&run, "no job in: %s", run.line);
        json_decref(o);
    }
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    for (int i = 0; i < 2; i++)
        if (!denoise[i] || dispatch[i] < 4 || !client[i])
            t_run_fail(&run, "job %d: %d lines of denoise, %d of dispatch, %d of the client", i + 1,
                       denoise[i], dispatch[i], client[i]);
    assert_true(lines > 20);
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_time_name_pid_level_text),
        cmocka_unit_test(a_long_message_is_cut_and_says_so),
        cmocka_unit_test(json_lines_name_the_job),
        cmocka_unit_test(json_has_the_time_in_utc),
        cmocka_unit_test(json_repairs_what_is_no_text),
        cmocka_unit_test(json_is_cut_and_stays_valid),
        cmocka_unit_test(lines_of_threads_and_processes_stay_whole),
        cmocka_unit_test(a_job_may_change_while_threads_log),
        cmocka_unit_test(levels_have_names),
        cmocka_unit_test(a_run_logs_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
