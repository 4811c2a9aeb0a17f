/* bench_ops.c - how fast the CPU operations run, against this machine's own sgemm and
 * memory.
 *
 * Every figure is the best of several runs: other work on the machine only adds time.
 * Compute-bound operations are given as GFLOP/s and as a fraction of the sgemm rate of a
 * 2048-cube on the same threads; memory-bound ones as GB/s of the bytes that they must
 * read and write. An argument ("attention") runs only the lines that contain it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cblas.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"

#define BUDGET_S 0.1

static const char *only;
static double sgemm_rate; /* operations a second */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static sl_tensor filled(sl_ctx *ctx, sl_dtype dtype, int64_t a, int64_t b)
{
    sl_tensor t = sl_new2(ctx, dtype, a, b);
    uint32_t s = 1;
    for (int64_t i = 0; i < a * b && t.data; i++) {
        s = s * 1664525u + 1013904223u;
        float x = (float)(int32_t)s / 2147483648.0f;
        if (dtype == SL_F32) ((float *)t.data)[i] = x;
        else ((sl_bf16 *)t.data)[i] = sl_to_bf16(x);
    }
    return t;
}

/* Best seconds of `run` (twice at least, for BUDGET_S), after one run to warm up. */
#define TIME(best, run)                                                                            \
    do {                                                                                           \
        double start_ = now(), t_;                                                                 \
        best = 1e30;                                                                               \
        run;                                                                                       \
        for (int i_ = 0; i_ < 2 || now() - start_ < BUDGET_S; i_++) {                              \
            t_ = now();                                                                            \
            run;                                                                                   \
            t_ = now() - t_;                                                                       \
            if (t_ < best) best = t_;                                                              \
        }                                                                                          \
    } while (0)

static bool wanted(const char *what)
{
    return !only || strstr(what, only);
}

static void print(const char *what, double seconds, double flop, double bytes)
{
    printf("%-58s %9.3f ms", what, seconds * 1e3);
    if (flop > 0)
        printf(" %8.1f GFLOP/s  %5.1f %% of sgemm", flop / seconds * 1e-9,
               100 * flop / seconds / sgemm_rate);
    if (bytes > 0) printf(" %8.1f GB/s", bytes / seconds * 1e-9);
    printf("\n");
    fflush(stdout);
}

static void measure_sgemm(sl_ctx *ctx)
{
    enum { N = 2048 };
    size_t mark = sl_mark(ctx);
    sl_tensor a = filled(ctx, SL_F32, N, N), b = filled(ctx, SL_F32, N, N),
              c = filled(ctx, SL_F32, N, N);
    double best;
    TIME(best, cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, N, N, N, 1, a.data, N, b.data,
                           N, 0, c.data, N));
    sgemm_rate = 2.0 * N * N * N / best;
    printf("%-58s %9.3f ms %8.1f GFLOP/s on %d threads\n", "sgemm 2048 x 2048 x 2048", best * 1e3,
           sgemm_rate * 1e-9, sl_cpu_threads());
    sl_release(ctx, mark);
}

static void linear(sl_ctx *ctx, int64_t m, int64_t n, int64_t k, sl_dtype dtype, sl_activation act)
{
    static const char *const names[] = {"", " gelu tanh", " gelu erf", " silu"};
    char what[100];
    snprintf(what, sizeof what, "linear %lld x %lld x %lld, %s weights%s", (long long)m,
             (long long)n, (long long)k, sl_dtype_tag(dtype), names[act]);
    if (!wanted(what)) return;
    size_t mark = sl_mark(ctx);
    sl_tensor x = filled(ctx, SL_F32, m, k), w = filled(ctx, dtype, n, k),
              b = sl_new1(ctx, SL_F32, n), y = sl_new2(ctx, SL_F32, m, n);
    sl_zero(ctx, &b);
    double best;
    TIME(best, sl_linear(ctx, &y, &x, &w, &b, act));
    print(what, best, 2.0 * (double)m * (double)n * (double)k, m < 8 ? (double)sl_bytes(&w) : 0);
    sl_release(ctx, mark);
}

static void attention(sl_ctx *ctx, int64_t nq, int64_t nk, int heads, int64_t d, bool bias)
{
    char what[100];
    snprintf(what, sizeof what, "attention %lld x %lld, %d heads x %lld%s", (long long)nq,
             (long long)nk, heads, (long long)d, bias ? ", bias" : "");
    if (!wanted(what)) return;
    size_t mark = sl_mark(ctx);
    sl_tensor q = filled(ctx, SL_F32, nq, heads * d), k = filled(ctx, SL_F32, nk, heads * d),
              v = filled(ctx, SL_F32, nk, heads * d);
    sl_tensor o = sl_new2(ctx, SL_F32, nq, heads * d),
              table = filled(ctx, SL_F32, heads, nq + nk - 1);
    double best;
    TIME(best, sl_attention(ctx, &o, &q, &k, &v, heads, 0.088f, bias ? &table : NULL, false));
    print(what, best, 4.0 * (double)nq * (double)nk * (double)(heads * d), 0);
    sl_release(ctx, mark);
}

