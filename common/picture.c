/* picture.c - picture files to 8-bit RGB: headers are read here, pixels are decoded by libavcodec,
 * zlib (picture_png.c), libjpeg and libheif, colours are converted as Pillow's libraries do
 * (picture_colour.c).
 *
 * The header decides what is tried at all: its size is checked before anything is allocated, and a
 * file that does not reach its own end mark is refused, since decoders fill what is missing with
 * grey. libavcodec, which is loaded then (av.h), gets one packet: of WebP the chunks that make the
 * pixels (a colour profile that does not inflate is no damage), of a GIF and of an animated WebP
 * the first frame as a still picture, which is laid on its canvas here, of an AVIF its AV1.
 *
 * Everything comes out byte for byte as Pillow's but AVIF (a level or two: libyuv's arithmetic) and
 * what is lossy in JPEG 2000. */
#include "common/picture_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/av.h"

static const char *const KIND_NAMES[] = {
#define X(id, name, what, by) name,
    SL_PICTURE_KINDS(X)
#undef X
};

const char *sl_picture_kind_name(sl_picture_kind kind)
{
    return KIND_NAMES[kind];
}

const char *sl_picture_kinds(void)
{
    return "PNG, JPEG, WebP, BMP, GIF, TIFF, JPEG 2000, PPM, AVIF or HEIC";
}

/* What the file says of itself before its pixels. */
typedef struct {
    sl_picture_kind kind;
    int64_t w, h;
    bool whole;     /* its end mark is there */
    sl_boxes boxes; /* of an AVIF or HEIC */
    /* GIF, animated WebP: the first frame, its place on the canvas and the canvas' colour */
    bool framed;
    sl_span_of frame, palette;
    int x, y, frame_w, frame_h, flags;
    uint8_t fill[3];
} header;

static void png_header(header *h, sl_span_of s)
{
    if (!sl_starts(s, 12, "IHDR", 4) || !sl_has(s, 16, 13)) return;
    h->w = sl_be32(s.at + 16);
    h->h = sl_be32(s.at + 20);
    for (size_t at = 8; sl_has(s, at, 12);) {
        const size_t n = sl_be32(s.at + at);
        if (!sl_has(s, at, 12 + n)) return;
        if (sl_starts(s, at + 4, "IEND", 4)) {
            h->whole = true;
            return;
        }
        at += 12 + n;
    }
}

/* The first marker that is neither a stuffed byte nor a restart, from `at` on; the end if
 * there is none. */
static size_t after_scan(sl_span_of s, size_t at)
{
    for (; at + 1 < s.n; at++)
        if (s.at[at] == 0xff && s.at[at + 1] != 0 && s.at[at + 1] != 0xff &&
            (s.at[at + 1] & 0xf8) != 0xd0)
            return at;
    return s.n;
}

static void jpeg_header(header *h, sl_span_of s)
{
    bool scan = false;
    for (size_t at = 2; sl_has(s, at, 2);) {
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
        if (!sl_has(s, at, 4)) return;
        size_t n = sl_be16(s.at + at + 2);
        if (n < 2 || !sl_has(s, at + 2, n)) return;
        bool frame = mark >= 0xc0 && mark <= 0xcf && mark != 0xc4 && mark != 0xc8 && mark != 0xcc;
        if (frame && !h->w && n >= 8) {
            h->h = sl_be16(s.at + at + 5);
            h->w = sl_be16(s.at + at + 7);
        }
        at += 2 + n;
        if (mark == 0xda) {
            scan = true;
            at = after_scan(s, at);
        }
    }
}

/* Where an animation's first frame lies. Its canvas is clear black, and alpha is dropped. */
static void webp_frame(header *h, sl_span_of anmf)
{
    if (h->framed || anmf.n < 16) return;
    h->framed = true;
    h->frame = sl_part(anmf, 16, anmf.n);
    h->x = (int)sl_le24(anmf.at) * 2;
    h->y = (int)sl_le24(anmf.at + 3) * 2;
    h->frame_w = (int)sl_le24(anmf.at + 6) + 1;
    h->frame_h = (int)sl_le24(anmf.at + 9) + 1;
}

