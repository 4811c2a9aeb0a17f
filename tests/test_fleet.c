/* test_fleet.c - front ends and workers at one queue: whatever is killed, stopped, cut off or away,
 * every job that was accepted ends once, with the bytes of one undisturbed server. limit: 400 s
 *
 * The fleet's servers are hosts of their own, network namespaces, where this machine's user may
 * make them (t_hosts.h); else they share the loopback and nobody is cut off, which a line says.
 *
 * Jobs' files are in a folder; SLUICE_FLEET_STORE=s3 has them in a real S3 server (tests/s3.sh
 * makes one), which is stopped, busy or silent where the folder would be renamed.
 * SLUICE_FLEET=full (make test-fleet) makes it 2 front ends, 3 workers, 60 jobs, disturbed at
 * random until they have ended; SLUICE_FLEET_JOBS=N, SLUICE_FLEET_MODEL=DIR take others;
 * SLUICE_SEED repeats a run's choices; SLUICE_FLEET_ONLY=PATTERN runs the cases of that name. */
#include "tests/t_hosts.h"
#include "tests/t_redis.h"
#include "tests/t_s3.h"
#include "tests/t_serve.h"

#include <pthread.h>
#include <stdatomic.h>

#define JOBS_MOST 64
#define SERVERS 5
#define WAIT_S (full ? 1800 : 300)
#define STORE_AWAY_S 30 /* once, in the full run */
#define TOKEN "0123456789abcdef0123456789abcdef"

static t_redis redis;
static t_serve servers[SERVERS]; /* front ends, then workers */
static int fronts = 1, workers = 2, jobs = 8;
static char blobs[300], bare[400];
static t_s3 store;
static bool on_s3;                  /* else the files are in a folder */
static const char *front_conf = ""; /* more settings of front ends */
static const char *model = T_MODEL;
static bool full, both; /* the server that is called a front end is a worker, too */
static t_host hosts[SERVERS];
static bool in_hosts; /* this machine's user may have hosts, and the test is one */
static bool apart;    /* each server is a host of its own */
static int cut = -1;  /* the host that is cut off */
static unsigned seed;
static pthread_mutex_t url_lock = PTHREAD_MUTEX_INITIALIZER; /* a url changes with each start */

static double part(void)
{
    return (double)rand_r(&seed) / ((double)RAND_MAX + 1);
}

/* ---- servers ---- */

static void join(void)
{
    if (cut >= 0) t_host_join(&hosts[cut]);
    cut = -1;
}

static void cut_off(int i)
{
    join();
    t_host_cut(&hosts[i]);
    cut = i;
}

static void start_server(int i, bool wait)
{
    static const char *more[SERVERS][10];
    const char *const words[] = {"--queue",  redis.url,
                                 "--blobs",  blobs,
                                 "--role",   both ? "both" : i < fronts ? "front" : "worker",
                                 "--tokens", servers[i].tokens};
    memcpy(more[i], words, sizeof words);
    if (!apart) more[i][6] = NULL;
    if (cut == i) join(); /* who cannot reach the queue does not start */
    t_serve_spawn(&servers[i], i < fronts && !both ? bare : model, more[i]);
    if (!wait) return;
    char url[128];
    memcpy(url, servers[i].url, sizeof url);
    t_serve fresh = servers[i];
    const bool up = t_serve_ready(&fresh);
    if (!up) {
        t_serve_show_log(&fresh);
        fail_msg("server %d did not start", i);
    }
    pthread_mutex_lock(&url_lock);
    servers[i] = fresh;
    pthread_mutex_unlock(&url_lock);
}

/* ---- the files ---- */

static void open_files(void)
{
    if (on_s3) t_s3_open_at(&store, apart ? T_HOSTS_HERE : "127.0.0.1");
    if (on_s3) snprintf(blobs, sizeof blobs, "s3://" T_S3_BUCKET "/fleet");
    else snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
}

/* They are away for so long: the folder has another name; the store is stopped, or says that it is
 * busy, or breaks each connection. */
