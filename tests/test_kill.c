/* test_kill - every process of a pipeline is killed at every phase of real jobs, which
 * end with the very bytes of undisturbed runs and leave nothing behind.
 *
 * A kill waits for a line of the dispatcher's log (the messages it gets) and strikes at
 * once, or some milliseconds later, where the next thing happens. SLUICE_KILLS=few takes
 * a subset, for sanitizers. takes: 17 s. limit: 240 s */
#include "tests/t_run.h"

#define RESTARTS 12
#define MAX_KILLS 8

typedef struct {
    const char *role; /* whom */
    const char *line; /* once this has been in a line of the log .. */
    int nth;          /* .. so many times (0: once) .. */
    int after_ms;     /* .. and that long ago */
} strike;

typedef struct {
    const char *name;
    bool fbcache, dump, two_jobs, lora;
    strike strikes[MAX_KILLS];
} plan;

static t_run run;
static char want[3][256]; /* folders of undisturbed runs: without and with the cache, with a LoRA */
static int kills;         /* so far */

/* ---- jobs ---- */

/* The one job, or (in a file) two that differ in everything but the size of the pool's
 * slots. */
static void start(const plan *p)
{
    char *args[T_ARGS] = {"sluice",
                          "run",
                          "--quiet",
                          "--conf",
                          run.conf,
                          "--model",
                          T_MODEL,
                          "--image",
                          T_IMAGE,
                          "--prompt",
                          "A cat runs, and it rains.",
                          "--negative",
                          "blur",
                          "--width",
                          "48",
                          "--height",
                          "32",
                          "--frames",
                          "17",
                          "--steps",
                          "12",
                          "--seed",
                          "7"};
    static char jobs[300], output[400], dump[400];
    int n = 0;
    while (args[n]) n++;
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    snprintf(dump, sizeof dump, "%s/a", run.out);
    if (p->fbcache) args[n++] = "--fbcache", args[n++] = "0.3";
    /* and LightX2V's steps, whose timesteps are no integers */
    if (p->lora)
        args[n++] = "--lora", args[n++] = "tests/golden/lora-i2v/d-lightx2v.safetensors:0.7",
        args[n++] = "--sampler", args[n++] = "lightx2v";
    if (p->two_jobs) {
        snprintf(jobs, sizeof jobs, "%s/jobs.jsonl", run.base);
        t_write(jobs, t_format("{\"output\": \"%s\", \"dump\": \"%s\"}\n"
                               "{\"output\": \"%s/b.mp4\", \"dump\": \"%s/b\", \"prompt\": "
                               "\"Snow.\", \"width\": 32, \"frames\": "
                               "13, \"steps\": 9, \"seed\": 8}\n",
                               output, dump, run.out, run.out));
        args[n++] = "--jobs", args[n++] = jobs;
    } else {
        args[n++] = "--output", args[n++] = output;
        if (p->dump) args[n++] = "--dump", args[n++] = dump;
    }
    t_run_start(&run, args);
}

static void same(const plan *p, const char *file)
{
    const char *got = t_format("%s/%s", run.out, file),
               *ref = t_format("%s/%s", want[p->lora ? 2 : p->fbcache], file);
    if (!t_same_file(got, ref))
        t_run_fail(&run, "%s: %s is not the undisturbed run's", p->name, file);
}

static void check_results(const plan *p)
{
    static const char *const DUMPED[] = {"text", "image", "denoise", "frames"};
    same(p, "a.mp4");
    if (p->two_jobs) same(p, "b.mp4");
    for (int i = 0; i < 4 && (p->dump || p->two_jobs); i++) {
        same(p, t_format("a/%s.safetensors", DUMPED[i]));
        if (p->two_jobs) same(p, t_format("b/%s.safetensors", DUMPED[i]));
    }
    int files = 1 + (p->dump || p->two_jobs) + 2 * p->two_jobs;
    if (t_count_files(run.out, NULL) != files)
        t_run_fail(&run, "%s: %d files in the output folder, want %d", p->name,
                   t_count_files(run.out, NULL), files);
}