static void webp_header(header *h, sl_span_of s)
{
    bool animated = false;
    h->whole = sl_has(s, 0, (size_t)sl_le32(s.at + 4) + 8);
    for (size_t at = 12; sl_has(s, at, 8);) {
        size_t n = sl_le32(s.at + at + 4), d = at + 8;
        if (sl_starts(s, at, "VP8X", 4) && sl_has(s, d, 10)) {
            animated = s.at[d] & 2;
            h->w = sl_le24(s.at + d + 4) + 1;
            h->h = sl_le24(s.at + d + 7) + 1;
        } else if (sl_starts(s, at, "VP8L", 4) && sl_has(s, d, 5) && !h->w) {
            uint32_t bits = sl_le32(s.at + d + 1);
            h->w = (bits & 0x3fff) + 1;
            h->h = (bits >> 14 & 0x3fff) + 1;
        } else if (sl_starts(s, at, "VP8 ", 4) && sl_has(s, d, 10) && !h->w) {
            h->w = sl_le16(s.at + d + 6) & 0x3fff;
            h->h = sl_le16(s.at + d + 8) & 0x3fff;
        } else if (animated && sl_starts(s, at, "ANMF", 4)) webp_frame(h, sl_part(s, d, n));
        if (!sl_has(s, d, n)) break;
        at = d + n + (n & 1);
    }
    if (animated && !h->framed) h->whole = false;
}

static void bmp_header(header *h, sl_span_of s)
{
    if (!sl_has(s, 14, 12)) return;
    h->whole = sl_le32(s.at + 2) <= s.n; /* the decoder counts the pixels itself */
    if (sl_le32(s.at + 14) < 40) {
        h->w = sl_le16(s.at + 18);
        h->h = sl_le16(s.at + 20);
    } else {
        int64_t y = (int32_t)sl_le32(s.at + 22);
        h->w = (int32_t)sl_le32(s.at + 18);
        h->h = y < 0 ? -y : y;
    }
}

/* Behind a chain of GIF's data blocks; 0 if it does not end. */
static size_t gif_blocks(sl_span_of s, size_t at)
{
    while (sl_has(s, at, 1)) {
        if (!s.at[at]) return at + 1;
        at += 1 + (size_t)s.at[at];
    }
    return 0;
}

/* The canvas as Pillow has it: as wide as the first frame needs, filled with its transparent
 * colour, else with colour 0. */
static void gif_frame(header *h, sl_span_of s, size_t at, int clear)
{
    const uint8_t *d = s.at + at + 1;
    h->x = (int)sl_le16(d);
    h->y = (int)sl_le16(d + 2);
    h->frame_w = (int)sl_le16(d + 4);
    h->frame_h = (int)sl_le16(d + 6);
    h->flags = d[8];
    if (h->x + h->frame_w > h->w) h->w = h->x + h->frame_w;
    if (h->y + h->frame_h > h->h) h->h = h->y + h->frame_h;
    at += 10;
    if (h->flags & 0x80) {
        h->palette = sl_part(s, at, (size_t)3 << ((h->flags & 7) + 1));
        at += (size_t)3 << ((h->flags & 7) + 1);
    }
    const size_t end = gif_blocks(s, at + 1);
    h->framed = end != 0 && h->frame_w > 0 && h->frame_h > 0;
    h->whole = end != 0;
    h->frame = sl_part(s, at, end ? end - at : 0);
    const size_t k = 3 * (size_t)(clear < 0 ? 0 : clear);
    if (sl_has(h->palette, k, 3)) memcpy(h->fill, h->palette.at + k, 3);
    else if (!h->palette.n) memset(h->fill, clear < 0 ? 0 : clear, 3);
}

static void gif_header(header *h, sl_span_of s)
{
    int clear = -1;
    size_t at = 13;
    if (!sl_has(s, 0, 13)) return;
    h->w = sl_le16(s.at + 6);
    h->h = sl_le16(s.at + 8);
    if (s.at[10] & 0x80) {
        h->palette = sl_part(s, at, (size_t)3 << ((s.at[10] & 7) + 1));
        at += (size_t)3 << ((s.at[10] & 7) + 1);
    }
    while (sl_has(s, at, 1) && s.at[at] != 0x3b) {
        if (s.at[at] == 0x2c && sl_has(s, at, 11)) {
            gif_frame(h, s, at, clear);
            return;
        }
        if (s.at[at] != 0x21) { /* between blocks */
            at++;
            continue;
        }
        if (sl_has(s, at, 7) && s.at[at + 1] == 0xf9 && s.at[at + 2] >= 4)
            clear = s.at[at + 3] & 1 ? s.at[at + 6] : -1;
        if (!(at = gif_blocks(s, at + 2))) return;
    }
}