static void files_away(double s)
{
    static const char *const FAULTS[] = {"", "busy", "closed"};
    const char *how = on_s3 ? FAULTS[(int)(part() * 3)] : "";
    if (!on_s3) assert_int_equal(rename(blobs, t_format("%s.away", blobs)), 0);
    else if (*how) t_s3_fault(&store, how, 1000000, 0);
    else kill(store.pid, SIGSTOP);
    usleep((useconds_t)(s * 1e6));
    if (!on_s3) assert_int_equal(rename(t_format("%s.away", blobs), blobs), 0);
    else if (*how) t_s3_fault(&store, how, 0, 0);
    else kill(store.pid, SIGCONT);
}

static bool has_files_of(const char *id)
{
    if (!on_s3) return !access(t_format("%s/%s", blobs, id), F_OK);
    char *keys = t_s3_control(&store, t_format("keys/fleet/%s/", id));
    const bool has = *keys;
    free(keys);
    return has;
}

/* ---- the fleet ---- */

static void conf_of(int i)
{
    t_serve_conf(&servers[i], t_format("queue: { lease_s = 1; };\n%s%s",
                                       i < fronts && !both ? "model: { random = 1; };\n" : "",
                                       i < fronts ? front_conf : ""));
}

/* Redis is a host, too: the test's own. */
static void open_queue(void)
{
    static const char *const MORE[] = {"--port",           "6379", "--bind", T_HOSTS_HERE,
                                       "--protected-mode", "no"};
    t_redis_open(&redis);
    if (!apart) return;
    t_redis_end(&redis, SIGTERM);
    memcpy(redis.more, MORE, sizeof MORE);
    snprintf(redis.url, sizeof redis.url, "redis://" T_HOSTS_HERE ":6379/3");
    t_redis_start(&redis);
}

static void open_host(int i)
{
    static char listen[SERVERS][32];
    t_host_open(&hosts[i], i + 1);
    snprintf(listen[i], sizeof listen[i], "%s:0", hosts[i].address);
    servers[i].net = hosts[i].net;
    servers[i].listen = listen[i];
    t_write(servers[i].tokens, "fleet " TOKEN "\n");
    assert_int_equal(chmod(servers[i].tokens, 0600), 0);
}

static void open_fleet(void)
{
    open_queue();
    open_files();
    /* a front end needs no weights */
    const char *last = strrchr(model, '/');
    snprintf(bare, sizeof bare, "%s/bare/%s", redis.dir, last ? last + 1 : model);
    assert_int_equal(system(t_format("mkdir -p '%s' && cp -r '%s/.' '%s' && "
                                     "find '%s' -name '*.safetensors' -delete",
                                     bare, model, bare, bare)),
                     0);
    for (int i = 0; i < fronts + workers; i++) {
        t_serve_open(&servers[i]);
        if (apart) open_host(i);
        conf_of(i);
        start_server(i, false);
    }
    for (int i = 0; i < fronts + workers; i++)
        if (!t_serve_ready(&servers[i])) {
            t_serve_show_log(&servers[i]);
            fail_msg("server %d did not start", i);
        }
}

/* All of a host's processes. */
static void kill_host(int i)
{
    kill(-servers[i].pid, SIGCONT);
    kill(-servers[i].pid, SIGKILL);
    assert_int_equal(t_serve_wait(&servers[i]), 128 + SIGKILL);
}

static void stop_host(int i, double s)
{
    kill(-servers[i].pid, SIGSTOP);
    usleep((useconds_t)(s * 1e6));
    kill(-servers[i].pid, SIGCONT);
}

static void close_fleet(void)
{
    for (int i = 0; i < fronts + workers; i++) kill(servers[i].pid, SIGTERM);
    for (int i = 0; i < fronts + workers; i++) assert_int_equal(t_serve_wait(&servers[i]), 0);
    t_redis_close(&redis);
    t_s3_close(&store);
    t_serve_no_children();
    for (int i = 0; i < fronts + workers; i++) {
        if (i >= fronts) /* what ran there is gone */
            assert_int_equal(system(t_format("test -z \"$(ls '%s/jobs')\"", servers[i].state)), 0);
        if (on_s3) /* a secret is in no log */
            assert_int_not_equal(system(t_format("grep -rqF -e '%s' -e '%s' '%s'", store.key,
                                                 store.secret, servers[i].base)),
                                 0);
        if (apart) t_host_close(&hosts[i]);
        t_serve_close(&servers[i]);
    }
}

