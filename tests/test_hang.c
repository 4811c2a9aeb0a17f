/* test_hang - no silent hang: a stage that holds a job up is told in one line that names it, and
 * the job ends; a stage behind a wrapper is a stage. run: waits. takes: 45 s. limit: 300 s */
#include "tests/t_beside.h"
#include "tests/t_run.h"

#define QUIET_S 3  /* short, and no shorter: a busy machine starves a process for a second or two */
#define STALL_S 10 /* with it: and is slow to start one */
#define STALLED "10 s"
#define ENDS_S 90 /* any of these, with the settings as they are shipped */
#define AT_ONCE 8 /* tests: each is a pipeline that waits */

static t_run run;

/* One job with this group in the place of the role's; quiet_s 0: as shipped. */
static void start(sl_role role, const char *group, int quiet_s)
{
    static char output[400];
    char *args[T_ARGS] = {"sluice", "run",      "--quiet", "--conf",   run.conf, "--model",
                          T_MODEL,  "--image",  T_IMAGE,   "--prompt", "Snow.",  "--width",
                          "48",     "--height", "32",      "--frames", "9",      "--steps",
                          "2",      "--output", output,    NULL};
    const char *quiet = quiet_s ? t_format("quiet_s = %d; stall_s = %d;", quiet_s, STALL_S) : "";
    t_run_open(&run);
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    t_write(run.conf,
            t_format("run: { log = \"debug\"; };\nvideo: { preset = \"veryfast\"; threads = 2; };\n"
                     "supervise: { backoff_ms = 5; heartbeat_ms = 100; %s };\n%s",
                     quiet, t_stages(role, group)));
    t_run_start(&run, args);
}

static const char *hanging(const char *role, const char *mode)
{
    return t_format("{ name = \"%s\"; program = \"%s\"; args = [\"%s\", \"%s\"]; }", role,
                    t_helper("helper_hangs"), role, mode);
}

/* A program of this text in the run's folder. */
static const char *script(const char *text)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/sluice-hang-stage", t_tmpdir());
    t_write(path, text);
    assert_int_equal(chmod(path, 0700), 0);
    return path;
}

static void says(const char *part, int times)
{
    const int n = t_run_count(&run, part);
    if (n != times) t_run_fail(&run, "\"%s\" is said %d times, want %d", part, n, times);
}

static void ends(int status, int files)
{
    t_run_ends(&run, status);
    /* latents that were kept */
    assert_int_equal(system(t_format("rm -rf %s/run/sluice-kept-*", run.base)), 0);
    t_run_nothing_left(&run, 0);
    if (t_count_files(run.out, NULL) != files)
        t_run_fail(&run, "%d files in the output folder, want %d", t_count_files(run.out, NULL),
                   files);
}

/* ---- what is not said, what is said wrongly ---- */

/* The line of the job's end, and that of each process that was killed. */
typedef struct {
    const char *role, *mode;
    int quiet_s;
    const char *killed;
    int times;
    const char *failed;
} bad_stage;
static const bad_stage BAD[] = {
    /* with the settings as they are shipped: the longest */
    {"image", "idle", 0, "(last: nothing): killed", 2,
     "failed: image neither computed nor said anything of job"},
    {"text", "idle", QUIET_S, "(last: nothing): killed", 2,
     "failed: text neither computed nor said anything of job"},
    /* which attempt the job is at depends on who was ready first */
    {"text", "attempt", QUIET_S, "] said DONE of attempt ", 2, "failed: text said DONE of attempt"},
    {"decode", "short", QUIET_S, "said DONE after 2 of 3 chunks: killed", 2,
     "failed: decode said DONE after 2 of 3 chunks, 2 times without the job getting further"},
    {"decode", "count", QUIET_S, "sent chunk 1 of 4 after chunks of 3: killed", 2,
     "failed: decode sent chunk 1 of 4 after chunks of 3, 2 times"},
    {"text", "returns", QUIET_S, "killed", 0,
     "failed: text: work returned without DONE, PARKED or FAILED"},
    {"text", "spool", QUIET_S, "and no SPOOLED of text.safetensors", 2,
     "failed: text said DONE, and neither a ticket nor SPOOLED, 2 times"},
    {"decode", "version", QUIET_S, "killed", 0,
     "failed: decode: speaks another protocol: message: protocol version 3, want 6"},
    {"decode", "unready", QUIET_S,
     "said HELLO and not READY, and did nothing for " STALLED ": killed", 1,
     "failed: decode: said HELLO and not READY, and did nothing for " STALLED ", 2 times in a row"},
    {"mux", "poolless", QUIET_S, "killed", 0,
     "failed: mux: is ready without a POOL for frames, which come in slots alone"},
};
#define BAD_COUNT (sizeof BAD / sizeof *BAD)

