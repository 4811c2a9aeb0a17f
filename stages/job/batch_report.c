/* batch_report.c - occupancy, throughput and waits of a batch, from its spans. */
#include "stages/job/batch_report.h"

#include <stdlib.h>
#include <string.h>

#include "common/json.h"

#define LEAST 1e-3 /* part of the batch's time below which a wait is not told */

typedef struct {
    const sl_report *r;
    int64_t a_ns, b_ns;
    double seconds;
    double sums[SL_ROLES_MOST][SL_SPAN_KIND_COUNT];
    int jobs[SL_ROLES_MOST][SL_SPAN_KIND_COUNT]; /* that have such a span */
} totals;

static void find_time(totals *b)
{
    b->a_ns = INT64_MAX, b->b_ns = INT64_MIN;
    for (int i = 0; i < b->r->count; i++) {
        const sl_report_job *j = &b->r->jobs[i];
        if (j->t0_ns < b->a_ns) b->a_ns = j->t0_ns;
        if (j->finished && j->t1_ns > b->b_ns) b->b_ns = j->t1_ns;
    }
    b->seconds = b->b_ns > b->a_ns ? (double)(b->b_ns - b->a_ns) * 1e-9 : 0;
}

/* Ranks say themselves what they computed; the spans are their leader's. */
static void use_ranks(totals *b, int role)
{
    double computing = 0;
    bool any = false;
    for (int i = 0; i < b->r->count; i++)
        for (int k = 0; k < SL_RANKS; k++) {
            const sl_report_rank *rank = &b->r->jobs[i].ranks[k];
            any = any || rank->attempts;
            computing += rank->attempts ? sl_report_computing(rank) : 0;
        }
    if (any && sl_role_has_teams((sl_role)role)) b->sums[role][SL_SPAN_COMPUTE] = computing;
}

static void add_up(totals *b)
{
    int64_t sums[SL_SPAN_KIND_COUNT];
    for (int role = 0; role < sl_role_count(); role++) {
        for (int i = 0; i < b->r->count; i++) {
            const sl_report_job *j = &b->r->jobs[i];
            sl_span_sums_ns(b->r->trace.spans, b->r->trace.count, j->job->id,
                            sl_role_name((sl_role)role), b->a_ns, b->b_ns, sums);
            for (int k = 0; k < SL_SPAN_KIND_COUNT; k++) {
                b->sums[role][k] += (double)sums[k] * 1e-9;
                b->jobs[role][k] += sums[k] > 0;
            }
        }
        use_ranks(b, role);
    }
}

static json_t *stages_of(const totals *b)
{
    json_t *all = json_object();
    for (int k = 0; k < sl_role_count(); k++) {
        const sl_role i = sl_role_in_order(k);
        const int n = b->r->instances[i];
        const double computing = b->sums[i][SL_SPAN_COMPUTE], time = b->seconds * n;
        if (!n) continue;
        json_object_set_new(all, sl_role_name(i),
                            json_pack("{s:i, s:f, s:f}", "instances", n, "computing", computing,
                                      "occupancy", time > 0 ? computing / time : 0.0));
    }
    return all;
}

typedef struct {
    char who[16], what[SL_STR64 + 24];
    double seconds;
    int jobs;
} waiting;

static int longest_first(const void *x, const void *y)
{
    const double a = ((const waiting *)x)->seconds, b = ((const waiting *)y)->seconds;
    return a > b ? -1 : a < b;
}

/* The role that takes what this one gives slot by slot. */
static const char *taker_of(int role)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if ((int)SL_HANDOVER[h].from == role && SL_HANDOVER[h].how == SL_CHUNKS)
            return sl_role_name(SL_HANDOVER[h].to);
    return "another stage";
}

