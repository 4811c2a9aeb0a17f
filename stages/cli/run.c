/* run.c - a pipeline from start to end: run directory, dispatcher, jobs, progress,
 * recovery, results.
 *
 * One thread, one poll over three ends:
 *   control socket   ACCEPTED, PROGRESS, STEP, SPAN, STAGE, SHARE, FINISHED of this client's jobs
 *   signalfd         SIGINT: cancel, and a second one, or 3 s, kill the dispatcher; SIGTERM: drain
 *   pidfd            the dispatcher has ended
 * and, where the jobs come by a pipe,
 *   feed             its lines: a job each, checked, admitted and submitted when it has come
 * A dispatcher that ends before the jobs do is started again on the same run directory, and
 * every job that is not finished is submitted to it anew: what lies in the spool is found
 * there. */
#include "stages/cli/arguments.h"
#include "stages/cli/feed.h"
#include "stages/cli/notices.h"
#include "stages/cli/progress.h"
#include "stages/cli/run.h"
#include "stages/cli/submit.h"
#include "stages/cli/verbs.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <zmq.h>

#include "common/log.h"
#include "common/temporary.h"
#include "stages/job/batch_report.h"
#include "stages/job/check.h"
#include "stages/job/dispatcher.h"
#include "stages/job/files.h"
#include "stages/job/dump.h"
#include "stages/job/folder.h"
#include "stages/job/fork.h"
#include "stages/job/intake.h"
#include "stages/job/output.h"
#include "stages/job/plan.h"
#include "stages/job/record.h"
#include "stages/job/replay.h"
#include "stages/job/report.h"
#include "stages/job/trace_json.h"

#define CANCEL_S 3 /* after Ctrl-C, longest wait for stages that were told to stop */

typedef struct {
    sl_batch *o;
    sl_conf *conf;
    const sl_model *model;
    const sl_attached *attached; /* NULL: no stage has the terminal */
    sl_report rep;
    sl_record *record; /* of the run, in run.spool */
    char run_dir[SL_PATH], spool[SL_PATH];
    sl_dispatcher dispatcher;
    sl_feed feed;  /* jobs that come by and by; fd -1: none do */
    FILE *results; /* a line as each job ends; NULL: nobody wants them */
    int signals;
    int left;  /* jobs that have not ended */
    int later; /* of those that have, which stay in the spool */
    bool accepted, interrupted, draining;
    bool refused; /* a line of the feed was */
    bool streams; /* standard output may be a job's video: no report goes there */
    int64_t t0_ns, interrupted_ns, looked_ns;
    sl_progress shown;
} runner;

/* ---- before: folders ---- */

/* The jobs' folders, and in a spool that outlives the run the record of them. Those of a dead run
 * are there. */
static sl_code open_folders(runner *r, sl_err *err)
{
    const bool again = *r->record->path;
    sl_code rc = SL_OK;
    for (int i = 0; i < r->o->job_count; i++) r->o->jobs[i].id = (uint64_t)(i + 1);
    if (again) return SL_OK;
    /* of jobs that come by a pipe nobody can say which are left */
    if (*r->conf->run.spool && !r->o->jobs_stream) {
        sl_request_sweep(r->spool, "");
        if ((rc = sl_record_make(r->record, r->spool, err))) return rc;
    }
    for (int i = 0; i < r->o->job_count && !rc; i++) {
        memcpy(r->o->jobs[i].record, r->record->path, SL_PATH);
        rc = sl_request_open_dir(&r->o->jobs[i], r->spool, r->o->from, err);
    }
    return rc || !*r->record->path ? rc : sl_record_write(r->record, r->o, err);
}

/* Standard output is the results' alone then. */
static sl_code open_results(runner *r, sl_err *err)
{
    const char *path = r->o->results;
    if (!*path) return SL_OK;
    const bool out = !strcmp(path, "-");
    if (out) r->streams = true;
    r->results = out ? stdout : fopen(path, "we");
    return r->results ? SL_OK : sl_fail_errno(err, errno, "--results %s", path);
}

