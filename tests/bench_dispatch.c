/* bench_dispatch.c - what the pipeline costs beside computing: JOBS tiny jobs through
 * `sluice run --jobs`, their pace against their stages' computing.
 *
 * A job is one frame of 32 x 32 in one step of the tiny golden model, some milliseconds
 * of computing. At best the jobs follow each other at the pace of the busiest stage, or
 * of all stages shared among the processors; what they take longer is the overhead:
 * messages, leases, spool, scheduling, the output file. The pace is taken from the first
 * job's end to the last one's, so that starting and loading do not count. Then the same
 * with turns (the stages compute one at a time), and what a question for a turn costs
 * that nobody else waits for: a job of STEPS steps. Programs from $SLUICE_BIN (default
 * bin). */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

enum { JOBS = 40, STAGES = 5, RUNS = 3, STEPS = 60 };
static const char *const STAGE[STAGES] = {"text", "image", "denoise", "decode", "mux"};

typedef struct {
    /* seconds from the start to the first job's end; from one job's end to the next one's */
    double first, pace;
    double computing[STAGES], turn[STAGES], spooling, handing_over; /* seconds a job */
} figures;

static void fail(const char *what)
{
    fprintf(stderr, "bench_dispatch: %s\n", what);
    exit(1);
}

static void write_jobs(const char *dir, const char *top, const char *turns, int count, int steps)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/jobs", dir);
    FILE *f = fopen(path, "w");
    if (!f) fail("the jobs file cannot be written");
    for (int i = 0; i < count; i++)
        fprintf(f,
                "{\"model\": \"%s/tests/golden/tiny-i2v/model\", \"image\": "
                "\"%s/tests/golden/tiny-i2v/i2v-96x64x9.png\", "
                "\"prompt\": \"a red ball\", \"width\": 32, \"height\": 32, \"frames\": 1, "
                "\"steps\": %d, \"guidance\": 1, "
                "\"seed\": %d, \"output\": \"%s/%d.mp4\"}\n",
                top, top, steps, i, dir, i);
    if (fclose(f)) fail("the jobs file cannot be written");
    snprintf(path, sizeof path, "%s/conf", dir);
    if (!(f = fopen(path, "w")) ||
        fprintf(f, "run: { log = \"warn\"; };\ndispatch: { turns = \"%s\"; };\n", turns) < 0 ||
        fclose(f))
        fail("the settings cannot be written");
}

static double seconds(json_t *stage, const char *key)
{
    return json_number_value(json_object_get(stage, key));
}

static figures run_once(const char *dir, const char *bin, int count)
{
    char command[3 * PATH_MAX], path[PATH_MAX];
    figures f = {.first = 1e30};
    double last = 0;
    snprintf(command, sizeof command,
             "%s/sluice run --quiet --conf %s/conf --jobs %s/jobs --json %s/report", bin, dir, dir,
             dir);
    if (system(command)) fail("sluice run failed");
    snprintf(path, sizeof path, "%s/report", dir);
    json_t *report = json_load_file(path, 0, NULL), *jobs = json_object_get(report, "jobs"), *job;
    size_t i;
    if (!jobs && count == 1) { /* the report of one job is that job's */
        jobs = json_pack("[o]", report);
        report = json_pack("{s:o}", "jobs", jobs);
    }
    if (json_array_size(jobs) != (size_t)count) fail("the report lacks jobs");
    json_array_foreach(jobs, i, job)
    {
        json_t *stages = json_object_get(job, "stages");
        double total = seconds(job, "total");
        if (total < f.first) f.first = total;
        if (total > last) last = total;
        for (int s = 0; s < STAGES; s++) {
            json_t *stage = json_object_get(stages, STAGE[s]);
            f.computing[s] += seconds(stage, "computing") / count;
            f.spooling += seconds(stage, "spooling") / count;
            f.handing_over += seconds(stage, "handing_over") / count;
            f.turn[s] += seconds(stage, "turn") / count;
        }
    }
    f.pace = count > 1 ? (last - f.first) / (count - 1) : last;
    json_decref(report);
    return f;
}

/* The best of RUNS. */
static figures run_best(const char *dir, const char *bin, const char *top, const char *turns,
                        int count, int steps)
{
    figures best = {.pace = 1e30};
    write_jobs(dir, top, turns, count, steps);
    for (int i = 0; i < RUNS; i++) {
        figures f = run_once(dir, bin, count);
        if (f.pace < best.pace) best = f;
    }
    return best;
}

int main(void)
{
    const char *bin = getenv("SLUICE_BIN") ? getenv("SLUICE_BIN") : "bin",
               *base = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char dir[PATH_MAX / 2], top[PATH_MAX], remove[PATH_MAX];
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    snprintf(dir, sizeof dir, "%s/sluice-bench-XXXXXX", base);
    if (!getcwd(top, sizeof top) || !mkdtemp(dir)) fail("no temporary folder");
    figures best = run_best(dir, bin, top, "never", JOBS, 1),
            turns = run_best(dir, bin, top, "always", JOBS, 1),
            alone = run_best(dir, bin, top, "always", 1, STEPS);
    snprintf(remove, sizeof remove, "rm -r '%s'", dir);
    if (system(remove)) fail("the temporary folder cannot be removed");

    double sum = 0, busiest = 0, waiting = 0;
    printf("computing a job, ms:");
    for (int s = 0; s < STAGES; s++) {
        printf(" %s %.2f", STAGE[s], 1e3 * best.computing[s]);
        sum += best.computing[s];
        waiting += turns.turn[s];
        if (best.computing[s] > busiest) busiest = best.computing[s];
    }
    double ideal = sum / (double)cpus > busiest ? sum / (double)cpus : busiest;
    printf("; all %.2f\n", 1e3 * sum);
    printf("first job %.1f ms after the start; then one every %.2f ms, at best %.2f (%ld "
           "processors): overhead %.2f ms a job\n",
           1e3 * best.first, 1e3 * best.pace, 1e3 * ideal, cpus, 1e3 * (best.pace - ideal));
    printf("of the pace: handing over %.2f ms, spooling %.2f ms a job (all stages; they run beside "
           "each other)\n",
           1e3 * best.handing_over, 1e3 * best.spooling);
    printf("one stage at a time (dispatch.turns = always): one job every %.2f ms, %.2f ms of its "
           "stages' time waiting for turns\n",
           1e3 * turns.pace, 1e3 * waiting);
    printf("a turn that nobody else waits for: %.0f us from question to answer (%d steps of %.2f "
           "ms)\n",
           1e6 * alone.turn[2] / STEPS, STEPS, 1e3 * alone.computing[2] / STEPS);
    return 0;
}