/* ---- killing ---- */

static pid_t pid_of(const char *role)
{
    for (int i = 0; i < T_ROLE_COUNT; i++)
        if (!strcmp(role, T_ROLES[i])) return run.stages[i];
    return 0;
}

static void carry_out(const plan *p)
{
    int seen[MAX_KILLS] = {0}, left = 0;
    bool struck[MAX_KILLS] = {false};
    while (p->strikes[left].role) left++;
    for (int all = left; left && t_run_line(&run);)
        for (int i = 0; i < all; i++) {
            const strike *s = &p->strikes[i];
            if (struck[i] || !strstr(run.line, s->line) || ++seen[i] < (s->nth ? s->nth : 1))
                continue;
            if (s->after_ms) usleep((useconds_t)s->after_ms * 1000);
            if (kill(pid_of(s->role), SIGKILL))
                t_run_fail(&run, "%s: %s is not there to be killed at \"%s\"", p->name, s->role,
                           s->line);
            struck[i] = true;
            left--;
            kills++;
        }
    if (left) t_run_fail(&run, "%s: the run ended with %d kills undone", p->name, left);
}

static void test_plan(void **state)
{
    const plan *p = *state;
    t_run_open(&run);
    t_run_conf(&run, RESTARTS, 30, "");
    start(p);
    carry_out(p);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    check_results(p);
    t_run_close(&run);
}

/* Six processes; phases: before READY, computing, hand-over, between steps, chunks,
 * finish. */
static const plan PLANS[] = {
    {"stages before READY", .dump = true,
     .strikes = {{"text", "text is process"},
                 {"image", "image is process"},
                 {"denoise", "denoise is process"},
                 {"decode", "decode is process"},
                 {"mux", "mux is process"}}},
    {"stages at READY, computing", .dump = true,
     .strikes = {{"text", "<- text READY", 1, 1},
                 {"image", "<- image READY", 1, 30},
                 {"denoise", "<- denoise READY"},
                 {"decode", "<- decode READY"},
                 {"mux", "<- mux READY"}}},
    {"hand-overs", .dump = true,
     .strikes = {{"text", "<- text DONE"},
                 {"image", "<- image DONE"},
                 {"denoise", "<- denoise DONE"}}},
    {"hand-overs, without a dump", .strikes = {{"text", "<- text DONE"},
                                               {"image", "<- image DONE"},
                                               {"denoise", "<- denoise DONE"}}},
    {"hand-overs, taken", .strikes = {{"text", "<- text SPOOLED"},
                                      {"image", "<- image SPOOLED"},
                                      {"denoise", "<- denoise TAKEN"},
                                      {"decode", "<- denoise DONE", 1, 1},
                                      {"mux", "index=0 chunks=5"}}},
    {"between steps", .dump = true,
     .strikes = {{"denoise", "stage=\"denoise\" done=1 "},
                 {"denoise", "stage=\"denoise\" done=5 ", 1, 8},
                 {"denoise", "stage=\"denoise\" done=9 "},
                 {"denoise", "stage=\"denoise\" done=12 "}}},
    {"between steps, with the cache", .fbcache = true, .dump = true,
     .strikes = {{"denoise", "stage=\"denoise\" done=2 "},
                 {"denoise", "stage=\"denoise\" done=6 ", 1, 5},
                 {"denoise", "stage=\"denoise\" done=7 "},
                 {"denoise", "stage=\"denoise\" done=11 "}}},
    {"between steps, with a LoRA", .lora = true, .dump = true,
     .strikes = {{"denoise", "<- denoise READY", 1, 2},
                 {"denoise", "stage=\"denoise\" done=3 "},
                 {"denoise", "stage=\"denoise\" done=8 ", 1, 5}}},
    {"chunks", .dump = true,
     .strikes = {{"decode", "<- decode CHUNK"},
                 {"mux", "index=1 chunks=5"},
                 {"decode", "index=2 chunks=5", 1, 5},
                 {"mux", "index=3 chunks=5", 1, 2},
                 {"decode", "index=4 chunks=5"}}},
    {"finish", .dump = true,
     .strikes = {{"mux", "<- decode DONE"}, {"mux", "<- decode DONE", 2, 1}}},
    {"finish, decode", .dump = true, .strikes = {{"decode", "<- decode DONE"}}},
    {"after the end", .strikes = {{"mux", "<- mux DONE"}, {"text", "<- decode DONE"}}},
    {"dispatch before READY", .dump = true,
     .strikes = {{"dispatch", "text is process"},
                 {"dispatch", "on cpu says hello", 2},
                 {"dispatch", "<- denoise READY"}}},
    {"dispatch at every later phase", .dump = true,
     .strikes = {{"dispatch", "<- text DONE"},
                 {"dispatch", "<- image SPOOLED"},
                 {"dispatch", "stage=\"denoise\" done=5 "},
                 {"dispatch", "<- denoise DONE"},
                 {"dispatch", "index=2 chunks=5"},
                 {"dispatch", "<- decode DONE"},
                 {"dispatch", "<- mux DONE"}}},
    {"dispatch, with the cache", .fbcache = true,
     .strikes = {{"dispatch", "stage=\"denoise\" done=4 "},
                 {"dispatch", "stage=\"denoise\" done=8 ", 1, 6}}},
    {"two jobs in flight", .two_jobs = true,
     .strikes = {{"text", "<- text DONE", 2},
                 {"image", "<- image READY", 1, 20},
                 {"denoise", "stage=\"denoise\" done=6 "},
                 {"decode", "index=1 chunks=5"},
                 {"mux", "index=3 chunks=5"},
                 {"denoise", "job=2 attempt"},
                 {"decode", "index=2 chunks=4"}}},
    {"two jobs in flight, dispatch", .two_jobs = true,
     .strikes = {{"dispatch", "stage=\"denoise\" done=3 "},
                 {"dispatch", "index=2 chunks=5"},
                 {"dispatch", "index=1 chunks=4"}}},
};
#define PLAN_COUNT (sizeof PLANS / sizeof *PLANS)

