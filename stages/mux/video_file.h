/* video_file.h - frames in, playable file out, through libavcodec and libavformat, in the format
 * that the file's name says (common/video_format.h).
 *
 * Video is yuv420p, BT.709 limited range (converted and tagged so), faststart, CRF, preset,
 * constant frame rate. Written to a temporary name beside the target and renamed when
 * whole. Deterministic: the same frames and the same number of threads give the same bytes (no
 * clock, no encoder tag that varies). */
#ifndef SL_VIDEO_FILE_H
#define SL_VIDEO_FILE_H

#include "common/err.h"

#include <stdint.h>

typedef struct sl_video_file sl_video_file;

typedef struct {
    int w, h;           /* even */
    double fps;         /* 1 .. 240 */
    int crf;            /* 0 .. 51, x264's */
    int threads;        /* of the encoder, 1 .. 64; its bytes depend on it. 0: sl_video_threads */
    const char *preset; /* x264's; NULL: "faster" */
} sl_video_options;

/* The encoder's threads where nobody says how many: the machine's, 4 to 16. */
int sl_video_threads(void);

/* Temporaries of dead writers of `path` are removed first. */
sl_code sl_video_file_open(sl_video_file **out, const char *path, const sl_video_options *options,
                           sl_err *err);
/* Encode n frames u8 [n, h, w, 3]. */
sl_code sl_video_file_write(sl_video_file *m, const uint8_t *rgb, int n, sl_err *err);
/* Flush, write the trailer, move the index to the front, sync, rename. *m becomes NULL.
 * Errors: SL_SYS (a full disk): nothing is left. */
sl_code sl_video_file_finish(sl_video_file **m, int64_t *bytes, sl_err *err);
void sl_video_file_abandon(sl_video_file **m); /* remove what was written; NULL is fine */

#endif