static sl_code prepare(runner *r, sl_err *err)
{
    sl_code rc;
    sigset_t set;
    if ((rc = sl_make_run_dir(r->run_dir, r->conf->run.dir, err))) return rc;
    if (*r->conf->run.spool) rc = sl_absolute_path(r->spool, r->conf->run.spool, err);
    else rc = sl_path_join(r->spool, r->run_dir, "spool", err);
    if (rc || (rc = sl_make_dirs(r->spool, err))) return rc;
    /* the record last: a command that is refused leaves no jobs behind */
    if ((rc = open_results(r, err)) ||
        (r->o->jobs_stream && (rc = sl_feed_open(&r->feed, r->o->jobs_file, err))) ||
        (rc = open_folders(r, err)))
        return rc;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if ((r->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "signalfd");
    rc = sl_dispatcher_open(&r->dispatcher, r->conf, r->model->dir, r->run_dir, false, err);
    if (*r->o->wire) { /* each dispatcher of this run appends to it */
        if (truncate(r->o->wire, 0) && errno != ENOENT && errno != EINVAL)
            return sl_fail_errno(err, errno, "--wire %s", r->o->wire);
        r->dispatcher.wire = r->o->wire;
    }
    if (r->attached) {
        r->dispatcher.attach = r->attached->role;
        r->dispatcher.wrapper = r->attached->wrapper;
    }
    return rc;
}

/* ---- the dispatcher ---- */

static sl_code submit(runner *r, const sl_request *q, sl_err *err)
{
    sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = q->id}};
    snprintf(m.submit.dir, sizeof m.submit.dir, "%s", q->dir);
    return sl_dispatcher_send(&r->dispatcher, &m, err);
}

static sl_code start_dispatcher(runner *r, sl_err *err)
{
    sl_code rc = sl_dispatcher_start(&r->dispatcher, err);
    for (int i = 0; i < r->rep.count && !rc; i++) {
        r->rep.jobs[i].number = 0; /* an earlier dispatcher's */
        if (!r->rep.jobs[i].finished) rc = submit(r, r->rep.jobs[i].job, err);
    }
    return rc;
}

/* ---- progress ---- */

static void show_progress(runner *r, const sl_msg_progress *p)
{
    const sl_report_job *j = sl_report_find(&r->rep, p->job);
    r->shown.name = j ? sl_path_last(j->job->dir) : NULL;
    sl_progress_step(&r->shown, p->job, p->stage, p->done, p->total, p->seconds,
                     j ? sl_report_team(j) : 0);
}

/* ---- results ---- */

static void client_span(runner *r, uint64_t job, sl_span_kind kind, int64_t t0, int64_t t1)
{
    sl_span s = sl_span_make(job, "client", kind, t0, t1);
    sl_trace_add(&r->rep.trace, &s, NULL);
}

/* The job's own report and trace; one of all jobs comes at the end. */
static void write_reports(runner *r, sl_report_job *j)
{
    const sl_request *q = j->job, *base = &r->o->base;
    const bool alone = r->o->job_count == 1 && !r->o->jobs_stream;
    const char *what = "report";
    sl_err err = {0};
    sl_code rc = SL_OK;
    if (*q->json && (alone || strcmp(q->json, base->json)))
        rc = sl_report_write(&r->rep, j, q->json, &err);
    if (!rc && *q->trace && (alone || strcmp(q->trace, base->trace))) {
        what = "trace";
        rc = sl_report_trace_write(&r->rep, j, q->trace, &err);
    }
    if (!rc || j->code) return;
    snprintf(j->message, sizeof j->message, "the video is written, its %s is not: %.400s", what,
             err.msg);
    j->code = rc;
}

/* What a job has of hand-overs goes into its dump. Of one that failed without a dump, latents are
 * kept: hours of work that a replay goes on from. */
