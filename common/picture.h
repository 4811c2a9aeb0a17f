/* picture.h - read a picture file into 8-bit RGB, resize as Pillow does, write a PNG.
 *
 * What is read is SL_PICTURE_KINDS. Pixels come out as Pillow's convert("RGB") has them after
 * ImageOps.exif_transpose: alpha is dropped, 16 bits are reduced, grey and palette are expanded,
 * the orientation is applied wherever it stands. Colour profiles are not applied, and not looked
 * at. Limits are checked on the header, before any large allocation. */
#ifndef SL_PICTURE_H
#define SL_PICTURE_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define SL_PICTURE_MAX_PIXELS (178956970) /* Pillow's own decompression-bomb limit */
#define SL_PICTURE_MAX_SIDE 65535
#define SL_PICTURE_MAX_FILE ((size_t)256 << 20)

/* Kinds of pictures: name, what is read of them (README's table is held to it), and the decoder. */
#define SL_PICTURE_KINDS(X)                                                                        \
    X(PNG, "PNG", "1 to 16 bits, palette, alpha; of an APNG the still picture", "zlib")            \
    X(JPEG, "JPEG", "baseline, progressive, arithmetic; grey, colour, CMYK, YCCK", "libjpeg")      \
    X(WEBP, "WebP", "lossy, lossless; of an animation the first frame", "libavcodec")              \
    X(BMP, "BMP", "16 to 32 bits, palette", "libavcodec")                                          \
    X(GIF, "GIF", "the first frame", "libavcodec")                                                 \
    X(TIFF, "TIFF", "the first page: grey, palette, RGB, CMYK; LZW, deflate, PackBits, fax",       \
      "libavcodec")                                                                                \
    X(JP2, "JPEG 2000", "JP2 and bare codestreams", "libavcodec")                                  \
    X(PNM, "PPM", "and PGM and PBM, plain and raw", "own")                                         \
    X(AVIF, "AVIF", "one still picture, 8 to 12 bits", "libavcodec (dav1d)")                       \
    X(HEIC, "HEIC", "and AVIF of several tiles, where libheif is", "libheif")

typedef enum {
#define X(id, name, what, by) SL_PICTURE_##id,
    SL_PICTURE_KINDS(X)
#undef X
        SL_PICTURE_KIND_COUNT
} sl_picture_kind;

const char *sl_picture_kind_name(sl_picture_kind kind);
/* "PNG, JPEG, ... or HEIC" */
const char *sl_picture_kinds(void);

typedef struct {
    int w, h;
    uint8_t *rgb; /* [h, w, 3], owned; sl_picture_free */
} sl_picture;

/* Errors, one line each: SL_SYS cannot be read; SL_FORMAT not a picture, truncated, too
 * large (says the size and the limit). */
sl_code sl_picture_read(sl_picture *out, const char *path, sl_err *err);
sl_code sl_picture_decode(sl_picture *out, const uint8_t *bytes, size_t length, const char *name,
                          sl_err *err);
void sl_picture_free(sl_picture *p); /* zeroed picture is fine */

/* As a PNG, under a temporary name beside `path` (common/temporary.h), then renamed: a reader finds
 * the old picture or the new one. Errors: SL_SYS, SL_NOMEM; the old one stays. */
sl_code sl_picture_write(const sl_picture *p, const char *path, sl_err *err);

/* Pillow's: a = -0.5; 3 lobes */
typedef enum { SL_FILTER_BICUBIC, SL_FILTER_LANCZOS } sl_filter;

/* out = in resized to w x h, byte for byte as Pillow's Image.resize (up to Pillow 12;
 * spec 3.5). out is the caller's to free.
 * Errors: SL_ARG a size below 1x1 or above SL_PICTURE_MAX_PIXELS; SL_NOMEM. */
sl_code sl_picture_resize(sl_picture *out, const sl_picture *in, int w, int h, sl_filter filter,
                          sl_err *err);

/* CLIP's processor: shortest edge, centre crop, rescale, normalise (spec 3.4). `in` is
 * the picture as it was given: the pipeline resizes it to the video's size for the VAE
 * only. The resize rounds as torchvision's (transformers 5), a level off Pillow's here
 * and there. out: float32 [3, crop_h, crop_w], the caller's memory. Errors: SL_SHAPE
 * smaller than the crop after the resize. */
sl_code sl_picture_clip_pixels(float *out, const sl_picture *in, int shortest_edge, int crop_h,
                               int crop_w, const float mean[3], const float std[3], float rescale,
                               sl_err *err);

/* Video size for a picture of w x h under max_area pixels, multiples of `edge` (spec 3.5). No more
 * than max_area, if that is edge * edge at least: of a picture much longer than wide the aspect is
 * not kept. */
void sl_picture_video_size(int w, int h, int64_t max_area, int edge, int *video_w, int *video_h);

#endif
