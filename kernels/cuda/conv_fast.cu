/* conv_fast.cu - the video autoencoder's convolutions on Hopper: the copy engine fetches
 * shifted boxes of pixels, wgmma multiplies them.
 *
 * An implicit matrix product over tiles of 256 output pixels and 8, 96 or 192 output
 * channels (conv_tiles.h). What a block of 4 x 16 pixels reads for a tap is a box of the
 * frame at shifted coordinates: a tensor copy brings 32 channels of it into shared memory
 * in the 64-byte swizzle that wgmma reads, with zeros for whatever lies outside the
 * picture, which is the padding. Frames before the chunk come through a second tensor
 * map, over the history. A box has the rows of all kh taps: one row is 1 KiB, a multiple
 * of the swizzle's period, so the next tap dy is the same matrix begun one row later.
 * Tiles of four (two) frames share their boxes among the three taps in time as well: six
 * boxes of six rows serve nine taps, 36 KiB where 144 would be read, which matters
 * because a kernel of 96 channels would be bound by what L2 delivers. Boxes and weights
 * have rings of their own, each filled by one thread; two warpgroups multiply (two blocks
 * of 64 pixels each, sums in registers) and give the places back. Blocks stay on their
 * multiprocessor and take tile after tile; the copies run ahead into the next tile while
 * the last one is stored.
 *
 * Doubled frames (upsample) are never made: each of the four output phases is a
 * convolution of 2 x 2 taps over the stored frame, with weights added up when they were
 * packed: 2.25 times fewer operations, the sums of weights rounded once to bf16.
 *
 * COST AND EXPECTATION (H100 SXM: 990 TFLOP/s nominal, about 790 within its power; a
 * multiprocessor multiplies 256 x N x 32 in 4 N clocks and gets 25 to 40 bytes a clock
 * from L2). "B/clk": what the layer would take from L2 at full speed.
 *                                   TFLOP  B/clk   expected: TFLOP/s, ms
 *   [4,720,1280,96]->96    27 taps   1.83    27     550-650   2.8-3.3
 *   [4,360,640,192]->192   27 taps   1.83    21     600-650   2.9
 *   [2,180,320,384]->384   27 taps   0.92    23     550-600   1.6: 7 rounds of 132 tiles
 *   [1,90,160,384]->384    27 taps   0.11    27     450       0.25: one round of 116 tiles
 *   [4,360,640,192]->96    doubled   0.54    42     400       1.4 (1.22 TFLOP as written)
 *   [4,720,1280,96]->3     27 taps   0.15                     1.2-1.5: 8 columns, bound by 5 GB
 *                                                             of boxes from L2 */
#include <cuda.h>
#include <cudaTypedefs.h>

#include "kernels/cuda/conv_fast.cuh"
#include "kernels/cuda/hopper.cuh"

