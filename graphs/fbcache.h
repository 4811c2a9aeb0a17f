/* fbcache.h - First Block Cache: skip blocks 1.. when the first block changed the tokens
 * as it did before. ParaAttention's algorithm with diffusers' comparison (compute if
 * metric > threshold); spec 5.1, 5.2. One state per branch (cond, uncond) and expert. */
#ifndef SL_FBCACHE_H
#define SL_FBCACHE_H

#include "kernels/comm.h"

typedef struct {
    float threshold; /* 0: off. Compute if mean|prev - r| / mean|prev| > threshold */
    int warmup;      /* the first `warmup` steps always compute */
    int max_hits;    /* at most this many hits in a row; 0: no cap */
    int final;       /* the last `final` steps always compute */
} sl_fbcache_rules;

typedef struct {
    float metric;  /* mean|prev - r| / mean|prev|; NaN when nothing was compared */
    bool computed; /* false: a hit, blocks 1.. were skipped */
} sl_fbcache_report;

typedef struct {
    sl_fbcache_rules rules;
    bool filled;     /* prev and residual hold a computed step */
    int hits;        /* hits in a row so far */
    int step, steps; /* the step that comes next, of how many: set by the caller */
    /* 0: decide. 1: compute whatever the metric says (resume replays a decision). -1: hit */
    int force;
    sl_tensor prev;     /* act [N, dim]: r of the last computed step */
    sl_tensor residual; /* act [N, dim]: output of blocks 1.. minus their input, then */
} sl_fbcache;

/* An empty cache for [tokens, dim], in sl_fbcache_bytes of device memory that the caller
 * gives (NULL while planning) and that lives as long as the cache. The rules are copied. In a team
 * `tokens` are the most that this rank's share may have (sl_share_most), and sl_fbcache_set_rows
 * says how many it has. */
size_t sl_fbcache_bytes(const sl_ctx *ctx, int64_t tokens, int dim);
void sl_fbcache_init(sl_ctx *ctx, sl_fbcache *c, const sl_fbcache_rules *rules, void *memory,
                     int64_t tokens, int dim);

void sl_fbcache_set_rows(sl_fbcache *c, int64_t rows);

/* Whose rows the cache's tensors are, where several ranks share them: sums F32 [tokens of
 * all, 2] in the window. */
typedef struct {
    sl_comm *comm;
    sl_lane lane;
    const sl_tensor *sums;
} sl_fbcache_share;

/* The team is to have the weights of `to`: what the cache holds goes to whoever will have its rows,
 * by way of `landing`, act [sl_share_most rows, dim] in the window. All ranks call it, with nothing
 * of the lane on its way; afterwards nothing is, and sl_comm_weigh may follow. Errors: ctx's. */
void sl_fbcache_move(sl_ctx *ctx, sl_fbcache *c, const sl_fbcache_share *share,
                     const sl_tensor *landing, const sl_team *to);

/* r = h1 - h0 of this step, act [tokens, dim], what block 0 added: decide, and on a
 * computed step remember r. True: compute the remaining blocks, and put what they add
 * into c->residual; false: add c->residual instead. *report (may be NULL) tells the same.
 * A metric that is no number computes; so does planning. Errors (kept in ctx; the answer
 * is then true): SL_ARG a forced hit of an empty cache. Waits for the stream. share NULL:
 * r is of all tokens; otherwise all ranks call it, and decide alike. */
bool sl_fbcache_decide(sl_ctx *ctx, sl_fbcache *c, const sl_tensor *r,
                       const sl_fbcache_share *share, sl_fbcache_report *report);

#endif
