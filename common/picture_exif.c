/* picture_exif.c - a picture's orientation, wherever Pillow's ImageOps.exif_transpose finds it.
 *
 * The order is Pillow's Image.getexif: the EXIF block, else a PNG's "Raw profile type exif" (as
 * ImageMagick writes it), else a TIFF's own directory; only where these have no orientation at all
 * (one out of range is one) the first tiff:Orientation of the XMP packet. */
#include <stdlib.h>

#include <zlib.h>

#include "common/picture_parts.h"

#define TEXT_MOST ((size_t)1 << 20) /* of a PNG's text, inflated: Pillow's MAX_TEXT_CHUNK */
#define TEXTS_MOST 64               /* inflated of one name: Pillow's MAX_TEXT_MEMORY */

enum { NONE = -1, NONSENSE = 0 };

typedef struct {
    sl_span_of s;
    bool little, big_tiff;
} tiff;

static uint32_t u16(const tiff *t, const uint8_t *p)
{
    return t->little ? sl_le16(p) : sl_be16(p);
}
static uint32_t u32(const tiff *t, const uint8_t *p)
{
    return t->little ? sl_le32(p) : sl_be32(p);
}
static uint64_t u64(const tiff *t, const uint8_t *p)
{
    const uint64_t a = u32(t, p), b = u32(t, p + 4);
    return t->little ? b << 32 | a : a << 32 | b;
}

/* One value of a directory's entry as a number; NONSENSE if it is none from 1 to 8. */
static int entry_value(const tiff *t, unsigned type, const uint8_t *p)
{
    double x = 0;
    switch (type) {
    case 3:
    case 8: x = u16(t, p); break;
    case 4:
    case 9:
    case 13: x = u32(t, p); break;
    case 6: x = *p; break;
    case 5:
    case 10: x = u32(t, p + 4) ? (double)u32(t, p) / u32(t, p + 4) : 0; break;
    case 11: {
        const uint32_t bits = u32(t, p);
        float f;
        memcpy(&f, &bits, sizeof f);
        x = f;
        break;
    }
    case 12: {
        const uint64_t bits = u64(t, p);
        memcpy(&x, &bits, sizeof x);
        break;
    }
    case 16: {
        const uint64_t n = u64(t, p);
        x = n <= 8 ? (double)n : 0;
        break;
    }
    default: break; /* bytes and texts are no numbers to Pillow */
    }
    return x >= 1 && x <= 8 && x == (int)x ? (int)x : NONSENSE;
}

