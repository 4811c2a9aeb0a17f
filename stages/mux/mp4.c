/* mp4.c - frames to H.264 in MP4: swscale to BT.709, x264, the index in front, a rename
 * when all is written. */
#include "stages/mux/mp4.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>

#include "common/temporary.h"

struct sl_mp4 {
    char *path, *temporary;
    int fd; /* of the temporary, to sync it; libavformat writes through its own */
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream;
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *sws;
    /* a copy of a call's last frame: swscale reads some bytes past the end of what it is
     * given */
    uint8_t *last;
    int64_t frames;
    bool broken; /* an error was returned: the file cannot become whole */
};

#define SWS_OVERREAD 256 /* bytes that its vector loops may read past a picture */

static const char *const PRESETS[] = {"ultrafast", "superfast", "veryfast", "faster",   "fast",
                                      "medium",    "slow",      "slower",   "veryslow", "placebo"};

/* One line for what a call of libav returned. */
static sl_code av_fail(const sl_mp4 *m, int e, const char *doing, sl_err *err)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    if (e == AVERROR(ENOMEM))
        return sl_fail(err, SL_NOMEM, "%s: no memory while %s", m->path, doing);
    av_strerror(e, text, sizeof text); /* strerror's words for an errno */
    return sl_fail(err, SL_SYS, "%s: cannot be written (%s): %s", m->path, doing, text);
}

