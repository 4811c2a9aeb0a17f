/* helper_mux_y4m - another mux: frames u8 [n, h, w, 3] -> an uncompressed YUV4MPEG2 file
 * (4:4:4, BT.601), which most players read.
 *
 *   stages: ( ..., { name = "mux"; program = "build/release/tests/helper_mux_y4m"; } )
 *
 * What a mux must do: own the pool "frames"; take one JOB; take its CHUNKs in order,
 * opening and dropping each ticket; say DONE. Between JOB and the last CHUNK a CANCEL may
 * come, or a CHUNK of an attempt that was given up. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stages/network.h"

typedef struct {
    sl_stage *st;
    sl_pool *frames;
    bool busy;
    sl_msg_job msg;
    sl_job job;
    uint32_t next; /* index of the chunk that comes next */
    char temporary[SL_PATH + 8];
    FILE *file;
} mux;

/* One frame: a line, then the planes Y, Cb, Cr. */
static sl_code write_frame(mux *m, const uint8_t *rgb, sl_err *err)
{
    static const int COEFFICIENTS[3][4] = {
        {66, 129, 25, 16}, {-38, -74, 112, 128}, {112, -94, -18, 128}};
    size_t pixels = (size_t)m->job.width * (size_t)m->job.height;
    fputs("FRAME\n", m->file);
    for (int p = 0; p < 3; p++) {
        const int *k = COEFFICIENTS[p];
        for (size_t i = 0; i < pixels; i++)
            putc(((k[0] * rgb[3 * i] + k[1] * rgb[3 * i + 1] + k[2] * rgb[3 * i + 2] + 128) >> 8) +
                     k[3],
                 m->file);
    }
    return ferror(m->file) ? sl_fail(err, SL_SYS, "%s: cannot be written", m->job.output) : SL_OK;
}

static void abandon(mux *m)
{
    if (m->file) {
        fclose(m->file);
        unlink(m->temporary);
    }
    m->file = NULL;
    m->busy = false;
    sl_job_free(&m->job);
}

static sl_code on_job(mux *m, const sl_msg_job *msg, sl_err *err)
{
    sl_code rc;
    m->msg = *msg;
    m->next = 0;
    m->busy = true;
    if (sl_stage_begin(m->st, msg->job, msg->attempt))
        return sl_fail(err, SL_CANCELLED, "cancelled");
    if ((rc = sl_network_job(msg, &m->job, err))) return rc;
    snprintf(m->temporary, sizeof m->temporary, "%s.part", m->job.output);
    if (!(m->file = fopen(m->temporary, "wbe")))
        return sl_fail(err, SL_SYS, "%s: cannot be written", m->temporary);
    fprintf(m->file, "YUV4MPEG2 W%d H%d F%d:1 Ip A1:1 C444\n", m->job.width, m->job.height,
            m->job.fps);
    return SL_OK;
}

static sl_code on_chunk(mux *m, const sl_msg_chunk *c, sl_err *err)
{
    sl_lease *lease = NULL;
    sl_tensor rgb = {0};
    size_t frame = (size_t)m->job.width * (size_t)m->job.height * 3;
    sl_code rc = sl_lease_open(&lease, m->frames, &c->slot, NULL, err);
    if (!rc) rc = sl_lease_tensor(lease, "rgb", &rgb, err);
    if (!rc && (rgb.dtype != SL_U8 || c->index != m->next || sl_bytes(&rgb) != c->frames * frame))
        rc = sl_fail(err, SL_SHAPE, "y4m: a chunk of another job?");
    for (uint32_t i = 0; i < c->frames && !rc; i++)
        rc = write_frame(m, (const uint8_t *)rgb.data + i * frame, err);
    sl_lease_drop(&lease, NULL); /* the slot is free again */
    if (rc) return rc;
    sl_stage_progress(m->st, &m->msg, (int)++m->next, (int)c->chunks, 0);
    if (m->next < c->chunks) return SL_OK;

    int64_t bytes = ftell(m->file);
    int bad = fclose(m->file);
    m->file = NULL;
    if (bad || rename(m->temporary, m->job.output))
        return sl_fail(err, SL_SYS, "%s: cannot be written", m->job.output);
    sl_stage_done(m->st, &m->msg, NULL, sl_stage_peak_bytes(), (uint64_t)bytes);
    abandon(m);
    return SL_OK;
}

static bool is_current(const mux *m, uint64_t job, uint32_t attempt)
{
    return m->busy && m->msg.job == job && m->msg.attempt == attempt;
}

int main(int argc, char **argv)
{
    mux m = {0};
    sl_err err = {0};
    sl_msg msg;
    int64_t t0 = sl_now_ns();
    if (sl_stage_open(&m.st, "mux", argc, argv, &err) ||
        sl_stage_receive_pool(m.st, SL_HANDOVER_FRAMES, 2,
                              (size_t)sl_stage_conf(m.st)->limits.pixels * 3 * 4, &m.frames, &err))
        return sl_stage_exit(&m.st, &err);
    sl_stage_ready(m.st, t0, 0, 0);
    while (!sl_stage_next(m.st, m.busy, &msg, &err)) {
        sl_err bad = {0};
        sl_code rc = SL_OK;
        if (msg.type == SL_MSG_JOB) rc = on_job(&m, &msg.job, &bad);
        else if (msg.type == SL_MSG_CANCEL && is_current(&m, msg.cancel.job, msg.cancel.attempt))
            rc = sl_fail(&bad, SL_CANCELLED, "cancelled");
        else if (msg.type == SL_MSG_CHUNK && is_current(&m, msg.chunk.job, msg.chunk.attempt))
            rc = on_chunk(&m, &msg.chunk, &bad);
        else if (msg.type == SL_MSG_CHUNK) sl_pool_discard(m.frames, &msg.chunk.slot);
        if (rc) {
            abandon(&m);
            sl_stage_failed(m.st, &m.msg, &bad);
        }
    }
    abandon(&m);
    return sl_stage_exit(&m.st, &err);
}
