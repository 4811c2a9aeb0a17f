/* bench_alone.c - what sharing costs where nobody shares: one server on its own SQLite against one
 * that keeps its queue on a Redis of this machine (appendfsync always) and its files in a shared
 * folder, the same jobs of models/demo. run: alone
 *
 * PAIRS times, in turn, each with a fresh state: a job to warm up, then JOBS that are submitted at
 * once, until the last has ended. Told are the seconds a job that passed, and the processors'
 * seconds a job of the server, its stages and Redis; the medians, and the median of the pairs'
 * quotients. What else runs on the machine moves the first more than the second.
 *
 * SLUICE_ALONE_PAIRS=N: other than 7; SLUICE_ALONE_JOBS=N: than 4. */
#include "tests/t_redis.h"
#include "tests/t_serve.h"

#include <sys/resource.h>

#define MODEL "models/demo"
#define PICTURE "tests/demo-model/pictures/sunset.jpg"
#define MOST 64

typedef struct {
    double wall_s, cpu_s; /* a job */
} cost;

static int pairs = 7, jobs = 4;

static const char *submit(const t_serve *s, int seed)
{
    static char ids[MOST + 1][64];
    const char *const fields[] = {
        "prompt", "pan left", "input_reference", "@" PICTURE, "size", "256x160",
        "frames", "17",       "steps",           "12",        "seed", t_format("%d", seed),
        NULL};
    t_reply r;
    t_post(&r, s, fields, NULL);
    if (r.code != 200) fail_msg("POST: HTTP %ld %s", r.code, r.body ? r.body : "(no answer)");
    snprintf(ids[seed], sizeof ids[0], "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
    return ids[seed];
}

static void ends(const t_serve *s, const char *id)
{
    const char *how = t_wait(s, id);
    if (strcmp(how, "completed")) fail_msg("%s: %s", id, how);
}

/* Of children that have ended, and of theirs. */
static double children_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_CHILDREN, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* All that the run takes, its start and the warm-up as well, is in cpu_s. */
static cost run(bool shares)
{
    static t_redis redis;
    t_serve s;
    char blobs[320];
    const char *ids[MOST];
    const double before = children_s();
    if (shares) {
        t_redis_open(&redis);
        snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
    }
    const char *const more[] = {"--queue", redis.url, "--blobs", blobs, "--role", "both", NULL};
    t_serve_open(&s);
    t_serve_conf(&s, "");
    t_serve_start(&s, MODEL, shares ? more : NULL);
    ends(&s, submit(&s, MOST));
    const double t0 = t_seconds();
    for (int i = 0; i < jobs; i++) ids[i] = submit(&s, i);
    for (int i = 0; i < jobs; i++) ends(&s, ids[i]);
    cost c = {.wall_s = (t_seconds() - t0) / jobs};
    if (t_serve_stop(&s)) fail_msg("the server did not end well");
    if (shares) t_redis_close(&redis);
    t_serve_no_children();
    t_serve_close(&s);
    c.cpu_s = (children_s() - before) / (jobs + 1);
    return c;
}

static int by_size(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static double median(const double *x, int n)
{
    double sorted[MOST];
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

static void print_row(const char *what, const double *alone, const double *shared)
{
    double quotient[MOST] = {0};
    for (int i = 0; i < pairs; i++) quotient[i] = shared[i] / alone[i];
    printf("%-22s SQLite %7.3f, shared %7.3f: %+5.2f %%; of the pairs %+5.2f %%\n", what,
           median(alone, pairs), median(shared, pairs),
           100 * (median(shared, pairs) / median(alone, pairs) - 1),
           100 * (median(quotient, pairs) - 1));
}

int main(void)
{
    static double wall[2][MOST], cpu[2][MOST];
    const char *n = getenv("SLUICE_ALONE_PAIRS"), *m = getenv("SLUICE_ALONE_JOBS");
    if (n && atoi(n) > 0 && atoi(n) <= MOST) pairs = atoi(n);
    if (m && atoi(m) > 0 && atoi(m) < MOST) jobs = atoi(m);
    if (!t_redis_is_there()) {
        printf("no redis-server on this machine\n");
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < pairs; i++)
        for (int k = 0; k < 2; k++) {
            const bool shares = (i + k) % 2; /* who is first takes turns, too */
            const cost c = run(shares);
            wall[shares][i] = c.wall_s;
            cpu[shares][i] = c.cpu_s;
            printf("  %s: %.3f s a job, %.3f s of processors\n", shares ? "shared" : "SQLite",
                   c.wall_s, c.cpu_s);
        }
    print_row("seconds a job", wall[0], wall[1]);
    print_row("processors' seconds", cpu[0], cpu[1]);
    return 0;
}
