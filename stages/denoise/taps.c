/* taps.c - tensors of chosen forwards into files. */
#include "stages/denoise/taps.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"

sl_code sl_denoise_taps_open(denoise_taps *t, const sl_job *job, int blocks, const char *dir,
                             const sl_origin *origin, sl_err *err)
{
    sl_code rc;
    if (!job->dump_blocks) return SL_OK;
    if ((rc = sl_taps_parse(&t->which, job->dump_blocks_of, job->steps, blocks, err)) ||
        (rc = sl_path_join(t->dir, dir, "blocks", err)))
        return rc;
    if (mkdir(t->dir, 0700) && errno != EEXIST) return sl_fail_errno(err, errno, "%s", t->dir);
    t->origin = origin;
    return SL_OK;
}

void sl_denoise_taps_at(denoise_taps *t, sl_ctx *ctx, int step, int branch)
{
    const bool wanted =
        *t->dir && t->which.branches[branch] && (step < 0 || sl_taps_step(&t->which, step));
    int n = 0;
    sl_denoise_taps_off(ctx);
    if (!wanted) return;
    if (step > 0) n = snprintf(t->prefix, sizeof t->prefix, "step.%d.", step);
    snprintf(t->prefix + n, sizeof t->prefix - (size_t)n, "%s", branch ? "uncond." : "");
    ctx->tap = sl_denoise_tap;
    ctx->tap_user = t;
    ctx->tap_parts = t->which.attention;
}

void sl_denoise_taps_off(sl_ctx *ctx)
{
    ctx->tap = NULL;
    ctx->tap_parts = false;
}

/* t on the host, dense: malloc'd. A block of columns comes row by row. */
static void *bring(sl_ctx *ctx, const sl_tensor *t)
{
    char *data = malloc(sl_bytes(t) + 1);
    const int64_t rows = t->shape[0], columns = rows ? sl_count(t) / rows : 0;
    const size_t size = sl_dtype_size(t->dtype);
    if (!data) return NULL;
    if (sl_is_dense(t)) sl_download(ctx, data, t);
    for (int64_t r = 0; r < rows && !sl_is_dense(t); r++) {
        const sl_tensor row =
            sl_view1((char *)t->data + (size_t)(r * t->pitch) * size, t->dtype, columns);
        sl_download(ctx, data + (size_t)(r * columns) * size, &row);
    }
    return data;
}

static sl_code open_file(denoise_taps *t, tap_piece *p, const char *name, const sl_tensor *x,
                         int64_t rows, sl_err *err)
{
    char file[SL_TAP_NAME + 16], path[SL_PATH];
    sl_st_note notes[SL_ORIGIN_NOTES];
    int64_t shape[SL_MAX_RANK];
    sl_code rc;
    *p = (tap_piece){.of = rows};
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(file, sizeof file, "%s.safetensors", name);
    memcpy(shape, x->shape, sizeof shape);
    shape[0] = rows;
    if ((rc = sl_path_join(path, t->dir, file, err)) || (rc = sl_stw_open(&p->file, path, err)) ||
        (rc = sl_stw_notes(p->file, sl_origin_notes(notes, t->origin), notes, err)) ||
        (rc = sl_stw_declare(p->file, name, x->dtype, x->rank, shape, err)))
        sl_stw_abandon(&p->file);
    return rc;
}

/* The open file of this name, or a new one. */
static sl_code find(denoise_taps *t, tap_piece **out, const char *name, const sl_tensor *x,
                    int64_t rows, sl_err *err)
{
    tap_piece *free_one = NULL;
    for (int i = 0; i < SL_TAP_PIECES; i++) {
        tap_piece *p = *out = &t->pieces[i];
        if (p->file && !strcmp(p->name, name)) return SL_OK;
        if (!p->file) free_one = p;
    }
    if (!(*out = free_one))
        return sl_fail(err, SL_INTERNAL, "%s: %d tensors are open already", name, SL_TAP_PIECES);
    return open_file(t, free_one, name, x, rows, err);
}

/* Rows behind those that the file has; with the last one it is whole. */
static sl_code put(denoise_taps *t, const char *name, const sl_tensor *x, const void *data,
                   int64_t rows, sl_err *err)
{
    tap_piece *p;
    const size_t row = rows ? sl_bytes(x) / (size_t)x->shape[0] : 0;
    sl_code rc = find(t, &p, name, x, rows, err);
    if (rc) return rc;
    if (!(rc = sl_stw_write(p->file, name, data, (size_t)p->rows * row, sl_bytes(x), err)) &&
        (p->rows += x->shape[0]) == p->of)
        rc = sl_stw_finish(&p->file, err);
    if (rc) sl_stw_abandon(&p->file);
    return rc;
}

void sl_denoise_tap(void *user, sl_ctx *ctx, const char *name, const sl_tensor *x)
{
    denoise_taps *t = user;
    char full[SL_TAP_NAME];
    sl_err err = {0};
    if (!sl_taps_name(&t->which, name)) return;
    snprintf(full, sizeof full, "%s%s", t->prefix, name);
    void *data = bring(ctx, x);
    sl_tensor host = *x;
    host.pitch = host.shape[0] ? sl_count(x) / host.shape[0] : 0;
    if (data && sl_ok(ctx) &&
        put(t, full, &host, data, ctx->tap_of ? ctx->tap_of : x->shape[0], &err))
        sl_log_err("dump-blocks", &err);
    free(data);
}

void sl_denoise_taps_close(denoise_taps *t)
{
    for (int i = 0; i < SL_TAP_PIECES; i++) sl_stw_abandon(&t->pieces[i].file);
}
