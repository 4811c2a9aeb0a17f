/* attention_eight.cu - attention among the tokens in 8 bits on Hopper, for heads of 128: scores
 * from int8, weights and values in e4m3. After SageAttention2 (Zhang et al. 2025) and
 * FlashAttention-3 (Shah et al. 2024); tiles, rings, bands and NO RUNNING MAXIMUM as in
 * attention_flash.cu.
 *
 * CODES (kernels/ops.h). Keys: int8 of the difference from the mean, a scale a head and 128 keys.
 * Values: e4m3 of the difference from the mean, a scale a column; they lie as the tensor cores read
 * them, [heads][M / 32][128 columns][32 keys], a slice of 4096 bytes in the 32-byte swizzle. Within
 * sixteen keys they stand in the order 0 1 8 9 2 3 10 11 ...: a lane's scores of columns 2 t, 2 t +
 * 1, 8 + 2 t, 9 + 2 t are then, rounded, the four bytes 4 t .. 4 t + 3 that the second product
 * wants of it, and nothing is exchanged between lanes.
 *
 * ATTENTION. Three warpgroups of 64 queries; each takes a block of 128 keys at a time: scores,
 * exponentials, weights, then their product with the values by halves of the columns, the sums of
 * which go to float32 registers while the other half is multiplied. Within a warpgroup one follows
 * the other; the tensor cores are kept busy by the other two.
 *
 * WHY THE SUMS LEAVE THE TENSOR CORES after every block: they keep the products of a step aligned
 * to the largest number there, the sum so far, and cut what is below some 13 bits of it. 75,600
 * values with a mean twice their deviation, summed without that: half of the result is missing
 * (found: 0.49 of it); every 2,048 keys: 2.9 % is; every 128: 0.2 %.
 *
 * WEIGHTS end at 448. The largest of a tile's first block becomes 2^3; where a lane's sum of a
 * block passes 448 (or is not a number) its warp multiplies the block once more and takes its
 * maximum.
 *
 * COST AND EXPECTATION (H200, 40 heads, 75,600 tokens: 117 TFLOP). At 1.6 GHz, about what 700 W
 * leave, the tensor cores' rate is 1,730 TFLOP/s, and exponentials, 16 a clock, take as long as the
 * products: 60 % of it.
 * FOUND, TFLOP/s, 10 runs in turn (2026-11-29; bf16 in the same call 742): this 1,036 (1.60 GHz;
 * 1,031 in bursts at 1.78). The same with blocks of 96 keys 993, of 64 878, with the product not
 * halved (96) 924. Without sums leaving the tensor cores: products of two blocks overlapped as in
 * attention_flash.cu, 96 keys 1,055 to 1,063, with scores in e4m3 1,075 (and twice the error); two
 * warpgroups, 128 keys 940, 160 955, 192 951, taking turns 928. Sums to shared memory every 16
 * blocks: 908 (two groups, 128 keys), 957 (three, 64). Two groups, sums to registers every block:
 * 923, by halves beside the next scores 920. A quarter of the exponentials as polynomials: 829.
 * Another card, seconds on end (2026-11-30; 1.78 to 1.86 GHz at 690 W): this 1,025 to 1,029; groups
 * that take turns with the tensor cores 1,019; codes made between the exponentials, before the sum
 * is looked at, 930 (five registers too few); scores in two halves, exponentials of one beside the
 * product of the other, 1,004. Exponentials and tensor cores are busy for 58 % each then, 54 % of
 * the slots issue. */
#include <math.h>

#include "kernels/cuda/attention_hopper.cuh"

#include <cuda_fp8.h>

