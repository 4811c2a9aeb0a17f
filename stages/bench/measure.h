/* measure.h - the parts of `sluice bench`: what one measurement is, how it is timed, and
 * the list of what can be measured.
 *
 * Inputs and weights are random, never zeros, which a GPU multiplies faster. Each figure
 * stands beside its floor: the larger of the operations that must be done over the rate
 * of this device's own matrix product, and of the fewest bytes that must be moved over
 * the rate of its own copy; both rates are measured first, in the same run. Errors of
 * everything here: the first one's code and message; what was made is freed. */
#ifndef SL_MEASURE_H
#define SL_MEASURE_H

#include <jansson.h>

#include "common/pipeline.h"
#include "common/model.h"
#include "common/trace.h"
#include "graphs/weights.h"
#include "kernels/plugin.h"
#include "stages/job/devices.h"

#define SL_BENCH_SIZES 4
#define SL_BENCH_MOST_RUNS 50

typedef struct {
    int w, h, frames;
} sl_bench_size;

/* What was asked for, and what has been found so far. */
typedef struct {
    sl_device_list devices; /* as asked for */
    char device[16];        /* the first of them, on which all but a team's dit is measured */
    char comm[8];           /* of a team on GPUs: "ipc", "nccl"; "": as the devices allow */
    char json[SL_PATH], model_dir[SL_PATH], image[SL_PATH], program_dir[SL_PATH];
    char precision[16]; /* of the transformer in dit and job */
    bool quick, profile;
    int repeat;      /* timed runs of each; 0: as many as seem right */
    int steps;       /* of the job */
    double guidance; /* of the job; 1 or less: one forward a step; NaN: not given */
    bool unguided;   /* it was given, as 1 or less */
    int64_t rows;
    int size_count;
    sl_bench_size sizes[SL_BENCH_SIZES]; /* ascending; some things are measured at the last only */
    sl_model model;                      /* the shapes */
    const sl_plugin *plugin;             /* NULL: the CPU */
    int ordinal;                         /* of the GPU */
    size_t free_at_start;                /* of the GPU's memory, this process's context in place */
    sl_ops ops;         /* the device's table, with operations counted: see sl_bench_net */
    const sl_ops *body; /* the device's own table */
    double product_rate, copy_rate; /* operations, bytes a second; 0: not measured yet */
    pid_t peer; /* of the hand-overs' other process, started before this one used a GPU; 0: none */
    int peer_socket;
    struct sl_bench_team *team; /* ranks of a team's dit, started likewise; NULL: none */
    json_t *results;
    float *noise;  /* normal numbers, drawn when first asked for */
    int64_t dealt; /* where sl_bench_fill took its numbers last: each time elsewhere */
} sl_bench;

/* Pixels, latents and tokens of a video of this size by b's model. */
sl_grid sl_bench_grid(const sl_bench *b, const sl_bench_size *s);

typedef struct {
    const sl_ops *body;
    double linear, attention, conv; /* operations since they were last zeroed, a multiply-add
                                     * counted as two */
    double first; /* seconds of the first run, which also makes the libraries' plans; 0: unknown */
} sl_bench_work;

/* A context on the device whose operations are counted, and a loader of random weights. */
typedef struct {
    sl_bench *b;
    sl_bench_work work;
    sl_ctx ctx;        /* ctx.tap_user is &work */
    sl_loader *loader; /* NULL: none */
} sl_bench_net;

/* measure.c. label NULL: no loader. The net must not move: its context points into it.
 * sl_bench_net_close: a zeroed or closed one is fine. */
sl_code sl_bench_net_open(sl_bench_net *n, sl_bench *b, const char *label, sl_err *err);
void sl_bench_net_close(sl_bench_net *n);
/* Fill a dense F32 or BF16 tensor on the device with normal numbers of deviation `scale`.
 * Errors are ctx's. */
