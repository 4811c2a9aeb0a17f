/* hand.c - what a stage of one's own is handed, and what it hands on. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "stages/own/own.h"
#include "stages/seat/noise.h"
#include "stages/seat/parcel.h"

#define SLOT_WAIT_MS 1000 /* longest wait for a slot: then the hand-over goes by the file */

/* ---- handed, whole ---- */

static sl_tensor view_of(const sl_tensor_spec *spec)
{
    return sl_view(NULL, spec->dtype, spec->rank, spec->shape);
}

/* A tensor of a slot of host memory: left there where it is as the spec says. */
static sl_code look(sl_own_input *in, int i, const sl_tensor *found, sl_err *err)
{
    const sl_tensor_spec *spec = &in->spec[i];
    const sl_tensor want = view_of(spec);
    const bool as_is = found->dtype == spec->dtype && sl_same_shape(found, &want);
    char shape[96];
    in->t[i] = *found;
    if (!as_is) {
        sl_code rc = sl_parcel_bring(&in->copy[i], found, spec->name, &want, err);
        in->t[i] = want;
        in->t[i].data = in->copy[i];
        return rc;
    }
    const int64_t at = sl_first_nonfinite(found->data, found->dtype, sl_count(found));
    if (at < 0) return SL_OK;
    return sl_fail(err, SL_NUMERIC, "%s %s has NaN or infinity at element %lld", spec->name,
                   sl_shape_text(found, shape, sizeof shape), (long long)at);
}

static sl_code open_slot(sl_stage *s, sl_own_input *in, sl_handover h, const sl_ticket *ticket,
                         sl_err *err)
{
    sl_pool *pool = sl_pools_mine(&s->seat->pools, h);
    sl_tensor found;
    sl_code rc;
    if (!pool) return sl_fail(err, SL_GONE, "%s: no pool receives it here", SL_HANDOVER[h].name);
    in->on_device = sl_pool_kind_of(pool) == SL_POOL_CUDA;
    if (!in->on_device) in->stream = NULL;
    rc = sl_lease_open(&in->lease, pool, ticket, in->stream, err);
    for (int i = 0; i < in->count && !rc; i++) {
        if ((rc = sl_lease_tensor(in->lease, in->spec[i].name, &found, err))) break;
        const sl_tensor want = view_of(&in->spec[i]);
        in->t[i] = found;
        rc = in->on_device ? sl_parcel_left(&found, in->spec[i].name, &want, err)
                           : look(in, i, &found, err);
    }
    return rc;
}

static sl_code open_file(sl_stage *s, sl_own_input *in, sl_handover h, sl_err *err)
{
    const sl_parcel named = {.handover = h};
    char path[SL_PATH];
    sl_st *file = NULL;
    sl_code rc = sl_parcel_path(path, &named, &s->msg, err);
    if (!rc) rc = sl_st_open_file(&file, path, err);
    for (int i = 0; i < in->count && !rc; i++) {
        const sl_tensor_spec *spec = &in->spec[i];
        rc = sl_parcel_read(&in->copy[i], file, spec->name, spec->rank, spec->shape, err);
        in->t[i] = view_of(spec);
        in->t[i].data = in->copy[i];
    }
    sl_st_close(&file);
    return rc;
}

static sl_code open_input(sl_stage *s, sl_handover h, cudaStream_t stream, sl_err *err)
{
    const int64_t t0 = sl_now_ns();
    sl_own_input *in = &s->in[h];
    const sl_ticket *ticket = sl_tickets_find(&s->msg.in, (uint32_t)h);
    sl_own_pause(s);
    in->open = true;
    in->stream = stream;
    in->count = sl_handover_tensors(in->spec, h, &s->seat->model, &s->grid, &s->job);
    sl_code rc = ticket ? open_slot(s, in, h, ticket, err) : open_file(s, in, h, err);
    sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_HANDOVER, t0);
    sl_own_go_on(s);
    return rc;
}

/* The hand-over of this job that has a tensor of this name; -1: none. */
static int handover_with(const sl_stage *s, const char *name, int *place, sl_err *err)
{
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    char names[128] = "";
    for (int h = 0; h < sl_handover_count(); h++) {
        if (SL_HANDOVER[h].to != s->seat->role || SL_HANDOVER[h].how == SL_CHUNKS ||
            !sl_handover_applies((sl_handover)h, &s->seat->model, &s->job))
            continue;
        const int n = sl_handover_tensors(spec, (sl_handover)h, &s->seat->model, &s->grid, &s->job);
        for (*place = 0; *place < n; (*place)++) {
            if (!strcmp(spec[*place].name, name)) return h;
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
                     *names ? ", " : "", spec[*place].name);
        }
    }
    sl_fail(err, SL_ARG, "no tensor \"%.40s\" comes in this job, want %s", name,
            *names ? names : "none");
    return -1;
}

