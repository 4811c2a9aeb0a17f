/* pipeline.c - one thread, one poll over four ends: the dispatcher's socket and its pidfd,
 * signals, and the eventfd by which HTTP's threads say that the journal has changed. */
#include "stages/serve/pipeline.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "common/clock.h"
#include "common/safetensors.h"
#include "common/state.h"
#include "stages/job/dispatcher.h"
#include "stages/job/dump.h"
#include "stages/job/files.h"
#include "stages/job/report.h"
#include "stages/job/trace_json.h"
#include "stages/serve/mover.h"
#include "stages/serve/offer.h"

#define TICK_MS 500
#define SECOND 1000000000ll
#define SAVE_NS (2 * SECOND)    /* between two notes of a job's progress in the journal */
#define RETRY_NS (1 * SECOND)   /* of what the disk did not take */
#define IDLE_NS (2 * SECOND)    /* between two claims from a shared queue that has told nothing */
#define RESTART_NS (1 * SECOND) /* before a dispatcher that was given up is started again */
#define CARE_NS (60 * SECOND)   /* between two jobs while the machine is at fault */
#define NICE 5                  /* of the stages: a CPU computes when nobody is to be answered */
#define SHOW_NS (SECOND / 2)    /* between two words about a job to a queue that servers share */
#define PARK_NS (15 * SECOND)   /* to bring what is finished into the shared folder at the end */
#define CULPRITS 3              /* jobs in a row that break a stage: it is not them */

typedef struct {
    bool used;
    char id[SL_JOURNAL_ID];
    sl_request req; /* id is the tag */
    sl_report rep;
    bool told_cancel, resumed;
    int deaths;             /* its server died so often before; 0 again when a step is kept */
    struct timespec begins; /* wall clock */
    bool over;              /* the dispatcher is through with it; the journal may not know yet */
    bool back;              /* it goes back to the queue */
    sl_code code;           /* of the end */
    char message[SL_TEXT];
    int64_t saved_ns;
    /* Of a queue that servers share; its files come and go by the mover's slot of its number: */
    sl_journal_job row; /* as it was claimed */
    bool waits;         /* an earlier life of it has not ended here yet */
    bool fetches;       /* its files are on their way here */
    bool sends;         /* and back */
    bool lost;          /* it is another server's by now: nothing of it counts any more */
    bool cancel;        /* that was asked for */
} run;

typedef struct {
    sl_server *s;
    const sl_conf *conf; /* as the pipeline was started with */
    sl_dispatcher dispatcher;
    bool up;                         /* a dispatcher runs */
    bool broken;                     /* it has given up a stage, and is to be started again */
    bool careful;                    /* one job at a time */
    int culprits;                    /* jobs in a row that broke a stage alone */
    int64_t restart_ns;              /* when the dispatcher is to be started; 0: it is not down */
    int64_t claim_ns;                /* no claim before */
    int64_t idle_ns;                 /* likewise, unless the queue tells of a job */
    int ready[SL_ROLES_MOST];        /* instances that take jobs, a bit each */
    sl_msg processes[SL_CONF_SEATS]; /* STAGE of each that is ready, for reports that begin later */
    int process_count;
    uint64_t last_tag;
    int ahead;
    run *runs;       /* SL_LIVE_JOBS of them */
    sl_mover *mover; /* NULL: the jobs' folders are here alone */
    bool draining, now;
    int64_t drain_by_ns, tick_ns;
    bool began, fatal; /* it has taken jobs; it never will */
} pipeline;

static int64_t wall_s(void)
{
    return (int64_t)time(NULL);
}

static int count(const pipeline *p)
{
    int n = 0;
    for (int i = 0; i < SL_LIVE_JOBS; i++) n += p->runs[i].used;
    return n;
}

/* ---- a job's end ---- */

/* What the job has in memory. */
static void forget(run *r)
{
    sl_report_free(&r->rep);
    sl_job_free(&r->req.spec);
    free(r->req.warnings);
    sl_journal_job_free(&r->row);
    *r = (run){0};
}

static bool disk_is_full(const pipeline *p)
{
    pthread_rwlock_rdlock(&p->s->settings);
    const uint64_t reserve = (uint64_t)p->s->conf.serve.reserve_bytes;
    pthread_rwlock_unlock(&p->s->settings);
    return sl_server_free(p->s) < reserve;
}

static void write_reports(pipeline *p, run *r)
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

static void count_end(pipeline *p, const run *r, const sl_journal_job *row)
{
    char label[64];
    snprintf(label, sizeof label, "outcome=\"%s\"", outcome(r->code));
    sl_metrics_add(p->s->metrics, SL_METRIC_JOBS, label, 1);
    sl_metrics_observe(p->s->metrics, SL_METRIC_JOB_SECONDS, label,
                       (double)(wall_s() - row->created_s));
}

