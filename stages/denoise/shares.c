/* shares.c - a team's shares of the rows, which follow what its members are able to do. */
#include "stages/denoise/shares.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

static bool nobody_shares(const denoise_team *t)
{
    return !t->comm || t->split.shards < 2;
}

/* ---- beginning ---- */

/* Of all members the first that shares this one's forwards; the others follow. */
static int first_of(const denoise_team *t)
{
    return t->split.branch * t->split.shards;
}

/* A number of what this member remembers of just these members; 0: nothing. */
static uint64_t number_of(const denoise_team *t)
{
    uint64_t sum = 14695981039346656037u; /* FNV-1a */
    if (t->last->size != t->split.shards) return 0;
    for (int i = 0; i < t->last->size; i++) {
        if (t->last->member[i] != t->whole.member[first_of(t) + i]) return 0;
        sum = (sum ^ t->last->weight[i]) * 1099511628211u;
    }
    return sum ? sum : 1;
}

static void log_shares(const denoise_team *t)
{
    char text[SL_RANKS * 4 + 1] = "";
    for (int i = 0; i < t->split.shards; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), " %d", t->balance.weight[i]);
    sl_log(SL_LOG_DEBUG, "shares of a forward's rows in %dths of an equal one:%s", SL_SHARE_EQUAL,
           text);
}

/* All that this member holds of rows follows them. */
static void weigh(denoise_team *t, sl_ctx *ctx, sl_denoise_memory *mem)
{
    sl_fbcache *caches[SL_EXPERTS * SL_BRANCHES];
    int n = 0;
    for (int e = 0; e < SL_EXPERTS; e++)
        for (int b = 0; b < SL_BRANCHES; b++)
            if (mem->cache[e][b].prev.rank) caches[n++] = &mem->cache[e][b];
    sl_dit_share_weigh(ctx, &mem->share, t->balance.weight, n, caches);
    if (!sl_ok(ctx)) return;
    if (!t->split.shard) log_shares(t);
    *t->last = (denoise_shares){.size = t->split.shards};
    for (int i = 0; i < t->split.shards; i++) {
        t->last->member[i] = t->whole.member[first_of(t) + i];
        t->last->weight[i] = t->balance.weight[i];
    }
}

sl_code sl_denoise_shares_begin(denoise_team *t, sl_ctx *ctx, sl_denoise_memory *mem, sl_err *err)
{
    uint64_t all[SL_RANKS] = {0};
    if (!t->comm) return SL_OK;
    const bool alone = nobody_shares(t);
    const uint64_t mine = alone ? 0 : number_of(t);
    sl_comm_tell(ctx, t->comm, SL_LANE_TEAM, mine, all);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    if (alone) return SL_OK;
    bool same = mine != 0;
    for (int i = 0; i < t->split.shards; i++) same = same && all[first_of(t) + i] == mine;
    const sl_code rc = sl_balance_begin(&t->balance, t->split.shards, same ? t->last->weight : NULL,
                                        getenv("SLUICE_SHARES"), err);
    if (rc) return rc;
    weigh(t, ctx, mem);
    return sl_ok(ctx) ? SL_OK : sl_ctx_error(ctx, err);
}

/* ---- steps ---- */

static int64_t waited_ns(const denoise_team *t)
{
    const sl_comm_stats s = sl_comm_stats_of(t->comm);
    return s.waited_ns[SL_LANE_SHARD] + s.waited_ns[SL_LANE_MEET];
}

void sl_denoise_shares_clock(denoise_team *t)
{
    if (nobody_shares(t)) return;
    t->clock_ns = sl_now_ns() - waited_ns(t);
}

void sl_denoise_shares_clocked(denoise_team *t, bool computed)
{
    t->busy_ns = 0;
    if (nobody_shares(t)) return;
    t->steps++;
    t->weights += t->balance.weight[t->split.shard];
    if (computed) t->busy_ns = sl_now_ns() - waited_ns(t) - t->clock_ns;
}

void sl_denoise_shares_next(denoise_team *t, sl_ctx *ctx, sl_denoise_memory *mem, double part)
{
    if (nobody_shares(t) || !sl_ok(ctx)) return;
    if (sl_balance_next(&t->balance, part, t->busy_s)) weigh(t, ctx, mem);
}

double sl_denoise_shares_mean(const denoise_team *t)
{
    if (nobody_shares(t)) return 1;
    const double equal = (double)SL_SHARE_EQUAL * t->split.shards;
    return t->steps ? (double)t->weights / t->steps / equal : 1.0 / t->split.shards;
}