/* ---- clients ---- */

typedef struct {
    char id[64];
    uint64_t hash; /* of the video's bytes */
    size_t size;
} made;

static made wanted[JOBS_MOST], got[JOBS_MOST];
static atomic_int accepted; /* of the jobs that are being submitted, the first so many */

static uint64_t hash_of(const char *p, size_t n)
{
    uint64_t h = 1469598103934665603ull;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ull;
    return h;
}

/* Longer ones in the full run: what happens at random is to find them running. */
static int steps_of(int i)
{
    return (full ? 2 : 1) * (i % 3 ? 6 : 12);
}

static curl_mime *form_of(CURL *c, int i)
{
    curl_mime *m = curl_mime_init(c);
    const char *const fields[][2] = {{"prompt", "a cat"},
                                     {"size", full ? "160x96" : "96x64"},
                                     {"frames", full ? "17" : "9"},
                                     {"guidance", i % 2 ? "1" : "4"}};
    for (int k = 0; k < 4; k++) t_form_add(m, fields[k][0], fields[k][1]);
    t_form_add(m, "steps", t_format("%d", steps_of(i)));
    t_form_add(m, "seed", t_format("%d", i));
    t_form_add(m, "input_reference", "@" T_IMAGE);
    return m;
}

/* One request to some front end. The answer's code; 0: nobody answered. */
static long request(const char *method, const char *path, int form, const char *key, t_reply *r)
{
    static atomic_int next;
    char url[256], line[64];
    CURL *c = curl_easy_init();
    struct curl_slist *list = NULL;
    curl_mime *m = NULL;
    pthread_mutex_lock(&url_lock);
    snprintf(url, sizeof url, "%s%s", servers[atomic_fetch_add(&next, 1) % fronts].url, path);
    pthread_mutex_unlock(&url_lock);
    memset(r, 0, sizeof *r);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 30L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 2L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, t_reply_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, r);
    if (form >= 0) curl_easy_setopt(c, CURLOPT_MIMEPOST, m = form_of(c, form));
    else curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    if (key) {
        snprintf(line, sizeof line, "Idempotency-Key: %s", key);
        list = curl_slist_append(list, line);
    }
    if (apart) list = curl_slist_append(list, "Authorization: Bearer " TOKEN);
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, list);
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &r->code);
    curl_slist_free_all(list);
    curl_mime_free(m);
    curl_easy_cleanup(c);
    return r->code;
}

/* Submit job i until it is accepted, under a key of its own. */
static void submit_one(made *out, int i)
{
    char key[32];
    const double until = t_seconds() + WAIT_S;
    snprintf(key, sizeof key, "job-%d", i);
    while (!*out->id) {
        t_reply r;
        const long code = request("POST", "/v1/videos", i, key, &r);
        json_t *o = code == 200 ? json_loadb(r.body, r.size, 0, NULL) : NULL;
        const char *id = json_string_value(json_object_get(o, "id"));
        if (id) snprintf(out->id, sizeof out->id, "%s", id);
        const bool refused = code && code != 200 && code != 503;
        if (refused) fprintf(stderr, "job %d: HTTP %ld %s\n", i, code, r.body ? r.body : "");
        json_decref(o);
        t_reply_free(&r);
        if (refused || t_seconds() > until) return;
        if (!*out->id) usleep(100000);
    }
}

static void *submit_all(void *arg)
{
    for (int i = 0; i < jobs; i++) {
        submit_one((made *)arg + i, i);
        atomic_store(&accepted, i + 1);
        usleep(full ? 100000 : 20000);
    }
    return NULL;
}

/* The job's status as some front end has it; "HTTP N" where it has none. */
static const char *status_of(const made *m)
{
    static char status[600];
    t_reply r;
    const long code = request("GET", t_format("/v1/videos/%s", m->id), -1, NULL, &r);
    snprintf(status, sizeof status, "HTTP %ld", code);
    if (code == 200) snprintf(status, sizeof status, "%s", t_reply_text(&r, "status"));
    if (!strcmp(status, "failed"))
        snprintf(status, sizeof status, "%s", t_reply_text(&r, "error.message"));
    t_reply_free(&r);
    return status;
}

