/* wan_dit.c - the Wan diffusion transformer, one forward after the other; per-job tables
 * in the second half.
 *
 * Memory: at 1280x720x81 a tensor of all 75,600 tokens takes 0.8 GB in bf16, so a block
 * keeps few of them: the tokens x and, during self-attention, all queries, keys and
 * values. Everything else is made and used up a number of tokens at a time, on a GPU all. */
#include "graphs/wan_dit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/minmax.h"
#include "graphs/layers.h"
#include "graphs/operand.h"

#define IMAGE_EPS 1e-5f /* of the image embedder's LayerNorms */

/* Rows of a block's modulation, scale_shift_table + time projection. */
enum { SHIFT_1, SCALE_1, GATE_1, SHIFT_2, SCALE_2, GATE_2, MOD_ROWS };

typedef struct {
    sl_layer q, k, v, out;    /* [dim, dim] */
    sl_tensor norm_q, norm_k; /* [dim]: over all heads together */
} attention;

typedef struct {
    sl_tensor table;           /* F32 [1, 6, dim] */
    attention attn1;           /* among the tokens */
    sl_affine norm2;           /* F32 [dim]; before cross-attention */
    attention attn2;           /* to the text */
    sl_layer image_k, image_v; /* [dim, dim]; and to the image */
    sl_tensor norm_image_k;    /* [dim] */
    sl_layer ffn_in, ffn_out;  /* [ffn, dim], [dim, ffn] */
} block;

struct sl_dit {
    sl_dit_config c;
    int64_t rows;               /* most tokens at once; 0: the device's rows_at_once */
    sl_affine patch;            /* [dim, in_channels, 1, 2, 2] */
    sl_affine time_1, time_2;   /* F32 [dim, freq_dim], [dim, dim] */
    sl_affine time_proj;        /* [6 dim, dim] */
    sl_affine text_1, text_2;   /* [dim, text_dim], [dim, dim] */
    sl_affine image_norm1;      /* F32 [image_dim] */
    sl_affine image_1, image_2; /* [image_dim, image_dim], [dim, image_dim] */
    sl_affine image_norm2;      /* F32 [dim] */
    sl_tensor image_pos;        /* F32 [1, 514, image_dim]; rank 0 without */
    block *blocks;
    sl_tensor table; /* F32 [1, 2, dim]: shift, scale of the head */
    sl_affine head;  /* [4 out_channels, dim] */
};

/* ---- weights ---- */

static void name_attention(sl_loader *l, attention *a, bool eight, int64_t d, int i,
                           const char *which)
{
    sl_want_layer(l, &a->q, eight, d, d, "blocks.%d.%s.to_q", i, which);
    sl_want_layer(l, &a->k, eight, d, d, "blocks.%d.%s.to_k", i, which);
    sl_want_layer(l, &a->v, eight, d, d, "blocks.%d.%s.to_v", i, which);
    sl_want_layer(l, &a->out, eight, d, d, "blocks.%d.%s.to_out.0", i, which);
    sl_weight(l, &a->norm_q, SL_W_VECTOR, 1, &d, "blocks.%d.%s.norm_q.weight", i, which);
    sl_weight(l, &a->norm_k, SL_W_VECTOR, 1, &d, "blocks.%d.%s.norm_k.weight", i, which);
}

static void name_block(sl_loader *l, block *b, const sl_dit_config *c, int i)
{
    const int64_t d = c->dim;
    const bool eight = sl_block_is_eight(&c->precision, i);
    sl_weight(l, &b->table, SL_W_FLOAT, 3, (int64_t[]){1, MOD_ROWS, d},
              "blocks.%d.scale_shift_table", i);
    name_attention(l, &b->attn1, eight, d, i, "attn1");
    sl_want_norm(l, &b->norm2, SL_W_FLOAT, d, "blocks.%d.norm2", i);
    name_attention(l, &b->attn2, eight, d, i, "attn2");
    if (c->image_dim) {
        sl_want_layer(l, &b->image_k, eight, d, d, "blocks.%d.attn2.add_k_proj", i);
        sl_want_layer(l, &b->image_v, eight, d, d, "blocks.%d.attn2.add_v_proj", i);
        sl_weight(l, &b->norm_image_k, SL_W_VECTOR, 1, &d, "blocks.%d.attn2.norm_added_k.weight",
                  i);
        sl_weight_skip(l, "blocks.%d.attn2.norm_added_q.weight", i); /* stored, never used */
    }
    sl_want_layer(l, &b->ffn_in, eight, c->ffn_dim, d, "blocks.%d.ffn.net.0.proj", i);
    sl_want_layer(l, &b->ffn_out, eight, d, c->ffn_dim, "blocks.%d.ffn.net.2", i);
}

static void name_embedders(sl_loader *l, sl_dit *m)
{
    const sl_dit_config *c = &m->c;
    const int64_t d = c->dim, patch[] = {d, c->in_channels, c->patch[0], c->patch[1], c->patch[2]};
    sl_weight(l, &m->patch.w, SL_W_MATRIX, 5, patch, "patch_embedding.weight");
    sl_weight(l, &m->patch.b, SL_W_VECTOR, 1, &d, "patch_embedding.bias");
    sl_want_linear_f32(l, &m->time_1, d, c->freq_dim, "condition_embedder.time_embedder.linear_1");
    sl_want_linear_f32(l, &m->time_2, d, d, "condition_embedder.time_embedder.linear_2");
    sl_want_linear(l, &m->time_proj, MOD_ROWS * d, d, "condition_embedder.time_proj");
    sl_want_linear(l, &m->text_1, d, c->text_dim, "condition_embedder.text_embedder.linear_1");
    sl_want_linear(l, &m->text_2, d, d, "condition_embedder.text_embedder.linear_2");
    if (!c->image_dim) return;
    sl_want_norm(l, &m->image_norm1, SL_W_FLOAT, c->image_dim,
                 "condition_embedder.image_embedder.norm1");
    sl_want_linear(l, &m->image_1, c->image_dim, c->image_dim,
                   "condition_embedder.image_embedder.ff.net.0.proj");
    sl_want_linear(l, &m->image_2, d, c->image_dim, "condition_embedder.image_embedder.ff.net.2");
    sl_want_norm(l, &m->image_norm2, SL_W_FLOAT, d, "condition_embedder.image_embedder.norm2");
    if (c->pos_embed_seq_len)
        sl_weight(l, &m->image_pos, SL_W_FLOAT, 3,
                  (int64_t[]){1, c->pos_embed_seq_len, c->image_dim},
                  "condition_embedder.image_embedder.pos_embed");
}

sl_dit *sl_dit_new(const sl_dit_config *config, sl_loader *l)
{
    sl_dit *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->c = *config;
    m->blocks = calloc((size_t)config->layers, sizeof *m->blocks);
    if (!m->blocks) {
        free(m);
        return NULL;
    }
    name_embedders(l, m);
    for (int i = 0; i < config->layers; i++) name_block(l, &m->blocks[i], config, i);
    sl_weight(l, &m->table, SL_W_FLOAT, 3, (int64_t[]){1, 2, config->dim}, "scale_shift_table");
    sl_want_linear(l, &m->head, 4 * (int64_t)config->out_channels, config->dim, "proj_out");
    return m;
}

