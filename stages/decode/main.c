/* sluice-decode - latents [16, T, h/8, w/8] -> 8-bit RGB frames [n, h, w, 3], chunk by chunk, straight into the receiver's slots. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "graphs/vae.h"
#include "stages/network.h"
#include "stages/sizes.h"

typedef struct {
    sl_stage *st;
    sl_ctx ctx;
    sl_loader *loader;
    sl_vae_decoder *vae;
    sl_pool *latents;
} decode_stage;

static sl_code decode_open(decode_stage *s, sl_err *err)
{
    const sl_conf *conf = sl_stage_conf(s->st);
    const sl_conf_stage *me = sl_conf_find(conf, SL_ROLE_DECODE);
    const sl_model *model = sl_stage_model(s->st);
    size_t bytes = sl_slot_bytes(model, "latents", conf->limits.pixels, conf->limits.frames);
    int64_t t0 = sl_now_ns();
    const sl_ops *ops;
    sl_code rc;
    if ((rc = sl_stage_ops(s->st, &ops, err)) || (rc = sl_ctx_open(&s->ctx, ops, 0, err))) return rc;
    if ((rc = sl_stage_receive_pool(s->st, "latents", me ? me->slots : 2, bytes, &s->latents, err))) return rc;
    if ((rc = sl_network_open(&s->loader, s->st, &s->ctx, "vae", "diffusion_pytorch_model", err))) return rc;
    if (!(s->vae = sl_vae_decoder_new(&model->vae, s->loader))) return sl_fail(err, SL_NOMEM, "vae: no memory");
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

/* The whole latents, float32 on the host, from the ticket's slot (freed at once) or the spool's file. */
static sl_code read_latents(decode_stage *s, const sl_msg_job *msg, const sl_job *job, float **out, sl_err *err)
{
    int64_t shape[4] = {sl_stage_model(s->st)->vae.z, sl_job_latent_frames(job), job->height / 8, job->width / 8};
    char path[SL_PATH];
    sl_lease *lease = NULL;
    sl_st *file = NULL;
    sl_code rc;
    if (msg->tickets) rc = sl_lease_open(&lease, s->latents, &msg->first, NULL, err);
    else if (!(rc = sl_path_join(path, msg->dir, "denoise.safetensors", err))) rc = sl_st_open_file(&file, path, err);
    if (!rc) rc = sl_network_input(out, lease, file, "latents", 4, shape, err);
    sl_lease_drop(&lease, NULL);
    sl_st_close(&file);
    return rc;
}

/* Arena for one chunk, and memory for the video's caches: both from the arena, the caches at its bottom. */
static sl_code size_arena(decode_stage *s, const sl_job *job, sl_err *err)
{
    sl_arena arena;
    sl_code rc = sl_arena_decode(&arena, s->ctx.ops, &sl_stage_model(s->st)->vae, s->vae, job, err);
    return rc ? rc : sl_ctx_reserve(&s->ctx, arena.peak, err);
}

/* A free slot of the receiver, however long it takes it to free one (back-pressure): until cancelled, or the receiver is gone. */
static sl_code reserve(decode_stage *s, sl_lease **out, sl_err *err)
{
    sl_pool *pool;
    sl_code rc;
    do {
        if (sl_stage_cancelled(s->st)) return sl_fail(err, SL_CANCELLED, "cancelled");
        if ((rc = sl_stage_send_pool(s->st, "frames", &pool, err))) return rc;
        rc = sl_lease_reserve(out, pool, 100, err);
    } while (rc == SL_BUSY);
    return rc;
}

/* 8 bits cannot hold a NaN: it is looked for in the frames before they are rounded. */
static sl_code check_frames(decode_stage *s, int first, const sl_tensor *floats, sl_err *err)
{
    sl_tensor host = *floats;
    sl_err found = {0};
    char name[48];
    bool on_host = s->ctx.ops == &sl_ops_cpu;
    sl_code rc;
    if (!on_host && !(host.data = malloc(sl_bytes(floats) + 1)))
        return sl_fail(err, SL_NOMEM, "decode: no memory for %zu bytes", sl_bytes(floats));
    if (!on_host) sl_download(&s->ctx, host.data, floats);
    snprintf(name, sizeof name, "frames from %d on", first);
    rc = sl_ok(&s->ctx) ? SL_OK : sl_ctx_error(&s->ctx, err);
    if (!rc && sl_stage_check_finite(name, &host, &found)) rc = sl_network_blame((sl_loader *[]){s->loader, NULL}, &found, err);
    if (!on_host) free(host.data);
    return rc;
}

