/* picture.c - picture files to 8-bit RGB: headers are read here, pixels are decoded by
 * libavcodec, colours are converted as Pillow's libraries do.
 *
 * The header decides what is tried at all: its size is checked before anything is
 * allocated, and a file that does not reach its own end mark is refused, since decoders
 * fill what is missing with grey. The whole file then goes to the decoder as one packet.
 *
 * Colour: Pillow shows what libjpeg-turbo and libwebp make of chroma ("fancy" upsampling,
 * their own fixed-point matrices); swscale rounds differently and sites chroma elsewhere.
 * convert_jpeg and convert_webp below are those libraries' arithmetic (jdsample.c and jdcolor.c;
 * dsp/upsampling.c and dsp/yuv.h). PNG, BMP and lossless and lossy WebP come out byte for
 * byte as Pillow's; of JPEG see JPEG_IDCT. */
#include "common/picture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libavcodec/avcodec.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>

/* libjpeg's own integer transform works down first, libavcodec's copy of it across first;
 * its floating-point one comes closest: against Pillow 1.8 % of the samples of a grey
 * JPEG and 2.4 to 3.5 % of the bytes of coloured ones differ, by 1 (a few by 2), mean
 * 0.03. On grey.jpg, 420.jpg and 444.jpg of the tests: this one 1.8, 2.4, 2.8 %;
 * FF_IDCT_INT 2.1, 3.3, 3.6 %; the default 2.6, 2.9, 4.1 %. */
#define JPEG_IDCT FF_IDCT_FAAN

typedef enum { PNG, JPEG, WEBP, BMP } kind;
static const char *const KIND_NAMES[] = {"PNG", "JPEG", "WebP", "BMP"};
static const enum AVCodecID KIND_CODECS[] = {AV_CODEC_ID_PNG, AV_CODEC_ID_MJPEG, AV_CODEC_ID_WEBP,
                                             AV_CODEC_ID_BMP};

/* What the file says of itself before its pixels. */
typedef struct {
    kind kind;
    int64_t w, h;
    int orientation; /* EXIF's: 1..8 */
    bool whole;      /* its end mark is there */
} header;

/* Bytes with a length; every read below asks `has` first. */
typedef struct {
    const uint8_t *at;
    size_t n;
} span;

static bool has(span s, size_t offset, size_t n)
{
    return offset <= s.n && n <= s.n - offset;
}

static bool starts(span s, size_t offset, const char *text, size_t n)
{
    return has(s, offset, n) && !memcmp(s.at + offset, text, n);
}

static uint32_t be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}
static uint32_t be32(const uint8_t *p)
{
    return be16(p) << 16 | be16(p + 2);
}
static uint32_t le16(const uint8_t *p)
{
    return (uint32_t)p[1] << 8 | p[0];
}
static uint32_t le24(const uint8_t *p)
{
    return (uint32_t)p[2] << 16 | le16(p);
}
static uint32_t le32(const uint8_t *p)
{
    return le16(p + 2) << 16 | le16(p);
}

/* The orientation (tag 0x112) in the first directory of a TIFF block; 1 if it is not
 * there or nonsense. */
static int exif_orientation(span s)
{
    if (starts(s, 0, "Exif\0\0", 6)) s = (span){s.at + 6, s.n - 6};
    bool little = starts(s, 0, "II*\0", 4);
    if (!little && !starts(s, 0, "MM\0*", 4)) return 1;
    if (!has(s, 4, 4)) return 1;
    size_t dir = little ? le32(s.at + 4) : be32(s.at + 4);
    if (!has(s, dir, 2)) return 1;
    size_t n = little ? le16(s.at + dir) : be16(s.at + dir);
    for (size_t i = 0; i < n && has(s, dir + 2 + i * 12, 12); i++) {
        const uint8_t *e = s.at + dir + 2 + i * 12;
        if ((little ? le16(e) : be16(e)) != 0x112) continue;
        uint32_t v = little ? le16(e + 8) : be16(e + 8);
        return v >= 1 && v <= 8 ? (int)v : 1;
    }
    return 1;
}

static void png_header(header *h, span s)
{
    if (!starts(s, 12, "IHDR", 4) || !has(s, 16, 13)) return;
    h->w = be32(s.at + 16);
    h->h = be32(s.at + 20);
    for (size_t at = 8; has(s, at, 12);) {
        size_t n = be32(s.at + at);
        if (!has(s, at, 12 + n)) return;
        if (starts(s, at + 4, "eXIf", 4))
            h->orientation = exif_orientation((span){s.at + at + 8, n});
        if (starts(s, at + 4, "IEND", 4)) {
            h->whole = true;
            return;
        }
        at += 12 + n;
    }
}

