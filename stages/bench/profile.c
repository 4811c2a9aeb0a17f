/* profile.c - where a network's time goes: the device's table of operations with a
 * clock around each, and a table of sums.
 *
 * Each operation is waited for, so launches no longer overlap with the work before them:
 * what an empty operation takes that way is measured first and taken off each. */
#include "stages/bench/measure.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KINDS 64
#define EMPTY_RUNS 200

/* What is alike: one operation at one width. */
typedef struct {
    char name[64];
    int calls;
    double seconds, operations, bytes;
} kind;

typedef struct {
    sl_bench_work work; /* first: ctx's tap_user is this */
    double empty;       /* seconds of an operation that does nothing */
    int64_t from;
    int count;
    kind kinds[KINDS];
} profile;

static double seconds_since(int64_t from)
{
    return (double)(sl_now_ns() - from) * 1e-9;
}

static void start(sl_ctx *ctx)
{
    ((profile *)ctx->tap_user)->from = sl_now_ns();
}

/* After an operation: wait for it and count it. What does not fit the list goes to its
 * last row. */
static void stop(sl_ctx *ctx, double operations, double bytes, const char *name, ...)
{
    profile *p = ctx->tap_user;
    char text[sizeof p->kinds[0].name];
    va_list args;
    int i = 0;
    p->work.body->sync(ctx);
    const double s = seconds_since(p->from) - p->empty;
    va_start(args, name);
    vsnprintf(text, sizeof text, name, args);
    va_end(args);
    while (i < p->count && strcmp(p->kinds[i].name, text)) i++;
    if (i == KINDS) snprintf(p->kinds[--i].name, sizeof text, "others");
    if (i == p->count) {
        memcpy(p->kinds[i].name, text, sizeof text);
        p->count++;
    }
    p->kinds[i].calls++;
    p->kinds[i].seconds += s > 0 ? s : 0;
    p->kinds[i].operations += operations;
    p->kinds[i].bytes += bytes;
}

static const sl_ops *body_of(const sl_ctx *ctx)
{
    return ((const profile *)ctx->tap_user)->work.body;
}

static double size_of(const sl_tensor *t)
{
    return t ? (double)sl_bytes(t) : 0;
}

/* ---- operations with a clock ---- */

#define CLOCK(op) static sl_##op##_fn op;
SL_OPS(CLOCK)
#undef CLOCK

static void zero(sl_ctx *ctx, const sl_tensor *y)
{
    start(ctx);
    body_of(ctx)->zero(ctx, y);
    stop(ctx, 0, size_of(y), "zero");
}

static void copy(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    start(ctx);
    body_of(ctx)->copy(ctx, y, x);
    stop(ctx, 0, size_of(y) + size_of(x), "copy");
}

static void add(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b)
{
    start(ctx);
    body_of(ctx)->add(ctx, y, a, b);
    stop(ctx, 0, size_of(y) + size_of(a) + size_of(b), y->shape[0] > 8 ? "add" : "add, a few rows");
}

static void linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation act)
{
    start(ctx);
    body_of(ctx)->linear(ctx, y, x, w, b, act);
    stop(ctx, 2.0 * (double)x->shape[0] * (double)x->shape[1] * (double)w->shape[0],
         size_of(y) + size_of(x) + size_of(w), "linear %lld -> %lld%s", (long long)x->shape[1],
         (long long)w->shape[0], act == SL_ACT_NONE ? "" : ", activation");
}

static bool linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                       const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    if (!body_of(ctx)->linear_add) return false;
    start(ctx);
    if (!body_of(ctx)->linear_add(ctx, x, y, a, w, b, gate)) return false;
    stop(ctx, 2.0 * (double)a->shape[0] * (double)a->shape[1] * (double)w->shape[0],
         2 * size_of(x) + size_of(a) + size_of(w), "linear %lld -> %lld, added%s",
         (long long)a->shape[1], (long long)w->shape[0], gate ? " gated" : "");
    return true;
}

static double size_of_eight(const sl_eight *e)
{
    return size_of(&e->codes) + size_of(&e->scale);
}

static void linear_eight(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x, const sl_eight *w,
                         const sl_tensor *b)
{
    const int64_t m = y->shape[0], n = y->shape[1], k = x->codes.shape[1];
    start(ctx);
    body_of(ctx)->linear_eight(ctx, y, x, w, b);
    stop(ctx, 2.0 * (double)m * (double)k * (double)n,
         size_of(y) + size_of_eight(x) + size_of_eight(w), "linear %lld -> %lld in 8 bits",
         (long long)k, (long long)n);
}

