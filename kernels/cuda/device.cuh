/* device.cuh - what the memory-bound kernels share: conversions, 16-byte vectors, sums
 * over a warp and a block, elementwise maps.
 *
 * ARITHMETIC is in float32 and rounds to nearest even where a number is stored. `V`
 * elements travel together: 8 where a bf16 or fp16 tensor takes part, 4 where all are
 * float32, 1 where an address or an extent does not allow more. The 8 and the 4 want
 * every address 16-byte aligned.
 * ALIASES: where an operation allows y == x, every thread reads an element before the
 * same thread writes it, and no address of activations is __restrict__. */
#ifndef SL_DEVICE_CUH
#define SL_DEVICE_CUH

#include "kernels/cuda/cuda.h"

/* ---- numbers ---- */

__device__ __forceinline__ float to_float(float x)
{
    return x;
}
__device__ __forceinline__ float to_float(bf16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x)
{
    return __half2float(x);
}

__device__ __forceinline__ void put_float(float *p, float x)
{
    *p = x;
}
__device__ __forceinline__ void put_float(bf16 *p, float x)
{
    *p = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void put_float(__half *p, float x)
{
    *p = __float2half_rn(x);
}

/* x as a tensor of that dtype would hold it. */
__device__ __forceinline__ float rounded_to(const float *, float x)
{
    return x;
}
__device__ __forceinline__ float rounded_to(const bf16 *, float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}
__device__ __forceinline__ float rounded_to(const __half *, float x)
{
    return __half2float(__float2half_rn(x));
}

/* Two bf16 in one word, the first in the lower half. */
__device__ __forceinline__ void unpack2(float *f, unsigned u)
{
    f[0] = __uint_as_float(u << 16);
    f[1] = __uint_as_float(u & 0xffff0000u);
}
__device__ __forceinline__ unsigned pack2(float a, float b)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    unsigned u;
    memcpy(&u, &h, sizeof u);
    return u;
}
__device__ __forceinline__ void unpack8(float (&f)[8], uint4 u)
{
    unpack2(f, u.x);
    unpack2(f + 2, u.y);
    unpack2(f + 4, u.z);
    unpack2(f + 6, u.w);
}
__device__ __forceinline__ uint4 pack8(const float (&f)[8])
{
    return make_uint4(pack2(f[0], f[1]), pack2(f[2], f[3]), pack2(f[4], f[5]), pack2(f[6], f[7]));
}

/* ---- numbers in 8 bits ---- */

const float TINY = 0x1p-100f; /* the least of largest magnitudes: its inverse is finite */
const float LOG2_E = 1.4426950408889634f; /* attention's exponentials are of base 2 */

/* Magnitudes as integers: NaN is the largest. */
__device__ __forceinline__ uint32_t magnitude(float x)
{
    return __float_as_uint(x) & 0x7fffffffu;
}

/* Four numbers times `by`, at most 127, as integers of 8 bits, the first in the lowest byte; NaN as
 * anything. Added to 1.5 * 2^23 a number is rounded to an integer, to the nearest, to even between
 * two, which lies in the sum's lowest bits: a conversion would take the unit of the exponentials,
 * 16 a clock. */
__device__ __forceinline__ uint32_t int_codes(float a, float b, float c, float d, float by)
{
    const float round = 0x1.8p23f;
    const uint32_t lo = __byte_perm(__float_as_uint(__fadd_rn(__fmul_rn(a, by), round)),
                                    __float_as_uint(__fadd_rn(__fmul_rn(b, by), round)), 0x0040),
                   hi = __byte_perm(__float_as_uint(__fadd_rn(__fmul_rn(c, by), round)),
                                    __float_as_uint(__fadd_rn(__fmul_rn(d, by), round)), 0x0040);
    return __byte_perm(lo, hi, 0x5410);
}

/* ---- V neighbours at once ---- */

