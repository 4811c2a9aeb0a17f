/* job.h - what one job asks for: the fields of spool/JOB/job.json, written by the client,
 * read by every stage.
 *
 * The folder spool/JOB holds all that a job is: job.json, the picture(s) and noise as
 * given, and each hand-over when it is finished (text.safetensors, image.safetensors,
 * denoise.safetensors). What lies there under its final name is whole. */
#ifndef SL_JOB_H
#define SL_JOB_H

#include "common/model.h"

/* Largest threshold of the First Block Cache, a relative change, in a job and a configuration. */
#define SL_FBCACHE_MOST 10

#define SL_PARAMS_BYTES 16384 /* of params, as JSON, at most */

/* kind, name, default. Kinds: text (malloc'd, any length), path (SL_PATH bytes), int, u64,
 * real, flag, object (malloc'd: the text of a JSON object; "" stands for an empty one). A field
 * without a meaning for a checkpoint (last_image for T2V) is refused by whoever completes the
 * request (stages/job/check.h), not here. */
#define SL_JOB_FIELDS(F)                                                                           \
    F(path, model, "")                                                                             \
    F(path, image, "") /* the user's path, for reports; the bytes lie in the job's folder */       \
    F(path, last_image, "")                                                                        \
    F(text, prompt, "")                                                                            \
    F(text, negative, "")                                                                          \
    F(path, output, "")  /* absolute path of the video */                                          \
    F(path, preview, "") /* absolute path of a PNG of the latents, after each step; "" none */     \
    F(int, width, 0)                                                                               \
    F(int, height, 0)                                                                              \
    F(flag, bicubic, 0) /* size from the picture's aspect: a bicubic resize first (spec 3.5) */    \
    F(int, frames, 81)                                                                             \
    F(real, fps, 16)                                                                               \
    F(int, steps, 50)                                                                              \
    F(real, guidance, 5.0)                                                                         \
    F(real, guidance_2, 5.0) /* second expert's */                                                 \
    F(real, shift, 3.0)                                                                            \
    F(path, sampler, "unipc") /* of SL_SAMPLERS */                                                 \
    F(u64, seed, 0)                                                                                \
    F(path, noise, "")         /* the user's path; the bytes lie there as noise.safetensors */     \
    F(path, precision, "bf16") /* of SL_PRECISIONS */                                              \
    F(real, fbcache, 0)                                                                            \
    F(int, fbcache_warmup, 0)                                                                      \
    F(int, fbcache_max_hits, 0)                                                                    \
    F(int, fbcache_final, 0)                                                                       \
    F(text, lora, "")   /* rows of common/lora.h, for the transformer */                           \
    F(text, lora_2, "") /* and for the second expert */                                            \
    F(flag, lora_lenient, 0)                                                                       \
    F(int, fork,                                                                                   \
      0) /* the step before which it begins, from fork.safetensors; 0: with the noise */           \
    F(int, crf, 18)                                                                                \
    F(object, params, "")       /* what stages of one's own are told */                            \
    F(text, filters, "")        /* of its pipeline, as sl_pipeline_text tells them */              \
    F(flag, dump, 0)            /* keep ids and frames.safetensors */                              \
    F(flag, dump_steps, 0)      /* step.{i}.latents */                                             \
    F(flag, dump_blocks, 0)     /* hidden states of the first forward, or of */                    \
    F(text, dump_blocks_of, "") /* those that common/taps.h is told; "" the first */

typedef char *sl_job_text;
typedef char *sl_job_object;
typedef char sl_job_path[SL_PATH];
typedef int sl_job_int;
typedef uint64_t sl_job_u64;
typedef double sl_job_real;
typedef int sl_job_flag;

typedef struct {
#define X(kind, name, def) sl_job_##kind name;
    SL_JOB_FIELDS(X)
#undef X
} sl_job;

/* Defaults; text fields are malloc'd. sl_job_free frees them and zeroes the job; a zeroed
 * job is fine. */
sl_code sl_job_init(sl_job *job, sl_err *err);
void sl_job_free(sl_job *job);
/* *to, overwritten, gets texts of its own. */
sl_code sl_job_copy(sl_job *to, const sl_job *from, sl_err *err);
sl_code sl_job_set_text(char **field, const char *value, sl_err *err);

/* job.json: every field; unknown keys and wrong types are refused with file, key, found,
 * wanted. Read starts from the defaults. The file is written to a temporary name, synced
 * and renamed. */
sl_code sl_job_write(const sl_job *job, const char *path, sl_err *err);
/* The same, not synced: of a folder whose files are kept elsewhere. */
sl_code sl_job_write_copy(const sl_job *job, const char *path, sl_err *err);
sl_code sl_job_read(sl_job *job, const char *path, sl_err *err);
/* Read a job from JSON text; `name` stands for the file (or FILE:LINE) in messages. Fields
 * that are absent stay as they are in *job. */
sl_code sl_job_parse(sl_job *job, const char *json, size_t length, const char *name, sl_err *err);

#define SL_JOB_SIDE 8192 /* pixels of a side, at most */
/* Ranges that need no checkpoint: valid UTF-8, sizes multiples of 16, frames 4k+1, steps,
 * guidance, fps, crf, ... One line names field, found, wanted. */
sl_code sl_job_check(const sl_job *job, sl_err *err);
/* As sl_job_check, and the size is one of the family's: multiples of 16 or 32 (sl_edge). */
sl_code sl_job_check_family(const sl_job *job, const sl_family *f, sl_err *err);

/* Frames a second as the ratio that a container tells: 24000/1001 for 23.976 and 23.98, otherwise
 * thousandths in lowest terms. */
void sl_fps_ratio(double fps, int *num, int *den);

int sl_job_latent_frames(const sl_job *job); /* (frames - 1) / 4 + 1 */

/* The job steps as distilled models are meant to (SL_SAMPLER_LIGHTX2V); their number and shift. */
bool sl_job_distilled(const sl_job *job);
#define SL_DISTILLED_STEPS 4
#define SL_DISTILLED_SHIFT 5.0

#endif
