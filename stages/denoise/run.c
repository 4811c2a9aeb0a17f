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
#include "common/state.h"
#include "stages/seat/noise.h"

/* ---- the process ---- */

/* A network without weights, whose sizes are asked for. */
static sl_code open_counting(denoiser *d, sl_loader **loader, sl_dit **dit, sl_err *err)
{
    sl_code rc = sl_loader_plan(loader, &d->ctx, "transformer", err);
    if (!rc && !(*dit = sl_dit_new(&d->model->dit[0], *loader)))
        rc = sl_fail(err, SL_NOMEM, "transformer: no memory");
    return rc;
}

/* Open this rank's end, where the deployment forms teams. */
static sl_code meet_ranks(denoiser *d, sl_err *err)
{
    const sl_conf *conf = &d->seat->conf;
    sl_loader *loader = NULL;
    sl_dit *dit = NULL;
    size_t bytes = 0;
    sl_code rc;
    if (!sl_conf_teamed(conf, SL_ROLE_DENOISE)) return SL_OK;
    if (!(rc = open_counting(d, &loader, &dit, err)) &&
        !(rc = sl_denoise_window(&bytes, d->ctx.ops, d->model, &dit, conf->limits.pixels,
                                 conf->limits.frames, sl_conf_instances(conf, SL_ROLE_DENOISE),
                                 err)))
        rc = sl_mates_open(&d->seat->mates, &d->seat->control, conf, SL_ROLE_DENOISE,
                           d->seat->instance, &d->ctx, d->seat->plugin, bytes, err);
    sl_dit_free(&dit);
    sl_loader_close(&loader);
    return rc ? rc : sl_mates_load_team(&d->seat->mates, &d->load_team, err);
}

/* Attention in 8 bits, where it is asked for, is to be had for this model's heads. */
static sl_code check_heads(const denoiser *d, sl_err *err)
{
    const int want = d->ctx.ops->eight_width;
    for (int e = 0; e < d->model->family.experts; e++) {
        const sl_dit_config *c = &d->model->dit[e];
        if (c->precision.is >= SL_PRECISION_FP8 && want && c->head_dim != want)
            return sl_fail(err, SL_ARG,
                           "precision fp8 wants heads of %d columns on %s, this model's have %d: "
                           "want fp8-linear or bf16",
                           want, d->seat->device, c->head_dim);
    }
    return SL_OK;
}

sl_code sl_denoiser_open(denoiser *d, sl_err *err)
{
    static const sl_part_id PARTS[SL_EXPERTS] = {SL_PART_DIT, SL_PART_DIT_2};
    int64_t t0 = sl_now_ns();
    size_t bytes = 0;
    sl_code rc;
    d->model = &d->seat->model;
    if ((rc = sl_seat_context(d->seat, &d->ctx, err)) || (rc = check_heads(d, err)) ||
        (rc = sl_seat_receive(d->seat, err)) || (rc = meet_ranks(d, err)))
        return rc;
    for (int e = 0; e < d->model->family.experts; e++) {
        if ((rc = sl_seat_loader(&d->loaders[e], d->seat, &d->ctx, PARTS[e], err))) return rc;
        if (!(d->dit[e] = sl_dit_new(&d->model->dit[e], d->loaders[e])))
            return sl_fail(err, SL_NOMEM, "%s: no memory", sl_part_name(PARTS[e]));
        if (d->load_team.size > 1)
            sl_loader_share(d->loaders[e], d->seat->mates.comm, SL_LANE_TEAM, &d->load_team);
        if ((rc = sl_loader_finish(d->loaders[e], err))) break;
        bytes += sl_loader_bytes(d->loaders[e]);
    }
    if (d->load_team.size > 1) {
        sl_comm_end(&d->ctx, d->seat->mates.comm);
        sl_ctx_error(&d->ctx, NULL); /* of a neighbour that failed when all was here */
    }
    if (rc) return rc;
    sl_seat_ready(d->seat, t0, bytes, 0);
    return SL_OK;
}

void sl_denoiser_close(denoiser *d)
{
    for (int e = 0; e < SL_EXPERTS; e++) {
        sl_merge_close(&d->merge[e]);
        sl_dit_free(&d->dit[e]);
        sl_loader_close(&d->loaders[e]);
    }
    if (d->seat) sl_mates_close(&d->seat->mates);
    sl_ctx_close(&d->ctx);
}

enum { CONDITION, CLIP }; /* tensors of the pictures' hand-over */

