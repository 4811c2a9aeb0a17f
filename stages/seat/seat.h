/* seat.h - a stage's process: its settings, its device, and the parts that it shares with
 * every other stage. stages/README.md tells the protocol.
 *
 *   control   the socket: messages, cancel, heartbeats        a thread
 *   turn      when this stage may compute on its device
 *   pools     where it receives, where its receivers do
 *   mates     the other instances of its role, for teams
 *   spool     files of the job's folder                       a thread
 * On these stand parcel.h and chunk.h (tensors given and taken) and loop.h (job by job).
 * The main thread computes; all functions below are the main thread's. README.md draws who
 * runs where. */
#ifndef SL_SEAT_H
#define SL_SEAT_H

#include "common/conf.h"
#include "common/job.h"
#include "common/model.h"
#include "kernels/plugin.h"
#include "stages/seat/control.h"
#include "stages/seat/mates.h"
#include "stages/seat/pinned.h"
#include "stages/seat/pools.h"
#include "stages/seat/spool.h"
#include "stages/seat/turn.h"

#define SL_SEAT_FILTER ((sl_role)SL_ROLES_MOST)

/* Fields are for reading; the functions of the parts change them. */
typedef struct {
    sl_role role;
    int instance;          /* number among its role's */
    char device[SL_STR64]; /* "cpu" or "cuda:N" */
    char *const *args;     /* the configuration's `args`: main's words; see sl_seat_args */
    int arg_count;
    bool args_read;
    sl_conf conf;
    sl_model model;
    const sl_plugin *plugin; /* NULL: works on a CPU, or sl_seat_context was not called yet */
    sl_control control;
    sl_turn turn;
    sl_pools pools;
    sl_mates mates;
    sl_spool spool;
    sl_pinned pinned;
} sl_seat;

/* role: SL_SEAT_FILTER for a filter; which one it is, the environment says (SLUICE_FILTER). Parse
 * the stage's command line (--connect ENDPOINT --conf FILE --model DIR [--device
 * D], then the configuration's `args`), read configuration and model configs, die with the
 * dispatcher, turn SIGTERM into drain, connect, say HELLO. *out is the caller's to close, after an
 * error too. Errors: SL_ARG, SL_SYS, SL_FORMAT; SL_GONE drained before it began. */
sl_code sl_seat_open(sl_seat **out, sl_role role, int argc, char **argv, sl_err *err);
/* The configuration's `args` for this stage, words of main's argv, and how many. A program that
 * does not ask before sl_seat_ready has no use for any, which the log then says. */
char *const *sl_seat_args(sl_seat *seat, int *count);
void sl_seat_close(sl_seat **seat); /* waits for the spool to be written; NULL is fine */
/* End of main: tell the dispatcher of the error if there is one, else the log; close, and
 * give the exit status (0 drained, 1 an error). */
int sl_seat_exit(sl_seat **seat, const sl_err *err);

/* Open the plug-in for the seat's device, if that is a GPU: the main thread works on it from now
 * on, and pools may lie there. Errors: as sl_seat_context. */
sl_code sl_seat_device(sl_seat *seat, sl_err *err);
/* As sl_seat_device, and open ctx, without an arena yet, on the seat's device; the job's cancel
 * stops its operations. The caller closes ctx before the seat. Errors: SL_ARG the device is not to
 * be had here: no plug-in (which file was looked for), no such device (how many there are);
 * SL_CUDA; SL_NOMEM. */
sl_code sl_seat_context(sl_seat *seat, sl_ctx *ctx, sl_err *err);
/* Make and announce the pools of all hand-overs to this role that some job of this model
 * has: slots from the configuration, their kind and bytes from stages/sizes. After
 * sl_seat_context or sl_seat_device, if the stage has a device. */
sl_code sl_seat_receive(sl_seat *seat, sl_err *err);

/* Host memory that is read from or written to a device: pinned on a GPU, and kept there for the
 * next job when it is freed. NULL: none is left. Freed before the seat is closed. */
void *sl_seat_host_alloc(sl_seat *seat, size_t bytes);
void sl_seat_host_free(sl_seat *seat, void *p);
/* Peak host memory of this process, bytes (VmHWM). */
size_t sl_seat_peak_bytes(void);

/* ---- a job's beginning and end ---- */

/* Say READY: the weights are loaded, jobs may come. */
void sl_seat_ready(sl_seat *seat, int64_t load_t0_ns, size_t weight_bytes, size_t arena_bytes);
/* Read DIR/job.json of a JOB message and check it; files of the folder are this job's from now on.
 * The job is the caller's to free. */
sl_code sl_seat_job(sl_seat *seat, sl_job *job, const sl_msg_job *msg, sl_err *err);
/* Name the attempt that runs (NULL: none), by its JOB; lines of the log name the job from now
 * on. The turn of the attempt before ends, whatever became of that one. true: the new attempt
 * has been cancelled already. */
bool sl_seat_begin(sl_seat *seat, const sl_msg_job *msg);
/* Say DONE. out: hand-overs that lie in slots now, may be NULL; arena_bytes: the most that
 * the arena has held; bytes: of the finished file. */
void sl_seat_done(sl_seat *seat, const sl_msg_job *msg, const sl_tickets *out, size_t arena_bytes,
                  uint64_t bytes);
/* Say FAILED, after the spool is written: the job's folder may be removed once that is
 * said. */
void sl_seat_failed(sl_seat *seat, const sl_msg_job *msg, const sl_err *err);

#endif