/* The job ends in the journal. false: the disk did not take it, to be tried again. */
static bool record(pipeline *p, run *r, uint64_t bytes)
{
    const sl_journal_state end = r->code == SL_OK          ? SL_JOURNAL_COMPLETED
                                 : r->code == SL_CANCELLED ? SL_JOURNAL_CANCELLED
                                                           : SL_JOURNAL_FAILED;
    sl_journal_job row = {0};
    sl_err err = {0};
    sl_code rc =
        sl_journal_finish(p->s->journal, r->id, end, r->code, r->message, bytes, wall_s(), &err);
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
static void note_dump(const pipeline *p, const run *r)
{
    const sl_dump_end end = {r->code, r->message, ""};
    char dir[SL_PATH];
    sl_err err = {0};
    sl_code rc = sl_store_path(dir, &p->s->store, r->id, "", &err);
    if (rc || (rc = sl_dump_note(dir, &r->req, &end, !r->code && !*r->message, &err)))
        sl_log_about(r->id, SL_LOG_WARN, "%s", err.msg);
}

_Static_assert(SL_MOVER_SLOTS >= SL_LIVE_JOBS, "a slot for each job that runs");
static int slot_of(const pipeline *p, const run *r)
{
    return (int)(r - p->runs);
}

static bool release(pipeline *p, const run *r)
{
    sl_err err = {0};
    return !sl_journal_release(p->s->journal, r->id, &err) || err.code == SL_GONE;
}

/* Of a queue that servers share. What is to be kept is in the shared folder before the journal
 * notes the end, so that whoever hears of it finds it there. */
static bool settle_shared(pipeline *p, run *r)
{
    const int slot = slot_of(p, r);
    const bool dump = r->req.spec.dump;
    sl_code rc = SL_OK;
    uint64_t bytes = 0;
    sl_err err = {0};
    if (r->waits) { /* it has nothing here yet */
        if (!r->lost && !release(p, r)) return false;
        forget(r);
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
    forget(r);
    return true;
}

/* Everything that the job has left behind, in memory and on the disk. */
static bool settle(pipeline *p, run *r)
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
    forget(r);
    return true;
}

/* The dispatcher is through with the job. */
static void end_run(pipeline *p, run *r, sl_code code, const char *message)
{
    sl_journal_job row = {0};
    if (r->over) return;
    r->over = true;
    if (r->lost) {
        settle(p, r);
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
        p->claim_ns = sl_now_ns() + 5 * SECOND;
        sl_log_about(r->id, SL_LOG_WARN, "%s: it waits for room", message);
    } else if (code == SL_CANCELLED || /* nobody asked for it here */
               (code && p->broken && !(p->careful && count(p) == 1 && p->culprits < CULPRITS))) {
        r->back = true;
    } else if (code && p->broken) p->culprits++;
    if (r->code && !r->back) sl_log_about(r->id, SL_LOG_WARN, "%s: %s", outcome(r->code), message);
    if (!r->code) sl_log_about(r->id, SL_LOG_INFO, "completed");
    if (!r->back) write_reports(p, r);
    settle(p, r);
}

/* ---- a job's beginning ---- */

static bool is_there(const pipeline *p, const char *id, const char *name)
{
    char path[SL_PATH];
    struct stat st;
    return !sl_store_path(path, &p->s->store, id, name, NULL) && !stat(path, &st) &&
           S_ISREG(st.st_mode) && st.st_size > 0;
}

static sl_code submit(pipeline *p, run *r, sl_err *err)
{
    sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = r->req.id}};
    r->rep.jobs[0].number = 0;
    r->told_cancel = false;
    snprintf(m.submit.dir, sizeof m.submit.dir, "%s", r->req.dir);
    return sl_dispatcher_send(&p->dispatcher, &m, err);
}

/* What another server has written names its own folders. */
static sl_code move_here(const pipeline *p, run *r, const char *path, sl_err *err)
{
    sl_job *j = &r->req.spec;
    sl_code rc = sl_store_path(j->output, &p->s->store, r->id, SL_STORE_VIDEO, err);
    if (!rc && *j->preview)
        rc = sl_store_path(j->preview, &p->s->store, r->id, SL_STORE_PREVIEW, err);
    snprintf(j->model, sizeof j->model, "%s", p->s->model.dir);
    if (!rc && !(rc = sl_job_write_copy(j, path, err))) sl_mover_own(p->mover, slot_of(p, r));
    return rc;
}

