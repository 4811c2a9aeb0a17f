/* norm.cu - LayerNorm, RMSNorm with and without rotary embedding, and the gated residual,
 * rows read once and kept in registers.
 *
 * A block of 128 threads takes R rows together. Thread i holds the vectors of 8 elements
 * i, i + 128, ... of each of them, so that a weight is fetched once for R rows and one
 * barrier serves R sums. All loads of a block are issued before the first is used: 20 KB
 * a block at d = 5120. R is 2, or 1 where two rows a block would leave multiprocessors
 * idle. Variances are sums of squared differences from the mean, as in the reference, not
 * differences of squares. What does not fit this (odd or unaligned rows, more than 5120
 * columns, weights of two dtypes, other head sizes, LayerNorm of F32 rows) takes the
 * plain kernels, which read a row two or three times. */
#include "kernels/cuda/rows.cuh"

/* y = (x - mean) * rstd * (ONE + w) + b with w and b of type P; P void: without them. */
template <int NV, int R, typename P, int ONE>
static __global__ void __launch_bounds__(ROW_THREADS, 6)
    layernorm_kernel(bf16 *y, const bf16 *x, const P *__restrict__ w, const P *__restrict__ b,
                     int64_t rows, int d, float eps)
{
    __shared__ float shared[2][R][ROW_WARPS];
    const int64_t row = (int64_t)blockIdx.x * R;
    const int nv = d / 8;
    uint4 v[R][NV];
    float mean[R], rstd[R];
    load_rows(v, x, d, row, rows, nv);
#pragma unroll
    for (int r = 0; r < R; r++) {
        mean[r] = 0;
#pragma unroll
        for (int j = 0; j < NV; j++) {
            float f[8];
            unpack8(f, v[r][j]); /* zeros where there is nothing */
            mean[r] += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
        }
    }
    block_sums<ROW_WARPS>(mean, shared[0]);
#pragma unroll
    for (int r = 0; r < R; r++) mean[r] /= (float)d;
    row_squares(rstd, v, mean, nv, shared[1]);
#pragma unroll
    for (int r = 0; r < R; r++) rstd[r] = 1.0f / sqrtf(rstd[r] / (float)d + eps);
#pragma unroll
    for (int j = 0; j < NV; j++) {
        int i = j * ROW_THREADS + (int)threadIdx.x;
        if (i >= nv) continue;
        float wf[8], bf[8];
        if constexpr (!std::is_void<P>::value) {
            load(wf, w + i * 8);
            load(bf, b + i * 8);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            float f[8];
            unpack8(f, v[r][j]);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                f[k] = (f[k] - mean[r]) * rstd[r];
                if constexpr (!std::is_void<P>::value) f[k] = f[k] * (ONE + wf[k]) + bf[k];
            }
            if (row + r < rows) *(uint4 *)(y + (row + r) * d + i * 8) = pack8(f);
        }
    }
}

/* Where an RMSNorm's vectors of 8 go: the i-th of a row. */
struct to_rows {
    bf16 *y;
    int64_t pitch;
    __device__ __forceinline__ void put(int64_t row, int i, const float (&f)[8]) const
    {
        *(uint4 *)(y + row * pitch + i * 8) = pack8(f);
    }
};

/* As codes of queries (attention_eight.cu), of the numbers rounded to bf16: 16 lanes have a head of
 * 128 columns. */
struct to_queries {
    uint8_t *codes;
    float *scale;
    int heads;
    float by; /* attention's scale and log2(e) */
    __device__ __forceinline__ void put(int64_t row, int i, const float (&f)[8]) const
    {
        const unsigned half = 0xffffu << (threadIdx.x & 16);
        float x[8];
        uint32_t m = __float_as_uint(TINY);
        unpack8(x, pack8(f));
#pragma unroll
        for (int k = 0; k < 8; k++) m = max(m, magnitude(x[k]));
#pragma unroll
        for (int k = 8; k; k /= 2) m = max(m, __shfl_xor_sync(half, m, k));
        const float most = __uint_as_float(m), times = 127 / most;
        *(uint2 *)(codes + (row * heads * 16 + i) * 8) = make_uint2(
            int_codes(x[0], x[1], x[2], x[3], times), int_codes(x[4], x[5], x[6], x[7], times));
        if (threadIdx.x % 16 == 0) scale[row * heads + i / 16] = most / 127 * by;
    }
};

/* y = x * rsqrt(mean(x^2) + eps) * w, then, where ROPE, the rotation of the pairs within
 * each head of `head` elements. With a head that divides 1024 a thread's columns are at
 * one place of their heads, so 4 cosines and 4 sines a row serve all its vectors. */
