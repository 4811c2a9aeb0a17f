/* gpu_frames.c - the memory-bound CUDA kernels around the networks (patches, the sampler,
 * the autoencoder's frames) against the CPU body: odd sizes, views off the grid of 16
 * bytes, aliases.
 *
 * gpu_frames --bench [NAME]: the times of these operations (t_fused.h), or of those whose
 * names contain NAME.
 *
 * limit: 300 s */
#include "tests/t_fused.h"

/* ---- patches and the sampler ---- */

static const int64_t PATCHES[][5] = {{16, 20, 3, 8, 12}, {16, 0, 1, 2, 2},    {4, 5, 2, 6, 10},
                                     {33, 20, 1, 4, 70}, {1, 0, 1, 2, 66},    {48, 49, 1, 2, 6},
                                     {3, 1, 5, 2, 4},    {16, 20, 2, 90, 160}};

static void patchify(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(PATCHES); i++)
        for (int how = 0; how < 4; how++) {
            const int64_t *s = PATCHES[i];
            begin("patchify [%lld + %lld, %lld, %lld, %lld], way %d", (long long)s[0],
                  (long long)s[1], (long long)s[2], (long long)s[3], (long long)s[4], how);
            pair l = floats(SHAPE(s[0], s[2], s[3], s[4]), how == 1),
                 c = floats(SHAPE(s[1], s[2], s[3], s[4]), how == 2);
            pair y = dense(SL_F32, SL_BF16,
                           SHAPE(s[2] * (s[3] / 2) * (s[4] / 2), (s[0] + s[1]) * 4), how == 3);
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
                begin("unpatchify %s [%lld, %lld, %lld, %lld], way %d", sl_dtype_tag(TWO[t]),
                      (long long)s[0], (long long)s[2], (long long)s[3], (long long)s[4], how);
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
    for (size_t t = 0; t < COUNT(TWO); t++) /* apart, off the grid, v is cond, v is uncond */
        for (size_t i = 0; i < COUNT(COUNTS); i++)
            for (int how = 0; how < 4; how++) {
                int64_t n = COUNTS[i];
                begin("guidance %s, %lld, way %d", sl_dtype_tag(TWO[t]), (long long)n, how);
                pair c = dense(SL_F32, TWO[t], SHAPE(n), how == 1),
                     u = dense(SL_F32, TWO[t], SHAPE(n), 0), v = dense(SL_F32, TWO[t], SHAPE(n), 0);
                fill(&c, -3, 3), fill(&u, -3, 3);
                float *want = claim((size_t)sl_count(&v.c_whole) * sizeof *want), g = 5.0f;
                memcpy(want, v.c_whole.data, sl_bytes(&v.c_whole));
                /* each of the three rounded to the tensors' dtype */
                for (int64_t k = 0; k < n; k++) {
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
    static const int64_t AT[] = {1,          7, 8, 2049, 65536, 524288 * 4 + 24, 5120 * 300 + 3,
                                 5120 * 4001};
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
                    SAY("run %d gives %.9g %.9g after %.9g %.9g: not the same bits", k + 2,
                        again[0], again[1], got[0], got[1]);
            }
            sl_bf16 nan = 0x7fc0;
            sl_tensor last = sl_view1((sl_bf16 *)r.g.data + AT[i] - 1, SL_BF16, 1);
            sl_upload(&gpu, &last, &nan);
            sl_mean_abs(&gpu, got, &p.g, &r.g);
            if (!isnan(got[0]) || isnan(got[1]))
                SAY("NaN as the last of r gives %g and %g, want NaN and a number", got[0], got[1]);
        }
    end();
}

/* ---- frames ---- */

static void conv_history(void **state)
{
    static const int64_t AT[][2] = {{2, 1}, {2, 2}, {2, 4}, {1, 4}, {1, 1},
                                    {3, 1}, {4, 1}, {5, 2}, {4, 3}, {2, 0}};
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
        /* bit 0: SiLU; then apart, y is x, off the grid, gamma F32 */
        for (int how = 0; how < 8; how++) {
            int64_t c = CHANNELS[i], n = 2 * 13 * 47 * c;
            int way = how / 2;
            begin("vae_norm %lld channels%s, way %d", (long long)c, how % 2 ? ", SiLU" : "", way);
            pair x = act(SHAPE(2, 13, 47, c), way == 2),
                 y = dense(SL_F32, SL_BF16, SHAPE(2, 13, 47, c), way == 2);
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
            pair x = act(SHAPE(3, 5, 7, 2 * CHANNELS[i]), 0),
                 y = dense(SL_F32, SL_BF16, SHAPE(6, 5, 7, CHANNELS[i]), off);
            sl_time_shuffle(&cpu, &y.c, &x.c);
            sl_time_shuffle(&gpu, &y.g, &x.g);
            check(&y, EXACT);
        }
    end();
}