/* The first marker that is neither a stuffed byte nor a restart, from `at` on; the end if
 * there is none. */
static size_t after_scan(span s, size_t at)
{
    for (; at + 1 < s.n; at++)
        if (s.at[at] == 0xff && s.at[at + 1] != 0 && s.at[at + 1] != 0xff &&
            (s.at[at + 1] & 0xf8) != 0xd0)
            return at;
    return s.n;
}

static void jpeg_header(header *h, span s)
{
    bool scan = false;
    for (size_t at = 2; has(s, at, 2);) {
        uint8_t mark = s.at[at + 1];
        if (s.at[at] != 0xff || mark == 0xff) {
            at++; /* fill, or bytes that decoders skip */
            continue;
        }
        if (mark == 0xd9) {
            h->whole = scan;
            return;
        }
        if (mark == 0 || mark == 1 || (mark & 0xf8) == 0xd0) {
            at += 2;
            continue;
        }
        if (!has(s, at, 4)) return;
        size_t n = be16(s.at + at + 2);
        if (n < 2 || !has(s, at + 2, n)) return;
        bool frame = mark >= 0xc0 && mark <= 0xcf && mark != 0xc4 && mark != 0xc8 && mark != 0xcc;
        if (frame && !h->w && n >= 8) {
            h->h = be16(s.at + at + 5);
            h->w = be16(s.at + at + 7);
        }
        if (mark == 0xe1 && starts(s, at + 4, "Exif\0\0", 6))
            h->orientation = exif_orientation((span){s.at + at + 4, n - 2});
        at += 2 + n;
        if (mark == 0xda) {
            scan = true;
            at = after_scan(s, at);
        }
    }
}

/* False for an animation. */
static bool read_webp_header(header *h, span s)
{
    size_t end = (size_t)le32(s.at + 4) + 8;
    h->whole = end <= s.n;
    for (size_t at = 12; has(s, at, 8);) {
        size_t n = le32(s.at + at + 4), d = at + 8;
        if (starts(s, at, "VP8X", 4) && has(s, d, 10)) {
            if (s.at[d] & 2) return false;
            h->w = le24(s.at + d + 4) + 1;
            h->h = le24(s.at + d + 7) + 1;
        } else if (starts(s, at, "VP8L", 4) && has(s, d, 5) && !h->w) {
            uint32_t bits = le32(s.at + d + 1);
            h->w = (bits & 0x3fff) + 1;
            h->h = (bits >> 14 & 0x3fff) + 1;
        } else if (starts(s, at, "VP8 ", 4) && has(s, d, 10) && !h->w) {
            h->w = le16(s.at + d + 6) & 0x3fff;
            h->h = le16(s.at + d + 8) & 0x3fff;
        } else if (starts(s, at, "EXIF", 4) && has(s, d, n)) {
            h->orientation = exif_orientation((span){s.at + d, n});
        }
        if (!has(s, d, n)) return true;
        at = d + n + (n & 1);
    }
    return true;
}

static void bmp_header(header *h, span s)
{
    if (!has(s, 14, 12)) return;
    h->whole = le32(s.at + 2) <= s.n; /* the decoder counts the pixels itself */
    if (le32(s.at + 14) < 40) {
        h->w = le16(s.at + 18);
        h->h = le16(s.at + 20);
    } else {
        int64_t y = (int32_t)le32(s.at + 22);
        h->w = (int32_t)le32(s.at + 18);
        h->h = y < 0 ? -y : y;
    }
}

/* A name for what people take for a picture and this does not read; NULL for anything
 * else. */
static const char *stranger(span s)
{
    if (starts(s, 0, "GIF8", 4)) return "a GIF";
    if (starts(s, 0, "II*\0", 4) || starts(s, 0, "MM\0*", 4)) return "a TIFF";
    if (starts(s, 4, "ftypavi", 7)) return "an AVIF";
    if (starts(s, 4, "ftyphei", 7) || starts(s, 4, "ftypmif1", 8)) return "a HEIC";
    if (starts(s, 4, "ftyp", 4)) return "a video";
    if (starts(s, 0, "%PDF", 4)) return "a PDF";
    if (starts(s, 0, "\xff\x0a", 2) || starts(s, 4, "JXL ", 4)) return "a JPEG XL";
    return NULL;
}