static int branches(const denoise_run *r)
{
    return sl_denoise_branches(r->job);
}

/* Latent frame 0 is the picture's, before every forward and in the result. The sampler has moved it
 * along with the others, by what the model says of tokens that have no noise: nothing. */
static void keep_frame(denoise_run *r)
{
    const int64_t z = r->shape[0], plane = r->shape[2] * r->shape[3];
    if (!r->mem.kept.rank) return;
    const sl_tensor all = sl_reshape2(&r->sampler.x, z, r->shape[1] * plane),
                    first = sl_cols(&all, 0, plane), kept = sl_reshape2(&r->mem.kept, z, plane);
    sl_copy(&r->d->ctx, &first, &kept);
}

/* ---- state: what a killed denoiser goes on from ----
 *
 * The state is the sampler's before a step, and is written only when that step computed
 * in every branch. The First Block Cache's residuals (several hidden states, gigabytes)
 * need not be in it then: the resumed process repeats that step with the decision
 * "compute", which remakes them bit for bit. */

/* Of a state's "precision". */
enum { WORDS = SL_EXPERTS * SL_PRECISION_WORDS };

/* How the weights compute for this job. */
static void precision_words(const denoise_run *r, int64_t out[WORDS])
{
    memset(out, 0, sizeof *out * WORDS);
    for (int e = 0; e < r->d->model->family.experts; e++)
        sl_dit_precision_words(out + e * SL_PRECISION_WORDS, &r->d->model->dit[e].precision,
                               sl_precision_attends(r->job->precision));
}

/* *same: the state's tensor `name` has these n numbers; one without it was made under zeros. Else
 * `what` it was made under is told. */
static sl_code compare_state(const denoise_run *r, const sl_st *st, const char *name, int64_t n,
                             const void *now, const char *what, bool *same, sl_err *err)
{
    const int64_t zeros[WORDS] = {0};
    sl_tensor t;
    sl_code rc = SL_OK;
    const bool there = sl_st_find(st, name);
    if (there && (rc = sl_st_want(st, name, SL_I64, 1, &n, &t, err))) return rc;
    *same = !memcmp(there ? t.data : zeros, now, sizeof(int64_t) * (size_t)n);
    if (!*same)
        sl_log(SL_LOG_WARN, "job %llu begins anew: its state was made under another %s",
               (unsigned long long)r->msg->job, what);
    return SL_OK;
}

/* Was the state made under the LoRA that the weights have now, and in their precision? */
static sl_code same_weights(const denoise_run *r, const sl_st *st, bool *same, sl_err *err)
{
    int64_t words[WORDS];
    precision_words(r, words);
    sl_code rc = compare_state(r, st, "lora", SL_EXPERTS, r->d->lora, "LoRA", same, err);
    if (!rc && *same)
        rc = compare_state(r, st, "precision", WORDS, words, "setting of the precision", same, err);
    return rc;
}

/* Timestep and noise at the step where a fork begins are those of its state, whatever the sampler.
 * */
static sl_code fork_schedule(denoise_run *r, sl_err *err)
{
    char path[SL_PATH];
    int64_t level[SL_LEVEL_COUNT];
    sl_st *st = NULL;
    sl_tensor t;
    sl_code rc = sl_path_join(path, r->msg->dir, SL_FORK_FILE, err);
    if (!rc) rc = sl_st_open_file(&st, path, err);
    if (!rc && !(rc = sl_st_want(st, "level", SL_I64, 1, (int64_t[]){SL_LEVEL_COUNT}, &t, err))) {
        memcpy(level, t.data, sizeof level);
        const uint32_t sigma = (uint32_t)level[SL_LEVEL_SIGMA];
        memcpy(&r->schedule.timesteps[r->job->fork], &level[SL_LEVEL_TIMESTEP], sizeof(double));
        memcpy(&r->schedule.sigmas[r->job->fork], &sigma, sizeof sigma);
        r->fork_sampler = (int)level[SL_LEVEL_SAMPLER];
    }
    sl_st_close(&st);
    return rc;
}

/* What the numbers of a state say. A fork's first step is compared with none; another sampler knows
 * nothing of the history. */
