/* randn.h - the numbers that torch.randn gives from torch.Generator("cpu"): mt19937 and
 * torch's own normal transform.
 * Source: pytorch aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill_AVX2),
 * cpu/avx_mathfun.h, core/MT19937RNGEngine.h. */
#ifndef SL_RANDN_H
#define SL_RANDN_H

#include <stdbool.h>
#include <stdint.h>

/* A generator that goes on from call to call. */
typedef struct {
    uint32_t s[624];
    int at;
    bool has_spare; /* of a pair that was drawn, the second is still to be given */
    double spare;
} sl_rng;

/* As torch.Generator("cpu").manual_seed(seed); torch takes the low 32 bits. */
void sl_rng_seed(sl_rng *g, uint64_t seed);
/* The next n numbers: as torch.randn(n) with a generator that has given the same before. */
void sl_rng_normal(sl_rng *g, float *out, int64_t n);

/* out[0..n-1] = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)),
 * float32. n >= 16 uses the vectorised order (Box-Muller on blocks of 16, the tail
 * recomputed); below 16 torch's scalar double path. From 16 on the bits are those of torch on an
 * x86 processor with AVX2 (and AVX-512); elsewhere its logarithm, sine and cosine differ in their
 * last bits. */
void sl_randn(float *out, int64_t n, uint64_t seed);

#endif
