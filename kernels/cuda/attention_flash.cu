/* attention_flash.cu - softmax(q k^T scale) v for heads of 128 on Hopper: the DiT's
 * attention among the tokens. After FlashAttention-2 (Dao 2023) and -3 (Shah et al. 2024:
 * one block's exponentials beside the next one's products), but see NO RUNNING MAXIMUM.
 *
 * A thread block stays on its multiprocessor and takes every gridDim.x-th tile of 192
 * queries, head after head, so that all blocks work on the same head or two and its keys
 * and values come from L2. One thread has the copy engine bring queries, and blocks of 80
 * keys and their values into a ring, while three warpgroups of 64 queries each multiply.
 * All that a warpgroup does is one sequence of steps, across tiles:
 *   - queue S = q k^T of the next block
 *   - queue o += p v of the last one
 *   - when S is there, take its exponentials
 *   - when o is there, finish it, where S begins a tile
 *   - round S to p
 * So exponentials are taken while the tensor cores do this warpgroup's o and the other
 * two's products. Keys from the list's end on are zeros (the copy engine's), and their
 * scores -infinity.
 *
 * NO RUNNING MAXIMUM. Exponentials are of the score minus the largest of the tile's first
 * block of keys; p, its sum and o are floating-point numbers with room for 2^127, and the
 * quotient is the same. Only where a lane's sum of a block passes LIMIT = 2^60 (or is not
 * a number) does its warp multiply that block once more (with mma.sync: wgmma would want
 * the whole warpgroup), take its maximum from then on, and rescale o and the sum. |v| may
 * be 2^50. So 40 comparisons a lane and block are not made, nor its 64 elements of o
 * rescaled, which the card, held at 700 W, returns as clock.
 *
 * TAIL. Tiles that are left when every block has taken as many as all others go to three blocks
 * each, a warpgroup's 64 queries to one, if there are blocks enough: the other two warpgroups only
 * give places of the ring back. One warpgroup alone needs about half of a tile's time. Where one
 * rank of two at 48,384 tokens takes 5,040 tiles, 38.2 for each of 132 blocks, that is expected to
 * be 38.5 tiles of time instead of 39.
 *
 * PARTS. Rows that other ranks wait for are done first (bands.h), and each warp that has stored its
 * part of a tile counts its band up, in device memory, where a copy engine's stream waits for it.
 *
 * COST AND EXPECTATION (H100 SXM, 40 heads): 48,384 queries and keys multiply for 48
 * TFLOP. At the clock that 700 W allow cublasLt's products reach 690 TFLOP/s (1.31 GHz;
 * 97 % of the tensor cores' rate at it), cuDNN's attention 602 to 620 (1.46 GHz, 78 %):
 * it pays for exponentials. With fewer of the operations beside the products, some of
 * that 14 %.
 * FOUND (0.7 to 1.2 s each, in turn, on two cards), TFLOP/s: this 707 to 715 (67.2 ms,
 * cuDNN 78); 75,600: 706 (165.6 ms, cuDNN 203). In bursts, at full clock, 780 to 800.
 * 1,560 queries and keys: 0.083 ms, cuDNN 0.100 and a second to compile it. Others at
 * 48,384: with the running maximum, two warpgroups in turn, 128 keys: 620; so with 176:
 * 642. Without, 128 keys: 685, 144: 695, 160: 685, 176: 705; 128 without taking turns:
 * 670, with queries in registers: 690, with five places in the ring: 680. Three
 * warpgroups with 64 keys: 678; four places in the ring instead of six: 708. Clusters of
 * two blocks that share keys wait for one another: 380 to 510. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/attention_flash.cuh"

namespace
{

enum {
    GROUPS = 3,
    TILE = ROWS * GROUPS,
    KEYS = 80 /* of a block */
};
enum {
    PRODUCERS = 128,
    THREADS = PRODUCERS + 128 * GROUPS,
    WARPS = 4 * GROUPS /* that multiply */
};

/* Shared memory: two tiles of queries a warpgroup, then the ring, a place for a block's
 * keys or its values. Each is two halves of 64 columns, rows of 128 bytes in the 128-byte
 * swizzle, whose period is 1024. */
