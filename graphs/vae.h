/* vae.h - the causal video autoencoders of Wan 2.1 and 2.2: encoder in vae_encode.c, decoder in
 * vae_decode.c, shared blocks in vae.c. Spec 2.2, 4, 9.4; diffusers
 * models/autoencoders/autoencoder_kl_wan.py. Frames are channels-last inside. That of 2.2 adds to
 * each level a shortcut without weights (config residual) and takes 2 x 2 pixels as one (patched):
 * s, the pixels of a latent's edge, is 8, or 16 then.
 *
 * Both run chunk by chunk: each causal convolution keeps the last two frames of its input
 * in a cache, so memory depends on the chunk, not on the video. Results do not depend on
 * the chunking. */
#ifndef SL_VAE_H
#define SL_VAE_H

#include "common/model.h"
#include "graphs/weights.h"

typedef struct sl_vae_encoder sl_vae_encoder; /* weights */
typedef struct sl_vae_decoder sl_vae_decoder;

/* Allocate and name all weights of one half through `l`, which owns them, tells about
 * errors (sl_loader_finish) and must outlive the network. The caller frees; free sets *m
 * to NULL, and NULL is fine. NULL: no memory. */
sl_vae_encoder *sl_vae_encoder_new(const sl_vae_config *config, sl_loader *l);
void sl_vae_encoder_free(sl_vae_encoder **m);
sl_vae_decoder *sl_vae_decoder_new(const sl_vae_config *config, sl_loader *l);
void sl_vae_decoder_free(sl_vae_decoder **m);

/* ---- encode the condition video of image-to-video ---- */

/* out F32 [z, T, h/s, w/s] = normalised mean of encode([first, 0 ..., 0 (, last)]), with
 * T = (frames-1)/4 + 1 (spec 3.6, 4.7).
 *   first    host float32 [h, w, 3] in [-1, 1], channels last
 *   last     the same, or NULL
 *   moments  NULL, or host float32 [2z, T, h/s, w/s] that gets the raw moments: mean, logvar
 *            (tests)
 * Frames that repeat are computed once, layer by layer (spec 7): 100, not 382, TFLOP at
 * 1280x720x81; not with shortcuts, whose models encode one frame. Everything is taken from ctx's
 * arena and released. ctx->cancel is looked at between chunks. Taps, a chunk at a time:
 * "vae.down.{i}", "vae.mid" [n, h, w, C]. Errors (kept in ctx): SL_SHAPE, SL_ARG frames that are
 * not 4k + 1, or a last picture for one frame. */
void sl_vae_encode_condition(sl_ctx *ctx, const sl_vae_encoder *m, const sl_tensor *out,
                             const float *first, const float *last, int frames, int h, int w,
                             float *moments);

/* ---- decode latents, one chunk of latent frames after the other ---- */

typedef struct sl_vae_decode sl_vae_decode; /* the caches of one video being decoded */

/* Bytes of device memory that one video's caches need, for frames of h x w pixels. */
size_t sl_vae_decode_bytes(const sl_ctx *ctx, const sl_vae_decoder *m, int h, int w);
/* Start a video in `memory`, 256-byte aligned, which the caller frees after the video and
 * need not clear; NULL in plan mode. The caller frees the result. NULL after an error,
 * kept in ctx: SL_SHAPE a size that is no multiple of s; SL_NOMEM. */
sl_vae_decode *sl_vae_decode_start(sl_ctx *ctx, const sl_vae_decoder *m, int h, int w,
                                   void *memory);
void sl_vae_decode_free(sl_vae_decode **d);
/* How many frames the next `n` latent frames give: 4 n, less 3 when the video's first is
 * among them. */
int sl_vae_frames_of(const sl_vae_decode *d, int n);
/* The next `n` latent frames: latents F32 [z, n, h/s, w/s] (as the denoiser gives them:
 * still normalised), n >= 1. rgb U8 [sl_vae_frames_of(d, n), h, w, 3] gets the frames,
 * rounded (not truncated). floats: NULL, or act [.., h, w, 3], as the decoder gives them:
 * -1 is black, 1 is white, not yet clamped. Errors (kept in ctx): SL_SHAPE. d NULL does
 * nothing. Taps: "vae.conv_in", "vae.mid", "vae.up.{i}", "vae.out" (before pixels are taken apart)
 * [n, h, w, C]. */
void sl_vae_decode_chunk(sl_ctx *ctx, sl_vae_decode *d, const sl_tensor *rgb,
                         const sl_tensor *floats, const sl_tensor *latents);

#endif
