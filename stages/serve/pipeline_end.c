/* pipeline_end.c - a job's end: reports, the note in the journal, what is kept of its files. */
#include "stages/serve/pipeline_body.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "stages/job/dump.h"
#include "stages/job/trace_json.h"

/* What the job has in memory. */
void sl_run_forget(sl_run *r)
{
    sl_report_free(&r->rep);
    sl_job_free(&r->req.spec);
    free(r->req.warnings);
    sl_journal_job_free(&r->row);
    *r = (sl_run){0};
}

bool sl_pipeline_is_full(const sl_pipeline *p)
{
    pthread_rwlock_rdlock(&p->s->settings);
    const uint64_t reserve = (uint64_t)p->s->conf.serve.reserve_bytes;
    pthread_rwlock_unlock(&p->s->settings);
    return sl_server_free(p->s) < reserve;
}

static void write_reports(sl_pipeline *p, sl_run *r)
{
    char path[SL_PATH];
    sl_err err = {0};
    sl_report_job *j = r->rep.count ? &r->rep.jobs[0] : NULL;
    if (!j) return;
    j->finished = true;
    j->code = r->code;
    snprintf(j->message, sizeof j->message, "%s", r->message);
    j->t1_ns = sl_now_ns();
    /* clients read them: where the state lies is not theirs to know */
    snprintf(r->req.spec.output, SL_PATH, SL_STORE_VIDEO);
    if (sl_store_path(path, &p->s->store, r->id, SL_STORE_REPORT, &err) ||
        sl_report_write(&r->rep, j, path, &err) ||
        sl_store_path(path, &p->s->store, r->id, SL_STORE_TRACE, &err) ||
        sl_report_trace_write(&r->rep, j, path, &err))
        sl_log_about(r->id, SL_LOG_WARN, "%s", err.msg);
}

static const char *outcome(sl_code code)
{
    return code == SL_OK ? "completed" : code == SL_CANCELLED ? "cancelled" : "failed";
}

static void count_end(sl_pipeline *p, const sl_run *r, const sl_journal_job *row)
{
    char label[64];
    snprintf(label, sizeof label, "outcome=\"%s\"", outcome(r->code));
    sl_metrics_add(p->s->metrics, SL_METRIC_JOBS, label, 1);
    sl_metrics_observe(p->s->metrics, SL_METRIC_JOB_SECONDS, label,
                       (double)((int64_t)time(NULL) - row->created_s));
}

/* The job ends in the journal. false: the disk did not take it, to be tried again. */
static bool record(sl_pipeline *p, sl_run *r, uint64_t bytes)
{
    const sl_journal_state end = r->code == SL_OK          ? SL_JOURNAL_COMPLETED
                                 : r->code == SL_CANCELLED ? SL_JOURNAL_CANCELLED
                                                           : SL_JOURNAL_FAILED;
    sl_journal_job row = {0};
    sl_err err = {0};
    sl_code rc = sl_journal_finish(p->s->journal, r->id, end, r->code, r->message, bytes,
                                   (int64_t)time(NULL), &err);
    if (rc && rc != SL_GONE) {
        sl_log_about(r->id, SL_LOG_WARN, "its end cannot be noted yet: %s", err.msg);
        return false;
    }
    if (rc) sl_log_about(r->id, SL_LOG_WARN, "%s", err.msg);
    if (!sl_journal_get(p->s->journal, r->id, NULL, &row, NULL)) count_end(p, r, &row);
    sl_journal_job_free(&row);
    return true;
}

/* The job's folder is its dump: is all of it there? */
static void note_dump(const sl_pipeline *p, const sl_run *r)
{
    const sl_dump_end end = {r->code, r->message, ""};
    char dir[SL_PATH];
    sl_err err = {0};
    sl_code rc = sl_store_path(dir, &p->s->store, r->id, "", &err);
    if (rc || (rc = sl_dump_note(dir, &r->req, &end, !r->code && !*r->message, &err)))
        sl_log_about(r->id, SL_LOG_WARN, "%s", err.msg);
}

_Static_assert(SL_MOVER_SLOTS >= SL_LIVE_JOBS, "a slot for each job that runs");
int sl_run_slot(const sl_pipeline *p, const sl_run *r)
{
    return (int)(r - p->runs);
}

