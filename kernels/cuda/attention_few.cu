/* attention_few.cu - attention of many queries to at most 272 keys on Hopper, added to what is there or merged with it.
 *
 * The image's 257 keys, and the last keys of long lists (attention.cu). q and o are far larger than k and v, so what matters is
 * to read them once and to keep enough of them on their way. A block stays on its multiprocessor and takes an equal run of tiles
 * of 64 queries, head after head; one head's keys and values stay in shared memory. Each of its warpgroups takes every second
 * (third) tile of the head: queries come by cp.async one or two tiles ahead, o goes straight into registers at the tile's
 * beginning. S = q k^T has all keys in registers at once (wgmma, both from shared memory), so the softmax is one pass; the
 * weights, rounded to bf16 as cuDNN rounds them, are the next product's register operand, and v is read across (transposed).
 * While one warpgroup takes exponentials the others multiply.
 *
 * COLUMNS: wgmma gives lane t of four neighbours columns 2 t and 2 t + 1 of every 8. Within 32 columns the 4-byte words of v are
 * stored with (8 columns, word) exchanged, so that lane t gets columns 8 t .. 8 t + 7: 16 bytes of o.
 *
 * COST AND EXPECTATION (H100 SXM, 3 TB/s, 40 heads): 75,600 queries read and write 2.3 GB: 0.8 ms, whatever the keys. 257 keys
 * (of 272) multiply for 0.5 ms and take 0.25 ms of exponentials beside that: expected 0.9 to 1.1 ms. 80 keys: 0.85 to 1 ms. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/attention_hopper.cuh"

namespace
{

enum { WIDTH = 128, ROWS = 64, MOST = 272, MOST_MERGED = 128, QUERIES = ROWS * WIDTH * 2 /* bytes of a tile */ };

/* Shared memory for N keys, a multiple of 16: k, v, each as two halves of 64 columns, [N][64] in the 128-byte swizzle; then the
 * warpgroups' rings of query tiles, each two halves [64][64] likewise. Everything begins at a multiple of 1024, the swizzle's
 * period. */
template <int N> struct few {
    static constexpr int GROUPS = N <= 128 ? 3 : 2, DEEP = N <= 128 ? 3 : 2, THREADS = 128 * GROUPS;
    static constexpr int HALF = N * 128, RING = DEEP * QUERIES, SHARED = 4 * HALF + GROUPS * RING + 1024;
    static constexpr int PARTS = N <= 128 ? 1 : 2, PART = N / PARTS; /* keys of one wgmma */
    static_assert(N % 16 == 0 && PART % 8 == 0 && HALF % 1024 == 0 && SHARED <= 227 * 1024, "matrices as wgmma reads them");
};

struct few_args {
    const bf16 *q, *k, *v;
    bf16 *o;
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    const float *stats;
    int nq, nk, tiles, all; /* tiles of a head, of all heads */
    float scale;            /* times log2(e): exponentials are of base 2 */
};

const float LOG2_E = 1.4426950408889634f;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- instructions -------------------------------------------------------------------------------------------------------- */

/* BYTES (4 or 16) to shared memory; zeros unless `there`. */
template <int BYTES> __device__ __forceinline__ void copy(uint32_t to, const void *from, bool there)
{
    const int n = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
}

