/* attention_two.cu - attention of many queries to two lists of keys, the results added,
 * in one pass over q and o on Hopper.
 *
 * The DiT's cross-attention: 512 keys of the text and 257 of the image. Apart, the second
 * reads q and o again; here q is read once and o is written once. The meaning is that of
 * the two calls: each result is rounded to bf16, then their sum.
 * SLUICE_ATTENTION_TWO=0 turns this kernel off, and so does SLUICE_ATTENTION, which names a
 * form of the attention to one list.
 *
 * A thread block stays on its multiprocessor and takes an equal run of tiles of 128
 * queries, head after head. One thread has the copy engine bring queries, and blocks of
 * 128 keys (144 of the second list: 257 = 2 x 144 - 31) and their values into a ring,
 * while two warpgroups of 64 queries each multiply. All that a warpgroup does is one
 * sequence of steps, across lists and tiles:
 *   - queue S = q k^T of the next block
 *   - queue o += p v of the last one, and give the turn to the other warpgroup
 *   - when S is there, take its largest elements and exponentials
 *   - when o is there, rescale it, or, where S begins a list, finish it
 *   - round S to p
 * So exponentials are taken while the tensor cores do this warpgroup's o and the other's
 * products. The first list's result waits in 32 registers, rounded, for the second's.
 * Rows from a list's end on are zeros (the copy engine's), and their scores -infinity.
 *
 * COST AND EXPECTATION (H100 SXM, 40 heads, 48,384 queries, 512 + 257 keys): 0.79 TFLOP
 * with 800 keys; at 560 to 640 TFLOP/s 1.25 to 1.4 ms, where the two calls take 1.93. A
 * tile of 128 queries takes 400 KB of keys from L2 in some 14,000 clocks: 29 bytes a
 * clock.
 * FOUND: a forward of 40 such layers takes 4,901.6 ms instead of 4,918.7, by which it
 * would be 1.5 ms. Two blocks of a cluster that bring half of each block of keys to both
 * (16 bytes a clock) took 4,900.9: nothing, so they went. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention_hopper.cuh"

namespace
{

enum {
    GROUPS = 2,
    TILE = ROWS * GROUPS,
    KEYS_1 = 128,
    KEYS_2 = 144 /* of a block */
};
enum {
    PRODUCERS = 128,
    THREADS = PRODUCERS + 128 * GROUPS,
    WARPS = 4 * GROUPS /* that multiply */
};

/* Shared memory: two tiles of queries a warpgroup, then the ring, a place for a block's
 * keys or its values. Each is two halves of 64 columns, rows of 128 bytes in the 128-byte
 * swizzle, whose period is 1024. */
enum { PLACE = KEYS_2 * WIDTH * 2, PLACES = 4, Q_BYTES = 2 * GROUPS * QUERIES };
enum { SHARED = Q_BYTES + PLACES * PLACE + 1024 };
static_assert(PLACE % 2048 == 0 && KEYS_1 <= KEYS_2 && KEYS_1 % 16 == 0 && KEYS_2 % 16 == 0,
              "matrices as wgmma reads them");
static_assert(SHARED <= 226 * 1024, "and the barriers");

struct two_maps {
    CUtensorMap q, k[2], v[2]; /* of the lists */
};