static void save_work(runner *r, sl_report_job *j)
{
    sl_err err = {0};
    int handovers = 0;
    char undumped[SL_TEXT], parent[SL_PATH];
    const bool latents = sl_request_has(j->job, SL_HANDOVER_LATENTS);
    const bool failed = j->code && j->code != SL_CANCELLED;
    if (*j->job->dump_dir) {
        const sl_dump_end end = {j->code, j->message, r->o->from};
        sl_code rc = sl_request_dump(j->job, &end, &handovers, &err);
        if (!j->code && !rc && *j->message) /* the dispatcher's, of a file that it does without */
            rc = sl_fail(&err, SL_SYS, "its dump is not whole: %.400s", j->message);
        if (!j->code && rc) {
            snprintf(undumped, sizeof undumped, "the video is written, %.480s", err.msg);
            memcpy(j->message, undumped, sizeof undumped);
            j->code = rc;
        } else if (j->code && handovers) snprintf(j->kept, SL_PATH, "%s", j->job->dump_dir);
    }
    /* a dump that took no hand-over, on a full disk, leaves them where they are */
    if (!failed || *j->kept || !latents) return;
    snprintf(parent, sizeof parent, "%s", *r->conf->run.spool ? r->spool : r->run_dir);
    if (!*r->conf->run.spool && !*r->conf->run.dir) *strrchr(parent, '/') = 0;
    if (!sl_request_keep(j->job, *parent ? parent : "/", j->kept, &err)) return;
    *j->kept = 0;
    sl_log(SL_LOG_WARN, "the latents could not be kept: %s", err.msg);
}

static void complain(const runner *r, const sl_report_job *j, bool later)
{
    char hint[SL_LOG_LINE] = "", line[SL_LOG_LINE / 2] = "", latents[SL_PATH];
    if (*j->kept) {
        const bool done =
            !sl_path_join(latents, j->kept, "denoise.safetensors", NULL) && !access(latents, R_OK);
        sl_replay_line(line, sizeof line, r->o, j->job, r->model, j->kept);
        snprintf(hint, sizeof hint, "; %s %s%s%s",
                 done ? "the latents are in" : "what it had is in", j->kept,
                 *line ? ": go on with " : "", line);
    }
    if (later)
        snprintf(hint, sizeof hint, "; sluice run --resume --conf %s goes on with it", r->o->conf);
    sl_log_job(sl_path_last(j->job->dir));
    sl_complain("%s: %s: %s%s",
                j->job->no_video  ? sl_path_last(j->job->dir)
                : j->job->streams ? "the stream"
                                  : j->job->spec.output,
                j->code == SL_CANCELLED ? "cancelled" : "failed", j->message, hint);
    sl_log_job(NULL);
}

/* What a run that was told to end has not begun stays in its spool. */
static bool is_for_later(const runner *r, const sl_report_job *j)
{
    return *r->record->path && r->draining && !r->interrupted && j->code == SL_CANCELLED;
}

