/* attention.cu - softmax(q k^T scale + bias) v: a kernel of our own or cuDNN's fused ones
 * where they apply, three passes through scratch memory elsewhere.
 *
 * FLASH: heads of 128 without a bias on Hopper: attention_flash.cu.
 * FUSED: elsewhere, and where the result is added: head widths 64 and 128 without a bias,
 * all pitches and addresses multiples of 16 bytes. cuDNN is asked in two forms
 * (attention_plan.cu), its one SDPA operation and the graph of products, pointwise steps
 * and reductions that older releases know; the first plan that finalizes is kept, by
 * shape. Both forms choose the same kernels (9.19, compute capability 9.0), compiled when
 * first asked for: about a second a shape.
 * GENERIC: everything else. Scores of some heads and queries in F32 (cublasLt), softmax
 * in F32, weights rounded to bf16 as fused kernels round them, the product with v
 * (cublasLt). At most SCORE_BYTES of scratch. F32 q, k, v and o (CLIP) always go this
 * way, with weights in F32.
 * SLUICE_ATTENTION=generic, unified or composite keeps to one of the last three. Where
 * cuDNN has nothing, generic takes over and the log says so once. */
#include "kernels/cuda/attention_flash.cuh"
#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

/* scores and weights of the generic form */
static const size_t SCORE_BYTES = (size_t)256 << 20;
static const size_t ADDED_BYTES = (size_t)42 << 20; /* results on their way to be added */

/* ---- kernels ---- */

enum { SOFTMAX_THREADS = 256 };

/* exp as good as weights of type T need it. */
template <class T> __device__ __forceinline__ float exponential(float x);
template <> __device__ __forceinline__ float exponential<bf16>(float x)
{
    return __expf(x);
}
template <> __device__ __forceinline__ float exponential<float>(float x)
{
    return expf(x);
}

__device__ __forceinline__ void put_weight(bf16 *p, float x)
{
    *p = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void put_weight(float *p, float x)
{
    *p = x;
}

/* The maximum and the sum of exp(x - maximum) of two parts of a row. */
template <class T>
__device__ __forceinline__ void merge(float *top, float *sum, float other_top, float other_sum)
{
    /* -INFINITY: two empty parts, or NaN alone */
    float high = fmaxf(*top, other_top), down = high == -INFINITY ? 0 : high;
    *sum = *sum * exponential<T>(*top - down) + other_sum * exponential<T>(other_top - down);
    *top = high;
}

/* p = softmax(score + bias) of one row: x the query, y the head. bias: at the first query
 * of this call, first head; its row of one query starts one element before that of the
 * query above it. Columns nk .. ld of p become zero. */
template <class T>
static __global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_kernel(T *p, const float *score, int64_t ld, int nk, const float *bias,
                   int64_t bias_head)
{
    __shared__ float tops[SOFTMAX_THREADS / 32], sums[SOFTMAX_THREADS / 32];
    const int64_t row = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    const float *s = score + row * ld;
    if (bias) bias += (int64_t)blockIdx.y * bias_head - blockIdx.x;
    float top = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < nk; j += SOFTMAX_THREADS) {
        float x = s[j] + (bias ? bias[j] : 0);
        if (x > top) {
            sum *= exponential<T>(top - x);
            top = x;
        }
        sum += exponential<T>(x - top); /* a NaN stays in the sum */
    }
#pragma unroll
    for (int d = 16; d; d /= 2) {
        float other_top = __shfl_xor_sync(0xffffffffu, top, d),
              other_sum = __shfl_xor_sync(0xffffffffu, sum, d);
        merge<T>(&top, &sum, other_top, other_sum);
    }
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top, sums[threadIdx.x / 32] = sum;
    __syncthreads();
    top = tops[0], sum = sums[0];
#pragma unroll
    for (int i = 1; i < SOFTMAX_THREADS / 32; i++) merge<T>(&top, &sum, tops[i], sums[i]);
    const float part = 1 / sum;
    p += row * ld;
    for (int j = threadIdx.x; j < ld; j += SOFTMAX_THREADS) {
        float x = j < nk ? exponential<T>(s[j] + (bias ? bias[j] : 0) - top) * part : 0;
        put_weight(p + j, x);
    }
}

/* o += r in F32, rounded; r dense [rows, cols]. A thread eight columns of bf16, or one of
 * either. */
static __global__ void add_eights_kernel(bf16 *o, int64_t pitch, const bf16 *r, int64_t n8,
                                         int cols8)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n8) return;
    uint4 *to = (uint4 *)(o + i / cols8 * pitch + i % cols8 * 8);
    uint4 a = *to, b = ((const uint4 *)r)[i];
    __nv_bfloat162 *x = (__nv_bfloat162 *)&a;
    const __nv_bfloat162 *y = (const __nv_bfloat162 *)&b;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float2 u = __bfloat1622float2(x[e]), v = __bfloat1622float2(y[e]);
        x[e] = __floats2bfloat162_rn(u.x + v.x, u.y + v.y);
    }
    *to = a;
}

