/* resize.c - pictures resized byte for byte as Pillow does it, and for CLIP as
 * torchvision: separable, 8 bits between the passes.
 *
 * The two differ only in the bits of a weight: Pillow's have 22 behind the point; torch's
 * fit in int16, with as many as the largest allows. Across first, then down, as every
 * Pillow up to 12 does; 13.0 goes down first for some sizes (40x30 to 97x4), which rounds
 * differently there.
 *
 * Source: Pillow src/libImaging/Resample.c (precompute_coeffs,
 * ImagingResampleHorizontal_8bpc); pytorch aten/src/ATen/native/cpu/UpSampleKernel.cpp
 * (compute_index_ranges_int16_weights); the sizes of a video and of CLIP's picture:
 * diffusers' Wan example and transformers image_processing_clip.py, spec 3.4 and 3.5. */
#include "common/picture.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PILLOW_BITS 22 /* 32 - 8 - 2 */

typedef enum { BICUBIC, LANCZOS, TORCH_BICUBIC } method;

/* For every output place o: `count[o]` weights at w + o * taps, for the inputs from
 * first[o] on. */
typedef struct {
    int taps, bits; /* bits behind the point */
    int *first, *count;
    int32_t *w;
} weights;

static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

static double sinc(double x)
{
    if (x == 0) return 1;
    x *= M_PI;
    return sin(x) / x;
}

