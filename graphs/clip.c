/* clip.c - the CLIP vision tower: patches, class token, pre-norm layers with exact GELU;
 * stops before the last layer.
 *
 * Weights and activations are float32 on every device, as in the reference (spec 2.5): in
 * bf16 its tokens are 7e-3 off, more than half of it by the weights' rounding, and a
 * picture takes 0.3e12 operations only. */
#include "graphs/clip.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "graphs/layers.h"

typedef struct {
    sl_affine norm1, norm2; /* [hidden] */
    sl_affine q, k, v, out; /* [hidden, hidden] */
    sl_affine fc1, fc2;     /* [intermediate, hidden], [hidden, intermediate] */
} layer;

struct sl_clip {
    sl_clip_config c;
    int used;              /* layers that hidden_states[-2] needs: all but the last */
    sl_tensor class_token; /* F32 [hidden] */
    sl_tensor patch;       /* [hidden, 3, patch, patch], SL_W_MATRIX_F32 as all matrices here */
    sl_tensor position;    /* F32 [tokens, hidden] */
    sl_affine pre_norm;    /* [hidden] */
    layer *layers;
};

/* Grid cells along one side. */
static int side(const sl_clip *m)
{
    return m->c.image / m->c.patch;
}

static void want_linear(sl_loader *l, sl_affine *a, int64_t out, int64_t in, const char *prefix,
                        const char *name)
{
    sl_weight(l, &a->w, SL_W_MATRIX_F32, 2, (int64_t[]){out, in}, "%s.%s.weight", prefix, name);
    sl_weight(l, &a->b, SL_W_FLOAT, 1, &out, "%s.%s.bias", prefix, name);
}

static void name_layer(sl_loader *l, layer *y, const sl_clip_config *c, const char *prefix, int i)
{
    const int64_t d = c->hidden, ff = c->intermediate;
    char p[96];
    snprintf(p, sizeof p, "%sencoder.layers.%d", prefix, i);
    sl_want_norm(l, &y->norm1, SL_W_FLOAT, d, "%s.layer_norm1", p);
    want_linear(l, &y->q, d, d, p, "self_attn.q_proj");
    want_linear(l, &y->k, d, d, p, "self_attn.k_proj");
    want_linear(l, &y->v, d, d, p, "self_attn.v_proj");
    want_linear(l, &y->out, d, d, p, "self_attn.out_proj");
    sl_want_norm(l, &y->norm2, SL_W_FLOAT, d, "%s.layer_norm2", p);
    want_linear(l, &y->fc1, ff, d, p, "mlp.fc1");
    want_linear(l, &y->fc2, d, ff, p, "mlp.fc2");
}

/* Tensors that a whole CLIP has and hidden_states[-2] does not need. */
static void skip_rest(sl_loader *l, const sl_clip_config *c, const char *prefix)
{
    static const char *const LAST[] = {"layer_norm1",      "layer_norm2",      "self_attn.q_proj",
                                       "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
                                       "mlp.fc1",          "mlp.fc2"};
    for (size_t i = 0; i < sizeof LAST / sizeof *LAST; i++) {
        sl_weight_skip(l, "%sencoder.layers.%d.%s.weight", prefix, c->layers - 1, LAST[i]);
        sl_weight_skip(l, "%sencoder.layers.%d.%s.bias", prefix, c->layers - 1, LAST[i]);
    }
    sl_weight_skip(l, "%spost_layernorm.weight", prefix);
    sl_weight_skip(l, "%spost_layernorm.bias", prefix);
    sl_weight_skip(l, "%sembeddings.position_ids", prefix);
    sl_weight_skip(l, "visual_projection.weight");
}

sl_clip *sl_clip_new(const sl_clip_config *config, sl_loader *l)
{
    sl_clip *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->c = *config;
    m->used = config->layers - 1;
    m->layers = calloc((size_t)config->layers, sizeof *m->layers);
    if (!m->layers) {
        free(m);
        return NULL;
    }
    /* transformers 5 saves a CLIPVisionModel without the prefix that earlier versions
     * write */
    const char *p =
        sl_loader_has(l, "vision_model.embeddings.class_embedding") ? "vision_model." : "";
    const int64_t d = config->hidden, tokens = (int64_t)side(m) * side(m) + 1;
    const int64_t patch[] = {d, 3, config->patch, config->patch};
    sl_weight(l, &m->class_token, SL_W_FLOAT, 1, &d, "%sembeddings.class_embedding", p);
    sl_weight(l, &m->patch, SL_W_MATRIX_F32, 4, patch, "%sembeddings.patch_embedding.weight", p);
    sl_weight(l, &m->position, SL_W_FLOAT, 2, (int64_t[]){tokens, d},
              "%sembeddings.position_embedding.weight", p);
    sl_want_norm(l, &m->pre_norm, SL_W_FLOAT, d, "%spre_layrnorm", p); /* so spelt */
    for (int i = 0; i < m->used; i++) name_layer(l, &m->layers[i], config, p, i);
    skip_rest(l, config, p);
    return m;
}

void sl_clip_free(sl_clip **m)
{
    if (!*m) return;
    free((*m)->layers);
    free(*m);
    *m = NULL;
}

