/* bench_fleet.c - how far one Redis goes: 1,000 workers that take the time of 14B jobs and do
 * nothing, the journal's own code and calls, a real Redis of this machine (appendfsync everysec).
 *
 * A worker is a handle of the journal (two threads, three connections) and a thread that makes the
 * calls which sluice serve --role worker makes for a job: it holds four claims, as the pipeline
 * does to fetch ahead, and tells of one at a time each hand-over, each step, each preview, a state
 * every five steps, the files of the end, the end, and that hand-overs are gone. Jobs are of two
 * sizes and want one of two LoRA or none, which every worker has. Workers are threads of PROCESSES
 * processes. Two front ends listen to everything, and two clients ask for jobs.
 *
 * A job takes 30 steps of 17.7 s, as Wan2.1-I2V-14B at 1280x720, 81 frames, guided, on one H200
 * (BENCHMARKS.md); SLUICE_FLEET_STEPS=4 makes it a distilled model's: 4 steps of 8.85 s.
 *
 *   submit   2 threads, 100 owners, while all workers are there, but claim nothing yet
 *   claims   all workers begin, and take what they hold ahead
 *   pace     for PACE_S seconds the workers run at the true pace, with all those jobs waiting
 *   run      the pace SLUICE_FLEET_SCALE times faster (default 60, with 4 steps 6: as many calls as
 *            that many times the workers make), until no job is left
 *
 * SLUICE_FLEET_JOBS=N: other than 10000; SLUICE_FLEET_WORKERS=N: than 1000. */
#include "tests/t_redis.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <curl/curl.h>

#include "common/clock.h"
#include "stages/serve/journal.h"

#define PROCESSES 8
#define FRONTS 2
#define ASKERS 2
#define ASK_MS 20 /* between two questions of a client */
#define STATE_EVERY 5
#define AHEAD 4
#define IDLE_MS 2000 /* between two claims of who has room and is told of nothing: the pipeline's */
#define IDLE_S 20    /* nothing waits, and now and then a job comes */
#define PACE_S 60
#define MOST_JOBS 1000000
#define SAMPLES 200000

/* Shared by the processes. */
typedef struct {
    atomic_int begun, ended, claims, asks;
    atomic_int lost, failed; /* jobs that went to others; calls that did not come through */
    atomic_int phase;        /* 0: wait, 1: work, 2: end */
    _Atomic double scale;
    float claim_s[SAMPLES], ask_s[SAMPLES];
} board;

static t_redis redis;
static board *all;
static int jobs = 10000, workers = 1000, steps = 30;
static double scale = 60, step_s = 17.7;
static sl_journal *fronts[FRONTS];

static double seconds(void)
{
    return (double)sl_now_ns() * 1e-9;
}

static void pause_s(double s)
{
    const struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

static sl_journal *open_as(const char *name, bool shows)
{
    sl_journal *own;
    sl_err err = {0};
    const sl_journal_shared at = {
        .url = redis.url, .name = name, .model = "14B", .lease_ms = 30000, .shows = shows};
    if (sl_journal_open_shared(&own, &at, &err)) {
        fprintf(stderr, "%s: %s\n", name, err.msg);
        _exit(1);
    }
    return own;
}

/* ---- a worker ---- */

typedef struct {
    sl_journal *j;
    int number;
    sl_journal_job held[AHEAD];
    int count;
    uint64_t random;
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool woken;
} worker;

/* As sl_offer_tell has it. */
static void offer_as(worker *w)
{
    static const sl_journal_needs CAN = {1280 * 720, 81, "bf16,fp8,fp8-linear", "anime,film"};
    static const char SAYS[] =
        "{\"role\":\"worker\",\"model\":\"Wan2.1-I2V-14B-720P-Diffusers\",\"pipeline\":\"i2v\","
        "\"version\":\"0123456789ab\",\"ready\":true,\"draining\":false,\"devices\":[\"cuda:0\"],"
        "\"lora\":[\"anime\",\"film\"],\"precision\":\"bf16,fp8,fp8-linear\",\"pixels\":921600,"
        "\"frames\":81,\"lanes\":1,\"lora_loaded\":\"\"}";
    char offer[SL_JOURNAL_NEEDS];
    sl_err err = {0};
    if (sl_journal_print_needs(offer, &CAN, &err) || sl_journal_offer(w->j, offer, SAYS, &err)) {
        fprintf(stderr, "offer: %s\n", err.msg);
        _exit(1);
    }
}

static void hear(void *self, sl_journal_heard what, const char *id)
{
    worker *w = self;
    (void)id;
    if (what != SL_JOURNAL_HEARD_QUEUE) return;
    pthread_mutex_lock(&w->lock);
    w->woken = true;
    pthread_cond_signal(&w->news);
    pthread_mutex_unlock(&w->lock);
}

/* Until a job is heard of. */
static void wait_for_news(worker *w)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += IDLE_MS / 1000;
    pthread_mutex_lock(&w->lock);
    while (!w->woken && !pthread_cond_timedwait(&w->news, &w->lock, &until)) {
    }
    w->woken = false;
    pthread_mutex_unlock(&w->lock);
}

