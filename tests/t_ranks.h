/* t_ranks.h - denoisers as ranks of a team, real processes: teams of every size give the bytes,
 * steps and cache decisions of one denoiser, with LoRA too; a rank that is killed or stopped at any
 * phase loses nothing; a second job parts the team, which joins again. test_ranks.c runs it on the
 * CPU, gpu_ranks.c on GPUs. */
#ifndef T_RANKS_H
#define T_RANKS_H

#include "tests/t_dispatch.h"

#include <jansson.h>

/* Device of denoiser i; all else is on that of the first. */
static const char *(*t_device)(int i);

/* On a GPU a step is shorter and the start of a process longer: what must outlast another job has
 * this many times the steps. */
static int t_more_steps = 1;
/* Steps of a job whose ranks are killed within them. Five kills are over after some twelve on a
 * machine of two cores. */
static int t_steps_within = 40;
static bool t_stays_away; /* a killed rank may not be back before its job is over */

typedef struct {
    const char *model;
    int width, height, frames, steps;
    const char *guidance, *fbcache; /* as options; NULL: the default, off */
} work;
#define MOST_WORKS 8 /* of one run, jobs one behind the other */
#define MOST_STEPS 1000

static t_run run;
static char eight[300]; /* a model with 8 heads: configurations alone, weights are random */

/* ---- settings ---- */

/* One denoiser a device, `ranks` of them; team: 0 auto. */
static const char *stages_of(int ranks, int team)
{
    static char text[4096];
    char group[512] = "{ name = \"denoise\"; devices = [", end[64] = "";
    size_t n = 0;
    for (int i = 0; i < ranks; i++)
        snprintf(group + strlen(group), sizeof group - strlen(group), "%s\"%s\"", i ? ", " : "",
                 t_device(i));
    if (team) snprintf(end, sizeof end, " team = %d;", team);
    snprintf(group + strlen(group), sizeof group - strlen(group), "];%s }", end);
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        const char *role = sl_role_name((sl_role)r),
                   *at = sl_role_on_host((sl_role)r) ? "cpu" : t_device(0),
                   *own = t_format("{ name = \"%s\"; device = \"%s\"; }", role, at);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", r ? ",\n" : "stages: ( ",
                              r == SL_ROLE_DENOISE && ranks > 1 ? group : own);
    }
    snprintf(text + n, sizeof text - n, " );\n");
    return text;
}

static void settings(int ranks, int team, bool random)
{
    t_run_conf(&run, 12, 30,
               t_format("%s%s", random ? "model: { random = 1; };\n" : "", stages_of(ranks, team)));
}

static void start_with(const char *model, const char *jobs)
{
    char *args[T_ARGS] = {"sluice",  "run",         "--quiet", "--conf",     run.conf,
                          "--model", (char *)model, "--jobs",  (char *)jobs, NULL};
    t_run_start(&run, args);
}

/* The line of job i, from 1 on, which makes I.mp4 and dumps to the folder I. */
static const char *job_line(const work *w, int i)
{
    return t_format("{\"image\": \"" T_IMAGE "\", \"prompt\": \"Snow.\", \"width\": %d, "
                    "\"height\": %d, \"frames\": %d, \"steps\": %d, \"seed\": 7%s%s%s%s, "
                    "\"output\": \"%s/%d.mp4\", \"dump\": \"%s/%d\", \"dump_steps\": true}\n",
                    w->width, w->height, w->frames, w->steps, w->guidance ? ", \"guidance\": " : "",
                    w->guidance ? w->guidance : "", w->fbcache ? ", \"fbcache\": " : "",
                    w->fbcache ? w->fbcache : "", run.out, i, run.out, i);
}