/* JP2's boxes around a codestream, or the codestream alone. */
static void jp2_header(header *h, sl_span_of s)
{
    size_t at = 0;
    if (!sl_starts(s, 0, "\xff\x4f\xff\x51", 4)) {
        for (at = 12; sl_has(s, at, 8) && !sl_starts(s, at + 4, "jp2c", 4);) {
            const size_t n = sl_be32(s.at + at);
            if (n < 8 || !sl_has(s, at, n)) return;
            at += n;
        }
        if (!sl_has(s, at, 8)) return;
        const size_t n = sl_be32(s.at + at);
        if (n > 1) s = sl_part(s, 0, at + n);
        at += n == 1 ? 16 : 8;
    }
    if (!sl_starts(s, at, "\xff\x4f\xff\x51", 4) || !sl_has(s, at, 24)) return;
    h->w = (int64_t)sl_be32(s.at + at + 8) - sl_be32(s.at + at + 16);
    h->h = (int64_t)sl_be32(s.at + at + 12) - sl_be32(s.at + at + 20);
    h->whole = sl_starts(s, s.n - 2, "\xff\xd9", 2);
}

/* Nothing but pixels tells whether libheif's files are whole. */
static void boxes_header(header *h, sl_span_of s)
{
    sl_boxes_read(&h->boxes, s);
    h->w = h->boxes.w;
    h->h = h->boxes.h;
    h->whole = h->boxes.whole;
    if (!h->boxes.av1) h->kind = SL_PICTURE_HEIC;
}

/* A name for what people take for a picture and this does not read; NULL for anything else. */
static const char *stranger(sl_span_of s)
{
    if (sl_starts(s, 4, "ftyp", 4) || sl_starts(s, 0, "\x1a\x45\xdf\xa3", 4)) return "a video";
    if (sl_starts(s, 0, "%PDF", 4)) return "a PDF";
    if (sl_starts(s, 0, "\xff\x0a", 2) || sl_starts(s, 4, "JXL ", 4)) return "a JPEG XL";
    if (sl_starts(s, 0, "8BPS", 4)) return "a Photoshop document";
    if (sl_starts(s, 0, "<svg", 4) || sl_starts(s, 0, "<?xml", 5)) return "an SVG or other XML";
    if (sl_starts(s, 0, "<!DOCTYPE", 9) || sl_starts(s, 0, "<html", 5)) return "a web page";
    if (sl_starts(s, 0, "version https://git-lfs", 23)) return "a Git LFS pointer";
    return NULL;
}

static bool is_heif(sl_span_of s)
{
    static const char BRANDS[][5] = {"avif", "avis", "mif1", "msf1", "heic",
                                     "heix", "heim", "heis", "hevc", "mif2"};
    for (size_t i = 0; i < sizeof BRANDS / sizeof *BRANDS && sl_starts(s, 4, "ftyp", 4); i++)
        if (sl_starts(s, 8, BRANDS[i], 4)) return true;
    return false;
}

/* By the first bytes; SL_PICTURE_KIND_COUNT for none of them. */
static sl_picture_kind kind_of(sl_span_of s)
{
    if (sl_starts(s, 0, "\x89PNG\r\n\x1a\n", 8)) return SL_PICTURE_PNG;
    if (sl_starts(s, 0, "\xff\xd8\xff", 3)) return SL_PICTURE_JPEG;
    if (sl_starts(s, 0, "RIFF", 4) && sl_starts(s, 8, "WEBP", 4)) return SL_PICTURE_WEBP;
    if (sl_starts(s, 0, "BM", 2) && sl_has(s, 14, 12)) return SL_PICTURE_BMP;
    if (sl_starts(s, 0, "GIF87a", 6) || sl_starts(s, 0, "GIF89a", 6)) return SL_PICTURE_GIF;
    if (sl_starts(s, 0, "II*\0", 4) || sl_starts(s, 0, "MM\0*", 4)) return SL_PICTURE_TIFF;
    if (sl_starts(s, 0, "\0\0\0\x0cjP  \r\n\x87\n", 12) || sl_starts(s, 0, "\xff\x4f\xff\x51", 4))
        return SL_PICTURE_JP2;
    int64_t w, h;
    bool whole;
    if (sl_pnm_header(s, &w, &h, &whole)) return SL_PICTURE_PNM;
    return is_heif(s) ? SL_PICTURE_AVIF : SL_PICTURE_KIND_COUNT;
}