/* What a call came to: true, on with the job. A job that the worker was silent about for a lease is
 * another's. */
static bool goes_on(sl_code rc, const sl_err *err)
{
    if (!rc) return true;
    if (rc == SL_GONE) return false;
    if (!atomic_fetch_add(&all->failed, 1)) fprintf(stderr, "a call failed: %s\n", err->msg);
    return true; /* as a server does, which says it again later */
}

static void claim_ahead(worker *w)
{
    while (w->count < AHEAD) {
        sl_err err = {0};
        const double t0 = seconds();
        const sl_code rc = sl_journal_claim(w->j, 1, &w->held[w->count], &err);
        if (rc == SL_BUSY) return;
        if (rc) {
            goes_on(rc, &err);
            pause_s(1);
            continue;
        }
        w->count++;
        const int n = atomic_fetch_add(&all->claims, 1);
        if (n < SAMPLES) all->claim_s[n] = (float)(seconds() - t0);
    }
}

static bool tell_file(worker *w, const sl_journal_job *job, const char *name, int version)
{
    char text[SL_JOURNAL_FILE] = "", was[SL_JOURNAL_FILE];
    sl_err err = {0};
    if (version) snprintf(text, sizeof text, "%lld.%d", (long long)job->fence, version);
    return goes_on(sl_journal_file(w->j, job->id, name, text, 1000000, was, &err), &err);
}

/* Steps differ by a tenth, so that workers do not march. */
static void compute(worker *w)
{
    pause_s(step_s * (1 + 0.1 * (double)t_rand(&w->random)) / atomic_load(&all->scale));
}

static bool tell_all(worker *w, sl_journal_job *job)
{
    static const char *const HANDED[] = {"text.safetensors", "image.safetensors"},
                             *const MADE[] = {"output.mp4", "report.json", "trace.json",
                                              "log.jsonl", "denoise.safetensors"};
    char live[SL_JOURNAL_LIVE];
    sl_err err = {0};
    int version = 0;
    bool on = true;
    for (int i = 0; i < 2; i++) on = on && tell_file(w, job, HANDED[i], ++version);
    for (int step = 1; step <= steps && on; step++) {
        compute(w);
        snprintf(live, sizeof live, "denoise %d %d 17.7 1 3.0", step, steps);
        sl_journal_show(w->j, job->id, 0.95 * step / steps, live, NULL);
        on = tell_file(w, job, "preview.png", ++version);
        if (step % STATE_EVERY == 0) on = on && tell_file(w, job, "state.safetensors", ++version);
    }
    for (int i = 0; i < 5; i++) on = on && tell_file(w, job, MADE[i], ++version);
    return on &&
           goes_on(sl_journal_finish(w->j, job->id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &err),
                   &err);
}

static void run_one(worker *w)
{
    static const char *const GONE[] = {"text.safetensors", "image.safetensors",
                                       "denoise.safetensors", "state.safetensors"};
    sl_journal_job *job = &w->held[0], row;
    if (tell_all(w, job)) {
        if (!sl_journal_get(w->j, job->id, NULL, &row, NULL)) sl_journal_job_free(&row);
        for (int i = 0; i < 4; i++) tell_file(w, job, GONE[i], 0);
        atomic_fetch_add(&all->ended, 1);
    } else atomic_fetch_add(&all->lost, 1);
    sl_journal_job_free(job);
    memmove(w->held, w->held + 1, (size_t)--w->count * sizeof *w->held);
}

static void *works(void *arg)
{
    worker *w = arg;
    while (atomic_load(&all->phase) == 0) pause_s(0.05);
    pause_s((1 + (double)t_rand(&w->random)) * IDLE_MS / 2000);
    while (atomic_load(&all->phase) == 1) {
        claim_ahead(w);
        if (w->count) run_one(w);
        else wait_for_news(w);
    }
    sl_journal_close(&w->j);
    return NULL;
}

