/* t_layers.h - the products that the 14B transformer makes of its tokens, at their true
 * shapes on a GPU: what gpu_matrix compares and bench_gemm times. */
#ifndef T_LAYERS_H
#define T_LAYERS_H

#include "tests/t_pair.h"

typedef struct {
    const char *name;
    int64_t n, k;
    int each;         /* how many of it a block has; 0: it is outside the blocks */
    bool adds, gated; /* linear_add, with a gate */
    sl_activation act;
} t_layer;

static const t_layer T_LAYERS[] = {
    {"q, k, v, the text's q", 5120, 5120, 4, false, false, SL_ACT_NONE},
    {"attention's out, gated", 5120, 5120, 1, true, true, SL_ACT_NONE},
    {"the text's out, added", 5120, 5120, 1, true, false, SL_ACT_NONE},
    {"feed-forward in, GELU", 13824, 5120, 1, false, false, SL_ACT_GELU_TANH},
    {"feed-forward out, gated", 5120, 13824, 1, true, true, SL_ACT_NONE},
    {"patches", 5120, 144, 0, false, false, SL_ACT_NONE},
    {"head", 64, 5120, 0, false, false, SL_ACT_NONE},
};

/* `y`: where the layer's m rows go; `work`: as large, where it adds. */
typedef struct {
    sl_tensor x, w, b, gate, y, work;
} t_operands;

/* In p's GPU arena, random. */
static inline t_operands t_operands_of(pair *p, const t_layer *l, int64_t m)
{
    t_operands o = {.x = noise(p, m, l->k),
                    .w = noise(p, l->n, l->k),
                    .b = noise(p, 1, l->n),
                    .gate = sl_new1(&p->gpu, SL_F32, l->n),
                    .y = noise(p, m, l->n)};
    float gate[13824];
    t_fill(gate, l->n, 17);
    sl_upload(&p->gpu, &o.gate, gate);
    sl_sync(&p->gpu);
    o.b = sl_view1(o.b.data, SL_BF16, l->n);
    if (l->adds) o.work = sl_new2(&p->gpu, SL_BF16, m, l->n);
    return o;
}

/* Rows first .. first + rows of it, as a product of their own. */
static inline void t_layer_rows(sl_ctx *ctx, const t_layer *l, const t_operands *o, int64_t first,
                                int64_t rows)
{
    const sl_tensor x = sl_rows(&o->x, first, rows), y = sl_rows(&o->y, first, rows);
    if (l->adds) {
        const sl_tensor work = sl_rows(&o->work, 0, rows);
        sl_linear_add(ctx, &y, &work, &x, &o->w, &o->b, l->gated ? &o->gate : NULL);
    } else {
        sl_linear(ctx, &y, &x, &o->w, &o->b, l->act);
    }
}

#endif
