/* gpu_fused - the memory-bound CUDA kernels against the CPU body: real widths, odd sizes, views off the grid of 16 bytes,
 * aliases.
 *
 * Every output is poisoned (bytes 0xff: NaN) before the operation, and what lies around a view must still be poison after it. A
 * wrong case prints its name, the first wrong index, what was found and wanted; the test goes on to its next case and fails at
 * its end.
 *
 * gpu_fused --bench [NAME]: times each operation at the sizes of the 14B model and of the VAE at 1280x720; prints GB/s and the
 * share of a device-to-device sl_copy measured in the same run. Bytes are what must be read and written once. Tensors are larger
 * than the L2 cache, or as many sets of them take turns as are.
 *
 * limit: 300 s */
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

/* ---- tensors on both sides -------------------------------------------------------------------------------------------------- */

/* One tensor, in host memory for the CPU body and in device memory, at the same place of the same larger buffer. */
typedef struct {
    sl_tensor c, g;             /* what the operation gets */
    sl_tensor c_whole, g_whole; /* dense */
    int64_t left, right;        /* elements before and after: of each row for a pitched view, else of the whole */
    bool pitched;
} pair;

static void *claim(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) fail_msg("no memory for %zu bytes", bytes);
    return p;
}

/* Random numbers in lo .. hi, as `dtype` holds them, sent to both sides. */
static void fill(pair *p, float lo, float hi)
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

static void poison(pair *p)
{
    size_t n = sl_bytes(&p->g_whole);
    void *raw = claim(n);
    memset(raw, 0xff, n);
    sl_upload(&gpu, &p->g_whole, raw);
    if (sl_bytes(&p->c_whole)) memset(p->c_whole.data, 0xff, sl_bytes(&p->c_whole));
    free(raw);
}

/* A poisoned dense tensor that begins `off` elements after a 256-byte boundary. c_type: its dtype for the CPU body. */
static pair dense(sl_dtype c_type, sl_dtype g_type, int rank, const int64_t *shape, int64_t off)
{
    pair p = {.left = off, .right = 5};
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= shape[i];
    p.c_whole = sl_new1(&cpu, c_type, n + off + 5);
    p.g_whole = sl_new1(&gpu, g_type, n + off + 5);
    if (!p.c_whole.data || !p.g_whole.data) fail_msg("%s: arena: %s%s", name, cpu.err.msg, gpu.err.msg);
    p.c = sl_view((char *)p.c_whole.data + (size_t)off * sl_dtype_size(c_type), c_type, rank, shape);
    p.g = sl_view((char *)p.g_whole.data + (size_t)off * sl_dtype_size(g_type), g_type, rank, shape);
    poison(&p);
    return p;
}

/* A poisoned [rows, cols] with `left` and `right` columns beside it. */
static pair pitched(sl_dtype c_type, sl_dtype g_type, int64_t rows, int64_t cols, int64_t left, int64_t right)
{
    pair p = {.left = left, .right = right, .pitched = true};
    p.c_whole = sl_new2(&cpu, c_type, rows, left + cols + right);
    p.g_whole = sl_new2(&gpu, g_type, rows, left + cols + right);
    if (!p.c_whole.data || !p.g_whole.data) fail_msg("%s: arena: %s%s", name, cpu.err.msg, gpu.err.msg);
    p.c = sl_cols(&p.c_whole, left, cols);
    p.g = sl_cols(&p.g_whole, left, cols);
    poison(&p);
    return p;
}

#define SHAPE(...)                                                                                                                 \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[])                                                         \
    {                                                                                                                              \
        __VA_ARGS__                                                                                                                \
    }

/* A bf16 input (float32 for the CPU body) with numbers in -1 .. 1. */
static pair act(int rank, const int64_t *shape, int64_t off)
{
    pair p = dense(SL_F32, SL_BF16, rank, shape, off);
    fill(&p, -1, 1);
    return p;
}
static pair floats(int rank, const int64_t *shape, int64_t off)
{
    pair p = dense(SL_F32, SL_F32, rank, shape, off);
    fill(&p, -1, 1);
    return p;
}

/* ---- comparing -------------------------------------------------------------------------------------------------------------- */

#define SAY(...) (fprintf(stderr, "    wrong: %s: ", name), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), wrong++)

/* Bf16 results: within one rounding of the CPU body's float32, half a unit of 8 bits; a little more, since float32 results
 * differ and may lie near a tie. */
#define ROUNDING 0x1.01p-8

static bool in_view(const pair *p, int64_t i)
{
    int64_t n = sl_count(&p->g_whole);
    if (!p->pitched) return i >= p->left && i < n - p->right;
    i %= p->g_whole.shape[1];
    return i >= p->left && i < p->g_whole.shape[1] - p->right;
}

