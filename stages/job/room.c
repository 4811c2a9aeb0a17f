/* room.c - free bytes against wanted ones. */
#include "stages/job/room.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "common/pipeline.h"

/* A video of one colour, measured: 680 bytes of boxes, 21 a frame. */
#define LEAST_BYTES 512
#define LEAST_FRAME_BYTES 16
#define PIXELS_A_BYTE 40 /* of a natural picture at the default quality, about */

static uint64_t bytes_of(sl_handover h, const sl_job *job, const sl_model *model)
{
    const sl_grid grid = sl_job_grid(model, job);
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    const int n = sl_handover_tensors(t, h, model, &grid, job);
    uint64_t bytes = 0;
    for (int i = 0; i < n; i++) {
        const sl_tensor view = sl_view(NULL, t[i].dtype, t[i].rank, t[i].shape);
        bytes += sl_bytes(&view);
    }
    return bytes;
}

uint64_t sl_dump_bytes(const sl_job *job, const sl_model *model)
{
    const uint64_t latents = bytes_of(SL_HANDOVER_LATENTS, job, model);
    uint64_t bytes = latents; /* the noise */
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].how == SL_WHOLE && sl_handover_applies((sl_handover)h, model, job))
            bytes += bytes_of((sl_handover)h, job, model);
    /* each step in a file of its own first, then all of them in one; and its state, of four */
    if (job->dump_steps) bytes += (2 + 4) * (uint64_t)job->steps * latents;
    for (int h = 0; h < sl_handover_count(); h++) {
        const double scale = SL_HANDOVER[h].scale;
        if (SL_HANDOVER[h].how == SL_CHUNKS)
            bytes += (uint64_t)job->frames * (uint64_t)sl_scaled(job->width, scale) *
                     (uint64_t)sl_scaled(job->height, scale) * 3;
    }
    return bytes;
}

/* Free bytes where `path` lies or will lie; UINT64_MAX: nobody knows. */
static uint64_t free_at(const char *path)
{
    char at[SL_PATH];
    struct statvfs fs;
    snprintf(at, sizeof at, "%s", path);
    while (statvfs(at, &fs)) { /* the nearest ancestor that is there */
        char *slash = strrchr(at, '/');
        if (!slash || !at[1]) return UINT64_MAX;
        slash[slash == at] = 0;
    }
    /* some file systems do not count */
    return fs.f_blocks ? (uint64_t)fs.f_bavail * fs.f_frsize : UINT64_MAX;
}

sl_code sl_request_room(sl_request *r, const sl_model *model, char *hint, size_t size, sl_err *err)
{
    const sl_job *s = &r->spec;
    const uint64_t pixels = (uint64_t)s->frames * (uint64_t)s->width * (uint64_t)s->height,
                   there = r->streams || r->no_video ? UINT64_MAX : free_at(s->output),
                   least = LEAST_BYTES + LEAST_FRAME_BYTES * (uint64_t)s->frames;
    *hint = 0;
    if (there < least)
        return sl_fail(err, SL_SYS, "output %s: %llu bytes are free there, want at least %llu",
                       s->output, (unsigned long long)there, (unsigned long long)least);
    if (*r->dump_dir) {
        const uint64_t want = sl_dump_bytes(s, model), free_there = free_at(r->dump_dir);
        r->small_dump = free_there < want;
        if (r->small_dump)
            snprintf(hint, size,
                     "dump %s: %llu bytes are free there, want %llu: the video will be made, its "
                     "dump as far as it fits",
                     r->dump_dir, (unsigned long long)free_there, (unsigned long long)want);
    }
    if (!*hint && there < pixels / PIXELS_A_BYTE)
        snprintf(hint, size,
                 "output %s: %llu bytes are free there, a video of this size takes %llu", s->output,
                 (unsigned long long)there, (unsigned long long)(pixels / PIXELS_A_BYTE));
    return SL_OK;
}