namespace
{

enum { PRODUCERS = 128, CONSUMERS = 256, THREADS = PRODUCERS + CONSUMERS, SHARED_MAX = 226 * 1024 };

/* Bytes and places of the two rings. Everything is a multiple of 512, the period of the
 * swizzle. */
template <int N, int FT, int KTS> struct rings {
    static constexpr int G = SL_CONV_BLOCKS / FT;  /* places of a tile */
    static constexpr int PER_PLACE = FT + KTS - 1; /* slots of a place */
    static constexpr int SLOTS = G * PER_PLACE, BOXES = SLOTS * SL_CONV_SLOT,
                         MATRIX = N * SL_CONV_KC * 2, WEIGHTS = KTS * MATRIX;
    static constexpr int DEEP = FT == 4 ? 3 : FT == 2 ? 2 : 4; /* steps whose boxes are there */
    /* parts of weights */
    static constexpr int FIT = (SHARED_MAX - 1024 - DEEP * BOXES) / WEIGHTS,
                         WIDE = FIT < 8 ? FIT : 8;
    static constexpr int SHARED = DEEP * BOXES + WIDE * WEIGHTS + 1024;
    static_assert(DEEP >= 2 && WIDE >= 2,
                  "a place is given back when the next one's products have been queued");
    static_assert(BOXES % 512 == 0 && MATRIX % 512 == 0 && SL_CONV_ROW % 512 == 0,
                  "matrices begin where the swizzle begins");
};

struct fast_args {
    sl_conv_tiles p;
    const bf16 *bias, *residual;
    bf16 *y;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- instructions ---- */

/* A box of 32 channels, 16 columns, 4 + kh - 1 rows, 1 frame. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, uint32_t bar, int c,
                                         int x, int y, int f)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                 "l"((uint64_t)map), "r"(bar), "r"(c), "r"(x), "r"(y), "r"(f)
                 : "memory");
}

/* wgmma's view of rows of 64 bytes, K-major, in the 64-byte swizzle: groups of 8 rows 512
 * bytes apart (bits 32-45, in 16 bytes), swizzle mode 2 (bits 62-63); the leading offset
 * (bits 16-29) has no meaning here and is 1 by custom. Another 16 of K: 32 bytes further. */
__device__ __forceinline__ uint64_t matrix_at(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32 |
           (uint64_t)2 << 62;
}

/* d += A [64, 16] B [N, 16]^T */
template <int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);

template <> __device__ __forceinline__ void wgmma<8>(float (&d)[4], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3"
                 "}, %4, %5, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "l"(a), "l"(b));
}

template <> __device__ __forceinline__ void wgmma<96>(float (&d)[48], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
                 "}, %48, %49, 1, 1, 1, 0, 0;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]),
                   "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
                   "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]),
                   "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
                   "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                   "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                   "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
                   "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
                 : "l"(a), "l"(b));
}

template <> __device__ __forceinline__ void wgmma<192>(float (&d)[96], uint64_t a, uint64_t b)
{
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
        "}, %96, %97, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
          "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
          "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
          "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
          "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
          "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
          "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),
          "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
        : "l"(a), "l"(b));
}

/* The compiler may not move what touches the sums across this. */
template <int R> __device__ __forceinline__ void pin(float (&d)[2][R])
{
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < R; j++) asm volatile("" : "+f"(d[i][j])::"memory");
}

/* ---- roles ---- */

/* One thread queues the boxes of all of the block's tiles. */
template <int N, int FT, int KTS>
__device__ __forceinline__ void bring_boxes(const fast_args &a, const CUtensorMap *x,
                                            const CUtensorMap *history, ring r)
{
    using R = rings<N, FT, KTS>;
    const sl_conv_tiles &p = a.p;
    const int tiles = sl_conv_tile_count(&p), steps = sl_conv_steps(&p),
              bytes = R::SLOTS * (SL_CONV_BLOCK_H + p.kh - 1) * SL_CONV_ROW;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const sl_conv_tile t = sl_conv_tile_at(&p, tile);
        int frame[R::G], row[R::G], col[R::G];
#pragma unroll
        for (int g = 0; g < R::G; g++) {
            sl_conv_place_at(&p, t.place + g, &frame[g], &row[g], &col[g]);
            row[g] -= p.pad - t.phase_y;
            col[g] -= p.pad - t.phase_x;
        }
        for (int step = 0; step < steps; step++) {
            const uint32_t bar = r.full + 8 * r.at, to = r.data + r.at * R::BOXES;
            int dt, dx, chunk;
            sl_conv_step_at(&p, step, &dt, &dx, &chunk);
            barrier_wait(r.empty + 8 * r.at, r.pass ^ 1);
            barrier_expect(bar, bytes);
#pragma unroll
            for (int g = 0; g < R::G; g++)
#pragma unroll
                for (int j = 0; j < R::PER_PLACE; j++) {
                    int f = sl_conv_slot_frame(&p, frame[g], j, dt);
                    bool past = f < 0 && p.has_history;
                    copy_box(to + (g * R::PER_PLACE + j) * SL_CONV_SLOT, past ? history : x, bar,
                             chunk * SL_CONV_KC, col[g] + dx, row[g], past ? f + p.before : f);
                }
            advance<R::DEEP>(r);
        }
    }
}