/* `want` (as many as g_whole) against the device. rel < 0: the very numbers, after rounding to the device's dtype. */
static void compare(const pair *p, const float *want, double rel, double abs_)
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
                    SAY("element %lld of the buffer, outside the view, was overwritten with %g", (long long)i, got[i]);
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
        if (p->pitched) at = first / p->g_whole.shape[1] * p->g.shape[1] + first % p->g_whole.shape[1] - p->left;
        char text[128];
        SAY("%lld of %lld numbers; first at %lld of %s: found %.9g, wanted %.9g; worst error %.3g = %.3g times the limit",
            (long long)bad, (long long)sl_count(&p->g), (long long)at, sl_shape_text(&p->g, text, sizeof text), got[first],
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
static void check(const pair *p, double rel, double abs_)
{
    int64_t n = sl_count(&p->c_whole);
    float *want = claim((size_t)n * sizeof *want);
    sl_to_floats(want, p->c_whole.data, p->c.dtype, n, NULL);
    if (cpu.err.code != SL_OK) SAY("CPU body: %s", cpu.err.msg);
    else compare(p, want, rel, abs_);
    free(want);
}
#define EXACT -1, 0

static void begin(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void begin(const char *fmt, ...)
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

static int set_up(void **state)
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

static int tear_down(void **state)
{
    (void)state;
    sl_ctx_close(&gpu);
    sl_ctx_close(&cpu);
    return 0;
}

static void end(void)
{
    printf("    %d results, largest error %.3g of its limit%s%s\n", cases, worst, worst_name[0] ? ": " : "", worst_name);
    if (wrong) fail_msg("%d wrong", wrong);
}

/* ---- movement --------------------------------------------------------------------------------------------------------------- */

static const sl_dtype FLOATS[] = {SL_F32, SL_BF16, SL_F16}, TWO[] = {SL_F32, SL_BF16};
static const int64_t COUNTS[] = {1, 3, 7, 8, 9, 16, 255, 4096, 5120 * 33, 4097 * 13};
#define COUNT(list) (sizeof(list) / sizeof *(list))

static void zero(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(COUNTS); i++)
        for (int off = 0; off < 2; off++) {
            begin("zero %lld + %d", (long long)COUNTS[i], off);
            pair y = dense(SL_F32, SL_BF16, SHAPE(COUNTS[i]), off);
            sl_zero(&cpu, &y.c);
            sl_zero(&gpu, &y.g);
            check(&y, EXACT);
        }
    end();
}

static void copy_dense(void **state)
{
    (void)state;
    for (size_t from = 0; from < COUNT(FLOATS); from++)
        for (size_t to = 0; to < COUNT(FLOATS); to++)
            for (size_t i = 0; i < COUNT(COUNTS); i++)
                for (int off = 0; off < 3; off++) {
                    begin("copy %s to %s, %lld + %d", sl_dtype_tag(FLOATS[from]), sl_dtype_tag(FLOATS[to]), (long long)COUNTS[i],
                          off);
                    pair x = dense(FLOATS[from], FLOATS[from], SHAPE(COUNTS[i]), off / 2),
                         y = dense(FLOATS[to], FLOATS[to], SHAPE(COUNTS[i]), off);
                    fill(&x, -70000, 70000); /* beyond fp16 at both ends */
                    sl_copy(&cpu, &y.c, &x.c);
                    sl_copy(&gpu, &y.g, &x.g);
                    check(&y, EXACT);
                }
    end();
}

static void copy_pitched(void **state)
{
    static const int64_t VIEWS[][6] = {/* rows, columns, left and right of x, of y */
                                       {5, 64, 64, 64, 0, 0}, {7, 128, 8, 24, 16, 8},       {1, 24, 8, 8, 8, 8},
                                       {9, 12, 4, 0, 8, 4},   {33, 7, 3, 1, 2, 2},          {3, 6, 2, 2, 0, 4},
                                       {257, 1, 1, 1, 0, 3},  {64, 5120, 5120, 5120, 0, 8}, {1000, 40, 0, 40, 40, 0}};
    (void)state;
    for (size_t from = 0; from < COUNT(FLOATS); from++)
        for (size_t to = 0; to < COUNT(FLOATS); to++)
            for (size_t i = 0; i < COUNT(VIEWS); i++) {
                const int64_t *v = VIEWS[i];
                begin("copy of rows %s to %s, [%lld, %lld], %lld and %lld beside x", sl_dtype_tag(FLOATS[from]),
                      sl_dtype_tag(FLOATS[to]), (long long)v[0], (long long)v[1], (long long)v[2], (long long)v[3]);
                pair x = pitched(FLOATS[from], FLOATS[from], v[0], v[1], v[2], v[3]),
                     y = pitched(FLOATS[to], FLOATS[to], v[0], v[1], v[4], v[5]);
                fill(&x, -100, 100);
                sl_copy(&cpu, &y.c, &x.c);
                sl_copy(&gpu, &y.g, &x.g);
                check(&y, EXACT);
            }
    end();
}

static void copy_bytes(void **state)
{
    enum { ROWS = 37, COLS = 7, PITCH = 11 };
    uint8_t in[ROWS * PITCH], out[ROWS * COLS];
    (void)state;
    begin("copy U8 [37, 7] at a pitch of 11");
    sl_tensor x = sl_new2(&gpu, SL_U8, ROWS, PITCH), y = sl_new2(&gpu, SL_U8, ROWS, COLS), view = sl_cols(&x, 3, COLS);
    for (size_t i = 0; i < sizeof in; i++) in[i] = (uint8_t)(i * 37);
    sl_upload(&gpu, &x, in);
    sl_copy(&gpu, &y, &view);
    sl_download(&gpu, out, &y);
    if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
    for (int i = 0; i < ROWS * COLS && !wrong; i++)
        if (out[i] != in[i / COLS * PITCH + 3 + i % COLS])
            SAY("byte %d is %d, want %d", i, out[i], in[i / COLS * PITCH + 3 + i % COLS]);
    end();
}

/* ---- elementwise ------------------------------------------------------------------------------------------------------------ */

static void add_and_sub(void **state)
{
    (void)state;
    for (int sub = 0; sub < 2; sub++)
        for (int types = 0; types < 8; types++)
            for (size_t i = 0; i < COUNT(COUNTS); i++)
                for (int how = 0; how < 4; how++) { /* apart, off the grid, y is a, y is b */
                    sl_dtype ty = TWO[types & 1], ta = TWO[types >> 1 & 1], tb = TWO[types >> 2];
                    if ((how == 2 && ta != ty) || (how == 3 && tb != ty)) continue;
                    int off = how == 1;
                    begin("%s %s = %s, %s, %lld, way %d", sub ? "sub" : "add", sl_dtype_tag(ty), sl_dtype_tag(ta), sl_dtype_tag(tb),
                          (long long)COUNTS[i], how);
                    pair a = dense(SL_F32, ta, SHAPE(COUNTS[i]), 0), b = dense(SL_F32, tb, SHAPE(COUNTS[i]), off);
                    pair y = dense(SL_F32, ty, SHAPE(COUNTS[i]), 3 * off);
                    fill(&a, -2, 2), fill(&b, -3, 3);
                    sl_tensor cy = how == 2 ? a.c : how == 3 ? b.c : y.c, gy = how == 2 ? a.g : how == 3 ? b.g : y.g;
                    (sub ? sl_sub : sl_add)(&cpu, &cy, &a.c, &b.c);
                    (sub ? sl_sub : sl_add)(&gpu, &gy, &a.g, &b.g);
                    if (how >= 2) { /* the buffer around it holds numbers, not poison: look at the view alone */
                        sl_copy(&cpu, &y.c, &cy);
                        sl_copy(&gpu, &y.g, &gy);
                    }
                    check(&y, EXACT);
                }
    end();
}

static void silu(void **state)
{
    (void)state;
    for (int types = 0; types < 4; types++)
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = 0; how < 3; how++) {
                sl_dtype ty = TWO[types & 1], tx = TWO[types >> 1];
                if (how == 2 && tx != ty) continue;
                begin("silu %s = %s, %lld, way %d", sl_dtype_tag(ty), sl_dtype_tag(tx), (long long)COUNTS[i], how);
                pair x = dense(SL_F32, tx, SHAPE(COUNTS[i]), how == 1), y = dense(SL_F32, ty, SHAPE(COUNTS[i]), 0);
                fill(&x, -30, 30);
                sl_tensor cy = how == 2 ? x.c : y.c, gy = how == 2 ? x.g : y.g;
                sl_silu(&cpu, &cy, &x.c);
                sl_silu(&gpu, &gy, &x.g);
                if (how == 2) {
                    sl_copy(&cpu, &y.c, &cy);
                    sl_copy(&gpu, &y.g, &gy);
                }
                check(&y, ty == SL_F32 ? 2e-6 : ROUNDING, 1e-30); /* 2e-6: 16 units of float32, for two exponentials */
            }
    end();
}

static void geglu(void **state)
{
    static const int64_t AT[][2] = {{512, 10240}, {3, 7}, {1, 1}, {5, 8}, {17, 333}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int how = 0; how < 3; how++) {
            begin("geglu [%lld, %lld], way %d", (long long)AT[i][0], (long long)AT[i][1], how);
            pair a = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), 0),
                 b = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), how == 1);
            pair y = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], AT[i][1]), how == 1 ? 3 : 0);
            fill(&a, -6, 6), fill(&b, -2, 2);
            sl_tensor cy = how == 2 ? a.c : y.c, gy = how == 2 ? a.g : y.g;
            sl_geglu(&cpu, &cy, &a.c, &b.c);
            sl_geglu(&gpu, &gy, &a.g, &b.g);
            if (how == 2) {
                sl_copy(&cpu, &y.c, &cy);
                sl_copy(&gpu, &y.g, &gy);
            }
            check(&y, ROUNDING, 1e-30);
        }
    end();
}

