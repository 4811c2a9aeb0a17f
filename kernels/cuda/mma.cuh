/* mma.cuh - products of one warp on compute capability 8.0 and later: addresses in shared
 * memory, ldmatrix, mma.sync. */
#ifndef SL_MMA_CUH
#define SL_MMA_CUH

#include "kernels/cuda/cuda.h"

namespace
{

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four (two) 8 x 8 pieces of bf16 whose rows begin at the addresses of lanes
 * 8 i .. 8 i + 7: of piece i, lane 4 g + t gets columns 2 t, 2 t + 1 of row g. */
__device__ __forceinline__ void load4(uint32_t r[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ __forceinline__ void load2(uint32_t r[2], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from));
}

/* d += a b: 16 x 16 times 16 x 8, with float32 sums. Lane 4 g + t has
 *   of a   rows g, g + 8, g, g + 8 at columns 2 t, 2 t + 1 (the last two: 8 columns on)
 *   of b   rows 2 t, 2 t + 1 (b[1]: 8 rows on) of column g
 *   of d   columns 2 t, 2 t + 1 of row g, then of row g + 8 */
__device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, "
                 "%6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

} // namespace

#endif
