/* loop.h - a stage that works on one job after another, and what its networks need. */
#ifndef SL_LOOP_H
#define SL_LOOP_H

#include "graphs/weights.h"
#include "stages/seat/seat.h"

/* Until the stage is drained: for each JOB, job.json is read and `work` runs, which says DONE
 * (sl_seat_done) or returns an error; one that does neither has failed. An error is answered
 * with FAILED, and slots of the JOB's list `in` that were not opened are freed.
 * *err gets why it ended: drained, or an error of the device, after which its context is
 * of no use: the dispatcher starts another process. */
typedef sl_code sl_work_fn(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err);
void sl_seat_serve(sl_seat *seat, sl_work_fn *work, void *self, sl_err *err);

/* Weights of a part of the stage's checkpoint, or random ones (model.random), through ctx.
 * *out is the caller's to close. */
sl_code sl_seat_loader(sl_loader **out, const sl_seat *seat, sl_ctx *ctx, sl_part_id part,
                       sl_err *err);

/* t, a host tensor of floats called `name`, is finite. SL_NUMERIC: it is not (says where),
 * and if a weight of these loaders (NULL ends the list) is to blame, which. */
sl_code sl_seat_finite(const char *name, const sl_tensor *t, sl_loader *const loaders[],
                       sl_err *err);

#endif