/* Another queues their weights. */
template <int N, int FT, int KTS>
__device__ __forceinline__ void bring_weights(const fast_args &a, const CUtensorMap *w, ring r)
{
    using R = rings<N, FT, KTS>;
    const sl_conv_tiles &p = a.p;
    const int tiles = sl_conv_tile_count(&p), steps = sl_conv_steps(&p);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int row = sl_conv_tile_at(&p, tile).weight_row;
        for (int step = 0; step < steps; step++) {
            int dt, dx, chunk;
            sl_conv_step_at(&p, step, &dt, &dx, &chunk);
            for (int dy = 0; dy < p.kh; dy++) {
                const uint32_t bar = r.full + 8 * r.at, to = r.data + r.at * R::WEIGHTS;
                barrier_wait(r.empty + 8 * r.at, r.pass ^ 1);
                barrier_expect(bar, R::WEIGHTS);
#pragma unroll
                for (int d = 0; d < KTS; d++)
                    copy_box(to + d * R::MATRIX, w, bar,
                             sl_conv_weight_k(&p, dt + d, dy, dx, chunk), row);
                advance<R::WIDE>(r);
            }
        }
    }
}

/* A block's 64 pixels in y. A thread has, of columns 8 j + 2 (lane % 4) and the next,
 * rows 16 warp + lane / 4 (sums 4 j, 4 j + 1) and that + 8 (sums 4 j + 2, 4 j + 3); a row
 * of a block's picture is 16 pixels, a warp's. */
struct block_at {
    int64_t at[2]; /* element of y: channel n0 of this thread's two pixels */
    bool inside[2];
};

__device__ __forceinline__ block_at find_block(const sl_conv_tiles &p, const sl_conv_tile &t,
                                               int ft, int block, int warp, int lane)
{
    block_at b;
    int frame, row, col;
    sl_conv_place_at(&p, t.place + block / ft, &frame, &row, &col);
    frame += block % ft;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int y = row + warp, x = col + lane / 4 + 8 * half;
        b.inside[half] = frame < p.frames && y < p.grid_h && x < p.grid_w;
        b.at[half] =
            ((int64_t)(frame * p.oh + y * p.step + t.phase_y) * p.ow + x * p.step + t.phase_x) *
                p.co +
            t.n0;
    }
    return b;
}

/* Sums begin as bias plus residual: their loads meet free registers, and the end has only
 * to round. The residual may be y: nobody else touches this block's elements, and all of
 * them are read before one is written. */
template <int N>
__device__ __forceinline__ void begin_sums(const fast_args &a, float (&d)[N / 2], const block_at &b,
                                           int n0, int lane)
{
    const int q = lane % 4;
    if constexpr (N % 32 == 0) {
        if (a.residual) {
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < N / 32; i++) {
                    uint4 v = b.inside[half]
                                  ? *(const uint4 *)(a.residual + b.at[half] + (4 * i + q) * 8)
                                  : make_uint4(0, 0, 0, 0);
                    d[16 * i + 2 * half] = __uint_as_float(v.x),
                                   d[16 * i + 4 + 2 * half] = __uint_as_float(v.y);
                    d[16 * i + 8 + 2 * half] = __uint_as_float(v.z),
                                       d[16 * i + 12 + 2 * half] = __uint_as_float(v.w);
                }
        }
#pragma unroll
        for (int i = 0; i < N / 32; i++) {
            uint32_t r[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
            if (a.residual) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        r[half][e] = __float_as_uint(d[16 * i + 4 * e + 2 * half]);
                    transpose4(r[half], lane);
                }
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int j = 4 * i + e;
                float2 bias = a.bias
                                  ? floats(__ldg((const uint32_t *)(a.bias + n0 + 8 * j + 2 * q)))
                                  : make_float2(0, 0);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float2 s = floats(r[half][e]);
                    d[4 * j + 2 * half] = s.x + bias.x, d[4 * j + 2 * half + 1] = s.y + bias.y;
                }
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) d[i] = 0; /* few columns: store_sums adds */
    }
}

