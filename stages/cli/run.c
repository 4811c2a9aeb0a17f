/* run.c - a pipeline from start to end: run directory, dispatcher, jobs, progress,
 * recovery, results.
 *
 * One thread, one poll over three ends:
 *   control socket   ACCEPTED, PROGRESS, STEP, SPAN, STAGE, SHARE, FINISHED of this client's jobs
 *   signalfd         SIGINT: cancel, and a second one kills the dispatcher; SIGTERM: drain
 *   pidfd            the dispatcher has ended
 * A dispatcher that ends before the jobs do is started again on the same run directory, and
 * every job that is not finished is submitted to it anew: what lies in the spool is found
 * there. Stages die with their dispatcher; those that outlive it by a moment are collected
 * here, since this process is their subreaper. */
#include "stages/cli/arguments.h"
#include "stages/cli/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <zmq.h>

#include "common/log.h"
#include "common/temporary.h"
#include "stages/job/check.h"
#include "stages/job/files.h"
#include "stages/job/folder.h"
#include "stages/job/plan.h"
#include "stages/job/report.h"
#include "stages/job/trace_json.h"

#define REAP_MS 5000 /* longest wait for killed stages to be gone */

typedef struct {
    sl_batch *o;
    sl_conf *conf;
    const sl_model *model;
    sl_report rep;
    char run_dir[SL_PATH], spool[SL_PATH], conf_path[SL_PATH], bin_dir[SL_PATH], endpoint[SL_PATH];
    void *zmq, *socket;
    pid_t pid; /* the dispatcher */
    int pidfd, signals;
    int deaths; /* of the dispatcher, without progress between them */
    int left;   /* jobs that have not ended */
    bool accepted, interrupted, draining;
    int64_t t0_ns;
    struct {
        int64_t last_ns;
        char stage[SL_STR16];
        uint64_t job;
    } shown;
} runner;

/* ---- before: folders ---- */

static sl_code write_conf(runner *r, sl_err *err)
{
    sl_code rc = sl_path_join(r->conf_path, r->run_dir, "run.cfg", err);
    FILE *f = rc ? NULL : fopen(r->conf_path, "we");
    if (rc) return rc;
    if (!f) return sl_fail_errno(err, errno, "%s", r->conf_path);
    rc = sl_conf_print(r->conf, f, err);
    if (fclose(f) && !rc) rc = sl_fail_errno(err, errno, "%s", r->conf_path);
    return rc;
}

static sl_code prepare(runner *r, sl_err *err)
{
    sl_code rc;
    sigset_t set;
    if ((rc = sl_program_dir(r->bin_dir, err)) ||
        (rc = sl_make_run_dir(r->run_dir, r->conf->run.dir, err)))
        return rc;
    if (*r->conf->run.spool) rc = sl_absolute_path(r->spool, r->conf->run.spool, err);
    else rc = sl_path_join(r->spool, r->run_dir, "spool", err);
    if (rc || (rc = sl_make_dirs(r->spool, err)) || (rc = write_conf(r, err))) return rc;
    if (snprintf(r->endpoint, sizeof r->endpoint, "ipc://%.1000s/ctl", r->run_dir) > 6 + 107)
        return sl_fail(err, SL_ARG,
                       "run directory %s is too long for a socket's name, want at most 100 bytes",
                       r->run_dir);
    for (int i = 0; i < r->o->job_count; i++) {
        r->o->jobs[i].id = (uint64_t)(i + 1);
        if ((rc = sl_request_open_dir(&r->o->jobs[i], r->spool, r->o->from, err))) return rc;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    /* this process waits for stages that outlive the dispatcher: see reap_stages */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if ((r->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "signalfd");
    if (!(r->zmq = zmq_ctx_new())) return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    return SL_OK;
}

/* ---- the dispatcher ---- */

static sl_code start_dispatcher(runner *r, sl_err *err)
{
    char path[SL_PATH], parent[16];
    sl_code rc = sl_path_join(path, r->bin_dir, "sluice-dispatch", err);
    char *argv[] = {path,
                    (char *)"--run",
                    r->run_dir,
                    (char *)"--conf",
                    r->conf_path,
                    (char *)"--model",
                    (char *)r->model->dir,
                    (char *)"--bin",
                    r->bin_dir,
                    (char *)"--parent",
                    parent,
                    NULL};
    pid_t self = getpid();
    if (rc) return rc;
    snprintf(parent, sizeof parent, "%d", (int)self);
    if (access(path, X_OK)) return sl_fail_errno(err, errno, "%s", path);
    /* with SIGTERM blocked, so that our death is not lost on it before it listens */
    if ((r->pid = fork()) == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != self) _exit(127);
        setpgid(0, 0); /* Ctrl-C is for this process alone */
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, 0);
        dup2(2, 1);
        execv(path, argv);
        _exit(127);
    }
    r->pidfd = r->pid > 0 ? (int)syscall(SYS_pidfd_open, r->pid, 0) : -1;
    if (r->pidfd < 0) return sl_fail_errno(err, errno, "sluice-dispatch could not be started");
    return SL_OK;
}