/* Widths of the published autoencoder and odd ones; whole and off the grid. */
static void shortcuts(void **state)
{
    static const int64_t DOWN[][4] =
        {/* frames, channels of x and of y, time */
         {1, 160, 160, 1}, {1, 160, 320, 2}, {4, 320, 640, 2},
         {3, 5, 10, 2},    {2, 6, 8, 1},     {5, 4, 1, 2}},
                         UP[][5] = {/* and frames left out */
                                    {1, 1024, 1024, 2, 1}, {2, 1024, 1024, 2, 0},
                                    {4, 1024, 512, 1, 0},  {3, 24, 12, 2, 1},
                                    {2, 12, 3, 2, 0},      {1, 8, 8, 1, 0}};
    (void)state;
    for (int off = 0; off < 2; off++) {
        for (size_t i = 0; i < COUNT(DOWN); i++) {
            const int64_t n = DOWN[i][0], a = DOWN[i][3];
            begin("avg_down %lld frames, %lld channels to %lld, time %lld + %d", (long long)n,
                  (long long)DOWN[i][1], (long long)DOWN[i][2], (long long)a, off);
            pair x = act(SHAPE(n, 6, 10, DOWN[i][1]), off),
                 y = dense(SL_F32, SL_BF16, SHAPE((n + a - 1) / a, 3, 5, DOWN[i][2]), off);
            sl_avg_down(&cpu, &y.c, &x.c, (int)a);
            sl_avg_down(&gpu, &y.g, &x.g, (int)a);
            check(&y, ROUNDING, 1e-6);
        }
        for (size_t i = 0; i < COUNT(UP); i++) {
            const int64_t n = UP[i][0], a = UP[i][3];
            begin("dup_up %lld frames, %lld channels to %lld, time %lld, %lld less + %d",
                  (long long)n, (long long)UP[i][1], (long long)UP[i][2], (long long)a,
                  (long long)UP[i][4], off);
            pair x = act(SHAPE(n, 3, 5, UP[i][1]), off),
                 y = dense(SL_F32, SL_BF16, SHAPE(n * a - UP[i][4], 6, 10, UP[i][2]), off);
            sl_dup_up(&cpu, &y.c, &x.c, (int)a);
            sl_dup_up(&gpu, &y.g, &x.g, (int)a);
            check(&y, EXACT);
        }
        for (int64_t c = 1; c <= 3; c++) {
            begin("pixel_shuffle %lld channels + %d", (long long)c, off);
            pair x = act(SHAPE(2, 3, 5, 4 * c), off),
                 y = dense(SL_F32, SL_BF16, SHAPE(2, 6, 10, c), off);
            sl_pixel_shuffle(&cpu, &y.c, &x.c);
            sl_pixel_shuffle(&gpu, &y.g, &x.g);
            check(&y, EXACT);
        }
    }
    end();
}

static void channels(void **state)
{
    static const int64_t AT[][2] = {/* of y, of x when they go first */
                                    {3, 3},   {16, 32},   {16, 16}, {48, 96}, {64, 64},
                                    {65, 65}, {130, 136}, {1, 4},   {20, 24}};
    float mul[136], add[136];
    (void)state;
    for (int i = 0; i < 136; i++) mul[i] = 0.5f + 0.01f * (float)i, add[i] = (float)i - 3.3f;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int how = 0; how < 4; how++) { /* with and without factors; off the grid */
            int64_t c = AT[i][0], stride = AT[i][1];
            const float *m = how & 1 ? mul : NULL, *a = how & 1 ? add : NULL;
            begin("to_channels_last %lld, way %d", (long long)c, how);
            pair x = floats(SHAPE(c, 3, 5, 17), 0),
                 y = dense(SL_F32, SL_BF16, SHAPE(3, 5, 17, c), how / 2);
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
    static const float SPECIAL[] = {NAN, -NAN, INFINITY, -INFINITY, 0,     -0.0f,
                                    1,   -1,   3e38f,    -3e38f,    1e-30f};
    static const int64_t AT[][2] = {{1, 1}, {3, 7}, {64, 64}, {33, 31}, {5, 16}};
    (void)state;
    for (size_t i = 0; i < COUNT(AT); i++)
        for (int off = 0; off < 2; off++) {
            int64_t n = 2 * AT[i][0] * AT[i][1] * 3;
            begin("frames_rgb8 [2, %lld, %lld, 3] + %d", (long long)AT[i][0], (long long)AT[i][1],
                  off);
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
                    SAY("byte %lld of %lld is %d, want %d, for %g", (long long)k, (long long)n,
                        got[k], ((uint8_t *)yc.data)[k], ((float *)x.c.data)[k]);
                    break;
                }
            if (n > 2 && (got[n - 1] || got[n - 2]))
                SAY("NaN gives %d and %d, want 0", got[n - 1], got[n - 2]);
            free(got);
        }
    end();
}

