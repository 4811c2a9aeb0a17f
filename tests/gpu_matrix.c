/* gpu_matrix.c - matrix products on the GPU, held to the CPU body on the same bf16
 * inputs; the cases of t_ops_matrix.h; the plug-in.
 *
 * Ends with the speed of the 14B model's largest products and attention, for the reader.
 * Without a device: one line, and success. */
#include "tests/t_ops_matrix.h"
#include "tests/t_layers.h"

/* ---- linear ---- */

enum { NO_BIAS, BIAS_BF16, BIAS_F32 };

static twin list(pair *p, sl_dtype dtype, int64_t n)
{
    twin t = matrix(p, dtype, 1, n, 0);
    t.g = sl_view1(t.g.data, dtype, n);
    t.c = sl_view1(t.c.data, SL_F32, n);
    return t;
}

static void linear_once(pair *p, sl_dtype dtype, int64_t m, int64_t n, int64_t k, int bias,
                        sl_activation act, int64_t pad)
{
    twin x = matrix(p, dtype, m, k, pad), w = matrix(p, dtype, n, k, 0),
         y = matrix(p, dtype, m, n, pad);
    twin b = list(p, bias == BIAS_BF16 ? SL_BF16 : SL_F32, n);
    sl_linear(&p->cpu, &y.c, &x.c, &w.c, bias ? &b.c : NULL, act);
    sl_linear(&p->gpu, &y.g, &x.g, &w.g, bias ? &b.g : NULL, act);
    same(p, &y, dtype == SL_F32 ? 1e-5 : 4e-3,
         say("linear %lld x %lld x %lld, %s, bias %d, activation %d, pad %lld", (long long)m,
             (long long)n, (long long)k, sl_dtype_tag(dtype), bias, (int)act, (long long)pad));
    forget(p);
}

static void products_of_every_kind(void **state)
{
    (void)state;
    static const int64_t M[] = {1, 2, 3, 5, 8, 9, 33, 257, 1000}, N[] = {1, 8, 64, 96, 515},
                         K[] = {1, 8, 36, 64, 2053}, PAD[] = {0, 8, 3};
    pair p;
    int turn = 0;
    pair_open(&p, (size_t)1 << 30);
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        linear_once(&p, SL_BF16, M[i], N[j], K[l], turn % 3, (sl_activation)(turn / 3 % 4),
                    PAD[turn / 12 % 3]);
        turn += 5; /* of 36 combinations, and 5 does not divide 36 */
    }
    for (int bias = 0; bias < 3; bias++)
        for (int act = 0; act < 4; act++)
            for (int pad = 0; pad < 3; pad++)
                linear_once(&p, SL_BF16, 128, 256, 192, bias, (sl_activation)act, PAD[pad]);
    pair_close(&p);
}

static void products_in_float32(void **state)
{
    (void)state;
    static const int64_t M[] = {1, 4, 8, 9, 40}, N[] = {1, 40, 515}, K[] = {1, 36, 256, 2053},
                         PAD[] = {0, 4, 3};
    pair p;
    int turn = 0;
    pair_open(&p, (size_t)1 << 30);
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        linear_once(&p, SL_F32, M[i], N[j], K[l], turn % 3, (sl_activation)(turn / 3 % 4),
                    PAD[turn / 12 % 3]);
        turn += 5;
    }
    linear_once(&p, SL_F32, 1, 5120, 5120, BIAS_F32, SL_ACT_SILU, 0);
    /* CLIP's patches, then its layers */
    linear_once(&p, SL_F32, 256, 1280, 588, NO_BIAS, SL_ACT_NONE, 0);
    linear_once(&p, SL_F32, 257, 1280, 1280, BIAS_F32, SL_ACT_NONE, 0);
    linear_once(&p, SL_F32, 257, 5120, 1280, BIAS_F32, SL_ACT_GELU_ERF, 0);
    linear_once(&p, SL_F32, 257, 1280, 5120, BIAS_F32, SL_ACT_NONE, 0);
    linear_once(&p, SL_F32, 257, 96, 97, BIAS_F32, SL_ACT_GELU_ERF, 5);
    pair_close(&p);
}

