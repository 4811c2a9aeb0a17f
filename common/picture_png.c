/* picture_png.c - PNG (ISO/IEC 15948) through zlib: every depth, kind and interlacing to 8-bit RGB,
 * as Pillow has it. It is the kind that most jobs bring, and libavcodec takes longer to load than
 * such a picture to decode.
 *
 * Of the chunks those that make the pixels are read, and their checksums compared; what is damaged
 * elsewhere (a colour profile that does not inflate) is no damage. */
#include "common/picture_parts.h"

#include <stdlib.h>

#include <zlib.h>

enum { GREY = 0, COLOUR = 2, PALETTE = 3, GREY_ALPHA = 4, COLOUR_ALPHA = 6 };

/* What IHDR and PLTE say. */
typedef struct {
    size_t w, h;
    unsigned depth, type;
    bool interlaced;
    sl_span_of palette; /* 3 bytes a colour */
} header;

/* The bytes that the chunks IDAT hold together. */
typedef struct {
    z_stream z;
    sl_span_of file;
    size_t at; /* of the next chunk */
    bool ended, damaged;
} pixels;

/* The body of the chunk at *at, which then is that of the next one; *sound: its checksum is right.
 * False: there is none. */
static bool next_chunk(sl_span_of s, size_t *at, const char **type, sl_span_of *body, bool *sound)
{
    if (!sl_has(s, *at, 12)) return false;
    const size_t n = sl_be32(s.at + *at);
    if (!sl_has(s, *at, 12 + n)) return false;
    *type = (const char *)s.at + *at + 4;
    *body = sl_part(s, *at + 8, n);
    *sound = false;
    if (!memcmp(*type, "IHDR", 4) || !memcmp(*type, "PLTE", 4) || !memcmp(*type, "IDAT", 4))
        *sound = crc32_z(0, s.at + *at + 4, n + 4) == sl_be32(s.at + *at + 8 + n);
    *at += 12 + n;
    return true;
}

static unsigned samples_of(unsigned type)
{
    return type == COLOUR ? 3 : type == GREY_ALPHA ? 2 : type == COLOUR_ALPHA ? 4 : 1;
}

static bool depth_fits(unsigned type, unsigned depth)
{
    switch (type) {
    case GREY: return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case PALETTE: return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case COLOUR:
    case GREY_ALPHA:
    case COLOUR_ALPHA: return depth == 8 || depth == 16;
    default: return false;
    }
}

/* *first is where the first IDAT stands. */
static bool read_header(header *h, sl_span_of s, size_t *first)
{
    const char *type;
    sl_span_of body;
    bool sound;
    size_t at = 8;
    *h = (header){0};
    if (!next_chunk(s, &at, &type, &body, &sound) || memcmp(type, "IHDR", 4) != 0 || !sound ||
        body.n != 13)
        return false;
    h->w = sl_be32(body.at);
    h->h = sl_be32(body.at + 4);
    h->depth = body.at[8];
    h->type = body.at[9];
    h->interlaced = body.at[12];
    if (!depth_fits(h->type, h->depth) || body.at[10] || body.at[11] || body.at[12] > 1)
        return false;
    for (*first = at; next_chunk(s, &at, &type, &body, &sound); *first = at) {
        if (!memcmp(type, "IDAT", 4)) return h->type != PALETTE || h->palette.n;
        if (memcmp(type, "PLTE", 4) != 0) continue;
        if (!sound || body.n % 3 || body.n > (size_t)256 * 3) return false;
        h->palette = body;
    }
    return false;
}

/* The next IDAT as zlib's input. */
static bool next_input(pixels *p)
{
    const char *type;
    sl_span_of body;
    bool sound;
    while (next_chunk(p->file, &p->at, &type, &body, &sound)) {
        if (!memcmp(type, "IEND", 4)) return false;
        if (memcmp(type, "IDAT", 4) != 0) continue;
        if (!sound) p->damaged = true;
        p->z.next_in = (uint8_t *)(uintptr_t)body.at; /* zlib reads it alone */
        p->z.avail_in = (uInt)body.n;
        return sound;
    }
    return false;
}

/* The next n bytes of pixels. False: there are not so many, or damaged ones. */
static bool inflate_to(pixels *p, uint8_t *to, size_t n)
{
    p->z.next_out = to;
    p->z.avail_out = (uInt)n;
    while (p->z.avail_out && !p->ended) {
        if (!p->z.avail_in && !next_input(p)) return false;
        const int e = inflate(&p->z, Z_NO_FLUSH);
        if (e == Z_STREAM_END) p->ended = true;
        else if (e != Z_OK && e != Z_BUF_ERROR) p->damaged = true;
        if (p->damaged) return false;
    }
    return !p->z.avail_out;
}

/* What stands behind the last pixel is sound: zlib's checksum of all is right. */
static bool ends_well(pixels *p)
{
    uint8_t more[256];
    inflate_to(p, more, sizeof more);
    return !p->damaged;
}

