/* sizes.c - what a job takes in each stage, in bytes. */
#include "stages/sizes.h"

#include <string.h>

/* A context that measures; *body must live as long. */
static sl_code begin(sl_ctx *plan, sl_ops *body, const sl_ops *ops, sl_err *err)
{
    *body = sl_ops_plan_of(ops);
    return sl_ctx_open(plan, body, 0, err);
}

static sl_code end(sl_arena *out, sl_ctx *plan, size_t kept, sl_err *err)
{
    *out = (sl_arena){.kept = kept, .peak = plan->arena_peak};
    sl_code rc = sl_ctx_error(plan, err);
    sl_ctx_close(plan);
    return rc;
}

/* The longest prompt decides. */
sl_code sl_arena_text(sl_arena *out, const sl_ops *ops, const sl_umt5_config *c, const sl_umt5 *m,
                      sl_err *err)
{
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    sl_new2(&plan, SL_F32, 2 * SL_UMT5_MAX_TOKENS, c->d_model); /* cond and uncond */
    size_t kept = sl_mark(&plan);
    sl_tensor y = sl_new2(&plan, sl_act(&plan), SL_UMT5_MAX_TOKENS, c->d_model);
    sl_umt5_encode(&plan, m, NULL, SL_UMT5_MAX_TOKENS, &y);
    return end(out, &plan, kept, err);
}

sl_code sl_arena_image(sl_arena *out, const sl_ops *ops, const sl_model *model, const sl_clip *clip,
                       const sl_vae_encoder *vae, const sl_job *job, sl_err *err)
{
    static const float there; /* a picture: looked at for being there only */
    int t = sl_job_latent_frames(job), z = model->vae.z;
    bool last = model->takes_last_image && *job->last_image;
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    if (clip) sl_new2(&plan, SL_F32, sl_image_tokens(model, job), model->clip.hidden);
    sl_tensor whole =
        sl_new4(&plan, SL_F32, SL_MASK_CHANNELS + z, t, job->height / 8, job->width / 8);
    size_t kept = sl_mark(&plan);
    if (clip) {
        int64_t side = model->clip.image / model->clip.patch;
        sl_tensor y = sl_new2(&plan, SL_F32, side * side + 1, model->clip.hidden);
        sl_clip_encode(&plan, clip, NULL, &y);
        sl_release(&plan, kept);
    }
    sl_tensor latent = sl_rows(&whole, SL_MASK_CHANNELS, z);
    sl_vae_encode_condition(&plan, vae, &latent, &there, last ? &there : NULL, job->frames,
                            job->height, job->width, NULL);
    return end(out, &plan, kept, err);
}

sl_code sl_arena_clip(sl_arena *out, const sl_ops *ops, const sl_clip_config *c, const sl_clip *m,
                      sl_err *err)
{
    int64_t side = c->image / c->patch;
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    sl_tensor y = sl_new2(&plan, SL_F32, side * side + 1, c->hidden);
    sl_clip_encode(&plan, m, NULL, &y);
    return end(out, &plan, 0, err);
}

sl_code sl_arena_condition(sl_arena *out, const sl_ops *ops, const sl_vae_config *c,
                           const sl_vae_encoder *m, const sl_job *job, bool last, sl_err *err)
{
    static const float there; /* a picture: looked at for being there only */
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    sl_tensor y =
        sl_new4(&plan, SL_F32, c->z, sl_job_latent_frames(job), job->height / 8, job->width / 8);
    sl_vae_encode_condition(&plan, m, &y, &there, last ? &there : NULL, job->frames, job->height,
                            job->width, NULL);
    return end(out, &plan, 0, err);
}

/* As decode_job takes it: the video's caches and, where they are not the host's own, its
 * latents at the bottom; then chunk by chunk. */
sl_code sl_arena_decode(sl_arena *out, const sl_ops *ops, const sl_vae_config *c,
                        const sl_vae_decoder *m, const sl_job *job, sl_err *err)
{
    int h = job->height, w = job->width,
        chunks = (sl_job_latent_frames(job) + SL_CHUNK_LATENTS - 1) / SL_CHUNK_LATENTS;
    /* a CPU reads latents where they are, and writes frames where they are handed over */
    bool on_host = ops->act == SL_F32;
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    size_t kept = sl_vae_decode_bytes(&plan, m, h, w);
    sl_tensor caches = sl_new1(&plan, SL_U8, (int64_t)kept);
    if (!on_host) sl_new4(&plan, SL_F32, c->z, sl_job_latent_frames(job), h / 8, w / 8);
    kept = sl_mark(&plan);
    sl_vae_decode *d = sl_vae_decode_start(&plan, m, h, w, caches.data);
    /* the first chunks differ; the third is like all that follow */
    for (int i = 0; i < chunks && i < 3 && d; i++) {
        size_t mark = sl_mark(&plan);
        int frames = sl_vae_frames_of(d, SL_CHUNK_LATENTS);
        sl_tensor latents = sl_new4(&plan, SL_F32, c->z, SL_CHUNK_LATENTS, h / 8, w / 8);
        sl_tensor rgb = on_host ? sl_view4(NULL, SL_U8, frames, h, w, 3)
                                : sl_new4(&plan, SL_U8, frames, h, w, 3);
        sl_tensor floats = sl_new4(&plan, sl_act(&plan), frames, h, w, 3);
        sl_vae_decode_chunk(&plan, d, &rgb, &floats, &latents);
        sl_release(&plan, mark);
    }
    sl_vae_decode_free(&d);
    return end(out, &plan, kept, err);
}

sl_pool_kind sl_slot_kind(const sl_conf *conf, const char *purpose)
{
    static const struct {
        const char *purpose;
        sl_role from, to;
    } WAYS[] = {{"text", SL_ROLE_TEXT, SL_ROLE_DENOISE},
                {"image", SL_ROLE_IMAGE, SL_ROLE_DENOISE},
                {"latents", SL_ROLE_DENOISE, SL_ROLE_DECODE}};
    for (size_t i = 0; i < sizeof WAYS / sizeof *WAYS; i++) {
        const sl_conf_stage *from = sl_conf_find(conf, WAYS[i].from),
                            *to = sl_conf_find(conf, WAYS[i].to);
        if (strcmp(WAYS[i].purpose, purpose) || !from || !to) continue;
        return !strncmp(to->device, "cuda:", 5) && !strcmp(from->device, to->device) ? SL_POOL_CUDA
                                                                                     : SL_POOL_HOST;
    }
    return SL_POOL_HOST;
}

size_t sl_slot_bytes(const sl_model *model, const char *purpose, int64_t pixels, int frames)
{
    const sl_dit_config *c = &model->dit[0];
    int64_t latent = pixels / 64 * ((frames - 1) / 4 + 1);
    if (!strcmp(purpose, "text"))
        return (size_t)2 * SL_UMT5_MAX_TOKENS * (size_t)c->text_dim * 4 + SL_HELD;
    if (!strcmp(purpose, "image"))
        return (size_t)(latent * (c->in_channels - c->out_channels)) * 4 +
               (size_t)2 * 257 * (size_t)c->image_dim * 4 + 2 * SL_HELD;
    if (!strcmp(purpose, "latents")) return (size_t)(latent * model->vae.z) * 4 + SL_HELD;
    return (size_t)pixels * 3 * 4 * SL_CHUNK_LATENTS; /* frames */
}

int sl_image_tokens(const sl_model *model, const sl_job *job)
{
    if (!model->dit[0].image_dim) return 0;
    int side = model->clip.image / model->clip.patch;
    return (side * side + 1) * (model->takes_last_image && *job->last_image ? 2 : 1);
}
