/* data.cu - movement, conversion and elementwise arithmetic on the GPU. */
#include "kernels/cuda/device.cuh"

/* ---- zero and copy ---- */

void sl_cuda_zero(sl_ctx *ctx, const sl_tensor *y)
{
    if (sl_bytes(y))
        sl_cuda_ok(ctx, cudaMemsetAsync(y->data, 0, sl_bytes(y), ctx->stream),
                   "zero: cudaMemsetAsync");
}

/* Rows of `cols` units of type T, pitches in units: a move without conversion. */
template <typename T>
static __global__ void __launch_bounds__(MAP_THREADS)
    move_rows_kernel(T *y, const T *x, int64_t rows, int64_t cols, int64_t y_pitch, int64_t x_pitch)
{
    int64_t first = (int64_t)blockIdx.x * (MAP_THREADS * MAP_EACH) + threadIdx.x, n = rows * cols,
            to[MAP_EACH];
    T v[MAP_EACH];
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++) {
        int64_t i = first + u * MAP_THREADS, r, c;
        if (i >= n) continue;
        split(i, cols, &r, &c);
        v[u] = x[r * x_pitch + c];
        to[u] = r * y_pitch + c;
    }
#pragma unroll
    for (int u = 0; u < MAP_EACH; u++)
        if (first + u * MAP_THREADS < n) y[to[u]] = v[u];
}

template <typename T> static void move_rows(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t per = (int64_t)(sizeof(T) / sl_dtype_size(x->dtype)), rows = x->shape[0],
            cols = x->shape[1] / per;
    move_rows_kernel<<<blocks_for(rows * cols, MAP_THREADS * MAP_EACH), MAP_THREADS, 0,
                       ctx->stream>>>((T *)y->data, (const T *)x->data, rows, cols, y->pitch / per,
                                      x->pitch / per);
    SL_LAUNCHED(ctx, "copy of rows");
}

/* Rank 2, one dtype, at least one of the two pitched: in the widest units that addresses,
 * pitches and columns allow. */
static void move(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    size_t size = sl_dtype_size(x->dtype);
    uint64_t all =
        (uint64_t)(uintptr_t)y->data | (uint64_t)(uintptr_t)x->data | (uint64_t)x->shape[1] * size;
    if (x->shape[0] > 1) all |= (uint64_t)y->pitch * size | (uint64_t)x->pitch * size;
    if (all % 16 == 0) move_rows<uint4>(ctx, y, x);
    else if (all % 8 == 0) move_rows<uint2>(ctx, y, x);
    else if (all % 4 == 0) move_rows<uint32_t>(ctx, y, x);
    else if (all % 2 == 0) move_rows<uint16_t>(ctx, y, x);
    else move_rows<uint8_t>(ctx, y, x);
}

struct same_f {
    __device__ float operator()(float x) const
    {
        return x;
    }
};

/* Rows of `cols` vectors of V with a conversion, pitches in elements. */
template <int V, typename Y, typename X>
static __global__ void __launch_bounds__(MAP_THREADS)
    convert_rows_kernel(Y *y, const X *x, int64_t rows, int64_t cols, int64_t y_pitch,
                        int64_t x_pitch)
{
    int64_t i = (int64_t)blockIdx.x * MAP_THREADS + threadIdx.x, r, c;
    float v[V];
    if (i >= rows * cols) return;
    split(i, cols, &r, &c);
    load(v, x + r * x_pitch + c * V);
    store(y + r * y_pitch + c * V, v);
}

template <typename Y, typename X>
static void convert(sl_ctx *ctx, const sl_tensor *yt, const sl_tensor *xt)
{
    Y *y = (Y *)yt->data;
    const X *x = (const X *)xt->data;
    if (sl_is_dense(yt) && sl_is_dense(xt)) {
        map1(ctx, "copy with conversion", y, x, sl_count(xt), same_f());
        return;
    }
    int64_t rows = xt->shape[0], cols = xt->shape[1];
    if (is_aligned16(y, x) && cols % 8 == 0 && yt->pitch % 8 == 0 && xt->pitch % 8 == 0)
        convert_rows_kernel<8>
            <<<blocks_for(rows * (cols / 8), MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
                y, x, rows, cols / 8, yt->pitch, xt->pitch);
    else
        convert_rows_kernel<1>
            <<<blocks_for(rows * cols, MAP_THREADS), MAP_THREADS, 0, ctx->stream>>>(
                y, x, rows, cols, yt->pitch, xt->pitch);
    SL_LAUNCHED(ctx, "copy of rows with conversion");
}

template <typename Y> static void convert_to(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    if (x->dtype == SL_F32) convert<Y, float>(ctx, y, x);
    else if (x->dtype == SL_BF16) convert<Y, bf16>(ctx, y, x);
    else convert<Y, __half>(ctx, y, x);
}

