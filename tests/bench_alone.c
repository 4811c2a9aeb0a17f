/* bench_alone.c - what sharing costs where nobody shares: one server on its own SQLite against one
 * that keeps its queue on a Redis of this machine (appendfsync always) and its files in a shared
 * folder, the same jobs of models/demo. run: alone
 *
 * Both are up all the time, and idle servers cost next to nothing; PAIRS times each makes JOBS jobs
 * that are submitted at once, and who is first takes turns, so that what else runs on the machine,
 * and how fast it is just then, is the same for both. A job is over when its client, who reads its
 * events, has its video. Told of each way, of a job, medians:
 *
 *   seconds     wall clock
 *   around      of these, what is before and behind the pipeline: seconds less the report's total
 *               (of jobs that are alone, for others wait there)
 *   processors  of all processes; and of the server's own and Redis, where the two ways differ: the
 *               rest are the stages, which compute the same, and whose noise is larger than that
 *
 * and the median of the pairs' differences, with its interval by ranks (95 % from 6 pairs on). The
 * last line adds what is around to what the server and Redis compute: so much a job is later where
 * nothing of that runs beside its stages, whatever the noise of these.
 *
 * SLUICE_ALONE_PAIRS=N: other than 20; SLUICE_ALONE_JOBS=N: than 1; SLUICE_ALONE_STEPS=N: than
 * 12; SLUICE_ALONE_FSYNC=everysec: Redis's appendfsync. */
#include "tests/t_redis.h"
#include "tests/t_serve.h"

#include <dirent.h>
#include <math.h>

#define MODEL "models/demo"
#define PICTURE "tests/demo-model/pictures/sunset.jpg"
#define MOST 400

enum { WALL, AROUND, POST, ALL_CPU, OWN_CPU, FIGURES };

typedef struct {
    double is[FIGURES]; /* of a job, seconds */
} cost;

static int pairs = 20, jobs = 1, steps = 12;
static t_redis redis;
static t_serve servers[2]; /* alone; that shares */

/* ---- processors ---- */

typedef struct {
    pid_t pid, parent;
    bool own; /* the server's own process, or Redis; else a stage or the dispatcher */
    bool in;
    double s;
} process;

/* Of /proc/PID/stat, and its clock, which counts finer; false: it has ended. */
static bool read_process(pid_t pid, process *out)
{
    char line[1024] = "";
    clockid_t clock;
    struct timespec t;
    FILE *f = fopen(t_format("/proc/%d/stat", (int)pid), "re");
    if (!f) return false;
    const bool got = fgets(line, sizeof line, f);
    fclose(f);
    const char *behind = strrchr(line, ')');
    int parent;
    if (!got || !behind || sscanf(behind, ") %*c %d", &parent) != 1 ||
        clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        return false;
    *out = (process){
        .pid = pid, .parent = (pid_t)parent, .s = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec};
    return true;
}

/* Of the server, its descendants and, where it shares, Redis, so far. */
static void used(const t_serve *s, bool shares, double *all, double *own)
{
    static process p[4096];
    int n = 0;
    struct dirent *e;
    DIR *d = opendir("/proc");
    assert_non_null(d);
    while (n < 4096 && (e = readdir(d)))
        if (atoi(e->d_name) > 0 && read_process((pid_t)atoi(e->d_name), &p[n])) n++;
    closedir(d);
    for (int i = 0; i < n; i++)
        p[i].in = p[i].own = p[i].pid == s->pid || (shares && p[i].pid == redis.pid);
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n && !p[i].in; k++)
                if (p[k].in && p[k].pid == p[i].parent) p[i].in = more = true;
    }
    *all = *own = 0;
    for (int i = 0; i < n; i++) {
        if (p[i].in) *all += p[i].s;
        if (p[i].own) *own += p[i].s;
    }
}

/* ---- jobs ---- */