namespace
{

enum {
    GROUPS = 3,
    TILE = ROWS * GROUPS,
    KEYS = SL_EIGHT_KEYS,
    PRODUCERS = 128,
    THREADS = PRODUCERS + 128 * GROUPS,
    WARPS = 4 * GROUPS /* that multiply */
};

/* Shared memory: two tiles of queries a warpgroup, then the ring, a place for a block's keys or its
 * values. Queries and keys: rows of 128 bytes in the 128-byte swizzle. */
enum { Q_PLACE = ROWS * WIDTH, PLACE = KEYS * WIDTH, PLACES = 8, SLICE = 32 * WIDTH };
enum { SHARED = 2 * GROUPS * Q_PLACE + PLACES * PLACE + 1024 };
static_assert(SHARED <= 226 * 1024, "and the barriers");

const float MOST = 448;

struct eight_maps {
    CUtensorMap q, k;
};

struct eight_args {
    bf16 *o;
    int64_t o_pitch;
    int nq, nk, blocks, tiles, all; /* blocks of keys; tiles of a head, of all heads */
    const float *q_scale;           /* [nq, heads], times the scale and log2(e) */
    int heads;
    const float *k_scale;          /* [heads, blocks] */
    const float *v_scale, *v_mean; /* [heads * 128] */
    const uint8_t *v;
    int band, band_all, from; /* as in attention_flash.cu */
    uint32_t *done;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

const float START = 3; /* of the largest weight of a first block, as a power of two */

/* ---- instructions ---- */

#define INT_FOUR(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define INT_SIXTEEN(d, i)                                                                          \
    INT_FOUR(d, i), INT_FOUR(d, i + 4), INT_FOUR(d, i + 8), INT_FOUR(d, i + 12)

/* d = A [64, 32] B [128, 32]^T of int8, plus d where `add`. */
__device__ __forceinline__ void int_scores(int (&d)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" NAMES_0 NAMES_16 NAMES_32
                     NAMES_40 NAMES_48 "}, %64, %65, p;\n}\n"
                 : INT_SIXTEEN(d, 0), INT_SIXTEEN(d, 16), INT_SIXTEEN(d, 32), INT_SIXTEEN(d, 48)
                 : "l"(a), "l"(b), "r"(add));
}

/* d = A [64, 32] B [64, 32]^T of e4m3, plus d where `add`; A in registers. */
__device__ __forceinline__ void half_sums(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                          int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" NAMES_0 NAMES_16
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1;\n}\n"
                 : SIXTEEN(d, 0), SIXTEEN(d, 16)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

__device__ __forceinline__ void int_mma(int d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, "
                 "%7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <int R> __device__ __forceinline__ void pin(int (&d)[R])
{
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+r"(d[i])::"memory");
}

/* wgmma's view of rows of 32 bytes in the 32-byte swizzle (mode 3): groups of 8 rows 256 bytes
 * apart. */
__device__ __forceinline__ uint64_t slice_at(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(256 >> 4) << 32 |
           (uint64_t)3 << 62;
}

__device__ __forceinline__ void copy_bytes(uint32_t to, const void *from, uint32_t bar, int bytes)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(bar)
        : "memory");
}

__device__ __forceinline__ uint32_t codes4(float a, float b, float c, float d)
{
    uint32_t r;
    asm("{\n.reg .b16 lo, hi;\ncvt.rn.satfinite.e4m3x2.f32 lo, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 hi, %4, %3;\nmov.b32 %0, {lo, hi};\n}\n"
        : "=r"(r)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return r;
}

/* ---- the thread that copies ---- */

__device__ __forceinline__ void bring_all(const eight_args &a, const eight_maps &m, ring keys,
                                          ring queries)
{
    for (int tile = blockIdx.x; tile < a.all; tile += gridDim.x) {
        const place p = place_of<TILE>(a, tile);
        barrier_wait(queries.empty + 8 * queries.at, queries.pass ^ 1);
        barrier_expect(queries.full + 8 * queries.at, GROUPS * Q_PLACE);
        for (int i = 0; i < GROUPS; i++)
            copy_box(queries.data + (queries.at * GROUPS + i) * Q_PLACE, &m.q,
                     queries.full + 8 * queries.at, p.head * WIDTH, p.row + i * ROWS);
        advance<2>(queries);
        for (int b = 0; b < a.blocks; b++)
            for (int values = 0; values < 2; values++) {
                const uint32_t to = keys.data + keys.at * PLACE, bar = keys.full + 8 * keys.at;
                barrier_wait(keys.empty + 8 * keys.at, keys.pass ^ 1);
                barrier_expect(bar, PLACE);
                if (values)
                    copy_bytes(to, a.v + ((int64_t)p.head * a.blocks + b) * PLACE, bar, PLACE);
                else copy_box(to, &m.k, bar, p.head * WIDTH, b * KEYS);
                advance<PLACES>(keys);
            }
    }
    outlive<PLACES>(keys);
}

/* ---- a warpgroup that multiplies ---- */

/* Lane 4 g + t of a warp has rows g and g + 8 of the warp's 16; of scores and o columns 8 c + 2 t
 * and the next, as in attention_flash.cu. */
struct work {
    float acc[WIDTH / 2];     /* o, to be divided by the sum */
    uint32_t p[KEYS / 32][4]; /* the block's weights, as codes */
    float top[2], sum[2];     /* what is subtracted from scaled scores; this lane's part */
    float q_scale[2];
    int lane;
    ring keys;
};

/* This warp's part of the scores once more. */
__device__ __forceinline__ void multiply_again(int (&s)[KEYS / 2], uint32_t q, uint32_t k)
{
    int lane, row, key;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(lane));
    row = lane / 32 % 4 * 16 + lane % 16, key = lane / 16 % 2 * 8 + lane % 8, lane %= 32;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i] = 0;