struct two_args {
    bf16 *o;
    int64_t o_pitch;
    int nq, nk[2], tiles, all; /* tiles of a head, of all heads */
    float scale;               /* times log2(e): exponentials are of base 2 */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- who is where ---- */

/* Tiles begin .. end - 1 are this block's. */
struct run {
    int begin, end;
};

__device__ __forceinline__ run run_of(const two_args &a)
{
    const int64_t at = (int)blockIdx.x, blocks = gridDim.x;
    return {(int)(at * a.all / blocks), (int)((at + 1) * a.all / blocks)};
}

/* ---- the thread that copies ---- */

/* In the order in which they are used: a block's keys go before the values of the block
 * before it. */
__device__ __forceinline__ void bring_all(const two_args &a, const two_maps &m, ring keys,
                                          ring queries)
{
    const run mine = run_of(a);
    const CUtensorMap *v = nullptr; /* of values that are still to be brought */
    int v_head = 0, v_row = 0, v_rows = 0;
    for (int tile = mine.begin; tile < mine.end; tile++) {
        const int head = tile / a.tiles, first = (tile - head * a.tiles) * TILE;
        bring_queries<GROUPS>(queries, &m.q, head, first);
        for (int list = 0; list < 2; list++) {
            const int rows = list ? KEYS_2 : KEYS_1;
            for (int row = 0; row < a.nk[list]; row += rows) {
                bring<PLACES, PLACE>(keys, &m.k[list], head, row, rows);
                if (v) bring<PLACES, PLACE>(keys, v, v_head, v_row, v_rows);
                v = &m.v[list], v_head = head, v_row = row, v_rows = rows;
            }
        }
    }
    if (v) bring<PLACES, PLACE>(keys, v, v_head, v_row, v_rows);
    outlive<PLACES>(keys);
}

/* ---- a warpgroup that multiplies ---- */

/* What it carries from step to step. Lane 4 g + t of a warp has rows g and g + 8 of the
 * warp's 16; of S and o columns 8 c + 2 t and the next (elements 4 c, 4 c + 1 of row g; 4
 * c + 2, 4 c + 3 of row g + 8), which is also what p's operand wants. */
struct work {
    float acc[WIDTH / 2];       /* o, to be divided by the sum */
    uint32_t p[KEYS_2 / 16][4]; /* exponentials of the last block, rounded */
    /* of the list so far: the largest score, scaled; this lane's part of the sum */
    float top[2], sum[2];
    float scale;
    int group, lane;
    ring keys;
};

/* The two warpgroups queue their products in turn. */
__device__ __forceinline__ void wait_for_turn(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}

__device__ __forceinline__ void give_turn(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
}

/* S [64, N] of the queries at q. */
template <int N>
__device__ __forceinline__ void queue_scores(float (&s)[N / 2], uint32_t q, uint32_t k)
{
    const uint64_t a = matrix_at(q, 16), b = matrix_at(k, 16);
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++)
        scores<N>(s, a + (i / 4 * (QUERIES / 2) + i % 4 * 32) / 16,
                  b + (i / 4 * (N * 128) + i % 4 * 32) / 16, i > 0);
    products_queued();
}

/* acc = p v of N keys, plus acc where `add`. */
template <int N> __device__ __forceinline__ void queue_sums(work &w, uint32_t v, int add)
{
    const uint64_t b = matrix_at(v, N * 128);
#pragma unroll
    for (int i = 0; i < N / 16; i++) weighted(w.acc, w.p[i], b + i * 16 * 128 / 16, i > 0 || add);
    products_queued();
}

/* Scores to exponentials; of N keys `left` are there. keep: the factor of what came
 * before in the list. */
template <int N, bool BEGINS>
__device__ __forceinline__ void exponentials(work &w, float (&s)[N / 2], int left, float (&keep)[2])
{
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    if (left < N) {
        const int past = left - 2 * (w.lane % 4);
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            if (i / 4 * 8 + i % 2 >= past) s[i] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2)) * w.scale;
        if (!BEGINS) top[h] = fmaxf(top[h], w.top[h]);
        keep[h] = BEGINS ? 0 : power_of_2(w.top[h] - top[h]);
        w.top[h] = top[h];
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        s[i] = power_of_2(fmaf(s[i], w.scale, -top[i / 2 % 2]));
        sum[i / 2 % 2] += s[i]; /* a NaN stays in it */
    }
#pragma unroll
    for (int h = 0; h < 2; h++) w.sum[h] = BEGINS ? sum[h] : fmaf(w.sum[h], keep[h], sum[h]);
}

template <int N> __device__ __forceinline__ void round_weights(work &w, const float (&s)[N / 2])
{
#pragma unroll
    for (int i = 0; i < N / 4; i++) w.p[i / 4][i % 4] = rounded(s[2 * i], s[2 * i + 1]);
}

/* The first step: no block came before. */
template <int N> __device__ __forceinline__ void first_step(work &w, uint32_t q, int left)
{
    float s[N / 2], keep[2];
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    pin(s);
    products_may_begin();
    queue_scores<N>(s, q, r.data + r.at * PLACE);
    products_done();
    pin(s);
    give_back(w.lane, r.empty + 8 * r.at);
    advance<PLACES>(r);
    exponentials<N, true>(w, s, left, keep);
    round_weights<N>(w, s);
}

/* Scores of the next block, of N keys of which `left` are there, and the sums of the last
 * one, of LAST keys, which are the list's first unless `add`. BEGINS: the next block
 * begins a list; then finish(sum) gets the rows' sums of exponentials, as parts. */
