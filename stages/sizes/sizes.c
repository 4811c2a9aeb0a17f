/* sizes.c - what a job takes in each stage, in bytes. */
#include "stages/sizes/sizes.h"

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
    /* cond and uncond */
    for (int i = 0; i < 2; i++) sl_new2(&plan, SL_F32, SL_TEXT_TOKENS, c->d_model);
    size_t kept = sl_mark(&plan);
    sl_tensor y = sl_new2(&plan, sl_act(&plan), SL_UMT5_MAX_TOKENS, c->d_model);
    sl_umt5_encode(&plan, m, NULL, SL_UMT5_MAX_TOKENS, &y);
    return end(out, &plan, kept, err);
}

sl_code sl_arena_image(sl_arena *out, const sl_ops *ops, const sl_model *model, const sl_clip *clip,
                       const sl_vae_encoder *vae, const sl_job *job, sl_err *err)
{
    static const float there; /* a picture: looked at for being there only */
    const sl_grid g = sl_job_grid(model, job);
    int z = model->vae.z, mask = model->family.time_per_token ? 0 : model->family.temporal;
    bool last = sl_takes_last_picture(&model->family, job);
    sl_tensor_spec of[SL_HANDOVER_TENSORS]; /* the condition, then CLIP's tokens */
    sl_tensor whole = {0};
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    for (int i = sl_handover_tensors(of, SL_HANDOVER_IMAGE, model, &g, job) - 1; i >= 0; i--)
        whole = sl_new(&plan, of[i].dtype, of[i].rank, of[i].shape);
    size_t kept = sl_mark(&plan);
    if (clip) {
        sl_tensor y = sl_new2(&plan, SL_F32, sl_clip_tokens(&model->clip), model->clip.hidden);
        sl_clip_encode(&plan, clip, NULL, &y);
        sl_release(&plan, kept);
    }
    sl_tensor latent = sl_rows(&whole, mask, z);
    sl_vae_encode_condition(&plan, vae, &latent, &there, last ? &there : NULL,
                            sl_condition_frames(&model->family, job->frames), job->height,
                            job->width, NULL);
    return end(out, &plan, kept, err);
}

sl_code sl_arena_clip(sl_arena *out, const sl_ops *ops, const sl_clip_config *c, const sl_clip *m,
                      sl_err *err)
{
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    sl_tensor y = sl_new2(&plan, SL_F32, sl_clip_tokens(c), c->hidden);
    sl_clip_encode(&plan, m, NULL, &y);
    return end(out, &plan, 0, err);
}

sl_code sl_arena_condition(sl_arena *out, const sl_ops *ops, const sl_model *model,
                           const sl_vae_encoder *m, const sl_job *job, bool last, sl_err *err)
{
    static const float there; /* a picture: looked at for being there only */
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    const sl_grid g = sl_job_grid(model, job);
    const int frames = sl_condition_frames(&model->family, job->frames);
    sl_tensor y = sl_new4(&plan, SL_F32, model->vae.z, frames == 1 ? 1 : g.latent_frames,
                          g.latent_height, g.latent_width);
    sl_vae_encode_condition(&plan, m, &y, &there, last ? &there : NULL, frames, job->height,
                            job->width, NULL);
    return end(out, &plan, 0, err);
}

/* As decode_job takes it: the video's caches and, where they are not the host's own, its
 * latents at the bottom; then chunk by chunk. */
sl_code sl_arena_decode(sl_arena *out, const sl_ops *ops, const sl_model *model,
                        const sl_vae_decoder *m, const sl_job *job, sl_err *err)
{
    const sl_grid g = sl_job_grid(model, job);
    int h = job->height, w = job->width, z = model->vae.z;
    /* a CPU reads latents where they are, and writes frames where they are handed over */
    bool on_host = ops->host_memory;
    sl_ops body;
    sl_ctx plan;
    sl_code rc = begin(&plan, &body, ops, err);
    if (rc) return rc;
    size_t kept = sl_vae_decode_bytes(&plan, m, h, w);
    sl_tensor caches = sl_new1(&plan, SL_U8, (int64_t)kept);
    if (!on_host) sl_new4(&plan, SL_F32, z, g.latent_frames, g.latent_height, g.latent_width);
    kept = sl_mark(&plan);
    sl_vae_decode *d = sl_vae_decode_start(&plan, m, h, w, caches.data);
    /* the first chunks differ; the third is like all that follow */
    for (int i = 0; i < g.chunks && i < 3 && d; i++) {
        size_t mark = sl_mark(&plan);
        int frames = sl_vae_frames_of(d, SL_CHUNK_LATENTS);
        sl_tensor latents =
            sl_new4(&plan, SL_F32, z, SL_CHUNK_LATENTS, g.latent_height, g.latent_width);
        sl_tensor rgb = on_host ? sl_view4(NULL, SL_U8, frames, h, w, 3)
                                : sl_new4(&plan, SL_U8, frames, h, w, 3);
        sl_tensor floats = sl_new4(&plan, sl_act(&plan), frames, h, w, 3);
        sl_vae_decode_chunk(&plan, d, &rgb, &floats, &latents);
        sl_release(&plan, mark);
    }
    sl_vae_decode_free(&d);
    return end(out, &plan, kept, err);
}
