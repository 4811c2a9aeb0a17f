/* ops.c - the matrix products, attentions and convolutions that the networks
 * consist of, one by one. */
#include "stages/bench/measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "graphs/layers.h"
#include "graphs/wan_dit.h"

typedef struct {
    sl_bench_net n;
    sl_tensor x, w, b, y; /* of a product */
    sl_activation activation;
    sl_tensor q, k, v, o, bias; /* of an attention; bias of rank 0: none */
    int heads;
    float scale;
    bool added;
    sl_keys_eight keys; /* codes of an attention in 8 bits */
    sl_queries_eight queries;
} op;

/* Tokens of the DiT at once: a CPU's, on every device, so that figures compare. */
static int64_t rows_of(const sl_bench *b)
{
    return b->rows ? b->rows : sl_ops_cpu.rows_at_once;
}

static void run_linear(void *arg)
{
    op *o = arg;
    sl_linear(&o->n.ctx, &o->y, &o->x, &o->w, &o->b, o->activation);
}

/* [m, k] x [n, k]^T, bias and activation included. */
static sl_code time_linear(sl_bench *b, int64_t m, int64_t n, int64_t k, sl_activation activation,
                           sl_err *err)
{
    char size[64];
    op o = {.activation = activation};
    sl_code rc = sl_bench_net_open(&o.n, b, NULL, err);
    if (rc) return rc;
    sl_ctx *ctx = &o.n.ctx;
    const sl_dtype act = sl_act(ctx);
    o.x = sl_bench_tensor(&o.n, act, m, k, 1);
    o.w = sl_bench_tensor(&o.n, act, n, k, 1 / sqrtf((float)k));
    o.y = sl_bench_tensor(&o.n, act, m, n, 1);
    sl_tensor bias = sl_bench_tensor(&o.n, act, 1, n, 1);
    o.b = sl_view1(bias.data, act, n);
    snprintf(size, sizeof size, "%lldx%lldx%lld%s", (long long)m, (long long)n, (long long)k,
             activation == SL_ACT_NONE ? "" : " gelu");
    const double bytes = (double)(sl_bytes(&o.x) + sl_bytes(&o.w) + sl_bytes(&o.y));
    rc = sl_bench_time(&o.n, "gemm", size, bytes, (size_t)bytes, run_linear, &o, err);
    sl_tensor *all[] = {&o.x, &o.w, &o.y, &bias};
    for (int i = 0; i < 4; i++) sl_device_free(ctx, all[i]->data);
    sl_bench_net_close(&o.n);
    return rc;
}

sl_code sl_bench_gemm(sl_bench *b, sl_err *err)
{
    const sl_dit_config *c = &b->model.dit[0];
    sl_code rc = SL_OK;
    for (int i = 0; i < b->size_count && !rc; i++) {
        const int64_t n = sl_bench_grid(b, &b->sizes[i]).tokens;
        if ((rc = time_linear(b, n, c->dim, c->dim, SL_ACT_NONE, err)) ||
            (rc = time_linear(b, n, c->ffn_dim, c->dim, SL_ACT_GELU_TANH, err)) ||
            (rc = time_linear(b, n, c->dim, c->ffn_dim, SL_ACT_NONE, err)))
            break;
        const int64_t rows = rows_of(b); /* as the graph may call it */
        if (i == b->size_count - 1 && rows < n &&
            !(rc = time_linear(b, rows, c->dim, c->dim, SL_ACT_NONE, err)))
            rc = time_linear(b, rows, c->ffn_dim, c->dim, SL_ACT_GELU_TANH, err);
    }
    return rc;
}

static void run_attention(void *arg)
{
    op *o = arg;
    sl_attention(&o->n.ctx, &o->o, &o->q, &o->k, &o->v, o->heads, o->scale,
                 o->bias.rank ? &o->bias : NULL, o->added);
}

static void run_codes(void *arg)
{
    op *o = arg;
    sl_ctx *ctx = &o->n.ctx;
    sl_code_keys(ctx, &o->keys, &o->k, &o->v, o->heads);
    sl_code_queries(ctx, &o->queries, &o->q, o->heads, o->scale);
}

static void run_coded(void *arg)
{
    op *o = arg;
    sl_attention_eight(&o->n.ctx, &o->o, &o->queries, &o->keys, o->heads, 1, NULL, 0, NULL);
}

static void run_eight(void *arg)
{
    run_codes(arg);
    run_coded(arg);
}

/* Memory for the codes. */
static void new_codes(op *o, sl_ctx *ctx)
{
    o->keys = sl_new_keys_eight(ctx, o->k.shape[0], o->k.shape[1], o->heads);
    o->queries = sl_new_queries_eight(ctx, o->q.shape[0], o->q.shape[1], o->heads);
}

