/* vae_encode.c - the autoencoder's encoder, and the condition of image-to-video that it
 * makes of one or two pictures. */
#include <stdio.h>
#include <stdlib.h>

#include "graphs/vae_encode.h"

enum { LEVELS = 4 };

typedef struct {
    sl_vae_res *res; /* res_blocks of them */
    /* half.w.rank 0: the last level; time.w.rank 0: this level keeps its frames */
    sl_affine half, time;
} level;

struct sl_vae_encoder {
    sl_vae_config c;
    sl_affine conv_in; /* [base,3,3,3,3] */
    level levels[LEVELS];
    sl_vae_mid mid;
    sl_tensor norm_out;
    sl_affine conv_out, quant;          /* [2z,C,3,3,3], [2z,2z,1,1,1] */
    float mul[SL_MAX_Z], add[SL_MAX_Z]; /* normalised = mean * mul + add */
};

sl_vae_encoder *sl_vae_encoder_new(const sl_vae_config *config, sl_loader *l)
{
    sl_vae_encoder *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    char p[96];
    int block = 0; /* resnets and downsamplers are numbered in one row */
    int64_t c = config->base;
    m->c = *config;
    sl_vae_want_conv(l, &m->conv_in, c, 3, &SL_CONV_333, false, "encoder.conv_in");
    for (int i = 0; i < LEVELS; i++) {
        level *v = &m->levels[i];
        int64_t out = (int64_t)config->base * config->mult[i];
        if (!(v->res = calloc((size_t)config->res_blocks, sizeof *v->res))) {
            sl_vae_encoder_free(&m);
            return NULL;
        }
        for (int j = 0; j < config->res_blocks; j++, c = out) {
            snprintf(p, sizeof p, "encoder.down_blocks.%d", block++);
            sl_vae_want_res(l, &v->res[j], c, out, p);
        }
        if (i == LEVELS - 1) break;
        snprintf(p, sizeof p, "encoder.down_blocks.%d.resample.1", block);
        sl_vae_want_conv(l, &v->half, c, c, &SL_CONV_HALF, true, p);
        snprintf(p, sizeof p, "encoder.down_blocks.%d.time_conv", block++);
        if (config->temporal_down[i])
            sl_vae_want_conv(l, &v->time, c, c, &SL_CONV_TIME_HALF, false, p);
    }
    sl_vae_want_mid(l, &m->mid, c, "encoder.mid_block");
    sl_vae_want_norm(l, &m->norm_out, c, false, "encoder.norm_out");
    sl_vae_want_conv(l, &m->conv_out, 2 * config->z, c, &SL_CONV_333, false, "encoder.conv_out");
    sl_vae_want_conv(l, &m->quant, 2 * config->z, 2 * config->z, &SL_CONV_111, false, "quant_conv");
    for (int z = 0; z < config->z; z++) {
        m->mul[z] = 1 / config->std[z];
        m->add[z] = -config->mean[z] * m->mul[z];
    }
    return m;
}

void sl_vae_encoder_free(sl_vae_encoder **m)
{
    if (!*m) return;
    for (int i = 0; i < LEVELS; i++) free((*m)->levels[i].res);
    free(*m);
    *m = NULL;
}

/* The caches of a video of h x w pixels, in the order of run_chunk. */
static void add_caches(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_encoder *m,
                       int64_t h, int64_t w)
{
    set->count = 0;
    set->bytes = 0;
    sl_vae_add_cache(set, base, dtype, 2, h, w, 3);
    for (int i = 0; i < LEVELS; i++) {
        const level *v = &m->levels[i];
        for (int j = 0; j < m->c.res_blocks; j++)
            sl_vae_add_res(set, base, dtype, &v->res[j], h, w);
        if (v->half.w.rank) h /= 2, w /= 2;
        if (v->time.w.rank) sl_vae_add_cache(set, base, dtype, 1, h, w, v->time.w.shape[0]);
    }
    sl_vae_add_mid(set, base, dtype, &m->mid, h, w);
    sl_vae_add_cache(set, base, dtype, 2, h, w, m->norm_out.shape[0]);
}

