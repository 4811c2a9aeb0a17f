/* sluice-image - picture(s) -> CLIP tokens `clip` and the VAE's `condition` [20, T, h/8, w/8] (4 mask, 16 latent channels). */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/picture.h"
#include "graphs/clip.h"
#include "graphs/vae.h"
#include "stages/network.h"
#include "stages/sizes.h"

typedef struct {
    sl_stage *st;
    sl_ctx ctx;
    sl_loader *clip_loader, *vae_loader;
    sl_clip *clip; /* NULL: this checkpoint takes no CLIP tokens (A14B) */
    sl_vae_encoder *vae;
} image_stage;

/* What one job gives; owned. */
typedef struct {
    sl_picture first, last;           /* resized to the video's size; last is empty without one */
    sl_picture clip_first, clip_last; /* what CLIP sees: the picture as the pipeline was given it */
    float *clip;                      /* [tokens, hidden] */
    int64_t clip_tokens;
    float *condition; /* [20, T, h/8, w/8] */
} images;

static sl_code image_open(image_stage *s, sl_err *err)
{
    const sl_model *model = sl_stage_model(s->st);
    const sl_ops *ops;
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = sl_stage_ops(s->st, &ops, err)) || (rc = sl_ctx_open(&s->ctx, ops, 0, err))) return rc;
    if (model->has_clip) {
        if ((rc = sl_network_open(&s->clip_loader, s->st, &s->ctx, "image_encoder", "model", err))) return rc;
        if (!(s->clip = sl_clip_new(&model->clip, s->clip_loader))) return sl_fail(err, SL_NOMEM, "clip: no memory");
        if ((rc = sl_loader_finish(s->clip_loader, err))) return rc;
    }
    if ((rc = sl_network_open(&s->vae_loader, s->st, &s->ctx, "vae", "diffusion_pytorch_model", err))) return rc;
    if (!(s->vae = sl_vae_encoder_new(&model->vae, s->vae_loader))) return sl_fail(err, SL_NOMEM, "vae: no memory");
    if ((rc = sl_loader_finish(s->vae_loader, err))) return rc;
    s->ctx.cancel = sl_stage_cancel_flag(s->st);
    sl_stage_ready(s->st, t0, sl_loader_bytes(s->vae_loader) + (s->clip ? sl_loader_bytes(s->clip_loader) : 0), 0);
    return SL_OK;
}

static void image_close(image_stage *s)
{
    sl_clip_free(&s->clip);
    sl_vae_encoder_free(&s->vae);
    sl_loader_close(&s->clip_loader);
    sl_loader_close(&s->vae_loader);
    sl_ctx_close(&s->ctx);
}

/* DIR/NAME as the client stored it. The VAE takes it at the video's size: bicubic when the size came from the picture's own aspect (there the
 * caller of diffusers resizes, and CLIP sees the result), otherwise Lanczos inside the pipeline (and CLIP sees the picture as it was). Spec 3.5;
 * which of the two CLIP sees is what the golden data shows. */
static sl_code read_picture(sl_picture *resized, sl_picture *for_clip, const sl_msg_job *msg, const char *name, const sl_job *job,
                            sl_err *err)
{
    char path[SL_PATH];
    sl_picture raw = {0};
    sl_filter filter = job->bicubic ? SL_FILTER_BICUBIC : SL_FILTER_LANCZOS;
    sl_code rc = sl_path_join(path, msg->dir, name, err);
    if (!rc) rc = sl_picture_read(&raw, path, err);
    if (!rc) rc = sl_picture_resize(resized, &raw, job->width, job->height, filter, err);
    if (!rc && job->bicubic) rc = sl_picture_resize(for_clip, &raw, job->width, job->height, filter, err);
    else if (!rc) {
        *for_clip = raw;
        raw = (sl_picture){0};
    }
    sl_picture_free(&raw);
    return rc;
}

/* CLIP tokens of the picture(s), one after the other: [257 or 514, hidden]. */
static sl_code clip_tokens(image_stage *s, images *im, sl_err *err)
{
    const sl_clip_config *c = &sl_stage_model(s->st)->clip;
    int64_t side = c->image / c->patch, tokens = side * side + 1;
    int count = im->last.rgb ? 2 : 1;
    sl_arena arena;
    sl_tensor out;
    sl_code rc = sl_arena_clip(&arena, s->ctx.ops, c, s->clip, err);
    if (rc || (rc = sl_ctx_reserve(&s->ctx, arena.peak, err))) return rc;

    float *pixels = malloc((size_t)c->crop_h * (size_t)c->crop_w * 3 * sizeof(float));
    void *raw = malloc((size_t)(tokens * c->hidden) * sizeof(float));
    im->clip = malloc((size_t)(count * tokens * c->hidden) * sizeof(float));
    im->clip_tokens = count * tokens;
    if (!pixels || !raw || !im->clip) rc = sl_fail(err, SL_NOMEM, "clip: no memory for a picture");
    for (int i = 0; i < count && !rc; i++) {
        if ((rc = sl_picture_clip_pixels(pixels, i ? &im->clip_last : &im->clip_first, c->shortest_edge, c->crop_h, c->crop_w,
                                         c->mean, c->std, c->rescale, err)))
            break;
        out = sl_new2(&s->ctx, sl_act(&s->ctx), tokens, c->hidden);
        sl_clip_encode(&s->ctx, s->clip, pixels, &out);
        sl_download(&s->ctx, raw, &out);
        if (!(rc = sl_ctx_error(&s->ctx, err)))
            rc = sl_to_floats(im->clip + i * tokens * c->hidden, raw, out.dtype, tokens * c->hidden, err);
    }
    free(pixels);
    free(raw);
    sl_tensor t = sl_view2(im->clip, SL_F32, im->clip_tokens, c->hidden);
    sl_err found = {0};
    if (!rc && sl_stage_check_finite("clip", &t, &found))
        return sl_network_blame((sl_loader *[]){s->clip_loader, NULL}, &found, err);
    return rc;
}

