/* bench_mux - how long after the last latent a video can be played: seconds, bytes and SSIM of
 * 1280x720x81 by preset and threads, with a picture that is panned over and with noise.
 *
 *   frames, chunk by chunk (1, then 4 at a time) --> sl_mp4_write ... sl_mp4_finish
 *
 * "paced": a decoder gives a chunk every 70 ms, as an H200's does (1.4 s in all), so what is waited
 * for at the end is what counts; "at once": all of them are there. "tail" is from the last chunk to
 * the finished file, paced; "seconds" is the whole, at once. Wanted: tail of at most 1.5 s on 16
 * cores. What to change: video.threads and video.preset, or their defaults (common/conf_keys.c,
 * sl_mp4_threads of stages/mux/mp4.c). MUX_FRAMES (81), MUX_PICTURE (a PNG or JPEG) are
 * settings. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/picture.h"
#include "stages/mux/mp4.h"

#define W 1280
#define H 720
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

/* A pan over the picture's spare width and half of its spare height, with a grain of +-2 that no encoder predicts. */
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
                  const sl_mp4_options *o)
{
    sl_err err = {0};
    sl_mp4 *m = NULL;
    int64_t t0 = sl_now_ns(), due = t0, last = t0;
    sl_code rc = sl_mp4_open(&m, path, o, &err);
    for (int at = 0, n = 1; !rc && at < frames; at += n, n = frames - at < 4 ? frames - at : 4) {
        due += CHUNK_NS;
        const int64_t wait = due - sl_now_ns();
        if (paced && wait > 0) usleep((unsigned)(wait / 1000));
        last = paced ? due : sl_now_ns();
        rc = sl_mp4_write(m, rgb + (size_t)at * FRAME, n, &err);
    }
    if (!rc) rc = sl_mp4_finish(&m, &r->bytes, &err);
    sl_mp4_abandon(&m);
    if (rc) return fprintf(stderr, "bench_mux: %s\n", err.msg), 1;
    const double took = (double)(sl_now_ns() - (paced ? last : t0)) * 1e-9;
    *(paced ? &r->tail : &r->seconds) = took;
    return 0;
}

/* SSIM of all planes, by ffmpeg, against the frames as they went in; NAN: there is no ffmpeg. */
static double ssim(const char *path)
{
    char cmd[1024], line[512];
    double all = NAN;
    snprintf(
        cmd, sizeof cmd,
        "ffmpeg -nostdin -hide_banner -f rawvideo -pix_fmt rgb24 -s %dx%d -r 16 -i '%s.rgb' -i "
        "'%s' "
        "-lavfi '[0:v]scale=out_color_matrix=bt709:out_range=tv,format=yuv420p[a];[a][1:v]ssim' "
        "-f null - 2>&1",
        W, H, path, path);
    FILE *p = popen(cmd, "r");
    while (p && fgets(line, sizeof line, p)) {
        const char *at = strstr(line, "All:");
        if (at) all = strtod(at + 4, NULL);
    }
    if (p) pclose(p);
    return all;
}

static int put(const char *path, const uint8_t *rgb, int frames)
{
    char name[400];
    snprintf(name, sizeof name, "%s.rgb", path);
    FILE *f = fopen(name, "wb");
    const size_t n = (size_t)frames * FRAME;
    const int bad = !f || fwrite(rgb, 1, n, f) != n;
    return (f && fclose(f)) || bad;
}

int main(void)
{
    static const char *const PRESETS[] = {"ultrafast", "superfast", "veryfast",
                                          "faster",    "fast",      "medium"};
    static const int THREADS[] = {4, 8, 16, 32};
    const char *set = getenv("MUX_FRAMES"), *picture = getenv("MUX_PICTURE");
    const int frames = set ? atoi(set) : 81;
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    char dir[] = "/var/tmp/bench-mux-XXXXXX", path[300], command[400];
    sl_picture p = {0};
    sl_err err = {0};
    uint8_t *rgb = malloc((size_t)frames * FRAME);
    if (!picture) picture = "tests/demo-model/pictures/fig.jpg";
    if (!rgb || !mkdtemp(dir) || sl_picture_read(&p, picture, &err))
        return fprintf(stderr, "bench_mux: %s\n", err.code ? err.msg : "no memory or folder"), 1;
    snprintf(path, sizeof path, "%s/v.mp4", dir);
    printf("%dx%dx%d, crf 18, %ld CPUs; default: %d threads\n", W, H, frames, cpus,
           sl_mp4_threads());
    printf("%-8s %-10s %7s %9s %9s %12s %8s\n", "frames", "preset", "threads", "seconds", "tail s",
           "bytes", "SSIM");
    for (int kind = 0; kind < 2; kind++) {
        if (kind) noise(rgb, frames);
        else pan(rgb, &p, frames);
        const bool compare = !put(path, rgb, frames);
        for (size_t t = 0; t < sizeof THREADS / sizeof *THREADS; t++) {
            if (t && THREADS[t] > 2 * cpus) continue;
            for (size_t k = 0; k < sizeof PRESETS / sizeof *PRESETS; k++) {
                const sl_mp4_options o = {.w = W,
                                          .h = H,
                                          .fps = 16,
                                          .crf = 18,
                                          .threads = THREADS[t],
                                          .preset = PRESETS[k]};
                result r = {0};
                if (encode(&r, path, rgb, frames, true, &o) ||
                    encode(&r, path, rgb, frames, false, &o))
                    return 1;
                printf("%-8s %-10s %7d %9.2f %9.2f %12lld %8.4f\n", kind ? "noise" : "natural",
                       PRESETS[k], THREADS[t], r.seconds, r.tail, (long long)r.bytes,
                       compare ? ssim(path) : NAN);
                fflush(stdout);
            }
        }
    }
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    sl_picture_free(&p);
    free(rgb);
    return system(command) != 0;
}
