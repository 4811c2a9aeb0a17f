/* networks.c - the networks but for the diffusion transformer (dit.c) as their stages run them,
 * with random weights. */
#include "stages/bench/measure.h"

#include <stdio.h>
#include <stdlib.h>

#include "graphs/clip.h"
#include "graphs/umt5.h"
#include "graphs/vae.h"
#include "stages/sizes/sizes.h"

/* A job with what the functions of sizes.h ask of it. */
static sl_job job_of(const sl_bench_size *s)
{
    return (sl_job){.width = s->w, .height = s->h, .frames = s->frames};
}

/* ---- VAE ---- */

typedef struct {
    sl_bench_net n;
    sl_vae_encoder *encoder;
    sl_vae_decoder *decoder;
    sl_bench_size s;
    size_t kept;       /* bytes of the decoder's caches */
    sl_tensor latents; /* F32 [chunks, z, n, h/8, w/8], chunk after chunk */
    float *picture;    /* host [h, w, 3] */
} vae;

/* As sluice-decode, which also hands the frames on. */
static void run_decode(void *arg)
{
    vae *v = arg;
    sl_ctx *ctx = &v->n.ctx;
    const sl_grid g = sl_bench_grid(v->n.b, &v->s);
    const int h = v->s.h, w = v->s.w, z = v->n.b->model.vae.z, t = (int)g.latent_frames;
    const int64_t lh = g.latent_height, lw = g.latent_width;
    const size_t start = sl_mark(ctx);
    sl_tensor caches = sl_new1(ctx, SL_U8, (int64_t)v->kept);
    sl_vae_decode *d = sl_vae_decode_start(ctx, v->decoder, h, w, caches.data);
    for (int at = 0, n; d && at < t && sl_ok(ctx); at += n) {
        const size_t mark = sl_mark(ctx);
        n = t - at < SL_CHUNK_LATENTS ? t - at : SL_CHUNK_LATENTS;
        float *from = (float *)v->latents.data + at * z * lh * lw;
        sl_tensor latents = sl_view4(from, SL_F32, z, n, lh, lw),
                  rgb = sl_new4(ctx, SL_U8, sl_vae_frames_of(d, n), h, w, 3);
        sl_vae_decode_chunk(ctx, d, &rgb, NULL, &latents);
        sl_release(ctx, mark);
    }
    sl_vae_decode_free(&d);
    sl_release(ctx, start);
}

