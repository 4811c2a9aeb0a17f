/* sluice-mux - frames u8 [n, h, w, 3], chunk by chunk and in order -> H.264 in MP4 (and
 * frames.safetensors, when the job is dumped). Frames are those of the hand-over whose
 * receiver is the mux, whoever sends it and whatever their size; a dump has them under the
 * one name that its readers know. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/safetensors.h"
#include "stages/mux/video_file.h"
#include "stages/seat/chunk.h"
#include "stages/seat/loop.h"

typedef struct {
    sl_seat *seat;
    bool busy; /* between a JOB and its last CHUNK */
    sl_msg_job msg;
    sl_job job;
    sl_tensor_spec all; /* of the whole video: [frames, h, w, 3] */
    size_t frame;       /* bytes of one */
    uint32_t next;      /* index of the chunk that comes next */
    int64_t written;    /* frames so far */
    sl_video_file *file;
    sl_st_writer *dump;
} mux_stage;

/* The hand-over that brings the frames. */
static sl_handover source(void)
{
    return (sl_handover)sl_chunks_to(SL_ROLE_MUX);
}

static sl_code mux_open(mux_stage *s, sl_err *err)
{
    int64_t t0 = sl_now_ns();
    sl_code rc = sl_seat_receive(s->seat, err);
    if (!rc) sl_seat_ready(s->seat, t0, 0, 0);
    return rc;
}

/* Forget the current job; what was written of its files goes. */
static void abandon(mux_stage *s)
{
    sl_video_file_abandon(&s->file);
    sl_stw_abandon(&s->dump);
    sl_job_free(&s->job);
    s->busy = false;
}

/* The attempt ends before its frames do: those that came are the dump's. */
static void keep_frames(mux_stage *s)
{
    sl_err err = {0};
    if (s->dump && s->written &&
        (sl_stw_cut(s->dump, "frames", s->written, &err) || sl_stw_finish(&s->dump, &err)))
        sl_log_err("dump", &err);
}

/* The dump cannot have the frames, and the video does without it: the client will be told. */
static void give_up_dump(mux_stage *s, const sl_err *why)
{
    sl_msg m = {.type = SL_MSG_SPOOLED,
                .spooled = {.job = s->msg.job, .attempt = s->msg.attempt, .code = why->code}};
    snprintf(m.spooled.name, sizeof m.spooled.name, "%s", SL_HANDOVER[SL_HANDOVER_FRAMES].file);
    snprintf(m.spooled.message, sizeof m.spooled.message, "%s", why->msg);
    sl_stw_abandon(&s->dump);
    sl_control_send(&s->seat->control, &m);
}

static void open_dump(mux_stage *s)
{
    char file[64], path[SL_PATH];
    sl_st_note notes[SL_ORIGIN_NOTES];
    sl_err err = {0};
    snprintf(file, sizeof file, "%s.safetensors", SL_HANDOVER[SL_HANDOVER_FRAMES].file);
    if (!sl_path_join(path, s->msg.dir, file, &err))
        unlink(path); /* a part, of an attempt that fell */
    if (err.code || sl_stw_open(&s->dump, path, &err) ||
        sl_stw_notes(s->dump, sl_origin_notes(notes, &s->seat->spool.origin), notes, &err) ||
        sl_stw_declare(s->dump, "frames", SL_U8, s->all.rank, s->all.shape, &err))
        give_up_dump(s, &err);
}

static sl_code on_job(mux_stage *s, const sl_msg_job *msg, sl_err *err)
{
    const sl_conf *conf = &s->seat->conf;
    sl_code rc;
    if (s->busy) {
        sl_log(SL_LOG_WARN, "job %llu given up: another one came", (unsigned long long)s->msg.job);
        abandon(s);
    }
    s->msg = *msg;
    s->next = 0;
    s->written = 0;
    s->busy = true;
    if (sl_seat_begin(s->seat, msg)) return sl_fail(err, SL_CANCELLED, "cancelled");
    if ((rc = sl_seat_job(s->seat, &s->job, msg, err))) return rc;
    s->all = sl_chunk_spec(s->seat, source(), &s->job, s->job.frames);
    const int64_t *shape = s->all.shape;
    s->frame = (size_t)shape[1] * (size_t)shape[2] * (size_t)shape[3];
    sl_video_options options = {.w = (int)shape[2],
                                .h = (int)shape[1],
                                .fps = s->job.fps,
                                .crf = s->job.crf,
                                .threads = conf->video.threads,
                                .preset = conf->video.preset};
    if ((rc = sl_video_file_open(&s->file, s->job.output, &options, err))) return rc;
    if (s->job.dump) open_dump(s);
    return SL_OK;
}