template <int N, int LAST, bool BEGINS, class F>
__device__ __forceinline__ void step(work &w, uint32_t q, int left, int add, F finish)
{
    float s[N / 2], keep[2], sum[2] = {w.sum[0], w.sum[1]};
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint32_t k = r.data + r.at * PLACE, k_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    wait_for_turn(w.group);
    pin(s);
    pin(w.acc);
    pin(w.p);
    products_may_begin();
    queue_scores<N>(s, q, k);
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint32_t v = r.data + r.at * PLACE, v_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    products_may_begin(); /* once more, since there was a loop */
    queue_sums<LAST>(w, v, add);
    give_turn(w.group);
    products_done_but_last();
    pin(s);
    give_back(w.lane, k_empty);
    exponentials<N, BEGINS>(w, s, left, keep);
    computed(w.sum[0] + w.sum[1]);
    products_done();
    pin(w.acc);
    pin(w.p);
    give_back(w.lane, v_empty);
    if constexpr (BEGINS) finish(sum);
    else {
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) w.acc[i] *= keep[i / 2 % 2];
    }
    round_weights<N>(w, s);
}

/* The last step: no block comes after. */
template <int LAST> __device__ __forceinline__ void last_step(work &w, int add)
{
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    pin(w.acc);
    pin(w.p);
    products_may_begin();
    queue_sums<LAST>(w, r.data + r.at * PLACE, add);
    products_done();
    pin(w.acc);
    pin(w.p);
    give_back(w.lane, r.empty + 8 * r.at);
    advance<PLACES>(r);
}

/* A list's result for this lane, rounded: word c of a row is columns 8 c + 2 t and the
 * next. */
__device__ __forceinline__ void finish_list(const work &w, const float (&sum)[2],
                                            uint32_t (&to)[2][WIDTH / 8])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float whole = sum[h] + __shfl_xor_sync(0xffffffffu, sum[h], 1);
        whole += __shfl_xor_sync(0xffffffffu, whole, 2);
        const float by = __fdividef(1, whole);
#pragma unroll
        for (int c = 0; c < WIDTH / 8; c++)
            to[h][c] = rounded(w.acc[4 * c + 2 * h] * by, w.acc[4 * c + 2 * h + 1] * by);
    }
}

/* Both lists' results are added and stored from row `row` of o's head on: a lane's row is
 * `row` plus its g, and that + 8. */
__device__ __forceinline__ void store(const work &w, const two_args &a, const float (&sum)[2],
                                      const uint32_t (&one)[2][WIDTH / 8], int head, int row)
{
    uint32_t two[2][WIDTH / 8];
    finish_list(w, sum, two);
    row += w.lane / 4;
    bf16 *const to = a.o + row * a.o_pitch + head * WIDTH + w.lane % 4 * 8;
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < WIDTH / 32; i++) {
            uint32_t v[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float2 x = floats(one[h][4 * i + c]), y = floats(two[h][4 * i + c]);
                v[c] = rounded(x.x + y.x, x.y + y.y);
            }
            transpose4(v, w.lane); /* all of columns 32 i + 8 t .. + 7 */
            if (row + 8 * h < a.nq)
                *(uint4 *)(to + 8 * h * a.o_pitch + 32 * i) = make_uint4(v[0], v[1], v[2], v[3]);
        }
}

