/* ops.h - the operations that the five networks are made of, and the table of a device's
 * bodies for them.
 *
 * A network (graphs/) calls sl_NAME on an sl_ctx; the context's table says what runs:
 *   sl_ops_cpu    kernels/cpu/    float32 arithmetic, OpenBLAS + OpenMP; the reference
 *   sl_ops_cuda   kernels/cuda/   bf16 with float32 where the networks' precision rules
 *                                 ask for it; in the plug-in (kernels/plugin.h)
 *   sl_ops_plan   kernels/plan.c  no memory, no work: shapes are checked and the arena is
 *                                 measured
 * What a network must know of the device (are there numbers at all, the activations'
 * dtype, how many rows pay off at once) is a field of the table; nothing is concluded
 * from the table's name. ops.c checks shapes, dtypes and overlaps once for all bodies and
 * then calls through the table.
 *
 * ONE TYPE AN OPERATION: sl_NAME_fn below, with the manual above it, is the type of the
 * front sl_NAME, of the bodies sl_cpu_NAME and sl_cuda_NAME, of the table's field and of
 * the profile's wrapper, which are all made from the list SL_OPS.
 * ERRORS ARE STICKY: the first failure is kept in ctx->err and every later call on that
 * ctx returns at once, so a graph reads as mathematics and asks sl_ok(ctx) at its end (or
 * between blocks).
 * STREAM: an operation on a device is queued on ctx's stream and returns; sl_download and
 * sl_sync wait. On the CPU every operation is finished when it returns.
 * MEMORY: intermediates come from ctx's arena (sl_new, released in stack order by
 * sl_mark/sl_release). Operations allocate nothing but a body's scratch, which it keeps
 * for the next call.
 * DTYPES: `act` tensors have ctx->ops->act (F32 on the CPU, BF16 on CUDA); F32 means
 * float32 on every device. Weights are what graphs/weights.h made of them: a `matrix` has
 * the dtype of the product's x, or any of F32, BF16, F16 where the table says
 * stored_matrices; a `vector` is act or F32. */
#ifndef SL_OPS_H
#define SL_OPS_H

#include "common/tensor.h"

typedef struct CUstream_st *cudaStream_t;

typedef struct sl_ops sl_ops;
typedef struct sl_ctx sl_ctx;
typedef struct sl_plugin sl_plugin; /* kernels/plugin.h */

/* A tap is called by graphs with the name of an intermediate ("block.0.attn1") and the
 * tensor, which it may download. */
typedef void sl_tap_fn(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t);

/* One execution context: a device, a stream, an arena, the first error. One thread at a
 * time. */
struct sl_ctx {
    const sl_ops *ops;
    void *device;        /* the device's own state, NULL on the CPU */
    cudaStream_t stream; /* ignored on the CPU */
    char *arena;         /* device memory; NULL while planning */
    size_t arena_bytes;  /* size of the arena; SIZE_MAX while planning */
    size_t arena_used, arena_peak;
    sl_err err;
    sl_tap_fn *tap; /* NULL: nobody looks */
    void *tap_user;
    bool tap_parts; /* it looks into every block: what its attention takes, what its parts add */
    int64_t
        tap_of; /* the tensor that it is called with is the next piece of so many rows; 0: all */
    /* NULL, or a flag that every operation looks at first: nonzero -> SL_CANCELLED */
    const volatile int *cancel;
    /* NULL, or what must be called before the host waits for the stream, which may wait for other
     * ranks: kernels/comm.h sets it and takes it away. */
    void (*settle)(sl_ctx *ctx);
    void *settle_with;
    /* Where a product's rows are a share or a piece of more rows: how many those are. A body
     * that chooses by the number of rows how to multiply chooses by these, and in a way that
     * gives a row the same bits in all shares. 0: by the rows given. */
    int64_t whole_rows;
    /* Products in 8 bits on a GPU (sl_linear_eight and its kin): false, sums stay in the tensor
     * cores for all of K, which align what they add to the sum so far and keep some 13 bits of it;
     * true, they go to float32 every few steps, which takes longer. The CPU's are float32. */
    bool float32_sums;
};