void sl_cuda_copy(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    if (!sl_count(x) || (y->data == x->data && y->dtype == x->dtype)) return;
    if (y->dtype == x->dtype) {
        if (sl_is_dense(y) && sl_is_dense(x))
            sl_cuda_ok(ctx,
                       cudaMemcpyAsync(y->data, x->data, sl_bytes(x), cudaMemcpyDeviceToDevice,
                                       ctx->stream),
                       "copy: cudaMemcpyAsync");
        else move(ctx, y, x);
    } else if (y->dtype == SL_F32) {
        convert_to<float>(ctx, y, x);
    } else if (y->dtype == SL_BF16) {
        convert_to<bf16>(ctx, y, x);
    } else {
        convert_to<__half>(ctx, y, x);
    }
}

/* ---- elementwise ---- */

struct add_f {
    __device__ float operator()(float a, float b) const
    {
        return a + b;
    }
};
struct sub_f {
    __device__ float operator()(float a, float b) const
    {
        return a - b;
    }
};
struct geglu_f {
    __device__ float operator()(float a, float b) const
    {
        return gelu_tanh(a) * b;
    }
};
struct silu_f {
    __device__ float operator()(float x) const
    {
        return times_sigmoid(x, x);
    }
};
/* For results kept in float32. */
struct silu_exact_f {
    __device__ float operator()(float x) const
    {
        return x / (1.0f + expf(-x));
    }
};

template <typename Y, typename A, typename F>
static void pairs_of(sl_ctx *ctx, const char *what, const sl_tensor *y, const sl_tensor *a,
                     const sl_tensor *b, F f)
{
    if (b->dtype == SL_F32)
        map2(ctx, what, (Y *)y->data, (const A *)a->data, (const float *)b->data, sl_count(y), f);
    else map2(ctx, what, (Y *)y->data, (const A *)a->data, (const bf16 *)b->data, sl_count(y), f);
}

/* Each of the three is F32 or BF16. */
template <typename F>
static void pairs(sl_ctx *ctx, const char *what, const sl_tensor *y, const sl_tensor *a,
                  const sl_tensor *b, F f)
{
    if (y->dtype == SL_F32) {
        if (a->dtype == SL_F32) pairs_of<float, float>(ctx, what, y, a, b, f);
        else pairs_of<float, bf16>(ctx, what, y, a, b, f);
    } else {
        if (a->dtype == SL_F32) pairs_of<bf16, float>(ctx, what, y, a, b, f);
        else pairs_of<bf16, bf16>(ctx, what, y, a, b, f);
    }
}

void sl_cuda_add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    pairs(ctx, "add", y, a, b, add_f());
}

void sl_cuda_sub(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    pairs(ctx, "sub", y, a, b, sub_f());
}

void sl_cuda_silu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t n = sl_count(y);
    if (y->dtype == SL_F32) {
        if (x->dtype == SL_F32)
            map1(ctx, "silu", (float *)y->data, (const float *)x->data, n, silu_exact_f());
        else map1(ctx, "silu", (float *)y->data, (const bf16 *)x->data, n, silu_exact_f());
    } else {
        if (x->dtype == SL_F32)
            map1(ctx, "silu", (bf16 *)y->data, (const float *)x->data, n, silu_f());
        else map1(ctx, "silu", (bf16 *)y->data, (const bf16 *)x->data, n, silu_f());
    }
}

void sl_cuda_geglu(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    map2(ctx, "geglu", (bf16 *)y->data, (const bf16 *)a->data, (const bf16 *)b->data, sl_count(y),
         geglu_f());
}

/* ---- embedding ---- */

/* The ids travel by value with the launch: the caller's array is free the moment the call
 * returns, and nothing waits. */
enum { IDS = 512 };
struct embed_ids {
    int32_t id[IDS];
};

/* Block (i, j): row i, vectors j * threads and on. */
template <int V, typename T>
static __global__ void __launch_bounds__(MAP_THREADS)
    embed_kernel(bf16 *y, const T *table, const embed_ids ids, int64_t d)
{
    int64_t c = ((int64_t)blockIdx.y * MAP_THREADS + threadIdx.x) * V;
    float v[V];
    if (c >= d) return;
    load(v, table + (int64_t)ids.id[blockIdx.x] * d + c);
    store(y + (int64_t)blockIdx.x * d + c, v);
}

template <typename T>
static void embed(sl_ctx *ctx, const sl_tensor *y, const T *table, const int32_t *ids)
{
    int64_t n = y->shape[0], d = y->shape[1];
    bool wide = d % 8 == 0 && is_aligned16(y->data, table);
    unsigned across = blocks_for(wide ? d / 8 : d, MAP_THREADS);
    for (int64_t i = 0; i < n && d; i += IDS) {
        int64_t m = n - i < IDS ? n - i : IDS;
        embed_ids some;
        memcpy(some.id, ids + i, (size_t)m * sizeof *ids);
        dim3 grid((unsigned)m, across);
        bf16 *to = (bf16 *)y->data + i * d;
        if (wide) embed_kernel<8><<<grid, MAP_THREADS, 0, ctx->stream>>>(to, table, some, d);
        else embed_kernel<1><<<grid, MAP_THREADS, 0, ctx->stream>>>(to, table, some, d);
        if (!SL_LAUNCHED(ctx, "embed")) return;
    }
}

void sl_cuda_embed(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *table, const int32_t *ids)
{
    if (table->dtype == SL_F32) embed(ctx, y, (const float *)table->data, ids);
    else embed(ctx, y, (const bf16 *)table->data, ids);
}
