/* sampler.cu - DiT's edges (patches in and out), guidance, the sampler's arithmetic and
 * the cache's means on the GPU. */
#include "kernels/cuda/device.cuh"

/* ---- patches ---- */

enum { PATCHES = 32, PATCH_CHANNELS = 48, PATCH_THREADS = 256, PATCH_WARPS = PATCH_THREADS / 32 };

/* Where patch p of frames of hp x wp patches has its first element within one channel;
 * `width` elements a line. */
__device__ __forceinline__ int64_t patch_at(int64_t p, int64_t hp, int64_t wp)
{
    int64_t line, xp, t, yp;
    split(p, wp, &line, &xp);
    split(line, hp, &t, &yp);
    return ((t * hp + yp) * 2 * (2 * wp)) + 2 * xp;
}

/* Two neighbours; `pairs` says that all such addresses allow one access. */
__device__ __forceinline__ float2 load_pair(const float *p, bool pairs)
{
    return pairs ? *(const float2 *)p : make_float2(p[0], p[1]);
}
__device__ __forceinline__ void store_pair(float *p, float a, float b, bool pairs)
{
    if (pairs) *(float2 *)p = make_float2(a, b);
    else p[0] = a, p[1] = b;
}
__device__ __forceinline__ void store_pair(bf16 *p, float a, float b, bool pairs)
{
    if (pairs) *(unsigned *)p = pack2(a, b);
    else put_float(p, a), put_float(p + 1, b);
}

/* A block: 32 patches, all channels, PATCH_CHANNELS at a time. Reading, a warp has one
 * channel and a lane one patch: whole lines. Between lies a tile in shared memory, 8
 * bytes a channel, its rows an odd number of them apart so that lanes do not collide.
 * Writing, neighbours have neighbouring channels of one patch. volume: elements a
 * channel. wide: y is 8-byte aligned, pairs: so are both inputs. */
static __global__ void __launch_bounds__(PATCH_THREADS)
    patchify_kernel(bf16 *y, const float *latents, const float *condition, int c1, int channels,
                    int64_t volume, int64_t patches, int64_t hp, int64_t wp, bool wide, bool pairs)
{
    __shared__ uint2 tile[PATCHES][PATCH_CHANNELS + 1];
    const int64_t first = (int64_t)blockIdx.x * PATCHES;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32,
              n = (int)(patches - first < PATCHES ? patches - first : PATCHES);
    const int64_t at = lane < n ? patch_at(first + lane, hp, wp) : 0, width = 2 * wp;
    for (int from = 0; from < channels; from += PATCH_CHANNELS) {
        const int m = channels - from < PATCH_CHANNELS ? channels - from : PATCH_CHANNELS;
        if (lane < n) {
#pragma unroll 3
            for (int k = warp; k < m; k += PATCH_WARPS) {
                int c = from + k;
                const float *in =
                    (c < c1 ? latents + c * volume : condition + (c - c1) * volume) + at;
                float2 a = load_pair(in, pairs), b = load_pair(in + width, pairs);
                tile[lane][k] = make_uint2(pack2(a.x, a.y), pack2(b.x, b.y));
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < n * m; i += PATCH_THREADS) {
            int p = i / m, k = i % m;
            uint2 v = tile[p][k];
            bf16 *out = y + ((first + p) * channels + from + k) * 4;
            if (wide) {
                *(uint2 *)out = v;
            } else {
                unsigned short *o = (unsigned short *)out;
                o[0] = (unsigned short)v.x, o[1] = (unsigned short)(v.x >> 16),
                o[2] = (unsigned short)v.y, o[3] = (unsigned short)(v.y >> 16);
            }
        }
        __syncthreads();
    }
}

void sl_cuda_patchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                      const sl_tensor *condition)
{
    int64_t c1 = latents->shape[0], channels = c1 + (condition ? condition->shape[0] : 0),
            hp = latents->shape[2] / 2, wp = latents->shape[3] / 2;
    const float *l = (const float *)latents->data,
                *c = condition ? (const float *)condition->data : NULL;
    int64_t patches = y->shape[0];
    if (!sl_count(y)) return;
    patchify_kernel<<<blocks_for(patches, PATCHES), PATCH_THREADS, 0, ctx->stream>>>(
        (bf16 *)y->data, l, c, (int)c1, (int)channels, patches * 4, patches, hp, wp,
        (uintptr_t)y->data % 8 == 0, ((uintptr_t)l | (uintptr_t)c) % 8 == 0);
    SL_LAUNCHED(ctx, "patchify");
}

