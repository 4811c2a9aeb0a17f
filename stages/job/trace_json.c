/* trace_json.c - a report's spans as a trace in Chrome's format. */
#include "stages/job/trace_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"
#include "common/path.h"

/* Processes of the trace: numbers that viewers want, the first for the client. */
enum { CLIENT = 1, FIRST_STAGE = 2, PROCESSES = FIRST_STAGE + SL_ROLES_MOST };

/* Families of tracks in a process. A family has as many tracks as events overlap. */
typedef enum { OF_JOBS, OF_WORK, OF_WAITS, OF_STEPS, OF_RANKS, FAMILIES } family;
static const char *const FAMILY[FAMILIES] = {"jobs", "work", "waiting", "steps", "ranks"};
#define TRACKS 1000 /* numbers of a family's tracks; what needs more shares the last */

typedef struct {
    int process;
    family of;
    int64_t t0_ns, t1_ns;
    json_t *event; /* without tid */
} entry;

typedef struct {
    const sl_report *r;
    const sl_report_job *only; /* NULL: all jobs */
    int64_t a_ns, b_ns;        /* the time of the jobs shown */
    int64_t *ends_ns;          /* of each job of the report */
    size_t count, capacity;
    entry *entries;
    bool bad; /* no memory */
} trace;

static double us(int64_t ns)
{
    return (double)ns * 1e-3;
}

/* ---- events ---- */

/* One event; takes `args`. */
static void add(trace *t, int process, family of, const char *name, const char *category,
                int64_t t0_ns, int64_t t1_ns, json_t *args)
{
    if (t->count == t->capacity) {
        size_t more = t->capacity ? 2 * t->capacity : 256;
        entry *at = realloc(t->entries, more * sizeof *at);
        if (at) t->entries = at, t->capacity = more;
    }
    json_t *event = json_pack("{s:s, s:s, s:s, s:f, s:f, s:i, s:o}", "name", name, "cat", category,
                              "ph", "X", "ts", us(t0_ns - t->a_ns), "dur", us(t1_ns - t0_ns), "pid",
                              process, "args", args ? args : json_object());
    if (!event || t->count == t->capacity) {
        t->bad = true;
        json_decref(event);
        return;
    }
    t->entries[t->count++] = (entry){process, of, t0_ns, t1_ns, event};
}

/* A message may have been cut within a character. */
static json_t *text(const char *s)
{
    json_t *t = json_string(s);
    return t ? t : json_string("?");
}

/* What the job is called: its folder, as in the log; before it has one its number. */
static json_t *name_of(const sl_report_job *j)
{
    if (*j->job->dir) return text(sl_path_last(j->job->dir));
    return json_sprintf("%llu", (unsigned long long)j->job->id);
}

static const sl_report_job *job_of(const trace *t, uint64_t id)
{
    if (t->only) return t->only->job->id == id ? t->only : NULL;
    for (int i = 0; i < t->r->count; i++)
        if (t->r->jobs[i].job->id == id) return &t->r->jobs[i];
    return NULL;
}

static int64_t end_of_job(const trace *t, const sl_report_job *j)
{
    return t->ends_ns[j - t->r->jobs];
}

/* When each job ended; one that still runs lasts until what was heard of it last. */
static void find_ends(trace *t)
{
    for (int i = 0; i < t->r->count; i++) t->ends_ns[i] = t->r->jobs[i].t0_ns;
    for (size_t i = 0; i < t->r->trace.count; i++) {
        const sl_span *s = &t->r->trace.spans[i];
        const sl_report_job *j = s->job ? job_of(t, s->job) : NULL;
        if (j && s->t1_ns > end_of_job(t, j)) t->ends_ns[j - t->r->jobs] = s->t1_ns;
    }
    for (int i = 0; i < t->r->count; i++)
        if (t->r->jobs[i].t1_ns >= t->r->jobs[i].t0_ns) t->ends_ns[i] = t->r->jobs[i].t1_ns;
}

static int process_of(const char *stage)
{
    int role = sl_role_by_name(stage);
    return role < 0 ? CLIENT : FIRST_STAGE + role;
}

