/* vae_encode.h - the encoder with and without its saving, for the tests and benchmarks
 * that compare the two. */
#ifndef SL_VAE_ENCODE_H
#define SL_VAE_ENCODE_H

#include "graphs/vae.h"
#include "graphs/vae_blocks.h"

/* As sl_vae_encode_condition; `every`: compute every frame, as if none repeated. */
void sl_vae_encode_video(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                         const float *first, const float *last, int frames, int h, int w,
                         float *moments, bool every);

#endif
