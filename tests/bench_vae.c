/* bench_vae.c - how fast the autoencoder runs at its real widths, against this machine's
 * own sgemm.
 *
 * Random weights; work is counted as each convolution and attention is called. One run of
 * each, some ten seconds in all, and sgemm before each: other work on the machine adds
 * time to both. Then, from the plan alone, the memory of the real sizes. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cblas.h>

#include "graphs/vae.h"
#include "graphs/vae_encode.h"

static const sl_vae_config CONFIG = {
    .base = 96,
    .decoder_base = 96,
    .z = 16,
    .mult = {1, 2, 4, 4},
    .res_blocks = 2,
    .temporal_down = {false, true, true},
    .std = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
    .temporal = 4,
    .spatial = 8,
};

static double sgemm_rate, work, conv_s, attention_s, norm_s;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const sl_err *err)
{
    fprintf(stderr, "bench_vae: %s\n", err->msg);
    exit(1);
}

/* Operations a second of the library's matrix product, the best of a few. */
static double measure_sgemm(void)
{
    enum { N = 2048 };
    float *a = calloc((size_t)N * N, sizeof *a), *b = calloc((size_t)N * N, sizeof *b),
          *c = calloc((size_t)N * N, sizeof *c);
    double best = 1e30;
    if (!a || !b || !c) exit(1);
    for (int i = 0; i < 5; i++) {
        double t = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, N, N, N, 1, a, N, b, N, 0, c, N);
        t = now() - t;
        if (t < best) best = t;
    }
    free(a);
    free(b);
    free(c);
    return 2.0 * N * N * N / best;
}

/* ---- the CPU body, watched ---- */

static void watched_conv(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                         const sl_tensor *history, const sl_tensor *w, const sl_tensor *b,
                         const sl_tensor *residual, const sl_conv *k)
{
    double t = now();
    sl_ops_cpu.conv3d(ctx, y, x, history, w, b, residual, k);
    conv_s += now() - t;
    work += 2.0 * (double)sl_count(y) * (double)x->shape[3] * k->kt * k->kh * k->kw;
}

static void watched_attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q,
                              const sl_tensor *k, const sl_tensor *v, int heads, float scale,
                              const sl_tensor *bias, bool accumulate)
{
    double t = now();
    sl_ops_cpu.attention(ctx, o, q, k, v, heads, scale, bias, accumulate);
    attention_s += now() - t;
    work += 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
}

static void watched_norm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                         const sl_tensor *gamma, bool silu)
{
    double t = now();
    sl_ops_cpu.vae_norm(ctx, y, x, gamma, silu);
    norm_s += now() - t;
}

/* Measure sgemm, start the counters; the time. */
static double begin(void)
{
    sgemm_rate = measure_sgemm();
    work = conv_s = attention_s = norm_s = 0;
    return now();
}

static void report(const char *what, int frames, int h, int w, double seconds)
{
    printf("%-30s %4dx%dx%d  %7.2f s  %6.1f GFLOP/s, %3.0f %% of sgemm's %.1f  (conv %.2f s, "
           "attention %.2f s, norm %.2f s)\n",
           what, w, h, frames, seconds, work / seconds * 1e-9, 100 * work / seconds / sgemm_rate,
           sgemm_rate * 1e-9, conv_s, attention_s, norm_s);
}

static void bench_decode(sl_ctx *ctx, const sl_vae_decoder *m, int h, int w, int frames, int each)
{
    sl_err err;
    const int t = (frames - 1) / 4 + 1;
    float *latents =
        calloc((size_t)16 * (size_t)each * (size_t)(h / 8) * (size_t)(w / 8), sizeof *latents);
    uint8_t *rgb = malloc((size_t)(4 * each) * (size_t)h * (size_t)w * 3);
    void *memory = sl_device_alloc(ctx, sl_vae_decode_bytes(ctx, m, h, w));
    sl_vae_decode *d = sl_vae_decode_start(ctx, m, h, w, memory);
    if (!latents || !rgb || !d) exit(1);
    double start = begin();
    for (int at = 0; at < t; at += each) {
        int n = t - at < each ? t - at : each;
        sl_tensor in = sl_view4(latents, SL_F32, 16, n, h / 8, w / 8),
                  out = sl_view4(rgb, SL_U8, sl_vae_frames_of(d, n), h, w, 3);
        sl_vae_decode_chunk(ctx, d, &out, NULL, &in);
    }
    double seconds = now() - start;
    if (sl_ctx_error(ctx, &err)) die(&err);
    char what[64];
    snprintf(what, sizeof what, "decode, %d latents a chunk", each);
    report(what, frames, h, w, seconds);
    sl_vae_decode_free(&d);
    sl_device_free(ctx, memory);
    free(latents);
    free(rgb);
}

