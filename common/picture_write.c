/* picture_write.c - 8-bit RGB to a PNG file, encoded by libavcodec. */
#include "common/picture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libavcodec/avcodec.h>

#include "common/temporary.h"

#define COMPRESSION 3 /* zlib's level: of smooth pictures the highest saves a tenth more */

/* The one packet that the picture becomes, in *packet. */
static sl_code encode(AVPacket *packet, const sl_picture *p, sl_err *err)
{
    const AVCodec *png = avcodec_find_encoder(AV_CODEC_ID_PNG);
    AVCodecContext *c = png ? avcodec_alloc_context3(png) : NULL;
    AVFrame *f = av_frame_alloc();
    sl_code rc = SL_OK;
    int e = 0;
    if (!png || !c || !f) {
        if (png) rc = sl_fail(err, SL_NOMEM, "picture: no memory for a PNG encoder");
        else rc = sl_fail(err, SL_SYS, "picture: this libavcodec has no PNG encoder");
        goto done;
    }
    c->width = f->width = p->w;
    c->height = f->height = p->h;
    c->pix_fmt = AV_PIX_FMT_RGB24;
    f->format = AV_PIX_FMT_RGB24;
    c->time_base = (AVRational){1, 1};
    c->thread_count = 1;
    c->compression_level = COMPRESSION;
    if ((e = av_frame_get_buffer(f, 0)) >= 0) {
        for (int y = 0; y < p->h; y++)
            memcpy(f->data[0] + (ptrdiff_t)y * f->linesize[0],
                   p->rgb + (size_t)y * (size_t)p->w * 3, (size_t)p->w * 3);
        if ((e = avcodec_open2(c, png, NULL)) >= 0 && (e = avcodec_send_frame(c, f)) >= 0 &&
            (e = avcodec_send_frame(c, NULL)) >= 0)
            e = avcodec_receive_packet(c, packet);
    }
    if (e < 0)
        rc = sl_fail(err, e == AVERROR(ENOMEM) ? SL_NOMEM : SL_SYS,
                     "picture: %dx%d pixels cannot be encoded as PNG: %s", p->w, p->h,
                     av_err2str(e));
done:
    av_frame_free(&f);
    avcodec_free_context(&c);
    return rc;
}

/* Beside `path`, then under its name. */
static sl_code replace(const char *path, const uint8_t *bytes, size_t n, sl_err *err)
{
    char *tmp = NULL;
    int fd, why = 0;
    sl_code rc = sl_temporary_make(&tmp, &fd, path, err);
    if (rc) return rc;
    while (n && !why) {
        ssize_t put = write(fd, bytes, n);
        if (put > 0) bytes += put, n -= (size_t)put;
        else if (put == 0) why = ENOSPC;
        else if (errno != EINTR) why = errno;
    }
    if (!why && rename(tmp, path)) why = errno;
    if (close(fd) && !why) why = errno;
    if (why) unlink(tmp);
    free(tmp);
    return why ? sl_fail_errno(err, why, "%s", path) : SL_OK;
}

sl_code sl_picture_write(const sl_picture *p, const char *path, sl_err *err)
{
    AVPacket *packet = av_packet_alloc();
    if (!packet) return sl_fail(err, SL_NOMEM, "%s: no memory", path);
    sl_code rc = encode(packet, p, err);
    if (!rc) rc = replace(path, packet->data, (size_t)packet->size, err);
    av_packet_free(&packet);
    return rc;
}