template <int NV, int R, typename P, bool ROPE, class TO>
static __global__ void __launch_bounds__(ROW_THREADS, 5)
    rmsnorm_kernel(TO y, const bf16 *x, const P *__restrict__ w, const float *__restrict__ cos,
                   const float *__restrict__ sin, int64_t x_pitch, int64_t rows, int d, int head,
                   float eps)
{
    __shared__ float shared[R][ROW_WARPS];
    const int64_t row = (int64_t)blockIdx.x * R;
    const int nv = d / 8, half = head / 2;
    uint4 v[R][NV];
    float c[R][4], s[R][4], zero[R], scale[R];
    load_rows(v, x, x_pitch, row, rows, nv);
#pragma unroll
    for (int r = 0; r < R; r++) {
        zero[r] = 0;
        if (ROPE && row + r < rows) {
            int64_t at = (row + r) * half + (int)threadIdx.x * 8 % head / 2;
            load(c[r], cos + at);
            load(s[r], sin + at);
        }
    }
    row_squares(scale, v, zero, nv, shared);
#pragma unroll
    for (int r = 0; r < R; r++) scale[r] = 1.0f / sqrtf(scale[r] / (float)d + eps);
#pragma unroll
    for (int j = 0; j < NV; j++) {
        int i = j * ROW_THREADS + (int)threadIdx.x;
        if (i >= nv) continue;
        float wf[8];
        load(wf, w + i * 8);
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (row + r >= rows) continue;
            float f[8];
            unpack8(f, v[r][j]);
#pragma unroll
            for (int k = 0; k < 8; k++) f[k] = f[k] * scale[r] * wf[k];
            if constexpr (ROPE)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float a = f[2 * k], b = f[2 * k + 1];
                    f[2 * k] = a * c[r][k] - b * s[r][k];
                    f[2 * k + 1] = a * s[r][k] + b * c[r][k];
                }
            y.put(row + r, i, f);
        }
    }
}

/* ---- any row ---- */

template <class T>
static __global__ void __launch_bounds__(PLAIN_THREADS)
    layernorm_plain_kernel(T *y, const T *x, columns w, columns b, int64_t d, float one, float eps)
{
    __shared__ float shared[2][1][PLAIN_WARPS];
    x += (int64_t)blockIdx.x * d;
    y += (int64_t)blockIdx.x * d;
    float mean = row_sum(x, d, 0, true, shared[0]) / (float)d;
    float rstd = 1.0f / sqrtf(row_sum(x, d, mean, false, shared[1]) / (float)d + eps);
    for (int64_t c = threadIdx.x; c < d; c += PLAIN_THREADS) {
        float f = (to_float(x[c]) - mean) * rstd;
        put_float(y + c, w.data ? f * (one + at(w, c)) + at(b, c) : f);
    }
}

/* cos NULL: no rotation. A thread takes pairs, so that y may be x; without rotation d may
 * be odd, and the last element is then half a pair. */
static __global__ void __launch_bounds__(PLAIN_THREADS)
    rmsnorm_plain_kernel(bf16 *y, const bf16 *x, columns w, const float *cos, const float *sin,
                         int64_t y_pitch, int64_t x_pitch, int64_t d, int64_t half, float eps)
{
    __shared__ float shared[1][PLAIN_WARPS];
    x += (int64_t)blockIdx.x * x_pitch;
    y += (int64_t)blockIdx.x * y_pitch;
    float scale = 1.0f / sqrtf(row_sum(x, d, 0, false, shared) / (float)d + eps);
    for (int64_t c = 2 * (int64_t)threadIdx.x; c < d; c += 2 * PLAIN_THREADS) {
        bool two = c + 1 < d;
        float a = to_float(x[c]) * scale * at(w, c),
              b = two ? to_float(x[c + 1]) * scale * at(w, c + 1) : 0;
        if (cos) {
            int64_t k = (int64_t)blockIdx.x * half + c / 2 % half;
            float p = a, q = b;
            a = p * cos[k] - q * sin[k];
            b = p * sin[k] + q * cos[k];
        }
        put_float(y + c, a);
        if (two) put_float(y + c + 1, b);
    }
}

/* ---- which kernel ---- */