static __global__ void add_kernel(bf16 *o, int64_t pitch, const bf16 *r, int64_t n, int cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    bf16 *to = o + i / cols * pitch + i % cols;
    *to = __float2bfloat16_rn(__bfloat162float(*to) + __bfloat162float(r[i]));
}

static __global__ void add_floats_kernel(float *o, int64_t pitch, const float *r, int64_t n,
                                         int cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i / cols * pitch + i % cols] += r[i];
}

static bool is_even(const void *p, int64_t pitch)
{
    return (uintptr_t)p % 16 == 0 && pitch % 8 == 0;
}

static void add(sl_ctx *ctx, bf16 *o, int64_t pitch, const bf16 *r, int64_t rows, int64_t cols)
{
    int64_t n = rows * cols;
    if (is_even(o, pitch) && cols % 8 == 0)
        add_eights_kernel<<<(unsigned)((n / 8 + 255) / 256), 256, 0, ctx->stream>>>(
            o, pitch, r, n / 8, (int)(cols / 8));
    else
        add_kernel<<<(unsigned)((n + 255) / 256), 256, 0, ctx->stream>>>(o, pitch, r, n, (int)cols);
    SL_LAUNCHED(ctx, "adding attention's result");
}

static void add(sl_ctx *ctx, float *o, int64_t pitch, const float *r, int64_t rows, int64_t cols)
{
    int64_t n = rows * cols;
    add_floats_kernel<<<(unsigned)((n + 255) / 256), 256, 0, ctx->stream>>>(o, pitch, r, n,
                                                                            (int)cols);
    SL_LAUNCHED(ctx, "adding attention's result");
}

/* ---- the operation ---- */

/* The arguments of sl_attention; T: bf16 or float. */
template <class T> struct arguments {
    const T *q, *k, *v;
    T *o;
    int64_t nq, nk, heads, d, q_pitch, k_pitch, v_pitch, o_pitch;
    const float *bias;
    float scale;
    bool accumulate;
};
typedef arguments<bf16> attention;

/* Queries first .. first + n of heads head .. head + heads, to o (of that query and
 * head). */
template <class T>
static void generic_piece(sl_ctx *ctx, const arguments<T> *a, int64_t head, int64_t heads,
                          int64_t first, int64_t n, int64_t ld, float *score, T *weight, T *o,
                          int64_t o_pitch)
{
    const sl_dtype dtype = sizeof(T) == sizeof(float) ? SL_F32 : SL_BF16;
    sl_cuda_product s = {}, r = {};
    s.m = n, s.n = a->nk, s.k = a->d, s.whole = r.whole = sl_cuda_whole_rows(ctx);
    s.a = a->q + first * a->q_pitch + head * a->d, s.lda = a->q_pitch, s.step_a = a->d;
    s.b = a->k + head * a->d, s.ldb = a->k_pitch, s.step_b = a->d;
    s.c = score, s.ldc = ld, s.step_c = n * ld;
    s.batch = (int)heads, s.in = dtype, s.out = SL_F32, s.alpha = a->scale;
    sl_cuda_multiply(ctx, &s);
    if (ctx->err.code) return;
    int64_t table = a->nq + a->nk - 1;
    softmax_kernel<<<dim3((unsigned)n, (unsigned)heads), SOFTMAX_THREADS, 0, ctx->stream>>>(
        weight, score, ld, (int)a->nk, a->bias ? a->bias + head * table + a->nq - 1 - first : NULL,
        table);
    if (!SL_LAUNCHED(ctx, "softmax")) return;
    r.m = n, r.n = a->d, r.k = a->nk;
    r.a = weight, r.lda = ld, r.step_a = n * ld;
    r.b = a->v + head * a->d, r.ldb = a->v_pitch, r.step_b = a->d, r.across = true;
    r.c = o, r.ldc = o_pitch, r.step_c = a->d;
    r.batch = (int)heads, r.in = r.out = dtype, r.alpha = 1;
    sl_cuda_multiply(ctx, &r);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static size_t whole(size_t bytes) /* the next part of scratch starts aligned */
{
    return (bytes + 255) / 256 * 256;
}

template <class T> static void generic(sl_ctx *ctx, const arguments<T> *a)
{
    /* bytes of a query of one head */
    int64_t ld = (a->nk + 7) / 8 * 8, row = ld * (int64_t)(sizeof(float) + sizeof(T));
    int64_t heads = least(a->heads, (int64_t)SCORE_BYTES / (row * least(a->nq, 256)));
    if (heads < 1) heads = 1;
    int64_t n = least(a->nq, (int64_t)SCORE_BYTES / (row * heads));
    if (n > 64 && n < a->nq) n = n / 64 * 64;
    if (n < 1) n = 1;
    size_t scores = whole((size_t)(heads * n * ld) * sizeof(float)),
           weights = whole((size_t)(heads * n * ld) * sizeof(T));
    char *at = (char *)sl_cuda_scratch(
        ctx, scores + weights + (a->accumulate ? (size_t)(n * heads * a->d) * sizeof(T) : 0));
    if (!at) return;
    T *aside = (T *)(at + scores + weights);
    for (int64_t h = 0; h < a->heads; h += heads)
        for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
            int64_t hs = least(heads, a->heads - h), rows = least(n, a->nq - i);
            T *o = a->o + i * a->o_pitch + h * a->d;
            if (a->accumulate) {
                generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (T *)(at + scores), aside,
                              hs * a->d);
                if (!ctx->err.code) add(ctx, o, a->o_pitch, aside, rows, hs * a->d);
            } else
                generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (T *)(at + scores), o,
                              a->o_pitch);
        }
}

