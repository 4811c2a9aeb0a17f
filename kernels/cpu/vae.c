/* vae.c - the CPU body of the video autoencoder's operations: causal convolution, its
 * norm, and the moves around them.
 *
 * The convolution is direct: nothing is gathered into a matrix first. A tile of PIXELS
 * output pixels times one panel of output channels is held in registers while the loop
 * runs over taps and input channels; each pixel reads its input through a pointer of its
 * own per tap, so borders, history, stride and upsampling cost nothing but the choice of
 * that pointer, and taps that read only zeros are left out. Every output is one sum in
 * the order (kt, kh, kw, Ci), whatever the tile or the chunk: equal inputs give equal
 * bits. On an EPYC with AVX-512 it does 96 to 110 GFLOP/s a core from 32 channels on,
 * OpenBLAS's sgemm 106 (tests/bench_vae.c). */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/vmath.h"

enum {
    /* two vectors each; with two of weights and a broadcast they fill the registers */
    PIXELS = REGISTERS == 32 ? 12 : 6,
    PANEL = 2 * LANES, /* output channels in two vectors */
    TAPS = 27,
    TILES = 8,
    BLOCK = TILES * PIXELS
};
/* operations that one thread does sooner than several wake up and meet */
enum { FEW = 1 << 18 };

/* ---- weights ---- */

/* Packed: panels of PANEL output channels (the last of LANES if that is enough), each
 * [kt, kh, kw, Ci, width], missing channels zero; behind them kw * Ci zeros, which pixels
 * outside the picture read. */
static int64_t panels(int64_t co)
{
    return (co + PANEL - 1) / PANEL;
}

static int panel_width(int64_t co, int64_t panel)
{
    return co - panel * PANEL <= LANES ? LANES : PANEL;
}

static int64_t packed_floats(const int64_t s[5]) /* without the zeros */
{
    int64_t last = panels(s[0]) - 1;
    return s[1] * s[2] * s[3] * s[4] * (last * PANEL + panel_width(s[0], last));
}

size_t sl_cpu_packed_conv_bytes(sl_ctx *ctx, const int64_t shape[5])
{
    (void)ctx;
    return sizeof(float) * (size_t)(packed_floats(shape) + shape[4] * shape[1]);
}

void sl_cpu_pack_conv(sl_ctx *ctx, void *dst, const float *src, const int64_t shape[5])
{
    int64_t co = shape[0], ci = shape[1], taps = shape[2] * shape[3] * shape[4];
    (void)ctx;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels(co); p++) {
        int width = panel_width(co, p);
        float *d = (float *)dst + p * PANEL * taps * ci;
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t c = 0; c < ci; c++)
                for (int j = 0; j < width; j++) {
                    int64_t o = p * PANEL + j;
                    *d++ = o < co ? src[(o * ci + c) * taps + tap] : 0;
                }
    }
    memset((float *)dst + packed_floats(shape), 0, sizeof(float) * (size_t)(shape[4] * ci));
}

/* ---- convolution ---- */

/* What a tile of pixels reads: runs of `length` consecutive floats per pixel, met by the
 * panel's rows from `row` on. */
typedef struct {
    int count;
    struct {
        int row, length;
        const float *from[PIXELS];
    } run[TAPS];
} tile_input;

/* sums[i][:] = sum over runs of from[i][c] * panel[row + c][:], for a panel of two
 * vectors and for one of one. */