static int list_waits(const totals *b, waiting out[3 * SL_ROLES_MOST])
{
    static const sl_span_kind KINDS[] = {SL_SPAN_QUEUE, SL_SPAN_TURN, SL_SPAN_WAIT};
    int n = 0;
    for (int role = 0; role < sl_role_count(); role++)
        for (int k = 0; k < 3; k++) {
            const char *name = sl_role_name((sl_role)role);
            waiting *w = &out[n];
            w->seconds = b->sums[role][KINDS[k]];
            w->jobs = b->jobs[role][KINDS[k]];
            if (w->seconds <= LEAST * b->seconds) continue;
            snprintf(w->who, sizeof w->who, "%s", k ? name : "jobs");
            if (k == 1) snprintf(w->what, sizeof w->what, "its turn of %s", b->r->device[role]);
            else snprintf(w->what, sizeof w->what, "%s", k ? taker_of(role) : name);
            n++;
        }
    qsort(out, (size_t)n, sizeof *out, longest_first);
    return n;
}

json_t *sl_batch_report(const sl_report *r)
{
    totals *b = calloc(1, sizeof *b);
    waiting waits[3 * SL_ROLES_MOST];
    json_t *rows = json_array();
    double frames = 0;
    int done = 0;
    if (!b) {
        json_decref(rows);
        return NULL;
    }
    b->r = r;
    find_time(b);
    add_up(b);
    for (int i = 0; i < r->count; i++) {
        const sl_report_job *j = &r->jobs[i];
        if (!j->finished || j->code) continue;
        done++;
        frames += j->job->spec.frames;
    }
    const int n = list_waits(b, waits);
    for (int i = 0; i < n; i++)
        json_array_append_new(rows, json_pack("{s:s, s:s, s:f, s:i}", "who", waits[i].who, "for",
                                              waits[i].what, "seconds", waits[i].seconds, "jobs",
                                              waits[i].jobs));
    json_t *out = json_pack("{s:f, s:i, s:f, s:f, s:o, s:o}", "seconds", b->seconds, "done", done,
                            "jobs_per_hour", b->seconds > 0 ? 3600 * done / b->seconds : 0.0,
                            "frames_per_second", b->seconds > 0 ? frames / b->seconds : 0.0,
                            "stages", stages_of(b), "waits", rows);
    free(b);
    return out;
}

/* ---- the table ---- */

static const char *text(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

sl_code sl_batch_report_write(const sl_report *r, const char *path, sl_err *err)
{
    json_t *all = json_array();
    for (int i = 0; i < r->count; i++) json_array_append_new(all, sl_report_json(r, &r->jobs[i]));
    return sl_json_write(json_pack("{s:i, s:o, s:o}", "version", SL_REPORT_VERSION, "jobs", all,
                                   "batch", sl_batch_report(r)),
                         path, SL_REPORT_JSON, "report", err);
}

void sl_batch_report_print(const json_t *batch, FILE *to)
{
    json_t *stages = json_object_get(batch, "stages"), *waits = json_object_get(batch, "waits"),
           *row;
    const char *name;
    size_t i;
    int width = 8;
    json_object_foreach(stages, name, row)
    {
        if ((int)strlen(name) > width) width = (int)strlen(name);
    }
    fprintf(to, "\nbatch  %.0f done in %.3f s: %.1f jobs/hour, %.2f frames/s\n",
            sl_json_number_of(batch, "done"), sl_json_number_of(batch, "seconds"),
            sl_json_number_of(batch, "jobs_per_hour"),
            sl_json_number_of(batch, "frames_per_second"));
    fprintf(to, "  %-*s %9s %9s %9s\n", width, "stage", "instances", "computing", "occupied");
    json_object_foreach(stages, name, row)
    {
        fprintf(to, "  %-*s %9.0f %9.3f %7.1f %%\n", width, name,
                sl_json_number_of(row, "instances"), sl_json_number_of(row, "computing"),
                100 * sl_json_number_of(row, "occupancy"));
    }
    json_array_foreach(waits, i, row)
    {
        if (strcmp(text(row, "who"), "jobs") == 0)
            fprintf(to, "  %.0f job%s waited %.3f s for %s\n", sl_json_number_of(row, "jobs"),
                    sl_json_number_of(row, "jobs") > 1 ? "s" : "",
                    sl_json_number_of(row, "seconds"), text(row, "for"));
        else
            fprintf(to, "  %s waited %.3f s for %s\n", text(row, "who"),
                    sl_json_number_of(row, "seconds"), text(row, "for"));
    }
}
