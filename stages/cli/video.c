/* video.c - the object's fields, whatever a server put there. */
#include "stages/cli/video.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "stages/cli/remote.h"
#include "stages/cli/terminal.h"

static const char *text_of(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

static int int_of(const json_t *o, const char *key, int otherwise)
{
    const json_t *v = json_object_get(o, key);
    const json_int_t n = json_integer_value(v);
    return json_is_integer(v) && n >= INT_MIN && n <= INT_MAX ? (int)n : otherwise;
}

static int64_t time_of(const json_t *o, const char *key)
{
    return (int64_t)json_number_value(json_object_get(o, key));
}

sl_code sl_video_read(sl_video *v, const json_t *o, sl_err *err)
{
    static const char *const STATUSES[] = {"queued", "in_progress", "completed", "failed"};
    const char *id = text_of(o, "id"), *status = text_of(o, "status");
    const json_t *error = json_object_get(o, "error"), *eta = json_object_get(o, "eta_seconds");
    *v = (sl_video){.position = -1, .eta_s = -1};
    if (!sl_remote_is_id(id))
        return sl_fail(err, SL_FORMAT, "answer: id is \"%.80s\", want letters, digits, _ and -",
                       id);
    for (int i = 0; i < 4; i++)
        if (!strcmp(status, STATUSES[i])) v->status = STATUSES[i];
    if (!v->status)
        return sl_fail(err, SL_FORMAT,
                       "answer: status is \"%.80s\", want queued, in_progress, completed or failed",
                       status);
    snprintf(v->id, sizeof v->id, "%s", id);
    v->completed = v->status == STATUSES[2];
    v->ended = v->completed || v->status == STATUSES[3];
    v->cancelled = !strcmp(text_of(error, "code"), "cancelled");
    v->error = text_of(error, "message");
    v->prompt = text_of(o, "prompt");
    v->negative = text_of(o, "negative_prompt");
    v->model = text_of(o, "model");
    v->stage = text_of(o, "stage");
    v->progress = int_of(o, "progress", 0);
    v->width = int_of(o, "width", 0);
    v->height = int_of(o, "height", 0);
    v->frames = int_of(o, "frames", 0);
    v->fps = json_number_value(json_object_get(o, "fps"));
    v->steps = int_of(o, "steps", 0);
    v->priority = int_of(o, "priority", 0);
    v->attempts = int_of(o, "attempts", 0);
    v->step = int_of(o, "step", -1);
    v->stage_steps = int_of(o, "stage_steps", 0);
    v->position = int_of(o, "queue_position", -1);
    v->created_at = time_of(o, "created_at");
    v->started_at = time_of(o, "started_at");
    v->completed_at = time_of(o, "completed_at");
    v->guidance = json_number_value(json_object_get(o, "guidance"));
    if (json_is_number(eta)) v->eta_s = json_number_value(eta);
    const json_int_t bytes = json_integer_value(json_object_get(o, "output_bytes"));
    if (bytes > 0) v->bytes = (uint64_t)bytes;
    return SL_OK;
}

void sl_video_tell(const sl_video *v, char out[64])
{
    char eta[16] = "", before[32] = "";
    if (v->eta_s >= 0 && !v->ended) sl_format_seconds(eta, v->eta_s);
    if (v->position == 0) snprintf(before, sizeof before, ", next");
    else if (v->position > 0) snprintf(before, sizeof before, ", %d before it", v->position);
    snprintf(out, 64, "%s%s%s%s",
             v->cancelled                        ? "cancelled"
             : !strcmp(v->status, "in_progress") ? "in progress"
                                                 : v->status,
             before, *eta ? ", about " : "", eta);
}
