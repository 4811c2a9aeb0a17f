/* preview.h - a small picture of what the latents show, while they are still denoised.
 *
 * One latent frame, [z, h, w], becomes RGB by a linear map and a PNG of 4 times its size, which is
 * half the video's, or a quarter of it (TI2V-5B). The map is fitted per job: the condition has the
 * latents of the first picture, and that picture, averaged over the cells of the latents, is what
 * they look like; least squares give z weights and a constant a colour. A job without a picture is
 * shown in grey, by the first principal component of the frame.
 *
 *   main thread        after a step, if the preview is idle: a copy of the frame, show
 *   preview's thread   fit (once), map, scale, encode, write beside the file, rename
 *
 * A step never waits for the preview: one that finds it busy is not shown. All functions are the
 * main thread's. */
#ifndef SL_DENOISE_PREVIEW_H
#define SL_DENOISE_PREVIEW_H

#include <stdbool.h>

#include "common/job.h"

typedef struct sl_preview sl_preview;

/* Start the thread. PNGs go to job->preview; the picture is DIR/image.input, read by the thread.
 * first [z, h, w]: its latents, copied; NULL: the job has no picture. `job` outlives the preview.
 * *out is the caller's to close. Errors: SL_NOMEM, SL_SYS no thread; *out is NULL then. What goes
 * wrong later is logged, once, and nobody else's business. */
sl_code sl_preview_open(sl_preview **out, const sl_job *job, const char *dir, const float *first,
                        int z, int h, int w, sl_err *err);
/* Where the next frame may be put, z * h * w floats; NULL: the preview is busy. A frame that is
 * put there is to be shown. */
float *sl_preview_frame(sl_preview *p);
void sl_preview_show(sl_preview *p);
/* Wait until what was shown is written, for so long at most; false: it is not. */
bool sl_preview_wait(sl_preview *p, int ms);
/* Write what was shown, end the thread; NULL is fine. */
void sl_preview_close(sl_preview **p);

#endif