/* Rows in 8 bits: element (i, c) is scale[i] * codes[i, c]. Of a weight [N, K] a row is an
 * output's. */
typedef struct {
    sl_tensor codes; /* E4M3 [N, d], dense; rank 0 marks absent ones */
    sl_tensor scale; /* F32 [N], dense */
} sl_eight;

typedef enum { SL_ACT_NONE, SL_ACT_GELU_TANH, SL_ACT_GELU_ERF, SL_ACT_SILU } sl_activation;

/* A 3-D convolution over channels-last frames. Time is causal: with stride_t 1 output
 * frame t sees the input frames t-(kt-1) .. t, the first of them in the history before
 * the chunk.
 *   kt, kh, kw     kernel extents
 *   stride_t       1; or 2, with kt 3 and one frame of history only: an output for every
 *                  second frame (see sl_conv3d)
 *   stride_hw      1 or 2
 *   pad            zeros on all four sides of each frame (1 for 3x3, 0 for 1x1)
 *   pad_end        zeros on the right and bottom only (1 for the stride-2 downsampling
 *                  convolution)
 *   upsample       1: nearest-neighbour x2 of each frame first (fused: never stored) */
typedef struct {
    int kt, kh, kw, stride_t, stride_hw, pad, pad_end, upsample;
} sl_conv;

/* ---- context and memory ---- */

extern const sl_ops sl_ops_cpu, sl_ops_plan;
/* The plan body of the device whose table this is: that device's facts and sizes, no
 * work. sl_ops_plan is the CPU's. */
sl_ops sl_ops_plan_of(const sl_ops *device);

/* A context on `ops` with an arena of `arena_bytes` (0: none yet). Owns the arena;
 * sl_ctx_close frees it and may be called on a zeroed or closed ctx. Errors: SL_NOMEM
 * naming bytes wanted. */
sl_code sl_ctx_open(sl_ctx *ctx, const sl_ops *ops, size_t arena_bytes, sl_err *err);
void sl_ctx_close(sl_ctx *ctx);
/* Make the arena at least `bytes` large; it must be empty (arena_used 0). Old contents
 * are lost. */
sl_code sl_ctx_reserve(sl_ctx *ctx, size_t bytes, sl_err *err);

/* True: no error so far, and *ctx->cancel is not set; the same while planning. */
bool sl_ok(const sl_ctx *ctx);
/* True: *ctx->cancel is set, and ctx has failed with SL_CANCELLED. */
bool sl_cancelled(sl_ctx *ctx);
/* Copy the sticky error out, clear it, empty the arena. Returns the error's code;
 * SL_CANCELLED if there is none but *ctx->cancel is set. */
