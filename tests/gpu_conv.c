/* gpu_conv.c - the convolutions of the CUDA plug-in: the tiles' arithmetic emulated on
 * the host, both kernels against the CPU body, and their speed.
 *
 *   gpu_conv           the emulation (needs no GPU), then every kind of convolution of
 *                      the autoencoder at sizes with odd edges
 *   gpu_conv --bench   the layers of 1280 x 720 at their true sizes: milliseconds and
 *                      TFLOP/s, their sum over a latent frame
 *
 * SLUICE_CONV chooses: "simple" the kernel that does everything, nothing the fast one
 * where it can, "wide" its wide tiles too. */
#include <time.h>

#include "tests/t.h"

#include "kernels/cuda/conv_tiles.h"
#include "kernels/plugin.h"

static const sl_plugin *plugin;
static sl_err err;

static const sl_conv C333 = {3, 3, 3, 1, 1, 1, 0, 0}, C111 = {1, 1, 1, 1, 1, 0, 0, 0},
                     TIME = {3, 1, 1, 1, 1, 0, 0, 0}, TIME_HALF = {3, 1, 1, 2, 1, 0, 0, 0},
                     HALF = {1, 3, 3, 1, 2, 0, 1, 0}, DOUBLE = {1, 3, 3, 1, 1, 1, 0, 1};

enum { NONE, APART, ALIAS }; /* the residual: not given, a tensor of its own, y itself */

typedef struct {
    int T, H, W, ci, co;
    const sl_conv *k;
    int history, residual;
} conv_case;

static const char *kind_name(const sl_conv *k)
{
    return k == &C333        ? "3x3x3"
           : k == &C111      ? "1x1x1"
           : k == &TIME      ? "3x1x1"
           : k == &TIME_HALF ? "3x1x1/2"
           : k == &HALF      ? "1x3x3/2"
                             : "1x3x3 doubled";
}

static const char *case_name(const conv_case *c)
{
    static char text[160];
    static const char *const residuals[] = {"", ", residual", ", residual is y"};
    snprintf(text, sizeof text, "%s [%d,%d,%d,%d] -> %d%s%s", kind_name(c->k), c->T, c->H, c->W,
             c->ci, c->co, c->history ? ", history" : "", residuals[c->residual]);
    return text;
}

/* ---- a case's numbers, and what the CPU body makes of them ---- */

typedef struct {
    int oh, ow, frames, past;
    int64_t shape[5], nx, nh, nw, ny;
    float *x, *h, *w, *b, *r, *want; /* inputs are bf16 numbers; r zeros without a residual */
} numbers;

static float *random_bf16(int64_t n, float scale, uint64_t seed)
{
    float *x = malloc(sizeof *x * (size_t)(n ? n : 1));
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = sl_from_bf16(sl_to_bf16(scale * t_rand(&seed)));
    return x;
}

static void make_numbers(numbers *s, const conv_case *c)
{
    const sl_conv *k = c->k;
    int up = k->upsample ? 2 : 1, edge = 2 * k->pad + k->pad_end, taps = k->kt * k->kh * k->kw;
    s->oh = (c->H * up + edge - k->kh) / k->stride_hw + 1;
    s->ow = (c->W * up + edge - k->kw) / k->stride_hw + 1;
    s->frames = c->T / k->stride_t;
    s->past = k->stride_t == 2 ? 1 : k->kt - 1;
    memcpy(s->shape, ((int64_t[]){c->co, c->ci, k->kt, k->kh, k->kw}), sizeof s->shape);
    s->nx = (int64_t)c->T * c->H * c->W * c->ci;
    s->nh = (int64_t)s->past * c->H * c->W * c->ci;
    s->nw = (int64_t)c->co * c->ci * taps;
    s->ny = (int64_t)s->frames * s->oh * s->ow * c->co;
    s->x = random_bf16(s->nx, 1, 1);
    s->h = random_bf16(s->nh, 1, 2);
    s->w = random_bf16(s->nw, sqrtf(3.0f / (float)(c->ci * taps)), 3);
    s->b = random_bf16(c->co, 0.5f, 4);
    s->r = random_bf16(s->ny, c->residual ? 1 : 0, 5);
    s->want = calloc((size_t)s->ny, sizeof *s->want);
    assert_non_null(s->want);

    sl_ctx cpu;
    T_OK(sl_ctx_open(&cpu, &sl_ops_cpu, 0, &err));
    void *packed = sl_device_alloc(&cpu, cpu.ops->packed_conv_bytes(&cpu, s->shape));
    assert_non_null(packed);
    cpu.ops->pack_conv(&cpu, packed, s->w, s->shape);
    sl_tensor x = sl_view4(s->x, SL_F32, c->T, c->H, c->W, c->ci),
              h = sl_view4(s->h, SL_F32, s->past, c->H, c->W, c->ci);
    sl_tensor y = sl_view4(s->want, SL_F32, s->frames, s->oh, s->ow, c->co),
              r = sl_view4(s->r, SL_F32, s->frames, s->oh, s->ow, c->co);
    sl_tensor w = sl_view(packed, SL_F32, 5, s->shape), b = sl_view1(s->b, SL_F32, c->co);
    sl_conv3d(&cpu, &y, &x, c->history ? &h : NULL, &w, &b, c->residual ? &r : NULL, k);
    T_OK(sl_ctx_error(&cpu, &err));
    sl_device_free(&cpu, packed);
    sl_ctx_close(&cpu);
}