static bool is_open(const char *status)
{
    return !strcmp(status, "queued") || !strcmp(status, "in_progress") ||
           !strcmp(status, "HTTP 503") || !strcmp(status, "HTTP 0");
}

static bool all_ended(const made *all)
{
    if (atomic_load(&accepted) < jobs) return false;
    for (int i = 0; i < jobs; i++)
        if (!*all[i].id || is_open(status_of(&all[i]))) return false;
    return true;
}

static void show_logs(void)
{
    for (int i = 0; i < fronts + workers; i++)
        if (*servers[i].log) t_serve_show_log(&servers[i]);
}

/* Every job ended as it should, and there are no others. */
static void check_all(made *all)
{
    const double until = t_seconds() + WAIT_S;
    t_reply r;
    for (int i = 0; i < jobs; i++) {
        if (!*all[i].id) fail_msg("job %d was never accepted", i);
        const char *status;
        while (is_open(status = status_of(&all[i])) && t_seconds() < until) usleep(50000);
        if (strcmp(status, "completed")) {
            show_logs();
            fail_msg("job %d (%s): %s", i, all[i].id, status);
        }
        assert_int_equal(request("GET", t_format("/v1/videos/%s/content", all[i].id), -1, NULL, &r),
                         200);
        all[i].size = r.size;
        all[i].hash = hash_of(r.body, r.size);
        t_reply_free(&r);
    }
    assert_int_equal(request("GET", "/v1/videos?limit=100", -1, NULL, &r), 200);
    json_t *o = t_reply_json(&r);
    assert_int_equal(json_array_size(json_object_get(o, "data")), jobs);
    json_decref(o);
    t_reply_free(&r);
}

static void same_as_undisturbed(void)
{
    for (int i = 0; i < jobs; i++)
        if (got[i].size != wanted[i].size || got[i].hash != wanted[i].hash)
            fail_msg("job %d has other bytes than that of one undisturbed server", i);
}

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

