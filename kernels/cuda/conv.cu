/* conv.cu - the video autoencoder's convolutions: packing, choice of kernel, and the
 * kernel that does every case on every device.
 *
 * An implicit matrix product: rows are 128 output pixels, columns are output channels, K
 * runs over (tap, input channel). Nothing is gathered in device memory: a thread copies
 * 16 bytes (8 channels of one tap of one pixel) from x, the history or nowhere (zeros)
 * into shared memory with cp.async, four stages deep; ldmatrix and mma.sync m16n8k16 in
 * bf16 with float32 sums. Borders, history, strides and the doubling of frames are the
 * choice of an address. Where Ci is no multiple of 8, threads gather element by element
 * instead.
 *
 * COST: 2 * pixels * Co * K operations; reads about K * 2 bytes a pixel and tile of
 * columns from L2. EXPECTED on an A100 60 % of its 312 TFLOP/s with 96 channels or more
 * (a warp does 24 products of 64 x 48 x 16 on 7 ldmatrix), on an H100, where mma.sync
 * reaches about 620, 300 to 350. */
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/cuda/conv_fast.cuh"
#include "kernels/cuda/mma.cuh"

namespace
{

/* ---- weights ---- */

struct shape5 {
    int64_t s[5];
};

__global__ void pack_kernel(bf16 *dst, const float *src, shape5 shape, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dst[i] = __float2bfloat16_rn(sl_conv_packed_value(src, shape.s, i));
}

/* ---- kernel ---- */

enum { BM = 128, BK = 32, STAGES = 4, THREADS = 128 };

struct simple_args {
    sl_conv_call c;
    int h, w;      /* of x as the kernel sees it: doubled by upsample */
    int pixels, K; /* frames * oh * ow; taps * C */
    int64_t pitch; /* of a row of packed weights */
    int n_tiles;
};

__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

/* The output pixel whose row of A a thread fills: where its first tap lies. y far
 * outside: the row is past the end. */
struct row_at {
    int f, y, x;
};

/* Address of channel 0 of the input pixel under a tap; NULL: a zero. */
__device__ __forceinline__ const bf16 *input_at(const simple_args &a, const row_at &r, int dt,
                                                int dy, int dx)
{
    int f = r.f + dt, y = r.y + dy, x = r.x + dx, up = a.c.k.upsample;
    if ((unsigned)y >= (unsigned)a.h || (unsigned)x >= (unsigned)a.w) return nullptr;
    const bf16 *base = a.c.x;
    if (f < 0) {
        base = a.c.history;
        f += a.c.before;
        if (!base) return nullptr;
    }
    return base + ((int64_t)(f * a.c.H + (y >> up)) * a.c.W + (x >> up)) * a.c.C;
}

/* BN columns; WARPS_N warps side by side, the others below one another. EIGHTS: C is a
 * multiple of 8. */
template <int BN, int WARPS_N, bool EIGHTS>
__global__ void __launch_bounds__(THREADS) conv_simple_kernel(const simple_args a)
{
    constexpr int WARPS_M = 4 / WARPS_N, MT = BM / WARPS_M / 16, NT = BN / WARPS_N / 8,
                  A_BYTES = BM * BK * 2, STAGE = A_BYTES + BN * BK * 2;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t base = shared_address(shared);
    const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, warp_m = warp / WARPS_N,
              warp_n = warp % WARPS_N;
    const int n0 = (int)(blockIdx.x % a.n_tiles) * BN, m0 = (int)(blockIdx.x / a.n_tiles) * BM;
    const sl_conv &k = a.c.k;

    /* This thread fills 16-byte piece `piece` of rows tid/4 + 32 i. */
    const int piece = tid % 4, row0 = tid / 4;
    row_at rows[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int p = m0 + row0 + 32 * i, area = a.c.oh * a.c.ow, f = p / area, at = p - f * area,
            y = at / a.c.ow, x = at - y * a.c.ow;
        rows[i].f = f * k.stride_t - a.c.before;
        rows[i].y = p < a.pixels ? y * k.stride_hw - k.pad : -(1 << 24);
        rows[i].x = x * k.stride_hw - k.pad;
    }
    /* the next stage's piece: channel, tap, index in K */
    int c = piece * 8, dt = 0, dy = 0, dx = 0, kk = piece * 8;

    /* Fetching a stage: this thread's pieces of 4 rows of A, then of the rows of B. */
    auto fetch = [&](int stage) {
        const uint32_t to = base + stage * STAGE;
        if (EIGHTS) {
            while (c >= a.c.C) {
                c -= a.c.C;
                if (++dx == k.kw) {
                    dx = 0;
                    if (++dy == k.kh) dy = 0, dt++;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = row0 + 32 * i;
            const uint32_t at = to + row * 64 + ((piece ^ (row >> 1 & 3)) << 4);
            if (EIGHTS) {
                const bf16 *from = kk < a.K ? input_at(a, rows[i], dt, dy, dx) : nullptr;
                copy16(at, from ? from + c : a.c.x, from != nullptr);
            } else {
                uint32_t v[4] = {0, 0, 0, 0};
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    int index = kk + e, tap = index / a.c.C, channel = index - tap * a.c.C,
                        plane = k.kh * k.kw;
                    int t = tap / plane, in_plane = tap - t * plane, ty = in_plane / k.kw,
                        tx = in_plane - ty * k.kw;
                    const bf16 *from = index < a.K ? input_at(a, rows[i], t, ty, tx) : nullptr;
                    uint32_t bits = from ? __bfloat16_as_ushort(from[channel]) : 0;
                    v[e / 2] |= bits << (e % 2 * 16);
                }
                asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]),
                             "r"(v[1]), "r"(v[2]), "r"(v[3])
                             : "memory");
            }
        }
#pragma unroll
        for (int i = 0; i < (BN + 31) / 32; i++) {
            const int row = row0 + 32 * i;
            if (BN % 32 == 0 || row < BN) {
                bool there = n0 + row < a.c.co && kk < a.pitch;
                copy16(to + A_BYTES + row * 64 + ((piece ^ (row >> 1 & 3)) << 4),
                       there ? a.c.w + (n0 + row) * a.pitch + kk : a.c.w, there);
            }
        }
        c += BK;
        kk += BK;
    };

    /* Sums begin at zero; all stages but one are filled; then each step waits for its stage,
     * fetches the one that has become free, and multiplies its own two halves of 16. */
    const int steps = (a.K + BK - 1) / BK;
    float acc[MT][NT][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0;

#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) fetch(s);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        /* the stage is there for all, and all are done with the one that is filled next */
        __syncthreads();
        if (step + STAGES - 1 < steps) fetch((step + STAGES - 1) % STAGES);
        asm volatile("cp.async.commit_group;" ::: "memory");
        const uint32_t at = base + step % STAGES * STAGE;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t ra[MT][4], rb[NT][2];
#pragma unroll
            for (int i = 0; i < MT; i++) {
                int row = (warp_m * MT + i) * 16 + lane % 16, p = half * 2 + lane / 16;
                load4(ra[i], at + row * 64 + ((p ^ (row >> 1 & 3)) << 4));
            }
#pragma unroll
            for (int j = 0; j < NT / 2; j++) {
                int row = warp_n * NT * 8 + j * 16 + lane / 16 * 8 + lane % 8,
                    p = half * 2 + lane / 8 % 2;
                uint32_t r[4];
                load4(r, at + A_BYTES + row * 64 + ((p ^ (row >> 1 & 3)) << 4));
                rb[2 * j][0] = r[0], rb[2 * j][1] = r[1], rb[2 * j + 1][0] = r[2],
                       rb[2 * j + 1][1] = r[3];
            }
            if (NT % 2) {
                int row = warp_n * NT * 8 + (NT - 1) * 8 + lane % 8, p = half * 2 + lane / 8 % 2;
                load2(rb[NT - 1], at + A_BYTES + row * 64 + ((p ^ (row >> 1 & 3)) << 4));
            }
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma(acc[i][j], ra[i], rb[j]);
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");

    /* Sums plus bias plus residual, rounded once. A thread holds columns 2 (lane % 4) and
     * the next of rows lane / 4 and lane / 4 + 8. */
    const int co = a.c.co;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int p = m0 + (warp_m * MT + i) * 16 + lane / 4 + 8 * half;
            if (p >= a.pixels) continue;
            bf16 *y = a.c.y + (int64_t)p * co;
            const bf16 *residual = a.c.residual ? a.c.residual + (int64_t)p * co : nullptr;
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const int n = n0 + (warp_n * NT + j) * 8 + lane % 4 * 2;
                float v[2] = {acc[i][j][2 * half], acc[i][j][2 * half + 1]};
                if (co % 2 == 0) {
                    if (n >= co) continue;
                    if (a.c.bias) {
                        float2 b = __bfloat1622float2(*(const __nv_bfloat162 *)(a.c.bias + n));
                        v[0] += b.x, v[1] += b.y;
                    }
                    if (residual) {
                        float2 r = __bfloat1622float2(*(const __nv_bfloat162 *)(residual + n));
                        v[0] += r.x, v[1] += r.y;
                    }
                    *(__nv_bfloat162 *)(y + n) = __floats2bfloat162_rn(v[0], v[1]);
                } else {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        if (n + e >= co) continue;
                        if (a.c.bias) v[e] += __bfloat162float(a.c.bias[n + e]);
                        if (residual) v[e] += __bfloat162float(residual[n + e]);
                        y[n + e] = __float2bfloat16_rn(v[e]);
                    }
                }
            }
        }
}

