/* dispatcher.c - a dispatcher started, spoken to, collected. */
#include "stages/job/dispatcher.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <zmq.h>

#include "common/clock.h"
#include "common/endpoint.h"
#include "common/log.h"
#include "common/pidfd.h"
#include "common/program.h"
#include "stages/job/files.h"

#define REAP_MS 5000 /* longest wait for killed stages to be gone */
#define HURRY_MS 1000
#define STOP_MS 8000 /* longest wait for a dispatcher that was asked to end */

static sl_code write_conf(sl_dispatcher *d, sl_err *err)
{
    sl_code rc = sl_path_join(d->conf_path, d->run_dir, "run.cfg", err);
    FILE *f = rc ? NULL : fopen(d->conf_path, "we");
    if (rc) return rc;
    if (!f) return sl_fail_errno(err, errno, "%s", d->conf_path);
    rc = sl_conf_print(d->conf, f, err);
    if (fclose(f) && !rc) rc = sl_fail_errno(err, errno, "%s", d->conf_path);
    return rc;
}

sl_code sl_dispatcher_open(sl_dispatcher *d, const sl_conf *conf, const char *model_dir,
                           const char *run_dir, bool keep, sl_err *err)
{
    sl_code rc;
    *d = (sl_dispatcher){
        .conf = conf, .model_dir = model_dir, .keep = keep, .endpoint_fd = -1, .pidfd = -1};
    if ((rc = sl_endpoint_open(d->endpoint, &d->endpoint_fd, run_dir, err))) return rc;
    snprintf(d->run_dir, sizeof d->run_dir, "%s", run_dir);
    if ((rc = sl_program_dir(d->bin_dir, err)) || (rc = write_conf(d, err))) return rc;
    /* this process waits for stages that outlive the dispatcher: see reap_stages */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!(d->zmq = zmq_ctx_new())) return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    return SL_OK;
}

static sl_code start_process(sl_dispatcher *d, sl_err *err)
{
    char path[SL_PATH], parent[16];
    sl_code rc = sl_path_join(path, d->bin_dir, "sluice-dispatch", err);
    char *own[] = {path,
                   (char *)"--run",
                   d->run_dir,
                   (char *)"--conf",
                   d->conf_path,
                   (char *)"--model",
                   (char *)d->model_dir,
                   (char *)"--bin",
                   d->bin_dir,
                   (char *)"--parent",
                   parent};
    char *argv[SL_WRAPPER_WORDS + sizeof own / sizeof *own + 8];
    int n = 0;
    for (; n < (int)(sizeof own / sizeof *own); n++) argv[n] = own[n];
    if (d->keep) argv[n++] = (char *)"--keep";
    if (d->attach) argv[n++] = (char *)"--attach", argv[n++] = (char *)d->attach;
    if (d->wire) argv[n++] = (char *)"--wire", argv[n++] = (char *)d->wire;
    argv[n++] = (char *)"--";
    for (int i = 0; d->wrapper && d->wrapper[i]; i++) {
        if (i == SL_WRAPPER_WORDS)
            return sl_fail(err, SL_ARG, "more than %d words of a wrapper", SL_WRAPPER_WORDS);
        argv[n++] = d->wrapper[i];
    }
    argv[n] = NULL;
    pid_t self = getpid();
    if (rc) return rc;
    snprintf(parent, sizeof parent, "%d", (int)self);
    if (access(path, X_OK)) return sl_fail_errno(err, errno, "%s", path);
    /* with SIGTERM blocked, so that our death is not lost on it before it listens */
    if ((d->pid = fork()) == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != self) _exit(127);
        setpgid(0, 0); /* Ctrl-C is for this process alone */
        if (d->nice) setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + d->nice);
        int null = d->attach ? -1 : open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, 0);
        if (!d->attach) dup2(2, 1);
        execv(path, argv);
        _exit(127);
    }
    if (d->pid < 0) return sl_fail_errno(err, errno, "sluice-dispatch could not be started");
    if ((rc = sl_pidfd_open(&d->pidfd, d->pid, err))) kill(d->pid, SIGKILL);
    return rc ? sl_context(err, rc, "sluice-dispatch could not be started") : SL_OK;
}

