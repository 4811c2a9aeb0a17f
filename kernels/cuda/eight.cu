/* eight.cu - rows in 8 bits: quantised by what makes them, rows read once and kept in registers as
 * float32; their products, by cublasLt.
 *
 * A block takes R rows together, as in norm.cu: 2 where a LayerNorm's weights are fetched for both,
 * else 1. A row's largest magnitude is found among bits as integers, where NaN is the largest. Rows
 * of up to 5,120 columns take 128 threads, up to 14,336 (the feed-forward's) 256; what does not fit
 * this (odd or unaligned rows, F32 ones, which weights are while they are loaded) takes the plain
 * kernel, which reads a row two to four times. Numbers are quantised as the CPU body does: the same
 * division, the same product, the same rounding. */
#include <type_traits>

#include "kernels/cuda/rows.cuh"

namespace
{

enum { MOST_VECTORS = 7, WIDE_THREADS = 256 };

/* ---- numbers ---- */

/* The largest of R magnitudes over a block, as bits; `shared` is this call's own. */
template <int WARPS, int R>
__device__ __forceinline__ void block_most(uint32_t (&x)[R], uint32_t (&shared)[R][WARPS])
{
#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = __reduce_max_sync(0xffffffffu, x[r]);
        if (threadIdx.x % 32 == 0) shared[r][threadIdx.x / 32] = x[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; r++) {
        x[r] = shared[r][0];
#pragma unroll
        for (int w = 1; w < WARPS; w++) x[r] = x[r] > shared[r][w] ? x[r] : shared[r][w];
    }
}

/* From a row's largest magnitude: its scale, and what its numbers are multiplied by. */
__device__ __forceinline__ void scales_of(uint32_t most, float *scale, float *by)
{
    const uint32_t least = __float_as_uint(TINY);
    const float m = __uint_as_float(most > least ? most : least);
    *scale = __fdiv_rn(m, 448.0f);
    *by = __fdiv_rn(448.0f, m);
}

__device__ __forceinline__ uint8_t code_of(float x)
{
    return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint2 codes8(const float (&f)[8], float by)
{
    uint32_t w[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t lo = __nv_cvt_float2_to_fp8x2(make_float2(f[4 * i] * by, f[4 * i + 1] * by),
                                                     __NV_SATFINITE, __NV_E4M3),
                       hi = __nv_cvt_float2_to_fp8x2(
                           make_float2(f[4 * i + 2] * by, f[4 * i + 3] * by), __NV_SATFINITE,
                           __NV_E4M3);
        w[i] = lo | hi << 16;
    }
    return make_uint2(w[0], w[1]);
}

/* ---- what makes the numbers of rows in registers ---- */

struct as_it_is {
    enum { ROWS = 1 };
    template <int T, int NV, int R>
    __device__ __forceinline__ void make(float (&)[R][NV][8], int, int) const
    {
    }
};

struct gelu {
    enum { ROWS = 1 };
    template <int T, int NV, int R>
    __device__ __forceinline__ void make(float (&v)[R][NV][8], int, int) const
    {
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int j = 0; j < NV; j++)
#pragma unroll
                for (int k = 0; k < 8; k++) v[r][j][k] = gelu_tanh(v[r][j][k]);
    }
};

/* (x - mean) * rstd * (ONE + w) + b, w and b of type P; P void: without them. */
template <typename P, int ONE> struct layernorm {
    enum { ROWS = 2 };
    const P *w, *b;
    float eps;
    template <int T, int NV, int R>
    __device__ __forceinline__ void make(float (&v)[R][NV][8], int nv, int d) const
    {
        __shared__ float shared[2][R][T / 32];
        float mean[R], rstd[R];
#pragma unroll
        for (int r = 0; r < R; r++) {
            mean[r] = 0;
#pragma unroll
            for (int j = 0; j < NV; j++) {
                const float(&f)[8] = v[r][j]; /* zeros where there is nothing */
                mean[r] += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
            }
        }
        block_sums<T / 32>(mean, shared[0]);
#pragma unroll
        for (int r = 0; r < R; r++) {
            mean[r] /= (float)d;
            rstd[r] = 0;
#pragma unroll
            for (int j = 0; j < NV; j++)
                if (j * T + (int)threadIdx.x < nv)
#pragma unroll
                    for (int k = 0; k < 8; k++)
                        rstd[r] += (v[r][j][k] - mean[r]) * (v[r][j][k] - mean[r]);
        }
        block_sums<T / 32>(rstd, shared[1]);
#pragma unroll
        for (int r = 0; r < R; r++) rstd[r] = 1.0f / sqrtf(rstd[r] / (float)d + eps);
#pragma unroll
        for (int j = 0; j < NV; j++) {
            const int i = j * T + (int)threadIdx.x;
            if (i >= nv) continue;
            float wf[8], bf[8];
            if constexpr (!std::is_void<P>::value) {
                load(wf, w + i * 8);
                load(bf, b + i * 8);
            }
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    v[r][j][k] = (v[r][j][k] - mean[r]) * rstd[r];
                    if constexpr (!std::is_void<P>::value)
                        v[r][j][k] = v[r][j][k] * (ONE + wf[k]) + bf[k];
                }
        }
    }
};

