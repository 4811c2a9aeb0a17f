/* test_fleet_queue.c - the server's queue on Redis, and several servers at it: races, one that is
 * stopped and comes back, one that dies, a Redis that is killed, stopped, or away.
 * run: waits. takes: 35 s. limit: 240 s */
#include "tests/t_redis.h"

#include <pthread.h>
#include <stdatomic.h>

#include <curl/curl.h>

#include "common/clock.h"
#include "stages/serve/journal.h"

#define LEASE_MS 600

static t_redis redis;
static sl_journal *j;
static sl_err err;

static double seconds(void)
{
    return (double)sl_now_ns() * 1e-9;
}

static sl_code open_as(sl_journal **out, const char *name, int lease_ms, sl_err *why)
{
    const sl_journal_shared at = {
        .url = redis.url, .name = name, .model = "demo", .shows = true, .lease_ms = lease_ms};
    return sl_journal_open_shared(out, &at, why);
}

static int open_new(void **state)
{
    (void)state;
    t_redis_open(&redis);
    T_OK(open_as(&j, "here", LEASE_MS, &err));
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    sl_journal_close(&j);
    t_redis_close(&redis);
    return 0;
}

static sl_journal_job named(const char *id)
{
    static char request[] = "{}";
    sl_journal_job job = {.created_s = 1000, .request = request};
    snprintf(job.id, sizeof job.id, "%s", id);
    snprintf(job.owner, sizeof job.owner, "%s", strlen(id) % 2 ? "ann" : "bob");
    return job;
}

static void submit(const char *id)
{
    char same[SL_JOURNAL_ID];
    sl_journal_job job = named(id);
    T_OK(sl_journal_submit(j, &job, id, NULL, same, &err));
    assert_string_equal(same, "");
}

/* The job as it is. */
static sl_journal_job row_of(const char *id)
{
    sl_journal_job job;
    T_OK(sl_journal_get(j, id, NULL, &job, &err));
    free(job.request);
    free(job.files);
    job.request = job.files = NULL;
    return job;
}

/* Wait until the job is in this state. */
static void becomes(const char *id, sl_journal_state want)
{
    const double until = seconds() + 20;
    while (row_of(id).state != want) {
        if (seconds() > until)
            fail_msg("%s is %s, want %s", id, sl_journal_state_name(row_of(id).state),
                     sl_journal_state_name(want));
        usleep(20000);
    }
}

/* ---- races ---- */

enum { JOBS = 1000, CLAIMERS = 4 };
static atomic_int claimed[JOBS], ended;

static void *claims_all(void *arg)
{
    sl_journal *own;
    sl_err why = {0};
    if (open_as(&own, arg, 20000, &why)) abort();
    while (atomic_load(&ended) < JOBS) {
        sl_journal_job job;
        const sl_code rc = sl_journal_claim(own, 1, &job, &why);
        if (rc == SL_BUSY) {
            usleep(1000);
            continue;
        }
        if (rc) abort();
        atomic_fetch_add(&claimed[atoi(job.id + 1)], 1);
        if (strcmp(job.server, arg)) abort();
        if (sl_journal_finish(own, job.id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &why)) abort();
        atomic_fetch_add(&ended, 1);
        sl_journal_job_free(&job);
    }
    sl_journal_close(&own);
    return NULL;
}

static void each_job_is_claimed_once(void **state)
{
    static const char *const NAMES[CLAIMERS] = {"one", "two", "three", "four"};
    pthread_t t[CLAIMERS];
    sl_journal_counts n;
    (void)state;
    for (int i = 0; i < CLAIMERS; i++)
        assert_int_equal(pthread_create(&t[i], NULL, claims_all, (void *)NAMES[i]), 0);
    const double t0 = seconds();
    for (int i = 0; i < JOBS; i++) {
        char id[16];
        snprintf(id, sizeof id, "j%d", i);
        submit(id);
    }
    for (int i = 0; i < CLAIMERS; i++) pthread_join(t[i], NULL);
    print_message("%d jobs in %.2f s\n", JOBS, seconds() - t0);
    for (int i = 0; i < JOBS; i++) assert_int_equal(claimed[i], 1);
    T_OK(sl_journal_count(j, &n, &err));
    assert_int_equal(n.jobs[SL_JOURNAL_COMPLETED], JOBS);
    assert_true(!n.jobs[SL_JOURNAL_QUEUED] && !n.jobs[SL_JOURNAL_RUNNING] && !n.fenced);
    assert_int_equal(n.bytes, JOBS);
}

