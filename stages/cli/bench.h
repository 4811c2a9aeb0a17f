/* bench.h - the parts of `sluice bench`: what one measurement is, how it is timed, and
 * the list of what can be measured.
 *
 * Inputs and weights are random, never zeros, which a GPU multiplies faster. Each figure
 * stands beside its floor: the larger of the operations that must be done over the rate
 * of this device's own matrix product, and of the fewest bytes that must be moved over
 * the rate of its own copy; both rates are measured first, in the same run. Errors of
 * everything here: the first one's code and message; what was made is freed. */
#ifndef SL_BENCH_H
#define SL_BENCH_H

#include <jansson.h>

#include "common/model.h"
#include "common/trace.h"
#include "graphs/weights.h"
#include "kernels/plugin.h"

#define BENCH_SIZES 4

typedef struct {
    int w, h, frames;
} bench_size;

/* What was asked for, and what has been found so far. */
typedef struct {
    char device[16], json[SL_PATH], model_dir[SL_PATH], image[SL_PATH], program_dir[SL_PATH];
    bool quick, profile;
    int repeat;      /* timed runs of each; 0: as many as seem right */
    int steps;       /* of the job */
    double guidance; /* of the job; 1 or less: one forward a step; NaN: not given */
    int64_t rows;
    int size_count;
    /* ascending; what is measured at one size only is measured at the last */
    bench_size sizes[BENCH_SIZES];
    sl_model model;          /* the shapes */
    const sl_plugin *plugin; /* NULL: the CPU */
    int ordinal;             /* of the GPU */
    size_t free_at_start;    /* of the GPU's memory, this process's context in place */
    /* the device's table, with operations counted: see bench_net */
    sl_ops ops;
    const sl_ops *body;             /* the device's own table */
    double product_rate, copy_rate; /* operations, bytes a second; 0: not measured yet */
    /* the other process of the hand-overs, started before this one touched a GPU; 0: none */
    pid_t peer;
    int peer_socket;
    json_t *results;
    /* normal numbers, drawn when first asked for; bench_fill deals them out from another
     * place each time */
    float *noise;
    int64_t dealt;
} bench;

/* A context on the device whose operations are counted, and a loader of random weights. */
typedef struct {
    const sl_ops *body;
    /* operations since they were last zeroed, a multiply-add counted as two */
    double linear, attention, conv;
    /* seconds of the first run, which also makes plans; 0: unknown */
    double first;
} bench_work;

typedef struct {
    bench *b;
    bench_work work;
    sl_ctx ctx;        /* its tap_user is &work */
    sl_loader *loader; /* NULL: none */
} bench_net;

/* label NULL: no loader. The net must not move: its context points into it.
 * bench_net_close: a zeroed or closed one is fine. */
sl_code bench_net_open(bench_net *n, bench *b, const char *label, sl_err *err);
void bench_net_close(bench_net *n);
/* Fill a dense F32 or BF16 tensor on the device with normal numbers of deviation `scale`.
 * Errors are ctx's. */
void bench_fill(bench_net *n, const sl_tensor *t, float scale);
/* A dense tensor in memory of its own, filled so. sl_device_free(&n->ctx, t.data). */
sl_tensor bench_tensor(bench_net *n, sl_dtype dtype, int64_t a, int64_t b, float scale);

/* One more run, with a clock around each operation: a line for each kind of them.
 * bench_profile.c. Empties the arena. */
typedef void bench_run_fn(void *arg);
sl_code bench_profile(bench_net *n, const char *what, const char *size, bench_run_fn *run,
                      void *arg, sl_err *err);

/* Time `run`, which queues work on n->ctx: once to warm up and to count its operations,
 * then several times. `bytes`: the fewest that it must move. `held`: device memory in use
 * beside the arena and the weights (the CPU's peak; a GPU is asked for its own). Empties
 * the arena. Prints a line and keeps it. */
sl_code bench_time(bench_net *n, const char *what, const char *size, double bytes, size_t held,
                   bench_run_fn *run, void *arg, sl_err *err);
/* The same for seconds that were taken elsewhere; seconds[count] are sorted. */
void bench_tell(bench *b, const char *what, const char *size, const bench_work *work, double bytes,
                size_t peak, double *seconds, int count);

/* ---- what can be measured ---- */

sl_code bench_ceilings(bench *b, sl_err *err); /* product_rate, copy_rate */
/* bench_ops.c: the matrix products, attentions and convolutions of the networks, one by
 * one */
sl_code bench_gemm(bench *b, sl_err *err);
sl_code bench_attention(bench *b, sl_err *err);
sl_code bench_conv(bench *b, sl_err *err);
/* bench_networks.c */
sl_code bench_dit(bench *b, sl_err *err);
sl_code bench_decode(bench *b, sl_err *err);
sl_code bench_condition(bench *b, sl_err *err);
sl_code bench_text(bench *b, sl_err *err);
sl_code bench_image(bench *b, sl_err *err);
/* bench_handover.c: start forks the other process; call it before the device is opened.
 * stop is fine without it. */
sl_code bench_handover_start(bench *b, sl_err *err);
void bench_handover_stop(bench *b);
sl_code bench_handover(bench *b, sl_err *err);
/* bench_job.c: a folder with the configurations of the 14B model, and no weights; a whole
 * job through all processes */
sl_code bench_write_14b(const char *dir, sl_err *err);
sl_code bench_job(bench *b, sl_err *err);

#endif
