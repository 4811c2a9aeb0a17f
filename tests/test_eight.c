/* test_eight.c - rows in 8 bits on the CPU body: recorded numbers, then a double reference over odd
 * sizes, the bits of shares, refusals. */
#include "tests/t_cases.h"

#include "common/coding.h"
#include "common/e4m3.h"
#include "kernels/ops.h"

/* ---- the format ---- */

/* Numbers and their codes as torch.float8_e4m3fn has them (saturated as cvt.rn.satfinite): ties go
 * to the even code, below 2^-6 the steps are 2^-9, 448 is the end. */
static void numbers_have_recorded_codes(void **state)
{
    static const struct {
        float x;
        uint8_t code;
    } AT[] = {
        {0, 0x00},         {-0.0f, 0x80},       {1, 0x38},         {-1, 0xb8},
        {1.0625f, 0x38},   {1.1875f, 0x3a},     {1.06251f, 0x39},  {1.5f, 0x3c},
        {17, 0x58},        {19, 0x5a},          {240, 0x77},       {248, 0x78},
        {448, 0x7e},       {432, 0x7e},         {431.9f, 0x7d},    {464, 0x7e},
        {1e30f, 0x7e},     {-1e30f, 0xfe},      {INFINITY, 0x7e},  {-INFINITY, 0xfe},
        {0x1p-6f, 0x08},   {0x1.ep-7f, 0x08},   {0x1.cp-7f, 0x07}, {0x1p-9f, 0x01},
        {0x1p-10f, 0x00},  {0x1.8p-10f, 0x01},  {0x1.8p-9f, 0x02}, {0x1.4p-8f, 0x02},
        {0x1.cp-8f, 0x04}, {0x1.02p-10f, 0x01}, {0x1p-126f, 0x00}, {0x1p-149f, 0x00},
        {-0x1p-9f, 0x81},  {-0x1p-10f, 0x80},   {0.3f, 0x2a},      {-3.14159274f, 0xc5},
        {0x1.fp-7f, 0x08}, {NAN, 0x7f},         {-NAN, 0x7f},      {447.99f, 0x7e},
    };
    (void)state;
    EACH(i, AT)
    {
        const uint8_t got = sl_to_e4m3(AT[i].x);
        if (got != AT[i].code)
            fail_msg("%a has code 0x%02x, want 0x%02x", (double)AT[i].x, got, AT[i].code);
    }
}

/* Every code is its own number's; between two neighbours the middle goes to the even one. */
static void every_code_comes_back(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 256; c++) {
        const uint8_t code = (uint8_t)c;
        float by_table;
        sl_decode(&by_table, SL_F8_E4M3, &code, 0, 1);
        const float x = sl_from_e4m3(code);
        if ((c & 127) == 127) {
            assert_true(isnan(x) && isnan(by_table));
            continue;
        }
        assert_true(x == by_table);
        assert_int_equal(sl_to_e4m3(x), code);
        if ((c & 127) == 126) continue;
        const float next = sl_from_e4m3((uint8_t)(c + 1)), tie = (x + next) / 2;
        assert_int_equal(sl_to_e4m3(tie), c & 1 ? c + 1 : c);
        assert_int_equal(sl_to_e4m3(nextafterf(tie, x)), c);
        assert_int_equal(sl_to_e4m3(nextafterf(tie, next)), c + 1);
    }
}

/* ---- rows ---- */

typedef struct {
    sl_ctx ctx;
    uint64_t seed;
} rig;

static rig *rig_open(void)
{
    static rig r;
    sl_err err;
    r.seed = 7;
    T_OK(sl_ctx_open(&r.ctx, &sl_ops_cpu, (size_t)512 << 20, &err));
    return &r;
}

static void rig_close(rig *r)
{
    sl_err err = {0};
    T_OK(sl_ctx_error(&r->ctx, &err));
    sl_ctx_close(&r->ctx);
}

/* [rows, d] of numbers in -most .. most. */
static sl_tensor random_rows(rig *r, int64_t rows, int64_t d, float most)
{
    const sl_tensor t = sl_new2(&r->ctx, SL_F32, rows, d);
    for (int64_t i = 0; i < sl_count(&t); i++) ((float *)t.data)[i] = most * t_rand(&r->seed);
    return t;
}

static sl_tensor random_vector(rig *r, int64_t d)
{
    const sl_tensor t = random_rows(r, 1, d, 1);
    return sl_view1(t.data, SL_F32, d);
}

static const float *at_row(const sl_tensor *t, int64_t r)
{
    return (const float *)t->data + r * t->pitch;
}

