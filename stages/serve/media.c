/* media.c - frames of an MP4, scaled into one picture, as JPEG. */
#include "stages/serve/media.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <libavformat/avformat.h>
#include <libswscale/swscale.h>

#include "common/av.h"
#include "common/path.h"

#define THUMBNAIL_W 512
#define TILE_W 160
#define TILES 20
#define COLUMNS 5

/* What is called of two libraries that nothing else here wants; libavcodec's is common/av.h's. */
#define AVFORMAT(F)                                                                                \
    F(av_find_best_stream)                                                                         \
    F(av_read_frame)                                                                               \
    F(avformat_close_input)                                                                        \
    F(avformat_find_stream_info)                                                                   \
    F(avformat_open_input)
#define SWSCALE(F) F(sws_freeContext) F(sws_getCachedContext) F(sws_scale)

static struct {
    AVFORMAT(SL_LIBRARY_FIELD)
    SWSCALE(SL_LIBRARY_FIELD)
} lib;

#define ROW(name) {#name, &lib.name},
static const sl_library_function FORMAT_ROWS[] = {AVFORMAT(ROW)}, SCALE_ROWS[] = {SWSCALE(ROW)};
static sl_library avformat = SL_LIBRARY(libavformat, LIBAVFORMAT_VERSION_MAJOR, FORMAT_ROWS),
                  swscale = SL_LIBRARY(libswscale, LIBSWSCALE_VERSION_MAJOR, SCALE_ROWS);

/* Decoding takes threads and tens of MB: one picture at a time. */
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    const sl_av *av;
    const char *path;
    AVFormatContext *format;
    AVCodecContext *codec;
    int stream;
    AVPacket *packet;
    AVFrame *frame, *sheet;
    struct SwsContext *sws;
    int columns, tiles, tile_w, tile_h;
} reader;

static sl_code av_fail(const reader *r, int e, const char *doing, sl_err *err)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    r->av->av_strerror(e, text, sizeof text);
    return sl_fail(err, e == AVERROR(ENOMEM) ? SL_NOMEM : SL_FORMAT, "%s: %s: %s", r->path, doing,
                   text);
}

static sl_code open_video(reader *r, sl_err *err)
{
    const AVCodec *codec = NULL;
    int e = lib.avformat_open_input(&r->format, r->path, NULL, NULL);
    if (e >= 0) e = lib.avformat_find_stream_info(r->format, NULL);
    if (e >= 0)
        e = r->stream = lib.av_find_best_stream(r->format, AVMEDIA_TYPE_VIDEO, -1, -1, &codec, 0);
    if (e < 0) return av_fail(r, e, "opening", err);
    if (!(r->codec = r->av->avcodec_alloc_context3(codec)) ||
        !(r->packet = r->av->av_packet_alloc()) || !(r->frame = r->av->av_frame_alloc()) ||
        !(r->sheet = r->av->av_frame_alloc()))
        return sl_fail(err, SL_NOMEM, "%s: no memory", r->path);
    r->codec->thread_count = 2;
    e = r->av->avcodec_parameters_to_context(r->codec, r->format->streams[r->stream]->codecpar);
    if (e >= 0) e = r->av->avcodec_open2(r->codec, codec, NULL);
    return e < 0 ? av_fail(r, e, "opening", err) : SL_OK;
}

/* A sheet of the size that the tiles need, black where there is none. */
static sl_code make_sheet(reader *r, bool sheet, sl_err *err)
{
    const int64_t frames = r->format->streams[r->stream]->nb_frames;
    const int w = r->codec->width, h = r->codec->height;
    if (w < 2 || h < 2) return sl_fail(err, SL_FORMAT, "%s: frames of %dx%d", r->path, w, h);
    r->tile_w = (sheet ? TILE_W : w < THUMBNAIL_W ? w : THUMBNAIL_W) / 2 * 2;
    r->tile_h = (int)((int64_t)r->tile_w * h / w) / 2 * 2;
    if (r->tile_h < 2) r->tile_h = 2;
    r->tiles = !sheet ? 1 : frames > 0 && frames < TILES ? (int)frames : TILES;
    r->columns = r->tiles < COLUMNS ? r->tiles : COLUMNS;
    r->sheet->format = AV_PIX_FMT_YUVJ420P;
    r->sheet->width = r->columns * r->tile_w;
    r->sheet->height = (r->tiles + r->columns - 1) / r->columns * r->tile_h;
    r->sheet->color_range = AVCOL_RANGE_JPEG;
    int e = r->av->av_frame_get_buffer(r->sheet, 32);
    if (e < 0) return av_fail(r, e, "making a picture", err);
    for (int y = 0; y < r->sheet->height; y++)
        memset(r->sheet->data[0] + y * r->sheet->linesize[0], 0, (size_t)r->sheet->width);
    for (int c = 1; c < 3; c++)
        for (int y = 0; y < r->sheet->height / 2; y++)
            memset(r->sheet->data[c] + y * r->sheet->linesize[c], 128, (size_t)r->sheet->width / 2);
    return SL_OK;
}

