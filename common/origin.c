/* origin.c - where the files of a job come from. */
#include "common/origin.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/lora.h"
#include "common/version.h"

void sl_origin_of_process(sl_origin *o, const char *program, const char *device)
{
    snprintf(o->program, sizeof o->program, "%s", sl_path_last(program));
    snprintf(o->device, sizeof o->device, "%s", device);
}

void sl_origin_of_job(sl_origin *o, const sl_job *job)
{
    sl_origin_key(o->job, job);
    snprintf(o->seed, sizeof o->seed, "%" PRIu64, job->seed);
}

int sl_origin_notes(sl_st_note out[SL_ORIGIN_NOTES], const sl_origin *o)
{
    const sl_st_note notes[SL_ORIGIN_NOTES] = {{"job", o->job},
                                               {"seed", o->seed},
                                               {"version", sl_version()},
                                               {"program", o->program},
                                               {"device", o->device}};
    memcpy(out, notes, sizeof notes);
    return SL_ORIGIN_NOTES;
}

/* FNV-1a. */
static uint64_t mix(uint64_t h, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    while (n--) h = (h ^ *p++) * 0x100000001b3u;
    return h;
}

/* Where a file lies, and what is written beside the video, change none of its numbers. Of a LoRA
 * the content counts. */
static bool is_asked(const char *field)
{
    static const char *const OUTSIDE[] = {
        "model",      "image",       "last_image", "noise",  "output", "preview",       "dump",
        "dump_steps", "dump_blocks", "lora",       "lora_2", "fork",   "dump_blocks_of"};
    for (size_t i = 0; i < sizeof OUTSIDE / sizeof *OUTSIDE; i++)
        if (!strcmp(field, OUTSIDE[i])) return false;
    return true;
}

#define MIX_text(field) mix(h, job->field, strlen(job->field) + 1)
#define MIX_object(field) MIX_text(field)
#define MIX_path(field) mix(h, job->field, strlen(job->field) + 1)
#define MIX_int(field) mix(h, &job->field, sizeof job->field)
#define MIX_u64(field) mix(h, &job->field, sizeof job->field)
#define MIX_real(field) mix(h, &job->field, sizeof job->field)
#define MIX_flag(field) mix(h, &job->field, sizeof job->field)

void sl_origin_key(char out[24], const sl_job *job)
{
    uint64_t h = 0xcbf29ce484222325u;
#define X(kind, name, def)                                                                         \
    if (is_asked(#name)) h = MIX_##kind(name);
    SL_JOB_FIELDS(X)
#undef X
    const uint64_t lora[] = {sl_lora_key(job->lora), sl_lora_key(job->lora_2)};
    h = mix(h, lora, sizeof lora);
    snprintf(out, 24, "%016" PRIx64, h);
}
