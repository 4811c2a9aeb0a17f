/* gemm.cu - matrix products: cublasLt with plans kept by shape, and kernels of our own
 * for a handful of rows and for what cublasLt declines.
 *
 * cublasLt sees matrices by columns, so a row-major c = a b^T is asked for as c^T = b
 * a^T: its "A" is our b (a weight), its "B" our a. The library's first choice is taken,
 * so that a job that another process goes on with gives the same bits. With
 * SLUICE_AUTOTUNE=1 a product of 1e11 operations or more is timed once with each
 * algorithm of the short list that sums along k in one piece, on the call's own buffers;
 * another than the first must be 2 % faster to be taken.
 *
 * SHARES. The first choice depends on the number of rows. Where these are a share of more
 * (ctx's whole_rows), all that is chosen by rows is chosen for the whole: few rows or many, a
 * gate within the weights or behind the product, and cublasLt's algorithm, which is its first
 * suggestion for all rows that sums along k in one piece and that it also takes for the share's
 * rows. An algorithm's tiles sum a row alike wherever it lies, so a row has the same bits in
 * shares of any size; alone on a GPU a job's products are those that cublasLt finds best.
 * Suggestions are asked for with the alignment that every row has, since a share may begin at
 * any. If cublasLt took none of its suggestions for the share's rows, the first for these would
 * be taken, and could have other bits. Algorithms that were timed (SLUICE_AUTOTUNE=1, on a share
 * with its own rows) may be other ones on each rank.
 * IN 8 BITS a and b are e4m3 with a scale a row of each, which cublasLt multiplies the sums by
 * (compute capability 9.0). Unless ctx asks for float32_sums they stay in the tensor cores (fast
 * accumulation), which keep some 13 bits of the sum so far: beside codes of four bits that costs
 * nothing where a sum does not grow far beyond what is added (BENCHMARKS.md, "Sums of products in 8
 * bits"). The rules above hold likewise.
 * The plain kernel takes what cublasLt declines only up to MOST_PLAIN operations: a
 * transformer's product would take seconds there, so it fails instead, with cublasLt's status.
 * SLUICE_GEMM_PIN=0 chooses by a share's own rows, to see what a forward would gain
 * (sluice bench dit); tests/bench_gemm.c has both, product by product. */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

enum { ALGORITHMS = 16, TIMED_RUNS = 5, FEW_ROWS = 8, TILE = 16 };
static const double TIMED_FROM = 1e11, MOST_PLAIN = 5e10; /* operations */
/* float32 sums of a product whose activation cublasLt does not have */
static const size_t PIECE_BYTES = (size_t)128 << 20;

/* ---- plans ---- */

/* What decides which algorithm may run; compared as bytes, so zeroed before it is filled. */
struct gemm_key {
    int64_t m, n, k, whole, lda, ldb, ldc, step_a, step_b, step_c;
    int batch, across, gelu, bias, in, out;
    unsigned align_a, align_b, align_c;
    int adds, fast;
};

struct gemm_plan {
    gemm_key key;
    bool plain;         /* cublasLt has nothing for it: plain_kernel */
    cublasStatus_t why; /* what it said then */
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo;
};

struct sl_cuda_gemms {
    gemm_plan *plans;
    int count, room;
    bool apart; /* SLUICE_GEMM_PIN=0 */
};

static sl_cuda_gemms *gemms_of(sl_ctx *ctx)
{
    sl_cuda *c = sl_cuda_of(ctx);
    if (!c->gemms) {
        const char *pin = getenv("SLUICE_GEMM_PIN");
        c->gemms = new sl_cuda_gemms();
        c->gemms->apart = pin && !strcmp(pin, "0");
    }
    return c->gemms;
}

int64_t sl_cuda_whole_rows(sl_ctx *ctx)
{
    return gemms_of(ctx)->apart ? 0 : ctx->whole_rows;
}

static void plan_clear(gemm_plan *p)
{
    if (p->op) cublasLtMatmulDescDestroy(p->op);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->c) cublasLtMatrixLayoutDestroy(p->c);
    p->op = NULL;
    p->a = p->b = p->c = NULL;
}

