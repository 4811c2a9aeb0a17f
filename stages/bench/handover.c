/* handover.c - tensors handed to another process: from the moment it asks for a
 * slot to the end of the copy out of that slot.
 *
 * The other process is forked before this one touches a GPU, since CUDA does not survive
 * a fork; it opens the device itself. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/lease.h"
#include "stages/bench/measure.h"

#define WAIT_MS 60000
#define SLOT_TABLE 4096 /* of a slot, beside its tensors */

enum { MOST = 1000, WARM = 10 };

/* To the sender: open this pool and make ready to send `bytes` each time; with none: send
 * once. */
typedef struct {
    sl_pool_handle pool;
    int64_t bytes;
} request;

typedef struct {
    int64_t t0_ns;
    sl_ticket ticket;
    sl_err err; /* code 0: sent, or ready */
} answer;

static sl_code receive(int socket, void *message, size_t size, int wait_ms, sl_err *err)
{
    struct pollfd p = {.fd = socket, .events = POLLIN};
    int64_t end = sl_now_ns() + (int64_t)wait_ms * 1000000;
    int n;
    while ((n = poll(&p, 1, wait_ms)) < 0 && errno == EINTR && sl_now_ns() < end) continue;
    if (n <= 0)
        return sl_fail(err, SL_TIMEOUT, "hand-over: no answer of the other process within %d s",
                       wait_ms / 1000);
    if (read(socket, message, size) != (ssize_t)size)
        return sl_fail(err, SL_GONE, "hand-over: the other process has ended");
    return SL_OK;
}

static sl_code send_all(int socket, const void *message, size_t size, sl_err *err)
{
    if (send(socket, message, size, MSG_NOSIGNAL) != (ssize_t)size)
        return sl_fail(err, SL_GONE, "hand-over: the other process has ended");
    return SL_OK;
}

/* ---- the sender, a process of its own ---- */

typedef struct {
    sl_bench_net n;
    sl_pool *pool;
    sl_tensor data;
} sender;

static sl_code sender_device(sl_bench *b, sl_err *err)
{
    sl_code rc;
    b->body = &sl_ops_cpu;
    if (strcmp(b->device, "cpu")) {
        if (!(b->plugin = sl_plugin_cuda(err))) return err->code;
        if ((rc = b->plugin->use(b->ordinal, err))) return rc;
        sl_pool_use_cuda(b->plugin->slabs);
        b->body = b->plugin->ops;
    }
    b->ops = *b->body;
    return SL_OK;
}

static sl_code sender_open(sender *s, const request *r, sl_err *err)
{
    sl_pool_close(&s->pool);
    sl_device_free(&s->n.ctx, s->data.data);
    s->data = sl_bench_tensor(&s->n, SL_F32, 1, r->bytes / 4, 1);
    sl_code rc = sl_ctx_error(&s->n.ctx, err);
    return rc ? rc : sl_pool_open(&s->pool, &r->pool, err);
}

static sl_code sender_send(sender *s, answer *a, sl_err *err)
{
    sl_lease *l = NULL;
    sl_tensor t;
    sl_code rc;
    a->t0_ns = sl_now_ns();
    if ((rc = sl_lease_reserve(&l, s->pool, WAIT_MS, err))) return rc;
    if (!(rc = sl_lease_add(l, "x", SL_F32, 2, s->data.shape, &t, err))) {
        sl_copy(&s->n.ctx, &t, &s->data);
        rc = sl_lease_seal(l, s->n.ctx.stream, &a->ticket, err);
    }
    sl_lease_drop(&l, s->n.ctx.stream);
    return rc ? rc : sl_ctx_error(&s->n.ctx, err);
}

static void sender_run(sl_bench *b, int socket)
{
    static sender s; /* one a process */
    sl_err err = {0};
    request r;
    sl_code rc = sender_device(b, &err);
    if (!rc) rc = sl_bench_net_open(&s.n, b, NULL, &err);
    /* the loop ends when the parent closes its end; the parent's death kills this process */
    while (read(socket, &r, sizeof r) == (ssize_t)sizeof r) {
        answer a = {.err = err};
        if (!rc && (r.bytes ? sender_open(&s, &r, &a.err) : sender_send(&s, &a, &a.err)))
            a.err.code = a.err.code ? a.err.code : SL_INTERNAL;
        if (send_all(socket, &a, sizeof a, NULL)) break;
    }
    sl_pool_close(&s.pool);
    if (!rc) sl_bench_net_close(&s.n);
    _exit(0);
}