sl_code sl_ctx_error(sl_ctx *ctx, sl_err *err);
void sl_ctx_fail(sl_ctx *ctx, sl_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* An uninitialised dense tensor in the arena, 256-byte aligned. After an error: a tensor
 * with NULL data and the right shape. SL_NOMEM if the arena is too small (a planning bug:
 * it names both sizes). */
sl_tensor sl_new(sl_ctx *ctx, sl_dtype dtype, int rank, const int64_t *shape);
sl_tensor sl_new1(sl_ctx *ctx, sl_dtype dtype, int64_t a);
sl_tensor sl_new2(sl_ctx *ctx, sl_dtype dtype, int64_t a, int64_t b);
sl_tensor sl_new4(sl_ctx *ctx, sl_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d);
sl_eight sl_new_eight(sl_ctx *ctx, int64_t rows, int64_t d);
sl_eight sl_eight_rows(const sl_eight *e, int64_t first, int64_t count); /* a view of some rows */
size_t sl_mark(const sl_ctx *ctx);
void sl_release(sl_ctx *ctx, size_t mark); /* everything taken since that mark is free again */
sl_dtype sl_act(const sl_ctx *ctx);        /* dtype of activations here */

/* Memory that outlives the arena (weights, caches). NULL after an error. Freed by
 * sl_device_free. */
void *sl_device_alloc(sl_ctx *ctx, size_t bytes);
void sl_device_free(sl_ctx *ctx, void *p);

/* Host <-> device, dense tensors, no conversion; sl_bytes(t) bytes. sl_download waits for
 * the stream. */
typedef void sl_upload_fn(sl_ctx *ctx, const sl_tensor *dst, const void *host);
typedef void sl_download_fn(sl_ctx *ctx, void *host, const sl_tensor *src);
/* Waits until all that was queued on the stream is done. */
typedef void sl_sync_fn(sl_ctx *ctx);
sl_upload_fn sl_upload;
sl_download_fn sl_download;
sl_sync_fn sl_sync;
void sl_tap(sl_ctx *ctx, const char *name, const sl_tensor *t); /* ctx->tap if set */

/* ---- elementwise and data movement ---- */

/* y = 0: any dtype, dense. */
typedef void sl_zero_fn(sl_ctx *ctx, const sl_tensor *y);
/* y = x: one shape; float dtypes convert, rounding once; rank-2 views may be pitched. */
typedef void sl_copy_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
/* y = a + b: one shape, each F32 or act, arithmetic in F32; y may be a or b. */
typedef void sl_add_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b);
/* y = a - b, as sl_add. */
typedef sl_add_fn sl_sub_fn;
/* y = x / (1 + exp(-x)); y may be x; dtypes may differ. */
typedef void sl_silu_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
/* y = gelu_tanh(a) * b: the gate of UMT5's feed-forward (transformers NewGELUActivation).
 * act, one shape; y may be a. */
typedef void sl_geglu_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b);
/* y[i, :] = table[ids[i], :]; ids are host memory, each checked against the table's rows.
 * y act [n, d]. */
typedef void sl_embed_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *table,
                         const int32_t *ids);

/* ---- matrices: DiT, UMT5, CLIP ---- */

/* y[M,N] = activation(x[M,K] w[N,K]^T + b[N]). x, y rank 2, may be pitched; w matrix
 * weight, dense; b vector or NULL. x and y act, or both F32 with an F32 w (the time
 * embedder, CLIP). M may be 1. y is not x.
 * Cost 2 M N K operations. */
typedef void sl_linear_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                          const sl_tensor *b, sl_activation activation);

/* y[N,K] = x[N,K] + scale * up[N,r] down[r,K]: a LoRA's factors merged into a weight; without up
 * (NULL) y = x + scale * down, with down [N,K] a difference. Sums in F32, one rounding. y act or
 * F32, x likewise (or any float where the table says stored_matrices), down and up of one float
 * dtype; all dense; y may be x.
 * Cost 2 N K r operations. Source: peft tuners/lora/layer.py, get_delta_weight. */
typedef void sl_low_rank_add_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *up, const sl_tensor *down, float scale);

/* LayerNorm over the last index, statistics in F32. x, y rank 2, act or both F32; w, b
 * [d] vectors or both NULL; y may be x. */
typedef void sl_layernorm_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                             const sl_tensor *w, const sl_tensor *b, float eps);
/* AdaLN: y = LN(x) * (1 + scale) + shift, LN without parameters; scale, shift F32 [d]. y
 * may be x.
 * Source: diffusers transformer_wan.py, WanTransformerBlock.forward. */
typedef void sl_layernorm_modulate_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                      const sl_tensor *scale, const sl_tensor *shift, float eps);
/* RMSNorm over the last index: y = x * rsqrt(mean(x^2) + eps) * w, statistics in F32. w
 * vector [d]. x, y may be pitched; y may be x. */
