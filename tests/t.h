/* t.h - what every test program shares: cmocka, golden files, comparisons in which NaN
 * fails. */
#ifndef T_H
#define T_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/tensor.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* How many threads the CPU's operations take from now on. OMP_NUM_THREADS is read when a program
 * starts: set by the program it changes nothing. */
static inline void t_threads(int n)
{
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

/* The call must succeed; otherwise print the message. */
#define T_OK(call)                                                                                 \
    do {                                                                                           \
        if ((call) != SL_OK) fail_msg("%s: %s", #call, err.msg);                                   \
    } while (0)
/* The call must fail with this code. */
#define T_CODE(call, want)                                                                         \
    do {                                                                                           \
        sl_code got_ = (call);                                                                     \
        if (got_ != (want))                                                                        \
            fail_msg("%s: code %s (%s), want %s", #call, sl_code_name(got_), got_ ? err.msg : "",  \
                     sl_code_name(want));                                                          \
    } while (0)
/* The message must contain this text. */
#define T_SAYS(msg, part)                                                                          \
    do {                                                                                           \
        if (!strstr((msg), (part))) fail_msg("message \"%s\" lacks \"%s\"", (msg), (part));        \
    } while (0)

/* ||a - b|| / ||b|| in double over n floats; NaN anywhere gives NaN. */
static inline double t_rel_l2(const float *a, const float *b, int64_t n)
{
    double d = 0, s = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = (double)a[i] - b[i];
        d += e * e;
        s += (double)b[i] * b[i];
    }
    return sqrt(d) / (s > 0 ? sqrt(s) : 1);
}

static inline double t_max_abs(const float *a, const float *b, int64_t n)
{
    double m = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - b[i]);
        if (!(e <= m)) m = e;
        if (isnan(e)) return e;
    }
    return m;
}

#define T_REL(a, b, n, tol)                                                                        \
    do {                                                                                           \
        double e_ = t_rel_l2((a), (b), (n));                                                       \
        if (!(e_ <= (tol)))                                                                        \
            fail_msg("%s against %s: relative L2 %.3g, want <= %.3g", #a, #b, e_, (double)(tol));  \
    } while (0)
#define T_NEAR(a, b, n, tol)                                                                       \
    do {                                                                                           \
        double e_ = t_max_abs((a), (b), (n));                                                      \
        if (!(e_ <= (tol)))                                                                        \
            fail_msg("%s against %s: largest difference %.3g, want <= %.3g", #a, #b, e_,           \
                     (double)(tol));                                                               \
    } while (0)

/* Deterministic numbers in (-1, 1) for inputs. */
static inline float t_rand(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(*s >> 33) - (1 << 30)) / (float)(1 << 30);
}
static inline void t_fill(float *x, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) x[i] = t_rand(&seed);
}

/* Path of a golden file: tests run from the top of the tree. Static buffer. */
static inline const char *t_golden(const char *rel)
{
    static char path[1024];
    snprintf(path, sizeof path, "tests/golden/%s", rel);
    return path;
}

/* A private directory for this test, removed by the caller with t_rmdir. Static buffer. */
static inline const char *t_tmpdir(void)
{
    static char dir[256];
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/sluice-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(dir)) abort();
    return dir;
}
static inline void t_rmdir(const char *dir)
{
    char cmd[600];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    if (system(cmd)) fprintf(stderr, "could not remove %s\n", dir);
}

#endif
