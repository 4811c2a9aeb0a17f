/* sluice-image - picture(s) -> CLIP tokens `clip` and the VAE's `condition` [20, T, h/8,
 * w/8] (4 mask, 16 latent channels). */
#include <stdlib.h>
#include <string.h>

#include "common/picture.h"
#include "graphs/clip.h"
#include "graphs/vae.h"
#include "stages/seat/loop.h"
#include "stages/seat/parcel.h"
#include "stages/sizes/sizes.h"

typedef struct {
    sl_seat *seat;
    sl_ctx ctx;
    sl_loader *clip_loader, *vae_loader;
    sl_clip *clip; /* NULL: this checkpoint takes no CLIP tokens (A14B) */
    sl_vae_encoder *vae;
} image_stage;

/* What one job starts from and gives. Owned, but for what lies in the arena. */
typedef struct {
    /* resized to the video's size; last is empty without one */
    sl_picture first, last;
    /* what CLIP sees: the picture as the pipeline was given it */
    sl_picture clip_first, clip_last;
    sl_parcel out;
} images;

enum { CONDITION, CLIP }; /* tensors of the hand-over; without a CLIP there is one */

static sl_code image_open(image_stage *s, sl_err *err)
{
    const sl_model *model = &s->seat->model;
    int64_t t0 = sl_now_ns();
    sl_code rc;
    if ((rc = sl_seat_context(s->seat, &s->ctx, err))) return rc;
    if (model->family.clip) {
        if ((rc = sl_seat_loader(&s->clip_loader, s->seat, &s->ctx, SL_PART_IMAGE, err))) return rc;
        if (!(s->clip = sl_clip_new(&model->clip, s->clip_loader)))
            return sl_fail(err, SL_NOMEM, "clip: no memory");
        if ((rc = sl_loader_finish(s->clip_loader, err))) return rc;
    }
    if ((rc = sl_seat_loader(&s->vae_loader, s->seat, &s->ctx, SL_PART_VAE, err))) return rc;
    if (!(s->vae = sl_vae_encoder_new(&model->vae, s->vae_loader)))
        return sl_fail(err, SL_NOMEM, "vae: no memory");
    if ((rc = sl_loader_finish(s->vae_loader, err))) return rc;
    sl_seat_ready(s->seat, t0,
                  sl_loader_bytes(s->vae_loader) + (s->clip ? sl_loader_bytes(s->clip_loader) : 0),
                  0);
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

/* DIR/NAME as the client stored it. The VAE takes it at the video's size: bicubic when
 * the size came from the picture's own aspect (there the caller of diffusers resizes, and
 * CLIP sees the result), otherwise Lanczos inside the pipeline (and CLIP sees the picture
 * as it was). Spec 3.5; which of the two CLIP sees is what the golden data shows. */
static sl_code read_picture(sl_picture *resized, sl_picture *for_clip, const sl_msg_job *msg,
                            const char *name, const sl_job *job, sl_err *err)
{
    char path[SL_PATH];
    sl_picture raw = {0};
    sl_filter filter = job->bicubic ? SL_FILTER_BICUBIC : SL_FILTER_LANCZOS;
    sl_code rc = sl_path_join(path, msg->dir, name, err);
    if (!rc) rc = sl_picture_read(&raw, path, err);
    if (!rc) rc = sl_picture_resize(resized, &raw, job->width, job->height, filter, err);
    if (!rc && job->bicubic)
        rc = sl_picture_resize(for_clip, &raw, job->width, job->height, filter, err);
    else if (!rc) {
        *for_clip = raw;
        raw = (sl_picture){0};
    }
    sl_picture_free(&raw);
    return rc;
}

/* Memory for the results, here and on the device. */
static sl_code take_memory(image_stage *s, images *im, const sl_job *job, sl_err *err)
{
    sl_arena arena;
    sl_code rc = sl_arena_image(&arena, s->ctx.ops, &s->seat->model, s->clip, s->vae, job, err);
    if (rc || (rc = sl_ctx_reserve(&s->ctx, arena.peak, err)) ||
        (rc = sl_parcel_make(&im->out, s->seat, &s->ctx, SL_HANDOVER_IMAGE, job, err)))
        return rc;
    return sl_ok(&s->ctx) ? SL_OK : sl_ctx_error(&s->ctx, err);
}

/* CLIP tokens of the picture(s), one after the other: [257 or 514, hidden]. */
static sl_code clip_tokens(image_stage *s, images *im, const sl_msg_job *msg, sl_err *err)
{
    const sl_clip_config *c = &s->seat->model.clip;
    const sl_parcel_tensor *clip = &im->out.at[CLIP];
    int64_t tokens = sl_clip_tokens(c);
    int count = im->last.rgb ? 2 : 1;
    size_t n = (size_t)c->crop_h * (size_t)c->crop_w * 3, mark = sl_mark(&s->ctx);
    int64_t t0 = sl_now_ns();
    float *pixels = malloc(2 * n * sizeof *pixels);
    sl_code rc = pixels ? SL_OK : sl_fail(err, SL_NOMEM, "clip: no memory for a picture");
    /* the pictures as CLIP takes them, on the host */
    for (int i = 0; i < count && !rc; i++)
        rc = sl_picture_clip_pixels(pixels + (size_t)i * n, i ? &im->clip_last : &im->clip_first,
                                    c->shortest_edge, c->crop_h, c->crop_w, c->mean, c->std,
                                    c->rescale, err);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    /* the network, in a turn */
    if (!rc) rc = sl_turn_begin(&s->seat->turn, SL_TURN_PIECE, "clip", 1, err);
    t0 = sl_now_ns();
    for (int i = 0; i < count && !rc; i++) {
        sl_tensor out = sl_new2(&s->ctx, SL_F32, tokens, c->hidden),
                  rows = sl_rows(&clip->device, i * tokens, tokens);
        sl_clip_encode(&s->ctx, s->clip, pixels + (size_t)i * n, &out);
        sl_copy(&s->ctx, &rows, &out);
        sl_release(&s->ctx, mark);
    }
    if (!rc) sl_download(&s->ctx, clip->host.data, &clip->device);
    if (!rc && !sl_ok(&s->ctx)) rc = sl_ctx_error(&s->ctx, err);
    free(pixels);
    if (rc) return rc;
    sl_turn_end(&s->seat->turn, true);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    return sl_seat_finite("clip", &clip->host, (sl_loader *[]){s->clip_loader, NULL}, err);
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
static void fill_mask(float *mask, int per, int t, int64_t plane, bool last)
{
    for (int j = 0; j < per; j++)
        for (int k = 0; k < t; k++)
            for (int64_t i = 0; i < plane; i++)
                mask[(j * t + k) * plane + i] =
                    k == 0 || (last && k == t - 1 && j == per - 1) ? 1.0f : 0.0f;
}

/* The condition: mask channels from the host, latent channels from the VAE. Where the picture is a
 * latent frame of the video (TI2V-5B), that frame alone. */
static sl_code condition(image_stage *s, images *im, const sl_job *job, const sl_msg_job *msg,
                         sl_err *err)
{
    const sl_model *model = &s->seat->model;
    const sl_grid g = sl_job_grid(model, job);
    const sl_parcel_tensor *to = &im->out.at[CONDITION];
    int z = model->vae.z, per = model->family.time_per_token ? 0 : model->family.temporal;
    int64_t t0 = sl_now_ns();
    float *first = to_unit(&im->first), *last = im->last.rgb ? to_unit(&im->last) : NULL;
    const sl_tensor mask = sl_rows(&to->device, 0, per), latent = sl_rows(&to->device, per, z);
    sl_code rc = SL_OK;
    if (!first || (im->last.rgb && !last)) rc = sl_fail(err, SL_NOMEM, "condition: no memory");
    else
        fill_mask(to->host.data, per, (int)g.latent_frames, g.latent_height * g.latent_width,
                  last != NULL);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    if (!rc) rc = sl_turn_begin(&s->seat->turn, SL_TURN_PIECE, "condition", 1, err);
    t0 = sl_now_ns();
    if (!rc) {
        if (per) sl_upload(&s->ctx, &mask, to->host.data);
        sl_vae_encode_condition(&s->ctx, s->vae, &latent, first, last,
                                sl_condition_frames(&model->family, job->frames), job->height,
                                job->width, NULL);
        sl_download(&s->ctx, to->host.data, &to->device);
        if (!sl_ok(&s->ctx)) rc = sl_ctx_error(&s->ctx, err);
    }
    free(first);
    free(last);
    if (rc) return rc;
    sl_turn_end(&s->seat->turn, false);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    return sl_seat_finite("condition", &to->host, (sl_loader *[]){s->vae_loader, NULL}, err);
}

static sl_code image_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    image_stage *s = self;
    images im = {0};
    int64_t t0 = sl_now_ns();
    sl_code rc = read_picture(&im.first, &im.clip_first, msg, "image.input", job, err);
    if (!rc && sl_takes_last_picture(&s->seat->model.family, job))
        rc = read_picture(&im.last, &im.clip_last, msg, "last_image.input", job, err);
    if (!rc) rc = take_memory(s, &im, job, err);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    if (!rc && s->clip) rc = clip_tokens(s, &im, msg, err);
    if (!rc) rc = condition(s, &im, job, msg, err);
    if (!rc) sl_parcel_give(&im.out, s->seat, &s->ctx, msg);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    sl_parcel_drop(&im.out, s->seat);
    sl_picture_free(&im.first);
    sl_picture_free(&im.last);
    sl_picture_free(&im.clip_first);
    sl_picture_free(&im.clip_last);
    return rc;
}

int main(int argc, char **argv)
{
    image_stage s = {0};
    sl_err err = {0};
    if (!sl_seat_open(&s.seat, SL_ROLE_IMAGE, argc, argv, &err) && !image_open(&s, &err))
        sl_seat_serve(s.seat, image_job, &s, &err);
    image_close(&s);
    return sl_seat_exit(&s.seat, &err);
}
