/* attention_hopper.cuh - what the Hopper kernels of attention are made of: instructions
 * of compute capability 9.0, the copying thread's steps, tensor maps. */
#ifndef SL_ATTENTION_HOPPER_CUH
#define SL_ATTENTION_HOPPER_CUH

#include <cudaTypedefs.h>

#include "kernels/cuda/bands.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hopper.cuh"

namespace
{

/* Columns of a head; queries of a warpgroup, and their bytes in shared memory. */
enum { WIDTH = 128, ROWS = 64, QUERIES = ROWS * WIDTH * 2 };

} // namespace

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace
{

__device__ __forceinline__ float power_of_2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* wgmma's view of rows of 128 bytes (64 bf16) in the 128-byte swizzle (mode 1, bits
 * 62-63): groups of 8 rows 1024 bytes apart (bits 32-45, in 16 bytes). `next`: bytes to
 * the columns from 64 on, where rows are steps of the sum (v; bits 16-29); where columns
 * are (q, k) it has no meaning, and another 16 of them are 32 bytes further. */
__device__ __forceinline__ uint64_t matrix_at(uint32_t address, uint32_t next)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(next >> 4 & 0x3fff) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(d, i) FOUR(d, i), FOUR(d, i + 4), FOUR(d, i + 8), FOUR(d, i + 12)
#define NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64 ", %64, %65, %66, %67"
#define NAMES_68 ", %68, %69, %70, %71"
#define PRODUCT(SHAPE, NAMES, A, B, ADD, HOW)                                                      \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                                               \
    "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 {" NAMES "}, " A ", " B                  \
    ", p, 1, 1, " HOW ";\n}\n"

/* d = A [64, 16] B [N, 16]^T, plus d where `add`. */
template <int N>
__device__ __forceinline__ void scores(float (&d)[N / 2], uint64_t a, uint64_t b, int add);

template <>
__device__ __forceinline__ void scores<32>(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n32k16", NAMES_0, "%16", "%17", "%18", "0, 0")
                 : SIXTEEN(d, 0)
                 : "l"(a), "l"(b), "r"(add));
}

template <>
__device__ __forceinline__ void scores<80>(float (&d)[40], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n80k16", NAMES_0 NAMES_16 NAMES_32, "%40", "%41", "%42", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), FOUR(d, 32), FOUR(d, 36)
                 : "l"(a), "l"(b), "r"(add));
}

template <>
__device__ __forceinline__ void scores<96>(float (&d)[48], uint64_t a, uint64_t b, int add)
{
    asm volatile(
        PRODUCT("m64n96k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40, "%48", "%49", "%50", "0, 0")
        : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32)
        : "l"(a), "l"(b), "r"(add));
}

template <>
__device__ __forceinline__ void scores<128>(float (&d)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n128k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48, "%64", "%65",
                         "%66", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
                 : "l"(a), "l"(b), "r"(add));
}

template <>
__device__ __forceinline__ void scores<136>(float (&d)[68], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n136k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48 NAMES_64, "%68",
                         "%69", "%70", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), FOUR(d, 64)
                 : "l"(a), "l"(b), "r"(add));
}

template <>
__device__ __forceinline__ void scores<144>(float (&d)[72], uint64_t a, uint64_t b, int add)
{
    asm volatile(
        PRODUCT("m64n144k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48 NAMES_64 NAMES_68, "%72",
                "%73", "%74", "0, 0")
        : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), FOUR(d, 64), FOUR(d, 68)
        : "l"(a), "l"(b), "r"(add));
}