void sl_cuda_gemms_free(sl_cuda_gemms *g)
{
    if (!g) return;
    for (int i = 0; i < g->count; i++) plan_clear(&g->plans[i]);
    free(g->plans);
    delete g;
}

/* Of the first matrix, and of the others of a batch where `step` elements put them at no
 * multiple of 16 bytes; of a share every row's, and as if it were of a batch, which may be
 * a single matrix on another rank. */
static unsigned alignment(const sl_cuda_product *g, const void *p, int64_t row, int64_t step,
                          sl_dtype type)
{
    const uint64_t size = sl_dtype_size(type),
                   bytes = g->batch > 1 || g->whole ? (uint64_t)step * size : 0,
                   rows = g->whole ? (uint64_t)row * size : 0,
                   all = (uint64_t)(uintptr_t)p | (bytes % 16 ? bytes : 0) | rows;
    unsigned a = 256;
    while (all % a) a /= 2;
    return a;
}

static cudaDataType_t cuda_type(sl_dtype t)
{
    return t == SL_F32 ? CUDA_R_32F : t == SL_E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
}

static gemm_key key_of(const sl_cuda_product *g)
{
    gemm_key k;
    memset(&k, 0, sizeof k);
    k.m = g->m, k.n = g->n, k.k = g->k, k.whole = g->whole;
    k.lda = g->lda, k.ldb = g->ldb, k.ldc = g->ldc;
    k.batch = g->batch;
    if (g->batch > 1) k.step_a = g->step_a, k.step_b = g->step_b, k.step_c = g->step_c;
    k.adds = g->adds, k.fast = g->fast;
    k.across = g->across, k.gelu = g->gelu, k.bias = g->bias ? 1 + g->bias_any : 0, k.in = g->in,
    k.out = g->out;
    k.align_a = alignment(g, g->a, g->lda, g->step_a, g->in);
    k.align_b = alignment(g, g->b, 0, g->step_b, g->in);
    k.align_c = alignment(g, g->c, g->ldc, g->step_c, g->out);
    return k;
}

static cublasStatus_t layout(cublasLtMatrixLayout_t *out, sl_dtype type, int64_t rows, int64_t cols,
                             int64_t ld, int batch, int64_t step)
{
    cublasStatus_t s =
        cublasLtMatrixLayoutCreate(out, cuda_type(type), (uint64_t)rows, (uint64_t)cols, ld);
    if (s || batch == 1) return s;
    int32_t count = batch;
    if ((s = cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                              sizeof count)))
        return s;
    return cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                            &step, sizeof step);
}

/* the pitch of a matrix of one row may be anything */
static int64_t at_least(int64_t ld, int64_t row)
{
    return ld > row ? ld : row;
}

/* cublasLt's "A" is our b. */
static cublasStatus_t use_scales(gemm_plan *p, const sl_cuda_product *g)
{
    cublasStatus_t s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                                      &g->scale_b, sizeof g->scale_b);
    if (s) return s;
    return cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &g->scale_a,
                                          sizeof g->scale_a);
}

static cublasStatus_t describe_scales(gemm_plan *p, const sl_cuda_product *g)
{
    const int32_t each_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const int8_t fast = g->fast;
    cublasStatus_t s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast,
                                            sizeof fast)))
        return s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &each_row,
                                            sizeof each_row)))
        return s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &each_row,
                                            sizeof each_row)))
        return s;
    return use_scales(p, g);
}

static cublasStatus_t describe(gemm_plan *p, const sl_cuda_product *g)
{
    cublasOperation_t turned = CUBLAS_OP_T, straight = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue =
        g->gelu   ? g->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU
        : g->bias ? CUBLASLT_EPILOGUE_BIAS
                  : CUBLASLT_EPILOGUE_DEFAULT;
    cudaDataType_t bias_type = cuda_type(g->out);
    cublasStatus_t s;
    if ((s = cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F))) return s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA,
                                            g->across ? &straight : &turned, sizeof turned)))
        return s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSB, &straight,
                                            sizeof straight)))
        return s;
    if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                            sizeof epilogue)))
        return s;
    if (g->bias) {
        if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                                &bias_type, sizeof bias_type)))
            return s;
        if ((s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias,
                                                sizeof g->bias)))
            return s;
    }
    if (g->in == SL_E4M3 && (s = describe_scales(p, g))) return s;
    s = g->across ? layout(&p->a, g->in, g->n, g->k, at_least(g->ldb, g->n), g->batch, g->step_b)
                  : layout(&p->a, g->in, g->k, g->n, at_least(g->ldb, g->k), g->batch, g->step_b);
    if (s) return s;
    if ((s = layout(&p->b, g->in, g->k, g->m, at_least(g->lda, g->k), g->batch, g->step_a)))
        return s;
    return layout(&p->c, g->out, g->n, g->m, at_least(g->ldc, g->n), g->batch, g->step_c);
}

