/* sluice-decode - latents [16, T, h/8, w/8] -> 8-bit RGB frames [n, h, w, 3], chunk by
 * chunk, straight into the receiver's slots. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "graphs/vae.h"
#include "stages/seat/chunk.h"
#include "stages/seat/loop.h"
#include "stages/seat/parcel.h"
#include "stages/sizes/sizes.h"

typedef struct {
    sl_seat *seat;
    sl_ctx ctx;
    sl_loader *loader;
    sl_vae_decoder *vae;
} decode_stage;

/* One job's. */
typedef struct {
    const sl_msg_job *msg;
    const sl_job *job;
    sl_grid grid;
    sl_vae_decode *d;
    sl_parcel in;
    sl_tensor latents; /* F32 [z, T, h/8, w/8], where the decoder computes */
    int frames;        /* sent so far */
} video;

static bool is_on_host(const decode_stage *s)
{
    return s->ctx.ops->host_memory;
}

static sl_code decode_open(decode_stage *s, sl_err *err)
{
    const sl_model *model = &s->seat->model;
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = sl_seat_context(s->seat, &s->ctx, err)) || (rc = sl_seat_receive(s->seat, err)))
        return rc;
    if ((rc = sl_seat_loader(&s->loader, s->seat, &s->ctx, SL_PART_VAE, err))) return rc;
    if (!(s->vae = sl_vae_decoder_new(&model->vae, s->loader)))
        return sl_fail(err, SL_NOMEM, "vae: no memory");
    if ((rc = sl_loader_finish(s->loader, err))) return rc;
    sl_seat_ready(s->seat, t0, sl_loader_bytes(s->loader), 0);
    return SL_OK;
}

static void decode_close(decode_stage *s)
{
    sl_vae_decoder_free(&s->vae);
    sl_loader_close(&s->loader);
    sl_ctx_close(&s->ctx);
}

/* The whole latents, where the decoder computes: a CPU reads them where they were taken,
 * a device has them in its arena, and the slot is free at once. */
static sl_code take_latents(decode_stage *s, video *v, sl_err *err)
{
    sl_code rc = sl_parcel_take(&v->in, s->seat, &s->ctx, v->msg, v->job, SL_HANDOVER_LATENTS, err);
    if (rc) return rc;
    v->latents = v->in.at[0].host;
    if (is_on_host(s)) return SL_OK;
    v->latents = sl_new(&s->ctx, SL_F32, v->latents.rank, v->latents.shape);
    sl_parcel_place(&s->ctx, &v->latents, &v->in.at[0]);
    sl_parcel_drop(&v->in, s->seat);
    return sl_ok(&s->ctx) ? SL_OK : sl_ctx_error(&s->ctx, err);
}

/* 8 bits cannot hold a NaN: it is looked for in the frames before they are rounded. On a
 * device by their mean, which one of them spoils; only to name it they are brought here. */
static sl_code check_frames(decode_stage *s, int first, const sl_tensor *floats, sl_err *err)
{
    sl_tensor host = *floats;
    float mean[2] = {0, 0};
    char name[48];
    if (!is_on_host(s)) {
        sl_mean_abs(&s->ctx, mean, floats, floats);
        if (!sl_ok(&s->ctx)) return sl_ctx_error(&s->ctx, err);
        if (isfinite(mean[1])) return SL_OK;
        if (!(host.data = malloc(sl_bytes(floats) + 1)))
            return sl_fail(err, SL_NOMEM, "decode: no memory for %zu bytes", sl_bytes(floats));
        sl_download(&s->ctx, host.data, floats);
    }
    snprintf(name, sizeof name, "frames from %d on", first);
    sl_code rc = sl_ok(&s->ctx) ? SL_OK : sl_ctx_error(&s->ctx, err);
    if (!rc) rc = sl_seat_finite(name, &host, (sl_loader *[]){s->loader, NULL}, err);
    if (!is_on_host(s)) free(host.data);
    return rc;
}

