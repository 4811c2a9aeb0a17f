/* report.c - where a job's time went: collected from spans and steps, written as JSON,
 * printed as a small table. */
#include "stages/job/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/conf.h"
#include "common/json.h"
#include "stages/job/lora.h"
#include "stages/job/report_table.h"

static sl_code add_job(sl_report *r, const sl_request *job, int64_t t0_ns, sl_err *err)
{
    sl_report_job *j = &r->jobs[r->count++];
    const int steps = job->spec.steps > 0 ? job->spec.steps : 0;
    *j = (sl_report_job){.job = job, .t0_ns = t0_ns};
    if (!(j->steps = calloc((size_t)steps + 1, sizeof *j->steps)))
        return sl_fail(err, SL_NOMEM, "report: no memory");
    for (int s = 0; s < steps; s++)
        j->steps[s] = (sl_report_step){
            .cond_metric = NAN, .uncond_metric = NAN, .cond_computed = -1, .uncond_computed = -1};
    return SL_OK;
}

sl_code sl_report_init(sl_report *r, const sl_request *jobs, int count, int64_t t0_ns, sl_err *err)
{
    sl_code rc = SL_OK;
    memset(r, 0, sizeof *r);
    if (!(r->jobs = calloc((size_t)count + 1, sizeof *r->jobs)))
        return sl_fail(err, SL_NOMEM, "report: no memory");
    r->room = count + 1;
    for (int i = 0; i < count && !rc; i++) rc = add_job(r, &jobs[i], t0_ns, err);
    return rc;
}

sl_code sl_report_add(sl_report *r, sl_report_job **out, const sl_request *job, int64_t t0_ns,
                      sl_err *err)
{
    if (r->count == r->room) {
        sl_report_job *more = realloc(r->jobs, 2 * (size_t)r->room * sizeof *more);
        if (!more) return sl_fail(err, SL_NOMEM, "report: no memory");
        r->jobs = more;
        r->room *= 2;
    }
    sl_code rc = add_job(r, job, t0_ns, err);
    *out = &r->jobs[r->count - 1];
    return rc;
}

void sl_report_free(sl_report *r)
{
    for (int i = 0; i < r->count; i++) free(r->jobs[i].steps);
    free(r->jobs);
    sl_trace_free(&r->trace);
    memset(r, 0, sizeof *r);
}

sl_report_job *sl_report_find(sl_report *r, uint64_t id)
{
    for (int i = 0; i < r->count; i++)
        if (r->jobs[i].job->id == id) return &r->jobs[i];
    return NULL;
}

static uint64_t *number_in(sl_msg *m)
{
    switch (m->type) {
    case SL_MSG_PROGRESS: return &m->progress.job;
    case SL_MSG_STEP: return &m->step.job;
    case SL_MSG_SPAN: return &m->span.job;
    case SL_MSG_STAGE: return &m->stage.job;
    case SL_MSG_SHARE: return &m->share.job;
    default: return NULL;
    }
}

bool sl_report_own(const sl_report *r, sl_msg *m)
{
    uint64_t *number = number_in(m);
    if (!number || !*number) return true;
    for (int i = 0; i < r->count; i++)
        if (r->jobs[i].number == *number) {
            *number = r->jobs[i].job->id;
            return true;
        }
    return false;
}

/* News of a process: what it is, that it began with a job or is through with it, that it ended. */
static void on_stage(sl_report *r, const sl_msg_stage *m)
{
    int role = sl_role_by_name(m->stage);
    sl_report_job *j = sl_report_find(r, m->job);
    if (role < 0) return;
    if (sl_role_has_teams((sl_role)role) && m->instance < SL_RANKS) {
        const uint32_t bit = 1u << m->instance;
        snprintf(r->rank_device[m->instance], SL_STR64, "%s", m->device);
        if (j && !strcmp(m->event, "leads")) j->team = bit;
        if (j && !strcmp(m->event, "joins")) j->team |= bit;
        if (j && !strcmp(m->event, "joins")) return; /* the leader's device is the job's */
    }
    if ((int)m->instance >= r->instances[role] && m->instance < SL_CONF_SEATS)
        r->instances[role] = (int)m->instance + 1;
    snprintf(r->device[role], sizeof r->device[role], "%s", m->device);
    if (j) snprintf(j->device[role], sizeof j->device[role], "%s", m->device);
    if (m->weight_bytes) r->weight_bytes[role] = m->weight_bytes;
    if (j && m->peak_bytes > j->peak_bytes[role]) j->peak_bytes[role] = m->peak_bytes;
    if (j && m->arena_bytes > j->arena_bytes[role]) j->arena_bytes[role] = m->arena_bytes;
    if (!strcmp(m->event, "ended")) r->restarts++;
}