static double number_of(const sl_eight *e, int64_t r, int64_t c)
{
    const uint8_t *codes = e->codes.data;
    return (double)((const float *)e->scale.data)[r] *
           (double)sl_from_e4m3(codes[r * e->codes.shape[1] + c]);
}

static sl_eight random_eight(rig *r, int64_t rows, int64_t d)
{
    const sl_eight e = sl_new_eight(&r->ctx, rows, d);
    const sl_tensor x = random_rows(r, rows, d, 3);
    sl_quantise_rows(&r->ctx, &e, &x);
    return e;
}

/* e is x, up to half a code's last place; x float64 [rows, d], of which float32 arithmetic may be
 * `slack` of a row's largest off. */
static void held(const char *name, const sl_eight *e, const double *x, double slack)
{
    const int64_t rows = e->codes.shape[0], d = e->codes.shape[1];
    for (int64_t r = 0; r < rows; r++) {
        double most = 0x1p-100;
        for (int64_t c = 0; c < d; c++) most = fmax(most, fabs(x[r * d + c]));
        const double scale = (double)((const float *)e->scale.data)[r];
        if (!(fabs(scale - most / 448) <= (1e-6 + slack) * most / 448))
            fail_msg("%s: row %lld has scale %g, want %g", name, (long long)r, scale, most / 448);
        for (int64_t c = 0; c < d; c++) {
            const double want = x[r * d + c], got = number_of(e, r, c),
                         bound = fmax(fabs(want) / 16, most / 448 / 1024) + (slack + 1e-6) * most;
            if (!(fabs(got - want) <= bound))
                fail_msg("%s: [%lld, %lld] is %g, want %g within %g", name, (long long)r,
                         (long long)c, got, want, bound);
        }
    }
}

static const int64_t ROWS[] = {1, 2, 7, 49}, COLS[] = {1, 3, 16, 65, 256, 1537};

static void rows_are_quantised(void **state)
{
    rig *r = rig_open();
    (void)state;
    EACH(i, ROWS) EACH(k, COLS)
    {
        const int64_t n = ROWS[i], d = COLS[k];
        const sl_tensor wide = random_rows(r, n, d + 5, 100), x = sl_cols(&wide, 2, d);
        const sl_eight y = sl_new_eight(&r->ctx, n, d);
        double *want = malloc((size_t)(n * d) * sizeof *want);
        sl_quantise_rows(&r->ctx, &y, &x);
        for (int64_t j = 0; j < n * d; j++) want[j] = (double)at_row(&x, j / d)[j % d];
        held(say("quantise_rows [%lld, %lld]", (long long)n, (long long)d), &y, want, 0);
        free(want);
        sl_release(&r->ctx, 0);
    }
    rig_close(r);
}

/* A row of zeros, of tiny and of huge numbers; NaN and infinity are not lost. */
static void rows_at_the_ends_of_the_range(void **state)
{
    rig *r = rig_open();
    float x[7][3] = {{0, -0.0f, 0},    {1e-38f, -2e-38f, 0}, {3e38f, -1e38f, 0}, {1, NAN, 2},
                     {1, INFINITY, 2}, {-7, 7, 3.5f},        {1, 2, -448}};
    const sl_tensor t = sl_view2(x, SL_F32, 7, 3);
    const sl_eight y = sl_new_eight(&r->ctx, 7, 3);
    (void)state;
    sl_quantise_rows(&r->ctx, &y, &t);
    for (int c = 0; c < 3; c++) {
        assert_true(number_of(&y, 0, c) == 0);
        assert_true(fabs(number_of(&y, 1, c)) <= 1e-33);
        assert_true(fabs(number_of(&y, 2, c) - (double)x[2][c]) <= 3e38 / 16);
        assert_true(isnan(number_of(&y, 3, c)) && isnan(number_of(&y, 4, c)));
    }
    assert_true(number_of(&y, 5, 0) == -7 && number_of(&y, 5, 1) == 7 &&
                number_of(&y, 5, 2) == 3.5);
    assert_true(((float *)y.scale.data)[6] == 1 && number_of(&y, 6, 2) == -448);
    rig_close(r);
}

/* LayerNorm, with weights, modulated and plain, and GELU: the rows that the float32 operations
 * make. */
