/* fleet.c - what the servers of a queue do, and what waits: /v1/fleet, and the gauges of it.
 *
 * A server of one machine is a fleet of one. Whoever asks sees which job is whose only of jobs that
 * are his own; that something runs, and how far it is, he sees of all. */
#include "stages/serve/routes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/json.h"
#include "stages/serve/offer.h"

static json_t *or_null(bool is, json_t *o)
{
    if (is) return o;
    json_decref(o);
    return json_null();
}

/* ---- a job, a server ---- */

static json_t *job_json(const sl_ask *a, const sl_journal_job *j, const sl_live_job *now)
{
    const bool mine = a->everyone || !strcmp(a->owner, j->owner), begun = *now->stage;
    const double progress = now->progress > j->progress ? now->progress : j->progress;
    int percent = (int)floor(progress * 100);
    if (percent > 99) percent = 99;
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:i, s:i}", "id", or_null(mine, json_string(j->id)),
                     "stage", or_null(begun, json_string(now->stage)), "step",
                     or_null(begun, json_integer(now->step)), "stage_steps",
                     or_null(begun, json_integer(now->steps)), "since",
                     or_null(j->since_s > 0, json_integer(j->since_s)), "attempts", j->attempts,
                     "progress", percent);
}

/* `says` is taken over; what a server of another version tells is no object, perhaps. */
static json_t *server_json(json_t *says, const char *name, int64_t silent_ms, bool up)
{
    json_t *o = json_is_object(says) ? json_incref(says) : json_object();
    json_decref(says);
    json_object_set_new(o, "name", json_string(name));
    json_object_set_new(o, "silent_seconds", sl_json_number(floor((double)silent_ms / 100) / 10));
    json_object_set_new(o, "up", json_boolean(up));
    if (!json_is_string(json_object_get(o, "role"))) json_object_set_new(o, "role", json_null());
    json_object_set_new(o, "jobs", json_array());
    return o;
}

static void add_shared(sl_ask *a, const sl_journal_fleet *f, json_t *data)
{
    for (int i = 0; i < f->peer_count; i++) {
        const sl_journal_peer *p = &f->peers[i];
        json_t *server = server_json(json_loads(p->says, JSON_REJECT_DUPLICATES, NULL), p->name,
                                     p->silent_ms, p->silent_ms < f->lease_ms);
        json_array_append_new(data, server);
        for (int k = 0; k < f->job_count; k++) {
            sl_live_job now;
            if (strcmp(f->jobs[k].server, p->name)) continue;
            sl_live_parse(&now, &f->jobs[k]);
            json_array_append_new(json_object_get(server, "jobs"), job_json(a, &f->jobs[k], &now));
        }
    }
}

static void add_own(sl_ask *a, json_t *data)
{
    sl_server *s = a->server;
    sl_live_job *all = calloc(SL_LIVE_JOBS, sizeof *all);
    const int n = all ? sl_live_all(s->live, all) : 0;
    json_t *server = server_json(sl_offer_says(s), "this server", 0, true);
    for (int i = 0; i < n; i++) {
        sl_journal_job row = {0};
        if (sl_journal_get(s->journal, all[i].id, NULL, &row, NULL)) continue;
        row.since_s = row.started_s;
        json_array_append_new(json_object_get(server, "jobs"), job_json(a, &row, &all[i]));
        sl_journal_job_free(&row);
    }
    free(all);
    json_array_append_new(data, server);
}

/* ---- the answer ---- */

static json_t *waiting_json(const sl_ask *a, const sl_journal_fleet *f)
{
    json_t *all = json_array();
    for (int i = 0; i < f->waiting_count; i++) {
        const sl_journal_job *j = &f->waiting[i];
        const bool mine = a->everyone || !strcmp(a->owner, j->owner);
        json_array_append_new(all, json_pack("{s:o, s:I, s:i, s:i, s:o}", "id",
                                             or_null(mine, json_string(j->id)), "created_at",
                                             (json_int_t)j->created_s, "priority", j->priority,
                                             "attempts", j->attempts, "waiting_for",
                                             or_null(*j->waits, json_string(j->waits))));
    }
    return all;
}

static json_t *queue_json(const sl_ask *a, const sl_journal_counts *n, const sl_journal_fleet *f)
{
    int64_t age = n->oldest_queued_s ? (int64_t)time(NULL) - n->oldest_queued_s : 0;
    if (age < 0) age = 0;
    return json_pack("{s:I, s:I, s:I, s:I, s:o, s:o}", "waiting",
                     (json_int_t)n->jobs[SL_JOURNAL_QUEUED], "running",
                     (json_int_t)n->jobs[SL_JOURNAL_RUNNING], "oldest_seconds", (json_int_t)age,
                     "stuck", (json_int_t)n->stuck, "stuck_why",
                     or_null(n->stuck > 0, json_string(n->why)), "oldest", waiting_json(a, f));
}

void sl_on_fleet(sl_ask *a)
{
    sl_server *s = a->server;
    const bool shared = sl_server_shares_queue(s);
    sl_journal_counts n;
    sl_journal_fleet f = {0};
    sl_err err = {0};
    sl_code rc = sl_journal_count(s->journal, &n, &err);
    if (!rc) rc = sl_journal_fleet_of(s->journal, &f, &err);
    if (rc) sl_answer_journal(a, rc, &err);
    else {
        json_t *data = json_array();
        if (shared) add_shared(a, &f, data);
        else add_own(a, data);
        sl_answer_json(
            a, 200,
            json_pack("{s:s, s:b, s:I, s:o, s:I, s:I, s:I, s:o, s:o}", "object", "fleet", "shared",
                      shared, "servers_in_all", (json_int_t)(shared ? f.all_peers : 1),
                      "lease_seconds", or_null(shared, sl_json_number((double)f.lease_ms / 1000)),
                      "taken_over", (json_int_t)n.taken, "fenced", (json_int_t)n.fenced, "given_up",
                      (json_int_t)n.given_up, "queue", queue_json(a, &n, &f), "data", data));
    }
    sl_journal_fleet_free(&f);
}

/* ---- gauges ---- */

void sl_fleet_measure(sl_server *s)
{
    sl_journal_fleet f = {0};
    if (!sl_journal_fleet_of(s->journal, &f, NULL)) {
        sl_metrics_forget(s->metrics, SL_METRIC_FLEET_JOBS);
        sl_metrics_forget(s->metrics, SL_METRIC_FLEET_SILENCE);
        for (int i = 0; i < f.peer_count; i++) {
            char labels[2 * SL_JOURNAL_SERVER + 16]; /* a name has no letter to be escaped */
            int jobs = 0;
            for (int k = 0; k < f.job_count; k++)
                jobs += !strcmp(f.jobs[k].server, f.peers[i].name);
            snprintf(labels, sizeof labels, "server=\"%s\"", f.peers[i].name);
            sl_metrics_set(s->metrics, SL_METRIC_FLEET_JOBS, labels, jobs);
            sl_metrics_set(s->metrics, SL_METRIC_FLEET_SILENCE, labels,
                           (double)f.peers[i].silent_ms / 1000);
        }
    }
    sl_journal_fleet_free(&f);
}
