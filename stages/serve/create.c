/* create.c - POST /v1/videos: from a body to a job that survives.
 *
 *   form --> options, pictures --> folder, synced --> checks of `run` --> job.json --> journal: 200
 *
 * Whatever fails on the way leaves nothing behind. A folder that no journal's row names is a
 * leftover of a server that died here, and goes at the next start. */
#include "stages/serve/offer.h"
#include "stages/serve/routes.h"

#include <errno.h>
#include <math.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/word.h"
#include "stages/job/check.h"
#include "stages/job/defaults.h"
#include "stages/job/hints.h"
#include "stages/job/options.h"

#define CHECKS 2 /* requests whose pictures are decoded at a time: a picture may take 500 MB */
#define CHECK_WAIT_S 30 /* longest wait for that */
#define RETRY_S 10      /* to come again when the queue is full */

static sem_t checks;
static pthread_once_t checks_once = PTHREAD_ONCE_INIT;

static void make_checks(void)
{
    sem_init(&checks, 0, CHECKS);
}

/* ---- multipart ---- */

typedef struct {
    sl_form *form;
    sl_err *err;
    sl_code rc;
    char name[64];
    bool file;
    char *bytes; /* of the part that is being read */
    size_t size;
} parts;

static void end_part(parts *p)
{
    char *bytes = p->bytes;
    p->bytes = NULL;
    if (!*p->name || p->rc) {
        free(bytes);
        return;
    }
    if (bytes) bytes[p->size] = 0;
    if (p->file) p->rc = sl_form_file_of(p->form, p->name, bytes, p->size, p->err);
    else {
        if (bytes && strlen(bytes) != p->size)
            p->rc = sl_fail(p->err, SL_ARG, "%s holds a NUL", p->name);
        else p->rc = sl_form_text(p->form, p->name, bytes ? bytes : "", p->err);
        free(bytes);
    }
    *p->name = 0;
}

static enum MHD_Result take_part(void *cls, enum MHD_ValueKind kind, const char *key,
                                 const char *filename, const char *type, const char *coding,
                                 const char *data, uint64_t off, size_t n)
{
    parts *p = cls;
    (void)kind, (void)type, (void)coding;
    if (!off) {
        end_part(p);
        if (p->rc) return MHD_NO;
        snprintf(p->name, sizeof p->name, "%s", key ? key : "");
        p->size = 0;
        p->file = filename && sl_form_is_file(p->name);
        if (!key || strlen(key) >= sizeof p->name)
            p->rc = sl_fail(p->err, SL_ARG, "unknown field \"%.60s\"", key ? key : "");
        else if (filename && !p->file)
            p->rc = sl_fail(p->err, SL_ARG, "%s is a file, want a text", p->name);
    }
    if (p->rc) return MHD_NO;
    if (n) {
        char *more = realloc(p->bytes, p->size + n + 1);
        if (!more) {
            p->rc = sl_fail(p->err, SL_NOMEM, "no memory for %s", p->name);
            return MHD_NO;
        }
        memcpy(more + p->size, data, n);
        p->bytes = more;
        p->size += n;
    }
    return MHD_YES;
}

static sl_code read_parts(sl_ask *a, sl_form *f, sl_err *err)
{
    parts p = {.form = f, .err = err};
    struct MHD_PostProcessor *pp = MHD_create_post_processor(a->mhd, 65536, take_part, &p);
    if (!pp)
        return sl_fail(err, SL_FORMAT,
                       "the request's body is multipart without a boundary of 2 bytes or more");
    const bool read = a->size && MHD_post_process(pp, a->body, a->size) == MHD_YES,
               whole = MHD_destroy_post_processor(pp) == MHD_YES;
    if (read && whole) end_part(&p);
    free(p.bytes);
    if (!p.rc && !(read && whole))
        p.rc = sl_fail(err, SL_FORMAT, "the request's body is damaged or cut multipart");
    return p.rc;
}

static sl_code read_body(sl_ask *a, sl_form *f, sl_err *err)
{
    const char *type = sl_ask_header(a, "Content-Type");
    if (type && !strncasecmp(type, "application/json", 16))
        return sl_form_json(f, a->body ? a->body : "", a->size, err);
    if (type && !strncasecmp(type, "multipart/form-data", 19)) return read_parts(a, f, err);
    return sl_fail(err, SL_GONE,
                   "the request's body is %.60s, want application/json or "
                   "multipart/form-data",
                   type ? type : "of no type");
}