static void on_share(sl_report *r, const sl_msg_share *m)
{
    sl_report_job *j = sl_report_find(r, m->job);
    if (!j || m->instance >= SL_RANKS) return;
    sl_report_rank *k = &j->ranks[m->instance];
    k->attempts++;
    if ((int)m->size > k->team) k->team = (int)m->size;
    k->steps += (int)m->steps;
    k->rows += m->rows * m->steps;
    k->step_s += m->step_s;
    k->exchange_s += m->exchange_s;
    k->wait_s += m->wait_s;
    k->sent_bytes += m->sent_bytes;
    if (m->device_bytes > k->device_bytes) k->device_bytes = m->device_bytes;
}

int sl_report_team(const sl_report_job *j)
{
    int n = 0;
    for (uint32_t left = j->team; left; left &= left - 1) n++;
    return n;
}

void sl_report_message(sl_report *r, const sl_msg *m)
{
    sl_err err = {0};
    if (m->type == SL_MSG_SPAN) {
        sl_span s = sl_span_make(m->span.job, m->span.stage, (sl_span_kind)m->span.kind,
                                 m->span.t0_ns, m->span.t1_ns);
        if (m->span.kind < SL_SPAN_KIND_COUNT) sl_trace_add(&r->trace, &s, &err);
    } else if (m->type == SL_MSG_STEP) {
        sl_report_job *j = sl_report_find(r, m->step.job);
        if (!j || m->step.step >= (uint32_t)j->job->spec.steps) return;
        j->steps[m->step.step] = (sl_report_step){true,
                                                  m->step.t0_ns,
                                                  m->step.seconds,
                                                  m->step.cond_metric,
                                                  m->step.uncond_metric,
                                                  m->step.cond_computed,
                                                  m->step.uncond_computed};
    } else if (m->type == SL_MSG_STAGE) {
        on_stage(r, &m->stage);
    } else if (m->type == SL_MSG_SHARE) {
        on_share(r, &m->share);
    }
}

/* Spans of the job, and of the processes while it was there (starting, loading), as one
 * list; the caller frees. */
static sl_span *spans_of(const sl_report *r, const sl_report_job *j, size_t *count)
{
    sl_span *s = malloc((r->trace.count + 1) * sizeof *s);
    *count = 0;
    for (size_t i = 0; s && i < r->trace.count; i++)
        if (r->trace.spans[i].job == j->job->id || !r->trace.spans[i].job) {
            s[*count] = r->trace.spans[i];
            s[(*count)++].job = j->job->id;
        }
    return s;
}

typedef struct {
    double sums[SL_ROLES_MOST][SL_SPAN_KIND_COUNT], client[SL_SPAN_KIND_COUNT], total, unaccounted;
    double loading[SL_ROLES_MOST]; /* some instance of the role started, or read weights */
} times;

/* Seconds in which some process of the stage started or loaded; instances do at the same time. `s`
 * is changed: those spans come to the front. */
static double loading_of(sl_span *s, size_t n, const sl_report_job *j, const char *stage)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i].kind != SL_SPAN_START && s[i].kind != SL_SPAN_LOAD) continue;
        const sl_span t = s[count];
        s[count++] = s[i];
        s[i] = t;
    }
    return (double)sl_span_covered_ns(s, count, j->job->id, stage, j->t0_ns, j->t1_ns) * 1e-9;
}

