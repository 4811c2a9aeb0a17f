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

/* ---- the process ---- */

sl_code sl_denoiser_open(denoiser *d, sl_err *err)
{
    static const char *const NAMES[SL_EXPERTS] = {"transformer", "transformer_2"};
    int64_t t0 = sl_now_ns();
    size_t bytes = 0;
    sl_code rc;
    d->model = &d->seat->model;
    if ((rc = sl_seat_context(d->seat, &d->ctx, err)) || (rc = sl_seat_receive(d->seat, err)))
        return rc;
    for (int e = 0; e < d->model->family.experts; e++) {
        if ((rc = sl_seat_loader(&d->loaders[e], d->seat, &d->ctx, NAMES[e],
                                 "diffusion_pytorch_model", err)))
            return rc;
        if (!(d->dit[e] = sl_dit_new(&d->model->dit[e], d->loaders[e])))
            return sl_fail(err, SL_NOMEM, "%s: no memory", NAMES[e]);
        if ((rc = sl_loader_finish(d->loaders[e], err))) return rc;
        bytes += sl_loader_bytes(d->loaders[e]);
    }
    sl_seat_ready(d->seat, t0, bytes, 0);
    return SL_OK;
}

void sl_denoiser_close(denoiser *d)
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

enum { CONDITION, CLIP }; /* tensors of the pictures' hand-over */

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
        if ((rc = sl_parcel_read(&x[i], st, NAMES[i], 4, r->shape, err))) goto done;
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
    sl_spool_write(&r->d->seat->spool, r->msg, "state", false, 6, NAMES, t);
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
        rc = sl_parcel_read(&r->noise, st, "noise", 4, r->shape, err);
    sl_st_close(&st);
    return rc;
}

/* Keys and values of text and pictures, for each expert and branch. */
static void make_contexts(denoise_run *r, const denoise_inputs *in)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_parcel_tensor *clip = in->image.count > CLIP ? &in->image.at[CLIP] : NULL;
    for (int e = 0; e < r->d->model->family.experts; e++)
        for (int b = 0; b < in->text.count; b++) {
            size_t mark = sl_mark(ctx);
            sl_tensor text = sl_new(ctx, sl_act(ctx), 2, in->text.at[b].host.shape), image = {0};
            if (clip) image = sl_new(ctx, sl_act(ctx), 2, clip->host.shape);
            sl_parcel_place(ctx, &text, &in->text.at[b]);
            if (clip) sl_parcel_place(ctx, &image, clip);
            ctx->tap = e == 0 && b == 0 && *r->tap_dir ? tap : NULL;
            sl_dit_context_make(ctx, r->d->dit[e], &r->mem.context[e][b],
                                r->mem.context_memory[e][b], &text, clip ? &image : NULL);
            ctx->tap = NULL;
            sl_release(ctx, mark);
        }
}