static void free_numbers(numbers *s)
{
    free(s->x), free(s->h), free(s->w), free(s->b), free(s->r), free(s->want);
}

/* ---- the fast kernel's tiles, on the host ---- */

/* What the copy engine brings: a box of 32 channels, 16 columns, `rows` rows of one
 * frame, zeros outside, in the swizzle, from byte `to` of shared memory on. */
static void emulate_box(float *shared, int to, const float *frames, int T, const conv_case *c,
                        int rows, int channel, int x, int y, int f)
{
    for (int row = 0; row < rows * SL_CONV_BLOCK_W; row++) {
        int iy = y + row / SL_CONV_BLOCK_W, ix = x + row % SL_CONV_BLOCK_W;
        bool there = f >= 0 && f < T && iy >= 0 && iy < c->H && ix >= 0 && ix < c->W;
        for (int k = 0; k < SL_CONV_KC; k++)
            shared[(to + sl_conv_swizzled(row, k)) / 2] =
                there ? frames[(((int64_t)f * c->H + iy) * c->W + ix) * c->ci + channel + k] : 0;
    }
}

/* What wgmma reads: element (row, k) of a matrix whose descriptor begins at byte `from`,
 * 8 rows 512 bytes apart; address bits 7 and 8 choose the piece. */
static float emulate_read(const float *shared, int from, int row, int k)
{
    int byte = from + row / 8 * 512 + row % 8 * 64 + k * 2;
    return shared[(byte ^ (byte >> 7 & 3) << 4) / 2];
}

