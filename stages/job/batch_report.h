/* batch_report.h - of jobs that ran together: how busy each stage was, how much came out, and what
 * waited for what. */
#ifndef SL_BATCH_REPORT_H
#define SL_BATCH_REPORT_H

#include <jansson.h>

#include "stages/job/report.h"

/* From when the first job was asked for until the last has ended; the caller's; NULL: no memory.
 *
 *     {"seconds": 61.2, "done": 4, "jobs_per_hour": 235.3, "frames_per_second": 5.3,
 *      "stages": {"denoise": {"instances": 1, "computing": 55.1, "occupancy": 0.9}, ...},
 *      "waits": [{"who": "jobs", "for": "denoise", "seconds": 80.2, "jobs": 3}, ...]}
 *
 * occupancy: the part of the time of all instances of the stage in which they compute. waits, the
 * longest first: jobs for a stage that works on another one; a stage for its turn of its device;
 * a stage for a slot of the next. Rows shorter than a thousandth of the time are left out. */
json_t *sl_batch_report(const sl_report *r);
/* {"jobs": [...], "batch": ...} of all jobs to a file. Errors: SL_SYS. */
sl_code sl_batch_report_write(const sl_report *r, const char *path, sl_err *err);
/* sl_batch_report's object as a small table. */
void sl_batch_report_print(const json_t *batch, FILE *to);

#endif
