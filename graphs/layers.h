/* layers.h - what several graphs share: the two tensors of a linear layer, norm or
 * convolution, how they are asked for and applied, and tensors in memory that a caller
 * gives. */
#ifndef SL_LAYERS_H
#define SL_LAYERS_H

#include <stdarg.h>
#include <stdio.h>

#include "graphs/weights.h"

#define SL_LAYER_NAME 256
/* The caller's printf-style name into `buf` of SL_LAYER_NAME bytes; names are this program's own
 * and short. */
#define SL_FORMAT_NAME(buf, name)                                                                  \
    do {                                                                                           \
        va_list args_;                                                                             \
        va_start(args_, name);                                                                     \
        vsnprintf(buf, SL_LAYER_NAME, name, args_);                                                \
        va_end(args_);                                                                             \
    } while (0)

typedef struct {
    sl_tensor w, b; /* weight; bias */
} sl_affine;

/* Asks l for "NAME.weight" [out, in] (a matrix) and "NAME.bias" [out]; NAME is a printf
 * format. */
void sl_want_linear(sl_loader *l, sl_affine *a, int64_t out, int64_t in, const char *name, ...)
    __attribute__((format(printf, 5, 6)));
/* As sl_want_linear, but in F32 on every device (the time embedder). */
void sl_want_linear_f32(sl_loader *l, sl_affine *a, int64_t out, int64_t in, const char *name, ...)
    __attribute__((format(printf, 5, 6)));
/* Asks l for "NAME.weight" [d] and "NAME.bias" [d] of a LayerNorm; kind SL_W_VECTOR or
 * SL_W_FLOAT. */
void sl_want_norm(sl_loader *l, sl_affine *a, sl_weight_kind kind, int64_t d, const char *name, ...)
    __attribute__((format(printf, 5, 6)));

/* y = activation(x w^T + b), as sl_linear. */
void sl_apply(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_affine *a,
              sl_activation activation);

/* Row i of a rank-2 tensor as a vector [columns]. */
sl_tensor sl_row(const sl_tensor *t, int64_t i);

/* The dense tensor at byte *at of memory that the caller gives; *at moves past it, to a
 * multiple of 256 bytes from `base`. base NULL: planning. */
sl_tensor sl_carve(void *base, size_t *at, sl_dtype dtype, int rank, const int64_t *shape);

#endif
