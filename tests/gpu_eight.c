/* gpu_eight.c - rows in 8 bits on the GPU: what makes them and their products, held to the CPU body
 * on odd sizes and, by samples of rows, at the 14B model's; shares of rows and of columns have the
 * bits of the whole.
 *
 * gpu_eight --bench [products | makers | attention | outliers]: the 14B model's products at 32,760,
 * 48,384 and 75,600 rows beside those in bf16; what makes codes, beside the time in which its bytes
 * would be copied; attention of that many tokens for some seconds, for a card under load slows
 * down; the relative error of products whose inputs have outliers. Without a device: one line, and
 * success. limit: 300 s */
#include "tests/t_hopper.h"
#include "tests/t_layers.h"

#include "common/e4m3.h"
#include "graphs/randn.h"
#include "kernels/comm.h"

/* ---- the same rows in 8 bits on both sides ---- */

typedef struct {
    sl_eight c, g;
} eights;

static eights new_eights(pair *p, int64_t rows, int64_t d)
{
    const eights e = {sl_new_eight(&p->cpu, rows, d), sl_new_eight(&p->gpu, rows, d)};
    assert_true(sl_ok(&p->cpu) && sl_ok(&p->gpu));
    return e;
}

/* Quantised on the CPU, and the same bytes uploaded. */
static eights random_eights(pair *p, int64_t rows, int64_t d)
{
    const eights e = new_eights(p, rows, d);
    const size_t mark = sl_mark(&p->cpu);
    const sl_tensor x = sl_new2(&p->cpu, SL_F32, rows, d);
    t_fill(x.data, rows * d, p->seed++);
    sl_quantise_rows(&p->cpu, &e.c, &x);
    sl_release(&p->cpu, mark);
    sl_upload(&p->gpu, &e.g.codes, e.c.codes.data);
    sl_upload(&p->gpu, &e.g.scale, e.c.scale.data);
    sl_sync(&p->gpu);
    return e;
}

/* A code's place among all numbers. */
static int place(uint8_t code)
{
    return code & 128 ? -(code & 127) : code & 127;
}

/* The device's rows are the CPU body's: the same bits, or, where float32 arithmetic before may
 * differ in its last places, scales within 1e-5 and one code of a hundred its neighbour. */
static void same_rows(pair *p, const eights *e, bool exact, const char *what)
{
    const int64_t n = e->c.scale.shape[0], d = e->c.codes.shape[1];
    if (went_wrong(p, what)) return;
    uint8_t *codes = malloc((size_t)(n * d) + 1);
    float *scales = malloc((size_t)n * sizeof *scales + 1);
    const uint8_t *want = e->c.codes.data;
    int64_t others = 0, far = -1, off = -1;
    assert_true(codes && scales);
    sl_download(&p->gpu, codes, &e->g.codes);
    sl_download(&p->gpu, scales, &e->g.scale);
    for (int64_t i = 0; i < n * d; i++) {
        const int by = abs(place(codes[i]) - place(want[i]));
        others += by != 0;
        if (by > 1 && far < 0) far = i;
    }
    for (int64_t i = 0; i < n; i++) {
        const float s = ((const float *)e->c.scale.data)[i];
        if (!(fabsf(scales[i] - s) <= (exact ? 0 : 1e-5f * s)) && off < 0) off = i;
    }
    if (off >= 0 || far >= 0 || others > (exact ? 0 : n * d / 100 + 2)) {
        print_message("FAIL %s: %lld of %lld codes differ", what, (long long)others,
                      (long long)(n * d));
        if (far >= 0)
            print_message(", [%lld, %lld] is 0x%02x, want 0x%02x", (long long)(far / d),
                          (long long)(far % d), codes[far], want[far]);
        if (off >= 0)
            print_message(", scale %lld is %g, want %g", (long long)off, (double)scales[off],
                          (double)((const float *)e->c.scale.data)[off]);
        print_message("\n");
        p->failures++;
    }
    free(codes);
    free(scales);
}

/* ---- what makes them ---- */

static twin vector(pair *p, sl_dtype dtype, int64_t n)
{
    twin t = matrix(p, dtype, 1, n, 0);
    t.g = sl_view1(t.g.data, dtype, n);
    t.c = sl_view1(t.c.data, SL_F32, n);
    return t;
}

