/* t_pair.h - the same tensors on the CPU body and on the GPU, and a case of theirs
 * compared: what gpu_matrix and gpu_attention share.
 *
 * A case that fails prints what it is, how far it lies and its worst element, and the
 * next case runs; pair_close fails the test. */
#ifndef T_PAIR_H
#define T_PAIR_H

#include "tests/t_cases.h"

#include <time.h>

#include "kernels/plugin.h"

static const sl_ops *gpu;

/* ---- the same tensor on both sides ---- */

typedef struct {
    sl_ctx cpu, gpu;
    uint64_t seed;
    int failures, cases;
} pair;

typedef struct {
    /* g lies on the device; c is F32 on the host and has the same values */
    sl_tensor g, c, whole_g, whole_c;
    int64_t pad;
} twin;

static inline void pair_open(pair *p, size_t device_bytes)
{
    sl_err err = {0};
    memset(p, 0, sizeof *p);
    p->seed = 11;
    T_OK(sl_ctx_open(&p->cpu, &sl_ops_cpu, (size_t)1 << 30, &err));
    T_OK(sl_ctx_open(&p->gpu, gpu, device_bytes, &err));
}

static inline void pair_close(pair *p)
{
    int failures = p->failures, cases = p->cases;
    sl_ctx_close(&p->gpu);
    sl_ctx_close(&p->cpu);
    print_message("%d of %d cases passed\n", cases - failures, cases);
    assert_int_equal(failures, 0);
}

static inline void forget(pair *p)
{
    sl_release(&p->gpu, 0);
    sl_release(&p->cpu, 0);
}

/* Upload x (n floats of t, its bytes rounded to t's dtype) to both sides, the rounded
 * values to the CPU's. */
static inline void fill(pair *p, twin *t, float *x)
{
    int64_t n = sl_count(&t->whole_g);
    void *raw = malloc((size_t)n * 4 + 1);
    assert_non_null(raw);
    assert_int_equal(sl_from_floats(raw, t->whole_g.dtype, x, n, NULL), SL_OK);
    assert_int_equal(sl_to_floats(x, raw, t->whole_g.dtype, n, NULL), SL_OK);
    sl_upload(&p->gpu, &t->whole_g, raw);
    sl_sync(&p->gpu);
    if (n) memcpy(t->whole_c.data, x, (size_t)n * 4);
    free(raw);
}

/* Random [rows, cols] with `pad` columns of a constant on each side. */
static inline twin matrix(pair *p, sl_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    int64_t width = cols + 2 * pad, n = rows * width;
    twin t = {.whole_g = sl_new2(&p->gpu, dtype, rows, width),
              .whole_c = sl_new2(&p->cpu, SL_F32, rows, width),
              .pad = pad};
    float *x = malloc((size_t)n * 4 + 1);
    assert_true(x && sl_ok(&p->gpu) && sl_ok(&p->cpu));
    t_fill(x, n, p->seed++);
    for (int64_t i = 0; pad && i < n; i++)
        if (i % width < pad || i % width >= pad + cols) x[i] = SENTINEL;
    fill(p, &t, x);
    free(x);
    t.g = sl_cols(&t.whole_g, pad, cols);
    t.c = sl_cols(&t.whole_c, pad, cols);
    return t;
}

static inline float *downloaded(pair *p, const sl_tensor *t)
{
    int64_t n = sl_count(t);
    void *raw = malloc((size_t)n * 4 + 1);
    float *x = malloc((size_t)n * 4 + 1);
    assert_true(raw && x);
    sl_download(&p->gpu, raw, t);
    assert_int_equal(sl_to_floats(x, raw, t->dtype, n, NULL), SL_OK);
    free(raw);
    return x;
}

