/* bench_queue.c - the queue that servers share, on a real Redis of this machine (appendfsync
 * everysec): what a job costs there, with many that wait.
 *
 *   submit     4 threads, 100 owners, until all wait
 *   ask        what a client's GET does while all wait: the row, and the place in the queue
 *   run        8 servers claim, tell 4 steps and end, until none is left
 *
 * SLUICE_QUEUE_JOBS=N: other than 20000. */
#include "tests/t_redis.h"

#include <pthread.h>
#include <stdatomic.h>

#include <curl/curl.h>

#include "common/clock.h"
#include "stages/serve/journal.h"

#define THREADS 4
#define SERVERS 8
#define ASKS 2000
#define STEPS 4

static t_redis redis;
static sl_journal *j;
static int jobs = 20000;
static atomic_int next, done;
static double *claim_s;

static double seconds(void)
{
    return (double)sl_now_ns() * 1e-9;
}

static sl_journal *open_as(const char *name)
{
    sl_journal *own;
    sl_err err = {0};
    const sl_journal_shared at = {
        .url = redis.url, .name = name, .model = "demo", .lease_ms = 30000};
    if (sl_journal_open_shared(&own, &at, &err)) fail_msg("%s", err.msg);
    return own;
}

static void *submits(void *arg)
{
    (void)arg;
    for (int i; (i = atomic_fetch_add(&next, 1)) < jobs;) {
        char request[640], same[SL_JOURNAL_ID]; /* as long as the video object's usually is */
        memset(request, 'x', sizeof request - 1);
        request[sizeof request - 1] = 0;
        sl_journal_job job = {.created_s = 1000, .request = request};
        snprintf(job.id, sizeof job.id, "video_%032d", i);
        snprintf(job.owner, sizeof job.owner, "owner-%d", i % 100);
        job.files = (char[]){"job.json 0.1 900\nimage.input 0.2 500000\n"};
        if (sl_journal_submit(j, &job, "", NULL, same, NULL)) abort();
    }
    return NULL;
}

static void *runs(void *arg)
{
    sl_journal *own = open_as(arg);
    sl_journal_job job;
    for (;;) {
        const double t0 = seconds();
        const sl_code rc = sl_journal_claim(own, 1, &job, NULL);
        if (rc == SL_BUSY) break;
        if (rc) abort();
        claim_s[atomic_fetch_add(&done, 1)] = seconds() - t0;
        for (int i = 1; i <= STEPS; i++)
            if (sl_journal_show(own, job.id, (double)i / STEPS, "denoise 1 4 1.0 1 3.0", NULL))
                abort();
        if (sl_journal_finish(own, job.id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, NULL)) abort();
        sl_journal_job_free(&job);
    }
    sl_journal_close(&own);
    return NULL;
}

static int by_time(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void print_times(const char *what, double *s, int n)
{
    qsort(s, (size_t)n, sizeof *s, by_time);
    printf("%-32s p50 %7.3f ms, p99 %7.3f ms\n", what, s[n / 2] * 1e3, s[n * 99 / 100] * 1e3);
}

static long used_memory(void)
{
    const char *at = strstr(T_REDIS(&redis, "INFO", "memory"), "used_memory:");
    return at ? atol(at + 12) : 0;
}

static void bench_submit(void)
{
    pthread_t t[THREADS];
    const long before = used_memory();
    const double t0 = seconds();
    for (int i = 0; i < THREADS; i++) pthread_create(&t[i], NULL, submits, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(t[i], NULL);
    const double took = seconds() - t0;
    printf("%-32s %7.0f jobs/s, %ld bytes of Redis's memory a job\n", "submit, 4 threads",
           jobs / took, (used_memory() - before) / jobs);
}

static void bench_ask(void)
{
    static double get_s[ASKS], place_s[ASKS];
    for (int i = 0; i < ASKS; i++) {
        char id[SL_JOURNAL_ID];
        sl_journal_job job;
        snprintf(id, sizeof id, "video_%032d", (int)((int64_t)i * jobs / ASKS));
        const double t0 = seconds();
        if (sl_journal_get(j, id, NULL, &job, NULL)) abort();
        const double t1 = seconds();
        if (sl_journal_position(j, id) < 0) abort();
        get_s[i] = t1 - t0;
        place_s[i] = seconds() - t1;
        sl_journal_job_free(&job);
    }
    print_times("a job's row", get_s, ASKS);
    print_times("its place among all that wait", place_s, ASKS);
}

static void bench_run(void)
{
    static char names[SERVERS][16];
    pthread_t t[SERVERS];
    const double t0 = seconds();
    for (int i = 0; i < SERVERS; i++) {
        snprintf(names[i], sizeof names[i], "server-%d", i);
        pthread_create(&t[i], NULL, runs, names[i]);
    }
    for (int i = 0; i < SERVERS; i++) pthread_join(t[i], NULL);
    printf("%-32s %7.0f jobs/s, %d calls each\n", "claim, 4 steps, end, 8 servers",
           jobs / (seconds() - t0), STEPS + 2);
    print_times("a claim, 8 servers at it", claim_s, jobs);
}

int main(void)
{
    const char *given = getenv("SLUICE_QUEUE_JOBS");
    if (given && atoi(given) >= ASKS) jobs = atoi(given);
    if (!t_redis_is_there()) {
        printf("no redis-server on this machine\n");
        return 0;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    claim_s = calloc((size_t)jobs, sizeof *claim_s);
    t_redis_open(&redis);
    T_REDIS(&redis, "CONFIG", "SET", "appendfsync", "everysec");
    j = open_as("front");
    printf("%d jobs\n", jobs);
    bench_submit();
    bench_ask();
    bench_run();
    sl_journal_close(&j);
    t_redis_close(&redis);
    free(claim_s);
    return 0;
}