static bool linear_add_eight(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_eight *a,
                             const sl_eight *w, const sl_tensor *b, const sl_tensor *gate)
{
    const int64_t m = x->shape[0], n = x->shape[1], k = a->codes.shape[1];
    if (!body_of(ctx)->linear_add_eight) return false;
    start(ctx);
    if (!body_of(ctx)->linear_add_eight(ctx, x, y, a, w, b, gate)) return false;
    stop(ctx, 2.0 * (double)m * (double)k * (double)n,
         2 * size_of(x) + size_of_eight(a) + size_of_eight(w),
         "linear %lld -> %lld in 8 bits, added%s", (long long)k, (long long)n,
         gate ? " gated" : "");
    return true;
}

static void layernorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                      const sl_tensor *b, float eps)
{
    start(ctx);
    body_of(ctx)->layernorm(ctx, y, x, w, b, eps);
    stop(ctx, 0, size_of(y) + size_of(x), "layernorm");
}

static void layernorm_modulate(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x,
                               const sl_tensor *scale, const sl_tensor *shift, float eps)
{
    start(ctx);
    body_of(ctx)->layernorm_modulate(ctx, y, x, scale, shift, eps);
    stop(ctx, 0, size_of(y) + size_of(x), "layernorm_modulate");
}

static void rmsnorm(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                    float eps)
{
    start(ctx);
    body_of(ctx)->rmsnorm(ctx, y, x, w, eps);
    stop(ctx, 0, size_of(y) + size_of(x), "rmsnorm");
}

static void rmsnorm_rope(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                         float eps, const sl_tensor *cos, const sl_tensor *sin, int heads)
{
    start(ctx);
    body_of(ctx)->rmsnorm_rope(ctx, y, x, w, eps, cos, sin, heads);
    stop(ctx, 0, size_of(y) + size_of(x) + size_of(cos) + size_of(sin), "rmsnorm_rope");
}

static void gated_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *gate)
{
    start(ctx);
    body_of(ctx)->gated_add(ctx, x, y, gate);
    stop(ctx, 0, 2 * size_of(x) + size_of(y), "gated_add");
}

static void attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                      const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                      bool accumulate)
{
    start(ctx);
    body_of(ctx)->attention(ctx, o, q, k, v, heads, scale, bias, accumulate);
    stop(ctx, 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1],
         size_of(o) * (accumulate ? 2 : 1) + size_of(q) + size_of(k) + size_of(v),
         "attention to %lld keys%s", (long long)k->shape[0], accumulate ? ", added" : "");
}

static bool attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                          const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                          float scale)
{
    if (!body_of(ctx)->attention_two) return false;
    start(ctx);
    if (!body_of(ctx)->attention_two(ctx, o, q, k1, v1, k2, v2, heads, scale)) return false;
    stop(ctx,
         4.0 * (double)q->shape[0] * (double)(k1->shape[0] + k2->shape[0]) * (double)q->shape[1],
         size_of(o) + size_of(q) + size_of(k1) + size_of(v1) + size_of(k2) + size_of(v2),
         "attention to %lld and %lld keys", (long long)k1->shape[0], (long long)k2->shape[0]);
    return true;
}

static double size_of_queries(const sl_queries_eight *q)
{
    return size_of(&q->codes) + size_of(&q->scale);
}

static void attention_eight(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                            const sl_keys_eight *keys, int heads, int parts, const int64_t *first,
                            int last, sl_done *done)
{
    start(ctx);
    body_of(ctx)->attention_eight(ctx, o, q, keys, heads, parts, first, last, done);
    stop(ctx, 4.0 * (double)o->shape[0] * (double)keys->rows * (double)o->shape[1],
         size_of(o) + size_of_queries(q) + size_of(&keys->k) + size_of(&keys->v),
         "attention to %lld keys in 8 bits", (long long)keys->rows);
}

static void code_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *q, int heads,
                         float scale)
{
    start(ctx);
    body_of(ctx)->code_queries(ctx, y, q, heads, scale);
    stop(ctx, 0, size_of(q) + size_of_queries(y), "code_queries");
}

static bool rmsnorm_rope_queries(sl_ctx *ctx, const sl_queries_eight *y, const sl_tensor *x,
                                 const sl_tensor *w, float eps, const sl_tensor *cos,
                                 const sl_tensor *sin, int heads, float scale)
{
    if (!body_of(ctx)->rmsnorm_rope_queries) return false;
    start(ctx);
    if (!body_of(ctx)->rmsnorm_rope_queries(ctx, y, x, w, eps, cos, sin, heads, scale))
        return false;
    stop(ctx, 0, size_of(x) + size_of_queries(y), "rmsnorm_rope_queries");
    return true;
}

static void code_keys(sl_ctx *ctx, const sl_keys_eight *y, const sl_tensor *k, const sl_tensor *v,
                      int heads)
{
    start(ctx);
    body_of(ctx)->code_keys(ctx, y, k, v, heads);
    /* means first, then codes */
    stop(ctx, 0, 2 * (size_of(k) + size_of(v)) + size_of(&y->k) + size_of(&y->v), "code_keys");
}