static sl_code read_header(header *h, sl_span_of s, const char *name, sl_err *err)
{
    *h = (header){.kind = kind_of(s)};
    if (!s.n)
        return sl_fail(err, SL_FORMAT, "%s: the file is empty, want a picture (%s)", name,
                       sl_picture_kinds());
    switch (h->kind) {
    case SL_PICTURE_PNG: png_header(h, s); break;
    case SL_PICTURE_JPEG: jpeg_header(h, s); break;
    case SL_PICTURE_WEBP: webp_header(h, s); break;
    case SL_PICTURE_BMP: bmp_header(h, s); break;
    case SL_PICTURE_GIF: gif_header(h, s); break;
    case SL_PICTURE_TIFF: sl_tiff_header(s, &h->w, &h->h, &h->whole); break;
    case SL_PICTURE_JP2: jp2_header(h, s); break;
    case SL_PICTURE_PNM: sl_pnm_header(s, &h->w, &h->h, &h->whole); break;
    case SL_PICTURE_AVIF: boxes_header(h, s); break;
    default:
        return sl_fail(err, SL_FORMAT, "%s: %s, want a picture (%s)", name,
                       stranger(s) ? stranger(s) : "not a picture", sl_picture_kinds());
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

/* ---- the packet ---- */

static void put_le(uint8_t *to, size_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) to[i] = (uint8_t)(v >> 8 * i);
}

/* A still WebP of w x h: the alpha and the pixels among these chunks. */
static size_t webp_packet(uint8_t *to, sl_span_of chunks, int w, int h)
{
    size_t n = 12;
    bool pixels = false;
    memcpy(to, "RIFF\0\0\0\0WEBP", 12);
    for (size_t at = 0; sl_has(chunks, at, 8) && !pixels;) {
        const size_t size = sl_le32(chunks.at + at + 4), padded = 8 + size + (size & 1);
        if (!sl_has(chunks, at, 8 + size)) break;
        const bool alpha = sl_starts(chunks, at, "ALPH", 4);
        pixels = sl_starts(chunks, at, "VP8 ", 4) || sl_starts(chunks, at, "VP8L", 4);
        if (alpha && n == 12) {
            memcpy(to + n, "VP8X\x0a\0\0\0\x10\0\0\0", 12);
            put_le(to + n + 12, (size_t)w - 1, 3);
            put_le(to + n + 15, (size_t)h - 1, 3);
            n += 18;
        }
        if (alpha || pixels) {
            memcpy(to + n, chunks.at + at, 8 + size);
            if (size & 1) to[n + 8 + size] = 0;
            n += padded;
        }
        at += padded;
    }
    put_le(to + 4, n - 8, 4);
    return n;
}

/* The first frame alone on a screen of its size, without transparency. */
static size_t gif_packet(uint8_t *to, const header *h)
{
    const size_t entries = h->palette.n / 3;
    int bits = 0;
    while (bits < 7 && ((size_t)2 << bits) < entries) bits++;
    memset(to, 0, 13);
    memcpy(to, "GIF89a", 6);
    put_le(to + 6, (size_t)h->frame_w, 2);
    put_le(to + 8, (size_t)h->frame_h, 2);
    uint8_t *d = to + 13;
    memset(d, 0, 10);
    d[0] = 0x2c;
    put_le(d + 5, (size_t)h->frame_w, 2);
    put_le(d + 7, (size_t)h->frame_h, 2);
    d[9] = (uint8_t)(0x80 | (h->flags & 0x40) | (entries ? bits : 7));
    d += 10;
    for (int i = 0; !entries && i < 256; i++, d += 3) memset(d, i, 3); /* greys */
    if (entries) {
        memset(d, 0, (size_t)6 << bits);
        memcpy(d, h->palette.at, entries * 3);
        d += (size_t)6 << bits;
    }
    memcpy(d, h->frame.at, h->frame.n);
    d += h->frame.n;
    *d++ = 0x3b;
    return (size_t)(d - to);
}

/* Of a TIFF's first directory the entries that libavcodec knows: one that it does not is an error
 * to it. */
static void tiff_packet(uint8_t *to, sl_span_of s)
{
    static const uint16_t KNOWN[] = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292,
                                     293, 317, 320, 322, 323, 324, 325, 339, 347, 530, 532};
    const bool little = s.at[0] == 'I';
    const size_t dir = little ? sl_le32(s.at + 4) : sl_be32(s.at + 4);
    const unsigned n = little ? sl_le16(s.at + dir) : sl_be16(s.at + dir);
    unsigned kept = 0;
    memcpy(to, s.at, s.n);
    for (unsigned i = 0; i < n; i++) {
        const uint8_t *e = s.at + dir + 2 + (size_t)i * 12;
        const unsigned tag = little ? sl_le16(e) : sl_be16(e);
        for (size_t k = 0; k < sizeof KNOWN / sizeof *KNOWN; k++)
            if (KNOWN[k] == tag) memcpy(to + dir + 2 + (size_t)kept++ * 12, e, 12);
    }
    to[dir] = (uint8_t)(little ? kept : kept >> 8);
    to[dir + 1] = (uint8_t)(little ? kept >> 8 : kept);
    if (kept < n) memset(to + dir + 2 + (size_t)kept * 12, 0, 4); /* no second page */
}

