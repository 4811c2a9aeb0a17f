/* run.c - one denoising job: its memory, its steps, its resumable state. */
#include "stages/denoise/run.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "graphs/randn.h"
#include "stages/turn.h"

/* ---- the process ---- */

sl_code denoiser_open(denoiser *d, sl_err *err)
{
    static const char *const NAMES[SL_EXPERTS] = {"transformer", "transformer_2"};
    const sl_conf *conf = sl_stage_conf(d->st);
    const sl_conf_stage *me = sl_conf_find(conf, SL_ROLE_DENOISE);
    int64_t t0 = sl_now_ns();
    int slots = me ? me->slots : 2;
    size_t bytes = 0;
    const sl_ops *ops;
    sl_code rc;
    d->model = sl_stage_model(d->st);
    if ((rc = sl_stage_ops(d->st, &ops, err)) || (rc = sl_ctx_open(&d->ctx, ops, 0, err)))
        return rc;

    /* slots hold the longest prompt's cond and uncond, and the largest picture's clip and
     * condition, float32 */
    size_t text_bytes =
        sl_slot_bytes(d->model, SL_HANDOVER_TEXT, conf->limits.pixels, conf->limits.frames);
    size_t image_bytes =
        sl_slot_bytes(d->model, SL_HANDOVER_IMAGE, conf->limits.pixels, conf->limits.frames);
    if ((rc = sl_stage_receive_pool(d->st, SL_HANDOVER_TEXT, slots, text_bytes, &d->text, err)))
        return rc;
    if (d->model->family.picture &&
        (rc = sl_stage_receive_pool(d->st, SL_HANDOVER_IMAGE, slots, image_bytes, &d->image, err)))
        return rc;
    for (int e = 0; e < d->model->family.experts; e++) {
        if ((rc = sl_network_open(&d->loaders[e], d->st, &d->ctx, NAMES[e],
                                  "diffusion_pytorch_model", err)))
            return rc;
        if (!(d->dit[e] = sl_dit_new(&d->model->dit[e], d->loaders[e])))
            return sl_fail(err, SL_NOMEM, "%s: no memory", NAMES[e]);
        if ((rc = sl_loader_finish(d->loaders[e], err))) return rc;
        bytes += sl_loader_bytes(d->loaders[e]);
    }
    d->ctx.cancel = sl_stage_cancel_flag(d->st);
    sl_stage_ready(d->st, t0, bytes, 0);
    return SL_OK;
}

void denoiser_close(denoiser *d)
{
    for (int e = 0; e < SL_EXPERTS; e++) {
        sl_dit_free(&d->dit[e]);
        sl_loader_close(&d->loaders[e]);
    }
    sl_ctx_close(&d->ctx);
}

/* ---- taps: tensors of the first forward, for --dump-blocks ---- */

static void tap(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    denoise_run *r = user;
    char file[128], path[SL_PATH];
    sl_err err = {0};
    sl_tensor host = *t;
    if (!sl_is_dense(t) || !(host.data = malloc(sl_bytes(t) + 1))) return;
    sl_download(ctx, host.data, t);
    snprintf(file, sizeof file, "%s.safetensors", name);
    if (sl_ok(ctx) && (sl_path_join(path, r->tap_dir, file, &err) ||
                       sl_st_save(path, 1, (const char *[]){name}, &host, &err)))
        sl_log_err("dump-blocks", &err);
    free(host.data);
}

static int branches(const denoise_run *r)
{
    return sl_denoise_branches(r->job);
}

/* ---- state: what a killed denoiser goes on from ----
 *
 * The state is the sampler's before a step, and is written only when that step computed
 * in every branch. The First Block Cache's residuals (several hidden states, gigabytes)
 * need not be in it then: the resumed process repeats that step with the decision
 * "compute", which remakes them bit for bit. */

enum { META_STEP, META_ORDER, META_HISTORY, META_COUNT };