__device__ __forceinline__ void multiply(const two_args &a, ring keys, ring queries, int group,
                                         int warp, int lane)
{
    const run mine = run_of(a);
    const int n1 = a.nk[0], n2 = a.nk[1];
    const auto nothing = [](const float(&)[2]) {};
    uint32_t one[2][WIDTH / 8];
    work w;
    w.scale = a.scale, w.group = group, w.lane = lane, w.keys = keys;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) w.acc[i] = 0;
    if (group == 1) give_turn(group);
    barrier_spin(queries.full, 0);
    first_step<KEYS_1>(w, queries.data + group * QUERIES, n1);
    for (int tile = mine.begin;; tile++) {
        /* the warp's first */
        const int head = tile / a.tiles,
                  row = (tile - head * a.tiles) * TILE + group * ROWS + warp * 16;
        const uint32_t q = queries.data + (queries.at * GROUPS + group) * QUERIES,
                       q_empty = queries.empty + 8 * queries.at;
        for (int i = KEYS_1; i < n1; i += KEYS_1)
            step<KEYS_1, KEYS_1, false>(w, q, n1 - i, i > KEYS_1, nothing);
        step<KEYS_2, KEYS_1, true>(w, q, n2, n1 > KEYS_1,
                                   [&](const float(&sum)[2]) { finish_list(w, sum, one); });
        for (int i = KEYS_2; i < n2; i += KEYS_2)
            step<KEYS_2, KEYS_2, false>(w, q, n2 - i, i > KEYS_2, nothing);
        if (lane == 0) barrier_arrive(q_empty);
        advance<2>(queries);
        if (tile + 1 == mine.end) {
            last_step<KEYS_2>(w, n2 > KEYS_2);
            store(w, a, w.sum, one, head, row);
            break;
        }
        barrier_spin(queries.full + 8 * queries.at, queries.pass);
        step<KEYS_1, KEYS_2, true>(w, queries.data + (queries.at * GROUPS + group) * QUERIES, n1,
                                   n2 > KEYS_2,
                                   [&](const float(&sum)[2]) { store(w, a, sum, one, head, row); });
    }
    if (group == 0) wait_for_turn(group); /* the last one that was given */
}

#endif

__global__ void __launch_bounds__(THREADS, 1)
    two_kernel(const __grid_constant__ two_maps m, const __grid_constant__ two_args a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ unsigned char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * (PLACES + 2)];
    const uint32_t data = (shared_address(shared) + 1023u) & ~1023u,
                   bars = shared_address(barriers);
    const ring queries = {data, bars, bars + 16, 0, 0},
               keys = {data + Q_BYTES, bars + 32, bars + 32 + 8 * PLACES, 0, 0};
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        ring_init<2>(queries, WARPS);
        ring_init<PLACES>(keys, WARPS);
        rings_ready();
    }
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) bring_all(a, m, keys, queries);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        multiply(a, keys, queries, group - 1, (int)threadIdx.x / 32 % 4, (int)threadIdx.x % 32);
    }
#endif
}

/* ---- host ---- */

} // namespace

bool sl_cuda_attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                           const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                           float scale)
{
    const char *set = getenv("SLUICE_ATTENTION_TWO");
    const int64_t nq = q->shape[0], most = INT32_MAX / 4;
    if ((set && !strcmp(set, "0")) || getenv("SLUICE_ATTENTION") ||
        !sl_cuda_tensor_maps(sl_cuda_of(ctx)) || q->dtype != SL_BF16 ||
        q->shape[1] != (int64_t)heads * WIDTH)
        return false;
    /* the largest score is sought before it is scaled */
    if (!(scale > 0) || !isfinite(scale)) return false;
    if (nq < 1 || nq > most / heads || k1->shape[0] > most || k2->shape[0] > most) return false;
    for (const sl_tensor *t : {o, q, k1, v1, k2, v2})
        if (!is_in_sixteens(t->data, t->shape[0], t->pitch)) return false;
    two_maps m;
    two_args a = {};
    a.o = (bf16 *)o->data, a.o_pitch = o->pitch, a.nq = (int)nq, a.scale = scale * LOG2_E;
    a.nk[0] = (int)k1->shape[0], a.nk[1] = (int)k2->shape[0];
    a.tiles = (a.nq + TILE - 1) / TILE, a.all = a.tiles * heads;
    const auto encode = [ctx](CUtensorMap *map, const sl_tensor *t, int rows, const char *what) {
        return encode_rows(ctx, map, (const bf16 *)t->data, t->shape[0], t->shape[1], t->pitch,
                           rows, "attention_two", what);
    };
    if (!encode(&m.q, q, ROWS, "q") || !encode(&m.k[0], k1, KEYS_1, "k1") ||
        !encode(&m.v[0], v1, KEYS_1, "v1") || !encode(&m.k[1], k2, KEYS_2, "k2") ||
        !encode(&m.v[1], v2, KEYS_2, "v2") ||
        !sl_cuda_ok(
            ctx,
            cudaFuncSetAttribute(two_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED),
            "shared memory of attention to two lists"))
        return true;
    const int sms = sl_cuda_of(ctx)->sms, blocks = a.all < sms ? a.all : sms;
    two_kernel<<<blocks, THREADS, SHARED, ctx->stream>>>(m, a);
    sl_cuda_ok(ctx, cudaGetLastError(), "attention to two lists");
    return true;
}