enum { PLACE = KEYS * WIDTH * 2, PLACES = 6, Q_BYTES = 2 * GROUPS * QUERIES };
enum { SHARED = Q_BYTES + PLACES * PLACE + 1024 };
static_assert(PLACE % 2048 == 0 && KEYS % 16 == 0, "matrices as wgmma reads them");
static_assert(SHARED <= 226 * 1024, "and the barriers");

struct flash_maps {
    CUtensorMap q, k, v;
};

struct flash_args {
    bf16 *o;
    int64_t o_pitch;
    int nq, nk, tiles;  /* tiles of a head */
    int whole, items;   /* tiles that a block takes whole, and all that blocks take */
    float scale;        /* times log2(e) */
    int band, band_all; /* tiles of a head, of all heads, in a band */
    int from;           /* the first band's first tile of a head */
    uint32_t *done;     /* NULL, or by band: warps' parts of tiles that are there */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

const float LIMIT = 1152921504606846976.f;

/* What a block takes as number `item`: a tile, or behind `whole` of them a warpgroup's part of one,
 * and then nothing more. */
__device__ __forceinline__ int tile_of(const flash_args &a, int item)
{
    return item < a.whole ? item : a.whole + (item - a.whole) / GROUPS;
}
__device__ __forceinline__ bool has_part(const flash_args &a, int item, int group)
{
    return item < a.whole || (item - a.whole) % GROUPS == group;
}

/* ---- the thread that copies ---- */

/* In the order in which they are used: a block's keys go before the values of the block
 * before it. */
__device__ __forceinline__ void bring_all(const flash_args &a, const flash_maps &m, ring keys,
                                          ring queries)
{
    int v_head = -1, v_row = 0; /* of values that are still to be brought */
    for (int item = blockIdx.x; item < a.items; item += gridDim.x) {
        const place p = place_of<TILE>(a, tile_of(a, item));
        bring_queries<GROUPS>(queries, &m.q, p.head, p.row);
        for (int row = 0; row < a.nk; row += KEYS) {
            bring<PLACES, PLACE>(keys, &m.k, p.head, row, KEYS);
            if (v_head >= 0) bring<PLACES, PLACE>(keys, &m.v, v_head, v_row, KEYS);
            v_head = p.head, v_row = row;
        }
    }
    bring<PLACES, PLACE>(keys, &m.v, v_head, v_row, KEYS);
    outlive<PLACES>(keys);
}

/* ---- a warpgroup that multiplies ---- */

/* What it carries from step to step. Lane 4 g + t of a warp has rows g and g + 8 of the
 * warp's 16; of S and o columns 8 c + 2 t and the next (elements 4 c, 4 c + 1 of row g; 4
 * c + 2, 4 c + 3 of row g + 8), which is also what p's operand wants. */
struct work {
    float acc[WIDTH / 2];     /* o, to be divided by the sum */
    uint32_t p[KEYS / 16][4]; /* exponentials of the last block, rounded */
    /* of the tile so far: what is subtracted from scaled scores; this lane's part of the
     * sum */
    float top[2], sum[2];
    float scale;
    int lane;
    ring keys;
};

/* S [64, KEYS] of the queries at q. */
__device__ __forceinline__ void queue_scores(float (&s)[KEYS / 2], uint32_t q, uint32_t k)
{
    const uint64_t a = matrix_at(q, 16), b = matrix_at(k, 16);
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++)
        scores<KEYS>(s, a + (i / 4 * (QUERIES / 2) + i % 4 * 32) / 16,
                     b + (i / 4 * (PLACE / 2) + i % 4 * 32) / 16, i > 0);
    products_queued();
}

/* acc = p v, plus acc where `add`. */
__device__ __forceinline__ void queue_sums(work &w, uint32_t v, int add)
{
    const uint64_t b = matrix_at(v, PLACE / 2);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        weighted(w.acc, w.p[i], b + i * 16 * 128 / 16, i > 0 || add);
    products_queued();
}

/* This warp's part of S once more. */
__device__ __forceinline__ void multiply_again(float (&s)[KEYS / 2], uint32_t q, uint32_t k)
{
    static_assert(KEYS % 16 == 0, "two pieces of keys at once");
    /* rows whose addresses this lane gives; asked for anew, since registers are rare */
    int lane, row, key;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(lane));
    row = lane / 32 % 4 * 16 + lane % 16, key = lane / 16 % 2 * 8 + lane % 8, lane %= 32;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i] = 0;
