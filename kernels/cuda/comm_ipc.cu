/* comm_ipc.cu - ranks on GPUs of one machine: windows are device memory that CUDA IPC
 * maps, written by the sender's copy engines.
 *
 * STREAMS   ctx's stream computes. A stream per other rank copies: it follows the compute
 *           stream at the start of an operation, copies the part, then writes the
 *           operation's mark into the receiver's control block, which is host memory that
 *           every process has pinned. Where an operation of ours tells of parts of its
 *           result (sl_done), a copy follows that part's counters instead, while the
 *           compute stream is still at work. The receiver's compute stream waits for the mark
 *           (cuStreamWaitValue64): no multiprocessor spins, no host thread takes part.
 * SOURCES   what a part was copied from may be written again after the wait for its
 *           operation: the compute stream follows an event of each copy stream, of the
 *           newest RING operations.
 * ENDS      A wait on the device knows no deadline. The host looks, in settle: while the
 *           stream is not idle, at aborts, at the members' lives and at the deadline.
 *           When the attempt is over it writes a mark above all of the attempt's into
 *           this rank's own block, again and again until the streams are idle (a late
 *           mark of a member may come between), and leaves the block as the next attempt
 *           needs it: its marks have a larger key.
 * Hardware queues: a wait blocks the queue that its stream shares with others, so a
 * process has as many as it may (CUDA_DEVICE_MAX_CONNECTIONS, set by who starts it; 32).
 * Source: CUDA driver API, "Stream Memory Operations"; CUDA C programming guide,
 * "Interprocess Communication". */
#include "kernels/cuda/comm_device.cuh"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 8 /* operations whose copies have an event of their own */ };

namespace
{

/* Of the body, for one rank's end. */
struct ipc_state {
    int device;
    cudaStream_t copy[SL_RANKS];      /* to each other rank; own: local parts */
    cudaEvent_t sent[SL_RANKS][RING]; /* by operation, modulo RING */
    cudaEvent_t ready;                /* on ctx's stream: what an operation sends is there */
    void *mark[SL_RANKS];             /* device address of each rank's control block */
    bool pinned[SL_RANKS], mapped[SL_RANKS];
    sl_comm_clocks clocks;
};

typedef CUresult CUDAAPI value64_fn(CUstream, CUdeviceptr, cuuint64_t, unsigned);

void *driver_function(const char *name)
{
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
    cudaError_t e = cudaGetDriverEntryPointByVersion(name, &f, 11070, cudaEnableDefault, &found);
    if (e == cudaSuccess && found == cudaDriverEntryPointSuccess) return f;
    cudaGetLastError();
    return NULL;
}

value64_fn *wait_value()
{
    static value64_fn *f = (value64_fn *)driver_function("cuStreamWaitValue64");
    return f;
}

typedef CUresult CUDAAPI value32_fn(CUstream, CUdeviceptr, cuuint32_t, unsigned);

value32_fn *wait_count()
{
    static value32_fn *f = (value32_fn *)driver_function("cuStreamWaitValue32");
    return f;
}

value64_fn *write_value()
{
    static value64_fn *f = (value64_fn *)driver_function("cuStreamWriteValue64");
    return f;
}

/* A rank's control block as the device sees it. */
sl_code pin(ipc_state *s, sl_comm *c, int rank, sl_err *err)
{
    void *block = sl_comm_block_of(c, rank);
    cudaError_t e = cudaHostRegister(block, SL_COMM_PAGE, cudaHostRegisterMapped);
    if (e != cudaSuccess) return sl_comm_failed(err, e, "pinning a control block");
    s->pinned[rank] = true;
    e = cudaHostGetDevicePointer(&s->mark[rank], block, 0);
    return e == cudaSuccess ? SL_OK : sl_comm_failed(err, e, "a control block on the device");
}

sl_code make_stream(ipc_state *s, int rank, sl_err *err)
{
    cudaError_t e = cudaStreamCreateWithFlags(&s->copy[rank], cudaStreamNonBlocking);
    for (int i = 0; i < RING && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&s->sent[rank][i], cudaEventDisableTiming);
    return e == cudaSuccess ? SL_OK : sl_comm_failed(err, e, "a stream for copies");
}

sl_code ipc_open(sl_comm *c, sl_comm_handle *h, sl_err *err)
{
    ipc_state *s = (ipc_state *)calloc(1, sizeof *s);
    if (!s) return sl_fail(err, SL_NOMEM, "comm: no memory");
    sl_comm_set_state(c, s);
    if (!wait_value() || !write_value() || !wait_count())
        return sl_fail(err, SL_CUDA, "comm: the driver has no stream memory operations");
    cudaError_t e = cudaGetDevice(&s->device);
    if (e != cudaSuccess) return sl_comm_failed(err, e, "the device");
    sl_code rc = sl_comm_make_window(c, (size_t)h->window_bytes, err);
    if (rc) return rc;
    void *window = sl_comm_window_of(c, sl_comm_rank(c));
    if ((e = cudaIpcGetMemHandle((cudaIpcMemHandle_t *)h->device, window)) != cudaSuccess)
        return sl_comm_failed(err, e, "cudaIpcGetMemHandle");
    if ((e = cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming)) != cudaSuccess)
        return sl_comm_failed(err, e, "an event");
    rc = make_stream(s, sl_comm_rank(c), err);
    return rc ? rc : pin(s, c, sl_comm_rank(c), err);
}

