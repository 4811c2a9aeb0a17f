/* mp4.h - frames in, playable file out, through libavcodec and libavformat: H.264 in MP4, or what
 * the file's name says (common/video_format.h).
 *
 * Video is yuv420p, BT.709 limited range (converted and tagged so), faststart, CRF, preset,
 * constant frame rate. Written to a temporary name beside the target and renamed when
 * whole. Deterministic: the same frames and the same number of threads give the same bytes (no
 * clock, no encoder tag that varies). */
#ifndef SL_MP4_H
#define SL_MP4_H

#include "common/err.h"

#include <stdint.h>

typedef struct sl_mp4 sl_mp4;

typedef struct {
    int w, h;           /* even */
    double fps;         /* 1 .. 240 */
    int crf;            /* 0 .. 51, x264's */
    int threads;        /* of the encoder, 1 .. 64; its bytes depend on it. 0: sl_mp4_threads */
    const char *preset; /* x264's; NULL: "medium" */
} sl_mp4_options;

/* The encoder's threads where nobody says how many: the machine's, 4 to 16. */
int sl_mp4_threads(void);

/* Temporaries of dead writers of `path` are removed first. */
sl_code sl_mp4_open(sl_mp4 **out, const char *path, const sl_mp4_options *options, sl_err *err);
/* Encode n frames u8 [n, h, w, 3]. */
sl_code sl_mp4_write(sl_mp4 *m, const uint8_t *rgb, int n, sl_err *err);
/* Flush, write the trailer, move the index to the front, sync, rename. *m becomes NULL.
 * Errors: SL_SYS (a full disk): nothing is left. */
sl_code sl_mp4_finish(sl_mp4 **m, int64_t *bytes, sl_err *err);
void sl_mp4_abandon(sl_mp4 **m); /* remove what was written; NULL is fine */

#endif
