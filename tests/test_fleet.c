/* test_fleet.c - front ends and workers at one queue: whatever is killed, stopped, cut off or away,
 * every job that was accepted ends once, with the bytes of one undisturbed server. takes: 25 s.
 * limit: 400 s. run: waits
 *
 * The fleet's servers are hosts of their own, network namespaces, where this machine's user may
 * make them (t_hosts.h); else they share the loopback and nobody is cut off, which a line says.
 *
 * Jobs' files are in a folder; SLUICE_FLEET_STORE=s3 has them in a real S3 server (tests/s3.sh
 * makes one), which is stopped, busy or silent where the folder would be renamed.
 * SLUICE_FLEET=full (make test-fleet) makes it 2 front ends, 3 workers, 60 jobs, disturbed at
 * random until they have ended; SLUICE_FLEET_JOBS=N, SLUICE_FLEET_MODEL=DIR take others;
 * SLUICE_SEED repeats a run's choices; SLUICE_FLEET_ONLY=PATTERN runs the cases of that name. */
#include "tests/t_fleet.h"

#define STORE_AWAY_S 30 /* once, in the full run */

static bool in_hosts; /* this machine's user may have hosts, and the test is one */

/* ---- claims ---- */

/* What servers said of the claims of a job after its first, by the number of the claim. */
typedef struct {
    long claim, step; /* it went on behind so many steps */
} again;

static int by_claim(const void *x, const void *y)
{
    const again *a = x, *b = y;
    return (a->claim > b->claim) - (a->claim < b->claim);
}

static int claims_again(again *out, int most, const char *id, int steps)
{
    const char *const said = t_format("%s: begins again, claim ", id);
    int n = 0;
    for (int i = fronts; i < fronts + workers; i++) {
        size_t size;
        char *log = t_read(servers[i].log, &size);
        assert_non_null(log);
        for (const char *at = log; (at = memmem(at, size - (size_t)(at - log), said, strlen(said)));
             at++) {
            again a = {.step = steps};
            assert_true(sscanf(at + strlen(said), "%ld, at step %ld", &a.claim, &a.step) >= 1);
            assert_true(n < most);
            out[n++] = a;
        }
        free(log);
    }
    qsort(out, (size_t)n, sizeof *out, by_claim);
    return n;
}

/* The first step that the job's last claim has computed, from 1; 0: none. */
static long first_step(const char *id)
{
    t_reply r;
    assert_int_equal(request("GET", t_format("/v1/videos/%s/report", id), -1, NULL, &r), 200);
    json_t *o = t_reply_json(&r);
    const json_t *steps = json_object_get(o, "steps");
    assert_true(json_is_array(steps));
    const long step = (long)json_integer_value(json_object_get(json_array_get(steps, 0), "step"));
    json_decref(o);
    t_reply_free(&r);
    return step;
}

/* Each claim goes on where what was spooled by then ends, and computes nothing before it. */
static void no_spooled_step_is_computed_again(void)
{
    again a[64];
    int claims = 0;
    long saved = 0;
    for (int i = 0; i < jobs; i++) {
        const int steps = steps_of(i), n = claims_again(a, 64, got[i].id, steps);
        for (int k = 1; k < n; k++)
            if (a[k].step < a[k - 1].step)
                fail_msg("job %d: claim %ld went on at step %ld, claim %ld at step %ld", i,
                         a[k - 1].claim, a[k - 1].step, a[k].claim, a[k].step);
        const long from = n ? a[n - 1].step : 0, first = first_step(got[i].id);
        if (first != (from < steps ? from + 1 : 0))
            fail_msg("job %d went on behind %ld steps, and computed step %ld first", i, from,
                     first);
        claims += n;
        for (int k = 0; k < n; k++) saved += a[k].step - (k ? a[k - 1].step : 0);
    }
    print_message("claims that went on with a job: %d, behind %ld steps of others\n", claims,
                  saved);
}

/* ---- tests ---- */

static void one_server_undisturbed(void **state)
{
    (void)state;
    const int front_ends = fronts;
    fronts = 1; /* it stands in the place of all */
    t_serve_open(&servers[0]);
    t_serve_conf(&servers[0], "");
    t_serve_start(&servers[0], model, NULL);
    submit_all(wanted);
    check_all(wanted);
    assert_int_equal(t_serve_stop(&servers[0]), 0);
    t_serve_close(&servers[0]);
    fronts = front_ends;
}