/* ---- the job ---- */

static void new_id(char id[SL_JOURNAL_ID])
{
    char word[SL_WORD];
    sl_new_word(word);
    snprintf(id, SL_JOURNAL_ID, "video_%s", word);
}

static sl_code write_inputs(const sl_server *s, const char *id, sl_form *f, sl_err *err)
{
    const struct {
        const sl_form_file *file;
        const char *name;
        char *path;
        bool *has;
    } all[] = {{&f->image, "image.input", f->request.spec.image, &f->request.has_image},
               {&f->last_image, "last_image.input", f->request.spec.last_image,
                &f->request.has_last_image},
               {&f->noise, "noise.safetensors", f->request.spec.noise, &f->request.has_noise}};
    sl_code rc = SL_OK;
    for (int i = 0; i < 3 && !rc; i++) {
        if (!all[i].file->bytes) continue;
        *all[i].has = true;
        if (!(rc = sl_store_path(all[i].path, &s->store, id, all[i].name, err)))
            rc = sl_store_write(&s->store, id, all[i].name, all[i].file->bytes, all[i].file->size,
                                err);
    }
    return rc;
}

static sl_code set_frames(sl_form *f, const sl_server *s, sl_err *err)
{
    sl_request *r = &f->request;
    if (!f->seconds) return SL_OK;
    if (r->has_frames)
        return sl_fail(err, SL_ARG, "seconds is given beside frames, want one of the two");
    const double fps = r->has_fps ? r->spec.fps : sl_default_fps(&s->model, &s->conf);
    const double groups = round(f->seconds * fps / 4);
    r->spec.frames = groups > 1e8 ? 400000001 : (int)groups * 4 + 1;
    r->has_frames = true;
    return SL_OK;
}

/* A precision that another server of the queue computes in is checked as that one would. */
static sl_code check_with(sl_form *f, const sl_server *s, const sl_conf *conf, sl_err *err)
{
    sl_request *r = &f->request;
    sl_conf *other = f->precision_elsewhere ? malloc(sizeof *other) : NULL;
    if (f->precision_elsewhere && !other) return sl_fail(err, SL_NOMEM, "no memory");
    if (other) {
        *other = *conf;
        snprintf(other->denoise.precision, sizeof other->denoise.precision, "%.15s",
                 r->spec.precision);
        conf = other;
    }
    sl_code rc = sl_request_check(r, "", &s->model, conf, err);
    if (!rc) rc = sl_request_check_limits(r, conf, "", err);
    free(other);
    return rc;
}

static sl_code check(sl_server *s, sl_form *f, sl_err *err)
{
    sl_request *r = &f->request;
    struct timespec until;
    const bool had_fps = r->has_fps;
    sl_code rc;
    pthread_once(&checks_once, make_checks);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += CHECK_WAIT_S;
    while (sem_timedwait(&checks, &until))
        if (errno != EINTR) return sl_fail(err, SL_BUSY, "too many pictures are being checked");
    pthread_rwlock_rdlock(&s->settings);
    /* a length in seconds stands for the checkpoint's number of frames, not beside it */
    if (f->seconds && !had_fps && s->defaults.has_fps)
        r->spec.fps = s->defaults.spec.fps, r->has_fps = true;
    rc = set_frames(f, s, err);
    if (!rc) rc = sl_form_lora(f, &s->conf, NULL, err);
    if (!rc) rc = sl_request_apply_defaults(r, &s->defaults, err);
    if (!rc) rc = check_with(f, s, &s->conf, err);
    pthread_rwlock_unlock(&s->settings);
    sem_post(&checks);
    return rc;
}

typedef struct {
    const char *id;
    sl_request *request;
} hinted;

static void note_hint(void *to, const char *line)
{
    const hinted *h = to;
    sl_log_about(h->id, SL_LOG_WARN, "%s", line);
    sl_request_warn(h->request, line);
}

