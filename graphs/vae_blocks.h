/* vae_blocks.h - what the autoencoder's two halves share: convolutions with a cache,
 * residual blocks, the attention of the middle.
 *
 * A video passes through the network in chunks. Most of the image-to-video condition is
 * one frame repeated, so a chunk knows which of its frames repeat the one before, and
 * only the others exist in memory and are computed (spec 7, exact saving). A frame
 * repeats only if everything that it is made of does, which follows from the input alone:
 * no data is compared, and what is computed is bit for bit what a computation of every
 * frame gives. */
#ifndef SL_VAE_BLOCKS_H
#define SL_VAE_BLOCKS_H

#include "common/model.h"
#include "graphs/layers.h"

/* `frames` frames of which [from, to) are stored, x [to - from, H, W, C]. Those before
 * `from` repeat the last frame of the chunk before, those at `to` and after it repeat
 * frame to - 1 (with none stored: the chunk before again). */
typedef struct {
    sl_tensor x;
    int frames, from, to;
} sl_vae_chunk;

/* The last frames of what a layer has read, [n, H, W, C]: 2 for a kernel of three frames,
 * 1 for a time stride of 2 and for a residual that may have to be repeated. */
typedef struct {
    sl_tensor past;
    int still; /* how many frames at the end of what was read repeat the one before */
    bool used; /* false: `past` holds nothing yet, the layer sees zeros */
} sl_vae_cache;

/* All caches of a network in the order in which a chunk meets them. */
typedef struct {
    sl_vae_cache *at;
    int count, next; /* next: the one that comes up; set to 0 before each chunk */
    size_t bytes;
    bool repeats; /* frames may repeat: blocks keep what their residuals need then */
} sl_vae_caches;

typedef struct {
    sl_tensor norm1, norm2; /* F32 [Ci], [Co] */
    sl_affine conv1, conv2; /* [Co,Ci,3,3,3], [Co,Co,3,3,3] */
    sl_affine shortcut;     /* [Co,Ci,1,1,1]; w.rank 0: none, Ci == Co */
} sl_vae_res;

typedef struct {
    sl_vae_res res[2];
    sl_tensor norm;      /* F32 [C] */
    sl_affine qkv, proj; /* [3C,C,1,1,1], [C,C,1,1,1] */
} sl_vae_mid;

/* Taps "vae.NAME", with i >= 0 "vae.NAME.i". */
void sl_vae_tap(sl_ctx *ctx, const char *name, int i, const sl_tensor *x);

extern const sl_conv SL_CONV_333, SL_CONV_111, SL_CONV_TIME, SL_CONV_TIME_HALF, SL_CONV_HALF,
    SL_CONV_DOUBLE;

/* Asks l for "NAME.weight" with the kernel extents of `k` and "NAME.bias". spatial: the
 * file has the weight as [Co,Ci,kh,kw]. */
void sl_vae_want_conv(sl_loader *l, sl_affine *a, int64_t co, int64_t ci, const sl_conv *k,
                      bool spatial, const char *name);
/* Asks l for a norm's gamma, stored as [C,1,1] (image) or [C,1,1,1]. */
void sl_vae_want_norm(sl_loader *l, sl_tensor *gamma, int64_t c, bool image, const char *name);
void sl_vae_want_res(sl_loader *l, sl_vae_res *r, int64_t ci, int64_t co, const char *name);
void sl_vae_want_mid(sl_loader *l, sl_vae_mid *m, int64_t c, const char *name);

/* Each lays out the caches of one layer or block behind those before, from `base` on; base
 * NULL or set->at NULL: only counts them and their bytes. */
void sl_vae_add_cache(sl_vae_caches *set, void *base, sl_dtype dtype, int64_t n, int64_t h,
                      int64_t w, int64_t c);
void sl_vae_add_res(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_res *r, int64_t h,
                    int64_t w);
void sl_vae_add_mid(sl_vae_caches *set, void *base, sl_dtype dtype, const sl_vae_mid *m, int64_t h,
                    int64_t w);
sl_vae_cache *sl_vae_next_cache(sl_vae_caches *set);
/* Notes in `cache` that its layer has now read x: for how many frames the layer has been
 * reading the same one. */
void sl_vae_has_read(sl_vae_cache *cache, const sl_vae_chunk *x);

/* Frames [from, to) of a chunk, written out one by one: y [to - from, H, W, C]. `last`:
 * the last frame of the chunk before. */
void sl_vae_expand(sl_ctx *ctx, const sl_tensor *y, const sl_vae_chunk *x, int from, int to,
                   const sl_tensor *last);
/* The frames of a chunk that a causal kernel of three frames has to compute: x's, and two
 * more. */
void sl_vae_reach(const sl_vae_chunk *x, const sl_vae_cache *cache, int *from, int *to);
/* y.x = conv(x) + b (+ residual) in arena memory, or in `into` if not NULL, for a kernel
 * of three frames and a time stride of 1. */
sl_vae_chunk sl_vae_causal(sl_ctx *ctx, const sl_vae_chunk *x, sl_vae_cache *cache,
                           const sl_affine *a, const sl_conv *k, const sl_tensor *residual,
                           const sl_tensor *into);
/* y.x = conv(x) + b (+ residual) frame by frame, in arena memory, or in `into` if not NULL. */
sl_vae_chunk sl_vae_each(sl_ctx *ctx, const sl_vae_chunk *x, const sl_affine *a, const sl_conv *k,
                         const sl_tensor *residual, const sl_tensor *into);
/* Each makes *x the block's result: in the same memory where possible, otherwise in new
 * arena memory. */
void sl_vae_run_res(sl_ctx *ctx, sl_vae_chunk *x, const sl_vae_res *r, sl_vae_caches *set);
void sl_vae_run_mid(sl_ctx *ctx, sl_vae_chunk *x, const sl_vae_mid *m, sl_vae_caches *set);

#endif