/* Each time it was the seventh attempt after the one that the job is at. */
static void names_both_attempts(void)
{
    const char *said = run.text, *line = "] said DONE of attempt ";
    while ((said = strstr(said, line))) {
        int named, is;
        said += strlen(line);
        if (sscanf(said, "%d of a job of which it has attempt %d: killed", &named, &is) != 2 ||
            named != is + 7)
            t_run_fail(&run, "the attempts are not told: %.80s", said);
    }
}

static void test_bad_stage(void **state)
{
    const bad_stage *bad = *state;
    const double t0 = t_seconds();
    start((sl_role)sl_role_by_name(bad->role), hanging(bad->role, bad->mode), bad->quiet_s);
    ends(1, 0);
    const double s = t_seconds() - t0;
    print_message("%s %s: %.1f s\n", bad->role, bad->mode, s);
    if (s > (bad->quiet_s ? ENDS_S / 2 : ENDS_S))
        t_run_fail(&run, "%s %s ended after %.0f s", bad->role, bad->mode, s);
    says(bad->failed, 1);
    says(bad->killed, bad->times);
    names_both_attempts();
    t_run_close(&run);
}

/* Every chunk is there and DONE is not: the video is whole, whatever becomes of the decode. */
static void test_done_forgotten_after_the_last_chunk(void **state)
{
    (void)state;
    start(SL_ROLE_DECODE, hanging("decode", "last"), QUIET_S);
    ends(0, 1);
    says("neither computes nor says anything of job", 1);
    says("(last: CHUNK): it is killed in 3 s (supervise.quiet_s)", 1);
    t_run_close(&run);
}

/* A rank that its mates cannot reach would wait for a job for ever. */
static void test_ready_without_rank(void **state)
{
    (void)state;
    start(SL_ROLE_DENOISE,
          t_format("{ name = \"denoise\"; devices = [\"cpu\", \"cpu\"]; program = \"%s\"; args = "
                   "[\"denoise\", \"idle\"]; }",
                   t_helper("helper_hangs")),
          QUIET_S);
    ends(1, 0);
    says("failed: denoise.", 1);
    says("others go on without it", 1);
    says(": is ready and has not said RANK, which its team needs (team = 1: none)", 3);
    t_run_close(&run);
}

/* A stage that computes is let be for supervise.piece_s, however silent it is. */
static void test_a_stage_that_computes(void **state)
{
    (void)state;
    start(SL_ROLE_TEXT, hanging("text", "busy"), QUIET_S);
    const double t0 = t_seconds();
    t_run_until(&run, "computes, and says nothing of job");
    if (t_seconds() - t0 < 8) t_run_fail(&run, "told after %.0f s", t_seconds() - t0);
    says("killed", 0);
    kill(run.pid, SIGINT); /* the command does not wait for an answer to its second one */
    kill(run.pid, SIGINT);
    ends(1, 0);
    t_run_close(&run);
}

/* ---- CANCEL ---- */