/* Round the sums once and store them. */
template <int N>
__device__ __forceinline__ void store_sums(const fast_args &a, const float (&d)[N / 2],
                                           const block_at &b, int n0, int lane)
{
    const int q = lane % 4;
    if constexpr (N % 32 == 0) {
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < N / 32; i++) {
                uint32_t v[4];
#pragma unroll
                for (int e = 0; e < 4; e++)
                    v[e] = rounded(d[16 * i + 4 * e + 2 * half], d[16 * i + 4 * e + 2 * half + 1]);
                transpose4(v, lane);
                if (b.inside[half])
                    *(uint4 *)(a.y + b.at[half] + (4 * i + q) * 8) =
                        make_uint4(v[0], v[1], v[2], v[3]);
            }
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const int n = i / 4 * 8 + 2 * q + i % 2, half = i % 4 / 2;
            if (!b.inside[half] || n0 + n >= a.p.co) continue;
            float s = d[i];
            if (a.bias) s += __bfloat162float(a.bias[n0 + n]);
            if (a.residual) s += __bfloat162float(a.residual[b.at[half] + n]);
            a.y[b.at[half] + n] = __float2bfloat16_rn(s);
        }
    }
}

/* A warpgroup multiplies blocks 2 group and 2 group + 1 of each of the block's tiles. */
template <int N, int FT, int KTS>
__device__ __forceinline__ void consume(const fast_args &a, ring boxes, ring weights, int group,
                                        int warp, int lane)
{
    using R = rings<N, FT, KTS>;
    const sl_conv_tiles &p = a.p;
    const int tiles = sl_conv_tile_count(&p), kh = p.kh, parts = sl_conv_steps(&p) * kh;
    const uint32_t first[2] = {(uint32_t)sl_conv_slot_of(FT, KTS, 2 * group, 0) * SL_CONV_SLOT,
                               (uint32_t)sl_conv_slot_of(FT, KTS, 2 * group + 1, 0) * SL_CONV_SLOT};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const sl_conv_tile t = sl_conv_tile_at(&p, tile);
        float sums[2][N / 2];
        /* barriers of the places that are free when what was queued last is done */
        uint32_t used_weights = 0, used_boxes = 0;
#pragma unroll
        for (int m = 0; m < 2; m++)
            begin_sums<N>(a, sums[m], find_block(p, t, FT, 2 * group + m, warp, lane), t.n0, lane);
        /* a part: one dy of a step, its taps in time and both halves of its 32 channels */
        for (int part = 0, dy = 0; part < parts; part++) {
            if (dy == 0) barrier_wait(boxes.full + 8 * boxes.at, boxes.pass);
            barrier_wait(weights.full + 8 * weights.at, weights.pass);
            const uint32_t x = boxes.data + boxes.at * R::BOXES + dy * SL_CONV_ROW,
                           w = weights.data + weights.at * R::WEIGHTS;
            pin(sums);
            products_may_begin();
#pragma unroll
            for (int dt = 0; dt < KTS; dt++)
#pragma unroll
                for (int half = 0; half < SL_CONV_KC / 16; half++)
#pragma unroll
                    for (int m = 0; m < 2; m++)
                        wgmma<N>(sums[m], matrix_at(x + first[m] + dt * SL_CONV_SLOT + half * 32),
                                 matrix_at(w + dt * R::MATRIX + half * 32));
            products_queued();
            pin(sums);
            products_done_but_last();
            /* what the part before used is read by nobody now */
            if (part && lane == 0) barrier_arrive(used_weights);
            if (part && dy == 0 && lane == 0) barrier_arrive(used_boxes);
            used_weights = weights.empty + 8 * weights.at;
            used_boxes = boxes.empty + 8 * boxes.at;
            advance<R::WIDE>(weights);
            if (++dy == kh) {
                dy = 0;
                advance<R::DEEP>(boxes);
            }
        }
        products_done();
        pin(sums);
        if (lane == 0) {
            barrier_arrive(used_weights);
            barrier_arrive(used_boxes);
        }
#pragma unroll
        for (int m = 0; m < 2; m++)
            store_sums<N>(a, sums[m], find_block(p, t, FT, 2 * group + m, warp, lane), t.n0, lane);
    }
}

