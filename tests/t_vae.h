/* t_vae.h - an autoencoder on golden weights, and the picture that a golden case encodes. */
#ifndef T_VAE_H
#define T_VAE_H

#include "tests/t_net.h"

#include "graphs/vae.h"
#include "graphs/vae_encode.h"

typedef struct {
    sl_vae_config c;
    sl_ctx ctx;
    sl_loader *loader;
    sl_vae_encoder *encoder;
    sl_vae_decoder *decoder;
} t_vae;

/* Both halves of the checkpoint's folder, which is of this config, on the CPU. */
static inline void t_vae_open(t_vae *n, const sl_vae_config *c, const char *folder, size_t arena)
{
    sl_err err;
    *n = (t_vae){.c = *c};
    T_OK(sl_ctx_open(&n->ctx, &sl_ops_cpu, arena, &err));
    T_OK(sl_loader_file(&n->loader, &n->ctx, folder, "diffusion_pytorch_model", "vae", &err));
    n->encoder = sl_vae_encoder_new(&n->c, n->loader);
    n->decoder = sl_vae_decoder_new(&n->c, n->loader);
    T_OK(sl_loader_finish(n->loader, &err));
}

/* Nothing of the arena is still taken. */
static inline void t_vae_close(t_vae *n)
{
    assert_int_equal(n->ctx.arena_used, 0);
    sl_vae_encoder_free(&n->encoder);
    sl_vae_decoder_free(&n->decoder);
    sl_loader_close(&n->loader);
    sl_ctx_close(&n->ctx);
}

/* float32 [h, w, 3] in [-1, 1]; the caller frees. */
static inline float *t_vae_picture(const sl_st *st, int h, int w)
{
    float *planes = t_pixels(st, "vae.encode.input.frame0", 3 * h * w, 1, T_HALF, T_HALF),
          *picture = malloc(sizeof *picture * 3 * (size_t)(h * w));
    for (int c = 0; c < 3; c++)
        for (int p = 0; p < h * w; p++) picture[p * 3 + c] = planes[c * h * w + p];
    free(planes);
    return picture;
}

#endif
