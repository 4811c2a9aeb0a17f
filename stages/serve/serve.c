/* serve.c - the server put together: options, checks, threads, and the end in reverse order. */
#include "stages/serve/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <curl/curl.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/job/check.h"
#include "stages/job/components.h"
#include "stages/job/defaults.h"
#include "stages/job/files.h"
#include "stages/job/lora.h"
#include "stages/job/plan.h"
#include "stages/serve/front.h"
#include "stages/serve/http.h"
#include "stages/serve/logger.h"
#include "stages/serve/offer.h"
#include "stages/serve/pipeline.h"
#include "stages/serve/routes.h"

#define LOCK_WAIT_MS 30000            /* for what is left of a killed server */
#define SILENT_NS (15 * 1000000000ll) /* of an event stream, before it shows that it lives */
#define FORGET_S (7 * 86400)          /* a removed job's row */
#define UNKNOWN_S 86400               /* files in the shared folder of a job that nobody knows */
#define OLD_S 3600                    /* a folder that nobody makes any more */

typedef struct {
    char listen[300], tokens[SL_PATH], state[SL_PATH], conf[SL_PATH], role[16];
    sl_server_shares shares;
    sl_batch batch; /* model, files, devices */
    sl_server server;
    sl_http *http;
    sl_logger *logger;
    pthread_t janitor;
    bool janitor_runs, people; /* standard error is for people */
    char stuck_why[200];       /* the janitor's: why jobs wait for another server; "": none does */
    atomic_bool over;
} serve;

/* ---- options ---- */

static sl_code take_option(serve *v, const char *name, const char *value, sl_err *err)
{
    char *file = strncmp(name, "--", 2) ? NULL : sl_component_file(&v->batch.files, name + 2);
    const struct {
        const char *name;
        char *at;
        size_t room;
    } all[] = {{"--model", v->batch.base.spec.model, sizeof v->batch.base.spec.model},
               {"--conf", v->conf, sizeof v->conf},
               {"--state", v->state, sizeof v->state},
               {"--listen", v->listen, sizeof v->listen},
               {"--tokens", v->tokens, sizeof v->tokens},
               {"--device", v->batch.device, sizeof v->batch.device},
               {"--queue", v->shares.queue, sizeof v->shares.queue},
               {"--blobs", v->shares.blobs, sizeof v->shares.blobs},
               {"--role", v->role, sizeof v->role},
               {file ? name : "", file, SL_PATH}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (strcmp(name, all[i].name) || !all[i].at) continue;
        if (!value) return sl_fail(err, SL_ARG, "%s wants a value", name);
        if (strlen(value) >= all[i].room)
            return sl_fail(err, SL_ARG, "%s has %zu bytes, want at most %zu", name, strlen(value),
                           all[i].room - 1);
        memcpy(all[i].at, value, strlen(value) + 1);
        return SL_OK;
    }
    return sl_fail(err, SL_ARG,
                   "unknown option %.60s, want --model, --conf, --state, --listen, --tokens, "
                   "--device, --queue, --blobs, --role, or a file in place of the model's: "
                   "--transformer, --transformer-2, "
                   "--text-encoder, --image-encoder, --vae, --tokenizer",
                   name);
}

static sl_code parse_role(serve *v, sl_err *err)
{
    static const char *const ROLES[SL_SERVER_ROLE_COUNT] = {
#define X(NAME, name) name,
        SL_SERVER_ROLES(X)
#undef X
    };
    for (int i = 0; i < SL_SERVER_ROLE_COUNT; i++)
        if (!*v->role || !strcmp(v->role, ROLES[i])) {
            v->shares.role = (sl_server_role)i;
            return SL_OK;
        }
    return sl_fail(err, SL_ARG, "--role is \"%s\", want front, worker or both", v->role);
}

