/* attention.cu - softmax(q k^T scale + bias) v: cuDNN's fused kernels where they apply, three passes through scratch memory
 * elsewhere.
 *
 * FUSED: head widths 64 and 128 without a bias, all pitches and addresses multiples of 16 bytes. cuDNN is asked in two forms,
 * its one SDPA operation and the graph of products, pointwise steps and reductions that older releases know; the first plan that
 * finalizes is kept, by shape. Both forms choose the same kernels (9.19, compute capability 9.0), compiled when first asked for:
 * about a second a shape.
 * GENERIC: everything else. Scores of some heads and queries in F32 (cublasLt), softmax in F32, weights rounded to bf16 as fused
 * kernels round them, the product with v (cublasLt). At most SCORE_BYTES of scratch.
 * SLUICE_ATTENTION=generic, unified or composite keeps to one of the three. Where cuDNN has nothing, generic takes over and the
 * log says so once. */
#include "kernels/cuda/cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "common/log.h"
}

enum { DESCRIPTORS = 96, CONFIGS = 16, FORMS = 2 };
enum { UID_Q = 1, UID_K, UID_V, UID_O, UID_SCALE, UID_VIRTUAL };
static const size_t SCORE_BYTES = (size_t)256 << 20; /* scores and weights of the generic form */
static const size_t ADDED_BYTES = (size_t)32 << 20;  /* results on their way to be added: they stay in the L2 cache */

/* ---- cuDNN descriptors ---------------------------------------------------------------------------------- */

/* What a plan is made of, kept as long as the plan. The first failure stops the rest; `step` says where. */
struct fused_graph {
    cudnnBackendDescriptor_t all[DESCRIPTORS];
    int count, tensors;
    cudnnStatus_t status;
    const char *step;
    cudnnBackendDescriptor_t configs[CONFIGS]; /* among `all` */
    int config_count;
};

struct fused_shape {
    int64_t nq, nk, heads, d, q_pitch, k_pitch, v_pitch, o_pitch;
};

static void graph_clear(fused_graph *g)
{
    while (g->count) cudnnBackendDestroyDescriptor(g->all[--g->count]);
}

static bool step(fused_graph *g, cudnnStatus_t s, const char *what)
{
    if (g->status == CUDNN_STATUS_SUCCESS && s != CUDNN_STATUS_SUCCESS) g->status = s, g->step = what;
    return g->status == CUDNN_STATUS_SUCCESS;
}

static cudnnBackendDescriptor_t make(fused_graph *g, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (g->status) return NULL;
    if (g->count == DESCRIPTORS) {
        step(g, CUDNN_STATUS_INTERNAL_ERROR, "counting descriptors");
        return NULL;
    }
    if (step(g, cudnnBackendCreateDescriptor(type, &d), "making a descriptor")) g->all[g->count++] = d;
    return d;
}

static void set(fused_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t n, const void *value, const char *what)
{
    if (!g->status) step(g, cudnnBackendSetAttribute(d, name, type, n, value), what);
}

static void set_descriptor(fused_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value, const char *what)
{
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value, what);
}

static void finalize(fused_graph *g, cudnnBackendDescriptor_t d, const char *what)
{
    if (!g->status) step(g, cudnnBackendFinalize(d), what);
}

/* ---- the two forms of the graph -------------------------------------------------------------------------- */

static cudnnBackendDescriptor_t tensor(fused_graph *g, int64_t uid, cudnnDataType_t type, const int64_t dim[4],
                                       const int64_t stride[4], bool is_virtual, bool by_value)
{
    cudnnBackendDescriptor_t t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t align = by_value ? 4 : 16;
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, "a tensor's type");
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim, "a tensor's extents");
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride, "a tensor's strides");
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid, "a tensor's number");
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align, "a tensor's alignment");
    if (is_virtual) set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual, "a virtual tensor");
    if (by_value) set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value, "a tensor by value");
    finalize(g, t, "a tensor");
    return t;
}

