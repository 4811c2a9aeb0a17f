/* preview.c - latents to RGB, on a thread of its own.
 *
 * lock guards `busy` and `quit`. While busy, frame and all below it are the thread's; else the
 * main thread's. wake: busy or quit became true; idle: busy became false. */
#include "stages/denoise/preview.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common/clock.h"
#include "common/log.h"
#include "common/picture.h"
#include "common/temporary.h"
#include "stages/sizes/denoise.h"

#define RIDGE 1e-3 /* added to a channel's mean square, about 1: holds back what a few cells say */
#define ROUNDS 30  /* of the power iteration, from the step before's direction on */

struct sl_preview {
    const sl_job *job;
    char picture[SL_PATH];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    bool busy, quit;
    int z, h, w;
    float *frame, *first; /* [z, h, w]; first NULL: no picture, or used up */
    double *map;          /* [3, z + 1], the constant last: colour from channels, 0 to 255 */
    double *matrix;       /* [z + 1, z + 4]: normal equations, or the covariance */
    double *axis;         /* [2, z]: principal component, and room for the next */
    uint8_t *small;       /* [h, w, 3] */
    bool fitted, told;    /* the map is the picture's; a failure was logged */
};

static size_t cells(const sl_preview *p)
{
    return (size_t)p->h * (size_t)p->w;
}

/* ---- the map ---- */

/* Solve the n equations of m [n, n + 3], symmetric and positive, for three right sides, in place,
 * by Gauss; false: they are not positive. */
static bool solve(double *m, int n)
{
    const int row = n + 3;
    for (int k = 0; k < n; k++) {
        if (!(m[k * row + k] > 0)) return false;
        for (int i = 0; i < n; i++) {
            if (i == k) continue;
            const double f = m[i * row + k] / m[k * row + k];
            for (int j = k; j < row; j++) m[i * row + j] -= f * m[k * row + j];
        }
    }
    for (int i = 0; i < n; i++)
        for (int c = n; c < row; c++) m[i * row + c] /= m[i * row + i];
    return true;
}

/* The mean colours of the picture's cells, [h, w, 3] of 0 to 255, into out. */
static void average(double *out, const sl_picture *picture, int h, int w)
{
    const int ch = picture->h / h, cw = picture->w / w;
    memset(out, 0, (size_t)h * (size_t)w * 3 * sizeof *out);
    for (int y = 0; y < h * ch; y++)
        for (int x = 0; x < w * cw * 3; x++)
            out[((size_t)(y / ch) * (size_t)w + (size_t)(x / 3 / cw)) * 3 + (size_t)(x % 3)] +=
                picture->rgb[(size_t)y * (size_t)picture->w * 3 + (size_t)x] / (double)(ch * cw);
}

/* Least squares: the map that takes `first` to the colours, [h, w, 3]. */
static bool fit(sl_preview *p, const double *colours)
{
    const int n = p->z + 1, row = n + 3;
    const size_t count = cells(p);
    memset(p->matrix, 0, (size_t)(n * row) * sizeof *p->matrix);
    for (size_t at = 0; at < count; at++)
        for (int i = 0; i < n; i++) {
            const double a = i < p->z ? p->first[(size_t)i * count + at] : 1;
            double *m = p->matrix + i * row;
            for (int j = 0; j < p->z; j++) m[j] += a * p->first[(size_t)j * count + at];
            m[p->z] += a;
            for (int c = 0; c < 3; c++) m[n + c] += a * colours[at * 3 + (size_t)c];
        }
    for (int i = 0; i < p->z; i++) p->matrix[i * row + i] += RIDGE * (double)count;
    if (!solve(p->matrix, n)) return false;
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < n; i++) p->map[c * n + i] = p->matrix[i * row + n + c];
    return true;
}

/* The picture as the image stage resizes it, and the map from it. Once. */
static sl_code fit_picture(sl_preview *p, sl_err *err)
{
    const sl_job *job = p->job;
    sl_picture raw = {0}, resized = {0};
    double *colours = malloc(cells(p) * 3 * sizeof *colours);
    sl_code rc = colours ? sl_picture_read(&raw, p->picture, err)
                         : sl_fail(err, SL_NOMEM, "no memory for a fit");
    if (!rc)
        rc = sl_picture_resize(&resized, &raw, job->width, job->height,
                               job->bicubic ? SL_FILTER_BICUBIC : SL_FILTER_LANCZOS, err);
    if (!rc) {
        average(colours, &resized, p->h, p->w);
        if (!fit(p, colours)) rc = sl_fail(err, SL_NUMERIC, "the picture's latents give no fit");
    }
    p->fitted = !rc;
    sl_picture_free(&raw);
    sl_picture_free(&resized);
    free(colours);
    free(p->first);
    p->first = NULL;
    return rc;
}