typedef void sl_rmsnorm_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                           float eps);
/* RMSNorm over all of d = heads * head_dim, then rotary embedding within each head on
 * interleaved pairs: (y[2k], y[2k+1]) = (x[2k] c - x[2k+1] s, x[2k] s + x[2k+1] c), c =
 * cos[n,k], s = sin[n,k]. cos, sin F32 [N, head_dim/2]. x, y [N, d] act, may be pitched;
 * y may be x. */
typedef void sl_rmsnorm_rope_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *w, float eps, const sl_tensor *cos,
                                const sl_tensor *sin, int heads);
/* x += y * gate[d]  in F32, one rounding. x, y act [N, d]; gate F32 [d]. */
typedef void sl_gated_add_fn(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y,
                             const sl_tensor *gate);

/* x += (a[M,K] w[N,K]^T + b) * gate[N], a residual branch's last layer: what sl_linear
 * into y, then sl_gated_add (gate NULL: sl_add) to x do, and a device that can does it in
 * one product, rounding once. x, y act [M, N], dense; y is only memory to work in: what
 * it holds afterwards is unspecified. gate F32 or NULL; a, w, b as for sl_linear, and
 * apart from x and y.
 * A body returns false where it cannot do this in one product, and has done nothing then;
 * the front does it with the two operations, and returns what the body did. */
typedef bool sl_linear_add_fn(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y,
                              const sl_tensor *a, const sl_tensor *w, const sl_tensor *b,
                              const sl_tensor *gate);

/* ---- rows in 8 bits ----
 *
 * What makes such rows computes them in F32 and stores, a row at a time, scale = m / 448, m the
 * row's largest magnitude (at least 2^-100), and codes = x * (448 / m), rounded to nearest even. A
 * code is off by half its last place at most: |x - scale * code| <= max(|x| / 16, m / 448 / 1024).
 * A row with a NaN or an infinity becomes NaN as a whole. */

/* y = x, act or F32 [N, d], may be pitched. y is apart from x, here and below. */
typedef void sl_quantise_rows_fn(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x);
/* y = what sl_layernorm makes of act rows [N, d], before it is rounded to act. */
typedef void sl_layernorm_eight_fn(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x,
                                   const sl_tensor *w, const sl_tensor *b, float eps);
/* y = what sl_layernorm_modulate makes, likewise. */
typedef void sl_layernorm_modulate_eight_fn(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x,
                                            const sl_tensor *scale, const sl_tensor *shift,
                                            float eps);
/* y = gelu(x), its tanh form; x act [N, d], dense. */
typedef void sl_gelu_eight_fn(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x);
/* y[M,N] = x[M,K] w[N,K]^T + b[N]: codes are multiplied, sums are F32, then scaled by x's scale of
 * the row and w's of the column. y act, may be pitched; b vector or NULL.
 * Cost 2 M N K operations. */
typedef void sl_linear_eight_fn(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x,
                                const sl_eight *w, const sl_tensor *b);
/* x += (a w^T + b) * gate: sl_linear_add of rows in 8 bits, arguments likewise; sl_linear_eight
 * into y, then sl_gated_add or sl_add to x, where the body returns false. */
typedef bool sl_linear_add_eight_fn(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y,
                                    const sl_eight *a, const sl_eight *w, const sl_tensor *b,
                                    const sl_tensor *gate);

/* ---- attention ---- */

/* o = softmax(q k^T * scale + bias) v per head, full (not causal), softmax in F32, never
 * a whole [Nq, Nk] in memory. q, o [Nq, heads * D]; k, v [Nk, heads * D]; all act or all
 * F32; each may be pitched; Nk >= 1. bias: NULL or F32 [heads, Nq + Nk - 1], added at
 * index (key - query + Nq - 1) (UMT5's relative table). accumulate: o += result instead
 * (both rounded to o's dtype first). o may not overlap q, k, v. */
