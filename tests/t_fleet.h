/* t_fleet.h - a fleet of real servers at one queue: front ends, workers, Redis, jobs' files in a
 * folder or an S3 server; a client of them; and what is to be true in the end.
 *
 * Where `apart` is set each server is a host of its own (t_hosts.h), Redis and the store are the
 * test's, and a token is asked for. */
#ifndef T_FLEET_H
#define T_FLEET_H

#include "tests/t_hosts.h"
#include "tests/t_made.h"
#include "tests/t_redis.h"
#include "tests/t_s3.h"
#include "tests/t_serve.h"

#include <pthread.h>
#include <stdatomic.h>

#define JOBS_MOST 64
#define SERVERS 5
#define WAIT_S (full ? 1800 : 300)
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
static bool apart;                                           /* each server is a host of its own */
static int cut = -1;                                         /* the host that is cut off */
static pthread_mutex_t url_lock = PTHREAD_MUTEX_INITIALIZER; /* a url changes with each start */

/* ---- servers ---- */

static inline void join(void)
{
    if (cut >= 0) t_host_join(&hosts[cut]);
    cut = -1;
}

static inline void cut_off(int i)
{
    join();
    t_host_cut(&hosts[i]);
    cut = i;
}

static inline void start_server(int i, bool wait)
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

static inline void open_files(void)
{
    if (on_s3) t_s3_open_at(&store, apart ? T_HOSTS_HERE : "127.0.0.1");
    if (on_s3) snprintf(blobs, sizeof blobs, "s3://" T_S3_BUCKET "/fleet");
    else snprintf(blobs, sizeof blobs, "%s/blobs", redis.dir);
}

/* They are away for so long: the folder has another name; the store is stopped, or says that it is
 * busy, or breaks each connection. */
static inline void files_away(double s)
{
    static const char *const FAULTS[] = {"", "busy", "closed"};
    const char *how = on_s3 ? FAULTS[(int)(t_made_part() * 3)] : "";
    if (!on_s3) assert_int_equal(rename(blobs, t_format("%s.away", blobs)), 0);
    else if (*how) t_s3_fault(&store, how, 1000000, 0);
    else kill(store.pid, SIGSTOP);
    usleep((useconds_t)(s * 1e6));
    if (!on_s3) assert_int_equal(rename(t_format("%s.away", blobs), blobs), 0);
    else if (*how) t_s3_fault(&store, how, 0, 0);
    else kill(store.pid, SIGCONT);
}

static inline bool has_files_of(const char *id)
{
    if (!on_s3) return !access(t_format("%s/%s", blobs, id), F_OK);
    char *keys = t_s3_control(&store, t_format("keys/fleet/%s/", id));
    const bool has = *keys;
    free(keys);
    return has;
}

/* ---- the fleet ---- */

static inline void conf_of(int i)
{
    /* each state counts: jobs are short */
    t_serve_conf(&servers[i], t_format("queue: { lease_s = 1; spool_s = 0; };\n%s%s",
                                       i < fronts && !both ? "model: { random = 1; };\n" : "",
                                       i < fronts ? front_conf : ""));
}

/* Redis is a host, too: the test's own. */
static inline void open_queue(void)
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

static inline void open_host(int i)
{
    static char listen[SERVERS][32];
    t_host_open(&hosts[i], i + 1);
    snprintf(listen[i], sizeof listen[i], "%s:0", hosts[i].address);
    servers[i].net = hosts[i].net;
    servers[i].listen = listen[i];
    t_write(servers[i].tokens, "fleet " TOKEN "\n");
    assert_int_equal(chmod(servers[i].tokens, 0600), 0);
}

static inline void open_fleet(void)
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
static inline void kill_host(int i)
{
    kill(-servers[i].pid, SIGCONT);
    kill(-servers[i].pid, SIGKILL);
    assert_int_equal(t_serve_wait(&servers[i]), 128 + SIGKILL);
}