sl_code sl_stage_input(sl_stage *s, const char *name, void *stream, sl_tensor *t, sl_err *err)
{
    int place = 0;
    const int h = handover_with(s, name, &place, err);
    sl_code rc;
    if (h < 0) return SL_ARG;
    if (!s->in[h].open && (rc = open_input(s, (sl_handover)h, (cudaStream_t)stream, err)))
        return rc;
    *t = s->in[h].t[place];
    if (t->rank && t->data) return SL_OK;
    return sl_fail(err, SL_GONE, "%s was given back", name);
}

bool sl_stage_lies_on_device(const sl_stage *s, const char *name)
{
    int place;
    const int h = handover_with(s, name, &place, NULL);
    return h >= 0 && s->in[h].open && s->in[h].on_device;
}

sl_code sl_stage_noise(sl_stage *s, sl_tensor *t, sl_err *err)
{
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    sl_code rc;
    sl_handover_tensors(spec, SL_HANDOVER_LATENTS, &s->seat->model, &s->grid, &s->job);
    if (!s->noise && (rc = sl_seat_noise(&s->noise, &s->msg, &s->job, spec[0].shape, err)))
        return rc;
    *t = view_of(&spec[0]);
    t->data = s->noise;
    return SL_OK;
}

void sl_own_drop_inputs(sl_stage *s)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        sl_own_input *in = &s->in[h];
        sl_lease_drop(&in->lease, in->stream);
        for (int i = 0; i < SL_HANDOVER_TENSORS; i++) {
            free(in->copy[i]);
            in->copy[i] = NULL;
            in->t[i] = (sl_tensor){0};
        }
    }
}

void sl_stage_taken(sl_stage *s, void *stream)
{
    const sl_msg m = {.type = SL_MSG_TAKEN,
                      .taken = {.job = s->msg.job, .attempt = s->msg.attempt}};
    for (int h = 0; h < sl_handover_count(); h++)
        if (s->in[h].on_device) s->in[h].stream = (cudaStream_t)stream;
    sl_own_drop_inputs(s);
    sl_control_send(&s->seat->control, &m);
}

/* ---- handed, chunk by chunk ---- */

static bool is_current(const sl_stage *s, uint64_t job, uint32_t attempt)
{
    return s->msg.job == job && s->msg.attempt == attempt;
}

/* The next CHUNK of the attempt that runs. */
static sl_code next_chunk(sl_stage *s, sl_msg_chunk *out, sl_err *err)
{
    sl_msg m;
    sl_code rc;
    while (!(rc = sl_control_next(&s->seat->control, true, &m, err))) {
        if (m.type == SL_MSG_JOB) {
            s->next = m.job;
            s->has_next = s->given_up = true;
            return sl_fail(err, SL_GONE, "job %llu given up: another one came",
                           (unsigned long long)s->msg.job);
        }
        if (m.type == SL_MSG_CANCEL && is_current(s, m.cancel.job, m.cancel.attempt))
            return sl_fail(err, SL_CANCELLED, "cancelled");
        if (m.type != SL_MSG_CHUNK) continue;
        *out = m.chunk;
        if (is_current(s, m.chunk.job, m.chunk.attempt)) return SL_OK;
        sl_pools_discard(&s->seat->pools, &m.chunk.slot);
    }
    return rc;
}

/* The chunk that has come, for the dump: the last one ends the file. */
static void keep(sl_stage *s)
{
    const sl_handover h = (sl_handover)s->awaited.msg.handover;
    const sl_tensor_spec all = sl_chunk_spec(s->seat, h, &s->job, s->job.frames);
    if (!s->came) sl_kept_open(&s->kept, s->seat, &s->msg, h, &all);
    sl_kept_write(&s->kept, s->awaited.t.data, s->awaited.t.shape[0]);
    if (s->kept.written == s->job.frames) sl_kept_finish(&s->kept);
}

