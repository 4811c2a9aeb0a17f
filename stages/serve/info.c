/* info.c - what the server says of itself: model, defaults, health, metrics, the page. */
#include "stages/serve/routes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/resource.h>

#include "common/json.h"
#include "stages/job/check.h"
#include "stages/job/defaults.h"
#include "stages/job/options.h"
#include "stages/serve/form.h"
#include "stages/serve/page.h"

static json_t *model_json(const sl_server *s)
{
    return json_pack("{s:s, s:s, s:i, s:s}", "id", s->name, "object", "model", "created", 0,
                     "owned_by", "sluice");
}

void sl_on_models(sl_ask *a)
{
    sl_answer_json(a, 200,
                   json_pack("{s:s, s:[o]}", "object", "list", "data", model_json(a->server)));
}

void sl_on_model(sl_ask *a)
{
    if (strcmp(a->id, a->server->name))
        sl_answer_error(a, 404, "model_not_found", "model",
                        "model \"%s\" is not served here, \"%s\" is", a->id, a->server->name);
    else sl_answer_json(a, 200, model_json(a->server));
}

static json_t *value_of(const sl_request *r, const sl_option *o)
{
    const char *at = (const char *)r + o->at;
    switch (o->kind) {
    case SL_OPTION_INT: return json_integer(*(const int *)at);
    case SL_OPTION_I64: return json_integer(*(const int64_t *)at);
    case SL_OPTION_RATE: return sl_json_number(*(const double *)at);
    case SL_OPTION_REAL: return json_real(*(const double *)at);
    case SL_OPTION_TEXT: return json_string(*(char *const *)at);
    default: return json_string(at);
    }
}

/* What a job gets that says nothing of it: the checkpoint's own, else what sl_request_check puts
 * in. A size is the picture's, or the checkpoint's. */
static json_t *defaults_json(const sl_server *s)
{
    const sl_request *own = &s->defaults;
    sl_request r = {.max_area = SL_DEFAULT_AREA};
    json_t *d = json_object();
    const sl_option *o;
    if (sl_job_init(&r.spec, NULL)) return d;
    sl_request_complete(&r, &s->model, &s->conf);
    for (int i = 0; (o = sl_option_at(i)); i++) {
        if (o->owner != SL_OPTION_OF_MODEL) continue;
        const bool given = *((const bool *)own + o->given);
        const bool size = !strcmp(o->name, "width") || !strcmp(o->name, "height"),
                   area = !strcmp(o->name, "max-area") && own->has_width;
        if (given || (!size && !area))
            json_object_set_new(d, o->name, value_of(given ? own : &r, o));
    }
    json_object_set_new(d, "crf", json_integer(r.spec.crf));
    json_object_set_new(d, "precision", json_string(r.spec.precision));
    sl_job_free(&r.spec);
    return d;
}

static const char *kind_name(sl_option_kind kind)
{
    switch (kind) {
    case SL_OPTION_INT:
    case SL_OPTION_I64:
    case SL_OPTION_SEED: return "integer";
    case SL_OPTION_RATE:
    case SL_OPTION_REAL: return "number";
    case SL_OPTION_FLAG: return "boolean";
    case SL_OPTION_PARAMS: return "object";
    default: return "string";
    }
}

static json_t *options_json(void)
{
    json_t *all = json_array();
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++)
        if (sl_form_has_option(i))
            json_array_append_new(
                all, json_pack("{s:s, s:s, s:s, s:s?}", "name", o->name, "kind", kind_name(o->kind),
                               "what", o->kind == SL_OPTION_LORA ? SL_FORM_LORA : o->what, "arg",
                               o->kind == SL_OPTION_LORA ? "NAME[:STRENGTH],..." : o->arg));
    return all;
}

/* Names that a request's `lora` may have. */
static json_t *lora_json(const sl_server *s)
{
    json_t *all = json_array();
    for (int i = 0; i < s->conf.lora_count; i++)
        json_array_append_new(all, json_string(s->conf.lora[i].name));
    return all;
}