static void added_once(pair *p, int64_t m, int64_t n, int64_t k, int bias, bool gated, int64_t pad)
{
    twin x = matrix(p, SL_BF16, m, n, 0), y = matrix(p, SL_BF16, m, n, 0),
         a = matrix(p, SL_BF16, m, k, pad), w = matrix(p, SL_BF16, n, k, 0),
         b = list(p, bias == BIAS_BF16 ? SL_BF16 : SL_F32, n), gate = list(p, SL_F32, n);
    sl_linear_add(&p->cpu, &x.c, &y.c, &a.c, &w.c, bias ? &b.c : NULL, gated ? &gate.c : NULL);
    sl_linear_add(&p->gpu, &x.g, &y.g, &a.g, &w.g, bias ? &b.g : NULL, gated ? &gate.g : NULL);
    same(p, &x, 4e-3,
         say("linear_add %lld x %lld x %lld, bias %d%s, pad %lld", (long long)m, (long long)n,
             (long long)k, bias, gated ? ", gated" : "", (long long)pad));
    forget(p);
}

static void products_that_are_added(void **state)
{
    (void)state;
    static const int64_t M[] = {1, 8, 9, 33, 1000}, N[] = {1, 8, 96, 515}, K[] = {1, 36, 64, 2053};
    pair p;
    pair_open(&p, (size_t)1 << 30);
    int turn = 0;
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        added_once(&p, M[i], N[j], K[l], turn % 3, turn / 3 % 2, turn / 6 % 2 ? 8 : 0);
        turn += 5; /* of 12 combinations, and 5 does not divide 12 */
    }
    for (int bias = 0; bias < 3; bias++)
        for (int gated = 0; gated < 2; gated++) {
            added_once(&p, 264, 256, 512, bias, gated, 0);
            added_once(&p, 264, 256, 128, bias, gated, 0); /* the gate goes into the weights */
        }
    added_once(&p, 1560, 1536, 1536, BIAS_BF16, true, 0);
    added_once(&p, 3120, 1536, 1536, BIAS_BF16, true, 0);
    added_once(&p, 5000, 520, 2056, BIAS_F32, true, 8);
    added_once(&p, 1560, 1536, 8960, BIAS_BF16, true, 0);
    pair_close(&p);
}

static void products_of_the_networks(void **state)
{
    (void)state;
    pair p;
    pair_open(&p, (size_t)2 << 30);
    linear_once(&p, SL_BF16, 1, 30720, 5120, BIAS_BF16, SL_ACT_NONE, 0); /* time_proj */
    /* text embedder */
    linear_once(&p, SL_BF16, 512, 5120, 4096, BIAS_BF16, SL_ACT_GELU_TANH, 0);
    /* image embedder */
    linear_once(&p, SL_BF16, 257, 1280, 1280, BIAS_BF16, SL_ACT_GELU_ERF, 0);
    linear_once(&p, SL_BF16, 512, 10240, 4096, NO_BIAS, SL_ACT_NONE, 0); /* UMT5 */
    /* patch embedding */
    linear_once(&p, SL_BF16, 1560, 1536, 144, BIAS_BF16, SL_ACT_NONE, 0);
    linear_once(&p, SL_BF16, 1560, 64, 5120, BIAS_BF16, SL_ACT_NONE, 0); /* the head */
    linear_once(&p, SL_BF16, 3001, 2048, 1024, BIAS_BF16, SL_ACT_GELU_TANH, 0);
    linear_once(&p, SL_BF16, 4096, 5120, 5120, BIAS_BF16, SL_ACT_NONE, 0);
    setenv("SLUICE_AUTOTUNE", "1", 1);
    /* large enough to be timed */
    linear_once(&p, SL_BF16, 4104, 5120, 5120, BIAS_BF16, SL_ACT_NONE, 0);
    unsetenv("SLUICE_AUTOTUNE");
    pair_close(&p);
}

/* ---- rows of a team ---- */

enum { PART = 64 << 20 }; /* bytes compared at a time */

/* How many rows of two device tensors differ; *first is the first. host: 2 PART, pinned. */
static int64_t other_rows(pair *p, const sl_tensor *a, const sl_tensor *b, char *host,
                          int64_t *first)
{
    const sl_plugin *cuda = sl_plugin_cuda(NULL);
    const size_t all = sl_bytes(a), row = (size_t)a->shape[1] * sl_dtype_size(a->dtype),
                 part = PART / row * row;
    int64_t count = 0;
    for (size_t at = 0; at < all; at += part) {
        const size_t n = all - at < part ? all - at : part;
        cuda->copy_out(&p->gpu, host, (const char *)a->data + at, n);
        cuda->copy_out(&p->gpu, host + PART, (const char *)b->data + at, n);
        sl_sync(&p->gpu);
        if (!memcmp(host, host + PART, n)) continue;
        for (size_t i = 0; i < n; i += row)
            if (memcmp(host + i, host + PART + i, row) && !count++)
                *first = (int64_t)((at + i) / row);
    }
    return count;
}

