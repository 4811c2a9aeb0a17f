/* test_ops_vae.c - the autoencoder's operations against plain loops in double, at sizes
 * that meet every edge. */
#include "tests/t.h"

#include "kernels/ops.h"

static sl_err err;

static float *numbers(int64_t n, uint64_t seed)
{
    float *x = malloc(sizeof *x * (size_t)(n ? n : 1));
    t_fill(x, n, seed);
    return x;
}

/* ---- convolution ---- */

typedef struct {
    int T, H, W, ci, co;
    sl_conv k;
    int history, residual; /* given? */
} conv_case;

static const sl_conv C333 = {3, 3, 3, 1, 1, 1, 0, 0}, C111 = {1, 1, 1, 1, 1, 0, 0, 0},
                     TIME = {3, 1, 1, 1, 1, 0, 0, 0}, TIME_HALF = {3, 1, 1, 2, 1, 0, 0, 0},
                     HALF = {1, 3, 3, 1, 2, 0, 1, 0}, DOUBLE = {1, 3, 3, 1, 1, 1, 0, 1};

static int history_frames(const conv_case *c)
{
    return c->k.stride_t == 2 ? 1 : c->k.kt - 1;
}

/* The definition in ops.h, sums in double. */
static void plain_conv(float *y, const conv_case *c, const float *x, const float *h, const float *w,
                       const float *b, const float *r, int oh, int ow)
{
    const sl_conv *k = &c->k;
    int up = k->upsample ? 2 : 1, before = history_frames(c);
    for (int t = 0; t < c->T / k->stride_t; t++)
        for (int i = 0; i < oh; i++)
            for (int j = 0; j < ow; j++)
                for (int o = 0; o < c->co; o++) {
                    double s = b[o];
                    for (int dt = 0; dt < k->kt; dt++)
                        for (int dy = 0; dy < k->kh; dy++)
                            for (int dx = 0; dx < k->kw; dx++) {
                                int f = t * k->stride_t + dt - before,
                                    yy = i * k->stride_hw + dy - k->pad,
                                    xx = j * k->stride_hw + dx - k->pad;
                                if (yy < 0 || xx < 0 || yy >= c->H * up || xx >= c->W * up ||
                                    (f < 0 && !h))
                                    continue;
                                const float *from =
                                    f < 0 ? h + (int64_t)(f + before) * c->H * c->W * c->ci
                                          : x + (int64_t)f * c->H * c->W * c->ci;
                                from += ((int64_t)(yy / up) * c->W + xx / up) * c->ci;
                                for (int q = 0; q < c->ci; q++)
                                    s += (double)from[q] *
                                         w[(((o * c->ci + q) * k->kt + dt) * k->kh + dy) * k->kw +
                                           dx];
                            }
                    int64_t at = (((int64_t)t * oh + i) * ow + j) * c->co + o;
                    y[at] = (float)(s + (r ? r[at] : 0));
                }
}

/* The case through sl_conv3d; in_place: y is the residual. */
static void run_conv(const conv_case *c, bool in_place)
{
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    int up = c->k.upsample ? 2 : 1, edge = 2 * c->k.pad + c->k.pad_end;
    int oh = (c->H * up + edge - c->k.kh) / c->k.stride_hw + 1,
        ow = (c->W * up + edge - c->k.kw) / c->k.stride_hw + 1;
    int64_t shape[5] = {c->co, c->ci, c->k.kt, c->k.kh, c->k.kw},
            taps = (int64_t)c->k.kt * c->k.kh * c->k.kw;
    int64_t ny = (int64_t)(c->T / c->k.stride_t) * oh * ow * c->co;
    float *x = numbers((int64_t)c->T * c->H * c->W * c->ci, 1),
          *h = numbers((int64_t)history_frames(c) * c->H * c->W * c->ci, 2);
    float *w = numbers(c->co * c->ci * taps, 3), *b = numbers(c->co, 4), *r = numbers(ny, 5),
          *want = numbers(ny, 6);
    float *y = in_place ? r : numbers(ny, 7);
    void *packed = sl_device_alloc(&ctx, ctx.ops->packed_conv_bytes(&ctx, shape));
    ctx.ops->pack_conv(&ctx, packed, w, shape);
    plain_conv(want, c, x, c->history ? h : NULL, w, b, c->residual ? r : NULL, oh, ow);

    sl_tensor tx = sl_view4(x, SL_F32, c->T, c->H, c->W, c->ci),
              th = sl_view4(h, SL_F32, history_frames(c), c->H, c->W, c->ci);
    sl_tensor ty = sl_view4(y, SL_F32, c->T / c->k.stride_t, oh, ow, c->co),
              tr = sl_view4(r, SL_F32, ty.shape[0], oh, ow, c->co);
    sl_tensor tw = sl_view(packed, SL_F32, 5, shape), tb = sl_view1(b, SL_F32, c->co);
    sl_conv3d(&ctx, &ty, &tx, c->history ? &th : NULL, &tw, &tb, c->residual ? &tr : NULL, &c->k);
    T_OK(sl_ctx_error(&ctx, &err));
    T_REL(y, want, ny, 1e-6); /* float32 sums of up to 27 * 40 products against double */
    sl_device_free(&ctx, packed);
    sl_ctx_close(&ctx);
    free(x), free(h), free(w), free(b), free(want), free(r);
    if (!in_place) free(y);
}