sl_code sl_bench_decode(sl_bench *b, sl_err *err)
{
    char size[64];
    vae v = {.s = b->sizes[b->size_count - 1]};
    const sl_job job = job_of(&v.s);
    sl_arena arena = {0};
    sl_code rc = sl_bench_net_open(&v.n, b, "vae", err);
    if (!rc && !(v.decoder = sl_vae_decoder_new(&b->model.vae, v.n.loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = sl_loader_finish(v.n.loader, err);
    /* The CPU's stage writes frames where they are handed over; here they lie in the
     * arena. */
    if (!rc) rc = sl_arena_decode(&arena, &b->ops, &b->model, v.decoder, &job, err);
    if (!rc)
        rc = sl_ctx_reserve(
            &v.n.ctx,
            arena.peak + (size_t)12 * (size_t)v.s.w * (size_t)v.s.h * SL_CHUNK_LATENTS + 4096, err);
    if (!rc) {
        v.kept = arena.kept;
        const sl_grid g = sl_bench_grid(b, &v.s);
        v.latents = sl_bench_tensor(&v.n, SL_F32, g.latent_frames,
                                    b->model.vae.z * g.latent_height * g.latent_width, 1);
        const double frames = (double)v.s.w * v.s.h * v.s.frames * 3;
        rc = sl_bench_measure(&v.n, "decode", sl_bench_size_text(size, &v.s),
                              sl_bench_weight_bytes(&v.n) + frames, sl_bytes(&v.latents),
                              run_decode, &v, err);
        sl_device_free(&v.n.ctx, v.latents.data);
    }
    sl_vae_decoder_free(&v.decoder);
    sl_bench_net_close(&v.n);
    return rc;
}

static void run_condition(void *arg)
{
    vae *v = arg;
    sl_ctx *ctx = &v->n.ctx;
    const size_t mark = sl_mark(ctx);
    const sl_grid g = sl_bench_grid(v->n.b, &v->s);
    const int frames = sl_condition_frames(&v->n.b->model.family, v->s.frames);
    sl_tensor y = sl_new4(ctx, SL_F32, v->n.b->model.vae.z, frames == 1 ? 1 : g.latent_frames,
                          g.latent_height, g.latent_width);
    sl_vae_encode_condition(ctx, v->encoder, &y, v->picture, NULL, frames, v->s.h, v->s.w, NULL);
    sl_release(ctx, mark);
}

sl_code sl_bench_condition(sl_bench *b, sl_err *err)
{
    char size[64];
    vae v = {.s = b->sizes[b->size_count - 1]};
    const sl_job job = job_of(&v.s);
    const size_t samples = (size_t)v.s.w * (size_t)v.s.h * 3;
    sl_arena arena = {0};
    sl_code rc = sl_bench_net_open(&v.n, b, "vae", err);
    if (!rc && !(v.encoder = sl_vae_encoder_new(&b->model.vae, v.n.loader)))
        rc = sl_fail(err, SL_NOMEM, "vae: no memory");
    if (!rc) rc = sl_loader_finish(v.n.loader, err);
    if (!rc) rc = sl_arena_condition(&arena, &b->ops, &b->model, v.encoder, &job, false, err);
    if (!rc) rc = sl_ctx_reserve(&v.n.ctx, arena.peak, err);
    if (!rc && !(v.picture = malloc(samples * sizeof *v.picture)))
        rc = sl_fail(err, SL_NOMEM, "a picture of %zu samples", samples);
    if (!rc) {
        uint32_t r = 1;
        for (size_t i = 0; i < samples; i++)
            v.picture[i] = (float)(int32_t)(r = r * 1664525u + 1013904223u) * 0x1p-31f;
        rc = sl_bench_measure(&v.n, "condition", sl_bench_size_text(size, &v.s),
                              sl_bench_weight_bytes(&v.n), 0, run_condition, &v, err);
    }
    free(v.picture);
    sl_vae_encoder_free(&v.encoder);
    sl_bench_net_close(&v.n);
    return rc;
}

/* ---- text and image ---- */

#define PROMPTS 2

typedef struct {
    sl_bench_net n;
    sl_umt5 *m;
    int32_t ids[PROMPTS][SL_UMT5_MAX_TOKENS];
} text;

static void run_text(void *arg)
{
    text *t = arg;
    for (int i = 0; i < PROMPTS; i++) {
        const size_t mark = sl_mark(&t->n.ctx);
        sl_tensor y =
            sl_new2(&t->n.ctx, sl_act(&t->n.ctx), SL_UMT5_MAX_TOKENS, t->n.b->model.umt5.d_model);
        sl_umt5_encode(&t->n.ctx, t->m, t->ids[i], SL_UMT5_MAX_TOKENS, &y);
        sl_release(&t->n.ctx, mark);
    }
}

sl_code sl_bench_text(sl_bench *b, sl_err *err)
{
    const sl_umt5_config *c = &b->model.umt5;
    text t = {0};
    sl_arena arena;
    uint32_t r = 1;
    for (int i = 0; i < PROMPTS * SL_UMT5_MAX_TOKENS; i++)
        t.ids[i / SL_UMT5_MAX_TOKENS][i % SL_UMT5_MAX_TOKENS] =
            (int32_t)(((r = r * 1664525u + 1013904223u) >> 8) % (uint32_t)c->vocab);
    sl_code rc = sl_bench_net_open(&t.n, b, "text_encoder", err);
    if (!rc && !(t.m = sl_umt5_new(c, t.n.loader))) rc = sl_fail(err, SL_NOMEM, "umt5: no memory");
    if (!rc) rc = sl_loader_finish(t.n.loader, err);
    if (!rc) rc = sl_arena_text(&arena, &b->ops, c, t.m, err);
    if (!rc) rc = sl_ctx_reserve(&t.n.ctx, arena.peak, err);
    /* only the prompts' rows of the table are read */
    const double table = (double)c->vocab * c->d_model * (double)sl_dtype_size(b->ops.act);
    if (!rc)
        rc =
            sl_bench_measure(&t.n, "text", "2 x 512 tokens",
                             PROMPTS * (sl_bench_weight_bytes(&t.n) - table), 0, run_text, &t, err);
    sl_umt5_free(&t.m);
    sl_bench_net_close(&t.n);
    return rc;
}

typedef struct {
    sl_bench_net n;
    sl_clip *m;
    float *pixels;
    int64_t tokens;
} image;

static void run_image(void *arg)
{
    image *i = arg;
    const size_t mark = sl_mark(&i->n.ctx);
    sl_tensor y = sl_new2(&i->n.ctx, SL_F32, i->tokens, i->n.b->model.clip.hidden);
    sl_clip_encode(&i->n.ctx, i->m, i->pixels, &y);
    sl_release(&i->n.ctx, mark);
}

sl_code sl_bench_image(sl_bench *b, sl_err *err)
{
    const sl_clip_config *c = &b->model.clip;
    if (!b->model.family.clip) return SL_OK;
    const size_t samples = (size_t)3 * (size_t)c->image * (size_t)c->image;
    const int side = c->image / c->patch;
    image i = {.tokens = (int64_t)side * side + 1};
    sl_arena arena;
    sl_code rc = sl_bench_net_open(&i.n, b, "image_encoder", err);
    if (!rc && !(i.m = sl_clip_new(c, i.n.loader))) rc = sl_fail(err, SL_NOMEM, "clip: no memory");
    if (!rc) rc = sl_loader_finish(i.n.loader, err);
    if (!rc) rc = sl_arena_clip(&arena, &b->ops, c, i.m, err);
    if (!rc) rc = sl_ctx_reserve(&i.n.ctx, arena.peak, err);
    if (!rc && !(i.pixels = malloc(samples * sizeof *i.pixels)))
        rc = sl_fail(err, SL_NOMEM, "a picture of %zu samples", samples);
    if (!rc) {
        uint32_t r = 1;
        for (size_t k = 0; k < samples; k++)
            i.pixels[k] = (float)(int32_t)(r = r * 1664525u + 1013904223u) * 0x1p-30f;
        rc = sl_bench_measure(&i.n, "image", "1 picture", sl_bench_weight_bytes(&i.n), 0, run_image,
                              &i, err);
    }
    free(i.pixels);
    sl_clip_free(&i.m);
    sl_bench_net_close(&i.n);
    return rc;
}