/* Patch rows F32 [side * side, 3 * patch * patch], column (channel, y, x), cut out on the
 * host. */
static sl_tensor patch_rows(sl_ctx *ctx, const sl_clip *m, const float *pixels)
{
    const int64_t p = m->c.patch, n = side(m), w = m->c.image;
    sl_tensor rows = sl_new2(ctx, SL_F32, n * n, 3 * p * p);
    if (!ctx->ops->plan && sl_ok(ctx)) {
        float *host = malloc(sl_bytes(&rows)), *to = host;
        if (!host) {
            sl_ctx_fail(ctx, SL_NOMEM, "clip: %zu bytes for the picture's patches",
                        sl_bytes(&rows));
            return rows;
        }
        for (int64_t py = 0; py < n; py++)
            for (int64_t px = 0; px < n; px++)
                for (int64_t c = 0; c < 3; c++)
                    for (int64_t j = 0; j < p; j++)
                        for (int64_t i = 0; i < p; i++)
                            *to++ = pixels[(c * w + py * p + j) * w + px * p + i];
        sl_upload(ctx, &rows, host);
        sl_sync(ctx); /* before host is freed */
        free(host);
    }
    return rows;
}

/* x [tokens, hidden] = pre_norm([class; patches] + position). */
static void embed(sl_ctx *ctx, const sl_clip *m, const sl_tensor *x, const float *pixels)
{
    const size_t mark = sl_mark(ctx);
    const int64_t d = m->c.hidden, k = 3 * (int64_t)m->c.patch * m->c.patch;
    sl_tensor first = sl_rows(x, 0, 1), rest = sl_rows(x, 1, x->shape[0] - 1);
    sl_tensor token = sl_reshape2(&m->class_token, 1, d), w = sl_reshape2(&m->patch, d, k);
    sl_tensor rows = patch_rows(ctx, m, pixels);
    sl_copy(ctx, &first, &token);
    sl_linear(ctx, &rest, &rows, &w, NULL, SL_ACT_NONE);
    sl_add(ctx, x, x, &m->position);
    sl_layernorm(ctx, x, x, &m->pre_norm.w, &m->pre_norm.b, m->c.eps);
    sl_release(ctx, mark);
}

static void encoder_layer(sl_ctx *ctx, const sl_clip *m, const layer *y, const sl_tensor *x)
{
    const int64_t n = x->shape[0], d = m->c.hidden, head = d / m->c.heads;
    const float scale = 1 / sqrtf((float)head);
    const size_t mark = sl_mark(ctx);
    sl_tensor s = sl_new2(ctx, SL_F32, n, d);
    { /* x += out(attention(norm1(x))) */
        const size_t inner = sl_mark(ctx);
        sl_tensor q = sl_new2(ctx, SL_F32, n, d), k = sl_new2(ctx, SL_F32, n, d);
        sl_tensor v = sl_new2(ctx, SL_F32, n, d), a = sl_new2(ctx, SL_F32, n, d);
        sl_layernorm(ctx, &s, x, &y->norm1.w, &y->norm1.b, m->c.eps);
        sl_apply(ctx, &q, &s, &y->q, SL_ACT_NONE);
        sl_apply(ctx, &k, &s, &y->k, SL_ACT_NONE);
        sl_apply(ctx, &v, &s, &y->v, SL_ACT_NONE);
        sl_attention(ctx, &a, &q, &k, &v, m->c.heads, scale, NULL, false);
        sl_apply(ctx, &s, &a, &y->out, SL_ACT_NONE);
        sl_add(ctx, x, x, &s);
        sl_release(ctx, inner);
    }
    { /* x += fc2(gelu(fc1(norm2(x)))) */
        sl_tensor hidden = sl_new2(ctx, SL_F32, n, m->c.intermediate);
        sl_layernorm(ctx, &s, x, &y->norm2.w, &y->norm2.b, m->c.eps);
        sl_apply(ctx, &hidden, &s, &y->fc1, SL_ACT_GELU_ERF);
        sl_apply(ctx, &s, &hidden, &y->fc2, SL_ACT_NONE);
        sl_add(ctx, x, x, &s);
    }
    sl_release(ctx, mark);
}

void sl_clip_encode(sl_ctx *ctx, const sl_clip *m, const float *pixels, const sl_tensor *out)
{
    const int64_t tokens = (int64_t)side(m) * side(m) + 1;
    if (out->rank != 2 || out->shape[0] != tokens || out->shape[1] != m->c.hidden) {
        char got[96];
        sl_ctx_fail(ctx, SL_SHAPE, "clip: output has shape %s, want [%lld, %d]",
                    sl_shape_text(out, got, sizeof got), (long long)tokens, m->c.hidden);
        return;
    }
    embed(ctx, m, out, pixels); /* [tokens, hidden] */
    for (int i = 0; i < m->used && !sl_cancelled(ctx) && sl_ok(ctx); i++) {
        char name[32];
        encoder_layer(ctx, m, &m->layers[i], out);
        snprintf(name, sizeof name, "clip.layer.%d", i);
        sl_tap(ctx, name, out);
    }
}