static sl_code restore_state(denoise_run *r, sl_err *err)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    sl_tensor meta, metrics;
    float *x[4] = {0};
    static const char *const NAMES[4] = {"x", "last", "m0", "m1"};
    sl_code rc = sl_path_join(path, r->msg->dir, "state.safetensors", err);
    if (rc || access(path, R_OK)) return rc;
    if ((rc = sl_st_open_file(&st, path, err))) return rc;
    if ((rc = sl_st_want(st, "meta", SL_I64, 1, (int64_t[]){META_COUNT}, &meta, err)) ||
        (rc = sl_st_want(st, "metrics", SL_F32, 1, (int64_t[]){SL_BRANCHES}, &metrics, err)))
        goto done;
    int64_t v[META_COUNT];
    memcpy(v, meta.data, sizeof v);
    if (v[META_STEP] < 1 || v[META_STEP] >= r->schedule.steps || v[META_ORDER] < 0 ||
        v[META_ORDER] > 2 || v[META_HISTORY] < 0 || v[META_HISTORY] > 2) {
        rc = sl_fail(err, SL_FORMAT, "%s: step %lld of %d makes no sense", path,
                     (long long)v[META_STEP], r->schedule.steps);
        goto done;
    }
    for (int i = 0; i < 4; i++)
        if ((rc = sl_network_input(&x[i], NULL, st, NAMES[i], 4, r->shape, err))) goto done;
    sl_upload(&r->d->ctx, &r->sampler.x, x[0]);
    sl_upload(&r->d->ctx, &r->sampler.last, x[1]);
    sl_upload(&r->d->ctx, &r->sampler.m0, x[2]);
    sl_upload(&r->d->ctx, &r->sampler.m1, x[3]);
    r->sampler.step = (int)v[META_STEP];
    r->sampler.last_order = (int)v[META_ORDER];
    r->sampler.history = (int)v[META_HISTORY];
    memcpy(r->replay_metric, metrics.data, sizeof r->replay_metric);
    r->replay = true;
    sl_log(SL_LOG_INFO, "job %llu goes on at step %d of %d", (unsigned long long)r->msg->job,
           r->sampler.step + 1, r->schedule.steps);
done:
    for (int i = 0; i < 4; i++) free(x[i]);
    sl_st_close(&st);
    return rc;
}

/* Copy the state to the host; save_state writes that copy once the step's decisions are
 * known. */
static void hold_state(denoise_run *r)
{
    int64_t n = sl_count(&r->sampler.x);
    sl_download(&r->d->ctx, r->saved, &r->sampler.x);
    sl_download(&r->d->ctx, r->saved + n, &r->sampler.last);
    sl_download(&r->d->ctx, r->saved + 2 * n, &r->sampler.m0);
    sl_download(&r->d->ctx, r->saved + 3 * n, &r->sampler.m1);
    /* never written so far */
    if (r->sampler.history < 2) memset(r->saved + 3 * n, 0, (size_t)n * sizeof(float));
}

static void save_state(denoise_run *r, const int64_t meta[META_COUNT],
                       const float metrics[SL_BRANCHES])
{
    static const char *const NAMES[] = {"x", "last", "m0", "m1", "meta", "metrics"};
    int64_t n = sl_count(&r->sampler.x), m[META_COUNT];
    float f[SL_BRANCHES] = {metrics[0], metrics[1]};
    sl_tensor t[6];
    memcpy(m, meta, sizeof m);
    for (int i = 0; i < 4; i++) t[i] = sl_view(r->saved + i * n, SL_F32, 4, r->shape);
    t[4] = sl_view1(m, SL_I64, META_COUNT);
    t[5] = sl_view1(f, SL_F32, SL_BRANCHES);
    sl_stage_spool(r->d->st, r->msg, "state", false, 6, NAMES, t);
    r->since_saved = 0;
}

/* ---- start ---- */