static cublasStatus_t run(sl_ctx *ctx, gemm_plan *p, const sl_cuda_product *g,
                          const cublasLtMatmulAlgo_t *algo)
{
    sl_cuda *c = sl_cuda_of(ctx);
    const float beta = g->adds ? 1 : 0;
    if (g->bias) {
        cublasStatus_t s = cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                          &g->bias, sizeof g->bias);
        if (s) return s;
    }
    if (g->in == SL_E4M3) {
        cublasStatus_t s = use_scales(p, g);
        if (s) return s;
    }
    return cublasLtMatmul(c->lt, p->op, &g->alpha, g->b, p->a, g->a, p->b, &beta, g->c, p->c, g->c,
                          p->c, algo, c->workspace, c->workspace_bytes, ctx->stream);
}

bool sl_cuda_may_time(sl_ctx *ctx)
{
    const char *set = getenv("SLUICE_AUTOTUNE");
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (!set || strcmp(set, "1")) return false;
    if (cudaStreamIsCapturing(ctx->stream, &capture) == cudaSuccess)
        return capture == cudaStreamCaptureStatusNone;
    cudaGetLastError();
    return false;
}

static int parts_of_k(const cublasLtMatmulAlgo_t *algo)
{
    int32_t parts = 1;
    size_t written = 0;
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                         sizeof parts, &written);
    return parts;
}

/* Index of the algorithm to keep. */
static int fastest(sl_ctx *ctx, gemm_plan *p, const sl_cuda_product *g,
                   const cublasLtMatmulHeuristicResult_t *list, int n)
{
    cudaEvent_t from = NULL, to = NULL;
    float best = 0;
    int chosen = 0;
    if (!sl_cuda_ok(ctx, cudaEventCreate(&from), "timing a product") ||
        !sl_cuda_ok(ctx, cudaEventCreate(&to), "timing a product"))
        n = 0;
    for (int i = 0; i < n; i++) {
        float ms = 0;
        if (list[i].state != CUBLAS_STATUS_SUCCESS || (i && parts_of_k(&list[i].algo) > 1))
            continue;
        if (run(ctx, p, g, &list[i].algo)) continue; /* the first run also loads the kernel */
        cudaEventRecord(from, ctx->stream);
        cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
        for (int r = 0; r < TIMED_RUNS && !s; r++) s = run(ctx, p, g, &list[i].algo);
        cudaEventRecord(to, ctx->stream);
        if (!sl_cuda_ok(ctx, cudaEventSynchronize(to), "timing a product")) break;
        if (s || cudaEventElapsedTime(&ms, from, to) != cudaSuccess) continue;
        if (best == 0 || ms < best * (chosen == 0 ? 0.98f : 1)) best = ms, chosen = i;
    }
    if (from) cudaEventDestroy(from);
    if (to) cudaEventDestroy(to);
    return chosen;
}

/* cublasLt's suggestions for the product that p describes, the best first: how many. p->why
 * becomes what it said. */
static int suggested(sl_ctx *ctx, gemm_plan *p, const gemm_key *key, int most,
                     cublasLtMatmulHeuristicResult_t list[ALGORITHMS])
{
    sl_cuda *c = sl_cuda_of(ctx);
    cublasLtMatmulPreference_t pref = NULL;
    const uint32_t in_one_piece = CUBLASLT_REDUCTION_SCHEME_NONE;
    int n = 0, kept = 0;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&pref);