static void multiply_wide(float sums[PIXELS][PANEL], const tile_input *in, const float *panel)
{
    vec acc[PIXELS][2];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) acc[i][0] = acc[i][1] = (vec){0};
    for (int r = 0; r < in->count; r++) {
        const float *w = panel + (int64_t)in->run[r].row * PANEL;
        const float *const *from = in->run[r].from;
        for (int64_t c = 0; c < in->run[r].length; c++, w += PANEL) {
            vec w0 = *(const vec *)w, w1 = *(const vec *)(w + LANES);
#pragma GCC unroll 16
            for (int i = 0; i < PIXELS; i++) {
                vec x = from[i][c] - (vec){0};
                acc[i][0] = FMA(x, w0, acc[i][0]);
                acc[i][1] = FMA(x, w1, acc[i][1]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) {
        *(vec *)sums[i] = acc[i][0];
        *(vec *)(sums[i] + LANES) = acc[i][1];
    }
}

static void multiply_narrow(float sums[PIXELS][PANEL], const tile_input *in, const float *panel)
{
    vec acc[PIXELS];
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) acc[i] = (vec){0};
    for (int r = 0; r < in->count; r++) {
        const float *w = panel + (int64_t)in->run[r].row * LANES;
        const float *const *from = in->run[r].from;
        for (int64_t c = 0; c < in->run[r].length; c++, w += LANES) {
            vec w0 = *(const vec *)w;
#pragma GCC unroll 16
            for (int i = 0; i < PIXELS; i++) acc[i] = FMA(from[i][c] - (vec){0}, w0, acc[i]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < PIXELS; i++) *(vec *)sums[i] = acc[i];
}

typedef struct {
    const float *x, *history, *zeros; /* history NULL: zeros */
    int64_t before;                   /* frames that the first output sees before x's first */
    int64_t H, W, C;                  /* of x as stored */
    int64_t h, w;                     /* of x as the kernel sees it: doubled by upsample */
    int64_t out_h, out_w, pixels;     /* of y; pixels = T * out_h * out_w */
    const sl_conv *k;
} conv_job;

/* Where a row of input frame f begins; NULL outside the picture or before the video. */
static const float *input_row(const conv_job *j, int64_t f, int64_t row)
{
    if (row < 0 || row >= j->h) return NULL;
    row >>= j->k->upsample;
    if (f >= 0) return j->x + (f * j->H + row) * j->W * j->C;
    return j->history ? j->history + ((f + j->before) * j->H + row) * j->W * j->C : NULL;
}

/* The runs of output pixels [first, first + PIXELS), those past the end reading what the
 * last one reads. */
static void find_input(tile_input *in, const conv_job *j, int64_t first)
{
    const sl_conv *k = j->k;
    int64_t f0[PIXELS], y0[PIXELS], x0[PIXELS];
    /* no pixel's row of taps leaves the picture: kw taps are one run */
    bool inside = !k->upsample;
    for (int i = 0; i < PIXELS; i++) {
        int64_t p = first + i < j->pixels ? first + i : j->pixels - 1;
        f0[i] = p / (j->out_h * j->out_w) * k->stride_t - j->before;
        y0[i] = p / j->out_w % j->out_h * k->stride_hw - k->pad;
        x0[i] = p % j->out_w * k->stride_hw - k->pad;
        inside = inside && x0[i] >= 0 && x0[i] + k->kw <= j->w;
    }
    int step = inside ? k->kw : 1;
    in->count = 0;
    for (int dt = 0; dt < k->kt; dt++)
        for (int dy = 0; dy < k->kh; dy++) {
            const float *row[PIXELS];
            int rows = 0;
            for (int i = 0; i < PIXELS; i++)
                rows += (row[i] = input_row(j, f0[i] + dt, y0[i] + dy)) != NULL;
            if (!rows) continue;
            for (int dx = 0; dx < k->kw; dx += step) {
                const float **from = in->run[in->count].from;
                int reading = 0;
                for (int i = 0; i < PIXELS; i++) {
                    int64_t x = x0[i] + dx;
                    bool there = row[i] && x >= 0 && x < j->w;
                    from[i] = there ? row[i] + (x >> k->upsample) * j->C : j->zeros;
                    reading += there;
                }
                if (!reading) continue;
                in->run[in->count].row = (int)(((dt * k->kh + dy) * k->kw + dx) * j->C);
                in->run[in->count++].length = (int)(step * j->C);
            }
        }
}

void sl_cpu_conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                   const sl_conv *conv)
{
    const int64_t co = y->shape[3], rows = w->shape[1] * conv->kt * conv->kh * conv->kw;
    const float *weights = w->data, *bias = b ? b->data : NULL,
                *add = residual ? residual->data : NULL;
    float *out = y->data;
    const conv_job job = {
        .x = x->data,
        .history = history ? history->data : NULL,
        .zeros = weights + packed_floats(w->shape),
        .before = conv->stride_t == 1 ? conv->kt - 1 : 1,
        .H = x->shape[1],
        .W = x->shape[2],
        .C = x->shape[3],
        .h = x->shape[1] << conv->upsample,
        .w = x->shape[2] << conv->upsample,
        .out_h = y->shape[1],
        .out_w = y->shape[2],
        .pixels = y->shape[0] * y->shape[1] * y->shape[2],
        .k = conv,
    };
    if (conv->kt * conv->kh * conv->kw > TAPS || rows > INT32_MAX) {
        sl_ctx_fail(ctx, SL_SHAPE, "conv3d: kernel %d x %d x %d, want at most %d taps", conv->kt,
                    conv->kh, conv->kw, TAPS);
        return;
    }
    if (job.pixels <= 0) return;

    /* Work is cut into blocks of pixels; where those are few, also into groups of panels. */
    int64_t blocks = (job.pixels + BLOCK - 1) / BLOCK, np = panels(co),
            wanted = 4 * sl_cpu_threads();
    int64_t groups = blocks >= wanted ? 1 : (wanted + blocks - 1) / blocks;
    if (groups > np) groups = np;
#pragma omp parallel for schedule(dynamic) if (job.pixels * co * rows > FEW)
    for (int64_t item = 0; item < blocks * groups; item++) {
        int64_t first = item / groups * BLOCK, group = item % groups;
        int64_t count = job.pixels - first < BLOCK ? job.pixels - first : BLOCK;
        tile_input in[TILES];
        float sums[PIXELS][PANEL];
        /* where each pixel's taps lie: the same for all panels */
        for (int64_t p = 0; p < count; p += PIXELS) find_input(&in[p / PIXELS], &job, first + p);
        for (int64_t panel = np * group / groups; panel < np * (group + 1) / groups; panel++) {
            int64_t c0 = panel * PANEL, columns = co - c0 < PANEL ? co - c0 : PANEL;
            for (int64_t p = 0; p < count; p += PIXELS) {
                int64_t n = count - p < PIXELS ? count - p : PIXELS;
                if (panel_width(co, panel) == PANEL)
                    multiply_wide(sums, &in[p / PIXELS], weights + c0 * rows);
                else multiply_narrow(sums, &in[p / PIXELS], weights + c0 * rows);
                /* bias, then residual */
                for (int64_t i = 0; i < n; i++) {
                    int64_t at = (first + p + i) * co + c0;
                    for (int64_t c = 0; c < columns; c++) {
                        float v = sums[i][c] + (bias ? bias[c0 + c] : 0);
                        out[at + c] = add ? v + add[at + c] : v;
                    }
                }
            }
        }
    }
}

void sl_cpu_conv_history(sl_ctx *ctx, const sl_tensor *history, const sl_tensor *x)
{
    int64_t n = history->shape[0], t = x->shape[0], keep = t < n ? n - t : 0;
    int64_t frame = n ? sl_count(history) / n : 0;
    float *h = history->data;
    const float *s = x->data;
    (void)ctx;
    if (keep) memmove(h, h + t * frame, sizeof *h * (size_t)(keep * frame));
#pragma omp parallel for schedule(static) if ((n - keep) * frame > FEW)
    for (int64_t f = keep; f < n; f++)
        memcpy(h + f * frame, s + (t - n + f) * frame, sizeof *h * (size_t)frame);
}

/* ---- norm ---- */

void sl_cpu_vae_norm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *gamma,
                     bool silu)
{
    int64_t c = x->shape[x->rank - 1], pixels = c ? sl_count(x) / c : 0;
    const float *g = gamma->data, *from = x->data, root = sqrtf((float)c);
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for schedule(static) if (pixels * c * 8 > FEW)
    for (int64_t p = 0; p < pixels; p++) {
        const float *s = from + p * c;
        float *d = to + p * c, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < c; i++) squares += s[i] * s[i];
        float norm = sqrtf(squares), scale = root / (norm < 1e-12f ? 1e-12f : norm);
        if (silu) {
#pragma omp simd
            for (int64_t i = 0; i < c; i++) d[i] = sl_siluf(s[i] * scale * g[i]);
        } else {
#pragma omp simd
            for (int64_t i = 0; i < c; i++) d[i] = s[i] * scale * g[i];
        }
    }
}

