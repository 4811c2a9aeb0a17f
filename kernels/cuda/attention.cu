/* attention.cu - softmax(q k^T scale + bias) v: cuDNN's fused kernels where they apply, three passes through scratch memory
 * elsewhere.
 *
 * FUSED: head widths 64 and 128 without a bias, all pitches and addresses multiples of 16 bytes. cuDNN is asked in two forms
 * (attention_plan.cu), its one SDPA operation and the graph of products, pointwise steps and reductions that older releases know; the first plan that
 * finalizes is kept, by shape. Both forms choose the same kernels (9.19, compute capability 9.0), compiled when first asked for:
 * about a second a shape.
 * LAST KEYS: cuDNN's Hopper kernel works on 128 keys at a time and is slower throughout when they do not come out even (40 heads
 * of 128 on an H100: 587 TFLOP/s at 75,600 keys, 637 at 48,384 = 378 x 128). So it does the whole tiles of long key lists and also
 * writes each row's log of its sum of exponentials; a kernel of ours then brings in the last keys, fewer than 128, in one pass
 * over q and o. From SPLIT_FROM keys on, compute capability 9.0 and later; SLUICE_ATTENTION_SPLIT=0 does without, =N: from N keys
 * on, anywhere.
 * FEW KEYS: on Hopper the last keys of heads of 128, and results that are to be added over at most 272 keys (the image's), are a
 * kernel of attention_few.cu; SLUICE_ATTENTION_FEW=0 does without.
 * GENERIC: everything else. Scores of some heads and queries in F32 (cublasLt), softmax in F32, weights rounded to bf16 as fused
 * kernels round them, the product with v (cublasLt). At most SCORE_BYTES of scratch. F32 q, k, v and o (CLIP) always go this way,
 * with weights in F32.
 * SLUICE_ATTENTION=generic, unified or composite keeps to one of the three. Where cuDNN has nothing, generic takes over and the
 * log says so once. */
#include "kernels/cuda/attention_few.cuh"
#include "kernels/cuda/attention_plan.cuh"
#include "kernels/cuda/cuda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_TILE = 128, SPLIT_FROM = 8192 };          /* keys */
static const size_t SCORE_BYTES = (size_t)256 << 20; /* scores and weights of the generic form */
/* Results on their way to be added. Of 40 heads of 128: 4,224 rows, 33 tiles, which fill 132 multiprocessors exactly 10 times. */
static const size_t ADDED_BYTES = (size_t)42 << 20;

/* ---- kernels ---------------------------------------------------------------------------------------------- */

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
template <class T> __device__ __forceinline__ void merge(float *top, float *sum, float other_top, float other_sum)
{
    float high = fmaxf(*top, other_top), down = high == -INFINITY ? 0 : high; /* -INFINITY: two empty parts, or NaN alone */
    *sum = *sum * exponential<T>(*top - down) + other_sum * exponential<T>(other_top - down);
    *top = high;
}

/* p = softmax(score + bias) of one row: x the query, y the head. bias: at the first query of this call, first head; its row of
 * one query starts one element before that of the query above it. Columns nk .. ld of p become zero. */
template <class T>
__global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_kernel(T *p, const float *score, int64_t ld, int nk, const float *bias, int64_t bias_head)
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
        float other_top = __shfl_xor_sync(0xffffffffu, top, d), other_sum = __shfl_xor_sync(0xffffffffu, sum, d);
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

/* What the last keys' kernel works on: q, o and stats of `nq` queries, k and v of the last `nk` keys, all heads. */
struct last_keys {
    const bf16 *q, *k, *v;
    bf16 *o; /* what the other keys gave */
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    const float *stats; /* [heads, nq]: log of the other keys' sum of exponentials */
    int nq, nk;         /* nk < KEY_TILE */
    float scale;        /* times log2(e): exponentials are of base 2 */
};

enum { LAST_WARPS = 8, LAST_ROWS = 16 * LAST_WARPS };
static const float LOG2_E = 1.4426950408889634f;

/* c += a b: 16 x 16 times 16 x 8, bf16 with float32 sums. Of lane 4 g + t: a rows g, g + 8, g, g + 8 at columns 2 t, 2 t + 1 (the
 * last two: 8 columns on); b rows 2 t, 2 t + 1 (second: 8 rows on) of column g; c columns 2 t, 2 t + 1 of row g, then of g + 8. */
__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Four 8 x 8 pieces turned: lanes 8 i .. 8 i + 7 give the rows of piece i; lane 4 g + t gets rows 2 t, 2 t + 1 of its column g. */
__device__ __forceinline__ void turned(unsigned (&r)[4], unsigned from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ unsigned two(float a, float b)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    unsigned u;
    memcpy(&u, &h, sizeof u);
    return u;
}

