/* attention_plan.cu - cuDNN's attention: its graphs in two forms, the engines that it
 * suggests for them, and plans kept by shape. */
#include "kernels/cuda/attention_plan.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "common/log.h"
}

enum { DESCRIPTORS = 96, CONFIGS = 16, FORMS = 2 };
enum { UID_Q = 1, UID_K, UID_V, UID_O, UID_SCALE, UID_VIRTUAL };

/* ---- cuDNN descriptors ---- */

/* What a plan is made of, kept as long as the plan. The first failure stops the rest;
 * `step` says where. */
struct fused_graph {
    cudnnBackendDescriptor_t all[DESCRIPTORS];
    int count, tensors;
    cudnnStatus_t status;
    const char *step;
    cudnnBackendDescriptor_t configs[CONFIGS]; /* among `all` */
    int config_count;
};

static void graph_clear(fused_graph *g)
{
    while (g->count) cudnnBackendDestroyDescriptor(g->all[--g->count]);
}

static bool step_ok(fused_graph *g, cudnnStatus_t s, const char *what)
{
    if (g->status == CUDNN_STATUS_SUCCESS && s != CUDNN_STATUS_SUCCESS)
        g->status = s, g->step = what;
    return g->status == CUDNN_STATUS_SUCCESS;
}

static cudnnBackendDescriptor_t make(fused_graph *g, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = NULL;
    if (g->status) return NULL;
    if (g->count == DESCRIPTORS) {
        step_ok(g, CUDNN_STATUS_INTERNAL_ERROR, "counting descriptors");
        return NULL;
    }
    if (step_ok(g, cudnnBackendCreateDescriptor(type, &d), "making a descriptor"))
        g->all[g->count++] = d;
    return d;
}

static void set(fused_graph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *value, const char *what)
{
    if (!g->status) step_ok(g, cudnnBackendSetAttribute(d, name, type, n, value), what);
}

static void set_descriptor(fused_graph *g, cudnnBackendDescriptor_t d,
                           cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value,
                           const char *what)
{
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value, what);
}

static void finalize(fused_graph *g, cudnnBackendDescriptor_t d, const char *what)
{
    if (!g->status) step_ok(g, cudnnBackendFinalize(d), what);
}

/* ---- the two forms of the graph ---- */

static cudnnBackendDescriptor_t tensor(fused_graph *g, int64_t uid, cudnnDataType_t type,
                                       const int64_t dim[4], const int64_t stride[4],
                                       bool is_virtual, bool by_value)
{
    cudnnBackendDescriptor_t t = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t align = by_value ? 4 : 16;
    set(g, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, "a tensor's type");
    set(g, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim, "a tensor's extents");
    set(g, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride, "a tensor's strides");
    set(g, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid, "a tensor's number");
    set(g, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align,
        "a tensor's alignment");
    if (is_virtual)
        set(g, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual,
            "a virtual tensor");
    if (by_value)
        set(g, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value,
            "a tensor by value");
    finalize(g, t, "a tensor");
    return t;
}

/* [1, heads, n, d] over rows of `pitch` elements; turned: [1, heads, d, n]. */
static cudnnBackendDescriptor_t rows(fused_graph *g, int64_t uid, const sl_attention_shape *s,
                                     int64_t n, int64_t pitch, bool turned)
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
static cudnnBackendDescriptor_t between(fused_graph *g, const sl_attention_shape *s, int64_t cols,
                                        cudnnDataType_t type)
{
    int64_t dim[4] = {1, s->heads, s->nq, cols},
            stride[4] = {s->heads * s->nq * cols, s->nq * cols, cols, 1};
    return tensor(g, UID_VIRTUAL + g->tensors++, type, dim, stride, true, false);
}

static cudnnBackendDescriptor_t product(fused_graph *g, cudnnBackendDescriptor_t a,
                                        cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t c)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32,
        "a product's arithmetic");
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
static cudnnBackendDescriptor_t pointwise(fused_graph *g, cudnnPointwiseMode_t mode,
                                          cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                                          cudnnBackendDescriptor_t y)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode,
        "a pointwise step's mode");
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32,
        "a pointwise step's arithmetic");
    finalize(g, how, "a pointwise step's mode");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how, "a pointwise step");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, "a pointwise step");
    if (b) set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b, "a pointwise step");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, "a pointwise step");
    finalize(g, op, "a pointwise step");
    return op;
}