/* [1, heads, n, d] over rows of `pitch` elements; turned: [1, heads, d, n]. */
static cudnnBackendDescriptor_t rows(fused_graph *g, int64_t uid, const fused_shape *s, int64_t n, int64_t pitch, bool turned)
{
    int64_t dim[4] = {1, s->heads, turned ? s->d : n, turned ? n : s->d},
            stride[4] = {n * pitch, s->d, turned ? 1 : pitch, turned ? pitch : 1};
    return tensor(g, uid, CUDNN_DATA_BFLOAT16, dim, stride, false, false);
}

static cudnnBackendDescriptor_t scalar(fused_graph *g)
{
    static const int64_t one[4] = {1, 1, 1, 1};
    return tensor(g, UID_SCALE, CUDNN_DATA_FLOAT, one, one, false, true);
}

/* An intermediate [1, heads, nq, cols] that never reaches memory. */
static cudnnBackendDescriptor_t between(fused_graph *g, const fused_shape *s, int64_t cols, cudnnDataType_t type)
{
    int64_t dim[4] = {1, s->heads, s->nq, cols}, stride[4] = {s->heads * s->nq * cols, s->nq * cols, cols, 1};
    return tensor(g, UID_VIRTUAL + g->tensors++, type, dim, stride, true, false);
}

static cudnnBackendDescriptor_t product(fused_graph *g, cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b,
                                        cudnnBackendDescriptor_t c)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32, "a product's arithmetic");
    finalize(g, how, "a product's arithmetic");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a, "a product");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b, "a product");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c, "a product");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how, "a product");
    finalize(g, op, "a product");
    return op;
}

/* y = mode(x, b), element by element; b NULL: mode takes one argument. */
static cudnnBackendDescriptor_t pointwise(fused_graph *g, cudnnPointwiseMode_t mode, cudnnBackendDescriptor_t x,
                                          cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t y)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode, "a pointwise step's mode");
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32, "a pointwise step's arithmetic");
    finalize(g, how, "a pointwise step's mode");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how, "a pointwise step");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, "a pointwise step");
    if (b) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b, "a pointwise step");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, "a pointwise step");
    finalize(g, op, "a pointwise step");
    return op;
}

static cudnnBackendDescriptor_t reduction(fused_graph *g, cudnnReduceTensorOp_t mode, cudnnBackendDescriptor_t x,
                                          cudnnBackendDescriptor_t y)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32, "a reduction's arithmetic");
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode, "a reduction's mode");
    finalize(g, how, "a reduction's mode");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how, "a reduction");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, "a reduction");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, "a reduction");
    finalize(g, op, "a reduction");
    return op;
}

/* cuDNN's one operation (9.13 and later). Number of operations in ops. */
static int unified(fused_graph *g, const fused_shape *s, cudnnBackendDescriptor_t *ops)
{
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, rows(g, UID_Q, s, s->nq, s->q_pitch, false), "attention's q");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, rows(g, UID_K, s, s->nk, s->k_pitch, false), "attention's k");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, rows(g, UID_V, s, s->nk, s->v_pitch, false), "attention's v");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, rows(g, UID_O, s, s->nq, s->o_pitch, false), "attention's o");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scalar(g), "attention's scale");
    finalize(g, op, "attention");
    ops[0] = op;
    return 1;
}

/* The same as products, pointwise steps and reductions: s = scale (q k^T); m = max s; e = exp(s - m); l = sum e; p = e / l; o =
 * p v. cuDNN knows this pattern with the row statistics log l + m in it, needed or not. Source: cudnn-frontend,
 * CompositeSDPANode and CompositeSoftmaxNode. */
