/* chunk.c - a hand-over that travels slot by slot while the sender works. */
#include "stages/seat/chunk.h"

#include "common/log.h"

#define LOOK_MS 100 /* of a wait for a slot: as often is a newer pool or a cancel looked for */

sl_tensor_spec sl_chunk_spec(const sl_seat *seat, sl_handover h, const sl_job *job, int64_t n)
{
    const sl_grid grid = sl_job_grid(&seat->model, job);
    sl_tensor_spec spec[SL_HANDOVER_TENSORS] = {0};
    sl_handover_tensors(spec, h, &seat->model, &grid, job);
    spec[0].shape[0] = n;
    return spec[0];
}

/* Copies from a device into the receiver's slots wait for nothing if its memory is pinned;
 * they also work without. */
static void pin(sl_seat *seat, sl_pool *pool)
{
    bool *failed = &seat->pools.pin_failed;
    sl_err err = {0};
    if (!seat->plugin || *failed || sl_pool_pinned(pool) || !sl_pool_pin(pool, &err)) return;
    sl_log(SL_LOG_WARN, "frames are copied more slowly: %s", err.msg);
    *failed = true;
}

static sl_code reserve(sl_chunk *c, sl_seat *seat, const sl_msg_job *msg, sl_err *err)
{
    int wait_ms = 0;
    sl_code rc;
    while (true) {
        if (sl_control_cancelled(&seat->control)) return sl_fail(err, SL_CANCELLED, "cancelled");
        if ((rc = sl_pools_to(&seat->pools, msg, c->msg.handover, &c->pool, err))) return rc;
        if (sl_pool_kind_of(c->pool) != SL_POOL_HOST)
            return sl_fail(err, SL_FORMAT,
                           "the receiver of %s has slots of device memory, want host memory",
                           SL_HANDOVER[c->msg.handover].name);
        pin(seat, c->pool);
        if ((rc = sl_lease_reserve(&c->lease, c->pool, wait_ms, err)) != SL_BUSY) return rc;
        sl_turn_end(&seat->turn, false); /* the device is others' meanwhile */
        wait_ms = LOOK_MS;
    }
}

sl_code sl_chunk_open(sl_chunk *c, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                      const sl_job *job, sl_err *err)
{
    const sl_tensor_spec s = sl_chunk_spec(seat, c->msg.handover, job, c->msg.frames);
    int64_t t0 = sl_now_ns();
    sl_code rc;
    c->msg.job = msg->job, c->msg.attempt = msg->attempt;
    c->stream = ctx->stream;
    if ((rc = reserve(c, seat, msg, err)) ||
        (rc = sl_lease_add(c->lease, s.name, s.dtype, s.rank, s.shape, &c->t, err)))
        return rc;
    sl_control_span(&seat->control, msg->job, SL_SPAN_WAIT, t0);
    return SL_OK;
}

void sl_chunk_fill(sl_chunk *c, const sl_seat *seat, sl_ctx *ctx, const sl_tensor *t)
{
    if (t->data == c->t.data) return;
    if (seat->plugin && sl_pool_pinned(c->pool))
        seat->plugin->copy_out(ctx, c->t.data, t->data, sl_bytes(t));
    else sl_download(ctx, c->t.data, t);
}

sl_code sl_chunk_give(sl_chunk *c, sl_seat *seat, sl_err *err)
{
    int64_t t0 = sl_now_ns();
    sl_msg m = {.type = SL_MSG_CHUNK};
    sl_code rc = sl_lease_seal(c->lease, c->stream, &c->msg.slot, err);
    if (rc) return rc;
    m.chunk = c->msg;
    sl_control_send(&seat->control, &m);
    sl_control_span(&seat->control, c->msg.job, SL_SPAN_HANDOVER, t0);
    return SL_OK;
}

sl_code sl_chunk_take(sl_chunk *c, sl_seat *seat, const sl_msg_chunk *msg, const sl_job *job,
                      sl_err *err)
{
    sl_pool *pool = sl_pools_mine(&seat->pools, msg->handover);
    char found[96], wanted[96];
    sl_code rc;
    c->msg = *msg;
    if (!pool) return sl_fail(err, SL_GONE, "chunk %u: no pool receives it here", msg->index);
    const sl_tensor_spec s = sl_chunk_spec(seat, msg->handover, job, msg->frames);
    const sl_tensor want = sl_view(NULL, s.dtype, s.rank, s.shape);
    if ((rc = sl_lease_open(&c->lease, pool, &msg->slot, NULL, err)) ||
        (rc = sl_lease_tensor(c->lease, s.name, &c->t, err)))
        return rc;
    if (c->t.dtype == want.dtype && sl_same_shape(&c->t, &want)) return SL_OK;
    return sl_fail(err, SL_SHAPE, "%s: chunk %u is %s %s, want %s %s",
                   SL_HANDOVER[msg->handover].name, msg->index, sl_dtype_tag(c->t.dtype),
                   sl_shape_text(&c->t, found, sizeof found), sl_dtype_tag(want.dtype),
                   sl_shape_text(&want, wanted, sizeof wanted));
}

void sl_chunk_drop(sl_chunk *c)
{
    sl_lease_drop(&c->lease, c->stream);
}