template <int V> __device__ __forceinline__ void load(float (&f)[V], const float *p)
{
    if constexpr (V == 1) {
        f[0] = *p;
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 q = *(const float4 *)(p + i);
            f[i] = q.x, f[i + 1] = q.y, f[i + 2] = q.z, f[i + 3] = q.w;
        }
    }
}
template <int V> __device__ __forceinline__ void load(float (&f)[V], const bf16 *p)
{
    static_assert(V == 1 || V == 8, "one number or 16 bytes");
    if constexpr (V == 1) f[0] = to_float(*p);
    else unpack8(f, *(const uint4 *)p);
}
template <int V> __device__ __forceinline__ void load(float (&f)[V], const __half *p)
{
    static_assert(V == 1 || V == 8, "one number or 16 bytes");
    if constexpr (V == 1) {
        f[0] = to_float(*p);
    } else {
        uint4 u = *(const uint4 *)p;
        unsigned w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            __half2 h;
            memcpy(&h, &w[i], sizeof h);
            float2 q = __half22float2(h);
            f[2 * i] = q.x, f[2 * i + 1] = q.y;
        }
    }
}

template <int V> __device__ __forceinline__ void store(float *p, const float (&f)[V])
{
    if constexpr (V == 1) {
        *p = f[0];
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4)
            *(float4 *)(p + i) = make_float4(f[i], f[i + 1], f[i + 2], f[i + 3]);
    }
}
template <int V> __device__ __forceinline__ void store(bf16 *p, const float (&f)[V])
{
    static_assert(V == 1 || V == 8, "one number or 16 bytes");
    if constexpr (V == 1) put_float(p, f[0]);
    else *(uint4 *)p = pack8(f);
}
template <int V> __device__ __forceinline__ void store(__half *p, const float (&f)[V])
{
    static_assert(V == 1 || V == 8, "one number or 16 bytes");
    if constexpr (V == 1) {
        put_float(p, f[0]);
    } else {
        unsigned w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            __half2 h = __floats2half2_rn(f[2 * i], f[2 * i + 1]);
            memcpy(&w[i], &h, sizeof w[i]);
        }
        *(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

/* ---- activations ---- */

/* x / (1 + exp(-u)): silu with u = x. A few units in the last place of float32 off, far
 * below bf16's; 0 where exp overflows; NaN stays NaN. */
__device__ __forceinline__ float times_sigmoid(float x, float u)
{
    return __fdividef(x, 1.0f + __expf(-u));
}
/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + exp(-2 sqrt(2/pi) (...))). */
__device__ __forceinline__ float gelu_tanh(float x)
{
    return times_sigmoid(x, 1.5957691216057308f * (x + 0.044715f * x * x * x));
}

/* ---- sums ---- */

/* Sum over groups of G neighbouring lanes (a power of two, 1 .. 32), in every lane; all
 * 32 lanes take part. One order, so the same bits each time. */
template <int G, typename T> __device__ __forceinline__ T lane_sum(T x)
{
#pragma unroll
    for (int o = G / 2; o > 0; o /= 2) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

/* R sums over a block of WARPS warps, in every thread. `shared` is this call's own: a
 * second call in one kernel takes another, or a barrier between. */
template <int WARPS, int R, typename T>
__device__ __forceinline__ void block_sums(T (&x)[R], T (&shared)[R][WARPS])
{
#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = lane_sum<32>(x[r]);
        if (threadIdx.x % 32 == 0) shared[r][threadIdx.x / 32] = x[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = shared[r][0];
#pragma unroll
        for (int w = 1; w < WARPS; w++) x[r] += shared[r][w];
    }
}

/* ---- indices and grids ---- */

/* i / by and i % by; by 32-bit division where that is enough, as it almost always is. */
__device__ __forceinline__ void split(int64_t i, int64_t by, int64_t *quotient, int64_t *rest)
{
    if (((uint64_t)i | (uint64_t)by) >> 32) {
        *quotient = i / by;
        *rest = i % by;
    } else {
        *quotient = (uint32_t)i / (uint32_t)by;
        *rest = (uint32_t)i % (uint32_t)by;
    }
}

/* Blocks for n items at `each` a block; a grid's first extent holds 2^31 - 1 of them. */
static inline unsigned blocks_for(int64_t n, int64_t each)
{
    return (unsigned)((n + each - 1) / each);
}

/* True: the addresses allow 16-byte accesses. */
static inline bool is_aligned16(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}
static inline bool is_aligned16(const void *a, const void *b)
{
    return is_aligned16(a) && is_aligned16(b);
}
static inline bool is_aligned16(const void *a, const void *b, const void *c)
{
    return is_aligned16(a, b) && is_aligned16(c);
}

/* ---- elementwise ---- */

/* vectors a thread: two, so that as many loads again are under way */
enum { MAP_THREADS = 256, MAP_EACH = 2 };

/* y[i] = f(a[i], b[i]) over n >= 1 dense elements; y may be a or b. The last block also
 * does the n % V at the end. */
template <int V, typename Y, typename A, typename B, typename F>
__global__ void __launch_bounds__(MAP_THREADS)
    map2_kernel(Y *y, const A *a, const B *b, int64_t n, F f)
{
    int64_t vectors = n / V, first = (int64_t)blockIdx.x * (MAP_THREADS * MAP_EACH) + threadIdx.x;
    float av[MAP_EACH][V], bv[MAP_EACH][V];
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS;
        if (i < vectors) {
            load(av[u], a + i * V);
            load(bv[u], b + i * V);
        }
    }
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS;
        if (i < vectors) {
#pragma unroll
            for (int k = 0; k < V; k++) av[u][k] = f(av[u][k], bv[u][k]);
            store(y + i * V, av[u]);
        }
    }
    int64_t tail = vectors * V + threadIdx.x;
    if (V > 1 && blockIdx.x == gridDim.x - 1 && tail < n)
        put_float(y + tail, f(to_float(a[tail]), to_float(b[tail])));
}