static bool release(sl_pipeline *p, const sl_run *r)
{
    sl_err err = {0};
    return !sl_journal_release(p->s->journal, r->id, &err) || err.code == SL_GONE;
}

/* Of a queue that servers share. What is to be kept is in the shared folder before the journal
 * notes the end, so that whoever hears of it finds it there. */
static bool settle_shared(sl_pipeline *p, sl_run *r)
{
    const int slot = sl_run_slot(p, r);
    const bool dump = r->req.spec.dump;
    sl_code rc = SL_OK;
    uint64_t bytes = 0;
    sl_err err = {0};
    if (r->waits) { /* it has nothing here yet */
        if (!r->lost && !release(p, r)) return false;
        sl_run_forget(r);
        return true;
    }
    if (!r->lost && !r->sends) {
        if (!r->back && dump) note_dump(p, r);
        if (!r->back) sl_store_prune(&p->s->store, r->id, dump);
        sl_mover_send(p->mover, slot, !r->back);
        r->sends = true;
        return false;
    }
    if (!r->lost && !sl_mover_done(p->mover, slot, &rc, &bytes, &err)) return false;
    if (rc == SL_GONE) r->lost = true;
    if (!r->lost && !(r->back ? release(p, r) : record(p, r, bytes))) return false;
    if (r->lost) sl_log_about(r->id, SL_LOG_WARN, "it is another server's by now");
    const bool well = !r->lost && !r->back && r->code == SL_OK;
    sl_live_end(p->s->live, r->id, well);
    if (r->lost || r->back) sl_mover_clear(p->mover, slot);
    else sl_mover_drop(p->mover, slot);
    if (well) p->culprits = 0, p->careful = false;
    sl_events_tell(p->s->events, r->id, SL_EVENT_STATE);
    sl_run_forget(r);
    return true;
}

/* Everything that the job has left behind, in memory and on the disk. */
bool sl_run_settle(sl_pipeline *p, sl_run *r)
{
    const bool dump = r->req.spec.dump;
    sl_err err = {0};
    if (p->mover) return settle_shared(p, r);
    if (r->back) {
        if (sl_journal_release(p->s->journal, r->id, &err) && err.code != SL_GONE) return false;
        sl_live_end(p->s->live, r->id, false);
    } else {
        if (dump) note_dump(p, r); /* whoever hears of the end finds it */
        if (!record(p, r, sl_store_bytes(&p->s->store, r->id))) return false;
        sl_live_end(p->s->live, r->id, r->code == SL_OK);
        sl_store_prune(&p->s->store, r->id, dump);
        if (r->code == SL_OK) p->culprits = 0, p->careful = false;
    }
    sl_events_tell(p->s->events, r->id, SL_EVENT_STATE);
    sl_run_forget(r);
    return true;
}

/* The dispatcher is through with the job. */
void sl_run_end(sl_pipeline *p, sl_run *r, sl_code code, const char *message)
{
    sl_journal_job row = {0};
    if (r->over) return;
    r->over = true;
    if (r->lost) {
        sl_run_settle(p, r);
        return;
    }
    r->code = code;
    snprintf(r->message, sizeof r->message, "%s", message);
    const bool asked = !sl_journal_get(p->s->journal, r->id, NULL, &row, NULL) && row.cancel_asked;
    sl_journal_job_free(&row);
    if (code && asked) { /* whatever else it died of meanwhile */
        r->code = SL_CANCELLED;
        r->back = false;
        snprintf(r->message, sizeof r->message, "cancelled");
    } else if (code && (strstr(message, strerror(ENOSPC)) || strstr(message, strerror(EDQUOT)))) {
        r->back = true;
        p->claim_ns = sl_now_ns() + 5 * SL_SECOND_NS;
        sl_log_about(r->id, SL_LOG_WARN, "%s: it waits for room", message);
    } else if (code == SL_CANCELLED || /* nobody asked for it here */
               (code && p->broken &&
                !(p->careful && sl_pipeline_count(p) == 1 && p->culprits < SL_PIPELINE_CULPRITS))) {
        r->back = true;
    } else if (code && p->broken) p->culprits++;
    if (r->code && !r->back) sl_log_about(r->id, SL_LOG_WARN, "%s: %s", outcome(r->code), message);
    if (!r->code) sl_log_about(r->id, SL_LOG_INFO, "completed");
    if (!r->back) write_reports(p, r);
    sl_run_settle(p, r);
}