static cudnnBackendDescriptor_t reduction(fused_graph *g, cudnnReduceTensorOp_t mode,
                                          cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y)
{
    cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32,
        "a reduction's arithmetic");
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode,
        "a reduction's mode");
    finalize(g, how, "a reduction's mode");
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how, "a reduction");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, "a reduction");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, "a reduction");
    finalize(g, op, "a reduction");
    return op;
}

/* cuDNN's one operation (9.13 and later). Number of operations in ops. */
static int unified(fused_graph *g, const sl_attention_shape *s, cudnnBackendDescriptor_t *ops)
{
    cudnnBackendDescriptor_t op = make(g, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC,
                   rows(g, UID_Q, s, s->nq, s->q_pitch, false), "attention's q");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC,
                   rows(g, UID_K, s, s->nk, s->k_pitch, false), "attention's k");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC,
                   rows(g, UID_V, s, s->nk, s->v_pitch, false), "attention's v");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC,
                   rows(g, UID_O, s, s->nq, s->o_pitch, false), "attention's o");
    set_descriptor(g, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scalar(g), "attention's scale");
    finalize(g, op, "attention");
    ops[0] = op;
    return 1;
}

/* The same as products, pointwise steps and reductions: s = scale (q k^T); m = max s; e =
 * exp(s - m); l = sum e; p = e / l; o = p v. cuDNN knows this pattern with the row
 * statistics log l + m in it, needed or not. Source: cudnn-frontend, CompositeSDPANode
 * and CompositeSoftmaxNode. */
static int composite(fused_graph *g, const sl_attention_shape *s, cudnnBackendDescriptor_t *ops)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t q = rows(g, UID_Q, s, s->nq, s->q_pitch, false),
                             k = rows(g, UID_K, s, s->nk, s->k_pitch, true);
    cudnnBackendDescriptor_t v = rows(g, UID_V, s, s->nk, s->v_pitch, false),
                             o = rows(g, UID_O, s, s->nq, s->o_pitch, false);
    cudnnBackendDescriptor_t score = between(g, s, s->nk, f32), scaled = between(g, s, s->nk, f32),
                             top = between(g, s, 1, f32);
    cudnnBackendDescriptor_t below = between(g, s, s->nk, f32), e = between(g, s, s->nk, f32),
                             sum = between(g, s, 1, f32);
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

typedef int fused_form(fused_graph *, const sl_attention_shape *, cudnnBackendDescriptor_t *);
static fused_form *const FORM[FORMS] = {unified, composite};
static const char *const FORM_NAME[FORMS] = {"unified", "composite"};

/* The graph of one form and the engine configurations that cuDNN's heuristics suggest for
 * it, best first. `described` is NULL, or a device to plan for that need not be there;
 * else the handle's device counts, and a graph without either suits none. */
static void graph_make(fused_graph *g, fused_form *form, const sl_attention_shape *s,
                       cudnnHandle_t handle, cudnnBackendDescriptor_t described)
{
    static const cudnnBackendHeurMode_t MODES[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    cudnnBackendDescriptor_t ops[16];
    memset(g, 0, sizeof *g);
    int n = form(g, s, ops);
    cudnnBackendDescriptor_t whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, ops,
        "the graph's operations");
    if (!described)
        set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle,
            "the graph's handle");
    finalize(g, whole, "the graph");
    for (int m = 0; m < 2 && !g->status && !g->config_count; m++) {
        cudnnBackendDescriptor_t heur = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
        set_descriptor(g, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole,
                       "the heuristics' graph");
        set(g, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &MODES[m],
            "the heuristics' mode");
        if (described)
            set_descriptor(g, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, described,
                           "the heuristics' device");
        if (g->status) return;
        cudnnStatus_t s1 = cudnnBackendFinalize(heur);
        /* this mode knows nothing; the last one's answer counts */
        if (s1 != CUDNN_STATUS_SUCCESS) {
            if (m == 1) step_ok(g, s1, "the heuristics");
            continue;
        }
        cudnnBackendDescriptor_t found[CONFIGS];
        int64_t count = 0;
        for (int i = 0; i < CONFIGS; i++) found[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
        if (g->status) return;
        step_ok(g,
                cudnnBackendGetAttribute(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                         CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, found),
                "the heuristics' results");
        for (int i = 0; i < count && i < CONFIGS && !g->status; i++)
            g->configs[g->config_count++] = found[i];
    }
    if (!g->config_count) step_ok(g, CUDNN_STATUS_NOT_SUPPORTED, "the heuristics: no engine");
}