/* Means of the frame's channels into axis[z..], their covariance into matrix [z, z]. */
static void covariance(sl_preview *p)
{
    const size_t count = cells(p);
    double *mean = p->axis + p->z;
    for (int i = 0; i < p->z; i++) {
        mean[i] = 0;
        for (size_t at = 0; at < count; at++) mean[i] += p->frame[(size_t)i * count + at];
        mean[i] /= (double)count;
    }
    for (int i = 0; i < p->z; i++)
        for (int j = 0; j <= i; j++) {
            double s = 0;
            for (size_t at = 0; at < count; at++)
                s += (p->frame[(size_t)i * count + at] - mean[i]) *
                     (p->frame[(size_t)j * count + at] - mean[j]);
            p->matrix[i * p->z + j] = p->matrix[j * p->z + i] = s / (double)count;
        }
}

/* The map of a job without a picture: the direction in which the frame's cells differ most, its
 * mean mid grey, two deviations black and white. The direction goes on from the step before's, so
 * that its sign, which says nothing, stays. */
static void map_component(sl_preview *p)
{
    const int z = p->z, n = z + 1;
    double *axis = p->axis, *mean = p->axis + z, *next = p->map, variance = 0;
    covariance(p);
    for (int r = 0; r < ROUNDS; r++) {
        double length = 0;
        for (int i = 0; i < z; i++) {
            next[i] = 0;
            for (int j = 0; j < z; j++) next[i] += p->matrix[i * z + j] * axis[j];
            length += next[i] * next[i];
        }
        length = sqrt(length);
        if (!(length > 0)) break; /* all cells are alike */
        variance = length;
        for (int i = 0; i < z; i++) axis[i] = next[i] / length;
    }
    const double scale = variance > 0 ? 64 / sqrt(variance) : 0;
    double constant = 128;
    for (int i = 0; i < z; i++) constant -= scale * axis[i] * mean[i];
    for (int c = 0; c < 3; c++) {
        for (int i = 0; i < z; i++) p->map[c * n + i] = scale * axis[i];
        p->map[c * n + z] = constant;
    }
}

/* ---- the picture ---- */

static uint8_t byte(double x)
{
    return x <= 0 ? 0 : x >= 255 ? 255 : (uint8_t)lrint(x);
}

static void project(sl_preview *p)
{
    const int n = p->z + 1;
    const size_t count = cells(p);
    for (size_t at = 0; at < count; at++)
        for (int c = 0; c < 3; c++) {
            double x = p->map[c * n + p->z];
            for (int i = 0; i < p->z; i++)
                x += p->map[c * n + i] * p->frame[(size_t)i * count + at];
            p->small[at * 3 + (size_t)c] = byte(x);
        }
}

/* Bilinear, by SL_PREVIEW_SCALE: cells' centres keep their place, edges are repeated. A pixel's
 * centre lies (2 y + 1 - scale) / (2 scale) cells below the first cell's. */
typedef struct {
    int cell, part; /* the cell before; of 2 SL_PREVIEW_SCALE, how far to the next */
} between;

static between between_cells(int pixel, int cells)
{
    const int unit = 2 * SL_PREVIEW_SCALE, last = (cells - 1) * unit,
              at = 2 * pixel + 1 - SL_PREVIEW_SCALE,
              in = at < 0      ? 0
                   : at > last ? last
                               : at;
    return (between){in / unit, in % unit};
}

static void enlarge(uint8_t *out, const uint8_t *in, int h, int w)
{
    const int s = SL_PREVIEW_SCALE, unit = 2 * s, half = unit * unit / 2;
    for (int y = 0; y < h * s; y++) {
        const between v = between_cells(y, h);
        const uint8_t *a = in + (size_t)v.cell * (size_t)w * 3, *b = v.part ? a + (size_t)w * 3 : a;
        for (int x = 0; x < w * s; x++) {
            const between u = between_cells(x, w);
            const size_t l = (size_t)u.cell * 3, r = u.part ? l + 3 : l;
            for (size_t c = 0; c < 3; c++) {
                const int above = (unit - u.part) * a[l + c] + u.part * a[r + c],
                          below = (unit - u.part) * b[l + c] + u.part * b[r + c];
                *out++ = (uint8_t)(((unit - v.part) * above + v.part * below + half) / unit / unit);
            }
        }
    }
}

static sl_code draw(sl_preview *p, sl_err *err)
{
    sl_picture big = {.w = p->w * SL_PREVIEW_SCALE, .h = p->h * SL_PREVIEW_SCALE};
    if (!(big.rgb = malloc((size_t)big.w * (size_t)big.h * 3)))
        return sl_fail(err, SL_NOMEM, "no memory for %dx%d pixels", big.w, big.h);
    if (!p->fitted) map_component(p);
    project(p);
    enlarge(big.rgb, p->small, p->h, p->w);
    sl_code rc = sl_picture_write(&big, p->job->preview, err);
    free(big.rgb);
    return rc;
}

