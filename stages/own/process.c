/* process.c - a stage of one's own: its process, job after job, and what it says. */
#include "stages/own/stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/protocol.h"
#include "stages/own/own.h"

int sl_stage_abi(void)
{
    return SL_STAGE_ABI;
}

char *sl_stage_protocol(void)
{
    return sl_protocol_json();
}

/* ---- the process ---- */

sl_code sl_stage_open(sl_stage **out, const char *role, int argc, char **argv, sl_err *err)
{
    const bool filter = !strcmp(role, "filter");
    const int r = sl_role_by_name(role);
    sl_stage *s = *out = calloc(1, sizeof *s);
    if (!s) return sl_fail(err, SL_NOMEM, "stage %s: no memory", role);
    if (r < 0 && !filter) return sl_fail(err, SL_ARG, "no stage is called \"%.40s\"", role);
    s->opened_ns = sl_now_ns();
    for (int i = 1; i + 1 < argc && !s->model; i++)
        if (!strcmp(argv[i], "--model")) s->model = argv[i + 1];
    return sl_seat_open(&s->seat, filter ? SL_SEAT_FILTER : (sl_role)r, argc, argv, err);
}

int sl_stage_close(sl_stage **sp, const sl_err *err)
{
    sl_stage *s = *sp;
    if (!s) return 1;
    *sp = NULL;
    sl_stage_fail(s, err);
    const int status = sl_seat_exit(&s->seat, err);
    free(s);
    return status;
}

const char *sl_stage_model(const sl_stage *s)
{
    return s->model;
}

const char *sl_stage_device(const sl_stage *s)
{
    return s->seat->device;
}

int sl_stage_instance(const sl_stage *s)
{
    return s->seat->instance;
}

char *const *sl_stage_args(sl_stage *s, int *count)
{
    return sl_seat_args(s->seat, count);
}

sl_code sl_stage_ready(sl_stage *s, bool on_device, size_t weight_bytes, sl_err *err)
{
    sl_code rc;
    if (on_device && (rc = sl_seat_device(s->seat, err))) return rc;
    if ((rc = sl_seat_receive(s->seat, err))) return rc;
    sl_seat_ready(s->seat, s->opened_ns, weight_bytes, 0);
    return SL_OK;
}

/* ---- job after job ---- */

/* The job that runs is over, whatever became of it. */
static void end_job(sl_stage *s)
{
    sl_own_drop_inputs(s);
    sl_lease_drop(&s->slot, NULL);
    sl_chunk_drop(&s->sending);
    sl_chunk_drop(&s->awaited);
    sl_kept_cut(&s->kept); /* finished, unless the attempt ends early */
    sl_kept_abandon(&s->kept);
    sl_job_free(&s->job);
    free(s->noise);
    s->noise = NULL;
    s->running = false;
}

static sl_code begin_job(sl_stage *s, const sl_msg_job *msg, sl_err *err)
{
    sl_code rc;
    const sl_stage kept = {.seat = s->seat, .model = s->model, .opened_ns = s->opened_ns};
    *s = kept;
    s->msg = *msg;
    s->running = true;
    s->computing_ns = s->sent_ns = sl_now_ns();
    if (sl_seat_begin(s->seat, msg)) return sl_fail(err, SL_CANCELLED, "cancelled");
    if ((rc = sl_seat_job(s->seat, &s->job, msg, err))) return rc;
    s->grid = sl_job_grid(&s->seat->model, &s->job);
    return SL_OK;
}

sl_code sl_stage_next(sl_stage *s, sl_err *err)
{
    sl_msg m;
    sl_code rc;
    while (true) {
        if (s->has_next) m = (sl_msg){.type = SL_MSG_JOB, .job = s->next};
        else if ((rc = sl_control_next(&s->seat->control, false, &m, err))) return rc;
        s->has_next = false;
        if (m.type == SL_MSG_CHUNK) sl_pools_discard(&s->seat->pools, &m.chunk.slot);
        if (m.type != SL_MSG_JOB) continue;
        sl_err bad = {0};
        if (!begin_job(s, &m.job, &bad)) return SL_OK;
        sl_stage_fail(s, &bad);
    }
}