typedef void sl_attention_fn(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q,
                             const sl_tensor *k, const sl_tensor *v, int heads, float scale,
                             const sl_tensor *bias, bool accumulate);

/* o = softmax(q k1^T * scale) v1 + softmax(q k2^T * scale) v2: what sl_attention, then
 * sl_attention with accumulate do, each result and their sum rounded to o's dtype; a
 * device that can does both in one pass over q and o. Arguments as for sl_attention. A
 * body returns false where it cannot do this in one pass, and has done nothing then; the
 * front does it with two calls, and returns what the body did. */
typedef bool sl_attention_two_fn(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q,
                                 const sl_tensor *k1, const sl_tensor *v1, const sl_tensor *k2,
                                 const sl_tensor *v2, int heads, float scale);

/* Some rows of a result, as another stream of the device sees them while the operation still
 * computes others: they are there when each of these numbers in the device's memory, which count
 * upwards and wrap around, has come to its value. count 0: only when the operation has ended. */
enum { SL_DONE_COUNTERS = 3 };
typedef struct {
    int count;
    const void *at[SL_DONE_COUNTERS];
    uint32_t value[SL_DONE_COUNTERS];
} sl_done;

/* As sl_attention without a bias, for rows in `parts` parts of which others wait: part i is the
 * rows [first[i], first[i + 1]), first[0] = 0, first[parts] = Nq. They are finished in the order
 * last + 1, last + 2, ..., last, and done[i] tells when; that of `last` has count 0. The same bits
 * as sl_attention. A body returns false where it cannot, and has done nothing then; the front calls
 * sl_attention, clears done, and returns what the body did. */
typedef bool sl_attention_parts_fn(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q,
                                   const sl_tensor *k, const sl_tensor *v, int heads, float scale,
                                   int parts, const int64_t *first, int last, sl_done *done);

/* ---- attention in 8 bits ----
 *
 * Scores are products of integers of 8 bits, with a scale a row and head of q and a scale a head
 * and SL_EIGHT_KEYS rows of k, whose mean is taken off first (a constant a row of scores, which
 * softmax does not see). Weights of up to 448, rounded to e4m3, are multiplied with e4m3 codes of
 * v, whose mean is taken off and added to the result, with a scale a column. Sums are F32 from one
 * block of SL_EIGHT_KEYS keys to the next. What is not a number stays none. Source: SageAttention
 * (Zhang et al. 2024, 2025), smoothing of k and v; the rest is ours. */

enum { SL_EIGHT_KEYS = 128 };
/* Keys and values of `heads` heads of N rows, M = N rounded up to SL_EIGHT_KEYS. The codes' order
 * is the body's own. */
typedef struct {
    int64_t rows;                      /* N */
    sl_tensor k;                       /* U8 [M, heads * D] */
    sl_tensor v;                       /* E4M3 [M, heads * D] */
    sl_tensor k_scale;                 /* F32 [heads, M / SL_EIGHT_KEYS] */
    sl_tensor k_mean, v_mean, v_scale; /* F32 [heads * D] */
} sl_keys_eight;
/* Memory for those of `rows` rows, from the arena. */
sl_keys_eight sl_new_keys_eight(sl_ctx *ctx, int64_t rows, int64_t width, int heads);

/* y = the codes of k, v act [N, heads * D], which may be pitched; N >= 1. */
typedef void sl_code_keys_fn(sl_ctx *ctx, const sl_keys_eight *y, const sl_tensor *k,
                             const sl_tensor *v, int heads);
/* Queries of Nq rows; attention's scale and log2(e) are in theirs. */
typedef struct {
    sl_tensor codes; /* U8 [Nq, heads * D] */
    sl_tensor scale; /* F32 [Nq, heads] */
} sl_queries_eight;
sl_queries_eight sl_new_queries_eight(sl_ctx *ctx, int64_t rows, int64_t width, int heads);
/* A view of some rows. */
sl_queries_eight sl_queries_eight_rows(const sl_queries_eight *q, int64_t first, int64_t count);
/* y = the codes of q, act [Nq, heads * D], which may be pitched, for softmax(q k^T * scale). */
typedef void sl_code_queries_fn(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *q,
                                int heads, float scale);
