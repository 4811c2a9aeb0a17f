/* video_format.c - the table. */
#include "common/video_format.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/av.h"
#include "common/path.h"

static const sl_video_format FORMATS[] = {
    {"mp4", "mp4", SL_VIDEO_H264, 240, "H.264, the index in front"},
    {"m4v", "mp4", SL_VIDEO_H264, 240, "the same"},
    {"mov", "mov", SL_VIDEO_H264, 240, "H.264 in QuickTime's container"},
    {"mkv", "matroska", SL_VIDEO_H264, 240, "H.264 in Matroska"},
    {"webm", "webm", "libvpx-vp9 libsvtav1 libaom-av1", 240, "VP9, else AV1"},
    {"gif", "gif", "gif", 50, "a palette of 256 colours a frame, endless"},
    {"webp", "webp", "libwebp_anim", 240, "animated, endless"},
    {"apng", "apng", "apng", 240, "lossless, endless"},
};
#define COUNT ((int)(sizeof FORMATS / sizeof *FORMATS))

const sl_video_format *sl_video_format_at(int i)
{
    return i >= 0 && i < COUNT ? &FORMATS[i] : NULL;
}

sl_code sl_video_encoder(const char **out, const sl_video_format *f, sl_err *err)
{
    static _Thread_local char name[32];
    const sl_av *av;
    sl_code rc = sl_av_load(&av, err);
    if (rc) return rc;
    for (const char *at = f->encoders; *at;) {
        const size_t n = strcspn(at, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        *out = name;
        if (av->avcodec_find_encoder_by_name(name)) return SL_OK;
        at += n + (at[n] == ' ');
    }
    return sl_fail(err, SL_ARG, "this libavcodec has no encoder for .%s (%s)", f->suffix,
                   f->encoders);
}

/* What stands behind the last dot of the path's name; "": nothing. */
static const char *suffix_of(const char *path)
{
    const char *name = sl_path_last(path), *dot = strrchr(name, '.');
    return dot && dot > name ? dot + 1 : "";
}

sl_code sl_video_format_of(const sl_video_format **out, const char *path, sl_err *err)
{
    const char *suffix = suffix_of(path);
    char list[128] = "";
    *out = &FORMATS[0];
    if (!*suffix) return SL_OK;
    for (int i = 0; i < COUNT; i++) {
        const size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s.%s", n ? " " : "", FORMATS[i].suffix);
        if (strcasecmp(FORMATS[i].suffix, suffix) != 0) continue;
        *out = &FORMATS[i];
        return SL_OK;
    }
    return sl_fail(err, SL_ARG, "output %s: .%.40s is no format that is written, want one of %s",
                   path, suffix, list);
}

sl_code sl_video_format_served(const char *path, sl_err *err)
{
    const char *suffix = suffix_of(path);
    if (!*suffix || !strcasecmp(suffix, "mp4") || !strcasecmp(suffix, "m4v")) return SL_OK;
    return sl_fail(err, SL_ARG, "output %s: a server's videos are MP4, want a name in .mp4", path);
}
