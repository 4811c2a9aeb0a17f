/* cuda.h - what the files of kernels/cuda share: the state of one context, error checks,
 * launch helpers. CUDA C++ (nvcc) includes it. */
#ifndef SL_CUDA_H
#define SL_CUDA_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cudnn.h>

extern "C" {
#include "kernels/plugin.h"
}

typedef __nv_bfloat16 bf16;

struct sl_cuda_gemms; /* gemm.cu: cublasLt plans by shape */
struct sl_cuda_attns; /* attention.cu: cuDNN plans by shape */
struct sl_cuda_convs; /* conv.cu: cuDNN plans by shape, tensor maps */

/* ctx->device. One thread at a time, as the ctx. */
struct sl_cuda {
    int device, sm, sms; /* ordinal, 90 for H100, multiprocessors */
    cublasLtHandle_t lt;
    cudnnHandle_t dnn; /* on ctx->stream */
    void *workspace;   /* cublasLt's and cuDNN's, workspace_bytes (64 MiB) */
    size_t workspace_bytes;
    void *scratch; /* grows; sl_cuda_scratch */
    size_t scratch_bytes;
    float *host_out; /* pinned, 1024 floats: small results */
    sl_cuda_gemms *gemms;
    sl_cuda_attns *attns;
    sl_cuda_convs *convs;
};

static inline sl_cuda *sl_cuda_of(sl_ctx *ctx)
{
    return (sl_cuda *)ctx->device;
}

/* Scratch that lives until the next call of it on this ctx (stream order makes reuse
 * safe; growing waits for the stream). NULL: ctx has failed. */
void *sl_cuda_scratch(sl_ctx *ctx, size_t bytes);

/* After a launch or a call: keeps the first failure in ctx. */
bool sl_cuda_ok(sl_ctx *ctx, cudaError_t e, const char *what);
bool sl_cuda_lt_ok(sl_ctx *ctx, cublasStatus_t s, const char *what);
bool sl_cuda_dnn_ok(sl_ctx *ctx, cudnnStatus_t s, const char *what);
#define SL_LAUNCHED(ctx, what) sl_cuda_ok(ctx, cudaGetLastError(), what)
/* The driver's cuTensorMapEncodeTiled, for kernels of compute capability 9.0. NULL:
 * another device, or a driver without it. */
void *sl_cuda_tensor_maps(const sl_cuda *cu);

/* Freed by the table's close; each is the file's own. NULL is fine. */
void sl_cuda_gemms_free(sl_cuda_gemms *);
void sl_cuda_attns_free(sl_cuda_attns *);
void sl_cuda_convs_free(sl_cuda_convs *);

/* ---- the bodies ---- */

/* data.cu movement and elementwise; gemm.cu; norm.cu; attention.cu, attention_two.cu;
 * sampler.cu the DiT's edges, guidance, the sampler's arithmetic, the cache's means;
 * conv.cu; frames.cu the rest of the autoencoder's. Hidden: each must be in the plug-in, or
 * it does not link. */
#define SL_CUDA_HIDDEN __attribute__((visibility("hidden")))
SL_CUDA_HIDDEN sl_packed_conv_bytes_fn sl_cuda_packed_conv_bytes;
SL_CUDA_HIDDEN sl_pack_conv_fn sl_cuda_pack_conv;
#define SL_CUDA_BODY(op) SL_CUDA_HIDDEN sl_##op##_fn sl_cuda_##op;
SL_OPS(SL_CUDA_BODY)
#undef SL_CUDA_BODY

/* ---- what several of them use ---- */

/* c = alpha * a b^T for `batch` matrices: a [m,k], b [n,k] (across: b [k,n]), c [m,n],
 * row-major with `ld` elements from row to row and `step` elements from matrix to matrix;
 * arithmetic in F32 (never TF32), one rounding to c's dtype. in BF16 or F32; out F32 or
 * in's dtype. bias [n] of dtype `out` and 16-byte aligned, or NULL, is added before;
 * gelu: GELU's tanh form of the sum. Uses the workspace, no scratch. */
struct sl_cuda_product {
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc, step_a, step_b, step_c;
    int batch;
    bool across, gelu;
    sl_dtype in, out;
    float alpha;
    const void *bias;
    bool adds; /* c += instead, with one rounding; without gelu */
};
/* False: `adds`, and cublasLt has no kernel for it; nothing was done. Errors go to ctx. */
bool sl_cuda_multiply(sl_ctx *, const sl_cuda_product *);
/* May this context try several algorithms on the real buffers and keep the fastest? Only
 * with SLUICE_AUTOTUNE=1, since another process may find another one fastest and then has
 * other last bits; not while the stream is captured into a graph. */
bool sl_cuda_may_time(sl_ctx *);

/* table.cu: everything else of sl_plugin; slab.cu: sl_cuda_slabs; load.cu: sl_cuda_load */
extern const sl_ops sl_ops_cuda;
extern const sl_slab_ops sl_cuda_slabs;
sl_code sl_cuda_load(const sl_load_piece *, int, int, const volatile int *, sl_load_figures *,
                     sl_err *);
void sl_cuda_random(sl_ctx *, void *dst, sl_dtype, int64_t n, float centre, float spread,
                    uint64_t seed);

#endif
