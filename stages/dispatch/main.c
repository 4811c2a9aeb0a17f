/* sluice-dispatch - jobs, scheduling, supervision: binds the control socket, starts the
 * stages, moves each job from one to the next. */
#include "stages/dispatch/dispatch.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <zmq.h>

#include "common/log.h"
#include "common/temporary.h"

#define TICK_MS 50

static sl_code parse_args(dispatcher *d, int argc, char **argv, const char **model, sl_err *err)
{
    static const struct option OPTIONS[] = {{"run", 1, 0, 'r'},    {"conf", 1, 0, 'f'},
                                            {"model", 1, 0, 'm'},  {"bin", 1, 0, 'b'},
                                            {"parent", 1, 0, 'p'}, {0}};
    int o;
    opterr = 0;
    while ((o = getopt_long(argc, argv, "", OPTIONS, NULL)) >= 0) {
        if (o == 'r') snprintf(d->run_dir, sizeof d->run_dir, "%s", optarg);
        else if (o == 'f') snprintf(d->conf_path, sizeof d->conf_path, "%s", optarg);
        else if (o == 'm') *model = optarg;
        else if (o == 'b') snprintf(d->bin_dir, sizeof d->bin_dir, "%s", optarg);
        else if (o == 'p') d->parent = (pid_t)strtol(optarg, NULL, 10);
        else
            return sl_fail(err, SL_ARG,
                           "sluice-dispatch: unknown or incomplete option %s, want --run --conf "
                           "--model --bin --parent",
                           argv[optind - 1]);
    }
    if (!*d->run_dir || !*d->conf_path || !*model || !*d->bin_dir)
        return sl_fail(err, SL_ARG,
                       "sluice-dispatch: want --run DIR --conf FILE --model DIR --bin DIR (`sluice "
                       "run` starts it)");
    return SL_OK;
}