/* Each check empties the arenas. */
static void made_once(pair *p, int64_t n, int64_t d, int64_t pad)
{
    static const sl_dtype DTYPES[] = {SL_BF16, SL_F32};
    EACH(i, DTYPES)
    {
        const eights e = new_eights(p, n, d);
        const twin x = matrix(p, DTYPES[i], n, d, pad);
        sl_quantise_rows(&p->cpu, &e.c, &x.c);
        sl_quantise_rows(&p->gpu, &e.g, &x.g);
        same_rows(p, &e, true,
                  say("quantise_rows %s [%lld, %lld], pad %lld", sl_dtype_tag(DTYPES[i]),
                      (long long)n, (long long)d, (long long)pad));
    }
    for (int k = 0; k < 2 && !pad; k++) { /* of x alone */
        const eights e = new_eights(p, n, d);
        const twin x = matrix(p, SL_BF16, n, d, 0);
        for (int side = 0; side < 2; side++) {
            sl_ctx *const ctx = side ? &p->gpu : &p->cpu;
            const sl_eight *const y = side ? &e.g : &e.c;
            if (k) sl_layernorm_eight(ctx, y, side ? &x.g : &x.c, NULL, NULL, 1e-6f);
            else sl_gelu_eight(ctx, y, side ? &x.g : &x.c);
        }
        same_rows(p, &e, false,
                  say(k ? "layernorm_eight [%lld, %lld], no weights" : "gelu_eight [%lld, %lld]",
                      (long long)n, (long long)d));
    }
    for (int k = 0; k < 3 && !pad; k++) { /* with two vectors */
        const sl_dtype dtype = k ? SL_F32 : SL_BF16;
        const eights e = new_eights(p, n, d);
        const twin x = matrix(p, SL_BF16, n, d, 0), w = vector(p, dtype, d),
                   b = vector(p, dtype, d);
        for (int side = 0; side < 2; side++)
            (k < 2 ? sl_layernorm_eight : sl_layernorm_modulate_eight)(
                side ? &p->gpu : &p->cpu, side ? &e.g : &e.c, side ? &x.g : &x.c,
                side ? &w.g : &w.c, side ? &b.g : &b.c, 1e-6f);
        same_rows(p, &e, false,
                  say(k < 2 ? "layernorm_eight [%lld, %lld], weights %s"
                            : "layernorm_modulate_eight [%lld, %lld], %s",
                      (long long)n, (long long)d, sl_dtype_tag(dtype)));
    }
}

static void rows_are_made_as_on_the_cpu(void **state)
{
    static const int64_t N[] = {1, 3, 257},
                         D[] = {8, 33, 256, 1536, 5120, 5128, 8960, 13824, 15000};
    pair p;
    (void)state;
    pair_open(&p, (size_t)1 << 30);
    EACH(i, N) EACH(k, D) made_once(&p, N[i], D[k], 0);
    EACH(k, D)
    {
        made_once(&p, 5, D[k], 8);
        made_once(&p, 5, D[k], 3);
    }
    made_once(&p, 2500, 5120, 0); /* two rows a block */
    pair_close(&p);
}

/* Zeros, tiny and huge numbers, NaN and infinity: the CPU body's bits. */
static void ends_of_the_range(void **state)
{
    enum { ROWS = 6, D = 264 };
    static const float AT[ROWS][2] = {{0, 0},   {1e-38f, -3e-39f}, {3e38f, 1},
                                      {NAN, 1}, {INFINITY, -1},    {448, -0x1p-10f}};
    pair p;
    (void)state;
    pair_open(&p, (size_t)64 << 20);
    for (int dtype = 0; dtype < 2; dtype++) {
        float x[ROWS * D];
        for (int i = 0; i < ROWS * D; i++) x[i] = i % D < 2 ? AT[i / D][i % D] : 0;
        twin t = matrix(&p, dtype ? SL_F32 : SL_BF16, ROWS, D, 0);
        const eights e = new_eights(&p, ROWS, D);
        fill(&p, &t, x);
        sl_quantise_rows(&p.cpu, &e.c, &t.c);
        sl_quantise_rows(&p.gpu, &e.g, &t.g);
        sl_sync(&p.gpu);
        float scales[ROWS], *want = e.c.scale.data;
        uint8_t codes[ROWS * D], *wanted = e.c.codes.data;
        sl_download(&p.gpu, scales, &e.g.scale);
        sl_download(&p.gpu, codes, &e.g.codes);
        for (int r = 0; r < ROWS; r++) {
            if (!(scales[r] == want[r] || (isnan(scales[r]) && isnan(want[r]))))
                fail_msg("row %d has scale %g, want %g", r, (double)scales[r], (double)want[r]);
            for (int c = 0; c < D; c++) {
                const float a = sl_from_e4m3(codes[r * D + c]) * scales[r],
                            b = sl_from_e4m3(wanted[r * D + c]) * want[r];
                if (!(a == b || (isnan(a) && isnan(b))))
                    fail_msg("[%d, %d] is %g, want %g", r, c, (double)a, (double)b);
            }
        }
        forget(&p);
    }
    pair_close(&p);
}

/* ---- products ---- */

enum { NO_BIAS, BIAS_BF16, BIAS_F32 };

static void product_once(pair *p, int64_t m, int64_t n, int64_t k, int bias, int64_t pad)
{
    const eights x = random_eights(p, m, k), w = random_eights(p, n, k);
    twin y = matrix(p, SL_BF16, m, n, pad), b = vector(p, bias == BIAS_F32 ? SL_F32 : SL_BF16, n);
    sl_linear_eight(&p->cpu, &y.c, &x.c, &w.c, bias ? &b.c : NULL);
    sl_linear_eight(&p->gpu, &y.g, &x.g, &w.g, bias ? &b.g : NULL);
    same(p, &y, 4e-3,
         say("linear_eight %lld x %lld x %lld, bias %d, pad %lld", (long long)m, (long long)n,
             (long long)k, bias, (long long)pad));
    forget(p);
}