#define PREFER(what, value)                                                                        \
    s = s ? s                                                                                      \
          : cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_##what, &(value),      \
                                                 sizeof(value))
    PREFER(MAX_WORKSPACE_BYTES, c->workspace_bytes);
    PREFER(MIN_ALIGNMENT_A_BYTES, key->align_b);
    PREFER(MIN_ALIGNMENT_B_BYTES, key->align_a);
    PREFER(MIN_ALIGNMENT_C_BYTES, key->align_c);
    PREFER(MIN_ALIGNMENT_D_BYTES, key->align_c);
    if (key->whole) PREFER(REDUCTION_SCHEME_MASK, in_one_piece);
#undef PREFER
    if (!s)
        s = cublasLtMatmulAlgoGetHeuristic(c->lt, p->op, p->a, p->b, p->c, p->c, pref, most, list,
                                           &n);
    if (pref) cublasLtMatmulPreferenceDestroy(pref);
    p->why = s;
    for (int i = 0; i < n && !s; i++)
        if (list[i].state == CUBLAS_STATUS_SUCCESS &&
            (!key->whole || parts_of_k(&list[i].algo) <= 1))
            list[kept++] = list[i];
    return kept;
}

/* Those of n suggestions that cublasLt takes for the product that p describes. */
static int taken(sl_ctx *ctx, const gemm_plan *p, cublasLtMatmulHeuristicResult_t *list, int n)
{
    sl_cuda *c = sl_cuda_of(ctx);
    int kept = 0;
    for (int i = 0; i < n; i++) {
        cublasLtMatmulHeuristicResult_t found = {};
        if (!cublasLtMatmulAlgoCheck(c->lt, p->op, p->a, p->b, p->c, p->c, &list[i].algo, &found) &&
            found.workspaceSize <= c->workspace_bytes)
            list[kept++] = list[i];
    }
    return kept;
}

/* False: eight bits whose rows do not begin at multiples of 16 bytes, as cublasLt wants them. It
 * does not decline all of them: rows of one column (1000 x 1 x 512, on an H200) came out
 * infinite. */
static bool is_in_sixteens(const sl_cuda_product *g, const gemm_key *k)
{
    if (g->in != SL_E4M3) return true;
    return g->k % 16 == 0 && g->lda % 16 == 0 && g->ldb % 16 == 0 && g->n % 8 == 0 &&
           g->ldc % 8 == 0 && k->align_a >= 16 && k->align_b >= 16 && k->align_c >= 16;
}

/* Fill `p` for this product; cublasLt having nothing is no error but a plain plan. */
static void plan_make(sl_ctx *ctx, gemm_plan *p, const sl_cuda_product *g)
{
    cublasLtMatmulHeuristicResult_t list[ALGORITHMS];
    sl_cuda_product all = *g; /* which the algorithm is chosen for */
    gemm_plan choice;
    int n = 0;
    if (g->whole) all.m = g->whole, all.batch = 1;
    const bool other = all.m != g->m || all.batch != g->batch,
               timed =
                   2.0 * (double)all.m * (double)g->n * (double)g->k * all.batch >= TIMED_FROM &&
                   !g->adds && sl_cuda_may_time(ctx);
    const int most = timed || g->whole ? ALGORITHMS : 1;
    memset(p, 0, sizeof *p);
    memset(&choice, 0, sizeof choice);
    p->key = key_of(g);
    /* biases that are not aligned are plain_kernel's */
    p->why = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!g->bias_any && is_in_sixteens(g, &p->key) && !(p->why = describe(p, g))) {
        if (!other) n = suggested(ctx, p, &p->key, most, list);
        else if (!describe(&choice, &all))
            n = taken(ctx, p, list, suggested(ctx, &choice, &p->key, most, list));
        if (other && n < 1) n = suggested(ctx, p, &p->key, most, list);
    }
    plan_clear(&choice);
    if (n < 1) {
        plan_clear(p);
        p->plain = true;
        return;
    }
    p->algo = list[timed && n > 1 ? fastest(ctx, p, g, list, n) : 0].algo;
}

/* ---- kernels ---- */

__device__ __forceinline__ float activated(float x, int kind)
{
    switch (kind) {
    case SL_ACT_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case SL_ACT_GELU_ERF: return 0.5f * x * (1 + erff(x * 0.7071067812f));
    case SL_ACT_SILU: return x / (1 + expf(-x));
    default: return x;
    }
}