/* Attention in 8 bits whole, from q, k, v to o; then its parts: codes, and attention of them. */
static sl_code time_eight(op *o, const char *size, sl_err *err)
{
    sl_ops body = sl_ops_plan_of(o->n.b->body);
    sl_ctx plan;
    const double whole = 2 * (double)(sl_bytes(&o->q) + sl_bytes(&o->k));
    sl_code rc = sl_ctx_open(&plan, &body, 0, err);
    if (rc) return rc;
    new_codes(o, &plan);
    rc = sl_ctx_reserve(&o->n.ctx, plan.arena_peak, err);
    sl_ctx_close(&plan);
    if (rc) return rc;
    new_codes(o, &o->n.ctx);
    const double codes = (double)(sl_bytes(&o->queries.codes) + 2 * sl_bytes(&o->keys.k));
    const struct {
        const char *what;
        double bytes;
        sl_bench_run_fn *run;
    } parts[] = {{"attention in 8 bits", whole, run_eight},
                 /* means before codes: keys and values are read twice */
                 {"its codes", (double)(sl_bytes(&o->q) + 4 * sl_bytes(&o->k)) + codes, run_codes},
                 {"attention of the codes", codes + (double)sl_bytes(&o->o), run_coded}};
    for (int i = 0; i < 3 && !rc; i++)
        rc = sl_bench_time(&o->n, parts[i].what, size, parts[i].bytes, (size_t)whole, parts[i].run,
                           o, err);
    sl_release(&o->n.ctx, 0);
    return rc;
}

/* The device has attention in 8 bits, for heads of `width` columns. */
static bool has_eight(const sl_bench *b, int width)
{
    int sm = 90;
    if (b->plugin) b->plugin->describe(b->ordinal, NULL, 0, &sm, NULL);
    return sm >= 90 && (!b->body->eight_width || b->body->eight_width == width);
}

/* dim: of one head. FLOATS: in float32, whatever the device's activations are; EIGHT: in 8 bits. */
enum { BIAS = 1, ADDED = 2, FLOATS = 4, EIGHT = 8 };
static sl_code time_attention(sl_bench *b, const char *what, int64_t nq, int64_t nk, int heads,
                              int dim, int how, sl_err *err)
{
    char size[64];
    op o = {.heads = heads, .scale = 1 / sqrtf((float)dim), .added = how & ADDED};
    sl_code rc = sl_bench_net_open(&o.n, b, NULL, err);
    if (rc) return rc;
    sl_ctx *ctx = &o.n.ctx;
    const sl_dtype act = how & FLOATS ? SL_F32 : sl_act(ctx);
    const int64_t d = (int64_t)heads * dim;
    o.q = sl_bench_tensor(&o.n, act, nq, d, 1);
    o.k = sl_bench_tensor(&o.n, act, nk, d, 1);
    o.v = sl_bench_tensor(&o.n, act, nk, d, 1);
    o.o = sl_bench_tensor(&o.n, act, nq, d, 1);
    if (how & BIAS) o.bias = sl_bench_tensor(&o.n, SL_F32, heads, nq + nk - 1, 1);
    snprintf(size, sizeof size, "%s %lldx%lld, %dx%d", what, (long long)nq, (long long)nk, heads,
             dim);
    const double bytes = 2 * (double)(sl_bytes(&o.q) + sl_bytes(&o.k));
    rc = how & EIGHT
             ? time_eight(&o, size, err)
             : sl_bench_time(&o.n, "attention", size, bytes, (size_t)bytes, run_attention, &o, err);
    sl_tensor *all[] = {&o.q, &o.k, &o.v, &o.o, &o.bias};
    for (int i = 0; i < 5; i++) sl_device_free(ctx, all[i]->data);
    sl_bench_net_close(&o.n);
    return rc;
}