static void test_conv_matches_plain_loops(void **state)
{
    (void)state;
    /* T, H, W */
    const int sizes[][3] = {{1, 1, 1}, {2, 3, 2}, {1, 2, 13}, {4, 5, 7}, {2, 9, 26}};
    const int channels[][2] = {{1, 1},  {3, 8},   {8, 3},   {16, 17},
                               {5, 32}, {12, 33}, {40, 48}, {7, 65}};
    const sl_conv *kinds[] = {&C333, &C111, &TIME, &HALF, &DOUBLE, &TIME_HALF};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t n = 0; n < sizeof channels / sizeof *channels; n++) {
                conv_case c = {sizes[s][0],    sizes[s][1], sizes[s][2], channels[n][0],
                               channels[n][1], *kinds[k],   n % 2,       n / 2 % 2};
                if (c.k.stride_t == 2) c.T *= 2, c.history = 1;
                if (c.k.kt == 1) c.history = 0;
                if (c.k.stride_hw == 2 && (c.H < 2 || c.W < 2)) continue;
                run_conv(&c, false);
            }
}

static void test_conv_adds_into_its_residual(void **state)
{
    (void)state;
    run_conv(&(conv_case){2, 6, 5, 8, 40, C333, 1, 1}, true);
    run_conv(&(conv_case){2, 6, 5, 8, 8, C111, 0, 1}, true);
}

static void test_conv_has_the_same_bits_in_any_chunk(void **state)
{
    (void)state;
    enum { T = 5, H = 7, W = 9, CI = 16, CO = 40, IN = H * W * CI, OUT = H * W * CO };
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    int64_t shape[5] = {CO, CI, 3, 3, 3};
    float *x = numbers(T * IN, 1), *w = numbers(CO * CI * 27, 2), *b = numbers(CO, 3),
          *whole = numbers(T * OUT, 4);
    float *parts = numbers(T * OUT, 5), *past = calloc(2 * IN, sizeof *past);
    void *packed = sl_device_alloc(&ctx, ctx.ops->packed_conv_bytes(&ctx, shape));
    ctx.ops->pack_conv(&ctx, packed, w, shape);
    sl_tensor tw = sl_view(packed, SL_F32, 5, shape), tb = sl_view1(b, SL_F32, CO),
              h = sl_view4(past, SL_F32, 2, H, W, CI);
    sl_tensor tx = sl_view4(x, SL_F32, T, H, W, CI), ty = sl_view4(whole, SL_F32, T, H, W, CO),
              tp = sl_view4(parts, SL_F32, T, H, W, CO);
    sl_conv3d(&ctx, &ty, &tx, NULL, &tw, &tb, NULL, &C333);
    for (int at = 0, n = 1; at < T; at += n, n++) { /* 1, 2 and 2 frames */
        if (n > T - at) n = T - at;
        sl_tensor in = sl_rows(&tx, at, n), out = sl_rows(&tp, at, n);
        sl_conv3d(&ctx, &out, &in, &h, &tw, &tb, NULL, &C333);
        sl_conv_history(&ctx, &h, &in);
    }
    T_OK(sl_ctx_error(&ctx, &err));
    assert_memory_equal(whole, parts, sizeof(float) * T * OUT);
    sl_device_free(&ctx, packed);
    sl_ctx_close(&ctx);
    free(x), free(w), free(b), free(whole), free(parts), free(past);
}