#pragma unroll 1
    for (int i = 0; i < WIDTH / 32; i++) { /* 32 columns: two pieces of 16 bytes */
        uint32_t a[4], b[4];
        load4(a, q + row * 128 + (((i * 2 + lane / 16) ^ (row & 7)) << 4));
        const uint32_t from = k + key * 128 + (((i * 2 + lane / 8 % 2) ^ (key & 7)) << 4);
#pragma unroll
        for (int c = 0; c < KEYS / 8; c += 2) {
            load4(b, from + c * 8 * 128);
            int_mma(s + 4 * c, a, b);
            int_mma(s + 4 * c + 4, a, b + 2);
        }
    }
}

/* Of KEYS keys `left` are there. */
__device__ __forceinline__ void as_floats(const work &w, float (&x)[KEYS / 2],
                                          const int (&s)[KEYS / 2], int left)
{
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) x[i] = __int2float_rn(s[i]);
    if (left < KEYS) {
        const int past = left - 2 * (w.lane % 4);
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++)
            if (i / 4 * 8 + i % 2 >= past) x[i] = -INFINITY;
    }
}

/* What makes the rows' largest scores 2^START. */
__device__ __forceinline__ void largest(const float (&x)[KEYS / 2], const float (&scale)[2],
                                        float (&top)[2])
{
    top[0] = top[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], x[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2)) * scale[h] - START;
    }
}

__device__ __forceinline__ void exponentials(const work &w, float (&x)[KEYS / 2],
                                             const float (&scale)[2], float (&sum)[2])
{
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        x[i] = power_of_2(fmaf(x[i], scale[i / 2 % 2], -w.top[i / 2 % 2]));
        sum[i / 2 % 2] += x[i]; /* a NaN stays in it */
    }
}

/* The block's weights, from its keys at the ring's next place. */
template <bool FIRST>
__device__ __forceinline__ void weights(work &w, uint32_t q, float k_scale, int left)
{
    int s[KEYS / 2];
    float x[KEYS / 2], sum[2], keep[2] = {1, 1};
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint32_t k = r.data + r.at * PLACE, k_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    const uint64_t a = matrix_at(q, 16), b = matrix_at(k, 16);
    pin(s);
    products_may_begin();
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) int_scores(s, a + 2 * i, b + 2 * i, i > 0);
    products_queued();
    const float scale[2] = {w.q_scale[0] * k_scale, w.q_scale[1] * k_scale};
    products_done();
    pin(s);
    as_floats(w, x, s, left);
    if (FIRST) largest(x, scale, w.top);
    exponentials(w, x, scale, sum);
    if (!FIRST &&
        __builtin_expect(__any_sync(0xffffffffu, !(sum[0] <= MOST && sum[1] <= MOST)), 0)) {
        float top[2];
        multiply_again(s, q, k);
        as_floats(w, x, s, left);
        largest(x, scale, top);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], w.top[h]);
            keep[h] = power_of_2(w.top[h] - top[h]);
            w.top[h] = top[h];
        }
        exponentials(w, x, scale, sum);
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) w.acc[i] *= keep[i / 2 % 2];
    }
    give_back(w.lane, k_empty);
#pragma unroll
    for (int h = 0; h < 2; h++) w.sum[h] = FIRST ? sum[h] : fmaf(w.sum[h], keep[h], sum[h]);
#pragma unroll
    for (int i = 0; i < KEYS / 32; i++) {
        const float *y = x + 16 * i;
        w.p[i][0] = codes4(y[0], y[1], y[4], y[5]);
        w.p[i][1] = codes4(y[2], y[3], y[6], y[7]);
        w.p[i][2] = codes4(y[8], y[9], y[12], y[13]);
        w.p[i][3] = codes4(y[10], y[11], y[14], y[15]);
    }
}