#pragma unroll 1
    for (int i = 0; i < WIDTH / 16; i++) { /* 16 columns: two pieces of 16 bytes */
        uint32_t a[4], b[4];
        load4(a,
              q + i / 4 * (QUERIES / 2) + row * 128 + (((i % 4 * 2 + lane / 16) ^ (row & 7)) << 4));
        const uint32_t from =
            k + i / 4 * (PLACE / 2) + key * 128 + (((i % 4 * 2 + lane / 8 % 2) ^ (key & 7)) << 4);
#pragma unroll
        for (int c = 0; c < KEYS / 8; c += 2) {
            load4(b, from + c * 8 * 128);
            mma(s + 4 * c, a, b);
            mma(s + 4 * c + 4, a, b + 2);
        }
    }
}

/* Of KEYS keys `left` are there. */
__device__ __forceinline__ void leave_out(const work &w, float (&s)[KEYS / 2], int left)
{
    const int past = left - 2 * (w.lane % 4);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++)
        if (i / 4 * 8 + i % 2 >= past) s[i] = -INFINITY;
}

/* The rows' largest scores, scaled. */
__device__ __forceinline__ void largest(const work &w, const float (&s)[KEYS / 2], float (&top)[2])
{
    top[0] = top[1] = -INFINITY;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2)) * w.scale;
    }
}

/* Scores to exponentials, and this lane's part of their sum. */
__device__ __forceinline__ void exponentials(const work &w, float (&s)[KEYS / 2], float (&sum)[2])
{
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        s[i] = power_of_2(fmaf(s[i], w.scale, -w.top[i / 2 % 2]));
        sum[i / 2 % 2] += s[i]; /* a NaN stays in it */
    }
}

__device__ __forceinline__ void round_weights(work &w, const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) w.p[i / 4][i % 4] = rounded(s[2 * i], s[2 * i + 1]);
}

/* The first step: no block came before. Of the block's keys `left` are there, or more
 * than it holds. */
__device__ __forceinline__ void first_step(work &w, uint32_t q, int left)
{
    float s[KEYS / 2];
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    pin(s);
    products_may_begin();
    queue_scores(s, q, r.data + r.at * PLACE);
    products_done();
    pin(s);
    give_back(w.lane, r.empty + 8 * r.at);
    advance<PLACES>(r);
    if (left < KEYS) leave_out(w, s, left);
    largest(w, s, w.top);
    exponentials(w, s, w.sum);
    round_weights(w, s);
}

/* Scores of the next block, of whose keys `left` are there where it BEGINS or ENDS a
 * tile, and the sums of the last one, which is its tile's first unless `add`. BEGINS:
 * finish(sum) gets this lane's sums of the tile before. */
template <bool BEGINS, bool ENDS, class F>
__device__ __forceinline__ void step(work &w, uint32_t q, int left, int add, F finish)
{
    float s[KEYS / 2], sum[2], keep[2] = {1, 1}, before[2] = {w.sum[0], w.sum[1]};
    bool over = false;
    ring &r = w.keys;
    /* both products are queued: scores of the next block, then sums of the last */
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint32_t k = r.data + r.at * PLACE, k_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    pin(s);
    pin(w.acc);
    pin(w.p);
    products_may_begin();
    queue_scores(s, q, k);
    barrier_spin(r.full + 8 * r.at, r.pass);
    const uint32_t v = r.data + r.at * PLACE, v_empty = r.empty + 8 * r.at;
    advance<PLACES>(r);
    products_may_begin(); /* once more, since there was a loop */
    queue_sums(w, v, add);
    /* the scores are there: exponentials, while o is multiplied */
    products_done_but_last();
    pin(s);
    if (ENDS || (BEGINS && left < KEYS)) leave_out(w, s, left);
    if (BEGINS) largest(w, s, w.top);
    exponentials(w, s, sum);
    if (!BEGINS) {
        over = __any_sync(0xffffffffu, !(sum[0] <= LIMIT && sum[1] <= LIMIT));
        if (__builtin_expect(over, 0)) { /* once more, from a maximum of this block too */
            float top[2];
            multiply_again(s, q, k);
            if (ENDS) leave_out(w, s, left);
            largest(w, s, top);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                top[h] = fmaxf(top[h], w.top[h]);
                keep[h] = power_of_2(w.top[h] - top[h]);
                w.top[h] = top[h];
            }
            exponentials(w, s, sum);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) w.sum[h] = BEGINS ? sum[h] : fmaf(w.sum[h], keep[h], sum[h]);
    computed(w.sum[0] + w.sum[1]);
    /* o is there: it is finished, or rescaled */
    give_back(w.lane, k_empty);
    products_done();
    pin(w.acc);
    pin(w.p);
    give_back(w.lane, v_empty);
    if constexpr (BEGINS) finish(before);
    else if (over) {
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) w.acc[i] *= keep[i / 2 % 2];
    }
    round_weights(w, s);
}