static int composite(fused_graph *g, const fused_shape *s, cudnnBackendDescriptor_t *ops)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t q = rows(g, UID_Q, s, s->nq, s->q_pitch, false), k = rows(g, UID_K, s, s->nk, s->k_pitch, true);
    cudnnBackendDescriptor_t v = rows(g, UID_V, s, s->nk, s->v_pitch, false), o = rows(g, UID_O, s, s->nq, s->o_pitch, false);
    cudnnBackendDescriptor_t score = between(g, s, s->nk, f32), scaled = between(g, s, s->nk, f32), top = between(g, s, 1, f32);
    cudnnBackendDescriptor_t below = between(g, s, s->nk, f32), e = between(g, s, s->nk, f32), sum = between(g, s, 1, f32);
    cudnnBackendDescriptor_t log = between(g, s, 1, f32), stats = between(g, s, 1, f32),
                             p = between(g, s, s->nk, CUDNN_DATA_BFLOAT16);
    int n = 0;
    ops[n++] = product(g, q, k, score);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_MUL, score, scalar(g), scaled);
    ops[n++] = reduction(g, CUDNN_REDUCE_TENSOR_MAX, scaled, top);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_SUB, scaled, top, below);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_EXP, below, NULL, e);
    ops[n++] = reduction(g, CUDNN_REDUCE_TENSOR_ADD, e, sum);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_LOG, sum, NULL, log);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_ADD, top, log, stats);
    ops[n++] = pointwise(g, CUDNN_POINTWISE_DIV, e, sum, p);
    ops[n++] = product(g, p, v, o);
    return n;
}

typedef int fused_form(fused_graph *, const fused_shape *, cudnnBackendDescriptor_t *);
static fused_form *const FORM[FORMS] = {unified, composite};
static const char *const FORM_NAME[FORMS] = {"unified", "composite"};

/* The graph of one form and the engine configurations that cuDNN's heuristics suggest for it, best first. `described` is NULL,
 * or a device to plan for that need not be there; else the handle's device counts, and a graph without either suits none. */
static void graph_make(fused_graph *g, fused_form *form, const fused_shape *s, cudnnHandle_t handle,
                       cudnnBackendDescriptor_t described)
{
    static const cudnnBackendHeurMode_t MODES[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    cudnnBackendDescriptor_t ops[16];
    memset(g, 0, sizeof *g);
    int n = form(g, s, ops);
    cudnnBackendDescriptor_t whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, ops, "the graph's operations");
    if (!described) set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, "the graph's handle");
    finalize(g, whole, "the graph");
    for (int m = 0; m < 2 && !g->status && !g->config_count; m++) {
        cudnnBackendDescriptor_t heur = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
        set_descriptor(g, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole, "the heuristics' graph");
        set(g, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &MODES[m], "the heuristics' mode");
        if (described) set_descriptor(g, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, described, "the heuristics' device");
        if (g->status) return;
        cudnnStatus_t s1 = cudnnBackendFinalize(heur);
        if (s1 != CUDNN_STATUS_SUCCESS) { /* this mode knows nothing; the last one's answer counts */
            if (m == 1) step(g, s1, "the heuristics");
            continue;
        }
        cudnnBackendDescriptor_t found[CONFIGS];
        int64_t count = 0;
        for (int i = 0; i < CONFIGS; i++) found[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        if (g->status) return;
        step(g,
             cudnnBackendGetAttribute(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, found),
             "the heuristics' results");
        for (int i = 0; i < count && i < CONFIGS && !g->status; i++) g->configs[g->config_count++] = found[i];
    }
    if (!g->config_count) step(g, CUDNN_STATUS_NOT_SUPPORTED, "the heuristics: no engine");
}

/* The first of the graph's configurations that finalizes into a plan and needs no more than `workspace` bytes; it lives among
 * g->all. */
static cudnnBackendDescriptor_t plan_make(fused_graph *g, cudnnHandle_t handle, cudnnBackendDescriptor_t described,
                                          size_t workspace)
{
    cudnnStatus_t last = CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < g->config_count && !g->status; i++) {
        int64_t bytes = 0, count = 0;
        cudnnBackendDescriptor_t plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        if (described) set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, described, "a plan's device");
        else set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, "a plan's handle");
        set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, g->configs[i], "a plan's engine");
        if (g->status) break;
        if ((last = cudnnBackendFinalize(plan))) continue;
        if ((last = cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &bytes)))
            continue;
        if ((size_t)bytes <= workspace) return plan;
        last = CUDNN_STATUS_NOT_SUPPORTED;
    }
    step(g, last, "the plan");
    return NULL;
}

/* ---- plans by shape -------------------------------------------------------------------------------------- */