/* ---- moves ---- */

void sl_cpu_time_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t frames = x->shape[0], pixels = x->shape[1] * x->shape[2], c = y->shape[3];
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for collapse(2) schedule(static) if (sl_count(y) > FEW)
    for (int64_t t = 0; t < frames; t++)
        for (int64_t p = 0; p < pixels; p++)
            for (int half = 0; half < 2; half++)
                memcpy(to + ((2 * t + half) * pixels + p) * c,
                       from + ((t * pixels + p) * 2 + half) * c, sizeof *to * (size_t)c);
}

void sl_cpu_avg_down(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    const int64_t frames = y->shape[0], h = y->shape[1], w = y->shape[2], co = y->shape[3],
                  ci = x->shape[3], of = ci * time * 4 / co, lead = x->shape[0] % time;
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for collapse(2) schedule(static) if (sl_count(x) > FEW)
    for (int64_t k = 0; k < frames; k++)
        for (int64_t p = 0; p < h * w; p++)
            for (int64_t o = 0; o < co; o++) {
                float sum = 0;
                for (int64_t u = o * of; u < (o + 1) * of; u++) {
                    const int64_t c = u / (4 * time), f = k * time + u / 4 % time - lead,
                                  row = p / w * 2 + u / 2 % 2, column = p % w * 2 + u % 2;
                    if (f >= 0) sum += from[((f * 2 * h + row) * 2 * w + column) * ci + c];
                }
                to[(k * h * w + p) * co + o] = sum / (float)of;
            }
}

