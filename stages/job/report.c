/* report.c - where a job's time went: collected from spans and steps, written as JSON,
 * printed as a small table. */
#include "stages/job/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "stages/job/files.h"

sl_code sl_report_init(sl_report *r, const sl_request *jobs, int count, int64_t t0_ns, sl_err *err)
{
    memset(r, 0, sizeof *r);
    if (!(r->jobs = calloc((size_t)count, sizeof *r->jobs)))
        return sl_fail(err, SL_NOMEM, "report: no memory");
    r->count = count;
    for (int i = 0; i < r->count; i++) {
        sl_report_job *j = &r->jobs[i];
        j->job = &jobs[i];
        j->t0_ns = t0_ns;
        if (!(j->steps = calloc((size_t)j->job->spec.steps, sizeof *j->steps)))
            return sl_fail(err, SL_NOMEM, "report: no memory");
        for (int s = 0; s < j->job->spec.steps; s++)
            j->steps[s] = (sl_report_step){0, NAN, NAN, -1, -1};
    }
    return SL_OK;
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

static int role_of(const char *stage)
{
    for (int i = 0; i < SL_ROLE_COUNT; i++)
        if (!strcmp(sl_role_name((sl_role)i), stage)) return i;
    return -1;
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
        j->steps[m->step.step] =
            (sl_report_step){m->step.seconds, m->step.cond_metric, m->step.uncond_metric,
                             m->step.cond_computed, m->step.uncond_computed};
    } else if (m->type == SL_MSG_STAGE) {
        int role = role_of(m->stage.stage);
        sl_report_job *j = sl_report_find(r, m->stage.job);
        if (role < 0) return;
        snprintf(r->device[role], sizeof r->device[role], "%s", m->stage.device);
        if (j) snprintf(j->device[role], sizeof j->device[role], "%s", m->stage.device);
        if (m->stage.weight_bytes) r->weight_bytes[role] = m->stage.weight_bytes;
        if (j && m->stage.peak_bytes > j->peak_bytes[role])
            j->peak_bytes[role] = m->stage.peak_bytes;
        if (j && m->stage.arena_bytes > j->arena_bytes[role])
            j->arena_bytes[role] = m->stage.arena_bytes;
        if (!strcmp(m->stage.event, "ended")) r->restarts++;
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
    double sums[SL_ROLE_COUNT][SL_SPAN_KIND_COUNT], client[SL_SPAN_KIND_COUNT], total, unaccounted;
} times;

static void add_up(const sl_report *r, const sl_report_job *j, times *t)
{
    size_t n;
    sl_span *s = spans_of(r, j, &n);
    int64_t sums[SL_SPAN_KIND_COUNT];
    memset(t, 0, sizeof *t);
    t->total = (double)(j->t1_ns - j->t0_ns) * 1e-9;
    if (!s) return;
    for (int role = 0; role < SL_ROLE_COUNT; role++) {
        sl_span_sums_ns(s, n, j->job->id, sl_role_name((sl_role)role), j->t0_ns, j->t1_ns, sums);
        for (int k = 0; k < SL_SPAN_KIND_COUNT; k++) t->sums[role][k] = (double)sums[k] * 1e-9;
    }
    sl_span_sums_ns(s, n, j->job->id, "client", j->t0_ns, j->t1_ns, sums);
    for (int k = 0; k < SL_SPAN_KIND_COUNT; k++) t->client[k] = (double)sums[k] * 1e-9;
    t->unaccounted = (double)(j->t1_ns - j->t0_ns -
                              sl_span_covered_ns(s, n, j->job->id, NULL, j->t0_ns, j->t1_ns)) *
                     1e-9;
    free(s);
}

static const char *status_of(const sl_report_job *j)
{
    return j->code == SL_OK ? "done" : j->code == SL_CANCELLED ? "cancelled" : "failed";
}

static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *branch(int computed, double metric)
{
    if (computed < 0) return json_null();
    return json_pack("{s:b, s:o}", "computed", computed, "metric", number(metric));
}

static json_t *job_json(const sl_report *r, const sl_report_job *j)
{
    const sl_job *s = &j->job->spec;
    times t;
    json_t *stages = json_object(), *steps = json_array();
    add_up(r, j, &t);
    for (int i = 0; i < SL_ROLE_COUNT; i++) {
        if (!*r->device[i]) continue;
        const char *device = *j->device[i] ? j->device[i] : r->device[i];
        json_object_set_new(
            stages, sl_role_name((sl_role)i),
            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:I, s:I, s:I}", "queued",
                      t.sums[i][SL_SPAN_QUEUE], "loading",
                      t.sums[i][SL_SPAN_START] + t.sums[i][SL_SPAN_LOAD], "computing",
                      t.sums[i][SL_SPAN_COMPUTE], "handing_over", t.sums[i][SL_SPAN_HANDOVER],
                      "waiting", t.sums[i][SL_SPAN_WAIT], "spooling", t.sums[i][SL_SPAN_SPOOL],
                      "turn", t.sums[i][SL_SPAN_TURN], "device", device, "peak_bytes",
                      (json_int_t)j->peak_bytes[i], "arena_bytes", (json_int_t)j->arena_bytes[i],
                      "weight_bytes", (json_int_t)r->weight_bytes[i]));
    }
    for (int i = 0; i < s->steps; i++)
        json_array_append_new(
            steps, json_pack("{s:f, s:o, s:o}", "seconds", j->steps[i].seconds, "cond",
                             branch(j->steps[i].cond_computed, j->steps[i].cond_metric), "uncond",
                             branch(j->steps[i].uncond_computed, j->steps[i].uncond_metric)));
    return json_pack("{s:s, s:s, s:s, s:o, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s, s:f, s:o, s:o, "
                     "s:f, s:f, s:f, s:i, s:s, s:I}",
                     "status", status_of(j), "message", j->message, "prompt", s->prompt, "seed",
                     json_sprintf("%llu", (unsigned long long)s->seed), "width", s->width, "height",
                     s->height, "frames", s->frames, "fps", s->fps, "step_count", s->steps,
                     "guidance", s->guidance, "shift", s->shift, "sampler", s->sampler, "fbcache",
                     s->fbcache, "stages", stages, "steps", steps, "client",
                     t.client[SL_SPAN_START] + t.client[SL_SPAN_SPOOL], "total", t.total,
                     "unaccounted", t.unaccounted, "restarts", r->restarts, "output", s->output,
                     "output_bytes", (json_int_t)j->bytes);
}