sl_code ipc_connect(sl_comm *c, const sl_comm_handle *h, sl_err *err)
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    cudaIpcMemHandle_t handle;
    void *window = NULL;
    memcpy(&handle, h->device, sizeof handle);
    cudaError_t e = cudaIpcOpenMemHandle(&window, handle, cudaIpcMemLazyEnablePeerAccess);
    if (e != cudaSuccess) {
        char what[96];
        snprintf(what, sizeof what, "device %d cannot map the window of rank %d", s->device,
                 h->rank);
        return sl_comm_failed(err, e, what);
    }
    s->mapped[h->rank] = true;
    sl_comm_set_window(c, h->rank, (char *)window, (size_t)h->window_bytes);
    sl_code rc = make_stream(s, h->rank, err);
    return rc ? rc : pin(s, c, h->rank, err);
}

void ipc_disconnect(sl_comm *c, int rank)
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    if (!s) return;
    if (s->copy[rank]) cudaStreamSynchronize(s->copy[rank]), cudaStreamDestroy(s->copy[rank]);
    for (int i = 0; i < RING; i++)
        if (s->sent[rank][i]) cudaEventDestroy(s->sent[rank][i]);
    if (s->pinned[rank]) cudaHostUnregister(sl_comm_block_of(c, rank));
    if (s->mapped[rank]) cudaIpcCloseMemHandle(sl_comm_window_of(c, rank));
    cudaGetLastError();
    s->copy[rank] = NULL;
    memset(s->sent[rank], 0, sizeof s->sent[rank]);
    s->pinned[rank] = s->mapped[rank] = false;
    s->mark[rank] = NULL;
    sl_comm_set_window(c, rank, NULL, 0);
}

void ipc_close(sl_comm *c)
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    if (!s) return;
    void *window = sl_comm_window_of(c, sl_comm_rank(c));
    ipc_disconnect(c, sl_comm_rank(c));
    if (window) cudaFree(window);
    if (s->ready) cudaEventDestroy(s->ready);
    sl_comm_free_clocks(&s->clocks);
    cudaGetLastError();
    free(s);
    sl_comm_set_state(c, NULL);
}

bool driver_ok(sl_ctx *ctx, CUresult r, const char *what)
{
    if (r == CUDA_SUCCESS) return true;
    sl_ctx_fail(ctx, SL_CUDA, "comm: %s: driver error %d", what, (int)r);
    return false;
}

CUdeviceptr mark_at(const ipc_state *s, int of, sl_lane lane, int from)
{
    return (CUdeviceptr)s->mark[of] + sl_comm_mark_offset(lane, from);
}

/* What the stream copies next is there, though the operation that makes it may still be at work: it
 * has begun, so that whatever this rank waited for before it has come. */
bool wait_for_rows(sl_ctx *ctx, cudaStream_t stream, const sl_done *done)
{
    for (int i = 0; i < done->count; i++)
        if (!driver_ok(ctx,
                       wait_count()(stream, (CUdeviceptr)done->at[i], done->value[i],
                                    CU_STREAM_WAIT_VALUE_GEQ),
                       "a wait for rows"))
            return false;
    return true;
}