static bool attention_parts(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                            const sl_tensor *v, int heads, float scale, int parts,
                            const int64_t *first, int last, sl_done *done)
{
    if (!body_of(ctx)->attention_parts) return false;
    start(ctx);
    if (!body_of(ctx)->attention_parts(ctx, o, q, k, v, heads, scale, parts, first, last, done))
        return false;
    stop(ctx, 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1],
         size_of(o) + size_of(q) + size_of(k) + size_of(v), "attention to %lld keys, by parts",
         (long long)k->shape[0]);
    return true;
}

static void patchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *latents,
                     const sl_tensor *condition)
{
    start(ctx);
    body_of(ctx)->patchify(ctx, y, latents, condition);
    stop(ctx, 0, size_of(y) + size_of(latents) + size_of(condition), "patchify");
}

static void unpatchify(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x)
{
    start(ctx);
    body_of(ctx)->unpatchify(ctx, y, x);
    stop(ctx, 0, size_of(y) + size_of(x), "unpatchify");
}

/* Operations of one tensor from others, named after what they are. */
#define CLOCKED(op, params, args, bytes)                                                           \
    static void op params                                                                          \
    {                                                                                              \
        start(ctx);                                                                                \
        body_of(ctx)->op args;                                                                     \
        stop(ctx, 0, bytes, #op);                                                                  \
    }
CLOCKED(sub, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b),
        (ctx, y, a, b), size_of(y) + size_of(a) + size_of(b))
CLOCKED(silu, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x), (ctx, y, x),
        size_of(y) + size_of(x))
CLOCKED(geglu, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *a, const sl_tensor *b),
        (ctx, y, a, b), size_of(y) + size_of(a) + size_of(b))
CLOCKED(embed, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *table, const int32_t *ids),
        (ctx, y, table, ids), 2 * size_of(y))
CLOCKED(conv_history, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x), (ctx, y, x),
        2 * size_of(y))
CLOCKED(vae_norm,
        (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w, bool silu),
        (ctx, y, x, w, silu), size_of(y) + size_of(x))
CLOCKED(time_shuffle, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x), (ctx, y, x),
        size_of(y) + size_of(x))
CLOCKED(avg_down, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, int time),
        (ctx, y, x, time), size_of(y) + size_of(x))
CLOCKED(dup_up, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, int time), (ctx, y, x, time),
        size_of(y) + size_of(x))
CLOCKED(pixel_shuffle, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x), (ctx, y, x),
        size_of(y) + size_of(x))
CLOCKED(to_channels_last,
        (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, const float *scale,
         const float *shift),
        (ctx, y, x, scale, shift), size_of(y) + size_of(x))
CLOCKED(to_channels_first,
        (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, const float *scale,
         const float *shift),
        (ctx, y, x, scale, shift), size_of(y) + size_of(x))
CLOCKED(guidance,
        (sl_ctx * ctx, const sl_tensor *v, const sl_tensor *cond, const sl_tensor *uncond, float g),
        (ctx, v, cond, uncond, g), size_of(v) + size_of(cond) + size_of(uncond))
CLOCKED(flow_x0,
        (sl_ctx * ctx, const sl_tensor *x0, const sl_tensor *x, const sl_tensor *v, float sigma),
        (ctx, x0, x, v, sigma), size_of(x0) + size_of(x) + size_of(v))
CLOCKED(lincomb,
        (sl_ctx * ctx, const sl_tensor *y, int n, const sl_tensor *const x[], const float a[]),
        (ctx, y, n, x, a), (n + 1) * size_of(y))
CLOCKED(low_rank_add,
        (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *up,
         const sl_tensor *down, float scale),
        (ctx, y, x, up, down, scale), size_of(y) + size_of(x) + size_of(up) + size_of(down))
CLOCKED(quantise_rows, (sl_ctx * ctx, const sl_eight *y, const sl_tensor *x), (ctx, y, x),
        size_of_eight(y) + size_of(x))
CLOCKED(gelu_eight, (sl_ctx * ctx, const sl_eight *y, const sl_tensor *x), (ctx, y, x),
        size_of_eight(y) + size_of(x))
CLOCKED(layernorm_eight,
        (sl_ctx * ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *w,
         const sl_tensor *b, float eps),
        (ctx, y, x, w, b, eps), size_of_eight(y) + size_of(x))
CLOCKED(layernorm_modulate_eight,
        (sl_ctx * ctx, const sl_eight *y, const sl_tensor *x, const sl_tensor *scale,
         const sl_tensor *shift, float eps),
        (ctx, y, x, scale, shift, eps), size_of_eight(y) + size_of(x))