static sl_code read_header(header *h, span s, const char *name, sl_err *err)
{
    *h = (header){.orientation = 1};
    if (!s.n)
        return sl_fail(err, SL_FORMAT,
                       "%s: the file is empty, want a picture (PNG, JPEG, WebP or BMP)", name);
    if (starts(s, 0, "\x89PNG\r\n\x1a\n", 8)) {
        h->kind = PNG;
        png_header(h, s);
    } else if (starts(s, 0, "\xff\xd8\xff", 3)) {
        h->kind = JPEG;
        jpeg_header(h, s);
    } else if (starts(s, 0, "RIFF", 4) && starts(s, 8, "WEBP", 4)) {
        h->kind = WEBP;
        if (!read_webp_header(h, s))
            return sl_fail(err, SL_FORMAT, "%s: an animated WebP, want a still picture", name);
    } else if (starts(s, 0, "BM", 2) && has(s, 14, 12)) {
        h->kind = BMP;
        bmp_header(h, s);
    } else {
        const char *what = stranger(s);
        return sl_fail(err, SL_FORMAT, "%s: %s, want a picture (PNG, JPEG, WebP or BMP)", name,
                       what ? what : "not a picture");
    }
    if (h->w > SL_PICTURE_MAX_SIDE || h->h > SL_PICTURE_MAX_SIDE ||
        (h->w > 0 && h->h > SL_PICTURE_MAX_PIXELS / h->w))
        return sl_fail(
            err, SL_FORMAT, "%s: the picture has %lldx%lld pixels, at most %d are read, %d a side",
            name, (long long)h->w, (long long)h->h, SL_PICTURE_MAX_PIXELS, SL_PICTURE_MAX_SIDE);
    if (!h->whole)
        return sl_fail(err, SL_FORMAT, "%s: the %s picture is truncated after %zu bytes", name,
                       KIND_NAMES[h->kind], s.n);
    if (h->w < 1 || h->h < 1)
        return sl_fail(err, SL_FORMAT, "%s: the %s header says %lldx%lld pixels, want at least 1x1",
                       name, KIND_NAMES[h->kind], (long long)h->w, (long long)h->h);
    return SL_OK;
}

/* The one frame of the file, decoded without a fault. */
static sl_code decode(AVFrame *frame, const header *h, span s, const char *name, sl_err *err)
{
    const AVCodec *codec = avcodec_find_decoder(KIND_CODECS[h->kind]);
    AVCodecContext *c = codec ? avcodec_alloc_context3(codec) : NULL;
    AVPacket *packet = av_packet_alloc();
    sl_code rc = SL_OK;
    int e = 0;
    if (!codec) {
        rc = sl_fail(err, SL_ARG, "%s: this libavcodec has no %s decoder", name,
                     KIND_NAMES[h->kind]);
        goto done;
    }
    if (!c || !packet || av_new_packet(packet, (int)s.n)) {
        rc = sl_fail(err, SL_NOMEM, "%s: no memory to decode %zu bytes", name, s.n);
        goto done;
    }
    memcpy(packet->data, s.at, s.n);
    c->thread_count = 1;
    c->max_pixels = SL_PICTURE_MAX_PIXELS;
    c->err_recognition = AV_EF_CRCCHECK | AV_EF_EXPLODE;
    c->idct_algo = JPEG_IDCT;
    if ((e = avcodec_open2(c, codec, NULL)) >= 0 && (e = avcodec_send_packet(c, packet)) >= 0) {
        avcodec_send_packet(c, NULL);
        e = avcodec_receive_frame(c, frame);
    }
    if (e == AVERROR(ENOMEM))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for %lldx%lld pixels", name, (long long)h->w,
                     (long long)h->h);
    else if (e < 0 || frame->decode_error_flags || (frame->flags & AV_FRAME_FLAG_CORRUPT))
        rc = sl_fail(err, SL_FORMAT, "%s: the %s picture is damaged or of a kind that is not read",
                     name, KIND_NAMES[h->kind]);
    else if (frame->width != h->w || frame->height != h->h)
        rc = sl_fail(err, SL_FORMAT, "%s: the header says %lldx%lld pixels, the picture has %dx%d",
                     name, (long long)h->w, (long long)h->h, frame->width, frame->height);
