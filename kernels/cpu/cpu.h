/* cpu.h - what the files of the CPU body share: the prototypes of its operations, scratch
 * memory, threads.
 *
 * sl_cpu_NAME implements sl_NAME of ops.h for F32 activations in host memory. ops.c has
 * checked every argument before a body runs. The bodies are OpenMP-parallel. The order of
 * every sum is fixed by the shapes alone, so results have the same bits on every run and
 * with any number of threads; only a product of many rows is OpenBLAS's, which promises
 * the former alone. */
#ifndef SL_CPU_H
#define SL_CPU_H

#include "kernels/ops.h"

#ifdef _OPENMP
#include <omp.h>
static inline int sl_cpu_threads(void) /* how many a parallel region starts */
{
    return omp_get_max_threads();
}
/* built for ThreadSanitizer, which cannot see into OpenMP: one thread, OpenBLAS's too
 * (table.c) */
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
static inline int sl_cpu_threads(void)
{
    return 1;
}
#endif

/* The CPU's rows_at_once. Any few thousand rows are enough for OpenBLAS and little for
 * the arena; another number gives other last bits of its sums. */
#define SL_CPU_ROWS 8448
/* Its products' row_granule. sgemm's sums depend on a row's place in a register tile
 * (seen on Zen with OpenBLAS 0.3.21: places 0 to 2 of 6 and 3 to 5 differ in 7 % of the
 * values); a multiple of all tiles' rows (8, 12, 16, 24) keeps the place. That holds
 * with one thread, for OpenBLAS cuts the rows of a product by its threads, and up to the
 * 1,024 rows that linear.c multiplies at a time, which are no multiple: bench_team's 1,200
 * tokens have other last bits in a team of 2. SL_CPU_ROWS is a multiple. */
#define SL_CPU_GRANULE 48

/* A buffer of at least `bytes`, 64-byte aligned, of this thread and this purpose: it
 * grows when more is asked for than ever before, is kept for the next call and freed when
 * the thread ends. So operations allocate only the first time they meet a size. Contents
 * are undefined. NULL if there is no memory. */
typedef enum {
    SL_SCRATCH_PANEL,
    SL_SCRATCH_SUMS,
    SL_SCRATCH_ATTENTION,
    SL_SCRATCH_COUNT
} sl_scratch;
void *sl_cpu_scratch(sl_scratch purpose, size_t bytes);

/* n elements of F32, BF16 or F16 to F32 on the calling thread; vectorised, exact. */
void sl_cpu_to_floats(float *dst, const void *src, sl_dtype dtype, int64_t n);

/* The bodies: data.c movement and elementwise; linear.c; norm.c; attention.c; sampler.c
 * the DiT's edges, guidance, the sampler's arithmetic, the cache's means; vae.c. */
sl_upload_fn sl_cpu_upload;
sl_download_fn sl_cpu_download;
sl_sync_fn sl_cpu_sync;
sl_packed_conv_bytes_fn sl_cpu_packed_conv_bytes;
sl_pack_conv_fn sl_cpu_pack_conv;
#define SL_CPU_BODY(op) sl_##op##_fn sl_cpu_##op;
SL_OPS(SL_CPU_BODY)
#undef SL_CPU_BODY

#endif
