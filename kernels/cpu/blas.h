/* blas.h - which of its kernels OpenBLAS takes.
 *
 * OpenBLAS chooses by the processor's model when it is loaded. A processor that is younger than the
 * library gets those of 2004, with SSE3 (Prescott), whatever its instructions are: Debian 12's
 * 0.3.21 on an Emerald Rapids takes 2.3 times the processor seconds of a denoising. */
#ifndef SL_BLAS_H
#define SL_BLAS_H

#include <stdbool.h>

/* The kernels for a processor with these instructions, as OPENBLAS_CORETYPE names them, where
 * OpenBLAS took `taken`; NULL: `taken` is right, or the best that there is. */
const char *sl_blas_better(const char *taken, bool avx2_fma, bool avx512);

/* Let the processes that are started from now on have the kernels for this processor: sets
 * OPENBLAS_CORETYPE where it is not set and OpenBLAS does not know the processor. This process
 * keeps those that it has. Call it before there are threads. The name of those that the
 * processes will have, the caller's not to free. */
const char *sl_blas_settle(void);

/* The same for a program that computes itself: where it has other kernels than that, it begins
 * again. Call it first in main. */
void sl_blas_settle_here(char *const argv[]);

#endif