struct attn_plan {
    fused_shape shape;
    int forced;                    /* the form that SLUICE_ATTENTION named, or -1 */
    cudnnBackendDescriptor_t plan; /* NULL: cuDNN has none, generic does it */
    fused_graph graph;             /* of `plan` */
};

struct sl_cuda_attns {
    attn_plan **plans;
    int count, room;
};

void sl_cuda_attns_free(sl_cuda_attns *a)
{
    if (!a) return;
    for (int i = 0; i < a->count; i++) {
        graph_clear(&a->plans[i]->graph);
        free(a->plans[i]);
    }
    free(a->plans);
    delete a;
}

/* Where the data of one run lie. */
struct fused_data {
    const void *q, *k, *v;
    void *o;
    float scale;
};

static cudnnStatus_t execute(sl_ctx *ctx, cudnnBackendDescriptor_t plan, const fused_data *data)
{
    sl_cuda *c = sl_cuda_of(ctx);
    int64_t ids[5] = {UID_Q, UID_K, UID_V, UID_O, UID_SCALE};
    float scale = data->scale;
    void *at[5] = {(void *)data->q, (void *)data->k, (void *)data->v, data->o, &scale};
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!s) s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 5, at);
    if (!s) s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 5, ids);
    if (!s) s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &c->workspace);
    if (!s) s = cudnnBackendFinalize(pack);
    if (!s) s = cudnnBackendExecute(c->dnn, plan, pack);
    if (pack) cudnnBackendDestroyDescriptor(pack);
    return s;
}

static int forced_form(void)
{
    const char *set = getenv("SLUICE_ATTENTION");
    for (int f = 0; set && f < FORMS; f++)
        if (!strcmp(set, FORM_NAME[f])) return f;
    return -1;
}

static void warn_once(const fused_shape *s, const char *why)
{
    static int said;
    if (__atomic_exchange_n(&said, 1, __ATOMIC_RELAXED)) return;
    sl_log(SL_LOG_WARN,
           "attention: cuDNN has no plan for %lld queries, %lld keys, %lld heads of %lld (%s): the slower generic form does it",
           (long long)s->nq, (long long)s->nk, (long long)s->heads, (long long)s->d, why);
}

/* Choose a plan for p->shape; without one, p->plan stays NULL. */
static void plan_choose(sl_ctx *ctx, attn_plan *p)
{
    sl_cuda *c = sl_cuda_of(ctx);
    char why[400] = "";
    for (int f = 0; f < FORMS; f++) {
        if (p->forced >= 0 && f != p->forced) continue;
        fused_graph *g = &p->graph;
        graph_make(g, FORM[f], &p->shape, c->dnn, NULL);
        if (!g->status && (p->plan = plan_make(g, c->dnn, NULL, c->workspace_bytes))) return;
        char more[128] = "";
        cudnnGetLastErrorString(more, sizeof more);
        size_t at = strlen(why);
        snprintf(why + at, sizeof why - at, "%s%s: %s: %s%s%s", at ? "; " : "", FORM_NAME[f], g->step,
                 cudnnGetErrorString(g->status), *more ? ": " : "", more);
        graph_clear(g);
    }
    warn_once(&p->shape, why);
}

static attn_plan *plan_of(sl_ctx *ctx, const fused_shape *s)
{
    sl_cuda *c = sl_cuda_of(ctx);
    if (!c->attns) c->attns = new sl_cuda_attns();
    sl_cuda_attns *all = c->attns;
    int forced = forced_form();
    for (int i = 0; i < all->count; i++)
        if (all->plans[i]->forced == forced && !memcmp(&all->plans[i]->shape, s, sizeof *s)) return all->plans[i];
    attn_plan *p = (attn_plan *)calloc(1, sizeof *p);
    if (p && all->count == all->room) {
        int room = all->room ? 2 * all->room : 16;
        attn_plan **more = (attn_plan **)realloc(all->plans, (size_t)room * sizeof *more);
        if (more) all->plans = more, all->room = room;
    }
    if (!p || all->count == all->room) {
        free(p);
        sl_ctx_fail(ctx, SL_NOMEM, "attention: no memory for %d plans", all->count + 1);
        return NULL;
    }
    p->shape = *s;
    p->forced = forced;
    plan_choose(ctx, p);
    return all->plans[all->count++] = p;
}