sl_code sl_stage_await(sl_stage *s, int *index, int *chunks, sl_tensor *t, sl_err *err)
{
    const int64_t t0 = sl_now_ns();
    sl_msg_chunk m;
    sl_code rc;
    sl_stage_drop(s);
    if (sl_chunks_to(s->seat->role) < 0)
        return sl_fail(err, SL_ARG, "%s is handed no chunks", sl_role_name(s->seat->role));
    sl_own_pause(s);
    if (!(rc = next_chunk(s, &m, err)) && m.index != (uint32_t)s->came) {
        sl_pools_discard(&s->seat->pools, &m.slot);
        rc = sl_fail(err, SL_FORMAT, "chunk %u came, want %d", m.index, s->came);
    }
    sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_WAIT, t0);
    sl_own_go_on(s);
    if (rc || (rc = sl_chunk_take(&s->awaited, s->seat, &m, &s->job, err))) return rc;
    if (s->job.dump) keep(s);
    s->came++;
    *index = (int)m.index;
    *chunks = (int)m.chunks;
    *t = s->awaited.t;
    return SL_OK;
}

void sl_stage_drop(sl_stage *s)
{
    sl_chunk_drop(&s->awaited);
}

/* ---- handed on, whole ---- */

/* The hand-over of this name that the stage hands on whole in this job; -1: none. */
static int gives(const sl_stage *s, const char *name, sl_err *err)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].from == s->seat->role && SL_HANDOVER[h].how == SL_WHOLE &&
            !strcmp(SL_HANDOVER[SL_HANDOVER[h].kind].name, name))
            return h;
    sl_fail(err, SL_ARG, "%s gives no hand-over \"%.40s\" as a whole", sl_role_name(s->seat->role),
            name);
    return -1;
}

/* A slot of the receiver with the tensors of h laid out. */
static sl_code reserve(sl_stage *s, sl_handover h, sl_tensor out[], bool *on_device, sl_err *err)
{
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    const int n = sl_handover_tensors(spec, h, &s->seat->model, &s->grid, &s->job);
    sl_pool *pool;
    sl_code rc;
    sl_lease_drop(&s->slot, NULL);
    if ((rc = sl_pools_to(&s->seat->pools, &s->msg, h, &pool, err)) ||
        (rc = sl_lease_reserve(&s->slot, pool, SLOT_WAIT_MS, err)))
        return rc;
    s->slot_of = h;
    *on_device = sl_pool_kind_of(pool) == SL_POOL_CUDA;
    for (int i = 0; i < n && !rc; i++)
        rc = sl_lease_add(s->slot, spec[i].name, spec[i].dtype, spec[i].rank, spec[i].shape,
                          &out[i], err);
    if (rc) sl_lease_drop(&s->slot, NULL);
    return rc;
}

sl_code sl_stage_slot(sl_stage *s, const char *handover, sl_tensor out[], bool *on_device,
                      sl_err *err)
{
    const int h = gives(s, handover, err);
    return h < 0 ? SL_ARG : reserve(s, (sl_handover)h, out, on_device, err);
}

sl_code sl_stage_seal(sl_stage *s, void *stream, sl_err *err)
{
    sl_ticket ticket;
    if (!s->slot) return sl_fail(err, SL_ARG, "no slot is reserved");
    sl_code rc = sl_lease_seal(s->slot, (cudaStream_t)stream, &ticket, err);
    if (!rc) sl_tickets_add(&s->out, (uint32_t)s->slot_of, &ticket);
    sl_lease_drop(&s->slot, (cudaStream_t)stream);
    return rc;
}

/* The caller's tensors are what the hand-over has. */
static sl_code check(const sl_tensor_spec *spec, const sl_tensor *t, sl_err *err)
{
    const sl_tensor want = view_of(spec);
    char a[96], b[96];
    if (t->dtype != spec->dtype || !sl_same_shape(t, &want) || !sl_is_dense(t))
        return sl_fail(err, SL_SHAPE, "%s is %s %s, want %s %s, dense", spec->name,
                       sl_dtype_tag(t->dtype), sl_shape_text(t, a, sizeof a),
                       sl_dtype_tag(spec->dtype), sl_shape_text(&want, b, sizeof b));
    const int64_t at = sl_first_nonfinite(t->data, t->dtype, sl_count(t));
    return at < 0 ? SL_OK
                  : sl_fail(err, SL_NUMERIC, "%s %s has NaN or infinity at element %lld",
                            spec->name, sl_shape_text(t, a, sizeof a), (long long)at);
}