static sl_code load_noise(denoise_run *r, sl_err *err)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    int64_t n = r->shape[0] * r->shape[1] * r->shape[2] * r->shape[3];
    sl_code rc = SL_OK;
    if (!*r->job->noise) {
        if (!(r->noise = malloc((size_t)n * sizeof(float))))
            return sl_fail(err, SL_NOMEM, "noise: no memory");
        sl_randn(r->noise, n, r->job->seed);
        return SL_OK;
    }
    if (!(rc = sl_path_join(path, r->msg->dir, "noise.safetensors", err)) &&
        !(rc = sl_st_open_file(&st, path, err)))
        rc = sl_network_input(&r->noise, NULL, st, "noise", 4, r->shape, err);
    sl_st_close(&st);
    return rc;
}

/* Each on the host, then its memory is owned, or in its slot on the device. */
typedef struct {
    sl_input text[SL_BRANCHES], clip, condition;
    int image_tokens; /* 0: no clip */
} inputs;

static sl_code read_inputs(denoise_run *r, inputs *in, const denoise_inputs *from, sl_err *err)
{
    static const char *const NAMES[SL_BRANCHES] = {"cond", "uncond"};
    const denoiser *d = r->d;
    const sl_dit_config *c = &d->model->dit[0];
    int64_t extra = c->in_channels - c->out_channels;
    sl_code rc = SL_OK;
    for (int b = 0; b < branches(r) && !rc; b++)
        rc = sl_network_receive(&in->text[b], d->text, from->text, from->text_file, NAMES[b], 2,
                                (int64_t[]){SL_TEXT_TOKENS, c->text_dim}, err);
    if (!rc && extra)
        rc =
            sl_network_receive(&in->condition, d->image, from->image, from->image_file, "condition",
                               4, (int64_t[]){extra, r->shape[1], r->shape[2], r->shape[3]}, err);
    if (!rc && c->image_dim) {
        in->image_tokens = sl_image_tokens(d->model, r->job);
        rc = sl_network_receive(&in->clip, d->image, from->image, from->image_file, "clip", 2,
                                (int64_t[]){in->image_tokens, c->image_dim}, err);
    }
    return rc;
}

static void make_contexts(denoise_run *r, const inputs *in)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_dit_config *c = &r->d->model->dit[0];
    for (int e = 0; e < r->d->model->family.experts; e++)
        for (int b = 0; b < branches(r); b++) {
            size_t mark = sl_mark(ctx);
            sl_tensor text = sl_new2(ctx, sl_act(ctx), SL_TEXT_TOKENS, c->text_dim);
            sl_tensor image = sl_new2(ctx, sl_act(ctx), in->image_tokens, c->image_dim);
            sl_network_place(ctx, &text, &in->text[b]);
            if (in->image_tokens) sl_network_place(ctx, &image, &in->clip);
            ctx->tap = e == 0 && b == 0 && *r->tap_dir ? tap : NULL;
            sl_dit_context_make(ctx, r->d->dit[e], &r->mem.context[e][b],
                                r->mem.context_memory[e][b], &text,
                                in->image_tokens ? &image : NULL);
            ctx->tap = NULL;
            sl_release(ctx, mark);
        }
}

