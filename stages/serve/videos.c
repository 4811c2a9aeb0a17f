/* videos.c - the video object, and what is asked about jobs. */
#include "stages/serve/routes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/json.h"
#include "common/log.h"
#include "common/pipeline.h"
#include "stages/job/report.h"

#define LIST_MOST 100
#define REMOVE_WAIT_MS 10000 /* for a running job to stop */

/* ---- the object ---- */

/* JSON's integers end where int64_t does. */
static json_t *seed_json(uint64_t seed)
{
    if (seed <= INT64_MAX) return json_integer((json_int_t)seed);
    return json_sprintf("%llu", (unsigned long long)seed);
}

char *sl_video_request(const sl_server *s, const sl_request *r, const char *lora)
{
    const sl_job *j = &r->spec;
    char size[32], seconds[32];
    snprintf(size, sizeof size, "%dx%d", j->width, j->height);
    snprintf(seconds, sizeof seconds, "%g", round(100.0 * (j->frames - 1) / j->fps) / 100);
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:o, s:i, s:f, s:f, s:f, s:s, s:o, "
        "s:s, s:f, s:i, s:b, s:s, s:o}",
        "model", s->name, "prompt", j->prompt, "negative_prompt", j->negative, "seconds", seconds,
        "size", size, "width", j->width, "height", j->height, "frames", j->frames, "fps",
        sl_json_number(j->fps), "steps", j->steps, "guidance", j->guidance, "guidance_2",
        j->guidance_2, "shift", j->shift, "sampler", j->sampler, "seed", seed_json(j->seed),
        "precision", j->precision, "fbcache", j->fbcache, "crf", j->crf, "dump", j->dump, "lora",
        lora ? lora : "", "warnings", sl_report_warnings(r));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    return text;
}

bool sl_video_has_dump(const sl_journal_job *j)
{
    json_t *o = j->request ? json_loads(j->request, 0, NULL) : NULL;
    const bool dump = json_is_true(json_object_get(o, "dump"));
    json_decref(o);
    return dump;
}

static json_t *time_or_null(int64_t s)
{
    return s ? json_integer(s) : json_null();
}

static const char *wire_status(sl_journal_state state)
{
    switch (state) {
    case SL_JOURNAL_QUEUED: return "queued";
    case SL_JOURNAL_RUNNING: return "in_progress";
    case SL_JOURNAL_COMPLETED: return "completed";
    default: return "failed";
    }
}

static json_t *error_of(const sl_journal_job *j)
{
    const char *text = *j->message ? j->message : sl_code_text(j->code);
    if (j->state == SL_JOURNAL_CANCELLED)
        return json_pack("{s:s, s:s}", "code", "cancelled", "message", "cancelled");
    if (j->state == SL_JOURNAL_FAILED && j->code == SL_GONE && j->deaths)
        return json_pack("{s:s, s:s}", "code", "server_lost", "message", text);
    if (j->state == SL_JOURNAL_FAILED)
        return json_pack("{s:s, s:s}", "code", "failed", "message", text);
    return json_null();
}

/* Of the video itself. */
static json_t *bytes_of(const sl_server *s, const sl_journal_job *j)
{
    sl_server_place at;
    if (j->state != SL_JOURNAL_COMPLETED || sl_server_file(s, j, SL_STORE_VIDEO, &at, NULL))
        return json_null();
    return json_integer((json_int_t)at.bytes);
}

static bool has_preview(const sl_server *s, const sl_journal_job *j)
{
    sl_server_place at;
    return j->attempts && !sl_server_file(s, j, SL_STORE_PREVIEW, &at, NULL);
}

/* Where a queued job is, and when it may be done. */
static void add_queue(sl_server *s, json_t *o, const sl_journal_job *j)
{
    const int position = sl_journal_position(s->journal, j->id);
    const int64_t work = sl_live_step_work((int)json_integer_value(json_object_get(o, "width")),
                                           (int)json_integer_value(json_object_get(o, "height")),
                                           (int)json_integer_value(json_object_get(o, "frames")),
                                           json_number_value(json_object_get(o, "guidance")) > 1);
    const double left =
        sl_live_queued_s(s->live, work, (int)json_integer_value(json_object_get(o, "steps")),
                         position < 0 ? 0 : position, s->lanes);
    if (position >= 0) json_object_set_new(o, "queue_position", json_integer(position));
    if (*j->waits) json_object_set_new(o, "waiting_for", json_string(j->waits));
    else if (left >= 0) json_object_set_new(o, "eta_seconds", json_real(round(left * 10) / 10));
}