static void add_spans(trace *t)
{
    for (size_t i = 0; i < t->r->trace.count; i++) {
        const sl_span *s = &t->r->trace.spans[i];
        const sl_report_job *j = job_of(t, s->job);
        if (s->job && !j) continue;
        int64_t a = j ? j->t0_ns : t->a_ns, b = j ? end_of_job(t, j) : t->b_ns;
        if (s->t0_ns > a) a = s->t0_ns;
        if (s->t1_ns < b) b = s->t1_ns;
        if (a > b) continue;
        const bool waits =
            s->kind == SL_SPAN_QUEUE || s->kind == SL_SPAN_WAIT || s->kind == SL_SPAN_TURN;
        const char *kind = sl_span_kind_name(s->kind);
        add(t, process_of(s->stage), waits ? OF_WAITS : OF_WORK, kind, kind, a, b,
            j ? json_pack("{s:o}", "job", name_of(j)) : NULL);
    }
}

static json_t *branch(int computed, double metric)
{
    if (computed < 0) return json_null();
    return json_pack("{s:b, s:o}", "computed", computed, "metric",
                     isfinite(metric) ? json_real(metric) : json_null());
}

static int64_t end_of(const sl_report_step *s)
{
    return s->t0_ns + (int64_t)(s->seconds * 1e9);
}

static void add_steps(trace *t, const sl_report_job *j, int process)
{
    for (int i = 0; i < j->job->spec.steps; i++) {
        const sl_report_step *s = &j->steps[i];
        char name[32];
        if (!s->t0_ns) continue; /* not done, or not heard of */
        snprintf(name, sizeof name, "step %d", i + 1);
        add(t, process, OF_STEPS, name, "step", s->t0_ns, end_of(s),
            json_pack("{s:o, s:i, s:o, s:o}", "job", name_of(j), "step", i + 1, "cond",
                      branch(s->cond_computed, s->cond_metric), "uncond",
                      branch(s->uncond_computed, s->uncond_metric)));
    }
}

static void add_ranks(trace *t, const sl_report_job *j, int process)
{
    int64_t a = INT64_MAX, b = INT64_MIN;
    for (int i = 0; i < j->job->spec.steps; i++) {
        if (!j->steps[i].t0_ns) continue;
        if (j->steps[i].t0_ns < a) a = j->steps[i].t0_ns;
        if (end_of(&j->steps[i]) > b) b = end_of(&j->steps[i]);
    }
    for (int i = 0; i < SL_RANKS && a <= b; i++) {
        const sl_report_rank *k = &j->ranks[i];
        char name[64];
        if (!k->attempts) continue;
        snprintf(name, sizeof name, "rank %d on %.40s", i, t->r->rank_device[i]);
        add(t, process, OF_RANKS, name, "rank", a, b,
            json_pack("{s:o, s:i, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:I, s:I}", "job",
                      name_of(j), "instance", i, "device", t->r->rank_device[i], "attempts",
                      k->attempts, "team", k->team, "steps", k->steps, "rows", sl_report_rows(k),
                      "step_s", k->step_s, "computing", sl_report_computing(k), "exchange",
                      k->exchange_s, "waiting", k->wait_s, "sent_bytes", (json_int_t)k->sent_bytes,
                      "device_bytes", (json_int_t)k->device_bytes));
    }
}

static void add_job(trace *t, const sl_report_job *j)
{
    const sl_job *s = &j->job->spec;
    char size[48];
    snprintf(size, sizeof size, "%dx%dx%d", s->width, s->height, s->frames);
    json_t *name = name_of(j);
    add(t, CLIENT, OF_JOBS, name ? json_string_value(name) : "job", "job", j->t0_ns,
        end_of_job(t, j),
        json_pack("{s:O, s:s, s:o, s:o, s:o, s:s, s:i, s:o}", "job", name, "status",
                  j->finished ? sl_report_status(j) : "running", "message", text(j->message),
                  "output", text(s->output), "prompt", text(s->prompt), "size", size, "steps",
                  s->steps, "seed", json_sprintf("%llu", (unsigned long long)s->seed)));
    json_decref(name);
    for (int role = 0; role < sl_role_count(); role++) {
        if (!sl_role_has_teams((sl_role)role)) continue;
        add_steps(t, j, FIRST_STAGE + role);
        add_ranks(t, j, FIRST_STAGE + role);
    }
}

/* ---- tracks ---- */

