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

/* Reserve a slot of the receiver of c->msg.handover and lay the chunk's tensor out there:
 * number c->msg.index of c->msg.chunks, c->msg.frames along the first index.
 * The call waits until a slot is free, the job is cancelled or the receiver is gone: that is
 * the back-pressure. The wait is a span, and the device's turn is given up meanwhile. ctx:
 * what fills the slot, whose memory is pinned if that is a device (else copies are slow).
 * Errors: SL_CANCELLED, SL_GONE; SL_FORMAT slots of device memory. */
sl_code sl_chunk_open(sl_chunk *c, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                      const sl_job *job, sl_err *err);
/* Copy t, on ctx's device, into the slot, which may be t's own memory: then nothing is
 * copied. To pinned memory the copy runs until the next wait for the device. */
void sl_chunk_fill(sl_chunk *c, const sl_seat *seat, sl_ctx *ctx, const sl_tensor *t);
/* Seal the slot and say CHUNK. Errors: as sl_lease_seal. */
sl_code sl_chunk_give(sl_chunk *c, sl_seat *seat, sl_err *err);

/* Open the slot that a CHUNK names. c->t is the tensor of sl_handover_tensors, of msg->frames
 * frames. Errors: SL_GONE a stale ticket; SL_FORMAT, SL_SHAPE. */
sl_code sl_chunk_take(sl_chunk *c, sl_seat *seat, const sl_msg_chunk *msg, const sl_job *job,
                      sl_err *err);

/* The slot is free again, unless it was given. */
void sl_chunk_drop(sl_chunk *c);

#endif