/* The share of eight results: o = o f + r of two rows' halves; acc as mma leaves it, part 0 for row g, 2 for row g + 8. */
__device__ __forceinline__ uint4 joined(uint4 o, const float (&acc)[4][4], int part, float of_o, float of_acc)
{
    unsigned u[4] = {o.x, o.y, o.z, o.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
        u[j] = two(__uint_as_float(u[j] << 16) * of_o + acc[j][part] * of_acc,
                   __uint_as_float(u[j] & 0xffff0000u) * of_o + acc[j][part + 1] * of_acc);
    return make_uint4(u[0], u[1], u[2], u[3]);
}

/* Where 16-byte piece `c` of key `r` lies in shared memory, in pieces: k is read 4 pieces of 8 rows at a time, v 1 piece of 8 rows,
 * both without bank conflicts. */
template <int D> __device__ __forceinline__ int k_place(int r, int c)
{
    return r * (D / 8) + (c ^ (r & 1) << 2);
}
template <int D> __device__ __forceinline__ int v_place(int r, int c)
{
    return r * (D / 8) + (c ^ (r & 7));
}

/* o of one head: softmax over all keys from o over the others, their statistics, and the last keys. A block keeps the head's last
 * keys and values in shared memory and goes through every gridDim.y-th LAST_ROWS queries, 16 a warp.
 * COLUMNS of a head are summed in an order that lets lane t own 8 neighbours of every 32: for q k^T, columns 8 t .. 8 t + 7 are the
 * lane's of two steps of mma, in q and k alike; for the result, columns 2 j, 2 j + 1 of those eight are its of the j-th tile, so
 * piece t of 32 columns of v is stored as word t of pieces 0 .. 3. */
template <int D, int STEPS> __global__ void __launch_bounds__(LAST_WARPS * 32, 2) last_keys_kernel(const last_keys a)
{
    extern __shared__ uint4 memory[];
    constexpr int PIECES = D / 8, GROUPS = D / 32, TILES = 2 * STEPS;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = blockIdx.x;
    uint4 *ks = memory;
    unsigned *vs = (unsigned *)(memory + STEPS * 16 * PIECES);
    for (int i = threadIdx.x; i < STEPS * 16 * PIECES; i += LAST_WARPS * 32) {
        const int r = i / PIECES, c = i % PIECES;
        uint4 k = make_uint4(0, 0, 0, 0), v = k;
        if (r < a.nk) {
            k = *(const uint4 *)(a.k + r * a.k_pitch + (int64_t)head * D + c * 8);
            v = *(const uint4 *)(a.v + r * a.v_pitch + (int64_t)head * D + c * 8);
        }
        ks[k_place<D>(r, c)] = k;
        const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) vs[v_place<D>(r, c / 4 * 4 + j) * 4 + c % 4] = w[j];
    }
    __syncthreads();
    const unsigned v_base = (unsigned)__cvta_generic_to_shared(vs);
    const int v_row = lane % 8 + lane / 8 % 2 * 8, v_piece = lane / 16; /* whose address this lane gives to `turned` */

    for (int first = blockIdx.y * LAST_ROWS + threadIdx.x / 32 * 16; first < a.nq; first += gridDim.y * LAST_ROWS) {
        const int row[2] = {first + g, first + g + 8};
        uint4 q[2][GROUPS], o[2][GROUPS];
        float s[TILES][4];
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < GROUPS; i++)
                q[h][i] = row[h] < a.nq ? *(const uint4 *)(a.q + row[h] * a.q_pitch + (int64_t)head * D + i * 32 + t * 8)
                                        : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
                const uint4 k = ks[k_place<D>(8 * j + g, 4 * i + t)];
                mma(s[j], q[0][i].x, q[1][i].x, q[0][i].y, q[1][i].y, k.x, k.y);
                mma(s[j], q[0][i].z, q[1][i].z, q[0][i].w, q[1][i].w, k.z, k.w);
            }
        }
        float top[2], of_o[2], of_acc[2];
        unsigned p[TILES][2]; /* the weights, rounded to bf16 as cuDNN rounds them */