/* cuDNN, and the generic form for the queries that it has no plan for. */
static void fused(sl_ctx *ctx, const attention *a)
{
    int64_t width = a->heads * a->d, n = a->nq;
    char *scratch = NULL;
    if (a->accumulate) {
        int64_t most = (int64_t)ADDED_BYTES / (width * (int64_t)sizeof(bf16)) / 128 * 128;
        n = least(n, most < 128 ? 128 : most);
    }
    for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
        if (a->accumulate &&
            !(scratch = (char *)sl_cuda_scratch(ctx, (size_t)(n * width) * sizeof(bf16))))
            return;
        bf16 *o = a->o + i * a->o_pitch, *aside = (bf16 *)scratch;
        sl_attention_shape s;
        memset(&s, 0, sizeof s);
        s.nq = least(n, a->nq - i), s.nk = a->nk, s.heads = a->heads, s.d = a->d;
        s.q_pitch = a->q_pitch, s.k_pitch = a->k_pitch, s.v_pitch = a->v_pitch,
        s.o_pitch = aside ? width : a->o_pitch;
        const sl_attention_data data = {a->q + i * a->q_pitch, a->k, a->v, aside ? aside : o,
                                        a->scale};
        cudnnBackendDescriptor_t plan;
        if (!sl_attention_plan(ctx, &s, &plan)) return;
        if (!plan) {
            attention rest = *a; /* what is done stays done */
            rest.q = (const bf16 *)data.q, rest.o = o, rest.nq = a->nq - i;
            generic(ctx, &rest);
            return;
        }
        if (!sl_cuda_dnn_ok(ctx, sl_attention_execute(ctx, plan, &data), "attention")) return;
        if (aside) add(ctx, o, a->o_pitch, aside, s.nq, width);
    }
}

template <class T>
static arguments<T> arguments_of(const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                                 const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                                 bool accumulate)
{
    int64_t width = q->shape[1];
    arguments<T> a = {(const T *)q->data,
                      (const T *)k->data,
                      (const T *)v->data,
                      (T *)o->data,
                      q->shape[0],
                      k->shape[0],
                      heads,
                      width / heads,
                      q->pitch,
                      k->pitch,
                      v->pitch,
                      o->pitch,
                      bias ? (const float *)bias->data : NULL,
                      scale,
                      accumulate};
    if (a.nq == 1) a.q_pitch = a.o_pitch = width; /* the pitch of one row may be anything */
    if (a.nk == 1) a.k_pitch = a.v_pitch = width;
    return a;
}

static sl_attention_flash_call flash_call(const attention *a)
{
    return {a->q,       a->k,       a->v,  a->o,  a->q_pitch, a->k_pitch,
            a->v_pitch, a->o_pitch, a->nq, a->nk, a->heads,   a->scale};
}

void sl_cuda_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                       const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                       bool accumulate)
{
    if (!q->shape[0]) return;
    if (q->dtype == SL_F32) {
        arguments<float> f = arguments_of<float>(o, q, k, v, heads, scale, bias, accumulate);
        generic(ctx, &f);
        return;
    }
    attention a = arguments_of<bf16>(o, q, k, v, heads, scale, bias, accumulate);
    const char *set = getenv("SLUICE_ATTENTION");
    bool fits = (a.d == 64 || a.d == 128) && !bias && is_even(a.q, a.q_pitch) &&
                is_even(a.k, a.k_pitch) && is_even(a.v, a.v_pitch) && is_even(a.o, a.o_pitch);
    const sl_attention_flash_call call = flash_call(&a);
    if (!fits || (set && !strcmp(set, "generic"))) generic(ctx, &a);
    else if (a.d == 128 && !a.accumulate && sl_attention_flash_can(sl_cuda_of(ctx), &call))
        sl_attention_flash(ctx, &call);
    else fused(ctx, &a);
}

bool sl_cuda_attention_parts(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q,
                             const sl_tensor *k, const sl_tensor *v, int heads, float scale,
                             int parts, const int64_t *first, int last, sl_done *done)
{
    if (!q->shape[0] || q->dtype == SL_F32) return false;
    const attention a = arguments_of<bf16>(o, q, k, v, heads, scale, NULL, false);
    const sl_attention_flash_call call = flash_call(&a);
    return a.d == 128 && sl_attention_flash_can(sl_cuda_of(ctx), &call) &&
           sl_attention_flash_parts(ctx, &call, parts, first, last, done);
}