void sl_dit_free(sl_dit **m)
{
    if (!*m) return;
    free((*m)->blocks);
    free(*m);
    *m = NULL;
}

void sl_dit_set_rows(sl_dit *m, int64_t rows)
{
    m->rows = rows > 0 ? rows : 0;
}

static void tap_block(sl_ctx *ctx, int i, const char *part, const sl_tensor *t)
{
    char name[48];
    if (!ctx->tap) return;
    snprintf(name, sizeof name, "block.%d%s", i, part);
    sl_tap(ctx, name, t);
}

/* Rows of a tensor that a block makes piece by piece, in order, `rows` in all. */
static void tap_rows(sl_ctx *ctx, int i, const char *part, const sl_tensor *t, int64_t rows)
{
    ctx->tap_of = rows;
    tap_block(ctx, i, part, t);
    ctx->tap_of = 0;
}

/* ---- once a job: context ---- */

static size_t lay_out_context(const sl_ctx *ctx, const sl_dit *m, sl_dit_context *c, void *memory,
                              int image_tokens)
{
    size_t at = 0;
    *c = (sl_dit_context){.image_tokens = image_tokens};
    c->text_kv = sl_carve(memory, &at, sl_act(ctx), 3,
                          (int64_t[]){m->c.layers, SL_TEXT_TOKENS, 2 * (int64_t)m->c.dim});
    if (image_tokens)
        c->image_kv = sl_carve(memory, &at, sl_act(ctx), 3,
                               (int64_t[]){m->c.layers, image_tokens, 2 * (int64_t)m->c.dim});
    return at;
}

size_t sl_dit_context_bytes(const sl_ctx *ctx, const sl_dit *m, int image_tokens)
{
    sl_dit_context c;
    return lay_out_context(ctx, m, &c, NULL, image_tokens);
}

/* One layer's keys [n, dim] and values [n, dim] in kv [layers, n, 2 dim]. */
static void kv_of(const sl_tensor *kv, int layer, sl_tensor *k, sl_tensor *v)
{
    sl_tensor one = sl_rows(kv, layer, 1);
    sl_tensor rows = sl_reshape2(&one, kv->shape[1], kv->shape[2]);
    *k = sl_cols(&rows, 0, kv->shape[2] / 2);
    *v = sl_cols(&rows, kv->shape[2] / 2, kv->shape[2] / 2);
}

static void make_kv(sl_ctx *ctx, const sl_dit *m, const sl_tensor *kv, int layer,
                    const sl_tensor *context, const sl_layer *wk, const sl_layer *wv,
                    const sl_tensor *norm)
{
    const size_t mark = sl_mark(ctx);
    const sl_operand x = sl_operand_for(ctx, wk, context); /* both layers are kept alike */
    sl_tensor k, v;
    kv_of(kv, layer, &k, &v);
    sl_operand_take(ctx, &x, context);
    sl_layer_apply(ctx, &k, &x, wk);
    sl_rmsnorm(ctx, &k, &k, norm, m->c.eps);
    sl_layer_apply(ctx, &v, &x, wv);
    sl_release(ctx, mark);
}

/* text [512, text_dim] -> [512, dim]; all 512 rows count, the zero rows too. */
static sl_tensor embed_text(sl_ctx *ctx, const sl_dit *m, const sl_tensor *text)
{
    sl_tensor y = sl_new2(ctx, sl_act(ctx), SL_TEXT_TOKENS, m->c.dim);
    const size_t mark = sl_mark(ctx);
    sl_tensor h = sl_new2(ctx, sl_act(ctx), SL_TEXT_TOKENS, m->c.dim);
    sl_apply(ctx, &h, text, &m->text_1, SL_ACT_GELU_TANH);
    sl_apply(ctx, &y, &h, &m->text_2, SL_ACT_NONE);
    sl_release(ctx, mark);
    sl_tap(ctx, "text", &y);
    return y;
}

/* image [257, image_dim] -> [257, dim]; 514 for a first and a last picture, told apart by
 * the position table. */
static sl_tensor embed_image(sl_ctx *ctx, const sl_dit *m, const sl_tensor *image)
{
    const int64_t n = image->shape[0], di = m->c.image_dim;
    sl_tensor y = sl_new2(ctx, sl_act(ctx), n, m->c.dim);
    const size_t mark = sl_mark(ctx);
    sl_tensor a = sl_new2(ctx, sl_act(ctx), n, di), b = sl_new2(ctx, sl_act(ctx), n, di);
    if (m->image_pos.rank) {
        sl_tensor pos = sl_reshape2(&m->image_pos, m->c.pos_embed_seq_len, di);
        sl_add(ctx, &a, image, &pos);
        image = &a;
    }
    sl_layernorm(ctx, &a, image, &m->image_norm1.w, &m->image_norm1.b, IMAGE_EPS);
    sl_apply(ctx, &b, &a, &m->image_1, SL_ACT_GELU_ERF);
    sl_apply(ctx, &y, &b, &m->image_2, SL_ACT_NONE);
    sl_layernorm(ctx, &y, &y, &m->image_norm2.w, &m->image_norm2.b, IMAGE_EPS);
    sl_release(ctx, mark);
    sl_tap(ctx, "image", &y);
    return y;
}

static bool context_fits(sl_ctx *ctx, const sl_dit *m, const sl_tensor *text,
                         const sl_tensor *image)
{
    char got[96];
    if (text->rank != 2 || text->shape[0] != SL_TEXT_TOKENS || text->shape[1] != m->c.text_dim) {
        sl_ctx_fail(ctx, SL_SHAPE, "dit: text has shape %s, want [%d, %d]",
                    sl_shape_text(text, got, sizeof got), SL_TEXT_TOKENS, m->c.text_dim);
        return false;
    }
    if (!image != !m->c.image_dim) {
        sl_ctx_fail(ctx, SL_ARG,
                    image ? "dit: image tokens given, but the model takes none"
                          : "dit: the model wants image tokens, got none");
        return false;
    }
    if (!image) return true;
    const int pos = m->c.pos_embed_seq_len;
    if (image->rank != 2 || image->shape[1] != m->c.image_dim || image->shape[0] < 1 ||
        (pos && image->shape[0] != pos)) {
        sl_ctx_fail(ctx, SL_SHAPE, "dit: image tokens have shape %s, want [%d, %d]",
                    sl_shape_text(image, got, sizeof got), pos ? pos : 257, m->c.image_dim);
        return false;
    }
    return true;
}

