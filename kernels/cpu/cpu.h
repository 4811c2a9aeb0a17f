/* cpu.h - what the files of the CPU body share: the prototypes of its operations, scratch
 * memory, threads.
 *
 * sl_cpu_NAME implements sl_NAME of ops.h for F32 activations in host memory. ops.c has
 * checked every argument before a body runs. The bodies are OpenMP-parallel. The order of
 * every sum is fixed by the shapes alone, so results have the same bits on every run and
 * with any number of threads. */
#ifndef SL_CPU_H
#define SL_CPU_H

#include "kernels/ops.h"

#ifdef _OPENMP
#include <omp.h>
static inline int sl_cpu_threads(void) /* how many a parallel region starts */
{
    return omp_get_max_threads();
}
/* Within a parallel region, to its end: OpenBLAS works on the calling thread. It does so by
 * itself in a team of several threads, but asks for how many there may be in a team of one. */
static inline void sl_cpu_alone(void)
{
    omp_set_num_threads(1);
}
/* built for ThreadSanitizer, which cannot see into OpenMP: one thread, OpenBLAS's too
 * (table.c) */
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
static inline int sl_cpu_threads(void)
{
    return 1;
}
static inline void sl_cpu_alone(void)
{
}
#endif

/* The CPU's products' row_granule: a multiple of the rows of all of sgemm's register tiles
 * (linear.c). */
#define SL_CPU_GRANULE 48
/* Its rows_at_once, a multiple of the granule. Any few thousand rows are enough for OpenBLAS and
 * little for the arena. */
#define SL_CPU_ROWS (176 * SL_CPU_GRANULE)

/* A buffer of at least `bytes`, 64-byte aligned, of this thread and this purpose: it
 * grows when more is asked for than ever before, is kept for the next call and freed when
 * the thread ends. So operations allocate only the first time they meet a size. Contents
 * are undefined. NULL if there is no memory. */
typedef enum {
    SL_SCRATCH_PANEL,
    SL_SCRATCH_SUMS,
    SL_SCRATCH_ATTENTION,
    SL_SCRATCH_EIGHT,
    SL_SCRATCH_COUNT
} sl_scratch;
void *sl_cpu_scratch(sl_scratch purpose, size_t bytes);

/* n elements of F32, BF16, F16 or E4M3 to F32 on the calling thread; vectorised, exact. */
void sl_cpu_to_floats(float *dst, const void *src, sl_dtype dtype, int64_t n);

/* One row of d floats: out = (in - mean) * rsqrt(variance + eps) * (one + w) + b; w and b may both
 * be NULL, out may be in. */
void sl_cpu_layernorm_row(float *out, const float *in, int64_t d, const float *w, const float *b,
                          float one, float eps);

/* The bodies: data.c movement and elementwise; linear.c; norm.c; eight.c rows in 8 bits;
 * attention.c, attention_eight.c; sampler.c the DiT's edges, guidance, the sampler's arithmetic,
 * the cache's means; vae.c. */
sl_upload_fn sl_cpu_upload;
sl_download_fn sl_cpu_download;
sl_sync_fn sl_cpu_sync;
sl_packed_conv_bytes_fn sl_cpu_packed_conv_bytes;
sl_pack_conv_fn sl_cpu_pack_conv;
#define SL_CPU_BODY(op) sl_##op##_fn sl_cpu_##op;
SL_OPS(SL_CPU_BODY)
#undef SL_CPU_BODY

#endif