static sl_code place(reader *r, int tile, sl_err *err)
{
    const int x = tile % r->columns * r->tile_w, y = tile / r->columns * r->tile_h;
    uint8_t *to[4] = {r->sheet->data[0] + y * r->sheet->linesize[0] + x,
                      r->sheet->data[1] + y / 2 * r->sheet->linesize[1] + x / 2,
                      r->sheet->data[2] + y / 2 * r->sheet->linesize[2] + x / 2, NULL};
    r->sws = lib.sws_getCachedContext(r->sws, r->frame->width, r->frame->height,
                                      (enum AVPixelFormat)r->frame->format, r->tile_w, r->tile_h,
                                      AV_PIX_FMT_YUVJ420P, SWS_AREA, NULL, NULL, NULL);
    if (!r->sws) return sl_fail(err, SL_NOMEM, "%s: no memory for scaling", r->path);
    lib.sws_scale(r->sws, (const uint8_t *const *)r->frame->data, r->frame->linesize, 0,
                  r->frame->height, to, r->sheet->linesize);
    return SL_OK;
}

/* Every frame is decoded; those whose turn it is are placed. */
static sl_code read_frames(reader *r, sl_err *err)
{
    int64_t frames = r->format->streams[r->stream]->nb_frames, at = 0;
    int placed = 0, e = 0;
    sl_code rc = SL_OK;
    if (frames < 1) frames = r->tiles;
    while (!rc && placed < r->tiles && e >= 0) {
        if ((e = lib.av_read_frame(r->format, r->packet)) == AVERROR_EOF)
            e = r->av->avcodec_send_packet(r->codec, NULL);
        else if (e >= 0) {
            if (r->packet->stream_index == r->stream)
                e = r->av->avcodec_send_packet(r->codec, r->packet);
            r->av->av_packet_unref(r->packet);
        }
        if (e < 0 && e != AVERROR(EAGAIN)) break;
        while (!rc && (e = r->av->avcodec_receive_frame(r->codec, r->frame)) >= 0) {
            if (placed < r->tiles && at >= placed * frames / r->tiles) rc = place(r, placed++, err);
            at++;
        }
        if (e == AVERROR(EAGAIN)) e = 0;
    }
    if (!rc && !placed) rc = sl_fail(err, SL_FORMAT, "%s: no frame can be decoded", r->path);
    return rc;
}

static sl_code encode(reader *r, const char *out, sl_err *err)
{
    const AVCodec *mjpeg = r->av->avcodec_find_encoder(AV_CODEC_ID_MJPEG);
    AVCodecContext *c = mjpeg ? r->av->avcodec_alloc_context3(mjpeg) : NULL;
    char temporary[SL_PATH + 16];
    sl_code rc = SL_OK;
    if (!c) return sl_fail(err, SL_SYS, "this libavcodec has no JPEG encoder");
    c->width = r->sheet->width;
    c->height = r->sheet->height;
    c->pix_fmt = AV_PIX_FMT_YUVJ420P;
    c->color_range = AVCOL_RANGE_JPEG;
    c->time_base = (AVRational){1, 25};
    c->flags |= AV_CODEC_FLAG_QSCALE;
    c->global_quality = 3 * FF_QP2LAMBDA;
    r->sheet->quality = c->global_quality;
    int e = r->av->avcodec_open2(c, mjpeg, NULL);
    if (e >= 0) e = r->av->avcodec_send_frame(c, r->sheet);
    if (e >= 0) e = r->av->avcodec_send_frame(c, NULL);
    if (e >= 0) e = r->av->avcodec_receive_packet(c, r->packet);
    if (e < 0) rc = av_fail(r, e, "encoding a picture", err);
    snprintf(temporary, sizeof temporary, "%s.tmp-%d", out, (int)getpid());
    int fd = rc ? -1 : open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (!rc && (fd < 0 || write(fd, r->packet->data, (size_t)r->packet->size) != r->packet->size))
        rc = sl_fail_errno(err, errno, "%s", temporary);
    if (fd >= 0 && close(fd) && !rc) rc = sl_fail_errno(err, errno, "%s", temporary);
    if (!rc && rename(temporary, out)) rc = sl_fail_errno(err, errno, "%s", out);
    if (rc) unlink(temporary);
    r->av->avcodec_free_context(&c);
    return rc;
}

/* The libraries; *r, whose fields they make, is empty without them. */
static sl_code load(reader *r, sl_err *err)
{
    sl_code rc = sl_library_load(&avformat, err);
    if (!rc) rc = sl_library_load(&swscale, err);
    return rc ? rc : sl_av_load(&r->av, err);
}

static void close_video(reader *r)
{
    lib.sws_freeContext(r->sws);
    r->av->av_frame_free(&r->frame);
    r->av->av_frame_free(&r->sheet);
    r->av->av_packet_free(&r->packet);
    r->av->avcodec_free_context(&r->codec);
    lib.avformat_close_input(&r->format);
}

sl_code sl_media_picture(const char *video, const char *out, bool sheet, sl_err *err)
{
    reader r = {.path = video};
    sl_code rc;
    pthread_mutex_lock(&one);
    if (!access(out, R_OK)) rc = SL_OK; /* somebody else's question made it meanwhile */
    else if (!(rc = load(&r, err))) {
        if (!(rc = open_video(&r, err)) && !(rc = make_sheet(&r, sheet, err)) &&
            !(rc = read_frames(&r, err)))
            rc = encode(&r, out, err);
        close_video(&r);
    }
    pthread_mutex_unlock(&one);
    return rc;
}