/* All frames are there: close the files and say so. */
static sl_code finish(mux_stage *s, sl_err *err)
{
    int64_t bytes = 0, t0 = sl_now_ns();
    sl_code rc;
    if (s->written != s->job.frames)
        return sl_fail(err, SL_FORMAT, "mux: %lld frames came, want %d", (long long)s->written,
                       s->job.frames);
    sl_err lost = {0};
    if (s->dump && sl_stw_finish(&s->dump, &lost)) give_up_dump(s, &lost);
    if ((rc = sl_video_file_finish(&s->file, &bytes, err))) return rc;
    sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_COMPUTE, t0);
    abandon(s);
    sl_seat_done(s->seat, &s->msg, NULL, 0, (uint64_t)bytes);
    return SL_OK;
}

/* n frames behind those that were written, to the file and the dump. */
static sl_code write_frames(mux_stage *s, const uint8_t *rgb, int64_t n, sl_err *err)
{
    sl_code rc;
    if (s->written + n > s->job.frames)
        return sl_fail(err, SL_SHAPE, "mux: %lld frames after %lld, want %d in all", (long long)n,
                       (long long)s->written, s->job.frames);
    if ((rc = sl_video_file_write(s->file, rgb, (int)n, err))) return rc;
    sl_err lost = {0};
    if (s->dump && sl_stw_write(s->dump, "frames", rgb, (size_t)s->written * s->frame,
                                (size_t)n * s->frame, &lost))
        give_up_dump(s, &lost);
    s->written += n;
    s->next++;
    return SL_OK;
}

static sl_code on_chunk(mux_stage *s, const sl_msg_chunk *m, sl_err *err)
{
    sl_chunk c = {0};
    int64_t t0 = sl_now_ns();
    if (m->index != s->next) {
        sl_pools_discard(&s->seat->pools, &m->slot);
        return sl_fail(err, SL_FORMAT, "mux: chunk %u came, want %u", m->index, s->next);
    }
    sl_code rc = sl_chunk_take(&c, s->seat, m, &s->job, err);
    if (!rc) rc = write_frames(s, c.t.data, c.t.shape[0], err);
    sl_chunk_drop(&c); /* the slot is free: the sender may go on */
    sl_control_span(&s->seat->control, s->msg.job, SL_SPAN_COMPUTE, t0);
    if (rc) return rc;
    sl_control_progress(&s->seat->control, &s->msg, (int)s->next, (int)m->chunks,
                        (double)(sl_now_ns() - t0) * 1e-9);
    return s->next == m->chunks ? finish(s, err) : SL_OK;
}

/* The attempt that runs is this one; a chunk or a cancel may be of one that was given up. */
static bool is_current(const mux_stage *s, uint64_t job, uint32_t attempt)
{
    return s->busy && s->msg.job == job && s->msg.attempt == attempt;
}

int main(int argc, char **argv)
{
    mux_stage s = {0};
    sl_err err = {0};
    sl_msg m;
    if (sl_seat_open(&s.seat, SL_ROLE_MUX, argc, argv, &err) || mux_open(&s, &err))
        return sl_seat_exit(&s.seat, &err);
    while (!sl_control_next(&s.seat->control, s.busy, &m, &err)) {
        sl_err bad = {0};
        sl_code rc = SL_OK;
        if (m.type == SL_MSG_JOB) rc = on_job(&s, &m.job, &bad);
        else if (m.type == SL_MSG_CHUNK && is_current(&s, m.chunk.job, m.chunk.attempt))
            rc = on_chunk(&s, &m.chunk, &bad);
        else if (m.type == SL_MSG_CHUNK) sl_pools_discard(&s.seat->pools, &m.chunk.slot);
        else if (m.type == SL_MSG_CANCEL && is_current(&s, m.cancel.job, m.cancel.attempt))
            rc = sl_fail(&bad, SL_CANCELLED, "cancelled");
        if (!rc) continue;
        keep_frames(&s);
        abandon(&s);
        sl_seat_failed(s.seat, &s.msg, &bad);
    }
    abandon(&s);
    return sl_seat_exit(&s.seat, &err);
}