/* What the decoder gets. */
static AVPacket *make_packet(const sl_av *av, const header *h, sl_span_of s)
{
    AVPacket *packet = av->av_packet_alloc();
    if (!packet || av->av_new_packet(packet, (int)s.n + 1024)) {
        av->av_packet_free(&packet);
        return NULL;
    }
    size_t n = s.n;
    switch (h->kind) {
    case SL_PICTURE_WEBP:
        n = webp_packet(packet->data, h->framed ? h->frame : sl_part(s, 12, s.n),
                        h->framed ? h->frame_w : (int)h->w, h->framed ? h->frame_h : (int)h->h);
        break;
    case SL_PICTURE_TIFF: tiff_packet(packet->data, s); break;
    case SL_PICTURE_GIF: n = gif_packet(packet->data, h); break;
    case SL_PICTURE_AVIF:
        n = h->boxes.configuration.n;
        if (n) memcpy(packet->data, h->boxes.configuration.at, n);
        memcpy(packet->data + n, h->boxes.sample.at, h->boxes.sample.n);
        n += h->boxes.sample.n;
        break;
    default: memcpy(packet->data, s.at, s.n);
    }
    av->av_shrink_packet(packet, (int)n);
    return packet;
}

static const AVCodec *decoder_of(const sl_av *av, sl_picture_kind kind)
{
    static const enum AVCodecID IDS[SL_PICTURE_KIND_COUNT] = {
        [SL_PICTURE_WEBP] = AV_CODEC_ID_WEBP,    [SL_PICTURE_BMP] = AV_CODEC_ID_BMP,
        [SL_PICTURE_GIF] = AV_CODEC_ID_GIF,      [SL_PICTURE_TIFF] = AV_CODEC_ID_TIFF,
        [SL_PICTURE_JP2] = AV_CODEC_ID_JPEG2000, [SL_PICTURE_AVIF] = AV_CODEC_ID_AV1};
    const AVCodec *dav1d = /* libavcodec's own AV1 wants a GPU */
        kind == SL_PICTURE_AVIF ? av->avcodec_find_decoder_by_name("libdav1d") : NULL;
    return dav1d ? dav1d : av->avcodec_find_decoder(IDS[kind]);
}

/* The one frame of the file, decoded without a fault. */
static sl_code decode(const sl_av *av, AVFrame *frame, const header *h, sl_span_of s,
                      const char *name, sl_err *err)
{
    const AVCodec *codec = decoder_of(av, h->kind);
    AVCodecContext *c = codec ? av->avcodec_alloc_context3(codec) : NULL;
    AVPacket *packet = c ? make_packet(av, h, s) : NULL;
    const int w = h->framed ? h->frame_w : (int)h->w, height = h->framed ? h->frame_h : (int)h->h;
    sl_code rc = SL_OK;
    int e = 0;
    if (!codec) {
        rc = sl_fail(err, SL_ARG, "%s: this libavcodec has no %s decoder", name,
                     KIND_NAMES[h->kind]);
        goto done;
    }
    if (!packet) {
        rc = sl_fail(err, SL_NOMEM, "%s: no memory to decode %zu bytes", name, s.n);
        goto done;
    }
    c->thread_count = 1;
    c->max_pixels = SL_PICTURE_MAX_PIXELS;
    c->err_recognition = AV_EF_CRCCHECK | AV_EF_EXPLODE;
    if ((e = av->avcodec_open2(c, codec, NULL)) >= 0 &&
        (e = av->avcodec_send_packet(c, packet)) >= 0) {
        av->avcodec_send_packet(c, NULL);
        e = av->avcodec_receive_frame(c, frame);
    }
    if (e == AVERROR(ENOMEM))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, w, height);
    else if (e < 0 || frame->decode_error_flags || (frame->flags & AV_FRAME_FLAG_CORRUPT))
        rc = sl_fail(err, SL_FORMAT, "%s: the %s picture is damaged or of a kind that is not read",
                     name, KIND_NAMES[h->kind]);
    else if (frame->width != w || frame->height != height)
        rc = sl_fail(err, SL_FORMAT, "%s: the header says %dx%d pixels, the picture has %dx%d",
                     name, w, height, frame->width, frame->height);