template <int BN, int WARPS_N, bool EIGHTS> void launch_simple(sl_ctx *ctx, simple_args a, int bit)
{
    const int bytes = STAGES * (BM + BN) * BK * 2;
    unsigned *done = &sl_cuda_of(ctx)->convs->set_up_simple;
    auto kernel = conv_simple_kernel<BN, WARPS_N, EIGHTS>;
    if (!(*done >> bit & 1)) {
        if (!sl_cuda_ok(
                ctx,
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                "conv3d: shared memory"))
            return;
        *done |= 1u << bit;
    }
    a.n_tiles = (a.c.co + BN - 1) / BN;
    int64_t blocks = ((int64_t)a.pixels + BM - 1) / BM * a.n_tiles;
    if (blocks > INT32_MAX) {
        sl_ctx_fail(ctx, SL_SHAPE, "conv3d: %lld tiles, want at most %d", (long long)blocks,
                    INT32_MAX);
        return;
    }
    kernel<<<(unsigned)blocks, THREADS, bytes, ctx->stream>>>(a);
    SL_LAUNCHED(ctx, "conv3d");
}

void run_simple(sl_ctx *ctx, const sl_conv_call *c)
{
    const int64_t taps = (int64_t)c->k.kt * c->k.kh * c->k.kw;
    simple_args a = {*c,
                     c->H << c->k.upsample,
                     c->W << c->k.upsample,
                     c->frames * c->oh * c->ow,
                     (int)(taps * c->C),
                     sl_conv_pitch(c->C, taps),
                     0};
    if (c->C % 8 == 0) {
        if (c->co <= 8) launch_simple<8, 1, true>(ctx, a, 0);
        else if (c->co <= 64) launch_simple<64, 2, true>(ctx, a, 1);
        else if (c->co % 96 == 0) launch_simple<96, 2, true>(ctx, a, 2);
        else launch_simple<128, 2, true>(ctx, a, 3);
    } else {
        if (c->co <= 8) launch_simple<8, 1, false>(ctx, a, 4);
        else launch_simple<96, 2, false>(ctx, a, 5);
    }
}