void sl_dit_context_make(sl_ctx *ctx, const sl_dit *m, sl_dit_context *out, void *memory,
                         const sl_tensor *text, const sl_tensor *image)
{
    if (!context_fits(ctx, m, text, image)) {
        *out = (sl_dit_context){0};
        return;
    }
    lay_out_context(ctx, m, out, memory, image ? (int)image->shape[0] : 0);
    const size_t mark = sl_mark(ctx);
    sl_tensor t = embed_text(ctx, m, text), p = {0};
    if (image) p = embed_image(ctx, m, image);
    for (int i = 0; i < m->c.layers && !sl_cancelled(ctx); i++) {
        const block *b = &m->blocks[i];
        make_kv(ctx, m, &out->text_kv, i, &t, &b->attn2.k, &b->attn2.v, &b->attn2.norm_k);
        if (image)
            make_kv(ctx, m, &out->image_kv, i, &p, &b->image_k, &b->image_v, &b->norm_image_k);
    }
    sl_release(ctx, mark);
}

/* ---- once a job: times ---- */

static size_t lay_out_times(const sl_ctx *ctx, const sl_dit *m, sl_dit_times *t, void *memory,
                            int steps)
{
    size_t at = 0;
    *t = (sl_dit_times){.steps = steps};
    t->temb = sl_carve(memory, &at, sl_act(ctx), 2, (int64_t[]){steps, m->c.dim});
    t->proj =
        sl_carve(memory, &at, sl_act(ctx), 2, (int64_t[]){steps, MOD_ROWS * (int64_t)m->c.dim});
    return at;
}

size_t sl_dit_times_bytes(const sl_ctx *ctx, const sl_dit *m, int steps)
{
    sl_dit_times t;
    return lay_out_times(ctx, m, &t, NULL, steps);
}

/* e F32 [steps, freq_dim] = [cos(t w_k), sin(t w_k)], w_k = 10000^(-k / half), all in
 * float32 as the reference. */
static void upload_sinusoid(sl_ctx *ctx, const sl_tensor *e, const double *timesteps)
{
    const int64_t steps = e->shape[0], half = e->shape[1] / 2;
    if (ctx->ops->plan || !sl_ok(ctx)) return;
    float *host = malloc(sl_bytes(e));
    if (!host) {
        sl_ctx_fail(ctx, SL_NOMEM, "dit: %zu bytes for the time embedding", sl_bytes(e));
        return;
    }
    for (int64_t i = 0; i < steps; i++)
        for (int64_t k = 0; k < half; k++) {
            float angle = (float)timesteps[i] * expf((float)-log(10000.0) * (float)k / (float)half);
            host[i * 2 * half + k] = cosf(angle);
            host[i * 2 * half + half + k] = sinf(angle);
        }
    sl_upload(ctx, e, host);
    sl_sync(ctx); /* before host is freed */
    free(host);
}

void sl_dit_times_make(sl_ctx *ctx, const sl_dit *m, sl_dit_times *out, void *memory,
                       const double *timesteps, int steps)
{
    lay_out_times(ctx, m, out, memory, steps);
    const size_t mark = sl_mark(ctx);
    sl_tensor e = sl_new2(ctx, SL_F32, steps, m->c.freq_dim);
    sl_tensor a = sl_new2(ctx, SL_F32, steps, m->c.dim), b = sl_new2(ctx, SL_F32, steps, m->c.dim);
    sl_tensor s = sl_new2(ctx, sl_act(ctx), steps, m->c.dim);
    upload_sinusoid(ctx, &e, timesteps);
    sl_apply(ctx, &a, &e, &m->time_1, SL_ACT_SILU);
    sl_apply(ctx, &b, &a, &m->time_2, SL_ACT_NONE);
    sl_copy(ctx, &out->temb, &b); /* the one rounding */
    sl_silu(ctx, &s, &out->temb);
    sl_apply(ctx, &out->proj, &s, &m->time_proj, SL_ACT_NONE);
    sl_release(ctx, mark);
    sl_tap(ctx, "time_proj", &out->proj);
}

/* ---- once a job: rotary tables ---- */

static size_t lay_out_rope(const sl_dit *m, sl_dit_rope *r, void *memory, int t, int h, int w)
{
    size_t at = 0;
    const int64_t shape[] = {(int64_t)t * h * w, m->c.head_dim / 2};
    *r = (sl_dit_rope){.t = t, .h = h, .w = w};
    r->cos = sl_carve(memory, &at, SL_F32, 2, shape);
    r->sin = sl_carve(memory, &at, SL_F32, 2, shape);
    return at;
}

size_t sl_dit_rope_bytes(const sl_dit *m, int t, int h, int w)
{
    sl_dit_rope r;
    return lay_out_rope(m, &r, NULL, t, h, w);
}

/* One axis: table [positions, pairs] of f(position * 10000^(-k / pairs)), angles in
 * double. */
static void fill_axis(float *table, int positions, int pairs, double (*f)(double))
{
    for (int p = 0; p < positions; p++)
        for (int k = 0; k < pairs; k++)
            *table++ = (float)f(p / pow(10000.0, (double)(2 * k) / (2 * pairs)));
}

/* Rows (t, y, x) of `table`: pairs of time, then height, then width. `axes` holds (t + h
 * + w) * head_dim / 2 floats. */
static void fill_rope(float *table, float *axes, const sl_dit_rope *r, int head_dim,
                      double (*f)(double))
{
    const size_t hw = (size_t)head_dim / 6, time = (size_t)head_dim / 2 - 2 * hw;
    float *of_t = axes, *of_y = of_t + (size_t)r->t * time, *of_x = of_y + (size_t)r->h * hw;
    fill_axis(of_t, r->t, (int)time, f);
    fill_axis(of_y, r->h, (int)hw, f);
    fill_axis(of_x, r->w, (int)hw, f);
    for (size_t t = 0; t < (size_t)r->t; t++)
        for (size_t y = 0; y < (size_t)r->h; y++)
            for (size_t x = 0; x < (size_t)r->w; x++, table += time + 2 * hw) {
                memcpy(table, of_t + t * time, time * sizeof *table);
                memcpy(table + time, of_y + y * hw, hw * sizeof *table);
                memcpy(table + time + hw, of_x + x * hw, hw * sizeof *table);
            }
}

void sl_dit_rope_make(sl_ctx *ctx, const sl_dit *m, sl_dit_rope *out, void *memory, int t, int h,
                      int w)
{
    const int most = m->c.rope_max;
    if (t < 1 || h < 1 || w < 1 || t > most || h > most || w > most) {
        sl_ctx_fail(ctx, SL_ARG, "dit: token grid %d x %d x %d, want 1 to %d along each axis", t, h,
                    w, most);
        *out = (sl_dit_rope){0};
        return;
    }
    lay_out_rope(m, out, memory, t, h, w);
    if (ctx->ops->plan || !sl_ok(ctx)) return;
    float *host = malloc(sl_bytes(&out->cos));
    float *axes = malloc(sizeof *axes * (size_t)(t + h + w) * (size_t)(m->c.head_dim / 2));
    if (host && axes) {
        fill_rope(host, axes, out, m->c.head_dim, cos);
        sl_upload(ctx, &out->cos, host);
        sl_sync(ctx); /* before host is filled again, and freed */
        fill_rope(host, axes, out, m->c.head_dim, sin);
        sl_upload(ctx, &out->sin, host);
        sl_sync(ctx);
    } else {
        sl_ctx_fail(ctx, SL_NOMEM, "dit: %zu bytes for the rotary tables", sl_bytes(&out->cos));
    }
    free(axes);
    free(host);
}