static void test_history_holds_the_last_frames(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    float past[3 * 2] = {1, 1, 2, 2, 3, 3}, x[4 * 2] = {4, 4, 5, 5, 6, 6, 7, 7};
    sl_tensor h = sl_view4(past, SL_F32, 3, 1, 1, 2), one = sl_view4(x, SL_F32, 1, 1, 1, 2),
              four = sl_view4(x, SL_F32, 4, 1, 1, 2);
    sl_conv_history(&ctx, &h, &one);
    assert_memory_equal(past, ((float[]){2, 2, 3, 3, 4, 4}), sizeof past);
    sl_conv_history(&ctx, &h, &four);
    assert_memory_equal(past, ((float[]){5, 5, 6, 6, 7, 7}), sizeof past);
    T_OK(sl_ctx_error(&ctx, &err));
    sl_ctx_close(&ctx);
}

/* ---- norm and moves ---- */

static void test_norm_matches_plain_loops(void **state)
{
    (void)state;
    const int channels[] = {1, 3, 8, 16, 33, 96, 384};
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    for (size_t n = 0; n < sizeof channels / sizeof *channels; n++)
        for (int silu = 0; silu < 2; silu++) {
            int c = channels[n], pixels = 2 * 3 * 5;
            float *x = numbers(pixels * c, 1), *g = numbers(c, 2), *want = numbers(pixels * c, 3);
            for (int i = 0; i < c; i++) x[i] = 0; /* one pixel is black: 0 / 1e-12 stays 0 */
            for (int i = 0; i < c; i++) x[c + i] *= 1e4f, g[i] *= 3;
            for (int p = 0; p < pixels; p++) {
                double s = 0;
                for (int i = 0; i < c; i++) s += (double)x[p * c + i] * x[p * c + i];
                s = sqrt(s) > 1e-12 ? sqrt(s) : 1e-12;
                for (int i = 0; i < c; i++) {
                    double v = x[p * c + i] / s * sqrt(c) * g[i];
                    want[p * c + i] = (float)(silu ? v / (1 + exp(-v)) : v);
                }
            }
            sl_tensor t = sl_view4(x, SL_F32, 2, 3, 5, c), tg = sl_view1(g, SL_F32, c);
            sl_vae_norm(&ctx, &t, &t, &tg, silu);
            T_OK(sl_ctx_error(&ctx, &err));
            /* a float32 sum of up to 384 squares against double, then silu's few units */
            T_REL(x, want, pixels * c, 1e-6);
            free(x), free(g), free(want);
        }
    sl_ctx_close(&ctx);
}

static void test_norm_survives_large_values_and_passes_nan(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    float x[3] = {-1, 1, NAN}, g[1] = {200};
    sl_tensor t = sl_view4(x, SL_F32, 1, 1, 3, 1), tg = sl_view1(g, SL_F32, 1);
    sl_vae_norm(&ctx, &t, &t, &tg, true);
    T_OK(sl_ctx_error(&ctx, &err));
    assert_true(x[0] <= 0 && x[0] > -1e-30f);
    assert_true(x[1] == 200);
    assert_true(isnan(x[2]));
    sl_ctx_close(&ctx);
}

static void test_time_shuffle_splits_channels_into_frames(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    enum { T = 3, P = 2 * 2, C = 5 };
    float x[T * P * 2 * C], y[2 * T * P * C];
    t_fill(x, T * P * 2 * C, 1);
    sl_tensor tx = sl_view4(x, SL_F32, T, 2, 2, 2 * C), ty = sl_view4(y, SL_F32, 2 * T, 2, 2, C);
    sl_time_shuffle(&ctx, &ty, &tx);
    T_OK(sl_ctx_error(&ctx, &err));
    for (int f = 0; f < 2 * T; f++)
        for (int p = 0; p < P; p++)
            for (int c = 0; c < C; c++)
                assert_true(y[(f * P + p) * C + c] == x[(f / 2 * P + p) * 2 * C + f % 2 * C + c]);
    sl_ctx_close(&ctx);
}

/* The reference's own way: frames, rows and columns become channels, of which groups are averaged
 * (spec 9.4). 2 to 3 frames, 6 channels to 8, 12 and 24. */