sl_code sl_bench_handover_start(sl_bench *b, sl_err *err)
{
    int s[2];
    pid_t self = getpid();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s))
        return sl_fail_errno(err, errno, "hand-over: a pair of sockets");
    fflush(NULL);
    b->peer = fork();
    if (b->peer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != self) _exit(1);
        close(s[0]);
        sender_run(b, s[1]);
    }
    close(s[1]);
    b->peer_socket = s[0];
    return b->peer < 0 ? sl_fail_errno(err, errno, "hand-over: another process") : SL_OK;
}

void sl_bench_handover_stop(sl_bench *b)
{
    if (b->peer_socket >= 0) close(b->peer_socket);
    if (b->peer > 0) waitpid(b->peer, NULL, 0);
    b->peer_socket = -1;
    b->peer = 0;
}

/* ---- the receiver ---- */

/* One hand-over; its seconds. */
static sl_code once(sl_bench_net *n, sl_pool *pool, const sl_tensor *to, double *seconds,
                    sl_err *err)
{
    const request go = {.bytes = 0};
    sl_lease *l = NULL;
    sl_tensor t;
    answer a = {0};
    sl_code rc;
    if ((rc = send_all(n->b->peer_socket, &go, sizeof go, err)) ||
        (rc = receive(n->b->peer_socket, &a, sizeof a, WAIT_MS, err)))
        return rc;
    if (a.err.code) return sl_fail(err, a.err.code, "hand-over, the sender: %s", a.err.msg);
    if ((rc = sl_lease_open(&l, pool, &a.ticket, n->ctx.stream, err))) return rc;
    if (!(rc = sl_lease_tensor(l, "x", &t, err))) sl_copy(&n->ctx, to, &t);
    sl_lease_drop(&l, n->ctx.stream);
    sl_sync(&n->ctx);
    *seconds = (double)(sl_now_ns() - a.t0_ns) * 1e-9;
    return rc ? rc : sl_ctx_error(&n->ctx, err);
}

static sl_code time_size(sl_bench_net *n, int64_t bytes, const char *size, int count, sl_err *err)
{
    static double seconds[MOST];
    size_t before = 0, after = 0, total;
    sl_bench *b = n->b;
    request r = {.bytes = bytes};
    answer a = {0};
    sl_pool *pool = NULL;
    double ignored;
    sl_tensor to = sl_bench_tensor(n, SL_F32, 1, bytes / 4, 1);
    sl_code rc = sl_ctx_error(&n->ctx, err);
    if (!rc)
        rc = sl_pool_create(&pool, "bench", b->plugin ? SL_POOL_CUDA : SL_POOL_HOST, 2,
                            (size_t)bytes + SLOT_TABLE, err);
    if (!rc) {
        sl_pool_export(pool, &r.pool);
        if (!(rc = send_all(b->peer_socket, &r, sizeof r, err)))
            rc = receive(b->peer_socket, &a, sizeof a, WAIT_MS, err);
        if (!rc && a.err.code)
            rc = sl_fail(err, a.err.code, "hand-over, the sender: %s", a.err.msg);
    }
    for (int i = 0; i < WARM && !rc; i++) rc = once(n, pool, &to, &ignored, err);
    if (!rc && b->plugin) rc = b->plugin->memory(b->ordinal, &before, &total, err);
    for (int i = 0; i < count && !rc; i++) rc = once(n, pool, &to, &seconds[i], err);
    if (!rc && b->plugin) rc = b->plugin->memory(b->ordinal, &after, &total, err);
    if (!rc && after < before)
        rc = sl_fail(err, SL_CUDA, "hand-over: %zu bytes of the GPU are gone after %d of %s",
                     before - after, count, size);
    /* into the slot, and out of it */
    if (!rc) sl_bench_tell(b, "handover", size, NULL, 4 * (double)bytes, 0, seconds, count);
    sl_pool_close(&pool);
    sl_device_free(&n->ctx, to.data);
    return rc;
}

sl_code sl_bench_handover(sl_bench *b, sl_err *err)
{
    const sl_bench_size *s = &b->sizes[b->size_count - 1];
    const sl_grid g = sl_bench_grid(b, s);
    const int64_t latents = b->model.vae.z * g.latent_frames * g.latent_height * g.latent_width * 4;
    char size[64];
    sl_bench_net n;
    sl_code rc;
    if (b->plugin) sl_pool_use_cuda(b->plugin->slabs);
    if ((rc = sl_bench_net_open(&n, b, NULL, err))) return rc;
    snprintf(size, sizeof size, "latents, %.1f MB", (double)latents * 1e-6);
    if (!(rc = time_size(&n, 1024, "1 kB", b->quick ? 100 : MOST, err)))
        rc = time_size(&n, latents, size, b->quick ? 20 : 200, err);
    sl_bench_net_close(&n);
    return rc;
}