static sl_code take_meta(denoise_run *r, const sl_st *st, bool fork, sl_err *err)
{
    sl_tensor meta, metrics;
    int64_t v[SL_META_COUNT];
    sl_code rc;
    if ((rc = sl_st_want(st, "meta", SL_I64, 1, (int64_t[]){SL_META_COUNT}, &meta, err)) ||
        (rc = sl_st_want(st, "metrics", SL_F32, 1, (int64_t[]){SL_BRANCHES}, &metrics, err)))
        return rc;
    memcpy(v, meta.data, sizeof v);
    if (v[SL_META_STEP] < 1 || v[SL_META_STEP] >= r->schedule.steps || v[SL_META_ORDER] < 0 ||
        v[SL_META_ORDER] > 2 || v[SL_META_ORDER] > v[SL_META_STEP] || v[SL_META_HISTORY] < 0 ||
        v[SL_META_HISTORY] > 2 || v[SL_META_HISTORY] > v[SL_META_STEP])
        return sl_fail(err, SL_FORMAT, "%s: step %lld of %d makes no sense", sl_st_path(st, 0),
                       (long long)v[SL_META_STEP], r->schedule.steps);
    const bool forgets = fork && r->fork_sampler != (int)r->schedule.kind;
    r->sampler.step = (int)v[SL_META_STEP];
    r->sampler.last_order = forgets ? 0 : (int)v[SL_META_ORDER];
    r->sampler.history = forgets ? 0 : (int)v[SL_META_HISTORY];
    memcpy(r->replay_metric, metrics.data, sizeof r->replay_metric);
    for (int b = 0; b < SL_BRANCHES && fork; b++) r->replay_metric[b] = NAN;
    r->replay = true;
    return SL_OK;
}

/* A state of the job's folder, if it is there and was made under the LoRA that the weights have and
 * in their precision; a fork's begins under any. */
static sl_code take_state(denoise_run *r, const char *file, bool fork, sl_err *err)
{
    static const char *const NAMES[4] = {"x", "last", "m0", "m1"};
    char path[SL_PATH];
    sl_st *st = NULL;
    bool same = true;
    float *x[4] = {0};
    sl_code rc = sl_path_join(path, r->msg->dir, file, err);
    if (rc || access(path, R_OK)) return rc;
    if ((rc = sl_st_open_file(&st, path, err))) return rc;
    if ((!fork && ((rc = same_weights(r, st, &same, err)) || !same)) ||
        (rc = take_meta(r, st, fork, err)))
        goto done;
    for (int i = 0; i < 4; i++)
        if ((rc = sl_parcel_read(&x[i], st, NAMES[i], 4, r->shape, err))) goto done;
    sl_upload(&r->d->ctx, &r->sampler.x, x[0]);
    sl_upload(&r->d->ctx, &r->sampler.last, x[1]);
    sl_upload(&r->d->ctx, &r->sampler.m0, x[2]);
    sl_upload(&r->d->ctx, &r->sampler.m1, x[3]);
    sl_sync(&r->d->ctx); /* before they are freed */
    sl_log(SL_LOG_INFO, "job %llu %s at step %d of %d", (unsigned long long)r->msg->job,
           fork ? "begins" : "goes on", r->sampler.step + 1, r->schedule.steps);
done:
    for (int i = 0; i < 4; i++) free(x[i]);
    sl_st_close(&st);
    return rc;
}

static sl_code restore_state(denoise_run *r, sl_err *err)
{
    sl_code rc = take_state(r, SL_STATE_FILE, false, err);
    if (rc || r->replay || !r->job->fork) return rc;
    return take_state(r, SL_FORK_FILE, true, err);
}

/* Copy the state to the host; save_state writes that copy once the step's decisions are
 * known. */
static void hold_state(denoise_run *r)
{
    const sl_sampler *s = &r->sampler;
    int64_t n = sl_count(&s->x);
    const sl_tensor *const from[4] = {&s->x, &s->last, &s->m0, &s->m1};
    for (int i = 0; i < 4; i++) sl_download(&r->d->ctx, r->now.data + i * n, from[i]);
    /* what was never written so far */
    for (int i = 2 + s->history; i < 4; i++)
        memset(r->now.data + i * n, 0, (size_t)n * sizeof(float));
    if (s->step == 0) memset(r->now.data + n, 0, (size_t)n * sizeof(float));
    const int64_t meta[SL_META_COUNT] = {s->step, s->last_order, s->history};
    memcpy(r->now.meta, meta, sizeof meta);
    r->now.whole = true;
    for (int b = 0; b < SL_BRANCHES; b++) r->now.metrics[b] = NAN; /* nothing was compared yet */
}

/* The step after the held state has come to these decisions: that state is the one to go on from,
 * if all of it was computed. true: it is. */
