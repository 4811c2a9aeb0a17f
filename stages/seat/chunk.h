/* chunk.h - a hand-over that travels slot by slot while the sender works: frames.
 *
 *     sender:    sl_chunk_open (a slot, however long it takes) -> into c.t -> sl_chunk_give
 *     receiver:  CHUNK message -> sl_chunk_take -> from c.t -> sl_chunk_drop
 * Chunks of an attempt are numbered from 0 and come in order. Main thread. A zeroed chunk
 * may be dropped; one is dropped after every open, give or take, failed ones too. */
#ifndef SL_CHUNK_H
#define SL_CHUNK_H

#include "stages/seat/seat.h"

typedef struct {
    sl_msg_chunk msg;
    sl_tensor t; /* [n, h, w, 3] for frames, host memory of the slot */
    sl_pool *pool;
    sl_lease *lease;
    cudaStream_t stream; /* on which the slot is filled; NULL: by the host */
} sl_chunk;

/* The tensor that chunks of h are cut from along its first index, n of it. */
sl_tensor_spec sl_chunk_spec(const sl_seat *seat, sl_handover h, const sl_job *job, int64_t n);

/* Lay chunk number c->msg.index of c->msg.chunks, c->msg.frames of them (first index of
 * its tensor), out in a slot of the receiver of c->msg.handover. Waits for one until it is
 * there, the job is cancelled or the receiver is gone, without the device's turn
 * meanwhile: that is the back-pressure. The wait is a span. ctx: what fills the slot; its
 * memory is pinned for a device, or copies are slow.
 * Errors: SL_CANCELLED, SL_GONE; SL_FORMAT slots of device memory. */
sl_code sl_chunk_open(sl_chunk *c, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                      const sl_job *job, sl_err *err);
/* t on ctx's device into the slot, which may be t's own memory. To pinned memory the copy
 * runs until the next wait for the device. */
void sl_chunk_fill(sl_chunk *c, const sl_seat *seat, sl_ctx *ctx, const sl_tensor *t);
/* Seal the slot and say CHUNK. Errors: as sl_lease_seal. */
sl_code sl_chunk_give(sl_chunk *c, sl_seat *seat, sl_err *err);

/* Open the slot that a CHUNK names; its tensor is what sl_handover_tensors says, of msg's
 * number of frames. Errors: SL_GONE a stale ticket; SL_FORMAT, SL_SHAPE. */
sl_code sl_chunk_take(sl_chunk *c, sl_seat *seat, const sl_msg_chunk *msg, const sl_job *job,
                      sl_err *err);

void sl_chunk_drop(sl_chunk *c); /* the slot is free again, unless it was given */

#endif
