/* kept.h - the file in which a receiver of chunks keeps them for a dump: FILE.safetensors of the
 * hand-over that comes chunk by chunk, its tensor under the one name that readers of dumps know.
 *
 * Without the file a job goes on: SPOOLED says why, and the client is told. Main thread. Zeroed:
 * nothing is kept, and every function is fine with it. */
#ifndef SL_KEPT_H
#define SL_KEPT_H

#include "common/safetensors.h"
#include "stages/seat/seat.h"

typedef struct {
    sl_seat *seat;
    sl_msg_job msg;
    sl_handover handover;
    sl_st_writer *file; /* NULL: nothing is kept */
    size_t frame;       /* bytes of one along the first index */
    int64_t written;    /* of those, so far */
} sl_kept;

/* Begin the file of the attempt, in the place of an earlier one's. all: the tensor whole. */
void sl_kept_open(sl_kept *k, sl_seat *seat, const sl_msg_job *msg, sl_handover h,
                  const sl_tensor_spec *all);
/* n more along the first index. */
void sl_kept_write(sl_kept *k, const void *data, int64_t n);
/* All of it is there: the file gets its name. */
void sl_kept_finish(sl_kept *k);
/* The attempt ends before its chunks do: those that came are the file. */
void sl_kept_cut(sl_kept *k);
/* Nothing is to be left of what is not finished. */
void sl_kept_abandon(sl_kept *k);

#endif