/* A block: 32 patches, PATCH_CHANNELS channels at a time. Reading, neighbours have
 * neighbouring channels of one place (py, px) of one patch; writing, a lane has one patch
 * and a warp one channel and line. */
enum { UNPATCH_CHANNELS = 32 };
template <typename Y>
static __global__ void __launch_bounds__(PATCH_THREADS)
    unpatchify_kernel(Y *y, const bf16 *x, int channels, int64_t volume, int64_t patches,
                      int64_t hp, int64_t wp, bool pairs)
{
    __shared__ float tile[PATCHES][4 * UNPATCH_CHANNELS + 1];
    const int64_t first = (int64_t)blockIdx.x * PATCHES;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32,
              n = (int)(patches - first < PATCHES ? patches - first : PATCHES);
    const int64_t at = lane < n ? patch_at(first + lane, hp, wp) : 0, width = 2 * wp;
    for (int from = 0; from < channels; from += UNPATCH_CHANNELS) {
        const int m = channels - from < UNPATCH_CHANNELS ? channels - from : UNPATCH_CHANNELS;
#pragma unroll 4
        for (int i = threadIdx.x; i < n * 4 * m; i += PATCH_THREADS) {
            int p = i / (4 * m), q = i % (4 * m) / m, k = i % m; /* 4 m is a multiple of m */
            tile[p][q * UNPATCH_CHANNELS + k] =
                to_float(x[((first + p) * 4 + q) * channels + from + k]);
        }
        __syncthreads();
        if (lane < n)
            for (int i = warp; i < 2 * m; i += PATCH_WARPS) {
                int k = i / 2, py = i % 2;
                const float *in = &tile[lane][2 * py * UNPATCH_CHANNELS + k];
                store_pair(y + (from + k) * volume + at + py * width, in[0], in[UNPATCH_CHANNELS],
                           pairs);
            }
        __syncthreads();
    }
}

void sl_cuda_unpatchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t channels = y->shape[0], patches = x->shape[0], hp = y->shape[2] / 2,
            wp = y->shape[3] / 2;
    bool pairs = (uintptr_t)y->data % (2 * sl_dtype_size(y->dtype)) == 0;
    if (!sl_count(y)) return;
    if (y->dtype == SL_F32)
        unpatchify_kernel<<<blocks_for(patches, PATCHES), PATCH_THREADS, 0, ctx->stream>>>(
            (float *)y->data, (const bf16 *)x->data, (int)channels, patches * 4, patches, hp, wp,
            pairs);
    else
        unpatchify_kernel<<<blocks_for(patches, PATCHES), PATCH_THREADS, 0, ctx->stream>>>(
            (bf16 *)y->data, (const bf16 *)x->data, (int)channels, patches * 4, patches, hp, wp,
            pairs);
    SL_LAUNCHED(ctx, "unpatchify");
}

/* ---- guidance and the sampler's arithmetic ---- */

/* Products and sums below name their rounding (__fmul_rn, __fadd_rn), so that the
 * compiler does not join them: the reference rounds each. */

template <typename T> struct guidance_f {
    float g;
    __device__ float operator()(float c, float u) const
    {
        const T *type = NULL;
        float d = rounded_to(type, c - u), gd = rounded_to(type, __fmul_rn(g, d));
        return __fadd_rn(u, gd);
    }
};