static double lanczos(double x)
{
    return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

static void free_weights(weights *k)
{
    free(k->first);
    free(k->count);
    free(k->w);
}

/* The most bits with which the largest weight stays below 2^15. */
static int torch_bits(const double *w, size_t n)
{
    double most = 0;
    int bits = 0;
    for (size_t i = 0; i < n; i++)
        if (w[i] > most) most = w[i];
    while (bits < 22 && (int)(0.5 + most * (double)(1 << (bits + 1))) < 1 << 15) bits++;
    return bits;
}

/* False without memory. */
static bool make_weights(weights *k, int in, int out, method how)
{
    double (*filter)(double) = how == LANCZOS ? lanczos : bicubic;
    double scale = (double)in / out, stretch = scale < 1 ? 1 : scale,
           support = (how == LANCZOS ? 3 : 2) * stretch;
    k->taps = (int)ceil(support) * 2 + 1;
    size_t taps = (size_t)k->taps, n = (size_t)out * taps;
    double *w = calloc(n, sizeof *w);
    k->first = malloc((size_t)out * sizeof *k->first);
    k->count = malloc((size_t)out * sizeof *k->count);
    k->w = malloc(n * sizeof *k->w);
    if (!k->first || !k->count || !k->w || !w) {
        free(w);
        return false;
    }
    for (int o = 0; o < out; o++) {
        double centre = (o + 0.5) * scale, sum = 0, step = 1 / stretch, *row = w + (size_t)o * taps;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        if (lo < 0) lo = 0;
        if (hi > in) hi = in;
        for (int i = 0; i < hi - lo; i++) sum += row[i] = filter((i + lo - centre + 0.5) * step);
        for (int i = 0; sum != 0 && i < hi - lo; i++) row[i] /= sum;
        k->first[o] = lo;
        k->count[o] = hi - lo;
    }
    k->bits = how == TORCH_BICUBIC ? torch_bits(w, n) : PILLOW_BITS;
    for (size_t i = 0; i < n; i++) {
        double v = w[i] * (1 << k->bits);
        k->w[i] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    free(w);
    return true;
}

static uint8_t clip8(int32_t sum, int bits)
{
    int32_t v = sum >> bits;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* [rows, in_w, 3] -> [rows, w, 3] */
static void across(uint8_t *out, const uint8_t *in, int rows, int in_w, int w, const weights *k)
{
#pragma omp parallel for schedule(static)
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < w; x++) {
            const uint8_t *p = in + ((size_t)y * (size_t)in_w + (size_t)k->first[x]) * 3;
            const int32_t *c = k->w + (size_t)x * (size_t)k->taps;
            int32_t s0 = 1 << (k->bits - 1), s1 = s0, s2 = s0;
            for (int i = 0; i < k->count[x]; i++) {
                s0 += p[i * 3] * c[i];
                s1 += p[i * 3 + 1] * c[i];
                s2 += p[i * 3 + 2] * c[i];
            }
            uint8_t *o = out + ((size_t)y * (size_t)w + (size_t)x) * 3;
            o[0] = clip8(s0, k->bits);
            o[1] = clip8(s1, k->bits);
            o[2] = clip8(s2, k->bits);
        }
}

/* [in_h, w, 3] -> [h, w, 3] */
static void down(uint8_t *out, const uint8_t *in, int w, int h, const weights *k)
{
    size_t row = (size_t)w * 3;
#pragma omp parallel for schedule(static)
    for (int y = 0; y < h; y++) {
        const uint8_t *p = in + (size_t)k->first[y] * row;
        const int32_t *c = k->w + (size_t)y * (size_t)k->taps;
        for (size_t x = 0; x < row; x++) {
            int32_t s = 1 << (k->bits - 1);
            for (int i = 0; i < k->count[y]; i++) s += p[(size_t)i * row + x] * c[i];
            out[(size_t)y * row + x] = clip8(s, k->bits);
        }
    }
}

static sl_code resize(sl_picture *out, const sl_picture *in, int w, int h, method how, sl_err *err)
{
    *out = (sl_picture){0};
    if (w < 1 || h < 1 || (int64_t)w * h > SL_PICTURE_MAX_PIXELS)
        return sl_fail(err, SL_ARG, "picture: cannot be resized to %dx%d, want 1x1 to %d pixels", w,
                       h, SL_PICTURE_MAX_PIXELS);
    weights kx = {0}, ky = {0};
    uint8_t *middle = NULL, *rgb = malloc((size_t)w * (size_t)h * 3);
    const uint8_t *from = in->rgb;
    sl_code rc = SL_OK;
    if (!rgb) goto nomem;
    if (w != in->w) {
        if (h != in->h && !(middle = malloc((size_t)w * (size_t)in->h * 3))) goto nomem;
        if (!make_weights(&kx, in->w, w, how)) goto nomem;
        across(middle ? middle : rgb, from, in->h, in->w, w, &kx);
        from = middle ? middle : rgb;
    }
    if (h != in->h) {
        if (!make_weights(&ky, in->h, h, how)) goto nomem;
        down(rgb, from, w, h, &ky);
    } else if (w == in->w) {
        memcpy(rgb, in->rgb, (size_t)w * (size_t)h * 3);
    }
    *out = (sl_picture){w, h, rgb};
    rgb = NULL;
    goto done;
nomem:
    rc = sl_fail(err, SL_NOMEM, "picture: no memory to resize %dx%d to %dx%d", in->w, in->h, w, h);
done:
    free_weights(&kx);
    free_weights(&ky);
    free(middle);
    free(rgb);
    return rc;
}

sl_code sl_picture_resize(sl_picture *out, const sl_picture *in, int w, int h, sl_filter filter,
                          sl_err *err)
{
    return resize(out, in, w, h, filter == SL_FILTER_BICUBIC ? BICUBIC : LANCZOS, err);
}

sl_code sl_picture_clip_pixels(float *out, const sl_picture *in, int shortest_edge, int crop_h,
                               int crop_w, const float mean[3], const float std[3], float rescale,
                               sl_err *err)
{
    sl_picture p = {0};
    sl_code rc;
    if (shortest_edge < 1 || crop_h < 1 || crop_w < 1)
        return sl_fail(err, SL_ARG, "picture: CLIP sizes are %d, crop %dx%d, want at least 1",
                       shortest_edge, crop_w, crop_h);
    bool tall = in->h > in->w;
    int64_t other =
        tall ? (int64_t)shortest_edge * in->h / in->w : (int64_t)shortest_edge * in->w / in->h;
    if (other * shortest_edge > SL_PICTURE_MAX_PIXELS)
        return sl_fail(err, SL_SHAPE,
                       "picture: %dx%d is too narrow for CLIP: %d on its short edge makes %lld on "
                       "the long one",
                       in->w, in->h, shortest_edge, (long long)other);
    if ((rc = resize(&p, in, tall ? shortest_edge : (int)other, tall ? (int)other : shortest_edge,
                     TORCH_BICUBIC, err)))
        return rc;
    if (p.w < crop_w || p.h < crop_h) {
        rc = sl_fail(err, SL_SHAPE,
                     "picture: CLIP's crop is %dx%d, but the picture has %dx%d after its resize",
                     crop_w, crop_h, p.w, p.h);
        goto done;
    }
    const uint8_t *from =
        p.rgb + ((size_t)((p.h - crop_h) / 2) * (size_t)p.w + (size_t)((p.w - crop_w) / 2)) * 3;
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < crop_h; y++)
            for (int x = 0; x < crop_w; x++)
                out[((size_t)c * (size_t)crop_h + (size_t)y) * (size_t)crop_w + (size_t)x] =
                    ((float)from[((size_t)y * (size_t)p.w + (size_t)x) * 3 + (size_t)c] * rescale -
                     mean[c]) /
                    std[c];
done:
    sl_picture_free(&p);
    return rc;
}

void sl_picture_video_size(int w, int h, int64_t max_area, int edge, int *video_w, int *video_h)
{
    double ratio = (double)h / w;
    *video_h = (int)rint(sqrt((double)max_area * ratio)) / edge * edge;
    *video_w = (int)rint(sqrt((double)max_area / ratio)) / edge * edge;
    if (*video_h < edge) *video_h = edge;
    if (*video_w < edge) *video_w = edge;
    /* a side of one edge, or both rounded up: the longer one gives way */
    if ((int64_t)*video_w * *video_h <= max_area) return;
    int *longer = *video_w > *video_h ? video_w : video_h,
        shorter = *longer == *video_w ? *video_h : *video_w;
    *longer = (int)(max_area / shorter / edge * edge);
    if (*longer < edge) *longer = edge;
}