static void on_finished(runner *r, const sl_msg_finished *m)
{
    sl_report_job *j = sl_report_find(&r->rep, m->tag);
    int64_t t0 = sl_now_ns();
    if (!j || j->finished) return;
    j->finished = true;
    j->code = (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL;
    j->bytes = m->bytes;
    snprintf(j->message, sizeof j->message, "%s", m->message);
    sl_err err = {0};
    if (!j->code && j->job->streams &&
        (j->code = sl_output_stream(j->job->spec.output, j->job->stream, &err)))
        snprintf(j->message, sizeof j->message, "%s", err.msg);
    save_work(r, j);
    if (j->code) sl_temporary_sweep(j->job->spec.output);
    if (j->code && *j->job->spec.preview) sl_temporary_sweep(j->job->spec.preview);
    /* a run that is killed before the folder goes makes the job's end again */
    const bool later = is_for_later(r, j);
    j->t1_ns = sl_now_ns();
    client_span(r, m->tag, SL_SPAN_SPOOL, t0, j->t1_ns);
    r->left--;
    r->dispatcher.deaths = 0;
    sl_progress_end(&r->shown);
    write_reports(r, j);
    if (r->results) sl_report_line(&r->rep, j, r->results);
    if (later) r->later++;
    else sl_request_close_dir(j->job);
    if (j->code) complain(r, j, later);
    else if (!r->o->quiet)
        sl_report_print(&r->rep, j, r->streams ? stderr : stdout), fflush(stdout);
}

/* ---- jobs that come by a pipe ---- */

/* A line of the feed is no job that can be run: that is its own failure. */
static void refuse(runner *r, const sl_request *q, int line, const sl_err *why)
{
    sl_report_job *j = NULL;
    sl_err err = {0};
    if (sl_report_add(&r->rep, &j, q, sl_now_ns(), &err)) return;
    j->finished = j->refused = true;
    j->line = line;
    j->code = why->code ? why->code : SL_INTERNAL;
    j->t1_ns = j->t0_ns;
    snprintf(j->message, sizeof j->message, "%s", why->msg);
    sl_progress_end(&r->shown);
    sl_complain("%s", why->msg);
    if (r->results) sl_report_line(&r->rep, j, r->results);
}

/* The batch's last job, parsed, into the pipeline. */
static sl_code begin_last(runner *r, sl_err *err)
{
    sl_batch last = sl_batch_last(r->o);
    sl_request *q = last.jobs;
    sl_report_job *j;
    sl_admission fits;
    sl_code rc;
    q->id = (uint64_t)r->o->job_count;
    if ((rc = sl_batch_check_last(r->o, r->model, r->conf, err))) return rc;
    if ((rc = sl_plan_admit(&fits, &last, r->model, r->conf, err)) ||
        (rc = sl_notice_room(&last, r->model, err)) ||
        (rc = sl_request_open_dir(q, r->spool, r->o->from, err)))
        return sl_context(err, rc, "%s:%d", sl_batch_jobs_name(r->o), q->line);
    if ((rc = sl_report_add(&r->rep, &j, q, sl_now_ns(), err))) return rc;
    r->left++;
    r->streams = r->streams || q->streams;
    sl_notice_hints(&last, r->model);
    return submit(r, q, err);
}

static void take_line(runner *r, const char *text, size_t length)
{
    const char *name = sl_batch_jobs_name(r->o);
    const int before = r->o->job_count, line = r->feed.line;
    sl_err err = {0};
    sl_code rc = SL_OK;
    if (text && strspn(text, " \t\r") == length) return;
    if (!text)
        rc = sl_fail(&err, SL_FORMAT, "%s:%d: the line is longer than %zu bytes", name, line,
                     SL_FEED_LINE);
    else if (!(rc = sl_batch_add_json(r->o, text, length, name, line, &err))) {
        if (*r->o->from) sl_fork_note(&r->o->jobs[before], r->o->step);
        rc = begin_last(r, &err);
    }
    if (!rc) return;
    r->refused = true;
    /* a line too long, or one job too many, has no place in the batch */
    if (r->o->job_count == before) {
        refuse(r, &r->o->base, line, &err);
        return;
    }
    sl_request *q = &r->o->jobs[before];
    q->id = (uint64_t)before + 1;
    refuse(r, q, line, &err);
    if (*q->dir) sl_request_close_dir(q);
    *q->spec.output = *q->dump_dir = 0; /* what it would have written is free for another line */
}

/* More jobs may come. */
static bool is_fed(const runner *r)
{
    return sl_feed_goes_on(&r->feed) && !r->interrupted && !r->draining;
}

/* The lines that are there, as far as there is room for their jobs. */
static void take_lines(runner *r)
{
    const char *text;
    size_t length;
    while (is_fed(r) && r->left < r->conf->limits.jobs && sl_feed_next(&r->feed, &text, &length))
        take_line(r, text, length);
}

/* There is room for a job, and no line to make one of. */
static bool wants_input(const runner *r)
{
    return r->feed.fd >= 0 && is_fed(r) && r->left < r->conf->limits.jobs;
}

static void cancel(runner *r, const sl_report_job *j)
{
    sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = j->number}};
    if (j->number && !j->finished) sl_dispatcher_send(&r->dispatcher, &m, NULL);
}

static void on_accepted(runner *r, const sl_msg_accepted *m)
{
    sl_report_job *j = sl_report_find(&r->rep, m->tag);
    if (!r->accepted) client_span(r, 0, SL_SPAN_START, r->t0_ns, sl_now_ns());
    r->accepted = true;
    if (!j) return;
    j->number = m->job;
    if (r->interrupted) cancel(r, j); /* nobody could before */
}