__device__ __forceinline__ void copies_queued()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* All but the last LATER groups of this thread's copies are there, and wgmma may read them after the next barrier. */
template <int LATER> __device__ __forceinline__ void copies_there()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Read once, and not kept in L1. */
__device__ __forceinline__ uint4 sixteen(const bf16 *p)
{
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* ---- a block's work ------------------------------------------------------------------------------------------------------ */

/* Where 16-byte piece `piece` of row `row` lies, from the beginning of a half [.][64]. */
__device__ __forceinline__ uint32_t place(int row, int piece)
{
    return (uint32_t)(row * 128 + ((piece ^ (row & 7)) << 4));
}

/* Queue the head's keys and values; k and v are its first columns. Rows from nk on become zero. */
template <int N>
__device__ __forceinline__ void bring_keys(const few_args &a, const bf16 *k, const bf16 *v, uint32_t ks, uint32_t vs)
{
    using F = few<N>;
    const int c = threadIdx.x % 16;
    for (int r = threadIdx.x / 16; r < N; r += F::THREADS / 16) {
        const bool there = r < a.nk;
        copy<16>(ks + c / 8 * F::HALF + place(r, c % 8), k + (there ? r : 0) * a.k_pitch + c * 8, there);
    }
    const int w = threadIdx.x % 64, from = (w & ~15) | (w & 3) << 2 | (w >> 2 & 3); /* word w of a row is word `from` of v's */
    for (int r = threadIdx.x / 64; r < N; r += F::THREADS / 64) {
        const bool there = r < a.nk;
        copy<4>(vs + w / 32 * F::HALF + place(r, w / 4 % 8) + w % 4 * 4, v + (there ? r : 0) * a.v_pitch + from * 2, there);
    }
}

/* A warpgroup queues the 64 queries from `first` on; q is the head's first column, `at` one of 128 threads. */
__device__ __forceinline__ void bring_queries(const few_args &a, const bf16 *q, int first, uint32_t to, int at)
{
    const int c = at % 16, r = at / 16; /* rows r + 8 i: one place in the swizzle */
    to += c / 8 * (QUERIES / 2) + place(r, c % 8);
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        const int row = first + r + 8 * i;
        const bool there = row < a.nq;
        copy<16>(to + i * 1024, q + (there ? row : 0) * a.q_pitch + c * 8, there);
    }
}

/* One tile of a warpgroup, from S to o. Lane 4 g + t of a warp has rows `row` = g and g + 8 of the warp's 16; of S columns 8 c +
 * 2 t and the next (elements 4 c, 4 c + 1 of row g; 4 c + 2, 4 c + 3 of row g + 8), which is also what the weights' operand
 * wants; of o columns 32 i + 8 t .. + 7, which hold `old` and lie from `to` on. More than SURE keys are there. */
template <int N, int SURE, bool MERGE>
__device__ __forceinline__ void attend(const few_args &a, uint4 (&old)[2][4], const float (&stat)[2], bf16 *const (&to)[2],
                                       const bool (&inside)[2], uint64_t q, uint64_t k, uint64_t v)
{
    using F = few<N>;
    constexpr int PIECES = F::PART / 8; /* of 8 columns */
    const int t = threadIdx.x % 4;
    float s[F::PARTS][F::PART / 2];
#pragma unroll
    for (int part = 0; part < F::PARTS; part++) pin(s[part]);
    products_may_begin();
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++)
#pragma unroll
        for (int part = 0; part < F::PARTS; part++)
            scores<F::PART>(s[part], q + (i / 4 * (QUERIES / 2) + i % 4 * 32) / 16,
                            k + (i / 4 * F::HALF + part * F::PART * 128 + i % 4 * 32) / 16, i > 0);
    products_queued();
    products_done();
#pragma unroll
    for (int part = 0; part < F::PARTS; part++) pin(s[part]);

    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, of_old[2];
#pragma unroll
    for (int c = 0; c < N / 8; c++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float &x = s[c / PIECES][c % PIECES * 4 + e];
            if (8 * c + 8 > SURE && 8 * c + 2 * t + e % 2 >= a.nk) x = -INFINITY;
            top[e / 2] = fmaxf(top[e / 2], x);
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2)) * a.scale;
        if (MERGE) top[h] = fmaxf(top[h], stat[h]);
    }
    uint32_t p[N / 16][4];