static void embed(void **state)
{
    static const int64_t AT[][2] = {{1, 8}, {7, 5}, {512, 4096}, {513, 24}, {1300, 13}, {0, 8}};
    enum { ROWS = 97 };
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (size_t t = 0; t < COUNT(TWO); t++) {
            int64_t n = AT[i][0], d = AT[i][1];
            begin("embed %lld rows of %lld, table %s", (long long)n, (long long)d, sl_dtype_tag(TWO[t]));
            pair table = dense(TWO[t], TWO[t], SHAPE(ROWS, d), 0), y = dense(SL_F32, SL_BF16, SHAPE(n, d), 0);
            int32_t *ids = claim((size_t)n * sizeof *ids);
            fill(&table, -1, 1);
            for (int64_t k = 0; k < n; k++) ids[k] = (int32_t)((k * 31 + 96) % ROWS);
            sl_embed(&cpu, &y.c, &table.c, ids);
            sl_embed(&gpu, &y.g, &table.g, ids);
            memset(ids, 0x7f, (size_t)n * sizeof *ids); /* the caller's array is its own again */
            free(ids);
            check(&y, EXACT);
        }
    end();
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------- */

static const int64_t ROWS[][2] = {{3, 5120}, {1061, 5120}, {1057, 1536}, {257, 1280},  {512, 4096}, {5, 3072},
                                  {1, 2560}, {1100, 64},   {3, 8},       {5, 1},       {4, 13},     {9, 333},
                                  {2, 5128}, {3, 10240},   {7, 16},      {1057, 1032}, {0, 64}};

/* How: 0 apart, 1 y is x, 2 off the grid of 16 bytes. The result to look at, in a poisoned buffer, is y. */
static void settle(int how, const pair *y, const pair *x)
{
    if (how != 1) return;
    sl_copy(&cpu, &y->c, &x->c);
    sl_copy(&gpu, &y->g, &x->g);
}

static void layernorm(void **state)
{
    static const char *const WEIGHTS[] = {"none", "BF16", "F32", "F32 and BF16", "BF16 off the grid"};
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (size_t k = 0; k < COUNT(WEIGHTS); k++)
            for (int turn = 0; turn < 6; turn++) {
                int64_t n = ROWS[i][0], d = ROWS[i][1];
                int how = turn % 3;
                sl_dtype type = turn < 3 ? SL_BF16 : SL_F32;
                begin("layernorm [%lld, %lld] %s, weights %s, way %d", (long long)n, (long long)d, sl_dtype_tag(type), WEIGHTS[k],
                      how);
                pair x = dense(SL_F32, type, SHAPE(n, d), how == 2), y = dense(SL_F32, type, SHAPE(n, d), how == 2);
                pair w = k == 2 || k == 3 ? floats(SHAPE(d), 0) : act(SHAPE(d), k == 4),
                     b = k == 2 ? floats(SHAPE(d), 0) : act(SHAPE(d), 0);
                fill(&x, -1, 5); /* far from zero: variance by differences of squares would show */
                sl_layernorm(&cpu, how == 1 ? &x.c : &y.c, &x.c, k ? &w.c : NULL, k ? &b.c : NULL, 1e-6f);
                sl_layernorm(&gpu, how == 1 ? &x.g : &y.g, &x.g, k ? &w.g : NULL, k ? &b.g : NULL, 1e-6f);
                settle(how, &y, &x);
                check(&y, type == SL_F32 ? 1e-5 : ROUNDING,
                      2e-5); /* 2e-5: sums of 5120 in another order, of numbers up to 5 deviations */
            }
    end();
}

static void layernorm_modulate(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (int how = 0; how < 3; how++) {
            int64_t n = ROWS[i][0], d = ROWS[i][1];
            begin("layernorm_modulate [%lld, %lld], way %d", (long long)n, (long long)d, how);
            pair x = dense(SL_F32, SL_BF16, SHAPE(n, d), how == 2), y = dense(SL_F32, SL_BF16, SHAPE(n, d), how == 2);
            pair scale = floats(SHAPE(d), how == 2), shift = floats(SHAPE(d), 0);
            fill(&x, -1, 5);
            sl_layernorm_modulate(&cpu, how == 1 ? &x.c : &y.c, &x.c, &scale.c, &shift.c, 1e-6f);
            sl_layernorm_modulate(&gpu, how == 1 ? &x.g : &y.g, &x.g, &scale.g, &shift.g, 1e-6f);
            settle(how, &y, &x);
            check(&y, ROUNDING, 2e-5);
        }
    end();
}

/* Columns beside x and y of way `how`: 0 dense, 1 a third of a wide matrix in place, 2 another pitch, 3 odd. */
static pair beside(int how, bool out, int64_t n, int64_t d)
{
    if (how == 1) return pitched(SL_F32, SL_BF16, n, d, d, d);
    if (how == 2) return out ? pitched(SL_F32, SL_BF16, n, d, 8, 16) : pitched(SL_F32, SL_BF16, n, d, 16, 0);
    if (how == 3) return out ? pitched(SL_F32, SL_BF16, n, d, 1, 2) : pitched(SL_F32, SL_BF16, n, d, 3, 0);
    return pitched(SL_F32, SL_BF16, n, d, 0, 0);
}

static void rmsnorm(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (int how = 0; how < 4; how++) {
                int64_t n = ROWS[i][0], d = ROWS[i][1];
                if (!n) continue;
                begin("rmsnorm [%lld, %lld], weights %s, way %d", (long long)n, (long long)d, sl_dtype_tag(TWO[t]), how);
                pair x = beside(how, false, n, d), y = beside(how, true, n, d), w = dense(SL_F32, TWO[t], SHAPE(d), 0);
                fill(&x, -3, 3), fill(&w, 0, 2);
                sl_rmsnorm(&cpu, how == 1 ? &x.c : &y.c, &x.c, &w.c, 1e-6f);
                sl_rmsnorm(&gpu, how == 1 ? &x.g : &y.g, &x.g, &w.g, 1e-6f);
                settle(how, &y, &x);
                check(&y, ROUNDING, 1e-6);
            }
    end();
}

static void rmsnorm_rope(void **state)
{
    static const int64_t AT[][3] = {/* rows, heads, head */
                                    {3, 40, 128}, {1061, 40, 128}, {1057, 12, 128}, {7, 24, 128}, {5, 2, 16},
                                    {9, 4, 24},   {1060, 3, 64},   {2, 1, 2},       {11, 3, 10},  {6, 2, 40},
                                    {4, 50, 128}, {5, 1, 1024},    {3, 2, 2048},    {8, 5, 8}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (int how = 0; how < 4; how++) {
                int64_t n = AT[i][0], heads = AT[i][1], half = AT[i][2] / 2, d = heads * AT[i][2];
                begin("rmsnorm_rope [%lld, %lld x %lld], weights %s, way %d", (long long)n, (long long)heads, (long long)AT[i][2],
                      sl_dtype_tag(TWO[t]), how);
                pair x = beside(how, false, n, d), y = beside(how, true, n, d), w = dense(SL_F32, TWO[t], SHAPE(d), 0);
                pair c = floats(SHAPE(n, half), 0), s = floats(SHAPE(n, half), how == 3);
                fill(&x, -3, 3), fill(&w, 0, 2);
                sl_rmsnorm_rope(&cpu, how == 1 ? &x.c : &y.c, &x.c, &w.c, 1e-6f, &c.c, &s.c, (int)heads);
                sl_rmsnorm_rope(&gpu, how == 1 ? &x.g : &y.g, &x.g, &w.g, 1e-6f, &c.g, &s.g, (int)heads);
                settle(how, &y, &x);
                check(&y, ROUNDING, 4e-6); /* 4e-6: two products of numbers up to 4 may cancel */
            }
    end();
}

static void gated_add(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(ROWS); i++)
        for (int how = 0; how < 3; how++) {
            int64_t n = ROWS[i][0], d = ROWS[i][1];
            begin("gated_add [%lld, %lld], way %d", (long long)n, (long long)d, how);
            pair x = act(SHAPE(n, d), how == 2), y = act(SHAPE(n, d), 0), gate = floats(SHAPE(d), how == 2 ? 3 : 0),
                 out = dense(SL_F32, SL_BF16, SHAPE(n, d), 0);
            sl_gated_add(&cpu, &x.c, how == 1 ? &x.c : &y.c, &gate.c);
            sl_gated_add(&gpu, &x.g, how == 1 ? &x.g : &y.g, &gate.g);
            settle(1, &out, &x);
            check(&out, ROUNDING, 1e-6);
        }
    end();
}

/* ---- patches and the sampler ------------------------------------------------------------------------------------------------ */

static const int64_t PATCHES[][5] = {{16, 20, 3, 8, 12}, {16, 0, 1, 2, 2},  {4, 5, 2, 6, 10}, {33, 20, 1, 4, 70},
                                     {1, 0, 1, 2, 66},   {48, 49, 1, 2, 6}, {3, 1, 5, 2, 4},  {16, 20, 2, 90, 160}};

static void patchify(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(PATCHES); i++)
        for (int how = 0; how < 4; how++) {
            const int64_t *s = PATCHES[i];
            begin("patchify [%lld + %lld, %lld, %lld, %lld], way %d", (long long)s[0], (long long)s[1], (long long)s[2],
                  (long long)s[3], (long long)s[4], how);
            pair l = floats(SHAPE(s[0], s[2], s[3], s[4]), how == 1), c = floats(SHAPE(s[1], s[2], s[3], s[4]), how == 2);
            pair y = dense(SL_F32, SL_BF16, SHAPE(s[2] * (s[3] / 2) * (s[4] / 2), (s[0] + s[1]) * 4), how == 3);
            sl_patchify(&cpu, &y.c, &l.c, s[1] ? &c.c : NULL);
            sl_patchify(&gpu, &y.g, &l.g, s[1] ? &c.g : NULL);
            check(&y, EXACT);
        }
    end();
}

