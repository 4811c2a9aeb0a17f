/* video_format.h - the files that a video can be written as, by the name that it is given: one
 * table, from which checks, the mux and the README's table follow. */
#ifndef SL_VIDEO_FORMAT_H
#define SL_VIDEO_FORMAT_H

#include <stdbool.h>

#include "common/err.h"

#define SL_VIDEO_H264 "libx264" /* the encoder of the usual formats */

typedef struct {
    const char *suffix;   /* of the name, without the dot; any case */
    const char *muxer;    /* libavformat's */
    const char *encoders; /* libavcodec's, the first that the library has is taken */
    int fps_most;         /* frames a second that players show as they are */
    const char *what;     /* for people */
} sl_video_format;

/* Row i; NULL behind the last. */
const sl_video_format *sl_video_format_at(int i);
/* The format that the path's name says; one without a suffix is MP4. Errors: SL_ARG no such
 * format. */
sl_code sl_video_format_of(const sl_video_format **out, const char *path, sl_err *err);
/* The first encoder of the row that libavcodec, which is loaded for that (common/av.h), has; the
 * calling thread's until its next call. Errors: SL_ARG it has none; SL_SYS no libavcodec is
 * there. */
sl_code sl_video_encoder(const char **out, const sl_video_format *f, sl_err *err);
/* What comes from a server, whatever the name: SL_ARG the name says another format than MP4. */
sl_code sl_video_format_served(const char *path, sl_err *err);

#endif