static sl_code open_run(pipeline *p, run *r, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc;
    if ((rc = sl_store_path(r->req.dir, &p->s->store, r->id, "", err)) ||
        (rc = sl_path_join(path, r->req.dir, "job.json", err)) ||
        (rc = sl_job_read(&r->req.spec, path, err)) || (rc = sl_job_check(&r->req.spec, err)))
        return rc;
    if (p->mover && ((rc = sl_offer_use_loras(p->s, &r->req.spec, r->row.request, err)) ||
                     (rc = move_here(p, r, path, err))))
        return rc;
    char filters[SL_FILTERS_TEXT];
    if (!strcmp(r->req.spec.filters, sl_pipeline_text(filters))) return SL_OK;
    sl_log_about(r->id, SL_LOG_WARN,
                 "it was taken with filters \"%.200s\", there are \"%.200s\" now: "
                 "all of it is made with these",
                 r->req.spec.filters, filters);
    sl_dump_forget(r->req.dir);
    if ((rc = sl_job_set_text(&r->req.spec.filters, filters, err))) return rc;
    return p->mover ? sl_job_write_copy(&r->req.spec, path, err)
                    : sl_job_write(&r->req.spec, path, err);
}

/* For its report: the answer to its POST had them. */
static void read_warnings(sl_request *req, const char *request)
{
    json_t *o = request ? json_loads(request, 0, NULL) : NULL, *line;
    size_t i;
    json_array_foreach(json_object_get(o, "warnings"), i, line)
    {
        sl_request_warn(req, json_string_value(line) ? json_string_value(line) : "");
    }
    json_decref(o);
}

/* The LoRA that the denoisers have loaded when this job is through. */
static void note_loras(pipeline *p, const char *request)
{
    json_t *o = request ? json_loads(request, 0, NULL) : NULL;
    const char *asked = json_string_value(json_object_get(o, "lora"));
    char names[sizeof p->s->lora_loaded];
    size_t n = 0;
    for (const char *at = asked ? asked : ""; *at && n + 80 < sizeof names; at += *at == ',') {
        const size_t length = strcspn(at, ":,");
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%.*s", n ? "," : "",
                              length < 64 ? (int)length : 64, at);
        at += strcspn(at, ",");
    }
    names[n] = 0;
    json_decref(o);
    if (!strcmp(names, p->s->lora_loaded)) return;
    pthread_rwlock_wrlock(&p->s->settings);
    memcpy(p->s->lora_loaded, names, sizeof names);
    pthread_rwlock_unlock(&p->s->settings);
    sl_offer_tell(p->s);
}

/* The step that its state is from; 0: there is none. */
static long long state_step(const run *r)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    long long step = 0;
    if (sl_path_join(path, r->req.dir, SL_STATE_FILE, NULL) || sl_st_open_file(&st, path, NULL))
        return 0;
    const sl_st_entry *meta = sl_st_find(st, "meta");
    if (meta && meta->t.dtype == SL_I64 && sl_count(&meta->t) == SL_META_COUNT)
        step = ((const int64_t *)meta->t.data)[SL_META_STEP];
    sl_st_close(&st);
    return step;
}

/* Of a queue that servers share also which claim it is, and where it goes on: what earlier ones
 * have left is not computed again. */
static void say_begins(const run *r)
{
    if (!r->resumed || !r->row.fence)
        sl_log_about(r->id, SL_LOG_INFO, "begins%s", r->resumed ? " again" : "");
    else if (sl_request_has(&r->req, SL_HANDOVER_LATENTS))
        sl_log_about(r->id, SL_LOG_INFO, "begins again, claim %lld, after its last step",
                     (long long)r->row.fence);
    else
        sl_log_about(r->id, SL_LOG_INFO, "begins again, claim %lld, at step %lld",
                     (long long)r->row.fence, state_step(r));
}

/* Its files are here. */
static void begin_here(pipeline *p, run *r, const sl_journal_job *row)
{
    sl_err err = {0};
    sl_code rc = open_run(p, r, &err);
    if (p->mover) sl_mover_watch(p->mover, slot_of(p, r));
    read_warnings(&r->req, row->request);
    note_loras(p, row->request);
    clock_gettime(CLOCK_REALTIME, &r->begins);
    sl_live_begin(p->s->live, r->id, &r->req.spec, row->progress);
    if (!rc) rc = sl_report_init(&r->rep, &r->req, 1, sl_now_ns(), &err);
    if (rc) {
        end_run(p, r, rc, err.msg);
        return;
    }
    for (int i = 0; i < p->process_count; i++) sl_report_message(&r->rep, &p->processes[i]);
    say_begins(r);
    sl_events_tell(p->s->events, r->id, SL_EVENT_STATE);
    /* the process before this one died between the video's last byte and the journal's note */
    if (r->resumed && is_there(p, r->id, SL_STORE_VIDEO)) end_run(p, r, SL_OK, "");
    else if (submit(p, r, &err)) sl_log_about(r->id, SL_LOG_ERROR, "%s", err.msg);
}