#endif

template <int N, int FT, int KTS>
__global__ void __launch_bounds__(THREADS, 1)
    conv_fast_kernel(const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ CUtensorMap history,
                     const __grid_constant__ CUtensorMap w, const __grid_constant__ fast_args a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using R = rings<N, FT, KTS>;
    extern __shared__ unsigned char shared[];
    __shared__ __align__(8) uint64_t barriers[2 * (R::DEEP + R::WIDE)];
    const uint32_t data = (shared_address(shared) + 1023u) & ~1023u,
                   bars = shared_address(barriers);
    const ring boxes = {data, bars, bars + 8 * R::DEEP, 0, 0};
    const ring weights = {data + R::DEEP * R::BOXES, bars + 16 * R::DEEP,
                          bars + 16 * R::DEEP + 8 * R::WIDE, 0, 0};
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        ring_init<R::DEEP>(boxes, CONSUMERS / 32);
        ring_init<R::WIDE>(weights, CONSUMERS / 32);
        rings_ready();
    }
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) bring_boxes<N, FT, KTS>(a, &x, &history, boxes);
        else if (threadIdx.x == 32) bring_weights<N, FT, KTS>(a, &w, weights);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<N, FT, KTS>(a, boxes, weights, group - 1, (int)threadIdx.x / 32 % 4,
                            (int)threadIdx.x % 32);
    }
#endif
}

/* ---- host ---- */

/* A tensor map over bf16 data; dims and box from the innermost index on, rows dense. */
bool encode(sl_ctx *ctx, CUtensorMap *map, const void *data, int rank, const cuuint64_t *dims,
            const cuuint32_t *box, const char *what)
{
    cuuint64_t strides[4], bytes = sizeof(bf16);
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    for (int i = 0; i < rank - 1; i++) strides[i] = bytes *= dims[i];
    CUresult e = ((PFN_cuTensorMapEncodeTiled_v12000)sl_cuda_tensor_maps(sl_cuda_of(ctx)))(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)data, dims, strides, box,
        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e == CUDA_SUCCESS) return true;
    sl_ctx_fail(ctx, SL_CUDA,
                "conv3d: tensor map of %s: driver error %d (rank %d, %llu x %llu innermost, at %p)",
                what, (int)e, rank, (unsigned long long)dims[0], (unsigned long long)dims[1], data);
    return false;
}

bool encode_frames(sl_ctx *ctx, CUtensorMap *map, const void *data, int t, const sl_conv_call *c,
                   int kh, const char *what)
{
    const cuuint64_t dims[4] = {(cuuint64_t)c->C, (cuuint64_t)c->W, (cuuint64_t)c->H,
                                (cuuint64_t)t};
    const cuuint32_t box[4] = {SL_CONV_KC, SL_CONV_BLOCK_W, (cuuint32_t)(SL_CONV_BLOCK_H + kh - 1),
                               1};
    return encode(ctx, map, data, 4, dims, box, what);
}