static sl_code connect_dispatcher(runner *r, sl_err *err)
{
    int linger = 200, retry_ms = 5;
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.role = "client", .pid = getpid()}};
    sl_code rc;
    if (r->socket) zmq_close(r->socket);
    if (!(r->socket = zmq_socket(r->zmq, ZMQ_DEALER)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(r->socket, ZMQ_LINGER, &linger, sizeof linger);
    /* the dispatcher has not bound its socket yet */
    zmq_setsockopt(r->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    if (zmq_connect(r->socket, r->endpoint))
        return sl_fail(err, SL_SYS, "%s: %s", r->endpoint, zmq_strerror(errno));
    if ((rc = sl_wire_send(r->socket, NULL, 0, &hello, err))) return rc;
    for (int i = 0; i < r->o->job_count; i++) {
        sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = r->o->jobs[i].id}};
        r->rep.jobs[i].number = 0; /* an earlier dispatcher's */
        if (r->rep.jobs[i].finished) continue;
        snprintf(m.submit.dir, sizeof m.submit.dir, "%s", r->o->jobs[i].dir);
        if ((rc = sl_wire_send(r->socket, NULL, 0, &m, err))) return rc;
    }
    return SL_OK;
}

/* ---- progress ---- */

static void show_progress(runner *r, const sl_msg_progress *p)
{
    int64_t now = sl_now_ns();
    bool json = r->conf->run.log_format == SL_LOG_AS_JSON, tty = isatty(2) && !json,
         last = p->done == p->total;
    char which[32] = "", ranks[32] = "";
    /* who takes chunks keeps pace with their sender */
    bool keeps_pace = sl_chunks_to((sl_role)sl_role_by_name(p->stage)) >= 0;
    if (r->o->quiet || (!last && keeps_pace)) return;
    bool other = strcmp(r->shown.stage, p->stage) || r->shown.job != p->job;
    if (!last && !other && now - r->shown.last_ns < (tty ? 100 : 1000) * 1000000ll) return;
    const sl_report_job *j = sl_report_find(&r->rep, p->job);
    if (j && sl_report_team(j) && sl_role_has_teams((sl_role)sl_role_by_name(p->stage)))
        snprintf(ranks, sizeof ranks, ", %d rank%s", sl_report_team(j),
                 sl_report_team(j) > 1 ? "s" : "");
    if (r->o->job_count > 1) snprintf(which, sizeof which, "job %d ", (int)p->job);
    if (json)
        sl_log_about(j ? sl_path_last(j->job->dir) : NULL, SL_LOG_INFO, "%s %u/%u  %.2f s each%s",
                     p->stage, p->done, p->total, p->seconds, ranks);
    else if (tty)
        fprintf(stderr, "%s\r\033[K%s%-8s %u/%u  %.2f s each%s",
                other && *r->shown.stage ? "\n" : "", which, p->stage, p->done, p->total,
                p->seconds, ranks);
    else
        fprintf(stderr, "%s%-8s %u/%u  %.2f s each%s\n", which, p->stage, p->done, p->total,
                p->seconds, ranks);
    fflush(stderr);
    r->shown.last_ns = now;
    r->shown.job = p->job;
    snprintf(r->shown.stage, sizeof r->shown.stage, "%s", p->stage);
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
    const bool alone = r->o->job_count == 1;
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

static void on_finished(runner *r, const sl_msg_finished *m)
{
    sl_report_job *j = sl_report_find(&r->rep, m->tag);
    sl_err err = {0};
    int64_t t0 = sl_now_ns();
    if (!j || j->finished) return;
    j->finished = true;
    j->code = (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL;
    j->bytes = m->bytes;
    snprintf(j->message, sizeof j->message, "%s", m->message);
    if (!j->code && *j->job->dump_dir && (j->code = sl_request_dump(j->job, &err)))
        snprintf(j->message, sizeof j->message, "%s", err.msg);
    if (j->code) sl_temporary_sweep(j->job->spec.output);
    if (j->code && *j->job->spec.preview) sl_temporary_sweep(j->job->spec.preview);
    sl_remove_tree(j->job->dir);
    j->t1_ns = sl_now_ns();
    client_span(r, m->tag, SL_SPAN_SPOOL, t0, j->t1_ns);
    r->left--;
    r->deaths = 0;
    if (!r->o->quiet && isatty(2) && *r->shown.stage && r->conf->run.log_format == SL_LOG_AS_TEXT)
        fputc('\n', stderr);
    *r->shown.stage = 0;
    write_reports(r, j);
    if (j->code) {
        sl_log_job(sl_path_last(j->job->dir));
        sl_complain("%s: %s: %s", j->job->spec.output,
                    j->code == SL_CANCELLED ? "cancelled" : "failed", j->message);
        sl_log_job(NULL);
    } else if (!r->o->quiet) sl_report_print(&r->rep, j, stdout), fflush(stdout);
}

static void cancel(runner *r, const sl_report_job *j)
{
    sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = j->number}};
    if (j->number && !j->finished) sl_wire_send(r->socket, NULL, 0, &m, NULL);
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
    while ((rc = sl_wire_recv(r->socket, NULL, NULL, &m, &err)) != SL_BUSY) {
        if (rc) {
            sl_log_err("dispatcher", &err);
            if (rc != SL_FORMAT) return;
            continue;
        }
        if (!sl_report_own(&r->rep, &m)) continue;
        switch (m.type) {
        case SL_MSG_ACCEPTED: on_accepted(r, &m.accepted); break;
        case SL_MSG_PROGRESS:
            r->deaths = 0;
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
        sl_wire_send(r->socket, NULL, 0, &m, NULL);
        return;
    }
    if (r->interrupted) kill(r->pid, SIGKILL); /* a second Ctrl-C */
    r->interrupted = true;
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

/* Wait for the stages of a dispatcher that was killed, which the kernel kills with it. When
 * the last stage is gone, nobody holds the run's files, and every temporary is a leftover. */
static void reap_stages(void)
{
    int64_t until = sl_now_ns() + REAP_MS * 1000000ll;
    pid_t ended;
    while ((ended = waitpid(-1, NULL, WNOHANG)) >= 0 && sl_now_ns() < until)
        if (!ended) usleep(1000);
    if (ended == 0)
        sl_log(SL_LOG_WARN, "stages of the dispatcher that ended are still there after %d s",
               REAP_MS / 1000);
}

/* The dispatcher has ended before the jobs have. Its stages died with it; what they
 * finished lies in the spool. */
static sl_code on_dispatcher_death(runner *r, sl_err *err)
{
    int status = 0;
    sl_code rc;
    waitpid(r->pid, &status, 0);
    close(r->pidfd);
    r->pidfd = -1;
    reap_stages();
    r->rep.restarts++;
    if (r->interrupted || r->draining) {
        end_all(r, SL_CANCELLED, "cancelled");
        return SL_OK;
    }
    if ((WIFEXITED(status) && WEXITSTATUS(status)) || ++r->deaths > r->conf->supervise.restarts) {
        char why[128];
        snprintf(why, sizeof why,
                 WIFEXITED(status) ? "the dispatcher could not run (exit status %d)"
                                   : "the dispatcher was killed %d times in a row: giving up",
                 WIFEXITED(status) ? WEXITSTATUS(status) : r->deaths);
        end_all(r, SL_SYS, why);
        return SL_OK;
    }
    sl_log(SL_LOG_WARN, "the dispatcher ended (%s %d): started again",
           WIFSIGNALED(status) ? "signal" : "status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    if ((rc = start_dispatcher(r, err)) || (rc = connect_dispatcher(r, err))) return rc;
    return SL_OK;
}

static sl_code watch(runner *r, sl_err *err)
{
    while (r->left) {
        zmq_pollitem_t items[] = {{r->socket, 0, ZMQ_POLLIN, 0},
                                  {NULL, r->signals, ZMQ_POLLIN, 0},
                                  {NULL, r->pidfd, ZMQ_POLLIN, 0}};
        struct signalfd_siginfo info;
        sl_code rc;
        if (zmq_poll(items, 3, 1000) < 0 && errno != EINTR)
            return sl_fail(err, SL_SYS, "poll: %s", zmq_strerror(errno));
        receive_all(r);
        if (read(r->signals, &info, sizeof info) == sizeof info) on_signal(r, info.ssi_signo);
        if (r->left && items[2].revents && (rc = on_dispatcher_death(r, err))) return rc;
    }
    return SL_OK;
}

/* Ask the dispatcher to end; it ends its stages. Nothing of the run is left afterwards. */
static void stop(runner *r)
{
    sl_msg m = {.type = SL_MSG_DRAIN};
    if (r->pidfd >= 0) {
        zmq_pollitem_t item = {NULL, r->pidfd, ZMQ_POLLIN, 0};
        if (r->socket) sl_wire_send(r->socket, NULL, 0, &m, NULL);
        if (zmq_poll(&item, 1, 8000) < 1) kill(r->pid, SIGKILL);
        waitpid(r->pid, NULL, 0);
        close(r->pidfd);
        reap_stages();
    }
    if (r->socket) zmq_close(r->socket);
    if (r->zmq) zmq_ctx_term(r->zmq);
    if (r->signals >= 0) close(r->signals);
    if (*r->run_dir && !*r->conf->run.dir) sl_remove_tree(r->run_dir);
}

/* Start the dispatcher, submit all jobs, watch, restart it when it dies, until every job
 * has ended. Returns an exit status; an error before any job ran is in *err. */
static int run_jobs(sl_batch *o, const sl_model *model, sl_conf *conf, int64_t t0_ns, sl_err *err)
{
    runner *r = calloc(1, sizeof *r);
    int status = SL_EXIT_OK;
    sl_err second = {0};
    if (!r) {
        sl_fail(err, SL_NOMEM, "no memory");
        return SL_EXIT_REFUSED;
    }
    *r = (runner){.o = o,
                  .conf = conf,
                  .model = model,
                  .pidfd = -1,
                  .signals = -1,
                  .left = o->job_count,
                  .t0_ns = t0_ns};
    sl_log_open("sluice", conf->run.log);
    signal(SIGPIPE, SIG_IGN);
    if (sl_report_init(&r->rep, o->jobs, o->job_count, t0_ns, err) || prepare(r, err) ||
        start_dispatcher(r, err) || connect_dispatcher(r, err) || watch(r, err))
        status = SL_EXIT_FAILED;
    for (int i = 0; i < r->rep.count; i++)
        if (!r->rep.jobs[i].finished || r->rep.jobs[i].code) status = SL_EXIT_FAILED;
    stop(r);
    for (int i = 0; i < r->rep.count; i++) /* the run ended before it began */
        if (!r->rep.jobs[i].finished && *o->jobs[i].dir) sl_remove_tree(o->jobs[i].dir);
    if (o->job_count > 1 && *o->base.json && sl_report_write(&r->rep, NULL, o->base.json, err))
        status = SL_EXIT_FAILED;
    if (o->job_count > 1 && *o->base.trace &&
        sl_report_trace_write(&r->rep, NULL, o->base.trace, err->code ? &second : err))
        status = SL_EXIT_FAILED;
    sl_report_free(&r->rep);
    free(r);
    return status;
}

int sl_cli_run(bool replay, int argc, char **argv, int64_t t0_ns)
{
    sl_batch o = {0};
    sl_model model;
    sl_conf conf;
    sl_admission fits;
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    bool ready =
        !sl_cli_parse(&o, replay, argc, argv, &err) && !sl_batch_check(&o, &model, &conf, &err);
    if (ready) sl_log_use_format(conf.run.log_format);
    if (ready && !sl_plan_admit(&fits, &o, &model, &conf, &err)) {
        if (fits.held < fits.mapped)
            sl_log(SL_LOG_WARN,
                   "memory holds %llu of the %llu bytes of weights that stay mapped: the rest is "
                   "read from the disk again at every step",
                   (unsigned long long)fits.held, (unsigned long long)fits.mapped);
        status = run_jobs(&o, &model, &conf, t0_ns, &err);
    }
    if (err.code) sl_complain("%s", err.msg);
    sl_batch_free(&o);
    return status;
}