static void add_live(sl_server *s, json_t *o, const sl_journal_job *j)
{
    sl_live_job now;
    double progress = j->progress;
    if (j->state == SL_JOURNAL_QUEUED) add_queue(s, o, j);
    if (j->state == SL_JOURNAL_RUNNING &&
        (sl_live_get(s->live, j->id, &now) || sl_live_parse(&now, j))) {
        if (now.progress > progress) progress = now.progress;
        if (*now.stage) {
            json_object_set_new(o, "stage", json_string(now.stage));
            json_object_set_new(o, "step", json_integer(now.step));
            json_object_set_new(o, "stage_steps", json_integer(now.steps));
        }
        if (now.left_s >= 0)
            json_object_set_new(o, "eta_seconds", json_real(round(now.left_s * 10) / 10));
    }
    if (j->state == SL_JOURNAL_COMPLETED) progress = 1;
    /* 100 is said of what is there alone */
    int percent = (int)floor(progress * 100);
    if (percent > 99 && j->state != SL_JOURNAL_COMPLETED) percent = 99;
    json_object_set_new(o, "progress", json_integer(percent));
}

json_t *sl_video_json(sl_server *s, const sl_journal_job *j)
{
    static const char *const NULLS[] = {"stage",          "step",        "stage_steps",
                                        "queue_position", "eta_seconds", "remixed_from_video_id",
                                        "waiting_for"};
    const bool ended = j->state != SL_JOURNAL_QUEUED && j->state != SL_JOURNAL_RUNNING;
    json_t *o = json_loads(j->request ? j->request : "{}", JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(o)) {
        json_decref(o);
        o = json_object();
    }
    pthread_rwlock_rdlock(&s->settings);
    const int64_t keep = s->conf.serve.keep_s;
    pthread_rwlock_unlock(&s->settings);
    json_object_set_new(o, "id", json_string(j->id));
    json_object_set_new(o, "object", json_string("video"));
    json_object_set_new(o, "status", json_string(wire_status(j->state)));
    json_object_set_new(o, "created_at", json_integer(j->created_s));
    json_object_set_new(o, "started_at", time_or_null(j->started_s));
    json_object_set_new(o, "completed_at",
                        j->state == SL_JOURNAL_COMPLETED ? json_integer(j->ended_s) : json_null());
    json_object_set_new(o, "expires_at", ended ? json_integer(j->ended_s + keep) : json_null());
    json_object_set_new(o, "priority", json_integer(j->priority));
    json_object_set_new(o, "attempts", json_integer(j->attempts));
    json_object_set_new(o, "error", error_of(j));
    json_object_set_new(o, "output_bytes", bytes_of(s, j));
    json_object_set_new(o, "preview", json_boolean(has_preview(s, j)));
    for (size_t i = 0; i < sizeof NULLS / sizeof *NULLS; i++)
        json_object_set_new(o, NULLS[i], json_null());
    if (!json_object_get(o, "warnings")) /* of a server before this one */
        json_object_set_new(o, "warnings", json_array());
    if (!json_object_get(o, "lora")) json_object_set_new(o, "lora", json_string(""));
    add_live(s, o, j);
    return o;
}

/* ---- asking ---- */

void sl_answer_journal(sl_ask *a, sl_code code, const sl_err *err)
{
    if (code == SL_GONE) sl_answer_error(a, 404, "not_found", NULL, "there is no video %s", a->id);
    else if (sl_server_shares_queue(a->server) && (code == SL_SYS || code == SL_TIMEOUT)) {
        a->retry_s = 5;
        sl_answer_error(a, 503, "away", NULL, "%s", err->msg);
    } else sl_answer_error(a, 500, "internal", NULL, "%s", err->msg);
}

bool sl_ask_job(sl_ask *a, sl_journal_job *out)
{
    sl_err err = {0};
    sl_code rc =
        sl_journal_get(a->server->journal, a->id, a->everyone ? NULL : a->owner, out, &err);
    if (rc) sl_answer_journal(a, rc, &err);
    return !rc;
}

void sl_on_get(sl_ask *a)
{
    sl_journal_job job = {0};
    if (!sl_ask_job(a, &job)) return;
    sl_answer_json(a, 200, sl_video_json(a->server, &job));
    sl_journal_job_free(&job);
}

