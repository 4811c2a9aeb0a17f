/* vae_encode.h - the encoder with and without its saving, and of a whole video, for the tests and
 * benchmarks that compare them. */
#ifndef SL_VAE_ENCODE_H
#define SL_VAE_ENCODE_H

#include "graphs/vae.h"
#include "graphs/vae_blocks.h"

/* As sl_vae_encode_condition; `every`: compute every frame, as if none repeated. */
void sl_vae_encode_video(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                         const float *first, const float *last, int frames, int h, int w,
                         float *moments, bool every);
/* As sl_vae_encode_condition, of a video: host float32 [frames, h, w, 3]. */
void sl_vae_encode_frames(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                          const float *video, int frames, int h, int w, float *moments);

#endif