/* Every second frame after the first of the video, which passes as it is: y[j] = W .
 * (x[2j-1], x[2j], x[2j+1]) within the chunk. y[j] repeats y[j-1] if the frames 2j-3 ..
 * 2j+1 are all the same. */
static sl_vae_chunk halve_time(sl_ctx *ctx, const sl_vae_chunk *x, sl_vae_cache *cache,
                               const sl_affine *a)
{
    const int64_t h = x->x.shape[1], w = x->x.shape[2], c = x->x.shape[3];
    sl_vae_chunk y = *x;
    bool some = x->to > x->from, moving = cache->still < 2;
    if (cache->used) {
        y.frames = x->frames / 2;
        y.from = moving || !some ? 0 : x->from / 2;
        y.to = some ? (x->to + 3) / 2 : moving ? 1 : 0;
        if (y.to > y.frames) y.to = y.frames;
        y.x = sl_new4(ctx, sl_act(ctx), y.to - y.from, h, w, c);
        size_t mark = sl_mark(ctx);
        if (y.to > y.from) {
            sl_tensor all = x->x;
            if (2 * y.from != x->from || 2 * y.to != x->to) {
                all = sl_new4(ctx, sl_act(ctx), 2 * (y.to - y.from), h, w, c);
                sl_vae_expand(ctx, &all, x, 2 * y.from, 2 * y.to, &cache->past);
            }
            sl_conv3d(ctx, &y.x, &all, &cache->past, &a->w, &a->b, NULL, &SL_CONV_TIME_HALF);
        }
        sl_release(ctx, mark);
    }
    if (some) {
        sl_tensor end = sl_rows(&x->x, x->to - x->from - 1, 1);
        sl_copy(ctx, &cache->past, &end);
    }
    sl_vae_has_read(cache, x);
    return y;
}

/* One chunk of pictures [n,h,w,3] to n/4 frames (of the first: 1) of moments
 * [.,h/8,w/8,2z] in `into`. */
static sl_vae_chunk run_chunk(sl_ctx *ctx, const sl_vae_encoder *m, sl_vae_caches *set,
                              const sl_vae_chunk *pictures)
{
    set->next = 0;
    sl_vae_chunk x =
        sl_vae_causal(ctx, pictures, sl_vae_next_cache(set), &m->conv_in, &SL_CONV_333, NULL, NULL);
    for (int i = 0; i < LEVELS; i++) {
        const level *v = &m->levels[i];
        for (int j = 0; j < m->c.res_blocks; j++) sl_vae_run_res(ctx, &x, &v->res[j], set);
        if (v->half.w.rank) x = sl_vae_each(ctx, &x, &v->half, &SL_CONV_HALF, NULL);
        if (v->time.w.rank) x = halve_time(ctx, &x, sl_vae_next_cache(set), &v->time);
    }
    sl_vae_run_mid(ctx, &x, &m->mid, set);
    sl_vae_norm(ctx, &x.x, &x.x, &m->norm_out, true);
    x = sl_vae_causal(ctx, &x, sl_vae_next_cache(set), &m->conv_out, &SL_CONV_333, NULL, NULL);
    return sl_vae_each(ctx, &x, &m->quant, &SL_CONV_111, NULL);
}

/* A picture in host memory as a frame. */
static void upload_picture(sl_ctx *ctx, const sl_tensor *frame, const float *picture)
{
    size_t mark = sl_mark(ctx);
    sl_tensor t = sl_new(ctx, SL_F32, 4, frame->shape);
    sl_upload(ctx, &t, picture);
    sl_copy(ctx, frame, &t);
    sl_sync(ctx); /* t's memory is used again */
    sl_release(ctx, mark);
}

/* Chunk `k` of [first, 0 ..., 0 (, last)], `n` frames: frame 0 is a chunk of its own.
 * Stored are the frames that differ from the one before them, and with `every` all. */