static bool keep_state(denoise_run *r, const sl_fbcache_report reports[SL_BRANCHES])
{
    if (!r->now.whole || !reports[0].computed || !reports[1].computed) return false;
    for (int b = 0; b < SL_BRANCHES; b++) r->now.metrics[b] = reports[b].metric;
    if (!r->last.data) return true;
    denoise_state t = r->last;
    r->last = r->now;
    r->now = t;
    r->now.whole = false;
    return true;
}

/* file: "state", from which a killed denoiser goes on, or "state.K", a dump's. */
static void write_state(denoise_run *r, denoise_state *s, const char *file, bool computed)
{
    static const char *const NAMES[] = {"x",       "last", "m0",    "m1",       "meta",
                                        "metrics", "lora", "level", "precision"};
    const int step = (int)s->meta[SL_META_STEP];
    const int64_t n = sl_count(&r->sampler.x);
    int64_t level[SL_LEVEL_COUNT] = {
        [SL_LEVEL_COMPUTED] = computed, [SL_LEVEL_SAMPLER] = (int64_t)r->schedule.kind};
    uint32_t sigma;
    int64_t words[WORDS];
    sl_tensor t[9];
    memcpy(&sigma, &r->schedule.sigmas[step], sizeof sigma);
    level[SL_LEVEL_SIGMA] = sigma;
    memcpy(&level[SL_LEVEL_TIMESTEP], &r->schedule.timesteps[step], sizeof(double));
    for (int i = 0; i < 4; i++) t[i] = sl_view(s->data + i * n, SL_F32, 4, r->shape);
    t[4] = sl_view1(s->meta, SL_I64, SL_META_COUNT);
    t[5] = sl_view1(s->metrics, SL_F32, SL_BRANCHES);
    t[6] = sl_view1(r->d->lora, SL_I64, SL_EXPERTS);
    t[7] = sl_view1(level, SL_I64, SL_LEVEL_COUNT);
    precision_words(r, words);
    t[8] = sl_view1(words, SL_I64, WORDS);
    sl_spool_write(&r->d->seat->spool, r->msg, file, false, 9, NAMES, t);
}

static void save_state(denoise_run *r, denoise_state *s)
{
    write_state(r, s, "state", true);
    r->since_saved = 0;
}

/* With --dump-steps: the state before the step that has just been done. */
static void dump_state(denoise_run *r, const sl_fbcache_report reports[SL_BRANCHES])
{
    char file[32];
    if (!r->job->dump_steps || !r->now.whole || !r->now.meta[SL_META_STEP]) return;
    for (int b = 0; b < SL_BRANCHES; b++) r->now.metrics[b] = reports[b].metric;
    snprintf(file, sizeof file, "state.%d", (int)r->now.meta[SL_META_STEP]);
    write_state(r, &r->now, file, reports[0].computed && reports[1].computed);
}

/* ---- preview ---- */

#define PREVIEW_MS 2000 /* longest wait for the last one */

/* Latent frame t of x [., T, h, w] from channel `first` on, as many as y has: y [z, h * w]. */
static void copy_frame(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, int64_t first,
                       int64_t t)
{
    const int64_t plane = x->shape[2] * x->shape[3];
    const sl_tensor all = sl_reshape2(x, x->shape[0], x->shape[1] * plane),
                    rows = sl_rows(&all, first, y->shape[0]),
                    frame = sl_cols(&rows, t * plane, plane);
    sl_copy(ctx, y, &frame);
}

/* Without one the job goes on. The device's errors are ctx's. */
static void open_preview(denoise_run *r)
{
    sl_ctx *ctx = &r->d->ctx;
    const int64_t z = r->shape[0], h = r->shape[2], w = r->shape[3];
    const sl_tensor *picture = r->mem.kept.rank ? &r->mem.kept : &r->mem.condition;
    const int64_t mask = picture->rank ? picture->shape[0] - z : -1;
    float *first = mask >= 0 ? malloc((size_t)(z * h * w) * sizeof *first) : NULL;
    sl_err err = {0};
    if (first) {
        const size_t mark = sl_mark(ctx);
        const sl_tensor frame = sl_new2(ctx, SL_F32, z, h * w);
        copy_frame(ctx, &frame, picture, mask, 0);
        sl_download(ctx, first, &frame);
        sl_release(ctx, mark);
    }
    if (sl_ok(ctx) &&
        sl_preview_open(&r->preview, r->job, r->msg->dir, first, (int)z, (int)h, (int)w, &err))
        sl_log(SL_LOG_WARN, "%s", err.msg);
    free(first);
}

