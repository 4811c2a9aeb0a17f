/* sluice-text - prompt and negative prompt -> UMT5 embeddings `cond` and `uncond`, [512,
 * text_dim] each. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/prompt.h"
#include "common/tokenizer.h"
#include "graphs/umt5.h"
#include "stages/network.h"
#include "stages/sizes/sizes.h"
#include "stages/turn.h"

typedef struct {
    sl_stage *st;
    sl_ctx ctx;
    sl_loader *loader;
    sl_umt5 *umt5;
    sl_tokenizer *tokenizer;
    int dim;
} text_stage;

/* One prompt's result: ids and [512, dim] float32 rows, zero past the prompt's end (spec
 * 3.3). */
typedef struct {
    int32_t ids[SL_UMT5_MAX_TOKENS];
    int n;
    sl_tensor device; /* in the arena, until the job ends */
    float *rows;      /* the same on the host */
} embedding;

static sl_code text_open(text_stage *s, sl_err *err)
{
    const sl_model *model = sl_stage_model(s->st);
    const sl_ops *ops;
    int64_t t0 = sl_now_ns();
    char spiece[SL_PATH];
    sl_arena arena;
    sl_code rc;
    s->dim = model->umt5.d_model;
    if ((rc = sl_stage_ops(s->st, &ops, err)) || (rc = sl_ctx_open(&s->ctx, ops, 0, err)))
        return rc;
    if ((rc = sl_path_join(spiece, model->dir, "tokenizer/spiece.model", err)) ||
        (rc = sl_tokenizer_open(&s->tokenizer, spiece, err)))
        return rc;
    if ((rc = sl_network_open(&s->loader, s->st, &s->ctx, "text_encoder", "model", err))) return rc;
    if (!(s->umt5 = sl_umt5_new(&model->umt5, s->loader)))
        return sl_fail(err, SL_NOMEM, "umt5: no memory");
    if ((rc = sl_loader_finish(s->loader, err))) return rc;

    if ((rc = sl_arena_text(&arena, ops, &model->umt5, s->umt5, err)) ||
        (rc = sl_ctx_reserve(&s->ctx, arena.peak, err)))
        return rc;
    s->ctx.cancel = sl_stage_cancel_flag(s->st);
    sl_stage_ready(s->st, t0, sl_loader_bytes(s->loader), arena.peak);
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
static sl_code tokenize(text_stage *s, embedding *e, const char *prompt, sl_err *err)
{
    char *clean = NULL;
    sl_code rc = sl_prompt_clean(&clean, prompt, strlen(prompt), err);
    if (!rc)
        rc = sl_tokenizer_encode(s->tokenizer, clean, strlen(clean), e->ids, SL_UMT5_MAX_TOKENS,
                                 &e->n, err);
    free(clean);
    return rc;
}

/* e->device and e->rows from e->ids: prompt n of `count`. */
static sl_code embed(text_stage *s, embedding *e, int n, int count, const sl_msg_job *msg,
                     sl_err *err)
{
    sl_ctx *ctx = &s->ctx;
    sl_err found = {0};
    sl_code rc = sl_stage_turn_begin(s->st, SL_TURN_PIECE, "text", n, err);
    int64_t t0 = sl_now_ns();
    if (rc) return rc;
    size_t mark = sl_mark(ctx);
    sl_tensor out = sl_new2(ctx, sl_act(ctx), e->n, s->dim), written = sl_rows(&e->device, 0, e->n);
    sl_umt5_encode(ctx, s->umt5, e->ids, e->n, &out);
    sl_zero(ctx, &e->device);
    sl_copy(ctx, &written, &out);
    if (!(e->rows = sl_stage_host_alloc(s->st, sl_bytes(&e->device))))
        sl_ctx_fail(ctx, SL_NOMEM, "text: no memory for an embedding");
    else sl_download(ctx, e->rows, &e->device);
    if (!sl_ok(ctx)) return sl_ctx_error(ctx, err);
    sl_release(ctx, mark);
    sl_stage_turn_end(s->st, n < count);
    sl_stage_span(s->st, msg->job, SL_SPAN_COMPUTE, t0);

    sl_tensor rows = sl_view2(e->rows, SL_F32, e->n, s->dim);
    if (sl_stage_check_finite("text embedding", &rows, &found))
        return sl_network_blame((sl_loader *[]){s->loader, NULL}, &found, err);
    return SL_OK;
}

static void hand_over(text_stage *s, const sl_msg_job *msg, embedding *cond, embedding *uncond,
                      bool cfg)
{
    const char *const with[] = {"cond", "uncond", "ids.cond", "ids.uncond"}, *const without[] = {
                                                                                 "cond",
                                                                                 "ids.cond"};
    const char *const *names = cfg ? with : without;
    sl_tensor c = sl_view2(cond->rows, SL_F32, SL_UMT5_MAX_TOKENS, s->dim),
              u = sl_view2(uncond->rows, SL_F32, SL_UMT5_MAX_TOKENS, s->dim);
    sl_tensor ic = sl_view1(cond->ids, SL_I32, cond->n),
              iu = sl_view1(uncond->ids, SL_I32, uncond->n);
    sl_tensor tensors[] = {c, cfg ? u : ic, ic, iu}, device[] = {cond->device, uncond->device};
    sl_err lost = {0};
    sl_ticket ticket;
    int64_t t0 = sl_now_ns();
    bool handed = sl_stage_hand_over(s->st, &s->ctx, SL_HANDOVER_TEXT, cfg ? 2 : 1, names, tensors,
                                     device, &ticket, &lost) == SL_OK;
    if (!handed)
        sl_log(SL_LOG_DEBUG, "job %llu goes by the spool: %s", (unsigned long long)msg->job,
               lost.msg);
    sl_stage_spool(s->st, msg, "text", true, cfg ? 4 : 2, names, tensors);
    sl_stage_span(s->st, msg->job, SL_SPAN_HANDOVER, t0);
    sl_stage_done(s->st, msg, handed ? &ticket : NULL, s->ctx.arena_peak, 0);
}

static sl_code text_job(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    text_stage *s = self;
    embedding cond = {0}, uncond = {0};
    bool cfg = job->guidance > 1;
    int64_t t0 = sl_now_ns();
    sl_code rc = tokenize(s, &cond, job->prompt, err);
    if (!rc && cfg) rc = tokenize(s, &uncond, job->negative, err);
    sl_stage_span(s->st, msg->job, SL_SPAN_COMPUTE, t0);
    sl_tensor both = sl_new2(&s->ctx, SL_F32, 2 * SL_UMT5_MAX_TOKENS, s->dim);
    cond.device = sl_rows(&both, 0, SL_UMT5_MAX_TOKENS);
    uncond.device = sl_rows(&both, SL_UMT5_MAX_TOKENS, SL_UMT5_MAX_TOKENS);
    if (!rc) rc = embed(s, &cond, 1, cfg ? 2 : 1, msg, err);
    if (!rc && cfg) rc = embed(s, &uncond, 2, 2, msg, err);
    if (!rc) hand_over(s, msg, &cond, &uncond, cfg);
    sl_ctx_error(&s->ctx, NULL); /* empties the arena */
    sl_stage_host_free(s->st, cond.rows);
    sl_stage_host_free(s->st, uncond.rows);
    return rc;
}

int main(int argc, char **argv)
{
    text_stage s = {0};
    sl_err err = {0};
    if (sl_stage_open(&s.st, "text", argc, argv, &err) || text_open(&s, &err)) {
        text_close(&s);
        return sl_stage_exit(&s.st, &err);
    }
    sl_network_serve(s.st, text_job, &s, NULL, NULL, &err);
    text_close(&s);
    return sl_stage_exit(&s.st, &err);
}
