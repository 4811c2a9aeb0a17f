/* vae.c - the autoencoder's blocks: causal convolution with a cache, residual block,
 * attention of the middle. */
#include "graphs/vae_blocks.h"

#include <math.h>
#include <stdio.h>

const sl_conv SL_CONV_333 = {.kt = 3, .kh = 3, .kw = 3, .stride_t = 1, .stride_hw = 1, .pad = 1};
const sl_conv SL_CONV_111 = {.kt = 1, .kh = 1, .kw = 1, .stride_t = 1, .stride_hw = 1};
const sl_conv SL_CONV_TIME = {.kt = 3, .kh = 1, .kw = 1, .stride_t = 1, .stride_hw = 1};
const sl_conv SL_CONV_TIME_HALF = {.kt = 3, .kh = 1, .kw = 1, .stride_t = 2, .stride_hw = 1};
const sl_conv SL_CONV_HALF = {
    .kt = 1, .kh = 3, .kw = 3, .stride_t = 1, .stride_hw = 2, .pad_end = 1};
const sl_conv SL_CONV_DOUBLE = {
    .kt = 1, .kh = 3, .kw = 3, .stride_t = 1, .stride_hw = 1, .pad = 1, .upsample = 1};

void sl_vae_tap(sl_ctx *ctx, const char *name, int i, const sl_tensor *x)
{
    char text[48];
    if (!ctx->tap) return;
    snprintf(text, sizeof text, i < 0 ? "vae.%s" : "vae.%s.%d", name, i);
    sl_tap(ctx, text, x);
}

/* ---- weights ---- */

void sl_vae_want_conv(sl_loader *l, sl_affine *a, int64_t co, int64_t ci, const sl_conv *k,
                      bool spatial, const char *name)
{
    const int64_t whole[5] = {co, ci, k->kt, k->kh, k->kw}, flat[4] = {co, ci, k->kh, k->kw};
    sl_weight(l, &a->w, SL_W_CONV, spatial ? 4 : 5, spatial ? flat : whole, "%s.weight", name);
    a->w = sl_view(a->w.data, a->w.dtype, 5, whole);
    sl_weight(l, &a->b, SL_W_VECTOR, 1, &co, "%s.bias", name);
}

void sl_vae_want_norm(sl_loader *l, sl_tensor *gamma, int64_t c, bool image, const char *name)
{
    sl_weight(l, gamma, SL_W_FLOAT, image ? 3 : 4, (int64_t[]){c, 1, 1, 1}, "%s.gamma", name);
    *gamma = sl_view1(gamma->data, gamma->dtype, c);
}

void sl_vae_want_res(sl_loader *l, sl_vae_res *r, int64_t ci, int64_t co, const char *name)
{
    char p[128];
    snprintf(p, sizeof p, "%s.norm1", name);
    sl_vae_want_norm(l, &r->norm1, ci, false, p);
    snprintf(p, sizeof p, "%s.conv1", name);
    sl_vae_want_conv(l, &r->conv1, co, ci, &SL_CONV_333, false, p);
    snprintf(p, sizeof p, "%s.norm2", name);
    sl_vae_want_norm(l, &r->norm2, co, false, p);
    snprintf(p, sizeof p, "%s.conv2", name);
    sl_vae_want_conv(l, &r->conv2, co, co, &SL_CONV_333, false, p);
    if (ci == co) return;
    snprintf(p, sizeof p, "%s.conv_shortcut", name);
    sl_vae_want_conv(l, &r->shortcut, co, ci, &SL_CONV_111, false, p);
}

void sl_vae_want_mid(sl_loader *l, sl_vae_mid *m, int64_t c, const char *name)
{
    char p[128];
    for (int i = 0; i < 2; i++) {
        snprintf(p, sizeof p, "%s.resnets.%d", name, i);
        sl_vae_want_res(l, &m->res[i], c, c, p);
    }
    snprintf(p, sizeof p, "%s.attentions.0.norm", name);
    sl_vae_want_norm(l, &m->norm, c, true, p);
    snprintf(p, sizeof p, "%s.attentions.0.to_qkv", name);
    sl_vae_want_conv(l, &m->qkv, 3 * c, c, &SL_CONV_111, true, p);
    snprintf(p, sizeof p, "%s.attentions.0.proj", name);
    sl_vae_want_conv(l, &m->proj, c, c, &SL_CONV_111, true, p);
}

/* ---- caches ---- */

void sl_vae_add_cache(sl_vae_caches *set, void *base, sl_dtype dtype, int64_t n, int64_t h,
                      int64_t w, int64_t c)
{
    sl_tensor past = sl_carve(base, &set->bytes, dtype, 4, (int64_t[]){n, h, w, c});
    if (set->at) set->at[set->count] = (sl_vae_cache){.past = past};
    set->count++;
}