static inline void stop_host(int i, double s)
{
    kill(-servers[i].pid, SIGSTOP);
    usleep((useconds_t)(s * 1e6));
    kill(-servers[i].pid, SIGCONT);
}

static inline void close_fleet(void)
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

static t_made wanted[JOBS_MOST], got[JOBS_MOST];
static atomic_int accepted; /* of the jobs that are being submitted, the first so many */

/* Longer ones in the full run: what happens at random is to find them running. */
static inline int steps_of(int i)
{
    return (full ? 2 : 1) * (i % 3 ? 6 : 12);
}

static inline curl_mime *form_of(CURL *c, int i)
{
    curl_mime *m = curl_mime_init(c);
    const char *const fields[][2] = {{"prompt", "a cat"},
                                     {"size", full ? "160x96" : "48x32"},
                                     {"frames", full ? "17" : "9"},
                                     {"guidance", i % 2 ? "1" : "4"}};
    for (int k = 0; k < 4; k++) t_form_add(m, fields[k][0], fields[k][1]);
    t_form_add(m, "steps", t_format("%d", steps_of(i)));
    t_form_add(m, "seed", t_format("%d", i));
    t_form_add(m, "input_reference", "@" T_IMAGE);
    return m;
}

/* One request to some front end. The answer's code; 0: nobody answered. */
static inline long request(const char *method, const char *path, int form, const char *key,
                           t_reply *r)
{
    static atomic_int next;
    char url[256];
    CURL *c = curl_easy_init();
    pthread_mutex_lock(&url_lock);
    snprintf(url, sizeof url, "%s%s", servers[atomic_fetch_add(&next, 1) % fronts].url, path);
    pthread_mutex_unlock(&url_lock);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 2L);
    if (apart) {
        curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, TOKEN);
    }
    return t_made_request(c, method, url, form < 0 ? NULL : form_of(c, form), key, r);
}

/* Submit job i until it is accepted, under a key of its own. */
static inline void submit_one(t_made *out, int i)
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

static inline void *submit_all(void *arg)
{
    for (int i = 0; i < jobs; i++) {
        submit_one((t_made *)arg + i, i);
        atomic_store(&accepted, i + 1);
        usleep(full ? 100000 : 20000);
    }
    return NULL;
}

/* The job's status as some front end has it; "HTTP N" where it has none. */
static inline const char *status_of(const t_made *m)
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

static inline bool is_open(const char *status)
{
    return !strcmp(status, "queued") || !strcmp(status, "in_progress") ||
           !strcmp(status, "HTTP 503") || !strcmp(status, "HTTP 0");
}

static inline bool all_ended(const t_made *all)
{
    if (atomic_load(&accepted) < jobs) return false;
    for (int i = 0; i < jobs; i++)
        if (!*all[i].id || is_open(status_of(&all[i]))) return false;
    return true;
}

static inline void show_logs(void)
{
    for (int i = 0; i < fronts + workers; i++)
        if (*servers[i].log) t_serve_show_log(&servers[i]);
}

/* Every job ended as it should, and there are no others. */
static inline void check_all(t_made *all)
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
        all[i].hash = t_made_hash(r.body, r.size);
        t_reply_free(&r);
    }
    assert_int_equal(request("GET", "/v1/videos?limit=100", -1, NULL, &r), 200);
    json_t *o = t_reply_json(&r);
    assert_int_equal(json_array_size(json_object_get(o, "data")), jobs);
    json_decref(o);
    t_reply_free(&r);
}

static inline void same_as_undisturbed(void)
{
    for (int i = 0; i < jobs; i++)
        if (got[i].size != wanted[i].size || got[i].hash != wanted[i].hash)
            fail_msg("job %d has other bytes than that of one undisturbed server", i);
}

static inline long metric(const char *name)
{
    t_reply r;
    assert_int_equal(request("GET", "/metrics", -1, NULL, &r), 200);
    const char *at = strstr(r.body, t_format("\n%s ", name));
    const long n = at ? atol(at + strlen(name) + 2) : -1;
    t_reply_free(&r);
    return n;
}

#endif