template <int T, int NV, int R, class F>
__global__ void __launch_bounds__(T)
    held_kernel(uint8_t *y, float *scale, const bf16 *x, int64_t x_pitch, int64_t rows, int d, F f)
{
    __shared__ uint32_t shared[R][T / 32];
    const int64_t row = (int64_t)blockIdx.x * R;
    const int nv = d / 8;
    uint4 raw[R][NV];
    float v[R][NV][8];
    uint32_t most[R];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int j = 0; j < NV; j++) {
            const int i = j * T + (int)threadIdx.x;
            raw[r][j] = make_uint4(0, 0, 0, 0);
            if (i < nv && row + r < rows)
                raw[r][j] = *(const uint4 *)(x + (row + r) * x_pitch + i * 8);
        }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int j = 0; j < NV; j++) unpack8(v[r][j], raw[r][j]);
    f.template make<T>(v, nv, d);
#pragma unroll
    for (int r = 0; r < R; r++) {
        most[r] = 0;
#pragma unroll
        for (int j = 0; j < NV; j++)
            if (j * T + (int)threadIdx.x < nv)
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const uint32_t m = magnitude(v[r][j][k]);
                    most[r] = m > most[r] ? m : most[r];
                }
    }
    block_most<T / 32>(most, shared);
#pragma unroll
    for (int r = 0; r < R; r++) {
        float s, by;
        if (row + r >= rows) continue;
        scales_of(most[r], &s, &by);
        if (threadIdx.x == 0) scale[row + r] = s;
#pragma unroll
        for (int j = 0; j < NV; j++) {
            const int i = j * T + (int)threadIdx.x;
            if (i < nv) *(uint2 *)(y + (row + r) * d + i * 8) = codes8(v[r][j], by);
        }
    }
}

/* ---- any row ---- */

enum what { AS_IT_IS, GELU, NORMED, NORMED_WITH };

/* One number of a row; ONE + w in a LayerNorm. */
struct one_of {
    what kind;
    columns w, b;
    float one, eps, mean, rstd;
    __device__ __forceinline__ float operator()(float x, int64_t c) const
    {
        switch (kind) {
        case AS_IT_IS: return x;
        case GELU: return gelu_tanh(x);
        default: break;
        }
        const float f = (x - mean) * rstd;
        return kind == NORMED ? f : f * (one + at(w, c)) + at(b, c);
    }
};

template <class T>
__global__ void __launch_bounds__(PLAIN_THREADS)
    plain_eight_kernel(uint8_t *y, float *scale, const T *x, int64_t x_pitch, int64_t d, one_of f)
{
    __shared__ float sums[2][1][PLAIN_WARPS];
    __shared__ uint32_t shared[1][PLAIN_WARPS];
    uint32_t most[1] = {0};
    float s, by;
    x += (int64_t)blockIdx.x * x_pitch;
    y += (int64_t)blockIdx.x * d;
    if (f.kind >= NORMED) {
        f.mean = row_sum(x, d, 0, true, sums[0]) / (float)d;
        f.rstd = 1.0f / sqrtf(row_sum(x, d, f.mean, false, sums[1]) / (float)d + f.eps);
    }
    for (int64_t c = threadIdx.x; c < d; c += PLAIN_THREADS) {
        const uint32_t m = magnitude(f(to_float(x[c]), c));
        most[0] = m > most[0] ? m : most[0];
    }
    block_most<PLAIN_WARPS>(most, shared);
    scales_of(most[0], &s, &by);
    if (threadIdx.x == 0) scale[blockIdx.x] = s;
    for (int64_t c = threadIdx.x; c < d; c += PLAIN_THREADS)
        y[c] = code_of(f(to_float(x[c]), c) * by);
}

/* ---- which kernel ---- */