static void added_once(pair *p, int64_t m, int64_t n, int64_t k, int bias, bool gated)
{
    const eights a = random_eights(p, m, k), w = random_eights(p, n, k);
    twin x = matrix(p, SL_BF16, m, n, 0), y = matrix(p, SL_BF16, m, n, 0),
         b = vector(p, bias == BIAS_F32 ? SL_F32 : SL_BF16, n), gate = vector(p, SL_F32, n);
    sl_linear_add_eight(&p->cpu, &x.c, &y.c, &a.c, &w.c, bias ? &b.c : NULL,
                        gated ? &gate.c : NULL);
    sl_linear_add_eight(&p->gpu, &x.g, &y.g, &a.g, &w.g, bias ? &b.g : NULL,
                        gated ? &gate.g : NULL);
    /* The plain kernel's product is rounded before it is added. Of many numbers that is 4e-3; of
     * a few, all may be small beside what was added: twice 2^-9 of that, which t_fill keeps below
     * 1. */
    same(p, &x, m * n < 64 ? 2e-2 : 4e-3,
         say("linear_add_eight %lld x %lld x %lld, bias %d%s", (long long)m, (long long)n,
             (long long)k, bias, gated ? ", gated" : ""));
    forget(p);
}

static void products_of_every_kind(void **state)
{
    static const int64_t M[] = {1, 2, 9, 33, 257, 1000}, N[] = {1, 8, 64, 96, 515, 1536},
                         K[] = {1, 36, 64, 512, 2053}, PAD[] = {0, 8, 3};
    int turn = 0;
    pair p;
    (void)state;
    pair_open(&p, (size_t)1 << 30);
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        product_once(&p, M[i], N[j], K[l], turn % 3, PAD[turn / 3 % 3]);
        added_once(&p, M[i], N[j], K[l], turn / 2 % 3, turn % 2);
        turn += 5;
    }
    product_once(&p, 1560, 1536, 8960, BIAS_BF16, 0);
    product_once(&p, 3120, 5120, 5120, BIAS_BF16, 0);
    added_once(&p, 3120, 1536, 1536, BIAS_BF16, true);
    added_once(&p, 1560, 1536, 8960, BIAS_BF16, false);
    pair_close(&p);
}

/* ---- rows and columns of a team ---- */

/* The operands of one layer on the device: random codes, scales near each other. */
typedef struct {
    sl_eight x, w;
    sl_tensor b, gate, y, work;
} operands;

/* Codes of a block of noise, again and again. */
static sl_eight noisy(pair *p, int64_t rows, int64_t d)
{
    enum { BLOCK = 1 << 22 };
    static uint8_t block[BLOCK];
    uint64_t seed = 5;
    const sl_eight e = sl_new_eight(&p->gpu, rows, d);
    for (int i = 0; i < BLOCK && !block[0]; i++)
        block[BLOCK - 1 - i] = sl_to_e4m3(448 * t_rand(&seed));
    for (int64_t at = 0; at < rows * d && e.codes.data; at += BLOCK) {
        const int64_t n = rows * d - at < BLOCK ? rows * d - at : BLOCK;
        const sl_tensor part = sl_view1((char *)e.codes.data + at, SL_E4M3, n);
        sl_upload(&p->gpu, &part, block);
    }
    float *scales = malloc((size_t)rows * sizeof *scales);
    assert_non_null(scales);
    for (int64_t i = 0; i < rows; i++) scales[i] = 1.0f / 448 * (1 + 0.5f * t_rand(&seed));
    sl_upload(&p->gpu, &e.scale, scales);
    sl_sync(&p->gpu);
    free(scales);
    return e;
}

static operands operands_of(pair *p, const t_layer *l, int64_t m)
{
    const t_operands o = {.y = noise(p, m, l->n), .b = noise(p, 1, l->n)};
    float gate[13824];
    operands e = {.x = noisy(p, m, l->k),
                  .w = noisy(p, l->n, l->k),
                  .y = o.y,
                  .b = sl_view1(o.b.data, SL_BF16, l->n),
                  .gate = sl_new1(&p->gpu, SL_F32, l->n),
                  .work = sl_new2(&p->gpu, SL_BF16, m, l->n)};
    t_fill(gate, l->n, 17);
    sl_upload(&p->gpu, &e.gate, gate);
    sl_sync(&p->gpu);
    return e;
}

static void layer_rows(sl_ctx *ctx, const t_layer *l, const operands *o, int64_t first,
                       int64_t rows)
{
    const sl_eight x = sl_eight_rows(&o->x, first, rows);
    const sl_tensor y = sl_rows(&o->y, first, rows), work = sl_rows(&o->work, 0, rows);
    if (l->adds) sl_linear_add_eight(ctx, &y, &work, &x, &o->w, &o->b, l->gated ? &o->gate : NULL);
    else sl_linear_eight(ctx, &y, &x, &o->w, &o->b);
}