/* acc (+)= weights times the values at the ring's next place. */
template <bool FIRST> __device__ __forceinline__ void add_values(work &w)
{
    ring &r = w.keys;
    float low[WIDTH / 4], high[WIDTH / 4];
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint64_t v = slice_at(r.data + r.at * PLACE);
    const uint32_t v_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    pin(low);
    pin(high);
    pin(w.p);
    products_may_begin();
#pragma unroll
    for (int i = 0; i < KEYS / 32; i++) half_sums(low, w.p[i], v + i * SLICE / 16, i > 0);
    products_queued();
#pragma unroll
    for (int i = 0; i < KEYS / 32; i++)
        half_sums(high, w.p[i], v + (i * SLICE + SLICE / 2) / 16, i > 0);
    products_queued();
    products_done_but_last();
    pin(low);
#pragma unroll
    for (int i = 0; i < WIDTH / 4; i++) w.acc[i] = FIRST ? low[i] : w.acc[i] + low[i];
    products_done();
    pin(high);
    pin(w.p);
    give_back(w.lane, v_empty);
#pragma unroll
    for (int i = 0; i < WIDTH / 4; i++)
        w.acc[WIDTH / 4 + i] = FIRST ? high[i] : w.acc[WIDTH / 4 + i] + high[i];
}

template <bool FIRST>
__device__ __forceinline__ void take_block(work &w, uint32_t q, const float *k_scale, int left)
{
    weights<FIRST>(w, q, __ldg(k_scale), left);
    add_values<FIRST>(w);
}

/* The result: a lane's rows are `row` plus its g, and that + 8. */
__device__ __forceinline__ void store(const work &w, const eight_args &a, const place &p,
                                      int first_row)
{
    const int row = first_row + w.lane / 4, column = p.head * WIDTH + w.lane % 4 * 2;
    bf16 *const to = a.o + row * a.o_pitch + p.head * WIDTH + w.lane % 4 * 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float whole = w.sum[h] + __shfl_xor_sync(0xffffffffu, w.sum[h], 1);
        whole += __shfl_xor_sync(0xffffffffu, whole, 2);
        const float by = 1 / whole;
#pragma unroll
        for (int i = 0; i < WIDTH / 32; i++) {
            uint32_t v[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int at = column + (4 * i + c) * 8;
                const float2 scale = __ldg((const float2 *)(a.v_scale + at)),
                             mean = __ldg((const float2 *)(a.v_mean + at));
                v[c] = rounded(fmaf(w.acc[16 * i + 4 * c + 2 * h] * by, scale.x, mean.x),
                               fmaf(w.acc[16 * i + 4 * c + 2 * h + 1] * by, scale.y, mean.y));
            }
            transpose4(v, w.lane);
            if (row + 8 * h < a.nq)
                *(uint4 *)(to + 8 * h * a.o_pitch + 32 * i) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
    if (!a.done) return;
    __syncwarp();
    if (w.lane == 0) {
        __threadfence_system(); /* a copy engine reads it */
        atomicAdd(&a.done[p.band], 1u);
    }
}

__device__ __forceinline__ void multiply(const eight_args &a, ring keys, ring queries, int group,
                                         int warp, int lane)
{
    work w;
    w.lane = lane, w.keys = keys;
    for (int tile = blockIdx.x; tile < a.all; tile += gridDim.x) {
        const place p = place_of<TILE>(a, tile);
        const int row = p.row + group * ROWS + warp * 16;
        const uint32_t q = queries.data + (queries.at * GROUPS + group) * Q_PLACE,
                       q_empty = queries.empty + 8 * queries.at;
        const float *k_scale = a.k_scale + (int64_t)p.head * a.blocks;
#pragma unroll
        for (int h = 0; h < 2; h++) { /* of a row that is not there: anything but 0 */
            const int r = row + lane / 4 + 8 * h;
            w.q_scale[h] = r < a.nq ? __ldg(a.q_scale + (int64_t)r * a.heads + p.head) : 1;
        }
        barrier_spin(queries.full + 8 * queries.at, queries.pass);
        take_block<true>(w, q, k_scale, a.nk);
        int i = KEYS;
        for (; i + KEYS <= a.nk; i += KEYS) take_block<false>(w, q, ++k_scale, KEYS);
        if (i < a.nk) take_block<false>(w, q, ++k_scale, a.nk - i);
        if (lane == 0) barrier_arrive(q_empty);
        advance<2>(queries);
        store(w, a, p, row);
    }
}

#endif

__global__ void __launch_bounds__(THREADS, 1)
    eight_kernel(const __grid_constant__ eight_maps m, const __grid_constant__ eight_args a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * (PLACES + 2)];
    const uint32_t data = (shared_address(shared) + 1023u) & ~1023u,
                   bars = shared_address(barriers);
    const ring queries = {data, bars, bars + 16, 0, 0},
               keys = {data + 2 * GROUPS * Q_PLACE, bars + 32, bars + 32 + 8 * PLACES, 0, 0};
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        ring_init<2>(queries, WARPS);
        ring_init<PLACES>(keys, WARPS);
        rings_ready();
    }
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (threadIdx.x == 0) bring_all(a, m, keys, queries);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        multiply(a, keys, queries, group - 1, (int)threadIdx.x / 32 % 4, (int)threadIdx.x % 32);
    }
