/* test_outliers.c - what 8 bits make of activations a few channels of which are 50 times the rest,
 * as trained transformers have them: products, attention, and a forward of the demo model's
 * transformer whose tokens, or whose attention's results, are given such channels. SL_SHOW=1 prints
 * the figures, which BENCHMARKS.md has. limit: 120 s */
#include "tests/t_dit.h"
#include "tests/t_rounding.h"

enum { BY = 50 };
/* sqrt 2 * 0.0266: what the roundings of two matrices' codes leave of their product (test_dit.c) */
static const double CODE = 0.0375;

static sl_ctx ctx;
static sl_err err;

static void show(const char *what, int some, double bf16, double eight)
{
    if (getenv("SL_SHOW"))
        printf("%-40s %3d channels: bf16 %.2e   8 bits %.2e\n", what, some, bf16, eight);
}

static uint64_t seed;
/* Sums of three: a bell of deviation 1. */
static float bell(void)
{
    return t_rand(&seed) + t_rand(&seed) + t_rand(&seed);
}

/* Channel c of d is one of `some` spread ones. */
static bool is_outlier(int64_t c, int64_t d, int some)
{
    return some && c % (d / some) == d / some - 1;
}

static float *rounded_to_bf16(const float *x, int64_t n)
{
    float *y = malloc((size_t)n * sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < n; i++) y[i] = sl_from_bf16(sl_to_bf16(x[i]));
    return y;
}

/* y [m, n] = x [m, k] w [n, k]^T in float64. */
static float *product(const float *x, const float *w, int64_t m, int64_t n, int64_t k)
{
    float *y = malloc((size_t)(m * n) * sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t c = 0; c < k; c++) sum += (double)x[i * k + c] * (double)w[j * k + c];
            y[i * n + j] = (float)sum;
        }
    return y;
}

/* small: the weights of these channels are small in turn, so that a channel adds as much as any. */
static double product_once(int some, bool small)
{
    enum { M = 40, N = 64, K = 1024 };
    const sl_tensor x = sl_new2(&ctx, SL_F32, M, K), w = sl_new2(&ctx, SL_F32, N, K),
                    y = sl_new2(&ctx, SL_F32, M, N);
    const sl_eight xe = sl_new_eight(&ctx, M, K), we = sl_new_eight(&ctx, N, K);
    float *xd = x.data, *wd = w.data;
    seed = 1;
    for (int64_t i = 0; i < M * K; i++) xd[i] = bell() * (is_outlier(i % K, K, some) ? BY : 1);
    for (int64_t i = 0; i < N * K; i++)
        wd[i] = bell() / (is_outlier(i % K, K, some) && small ? BY : 1);
    float *want = product(xd, wd, M, N, K), *xb = rounded_to_bf16(xd, M * K),
          *wb = rounded_to_bf16(wd, N * K), *sums = product(xb, wb, M, N, K),
          *bf16 = rounded_to_bf16(sums, M * N);
    sl_quantise_rows(&ctx, &xe, &x);
    sl_quantise_rows(&ctx, &we, &w);
    sl_linear_eight(&ctx, &y, &xe, &we, NULL);
    T_OK(sl_ctx_error(&ctx, &err));
    const double eight = t_rel_l2(y.data, want, M * N), whole = t_rel_l2(bf16, want, M * N);
    show(small ? "product, their weights 1/50" : "product", some, whole, eight);
    assert_true(whole < eight);
    free(want);
    free(xb);
    free(wb);
    free(sums);
    free(bf16);
    ctx.arena_used = 0;
    return eight;
}

/* A code is as fine at any height, down to 2^-15 of the row's largest: outliers cost nothing. */
static void products_do_not_mind_outliers(void **state)
{
    static const int SOME[] = {0, 1, 4, 16, 64};
    (void)state;
    for (int small = 0; small < 2; small++)
        for (size_t i = 0; i < sizeof SOME / sizeof *SOME; i++) {
            const double e = product_once(SOME[i], small);
            if (!(e <= 1.1 * CODE))
                fail_msg("%d channels: off by %.3g, want at most %.3g", SOME[i], e, 1.1 * CODE);
        }
}

/* ---- attention ---- */

enum { KEYS_OFFSET, KEYS_WIDE, QUERIES_WIDE };