/* y = the codes of sl_rmsnorm_rope(x), with the bits that sl_code_queries gives them; x, act [Nq,
 * heads * D], may be pitched, and is memory to work in: what it holds afterwards is unspecified.
 * A body returns false where it cannot, and has done nothing then; the front does it with the two
 * operations, and returns what the body did. */
typedef bool sl_rmsnorm_rope_queries_fn(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *x,
                                        const sl_tensor *w, float eps, const sl_tensor *cos,
                                        const sl_tensor *sin, int heads, float scale);

/* o = softmax(q k^T * scale) v per head in 8 bits. o act [Nq, heads * D], may be pitched. done
 * NULL, or as in sl_attention_parts for `parts` parts (first, last as there), where a body that
 * cannot tell of parts leaves done cleared. The same bits with parts and without. On a device D is
 * 128: ctx->ops->eight_width, 0 for any. Cost 4 Nq N heads D operations. */
typedef void sl_attention_eight_fn(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                                   const sl_keys_eight *keys, int heads, int parts,
                                   const int64_t *first, int last, sl_done *done);

/* ---- DiT's edges and the sampler ---- */

/* Latents F32 [C1,T,H,W] and condition F32 [C2,T,H,W] (NULL: C2 = 0) to patch rows y act
 * [T*(H/2)*(W/2), (C1+C2)*4], row (t, y, x), column (c, py, px): the input of the patch
 * embedding as a matrix product. */
typedef void sl_patchify_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                            const sl_tensor *condition);
/* y F32 or act [C,T,H,W] from rows x act [T*(H/2)*(W/2), 4*C], column (py, px, c). */
typedef void sl_unpatchify_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
/* Classifier-free guidance v = u + g * (c - u), each of the three results rounded to the
 * tensors' dtype. v may be c or u. */
typedef void sl_guidance_fn(sl_ctx *ctx, const sl_tensor *v, const sl_tensor *cond,
                            const sl_tensor *uncond, float g);
/* x0 = x - round_v(sigma * v): the flow prediction's clean sample. x0, x F32; v any float
 * dtype (its rounding is kept). */
typedef void sl_flow_x0_fn(sl_ctx *ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v,
                           float sigma);
/* y = sum_i a[i] * x[i], F32, n 1 .. 4, left to right; y may be any of x. */
typedef void sl_lincomb_fn(sl_ctx *ctx, const sl_tensor *y, int n, const sl_tensor *const x[],
                           const float a[]);
/* Decode's look for NaN: out[0] = mean |prev - r|, out[1] = mean |prev|, over all elements of
 * two act tensors of one shape. `out` is host memory; waits. The sum's order is fixed, so
 * equal inputs give equal bits. */
typedef void sl_mean_abs_fn(sl_ctx *ctx, float out[2], const sl_tensor *prev, const sl_tensor *r);
/* First Block Cache, whether or not ranks share the rows: y[i] = (sum |prev - r|, sum
 * |prev|) over row i of two act tensors [N, d]; y F32 [N, 2]. A row's sum is one order,
 * whoever's row it is. */
typedef void sl_abs_rows_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *prev,
                            const sl_tensor *r);
/* out = the sums of y's two columns, y F32 [N, 2], in float64 and one order. `out` is
 * host memory; waits. */
typedef void sl_sum_rows_fn(sl_ctx *ctx, double out[2], const sl_tensor *y);

/* ---- VAE: frames are channels-last, [T, H, W, C] act ---- */

