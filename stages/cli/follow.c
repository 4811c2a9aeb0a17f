/* follow.c - one job's events, read until its last state. */
#include "stages/cli/follow.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "stages/cli/sse.h"
#include "stages/cli/video.h"

#define POLL_S 2.0      /* between questions, where events do not come through */
#define BACKOFF_S 0.25  /* before the first try of a lost connection, doubled up to */
#define BACKOFF_MAX_S 5 /* this */
#define SILENT_TRIES 2  /* streams in a row without an event */

typedef struct {
    sl_remote *r;
    sl_progress *p;
    uint64_t number;
    char path[128];
    json_t *video; /* the newest object */
    sl_video seen; /* it, read */
    bool ended;
    sl_sse sse;
    bool heard;      /* an event of this stream */
    int64_t news_ns; /* when the server was heard of last */
    int64_t step_ns; /* when a question saw `step` of `stage` */
    int step;
    char stage[16];
} follower;

/* A new object takes the place of the one before. */
static sl_code take(follower *f, json_t *object, sl_err *err)
{
    char text[64];
    sl_code rc = sl_video_read(&f->seen, object, err);
    if (rc) {
        json_decref(object);
        return rc;
    }
    json_decref(f->video);
    f->video = object;
    f->ended = f->seen.ended;
    if (!strcmp(f->seen.status, "queued")) {
        sl_video_tell(&f->seen, text);
        sl_progress_note(f->p, f->number, text);
    }
    return SL_OK;
}

static void on_event(void *ctx, const char *event, const char *data, size_t n)
{
    follower *f = ctx;
    json_t *o = json_loadb(data, n, 0, NULL);
    const char *stage = json_string_value(json_object_get(o, "stage"));
    const json_int_t step = json_integer_value(json_object_get(o, "step")),
                     steps = json_integer_value(json_object_get(o, "steps"));
    f->heard = true;
    f->news_ns = sl_now_ns();
    if (f->ended) { /* nothing comes after the end */
    } else if (!strcmp(event, "state") && json_is_object(o)) {
        take(f, json_incref(o), NULL); /* one that is wrong is asked for again */
    } else if (!strcmp(event, "step") && stage && step >= 0 && steps > 0 && step <= steps) {
        sl_progress_step(f->p, f->number, stage, (unsigned)step, (unsigned)steps,
                         json_number_value(json_object_get(o, "seconds")), 0);
    }
    json_decref(o);
}

static sl_code on_bytes(void *ctx, const char *bytes, size_t n, sl_err *err)
{
    follower *f = ctx;
    if (strncmp(f->r->type, "text/event-stream", 17))
        return sl_fail(err, SL_FORMAT, "%s: events are %s, want text/event-stream", f->r->name,
                       *f->r->type ? f->r->type : "of no type");
    sl_code rc = sl_sse_feed(&f->sse, bytes, n, on_event, f, err);
    if (!rc && f->ended) /* a proxy may keep the connection */
        return sl_fail(err, SL_FORMAT, "the job has ended");
    return rc;
}

/* The object itself; where events do not come through, progress too. */
static sl_code question(follower *f, bool polling, sl_err *err)
{
    json_t *object = NULL;
    sl_code rc = sl_remote_call(f->r, "GET", f->path, NULL, 0, NULL, &object, err);
    if (rc || (rc = take(f, object, err))) return rc;
    const sl_video *v = &f->seen;
    const int64_t now = sl_now_ns();
    f->news_ns = now;
    if (!polling || f->ended || !*v->stage || v->step < 0 || v->stage_steps < v->step ||
        v->stage_steps < 1)
        return SL_OK;
    const bool same = !strncmp(f->stage, v->stage, sizeof f->stage - 1);
    if (!same || v->step != f->step) {
        const int more = same && v->step > f->step ? v->step - f->step : 0;
        sl_progress_step(f->p, f->number, v->stage, (unsigned)v->step, (unsigned)v->stage_steps,
                         more ? (double)(now - f->step_ns) * 1e-9 / more : 0, 0);
        f->step_ns = now;
        f->step = v->step;
        strncpy(f->stage, v->stage, sizeof f->stage - 1);
    }
    return SL_OK;
}

static sl_code stream(follower *f, sl_err *err)
{
    char path[160];
    f->heard = false;
    sl_sse_free(&f->sse);
    snprintf(path, sizeof path, "%s/events", f->path);
    return sl_remote_stream(f->r, path, "text/event-stream", on_bytes, f, err);
}

/* Is a failed try to be followed by another? Where the server is not heard of, for `patience_s`. */
static bool goes_on(const follower *f, sl_code rc, double patience_s)
{
    if (!sl_remote_passes(rc) || (f->r->until_ns && sl_now_ns() >= f->r->until_ns)) return false;
    if (!f->r->met) return false; /* there is no server at all */
    return (double)(sl_now_ns() - f->news_ns) * 1e-9 < patience_s;
}

/* Questions and streams in turn: a question finds what a stream did not tell. */
static sl_code follow(follower *f, double patience_s, sl_err *err)
{
    double wait_s = BACKOFF_S;
    int silent = 0;
    bool told = false;
    while (true) {
        const bool polling = silent >= SILENT_TRIES;
        sl_code rc = question(f, polling, err);
        const bool asked = !rc;
        if (!rc) told = false;
        if (!rc && !f->ended && polling) {
            if ((rc = sl_remote_sleep(f->r, POLL_S, err))) return rc;
            continue;
        }
        if (!rc && !f->ended) {
            rc = stream(f, err);
            silent = f->heard ? 0 : silent + 1;
            if (f->heard) wait_s = BACKOFF_S;
            /* one that ends early, or that is none, is no reason to stop */
            if (rc == SL_FORMAT || rc == SL_ARG) rc = SL_OK;
        }
        if (f->ended) return SL_OK;
        if (rc && !goes_on(f, rc, patience_s)) return rc;
        if (!asked && !told && !f->p->quiet) {
            sl_progress_end(f->p);
            sl_complain("%s; going on when it answers", err->msg);
            told = true;
        }
        if ((rc = sl_remote_sleep(f->r, wait_s, err))) return rc;
        wait_s = fmin(wait_s * 2, BACKOFF_MAX_S);
    }
}

sl_code sl_follow(sl_remote *r, sl_progress *p, uint64_t number, const char *id, json_t **video,
                  sl_err *err)
{
    follower f = {.r = r, .p = p, .number = number, .news_ns = sl_now_ns()};
    const double patience_s = r->retry_s;
    const bool quiet = r->quiet;
    sl_err own = {0};
    snprintf(f.path, sizeof f.path, "/v1/videos/%s", id);
    r->retry_s = 0; /* tries are counted here */
    r->quiet = true;
    sl_code rc = follow(&f, patience_s, err ? err : &own);
    r->retry_s = patience_s;
    r->quiet = quiet;
    sl_sse_free(&f.sse);
    if (rc) json_decref(f.video);
    else *video = f.video;
    return rc;
}