/* The last step: no block comes after. */
__device__ __forceinline__ void last_step(work &w, int add)
{
    ring &r = w.keys;
    barrier_spin(r.full + 8 * r.at, r.pass);
    pin(w.acc);
    pin(w.p);
    products_may_begin();
    queue_sums(w, r.data + r.at * PLACE, add);
    products_done();
    pin(w.acc);
    pin(w.p);
    give_back(w.lane, r.empty + 8 * r.at);
    advance<PLACES>(r);
}

/* `n` places that are for the other warpgroups. */
__device__ __forceinline__ void leave(ring &r, int lane, int n)
{
    for (; n > 0; n--) {
        barrier_spin(r.full + 8 * r.at, r.pass);
        give_back(lane, r.empty + 8 * r.at);
        advance<PLACES>(r);
    }
}

/* The result from row `row` of o's head on: a lane's row is `row` plus its g, and that +
 * 8. */
__device__ __forceinline__ void store(const work &w, const flash_args &a, const float (&sum)[2],
                                      const place &p, int group_row)
{
    const int row = p.row + group_row + w.lane / 4;
    bf16 *const to = a.o + row * a.o_pitch + p.head * WIDTH + w.lane % 4 * 8;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float whole = sum[h] + __shfl_xor_sync(0xffffffffu, sum[h], 1);
        whole += __shfl_xor_sync(0xffffffffu, whole, 2);
        const float by = 1 / whole;
#pragma unroll
        for (int i = 0; i < WIDTH / 32; i++) {
            uint32_t v[4];
#pragma unroll
            for (int c = 0; c < 4; c++)
                v[c] = rounded(w.acc[16 * i + 4 * c + 2 * h] * by,
                               w.acc[16 * i + 4 * c + 2 * h + 1] * by);
            transpose4(v, w.lane); /* all of columns 32 i + 8 t .. + 7 */
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

__device__ __forceinline__ void multiply(const flash_args &a, ring keys, ring queries, int group,
                                         int warp, int lane)
{
    const auto nothing = [](const float(&)[2]) {};
    const int places = 2 * ((a.nk + KEYS - 1) / KEYS); /* of a tile, keys and values */
    work w;
    w.scale = a.scale, w.lane = lane, w.keys = keys;
    if (!has_part(a, blockIdx.x, group)) {
        leave(w.keys, lane, places);
        return;
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) w.acc[i] = 0;
    barrier_spin(queries.full, 0);
    first_step(w, queries.data + group * QUERIES, a.nk);
    for (int item = blockIdx.x;;) {
        /* the warp's first */
        const place p = place_of<TILE>(a, tile_of(a, item));
        const int row = group * ROWS + warp * 16;
        const uint32_t q = queries.data + (queries.at * GROUPS + group) * QUERIES,
                       q_empty = queries.empty + 8 * queries.at;
        int i = KEYS;
        for (; i + KEYS < a.nk; i += KEYS) step<false, false>(w, q, KEYS, i > KEYS, nothing);
        if (i < a.nk) step<false, true>(w, q, a.nk - i, i > KEYS, nothing);
        if (lane == 0) barrier_arrive(q_empty);
        advance<2>(queries);
        item += gridDim.x;
        const bool more = item < a.items;
        if (!more || !has_part(a, item, group)) {
            leave(w.keys, lane, more); /* the next tile's first keys */
            last_step(w, a.nk > KEYS);
            store(w, a, w.sum, p, row);
            if (more) leave(w.keys, lane, places - 1);
            break;
        }
        barrier_spin(queries.full + 8 * queries.at, queries.pass);
        step<true, false>(w, queries.data + (queries.at * GROUPS + group) * QUERIES, a.nk,
                          a.nk > KEYS, [&](const float(&sum)[2]) { store(w, a, sum, p, row); });
    }
}

#endif

__global__ void __launch_bounds__(THREADS, 1)
    flash_kernel(const __grid_constant__ flash_maps m, const __grid_constant__ flash_args a)
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
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (threadIdx.x == 0) bring_all(a, m, keys, queries);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        multiply(a, keys, queries, group - 1, (int)threadIdx.x / 32 % 4, (int)threadIdx.x % 32);
    }
#endif
}

} // namespace

