/* umt5.c - the UMT5 encoder: T5 norms, gated GELU, a relative position bias in every
 * layer, no attention scaling. */
#include "graphs/umt5.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "graphs/layers.h"

typedef struct {
    sl_tensor norm1, norm2; /* [d_model] */
    sl_tensor q, k, v;      /* [heads * d_kv, d_model] */
    sl_tensor o;            /* [d_model, heads * d_kv] */
    sl_tensor bias;         /* F32 [buckets, heads] */
    sl_tensor wi_0, wi_1;   /* [d_ff, d_model]: the gate, the value */
    sl_tensor wo;           /* [d_model, d_ff] */
} layer;

struct sl_umt5 {
    sl_umt5_config c;
    sl_tensor embedding;  /* [vocab, d_model] */
    sl_tensor final_norm; /* [d_model] */
    layer *layers;
    /* host copy of all layers' tables, turned: [layers, heads, buckets]; filled by the
     * first encode */
    float *bias;
    bool *has_bias;
};

sl_umt5 *sl_umt5_new(const sl_umt5_config *config, sl_loader *l)
{
    sl_umt5 *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->c = *config;
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    m->bias = malloc(sizeof *m->bias * (size_t)config->layers * (size_t)config->heads *
                     (size_t)config->buckets);
    m->has_bias = calloc(1, sizeof *m->has_bias);
    if (!m->layers || !m->bias || !m->has_bias) {
        sl_umt5_free(&m);
        return NULL;
    }
    const int64_t d = config->d_model, inner = (int64_t)config->heads * config->d_kv,
                  ff = config->d_ff;
    const int64_t vector[] = {d}, in[] = {inner, d}, out[] = {d, inner}, wi[] = {ff, d},
                  wo[] = {d, ff};
    sl_weight(l, &m->embedding, SL_W_MATRIX, 2, (int64_t[]){config->vocab, d}, "shared.weight");
    for (int i = 0; i < config->layers; i++) {
        layer *y = &m->layers[i];
        const int64_t bias[] = {config->buckets, config->heads};
        sl_weight(l, &y->norm1, SL_W_VECTOR, 1, vector,
                  "encoder.block.%d.layer.0.layer_norm.weight", i);
        sl_weight(l, &y->q, SL_W_MATRIX, 2, in, "encoder.block.%d.layer.0.SelfAttention.q.weight",
                  i);
        sl_weight(l, &y->k, SL_W_MATRIX, 2, in, "encoder.block.%d.layer.0.SelfAttention.k.weight",
                  i);
        sl_weight(l, &y->v, SL_W_MATRIX, 2, in, "encoder.block.%d.layer.0.SelfAttention.v.weight",
                  i);
        sl_weight(l, &y->o, SL_W_MATRIX, 2, out, "encoder.block.%d.layer.0.SelfAttention.o.weight",
                  i);
        sl_weight(l, &y->bias, SL_W_FLOAT, 2, bias,
                  "encoder.block.%d.layer.0.SelfAttention.relative_attention_bias.weight", i);
        sl_weight(l, &y->norm2, SL_W_VECTOR, 1, vector,
                  "encoder.block.%d.layer.1.layer_norm.weight", i);
        sl_weight(l, &y->wi_0, SL_W_MATRIX, 2, wi,
                  "encoder.block.%d.layer.1.DenseReluDense.wi_0.weight", i);
        sl_weight(l, &y->wi_1, SL_W_MATRIX, 2, wi,
                  "encoder.block.%d.layer.1.DenseReluDense.wi_1.weight", i);
        sl_weight(l, &y->wo, SL_W_MATRIX, 2, wo,
                  "encoder.block.%d.layer.1.DenseReluDense.wo.weight", i);
    }
    sl_weight(l, &m->final_norm, SL_W_VECTOR, 1, vector, "encoder.final_layer_norm.weight");
    sl_weight_skip(l, "encoder.embed_tokens.weight"); /* the same table again, in some files */
    return m;
}

void sl_umt5_free(sl_umt5 **m)
{
    if (!*m) return;
    free((*m)->layers);
    free((*m)->bias);
    free((*m)->has_bias);
    free(*m);
    *m = NULL;
}

/* T5's bidirectional bucket of a relative position key - query: exact up to a quarter of
 * the buckets, then logarithmic up to max_distance. In float32, as the reference, whose
 * truncation decides at the edges. */
static int bucket_of(int relative, int buckets, int max_distance)
{
    const int half = buckets / 2, exact = half / 2;
    const int base = relative > 0 ? half : 0, n = abs(relative);
    if (n < exact) return base + n;
    float steps = logf((float)n / (float)exact) / (float)log((double)max_distance / exact) *
                  (float)(half - exact);
    int far = exact + (int)steps;
    return base + (far < half - 1 ? far : half - 1);
}

/* Once: the layers' tables [buckets, heads] to m->bias, where a head's buckets are
 * neighbours. */
static void fetch_bias(sl_ctx *ctx, const sl_umt5 *m)
{
    const size_t heads = (size_t)m->c.heads, buckets = (size_t)m->c.buckets;
    float *table = *m->has_bias ? NULL : malloc(sizeof *table * buckets * heads);
    if (*m->has_bias) return;
    if (!table)
        sl_ctx_fail(ctx, SL_NOMEM, "umt5: %zu bytes for a position bias",
                    sizeof *table * buckets * heads);
    for (size_t i = 0; i < (size_t)m->c.layers && sl_ok(ctx); i++) {
        sl_download(ctx, table, &m->layers[i].bias);
        if (!sl_ok(ctx)) break;
        for (size_t h = 0; h < heads; h++)
            for (size_t k = 0; k < buckets; k++)
                m->bias[(i * heads + h) * buckets + k] = table[k * heads + h];
    }
    *m->has_bias = sl_ok(ctx);
    free(table);
}