__device__ __forceinline__ float number(float x)
{
    return x;
}
__device__ __forceinline__ float number(bf16 x)
{
    return __bfloat162float(x);
}
__device__ __forceinline__ float number(__nv_fp8_e4m3 x)
{
    return (float)x;
}
__device__ __forceinline__ void put(float *to, float x)
{
    *to = x;
}
__device__ __forceinline__ void put(bf16 *to, float x)
{
    *to = __float2bfloat16_rn(x);
}
__device__ __forceinline__ float vector_at(const void *v, bool f32, int64_t i)
{
    return !v ? 0 : f32 ? ((const float *)v)[i] : __bfloat162float(((const bf16 *)v)[i]);
}

/* Any product, any alignment: a TILE x TILE piece of c a block, one element a thread. x:
 * rows of c, y: columns, z: the batch. */
template <class T, class R>
static __global__ void __launch_bounds__(TILE *TILE)
    plain_kernel(const T *a, const T *b, R *c, int64_t m, int64_t n, int64_t k, int64_t lda,
                 int64_t b_n, int64_t b_k, int64_t ldc, int64_t step_a, int64_t step_b,
                 int64_t step_c, float alpha, const float *scale_a, const float *scale_b,
                 const void *bias, bool bias_f32, int kind)
{
    __shared__ float as[TILE][TILE + 1], bs[TILE][TILE + 1];
    int tx = threadIdx.x % TILE, ty = threadIdx.x / TILE;
    int64_t row0 = (int64_t)blockIdx.x * TILE, col0 = (int64_t)blockIdx.y * TILE, row = row0 + ty,
            col = col0 + tx;
    a += blockIdx.z * step_a, b += blockIdx.z * step_b, c += blockIdx.z * step_c;
    float sum = 0;
    for (int64_t k0 = 0; k0 < k; k0 += TILE) {
        as[ty][tx] = row < m && k0 + tx < k ? number(a[row * lda + k0 + tx]) : 0;
        bs[ty][tx] =
            col0 + ty < n && k0 + tx < k ? number(b[(col0 + ty) * b_n + (k0 + tx) * b_k]) : 0;
        __syncthreads();
        for (int i = 0; i < TILE; i++) sum = fmaf(as[ty][i], bs[tx][i], sum);
        __syncthreads();
    }
    if (row >= m || col >= n) return;
    if (scale_a) sum = sum * scale_a[row] * scale_b[col];
    put(&c[row * ldc + col], activated(alpha * sum + vector_at(bias, bias_f32, col), kind));
}

template <class T, class R> static void plain(sl_ctx *ctx, const sl_cuda_product *g)
{
    dim3 grid((unsigned)((g->m + TILE - 1) / TILE), (unsigned)((g->n + TILE - 1) / TILE),
              (unsigned)g->batch);
    plain_kernel<<<grid, TILE * TILE, 0, ctx->stream>>>(
        (const T *)g->a, (const T *)g->b, (R *)g->c, g->m, g->n, g->k, g->lda,
        g->across ? 1 : g->ldb, g->across ? g->ldb : 1, g->ldc, g->step_a, g->step_b, g->step_c,
        g->alpha, g->scale_a, g->scale_b, g->bias, g->bias_f32 || g->out == SL_F32,
        g->gelu ? SL_ACT_GELU_TANH : SL_ACT_NONE);
    SL_LAUNCHED(ctx, "a product that cublasLt declined");
}

/* y = act(sums + b), rounded once. y may be the sums. A thread an element. */
template <class R>
static __global__ void finish_kernel(R *y, int64_t ldy, const float *sums, int64_t ld, int64_t m,
                                     int n, const void *b, bool b_f32, int kind)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m * n) return;
    int64_t row = i / n, col = i % n;
    put(&y[row * ldy + col], activated(sums[row * ld + col] + vector_at(b, b_f32, col), kind));
}

/* The weights of one row of w and the same stretch of a row of x: EACH elements, one
 * 16-byte load if WIDE. */
