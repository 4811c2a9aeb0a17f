/* helper_decode_flat - another decode, without a line of stages/seat/: the protocol of
 * stages/README.md is enough.
 *
 *   stages: ( { name = "text"; }, { name = "image"; }, { name = "denoise"; },
 *             { name = "decode"; program = "build/release/tests/helper_decode_flat"; },
 *             { name = "mux"; } );
 *
 * The latents' first three channels become red, green and blue, each latent pixel a square
 * of 8 x 8: a preview that costs nothing. One thread, which looks at its socket between
 * chunks, and beats there too. With args = ["--raise-at", "N"] it fails before chunk N; with
 * ["--kill-at", "N"] a job whose seed is N ends all processes of its server by SIGKILL, half a
 * second after it came here. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <zmq.h>

#include "common/job.h"
#include "common/safetensors.h"
#include "common/pipeline.h"
#include "common/wire.h"

#define BEAT_MS 100
#define SLOTS 2
#define MUXES 4
/* memory is taken as it is touched, so a generous size costs nothing */
#define SLOT_BYTES ((size_t)256 << 20)

typedef struct {
    void *socket;
    sl_pool *latents;       /* ours: denoise sends there */
    sl_pool *frames[MUXES]; /* theirs: we send there, to the one that the JOB names */
    int next;               /* place of the next one, the oldest's */
    bool has_job, cancelled, drain;
    int raise_at; /* -1: it does not */
    const char *kill_at;
    sl_msg_job job;
} flat;

/* Look at everything that has come. */
static void listen_now(flat *f, int wait_ms)
{
    zmq_pollitem_t item = {f->socket, 0, ZMQ_POLLIN, 0};
    sl_msg m, beat = {.type = SL_MSG_HEARTBEAT};
    sl_err err = {0};
    zmq_poll(&item, 1, wait_ms);
    while (sl_wire_recv(f->socket, NULL, NULL, &m, &err) == SL_OK) switch (m.type) {
        case SL_MSG_POOL:
            if (strcmp(m.pool.handover, "frames")) break;
            sl_pool_close(&f->frames[f->next]);
            sl_pool_open(&f->frames[f->next], &m.pool.handle, &err);
            f->next = (f->next + 1) % MUXES;
            break;
        case SL_MSG_JOB:
            f->job = m.job;
            f->has_job = true;
            f->cancelled = false;
            break;
        case SL_MSG_CANCEL:
            f->cancelled |= m.cancel.job == f->job.job && m.cancel.attempt == f->job.attempt;
            break;
        case SL_MSG_DISCARD: sl_pool_discard(f->latents, &m.discard.ticket); break;
        case SL_MSG_REAP: sl_pool_reap(f->latents, m.reap.pid); break;
        case SL_MSG_DRAIN: f->drain = true; break;
        default: break; /* of no use to this stage */
        }
    sl_wire_send(f->socket, NULL, 0, &beat, NULL);
}

/* Latent frame t of x [16, T, h, w] as n frames of video, u8 [n, 8h, 8w, 3]. */
static void paint(uint8_t *rgb, int n, const float *x, const int64_t shape[4], int64_t t)
{
    int64_t h = shape[2], w = shape[3], plane = h * w;
    for (int64_t i = 0; i < n * 64 * plane * 3; i++) {
        int64_t c = i % 3, column = i / 3 % (8 * w) / 8, row = i / (24 * w) % (8 * h) / 8;
        float v = 128 + 48 * x[(c * shape[1] + t) * plane + row * w + column];
        rgb[i] = (uint8_t)lrintf(fminf(fmaxf(v, 0), 255));
    }
}

/* The pool that the JOB's list `to` names, or the newest; NULL: there is none. */
static sl_pool *frames_of(const flat *f)
{
    const sl_ticket *to = sl_tickets_find(&f->job.to, SL_HANDOVER_FRAMES);
    for (int i = 1; i <= MUXES; i++) {
        sl_pool *pool = f->frames[(f->next + MUXES - i) % MUXES];
        if (pool && (!to || to->pool == sl_pool_id(pool))) return pool;
    }
    return NULL;
}

/* One latent frame into a slot of mux's pool; its ticket goes with CHUNK. */
static sl_code send_chunk(flat *f, const sl_tensor *x, int64_t t, sl_err *err)
{
    int n = t ? 4 : 1;
    sl_msg m = {.type = SL_MSG_CHUNK,
                .chunk = {.job = f->job.job,
                          .handover = SL_HANDOVER_FRAMES,
                          .attempt = f->job.attempt,
                          .index = (uint32_t)t,
                          .chunks = (uint32_t)x->shape[1],
                          .frames = (uint32_t)n}};
    sl_lease *lease = NULL;
    sl_tensor rgb;
    sl_code rc;
    do {
        listen_now(f, 0);
        if (f->cancelled) return sl_fail(err, SL_CANCELLED, "cancelled");
        sl_pool *pool = frames_of(f);
        rc = pool ? sl_lease_reserve(&lease, pool, BEAT_MS, err) : sl_fail(err, SL_GONE, "no mux");
    } while (rc == SL_BUSY); /* back-pressure: mux has not read the last ones yet */
    if (!rc)
        rc = sl_lease_add(lease, "rgb", SL_U8, 4,
                          (int64_t[]){n, 8 * x->shape[2], 8 * x->shape[3], 3}, &rgb, err);
    if (!rc) {
        paint(rgb.data, n, x->data, x->shape, t);
        rc = sl_lease_seal(lease, NULL, &m.chunk.slot, err);
    }
    if (!rc) rc = sl_wire_send(f->socket, NULL, 0, &m, err);
    sl_lease_drop(&lease, NULL);
    return rc;
}

