/* team.c - a denoiser as one of several ranks. */
#include "stages/denoise/team.h"

#include <stdio.h>
#include <string.h>

/* Window: a job's inputs, then the shares of a forward, from its beginning; the velocities of both
 * branches at its end (stages/sizes/denoise.h). */

/* ---- beginning and end ---- */

/* Those who share a forward with this member; those who have the same rows of the other branch. */
static sl_team part(const sl_team *whole, int first, int step, int n, int granule)
{
    sl_team t = {.size = n, .key = whole->key, .granule = granule};
    for (int i = 0; i < n; i++) {
        t.member[i] = whole->member[first + i * step];
        if (first + i * step == whole->me) t.me = i;
    }
    return t;
}

sl_code sl_denoise_team_open(denoise_team *t, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                             const sl_job *job, denoise_shares *last, sl_err *err)
{
    const int heads = seat->model.dit[0].heads;
    sl_code rc = sl_mates_join(&seat->mates, &msg->team, &t->whole, err);
    t->comm = NULL;
    t->last = last;
    if (rc) return rc;
    t->split = sl_denoise_split_of(job, t->whole.size, t->whole.me);
    if (t->whole.size == 1) return SL_OK;
    if ((rc = sl_team_check(heads, sl_denoise_branches(job) > 1, t->whole.size, err))) return rc;
    t->comm = seat->mates.comm;
    const int n = t->split.shards, first = t->split.branch * n;
    const sl_team shard = part(&t->whole, t->split.halves ? first : 0, 1, n, t->whole.granule),
                  pair = part(&t->whole, t->split.shard, n, 2, 1);
    sl_comm_take_stats(t->comm);
    sl_comm_begin(ctx, t->comm, SL_LANE_TEAM, &t->whole);
    if (n > 1) sl_comm_begin(ctx, t->comm, SL_LANE_SHARD, &shard);
    if (t->split.halves) sl_comm_begin(ctx, t->comm, SL_LANE_MEET, &pair);
    sl_comm_take_stats(t->comm); /* the others were still on their way: no step waited */
    return sl_ok(ctx) ? SL_OK : sl_ctx_error(ctx, err);
}

void sl_denoise_team_close(denoise_team *t, sl_ctx *ctx, bool failed)
{
    if (!t->comm) return;
    if (failed) sl_comm_abort(t->comm, &t->whole);
    sl_comm_end(ctx, t->comm);
    sl_ctx_error(ctx, NULL);
    t->comm = NULL;
}

/* ---- inputs ---- */

/* The parcel of h, whose tensors lie in the window from *at on: the leader's numbers there. */
static void spread(denoise_team *t, const sl_seat *seat, sl_ctx *ctx, const sl_job *job,
                   sl_handover h, sl_parcel *p, size_t *at)
{
    const sl_grid grid = sl_job_grid(&seat->model, job);
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    const int n = sl_handover_tensors(spec, h, &seat->model, &grid, job);
    void *window = sl_comm_window(t->comm, NULL);
    for (int i = 0; i < n; i++) {
        const sl_tensor y = sl_carve(window, at, spec[i].dtype, spec[i].rank, spec[i].shape);
        if (sl_denoise_leads(t)) sl_parcel_place(ctx, &y, &p->at[i]);
        sl_comm_broadcast(ctx, t->comm, SL_LANE_TEAM, &y, &y, 0);
        if (sl_denoise_leads(t)) continue;
        p->at[i].name = spec[i].name;
        p->at[i].host = sl_view(NULL, spec[i].dtype, spec[i].rank, spec[i].shape);
        p->at[i].device = y;
        p->count = p->all = i + 1;
    }
}

sl_code sl_denoise_team_inputs(denoise_team *t, const sl_seat *seat, sl_ctx *ctx, const sl_job *job,
                               denoise_inputs *in, sl_err *err)
{
    size_t at = 0;
    if (!t->comm) return SL_OK;
    spread(t, seat, ctx, job, SL_HANDOVER_TEXT, &in->text, &at);
    if (sl_handover_applies(SL_HANDOVER_IMAGE, &seat->model, job))
        spread(t, seat, ctx, job, SL_HANDOVER_IMAGE, &in->image, &at);
    sl_comm_wait(ctx, t->comm, SL_LANE_TEAM, 0);
    sl_sync(ctx);
    return sl_ok(ctx) ? SL_OK : sl_ctx_error(ctx, err);
}

/* ---- steps ---- */

void sl_denoise_team_meet(const denoise_team *t, sl_ctx *ctx, sl_tensor v[SL_BRANCHES])
{
    size_t bytes;
    if (!t->comm || !t->split.halves) return;
    sl_tensor *own = &v[t->split.branch];
    char *window = sl_comm_window(t->comm, &bytes);
    char *pair = window + bytes / 256 * 256 - sl_denoise_pair_bytes(ctx, own->shape);
    const int64_t n = sl_count(own);
    const sl_tensor x = sl_view2(own->data, own->dtype, 1, n), y = sl_view2(pair, own->dtype, 2, n);
    sl_comm_gather(ctx, t->comm, SL_LANE_MEET, &y, &x, 2);
    sl_comm_wait(ctx, t->comm, SL_LANE_MEET, 0);
    sl_tensor *other = &v[!t->split.branch];
    other->data = (char *)y.data + (size_t)(!t->split.branch) * sl_bytes(own);
}

/* A member's word: the metric, two bits, and microseconds that it has computed: more
 * than 17 minutes are not told. */
#define COMPUTED ((uint64_t)1 << 32)
#define PARK ((uint64_t)1 << 33)
#define BUSY_SHIFT 34
#define BUSY_MOST (((uint64_t)1 << (64 - BUSY_SHIFT)) - 1)

static uint64_t word_of(const sl_fbcache_report *report, bool park, int64_t busy_ns)
{
    const uint64_t us = busy_ns > 0 ? (uint64_t)busy_ns / 1000 : 0;
    uint32_t metric;
    memcpy(&metric, &report->metric, sizeof metric);
    return (us < BUSY_MOST ? us : 0) << BUSY_SHIFT | (park ? PARK : 0) |
           (report->computed ? COMPUTED : 0) | metric;
}

static sl_fbcache_report report_of(uint64_t word)
{
    const uint32_t metric = (uint32_t)word;
    sl_fbcache_report r = {.computed = (word & COMPUTED) != 0};
    memcpy(&r.metric, &metric, sizeof metric);
    return r;
}

void sl_denoise_team_agree(denoise_team *t, sl_ctx *ctx, sl_fbcache_report reports[SL_BRANCHES],
                           bool *park)
{
    uint64_t words[SL_RANKS] = {0};
    if (!t->comm) return;
    sl_comm_tell(ctx, t->comm, SL_LANE_TEAM, word_of(&reports[t->split.branch], *park, t->busy_ns),
                 words);
    if (!sl_ok(ctx)) return;
    const uint64_t *own = &words[t->split.branch * t->split.shards];
    for (int i = 0; i < t->split.shards; i++) t->busy_s[i] = (double)(own[i] >> BUSY_SHIFT) * 1e-6;
    for (int i = 0; i < t->whole.size; i++) *park |= (words[i] & PARK) != 0;
    if (!t->split.halves) return;
    for (int b = 0; b < SL_BRANCHES; b++) reports[b] = report_of(words[b * t->split.shards]);
}