#pragma unroll
        for (int h = 0; h < 2; h++) {
            of_o[h] = row[h] < a.nq ? a.stats[(int64_t)head * a.nq + row[h]] * LOG2_E : 0;
            top[h] = of_o[h];
            of_acc[h] = 0;
#pragma unroll
            for (int i = 0; i < GROUPS; i++)
                o[h][i] = row[h] < a.nq ? *(const uint4 *)(a.o + row[h] * a.o_pitch + (int64_t)head * D + i * 32 + t * 8)
                                        : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[j][e] = 8 * j + 8 <= 16 * (STEPS - 1) || 8 * j + 2 * t + e % 2 < a.nk ? s[j][e] * a.scale : -INFINITY;
                top[e / 2] = fmaxf(top[e / 2], s[j][e]);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
        }
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float x = exp2f(s[j][2 * h] - top[h]), y = exp2f(s[j][2 * h + 1] - top[h]); /* a NaN stays in the sum */
                of_acc[h] += x + y;
                p[j][h] = two(x, y);
            }
#pragma unroll
        for (int h = 0; h < 2; h++) { /* the sums of exponentials of both parts become the factors of both results */
            of_acc[h] += __shfl_xor_sync(0xffffffffu, of_acc[h], 1);
            of_acc[h] += __shfl_xor_sync(0xffffffffu, of_acc[h], 2);
            of_o[h] = exp2f(of_o[h] - top[h]);
            of_acc[h] = 1 / (of_o[h] + of_acc[h]);
            of_o[h] *= of_acc[h];
        }
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            float acc[4][4] = {};
#pragma unroll
            for (int n = 0; n < STEPS; n++)
#pragma unroll
                for (int j = 0; j < 4; j += 2) {
                    unsigned v[4];
                    turned(v, v_base + v_place<D>(16 * n + v_row, 4 * i + j + v_piece) * 16);
                    mma(acc[j], p[2 * n][0], p[2 * n][1], p[2 * n + 1][0], p[2 * n + 1][1], v[0], v[1]);
                    mma(acc[j + 1], p[2 * n][0], p[2 * n][1], p[2 * n + 1][0], p[2 * n + 1][1], v[2], v[3]);
                }
#pragma unroll
            for (int h = 0; h < 2; h++)
                if (row[h] < a.nq)
                    *(uint4 *)(a.o + row[h] * a.o_pitch + (int64_t)head * D + i * 32 + t * 8) =
                        joined(o[h][i], acc, 2 * h, of_o[h], of_acc[h]);
        }
    }
}

template <int D, int STEPS> static void launch_last_keys(sl_ctx *ctx, const last_keys *a, int heads)
{
    const int bytes = STEPS * 16 * D * 2 * (int)sizeof(bf16), tiles = (a->nq + LAST_ROWS - 1) / LAST_ROWS;
    int blocks = 2 * sl_cuda_of(ctx)->sms / heads; /* two a multiprocessor, all at once */
    if (blocks > tiles) blocks = tiles;
    if (blocks < 1) blocks = 1;
    if (!sl_cuda_ok(ctx, cudaFuncSetAttribute(last_keys_kernel<D, STEPS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                    "shared memory of attention's last keys"))
        return;
    last_keys_kernel<D, STEPS><<<dim3((unsigned)heads, (unsigned)blocks), LAST_WARPS * 32, (size_t)bytes, ctx->stream>>>(*a);
    SL_LAUNCHED(ctx, "attention's last keys");
}

template <int D> static void launch_last_keys(sl_ctx *ctx, const last_keys *a, int heads)
{
    switch ((a->nk + 15) / 16) {
    case 1: return launch_last_keys<D, 1>(ctx, a, heads);
    case 2: return launch_last_keys<D, 2>(ctx, a, heads);
    case 3: return launch_last_keys<D, 3>(ctx, a, heads);
    case 4: return launch_last_keys<D, 4>(ctx, a, heads);
    case 5: return launch_last_keys<D, 5>(ctx, a, heads);
    case 6: return launch_last_keys<D, 6>(ctx, a, heads);
    case 7: return launch_last_keys<D, 7>(ctx, a, heads);
    default: return launch_last_keys<D, 8>(ctx, a, heads);
    }
}

/* o += r in F32, rounded; r dense [rows, cols]. A thread eight columns of bf16, or one of either. */
__global__ void add_eights_kernel(bf16 *o, int64_t pitch, const bf16 *r, int64_t n8, int cols8)
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

__global__ void add_kernel(bf16 *o, int64_t pitch, const bf16 *r, int64_t n, int cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    bf16 *to = o + i / cols * pitch + i % cols;
    *to = __float2bfloat16_rn(__bfloat162float(*to) + __bfloat162float(r[i]));
}

__global__ void add_floats_kernel(float *o, int64_t pitch, const float *r, int64_t n, int cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) o[i / cols * pitch + i % cols] += r[i];
}

static bool even(const void *p, int64_t pitch)
{
    return (uintptr_t)p % 16 == 0 && pitch % 8 == 0;
}