template <class T, bool WIDE> struct stretch;
template <> struct stretch<float, true> {
    enum { EACH = 4 };
    float v[EACH];
    __device__ __forceinline__ explicit stretch(const float *p)
    {
        float4 f = *(const float4 *)p;
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    }
};
template <> struct stretch<bf16, true> {
    enum { EACH = 8 };
    float v[EACH];
    __device__ __forceinline__ explicit stretch(const bf16 *p)
    {
        uint4 u = *(const uint4 *)p;
        const unsigned w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[2 * i] = __uint_as_float(w[i] << 16);
            v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    }
};
template <class T> struct stretch<T, false> {
    enum { EACH = 1 };
    float v[EACH];
    __device__ __forceinline__ explicit stretch(const T *p)
    {
        v[0] = number(*p);
    }
};

/* y[m,n] for m <= ROWS rows: a warp takes one row of w, its lanes stretches of it side by
 * side, and every row of x with it. Bound by reading w once. */
template <class T, int ROWS, bool WIDE>
static __global__ void __launch_bounds__(128)
    few_rows_kernel(T *y, int64_t ldy, const T *x, int64_t ldx, const T *w, int m, int64_t n,
                    int64_t k, const void *b, bool b_f32, int kind)
{
    typedef stretch<T, WIDE> piece;
    const int lane = threadIdx.x % 32;
    const int64_t col = (int64_t)blockIdx.x * 4 + threadIdx.x / 32;
    if (col >= n) return;
    const T *row = w + col * k;
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0;
#pragma unroll(ROWS == 1 ? 4 : 2)
    for (int64_t i = lane * piece::EACH; i < k; i += 32 * piece::EACH) {
        const piece a(row + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const piece v(x + (r < m ? r : 0) * ldx + i);
#pragma unroll
            for (int e = 0; e < piece::EACH; e++) sum[r] = fmaf(a.v[e], v.v[e], sum[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int d = 16; d; d /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], d);
        if (lane == 0 && r < m)
            put(&y[r * ldy + col], activated(sum[r] + vector_at(b, b_f32, col), kind));
    }
}

/* ---- a product ---- */

static gemm_plan *plan_of(sl_ctx *ctx, const sl_cuda_product *g)
{
    sl_cuda_gemms *all = gemms_of(ctx);
    gemm_key key = key_of(g);
    for (int i = 0; i < all->count; i++)
        if (!memcmp(&all->plans[i].key, &key, sizeof key)) return &all->plans[i];
    if (all->count == all->room) {
        int room = all->room ? 2 * all->room : 32;
        gemm_plan *more = (gemm_plan *)realloc(all->plans, (size_t)room * sizeof *more);
        if (!more) {
            sl_ctx_fail(ctx, SL_NOMEM, "linear: no memory for %d plans of products", room);
            return NULL;
        }
        all->plans = more;
        all->room = room;
    }
    gemm_plan *p = &all->plans[all->count];
    plan_make(ctx, p, g);
    if (ctx->err.code) {
        plan_clear(p);
        return NULL;
    }
    all->count++;
    return p;
}

bool sl_cuda_multiply(sl_ctx *ctx, const sl_cuda_product *g)
{
    if (g->m < 1 || g->n < 1 || ctx->err.code) return true;
    gemm_plan *p = plan_of(ctx, g);
    if (!p) return true;
    if (!p->plain) {
        cublasStatus_t s = run(ctx, p, g, &p->algo);
        if (s != CUBLAS_STATUS_NOT_SUPPORTED || !g->adds)
            return sl_cuda_lt_ok(ctx, s, "matrix product"), true;
        plan_clear(p);
        p->plain = true;
    }
    if (g->adds) return false;
    if (g->in == SL_E4M3 && 2.0 * (double)g->m * (double)g->n * (double)g->k > MOST_PLAIN)
        sl_ctx_fail(ctx, SL_CUDA,
                    "a product in 8 bits, %lld rows of %lld to %lld%s: cublasLt %zu has no kernel "
                    "for it (%s; on compute capability %d.%d)",
                    (long long)g->m, (long long)g->k, (long long)g->n,
                    g->bias_any ? ", a bias that is F32 or not aligned" : "", cublasLtGetVersion(),
                    cublasLtGetStatusName(p->why), sl_cuda_of(ctx)->sm / 10,
                    sl_cuda_of(ctx)->sm % 10);
    else if (g->in == SL_E4M3) plain<__nv_fp8_e4m3, bf16>(ctx, g);
    else if (g->in == SL_F32) plain<float, float>(ctx, g);
    else if (g->out == SL_F32) plain<bf16, float>(ctx, g);
    else plain<bf16, bf16>(ctx, g);
    return true;
}

/* ---- linear ---- */

/* One linear layer: the arguments of sl_linear. */
struct layer {
    const sl_tensor *y, *x, *w, *b;
    int kind;
    int64_t m, n, k;
    int64_t whole; /* 0, or m is a share of so many rows */
};

static layer layer_of(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                      const sl_tensor *b, int kind)
{
    return {y, x, w, b, kind, x->shape[0], w->shape[0], x->shape[1], sl_cuda_whole_rows(ctx)};
}

/* The rows that decide how a layer is computed. */
static int64_t rows_of(const layer *l)
{
    return l->whole ? l->whole : l->m;
}

template <class T, int ROWS, bool WIDE> static void launch_few(sl_ctx *ctx, const layer *l)
{
    few_rows_kernel<T, ROWS, WIDE><<<(unsigned)((l->n + 3) / 4), 128, 0, ctx->stream>>>(
        (T *)l->y->data, l->y->pitch, (const T *)l->x->data, l->x->pitch, (const T *)l->w->data,
        (int)l->m, l->n, l->k, l->b ? l->b->data : NULL, l->b && l->b->dtype == SL_F32, l->kind);
    SL_LAUNCHED(ctx, "linear of a few rows");
}

template <class T, bool WIDE> static void few_rows(sl_ctx *ctx, const layer *l)
{
    if (l->m == 1) launch_few<T, 1, WIDE>(ctx, l);
    else if (l->m == 2) launch_few<T, 2, WIDE>(ctx, l);
    else if (l->m <= 4) launch_few<T, 4, WIDE>(ctx, l);
    else launch_few<T, FEW_ROWS, WIDE>(ctx, l);
}

template <class T> static void few_rows_either(sl_ctx *ctx, const layer *l)
{
    const int64_t each = 16 / (int64_t)sizeof(T);
    bool wide = l->k % each == 0 && (l->m == 1 || l->x->pitch % each == 0) &&
                (uintptr_t)l->x->data % 16 == 0 && (uintptr_t)l->w->data % 16 == 0;
    if (wide) few_rows<T, true>(ctx, l);
    else few_rows<T, false>(ctx, l);
}

static sl_cuda_product product_of(const layer *l)
{
    sl_cuda_product g = {};
    g.m = l->m, g.n = l->n, g.k = l->k, g.whole = l->whole;
    g.a = l->x->data, g.b = l->w->data, g.c = l->y->data;
    g.lda = l->x->pitch, g.ldb = l->k, g.ldc = l->y->pitch;
    g.batch = 1, g.alpha = 1;
    g.in = g.out = l->x->dtype;
    return g;
}

template <class R>
static void finish(sl_ctx *ctx, const layer *l, R *y, const float *sums, int64_t ld, int64_t rows)
{
    finish_kernel<<<(unsigned)((rows * l->n + 255) / 256), 256, 0, ctx->stream>>>(
        y, l->y->pitch, sums, ld, rows, (int)l->n, l->b ? l->b->data : NULL,
        l->b && l->b->dtype == SL_F32, l->kind);
    SL_LAUNCHED(ctx, "activation of a linear layer");
}

/* bf16 with an activation or a bias that cublasLt's epilogue does not take: the sums go
 * to scratch in F32, so that there is one rounding. */
static void in_pieces(sl_ctx *ctx, const layer *l)
{
    int64_t most = (int64_t)(PIECE_BYTES / sizeof(float)) / l->n, rows = l->m < most ? l->m
                                                                         : most > 0  ? most
                                                                                     : 1;
    float *sums = (float *)sl_cuda_scratch(ctx, (size_t)(rows * l->n) * sizeof *sums);
    for (int64_t at = 0; sums && at < l->m; at += rows) {
        sl_cuda_product g = product_of(l);
        g.m = l->m - at < rows ? l->m - at : rows;
        g.a = (const bf16 *)l->x->data + at * l->x->pitch;
        g.c = sums, g.ldc = l->n, g.out = SL_F32;
        sl_cuda_multiply(ctx, &g);
        if (ctx->err.code) return;
        finish(ctx, l, (bf16 *)l->y->data + at * l->y->pitch, sums, l->n, g.m);
    }
}

void sl_cuda_linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                    const sl_tensor *b, sl_activation activation)
{
    layer l = layer_of(ctx, y, x, w, b, (int)activation);
    bool f32 = x->dtype == SL_F32;
    if (!l.m || !l.n) return;
    if (rows_of(&l) <= FEW_ROWS) {
        if (f32) few_rows_either<float>(ctx, &l);
        else few_rows_either<bf16>(ctx, &l);
        return;
    }
    if (f32) {
        sl_cuda_product g = product_of(&l);
        sl_cuda_multiply(ctx, &g);
        if (!ctx->err.code && (b || activation != SL_ACT_NONE))
            finish(ctx, &l, (float *)y->data, (const float *)y->data, y->pitch, l.m);
        return;
    }
    bool fused = activation == SL_ACT_NONE || activation == SL_ACT_GELU_TANH;
    if (fused && (!b || (b->dtype == SL_BF16 && (uintptr_t)b->data % 16 == 0))) {
        sl_cuda_product g = product_of(&l);
        g.gelu = activation == SL_ACT_GELU_TANH;
        g.bias = b ? b->data : NULL;
        sl_cuda_multiply(ctx, &g);
    } else in_pieces(ctx, &l);
}

