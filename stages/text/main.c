/* sluice-text - prompt and negative prompt -> UMT5 embeddings `cond` and `uncond`, [512,
 * text_dim] each. */
#include <stdlib.h>
#include <string.h>

#include "common/prompt.h"
#include "common/tokenizer.h"
#include "graphs/umt5.h"
#include "stages/seat/loop.h"
#include "stages/seat/parcel.h"
#include "stages/sizes/sizes.h"

typedef struct {
    sl_seat *seat;
    sl_ctx ctx;
    sl_loader *loader;
    sl_umt5 *umt5;
    sl_tokenizer *tokenizer;
} text_stage;

/* A prompt's tokens. */
typedef struct {
    int32_t ids[SL_UMT5_MAX_TOKENS];
    int n;
} tokens;

static sl_code text_open(text_stage *s, sl_err *err)
{
    const sl_model *model = &s->seat->model;
    int64_t t0 = sl_now_ns();
    sl_arena arena;
    sl_code rc;
    if ((rc = sl_seat_context(s->seat, &s->ctx, err))) return rc;
    if ((rc = sl_tokenizer_open(&s->tokenizer, model->layout.tokenizer, err)) ||
        (rc = sl_seat_loader(&s->loader, s->seat, &s->ctx, SL_PART_TEXT, err)))
        return rc;
    if (!(s->umt5 = sl_umt5_new(&model->umt5, s->loader)))
        return sl_fail(err, SL_NOMEM, "umt5: no memory");
    if ((rc = sl_loader_finish(s->loader, err))) return rc;

    if ((rc = sl_arena_text(&arena, s->ctx.ops, &model->umt5, s->umt5, err)) ||
        (rc = sl_ctx_reserve(&s->ctx, arena.peak, err)))
        return rc;
    sl_seat_ready(s->seat, t0, sl_loader_bytes(s->loader), arena.peak);
    return SL_OK;
}

static void text_close(text_stage *s)
{
    sl_umt5_free(&s->umt5);
    sl_loader_close(&s->loader);
    sl_tokenizer_close(&s->tokenizer);
    sl_ctx_close(&s->ctx);
}

/* Tokens of a prompt, cleaned. */
static sl_code tokenize(text_stage *s, tokens *t, const char *prompt, sl_err *err)
{
    char *clean = NULL;
    sl_code rc = sl_prompt_clean(&clean, prompt, strlen(prompt), err);
    if (!rc)
        rc = sl_tokenizer_encode(s->tokenizer, clean, strlen(clean), t->ids, SL_UMT5_MAX_TOKENS,
                                 &t->n, err);
    free(clean);
    return rc;
}

/* Both sides of `to`, [512, text_dim], from prompt n of `count`: float32 rows, zero past the
 * prompt's end (spec 3.3). */
static sl_code embed(text_stage *s, const sl_parcel_tensor *to, const tokens *t, int n, int count,
                     const sl_msg_job *msg, sl_err *err)
{
    sl_ctx *ctx = &s->ctx;
    sl_code rc = sl_turn_begin(&s->seat->turn, SL_TURN_PIECE, "text", n, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    size_t mark = sl_mark(ctx);
    sl_tensor out = sl_new2(ctx, sl_act(ctx), t->n, to->device.shape[1]),
              written = sl_rows(&to->device, 0, t->n);
    sl_umt5_encode(ctx, s->umt5, t->ids, t->n, &out);
    sl_zero(ctx, &to->device);
    sl_copy(ctx, &written, &out);
    sl_download(ctx, to->host.data, &to->device);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_release(ctx, mark);
    sl_turn_end(&s->seat->turn, n < count);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);

    const sl_tensor rows = sl_rows(&to->host, 0, t->n);
    return sl_seat_finite("text embedding", &rows, (sl_loader *[]){s->loader, NULL}, err);
}

static sl_code text_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    static const char *const IDS[] = {"ids.cond", "ids.uncond"};
    const char *prompts[] = {job->prompt, job->negative};
    text_stage *s = self;
    tokens t[2] = {0};
    sl_parcel p = {0};
    int count = sl_job_guided(job) ? 2 : 1;
    int64_t t0 = sl_now_ns();
    sl_code rc = SL_OK;
    for (int i = 0; i < count && !rc; i++) rc = tokenize(s, &t[i], prompts[i], err);
    sl_control_span(&s->seat->control, msg->job, SL_SPAN_COMPUTE, t0);
    if (!rc) rc = sl_parcel_make(&p, s->seat, &s->ctx, SL_HANDOVER_TEXT, job, err);
    /* the place of uncond, which a plan counts whatever the job: it does not know the next */
    if (count < 2) sl_new2(&s->ctx, SL_F32, SL_TEXT_TOKENS, s->seat->model.umt5.d_model);
    for (int i = 0; i < count && !rc; i++) {
        const sl_tensor ids = sl_view1(t[i].ids, SL_I32, t[i].n);
        sl_parcel_add(&p, IDS[i], &ids);
        rc = embed(s, &p.at[i], &t[i], i + 1, count, msg, err);
    }
    if (!rc) sl_parcel_give(&p, s->seat, &s->ctx, msg);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    sl_parcel_drop(&p, s->seat);
    return rc;
}

int main(int argc, char **argv)
{
    text_stage s = {0};
    sl_err err = {0};
    if (!sl_seat_open(&s.seat, SL_ROLE_TEXT, argc, argv, &err) && !text_open(&s, &err))
        sl_seat_serve(s.seat, text_job, &s, &err);
    text_close(&s);
    return sl_seat_exit(&s.seat, &err);
}
