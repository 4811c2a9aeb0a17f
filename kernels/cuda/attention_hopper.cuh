/* attention_hopper.cuh - the instructions that the Hopper kernels of attention are made of, compute capability 9.0 only. */
#ifndef SL_ATTENTION_HOPPER_CUH
#define SL_ATTENTION_HOPPER_CUH

#include "kernels/cuda/hopper.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace
{

__device__ __forceinline__ float power_of_2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* wgmma's view of rows of 128 bytes (64 bf16) in the 128-byte swizzle (mode 1, bits 62-63): groups of 8 rows 1024 bytes apart
 * (bits 32-45, in 16 bytes). `next`: bytes to the columns from 64 on, where rows are steps of the sum (v; bits 16-29); where
 * columns are (q, k) it has no meaning, and another 16 of them are 32 bytes further. */
__device__ __forceinline__ uint64_t matrix_at(uint32_t address, uint32_t next)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(next >> 4 & 0x3fff) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
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
#define PRODUCT(SHAPE, NAMES, A, B, ADD, HOW)                                                                                      \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                                                                               \
    "wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 {" NAMES "}, " A ", " B ", p, 1, 1, " HOW ";\n}\n"

/* d = A [64, 16] B [N, 16]^T, plus d where `add`. */
template <int N> __device__ __forceinline__ void scores(float (&d)[N / 2], uint64_t a, uint64_t b, int add);

template <> __device__ __forceinline__ void scores<32>(float (&d)[16], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n32k16", NAMES_0, "%16", "%17", "%18", "0, 0") : SIXTEEN(d, 0) : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void scores<80>(float (&d)[40], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n80k16", NAMES_0 NAMES_16 NAMES_32, "%40", "%41", "%42", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), FOUR(d, 32), FOUR(d, 36)
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void scores<96>(float (&d)[48], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n96k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40, "%48", "%49", "%50", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32)
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void scores<128>(float (&d)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n128k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48, "%64", "%65", "%66", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void scores<136>(float (&d)[68], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n136k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48 NAMES_64, "%68", "%69", "%70", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), FOUR(d, 64)
                 : "l"(a), "l"(b), "r"(add));
}

template <> __device__ __forceinline__ void scores<144>(float (&d)[72], uint64_t a, uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n144k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48 NAMES_64 NAMES_68, "%72", "%73", "%74", "0, 0")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48), FOUR(d, 64), FOUR(d, 68)
                 : "l"(a), "l"(b), "r"(add));
}

/* d = A [64, 16] B [16, 128], plus d where `add`; A in registers. */
__device__ __forceinline__ void weighted(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int add)
{
    asm volatile(PRODUCT("m64n128k16", NAMES_0 NAMES_16 NAMES_32 NAMES_40 NAMES_48, "{%64, %65, %66, %67}", "%68", "%69", "1")
                 : SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
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

__device__ __forceinline__ float2 floats(uint32_t two)
{
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

__device__ __forceinline__ uint32_t rounded(float a, float b)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *(uint32_t *)&v;
}

} // namespace

#endif
#endif