/* ctx's own state, made by the first convolution. NULL: ctx has failed. */
sl_cuda_convs *convs_of(sl_ctx *ctx)
{
    sl_cuda *cu = sl_cuda_of(ctx);
    if (cu->convs) return cu->convs;
    sl_cuda_convs *s = new (std::nothrow) sl_cuda_convs();
    if (!s) {
        sl_ctx_fail(ctx, SL_NOMEM, "conv3d: no memory for its state");
        return nullptr;
    }
    const char *which = getenv("SLUICE_CONV");
    s->simple = which && !strcmp(which, "simple");
    s->wide = which && !strcmp(which, "wide");
    return cu->convs = s;
}

} // namespace

void sl_cuda_convs_free(sl_cuda_convs *s)
{
    delete s;
}

size_t sl_cuda_packed_conv_bytes(sl_ctx *, const int64_t shape[5])
{
    return sl_conv_packed_bytes(shape);
}

void sl_cuda_pack_conv(sl_ctx *ctx, void *dst, const float *src, const int64_t shape[5])
{
    const int64_t n = (int64_t)(sl_conv_packed_bytes(shape) / 2);
    size_t bytes = sizeof(float);
    shape5 s;
    for (int i = 0; i < 5; i++) {
        bytes *= (size_t)shape[i];
        s.s[i] = shape[i];
    }
    if (!n || !bytes) return;
    float *staged = (float *)sl_cuda_scratch(ctx, bytes);
    if (!staged ||
        !sl_cuda_ok(ctx, cudaMemcpyAsync(staged, src, bytes, cudaMemcpyHostToDevice, ctx->stream),
                    "conv3d: upload of weights"))
        return;
    pack_kernel<<<(unsigned)((n + 255) / 256), 256, 0, ctx->stream>>>((bf16 *)dst, staged, s, n);
    SL_LAUNCHED(ctx, "conv3d: packing of weights");
}

