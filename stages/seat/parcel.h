/* parcel.h - the tensors of a hand-over, given and taken whole.
 *
 * A parcel is the named tensors of one row of SL_HANDOVERS for a job, as
 * sl_handover_tensors lists them, each with a host and a device side that hold the same
 * numbers. The giver makes a parcel, fills it and gives it: the receiver's pool gets the
 * side that its slots are made for, the job's folder gets the host's. The receiver takes
 * the parcel, from a slot or from the file, checked, and drops it when what it needs is
 * elsewhere.
 *     giver:     sl_parcel_make -> at[i].device, at[i].host filled -> sl_parcel_give -> drop
 *     receiver:  sl_parcel_take -> sl_parcel_place each -> sl_parcel_drop
 * Main thread. A zeroed parcel may be dropped. */
#ifndef SL_PARCEL_H
#define SL_PARCEL_H

#include "common/safetensors.h"
#include "stages/seat/seat.h"

#define SL_PARCEL_TENSORS (SL_HANDOVER_TENSORS + 2) /* with those of the file alone */

typedef struct {
    const char *name;
    sl_tensor host;   /* dense; data NULL: not on the host */
    sl_tensor device; /* rank 0: not on the device */
} sl_parcel_tensor;

typedef struct {
    sl_handover handover;
    sl_tensor_spec spec[SL_HANDOVER_TENSORS];
    int count; /* tensors of the hand-over */
    int all;   /* tensors of the hand-over, and those that the file has besides */
    sl_parcel_tensor at[SL_PARCEL_TENSORS]; /* the first `count` as in spec */
    bool written;                           /* giving: the stage has written the file itself */
    bool pinned;     /* at[i].host of the first `count` is sl_seat_host_alloc's; else malloc's */
    sl_lease *lease; /* taken: the slot in which the device sides lie */
    cudaStream_t stream;
} sl_parcel;

/* ---- giving ---- */

/* A parcel of h for this job: host sides are memory of the parcel's, device sides lie in
 * ctx's arena; ctx NULL: there are none yet. Neither is filled. Errors: SL_NOMEM; ctx's
 * own are kept there. */
sl_code sl_parcel_make(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, sl_handover h, const sl_job *job,
                       sl_err *err);
/* A tensor that goes to the file alone: host memory of the caller's, until the give.
 * SL_PARCEL_TENSORS - SL_HANDOVER_TENSORS of them at most: a bug if more. */
void sl_parcel_add(sl_parcel *p, const char *name, const sl_tensor *host);
/* The parcel's file in the job's folder. Errors: SL_ARG too long a path. */
sl_code sl_parcel_path(char path[SL_PATH], const sl_parcel *p, const sl_msg_job *msg, sl_err *err);
/* The tensors go to the receiver's pool, if one is there and has a slot in time, and *out names
 * that slot; and to the file in the background. A hand-over without a slot goes by the file alone.
 * The attempt ends with sl_seat_done. ctx: of the device sides; its arena is emptied after an error
 * of the device's. */
void sl_parcel_hand(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                    sl_tickets *out);
/* The same, and the end of the attempt: the span and DONE are said. */
void sl_parcel_give(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg);

/* ---- taking ---- */

/* The parcel of this JOB that reaches the seat's role as h (of SL_HANDOVERS, through whatever
 * filters: the parcel's own `handover` is the row), from the slot that its list `in` names, or
 * from the file. Every tensor has the name, float type and shape that it should. In a slot of
 * device memory tensors stay there, until the drop (who sent them has checked that they are
 * finite); else they are float32 on the host, and finite. *p is to be dropped after an
 * error too. Errors: SL_GONE a stale ticket; SL_FORMAT a tensor is missing; SL_SHAPE;
 * SL_NUMERIC; SL_SYS; SL_NOMEM; SL_CUDA. */
sl_code sl_parcel_take(sl_parcel *p, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                       const sl_job *job, sl_handover h, sl_err *err);
/* t (F32 or act dtype, dense, of that shape, on ctx's device) = the tensor. Queued on
 * ctx's stream: the parcel may be dropped at once. */
void sl_parcel_place(sl_ctx *ctx, const sl_tensor *t, const sl_parcel_tensor *from);
/* A host copy of a tensor of a file: float32, finite, of this name and shape. *out is the
 * caller's to free, NULL after an error. */
sl_code sl_parcel_read(float **out, const sl_st *file, const char *name, int rank,
                       const int64_t *shape, sl_err *err);
/* *out = found as float32 on the host: of the shape of `want`, finite. The caller's to free. */
sl_code sl_parcel_bring(float **out, const sl_tensor *found, const char *name,
                        const sl_tensor *want, sl_err *err);
/* A tensor that is left in a slot of device memory is F32 or BF16, of the shape of `want`: no more
 * can be looked at. */
sl_code sl_parcel_left(const sl_tensor *found, const char *name, const sl_tensor *want,
                       sl_err *err);

/* Free what the parcel owns, and its slot, once the work on p->stream is done. */
void sl_parcel_drop(sl_parcel *p, sl_seat *seat);

#endif
