/* low_rank.cu - y = x + scale * up down, of a LoRA's factors, and y = x + scale * difference.
 *
 * A block makes a tile of 64 x 64 from 16 of the rank at a time, a thread 4 x 4 of it, in float32
 * on the plain units: the sum is exact enough to be rounded once with the weight. At rank 64 a
 * [5120, 5120] bf16 weight is 3.4 GFLOP and 105 MB: at least 0.06 ms of arithmetic at 60 TFLOP/s,
 * 0.03 of memory. What a whole switch takes: BENCHMARKS.md. */
#include "kernels/cuda/device.cuh"

#define TILE 64
#define DEPTH 16
#define EACH 4             /* rows and columns of a thread */
#define SIDE (TILE / EACH) /* threads a side */
#define LOW_RANK (SIDE * SIDE)

template <typename Y, typename X, typename F>
__global__ void __launch_bounds__(LOW_RANK)
    low_rank_kernel(Y *y, const X *x, const F *up, const F *down, float scale, int64_t n, int64_t k,
                    int64_t r)
{
    __shared__ float us[DEPTH][TILE + 1], ds[DEPTH][TILE];
    const int64_t row0 = (int64_t)blockIdx.y * TILE, col0 = (int64_t)blockIdx.x * TILE;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    float sum[EACH][EACH] = {};
    for (int64_t at = 0; at < r; at += DEPTH) {
        for (int i = threadIdx.x; i < TILE * DEPTH; i += LOW_RANK) {
            const int64_t row = row0 + i / DEPTH, q = at + i % DEPTH;
            us[i % DEPTH][i / DEPTH] = row < n && q < r ? to_float(up[row * r + q]) : 0;
            const int64_t col = col0 + i % TILE, p = at + i / TILE;
            ds[i / TILE][i % TILE] = col < k && p < r ? to_float(down[p * k + col]) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < DEPTH; q++) {
            float u[EACH], d[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) u[i] = us[q][ty * EACH + i], d[i] = ds[q][tx + i * SIDE];
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sum[i][j] = fmaf(u[i], d[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int64_t row = row0 + ty * EACH + i, col = col0 + tx + j * SIDE;
            if (row < n && col < k)
                put_float(y + row * k + col, fmaf(scale, sum[i][j], to_float(x[row * k + col])));
        }
}

template <typename Y, typename X, typename F>
__global__ void __launch_bounds__(MAP_THREADS)
    difference_kernel(Y *y, const X *x, const F *diff, float scale, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i < count) put_float(y + i, fmaf(scale, to_float(diff[i]), to_float(x[i])));
}

template <typename Y, typename X, typename F>
static void launch(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
                   const sl_tensor *down, float scale)
{
    const int64_t n = y->shape[0], k = y->shape[1];
    const dim3 tiles((unsigned)((k + TILE - 1) / TILE), (unsigned)((n + TILE - 1) / TILE));
    if (up)
        low_rank_kernel<<<tiles, LOW_RANK, 0, ctx->stream>>>(
            (Y *)y->data, (const X *)x->data, (const F *)up->data, (const F *)down->data, scale, n,
            k, up->shape[1]);
    else
        difference_kernel<<<blocks_for(n * k, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
            (Y *)y->data, (const X *)x->data, (const F *)down->data, scale, n * k);
    SL_LAUNCHED(ctx, "low_rank_add");
}

template <typename Y, typename X>
static void by_factors(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
                       const sl_tensor *down, float scale)
{
    if (down->dtype == SL_F32) launch<Y, X, float>(ctx, y, x, up, down, scale);
    else if (down->dtype == SL_BF16) launch<Y, X, bf16>(ctx, y, x, up, down, scale);
    else launch<Y, X, __half>(ctx, y, x, up, down, scale);
}

void sl_cuda_low_rank_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
                          const sl_tensor *down, float scale)
{
    if (!sl_count(y)) return;
    if (y->dtype == SL_F32 && x->dtype == SL_F32)
        by_factors<float, float>(ctx, y, x, up, down, scale);
    else if (y->dtype == SL_F32) by_factors<float, bf16>(ctx, y, x, up, down, scale);
    else if (x->dtype == SL_F32) by_factors<bf16, float>(ctx, y, x, up, down, scale);
    else by_factors<bf16, bf16>(ctx, y, x, up, down, scale);
}
