/* filter.c - a stage of one's own that is put into a hand-over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stages/own/own.h"

/* The row that the filter takes, and the one that it gives. */
static bool rows(const sl_stage *s, sl_handover *in, sl_handover *out)
{
    if (!sl_role_is_filter(s->seat->role)) return false;
    *in = sl_filter_takes(s->seat->role);
    *out = sl_filter_gives(s->seat->role);
    return true;
}

const char *sl_stage_filters(const sl_stage *s)
{
    sl_handover in, out;
    return rows(s, &in, &out) ? SL_HANDOVER[SL_HANDOVER[out].kind].name : NULL;
}

/* ---- as it came ---- */

/* The file of what came is whole already: it gets a second name. false: it is not, or its file
 * system has no such names. */
static bool link_file(const sl_stage *s, sl_handover in, sl_handover out)
{
    char from[SL_PATH], to[SL_PATH], name[64];
    snprintf(name, sizeof name, "%s.safetensors", SL_HANDOVER[in].file);
    if (sl_path_join(from, s->msg.dir, name, NULL)) return false;
    snprintf(name, sizeof name, "%s.safetensors", SL_HANDOVER[out].file);
    if (sl_path_join(to, s->msg.dir, name, NULL)) return false;
    unlink(to); /* of an attempt that fell */
    return !link(from, to);
}

static sl_code pass_whole(sl_stage *s, sl_handover in, sl_handover out, sl_err *err)
{
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    sl_tensor t[SL_HANDOVER_TENSORS];
    const int n = sl_handover_tensors(spec, in, &s->seat->model, &s->grid, &s->job);
    for (int i = 0; i < n; i++) {
        sl_code rc = sl_stage_input(s, spec[i].name, NULL, &t[i], err);
        if (rc) return rc;
        if (sl_stage_lies_on_device(s, spec[i].name))
            return sl_fail(err, SL_ARG, "%s lies on a device: want it given", spec[i].name);
    }
    return sl_own_give(s, out, t, link_file(s, in, out), err);
}

static sl_code pass_chunk(sl_stage *s, sl_handover in, sl_handover out, sl_err *err)
{
    const sl_tensor *from = &s->awaited.t;
    sl_tensor to;
    sl_code rc;
    if (!s->awaited.lease)
        return sl_fail(err, SL_ARG, "no chunk of %s is there", SL_HANDOVER[in].name);
    if (SL_HANDOVER[in].scale != SL_HANDOVER[out].scale)
        return sl_fail(
            err, SL_SHAPE,
            "%s: frames are %g times as large behind it (scale), and cannot go on as they came",
            sl_role_name(s->seat->role), SL_HANDOVER[out].scale / SL_HANDOVER[in].scale);
    if ((rc = sl_stage_chunk(s, from->shape[0], NULL, &to, err))) return rc;
    memcpy(to.data, from->data, sl_bytes(&to));
    return sl_stage_send(s, err);
}

sl_code sl_stage_pass(sl_stage *s, sl_err *err)
{
    sl_handover in, out;
    if (!rows(s, &in, &out))
        return sl_fail(err, SL_ARG, "%s is no filter", sl_role_name(s->seat->role));
    return SL_HANDOVER[out].how == SL_WHOLE ? pass_whole(s, in, out, err)
                                            : pass_chunk(s, in, out, err);
}

/* ---- all of main ---- */

typedef struct {
    sl_filter_work *work;
    void *self;
} filter;

static sl_code filter_whole(sl_stage *s, const filter *f, sl_handover in, sl_handover out,
                            sl_err *err)
{
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    sl_tensor from[SL_HANDOVER_TENSORS], to[SL_HANDOVER_TENSORS] = {0};
    const int n = sl_handover_tensors(spec, in, &s->seat->model, &s->grid, &s->job);
    bool same = false;
    sl_code rc = SL_OK;
    for (int i = 0; i < n && !rc; i++) {
        if ((rc = sl_stage_input(s, spec[i].name, NULL, &from[i], err))) break;
        to[i] = from[i];
        if ((to[i].data = malloc(sl_bytes(&to[i]) + 1)))
            memcpy(to[i].data, from[i].data, sl_bytes(&to[i]));
        else rc = sl_fail(err, SL_NOMEM, "%s: no memory", spec[i].name);
    }
    if (!rc) rc = f->work(s, f->self, -1, from, to, &same, err);
    if (!rc) rc = same ? pass_whole(s, in, out, err) : sl_own_give(s, out, to, false, err);
    for (int i = 0; i < n; i++) free(to[i].data);
    return rc;
}

/* Straight into the slot of who takes it. */
static sl_code filter_chunk(sl_stage *s, const filter *f, int index, const sl_tensor *from,
                            bool scaled, sl_err *err)
{
    sl_tensor to;
    bool same = false;
    sl_code rc = sl_stage_chunk(s, from->shape[0], NULL, &to, err);
    if (rc) return rc;
    if (!scaled) memcpy(to.data, from->data, sl_bytes(&to));
    if ((rc = f->work(s, f->self, index, from, &to, &same, err))) return rc;
    if (same && !scaled) memcpy(to.data, from->data, sl_bytes(&to));
    if (same && scaled)
        return sl_fail(err, SL_SHAPE,
                       "%s: frames change their size (scale), and cannot go on as they came",
                       sl_role_name(s->seat->role));
    return sl_stage_send(s, err);
}

static sl_code filter_job(sl_stage *s, void *self, sl_err *err)
{
    const filter *f = self;
    sl_handover in, out;
    sl_tensor from;
    int index = -1, chunks = 0;
    sl_code rc = SL_OK;
    if (!rows(s, &in, &out)) return sl_fail(err, SL_INTERNAL, "no filter");
    if (SL_HANDOVER[out].how == SL_WHOLE) return filter_whole(s, f, in, out, err);
    const bool scaled = SL_HANDOVER[in].scale != SL_HANDOVER[out].scale;
    while (!rc && index + 1 < sl_stage_chunks(s))
        if (!(rc = sl_stage_await(s, &index, &chunks, &from, err)))
            rc = filter_chunk(s, f, index, &from, scaled, err);
    return rc;
}

int sl_filter_main(sl_filter_work *work, void *self, int argc, char **argv)
{
    return sl_stage_main("filter", filter_job, &(filter){work, self}, argc, argv);
}