static void test_enough(void **state)
{
    (void)state;
    printf("%d processes were killed\n", kills);
    if (!getenv("SLUICE_KILLS")) assert_true(kills >= 24);
}

/* ---- the client ---- */

static void test_client(void **state)
{
    static const char *const AT[] = {"text is process", "<- image READY",
                                     "stage=\"denoise\" done=3 ", "index=1 chunks=5",
                                     "<- decode DONE"};
    const plan p = {.name = "client"};
    (void)state;
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        t_run_open(&run);
        t_run_conf(&run, RESTARTS, 30, "");
        start(&p);
        t_run_until(&run, AT[i]);
        kill(run.pid, SIGKILL);
        assert_int_equal(t_run_end(&run), -SIGKILL);
        t_run_nothing_left(&run, 10);
        bool whole = t_count_files(run.out, "a.mp4") == 1; /* mux may just have finished */
        if (whole) same(&p, "a.mp4");
        if (t_count_files(run.out, NULL) != whole)
            t_run_fail(&run, "killed at \"%s\": %d files in the output folder", AT[i],
                       t_count_files(run.out, NULL));
        t_run_close(&run);
    }
}

/* ---- stages that do not die by our hand ---- */

/* Stopped, it beats no more: it is killed after stall_s, and the job goes on. */
static void test_stall(void **state)
{
    const plan p = {.name = "stall", .dump = true};
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, RESTARTS, 2, "");
    start(&p);
    t_run_until(&run, "stage=\"denoise\" done=5 ");
    kill(pid_of("denoise"), SIGSTOP);
    t_run_until(&run, "gave no sign of life for 2 s: killed");
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    check_results(&p);
    t_run_close(&run);
}