/* Decode latent frames [at, at + n) into a slot and send it on. */
static sl_code decode_chunk(decode_stage *s, const sl_msg_job *msg, const sl_job *job, sl_vae_decode *d, const float *latents,
                            int at, int n, int t, sl_err *err)
{
    int h = job->height, w = job->width, z = sl_stage_model(s->st)->vae.z, frames = sl_vae_frames_of(d, n);
    int64_t plane = (int64_t)(h / 8) * (w / 8), t0 = sl_now_ns();
    sl_msg chunk = {.type = SL_MSG_CHUNK};
    sl_lease *lease = NULL;
    sl_tensor slot, rgb, in, floats;
    size_t mark = sl_mark(&s->ctx);
    sl_code rc;
    if ((rc = reserve(s, &lease, err))) goto done;
    if ((rc = sl_lease_add(lease, "rgb", SL_U8, 4, (int64_t[]){frames, h, w, 3}, &slot, err))) goto done;
    sl_stage_span(s->st, msg->job, SL_SPAN_WAIT, t0);

    t0 = sl_now_ns();
    in = sl_new4(&s->ctx, SL_F32, z, n, h / 8, w / 8);
    rgb = s->ctx.ops == &sl_ops_cpu ? slot : sl_new4(&s->ctx, SL_U8, frames, h, w, 3); /* a CPU computes into the slot itself */
    for (int c = 0; c < z; c++) {
        sl_tensor row = sl_view1(in.data ? (float *)in.data + c * n * plane : NULL, SL_F32, n * plane);
        if (in.data) sl_upload(&s->ctx, &row, latents + (c * t + at) * plane);
    }
    floats = sl_new4(&s->ctx, sl_act(&s->ctx), frames, h, w, 3);
    sl_vae_decode_chunk(&s->ctx, d, &rgb, &floats, &in);
    if (rgb.data != slot.data) sl_download(&s->ctx, slot.data, &rgb);
    if (!sl_ok(&s->ctx)) {
        rc = sl_ctx_error(&s->ctx, err);
        goto done;
    }
    if ((rc = check_frames(s, at ? at * 4 - 3 : 0, &floats, err))) goto done;
    sl_stage_span(s->st, msg->job, SL_SPAN_COMPUTE, t0);

    t0 = sl_now_ns();
    chunk.chunk = (sl_msg_chunk){.job = msg->job,
                                 .attempt = msg->attempt,
                                 .index = (uint32_t)(at / SL_CHUNK_LATENTS),
                                 .chunks = (uint32_t)((t + SL_CHUNK_LATENTS - 1) / SL_CHUNK_LATENTS),
                                 .frames = (uint32_t)frames};
    if ((rc = sl_lease_seal(lease, NULL, &chunk.chunk.rgb, err))) goto done;
    sl_stage_send(s->st, &chunk);
    sl_stage_span(s->st, msg->job, SL_SPAN_HANDOVER, t0);
done:
    sl_lease_drop(&lease, NULL);
    sl_release(&s->ctx, mark);
    return rc;
}

static sl_code decode_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    decode_stage *s = self;
    int t = sl_job_latent_frames(job);
    float *latents = NULL;
    sl_vae_decode *d = NULL;
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = read_latents(s, msg, job, &latents, err)) || (rc = size_arena(s, job, err))) goto done;
    sl_stage_span(s->st, msg->job, SL_SPAN_HANDOVER, t0);
    sl_tensor caches = sl_new1(&s->ctx, SL_U8, (int64_t)sl_vae_decode_bytes(&s->ctx, s->vae, job->height, job->width));
    d = sl_vae_decode_start(&s->ctx, s->vae, job->height, job->width, caches.data);
    if (!d) rc = sl_ctx_error(&s->ctx, err);
    for (int at = 0; at < t && !rc; at += SL_CHUNK_LATENTS) {
        int64_t begun = sl_now_ns();
        int n = t - at < SL_CHUNK_LATENTS ? t - at : SL_CHUNK_LATENTS;
        if ((rc = decode_chunk(s, msg, job, d, latents, at, n, t, err))) break;
        sl_stage_progress(s->st, msg, at + n, t, (double)(sl_now_ns() - begun) * 1e-9);
    }
    if (!rc) sl_stage_done(s->st, msg, NULL, s->ctx.arena_peak, 0);
done:
    sl_vae_decode_free(&d);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    free(latents);
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