static void emulate(const conv_case *c, int sms)
{
    numbers s;
    make_numbers(&s, c);
    sl_conv_tiles p;
    sl_conv_plan(&p, c->k, s.frames, s.oh, s.ow, c->ci, c->co, c->history && c->k->kt > 1, sms);
    const int64_t first = c->k->upsample ? sl_conv_direct_count(s.shape) : 0,
                  pitch = sl_conv_pitch(c->ci, (int64_t)p.kt * p.kh * p.kw);
    const int slots = sl_conv_slots(p.ft, p.kts), per = p.ft + p.kts - 1,
              weights = slots * SL_CONV_SLOT, matrix = p.n * SL_CONV_KC * 2;
    const int64_t last = (int64_t)sl_conv_packed_bytes(s.shape) / 2;
    float *shared = calloc((size_t)(weights + p.kts * matrix) / 2, sizeof *shared),
          *y = malloc(sizeof *y * (size_t)s.ny);
    float *sums = malloc(sizeof *sums * (size_t)(4 * SL_CONV_BLOCK * p.n));
    assert_true(shared && y && sums);
    for (int64_t i = 0; i < s.ny; i++) y[i] = NAN;
    int64_t written = 0;

    for (int tile = 0; tile < sl_conv_tile_count(&p); tile++) {
        const sl_conv_tile t = sl_conv_tile_at(&p, tile);
        memset(sums, 0, sizeof *sums * (size_t)(4 * SL_CONV_BLOCK * p.n));
        for (int step = 0; step < sl_conv_steps(&p); step++) {
            int dt, dx, chunk;
            sl_conv_step_at(&p, step, &dt, &dx, &chunk);
            for (int g = 0; g < SL_CONV_BLOCKS / p.ft; g++)
                for (int j = 0; j < per; j++) {
                    int frame, row, col;
                    sl_conv_place_at(&p, t.place + g, &frame, &row, &col);
                    int f = sl_conv_slot_frame(&p, frame, j, dt);
                    bool past = f < 0 && p.has_history;
                    emulate_box(shared, (g * per + j) * SL_CONV_SLOT, past ? s.h : s.x,
                                past ? s.past : c->T, c, SL_CONV_BLOCK_H + p.kh - 1,
                                chunk * SL_CONV_KC, col - (p.pad - t.phase_x) + dx,
                                row - (p.pad - t.phase_y), past ? f + p.before : f);
                }
            for (int dy = 0; dy < p.kh; dy++) {
                for (int d = 0; d < p.kts; d++)
                    for (int n = 0; n < p.n; n++)
                        for (int k = 0; k < SL_CONV_KC; k++) {
                            int64_t at = first + (t.weight_row + n) * pitch +
                                         sl_conv_weight_k(&p, dt + d, dy, dx, chunk) + k;
                            assert_true(at < last);
                            shared[(weights + d * matrix + sl_conv_swizzled(n, k)) / 2] =
                                sl_conv_packed_value(s.w, s.shape, at);
                        }
                for (int block = 0; block < 4; block++)
                    for (int d = 0; d < p.kts; d++)
                        for (int half = 0; half < 2; half++)
                            for (int row = 0; row < 64; row++)
                                for (int n = 0; n < p.n; n++) {
                                    int from =
                                        sl_conv_slot_of(p.ft, p.kts, block, d) * SL_CONV_SLOT +
                                        dy * SL_CONV_ROW + half * 32;
                                    float sum = 0;
                                    for (int k = 0; k < 16; k++)
                                        sum += emulate_read(shared, from, row, k) *
                                               emulate_read(shared,
                                                            weights + d * matrix + half * 32, n, k);
                                    sums[(block * 64 + row) * p.n + n] += sum;
                                }
            }
        }
        for (int block = 0; block < 4; block++)
            for (int row = 0; row < 64; row++)
                for (int n = 0; n < p.n; n++) {
                    int frame, by, bx;
                    sl_conv_place_at(&p, t.place + block / p.ft, &frame, &by, &bx);
                    frame += block % p.ft, by += row / SL_CONV_BLOCK_W, bx += row % SL_CONV_BLOCK_W;
                    if (frame >= p.frames || by >= p.grid_h || bx >= p.grid_w || t.n0 + n >= p.co)
                        continue;
                    int64_t at = (((int64_t)frame * p.oh + by * p.step + t.phase_y) * p.ow +
                                  bx * p.step + t.phase_x) *
                                     p.co +
                                 t.n0 + n;
                    y[at] = sums[(block * 64 + row) * p.n + n] + s.b[t.n0 + n] + s.r[at];
                    written++;
                }
    }
    if (written != s.ny)
        fail_msg("%s: %lld elements written, want %lld", case_name(c), (long long)written,
                 (long long)s.ny);
    double e = t_rel_l2(y, s.want, s.ny);
    if (!(e <= 1e-5))
        fail_msg("%s: the tiles' arithmetic gives relative L2 %.3g, want <= 1e-5", case_name(c), e);
    free(shared), free(y), free(sums);
    free_numbers(&s);
}

static void test_tiles_give_the_convolution(void **state)
{
    (void)state;
    emulate(&(conv_case){1, 5, 17, 32, 96, &C333, 0, NONE}, 132);
    emulate(&(conv_case){1, 3, 18, 32, 96, &C333, 1, APART}, 132);
    emulate(&(conv_case){2, 5, 7, 32, 3, &C333, 1, NONE}, 132);
    emulate(&(conv_case){3, 5, 17, 64, 3, &C333, 1, NONE}, 132);
    emulate(&(conv_case){4, 9, 19, 32, 3, &C333, 0, APART}, 132);
    emulate(&(conv_case){4, 5, 17, 32, 192, &TIME, 1, NONE}, 1);
    emulate(&(conv_case){4, 5, 3, 32, 3, &TIME_HALF, 1, NONE}, 132);
    emulate(&(conv_case){3, 4, 16, 96, 96, &C111, 0, NONE}, 132);
    emulate(&(conv_case){2, 6, 17, 32, 192, &DOUBLE, 0, NONE}, 132);
    emulate(&(conv_case){1, 1, 1, 32, 8, &DOUBLE, 0, APART}, 132);
}

/* ---- both kernels against the CPU body ---- */

static int failed;

static void *to_device(sl_ctx *ctx, const float *x, int64_t n)
{
    sl_bf16 *host = malloc(sizeof *host * (size_t)(n ? n : 1));
    void *device = sl_device_alloc(ctx, sizeof *host * (size_t)(n ? n : 1));
    assert_non_null(host);
    if (device && n) {
        for (int64_t i = 0; i < n; i++) host[i] = sl_to_bf16(x[i]);
        sl_tensor t = sl_view1(device, SL_BF16, n);
        sl_upload(ctx, &t, host);
        sl_sync(ctx);
    }
    free(host);
    return device;
}