static void be_workers(int first, int n)
{
    worker *own = calloc((size_t)n, sizeof *own);
    pthread_t *threads = calloc((size_t)n, sizeof *threads);
    for (int i = 0; i < n; i++) {
        char name[32];
        worker *w = &own[i];
        snprintf(name, sizeof name, "worker-%d", w->number = first + i);
        w->random = (uint64_t)w->number * 7919;
        pthread_mutex_init(&w->lock, NULL);
        pthread_cond_init(&w->news, NULL);
        w->j = open_as(name, false);
        offer_as(w);
        sl_journal_listen(w->j, hear, w);
        if (pthread_create(&threads[i], NULL, works, w)) _exit(1);
        atomic_fetch_add(&all->begun, 1);
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    _exit(0);
}

/* ---- front ends and clients ---- */

static atomic_int next;
static atomic_bool asking;

static void submit_one(sl_journal *j, int i)
{
    static const char *const LORAS[] = {"", "anime", "film"};
    char request[640], same[SL_JOURNAL_ID]; /* as long as the video object's usually is */
    char text[SL_JOURNAL_NEEDS];
    sl_err err = {0};
    memset(request, 'x', sizeof request - 1);
    request[sizeof request - 1] = 0;
    sl_journal_job job = {.created_s = 1000, .request = request};
    snprintf(job.id, sizeof job.id, "video_%032d", i);
    snprintf(job.owner, sizeof job.owner, "owner-%d", i % 100);
    const sl_journal_needs needs = {i % 2 ? 1280 * 720 : 832 * 480, 81, "bf16", LORAS[i % 3]};
    if (sl_journal_print_needs(text, &needs, &err)) _exit(1);
    job.needs = text;
    job.files = (char[]){"job.json 0.1 900\nimage.input 0.2 500000\n"};
    if (sl_journal_submit(j, &job, "", NULL, same, &err)) {
        fprintf(stderr, "submit: %s\n", err.msg);
        _exit(1);
    }
}

static void *submits(void *arg)
{
    for (int i; (i = atomic_fetch_add(&next, 1)) < jobs;) submit_one(arg, i);
    return NULL;
}

static void *asks(void *arg)
{
    sl_journal *j = arg;
    uint64_t random = (uint64_t)(uintptr_t)arg;
    while (atomic_load(&asking)) {
        char id[SL_JOURNAL_ID];
        sl_journal_job row;
        snprintf(id, sizeof id, "video_%032d", (int)((1 + (double)t_rand(&random)) / 2 * jobs));
        const double t0 = seconds();
        if (!sl_journal_get(j, id, NULL, &row, NULL)) {
            if (row.state == SL_JOURNAL_QUEUED) sl_journal_position(j, id);
            const int n = atomic_fetch_add(&all->asks, 1);
            if (n < SAMPLES) all->ask_s[n] = (float)(seconds() - t0);
            sl_journal_job_free(&row);
        }
        pause_s(ASK_MS * 1e-3);
    }
    return NULL;
}

/* ---- what is told ---- */

static int by_time(const void *x, const void *y)
{
    const float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

static void print_times(const char *what, float *s, int from, int to)
{
    const int n = (to < SAMPLES ? to : SAMPLES) - from;
    if (n < 1) return;
    qsort(s + from, (size_t)n, sizeof *s, by_time);
    printf("  %-30s p50 %8.2f ms, p99 %8.2f ms, most %8.2f ms (%d)\n", what, s[from + n / 2] * 1e3,
           s[from + (int64_t)n * 99 / 100] * 1e3, s[to - 1 < SAMPLES ? from + n - 1 : from] * 1e3,
           n);
}

/* The number behind `name` in INFO's section. */
static double info(const char *section, const char *name)
{
    const char *at = strstr(T_REDIS(&redis, "INFO", section), name);
    return at ? atof(at + strlen(name)) : 0;
}

static double scripts(void)
{
    return info("commandstats", "cmdstat_evalsha:calls=");
}

static double redis_cpu(void)
{
    return info("cpu", "used_cpu_sys:") + info("cpu", "used_cpu_user:");
}

typedef struct {
    double s, calls, cpu;
    int ended, claims, asks, lost, failed;
} mark;

static mark now(void)
{
    return (mark){.s = seconds(),
                  .calls = scripts(),
                  .cpu = redis_cpu(),
                  .ended = atomic_load(&all->ended),
                  .claims = atomic_load(&all->claims),
                  .asks = atomic_load(&all->asks),
                  .lost = atomic_load(&all->lost),
                  .failed = atomic_load(&all->failed)};
}

static void print_phase(const char *what, mark a)
{
    const mark b = now();
    const double s = b.s - a.s;
    printf("%s: %.0f s, %.0f calls/s, %.1f jobs/s ended, Redis's thread %.0f %% busy, its memory "
           "%.0f MB\n",
           what, s, (b.calls - a.calls) / s, (b.ended - a.ended) / s, 100 * (b.cpu - a.cpu) / s,
           info("memory", "used_memory:") / 1e6);
    if (b.ended - a.ended >= jobs / 2)
        printf("  calls a job: %.1f\n", (b.calls - a.calls) / (b.ended - a.ended));
    print_times("a claim", all->claim_s, a.claims, b.claims);
    print_times("a job's row and place", all->ask_s, a.asks, b.asks);
    if (b.lost > a.lost || b.failed > a.failed)
        printf("  jobs that went to others %d, calls that failed %d\n", b.lost - a.lost,
               b.failed - a.failed);
}

static void raise_files(void)
{
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

static void read_settings(void)
{
    const char *n = getenv("SLUICE_FLEET_JOBS"), *w = getenv("SLUICE_FLEET_WORKERS"),
               *s = getenv("SLUICE_FLEET_SCALE"), *k = getenv("SLUICE_FLEET_STEPS");
    if (k && atoi(k) == 4) steps = 4, step_s = 8.85, scale = 6;
    if (n && atoi(n) >= 100 && atoi(n) <= MOST_JOBS) jobs = atoi(n);
    if (w && atoi(w) >= PROCESSES && atoi(w) <= 3000) workers = atoi(w);
    if (s && atof(s) > 0) scale = atof(s);
}

static void begin(pid_t pids[PROCESSES])
{
    for (int i = 0; i < PROCESSES; i++) {
        const int first = workers * i / PROCESSES, last = workers * (i + 1) / PROCESSES;
        fflush(NULL);
        if (!(pids[i] = fork())) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            be_workers(first, last - first);
        }
    }
    for (int i = 0; i < FRONTS; i++) {
        char name[16];
        snprintf(name, sizeof name, "front-%d", i);
        fronts[i] = open_as(name, true);
    }
    const double until = seconds() + 120;
    while (atomic_load(&all->begun) < workers) {
        if (seconds() > until)
            fail_msg("%d of %d workers began", atomic_load(&all->begun), workers);
        pause_s(0.05);
    }
}

int main(void)
{
    pid_t pids[PROCESSES];
    pthread_t submitters[FRONTS], askers[ASKERS];
    if (!t_redis_is_there()) {
        printf("no redis-server on this machine\n");
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    read_settings();
    raise_files();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 1;
    atomic_store(&all->scale, 1);
    t_redis_open(&redis);
    T_REDIS(&redis, "CONFIG", "SET", "appendfsync", "everysec");
    begin(pids);
    printf("%d workers in %d processes, %.0f connections, %d jobs of %d steps of %.1f s\n", workers,
           PROCESSES, info("clients", "connected_clients:"), jobs, steps, step_s);

    mark a = now();
    const double before = info("memory", "used_memory:");
    for (int i = 0; i < FRONTS; i++) pthread_create(&submitters[i], NULL, submits, fronts[i]);
    for (int i = 0; i < FRONTS; i++) pthread_join(submitters[i], NULL);
    const double took = seconds() - a.s;
    print_phase("submit", a);
    printf("  %.0f jobs/s submitted, %.0f bytes of Redis's memory a job\n", jobs / took,
           (info("memory", "used_memory:") - before) / jobs);

    a = now();
    atomic_store(&all->phase, 1);
    atomic_store(&asking, true);
    for (int i = 0; i < ASKERS; i++) pthread_create(&askers[i], NULL, asks, fronts[i % FRONTS]);
    while (atomic_load(&all->claims) < AHEAD * workers && atomic_load(&all->claims) < jobs)
        pause_s(0.05);
    print_phase("all workers claim at once", a);
    a = now();
    pause_s(PACE_S);
    print_phase("the true pace", a);

    a = now();
    atomic_store(&all->scale, scale);
    while (atomic_load(&all->ended) < jobs) {
        pause_s(0.2);
        for (int i = 0; i < PROCESSES; i++)
            if (waitpid(pids[i], NULL, WNOHANG)) fail_msg("a process of workers has ended");
    }
    char title[64];
    snprintf(title, sizeof title, "%.0f times faster", scale);
    print_phase(title, a);
    a = now();
    pause_s(IDLE_S);
    print_phase("nothing waits", a);
    a = now();
    for (int i = 0; i < IDLE_S; i++, pause_s(1)) submit_one(fronts[0], jobs + i);
    print_phase("a job a second comes to idle workers", a);

    atomic_store(&asking, false);
    atomic_store(&all->phase, 2);
    for (int i = 0; i < ASKERS; i++) pthread_join(askers[i], NULL);
    for (int i = 0; i < PROCESSES; i++) waitpid(pids[i], NULL, 0);
    for (int i = 0; i < FRONTS; i++) sl_journal_close(&fronts[i]);
    t_redis_close(&redis);
    return 0;
}
