/* sluice-decode - latents [16, T, h/8, w/8] -> 8-bit RGB frames [n, h, w, 3], chunk by
 * chunk, straight into the receiver's slots. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "graphs/vae.h"
#include "stages/network.h"
#include "stages/sizes/sizes.h"
#include "stages/turn.h"

typedef struct {
    sl_stage *st;
    sl_ctx ctx;
    sl_loader *loader;
    sl_vae_decoder *vae;
    sl_pool *latents;
    bool pin_failed; /* said once */
} decode_stage;

/* One job's. */
typedef struct {
    const sl_msg_job *msg;
    const sl_job *job;
    sl_vae_decode *d;
    float *host;       /* what `latents` views on a CPU; owned */
    sl_tensor latents; /* F32 [z, T, h/8, w/8], where the decoder computes */
} video;

static bool on_host(const decode_stage *s)
{
    return s->ctx.ops->host_memory;
}

static sl_code decode_open(decode_stage *s, sl_err *err)
{
    const sl_conf *conf = sl_stage_conf(s->st);
    const sl_conf_stage *me = sl_conf_find(conf, SL_ROLE_DECODE);
    const sl_model *model = sl_stage_model(s->st);
    size_t bytes =
        sl_slot_bytes(model, SL_HANDOVER_LATENTS, conf->limits.pixels, conf->limits.frames);
    int64_t t0 = sl_now_ns();
    const sl_ops *ops;
    sl_code rc;
    if ((rc = sl_stage_ops(s->st, &ops, err)) || (rc = sl_ctx_open(&s->ctx, ops, 0, err)))
        return rc;
    if ((rc = sl_stage_receive_pool(s->st, SL_HANDOVER_LATENTS, me ? me->slots : 2, bytes,
                                    &s->latents, err)))
        return rc;
    if ((rc = sl_network_open(&s->loader, s->st, &s->ctx, "vae", "diffusion_pytorch_model", err)))
        return rc;
    if (!(s->vae = sl_vae_decoder_new(&model->vae, s->loader)))
        return sl_fail(err, SL_NOMEM, "vae: no memory");
    if ((rc = sl_loader_finish(s->loader, err))) return rc;
    s->ctx.cancel = sl_stage_cancel_flag(s->st);
    sl_stage_ready(s->st, t0, sl_loader_bytes(s->loader), 0);
    return SL_OK;
}

static void decode_close(decode_stage *s)
{
    sl_vae_decoder_free(&s->vae);
    sl_loader_close(&s->loader);
    sl_ctx_close(&s->ctx);
}

/* The whole latents from the ticket's slot (freed at once) or the spool's file. */
static sl_code read_latents(decode_stage *s, video *v, sl_err *err)
{
    int64_t shape[4] = {sl_stage_model(s->st)->vae.z, sl_job_latent_frames(v->job),
                        v->job->height / 8, v->job->width / 8};
    cudaStream_t stream = sl_network_stream(&s->ctx, s->latents);
    char path[SL_PATH];
    sl_input in = {0};
    sl_lease *lease = NULL;
    sl_st *file = NULL;
    sl_code rc;
    const sl_ticket *ticket = sl_tickets_find(&v->msg->in, SL_HANDOVER_LATENTS);
    if (ticket) rc = sl_lease_open(&lease, s->latents, ticket, stream, err);
    else if (!(rc = sl_path_join(path, v->msg->dir, "denoise.safetensors", err)))
        rc = sl_st_open_file(&file, path, err);
    if (!rc) rc = sl_network_receive(&in, s->latents, lease, file, "latents", 4, shape, err);
    if (!rc && on_host(s)) {
        v->latents = sl_view(in.host, SL_F32, 4, shape);
        v->host = in.host;
    } else {
        if (!rc) v->latents = sl_new(&s->ctx, SL_F32, 4, shape);
        if (!rc) sl_network_place(&s->ctx, &v->latents, &in);
        free(in.host);
        if (!rc && !sl_ok(&s->ctx)) rc = sl_ctx_error(&s->ctx, err);
    }
    sl_lease_drop(&lease, stream);
    sl_st_close(&file);
    return rc;
}

/* Copies into the receiver's slots wait for nothing if its memory is pinned; they also
 * work without. */
