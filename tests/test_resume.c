/* test_resume - a batch with a spool of its own, whose command is killed: `sluice run --resume`
 * goes on, with the same bytes, and computes nothing twice that lies in the spool. takes: 7 s. */
#include "tests/t_run.h"

#include "common/safetensors.h"

#define JOBS 3
#define STEPS 24
#define KILLS 20

static t_run run;
static int with_state, with_latents; /* folders that a run went on with */
static char spool[240], wanted[JOBS][280], name[JOBS][280];

/* ---- the batch ---- */

static void write_batch(void)
{
    char lines[4096] = "";
    for (int i = 0; i < JOBS; i++) {
        snprintf(name[i], sizeof name[i], "%s/%d.mp4", run.out, i);
        snprintf(lines + strlen(lines), sizeof lines - strlen(lines),
                 "{\"image\": \"%s\", \"prompt\": \"cat %d\", \"width\": 48, \"height\": 32, "
                 "\"frames\": 9, \"steps\": %d, \"guidance\": 1, \"seed\": %d%s, \"output\": "
                 "\"%s\"}\n",
                 T_IMAGE, i, STEPS, i,
                 i == 1 ? t_format(", \"dump\": \"%s/dump\", \"dump-steps\": true", run.base) : "",
                 name[i]);
    }
    t_write(t_format("%s/jobs.jsonl", run.base), lines);
    t_write(run.conf,
            t_format("run: { log = \"debug\"; spool = \"%s\"; };\ndenoise: { state_every = 2; };\n"
                     "video: { preset = \"veryfast\"; };\n"
                     "supervise: { backoff_ms = 5; heartbeat_ms = 100; };\n",
                     spool));
}

static void start_batch(void)
{
    char *const args[] = {(char *)"sluice",
                          (char *)"run",
                          (char *)"--quiet",
                          (char *)"--model",
                          (char *)T_MODEL,
                          (char *)"--conf",
                          run.conf,
                          (char *)"--jobs",
                          (char *)t_format("%s/jobs.jsonl", run.base),
                          NULL};
    t_run_start(&run, args);
}

static void start_again(void)
{
    char *const args[] = {
        (char *)"sluice", (char *)"run", (char *)"--quiet", (char *)"--resume", (char *)"--conf",
        run.conf,         NULL};
    t_run_start(&run, args);
}

/* ---- what the spool has ---- */

/* A job's folder: what a run that goes on with it has no reason to make. */
typedef struct {
    char dir[300];
    bool text, image, latents;
    int step; /* of its state; 0: it has none */
} held;

static bool has(const char *dir, const char *file)
{
    return access(t_format("%s/%s.safetensors", dir, file), F_OK) == 0;
}

static void look_at(held *h, const char *dir)
{
    sl_st *st = NULL;
    sl_tensor meta;
    int64_t step = 0;
    sl_err err = {0};
    *h = (held){
        .text = has(dir, "text"), .image = has(dir, "image"), .latents = has(dir, "denoise")};
    snprintf(h->dir, sizeof h->dir, "%s", dir);
    if (!has(dir, "state")) return;
    T_OK(sl_st_open_file(&st, t_format("%s/state.safetensors", dir), &err));
    T_OK(sl_st_want(st, "meta", SL_I64, 1, (int64_t[]){3}, &meta, &err));
    memcpy(&step, meta.data, sizeof step);
    h->step = (int)step;
    sl_st_close(&st);
}

/* The folders of jobs in `dir`. */
static int look_into(held *all, int n, const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        char job[300];
        snprintf(job, sizeof job, "%s/%s", dir, e->d_name);
        if (isdigit((unsigned char)*e->d_name) && n < 2 * JOBS &&
            !access(t_format("%s/job.json", job), F_OK))
            look_at(&all[n++], job);
    }
    if (d) closedir(d);
    return n;
}