static sl_code open_all(dispatcher *d, int argc, char **argv, sl_err *err)
{
    const char *model = NULL;
    int linger = 300, mandatory = 1, none = 0;
    sigset_t set;
    sl_code rc;
    if ((rc = parse_args(d, argc, argv, &model, err))) return rc;
    sl_conf_defaults(&d->conf);
    if ((rc = sl_conf_read_file(&d->conf, d->conf_path, err))) return rc;
    sl_log_open("dispatch", d->conf.run.log);
    if ((rc = sl_model_open(&d->model, model, err))) return rc;
    if (!(d->jobs = calloc(MAX_JOBS, sizeof *d->jobs)))
        return sl_fail(err, SL_NOMEM, "dispatch: no memory");
    if (snprintf(d->endpoint, sizeof d->endpoint, "ipc://%.1000s/ctl", d->run_dir) > 6 + 107)
        return sl_fail(err, SL_ARG,
                       "run directory %s is too long for a socket's name, want at most 100 bytes",
                       d->run_dir);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if ((d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "signalfd");
    if (!(d->zmq = zmq_ctx_new()) || !(d->router = zmq_socket(d->zmq, ZMQ_ROUTER)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(d->router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(d->router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(d->router, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(d->router, ZMQ_RCVHWM, &none, sizeof none);
    if (zmq_bind(d->router, d->endpoint))
        return sl_fail(err, SL_SYS, "%s: %s", d->endpoint, zmq_strerror(errno));
    peers_init(d);
    return SL_OK;
}

/* Only a process that we started may speak for a stage, and only as the stage it was
 * started for. */
static void on_hello(dispatcher *d, const sl_msg_hello *m, const char *id, size_t size)
{
    if (!strcmp(m->role, "client")) {
        memcpy(d->client, id, size);
        d->client_size = size;
        peers_tell_all(d);
        return;
    }
    for (int i = 0; i < d->peer_count; i++)
        if (d->peers[i].pid == m->pid && d->peers[i].pid > 0 &&
            !strcmp(sl_role_name(d->peers[i].role), m->role)) {
            peer_hello(d, &d->peers[i], m, id, size);
            return;
        }
    sl_log(SL_LOG_WARN, "HELLO of %s, process %d, which is no stage of ours: ignored", m->role,
           m->pid);
}

static void on_stage(dispatcher *d, peer *p, const sl_msg *m)
{
    p->last_beat_ns = sl_now_ns();
    switch (m->type) {
    case SL_MSG_HEARTBEAT: break;
    case SL_MSG_POOL: peer_pool(d, p, &m->pool); break;
    case SL_MSG_READY: peer_ready(d, p, &m->ready); break;
    case SL_MSG_TAKEN: jobs_on_taken(d, p, &m->taken); break;
    case SL_MSG_PROGRESS: jobs_on_progress(d, p, &m->progress); break;
    case SL_MSG_CHUNK: jobs_on_chunk(d, p, &m->chunk); break;
    case SL_MSG_SPOOLED: jobs_on_spooled(d, p, &m->spooled); break;
    case SL_MSG_DONE: jobs_on_done(d, p, &m->done); break;
    case SL_MSG_FAILED: jobs_on_failed(d, p, &m->failed); break;
    case SL_MSG_ASK: turns_on_ask(d, p, &m->ask); break;
    case SL_MSG_GIVE: turns_on_give(d, p, &m->give); break;
    case SL_MSG_STEP: {
        job *j = job_find(d, m->step.job);
        if (j) job_tell(d, j, m);
        break;
    }
    case SL_MSG_SPAN: {
        job *j = job_find(d, m->span.job);
        if (j) job_tell(d, j, m);
        else if (!m->span.job) {
            if (m->span.kind == SL_SPAN_LOAD) p->load = m->span;
            tell_client(d, m);
        }
        break;
    }
    default:
        sl_log(SL_LOG_WARN, "%s sent by %s: ignored", sl_wire_name(m->type), sl_role_name(p->role));
    }
}

static void drain(dispatcher *d, const char *why)
{
    if (d->draining) return;
    sl_log(SL_LOG_DEBUG, "draining: %s", why);
    d->draining = true;
    d->drain_by_ns = sl_now_ns() + d->conf.supervise.drain_s * 1000000000ll;
}

static void on_client(dispatcher *d, const sl_msg *m, const char *id, size_t size)
{
    switch (m->type) {
    case SL_MSG_SUBMIT: job_submit(d, &m->submit, id, size); break;
    case SL_MSG_CANCEL: job_cancel(d, m->cancel.job, SL_CANCELLED, "cancelled"); break;
    case SL_MSG_DRAIN: drain(d, "the client asked"); break;
    default:
        sl_log(SL_LOG_WARN, "%s sent by somebody who is no stage: ignored", sl_wire_name(m->type));
    }
}

void dispatch_receive(dispatcher *d)
{
    char id[IDENTITY], text[512];
    size_t size = 0;
    sl_msg m;
    sl_err err = {0};
    sl_code rc;
    while (size = 0, (rc = sl_wire_recv(d->router, id, &size, &m, &err)) != SL_BUSY) {
        peer *p = peer_by_identity(d, id, size);
        if (rc == SL_FORMAT) {
            sl_log_err("control socket", &err);
            if (p) peer_distrust(p, &err);
            continue;
        }
        if (rc) return;
        if (sl_log_shows(SL_LOG_DEBUG) && m.type != SL_MSG_HEARTBEAT && m.type != SL_MSG_SPAN)
            sl_log(SL_LOG_DEBUG, "<- %s %s", p ? sl_role_name(p->role) : "client",
                   sl_wire_text_of(&m, text, sizeof text));
        if (m.type == SL_MSG_HELLO) on_hello(d, &m.hello, id, size);
        else if (p) on_stage(d, p, &m);
        else on_client(d, &m, id, size);
    }
}

static void loop(dispatcher *d)
{
    while (true) {
        zmq_pollitem_t items[2 + SL_ROLE_COUNT] = {{d->router, 0, ZMQ_POLLIN, 0},
                                                   {NULL, d->signals, ZMQ_POLLIN, 0}};
        peer *watched[SL_ROLE_COUNT];
        int n = 2;
        struct signalfd_siginfo info;
        peers_tick(d);
        turns_tick(d);
        for (int i = 0; i < d->peer_count; i++)
            if (d->peers[i].pidfd >= 0) {
                watched[n - 2] = &d->peers[i];
                items[n++] = (zmq_pollitem_t){NULL, d->peers[i].pidfd, ZMQ_POLLIN, 0};
            }
        if (zmq_poll(items, n, TICK_MS) < 0 && errno != EINTR) return;
        dispatch_receive(d);
        for (int i = 2; i < n; i++)
            if (items[i].revents) peer_check(d, watched[i - 2]);
        if (read(d->signals, &info, sizeof info) == sizeof info) {
            if ((pid_t)info.ssi_pid == d->parent)
                /* PR_SET_PDEATHSIG: it may take a while to be quite gone, getppid() to
                 * see it */
                d->orphan = true;
            else drain(d, "SIGTERM");
        }
        d->orphan |= getppid() != d->parent;
        if (d->orphan) { /* whoever started us is dead: nobody wants the results */
            sl_log(SL_LOG_WARN, "the process that started this one is gone: stopping");
            return;
        }
        jobs_schedule(d);
        if (d->draining && !d->job_count) return;
        if (d->draining && sl_now_ns() > d->drain_by_ns) {
            jobs_fail_all(d, SL_TIMEOUT, "not finished within supervise.drain_s");
            jobs_schedule(d);
            return;
        }
    }
}

/* The client is gone, so nobody else is left to do it: the jobs' folders go, and the run
 * directory, if it was made for this run. */
static void remove_folders(const dispatcher *d)
{
    static char *argv[MAX_JOBS + 5] = {(char *)"rm", (char *)"-rf", (char *)"--"};
    int n = 3;
    for (int i = 0; i < d->job_count; i++) argv[n++] = d->jobs[i].dir;
    if (!*d->conf.run.dir) argv[n++] = (char *)d->run_dir;
    if (n > 3) execv("/bin/rm", argv);
}

int main(int argc, char **argv)
{
    static dispatcher d;
    sl_err err = {0};
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    d.parent = getppid(); /* --parent knows better: ours may be gone already */
    d.signals = -1;
    sl_log_open("dispatch", SL_LOG_INFO);
    int status = 2;
    if (open_all(&d, argc, argv, &err)) sl_log_err("stopping", &err);
    else {
        loop(&d);
        status = 0;
    }
    peers_stop(&d);
    if (d.router) zmq_close(d.router);
    if (d.zmq) zmq_ctx_term(d.zmq);
    /* begun, and never to be finished */
    for (int i = 0; i < d.job_count; i++) sl_temporary_sweep(d.jobs[i].output);
    if (!status && (d.orphan || getppid() != d.parent)) remove_folders(&d);
    free(d.jobs);
    return status;
}