/* An earlier life of the job, which was lost, is here still. The run itself has nothing yet. */
static bool has_another(const pipeline *p, const run *r)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && &p->runs[i] != r && !strcmp(p->runs[i].id, r->id)) return true;
    return sl_mover_has(p->mover, r->id);
}

static run *free_run(pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (!p->runs[i].used && (!p->mover || sl_mover_is_free(p->mover, i))) return &p->runs[i];
    return NULL;
}

/* *row is taken over by a job of a queue that servers share. */
static void begin(pipeline *p, run *r, sl_journal_job *row)
{
    *r = (run){.used = true,
               .req = {.id = ++p->last_tag},
               .resumed = row->attempts > 1,
               .deaths = row->deaths};
    if (r->deaths)
        sl_log_about(row->id, SL_LOG_WARN, "its server died %d times while it ran%s", r->deaths,
                     r->deaths >= SL_JOURNAL_ALONE ? ": it runs alone until a step is kept" : "");
    memcpy(r->id, row->id, sizeof r->id);
    if (!p->mover) {
        begin_here(p, r, row);
        return;
    }
    r->cancel = row->cancel_asked;
    r->row = *row;
    *row = (sl_journal_job){0};
    if (!(r->waits = has_another(p, r))) {
        sl_mover_fetch(p->mover, slot_of(p, r), &r->row);
        r->fetches = true;
    }
}

/* Jobs that wait for their files. */
static void look_for_files(pipeline *p)
{
    for (int i = 0; p->mover && i < SL_LIVE_JOBS; i++) {
        run *r = &p->runs[i];
        sl_code rc;
        uint64_t bytes;
        sl_err err = {0};
        if (!r->used || r->over) continue;
        if (r->waits && !has_another(p, r)) {
            r->waits = false;
            r->fetches = true;
            sl_mover_fetch(p->mover, i, &r->row);
        }
        if (!r->fetches || !p->up || !sl_mover_done(p->mover, i, &rc, &bytes, &err)) continue;
        r->fetches = false;
        if (rc) end_run(p, r, rc == SL_GONE ? SL_SYS : rc, err.msg);
        else begin_here(p, r, &r->row);
    }
}

static void claim_all(pipeline *p)
{
    const int most = p->careful ? 1 : p->ahead;
    run *r;
    while (p->up && !p->draining && count(p) < most && sl_now_ns() >= p->claim_ns &&
           sl_now_ns() >= p->idle_ns && (r = free_run(p))) {
        sl_journal_job row = {0};
        sl_err err = {0};
        sl_code rc = sl_journal_claim(p->s->journal, wall_s(), &row, &err);
        if (rc) {
            if (rc != SL_BUSY) sl_log_err("journal", &err), p->claim_ns = sl_now_ns() + RETRY_NS;
            else if (p->mover) p->idle_ns = sl_now_ns() + IDLE_NS; /* a thousand of them ask */
            return;
        }
        begin(p, r, &row);
        sl_journal_job_free(&row);
        if (p->culprits >= CULPRITS) p->claim_ns = sl_now_ns() + CARE_NS;
    }
}

/* ---- cancels ---- */

/* Of a queue that servers share it is heard; a row of one's own is looked at. */
static bool is_cancelled(const pipeline *p, const run *r)
{
    sl_journal_job row = {0};
    if (p->mover) return r->cancel || r->lost;
    const bool is = !sl_journal_get(p->s->journal, r->id, NULL, &row, NULL) && row.cancel_asked;
    sl_journal_job_free(&row);
    return is;
}

static void look_for_cancels(pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        run *r = &p->runs[i];
        if (!r->used || r->over || r->told_cancel || !r->rep.count || !r->rep.jobs[0].number)
            continue;
        if (is_cancelled(p, r)) {
            sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = r->rep.jobs[0].number}};
            r->told_cancel = !sl_dispatcher_send(&p->dispatcher, &m, NULL);
        }
    }
}

/* Jobs that this server ran, and was silent for too long: they go on elsewhere. */
static void lose(pipeline *p, const char *id)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        run *r = &p->runs[i];
        sl_journal_job row = {0};
        if (!r->used || r->lost || strcmp(r->id, id)) continue;
        /* it may have been claimed here again: which of its lives is this? */
        const sl_code rc = sl_journal_get(p->s->journal, id, NULL, &row, NULL);
        r->lost = rc == SL_GONE ||
                  (!rc && (row.fence != r->row.fence || row.state != SL_JOURNAL_RUNNING));
        sl_journal_job_free(&row);
        if (r->lost && (r->waits || r->fetches || r->over)) {
            r->over = true;
            settle(p, r);
        }
    }
}