static void test_avg_down_matches_plain_loops(void **state)
{
    enum { H = 4, W = 6, C = 6 };
    static const int AT[][3] = {/* frames, time, channels of y */
                                {1, 1, 24}, {3, 1, 8},  {2, 2, 12}, {1, 2, 12},
                                {3, 2, 16}, {4, 2, 48}, {3, 2, 1}};
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    for (size_t k = 0; k < sizeof AT / sizeof *AT; k++) {
        const int n = AT[k][0], a = AT[k][1], co = AT[k][2], lead = n % a, frames = (n + a - 1) / a;
        float x[4 * H * W * C], y[4 * H / 2 * W / 2 * 48], wide[C * 8];
        t_fill(x, n * H * W * C, k);
        sl_tensor tx = sl_view4(x, SL_F32, n, H, W, C),
                  ty = sl_view4(y, SL_F32, frames, H / 2, W / 2, co);
        sl_avg_down(&ctx, &ty, &tx, a);
        T_OK(sl_ctx_error(&ctx, &err));
        for (int f = 0; f < frames; f++)
            for (int p = 0; p < H / 2 * W / 2; p++) {
                for (int c = 0; c < C; c++)
                    for (int t = 0; t < a; t++)
                        for (int q = 0; q < 4; q++) {
                            const int from = f * a + t - lead, row = p / (W / 2) * 2 + q / 2,
                                      column = p % (W / 2) * 2 + q % 2;
                            wide[(c * a + t) * 4 + q] =
                                from < 0 ? 0 : x[((from * H + row) * W + column) * C + c];
                        }
                for (int o = 0, group = C * a * 4 / co; o < co; o++) {
                    double sum = 0;
                    for (int g = 0; g < group; g++) sum += wide[o * group + g];
                    const double d = y[(f * H / 2 * W / 2 + p) * co + o] - sum / group;
                    assert_true(fabs(d) <= 1e-6);
                }
            }
    }
    sl_ctx_close(&ctx);
}

/* The reference's own way: channels are repeated, then taken apart into frames, rows, columns. */
static void test_dup_up_matches_plain_loops(void **state)
{
    enum { H = 2, W = 3, C = 12 };
    static const int AT[][4] = {/* frames, time, channels of y, frames left out */
                                {1, 1, 12, 0}, {2, 1, 6, 0}, {2, 2, 12, 0},
                                {1, 2, 6, 1},  {3, 2, 3, 1}, {2, 2, 24, 1}};
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    for (size_t k = 0; k < sizeof AT / sizeof *AT; k++) {
        const int n = AT[k][0], a = AT[k][1], co = AT[k][2], less = AT[k][3], frames = n * a - less,
                  repeats = co * a * 4 / C;
        float x[3 * H * W * C], y[6 * 4 * H * W * 24];
        t_fill(x, n * H * W * C, k);
        sl_tensor tx = sl_view4(x, SL_F32, n, H, W, C),
                  ty = sl_view4(y, SL_F32, frames, 2 * H, 2 * W, co);
        sl_dup_up(&ctx, &ty, &tx, a);
        T_OK(sl_ctx_error(&ctx, &err));
        for (int f = 0; f < frames; f++)
            for (int row = 0; row < 2 * H; row++)
                for (int column = 0; column < 2 * W; column++)
                    for (int o = 0; o < co; o++) {
                        const int t = f + less,
                                  u = ((o * a + t % a) * 2 + row % 2) * 2 + column % 2;
                        assert_true(y[((f * 2 * H + row) * 2 * W + column) * co + o] ==
                                    x[((t / a * H + row / 2) * W + column / 2) * C + u / repeats]);
                    }
    }
    sl_ctx_close(&ctx);
}