/* ---- host ---- */

bool sl_attention_flash_can(const sl_cuda *cu, const sl_attention_flash_call *c)
{
    const char *set = getenv("SLUICE_ATTENTION_FLASH");
    const int64_t most = INT32_MAX / 4;
    if ((set && !strcmp(set, "0")) || getenv("SLUICE_ATTENTION") || !sl_cuda_tensor_maps(cu))
        return false;
    /* the largest score is sought before it is scaled */
    if (!(c->scale > 0) || !isfinite(c->scale)) return false;
    if (c->nq < 1 || c->nq > most / c->heads || c->nk < 1 || c->nk > most) return false;
    return is_in_sixteens(c->q, c->nq, c->q_pitch) && is_in_sixteens(c->k, c->nk, c->k_pitch) &&
           is_in_sixteens(c->v, c->nk, c->v_pitch) && is_in_sixteens(c->o, c->nq, c->o_pitch);
}

/* a.tiles and what bands are is given; the rest of how tiles are taken is filled in. */
static void launch(sl_ctx *ctx, const sl_attention_flash_call *c, flash_args a)
{
    static const char op[] = "attention";
    const int64_t width = c->heads * WIDTH;
    const int sms = sl_cuda_of(ctx)->sms, all = a.tiles * (int)c->heads, left = all % sms,
              split = left * GROUPS <= sms ? left : 0;
    a.whole = all - split, a.items = a.whole + split * GROUPS;
    const int blocks = a.items < sms ? a.items : sms;
    flash_maps m;
    if (!encode_rows(ctx, &m.q, c->q, c->nq, width, c->q_pitch, ROWS, op, "q") ||
        !encode_rows(ctx, &m.k, c->k, c->nk, width, c->k_pitch, KEYS, op, "k") ||
        !encode_rows(ctx, &m.v, c->v, c->nk, width, c->v_pitch, KEYS, op, "v") ||
        !sl_cuda_ok(
            ctx,
            cudaFuncSetAttribute(flash_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED),
            "shared memory of attention"))
        return;
    flash_kernel<<<blocks, THREADS, SHARED, ctx->stream>>>(m, a);
    SL_LAUNCHED(ctx, "attention");
}

void sl_attention_flash(sl_ctx *ctx, const sl_attention_flash_call *c)
{
    const int tiles = (int)((c->nq + TILE - 1) / TILE), all = tiles * (int)c->heads;
    launch(ctx, c,
           {c->o, c->o_pitch, (int)c->nq, (int)c->nk, tiles, 0, 0, c->scale * LOG2_E, tiles, all, 0,
            NULL});
}

bool sl_attention_flash_parts(sl_ctx *ctx, const sl_attention_flash_call *c, int parts,
                              const int64_t *first, int last, sl_done *done)
{
    sl_cuda *cu = sl_cuda_of(ctx);
    const sl_bands bands = sl_bands_of(TILE, parts, first, last);
    const int heads = (int)c->heads;
    uint32_t value[SL_CUDA_COUNTERS];
    if (bands.bands > SL_CUDA_COUNTERS) return false;
    bands_done(cu, bands, TILE, heads * WARPS, parts, first, last, done, value);
    launch(ctx, c,
           {c->o, c->o_pitch, (int)c->nq, (int)c->nk, bands.tiles, 0, 0, c->scale * LOG2_E,
            bands.band, bands.band * heads, bands.from, cu->counters});
    if (!ctx->err.code) memcpy(cu->counted, value, (size_t)bands.bands * sizeof *value);
    return true;
}