/* ---- bench ---- */

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
    sl_lincomb(&gpu, &s->t[0], 4, (const sl_tensor *[]){&s->t[1], &s->t[2], &s->t[3], &s->t[4]},
               (float[]){1, 2, 3, 4});
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
static void run_up(const bench_set *s)
{
    sl_dup_up(&gpu, &s->t[0], &s->t[1], 1);
}
static void run_pixels(const bench_set *s)
{
    sl_pixel_shuffle(&gpu, &s->t[0], &s->t[1]);
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

#define A4(t, h, w, c, times)                                                                      \
    {                                                                                              \
        SL_BF16, 4, {t, h, w, c}, times, false                                                     \
    }
#define F4(t, h, w, c, times)                                                                      \
    {                                                                                              \
        SL_F32, 4, {t, h, w, c}, times, false                                                      \
    }

static const bench_case BENCH[] = {
    {"patchify [16 + 20, 21, 90, 160]",
     run_patchify,
     {A2(N, 144, 1), F4(16, 21, 90, 160, 1), F4(20, 21, 90, 160, 1)}},
    {"unpatchify to BF16 [16, 21, 90, 160]",
     run_unpatchify,
     {A4(16, 21, 90, 160, 1), A2(N, 64, 1)}},
    {"unpatchify to F32 [16, 21, 90, 160]", run_unpatchify, {F4(16, 21, 90, 160, 1), A2(N, 64, 1)}},
    {"guidance BF16 [16, 21, 90, 160]",
     run_guidance,
     {A4(16, 21, 90, 160, 2), A4(16, 21, 90, 160, 1)}},
    {"flow_x0 [16, 21, 90, 160]",
     run_flow,
     {F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), A4(16, 21, 90, 160, 1)}},
    {"lincomb of 4 [16, 21, 90, 160]",
     run_lincomb,
     {F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1),
      F4(16, 21, 90, 160, 1), F4(16, 21, 90, 160, 1)}},
    {"mean_abs [75600, 5120] (waits)", run_mean, {A2(N, D, 1), A2(N, D, 1)}},
    {"vae_norm + SiLU [4, 720, 1280, 96]",
     run_vae_norm,
     {A4(4, 720, 1280, 96, 1), A4(4, 720, 1280, 96, 1), V1(SL_BF16, 96)}},
    {"vae_norm + SiLU [4, 720, 1280, 192]",
     run_vae_norm,
     {A4(4, 720, 1280, 192, 1), A4(4, 720, 1280, 192, 1), V1(SL_BF16, 192)}},
    {"vae_norm + SiLU [4, 360, 640, 192]",
     run_vae_norm,
     {A4(4, 360, 640, 192, 1), A4(4, 360, 640, 192, 1), V1(SL_BF16, 192)}},
    {"vae_norm + SiLU [2, 180, 320, 384]",
     run_vae_norm,
     {A4(2, 180, 320, 384, 1), A4(2, 180, 320, 384, 1), V1(SL_BF16, 384)}},
    {"vae_norm + SiLU [4, 720, 1280, 16]",
     run_vae_norm,
     {A4(4, 720, 1280, 16, 1), A4(4, 720, 1280, 16, 1), V1(SL_BF16, 16)}},
    {"vae_norm + SiLU [4, 720, 1280, 32]",
     run_vae_norm,
     {A4(4, 720, 1280, 32, 1), A4(4, 720, 1280, 32, 1), V1(SL_BF16, 32)}},
    {"vae_norm + SiLU [4, 720, 1280, 64]",
     run_vae_norm,
     {A4(4, 720, 1280, 64, 1), A4(4, 720, 1280, 64, 1), V1(SL_BF16, 64)}},
    {"time_shuffle [4, 180, 320, 2 x 384]",
     run_shuffle,
     {A4(8, 180, 320, 384, 1), A4(4, 180, 320, 768, 1)}},
    {"dup_up [4, 352, 640, 512] from 1024 channels",
     run_up,
     {A4(4, 352, 640, 512, 1), A4(4, 176, 320, 1024, 1)}},
    {"pixel_shuffle [4, 704, 1280, 3]",
     run_pixels,
     {A4(4, 704, 1280, 3, 1), A4(4, 352, 640, 12, 1)}},
    {"conv_history [2, 720, 1280, 96] from 4",
     run_history,
     {A4(2, 720, 1280, 96, 2), A4(4, 720, 1280, 96, 0)}},
    {"to_channels_last [3, 4, 720, 1280]",
     run_last,
     {A4(4, 720, 1280, 3, 1), F4(3, 4, 720, 1280, 1)}},
    {"to_channels_last [16, 21, 90, 160]",
     run_last,
     {A4(21, 90, 160, 16, 1), F4(16, 21, 90, 160, 1)}},
    {"to_channels_first [16, 21, 90, 160]",
     run_first,
     {F4(16, 21, 90, 160, 1), A4(21, 90, 160, 16, 1)}},
    {"frames_rgb8 [4, 720, 1280, 3]",
     run_rgb8,
     {{SL_U8, 4, {4, 720, 1280, 3}, 1, false}, A4(4, 720, 1280, 3, 1)}},
};

int main(int argc, char **argv)
{
    int status;
    const struct CMUnitTest tests[] = {
        T(patchify),     T(unpatchify), T(guidance),     T(flow_x0),   T(lincomb),  T(mean_abs),
        T(conv_history), T(vae_norm),   T(time_shuffle), T(shortcuts), T(channels), T(frames_rgb8),
    };
    if (!tests_wanted("gpu_frames", BENCH, COUNT(BENCH), argc, argv, &status)) return status;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