static void look_for_news(pipeline *p)
{
    sl_server *s = p->s;
    pthread_mutex_lock(&s->heard_lock);
    sl_server_heard *heard = s->heard;
    const int n = s->heard_count;
    s->heard = NULL;
    s->heard_count = 0;
    pthread_mutex_unlock(&s->heard_lock);
    for (int i = 0; i < n; i++) {
        if (heard[i].lost) lose(p, heard[i].id);
        for (int k = 0; k < SL_LIVE_JOBS && !heard[i].lost; k++)
            if (p->runs[k].used && !strcmp(p->runs[k].id, heard[i].id)) p->runs[k].cancel = true;
    }
    free(heard);
}

/* A job's folder that somebody removes takes what was finished with it: that is told at once, not
 * when the next stage looks for it. */
static void look_for_folders(pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        run *r = &p->runs[i];
        sl_msg m = {.type = SL_MSG_CANCEL};
        if (!r->used || r->over || !r->rep.count || is_there(p, r->id, "job.json")) continue;
        m.cancel.job = r->rep.jobs[0].number;
        if (m.cancel.job) sl_dispatcher_send(&p->dispatcher, &m, NULL);
        end_run(p, r, SL_SYS, "its folder was removed while it ran");
    }
}

/* ---- what the dispatcher says ---- */

static run *by_tag(pipeline *p, uint64_t tag)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].req.id == tag) return &p->runs[i];
    return NULL;
}

static run *by_number(pipeline *p, uint64_t number)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].rep.count && p->runs[i].rep.jobs[0].number == number)
            return &p->runs[i];
    return NULL;
}

/* Some instance of each role that jobs of this model need takes jobs. */
static bool is_ready(const pipeline *p)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        const sl_role ends[] = {SL_HANDOVER[h].from, SL_HANDOVER[h].to};
        if (!sl_handover_applies((sl_handover)h, &p->s->model, NULL)) continue;
        for (int i = 0; i < 2; i++)
            if (sl_conf_find(p->conf, ends[i]) && !p->ready[ends[i]]) return false;
    }
    return p->up;
}

static void note_ready(pipeline *p)
{
    const bool ready = is_ready(p) && !p->broken && p->culprits < CULPRITS;
    if (atomic_exchange(&p->s->ready, ready) != ready) {
        sl_log(SL_LOG_INFO, ready ? "ready" : "not ready");
        sl_offer_tell(p->s);
    }
}

/* Reports of jobs that begin later want to know what they run on. */
static void keep_process(pipeline *p, const sl_msg *m)
{
    int i = 0;
    while (i < p->process_count && (strcmp(p->processes[i].stage.stage, m->stage.stage) ||
                                    p->processes[i].stage.instance != m->stage.instance))
        i++;
    if (i == SL_CONF_SEATS) return;
    p->processes[i] = *m;
    if (i == p->process_count) p->process_count++;
}

static void on_process(pipeline *p, const sl_msg_stage *m)
{
    const int role = sl_role_by_name(m->stage);
    const int bit = m->instance < 31 ? 1 << m->instance : 0;
    char labels[160];
    if (role < 0) return;
    snprintf(labels, sizeof labels, "stage=\"%s\",instance=\"%u\",device=\"%s\"", m->stage,
             m->instance, m->device);
    if (!strcmp(m->event, "ready")) {
        p->ready[role] |= bit;
        sl_metrics_add(p->s->metrics, SL_METRIC_STAGE_LOADS, labels, 1);
        sl_metrics_set(p->s->metrics, SL_METRIC_WEIGHT_BYTES, labels, (double)m->weight_bytes);
    } else if (!strcmp(m->event, "ended")) {
        p->ready[role] &= ~bit;
        sl_metrics_add(p->s->metrics, SL_METRIC_STAGE_RESTARTS, labels, 1);
    } else if (!strcmp(m->event, "broken")) {
        p->broken = true;
        sl_log(SL_LOG_ERROR, "stage %s cannot go on: all of it is started again", m->stage);
    } else if (!strcmp(m->event, "done") && m->arena_bytes)
        sl_metrics_set(p->s->metrics, SL_METRIC_ARENA_BYTES, labels, (double)m->arena_bytes);
    note_ready(p);
}