/* What was sent is through by then: the mux has it. */
static sl_code raise_error(flat *f, sl_err *err)
{
    for (int i = 0; i < 10 && !f->cancelled; i++) {
        listen_now(f, 0);
        usleep(BEAT_MS * 1000);
    }
    return sl_fail(err, SL_INTERNAL, "flat: raised before chunk %d", f->raise_at);
}

/* The process that started this one's parent: the server. 0: not known. */
static pid_t server_pid(void)
{
    char path[64], line[256];
    int pid = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)getppid());
    FILE *status = fopen(path, "re");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "PPid: %d", &pid) == 1) break;
    if (status) fclose(status);
    return pid;
}

/* As a driver or the kernel would that this job is too much for. */
static void kill_host(flat *f)
{
    char path[SL_DIR + 64];
    sl_job job = {0};
    snprintf(path, sizeof path, "%s/job.json", f->job.dir);
    const bool is =
        f->kill_at && !sl_job_read(&job, path, NULL) && job.seed == strtoull(f->kill_at, NULL, 10);
    sl_job_free(&job);
    for (int i = 0; is && i < 5; i++) {
        listen_now(f, 0);
        usleep(BEAT_MS * 1000);
    }
    const pid_t server = is && !f->cancelled ? server_pid() : 0;
    if (server <= 1) return;
    kill(-server, SIGKILL); /* its processes are one group, or each its own */
    kill(server, SIGKILL);
    kill(0, SIGKILL);
}

static sl_code work(flat *f, sl_err *err)
{
    sl_lease *lease = NULL;
    sl_st *file = NULL;
    sl_tensor x = {0};
    const sl_st_entry *e;
    char path[SL_DIR + 64];
    sl_code rc;
    kill_host(f);
    snprintf(path, sizeof path, "%s/%s.safetensors", f->job.dir,
             SL_HANDOVER[SL_HANDOVER_LATENTS].file);
    /* the latents lie in our own slot, or in the spool if they were made before we were */
    const sl_ticket *ticket = sl_tickets_find(&f->job.in, SL_HANDOVER_LATENTS);
    if (ticket) {
        if (!(rc = sl_lease_open(&lease, f->latents, ticket, NULL, err)))
            rc = sl_lease_tensor(lease, "latents", &x, err);
    } else if (!(rc = sl_st_open_file(&file, path, err))) {
        if ((e = sl_st_find(file, "latents"))) x = e->t;
        else rc = sl_fail(err, SL_FORMAT, "%s: no latents", path);
    }
    if (!rc && (x.dtype != SL_F32 || x.rank != 4 || x.shape[0] < 3))
        rc = sl_fail(err, SL_SHAPE, "flat: latents of another kind");
    for (int64_t t = 0; !rc && t < x.shape[1]; t++)
        rc = t == f->raise_at ? raise_error(f, err) : send_chunk(f, &x, t, err);
    sl_lease_drop(&lease, NULL);
    sl_st_close(&file);
    return rc;
}

int main(int argc, char **argv)
{
    flat f = {.raise_at = -1};
    sl_err err = {0};
    void *zmq = zmq_ctx_new();
    sl_msg hello = {.type = SL_MSG_HELLO,
                    .hello = {.role = "decode", .pid = getpid(), .device = "cpu"}};
    sl_msg pool = {.type = SL_MSG_POOL, .pool = {.handover = "latents"}},
           ready = {.type = SL_MSG_READY};
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a stage dies with its dispatcher */
    signal(SIGPIPE, SIG_IGN);
    f.socket = zmq_socket(zmq, ZMQ_DEALER);
    for (int i = 1; i + 1 < argc; i++) {
        if (!strcmp(argv[i], "--connect") && zmq_connect(f.socket, argv[i + 1])) return 1;
        if (!strcmp(argv[i], "--raise-at")) f.raise_at = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--kill-at")) f.kill_at = argv[i + 1];
    }
    if (sl_pool_create(&f.latents, "latents", SL_POOL_HOST, SLOTS, SLOT_BYTES, &err)) return 1;
    sl_pool_export(f.latents, &pool.pool.handle);
    sl_wire_send(f.socket, NULL, 0, &hello, NULL);
    sl_wire_send(f.socket, NULL, 0, &pool, NULL);
    sl_wire_send(f.socket, NULL, 0, &ready, NULL);

    while (!f.drain) {
        sl_err bad = {0};
        listen_now(&f, BEAT_MS);
        if (!f.has_job) continue;
        f.has_job = false;
        sl_msg end = {.type = SL_MSG_DONE, .done = {.job = f.job.job, .attempt = f.job.attempt}};
        if (work(&f, &bad)) {
            end = (sl_msg){
                .type = SL_MSG_FAILED,
                .failed = {.job = f.job.job, .attempt = f.job.attempt, .code = (int32_t)bad.code}};
            snprintf(end.failed.message, sizeof end.failed.message, "%s", bad.msg);
        }
        sl_wire_send(f.socket, NULL, 0, &end, NULL);
    }
    for (int i = 0; i < MUXES; i++) sl_pool_close(&f.frames[i]);
    sl_pool_close(&f.latents);
    zmq_close(f.socket);
    zmq_ctx_term(zmq);
    return 0;
}
