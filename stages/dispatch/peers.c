/* peers.c - the dispatcher's stages: start them, watch them by pidfd and heartbeat,
 * restart them with back-off, give up with a clear message. */
#include "stages/dispatch/dispatch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <zmq.h>

#include "common/log.h"

#define MS 1000000ll
#define MAX_ENV 512
#define LAST_WORDS_MS 1000 /* longest wait for the messages of a process that has ended */
#define FIRST_WORDS_MS 20  /* and for the HELLO of one that had said none */

extern char **environ;

void peers_init(dispatcher *d)
{
    d->peer_count = 0;
    for (int i = 0; i < d->conf.stage_count; i++) {
        /* nothing to do there */
        if (d->conf.stages[i].role == SL_ROLE_IMAGE && !d->model.family.picture) continue;
        d->peers[d->peer_count++] =
            (peer){.role = d->conf.stages[i].role, .conf = &d->conf.stages[i], .pidfd = -1};
    }
}

peer *peer_of(dispatcher *d, sl_role role)
{
    for (int i = 0; i < d->peer_count; i++)
        if (d->peers[i].role == role) return &d->peers[i];
    return NULL;
}

peer *peer_by_identity(dispatcher *d, const char *id, size_t size)
{
    for (int i = 0; i < d->peer_count; i++)
        if (d->peers[i].identity_size == size && size && !memcmp(d->peers[i].identity, id, size))
            return &d->peers[i];
    return NULL;
}

sl_code peer_send(dispatcher *d, const peer *p, const sl_msg *m)
{
    sl_err err = {0};
    if (!p || !p->identity_size) return SL_GONE;
    sl_code rc = sl_wire_send(d->router, p->identity, p->identity_size, m, &err);
    /* gone: its pidfd will tell */
    if (rc && rc != SL_GONE) sl_log_err(sl_role_name(p->role), &err);
    return rc;
}

static void tell_stage(dispatcher *d, const peer *p, const char *event, double load_s,
                       uint64_t weight_bytes)
{
    sl_msg m = {.type = SL_MSG_STAGE,
                .stage = {.pid = p->pid, .load_s = load_s, .weight_bytes = weight_bytes}};
    snprintf(m.stage.stage, sizeof m.stage.stage, "%s", sl_role_name(p->role));
    snprintf(m.stage.event, sizeof m.stage.event, "%s", event);
    snprintf(m.stage.device, sizeof m.stage.device, "%s", p->conf->device);
    tell_client(d, &m);
}

/* The environment of a stage: ours, with the thread count of its configuration. `slot`
 * and `all` are the caller's memory. */
static char **stage_env(const peer *p, int stages, char slot[64], char *all[MAX_ENV])
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0, threads = p->conf->threads;
    /* stages share the cores: none may spin for work */
    static char passive[] = "OMP_WAIT_POLICY=PASSIVE";
    if (!threads) threads = cpus > 2 * stages ? (int)cpus / 2 : (int)cpus;
    snprintf(slot, 64, "OMP_NUM_THREADS=%d", threads > 0 ? threads : 1);
    for (char **e = environ; *e && n < MAX_ENV - 3; e++)
        if (strncmp(*e, "OMP_NUM_THREADS=", 16) && strncmp(*e, "OMP_WAIT_POLICY=", 16))
            all[n++] = *e;
    all[n++] = slot;
    all[n++] = passive;
    all[n] = NULL;
    return all;
}

/* After fork, before exec: only async-signal-safe calls. */
static void become_stage(const char *path, char *const argv[], char *const envp[],
                         pid_t dispatcher_pid)
{
    sigset_t none;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != dispatcher_pid) _exit(127);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0) dup2(null, 0);
    dup2(2, 1);
    execve(path, argv, envp);
    _exit(127);
}