/* Latent frames [at, at + n) into the slot. */
static sl_code compute(decode_stage *s, video *v, sl_chunk *c, int64_t at, int64_t n, sl_err *err)
{
    const sl_grid *g = &v->grid;
    int64_t z = v->latents.shape[0], plane = g->latent_height * g->latent_width;
    sl_tensor in = sl_new4(&s->ctx, SL_F32, z, n, g->latent_height, g->latent_width);
    sl_tensor all = sl_reshape2(&v->latents, z, g->latent_frames * plane),
              part = sl_cols(&all, at * plane, n * plane), rows = sl_reshape2(&in, z, n * plane);
    /* a CPU computes into the slot itself */
    sl_tensor rgb = is_on_host(s) ? c->t : sl_new(&s->ctx, SL_U8, c->t.rank, c->t.shape);
    sl_tensor floats = sl_new(&s->ctx, sl_act(&s->ctx), c->t.rank, c->t.shape);
    sl_copy(&s->ctx, &rows, &part);
    sl_vae_decode_chunk(&s->ctx, v->d, &rgb, &floats, &in);
    sl_chunk_fill(c, s->seat, &s->ctx, &rgb);
    return sl_ok(&s->ctx) ? check_frames(s, v->frames, &floats, err) : sl_ctx_error(&s->ctx, err);
}

/* Decode latent frames [at, at + n) into a slot and send it on. */
static sl_code decode_chunk(decode_stage *s, video *v, int64_t at, int64_t n, sl_err *err)
{
    int index = (int)(at / SL_CHUNK_LATENTS), frames = sl_vae_frames_of(v->d, (int)n);
    sl_chunk c = {.msg = {.handover = SL_HANDOVER_FRAMES,
                          .index = (uint32_t)index,
                          .chunks = (uint32_t)v->grid.chunks,
                          .frames = (uint32_t)frames}};
    size_t mark = sl_mark(&s->ctx);
    sl_code rc = sl_chunk_open(&c, s->seat, &s->ctx, v->msg, v->job, err);
    if (!rc) rc = sl_turn_begin(&s->seat->turn, SL_TURN_PIECE, "chunk", index + 1, err);
    int64_t t0 = sl_now_ns();
    if (!rc) rc = compute(s, v, &c, at, n, err);
    if (!rc) {
        sl_turn_end(&s->seat->turn, at + n < v->grid.latent_frames);
        sl_control_span(&s->seat->control, v->msg->job, SL_SPAN_COMPUTE, t0);
        rc = sl_chunk_give(&c, s->seat, err);
    }
    v->frames += frames;
    sl_chunk_drop(&c);
    sl_release(&s->ctx, mark);
    return rc;
}

static sl_code decode_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    decode_stage *s = self;
    video v = {.msg = msg, .job = job, .grid = sl_job_grid(&s->seat->model, job)};
    int64_t t0 = sl_now_ns(), t = v.grid.latent_frames;
    sl_msg taken = {.type = SL_MSG_TAKEN, .taken = {.job = msg->job, .attempt = msg->attempt}};
    sl_arena arena;
    sl_code rc = sl_arena_decode(&arena, s->ctx.ops, &s->seat->model, s->vae, job, err);
    if (rc || (rc = sl_ctx_reserve(&s->ctx, arena.peak, err))) goto done;
    sl_tensor caches = sl_new1(
        &s->ctx, SL_U8, (int64_t)sl_vae_decode_bytes(&s->ctx, s->vae, job->height, job->width));
    if ((rc = take_latents(s, &v, err))) goto done;
    sl_control_send(&s->seat->control, &taken);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_HANDOVER, t0);
    v.d = sl_vae_decode_start(&s->ctx, s->vae, job->height, job->width, caches.data);
    if (!v.d) rc = sl_ctx_error(&s->ctx, err);
    for (int64_t at = 0; at < t && !rc; at += SL_CHUNK_LATENTS) {
        int64_t begun = sl_now_ns(), n = t - at < SL_CHUNK_LATENTS ? t - at : SL_CHUNK_LATENTS;
        if ((rc = decode_chunk(s, &v, at, n, err))) break;
        sl_control_progress(&s->seat->control, msg, (int)(at + n), (int)t,
                            (double)(sl_now_ns() - begun) * 1e-9);
    }
    if (!rc) sl_seat_done(s->seat, msg, NULL, s->ctx.arena_peak, 0);
done:
    sl_vae_decode_free(&v.d);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    sl_parcel_drop(&v.in, s->seat);
    return rc;
}

int main(int argc, char **argv)
{
    decode_stage s = {0};
    sl_err err = {0};
    if (!sl_seat_open(&s.seat, SL_ROLE_DECODE, argc, argv, &err) && !decode_open(&s, &err))
        sl_seat_serve(s.seat, decode_job, &s, &err);
    decode_close(&s);
    return sl_seat_exit(&s.seat, &err);
}