/* A stage that does not answer CANCEL is killed, and the dispatcher goes on. */
static void test_cancel_without_an_answer(void **state)
{
    (void)state;
    start(SL_ROLE_MUX, hanging("mux", "deaf"), 0);
    t_run_until(&run, "index=1 chunks=3");
    kill(run.stages[4], SIGKILL); /* the crew falls: mux is told to cancel */
    const double t0 = t_seconds();
    t_run_until(&run, "did not answer CANCEL for");
    if (t_seconds() - t0 > 15) t_run_fail(&run, "killed after %.0f s", t_seconds() - t0);
    kill(run.pid, SIGINT);
    ends(1, 0);
    t_run_close(&run);
}

/* ---- HELLO ---- */

/* A stage that says nothing at all. */
static void test_no_hello(void **state)
{
    (void)state;
    const char *program = script("#!/bin/sh\nexec sleep 1000\n");
    start(SL_ROLE_TEXT, t_format("{ name = \"text\"; program = \"%s\"; }", program), 2);
    ends(1, 0);
    says("failed: text: said no HELLO, nor anything else, for " STALLED ", 2 times in a row", 1);
    *strrchr(program, '/') = 0;
    t_rmdir(program);
    t_run_close(&run);
}

static void test_hello_as_another_role(void **state)
{
    (void)state;
    start(SL_ROLE_DECODE, "{ name = \"decode\"; program = \"sluice-text\"; }", 0);
    ends(1, 0);
    says("says HELLO as text, want decode", 2); /* the line of the job, and of the log at debug */
    t_run_close(&run);
}

/* Whom nobody started is told once, with role and process; repeats are counted. */
static void test_hello_of_a_stranger(void **state)
{
    (void)state;
    start(SL_ROLE_DECODE, hanging("decode", "thrice"), 0);
    ends(0, 1);
    says("warn: HELLO of decode, process 1, which was not started here nor comes from", 1);
    says("warn: 3 times in all: HELLO of decode, process 1, which was not started here", 1);
    t_run_close(&run);
}

/* A child of the process that was started speaks for it: its slots, its death, its end. */
static void test_behind_a_wrapper(void **state)
{
    char real[PATH_MAX];
    (void)state;
    assert_non_null(realpath(t_bin(), real));
    const char *program = script(t_format("#!/bin/sh\n(%s/sluice-decode \"$@\"; :)\n:\n", real));
    for (int dies = 0; dies < 2; dies++) {
        int child = 0;
        start(SL_ROLE_DECODE, t_format("{ name = \"decode\"; program = \"%s\"; }", program), 0);
        t_run_until(&run, ": process ");
        assert_int_equal(sscanf(strstr(run.line, ": process ") + 2, "process %d", &child), 1);
        t_run_until(&run, "index=0 chunks=3");
        if (dies) kill(child, SIGKILL); /* the shell ends with its child */
        ends(0, 1);
        t_run_close(&run);
    }
    *strrchr(program, '/') = 0;
    t_rmdir(program);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest OTHERS[] = {
        cmocka_unit_test(test_a_stage_that_computes),
        cmocka_unit_test(test_no_hello),
        cmocka_unit_test(test_cancel_without_an_answer),
        cmocka_unit_test(test_ready_without_rank),
        cmocka_unit_test(test_done_forgotten_after_the_last_chunk),
        cmocka_unit_test(test_hello_as_another_role),
        cmocka_unit_test(test_hello_of_a_stranger),
        cmocka_unit_test(test_behind_a_wrapper),
    };
    struct CMUnitTest tests[BAD_COUNT + sizeof OTHERS / sizeof *OTHERS];
    char names[BAD_COUNT][64];
    size_t n = sizeof OTHERS / sizeof *OTHERS; /* the longest are among them, and BAD's first */
    memcpy(tests, OTHERS, sizeof OTHERS);
    for (size_t i = 0; i < BAD_COUNT; i++) {
        snprintf(names[i], sizeof names[i], "test_bad_stage, %s %s", BAD[i].role, BAD[i].mode);
        tests[n++] =
            (struct CMUnitTest){names[i], test_bad_stage, NULL, NULL, (void *)(uintptr_t)&BAD[i]};
    }
    return t_beside("hang", tests, n, AT_ONCE, argc, argv);
}