void sl_on_defaults(sl_ask *a)
{
    sl_server *s = a->server;
    pthread_rwlock_rdlock(&s->settings);
    const sl_family *f = &s->model.family;
    json_t *o = json_pack("{s:s, s:b, s:b, s:b, s:i, s:o, s:{s:I, s:i, s:i, s:I}, s:o, s:o, s:b}",
                          "model", s->name, "picture", f->picture != SL_NEVER, "picture_required",
                          f->picture == SL_ALWAYS, "last_picture", f->last_picture != SL_NEVER,
                          "edge", sl_edge(f), "defaults", defaults_json(s), "limits", "pixels",
                          (json_int_t)s->conf.limits.pixels, "frames", s->conf.limits.frames,
                          "prompt_bytes", s->conf.limits.prompt_bytes, "body_bytes",
                          (json_int_t)s->conf.serve.body_bytes, "options", options_json(), "lora",
                          lora_json(s), "tokens", s->tokens.count > 0);
    pthread_rwlock_unlock(&s->settings);
    sl_answer_json(a, 200, o);
}

void sl_on_health(sl_ask *a)
{
    sl_answer_json(a, 200, json_pack("{s:s}", "status", "ok"));
}

void sl_on_ready(sl_ask *a)
{
    const bool draining = atomic_load(&a->server->draining), up = atomic_load(&a->server->ready);
    sl_journal_counts n;
    const bool away = sl_server_shares_queue(a->server) &&
                      sl_journal_count(a->server->journal, &n, NULL) != SL_OK;
    const bool ready = up && !draining && !away;
    const char *why = draining ? "draining" : away ? "away" : up ? "ready" : "loading";
    if (!ready) a->retry_s = 5;
    sl_answer_json(a, ready ? 200 : 503, json_pack("{s:s}", "status", why));
}

/* ---- metrics ---- */

static void set_gauges(sl_ask *a)
{
    sl_server *s = a->server;
    sl_metrics *m = s->metrics;
    sl_journal_counts n = {0};
    struct rusage u;
    if (!sl_journal_count(s->journal, &n, NULL)) {
        sl_metrics_set(m, SL_METRIC_QUEUE, "", (double)n.jobs[SL_JOURNAL_QUEUED]);
        sl_metrics_set(m, SL_METRIC_RUNNING, "", (double)n.jobs[SL_JOURNAL_RUNNING]);
        sl_metrics_set(m, SL_METRIC_QUEUE_AGE, "",
                       n.oldest_queued_s ? (double)(time(NULL) - n.oldest_queued_s) : 0);
        sl_metrics_set(m, SL_METRIC_KEPT, "", (double)n.bytes);
        if (sl_server_shares_queue(s)) {
            sl_fleet_measure(s);
            sl_metrics_set(m, SL_METRIC_STUCK, "", (double)n.stuck);
            sl_metrics_set(m, SL_METRIC_GIVEN_UP, "", (double)n.given_up);
            sl_metrics_set(m, SL_METRIC_SERVERS, "", (double)n.servers);
            sl_metrics_set(m, SL_METRIC_TAKEN, "", (double)n.taken);
            sl_metrics_set(m, SL_METRIC_FENCED, "", (double)n.fenced);
        }
    }
    sl_metrics_set(m, SL_METRIC_DISK_FREE, "", (double)sl_server_free(s));
    sl_metrics_set(m, SL_METRIC_READY, "", atomic_load(&s->ready));
    sl_metrics_set(m, SL_METRIC_STREAMS, "", sl_events_count(s->events));
    sl_metrics_set(m, SL_METRIC_CONNECTIONS, "", sl_http_connections(a->http));
    sl_metrics_set(m, SL_METRIC_BUILD, "model_family=\"wan\"", 1);
    if (!getrusage(RUSAGE_SELF, &u))
        sl_metrics_set(m, SL_METRIC_CPU, "",
                       (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec));
}

void sl_on_metrics(sl_ask *a)
{
    size_t size = 0;
    set_gauges(a);
    char *text = sl_metrics_print(a->server->metrics, &size);
    sl_answer_text(a, 200, "text/plain; version=0.0.4; charset=utf-8", text, size);
}

/* ---- the page ---- */

#define POLICY                                                                                     \
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' " \
    "blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors "   \
    "'none'"

void sl_on_page(sl_ask *a)
{
    const char *path = a->route->path;
    if (!strcmp(path, "/favicon.ico"))
        sl_answer(a, 204, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
    else {
        const sl_page *p = sl_page_find(path);
        sl_answer_static(a, p->type, p->bytes, (size_t)(p->end - p->bytes), POLICY);
    }
}