/* ---- once a job: shares of a team ---- */

static size_t lay_out_share(const sl_ctx *ctx, const sl_dit *m, sl_dit_share *s, void *memory,
                            int64_t tokens)
{
    size_t at = 0;
    const sl_dtype act = sl_act(ctx);
    const int64_t all[] = {tokens, m->c.dim}, head[] = {tokens, 4 * (int64_t)m->c.out_channels},
                  sums[] = {tokens, 2};
    s->q = sl_carve(memory, &at, act, 2, all);
    s->k = sl_carve(memory, &at, act, 2, all);
    s->v = sl_carve(memory, &at, act, 2, all);
    s->o = sl_carve(memory, &at, act, 2, all);
    s->head = sl_carve(memory, &at, act, 2, head);
    s->sums = sl_carve(memory, &at, SL_F32, 2, sums);
    return at;
}

size_t sl_dit_share_bytes(const sl_ctx *ctx, const sl_dit *m, int64_t tokens)
{
    sl_dit_share s;
    return lay_out_share(ctx, m, &s, NULL, tokens);
}

void sl_dit_share_make(sl_ctx *ctx, const sl_dit *m, sl_dit_share *out, sl_comm *comm, sl_lane lane,
                       const sl_team *team, int64_t tokens)
{
    size_t there = 0;
    void *window = comm ? sl_comm_window(comm, &there) : NULL;
    *out = (sl_dit_share){0};
    if (!sl_ok(ctx)) return;
    if (team->size < 1 || m->c.heads % team->size) {
        char fit[96] = "";
        for (int k = 1; k <= SL_RANKS; k++)
            if (m->c.heads % k == 0)
                snprintf(fit + strlen(fit), sizeof fit - strlen(fit), "%s%d", k > 1 ? ", " : "", k);
        sl_ctx_fail(ctx, SL_ARG, "dit: a team of %d for %d heads, want one of %s", team->size,
                    m->c.heads, fit);
        return;
    }
    if ((team->granule > 1 ? team->granule : 1) != ctx->ops->row_granule) {
        sl_ctx_fail(ctx, SL_ARG, "dit: a team with granules of %d rows, want %d", team->granule,
                    ctx->ops->row_granule);
        return;
    }
    const size_t wanted = sl_dit_share_bytes(ctx, m, tokens);
    if (comm && there < wanted) {
        sl_ctx_fail(ctx, SL_NOMEM, "dit: the window has %zu bytes, want %zu for %lld tokens", there,
                    wanted, (long long)tokens);
        return;
    }
    lay_out_share(ctx, m, out, window, tokens);
    out->comm = comm, out->lane = lane, out->team = *team;
    out->tokens = tokens;
}

void sl_dit_share_weigh(sl_ctx *ctx, sl_dit_share *s, const uint8_t weight[SL_RANKS], int count,
                        sl_fbcache *const caches[])
{
    const sl_fbcache_share with = {s->comm, s->lane, &s->sums};
    sl_team to = s->team;
    memcpy(to.weight, weight, sizeof to.weight);
    if (!sl_shares_fit(weight, to.size)) count = 0; /* sl_comm_weigh tells */
    for (int i = 0; i < count; i++) sl_fbcache_move(ctx, caches[i], &with, &s->o, &to);
    sl_comm_weigh(ctx, s->comm, s->lane, weight);
    if (sl_ok(ctx)) s->team = to;
}

double sl_dit_part_of_rows(const sl_dit *m, int64_t tokens, int image_tokens)
{
    /* multiplications of one token in one layer: six products of dim x dim, two with the
     * feed-forward's width, scores and sums of each attention */
    const double d = m->c.dim,
                 rows = d * (6 * d + 2.0 * m->c.ffn_dim + 2.0 * (SL_TEXT_TOKENS + image_tokens)),
                 heads = 2 * d * (double)tokens;
    return rows / (rows + heads);
}

/* ---- a block ---- */

/* What one forward passes to its blocks. */
typedef struct {
    const sl_dit *m;
    const sl_dit_input *in;
    /* of this step, and of the tokens of kept frames: [1, dim], [6, dim] */
    sl_tensor temb[2], proj[2];
    int64_t kept;       /* so many of this rank's rows, the first ones, are of kept frames */
    sl_tensor cos, sin; /* of this rank's rows */
    sl_share mine;      /* which rows of all tokens are this rank's */
    int64_t tokens;     /* all */
    int64_t chunk;      /* rows at once */
    float scale;        /* 1 / sqrt(head_dim) */
} forward;

/* How many of n tokens the layers take at once. */
static int64_t rows_at_once(const sl_ctx *ctx, const sl_dit *m, int64_t n)
{
    const int64_t most = m->rows ? m->rows : ctx->ops->rows_at_once;
    return most ? sl_smaller(n, most) : n;
}

/* Loop over all n rows, at most `chunk` at a time: `rows` rows from `first` on. */
#define EACH_CHUNK(first, rows, n, chunk)                                                          \
    for (int64_t first = 0, rows = sl_smaller(n, chunk); first < (n);                              \
         first += rows, rows = sl_smaller((n) - (first), chunk))

/* Where kept frames are, tokens have one of two timesteps. A modulation then holds its rows twice,
 * first this step's; what is done by rows is done to the kept ones and the others apart. */
static bool has_two_times(const forward *f)
{
    return f->in->kept_frames > 0;
}

/* mod F32 [rows or 2 * rows, dim] = table [rows, dim] + what[i], of one row or as many. */
static sl_tensor new_modulation(sl_ctx *ctx, const forward *f, const sl_tensor *table,
                                const sl_tensor what[2])
{
    const int64_t rows = table->shape[0], d = table->shape[1], times = has_two_times(f) ? 2 : 1;
    const sl_tensor mod = sl_new2(ctx, SL_F32, times * rows, d);
    for (int64_t t = 0; t < times; t++) {
        const int64_t at_once = what[t].shape[0];
        for (int64_t r = 0; r < rows; r += at_once) {
            const sl_tensor to = sl_rows(&mod, t * rows + r, at_once),
                            from = sl_rows(table, r, at_once);
            sl_add(ctx, &to, &from, &what[t]);
        }
    }
    return mod;
}

/* Row `row` of mod for this step's tokens, or for kept ones. */
static sl_tensor modulation(const forward *f, const sl_tensor *mod, int row, bool kept)
{
    return sl_row(mod, (has_two_times(f) && kept ? mod->shape[0] / 2 : 0) + row);
}

/* How many of n rows, which begin at this rank's row `first`, are of kept frames. */
static int64_t kept_among(const forward *f, int64_t first, int64_t n)
{
    return f->kept <= first ? 0 : sl_smaller(f->kept - first, n);
}

/* y = LN(x) modulated by rows `shift` and the one after it, its scale; x is this rank's rows from
 * `first` on. */
