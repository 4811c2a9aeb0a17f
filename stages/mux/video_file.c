/* video_file.c - frames to a file of any format of common/video_format.h: swscale to what the
 * encoder takes (BT.709 where that is YUV), for GIF a palette a frame by libavfilter, the index in
 * front, a rename when all is written. Several frames are converted at a time, each by a converter
 * of its own: swscale itself takes 6 ms for one of 1280x720. */
#include "stages/mux/video_file.h"

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

#include "common/job.h"
#include "common/temporary.h"
#include "common/video_format.h"
#include "stages/mux/filters.h"

#define THREADS_MOST 16 /* of the encoder: more bring nothing at 1280x720 */
#define WAYS 4          /* frames converted at a time: those of a chunk */

struct sl_video_file {
    char *path, *temporary;
    int fd; /* of the temporary, to sync it; libavformat writes through its own */
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream;
    const sl_video_format *kind;
    enum AVPixelFormat pixels; /* that the frames are converted to */
    AVPacket *packet;
    /* as many frames at a time as there are converters */
    int ways;
    AVFrame *frame[WAYS];
    struct SwsContext *sws[WAYS];
    /* GIF: the graph that gives each frame its palette */
    const sl_filters *filters;
    AVFilterGraph *graph;
    AVFilterContext *into, *outof;
    AVFrame *filtered;
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
static sl_code av_fail(const sl_video_file *m, int e, const char *doing, sl_err *err)
{
    char text[AV_ERROR_MAX_STRING_SIZE] = "";
    if (e == AVERROR(ENOMEM))
        return sl_fail(err, SL_NOMEM, "%s: no memory while %s", m->path, doing);
    av_strerror(e, text, sizeof text); /* strerror's words for an errno */
    return sl_fail(err, SL_SYS, "%s: cannot be written (%s): %s", m->path, doing, text);
}

int sl_video_threads(void)
{
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus < 4 ? 4 : cpus > THREADS_MOST ? THREADS_MOST : (int)cpus;
}

static sl_code check(const char *path, const sl_video_options *o, const char *preset, sl_err *err)
{
    struct stat st;
    size_t i = 0;
    if (o->w < 2 || o->h < 2 || o->w % 2 || o->h % 2 || o->w > 16384 || o->h > 16384)
        return sl_fail(err, SL_ARG, "video: frames of %dx%d, want even numbers from 2 to 16384",
                       o->w, o->h);
    if (!(o->fps >= 1 && o->fps <= 240))
        return sl_fail(err, SL_ARG, "video: %g frames a second, want 1 to 240", o->fps);
    if (o->crf < 0 || o->crf > 51)
        return sl_fail(err, SL_ARG, "video: crf %d, want 0 (lossless) to 51", o->crf);
    if (o->threads < 0 || o->threads > 64)
        return sl_fail(err, SL_ARG, "video: %d encoder threads, want 1 to 64, or 0 for the default",
                       o->threads);
    while (i < sizeof PRESETS / sizeof *PRESETS && strcmp(PRESETS[i], preset) != 0) i++;
    if (i == sizeof PRESETS / sizeof *PRESETS)
        return sl_fail(err, SL_ARG,
                       "video: preset \"%s\", want one of x264's from ultrafast to placebo",
                       preset);
    if (!stat(path, &st) && !S_ISREG(st.st_mode))
        return sl_fail(err, SL_SYS, "%s: cannot be written: it is %s", path,
                       S_ISDIR(st.st_mode) ? "a directory" : "not a regular file");
    return SL_OK;
}

/* A temporary beside the target, under a name that libavformat takes for no protocol. */
static sl_code make_temporary(sl_video_file *m, sl_err *err)
{
    char *name = NULL;
    sl_code rc = sl_temporary_make(&name, &m->fd, m->path, err);
    if (rc) return rc;
    if (asprintf(&m->temporary, "file:%s", name) < 0) m->temporary = NULL;
    if (!m->temporary) {
        unlink(name);
        rc = sl_fail(err, SL_NOMEM, "%s: no memory", m->path);
    }
    free(name);
    return rc;
}

/* Quality from 0 (best) to 51, x264's, on the scale of an encoder whose worst is `worst`. */
static int quality(int crf, int worst)
{
    return (crf * worst + 25) / 51;
}

/* How each encoder is asked for what x264 calls crf and preset. */
static void set_encoder(AVCodecContext *c, const char *name, const sl_video_options *o,
                        const char *preset)
{
    char crf[16];
    snprintf(crf, sizeof crf, "%d", quality(o->crf, 63));
    if (!strcmp(name, "libx264")) {
        av_opt_set(c->priv_data, "preset", preset, 0);
        av_opt_set_double(c->priv_data, "crf", o->crf, 0);
        /* the same bytes on every x86 */
        av_opt_set(c->priv_data, "x264-params", "cpu-independent=1", 0);
    } else if (!strcmp(name, "libvpx-vp9") || !strcmp(name, "libaom-av1")) {
        av_opt_set(c->priv_data, "crf", crf, 0);
        av_opt_set(c->priv_data, "cpu-used", strcmp(name, "libaom-av1") ? "4" : "6", 0);
        av_opt_set(c->priv_data, "row-mt", "1", 0);
    } else if (!strcmp(name, "libsvtav1")) {
        av_opt_set(c->priv_data, "crf", crf, 0);
        av_opt_set(c->priv_data, "preset", "8", 0);
    } else if (!strcmp(name, "libwebp_anim")) {
        av_opt_set_double(c->priv_data, "quality", 100 - quality(o->crf, 60), 0);
    }
}

static enum AVPixelFormat pixels_of(const char *encoder)
{
    if (!strcmp(encoder, "gif")) return AV_PIX_FMT_RGB24; /* then the graph's */
    if (!strcmp(encoder, "libwebp_anim")) return AV_PIX_FMT_RGB32;
    if (!strcmp(encoder, "apng")) return AV_PIX_FMT_RGB24;
    return AV_PIX_FMT_YUV420P;
}

static sl_code open_encoder(sl_video_file *m, const sl_video_options *o, const char *preset,
                            sl_err *err)
{
    const char *name;
    const sl_code rc = sl_video_encoder(&name, m->kind, err);
    const AVCodec *codec = rc ? NULL : avcodec_find_encoder_by_name(name);
    int e;
    if (rc) return sl_context(err, rc, "%s", m->path);
    AVCodecContext *c = m->codec = avcodec_alloc_context3(codec);
    if (!c) return sl_fail(err, SL_NOMEM, "video: no memory for the encoder");
    m->pixels = pixels_of(name);
    const bool yuv = m->pixels == AV_PIX_FMT_YUV420P;
    c->width = o->w;
    c->height = o->h;
    c->pix_fmt = strcmp(name, "gif") ? m->pixels : AV_PIX_FMT_PAL8;
    sl_fps_ratio(o->fps, &c->framerate.num, &c->framerate.den);
    c->time_base = av_inv_q(c->framerate);
    c->thread_count = o->threads ? o->threads : sl_video_threads();
    if (yuv) {
        c->color_range = AVCOL_RANGE_MPEG;
        c->color_primaries = AVCOL_PRI_BT709;
        c->color_trc = AVCOL_TRC_BT709;
        c->colorspace = AVCOL_SPC_BT709;
        c->chroma_sample_location = AVCHROMA_LOC_LEFT;
    }
    c->flags |= AV_CODEC_FLAG_BITEXACT;
    if (strcmp(m->kind->muxer, "gif") && strcmp(m->kind->muxer, "webp"))
        c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    set_encoder(c, name, o, preset);
    if ((e = avcodec_open2(c, codec, NULL)) < 0) return av_fail(m, e, "opening the encoder", err);
    return SL_OK;
}

static sl_code open_file(sl_video_file *m, sl_err *err)
{
    AVDictionary *options = NULL;
    int e = avformat_alloc_output_context2(&m->format, NULL, m->kind->muxer, m->temporary);
    if (e < 0) return av_fail(m, e, "making the file", err);
    m->format->flags |= AVFMT_FLAG_BITEXACT;
    if (!(m->stream = avformat_new_stream(m->format, NULL)))
        return sl_fail(err, SL_NOMEM, "%s: no memory", m->path);
    m->stream->time_base = m->codec->time_base;
    m->stream->avg_frame_rate = m->codec->framerate;
    if ((e = avcodec_parameters_from_context(m->stream->codecpar, m->codec)) < 0)
        return av_fail(m, e, "making the file", err);
    if ((e = avio_open(&m->format->pb, m->temporary, AVIO_FLAG_WRITE)) < 0)
        return av_fail(m, e, "opening", err);
    if (!strcmp(m->kind->muxer, "mp4") || !strcmp(m->kind->muxer, "mov"))
        av_dict_set(&options, "movflags", "faststart", 0);
    if (!strcmp(m->kind->muxer, "apng")) av_dict_set(&options, "plays", "0", 0);
    if (!strcmp(m->kind->muxer, "webp")) av_dict_set(&options, "loop", "0", 0);
    e = avformat_write_header(m->format, &options);
    av_dict_free(&options);
    return e < 0 ? av_fail(m, e, "writing the header", err) : SL_OK;
}

/* Each frame gets the 256 colours that suit it best. */
static sl_code open_palette(sl_video_file *m, const sl_video_options *o, sl_err *err)
{
    static const char GRAPH[] = "[in]split[a][b];[a]palettegen=stats_mode=single[p];"
                                "[b][p]paletteuse=new=1:dither=sierra2_4a[out]";
    char source[128];
    AVFilterInOut *in = NULL, *out = NULL;
    int e = AVERROR(ENOMEM);
    sl_code rc = sl_filters_load(&m->filters, err);
    const sl_filters *f = m->filters;
    if (rc) return rc;
    snprintf(source, sizeof source, "video_size=%dx%d:pix_fmt=%d:time_base=%d/%d", o->w, o->h,
             (int)m->pixels, m->codec->time_base.num, m->codec->time_base.den);
    if ((m->graph = f->avfilter_graph_alloc()) && (m->filtered = av_frame_alloc()) &&
        (in = f->avfilter_inout_alloc()) && (out = f->avfilter_inout_alloc()) &&
        (e = f->avfilter_graph_create_filter(&m->into, f->avfilter_get_by_name("buffer"), "in",
                                             source, NULL, m->graph)) >= 0 &&
        (e = f->avfilter_graph_create_filter(&m->outof, f->avfilter_get_by_name("buffersink"),
                                             "out", NULL, NULL, m->graph)) >= 0) {
        *out = (AVFilterInOut){.name = av_strdup("in"), .filter_ctx = m->into};
        *in = (AVFilterInOut){.name = av_strdup("out"), .filter_ctx = m->outof};
        e = f->avfilter_graph_parse_ptr(m->graph, GRAPH, &in, &out, NULL);
        if (e >= 0) e = f->avfilter_graph_config(m->graph, NULL);
    }
    f->avfilter_inout_free(&in);
    f->avfilter_inout_free(&out);
    return e < 0 ? av_fail(m, e, "making a palette", err) : SL_OK;
}

/* Full-range RGB to what the encoder takes, limited-range BT.709 if that is YUV; and frames to hold
 * it. */
static sl_code open_converter(sl_video_file *m, const sl_video_options *o, sl_err *err)
{
    const int *bt709 = sws_getCoefficients(SWS_CS_ITU709);
    m->packet = av_packet_alloc();
    m->last = malloc((size_t)o->w * (size_t)o->h * 3 + SWS_OVERREAD);
    bool ok = m->packet && m->last;
    for (m->ways = 0; ok && m->ways < WAYS; m->ways++) {
        const int i = m->ways;
        AVFrame *f = m->frame[i] = av_frame_alloc();
        m->sws[i] = sws_getContext(
            o->w, o->h, AV_PIX_FMT_RGB24, o->w, o->h, m->pixels,
            SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP | SWS_BITEXACT, NULL, NULL, NULL);
        if (!(ok = f && m->sws[i])) break;
        if (m->pixels == AV_PIX_FMT_YUV420P)
            sws_setColorspaceDetails(m->sws[i], bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16);
        f->format = m->pixels;
        f->width = o->w;
        f->height = o->h;
        ok = av_frame_get_buffer(f, 0) >= 0;
    }
    return ok ? SL_OK
              : sl_fail(err, SL_NOMEM, "%s: no memory for frames of %dx%d", m->path, o->w, o->h);
}

sl_code sl_video_file_open(sl_video_file **out, const char *path, const sl_video_options *options,
                           sl_err *err)
{
    const char *preset = options->preset ? options->preset : "faster";
    sl_code rc;
    *out = NULL;
    if ((rc = check(path, options, preset, err))) return rc;
    av_log_set_level(AV_LOG_QUIET);
    sl_temporary_sweep(path);
    sl_video_file *m = calloc(1, sizeof *m);
    if (!m || !(m->path = strdup(path))) {
        free(m);
        return sl_fail(err, SL_NOMEM, "%s: no memory", path);
    }
    m->fd = -1;
    if ((rc = sl_video_format_of(&m->kind, path, err))) goto fail;
    if (options->fps > m->kind->fps_most) {
        rc = sl_fail(err, SL_ARG, "%s: %g frames a second, want at most %d in .%s", path,
                     options->fps, m->kind->fps_most, m->kind->suffix);
        goto fail;
    }
    if ((rc = make_temporary(m, err))) goto fail;
    if ((rc = open_encoder(m, options, preset, err))) goto fail;
    if ((rc = open_file(m, err))) goto fail;
    if ((rc = open_converter(m, options, err))) goto fail;
    if (!strcmp(m->kind->muxer, "gif") && (rc = open_palette(m, options, err))) goto fail;
    *out = m;
    return SL_OK;
fail:
    sl_video_file_abandon(&m);
    return rc;
}

/* Give the encoder a frame (NULL: no more) and write what comes out. */
static sl_code encode(sl_video_file *m, const AVFrame *frame, sl_err *err)
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

/* A converted frame to the encoder, for GIF by way of its palette. NULL: no more. */
static sl_code push(sl_video_file *m, AVFrame *frame, sl_err *err)
{
    sl_code rc = SL_OK;
    int e;
    if (!m->graph) return encode(m, frame, err);
    if ((e = m->filters->av_buffersrc_add_frame_flags(m->into, frame, AV_BUFFERSRC_FLAG_KEEP_REF)) <
        0)
        return av_fail(m, e, "making a palette", err);
    while (!rc && (e = m->filters->av_buffersink_get_frame(m->outof, m->filtered)) >= 0) {
        rc = encode(m, m->filtered, err);
        av_frame_unref(m->filtered);
    }
    if (rc) return rc;
    if (e != AVERROR(EAGAIN) && e != AVERROR_EOF) return av_fail(m, e, "making a palette", err);
    return frame ? SL_OK : encode(m, NULL, err);
}

/* Convert n <= WAYS frames, each on a thread of its own. */
static sl_code convert(sl_video_file *m, const uint8_t *const rgb[], int n, sl_err *err)
{
    const int pitches[4] = {m->codec->width * 3};
    bool bad[WAYS] = {false};
    for (int i = 0; i < n; i++)
        if (av_frame_make_writable(m->frame[i]) < 0)
            return sl_fail(err, SL_NOMEM, "%s: no memory for a frame", m->path);
#pragma omp parallel for schedule(static, 1) num_threads(n)
    for (int i = 0; i < n; i++) {
        const uint8_t *const from[4] = {rgb[i]};
        bad[i] = sws_scale(m->sws[i], from, pitches, 0, m->codec->height, m->frame[i]->data,
                           m->frame[i]->linesize) != m->codec->height;
    }
    for (int i = 0; i < n; i++)
        if (bad[i]) return sl_fail(err, SL_INTERNAL, "%s: swscale cannot convert a frame", m->path);
    return SL_OK;
}

sl_code sl_video_file_write(sl_video_file *m, const uint8_t *rgb, int n, sl_err *err)
{
    const size_t bytes = (size_t)m->codec->height * (size_t)m->codec->width * 3;
    sl_code rc = SL_OK;
    if (m->broken) return sl_fail(err, SL_ARG, "%s: an earlier write failed", m->path);
    for (int at = 0; at < n && !rc; at += m->ways) {
        const uint8_t *from[WAYS];
        const int some = n - at < m->ways ? n - at : m->ways;
        for (int i = 0; i < some; i++) from[i] = rgb + (size_t)(at + i) * bytes;
        if (at + some == n) from[some - 1] = memcpy(m->last, from[some - 1], bytes);
        rc = convert(m, from, some, err);
        for (int i = 0; i < some && !rc; i++) {
            m->frame[i]->pts = m->frames++;
            rc = push(m, m->frame[i], err);
        }
    }
    m->broken = rc != SL_OK;
    return rc;
}

/* All that finish does before the rename. */
static sl_code complete(sl_video_file *m, sl_err *err)
{
    sl_code rc;
    int e;
    if (m->broken) return sl_fail(err, SL_ARG, "%s: an earlier write failed", m->path);
    if (!m->frames) return sl_fail(err, SL_ARG, "%s: a video without frames", m->path);
    if ((rc = push(m, NULL, err))) return rc;
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

sl_code sl_video_file_finish(sl_video_file **file, int64_t *bytes, sl_err *err)
{
    sl_video_file *m = *file;
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
    sl_video_file_abandon(file);
    return rc;
}

void sl_video_file_abandon(sl_video_file **file)
{
    sl_video_file *m = *file;
    if (!m) return;
    for (int i = 0; i < WAYS; i++) {
        sws_freeContext(m->sws[i]);
        av_frame_free(&m->frame[i]);
    }
    if (m->graph) m->filters->avfilter_graph_free(&m->graph);
    av_frame_free(&m->filtered);
    free(m->last);
    av_packet_free(&m->packet);
    avcodec_free_context(&m->codec);
    if (m->format) avio_closep(&m->format->pb);
    avformat_free_context(m->format);
    if (m->fd >= 0) close(m->fd);
    if (m->temporary) unlink(m->temporary + 5);
    free(m->temporary);
    free(m->path);
    free(m);
    *file = NULL;
}
