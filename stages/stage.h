/* stage.h - what every stage program shares: start-up, the control socket, hand-overs,
 * the spool. stages/README.md tells the protocol.
 *
 * A stage's main thread computes and calls the functions below. Two helper threads belong
 * to the library: one owns the ZeroMQ socket (so that heartbeats go out and a CANCEL is
 * seen while the main thread computes), one writes spool files (so that disks are off the
 * hot path). All functions are the main thread's unless said otherwise. */
#ifndef SL_STAGE_H
#define SL_STAGE_H

#include "common/conf.h"
#include "common/job.h"
#include "common/lease.h"
#include "common/model.h"
#include "common/safetensors.h"
#include "common/trace.h"
#include "common/wire.h"
#include "kernels/plugin.h"

typedef struct sl_stage sl_stage;

/* Parse the stage's command line (--connect ENDPOINT --conf FILE --model DIR [--device
 * D]), read configuration and model configs, die with the dispatcher, turn SIGTERM into
 * drain, connect, say HELLO. *out is the caller's to close. Errors: SL_ARG, SL_SYS,
 * SL_FORMAT. */
sl_code sl_stage_open(sl_stage **out, const char *role, int argc, char **argv, sl_err *err);
void sl_stage_close(sl_stage **st); /* waits for the spool to be written; NULL is fine */
/* End of main: log the error if there is one, close, and give the exit status (0 drained,
 * 1 an error). */
int sl_stage_exit(sl_stage **st, const sl_err *err);

const sl_conf *sl_stage_conf(const sl_stage *st);
const sl_model *sl_stage_model(const sl_stage *st);
const char *sl_stage_device(const sl_stage *st); /* "cpu" or "cuda:N" */
/* The operations table for this stage's device, on which the main thread works from now
 * on. Errors: SL_ARG the device is not to be had here: no plug-in (which file was looked
 * for), no such device (how many there are); SL_CUDA. */
sl_code sl_stage_ops(sl_stage *st, const sl_ops **out, sl_err *err);
/* Of a stage that works on a GPU, after sl_stage_ops; NULL on a CPU. */
const sl_plugin *sl_stage_plugin(const sl_stage *st);
/* Host memory that is read from or written to a device: pinned on a GPU. NULL: none is
 * left. Freed before the stage is closed. */
void *sl_stage_host_alloc(const sl_stage *st, size_t bytes);
void sl_stage_host_free(const sl_stage *st, void *p);

/* Create a pool in which this stage receives `purpose` ("text", "image", "latents",
 * "frames") and announce it. Owned by st. Its slots are device memory where sl_slot_kind
 * (sizes.h) says so and the device can share it; sl_pool_kind_of tells. After
 * sl_stage_ops. */
sl_code sl_stage_receive_pool(sl_stage *st, sl_handover h, int slots, size_t slot_bytes,
                              sl_pool **out, sl_err *err);
/* The newest pool that a receiver announced for `purpose`. SL_GONE: none yet, or its
 * owner died. Owned by st; valid until the next call. */
sl_code sl_stage_send_pool(sl_stage *st, sl_handover h, sl_pool **out, sl_err *err);

/* Weights are loaded: jobs may come. */
void sl_stage_ready(sl_stage *st, int64_t load_t0_ns, size_t weight_bytes, size_t arena_bytes);

/* Wait for the next JOB, CHUNK or CANCEL. `busy`: a job is under way across messages
 * (mux), so a drain waits. SL_GONE: drained, end main. */
sl_code sl_stage_next(sl_stage *st, bool busy, sl_msg *out, sl_err *err);

/* ---- while a job runs ---- */

/* Name the job that runs (0: none) so that CANCEL and heartbeats find it. true: it has
 * been cancelled already. */
bool sl_stage_begin(sl_stage *st, uint64_t job, uint32_t attempt);
bool sl_stage_cancelled(const sl_stage *st);
const volatile int *sl_stage_cancel_flag(const sl_stage *st); /* for sl_ctx.cancel */

/* queued; never blocks, never fails */
void sl_stage_send(sl_stage *st, const sl_msg *msg);
/* from t0 until now */
void sl_stage_span(sl_stage *st, uint64_t job, sl_span_kind kind, int64_t t0_ns);
void sl_stage_progress(sl_stage *st, const sl_msg_job *job, int done, int total, double seconds);
/* out may be NULL; arena_bytes: the most that the arena has held; bytes: of the finished
 * file. */
void sl_stage_done(sl_stage *st, const sl_msg_job *job, const sl_ticket *out, size_t arena_bytes,
                   uint64_t bytes);
void sl_stage_failed(sl_stage *st, const sl_msg_job *job, const sl_err *err);

/* Write tensors (host, copied now) to DIR/NAME.safetensors in the background; then
 * SPOOLED is sent, if `announce`. Without memory or disk SPOOLED says why (unannounced: a
 * warning in the log), and the job goes on without that safety, unless its dump was asked
 * for. */
void sl_stage_spool(sl_stage *st, const sl_msg_job *job, const char *name, bool announce, int n,
                    const char *const names[], const sl_tensor tensors[]);
/* Wait until all of it is on disk. SL_TIMEOUT: it is not after two minutes. */
sl_code sl_stage_spool_flush(sl_stage *st, sl_err *err);

/* Hand over n tensors through the receiver's pool: reserve, copy in, seal. *ticket is for
 * DONE. host[i] in host memory and device[i] on ctx's device hold the same numbers; the
 * pool's kind decides which is copied. device[i] of rank 0: it is not there, host[i] is
 * uploaded (ctx's arena is emptied after an error of these). Copies on the device are
 * queued, not waited for. Errors: SL_GONE the receiver is not there (the spool still has
 * them), SL_BUSY no slot in time, SL_SHAPE too large for its slots; SL_CUDA. */
sl_code sl_stage_hand_over(sl_stage *st, sl_ctx *ctx, sl_handover h, int n,
                           const char *const names[], const sl_tensor host[],
                           const sl_tensor device[], sl_ticket *ticket, sl_err *err);

/* Peak host memory of this process, bytes (VmHWM). */
size_t sl_stage_peak_bytes(void);

/* Not finite: SL_NUMERIC "latents has NaN or infinity at [..]". Host float tensors. */
sl_code sl_stage_check_finite(const char *name, const sl_tensor *t, sl_err *err);

#endif
