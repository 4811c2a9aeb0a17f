/* bench_mux - how long after the last latent a video can be played: seconds, bytes and SSIM of
 * 1280x720x81 by preset and threads, with a picture that is panned over and with noise.
 *
 *   frames, chunk by chunk (1, then 4 at a time) --> sl_video_file_write ... sl_video_file_finish
 *
 * "paced": a decoder gives a chunk every 70 ms, as an H200's does (1.4 s in all), so what is waited
 * for at the end is what counts; "at once": all of them are there. "tail" is from the last chunk to
 * the finished file, paced; "seconds" is the whole, at once. Wanted: tail of at most 1.5 s on 16
 * cores. What to change: video.threads and video.preset, or their defaults (common/conf_keys.c,
 * sl_video_threads of stages/mux/video_file.c). Settings: MUX_FRAMES (81); MUX_PICTURE, a PNG or
 * JPEG, or "photo" for the one that ships: of it alone, no noise. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>

#include "common/clock.h"
#include "common/picture.h"
#include "stages/mux/video_file.h"

#define W 1280
#define H 720
#define FPS 16
#define PHOTO "tests/demo-model/pictures/fig.jpg" /* from the tree's top */
#define FRAME ((size_t)W * H * 3)
#define CHUNK_NS 70000000ll

/* Bilinear look at a picture of any size, at (x, y) in its pixels. */
static double look(const sl_picture *p, double x, double y, int c)
{
    x = fmin(fmax(x, 0), p->w - 1.001);
    y = fmin(fmax(y, 0), p->h - 1.001);
    const int ix = (int)x, iy = (int)y;
    const double fx = x - ix, fy = y - iy;
    const uint8_t *a = p->rgb + ((size_t)iy * (size_t)p->w + (size_t)ix) * 3 + c,
                  *b = a + (size_t)p->w * 3;
    return (1 - fy) * ((1 - fx) * a[0] + fx * a[3]) + fy * ((1 - fx) * b[0] + fx * b[3]);
}

/* A pan over the picture's spare width and half of its spare height, with a grain of +-2 that no
 * encoder predicts. */
static void pan(uint8_t *rgb, const sl_picture *p, int frames)
{
    const double scale = fmin(p->w * 0.8 / W, p->h * 0.8 / H);
#pragma omp parallel for
    for (int f = 0; f < frames; f++) {
        uint32_t s = (uint32_t)f * 2654435761u + 1;
        uint8_t *out = rgb + (size_t)f * FRAME;
        const double dx = (p->w - W * scale) * f / frames, dy = (p->h - H * scale) * f / frames / 2;
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++)
                for (int c = 0; c < 3; c++) {
                    s = s * 1664525u + 1013904223u;
                    const double v =
                        look(p, x * scale + dx, y * scale + dy, c) + (int)(s >> 30) - 1.5;
                    *out++ = (uint8_t)fmin(fmax(v + 0.5, 0), 255);
                }
    }
}

static void noise(uint8_t *rgb, int frames)
{
    uint64_t s = 1;
    for (size_t i = 0; i < (size_t)frames * FRAME; i++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        rgb[i] = (uint8_t)(s >> 56);
    }
}

typedef struct {
    double seconds, tail;
    int64_t bytes;
} result;

static int encode(result *r, const char *path, const uint8_t *rgb, int frames, bool paced,
                  const sl_video_options *o)
{
    sl_err err = {0};
    sl_video_file *m = NULL;
    int64_t t0 = sl_now_ns(), due = t0, last = t0;
    sl_code rc = sl_video_file_open(&m, path, o, &err);
    for (int at = 0, n = 1; !rc && at < frames; at += n, n = frames - at < 4 ? frames - at : 4) {
        due += CHUNK_NS;
        const int64_t wait = due - sl_now_ns();
        if (paced && wait > 0) usleep((unsigned)(wait / 1000));
        last = paced ? due : sl_now_ns();
        rc = sl_video_file_write(m, rgb + (size_t)at * FRAME, n, &err);
    }
    if (!rc) rc = sl_video_file_finish(&m, &r->bytes, &err);
    sl_video_file_abandon(&m);
    if (rc) return fprintf(stderr, "bench_mux: %s\n", err.msg), 1;
    const double took = (double)(sl_now_ns() - (paced ? last : t0)) * 1e-9;
    *(paced ? &r->tail : &r->seconds) = took;
    return 0;
}

/* The frames as they went in beside what the file gives back, for libavfilter's SSIM. */
static const char GRAPH[] = "[in]scale=out_color_matrix=bt709:out_range=tv,format=yuv420p[a];"
                            "movie=%s[b];[a][b]ssim[out]";

static AVFilterGraph *ssim_graph(const char *path, AVFilterContext **into, AVFilterContext **outof)
{
    char source[128], text[600];
    AVFilterGraph *g = avfilter_graph_alloc();
    AVFilterInOut *in = avfilter_inout_alloc(), *out = avfilter_inout_alloc();
    snprintf(source, sizeof source, "video_size=%dx%d:pix_fmt=%d:time_base=1/%d", W, H,
             (int)AV_PIX_FMT_RGB24, FPS);
    snprintf(text, sizeof text, GRAPH, path);
    bool ok = g && in && out &&
              avfilter_graph_create_filter(into, avfilter_get_by_name("buffer"), "in", source, NULL,
                                           g) >= 0 &&
              avfilter_graph_create_filter(outof, avfilter_get_by_name("buffersink"), "out", NULL,
                                           NULL, g) >= 0;
    if (ok) {
        *out = (AVFilterInOut){.name = av_strdup("in"), .filter_ctx = *into};
        *in = (AVFilterInOut){.name = av_strdup("out"), .filter_ctx = *outof};
        ok = avfilter_graph_parse_ptr(g, text, &in, &out, NULL) >= 0 &&
             avfilter_graph_config(g, NULL) >= 0;
    }
    avfilter_inout_free(&in);
    avfilter_inout_free(&out);
    if (!ok) avfilter_graph_free(&g);
    return g;
}

