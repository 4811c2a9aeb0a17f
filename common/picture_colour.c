/* picture_colour.c - a decoder's frame as 8-bit RGB, as Pillow's libraries have it. */
#include "common/picture_parts.h"

#include <math.h>
#include <stdlib.h>

/* ---- colours: each function fills rgb [h, w, 3] ---- */

/* Pixels side by side: bytes a pixel and where the (upper byte of the) colours are. */
static const struct {
    enum AVPixelFormat format;
    uint8_t bytes, r, g, b;
} PACKED[] = {
    {AV_PIX_FMT_RGB24, 3, 0, 1, 2},    {AV_PIX_FMT_RGBA, 4, 0, 1, 2},
    {AV_PIX_FMT_RGB0, 4, 0, 1, 2},     {AV_PIX_FMT_BGR24, 3, 2, 1, 0},
    {AV_PIX_FMT_BGRA, 4, 2, 1, 0},     {AV_PIX_FMT_BGR0, 4, 2, 1, 0},
    {AV_PIX_FMT_ARGB, 4, 1, 2, 3},     {AV_PIX_FMT_GRAY8, 1, 0, 0, 0},
    {AV_PIX_FMT_YA8, 2, 0, 0, 0},      {AV_PIX_FMT_RGB48BE, 6, 0, 2, 4},
    {AV_PIX_FMT_RGBA64BE, 8, 0, 2, 4}, {AV_PIX_FMT_GRAY16BE, 2, 0, 0, 0},
    {AV_PIX_FMT_YA16BE, 4, 0, 0, 0},
};

static bool convert_packed(uint8_t *rgb, const AVFrame *f)
{
    size_t k = 0;
    while (k < sizeof PACKED / sizeof *PACKED && PACKED[k].format != f->format) k++;
    if (k == sizeof PACKED / sizeof *PACKED) return false;
    for (int y = 0; y < f->height; y++) {
        const uint8_t *p = f->data[0] + (ptrdiff_t)y * f->linesize[0];
        for (int x = 0; x < f->width; x++, p += PACKED[k].bytes) {
            *rgb++ = p[PACKED[k].r];
            *rgb++ = p[PACKED[k].g];
            *rgb++ = p[PACKED[k].b];
        }
    }
    return true;
}

static bool convert_indexed(uint8_t *rgb, const AVFrame *f)
{
    bool bits = f->format == AV_PIX_FMT_MONOBLACK || f->format == AV_PIX_FMT_MONOWHITE;
    if (!bits && f->format != AV_PIX_FMT_PAL8) return false;
    for (int y = 0; y < f->height; y++) {
        const uint8_t *p = f->data[0] + (ptrdiff_t)y * f->linesize[0];
        for (int x = 0; x < f->width; x++, rgb += 3) {
            uint32_t c;
            if (bits)
                c = ((p[x / 8] >> (7 - x % 8) & 1) != 0) != (f->format == AV_PIX_FMT_MONOWHITE)
                        ? 0xffffff
                        : 0;
            else memcpy(&c, f->data[1] + 4 * (size_t)p[x], 4); /* 0xaarrggbb */
            rgb[0] = (uint8_t)(c >> 16);
            rgb[1] = (uint8_t)(c >> 8);
            rgb[2] = (uint8_t)c;
        }
    }
    return true;
}

static int webp_clip(int v) /* of a 14-bit value */
{
    return v < 0 ? 0 : v >> 6 > 255 ? 255 : v >> 6;
}

/* One chroma sample of libwebp's bilinear upsampling at (x, y): 9:3:3:1 of the nearest
 * four, rounded in its two steps. */
static int webp_chroma(const uint8_t *plane, ptrdiff_t pitch, int cw, int ch, int x, int y, int w)
{
    int row = y / 2, other = y & 1 ? row + 1 : row - 1, col = x / 2,
        side = x & 1 ? col + 1 : col - 1;
    if (other < 0 || other >= ch) other = row;
    const uint8_t *near = plane + row * pitch, *far = plane + other * pitch;
    if (x == 0 || side >= cw || (x == w - 1 && (x & 1))) return (3 * near[col] + far[col] + 2) >> 2;
    int a = near[col], b = near[side], c = far[col], d = far[side];
    return ((((a + b + c + d + 8) + 2 * (b + c)) >> 3) + a) >> 1;
}