int sl_stage_main(const char *role, sl_stage_work *work, void *self, int argc, char **argv)
{
    sl_stage *s = NULL;
    sl_err err = {0};
    sl_code rc = sl_stage_open(&s, role, argc, argv, &err);
    if (!rc) s->seat->args_read = true; /* by who has argv */
    if (!rc) rc = sl_stage_ready(s, false, 0, &err);
    while (!rc && !(rc = sl_stage_next(s, &err))) {
        sl_err bad = {0};
        if (work(s, self, &bad) || sl_stage_done(s, 0, &bad)) sl_stage_fail(s, &bad);
    }
    return sl_stage_close(&s, &err);
}

/* ---- a job ---- */

const char *sl_stage_dir(const sl_stage *s)
{
    return s->msg.dir;
}

uint64_t sl_stage_job(const sl_stage *s, uint32_t *attempt)
{
    if (attempt) *attempt = s->msg.attempt;
    return s->msg.job;
}

#define NUMBER_int(v) return v;
#define NUMBER_u64(v) return (double)(v);
#define NUMBER_real(v) return v;
#define NUMBER_flag(v) return v;
#define NUMBER_text(v) return NAN;
#define NUMBER_object(v) NUMBER_text(v)
#define NUMBER_path(v) return NAN;
double sl_stage_number(const sl_stage *s, const char *field)
{
#define X(kind, name, def)                                                                         \
    if (!strcmp(field, #name)) NUMBER_##kind(s->job.name)
    SL_JOB_FIELDS(X)
#undef X
    return NAN;
}

#define TEXT_int(v) return NULL;
#define TEXT_u64(v) return NULL;
#define TEXT_real(v) return NULL;
#define TEXT_flag(v) return NULL;
#define TEXT_text(v) return v;
#define TEXT_object(v) TEXT_text(v)
#define TEXT_path(v) return v;
const char *sl_stage_text(const sl_stage *s, const char *field)
{
#define X(kind, name, def)                                                                         \
    if (!strcmp(field, #name)) TEXT_##kind(s->job.name)
    SL_JOB_FIELDS(X)
#undef X
    return NULL;
}

bool sl_stage_cancelled(const sl_stage *s)
{
    return sl_control_cancelled(&s->seat->control);
}

static int add_specs(const sl_stage *s, sl_handover h, sl_stage_spec *out)
{
    sl_tensor_spec of[SL_HANDOVER_TENSORS];
    const int n = sl_handover_tensors(of, h, &s->seat->model, &s->grid, &s->job);
    for (int i = 0; i < n; i++) {
        const char *name = SL_HANDOVER[SL_HANDOVER[h].kind].name;
        out[i] = (sl_stage_spec){name, of[i].name, of[i].dtype, of[i].rank, {0}};
        memcpy(out[i].shape, of[i].shape, sizeof out[i].shape);
    }
    return n;
}

int sl_stage_specs(const sl_stage *s, bool in, sl_stage_spec out[SL_STAGE_SPECS])
{
    _Static_assert(SL_STAGE_SPECS >= SL_TICKETS * SL_HANDOVER_TENSORS, "of every hand-over");
    int n = 0;
    for (int h = 0; h < sl_handover_count(); h++)
        if ((in ? SL_HANDOVER[h].to : SL_HANDOVER[h].from) == s->seat->role &&
            sl_handover_applies((sl_handover)h, &s->seat->model, &s->job))
            n += add_specs(s, (sl_handover)h, out + n);
    return n;
}

int sl_own_chunks_from(const sl_stage *s)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].from == s->seat->role && SL_HANDOVER[h].how == SL_CHUNKS) return h;
    return -1;
}

int sl_stage_chunks(const sl_stage *s)
{
    const bool any = sl_own_chunks_from(s) >= 0 || sl_chunks_to(s->seat->role) >= 0;
    return any ? (int)s->grid.chunks : 0;
}

/* ---- what it says ---- */

void sl_own_pause(sl_stage *s)
{
    if (s->running)
        sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_COMPUTE, s->computing_ns);
}

void sl_own_go_on(sl_stage *s)
{
    s->computing_ns = sl_now_ns();
}

