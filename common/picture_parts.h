/* picture_parts.h - what the files of common/picture*.c share; nobody else includes it. */
#ifndef SL_PICTURE_PARTS_H
#define SL_PICTURE_PARTS_H

#include <stdbool.h>
#include <string.h>

#include "common/av.h"
#include "common/picture.h"

/* Bytes with a length; every read asks `sl_has` first. */
typedef struct {
    const uint8_t *at;
    size_t n;
} sl_span_of;

static inline bool sl_has(sl_span_of s, size_t offset, size_t n)
{
    return offset <= s.n && n <= s.n - offset;
}

static inline bool sl_starts(sl_span_of s, size_t offset, const char *text, size_t n)
{
    return sl_has(s, offset, n) && !memcmp(s.at + offset, text, n);
}

/* The n bytes from `offset` on, or as many as there are. */
static inline sl_span_of sl_part(sl_span_of s, size_t offset, size_t n)
{
    if (offset > s.n) offset = s.n;
    return (sl_span_of){s.at ? s.at + offset : NULL, n < s.n - offset ? n : s.n - offset};
}

static inline uint32_t sl_be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}
static inline uint32_t sl_be32(const uint8_t *p)
{
    return sl_be16(p) << 16 | sl_be16(p + 2);
}
static inline uint32_t sl_le16(const uint8_t *p)
{
    return (uint32_t)p[1] << 8 | p[0];
}
static inline uint32_t sl_le24(const uint8_t *p)
{
    return (uint32_t)p[2] << 16 | sl_le16(p);
}
static inline uint32_t sl_le32(const uint8_t *p)
{
    return sl_le16(p + 2) << 16 | sl_le16(p);
}

/* ---- orientation, picture_exif.c ---- */

/* 1 to 8 as Pillow's ImageOps.exif_transpose finds it in a file of this kind, 1 otherwise. `boxed`:
 * what an AVIF's irot and imir say, 0 for others. */
int sl_orientation(sl_picture_kind kind, sl_span_of file, int boxed);

/* Size of a TIFF's first page; *whole is false where its strips or tiles are not all there. */
void sl_tiff_header(sl_span_of file, int64_t *w, int64_t *h, bool *whole);

/* ---- AVIF and HEIC, picture_boxes.c ---- */

/* The primary picture of an ISO base media file (ISO/IEC 23008-12). */
typedef struct {
    int64_t w, h;      /* ispe: before the turn */
    int turned;        /* irot and imir as an EXIF orientation, 1 to 8 */
    bool av1;          /* one AV1 picture, of these bytes; otherwise libheif may have it */
    bool whole;        /* its bytes are there */
    sl_span_of sample, /* AV1 */
        configuration; /* of av1C: OBUs that come before it */
    int matrix, range; /* of nclx: matrix coefficients, 1: full range; -1: the stream's own */
} sl_boxes;

/* False if it is no such file. */
bool sl_boxes_read(sl_boxes *out, sl_span_of file);

/* Through libheif, which is opened when it is first needed. *out is upright.
 * Errors: SL_ARG there is no libheif, or it has no decoder for this; SL_FORMAT. */
sl_code sl_heif_decode(sl_picture *out, sl_span_of file, const char *name, sl_err *err);

/* ---- pixels: each fills rgb [h, w, 3] of the size that the header has ---- */

/* Errors: SL_FORMAT damaged; SL_NOMEM. */
sl_code sl_png_decode(uint8_t *rgb, int w, int h, sl_span_of file, const char *name, sl_err *err);
/* Errors: SL_FORMAT damaged; SL_ARG of a kind that libjpeg does not read; SL_NOMEM. */
sl_code sl_jpeg_decode(uint8_t *rgb, int w, int h, sl_span_of file, const char *name, sl_err *err);

/* PBM, PGM and PPM (P1 to P6). False: no such header; *whole is false if pixels miss. */
bool sl_pnm_header(sl_span_of file, int64_t *w, int64_t *h, bool *whole);
/* False: a sample that is no number, or larger than the header says. */
bool sl_pnm_decode(uint8_t *rgb, sl_span_of file);

/* A frame of libavcodec. `matrix`, `range`: as in sl_boxes. False: pixels of this format cannot be
 * turned, or no memory. */
bool sl_frame_to_rgb(const sl_av *av, uint8_t *rgb, const AVFrame *f, sl_picture_kind from,
                     int matrix, int range);

#endif
