/* stage.h - a stage of your own: the protocol of stages/README.md behind a few calls, for C and for
 * any language that calls C. libsluice-stage.so holds them; Python's package `sluice`
 * (stages/python) stands on it.
 *
 *     static sl_code work(sl_stage *s, void *self, sl_err *err)       once a job
 *     {
 *         sl_code rc = sl_stage_input(s, "latents", NULL, &x, err);   a tensor that it is handed
 *         ... sl_stage_chunk, fill, sl_stage_send, or sl_stage_give ... what it hands on
 *     }
 *     int main(int argc, char **argv) { return sl_stage_main("decode", work, NULL, argc, argv); }
 *
 * The process is started by the dispatcher and dies with it. Threads of the library's own keep the
 * heartbeat, hear a cancel and write files, whatever the caller computes meanwhile. All functions
 * are the thread's that called sl_stage_open; sl_stage_cancelled may be asked by any.
 * Tensors are named as `sluice protocol --json` and stages/README.md name them; their names are
 * one's own over all hand-overs. Shapes are those of the job that runs. A span of computing is
 * told for the time between the calls.
 * `stream`: a cudaStream_t on which the caller's device works; NULL where tensors are the host's.
 * Errors: codes and one line in *err. SL_CANCELLED, SL_GONE and the caller's own are given back
 * from `work`, or said with sl_stage_fail. */
#ifndef SL_STAGE_H
#define SL_STAGE_H

#include "common/err.h"
#include "common/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_stage sl_stage; /* opaque */

#define SL_STAGE_ABI 1  /* grows with a change after which older stages are to be built anew */
int sl_stage_abi(void); /* of the library that is there */
/* What `sluice protocol --json` prints. The caller's to free; NULL: no memory. */
char *sl_stage_protocol(void);

/* ---- the process ---- */

/* role: "text" to "mux", or "filter". Read the command line (--connect ENDPOINT --conf FILE --model
 * DIR [--device D] [args]), connect and say HELLO: heartbeats go out from here on, so load what
 * takes long behind it. *out is the caller's to close, after an error too. Errors: SL_ARG no role
 * of this name, a wrong command line or setting; SL_FORMAT; SL_SYS; SL_GONE drained before it
 * began. */
sl_code sl_stage_open(sl_stage **out, const char *role, int argc, char **argv, sl_err *err);
/* The end of main: an error that is not SL_GONE is told to the dispatcher; files are written to
 * their end. Gives the exit status. *s becomes NULL. */
int sl_stage_close(sl_stage **s, const sl_err *err);

const char *sl_stage_model(const sl_stage *s);  /* the checkpoint's folder or file */
const char *sl_stage_device(const sl_stage *s); /* "cpu", "cuda:0" */
int sl_stage_instance(const sl_stage *s);
/* The configuration's `args` of this stage, words of main's argv. */
char *const *sl_stage_args(sl_stage *s, int *count);

/* The stage is loaded: make the pools in which it receives, and say READY; jobs may come.
 * on_device: slots may lie in memory of the stage's GPU, where all senders can write there; else
 * they are the host's. Errors: SL_ARG no plug-in or no such device; SL_CUDA; SL_NOMEM. */
sl_code sl_stage_ready(sl_stage *s, bool on_device, size_t weight_bytes, sl_err *err);

/* ---- a filter ---- */

/* A stage whose role is "filter" is put into a hand-over by the configuration: its process is told
 * which one. It is handed the hand-over, by the names of its tensors, and hands on the like: with
 * sl_stage_give or sl_stage_slot, or with sl_stage_chunk and sl_stage_send once for each chunk that
 * sl_stage_await gave; or as it came, with sl_stage_pass. */

/* "text", "image", "latents" or "frames"; NULL: this stage is no filter. */
const char *sl_stage_filters(const sl_stage *s);
/* What a filter has only looked at goes on as it came: the hand-over, or the newest chunk. Errors:
 * SL_ARG no filter, nothing awaited, tensors that lie on a device (give them); SL_SHAPE the filter
 * scales frames; as sl_stage_give and sl_stage_send. */
sl_code sl_stage_pass(sl_stage *s, sl_err *err);

/* How a filter works: once for a hand-over that goes whole (chunk -1), once for each chunk (from
 * 0). in, out: its tensors, as sl_stage_specs lists them, host memory; out is to be filled, and has
 * the numbers of `in` where both are of one shape. *same: set by a filter that only looked. */
typedef sl_code sl_filter_work(sl_stage *s, void *self, int chunk, const sl_tensor in[],
                               const sl_tensor out[], bool *same, sl_err *err);
/* All of main. */
int sl_filter_main(sl_filter_work *work, void *self, int argc, char **argv);

/* ---- a job ---- */

/* Wait for the next job, which is then the one that all calls below are about, until
 * sl_stage_done or sl_stage_fail. A job that cannot be read is failed here. Errors: SL_GONE
 * drained: end main. */
sl_code sl_stage_next(sl_stage *s, sl_err *err);

/* How a stage works on one job; an error is answered with FAILED. */
typedef sl_code sl_stage_work(sl_stage *s, void *self, sl_err *err);
/* All of main: open, ready (host slots), job after job, close. The configuration's `args` are the
 * last words of argv, and the caller's to read. */
int sl_stage_main(const char *role, sl_stage_work *work, void *self, int argc, char **argv);

/* The job's folder (job.json, pictures, noise and finished hand-overs), its number and attempt. */
const char *sl_stage_dir(const sl_stage *s);
uint64_t sl_stage_job(const sl_stage *s, uint32_t *attempt);
/* A field of job.json (common/job.h): a number or a flag, NAN if there is none of the name; a text
 * or a path, NULL likewise. "params" is a text: the JSON that the user gave with --set. */