/* Rows `at` of a device matrix as floats, or of rows in 8 bits in the CPU's arena. */
static sl_tensor rows_at(pair *p, const sl_tensor *t, const int64_t *at, int n)
{
    const int64_t d = t->shape[1];
    const sl_tensor to = sl_new2(&p->cpu, SL_F32, n, d);
    for (int i = 0; i < n; i++) {
        const sl_tensor row = sl_rows(t, at[i], 1);
        float *x = downloaded(p, &row);
        memcpy((float *)to.data + i * d, x, (size_t)d * sizeof *x);
        free(x);
    }
    return to;
}

static sl_eight eight_at(pair *p, const sl_eight *e, const int64_t *at, int n)
{
    const int64_t d = e->codes.shape[1];
    const sl_eight to = sl_new_eight(&p->cpu, n, d);
    for (int i = 0; i < n; i++) {
        const sl_eight row = sl_eight_rows(e, at[i], 1);
        sl_download(&p->gpu, (uint8_t *)to.codes.data + i * d, &row.codes);
        sl_download(&p->gpu, (float *)to.scale.data + i, &row.scale);
    }
    return to;
}

/* m rows of a layer, or those from `first` on, at the 14B model's shape; the CPU computes some of
 * them. What cublasLt declines fails here, by name: the plain kernel does not take so many. */
static void sample_of_a_layer(pair *p, const t_layer *l, int64_t m, int64_t first)
{
    enum { ROWS = 6 };
    const char *what =
        say("%lld rows from %lld on in 8 bits, %s (%lld to %lld)", (long long)(m - first),
            (long long)first, l->name, (long long)l->k, (long long)l->n);
    const int64_t at[ROWS] = {first, first + 1, m / 3, m / 2 + 1, m - 2, m - 1};
    operands e = operands_of(p, l, m);
    const sl_tensor want = rows_at(p, &e.y, at, ROWS), work = sl_new2(&p->cpu, SL_F32, ROWS, l->n),
                    gate = sl_new1(&p->cpu, SL_F32, l->n), b = sl_new1(&p->cpu, SL_F32, l->n);
    const sl_eight x = eight_at(p, &e.x, at, ROWS), w = sl_new_eight(&p->cpu, l->n, l->k);
    sl_download(&p->gpu, w.codes.data, &e.w.codes);
    sl_download(&p->gpu, w.scale.data, &e.w.scale);
    sl_download(&p->gpu, gate.data, &e.gate);
    float *bias = downloaded(p, &e.b);
    memcpy(b.data, bias, (size_t)l->n * sizeof *bias);
    free(bias);
    if (l->adds) sl_linear_add_eight(&p->cpu, &want, &work, &x, &w, &b, l->gated ? &gate : NULL);
    else sl_linear_eight(&p->cpu, &want, &x, &w, &b);
    layer_rows(&p->gpu, l, &e, first, m - first);
    sl_sync(&p->gpu);
    const sl_tensor got = rows_at(p, &e.y, at, ROWS); /* before the arenas are emptied */
    if (!went_wrong(p, what)) compare(p, got.data, want.data, ROWS * l->n, l->n, 4e-3, what);
    forget(p);
}

static void layers_of_the_14b_model(void **state)
{
    static const int64_t M[] = {9, 1000, 32760, 75600};
    pair p;
    (void)state;
    pair_open(&p, (size_t)12 << 30);
    p.gpu.float32_sums = true; /* as the CPU's */
    for (int l = 0; l < 5; l++) {
        EACH(i, M) sample_of_a_layer(&p, &T_LAYERS[l], M[i], 0);
        for (int64_t first = 1; first < 4; first++) /* scales that are not aligned */
            sample_of_a_layer(&p, &T_LAYERS[l], 4680, first);
    }
    pair_close(&p);
}

/* How far y is from `want`: relative Frobenius distance. */
static double distance(pair *p, const sl_tensor *y, const sl_tensor *want)
{
    float *a = downloaded(p, y), *b = downloaded(p, want);
    double d = 0, s = 0;
    for (int64_t i = 0; i < sl_count(y); i++) {
        const double e = (double)a[i] - b[i];
        d += e * e, s += (double)b[i] * b[i];
    }
    free(a);
    free(b);
    return sqrt(d / s);
}

/* bf16 [rows, cols]: uniform numbers of -1 to 1, of which `some` columns are `by` times the rest,
 * plus `mean`. */
static sl_tensor unlike(pair *p, int64_t rows, int64_t cols, uint64_t seed, int some, float by,
                        float mean)
{
    const sl_tensor t = sl_new2(&p->gpu, SL_BF16, rows, cols);
    const int64_t n = rows * cols, every = some ? cols / some : cols + 1;
    float *x = malloc((size_t)n * sizeof *x);
    sl_bf16 *rounded = malloc((size_t)n * sizeof *rounded);
    assert_true(x && rounded);
    t_fill(x, n, seed);
    for (int64_t i = 0; i < n; i++)
        rounded[i] = sl_to_bf16(x[i] * (i % cols % every == every - 1 ? by : 1) + mean);
    sl_upload(&p->gpu, &t, rounded);
    sl_sync(&p->gpu);
    free(x);
    free(rounded);
    return t;
}