/* y = conv(x) + b (+ residual). w packed by graphs/weights.h from [Co,Ci,kt,kh,kw]; seen
 * here with that shape.
 *   x         [T,H,W,Ci]
 *   history   [kt-1,H,W,Ci]: the frames before x. NULL: zeros, when stride_t == 1; for
 *             stride_t == 2 a history of ONE frame [1,H,W,Ci] is required and y frame j
 *             is centred so that y[j] = W . (z[2j], z[2j+1], z[2j+2]) with z =
 *             cat(history, x)
 *   residual  like y, or NULL; y may be residual
 *   y         stride_t 1: T frames; stride_t 2: T/2 frames (T even)
 *             height: (H * (upsample?2:1) + 2*pad + pad_end - kh) / stride_hw + 1, width alike
 * Zero padding in space. Cost 2 * |y| * Ci * kt * kh * kw operations. */
typedef void sl_conv3d_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                          const sl_tensor *history, const sl_tensor *w, const sl_tensor *b,
                          const sl_tensor *residual, const sl_conv *conv);
/* history [n,H,W,C] = the last n frames of cat(history, x). */
typedef void sl_conv_history_fn(sl_ctx *ctx, const sl_tensor *history, const sl_tensor *x);
/* y = x / max(||x||_2 over channels, 1e-12) * sqrt(C) * gamma[c], then SiLU if silu. y
 * may be x.
 * Source: diffusers autoencoder_kl_wan.py, WanRMS_norm. */
typedef void sl_vae_norm_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                            const sl_tensor *gamma, bool silu);
/* y [2T,H,W,C] from x [T,H,W,2C]: channels [0,C) of frame t are frame 2t, [C,2C) are
 * frame 2t+1. */
typedef void sl_time_shuffle_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
/* The shortcut of a level that halves its frames' size, and with `time` 2 their number (Wan2.2):
 * y[k,i,j,o] = the mean of numbers G o .. G o + G - 1 among the C * time * 4 numbers of frames
 * time * k .., rows 2 i, 2 i + 1 and columns 2 j, 2 j + 1 of x, in the order (channel, frame, row,
 * column); G = C * time * 4 / C'. Sums in F32.
 *   x   [n,H,W,C], H and W even; time 2 and n odd: a frame of zeros stands before the first
 *   y   [(n + time - 1) / time,H/2,W/2,C'], C' divides C * time * 4
 * Source: diffusers autoencoder_kl_wan.py, AvgDown3D. */
typedef void sl_avg_down_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time);
/* The shortcut of a level that doubles its frames' size, and with `time` 2 their number:
 * y[time k + f,2 i + r,2 j + s,o] = x[k,i,j,(((o time + f) 2 + r) 2 + s) / R],
 * R = C' * time * 4 / C.
 *   x   [n,H,W,C], C divides C' * time * 4
 *   y   [time n,2H,2W,C']; with one frame less, the first of them is left out
 * Source: diffusers autoencoder_kl_wan.py, DupUp3D. */
typedef void sl_dup_up_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time);
/* y [T,2H,2W,C] from x [T,H,W,4C]: y[t,2 i + r,2 j + s,c] = x[t,i,j,(c 2 + s) 2 + r].
 * Source: diffusers autoencoder_kl_wan.py, unpatchify. */
typedef void sl_pixel_shuffle_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);
/* y act [T,H,W,C] = x F32 [C,T,H,W] * mul[c] + add[c]; mul, add host float arrays of C,
 * NULL: 1 and 0. */
typedef void sl_to_channels_last_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                    const float *mul, const float *add);
/* y F32 [C,T,H,W] = (x act [T,H,W,>=C] first C channels) * mul[c] + add[c]. */
typedef void sl_to_channels_first_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                     const float *mul, const float *add);
/* y U8 [T,H,W,3] = round(255 * clamp(x*0.5 + 0.5, 0, 1)) to nearest even, x act
 * [T,H,W,3]. NaN gives 0. */
typedef void sl_frames_rgb8_fn(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x);

/* ---- the list ---- */