static void count_message(pipeline *p, const run *r, const sl_msg *m)
{
    char labels[160];
    if (m->type == SL_MSG_SPAN && m->span.kind < SL_SPAN_KIND_COUNT) {
        const int role = sl_role_by_name(m->span.stage);
        const char *device = role < 0 ? "" : r->rep.jobs[0].device[role];
        if (role >= 0 && !*device) device = r->rep.device[role];
        snprintf(labels, sizeof labels, "stage=\"%s\",device=\"%s\",kind=\"%s\"", m->span.stage,
                 device, sl_span_kind_name(m->span.kind));
        sl_metrics_add(p->s->metrics, SL_METRIC_STAGE_SECONDS, labels,
                       (double)(m->span.t1_ns - m->span.t0_ns) * 1e-9);
    } else if (m->type == SL_MSG_STEP) {
        const int computed[] = {m->step.cond_computed, m->step.uncond_computed};
        sl_metrics_add(p->s->metrics, SL_METRIC_STEPS, "", 1);
        sl_metrics_add(p->s->metrics, SL_METRIC_STEP_SECONDS, "", m->step.seconds);
        for (int i = 0; i < 2; i++)
            if (computed[i] >= 0)
                sl_metrics_add(p->s->metrics, SL_METRIC_CACHE,
                               computed[i] ? "decision=\"computed\"" : "decision=\"skipped\"", 1);
    } else if (m->type == SL_MSG_SHARE) {
        const sl_msg_share *k = &m->share;
        const char *device = k->instance < SL_RANKS ? r->rep.rank_device[k->instance] : "";
        const double seconds[] = {k->step_s - k->exchange_s - k->wait_s, k->exchange_s, k->wait_s};
        const char *const kinds[] = {"compute", "exchange", "wait"};
        for (int i = 0; i < 3; i++) {
            snprintf(labels, sizeof labels, "rank=\"%u\",device=\"%s\",kind=\"%s\"", k->instance,
                     device, kinds[i]);
            sl_metrics_add(p->s->metrics, SL_METRIC_RANK_SECONDS, labels,
                           seconds[i] > 0 ? seconds[i] : 0);
        }
        snprintf(labels, sizeof labels, "rank=\"%u\",device=\"%s\"", k->instance, device);
        sl_metrics_add(p->s->metrics, SL_METRIC_RANK_SENT, labels, (double)k->sent_bytes);
        if (k->device_bytes)
            sl_metrics_set(p->s->metrics, SL_METRIC_DEVICE_BYTES, labels, (double)k->device_bytes);
    }
}

static void on_progress(pipeline *p, run *r, const sl_msg_progress *m)
{
    sl_live_job now;
    sl_live_step(p->s->live, r->id, m);
    sl_events_tell(
        p->s->events, r->id,
        SL_EVENT_STEP |
            (sl_role_has_teams((sl_role)sl_role_by_name(m->stage)) ? SL_EVENT_PREVIEW : 0));
    if (sl_now_ns() - r->saved_ns < (p->mover ? SHOW_NS : SAVE_NS) ||
        !sl_live_get(p->s->live, r->id, &now))
        return;
    char live[SL_JOURNAL_LIVE];
    sl_live_print(&now, live);
    sl_journal_show(p->s->journal, r->id, now.progress, live, NULL);
    r->saved_ns = sl_now_ns();
}

static bool is_newer(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec != b->tv_sec ? a->tv_sec > b->tv_sec : a->tv_nsec > b->tv_nsec;
}

/* A job that its server died with has something now that the next one need not make again: so many
 * servers may die with it anew. Of a queue that servers share, the mover tells that. */
static void look_for_kept(pipeline *p, run *r)
{
    struct stat st;
    char path[SL_PATH], name[64];
    bool kept = false;
    if (!r->deaths || p->mover) return;
    for (int h = -1; h < SL_HANDOVER_COUNT && !kept; h++) {
        snprintf(name, sizeof name, "%s.safetensors", h < 0 ? "state" : SL_HANDOVER[h].file);
        kept = !sl_store_path(path, &p->s->store, r->id, name, NULL) && !stat(path, &st) &&
               is_newer(&st.st_mtim, &r->begins);
    }
    if (kept && !sl_journal_kept(p->s->journal, r->id, NULL)) r->deaths = 0;
}

/* News of a job that is in the pipeline. */
static void on_news(pipeline *p, run *r, sl_msg *m)
{
    count_message(p, r, m);
    sl_report_own(&r->rep, m);
    if (m->type == SL_MSG_PROGRESS) {
        p->dispatcher.deaths = 0;
        on_progress(p, r, &m->progress);
        look_for_kept(p, r);
        return;
    }
    sl_report_message(&r->rep, m);
    if (m->type == SL_MSG_STAGE && !strcmp(m->stage.event, "done")) {
        look_for_kept(p, r);
        sl_live_stage_done(p->s->live, r->id, m->stage.stage);
        sl_events_tell(p->s->events, r->id, SL_EVENT_STEP);
    }
}

