/* clip.h - CLIP vision tower up to hidden_states[-2], in float32 on every device. Spec
 * 2.4, 2.5, 3.4; transformers models/clip/modeling_clip.py. */
#ifndef SL_CLIP_H
#define SL_CLIP_H

#include "common/model.h"
#include "graphs/weights.h"

typedef struct sl_clip sl_clip;

/* Allocate and name the weights through `l`, which owns them, tells about errors
 * (sl_loader_finish) and must outlive the network; the last layer is not loaded. The
 * caller frees; free sets *m to NULL, and NULL is fine. NULL: no memory. */
sl_clip *sl_clip_new(const sl_clip_config *config, sl_loader *l);
void sl_clip_free(sl_clip **m);

/* out F32 [tokens, hidden], tokens = (image/patch)^2 + 1 (257): pixels are host float32
 * [3, image, image], normalised. Errors (kept in ctx): SL_SHAPE another `out`. Taps:
 * "clip.layer.{i}". */
void sl_clip_encode(sl_ctx *ctx, const sl_clip *m, const float *pixels, const sl_tensor *out);

#endif
