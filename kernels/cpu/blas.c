/* blas.c - OpenBLAS's kernels by what the processor can do, where its model is not known. */
#include "kernels/cpu/blas.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cblas.h>

const char *sl_blas_better(const char *taken, bool avx2_fma, bool avx512)
{
    if (strcmp(taken, "Prescott") != 0) return NULL; /* a real one has neither */
    return avx512 ? "SkylakeX" : avx2_fma ? "Haswell" : NULL;
}

const char *sl_blas_settle(void)
{
    const char *asked = getenv("OPENBLAS_CORETYPE"), *taken = openblas_get_corename(),
               *better = NULL;
    if (asked && *asked) return asked;
#if defined __x86_64__
    __builtin_cpu_init();
    better = sl_blas_better(
        taken, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
#endif
    if (!better || setenv("OPENBLAS_CORETYPE", better, 1)) return taken;
    return better;
}

void sl_blas_settle_here(char *const argv[])
{
    const bool asked = getenv("OPENBLAS_CORETYPE") != NULL; /* and so for good, second time too */
    const char *settled = sl_blas_settle();
    /* where it cannot, it goes on with what it has: slower, not wrong */
    if (!asked && strcmp(settled, openblas_get_corename()) != 0) execv("/proc/self/exe", argv);
}