static double attention_once(int some, int what, const char *name)
{
    enum { NQ = 60, NK = 700, D = 128 };
    const sl_tensor q = sl_new2(&ctx, SL_F32, NQ, D), k = sl_new2(&ctx, SL_F32, NK, D),
                    v = sl_new2(&ctx, SL_F32, NK, D), o = sl_new2(&ctx, SL_F32, NQ, D),
                    want = sl_new2(&ctx, SL_F32, NQ, D), b = sl_new2(&ctx, SL_F32, NQ, D);
    const sl_keys_eight keys = sl_new_keys_eight(&ctx, NK, D, 1);
    const sl_queries_eight codes = sl_new_queries_eight(&ctx, NQ, D, 1);
    const float scale = 1 / sqrtf((float)D);
    float *qd = q.data, *kd = k.data, *vd = v.data;
    seed = 2;
    for (int64_t i = 0; i < NQ * D; i++)
        qd[i] = bell() * (is_outlier(i % D, D, some) && what == QUERIES_WIDE ? BY : 1) /
                (is_outlier(i % D, D, some) && what == KEYS_WIDE ? BY : 1);
    for (int64_t i = 0; i < NK * D; i++) {
        kd[i] = bell(), vd[i] = bell();
        if (!is_outlier(i % D, D, some)) continue;
        if (what == KEYS_OFFSET) kd[i] += BY;
        else if (what == KEYS_WIDE) kd[i] *= BY;
        else kd[i] /= BY;
    }
    sl_attention(&ctx, &want, &q, &k, &v, 1, scale, NULL, false);
    float *rounded[3] = {rounded_to_bf16(qd, NQ * D), rounded_to_bf16(kd, NK * D),
                         rounded_to_bf16(vd, NK * D)};
    const sl_tensor qb = sl_view2(rounded[0], SL_F32, NQ, D),
                    kb = sl_view2(rounded[1], SL_F32, NK, D),
                    vb = sl_view2(rounded[2], SL_F32, NK, D);
    sl_attention(&ctx, &b, &qb, &kb, &vb, 1, scale, NULL, false);
    sl_code_keys(&ctx, &keys, &k, &v, 1);
    sl_code_queries(&ctx, &codes, &q, 1, scale);
    sl_attention_eight(&ctx, &o, &codes, &keys, 1, 1, NULL, 0, NULL);
    T_OK(sl_ctx_error(&ctx, &err));
    const double eight = t_rel_l2(o.data, want.data, NQ * D);
    show(name, some, t_rel_l2(b.data, want.data, NQ * D), eight);
    for (int i = 0; i < 3; i++) free(rounded[i]);
    ctx.arena_used = 0;
    return eight;
}

/* Scores are as they were; integers of 8 bits have one step for a row of a head. What lies the same
 * in all keys is their mean's, and costs nothing. A wide column's step is about 3 * 50 / 127, of a
 * bell's deviation: the others' numbers are then off by a third of themselves, and scores are sums
 * of 126 of them, most of which averages out. */
static void attention_minds_wide_channels(void **state)
{
    (void)state;
    const double plain = attention_once(0, KEYS_OFFSET, "attention"),
                 offset = attention_once(2, KEYS_OFFSET, "attention, keys offset"),
                 keys = attention_once(2, KEYS_WIDE, "attention, keys wide"),
                 queries = attention_once(2, QUERIES_WIDE, "attention, queries wide");
    assert_true(plain < 0.1 && offset <= 1.05 * plain);
    assert_true(keys < 0.35 && queries < 0.2);
}

/* ---- a forward of the demo model ---- */

enum { AS_IT_IS, TOKENS, RESULTS };

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* How much larger number i of a tensor becomes. TOKENS: some channels of the tokens, from the
 * patches on. RESULTS: of attentions' results, whose layers of values make them larger and whose
 * output layers make up for it, so that the transformer computes the same. */
static float grown(const char *name, const sl_tensor *t, int64_t i, int how, int some)
{
    const int64_t rows = t->shape[0], row = i / (sl_count(t) / rows);
    const bool values = ends_with(name, "to_v.weight") || ends_with(name, "to_v.bias") ||
                        ends_with(name, "add_v_proj.weight") || ends_with(name, "add_v_proj.bias");
    if (how == TOKENS && !strncmp(name, "patch_embedding.", 16))
        return is_outlier(row, rows, some) ? BY : 1;
    if (how == RESULTS && values) return is_outlier(row, rows, some) ? BY : 1;
    if (how == RESULTS && ends_with(name, "to_out.0.weight"))
        return is_outlier(i % t->shape[1], t->shape[1], some) ? 1.0f / BY : 1;
    return 1;
}