static void unpatchify(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(PATCHES); i++)
        for (size_t t = 0; t < COUNT(TWO); t++)
            for (int how = 0; how < 3; how++) {
                const int64_t *s = PATCHES[i];
                begin("unpatchify %s [%lld, %lld, %lld, %lld], way %d", sl_dtype_tag(TWO[t]), (long long)s[0], (long long)s[2],
                      (long long)s[3], (long long)s[4], how);
                pair x = act(SHAPE(s[2] * (s[3] / 2) * (s[4] / 2), s[0] * 4), how == 1);
                pair y = dense(SL_F32, TWO[t], SHAPE(s[0], s[2], s[3], s[4]), how == 2);
                sl_unpatchify(&cpu, &y.c, &x.c);
                sl_unpatchify(&gpu, &y.g, &x.g);
                check(&y, EXACT);
            }
    end();
}

static void guidance(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(TWO); t++)
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = 0; how < 4; how++) { /* apart, off the grid, v is cond, v is uncond */
                int64_t n = COUNTS[i];
                begin("guidance %s, %lld, way %d", sl_dtype_tag(TWO[t]), (long long)n, how);
                pair c = dense(SL_F32, TWO[t], SHAPE(n), how == 1), u = dense(SL_F32, TWO[t], SHAPE(n), 0),
                     v = dense(SL_F32, TWO[t], SHAPE(n), 0);
                fill(&c, -3, 3), fill(&u, -3, 3);
                float *want = claim((size_t)sl_count(&v.c_whole) * sizeof *want), g = 5.0f;
                memcpy(want, v.c_whole.data, sl_bytes(&v.c_whole));
                for (int64_t k = 0; k < n; k++) { /* each of the three rounded to the tensors' dtype */
                    float cc = ((float *)c.c.data)[k], uu = ((float *)u.c.data)[k], d = cc - uu, gd;
                    if (TWO[t] == SL_BF16) d = sl_from_bf16(sl_to_bf16(d));
                    gd = g * d;
                    if (TWO[t] == SL_BF16) gd = sl_from_bf16(sl_to_bf16(gd));
                    want[v.left + k] = uu + gd;
                }
                sl_guidance(&gpu, how == 2 ? &c.g : how == 3 ? &u.g : &v.g, &c.g, &u.g, g);
                if (how >= 2) sl_copy(&gpu, &v.g, how == 2 ? &c.g : &u.g);
                compare(&v, want, EXACT);
                free(want);
            }
    end();
}

static void flow_x0(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(FLOATS); t++)
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = 0; how < 4; how++) { /* apart, off the grid, x0 is x, x0 is v */
                int64_t n = COUNTS[i];
                if (how == 3 && FLOATS[t] != SL_F32) continue;
                begin("flow_x0 v %s, %lld, way %d", sl_dtype_tag(FLOATS[t]), (long long)n, how);
                pair x = floats(SHAPE(n), 0), v = dense(FLOATS[t], FLOATS[t], SHAPE(n), how == 1),
                     y = dense(SL_F32, SL_F32, SHAPE(n), 0);
                fill(&v, -3, 3);
                sl_flow_x0(&cpu, how == 2 ? &x.c : how == 3 ? &v.c : &y.c, &x.c, &v.c, 0.8571f);
                sl_flow_x0(&gpu, how == 2 ? &x.g : how == 3 ? &v.g : &y.g, &x.g, &v.g, 0.8571f);
                if (how >= 2) settle(1, &y, how == 2 ? &x : &v);
                check(&y, EXACT);
            }
    end();
}

static void lincomb(void **state)
{
    static const float A[4] = {0.73f, -1.91f, 0.333f, 1e-3f};
    (void)state;
    for (int n = 1; n <= 4; n++)
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = -2; how < n; how++) { /* apart, off the grid, y is x[how] */
                pair x[4], y;
                const sl_tensor *xc[4], *xg[4];
                begin("lincomb of %d, %lld, way %d", n, (long long)COUNTS[i], how);
                y = dense(SL_F32, SL_F32, SHAPE(COUNTS[i]), how == -1);
                for (int k = 0; k < n; k++) {
                    x[k] = floats(SHAPE(COUNTS[i]), 0);
                    xc[k] = &x[k].c;
                    xg[k] = &x[k].g;
                }
                sl_lincomb(&cpu, how < 0 ? &y.c : xc[how], n, xc, A);
                sl_lincomb(&gpu, how < 0 ? &y.g : xg[how], n, xg, A);
                if (how >= 0) settle(1, &y, &x[how]);
                check(&y, EXACT);
            }
    end();
}

