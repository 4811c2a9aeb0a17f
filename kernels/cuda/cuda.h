/* cuda.h - what the files of kernels/cuda share: the state of one context, error checks,
 * scratch memory, the bodies' prototypes. CUDA C++ (nvcc) includes it.
 *
 * The tour of the plug-in:
 *   table.cu           contexts, memory, transfers, devices; the tables and the entry
 *   data.cu            movement, conversion, elementwise arithmetic
 *   gemm.cu            products: cublasLt's plans by shape, own kernels for few rows
 *   norm.cu            norms, rotary embedding, the gated residual
 *   eight.cu           rows in 8 bits: what makes them, their products
 *   attention.cu       which form an attention takes, and the form for every case
 *   attention_flash.cu, attention_two.cu   Hopper's kernels for heads of 128: among the
 *                      tokens, and to text and picture in one pass
 *   attention_eight.cu the same among the tokens in 8 bits
 *   attention_plan.cu  cuDNN's plans by shape
 *   sampler.cu         the DiT's edges, guidance, the sampler, the cache's means
 *   conv.cu            convolution: packing, choice, the kernel for every case and device
 *   conv_fast.cu       Hopper's kernel, in tiles of conv_tiles.h
 *   frames.cu          what the autoencoder does besides convolving
 *   load.cu, slab.cu   weights from files; memory that processes share
 *   comm_ipc.cu, comm_nccl.cu   ranks that share a forward (kernels/comm.h)
 * and what kernels include: device.cuh (memory-bound ones), rows.cuh (those of rows), mma.cuh (one
 * warp's products), hopper.cuh and attention_hopper.cuh (compute capability 9.0). */
#ifndef SL_CUDA_H
#define SL_CUDA_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <cudnn.h>

extern "C" {
#include "kernels/plugin.h"
}

typedef __nv_bfloat16 bf16;

struct sl_cuda_gemms; /* gemm.cu: cublasLt plans by shape */
struct sl_cuda_attns; /* attention_plan.cu: cuDNN plans by shape */
struct sl_cuda_convs; /* conv_fast.cuh: which kernels, and which have been set up */

enum { SL_CUDA_COUNTERS = 32 };

/* The state behind ctx->device. One thread at a time, as the ctx. */
struct sl_cuda {
    int device; /* ordinal */
    int sm;     /* compute capability: 90 for H100 */
    int sms;    /* multiprocessors */
    cublasLtHandle_t lt;
    cudnnHandle_t dnn; /* on ctx->stream */
    void *workspace;   /* cublasLt's and cuDNN's, workspace_bytes (64 MiB) */
    size_t workspace_bytes;
    void *scratch; /* grows; sl_cuda_scratch */
    size_t scratch_bytes;
    float *host_out; /* pinned, 1024 floats: small results */
    sl_cuda_gemms *gemms;
    sl_cuda_attns *attns;
    uint32_t
        *counters; /* device memory: how far attentions are, which other streams may wait for */
    uint32_t counted[SL_CUDA_COUNTERS]; /* what they come to when all that is queued is done */
    sl_cuda_convs *convs;
};

static inline sl_cuda *sl_cuda_of(sl_ctx *ctx)
{
    return (sl_cuda *)ctx->device;
}

/* Scratch that lives until the next call of it on this ctx (stream order makes reuse
 * safe; growing waits for the stream). NULL: ctx has failed. */
void *sl_cuda_scratch(sl_ctx *ctx, size_t bytes);

/* True: the launch or call before went well. False: ctx keeps the first failure. */
bool sl_cuda_ok(sl_ctx *ctx, cudaError_t e, const char *what);
bool sl_cuda_lt_ok(sl_ctx *ctx, cublasStatus_t s, const char *what);
bool sl_cuda_dnn_ok(sl_ctx *ctx, cudnnStatus_t s, const char *what);
#define SL_LAUNCHED(ctx, what) sl_cuda_ok(ctx, cudaGetLastError(), what)
/* The driver's cuTensorMapEncodeTiled, for kernels of compute capability 9.0. NULL:
 * another device, or a driver without it. */
void *sl_cuda_tensor_maps(const sl_cuda *cu);

/* Each frees what its file keeps in a context; called by the table's close. NULL is fine. */
void sl_cuda_gemms_free(sl_cuda_gemms *);
void sl_cuda_attns_free(sl_cuda_attns *);
void sl_cuda_convs_free(sl_cuda_convs *);

/* ---- the bodies ---- */

/* Bodies are hidden symbols: one that is missing is found when the plug-in is linked. */
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
 * in's dtype; or in E4M3 with a scale a row of a and of b, out BF16. bias [n] of dtype `out` and
 * 16-byte aligned, or NULL, is added before; gelu: GELU's tanh form of the sum. whole:
 * sl_cuda_whole_rows, where m may be other numbers of these rows, and batch other numbers of such
 * matrices, without another bit; 0: as it comes. Uses the workspace, no scratch. */
struct sl_cuda_product {
    int64_t m, n, k, whole;
    const void *a, *b;
    void *c;
    int64_t lda, ldb, ldc, step_a, step_b, step_c;
    int batch;
    bool across, gelu;
    sl_dtype in, out;
    float alpha;
    const void *bias;
    const float *scale_a, *scale_b; /* in E4M3, 16-byte aligned */
    bool fast;                      /* in E4M3: sums stay in the tensor cores */
    /* in E4M3: the bias is F32 or not aligned, for which cublasLt has no kernel */
    bool bias_any, bias_f32;
    bool adds; /* c += instead, with one rounding; without gelu */
};
/* False: the product `adds`, and cublasLt has no kernel for that; nothing was done. Errors
 * are kept in ctx. */
bool sl_cuda_multiply(sl_ctx *ctx, const sl_cuda_product *product);
/* ctx's whole_rows, or 0 with SLUICE_GEMM_PIN=0. */
int64_t sl_cuda_whole_rows(sl_ctx *ctx);
/* True: this context may try several algorithms on the real buffers and keep the fastest.
 * Only with SLUICE_AUTOTUNE=1, since another process may find another one fastest and then
 * has other last bits; not while the stream is captured into a graph. */
bool sl_cuda_may_time(sl_ctx *ctx);

/* ---- what else the plug-in lends (plugin.h) ---- */

extern const sl_ops sl_ops_cuda;        /* table.cu */
extern const sl_slab_ops sl_cuda_slabs; /* slab.cu */
/* load.cu: sl_plugin's load, load_begin, load_over, load_end and random */
sl_code sl_cuda_load(const sl_load_piece *pieces, int n, int threads, const volatile int *cancel,
                     sl_load_figures *figures, sl_err *err);
sl_code sl_cuda_load_begin(sl_load **out, const sl_load_piece *pieces, int n, int threads,
                           const volatile int *cancel, sl_load_done_fn *done, void *user,
                           sl_err *err);
bool sl_cuda_load_over(const sl_load *load);
sl_code sl_cuda_load_end(sl_load **load, sl_load_figures *figures, sl_err *err);
void sl_cuda_random(sl_ctx *ctx, void *dst, sl_dtype dtype, int64_t n, float centre, float spread,
                    uint64_t seed);

#endif