double sl_stage_number(const sl_stage *s, const char *field);
const char *sl_stage_text(const sl_stage *s, const char *field);
/* The user, or the dispatcher, does not want the attempt any more: end it with SL_CANCELLED. */
bool sl_stage_cancelled(const sl_stage *s);

/* One tensor of a hand-over of this job. */
typedef struct {
    const char *handover, *name;
    sl_dtype dtype;
    int rank;
    int64_t shape[SL_MAX_RANK]; /* of a chunk: the largest */
} sl_stage_spec;
#define SL_STAGE_SPECS 8
/* What the stage is handed (in), or hands on, in this job; returns how many. */
int sl_stage_specs(const sl_stage *s, bool in, sl_stage_spec out[SL_STAGE_SPECS]);
/* Chunks of the hand-over that goes slot by slot; 0: the job has none from or to this stage. */
int sl_stage_chunks(const sl_stage *s);

/* ---- what it is handed ---- */

/* The tensor of this name, dense, read-only: where it lies, in a slot or in a mapped file, until
 * sl_stage_taken or the job's end. *t is host memory unless sl_stage_lies_on_device says so; on a
 * device, work that is put on `stream` from now on follows the sender's. dtype is that of the
 * spec; on a device it may be BF16, too. Host floats are finite. Errors: SL_ARG the job has no
 * such tensor (which it has); SL_GONE stale; SL_FORMAT, SL_SHAPE, SL_NUMERIC, SL_SYS, SL_CUDA. */
sl_code sl_stage_input(sl_stage *s, const char *name, void *stream, sl_tensor *t, sl_err *err);
bool sl_stage_lies_on_device(const sl_stage *s, const char *name);
/* The noise that denoising starts from, F32 of the latents' shape: the user's file, else the
 * numbers that torch.Generator("cpu") gives for the seed. The stage's, until the job's end. Errors:
 * as of a file; SL_NOMEM. */
sl_code sl_stage_noise(sl_stage *s, sl_tensor *t, sl_err *err);
/* All inputs are read: their slots are free, for the next job's (TAKEN). The views are invalid;
 * on a device after the work on `stream`. May be left out. */
void sl_stage_taken(sl_stage *s, void *stream);

/* Wait for the next chunk: *t its tensor, read-only, until sl_stage_drop or the next call; *index
 * from 0. Errors: SL_CANCELLED; SL_GONE another attempt came, or drained; SL_FORMAT, SL_SHAPE. */
sl_code sl_stage_await(sl_stage *s, int *index, int *chunks, sl_tensor *t, sl_err *err);
/* The chunk is read: its slot is free. */
void sl_stage_drop(sl_stage *s);

/* ---- what it hands on ---- */

/* A slot of the receiver for a hand-over that goes whole, its tensors laid out in it as
 * sl_stage_specs lists them: fill them, then sl_stage_seal. *on_device: they are device memory, of
 * the receiver's GPU. Errors: SL_GONE, SL_BUSY there is no receiver or no slot in time: the
 * hand-over goes by its file, which is no failure. */
sl_code sl_stage_slot(sl_stage *s, const char *handover, sl_tensor out[], bool *on_device,
                      sl_err *err);
/* The slot is filled, by the host or by what is queued on stream. */
sl_code sl_stage_seal(sl_stage *s, void *stream, sl_err *err);
/* Hand over host tensors, as many and of the shapes that the specs say: into a slot, unless one
 * was sealed, and into the job's folder, in the background. They are copied before it returns.
 * Errors: SL_SHAPE, SL_NUMERIC not finite. */
sl_code sl_stage_give(sl_stage *s, const char *handover, const sl_tensor tensors[], sl_err *err);

/* A slot for the next chunk, n along the first index: however long it takes, which is the
 * back-pressure. *t is host memory to fill. Errors: SL_CANCELLED, SL_GONE. */
sl_code sl_stage_chunk(sl_stage *s, int64_t n, void *stream, sl_tensor *t, sl_err *err);
/* Send it on, when the work on the chunk's stream is over; its progress is told. */
sl_code sl_stage_send(sl_stage *s, sl_err *err);

/* ---- what it says ---- */

/* done of total pieces of work, the newest in so many seconds. */
void sl_stage_progress(sl_stage *s, int done, int total, double seconds);
/* A denoising step (from 0) is over, which began at t0_ns (sl_stage_now_ns). */
void sl_stage_step(sl_stage *s, int step, int steps, int64_t t0_ns);
/* Where time went from t0_ns until now: kind is one of "load", "compute", "handover", "spool",
 * "wait". Between the calls it is computing without being said. Errors: SL_ARG another kind. */
sl_code sl_stage_span(sl_stage *s, const char *kind, int64_t t0_ns, sl_err *err);
int64_t sl_stage_now_ns(void); /* of CLOCK_MONOTONIC */
/* A piece of work on a device that other stages compute on too: wait for the turn, give it back.
 * step: a denoising step, else something short. Optional. Errors: SL_CANCELLED. */
sl_code sl_stage_turn(sl_stage *s, bool step, int number, sl_err *err);
void sl_stage_turn_end(sl_stage *s, bool more);
/* A line of the log: level "error", "warn", "info" or "debug". */
void sl_stage_log(const char *level, const char *text);

/* The job is done here (DONE). bytes: of a file that the stage made itself, else 0. Errors:
 * SL_INTERNAL something that it is to hand on was not given, or chunks are missing: nothing is
 * said. */
sl_code sl_stage_done(sl_stage *s, uint64_t bytes, sl_err *err);
/* The job failed here (FAILED): the user gets the message. Does nothing between jobs. */
void sl_stage_fail(sl_stage *s, const sl_err *err);

#ifdef __cplusplus
}
#endif

#endif