/* Run with `program` of helper_dies' in the place of a stage. */
static void start_dying(const plan *p, int restarts, const char *role, const char *mode, int times)
{
    char cwd[1024], group[4096];
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(group, sizeof group,
             "{ name = \"%s\"; program = \"%s\"; args = [\"%s\", \"%d\", \"%s/starts\", "
             "\"%s/%s/sluice-%s\"]; }",
             role, t_helper("helper_dies"), mode, times, run.base, *t_bin() == '/' ? "" : cwd,
             t_bin(), role);
    t_run_conf(&run, restarts, 30, t_stages((sl_role)sl_role_by_name(role), group));
    start(p);
}

/* Killed between the seal of a slot and the message with its ticket, more often than
 * there are slots: none is lost, so nobody waits for one. */
static void test_sealed_unsent(void **state)
{
    static const char *const ROLES[] = {"text", "denoise", "decode"};
    const plan p = {.name = "sealed and not sent", .dump = true};
    (void)state;
    for (int i = 0; i < 3; i++) {
        t_run_open(&run);
        start_dying(&p, RESTARTS, ROLES[i], "sealed", 3);
        t_run_ends(&run, 0);
        if (t_run_said(&run, "none of 2 slots")) t_run_fail(&run, "%s: slots were lost", ROLES[i]);
        t_run_nothing_left(&run, 0);
        check_results(&p);
        t_run_close(&run);
    }
}

/* A stage that never lives ends the job after supervise.restarts, in words; one that
 * cannot be understood, at once. */
static void test_always_dies(void **state)
{
    static const struct {
        const char *role, *mode, *says;
    } CASES[] = {
        {"decode", "start", "decode ended 3 times in a row (signal 9 (Killed)): giving up"},
        {"text", "start", "text ended 3 times in a row (signal 9 (Killed)): giving up"},
        {"denoise", "job",
         "denoise ended 3 times on this job without getting further (last: signal 9 (Killed)): "
         "giving up"},
        {"decode", "nonsense", "decode: speaks another protocol: message: "}};
    const plan p = {.name = "always dies"};
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        t_run_open(&run);
        start_dying(&p, 2, CASES[i].role, CASES[i].mode, 1000);
        t_run_ends(&run, 1);
        if (!t_run_said(&run, CASES[i].says)) t_run_fail(&run, "nobody said \"%s\"", CASES[i].says);
        t_run_nothing_left(&run, 0);
        assert_int_equal(t_count_files(run.out, NULL), 0);
        t_run_close(&run);
    }
}

/* ---- the undisturbed runs ---- */

static int make_references(void **state)
{
    static const plan UNDISTURBED[3] = {
        {.name = "undisturbed", .two_jobs = true},
        {.name = "undisturbed, with the cache", .fbcache = true, .dump = true},
        {.name = "undisturbed, with a LoRA", .lora = true, .dump = true}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        t_run_open(&run);
        t_run_conf(&run, RESTARTS, 30, "");
        start(&UNDISTURBED[i]);
        t_run_ends(&run, 0);
        t_run_nothing_left(&run, 0);
        if (i == 1 && !t_run_said(&run, "cond_computed=0"))
            t_run_fail(&run, "the cache never skipped: its runs prove nothing");
        snprintf(want[i], sizeof want[i], "%s", run.out);
    }
    return 0;
}

static int remove_references(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        *strrchr(want[i], '/') = 0;
        t_rmdir(want[i]);
    }
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[PLAN_COUNT + 8];
    const char *few = getenv("SLUICE_KILLS");
    size_t n = 0;
    for (size_t i = 0; i < PLAN_COUNT; i++)
        if (!few || i % 2)
            tests[n++] =
                (struct CMUnitTest){PLANS[i].name, test_plan, NULL, NULL, (void *)&PLANS[i]};
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_enough);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_client);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_stall);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_sealed_unsent);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(test_always_dies);
    return _cmocka_run_group_tests("kill", tests, n, make_references, remove_references);
}
