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

#include "common/log.h"
#include "stages/serve/offer.h"
#include "stages/serve/pipeline_body.h"

#define TICK_MS 500
#define SAVE_NS (2 * SL_SECOND_NS)    /* between two notes of a job's progress in the journal */
#define RESTART_NS (1 * SL_SECOND_NS) /* before a dispatcher that was given up is started again */
#define NICE 5                      /* of the stages: they compute when nobody is to be answered */
#define SHOW_NS (SL_SECOND_NS / 2)  /* between two words about a job to a queue of many servers */
#define PARK_NS (15 * SL_SECOND_NS) /* to bring what is finished to the shared files at the end */

int sl_pipeline_count(const sl_pipeline *p)
{
    int n = 0;
    for (int i = 0; i < SL_LIVE_JOBS; i++) n += p->runs[i].used;
    return n;
}

/* ---- cancels ---- */

/* Of a queue that servers share it is heard; a row of one's own is looked at. */
static bool is_cancelled(const sl_pipeline *p, const sl_run *r)
{
    sl_journal_job row = {0};
    if (p->mover) return r->cancel || r->lost;
    const bool is = !sl_journal_get(p->s->journal, r->id, NULL, &row, NULL) && row.cancel_asked;
    sl_journal_job_free(&row);
    return is;
}

static void look_for_cancels(sl_pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        sl_run *r = &p->runs[i];
        if (!r->used || r->over || r->told_cancel || !r->rep.count || !r->rep.jobs[0].number)
            continue;
        if (is_cancelled(p, r)) {
            sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = r->rep.jobs[0].number}};
            r->told_cancel = !sl_dispatcher_send(&p->dispatcher, &m, NULL);
        }
    }
}

/* Jobs that this server ran, and was silent for too long: they go on elsewhere. */
static void lose(sl_pipeline *p, const char *id)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        sl_run *r = &p->runs[i];
        sl_journal_job row = {0};
        if (!r->used || r->lost || strcmp(r->id, id)) continue;
        /* it may have been claimed here again: which of its lives is this? */
        const sl_code rc = sl_journal_get(p->s->journal, id, NULL, &row, NULL);
        r->lost = rc == SL_GONE ||
                  (!rc && (row.fence != r->row.fence || row.state != SL_JOURNAL_RUNNING));
        sl_journal_job_free(&row);
        if (r->lost && (r->waits || r->fetches || r->over)) {
            r->over = true;
            sl_run_settle(p, r);
        }
    }
}

static void look_for_news(sl_pipeline *p)
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
static void look_for_folders(sl_pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        sl_run *r = &p->runs[i];
        sl_msg m = {.type = SL_MSG_CANCEL};
        if (!r->used || r->over || !r->rep.count || sl_run_has(p, r->id, "job.json")) continue;
        m.cancel.job = r->rep.jobs[0].number;
        if (m.cancel.job) sl_dispatcher_send(&p->dispatcher, &m, NULL);
        sl_run_end(p, r, SL_SYS, "its folder was removed while it ran");
    }
}

/* ---- what the dispatcher says ---- */

static sl_run *by_tag(sl_pipeline *p, uint64_t tag)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].req.id == tag) return &p->runs[i];
    return NULL;
}

static sl_run *by_number(sl_pipeline *p, uint64_t number)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].rep.count && p->runs[i].rep.jobs[0].number == number)
            return &p->runs[i];
    return NULL;
}

/* Some instance of each role that jobs of this model need takes jobs. */
static bool is_ready(const sl_pipeline *p)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        const sl_role ends[] = {SL_HANDOVER[h].from, SL_HANDOVER[h].to};
        if (!sl_handover_applies((sl_handover)h, &p->s->model, NULL)) continue;
        for (int i = 0; i < 2; i++)
            if (sl_conf_find(p->conf, ends[i]) && !p->ready[ends[i]]) return false;
    }
    return p->up;
}

static void note_ready(sl_pipeline *p)
{
    const bool ready = is_ready(p) && !p->broken && p->culprits < SL_PIPELINE_CULPRITS;
    if (atomic_exchange(&p->s->ready, ready) != ready) {
        sl_log(SL_LOG_INFO, ready ? "ready" : "not ready");
        sl_offer_tell(p->s);
    }
}

/* Reports of jobs that begin later want to know what they run on. */
static void keep_process(sl_pipeline *p, const sl_msg *m)
{
    int i = 0;
    while (i < p->process_count && (strcmp(p->processes[i].stage.stage, m->stage.stage) ||
                                    p->processes[i].stage.instance != m->stage.instance))
        i++;
    if (i == SL_CONF_SEATS) return;
    p->processes[i] = *m;
    if (i == p->process_count) p->process_count++;
}

static void on_process(sl_pipeline *p, const sl_msg_stage *m)
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

static void count_message(sl_pipeline *p, const sl_run *r, const sl_msg *m)
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

static void on_progress(sl_pipeline *p, sl_run *r, const sl_msg_progress *m)
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
static void look_for_kept(sl_pipeline *p, sl_run *r)
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
static void on_news(sl_pipeline *p, sl_run *r, sl_msg *m)
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