/* ---- kernels ---------------------------------------------------------------------------------------------- */

enum { SOFTMAX_THREADS = 256 };

/* The maximum and the sum of exp(x - maximum) of two parts of a row. */
__device__ __forceinline__ void merge(float *top, float *sum, float other_top, float other_sum)
{
    float high = fmaxf(*top, other_top), down = high == -INFINITY ? 0 : high; /* -INFINITY: two empty parts, or NaN alone */
    *sum = *sum * __expf(*top - down) + other_sum * __expf(other_top - down);
    *top = high;
}

/* p = softmax(score + bias) of one row: x the query, y the head. bias: at the first query of this call, first head; its row of
 * one query starts one element before that of the query above it. Columns nk .. ld of p become zero. */
__global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_kernel(bf16 *p, const float *score, int64_t ld, int nk, const float *bias, int64_t bias_head)
{
    __shared__ float tops[SOFTMAX_THREADS / 32], sums[SOFTMAX_THREADS / 32];
    const int64_t row = (int64_t)blockIdx.y * gridDim.x + blockIdx.x;
    const float *s = score + row * ld;
    if (bias) bias += (int64_t)blockIdx.y * bias_head - blockIdx.x;
    float top = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < nk; j += SOFTMAX_THREADS) {
        float x = s[j] + (bias ? bias[j] : 0);
        if (x > top) {
            sum *= __expf(top - x);
            top = x;
        }
        sum += __expf(x - top); /* a NaN stays in the sum */
    }
#pragma unroll
    for (int d = 16; d; d /= 2) {
        float other_top = __shfl_xor_sync(0xffffffffu, top, d), other_sum = __shfl_xor_sync(0xffffffffu, sum, d);
        merge(&top, &sum, other_top, other_sum);
    }
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top, sums[threadIdx.x / 32] = sum;
    __syncthreads();
    top = tops[0], sum = sums[0];
#pragma unroll
    for (int i = 1; i < SOFTMAX_THREADS / 32; i++) merge(&top, &sum, tops[i], sums[i]);
    const float part = 1 / sum;
    p += row * ld;
    for (int j = threadIdx.x; j < ld; j += SOFTMAX_THREADS) {
        float x = j < nk ? __expf(s[j] + (bias ? bias[j] : 0) - top) * part : 0;
        p[j] = __float2bfloat16_rn(x);
    }
}

/* o += r in F32, rounded; r dense [rows, cols], both bf16. A thread eight columns, or one. */
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

/* ---- the operation ----------------------------------------------------------------------------------------- */

/* The arguments of sl_attention. */
struct attention {
    const bf16 *q, *k, *v;
    bf16 *o;
    int64_t nq, nk, heads, d, q_pitch, k_pitch, v_pitch, o_pitch;
    const float *bias;
    float scale;
    bool accumulate;
};