/* The clean latents that the last step has found, their frame in the middle; unless the picture
 * before is still being drawn. */
static void show_preview(denoise_run *r)
{
    sl_ctx *ctx = &r->d->ctx;
    float *to = r->preview ? sl_preview_frame(r->preview) : NULL, weights[2];
    const sl_tensor *of[2];
    if (!to) return;
    const size_t mark = sl_mark(ctx);
    const int64_t z = r->shape[0], middle = r->shape[1] / 2, plane = r->shape[2] * r->shape[3];
    const sl_tensor frame[2] = {sl_new2(ctx, SL_F32, z, plane), sl_new2(ctx, SL_F32, z, plane)};
    sl_sampler_clean(&r->sampler, of, weights);
    for (int i = 0; i < 2 && of[i]; i++) copy_frame(ctx, &frame[i], of[i], 0, middle);
    if (of[1]) sl_lincomb(ctx, &frame[0], 2, (const sl_tensor *[]){&frame[0], &frame[1]}, weights);
    sl_download(ctx, to, &frame[0]);
    sl_release(ctx, mark);
    if (sl_ok(ctx)) sl_preview_show(r->preview);
}

/* The last one shows the job's latents; it is drawn while they are handed over. */
static void show_last_preview(denoise_run *r)
{
    if (r->preview && sl_preview_wait(r->preview, PREVIEW_MS)) show_preview(r);
}

/* ---- start ---- */

/* Keys and values of text and pictures, for each expert and branch. */
static void make_contexts(denoise_run *r, const denoise_inputs *in)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_parcel_tensor *clip = in->image.count > CLIP ? &in->image.at[CLIP] : NULL;
    for (int e = 0; e < r->d->model->family.experts; e++)
        for (int b = 0; b < in->text.count; b++) {
            if (!sl_denoise_has(&r->team.split, r->job, b)) continue;
            size_t mark = sl_mark(ctx);
            sl_tensor text = sl_new(ctx, sl_act(ctx), 2, in->text.at[b].host.shape), image = {0};
            if (clip) image = sl_new(ctx, sl_act(ctx), 2, clip->host.shape);
            sl_parcel_place(ctx, &text, &in->text.at[b]);
            if (clip) sl_parcel_place(ctx, &image, clip);
            if (e == 0) sl_denoise_taps_at(&r->taps, ctx, -1, b);
            sl_dit_context_make(ctx, r->d->dit[e], &r->mem.context[e][b],
                                r->mem.context_memory[e][b], &text, clip ? &image : NULL);
            sl_denoise_taps_off(ctx);
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
    ctx->tap_user = &r->taps;
    sl_denoise_take(ctx, &r->mem, of);
    make_contexts(r, in);
    if (in->image.count)
        sl_parcel_place(ctx, r->mem.kept.rank ? &r->mem.kept : &r->mem.condition,
                        &in->image.at[CONDITION]);
    r->sampler = r->mem.sampler;
    r->sampler.schedule = &r->schedule;
    sl_upload(ctx, &r->sampler.x, r->noise);
    keep_frame(r);
    if ((rc = restore_state(r, err))) return rc;
    sl_sync(ctx);
    /* nobody writes to a window before all have read their inputs there */
    if ((rc = sl_denoise_shares_begin(&r->team, ctx, &r->mem, err))) return rc;
    if (r->team.comm) sl_comm_take_stats(r->team.comm); /* the report is of steps */
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
    const sl_sampler_kind kind = (sl_sampler_kind)sl_sampler_by_name(job->sampler);
    if ((rc = sl_schedule_make(&r->schedule, kind, job->steps, job->shift, err)) ||
        (job->fork && (rc = fork_schedule(r, err))))
        return rc;
    /* on the host */
    if ((rc = sl_seat_noise(&r->noise, msg, job, r->shape, err))) return rc;
    if (sl_denoise_leads(&r->team)) {
        const size_t bytes = (size_t)n * 4 * sizeof(float);
        bool both = job->fbcache > 0 && d->seat->mates.comm;
        if ((rc = sl_parcel_make(&r->out, d->seat, NULL, SL_HANDOVER_LATENTS, job, err))) return rc;
        if (!(r->now.data = sl_seat_host_alloc(d->seat, bytes)) ||
            (both && !(r->last.data = sl_seat_host_alloc(d->seat, bytes))))
            return sl_fail(err, SL_NOMEM, "denoise: no memory for a state");
    }
    if ((rc = sl_denoise_taps_open(&r->taps, job, d->model->dit[0].layers, msg->dir,
                                   &d->seat->spool.origin, err)))
        return rc;
    /* the arena, of the size that a plan counts */
    const sl_denoise_sizes of = {.model = d->model,
                                 .dit = d->dit,
                                 .job = job,
                                 .schedule = &r->schedule,
                                 .split = &r->team.split,
                                 .comm = r->team.comm,
                                 .tap = *r->taps.dir ? sl_denoise_tap : NULL,
                                 .round_rope = !strcmp(d->seat->conf.denoise.rope, "bfloat16")};
    if ((rc = sl_denoise_arena(&arena, ctx->ops, &of, err)) ||
        (rc = sl_ctx_reserve(ctx, arena.peak, err)))
        return rc;
    sl_control_span(&d->seat->control, msg->job, SL_SPAN_HANDOVER, t0);
    rc = fill_memory(r, &of, in, err);
    if (!rc && *job->preview && sl_denoise_leads(&r->team)) {
        open_preview(r);
        if (!sl_ok(ctx)) rc = sl_ctx_error(ctx, err);
    }
    sl_log(SL_LOG_DEBUG, "job %llu: arena %.1f MB, ready in %.1f ms", (unsigned long long)msg->job,
           (double)arena.peak * 1e-6, (double)(sl_now_ns() - t0) * 1e-6);
    return rc;
}