/* What sums that stay in the tensor cores lose. Each of K products is cut to what is above 2^-13 of
 * the sum so far, which among independent products around 0 is about sqrt(K) of them: together less
 * than sqrt(K) 2^-13 of the result. Where a sum only grows it is more: --bench outliers. */
static void sums_in_the_tensor_cores(void **state)
{
    enum { M = 1000 };
    pair p;
    (void)state;
    pair_open(&p, (size_t)4 << 30);
    for (int l = 0; l < 5; l++) {
        const int64_t n = T_LAYERS[l].n, k = T_LAYERS[l].k;
        const char *what =
            say("sums in the tensor cores, %d rows of %lld to %lld", M, (long long)k, (long long)n);
        sl_ctx *g = &p.gpu;
        const sl_tensor x = unlike(&p, M, k, 9, 0, 1, 0), w = unlike(&p, n, k, 5, 0, 1, 0),
                        fast = sl_new2(g, SL_BF16, M, n), sums = sl_new2(g, SL_BF16, M, n);
        const sl_eight xe = sl_new_eight(g, M, k), we = sl_new_eight(g, n, k);
        sl_quantise_rows(g, &xe, &x);
        sl_quantise_rows(g, &we, &w);
        g->float32_sums = true;
        sl_linear_eight(g, &sums, &xe, &we, NULL);
        g->float32_sums = false;
        sl_linear_eight(g, &fast, &xe, &we, NULL);
        sl_sync(g);
        const double d = distance(&p, &fast, &sums), most = sqrt((double)k) * 0x1p-13;
        if (!went_wrong(&p, what) && !(d <= most && d > 0)) {
            print_message("FAIL %s: %.3g of float32's, want more than 0 and at most %.3g\n", what,
                          d, most);
            p.failures++;
        }
        forget(&p);
    }
    pair_close(&p);
}

/* How many bytes of two device tensors differ. */
static int64_t other_bytes(pair *p, const sl_tensor *a, const sl_tensor *b)
{
    const size_t n = sl_bytes(a);
    char *x = malloc(n + 1), *y = malloc(n + 1);
    int64_t count = 0;
    assert_true(x && y);
    sl_download(&p->gpu, x, a);
    sl_download(&p->gpu, y, b);
    for (size_t i = 0; i < n; i++) count += x[i] != y[i];
    free(x);
    free(y);
    return count;
}

static void report(pair *p, const sl_tensor *a, const sl_tensor *b, const char *what)
{
    if (went_wrong(p, what)) return;
    const int64_t others = other_bytes(p, a, b);
    if (!others) return;
    print_message("FAIL %s: %lld bytes differ\n", what, (long long)others);
    p->failures++;
}

static void shares_of_a_layer(pair *p, const t_layer *l, int64_t m)
{
    static const int TEAMS[] = {2, 3, 4, 5, 8};
    const operands all = operands_of(p, l, m);
    operands shares = all;
    const sl_tensor start = sl_new2(&p->gpu, SL_BF16, m, l->n);
    shares.y = sl_new2(&p->gpu, SL_BF16, m, l->n);
    sl_copy(&p->gpu, &start, &all.y);
    p->gpu.whole_rows = m;
    layer_rows(&p->gpu, l, &all, 0, m);
    EACH(i, TEAMS)
    {
        sl_copy(&p->gpu, &shares.y, &start);
        for (int k = 0; k < TEAMS[i]; k++) {
            const sl_share of = sl_share_of(&(sl_team){.size = TEAMS[i]}, m, k);
            layer_rows(&p->gpu, l, &shares, of.first, of.rows);
        }
        report(p, &shares.y, &all.y,
               say("%lld rows in 8 bits, %s, in shares of 1/%d", (long long)m, l->name, TEAMS[i]));
        if (l->adds || l->n % TEAMS[i]) continue;
        sl_zero(&p->gpu, &shares.y);
        for (int k = 0; k < TEAMS[i]; k++) { /* columns, as a rank sends its values */
            const int64_t cols = l->n / TEAMS[i], first = k * cols;
            const sl_eight w = sl_eight_rows(&all.w, first, cols);
            const sl_tensor y = sl_cols(&shares.y, first, cols), b = sl_rows(&all.b, first, cols);
            sl_linear_eight(&p->gpu, &y, &all.x, &w, &b);
        }
        report(p, &shares.y, &all.y,
               say("%lld rows in 8 bits, %s, columns in shares of 1/%d", (long long)m, l->name,
                   TEAMS[i]));
    }
    p->gpu.whole_rows = 0;
    forget(p);
}

static void shares_have_the_bits_of_the_whole(void **state)
{
    static const int64_t ROWS[] = {7, 1560, 8191, 16380};
    pair p;
    (void)state;
    pair_open(&p, (size_t)12 << 30);
    EACH(i, ROWS)
    for (int l = 0; l < 5; l++) shares_of_a_layer(&p, &T_LAYERS[l], ROWS[i]);
    p.gpu.float32_sums = true;
    for (int l = 0; l < 5; l++) shares_of_a_layer(&p, &T_LAYERS[l], 8191);
    pair_close(&p);
}