static long metric(const char *name)
{
    t_reply r;
    assert_int_equal(request("GET", "/metrics", -1, NULL, &r), 200);
    const char *at = strstr(r.body, t_format("\n%s ", name));
    const long n = at ? atol(at + strlen(name) + 2) : -1;
    t_reply_free(&r);
    return n;
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
static void wait_for_step(const made *m)
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

/* One of each: a worker's host dies, one is stopped and comes back, one is cut off and joined again,
 * Redis dies, the shared folder is away, a front end is cut off, one dies. */
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

static void disturb(int what, bool first)
{
    const int worker = fronts + (int)(part() * workers), front = (int)(part() * fronts);
    if (what == KILL_WORKER) {
        kill_host(worker);
        usleep((useconds_t)(part() * 3e6));
        start_server(worker, true);
    } else if (what == STOP_WORKER) stop_host(worker, part() * 4);
    else if (what == KILL_REDIS) {
        t_redis_end(&redis, SIGKILL);
        usleep((useconds_t)(part() * 2e6));
        t_redis_start(&redis);
    } else if (what == STORE_AWAY) files_away(first ? STORE_AWAY_S : part() * 5);
    else if (what == KILL_FRONT) {
        kill_host(front);
        start_server(front, true);
    } else if (what == STOP_FRONT) stop_host(front, part() * 4);
    else if (cut >= 0) join(); /* others happen while a host is cut off */
    else cut_off((int)(part() * (fronts + workers)));
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
        usleep((useconds_t)(part() * 3e6));
        const int what = all < kinds ? all : (int)(part() * kinds);
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
    fprintf(stderr, "SLUICE_SEED=%u\n", seed);
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
    made m = {0};
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
        "prompt", "a cat", "input_reference", "@" T_IMAGE, "size", "96x64",
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

/* A job that has been made, its id. */
static void make_one(made *m)
{
    memset(m, 0, sizeof *m);
    submit_one(m, 0);
    assert_string_equal(t_wait(&servers[0], m->id), "completed");
}

static void get_part(t_reply *r, const char *path, const char *header, long code, size_t size)
{
    t_http_all(r, servers[0].url, "GET", path, NULL, NULL, NULL, header);
    if (r->code != code || r->size != size)
        fail_msg("%s, %s: HTTP %ld, %zu bytes, want %ld, %zu", path, header, r->code, r->size, code,
                 size);
}

/* What a client is sent through the front end: whole, ranges, nothing that it has already; 503
 * while the store is away. */
static void content_through_the_server(const made *m)
{
    const char *path = t_format("/v1/videos/%s/content", m->id);
    char tag[128], video[200];
    t_reply r, whole;
    snprintf(video, sizeof video, "%s", path);
    t_http(&whole, &servers[0], "GET", video);
    assert_int_equal(whole.code, 200);
    const char *at = strstr(whole.headers, "ETag: ");
    assert_non_null(at);
    snprintf(tag, sizeof tag, "If-None-Match: %.*s", (int)strcspn(at + 6, "\r\n"), at + 6);
    get_part(&r, video, "Range: bytes=100-299", 206, 200);
    assert_memory_equal(r.body, whole.body + 100, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Range: bytes 100-299/%zu", whole.size)));
    t_reply_free(&r);
    get_part(&r, video, "Range: bytes=-7", 206, 7);
    assert_memory_equal(r.body, whole.body + whole.size - 7, 7);
    t_reply_free(&r);
    get_part(&r, video, tag, 304, 0);
    t_reply_free(&r);
    t_http(&r, &servers[0], "HEAD", video);
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Length: %zu", whole.size)));
    t_reply_free(&r);
    t_s3_fault(&store, "cut", 2, 0); /* goes on from where it was */
    t_http(&r, &servers[0], "GET", video);
    assert_int_equal(r.size, whole.size);
    assert_memory_equal(r.body, whole.body, whole.size);
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 1000000, 0);
    t_http(&r, &servers[0], "GET", video);
    assert_int_equal(r.code, 503);
    assert_non_null(strstr(r.headers, "Retry-After: "));
    t_reply_free(&r);
    assert_int_equal(request("POST", "/v1/videos", 1, NULL, &r), 503);
    assert_string_equal(t_reply_text(&r, "error.code"), "away");
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 0, 0);
    t_reply_free(&whole);
}

/* The link gives the same bytes, and is no link to anything else. */
static void content_by_a_link(const made *m)
{
    t_reply r, whole;
    char url[2000], type[64];
    long code;
    size_t size;
    const char *path = t_format("/v1/videos/%s/content", m->id);
    t_http(&r, &servers[0], "GET", path);
    assert_int_equal(r.code, 302);
    assert_int_equal(r.size, 0);
    const char *at = strstr(r.headers, "Location: ");
    assert_non_null(at);
    snprintf(url, sizeof url, "%.*s", (int)strcspn(at + 10, "\r\n"), at + 10);
    t_reply_free(&r);
    char *video = t_s3_get(url, NULL, &code, type, &size);
    assert_int_equal(code, 200);
    assert_string_equal(type, "video/mp4");
    t_http(&r, &servers[0], "HEAD", path);
    assert_int_equal(r.code, 200);
    assert_non_null(strstr(r.headers, t_format("Content-Length: %zu", size)));
    t_reply_free(&r);
    front_conf = "";
    kill_host(0);
    conf_of(0);
    start_server(0, true);
    t_http(&whole, &servers[0], "GET", path);
    assert_int_equal(whole.size, size);
    assert_memory_equal(whole.body, video, size);
    t_reply_free(&whole);
    free(video);
}

static void content_of_a_store(void **state)
{
    made m;
    t_reply r;
    (void)state;
    if (!on_s3) return;
    fronts = workers = 1;
    front_conf = "s3: { content = \"redirect\"; try_s = 1; };\n";
    open_fleet();
    make_one(&m);
    content_by_a_link(&m);
    content_through_the_server(&m);
    /* files of a job that is removed while the store is away go when it is back */
    t_s3_fault(&store, "busy", 1000000, 0);
    assert_int_equal(request("DELETE", t_format("/v1/videos/%s", m.id), -1, NULL, &r), 200);
    t_reply_free(&r);
    t_s3_fault(&store, "busy", 0, 0);
    const double until = t_seconds() + 90;
    while (has_files_of(m.id) && t_seconds() < until) usleep(200000);
    assert_false(has_files_of(m.id));
    close_fleet();
}

typedef struct {
    char path[200];
    long bytes_per_s; /* 0: as fast as it comes */
    size_t leaves;    /* after so many; 0: stays */
    t_reply r;
} reader;

static size_t read_some(char *data, size_t one, size_t n, void *self)
{
    reader *to = self;
    if (to->leaves && to->r.size > to->leaves) return 0;
    return t_reply_body(data, one, n, &to->r);
}

static void *read_one(void *arg)
{
    reader *to = arg;
    CURL *c = curl_easy_init();
    char url[400];
    snprintf(url, sizeof url, "%s%s", servers[0].url, to->path);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 8192L);
    curl_easy_setopt(c, CURLOPT_MAX_RECV_SPEED_LARGE, (curl_off_t)to->bytes_per_s);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, read_some);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, to);
    if (!curl_easy_perform(c)) curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &to->r.code);
    curl_easy_cleanup(c);
    return NULL;
}

