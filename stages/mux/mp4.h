/* mp4.h - H.264 in MP4 through libavcodec and libavformat: frames in, playable file out.
 *
 * yuv420p, BT.709 limited range (converted and tagged so), faststart, CRF, preset,
 * constant frame rate. Written to a temporary name beside the target and renamed when
 * whole. Deterministic: the same frames give the same bytes (fixed thread count, no
 * clock, no encoder tag that varies). */
#ifndef SL_MP4_H
#define SL_MP4_H

#include "common/err.h"

#include <stdint.h>

typedef struct sl_mp4 sl_mp4;

typedef struct {
    int w, h;           /* even */
    int fps;            /* 1 .. 240 */
    int crf;            /* 0 .. 51, x264's */
    int threads;        /* of the encoder, fixed so that bytes do not depend on the machine; 0: 4 */
    const char *preset; /* x264's; NULL: "medium" */
} sl_mp4_options;

/* Temporaries of dead writers of `path` are removed first. */
sl_code sl_mp4_open(sl_mp4 **out, const char *path, const sl_mp4_options *options, sl_err *err);
/* Encode n frames u8 [n, h, w, 3]. */
sl_code sl_mp4_write(sl_mp4 *m, const uint8_t *rgb, int n, sl_err *err);
/* Flush, write the trailer, move the index to the front, sync, rename. *m becomes NULL.
 * Errors: SL_SYS (a full disk): nothing is left. */
sl_code sl_mp4_finish(sl_mp4 **m, int64_t *bytes, sl_err *err);
void sl_mp4_abandon(sl_mp4 **m); /* remove what was written; NULL is fine */

#endif
