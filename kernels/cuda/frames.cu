/* frames.cu - what the VAE does to channels-last frames besides convolving them: history,
 * norm, shuffles in time and space, Wan2.2's shortcuts, layout, 8-bit RGB. */
#include "kernels/cuda/device.cuh"

/* ---- history ---- */

void sl_cuda_conv_history(sl_ctx *ctx, const sl_tensor *history, const sl_tensor *x)
{
    static const char what[] = "conv_history: cudaMemcpyAsync";
    int64_t n = history->shape[0], t = x->shape[0], keep = t < n ? n - t : 0;
    if (!sl_count(history) || !t) return;
    size_t frame = sl_bytes(history) / (size_t)n;
    char *h = (char *)history->data;
    const char *s = (const char *)x->data;
    /* frames a copy, so that none overlaps what it reads */
    int64_t step = keep <= t ? keep : 1;
    for (int64_t f = 0; f < keep; f += step)
        if (!sl_cuda_ok(ctx,
                        cudaMemcpyAsync(h + f * frame, h + (f + t) * frame, step * frame,
                                        cudaMemcpyDeviceToDevice, ctx->stream),
                        what))
            return;
    sl_cuda_ok(ctx,
               cudaMemcpyAsync(h + keep * frame, s + (t - n + keep) * frame, (n - keep) * frame,
                               cudaMemcpyDeviceToDevice, ctx->stream),
               what);
}

/* ---- norm ---- */

enum { NORM_THREADS = 256, NORM_PIXELS = 4 };

__device__ __forceinline__ float norm_scale(float squares, float root)
{
    float norm = sqrtf(squares);
    return root / (norm < 1e-12f ? 1e-12f : norm); /* NaN stays NaN */
}

/* G lanes share a pixel: lane g has its vectors of 8 channels g, g + G, ..., NV of them.
 * A block has 256 / G pixels side by side, and NORM_PIXELS such lots, all loaded before
 * the first is used. nv vectors a pixel, at most G * NV; root: sqrt(C). */
template <int G, int NV, bool SILU>
static __global__ void __launch_bounds__(NORM_THREADS)
    vae_norm_kernel(bf16 *y, const bf16 *x, const bf16 *__restrict__ gamma, int64_t pixels, int nv,
                    float root)
{
    const int lane = threadIdx.x % G, c = nv * 8;
    const int64_t first = (int64_t)blockIdx.x * (NORM_THREADS / G * NORM_PIXELS) + threadIdx.x / G;
    uint4 v[NORM_PIXELS][NV];
    float scale[NORM_PIXELS];
#pragma unroll
    for (int r = 0; r < NORM_PIXELS; r++) {
        int64_t p = first + r * (NORM_THREADS / G);
#pragma unroll
        for (int j = 0; j < NV; j++) {
            v[r][j] = make_uint4(0, 0, 0, 0);
            if (j * G + lane < nv && p < pixels)
                v[r][j] = *(const uint4 *)(x + p * c + (j * G + lane) * 8);
        }
    }
#pragma unroll
    for (int r = 0; r < NORM_PIXELS; r++) {
        float squares = 0;
#pragma unroll
        for (int j = 0; j < NV; j++) {
            float f[8];
            unpack8(f, v[r][j]);
#pragma unroll
            for (int k = 0; k < 8; k++) squares += f[k] * f[k];
        }
        scale[r] = norm_scale(lane_sum<G>(squares), root);
    }
#pragma unroll
    for (int j = 0; j < NV; j++) {
        if (j * G + lane >= nv) continue;
        float g[8];
        load(g, gamma + (j * G + lane) * 8);
#pragma unroll
        for (int r = 0; r < NORM_PIXELS; r++) {
            int64_t p = first + r * (NORM_THREADS / G);
            float f[8];
            if (p >= pixels) continue;
            unpack8(f, v[r][j]);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                f[k] = f[k] * scale[r] * g[k];
                if (SILU) f[k] = times_sigmoid(f[k], f[k]);
            }
            *(uint4 *)(y + p * c + (j * G + lane) * 8) = pack8(f);
        }
    }
}

/* Any number of channels, any alignment, gamma of either dtype: a warp has a pixel and
 * reads it twice. */
