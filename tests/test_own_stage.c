/* test_own_stage - a stage of one's own is supervised, killed and cancelled as Sluice's own
 * are: by
 * the protocol alone (helper_decode_flat), in C on the library (examples/linear_decode.c), and,
 * where $SLUICE_PYTHON names a Python with package sluice, in Python; with SLUICE_TORCH=1 the
 * denoiser of examples/, too. `make test-python` sets both. takes: 4 s. limit: 300 s */
#include "tests/t_run.h"

typedef struct {
    const char *what, *role, *program;
    const char *more; /* of its group in the configuration */
} subject;

#define MAX_KILLS 6
typedef struct {
    const char *line; /* once this is in a line of the log .. */
    int after_ms;     /* .. and that long ago: SIGKILL */
} strike;

/* Chunks go fast: mux is stopped and has one slot until the third, so that the decoder waits. */
static const strike OF_DECODE[MAX_KILLS + 1] = {{"decode is process", 0},
                                                {"<- decode READY", 0},
                                                {"index=0 chunks=5", 20},
                                                {"<- decode DONE", 0}},
                                          OF_DENOISE[MAX_KILLS + 1] = {
                                              {"denoise is process", 0},
                                              {"<- denoise READY", 0},
                                              {"stage=\"denoise\" done=2 ", 0},
                                              {"stage=\"denoise\" done=4 ", 3},
                                              {"<- denoise DONE", 0}};
enum { HELD_UNTIL = 3 };

static t_run run;
static subject subjects[8];
static int count;
static char want[2][256]; /* folders of the first undisturbed run of decode, of each of denoise */

static bool denoises(const subject *s)
{
    return !strcmp(s->role, "denoise");
}

/* A run with the subject in its role. mux: its group. */
static void start(const subject *s, const char *steps, const char *mux)
{
    static char output[400];
    char stages[4096] = "stages: (", model[] = T_MODEL;
    char *args[T_ARGS] = {
        "sluice",  "run",           "--quiet",  "--conf",   run.conf,  "--model", model,
        "--image", T_IMAGE,         "--prompt", "A cat.",   "--width", "96",      "--height",
        "64",      "--seed",        "7",        "--frames", "17",      "--steps", (char *)steps,
        "--set",   "rope=bfloat16", "--output", output};
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        const char *name = sl_role_name((sl_role)r), *group = t_format("{ name = \"%s\"; }", name);
        if (!strcmp(name, s->role))
            group = t_format("{ name = \"%s\"; program = \"%s\"; %s }", name, s->program, s->more);
        else if (r == SL_ROLE_MUX) group = mux;
        strcat(stages, t_format("%s %s", r ? "," : "", group));
    }
    strcat(stages, " );\n");
    t_run_conf(&run, 12, 30, stages);
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    t_run_start(&run, args);
}

static void check_bytes(const char *dir)
{
    if (!t_same_file(t_format("%s/a.mp4", run.out), t_format("%s/a.mp4", dir)))
        t_run_fail(&run, "the video is not the undisturbed run's");
}

/* What the first decoder gives is what every decoder gives; a denoiser has its own last bits. */
static void test_undisturbed(void **state)
{
    const subject *s = *state;
    char *kept = want[denoises(s)];
    t_run_open(&run);
    start(s, "6", "{ name = \"mux\"; slots = 1; }");
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    if (*kept && !denoises(s)) {
        check_bytes(kept);
        t_run_close(&run);
        return;
    }
    if (*kept) t_rmdir(kept);
    snprintf(kept, sizeof want[0], "%s", t_tmpdir());
    assert_int_equal(rename(t_format("%s/a.mp4", run.out), t_format("%s/a.mp4", kept)), 0);
    t_run_close(&run);
}

static void test_killed(void **state)
{
    const subject *s = *state;
    const strike *strikes = denoises(s) ? OF_DENOISE : OF_DECODE;
    const int place = 1 + sl_role_by_name(s->role);
    int struck = 0;
    pid_t dead = 0; /* whose last words may still come */
    t_run_open(&run);
    start(s, "6", "{ name = \"mux\"; slots = 1; }");
    while (strikes[struck].line && t_run_line(&run)) {
        if (!denoises(s) && struck < HELD_UNTIL && strstr(run.line, "<- mux READY"))
            kill(run.stages[1 + SL_ROLE_MUX], SIGSTOP);
        if (run.stages[place] == dead || !strstr(run.line, strikes[struck].line)) continue;
        usleep((useconds_t)strikes[struck].after_ms * 1000);
        dead = run.stages[place];
        if (kill(run.stages[place], SIGKILL))
            t_run_fail(&run, "%s: not there to be killed at \"%s\"", s->what, run.line);
        if (++struck == HELD_UNTIL) kill(run.stages[1 + SL_ROLE_MUX], SIGCONT);
    }
    if (strikes[struck].line)
        t_run_fail(&run, "%s: the run ended before \"%s\"", s->what, strikes[struck].line);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    check_bytes(want[denoises(s)]);
    t_run_close(&run);
}