/* Calls go(NV, R as constants) for a row of d elements. */
template <int N> struct constant {
    static constexpr int value = N;
};
template <typename F> static void with_vectors(sl_ctx *ctx, int64_t rows, int64_t d, F go)
{
    bool two = rows >= 8 * (int64_t)sl_cuda_of(ctx)->sms;
    switch ((d / 8 + ROW_THREADS - 1) / ROW_THREADS) {
#define CASE(n)                                                                                    \
    case n:                                                                                        \
        if (two) go(constant<n>(), constant<2>());                                                 \
        else go(constant<n>(), constant<1>());                                                     \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#undef CASE
    }
}

/* True: rows of d bf16 can be held in registers. */
static bool fits_in_registers(const sl_tensor *y, const sl_tensor *x)
{
    int64_t rows = x->shape[0], d = x->shape[1];
    return d % 8 == 0 && d <= 8 * ROW_THREADS * MAX_VECTORS && is_aligned16(y->data, x->data) &&
           (rows <= 1 || (y->pitch % 8 == 0 && x->pitch % 8 == 0));
}

template <typename P, int ONE>
static void layernorm_held(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                           const sl_tensor *b, float eps)
{
    int64_t rows = x->shape[0], d = x->shape[1];
    with_vectors(ctx, rows, d, [&](auto nv, auto r) {
        constexpr int NV = decltype(nv)::value, R = decltype(r)::value;
        layernorm_kernel<NV, R, P, ONE><<<blocks_for(rows, R), ROW_THREADS, 0, ctx->stream>>>(
            (bf16 *)y->data, (const bf16 *)x->data, (const P *)(w ? w->data : NULL),
            (const P *)(b ? b->data : NULL), rows, (int)d, eps);
    });
}

template <class T>
static void layernorm_plain(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                            const sl_tensor *b, int one, float eps)
{
    layernorm_plain_kernel<<<(unsigned)x->shape[0], PLAIN_THREADS, 0, ctx->stream>>>(
        (T *)y->data, (const T *)x->data, columns_of(w), columns_of(b), x->shape[1], (float)one,
        eps);
}

/* one: 1 adds it to w, 0 does not. */
static void layernorm(sl_ctx *ctx, const char *what, const sl_tensor *y, const sl_tensor *x,
                      const sl_tensor *w, const sl_tensor *b, int one, float eps)
{
    if (!x->shape[0]) return;
    if (x->dtype == SL_F32) layernorm_plain<float>(ctx, y, x, w, b, one, eps);
    else if (fits_in_registers(y, x) && !w) layernorm_held<void, 0>(ctx, y, x, w, b, eps);
    else if (!fits_in_registers(y, x) || w->dtype != b->dtype || !is_aligned16(w->data, b->data) ||
             (one && w->dtype != SL_F32))
        layernorm_plain<bf16>(ctx, y, x, w, b, one, eps);
    else if (one) layernorm_held<float, 1>(ctx, y, x, w, b, eps);
    else if (w->dtype == SL_F32) layernorm_held<float, 0>(ctx, y, x, w, b, eps);
    else layernorm_held<bf16, 0>(ctx, y, x, w, b, eps);
    SL_LAUNCHED(ctx, what);
}

void sl_cuda_layernorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                       const sl_tensor *b, float eps)
{
    layernorm(ctx, "layernorm", y, x, w, b, 0, eps);
}

void sl_cuda_layernorm_modulate(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                                const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    layernorm(ctx, "layernorm_modulate", y, x, scale, shift, 1, eps);
}

template <typename P, bool ROPE, class TO>
static void rmsnorm_held(sl_ctx *ctx, TO y, const sl_tensor *x, const sl_tensor *w,
                         const float *cos, const float *sin, int64_t head, float eps)
{
    int64_t rows = x->shape[0], d = x->shape[1];
    with_vectors(ctx, rows, d, [&](auto nv, auto r) {
        constexpr int NV = decltype(nv)::value, R = decltype(r)::value;
        rmsnorm_kernel<NV, R, P, ROPE><<<blocks_for(rows, R), ROW_THREADS, 0, ctx->stream>>>(
            y, (const bf16 *)x->data, (const P *)w->data, cos, sin, x->pitch, rows, (int)d,
            (int)head, eps);
    });
}