static void add(sl_ctx *ctx, bf16 *o, int64_t pitch, const bf16 *r, int64_t rows, int64_t cols)
{
    int64_t n = rows * cols;
    if (even(o, pitch) && cols % 8 == 0)
        add_eights_kernel<<<(unsigned)((n / 8 + 255) / 256), 256, 0, ctx->stream>>>(o, pitch, r, n / 8, (int)(cols / 8));
    else add_kernel<<<(unsigned)((n + 255) / 256), 256, 0, ctx->stream>>>(o, pitch, r, n, (int)cols);
    SL_LAUNCHED(ctx, "adding attention's result");
}

static void add(sl_ctx *ctx, float *o, int64_t pitch, const float *r, int64_t rows, int64_t cols)
{
    int64_t n = rows * cols;
    add_floats_kernel<<<(unsigned)((n + 255) / 256), 256, 0, ctx->stream>>>(o, pitch, r, n, (int)cols);
    SL_LAUNCHED(ctx, "adding attention's result");
}

/* ---- the operation ----------------------------------------------------------------------------------------- */

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

/* Queries first .. first + n of heads head .. head + heads, to o (of that query and head). */
template <class T>
static void generic_piece(sl_ctx *ctx, const arguments<T> *a, int64_t head, int64_t heads, int64_t first, int64_t n, int64_t ld,
                          float *score, T *weight, T *o, int64_t o_pitch)
{
    const sl_dtype dtype = sizeof(T) == sizeof(float) ? SL_F32 : SL_BF16;
    sl_cuda_product s = {}, r = {};
    s.m = n, s.n = a->nk, s.k = a->d;
    s.a = a->q + first * a->q_pitch + head * a->d, s.lda = a->q_pitch, s.step_a = a->d;
    s.b = a->k + head * a->d, s.ldb = a->k_pitch, s.step_b = a->d;
    s.c = score, s.ldc = ld, s.step_c = n * ld;
    s.batch = (int)heads, s.in = dtype, s.out = SL_F32, s.alpha = a->scale;
    sl_cuda_multiply(ctx, &s);
    if (ctx->err.code) return;
    int64_t table = a->nq + a->nk - 1;
    softmax_kernel<<<dim3((unsigned)n, (unsigned)heads), SOFTMAX_THREADS, 0, ctx->stream>>>(
        weight, score, ld, (int)a->nk, a->bias ? a->bias + head * table + a->nq - 1 - first : NULL, table);
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
    int64_t ld = (a->nk + 7) / 8 * 8, row = ld * (int64_t)(sizeof(float) + sizeof(T)); /* bytes of a query of one head */
    int64_t heads = least(a->heads, (int64_t)SCORE_BYTES / (row * least(a->nq, 256)));
    if (heads < 1) heads = 1;
    int64_t n = least(a->nq, (int64_t)SCORE_BYTES / (row * heads));
    if (n > 64 && n < a->nq) n = n / 64 * 64;
    if (n < 1) n = 1;
    size_t scores = whole((size_t)(heads * n * ld) * sizeof(float)), weights = whole((size_t)(heads * n * ld) * sizeof(T));
    char *at = (char *)sl_cuda_scratch(ctx, scores + weights + (a->accumulate ? (size_t)(n * heads * a->d) * sizeof(T) : 0));
    if (!at) return;
    T *aside = (T *)(at + scores + weights);
    for (int64_t h = 0; h < a->heads; h += heads)
        for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
            int64_t hs = least(heads, a->heads - h), rows = least(n, a->nq - i);
            T *o = a->o + i * a->o_pitch + h * a->d;
            if (a->accumulate) {
                generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (T *)(at + scores), aside, hs * a->d);
                if (!ctx->err.code) add(ctx, o, a->o_pitch, aside, rows, hs * a->d);
            } else generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (T *)(at + scores), o, a->o_pitch);
        }
}

/* How many of the last keys go apart from the others. */
static int64_t keys_apart(const sl_ctx *ctx, const attention *a)
{
    const char *set = getenv("SLUICE_ATTENTION_SPLIT");
    const int64_t from = set ? atoll(set) : ((const sl_cuda *)ctx->device)->sm >= 90 ? SPLIT_FROM : 0;
    return from > 0 && a->nk >= from && a->nk > KEY_TILE ? a->nk % KEY_TILE : 0;
}