static void modulate(sl_ctx *ctx, const forward *f, const sl_operand *y, const sl_tensor *x,
                     int64_t first, const sl_tensor *mod, int shift)
{
    const int64_t n = x->shape[0], kept = kept_among(f, first, n);
    for (int part = 0; part < 2; part++) {
        const int64_t from = part ? 0 : kept, rows = part ? kept : n - kept;
        if (!rows) continue;
        const sl_operand to = sl_operand_rows(y, from, rows);
        const sl_tensor of = sl_rows(x, from, rows), shift_of = modulation(f, mod, shift, part),
                        scale_of = modulation(f, mod, shift + 1, part);
        sl_operand_modulate(ctx, &to, &of, &scale_of, &shift_of, f->m->c.eps);
    }
}

/* x += gate * branch, `branch` being layer `w` of a, the gate row `gate` of mod (NULL: none); x is
 * this rank's rows from `first` on, y memory to work in. A tap sees the branch alone, made once
 * more for it. With two times the product is never joined with the sum: a row's bits must not
 * depend on which rows stand beside it. */
static void add_branch(sl_ctx *ctx, const forward *f, int i, const char *part, const sl_tensor *x,
                       int64_t first, const sl_tensor *y, const sl_operand *a, const sl_layer *w,
                       const sl_tensor *mod, int gate)
{
    if (ctx->tap && (i == 0 || ctx->tap_parts)) {
        sl_layer_apply(ctx, y, a, w);
        tap_rows(ctx, i, part, y, f->mine.rows);
    }
    if (!mod || !has_two_times(f)) {
        const sl_tensor by = mod ? modulation(f, mod, gate, false) : (sl_tensor){0};
        sl_layer_add(ctx, x, y, a, w, mod ? &by : NULL);
        return;
    }
    const int64_t n = x->shape[0], kept = kept_among(f, first, n);
    sl_layer_apply(ctx, y, a, w);
    for (int k = 0; k < 2; k++) {
        const int64_t from = k ? 0 : kept, rows = k ? kept : n - kept;
        if (!rows) continue;
        const sl_tensor to = sl_rows(x, from, rows), of = sl_rows(y, from, rows),
                        by = modulation(f, mod, gate, k);
        sl_gated_add(ctx, &to, &of, &by);
    }
}

/* What attention takes: q NULL: it comes elsewhere. */
static void tap_attention(sl_ctx *ctx, int i, const char *part, const sl_tensor *q,
                          const sl_tensor *k, const sl_tensor *v)
{
    static const char *const OF[] = {"q", "k", "v"};
    const sl_tensor *const all[] = {q, k, v};
    char name[32];
    for (int n = 0; n < 3; n++) {
        snprintf(name, sizeof name, "%s%s", part, OF[n]);
        if (all[n]) tap_block(ctx, i, name, all[n]);
    }
}

/* Block i attends in 8 bits among the tokens. */
static bool attends_in_eight(const forward *f, int i)
{
    return !f->in->whole_attention && sl_attends_in_eight(&f->m->c.precision, i, f->in->step);
}

/* Keys and values of the tokens in 8 bits, from the arena. */
static sl_keys_eight eight_keys(sl_ctx *ctx, const sl_tensor *k, const sl_tensor *v, int heads)
{
    const sl_keys_eight keys = sl_new_keys_eight(ctx, k->shape[0], k->shape[1], heads);
    sl_code_keys(ctx, &keys, k, v, heads);
    return keys;
}

/* q = its norm with rotation; in 8 bits where `codes` has rows, and q then only where it is tapped.
 * cos and sin are of q's rows. */
static void make_queries(sl_ctx *ctx, const forward *f, const sl_queries_eight *codes,
                         const sl_tensor *q, const sl_tensor *norm, const sl_tensor *cos,
                         const sl_tensor *sin)
{
    const sl_dit_config *c = &f->m->c;
    if (codes->codes.rank && !ctx->tap_parts) {
        sl_rmsnorm_rope_queries(ctx, codes, q, norm, c->eps, cos, sin, c->heads, f->scale);
        return;
    }
    sl_rmsnorm_rope(ctx, q, q, norm, c->eps, cos, sin, c->heads);
    if (codes->codes.rank) sl_code_queries(ctx, codes, q, c->heads, f->scale);
}

/* x += gate * out(attention(LN(x) modulated)): queries, keys and values of all tokens
 * first, then attention chunk by chunk. */
static void self_attention(sl_ctx *ctx, const forward *f, int i, const sl_tensor *x,
                           const sl_tensor *mod)
{
    const sl_dit_config *c = &f->m->c;
    const attention *a = &f->m->blocks[i].attn1;
    const int64_t n = x->shape[0], d = c->dim;
    const size_t mark = sl_mark(ctx);
    sl_tensor q = sl_new2(ctx, sl_act(ctx), n, d), k = sl_new2(ctx, sl_act(ctx), n, d),
              v = sl_new2(ctx, sl_act(ctx), n, d);
    const sl_tensor attended = sl_new2(ctx, sl_act(ctx), f->chunk, d);
    const sl_operand in = sl_operand_for(ctx, &a->q, &attended); /* of the layers */
    const bool eight = attends_in_eight(f, i);
    sl_queries_eight codes = {0};
    sl_keys_eight keys = {0};
    if (eight) codes = sl_new_queries_eight(ctx, n, d, c->heads);

    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_operand s = sl_operand_rows(&in, 0, rows);
        const sl_tensor xr = sl_rows(x, r, rows);
        const sl_tensor qr = sl_rows(&q, r, rows), kr = sl_rows(&k, r, rows),
                        vr = sl_rows(&v, r, rows);
        const sl_tensor c_r = sl_rows(&f->cos, r, rows), s_r = sl_rows(&f->sin, r, rows);
        const sl_queries_eight codes_r =
            eight ? sl_queries_eight_rows(&codes, r, rows) : (sl_queries_eight){0};
        modulate(ctx, f, &s, &xr, r, mod, SHIFT_1);
        sl_layer_apply(ctx, &kr, &s, &a->k);
        sl_rmsnorm_rope(ctx, &kr, &kr, &a->norm_k, c->eps, &c_r, &s_r, c->heads);
        sl_layer_apply(ctx, &qr, &s, &a->q);
        make_queries(ctx, f, &codes_r, &qr, &a->norm_q, &c_r, &s_r);
        sl_layer_apply(ctx, &vr, &s, &a->v);
    }
    if (ctx->tap_parts) tap_attention(ctx, i, ".attn1.", &q, &k, &v);
    if (eight) keys = eight_keys(ctx, &k, &v, c->heads);
    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_operand s = sl_operand_rows(&in, 0, rows);
        const sl_tensor xr = sl_rows(x, r, rows), qr = sl_rows(&q, r, rows),
                        o = sl_rows(&attended, 0, rows);
        if (eight) {
            const sl_queries_eight codes_r = sl_queries_eight_rows(&codes, r, rows);
            sl_attention_eight(ctx, &o, &codes_r, &keys, c->heads, 1, NULL, 0, NULL);
        } else sl_attention(ctx, &o, &qr, &k, &v, c->heads, f->scale, NULL, false);
        sl_operand_take(ctx, &s, &o);
        add_branch(ctx, f, i, ".attn1", &xr, r, &qr, &s, &a->out, mod, GATE_1);
    }
    sl_release(ctx, mark);
}