/* The bias tables of all layers, F32 [layers * heads, 2n - 1], entry (key - query + n -
 * 1). Made on the host: a few MB. */
static sl_tensor relative_bias(sl_ctx *ctx, const sl_umt5 *m, int n)
{
    const int rows = m->c.layers * m->c.heads, buckets = m->c.buckets, width = 2 * n - 1;
    sl_tensor table = sl_new2(ctx, SL_F32, rows, width);
    if (ctx->ops->plan || !sl_ok(ctx)) return table;
    int bucket[2 * SL_UMT5_MAX_TOKENS];
    float *host = malloc(sl_bytes(&table));
    if (!host)
        sl_ctx_fail(ctx, SL_NOMEM, "umt5: %zu bytes for the position bias of %d tokens",
                    sl_bytes(&table), n);
    fetch_bias(ctx, m);
    if (sl_ok(ctx)) {
        for (int r = 0; r < width; r++)
            bucket[r] = bucket_of(r - (n - 1), buckets, m->c.max_distance);
#pragma omp parallel for schedule(static)
        for (int i = 0; i < rows; i++)
            for (int r = 0; r < width; r++)
                host[(int64_t)i * width + r] = m->bias[i * buckets + bucket[r]];
        sl_upload(ctx, &table, host);
        sl_sync(ctx); /* before host is freed */
    }
    free(host);
    return table;
}

/* x += o(attention(norm(x))); bias F32 [heads, 2n - 1]. */
static void self_attention(sl_ctx *ctx, const sl_umt5 *m, const layer *y, const sl_tensor *x,
                           const sl_tensor *bias)
{
    const int64_t n = x->shape[0], d = m->c.d_model, inner = (int64_t)m->c.heads * m->c.d_kv;
    const size_t mark = sl_mark(ctx);
    sl_tensor s = sl_new2(ctx, sl_act(ctx), n, d);
    sl_tensor q = sl_new2(ctx, sl_act(ctx), n, inner), k = sl_new2(ctx, sl_act(ctx), n, inner);
    sl_tensor v = sl_new2(ctx, sl_act(ctx), n, inner), a = sl_new2(ctx, sl_act(ctx), n, inner);
    sl_rmsnorm(ctx, &s, x, &y->norm1, m->c.eps);
    sl_linear(ctx, &q, &s, &y->q, NULL, SL_ACT_NONE);
    sl_linear(ctx, &k, &s, &y->k, NULL, SL_ACT_NONE);
    sl_linear(ctx, &v, &s, &y->v, NULL, SL_ACT_NONE);
    sl_attention(ctx, &a, &q, &k, &v, m->c.heads, 1.0f, bias, false);
    sl_linear(ctx, &s, &a, &y->o, NULL, SL_ACT_NONE);
    sl_add(ctx, x, x, &s);
    sl_release(ctx, mark);
}

/* x += wo(gelu(wi_0 norm(x)) * wi_1 norm(x)). */
static void feed_forward(sl_ctx *ctx, const sl_umt5 *m, const layer *y, const sl_tensor *x)
{
    const int64_t n = x->shape[0];
    const size_t mark = sl_mark(ctx);
    sl_tensor s = sl_new2(ctx, sl_act(ctx), n, m->c.d_model);
    sl_tensor gate = sl_new2(ctx, sl_act(ctx), n, m->c.d_ff),
              value = sl_new2(ctx, sl_act(ctx), n, m->c.d_ff);
    sl_rmsnorm(ctx, &s, x, &y->norm2, m->c.eps);
    sl_linear(ctx, &gate, &s, &y->wi_0, NULL, SL_ACT_NONE);
    sl_linear(ctx, &value, &s, &y->wi_1, NULL, SL_ACT_NONE);
    sl_geglu(ctx, &gate, &gate, &value);
    sl_linear(ctx, &s, &gate, &y->wo, NULL, SL_ACT_NONE);
    sl_add(ctx, x, x, &s);
    sl_release(ctx, mark);
}

static void tap_layer(sl_ctx *ctx, int i, const sl_tensor *x)
{
    char name[32];
    if (!ctx->tap) return;
    snprintf(name, sizeof name, "layer.%d", i);
    sl_tap(ctx, name, x);
}

void sl_umt5_encode(sl_ctx *ctx, const sl_umt5 *m, const int32_t *ids, int n, const sl_tensor *out)
{
    if (n < 1 || n > SL_UMT5_MAX_TOKENS) {
        sl_ctx_fail(ctx, SL_ARG, "umt5: %d tokens, want 1 to %d", n, SL_UMT5_MAX_TOKENS);
        return;
    }
    const size_t mark = sl_mark(ctx);
    sl_tensor bias = relative_bias(ctx, m, n);                /* [layers * heads, 2n - 1] */
    sl_tensor x = sl_new2(ctx, sl_act(ctx), n, m->c.d_model); /* [n, d_model] */
    sl_embed(ctx, &x, &m->embedding, ids);
    for (int i = 0; i < m->c.layers && !sl_cancelled(ctx) && sl_ok(ctx); i++) {
        sl_tensor b = sl_rows(&bias, (int64_t)i * m->c.heads, m->c.heads);
        tap_layer(ctx, i, &x);
        self_attention(ctx, m, &m->layers[i], &x, &b);
        feed_forward(ctx, m, &m->layers[i], &x);
    }
    sl_rmsnorm(ctx, out, &x, &m->final_norm, m->c.eps);
    tap_layer(ctx, m->c.layers, out);
    sl_release(ctx, mark);
}