static void pin(decode_stage *s, sl_pool *pool)
{
    sl_err err = {0};
    if (!sl_stage_plugin(s->st) || s->pin_failed || sl_pool_pinned(pool) ||
        !sl_pool_pin(pool, &err))
        return;
    sl_log(SL_LOG_WARN, "frames are copied more slowly: %s", err.msg);
    s->pin_failed = true;
}

/* A free slot of the receiver, however long it takes it to free one (back-pressure):
 * until cancelled, or the receiver is gone. The device is others' meanwhile. */
static sl_code reserve(decode_stage *s, sl_lease **out, sl_pool **pool, sl_err *err)
{
    int wait_ms = 0;
    sl_code rc;
    while (true) {
        if (sl_stage_cancelled(s->st)) return sl_fail(err, SL_CANCELLED, "cancelled");
        if ((rc = sl_stage_send_pool(s->st, SL_HANDOVER_FRAMES, pool, err))) return rc;
        if (sl_pool_kind_of(*pool) != SL_POOL_HOST)
            return sl_fail(
                err, SL_FORMAT,
                "decode: the receiver of frames has slots of device memory, want host memory");
        pin(s, *pool);
        if ((rc = sl_lease_reserve(out, *pool, wait_ms, err)) != SL_BUSY) return rc;
        sl_stage_turn_end(s->st, false);
        wait_ms = 100;
    }
}

/* 8 bits cannot hold a NaN: it is looked for in the frames before they are rounded. On a
 * device by their mean, which one of them spoils; only to name it they are brought here. */
static sl_code check_frames(decode_stage *s, int first, const sl_tensor *floats, sl_err *err)
{
    sl_tensor host = *floats;
    sl_err found = {0};
    float mean[2] = {0, 0};
    char name[48];
    if (!on_host(s)) {
        sl_mean_abs(&s->ctx, mean, floats, floats);
        if (!sl_ok(&s->ctx)) return sl_ctx_error(&s->ctx, err);
        if (isfinite(mean[1])) return SL_OK;
        if (!(host.data = malloc(sl_bytes(floats) + 1)))
            return sl_fail(err, SL_NOMEM, "decode: no memory for %zu bytes", sl_bytes(floats));
        sl_download(&s->ctx, host.data, floats);
    }
    snprintf(name, sizeof name, "frames from %d on", first);
    sl_code rc = sl_ok(&s->ctx) ? SL_OK : sl_ctx_error(&s->ctx, err);
    if (!rc && sl_stage_check_finite(name, &host, &found))
        rc = sl_network_blame((sl_loader *[]){s->loader, NULL}, &found, err);
    if (!on_host(s)) free(host.data);
    return rc;
}

/* rgb from the device into the slot, whose memory may be pinned: the copy runs until the
 * next wait for the device. */
static void bring(decode_stage *s, const sl_pool *pool, const sl_tensor *slot, const sl_tensor *rgb)
{
    const sl_plugin *plugin = sl_stage_plugin(s->st);
    if (plugin && sl_pool_pinned(pool))
        plugin->copy_out(&s->ctx, slot->data, rgb->data, sl_bytes(rgb));
    else sl_download(&s->ctx, slot->data, rgb);
}

/* Latent frames [at, at + n) into the slot. */
static sl_code compute(decode_stage *s, video *v, const sl_pool *pool, const sl_tensor *slot,
                       int at, int n, sl_err *err)
{
    int h = v->job->height, w = v->job->width;
    int64_t z = v->latents.shape[0], t = v->latents.shape[1], plane = (int64_t)(h / 8) * (w / 8),
            frames = slot->shape[0];
    sl_tensor in = sl_new4(&s->ctx, SL_F32, z, n, h / 8, w / 8);
    sl_tensor all = sl_reshape2(&v->latents, z, t * plane),
              part = sl_cols(&all, at * plane, n * plane), rows = sl_reshape2(&in, z, n * plane);
    /* a CPU computes into the slot itself */
    sl_tensor rgb = on_host(s) ? *slot : sl_new4(&s->ctx, SL_U8, frames, h, w, 3);
    sl_tensor floats = sl_new4(&s->ctx, sl_act(&s->ctx), frames, h, w, 3);
    sl_copy(&s->ctx, &rows, &part);
    sl_vae_decode_chunk(&s->ctx, v->d, &rgb, &floats, &in);
    if (rgb.data != slot->data) bring(s, pool, slot, &rgb);
    return sl_ok(&s->ctx) ? check_frames(s, at ? at * 4 - 3 : 0, &floats, err)
                          : sl_ctx_error(&s->ctx, err);
}