static void add_up(const sl_report *r, const sl_report_job *j, times *t)
{
    size_t n;
    sl_span *s = spans_of(r, j, &n);
    int64_t sums[SL_SPAN_KIND_COUNT];
    memset(t, 0, sizeof *t);
    t->total = (double)(j->t1_ns - j->t0_ns) * 1e-9;
    if (!s) return;
    for (int role = 0; role < sl_role_count(); role++) {
        sl_span_sums_ns(s, n, j->job->id, sl_role_name((sl_role)role), j->t0_ns, j->t1_ns, sums);
        for (int k = 0; k < SL_SPAN_KIND_COUNT; k++) t->sums[role][k] = (double)sums[k] * 1e-9;
        t->loading[role] = loading_of(s, n, j, sl_role_name((sl_role)role));
    }
    sl_span_sums_ns(s, n, j->job->id, "client", j->t0_ns, j->t1_ns, sums);
    for (int k = 0; k < SL_SPAN_KIND_COUNT; k++) t->client[k] = (double)sums[k] * 1e-9;
    t->unaccounted = (double)(j->t1_ns - j->t0_ns -
                              sl_span_covered_ns(s, n, j->job->id, NULL, j->t0_ns, j->t1_ns)) *
                     1e-9;
    free(s);
}

const char *sl_report_status(const sl_report_job *j)
{
    return j->refused                ? "refused"
           : j->code == SL_OK        ? "done"
           : j->code == SL_CANCELLED ? "cancelled"
                                     : "failed";
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

/* Paths and messages may hold bytes that are no UTF-8: a report without them beats none. */
static json_t *text(const char *t)
{
    json_t *string = json_string(t);
    char *c, *copy = string ? NULL : strdup(t);
    for (c = copy; c && *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    if (copy) string = json_string(copy);
    free(copy);
    return string;
}

json_t *sl_report_warnings(const sl_request *job)
{
    json_t *all = json_array();
    for (const char *at = job->warnings; at && *at;) {
        const size_t n = strcspn(at, "\n");
        char *line = strndup(at, n);
        if (line) json_array_append_new(all, text(line));
        free(line);
        at += n + (at[n] == '\n');
    }
    return all;
}

static json_t *branch(int computed, double metric)
{
    if (computed < 0) return json_null();
    return json_pack("{s:b, s:o}", "computed", computed, "metric", number(metric));
}

/* Both are measured by clocks of their own. */
double sl_report_computing(const sl_report_rank *k)
{
    const double s = k->step_s - k->exchange_s - k->wait_s;
    return s > 0 ? s : 0;
}

double sl_report_rows(const sl_report_rank *k)
{
    return k->steps ? k->rows / k->steps : 0;
}

static json_t *ranks_json(const sl_report *r, const sl_report_job *j)
{
    json_t *all = json_array();
    for (int i = 0; i < SL_RANKS; i++) {
        const sl_report_rank *k = &j->ranks[i];
        if (!k->attempts) continue;
        json_array_append_new(
            all, json_pack("{s:i, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:I, s:I}", "instance", i,
                           "device", r->rank_device[i], "attempts", k->attempts, "team", k->team,
                           "steps", k->steps, "rows", sl_report_rows(k), "computing",
                           sl_report_computing(k), "exchange", k->exchange_s, "waiting", k->wait_s,
                           "sent_bytes", (json_int_t)k->sent_bytes, "device_bytes",
                           (json_int_t)k->device_bytes));
    }
    return all;
}

/* The hand-overs that a replay took; NULL: it is none. */
static json_t *from_dump(const sl_request *q)
{
    json_t *list = *q->replay_dir ? json_array() : NULL;
    for (int h = 0; list && h < sl_handover_count(); h++)
        if (q->from_dump >> h & 1) json_array_append_new(list, json_string(SL_HANDOVER[h].name));
    return list;
}

/* Of a job that was refused, whose values may be nonsense. */
static json_t *refused_json(const sl_report_job *j)
{
    return json_pack("{s:i, s:i, s:s, s:o}", "version", SL_REPORT_VERSION, "line", j->line,
                     "status", sl_report_status(j), "message", text(j->message));
}

json_t *sl_report_json(const sl_report *r, const sl_report_job *j)
{
    if (j->refused) return refused_json(j);
    const sl_job *s = &j->job->spec;
    times t;
    json_t *stages = json_object(), *steps = json_array();
    add_up(r, j, &t);
    for (int k = 0; k < sl_role_count(); k++) {
        const sl_role i = sl_role_in_order(k);
        if (!*r->device[i]) continue;
        const char *device = *j->device[i] ? j->device[i] : r->device[i];
        json_object_set_new(
            stages, sl_role_name(i),
            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:I, s:I, s:I}", "queued",
                      t.sums[i][SL_SPAN_QUEUE], "loading", t.loading[i], "computing",
                      t.sums[i][SL_SPAN_COMPUTE], "handing_over", t.sums[i][SL_SPAN_HANDOVER],
                      "waiting", t.sums[i][SL_SPAN_WAIT], "spooling", t.sums[i][SL_SPAN_SPOOL],
                      "turn", t.sums[i][SL_SPAN_TURN], "device", device, "peak_bytes",
                      (json_int_t)j->peak_bytes[i], "arena_bytes", (json_int_t)j->arena_bytes[i],
                      "weight_bytes", (json_int_t)r->weight_bytes[i]));
    }
    for (int i = 0; i < s->steps; i++)
        if (j->steps[i].ran)
            json_array_append_new(
                steps,
                json_pack("{s:i, s:f, s:o, s:o}", "step", i + 1, "seconds", j->steps[i].seconds,
                          "cond", branch(j->steps[i].cond_computed, j->steps[i].cond_metric),
                          "uncond",
                          branch(j->steps[i].uncond_computed, j->steps[i].uncond_metric)));
    return json_pack(
        "{s:i, s:o*, s:s, s:o, s:o, s:s, s:o, s:i, s:i, s:i, s:o, s:i, s:f, s:f, s:s, s:s, s:f, "
        "s:o*, s:o*, s:o, s:o, s:o, s:f, s:f, s:f, s:i, s:o, s:o*, s:o*, s:I}",
        "version", SL_REPORT_VERSION, "line", j->job->line ? json_integer(j->job->line) : NULL,
        "status", sl_report_status(j), "message", text(j->message), "warnings",
        sl_report_warnings(j->job), "prompt", s->prompt, "seed",
        json_sprintf("%llu", (unsigned long long)s->seed), "width", s->width, "height", s->height,
        "frames", s->frames, "fps", sl_json_number(s->fps), "step_count", s->steps, "guidance",
        s->guidance, "shift", s->shift, "sampler", s->sampler, "precision", s->precision, "fbcache",
        s->fbcache, "lora", sl_lora_json(s->lora), "lora_2", sl_lora_json(s->lora_2), "stages",
        stages, "ranks", ranks_json(r, j), "steps", steps, "client",
        t.client[SL_SPAN_START] + t.client[SL_SPAN_SPOOL], "total", t.total, "unaccounted",
        t.unaccounted, "restarts", r->restarts, "output",
        j->job->no_video ? json_null() : text(s->output), "from_dump", from_dump(j->job), "kept",
        *j->kept ? text(j->kept) : NULL, "output_bytes", (json_int_t)j->bytes);
}

sl_code sl_report_write(const sl_report *r, const sl_report_job *job, const char *path, sl_err *err)
{
    return sl_json_write(sl_report_json(r, job), path, SL_REPORT_JSON, "report", err);
}

void sl_report_line(const sl_report *r, const sl_report_job *j, FILE *to)
{
    json_t *report = sl_report_json(r, j);
    if (!json_dumpf(report, to, JSON_COMPACT | JSON_REAL_PRECISION(9))) fputc('\n', to);
    fflush(to);
    json_decref(report);
}

void sl_report_print(const sl_report *r, const sl_report_job *j, FILE *to)
{
    json_t *report = sl_report_json(r, j);
    /* a message of any length in one line; the video's name as it was given */
    if (j->code) fprintf(to, "%s: %s\n", sl_report_status(j), j->message);
    else if (j->job->no_video)
        sl_report_print_json(report, *j->job->dump_dir ? j->job->dump_dir : "no video", to);
    else sl_report_print_json(report, j->job->spec.output, to);
    json_decref(report);
}
