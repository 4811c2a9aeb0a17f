/* trace_json.h - a report's spans as a trace that Chrome (chrome://tracing) and Perfetto
 * (ui.perfetto.dev) show: {"traceEvents": [...], ...}.
 *
 * A process of the trace is the client or a stage, with its device as the label. Events are
 * complete ones ("ph": "X", ts and dur in microseconds), counted from when the first of the jobs
 * was asked for. What overlaps lies in tracks (threads) beside each other:
 *
 *     client    jobs: one event a job, with what it was     start, spool
 *     a stage   compute, handover, ...; queue, wait, turn: nobody works    steps    ranks
 *
 * Each event of a job has its name in "args". Spans are cut to the job's time as the report cuts
 * them (a process's own, start and load, to that of all jobs shown), so the lengths of one stage's
 * events of one kind add up to the report's figure. Steps have the decisions of the First Block
 * Cache; a rank's event spans the job's steps and has the sums of the report, for ranks say no
 * more. */
#ifndef SL_TRACE_JSON_H
#define SL_TRACE_JSON_H

#include "stages/job/report.h"

/* Of one job, or of all when job is NULL. Errors: SL_SYS, SL_NOMEM; half a file is removed. */
sl_code sl_report_trace_write(const sl_report *r, const sl_report_job *job, const char *path,
                              sl_err *err);

#endif