static void makers_make_what_float32_does(void **state)
{
    rig *r = rig_open();
    (void)state;
    EACH(i, ROWS) EACH(k, COLS)
    {
        const int64_t n = ROWS[i], d = COLS[k];
        const sl_tensor x = random_rows(r, n, d, 4), w = random_vector(r, d),
                        b = random_vector(r, d), y = sl_new2(&r->ctx, SL_F32, n, d);
        const sl_eight e = sl_new_eight(&r->ctx, n, d), f = sl_new_eight(&r->ctx, n, d);
        for (int op = 0; op < 4; op++) {
            if (op == 0) sl_layernorm(&r->ctx, &y, &x, NULL, NULL, 1e-6f);
            if (op == 0) sl_layernorm_eight(&r->ctx, &e, &x, NULL, NULL, 1e-6f);
            if (op == 1) sl_layernorm(&r->ctx, &y, &x, &w, &b, 1e-6f);
            if (op == 1) sl_layernorm_eight(&r->ctx, &e, &x, &w, &b, 1e-6f);
            if (op == 2) sl_layernorm_modulate(&r->ctx, &y, &x, &w, &b, 1e-6f);
            if (op == 2) sl_layernorm_modulate_eight(&r->ctx, &e, &x, &w, &b, 1e-6f);
            for (int64_t j = 0; j < n * d && op == 3; j++) {
                const double v = (double)((float *)x.data)[j];
                ((float *)y.data)[j] =
                    (float)(0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))));
            }
            if (op == 3) sl_gelu_eight(&r->ctx, &e, &x);
            sl_quantise_rows(&r->ctx, &f, &y);
            const char *name = say("maker %d [%lld, %lld]", op, (long long)n, (long long)d);
            double *want = malloc((size_t)(n * d) * sizeof *want);
            for (int64_t j = 0; j < n * d; j++) want[j] = (double)((float *)y.data)[j];
            held(name, &e, want, op == 3 ? 1e-6 : 0);
            free(want);
            if (op < 3 && (memcmp(e.codes.data, f.codes.data, sl_bytes(&e.codes)) ||
                           memcmp(e.scale.data, f.scale.data, sl_bytes(&e.scale))))
                fail_msg("%s: other bits than quantised in a pass of their own", name);
        }
        sl_release(&r->ctx, 0);
    }
    rig_close(r);
}

/* ---- products ---- */

static void products_of_every_size(void **state)
{
    static const int64_t M[] = {1, 5, 24, 25, 97, 1201}, N[] = {1, 9, 64, 515}, K[] = {1, 36, 700};
    rig *r = rig_open();
    (void)state;
    EACH(i, M) EACH(j, N) EACH(l, K)
    {
        const int64_t m = M[i], n = N[j], k = K[l];
        if (m > 1000 && n > 100) continue;
        const sl_eight x = random_eight(r, m, k), w = random_eight(r, n, k);
        const sl_tensor b = random_vector(r, n), wide = sl_new2(&r->ctx, SL_F32, m, n + 3),
                        y = sl_cols(&wide, 1, n);
        const bool bias = (i + j + l) % 2;
        sl_linear_eight(&r->ctx, &y, &x, &w, bias ? &b : NULL);
        for (int64_t at = 0; at < m * n; at++) {
            double want = 0, most = 0;
            for (int64_t c = 0; c < k; c++) {
                const double p = number_of(&x, at / n, c) * number_of(&w, at % n, c);
                want += p, most += fabs(p);
            }
            if (bias) want += (double)((float *)b.data)[at % n], most += 1;
            const double got = (double)at_row(&y, at / n)[at % n];
            if (!(fabs(got - want) <= 1e-6 * most))
                fail_msg("linear_eight %lld x %lld x %lld: element %lld is %g, want %g",
                         (long long)m, (long long)n, (long long)k, (long long)at, got, want);
        }
        sl_release(&r->ctx, 0);
    }
    rig_close(r);
}

/* x += (a w^T + b) * gate is the product, then the addition. */
static void products_that_are_added(void **state)
{
    rig *r = rig_open();
    (void)state;
    for (int gated = 0; gated < 2; gated++) EACH(i, ROWS)
        {
            const int64_t m = ROWS[i], n = 37, k = 65;
            const sl_eight a = random_eight(r, m, k), w = random_eight(r, n, k);
            const sl_tensor b = random_vector(r, n), gate = random_vector(r, n),
                            x = random_rows(r, m, n, 1), y = sl_new2(&r->ctx, SL_F32, m, n),
                            z = sl_new2(&r->ctx, SL_F32, m, n);
            sl_copy(&r->ctx, &z, &x);
            sl_linear_add_eight(&r->ctx, &x, &y, &a, &w, &b, gated ? &gate : NULL);
            sl_linear_eight(&r->ctx, &y, &a, &w, &b);
            for (int64_t j = 0; j < m * n; j++) {
                const float g = gated ? ((float *)gate.data)[j % n] : 1;
                ((float *)z.data)[j] += ((float *)y.data)[j] * g;
            }
            T_NEAR((float *)x.data, (float *)z.data, m * n, 0);
            sl_release(&r->ctx, 0);
        }
    rig_close(r);
}

