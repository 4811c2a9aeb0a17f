/* fbcache.c - First Block Cache: compare what block 0 did with what it did at the last
 * computed step, and decide. */
#include "graphs/fbcache.h"

#include <math.h>

#include "graphs/layers.h"

static size_t lay_out(sl_fbcache *c, sl_dtype act, void *memory, int64_t tokens, int dim)
{
    size_t at = 0;
    const int64_t shape[] = {tokens, dim};
    c->prev = sl_carve(memory, &at, act, 2, shape);
    c->residual = sl_carve(memory, &at, act, 2, shape);
    return at;
}

size_t sl_fbcache_bytes(const sl_ctx *ctx, int64_t tokens, int dim)
{
    sl_fbcache c;
    return lay_out(&c, sl_act(ctx), NULL, tokens, dim);
}

void sl_fbcache_init(sl_ctx *ctx, sl_fbcache *c, const sl_fbcache_rules *rules, void *memory,
                     int64_t tokens, int dim)
{
    *c = (sl_fbcache){.rules = *rules};
    lay_out(c, sl_act(ctx), memory, tokens, dim);
}

void sl_fbcache_set_rows(sl_fbcache *c, int64_t rows)
{
    c->prev.shape[0] = c->residual.shape[0] = rows;
}

void sl_fbcache_move(sl_ctx *ctx, sl_fbcache *c, const sl_fbcache_share *share,
                     const sl_tensor *landing, const sl_team *to)
{
    const int64_t tokens = share->sums->shape[0], rows = sl_share_of(to, tokens, to->me).rows;
    const sl_tensor had[] = {c->prev, c->residual}, y = sl_rows(landing, 0, rows);
    sl_fbcache_set_rows(c, rows);
    const sl_tensor has[] = {c->prev, c->residual};
    for (int i = 0; i < 2 && c->filled; i++) {
        sl_comm_move(ctx, share->comm, share->lane, &y, &had[i], tokens, to);
        sl_comm_wait(ctx, share->comm, share->lane, 0);
        sl_copy(ctx, &has[i], &y);
        sl_comm_barrier(ctx, share->comm, share->lane); /* others write to landing anew */
    }
}

/* The rules that ask for a computed step whatever the metric says. */
static bool must_compute(const sl_fbcache *c)
{
    const sl_fbcache_rules *r = &c->rules;
    if (!c->filled || c->step < r->warmup) return true;
    if (r->final > 0 && c->step >= c->steps - r->final) return true;
    return r->max_hits > 0 && c->hits >= r->max_hits;
}

/* sum |prev - r| / sum |prev| over the rows of all: row by row, then the rows in their
 * order, so that it is the same number however many ranks have the rows. */
static float compare(sl_ctx *ctx, const sl_fbcache *c, const sl_tensor *r,
                     const sl_fbcache_share *share)
{
    double total[2] = {NAN, NAN};
    const size_t mark = sl_mark(ctx);
    sl_tensor rows = sl_new2(ctx, SL_F32, r->shape[0], 2);
    sl_abs_rows(ctx, &rows, &c->prev, r);
    if (share) {
        sl_comm_gather(ctx, share->comm, share->lane, share->sums, &rows, share->sums->shape[0]);
        sl_comm_wait(ctx, share->comm, share->lane, 0);
        sl_comm_settle(ctx, share->comm);
    }
    if (!ctx->ops->plan) sl_sum_rows(ctx, total, share ? share->sums : &rows);
    sl_release(ctx, mark);
    return sl_ok(ctx) ? (float)(total[0] / total[1]) : NAN;
}

bool sl_fbcache_decide(sl_ctx *ctx, sl_fbcache *c, const sl_tensor *r,
                       const sl_fbcache_share *share, sl_fbcache_report *report)
{
    float metric = NAN;
    if (ctx->ops->plan || (c->filled && c->rules.threshold > 0))
        metric = compare(ctx, c, r, share); /* a plan counts its memory */
    bool compute = must_compute(c) || !(metric <= c->rules.threshold); /* NaN computes */
    if (c->force) compute = c->force > 0;
    if (!compute && !c->filled)
        sl_ctx_fail(ctx, SL_ARG, "fbcache: step %d is to reuse a cached residual, but none is held",
                    c->step);
    /* planning: the larger of the two ways */
    if (ctx->ops->plan || !sl_ok(ctx)) compute = true;

    if (compute) {
        sl_copy(ctx, &c->prev, r);
        c->filled = sl_ok(ctx);
    }
    c->hits = compute ? 0 : c->hits + 1;
    if (report) *report = (sl_fbcache_report){.metric = metric, .computed = compute};
    return compute;
}
