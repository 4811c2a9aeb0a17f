/* report_table.h - a job's report (the JSON of stages/job/report.h) as a small table, wherever the
 * JSON comes from. */
#ifndef SL_REPORT_TABLE_H
#define SL_REPORT_TABLE_H

#include <stdio.h>

#include <jansson.h>

/* `name` stands in the first line for the video, NULL: the report's own. What the report lacks, or
 * has in another type, counts as 0. */
void sl_report_print_json(const json_t *report, const char *name, FILE *to);

#endif