/* A step of the job has been told of, by whoever runs it. */
static void wait_for_step(const t_made *m)
{
    const double until = t_seconds() + 60;
    for (;;) {
        t_reply r;
        const long code = request("GET", t_format("/v1/videos/%s", m->id), -1, NULL, &r);
        const bool steps = code == 200 && !strcmp(t_reply_text(&r, "stage"), "denoise") &&
                           atoi(t_reply_text(&r, "step")) >= 1;
        const bool ended = code == 200 && !strcmp(t_reply_text(&r, "status"), "completed");
        t_reply_free(&r);
        if (steps || ended) return;
        if (t_seconds() > until) fail_msg("no step of %s was told", m->id);
        usleep(5000);
    }
}

/* One of each: a worker's host dies, one is stopped and comes back, one is cut off and joined
 * again, Redis dies, the shared folder is away, a front end is cut off, one dies. */
static void disturb_each(void)
{
    const int first = fronts, second = fronts + 1;
    wait_for_step(&got[0]);
    kill_host(first);
    usleep(300000);
    stop_host(second, 2.5); /* longer than its lease: nobody works meanwhile */
    start_server(first, true);
    if (apart) cut_off(second), usleep(2500000), join(); /* and now another does */
    else stop_host(second, 2.5);
    t_redis_end(&redis, SIGKILL);
    usleep(400000);
    t_redis_start(&redis);
    files_away(0.7);
    if (apart) cut_off(0), usleep(1500000), join();
    kill_host(0);
    start_server(0, true);
}

/* X(NAME, what it is) */
#define DISTURBANCES(X)                                                                            \
    X(KILL_WORKER, "workers killed")                                                               \
    X(STOP_WORKER, "workers stopped")                                                              \
    X(KILL_REDIS, "Redis killed")                                                                  \
    X(STORE_AWAY, "files away")                                                                    \
    X(KILL_FRONT, "front ends killed")                                                             \
    X(STOP_FRONT, "front ends stopped")                                                            \
    X(CUT_OFF, "hosts cut off")

enum {
#define X(NAME, what) NAME,
    DISTURBANCES(X)
#undef X
        DISTURBANCE_COUNT
};

/* Workers are stopped until others have their jobs, one after the other, until one that comes back
 * is refused. */
static void stop_until_fenced(void)
{
    const long before = metric("sluice_fleet_fenced_total");
    for (int i = 0; i < 2 * workers && metric("sluice_fleet_fenced_total") == before; i++) {
        const int host = fronts + i % workers;
        const long taken = metric("sluice_fleet_taken_over_total");
        double until = t_seconds() + 20;
        kill(-servers[host].pid, SIGSTOP);
        while (metric("sluice_fleet_taken_over_total") == taken && t_seconds() < until)
            usleep(100000);
        kill(-servers[host].pid, SIGCONT);
        until = t_seconds() + 3;
        while (metric("sluice_fleet_fenced_total") == before && t_seconds() < until) usleep(50000);
    }
}

static void disturb(int what, bool first)
{
    const int worker = fronts + (int)(t_made_part() * workers),
              front = (int)(t_made_part() * fronts);
    if (what == KILL_WORKER) {
        kill_host(worker);
        usleep((useconds_t)(t_made_part() * 3e6));
        start_server(worker, true);
    } else if (what == STOP_WORKER && first) stop_until_fenced();
    else if (what == STOP_WORKER) stop_host(worker, t_made_part() * 4);
    else if (what == KILL_REDIS) {
        t_redis_end(&redis, SIGKILL);
        usleep((useconds_t)(t_made_part() * 2e6));
        t_redis_start(&redis);
    } else if (what == STORE_AWAY) files_away(first ? STORE_AWAY_S : t_made_part() * 5);
    else if (what == KILL_FRONT) {
        kill_host(front);
        start_server(front, true);
    } else if (what == STOP_FRONT) stop_host(front, t_made_part() * 4);
    else if (cut >= 0) join(); /* others happen while a host is cut off */
    else cut_off((int)(t_made_part() * (fronts + workers)));
}