static sl_code check(const char *path, const sl_mp4_options *o, const char *preset, sl_err *err)
{
    struct stat st;
    size_t i = 0;
    if (o->w < 2 || o->h < 2 || o->w % 2 || o->h % 2 || o->w > 16384 || o->h > 16384)
        return sl_fail(err, SL_ARG, "mp4: frames of %dx%d, want even numbers from 2 to 16384", o->w,
                       o->h);
    if (o->fps < 1 || o->fps > 240)
        return sl_fail(err, SL_ARG, "mp4: %d frames a second, want 1 to 240", o->fps);
    if (o->crf < 0 || o->crf > 51)
        return sl_fail(err, SL_ARG, "mp4: crf %d, want 0 (lossless) to 51", o->crf);
    if (o->threads < 0 || o->threads > 64)
        return sl_fail(err, SL_ARG, "mp4: %d encoder threads, want 1 to 64, or 0 for the default",
                       o->threads);
    while (i < sizeof PRESETS / sizeof *PRESETS && strcmp(PRESETS[i], preset) != 0) i++;
    if (i == sizeof PRESETS / sizeof *PRESETS)
        return sl_fail(err, SL_ARG,
                       "mp4: preset \"%s\", want one of x264's from ultrafast to placebo", preset);
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        return sl_fail(err, SL_SYS, "%s: cannot be written: it is %s", path,
                       S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    return SL_OK;
}

/* A temporary beside the target, under a name that libavformat takes for no protocol. */
static sl_code make_temporary(sl_mp4 *m, sl_err *err)
{
    char *name = NULL;
    sl_code rc = sl_temporary_make(&name, &m->fd, m->path, err);
    if (rc) return sl_context(err, rc, "cannot be written");
    if (asprintf(&m->temporary, "file:%s", name) < 0) m->temporary = NULL;
    if (!m->temporary) {
        unlink(name);
        rc = sl_fail(err, SL_NOMEM, "%s: no memory", m->path);
    }
    free(name);
    return rc;
}

static sl_code open_encoder(sl_mp4 *m, const sl_mp4_options *o, const char *preset, sl_err *err)
{
    const AVCodec *x264 = avcodec_find_encoder_by_name("libx264");
    int e;
    if (!x264) return sl_fail(err, SL_SYS, "mp4: this libavcodec is built without libx264");
    AVCodecContext *c = m->codec = avcodec_alloc_context3(x264);
    if (!c) return sl_fail(err, SL_NOMEM, "mp4: no memory for the encoder");
    c->width = o->w;
    c->height = o->h;
    c->pix_fmt = AV_PIX_FMT_YUV420P;
    c->time_base = (AVRational){1, o->fps};
    c->framerate = (AVRational){o->fps, 1};
    c->thread_count = o->threads ? o->threads : 4;
    c->color_range = AVCOL_RANGE_MPEG;
    c->color_primaries = AVCOL_PRI_BT709;
    c->color_trc = AVCOL_TRC_BT709;
    c->colorspace = AVCOL_SPC_BT709;
    c->chroma_sample_location = AVCHROMA_LOC_LEFT;
    c->flags |= AV_CODEC_FLAG_BITEXACT | AV_CODEC_FLAG_GLOBAL_HEADER;
    av_opt_set(c->priv_data, "preset", preset, 0);
    av_opt_set_double(c->priv_data, "crf", o->crf, 0);
    /* the same bytes on every x86 */
    av_opt_set(c->priv_data, "x264-params", "cpu-independent=1", 0);
    if ((e = avcodec_open2(c, x264, NULL)) < 0) return av_fail(m, e, "opening x264", err);
    return SL_OK;
}

static sl_code open_file(sl_mp4 *m, int fps, sl_err *err)
{
    AVDictionary *movflags = NULL;
    int e = avformat_alloc_output_context2(&m->format, NULL, "mp4", m->temporary);
    if (e < 0) return av_fail(m, e, "making an MP4", err);
    m->format->flags |= AVFMT_FLAG_BITEXACT;
    if (!(m->stream = avformat_new_stream(m->format, NULL)))
        return sl_fail(err, SL_NOMEM, "%s: no memory", m->path);
    m->stream->time_base = m->codec->time_base;
    m->stream->avg_frame_rate = (AVRational){fps, 1};
    if ((e = avcodec_parameters_from_context(m->stream->codecpar, m->codec)) < 0)
        return av_fail(m, e, "making an MP4", err);
    if ((e = avio_open(&m->format->pb, m->temporary, AVIO_FLAG_WRITE)) < 0)
        return av_fail(m, e, "opening", err);
    av_dict_set(&movflags, "movflags", "faststart", 0);
    e = avformat_write_header(m->format, &movflags);
    av_dict_free(&movflags);
    return e < 0 ? av_fail(m, e, "writing the header", err) : SL_OK;
}

/* Full-range RGB to limited-range BT.709, and a frame to hold it. */
static sl_code open_converter(sl_mp4 *m, const sl_mp4_options *o, sl_err *err)
{
    const int *bt709 = sws_getCoefficients(SWS_CS_ITU709);
    m->sws = sws_getContext(o->w, o->h, AV_PIX_FMT_RGB24, o->w, o->h, AV_PIX_FMT_YUV420P,
                            SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_BITEXACT,
                            NULL, NULL, NULL);
    m->frame = av_frame_alloc();
    m->packet = av_packet_alloc();
    m->last = malloc((size_t)o->w * (size_t)o->h * 3 + SWS_OVERREAD);
    if (!m->sws || !m->frame || !m->packet || !m->last)
        return sl_fail(err, SL_NOMEM, "%s: no memory for frames of %dx%d", m->path, o->w, o->h);
    sws_setColorspaceDetails(m->sws, bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16);
    m->frame->format = AV_PIX_FMT_YUV420P;
    m->frame->width = o->w;
    m->frame->height = o->h;
    if (av_frame_get_buffer(m->frame, 0) < 0)
        return sl_fail(err, SL_NOMEM, "%s: no memory for frames of %dx%d", m->path, o->w, o->h);
    return SL_OK;
}

sl_code sl_mp4_open(sl_mp4 **out, const char *path, const sl_mp4_options *options, sl_err *err)
{
    const char *preset = options->preset ? options->preset : "medium";
    sl_code rc;
    *out = NULL;
    if ((rc = check(path, options, preset, err))) return rc;
    av_log_set_level(AV_LOG_QUIET);
    sl_temporary_sweep(path);
    sl_mp4 *m = calloc(1, sizeof *m);
    if (!m || !(m->path = strdup(path))) {
        free(m);
        return sl_fail(err, SL_NOMEM, "%s: no memory", path);
    }
    m->fd = -1;
    if ((rc = make_temporary(m, err))) goto fail;
    if ((rc = open_encoder(m, options, preset, err))) goto fail;
    if ((rc = open_file(m, options->fps, err))) goto fail;
    if ((rc = open_converter(m, options, err))) goto fail;
    *out = m;
    return SL_OK;
fail:
    sl_mp4_abandon(&m);
    return rc;
}

/* Give the encoder a frame (NULL: no more) and write what comes out. */
static sl_code encode(sl_mp4 *m, const AVFrame *frame, sl_err *err)
{
    int e = avcodec_send_frame(m->codec, frame);
    if (e < 0) return av_fail(m, e, "encoding", err);
    while ((e = avcodec_receive_packet(m->codec, m->packet)) >= 0) {
        if (!m->packet->duration) m->packet->duration = 1;
        av_packet_rescale_ts(m->packet, m->codec->time_base, m->stream->time_base);
        m->packet->stream_index = m->stream->index;
        e = av_interleaved_write_frame(m->format, m->packet); /* takes the packet over */
        if (e >= 0 && m->format->pb->error) e = m->format->pb->error;
        if (e < 0) return av_fail(m, e, "writing frames", err);
    }
    return e == AVERROR(EAGAIN) || e == AVERROR_EOF ? SL_OK : av_fail(m, e, "encoding", err);
}

sl_code sl_mp4_write(sl_mp4 *m, const uint8_t *rgb, int n, sl_err *err)
{
    const int pitch = m->codec->width * 3;
    if (m->broken) return sl_fail(err, SL_ARG, "%s: an earlier write failed", m->path);
    const size_t bytes = (size_t)m->codec->height * (size_t)pitch;
    for (int i = 0; i < n; i++) {
        const uint8_t *from[4] = {rgb + (size_t)i * bytes};
        const int pitches[4] = {pitch};
        sl_code rc = SL_OK;
        if (i == n - 1) from[0] = memcpy(m->last, from[0], bytes);
        if (av_frame_make_writable(m->frame) < 0)
            rc = sl_fail(err, SL_NOMEM, "%s: no memory for a frame", m->path);
        else if (sws_scale(m->sws, from, pitches, 0, m->codec->height, m->frame->data,
                           m->frame->linesize) != m->codec->height)
            rc = sl_fail(err, SL_INTERNAL, "%s: swscale cannot convert a frame", m->path);
        if (!rc) {
            m->frame->pts = m->frames++;
            rc = encode(m, m->frame, err);
        }
        if (rc) {
            m->broken = true;
            return rc;
        }
    }
    return SL_OK;
}

/* All that finish does before the rename. */
static sl_code complete(sl_mp4 *m, sl_err *err)
{
    sl_code rc;
    int e;
    if (m->broken) return sl_fail(err, SL_ARG, "%s: an earlier write failed", m->path);
    if (!m->frames) return sl_fail(err, SL_ARG, "%s: a video without frames", m->path);
    if ((rc = encode(m, NULL, err))) return rc;
    if ((e = av_write_trailer(m->format)) < 0)
        return av_fail(m, e, "moving the index to the front", err);
    /* closing flushes, and tells what the flush met only in some versions: ask before and
     * after */
    e = m->format->pb->error;
    avio_flush(m->format->pb);
    if (e >= 0) e = m->format->pb->error;
    int closed = avio_closep(&m->format->pb);
    if (e >= 0) e = closed;
    if (e < 0) return av_fail(m, e, "writing the index", err);
    if (fsync(m->fd)) return sl_fail_errno(err, errno, "%s: cannot be written", m->path);
    return SL_OK;
}

sl_code sl_mp4_finish(sl_mp4 **mp4, int64_t *bytes, sl_err *err)
{
    sl_mp4 *m = *mp4;
    struct stat st = {0};
    sl_code rc = complete(m, err);
    if (!rc && fstat(m->fd, &st)) rc = sl_fail_errno(err, errno, "%s: cannot be written", m->path);
    if (!rc && rename(m->temporary + 5, m->path))
        rc = sl_fail_errno(err, errno, "%s: cannot be written", m->path);
    if (!rc) {
        free(m->temporary); /* it is the file now: nothing to remove */
        m->temporary = NULL;
        if (bytes) *bytes = st.st_size;
    }
    sl_mp4_abandon(mp4);
    return rc;
}

void sl_mp4_abandon(sl_mp4 **mp4)
{
    sl_mp4 *m = *mp4;
    if (!m) return;
    sws_freeContext(m->sws);
    free(m->last);
    av_packet_free(&m->packet);
    av_frame_free(&m->frame);
    avcodec_free_context(&m->codec);
    if (m->format) avio_closep(&m->format->pb);
    avformat_free_context(m->format);
    if (m->fd >= 0) close(m->fd);
    if (m->temporary) unlink(m->temporary + 5);
    free(m->temporary);
    free(m->path);
    free(m);
    *mp4 = NULL;
}