/* ---- speed ---- */

static double time_of(pair *p, void (*run)(pair *, void *), void *arg)
{
    double best = 0;
    run(p, arg);
    sl_sync(&p->gpu);
    for (int r = 0; r < 5; r++) {
        int runs = 0;
        const double from = seconds();
        do {
            for (int i = 0; i < 4; i++) run(p, arg);
            sl_sync(&p->gpu);
            runs += 4;
        } while (seconds() - from < 0.15);
        const double s = (seconds() - from) / runs;
        if (!r || s < best) best = s;
    }
    return best;
}

typedef struct {
    const t_layer *l;
    operands e;
    t_operands b;
    int64_t m;
} timed;

static void run_eight(pair *p, void *arg)
{
    const timed *t = arg;
    layer_rows(&p->gpu, t->l, &t->e, 0, t->m);
}

static void run_bf16(pair *p, void *arg)
{
    const timed *t = arg;
    t_layer_rows(&p->gpu, t->l, &t->b, 0, t->m);
}

static void bench_products(pair *p, int64_t m)
{
    double all[2] = {0};
    for (int i = 0; i < 5; i++) {
        timed t = {.l = &T_LAYERS[i], .m = m};
        const double operations = 2.0 * (double)m * (double)t.l->n * (double)t.l->k;
        double s[2];
        p->gpu.whole_rows = m;
        t.e = operands_of(p, t.l, m);
        s[1] = time_of(p, run_eight, &t);
        forget(p);
        t.b = t_operands_of(p, t.l, m);
        s[0] = time_of(p, run_bf16, &t);
        forget(p);
        for (int k = 0; k < 2; k++) all[k] += t.l->each * s[k];
        printf("%7lld rows  %-24s bf16 %8.3f ms %7.1f TFLOP/s   8 bits %8.3f ms %7.1f TFLOP/s   "
               "%.2f x\n",
               (long long)m, t.l->name, s[0] * 1e3, operations / s[0] * 1e-12, s[1] * 1e3,
               operations / s[1] * 1e-12, s[0] / s[1]);
        if (went_wrong(p, say("%lld rows, %s", (long long)m, t.l->name))) return;
    }
    printf("%7lld rows  %-24s bf16 %8.3f ms                   8 bits %8.3f ms\n", (long long)m,
           "a block's products", all[0] * 1e3, all[1] * 1e3);
}

enum { COPY, MODULATE, MODULATE_EIGHT, NORM_EIGHT, QUANTISE, GELU, ROPE, ROPE_Q, CODE_Q, CODE_KV };
static const struct {
    const char *name;
    double bytes; /* a number: read and written, the fewest */
    int64_t d;
} MAKERS[] = {[COPY] = {"copy", 4, 5120},
              [MODULATE] = {"layernorm_modulate in bf16", 4, 5120},
              [MODULATE_EIGHT] = {"layernorm_modulate_eight", 3, 5120},
              [NORM_EIGHT] = {"layernorm_eight", 3, 5120},
              [QUANTISE] = {"quantise_rows", 3, 5120},
              [GELU] = {"gelu_eight", 3, 13824},
              [ROPE] = {"rmsnorm_rope in bf16", 4, 5120},
              [ROPE_Q] = {"rmsnorm_rope_queries", 3, 5120},
              [CODE_Q] = {"code_queries", 3, 5120},
              [CODE_KV] = {"code_keys: k and v", 10, 5120}}; /* means first, then codes */

typedef struct {
    sl_tensor x, y, w, b, cos, sin;
    sl_eight e;
    sl_queries_eight q;
    sl_keys_eight keys;
    int op;
} maker;

enum { HEADS = 40 };

static void run_maker(pair *p, void *arg)
{
    const maker *k = arg;
    sl_ctx *g = &p->gpu;
    switch (k->op) {
    case COPY: sl_copy(g, &k->y, &k->x); break;
    case MODULATE: sl_layernorm_modulate(g, &k->y, &k->x, &k->w, &k->b, 1e-6f); break;
    case MODULATE_EIGHT: sl_layernorm_modulate_eight(g, &k->e, &k->x, &k->w, &k->b, 1e-6f); break;
    case NORM_EIGHT: sl_layernorm_eight(g, &k->e, &k->x, &k->w, &k->b, 1e-6f); break;
    case QUANTISE: sl_quantise_rows(g, &k->e, &k->x); break;
    case GELU: sl_gelu_eight(g, &k->e, &k->x); break;
    case ROPE: sl_rmsnorm_rope(g, &k->y, &k->x, &k->w, 1e-6f, &k->cos, &k->sin, HEADS); break;
    case ROPE_Q:
        if (!sl_rmsnorm_rope_queries(g, &k->q, &k->x, &k->w, 1e-6f, &k->cos, &k->sin, HEADS, 1))
            sl_ctx_fail(g, SL_ARG, "rmsnorm_rope_queries was done in two operations");
        break;
    case CODE_Q: sl_code_queries(g, &k->q, &k->x, HEADS, 1); break;
    default: sl_code_keys(g, &k->keys, &k->x, &k->y, HEADS); break;
    }
}

