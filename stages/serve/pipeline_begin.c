/* pipeline_begin.c - a job's beginning: it is claimed, its files come, the dispatcher has it. */
#include "stages/serve/pipeline_body.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/log.h"
#include "common/safetensors.h"
#include "common/state.h"
#include "stages/job/dump.h"
#include "stages/job/files.h"
#include "stages/serve/offer.h"

#define RETRY_NS (1 * SL_SECOND_NS) /* of what the disk did not take */
#define IDLE_NS (2 * SL_SECOND_NS)  /* between two claims of a shared queue that has told nothing */
#define CARE_NS (60 * SL_SECOND_NS) /* between two jobs while the machine is at fault */

bool sl_run_has(const sl_pipeline *p, const char *id, const char *name)
{
    char path[SL_PATH];
    struct stat st;
    return !sl_store_path(path, &p->s->store, id, name, NULL) && !stat(path, &st) &&
           S_ISREG(st.st_mode) && st.st_size > 0;
}

sl_code sl_run_submit(sl_pipeline *p, sl_run *r, sl_err *err)
{
    sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = r->req.id}};
    r->rep.jobs[0].number = 0;
    r->told_cancel = false;
    snprintf(m.submit.dir, sizeof m.submit.dir, "%s", r->req.dir);
    return sl_dispatcher_send(&p->dispatcher, &m, err);
}

/* What another server has written names its own folders. */
static sl_code move_here(const sl_pipeline *p, sl_run *r, const char *path, sl_err *err)
{
    sl_job *j = &r->req.spec;
    sl_code rc = sl_store_path(j->output, &p->s->store, r->id, SL_STORE_VIDEO, err);
    if (!rc && *j->preview)
        rc = sl_store_path(j->preview, &p->s->store, r->id, SL_STORE_PREVIEW, err);
    snprintf(j->model, sizeof j->model, "%s", p->s->model.dir);
    if (!rc && !(rc = sl_job_write_copy(j, path, err))) sl_mover_own(p->mover, sl_run_slot(p, r));
    return rc;
}

static sl_code open_run(sl_pipeline *p, sl_run *r, sl_err *err)
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
static void note_loras(sl_pipeline *p, const char *request)
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
static long long state_step(const sl_run *r)
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
static void say_begins(const sl_run *r)
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
static void begin_here(sl_pipeline *p, sl_run *r, const sl_journal_job *row)
{
    sl_err err = {0};
    sl_code rc = open_run(p, r, &err);
    if (p->mover) sl_mover_watch(p->mover, sl_run_slot(p, r));
    read_warnings(&r->req, row->request);
    note_loras(p, row->request);
    clock_gettime(CLOCK_REALTIME, &r->begins);
    sl_live_begin(p->s->live, r->id, &r->req.spec, row->progress);
    if (!rc) rc = sl_report_init(&r->rep, &r->req, 1, sl_now_ns(), &err);
    if (rc) {
        sl_run_end(p, r, rc, err.msg);
        return;
    }
    for (int i = 0; i < p->process_count; i++) sl_report_message(&r->rep, &p->processes[i]);
    say_begins(r);
    sl_events_tell(p->s->events, r->id, SL_EVENT_STATE);
    /* the process before this one died between the video's last byte and the journal's note */
    if (r->resumed && sl_run_has(p, r->id, SL_STORE_VIDEO)) sl_run_end(p, r, SL_OK, "");
    else if (sl_run_submit(p, r, &err)) sl_log_about(r->id, SL_LOG_ERROR, "%s", err.msg);
}

/* An earlier life of the job, which was lost, is here still. The run itself has nothing yet. */
static bool has_another(const sl_pipeline *p, const sl_run *r)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && &p->runs[i] != r && !strcmp(p->runs[i].id, r->id)) return true;
    return sl_mover_has(p->mover, r->id);
}

static sl_run *free_run(sl_pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (!p->runs[i].used && (!p->mover || sl_mover_is_free(p->mover, i))) return &p->runs[i];
    return NULL;
}

/* *row is taken over by a job of a queue that servers share. */
static void begin(sl_pipeline *p, sl_run *r, sl_journal_job *row)
{
    *r = (sl_run){.used = true,
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
        sl_mover_fetch(p->mover, sl_run_slot(p, r), &r->row);
        r->fetches = true;
    }
}

/* Jobs that wait for their files. */
void sl_pipeline_begin_fetched(sl_pipeline *p)
{
    for (int i = 0; p->mover && i < SL_LIVE_JOBS; i++) {
        sl_run *r = &p->runs[i];
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
        if (rc) sl_run_end(p, r, rc == SL_GONE ? SL_SYS : rc, err.msg);
        else begin_here(p, r, &r->row);
    }
}

void sl_pipeline_claim(sl_pipeline *p)
{
    const int most = p->careful ? 1 : p->ahead;
    sl_run *r;
    while (p->up && !p->draining && sl_pipeline_count(p) < most && sl_now_ns() >= p->claim_ns &&
           sl_now_ns() >= p->idle_ns && (r = free_run(p))) {
        sl_journal_job row = {0};
        sl_err err = {0};
        sl_code rc = sl_journal_claim(p->s->journal, (int64_t)time(NULL), &row, &err);
        if (rc) {
            if (rc != SL_BUSY) sl_log_err("journal", &err), p->claim_ns = sl_now_ns() + RETRY_NS;
            else if (p->mover) p->idle_ns = sl_now_ns() + IDLE_NS; /* a thousand of them ask */
            return;
        }
        begin(p, r, &row);
        sl_journal_job_free(&row);
        if (p->culprits >= SL_PIPELINE_CULPRITS) p->claim_ns = sl_now_ns() + CARE_NS;
    }
}
