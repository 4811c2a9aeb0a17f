/* sluice-mux - frames u8 [n, h, w, 3], chunk by chunk and in order -> H.264 in MP4 (and
 * frames.safetensors, when the job is dumped). Frames are those of the hand-over whose
 * receiver is the mux, whoever sends it and whatever their size. */
#include <string.h>

#include "common/log.h"
#include "common/video_format.h"
#include "stages/mux/video_file.h"
#include "stages/seat/chunk.h"
#include "stages/seat/kept.h"
#include "stages/seat/loop.h"

typedef struct {
    sl_seat *seat;
    bool busy; /* between a JOB and its last CHUNK */
    sl_msg_job msg;
    sl_job job;
    uint32_t next;   /* index of the chunk that comes next */
    int64_t written; /* frames so far */
    sl_video_file *file;
    sl_kept kept; /* the frames for a dump */
} mux_stage;

/* The hand-over that brings the frames. */
static sl_handover source(void)
{
    return (sl_handover)sl_chunks_to(SL_ROLE_MUX);
}

/* Without an encoder of H.264 none is begun: what a job takes hours to compute is to be written. */
static sl_code mux_open(mux_stage *s, sl_err *err)
{
    int64_t t0 = sl_now_ns();
    const char *encoder;
    sl_code rc = sl_video_encoder(&encoder, sl_video_format_at(0), err);
    if (!rc) rc = sl_seat_receive(s->seat, err);
    if (!rc) sl_seat_ready(s->seat, t0, 0, 0);
    return rc;
}

/* Forget the current job; what was written of its files goes. */
static void abandon(mux_stage *s)
{
    sl_video_file_abandon(&s->file);
    sl_kept_abandon(&s->kept);
    sl_job_free(&s->job);
    s->busy = false;
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
    const sl_tensor_spec all = sl_chunk_spec(s->seat, source(), &s->job, s->job.frames);
    sl_video_options options = {.w = (int)all.shape[2],
                                .h = (int)all.shape[1],
                                .fps = s->job.fps,
                                .crf = s->job.crf,
                                .threads = conf->video.threads,
                                .preset = conf->video.preset};
    if ((rc = sl_video_file_open(&s->file, s->job.output, &options, err))) return rc;
    if (s->job.dump) sl_kept_open(&s->kept, s->seat, msg, source(), &all);
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
    sl_kept_finish(&s->kept);
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
    sl_kept_write(&s->kept, rgb, n);
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
        sl_kept_cut(&s.kept);
        abandon(&s);
        sl_seat_failed(s.seat, &s.msg, &bad);
    }
    abandon(&s);
    return sl_seat_exit(&s.seat, &err);
}