void sl_cuda_conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                    const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                    const sl_conv *conv)
{
    const int64_t limit = INT32_MAX, taps = (int64_t)conv->kt * conv->kh * conv->kw;
    int64_t pixels_in = x->shape[0] * x->shape[1] * x->shape[2],
            pixels = y->shape[0] * y->shape[1] * y->shape[2];
    if (pixels <= 0) return;
    if (4 * pixels_in > limit || pixels > limit - BM || taps * x->shape[3] > limit ||
        x->shape[1] > limit / 4 || x->shape[2] > limit / 4) {
        sl_ctx_fail(ctx, SL_SHAPE,
                    "conv3d: %lld pixels in, %lld out, %lld products a sum, want at most %lld",
                    (long long)pixels_in, (long long)pixels, (long long)(taps * x->shape[3]),
                    (long long)limit / 4);
        return;
    }
    if (!convs_of(ctx)) return;
    sl_conv_call c = {};
    c.x = (const bf16 *)x->data;
    c.history = history ? (const bf16 *)history->data : nullptr;
    c.w = (const bf16 *)w->data;
    c.bias = b ? (const bf16 *)b->data : nullptr;
    c.residual = residual ? (const bf16 *)residual->data : nullptr;
    c.y = (bf16 *)y->data;
    c.T = (int)x->shape[0], c.H = (int)x->shape[1], c.W = (int)x->shape[2], c.C = (int)x->shape[3];
    c.frames = (int)y->shape[0], c.oh = (int)y->shape[1], c.ow = (int)y->shape[2],
    c.co = (int)y->shape[3];
    c.k = *conv;
    c.before = conv->stride_t == 1 ? conv->kt - 1 : 1;
    if (conv->kt == 1) c.history = nullptr;
    if (sl_conv_fast_can(sl_cuda_of(ctx), &c)) sl_conv_fast(ctx, &c);
    else run_simple(ctx, &c);
}