template <typename P>
static __global__ void __launch_bounds__(NORM_THREADS)
    vae_norm_plain_kernel(bf16 *y, const bf16 *x, const P *__restrict__ gamma, int64_t pixels,
                          int64_t c, float root, bool silu)
{
    int64_t p = (int64_t)blockIdx.x * (NORM_THREADS / 32) + threadIdx.x / 32;
    float squares = 0;
    if (p >= pixels) return; /* a whole warp */
    x += p * c;
    y += p * c;
    for (int64_t i = threadIdx.x % 32; i < c; i += 32) squares += to_float(x[i]) * to_float(x[i]);
    float scale = norm_scale(lane_sum<32>(squares), root);
    for (int64_t i = threadIdx.x % 32; i < c; i += 32) {
        float f = to_float(x[i]) * scale * to_float(gamma[i]);
        put_float(y + i, silu ? times_sigmoid(f, f) : f);
    }
}

template <int G, int NV>
static void vae_norm(sl_ctx *ctx, bf16 *y, const bf16 *x, const bf16 *gamma, int64_t pixels, int nv,
                     float root, bool silu)
{
    unsigned blocks = blocks_for(pixels, NORM_THREADS / G * NORM_PIXELS);
    if (silu)
        vae_norm_kernel<G, NV, true>
            <<<blocks, NORM_THREADS, 0, ctx->stream>>>(y, x, gamma, pixels, nv, root);
    else
        vae_norm_kernel<G, NV, false>
            <<<blocks, NORM_THREADS, 0, ctx->stream>>>(y, x, gamma, pixels, nv, root);
}

/* The fewest lanes that hold nv vectors at NV each. */
template <int NV>
static void vae_norm_lanes(sl_ctx *ctx, bf16 *y, const bf16 *x, const bf16 *gamma, int64_t pixels,
                           int nv, float root, bool silu)
{
    int lanes = (nv + NV - 1) / NV;
    if (lanes <= 1) vae_norm<1, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
    else if (lanes <= 2) vae_norm<2, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
    else if (lanes <= 4) vae_norm<4, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
    else if (lanes <= 8) vae_norm<8, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
    else if (lanes <= 16) vae_norm<16, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
    else vae_norm<32, NV>(ctx, y, x, gamma, pixels, nv, root, silu);
}

static bool is_power_of_two(int n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

void sl_cuda_vae_norm(sl_ctx *ctx, const sl_tensor *yt, const sl_tensor *xt, const sl_tensor *gamma,
                      bool silu)
{
    int64_t c = xt->shape[3], count = sl_count(xt);
    if (!count) return;
    int64_t pixels = count / c;
    bf16 *y = (bf16 *)yt->data;
    const bf16 *x = (const bf16 *)xt->data, *g = (const bf16 *)gamma->data;
    float root = sqrtf((float)c);
    if (gamma->dtype == SL_BF16 && c % 8 == 0 && c <= 1024 && is_aligned16(y, x, g)) {
        int nv = (int)c / 8;
        if (is_power_of_two(nv) && nv <= 32) /* 8, 16, 32, 64, 128, 256 channels */
            vae_norm_lanes<1>(ctx, y, x, g, pixels, nv, root, silu);
        else if (nv % 3 == 0 && is_power_of_two(nv / 3)) /* 24, 48, 96, 192, 384, 768 */
            vae_norm_lanes<3>(ctx, y, x, g, pixels, nv, root, silu);
        else vae_norm_lanes<4>(ctx, y, x, g, pixels, nv, root, silu);
    } else {
        unsigned blocks = blocks_for(pixels, NORM_THREADS / 32);
        if (gamma->dtype == SL_F32)
            vae_norm_plain_kernel<<<blocks, NORM_THREADS, 0, ctx->stream>>>(
                y, x, (const float *)gamma->data, pixels, c, root, silu);
        else
            vae_norm_plain_kernel<<<blocks, NORM_THREADS, 0, ctx->stream>>>(y, x, g, pixels, c,
                                                                            root, silu);
    }
    SL_LAUNCHED(ctx, "vae_norm");
}

/* ---- time shuffle ---- */

/* x [T, pixels, 2, c] to y [T, 2, pixels, c], all counted in units of type T. */
template <typename T>
static __global__ void __launch_bounds__(MAP_THREADS)
    time_shuffle_kernel(T *y, const T *x, int64_t n, int64_t pixels, int64_t c)
{
    int64_t first = (int64_t)blockIdx.x * (MAP_THREADS * MAP_EACH) + threadIdx.x, to[MAP_EACH];
    T v[MAP_EACH];
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS, q, k, t, p;
        if (i >= n) continue;
        v[u] = x[i];
        split(i, c, &q, &k);
        split(q / 2, pixels, &t, &p);
        to[u] = ((2 * t + q % 2) * pixels + p) * c + k;
    }
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++)
        if (first + u * MAP_THREADS < n) y[to[u]] = v[u];
}