/* Into a slot of host memory, if there is one. */
static sl_code copy_in(sl_stage *s, sl_handover h, int n, const sl_tensor tensors[], sl_err *err)
{
    sl_tensor out[SL_HANDOVER_TENSORS];
    bool on_device;
    sl_code rc = reserve(s, h, out, &on_device, err);
    if (rc) return rc;
    if (on_device) {
        sl_lease_drop(&s->slot, NULL);
        return sl_fail(err, SL_GONE, "slots of %s are device memory", SL_HANDOVER[h].name);
    }
    for (int i = 0; i < n; i++) memcpy(out[i].data, tensors[i].data, sl_bytes(&out[i]));
    return sl_stage_seal(s, NULL, err);
}

sl_code sl_own_give(sl_stage *s, sl_handover h, const sl_tensor tensors[], bool written,
                    sl_err *err)
{
    const int64_t t0 = sl_now_ns();
    const char *file = SL_HANDOVER[h].file, *names[SL_HANDOVER_TENSORS];
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    sl_err lost = {0};
    sl_code rc;
    if (s->given[h]) return sl_fail(err, SL_ARG, "%s is given already", SL_HANDOVER[h].name);
    const int n = sl_handover_tensors(spec, h, &s->seat->model, &s->grid, &s->job);
    for (int i = 0; i < n; i++) {
        names[i] = spec[i].name;
        if ((rc = check(&spec[i], &tensors[i], err))) return rc;
    }
    sl_own_pause(s);
    if (!sl_tickets_find(&s->out, (uint32_t)h) && copy_in(s, h, n, tensors, &lost))
        sl_log(SL_LOG_DEBUG, "job %llu goes by the spool: %s", (unsigned long long)s->msg.job,
               lost.msg);
    if (written) sl_spool_written(&s->seat->spool, &s->msg, file);
    else sl_spool_write(&s->seat->spool, &s->msg, file, true, n, names, tensors);
    sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_HANDOVER, t0);
    sl_own_go_on(s);
    s->given[h] = true;
    return SL_OK;
}

sl_code sl_stage_give(sl_stage *s, const char *handover, const sl_tensor tensors[], sl_err *err)
{
    const int h = gives(s, handover, err);
    return h < 0 ? SL_ARG : sl_own_give(s, (sl_handover)h, tensors, false, err);
}

/* ---- handed on, chunk by chunk ---- */

sl_code sl_stage_chunk(sl_stage *s, int64_t n, void *stream, sl_tensor *t, sl_err *err)
{
    const int h = sl_own_chunks_from(s);
    const sl_ctx on = {.stream = (cudaStream_t)stream};
    sl_ctx ctx = on;
    if (h < 0) return sl_fail(err, SL_ARG, "%s hands on no chunks", sl_role_name(s->seat->role));
    if (s->sent >= s->grid.chunks)
        return sl_fail(err, SL_SHAPE, "chunk %d of %s, want %lld", s->sent + 1, SL_HANDOVER[h].name,
                       (long long)s->grid.chunks);
    if (n < 1 || n > s->grid.chunk_frames)
        return sl_fail(err, SL_SHAPE, "chunk of %lld frames, want 1 to %lld", (long long)n,
                       (long long)s->grid.chunk_frames);
    sl_own_pause(s);
    sl_chunk_drop(&s->sending);
    s->sending = (sl_chunk){.msg = {.handover = (uint32_t)h,
                                    .index = (uint32_t)s->sent,
                                    .chunks = (uint32_t)s->grid.chunks,
                                    .frames = (uint32_t)n}};
    sl_code rc = sl_chunk_open(&s->sending, s->seat, &ctx, &s->msg, &s->job, err);
    sl_own_go_on(s);
    if (rc) sl_chunk_drop(&s->sending);
    else *t = s->sending.t;
    return rc;
}

sl_code sl_stage_send(sl_stage *s, sl_err *err)
{
    if (!s->sending.lease) return sl_fail(err, SL_ARG, "no chunk is open");
    sl_own_pause(s);
    sl_code rc = sl_chunk_give(&s->sending, s->seat, err);
    sl_chunk_drop(&s->sending);
    sl_own_go_on(s);
    if (rc) return rc;
    const int64_t now = sl_now_ns();
    sl_stage_progress(s, ++s->sent, (int)s->grid.chunks, (double)(now - s->sent_ns) * 1e-9);
    s->sent_ns = now;
    return SL_OK;
}
