/* bench_dit.c - one DiT forward of a fixed medium size with random weights: seconds,
 * GFLOP/s, part of this machine's sgemm rate.
 *
 * 2 blocks of dim 1024 (8 heads x 128), feed-forward 2816, 3,000 tokens (10 x 15 x 20),
 * 512 text and 257 image tokens. The rate counts matrix products and attention alone, 1
 * multiply-add = 2. Both figures are the best of several runs. An argument is the count
 * of forwards (default 2). */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cblas.h>

#include "graphs/wan_dit.h"
#include "kernels/cpu/blas.h"

enum { T = 10, H = 15, W = 20, N = T * H * W, SGEMM = 2048 };

static const sl_dit_config CONFIG = {.layers = 2,
                                     .heads = 8,
                                     .head_dim = 128,
                                     .dim = 1024,
                                     .ffn_dim = 2816,
                                     .in_channels = 36,
                                     .out_channels = 16,
                                     .text_dim = 512,
                                     .freq_dim = 256,
                                     .image_dim = 320,
                                     .added_kv_dim = 1024,
                                     .patch = {1, 2, 2},
                                     .rope_max = 1024,
                                     .eps = 1e-6f};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *memory(size_t bytes)
{
    float *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!p) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    uint32_t s = 1;
    for (size_t i = 0; i < bytes / sizeof *p; i++)
        p[i] = (float)(int32_t)(s = s * 1664525u + 1013904223u) / 2147483648.0f;
    return p;
}

static void stop_on(sl_ctx *ctx)
{
    sl_err err = {0};
    if (sl_ctx_error(ctx, &err) == SL_OK) return;
    fprintf(stderr, "%s\n", err.msg);
    exit(1);
}

/* Floating-point operations of one forward (spec 7), without what is done once a job. */
static double operations(const sl_dit_config *c)
{
    const double n = N, d = c->dim, context = SL_TEXT_TOKENS + 257;
    const double linears = 2 * n * 6 * d * d + 2 * n * 2 * d * c->ffn_dim,
                 attention = 4 * n * n * d + 4 * n * context * d;
    return c->layers * (linears + attention) + 2 * n * 4 * d * (c->in_channels + c->out_channels);
}

static double sgemm_rate(void)
{
    const size_t bytes = sizeof(float) * SGEMM * SGEMM;
    float *a = memory(bytes), *b = memory(bytes), *c = memory(bytes);
    double best = 1e30;
    for (int i = 0; i < 6; i++) {
        double t = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SGEMM, SGEMM, SGEMM, 1, a, SGEMM, b,
                    SGEMM, 0, c, SGEMM);
        t = now() - t;
        if (i && t < best) best = t; /* the first warms up */
    }
    free(a);
    free(b);
    free(c);
    return 2.0 * SGEMM * SGEMM * SGEMM / best;
}

/* The tables and context of one job; all figures random. */
typedef struct {
    sl_dit_times times;
    sl_dit_rope rope;
    sl_dit_context context;
    sl_tensor latents, condition, v, text, image;
} job;

/* Plan the arena (ctx of sl_ops_plan: the job has no memory) or set up the real one. */
static void job_make(sl_ctx *ctx, const sl_dit *m, job *j, bool real)
{
    const double t[1] = {999};
#define MEMORY(bytes) (real ? memory(bytes) : NULL)
    j->latents = sl_view4(MEMORY(sizeof(float) * 16 * N * 4), SL_F32, 16, T, 2 * H, 2 * W);
    j->condition = sl_view4(MEMORY(sizeof(float) * 20 * N * 4), SL_F32, 20, T, 2 * H, 2 * W);
    j->v = sl_view4(MEMORY(sizeof(float) * 16 * N * 4), SL_F32, 16, T, 2 * H, 2 * W);
    j->text = sl_view2(MEMORY(sizeof(float) * SL_TEXT_TOKENS * 512), SL_F32, SL_TEXT_TOKENS,
                       CONFIG.text_dim);
    j->image = sl_view2(MEMORY(sizeof(float) * 257 * 320), SL_F32, 257, CONFIG.image_dim);
    sl_dit_times_make(ctx, m, &j->times, MEMORY(sl_dit_times_bytes(ctx, m, 1)), t, 1);
    sl_dit_rope_make(ctx, m, &j->rope, MEMORY(sl_dit_rope_bytes(m, T, H, W)), T, H, W);
    sl_dit_context_make(ctx, m, &j->context, MEMORY(sl_dit_context_bytes(ctx, m, 257)), &j->text,
                        &j->image);
#undef MEMORY
}

static void forward(sl_ctx *ctx, const sl_dit *m, const job *j)
{
    const sl_dit_input in = {.latents = &j->latents,
                             .condition = &j->condition,
                             .times = &j->times,
                             .rope = &j->rope,
                             .context = &j->context};
    sl_dit_forward(ctx, m, &j->v, &in, NULL);
    stop_on(ctx);
}

static void job_free(job *j)
{
    sl_tensor *t[] = {&j->latents, &j->condition, &j->v, &j->text, &j->image};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) free(t[i]->data);
    free(j->times.temb.data); /* each first tensor begins its memory */
    free(j->rope.cos.data);
    free(j->context.text_kv.data);
}

int main(int argc, char **argv)
{
    const int runs = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : 3;
    sl_err err = {0};
    sl_ctx ctx, plan;
    sl_loader *l = NULL;
    job j;
    sl_blas_settle_here(argv);
    if (sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err) || sl_ctx_open(&plan, &sl_ops_plan, 0, &err) ||
        sl_loader_random(&l, &ctx, 1, "transformer", &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    sl_dit *m = sl_dit_new(&CONFIG, l);
    if (!m || sl_loader_finish(l, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    job_make(&plan, m, &j, false);
    forward(&plan, m, &j);
    if (sl_ctx_reserve(&ctx, plan.arena_peak, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    job_make(&ctx, m, &j, true);
    stop_on(&ctx);

    double best = 1e30, peak = 0;
    /* the first warms up; sgemm in turn with the forwards, since machines have moods */
    for (int i = 0; i <= runs; i++) {
        double t = now();
        forward(&ctx, m, &j);
        t = now() - t;
        if (i && t < best) best = t;
        t = sgemm_rate();
        if (t > peak) peak = t;
    }
    const double rate = operations(&CONFIG) / best;
    printf("dit forward, %d tokens x %d, %d blocks: %.3f s, %.1f GFLOP/s, %.0f %% of sgemm's %.1f; "
           "arena %.1f MB, weights %.1f MB\n",
           N, CONFIG.dim, CONFIG.layers, best, rate * 1e-9, 100 * rate / peak, peak * 1e-9,
           (double)ctx.arena_peak * 1e-6, (double)sl_loader_bytes(l) * 1e-6);
    job_free(&j);
    sl_dit_free(&m);
    sl_loader_close(&l);
    sl_ctx_close(&plan);
    sl_ctx_close(&ctx);
    return 0;
}
