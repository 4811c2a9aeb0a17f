/* t_rounding.h - the CPU's operations with every activation rounded to bf16 after each, which no run
 * in bf16 can do without. */
#ifndef T_ROUNDING_H
#define T_ROUNDING_H

#include "kernels/ops.h"

/* rows of the time embedder and of the modulation tables, which stay float32 on every
 * device */
enum { FEW = 8 };

/* of random numbers: in place, so that the float32 run has the GPU's */
static bool round_weights;

static inline void round_all(const sl_tensor *t)
{
    int64_t row = 1;
    for (int i = 1; i < t->rank; i++) row *= t->shape[i];
    if (t->dtype != SL_F32 || t->shape[0] < FEW) return;
    for (int64_t r = 0; r < t->shape[0]; r++)
        for (int64_t i = 0; i < row; i++) {
            float *x = (float *)t->data + r * t->pitch + i;
            *x = sl_from_bf16(sl_to_bf16(*x));
        }
}

static inline void r_linear(sl_ctx *c, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                            const sl_tensor *b, sl_activation a)
{
    if (round_weights && x->shape[0] >= FEW) round_all(w);
    sl_ops_cpu.linear(c, y, x, w, b, a);
    round_all(y);
}
static inline void r_linear_eight(sl_ctx *c, const sl_tensor *y, const sl_eight *x,
                                  const sl_eight *w, const sl_tensor *b)
{
    sl_ops_cpu.linear_eight(c, y, x, w, b);
    round_all(y);
}
static inline void r_add(sl_ctx *c, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    sl_ops_cpu.add(c, y, a, b);
    round_all(y);
}
static inline void r_layernorm(sl_ctx *c, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *w, const sl_tensor *b, float eps)
{
    sl_ops_cpu.layernorm(c, y, x, w, b, eps);
    round_all(y);
}
static inline void r_modulate(sl_ctx *c, const sl_tensor *y, const sl_tensor *x,
                              const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    sl_ops_cpu.layernorm_modulate(c, y, x, scale, shift, eps);
    round_all(y);
}
static inline void r_rmsnorm(sl_ctx *c, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                             float eps)
{
    sl_ops_cpu.rmsnorm(c, y, x, w, eps);
    round_all(y);
}
static inline void r_rope(sl_ctx *c, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                          float eps, const sl_tensor *cs, const sl_tensor *sn, int heads)
{
    sl_ops_cpu.rmsnorm_rope(c, y, x, w, eps, cs, sn, heads);
    round_all(y);
}
static inline void r_gated(sl_ctx *c, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    sl_ops_cpu.gated_add(c, x, y, gate);
    round_all(x);
}
static inline void r_attention(sl_ctx *c, const sl_tensor *o, const sl_tensor *q,
                               const sl_tensor *k, const sl_tensor *v, int heads, float scale,
                               const sl_tensor *bias, bool accumulate)
{
    sl_ops_cpu.attention(c, o, q, k, v, heads, scale, bias, accumulate);
    round_all(o);
}
static inline void r_attention_eight(sl_ctx *c, const sl_tensor *o, const sl_queries_eight *q,
                                     const sl_keys_eight *keys, int heads, int parts,
                                     const int64_t *first, int last, sl_done *done)
{
    sl_ops_cpu.attention_eight(c, o, q, keys, heads, parts, first, last, done);
    round_all(o);
}
static inline void r_patchify(sl_ctx *c, const sl_tensor *y, const sl_tensor *latents,
                              const sl_tensor *condition)
{
    sl_ops_cpu.patchify(c, y, latents, condition);
    round_all(y);
}

/* The CPU's operations so. */
static inline sl_ops rounding(void)
{
    sl_ops o = sl_ops_cpu;
    o.linear = r_linear;
    o.linear_eight = r_linear_eight;
    o.add = r_add;
    o.layernorm = r_layernorm;
    o.layernorm_modulate = r_modulate;
    o.rmsnorm = r_rmsnorm;
    o.rmsnorm_rope = r_rope;
    o.gated_add = r_gated;
    o.attention = r_attention;
    o.attention_eight = r_attention_eight;
    o.patchify = r_patchify;
    return o;
}

#endif
