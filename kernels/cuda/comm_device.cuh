/* comm_device.cuh - what the bodies of kernels/comm.h on devices share: errors, the window, how
 * long ctx's stream has waited. */
#ifndef SL_COMM_DEVICE_CUH
#define SL_COMM_DEVICE_CUH

#include "kernels/cuda/cuda.h"

#include <time.h>

extern "C" {
#include "common/clock.h"
#include "kernels/comm_body.h"
}

enum { SL_COMM_CLOCKS = 256 /* waits between two settles whose time is taken */ };

/* Before and after each wait of ctx's stream, since the last settle. */
struct sl_comm_clocks {
    cudaEvent_t at[SL_COMM_CLOCKS][2];
    sl_lane lane[SL_COMM_CLOCKS];
    int n;
};

/* Event `end` of the newest wait. */
static inline void sl_comm_tick(sl_ctx *ctx, sl_comm_clocks *k, sl_lane lane, int end)
{
    if (k->n == SL_COMM_CLOCKS) return;
    cudaEvent_t *e = &k->at[k->n][end];
    if (!*e && !sl_cuda_ok(ctx, cudaEventCreate(e), "comm: a clock")) return;
    k->lane[k->n] = lane;
    sl_cuda_ok(ctx, cudaEventRecord(*e, ctx->stream), "comm: a clock");
    k->n += end;
}

/* The times of all waits since the last settle; the stream is idle. */
static inline void sl_comm_read_clocks(sl_comm *c, sl_comm_clocks *k)
{
    for (int i = 0; i < k->n; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, k->at[i][0], k->at[i][1]) == cudaSuccess)
            sl_comm_add_waited(c, k->lane[i], (int64_t)(ms * 1e6f));
        else cudaGetLastError();
    }
    k->n = 0;
}

static inline void sl_comm_free_clocks(sl_comm_clocks *k)
{
    for (int i = 0; i < SL_COMM_CLOCKS; i++)
        for (int end = 0; end < 2; end++)
            if (k->at[i][end]) cudaEventDestroy(k->at[i][end]);
}

static inline sl_code sl_comm_failed(sl_err *err, cudaError_t e, const char *what)
{
    cudaGetLastError();
    return sl_fail(err, e == cudaErrorMemoryAllocation ? SL_NOMEM : SL_CUDA, "comm: %s: %s", what,
                   cudaGetErrorString(e));
}

/* Device memory of this rank's window, of at least `bytes`: its own pages, since who maps it maps
 * whole ones. */
static inline sl_code sl_comm_make_window(sl_comm *c, size_t bytes, sl_err *err)
{
    const size_t page = (size_t)2 << 20;
    char *window = NULL;
    cudaError_t e = cudaMalloc((void **)&window, (bytes + page) / page * page);
    if (e != cudaSuccess) return sl_comm_failed(err, e, "the window");
    sl_comm_set_window(c, sl_comm_rank(c), window, bytes);
    return SL_OK;
}

static inline void sl_comm_nap(long us)
{
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

#endif