static void on_message(pipeline *p, sl_msg *m)
{
    run *r = NULL;
    uint64_t number = 0;
    switch (m->type) {
    case SL_MSG_ACCEPTED:
        if ((r = by_tag(p, m->accepted.tag))) r->rep.jobs[0].number = m->accepted.job;
        if (r) look_for_cancels(p);
        return;
    case SL_MSG_FINISHED:
        p->dispatcher.deaths = 0;
        if (!(r = by_tag(p, m->finished.tag))) return;
        r->rep.jobs[0].bytes = m->finished.bytes;
        if (m->finished.job)
            end_run(p, r,
                    m->finished.code == SL_OK && *m->finished.message ? SL_SYS /* no whole dump */
                    : (unsigned)m->finished.code < SL_CODE_COUNT      ? (sl_code)m->finished.code
                                                                      : SL_INTERNAL,
                    m->finished.message);
        else { /* refused: by a dispatcher that is to be started again, or for good */
            if (m->finished.code == SL_BUSY || p->broken) r->back = true;
            end_run(p, r, SL_INTERNAL, m->finished.message);
        }
        return;
    case SL_MSG_PROGRESS: number = m->progress.job; break;
    case SL_MSG_STEP: number = m->step.job; break;
    case SL_MSG_SPAN: number = m->span.job; break;
    case SL_MSG_STAGE: number = m->stage.job; break;
    case SL_MSG_SHARE: number = m->share.job; break;
    default: return;
    }
    if (m->type == SL_MSG_STAGE) on_process(p, &m->stage);
    if (m->type == SL_MSG_STAGE && !strcmp(m->stage.event, "ready")) keep_process(p, m);
    if (number) {
        if ((r = by_number(p, number))) on_news(p, r, m);
        return;
    }
    for (int i = 0; i < SL_LIVE_JOBS; i++) /* of processes: a part of every job's time */
        if (p->runs[i].used && p->runs[i].rep.count) sl_report_message(&p->runs[i].rep, m);
}

static void receive_all(pipeline *p)
{
    sl_msg m;
    sl_err err = {0};
    sl_code rc;
    while (p->up && (rc = sl_dispatcher_recv(&p->dispatcher, &m, &err)) != SL_BUSY) {
        if (!rc) on_message(p, &m);
        else sl_log_err("dispatcher", &err);
        if (rc && rc != SL_FORMAT) return;
    }
}

/* ---- the dispatcher's life ---- */

static void start(pipeline *p)
{
    sl_err err = {0};
    memset(p->ready, 0, sizeof p->ready);
    p->broken = false;
    p->restart_ns = 0;
    if (sl_dispatcher_start(&p->dispatcher, &err)) {
        sl_log_err("dispatcher", &err);
        sl_dispatcher_kill(&p->dispatcher);
        p->up = p->broken = p->dispatcher.pidfd >= 0; /* to be collected */
        if (!p->up) p->restart_ns = sl_now_ns() + 5 * RESTART_NS;
        return;
    }
    p->up = true;
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].rep.count && !p->runs[i].over &&
            submit(p, &p->runs[i], &err))
            sl_log_about(p->runs[i].id, SL_LOG_ERROR, "%s", err.msg);
}

/* All jobs that run go back to the queue. */
static void put_back(pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        run *r = &p->runs[i];
        if (!r->used || r->over) continue;
        r->over = r->back = true;
        settle(p, r);
    }
}

static void on_death(pipeline *p)
{
    sl_err why = {0};
    const bool wanted = p->broken;
    sl_code rc = sl_dispatcher_ended(&p->dispatcher, &why);
    p->up = false;
    sl_metrics_add(p->s->metrics, SL_METRIC_STAGE_RESTARTS,
                   "stage=\"dispatch\",instance=\"0\",device=\"cpu\"", 1);
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used) p->runs[i].rep.restarts++;
    if (rc && !wanted) sl_log_err("dispatcher", &why);
    if (rc || wanted) {
        put_back(p);
        if (!p->began) p->fatal = true;
        p->careful = true;
        p->dispatcher.deaths = 0;
        p->restart_ns = sl_now_ns() + (rc ? 5 : 1) * RESTART_NS;
    } else start(p);
    note_ready(p);
}

/* A stage was given up, and its jobs have ended or went back: begin anew. */
static void end_broken(pipeline *p)
{
    if (p->up && p->broken && (!count(p) || !p->began)) sl_dispatcher_kill(&p->dispatcher);
}

/* ---- signals, time ---- */

static void drain(pipeline *p, void (*reload)(void *), void *self, uint32_t signal)
{
    if (signal == SIGHUP) {
        reload(self);
        return;
    }
    p->now = p->draining;
    if (p->draining) return;
    p->draining = true;
    atomic_store(&p->s->draining, true);
    sl_offer_tell(p->s);
    p->drain_by_ns = sl_now_ns() + p->conf->supervise.drain_s * SECOND;
    sl_log(SL_LOG_INFO, "draining: %d jobs are finished within %d s, the others stay in the queue",
           count(p), p->conf->supervise.drain_s);
}

/* What follows from the journal and the disk: when somebody has changed the first, and now and
 * then; not at each message of a stage. */