/* Works one behind the other. */
static void start(const work *w, int n)
{
    char text[MOST_WORKS * 1024] = "", jobs[300];
    for (int i = 0; i < n; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s", job_line(&w[i], i + 1));
    snprintf(jobs, sizeof jobs, "%s/jobs.jsonl", run.base);
    t_write(jobs, text);
    start_with(w->model, jobs);
}

/* Works that are given by and by: lines go into the descriptor that is returned. */
static int start_open(const char *model)
{
    int in[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    run.in = in[0];
    start_with(model, "-");
    close(in[0]);
    return in[1];
}

/* ---- what came of it ---- */

typedef struct {
    char out[240]; /* folder */
    int jobs;
    int steps[MOST_WORKS];
    char decisions[MOST_WORKS][MOST_STEPS][96]; /* by job and step */
} result;

/* Each step's decisions of both branches, as the log has them; a step that was repeated decides
 * alike. */
static void read_job(result *r, int job, int steps)
{
    for (const char *p = run.text; (p = strstr(p, t_format(" STEP job=%d ", job + 1))); p++) {
        int step = -1;
        const char *at = strstr(p, " step="), *what = strstr(p, "cond_computed=");
        char text[96], *is;
        if (!at || !what || sscanf(at, " step=%d", &step) != 1 || step < 0 || step >= MOST_STEPS)
            t_run_fail(&run, "a STEP that is none: %.100s", p);
        is = r->decisions[job][step];
        snprintf(text, sizeof text, "%.*s", (int)strcspn(what, "\n"), what);
        if (*is && strcmp(is, text))
            t_run_fail(&run, "step %d was decided otherwise when it was repeated: %s, then %s",
                       step, is, text);
        memcpy(is, text, sizeof text);
        r->steps[job] = step + 1 > r->steps[job] ? step + 1 : r->steps[job];
    }
    if (r->steps[job] != steps) t_run_fail(&run, "%d steps, want %d", r->steps[job], steps);
}

static void read_result(result *r, const work *w, int n)
{
    memset(r, 0, sizeof *r);
    snprintf(r->out, sizeof r->out, "%s", run.out);
    for (int i = 0; i < n; i++) read_job(r, i, w[i].steps);
    r->jobs = n;
}

/* Of a dumped file's bytes, after the 8 of the header's length: those without the note of the
 * device, which a team's first rank names otherwise than one denoiser does. Returns how many. */
static size_t without_device(char *bytes, size_t n)
{
    static const char NOTE[] = "\"device\":\"";
    char *at = n > 8 ? memmem(bytes + 8, n - 8, NOTE, sizeof NOTE - 1) : NULL;
    if (!at) return n;
    char *end = memchr(at + sizeof NOTE - 1, '"', n - (size_t)(at + sizeof NOTE - 1 - bytes));
    if (!end) return n;
    memmove(at, end, n - (size_t)(end - bytes));
    return n - (size_t)(end - at);
}

/* Two files of results have the same bytes, but for the note of the device. */
static bool same_result(const char *a, const char *b)
{
    size_t na, nb;
    char *x = t_read(a, &na), *y = t_read(b, &nb);
    bool same = x && y;
    if (same && strstr(a, ".safetensors")) {
        const size_t cut_a = without_device(x, na), cut_b = without_device(y, nb);
        same = cut_a < na && cut_b < nb && cut_a > 8 && cut_a == cut_b &&
               !memcmp(x + 8, y + 8, cut_a - 8); /* the header's length may differ by the note */
    } else if (same) same = na == nb && !memcmp(x, y, na);
    free(x);
    free(y);
    return same;
}

/* Of works that are all one, `want` may have the first alone. */
static void check(const char *which, const result *want, const work *w, int n)
{
    char name[128];
    static const char *const FILES[] = {".mp4", "/text.safetensors", "/image.safetensors",
                                        "/denoise.safetensors", "/frames.safetensors"};
    static result got;
    snprintf(name, sizeof name, "%s", which); /* t_format's, and soon another's */
    t_run_nothing_left(&run, 0);
    read_result(&got, w, n);
    for (int i = 0; i < n; i++) {
        const int as = want->jobs == 1 ? 0 : i;
        for (int k = 0; k < w[i].steps; k++)
            if (strcmp(got.decisions[i][k], want->decisions[as][k]))
                t_run_fail(&run, "%s: job %d, step %d: %s, want %s", name, i + 1, k,
                           got.decisions[i][k], want->decisions[as][k]);
        for (size_t k = 0; k < sizeof FILES / sizeof *FILES; k++)
            if (!same_result(t_format("%s/%d%s", run.out, i + 1, FILES[k]),
                             t_format("%s/%d%s", want->out, as + 1, FILES[k])))
                t_run_fail(&run, "%s: %d%s is not what one denoiser makes", name, i + 1, FILES[k]);
    }
}

/* The works by one denoiser; the folder stays. */
static void by_one(result *r, const work *w, int n, bool random)
{
    t_run_open(&run);
    settings(1, 0, random);
    start(w, n);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    read_result(r, w, n);
}

static void forget(result *r)
{
    *strrchr(r->out, '/') = 0;
    t_rmdir(r->out);
}

/* ---- every size ---- */

/* Members of attempts that the log tells of: SHARE of this size. */
static int shares(int size)
{
    return t_run_count(&run, t_format(" size=%d me=", size));
}

/* Each rank was ready before the first attempt: on a busy machine the others begin without one that
 * is slow to start. */
static bool in_time(int ranks)
{
    const char *first = strstr(run.text, " size=");
    if (!first || ranks == 1) return true; /* what is missing is told by who counts */
    for (int i = 0; i < ranks; i++) {
        const char *ready = strstr(run.text, t_format("<- denoise.%d READY", i));
        if (!ready || ready > first) return false;
    }
    return true;
}

#define TRIES 5                       /* to have all ranks in time */
static int runs_of_teams, runs_again; /* what remove_model tells */

/* n works of one model, one behind the other, by a team of this size. */
static void by_team(const work *w, int n, int size, bool random)
{
    for (int i = 0; i < TRIES; i++) {
        runs_of_teams++, runs_again += i > 0;
        t_run_open(&run);
        settings(size, size, random);
        start(w, n);
        t_run_ends(&run, 0);
        if (in_time(size)) return;
        t_run_close(&run);
    }
    fail_msg("%d times a rank of %d was not ready in time", TRIES, size);
}

/* A work with the cache takes some steps from it, and computes some after the first. */
static void hits_and_misses(const result *r, const work *w, int job)
{
    int hits = 0;
    for (int k = 0; k < w->steps; k++) hits += !!strstr(r->decisions[job][k], "cond_computed=0");
    if (!hits || hits == w->steps - 1)
        t_run_fail(&run, "job %d took %d of %d steps from the cache, want some and not all",
                   job + 1, hits, w->steps);
}

/* The works by one denoiser and by teams of these sizes. */
static void every_size(const work *w, int n, const int *sizes, bool random)
{
    static result want;
    by_one(&want, w, n, random);
    for (int i = 0; i < n; i++)
        if (w[i].fbcache) hits_and_misses(&want, &w[i], i);
    for (; *sizes; sizes++) {
        by_team(w, n, *sizes, random);
        if (shares(*sizes) != n * *sizes)
            t_run_fail(&run,
                       "%d shares of a team of %d, want one of each member for each of %d jobs",
                       shares(*sizes), *sizes, n);
        check(t_format("a team of %d", *sizes), &want, w, n);
        t_run_close(&run);
    }
    forget(&want);
}

/* Decoding a video is no work of ranks: most pictures here are of one frame, which have as many
 * tokens for a quarter of the pixels.
 *
 * 180 tokens do not divide by granules, 72 leave the second rank without rows. */
static const work TINY[] = {
    {T_MODEL, 160, 96, 9, 4, "5", NULL},    {T_MODEL, 192, 240, 1, 4, "1", NULL},
    {T_MODEL, 192, 240, 1, 10, "5", "0.3"}, {T_MODEL, 192, 240, 1, 10, "1", "0.3"},
    {T_MODEL, 96, 64, 9, 4, "1", NULL},
};

static void test_tiny(void **state)
{
    (void)state;
    every_size(TINY, sizeof TINY / sizeof *TINY, (const int[]){2, 0}, false);
}

static void test_demo(void **state)
{
    const work guided = {"models/demo", 128, 96, 5, 4, NULL, NULL};
    (void)state;
    if (access("models/demo/model_index.json", R_OK)) skip(); /* a GPU machine may go without */
    every_size(&guided, 1, (const int[]){2, 0}, false);
}

#define A_LORA "tests/golden/lora-i2v/a-peft.safetensors"
#define D_LORA "tests/golden/lora-i2v/d-lightx2v.safetensors" /* changes of every kind */

/* Jobs one behind the other, each with other weights than the one before. */
static const char *const SWITCHES[] = {"\"" A_LORA "\"", "", "\"" D_LORA ":0.6\"",
                                       "\"" A_LORA ":0.5\", \"" D_LORA "\"", ""};
#define SWITCH_COUNT 5

static void run_switches(int ranks, const char *guidance, int tries)
{
    char *args[T_ARGS] = {"sluice",  "run",   "--quiet", "--conf", run.conf,
                          "--model", T_MODEL, "--jobs",  NULL};
    char text[SWITCH_COUNT * 1024] = "";
    t_run_open(&run);
    settings(ranks, ranks > 1 ? ranks : 0, false);
    for (int i = 0; i < SWITCH_COUNT; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text),
                 "{\"image\": \"" T_IMAGE "\", \"prompt\": \"Snow.\", \"width\": 160, "
                 "\"height\": 160, \"frames\": 1, \"steps\": 3, \"seed\": 7, \"guidance\": %s, "
                 "\"lora\": [%s], \"dump_steps\": true, \"dump\": \"%s/%d\", \"output\": "
                 "\"%s/%d.mp4\"}\n",
                 guidance, SWITCHES[i], run.out, i, run.out, i);
    static char jobs[400];
    snprintf(jobs, sizeof jobs, "%s/jobs.jsonl", run.out);
    t_write(jobs, text);
    args[8] = jobs;
    t_run_start(&run, args);
    t_run_ends(&run, 0);
    runs_of_teams += ranks > 1;
    if (tries > 1 && !in_time(ranks)) {
        runs_again++;
        t_run_close(&run);
        run_switches(ranks, guidance, tries - 1);
        return;
    }
    t_run_nothing_left(&run, 0);
}

/* Every rank merges for itself, and takes off again: the bytes are one denoiser's. */
static void test_lora(void **state)
{
    static const char *const GUIDANCE[] = {"5", "1"};
    (void)state;
    for (int g = 0; g < 2; g++) {
        char want[240];
        run_switches(1, GUIDANCE[g], 1);
        snprintf(want, sizeof want, "%s", run.out);
        for (int i = 0; i < SWITCH_COUNT; i++)
            for (int k = 0; k < i; k++) { /* the two without are one */
                const bool same = same_result(t_format("%s/%d/denoise.safetensors", want, i),
                                              t_format("%s/%d/denoise.safetensors", want, k));
                if (same != (!*SWITCHES[i] && !*SWITCHES[k]))
                    t_run_fail(&run, "jobs %d and %d are %s", i, k, same ? "one" : "not one");
            }
        run_switches(2, GUIDANCE[g], TRIES);
        if (shares(2) != 2 * SWITCH_COUNT)
            t_run_fail(&run, "%d shares of a team of 2, want %d", shares(2), 2 * SWITCH_COUNT);
        for (int i = 0; i < SWITCH_COUNT; i++)
            for (int k = 0; k < 2; k++) {
                const char *file = t_format(k ? "%d/denoise.safetensors" : "%d.mp4", i);
                if (!same_result(t_format("%s/%s", run.out, file), t_format("%s/%s", want, file)))
                    t_run_fail(&run, "%s is not what one denoiser makes", file);
            }
        t_run_close(&run);
        *strrchr(want, '/') = 0;
        t_rmdir(want);
    }
}

/* 385 tokens of 8 heads, unguided by 1, 2, 4, 8; guided in halves. */
static void test_eight_heads(void **state)
{
    const work works[] = {{eight, 560, 176, 1, 4, "1", NULL}, {eight, 560, 176, 1, 4, "5", "0.26"}};
    (void)state;
    every_size(works, 2, (const int[]){2, 4, 8, 0}, true);
}

/* ---- shares ---- */

/* Of teams of 2, 4 and 8; others in each step. */
#define UNEVEN                                                                                     \
    "72:56,57:71,60:68,72:72:60:52,56:60:68:72,72:72:72:72:72:72:72:8,60:68:60:68:60:68:60:68"

/* Shares that are not equal and change with each step, hits of the cache among them. */
static void test_uneven_shares(void **state)
{
    const work tiny = {T_MODEL, 192, 192, 5, 10, "1", "0.3"},
               works[] = {{eight, 416, 544, 1, 5, "1", "0.26"},
                          {eight, 416, 544, 1, 4, "5", "0.26"}};
    (void)state;
    setenv("SLUICE_SHARES", UNEVEN, 1);
    every_size(&tiny, 1, (const int[]){2, 0}, false);
    every_size(works, 2, (const int[]){2, 4, 8, 0}, true);
    unsetenv("SLUICE_SHARES");
}

/* ---- ends of ranks ---- */

typedef struct {
    const char *name, *line; /* once this is in the log (%s: the rank), .. */
    int after_ms;            /* .. and that long ago */
} moment;

/* Of the first job, for one start of the rank each. */
static const moment STARTS[] = {
    {"starts", " %s is process", 0},
    {"loads", "<- %s RANK", 0},
    {"is ready", "<- %s READY", 0},
};
/* Of a job each. Either rank may lead: which does depends on whose pool the text came to. */
static const moment MOMENTS[] = {
    {"joins", "<- image DONE", 1},        {"makes the context", "<- image DONE", 8},
    {"has its inputs", " TAKEN job=", 0}, {"hands over", "stage=\"denoise\" done=6 ", 0},
    {"has handed over", " out=[2:", 0}, /* the latents */
};
#define STARTS_COUNT (sizeof STARTS / sizeof *STARTS)
#define MOMENTS_COUNT (sizeof MOMENTS / sizeof *MOMENTS)
/* Milliseconds into a step of some 20: exchange, attention, decision. */
static const int WITHIN[] = {0, 3, 6, 11, 17};

/* The newest process of this name. */
static pid_t pid_of(const char *name)
{
    const char *part = t_format(" %s is process ", name);
    int pid = 0;
    for (const char *p = run.text; (p = strstr(p, part)); p++) pid = atoi(p + strlen(part));
    return pid;
}

static void end_rank(const char *rank, int signal, const char *when)
{
    if (!pid_of(rank) || kill(pid_of(rank), signal))
        t_run_fail(&run, "%s: %s is not there", when, rank);
}

static void kill_at(const char *rank, const moment *m)
{
    const char *name = strstr(m->line, "%s");
    t_run_until(&run, name ? t_format("%.*s%s%s", (int)(name - m->line), m->line, rank, name + 2)
                           : m->line);
    if (m->after_ms) usleep((useconds_t)m->after_ms * 1000);
    end_rank(rank, SIGKILL, m->name);
}

/* The job is done, and the rank is back. */
static void until_over(const char *rank, int job)
{
    bool done = false, ready = false;
    while (!done || !ready) {
        if (!t_run_line(&run)) t_run_fail(&run, "the run ended before job %d", job);
        done = done || strstr(run.line, t_format("<- mux DONE job=%d ", job));
        ready = ready || strstr(run.line, t_format("<- %s READY", rank));
    }
}

/* The rank is killed at each moment, in one run: whenever it starts, until it may, in the first
 * job; once in each further job, which is given when the one before is done and there are two
 * ranks again. Every job goes on. */
static void killed_once(const char *rank, const work *w, const result *want)
{
    work all[1 + MOMENTS_COUNT];
    const bool few = getenv("SLUICE_KILLS") != NULL;
    int n = 0;
    t_run_open(&run);
    settings(2, 2, false);
    const int in = start_open(w->model);
    for (size_t i = 0; i < 1 + MOMENTS_COUNT; i++) {
        if (few && i != 1 && i != MOMENTS_COUNT) continue;
        all[n++] = *w;
        const char *line = job_line(w, n);
        assert_int_equal(write(in, line, strlen(line)), strlen(line));
        if (i) kill_at(rank, &MOMENTS[i - 1]);
        for (size_t k = 0; !i && k < STARTS_COUNT; k++) kill_at(rank, &STARTS[k]);
        until_over(rank, n);
    }
    close(in);
    t_run_ends(&run, 0);
    check(t_format("%s is killed at each moment", rank), want, all, n);
    t_run_close(&run);
}

/* After a kill: the rank is back, and the other has left its attempt, at this step, to go on with
 * it. False if the job was done by then. */
static bool together_again(const char *rank, int *step)
{
    bool ready = false;
    while (t_run_line(&run) && !strstr(run.line, " out=[2:")) { /* the latents */
        const char *parked = strstr(run.line, " PARKED job=1 ");
        ready = ready || strstr(run.line, t_format("<- %s READY", rank));
        if (!ready || !parked) continue;
        if (sscanf(parked, " PARKED job=1 attempt=%*d step=%d", step) != 1)
            t_run_fail(&run, "a PARKED that is none: %s", run.line);
        return true;
    }
    return false;
}

/* The rank is killed within steps, again and again in one run: each time the other goes on alone
 * until there are two again. Where steps are short and processes slow to start it may have done
 * most of the job meanwhile: further kills see a further run. */
static void killed_within(const char *rank, const work *w, const result *want)
{
    const size_t all = sizeof WITHIN / sizeof *WITHIN;
    int returns = 0;
    for (size_t i = 0; i < all;) {
        t_run_open(&run);
        settings(2, 2, false);
        start(w, 1);
        for (int step = 0; i < all && step < w->steps / 2; i++) {
            t_run_until(&run, "stage=\"denoise\" done=");
            if (WITHIN[i]) usleep((useconds_t)WITHIN[i] * 1000);
            end_rank(rank, SIGKILL, "within a step");
            if (together_again(rank, &step)) returns++;
            else step = w->steps;
        }
        t_run_ends(&run, 0);
        check(t_format("%s is killed within steps", rank), want, w, 1);
        if (i == all && !returns && !t_stays_away)
            t_run_fail(&run, "%s was killed %d times, and never went on with a job", rank, (int)i);
        t_run_close(&run);
    }
}

static void test_ends(void **state)
{
    const work plain = {T_MODEL, 192, 192, 1, 6, "1", NULL},
               cached = {T_MODEL, 192, 192, 1, 6, "5", "0.3"};
    static result want[2];
    (void)state;
    by_one(&want[0], &plain, 1, false);
    by_one(&want[1], &cached, 1, false);
    killed_once("denoise.1", &plain, &want[0]);
    killed_once("denoise.0", &cached, &want[1]);
    forget(&want[0]);
    forget(&want[1]);
}

static void test_ends_within_steps(void **state)
{
    const work plain = {T_MODEL, 240, 320, 1, t_steps_within, "1", NULL},
               cached = {T_MODEL, 240, 320, 1, t_steps_within, "5", "0.3"};
    static result want[2];
    (void)state;
    by_one(&want[0], &plain, 1, false);
    by_one(&want[1], &cached, 1, false);
    killed_within("denoise.0", &plain, &want[0]);
    killed_within("denoise.1", &cached, &want[1]);
    if (getenv("SLUICE_SOAK")) {
        killed_within("denoise.1", &plain, &want[0]);
        killed_within("denoise.0", &cached, &want[1]);
    }
    forget(&want[0]);
    forget(&want[1]);
}

/* Ranks that had no equal shares. */
static void test_ends_of_uneven_shares(void **state)
{
    const work cached = {T_MODEL, 240, 320, 1, t_steps_within, "1", "0.3"};
    static result want;
    (void)state;
    setenv("SLUICE_SHARES", UNEVEN, 1);
    by_one(&want, &cached, 1, false);
    killed_within("denoise.0", &cached, &want);
    killed_within("denoise.1", &cached, &want);
    forget(&want);
    unsetenv("SLUICE_SHARES");
}

/* A stopped rank is given up within two seconds, killed, and the job goes on. */
static void test_stops(void **state)
{
    const work plain = {T_MODEL, 240, 320, 1, 10, "1", NULL};
    static const char *const RANKS[] = {"denoise.0", "denoise.1"};
    static result want;
    (void)state;
    by_one(&want, &plain, 1, false);
    for (int i = 0; i < 2; i++) {
        t_run_open(&run);
        settings(2, 2, false);
        start(&plain, 1);
        t_run_until(&run, "stage=\"denoise\" done=4 ");
        assert_int_equal(kill(pid_of(RANKS[i]), SIGSTOP), 0);
        t_run_until(&run, "gave no sign of life while its team waits: killed");
        t_run_ends(&run, 0);
        check(t_format("%s is stopped", RANKS[i]), &want, &plain, 1);
        t_run_close(&run);
    }
    forget(&want);
}

/* ---- elastic ---- */

static void hear_until(void *client, sl_msg_type type, uint64_t tag, int done)
{
    sl_msg m;
    while (true) {
        t_dispatch_hear(&run, client, &m);
        if (m.type == SL_MSG_FINISHED && m.finished.code)
            t_run_fail(&run, "job: %s", m.finished.message);
        if (m.type != type) continue;
        if (type == SL_MSG_FINISHED && m.finished.tag == tag) return;
        if (type == SL_MSG_PROGRESS && !strcmp(m.progress.stage, "denoise") &&
            m.progress.job == tag && (int)m.progress.done >= done)
            return;
    }
}

/* Jobs 1 and 2, the second once the first has come so far; 0: at once. */
static void two_jobs(const char *conf, int after)
{
    static char dirs[2][SL_DIR];
    void *zmq = zmq_ctx_new(), *client;
    sl_msg drain = {.type = SL_MSG_DRAIN};
    t_run_open(&run);
    t_run_conf(&run, 5, 30, conf);
    t_dispatch_job(&run, 1, 70 * t_more_steps, dirs[0]);
    t_dispatch_job(&run, 2, 20, dirs[1]);
    t_dispatch_start(&run);
    client = t_dispatch_client(zmq, &run, getpid());
    t_dispatch_submit(client, 1, dirs[0]);
    if (after) hear_until(client, SL_MSG_PROGRESS, 1, after);
    t_dispatch_submit(client, 2, dirs[1]);
    hear_until(client, SL_MSG_FINISHED, after ? 2 : 1, 0);
    hear_until(client, SL_MSG_FINISHED, after ? 1 : 2, 0);
    sl_wire_send(client, NULL, 0, &drain, NULL);
    t_run_ends(&run, 0);
    zmq_close(client);
    zmq_ctx_term(zmq);
}

/* A second job parts the team at the next step; when it is through, both work on the first. */
static void test_elastic(void **state)
{
    char want[240];
    (void)state;
    two_jobs(stages_of(1, 0), 0);
    snprintf(want, sizeof want, "%s", run.out);
    two_jobs(stages_of(2, 0), 10);
    for (int id = 1; id <= 2; id++)
        for (int k = 0; k < 2; k++) {
            const char *file = t_format(k ? "%d/denoise.safetensors" : "%d.mp4", id);
            if (!same_result(t_format("%s/%s", run.out, file), t_format("%s/%s", want, file)))
                t_run_fail(&run, "%s is not what one denoiser makes", file);
        }
    if (t_run_count(&run, " PARKED job=1 ") != 2 + 1 || t_run_count(&run, " PARKED job=2 "))
        t_run_fail(&run, "job 1 was parked by %d members, want two and then one; job 2 by %d",
                   t_run_count(&run, " PARKED job=1 "), t_run_count(&run, " PARKED job=2 "));
    if (shares(2) != 4 || shares(1) != 2)
        t_run_fail(&run, "%d shares of two and %d of one, want 4 and 2", shares(2), shares(1));
    t_run_close(&run);
    *strrchr(want, '/') = 0;
    t_rmdir(want);
}

/* A cancel in the middle of a step ends the attempt on all ranks, which then take the next job. */
static void test_cancel(void **state)
{
    static char dirs[2][SL_DIR];
    void *zmq = zmq_ctx_new(), *client;
    sl_msg drain = {.type = SL_MSG_DRAIN}, cancel = {.type = SL_MSG_CANCEL, .cancel = {.job = 1}},
           m;
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 5, 30, stages_of(2, 2));
    t_dispatch_job(&run, 1, 900, dirs[0]);
    t_dispatch_job(&run, 2, 12, dirs[1]);
    t_dispatch_start(&run);
    client = t_dispatch_client(zmq, &run, getpid());
    t_dispatch_submit(client, 1, dirs[0]);
    t_dispatch_submit(client, 2, dirs[1]);
    hear_until(client, SL_MSG_PROGRESS, 1, 5);
    sl_wire_send(client, NULL, 0, &cancel, NULL);
    do t_dispatch_hear(&run, client, &m);
    while (m.type != SL_MSG_FINISHED || m.finished.tag != 1);
    assert_int_equal(m.finished.code, SL_CANCELLED);
    hear_until(client, SL_MSG_FINISHED, 2, 0);
    sl_wire_send(client, NULL, 0, &drain, NULL);
    t_run_ends(&run, 0);
    if (t_run_count(&run, " ended: ") || shares(2) != 2)
        t_run_fail(&run, "%d processes ended, %d shares of two, want none and 2",
                   t_run_count(&run, " ended: "), shares(2));
    zmq_close(client);
    zmq_ctx_term(zmq);
    t_run_close(&run);
}