static sl_code parse(serve *v, int argc, char **argv, sl_err *err)
{
    sl_code rc = sl_batch_init(&v->batch, err);
    snprintf(v->listen, sizeof v->listen, "127.0.0.1:8080");
    for (int i = 0; i < argc && !rc; i++) {
        char name[64];
        const char *equals = strchr(argv[i], '=');
        snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - argv[i]) : 63, argv[i]);
        if (equals) rc = take_option(v, name, equals + 1, err);
        else rc = take_option(v, name, i + 1 < argc ? argv[i + 1] : NULL, err), i++;
    }
    if (!rc) snprintf(v->batch.conf, sizeof v->batch.conf, "%s", v->conf);
    if (!rc && !*v->state) rc = sl_state_dir(v->state, err);
    const char *queue = getenv("SLUICE_QUEUE"); /* a password is not everybody's to see, as here */
    if (!rc && !*v->shares.queue && queue && *queue) {
        if (strlen(queue) >= sizeof v->shares.queue)
            return sl_fail(err, SL_ARG, "SLUICE_QUEUE has %zu bytes, want at most %zu",
                           strlen(queue), sizeof v->shares.queue - 1);
        snprintf(v->shares.queue, sizeof v->shares.queue, "%s", queue);
    }
    return rc ? rc : parse_role(v, err);
}

/* ---- before the first job ---- */

/* What a configuration's LoRA are: as sl_server has it. */
typedef struct {
    uint64_t ids[SL_CONF_LORAS][2], keys[SL_CONF_LORAS];
} loras;

static void use_loras(sl_server *s, const loras *of)
{
    memcpy(s->lora_ids, of->ids, sizeof of->ids);
    memcpy(s->lora_keys, of->keys, sizeof of->keys);
}

/* One of the configuration's LoRA for one expert; its file is "" where it has none for it. */
static sl_lora_use use_of(const sl_conf_lora *l, int expert)
{
    sl_lora_use u = {.strength = expert ? l->strength_2 : l->strength};
    snprintf(u.file, sizeof u.file, "%s", expert ? l->file_2 : l->file);
    return u;
}

/* Each LoRA of `c` fits the model; what they are is noted. `r` is left without any. */
static sl_code check_loras(sl_request *r, const sl_server *s, const sl_conf *c, loras *out,
                           sl_err *err)
{
    sl_code rc = SL_OK;
    for (int i = 0; i < c->lora_count && !rc; i++)
        for (int e = 0; e < 2 && !rc; e++) {
            const sl_lora_use u = use_of(&c->lora[i], e);
            char **field = e ? &r->spec.lora_2 : &r->spec.lora, *rows;
            if (!*u.file) continue;
            if (!(rows = sl_lora_field(&u, 1))) return sl_fail(err, SL_NOMEM, "no memory");
            free(*field);
            *field = rows;
            sl_lora_use found[SL_LORA_MOST];
            if ((rc = sl_request_check_lora(r, &s->model, s->conf.model.random, err)))
                sl_context(err, rc, "lora %s", c->lora[i].name);
            else if (sl_lora_uses(found, *field, NULL) == 1) {
                out->ids[i][e] = found[0].id;
                out->keys[i] = out->keys[i] * 31 + sl_lora_key(*field);
            }
            sl_job_set_text(field, "", NULL);
        }
    return rc;
}

/* The request asks for every LoRA of the configuration, as far as a job may; each of them fits the
 * model. */
static sl_code ask_for_loras(sl_request *r, sl_server *s, sl_err *err)
{
    sl_lora_use uses[2][SL_LORA_MOST] = {0};
    int count[2] = {0};
    loras of = {0};
    sl_code rc = check_loras(r, s, &s->conf, &of, err);
    if (!rc) use_loras(s, &of);
    for (int i = 0; i < s->conf.lora_count && !rc; i++)
        for (int e = 0; e < 2; e++) {
            const sl_lora_use u = use_of(&s->conf.lora[i], e);
            if (*u.file && count[e] < SL_LORA_MOST) uses[e][count[e]++] = u;
        }
    for (int e = 0; e < 2 && !rc; e++) {
        char *rows = sl_lora_field(uses[e], count[e]),
             **field = e ? &r->spec.lora_2 : &r->spec.lora;
        if (!rows) return sl_fail(err, SL_NOMEM, "no memory");
        free(*field);
        *field = rows;
    }
    return rc;
}