/* It answers a cancel, and lives on. A decoder waits for a slot of a mux that is stopped. */
static void test_cancelled(void **state)
{
    const subject *s = *state;
    t_run_open(&run);
    start(s, denoises(s) ? "400" : "2", "{ name = \"mux\"; slots = 1; }");
    if (denoises(s)) {
        t_run_until(&run, "stage=\"denoise\" done=3 ");
    } else {
        t_run_until(&run, "<- mux READY");
        kill(run.stages[1 + SL_ROLE_MUX], SIGSTOP);
        t_run_until(&run, "index=0 chunks=5");
    }
    const double t0 = t_seconds();
    kill(run.pid, SIGINT);
    t_run_until(&run, t_format("<- %s FAILED", s->role));
    if (!strstr(run.line, "code=11")) t_run_fail(&run, "%s: %s", s->what, run.line);
    if (t_seconds() - t0 > 3) t_run_fail(&run, "it took %.1f s", t_seconds() - t0);
    kill(run.stages[1 + SL_ROLE_MUX], SIGCONT);
    t_run_ends(&run, 1);
    if (t_run_said(&run, t_format("%s[%d] ended: signal", s->role,
                                  (int)run.stages[1 + sl_role_by_name(s->role)])))
        t_run_fail(&run, "%s was killed", s->what);
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

/* A line of the log, of a process that the log calls so, ends like this. */
static bool said_by(const char *name, const char *text)
{
    const char *wanted = t_format("] info: %s", text), *who = t_format(" %s[", name);
    for (const char *at = run.text; (at = strstr(at, wanted)); at++) {
        const char *line = at;
        while (line > run.text && line[-1] != '\n') line--;
        const char *found = strstr(line, who);
        if (found && found < at) return true;
    }
    return false;
}

/* A program is a command; what it prints has the stage's name, its last words too, which have no
 * end. Arguments of a program that has no use for them are told. */
static void test_command(void **state)
{
    char program[400];
    (void)state;
    t_run_open(&run);
    t_write(t_format("%s/mine.sh", run.base),
            "printf 'one\\rtwo\\n' >&2; echo \"$9 and ${10}\"; printf '%s' 'no end'; exit 3\n");
    snprintf(program, sizeof program, "sh %s/mine.sh", run.base);
    const subject shell = {"a shell", "decode", program, "args = [\"a b\", \"c\"];"};
    start(&shell, "2", "{ name = \"mux\"; args = [\"--of-no-use\"]; }");
    t_run_ends(&run, 1);
    static const char *const SAYS[] = {"one\n", "two\n", "a b and c\n", "no end\n"};
    for (int i = 0; i < 4; i++)
        if (!said_by("decode", SAYS[i]))
            t_run_fail(&run, "nobody said \"%.*s\"", (int)strcspn(SAYS[i], "\n"), SAYS[i]);
    if (!t_run_said(&run, "failed: decode ended 13 times in a row (exit status 3): giving up"))
        t_run_fail(&run, "the user is not told why");
    if (!t_run_said(&run, "args of the configuration, from \"--of-no-use\" on, are of no use here"))
        t_run_fail(&run, "arguments of no use are not told");
    t_run_close(&run);
}

/* ---- which ---- */

static void add(const char *what, const char *role, const char *program)
{
    subjects[count++] = (subject){what, role, strdup(program), ""};
}

int main(void)
{
    struct CMUnitTest tests[24];
    const char *python = getenv("SLUICE_PYTHON"), *torch = getenv("SLUICE_TORCH");
    setenv("TORCHINDUCTOR_CACHE_DIR", "/nonexistent", 0); /* else torch makes one in TMPDIR */
    int n = 0;
    add("by the protocol alone", "decode", t_helper("helper_decode_flat"));
    add("in C", "decode", t_helper("linear_decode"));
    if (python) add("in Python", "decode", t_format("%s examples/linear_decode.py", python));
    add("Sluice's own", "denoise", "sluice-denoise");
    if (python && torch)
        add("diffusers", "denoise", t_format("%s examples/diffusers_denoise.py", python));
    for (int i = 0; i < count; i++) {
        const CMUnitTestFunction steps[] = {test_undisturbed, test_killed, test_cancelled};
        static const char *const NAMES[] = {"undisturbed", "killed", "cancelled"};
        for (int k = 0; k < 3; k++)
            tests[n++] = (struct CMUnitTest){
                strdup(t_format("%s, %s, %s", subjects[i].role, subjects[i].what, NAMES[k])),
                steps[k], NULL, NULL, &subjects[i]};
    }
    tests[n++] = (struct CMUnitTest){strdup("a command"), test_command, NULL, NULL, NULL};
    const int failed = _cmocka_run_group_tests("own_stage", tests, (size_t)n, NULL, NULL);
    for (int i = 0; i < n; i++) free((char *)tests[i].name);
    for (int i = 0; i < count; i++) free((char *)subjects[i].program);
    for (int i = 0; i < 2; i++)
        if (*want[i]) t_rmdir(want[i]);
    return failed;
}