/* Columns [first, first + cols) of x w to y [n, cols]. */
static void project(sl_ctx *ctx, const forward *f, const sl_tensor *y, const sl_operand *x,
                    const sl_layer *w, int64_t first, int64_t cols)
{
    if (!cols) return;
    const sl_layer part = sl_layer_columns(w, first, cols);
    EACH_CHUNK (r, rows, y->shape[0], f->chunk) {
        const sl_tensor yr = sl_rows(y, r, rows);
        const sl_operand xr = sl_operand_rows(x, r, rows);
        sl_layer_apply(ctx, &yr, &xr, &part);
    }
}

/* The columns of `all` [N, dim] that are of this rank's heads. */
static sl_tensor own_heads(const forward *f, const sl_tensor *all)
{
    const sl_dit_share *s = f->in->share;
    const int64_t share = all->shape[1] / s->team.size;
    return sl_cols(all, s->team.me * share, share);
}

/* y = norm(x w) with rotation, of this rank's rows of `all`, then to whoever has the heads. */
static void send_normed(sl_ctx *ctx, const forward *f, const sl_tensor *all, const sl_operand *x,
                        const sl_layer *w, const sl_tensor *norm)
{
    const sl_dit_share *s = f->in->share;
    const sl_tensor y = sl_rows(all, f->mine.first, f->mine.rows);
    project(ctx, f, &y, x, w, 0, y.shape[1]);
    EACH_CHUNK (r, rows, y.shape[0], f->chunk) {
        const sl_tensor yr = sl_rows(&y, r, rows), c_r = sl_rows(&f->cos, r, rows),
                        s_r = sl_rows(&f->sin, r, rows);
        sl_rmsnorm_rope(ctx, &yr, &yr, norm, f->m->c.eps, &c_r, &s_r, f->m->c.heads);
    }
    sl_comm_to_heads(ctx, s->comm, s->lane, all, &y, f->tokens, false);
}

/* y = x w, of this rank's rows of `all`, to whoever has the heads: the others' columns first, which
 * travel while this rank's own are computed. By pieces of rows instead, 1 and 4 of them took 4.587
 * and 4.631 s a forward at 1280x720x81 on two H200: smaller products cost what is hidden. */
static void send_values(sl_ctx *ctx, const forward *f, const sl_tensor *all, const sl_operand *x,
                        const sl_layer *w)
{
    const sl_dit_share *s = f->in->share;
    const sl_tensor y = sl_rows(all, f->mine.first, f->mine.rows);
    const int64_t d = y.shape[1], share = d / s->team.size, own = s->team.me * share,
                  end = own + share;
    if (ctx->ops->columns_apart) {
        const sl_tensor before = sl_cols(&y, 0, own), after = sl_cols(&y, end, d - end),
                        mine = sl_cols(&y, own, share);
        project(ctx, f, &before, x, w, 0, own);
        project(ctx, f, &after, x, w, end, d - end);
        sl_comm_to_heads(ctx, s->comm, s->lane, all, &y, f->tokens, false);
        project(ctx, f, &mine, x, w, own, share);
        return;
    }
    project(ctx, f, &y, x, w, 0, d);
    sl_comm_to_heads(ctx, s->comm, s->lane, all, &y, f->tokens, false);
}

/* As self_attention, of a team: keys travel while queries are computed, queries while values are;
 * then each rank attends with its heads for the rows of all, its own rows last, so that the others'
 * results travel meanwhile.
 *
 * Each of q, k, v and o [N, dim] in the window has two parts that this rank works on, its rows and
 * the columns of its heads. Where they cross, what it makes is where it is wanted: nothing of its
 * own is copied. The others write the rest of one or of the other; what neither has stays empty. */
static void shared_self_attention(sl_ctx *ctx, const forward *f, int i, const sl_tensor *x,
                                  const sl_tensor *mod)
{
    const sl_dit_config *c = &f->m->c;
    const sl_dit_share *s = f->in->share;
    const attention *a = &f->m->blocks[i].attn1;
    const int size = s->team.size, heads = c->heads / size;
    const int64_t n = x->shape[0], d = c->dim, share = d / size;
    const size_t mark = sl_mark(ctx);
    const sl_operand in = sl_operand_new(ctx, &a->q, n, d); /* of the layers */
    modulate(ctx, f, &in, x, 0, mod, SHIFT_1);
    /* the others attend no more with what they had of the block before (sl_comm_signal) */
    sl_comm_wait(ctx, s->comm, s->lane, 0);
    send_normed(ctx, f, &s->k, &in, &a->k, &a->norm_k);
    send_normed(ctx, f, &s->q, &in, &a->q, &a->norm_q);
    send_values(ctx, f, &s->v, &in, &a->v);
    sl_comm_wait(ctx, s->comm, s->lane, 0);

    int64_t first[SL_RANKS + 1];
    sl_done done[SL_RANKS];
    const sl_tensor q = own_heads(f, &s->q), k = own_heads(f, &s->k), v = own_heads(f, &s->v),
                    o = own_heads(f, &s->o), mine = sl_rows(&s->o, f->mine.first, n),
                    scratch = sl_rows(&s->q, f->mine.first, n);
    for (int r = 0; r < size; r++) first[r] = sl_share_of(&s->team, f->tokens, r).first;
    first[size] = f->tokens;
    const size_t keys_mark = sl_mark(ctx);
    if (attends_in_eight(f, i)) {
        const sl_keys_eight keys = eight_keys(ctx, &k, &v, heads);
        const sl_queries_eight codes = sl_new_queries_eight(ctx, f->tokens, share, heads);
        sl_code_queries(ctx, &codes, &q, heads, f->scale);
        sl_attention_eight(ctx, &o, &codes, &keys, heads, size, first, s->team.me, done);
    } else sl_attention_parts(ctx, &o, &q, &k, &v, heads, f->scale, size, first, s->team.me, done);
    sl_release(ctx, keys_mark);
    sl_comm_to_rows(ctx, s->comm, s->lane, &s->o, &o, f->tokens, 0, share, done, false);
    sl_comm_signal(ctx, s->comm, s->lane);
    sl_comm_wait(ctx, s->comm, s->lane, 1);
    const sl_operand result = sl_is_eight(&in) ? in : (sl_operand){.whole = mine};
    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_tensor xr = sl_rows(x, r, rows), y = sl_rows(&scratch, r, rows),
                        o_r = sl_rows(&mine, r, rows);
        const sl_operand s_r = sl_operand_rows(&result, r, rows);
        sl_operand_take(ctx, &s_r, &o_r);
        add_branch(ctx, f, i, ".attn1", &xr, r, &y, &s_r, &a->out, mod, GATE_1);
    }
    sl_release(ctx, mark);
}