/* The largest job that the settings allow fits in memory. */
static sl_code admit_largest(serve *v, sl_err *err)
{
    const sl_conf *c = &v->server.conf;
    sl_admission fits;
    sl_request *r = NULL;
    const int edge = sl_edge(&v->server.model.family);
    int side = edge;
    sl_code rc = sl_batch_add(&v->batch, &r, err);
    if (rc) return rc;
    while ((int64_t)(side + edge) * (side + edge) <= c->limits.pixels) side += edge;
    r->spec.width = side;
    r->spec.height = (int)(c->limits.pixels / side / edge * edge);
    r->spec.frames = (c->limits.frames - 1) / 4 * 4 + 1;
    r->spec.fbcache = c->fbcache.threshold;
    snprintf(r->spec.precision, SL_PATH, "%s", c->denoise.precision);
    if (v->server.model.family.picture) snprintf(r->spec.image, SL_PATH, "?");
    if (v->server.model.family.last_picture) snprintf(r->spec.last_image, SL_PATH, "?");
    if ((rc = ask_for_loras(r, &v->server, err))) return rc;
    if ((rc = sl_plan_admit(&fits, &v->batch, &v->server.model, c, err)))
        return sl_context(err, rc, "the largest job (limits.pixels, limits.frames)");
    if (fits.held < fits.mapped)
        sl_log(SL_LOG_WARN,
               "memory holds %llu of the %llu bytes of weights that stay mapped: the rest is read "
               "from the disk again at every step",
               (unsigned long long)fits.held, (unsigned long long)fits.mapped);
    return SL_OK;
}

/* A front end has no memory for jobs; the LoRA that it names are there. */
static sl_code look_at_loras(serve *v, sl_err *err)
{
    sl_request asks = {0};
    loras of = {0};
    sl_code rc = sl_job_init(&asks.spec, err);
    if (!rc) rc = check_loras(&asks, &v->server, &v->server.conf, &of, err);
    if (!rc) use_loras(&v->server, &of);
    sl_job_free(&asks.spec);
    return rc;
}

static void name_model(sl_server *s)
{
    const char *slash = strrchr(s->model.dir, '/');
    snprintf(s->name, sizeof s->name, "%.127s", slash && slash[1] ? slash + 1 : s->model.dir);
    for (char *c = s->name; *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '"' || *c == '\\') *c = '_';
}

static void raise_files(const sl_conf *c)
{
    struct rlimit r;
    const rlim_t want = (rlim_t)c->serve.connections + 512;
    if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= want) return;
    r.rlim_cur = want < r.rlim_max ? want : r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    if (r.rlim_cur < want)
        sl_log(SL_LOG_WARN, "%llu files may be open, want %llu for serve.connections",
               (unsigned long long)r.rlim_cur, (unsigned long long)want);
}

/* Folders without a row, and what ended jobs have left when the server was killed. */
static void sweep_one(void *self, const char *id)
{
    sl_server *s = self;
    sl_journal_job job = {0};
    /* of a shared queue: what counts is in the shared folder */
    if (sl_server_shares_queue(s) || !sl_journal_knows(s->journal, id))
        sl_store_remove(&s->store, id);
    else if (!sl_journal_get(s->journal, id, NULL, &job, NULL) && job.state != SL_JOURNAL_QUEUED &&
             job.state != SL_JOURNAL_RUNNING)
        sl_store_prune(&s->store, id, sl_video_has_dump(&job));
    sl_journal_job_free(&job);
}

static sl_code open_state(serve *v, sl_err *err)
{
    sl_server *s = &v->server;
    int count = 0;
    sl_code rc;
    if ((rc = sl_server_open_state(s, v->state, &v->shares, LOCK_WAIT_MS, err))) return rc;
    sl_journal_retries(s->journal, s->conf.serve.retries);
    if ((rc = sl_journal_release_all(s->journal, &count, err))) return rc;
    sl_offer_tell(s);
    if (count) sl_log(SL_LOG_INFO, "%d jobs of the server before this one go on", count);
    sl_store_each(&s->store, sweep_one, s);
    return SL_OK;
}

