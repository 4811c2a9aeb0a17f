/* media.h - pictures of a finished video. */
#ifndef SL_MEDIA_H
#define SL_MEDIA_H

#include <stdbool.h>

#include "common/err.h"

/* A JPEG made of the video: its first frame, at most 512 pixels wide; or, sheet, up to 20 frames
 * evenly spread, 5 a row, 160 pixels wide each. Written beside `out` and renamed; one at a time in
 * the process. Errors: SL_SYS, SL_FORMAT, SL_NOMEM. */
sl_code sl_media_picture(const char *video, const char *out, bool sheet, sl_err *err);

#endif