/* x += out(attention(q, text) + attention(q, image)), q from LN(x): two softmaxes, one
 * output layer, no gate. */
static void cross_attention(sl_ctx *ctx, const forward *f, int i, const sl_tensor *x)
{
    const sl_dit_config *c = &f->m->c;
    const block *b = &f->m->blocks[i];
    const int64_t n = x->shape[0], d = c->dim;
    const size_t mark = sl_mark(ctx);
    const sl_tensor attended = sl_new2(ctx, sl_act(ctx), f->chunk, d),
                    query = sl_new2(ctx, sl_act(ctx), f->chunk, d);
    const sl_operand in = sl_operand_for(ctx, &b->attn2.q, &attended); /* of the layers */
    sl_tensor text_k, text_v, image_k, image_v;
    kv_of(&f->in->context->text_kv, i, &text_k, &text_v);
    if (f->in->context->image_tokens) kv_of(&f->in->context->image_kv, i, &image_k, &image_v);
    if (ctx->tap_parts) tap_attention(ctx, i, ".attn2.", NULL, &text_k, &text_v);
    if (ctx->tap_parts && f->in->context->image_tokens)
        tap_attention(ctx, i, ".attn2.image_", NULL, &image_k, &image_v);

    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_operand s = sl_operand_rows(&in, 0, rows);
        const sl_tensor xr = sl_rows(x, r, rows), q = sl_rows(&query, 0, rows),
                        o = sl_rows(&attended, 0, rows);
        sl_operand_layernorm(ctx, &s, &xr, &b->norm2.w, &b->norm2.b, c->eps);
        sl_layer_apply(ctx, &q, &s, &b->attn2.q);
        sl_rmsnorm(ctx, &q, &q, &b->attn2.norm_q, c->eps);
        if (ctx->tap_parts) tap_rows(ctx, i, ".attn2.q", &q, f->mine.rows);
        if (f->in->context->image_tokens)
            sl_attention_two(ctx, &o, &q, &text_k, &text_v, &image_k, &image_v, c->heads, f->scale);
        else sl_attention(ctx, &o, &q, &text_k, &text_v, c->heads, f->scale, NULL, false);
        sl_operand_take(ctx, &s, &o);
        add_branch(ctx, f, i, ".attn2", &xr, r, &q, &s, &b->attn2.out, NULL, 0);
    }
    sl_release(ctx, mark);
}

/* x += gate * ffn_out(gelu(ffn_in(LN(x) modulated))). */
static void feed_forward(sl_ctx *ctx, const forward *f, int i, const sl_tensor *x,
                         const sl_tensor *mod)
{
    const sl_dit_config *c = &f->m->c;
    const block *b = &f->m->blocks[i];
    const int64_t n = x->shape[0];
    const size_t mark = sl_mark(ctx);
    const sl_tensor norm = sl_new2(ctx, sl_act(ctx), f->chunk, c->dim),
                    hidden = sl_new2(ctx, sl_act(ctx), f->chunk, c->ffn_dim);
    const sl_operand in = sl_operand_for(ctx, &b->ffn_in, &norm),
                     between = sl_operand_for(ctx, &b->ffn_out, &hidden);

    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_operand s = sl_operand_rows(&in, 0, rows), g = sl_operand_rows(&between, 0, rows);
        const sl_tensor xr = sl_rows(x, r, rows), y = sl_rows(&norm, 0, rows),
                        h = sl_rows(&hidden, 0, rows);
        modulate(ctx, f, &s, &xr, r, mod, SHIFT_2);
        sl_layer_gelu(ctx, &g, &h, &s, &b->ffn_in);
        add_branch(ctx, f, i, ".ffn", &xr, r, &y, &g, &b->ffn_out, mod, GATE_2);
    }
    sl_release(ctx, mark);
}

/* x [N, dim] goes through block i in place. */
static void run_block(sl_ctx *ctx, const forward *f, int i, const sl_tensor *x)
{
    if (sl_cancelled(ctx) || !sl_ok(ctx)) return;
    const size_t mark = sl_mark(ctx);
    const sl_tensor table = sl_reshape2(&f->m->blocks[i].table, MOD_ROWS, f->m->c.dim);
    const sl_tensor mod = new_modulation(ctx, f, &table, f->proj);
    if (f->in->share) shared_self_attention(ctx, f, i, x, &mod);
    else self_attention(ctx, f, i, x, &mod);
    cross_attention(ctx, f, i, x);
    feed_forward(ctx, f, i, x, &mod);
    sl_release(ctx, mark);
    tap_block(ctx, i, "", x);
}

/* ---- a forward ---- */

/* x [N, dim] = patch embedding of cat(latents, condition). */
static void embed_patches(sl_ctx *ctx, const forward *f, const sl_tensor *x, bool tap)
{
    const sl_dit *m = f->m;
    const size_t mark = sl_mark(ctx);
    const int64_t k = 4 * (int64_t)m->c.in_channels;
    const sl_tensor w = sl_reshape2(&m->patch.w, m->c.dim, k);
    sl_tensor rows = sl_new2(ctx, sl_act(ctx), f->tokens, k); /* [N, (channel, py, px)] */
    sl_patchify(ctx, &rows, f->in->latents, f->in->condition);
    if (tap) sl_tap(ctx, "input", &rows);
    const sl_tensor mine = sl_rows(&rows, f->mine.first, f->mine.rows);
    sl_linear(ctx, x, &mine, &w, &m->patch.b, SL_ACT_NONE);
    if (tap) sl_tap(ctx, "patch", x);
    sl_release(ctx, mark);
}

/* All blocks but the first. */
static void run_rest(sl_ctx *ctx, const forward *f, const sl_tensor *x)
{
    for (int i = 1; i < f->m->c.layers; i++) run_block(ctx, f, i, x);
}

/* All blocks, unless the first says that the others will add what they added before. */
static void run_blocks_cached(sl_ctx *ctx, const forward *f, const sl_tensor *x, sl_fbcache *cache,
                              sl_fbcache_report *report)
{
    run_block(ctx, f, 0, x); /* h1 */
    const size_t mark = sl_mark(ctx);
    sl_tensor r = sl_new2(ctx, sl_act(ctx), x->shape[0], f->m->c.dim);
    /* h0 again, the same bits: cheaper than a fourth token tensor kept through block 0 */
    embed_patches(ctx, f, &r, false);
    sl_sub(ctx, &r, x, &r); /* r = h1 - h0 */
    const sl_dit_share *s = f->in->share;
    const sl_fbcache_share with = {s ? s->comm : NULL, s ? s->lane : SL_LANE_SHARD,
                                   s ? &s->sums : NULL};
    const bool compute = sl_fbcache_decide(ctx, cache, &r, s ? &with : NULL, report);
    sl_release(ctx, mark);
    if (compute) {
        sl_copy(ctx, &cache->residual, x);
        run_rest(ctx, f, x);
        sl_sub(ctx, &cache->residual, x, &cache->residual); /* R = h - h1 */
    } else {
        sl_add(ctx, x, x, &cache->residual);
    }
    if (!sl_ok(ctx)) cache->filled = false; /* half a step must not be reused */
}