static void tick(pipeline *p)
{
    p->tick_ns = sl_now_ns();
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].over) settle(p, &p->runs[i]);
    if (!p->up && p->restart_ns && sl_now_ns() >= p->restart_ns && !p->draining) start(p);
    end_broken(p);
    look_for_news(p);
    look_for_files(p);
    look_for_cancels(p);
    if (p->up) look_for_folders(p);
    if (!disk_is_full(p)) claim_all(p);
    note_ready(p);
}

static bool is_through(const pipeline *p)
{
    return p->draining && (!count(p) || p->now || !p->up || sl_now_ns() > p->drain_by_ns);
}

static sl_code watch(pipeline *p, int signals, void (*reload)(void *), void (*began)(void *),
                     void *self, sl_err *err)
{
    while (!is_through(p)) {
        zmq_pollitem_t items[] = {{NULL, signals, ZMQ_POLLIN, 0},
                                  {NULL, p->s->wake, ZMQ_POLLIN, 0},
                                  {NULL, p->dispatcher.pidfd, ZMQ_POLLIN, 0},
                                  {p->dispatcher.socket, 0, ZMQ_POLLIN, 0}};
        struct signalfd_siginfo info;
        uint64_t woken;
        const int before = count(p);
        if (zmq_poll(items, p->up ? 4 : 2, TICK_MS) < 0 && errno != EINTR)
            return sl_fail(err, SL_SYS, "poll: %s", zmq_strerror(errno));
        const bool told = read(p->s->wake, &woken, sizeof woken) > 0;
        if (told) p->idle_ns = 0;
        receive_all(p);
        if (read(signals, &info, sizeof info) == sizeof info)
            drain(p, reload, self, info.ssi_signo);
        if (p->up && items[2].revents) on_death(p);
        if (told || count(p) != before || sl_now_ns() - p->tick_ns >= TICK_MS * 1000000ll) tick(p);
        if (p->fatal)
            return sl_fail(err, SL_SYS, "the pipeline cannot be started: the log says why");
        if (!p->began && atomic_load(&p->s->ready)) p->began = true, began(self);
    }
    return SL_OK;
}

/* What runs still is in its folder: the next server goes on with it. */
static void park(pipeline *p)
{
    if (count(p))
        sl_log(SL_LOG_INFO, "%d jobs are left for the next start of the server", count(p));
    if (p->up && count(p)) sl_dispatcher_kill(&p->dispatcher);
    sl_dispatcher_stop(&p->dispatcher);
    put_back(p);
    const int64_t until_ns = sl_now_ns() + (p->mover && !p->now ? PARK_NS : 0);
    do {
        for (int i = 0; i < SL_LIVE_JOBS; i++)
            if (p->runs[i].used) settle(p, &p->runs[i]);
        const struct timespec t = {0, 20000000};
        if (p->mover && count(p)) nanosleep(&t, NULL);
    } while (count(p) && sl_now_ns() < until_ns);
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used) forget(&p->runs[i]); /* as after a SIGKILL */
}

sl_code sl_pipeline_run(sl_server *s, void (*reload)(void *self), void (*began)(void *self),
                        void *self, sl_err *err)
{
    pipeline p = {.s = s, .conf = &s->conf};
    sigset_t set;
    sl_conf *conf = malloc(sizeof *conf); /* SIGHUP changes the other */
    sl_code rc = SL_OK;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (!conf || !(p.runs = calloc(SL_LIVE_JOBS, sizeof *p.runs)))
        rc = sl_fail(err, SL_NOMEM, "serve: no memory");
    else if (signals < 0) rc = sl_fail_errno(err, errno, "signalfd");
    if (!rc) {
        *conf = s->conf;
        p.conf = conf;
        p.ahead =
            conf->serve.ahead ? conf->serve.ahead : sl_conf_instances(conf, SL_ROLE_DENOISE) + 3;
        if (p.ahead > SL_LIVE_JOBS) p.ahead = SL_LIVE_JOBS;
        if (p.ahead > conf->limits.jobs) p.ahead = conf->limits.jobs;
        rc = sl_dispatcher_open(&p.dispatcher, conf, s->model.dir, s->store.run, true, err);
    }
    if (!rc && sl_server_shares_queue(s))
        rc = sl_mover_open(
            &p.mover,
            &(sl_mover_ends){s->journal, &s->blobs, &s->store, conf->queue.spool_s, s->wake}, err);
    if (!rc) {
        p.dispatcher.nice = NICE;
        start(&p);
        rc = watch(&p, signals, reload, began, self, err);
        atomic_store(&s->ready, false);
        park(&p);
    }
    if (signals >= 0) close(signals);
    sl_mover_close(&p.mover);
    free(p.runs);
    free(conf);
    return rc;
}