/* Folder and files of the job; all of it is on the disk, unless it is to be shared. */
static sl_code make_job(sl_server *s, const char *id, sl_form *f, sl_err *err)
{
    sl_request *r = &f->request;
    char path[SL_PATH], filters[SL_FILTERS_TEXT];
    sl_code rc;
    pthread_rwlock_rdlock(&s->settings);
    const bool preview = s->conf.serve.preview;
    pthread_rwlock_unlock(&s->settings);
    if ((preview && (rc = sl_store_path(r->spec.preview, &s->store, id, SL_STORE_PREVIEW, err))) ||
        (rc = sl_store_make(&s->store, id, err)) || (rc = write_inputs(s, id, f, err)) ||
        (rc = sl_store_path(r->spec.output, &s->store, id, SL_STORE_VIDEO, err)) ||
        (f->dump && (rc = sl_store_path(r->dump_dir, &s->store, id, "", err))) ||
        (rc = check(s, f, err)) || (rc = sl_store_path(path, &s->store, id, "job.json", err)) ||
        (rc = sl_job_set_text(&r->spec.filters, sl_pipeline_text(filters), err)) ||
        (rc = s->store.copies ? sl_job_write_copy(&r->spec, path, err)
                              : sl_job_write(&r->spec, path, err)))
        return rc;
    hinted h = {id, r};
    sl_tokenizer *tokenizer = s->tokenizer;
    sl_request_hints(r, &s->model, tokenizer ? &tokenizer : NULL, note_hint, &h);
    return sl_store_sync(&s->store, id, err);
}

/* The folder's files, into the one that all servers share; *files: as the journal has them,
 * malloc'd. */
static sl_code share_job(const sl_server *s, const char *id, char **files, sl_err *err)
{
    static const char *const NAMES[] = {"job.json", "image.input", "last_image.input",
                                        "noise.safetensors"};
    size_t size = 0;
    sl_code rc = sl_blobs_mark(&s->blobs, id, err);
    FILE *to = open_memstream(files, &size);
    if (!to) return sl_fail(err, SL_NOMEM, "no memory");
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES && !rc; i++) {
        char path[SL_PATH], version[16];
        uint64_t bytes;
        snprintf(version, sizeof version, "0.%zu", i + 1);
        if ((rc = sl_store_path(path, &s->store, id, NAMES[i], err)) || access(path, F_OK))
            continue;
        rc = sl_blobs_put(&s->blobs, id, NAMES[i], version, path, &bytes, err);
        if (!rc) fprintf(to, "%s %s %llu\n", NAMES[i], version, (unsigned long long)bytes);
    }
    if (!rc) rc = sl_blobs_settle(&s->blobs, id, err);
    if (fclose(to) && !rc) rc = sl_fail(err, SL_NOMEM, "no memory");
    return rc;
}

/* ---- answers ---- */

/* A client's own words may stand in messages of other codes. */
static bool is_full(sl_code rc, const char *message)
{
    if (rc != SL_SYS) return false;
    return strstr(message, strerror(ENOSPC)) || strstr(message, strerror(EDQUOT)) ||
           strstr(message, SL_JOURNAL_DISK_FULL);
}

/* The field that a message of `run` is about: the option that it names first. */
static const char *param_of(const char *message, char out[64])
{
    const size_t first = strcspn(message, " :");
    for (const char *at = message; at; at = strstr(at + 1, "--")) {
        const char *name = at + (strncmp(at, "--", 2) ? 0 : 2);
        const size_t n = name == message ? first : strcspn(name, " :,.");
        if (!n || n >= 64) continue;
        snprintf(out, 64, "%.*s", (int)n, name);
        if (!strcmp(out, "size")) return out;
        for (int i = 0; sl_option_at(i); i++)
            if (!strcmp(sl_option_at(i)->name, out))
                return strcmp(out, "image") ? out : "input_reference";
    }
    return NULL;
}

/* Where the server keeps its files is nobody's business: NAME in the place of PATH. */
static void rename_path(char *message, size_t room, const char *path, const char *name)
{
    char *at;
    const size_t n = strlen(path), m = strlen(name);
    while (n && m <= n && (at = strstr(message, path)) && strlen(message) < room) {
        memmove(at + m, at + n, strlen(at + n) + 1);
        memcpy(at, name, m);
    }
}