/* The demo model's transformer with such channels, to dir, as float32. */
static void write_transformer(const char *dir, int how, int some)
{
    char path[1400];
    sl_st *st = NULL;
    sl_st_writer *w = NULL;
    T_OK(sl_st_open_dir(&st, "models/demo/transformer", "diffusion_pytorch_model", &err));
    T_OK(sl_stw_open(&w, t_join(path, sizeof path, dir, "diffusion_pytorch_model.safetensors"),
                     &err));
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_tensor *t = sl_st_shape(sl_st_at(st, i));
        T_OK(sl_stw_declare(w, sl_st_at(st, i)->name, SL_F32, t->rank, t->shape, &err));
    }
    for (int i = 0; i < sl_st_size(st); i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        const sl_tensor *t = sl_st_shape(e);
        const int64_t n = sl_count(t);
        float *x = malloc((size_t)n * sizeof *x);
        assert_non_null(x);
        sl_st_floats(x, e, 0, n);
        for (int64_t k = 0; k < n; k++) x[k] *= grown(e->name, t, k, how, some);
        T_OK(sl_stw_write(w, e->name, x, 0, (size_t)n * sizeof *x, &err));
        free(x);
    }
    T_OK(sl_stw_finish(&w, &err));
    sl_st_close(&st);
    char *json = t_text("models/demo/transformer/config.json");
    FILE *to = fopen(t_join(path, sizeof path, dir, "config.json"), "w");
    assert_true(to && fputs(json, to) >= 0 && !fclose(to));
    free(json);
}

enum { T = 2, H = 16, W = 20, PICTURE = 65, OUT = 16 * T * H * W };

/* One forward to v [OUT]; `rounds`: as a device in bf16 computes it. */
static void forward_of(const char *dir, sl_precision precision, bool rounds, float *v)
{
    const sl_ops rounded = rounding();
    t_dit d;
    t_context context;
    const double times[1] = {700};
    t_dit_open_as(&d, dir, precision);
    d.float_rope = true;
    if (rounds) d.ctx.ops = &rounded;
    float *x = malloc((size_t)(36 * T * H * W) * sizeof *x);
    float *text = malloc((size_t)(40 * d.config.text_dim) * sizeof *text),
          *picture = malloc((size_t)(PICTURE * d.config.image_dim) * sizeof *picture);
    assert_true(x && text && picture);
    seed = 3;
    for (int i = 0; i < 36 * T * H * W; i++) x[i] = bell();
    for (int i = 0; i < 40 * d.config.text_dim; i++) text[i] = bell();
    for (int i = 0; i < PICTURE * d.config.image_dim; i++) picture[i] = bell();
    t_dit_times(&d, times, 1);
    t_dit_rope(&d, T, H / 2, W / 2);
    t_dit_context(&d, &context, text, 40, picture, PICTURE);
    const sl_tensor out = sl_view4(v, SL_F32, 16, T, H, W),
                    latents = sl_view4(x, SL_F32, 16, T, H, W),
                    condition = sl_view4(x + OUT, SL_F32, 20, T, H, W);
    t_dit_forward(&d, &out, &latents, &condition, 0, &context, NULL, NULL);
    T_OK(sl_ctx_error(&d.ctx, &err));
    free(context.memory);
    free(x);
    free(text);
    free(picture);
    t_dit_close(&d);
}

/* The error of a forward in bf16, in fp8-linear, in fp8. */
static void forwards(int how, int some, const char *name, double off[3])
{
    static float want[OUT], got[OUT];
    char dir[256];
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    write_transformer(dir, how, some);
    forward_of(dir, SL_PRECISION_BF16, false, want);
    for (int i = SL_PRECISION_BF16; i <= SL_PRECISION_FP8; i++) {
        forward_of(dir, (sl_precision)i, true, got);
        off[i] = t_rel_l2(got, want, OUT);
    }
    if (getenv("SL_SHOW"))
        printf("forward, %-31s %3d channels: bf16 %.2e   fp8-linear %.2e   fp8 %.2e\n", name, some,
               off[SL_PRECISION_BF16], off[SL_PRECISION_FP8_LINEAR], off[SL_PRECISION_FP8]);
    t_rmdir(dir);
}

static void a_forward_stands_outliers(void **state)
{
    double plain[3], tokens[3], results[3];
    (void)state;
    if (access("models/demo/model_index.json", R_OK)) {
        print_message("models/demo is not here\n");
        skip();
    }
    forwards(AS_IT_IS, 0, "as it is", plain);
    forwards(RESULTS, 4, "attention's results", results);
    forwards(TOKENS, 4, "tokens", tokens);
    for (int i = SL_PRECISION_BF16; i <= SL_PRECISION_FP8; i++) {
        assert_true(plain[i] > 0 && plain[i] < 0.1);
        /* the same function: what its roundings come to may not depend on the channels' size */
        if (!(results[i] <= 1.3 * plain[i]))
            fail_msg("off by %.3g, without outliers by %.3g", results[i], plain[i]);
        assert_true(tokens[i] < 0.1);
    }
}

static int open_ctx(void **state)
{
    (void)state;
    return sl_ctx_open(&ctx, &sl_ops_cpu, (size_t)64 << 20, &err);
}

static int close_ctx(void **state)
{
    (void)state;
    sl_ctx_close(&ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_do_not_mind_outliers),
        cmocka_unit_test(attention_minds_wide_channels),
        cmocka_unit_test(a_forward_stands_outliers),
    };
    return cmocka_run_group_tests_name("outliers", tests, open_ctx, close_ctx);
}