static void receive_all(runner *r)
{
    sl_msg m;
    sl_err err = {0};
    sl_code rc;
    while ((rc = sl_dispatcher_recv(&r->dispatcher, &m, &err)) != SL_BUSY) {
        if (rc) {
            sl_log_err("dispatcher", &err);
            if (rc != SL_FORMAT) return;
            continue;
        }
        if (!sl_report_own(&r->rep, &m)) continue;
        switch (m.type) {
        case SL_MSG_ACCEPTED: on_accepted(r, &m.accepted); break;
        case SL_MSG_PROGRESS:
            r->dispatcher.deaths = 0;
            show_progress(r, &m.progress);
            break;
        case SL_MSG_FINISHED: on_finished(r, &m.finished); break;
        default: sl_report_message(&r->rep, &m);
        }
    }
}

/* ---- signals and deaths ---- */

static void on_signal(runner *r, uint32_t sig)
{
    /* what has begun is finished, what has not is not begun */
    if (sig == SIGTERM && !r->draining) {
        sl_msg m = {.type = SL_MSG_DRAIN};
        r->draining = true;
        sl_log(SL_LOG_INFO, "draining: jobs under way are finished, others are not begun");
        sl_dispatcher_send(&r->dispatcher, &m, NULL);
        return;
    }
    /* Ctrl-C speaks to the debugger, which ends the run by its own end */
    if (r->attached && *r->attached->wrapper) return;
    if (r->interrupted) sl_dispatcher_kill(&r->dispatcher); /* a second Ctrl-C */
    if (!r->interrupted) r->interrupted_ns = sl_now_ns();
    r->interrupted = r->dispatcher.hurry = true;
    for (int i = 0; i < r->rep.count; i++) cancel(r, &r->rep.jobs[i]);
}

static void end_all(runner *r, sl_code code, const char *why)
{
    for (int i = 0; i < r->o->job_count; i++) {
        sl_msg_finished m = {.tag = r->o->jobs[i].id, .code = (int32_t)code};
        snprintf(m.message, sizeof m.message, "%s", why);
        on_finished(r, &m);
    }
}

/* The dispatcher has ended before the jobs have. Its stages died with it; what they
 * finished lies in the spool. */
static sl_code on_dispatcher_death(runner *r, sl_err *err)
{
    sl_err why = {0};
    sl_code rc = sl_dispatcher_ended(&r->dispatcher, &why);
    r->rep.restarts++;
    if (r->interrupted || r->draining) end_all(r, SL_CANCELLED, "cancelled");
    else if (rc) end_all(r, rc, why.msg);
    else return start_dispatcher(r, err);
    return SL_OK;
}

/* A folder that somebody removes takes what was finished with it: that is told at once, not when
 * the next stage looks for it hours later. */
static void look_for_folders(runner *r)
{
    const int64_t now = sl_now_ns();
    if (now - r->looked_ns < 1000000000ll) return;
    r->looked_ns = now;
    char path[SL_PATH], lock[SL_PATH], why[SL_TEXT];
    const bool gone = !sl_path_join(lock, r->run_dir, "lock", NULL) && access(lock, F_OK) != 0;
    for (int i = 0; i < r->rep.count; i++) {
        sl_report_job *j = &r->rep.jobs[i];
        if (j->finished || !j->number || sl_path_join(path, j->job->dir, "job.json", NULL) ||
            (!gone && !access(path, F_OK)))
            continue;
        sl_msg_finished m = {.tag = j->job->id, .code = SL_SYS};
        snprintf(why, sizeof why, "%.300s was removed while the job ran",
                 gone ? r->run_dir : j->job->dir);
        memcpy(m.message, why, sizeof why);
        cancel(r, j);
        on_finished(r, &m);
    }
}

static sl_code watch(runner *r, sl_err *err)
{
    while (r->left || is_fed(r)) {
        zmq_pollitem_t items[] = {{r->dispatcher.socket, 0, ZMQ_POLLIN, 0},
                                  {NULL, r->signals, ZMQ_POLLIN, 0},
                                  {NULL, r->dispatcher.pidfd, ZMQ_POLLIN, 0},
                                  {NULL, r->feed.fd, ZMQ_POLLIN, 0}};
        struct signalfd_siginfo info;
        sl_code rc;
        if (zmq_poll(items, wants_input(r) ? 4 : 3, 1000) < 0 && errno != EINTR)
            return sl_fail(err, SL_SYS, "poll: %s", zmq_strerror(errno));
        receive_all(r);
        look_for_folders(r);
        if (items[3].revents && (rc = sl_feed_read(&r->feed, err))) return rc;
        take_lines(r);
        if (read(r->signals, &info, sizeof info) == sizeof info) on_signal(r, info.ssi_signo);
        /* a stage that does not listen does not keep anybody waiting */
        if (r->interrupted && sl_now_ns() - r->interrupted_ns > CANCEL_S * 1000000000ll)
            sl_dispatcher_kill(&r->dispatcher);
        if ((r->left || is_fed(r)) && items[2].revents && (rc = on_dispatcher_death(r, err)))
            return rc;
    }
    return SL_OK;
}