static void test_pixel_shuffle_takes_patches_apart(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    /* one patch of two channels: (c, column, row) */
    float x[8] = {0, 1, 2, 3, 4, 5, 6, 7}, y[8], want[8] = {0, 4, 2, 6, 1, 5, 3, 7};
    sl_tensor tx = sl_view4(x, SL_F32, 1, 1, 1, 8), ty = sl_view4(y, SL_F32, 1, 2, 2, 2);
    sl_pixel_shuffle(&ctx, &ty, &tx);
    T_OK(sl_ctx_error(&ctx, &err));
    assert_memory_equal(y, want, sizeof y);
    enum { T = 3, H = 2, W = 5, C = 3 };
    float a[T * H * W * 4 * C], b[T * H * W * 4 * C];
    t_fill(a, T * H * W * 4 * C, 1);
    sl_tensor ta = sl_view4(a, SL_F32, T, H, W, 4 * C),
              tb = sl_view4(b, SL_F32, T, 2 * H, 2 * W, C);
    sl_pixel_shuffle(&ctx, &tb, &ta);
    T_OK(sl_ctx_error(&ctx, &err));
    for (int t = 0; t < T; t++)
        for (int r = 0; r < 2 * H; r++)
            for (int s = 0; s < 2 * W; s++)
                for (int c = 0; c < C; c++)
                    assert_true(
                        b[((t * 2 * H + r) * 2 * W + s) * C + c] ==
                        a[((t * H + r / 2) * W + s / 2) * 4 * C + (c * 2 + s % 2) * 2 + r % 2]);
    sl_ctx_close(&ctx);
}

static void test_channels_move_there_and_back(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    enum { T = 3, H = 4, W = 5, C = 7, P = T * H * W };
    float x[C * P], last[P * C], back[4 * P], mul[C], add[C];
    t_fill(x, C * P, 1), t_fill(mul, C, 2), t_fill(add, C, 3);
    sl_tensor tx = sl_view4(x, SL_F32, C, T, H, W), tl = sl_view4(last, SL_F32, T, H, W, C),
              tb = sl_view4(back, SL_F32, 4, T, H, W);
    sl_to_channels_last(&ctx, &tl, &tx, mul, add);
    for (int p = 0; p < P; p++)
        for (int c = 0; c < C; c++)
            assert_true(fabsf(last[p * C + c] - (x[c * P + p] * mul[c] + add[c])) <= 1e-6f);
    sl_to_channels_last(&ctx, &tl, &tx, NULL, NULL);
    sl_to_channels_first(&ctx, &tb, &tl, NULL, NULL); /* the first 4 of 7 channels */
    T_OK(sl_ctx_error(&ctx, &err));
    assert_memory_equal(back, x, sizeof back);
    sl_to_channels_first(&ctx, &tb, &tl, mul, add);
    T_OK(sl_ctx_error(&ctx, &err));
    for (int i = 0; i < 4 * P; i++)
        assert_true(fabsf(back[i] - (x[i] * mul[i / P] + add[i / P])) <= 1e-6f);
    sl_ctx_close(&ctx);
}

static void test_rgb_rounds_to_nearest_even_and_clamps(void **state)
{
    (void)state;
    sl_ctx ctx;
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 0, &err));
    /* 255 * (x/2 + 1/2): 127.5 -> 128; the ends and beyond; no number; 128.5, a little
     * more than 127.5; 64.5 and 200.5 to even */
    float x[12] = {0,
                   -1,
                   1,
                   -7,
                   7,
                   NAN,
                   INFINITY,
                   2 / 255.0f,
                   1e-3f,
                   -0.4941175878047943f,
                   0.5725489854812622f,
                   -INFINITY};
    uint8_t y[12], want[12] = {128, 0, 255, 0, 255, 0, 255, 128, 128, 64, 200, 0};
    sl_tensor tx = sl_view4(x, SL_F32, 1, 1, 4, 3), ty = sl_view4(y, SL_U8, 1, 1, 4, 3);
    sl_frames_rgb8(&ctx, &ty, &tx);
    T_OK(sl_ctx_error(&ctx, &err));
    assert_memory_equal(y, want, sizeof y);
    sl_ctx_close(&ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv_matches_plain_loops),
        cmocka_unit_test(test_conv_adds_into_its_residual),
        cmocka_unit_test(test_conv_has_the_same_bits_in_any_chunk),
        cmocka_unit_test(test_history_holds_the_last_frames),
        cmocka_unit_test(test_norm_matches_plain_loops),
        cmocka_unit_test(test_norm_survives_large_values_and_passes_nan),
        cmocka_unit_test(test_time_shuffle_splits_channels_into_frames),
        cmocka_unit_test(test_avg_down_matches_plain_loops),
        cmocka_unit_test(test_dup_up_matches_plain_loops),
        cmocka_unit_test(test_pixel_shuffle_takes_patches_apart),
        cmocka_unit_test(test_channels_move_there_and_back),
        cmocka_unit_test(test_rgb_rounds_to_nearest_even_and_clamps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