/* The first rows of a product are those of a shorter one, whatever threads there are: ranks that
 * share rows compute what one does. 1,500 rows are more than are taken at once. */
static void rows_that_follow_do_not_change_a_bit(void **state)
{
    enum { M = 1500, N = 130, K = 144 };
    static const int64_t SHORTER[] = {25, 48, 49, 97, 240, 1153, 1200};
    rig *r = rig_open();
    (void)state;
    const sl_eight x = random_eight(r, M, K), w = random_eight(r, N, K);
    const sl_tensor y = sl_new2(&r->ctx, SL_F32, M, N), z = sl_new2(&r->ctx, SL_F32, M, N);
    r->ctx.whole_rows = M;
    sl_linear_eight(&r->ctx, &y, &x, &w, NULL);
    EACH(i, SHORTER) for (int threads = 1; threads <= 3; threads++)
    {
        const sl_eight xs = sl_eight_rows(&x, 0, SHORTER[i]);
        const sl_tensor zs = sl_rows(&z, 0, SHORTER[i]);
        t_threads(threads);
        sl_linear_eight(&r->ctx, &zs, &xs, &w, NULL);
        if (memcmp(zs.data, y.data, sl_bytes(&zs)))
            fail_msg("%lld rows, %d threads: other bits than the first of %d",
                     (long long)SHORTER[i], threads, M);
    }
    const int64_t from = 480; /* a share that begins at a granule */
    const sl_eight xs = sl_eight_rows(&x, from, M - from);
    const sl_tensor zs = sl_rows(&z, 0, M - from), ys = sl_rows(&y, from, M - from);
    sl_linear_eight(&r->ctx, &zs, &xs, &w, NULL);
    assert_memory_equal(zs.data, ys.data, sl_bytes(&zs));
    rig_close(r);
}

/* ---- refusals ---- */

#define REFUSED(what, call)                                                                        \
    do {                                                                                           \
        sl_err err = {0};                                                                          \
        call;                                                                                      \
        T_CODE(sl_ctx_error(c, &err), SL_SHAPE);                                                   \
        assert_string_equal(err.msg, what);                                                        \
    } while (0)

static void what_does_not_fit_is_refused(void **state)
{
    rig *r = rig_open();
    sl_ctx *c = &r->ctx;
    static float numbers[64];
    static uint8_t bytes[64];
    const sl_tensor x = sl_view2(numbers, SL_F32, 4, 8), three = sl_view2(numbers, SL_F32, 3, 8);
    sl_eight y = {sl_view2(bytes, SL_E4M3, 4, 8), sl_view1(numbers + 40, SL_F32, 4)}, bad = y;
    (void)state;
    REFUSED("quantise_rows: y is [4, 8], want [3, 8]", sl_quantise_rows(c, &y, &three));
    bad.scale = sl_view1(numbers + 40, SL_F32, 5);
    REFUSED("gelu_eight: y's scales is [5], want [4]", sl_gelu_eight(c, &bad, &x));
    bad = y;
    bad.codes.dtype = SL_U8;
    REFUSED("quantise_rows: y is U8, want E4M3", sl_quantise_rows(c, &bad, &x));
    bad = y;
    bad.scale = (sl_tensor){0};
    REFUSED("layernorm_eight: y's scales is absent",
            sl_layernorm_eight(c, &bad, &x, NULL, NULL, 1e-6f));
    const sl_eight w = {sl_view2(bytes, SL_E4M3, 2, 7), sl_view1(numbers, SL_F32, 2)};
    REFUSED("linear_eight: w is [2, 7], want [2, 8]", sl_linear_eight(c, &x, &y, &w, NULL));
    const sl_tensor gate = sl_view1(numbers, SL_F32, 5);
    const sl_eight w4 = {sl_view2(bytes + 32, SL_E4M3, 4, 8), y.scale};
    const sl_tensor to = sl_view2(numbers, SL_F32, 4, 4),
                    into = sl_view2(numbers + 16, SL_F32, 4, 4);
    REFUSED("linear_add_eight: gate is [5], want [4]",
            sl_linear_add_eight(c, &to, &into, &y, &w4, NULL, &gate));
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_have_recorded_codes),
        cmocka_unit_test(every_code_comes_back),
        cmocka_unit_test(rows_are_quantised),
        cmocka_unit_test(rows_at_the_ends_of_the_range),
        cmocka_unit_test(makers_make_what_float32_does),
        cmocka_unit_test(products_of_every_size),
        cmocka_unit_test(products_that_are_added),
        cmocka_unit_test(rows_that_follow_do_not_change_a_bit),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("rows in 8 bits", tests, NULL, NULL);
}