void sl_stage_progress(sl_stage *s, int done, int total, double seconds)
{
    sl_control_progress(&s->seat->control, &s->msg, done, total, seconds);
}

void sl_stage_step(sl_stage *s, int step, int steps, int64_t t0_ns)
{
    const double seconds = (double)(sl_now_ns() - t0_ns) * 1e-9;
    const sl_msg m = {.type = SL_MSG_STEP,
                      .step = {.job = s->msg.job,
                               .attempt = s->msg.attempt,
                               .step = (uint32_t)step,
                               .steps = (uint32_t)steps,
                               .t0_ns = t0_ns,
                               .seconds = seconds,
                               .cond_computed = 1,
                               .cond_metric = NAN,
                               .uncond_computed = sl_job_guided(&s->job) ? 1 : -1,
                               .uncond_metric = NAN}};
    sl_control_send(&s->seat->control, &m);
    sl_stage_progress(s, step + 1, steps, seconds);
}

sl_code sl_stage_span(sl_stage *s, const char *kind, int64_t t0_ns, sl_err *err)
{
    for (uint32_t k = 0; k < SL_SPAN_KIND_COUNT; k++) {
        if (strcmp(kind, sl_span_kind_name(k)) != 0) continue;
        sl_control_span(&s->seat->control, s->running ? s->msg.job : 0, (sl_span_kind)k, t0_ns);
        return SL_OK;
    }
    return sl_fail(err, SL_ARG, "span \"%.40s\", want load, compute, handover, spool or wait",
                   kind);
}

int64_t sl_stage_now_ns(void)
{
    return sl_now_ns();
}

sl_code sl_stage_turn(sl_stage *s, bool step, int number, sl_err *err)
{
    const sl_turn_kind kind = step ? SL_TURN_STEP : SL_TURN_PIECE;
    sl_own_pause(s);
    sl_code rc = sl_turn_begin(&s->seat->turn, kind, step ? "step" : "piece", number, err);
    sl_own_go_on(s);
    return rc;
}

void sl_stage_turn_end(sl_stage *s, bool more)
{
    sl_turn_end(&s->seat->turn, more);
}

void sl_stage_log(const char *level, const char *text)
{
    sl_log_level l = SL_LOG_INFO;
    sl_log_level_parse(level, &l);
    sl_log(l, "%s", text);
}

/* ---- a job's end ---- */

/* Has all been handed on that this role hands on? */
static sl_code check_given(const sl_stage *s, sl_err *err)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        const sl_handover_row *row = &SL_HANDOVER[h];
        if (row->from != s->seat->role ||
            !sl_handover_applies((sl_handover)h, &s->seat->model, &s->job))
            continue;
        if (row->how == SL_WHOLE && !s->given[h])
            return sl_fail(err, SL_INTERNAL, "the job ended without its %s", row->name);
        if (row->how == SL_CHUNKS && s->sent != s->grid.chunks)
            return sl_fail(err, SL_INTERNAL, "the job ended after %d chunks of %s, want %lld",
                           s->sent, row->name, (long long)s->grid.chunks);
    }
    return SL_OK;
}

sl_code sl_stage_done(sl_stage *s, uint64_t bytes, sl_err *err)
{
    if (!s->running) return sl_fail(err, SL_ARG, "no job runs");
    if (sl_stage_cancelled(s)) return sl_fail(err, SL_CANCELLED, "cancelled");
    sl_code rc = check_given(s, err);
    if (rc) return rc;
    sl_own_pause(s);
    const sl_tickets out = s->out;
    end_job(s);
    sl_seat_done(s->seat, &s->msg, &out, 0, bytes);
    return SL_OK;
}

void sl_stage_fail(sl_stage *s, const sl_err *err)
{
    if (!s->running) return;
    sl_own_pause(s);
    const bool told = !s->given_up;
    end_job(s);
    /* what was opened has a stale ticket, which is ignored */
    for (uint32_t i = 0; i < s->msg.in.count; i++)
        if (s->msg.in.at[i].way == SL_BY_SLOT)
            sl_pools_discard(&s->seat->pools, &s->msg.in.at[i].ticket);
    if (told) sl_seat_failed(s->seat, &s->msg, err);
}