CLOCKED(mean_abs, (sl_ctx * ctx, float out[2], const sl_tensor *prev, const sl_tensor *r),
        (ctx, out, prev, r), size_of(prev) + size_of(r))
CLOCKED(abs_rows, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *prev, const sl_tensor *r),
        (ctx, y, prev, r), size_of(prev) + size_of(r))
CLOCKED(sum_rows, (sl_ctx * ctx, double out[2], const sl_tensor *y), (ctx, out, y), size_of(y))
CLOCKED(frames_rgb8, (sl_ctx * ctx, const sl_tensor *y, const sl_tensor *x), (ctx, y, x),
        size_of(y) + size_of(x))
#undef CLOCKED

static void conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                   const sl_conv *c)
{
    start(ctx);
    body_of(ctx)->conv3d(ctx, y, x, history, w, b, residual, c);
    stop(ctx, 2.0 * (double)sl_count(y) * (double)x->shape[3] * c->kt * c->kh * c->kw,
         size_of(y) + size_of(x) + size_of(history) + size_of(w) + size_of(residual),
         "conv %dx%dx%d, %lld -> %lld, %lldx%lld%s", c->kt, c->kh, c->kw, (long long)x->shape[3],
         (long long)y->shape[3], (long long)y->shape[2], (long long)y->shape[1],
         residual ? ", added" : "");
}

/* ---- the table ---- */

static int by_seconds(const void *a, const void *b)
{
    const kind *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

static double empty_operation(sl_ctx *ctx, const sl_ops *body)
{
    double least = 1;
    const size_t mark = sl_mark(ctx);
    sl_tensor t = sl_new1(ctx, SL_F32, 64);
    for (int i = 0; i < EMPTY_RUNS && sl_ok(ctx); i++) {
        const int64_t from = sl_now_ns();
        body->zero(ctx, &t);
        body->sync(ctx);
        if (seconds_since(from) < least) least = seconds_since(from);
    }
    sl_release(ctx, mark);
    return least;
}

static void tell(sl_bench *b, profile *p, const char *what, const char *size, double whole)
{
    double sum = 0;
    int calls = 0;
    qsort(p->kinds, (size_t)p->count, sizeof *p->kinds, by_seconds);
    for (int i = 0; i < p->count; i++) sum += p->kinds[i].seconds, calls += p->kinds[i].calls;
    printf("  %-34s %7s %12s %7s\n", "operation", "calls", "ms", "share");
    for (int i = 0; i < p->count; i++) {
        const kind *k = &p->kinds[i];
        printf("  %-34s %7d %12.3f %5.1f %%", k->name, k->calls, k->seconds * 1e3,
               100 * k->seconds / sum);
        if (k->operations > 0)
            printf(" %9.1f %cFLOP/s", k->operations / k->seconds * (b->plugin ? 1e-12 : 1e-9),
                   b->plugin ? 'T' : 'G');
        printf(" %9.1f GB/s\n", k->bytes / k->seconds * 1e-9);
        json_array_append_new(b->results,
                              json_pack("{s:s, s:s, s:f, s:i, s:f, s:f}", "what", "profile", "size",
                                        k->name, "seconds", k->seconds, "calls", k->calls,
                                        "operations", k->operations, "bytes", k->bytes));
    }
    printf("  %s %s: %.3f ms in %d operations, each waited for (%.1f us apiece taken off; %.3f ms "
           "by the clock on the wall)\n",
           what, size, sum * 1e3, calls, p->empty * 1e6, whole * 1e3);
    fflush(stdout);
}

sl_code sl_bench_profile(sl_bench_net *n, const char *what, const char *size, sl_bench_run_fn *run,
                         void *arg, sl_err *err)
{
    profile *p = calloc(1, sizeof *p);
    if (!p) return sl_fail(err, SL_NOMEM, "%s %s: no memory for a profile", what, size);
    const sl_ops *counted = n->ctx.ops;
    sl_ops clocked = *n->b->body;
#define CLOCK(op) clocked.op = op;
    SL_OPS(CLOCK)
#undef CLOCK
    p->work.body = n->b->body;
    p->empty = empty_operation(&n->ctx, n->b->body);
    n->ctx.ops = &clocked;
    n->ctx.tap_user = p;
    const int64_t from = sl_now_ns();
    run(arg);
    sl_sync(&n->ctx);
    const double whole = seconds_since(from);
    n->ctx.ops = counted;
    n->ctx.tap_user = &n->work;
    if (sl_ctx_error(&n->ctx, err))
        sl_context(err, err->code, "%s %s, operation by operation", what, size);
    else tell(n->b, p, what, size, whole);
    const sl_code rc = err->code;
    free(p);
    return rc;
}