sl_code sl_report_write(const sl_report *r, const sl_report_job *job, const char *path, sl_err *err)
{
    json_t *root;
    if (job) root = job_json(r, job);
    else {
        json_t *all = json_array();
        for (int i = 0; i < r->count; i++) json_array_append_new(all, job_json(r, &r->jobs[i]));
        root = json_pack("{s:o}", "jobs", all);
    }
    errno = 0;
    int bad = !root || json_dump_file(root, path, JSON_INDENT(2) | JSON_REAL_PRECISION(9)),
        why = errno;
    json_decref(root);
    if (!bad) return SL_OK;
    if (!sl_regular_file(path, NULL)) unlink(path); /* half a report is none */
    return sl_fail_errno(err, why ? why : EIO, "report %s", path);
}

void sl_report_print(const sl_report *r, const sl_report_job *j, FILE *to)
{
    const sl_job *s = &j->job->spec;
    int hits = 0, forwards = 0;
    times t;
    add_up(r, j, &t);
    for (int i = 0; i < s->steps; i++) {
        forwards += (j->steps[i].cond_computed >= 0) + (j->steps[i].uncond_computed >= 0);
        hits += (j->steps[i].cond_computed == 0) + (j->steps[i].uncond_computed == 0);
    }
    if (j->code) {
        fprintf(to, "%s: %s\n", status_of(j), j->message);
        return;
    }
    fprintf(to, "\n%s  %dx%d, %d frames at %d fps, %d steps, seed %llu, %.2f MB\n", s->output,
            s->width, s->height, s->frames, s->fps, s->steps, (unsigned long long)s->seed,
            (double)j->bytes * 1e-6);
    fprintf(to, "  %-8s %-7s %9s %9s %9s %9s %9s %9s %10s\n", "stage", "device", "loading",
            "queued", "turn", "computing", "waiting", "handover", "peak MB");
    for (int i = 0; i < SL_ROLE_COUNT; i++)
        if (*r->device[i])
            fprintf(to, "  %-8s %-7s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %10.1f\n",
                    sl_role_name((sl_role)i), *j->device[i] ? j->device[i] : r->device[i],
                    t.sums[i][SL_SPAN_START] + t.sums[i][SL_SPAN_LOAD], t.sums[i][SL_SPAN_QUEUE],
                    t.sums[i][SL_SPAN_TURN], t.sums[i][SL_SPAN_COMPUTE], t.sums[i][SL_SPAN_WAIT],
                    t.sums[i][SL_SPAN_HANDOVER], (double)j->peak_bytes[i] * 1e-6);
    fprintf(to, "  total %.3f s, unaccounted %.3f s (%.2f %%)", t.total, t.unaccounted,
            t.total > 0 ? 100 * t.unaccounted / t.total : 0);
    if (s->fbcache > 0) fprintf(to, "; cache skipped %d of %d forwards", hits, forwards);
    if (r->restarts) fprintf(to, "; %d restart%s", r->restarts, r->restarts == 1 ? "" : "s");
    fprintf(to, "\n");
}