/* The first of the graph's configurations that finalizes into a plan and needs no more
 * than `workspace` bytes; it lives among g->all. */
static cudnnBackendDescriptor_t plan_make(fused_graph *g, cudnnHandle_t handle,
                                          cudnnBackendDescriptor_t described, size_t workspace)
{
    cudnnStatus_t last = CUDNN_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < g->config_count && !g->status; i++) {
        int64_t bytes = 0, count = 0;
        cudnnBackendDescriptor_t plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        if (described)
            set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, described,
                           "a plan's device");
        else
            set(g, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle,
                "a plan's handle");
        set_descriptor(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, g->configs[i],
                       "a plan's engine");
        if (g->status) break;
        if ((last = cudnnBackendFinalize(plan))) continue;
        if ((last = cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                             CUDNN_TYPE_INT64, 1, &count, &bytes)))
            continue;
        if ((size_t)bytes <= workspace) return plan;
        last = CUDNN_STATUS_NOT_SUPPORTED;
    }
    step_ok(g, last, "the plan");
    return NULL;
}

/* ---- plans by shape ---- */

struct attn_plan {
    sl_attention_shape shape;
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

cudnnStatus_t sl_attention_execute(sl_ctx *ctx, cudnnBackendDescriptor_t plan,
                                   const sl_attention_data *data)
{
    sl_cuda *c = sl_cuda_of(ctx);
    int64_t ids[5] = {UID_Q, UID_K, UID_V, UID_O, UID_SCALE};
    float scale = data->scale;
    void *at[5] = {(void *)data->q, (void *)data->k, (void *)data->v, data->o, &scale};
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (!s)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                                     CUDNN_TYPE_VOID_PTR, 5, at);
    if (!s)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 5,
                                     ids);
    if (!s)
        s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
                                     1, &c->workspace);
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

static void warn_once(const sl_attention_shape *s, const char *why)
{
    static int said;
    if (__atomic_exchange_n(&said, 1, __ATOMIC_RELAXED)) return;
    sl_log(SL_LOG_WARN,
           "attention: cuDNN has no plan for %lld queries, %lld keys, %lld heads of %lld (%s): the "
           "slower generic form does it",
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
        snprintf(why + at, sizeof why - at, "%s%s: %s: %s%s%s", at ? "; " : "", FORM_NAME[f],
                 g->step, cudnnGetErrorString(g->status), *more ? ": " : "", more);
        graph_clear(g);
    }
    warn_once(&p->shape, why);
}

bool sl_attention_plan(sl_ctx *ctx, const sl_attention_shape *s, cudnnBackendDescriptor_t *plan)
{
    sl_cuda *c = sl_cuda_of(ctx);
    if (!c->attns) c->attns = new sl_cuda_attns();
    sl_cuda_attns *all = c->attns;
    int forced = forced_form();
    for (int i = 0; i < all->count; i++)
        if (all->plans[i]->forced == forced && !memcmp(&all->plans[i]->shape, s, sizeof *s)) {
            *plan = all->plans[i]->plan;
            return true;
        }
    attn_plan *p = (attn_plan *)calloc(1, sizeof *p);
    if (p && all->count == all->room) {
        int room = all->room ? 2 * all->room : 16;
        attn_plan **more = (attn_plan **)realloc(all->plans, (size_t)room * sizeof *more);
        if (more) all->plans = more, all->room = room;
    }
    if (!p || all->count == all->room) {
        free(p);
        sl_ctx_fail(ctx, SL_NOMEM, "attention: no memory for %d plans", all->count + 1);
        return false;
    }
    p->shape = *s;
    p->forced = forced;
    plan_choose(ctx, p);
    all->plans[all->count++] = p;
    *plan = p->plan;
    return true;
}