static void mean_abs(void **state)
{
    static const int64_t AT[] = {1, 7, 8, 2049, 65536, 524288 * 4 + 24, 5120 * 300 + 3, 5120 * 4001};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int off = 0; off < 2; off++) {
            begin("mean_abs of %lld + %d", (long long)AT[i], off);
            pair p = act(SHAPE(AT[i]), off), r = act(SHAPE(AT[i]), 0);
            float want[2], got[2], again[2];
            sl_mean_abs(&cpu, want, &p.c, &r.c);
            sl_mean_abs(&gpu, got, &p.g, &r.g);
            cases++;
            if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
            for (int k = 0; k < 2; k++) {
                double e = fabs((double)got[k] - want[k]) / (1e-6 * want[k] + 1e-30);
                if (!(e <= 1)) SAY("mean %d is %.9g, want %.9g", k, got[k], want[k]);
                if (!(e <= worst)) worst = e, snprintf(worst_name, sizeof worst_name, "%s", name);
            }
            for (int k = 0; k < 5; k++) {
                sl_mean_abs(&gpu, again, &p.g, &r.g);
                if (memcmp(again, got, sizeof got))
                    SAY("run %d gives %.9g %.9g after %.9g %.9g: not the same bits", k + 2, again[0], again[1], got[0], got[1]);
            }
            sl_bf16 nan = 0x7fc0;
            sl_tensor last = sl_view1((sl_bf16 *)r.g.data + AT[i] - 1, SL_BF16, 1);
            sl_upload(&gpu, &last, &nan);
            sl_mean_abs(&gpu, got, &p.g, &r.g);
            if (!isnan(got[0]) || isnan(got[1])) SAY("NaN as the last of r gives %g and %g, want NaN and a number", got[0], got[1]);
        }
    end();
}

/* ---- frames ----------------------------------------------------------------------------------------------------------------- */

static void conv_history(void **state)
{
    static const int64_t AT[][2] = {{2, 1}, {2, 2}, {2, 4}, {1, 4}, {1, 1}, {3, 1}, {4, 1}, {5, 2}, {4, 3}, {2, 0}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++) {
        begin("conv_history of %lld frames, %lld new", (long long)AT[i][0], (long long)AT[i][1]);
        pair h = act(SHAPE(AT[i][0], 3, 5, 6), 0), x = act(SHAPE(AT[i][1], 3, 5, 6), 0),
             out = dense(SL_F32, SL_BF16, SHAPE(AT[i][0], 3, 5, 6), 0);
        sl_conv_history(&cpu, &h.c, &x.c);
        sl_conv_history(&gpu, &h.g, &x.g);
        settle(1, &out, &h);
        check(&out, EXACT);
    }
    end();
}

static void vae_norm(void **state)
{
    static const int64_t CHANNELS[] = {96,  192, 384, 16,  32,  64,   8,    24, 48, 128, 160,
                                       256, 320, 512, 640, 768, 1024, 1032, 3,  12, 100, 1};
    (void)state;
    for (size_t i = 0; i < COUNT(CHANNELS); i++)
        for (int how = 0; how < 8; how++) { /* bit 0: SiLU; then apart, y is x, off the grid, gamma F32 */
            int64_t c = CHANNELS[i], n = 2 * 13 * 47 * c;
            int way = how / 2;
            begin("vae_norm %lld channels%s, way %d", (long long)c, how % 2 ? ", SiLU" : "", way);
            pair x = act(SHAPE(2, 13, 47, c), way == 2), y = dense(SL_F32, SL_BF16, SHAPE(2, 13, 47, c), way == 2);
            pair g = dense(SL_F32, way == 3 ? SL_F32 : SL_BF16, SHAPE(c), 0);
            fill(&g, 0, 3);
            sl_tensor zc = sl_view1((float *)x.c.data + n / 2 / c * c, SL_F32, c),
                      zg = sl_view1((sl_bf16 *)x.g.data + n / 2 / c * c, SL_BF16, c);
            sl_zero(&cpu, &zc); /* one pixel of zeros */
            sl_zero(&gpu, &zg);
            sl_vae_norm(&cpu, way == 1 ? &x.c : &y.c, &x.c, &g.c, how % 2);
            sl_vae_norm(&gpu, way == 1 ? &x.g : &y.g, &x.g, &g.g, how % 2);
            settle(way, &y, &x);
            check(&y, ROUNDING, 1e-6);
        }
    end();
}

static void time_shuffle(void **state)
{
    static const int64_t CHANNELS[] = {8, 96, 384, 3, 1, 12, 20};
    (void)state;
    for (size_t i = 0; i < COUNT(CHANNELS); i++)
        for (int off = 0; off < 2; off++) {
            begin("time_shuffle %lld channels + %d", (long long)CHANNELS[i], off);
            pair x = act(SHAPE(3, 5, 7, 2 * CHANNELS[i]), 0), y = dense(SL_F32, SL_BF16, SHAPE(6, 5, 7, CHANNELS[i]), off);
            sl_time_shuffle(&cpu, &y.c, &x.c);
            sl_time_shuffle(&gpu, &y.g, &x.g);
            check(&y, EXACT);
        }
    end();
}

static void channels(void **state)
{
    static const int64_t AT[][2] = {/* of y, of x when they go first */
                                    {3, 3}, {16, 32}, {16, 16}, {48, 96}, {64, 64}, {65, 65}, {130, 136}, {1, 4}, {20, 24}};
    float mul[136], add[136];
    (void)state;
    for (int i = 0; i < 136; i++) mul[i] = 0.5f + 0.01f * (float)i, add[i] = (float)i - 3.3f;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int how = 0; how < 4; how++) { /* with and without factors; off the grid */
            int64_t c = AT[i][0], stride = AT[i][1];
            const float *m = how & 1 ? mul : NULL, *a = how & 1 ? add : NULL;
            begin("to_channels_last %lld, way %d", (long long)c, how);
            pair x = floats(SHAPE(c, 3, 5, 17), 0), y = dense(SL_F32, SL_BF16, SHAPE(3, 5, 17, c), how / 2);
            sl_to_channels_last(&cpu, &y.c, &x.c, m, a);
            sl_to_channels_last(&gpu, &y.g, &x.g, m, a);
            check(&y, EXACT);
            begin("to_channels_first %lld of %lld, way %d", (long long)c, (long long)stride, how);
            x = act(SHAPE(3, 5, 17, stride), how / 2);
            y = dense(SL_F32, SL_F32, SHAPE(c, 3, 5, 17), 0);
            sl_to_channels_first(&cpu, &y.c, &x.c, m, a);
            sl_to_channels_first(&gpu, &y.g, &x.g, m, a);
            check(&y, EXACT);
        }
    end();
}