/* What SSIM says of the frames that are through; the number of them. */
static int take(AVFilterContext *outof, AVFrame *f, double *sum)
{
    int n = 0;
    for (; av_buffersink_get_frame(outof, f) >= 0; n++) {
        const AVDictionaryEntry *all = av_dict_get(f->metadata, "lavfi.ssim.All", NULL, 0);
        *sum += all ? strtod(all->value, NULL) : NAN;
        av_frame_unref(f);
    }
    return n;
}

/* SSIM of all planes, the mean over the frames; NAN: they cannot be compared. */
static double ssim(const char *path, const uint8_t *rgb, int frames)
{
    AVFilterContext *into = NULL, *outof = NULL;
    AVFilterGraph *g = ssim_graph(path, &into, &outof);
    AVFrame *f = av_frame_alloc(), *got = av_frame_alloc();
    double sum = 0;
    int n = 0;
    bool ok = g && f && got;
    for (int i = 0; i < frames && ok; i++) {
        f->format = AV_PIX_FMT_RGB24, f->width = W, f->height = H, f->pts = i;
        ok = av_frame_get_buffer(f, 0) >= 0;
        for (int y = 0; y < H && ok; y++)
            memcpy(f->data[0] + (ptrdiff_t)y * f->linesize[0],
                   rgb + (size_t)i * FRAME + (size_t)y * W * 3, (size_t)W * 3);
        ok = ok && av_buffersrc_add_frame(into, f) >= 0; /* takes the frame's buffer over */
        if (ok) n += take(outof, got, &sum);
    }
    ok = ok && av_buffersrc_add_frame(into, NULL) >= 0;
    if (ok) n += take(outof, got, &sum);
    av_frame_free(&f);
    av_frame_free(&got);
    avfilter_graph_free(&g);
    return ok && n == frames ? sum / n : NAN;
}

static const char *const PRESETS[] = {"ultrafast", "superfast", "veryfast",
                                      "faster",    "fast",      "medium"};
static const int THREADS[] = {4, 8, 16, 32};

/* The table's rows of these frames. */
static int rows(const char *kind, const char *path, const uint8_t *rgb, int frames)
{
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (size_t t = 0; t < sizeof THREADS / sizeof *THREADS; t++) {
        if (t && THREADS[t] > 2 * cpus) continue;
        for (size_t k = 0; k < sizeof PRESETS / sizeof *PRESETS; k++) {
            const sl_video_options o = {
                .w = W, .h = H, .fps = FPS, .crf = 18, .threads = THREADS[t], .preset = PRESETS[k]};
            result r = {0};
            if (encode(&r, path, rgb, frames, true, &o) || encode(&r, path, rgb, frames, false, &o))
                return 1;
            printf("%-8s %-10s %7d %9.2f %9.2f %12lld %8.4f\n", kind, PRESETS[k], THREADS[t],
                   r.seconds, r.tail, (long long)r.bytes, ssim(path, rgb, frames));
            fflush(stdout);
        }
    }
    return 0;
}

/* The picture panned over, then noise unless it was asked for by name. */
static int table(const char *path, uint8_t *rgb, int frames, const char *picture)
{
    sl_picture p = {0};
    sl_err err = {0};
    if (sl_picture_read(&p, picture && strcmp(picture, "photo") ? picture : PHOTO, &err))
        return fprintf(stderr, "bench_mux: %s\n", err.msg), 1;
    pan(rgb, &p, frames);
    sl_picture_free(&p);
    printf("%dx%dx%d, crf 18, %ld CPUs; default: %d threads\n", W, H, frames,
           sysconf(_SC_NPROCESSORS_ONLN), sl_video_threads());
    printf("%-8s %-10s %7s %9s %9s %12s %8s\n", "frames", "preset", "threads", "seconds", "tail s",
           "bytes", "SSIM");
    if (rows("natural", path, rgb, frames)) return 1;
    if (picture) return 0;
    noise(rgb, frames);
    return rows("noise", path, rgb, frames);
}

int main(void)
{
    const char *set = getenv("MUX_FRAMES");
    const int frames = set ? atoi(set) : 81;
    char dir[] = "/var/tmp/bench-mux-XXXXXX", path[300];
    if (frames < 1) return fprintf(stderr, "bench_mux: MUX_FRAMES %s, want 1 or more\n", set), 2;
    uint8_t *rgb = malloc((size_t)frames * FRAME);
    if (!rgb || !mkdtemp(dir)) return fprintf(stderr, "bench_mux: no memory or folder\n"), 1;
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    const int status = table(path, rgb, frames, getenv("MUX_PICTURE"));
    unlink(path);
    rmdir(dir);
    free(rgb);
    return status;
}