/* One line about a case that failed; clears the contexts' errors. */
static inline bool went_wrong(pair *p, const char *what)
{
    sl_err err = {0};
    p->cases++;
    if (sl_ctx_error(&p->cpu, &err) || sl_ctx_error(&p->gpu, &err)) {
        print_message("FAIL %s: %s\n", what, err.msg);
        p->failures++;
        return true;
    }
    return false;
}

/* got and want, n numbers in rows of `cols`: relative Frobenius distance <= tol, and each
 * within 8 tol of the largest wanted. */
static inline void compare(pair *p, const float *got, const float *want, int64_t n, int64_t cols,
                           double tol, const char *what)
{
    double d = 0, s = 0, big = 0, worst = -1;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - want[i]);
        d += e * e;
        s += (double)want[i] * want[i];
        big = fmax(big, fabs((double)want[i]));
        if (!(e <= worst) && !isnan(worst)) worst = e, at = i;
    }
    double rel = sqrt(d) / (s > 0 ? sqrt(s) : 1);
    if (n && (!(rel <= tol) || !(worst <= 8 * tol * big))) {
        print_message("FAIL %s: relative distance %.3g, want <= %.3g; worst at row %lld, column "
                      "%lld: found %.7g, want %.7g (largest %.3g)\n",
                      what, rel, tol, (long long)(at / cols), (long long)(at % cols),
                      (double)got[at], (double)want[at], big);
        p->failures++;
    }
}

/* The whole of t: its columns as wanted, the columns beside them untouched. */
static inline void same(pair *p, const twin *t, double tol, const char *what)
{
    if (went_wrong(p, what)) return;
    float *all = downloaded(p, &t->whole_g), *want = (float *)t->whole_c.data;
    int64_t n = sl_count(&t->whole_g), width = t->whole_g.shape[1], cols = width - 2 * t->pad;
    for (int64_t i = 0; t->pad && i < n; i++)
        if ((i % width < t->pad || i % width >= t->pad + cols) && all[i] != SENTINEL) {
            print_message("FAIL %s: row %lld, column %lld beside the result was written: %.7g\n",
                          what, (long long)(i / width), (long long)(i % width), (double)all[i]);
            p->failures++;
            break;
        }
    for (int64_t i = 0; t->pad && i < n; i++) /* so that it counts for nothing */
        if (i % width < t->pad || i % width >= t->pad + cols) all[i] = want[i] = 0;
    compare(p, all, want, n, width, tol, what);
    free(all);
}

/* ---- speed ---- */

/* A device matrix of bf16 noise: one block of it again and again. */
static inline sl_tensor noise(pair *p, int64_t rows, int64_t cols)
{
    enum { BLOCK = 1 << 22 };
    static sl_bf16 block[BLOCK];
    uint64_t seed = 5;
    for (int i = 0; i < BLOCK && !block[0]; i++) block[BLOCK - 1 - i] = sl_to_bf16(t_rand(&seed));
    sl_tensor t = sl_new2(&p->gpu, SL_BF16, rows, cols);
    for (int64_t at = 0; at < rows * cols && t.data; at += BLOCK) {
        int64_t n = rows * cols - at < BLOCK ? rows * cols - at : BLOCK;
        sl_tensor view = sl_view1((char *)t.data + at * 2, SL_BF16, n);
        sl_upload(&p->gpu, &view, block);
    }
    return t;
}

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the device ---- */

/* The device's operations into `gpu`. false: there is no device, or it fails, and `program`
 * ends with *status. */
static inline bool gpu_open(const char *program, int *status)
{
    sl_err err = {0};
    const sl_plugin *cuda = sl_plugin_cuda(&err);
    *status = 0;
    if (!cuda || cuda->devices() < 1) {
        printf("%s: skipped: %s\n", program, cuda ? "no CUDA device" : err.msg);
        return false;
    }
    if (cuda->use(0, &err)) {
        fprintf(stderr, "%s: %s\n", program, err.msg);
        *status = 1;
        return false;
    }
    gpu = cuda->ops;
    return true;
}

#endif
