/* t_fused.h - what gpu_fused and gpu_frames share: tensors on both sides and their
 * comparison, the timing of --bench, what main does first.
 *
 * Every output is poisoned (bytes 0xff: NaN) before the operation, and what lies around a
 * view must still be poison after it. A wrong case prints its name, the first wrong
 * index, what was found and wanted; the test goes on to its next case and fails at its
 * end.
 *
 * --bench [NAME]: times each operation at the sizes of the 14B model and of the VAE at
 * 1280x720; prints GB/s and the share of a device-to-device sl_copy measured in the same
 * run. Bytes are what must be read and written once. Tensors are larger than the L2
 * cache, or as many sets of them take turns as are. */
#ifndef T_FUSED_H
#define T_FUSED_H

#include "tests/t.h"

#include <time.h>

#include "kernels/plugin.h"

static sl_err err;
static const sl_plugin *cuda;
static sl_ctx cpu, gpu;
static char name[200]; /* of the running case */
static int wrong, cases;
static double worst; /* largest error of the running test, in units of its limit */
static char worst_name[200];
static uint64_t seed;

/* ---- tensors on both sides ---- */

/* One tensor, in host memory for the CPU body and in device memory, at the same place of
 * the same larger buffer. */
typedef struct {
    sl_tensor c, g;             /* what the operation gets */
    sl_tensor c_whole, g_whole; /* dense */
    int64_t left, right; /* elements around the view: of each row if pitched, else of the whole */
    bool pitched;
} pair;

static inline void *claim(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) fail_msg("no memory for %zu bytes", bytes);
    return p;
}

/* Random numbers in lo .. hi, as `dtype` holds them, sent to both sides. */
static inline void fill(pair *p, float lo, float hi)
{
    int64_t n = sl_count(&p->g_whole);
    float *x = claim((size_t)n * sizeof *x);
    void *raw = claim(sl_bytes(&p->g_whole));
    for (int64_t i = 0; i < n; i++) x[i] = lo + (hi - lo) * 0.5f * (t_rand(&seed) + 1);
    sl_from_floats(raw, p->g.dtype, x, n, NULL);
    sl_to_floats(x, raw, p->g.dtype, n, NULL);
    sl_from_floats(p->c_whole.data, p->c.dtype, x, n, NULL);
    sl_upload(&gpu, &p->g_whole, raw);
    free(raw);
    free(x);
}

static inline void poison(pair *p)
{
    size_t n = sl_bytes(&p->g_whole);
    void *raw = claim(n);
    memset(raw, 0xff, n);
    sl_upload(&gpu, &p->g_whole, raw);
    if (sl_bytes(&p->c_whole)) memset(p->c_whole.data, 0xff, sl_bytes(&p->c_whole));
    free(raw);
}

/* A poisoned dense tensor that begins `off` elements after a 256-byte boundary. c_type:
 * its dtype for the CPU body. */
static inline pair dense(sl_dtype c_type, sl_dtype g_type, int rank, const int64_t *shape,
                         int64_t off)
{
    pair p = {.left = off, .right = 5};
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= shape[i];
    p.c_whole = sl_new1(&cpu, c_type, n + off + 5);
    p.g_whole = sl_new1(&gpu, g_type, n + off + 5);
    if (!p.c_whole.data || !p.g_whole.data)
        fail_msg("%s: arena: %s%s", name, cpu.err.msg, gpu.err.msg);
    p.c =
        sl_view((char *)p.c_whole.data + (size_t)off * sl_dtype_size(c_type), c_type, rank, shape);
    p.g =
        sl_view((char *)p.g_whole.data + (size_t)off * sl_dtype_size(g_type), g_type, rank, shape);
    poison(&p);
    return p;
}

#define SHAPE(...)                                                                                 \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[])                         \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* A bf16 input (float32 for the CPU body) with numbers in -1 .. 1. */
static inline pair act(int rank, const int64_t *shape, int64_t off)
{
    pair p = dense(SL_F32, SL_BF16, rank, shape, off);
    fill(&p, -1, 1);
    return p;
}
static inline pair floats(int rank, const int64_t *shape, int64_t off)
{
    pair p = dense(SL_F32, SL_F32, rank, shape, off);
    fill(&p, -1, 1);
    return p;
}