/* The last entry 0x112 of the first directory; NONE without one. `xmp`: tag 700, if not NULL. */
static int directory(sl_span_of s, sl_span_of *xmp)
{
    static const uint8_t SIZES[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    tiff t = {.s = s};
    int found = NONE;
    if (!sl_has(s, 0, 8)) return NONE;
    t.little = s.at[0] == 'I';
    /* Pillow takes the 42 in either order */
    if (!(sl_starts(s, 0, "II", 2) || sl_starts(s, 0, "MM", 2)) ||
        !(sl_starts(s, 2, "\0*", 2) || sl_starts(s, 2, "*\0", 2) ||
          sl_starts(s, 2, t.little ? "+\0" : "\0+", 2)))
        return NONE;
    t.big_tiff = s.at[2] == '+' || s.at[3] == '+';
    if (t.big_tiff && !sl_has(s, 8, 8)) return NONE;
    const uint64_t dir = t.big_tiff ? u64(&t, s.at + 8) : u32(&t, s.at + 4);
    const size_t head = t.big_tiff ? 8 : 2, row = t.big_tiff ? 20 : 12, room = t.big_tiff ? 8 : 4;
    if (!sl_has(s, dir, head)) return NONE;
    const uint64_t n = t.big_tiff ? u64(&t, s.at + dir) : u16(&t, s.at + dir);
    for (uint64_t i = 0; i < n && sl_has(s, dir + head + i * row, row); i++) {
        const uint8_t *e = s.at + dir + head + i * row;
        const unsigned tag = u16(&t, e), type = u16(&t, e + 2);
        const uint64_t count = t.big_tiff ? u64(&t, e + 4) : u32(&t, e + 4);
        const uint8_t *at = e + row - room;
        if (type >= sizeof SIZES || !SIZES[type] || !count) continue;
        if (count > s.n) return found; /* Pillow ends at what is not there */
        if (count * SIZES[type] > room) {
            const uint64_t away = t.big_tiff ? u64(&t, at) : u32(&t, at);
            if (!sl_has(s, away, count * SIZES[type])) return found;
            at = s.at + away;
        }
        if (tag == 0x112) found = count == 1 ? entry_value(&t, type, at) : NONSENSE;
        if (tag == 700 && xmp) *xmp = (sl_span_of){at, count * SIZES[type]};
    }
    return found;
}

/* The k-th of an entry's numbers; 0 if it is not there. */
static uint64_t number_at(const tiff *t, const uint8_t *e, uint64_t k)
{
    const unsigned type = u16(t, e + 2), size = type == 3 ? 2 : 4;
    const uint64_t count = u32(t, e + 4);
    const uint8_t *at = e + 8;
    if ((type != 3 && type != 4) || k >= count || count > t->s.n) return 0;
    if (count * size > 4) {
        const size_t away = u32(t, at);
        if (!sl_has(t->s, away, count * size)) return 0;
        at = t->s.at + away;
    }
    return size == 2 ? u16(t, at + k * 2) : u32(t, at + k * 4);
}

void sl_tiff_header(sl_span_of s, int64_t *w, int64_t *h, bool *whole)
{
    tiff t = {.s = s, .little = sl_starts(s, 0, "II", 2)};
    const uint8_t *offsets = NULL, *counts = NULL;
    if (!sl_has(s, 0, 8)) return;
    const size_t dir = u32(&t, s.at + 4);
    if (!sl_has(s, dir, 2) || !sl_has(s, dir + 2, 12 * (size_t)u16(&t, s.at + dir))) return;
    for (size_t i = 0; i < u16(&t, s.at + dir); i++) {
        const uint8_t *e = s.at + dir + 2 + i * 12;
        const unsigned tag = u16(&t, e);
        if (tag == 256) *w = (int64_t)number_at(&t, e, 0);
        if (tag == 257) *h = (int64_t)number_at(&t, e, 0);
        if (tag == 273 || tag == 324) offsets = e; /* of strips, of tiles */
        if (tag == 279 || tag == 325) counts = e;
    }
    *whole = offsets != NULL;
    if (!offsets || !counts) return;
    for (uint64_t k = 0; k < u32(&t, offsets + 4) && *whole; k++) {
        const uint64_t from = number_at(&t, offsets, k), n = number_at(&t, counts, k);
        *whole = from && n && sl_has(s, from, n);
    }
}

static int exif(sl_span_of s)
{
    while (sl_starts(s, 0, "Exif\0\0", 6)) s = (sl_span_of){s.at + 6, s.n - 6};
    return directory(s, NULL);
}

/* The first tiff:Orientation="N or >N. */
static int xmp_orientation(sl_span_of s)
{
    static const char KEY[] = "tiff:Orientation";
    const size_t n = sizeof KEY - 1;
    for (size_t at = 0; sl_has(s, at, n + 2); at++) {
        if (s.at[at] != 't' || memcmp(s.at + at, KEY, n)) continue;
        const uint8_t *p = s.at + at + n;
        size_t sign = *p == '>' ? 1 : *p == '=' && p[1] == '"' ? 2 : 0;
        if (!sign || !sl_has(s, at + n, sign + 1) || p[sign] < '0' || p[sign] > '9') continue;
        return p[sign] >= '1' && p[sign] <= '8' ? p[sign] - '0' : NONSENSE;
    }
    return NONE;
}

static int either(int first, sl_span_of xmp)
{
    if (first == NONE) first = xmp_orientation(xmp);
    return first >= 1 ? first : 1;
}

/* ---- PNG ---- */

typedef struct {
    uint8_t *inflated; /* what `text` lies in, or NULL */
    sl_span_of text;
    int tries; /* to inflate one */
} png_text;

static bool inflate_text(png_text *t, sl_span_of in)
{
    uLongf n = TEXT_MOST;
    uint8_t *out = t->tries++ < TEXTS_MOST ? malloc(n) : NULL;
    if (!out) return false;
    if (uncompress(out, &n, in.at, in.n) != Z_OK) {
        free(out);
        return false;
    }
    free(t->inflated);
    *t = (png_text){out, {out, n}, t->tries};
    return true;
}

/* "LABEL\n  LENGTH\n" and hexadecimal digits behind a first empty line. */
static int raw_profile(sl_span_of s)
{
    uint8_t *bytes = malloc(s.n / 2 + 1);
    size_t n = 0, at = 0;
    int high = -1, found = NONE;
    if (!bytes) return NONE;
    for (int lines = 0; at < s.n && lines < 3; at++) lines += s.at[at] == '\n';
    for (; at < s.n; at++) {
        const int c = s.at[at] | 0x20, v = c >= '0' && c <= '9'   ? c - '0'
                                           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                                  : -1;
        if (v < 0) continue;
        if (high < 0) high = v;
        else bytes[n++] = (uint8_t)(high << 4 | v), high = -1;
    }
    found = exif((sl_span_of){bytes, n});
    free(bytes);
    return found;
}

/* A text chunk: its keyword (of `key`, NUL included) and the place of its text. */
static bool take_text(png_text *t, sl_span_of chunk, const char *type, const char *key, size_t n)
{
    if (!sl_starts(chunk, 0, key, n)) return false;
    sl_span_of s = sl_part(chunk, n, chunk.n);
    bool packed = !memcmp(type, "zTXt", 4);
    if (packed && s.n) s = sl_part(s, 1, s.n);
    if (!memcmp(type, "iTXt", 4)) {
        if (s.n < 2) return false;
        packed = s.at[0] != 0;
        s = sl_part(s, 2, s.n);
        for (int i = 0; i < 2; i++) { /* the language, the keyword in it */
            const uint8_t *end = s.n ? memchr(s.at, 0, s.n) : NULL;
            if (!end) return false;
            s = sl_part(s, (size_t)(end - s.at) + 1, s.n);
        }
    }
    if (packed) return inflate_text(t, s);
    free(t->inflated);
    *t = (png_text){NULL, s, t->tries};
    return true;
}

static int png_orientation(sl_span_of s)
{
    static const char RAW[] = "Raw profile type exif", XMP[] = "XML:com.adobe.xmp";
    sl_span_of block = {0};
    png_text raw = {0}, xmp = {0};
    bool has_block = false, has_raw = false;
    for (size_t at = 8; sl_has(s, at, 12);) {
        const size_t n = sl_be32(s.at + at);
        const char *type = (const char *)s.at + at + 4;
        if (!sl_has(s, at, 12 + n) || !memcmp(type, "IEND", 4)) break;
        const sl_span_of chunk = sl_part(s, at + 8, n);
        if (!memcmp(type, "eXIf", 4)) block = chunk, has_block = true;
        if (!memcmp(type, "tEXt", 4) || !memcmp(type, "zTXt", 4) || !memcmp(type, "iTXt", 4)) {
            has_raw |= take_text(&raw, chunk, type, RAW, sizeof RAW);
            take_text(&xmp, chunk, type, XMP, sizeof XMP);
        }
        at += 12 + n;
    }
    const int found = either(has_block ? exif(block)
                             : has_raw ? raw_profile(raw.text)
                                       : NONE,
                             xmp.text);
    free(raw.inflated);
    free(xmp.inflated);
    return found;
}

/* ---- JPEG ---- */

/* Several EXIF segments are one block, of several XMP packets the last one counts. */
static int jpeg_orientation(sl_span_of s)
{
    static const char XAP[] = "http://ns.adobe.com/xap/1.0/";
    uint8_t *block = NULL;
    size_t bytes = 0;
    sl_span_of xmp = {0};
    for (size_t at = 2; sl_has(s, at, 4);) {
        const uint8_t mark = s.at[at + 1];
        if (s.at[at] != 0xff || mark == 0xff) {
            at++;
            continue;
        }
        if (mark == 0 || mark == 1 || (mark & 0xf8) == 0xd0) {
            at += 2;
            continue;
        }
        if (mark == 0xd9 || mark == 0xda) break;
        const size_t n = sl_be16(s.at + at + 2);
        if (n < 2 || !sl_has(s, at + 2, n)) break;
        const sl_span_of d = sl_part(s, at + 4, n - 2);
        if (mark == 0xe1 && sl_starts(d, 0, "Exif\0\0", 6)) {
            uint8_t *more = realloc(block, bytes + d.n);
            if (!more) break;
            block = more;
            memcpy(block + bytes, d.at + 6, d.n - 6);
            bytes += d.n - 6;
        }
        if (mark == 0xe1 && sl_starts(d, 0, XAP, sizeof XAP)) xmp = sl_part(d, sizeof XAP, d.n);
        at += 2 + n;
    }
    const int found = either(block ? exif((sl_span_of){block, bytes}) : NONE, xmp);
    free(block);
    return found;
}

/* ---- the others ---- */

/* The first EXIF and XMP chunk, where VP8X says that there is one. */
static int webp_orientation(sl_span_of s)
{
    sl_span_of block = {0}, xmp = {0};
    bool extended = sl_starts(s, 12, "VP8X", 4) && sl_has(s, 20, 1);
    for (size_t at = 12; extended && sl_has(s, at, 8);) {
        const size_t n = sl_le32(s.at + at + 4), d = at + 8;
        if (!sl_has(s, d, n)) break;
        if (sl_starts(s, at, "EXIF", 4) && !block.at && s.at[20] & 8) block = sl_part(s, d, n);
        if (sl_starts(s, at, "XMP ", 4) && !xmp.at && s.at[20] & 4) xmp = sl_part(s, d, n);
        at = d + n + (n & 1);
    }
    return either(block.at ? exif(block) : NONE, xmp);
}

int sl_orientation(sl_picture_kind kind, sl_span_of file, int boxed)
{
    sl_span_of xmp = {0};
    switch (kind) {
    case SL_PICTURE_PNG: return png_orientation(file);
    case SL_PICTURE_JPEG: return jpeg_orientation(file);
    case SL_PICTURE_WEBP: return webp_orientation(file);
    case SL_PICTURE_TIFF: {
        const int found = directory(file, &xmp);
        return either(found, xmp);
    }
    case SL_PICTURE_AVIF: return boxed; /* whatever its EXIF says, as libavif */
    default: return 1;
    }
}