/* Every operation, once. A new one is its type above, its name here, its front in ops.c,
 * its body in kernels/cpu/ and in kernels/cuda/, its clock in stages/bench/profile.c and
 * its tests (stages/README.md, "To add"). Without the CPU's body or the clock programs do
 * not link; without CUDA's the plug-in is built and cannot be opened. */
/* clang-format off */
#define SL_OPS(X) \
    X(zero) X(copy) X(add) X(sub) X(silu) X(geglu) X(embed) \
    X(linear) X(linear_add) X(low_rank_add) X(layernorm) X(layernorm_modulate) X(rmsnorm) \
    X(quantise_rows) X(layernorm_eight) X(layernorm_modulate_eight) X(gelu_eight) \
    X(linear_eight) X(linear_add_eight) \
    X(rmsnorm_rope) X(gated_add) X(attention) X(attention_two) X(attention_parts) \
    X(code_keys) X(code_queries) X(rmsnorm_rope_queries) X(attention_eight) \
    X(patchify) X(unpatchify) X(guidance) X(flow_x0) X(lincomb) X(mean_abs) X(abs_rows) X(sum_rows) \
    X(conv3d) X(conv_history) X(vae_norm) X(time_shuffle) X(avg_down) X(dup_up) X(pixel_shuffle) \
    X(to_channels_last) X(to_channels_first) X(frames_rgb8)
/* clang-format on */
#define SL_FRONT(op) sl_##op##_fn sl_##op;
SL_OPS(SL_FRONT)
#undef SL_FRONT

/* Bytes of a convolution weight [Co,Ci,kt,kh,kw] in the device's own packed order. */
typedef size_t sl_packed_conv_bytes_fn(sl_ctx *ctx, const int64_t shape[5]);
/* Packs such a weight, host float32 at src, to dst, device memory of that many bytes. */
typedef void sl_pack_conv_fn(sl_ctx *ctx, void *dst, const float *src, const int64_t shape[5]);

/* ---- a device's table ---- */

/* What a device is and implements. A body's arguments are as above and already checked; a
 * body reports a failure through sl_ctx_fail. */
struct sl_ops {
    const char *name; /* for messages: "cpu", "cuda", "plan" */

    /* Facts. sl_ops_plan_of takes them over. */
    sl_dtype act;         /* dtype of activations */
    bool host_memory;     /* the CPU may read and write the data of tensors */
    bool stored_matrices; /* a product's w may be F32, BF16 or F16, whatever x is */
    /* Rows that a network gives to token by token operations at once, to bound its arena;
     * 0: all of them. */
    int64_t rows_at_once;
    /* Rows that begin at a multiple of it have the same bits in every product of the same
     * whole_rows, whatever rows stand beside them; 1: all rows do. */
    int row_granule;
    /* Columns of a head where attention in 8 bits is to be had; 0: any number of them. */
    int eight_width;
    /* Columns of a product without an activation have the same bits whichever others are computed
     * with them. */
    bool columns_apart;
    /* True: no data exists; of the functions only packed_conv_bytes is called. */
    bool plan;
    /* The plug-in whose table this is, for what is no operation; NULL: none. */
    const sl_plugin *plugin;

    sl_code (*open)(sl_ctx *ctx, sl_err *err); /* makes the device's state; may be NULL */
    void (*close)(sl_ctx *ctx);                /* may be NULL */
    void *(*alloc)(sl_ctx *ctx, size_t bytes); /* 256-byte aligned; NULL: no memory */
    void (*free)(sl_ctx *ctx, void *p);
    sl_upload_fn *upload;
    sl_download_fn *download;
    sl_sync_fn *sync;
    sl_packed_conv_bytes_fn *packed_conv_bytes;
    sl_pack_conv_fn *pack_conv;
#define SL_FIELD(op) sl_##op##_fn *op;
    SL_OPS(SL_FIELD)
#undef SL_FIELD
};

#endif