template <int T, int NV, class F>
void launch_held(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, F f)
{
    const int64_t rows = x->shape[0], d = x->shape[1];
    const bool many = rows >= 8 * (int64_t)sl_cuda_of(ctx)->sms;
    const auto go = [&](auto r) {
        constexpr int R = decltype(r)::value;
        held_kernel<T, NV, R><<<blocks_for(rows, R), T, 0, ctx->stream>>>(
            (uint8_t *)y->codes.data, (float *)y->scale.data, (const bf16 *)x->data, x->pitch, rows,
            (int)d, f);
    };
    if (F::ROWS > 1 && many) go(std::integral_constant<int, F::ROWS>());
    else go(std::integral_constant<int, 1>());
}

/* Rows of bf16 that registers hold; false: they do not. WIDE: rows of a feed-forward, too. */
template <bool WIDE, class F>
bool make_held(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, F f)
{
    const int64_t d = x->shape[1];
    if (x->dtype != SL_BF16 || d % 8 || !is_aligned16(x->data) || (uintptr_t)y->codes.data % 8 ||
        (x->shape[0] > 1 && x->pitch % 8))
        return false;
    switch ((d / 8 + ROW_THREADS - 1) / ROW_THREADS) {
    case 1: launch_held<ROW_THREADS, 1>(ctx, y, x, f); return true;
    case 2: launch_held<ROW_THREADS, 2>(ctx, y, x, f); return true;
    case 3: launch_held<ROW_THREADS, 3>(ctx, y, x, f); return true;
    case 4: launch_held<ROW_THREADS, 4>(ctx, y, x, f); return true;
    case 5: launch_held<ROW_THREADS, 5>(ctx, y, x, f); return true;
    default: break;
    }
    if constexpr (WIDE) switch ((d / 8 + WIDE_THREADS - 1) / WIDE_THREADS) {
        case 3: launch_held<WIDE_THREADS, 3>(ctx, y, x, f); return true;
        case 4: launch_held<WIDE_THREADS, 4>(ctx, y, x, f); return true;
        case 5: launch_held<WIDE_THREADS, 5>(ctx, y, x, f); return true;
        case 6: launch_held<WIDE_THREADS, 6>(ctx, y, x, f); return true;
        case MOST_VECTORS: launch_held<WIDE_THREADS, MOST_VECTORS>(ctx, y, x, f); return true;
        default: break;
        }
    return false;
}

void make_plain(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, const one_of &f)
{
    const unsigned rows = (unsigned)x->shape[0];
    uint8_t *codes = (uint8_t *)y->codes.data;
    float *scale = (float *)y->scale.data;
    if (x->dtype == SL_F32)
        plain_eight_kernel<<<rows, PLAIN_THREADS, 0, ctx->stream>>>(
            codes, scale, (const float *)x->data, x->pitch, x->shape[1], f);
    else
        plain_eight_kernel<<<rows, PLAIN_THREADS, 0, ctx->stream>>>(
            codes, scale, (const bf16 *)x->data, x->pitch, x->shape[1], f);
}

template <typename P, int ONE>
bool norm_held(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
               const sl_tensor *b, float eps)
{
    return make_held<false>(
        ctx, y, x,
        layernorm<P, ONE>{(const P *)(w ? w->data : NULL), (const P *)(b ? b->data : NULL), eps});
}

void norm(sl_ctx *ctx, const char *name, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
          const sl_tensor *b, int one, float eps)
{
    const bool fit = w && w->dtype == b->dtype && is_aligned16(w->data, b->data);
    bool done = false;
    if (!x->shape[0]) return;
    if (!w) done = norm_held<void, 0>(ctx, y, x, w, b, eps);
    else if (fit && w->dtype == SL_F32)
        done = one ? norm_held<float, 1>(ctx, y, x, w, b, eps)
                   : norm_held<float, 0>(ctx, y, x, w, b, eps);
    else if (fit && !one) done = norm_held<bf16, 0>(ctx, y, x, w, b, eps);
    if (!done)
        make_plain(ctx, y, x,
                   {w ? NORMED_WITH : NORMED, columns_of(w), columns_of(b), (float)one, eps, 0, 0});
    SL_LAUNCHED(ctx, name);
}

} // namespace

void sl_cuda_quantise_rows(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    if (!x->shape[0]) return;
    if (!make_held<true>(ctx, y, x, as_it_is{})) make_plain(ctx, y, x, {AS_IT_IS});
    SL_LAUNCHED(ctx, "quantise_rows");
}

void sl_cuda_gelu_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x)
{
    if (!x->shape[0]) return;
    if (!make_held<true>(ctx, y, x, gelu{})) make_plain(ctx, y, x, {GELU});
    SL_LAUNCHED(ctx, "gelu_eight");
}