/* ---- comparing ---- */

#define SAY(...)                                                                                   \
    (fprintf(stderr, "    wrong: %s: ", name), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr),  \
     wrong++)

/* Bf16 results: within one rounding of the CPU body's float32, half a unit of 8 bits; a
 * little more, since float32 results differ and may lie near a tie. */
#define ROUNDING 0x1.01p-8

static inline bool in_view(const pair *p, int64_t i)
{
    int64_t n = sl_count(&p->g_whole);
    if (!p->pitched) return i >= p->left && i < n - p->right;
    i %= p->g_whole.shape[1];
    return i >= p->left && i < p->g_whole.shape[1] - p->right;
}

/* `want` (as many as g_whole) against the device. rel < 0: the very numbers, after
 * rounding to the device's dtype. */
static inline void compare(const pair *p, const float *want, double rel, double abs_)
{
    int64_t n = sl_count(&p->g_whole), bad = 0, first = -1;
    float *got = claim((size_t)n * sizeof *got), *exact = claim((size_t)n * sizeof *exact);
    uint8_t *raw = claim(sl_bytes(&p->g_whole)), *rounded = claim(sl_bytes(&p->g_whole));
    size_t size = sl_dtype_size(p->g.dtype);
    double most = 0, found_most = 0;
    cases++;
    sl_download(&gpu, raw, &p->g_whole);
    if (gpu.err.code != SL_OK) {
        SAY("%s", gpu.err.msg);
        sl_code code = gpu.err.code;
        if (code == SL_CUDA) fail_msg("the device is lost");
        goto done;
    }
    sl_to_floats(got, raw, p->g.dtype, n, NULL);
    sl_from_floats(rounded, p->g.dtype, want, n, NULL);
    sl_to_floats(exact, rounded, p->g.dtype, n, NULL);
    for (int64_t i = 0; i < n; i++) {
        double e;
        if (!in_view(p, i)) {
            for (size_t k = 0; k < size; k++)
                if (raw[(size_t)i * size + k] != 0xff) {
                    SAY("element %lld of the buffer, outside the view, was overwritten with %g",
                        (long long)i, got[i]);
                    goto done;
                }
            continue;
        }
        if (isnan(want[i]) && isnan(got[i])) continue;
        if (rel < 0) e = got[i] == exact[i] ? 0 : 2;
        else if (got[i] == want[i]) e = 0; /* infinities too */
        else e = fabs((double)got[i] - want[i]) / (rel * fabs((double)want[i]) + abs_);
        if (!(e <= most)) most = e, found_most = fabs((double)got[i] - want[i]);
        if (!(e <= 1) && !bad++) first = i;
    }
    if (bad) {
        int64_t at = first - p->left;
        if (p->pitched)
            at =
                first / p->g_whole.shape[1] * p->g.shape[1] + first % p->g_whole.shape[1] - p->left;
        char text[128];
        SAY("%lld of %lld numbers; first at %lld of %s: found %.9g, wanted %.9g; worst error %.3g "
            "= %.3g times the limit",
            (long long)bad, (long long)sl_count(&p->g), (long long)at,
            sl_shape_text(&p->g, text, sizeof text), got[first],
            rel < 0 ? exact[first] : want[first], found_most, most);
    }
    if (!(most <= worst)) {
        worst = most;
        snprintf(worst_name, sizeof worst_name, "%s", name);
    }
done:
    free(got), free(exact), free(raw), free(rounded);
}

/* The CPU body's result against the device's. */
static inline void check(const pair *p, double rel, double abs_)
{
    int64_t n = sl_count(&p->c_whole);
    float *want = claim((size_t)n * sizeof *want);
    sl_to_floats(want, p->c_whole.data, p->c.dtype, n, NULL);
    if (cpu.err.code != SL_OK) SAY("CPU body: %s", cpu.err.msg);
    else compare(p, want, rel, abs_);
    free(want);
}
#define EXACT -1, 0

