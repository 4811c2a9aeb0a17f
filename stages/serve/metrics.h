/* metrics.h - what operators watch, in Prometheus' text format 0.0.4.
 *
 * A metric is a row of METRICS (metrics.c): name, type, labels, help. A name never changes its
 * meaning. Gauges that somebody else knows better are set when the page is made (info.c). Any
 * thread. */
#ifndef SL_METRICS_H
#define SL_METRICS_H

#include <stddef.h>

#include "common/err.h"

/* NAME, type, help. Labels are given with each value, always the same ones for a name. */
#define SL_METRICS(X)                                                                              \
    X(JOBS_ACCEPTED, "sluice_jobs_accepted_total", COUNTER, "Jobs that got an answer 2xx")         \
    X(JOBS_REFUSED, "sluice_jobs_refused_total", COUNTER, "Jobs that were refused, by HTTP code")  \
    X(JOBS, "sluice_jobs_total", COUNTER, "Jobs that ended, by outcome")                           \
    X(QUEUE, "sluice_queue_jobs", GAUGE, "Jobs that wait")                                         \
    X(QUEUE_AGE, "sluice_queue_age_seconds", GAUGE, "Age of the oldest job that waits, 0 if none") \
    X(RUNNING, "sluice_running_jobs", GAUGE, "Jobs in the pipeline")                               \
    X(KEPT, "sluice_kept_bytes", GAUGE, "Bytes of finished jobs on the disk")                      \
    X(DISK_FREE, "sluice_disk_free_bytes", GAUGE, "Free bytes of the state's disk")                \
    X(READY, "sluice_ready", GAUGE, "1 while the pipeline takes jobs")                             \
    X(STAGE_SECONDS, "sluice_stage_seconds_total", COUNTER,                                        \
      "Seconds of jobs by stage, its device and what it did (compute, turn, queue, ...)")          \
    X(STAGE_LOADS, "sluice_stage_loads_total", COUNTER,                                            \
      "Times that a stage's weights were loaded")                                                  \
    X(STAGE_RESTARTS, "sluice_stage_restarts_total", COUNTER,                                      \
      "Processes of a stage, or the dispatcher, that ended and were started again")                \
    X(STEPS, "sluice_steps_total", COUNTER, "Denoising steps")                                     \
    X(STEP_SECONDS, "sluice_step_seconds_total", COUNTER, "Seconds of denoising steps")            \
    X(CACHE, "sluice_cache_forwards_total", COUNTER,                                               \
      "Forwards of steps, by what First Block Cache decided (computed, skipped)")                  \
    X(RANK_SECONDS, "sluice_rank_seconds_total", COUNTER,                                          \
      "Seconds of steps of a rank, by what it did (compute, exchange, wait)")                      \
    X(RANK_SENT, "sluice_rank_sent_bytes_total", COUNTER, "Bytes that a rank sent to others")      \
    X(DEVICE_BYTES, "sluice_device_bytes", GAUGE,                                                  \
      "Bytes in use of a rank's device after a step, all processes together")                      \
    X(WEIGHT_BYTES, "sluice_stage_weight_bytes", GAUGE, "Bytes of a stage's weights")              \
    X(ARENA_BYTES, "sluice_stage_arena_bytes", GAUGE, "Most bytes of a stage's arena in a job")    \
    X(STREAMS, "sluice_event_streams", GAUGE, "Readers of event streams")                          \
    X(CONNECTIONS, "sluice_http_connections", GAUGE, "Open HTTP connections")                      \
    X(REQUESTS, "sluice_http_requests_total", COUNTER, "HTTP requests by route, method and code")  \
    X(REQUEST_SECONDS, "sluice_http_request_seconds", HISTOGRAM,                                   \
      "Seconds from a request's head to its answer's queueing, by route")                          \
    X(JOB_SECONDS, "sluice_job_seconds", HISTOGRAM, "Seconds from a job's acceptance to its end")  \
    X(STUCK, "sluice_queue_stuck_jobs", GAUGE,                                                     \
      "Jobs that wait and that no server which is up takes")                                       \
    X(SERVERS, "sluice_fleet_servers", GAUGE, "Servers of a shared queue that are heard of")       \
    X(TAKEN, "sluice_fleet_taken_over_total", COUNTER,                                             \
      "Jobs of a shared queue whose server fell silent, and that went on elsewhere")               \
    X(FENCED, "sluice_fleet_fenced_total", COUNTER,                                                \
      "Changes of a shared queue refused because the job was another server's by then")            \
    X(GIVEN_UP, "sluice_fleet_given_up_total", COUNTER,                                            \
      "Jobs of a shared queue that failed because their servers died too often (serve.retries)")   \
    X(FLEET_JOBS, "sluice_fleet_jobs", GAUGE, "Jobs that run, by the server of a shared queue")    \
    X(FLEET_SILENCE, "sluice_fleet_silence_seconds", GAUGE,                                        \
      "Seconds since a server of a shared queue was heard of")                                     \
    X(CPU, "sluice_server_cpu_seconds_total", COUNTER, "CPU seconds of the server's process")      \
    X(BUILD, "sluice_build_info", GAUGE, "1; labels tell the version")

typedef enum {
#define X(NAME, name, type, help) SL_METRIC_##NAME,
    SL_METRICS(X)
#undef X
        SL_METRIC_COUNT
} sl_metric;

typedef struct sl_metrics sl_metrics;

sl_code sl_metrics_open(sl_metrics **out, sl_err *err);
void sl_metrics_close(sl_metrics **m); /* NULL is fine */

/* A label's value as it stands in the text: '"', '\\' and line breaks escaped. out holds 2 x the
 * value and a NUL at least. */
void sl_metrics_escape(char *out, size_t size, const char *value);

/* `labels`: "stage=\"mux\",kind=\"compute\"", values escaped; "" for none. More than a few thousand
 * different ones are left out. */
void sl_metrics_add(sl_metrics *m, sl_metric which, const char *labels, double by);
void sl_metrics_set(sl_metrics *m, sl_metric which, const char *labels, double value);
/* All that was said of this one is forgotten, before it is said anew. */
void sl_metrics_forget(sl_metrics *m, sl_metric which);
void sl_metrics_observe(sl_metrics *m, sl_metric which, const char *labels, double value);

/* The page; malloc'd, *size without its NUL. NULL: no memory. */
char *sl_metrics_print(sl_metrics *m, size_t *size);

#endif