/* The folder of the log's job `number`, as its SUBMIT says. */
static const char *folder_of(int number)
{
    static char dir[300];
    const char *at = run.text;
    for (int i = 0; i < number && at; i++)
        if ((at = strstr(at, "SUBMIT tag="))) at++;
    *dir = 0;
    if (at && (at = strstr(at, "dir=\""))) sscanf(at + 5, "%299[^\"]", dir);
    return dir;
}

/* Nothing that a folder held before this run was made again by it. */
static void nothing_twice(const held *all, int n)
{
    for (int k = 1; k <= n; k++) {
        const char *dir = folder_of(k), *made = "";
        const held *h = NULL;
        for (int i = 0; i < n; i++)
            if (!strcmp(all[i].dir, dir)) h = &all[i];
        if (!h) continue;
        with_state += h->step > 0 && !h->latents;
        with_latents += h->latents;
        if (h->text && t_run_said(&run, t_format("<- text DONE job=%d ", k))) made = "text";
        if (h->image && t_run_said(&run, t_format("<- image DONE job=%d ", k))) made = "image";
        if (h->latents && t_run_said(&run, t_format("<- denoise STEP job=%d ", k)))
            made = "latents";
        if (*made) t_run_fail(&run, "%s: %s made again", dir, made);
        const char *first = strstr(run.text, t_format("<- denoise STEP job=%d ", k));
        int attempt, step;
        if (!first || h->latents) continue;
        assert_int_equal(sscanf(strstr(first, "attempt="), "attempt=%d step=%d", &attempt, &step),
                         2);
        if (step < h->step)
            t_run_fail(&run, "%s: step %d was computed again, the spool has %d", dir, step,
                       h->step);
    }
}

/* ---- kills ---- */

/* All videos are those of the undisturbed batch. */
static void all_as_wanted(int kills)
{
    for (int i = 0; i < JOBS; i++)
        if (!t_same_file(name[i], wanted[i]))
            t_run_fail(&run, "after %d kills %s is another video, or none", kills, name[i]);
    if (!t_same_file(t_format("%s/dump/denoise.safetensors", run.base),
                     t_format("%s/whole/denoise.safetensors", run.base)))
        t_run_fail(&run, "after %d kills the dump is another", kills);
    assert_true(has(t_format("%s/dump", run.base), "frames"));
    if (t_count_files(spool, NULL) && !system(t_format("ls -lR '%s' >&2", spool)))
        t_run_fail(&run, "%d files are left in the spool", t_count_files(spool, NULL));
    for (int i = 0; i < JOBS; i++) unlink(name[i]);
    t_rmdir(t_format("%s/dump", run.base));
}

static void open_run(void)
{
    t_run_open(&run);
    snprintf(spool, sizeof spool, "%s/spool", run.base);
    write_batch();
}

