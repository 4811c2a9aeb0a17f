/* log.h - one line a message on stderr, from many processes and threads without mixing.
 *
 *     12:34:56.789 denoise[4711] info: step 12 of 50, 2.9 s
 *
 * A line holds local time, the process's name and id, the level and the text. It leaves in
 * one write(2), so lines of processes that share a terminal or a pipe stay whole. Control
 * characters in the text become spaces: a message is one line.
 * For machines the same as JSON, with the time in UTC and the job where the line is about one:
 *
 *     {"time":"2026-11-29T12:34:56.789Z","level":"info","process":"denoise","pid":4711,
 *      "job":"4700-1","message":"step 12 of 50, 2.9 s"}            (one line, no spaces)
 *
 * Such a line is valid JSON whatever the text holds: bytes that are no UTF-8 become U+FFFD,
 * control characters are escaped.
 *
 * Who logs: what runs as a process (stages/, its shared parts too). common/, kernels/ and
 * graphs/ return errors instead; the exceptions are a warning of the plug-in, once a process
 * (kernels/cuda/attention_plan.cu), and one of the loader, which makes up for another rank
 * (graphs/weights.c).
 * Threads: every function may be called from any thread, sl_log_open while no other thread
 * logs. sl_log, sl_log_about and sl_log_err keep errno. */
#ifndef SL_LOG_H
#define SL_LOG_H

#include <stdbool.h>

#include "common/err.h"

/* From the gravest; a level shows itself and what stands before it. */
#define SL_LOG_LEVELS(X) X(ERROR, "error") X(WARN, "warn") X(INFO, "info") X(DEBUG, "debug")

typedef enum {
#define X(name, text) SL_LOG_##name,
    SL_LOG_LEVELS(X)
#undef X
        SL_LOG_LEVEL_COUNT
} sl_log_level;

#define SL_LOG_FORMATS(X) X(TEXT, "text") X(JSON, "json")

typedef enum {
#define X(name, text) SL_LOG_AS_##name,
    SL_LOG_FORMATS(X)
#undef X
} sl_log_format;

/* Bytes of the longest line, its newline included; a longer message ends in "...". */
#define SL_LOG_LINE 2048
#define SL_LOG_JOB 64 /* bytes of a job's name, its NUL included; a longer one is cut */

/* Set the name (cut to 31 bytes, copied) and the last level shown. Before the first call:
 * "sluice", info. */
void sl_log_open(const char *name, sl_log_level level);
/* Lines of this form from now on. Before the first call: text. */
void sl_log_use_format(sl_log_format format);
/* The job that this process works on (copied; NULL: none): JSON lines name it. */
void sl_log_job(const char *name);

/* One line, if the level is shown. */
void sl_log(sl_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* One line about this job (NULL: none), whatever sl_log_job said: for who has many. */
void sl_log_about(const char *job, sl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* One line of another process, for which this one speaks: its name and pid in place of ours. */
void sl_log_from(const char *name, int pid, sl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* At level error: "prefix: message of err (its code's text where there is no message)". */
void sl_log_err(const char *prefix, const sl_err *err);

/* The line of a command for its user, an end or a warning: "NAME: text" on stderr, whatever
 * level is shown. Control characters of paths and messages become '?'. As JSON it is a line
 * of level error. */
void sl_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Would sl_log(level, ...) print? For messages that are dear to make. */
bool sl_log_shows(sl_log_level level);

/* The level of this name; false: SL_LOG_LEVELS has none of that name. */
bool sl_log_level_parse(const char *text, sl_log_level *out);
/* "info"; "?" for a number that is no level. */
const char *sl_log_level_name(sl_log_level level);

#endif