void sl_cuda_layernorm_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
                             const sl_tensor *b, float eps)
{
    norm(ctx, "layernorm_eight", y, x, w, b, 0, eps);
}

void sl_cuda_layernorm_modulate_eight(sl_ctx *ctx, const sl_eight *y, const sl_tensor *x,
                                      const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    norm(ctx, "layernorm_modulate_eight", y, x, scale, shift, 1, eps);
}

/* ---- products ---- */

static sl_cuda_product product_of(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x,
                                  const sl_eight *w, const sl_tensor *b)
{
    sl_cuda_product g = {};
    g.m = x->codes.shape[0], g.n = w->codes.shape[0], g.k = x->codes.shape[1];
    g.whole = sl_cuda_whole_rows(ctx);
    g.a = x->codes.data, g.b = w->codes.data, g.c = y->data;
    g.lda = g.ldb = g.k, g.ldc = y->pitch;
    g.batch = 1, g.alpha = 1;
    g.in = SL_E4M3, g.out = SL_BF16;
    g.fast = !ctx->float32_sums;
    g.scale_a = (const float *)x->scale.data, g.scale_b = (const float *)w->scale.data;
    g.bias = b ? b->data : NULL;
    g.bias_f32 = b && b->dtype == SL_F32;
    g.bias_any = g.bias_f32 || (b && !is_aligned16(b->data));
    return g;
}

static size_t sixteens(int64_t floats)
{
    return ((size_t)floats * sizeof(float) + 15) / 16 * 16;
}

/* Scales that begin anywhere (of a piece of a rank's rows), at `copy`, which is aligned. */
static const float *aligned_scales(sl_ctx *ctx, float *copy, const float *scale, int64_t n)
{
    if (is_aligned16(scale)) return scale;
    sl_cuda_ok(ctx,
               cudaMemcpyAsync(copy, scale, (size_t)n * sizeof *scale, cudaMemcpyDeviceToDevice,
                               ctx->stream),
               "scales of rows");
    return copy;
}

void sl_cuda_linear_eight(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x, const sl_eight *w,
                          const sl_tensor *b)
{
    sl_cuda_product g = product_of(ctx, y, x, w, b);
    if (!is_aligned16(g.scale_a, g.scale_b)) {
        char *copy = (char *)sl_cuda_scratch(ctx, sixteens(g.m) + sixteens(g.n));
        if (!copy) return;
        g.scale_a = aligned_scales(ctx, (float *)copy, g.scale_a, g.m);
        g.scale_b = aligned_scales(ctx, (float *)(copy + sixteens(g.m)), g.scale_b, g.n);
    }
    sl_cuda_multiply(ctx, &g);
}

/* to[n] = gate[n] * scale[n], and bias[n] = gate[n] * b[n], rounded to bf16. */
static __global__ void __launch_bounds__(256)
    gated_scales_kernel(float *to, const float *scale, bf16 *bias, columns b,
                        const float *__restrict__ gate, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    to[i] = gate[i] * scale[i];
    if (b.data) bias[i] = __float2bfloat16_rn(gate[i] * at(b, i));
}

/* The gate goes into a copy of w's scales, and of the bias: whatever the number of rows. */
bool sl_cuda_linear_add_eight(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y,
                              const sl_eight *a, const sl_eight *w, const sl_tensor *b,
                              const sl_tensor *gate)
{
    sl_cuda_product g = product_of(ctx, x, a, w, b);
    (void)y;
    g.adds = true;
    if (!g.m || !g.n) return true;
    /* scales of rows, of columns, the bias */
    char *work = (char *)sl_cuda_scratch(ctx, sixteens(g.m) + 2 * sixteens(g.n));
    if (!work) return true;
    g.scale_a = aligned_scales(ctx, (float *)work, g.scale_a, g.m);
    work += sixteens(g.m);
    if (!gate) {
        g.scale_b = aligned_scales(ctx, (float *)work, g.scale_b, g.n);
        return sl_cuda_multiply(ctx, &g);
    }
    float *gated = (float *)work;
    bf16 *bias = (bf16 *)(work + sixteens(g.n));
    gated_scales_kernel<<<blocks_for(g.n, 256), 256, 0, ctx->stream>>>(
        gated, g.scale_b, bias, columns_of(b), (const float *)gate->data, g.n);
    if (!SL_LAUNCHED(ctx, "scales of a gated branch")) return true;
    g.scale_b = gated;
    g.bias = b ? bias : NULL;
    g.bias_any = g.bias_f32 = false;
    return sl_cuda_multiply(ctx, &g);
}