/* The first half of the rows, its columns in shares as a rank of a team computes them: those before
 * its own, those behind, its own elsewhere. y's first half is the whole's. (GELU's product takes
 * another algorithm for 1,728 columns of 5 rows than for 13,824: nothing computes it so.) */
static void columns_of_a_layer(pair *p, const t_layer *l, const t_operands *all,
                               const sl_tensor *work, const sl_tensor *own_columns, char *host)
{
    static const int TEAMS[] = {2, 4, 5, 8};
    const int64_t rows = sl_share_of(&(sl_team){.size = 2}, all->x.shape[0], 0).rows;
    const sl_tensor x = sl_rows(&all->x, 0, rows), want = sl_rows(&all->y, 0, rows),
                    y = sl_rows(work, 0, rows);
    EACH(i, TEAMS)
    {
        const int64_t share = l->n / TEAMS[i], own = TEAMS[i] / 2 * share,
                      from[] = {0, own + share, own}, to[] = {own, l->n, own + share};
        const char *what =
            say("%lld rows, %s, columns in shares of 1/%d", (long long)rows, l->name, TEAMS[i]);
        if (l->n % TEAMS[i]) continue;
        sl_zero(&p->gpu, &y);
        EACH(k, from)
        {
            const int64_t cols = to[k] - from[k];
            if (!cols) continue;
            const sl_tensor part = sl_cols(&y, from[k], cols), w = sl_rows(&all->w, from[k], cols),
                            b = sl_view1((char *)all->b.data + 2 * from[k], SL_BF16, cols);
            if (k < 2) {
                sl_linear(&p->gpu, &part, &x, &w, &b, l->act);
                continue;
            }
            const sl_tensor dense = sl_view2(own_columns->data, SL_BF16, rows, cols);
            sl_linear(&p->gpu, &dense, &x, &w, &b, l->act);
            sl_copy(&p->gpu, &part, &dense);
        }
        sl_sync(&p->gpu);
        if (went_wrong(p, what)) return;
        int64_t first = 0;
        const int64_t others = other_rows(p, &y, &want, host, &first);
        if (!others) continue;
        print_message("FAIL %s: %lld rows have other bits than in one product, the first is %lld\n",
                      what, (long long)others, (long long)first);
        p->failures++;
    }
}

static void shares_of_a_layer(pair *p, const t_layer *l, int64_t m, char *host)
{
    static const int TEAMS[] = {2, 3, 4, 5, 8};
    const t_operands all = t_operands_of(p, l, m);
    t_operands shares = all;
    const sl_tensor start = l->adds ? sl_new2(&p->gpu, SL_BF16, m, l->n) : all.y;
    shares.y = sl_new2(&p->gpu, SL_BF16, m, l->n);
    const sl_tensor own_columns = sl_new2(&p->gpu, SL_BF16, (m + 1) / 2, l->n);
    if (l->adds) sl_copy(&p->gpu, &start, &all.y);
    p->gpu.whole_rows = m;
    t_layer_rows(&p->gpu, l, &all, 0, m);
    EACH(i, TEAMS)
    {
        const char *what = say("%lld rows, %s, in shares of 1/%d", (long long)m, l->name, TEAMS[i]);
        if (l->adds) sl_copy(&p->gpu, &shares.y, &start);
        else sl_zero(&p->gpu, &shares.y);
        for (int k = 0; k < TEAMS[i]; k++) {
            const sl_share of = sl_share_of(&(sl_team){.size = TEAMS[i]}, m, k);
            t_layer_rows(&p->gpu, l, &shares, of.first, of.rows);
        }
        sl_sync(&p->gpu);
        if (went_wrong(p, what)) return;
        int64_t first = 0;
        const int64_t others = other_rows(p, &shares.y, &all.y, host, &first);
        if (!others) continue;
        print_message("FAIL %s: %lld rows have other bits than in one product, the first is %lld\n",
                      what, (long long)others, (long long)first);
        p->failures++;
    }
    if (!l->adds && l->act == SL_ACT_NONE)
        columns_of_a_layer(p, l, &all, &shares.y, &own_columns, host);
    p->gpu.whole_rows = 0;
    forget(p);
}