void ipc_exchange(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int n,
                  const sl_comm_part parts[])
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    const int me = sl_comm_rank(c);
    const uint32_t slot = (uint32_t)value % RING;
    if (!sl_cuda_ok(ctx, cudaEventRecord(s->ready, ctx->stream), "comm: start of an exchange"))
        return;
    for (int k = 0; k < n; k++) {
        const sl_comm_part *p =
            &parts[(k + sl_comm_team(c, lane)->me) % n]; /* not all to one at once */
        cudaStream_t stream = s->copy[p->rank];
        const bool early = p->rank != me && p->done && p->done->count;
        if (early && !wait_for_rows(ctx, stream, p->done)) return;
        cudaError_t e = early ? cudaSuccess : cudaStreamWaitEvent(stream, s->ready, 0);
        if (e == cudaSuccess && p->rows)
            e = cudaMemcpy2DAsync(sl_comm_window_of(c, p->rank) + p->to,
                                  p->to_pitch ? p->to_pitch : p->width, p->from,
                                  p->from_pitch ? p->from_pitch : p->width, p->width, p->rows,
                                  cudaMemcpyDeviceToDevice, stream);
        if (!sl_cuda_ok(ctx, e, "comm: a copy to another rank")) return;
        if (p->rank != me &&
            !driver_ok(ctx, write_value()(stream, mark_at(s, p->rank, lane, me), value, 0),
                       "a mark"))
            return;
        if (!sl_cuda_ok(ctx, cudaEventRecord(s->sent[p->rank][slot], stream), "comm: an event"))
            return;
    }
}

void ipc_wait(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value)
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    sl_comm_tick(ctx, &s->clocks, lane, 0);
    const sl_team *t = sl_comm_team(c, lane);
    const int me = sl_comm_rank(c);
    for (int i = 0; i < t->size; i++) {
        const int r = t->member[i];
        if (!sl_cuda_ok(ctx,
                        cudaStreamWaitEvent(ctx->stream, s->sent[r][(uint32_t)value % RING], 0),
                        "comm: what was sent"))
            return;
        if (r != me && !driver_ok(ctx,
                                  wait_value()(ctx->stream, mark_at(s, me, lane, r), value,
                                               CU_STREAM_WAIT_VALUE_GEQ),
                                  "a wait"))
            return;
    }
    sl_comm_tick(ctx, &s->clocks, lane, 1);
}

/* Nothing of this rank's is on its way any more; -1: something broke. */
int idle(sl_ctx *ctx, const ipc_state *s)
{
    cudaError_t e = cudaStreamQuery(ctx->stream);
    for (int r = 0; r < SL_RANKS && e == cudaSuccess; r++)
        if (s->copy[r]) e = cudaStreamQuery(s->copy[r]);
    if (e == cudaErrorNotReady) {
        cudaGetLastError();
        return 0;
    }
    return sl_cuda_ok(ctx, e, "comm: waiting for the device") ? 1 : -1;
}

void ipc_settle(sl_ctx *ctx, sl_comm *c)
{
    ipc_state *s = (ipc_state *)sl_comm_state(c);
    const int64_t t0 = sl_now_ns();
    int64_t looked = t0, by = 0;
    bool over = !sl_ok(ctx);
    while (idle(ctx, s) == 0) {
        const int64_t now = sl_now_ns();
        if (!over && now - looked > 5000000) { /* 5 ms */
            looked = now;
            over = sl_comm_must_end(ctx, c, t0);
        }
        if (over) {
            if (!by) by = now + 10000000000; /* 10 s: the device does not end its work */
            sl_comm_release(c);
            if (now > by) {
                sl_ctx_fail(ctx, SL_CUDA, "comm: the device does not end what was queued");
                return;
            }
        }
        sl_comm_nap(now - t0 < 2000000 ? 20 : 200);
    }
    sl_comm_read_clocks(c, &s->clocks);
    /* a member that has begun the next attempt has set marks that let this one's waits
     * through */
    if (sl_ok(ctx)) sl_comm_given_up(ctx, c);
}

} // namespace

extern "C" const sl_comm_body sl_cuda_comm_ipc = {
    "ipc", ipc_open, ipc_connect, ipc_disconnect, ipc_close, ipc_exchange, ipc_wait, ipc_settle,
    NULL,
};