#endif
}

/* ---- codes ---- */

enum {
    CHUNKS = 64, /* of rows, summed apart */
    LOADS = 16,  /* rows that a block reads at once */
    AHEAD = 4    /* times as many are asked for before the first is summed */
};

/* Of 256 threads of a block; in all of them. */
__device__ __forceinline__ float block_most(uint32_t m)
{
    __shared__ uint32_t of[8];
#pragma unroll
    for (int i = 16; i; i /= 2) m = max(m, __shfl_xor_sync(0xffffffffu, m, i));
    if (threadIdx.x % 32 == 0) of[threadIdx.x / 32] = m;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) m = max(m, of[i]);
    return __uint_as_float(max(m, __float_as_uint(TINY)));
}

struct columns {
    const bf16 *k, *v;
    int64_t k_pitch, v_pitch, n, width;
};
/* Sums of k and v, least and largest of v of a chunk's rows: to [CHUNKS][4][width]. A block: 128
 * columns; thread 16 r + c has rows r + 16 i and columns 8 c .. 8 c + 7. */
__global__ void __launch_bounds__(256) columns_kernel(float *to, columns a)
{
    __shared__ float part[LOADS][WIDTH + 4];
    const int c = threadIdx.x % 16 * 8, r = threadIdx.x / 16;
    const int64_t rows = (a.n + CHUNKS - 1) / CHUNKS, from = rows * blockIdx.y,
                  end = min(a.n, from + rows), column = (int64_t)blockIdx.x * WIDTH + c;
    float figure[4][8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        figure[0][i] = figure[1][i] = 0, figure[2][i] = INFINITY, figure[3][i] = -INFINITY;
    for (int64_t row = from + r; row < end; row += AHEAD * LOADS) {
        uint4 raw[AHEAD][2];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (row + j * LOADS < end) {
                raw[j][0] = *(const uint4 *)(a.k + (row + j * LOADS) * a.k_pitch + column);
                raw[j][1] = *(const uint4 *)(a.v + (row + j * LOADS) * a.v_pitch + column);
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            float k[8], v[8];
            if (row + j * LOADS >= end) break;
            unpack8(k, raw[j][0]);
            unpack8(v, raw[j][1]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                figure[0][i] += k[i];
                figure[1][i] += v[i];
                figure[2][i] = fminf(figure[2][i], v[i]);
                figure[3][i] = fmaxf(figure[3][i], v[i]);
            }
        }
    }
#pragma unroll /* or the figures lie in memory */
    for (int f = 0; f < 4; f++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) part[r][c + i] = figure[f][i];
        __syncthreads();
        if (threadIdx.x < WIDTH) {
            float x = part[0][threadIdx.x];
            for (int i = 1; i < LOADS; i++) {
                const float y = part[i][threadIdx.x];
                x = f < 2 ? x + y : f == 2 ? fminf(x, y) : fmaxf(x, y);
            }
            to[((int64_t)blockIdx.y * 4 + f) * a.width + (int64_t)blockIdx.x * WIDTH +
               threadIdx.x] = x;
        }
    }
}

/* The chunks' figures together, in their order; at the first of them what a value's difference is
 * multiplied by. */
