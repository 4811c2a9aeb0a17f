/* randn.h - the numbers that torch.randn gives from torch.Generator("cpu"): mt19937 and
 * torch's own normal transform.
 * Source: pytorch aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill),
 * core/MT19937RNGEngine.h. */
#ifndef SL_RANDN_H
#define SL_RANDN_H

#include <stdint.h>

/* out[0..n-1] = torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed)),
 * float32. n >= 16 uses the vectorised order (Box-Muller on blocks of 16, the tail
 * recomputed); below 16 torch's scalar double path. Equal to torch up to the last bits of
 * log, cos, sin. */
void sl_randn(float *out, int64_t n, uint64_t seed);

#endif