/* Decode latent frames [at, at + n) of t into a slot and send it on. */
static sl_code decode_chunk(decode_stage *s, video *v, int at, int n, int t, sl_err *err)
{
    int frames = sl_vae_frames_of(v->d, n);
    int64_t t0 = sl_now_ns();
    sl_msg chunk = {.type = SL_MSG_CHUNK};
    sl_pool *pool;
    sl_lease *lease = NULL;
    sl_tensor slot;
    size_t mark = sl_mark(&s->ctx);
    sl_code rc;
    if ((rc = reserve(s, &lease, &pool, err))) goto done;
    if ((rc = sl_lease_add(lease, "rgb", SL_U8, 4,
                           (int64_t[]){frames, v->job->height, v->job->width, 3}, &slot, err)))
        goto done;
    sl_stage_span(s->st, v->msg->job, SL_SPAN_WAIT, t0);

    if ((rc = sl_stage_turn_begin(s->st, SL_TURN_PIECE, "chunk", at / SL_CHUNK_LATENTS + 1, err)))
        goto done;
    t0 = sl_now_ns();
    if ((rc = compute(s, v, pool, &slot, at, n, err))) goto done;
    sl_stage_turn_end(s->st, at + n < t);
    sl_stage_span(s->st, v->msg->job, SL_SPAN_COMPUTE, t0);

    t0 = sl_now_ns();
    chunk.chunk =
        (sl_msg_chunk){.job = v->msg->job,
                       .attempt = v->msg->attempt,
                       .handover = SL_HANDOVER_FRAMES,
                       .index = (uint32_t)(at / SL_CHUNK_LATENTS),
                       .chunks = (uint32_t)((t + SL_CHUNK_LATENTS - 1) / SL_CHUNK_LATENTS),
                       .frames = (uint32_t)frames};
    if ((rc = sl_lease_seal(lease, s->ctx.stream, &chunk.chunk.slot, err))) goto done;
    sl_stage_send(s->st, &chunk);
    sl_stage_span(s->st, v->msg->job, SL_SPAN_HANDOVER, t0);
done:
    sl_lease_drop(&lease, s->ctx.stream);
    sl_release(&s->ctx, mark);
    return rc;
}

static sl_code decode_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    decode_stage *s = self;
    video v = {.msg = msg, .job = job};
    int t = sl_job_latent_frames(job);
    int64_t t0 = sl_now_ns();
    sl_arena arena;
    sl_code rc = sl_arena_decode(&arena, s->ctx.ops, sl_stage_model(s->st), s->vae, job, err);
    if (rc || (rc = sl_ctx_reserve(&s->ctx, arena.peak, err))) goto done;
    sl_tensor caches = sl_new1(
        &s->ctx, SL_U8, (int64_t)sl_vae_decode_bytes(&s->ctx, s->vae, job->height, job->width));
    if ((rc = read_latents(s, &v, err))) goto done;
    sl_stage_span(s->st, msg->job, SL_SPAN_HANDOVER, t0);
    v.d = sl_vae_decode_start(&s->ctx, s->vae, job->height, job->width, caches.data);
    if (!v.d) rc = sl_ctx_error(&s->ctx, err);
    for (int at = 0; at < t && !rc; at += SL_CHUNK_LATENTS) {
        int64_t begun = sl_now_ns();
        int n = t - at < SL_CHUNK_LATENTS ? t - at : SL_CHUNK_LATENTS;
        if ((rc = decode_chunk(s, &v, at, n, t, err))) break;
        sl_stage_progress(s->st, msg, at + n, t, (double)(sl_now_ns() - begun) * 1e-9);
    }
    if (!rc) sl_stage_done(s->st, msg, NULL, s->ctx.arena_peak, 0);
done:
    sl_vae_decode_free(&v.d);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    free(v.host);
    return rc;
}

int main(int argc, char **argv)
{
    decode_stage s = {0};
    sl_err err = {0};
    if (sl_stage_open(&s.st, "decode", argc, argv, &err) || decode_open(&s, &err)) {
        decode_close(&s);
        return sl_stage_exit(&s.st, &err);
    }
    sl_network_serve(s.st, decode_job, &s, s.latents, NULL, &err);
    decode_close(&s);
    return sl_stage_exit(&s.st, &err);
}
