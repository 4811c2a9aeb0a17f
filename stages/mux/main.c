/* sluice-mux - frames u8 [n, h, w, 3], chunk by chunk and in order -> H.264 in MP4 (and
 * frames.safetensors, when the job is dumped). */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "stages/mux/mp4.h"
#include "stages/network.h"
#include "stages/sizes/sizes.h"

typedef struct {
    sl_stage *st;
    sl_pool *frames;
    bool busy; /* between a JOB and its last CHUNK */
    sl_msg_job msg;
    sl_job job;
    uint32_t next;   /* index of the chunk that comes next */
    int64_t written; /* frames so far */
    sl_mp4 *mp4;
    sl_st_writer *dump;
} mux_stage;

static sl_code mux_open(mux_stage *s, sl_err *err)
{
    const sl_conf *conf = sl_stage_conf(s->st);
    const sl_conf_stage *me = sl_conf_find(conf, SL_ROLE_MUX);
    int64_t t0 = sl_now_ns();
    sl_code rc = sl_stage_receive_pool(s->st, SL_HANDOVER_FRAMES, me ? me->slots : 2,
                                       sl_slot_bytes(sl_stage_model(s->st), SL_HANDOVER_FRAMES,
                                                     conf->limits.pixels, conf->limits.frames),
                                       &s->frames, err);
    if (!rc) sl_stage_ready(s->st, t0, 0, 0);
    return rc;
}

/* Forget the current job; what was written of its files goes. */
static void abandon(mux_stage *s)
{
    sl_mp4_abandon(&s->mp4);
    sl_stw_abandon(&s->dump);
    sl_job_free(&s->job);
    s->busy = false;
}

static void fail(mux_stage *s, const sl_err *why)
{
    abandon(s);
    sl_stage_failed(s->st, &s->msg, why);
}

static sl_code on_job(mux_stage *s, const sl_msg_job *msg, sl_err *err)
{
    const sl_conf *conf = sl_stage_conf(s->st);
    char path[SL_PATH];
    sl_code rc;
    if (s->busy) {
        sl_log(SL_LOG_WARN, "job %llu given up: another one came", (unsigned long long)s->msg.job);
        abandon(s);
    }
    s->msg = *msg;
    s->next = 0;
    s->written = 0;
    s->busy = true;
    if (sl_stage_begin(s->st, msg->job, msg->attempt))
        return sl_fail(err, SL_CANCELLED, "cancelled");
    if ((rc = sl_network_job(msg, &s->job, err))) return rc;
    sl_mp4_options options = {.w = s->job.width,
                              .h = s->job.height,
                              .fps = s->job.fps,
                              .crf = s->job.crf,
                              .threads = conf->video.threads,
                              .preset = conf->video.preset};
    if ((rc = sl_mp4_open(&s->mp4, s->job.output, &options, err))) return rc;
    if (!s->job.dump) return SL_OK;
    if ((rc = sl_path_join(path, msg->dir, "frames.safetensors", err)) ||
        (rc = sl_stw_open(&s->dump, path, err)))
        return rc;
    return sl_stw_declare(s->dump, "frames", SL_U8, 4,
                          (int64_t[]){s->job.frames, s->job.height, s->job.width, 3}, err);
}

/* All frames are there: close the files and say so. */
static sl_code finish(mux_stage *s, sl_err *err)
{
    int64_t bytes = 0, t0 = sl_now_ns();
    sl_code rc;
    if (s->written != s->job.frames)
        return sl_fail(err, SL_FORMAT, "mux: %lld frames came, want %d", (long long)s->written,
                       s->job.frames);
    if (s->dump && (rc = sl_stw_finish(&s->dump, err))) return rc;
    if ((rc = sl_mp4_finish(&s->mp4, &bytes, err))) return rc;
    sl_stage_span(s->st, s->msg.job, SL_SPAN_COMPUTE, t0);
    sl_job_free(&s->job);
    s->busy = false;
    sl_stage_done(s->st, &s->msg, NULL, 0, (uint64_t)bytes);
    return SL_OK;
}

static sl_code on_chunk(mux_stage *s, const sl_msg_chunk *c, sl_err *err)
{
    sl_lease *lease = NULL;
    sl_tensor rgb;
    int64_t t0 = sl_now_ns();
    size_t frame = (size_t)s->job.width * (size_t)s->job.height * 3;
    sl_code rc;
    if (c->index != s->next) {
        sl_pool_discard(s->frames, &c->slot);
        return sl_fail(err, SL_FORMAT, "mux: chunk %u came, want %u", c->index, s->next);
    }
    if ((rc = sl_lease_open(&lease, s->frames, &c->slot, NULL, err)) ||
        (rc = sl_lease_tensor(lease, "rgb", &rgb, err)))
        goto done;
    if (rgb.dtype != SL_U8 || rgb.rank != 4 || rgb.shape[1] != s->job.height ||
        rgb.shape[2] != s->job.width || rgb.shape[3] != 3 ||
        s->written + rgb.shape[0] > s->job.frames) {
        char text[96];
        rc =
            sl_fail(err, SL_SHAPE,
                    "mux: chunk %u is %s %s after %lld frames, want U8 [n, %d, %d, 3] of %d in all",
                    c->index, sl_dtype_tag(rgb.dtype), sl_shape_text(&rgb, text, sizeof text),
                    (long long)s->written, s->job.height, s->job.width, s->job.frames);
        goto done;
    }
    if ((rc = sl_mp4_write(s->mp4, rgb.data, (int)rgb.shape[0], err))) goto done;
    if (s->dump && (rc = sl_stw_write(s->dump, "frames", rgb.data, (size_t)s->written * frame,
                                      (size_t)rgb.shape[0] * frame, err)))
        goto done;
    s->written += rgb.shape[0];
    s->next++;
done:
    sl_lease_drop(&lease, NULL); /* the slot is free: decode may go on */
    sl_stage_span(s->st, s->msg.job, SL_SPAN_COMPUTE, t0);
    if (!rc)
        sl_stage_progress(s->st, &s->msg, (int)s->next, (int)c->chunks,
                          (double)(sl_now_ns() - t0) * 1e-9);
    return rc;
}

int main(int argc, char **argv)
{
    mux_stage s = {0};
    sl_err err = {0};
    sl_msg msg;
    if (sl_stage_open(&s.st, "mux", argc, argv, &err) || mux_open(&s, &err))
        return sl_stage_exit(&s.st, &err);
    while (!sl_stage_next(s.st, s.busy, &msg, &err)) {
        sl_err bad = {0};
        sl_code rc = SL_OK;
        if (msg.type == SL_MSG_JOB) rc = on_job(&s, &msg.job, &bad);
        else if (msg.type == SL_MSG_CHUNK) {
            bool mine = s.busy && msg.chunk.job == s.msg.job && msg.chunk.attempt == s.msg.attempt;
            /* of a job that was given up */
            if (!mine) sl_pool_discard(s.frames, &msg.chunk.slot);
            else if (!(rc = on_chunk(&s, &msg.chunk, &bad)) && s.next == msg.chunk.chunks)
                rc = finish(&s, &bad);
        } else if (msg.type == SL_MSG_CANCEL && s.busy && msg.cancel.job == s.msg.job &&
                   msg.cancel.attempt == s.msg.attempt)
            rc = sl_fail(&bad, SL_CANCELLED, "cancelled");
        if (rc) fail(&s, &bad);
    }
    abandon(&s);
    return sl_stage_exit(&s.st, &err);
}