static void frames_rgb8(void **state)
{
    static const float SPECIAL[] = {NAN, -NAN, INFINITY, -INFINITY, 0, -0.0f, 1, -1, 3e38f, -3e38f, 1e-30f};
    static const int64_t AT[][2] = {{1, 1}, {3, 7}, {64, 64}, {33, 31}, {5, 16}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int off = 0; off < 2; off++) {
            int64_t n = 2 * AT[i][0] * AT[i][1] * 3;
            begin("frames_rgb8 [2, %lld, %lld, 3] + %d", (long long)AT[i][0], (long long)AT[i][1], off);
            pair x = dense(SL_F32, SL_BF16, SHAPE(2, AT[i][0], AT[i][1], 3), off);
            fill(&x, -1.3f, 1.3f);
            for (int64_t k = 0; k < n && k < (int64_t)(sizeof SPECIAL / sizeof *SPECIAL); k++)
                ((float *)x.c.data)[n - 1 - k] = SPECIAL[k];
            sl_bf16 *raw = claim((size_t)n * sizeof *raw);
            sl_from_floats(raw, SL_BF16, x.c.data, n, NULL);
            sl_to_floats(x.c.data, raw, SL_BF16, n, NULL);
            sl_upload(&gpu, &x.g, raw);
            free(raw);
            const int64_t shape[] = {2, AT[i][0], AT[i][1], 3};
            sl_tensor yc = sl_new(&cpu, SL_U8, 4, shape), yg = sl_new(&gpu, SL_U8, 4, shape);
            uint8_t *got = claim((size_t)n);
            memset(got, 0xa5, (size_t)n);
            sl_upload(&gpu, &yg, got);
            sl_frames_rgb8(&cpu, &yc, &x.c);
            sl_frames_rgb8(&gpu, &yg, &x.g);
            sl_download(&gpu, got, &yg);
            cases++;
            if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
            for (int64_t k = 0; k < n; k++)
                if (got[k] != ((uint8_t *)yc.data)[k]) {
                    SAY("byte %lld of %lld is %d, want %d, for %g", (long long)k, (long long)n, got[k], ((uint8_t *)yc.data)[k],
                        ((float *)x.c.data)[k]);
                    break;
                }
            if (n > 2 && (got[n - 1] || got[n - 2])) SAY("NaN gives %d and %d, want 0", got[n - 1], got[n - 2]);
            free(got);
        }
    end();
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------ */

/* Tensors without elements: nothing happens, nothing fails. */
static void nothing(void **state)
{
    (void)state;
    begin("tensors without elements");
    sl_tensor e2 = sl_view2(NULL, SL_BF16, 0, 64), e4 = sl_view4(NULL, SL_BF16, 0, 4, 4, 3),
              e6 = sl_view4(NULL, SL_BF16, 0, 4, 4, 6);
    sl_tensor f4 = sl_view4(NULL, SL_F32, 3, 0, 4, 4), l4 = sl_view4(NULL, SL_F32, 16, 0, 4, 4),
              u8 = sl_view4(NULL, SL_U8, 0, 4, 4, 3);
    sl_tensor rows = sl_view2(NULL, SL_BF16, 0, 64), rope = sl_view2(NULL, SL_F32, 0, 16), f1 = sl_view1(NULL, SL_F32, 0);
    pair w = act(SHAPE(64), 0), f = floats(SHAPE(64), 0), g3 = act(SHAPE(3), 0);
    const sl_tensor *one[] = {&f1};
    sl_zero(&gpu, &e2);
    sl_copy(&gpu, &e2, &rows);
    sl_add(&gpu, &e2, &e2, &rows);
    sl_silu(&gpu, &e2, &e2);
    sl_geglu(&gpu, &e2, &e2, &rows);
    sl_layernorm(&gpu, &e2, &e2, NULL, NULL, 1e-6f);
    sl_layernorm_modulate(&gpu, &e2, &e2, &f.g, &f.g, 1e-6f);
    sl_rmsnorm(&gpu, &e2, &e2, &w.g, 1e-6f);
    sl_rmsnorm_rope(&gpu, &e2, &e2, &w.g, 1e-6f, &rope, &rope, 2);
    sl_gated_add(&gpu, &e2, &rows, &f.g);
    sl_patchify(&gpu, &e2, &l4, NULL);
    sl_unpatchify(&gpu, &l4, &rows);
    sl_guidance(&gpu, &e2, &e2, &rows, 5);
    sl_flow_x0(&gpu, &f1, &f1, &f1, 1);
    sl_lincomb(&gpu, &f1, 1, one, (float[]){1});
    sl_conv_history(&gpu, &e4, &e4);
    sl_vae_norm(&gpu, &e4, &e4, &g3.g, true);
    sl_time_shuffle(&gpu, &e4, &e6);
    sl_to_channels_last(&gpu, &e4, &f4, NULL, NULL);
    sl_to_channels_first(&gpu, &f4, &e4, NULL, NULL);
    sl_frames_rgb8(&gpu, &u8, &e4);
    sl_sync(&gpu);
    cases++;
    if (gpu.err.code != SL_OK) SAY("%s", gpu.err.msg);
    end();
}

enum { HUGE_D = 5120, HUGE_ROWS = 440000, HUGE_TAIL = 3 }; /* 2.25e9 elements: beyond 32 bits, signed, and 4.5 GB */

/* Row-wise operations on tensors of more than 2^31 elements: the last rows are right. */
static void beyond_32_bits(void **state)
{
    static const char *const OPS[] = {"add",     "silu",         "copy",      "layernorm", "layernorm_modulate",
                                      "rmsnorm", "rmsnorm_rope", "gated_add", "vae_norm"};
    const int64_t first = HUGE_ROWS - HUGE_TAIL;
    const size_t bytes = (size_t)HUGE_ROWS * HUGE_D * sizeof(sl_bf16);
    (void)state;
    begin("beyond 32 bits");
    pair tail = act(SHAPE(HUGE_TAIL, HUGE_D), 0), w = act(SHAPE(HUGE_D), 0), f = floats(SHAPE(HUGE_D), 0),
         want = dense(SL_F32, SL_BF16, SHAPE(HUGE_TAIL, HUGE_D), 0);
    pair cs = floats(SHAPE(HUGE_TAIL, 64), 0);
    void *a = sl_device_alloc(&gpu, bytes), *b = a ? sl_device_alloc(&gpu, bytes) : NULL,
         *c = b ? sl_device_alloc(&gpu, (size_t)HUGE_ROWS * 64 * 4) : NULL;
    if (!c) {
        printf("    left out: %s\n", gpu.err.msg);
        sl_device_free(&gpu, a);
        sl_device_free(&gpu, b);
        sl_ctx_error(&gpu, NULL);
        return;
    }
    sl_tensor x = sl_view2(a, SL_BF16, HUGE_ROWS, HUGE_D), y = sl_view2(b, SL_BF16, HUGE_ROWS, HUGE_D),
              rope = sl_view2(c, SL_F32, HUGE_ROWS, 64);
    sl_tensor x_end = sl_rows(&x, first, HUGE_TAIL), y_end = sl_rows(&y, first, HUGE_TAIL),
              rope_end = sl_rows(&rope, first, HUGE_TAIL);
    for (size_t i = 0; i < COUNT(OPS); i++) {
        snprintf(name, sizeof name, "%s [%d, %d]", OPS[i], HUGE_ROWS, HUGE_D);
        sl_zero(&gpu, &x), sl_zero(&gpu, &y), sl_zero(&gpu, &rope);
        poison(&want);
        sl_copy(&gpu, &x_end, &tail.g);
        sl_copy(&gpu, &rope_end, &cs.g);
        sl_tensor x4 = sl_view4(a, SL_BF16, HUGE_ROWS, 5, 16, 64), y4 = sl_view4(b, SL_BF16, HUGE_ROWS, 5, 16, 64),
                  g64 = sl_view1(w.g.data, SL_BF16, 64);
        sl_tensor c4 = sl_view4(tail.c.data, SL_F32, HUGE_TAIL, 5, 16, 64),
                  o4 = sl_view4(want.c.data, SL_F32, HUGE_TAIL, 5, 16, 64);
        sl_tensor c64 = sl_view1(w.c.data, SL_F32, 64);
        switch (i) {
        case 0: sl_add(&gpu, &y, &x, &x), sl_add(&cpu, &want.c, &tail.c, &tail.c); break;
        case 1: sl_silu(&gpu, &y, &x), sl_silu(&cpu, &want.c, &tail.c); break;
        case 2: sl_copy(&gpu, &y, &x), sl_copy(&cpu, &want.c, &tail.c); break;
        case 3: sl_layernorm(&gpu, &y, &x, &w.g, &w.g, 1e-6f), sl_layernorm(&cpu, &want.c, &tail.c, &w.c, &w.c, 1e-6f); break;
        case 4:
            sl_layernorm_modulate(&gpu, &y, &x, &f.g, &f.g, 1e-6f),
                sl_layernorm_modulate(&cpu, &want.c, &tail.c, &f.c, &f.c, 1e-6f);
            break;
        case 5: sl_rmsnorm(&gpu, &y, &x, &w.g, 1e-6f), sl_rmsnorm(&cpu, &want.c, &tail.c, &w.c, 1e-6f); break;
        case 6:
            sl_rmsnorm_rope(&gpu, &y, &x, &w.g, 1e-6f, &rope, &rope, 40);
            sl_rmsnorm_rope(&cpu, &want.c, &tail.c, &w.c, 1e-6f, &cs.c, &cs.c, 40);
            break;
        case 7: sl_zero(&cpu, &want.c), sl_gated_add(&gpu, &y, &x, &f.g), sl_gated_add(&cpu, &want.c, &tail.c, &f.c); break;
        default: sl_vae_norm(&gpu, &y4, &x4, &g64, true), sl_vae_norm(&cpu, &o4, &c4, &c64, true); break;
        }
        sl_copy(&gpu, &want.g, &y_end);
        check(&want, ROUNDING, 2e-5);
    }
    sl_device_free(&gpu, a);
    sl_device_free(&gpu, b);
    sl_device_free(&gpu, c);
    end();
}

/* ---- bench ------------------------------------------------------------------------------------------------------------------ */

enum { N = 75600, D = 5120, SETS = 16 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A dense device tensor with random contents. */
static sl_tensor some(sl_dtype dtype, int rank, const int64_t *shape)
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
static void time_it(const char *what, double bytes, bench_fn *run, const bench_set *s, int sets)
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
    printf("%-64s %9.1f us %7.0f GB/s  %5.1f %% of copy\n", what, best * 1e6, bytes / best * 1e-9, 100 * bytes / best / copy_rate);
}

static void run_copy(const bench_set *s)
{
    sl_copy(&gpu, &s->t[0], &s->t[1]);
}
static void run_add(const bench_set *s)
{
    sl_add(&gpu, &s->t[0], &s->t[0], &s->t[1]);
}
static void run_layernorm(const bench_set *s)
{
    sl_layernorm(&gpu, &s->t[0], &s->t[1], &s->t[2], &s->t[3], 1e-6f);
}
static void run_modulate(const bench_set *s)
{
    sl_layernorm_modulate(&gpu, &s->t[0], &s->t[1], &s->t[2], &s->t[3], 1e-6f);
}
static void run_rms(const bench_set *s)
{
    sl_rmsnorm(&gpu, &s->t[0], &s->t[1], &s->t[2], 1e-6f);
}
static void run_rope(const bench_set *s)
{
    sl_rmsnorm_rope(&gpu, &s->t[0], &s->t[0], &s->t[1], 1e-6f, &s->t[2], &s->t[3], 40);
}
static void run_gated(const bench_set *s)
{
    sl_gated_add(&gpu, &s->t[0], &s->t[1], &s->t[2]);
}
static void run_geglu(const bench_set *s)
{
    sl_geglu(&gpu, &s->t[0], &s->t[0], &s->t[1]);
}
static void run_patchify(const bench_set *s)
{
    sl_patchify(&gpu, &s->t[0], &s->t[1], &s->t[2]);
}
static void run_unpatchify(const bench_set *s)
{
    sl_unpatchify(&gpu, &s->t[0], &s->t[1]);
}
static void run_guidance(const bench_set *s)
{
    sl_guidance(&gpu, &s->t[0], &s->t[0], &s->t[1], 5);
}
static void run_flow(const bench_set *s)
{
    sl_flow_x0(&gpu, &s->t[0], &s->t[1], &s->t[2], 0.7f);
}
static void run_lincomb(const bench_set *s)
{
    sl_lincomb(&gpu, &s->t[0], 4, (const sl_tensor *[]){&s->t[1], &s->t[2], &s->t[3], &s->t[4]}, (float[]){1, 2, 3, 4});
}
static void run_mean(const bench_set *s)
{
    float out[2];
    sl_mean_abs(&gpu, out, &s->t[0], &s->t[1]);
}
static void run_vae_norm(const bench_set *s)
{
    sl_vae_norm(&gpu, &s->t[0], &s->t[1], &s->t[2], true);
}
static void run_shuffle(const bench_set *s)
{
    sl_time_shuffle(&gpu, &s->t[0], &s->t[1]);
}
static void run_history(const bench_set *s)
{
    sl_conv_history(&gpu, &s->t[0], &s->t[1]);
}
static void run_last(const bench_set *s)
{
    sl_to_channels_last(&gpu, &s->t[0], &s->t[1], NULL, NULL);
}
static void run_first(const bench_set *s)
{
    sl_to_channels_first(&gpu, &s->t[0], &s->t[1], NULL, NULL);
}
static void run_rgb8(const bench_set *s)
{
    sl_frames_rgb8(&gpu, &s->t[0], &s->t[1]);
}

/* One tensor of a benchmark: written and read bytes are counted `times` times; 0: too small or shared, not counted. */
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

#define A2(n, d, times)                                                                                                            \
    {                                                                                                                              \
        SL_BF16, 2, {n, d}, times, false                                                                                           \
    }
#define A4(t, h, w, c, times)                                                                                                      \
    {                                                                                                                              \
        SL_BF16, 4, {t, h, w, c}, times, false                                                                                     \
    }
#define F4(t, h, w, c, times)                                                                                                      \
    {                                                                                                                              \
        SL_F32, 4, {t, h, w, c}, times, false                                                                                      \
    }
#define V1(dtype, d)                                                                                                               \
    {                                                                                                                              \
        dtype, 1, {d}, 0, false                                                                                                    \
    }

static const bench_case BENCH[] = {
    {"copy [75600, 5120]: the measure", run_copy, {A2(N, D, 1), A2(N, D, 1)}},
    {"copy of rows [75600, 5120] out of 15360", run_copy, {A2(N, D, 1), {SL_BF16, 2, {N, D}, 1, true}}},
    {"copy F32 to BF16 [75600, 5120]", run_copy, {A2(N, D, 1), {SL_F32, 2, {N, D}, 1, false}}},
    {"add [75600, 5120] in place", run_add, {A2(N, D, 2), A2(N, D, 1)}},
    {"layernorm [75600, 5120], weights BF16", run_layernorm, {A2(N, D, 1), A2(N, D, 1), V1(SL_BF16, D), V1(SL_BF16, D)}},
    {"layernorm [75600, 5120], weights F32", run_layernorm, {A2(N, D, 1), A2(N, D, 1), V1(SL_F32, D), V1(SL_F32, D)}},
    {"layernorm_modulate [75600, 5120]", run_modulate, {A2(N, D, 1), A2(N, D, 1), V1(SL_F32, D), V1(SL_F32, D)}},
    {"layernorm_modulate [32760, 1536]",
     run_modulate,
     {A2(32760, 1536, 1), A2(32760, 1536, 1), V1(SL_F32, 1536), V1(SL_F32, 1536)}},
    {"rmsnorm [75600, 5120]", run_rms, {A2(N, D, 1), A2(N, D, 1), V1(SL_BF16, D)}},
    {"rmsnorm [512, 4096]", run_rms, {A2(512, 4096, 1), A2(512, 4096, 1), V1(SL_BF16, 4096)}},
    {"rmsnorm_rope [75600, 40 x 128] in place",
     run_rope,
     {A2(N, D, 2), V1(SL_BF16, D), {SL_F32, 2, {N, 64}, 1, false}, {SL_F32, 2, {N, 64}, 1, false}}},
    {"rmsnorm_rope [75600, 40 x 128] in place, out of 15360",
     run_rope,
     {{SL_BF16, 2, {N, D}, 2, true}, V1(SL_BF16, D), {SL_F32, 2, {N, 64}, 1, false}, {SL_F32, 2, {N, 64}, 1, false}}},
    {"gated_add [75600, 5120]", run_gated, {A2(N, D, 2), A2(N, D, 1), V1(SL_F32, D)}},
    {"geglu [512, 10240] in place", run_geglu, {A2(512, 10240, 2), A2(512, 10240, 1)}},
    {"patchify [16 + 20, 21, 90, 160]", run_patchify, {A2(N, 144, 1), F4(16, 21, 90, 160, 1), F4(20, 21, 90, 160, 1)}},
    {"unpatchify to BF16 [16, 21, 90, 160]", run_unpatchify, {A4(16, 21, 90, 160, 1), A2(N, 64, 1)}},
    {"unpatchify to F32 [16, 21, 90, 160]", run_unpatchify, {F4(16, 21, 90, 160, 1), A2(N, 64, 1)}},
    {"guidance BF16 [16, 21, 90, 160]", run_guidance, {A4(16, 21, 90, 160, 2), A4(16, 21, 90, 160, 1)}},
    {"flow_x0 [16, 21, 90, 160]", run_flow, {F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), A4(16, 21, 90, 160, 1)}},
    {"lincomb of 4 [16, 21, 90, 160]",
     run_lincomb,
     {F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1)}},
    {"mean_abs [75600, 5120] (waits)", run_mean, {A2(N, D, 1), A2(N, D, 1)}},
    {"vae_norm + SiLU [4, 720, 1280, 96]", run_vae_norm, {A4(4, 720, 1280, 96, 1), A4(4, 720, 1280, 96, 1), V1(SL_BF16, 96)}},
    {"vae_norm + SiLU [4, 720, 1280, 192]", run_vae_norm, {A4(4, 720, 1280, 192, 1), A4(4, 720, 1280, 192, 1), V1(SL_BF16, 192)}},
    {"vae_norm + SiLU [4, 360, 640, 192]", run_vae_norm, {A4(4, 360, 640, 192, 1), A4(4, 360, 640, 192, 1), V1(SL_BF16, 192)}},
    {"vae_norm + SiLU [2, 180, 320, 384]", run_vae_norm, {A4(2, 180, 320, 384, 1), A4(2, 180, 320, 384, 1), V1(SL_BF16, 384)}},
    {"vae_norm + SiLU [4, 720, 1280, 16]", run_vae_norm, {A4(4, 720, 1280, 16, 1), A4(4, 720, 1280, 16, 1), V1(SL_BF16, 16)}},
    {"vae_norm + SiLU [4, 720, 1280, 32]", run_vae_norm, {A4(4, 720, 1280, 32, 1), A4(4, 720, 1280, 32, 1), V1(SL_BF16, 32)}},
    {"vae_norm + SiLU [4, 720, 1280, 64]", run_vae_norm, {A4(4, 720, 1280, 64, 1), A4(4, 720, 1280, 64, 1), V1(SL_BF16, 64)}},
    {"time_shuffle [4, 180, 320, 2 x 384]", run_shuffle, {A4(8, 180, 320, 384, 1), A4(4, 180, 320, 768, 1)}},
    {"conv_history [2, 720, 1280, 96] from 4", run_history, {A4(2, 720, 1280, 96, 2), A4(4, 720, 1280, 96, 0)}},
    {"to_channels_last [3, 4, 720, 1280]", run_last, {A4(4, 720, 1280, 3, 1), F4(3, 4, 720, 1280, 1)}},
    {"to_channels_last [16, 21, 90, 160]", run_last, {A4(21, 90, 160, 16, 1), F4(16, 21, 90, 160, 1)}},
    {"to_channels_first [16, 21, 90, 160]", run_first, {F4(16, 21, 90, 160, 1), A4(21, 90, 160, 16, 1)}},
    {"frames_rgb8 [4, 720, 1280, 3]", run_rgb8, {{SL_U8, 4, {4, 720, 1280, 3}, 1, false}, A4(4, 720, 1280, 3, 1)}},
};

