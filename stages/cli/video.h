/* video.h - a server's video object, as the client reads it. */
#ifndef SL_CLI_VIDEO_H
#define SL_CLI_VIDEO_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/err.h"

typedef struct {
    char id[65];
    const char *status; /* one of four words of the program */
    bool ended, completed, cancelled;
    int progress; /* 0 to 100 */
    /* What the object says, or what stands for nothing: "", 0, or -1 where 0 means something. The
     * texts are the object's. */
    const char *prompt, *negative, *model, *stage, *error;
    double fps;
    int width, height, frames, steps, priority, attempts, step, stage_steps, position;
    int64_t created_at, started_at, completed_at; /* seconds of Unix time */
    double eta_s, guidance;
    uint64_t bytes; /* of the finished video */
} sl_video;

/* *v holds as long as the object does. Errors: SL_FORMAT it is none: no id that could stand in a
 * path, or an unknown status. */
sl_code sl_video_read(sl_video *v, const json_t *object, sl_err *err);
/* "queued, 2 before it, about 40 s"; "in progress" and so on. */
void sl_video_tell(const sl_video *v, char out[64]);

#endif