static void hide_paths(const sl_server *s, const char *id, sl_err *err)
{
    char dir[SL_PATH];
    if (!sl_store_path(dir, &s->store, id, "", NULL)) {
        strncat(dir, "/", sizeof dir - strlen(dir) - 1);
        rename_path(err->msg, sizeof err->msg, dir, "");
    }
    const sl_model_files *files = &s->conf.model.files; /* may lie outside of the model's folder */
    for (int i = 0; i <= SL_PART_COUNT; i++) {
        const char *path = i < SL_PART_COUNT ? files->part[i] : files->tokenizer;
        rename_path(err->msg, sizeof err->msg, path, sl_path_last(path));
    }
    if (strlen(s->name) <= strlen(s->model.dir))
        rename_path(err->msg, sizeof err->msg, s->model.dir, s->name);
    rename_path(err->msg, sizeof err->msg, s->store.dir, "state");
    rename_path(err->msg, sizeof err->msg, s->blobs.dir, "blobs");
}

static void refuse(sl_ask *a, const sl_form *f, sl_code rc, sl_err *err)
{
    char param[64];
    hide_paths(a->server, a->id, err);
    const char *of = *f->param ? f->param : param_of(err->msg, param);
    if (rc == SL_GONE) sl_answer_error(a, 415, "unsupported_media_type", NULL, "%s", err->msg);
    else if (is_full(rc, err->msg))
        sl_answer_error(a, 507, "disk_full", NULL, "no room for another job: %s", err->msg);
    else if (rc == SL_BUSY) {
        a->retry_s = RETRY_S;
        sl_answer_error(a, 429, "queue_full", NULL, "%s", err->msg);
    } else if (sl_server_shares_queue(a->server) && (rc == SL_SYS || rc == SL_TIMEOUT) &&
               !*f->param) {
        a->retry_s = RETRY_S;
        sl_answer_error(a, 503, "away", NULL, "%s", err->msg);
    } else if (rc == SL_NOMEM) {
        a->retry_s = RETRY_S;
        sl_answer_error(a, 503, "overloaded", NULL, "%s", err->msg);
    } else if (rc == SL_SYS || rc == SL_INTERNAL || rc == SL_CUDA)
        sl_answer_error(a, *f->param ? 400 : 500, *f->param ? "invalid_value" : "internal", of,
                        "%s", err->msg);
    else sl_answer_error(a, 400, "invalid_value", of, "%s", err->msg);
}

/* Whatever can be said without reading the body. */
static bool refuse_now(sl_ask *a)
{
    sl_server *s = a->server;
    sl_journal_counts n = {0};
    pthread_rwlock_rdlock(&s->settings);
    const int64_t reserve = s->conf.serve.reserve_bytes;
    const int queue = s->conf.serve.queue;
    pthread_rwlock_unlock(&s->settings);
    if (s->role == SL_SERVER_WORKER)
        sl_answer_error(a, 503, "worker", NULL,
                        "this server makes videos and takes no jobs: ask a front end");
    else if (atomic_load(&s->draining)) {
        a->retry_s = 30;
        sl_answer_error(a, 503, "draining", NULL, "the server is about to end and takes no jobs");
    } else if (!atomic_load(&s->began)) {
        a->retry_s = 5;
        sl_answer_error(a, 503, "loading", NULL, "the pipeline is loading its weights");
    } else if (sl_server_free(s) < (uint64_t)reserve)
        sl_answer_error(a, 507, "disk_full", NULL,
                        "no room for another job: the state's disk has less than %lld bytes free "
                        "(serve.reserve_bytes)",
                        (long long)reserve);
    else if (!sl_journal_count(s->journal, &n, NULL) && n.jobs[SL_JOURNAL_QUEUED] >= queue) {
        a->retry_s = RETRY_S;
        sl_answer_error(a, 429, "queue_full", NULL, "%lld jobs wait, want at most %d (serve.queue)",
                        (long long)n.jobs[SL_JOURNAL_QUEUED], queue);
    }
    return a->answered;
}

