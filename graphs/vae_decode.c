/* vae_decode.c - the autoencoder's decoder: latents to frames, a chunk of latent frames
 * at a time. */
#include "graphs/vae.h"

#include <stdio.h>
#include <stdlib.h>

#include "graphs/vae_blocks.h"

enum { LEVELS = 4 };

typedef struct {
    sl_vae_res *res; /* res_blocks + 1 of them */
    /* time.w.rank 0: this level keeps its frames; twice.w.rank 0: the last level */
    sl_affine time, twice;
} level;

struct sl_vae_decoder {
    sl_vae_config c;
    sl_affine post_quant, conv_in; /* [z,z,1,1,1], [C,z,3,3,3] */
    sl_vae_mid mid;
    level levels[LEVELS];
    sl_tensor norm_out;
    sl_affine conv_out;                 /* [3,base,3,3,3]; patched: 12 for 3 */
    float mul[SL_MAX_Z], add[SL_MAX_Z]; /* latent = normalised * mul + add */
};

struct sl_vae_decode {
    const sl_vae_decoder *m;
    sl_vae_caches set;
    int h, w;   /* pixels */
    bool begun; /* the first frame has passed */
};

sl_vae_decoder *sl_vae_decoder_new(const sl_vae_config *config, sl_loader *l)
{
    sl_vae_decoder *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    char p[96];
    int64_t c = (int64_t)config->decoder_base * config->mult[LEVELS - 1];
    m->c = *config;
    sl_vae_want_conv(l, &m->post_quant, config->z, config->z, &SL_CONV_111, false,
                     "post_quant_conv");
    sl_vae_want_conv(l, &m->conv_in, c, config->z, &SL_CONV_333, false, "decoder.conv_in");
    sl_vae_want_mid(l, &m->mid, c, "decoder.mid_block");
    for (int i = 0; i < LEVELS; i++) {
        level *v = &m->levels[i];
        int64_t out = (int64_t)config->decoder_base * config->mult[LEVELS - 1 - i];
        if (!(v->res = calloc((size_t)config->res_blocks + 1, sizeof *v->res))) {
            sl_vae_decoder_free(&m);
            return NULL;
        }
        for (int j = 0; j <= config->res_blocks; j++, c = out) {
            snprintf(p, sizeof p, "decoder.up_blocks.%d.resnets.%d", i, j);
            sl_vae_want_res(l, &v->res[j], c, out, p);
        }
        if (i == LEVELS - 1) break;
        const char *up = config->residual ? "upsampler" : "upsamplers.0";
        snprintf(p, sizeof p, "decoder.up_blocks.%d.%s.time_conv", i, up);
        if (config->temporal_down[LEVELS - 2 - i])
            sl_vae_want_conv(l, &v->time, 2 * c, c, &SL_CONV_TIME, false, p);
        snprintf(p, sizeof p, "decoder.up_blocks.%d.%s.resample.1", i, up);
        sl_vae_want_conv(l, &v->twice, config->residual ? c : c / 2, c, &SL_CONV_DOUBLE, true, p);
        if (!config->residual) c /= 2;
    }
    sl_vae_want_norm(l, &m->norm_out, c, false, "decoder.norm_out");
    sl_vae_want_conv(l, &m->conv_out, config->patched ? 12 : 3, c, &SL_CONV_333, false,
                     "decoder.conv_out");
    for (int z = 0; z < config->z; z++) {
        m->mul[z] = 1 / (1 / config->std[z]);
        m->add[z] = config->mean[z];
    }
    return m;
}

void sl_vae_decoder_free(sl_vae_decoder **m)
{
    if (!*m) return;
    for (int i = 0; i < LEVELS; i++) free((*m)->levels[i].res);
    free(*m);
    *m = NULL;
}

/* The caches of a video of h x w pixels, in the order of sl_vae_decode_chunk. */
static void add_caches(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_decoder *m,
                       int64_t h, int64_t w)
{
    set->count = 0;
    set->bytes = 0;
    h /= m->c.spatial, w /= m->c.spatial;
    sl_vae_add_cache(set, base, dtype, 2, h, w, m->c.z);
    sl_vae_add_mid(set, base, dtype, &m->mid, h, w);
    for (int i = 0; i < LEVELS; i++) {
        const level *v = &m->levels[i];
        for (int j = 0; j <= m->c.res_blocks; j++)
            sl_vae_add_res(set, base, dtype, &v->res[j], h, w);
        if (v->time.w.rank) sl_vae_add_cache(set, base, dtype, 2, h, w, v->time.w.shape[1]);
        if (v->twice.w.rank) h *= 2, w *= 2;
    }
    sl_vae_add_cache(set, base, dtype, 2, h, w, m->norm_out.shape[0]);
}

