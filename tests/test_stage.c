/* test_stage - `sluice stage`: each stage alone from a dump, on the terminal, behind a wrapper; and
 * what a replay starts. takes: 8 s. run: waits */
#include "tests/t_run.h"

static t_run run;
static char dump[300]; /* of an undisturbed job, beside its a.mp4 */

static void start(const char *role, const char *const more[])
{
    static char out[300], video[300];
    char *args[T_ARGS] = {"sluice", "stage",  (char *)role, "--from",   dump, "--conf",
                          run.conf, "--dump", out,          "--output", video};
    int n = 0;
    snprintf(out, sizeof out, "%s/%s", run.out, role);
    snprintf(video, sizeof video, "%s/%s.mp4", run.out, role);
    while (args[n]) n++;
    for (int i = 0; more && more[i]; i++) args[n++] = (char *)more[i];
    t_run_start(&run, args);
}

static void open_run(void)
{
    t_run_open(&run);
    t_run_conf(&run, 0, 2, "");
}

static void ends(int status)
{
    t_run_ends(&run, status);
    t_run_nothing_left(&run, 0);
}

/* What the stage made is what it made in the whole pipeline. */
static void same(const char *role, const char *file)
{
    if (!t_same_file(t_format("%s/%s.safetensors", dump, file),
                     t_format("%s/%s/%s.safetensors", run.out, role, file)))
        t_run_fail(&run, "stage %s gives another %s", role, file);
}

static void starts(const char *role, bool want)
{
    const char *line = t_format(": %s is process ", role),
               *ranked = t_format(" %s is process ", role);
    if ((t_run_said(&run, line) || t_run_said(&run, ranked)) != want)
        t_run_fail(&run, "%s was %sstarted", role, want ? "not " : "");
}

/* ---- alone ---- */

static void each_stage_alone(void **state)
{
    static const char *const GIVES[] = {"text", "image", "denoise", "frames", "frames"};
    (void)state;
    open_run();
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        const char *role = sl_role_name((sl_role)r);
        start(role, NULL);
        ends(0);
        same(role, GIVES[r]);
        for (int k = 0; k < SL_ROLE_COUNT; k++)
            starts(sl_role_name((sl_role)k), sl_crew_of((sl_role)k) == sl_crew_of((sl_role)r));
        if (!t_run_said(&run, t_format("what %s gave is in %s/%s", role, run.out, role)))
            t_run_fail(&run, "nobody said where it is");
    }
    t_run_close(&run);
}

/* Only what is needed is started, and what was taken is told. */
static void a_replay_starts_what_it_needs(void **state)
{
    static char video[300];
    char *args[] = {"sluice", "replay", dump,       "--from", "decode",
                    "--conf", run.conf, "--output", video,    NULL};
    (void)state;
    open_run();
    snprintf(video, sizeof video, "%s/b.mp4", run.out);
    t_run_start(&run, args);
    ends(0);
    if (!t_run_said(&run, t_format("info: from %s: text, image, latents; stages that run: decode, "
                                   "mux\n",
                                   dump)))
        t_run_fail(&run, "nobody said what was taken");
    for (int r = 0; r < SL_ROLE_COUNT; r++)
        starts(sl_role_name((sl_role)r), sl_crew_of((sl_role)r) == SL_ROLE_DECODE);
    if (!t_same_file(video, t_format("%s/../a.mp4", dump))) t_run_fail(&run, "another video");
    t_run_close(&run);
}

/* ---- behind a wrapper ---- */

#define SHELL(text) ((const char *const[]){"--", "sh", "-c", text, "sh", NULL})

/* The wrapper reads what the command reads, and takes its time: supervise.stall_s is 2. */
static void a_wrapper_has_the_terminal(void **state)
{
    int in[2];
    (void)state;
    open_run();
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    run.in = in[0];
    start("decode", SHELL("read word; echo \"the word is $word\" >&2; sleep 5; exec \"$@\""));
    assert_int_equal(write(in[1], "sesame\n", 7), 7);
    ends(0);
    close(in[0]);
    close(in[1]);
    if (!t_run_said(&run, "the word is sesame\n")) t_run_fail(&run, "it could not read");
    same("decode", "frames");
    t_run_close(&run);
}

/* A process beneath the wrapper dies and another one speaks for the stage: `run` in a debugger. */
static void a_second_run_beneath_the_wrapper(void **state)
{
    (void)state;
    open_run();
    start("denoise", SHELL("\"$@\" & sleep 0.1; kill -9 $!; wait $!; \"$@\"; :"));
    ends(0);
    same("denoise", "denoise");
    t_run_close(&run);
}

