/* t_dispatch.h - a real sluice-dispatch under observation, without `sluice`: the test is its
 * parent, makes the folders of jobs and speaks as one client or several. */
#ifndef T_DISPATCH_H
#define T_DISPATCH_H

#include "tests/t_run.h"

#include <zmq.h>

#include "common/job.h"
#include "common/wire.h"

#define T_DISPATCH_S 40

/* Start sluice-dispatch with r->conf; its control socket is in r->base. */
static inline void t_dispatch_start(t_run *r)
{
    int log[2];
    char parent[16];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    r->text = calloc(1, 1);
    r->deadline = t_seconds() + T_DISPATCH_S;
    assert_int_equal(pipe2(log, O_CLOEXEC), 0);
    r->pid = fork();
    if (r->pid == 0) {
        char program[1024];
        snprintf(program, sizeof program, "%s/sluice-dispatch", t_bin());
        dup2(log[1], 1);
        dup2(log[1], 2);
        execl(program, program, "--run", r->base, "--conf", r->conf, "--model", T_MODEL, "--bin",
              t_bin(), "--parent", parent, (char *)NULL);
        _exit(127);
    }
    assert_true(r->pid > 0);
    close(log[1]);
    r->log = log[0];
}

/* Take what is in the log's pipe, so that nobody waits for room there. */
static inline void t_dispatch_read_log(t_run *r)
{
    struct pollfd f = {r->log, POLLIN, 0};
    while (r->log >= 0 && poll(&f, 1, 0) == 1) {
        r->text = realloc(r->text, r->used + 65537);
        ssize_t n = read(r->log, r->text + r->used, 65536);
        if (n <= 0) return;
        r->used += (size_t)n;
        r->text[r->used] = 0;
    }
}

/* The folder OUT/ID of a job, as `sluice run` makes it: 9 frames, odd and even ids have
 * different prompts. */
static inline void t_dispatch_job(const t_run *r, uint64_t id, int steps, char dir[SL_DIR])
{
    sl_job job;
    sl_err err = {0};
    snprintf(dir, SL_DIR, "%s/%d", r->out, (int)id);
    assert_int_equal(mkdir(dir, 0700), 0);
    T_OK(sl_job_init(&job, &err));
    job.width = 96, job.height = 64, job.frames = 9, job.steps = steps, job.seed = id, job.dump = 1;
    snprintf(job.model, sizeof job.model, "%s", T_MODEL);
    snprintf(job.image, sizeof job.image, "%s", T_IMAGE);
    snprintf(job.output, sizeof job.output, "%s/%d.mp4", r->out, (int)id);
    T_OK(sl_job_set_text(&job.prompt, id % 2 ? "A cat runs, and it rains." : "Snow.", &err));
    T_OK(sl_job_write(&job, t_format("%s/job.json", dir), &err));
    sl_job_free(&job);
    size_t n;
    char *picture = t_read(T_IMAGE, &n);
    FILE *f = fopen(t_format("%s/image.input", dir), "wb");
    assert_int_equal(fwrite(picture, 1, n, f), n);
    fclose(f);
    free(picture);
}

/* A client's socket, which has said HELLO as process `pid`. */
static inline void *t_dispatch_client(void *zmq, const t_run *r, pid_t pid)
{
    int linger = 0;
    sl_msg m = {.type = SL_MSG_HELLO, .hello = {.role = "client", .pid = pid}};
    void *s = zmq_socket(zmq, ZMQ_DEALER);
    zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
    zmq_connect(s, t_format("ipc://%s/ctl", r->base));
    sl_wire_send(s, NULL, 0, &m, NULL);
    return s;
}

static inline void t_dispatch_submit(void *client, uint64_t tag, const char *dir)
{
    sl_msg m = {.type = SL_MSG_SUBMIT, .submit = {.tag = tag}};
    snprintf(m.submit.dir, sizeof m.submit.dir, "%.1023s", dir);
    sl_wire_send(client, NULL, 0, &m, NULL);
}

/* The next message to this client; the log is read meanwhile. */
static inline void t_dispatch_hear(t_run *r, void *client, sl_msg *m)
{
    sl_err err = {0};
    while (sl_wire_recv(client, NULL, NULL, m, &err) != SL_OK) {
        zmq_pollitem_t item = {client, 0, ZMQ_POLLIN, 0};
        t_dispatch_read_log(r);
        if (t_seconds() > r->deadline) t_run_fail(r, "no message came any more");
        zmq_poll(&item, 1, 20);
    }
}

#endif