enum { GUARD = 4096 };
#define GUARD_VALUE 12345.0f

/* Print what is wrong with the results, if anything: NaN is what y held before. */
static void judge(const conv_case *c, const numbers *s, const float *got, const char *kernel)
{
    double rms = 0, error = t_rel_l2(got, s->want, s->ny), worst = 0;
    int64_t bad = 0, first = -1, unwritten = 0;
    for (int64_t i = 0; i < s->ny; i++) rms += (double)s->want[i] * s->want[i];
    rms = sqrt(rms / (double)s->ny);
    /* One rounding to bf16 of a sum whose order differs; doubled frames: weights that
     * were added up and rounded, too. */
    const double absolute = (c->k->upsample ? 0.02 : 1e-4) * rms;
    for (int64_t i = 0; i < s->ny; i++) {
        double e = fabs((double)got[i] - s->want[i]);
        if (isnan(got[i])) unwritten++;
        if (!(e <= worst) && !isnan(e)) worst = e;
        if (e <= fabs((double)s->want[i]) / 256 + absolute) continue;
        if (first < 0) first = i;
        bad++;
    }
    int64_t guard = 0;
    while (guard < GUARD && got[s->ny + guard] == sl_from_bf16(sl_to_bf16(GUARD_VALUE))) guard++;
    if (!bad && error <= 4e-3 && guard == GUARD) return;
    failed++;
    printf("FAIL %-6s %s: relative L2 %.3g (want <= 4e-3), largest difference %.3g, %lld of %lld "
           "wrong, %lld NaN\n",
           kernel, case_name(c), error, worst, (long long)bad, (long long)s->ny,
           (long long)unwritten);
    if (guard < GUARD) printf("     element %lld behind y was overwritten\n", (long long)guard);
    for (int shown = 0; first >= 0 && first < s->ny && shown < 6; first++) {
        if (fabs((double)got[first] - s->want[first]) <=
            fabs((double)s->want[first]) / 256 + absolute)
            continue;
        int64_t pixel = first / c->co;
        printf("     y[%lld, %lld, %lld, %lld] = %g, want %g\n", (long long)(pixel / s->ow / s->oh),
               (long long)(pixel / s->ow % s->oh), (long long)(pixel % s->ow),
               (long long)(first % c->co), got[first], s->want[first]);
        shown++;
    }
}

/* A context whose convolutions will use this kernel: they look at the variable once, when
 * the first of them runs. */
static void choose(sl_ctx *ctx, const char *kernel, bool open)
{
    if (*kernel) setenv("SLUICE_CONV", kernel, 1);
    else unsetenv("SLUICE_CONV");
    if (open) T_OK(sl_ctx_open(ctx, plugin->ops, 0, &err));
}

static void run_case(sl_ctx *ctx, const conv_case *c, const char *kernel)
{
    numbers s;
    make_numbers(&s, c);
    float *got = malloc(sizeof *got * (size_t)(s.ny + GUARD));
    sl_bf16 *bits = malloc(sizeof *bits * (size_t)(s.ny + GUARD));
    assert_true(got && bits);
    for (int64_t i = 0; i < s.ny + GUARD; i++)
        got[i] = i >= s.ny ? GUARD_VALUE : c->residual == ALIAS ? s.r[i] : NAN;

    void *x = to_device(ctx, s.x, s.nx), *h = to_device(ctx, s.h, s.nh),
         *b = to_device(ctx, s.b, c->co), *y = to_device(ctx, got, s.ny + GUARD);
    void *r = c->residual == APART ? to_device(ctx, s.r, s.ny) : NULL;
    void *w = sl_device_alloc(ctx, ctx->ops->packed_conv_bytes(ctx, s.shape));
    if (sl_ok(ctx)) ctx->ops->pack_conv(ctx, w, s.w, s.shape);
    sl_sync(ctx);
    sl_tensor tx = sl_view4(x, SL_BF16, c->T, c->H, c->W, c->ci),
              th = sl_view4(h, SL_BF16, s.past, c->H, c->W, c->ci);
    sl_tensor ty = sl_view4(y, SL_BF16, s.frames, s.oh, s.ow, c->co),
              tr = sl_view4(r, SL_BF16, s.frames, s.oh, s.ow, c->co);
    sl_tensor tw = sl_view(w, SL_BF16, 5, s.shape), tb = sl_view1(b, SL_BF16, c->co),
              all = sl_view1(y, SL_BF16, s.ny + GUARD);
    sl_conv3d(ctx, &ty, &tx, c->history ? &th : NULL, &tw, &tb,
              c->residual == ALIAS ? &ty
              : c->residual        ? &tr
                                   : NULL,
              c->k);
    sl_download(ctx, bits, &all);
    if (sl_ctx_error(ctx, &err)) {
        printf("FAIL %-6s %s: %s\n", kernel, case_name(c), err.msg);
        failed++;
    } else {
        for (int64_t i = 0; i < s.ny + GUARD; i++) got[i] = sl_from_bf16(bits[i]);
        judge(c, &s, got, kernel);
    }
    sl_device_free(ctx, x), sl_device_free(ctx, h), sl_device_free(ctx, b), sl_device_free(ctx, y),
        sl_device_free(ctx, r), sl_device_free(ctx, w);
    free(got), free(bits);
    free_numbers(&s);
}

