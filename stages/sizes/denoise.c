/* denoise.c - the device memory of one denoising job. */
#include "stages/sizes/denoise.h"

#include <stdlib.h>
#include <string.h>

int sl_denoise_branches(const sl_job *job)
{
    return sl_job_guided(job) ? 2 : 1;
}

void sl_denoise_shape(const sl_model *model, const sl_job *job, int64_t shape[4])
{
    const sl_grid grid = sl_job_grid(model, job);
    sl_tensor_spec latents[SL_HANDOVER_TENSORS];
    sl_handover_tensors(latents, SL_HANDOVER_LATENTS, model, &grid, job);
    memcpy(shape, latents[0].shape, 4 * sizeof *shape);
}

sl_denoise_split sl_denoise_split_of(const sl_job *job, int size, int me)
{
    sl_denoise_split s = {.size = size, .me = me, .shards = size, .shard = me};
    if (sl_denoise_branches(job) > 1 && size % 2 == 0) {
        s.halves = true;
        s.shards = size / 2;
        s.branch = me / s.shards;
        s.shard = me % s.shards;
    }
    return s;
}

bool sl_denoise_has(const sl_denoise_split *split, const sl_job *job, int b)
{
    return split->halves ? b == split->branch : b < sl_denoise_branches(job);
}

static void *bytes_of(sl_ctx *ctx, size_t n)
{
    return sl_new1(ctx, SL_U8, (int64_t)n).data;
}

/* The tables rounded as they are in a model that was cast as a whole, rotary buffers and
 * all. */
static void round_rope(sl_ctx *ctx, const sl_dit_rope *rope)
{
    const sl_tensor *tables[] = {&rope->cos, &rope->sin};
    for (int i = 0; i < 2; i++) {
        int64_t n = sl_count(tables[i]);
        float *x = malloc((size_t)n * sizeof *x + 1);
        if (!x) {
            sl_ctx_fail(ctx, SL_NOMEM, "denoise: no memory for a rotary table");
            return;
        }
        sl_download(ctx, x, tables[i]);
        for (int64_t k = 0; k < n && sl_ok(ctx); k++) x[k] = sl_from_bf16(sl_to_bf16(x[k]));
        sl_upload(ctx, tables[i], x);
        free(x);
    }
}

/* A row for each step; where a frame is kept one more, for timestep 0. */
static void take_times(sl_ctx *ctx, sl_dit_times *times, sl_dit *dit, const sl_schedule *s,
                       bool kept)
{
    const int n = s->steps + kept;
    double *t = calloc((size_t)n, sizeof *t);
    if (t) memcpy(t, s->timesteps, (size_t)s->steps * sizeof *t);
    else sl_ctx_fail(ctx, SL_NOMEM, "denoise: no memory for %d timesteps", n);
    void *memory = bytes_of(ctx, sl_dit_times_bytes(ctx, dit, n));
    if (t) sl_dit_times_make(ctx, dit, times, memory, t, n);
    free(t);
}

static const sl_denoise_split ALONE = {.size = 1, .shards = 1};

void sl_denoise_take(sl_ctx *ctx, sl_denoise_memory *m, const sl_denoise_sizes *of)
{
    const sl_denoise_split *split = of->split ? of->split : &ALONE;
    const sl_team shard = {
        .size = split->shards, .me = split->shard, .granule = ctx->ops->row_granule};
    const sl_dit_config *c = &of->model->dit[0];
    const sl_job *job = of->job;
    const sl_grid g = sl_job_grid(of->model, job);
    int64_t shape[4];
    sl_denoise_shape(of->model, job, shape);
    int t = (int)g.latent_frames, rows = (int)g.token_height, columns = (int)g.token_width,
        extra = c->in_channels - c->out_channels;
    const int64_t most = sl_share_most(g.tokens, shard.size, shard.granule);
    memset(m, 0, sizeof *m);
    if (shard.size > 1)
        sl_dit_share_make(ctx, of->dit[0], &m->share, of->comm, SL_LANE_SHARD, &shard, g.tokens);
    if (extra) m->condition = sl_new4(ctx, SL_F32, extra, t, shape[2], shape[3]);
    else if (sl_takes_picture(&of->model->family, job))
        m->kept = sl_new4(ctx, SL_F32, shape[0], 1, shape[2], shape[3]);
    for (int b = 0; b < sl_denoise_branches(job); b++) m->v[b] = sl_new(ctx, sl_act(ctx), 4, shape);
    sl_sampler_init(&m->sampler, of->schedule, bytes_of(ctx, sl_sampler_bytes(shape)), shape);
    sl_dit_rope_make(ctx, of->dit[0], &m->rope,
                     bytes_of(ctx, sl_dit_rope_bytes(of->dit[0], t, rows, columns)), t, rows,
                     columns);
    if (of->round_rope && !ctx->ops->plan) round_rope(ctx, &m->rope);
    for (int e = 0; e < of->model->family.experts; e++) {
        sl_dit *dit = of->dit[e];
        ctx->tap = e == 0 ? of->tap : NULL;
        take_times(ctx, &m->times[e], dit, of->schedule, m->kept.rank > 0);
        ctx->tap = NULL;
        for (int b = 0; b < SL_BRANCHES; b++) {
            if (!sl_denoise_has(split, job, b)) continue;
            m->context_memory[e][b] =
                bytes_of(ctx, sl_dit_context_bytes(ctx, dit, sl_image_tokens(of->model, job)));
            if (job->fbcache > 0) {
                sl_fbcache_rules rules = {.threshold = (float)job->fbcache,
                                          .warmup = job->fbcache_warmup,
                                          .max_hits = job->fbcache_max_hits,
                                          .final = job->fbcache_final};
                sl_fbcache_init(ctx, &m->cache[e][b], &rules,
                                bytes_of(ctx, sl_fbcache_bytes(ctx, most, c->dim)), most, c->dim);
                if (!ctx->ops->plan)
                    sl_fbcache_set_rows(&m->cache[e][b],
                                        sl_share_of(&shard, g.tokens, shard.me).rows);
            }
        }
    }
}

