/* dit.c - the diffusion transformer with random weights, by one process. */
#include "stages/bench/dit.h"

#include <stdio.h>

sl_code sl_bench_dit_open(sl_bench_dit_net *d, sl_bench *b, sl_err *err)
{
    sl_code rc = sl_bench_net_open(&d->n, b, "transformer", err);
    if (!rc && !(d->m = sl_dit_new(&b->model.dit[0], d->n.loader)))
        rc = sl_fail(err, SL_NOMEM, "dit: no memory");
    if (!rc) rc = sl_loader_finish(d->n.loader, err);
    if (!rc && b->rows) sl_dit_set_rows(d->m, b->rows);
    return rc;
}

void sl_bench_dit_close(sl_bench_dit_net *d)
{
    sl_dit_free(&d->m);
    sl_bench_net_close(&d->n);
}

/* NULL while planning. */
static void *take(sl_bench_dit_net *d, bool real, size_t bytes)
{
    void *p = real ? sl_device_alloc(&d->n.ctx, bytes) : NULL;
    if (p) d->memory[d->memories++] = p;
    return p;
}

void sl_bench_dit_drop(sl_bench_dit_net *d)
{
    while (d->memories) sl_device_free(&d->n.ctx, d->memory[--d->memories]);
}

void sl_bench_dit_job(sl_bench_dit_net *d, sl_ctx *ctx, const sl_bench_size *s, int branches)
{
    const sl_dit_config *c = &d->n.b->model.dit[0];
    const sl_clip_config *clip = &d->n.b->model.clip;
    const bool real = !ctx->ops->plan;
    const sl_grid g = sl_bench_grid(d->n.b, s);
    const int t = (int)g.latent_frames, h = (int)g.latent_height, w = (int)g.latent_width,
              tokens = c->image_dim ? sl_clip_tokens(clip) : 0;
    const size_t frame = (size_t)t * (size_t)h * (size_t)w * sizeof(float),
                 rest = (size_t)(c->in_channels - c->out_channels);
    const double timestep[1] = {700};
    d->branches = branches;
    d->condition = d->image = (sl_tensor){0};
    d->latents =
        sl_view4(take(d, real, frame * (size_t)c->out_channels), SL_F32, c->out_channels, t, h, w);
    if (rest) d->condition = sl_view4(take(d, real, frame * rest), SL_F32, (int64_t)rest, t, h, w);
    for (int i = 0; i < branches; i++) {
        d->v[i] = sl_view4(take(d, real, frame * (size_t)c->out_channels), sl_act(ctx),
                           c->out_channels, t, h, w);
        d->text[i] = sl_view2(NULL, sl_act(ctx), SL_TEXT_TOKENS, c->text_dim);
        d->text[i].data = take(d, real, sl_bytes(&d->text[i]));
    }
    if (tokens) {
        d->image = sl_view2(NULL, sl_act(ctx), tokens, c->image_dim);
        d->image.data = take(d, real, sl_bytes(&d->image));
    }
    sl_tensor *inputs[] = {&d->latents, &d->condition, &d->text[0], &d->image, &d->text[1]};
    for (int i = 0; i < 3 + branches && real; i++)
        if (inputs[i]->rank && sl_ok(ctx)) sl_bench_fill(&d->n, inputs[i], 1);
    sl_dit_times_make(ctx, d->m, &d->times, take(d, real, sl_dit_times_bytes(ctx, d->m, 1)),
                      timestep, 1);
    sl_dit_rope_make(ctx, d->m, &d->rope, take(d, real, sl_dit_rope_bytes(d->m, t, h / 2, w / 2)),
                     t, h / 2, w / 2);
    for (int i = 0; i < branches; i++)
        sl_dit_context_make(ctx, d->m, &d->context[i],
                            take(d, real, sl_dit_context_bytes(ctx, d->m, tokens)), &d->text[i],
                            tokens ? &d->image : NULL);
}

void sl_bench_dit_forward(sl_bench_dit_net *d, sl_ctx *ctx, int branch, const sl_dit_share *share)
{
    const sl_dit_input in = {.latents = &d->latents,
                             .condition = d->condition.rank ? &d->condition : NULL,
                             .times = &d->times,
                             .rope = &d->rope,
                             .context = &d->context[branch],
                             .share = share};
    sl_dit_forward(ctx, d->m, &d->v[branch], &in, NULL);
}

sl_code sl_bench_dit_reserve(sl_bench_dit_net *d, const sl_bench_size *s, int branches, int count,
                             const int teams[], sl_err *err)
{
    sl_ops body = sl_ops_plan_of(&d->n.b->ops);
    const int64_t tokens = sl_bench_grid(d->n.b, s).tokens;
    sl_ctx plan;
    sl_code rc = sl_ctx_open(&plan, &body, 0, err);
    if (rc) return rc;
    sl_bench_dit_job(d, &plan, s, branches);
    for (int i = 0; i < count; i++) {
        const sl_team team = {.size = teams[i], .granule = body.row_granule};
        sl_dit_share share;
        if (teams[i] > 1)
            sl_dit_share_make(&plan, d->m, &share, NULL, SL_LANE_SHARD, &team, tokens);
        sl_bench_dit_forward(d, &plan, 0, teams[i] > 1 ? &share : NULL);
    }
    const size_t arena = plan.arena_peak;
    rc = sl_ctx_error(&plan, err);
    sl_ctx_close(&plan);
    return rc ? rc : sl_ctx_reserve(&d->n.ctx, arena, err);
}

/* ---- one process ---- */

static void run_dit(void *arg)
{
    sl_bench_dit_net *d = arg;
    sl_bench_dit_forward(d, &d->n.ctx, 0, NULL);
}

static sl_code dit_size(sl_bench_dit_net *d, const sl_bench_size *s, sl_err *err)
{
    char size[64];
    sl_code rc = sl_bench_dit_reserve(d, s, 1, 1, (const int[]){1}, err);
    if (rc) return rc;
    sl_bench_dit_job(d, &d->n.ctx, s, 1);
    const size_t held = sl_bytes(&d->latents) * 3 + sl_bytes(&d->rope.cos) * 2 +
                        sl_dit_context_bytes(&d->n.ctx, d->m, d->context[0].image_tokens);
    if (!(rc = sl_ctx_error(&d->n.ctx, err)))
        rc = sl_bench_measure(&d->n, "dit", sl_bench_size_text(size, s),
                              sl_bench_weight_bytes(&d->n), held, run_dit, d, err);
    sl_bench_dit_drop(d);
    return rc;
}

sl_code sl_bench_dit(sl_bench *b, sl_err *err)
{
    sl_bench_dit_net d = {0};
    const int64_t from = sl_now_ns();
    if (b->devices.count > 1) return sl_bench_team(b, err);
    sl_code rc = sl_bench_dit_open(&d, b, err);
    if (!rc)
        printf("dit: weights made in %.2f s, precision %s\n", (double)(sl_now_ns() - from) * 1e-9,
               b->precision);
    for (int i = 0; i < b->size_count && !rc; i++) rc = dit_size(&d, &b->sizes[i], err);
    sl_bench_dit_close(&d);
    return rc;
}