static sl_code submit(sl_ask *a, const char *id, const sl_form *f, const char *key,
                      char same[SL_JOURNAL_ID], sl_err *err)
{
    sl_server *s = a->server;
    sl_journal_job job = {.state = SL_JOURNAL_QUEUED,
                          .priority = f->has_priority ? f->priority
                                      : a->everyone   ? 0
                                                      : a->priority,
                          .created_s = (int64_t)time(NULL),
                          .request = sl_video_request(s, &f->request, f->lora)};
    char needs[SL_JOURNAL_NEEDS];
    sl_code rc =
        job.request ? sl_offer_needs(needs, s, f, err) : sl_fail(err, SL_NOMEM, "no memory");
    if (rc) {
        free(job.request);
        return rc;
    }
    job.needs = needs;
    memcpy(job.id, id, sizeof job.id);
    memcpy(job.owner, a->owner, sizeof job.owner);
    pthread_rwlock_rdlock(&s->settings);
    const sl_journal_limits limits = {s->conf.serve.queue, s->conf.serve.queue_per_token};
    pthread_rwlock_unlock(&s->settings);
    if (sl_server_shares_queue(s)) rc = share_job(s, id, &job.files, err);
    /* from here on the folder is that of whoever runs the job, perhaps this server */
    if (sl_server_shares_queue(s)) sl_store_remove(&s->store, id);
    if (!rc) rc = sl_journal_submit(s->journal, &job, key, &limits, same, err);
    if (sl_server_shares_queue(s) && !rc) sl_blobs_unmark(&s->blobs, id);
    free(job.files);
    free(job.request);
    return rc;
}

/* A job that was not accepted. In a queue that servers share it may be all the same, where the
 * answer was lost: then its files stay; of one that nobody took they go when that is known. */
static void forget_job(sl_server *s, const char *id, sl_code rc)
{
    const bool unknown = rc == SL_SYS || rc == SL_TIMEOUT;
    if (!sl_server_shares_queue(s) || !unknown || !sl_journal_knows(s->journal, id))
        sl_server_remove_files(s, id);
}

static sl_code create(sl_ask *a, sl_form *f, char id[SL_JOURNAL_ID], sl_err *err)
{
    const char *key = sl_ask_header(a, "Idempotency-Key");
    char same[SL_JOURNAL_ID] = "";
    sl_code rc;
    if ((rc = read_body(a, f, err))) return rc;
    *f->param = 0;
    if (key && strlen(key) >= SL_JOURNAL_KEY)
        return sl_fail(err, SL_ARG, "Idempotency-Key has %zu bytes, want at most %d", strlen(key),
                       SL_JOURNAL_KEY - 1);
    if (*f->model && strcmp(f->model, a->server->name)) {
        snprintf(f->param, sizeof f->param, "model");
        return sl_fail(err, SL_ARG, "model is \"%s\", want \"%s\", which is served here", f->model,
                       a->server->name);
    }
    if (f->has_priority && f->priority > a->priority) {
        snprintf(f->param, sizeof f->param, "priority");
        return sl_fail(err, SL_ARG, "priority is %d, want at most %d, this token's", f->priority,
                       a->priority);
    }
    if ((rc = sl_offer_look_elsewhere(a->server, f, err))) return rc;
    new_id(id);
    if ((rc = make_job(a->server, id, f, err)) ||
        (rc = submit(a, id, f, key ? key : "", same, err)) || *same)
        forget_job(a->server, id, rc);
    if (*same) memcpy(id, same, SL_JOURNAL_ID);
    return rc;
}

void sl_on_create(sl_ask *a)
{
    sl_server *s = a->server;
    sl_form f = {0};
    sl_err err = {0};
    sl_journal_job job = {0};
    if (refuse_now(a)) return;
    pthread_rwlock_rdlock(&s->settings);
    memcpy(f.image_hosts, s->conf.serve.image_hosts, sizeof f.image_hosts);
    f.file_bytes = (size_t)s->conf.serve.body_bytes;
    pthread_rwlock_unlock(&s->settings);
    sl_code rc = sl_form_init(&f, &err);
    if (!rc) rc = create(a, &f, a->id, &err);
    if (rc) refuse(a, &f, rc, &err);
    else {
        sl_metrics_add(s->metrics, SL_METRIC_JOBS_ACCEPTED, "", 1);
        sl_server_wake(s);
        rc = sl_journal_get(s->journal, a->id, a->everyone ? NULL : a->owner, &job, &err);
        if (!rc && *job.waits) sl_log_about(a->id, SL_LOG_WARN, "%s: it waits for one", job.waits);
        if (!rc) sl_answer_json(a, 200, sl_video_json(s, &job));
        else if (rc != SL_GONE) sl_answer_journal(a, rc, &err);
        else
            sl_answer_error(a, 409, "key_used", NULL,
                            "the video of this Idempotency-Key, %s, was removed: want another key",
                            a->id);
        sl_journal_job_free(&job);
    }
    sl_form_free(&f);
}
