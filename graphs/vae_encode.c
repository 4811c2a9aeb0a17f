/* vae_encode.c - the autoencoder's encoder, and the condition of image-to-video that it
 * makes of one or two pictures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graphs/vae_encode.h"

enum { LEVELS = 4 };

typedef struct {
    sl_vae_res *res; /* res_blocks of them */
    /* half.w.rank 0: the last level; time.w.rank 0: this level keeps its frames */
    sl_affine half, time;
} level;

struct sl_vae_encoder {
    sl_vae_config c;
    sl_affine conv_in; /* [base,3,3,3,3]; patched: 12 for 3 */
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
    int block = 0; /* resnets and downsamplers are numbered in one row; not with shortcuts */
    int64_t c = config->base;
    m->c = *config;
    sl_vae_want_conv(l, &m->conv_in, c, config->patched ? 12 : 3, &SL_CONV_333, false,
                     "encoder.conv_in");
    for (int i = 0; i < LEVELS; i++) {
        level *v = &m->levels[i];
        int64_t out = (int64_t)config->base * config->mult[i];
        if (!(v->res = calloc((size_t)config->res_blocks, sizeof *v->res))) {
            sl_vae_encoder_free(&m);
            return NULL;
        }
        for (int j = 0; j < config->res_blocks; j++, c = out) {
            if (config->residual) snprintf(p, sizeof p, "encoder.down_blocks.%d.resnets.%d", i, j);
            else snprintf(p, sizeof p, "encoder.down_blocks.%d", block++);
            sl_vae_want_res(l, &v->res[j], c, out, p);
        }
        if (i == LEVELS - 1) break;
        char down[64];
        if (config->residual) snprintf(down, sizeof down, "encoder.down_blocks.%d.downsampler", i);
        else snprintf(down, sizeof down, "encoder.down_blocks.%d", block++);
        snprintf(p, sizeof p, "%s.resample.1", down);
        sl_vae_want_conv(l, &v->half, c, c, &SL_CONV_HALF, true, p);
        snprintf(p, sizeof p, "%s.time_conv", down);
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
    if (m->c.patched) h /= 2, w /= 2;
    sl_vae_add_cache(set, base, dtype, 2, h, w, m->c.patched ? 12 : 3);
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
 * 2j+1 are all the same. shortcut: NULL, or what is added to the result, and where it goes. */
static sl_vae_chunk halve_time(sl_ctx *ctx, const sl_vae_chunk *x, sl_vae_cache *cache,
                               const sl_affine *a, const sl_tensor *shortcut)
{
    const int64_t h = x->x.shape[1], w = x->x.shape[2], c = x->x.shape[3];
    sl_vae_chunk y = *x;
    bool some = x->to > x->from, moving = cache->still < 2;
    if (cache->used) {
        y.frames = x->frames / 2;
        y.from = moving || !some ? 0 : x->from / 2;
        y.to = some ? (x->to + 3) / 2 : moving ? 1 : 0;
        if (y.to > y.frames) y.to = y.frames;
        y.x = shortcut ? *shortcut : sl_new4(ctx, sl_act(ctx), y.to - y.from, h, w, c);
        size_t mark = sl_mark(ctx);
        if (y.to > y.from) {
            sl_tensor all = x->x;
            if (2 * y.from != x->from || 2 * y.to != x->to) {
                all = sl_new4(ctx, sl_act(ctx), 2 * (y.to - y.from), h, w, c);
                sl_vae_expand(ctx, &all, x, 2 * y.from, 2 * y.to, &cache->past);
            }
            sl_conv3d(ctx, &y.x, &all, &cache->past, &a->w, &a->b, shortcut, &SL_CONV_TIME_HALF);
        }
        sl_release(ctx, mark);
    } else if (shortcut) {
        sl_add(ctx, shortcut, shortcut, &x->x);
        y.x = *shortcut;
    }
    if (some) {
        sl_tensor end = sl_rows(&x->x, x->to - x->from - 1, 1);
        sl_copy(ctx, &cache->past, &end);
    }
    sl_vae_has_read(cache, x);
    return y;
}

/* Level i without a shortcut. */
static void run_level(sl_ctx *ctx, const sl_vae_encoder *m, int i, sl_vae_caches *set,
                      sl_vae_chunk *x)
{
    const level *v = &m->levels[i];
    for (int j = 0; j < m->c.res_blocks; j++) sl_vae_run_res(ctx, x, &v->res[j], set);
    if (v->half.w.rank) *x = sl_vae_each(ctx, x, &v->half, &SL_CONV_HALF, NULL, NULL);
    if (v->time.w.rank) *x = halve_time(ctx, x, sl_vae_next_cache(set), &v->time, NULL);
}

/* Level i with one, of a chunk that is stored whole. The shortcut comes first: the level works in
 * its input's memory. */
static void run_residual_level(sl_ctx *ctx, const sl_vae_encoder *m, int i, sl_vae_caches *set,
                               sl_vae_chunk *x)
{
    const level *v = &m->levels[i];
    const int time = v->time.w.rank ? 2 : 1, half = v->half.w.rank ? 2 : 1;
    const sl_tensor y =
        sl_new4(ctx, sl_act(ctx), (x->frames + time - 1) / time, x->x.shape[1] / half,
                x->x.shape[2] / half, v->res[0].norm2.shape[0]);
    if (half == 2) sl_avg_down(ctx, &y, &x->x, time);
    else sl_copy(ctx, &y, &x->x);
    for (int j = 0; j < m->c.res_blocks; j++) sl_vae_run_res(ctx, x, &v->res[j], set);
    if (half == 1) sl_add(ctx, &y, &y, &x->x);
    else if (time == 1) sl_vae_each(ctx, x, &v->half, &SL_CONV_HALF, &y, &y);
    else {
        *x = sl_vae_each(ctx, x, &v->half, &SL_CONV_HALF, NULL, NULL);
        halve_time(ctx, x, sl_vae_next_cache(set), &v->time, &y);
    }
    *x = (sl_vae_chunk){.x = y, .frames = (int)y.shape[0], .to = (int)y.shape[0]};
}

/* One chunk of pictures [n,h,w,3] to n/4 frames (of the first: 1) of moments
 * [.,h/s,w/s,2z] in `into`. */
static sl_vae_chunk run_chunk(sl_ctx *ctx, const sl_vae_encoder *m, sl_vae_caches *set,
                              const sl_vae_chunk *pictures)
{
    set->next = 0;
    sl_vae_chunk x =
        sl_vae_causal(ctx, pictures, sl_vae_next_cache(set), &m->conv_in, &SL_CONV_333, NULL, NULL);
    for (int i = 0; i < LEVELS; i++) {
        if (m->c.residual) run_residual_level(ctx, m, i, set, &x);
        else run_level(ctx, m, i, set, &x);
        sl_vae_tap(ctx, "down", i, &x.x);
    }
    sl_vae_run_mid(ctx, &x, &m->mid, set);
    sl_vae_tap(ctx, "mid", -1, &x.x);
    sl_vae_norm(ctx, &x.x, &x.x, &m->norm_out, true);
    x = sl_vae_causal(ctx, &x, sl_vae_next_cache(set), &m->conv_out, &SL_CONV_333, NULL, NULL);
    return sl_vae_each(ctx, &x, &m->quant, &SL_CONV_111, NULL, NULL);
}

/* What is encoded, in host memory: [first, 0 ..., 0 (, last)], or `video`, all frames of it.
 * every: frames that repeat are computed like the others. */
typedef struct {
    const float *first, *last, *video;
    bool every;
} source;

/* y [h/2, w/2, 12] = picture [h, w, 3] with 2 x 2 pixels in one: number (c 2 + column) 2 + row. */
static void patch_picture(float *y, const float *picture, int64_t h, int64_t w)
{
    for (int64_t i = 0; i < h; i++)
        for (int64_t j = 0; j < w; j++)
            for (int64_t c = 0; c < 3; c++)
                y[(i / 2 * (w / 2) + j / 2) * 12 + (c * 2 + j % 2) * 2 + i % 2] =
                    picture[(i * w + j) * 3 + c];
}

/* A picture in host memory as a frame. */
static void upload_picture(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *frame,
                           const float *picture)
{
    size_t mark = sl_mark(ctx);
    sl_tensor t = sl_new(ctx, SL_F32, 4, frame->shape);
    float *patches = NULL;
    if (m->c.patched && !ctx->ops->plan && sl_ok(ctx)) {
        if ((patches = malloc(sl_bytes(&t))))
            patch_picture(patches, picture, 2 * frame->shape[1], 2 * frame->shape[2]);
        else sl_ctx_fail(ctx, SL_NOMEM, "vae: no memory for a picture of %zu bytes", sl_bytes(&t));
    }
    sl_upload(ctx, &t, patches ? patches : picture);
    sl_copy(ctx, frame, &t);
    sl_sync(ctx); /* t's memory is used again */
    sl_release(ctx, mark);
    free(patches);
}

/* Chunk `k` of the source, `n` frames: frame 0 is a chunk of its own. Stored are the frames that
 * differ from the one before them, and with `every` or of a video all. */
static sl_vae_chunk source_chunk(sl_ctx *ctx, const sl_vae_encoder *m, const source *s, int k,
                                 int n, bool is_last, int h, int w)
{
    const bool ends = is_last && s->last;
    sl_vae_chunk x = {.frames = n, .from = 0, .to = k <= 1 ? 1 : 0};
    if (s->every || s->video) x.to = n;
    if (ends) {
        if (!x.to) x.from = n - 1;
        x.to = n;
    }
    x.x = m->c.patched ? sl_new4(ctx, sl_act(ctx), x.to - x.from, h / 2, w / 2, 12)
                       : sl_new4(ctx, sl_act(ctx), x.to - x.from, h, w, 3);
    if (x.to == x.from) return x;
    if (!s->video) sl_zero(ctx, &x.x);
    for (int i = 0; i < n && s->video; i++) {
        const sl_tensor frame = sl_rows(&x.x, i, 1);
        const int64_t at = k ? (int64_t)(k - 1) * n + 1 + i : 0;
        upload_picture(ctx, m, &frame, s->video + at * h * w * 3);
    }
    if (!s->video && (k == 0 || ends)) {
        sl_tensor picture = sl_rows(&x.x, x.to - x.from - 1, 1);
        upload_picture(ctx, m, &picture, k ? s->last : s->first);
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

static void encode(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out, const source *s,
                   int frames, int h, int w, float *moments)
{
    if (!sl_ok(ctx) || !input_fits(ctx, m, out, s->last, frames, h, w)) return;
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
        sl_vae_chunk x = source_chunk(ctx, m, s, k, k ? m->c.temporal : 1, k == chunks - 1, h, w);
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

void sl_vae_encode_video(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                         const float *first, const float *last, int frames, int h, int w,
                         float *moments, bool every)
{
    const source s = {.first = first, .last = last, .every = every || m->c.residual};
    encode(ctx, m, out, &s, frames, h, w, moments);
}

void sl_vae_encode_frames(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                          const float *video, int frames, int h, int w, float *moments)
{
    const source s = {.video = video};
    encode(ctx, m, out, &s, frames, h, w, moments);
}

void sl_vae_encode_condition(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                             const float *first, const float *last, int frames, int h, int w,
                             float *moments)
{
    sl_vae_encode_video(ctx, m, out, first, last, frames, h, w, moments, false);
}