static void peer_start(dispatcher *d, peer *p)
{
    char path[SL_CONF_PATH + SL_PATH], threads[64];
    char *env[MAX_ENV];
    char *argv[10 + SL_CONF_ARGS] = {path,
                                     (char *)"--connect",
                                     d->endpoint,
                                     (char *)"--conf",
                                     d->conf_path,
                                     (char *)"--model",
                                     d->model.dir,
                                     (char *)"--device",
                                     (char *)p->conf->device};
    int n = 9;
    pid_t self = getpid();
    for (int i = 0; i < p->conf->arg_count; i++) argv[n++] = (char *)p->conf->args[i];
    argv[n] = NULL;
    if (strchr(p->conf->program, '/')) snprintf(path, sizeof path, "%s", p->conf->program);
    else snprintf(path, sizeof path, "%s/%s", d->bin_dir, p->conf->program);
    char **envp = stage_env(p, d->peer_count, threads, env);

    p->identity_size = 0;
    p->pool_count = 0;
    p->start.t1_ns = p->load.t1_ns = 0;
    p->job = NO_JOB;
    *p->last_error = 0;
    p->last_code = SL_OK;
    p->started_ns = p->last_beat_ns = sl_now_ns();
    if (access(path, X_OK)) {
        p->state = PEER_BROKEN;
        snprintf(p->last_error, sizeof p->last_error, "%s: program %.300s: %s",
                 sl_role_name(p->role), path, strerror(errno));
        jobs_fail_all(d, SL_ARG, p->last_error);
        return;
    }
    p->pid = fork();
    if (p->pid == 0) become_stage(path, argv, envp, self);
    p->pidfd = p->pid > 0 ? (int)syscall(SYS_pidfd_open, p->pid, 0) : -1;
    if (p->pidfd < 0) {
        sl_log(SL_LOG_ERROR, "%s could not be started: %s", sl_role_name(p->role), strerror(errno));
        if (p->pid > 0) kill(p->pid, SIGKILL), waitpid(p->pid, NULL, 0);
        p->pid = 0;
        p->restart_at_ns = sl_now_ns() + 1000 * MS;
        p->state = PEER_DOWN;
        return;
    }
    p->state = PEER_STARTING;
    sl_log(SL_LOG_DEBUG, "%s is process %d", sl_role_name(p->role), (int)p->pid);
}

void peers_tick(dispatcher *d)
{
    int64_t now = sl_now_ns();
    for (int i = 0; i < d->peer_count; i++) {
        peer *p = &d->peers[i];
        if (p->state == PEER_DOWN && now >= p->restart_at_ns && !(d->draining && !d->job_count))
            peer_start(d, p);
        else if (p->pidfd >= 0 && now - p->last_beat_ns > d->conf.supervise.stall_s * 1000 * MS) {
            sl_log(SL_LOG_WARN, "%s[%d] gave no sign of life for %d s: killed",
                   sl_role_name(p->role), (int)p->pid, d->conf.supervise.stall_s);
            kill(p->pid, SIGKILL);
            p->last_beat_ns = now;
        }
    }
}