/* The autoencoder's own channels first, the simplest shapes first within each kind: the
 * first line that fails says most. */
static const conv_case CASES[] = {
    {1, 4, 16, 32, 96, &C111, 0, NONE},         {1, 4, 64, 32, 96, &C111, 0, NONE},
    {1, 8, 16, 64, 192, &C111, 0, NONE},        {1, 17, 23, 96, 96, &C111, 0, NONE},
    {1, 4, 16, 32, 96, &C333, 0, NONE},         {1, 4, 16, 32, 96, &C333, 1, NONE},
    {4, 4, 16, 32, 96, &TIME, 1, NONE},         {4, 17, 23, 96, 96, &C333, 1, NONE},
    {4, 17, 23, 96, 96, &C333, 0, NONE},        {4, 17, 23, 96, 96, &C333, 1, APART},
    {4, 17, 23, 96, 96, &C333, 1, ALIAS},       {4, 40, 72, 96, 96, &C333, 1, ALIAS},
    {1, 40, 72, 96, 96, &C333, 0, ALIAS},       {2, 17, 23, 96, 96, &C333, 1, NONE},
    {3, 17, 23, 96, 96, &C333, 1, ALIAS},       {1, 1, 1, 96, 96, &C333, 1, NONE},
    {4, 1, 50, 96, 96, &C333, 0, NONE},         {4, 17, 23, 96, 3, &C333, 1, NONE},
    {1, 17, 23, 96, 3, &C333, 0, NONE},         {2, 5, 7, 96, 3, &C333, 1, APART},
    {4, 17, 23, 192, 192, &C333, 1, ALIAS},     {2, 17, 23, 192, 192, &C333, 1, NONE},
    {1, 17, 23, 192, 192, &C333, 1, APART},     {4, 40, 72, 192, 192, &C333, 1, NONE},
    {2, 17, 23, 192, 384, &C333, 1, NONE},      {1, 17, 23, 384, 384, &C333, 1, ALIAS},
    {2, 17, 23, 384, 384, &C333, 0, NONE},      {2, 17, 23, 192, 384, &C111, 0, NONE},
    {2, 17, 23, 96, 192, &C111, 0, NONE},       {1, 17, 23, 384, 1152, &C111, 0, NONE},
    {1, 17, 23, 384, 384, &C111, 0, ALIAS},     {1, 17, 23, 384, 768, &TIME, 0, NONE},
    {2, 17, 23, 384, 768, &TIME, 1, NONE},      {1, 4, 16, 32, 96, &DOUBLE, 0, NONE},
    {4, 17, 23, 192, 96, &DOUBLE, 0, NONE},     {2, 17, 23, 384, 192, &DOUBLE, 0, NONE},
    {1, 40, 72, 192, 96, &DOUBLE, 0, NONE},     {1, 1, 1, 32, 96, &DOUBLE, 0, NONE},
    {2, 18, 23, 96, 96, &HALF, 0, NONE},        {1, 17, 24, 192, 192, &HALF, 0, NONE},
    {1, 40, 72, 96, 96, &HALF, 0, NONE},        {4, 17, 23, 192, 192, &TIME_HALF, 1, NONE},
    {2, 17, 23, 384, 384, &TIME_HALF, 1, NONE}, {1, 40, 72, 3, 96, &C333, 0, NONE},
    {2, 17, 23, 3, 96, &C333, 1, NONE},         {1, 17, 23, 16, 384, &C333, 1, NONE},
    {1, 17, 23, 16, 16, &C111, 0, NONE},        {1, 17, 23, 384, 32, &C333, 1, NONE},
    {1, 17, 23, 32, 32, &C111, 0, NONE},        {4, 17, 23, 12, 12, &C333, 1, ALIAS},
    {4, 17, 23, 12, 3, &C333, 1, NONE},         {2, 17, 23, 24, 12, &DOUBLE, 0, NONE},
    {2, 17, 23, 12, 24, &C333, 1, NONE},        {2, 18, 23, 12, 12, &HALF, 0, NONE},
    {4, 17, 23, 20, 20, &C333, 0, APART},       {4, 17, 23, 16, 16, &C333, 1, ALIAS},
    {2, 17, 23, 32, 16, &DOUBLE, 0, NONE},      {2, 17, 23, 32, 64, &C333, 1, NONE},
    {1, 17, 23, 64, 128, &TIME, 1, NONE},       {4, 17, 23, 24, 24, &TIME_HALF, 1, NONE},
    {1, 17, 23, 16, 3, &C333, 0, NONE}, /* Wan2.2's widths, and its shortcuts */
    {1, 17, 23, 12, 160, &C333, 0, NONE},       {1, 18, 24, 160, 160, &HALF, 0, ALIAS},
    {4, 17, 23, 64, 64, &TIME_HALF, 1, ALIAS},  {1, 17, 23, 160, 320, &C111, 0, NONE},
    {1, 17, 23, 48, 256, &C333, 1, NONE},       {2, 9, 11, 256, 256, &DOUBLE, 0, ALIAS},
    {2, 9, 11, 96, 96, &DOUBLE, 0, ALIAS},      {4, 17, 23, 256, 12, &C333, 1, NONE},
};