done:
    av_packet_free(&packet);
    avcodec_free_context(&c);
    return rc;
}

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

static uint8_t clip8(int v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* One line of chroma at full width, as libjpeg-turbo's h2v1, h2v2 and h1v2 "fancy"
 * upsampling and its plain one. near: the chroma row that covers the line, far: the row
 * beyond its nearer edge (near itself at the border). hs, vs: log2 of the factors; lower:
 * the second line of a pair. */
static void jpeg_chroma(uint8_t *out, const uint8_t *near, const uint8_t *far, int cw, int w,
                        int hs, int vs, bool lower)
{
    if (hs == 0 && vs == 1) {
        for (int x = 0; x < w; x++)
            out[x] = (uint8_t)((near[x] * 3 + far[x] + (lower ? 2 : 1)) >> 2);
    } else if (hs == 1 && vs <= 1 && cw > 2) {
        int a = vs ? 3 : 1, b = vs ? 1 : 0, unit = vs ? 4 : 1, round0 = vs ? 8 : 1,
            round1 = vs ? 7 : 2, shift = vs ? 4 : 2;
        for (int x = 0; x < w; x++) {
            int c = x / 2, side = x & 1 ? c + 1 : c - 1, mid = near[c] * a + far[c] * b;
            if (side < 0 || side >= cw) { /* the ends of the row */
                out[x] = (uint8_t)(vs ? (mid * unit + (x & 1 ? round1 : round0)) >> shift : mid);
                continue;
            }
            out[x] =
                (uint8_t)((mid * 3 + near[side] * a + far[side] * b + (x & 1 ? round1 : round0)) >>
                          shift);
        }
    } else {
        for (int x = 0; x < w; x++) out[x] = near[x >> hs];
    }
}

/* Full-range BT.601 in libjpeg's 16-bit fixed point. */
static bool convert_jpeg(uint8_t *rgb, const AVFrame *f, const AVPixFmtDescriptor *d)
{
    int hs = d->log2_chroma_w, vs = d->log2_chroma_h, cw = AV_CEIL_RSHIFT(f->width, hs),
        ch = AV_CEIL_RSHIFT(f->height, vs);
    uint8_t *line = malloc((size_t)f->width * 2);
    if (!line) return false;
    for (int y = 0; y < f->height; y++) {
        bool lower = vs == 1 && (y & 1);
        int near = y >> vs, far = vs != 1 ? near : lower ? near + 1 : near - 1;
        if (far < 0 || far >= ch) far = near;
        for (int c = 0; c < 2; c++) {
            const uint8_t *plane = f->data[1 + c];
            ptrdiff_t pitch = f->linesize[1 + c];
            jpeg_chroma(line + (size_t)c * (size_t)f->width, plane + near * pitch,
                        plane + far * pitch, cw, f->width, hs, vs, lower);
        }
        const uint8_t *luma = f->data[0] + (ptrdiff_t)y * f->linesize[0];
        for (int x = 0; x < f->width; x++, rgb += 3) {
            int cb = line[x] - 128, cr = line[f->width + x] - 128;
            rgb[0] = clip8(luma[x] + ((91881 * cr + 32768) >> 16));
            rgb[1] = clip8(luma[x] + ((-22554 * cb - 46802 * cr + 32768) >> 16));
            rgb[2] = clip8(luma[x] + ((116130 * cb + 32768) >> 16));
        }
    }
    free(line);
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

/* Whatever else a decoder gives (planar RGB of a JPEG, 16-bit BMP). */
static bool convert_other(uint8_t *rgb, const AVFrame *f)
{
    struct SwsContext *sws = sws_getContext(
        f->width, f->height, f->format, f->width, f->height, AV_PIX_FMT_RGB24,
        SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_BITEXACT, NULL, NULL, NULL);
    uint8_t *planes[4] = {rgb};
    int pitches[4] = {f->width * 3};
    bool done = sws && sws_scale(sws, (const uint8_t *const *)f->data, f->linesize, 0, f->height,
                                 planes, pitches) == f->height;
    sws_freeContext(sws);
    return done;
}

static bool to_rgb(uint8_t *rgb, const AVFrame *f, kind from)
{
    const AVPixFmtDescriptor *d = av_pix_fmt_desc_get(f->format);
    if (convert_packed(rgb, f) || convert_indexed(rgb, f)) return true;
    bool yuv = d && d->nb_components >= 3 && (d->flags & AV_PIX_FMT_FLAG_PLANAR) &&
               !(d->flags & AV_PIX_FMT_FLAG_RGB) && d->comp[0].depth == 8 &&
               d->comp[1].plane == 1 && d->comp[2].plane == 2;
    if (yuv && from == JPEG) return convert_jpeg(rgb, f, d);
    if (yuv && from == WEBP && d->log2_chroma_w == 1 && d->log2_chroma_h == 1) {
        convert_webp(rgb, f);
        return true;
    }
    return convert_other(rgb, f);
}

/* Turn and mirror so that orientation 1 is reached. */
static bool orient(sl_picture *p, int orientation)
{
    if (orientation == 1) return true;
    bool turned = orientation >= 5;
    int w = turned ? p->h : p->w, h = turned ? p->w : p->h;
    uint8_t *rgb = malloc((size_t)w * (size_t)h * 3), *to = rgb;
    if (!rgb) return false;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++, to += 3) {
            int sx = turned ? y : x, sy = turned ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8)
                sx = p->w - 1 - sx;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7)
                sy = p->h - 1 - sy;
            memcpy(to, p->rgb + ((size_t)sy * (size_t)p->w + (size_t)sx) * 3, 3);
        }
    free(p->rgb);
    *p = (sl_picture){w, h, rgb};
    return true;
}

