/* helper_mux_y4m - another mux: frames u8 [n, h, w, 3] -> an uncompressed YUV4MPEG2 file
 * (4:4:4, BT.601), which most players read.
 *
 *   stages: ( ..., { name = "mux"; program = "build/release/tests/helper_mux_y4m"; } )
 *
 * What a mux must do:
 *   - own the pool "frames"
 *   - take one JOB
 *   - take the job's CHUNKs in order, opening and dropping each ticket
 *   - say DONE
 * Between JOB and the last CHUNK a CANCEL may come, or a CHUNK of an attempt that was given
 * up. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stages/seat/chunk.h"
#include "stages/seat/loop.h"

typedef struct {
    sl_seat *seat;
    bool busy;
    sl_msg_job msg;
    sl_job job;
    size_t frame;  /* bytes of one */
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
    if (sl_seat_begin(m->seat, msg)) return sl_fail(err, SL_CANCELLED, "cancelled");
    if ((rc = sl_seat_job(m->seat, &m->job, msg, err))) return rc;
    m->frame = (size_t)m->job.width * (size_t)m->job.height * 3;
    snprintf(m->temporary, sizeof m->temporary, "%s.part", m->job.output);
    if (!(m->file = fopen(m->temporary, "wbe")))
        return sl_fail(err, SL_SYS, "%s: cannot be written", m->temporary);
    int num, den;
    sl_fps_ratio(m->job.fps, &num, &den);
    fprintf(m->file, "YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444\n", m->job.width, m->job.height, num,
            den);
    return SL_OK;
}

static sl_code on_chunk(mux *m, const sl_msg_chunk *msg, sl_err *err)
{
    sl_chunk c = {0};
    sl_code rc = msg->index == m->next
                     ? sl_chunk_take(&c, m->seat, msg, &m->job, err)
                     : sl_fail(err, SL_FORMAT, "y4m: chunk %u came, want %u", msg->index, m->next);
    for (int64_t i = 0; !rc && i < c.t.shape[0]; i++)
        rc = write_frame(m, (const uint8_t *)c.t.data + (size_t)i * m->frame, err);
    sl_chunk_drop(&c); /* the slot is free again */
    if (rc) return rc;
    sl_control_progress(&m->seat->control, &m->msg, (int)++m->next, (int)msg->chunks, 0);
    if (m->next < msg->chunks) return SL_OK;

    int64_t bytes = ftell(m->file);
    int bad = fclose(m->file);
    m->file = NULL;
    if (bad || rename(m->temporary, m->job.output))
        return sl_fail(err, SL_SYS, "%s: cannot be written", m->job.output);
    sl_seat_done(m->seat, &m->msg, NULL, 0, (uint64_t)bytes);
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
    if (sl_seat_open(&m.seat, SL_ROLE_MUX, argc, argv, &err) || sl_seat_receive(m.seat, &err))
        return sl_seat_exit(&m.seat, &err);
    sl_seat_ready(m.seat, t0, 0, 0);
    while (!sl_control_next(&m.seat->control, m.busy, &msg, &err)) {
        sl_err bad = {0};
        sl_code rc = SL_OK;
        if (msg.type == SL_MSG_JOB) rc = on_job(&m, &msg.job, &bad);
        else if (msg.type == SL_MSG_CANCEL && is_current(&m, msg.cancel.job, msg.cancel.attempt))
            rc = sl_fail(&bad, SL_CANCELLED, "cancelled");
        else if (msg.type == SL_MSG_CHUNK && is_current(&m, msg.chunk.job, msg.chunk.attempt))
            rc = on_chunk(&m, &msg.chunk, &bad);
        else if (msg.type == SL_MSG_CHUNK) sl_pools_discard(&m.seat->pools, &msg.chunk.slot);
        if (rc) {
            abandon(&m);
            sl_seat_failed(m.seat, &m.msg, &bad);
        }
    }
    abandon(&m);
    return sl_seat_exit(&m.seat, &err);
}