/* Nothing of the run is left afterwards. */
static void stop(runner *r)
{
    sl_dispatcher_stop(&r->dispatcher);
    if (r->signals >= 0) close(r->signals);
    sl_feed_close(&r->feed);
    if (r->results && r->results != stdout) fclose(r->results);
    if (*r->run_dir && !*r->conf->run.dir) sl_remove_tree(r->run_dir);
}

/* How busy the stages were, and what waited for what. */
static void print_batch(const runner *r)
{
    json_t *batch = sl_batch_report(&r->rep);
    sl_batch_report_print(batch, r->streams ? stderr : stdout);
    json_decref(batch);
}

/* Start the dispatcher, submit all jobs, watch, restart it when it dies, until every job
 * has ended. Returns an exit status; an error before any job ran is in *err. */
static int run_jobs(sl_batch *o, sl_record *record, const sl_model *model, sl_conf *conf,
                    const sl_attached *attached, int64_t t0_ns, sl_err *err)
{
    runner *r = calloc(1, sizeof *r);
    int status = SL_EXIT_OK;
    sl_err second = {0};
    if (!r) {
        sl_fail(err, SL_NOMEM, "no memory");
        return SL_EXIT_REFUSED;
    }
    *r = (runner){.o = o,
                  .record = record,
                  .conf = conf,
                  .model = model,
                  .attached = attached,
                  .signals = -1,
                  .feed = {.fd = -1},
                  .left = o->job_count,
                  .shown = {.quiet = o->quiet,
                            .many = o->job_count > 1 || o->jobs_stream,
                            .logs = conf->run.log_format == SL_LOG_AS_JSON},
                  .t0_ns = t0_ns};
    for (int i = 0; i < o->job_count; i++) r->streams = r->streams || o->jobs[i].streams;
    sl_log_open("sluice", conf->run.log);
    signal(SIGPIPE, SIG_IGN);
    if (sl_report_init(&r->rep, o->jobs, o->job_count, t0_ns, err) || prepare(r, err) ||
        start_dispatcher(r, err) || watch(r, err))
        status = SL_EXIT_FAILED;
    for (int i = 0; i < r->rep.count; i++)
        if (!r->rep.jobs[i].finished || r->rep.jobs[i].code) status = SL_EXIT_FAILED;
    stop(r);
    o->stopped = r->interrupted || r->draining;
    for (int i = 0; i < r->rep.count; i++) { /* the run ended before it began */
        const sl_report_job *j = &r->rep.jobs[i];
        if (j->finished || !*j->job->dir) continue;
        if (record->written) r->later++;
        else sl_request_close_dir(j->job);
    }
    sl_record_close(record, !r->later);
    const bool many = o->job_count > 1 || o->jobs_stream;
    if (r->refused) status = SL_EXIT_FAILED;
    if (many && !o->quiet) print_batch(r);
    if (many && *o->base.json && sl_batch_report_write(&r->rep, o->base.json, err))
        status = SL_EXIT_FAILED;
    if (many && *o->base.trace &&
        sl_report_trace_write(&r->rep, NULL, o->base.trace, err->code ? &second : err))
        status = SL_EXIT_FAILED;
    sl_report_free(&r->rep);
    free(r);
    return status;
}