/* The step whose forward takes the most: one that attends in 8 bits, if there is one. */
static int step_of_most(const sl_denoise_sizes *of, int e)
{
    const int from = of->model->dit[e].precision.attends_from;
    return from < of->schedule->steps ? from : 0;
}

sl_code sl_denoise_arena(sl_arena *out, const sl_ops *ops, const sl_denoise_sizes *of, sl_err *err)
{
    const sl_dit_config *c = &of->model->dit[0];
    int image_tokens = sl_image_tokens(of->model, of->job), b = of->split ? of->split->branch : 0;
    sl_ops body = sl_ops_plan_of(ops);
    sl_denoise_memory m;
    sl_ctx plan;
    sl_code rc = sl_ctx_open(&plan, &body, 0, err);
    if (rc) return rc;
    sl_denoise_take(&plan, &m, of);
    out->kept = sl_mark(&plan);
    for (int e = 0; e < of->model->family.experts; e++) {
        size_t mark = sl_mark(&plan);
        sl_tensor text = sl_new2(&plan, sl_act(&plan), SL_TEXT_TOKENS, c->text_dim);
        sl_tensor image = sl_new2(&plan, sl_act(&plan), image_tokens, c->image_dim);
        sl_dit_context_make(&plan, of->dit[e], &m.context[e][b], m.context_memory[e][b], &text,
                            image_tokens ? &image : NULL);
        sl_release(&plan, mark);
        const sl_dit_input in = {.latents = &m.sampler.x,
                                 .condition =
                                     c->in_channels > c->out_channels ? &m.condition : NULL,
                                 .times = &m.times[e],
                                 .step = step_of_most(of, e),
                                 .kept_frames = m.kept.rank > 0,
                                 .kept_step = of->schedule->steps,
                                 .rope = &m.rope,
                                 .context = &m.context[e][b],
                                 .cache = of->job->fbcache > 0 ? &m.cache[e][b] : NULL,
                                 .share = m.share.team.size ? &m.share : NULL,
                                 .whole_attention = !sl_precision_attends(of->job->precision)};
        sl_dit_forward(&plan, of->dit[e], &m.v[0], &in, NULL);
        sl_release(&plan, mark);
        /* a preview's: it takes what a forward has left */
        for (int i = 0; i < 2; i++)
            sl_new2(&plan, SL_F32, m.sampler.x.shape[0],
                    m.sampler.x.shape[2] * m.sampler.x.shape[3]);
        sl_release(&plan, mark);
    }
    out->peak = plan.arena_peak;
    rc = sl_ctx_error(&plan, err);
    sl_ctx_close(&plan);
    return rc;
}

size_t sl_denoise_preview_bytes(const sl_model *model, const sl_job *job)
{
    int64_t shape[4];
    if (!*job->preview) return 0;
    sl_denoise_shape(model, job, shape);
    const size_t cells = (size_t)(shape[2] * shape[3]),
                 drawn = cells * SL_PREVIEW_SCALE * SL_PREVIEW_SCALE * 3;
    /* two frames; a picture's colours; what is drawn, in the encoder and encoded; the picture */
    return cells * (size_t)shape[0] * 2 * sizeof(float) + cells * 3 * (sizeof(double) + 1) +
           3 * drawn + (size_t)job->width * (size_t)job->height * 3;
}

size_t sl_denoise_pair_bytes(const sl_ctx *ctx, const int64_t shape[4])
{
    const sl_tensor v = sl_view(NULL, sl_act(ctx), 4, shape);
    return (2 * sl_bytes(&v) + 255) / 256 * 256;
}

sl_code sl_denoise_window(size_t *out, const sl_ops *ops, const sl_model *model, sl_dit *const *dit,
                          int64_t pixels, int frames, int ranks, sl_err *err)
{
    const sl_grid g = sl_grid_of_area(&model->family, pixels, frames);
    const int64_t shape[] = {model->dit[0].out_channels, g.latent_frames, g.latent_height,
                             g.latent_width};
    size_t inputs = 0, share = 0;
    sl_ops body = sl_ops_plan_of(ops);
    sl_ctx plan;
    sl_code rc = sl_ctx_open(&plan, &body, 0, err);
    if (rc) return rc;
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == SL_ROLE_DENOISE)
            inputs += sl_slot_bytes(model, (sl_handover)h, pixels, frames);
    for (int n = 2; n <= ranks && !share; n++)
        if (model->dit[0].heads % n == 0) share = sl_dit_share_bytes(&plan, dit[0], g.tokens);
    *out =
        ((share > inputs ? share : inputs) + 255) / 256 * 256 + sl_denoise_pair_bytes(&plan, shape);
    sl_ctx_close(&plan);
    return SL_OK;
}