/* d = A [64, 16] B [16, 128], plus d where `add`; A in registers. */
__device__ __forceinline__ void weighted(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                         int add)
{
    asm volatile(PRODUCT("m64n128k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48,
                         "{%64, %65, %66, %67}", "%68", "%69", "1")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

/* As barrier_wait, for the warps that multiply: a deadline in their loops costs them the
 * registers that they need (ptxas 13.0). The thread that copies outlives all of their
 * waits, and has one. */
__device__ __forceinline__ void barrier_spin(uint32_t bar, uint32_t parity)
{
    while (!barrier_passed(bar, parity)) continue;
}

/* The compiler may not move what touches these across this. */
template <int R> __device__ __forceinline__ void pin(float (&d)[R])
{
#pragma unroll
    for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}

template <int R> __device__ __forceinline__ void pin(uint32_t (&d)[R][4])
{
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+r"(d[i][j])::"memory");
}

/* Comes after the exponentials of which x is the sum (each at most 1, or not a number)
 * and before the next wait for products: the compiler may put off what has no effect, and
 * would take the exponentials after the wait that they are to fill. A loop without an
 * effect it removes, and a trap costs registers; so a sleep, if x exceeds 1e30. */
__device__ __forceinline__ void computed(float x)
{
    asm volatile(
        "{\n.reg .pred p;\nsetp.gt.f32 p, %0, 0f7149F2CA;\n@p nanosleep.u32 20;\n}\n" ::"f"(x)
        : "memory");
}

/* ---- the thread that copies ---- */

/* The GROUPS * ROWS queries from `first` on, each warpgroup's as two halves of 64 columns,
 * to the next of two places. */
template <int GROUPS>
__device__ __forceinline__ void bring_queries(ring &r, const CUtensorMap *map, int head, int first)
{
    barrier_wait(r.empty + 8 * r.at, r.pass ^ 1);
    barrier_expect(r.full + 8 * r.at, GROUPS * QUERIES);
    for (int i = 0; i < 2 * GROUPS; i++)
        copy_box(r.data + r.at * GROUPS * QUERIES + i * (QUERIES / 2), map, r.full + 8 * r.at,
                 head * WIDTH + i % 2 * 64, first + i / 2 * ROWS);
    advance<2>(r);
}

/* A block's keys or values, `rows` of them from `row` on, as two halves of 64 columns, to
 * the next of PLACES places of PLACE bytes. */
template <int PLACES, int PLACE>
__device__ __forceinline__ void bring(ring &r, const CUtensorMap *map, int head, int row, int rows)
{
    const uint32_t to = r.data + r.at * PLACE, bar = r.full + 8 * r.at;
    barrier_wait(r.empty + 8 * r.at, r.pass ^ 1);
    barrier_expect(bar, rows * WIDTH * 2);
    copy_box(to, map, bar, head * WIDTH, row);
    copy_box(to + rows * 128, map, bar, head * WIDTH + 64, row);
    advance<PLACES>(r);
}

/* Waits until every place has been given back. */
template <int PLACES> __device__ __forceinline__ void outlive(ring r)
{
    for (int i = 0; i < PLACES; i++) {
        barrier_wait(r.empty + 8 * r.at, r.pass ^ 1);
        advance<PLACES>(r);
    }
}

/* Where the tile lies that is taken as number `tile`: band after band, in it head after head
 * (bands.h); of a kernel's arguments, tiles of TILE rows. */
struct place {
    int head, row, band;
};
template <int TILE, class A> __device__ __forceinline__ place place_of(const A &a, int tile)
{
    const int band = tile / a.band_all, rest = tile - band * a.band_all,
              wide = min(a.band, a.tiles - band * a.band), head = rest / wide;
    int t = rest - head * wide + band * a.band + a.from;
    if (t >= a.tiles) t -= a.tiles;
    return {head, t * TILE, band};
}

/* A warp that multiplies reads the place no more. */
__device__ __forceinline__ void give_back(int lane, uint32_t empty)
{
    if (lane == 0) barrier_arrive(empty);
}

} // namespace

#endif

namespace
{

/* Boxes of 64 columns and `rows` rows of BF16 data [n, cols], `pitch` elements from row
 * to row, in the 128-byte swizzle; zeros past its end. False: ctx has failed, and says
 * what of which. */
inline bool encode_rows(sl_ctx *ctx, CUtensorMap *map, const bf16 *data, int64_t n, int64_t cols,
                        int64_t pitch, int rows, const char *op, const char *what)
{
    const cuuint64_t dims[2] = {(cuuint64_t)cols, (cuuint64_t)n},
                     strides[1] = {(cuuint64_t)(n > 1 ? pitch : cols) * sizeof(bf16)};
    const cuuint32_t box[2] = {64, (cuuint32_t)rows}, steps[2] = {1, 1};
    const CUresult e = ((PFN_cuTensorMapEncodeTiled_v12000)sl_cuda_tensor_maps(sl_cuda_of(ctx)))(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, dims, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e == CUDA_SUCCESS) return true;
    sl_ctx_fail(ctx, SL_CUDA,
                "%s: tensor map of %s: driver error %d ([%lld, %lld], pitch %lld, at %p)", op, what,
                (int)e, (long long)n, (long long)cols, (long long)pitch, (const void *)data);
    return false;
}

/* All of a matrix of n rows begins and goes on at multiples of 16 bytes. */
inline bool is_in_sixteens(const void *data, int64_t n, int64_t pitch)
{
    return (uintptr_t)data % 16 == 0 && (n == 1 || pitch % 8 == 0);
}

/* What tells that parts of a result are there, where a band's tile counts its band up by `adds`
 * in all heads: done of each part but the last, and what the counters come to. */
inline void bands_done(const sl_cuda *cu, const sl_bands &bands, int tile, int adds, int parts,
                       const int64_t *first, int last, sl_done *done,
                       uint32_t value[SL_CUDA_COUNTERS])
{
    for (int b = 0, left = bands.tiles; b < bands.bands; b++, left -= bands.band)
        value[b] = cu->counted[b] + (uint32_t)((left < bands.band ? left : bands.band) * adds);
    for (int i = 0; i < parts; i++) {
        bool in[SL_CUDA_COUNTERS] = {};
        if (i == last || first[i + 1] == first[i]) continue;
        for (int64_t t = first[i] / tile; t <= (first[i + 1] - 1) / tile; t++)
            in[sl_band_at(&bands, (int)t)] = true;
        for (int b = 0; b < bands.bands; b++) {
            if (!in[b]) continue;
            if (done[i].count == SL_DONE_COUNTERS) { /* then only when all is done */
                done[i].count = 0;
                break;
            }
            done[i].at[done[i].count] = cu->counters + b;
            done[i].value[done[i].count++] = value[b];
        }
    }
}

} // namespace

#endif