void sl_cuda_guidance(sl_ctx *ctx, const sl_tensor *v, const sl_tensor *cond,
                      const sl_tensor *uncond, float g)
{
    int64_t n = sl_count(v);
    if (v->dtype == SL_F32)
        map2(ctx, "guidance", (float *)v->data, (const float *)cond->data,
             (const float *)uncond->data, n, guidance_f<float>{g});
    else
        map2(ctx, "guidance", (bf16 *)v->data, (const bf16 *)cond->data, (const bf16 *)uncond->data,
             n, guidance_f<bf16>{g});
}

template <typename T> struct flow_f {
    float sigma;
    __device__ float operator()(float x, float v) const
    {
        const T *type = NULL;
        return __fsub_rn(x, rounded_to(type, __fmul_rn(sigma, v)));
    }
};

void sl_cuda_flow_x0(sl_ctx *ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v,
                     float sigma)
{
    int64_t n = sl_count(x);
    float *out = (float *)x0->data;
    const float *in = (const float *)x->data;
    if (v->dtype == SL_F32)
        map2(ctx, "flow_x0", out, in, (const float *)v->data, n, flow_f<float>{sigma});
    else if (v->dtype == SL_BF16)
        map2(ctx, "flow_x0", out, in, (const bf16 *)v->data, n, flow_f<bf16>{sigma});
    else map2(ctx, "flow_x0", out, in, (const __half *)v->data, n, flow_f<__half>{sigma});
}

struct terms {
    const float *x[4];
    float a[4];
};

/* y = a[0] x[0] + a[1] x[1] + ..., left to right. */
template <int N, int V>
static __global__ void __launch_bounds__(MAP_THREADS)
    lincomb_kernel(float *y, const terms in, int64_t n)
{
    int64_t vectors = n / V, i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i < vectors) {
        float v[N][V];
#pragma unroll
        for (int k = 0; k < N; k++) load(v[k], in.x[k] + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) {
            v[0][j] = __fmul_rn(in.a[0], v[0][j]);
#pragma unroll
            for (int k = 1; k < N; k++) v[0][j] = __fadd_rn(v[0][j], __fmul_rn(in.a[k], v[k][j]));
        }
        store(y + i * V, v[0]);
    }
    int64_t tail = vectors * V + threadIdx.x;
    if (V > 1 && blockIdx.x == gridDim.x - 1 && tail < n) {
        float s = __fmul_rn(in.a[0], in.x[0][tail]);
#pragma unroll
        for (int k = 1; k < N; k++) s = __fadd_rn(s, __fmul_rn(in.a[k], in.x[k][tail]));
        y[tail] = s;
    }
}