__global__ void means_kernel(float *k_mean, float *v_mean, float *v_scale, float *of, int64_t n,
                             int64_t width)
{
    const int64_t c = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (c >= width) return;
    float k = 0, v = 0, least = INFINITY, most = -INFINITY;
    for (int i = 0; i < CHUNKS; i++) {
        const float *at = of + (int64_t)i * 4 * width + c;
        k += at[0];
        v += at[width];
        least = fminf(least, at[2 * width]);
        most = fmaxf(most, at[3 * width]);
    }
    k_mean[c] = k / n;
    v_mean[c] = v /= n; /* a NaN is in the mean */
    most = fmaxf(fmaxf(most - v, v - least), TINY);
    v_scale[c] = most / MOST;
    of[c] = MOST / most;
}

/* A block: 128 keys of a head. Thread 16 r + c as above. */
__global__ void __launch_bounds__(256)
    keys_kernel(int8_t *codes, float *scales, const bf16 *k, int64_t pitch, const float *mean,
                int64_t n, int64_t width)
{
    const int c = threadIdx.x % 16 * 8, r = threadIdx.x / 16, head = blockIdx.y;
    const int64_t from = (int64_t)blockIdx.x * KEYS, column = head * WIDTH + c;
    float x[KEYS / LOADS][8], middle[8];
    uint4 raw[KEYS / LOADS];
    uint32_t m = 0;
#pragma unroll
    for (int i = 0; i < KEYS / LOADS; i++) {
        const int64_t row = from + r + i * LOADS;
        if (row < n) raw[i] = *(const uint4 *)(k + row * pitch + column);
    }
    load(middle, mean + column);
#pragma unroll
    for (int i = 0; i < KEYS / LOADS; i++) {
        const int64_t row = from + r + i * LOADS;
        unpack8(x[i], raw[i]);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            x[i][e] = row < n ? x[i][e] - middle[e] : 0;
            m = max(m, magnitude(x[i][e]));
        }
    }
    const float most = block_most(m), by = 127 / most;
    if (threadIdx.x == 0) scales[(int64_t)head * gridDim.x + blockIdx.x] = most / 127;
#pragma unroll
    for (int i = 0; i < KEYS / LOADS; i++)
        *(uint2 *)(codes + (from + r + i * LOADS) * width + column) =
            make_uint2(int_codes(x[i][0], x[i][1], x[i][2], x[i][3], by),
                       int_codes(x[i][4], x[i][5], x[i][6], x[i][7], by));
}

/* Word w of a block's column lies at w ^ turn_of(column) in shared memory: of a warp's lanes, each
 * with a word of a column of its own, no two meet at a bank; nor do eight lanes that read 16 bytes
 * each. */
__device__ __forceinline__ int turn_of(int column)
{
    return (column / 8 * 2 ^ column % 8 * 8) & 31;
}

/* A block: 128 keys of a head. Thread 16 r + c has columns 8 c .. 8 c + 7 of the keys whose codes
 * are words r and r + 16 of a column: 16 (r / 4) + 2 (r % 4) and the next, and both + 8. `by`: see
 * means_kernel. */
__global__ void __launch_bounds__(256) values_kernel(uint8_t *codes, const bf16 *v, int64_t pitch,
                                                     const float *mean, const float *by, int64_t n)
{
    enum { WORDS = KEYS / 4 };
    __shared__ __align__(16) uint32_t turned[WIDTH * WORDS];
    const int c = threadIdx.x % 16 * 8, r = threadIdx.x / 16, head = blockIdx.y;
    const int64_t from = (int64_t)blockIdx.x * KEYS, column = head * WIDTH + c;
    uint4 raw[2][4];
    float m[8], times[8];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int word = r + 16 * i;
            const int64_t row = from + word / 4 * 16 + word % 4 * 2 + j % 2 + j / 2 * 8;
            if (row < n) raw[i][j] = *(const uint4 *)(v + row * pitch + column);
        }
    load(m, mean + column);
    load(times, by + column);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int word = r + 16 * i;
        float x[4][8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int64_t row = from + word / 4 * 16 + word % 4 * 2 + j % 2 + j / 2 * 8;
            unpack8(x[j], raw[i][j]);
#pragma unroll
            for (int e = 0; e < 8; e++) x[j][e] = row < n ? (x[j][e] - m[e]) * times[e] : 0;
        }