/* A vector of the device, d numbers again and again. */
static sl_tensor repeated(pair *p, int64_t n, const float *x, int64_t d)
{
    const sl_tensor t = sl_new1(&p->gpu, SL_F32, n);
    for (int64_t at = 0; at < n; at += d) {
        const sl_tensor part = sl_rows(&t, at, n - at < d ? n - at : d);
        sl_upload(&p->gpu, &part, x);
    }
    sl_sync(&p->gpu);
    return t;
}

static void bench_makers(pair *p, int64_t m)
{
    enum { D = 5120 };
    float *numbers = malloc(D * sizeof *numbers);
    double rate = 0;
    assert_non_null(numbers);
    t_fill(numbers, D, 3);
    for (int op = COPY; op <= CODE_KV; op++) {
        const int64_t d = MAKERS[op].d;
        maker k = {.op = op, .x = noise(p, m, d)};
        if (op <= MODULATE || op == ROPE || op == CODE_KV) k.y = noise(p, m, d);
        if (op >= MODULATE_EIGHT && op <= GELU) k.e = sl_new_eight(&p->gpu, m, d);
        if (op == ROPE_Q || op == CODE_Q) k.q = sl_new_queries_eight(&p->gpu, m, d, HEADS);
        if (op == CODE_KV) k.keys = sl_new_keys_eight(&p->gpu, m, d, HEADS);
        k.w = repeated(p, D, numbers, D), k.b = repeated(p, D, numbers, D);
        if (op == ROPE || op == ROPE_Q) {
            k.cos = repeated(p, m * (D / HEADS / 2), numbers, D);
            k.sin = repeated(p, m * (D / HEADS / 2), numbers, D);
            k.cos = sl_reshape2(&k.cos, m, D / HEADS / 2);
            k.sin = sl_reshape2(&k.sin, m, D / HEADS / 2);
        }
        const double s = time_of(p, run_maker, &k), bytes = (double)(m * d) * MAKERS[op].bytes;
        if (op == COPY) rate = bytes / s;
        printf("%7lld rows  %-28s %8.3f ms %8.1f GB/s   %6.2f GB, floor %8.3f ms, %5.1f %%\n",
               (long long)m, MAKERS[op].name, s * 1e3, bytes / s * 1e-9, bytes * 1e-9,
               bytes / rate * 1e3, 100 * bytes / rate / s);
        if (went_wrong(p, say("%s of %lld x %lld", MAKERS[op].name, (long long)m, (long long)d)))
            break;
        forget(p);
    }
    free(numbers);
}

/* Normal numbers [rows, cols], all of them other ones. */
static sl_tensor normal(pair *p, int64_t rows, int64_t cols, uint64_t seed)
{
    enum { SOME = 1 << 20 };
    static float x[SOME];
    static sl_bf16 rounded[SOME];
    const sl_tensor t = sl_new2(&p->gpu, SL_BF16, rows, cols);
    sl_rng rng;
    sl_rng_seed(&rng, seed);
    for (int64_t at = 0; at < rows * cols && t.data; at += SOME) {
        const int64_t n = rows * cols - at < SOME ? rows * cols - at : SOME;
        const sl_tensor part = sl_view1((char *)t.data + at * 2, SL_BF16, n);
        sl_rng_normal(&rng, x, n);
        for (int64_t i = 0; i < n; i++) rounded[i] = sl_to_bf16(x[i]);
        sl_upload(&p->gpu, &part, rounded);
        sl_sync(&p->gpu);
    }
    return t;
}

/* Attention of codes alone, of m queries and keys: runs one after the other. What is multiplied
 * decides what the card's power allows, so queries, keys and values are independent, and scores
 * spread as the line says: 0 all weights are alike, 4 most of them are nothing. */
static void bench_attention(pair *p, int64_t m)
{
    enum { WIDTH = 128 * HEADS, ROUNDS = 6 };
    static const float SPREAD[] = {1, 0, 2, 4};
    sl_ctx *g = &p->gpu;
    const sl_queries_eight codes = sl_new_queries_eight(g, m, WIDTH, HEADS);
    const sl_keys_eight keys = sl_new_keys_eight(g, m, WIDTH, HEADS);
    const sl_tensor q = normal(p, m, WIDTH, 1), k = normal(p, m, WIDTH, 2),
                    v = normal(p, m, WIDTH, 3);
    const double operations = 4.0 * (double)m * (double)m * WIDTH;
    const int runs = (int)(1e15 / operations) + 1; /* about a second */
    sl_code_keys(g, &keys, &k, &v, HEADS);
    for (size_t s = 0; s < sizeof SPREAD / sizeof SPREAD[0]; s++) {
        sl_code_queries(g, &codes, &q, HEADS, SPREAD[s] / sqrtf(128));
        printf("%7lld rows  attention in 8 bits, scores spread by %g, TFLOP/s over %d runs each:",
               (long long)m, (double)SPREAD[s], runs);
        for (int r = 0; r < ROUNDS; r++) {
            sl_sync(g);
            const double from = seconds();
            for (int i = 0; i < runs; i++)
                sl_attention_eight(g, &v, &codes, &keys, HEADS, 1, NULL, 0, NULL);
            sl_sync(g);
            printf(" %.1f", operations * runs / (seconds() - from) * 1e-12);
            fflush(stdout);
        }
        printf("\n");
    }
    went_wrong(p, say("attention of %lld rows", (long long)m));
    forget(p);
}