void sl_bench_fill(sl_bench_net *n, const sl_tensor *t, float scale);
/* A dense tensor in memory of its own, filled so. sl_device_free(&n->ctx, t.data). */
sl_tensor sl_bench_tensor(sl_bench_net *n, sl_dtype dtype, int64_t a, int64_t b, float scale);

/* One more run, with a clock around each operation: a line for each kind of them.
 * profile.c. Empties the arena. */
typedef void sl_bench_run_fn(void *arg);
sl_code sl_bench_profile(sl_bench_net *n, const char *what, const char *size, sl_bench_run_fn *run,
                         void *arg, sl_err *err);

/* Time `run`, which queues work on n->ctx: once to warm up and to count its operations,
 * then several times. `bytes`: the fewest that it must move. `held`: device memory in use
 * beside the arena and the weights (the CPU's peak; a GPU is asked for its own). Empties
 * the arena. Prints a line and keeps it. */
sl_code sl_bench_time(sl_bench_net *n, const char *what, const char *size, double bytes,
                      size_t held, sl_bench_run_fn *run, void *arg, sl_err *err);
/* sl_bench_time, and with --profile one more run with a clock around each operation. */
sl_code sl_bench_measure(sl_bench_net *n, const char *what, const char *size, double bytes,
                         size_t held, sl_bench_run_fn *run, void *arg, sl_err *err);
/* How often something is timed that takes so many seconds. */
int sl_bench_runs(const sl_bench *b, double seconds);
/* Device memory that is in use: of a GPU all that this process has taken since its start, nothing
 * of which was given back since; on the CPU arena, weights and `held`. */
size_t sl_bench_peak(const sl_bench_net *n, size_t held);
double sl_bench_weight_bytes(const sl_bench_net *n);
const char *sl_bench_size_text(char buf[64], const sl_bench_size *s); /* "832x480x81" */
/* Tell seconds that were taken elsewhere; seconds[count] are sorted. */
void sl_bench_tell(sl_bench *b, const char *what, const char *size, const sl_bench_work *work,
                   double bytes, size_t peak, double *seconds, int count);

/* ---- what can be measured ---- */

sl_code sl_bench_open_device(sl_bench *b, sl_err *err); /* b->device: plugin, body, ops */
void sl_bench_print_device(const sl_bench *b);
sl_code sl_bench_ceilings(sl_bench *b, sl_err *err); /* product_rate, copy_rate */
/* ops.c: the matrix products, attentions and convolutions of the networks, one by
 * one */
sl_code sl_bench_gemm(sl_bench *b, sl_err *err);
sl_code sl_bench_attention(sl_bench *b, sl_err *err);
sl_code sl_bench_conv(sl_bench *b, sl_err *err);
/* dit.c; with several devices team.c, whose ranks `start` forks: call it before the device is
 * opened. stop is fine without it. */
sl_code sl_bench_dit(sl_bench *b, sl_err *err);
sl_code sl_bench_team_start(sl_bench *b, sl_err *err);
void sl_bench_team_stop(sl_bench *b);
sl_code sl_bench_team(sl_bench *b, sl_err *err);
/* networks.c */
sl_code sl_bench_decode(sl_bench *b, sl_err *err);
sl_code sl_bench_condition(sl_bench *b, sl_err *err);
sl_code sl_bench_text(sl_bench *b, sl_err *err);
sl_code sl_bench_image(sl_bench *b, sl_err *err);
/* handover.c: start forks the other process; call it before the device is opened.
 * stop is fine without it. */
sl_code sl_bench_handover_start(sl_bench *b, sl_err *err);
void sl_bench_handover_stop(sl_bench *b);
sl_code sl_bench_handover(sl_bench *b, sl_err *err);
/* job.c: a folder with the configurations of the 14B model, and no weights; a whole
 * job through all processes */
sl_code sl_bench_write_14b(const char *dir, sl_err *err);
sl_code sl_bench_job(sl_bench *b, sl_err *err);

#endif