static sl_code connect_process(sl_dispatcher *d, sl_err *err)
{
    int linger = 200, retry_ms = 5;
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.role = "client", .pid = getpid()}};
    if (!(d->socket = zmq_socket(d->zmq, ZMQ_DEALER)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(d->socket, ZMQ_LINGER, &linger, sizeof linger);
    /* the dispatcher has not bound its socket yet */
    zmq_setsockopt(d->socket, ZMQ_RECONNECT_IVL, &retry_ms, sizeof retry_ms);
    if (zmq_connect(d->socket, d->endpoint))
        return sl_fail(err, SL_SYS, "%s: %s", d->endpoint, zmq_strerror(errno));
    return sl_wire_send(d->socket, NULL, 0, &hello, err);
}

/* What the last dispatcher did not hear is not for the next one: a job that came to it twice would
 * be the business of a socket that is closed. */
static void forget_socket(sl_dispatcher *d)
{
    const int linger = 0;
    if (!d->socket) return;
    zmq_setsockopt(d->socket, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(d->socket);
    d->socket = NULL;
}

sl_code sl_dispatcher_start(sl_dispatcher *d, sl_err *err)
{
    forget_socket(d);
    sl_code rc = start_process(d, err);
    return rc ? rc : connect_process(d, err);
}

sl_code sl_dispatcher_send(sl_dispatcher *d, const sl_msg *m, sl_err *err)
{
    return sl_wire_send(d->socket, NULL, 0, m, err);
}

sl_code sl_dispatcher_recv(sl_dispatcher *d, sl_msg *m, sl_err *err)
{
    return sl_wire_recv(d->socket, NULL, NULL, m, err);
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

static int collect(sl_dispatcher *d)
{
    int status = 0;
    waitpid(d->pid, &status, 0);
    close(d->pidfd);
    d->pidfd = -1;
    d->pid = 0;
    reap_stages();
    return status;
}

sl_code sl_dispatcher_ended(sl_dispatcher *d, sl_err *err)
{
    int status = collect(d);
    if (WIFEXITED(status) && WEXITSTATUS(status))
        return sl_fail(err, SL_SYS, "the dispatcher could not run (exit status %d)",
                       WEXITSTATUS(status));
    if (++d->deaths > d->conf->supervise.restarts)
        return sl_fail(err, SL_SYS, "the dispatcher was killed %d times in a row: giving up",
                       d->deaths);
    sl_log(SL_LOG_WARN, "the dispatcher ended (%s %d): started again",
           WIFSIGNALED(status) ? "signal" : "status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return SL_OK;
}

void sl_dispatcher_kill(sl_dispatcher *d)
{
    if (d->pidfd >= 0) kill(d->pid, SIGKILL);
}

void sl_dispatcher_stop(sl_dispatcher *d)
{
    sl_msg m = {.type = SL_MSG_DRAIN};
    if (*d->run_dir && d->pidfd >= 0) {
        zmq_pollitem_t item = {NULL, d->pidfd, ZMQ_POLLIN, 0};
        if (d->socket) sl_wire_send(d->socket, NULL, 0, &m, NULL);
        const bool patient = d->wrapper && *d->wrapper && !d->hurry;
        int ended;
        do ended = zmq_poll(&item, 1, d->hurry ? HURRY_MS : STOP_MS);
        while (ended < 1 && patient);
        if (ended < 1) kill(d->pid, SIGKILL);
        collect(d);
    }
    if (d->socket) zmq_close(d->socket);
    if (d->zmq) zmq_ctx_term(d->zmq);
    d->socket = d->zmq = NULL;
    if (*d->run_dir && d->endpoint_fd >= 0) close(d->endpoint_fd);
    d->endpoint_fd = -1;
}