#pragma unroll
    for (int c = 0; c < N / 8; c++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float x = power_of_2(fmaf(s[c / PIECES][c % PIECES * 4 + 2 * h], a.scale, -top[h]));
            const float y = power_of_2(fmaf(s[c / PIECES][c % PIECES * 4 + 2 * h + 1], a.scale, -top[h]));
            sum[h] += x + y; /* a NaN stays in it */
            p[c / 2][c % 2 * 2 + h] = rounded(x, y);
        }

    float acc[WIDTH / 2];
    pin(p);
    pin(acc);
    products_may_begin();
#pragma unroll
    for (int i = 0; i < N / 16; i++) weighted(acc, p[i], v + i * 16 * 128 / 16, i > 0);
    products_queued();
#pragma unroll
    for (int h = 0; h < 2; h++) { /* meanwhile; the sum becomes the factor of acc */
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        of_old[h] = MERGE ? power_of_2(stat[h] - top[h]) : 0;
        sum[h] = __fdividef(1, of_old[h] + sum[h]);
        of_old[h] *= sum[h];
    }
    products_done();
    pin(acc);

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < WIDTH / 32; i++) {
            uint32_t w[4] = {old[h][i].x, old[h][i].y, old[h][i].z, old[h][i].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float x = acc[16 * i + 4 * e + 2 * h] * sum[h], y = acc[16 * i + 4 * e + 2 * h + 1] * sum[h];
                const float2 o = floats(w[e]);
                if (MERGE) w[e] = rounded(fmaf(o.x, of_old[h], x), fmaf(o.y, of_old[h], y));
                else {
                    const float2 r = floats(rounded(x, y));
                    w[e] = rounded(o.x + r.x, o.y + r.y);
                }
            }
            if (inside[h]) *(uint4 *)(to[h] + i * 32) = make_uint4(w[0], w[1], w[2], w[3]);
        }
}

#endif

template <int N, int SURE, bool MERGE> __global__ void __launch_bounds__(few<N>::THREADS, 1) few_kernel(const few_args a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using F = few<N>;
    extern __shared__ unsigned char shared[];
    const uint32_t ks = (shared_address(shared) + 1023u) & ~1023u, vs = ks + 2 * F::HALF;
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0), at = threadIdx.x % 128, lane = at % 32;
    const uint32_t ring = vs + 2 * F::HALF + group * F::RING;
    const int end = (int)((int64_t)(blockIdx.x + 1) * a.all / gridDim.x);
    for (int begin = (int)((int64_t)blockIdx.x * a.all / gridDim.x), next; begin < end; begin = next) {
        const int head = begin / a.tiles, offset = head * a.tiles;
        next = min(end, offset + a.tiles);
        const bf16 *q = a.q + head * WIDTH;
        __syncthreads(); /* nobody reads the last head's keys any more, nor queries */
        bring_keys<N>(a, a.k + head * WIDTH, a.v + head * WIDTH, ks, vs);
        copies_queued();
#pragma unroll
        for (int i = 0; i < F::DEEP - 1; i++) {
            const int tile = begin + group + i * F::GROUPS;
            if (tile < next) bring_queries(a, q, (tile - offset) * ROWS, ring + i * QUERIES, at);
            copies_queued();
        }
        copies_there<F::DEEP - 1>(); /* the keys */
        __syncthreads();
        int here = 0, spare = F::DEEP - 1; /* places in the ring */
        for (int tile = begin + group; tile < next; tile += F::GROUPS) {
            const int first = (tile - offset) * ROWS, row = first + at / 32 * 16 + lane / 4;
            const bool inside[2] = {row < a.nq, row + 8 < a.nq};
            bf16 *const o = a.o + row * a.o_pitch + head * WIDTH + lane % 4 * 8;
            bf16 *const to[2] = {o, o + 8 * a.o_pitch};
            uint4 old[2][4];
            float stat[2] = {0, 0};
            copies_there<F::DEEP - 2>(); /* this tile's queries */
#pragma unroll
            for (int h = 0; h < 2; h++) {
#pragma unroll
                for (int i = 0; i < 4; i++) old[h][i] = inside[h] ? sixteen(to[h] + i * 32) : make_uint4(0, 0, 0, 0);
                if (MERGE && inside[h]) stat[h] = a.stats[(int64_t)head * a.nq + row + 8 * h] * LOG2_E;
            }
            asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); /* everybody's, and the last tile's are done with */
            const int then = tile + (F::DEEP - 1) * F::GROUPS;
            if (then < next) bring_queries(a, q, (then - offset) * ROWS, ring + spare * QUERIES, at);
            copies_queued();
            attend<N, SURE, MERGE>(a, old, stat, to, inside, matrix_at(ring + here * QUERIES, 16), matrix_at(ks, 16),
                                   matrix_at(vs, F::HALF));
            if (++here == F::DEEP) here = 0;
            if (++spare == F::DEEP) spare = 0;
        }
    }