/* y[i] = f(x[i]), likewise. */
template <int V, typename Y, typename X, typename F>
__global__ void __launch_bounds__(MAP_THREADS) map1_kernel(Y *y, const X *x, int64_t n, F f)
{
    int64_t vectors = n / V, first = (int64_t)blockIdx.x * (MAP_THREADS * MAP_EACH) + threadIdx.x;
    float v[MAP_EACH][V];
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS;
        if (i < vectors) load(v[u], x + i * V);
    }
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS;
        if (i < vectors) {
#pragma unroll
            for (int k = 0; k < V; k++) v[u][k] = f(v[u][k]);
            store(y + i * V, v[u]);
        }
    }
    int64_t tail = vectors * V + threadIdx.x;
    if (V > 1 && blockIdx.x == gridDim.x - 1 && tail < n) put_float(y + tail, f(to_float(x[tail])));
}

/* The launches; n may be 0. */
template <typename Y, typename A, typename B, typename F>
static void map2(sl_ctx *ctx, const char *what, Y *y, const A *a, const B *b, int64_t n, F f)
{
    constexpr int V = sizeof(Y) == 4 && sizeof(A) == 4 && sizeof(B) == 4 ? 4 : 8;
    if (n <= 0) return;
    if (is_aligned16(y, a, b))
        map2_kernel<V>
            <<<blocks_for((n + V - 1) / V, MAP_THREADS * MAP_EACH), MAP_THREADS, 0, ctx->stream>>>(
                y, a, b, n, f);
    else
        map2_kernel<1>
            <<<blocks_for(n, MAP_THREADS * MAP_EACH), MAP_THREADS, 0, ctx->stream>>>(y, a, b, n, f);
    SL_LAUNCHED(ctx, what);
}
template <typename Y, typename X, typename F>
static void map1(sl_ctx *ctx, const char *what, Y *y, const X *x, int64_t n, F f)
{
    constexpr int V = sizeof(Y) == 4 && sizeof(X) == 4 ? 4 : 8;
    if (n <= 0) return;
    if (is_aligned16(y, x))
        map1_kernel<V>
            <<<blocks_for((n + V - 1) / V, MAP_THREADS * MAP_EACH), MAP_THREADS, 0, ctx->stream>>>(
                y, x, n, f);
    else
        map1_kernel<1>
            <<<blocks_for(n, MAP_THREADS * MAP_EACH), MAP_THREADS, 0, ctx->stream>>>(y, x, n, f);
    SL_LAUNCHED(ctx, what);
}

#endif