void sl_cuda_time_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t n = sl_count(x), pixels = x->shape[1] * x->shape[2], c = y->shape[3];
    if (!n) return;
    if (c % 8 == 0 && is_aligned16(y->data, x->data))
        time_shuffle_kernel<<<blocks_for(n / 8, MAP_THREADS * MAP_EACH), MAP_THREADS, 0,
                              ctx->stream>>>((uint4 *)y->data, (const uint4 *)x->data, n / 8,
                                             pixels, c / 8);
    else
        time_shuffle_kernel<<<blocks_for(n, MAP_THREADS * MAP_EACH), MAP_THREADS, 0, ctx->stream>>>(
            (uint16_t *)y->data, (const uint16_t *)x->data, n, pixels, c);
    SL_LAUNCHED(ctx, "time_shuffle");
}

/* ---- Wan2.2's shortcuts ---- */

/* What the three operations share: extents of the smaller frames, channels of y and x, numbers of
 * x a number of y or the other way round, frames of zeros before x's first or left out of y. */
struct shortcut {
    int h, w, co, ci, of, time, lead;
};

static shortcut shortcut_of(const sl_tensor *y, const sl_tensor *x, int time, bool down)
{
    const sl_tensor *small = down ? y : x;
    shortcut s;
    s.h = (int)small->shape[1], s.w = (int)small->shape[2];
    s.co = (int)y->shape[3], s.ci = (int)x->shape[3], s.time = time;
    s.of = down ? s.ci * time * 4 / s.co : s.co * time * 4 / s.ci;
    s.lead = down ? (int)(x->shape[0] % time) : (int)(time * x->shape[0] - y->shape[0]);
    return s;
}

/* A thread a number of y. */
static __global__ void __launch_bounds__(MAP_THREADS)
    avg_down_kernel(bf16 *y, const bf16 *x, const shortcut s, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, q, o, k, p;
    if (i >= n) return;
    split(i, s.co, &q, &o);
    split(q, (int64_t)s.h * s.w, &k, &p);
    const int row = (int)p / s.w * 2, column = (int)p % s.w * 2;
    float sum = 0;
    for (int u = (int)o * s.of, end = u + s.of; u < end; u++) {
        int64_t f = k * s.time + u / 4 % s.time - s.lead;
        if (f >= 0)
            sum += to_float(
                x[((f * 2 * s.h + row + u / 2 % 2) * 2 * s.w + column + u % 2) * s.ci +
                  u / (4 * s.time)]);
    }
    put_float(y + i, sum / (float)s.of);
}

/* A thread EACH neighbouring channels of one pixel of y; 8 of them are written at once. */
template <int EACH>
static __global__ void __launch_bounds__(MAP_THREADS)
    dup_up_kernel(uint16_t *y, const uint16_t *x, const shortcut s, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, q, group, f, p;
    if (i >= n) return;
    split(i, s.co / EACH, &q, &group);
    split(q, (int64_t)s.h * s.w * 4, &f, &p);
    const int row = (int)(p / (2 * s.w)), column = (int)(p % (2 * s.w));
    const int64_t t = f + s.lead;
    const uint16_t *at =
        x + ((t / s.time * s.h + row / 2) * s.w + column / 2) * (int64_t)s.ci;
    const int among = (int)(t % s.time) * 4 + row % 2 * 2 + column % 2;
    __align__(16) uint16_t v[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++)
        v[k] = at[(((int)group * EACH + k) * s.time * 4 + among) / s.of];
    if (EACH == 8) *(uint4 *)(y + i * EACH) = *(const uint4 *)v;
    else y[i] = v[0];
}

