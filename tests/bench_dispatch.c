/* bench_dispatch.c - what the pipeline costs beside computing: JOBS tiny jobs through `sluice run --jobs`, their pace against their stages' computing.
 *
 * A job is one frame of 32 x 32 in one step of the tiny golden model, some milliseconds of computing. At best the jobs follow each other at the pace of the
 * busiest stage, or of all stages shared among the processors; what they take longer is the overhead: messages, leases, spool, scheduling, the output
 * file. The pace is taken from the first job's end to the last one's, so that starting and loading do not count. Programs from $SLUICE_BIN (default bin). */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

enum { JOBS = 40, STAGES = 5, RUNS = 3 };
static const char *const STAGE[STAGES] = {"text", "image", "denoise", "decode", "mux"};

typedef struct {
    double first, pace; /* seconds from the start to the first job's end; from one job's end to the next one's */
    double computing[STAGES], spooling, handing_over; /* seconds a job */
} figures;

static void fail(const char *what)
{
    fprintf(stderr, "bench_dispatch: %s\n", what);
    exit(1);
}

static void write_jobs(const char *dir, const char *top)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/jobs", dir);
    FILE *f = fopen(path, "w");
    if (!f) fail("the jobs file cannot be written");
    for (int i = 0; i < JOBS; i++)
        fprintf(f,
                "{\"model\": \"%s/tests/golden/tiny-i2v/model\", \"image\": \"%s/tests/golden/tiny-i2v/i2v-96x64x9.png\", "
                "\"prompt\": \"a red ball\", \"width\": 32, \"height\": 32, \"frames\": 1, \"steps\": 1, \"guidance\": 1, "
                "\"seed\": %d, \"output\": \"%s/%d.mp4\"}\n",
                top, top, i, dir, i);
    if (fclose(f)) fail("the jobs file cannot be written");
    snprintf(path, sizeof path, "%s/conf", dir);
    if (!(f = fopen(path, "w")) || fputs("run: { log = \"warn\"; };\n", f) < 0 || fclose(f)) fail("the settings cannot be written");
}

static double seconds(json_t *stage, const char *key)
{
    return json_number_value(json_object_get(stage, key));
}

static figures run_once(const char *dir, const char *bin)
{
    char command[3 * PATH_MAX], path[PATH_MAX];
    figures f = {.first = 1e30};
    double last = 0;
    snprintf(command, sizeof command, "%s/sluice run --quiet --conf %s/conf --jobs %s/jobs --json %s/report", bin, dir, dir, dir);
    if (system(command)) fail("sluice run failed");
    snprintf(path, sizeof path, "%s/report", dir);
    json_t *report = json_load_file(path, 0, NULL), *jobs = json_object_get(report, "jobs"), *job;
    size_t i;
    if (json_array_size(jobs) != JOBS) fail("the report lacks jobs");
    json_array_foreach(jobs, i, job)
    {
        json_t *stages = json_object_get(job, "stages");
        double total = seconds(job, "total");
        if (total < f.first) f.first = total;
        if (total > last) last = total;
        for (int s = 0; s < STAGES; s++) {
            json_t *stage = json_object_get(stages, STAGE[s]);
            f.computing[s] += seconds(stage, "computing") / JOBS;
            f.spooling += seconds(stage, "spooling") / JOBS;
            f.handing_over += seconds(stage, "handing_over") / JOBS;
        }
    }
    f.pace = (last - f.first) / (JOBS - 1);
    json_decref(report);
    return f;
}

int main(void)
{
    const char *bin = getenv("SLUICE_BIN") ? getenv("SLUICE_BIN") : "bin", *base = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    char dir[PATH_MAX / 2], top[PATH_MAX], remove[PATH_MAX];
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    figures best = {.pace = 1e30};
    snprintf(dir, sizeof dir, "%s/sluice-bench-XXXXXX", base);
    if (!getcwd(top, sizeof top) || !mkdtemp(dir)) fail("no temporary folder");
    write_jobs(dir, top);
    for (int i = 0; i < RUNS; i++) {
        figures f = run_once(dir, bin);
        if (f.pace < best.pace) best = f;
    }
    snprintf(remove, sizeof remove, "rm -r '%s'", dir);
    if (system(remove)) fail("the temporary folder cannot be removed");

    double sum = 0, busiest = 0;
    printf("computing a job, ms:");
    for (int s = 0; s < STAGES; s++) {
        printf(" %s %.2f", STAGE[s], 1e3 * best.computing[s]);
        sum += best.computing[s];
        if (best.computing[s] > busiest) busiest = best.computing[s];
    }
    double ideal = sum / (double)cpus > busiest ? sum / (double)cpus : busiest;
    printf("; all %.2f\n", 1e3 * sum);
    printf("first job %.1f ms after the start; then one every %.2f ms, at best %.2f (%ld processors): overhead %.2f ms a job\n",
           1e3 * best.first, 1e3 * best.pace, 1e3 * ideal, cpus, 1e3 * (best.pace - ideal));
    printf("of the pace: handing over %.2f ms, spooling %.2f ms a job (all stages; they run beside each other)\n",
           1e3 * best.handing_over, 1e3 * best.spooling);
    return 0;
}