/* Limited-range BT.601 in libwebp's 14-bit fixed point. */
static void convert_webp(uint8_t *rgb, const AVFrame *f)
{
    int cw = (f->width + 1) / 2, ch = (f->height + 1) / 2;
    for (int y = 0; y < f->height; y++)
        for (int x = 0; x < f->width; x++, rgb += 3) {
            int l = f->data[0][(ptrdiff_t)y * f->linesize[0] + x] * 19077 >> 8;
            int u = webp_chroma(f->data[1], f->linesize[1], cw, ch, x, y, f->width);
            int v = webp_chroma(f->data[2], f->linesize[2], cw, ch, x, y, f->width);
            rgb[0] = (uint8_t)webp_clip(l + (v * 26149 >> 8) - 14234);
            rgb[1] = (uint8_t)webp_clip(l - (u * 6419 >> 8) - (v * 13320 >> 8) + 8708);
            rgb[2] = (uint8_t)webp_clip(l + (u * 33050 >> 8) - 17685);
        }
}

/* ---- every other format, by its description ---- */

typedef struct {
    const sl_av *av;
    const AVFrame *f;
    const AVPixFmtDescriptor *d;
    uint16_t *line[3][2]; /* of each component a line as 8 bits and more, and the one beyond it */
    int cw, ch, shift_x, shift_y;
} planes;

static void read_line(const planes *p, uint16_t *to, int c, int y, int w)
{
    p->av->av_read_image_line2(to, (const uint8_t **)(uintptr_t)p->f->data, p->f->linesize, p->d, 0,
                               y, c, w, 0, sizeof *to);
}

/* Fewer bits than 8 spread out, more cut off, as Pillow's unpackers do. */
static uint8_t to8(unsigned v, int depth)
{
    return (uint8_t)(depth < 8 ? v * 255 / ((1u << depth) - 1) : v >> (depth - 8));
}

static void rgb_line(uint8_t *rgb, const planes *p, int y)
{
    const int n = p->d->nb_components >= 3 ? 3 : 1;
    for (int c = 0; c < n; c++) read_line(p, p->line[c][0], c, y, p->f->width);
    for (int x = 0; x < p->f->width; x++, rgb += 3)
        for (int c = 0; c < 3; c++)
            rgb[c] = to8(p->line[n == 3 ? c : 0][0][x], p->d->comp[n == 3 ? c : 0].depth);
}

/* Chroma at x of the line whose two rows lie in p->line[c], sited in the middle: of the nearest
 * four 9, 3, 3 and 1 parts of 16. */
static double chroma_at(const planes *p, int c, int x)
{
    const uint16_t *near = p->line[c][0], *far = p->line[c][1];
    if (!p->shift_x) return p->shift_y ? (near[x] * 3 + far[x]) / 4.0 : near[x];
    int col = x >> p->shift_x, side = x & 1 ? col + 1 : col - 1;
    if (side < 0 || side >= p->cw || x == p->f->width - 1) side = col; /* as libyuv */
    const double a = (near[col] * 3 + near[side]) / 4.0, b = (far[col] * 3 + far[side]) / 4.0;
    return p->shift_y ? (3 * a + b) / 4 : a;
}

static uint8_t level(double v)
{
    return (uint8_t)(v <= 0 ? 0 : v >= 1 ? 255 : v * 255 + 0.5);
}

/* Kr and Kb of a matrix of ITU-T H.273; BT.601 for those that say nothing. */
static void weights_of(int matrix, double *kr, double *kb)
{
    *kr = matrix == AVCOL_SPC_BT709 ? 0.2126 : matrix == 9 || matrix == 10 ? 0.2627 : 0.299;
    *kb = matrix == AVCOL_SPC_BT709 ? 0.0722 : matrix == 9 || matrix == 10 ? 0.0593 : 0.114;
}