/* Pixels as the VAE takes them: [h, w, 3] in [-1, 1]. */
static float *to_unit(const sl_picture *p)
{
    size_t n = (size_t)p->w * (size_t)p->h * 3;
    float *x = malloc(n * sizeof(float));
    for (size_t i = 0; x && i < n; i++) x[i] = (float)p->rgb[i] / 255.0f * 2.0f - 1.0f;
    return x;
}

/* Mask channels: M[j][t] says whether (repeated) frame 4t + j is given. Spec 3.6. */
static void fill_mask(float *mask, int t, int64_t plane, bool last)
{
    for (int j = 0; j < SL_MASK_CHANNELS; j++)
        for (int k = 0; k < t; k++)
            for (int64_t i = 0; i < plane; i++)
                mask[(j * t + k) * plane + i] = k == 0 || (last && k == t - 1 && j == 3) ? 1.0f : 0.0f;
}

static sl_code condition(image_stage *s, images *im, const sl_job *job, sl_err *err)
{
    int t = sl_job_latent_frames(job), h = job->height, w = job->width, z = sl_stage_model(s->st)->vae.z;
    int64_t plane = (int64_t)(h / 8) * (w / 8);
    float *first = to_unit(&im->first), *last = im->last.rgb ? to_unit(&im->last) : NULL;
    sl_arena arena;
    sl_code rc = SL_OK;
    im->condition = malloc((size_t)((SL_MASK_CHANNELS + z) * t * plane) * sizeof(float));
    if (!first || (im->last.rgb && !last) || !im->condition) rc = sl_fail(err, SL_NOMEM, "condition: no memory");
    if (!rc) rc = sl_arena_condition(&arena, s->ctx.ops, &sl_stage_model(s->st)->vae, s->vae, job, last != NULL, err);
    if (!rc) rc = sl_ctx_reserve(&s->ctx, arena.peak, err);
    if (!rc) {
        sl_tensor out = sl_new4(&s->ctx, SL_F32, z, t, h / 8, w / 8);
        sl_vae_encode_condition(&s->ctx, s->vae, &out, first, last, job->frames, h, w, NULL);
        sl_download(&s->ctx, im->condition + SL_MASK_CHANNELS * t * plane, &out);
        rc = sl_ctx_error(&s->ctx, err);
        fill_mask(im->condition, t, plane, last != NULL);
    }
    free(first);
    free(last);
    sl_tensor c = sl_view4(im->condition, SL_F32, SL_MASK_CHANNELS + z, t, h / 8, w / 8);
    sl_err found = {0};
    if (!rc && sl_stage_check_finite("condition", &c, &found))
        return sl_network_blame((sl_loader *[]){s->vae_loader, NULL}, &found, err);
    return rc;
}

static sl_code image_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    image_stage *s = self;
    images im = {0};
    const sl_model *model = sl_stage_model(s->st);
    int64_t t0 = sl_now_ns();
    sl_ticket ticket;
    sl_code rc = read_picture(&im.first, &im.clip_first, msg, "image.input", job, err);
    if (!rc && model->takes_last_image && *job->last_image)
        rc = read_picture(&im.last, &im.clip_last, msg, "last_image.input", job, err);
    if (!rc && s->clip) rc = clip_tokens(s, &im, err);
    if (!rc) rc = condition(s, &im, job, err);
    sl_stage_span(s->st, msg->job, SL_SPAN_COMPUTE, t0);
    if (!rc) {
        sl_tensor c = sl_view4(im.condition, SL_F32, SL_MASK_CHANNELS + model->vae.z, sl_job_latent_frames(job), job->height / 8,
                               job->width / 8);
        sl_tensor tensors[] = {c, sl_view2(im.clip, SL_F32, im.clip_tokens, s->clip ? model->clip.hidden : 0)};
        const char *const names[] = {"condition", "clip"};
        int n = s->clip ? 2 : 1;
        sl_err lost = {0};
        t0 = sl_now_ns();
        bool handed = sl_stage_hand_over(s->st, "image", n, names, tensors, &ticket, &lost) == SL_OK;
        if (!handed) sl_log(SL_LOG_DEBUG, "job %llu goes by the spool: %s", (unsigned long long)msg->job, lost.msg);
        sl_stage_spool(s->st, msg, "image", true, n, names, tensors);
        sl_stage_span(s->st, msg->job, SL_SPAN_HANDOVER, t0);
        sl_stage_done(s->st, msg, handed ? &ticket : NULL, s->ctx.arena_peak, 0);
    }
    sl_picture_free(&im.first);
    sl_picture_free(&im.last);
    sl_picture_free(&im.clip_first);
    sl_picture_free(&im.clip_last);
    free(im.clip);
    free(im.condition);
    return rc;
}

int main(int argc, char **argv)
{
    image_stage s = {0};
    sl_err err = {0};
    if (sl_stage_open(&s.st, "image", argc, argv, &err) || image_open(&s, &err)) {
        image_close(&s);
        return sl_stage_exit(&s.st, &err);
    }
    sl_network_serve(s.st, image_job, &s, NULL, NULL, &err);
    image_close(&s);
    return sl_stage_exit(&s.st, &err);
}