/* cos and sin NULL: no rotation. */
static void rmsnorm(sl_ctx *ctx, const char *what, const sl_tensor *y, const sl_tensor *x,
                    const sl_tensor *w, const float *cos, const float *sin, int64_t head, float eps)
{
    int64_t rows = x->shape[0], d = x->shape[1];
    const to_rows to = {(bf16 *)y->data, y->pitch};
    bool rope = cos != NULL, fits = fits_in_registers(y, x) && is_aligned16(w->data);
    if (!rows) return;
    if (rope) fits = fits && head % 8 == 0 && 8 * ROW_THREADS % head == 0 && is_aligned16(cos, sin);
    if (!fits)
        rmsnorm_plain_kernel<<<(unsigned)rows, PLAIN_THREADS, 0, ctx->stream>>>(
            (bf16 *)y->data, (const bf16 *)x->data, columns_of(w), cos, sin, y->pitch, x->pitch, d,
            head / 2, eps);
    else if (w->dtype == SL_F32)
        rope ? rmsnorm_held<float, true>(ctx, to, x, w, cos, sin, head, eps)
             : rmsnorm_held<float, false>(ctx, to, x, w, cos, sin, head, eps);
    else
        rope ? rmsnorm_held<bf16, true>(ctx, to, x, w, cos, sin, head, eps)
             : rmsnorm_held<bf16, false>(ctx, to, x, w, cos, sin, head, eps);
    SL_LAUNCHED(ctx, what);
}

void sl_cuda_rmsnorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                     float eps)
{
    rmsnorm(ctx, "rmsnorm", y, x, w, NULL, NULL, 2, eps);
}

void sl_cuda_rmsnorm_rope(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                          float eps, const sl_tensor *cos, const sl_tensor *sin, int heads)
{
    rmsnorm(ctx, "rmsnorm_rope", y, x, w, (const float *)cos->data, (const float *)sin->data,
            x->shape[1] / heads, eps);
}

bool sl_cuda_rmsnorm_rope_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *x,
                                  const sl_tensor *w, float eps, const sl_tensor *cos,
                                  const sl_tensor *sin, int heads, float scale)
{
    const int64_t head = x->shape[1] / heads;
    const to_queries to = {(uint8_t *)y->codes.data, (float *)y->scale.data, heads, scale * LOG2_E};
    const float *c = (const float *)cos->data, *s = (const float *)sin->data;
    if (head != 128 || !fits_in_registers(x, x) || !is_aligned16(w->data, c, s) ||
        (uintptr_t)y->codes.data % 8)
        return false;
    if (!x->shape[0]) return true;
    if (w->dtype == SL_F32) rmsnorm_held<float, true>(ctx, to, x, w, c, s, head, eps);
    else rmsnorm_held<bf16, true>(ctx, to, x, w, c, s, head, eps);
    SL_LAUNCHED(ctx, "rmsnorm_rope_queries");
    return true;
}

/* ---- gated residual ---- */

enum { GATED_ROWS = 4 };

/* x += y * gate: a thread has V columns of GATED_ROWS rows and reads the gate once.
 * Blocks: `across` for the columns, times groups of rows. */
template <int V>
static __global__ void __launch_bounds__(ROW_THREADS)
    gated_add_kernel(bf16 *x, const bf16 *y, const float *__restrict__ gate, int64_t rows,
                     int64_t d, unsigned across)
{
    int64_t row = (int64_t)(blockIdx.x / across) * GATED_ROWS,
            c = ((int64_t)(blockIdx.x % across) * ROW_THREADS + threadIdx.x) * V;
    float xf[GATED_ROWS][V], yf[GATED_ROWS][V], g[V];
    if (c >= d) return;
    load(g, gate + c);
#pragma unroll
    for (int r = 0; r < GATED_ROWS; r++)
        if (row + r < rows) {
            load(xf[r], x + (row + r) * d + c);
            load(yf[r], y + (row + r) * d + c);
        }
#pragma unroll
    for (int r = 0; r < GATED_ROWS; r++)
        if (row + r < rows) {
#pragma unroll
            for (int k = 0; k < V; k++) xf[r][k] += yf[r][k] * g[k];
            store(x + (row + r) * d + c, xf[r]);
        }
}

void sl_cuda_gated_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    int64_t rows = x->shape[0], d = x->shape[1];
    bool wide = d % 8 == 0 && is_aligned16(x->data, y->data, gate->data);
    unsigned across = blocks_for(wide ? d / 8 : d, ROW_THREADS),
             blocks = across * blocks_for(rows, GATED_ROWS);
    if (!rows) return;
    if (wide)
        gated_add_kernel<8><<<blocks, ROW_THREADS, 0, ctx->stream>>>(
            (bf16 *)x->data, (const bf16 *)y->data, (const float *)gate->data, rows, d, across);
    else
        gated_add_kernel<1><<<blocks, ROW_THREADS, 0, ctx->stream>>>(
            (bf16 *)x->data, (const bf16 *)y->data, (const float *)gate->data, rows, d, across);
    SL_LAUNCHED(ctx, "gated_add");
}