template <int N, int FT, int KTS>
void launch(sl_ctx *ctx, const CUtensorMap &x, const CUtensorMap &history, const CUtensorMap &w,
            const fast_args &a, int bit)
{
    auto kernel = conv_fast_kernel<N, FT, KTS>;
    const int shared = rings<N, FT, KTS>::SHARED, tiles = sl_conv_tile_count(&a.p),
              sms = sl_cuda_of(ctx)->sms;
    const int blocks = tiles < sms ? tiles : sms;
    unsigned *done = &sl_cuda_of(ctx)->convs->set_up;
    if (!(*done >> bit & 1)) {
        if (!sl_cuda_ok(
                ctx,
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                "conv3d: shared memory"))
            return;
        *done |= 1u << bit;
    }
    kernel<<<blocks, THREADS, shared, ctx->stream>>>(x, history, w, a);
    SL_LAUNCHED(ctx, "conv3d");
}

template <int N>
void launch_frames(sl_ctx *ctx, const CUtensorMap &x, const CUtensorMap &history,
                   const CUtensorMap &w, const fast_args &a, int bit)
{
    if (a.p.ft == 4) launch<N, 4, 3>(ctx, x, history, w, a, bit);
    else if (a.p.ft == 2) launch<N, 2, 3>(ctx, x, history, w, a, bit + 1);
    else launch<N, 1, 1>(ctx, x, history, w, a, bit + 2);
}

} // namespace

bool sl_conv_fast_can(const sl_cuda *cu, const sl_conv_call *c)
{
    const sl_conv &k = c->k;
    if (cu->convs->simple || !sl_cuda_tensor_maps(cu)) return false;
    if (c->C % SL_CONV_KC || (c->co % 96 && c->co > 8) || k.stride_hw != 1 || k.kh > 3)
        return false;
    if (k.upsample && (k.kt != 1 || k.kh != 3 || k.kw != 3 || k.pad != 1 || k.pad_end))
        return false;
    if (((uintptr_t)c->x | (uintptr_t)c->w | (uintptr_t)c->history | (uintptr_t)c->y |
         (uintptr_t)c->residual) %
        16)
        return false;
    return (int64_t)c->frames * c->oh * c->ow < INT32_MAX / 64;
}

void sl_conv_fast(sl_ctx *ctx, const sl_conv_call *c)
{
    fast_args a = {};
    CUtensorMap x, history, w;
    const sl_cuda *cu = sl_cuda_of(ctx);
    const int sms = cu->convs->wide ? 1 : cu->sms; /* one multiprocessor never idles */
    sl_conv_plan(&a.p, &c->k, c->frames, c->oh, c->ow, c->C, c->co, c->history != nullptr, sms);
    a.bias = c->bias, a.residual = c->residual, a.y = c->y;

    const int64_t shape[5] = {c->co, c->C, c->k.kt, c->k.kh, c->k.kw},
                  taps = (int64_t)a.p.kt * a.p.kh * a.p.kw;
    const bf16 *weights = c->w + (c->k.upsample ? sl_conv_direct_count(shape) : 0);
    const cuuint64_t dims[2] = {(cuuint64_t)sl_conv_pitch(c->C, taps),
                                (cuuint64_t)(a.p.weight_rows * a.p.phases)};
    const cuuint32_t box[2] = {SL_CONV_KC, (cuuint32_t)a.p.n};
    if (!encode(ctx, &w, weights, 2, dims, box, "the weights") ||
        !encode_frames(ctx, &x, c->x, c->T, c, a.p.kh, "x"))
        return;
    history = x;
    if (c->history &&
        !encode_frames(ctx, &history, c->history, c->before, c, a.p.kh, "the history"))
        return;

    if (a.p.n == 192) launch_frames<192>(ctx, x, history, w, a, 0);
    else if (a.p.n == 96) launch_frames<96>(ctx, x, history, w, a, 3);
    else launch_frames<8>(ctx, x, history, w, a, 6);
}