static void bench_encode(sl_ctx *ctx, const sl_vae_encoder *m, int h, int w, int frames, bool every)
{
    sl_err err;
    const int t = (frames - 1) / 4 + 1;
    const size_t pixels = (size_t)h * (size_t)w;
    float *picture = calloc(pixels * 3, sizeof *picture),
          *condition = calloc(16 * (size_t)t * pixels / 64, sizeof *condition);
    if (!picture || !condition) exit(1);
    sl_tensor out = sl_view4(condition, SL_F32, 16, t, h / 8, w / 8);
    double start = begin();
    sl_vae_encode_video(ctx, m, &out, picture, NULL, frames, h, w, NULL, every);
    double seconds = now() - start;
    if (sl_ctx_error(ctx, &err)) die(&err);
    report(every ? "encode, every frame" : "encode, frames that differ", frames, h, w, seconds);
    free(picture);
    free(condition);
}

/* What the real sizes take in float32: nothing is allocated. */
static void plan_sizes(void)
{
    static const int sizes[][2] = {{1280, 720}, {1024, 576}, {832, 480}};
    sl_err err;
    sl_ctx ctx;
    sl_loader *l = NULL;
    if (sl_ctx_open(&ctx, &sl_ops_plan, 0, &err) || sl_loader_plan(&l, &ctx, "vae", &err))
        die(&err);
    sl_vae_encoder *e = sl_vae_encoder_new(&CONFIG, l);
    sl_vae_decoder *m = sl_vae_decoder_new(&CONFIG, l);
    if (!e || !m) exit(1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int w = sizes[i][0], h = sizes[i][1];
        sl_vae_decode *d = sl_vae_decode_start(&ctx, m, h, w, NULL);
        ctx.arena_peak = 0;
        for (int k = 0; d && k < 2; k++) {
            sl_tensor in = sl_view4(NULL, SL_F32, 16, 1, h / 8, w / 8),
                      rgb = sl_view4(NULL, SL_U8, sl_vae_frames_of(d, 1), h, w, 3);
            sl_vae_decode_chunk(&ctx, d, &rgb, NULL, &in);
        }
        sl_vae_decode_free(&d);
        size_t decode = ctx.arena_peak, caches = sl_vae_decode_bytes(&ctx, m, h, w);
        sl_tensor out = sl_view4(NULL, SL_F32, 16, 21, h / 8, w / 8);
        ctx.arena_peak = 0;
        sl_vae_encode_condition(&ctx, e, &out, NULL, NULL, 81, h, w, NULL);
        if (sl_ctx_error(&ctx, &err)) die(&err);
        printf("%dx%d in float32: decode %.2f GB and %.2f GB of caches, encode %.2f GB\n", w, h,
               (double)decode * 1e-9, (double)caches * 1e-9, (double)ctx.arena_peak * 1e-9);
    }
    sl_vae_encoder_free(&e);
    sl_vae_decoder_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
}

int main(void)
{
    sl_err err;
    sl_ctx ctx;
    sl_loader *l = NULL;
    sl_ops ops = sl_ops_cpu;
    ops.conv3d = watched_conv;
    ops.attention = watched_attention;
    ops.vae_norm = watched_norm;
    if (sl_ctx_open(&ctx, &ops, (size_t)1 << 30, &err) ||
        sl_loader_random(&l, &ctx, 1, "vae", &err))
        die(&err);
    sl_vae_encoder *e = sl_vae_encoder_new(&CONFIG, l);
    sl_vae_decoder *m = sl_vae_decoder_new(&CONFIG, l);
    if (sl_loader_finish(l, &err)) die(&err);
    bench_decode(&ctx, m, 96, 160, 5, 1);
    bench_decode(&ctx, m, 64, 96, 9, 1);
    bench_decode(&ctx, m, 64, 96, 9, 3);
    bench_encode(&ctx, e, 64, 96, 9, false);
    bench_encode(&ctx, e, 32, 48, 81, false);
    bench_encode(&ctx, e, 32, 48, 81, true);
    plan_sizes();
    sl_vae_encoder_free(&e);
    sl_vae_decoder_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
    return 0;
}