sl_code sl_bench_attention(sl_bench *b, sl_err *err)
{
    const sl_dit_config *c = &b->model.dit[0];
    const sl_umt5_config *t = &b->model.umt5;
    const sl_clip_config *v = &b->model.clip;
    const sl_vae_config *a = &b->model.vae;
    const sl_bench_size *last = &b->sizes[b->size_count - 1];
    const sl_grid g = sl_bench_grid(b, last);
    const int64_t n = g.tokens, latents = g.latent_height * g.latent_width, rows = rows_of(b),
                  side = v->patch ? v->image / v->patch : 0;
    sl_code rc = SL_OK;
    for (int i = 0; i < b->size_count && !rc; i++) {
        const int64_t m = sl_bench_grid(b, &b->sizes[i]).tokens;
        rc = time_attention(b, "self", m, m, c->heads, c->head_dim, 0, err);
        if (!rc && has_eight(b, c->head_dim))
            rc = time_attention(b, "self", m, m, c->heads, c->head_dim, EIGHT, err);
    }
    if (!rc && rows < n) rc = time_attention(b, "self", rows, n, c->heads, c->head_dim, 0, err);
    if (!rc) rc = time_attention(b, "text", n, SL_TEXT_TOKENS, c->heads, c->head_dim, 0, err);
    if (!rc && side)
        rc = time_attention(b, "image", n, side * side + 1, c->heads, c->head_dim, 0, err);
    if (!rc && side)
        rc =
            time_attention(b, "image added", n, side * side + 1, c->heads, c->head_dim, ADDED, err);
    if (!rc)
        rc = time_attention(b, "VAE", latents, latents, 1, a->decoder_base * a->mult[3], 0, err);
    if (!rc) rc = time_attention(b, "UMT5", 512, 512, t->heads, t->d_kv, BIAS, err);
    if (!rc && side)
        rc = time_attention(b, "CLIP", side * side + 1, side * side + 1, v->heads,
                            v->hidden / v->heads, FLOATS, err);
    return rc;
}

/* ---- convolutions ---- */

typedef struct {
    sl_bench_net n;
    sl_tensor x, history, w, b, y;
    sl_conv conv;
} conv_op;

static void run_conv(void *arg)
{
    conv_op *o = arg;
    sl_conv3d(&o->n.ctx, &o->y, &o->x, &o->history, &o->w, &o->b, NULL, &o->conv);
}

/* A causal 3x3x3 convolution of t frames with the two before them. */
static sl_code time_conv(sl_bench *b, int64_t t, int64_t h, int64_t w, int64_t ci, int64_t co,
                         sl_err *err)
{
    char size[64];
    conv_op o = {.conv = {.kt = 3, .kh = 3, .kw = 3, .stride_t = 1, .stride_hw = 1, .pad = 1}};
    sl_code rc = sl_bench_net_open(&o.n, b, "conv", err);
    if (rc) return rc;
    sl_ctx *ctx = &o.n.ctx;
    const sl_dtype act = sl_act(ctx);
    sl_weight(o.n.loader, &o.w, SL_W_CONV, 5, (int64_t[]){co, ci, 3, 3, 3}, "conv.weight");
    sl_weight(o.n.loader, &o.b, SL_W_VECTOR, 1, &co, "conv.bias");
    if (!(rc = sl_loader_finish(o.n.loader, err))) {
        sl_tensor x = sl_bench_tensor(&o.n, act, t, h * w * ci, 1),
                  past = sl_bench_tensor(&o.n, act, 2, h * w * ci, 1),
                  y = sl_bench_tensor(&o.n, act, t, h * w * co, 1);
        o.x = sl_view4(x.data, act, t, h, w, ci);
        o.history = sl_view4(past.data, act, 2, h, w, ci);
        o.y = sl_view4(y.data, act, t, h, w, co);
        snprintf(size, sizeof size, "%lldx%lldx%lld, %lld->%lld", (long long)t, (long long)h,
                 (long long)w, (long long)ci, (long long)co);
        const double bytes = (double)(sl_bytes(&x) + sl_bytes(&past) + sl_bytes(&y));
        rc = sl_bench_time(&o.n, "conv", size, bytes + (double)sl_loader_bytes(o.n.loader),
                           (size_t)bytes, run_conv, &o, err);
        sl_device_free(ctx, x.data);
        sl_device_free(ctx, past.data);
        sl_device_free(ctx, y.data);
    }
    sl_bench_net_close(&o.n);
    return rc;
}

/* The decoder's largest layers, one of each resolution, and its last. */
sl_code sl_bench_conv(sl_bench *b, sl_err *err)
{
    const sl_bench_size *s = &b->sizes[b->size_count - 1];
    const int64_t c = b->model.vae.decoder_base, h = s->h, w = s->w;
    sl_code rc;
    if ((rc = time_conv(b, 4, h, w, c, c, err)) ||
        (rc = time_conv(b, 4, h / 2, w / 2, 2 * c, 2 * c, err)) ||
        (rc = time_conv(b, 2, h / 4, w / 4, 4 * c, 4 * c, err)) ||
        (rc = time_conv(b, 1, h / 8, w / 8, 4 * c, 4 * c, err)))
        return rc;
    return time_conv(b, 4, h, w, c, 3, err);
}