/* v = unpatchify(proj_out(LN(x) modulated by the head's table + temb)). */
static void run_head(sl_ctx *ctx, const forward *f, const sl_tensor *v, const sl_tensor *x)
{
    const sl_dit_config *c = &f->m->c;
    const int64_t n = x->shape[0];
    const size_t mark = sl_mark(ctx);
    const sl_tensor table = sl_reshape2(&f->m->table, 2, c->dim);
    const sl_tensor mod = new_modulation(ctx, f, &table, f->temb); /* the same temb to both rows */
    sl_tensor y = sl_new2(ctx, sl_act(ctx), n, 4 * (int64_t)c->out_channels);
    sl_tensor norm = sl_new2(ctx, sl_act(ctx), f->chunk, c->dim);
    EACH_CHUNK (r, rows, n, f->chunk) {
        const sl_tensor xr = sl_rows(x, r, rows), yr = sl_rows(&y, r, rows),
                        s = sl_rows(&norm, 0, rows);
        modulate(ctx, f, &(sl_operand){.whole = s}, &xr, r, &mod, 0);
        sl_apply(ctx, &yr, &s, &f->m->head, SL_ACT_NONE);
    }
    const sl_dit_share *s = f->in->share;
    if (s) {
        sl_comm_gather(ctx, s->comm, s->lane, &s->head, &y, f->tokens);
        sl_comm_wait(ctx, s->comm, s->lane, 0);
    }
    sl_unpatchify(ctx, v, s ? &s->head : &y);
    sl_release(ctx, mark);
}

/* The inputs belong together, as far as the operations do not check it: sl_patchify and
 * sl_unpatchify check ranks and dtypes. */
static bool forward_fits(sl_ctx *ctx, const sl_dit *m, const sl_dit_input *in, int64_t rows)
{
    if (!sl_ok(ctx)) return false;
    const sl_tensor *latents = in->latents, *condition = in->condition;
    const sl_dit_rope *rope = in->rope;
    const sl_fbcache *cache = in->cache;
    const int64_t channels = latents->shape[0] + (condition ? condition->shape[0] : 0);
    const int64_t t = latents->shape[1], h = latents->shape[2] / 2, w = latents->shape[3] / 2;
    if (latents->rank != 4 || channels != m->c.in_channels)
        sl_ctx_fail(ctx, SL_SHAPE, "dit: latents and condition have %lld channels, want %d",
                    (long long)channels, m->c.in_channels);
    else if (in->step < 0 || in->step >= in->times->steps)
        sl_ctx_fail(ctx, SL_ARG, "dit: step %d, the time tables have %d", in->step,
                    in->times->steps);
    else if (in->kept_frames < 0 || in->kept_frames > t)
        sl_ctx_fail(ctx, SL_ARG, "dit: %d kept frames of %lld", in->kept_frames, (long long)t);
    else if (in->kept_frames && (in->kept_step < 0 || in->kept_step >= in->times->steps))
        sl_ctx_fail(ctx, SL_ARG, "dit: step %d of kept frames, the time tables have %d",
                    in->kept_step, in->times->steps);
    else if (rope->t != t || rope->h != h || rope->w != w)
        sl_ctx_fail(ctx, SL_SHAPE,
                    "dit: rotary tables are for %d x %d x %d tokens, want %lld x %lld x %lld",
                    rope->t, rope->h, rope->w, (long long)t, (long long)h, (long long)w);
    else if (!in->context->image_tokens != !m->c.image_dim)
        sl_ctx_fail(ctx, SL_ARG, "dit: the context holds %d image tokens, the model wants %s",
                    in->context->image_tokens, m->c.image_dim ? "some" : "none");
    else if (in->share && in->share->tokens != t * h * w)
        sl_ctx_fail(ctx, SL_SHAPE, "dit: the team's window is for %lld tokens, want %lld",
                    (long long)in->share->tokens, (long long)(t * h * w));
    else if (cache && (cache->prev.shape[0] != rows || cache->prev.shape[1] != m->c.dim))
        sl_ctx_fail(ctx, SL_SHAPE, "dit: the cache is for [%lld, %lld] tokens, want [%lld, %d]",
                    (long long)cache->prev.shape[0], (long long)cache->prev.shape[1],
                    (long long)rows, m->c.dim);
    return sl_ok(ctx);
}

/* This rank's of n tokens; a plan is of the most that they may be. */
static sl_share rows_of(const sl_ctx *ctx, const sl_dit_share *s, int64_t n)
{
    if (!s) return (sl_share){.rows = n};
    if (ctx->ops->plan) return (sl_share){.rows = sl_share_most(n, s->team.size, s->team.granule)};
    return sl_share_of(&s->team, n, s->team.me);
}

void sl_dit_forward(sl_ctx *ctx, const sl_dit *m, const sl_tensor *v, const sl_dit_input *given,
                    sl_fbcache_report *report)
{
    sl_dit_input in = *given;
    if (report) *report = (sl_fbcache_report){.metric = NAN, .computed = true};
    if (in.cache && !(in.cache->rules.threshold > 0)) in.cache = NULL; /* off: spare its copies */
    const int64_t n = in.rope->cos.shape[0], d = m->c.dim;             /* N = T Hp Wp tokens */
    const sl_share mine = rows_of(ctx, in.share, n);
    if (!forward_fits(ctx, m, &in, mine.rows)) return;
    const int64_t kept = in.kept_frames * (int64_t)in.rope->h * in.rope->w - mine.first;
    forward f = {.m = m,
                 .in = &in,
                 .kept = kept < 0 ? 0 : sl_smaller(kept, mine.rows),
                 .cos = sl_rows(&in.rope->cos, mine.first, mine.rows),
                 .sin = sl_rows(&in.rope->sin, mine.first, mine.rows),
                 .mine = mine,
                 .tokens = n,
                 .chunk = rows_at_once(ctx, m, mine.rows),
                 .scale = 1 / sqrtf((float)m->c.head_dim)};
    for (int t = 0; t < (in.kept_frames ? 2 : 1); t++) {
        const int row = t ? in.kept_step : in.step;
        const sl_tensor proj = sl_rows(&in.times->proj, row, 1);
        f.temb[t] = sl_rows(&in.times->temb, row, 1);
        f.proj[t] = sl_reshape2(&proj, MOD_ROWS, d);
    }
    const size_t mark = sl_mark(ctx);
    ctx->whole_rows = n;
    ctx->float32_sums = m->c.precision.float32_sums;
    sl_tensor x = sl_new2(ctx, sl_act(ctx), mine.rows, d);
    embed_patches(ctx, &f, &x, true);
    if (in.cache) {
        run_blocks_cached(ctx, &f, &x, in.cache, report);
    } else {
        run_block(ctx, &f, 0, &x);
        run_rest(ctx, &f, &x);
    }
    run_head(ctx, &f, v, &x);
    ctx->whole_rows = 0;
    sl_release(ctx, mark);
}