/* Each kind once, then what comes. */
static void disturb_at_random(void)
{
    static const char *const WHAT[] = {
#define X(NAME, what) what,
        DISTURBANCES(X)
#undef X
    };
    const double until = t_seconds() + WAIT_S;
    const int kinds = apart ? DISTURBANCE_COUNT : CUT_OFF;
    int n[DISTURBANCE_COUNT] = {0}, all = 0;
    while ((all < kinds || !all_ended(got)) && t_seconds() < until) {
        usleep((useconds_t)(t_made_part() * 3e6));
        const int what = all < kinds ? all : (int)(t_made_part() * kinds);
        disturb(what, !n[what]);
        n[what]++;
        all++;
    }
    if (cut >= 0) join();
    for (int i = 0; i < kinds; i++) print_message("%s%s %d", i ? ", " : "", WHAT[i], n[i]);
    print_message("\n");
}

static void a_disturbed_fleet(void **state)
{
    pthread_t client;
    (void)state;
    fprintf(stderr, "SLUICE_SEED=%u\n", t_made_seed);
    if (!(apart = in_hosts))
        print_message("no right to make network namespaces: nobody is cut off\n");
    open_fleet();
    atomic_store(&accepted, 0);
    assert_int_equal(pthread_create(&client, NULL, submit_all, got), 0);
    while (!atomic_load(&accepted)) usleep(5000);
    if (full) disturb_at_random();
    else disturb_each();
    pthread_join(client, NULL);
    check_all(got);
    same_as_undisturbed();
    no_spooled_step_is_computed_again();
    print_message("taken over: %ld; fenced: %ld\n", metric("sluice_fleet_taken_over_total"),
                  metric("sluice_fleet_fenced_total"));
    assert_true(metric("sluice_fleet_taken_over_total") > 0);
    if (full) assert_true(metric("sluice_fleet_fenced_total") > 0);
    /* a beat of one in three a second may be late on a busy machine: all are heard within some */
    for (int i = 0; i < 100 && metric("sluice_fleet_servers") != fronts + workers; i++)
        usleep(200000);
    assert_int_equal(metric("sluice_fleet_servers"), fronts + workers);
    close_fleet();
}

static void one_that_does_both(void **state)
{
    const int all = jobs, front_ends = fronts, others = workers;
    (void)state;
    fronts = 1;
    workers = 0;
    jobs = 4;
    both = true;
    apart = false;
    memset(got, 0, sizeof got);
    open_fleet();
    submit_all(got);
    kill_host(0); /* and comes back under its own name */
    start_server(0, true);
    check_all(got);
    same_as_undisturbed();
    close_fleet();
    fronts = front_ends;
    workers = others;
    jobs = all;
    both = false;
}

