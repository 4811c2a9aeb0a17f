/* noise.h - the noise that a job's denoising starts from. */
#ifndef SL_SEAT_NOISE_H
#define SL_SEAT_NOISE_H

#include "stages/seat/seat.h"

/* *out = F32 of the latents' shape [z, T, h/s, w/s]: of the file that the user gave, which lies in
 * the job's folder, else drawn from the seed as torch.Generator("cpu") does. The caller's to free.
 * Errors: SL_FORMAT, SL_SHAPE, SL_NUMERIC, SL_SYS a file; SL_NOMEM. */
sl_code sl_seat_noise(float **out, const sl_msg_job *msg, const sl_job *job, const int64_t shape[4],
                      sl_err *err);

#endif