template <int N> static void lincomb(sl_ctx *ctx, float *y, const terms *in, int64_t n, bool wide)
{
    if (wide)
        lincomb_kernel<N, 4>
            <<<blocks_for((n + 3) / 4, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(y, *in, n);
    else
        lincomb_kernel<N, 1>
            <<<blocks_for(n, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(y, *in, n);
    SL_LAUNCHED(ctx, "lincomb");
}

void sl_cuda_lincomb(sl_ctx *ctx, const sl_tensor *y, int n, const sl_tensor *const x[],
                     const float a[])
{
    terms in = {};
    float *out = (float *)y->data;
    int64_t count = sl_count(y);
    bool wide = is_aligned16(out);
    for (int k = 0; k < n; k++) {
        in.x[k] = (const float *)x[k]->data;
        in.a[k] = a[k];
        wide = wide && is_aligned16(in.x[k]);
    }
    if (!count) return;
    if (n == 1) lincomb<1>(ctx, out, &in, count, wide);
    else if (n == 2) lincomb<2>(ctx, out, &in, count, wide);
    else if (n == 3) lincomb<3>(ctx, out, &in, count, wide);
    else lincomb<4>(ctx, out, &in, count, wide);
}

/* ---- the cache's means ---- */

/* The partition is the same on every GPU: thread i of MEAN_BLOCKS * MEAN_THREADS takes
 * vectors i, i + all, ..., eight differences summed in float32 and those sums in float64;
 * then lanes, warps and blocks in their order. */
enum { MEAN_BLOCKS = 1024, MEAN_THREADS = 256, MEAN_WARPS = MEAN_THREADS / 32, MEAN_EACH = 2 };

template <int V>
__device__ __forceinline__ void mean_step(double (&sum)[2], const float (&p)[V],
                                          const float (&q)[V])
{
    float d = 0, s = 0;
#pragma unroll
    for (int k = 0; k < V; k++) {
        d += fabsf(p[k] - q[k]);
        s += fabsf(p[k]);
    }
    sum[0] += d;
    sum[1] += s;
}

template <int V>
static __global__ void __launch_bounds__(MEAN_THREADS)
    mean_abs_kernel(double *part, const bf16 *prev, const bf16 *r, int64_t n)
{
    __shared__ double shared[2][MEAN_WARPS];
    const int64_t vectors = n / V, all = (int64_t)MEAN_BLOCKS * MEAN_THREADS,
                  self = (int64_t)blockIdx.x * MEAN_THREADS + threadIdx.x;
    double sum[2] = {0, 0};
    for (int64_t i = self; i < vectors; i += all * MEAN_EACH) {
        float p[MEAN_EACH][V], q[MEAN_EACH][V];
#pragma unroll
        for (int u = 0; u < MEAN_EACH; u++)
            if (i + u * all < vectors) {
                load(p[u], prev + (i + u * all) * V);
                load(q[u], r + (i + u * all) * V);
            }
#pragma unroll
        for (int u = 0; u < MEAN_EACH; u++)
            if (i + u * all < vectors) mean_step(sum, p[u], q[u]);
    }
    if (vectors * V + self < n) { /* what is left of a vector */
        float p[1] = {to_float(prev[vectors * V + self])}, q[1] = {to_float(r[vectors * V + self])};
        mean_step(sum, p, q);
    }
    block_sums<MEAN_WARPS>(sum, shared);
    if (threadIdx.x == 0) {
        part[2 * blockIdx.x] = sum[0];
        part[2 * blockIdx.x + 1] = sum[1];
    }
}

/* One block adds the parts and divides. */
static __global__ void __launch_bounds__(MEAN_THREADS)
    mean_abs_end_kernel(float *out, const double *part, int64_t n)
{
    __shared__ double shared[2][MEAN_WARPS];
    double sum[2] = {0, 0};
    for (int i = threadIdx.x; i < MEAN_BLOCKS; i += MEAN_THREADS) {
        sum[0] += part[2 * i];
        sum[1] += part[2 * i + 1];
    }
    block_sums<MEAN_WARPS>(sum, shared);
    if (threadIdx.x == 0) {
        out[0] = (float)(sum[0] / (double)n);
        out[1] = (float)(sum[1] / (double)n);
    }
}

void sl_cuda_mean_abs(sl_ctx *ctx, float out[2], const sl_tensor *prev, const sl_tensor *r)
{
    int64_t n = sl_count(prev);
    const bf16 *p = (const bf16 *)prev->data, *q = (const bf16 *)r->data;
    float *host = sl_cuda_of(ctx)->host_out;
    double *part = (double *)sl_cuda_scratch(ctx, (2 * MEAN_BLOCKS + 2) * sizeof *part);
    if (!part) return;
    float *result = (float *)(part + 2 * MEAN_BLOCKS);
    if (is_aligned16(p, q))
        mean_abs_kernel<8><<<MEAN_BLOCKS, MEAN_THREADS, 0, ctx->stream>>>(part, p, q, n);
    else mean_abs_kernel<1><<<MEAN_BLOCKS, MEAN_THREADS, 0, ctx->stream>>>(part, p, q, n);
    if (!SL_LAUNCHED(ctx, "mean_abs")) return;
    mean_abs_end_kernel<<<1, MEAN_THREADS, 0, ctx->stream>>>(result, part, n);
    if (!SL_LAUNCHED(ctx, "mean_abs: the end of the sums")) return;
    if (!sl_cuda_ok(
            ctx,
            cudaMemcpyAsync(host, result, 2 * sizeof *host, cudaMemcpyDeviceToHost, ctx->stream),
            "mean_abs: cudaMemcpyAsync"))
        return;
    ctx->ops->sync(ctx);
    if (ctx->err.code != SL_OK) return;
    out[0] = host[0];
    out[1] = host[1];
}

/* ---- the cache's means of rows that several ranks share ---- */

/* A warp a row: lane l takes vectors l, l + 32, ..., then the lanes in their order. The same for
 * every row, on every GPU. */
template <int V>
__global__ void __launch_bounds__(MAP_THREADS)
    abs_rows_kernel(float *y, const bf16 *prev, const bf16 *r, int64_t rows, int64_t cols)
{
    const int64_t row = ((int64_t)blockIdx.x * MAP_THREADS + threadIdx.x) / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const bf16 *a = prev + row * cols, *b = r + row * cols;
    const int64_t vectors = cols / V;
    double sum[2] = {0, 0};
    for (int64_t i = lane; i < vectors; i += 32) {
        float p[V], q[V];
        load(p, a + i * V);
        load(q, b + i * V);
        mean_step(sum, p, q);
    }
    for (int64_t c = vectors * V + lane; c < cols; c += 32) {
        float p[1] = {to_float(a[c])}, q[1] = {to_float(b[c])};
        mean_step(sum, p, q);
    }
    sum[0] = lane_sum<32>(sum[0]);
    sum[1] = lane_sum<32>(sum[1]);
    if (lane == 0) y[2 * row] = (float)sum[0], y[2 * row + 1] = (float)sum[1];
}

__global__ void __launch_bounds__(MEAN_THREADS)
    sum_rows_kernel(double *out, const float *y, int64_t rows)
{
    __shared__ double shared[2][MEAN_WARPS];
    double sum[2] = {0, 0};
    for (int64_t i = threadIdx.x; i < rows; i += MEAN_THREADS) {
        sum[0] += y[2 * i];
        sum[1] += y[2 * i + 1];
    }
    block_sums<MEAN_WARPS>(sum, shared);
    if (threadIdx.x == 0) out[0] = sum[0], out[1] = sum[1];
}

void sl_cuda_abs_rows(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *prev, const sl_tensor *r)
{
    const int64_t rows = prev->shape[0], cols = prev->shape[1];
    const bf16 *p = (const bf16 *)prev->data, *q = (const bf16 *)r->data;
    const dim3 blocks = blocks_for(rows * 32, MAP_THREADS);
    if (is_aligned16(p, q) && cols % 8 == 0)
        abs_rows_kernel<8>
            <<<blocks, MAP_THREADS, 0, ctx->stream>>>((float *)y->data, p, q, rows, cols);
    else
        abs_rows_kernel<1>
            <<<blocks, MAP_THREADS, 0, ctx->stream>>>((float *)y->data, p, q, rows, cols);
    SL_LAUNCHED(ctx, "abs_rows");
}

void sl_cuda_sum_rows(sl_ctx *ctx, double out[2], const sl_tensor *y)
{
    double *host = (double *)sl_cuda_of(ctx)->host_out,
           *sums = (double *)sl_cuda_scratch(ctx, 2 * sizeof *sums);
    if (!sums) return;
    sum_rows_kernel<<<1, MEAN_THREADS, 0, ctx->stream>>>(sums, (const float *)y->data, y->shape[0]);
    if (!SL_LAUNCHED(ctx, "sum_rows")) return;
    if (!sl_cuda_ok(
            ctx, cudaMemcpyAsync(host, sums, 2 * sizeof *host, cudaMemcpyDeviceToHost, ctx->stream),
            "sum_rows: cudaMemcpyAsync"))
        return;
    ctx->ops->sync(ctx);
    if (ctx->err.code != SL_OK) return;
    out[0] = host[0];
    out[1] = host[1];
}