static void yuv_line(uint8_t *rgb, const planes *p, int y, int matrix, bool full)
{
    const int depth = p->d->comp[0].depth, row = y >> p->shift_y;
    const double unit = 1 << (depth - 8), most = (1 << depth) - 1;
    int other = p->shift_y ? (y & 1 ? row + 1 : row - 1) : row;
    double kr, kb;
    weights_of(matrix, &kr, &kb);
    if (other < 0 || other >= p->ch) other = row;
    read_line(p, p->line[0][0], 0, y, p->f->width);
    for (int c = 1; c < 3; c++) {
        read_line(p, p->line[c][0], c, row, p->cw);
        read_line(p, p->line[c][1], c, other, p->cw);
    }
    for (int x = 0; x < p->f->width; x++, rgb += 3) {
        const double l = full ? p->line[0][0][x] / most
                              : (p->line[0][0][x] - 16 * unit) / (219 * unit),
                     scale = full ? most : 224 * unit,
                     cb = (chroma_at(p, 1, x) - 128 * unit) / scale,
                     cr = (chroma_at(p, 2, x) - 128 * unit) / scale;
        rgb[0] = level(l + 2 * (1 - kr) * cr);
        rgb[1] = level(l - (2 * (1 - kb) * kb * cb + 2 * (1 - kr) * kr * cr) / (1 - kr - kb));
        rgb[2] = level(l + 2 * (1 - kb) * cb);
    }
}

/* Grey of a limited range is a YUV whose chroma says nothing. */
static void grey_line(uint8_t *rgb, const planes *p, int y, bool full)
{
    const int depth = p->d->comp[0].depth;
    const double unit = 1 << (depth - 8);
    read_line(p, p->line[0][0], 0, y, p->f->width);
    for (int x = 0; x < p->f->width; x++, rgb += 3) {
        const unsigned v = p->line[0][0][x];
        rgb[0] = rgb[1] = rgb[2] = full ? to8(v, depth) : level((v - 16 * unit) / (219 * unit));
    }
}

static bool convert_described(const sl_av *av, uint8_t *rgb, const AVFrame *f,
                              const AVPixFmtDescriptor *d, bool boxed, int matrix, int range)
{
    planes p = {.av = av, .f = f, .d = d};
    const size_t w = (size_t)f->width;
    const bool coloured = d->nb_components >= 3,
               yuv = coloured && !(d->flags & AV_PIX_FMT_FLAG_RGB);
    if (d->flags & (AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_HWACCEL | AV_PIX_FMT_FLAG_FLOAT) ||
        d->comp[0].depth > 16 || (yuv && d->comp[0].depth < 8) || d->log2_chroma_w > 1 ||
        d->log2_chroma_h > 1)
        return false;
    uint16_t *lines = calloc(w * 6, sizeof *lines);
    if (!lines) return false;
    for (int i = 0; i < 6; i++) p.line[i / 2][i % 2] = lines + w * (size_t)i;
    if (yuv) p.shift_x = d->log2_chroma_w, p.shift_y = d->log2_chroma_h;
    p.cw = AV_CEIL_RSHIFT(f->width, p.shift_x);
    p.ch = AV_CEIL_RSHIFT(f->height, p.shift_y);
    if (range < 0) range = !boxed || f->color_range == AVCOL_RANGE_JPEG;
    if (matrix < 0) matrix = boxed ? (int)f->colorspace : -1;
    for (int y = 0; y < f->height; y++) {
        uint8_t *to = rgb + (size_t)y * w * 3;
        if (yuv) yuv_line(to, &p, y, matrix, range);
        else if (boxed && !coloured) grey_line(to, &p, y, range);
        else rgb_line(to, &p, y);
    }
    free(lines);
    return true;
}

bool sl_frame_to_rgb(const sl_av *av, uint8_t *rgb, const AVFrame *f, sl_picture_kind from,
                     int matrix, int range)
{
    const AVPixFmtDescriptor *d = av->av_pix_fmt_desc_get(f->format);
    const bool boxed = from == SL_PICTURE_AVIF;
    if (!d) return false;
    if (!boxed && (convert_packed(rgb, f) || convert_indexed(rgb, f))) return true;
    if (from == SL_PICTURE_WEBP && d->nb_components >= 3 && d->log2_chroma_w == 1 &&
        d->log2_chroma_h == 1) {
        convert_webp(rgb, f);
        return true;
    }
    return convert_described(av, rgb, f, d, boxed, matrix, range);
}
