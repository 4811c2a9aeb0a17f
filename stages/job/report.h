/* report.h - where the time of jobs went: filled from the messages of a run, then written as
 * JSON or printed as a small table. */
#ifndef SL_REPORT_H
#define SL_REPORT_H

#include <stdio.h>

#include <jansson.h>

#include "common/conf.h"
#include "common/trace.h"
#include "common/wire.h"
#include "stages/job/request.h"

/* Of the JSON, which docs/report.schema.json describes: it grows when a key goes or means something
 * else, not when one is added. */
#define SL_REPORT_VERSION 1

typedef struct {
    bool ran;      /* false: it did not, or was not heard of */
    int64_t t0_ns; /* 0: not known */
    double seconds, cond_metric, uncond_metric;
    int cond_computed, uncond_computed; /* 1, 0; -1: no such branch, or the step is not known */
} sl_report_step;

/* What one instance of a role with teams did for a job: the sums of what it said of its attempts,
 * SHARE of common/wire.h. */
typedef struct {
    int attempts; /* 0: it had no part */
    int team;     /* the largest that it was a member of */
    int steps;
    double rows; /* its parts of the forwards' rows, added up step by step */
    double step_s, exchange_s, wait_s;
    uint64_t sent_bytes, device_bytes; /* device_bytes: the most */
} sl_report_rank;

typedef struct {
    const sl_request *job;
    uint64_t number; /* the dispatcher's for the job, from ACCEPTED; 0: not known yet */
    int64_t t0_ns, t1_ns;
    bool finished;
    bool refused; /* before any work: of the job nothing is known but that, and its line */
    int line;     /* of one that was refused */
    sl_code code;
    char message[SL_TEXT];
    char kept[SL_PATH]; /* what a failed job had finished, for a replay; "" nothing */
    uint64_t bytes;
    sl_report_step *steps; /* spec.steps of them */
    uint64_t peak_bytes[SL_ROLES_MOST], arena_bytes[SL_ROLES_MOST];
    char device[SL_ROLES_MOST][SL_STR64]; /* of the instance that did its part; "": none yet */
    sl_report_rank ranks[SL_RANKS];       /* by instance */
    uint32_t team; /* bit i: instance i works on the job together with others,
                                           * or did last; 0: not known, or there are no teams */
} sl_report_job;

typedef struct {
    int count, room;
    sl_report_job *jobs;
    sl_trace trace;                       /* spans of all jobs; job 0: of the processes */
    char device[SL_ROLES_MOST][SL_STR64]; /* of the newest instance heard of */
    char rank_device[SL_RANKS][SL_STR64]; /* of each instance of the role with teams */
    uint64_t weight_bytes[SL_ROLES_MOST];
    int instances[SL_ROLES_MOST]; /* that have been heard of */
    int restarts;                 /* of stages and dispatcher */
} sl_report;

/* `jobs` [count] are checked, and outlive the report. sl_report_free, also after an error.
 * Errors: SL_NOMEM. */
sl_code sl_report_init(sl_report *r, const sl_request *jobs, int count, int64_t t0_ns, sl_err *err);
void sl_report_free(sl_report *r);
/* One more job, asked for at t0; `job` is checked, or refused, and outlives the report. *out is
 * valid until the next one comes. Errors: SL_NOMEM. */
sl_code sl_report_add(sl_report *r, sl_report_job **out, const sl_request *job, int64_t t0_ns,
                      sl_err *err);
/* The job of this id; NULL: none of this report's. */
sl_report_job *sl_report_find(sl_report *r, uint64_t id);
/* Put the request's id in the place of the dispatcher's number, in a message that has one.
 * false: of a job that this report does not know. */
bool sl_report_own(const sl_report *r, sl_msg *m);
void sl_report_message(sl_report *r, const sl_msg *m);  /* STEP, SPAN, STAGE, SHARE */
const char *sl_report_status(const sl_report_job *job); /* "done", "cancelled", "failed" */
/* Seconds of steps in which the rank did not wait. */
double sl_report_computing(const sl_report_rank *rank);
/* Its part of a forward's rows, 0 .. 1, in the mean of its steps. */
double sl_report_rows(const sl_report_rank *rank);
/* How many ranks work on the job now; 0: not known, or there are no teams. */
int sl_report_team(const sl_report_job *job);
/* job->warnings as an array of texts, the caller's. */
json_t *sl_report_warnings(const sl_request *job);
#define SL_REPORT_JSON (JSON_INDENT(2) | JSON_REAL_PRECISION(9)) /* jansson's flags of a file */
/* A job's report, the caller's; NULL: no memory. */
json_t *sl_report_json(const sl_report *r, const sl_report_job *job);
/* The same to a file. Errors: SL_SYS. */
sl_code sl_report_write(const sl_report *r, const sl_report_job *job, const char *path,
                        sl_err *err);
/* The job's JSON in one line, flushed. */
void sl_report_line(const sl_report *r, const sl_report_job *job, FILE *to);
void sl_report_print(const sl_report *r, const sl_report_job *job, FILE *to);

#endif