static sl_vae_chunk condition_chunk(sl_ctx *ctx, int k, int n, bool is_last, const float *first,
                                    const float *last, bool every, int h, int w)
{
    sl_vae_chunk x = {.frames = n, .from = 0, .to = k <= 1 ? 1 : 0};
    if (every) x.to = n;
    if (is_last && last) {
        if (!x.to) x.from = n - 1;
        x.to = n;
    }
    x.x = sl_new4(ctx, sl_act(ctx), x.to - x.from, h, w, 3);
    if (x.to == x.from) return x;
    sl_zero(ctx, &x.x);
    if (k == 0 || (is_last && last)) {
        sl_tensor picture = sl_rows(&x.x, x.to - x.from - 1, 1);
        upload_picture(ctx, &picture, k ? last : first);
    }
    return x;
}

/* Refuse what the encoder cannot do. */
static bool input_fits(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                       const float *last, int frames, int h, int w)
{
    char text[128];
    int t = m->c.temporal, s = m->c.spatial;
    if (h <= 0 || w <= 0 || h % s || w % s)
        sl_ctx_fail(ctx, SL_SHAPE, "vae: pictures are %d x %d pixels, want multiples of %d", w, h,
                    s);
    else if (frames < 1 || (frames - 1) % t)
        sl_ctx_fail(ctx, SL_ARG, "vae: %d frames, want a multiple of %d, plus 1", frames, t);
    else if (last && frames == 1)
        sl_ctx_fail(ctx, SL_ARG, "vae: 1 frame has no place for a last picture, want at least %d",
                    t + 1);
    else if (out->rank != 4 || out->shape[0] != m->c.z || out->shape[1] != (frames - 1) / t + 1 ||
             out->shape[2] != h / s || out->shape[3] != w / s)
        sl_ctx_fail(ctx, SL_SHAPE, "vae: condition is %s, want [%d, %d, %d, %d]",
                    sl_shape_text(out, text, sizeof text), m->c.z, (frames - 1) / t + 1, h / s,
                    w / s);
    else return true;
    return false;
}

void sl_vae_encode_video(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                         const float *first, const float *last, int frames, int h, int w,
                         float *moments, bool every)
{
    if (!sl_ok(ctx) || !input_fits(ctx, m, out, last, frames, h, w)) return;
    const int chunks = (frames - 1) / m->c.temporal + 1, zh = h / m->c.spatial,
              zw = w / m->c.spatial;
    const size_t start = sl_mark(ctx);
    sl_vae_caches set = {.repeats = true};
    add_caches(&set, NULL, sl_act(ctx), m, h, w);
    if (!(set.at = calloc((size_t)set.count, sizeof *set.at))) {
        sl_ctx_fail(ctx, SL_NOMEM, "vae: no memory for %d caches", set.count);
        return;
    }
    sl_tensor z = sl_new4(ctx, sl_act(ctx), chunks, zh, zw, 2 * m->c.z),
              memory = sl_new1(ctx, SL_U8, (int64_t)set.bytes);
    add_caches(&set, memory.data, sl_act(ctx), m, h, w);

    for (int k = 0; k < chunks && sl_ok(ctx); k++) {
        const size_t mark = sl_mark(ctx);
        sl_vae_chunk x = condition_chunk(ctx, k, k ? m->c.temporal : 1, k == chunks - 1, first,
                                         last, every, h, w);
        sl_vae_chunk y = run_chunk(ctx, m, &set, &x);
        sl_tensor to = sl_rows(&z, k, 1), from = y.to > y.from ? y.x : sl_rows(&z, k - 1, 1);
        sl_copy(ctx, &to, &from);
        sl_release(ctx, mark);
    }
    sl_to_channels_first(ctx, out, &z, m->mul, m->add);
    if (moments) {
        sl_tensor all = sl_new4(ctx, SL_F32, 2 * m->c.z, chunks, zh, zw);
        sl_to_channels_first(ctx, &all, &z, NULL, NULL);
        sl_download(ctx, moments, &all);
    }
    sl_release(ctx, start);
    free(set.at);
}

void sl_vae_encode_condition(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                             const float *first, const float *last, int frames, int h, int w,
                             float *moments)
{
    sl_vae_encode_video(ctx, m, out, first, last, frames, h, w, moments, false);
}