/* ---- the thread ---- */

static void complain_once(sl_preview *p, const sl_err *err)
{
    if (!p->told) sl_log(SL_LOG_WARN, "preview: %s", err->msg);
    p->told = true;
}

static void *preview_main(void *arg)
{
    sl_preview *p = arg;
#ifdef _OPENMP
    omp_set_num_threads(1); /* of this thread: the others compute */
#endif
    sl_temporary_sweep(p->job->preview);
    pthread_mutex_lock(&p->lock);
    while (true) {
        while (!p->busy && !p->quit) pthread_cond_wait(&p->wake, &p->lock);
        if (!p->busy) break; /* quit, and all is written */
        pthread_mutex_unlock(&p->lock);
        sl_err err = {0};
        const int64_t t0 = sl_now_ns();
        if (p->first && fit_picture(p, &err)) complain_once(p, &err); /* grey, then */
        if (draw(p, &err)) complain_once(p, &err);
        sl_log(SL_LOG_DEBUG, "preview drawn in %.1f ms", (double)(sl_now_ns() - t0) * 1e-6);
        pthread_mutex_lock(&p->lock);
        p->busy = false;
        pthread_cond_signal(&p->idle);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- the main thread ---- */

static void free_memory(sl_preview *p)
{
    free(p->frame);
    free(p->first);
    free(p->map);
    free(p->matrix);
    free(p->axis);
    free(p->small);
    free(p);
}

static sl_preview *new_preview(const float *first, int z, int h, int w)
{
    const size_t n = (size_t)z * (size_t)h * (size_t)w, side = (size_t)z + 1;
    sl_preview *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->z = z, p->h = h, p->w = w;
    p->frame = malloc(n * sizeof *p->frame);
    p->first = first ? malloc(n * sizeof *p->first) : NULL;
    p->map = calloc(3 * side, sizeof *p->map);
    p->matrix = calloc(side * (side + 3), sizeof *p->matrix);
    p->axis = calloc(2 * (size_t)z, sizeof *p->axis);
    p->small = malloc((size_t)h * (size_t)w * 3);
    if (!p->frame || (first && !p->first) || !p->map || !p->matrix || !p->axis || !p->small) {
        free_memory(p);
        return NULL;
    }
    for (int i = 0; i < z; i++) p->axis[i] = 1; /* any direction, the same for all jobs */
    if (first) memcpy(p->first, first, n * sizeof *first);
    return p;
}

sl_code sl_preview_open(sl_preview **out, const sl_job *job, const char *dir, const float *first,
                        int z, int h, int w, sl_err *err)
{
    pthread_condattr_t monotonic;
    int e;
    *out = NULL;
    sl_preview *p = new_preview(first, z, h, w);
    if (!p) return sl_fail(err, SL_NOMEM, "preview: no memory");
    p->job = job;
    sl_code rc = sl_path_join(p->picture, dir, "image.input", err);
    if (rc) {
        free_memory(p);
        return rc;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if ((e = pthread_create(&p->thread, NULL, preview_main, p))) {
        pthread_cond_destroy(&p->wake);
        pthread_cond_destroy(&p->idle);
        pthread_mutex_destroy(&p->lock);
        free_memory(p);
        return sl_fail(err, SL_SYS, "preview's thread: %s", strerror(e));
    }
    *out = p;
    return SL_OK;
}

float *sl_preview_frame(sl_preview *p)
{
    pthread_mutex_lock(&p->lock);
    const bool busy = p->busy;
    pthread_mutex_unlock(&p->lock);
    return busy ? NULL : p->frame;
}

void sl_preview_show(sl_preview *p)
{
    pthread_mutex_lock(&p->lock);
    p->busy = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

bool sl_preview_wait(sl_preview *p, int ms)
{
    struct timespec by;
    int rc = 0;
    clock_gettime(CLOCK_MONOTONIC, &by);
    by.tv_sec += ms / 1000;
    by.tv_nsec += (long)(ms % 1000) * 1000000;
    if (by.tv_nsec >= 1000000000) by.tv_nsec -= 1000000000, by.tv_sec++;
    pthread_mutex_lock(&p->lock);
    while (p->busy && rc != ETIMEDOUT) rc = pthread_cond_timedwait(&p->idle, &p->lock, &by);
    const bool idle = !p->busy;
    pthread_mutex_unlock(&p->lock);
    return idle;
}

void sl_preview_close(sl_preview **pp)
{
    sl_preview *p = *pp;
    if (!p) return;
    *pp = NULL;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->lock);
    free_memory(p);
}