static sl_code open_all(serve *v, sl_err *err)
{
    sl_server *s = &v->server;
    sl_code rc;
    if ((rc = sl_batch_open(&v->batch, &s->model, &s->conf, err))) return rc;
    sl_log_open("serve", s->conf.run.log);
    if ((rc = sl_request_read_defaults(&s->defaults, s->model.dir, err)) ||
        (rc = v->shares.role == SL_SERVER_FRONT ? look_at_loras(v, err) : admit_largest(v, err)) ||
        (*v->tokens && (rc = sl_tokens_read(&s->tokens, v->tokens, err))))
        return rc;
    v->people = s->conf.run.log_format == SL_LOG_AS_TEXT;
    s->conf.run.log_format = SL_LOG_AS_JSON; /* of all processes: the logger reads it */
    sl_tokenizer_open(&s->tokenizer, s->model.layout.tokenizer,
                      NULL); /* the text stage complains */
    name_model(s);
    raise_files(&s->conf);
    s->lanes = sl_conf_instances(&s->conf, SL_ROLE_DENOISE);
    if ((rc = sl_server_open(s, err)) || (rc = open_state(v, err))) return rc;
    return sl_http_open(&v->http, s, sl_route_find, v->listen, err);
}

/* ---- the janitor ---- */

static void expire(sl_server *s)
{
    char id[SL_JOURNAL_ID];
    sl_err err = {0};
    const int64_t now = (int64_t)time(NULL);
    pthread_rwlock_rdlock(&s->settings);
    const int64_t before = now - s->conf.serve.keep_s;
    const uint64_t quota = (uint64_t)s->conf.serve.quota_bytes;
    pthread_rwlock_unlock(&s->settings);
    while (!sl_journal_expire(s->journal, before, quota, now - FORGET_S, now, id, &err)) {
        sl_log_about(id, SL_LOG_INFO, "expired");
        sl_server_remove_files(s, id);
        sl_events_tell(s->events, id, SL_EVENT_STATE);
    }
    if (err.code && err.code != SL_BUSY) sl_log_err("journal", &err);
}

/* Pictures that a front end has made of a job which another server has removed. A folder that is
 * young may be of a job that is just being made. */
static void sweep_old(void *self, const char *id)
{
    const sl_server *s = self;
    char dir[SL_PATH];
    struct stat st;
    if (!sl_store_path(dir, &s->store, id, "", NULL) && !stat(dir, &st) &&
        time(NULL) - st.st_mtime > OLD_S && !sl_journal_knows(s->journal, id))
        sl_store_remove(&s->store, id);
}

/* Files of a job that was never accepted, because nobody could tell whether it was. */
static void sweep_shared(void *self, const char *id)
{
    const sl_server *s = self;
    if (!sl_journal_knows(s->journal, id)) sl_blobs_remove(&s->blobs, id, NULL);
}

/* Jobs that wait and that no server which is up takes: a line when there are some, and when there
 * are none again. */
static void look_for_stuck(serve *v)
{
    sl_journal_counts n;
    if (sl_journal_count(v->server.journal, &n, NULL)) return;
    if (n.stuck && strcmp(n.why, v->stuck_why))
        sl_log(SL_LOG_WARN, "%lld jobs wait for another server: %s", (long long)n.stuck, n.why);
    else if (!n.stuck && *v->stuck_why)
        sl_log(SL_LOG_INFO, "every job that waits is taken by some server again");
    snprintf(v->stuck_why, sizeof v->stuck_why, "%s", n.stuck ? n.why : "");
}

static void *tidy(void *arg)
{
    serve *v = arg;
    for (int n = 0; !atomic_load(&v->over); n++) {
        struct timespec t = {0, 250000000};
        nanosleep(&t, NULL);
        if (n % 4) continue;
        sl_http_tick(v->http);
        sl_events_tick(v->server.events, SILENT_NS);
        if (n % 20 == 0) expire(&v->server);
        if (n % 20 == 0 && sl_server_shares_queue(&v->server)) look_for_stuck(v);
        if (n % 80 == 0) sl_server_remove_left(&v->server);
        if (n % 14400 || v->server.role == SL_SERVER_WORKER || !sl_server_shares_queue(&v->server))
            continue;
        sl_blobs_each_marked(&v->server.blobs, UNKNOWN_S, sweep_shared, &v->server);
        if (v->server.role == SL_SERVER_FRONT)
            sl_store_each(&v->server.store, sweep_old, &v->server);
    }
    return NULL;
}

