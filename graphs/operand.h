/* operand.h - a linear layer whose matrix may be in 8 bits, and what such a layer reads.
 *
 * A network that may be in either is written once: what makes a layer's input makes it as the layer
 * wants it (sl_operand_for), and the layer knows what it is given. In 8 bits LayerNorm quantises
 * what it makes (kernels/ops.h); GELU reads its product in bf16 and writes codes, and attention's
 * result takes a pass of its own: a row's scale wants the row's other tiles and heads. */
#ifndef SL_OPERAND_H
#define SL_OPERAND_H

#include "graphs/weights.h"

/* A matrix: `eight` where that is there, else `whole`. */
typedef struct {
    sl_tensor whole;
    sl_eight eight;
} sl_operand;

static inline bool sl_is_eight(const sl_operand *m)
{
    return m->eight.codes.rank > 0;
}
/* A view of some rows. */
sl_operand sl_operand_rows(const sl_operand *m, int64_t first, int64_t count);

typedef struct {
    sl_operand w; /* [out, in] */
    sl_tensor b;  /* [out] */
} sl_layer;

/* Asks l for "NAME.weight" [out, in], in 8 bits or as sl_want_linear does, and "NAME.bias" [out];
 * NAME is a printf format. */
void sl_want_layer(sl_loader *l, sl_layer *a, bool eight, int64_t out, int64_t in, const char *name,
                   ...) __attribute__((format(printf, 6, 7)));
/* The part of a layer that makes columns [first, first + cols) of its result. */
sl_layer sl_layer_columns(const sl_layer *w, int64_t first, int64_t cols);

/* Memory for what layer `w` will read, [rows, in], from the arena. */
sl_operand sl_operand_new(sl_ctx *ctx, const sl_layer *w, int64_t rows, int64_t in);
/* Likewise as many rows as t [n, in], act: t itself, or rows in 8 bits from the arena. */
sl_operand sl_operand_for(sl_ctx *ctx, const sl_layer *w, const sl_tensor *t);
/* y = x, which is t where y is t itself (nothing is done then). */
void sl_operand_take(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x);
/* y = sl_layernorm or sl_layernorm_modulate of x. */
void sl_operand_layernorm(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x, const sl_tensor *w,
                          const sl_tensor *b, float eps);
void sl_operand_modulate(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x,
                         const sl_tensor *scale, const sl_tensor *shift, float eps);

/* y act = x w^T + b. */
void sl_layer_apply(sl_ctx *ctx, const sl_tensor *y, const sl_operand *x, const sl_layer *w);
/* y = gelu(x w^T + b), its tanh form, as what the next layer reads; h, act, is y itself or memory
 * to work in. */
void sl_layer_gelu(sl_ctx *ctx, const sl_operand *y, const sl_tensor *h, const sl_operand *x,
                   const sl_layer *w);
/* x += (a w^T + b) * gate, as sl_linear_add: y is memory to work in; gate may be NULL. */
void sl_layer_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_operand *a,
                  const sl_layer *w, const sl_tensor *gate);

#endif