sl_code sl_picture_decode(sl_picture *out, const uint8_t *bytes, size_t length, const char *name,
                          sl_err *err)
{
    header h;
    sl_picture p = {0};
    AVFrame *frame = NULL;
    sl_code rc;
    *out = p;
    if (length > SL_PICTURE_MAX_FILE)
        return sl_fail(err, SL_FORMAT, "%s: more than %zu bytes, the most that a picture may have",
                       name, SL_PICTURE_MAX_FILE);
    if ((rc = read_header(&h, (span){bytes, length}, name, err))) return rc;
    av_log_set_level(AV_LOG_QUIET);
    p = (sl_picture){(int)h.w, (int)h.h, NULL};
    if (!(frame = av_frame_alloc())) goto nomem;
    if ((rc = decode(frame, &h, (span){bytes, length}, name, err))) goto done;
    if (!(p.rgb = malloc((size_t)p.w * (size_t)p.h * 3))) goto nomem;
    if (!to_rgb(p.rgb, frame, h.kind)) {
        rc = sl_fail(err, SL_FORMAT, "%s: cannot turn %s pixels into RGB", name,
                     av_get_pix_fmt_name(frame->format));
        goto done;
    }
    av_frame_free(&frame);
    if (!orient(&p, h.orientation)) goto nomem;
    *out = p;
    p.rgb = NULL;
    goto done;
nomem:
    rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, p.w, p.h);
done:
    av_frame_free(&frame);
    free(p.rgb);
    return rc;
}

/* All bytes of fd, malloc'd; one more than SL_PICTURE_MAX_FILE at most. */
static sl_code read_all(int fd, uint8_t **bytes, size_t *length, const char *path, sl_err *err)
{
    size_t room = 0;
    *bytes = NULL;
    *length = 0;
    for (;;) {
        if (*length == room) {
            if (room > SL_PICTURE_MAX_FILE) return SL_OK;
            room = room ? room * 2 : 1 << 20;
            if (room > SL_PICTURE_MAX_FILE) room = SL_PICTURE_MAX_FILE + 1;
            uint8_t *more = realloc(*bytes, room);
            if (!more) return sl_fail(err, SL_NOMEM, "%s: no memory for %zu bytes", path, room);
            *bytes = more;
        }
        ssize_t n = read(fd, *bytes + *length, room - *length);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return sl_fail_errno(err, errno, "%s: cannot be read", path);
        if (!n) return SL_OK;
        *length += (size_t)n;
    }
}

sl_code sl_picture_read(sl_picture *out, const char *path, sl_err *err)
{
    uint8_t *bytes = NULL;
    size_t length = 0;
    sl_code rc;
    *out = (sl_picture){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return sl_fail_errno(err, errno, "%s: cannot be opened", path);
    if (!(rc = read_all(fd, &bytes, &length, path, err)))
        rc = sl_picture_decode(out, bytes, length, path, err);
    close(fd);
    free(bytes);
    return rc;
}

void sl_picture_free(sl_picture *p)
{
    free(p->rgb);
    *p = (sl_picture){0};
}
