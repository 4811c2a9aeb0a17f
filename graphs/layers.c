/* layers.c - what several graphs share: tensors of linear layers and norms by name, their
 * application, tensors in memory that a caller gives. */
#include "graphs/layers.h"

static void want_pair(sl_loader *l, sl_affine *a, sl_weight_kind w, sl_weight_kind b, int rank,
                      const int64_t *shape, const char *name)
{
    sl_weight(l, &a->w, w, rank, shape, "%s.weight", name);
    sl_weight(l, &a->b, b, 1, shape, "%s.bias", name);
}

void sl_want_linear(sl_loader *l, sl_affine *a, int64_t out, int64_t in, const char *name, ...)
{
    char buf[SL_LAYER_NAME];
    SL_FORMAT_NAME(buf, name);
    want_pair(l, a, SL_W_MATRIX, SL_W_VECTOR, 2, (int64_t[]){out, in}, buf);
}

void sl_want_linear_f32(sl_loader *l, sl_affine *a, int64_t out, int64_t in, const char *name, ...)
{
    char buf[SL_LAYER_NAME];
    SL_FORMAT_NAME(buf, name);
    want_pair(l, a, SL_W_FLOAT, SL_W_FLOAT, 2, (int64_t[]){out, in}, buf);
}

void sl_want_norm(sl_loader *l, sl_affine *a, sl_weight_kind kind, int64_t d, const char *name, ...)
{
    char buf[SL_LAYER_NAME];
    SL_FORMAT_NAME(buf, name);
    want_pair(l, a, kind, kind, 1, (int64_t[]){d}, buf);
}

void sl_apply(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_affine *a,
              sl_activation activation)
{
    sl_linear(ctx, y, x, &a->w, &a->b, activation);
}

sl_tensor sl_row(const sl_tensor *t, int64_t i)
{
    sl_tensor r = sl_rows(t, i, 1);
    return sl_view1(r.data, r.dtype, r.shape[1]);
}

sl_tensor sl_carve(void *base, size_t *at, sl_dtype dtype, int rank, const int64_t *shape)
{
    sl_tensor t = sl_view(base ? (char *)base + *at : NULL, dtype, rank, shape);
    *at += (sl_bytes(&t) + 255) / 256 * 256;
    return t;
}