done:
    av->av_packet_free(&packet);
    av->avcodec_free_context(&c);
    return rc;
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

/* The first frame on its canvas; what stands out is cut off. */
static void paste(sl_picture *canvas, const uint8_t *rgb, const header *h)
{
    for (size_t i = 0; i < (size_t)canvas->w * (size_t)canvas->h; i++)
        memcpy(canvas->rgb + i * 3, h->fill, 3);
    int w = h->frame_w < canvas->w - h->x ? h->frame_w : canvas->w - h->x;
    for (int y = 0; y < h->frame_h && y + h->y < canvas->h && w > 0; y++)
        memcpy(canvas->rgb + ((size_t)(y + h->y) * (size_t)canvas->w + (size_t)h->x) * 3,
               rgb + (size_t)y * (size_t)h->frame_w * 3, (size_t)w * 3);
}

/* Through libavcodec, into p->rgb. */
static sl_code decode_frame(sl_picture *p, const header *h, sl_span_of s, const char *name,
                            sl_err *err)
{
    const sl_av *av;
    uint8_t *part = NULL;
    sl_code rc = sl_av_load(&av, err);
    if (rc) return sl_context(err, rc, "%s", name);
    av->av_log_set_level(AV_LOG_QUIET);
    AVFrame *frame = av->av_frame_alloc();
    rc = frame ? decode(av, frame, h, s, name, err)
               : sl_fail(err, SL_NOMEM, "%s: no memory to decode", name);
    if (!rc && h->framed && !(part = malloc((size_t)h->frame_w * (size_t)h->frame_h * 3)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, p->w, p->h);
    if (!rc &&
        !sl_frame_to_rgb(av, part ? part : p->rgb, frame, h->kind, h->boxes.matrix, h->boxes.range))
        rc = sl_fail(err, SL_FORMAT, "%s: cannot turn %s pixels into RGB", name,
                     av->av_get_pix_fmt_name(frame->format));
    if (!rc && part) paste(p, part, h);
    av->av_frame_free(&frame);
    free(part);
    return rc;
}

static sl_code decode_pixels(sl_picture *p, const header *h, sl_span_of s, const char *name,
                             sl_err *err)
{
    if (h->kind == SL_PICTURE_PNG) return sl_png_decode(p->rgb, p->w, p->h, s, name, err);
    if (h->kind == SL_PICTURE_JPEG) return sl_jpeg_decode(p->rgb, p->w, p->h, s, name, err);
    if (h->kind != SL_PICTURE_PNM) return decode_frame(p, h, s, name, err);
    if (sl_pnm_decode(p->rgb, s)) return SL_OK;
    return sl_fail(err, SL_FORMAT, "%s: the PPM picture is damaged", name);
}

sl_code sl_picture_decode(sl_picture *out, const uint8_t *bytes, size_t length, const char *name,
                          sl_err *err)
{
    const sl_span_of s = {bytes, length};
    header h;
    sl_picture p = {0};
    sl_code rc;
    *out = p;
    if (length > SL_PICTURE_MAX_FILE)
        return sl_fail(err, SL_FORMAT, "%s: more than %zu bytes, the most that a picture may have",
                       name, SL_PICTURE_MAX_FILE);
    if ((rc = read_header(&h, s, name, err))) return rc;
    if (h.kind == SL_PICTURE_HEIC) return sl_heif_decode(out, s, name, err);
    p = (sl_picture){(int)h.w, (int)h.h, malloc((size_t)h.w * (size_t)h.h * 3)};
    if (!p.rgb) goto nomem;
    if ((rc = decode_pixels(&p, &h, s, name, err))) goto done;
    if (!orient(&p, sl_orientation(h.kind, s, h.boxes.turned))) goto nomem;
    *out = p;
    p.rgb = NULL;
    goto done;
nomem:
    rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, p.w, p.h);
done:
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