/* ---- the model with 8 heads ---- */

static int make_model(void **state)
{
    static const char *const PARTS[] = {"image_encoder", "image_processor", "model_index.json",
                                        "scheduler",     "text_encoder",    "tokenizer"};
    char cwd[1024];
    size_t n;
    (void)state;
    if (!getcwd(cwd, sizeof cwd)) return 1;
    snprintf(eight, sizeof eight, "%s", t_tmpdir());
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++)
        if (symlink(t_format("%s/" T_MODEL "/%s", cwd, PARTS[i]),
                    t_format("%s/%s", eight, PARTS[i])))
            return 1;
    if (mkdir(t_format("%s/transformer", eight), 0700)) return 1;
    char *config = t_read(T_MODEL "/transformer/config.json", &n);
    const char *const words[][2] = {{"\"added_kv_proj_dim\": 256", "\"added_kv_proj_dim\": 192"},
                                    {"\"attention_head_dim\": 128", "\"attention_head_dim\": 24"},
                                    {"\"num_attention_heads\": 2", "\"num_attention_heads\": 8"}};
    for (int i = 0; i < 3; i++) {
        char *at = strstr(config, words[i][0]);
        if (!at) return 1;
        size_t was = strlen(words[i][0]), is = strlen(words[i][1]);
        memcpy(at, words[i][1], is);
        memset(at + is, ' ', was - is);
    }
    t_write(t_format("%s/transformer/config.json", eight), config);
    free(config);
    /* an autoencoder of few channels and blocks: pictures are large to have many tokens */
    json_t *vae = json_load_file(T_MODEL "/vae/config.json", 0, NULL);
    json_object_set_new(vae, "dim_mult", json_pack("[i, i, i, i]", 1, 1, 1, 1));
    json_object_set_new(vae, "num_res_blocks", json_integer(1));
    json_object_set_new(vae, "base_dim", json_integer(4));
    if (mkdir(t_format("%s/vae", eight), 0700) ||
        json_dump_file(vae, t_format("%s/vae/config.json", eight), 0))
        return 1;
    json_decref(vae);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    printf("%d of %d runs of teams were made again, for a rank was not ready in time\n", runs_again,
           runs_of_teams);
    t_rmdir(eight);
    return 0;
}

#define T_RANKS_TESTS                                                                              \
    cmocka_unit_test(test_tiny), cmocka_unit_test(test_lora), cmocka_unit_test(test_demo),         \
        cmocka_unit_test(test_eight_heads), cmocka_unit_test(test_uneven_shares),                  \
        cmocka_unit_test(test_ends), cmocka_unit_test(test_ends_within_steps),                     \
        cmocka_unit_test(test_ends_of_uneven_shares), cmocka_unit_test(test_stops),                \
        cmocka_unit_test(test_elastic), cmocka_unit_test(test_cancel)

#endif