/* ---- one step ---- */

static void report_step(denoise_run *r, int step, int64_t t0_ns,
                        const sl_fbcache_report reports[SL_BRANCHES])
{
    const double seconds = (double)(sl_now_ns() - t0_ns) * 1e-9;
    sl_msg m = {.type = SL_MSG_STEP};
    m.step = (sl_msg_step){.job = r->msg->job,
                           .attempt = r->msg->attempt,
                           .step = (uint32_t)step,
                           .steps = (uint32_t)r->schedule.steps,
                           .t0_ns = t0_ns,
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

/* The forwards of this member's branches. */
static void run_forwards(denoise_run *r, int e, sl_fbcache_report reports[SL_BRANCHES])
{
    sl_ctx *ctx = &r->d->ctx;
    const int i = r->sampler.step;
    for (int b = 0; b < branches(r); b++) {
        if (!sl_denoise_has(&r->team.split, r->job, b)) continue;
        sl_fbcache *cache = r->job->fbcache > 0 ? &r->mem.cache[e][b] : NULL;
        if (cache) {
            cache->step = i, cache->steps = r->schedule.steps;
            cache->force = r->replay ? 1 : 0;
        }
        sl_denoise_taps_at(&r->taps, ctx, i, b);
        const sl_dit_input in = {.latents = &r->sampler.x,
                                 .condition = r->mem.condition.rank ? &r->mem.condition : NULL,
                                 .times = &r->mem.times[e],
                                 .step = i,
                                 .kept_frames = r->mem.kept.rank > 0,
                                 .kept_step = r->schedule.steps,
                                 .rope = &r->mem.rope,
                                 .context = &r->mem.context[e][b],
                                 .cache = cache,
                                 .share = r->mem.share.team.size ? &r->mem.share : NULL,
                                 .whole_attention = !sl_precision_attends(r->job->precision)};
        sl_dit_forward(ctx, r->d->dit[e], &r->mem.v[b], &in, &reports[b]);
        sl_denoise_taps_off(ctx);
        if (r->replay) reports[b].metric = r->replay_metric[b];
    }
}

/* Of what a member computes in a step, that which goes with its rows. */
static double part_of_rows(const denoise_run *r, int e)
{
    return sl_dit_part_of_rows(r->d->dit[e], r->mem.share.tokens,
                               sl_image_tokens(r->d->model, r->job));
}

/* The most of the device that all processes have taken. */
static void look_at_device(denoise_run *r)
{
    size_t left = 0, all = 0;
    sl_err ignored = {0};
    const sl_plugin *p = r->d->seat->plugin;
    if (!p || p->memory(atoi(r->d->seat->device + 5), &left, &all, &ignored)) return;
    if (all - left > r->device_bytes) r->device_bytes = all - left;
}

sl_code sl_denoise_step(denoise_run *r, sl_err *err)
{
    sl_ctx *ctx = &r->d->ctx;
    const sl_model *model = r->d->model;
    const bool leads = sl_denoise_leads(&r->team);
    int i = r->sampler.step, every = r->d->seat->conf.denoise.state_every;
    bool due = i > 0 && every > 0 && ++r->since_saved >= every && !r->replay;
    int e = model->family.experts > 1 && r->schedule.timesteps[i] < model->boundary_ratio * 1000
                ? 1
                : 0;
    double g = e ? r->job->guidance_2 : r->job->guidance;
    sl_fbcache_report reports[SL_BRANCHES] = {{NAN, true}, {NAN, true}};
    sl_tensor v[SL_BRANCHES] = {r->mem.v[0], r->mem.v[1]};
    bool park = false;
    size_t mark = sl_mark(ctx);
    sl_code rc = sl_turn_begin(&r->d->seat->turn, SL_TURN_STEP, "step", i + 1, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    if (leads && (due || r->last.data || r->job->dump_steps)) hold_state(r);

    /* a forward a branch, guidance, the sampler's update */
    sl_denoise_shares_clock(&r->team);
    run_forwards(r, e, reports);
    sl_denoise_team_meet(&r->team, ctx, v);
    if (r->cfg) sl_guidance(ctx, &r->mem.v[0], &v[0], &v[1], (float)g);
    sl_sampler_step(ctx, &r->sampler, &r->mem.v[0]);
    keep_frame(r);
    sl_sync(ctx);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_denoise_shares_clocked(&r->team, reports[0].computed && reports[1].computed);
    sl_turn_end(&r->d->seat->turn, i + 1 < r->schedule.steps);
    sl_release(ctx, mark);
    r->replay = false;

    /* what came of it: finite or not, a state to go on from, the report */
    if (leads && (rc = look_at(r, i, err))) return rc;
    if (i + 1 < r->schedule.steps) show_preview(r);
    park = sl_control_parked(&r->d->seat->control);
    sl_denoise_team_agree(&r->team, ctx, reports, &park);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    r->parked = park && i + 1 < r->schedule.steps;
    r->steps_done++;
    r->steps_s += (double)(sl_now_ns() - t0) * 1e-9;
    if (r->steps_done == 1) look_at_device(r);
    if (leads) {
        dump_state(r, reports);
        if (keep_state(r, reports) && due) save_state(r, r->last.data ? &r->last : &r->now);
        report_step(r, i, t0, reports);
    }
    if (!r->parked && i + 1 < r->schedule.steps) {
        sl_denoise_shares_next(&r->team, ctx, &r->mem, part_of_rows(r, e));
        if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    }
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
    sl_st_note notes[SL_ORIGIN_NOTES];
    sl_code rc;
    if ((rc = sl_spool_flush(&r->d->seat->spool, err))) return rc;
    if ((rc = sl_stw_open(&w, path, err)) ||
        (rc = sl_stw_notes(w, sl_origin_notes(notes, &r->d->seat->spool.origin), notes, err)) ||
        (rc = sl_stw_declare(w, "noise", SL_F32, 4, r->shape, err)) ||
        (rc = sl_stw_declare(w, "latents", SL_F32, 4, r->shape, err)))
        goto done;
    for (int i = r->job->fork; i < r->schedule.steps; i++) {
        snprintf(name, sizeof name, "step.%d.latents", i);
        if ((rc = sl_stw_declare(w, name, SL_F32, 4, r->shape, err))) goto done;
    }
    if ((rc = sl_stw_write(w, "noise", r->noise, 0, bytes, err)) ||
        (rc = sl_stw_write(w, "latents", r->out.at[0].host.data, 0, bytes, err)))
        goto done;
    for (int i = r->job->fork; i < r->schedule.steps && !rc; i++) {
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

/* The dump cannot have the steps; the latents go on without them, and the client will be told. */
static void give_up_steps(denoise_run *r, const sl_err *why)
{
    sl_msg m = {.type = SL_MSG_SPOOLED,
                .spooled = {.job = r->msg->job, .attempt = r->msg->attempt, .code = why->code}};
    snprintf(m.spooled.name, sizeof m.spooled.name, "%s", SL_HANDOVER[r->out.handover].file);
    snprintf(m.spooled.message, sizeof m.spooled.message, "%.500s", why->msg);
    sl_control_send(&r->d->seat->control, &m);
}

/* What this member did, for the report. */
static void say_share(denoise_run *r)
{
    const denoise_team *t = &r->team;
    sl_comm_stats s = {0};
    if (!r->d->seat->mates.comm) return;
    if (t->comm) s = sl_comm_take_stats(t->comm);
    sl_msg m = {
        .type = SL_MSG_SHARE,
        .share = {.job = r->msg->job,
                  .attempt = r->msg->attempt,
                  .instance = (uint32_t)r->d->seat->instance,
                  .size = (uint32_t)t->whole.size,
                  .me = (uint32_t)t->whole.me,
                  .steps = (uint32_t)r->steps_done,
                  .rows = sl_denoise_shares_mean(t),
                  .step_s = r->steps_s,
                  .exchange_s = (double)s.waited_ns[SL_LANE_SHARD] * 1e-9,
                  .wait_s = (double)(s.waited_ns[SL_LANE_MEET] + s.waited_ns[SL_LANE_TEAM]) * 1e-9,
                  .sent_bytes = s.sent_bytes,
                  .device_bytes = r->device_bytes}};
    snprintf(m.share.stage, sizeof m.share.stage, "%s", sl_role_name(r->d->seat->role));
    sl_control_send(&r->d->seat->control, &m);
}

sl_code sl_denoise_park(denoise_run *r, sl_err *err)
{
    sl_seat *seat = r->d->seat;
    int64_t t0 = sl_now_ns();
    sl_preview_close(&r->preview); /* another process goes on with it */
    sl_msg m = {.type = SL_MSG_PARKED,
                .parked = {.job = r->msg->job,
                           .attempt = r->msg->attempt,
                           .step = (uint32_t)r->sampler.step}};
    if (sl_denoise_leads(&r->team)) {
        sl_code rc;
        if (!r->last.data) hold_state(r);
        if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
        denoise_state *s = r->last.data ? &r->last : &r->now;
        /* without one the job begins anew: only before the first step that computed */
        if (s->whole && s->meta[SL_META_STEP] > 0) save_state(r, s);
        if ((rc = sl_spool_flush(&seat->spool, err))) return rc;
        m.parked.step = (uint32_t)s->meta[SL_META_STEP];
    }
    sl_turn_end(&seat->turn, false);
    sl_control_span(&seat->control, r->msg->job, SL_SPAN_HANDOVER, t0);
    say_share(r);
    sl_seat_begin(seat, NULL);
    sl_control_send(&seat->control, &m);
    return SL_OK;
}

sl_code sl_denoise_finish(denoise_run *r, sl_err *err)
{
    if (!sl_denoise_leads(&r->team)) {
        say_share(r);
        sl_seat_done(r->d->seat, r->msg, NULL, r->d->ctx.arena_peak, 0);
        return SL_OK;
    }
    sl_seat *seat = r->d->seat;
    const sl_tensor noise = sl_view(r->noise, SL_F32, 4, r->shape);
    char path[SL_PATH];
    int64_t t0 = sl_now_ns();
    sl_tickets out = {0};
    sl_code rc;
    sl_download(&r->d->ctx, r->out.at[0].host.data, &r->sampler.x);
    show_last_preview(r);
    if (!sl_ok(&r->d->ctx)) return sl_ctx_error(&r->d->ctx, err);
    r->out.at[0].device = r->sampler.x;
    sl_parcel_add(&r->out, "noise", &noise);
    /* first what can fail: a slot that was handed over is not taken back */
    if (r->job->dump_steps) {
        sl_err lost = {0};
        if ((rc = sl_parcel_path(path, &r->out, r->msg, err))) return rc;
        if (write_with_steps(r, path, &lost)) give_up_steps(r, &lost);
        else r->out.written = true;
    }
    sl_parcel_hand(&r->out, seat, &r->d->ctx, r->msg, &out);
    sl_preview_close(&r->preview); /* written: the job's folder may go some time after DONE */
    sl_control_span(&seat->control, r->msg->job, SL_SPAN_HANDOVER, t0);
    say_share(r);
    sl_seat_done(seat, r->msg, &out, r->d->ctx.arena_peak, 0);
    return SL_OK;
}

void sl_denoise_end(denoise_run *r)
{
    free(r->noise);
    sl_preview_close(&r->preview); /* the job's folder may go once FAILED is said */
    sl_denoise_taps_close(&r->taps);
    if (r->d) {
        sl_ctx_error(&r->d->ctx, NULL); /* empties the arena */
        sl_parcel_drop(&r->out, r->d->seat);
        sl_seat_host_free(r->d->seat, r->now.data);
        sl_seat_host_free(r->d->seat, r->last.data);
    }
    memset(r, 0, sizeof *r);
}
