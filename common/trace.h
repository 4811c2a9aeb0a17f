/* trace.h - spans: what a process did for a job, from when to when.
 *
 * A span's times are nanoseconds of sl_now_ns (common/clock.h), which all processes of one
 * machine share. So the report (stages/job/report.h) lays the spans of all processes on one
 * line and says which part of a job's time no span covers. Stages send their spans as SPAN
 * messages (common/wire.h).
 * Functions take plain arrays; sl_trace is a growing one for who collects. No locks: one
 * thread a trace. */
#ifndef SL_TRACE_H
#define SL_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"

/* name, text, meaning. Numbers travel in messages: never reordered. */
#define SL_SPAN_KINDS(X)                                                                           \
    X(START, "start", "a process starts: a stage's up to its HELLO, the dispatcher's")             \
    X(LOAD, "load", "weights are read or converted")                                               \
    X(QUEUE, "queue", "the job waits for a stage that is busy with another one")                   \
    X(COMPUTE, "compute", "a network or an encoder runs")                                          \
    X(HANDOVER, "handover", "tensors are placed in or taken from a slot, tickets travel")          \
    X(SPOOL, "spool", "a hand-over is written to or read from a file")                             \
    X(WAIT, "wait", "the job waits for something else: a free slot, another part's result")        \
    X(TURN, "turn", "the stage waits for its turn of a device that others compute on")

typedef enum {
#define X(name, text, meaning) SL_SPAN_##name,
    SL_SPAN_KINDS(X)
#undef X
        SL_SPAN_KIND_COUNT
} sl_span_kind;

#define SL_SPAN_STAGE 16 /* bytes of a stage's name, its NUL included */

typedef struct {
    uint64_t job;         /* 0: of no job (start, load) */
    int64_t t0_ns, t1_ns; /* CLOCK_MONOTONIC; covers [t0, t1) */
    uint32_t kind;        /* sl_span_kind */
    uint32_t reserved;
    char stage[SL_SPAN_STAGE];
} sl_span;

const char *sl_span_kind_name(uint32_t kind); /* "compute"; "?" for a number that is no kind */
sl_span sl_span_make(uint64_t job, const char *stage, sl_span_kind kind, int64_t t0_ns,
                     int64_t t1_ns);

/* ---- collecting ---- */

typedef struct {
    sl_span *spans;
    size_t count, capacity;
} sl_trace; /* {0} is empty */

/* Append a copy. Allocates now and then. Errors: SL_NOMEM; SL_ARG a kind out of range or
 * an end before the start. */
sl_code sl_trace_add(sl_trace *t, const sl_span *span, sl_err *err);
void sl_trace_free(sl_trace *t); /* {0} again */

/* ---- asking ----
 * Spans count when they are of `job` and, unless stage is NULL, of that stage, and only
 * by their part inside [a, b]. */

/* Length of the union: overlapping spans count once. (b - a) minus this is unaccounted.
 * Allocates; -1: no memory. */
int64_t sl_span_covered_ns(const sl_span *spans, size_t count, uint64_t job, const char *stage,
                           int64_t a_ns, int64_t b_ns);

/* Sum of lengths by kind: overlapping spans count each. */
void sl_span_sums_ns(const sl_span *spans, size_t count, uint64_t job, const char *stage,
                     int64_t a_ns, int64_t b_ns, int64_t sums[SL_SPAN_KIND_COUNT]);

#endif