static int bench(void)
{
    static bench_set sets[SETS];
    char device[128] = "?";
    int sm = 0;
    if (cuda->use(0, &err) || cuda->describe(0, device, sizeof device, &sm, &err) ||
        sl_ctx_open(&gpu, cuda->ops, (size_t)8 << 30, &err)) {
        fprintf(stderr, "gpu_fused: %s\n", err.msg);
        return 1;
    }
    printf("%s, sm_%d\n", device, sm);
    for (size_t i = 0; i < COUNT(BENCH); i++) {
        const bench_case *b = &BENCH[i];
        double counted = 0, held = 0;
        int count = 0;
        if (i && only && !strstr(b->what, only)) continue;
        sl_release(&gpu, 0);
        do { /* sets until together they are five times the L2 cache of an H100 */
            for (int k = 0; k < 6 && b->t[k].rank; k++) {
                const bench_tensor *t = &b->t[k];
                int64_t shape[4] = {t->shape[0], t->cols ? 3 * t->shape[1] : t->shape[1], t->shape[2], t->shape[3]};
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

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        T(zero),      T(copy_dense),     T(copy_pitched), T(copy_bytes),         T(add_and_sub), T(silu),
        T(geglu),     T(embed),          T(layernorm),    T(layernorm_modulate), T(rmsnorm),     T(rmsnorm_rope),
        T(gated_add), T(patchify),       T(unpatchify),   T(guidance),           T(flow_x0),     T(lincomb),
        T(mean_abs),  T(conv_history),   T(vae_norm),     T(time_shuffle),       T(channels),    T(frames_rgb8),
        T(nothing),   T(beyond_32_bits),
    };
    cuda = sl_plugin_cuda(&err);
    if (!cuda || !cuda->devices()) {
        printf("skipped: %s\n", cuda ? "no CUDA device" : err.msg);
        return 0;
    }
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        only = argc > 2 ? argv[2] : NULL;
        return bench();
    }
    if (argc > 1) {
        fprintf(stderr, "gpu_fused: \"%.60s\" is no option, want --bench [NAME] or nothing\n", argv[1]);
        return 2;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