static void test_kernels_match_the_cpu(void **state)
{
    static const char *const kernels[] = {"simple", "", "wide"};
    (void)state;
    for (size_t k = 0; k < 3; k++) {
        int before = failed;
        sl_ctx ctx;
        choose(&ctx, kernels[k], true);
        for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
            if (k < 2 || CASES[i].co % 192 == 0) run_case(&ctx, &CASES[i], kernels[k]);
        sl_ctx_close(&ctx);
        printf("%s kernel: %d cases failed\n", *kernels[k] ? kernels[k] : "default",
               failed - before);
    }
    if (failed) fail_msg("%d cases failed, see above", failed);
}

/* Frames in one chunk and one by one: the same bits where the same kernel runs, one
 * rounding apart where another does. */
static void test_chunks_agree(void **state)
{
    enum { T = 4, H = 17, W = 23, C = 96, FRAME = H * W * C };
    (void)state;
    sl_ctx ctx;
    const int64_t shape[5] = {C, C, 3, 3, 3};
    choose(&ctx, "", true);
    float *fx = random_bf16(T * FRAME, 1, 1), *fw = random_bf16((int64_t)C * C * 27, 0.03f, 2),
          *fb = random_bf16(C, 1, 3);
    sl_bf16 *whole = malloc(sizeof *whole * T * FRAME), *parts = malloc(sizeof *parts * T * FRAME);
    float *a = malloc(sizeof *a * T * FRAME), *b = malloc(sizeof *b * T * FRAME);
    assert_true(whole && parts && a && b);
    void *x = to_device(&ctx, fx, T * FRAME), *bias = to_device(&ctx, fb, C),
         *y = to_device(&ctx, fx, T * FRAME), *past = to_device(&ctx, fx, 2 * FRAME);
    void *w = sl_device_alloc(&ctx, ctx.ops->packed_conv_bytes(&ctx, shape));
    if (sl_ok(&ctx)) ctx.ops->pack_conv(&ctx, w, fw, shape);
    sl_tensor tx = sl_view4(x, SL_BF16, T, H, W, C), ty = sl_view4(y, SL_BF16, T, H, W, C),
              th = sl_view4(past, SL_BF16, 2, H, W, C);
    sl_tensor tw = sl_view(w, SL_BF16, 5, shape), tb = sl_view1(bias, SL_BF16, C);
    sl_zero(&ctx, &th);
    sl_conv3d(&ctx, &ty, &tx, NULL, &tw, &tb, NULL, &C333);
    sl_download(&ctx, whole, &ty);
    for (int t = 0; t < T; t++) {
        sl_tensor in = sl_rows(&tx, t, 1), out = sl_rows(&ty, t, 1);
        sl_conv3d(&ctx, &out, &in, &th, &tw, &tb, NULL, &C333);
        sl_conv_history(&ctx, &th, &in);
    }
    sl_download(&ctx, parts, &ty);
    T_OK(sl_ctx_error(&ctx, &err));
    for (int i = 0; i < T * FRAME; i++)
        a[i] = sl_from_bf16(whole[i]), b[i] = sl_from_bf16(parts[i]);
    T_REL(a, b, T * FRAME, 4e-3);
    sl_device_free(&ctx, x), sl_device_free(&ctx, bias), sl_device_free(&ctx, y),
        sl_device_free(&ctx, past), sl_device_free(&ctx, w);
    sl_ctx_close(&ctx);
    free(fx), free(fw), free(fb), free(whole), free(parts), free(a), free(b);
}