/* ---- signals ---- */

/* SIGHUP. What the pipeline was started with stays: a limit may only come down. */
static void reload(void *self)
{
    serve *v = self;
    sl_server *s = &v->server;
    sl_conf *fresh = malloc(sizeof *fresh);
    sl_tokens tokens = {0};
    sl_err err = {0};
    if (!fresh) return;
    sl_conf_defaults(fresh);
    sl_request asks = {0};
    loras of = {0};
    sl_code rc = *v->conf ? sl_conf_read_file(fresh, v->conf, &err) : SL_OK;
    if (!rc && !(rc = sl_job_init(&asks.spec, &err))) rc = check_loras(&asks, s, fresh, &of, &err);
    sl_job_free(&asks.spec);
    if (!rc && *v->tokens) rc = sl_tokens_read(&tokens, v->tokens, &err);
    if (rc) sl_log(SL_LOG_ERROR, "SIGHUP: all stays as it was: %s", err.msg);
    else {
        pthread_rwlock_wrlock(&s->settings);
        s->conf.serve = fresh->serve;
        s->conf.lora_count = fresh->lora_count;
        memcpy(s->conf.lora, fresh->lora, sizeof s->conf.lora);
        use_loras(s, &of);
        s->conf.limits.prompt_bytes = fresh->limits.prompt_bytes;
        if (fresh->limits.pixels < s->conf.limits.pixels)
            s->conf.limits.pixels = fresh->limits.pixels;
        if (fresh->limits.frames < s->conf.limits.frames)
            s->conf.limits.frames = fresh->limits.frames;
        if (*v->tokens) {
            sl_tokens_free(&s->tokens);
            s->tokens = tokens;
        }
        pthread_rwlock_unlock(&s->settings);
        sl_journal_retries(s->journal, fresh->serve.retries);
        sl_offer_tell(s);
        sl_log(SL_LOG_INFO, "SIGHUP: settings%s are read again", *v->tokens ? " and tokens" : "");
    }
    free(fresh);
}

static void tell_ready(void *self)
{
    const serve *v = self;
    atomic_store(&((serve *)self)->server.began, true);
    printf("sluice: serving %s at %s (state %s)\n", v->server.name, sl_http_url(v->http),
           v->server.store.dir);
    fflush(stdout);
}

/* ---- the end ---- */

static void close_all(serve *v)
{
    atomic_store(&v->over, true);
    if (v->janitor_runs) pthread_join(v->janitor, NULL);
    sl_http_close(&v->http);
    if (v->people) sl_log_use_format(SL_LOG_AS_TEXT);
    sl_logger_close(&v->logger);
    sl_server_close(&v->server);
    sl_batch_free(&v->batch);
    curl_global_cleanup();
}

int sl_serve_main(int argc, char **argv)
{
    serve *v = calloc(1, sizeof *v);
    sl_err err = {0};
    sigset_t set;
    int status = SL_EXIT_REFUSED;
    if (!v) return SL_EXIT_FAILED;
    sl_server_init(&v->server);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    signal(SIGPIPE, SIG_IGN);
    umask(077); /* all that this process and its stages make is its user's alone */
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* in all threads: pipeline.h reads them */
    if (!parse(v, argc, argv, &err) && !open_all(v, &err) &&
        !sl_logger_open(&v->logger, &v->server.store, v->people, &err)) {
        sl_log_use_format(SL_LOG_AS_JSON);
        v->janitor_runs = !pthread_create(&v->janitor, NULL, tidy, v);
        const sl_code rc = v->server.role == SL_SERVER_FRONT
                               ? sl_front_run(&v->server, reload, tell_ready, v, &err)
                               : sl_pipeline_run(&v->server, reload, tell_ready, v, &err);
        status = rc ? SL_EXIT_FAILED : SL_EXIT_OK;
    }
    close_all(v);
    if (err.code) sl_complain("%s", err.msg);
    free(v);
    return status;
}