/* All that the device does before the first step. */
static sl_code fill_memory(denoise_run *r, const sl_denoise_sizes *of, const inputs *in,
                           sl_err *err)
{
    sl_ctx *ctx = &r->d->ctx;
    sl_code rc = sl_stage_turn_begin(r->d->st, SL_TURN_STEP, "step", 0, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    ctx->tap_user = r;
    sl_denoise_take(ctx, &r->mem, of);
    make_contexts(r, in);
    if (r->mem.condition.rank) sl_network_place(ctx, &r->mem.condition, &in->condition);
    r->sampler = r->mem.sampler;
    r->sampler.schedule = &r->schedule;
    sl_upload(ctx, &r->sampler.x, r->noise);
    if ((rc = restore_state(r, err))) return rc;
    sl_sync(ctx);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_stage_turn_end(r->d->st, true);
    sl_stage_span(r->d->st, r->msg->job, SL_SPAN_COMPUTE, t0);
    return SL_OK;
}

sl_code denoise_start(denoise_run *r, denoiser *d, const sl_msg_job *msg, const sl_job *job,
                      const denoise_inputs *from, sl_err *err)
{
    sl_ctx *ctx = &d->ctx;
    sl_arena arena;
    inputs in = {0};
    int64_t t0 = sl_now_ns();
    sl_code rc;
    r->d = d, r->msg = msg, r->job = job;
    r->cfg = sl_denoise_branches(job) > 1;
    sl_denoise_shape(d->model, job, r->shape);
    int64_t n = r->shape[0] * r->shape[1] * r->shape[2] * r->shape[3];
    sl_sampler_kind kind = strcmp(job->sampler, "euler") ? SL_SAMPLER_UNIPC : SL_SAMPLER_EULER;
    if ((rc = sl_schedule_make(&r->schedule, kind, job->steps, job->shift, err))) return rc;
    if ((rc = read_inputs(r, &in, from, err)) || (rc = load_noise(r, err))) goto done;
    r->host = sl_stage_host_alloc(d->st, (size_t)n * sizeof(float));
    r->saved = sl_stage_host_alloc(d->st, (size_t)n * 4 * sizeof(float));
    if (!r->host || !r->saved) {
        rc = sl_fail(err, SL_NOMEM, "denoise: no memory for latents");
        goto done;
    }
    if (job->dump_blocks) {
        if ((rc = sl_path_join(r->tap_dir, msg->dir, "blocks", err))) goto done;
        if (mkdir(r->tap_dir, 0700) && errno != EEXIST) {
            rc = sl_fail_errno(err, errno, "%s", r->tap_dir);
            goto done;
        }
    }
    const sl_denoise_sizes of = {.model = d->model,
                                 .dit = d->dit,
                                 .job = job,
                                 .schedule = &r->schedule,
                                 .tap = *r->tap_dir ? tap : NULL,
                                 .round_rope =
                                     !strcmp(sl_stage_conf(d->st)->denoise.rope, "bfloat16")};
    if ((rc = sl_denoise_arena(&arena, ctx->ops, &of, err)) ||
        (rc = sl_ctx_reserve(ctx, arena.peak, err)))
        goto done;
    sl_stage_span(d->st, msg->job, SL_SPAN_HANDOVER, t0);
    rc = fill_memory(r, &of, &in, err);
    sl_log(SL_LOG_DEBUG, "job %llu: arena %.1f MB, ready in %.1f ms", (unsigned long long)msg->job,
           (double)arena.peak * 1e-6, (double)(sl_now_ns() - t0) * 1e-6);
done:
    for (int b = 0; b < SL_BRANCHES; b++) free(in.text[b].host);
    free(in.clip.host);
    free(in.condition.host);
    return rc;
}

/* ---- one step ---- */

static void report_step(denoise_run *r, int step, double seconds,
                        const sl_fbcache_report reports[SL_BRANCHES])
{
    sl_msg m = {.type = SL_MSG_STEP};
    m.step = (sl_msg_step){.job = r->msg->job,
                           .attempt = r->msg->attempt,
                           .step = (uint32_t)step,
                           .steps = (uint32_t)r->schedule.steps,
                           .seconds = seconds,
                           .cond_computed = reports[0].computed,
                           .cond_metric = reports[0].metric,
                           .uncond_computed = r->cfg ? reports[1].computed : -1,
                           .uncond_metric = r->cfg ? reports[1].metric : NAN};
    sl_stage_send(r->d->st, &m);
    sl_stage_progress(r->d->st, r->msg, step + 1, r->schedule.steps, seconds);
}

/* The latents after a step are finite, or the job ends here and says which weight is to
 * blame. */
static sl_code look_at(denoise_run *r, int step, sl_err *err)
{
    sl_err found = {0};
    sl_tensor t = sl_view(r->host, SL_F32, 4, r->shape);
    char name[48];
    sl_download(&r->d->ctx, r->host, &r->sampler.x);
    if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
    snprintf(name, sizeof name, "step %d: latents", step);
    if (sl_stage_check_finite(name, &t, &found))
        return sl_network_blame(r->d->loaders, &found, err);
    if (r->job->dump_steps) {
        char file[32];
        snprintf(name, sizeof name, "step.%d.latents", step);
        snprintf(file, sizeof file, "step.%d", step);
        sl_stage_spool(r->d->st, r->msg, file, false, 1, (const char *[]){name}, &t);
    }
    return SL_OK;
}

sl_code denoise_step(denoise_run *r, sl_err *err)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_model *model = r->d->model;
    int i = r->sampler.step, every = sl_stage_conf(r->d->st)->denoise.state_every;
    int64_t meta[META_COUNT] = {i, r->sampler.last_order, r->sampler.history};
    bool due = i > 0 && every > 0 && ++r->since_saved >= every && !r->replay;
    int e = model->family.experts > 1 && r->schedule.timesteps[i] < model->boundary_ratio * 1000
                ? 1
                : 0;
    double g = e ? r->job->guidance_2 : r->job->guidance;
    sl_fbcache_report reports[SL_BRANCHES] = {{NAN, true}, {NAN, true}};
    size_t mark = sl_mark(ctx);
    sl_code rc = sl_stage_turn_begin(r->d->st, SL_TURN_STEP, "step", i + 1, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    if (due) hold_state(r);

    for (int b = 0; b < branches(r); b++) {
        sl_fbcache *cache = r->job->fbcache > 0 ? &r->mem.cache[e][b] : NULL;
        if (cache) {
            cache->step = i, cache->steps = r->schedule.steps;
            cache->force = r->replay ? 1 : 0;
        }
        ctx->tap = i == 0 && b == 0 && *r->tap_dir ? tap : NULL;
        const sl_dit_input in = {.latents = &r->sampler.x,
                                 .condition = r->mem.condition.rank ? &r->mem.condition : NULL,
                                 .times = &r->mem.times[e],
                                 .step = i,
                                 .rope = &r->mem.rope,
                                 .context = &r->mem.context[e][b],
                                 .cache = cache};
        sl_dit_forward(ctx, r->d->dit[e], &r->mem.v[b], &in, &reports[b]);
        ctx->tap = NULL;
        if (r->replay) reports[b].metric = r->replay_metric[b];
    }
    if (r->cfg) sl_guidance(ctx, &r->mem.v[0], &r->mem.v[0], &r->mem.v[1], (float)g);
    sl_sampler_step(ctx, &r->sampler, &r->mem.v[0]);
    sl_sync(ctx);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_stage_turn_end(r->d->st, i + 1 < r->schedule.steps);
    sl_release(ctx, mark);
    r->replay = false;

    if ((rc = look_at(r, i, err))) return rc;
    if (due && reports[0].computed && reports[1].computed)
        save_state(r, meta, (float[]){reports[0].metric, reports[1].metric});
    report_step(r, i, (double)(sl_now_ns() - t0) * 1e-9, reports);
    /* with the report: of steps of 3 ms its messages are 2 % */
    sl_stage_span(r->d->st, r->msg->job, SL_SPAN_COMPUTE, t0);
    return SL_OK;
}

/* ---- end ---- */

/* noise, latents and every step's latents in one file, as --dump-steps gives it. */
static sl_code write_with_steps(denoise_run *r, const char *path, sl_err *err)
{
    sl_st_writer *w = NULL;
    size_t bytes = (size_t)(r->shape[0] * r->shape[1] * r->shape[2] * r->shape[3]) * sizeof(float);
    char name[48], file[48], step_path[SL_PATH];
    sl_code rc;
    if ((rc = sl_stage_spool_flush(r->d->st, err))) return rc;
    if ((rc = sl_stw_open(&w, path, err)) ||
        (rc = sl_stw_declare(w, "noise", SL_F32, 4, r->shape, err)) ||
        (rc = sl_stw_declare(w, "latents", SL_F32, 4, r->shape, err)))
        goto done;
    for (int i = 0; i < r->schedule.steps; i++) {
        snprintf(name, sizeof name, "step.%d.latents", i);
        if ((rc = sl_stw_declare(w, name, SL_F32, 4, r->shape, err))) goto done;
    }
    if ((rc = sl_stw_write(w, "noise", r->noise, 0, bytes, err)) ||
        (rc = sl_stw_write(w, "latents", r->host, 0, bytes, err)))
        goto done;
    for (int i = 0; i < r->schedule.steps && !rc; i++) {
        sl_st *st = NULL;
        sl_tensor t;
        snprintf(name, sizeof name, "step.%d.latents", i);
        snprintf(file, sizeof file, "step.%d.safetensors", i);
        if (!(rc = sl_path_join(step_path, r->msg->dir, file, err)) &&
            !(rc = sl_st_open_file(&st, step_path, err)) &&
            !(rc = sl_st_want(st, name, SL_F32, 4, r->shape, &t, err)))
            rc = sl_stw_write(w, name, t.data, 0, bytes, err);
        sl_st_close(&st);
    }
    if (!rc) rc = sl_stw_finish(&w, err);
done:
    sl_stw_abandon(&w);
    return rc;
}

sl_code denoise_finish(denoise_run *r, sl_err *err)
{
    static const char *const HANDED[] = {"latents"}, *const SPOOLED[] = {"latents", "noise"};
    sl_tensor latents = sl_view(r->host, SL_F32, 4, r->shape);
    sl_tensor tensors[] = {latents, sl_view(r->noise, SL_F32, 4, r->shape)};
    int64_t t0 = sl_now_ns();
    sl_err lost = {0};
    sl_ticket ticket;
    sl_code rc = SL_OK;
    sl_download(&r->d->ctx, r->host, &r->sampler.x);
    if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
    /* first what can fail: a slot that was handed over is not taken back */
    if (r->job->dump_steps) {
        char path[SL_PATH];
        sl_msg m = {.type = SL_MSG_SPOOLED,
                    .spooled = {.job = r->msg->job, .attempt = r->msg->attempt, .name = "denoise"}};
        if ((rc = sl_path_join(path, r->msg->dir, "denoise.safetensors", err)) ||
            (rc = write_with_steps(r, path, err)))
            return rc;
        sl_stage_send(r->d->st, &m);
    } else sl_stage_spool(r->d->st, r->msg, "denoise", true, 2, SPOOLED, tensors);
    bool handed = sl_stage_hand_over(r->d->st, &r->d->ctx, SL_HANDOVER_LATENTS, 1, HANDED, &latents,
                                     &r->sampler.x, &ticket, &lost) == SL_OK;
    if (!handed)
        sl_log(SL_LOG_DEBUG, "job %llu goes by the spool: %s", (unsigned long long)r->msg->job,
               lost.msg);
    sl_stage_span(r->d->st, r->msg->job, SL_SPAN_HANDOVER, t0);
    sl_stage_done(r->d->st, r->msg, handed ? &ticket : NULL, r->d->ctx.arena_peak, 0);
    return SL_OK;
}

void denoise_end(denoise_run *r)
{
    free(r->noise);
    if (r->d) {
        sl_ctx_error(&r->d->ctx, NULL); /* empties the arena */
        sl_stage_host_free(r->d->st, r->host);
        sl_stage_host_free(r->d->st, r->saved);
    }
    memset(r, 0, sizeof *r);
}