#pragma unroll
        for (int e = 0; e < 8; e++) {
            const uint32_t lo = __nv_cvt_float2_to_fp8x2(make_float2(x[0][e], x[1][e]),
                                                         __NV_SATFINITE, __NV_E4M3),
                           hi = __nv_cvt_float2_to_fp8x2(make_float2(x[2][e], x[3][e]),
                                                         __NV_SATFINITE, __NV_E4M3);
            turned[(c + e) * WORDS + (word ^ turn_of(c + e))] = lo | hi << 16;
        }
    }
    __syncthreads();
    uint8_t *to = codes + ((int64_t)head * gridDim.x + blockIdx.x) * PLACE;
    for (int i = threadIdx.x; i < PLACE / 16; i += 256) { /* slice, column, half of its 32 bytes */
        const int half = i % 2, col = i / 2 % WIDTH, slice = i / 2 / WIDTH, turn = turn_of(col);
        const uint4 u =
            *(const uint4 *)(turned + col * WORDS + ((slice * 8 + half * 4) ^ (turn & ~3)));
        *(uint4 *)(to + slice * SLICE + col * 32 + (half ^ (col / 4 % 2)) * 16) =
            turn & 2 ? make_uint4(u.z, u.w, u.x, u.y) : u;
    }
}

/* Sixteen lanes: a row of a head. */
__global__ void __launch_bounds__(256) queries_kernel(int8_t *codes, float *scales, const bf16 *q,
                                                      int64_t pitch, int64_t n, int heads, float by)
{
    const int64_t id = (blockIdx.x * (int64_t)256 + threadIdx.x) / 16;
    const int lane = threadIdx.x % 16, head = (int)(id % heads);
    const unsigned half = 0xffffu << (threadIdx.x & 16);
    const int64_t row = id / heads;
    float x[8];
    if (row >= n) return;
    load(x, q + row * pitch + head * WIDTH + lane * 8);
    uint32_t m = __float_as_uint(TINY);
#pragma unroll
    for (int i = 0; i < 8; i++) m = max(m, magnitude(x[i]));
#pragma unroll
    for (int i = 8; i; i /= 2) m = max(m, __shfl_xor_sync(half, m, i));
    const float most = __uint_as_float(m), times = 127 / most;
    *(uint2 *)(codes + (row * heads + head) * WIDTH + lane * 8) = make_uint2(
        int_codes(x[0], x[1], x[2], x[3], times), int_codes(x[4], x[5], x[6], x[7], times));
    if (lane == 0) scales[id] = most / 127 * by;
}

/* Boxes of a head's 128 columns and `rows` rows of codes [n, width], in the 128-byte swizzle. */
bool encode_codes(sl_ctx *ctx, CUtensorMap *map, const void *data, int64_t n, int64_t width,
                  int rows, const char *what)
{
    const cuuint64_t dims[2] = {(cuuint64_t)width, (cuuint64_t)n}, strides[1] = {(cuuint64_t)width};
    const cuuint32_t box[2] = {WIDTH, (cuuint32_t)rows}, steps[2] = {1, 1};
    const CUresult e = ((PFN_cuTensorMapEncodeTiled_v12000)sl_cuda_tensor_maps(sl_cuda_of(ctx)))(
        map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, (void *)data, dims, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e == CUDA_SUCCESS) return true;
    sl_ctx_fail(ctx, SL_CUDA, "attention in 8 bits: tensor map of %s: driver error %d", what,
                (int)e);
    return false;
}

/* What this needs of the device and of a tensor's rows; else ctx has failed. */
bool can(sl_ctx *ctx, const char *what, const sl_tensor *t)
{
    if (!sl_cuda_tensor_maps(sl_cuda_of(ctx)))
        sl_ctx_fail(ctx, SL_ARG, "attention in 8 bits wants compute capability 9.0, found %d.%d",
                    sl_cuda_of(ctx)->sm / 10, sl_cuda_of(ctx)->sm % 10);
    else if (!is_in_sixteens(t->data, t->shape[0], t->pitch))
        sl_ctx_fail(ctx, SL_ARG,
                    "attention in 8 bits: %s is at %p with a pitch of %lld, want rows at multiples "
                    "of 16 bytes",
                    what, t->data, (long long)t->pitch);
    return !ctx->err.code;
}

} // namespace

/* ---- host ---- */