void sl_vae_add_res(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_res *r, int64_t h,
                    int64_t w)
{
    sl_vae_add_cache(set, base, dtype, 2, h, w, r->norm1.shape[0]);
    sl_vae_add_cache(set, base, dtype, 2, h, w, r->norm2.shape[0]);
    if (set->repeats) sl_vae_add_cache(set, base, dtype, 1, h, w, r->norm1.shape[0]);
}

void sl_vae_add_mid(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_mid *m, int64_t h,
                    int64_t w)
{
    for (int i = 0; i < 2; i++) sl_vae_add_res(set, base, dtype, &m->res[i], h, w);
}

sl_vae_cache *sl_vae_next_cache(sl_vae_caches *set)
{
    return &set->at[set->next++];
}

/* ---- chunks ---- */

static int stored(const sl_vae_chunk *x)
{
    return x->to - x->from;
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

void sl_vae_has_read(sl_vae_cache *cache, const sl_vae_chunk *x)
{
    cache->still = stored(x) ? x->frames - x->to : smaller(cache->still + x->frames, 1 << 20);
    cache->used = true;
}

/* A chunk like `x` but for its frames, in arena memory. The spatial size is h x w, the
 * channels c. */
static sl_vae_chunk new_chunk(sl_ctx *ctx, const sl_vae_chunk *x, int from, int to, int64_t h,
                              int64_t w, int64_t c)
{
    return (sl_vae_chunk){.x = sl_new4(ctx, sl_act(ctx), to - from, h, w, c),
                          .frames = x->frames,
                          .from = from,
                          .to = to};
}

void sl_vae_expand(sl_ctx *ctx, const sl_tensor *y, const sl_vae_chunk *x, int from, int to,
                   const sl_tensor *last)
{
    for (int f = from; f < to; f++) {
        bool before = f < x->from || !stored(x);
        sl_tensor s = before ? *last : sl_rows(&x->x, smaller(f, x->to - 1) - x->from, 1),
                  d = sl_rows(y, f - from, 1);
        sl_copy(ctx, &d, &s);
    }
}

/* Frame f of the result is made of frames f-2 .. f, so it repeats if those all do: the
 * last change before this chunk lies cache->still + 1 frames before it, and shows for two
 * frames more. */
void sl_vae_reach(const sl_vae_chunk *x, const sl_vae_cache *cache, int *from, int *to)
{
    bool moving = cache->still < 2;
    *from = moving || !stored(x) ? 0 : x->from;
    *to = smaller(x->frames, stored(x) ? x->to + 2 : moving ? 2 - cache->still : 0);
}

/* The frames before `from` need no more than the cache: from > 0 only if the last two
 * frames read were the same. */
sl_vae_chunk sl_vae_causal(sl_ctx *ctx, const sl_vae_chunk *x, sl_vae_cache *cache,
                           const sl_affine *a, const sl_conv *k, const sl_tensor *residual,
                           const sl_tensor *into)
{
    sl_vae_chunk y = {.frames = x->frames};
    sl_tensor all = x->x;
    sl_vae_reach(x, cache, &y.from, &y.to);
    y.x = into ? *into
               : sl_new4(ctx, sl_act(ctx), stored(&y), x->x.shape[1], x->x.shape[2], a->w.shape[0]);
    size_t mark = sl_mark(ctx);
    if (!cache->used) sl_zero(ctx, &cache->past);
    if (stored(&y)) {
        if (y.from != x->from || y.to != x->to) {
            sl_tensor last = sl_rows(&cache->past, cache->past.shape[0] - 1, 1);
            all = new_chunk(ctx, x, y.from, y.to, x->x.shape[1], x->x.shape[2], x->x.shape[3]).x;
            sl_vae_expand(ctx, &all, x, y.from, y.to, &last);
        }
        sl_conv3d(ctx, &y.x, &all, cache->used ? &cache->past : NULL, &a->w, &a->b, residual, k);
        sl_conv_history(ctx, &cache->past, &all);
    }
    sl_vae_has_read(cache, x);
    sl_release(ctx, mark);
    return y;
}

sl_vae_chunk sl_vae_each(sl_ctx *ctx, const sl_vae_chunk *x, const sl_affine *a, const sl_conv *k,
                         const sl_tensor *residual, const sl_tensor *into)
{
    int64_t h = x->x.shape[1], w = x->x.shape[2], grow = k->upsample ? 2 : 1;
    sl_vae_chunk y = *x;
    h = (h * grow + 2 * k->pad + k->pad_end - k->kh) / k->stride_hw + 1;
    w = (w * grow + 2 * k->pad + k->pad_end - k->kw) / k->stride_hw + 1;
    y.x = into ? *into : sl_new4(ctx, sl_act(ctx), stored(x), h, w, a->w.shape[0]);
    if (stored(x)) sl_conv3d(ctx, &y.x, &x->x, NULL, &a->w, &a->b, residual, k);
    return y;
}

/* ---- blocks ---- */

/* y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) */
void sl_vae_run_res(sl_ctx *ctx, sl_vae_chunk *x, const sl_vae_res *r, sl_vae_caches *set)
{
    const int64_t h = x->x.shape[1], w = x->x.shape[2], ci = x->x.shape[3], co = r->norm2.shape[0];
    sl_vae_cache *cache1 = sl_vae_next_cache(set), *cache2 = sl_vae_next_cache(set);
    sl_vae_cache *last = set->repeats ? sl_vae_next_cache(set) : NULL;
    sl_vae_chunk middle = {.frames = x->frames}, y = *x;
    sl_vae_reach(x, cache1, &middle.from, &middle.to);
    sl_vae_reach(&middle, cache2, &y.from, &y.to);
    /* more frames come out than went in: the residual is written out */
    bool wider = y.from != x->from || y.to != x->to;
    if (wider || r->shortcut.w.rank) y = new_chunk(ctx, x, y.from, y.to, h, w, co);

    size_t mark = sl_mark(ctx);
    sl_vae_chunk residual = y;
    if (wider) {
        if (r->shortcut.w.rank) residual = new_chunk(ctx, x, y.from, y.to, h, w, ci);
        sl_vae_expand(ctx, &residual.x, x, y.from, y.to, last ? &last->past : NULL);
    } else {
        residual.x = x->x;
    }
    if (r->shortcut.w.rank) sl_vae_each(ctx, &residual, &r->shortcut, &SL_CONV_111, NULL, &y.x);
    sl_release(ctx, mark);
    if (last && stored(x)) {
        sl_tensor end = sl_rows(&x->x, stored(x) - 1, 1);
        sl_copy(ctx, &last->past, &end);
    }

    sl_vae_chunk t = new_chunk(ctx, x, x->from, x->to, h, w, ci);
    sl_vae_norm(ctx, &t.x, &x->x, &r->norm1, true);
    t = sl_vae_causal(ctx, &t, cache1, &r->conv1, &SL_CONV_333, NULL, NULL);
    sl_vae_norm(ctx, &t.x, &t.x, &r->norm2, true);
    sl_vae_causal(ctx, &t, cache2, &r->conv2, &SL_CONV_333, &y.x, &y.x);
    sl_release(ctx, mark);
    *x = y;
}

/* x += proj(attention(qkv(norm(x)))), every frame for itself, one head of C. */
static void run_attention(sl_ctx *ctx, sl_vae_chunk *x, const sl_vae_mid *m)
{
    const int64_t h = x->x.shape[1], w = x->x.shape[2], c = x->x.shape[3];
    for (int f = 0; f < stored(x); f++) {
        size_t mark = sl_mark(ctx);
        sl_tensor frame = sl_rows(&x->x, f, 1);
        sl_tensor t = sl_new4(ctx, sl_act(ctx), 1, h, w, c),
                  qkv = sl_new4(ctx, sl_act(ctx), 1, h, w, 3 * c);
        sl_vae_norm(ctx, &t, &frame, &m->norm, false);
        sl_conv3d(ctx, &qkv, &t, NULL, &m->qkv.w, &m->qkv.b, NULL, &SL_CONV_111);
        sl_tensor rows = sl_reshape2(&qkv, h * w, 3 * c), o = sl_reshape2(&t, h * w, c);
        sl_tensor q = sl_cols(&rows, 0, c), k = sl_cols(&rows, c, c), v = sl_cols(&rows, 2 * c, c);
        sl_attention(ctx, &o, &q, &k, &v, 1, 1 / sqrtf((float)c), NULL, false);
        sl_conv3d(ctx, &frame, &t, NULL, &m->proj.w, &m->proj.b, &frame, &SL_CONV_111);
        sl_release(ctx, mark);
    }
}

void sl_vae_run_mid(sl_ctx *ctx, sl_vae_chunk *x, const sl_vae_mid *m, sl_vae_caches *set)
{
    sl_vae_run_res(ctx, x, &m->res[0], set);
    run_attention(ctx, x, m);
    sl_vae_run_res(ctx, x, &m->res[1], set);
}