static void on_message(sl_pipeline *p, sl_msg *m)
{
    sl_run *r = NULL;
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
            sl_run_end(p, r,
                       m->finished.code == SL_OK && *m->finished.message
                           ? SL_SYS /* no whole dump */
                       : (unsigned)m->finished.code < SL_CODE_COUNT ? (sl_code)m->finished.code
                                                                    : SL_INTERNAL,
                       m->finished.message);
        else { /* refused: by a dispatcher that is to be started again, or for good */
            if (m->finished.code == SL_BUSY || p->broken) r->back = true;
            sl_run_end(p, r, SL_INTERNAL, m->finished.message);
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

static void receive_all(sl_pipeline *p)
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

static void start(sl_pipeline *p)
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
            sl_run_submit(p, &p->runs[i], &err))
            sl_log_about(p->runs[i].id, SL_LOG_ERROR, "%s", err.msg);
}

/* All jobs that run go back to the queue. */
static void put_back(sl_pipeline *p)
{
    for (int i = 0; i < SL_LIVE_JOBS; i++) {
        sl_run *r = &p->runs[i];
        if (!r->used || r->over) continue;
        r->over = r->back = true;
        sl_run_settle(p, r);
    }
}

static void on_death(sl_pipeline *p)
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
static void end_broken(sl_pipeline *p)
{
    if (p->up && p->broken && (!sl_pipeline_count(p) || !p->began))
        sl_dispatcher_kill(&p->dispatcher);
}

/* ---- signals, time ---- */

static void drain(sl_pipeline *p, void (*reload)(void *), void *self, uint32_t signal)
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
    p->drain_by_ns = sl_now_ns() + p->conf->supervise.drain_s * SL_SECOND_NS;
    sl_log(SL_LOG_INFO, "draining: %d jobs are finished within %d s, the others stay in the queue",
           sl_pipeline_count(p), p->conf->supervise.drain_s);
}

/* What follows from the journal and the disk: when somebody has changed the first, and now and
 * then; not at each message of a stage. */
static void tick(sl_pipeline *p)
{
    p->tick_ns = sl_now_ns();
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used && p->runs[i].over) sl_run_settle(p, &p->runs[i]);
    if (!p->up && p->restart_ns && sl_now_ns() >= p->restart_ns && !p->draining) start(p);
    end_broken(p);
    look_for_news(p);
    sl_pipeline_begin_fetched(p);
    look_for_cancels(p);
    if (p->up) look_for_folders(p);
    if (!sl_pipeline_is_full(p)) sl_pipeline_claim(p);
    note_ready(p);
}

static bool is_through(const sl_pipeline *p)
{
    return p->draining &&
           (!sl_pipeline_count(p) || p->now || !p->up || sl_now_ns() > p->drain_by_ns);
}

static sl_code watch(sl_pipeline *p, int signals, void (*reload)(void *), void (*began)(void *),
                     void *self, sl_err *err)
{
    while (!is_through(p)) {
        zmq_pollitem_t items[] = {{NULL, signals, ZMQ_POLLIN, 0},
                                  {NULL, p->s->wake, ZMQ_POLLIN, 0},
                                  {NULL, p->dispatcher.pidfd, ZMQ_POLLIN, 0},
                                  {p->dispatcher.socket, 0, ZMQ_POLLIN, 0}};
        struct signalfd_siginfo info;
        uint64_t woken;
        const int before = sl_pipeline_count(p);
        if (zmq_poll(items, p->up ? 4 : 2, TICK_MS) < 0 && errno != EINTR)
            return sl_fail(err, SL_SYS, "poll: %s", zmq_strerror(errno));
        const bool told = read(p->s->wake, &woken, sizeof woken) > 0;
        if (told) p->idle_ns = 0;
        receive_all(p);
        if (read(signals, &info, sizeof info) == sizeof info)
            drain(p, reload, self, info.ssi_signo);
        if (p->up && items[2].revents) on_death(p);
        if (told || sl_pipeline_count(p) != before ||
            sl_now_ns() - p->tick_ns >= TICK_MS * 1000000ll)
            tick(p);
        if (p->fatal)
            return sl_fail(err, SL_SYS, "the pipeline cannot be started: the log says why");
        if (!p->began && atomic_load(&p->s->ready)) p->began = true, began(self);
    }
    return SL_OK;
}

/* What runs still is in its folder: the next server goes on with it. */
static void park(sl_pipeline *p)
{
    if (sl_pipeline_count(p))
        sl_log(SL_LOG_INFO, "%d jobs are left for the next start of the server",
               sl_pipeline_count(p));
    if (p->up && sl_pipeline_count(p)) sl_dispatcher_kill(&p->dispatcher);
    sl_dispatcher_stop(&p->dispatcher);
    put_back(p);
    const int64_t until_ns = sl_now_ns() + (p->mover && !p->now ? PARK_NS : 0);
    do {
        for (int i = 0; i < SL_LIVE_JOBS; i++)
            if (p->runs[i].used) sl_run_settle(p, &p->runs[i]);
        const struct timespec t = {0, 20000000};
        if (p->mover && sl_pipeline_count(p)) nanosleep(&t, NULL);
    } while (sl_pipeline_count(p) && sl_now_ns() < until_ns);
    for (int i = 0; i < SL_LIVE_JOBS; i++)
        if (p->runs[i].used) sl_run_forget(&p->runs[i]); /* as after a SIGKILL */
}

sl_code sl_pipeline_run(sl_server *s, void (*reload)(void *self), void (*began)(void *self),
                        void *self, sl_err *err)
{
    sl_pipeline p = {.s = s, .conf = &s->conf};
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