/* A file of more than the server's memory for it, to clients that are fast, slow, and gone in the
 * middle, over connections to the store that break; then the server ends while one reads. */
static void large_files_of_a_store(void **state)
{
    enum { READERS = 9 };
    const char *const fields[] = {
        "prompt", "a cat", "input_reference", "@" T_IMAGE, "size", "160x96",
        "frames", "33",    "steps",           "1",         "dump", "true",
        NULL};
    static reader all[READERS];
    pthread_t threads[READERS];
    t_reply r;
    char id[64];
    (void)state;
    if (!on_s3) return;
    fronts = workers = 1;
    open_fleet();
    t_post(&r, &servers[0], fields, NULL);
    assert_int_equal(r.code, 200);
    snprintf(id, sizeof id, "%s", t_reply_text(&r, "id"));
    t_reply_free(&r);
    assert_string_equal(t_wait(&servers[0], id), "completed");
    memset(all, 0, sizeof all);
    for (int i = 0; i < READERS; i++) {
        snprintf(all[i].path, sizeof all[i].path, "/v1/videos/%s/dump/frames.safetensors", id);
        all[i].bytes_per_s = i % 3 == 1 ? 400000 : 0;
        all[i].leaves = i % 3 == 2 ? 300000 : 0;
    }
    read_one(&all[0]);
    assert_int_equal(all[0].r.code, 200);
    assert_true(all[0].r.size > 1000000);
    t_s3_fault(&store, "cut", 4, 2);
    for (int i = 1; i < READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_one, &all[i]), 0);
    for (int i = 1; i < READERS; i++) pthread_join(threads[i], NULL);
    t_s3_fault(&store, "cut", 0, 0);
    for (int i = 1; i < READERS; i++) {
        if (!all[i].leaves) assert_int_equal(all[i].r.size, all[0].r.size);
        assert_memory_equal(all[i].r.body, all[0].r.body, all[i].r.size);
        t_reply_free(&all[i].r);
    }
    for (size_t at = 0; at < all[0].r.size; at += 700001) {
        const size_t left = all[0].r.size - at, n = left < 700001 ? left : 700001;
        get_part(&r, all[0].path, t_format("Range: bytes=%zu-%zu", at, at + n - 1), 206, n);
        assert_memory_equal(r.body, all[0].r.body + at, n);
        t_reply_free(&r);
    }
    all[1].bytes_per_s = 100000;
    assert_int_equal(pthread_create(&threads[1], NULL, read_one, &all[1]), 0);
    usleep(500000);
    assert_int_equal(t_serve_stop(&servers[0]), 0);
    pthread_join(threads[1], NULL);
    start_server(0, true);
    t_reply_free(&all[1].r);
    t_reply_free(&all[0].r);
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
        cmocka_unit_test(content_of_a_store),     cmocka_unit_test(large_files_of_a_store),
        cmocka_unit_test(refused_starts),
    };
    full = much && !strcmp(much, "full");
    if (full) fronts = 2, workers = 3, jobs = 60;
    if (number && atoi(number) > 0 && atoi(number) <= JOBS_MOST) jobs = atoi(number);
    if (other) model = other;
    seed = given ? (unsigned)atoi(given) : (unsigned)time(NULL);
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
