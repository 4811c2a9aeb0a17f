/* output.h - where a job's files go: links followed, streams told from files, devices left
 * alone. */
#ifndef SL_OUTPUT_H
#define SL_OUTPUT_H

#include "stages/job/request.h"

/* path, made absolute, becomes what a rename may replace: a link is followed, also one whose end is
 * not there yet. *stream: -1, or the descriptor of this process that the path is: "-",
 * /dev/stdout, /dev/fd/N, /proc/self/fd/N, a link to one of them. Errors: SL_ARG a device, or a
 * path in /dev or /proc; a descriptor that is a terminal or cannot be written; links in a circle.
 * `what` begins the message. */
sl_code sl_output_resolve(char path[SL_PATH], int *stream, const char *what, sl_err *err);

/* Can the file be replaced? As sl_can_write_file, and it is not write-protected, whoever asks. */
sl_code sl_output_check(const char *path, const char *what, sl_err *err);

/* Copy a finished file into a descriptor. Errors: SL_SYS. */
sl_code sl_output_stream(const char *file, int fd, sl_err *err);

#endif
