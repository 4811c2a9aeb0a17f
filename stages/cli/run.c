/* run.c - a pipeline from start to end: run directory, dispatcher, jobs, progress,
 * recovery, results. */
#include "stages/cli/cli.h"

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
#include "stages/mux/mp4.h"

#define REAP_MS 5000 /* longest wait for killed stages to be gone */

typedef struct {
    cli_options *o;
    sl_conf *conf;
    const sl_model *model;
    report rep;
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

/* A replayed job begins with the hand-overs of stages before --from, and those beside it. */
static sl_code copy_dumped(const cli_job *j, const char *from, sl_err *err)
{
    static const struct {
        /* the stage that makes this file, which is asked to run again */
        const char *file, *not_from;
    } FILES[] = {{"text.safetensors", "text"},
                 {"image.safetensors", "image"},
                 {"denoise.safetensors", "denoise"}};
    char src[SL_PATH], dst[SL_PATH];
    sl_code rc = SL_OK;
    for (int i = 0; i < 3 && !rc; i++) {
        /* latents are made again unless only decoding is */
        bool later = i == 2 && strcmp(from, "decode");
        if (!strcmp(FILES[i].not_from, from) || later) continue;
        if ((rc = sl_path_join(src, j->replay_dir, FILES[i].file, err)) ||
            (rc = sl_path_join(dst, j->dir, FILES[i].file, err)))
            break;
        if (i < 2 && access(src, R_OK) && errno == ENOENT && i == 1)
            continue; /* a checkpoint without pictures has no image.safetensors */
        rc = copy_file(src, dst, err);
    }
    return rc ? sl_context(err, rc, "replay") : SL_OK;
}

static sl_code copy_input(const cli_job *j, const char *path, const char *name, bool given,
                          bool optional, sl_err *err)
{
    char src[SL_PATH], dst[SL_PATH];
    sl_code rc;
    if (!*path) return SL_OK;
    if (*j->replay_dir && !given && strcmp(name, "noise.safetensors")) {
        /* the dump has its own copy of the picture */
        if ((rc = sl_path_join(src, j->replay_dir, name, err))) return rc;
        path = src;
    }
    if ((rc = sl_path_join(dst, j->dir, name, err))) return rc;
    if (optional && access(path, R_OK)) return SL_OK;
    return copy_file(path, dst, err);
}

/* spool/JOB: everything the stages will need, so that nothing of the user's is read
 * twice. */
static sl_code make_job_dir(runner *r, cli_job *j, const char *from, sl_err *err)
{
    char path[SL_PATH], name[32];
    sl_code rc;
    snprintf(name, sizeof name, "%d-%llu", (int)getpid(), (unsigned long long)j->id);
    if ((rc = sl_path_join(j->dir, r->spool, name, err))) return rc;
    remove_tree(j->dir); /* of a process that had our number and was killed */
    if ((rc = make_dirs(j->dir, err))) return rc;
    if ((rc =
             copy_input(j, j->spec.image, "image.input", j->has_image, *j->replay_dir != 0, err)) ||
        (rc = copy_input(j, j->spec.last_image, "last_image.input", j->has_last_image,
                         *j->replay_dir != 0, err)) ||
        (rc = copy_input(j, j->spec.noise, "noise.safetensors", j->has_noise, false, err)))
        return rc;
    if (*from && (rc = copy_dumped(j, from, err))) return rc;
    if ((rc = sl_path_join(path, j->dir, "job.json", err))) return rc;
    return sl_job_write(&j->spec, path, err);
}

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
    if ((rc = program_dir(r->bin_dir, err)) ||
        (rc = make_run_dir(r->run_dir, r->conf->run.dir, err)))
        return rc;
    if (*r->conf->run.spool) rc = absolute_path(r->spool, r->conf->run.spool, err);
    else rc = sl_path_join(r->spool, r->run_dir, "spool", err);
    if (rc || (rc = make_dirs(r->spool, err)) || (rc = write_conf(r, err))) return rc;
    if (snprintf(r->endpoint, sizeof r->endpoint, "ipc://%.1000s/ctl", r->run_dir) > 6 + 107)
        return sl_fail(err, SL_ARG,
                       "run directory %s is too long for a socket's name, want at most 100 bytes",
                       r->run_dir);
    for (int i = 0; i < r->o->job_count; i++) {
        r->o->jobs[i].id = (uint64_t)(i + 1);
        if ((rc = make_job_dir(r, &r->o->jobs[i], r->o->from, err))) return rc;
    }
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    /* stages that outlive the dispatcher by a moment are ours to wait for: see
     * reap_stages */
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
    /* it is not bound yet */
    zmq_setsockopt(r->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    if (zmq_connect(r->socket, r->endpoint))
        return sl_fail(err, SL_SYS, "%s: %s", r->endpoint, zmq_strerror(errno));
    if ((rc = sl_wire_send(r->socket, NULL, 0, &hello, err))) return rc;
    for (int i = 0; i < r->o->job_count; i++) {
        sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = r->o->jobs[i].id}};
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
    bool tty = isatty(2), last = p->done == p->total;
    char which[32] = "";
    /* mux keeps pace with decode */
    if (r->o->quiet || (!last && !strcmp(p->stage, sl_role_name(SL_ROLE_MUX)))) return;
    bool other = strcmp(r->shown.stage, p->stage) || r->shown.job != p->job;
    if (!last && !other && now - r->shown.last_ns < (tty ? 100 : 1000) * 1000000ll) return;
    if (r->o->job_count > 1) snprintf(which, sizeof which, "job %d ", (int)p->job);
    if (tty)
        fprintf(stderr, "%s\r\033[K%s%-8s %u/%u  %.2f s each", other && *r->shown.stage ? "\n" : "",
                which, p->stage, p->done, p->total, p->seconds);
    else
        fprintf(stderr, "%s%-8s %u/%u  %.2f s each\n", which, p->stage, p->done, p->total,
                p->seconds);
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

/* The spool's files that --dump promises, into the user's folder. On a full disk what was
 * written of them goes again; the video stays. */
static sl_code copy_dump(const cli_job *j, sl_err *err)
{
    static const char *const FILES[] = {
        "job.json",          "image.input",         "last_image.input",  "text.safetensors",
        "image.safetensors", "denoise.safetensors", "frames.safetensors"};
    char src[SL_PATH], dst[SL_PATH];
    int done = 0;
    bool made = access(j->dump_dir, F_OK) != 0;
    sl_code rc = make_dirs(j->dump_dir, err);
    for (; done < (int)(sizeof FILES / sizeof *FILES) && !rc; done++) {
        if ((rc = sl_path_join(src, j->dir, FILES[done], err)) ||
            (rc = sl_path_join(dst, j->dump_dir, FILES[done], err)) || access(src, R_OK))
            continue;
        rc = move_file(src, dst, err);
    }
    if (!rc && j->spec.dump_blocks && !(rc = sl_path_join(src, j->dir, "blocks", err)) &&
        !(rc = sl_path_join(dst, j->dump_dir, "blocks", err)))
        rc = move_files(src, dst, err);
    for (int i = 0; rc && i < done; i++)
        if (!sl_path_join(dst, j->dump_dir, FILES[i], NULL)) unlink(dst);
    if (rc && made) rmdir(j->dump_dir);
    return rc ? sl_context(err, rc, "the video is written, its dump is not") : SL_OK;
}

static void on_finished(runner *r, const sl_msg_finished *m)
{
    job_record *j = report_job(&r->rep, m->tag);
    sl_err err = {0};
    int64_t t0 = sl_now_ns();
    if (!j || j->finished) return;
    j->finished = true;
    j->code = (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL;
    j->bytes = m->bytes;
    snprintf(j->message, sizeof j->message, "%s", m->message);
    if (!j->code && *j->job->dump_dir && (j->code = copy_dump(j->job, &err)))
        snprintf(j->message, sizeof j->message, "%s", err.msg);
    if (j->code) sl_mp4_sweep(j->job->spec.output);
    remove_tree(j->job->dir);
    j->t1_ns = sl_now_ns();
    client_span(r, m->job, SL_SPAN_SPOOL, t0, j->t1_ns);
    r->left--;
    r->deaths = 0;
    if (!r->o->quiet && isatty(2) && *r->shown.stage) fputc('\n', stderr);
    *r->shown.stage = 0;
    if (*j->job->json && (r->o->job_count == 1 || strcmp(j->job->json, r->o->base.json)) &&
        report_write(&r->rep, j, j->job->json, &err)) {
        if (!j->code)
            snprintf(j->message, sizeof j->message,
                     "the video is written, its report is not: %.400s", err.msg);
        if (!j->code) j->code = err.code;
    }
    if (j->code)
        complain("%s: %s: %s", j->job->spec.output,
                 j->code == SL_CANCELLED ? "cancelled" : "failed", j->message);
    else if (!r->o->quiet) report_print(&r->rep, j, stdout), fflush(stdout);
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
        switch (m.type) {
        case SL_MSG_ACCEPTED:
            if (!r->accepted) client_span(r, 0, SL_SPAN_START, r->t0_ns, sl_now_ns());
            r->accepted = true;
            break;
        case SL_MSG_PROGRESS:
            r->deaths = 0;
            show_progress(r, &m.progress);
            break;
        case SL_MSG_FINISHED: on_finished(r, &m.finished); break;
        default: report_message(&r->rep, &m);
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
    for (int i = 0; i < r->o->job_count; i++) {
        sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = r->o->jobs[i].id}};
        if (!r->rep.jobs[i].finished) sl_wire_send(r->socket, NULL, 0, &m, NULL);
    }
}

static void end_all(runner *r, sl_code code, const char *why)
{
    for (int i = 0; i < r->o->job_count; i++) {
        sl_msg_finished m = {.tag = r->o->jobs[i].id, .code = (int32_t)code};
        snprintf(m.message, sizeof m.message, "%s", why);
        on_finished(r, &m);
    }
}

/* The stages of a dispatcher that was killed: the kernel kills them with it; when the
 * last is gone, so are its hold on files and its temporaries' excuse to stay. */
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
    if (*r->run_dir && !*r->conf->run.dir) remove_tree(r->run_dir);
}

int cli_run(cli_options *o, const sl_model *model, sl_conf *conf, int64_t t0_ns, sl_err *err)
{
    runner *r = calloc(1, sizeof *r);
    int status = EXIT_OK;
    if (!r) {
        sl_fail(err, SL_NOMEM, "no memory");
        return EXIT_REFUSED;
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
    if (report_init(&r->rep, o, t0_ns, err) || prepare(r, err) || start_dispatcher(r, err) ||
        connect_dispatcher(r, err) || watch(r, err))
        status = EXIT_FAILED;
    for (int i = 0; i < r->rep.count; i++)
        if (!r->rep.jobs[i].finished || r->rep.jobs[i].code) status = EXIT_FAILED;
    stop(r);
    for (int i = 0; i < r->rep.count; i++) /* the run ended before it began */
        if (!r->rep.jobs[i].finished && *o->jobs[i].dir) remove_tree(o->jobs[i].dir);
    if (o->job_count > 1 && *o->base.json && report_write(&r->rep, NULL, o->base.json, err))
        status = EXIT_FAILED;
    report_free(&r->rep);
    free(r);
    return status;
}
