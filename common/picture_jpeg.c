/* picture_jpeg.c - JPEG through libjpeg (-turbo), as Pillow reads it: its integer transform,
 * "fancy" upsampling, arithmetic coding, CMYK and YCCK with Adobe's polarity. */
#include "common/picture_parts.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>
/* behind jpeglib.h */
#include <jerror.h>

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg knows this part alone */
    jmp_buf out;
    bool damaged, failed;
} manager;

static void fail(j_common_ptr c)
{
    ((manager *)c->err)->failed = true;
    longjmp(((manager *)c->err)->out, 1);
}

/* Warnings that say: what follows is filled in. Others (bytes between markers, a version) lose
 * nothing. */
static void note(j_common_ptr c, int level)
{
    manager *m = (manager *)c->err;
    if (level >= 0) return;
    switch (m->base.msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_JPEG_EOF:
    case JWRN_MUST_RESYNC:
    case JWRN_ARITH_BAD_CODE: m->damaged = true; break;
    default: break;
    }
}

static void silent(j_common_ptr c)
{
    (void)c;
}

/* 255 - c without Adobe's inversion; Pillow's MULDIV255 */
static uint8_t less_ink(int ink, int paper)
{
    const int t = ink * paper + 128, v = paper - ((((t) >> 8) + t) >> 8);
    return (uint8_t)(v < 0 ? 0 : v);
}

/* A line of inverted CMYK as RGB, Pillow's cmyk2rgb. */
static void from_cmyk(uint8_t *rgb, const uint8_t *p, int w)
{
    for (int x = 0; x < w; x++, p += 4, rgb += 3)
        for (int c = 0; c < 3; c++) rgb[c] = less_ink(255 - p[c], p[3]);
}

/* Everything between create and destroy; false: the file has another size. */
static bool read_pixels(struct jpeg_decompress_struct *c, uint8_t *rgb, uint8_t **line, int w,
                        int h, sl_span_of file)
{
    jpeg_mem_src(c, file.at, (unsigned long)file.n);
    jpeg_read_header(c, TRUE);
    if (c->image_width != (unsigned)w || c->image_height != (unsigned)h) return false;
    const bool inks = c->jpeg_color_space == JCS_CMYK || c->jpeg_color_space == JCS_YCCK;
    c->out_color_space = inks ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(c);
    if (inks && !(*line = malloc((size_t)w * 4))) return false;
    for (int y = 0; y < h; y++) {
        uint8_t *to = rgb + (size_t)y * (size_t)w * 3, *row = inks ? *line : to;
        jpeg_read_scanlines(c, &row, 1);
        if (inks) from_cmyk(to, row, w);
    }
    jpeg_finish_decompress(c);
    return true;
}

/* False: libjpeg gave up, or the size is another one. The caller's locals are none of longjmp's. */
static bool guarded(struct jpeg_decompress_struct *c, manager *m, uint8_t *rgb, uint8_t **line,
                    int w, int h, sl_span_of file)
{
    if (setjmp(m->out)) return false;
    jpeg_create_decompress(c);
    return read_pixels(c, rgb, line, w, h, file);
}

sl_code sl_jpeg_decode(uint8_t *rgb, int w, int h, sl_span_of file, const char *name, sl_err *err)
{
    struct jpeg_decompress_struct c = {0};
    manager m = {0};
    uint8_t *line = NULL;
    char why[JMSG_LENGTH_MAX] = "";
    sl_code rc = SL_OK;
    c.err = jpeg_std_error(&m.base);
    m.base.error_exit = fail;
    m.base.emit_message = note;
    m.base.output_message = silent;
    m.base.msg_code = 0;
    if (!guarded(&c, &m, rgb, &line, w, h, file)) {
        if (m.failed) m.base.format_message((j_common_ptr)&c, why);
        if (!m.failed && c.image_width == (unsigned)w)
            rc = sl_fail(err, SL_NOMEM, "%s: no memory for a line of %d pixels", name, w);
        else if (!m.failed)
            rc = sl_fail(err, SL_FORMAT, "%s: the header says %dx%d pixels, the picture has %ux%u",
                         name, w, h, c.image_width, c.image_height);
        else if (m.base.msg_code == JERR_OUT_OF_MEMORY)
            rc = sl_fail(err, SL_NOMEM, "%s: no memory for %dx%d pixels", name, w, h);
        else
            rc = sl_fail(err, SL_FORMAT,
                         "%s: the JPEG picture is damaged or of a kind that is not read: %s", name,
                         why);
    } else if (m.damaged)
        rc = sl_fail(err, SL_FORMAT, "%s: the JPEG picture is damaged: pixels miss", name);
    jpeg_destroy_decompress(&c);
    free(line);
    return rc;
}