/* limit, after and order; false: answered. */
static bool list_query(sl_ask *a, int *limit, const char **after, bool *newest)
{
    const char *l = sl_ask_query(a, "limit"), *o = sl_ask_query(a, "order");
    char *end = NULL;
    const long n = l ? strtol(l, &end, 10) : 20;
    *after = sl_ask_query(a, "after");
    if (!*after) *after = "";
    if (l && (!*l || strspn(l, "0123456789") != strlen(l) || *end || n < 1 || n > LIST_MOST))
        sl_answer_error(a, 400, "invalid_value", "limit", "limit is \"%.60s\", want 1 to %d", l,
                        LIST_MOST);
    else if (o && strcmp(o, "asc") && strcmp(o, "desc"))
        sl_answer_error(a, 400, "invalid_value", "order", "order is \"%.60s\", want asc or desc",
                        o);
    *limit = (int)n;
    *newest = !o || *o == 'd';
    return !a->answered;
}

void sl_on_list(sl_ask *a)
{
    sl_journal_job jobs[LIST_MOST];
    int limit, count = 0;
    const char *after;
    bool newest, more = false;
    sl_err err = {0};
    if (!list_query(a, &limit, &after, &newest)) return;
    sl_code rc = sl_journal_list(a->server->journal, a->everyone ? NULL : a->owner, after, limit,
                                 newest, jobs, &count, &more, &err);
    if (rc == SL_GONE)
        sl_answer_error(a, 400, "invalid_value", "after", "after is \"%.60s\", which is no video",
                        after);
    else if (rc) sl_answer_journal(a, rc, &err);
    else {
        json_t *data = json_array();
        for (int i = 0; i < count; i++)
            json_array_append_new(data, sl_video_json(a->server, &jobs[i]));
        sl_answer_json(a, 200,
                       json_pack("{s:s, s:o, s:s?, s:s?, s:b}", "object", "list", "data", data,
                                 "first_id", count ? jobs[0].id : NULL, "last_id",
                                 count ? jobs[count - 1].id : NULL, "has_more", more));
    }
    for (int i = 0; i < count; i++) sl_journal_job_free(&jobs[i]);
}

/* ---- ending ---- */

static sl_code cancel(sl_ask *a, sl_journal_state *before, sl_err *err)
{
    sl_server *s = a->server;
    sl_code rc = sl_journal_cancel(s->journal, a->id, a->everyone ? NULL : a->owner,
                                   (int64_t)time(NULL), before, err);
    if (rc) return rc;
    if (*before == SL_JOURNAL_QUEUED) {
        sl_store_prune(&s->store, a->id, false);
        sl_metrics_add(s->metrics, SL_METRIC_JOBS, "outcome=\"cancelled\"", 1);
        sl_events_tell(s->events, a->id, SL_EVENT_STATE);
    }
    if (*before == SL_JOURNAL_RUNNING) sl_server_wake(s);
    return SL_OK;
}

void sl_on_cancel(sl_ask *a)
{
    sl_journal_state before;
    sl_journal_job job = {0};
    sl_err err = {0};
    sl_code rc = cancel(a, &before, &err);
    if (rc) sl_answer_journal(a, rc, &err);
    else if (sl_ask_job(a, &job)) sl_answer_json(a, 200, sl_video_json(a->server, &job));
    sl_journal_job_free(&job);
}

/* The pipeline ends a running job within a step; until then its folder is in use. */
static sl_code remove_ended(sl_ask *a, sl_err *err)
{
    sl_code rc;
    for (int waited = 0;; waited += 20) {
        rc = sl_journal_remove(a->server->journal, a->id, a->everyone ? NULL : a->owner,
                               (int64_t)time(NULL), err);
        if (rc != SL_BUSY || waited >= REMOVE_WAIT_MS) return rc;
        struct timespec t = {0, 20000000};
        nanosleep(&t, NULL);
    }
}

void sl_on_remove(sl_ask *a)
{
    sl_journal_state before = SL_JOURNAL_REMOVED;
    sl_err err = {0};
    sl_code rc = cancel(a, &before, &err);
    if (!rc || rc == SL_GONE) rc = remove_ended(a, &err); /* GONE: removed already, perhaps */
    if (rc == SL_BUSY) {
        a->retry_s = 5;
        sl_answer_error(a, 503, "busy", NULL, "the job is told to stop, and has not yet");
    } else if (rc) sl_answer_journal(a, rc, &err);
    else {
        sl_server_remove_files(a->server, a->id);
        sl_events_tell(a->server->events, a->id, SL_EVENT_STATE);
        sl_answer_json(
            a, 200,
            json_pack("{s:s, s:s, s:b}", "id", a->id, "object", "video.deleted", "deleted", 1));
    }
}