/* A batch that is checked: does it fit, and then run it. An exit status. */
static int run_batch(sl_batch *o, sl_record *record, const sl_model *model, sl_conf *conf,
                     const sl_attached *attached, int64_t t0_ns, sl_err *err)
{
    sl_admission fits;
    sl_log_use_format(conf->run.log_format);
    if (sl_plan_admit(&fits, o, model, conf, err) || sl_notice_room(o, model, err))
        return SL_EXIT_REFUSED;
    if (fits.held < fits.mapped)
        sl_log(SL_LOG_WARN,
               "memory holds %llu of the %llu bytes of weights that stay mapped: the rest is "
               "read from the disk again at every step",
               (unsigned long long)fits.held, (unsigned long long)fits.mapped);
    sl_notice_hints(o, model);
    if (*o->replay_dir && o->job_count && !o->quiet) sl_notice_replay(o, conf);
    return run_jobs(o, record, model, conf, attached, t0_ns, err);
}

int sl_cli_run_batch(sl_batch *o, const sl_attached *attached, int64_t t0_ns)
{
    sl_record record = {.fd = -1};
    sl_model model;
    sl_conf conf;
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    if (!sl_batch_check(o, &model, &conf, &err)) {
        if (attached && *attached->wrapper) conf.supervise.restarts = 1000; /* gdb: run */
        status = run_batch(o, &record, &model, &conf, attached, t0_ns, &err);
    }
    if (err.code) sl_complain("%s", err.msg);
    return status;
}

/* ---- runs that died ---- */

/* One of them, by its record's name. *found: it had jobs left. An exit status. */
static int resume_one(sl_batch *o, const char *spool, const char *name, int64_t t0_ns, bool *found)
{
    sl_batch b = {0};
    sl_record record = {.fd = -1};
    sl_model model;
    sl_conf conf;
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    sl_code rc = sl_batch_init(&b, &err);
    memcpy(b.conf, o->conf, sizeof b.conf);
    memcpy(b.device, o->device, sizeof b.device);
    memcpy(b.log, o->log, sizeof b.log);
    b.quiet = o->quiet;
    if (!rc) rc = sl_record_take(&record, &b, spool, name, &err);
    if (rc == SL_BUSY) {
        sl_log(SL_LOG_WARN, "%s", err.msg);
        err.code = SL_OK;
        status = SL_EXIT_OK;
    } else if (!rc && !b.job_count) status = SL_EXIT_OK;
    else if (!rc) {
        *found = true;
        for (int i = 0; i < b.job_count; i++) sl_temporary_sweep(b.jobs[i].spec.output);
        if (!sl_batch_check_again(&b, &model, &conf, &err))
            status = run_batch(&b, &record, &model, &conf, NULL, t0_ns, &err);
        o->stopped = b.stopped;
        sl_record_close(&record, false); /* refused: it stays */
    }
    if (err.code) sl_complain("%s", err.msg);
    sl_batch_free(&b);
    return status;
}

static int resume(sl_batch *o, int64_t t0_ns)
{
    char spool[SL_PATH], **names;
    sl_conf conf;
    sl_err err = {0};
    int status = SL_EXIT_OK;
    bool found = false;
    sl_conf_defaults(&conf);
    if (sl_conf_read_file(&conf, o->conf, &err) ||
        (!*conf.run.spool &&
         sl_fail(&err, SL_ARG, "--resume: %s sets no run.spool, which would hold jobs", o->conf)) ||
        sl_absolute_path(spool, conf.run.spool, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    const int n = sl_record_list(&names, spool);
    for (int i = 0; i < n; i++) {
        const int one = o->stopped ? 0 : resume_one(o, spool, names[i], t0_ns, &found);
        if (one > status) status = one;
        free(names[i]);
    }
    free(names);
    if (!found && status == SL_EXIT_OK)
        sl_log(SL_LOG_INFO, "%s holds no job that a killed run left", spool);
    return status;
}

static int run(bool replay, int argc, char **argv)
{
    const int64_t t0_ns = sl_now_ns();
    sl_batch o = {0};
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    if (sl_cli_parse(&o, replay, argc, argv, &err)) sl_complain("%s", err.msg);
    else if (o.resume) status = resume(&o, t0_ns);
    else status = sl_cli_run_batch(&o, NULL, t0_ns);
    sl_batch_free(&o);
    return status;
}

int sl_cli_run(int argc, char **argv)
{
    if (sl_submit_is_remote(argc, argv)) return sl_submit_run(argc, argv);
    return run(false, argc, argv);
}

int sl_cli_replay(int argc, char **argv)
{
    return run(true, argc, argv);
}