void sl_cuda_code_keys(sl_ctx *ctx, const sl_keys_eight *y, const sl_tensor *k, const sl_tensor *v,
                       int heads)
{
    const int64_t n = y->rows, width = k->shape[1];
    const dim3 blocks((unsigned)y->k_scale.shape[1], (unsigned)heads);
    if (!can(ctx, "k", k) || !can(ctx, "v", v)) return;
    float *figures = (float *)sl_cuda_scratch(ctx, (size_t)(CHUNKS * 4 * width) * sizeof *figures),
          *k_mean = (float *)y->k_mean.data, *v_mean = (float *)y->v_mean.data,
          *v_scale = (float *)y->v_scale.data;
    if (!figures) return;
    columns_kernel<<<dim3((unsigned)heads, CHUNKS), 256, 0, ctx->stream>>>(
        figures, {(const bf16 *)k->data, (const bf16 *)v->data, k->pitch, v->pitch, n, width});
    means_kernel<<<(unsigned)((width + 127) / 128), 128, 0, ctx->stream>>>(k_mean, v_mean, v_scale,
                                                                           figures, n, width);
    keys_kernel<<<blocks, 256, 0, ctx->stream>>>((int8_t *)y->k.data, (float *)y->k_scale.data,
                                                 (const bf16 *)k->data, k->pitch, k_mean, n, width);
    values_kernel<<<blocks, 256, 0, ctx->stream>>>((uint8_t *)y->v.data, (const bf16 *)v->data,
                                                   v->pitch, v_mean, figures, n);
    SL_LAUNCHED(ctx, "codes of keys and values");
}

void sl_cuda_code_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *q, int heads,
                          float scale)
{
    const int64_t n = q->shape[0];
    if (!n || !can(ctx, "q", q)) return;
    queries_kernel<<<(unsigned)((n * heads + 15) / 16), 256, 0, ctx->stream>>>(
        (int8_t *)y->codes.data, (float *)y->scale.data, (const bf16 *)q->data, q->pitch, n, heads,
        scale * LOG2_E);
    SL_LAUNCHED(ctx, "codes of queries");
}

void sl_cuda_attention_eight(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                             const sl_keys_eight *keys, int heads, int parts, const int64_t *first,
                             int last, sl_done *done)
{
    sl_cuda *cu = sl_cuda_of(ctx);
    const int64_t nq = o->shape[0], width = o->shape[1], ends[2] = {0, nq};
    if (!nq || !can(ctx, "the result", o) || !can(ctx, "the codes of q", &q->codes)) return;
    if (nq > INT32_MAX / 4 / heads || keys->rows > INT32_MAX / 4) {
        sl_ctx_fail(ctx, SL_ARG, "attention in 8 bits: %lld queries and %lld keys are too many",
                    (long long)nq, (long long)keys->rows);
        return;
    }
    uint32_t counted[SL_CUDA_COUNTERS];
    const bool told = done && sl_bands_of(TILE, parts, first, last).bands <= SL_CUDA_COUNTERS;
    const sl_bands b = told ? sl_bands_of(TILE, parts, first, last) : sl_bands_of(TILE, 1, ends, 0);
    if (told) bands_done(cu, b, TILE, heads * WARPS, parts, first, last, done, counted);
    eight_args a = {};
    a.o = (bf16 *)o->data, a.o_pitch = o->pitch;
    a.nq = (int)nq, a.nk = (int)keys->rows, a.blocks = (int)keys->k_scale.shape[1];
    a.tiles = b.tiles, a.all = b.tiles * heads;
    a.q_scale = (const float *)q->scale.data, a.k_scale = (const float *)keys->k_scale.data;
    a.heads = heads;
    a.v_scale = (const float *)keys->v_scale.data, a.v_mean = (const float *)keys->v_mean.data;
    a.v = (const uint8_t *)keys->v.data;
    a.band = b.band, a.band_all = b.band * heads, a.from = b.from;
    a.done = told ? cu->counters : NULL;
    eight_maps m;
    if (!encode_codes(ctx, &m.q, q->codes.data, nq, width, ROWS, "q") ||
        !encode_codes(ctx, &m.k, keys->k.data, keys->k.shape[0], width, KEYS, "k") ||
        !sl_cuda_ok(
            ctx,
            cudaFuncSetAttribute(eight_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED),
            "shared memory of attention in 8 bits"))
        return;
    const int grid = a.all < cu->sms ? a.all : cu->sms;
    eight_kernel<<<grid, THREADS, SHARED, ctx->stream>>>(m, a);
    if (SL_LAUNCHED(ctx, "attention in 8 bits") && told)
        memcpy(cu->counted, counted, (size_t)b.bands * sizeof *counted);
}