static void how_it_ended(int status, char *how, size_t size)
{
    if (WIFSIGNALED(status))
        snprintf(how, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(how, size, "exit status %d%s", WEXITSTATUS(status),
                 WEXITSTATUS(status) == 127 ? ", could not be executed" : "");
}

/* Read the last words of a process that has ended: the tickets in them are what tells
 * finished work from lost slots. The kernel has closed its socket by now; our side
 * refuses to send to it only when every byte before that end has been read. */
static void hear_out(dispatcher *d, const peer *p)
{
    sl_msg probe = {.type = SL_MSG_HEARTBEAT};
    int64_t t0 = sl_now_ns();
    while (true) {
        bool known = p->identity_size > 0;
        bool closed = known && sl_wire_send(d->router, p->identity, p->identity_size, &probe,
                                            NULL) == SL_GONE;
        dispatch_receive(d);
        if (closed || sl_now_ns() - t0 > (known ? LAST_WORDS_MS : FIRST_WORDS_MS) * MS) return;
        zmq_pollitem_t item = {d->router, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, 1);
    }
}

void peer_check(dispatcher *d, peer *p)
{
    int status = 0;
    pid_t pid = p->pid;
    char how[96];
    if (p->pidfd < 0) return;
    hear_out(d, p);
    if (waitpid(pid, &status, WNOHANG) != pid) return;
    close(p->pidfd);
    p->pidfd = -1;
    p->pid = 0;
    p->state = PEER_DOWN;
    how_it_ended(status, how, sizeof how);
    /* A mistake in the model or the settings will not go away by itself; anything else is
     * tried again, later each time. */
    bool hopeless = p->last_code == SL_ARG || p->last_code == SL_SHAPE || p->last_code == SL_FORMAT;
    if (d->draining && WIFEXITED(status) && !WEXITSTATUS(status))
        sl_log(SL_LOG_DEBUG, "%s drained", sl_role_name(p->role));
    else if (hopeless || p->failures >= d->conf.supervise.restarts) /* its jobs say why */
        sl_log(SL_LOG_DEBUG, "%s[%d] ended: %s", sl_role_name(p->role), (int)pid, how);
    else
        sl_log(SL_LOG_WARN, "%s[%d] ended: %s%s%.300s", sl_role_name(p->role), (int)pid, how,
               *p->last_error ? ": " : "", p->last_error);
    tell_stage(d, p, "ended", 0, 0);
    jobs_on_death(d, p, pid, how);
    turns_forget(d, p);
    p->identity_size = 0;
    p->pool_count = 0;

    if (hopeless || ++p->failures > d->conf.supervise.restarts) {
        char why[SL_TEXT];
        if (*p->last_error)
            snprintf(why, sizeof why, "%s: %.400s", sl_role_name(p->role), p->last_error);
        else
            snprintf(why, sizeof why, "%s ended %d times in a row (%s): giving up",
                     sl_role_name(p->role), p->failures, how);
        p->state = PEER_BROKEN;
        /* for jobs that come later */
        if (!*p->last_error) snprintf(p->last_error, sizeof p->last_error, "%s", why);
        jobs_fail_all(d, hopeless ? p->last_code : SL_SYS, why);
        return;
    }
    int64_t wait = (int64_t)d->conf.supervise.backoff_ms << (p->failures < 8 ? p->failures - 1 : 7);
    p->restart_at_ns = sl_now_ns() + (WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : wait * MS);
}

void peer_distrust(peer *p, const sl_err *why)
{
    if (p->pidfd < 0 || p->last_code) return;
    snprintf(p->last_error, sizeof p->last_error, "speaks another protocol: %.400s", why->msg);
    p->last_code = SL_FORMAT; /* it will not get better: no restart */
    kill(p->pid, SIGKILL);
}

void peer_hello(dispatcher *d, peer *p, const sl_msg_hello *m, const char *id, size_t size)
{
    memcpy(p->identity, id, size);
    p->identity_size = size;
    p->state = PEER_LOADING;
    p->last_beat_ns = sl_now_ns();
    sl_msg span = {
        .type = SL_MSG_SPAN,
        .span = {.kind = SL_SPAN_START, .t0_ns = p->started_ns, .t1_ns = p->last_beat_ns}};
    snprintf(span.span.stage, sizeof span.span.stage, "%s", sl_role_name(p->role));
    p->start = span.span;
    tell_client(d, &span);
    sl_log(SL_LOG_DEBUG, "%s[%d] on %s says hello", m->role, m->pid, m->device);
    for (int i = 0; i < d->peer_count; i++) /* where it can send to */
        for (int k = 0; k < d->peers[i].pool_count && &d->peers[i] != p; k++) {
            sl_msg pool = {.type = SL_MSG_POOL, .pool = d->peers[i].pools[k]};
            peer_send(d, p, &pool);
        }
}

void peer_ready(dispatcher *d, peer *p, const sl_msg_ready *m)
{
    p->state = PEER_READY;
    p->ready = *m;
    sl_log(SL_LOG_DEBUG, "%s is ready after %.2f s with %.1f MB of weights", sl_role_name(p->role),
           m->load_s, (double)m->weight_bytes * 1e-6);
    tell_stage(d, p, "ready", m->load_s, m->weight_bytes);
}

void peers_tell_all(dispatcher *d)
{
    for (int i = 0; i < d->peer_count; i++) {
        const peer *p = &d->peers[i];
        sl_msg m = {.type = SL_MSG_SPAN, .span = p->start};
        if (p->start.t1_ns) tell_client(d, &m);
        m.span = p->load;
        if (p->load.t1_ns) tell_client(d, &m);
        if (p->state == PEER_READY)
            tell_stage(d, p, "ready", p->ready.load_s, p->ready.weight_bytes);
    }
}

void peer_pool(dispatcher *d, peer *p, const sl_msg_pool *m)
{
    sl_msg out = {.type = SL_MSG_POOL, .pool = *m};
    if (p->pool_count == (int)(sizeof p->pools / sizeof *p->pools)) {
        sl_log(SL_LOG_WARN, "%s announces a third pool: ignored", sl_role_name(p->role));
        return;
    }
    p->pools[p->pool_count++] = *m;
    for (int i = 0; i < d->peer_count; i++)
        if (&d->peers[i] != p) peer_send(d, &d->peers[i], &out);
}

void peers_stop(dispatcher *d)
{
    sl_msg drain = {.type = SL_MSG_DRAIN};
    int64_t by = sl_now_ns() + 3000 * MS;
    for (int i = 0; i < d->peer_count; i++) {
        peer_send(d, &d->peers[i], &drain);
        /* still starting */
        if (d->peers[i].pid > 0 && !d->peers[i].identity_size) kill(d->peers[i].pid, SIGTERM);
    }
    for (int i = 0; i < d->peer_count; i++) {
        peer *p = &d->peers[i];
        if (p->pid <= 0) continue;
        struct pollfd f = {p->pidfd, POLLIN, 0};
        int64_t left = (by - sl_now_ns()) / MS;
        if (poll(&f, 1, left > 0 ? (int)left : 0) < 1) kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
        close(p->pidfd);
        p->pidfd = -1;
        p->pid = 0;
    }
}