/* to[n, k] = gate[n] * w[n, k] and bias[n] = gate[n] * b[n], each rounded to bf16: x: a
 * row, a thread eight columns at a time. */
static __global__ void __launch_bounds__(256)
    gated_weight_kernel(bf16 *to, const bf16 *w, int64_t k, bf16 *bias, const void *b, bool b_f32,
                        const float *gate)
{
    const int64_t row = blockIdx.x;
    const float g = gate[row];
    to += row * k, w += row * k;
    for (int64_t i = 8 * (int64_t)threadIdx.x; i < k; i += 8 * blockDim.x) {
        const stretch<bf16, true> from(w + i);
        __align__(16) bf16 eight[8];
#pragma unroll
        for (int e = 0; e < 8; e++) eight[e] = __float2bfloat16_rn(g * from.v[e]);
        *(uint4 *)(to + i) = *(const uint4 *)eight;
    }
    if (b && threadIdx.x == 0) bias[row] = __float2bfloat16_rn(g * vector_at(b, b_f32, row));
}

/* cublasLt has no bf16 product with a vector of alphas, so the gate goes into the
 * weights, whose copy is rounded once where the branch was: as far from the exact sum.
 * Worth it where rows are many: the copy moves 4 n k bytes, a gated addition 6 m n. */