#define ROWS 8192
#define DIM 1536

static void rows(sl_ctx *ctx)
{
    size_t mark = sl_mark(ctx);
    sl_tensor x = filled(ctx, SL_F32, ROWS, DIM), y = filled(ctx, SL_F32, ROWS, DIM),
              z = filled(ctx, SL_F32, ROWS, DIM);
    sl_tensor row = filled(ctx, SL_F32, 1, DIM), rope = filled(ctx, SL_F32, ROWS, 64),
              half = sl_new2(ctx, SL_BF16, ROWS, DIM);
    sl_tensor v = sl_view1(row.data, SL_F32, DIM);
    const sl_tensor *terms[] = {&x, &z, &x, &z};
    const float a[] = {1, 2, 3, 4};
    float mean[2];
    double best, one = (double)sl_bytes(&x);
    printf("\nrows of %d x %d\n", ROWS, DIM);
#define LINE(what, bytes, call)                                                                    \
    if (wanted(what)) {                                                                            \
        TIME(best, call);                                                                          \
        print(what, best, 0, bytes);                                                               \
    }
    LINE("copy", 2 * one, sl_copy(ctx, &y, &x))
    LINE("copy F32 to BF16", 1.5 * one, sl_copy(ctx, &half, &x))
    LINE("copy BF16 to F32", 1.5 * one, sl_copy(ctx, &y, &half))
    LINE("add", 3 * one, sl_add(ctx, &y, &x, &z))
    LINE("silu", 2 * one, sl_silu(ctx, &y, &x))
    LINE("geglu", 3 * one, sl_geglu(ctx, &y, &x, &z))
    LINE("layernorm", 2 * one, sl_layernorm(ctx, &y, &x, &v, &v, 1e-6f))
    LINE("layernorm_modulate", 2 * one, sl_layernorm_modulate(ctx, &y, &x, &v, &v, 1e-6f))
    LINE("rmsnorm", 2 * one, sl_rmsnorm(ctx, &y, &x, &v, 1e-6f))
    LINE("rmsnorm_rope", 2 * one, sl_rmsnorm_rope(ctx, &y, &x, &v, 1e-6f, &rope, &rope, DIM / 128))
    LINE("gated_add", 3 * one, sl_gated_add(ctx, &x, &z, &v))
    LINE("lincomb of 4", 5 * one, sl_lincomb(ctx, &y, 4, terms, a))
    LINE("guidance", 3 * one, sl_guidance(ctx, &y, &x, &z, 5))
    LINE("mean_abs", 2 * one, sl_mean_abs(ctx, mean, &x, &z))
    sl_release(ctx, mark);
}

int main(int argc, char **argv)
{
    sl_ctx ctx;
    sl_err err = {0};
    sl_blas_settle_here(argv);
    only = argc > 1 ? argv[1] : NULL;
    if (sl_ctx_open(&ctx, &sl_ops_cpu, (size_t)600 << 20, &err)) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        return 1;
    }
    measure_sgemm(&ctx);
    linear(&ctx, 2048, 1536, 1536, SL_F32, SL_ACT_NONE);
    linear(&ctx, 2048, 1536, 1536, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 1024, 5120, 5120, SL_F32, SL_ACT_NONE);
    linear(&ctx, 1024, 5120, 5120, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 1024, 8960, 1536, SL_BF16, SL_ACT_GELU_TANH);
    linear(&ctx, 1024, 1536, 8960, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 8192, 1024, 256, SL_BF16, SL_ACT_GELU_TANH);
    linear(&ctx, 30000, 256, 256, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 257, 5120, 1280, SL_F16, SL_ACT_GELU_ERF);
    linear(&ctx, 64, 5120, 5120, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 2048, 13824, 5120, SL_BF16, SL_ACT_GELU_TANH);
    linear(&ctx, 2048, 5120, 13824, SL_BF16, SL_ACT_NONE);
    /* the small model's at 320x192x33 */
    linear(&ctx, 2160, 256, 256, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 2160, 576, 256, SL_BF16, SL_ACT_GELU_TANH);
    linear(&ctx, 2160, 256, 576, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 2160, 64, 256, SL_BF16, SL_ACT_NONE);
    linear(&ctx, 1, 5120, 5120, SL_F32, SL_ACT_SILU);
    linear(&ctx, 1, 5120, 5120, SL_BF16, SL_ACT_NONE);
    attention(&ctx, 2048, 2048, 4, 128, false);
    attention(&ctx, 8192, 8192, 1, 128, false);
    attention(&ctx, 4096, 512, 8, 128, false);
    attention(&ctx, 512, 512, 16, 64, true);
    attention(&ctx, 257, 257, 16, 80, false);
    attention(&ctx, 1024, 1024, 4, 32, false);
    attention(&ctx, 2048, 2048, 1, 384, false);
    rows(&ctx);
    sl_code rc = sl_ctx_error(&ctx, &err);
    if (rc) fprintf(stderr, "bench_ops: %s\n", err.msg);
    sl_ctx_close(&ctx);
    return rc != SL_OK;
}