/* All that the device does before the first step. */
static sl_code fill_memory(denoise_run *r, const sl_denoise_sizes *of, const denoise_inputs *in,
                           sl_err *err)
{
    sl_ctx *ctx = &r->d->ctx;
    sl_code rc = sl_turn_begin(&r->d->seat->turn, SL_TURN_STEP, "step", 0, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    ctx->tap_user = r;
    sl_denoise_take(ctx, &r->mem, of);
    make_contexts(r, in);
    if (r->mem.condition.rank && in->image.count)
        sl_parcel_place(ctx, &r->mem.condition, &in->image.at[CONDITION]);
    r->sampler = r->mem.sampler;
    r->sampler.schedule = &r->schedule;
    sl_upload(ctx, &r->sampler.x, r->noise);
    if ((rc = restore_state(r, err))) return rc;
    sl_sync(ctx);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_turn_end(&r->d->seat->turn, true);
    sl_control_span(&r->d->seat->control, r->msg->job, SL_SPAN_COMPUTE, t0);
    return SL_OK;
}

sl_code sl_denoise_start(denoise_run *r, denoiser *d, const sl_msg_job *msg, const sl_job *job,
                         const denoise_inputs *in, sl_err *err)
{
    sl_ctx *ctx = &d->ctx;
    sl_arena arena;
    int64_t t0 = sl_now_ns();
    sl_code rc;
    r->d = d, r->msg = msg, r->job = job;
    r->cfg = sl_denoise_branches(job) > 1;
    sl_denoise_shape(d->model, job, r->shape);
    int64_t n = r->shape[0] * r->shape[1] * r->shape[2] * r->shape[3];
    sl_sampler_kind kind = strcmp(job->sampler, "euler") ? SL_SAMPLER_UNIPC : SL_SAMPLER_EULER;
    if ((rc = sl_schedule_make(&r->schedule, kind, job->steps, job->shift, err))) return rc;
    /* on the host */
    if ((rc = load_noise(r, err)) ||
        (rc = sl_parcel_make(&r->out, d->seat, NULL, SL_HANDOVER_LATENTS, job, err)))
        return rc;
    if (!(r->saved = sl_seat_host_alloc(d->seat, (size_t)n * 4 * sizeof(float))))
        return sl_fail(err, SL_NOMEM, "denoise: no memory for a state");
    if (job->dump_blocks) {
        if ((rc = sl_path_join(r->tap_dir, msg->dir, "blocks", err))) return rc;
        if (mkdir(r->tap_dir, 0700) && errno != EEXIST)
            return sl_fail_errno(err, errno, "%s", r->tap_dir);
    }
    /* the arena, of the size that a plan counts */
    const sl_denoise_sizes of = {.model = d->model,
                                 .dit = d->dit,
                                 .job = job,
                                 .schedule = &r->schedule,
                                 .tap = *r->tap_dir ? tap : NULL,
                                 .round_rope = !strcmp(d->seat->conf.denoise.rope, "bfloat16")};
    if ((rc = sl_denoise_arena(&arena, ctx->ops, &of, err)) ||
        (rc = sl_ctx_reserve(ctx, arena.peak, err)))
        return rc;
    sl_control_span(&d->seat->control, msg->job, SL_SPAN_HANDOVER, t0);
    rc = fill_memory(r, &of, in, err);
    sl_log(SL_LOG_DEBUG, "job %llu: arena %.1f MB, ready in %.1f ms", (unsigned long long)msg->job,
           (double)arena.peak * 1e-6, (double)(sl_now_ns() - t0) * 1e-6);
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
    sl_control_send(&r->d->seat->control, &m);
    sl_control_progress(&r->d->seat->control, r->msg, step + 1, r->schedule.steps, seconds);
}

/* The latents after a step are finite, or the job ends here and says which weight is to
 * blame. */
static sl_code look_at(denoise_run *r, int step, sl_err *err)
{
    const sl_tensor *t = &r->out.at[0].host;
    char name[48];
    sl_code rc;
    sl_download(&r->d->ctx, t->data, &r->sampler.x);
    if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
    snprintf(name, sizeof name, "step %d: latents", step);
    if ((rc = sl_seat_finite(name, t, r->d->loaders, err))) return rc;
    if (r->job->dump_steps) {
        char file[32];
        snprintf(name, sizeof name, "step.%d.latents", step);
        snprintf(file, sizeof file, "step.%d", step);
        sl_spool_write(&r->d->seat->spool, r->msg, file, false, 1, (const char *[]){name}, t);
    }
    return SL_OK;
}

sl_code sl_denoise_step(denoise_run *r, sl_err *err)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_model *model = r->d->model;
    int i = r->sampler.step, every = r->d->seat->conf.denoise.state_every;
    int64_t meta[META_COUNT] = {i, r->sampler.last_order, r->sampler.history};
    bool due = i > 0 && every > 0 && ++r->since_saved >= every && !r->replay;
    int e = model->family.experts > 1 && r->schedule.timesteps[i] < model->boundary_ratio * 1000
                ? 1
                : 0;
    double g = e ? r->job->guidance_2 : r->job->guidance;
    sl_fbcache_report reports[SL_BRANCHES] = {{NAN, true}, {NAN, true}};
    size_t mark = sl_mark(ctx);
    sl_code rc = sl_turn_begin(&r->d->seat->turn, SL_TURN_STEP, "step", i + 1, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    if (due) hold_state(r);

    /* a forward a branch, guidance, the sampler's update */
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
    sl_turn_end(&r->d->seat->turn, i + 1 < r->schedule.steps);
    sl_release(ctx, mark);
    r->replay = false;

    /* what came of it: finite or not, a state to go on from, the report */
    if ((rc = look_at(r, i, err))) return rc;
    if (due && reports[0].computed && reports[1].computed)
        save_state(r, meta, (float[]){reports[0].metric, reports[1].metric});
    report_step(r, i, (double)(sl_now_ns() - t0) * 1e-9, reports);
    /* with the report: of steps of 3 ms its messages are 2 % */
    sl_control_span(&r->d->seat->control, r->msg->job, SL_SPAN_COMPUTE, t0);
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
    if ((rc = sl_spool_flush(&r->d->seat->spool, err))) return rc;
    if ((rc = sl_stw_open(&w, path, err)) ||
        (rc = sl_stw_declare(w, "noise", SL_F32, 4, r->shape, err)) ||
        (rc = sl_stw_declare(w, "latents", SL_F32, 4, r->shape, err)))
        goto done;
    for (int i = 0; i < r->schedule.steps; i++) {
        snprintf(name, sizeof name, "step.%d.latents", i);
        if ((rc = sl_stw_declare(w, name, SL_F32, 4, r->shape, err))) goto done;
    }
    if ((rc = sl_stw_write(w, "noise", r->noise, 0, bytes, err)) ||
        (rc = sl_stw_write(w, "latents", r->out.at[0].host.data, 0, bytes, err)))
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

sl_code sl_denoise_finish(denoise_run *r, sl_err *err)
{
    const sl_tensor noise = sl_view(r->noise, SL_F32, 4, r->shape);
    char path[SL_PATH];
    int64_t t0 = sl_now_ns();
    sl_code rc;
    sl_download(&r->d->ctx, r->out.at[0].host.data, &r->sampler.x);
    if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
    r->out.at[0].device = r->sampler.x;
    sl_parcel_add(&r->out, "noise", &noise);
    /* first what can fail: a slot that was handed over is not taken back */
    if (r->job->dump_steps) {
        if ((rc = sl_parcel_path(path, &r->out, r->msg, err)) ||
            (rc = write_with_steps(r, path, err)))
            return rc;
        r->out.written = true;
    }
    sl_control_span(&r->d->seat->control, r->msg->job, SL_SPAN_HANDOVER, t0);
    sl_parcel_give(&r->out, r->d->seat, &r->d->ctx, r->msg);
    return SL_OK;
}

void sl_denoise_end(denoise_run *r)
{
    free(r->noise);
    if (r->d) {
        sl_ctx_error(&r->d->ctx, NULL); /* empties the arena */
        sl_parcel_drop(&r->out, r->d->seat);
        sl_seat_host_free(r->d->seat, r->saved);
    }
    memset(r, 0, sizeof *r);
}
