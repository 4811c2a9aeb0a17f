/* parcel.c - the tensors of a hand-over, given and taken whole. */
#include "stages/seat/parcel.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"

#define SLOT_WAIT_MS 1000 /* longest wait for a slot: then the hand-over goes by the file */

/* The names and shapes; no memory yet. */
static void lay_out(sl_parcel *p, const sl_seat *seat, sl_handover h, const sl_job *job)
{
    const sl_grid grid = sl_job_grid(&seat->model, job);
    *p = (sl_parcel){.handover = h};
    p->count = p->all = sl_handover_tensors(p->spec, h, &seat->model, &grid, job);
    for (int i = 0; i < p->count; i++) {
        const sl_tensor_spec *s = &p->spec[i];
        p->at[i].name = s->name;
        p->at[i].host = sl_view(NULL, s->dtype, s->rank, s->shape);
    }
}

sl_code sl_parcel_path(char path[SL_PATH], const sl_parcel *p, const sl_msg_job *msg, sl_err *err)
{
    char file[64];
    snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[p->handover].file);
    return sl_path_join(path, msg->dir, file, err);
}

/* ---- giving ---- */

sl_code sl_parcel_make(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, sl_handover h, const sl_job *job,
                       sl_err *err)
{
    lay_out(p, seat, h, job);
    p->pinned = true;
    for (int i = 0; i < p->count; i++) {
        sl_tensor *host = &p->at[i].host;
        if (ctx) p->at[i].device = sl_new(ctx, host->dtype, host->rank, host->shape);
        if (!(host->data = sl_seat_host_alloc(seat, sl_bytes(host))))
            return sl_fail(err, SL_NOMEM, "%s: no memory for %zu bytes", p->at[i].name,
                           sl_bytes(host));
    }
    return SL_OK;
}

void sl_parcel_add(sl_parcel *p, const char *name, const sl_tensor *host)
{
    assert(p->all < SL_PARCEL_TENSORS);
    p->at[p->all++] = (sl_parcel_tensor){.name = name, .host = *host};
}

/* One tensor into its place in the slot: the side that the slot's memory is made for. */
static void fill(sl_ctx *ctx, const sl_tensor *slot, const sl_parcel_tensor *from, bool on_device)
{
    if (!on_device) memcpy(slot->data, from->host.data, sl_bytes(slot));
    else if (from->device.rank) sl_copy(ctx, slot, &from->device);
    else sl_upload(ctx, slot, from->host.data);
}

/* Reserve a slot of the receiver's, copy in, seal. Copies on the device are queued, not
 * waited for. */
static sl_code hand_over(const sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                         sl_ticket *ticket, sl_err *err)
{
    sl_pool *pool;
    sl_lease *lease = NULL;
    sl_code rc;
    if ((rc = sl_pools_to(&seat->pools, msg, p->handover, &pool, err))) return rc;
    if ((rc = sl_lease_reserve(&lease, pool, SLOT_WAIT_MS, err))) return rc;
    bool on_device = sl_pool_kind_of(pool) == SL_POOL_CUDA;
    cudaStream_t stream = on_device ? ctx->stream : NULL;
    for (int i = 0; i < p->count && !rc; i++) {
        const sl_tensor_spec *s = &p->spec[i];
        sl_tensor slot;
        rc = sl_lease_add(lease, s->name, s->dtype, s->rank, s->shape, &slot, err);
        if (!rc) fill(ctx, &slot, &p->at[i], on_device);
    }
    if (!rc && on_device && !sl_ok(ctx)) rc = sl_ctx_error(ctx, err);
    if (!rc) rc = sl_lease_seal(lease, stream, ticket, err);
    sl_lease_drop(&lease, stream);
    return rc;
}

static void spool(const sl_parcel *p, sl_seat *seat, const sl_msg_job *msg)
{
    const char *file = SL_HANDOVER[p->handover].file, *names[SL_PARCEL_TENSORS];
    sl_tensor tensors[SL_PARCEL_TENSORS];
    for (int i = 0; i < p->all; i++) names[i] = p->at[i].name, tensors[i] = p->at[i].host;
    if (p->written) sl_spool_written(&seat->spool, msg, file);
    else sl_spool_write(&seat->spool, msg, file, true, p->all, names, tensors);
}

void sl_parcel_hand(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                    sl_tickets *out)
{
    sl_ticket ticket;
    sl_err lost = {0};
    if (!hand_over(p, seat, ctx, msg, &ticket, &lost)) sl_tickets_add(out, p->handover, &ticket);
    else
        sl_log(SL_LOG_DEBUG, "job %llu goes by the spool: %s", (unsigned long long)msg->job,
               lost.msg);
    spool(p, seat, msg);
}

void sl_parcel_give(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg)
{
    int64_t t0 = sl_now_ns();
    sl_tickets out = {0};
    sl_parcel_hand(p, seat, ctx, msg, &out);
    sl_control_span(&seat->control, msg->job, SL_SPAN_HANDOVER, t0);
    sl_seat_done(seat, msg, &out, ctx->arena_peak, 0);
}

/* ---- taking ---- */