/* ---- servers that stop, die, come back ---- */

/* A server of its own: claims a job and says so, then does what a letter on its pipe says, and
 * tells the code. */
static void serve_one(int in, int out)
{
    sl_journal *own;
    sl_journal_job job;
    sl_err why = {0};
    char what, was[SL_JOURNAL_FILE];
    if (open_as(&own, "other", LEASE_MS, &why) || sl_journal_claim(own, 1, &job, &why)) _exit(3);
    if (write(out, "c", 1) != 1) _exit(4);
    while (read(in, &what, 1) == 1) {
        sl_code rc = SL_OK;
        if (what == 'f')
            rc = sl_journal_finish(own, job.id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &why);
        if (what == 'r') rc = sl_journal_release(own, job.id, &why);
        if (what == 's') rc = sl_journal_file(own, job.id, "state", "9.9", 1, was, &why);
        if (what == 'p') rc = sl_journal_show(own, job.id, 0.99, "late", &why);
        const char code = (char)rc;
        if (write(out, &code, 1) != 1) _exit(4);
    }
    sl_journal_close(&own);
    _exit(0);
}

typedef struct {
    pid_t pid;
    int to, from;
} server;

/* A process of its own, not a copy of this one with its threads' locks. */
static server start_one(void)
{
    int in[2], out[2];
    char c = 0, to[16], from[16];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    fflush(NULL);
    server s = {.pid = fork(), .to = in[1], .from = out[0]};
    if (!s.pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(in[1]);
        close(out[0]);
        snprintf(to, sizeof to, "%d", in[0]);
        snprintf(from, sizeof from, "%d", out[1]);
        execl("/proc/self/exe", "serve", redis.url, to, from, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    assert_int_equal(read(s.from, &c, 1), 1);
    assert_int_equal(c, 'c');
    return s;
}

static sl_code tell_one(const server *s, char what)
{
    char code;
    assert_int_equal(write(s->to, &what, 1), 1);
    assert_int_equal(read(s->from, &code, 1), 1);
    return (sl_code)code;
}

static int end_one(server *s, int signal)
{
    int status;
    if (signal) kill(s->pid, signal);
    close(s->to);
    assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
    close(s->from);
    return status;
}

static void who_comes_back_is_refused(void **state)
{
    sl_journal_job job;
    sl_journal_counts n;
    char was[SL_JOURNAL_FILE];
    (void)state;
    submit("a");
    server s = start_one();
    T_CODE(sl_journal_finish(j, "a", SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &err), SL_GONE);
    T_SAYS(err.msg, "job a is run by other, not by this one any more");
    kill(s.pid, SIGSTOP);
    becomes("a", SL_JOURNAL_QUEUED);
    T_OK(sl_journal_claim(j, 1, &job, &err));
    assert_int_equal(job.attempts, 2);
    assert_true(job.fence > 1);
    T_OK(sl_journal_file(j, "a", "state", "2.1", 7, was, &err));
    T_OK(sl_journal_show(j, "a", 0.5, "here", &err));
    sl_journal_job_free(&job);
    kill(s.pid, SIGCONT);
    T_OK(sl_journal_count(j, &n, &err));
    const int64_t before = n.fenced;
    assert_int_equal(tell_one(&s, 's'), SL_GONE);
    assert_int_equal(tell_one(&s, 'p'), SL_OK); /* says nothing, does nothing */
    assert_int_equal(tell_one(&s, 'r'), SL_GONE);
    assert_int_equal(tell_one(&s, 'f'), SL_GONE);
    T_OK(sl_journal_get(j, "a", NULL, &job, &err));
    assert_true(job.state == SL_JOURNAL_RUNNING && job.progress == 0.5);
    assert_string_equal(job.server, "here");
    assert_string_equal(job.live, "here");
    assert_string_equal(job.files, "state 2.1 7\n");
    sl_journal_job_free(&job);
    T_OK(sl_journal_count(j, &n, &err));
    assert_true(n.taken == 1 && n.fenced > before);
    T_OK(sl_journal_finish(j, "a", SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &err));
    assert_int_equal(tell_one(&s, 'f'), SL_GONE);
    assert_int_equal(row_of("a").state, SL_JOURNAL_COMPLETED);
    assert_int_equal(end_one(&s, 0), 0);
}

/* Not longer than its lease: the job stays its own. */
static void a_short_stop_loses_nothing(void **state)
{
    (void)state;
    submit("a");
    server s = start_one();
    for (int i = 0; i < 8; i++) {
        kill(s.pid, SIGSTOP);
        usleep(LEASE_MS * 1000 / 4);
        kill(s.pid, SIGCONT);
        usleep(LEASE_MS * 1000 / 4);
    }
    assert_int_equal(row_of("a").state, SL_JOURNAL_RUNNING);
    assert_int_equal(tell_one(&s, 'f'), SL_OK);
    assert_int_equal(end_one(&s, 0), 0);
}

static void a_dead_servers_job_goes_back(void **state)
{
    int count;
    (void)state;
    submit("a");
    server s = start_one();
    end_one(&s, SIGKILL);
    becomes("a", SL_JOURNAL_QUEUED);
    /* who is started again under the same name does not wait */
    s = start_one();
    end_one(&s, SIGKILL);
    sl_journal *again;
    T_OK(open_as(&again, "other", LEASE_MS, &err));
    T_OK(sl_journal_release_all(again, &count, &err));
    assert_int_equal(count, 1);
    assert_int_equal(row_of("a").state, SL_JOURNAL_QUEUED);
    sl_journal_close(&again);
}

/* ---- what is heard ---- */

static atomic_int heard[SL_JOURNAL_HEARD_COUNT];

static void hear(void *self, sl_journal_heard what, const char *id)
{
    (void)self;
    assert_true(what == SL_JOURNAL_HEARD_ALL ? !*id : !strcmp(id, "a"));
    atomic_fetch_add(&heard[what], 1);
}

static void is_heard(sl_journal_heard what)
{
    const double until = seconds() + 20;
    while (!atomic_load(&heard[what])) {
        if (seconds() > until) fail_msg("news %d were not heard", (int)what);
        usleep(5000);
    }
    atomic_store(&heard[what], 0);
}

static void changes_are_heard_elsewhere(void **state)
{
    sl_journal *own;
    sl_journal_job job;
    sl_journal_state before;
    (void)state;
    for (int i = 0; i < SL_JOURNAL_HEARD_COUNT; i++) atomic_store(&heard[i], 0);
    T_OK(open_as(&own, "ear", LEASE_MS, &err));
    sl_journal_listen(own, hear, NULL);
    usleep(100000); /* it subscribes, most likely */
    submit("a");
    is_heard(SL_JOURNAL_HEARD_QUEUE);
    T_OK(sl_journal_claim(own, 1, &job, &err));
    sl_journal_job_free(&job);
    is_heard(SL_JOURNAL_HEARD_STATE);
    T_OK(sl_journal_show(own, "a", 0.1, "x", &err));
    is_heard(SL_JOURNAL_HEARD_STEP);
    T_OK(sl_journal_cancel(j, "a", NULL, 1, &before, &err));
    is_heard(SL_JOURNAL_HEARD_CANCEL);
    is_heard(SL_JOURNAL_HEARD_CANCEL); /* every beat says so: that message may be missed */
    T_REDIS(&redis, "HDEL", "sluice:holds", T_REDIS(&redis, "HGET", "sluice:job:a", "hold"));
    is_heard(SL_JOURNAL_HEARD_LOST);
    t_redis_end(&redis, SIGKILL);
    usleep(200000);
    t_redis_start(&redis);
    is_heard(SL_JOURNAL_HEARD_ALL);
    sl_journal_close(&own);
}

/* ---- Redis dies, stops, is away ---- */

static void away_is_told_and_then_at_once(void **state)
{
    sl_journal_job job;
    (void)state;
    submit("a");
    T_OK(sl_journal_claim(j, 1, &job, &err));
    sl_journal_job_free(&job);
    t_redis_end(&redis, SIGKILL);
    double t0 = seconds();
    T_CODE(sl_journal_get(j, "a", NULL, &job, &err), SL_SYS);
    T_SAYS(err.msg, "queue unix://");
    T_SAYS(err.msg, "cannot be reached: ");
    assert_null(strchr(err.msg, '\n'));
    assert_true(seconds() - t0 < 12);
    t0 = seconds();
    for (int i = 0; i < 100; i++)
        T_CODE(sl_journal_finish(j, "a", SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &err), SL_SYS);
    T_SAYS(err.msg, "is away: ");
    assert_true(seconds() - t0 < 1);
    assert_true(sl_journal_knows(j, "a")); /* nobody's folder goes meanwhile */
    t_redis_start(&redis);
    /* away for many leases, and the job is still this one's: all had the time to come back */
    t0 = seconds();
    while (sl_journal_finish(j, "a", SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &err))
        if (seconds() - t0 > 20) fail_msg("%s", err.msg);
    assert_int_equal(row_of("a").state, SL_JOURNAL_COMPLETED);
    assert_int_equal(row_of("a").attempts, 1);
}

static void *stops_redis(void *arg)
{
    kill(redis.pid, SIGSTOP);
    atomic_store((atomic_int *)arg, 1);
    usleep(3000000);
    kill(redis.pid, SIGCONT);
    return NULL;
}

/* Redis does what it was told though the asker has given that try up: no change happens twice. */
static void an_answer_that_was_lost(void **state)
{
    atomic_int stopped;
    char same[SL_JOURNAL_ID];
    sl_journal_job job = named("s"), got;
    sl_journal_state before;
    sl_journal_counts n;
    pthread_t t;
    (void)state;
    submit("a");
    submit("b");
    for (int what = 0; what < 5; what++) {
        atomic_init(&stopped, 0);
        assert_int_equal(pthread_create(&t, NULL, stops_redis, &stopped), 0);
        while (!atomic_load(&stopped)) usleep(1000);
        const double t0 = seconds();
        if (what == 0) {
            T_OK(sl_journal_submit(j, &job, "key", NULL, same, &err));
            assert_string_equal(same, "");
        } else if (what == 1) {
            T_OK(sl_journal_claim(j, 1, &got, &err));
            sl_journal_job_free(&got);
        } else if (what == 2) T_OK(sl_journal_release(j, got.id, &err));
        else if (what == 3) {
            T_OK(sl_journal_cancel(j, "s", NULL, 1, &before, &err));
            assert_int_equal(before, SL_JOURNAL_QUEUED);
        } else T_OK(sl_journal_finish(j, got.id, SL_JOURNAL_COMPLETED, SL_OK, "", 5, 2, &err));
        assert_true(seconds() - t0 > 2);
        pthread_join(t, NULL);
        if (what == 1) snprintf(got.id, sizeof got.id, "a");
        if (what == 3) { /* for the next */
            T_OK(sl_journal_claim(j, 1, &got, &err));
            free(got.request);
            free(got.files);
        }
        T_OK(sl_journal_count(j, &n, &err));
        static const int QUEUED[] = {3, 2, 3, 1, 1}, RUNNING[] = {0, 1, 0, 1, 0};
        assert_int_equal(n.jobs[SL_JOURNAL_QUEUED], QUEUED[what]);
        assert_int_equal(n.jobs[SL_JOURNAL_RUNNING], RUNNING[what]);
    }
    assert_int_equal(n.bytes, 5);
    assert_int_equal(n.jobs[SL_JOURNAL_CANCELLED], 1);
}

/* ---- Redis is killed at any moment ---- */

enum { MOST = 20000 };
/* How far each job is as it was acknowledged: 0 unknown, 1 submitted, 2 claimed, 3 ended. */
static atomic_uchar far[MOST];
static atomic_int made, stop;

static void *submits(void *arg)
{
    (void)arg;
    for (int i = 0; i < MOST && !atomic_load(&stop); i++) {
        char id[16], same[SL_JOURNAL_ID];
        sl_err why = {0};
        snprintf(id, sizeof id, "j%d", i);
        sl_journal_job job = named(id);
        sl_code rc;
        while ((rc = sl_journal_submit(j, &job, id, NULL, same, &why)) == SL_SYS &&
               !atomic_load(&stop))
            usleep(20000);
        if (rc == SL_SYS) break;
        if (rc) abort();
        /* a call that failed may have been carried out: then its key says so */
        if (*same && strcmp(same, id)) abort();
        atomic_store(&far[i], 1);
        atomic_store(&made, i + 1);
    }
    return NULL;
}

static void *runs(void *arg)
{
    sl_journal *own;
    sl_err why = {0};
    if (open_as(&own, arg, 20000, &why)) abort();
    while (!atomic_load(&stop)) {
        sl_journal_job job;
        sl_code rc = sl_journal_claim(own, 1, &job, &why);
        if (rc) {
            if (rc != SL_BUSY && rc != SL_SYS) abort();
            usleep(2000);
            continue;
        }
        const int k = atoi(job.id + 1);
        if (atomic_exchange(&far[k], 2) >= 2) abort(); /* twice */
        while ((rc = sl_journal_finish(own, job.id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, &why)) ==
                   SL_SYS &&
               !atomic_load(&stop))
            usleep(20000);
        /* GONE: the call before, whose answer was lost and which was given up, did it */
        if (!rc || rc == SL_GONE) atomic_store(&far[k], 3);
        else if (rc != SL_SYS) abort();
        sl_journal_job_free(&job);
    }
    sl_journal_close(&own);
    return NULL;
}

static int ended_so_far(void)
{
    int n = 0;
    for (int i = 0; i < atomic_load(&made); i++) n += atomic_load(&far[i]) == 3;
    return n;
}

static void killed_and_restarted_from_its_file(void **state)
{
    unsigned seed = 5;
    pthread_t t[3];
    (void)state;
    assert_int_equal(pthread_create(&t[0], NULL, submits, NULL), 0);
    assert_int_equal(pthread_create(&t[1], NULL, runs, "one"), 0);
    assert_int_equal(pthread_create(&t[2], NULL, runs, "two"), 0);
    for (int i = 0; i < 12; i++) {
        usleep((useconds_t)(50000 + rand_r(&seed) % 300000));
        t_redis_end(&redis, SIGKILL);
        t_redis_start(&redis);
    }
    const double until = seconds() + 60; /* however slow the machine is */
    while (ended_so_far() <= 100 && seconds() < until) usleep(100000);
    usleep(500000);
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    int done = 0;
    for (int i = 0; i < atomic_load(&made); i++) {
        char id[16];
        snprintf(id, sizeof id, "j%d", i);
        const sl_journal_job job = row_of(id);
        const int is = job.state == SL_JOURNAL_QUEUED ? 1 : job.state == SL_JOURNAL_RUNNING ? 2 : 3;
        if (is < far[i])
            fail_msg("%s is %s, acknowledged was %d", id, sl_journal_state_name(job.state), far[i]);
        assert_true(job.attempts <= 1);
        done += is == 3;
    }
    print_message("%d jobs, %d of them ended, over 12 kills of Redis\n", atomic_load(&made), done);
    assert_true(done > 100);
}

#define WITH_REDIS(test) cmocka_unit_test_setup_teardown(test, open_new, close_it)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        WITH_REDIS(each_job_is_claimed_once),    WITH_REDIS(who_comes_back_is_refused),
        WITH_REDIS(a_short_stop_loses_nothing),  WITH_REDIS(a_dead_servers_job_goes_back),
        WITH_REDIS(changes_are_heard_elsewhere), WITH_REDIS(away_is_told_and_then_at_once),
        WITH_REDIS(an_answer_that_was_lost),     WITH_REDIS(killed_and_restarted_from_its_file),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    if (argc == 4) { /* start_one's */
        snprintf(redis.url, sizeof redis.url, "%s", argv[1]);
        serve_one(atoi(argv[2]), atoi(argv[3]));
    }
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