/* The true sizes, and some so small that a share has few rows. */
static void shares_of_the_14b_model_have_the_bits_of_the_whole(void **state)
{
    (void)state;
    static const int64_t M[] = {75600, 48384, 32760, 3120, 1563, 480, 41, 9, 8};
    const sl_plugin *cuda = sl_plugin_cuda(NULL);
    pair p;
    sl_err err = {0};
    size_t free_bytes = 0, total = 0;
    char *host = cuda->host_alloc((size_t)2 * PART);
    T_OK(cuda->memory(0, &free_bytes, &total, &err));
    assert_non_null(host);
    const bool large = free_bytes > (size_t)12 << 30;
    if (!large) print_message("shares: %zu bytes are free, want 12 GiB for all\n", free_bytes);
    pair_open(&p, (size_t)(large ? 8 : 1) << 30);
    EACH(i, M)
    EACH(k, T_LAYERS) if (large || M[i] < 10000) shares_of_a_layer(&p, &T_LAYERS[k], M[i], host);
    cuda->host_free(host);
    pair_close(&p);
}

/* ---- speed ---- */

static void speed_of_the_largest(void **state)
{
    (void)state;
    enum { N = 75600, D = 5120, F = 13824 };
    pair p;
    sl_err err = {0};
    size_t free_bytes = 0, total = 0;
    T_OK(sl_plugin_cuda(&err)->memory(0, &free_bytes, &total, &err));
    if (free_bytes < (size_t)12 << 30) {
        print_message("speed: %zu bytes are free, want 12 GiB\n", free_bytes);
        return;
    }
    pair_open(&p, (size_t)8 << 30);
    static const struct {
        int64_t n, k;
        sl_activation act;
    } AT[] = {{D, D, SL_ACT_NONE}, {F, D, SL_ACT_GELU_TANH}, {D, F, SL_ACT_NONE}};
    EACH(i, AT)
    {
        sl_tensor x = noise(&p, N, AT[i].k), w = noise(&p, AT[i].n, AT[i].k),
                  b = noise(&p, 1, AT[i].n), y = noise(&p, N, AT[i].n);
        b = sl_view1(b.data, SL_BF16, AT[i].n);
        sl_linear(&p.gpu, &y, &x, &w, &b, AT[i].act);
        sl_sync(&p.gpu);
        double from = seconds();
        for (int r = 0; r < 5; r++) sl_linear(&p.gpu, &y, &x, &w, &b, AT[i].act);
        sl_sync(&p.gpu);
        double s = (seconds() - from) / 5;
        if (!went_wrong(&p, "linear"))
            print_message("speed: linear %d x %lld x %lld: %.3f ms, %.0f TFLOP/s\n", N,
                          (long long)AT[i].n, (long long)AT[i].k, s * 1e3,
                          2e-12 * N * (double)AT[i].n * (double)AT[i].k / s);
        forget(&p);
    }
    enum { M = 32760 };
    /* a residual branch's last layer in one product and in two operations */
    for (int way = 0; way < 4; way++) {
        sl_tensor x = noise(&p, M, D), a = noise(&p, M, D), w = noise(&p, D, D),
                  b = noise(&p, 1, D), y = noise(&p, M, D);
        sl_tensor gate = sl_new1(&p.gpu, SL_F32, D);
        bool gated = way & 1, once = way & 2, fused = true;
        b = sl_view1(b.data, SL_BF16, D);
        sl_zero(&p.gpu, &gate);
        double from = 0;
        for (int r = 0; r < 21; r++) {
            if (once)
                fused = gpu->linear_add(&p.gpu, &x, &y, &a, &w, &b, gated ? &gate : NULL) && fused;
            else sl_linear(&p.gpu, &y, &a, &w, &b, SL_ACT_NONE);
            if (!once && gated) sl_gated_add(&p.gpu, &x, &y, &gate);
            else if (!once) sl_add(&p.gpu, &x, &x, &y);
            if (r == 0) sl_sync(&p.gpu), from = seconds();
        }
        sl_sync(&p.gpu);
        if (!went_wrong(&p, "linear_add"))
            print_message("speed: linear_add %d x %d x %d%s, %s: %.3f ms\n", M, D, D,
                          gated ? ", gated" : "",
                          !once    ? "two operations"
                          : !fused ? "refused by cublasLt"
                                   : "one product",
                          (seconds() - from) / 20 * 1e3);
        forget(&p);
    }
    static const struct {
        int64_t nk;
        bool add;
    } KEYS[] = {{N, false}, {512, false}, {257, true}};
    EACH(i, KEYS)
    {
        sl_tensor q = noise(&p, N, D), k = noise(&p, KEYS[i].nk, D), v = noise(&p, KEYS[i].nk, D),
                  o = noise(&p, N, D);
        sl_attention(&p.gpu, &o, &q, &k, &v, 40, 0.088388f, NULL, KEYS[i].add);
        sl_sync(&p.gpu);
        double from = seconds();
        for (int r = 0; r < 2; r++)
            sl_attention(&p.gpu, &o, &q, &k, &v, 40, 0.088388f, NULL, KEYS[i].add);
        sl_sync(&p.gpu);
        double s = (seconds() - from) / 2;
        if (!went_wrong(&p, "attention"))
            print_message("speed: attention %d x %lld, 40 heads x 128%s: %.3f ms, %.0f TFLOP/s\n",
                          N, (long long)KEYS[i].nk, KEYS[i].add ? ", added" : "", s * 1e3,
                          4e-12 * N * (double)KEYS[i].nk * D / s);
        forget(&p);
    }
    pair_close(&p);
}

