/* randn.h - the numbers that torch.randn gives from torch.Generator("cpu"): mt19937 and
 * torch's own normal transform.
 * Source: pytorch aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill),
 * core/MT19937RNGEngine.h. */
#ifndef SL_RANDN_H
#define SL_RANDN_H

#include <stdint.h>

/* A generator that goes on from call to call. */
typedef struct {
    uint32_t s[624];
    int at;
} sl_rng;

/* As torch.Generator("cpu").manual_seed(seed); torch takes the low 32 bits. */
void sl_rng_seed(sl_rng *g, uint64_t seed);
/* The next n numbers, as sl_randn; of fewer than 16, an odd last one is drawn anew by the next
 * call, where torch would keep its pair. */
void sl_rng_normal(sl_rng *g, float *out, int64_t n);

/* out[0..n-1] = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)),
 * float32. n >= 16 uses the vectorised order (Box-Muller on blocks of 16, the tail
 * recomputed); below 16 torch's scalar double path. Equal to torch up to the last bits of
 * log, cos, sin. */
void sl_randn(float *out, int64_t n, uint64_t seed);

#endif