/* A thread a number of y. */
static __global__ void __launch_bounds__(MAP_THREADS)
    pixel_shuffle_kernel(uint16_t *y, const uint16_t *x, const shortcut s, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, q, c, f, p;
    if (i >= n) return;
    split(i, s.co, &q, &c);
    split(q, (int64_t)s.h * s.w * 4, &f, &p);
    const int row = (int)(p / (2 * s.w)), column = (int)(p % (2 * s.w));
    y[i] = x[((f * s.h + row / 2) * s.w + column / 2) * s.ci + (c * 2 + column % 2) * 2 + row % 2];
}

void sl_cuda_avg_down(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    const int64_t n = sl_count(y);
    if (!n) return;
    avg_down_kernel<<<blocks_for(n, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
        (bf16 *)y->data, (const bf16 *)x->data, shortcut_of(y, x, time, true), n);
    SL_LAUNCHED(ctx, "avg_down");
}

void sl_cuda_dup_up(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    const int64_t n = sl_count(y);
    const shortcut s = shortcut_of(y, x, time, false);
    if (!n) return;
    if (s.co % 8 == 0 && is_aligned16(y->data))
        dup_up_kernel<8><<<blocks_for(n / 8, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
            (uint16_t *)y->data, (const uint16_t *)x->data, s, n / 8);
    else
        dup_up_kernel<1><<<blocks_for(n, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
            (uint16_t *)y->data, (const uint16_t *)x->data, s, n);
    SL_LAUNCHED(ctx, "dup_up");
}

void sl_cuda_pixel_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    const int64_t n = sl_count(y);
    if (!n) return;
    pixel_shuffle_kernel<<<blocks_for(n, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
        (uint16_t *)y->data, (const uint16_t *)x->data, shortcut_of(y, x, 1, false), n);
    SL_LAUNCHED(ctx, "pixel_shuffle");
}

/* ---- channels last, channels first ---- */

enum { AFFINE = 64 };

/* Factors and offsets of channels first .. first + count - 1; they travel by value, so
 * the caller's arrays are free when the call returns. */
struct affine {
    float mul[AFFINE], add[AFFINE];
    int first, count;
};

static affine affine_of(int64_t first, int64_t channels, const float *mul, const float *add)
{
    affine a;
    a.first = (int)first;
    a.count = (int)(channels - first < AFFINE ? channels - first : AFFINE);
    for (int i = 0; i < AFFINE; i++) {
        a.mul[i] = mul && i < a.count ? mul[first + i] : 1;
        a.add[i] = add && i < a.count ? add[first + i] : 0;
    }
    return a;
}

/* Product and sum each rounded, as in the reference. */
__device__ __forceinline__ float scaled(const affine &a, int c, float x)
{
    return __fadd_rn(__fmul_rn(x, a.mul[c]), a.add[c]);
}

/* A thread has 8 channels of one pixel; lanes have neighbouring pixels, so that every
 * read of a channel is a whole line. */
static __global__ void __launch_bounds__(MAP_THREADS)
    to_channels_last_kernel(bf16 *y, const float *x, const affine a, int64_t pixels,
                            int64_t channels, bool wide)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, group, p;
    if (i >= pixels * ((a.count + 7) / 8)) return;
    split(i, pixels, &group, &p);
    int c = (int)group * 8, m = a.count - c < 8 ? a.count - c : 8;
    const float *in = x + (a.first + c) * pixels + p;
    bf16 *out = y + p * channels + a.first + c;
    float f[8];
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (k < m) f[k] = in[k * pixels];
#pragma unroll
    for (int k = 0; k < 8; k++) f[k] = k < m ? scaled(a, c + k, f[k]) : 0;
    if (wide) {
        store(out, f);
    } else {
#pragma unroll
        for (int k = 0; k < 8; k++)
            if (k < m) put_float(out + k, f[k]);
    }
}

void sl_cuda_to_channels_last(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                              const float *add)
{
    int64_t channels = x->shape[0], pixels = x->shape[1] * x->shape[2] * x->shape[3];
    bool wide = channels % 8 == 0 && is_aligned16(y->data);
    for (int64_t c = 0; c < channels && pixels; c += AFFINE) {
        affine a = affine_of(c, channels, mul, add);
        to_channels_last_kernel<<<blocks_for(pixels * ((a.count + 7) / 8), MAP_THREADS),
                                  MAP_THREADS, 0, ctx->stream>>>(
            (bf16 *)y->data, (const float *)x->data, a, pixels, channels, wide);
        if (!SL_LAUNCHED(ctx, "to_channels_last")) return;
    }
}

