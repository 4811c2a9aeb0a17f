/* picture.h - read a picture file into 8-bit RGB, resize as Pillow does, write a PNG.
 *
 * PNG, JPEG, WebP and BMP are decoded through libavcodec and converted to RGB24; alpha is
 * dropped as PIL's convert("RGB") does, 16 bit is reduced, grey and palette are expanded,
 * EXIF orientation is applied. Limits are checked on the header, before any large
 * allocation. */
#ifndef SL_PICTURE_H
#define SL_PICTURE_H

#include "common/err.h"

#include <stddef.h>
#include <stdint.h>

#define SL_PICTURE_MAX_PIXELS (178956970) /* Pillow's own decompression-bomb limit */
#define SL_PICTURE_MAX_SIDE 65535
#define SL_PICTURE_MAX_FILE ((size_t)256 << 20)

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

/* Video size for a picture of w x h under max_area pixels, multiples of `edge` (spec 3.5). */
void sl_picture_video_size(int w, int h, int64_t max_area, int edge, int *video_w, int *video_h);

#endif