/* ---- the plug-in ---- */

static void too_much_memory_names_both_sizes(void **state)
{
    (void)state;
    sl_ctx ctx;
    sl_err err = {0};
    T_CODE(sl_ctx_open(&ctx, gpu, (size_t)1 << 45, &err), SL_NOMEM);
    T_SAYS(err.msg, "35184372088832");
    T_SAYS(err.msg, "free");
    T_OK(sl_ctx_open(&ctx, gpu, 1 << 20, &err)); /* and the device is as it was */
    assert_null(sl_device_alloc(&ctx, (size_t)1 << 45));
    T_CODE(sl_ctx_error(&ctx, &err), SL_NOMEM);
    T_SAYS(err.msg, "free");
    sl_ctx_close(&ctx);
}

static void the_device_is_described(void **state)
{
    (void)state;
    const sl_plugin *cuda = sl_plugin_cuda(NULL);
    sl_err err = {0};
    size_t free_bytes = 0, total = 0;
    char name[64];
    int sm = 0;
    bool yes = false;
    T_OK(cuda->describe(0, name, sizeof name, &sm, &err));
    T_OK(cuda->memory(0, &free_bytes, &total, &err));
    T_OK(cuda->can_map(0, 0, &yes, &err));
    assert_true(yes && sm >= 80 && free_bytes > 0 && free_bytes <= total);
    print_message("%s, compute capability %d.%d, %zu of %zu bytes free\n", name, sm / 10, sm % 10,
                  free_bytes, total);
    T_CODE(cuda->use(cuda->devices(), &err), SL_ARG);
    T_CODE(cuda->memory(-1, &free_bytes, &total, &err), SL_ARG);
}

static void pinned_memory_goes_there_and_back(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    const sl_plugin *cuda = sl_plugin_cuda(NULL);
    sl_err err = {0};
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, gpu, 4 * N, &err));
    float *a = cuda->host_alloc(4 * N), *b = aligned_alloc(4096, 4 * N);
    assert_true(a && b);
    T_OK(cuda->host_register(b, 4 * N, &err));
    t_fill(a, N, 3);
    memset(b, 0, 4 * N);
    sl_tensor t = sl_new1(&ctx, SL_F32, N);
    cuda->copy_in(&ctx, t.data, a, 4 * N);
    cuda->copy_out(&ctx, b, t.data, 4 * N);
    sl_sync(&ctx);
    T_OK(sl_ctx_error(&ctx, &err));
    assert_memory_equal(a, b, 4 * N);
    cuda->host_unregister(b);
    cuda->host_free(a);
    free(b);
    sl_ctx_close(&ctx);
}

static void a_cancelled_context_does_nothing(void **state)
{
    (void)state;
    sl_ctx ctx;
    sl_err err = {0};
    int stop = 0;
    T_OK(sl_ctx_open(&ctx, gpu, 1 << 20, &err));
    ctx.cancel = &stop;
    sl_tensor t = sl_new1(&ctx, SL_F32, 8);
    stop = 1;
    sl_zero(&ctx, &t);
    T_CODE(sl_ctx_error(&ctx, &err), SL_CANCELLED);
    sl_ctx_close(&ctx);
}

int main(void)
{
    int status;
    if (!gpu_open("gpu_matrix", &status)) return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_device_is_described),
        cmocka_unit_test(too_much_memory_names_both_sizes),
        cmocka_unit_test(pinned_memory_goes_there_and_back),
        cmocka_unit_test(a_cancelled_context_does_nothing),
        cmocka_unit_test(products_of_every_kind),
        cmocka_unit_test(products_in_float32),
        cmocka_unit_test(products_that_are_added),
        cmocka_unit_test(products_of_the_networks),
        cmocka_unit_test(shares_of_the_14b_model_have_the_bits_of_the_whole),
        CASES(gpu),
        cmocka_unit_test(speed_of_the_largest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