/* What a client asks a front end is done by whoever runs the job; a worker takes none. */
static void asked_at_the_front(void **state)
{
    t_reply r;
    t_made m = {0};
    (void)state;
    fronts = workers = 1;
    apart = false;
    open_fleet();
    t_http_all(&r, servers[1].url, "POST", "/v1/videos", NULL, NULL, NULL, NULL);
    assert_int_equal(r.code, 503);
    assert_string_equal(t_reply_text(&r, "error.code"), "worker");
    t_reply_free(&r);
    submit_one(&m, 0);
    wait_for_step(&m);
    assert_int_equal(request("POST", t_format("/v1/videos/%s/cancel", m.id), -1, NULL, &r), 200);
    t_reply_free(&r);
    const double until = t_seconds() + 30;
    while (is_open(status_of(&m)) && t_seconds() < until) usleep(20000);
    const char *status = status_of(&m);
    if (strcmp(status, "cancelled") && strcmp(status, "completed")) fail_msg("it is %s", status);
    assert_int_equal(request("DELETE", t_format("/v1/videos/%s", m.id), -1, NULL, &r), 200);
    t_reply_free(&r);
    assert_false(has_files_of(m.id));
    /* a job with a dump: the front end lists and sends what the worker has made */
    const char *const fields[] = {
        "prompt", "a cat", "input_reference", "@" T_IMAGE, "size", "48x32",
        "frames", "9",     "steps",           "2",         "dump", "true",
        NULL};
    t_post(&r, &servers[0], fields, NULL);
    assert_int_equal(r.code, 200);
    snprintf(m.id, sizeof m.id, "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
    assert_string_equal(t_wait(&servers[0], m.id), "completed");
    assert_int_equal(request("GET", t_format("/v1/videos/%s/dump", m.id), -1, NULL, &r), 200);
    assert_non_null(strstr(r.body, "denoise.safetensors"));
    assert_non_null(strstr(r.body, "frames.safetensors"));
    t_reply_free(&r);
    static const char *const FILES[] = {
        "dump/denoise.safetensors", "report", "trace", "logs", "preview",
        "content?variant=thumbnail"};
    for (int i = 0; i < 6; i++) {
        const long code =
            request("GET", t_format("/v1/videos/%s/%s", m.id, FILES[i]), -1, NULL, &r);
        if (code != 200 || !r.size) fail_msg("%s: HTTP %ld", FILES[i], code);
        t_reply_free(&r);
    }
    close_fleet();
}

/* Refusals before any work: one line, exit status 2. */
static void refused_starts(void **state)
{
    static const struct {
        const char *more[7], *says;
    } CASES[] = {
        {{"--queue", "http://x", "--blobs", "B"}, "a queue's address is one of redis://"},
        {{"--queue", "Q"}, "--queue is given without --blobs"},
        {{"--blobs", "B"}, "--blobs and --role are given without --queue"},
        {{"--role", "front"}, "--blobs and --role are given without --queue"},
        {{"--queue", "Q", "--blobs", "B", "--role", "back"},
         "--role is \"back\", want front, worker or both"},
        {{"--queue", "unix:///none", "--blobs", "B"}, "queue unix:///none?db=0: "},
        {{"--queue", "Q", "--blobs", "/dev/null/x"}, "--blobs"},
        {{"--queue", "Q", "--blobs", "s3://No_Bucket/x"},
         "--blobs: \"No_Bucket\" is no bucket's name"},
    };
    t_serve s;
    (void)state;
    t_redis_open(&redis);
    t_serve_open(&s);
    t_serve_conf(&s, "");
    snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *more[8] = {0};
        for (int k = 0; CASES[i].more[k]; k++)
            more[k] = !strcmp(CASES[i].more[k], "Q")   ? redis.url
                      : !strcmp(CASES[i].more[k], "B") ? blobs
                                                       : CASES[i].more[k];
        unlink(s.log);
        t_serve_spawn(&s, T_MODEL, more);
        assert_false(t_serve_ready(&s));
        assert_int_equal(t_serve_wait(&s), 2);
        size_t size;
        char *said = t_read(s.log, &size);
        assert_non_null(said);
        if (!memmem(said, size, CASES[i].says, strlen(CASES[i].says)))
            fail_msg("\"%.*s\" lacks \"%s\"", (int)size, said, CASES[i].says);
        free(said);
    }
    t_serve_close(&s);
    t_redis_close(&redis);
}

int main(void)
{
    const char *given = getenv("SLUICE_SEED"), *files = getenv("SLUICE_FLEET_STORE"),
               *other = getenv("SLUICE_FLEET_MODEL"), *much = getenv("SLUICE_FLEET"),
               *number = getenv("SLUICE_FLEET_JOBS");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_server_undisturbed), cmocka_unit_test(a_disturbed_fleet),
        cmocka_unit_test(one_that_does_both),     cmocka_unit_test(asked_at_the_front),
        cmocka_unit_test(refused_starts),
    };
    full = much && !strcmp(much, "full");
    if (full) fronts = 2, workers = 3, jobs = 60;
    if (number && atoi(number) > 0 && atoi(number) <= JOBS_MOST) jobs = atoi(number);
    if (other) model = other;
    t_made_seed = given ? (unsigned)atoi(given) : (unsigned)time(NULL);
    if ((in_hosts = t_hosts_are_had())) t_hosts_open();
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return 0;
    }
    on_s3 = files && !strcmp(files, "s3");
    if (on_s3 && !t_s3_is_there()) {
        printf("[  FAILED  ] no S3 server on this machine: tests/s3.sh makes one\n");
        return 1;
    }
    if (getenv("SLUICE_FLEET_ONLY")) cmocka_set_test_filter(getenv("SLUICE_FLEET_ONLY"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