void sl_cpu_dup_up(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int time)
{
    const int64_t frames = y->shape[0], h = y->shape[1], w = y->shape[2], co = y->shape[3],
                  ci = x->shape[3], of = co * time * 4 / ci, less = time * x->shape[0] - frames;
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for collapse(2) schedule(static) if (sl_count(y) > FEW)
    for (int64_t f = 0; f < frames; f++)
        for (int64_t p = 0; p < h * w; p++) {
            const int64_t t = f + less, row = p / w, column = p % w;
            const float *at = from + ((t / time * (h / 2) + row / 2) * (w / 2) + column / 2) * ci;
            for (int64_t o = 0; o < co; o++)
                to[(f * h * w + p) * co + o] =
                    at[(((o * time + t % time) * 2 + row % 2) * 2 + column % 2) / of];
        }
}

void sl_cpu_pixel_shuffle(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    const int64_t frames = y->shape[0], h = y->shape[1], w = y->shape[2], c = y->shape[3];
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for collapse(2) schedule(static) if (sl_count(y) > FEW)
    for (int64_t f = 0; f < frames; f++)
        for (int64_t p = 0; p < h * w; p++) {
            const int64_t row = p / w, column = p % w;
            const float *at = from + ((f * (h / 2) + row / 2) * (w / 2) + column / 2) * 4 * c;
            for (int64_t k = 0; k < c; k++)
                to[(f * h * w + p) * c + k] = at[(k * 2 + column % 2) * 2 + row % 2];
        }
}

void sl_cpu_to_channels_last(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                             const float *add)
{
    int64_t channels = x->shape[0], pixels = x->shape[1] * x->shape[2] * x->shape[3];
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for schedule(static) if (sl_count(y) > FEW)
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[p * channels + c] = from[c * pixels + p] * (mul ? mul[c] : 1) + (add ? add[c] : 0);
}

void sl_cpu_to_channels_first(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const float *mul,
                              const float *add)
{
    int64_t channels = y->shape[0], stride = x->shape[3],
            pixels = x->shape[0] * x->shape[1] * x->shape[2];
    const float *from = x->data;
    float *to = y->data;
    (void)ctx;
#pragma omp parallel for schedule(static) if (sl_count(y) > FEW)
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < pixels; p++)
            to[c * pixels + p] = from[p * stride + c] * (mul ? mul[c] : 1) + (add ? add[c] : 0);
}

void sl_cpu_frames_rgb8(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    int64_t n = sl_count(x);
    const float *from = x->data;
    uint8_t *to = y->data;
    (void)ctx;
#pragma omp parallel for schedule(static) if (n > FEW)
    for (int64_t i = 0; i < n; i++) {
        float v = from[i] * 0.5f + 0.5f;
        v = v > 0 ? v : 0; /* NaN gives 0 */
        v = v < 1 ? v : 1;
        to[i] = (uint8_t)(int)rintf(v * 255);
    }
}