/* Likewise, lanes write whole lines; `stride` channels a pixel of x. wide: 8 channels
 * from a multiple of 8 may be read at once, and are there. */
static __global__ void __launch_bounds__(MAP_THREADS)
    to_channels_first_kernel(float *y, const bf16 *x, const affine a, int64_t pixels,
                             int64_t stride, bool wide)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, group, p;
    if (i >= pixels * ((a.count + 7) / 8)) return;
    split(i, pixels, &group, &p);
    int c = (int)group * 8, m = a.count - c < 8 ? a.count - c : 8;
    const bf16 *in = x + p * stride + a.first + c;
    float *out = y + (a.first + c) * pixels + p;
    float f[8];
    if (wide) {
        load(f, in);
    } else {
#pragma unroll
        for (int k = 0; k < 8; k++)
            if (k < m) f[k] = to_float(in[k]);
    }
#pragma unroll
    for (int k = 0; k < 8; k++)
        if (k < m) out[k * pixels] = scaled(a, c + k, f[k]);
}

void sl_cuda_to_channels_first(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                               const float *mul, const float *add)
{
    int64_t channels = y->shape[0], stride = x->shape[3],
            pixels = x->shape[0] * x->shape[1] * x->shape[2];
    bool wide = stride % 8 == 0 && is_aligned16(x->data);
    for (int64_t c = 0; c < channels && pixels; c += AFFINE) {
        affine a = affine_of(c, channels, mul, add);
        to_channels_first_kernel<<<blocks_for(pixels * ((a.count + 7) / 8), MAP_THREADS),
                                   MAP_THREADS, 0, ctx->stream>>>(
            (float *)y->data, (const bf16 *)x->data, a, pixels, stride, wide);
        if (!SL_LAUNCHED(ctx, "to_channels_first")) return;
    }
}

/* ---- 8-bit RGB ---- */

/* round(255 * clamp(x / 2 + 1/2, 0, 1)), to nearest even; NaN gives 0. */
__device__ __forceinline__ unsigned rgb8(float x)
{
    float v = x * 0.5f + 0.5f;
    v = v > 0 ? v : 0;
    v = v < 1 ? v : 1;
    return (unsigned)__float2int_rn(v * 255);
}

/* 16 numbers a thread: 32 bytes in, 16 out. The last block also does the n % 16 at the
 * end. */
static __global__ void __launch_bounds__(MAP_THREADS)
    frames_rgb8_kernel(uint8_t *y, const bf16 *x, int64_t n)
{
    int64_t vectors = n / 16, i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i < vectors) {
        float f[2][8];
        unsigned w[4];
        load(f[0], x + i * 16);
        load(f[1], x + i * 16 + 8);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float *q = f[k / 2] + k % 2 * 4;
            w[k] = rgb8(q[0]) | rgb8(q[1]) << 8 | rgb8(q[2]) << 16 | rgb8(q[3]) << 24;
        }
        *(uint4 *)(y + i * 16) = make_uint4(w[0], w[1], w[2], w[3]);
    }
    int64_t tail = vectors * 16 + threadIdx.x;
    if (blockIdx.x == gridDim.x - 1 && tail < n) y[tail] = (uint8_t)rgb8(to_float(x[tail]));
}

static __global__ void __launch_bounds__(MAP_THREADS)
    frames_rgb8_plain_kernel(uint8_t *y, const bf16 *x, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x;
    if (i < n) y[i] = (uint8_t)rgb8(to_float(x[i]));
}

void sl_cuda_frames_rgb8(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t n = sl_count(x);
    uint8_t *to = (uint8_t *)y->data;
    const bf16 *from = (const bf16 *)x->data;
    if (!n) return;
    if (is_aligned16(to, from))
        frames_rgb8_kernel<<<blocks_for((n + 15) / 16, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
            to, from, n);
    else
        frames_rgb8_plain_kernel<<<blocks_for(n, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
            to, from, n);
    SL_LAUNCHED(ctx, "frames_rgb8");
}