/* Queries first .. first + n of heads head .. head + heads, to o (of that query and head). */
static void generic_piece(sl_ctx *ctx, const attention *a, int64_t head, int64_t heads, int64_t first, int64_t n, int64_t ld,
                          float *score, bf16 *weight, bf16 *o, int64_t o_pitch)
{
    sl_cuda_product s = {}, r = {};
    s.m = n, s.n = a->nk, s.k = a->d;
    s.a = a->q + first * a->q_pitch + head * a->d, s.lda = a->q_pitch, s.step_a = a->d;
    s.b = a->k + head * a->d, s.ldb = a->k_pitch, s.step_b = a->d;
    s.c = score, s.ldc = ld, s.step_c = n * ld;
    s.batch = (int)heads, s.in = SL_BF16, s.out = SL_F32, s.alpha = a->scale;
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
    r.batch = (int)heads, r.in = r.out = SL_BF16, r.alpha = 1;
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

static void generic(sl_ctx *ctx, const attention *a)
{
    int64_t ld = (a->nk + 7) / 8 * 8, row = ld * (int64_t)(sizeof(float) + sizeof(bf16)); /* bytes of a query of one head */
    int64_t heads = least(a->heads, (int64_t)SCORE_BYTES / (row * least(a->nq, 256)));
    if (heads < 1) heads = 1;
    int64_t n = least(a->nq, (int64_t)SCORE_BYTES / (row * heads));
    if (n > 64 && n < a->nq) n = n / 64 * 64;
    if (n < 1) n = 1;
    size_t scores = whole((size_t)(heads * n * ld) * sizeof(float)), weights = whole((size_t)(heads * n * ld) * sizeof(bf16));
    char *at = (char *)sl_cuda_scratch(ctx, scores + weights + (a->accumulate ? (size_t)(n * heads * a->d) * sizeof(bf16) : 0));
    if (!at) return;
    bf16 *aside = (bf16 *)(at + scores + weights);
    for (int64_t h = 0; h < a->heads; h += heads)
        for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
            int64_t hs = least(heads, a->heads - h), rows = least(n, a->nq - i);
            bf16 *o = a->o + i * a->o_pitch + h * a->d;
            if (a->accumulate) {
                generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (bf16 *)(at + scores), aside, hs * a->d);
                if (!ctx->err.code) add(ctx, o, a->o_pitch, aside, rows, hs * a->d);
            } else generic_piece(ctx, a, h, hs, i, rows, ld, (float *)at, (bf16 *)(at + scores), o, a->o_pitch);
        }
}

/* cuDNN, and the generic form for the queries that it has no plan for. */
static void fused(sl_ctx *ctx, const attention *a)
{
    int64_t width = a->heads * a->d, n = a->nq;
    bf16 *aside = NULL;
    if (a->accumulate) {
        int64_t most = (int64_t)ADDED_BYTES / (width * (int64_t)sizeof(bf16)) / 128 * 128;
        n = least(n, most < 128 ? 128 : most);
        if (!(aside = (bf16 *)sl_cuda_scratch(ctx, (size_t)(n * width) * sizeof(bf16)))) return;
    }
    for (int64_t i = 0; i < a->nq && !ctx->err.code; i += n) {
        fused_shape s;
        memset(&s, 0, sizeof s);
        s.nq = least(n, a->nq - i), s.nk = a->nk, s.heads = a->heads, s.d = a->d;
        s.q_pitch = a->q_pitch, s.k_pitch = a->k_pitch, s.v_pitch = a->v_pitch, s.o_pitch = aside ? width : a->o_pitch;
        fused_data data = {a->q + i * a->q_pitch, a->k, a->v, aside ? aside : a->o + i * a->o_pitch, a->scale};
        attn_plan *p = plan_of(ctx, &s);
        if (!p) return;
        if (!p->plan) {
            attention rest = *a; /* what is done stays done */
            rest.q = (const bf16 *)data.q, rest.o = a->o + i * a->o_pitch, rest.nq = a->nq - i;
            generic(ctx, &rest);
            return;
        }
        if (!sl_cuda_dnn_ok(ctx, execute(ctx, p->plan, &data), "attention")) return;
        if (aside) add(ctx, a->o + i * a->o_pitch, a->o_pitch, aside, s.nq, width);
    }
}

void sl_cuda_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k, const sl_tensor *v, int heads,
                       float scale, const sl_tensor *bias, bool accumulate)
{
    int64_t width = q->shape[1];
    attention a = {(const bf16 *)q->data,
                   (const bf16 *)k->data,
                   (const bf16 *)v->data,
                   (bf16 *)o->data,
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
    const char *set = getenv("SLUICE_ATTENTION");
    if (!a.nq) return;
    if (a.nq == 1) a.q_pitch = a.o_pitch = width; /* the pitch of one row may be anything */
    if (a.nk == 1) a.k_pitch = a.v_pitch = width;
    bool fits = (a.d == 64 || a.d == 128) && !bias && even(a.q, a.q_pitch) && even(a.k, a.k_pitch) && even(a.v, a.v_pitch) &&
                even(a.o, a.o_pitch);
    if (!fits || (set && !strcmp(set, "generic"))) generic(ctx, &a);
    else fused(ctx, &a);
}