static void killed_at_random_moments(void **state)
{
    (void)state;
    open_run();
    double t0 = t_seconds();
    start_batch();
    t_run_ends(&run, 0);
    const double whole_s = t_seconds() - t0;
    for (int i = 0; i < JOBS; i++) {
        snprintf(wanted[i], sizeof wanted[i], "%s/want-%d.mp4", run.base, i);
        assert_int_equal(rename(name[i], wanted[i]), 0);
    }
    assert_int_equal(rename(t_format("%s/dump", run.base), t_format("%s/whole", run.base)), 0);
    const unsigned seed = (unsigned)time(NULL) ^ (unsigned)getpid();
    print_message("seed %u, a batch takes %.1f s\n", seed, whole_s);
    srand(seed);

    for (int kills = 0; kills < KILLS;) {
        held all[2 * JOBS];
        int n = look_into(all, 0, spool);
        n = look_into(all, n, t_format("%s/dump/.sluice", run.base));
        if (t_count_files(spool, "run-")) start_again();
        else start_batch();
        /* a run goes on where the one before was killed: half a batch's time reaches its end */
        const double until = t_seconds() + whole_s * (0.05 + 0.5 * rand() / RAND_MAX);
        while (t_seconds() < until && run.log >= 0) {
            struct pollfd log = {run.log, POLLIN, 0};
            if (poll(&log, 1, 5) > 0 && !t_run_line(&run)) break;
        }
        kill(run.pid, SIGKILL);
        /* its dispatcher lets the stages finish what they have begun, if it lives */
        if (rand() % 2 && run.stages[0] > 0) kill(run.stages[0], SIGKILL);
        const int status = t_run_end(&run);
        t_run_wait_all(&run);
        nothing_twice(all, n);
        if (status > 0) t_run_fail(&run, "exit status %d", status);
        kills += status == -SIGKILL;
        if (!t_count_files(spool, "run-") && !access(name[JOBS - 1], F_OK)) all_as_wanted(kills);
    }
    for (int i = 0; i < 2; i++) { /* what is left; the second finds nothing */
        start_again();
        t_run_ends(&run, 0);
    }
    assert_true(t_run_said(&run, "holds no job that a killed run left"));
    if (!access(name[JOBS - 1], F_OK)) all_as_wanted(KILLS); /* the last kill was before its end */
    print_message("%d folders with a state, %d with latents were gone on with\n", with_state,
                  with_latents);
    assert_true(with_state + with_latents > 0);
    assert_int_equal(t_count_files(spool, "run-"), 0);
    t_run_close(&run);
}

/* Two commands with one spool: the one that lives is left alone. SIGTERM leaves what has not
 * begun. */
static void a_run_that_lives_or_ends(void **state)
{
    (void)state;
    open_run();
    start_batch();
    t_run_until(&run, "STEP job=1");
    t_run other = run;
    other.text = NULL;
    char *const args[] = {(char *)"sluice", (char *)"run", (char *)"--resume",
                          (char *)"--conf", run.conf,      NULL};
    t_run_start(&other, args);
    t_run_ends(&other, 0);
    assert_true(t_run_said(&other, "its run is still there"));
    free(other.text);
    kill(run.pid, SIGTERM);
    t_run_ends(&run, 1);
    assert_true(t_run_said(&run, "not run: draining; sluice run --resume --conf "));
    assert_true(t_count_files(spool, "run-") == 1);
    start_again();
    t_run_ends(&run, 0);
    assert_int_equal(t_count_files(spool, NULL), 0);
    for (int i = 0; i < JOBS; i++) assert_int_equal(access(name[i], R_OK), 0);
    t_run_close(&run);
}

static void refusals(void **state)
{
    static const struct {
        const char *more, *option, *value, *says;
    } CASES[] = {
        {"", NULL, NULL, "run.cfg sets no run.spool"},
        {"run: { spool = \"x\"; };\n", "--prompt", "a cat",
         "--resume goes on with jobs as they are, found --prompt"},
        {"run: { spool = \"x\"; };\n", "--jobs", "x", "found --jobs"},
    };
    (void)state;
    t_run_open(&run);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        t_write(run.conf, CASES[i].more);
        char *const args[] = {(char *)"sluice",
                              (char *)"run",
                              (char *)"--resume",
                              (char *)"--conf",
                              run.conf,
                              (char *)(uintptr_t)CASES[i].option,
                              (char *)(uintptr_t)CASES[i].value,
                              NULL};
        t_run_start(&run, args);
        t_run_ends(&run, 2);
        if (!t_run_said(&run, CASES[i].says)) t_run_fail(&run, "no word of %s", CASES[i].says);
    }
    char *const bare[] = {(char *)"sluice", (char *)"run", (char *)"--resume", NULL};
    t_run_start(&run, bare);
    t_run_ends(&run, 2);
    T_SAYS(run.text, "--resume wants --conf FILE");
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_at_random_moments),
        cmocka_unit_test(a_run_that_lives_or_ends),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