bool sl_cuda_linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                        const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    layer l = layer_of(ctx, x, a, w, b, SL_ACT_NONE);
    if (a->dtype != SL_BF16 || !l.m || !l.n || rows_of(&l) <= FEW_ROWS) return false;
    sl_cuda_product g = product_of(&l);
    g.adds = true;
    if (!gate) {
        if (b && (b->dtype != SL_BF16 || (uintptr_t)b->data % 16)) return false;
        g.bias = b ? b->data : NULL;
        return sl_cuda_multiply(ctx, &g);
    }
    if (rows_of(&l) < 2 * l.k || l.k % 8 || (uintptr_t)w->data % 16 || (uintptr_t)y->data % 16)
        return false;
    bf16 *gated = (bf16 *)sl_cuda_scratch(ctx, (size_t)(l.n * l.k) * sizeof *gated);
    if (!gated) return true;
    gated_weight_kernel<<<(unsigned)l.n, 256, 0, ctx->stream>>>(
        gated, (const bf16 *)w->data, l.k, (bf16 *)y->data, b ? b->data : NULL,
        b && b->dtype == SL_F32, (const float *)gate->data);
    if (!SL_LAUNCHED(ctx, "weights of a gated branch")) return true;
    g.b = gated;
    if (b) g.bias = y->data;
    return sl_cuda_multiply(ctx, &g);
}