static void submit(char id[64], const t_serve *s, int seed)
{
    const char *const fields[] = {"prompt",
                                  "pan left",
                                  "input_reference",
                                  "@" PICTURE,
                                  "size",
                                  "256x160",
                                  "frames",
                                  "17",
                                  "steps",
                                  t_format("%d", steps),
                                  "seed",
                                  t_format("%d", seed),
                                  NULL};
    t_reply r;
    t_post(&r, s, fields, NULL);
    if (r.code != 200) fail_msg("POST: HTTP %ld %s", r.code, r.body ? r.body : "(no answer)");
    snprintf(id, 64, "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
}

/* Its events until it ends, then its video. */
static void fetch(const t_serve *s, const char *id)
{
    t_reply r;
    t_http(&r, s, "GET", t_format("/v1/videos/%s/events", id));
    if (!r.body || !strstr(r.body, "\"status\":\"completed\""))
        fail_msg("%s did not end well: %s", id, r.body ? r.body : "(no answer)");
    t_reply_free(&r);
    t_http(&r, s, "GET", t_format("/v1/videos/%s/content", id));
    if (r.code != 200 || r.size < 1000) fail_msg("%s: HTTP %ld, %zu bytes", id, r.code, r.size);
    t_reply_free(&r);
}

static double total_of(const t_serve *s, const char *id)
{
    t_reply r;
    t_http(&r, s, "GET", t_format("/v1/videos/%s/report", id));
    if (r.code != 200) fail_msg("%s's report: HTTP %ld", id, r.code);
    const double total = atof(t_reply_text(&r, "total"));
    t_reply_free(&r);
    return total;
}

static cost run(const t_serve *s, bool shares, int seed)
{
    char ids[MOST][64];
    double all[2], own[2];
    used(s, shares, &all[0], &own[0]);
    const double t0 = t_seconds();
    for (int i = 0; i < jobs; i++) submit(ids[i], s, seed + i);
    const double t1 = t_seconds();
    for (int i = 0; i < jobs; i++) fetch(s, ids[i]);
    cost c = {.is[WALL] = (t_seconds() - t0) / jobs, .is[POST] = (t1 - t0) / jobs};
    usleep(300000); /* what is done behind the end is the job's, too */
    used(s, shares, &all[1], &own[1]);
    c.is[ALL_CPU] = (all[1] - all[0]) / jobs;
    c.is[OWN_CPU] = (own[1] - own[0]) / jobs;
    c.is[AROUND] = jobs == 1 ? c.is[WALL] - total_of(s, ids[0]) : 0;
    return c;
}

/* ---- what came of it ---- */

static int by_size(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* *x is sorted; *low and *high: its interval. */
static double median(double *x, int n, double *low, double *high)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    int k = (int)floor((n - 1.96 * sqrt(n)) / 2);
    if (k < 0) k = 0;
    *low = x[k];
    *high = x[n - 1 - k];
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static double print_row(const char *what, int figure, const cost *alone, const cost *shared)
{
    double a[MOST] = {0}, b[MOST] = {0}, more[MOST] = {0}, low, high, unused;
    for (int i = 0; i < pairs; i++) {
        a[i] = alone[i].is[figure];
        b[i] = shared[i].is[figure];
        more[i] = b[i] - a[i];
    }
    const double one = median(a, pairs, &unused, &unused);
    const double two = median(b, pairs, &unused, &unused), is = median(more, pairs, &low, &high);
    printf("%-26s SQLite %7.1f ms, shared %7.1f: %+6.1f ms (%+.1f to %+.1f), %+5.2f %%\n", what,
           1e3 * one, 1e3 * two, 1e3 * is, 1e3 * low, 1e3 * high, 100 * is / one);
    return is;
}

static int setting(const char *name, int otherwise, int most)
{
    const char *text = getenv(name);
    const int n = text ? atoi(text) : otherwise;
    if (n < 1 || n > most) fail_msg("%s=%s, want 1 to %d", name, text, most);
    return n;
}

static void print_all(const cost *alone, const cost *shared)
{
    double wall[MOST] = {0}, unused;
    print_row("seconds a job", WALL, alone, shared);
    const double around = jobs == 1 ? print_row("  around the pipeline", AROUND, alone, shared) : 0;
    print_row("  its POST", POST, alone, shared);
    print_row("processors' time", ALL_CPU, alone, shared);
    const double own = print_row("  server's own and Redis", OWN_CPU, alone, shared);
    for (int i = 0; i < pairs; i++) wall[i] = alone[i].is[WALL];
    const double length = median(wall, pairs, &unused, &unused);
    if (jobs == 1)
        printf("what sharing adds is at most %.1f ms of %.0f, %.2f %%\n", 1e3 * (around + own),
               1e3 * length, 100 * (around + own) / length);
}

/* ---- both servers ---- */

static void open_both(void)
{
    static char blobs[320];
    t_redis_open(&redis);
    if (getenv("SLUICE_ALONE_FSYNC"))
        T_REDIS(&redis, "CONFIG", "SET", "appendfsync", getenv("SLUICE_ALONE_FSYNC"));
    snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
    const char *const more[] = {"--queue", redis.url, "--blobs", blobs, "--role", "both", NULL};
    for (int k = 0; k < 2; k++) {
        t_serve_open(&servers[k]);
        t_serve_conf(&servers[k], "");
        t_serve_start(&servers[k], MODEL, k ? more : NULL);
        run(&servers[k], k, 1000); /* warm */
    }
}

static void close_both(void)
{
    for (int k = 0; k < 2; k++)
        if (t_serve_stop(&servers[k])) fail_msg("the server did not end well");
    t_redis_close(&redis);
    t_serve_no_children();
    for (int k = 0; k < 2; k++) t_serve_close(&servers[k]);
}

int main(void)
{
    static cost costs[2][MOST];
    pairs = setting("SLUICE_ALONE_PAIRS", pairs, MOST);
    jobs = setting("SLUICE_ALONE_JOBS", jobs, 64);
    steps = setting("SLUICE_ALONE_STEPS", steps, 1000);
    if (!t_redis_is_there()) {
        printf("no redis-server on this machine\n");
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    open_both();
    for (int i = 0; i < pairs; i++)
        for (int k = 0; k < 2; k++) {
            const bool shares = (i + k) % 2;
            costs[shares][i] = run(&servers[shares], shares, i * jobs);
            const double *is = costs[shares][i].is;
            printf("  %s: %.3f s a job (around %.3f, POST %.3f), %.2f s of processors, %.4f own\n",
                   shares ? "shared" : "SQLite", is[WALL], is[AROUND], is[POST], is[ALL_CPU],
                   is[OWN_CPU]);
        }
    printf("a job of %d steps, %d at once, %d pairs\n", steps, jobs, pairs);
    print_all(costs[0], costs[1]);
    close_both();
    return 0;
}