static void add_last_keys(sl_ctx *ctx, const attention *a, int64_t apart, const sl_attention_shape *s,
                          const sl_attention_data *data)
{
    const int64_t at = a->nk - apart;
    last_keys l = {(const bf16 *)data->q,
                   a->k + at * a->k_pitch,
                   a->v + at * a->v_pitch,
                   (bf16 *)data->o,
                   s->q_pitch,
                   s->k_pitch,
                   s->v_pitch,
                   s->o_pitch,
                   data->stats,
                   (int)s->nq,
                   (int)apart,
                   a->scale * LOG2_E};
    const sl_attention_few_call few = {l.q,       l.k,     l.v,   l.o,   l.q_pitch, l.k_pitch, l.v_pitch,
                                       l.o_pitch, l.stats, s->nq, apart, a->heads,  a->scale};
    if (a->d == 128 && sl_attention_few_can(sl_cuda_of(ctx), &few)) sl_attention_few(ctx, &few);
    else if (a->d == 128) launch_last_keys<128>(ctx, &l, (int)a->heads);
    else launch_last_keys<64>(ctx, &l, (int)a->heads);
}

/* cuDNN, and the generic form for the queries that it has no plan for. */
static void fused(sl_ctx *ctx, const attention *a)
{
    int64_t width = a->heads * a->d, n = a->nq, apart = keys_apart(ctx, a);
    size_t added = 0;
    if (a->accumulate) {
        int64_t most = (int64_t)ADDED_BYTES / (width * (int64_t)sizeof(bf16)) / 128 * 128;
        n = least(n, most < 128 ? 128 : most);
        added = whole((size_t)(n * width) * sizeof(bf16));
    }
    for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
        char *scratch = NULL;
        if ((added || apart) &&
            !(scratch = (char *)sl_cuda_scratch(ctx, added + (apart ? (size_t)(n * a->heads) * sizeof(float) : 0))))
            return;
        bf16 *aside = added ? (bf16 *)scratch : NULL;
        sl_attention_shape s;
        memset(&s, 0, sizeof s);
        s.nq = least(n, a->nq - i), s.nk = a->nk - apart, s.heads = a->heads, s.d = a->d, s.stats = apart > 0;
        s.q_pitch = a->q_pitch, s.k_pitch = a->k_pitch, s.v_pitch = a->v_pitch, s.o_pitch = aside ? width : a->o_pitch;
        sl_attention_data data = {a->q + i * a->q_pitch,
                                  a->k,
                                  a->v,
                                  aside ? aside : a->o + i * a->o_pitch,
                                  a->scale,
                                  apart ? (float *)(scratch + added) : NULL};
        cudnnBackendDescriptor_t plan;
        if (!sl_attention_plan(ctx, &s, &plan)) return;
        if (!plan && apart) { /* all keys together, then */
            apart = s.stats = 0, s.nk = a->nk, data.stats = NULL;
            if (!sl_attention_plan(ctx, &s, &plan)) return;
        }
        if (!plan) {
            attention rest = *a; /* what is done stays done */
            rest.q = (const bf16 *)data.q, rest.o = a->o + i * a->o_pitch, rest.nq = a->nq - i;
            generic(ctx, &rest);
            return;
        }
        if (!sl_cuda_dnn_ok(ctx, sl_attention_execute(ctx, plan, &data), "attention")) return;
        if (apart) add_last_keys(ctx, a, apart, &s, &data);
        if (aside && !ctx->err.code) add(ctx, a->o + i * a->o_pitch, a->o_pitch, aside, s.nq, width);
    }
}

template <class T>
static arguments<T> arguments_of(const sl_tensor *o, const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, int heads,
                                 float scale, const sl_tensor *bias, bool accumulate)
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

void sl_cuda_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, int heads,
                       float scale, const sl_tensor *bias, bool accumulate)
{
    if (!q->shape[0]) return;
    if (q->dtype == SL_F32) {
        arguments<float> f = arguments_of<float>(o, q, k, v, heads, scale, bias, accumulate);
        generic(ctx, &f);
        return;
    }
    attention a = arguments_of<bf16>(o, q, k, v, heads, scale, bias, accumulate);
    const char *set = getenv("SLUICE_ATTENTION");
    bool fits = (a.d == 64 || a.d == 128) && !bias && even(a.q, a.q_pitch) && even(a.k, a.k_pitch) && even(a.v, a.v_pitch) &&
                even(a.o, a.o_pitch);
    const sl_attention_few_call few = {a.q,       a.k,  a.v,  a.o,  a.q_pitch, a.k_pitch, a.v_pitch,
                                       a.o_pitch, NULL, a.nq, a.nk, a.heads,   a.scale};
    if (!fits || (set && !strcmp(set, "generic"))) generic(ctx, &a);
    else if (accumulate && a.d == 128 && !set && sl_attention_few_can(sl_cuda_of(ctx), &few)) sl_attention_few(ctx, &few);
    else fused(ctx, &a);
}