static inline void begin(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline void begin(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    sl_ctx_error(&cpu, NULL); /* forgets the tensors and the error of the case before */
    sl_ctx_error(&gpu, NULL);
    seed = 1;
    for (const char *c = name; *c; c++) seed = seed * 31 + (unsigned char)*c;
}

static inline int set_up(void **state)
{
    (void)state;
    memset(&err, 0, sizeof err);
    wrong = cases = 0;
    worst = 0;
    worst_name[0] = 0;
    T_OK(cuda->use(0, &err));
    T_OK(sl_ctx_open(&gpu, cuda->ops, (size_t)1 << 30, &err));
    T_OK(sl_ctx_open(&cpu, &sl_ops_cpu, (size_t)1 << 30, &err));
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    sl_ctx_close(&gpu);
    sl_ctx_close(&cpu);
    return 0;
}

static inline void end(void)
{
    printf("    %d results, largest error %.3g of its limit%s%s\n", cases, worst,
           worst_name[0] ? ": " : "", worst_name);
    if (wrong) fail_msg("%d wrong", wrong);
}

/* ---- cases ---- */

static const sl_dtype FLOATS[] = {SL_F32, SL_BF16, SL_F16}, TWO[] = {SL_F32, SL_BF16};
static const int64_t COUNTS[] = {1, 3, 7, 8, 9, 16, 255, 4096, 5120 * 33, 4097 * 13};
#define COUNT(list) (sizeof(list) / sizeof *(list))

/* How: 0 apart, 1 y is x, 2 off the grid of 16 bytes. The result to look at, in a
 * poisoned buffer, is y. */
static inline void settle(int how, const pair *y, const pair *x)
{
    if (how != 1) return;
    sl_copy(&cpu, &y->c, &x->c);
    sl_copy(&gpu, &y->g, &x->g);
}

/* ---- bench ---- */

/* tokens of 1280 x 720 x 81, the width of the 14B model */
enum { N = 75600, D = 5120, SETS = 16 };

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A dense device tensor with random contents. */
static inline sl_tensor some(sl_dtype dtype, int rank, const int64_t *shape)
{
    enum { PART = 1 << 22 };
    static float *x;
    static void *raw;
    sl_tensor t = sl_new(&gpu, dtype, rank, shape);
    int64_t n = sl_count(&t);
    if (!t.data || dtype == SL_U8) return t;
    if (!x) {
        x = claim(PART * sizeof *x);
        raw = claim(PART * sizeof *x);
        t_fill(x, PART, 1);
    }
    sl_from_floats(raw, dtype, x, n < PART ? n : PART, NULL);
    for (int64_t i = 0; i < n; i += PART) {
        int64_t m = n - i < PART ? n - i : PART;
        sl_tensor part = sl_view1((char *)t.data + (size_t)i * sl_dtype_size(dtype), dtype, m);
        sl_upload(&gpu, &part, raw);
    }
    return t;
}

typedef struct {
    sl_tensor t[6];
} bench_set;
typedef void bench_fn(const bench_set *s);

static double copy_rate; /* bytes a second */
static const char *only; /* a part of the names to run, or NULL */

/* The sets take turns; `bytes` a call. */
static inline void time_it(const char *what, double bytes, bench_fn *run, const bench_set *s,
                           int sets)
{
    double best = 1e30;
    for (int i = 0; i < 2 * sets || i < 3; i++) run(&s[i % sets]);
    sl_sync(&gpu);
    int calls = (int)(0.03 * 2.5e12 / bytes);
    calls = calls < 8 ? 8 : calls > 2000 ? 2000 : calls;
    for (int round = 0; round < 5; round++) {
        double t = now();
        for (int i = 0; i < calls; i++) run(&s[i % sets]);
        sl_sync(&gpu);
        t = (now() - t) / calls;
        if (t < best) best = t;
    }
    if (gpu.err.code != SL_OK) {
        printf("%-64s %s\n", what, gpu.err.msg);
        return;
    }
    if (!copy_rate) copy_rate = bytes / best;
    printf("%-64s %9.1f us %7.0f GB/s  %5.1f %% of copy\n", what, best * 1e6, bytes / best * 1e-9,
           100 * bytes / best / copy_rate);
}

static inline void run_copy(const bench_set *s)
{
    sl_copy(&gpu, &s->t[0], &s->t[1]);
}

/* One tensor of a benchmark: written and read bytes are counted `times` times; 0: too
 * small or shared, not counted. */
typedef struct {
    sl_dtype dtype;
    int rank;
    int64_t shape[4];
    int times;
    bool cols; /* a third of a matrix of three times the columns */
} bench_tensor;
typedef struct {
    const char *what;
    bench_fn *run;
    bench_tensor t[6];
} bench_case;

#define A2(n, d, times)                                                                            \
    {                                                                                              \
        SL_BF16, 2, {n, d}, times, false                                                           \
    }
#define V1(dtype, d)                                                                               \
    {                                                                                              \
        dtype, 1, {d}, 0, false                                                                    \
    }

static const bench_case MEASURE = {
    "copy [75600, 5120]: the measure", run_copy, {A2(N, D, 1), A2(N, D, 1)}};

/* The measure, then those of the n cases of `list` that are asked for. Returns what
 * `program` ends with. */
static inline int bench(const char *program, const bench_case *list, size_t n)
{
    static bench_set sets[SETS];
    char device[128] = "?";
    int sm = 0;
    if (cuda->use(0, &err) || cuda->describe(0, device, sizeof device, &sm, &err) ||
        sl_ctx_open(&gpu, cuda->ops, (size_t)8 << 30, &err)) {
        fprintf(stderr, "%s: %s\n", program, err.msg);
        return 1;
    }
    printf("%s, sm_%d\n", device, sm);
    for (size_t i = 0; i <= n; i++) {
        const bench_case *b = i ? &list[i - 1] : &MEASURE;
        double counted = 0, held = 0;
        int count = 0;
        if (i && only && !strstr(b->what, only)) continue;
        sl_release(&gpu, 0);
        do { /* sets until together they are five times the L2 cache of an H100 */
            for (int k = 0; k < 6 && b->t[k].rank; k++) {
                const bench_tensor *t = &b->t[k];
                int64_t shape[4] = {t->shape[0], t->cols ? 3 * t->shape[1] : t->shape[1],
                                    t->shape[2], t->shape[3]};
                sl_tensor whole = some(t->dtype, t->rank, shape);
                sets[count].t[k] = t->cols ? sl_cols(&whole, t->shape[1], t->shape[1]) : whole;
                held += (double)sl_bytes(&whole);
                if (!count) counted += t->times * (double)sl_bytes(&sets[count].t[k]);
            }
            count++;
        } while (held < 250e6 && count < SETS && gpu.err.code == SL_OK);
        time_it(b->what, counted, b->run, sets, count);
        sl_ctx_error(&gpu, NULL);
    }
    sl_ctx_close(&gpu);
    return 0;
}

/* ---- main ---- */

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

/* True: run the tests. False: there is no device, or the benchmark of `list` ran, or what
 * else was asked for is unknown; *status is what `program` ends with. */
static inline bool tests_wanted(const char *program, const bench_case *list, size_t n, int argc,
                                char **argv, int *status)
{
    *status = 0;
    cuda = sl_plugin_cuda(&err);
    if (!cuda || !cuda->devices()) {
        printf("%s: skipped: %s\n", program, cuda ? "no CUDA device" : err.msg);
        return false;
    }
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        only = argc > 2 ? argv[2] : NULL;
        *status = bench(program, list, n);
        return false;
    }
    if (argc > 1) {
        fprintf(stderr, "%s: \"%.60s\" is no option, want --bench [NAME] or nothing\n", program,
                argv[1]);
        *status = 2;
        return false;
    }
    return true;
}

#endif