/* The job is done when the first is killed: the second is sent away, and the run ends. */
static void a_second_run_when_all_is_done(void **state)
{
    (void)state;
    open_run();
    setenv("GIVEN", t_format("%s/denoise/denoise.safetensors", run.out), 1);
    start("denoise",
          SHELL("\"$@\" & for i in $(seq 300); do [ -e \"$GIVEN\" ] && break; sleep 0.1; "
                "done; kill -9 $!; wait $!; \"$@\"; :"));
    ends(0);
    same("denoise", "denoise");
    t_run_close(&run);
}

/* Its end is the run's: no other is started, whatever supervise.restarts says. */
static void a_wrapper_that_ends(void **state)
{
    (void)state;
    open_run();
    start("decode", SHELL("exit 3"));
    t_run_ends(&run, 1);
    if (!t_run_said(&run, "failed: decode: its process ended (exit status 3)"))
        t_run_fail(&run, "nobody said how it ended");
    start("decode", (const char *const[]){"--", "/no/such/debugger", NULL});
    t_run_ends(&run, 1);
    if (!t_run_said(&run, "failed: decode: its process ended (exit status 127, could not be "
                          "executed)"))
        t_run_fail(&run, "nobody said that there is no such wrapper");
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

/* 64 words may stand before the stage's program; one more is refused, and none left out. */
static void a_wrapper_has_so_many_words(void **state)
{
    (void)state;
    open_run();
    for (int words = 64; words <= 65; words++) {
        const char *more[1 + 65 + 1] = {"--", "env"};
        for (int i = 2; i <= words; i++) more[i] = i == words ? "LAST=1" : "A=1";
        char *args[16 + 1 + 65 + 1] = {"sluice", "stage",  "text",   "--from", dump,
                                       "--conf", run.conf, "--dump", NULL};
        int n = 9;
        char to[300];
        snprintf(to, sizeof to, "%s/words", run.out);
        args[8] = to;
        for (int i = 0; more[i]; i++) args[n++] = (char *)more[i];
        t_run_start(&run, args);
        t_run_ends(&run, words > 64 ? 2 : 0);
        if (words > 64 && !t_run_said(&run, "65 words behind --, want at most 64; or a script"))
            t_run_fail(&run, "65 words were not refused");
    }
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

/* ---- what is refused ---- */

static void what_is_refused(void **state)
{
    static const struct {
        const char *role, *from, *says;
    } CASES[] = {
        {"paint", "x", "\"paint\" is no stage, want sluice stage text|image|denoise|decode|mux"},
        {"text", NULL, "stage wants the folder that --dump wrote: sluice stage text --from DIR"},
        {"text", "/no/dump", "replay: /no/dump is no folder that --dump wrote"},
    };
    (void)state;
    open_run();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char *args[] = {"sluice",
                        "stage",
                        (char *)CASES[i].role,
                        (char *)(CASES[i].from ? "--from" : NULL),
                        (char *)CASES[i].from,
                        NULL};
        t_run_start(&run, args);
        ends(2);
        if (!t_run_said(&run, CASES[i].says)) t_run_fail(&run, "lacks: %s", CASES[i].says);
    }
    t_run_close(&run);
}

static int make_dump(void **state)
{
    static char video[300];
    char *args[] = {"sluice",  "run",      "--quiet",  "--conf",  run.conf,  "--model", T_MODEL,
                    "--image", T_IMAGE,    "--prompt", "Snow.",   "--width", "48",      "--height",
                    "32",      "--frames", "9",        "--steps", "3",       "--seed",  "5",
                    "--dump",  dump,       "--output", video,     NULL};
    (void)state;
    open_run();
    snprintf(dump, sizeof dump, "%s/a", run.out);
    snprintf(video, sizeof video, "%s/a.mp4", run.out);
    t_run_start(&run, args);
    ends(0);
    return 0;
}

static int remove_dump(void **state)
{
    (void)state;
    *strrchr(dump, '/') = 0; /* out/ */
    *strrchr(dump, '/') = 0;
    t_rmdir(dump);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_stage_alone),
        cmocka_unit_test(a_replay_starts_what_it_needs),
        cmocka_unit_test(a_wrapper_has_the_terminal),
        cmocka_unit_test(a_second_run_beneath_the_wrapper),
        cmocka_unit_test(a_second_run_when_all_is_done),
        cmocka_unit_test(a_wrapper_that_ends),
        cmocka_unit_test(a_wrapper_has_so_many_words),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests_name("stage", tests, make_dump, remove_dump);
}
