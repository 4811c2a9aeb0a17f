/* simd.h - the machine's vectors of floats: LANES side by side, loads and stores
 * unaligned, one fused multiply and add. */
#ifndef SL_SIMD_H
#define SL_SIMD_H

#if defined __AVX512F__
#include <immintrin.h>
enum { LANES = 16, REGISTERS = 32 };
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#elif defined __AVX2__ && defined __FMA__
#include <immintrin.h>
enum { LANES = 8, REGISTERS = 16 };
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#else
enum { LANES = 4, REGISTERS = 16 };
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

/* Never an argument or a result of a function that is not inlined: that would tie the
 * calling convention to the instruction set. */
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#endif