sl_code sl_parcel_bring(float **out, const sl_tensor *found, const char *name,
                        const sl_tensor *want, sl_err *err)
{
    char a[96], b[96];
    int64_t n = sl_count(want), at;
    sl_code rc;
    *out = NULL;
    if (!sl_same_shape(found, want))
        return sl_fail(err, SL_SHAPE, "%s has shape %s, want %s", name,
                       sl_shape_text(found, a, sizeof a), sl_shape_text(want, b, sizeof b));
    if (!(*out = malloc((size_t)n * sizeof(float) + 1)))
        return sl_fail(err, SL_NOMEM, "%s: no memory for %zu bytes", name,
                       (size_t)n * sizeof(float));
    if ((rc = sl_to_floats(*out, found->data, found->dtype, n, err)))
        rc = sl_context(err, rc, "%s", name);
    else if ((at = sl_first_nonfinite(*out, SL_F32, n)) >= 0)
        rc = sl_fail(err, SL_NUMERIC, "%s %s has NaN or infinity at element %lld", name,
                     sl_shape_text(want, a, sizeof a), (long long)at);
    if (rc) free(*out), *out = NULL;
    return rc;
}

sl_code sl_parcel_read(float **out, const sl_st *file, const char *name, int rank,
                       const int64_t *shape, sl_err *err)
{
    const sl_st_entry *e = sl_st_find(file, name);
    const sl_tensor want = sl_view(NULL, SL_F32, rank, shape);
    *out = NULL;
    if (!e) return sl_fail(err, SL_FORMAT, "%s: tensor %s is missing", sl_st_path(file, 0), name);
    return sl_parcel_bring(out, &e->t, name, &want, err);
}

sl_code sl_parcel_left(const sl_tensor *found, const char *name, const sl_tensor *want, sl_err *err)
{
    char a[96], b[96];
    if (sl_same_shape(found, want) && (found->dtype == SL_F32 || found->dtype == SL_BF16))
        return SL_OK;
    return sl_fail(err, SL_SHAPE, "%s is %s %s, want F32 or BF16 %s", name,
                   sl_dtype_tag(found->dtype), sl_shape_text(found, a, sizeof a),
                   sl_shape_text(want, b, sizeof b));
}

static sl_code take_slot(sl_parcel *p, sl_pool *pool, sl_ctx *ctx, const sl_ticket *ticket,
                         sl_err *err)
{
    bool on_device = sl_pool_kind_of(pool) == SL_POOL_CUDA;
    sl_code rc;
    p->stream = on_device ? ctx->stream : NULL;
    rc = sl_lease_open(&p->lease, pool, ticket, p->stream, err);
    for (int i = 0; i < p->count && !rc; i++) {
        sl_parcel_tensor *t = &p->at[i];
        sl_tensor found;
        float *data = NULL;
        if ((rc = sl_lease_tensor(p->lease, t->name, &found, err))) break;
        if (on_device) t->device = found;
        rc = on_device ? sl_parcel_left(&found, t->name, &t->host, err)
                       : sl_parcel_bring(&data, &found, t->name, &t->host, err);
        t->host.data = data;
    }
    if (!on_device) sl_lease_drop(&p->lease, NULL); /* all of it has been copied */
    return rc;
}

static sl_code take_file(sl_parcel *p, const sl_msg_job *msg, sl_err *err)
{
    char path[SL_PATH];
    sl_st *file = NULL;
    sl_code rc = sl_parcel_path(path, p, msg, err);
    if (!rc) rc = sl_st_open_file(&file, path, err);
    for (int i = 0; i < p->count && !rc; i++) {
        const sl_tensor_spec *s = &p->spec[i];
        float *data;
        rc = sl_parcel_read(&data, file, s->name, s->rank, s->shape, err);
        p->at[i].host.data = data;
    }
    sl_st_close(&file);
    return rc;
}

sl_code sl_parcel_take(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                       const sl_job *job, sl_handover h, sl_err *err)
{
    const int row = sl_handover_to(seat->role, h); /* a filter may stand before */
    if (row >= 0) h = (sl_handover)row;
    const sl_ticket *ticket = sl_tickets_find(&msg->in, h);
    sl_pool *pool = sl_pools_mine(&seat->pools, h);
    lay_out(p, seat, h, job);
    if (ticket && !pool)
        return sl_fail(err, SL_GONE, "%s: no pool receives it here", SL_HANDOVER[h].name);
    return ticket ? take_slot(p, pool, ctx, ticket, err) : take_file(p, msg, err);
}

/* Upload host float32 values, sl_count(t) of them, as t (F32 or act dtype). */
static void upload(sl_ctx *ctx, const sl_tensor *t, const float *values)
{
    if (t->dtype == SL_F32) {
        sl_upload(ctx, t, values);
        return;
    }
    void *tmp = malloc(sl_bytes(t) + 1);
    sl_err err = {0};
    if (!tmp) sl_ctx_fail(ctx, SL_NOMEM, "upload: no memory for %zu bytes", sl_bytes(t));
    else if (sl_from_floats(tmp, t->dtype, values, sl_count(t), &err))
        sl_ctx_fail(ctx, err.code, "%s", err.msg);
    else sl_upload(ctx, t, tmp);
    free(tmp);
}

void sl_parcel_place(sl_ctx *ctx, const sl_tensor *t, const sl_parcel_tensor *from)
{
    if (from->device.rank) sl_copy(ctx, t, &from->device);
    else upload(ctx, t, from->host.data);
}

void sl_parcel_drop(sl_parcel *p, sl_seat *seat)
{
    sl_lease_drop(&p->lease, p->stream);
    for (int i = 0; i < p->count; i++) {
        if (p->pinned) sl_seat_host_free(seat, p->at[i].host.data);
        else free(p->at[i].host.data);
    }
    *p = (sl_parcel){0};
}