/* ---- outliers ---- */

/* The relative error of a layer's product in bf16 and in 8 bits, of inputs whose `some` channels
 * are `by` times the rest, against float32 of the same numbers. All numbers, weights among them,
 * have a mean of so many of their deviations: then a product's sum is far above what is added to
 * it, which is where a fast accumulation loses most. */
static void bench_outliers(pair *p, const t_layer *l, int some, float by, float mean)
{
    enum { M = 1024 };
    const float shift = mean / sqrtf(3);
    sl_ctx *g = &p->gpu;
    const sl_tensor w = unlike(p, l->n, l->k, 5, 0, 1, shift),
                    x = unlike(p, M, l->k, 9, some, by, shift), xf = sl_new2(g, SL_F32, M, l->k),
                    wf = sl_new2(g, SL_F32, l->n, l->k), want = sl_new2(g, SL_F32, M, l->n),
                    y = sl_new2(g, SL_BF16, M, l->n);
    const sl_eight xe = sl_new_eight(g, M, l->k), we = sl_new_eight(g, l->n, l->k);
    sl_copy(g, &xf, &x);
    sl_copy(g, &wf, &w);
    sl_linear(g, &want, &xf, &wf, NULL, SL_ACT_NONE);
    sl_linear(g, &y, &x, &w, NULL, SL_ACT_NONE);
    sl_sync(g);
    const double bf16 = distance(p, &y, &want);
    sl_quantise_rows(g, &xe, &x);
    sl_quantise_rows(g, &we, &w);
    sl_linear_eight(g, &y, &xe, &we, NULL);
    sl_sync(g);
    const double eight = distance(p, &y, &want);
    if (!went_wrong(p,
                    say("outliers: %d rows of %lld to %lld", M, (long long)l->k, (long long)l->n)))
        printf("%lld to %lld, %3d channels at %2.0f times the rest, a mean of %.2f deviations: "
               "relative error bf16 %.2e   8 bits %.2e\n",
               (long long)l->k, (long long)l->n, some, (double)by, (double)mean, bf16, eight);
    forget(p);
}

static void bench_all_outliers(pair *p)
{
    static const int SOME[] = {0, 1, 8, 64};
    static const float MEANS[] = {0.03f, 0.1f, 0.3f, 2};
    static const int LAYERS[] = {0, 4};
    EACH(i, SOME)
    {
        EACH(k, LAYERS) bench_outliers(p, &T_LAYERS[LAYERS[k]], SOME[i], 50, 0);
    }
    EACH(i, MEANS)
    {
        EACH(k, LAYERS) bench_outliers(p, &T_LAYERS[LAYERS[k]], 0, 50, MEANS[i]);
    }
}

/* One part, of that many rows; NULL: all. */
static int bench(const char *what, const char *rows)
{
    static const int64_t ROWS[] = {32760, 48384, 75600};
    static const struct {
        const char *name;
        void (*of_rows)(pair *, int64_t); /* NULL: of no number of rows */
    } PARTS[] = {{"products", bench_products},
                 {"makers", bench_makers},
                 {"attention", bench_attention},
                 {"outliers", NULL}};
    bool known = !what;
    EACH(k, PARTS) known = known || !strcmp(what, PARTS[k].name);
    if (!known) {
        fprintf(stderr, "gpu_eight: %s, want products, makers, attention or outliers\n", what);
        return 2;
    }
    pair p;
    pair_open(&p, (size_t)12 << 30);
    EACH(k, PARTS)
    {
        if (what && strcmp(what, PARTS[k].name)) continue;
        if (!PARTS[k].of_rows) bench_all_outliers(&p);
        else if (rows) PARTS[k].of_rows(&p, atoll(rows));
        else EACH(i, ROWS) PARTS[k].of_rows(&p, ROWS[i]);
    }
    sl_ctx_close(&p.gpu);
    sl_ctx_close(&p.cpu);
    return p.failures > 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_made_as_on_the_cpu),
        cmocka_unit_test(ends_of_the_range),
        cmocka_unit_test(products_of_every_kind),
        cmocka_unit_test(layers_of_the_14b_model),
        cmocka_unit_test(sums_in_the_tensor_cores),
        cmocka_unit_test(shares_have_the_bits_of_the_whole),
    };
    int status;
    if (!gpu_open("gpu_eight", &status)) return status;
    if (!gpu_is_hopper("gpu_eight")) return 0;
    if (argc > 1 && !strcmp(argv[1], "--bench")) return bench(argv[2], argc > 2 ? argv[3] : NULL);
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("rows in 8 bits on the GPU", tests, NULL, NULL);
}