static uint8_t paeth(uint8_t left, uint8_t up, uint8_t corner)
{
    const int a = abs(up - corner), b = abs(left - corner), c = abs(left + up - 2 * corner);
    return a <= b && a <= c ? left : b <= c ? up : corner;
}

/* A line of n bytes from its differences to the pixel before, `step` bytes back, and the line
 * above. False: no such filter. */
static bool unfilter(unsigned filter, uint8_t *line, const uint8_t *above, size_t n, size_t step)
{
    if (filter > 4) return false;
    for (size_t i = 0; i < n && filter; i++) {
        const uint8_t left = i < step ? 0 : line[i - step], corner = i < step ? 0 : above[i - step];
        line[i] = (uint8_t)(line[i] + (filter == 1   ? left
                                       : filter == 2 ? above[i]
                                       : filter == 3 ? (left + above[i]) / 2
                                                     : paeth(left, above[i], corner)));
    }
    return true;
}

/* Pixel x of a line. */
static void put_pixel(uint8_t *rgb, const header *h, const uint8_t *line, size_t x)
{
    const size_t samples = samples_of(h->type);
    if (h->depth >= 8) { /* of 16 bits the upper 8 */
        const size_t bytes = h->depth / 8;
        const uint8_t *p = line + x * samples * bytes;
        if (h->type == PALETTE) {
            const sl_span_of colour = sl_part(h->palette, (size_t)*p * 3, 3);
            memset(rgb, 0, 3); /* of one beyond the palette */
            if (colour.n) memcpy(rgb, colour.at, colour.n);
        } else if (samples < 3) memset(rgb, *p, 3);
        else
            for (size_t c = 0; c < 3; c++) rgb[c] = p[c * bytes];
        return;
    }
    const unsigned most = (1u << h->depth) - 1;
    const size_t bit = x * h->depth;
    const unsigned v = line[bit / 8] >> (8 - h->depth - bit % 8) & most;
    const sl_span_of colour = sl_part(h->palette, (size_t)v * 3, 3);
    memset(rgb, h->type == PALETTE ? 0 : (int)(v * 255 / most), 3);
    if (h->type == PALETTE && colour.n) memcpy(rgb, colour.at, colour.n);
}

/* A pass of Adam7: its first pixel, and how far apart its pixels are. */
typedef struct {
    size_t x, y, dx, dy;
} pass;

/* `lines`: two of them, each behind its filter's byte. */
static bool read_pass(uint8_t *rgb, const header *h, pixels *p, const pass *at, uint8_t *lines[2])
{
    if (at->x >= h->w) return true; /* nothing is kept of it, not even filters */
    const size_t w = (h->w - at->x + at->dx - 1) / at->dx, bits = samples_of(h->type) * h->depth,
                 n = (w * bits + 7) / 8, step = (bits + 7) / 8;
    memset(lines[1], 0, n + 1);
    for (size_t y = at->y; y < h->h; y += at->dy) {
        if (!inflate_to(p, lines[0], n + 1)) return false;
        if (!unfilter(lines[0][0], lines[0] + 1, lines[1] + 1, n, step)) return false;
        for (size_t x = 0; x < w; x++)
            put_pixel(rgb + (y * h->w + at->x + x * at->dx) * 3, h, lines[0] + 1, x);
        uint8_t *above = lines[0];
        lines[0] = lines[1];
        lines[1] = above;
    }
    return true;
}

static bool read_passes(uint8_t *rgb, const header *h, pixels *p, uint8_t *lines[2])
{
    static const pass WHOLE = {0, 0, 1, 1},
                      ADAM7[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                 {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
    if (!h->interlaced) return read_pass(rgb, h, p, &WHOLE, lines);
    for (int i = 0; i < 7; i++)
        if (!read_pass(rgb, h, p, &ADAM7[i], lines)) return false;
    return true;
}

sl_code sl_png_decode(uint8_t *rgb, int w, int h, sl_span_of file, const char *name, sl_err *err)
{
    header head;
    pixels p = {.file = file};
    sl_code rc = SL_OK;
    uint8_t *lines[2] = {NULL, NULL}, *mine = NULL;
    if (!read_header(&head, file, &p.at) || head.w != (size_t)w || head.h != (size_t)h)
        return sl_fail(err, SL_FORMAT,
                       "%s: the PNG picture is damaged or of a kind that is not read", name);
    const size_t line = 1 + (head.w * samples_of(head.type) * head.depth + 7) / 8;
    if (inflateInit(&p.z) != Z_OK)
        return sl_fail(err, SL_NOMEM, "%s: no memory to decode %zu bytes", name, file.n);
    if (!(mine = malloc(2 * line))) {
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, w, h);
        goto done;
    }
    lines[0] = mine;
    lines[1] = mine + line;
    if (!read_passes(rgb, &head, &p, lines) || !ends_well(&p))
        rc = sl_fail(err, SL_FORMAT, "%s: the PNG picture is damaged or of a kind that is not read",
                     name);
done:
    free(mine);
    inflateEnd(&p.z);
    return rc;
}
