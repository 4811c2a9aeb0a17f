/* loop.c - a stage that works on one job after another. */
#include "stages/seat/loop.h"

#include <stdio.h>

/* One JOB, from its beginning to DONE (said by `work`) or FAILED. */
static sl_code serve_job(sl_seat *seat, const sl_msg_job *msg, sl_work_fn *work, void *self,
                         sl_err *err)
{
    sl_job job = {0};
    sl_code rc = SL_OK;
    if (sl_seat_begin(seat, msg)) rc = sl_fail(err, SL_CANCELLED, "cancelled");
    if (!rc) rc = sl_seat_job(seat, &job, msg, err);
    if (!rc) rc = work(self, msg, &job, err);
    if (!rc && sl_control_is_at(&seat->control, msg->job, msg->attempt))
        rc = sl_fail(err, SL_INTERNAL, "work returned without DONE, PARKED or FAILED");
    /* what was opened has a stale ticket, which is ignored */
    for (uint32_t i = 0; rc && i < msg->in.count; i++)
        if (msg->in.at[i].way == SL_BY_SLOT) sl_pools_discard(&seat->pools, &msg->in.at[i].ticket);
    if (rc) sl_seat_failed(seat, msg, err);
    sl_job_free(&job);
    return rc;
}

void sl_seat_serve(sl_seat *seat, sl_work_fn *work, void *self, sl_err *err)
{
    sl_msg msg;
    while (!sl_control_next(&seat->control, false, &msg, err)) {
        sl_err bad = {0};
        if (msg.type != SL_MSG_JOB) continue;
        if (serve_job(seat, &msg.job, work, self, &bad) == SL_CUDA) {
            *err = bad;
            return;
        }
    }
}

sl_code sl_seat_loader(sl_loader **out, const sl_seat *seat, sl_ctx *ctx, sl_part_id part,
                       sl_err *err)
{
    const char *name = sl_part_name(part);
    sl_st *st = NULL;
    if (seat->conf.model.random) return sl_loader_random(out, ctx, 1, name, err);
    sl_code rc = sl_part_open(&st, &seat->model.layout, part, err);
    *out = NULL;
    return rc ? sl_context(err, rc, "%s", name) : sl_loader_set(out, ctx, &st, name, err);
}

sl_code sl_seat_finite(const char *name, const sl_tensor *t, sl_loader *const loaders[],
                       sl_err *err)
{
    int64_t at = sl_first_nonfinite(t->data, t->dtype, sl_count(t));
    char shape[96], found[256];
    sl_err why = {0};
    if (at < 0) return SL_OK;
    snprintf(found, sizeof found, "%s %s has NaN or infinity at element %lld", name,
             sl_shape_text(t, shape, sizeof shape), (long long)at);
    for (int i = 0; loaders[i]; i++)
        if (sl_loader_check_finite(loaders[i], &why) == SL_NUMERIC)
            return sl_fail(err, SL_NUMERIC, "%.230s, because %.230s", found, why.msg);
    return sl_fail(err, SL_NUMERIC, "%s (all weights are finite)", found);
}
