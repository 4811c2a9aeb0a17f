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

/* data.c: movement and elementwise */
void sl_cpu_upload(sl_ctx *ctx, const sl_tensor *dst, const void *host);
void sl_cpu_download(sl_ctx *ctx, void *host, const sl_tensor *src);
void sl_cpu_sync(sl_ctx *ctx);
void sl_cpu_zero(sl_ctx *ctx, const sl_tensor *y);
void sl_cpu_copy(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
void sl_cpu_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b);
void sl_cpu_sub(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b);
void sl_cpu_silu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
void sl_cpu_geglu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b);
void sl_cpu_embed(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *table, const int32_t *ids);

/* linear.c */
void sl_cpu_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation activation);

/* norm.c */
void sl_cpu_layernorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                      const sl_tensor *b, float eps);
void sl_cpu_layernorm_modulate(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *scale, const sl_tensor *shift, float eps);
void sl_cpu_rmsnorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                    float eps);
void sl_cpu_rmsnorm_rope(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                         float eps, const sl_tensor *cos, const sl_tensor *sin, int heads);
void sl_cpu_gated_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate);

/* attention.c */
void sl_cpu_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                      const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                      bool accumulate);

/* sampler.c: DiT's edges, guidance, the sampler's arithmetic, the cache's means */
void sl_cpu_patchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                     const sl_tensor *condition);
void sl_cpu_unpatchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
void sl_cpu_guidance(sl_ctx *ctx, const sl_tensor *v, const sl_tensor *cond,
                     const sl_tensor *uncond, float g);
void sl_cpu_flow_x0(sl_ctx *ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v,
                    float sigma);
void sl_cpu_lincomb(sl_ctx *ctx, const sl_tensor *y, int n, const sl_tensor *const x[],
                    const float a[]);
void sl_cpu_mean_abs(sl_ctx *ctx, float out[2], const sl_tensor *prev, const sl_tensor *r);

/* vae.c */
void sl_cpu_conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                   const sl_conv *conv);
void sl_cpu_conv_history(sl_ctx *ctx, const sl_tensor *history, const sl_tensor *x);
void sl_cpu_vae_norm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *gamma,
                     bool silu);
void sl_cpu_time_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
void sl_cpu_to_channels_last(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                             const float *add);
void sl_cpu_to_channels_first(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                              const float *add);
void sl_cpu_frames_rgb8(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
size_t sl_cpu_packed_conv_bytes(sl_ctx *ctx, const int64_t shape[5]);
void sl_cpu_pack_conv(sl_ctx *ctx, void *dst, const float *src, const int64_t shape[5]);

#endif
