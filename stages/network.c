/* network.c - what the computing stages share around a network. */
#include "stages/network.h"

#include <stdlib.h>
#include <string.h>

sl_code sl_network_open(sl_loader **out, const sl_stage *st, sl_ctx *ctx, const char *name,
                        const char *stem, sl_err *err)
{
    char dir[SL_PATH];
    if (sl_stage_conf(st)->model.random) return sl_loader_random(out, ctx, 1, name, err);
    sl_code rc = sl_path_join(dir, sl_stage_model(st)->dir, name, err);
    return rc ? rc : sl_loader_file(out, ctx, dir, stem, name, err);
}

sl_code sl_network_blame(sl_loader *const loaders[], const sl_err *found, sl_err *err)
{
    sl_err why = {0};
    for (int i = 0; loaders[i]; i++)
        if (sl_loader_check_finite(loaders[i], &why) == SL_NUMERIC)
            return sl_fail(err, SL_NUMERIC, "%.230s, because %.230s", found->msg, why.msg);
    return sl_fail(err, SL_NUMERIC, "%s (all weights are finite)", found->msg);
}

sl_code sl_network_job(const sl_msg_job *msg, sl_job *job, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = sl_path_join(path, msg->dir, "job.json", err);
    if (!rc) rc = sl_job_read(job, path, err);
    if (!rc && (rc = sl_job_check(job, err))) sl_job_free(job);
    return rc;
}

void sl_network_serve(sl_stage *st, sl_work_fn *work, void *self, sl_pool *first, sl_pool *second,
                      sl_err *err)
{
    sl_msg msg;
    while (!sl_stage_next(st, false, &msg, err)) {
        if (msg.type != SL_MSG_JOB) continue;
        sl_job job = {0};
        sl_err bad = {0};
        sl_code rc = SL_OK;
        if (sl_stage_begin(st, msg.job.job, msg.job.attempt))
            rc = sl_fail(&bad, SL_CANCELLED, "cancelled");
        if (!rc) rc = sl_network_job(&msg.job, &job, &bad);
        if (!rc) rc = work(self, &msg.job, &job, &bad);
        for (uint32_t i = 0; rc && i < msg.job.in.count;
             i++) { /* unless it was opened: stale tickets are ignored */
            if (msg.job.in.at[i].way != SL_BY_SLOT) continue;
            if (first) sl_pool_discard(first, &msg.job.in.at[i].ticket);
            if (second) sl_pool_discard(second, &msg.job.in.at[i].ticket);
        }
        if (rc) sl_stage_failed(st, &msg.job, &bad);
        sl_job_free(&job);
        if (rc == SL_CUDA) {
            *err = bad;
            return;
        }
    }
}

sl_code sl_network_input(float **out, const sl_lease *lease, const sl_st *file, const char *name,
                         int rank, const int64_t *shape, sl_err *err)
{
    sl_tensor t = {0}, want = sl_view(NULL, SL_F32, rank, shape);
    char found[96], wanted[96];
    sl_code rc = SL_OK;
    if (lease) rc = sl_lease_tensor(lease, name, &t, err);
    else {
        const sl_st_entry *e = sl_st_find(file, name);
        if (!e)
            return sl_fail(err, SL_FORMAT, "%s: tensor %s is missing", sl_st_path(file, 0), name);
        t = e->t;
    }
    if (rc) return rc;
    if (!sl_same_shape(&t, &want))
        return sl_fail(err, SL_SHAPE, "%s has shape %s, want %s", name,
                       sl_shape_text(&t, found, sizeof found),
                       sl_shape_text(&want, wanted, sizeof wanted));
    if (!(*out = malloc(sl_bytes(&want) + 1)))
        return sl_fail(err, SL_NOMEM, "%s: no memory for %zu bytes", name, sl_bytes(&want));
    if ((rc = sl_to_floats(*out, t.data, t.dtype, sl_count(&t), err))) {
        free(*out);
        *out = NULL;
        return sl_context(err, rc, "%s", name);
    }
    want.data = *out;
    if ((rc = sl_stage_check_finite(name, &want, err))) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

sl_code sl_network_receive(sl_input *out, const sl_pool *pool, const sl_lease *lease,
                           const sl_st *file, const char *name, int rank, const int64_t *shape,
                           sl_err *err)
{
    sl_tensor want = sl_view(NULL, SL_F32, rank, shape), *t = &out->device;
    char found[96], wanted[96];
    sl_code rc;
    *out = (sl_input){0};
    if (!lease || sl_pool_kind_of(pool) == SL_POOL_HOST)
        return sl_network_input(&out->host, lease, file, name, rank, shape, err);
    if ((rc = sl_lease_tensor(lease, name, t, err))) return rc;
    if (sl_same_shape(t, &want) && (t->dtype == SL_F32 || t->dtype == SL_BF16)) return SL_OK;
    return sl_fail(err, SL_SHAPE, "%s is %s %s, want F32 or BF16 %s", name, sl_dtype_tag(t->dtype),
                   sl_shape_text(t, found, sizeof found),
                   sl_shape_text(&want, wanted, sizeof wanted));
}

void sl_network_place(sl_ctx *ctx, const sl_tensor *t, const sl_input *in)
{
    if (in->device.rank) sl_copy(ctx, t, &in->device);
    else sl_network_upload(ctx, t, in->host);
}

cudaStream_t sl_network_stream(const sl_ctx *ctx, const sl_pool *pool)
{
    return pool && sl_pool_kind_of(pool) == SL_POOL_CUDA ? ctx->stream : NULL;
}

void sl_network_upload(sl_ctx *ctx, const sl_tensor *t, const float *values)
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