size_t sl_vae_decode_bytes(const sl_ctx *ctx, const sl_vae_decoder *m, int h, int w)
{
    sl_vae_caches set = {0};
    add_caches(&set, NULL, sl_act(ctx), m, h, w);
    return set.bytes;
}

sl_vae_decode *sl_vae_decode_start(sl_ctx *ctx, const sl_vae_decoder *m, int h, int w, void *memory)
{
    if (!sl_ok(ctx)) return NULL;
    const int s = m->c.spatial;
    if (h <= 0 || w <= 0 || h % s || w % s) {
        sl_ctx_fail(ctx, SL_SHAPE, "vae: frames are %d x %d pixels, want multiples of %d", w, h, s);
        return NULL;
    }
    sl_vae_decode *d = calloc(1, sizeof *d);
    if (d) {
        *d = (sl_vae_decode){.m = m, .h = h, .w = w};
        add_caches(&d->set, NULL, sl_act(ctx), m, h, w);
        d->set.at = calloc((size_t)d->set.count, sizeof *d->set.at);
    }
    if (!d || !d->set.at) {
        sl_ctx_fail(ctx, SL_NOMEM, "vae: no memory to start a video");
        sl_vae_decode_free(&d);
        return NULL;
    }
    add_caches(&d->set, memory, sl_act(ctx), m, h, w);
    return d;
}

void sl_vae_decode_free(sl_vae_decode **d)
{
    if (!*d) return;
    free((*d)->set.at);
    free(*d);
    *d = NULL;
}

/* Frames behind a level that gets n: the first frame of a video stays one frame. */
static int frames_behind(const sl_vae_decode *d, const level *v, int n)
{
    return !v->time.w.rank ? n : d->begun ? 2 * n : 2 * n - 1;
}

int sl_vae_frames_of(const sl_vae_decode *d, int n)
{
    for (int i = 0; i < LEVELS; i++) n = frames_behind(d, &d->m->levels[i], n);
    return n;
}

static sl_vae_chunk all_of(const sl_tensor *x)
{
    return (sl_vae_chunk){.x = *x, .frames = (int)x->shape[0], .from = 0, .to = (int)x->shape[0]};
}

/* Two frames out of every frame but the first of the video, which passes as it is and
 * which the convolution never sees. */
static sl_tensor double_time(sl_ctx *ctx, const sl_vae_decode *d, const sl_tensor *x,
                             sl_vae_cache *cache, const sl_affine *a)
{
    const int64_t n = x->shape[0], h = x->shape[1], w = x->shape[2], c = x->shape[3],
                  skip = d->begun ? 0 : 1;
    if (n == skip) return *x;
    sl_tensor y = sl_new4(ctx, sl_act(ctx), 2 * n - skip, h, w, c);
    sl_tensor rest = sl_rows(&y, skip, 2 * (n - skip)), seen = sl_rows(x, skip, n - skip);
    if (skip) {
        sl_tensor to = sl_rows(&y, 0, 1), from = sl_rows(x, 0, 1);
        sl_copy(ctx, &to, &from);
    }
    size_t mark = sl_mark(ctx);
    sl_vae_chunk in = all_of(&seen),
                 pairs = sl_vae_causal(ctx, &in, cache, a, &SL_CONV_TIME, NULL, NULL);
    sl_time_shuffle(ctx, &rest, &pairs.x);
    sl_release(ctx, mark);
    return y;
}

/* True: t has this shape. False: ctx has failed. */
static bool has_shape(sl_ctx *ctx, const char *name, const sl_tensor *t, int64_t a, int64_t b,
                      int64_t c, int64_t d)
{
    char found[128];
    if (t->rank == 4 && t->shape[0] == a && t->shape[1] == b && t->shape[2] == c &&
        t->shape[3] == d)
        return true;
    sl_ctx_fail(ctx, SL_SHAPE, "vae: %s are %s, want [%lld, %lld, %lld, %lld]", name,
                sl_shape_text(t, found, sizeof found), (long long)a, (long long)b, (long long)c,
                (long long)d);
    return false;
}

/* latents [z,n,h,w] through the first convolution and the middle to `in` [n,h,w,C], what
 * enters the first level. */
