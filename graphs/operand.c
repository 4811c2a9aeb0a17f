/* operand.c - linear layers whose matrices may be in 8 bits. */
#include "graphs/operand.h"

#include "graphs/layers.h"

sl_operand sl_operand_rows(const sl_operand *m, int64_t first, int64_t count)
{
    if (sl_is_eight(m)) return (sl_operand){.eight = sl_eight_rows(&m->eight, first, count)};
    return (sl_operand){.whole = sl_rows(&m->whole, first, count)};
}

void sl_want_layer(sl_loader *l, sl_layer *a, bool eight, int64_t out, int64_t in, const char *fmt,
                   ...)
{
    char name[SL_LAYER_NAME];
    SL_FORMAT_NAME(name, fmt);
    *a = (sl_layer){0};
    if (eight) sl_weight_eight(l, &a->w.eight, out, in, "%s.weight", name);
    else sl_weight(l, &a->w.whole, SL_W_MATRIX, 2, (int64_t[]){out, in}, "%s.weight", name);
    sl_weight(l, &a->b, SL_W_VECTOR, 1, &out, "%s.bias", name);
}

sl_layer sl_layer_columns(const sl_layer *w, int64_t first, int64_t cols)
{
    sl_layer part = {sl_operand_rows(&w->w, first, cols), w->b};
    if (w->b.rank) part.b = sl_rows(&w->b, first, cols);
    return part;
}

sl_operand sl_operand_new(sl_ctx *ctx, const sl_layer *w, int64_t rows, int64_t in)
{
    if (sl_is_eight(&w->w)) return (sl_operand){.eight = sl_new_eight(ctx, rows, in)};
    return (sl_operand){.whole = sl_new2(ctx, sl_act(ctx), rows, in)};
}

sl_operand sl_operand_for(sl_ctx *ctx, const sl_layer *w, const sl_tensor *t)
{
    if (!sl_is_eight(&w->w)) return (sl_operand){.whole = *t};
    return sl_operand_new(ctx, w, t->shape[0], t->shape[1]);
}

void sl_operand_take(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x)
{
    if (sl_is_eight(y)) sl_quantise_rows(ctx, &y->eight, x);
}

void sl_operand_layernorm(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x, const sl_tensor *w,
                          const sl_tensor *b, float eps)
{
    if (sl_is_eight(y)) sl_layernorm_eight(ctx, &y->eight, x, w, b, eps);
    else sl_layernorm(ctx, &y->whole, x, w, b, eps);
}

void sl_operand_modulate(sl_ctx *ctx, const sl_operand *y, const sl_tensor *x,
                         const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    if (sl_is_eight(y)) sl_layernorm_modulate_eight(ctx, &y->eight, x, scale, shift, eps);
    else sl_layernorm_modulate(ctx, &y->whole, x, scale, shift, eps);
}

void sl_layer_apply(sl_ctx *ctx, const sl_tensor *y, const sl_operand *x, const sl_layer *w)
{
    if (sl_is_eight(&w->w)) sl_linear_eight(ctx, y, &x->eight, &w->w.eight, &w->b);
    else sl_linear(ctx, y, &x->whole, &w->w.whole, &w->b, SL_ACT_NONE);
}

void sl_layer_gelu(sl_ctx *ctx, const sl_operand *y, const sl_tensor *h, const sl_operand *x,
                   const sl_layer *w)
{
    if (sl_is_eight(y)) {
        sl_layer_apply(ctx, h, x, w);
        sl_gelu_eight(ctx, &y->eight, h);
    } else sl_linear(ctx, &y->whole, &x->whole, &w->w.whole, &w->b, SL_ACT_GELU_TANH);
}

void sl_layer_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_operand *a,
                  const sl_layer *w, const sl_tensor *gate)
{
    if (sl_is_eight(&w->w)) sl_linear_add_eight(ctx, x, y, &a->eight, &w->w.eight, &w->b, gate);
    else sl_linear_add(ctx, x, y, &a->whole, &w->w.whole, &w->b, gate);
}
