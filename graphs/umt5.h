/* umt5.h - UMT5 encoder: token ids -> text embedding. Spec 2.3, 3.3; transformers
 * models/umt5/modeling_umt5.py. */
#ifndef SL_UMT5_H
#define SL_UMT5_H

#include "common/model.h"
#include "graphs/weights.h"

#define SL_UMT5_MAX_TOKENS 512

typedef struct sl_umt5 sl_umt5; /* opaque: configuration and weight views */

/* Allocate and name all weights through `l`, which owns them, tells about errors
 * (sl_loader_finish) and must outlive the network. The caller frees; free sets *m to
 * NULL, and NULL is fine. NULL: no memory. */
sl_umt5 *sl_umt5_new(const sl_umt5_config *config, sl_loader *l);
void sl_umt5_free(sl_umt5 **m);

/* out act [n, d_model] = encoder(ids[0..n-1]), 1 <= n <= 512, true length (no padding
 * rows). Taps: "layer.{i}" = hidden state entering layer i, "layer.{layers}" = the
 * result. Errors (kept in ctx): SL_ARG n, or an id beyond the vocabulary; SL_SHAPE
 * another `out`. Arena: measure with a sl_ops_plan context. */
void sl_umt5_encode(sl_ctx *ctx, const sl_umt5 *m, const int32_t *ids, int n, const sl_tensor *out);

#endif