static int by_track_and_time(const void *x, const void *y)
{
    const entry *a = x, *b = y;
    if (a->process != b->process) return a->process < b->process ? -1 : 1;
    if (a->of != b->of) return a->of < b->of ? -1 : 1;
    if (a->t0_ns != b->t0_ns) return a->t0_ns < b->t0_ns ? -1 : 1;
    return a->t1_ns < b->t1_ns ? -1 : a->t1_ns > b->t1_ns;
}

static json_t *metadata(const char *name, int process, int track, const char *key, json_t *value)
{
    return json_pack("{s:s, s:s, s:i, s:i, s:{s:o}}", "name", name, "ph", "M", "pid", process,
                     "tid", track, "args", key, value);
}

static void name_process(const trace *t, json_t *events, int process)
{
    const int role = process - FIRST_STAGE;
    const char *device = "";
    if (role >= 0)
        device = t->only && *t->only->device[role] ? t->only->device[role] : t->r->device[role];
    json_array_append_new(events,
                          metadata("process_name", process, 0, "name",
                                   json_string(role < 0 ? "client" : sl_role_name((sl_role)role))));
    json_array_append_new(
        events, metadata("process_sort_index", process, 0, "sort_index",
                         json_integer(role < 0 ? process : FIRST_STAGE + sl_role_place(role))));
    if (*device)
        json_array_append_new(
            events, metadata("process_labels", process, 0, "labels", json_string(device)));
}

static void name_track(json_t *events, const entry *e, int track)
{
    const int number = track % TRACKS;
    const char *name = FAMILY[e->of];
    const int id = track + 1;
    json_array_append_new(
        events, metadata("thread_name", e->process, id, "name",
                         number ? json_sprintf("%s %d", name, number + 1) : json_string(name)));
    json_array_append_new(events, metadata("thread_sort_index", e->process, id, "sort_index",
                                           json_integer((json_int_t)track)));
}

/* The entries in order, each in the first track of its family that is free by then; processes and
 * tracks are named before their first event. Takes the entries' events. */
static json_t *lay_out(trace *t)
{
    json_t *events = json_array();
    int64_t free_ns[TRACKS];
    int tracks = 0;
    if (t->count) qsort(t->entries, t->count, sizeof *t->entries, by_track_and_time);
    for (size_t i = 0; i < t->count; i++) {
        const entry *e = &t->entries[i], *before = i ? e - 1 : NULL;
        int n = 0;
        if (!before || before->process != e->process) name_process(t, events, e->process);
        if (!before || before->process != e->process || before->of != e->of) tracks = 0;
        while (n < tracks && free_ns[n] > e->t0_ns && n + 1 < TRACKS) n++;
        if (n == tracks) {
            name_track(events, e, (int)e->of * TRACKS + n);
            tracks++;
        }
        free_ns[n] = e->t1_ns;
        json_object_set_new(e->event, "tid", json_integer((int)e->of * TRACKS + n + 1));
        json_array_append_new(events, e->event);
    }
    return events;
}

sl_code sl_report_trace_write(const sl_report *r, const sl_report_job *job, const char *path,
                              sl_err *err)
{
    trace t = {.r = r, .only = job, .a_ns = INT64_MAX, .b_ns = INT64_MIN};
    if (!(t.ends_ns = malloc((size_t)r->count * sizeof *t.ends_ns + 1)))
        return sl_fail(err, SL_NOMEM, "trace: no memory");
    find_ends(&t);
    for (int i = 0; i < r->count; i++) {
        const sl_report_job *j = &r->jobs[i];
        if (job && j != job) continue;
        if (j->t0_ns < t.a_ns) t.a_ns = j->t0_ns;
        if (end_of_job(&t, j) > t.b_ns) t.b_ns = end_of_job(&t, j);
    }
    for (int i = 0; i < r->count; i++)
        if (!r->jobs[i].refused && (!job || &r->jobs[i] == job)) add_job(&t, &r->jobs[i]);
    add_spans(&t);
    json_t *events = lay_out(&t), *root = NULL;
    free(t.entries);
    free(t.ends_ns);
    if (!t.bad)
        root = json_pack("{s:O, s:s, s:{s:s, s:s, s:I}}", "traceEvents", events, "displayTimeUnit",
                         "ms", "otherData", "program", "sluice", "clock", "CLOCK_MONOTONIC",
                         "t0_ns", (json_int_t)(r->count ? t.a_ns : 0));
    json_decref(events);
    return sl_json_write(root, path, JSON_COMPACT | JSON_REAL_PRECISION(15), "trace", err);
}