/* ---- speed ---- */

typedef struct {
    conv_case c;
    /* in the decoding of one latent frame that is not the video's first; 0: the encoder's */
    int count;
} bench_layer;

static const bench_layer LAYERS[] = {
    {{4, 720, 1280, 96, 96, &C333, 1, NONE}, 3},
    {{4, 720, 1280, 96, 96, &C333, 1, ALIAS}, 3},
    {{4, 720, 1280, 96, 3, &C333, 1, NONE}, 1},
    {{4, 360, 640, 192, 96, &DOUBLE, 0, NONE}, 1},
    {{4, 360, 640, 192, 192, &C333, 1, NONE}, 3},
    {{4, 360, 640, 192, 192, &C333, 1, ALIAS}, 3},
    {{4, 180, 320, 384, 192, &DOUBLE, 0, NONE}, 1},
    {{2, 180, 320, 384, 384, &C333, 1, NONE}, 5},
    {{2, 180, 320, 192, 384, &C333, 1, NONE}, 1},
    {{2, 180, 320, 192, 384, &C111, 0, NONE}, 1},
    {{2, 180, 320, 384, 768, &TIME, 1, NONE}, 1},
    {{2, 90, 160, 384, 192, &DOUBLE, 0, NONE}, 1},
    {{1, 90, 160, 384, 384, &C333, 1, NONE}, 10},
    {{1, 90, 160, 384, 768, &TIME, 1, NONE}, 1},
    {{1, 90, 160, 384, 1152, &C111, 0, NONE}, 1},
    {{1, 90, 160, 384, 384, &C111, 0, ALIAS}, 1},
    {{1, 90, 160, 16, 384, &C333, 1, NONE}, 1},
    {{1, 720, 1280, 96, 96, &C333, 0, NONE}, 0},
    {{3, 720, 1280, 96, 96, &C333, 1, NONE}, 0},
    {{1, 720, 1280, 3, 96, &C333, 0, NONE}, 0},
    {{4, 720, 1280, 96, 96, &HALF, 0, NONE}, 0},
    {{4, 360, 640, 192, 192, &HALF, 0, NONE}, 0},
    {{4, 180, 320, 192, 192, &TIME_HALF, 1, NONE}, 0},
    {{1, 90, 160, 384, 32, &C333, 1, NONE}, 0},
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *random_device(sl_ctx *ctx, int64_t n, float spread, uint64_t seed)
{
    void *p = sl_device_alloc(ctx, 2 * (size_t)n);
    if (p) plugin->random(ctx, p, SL_BF16, n, 0, spread, seed);
    return p;
}

/* Seconds of one call, the mean over some 60 ms after two calls to warm up; negative
 * after an error. */
static double time_layer(sl_ctx *ctx, const conv_case *c)
{
    const sl_conv *k = c->k;
    const int up = k->upsample ? 2 : 1, edge = 2 * k->pad + k->pad_end,
              past = k->stride_t == 2 ? 1 : k->kt - 1;
    const int64_t oh = (c->H * up + edge - k->kh) / k->stride_hw + 1,
                  ow = (c->W * up + edge - k->kw) / k->stride_hw + 1,
                  frame = (int64_t)c->H * c->W * c->ci;
    const int64_t shape[5] = {c->co, c->ci, k->kt, k->kh, k->kw},
                  ny = c->T / k->stride_t * oh * ow * c->co;
    const float spread = sqrtf(3.0f / (float)(c->ci * k->kt * k->kh * k->kw));
    int64_t nw = 1;
    for (int i = 0; i < 5; i++) nw *= shape[i];
    float *host = random_bf16(nw, spread, 3);
    void *x = random_device(ctx, c->T * frame, 1, 1),
         *h = random_device(ctx, (past ? past : 1) * frame, 1, 2),
         *y = random_device(ctx, ny, 1, 4);
    void *b = random_device(ctx, c->co, 1, 5),
         *w = sl_device_alloc(ctx, ctx->ops->packed_conv_bytes(ctx, shape));
    if (sl_ok(ctx)) ctx->ops->pack_conv(ctx, w, host, shape);
    sl_tensor tx = sl_view4(x, SL_BF16, c->T, c->H, c->W, c->ci),
              th = sl_view4(h, SL_BF16, past, c->H, c->W, c->ci);
    sl_tensor ty = sl_view4(y, SL_BF16, c->T / k->stride_t, oh, ow, c->co),
              tw = sl_view(w, SL_BF16, 5, shape), tb = sl_view1(b, SL_BF16, c->co);
    double once = 0, seconds = 0;
    int repeats = 2;
    for (int pass = 0; pass < 3 && sl_ok(ctx);
         /* two to warm up, one to see how long it takes, then as many as 60 ms hold */
         pass++) {
        sl_sync(ctx);
        double t = now();
        for (int i = 0; i < repeats; i++)
            sl_conv3d(ctx, &ty, &tx, c->history ? &th : NULL, &tw, &tb, c->residual ? &ty : NULL,
                      k);
        sl_sync(ctx);
        once = (now() - t) / repeats;
        seconds = once;
        repeats = pass ? (int)fmin(200, fmax(3, 0.06 / once)) : 1;
    }
    free(host);
    sl_device_free(ctx, x), sl_device_free(ctx, h), sl_device_free(ctx, y), sl_device_free(ctx, b),
        sl_device_free(ctx, w);
    return sl_ctx_error(ctx, &err) ? -1 : seconds;
}

static int bench(void)
{
    static const char *const kernels[] = {"", "simple"};
    sl_ctx ctx[2];
    for (int k = 0; k < 2; k++)
        if (sl_ctx_open(&ctx[k], plugin->ops, 0, &err)) {
            fprintf(stderr, "gpu_conv: %s\n", err.msg);
            return 1;
        }
    double sum[2] = {0}, operations[2] = {0};
    printf("%-52s %s\n", "convolution (operations as written)",
           "default kernel: ms, TFLOP/s, % of 990 | SLUICE_CONV=simple");
    for (size_t i = 0; i < sizeof LAYERS / sizeof *LAYERS; i++) {
        const conv_case *c = &LAYERS[i].c;
        const int up = c->k->upsample ? 4 : 1;
        double work = 2.0 * c->T * c->H * c->W * up / c->k->stride_t /
                      (c->k->stride_hw * c->k->stride_hw) * c->co * c->ci * c->k->kt * c->k->kh *
                      c->k->kw;
        printf("%-52s", case_name(c));
        for (int k = 0; k < 2; k++) {
            choose(&ctx[k], kernels[k], false);
            double s = time_layer(&ctx[k], c);
            if (s < 0) printf(" %s", err.msg);
            else
                printf(" %s%8.3f %6.1f %5.1f%%", k ? "|" : "", 1e3 * s, 1e-12 * work / s,
                       1e-12 * work / s / 9.9);
            sum[k] += LAYERS[i].count * s;
            operations[k] += LAYERS[i].count * work;
        }
        printf(LAYERS[i].count ? "  x %d\n" : "\n", LAYERS[i].count);
        fflush(stdout);
    }
    for (int k = 0; k < 2; k++)
        printf("%s: convolutions of one latent frame %.2f ms, %.1f TFLOP/s; of 21 (81 frames), the "
               "first a quarter: %.2f s\n",
               k ? "simple" : "default", 1e3 * sum[k], 1e-12 * operations[k] / sum[k],
               20.25 * sum[k]);
    for (int k = 0; k < 2; k++) sl_ctx_close(&ctx[k]);
    return 0;
}

int main(int argc, char **argv)
{
    const bool timing = argc > 1 && !strcmp(argv[1], "--bench");
    int bad = 0;
    if (!timing) {
        const struct CMUnitTest host[] = {cmocka_unit_test(test_tiles_give_the_convolution)};
        bad = cmocka_run_group_tests_name("conv, tiles on the host", host, NULL, NULL);
    }
    plugin = sl_plugin_cuda(&err);
    if (!plugin || plugin->devices() == 0) {
        printf("gpu_conv: skipped: %s\n", plugin ? "no GPU" : err.msg);
        return bad;
    }
    if (plugin->use(0, &err)) {
        fprintf(stderr, "gpu_conv: %s\n", err.msg);
        return 1;
    }
    if (timing) return bench();
    const struct CMUnitTest gpu[] = {cmocka_unit_test(test_kernels_match_the_cpu),
                                     cmocka_unit_test(test_chunks_agree)};
    return bad + cmocka_run_group_tests_name("conv", gpu, NULL, NULL);
}