static void enter(sl_ctx *ctx, sl_vae_decode *d, const sl_tensor *in, const sl_tensor *latents)
{
    const sl_vae_decoder *m = d->m;
    const size_t mark = sl_mark(ctx);
    sl_tensor z = sl_new4(ctx, sl_act(ctx), in->shape[0], in->shape[1], in->shape[2], m->c.z);
    sl_to_channels_last(ctx, &z, latents, m->mul, m->add);
    sl_vae_chunk x = all_of(&z);
    x = sl_vae_each(ctx, &x, &m->post_quant, &SL_CONV_111, NULL, NULL);
    sl_vae_causal(ctx, &x, sl_vae_next_cache(&d->set), &m->conv_in, &SL_CONV_333, NULL, in);
    sl_vae_tap(ctx, "conv_in", -1, in);
    x = all_of(in);
    sl_vae_run_mid(ctx, &x, &m->mid, &d->set); /* in place */
    sl_vae_tap(ctx, "mid", -1, in);
    sl_release(ctx, mark);
}

/* Level i on `in`: returns its frames, doubled in time where it does that, but not yet in
 * size. */
static sl_tensor run_level(sl_ctx *ctx, sl_vae_decode *d, int i, const sl_tensor *in)
{
    const level *v = &d->m->levels[i];
    sl_vae_chunk x = all_of(in);
    for (int j = 0; j <= d->m->c.res_blocks; j++) sl_vae_run_res(ctx, &x, &v->res[j], &d->set);
    return v->time.w.rank ? double_time(ctx, d, &x.x, sl_vae_next_cache(&d->set), &v->time) : x.x;
}

/* y, what leaves the last level, through the last convolution to frames. */
static void leave(sl_ctx *ctx, sl_vae_decode *d, const sl_tensor *rgb, const sl_tensor *floats,
                  const sl_tensor *y)
{
    const sl_vae_decoder *m = d->m;
    sl_vae_chunk x = all_of(y);
    sl_vae_norm(ctx, y, y, &m->norm_out, true);
    x = sl_vae_causal(ctx, &x, sl_vae_next_cache(&d->set), &m->conv_out, &SL_CONV_333, NULL,
                      m->c.patched ? NULL : floats);
    sl_vae_tap(ctx, "out", -1, &x.x);
    if (m->c.patched) {
        const sl_tensor pixels = floats ? *floats : sl_new(ctx, sl_act(ctx), 4, rgb->shape);
        sl_pixel_shuffle(ctx, &pixels, &x.x);
        x.x = pixels;
    }
    sl_frames_rgb8(ctx, rgb, &x.x);
}

void sl_vae_decode_chunk(sl_ctx *ctx, sl_vae_decode *d, const sl_tensor *rgb,
                         const sl_tensor *floats, const sl_tensor *latents)
{
    if (!d || !sl_ok(ctx)) return;
    const sl_vae_decoder *m = d->m;
    const int n = latents->rank == 4 && latents->shape[1] > 0 && latents->shape[1] < 1 << 20
                      ? (int)latents->shape[1]
                      : 1;
    const int frames = sl_vae_frames_of(d, n);
    const int64_t h = d->h / m->c.spatial, w = d->w / m->c.spatial; /* of latents */
    if (!has_shape(ctx, "latents", latents, m->c.z, n, h, w) ||
        !has_shape(ctx, "frames", rgb, frames, d->h, d->w, 3) ||
        (floats && !has_shape(ctx, "float frames", floats, frames, d->h, d->w, 3)))
        return;

    /* What enters each level, the largest first: a level's memory is free when the next
     * one has its input. */
    const size_t start = sl_mark(ctx);
    size_t mark[LEVELS];
    sl_tensor in[LEVELS];
    for (int i = LEVELS - 1; i >= 0; i--) {
        int count = n;
        for (int j = 0; j < i; j++) count = frames_behind(d, &m->levels[j], count);
        mark[i] = sl_mark(ctx);
        in[i] =
            sl_new4(ctx, sl_act(ctx), count, h << i, w << i, m->levels[i].res[0].norm1.shape[0]);
    }

    d->set.next = 0;
    enter(ctx, d, &in[0], latents);
    for (int i = 0; i < LEVELS - 1; i++) {
        /* the shortcut first: the level works in its input's memory */
        const sl_tensor *shortcut = m->c.residual ? &in[i + 1] : NULL;
        if (shortcut) sl_dup_up(ctx, shortcut, &in[i], m->levels[i].time.w.rank ? 2 : 1);
        sl_tensor y = run_level(ctx, d, i, &in[i]);
        sl_vae_chunk x = all_of(&y);
        sl_vae_each(ctx, &x, &m->levels[i].twice, &SL_CONV_DOUBLE, shortcut, &in[i + 1]);
        sl_vae_tap(ctx, "up", i, &in[i + 1]);
        sl_release(ctx, mark[i]);
    }
    sl_tensor y = run_level(ctx, d, LEVELS - 1, &in[LEVELS - 1]);
    sl_vae_tap(ctx, "up", LEVELS - 1, &y);
    leave(ctx, d, rgb, floats, &y);
    d->begun = true;
    sl_release(ctx, start);
}