#endif
}

/* ---- host ---------------------------------------------------------------------------------------------------------------- */

template <int N, int SURE, bool MERGE> void launch(sl_ctx *ctx, const few_args &a)
{
    using F = few<N>;
    const int sms = sl_cuda_of(ctx)->sms, busy = (a.all + F::GROUPS - 1) / F::GROUPS, blocks = busy < sms ? busy : sms;
    if (!sl_cuda_ok(ctx, cudaFuncSetAttribute(few_kernel<N, SURE, MERGE>, cudaFuncAttributeMaxDynamicSharedMemorySize, F::SHARED),
                    "shared memory of attention to few keys"))
        return;
    few_kernel<N, SURE, MERGE><<<blocks, F::THREADS, F::SHARED, ctx->stream>>>(a);
    SL_LAUNCHED(ctx, "attention to few keys");
}

bool sixteens(const void *p, int64_t pitch)
{
    return (uintptr_t)p % 16 == 0 && pitch % 8 == 0;
}

} // namespace

bool sl_attention_few_can(const sl_cuda *cu, const sl_attention_few_call *c)
{
    const char *set = getenv("SLUICE_ATTENTION_FEW");
    if (cu->sm != 90 || (set && !atoi(set)) || c->nk < 1 || c->nk > (c->stats ? MOST_MERGED : MOST)) return false;
    if (!(c->scale > 0) || !isfinite(c->scale)) return false; /* the largest score is sought before it is scaled */
    return c->nq > 0 && c->nq <= INT32_MAX / 2 / c->heads && sixteens(c->q, c->q_pitch) && sixteens(c->k, c->k_pitch) &&
           sixteens(c->v, c->v_pitch) && sixteens(c->o, c->o_pitch);
}

void sl_attention_few(sl_ctx *ctx, const sl_attention_few_call *c)
{
    const int tiles = (int)((c->nq + ROWS - 1) / ROWS);
    few_args a;
    a.q = c->q, a.k = c->k, a.v = c->v, a.o = c->o, a.stats = c->stats;
    a.q_pitch = c->q_pitch, a.k_pitch = c->k_pitch, a.v_pitch = c->v_pitch, a.o_pitch = c->o_pitch;
    a.nq = (int)c->nq, a.nk = (int)c->nk, a.tiles = tiles, a.all = tiles * (int)c->heads;
    a.scale = c->scale * LOG2_E;
    if (c->stats) {
        if (c->nk <= 32) launch<32, 0, true>(ctx, a);
        else if (c->nk <= 80) launch<80, 32, true>(ctx, a);
        else launch<128, 80, true>(ctx, a);
    } else if (c->nk <= 32) launch<32, 0, false>(ctx, a);
    else if (c->nk <= 80) launch<80, 32, false>(ctx, a);
    else if (c->nk <= 128) launch<128, 80, false>(ctx, a);
    else if (c->nk <= 192) launch<192, 128, false>(ctx, a);
    else if (c->nk <= 256) launch<256, 192, false>(ctx, a);
    else launch<272, 256, false>(ctx, a);
}
