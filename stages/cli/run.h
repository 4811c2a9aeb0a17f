/* run.h - a batch from its checks to its last result, for the verbs that run one. */
#ifndef SL_CLI_RUN_H
#define SL_CLI_RUN_H

#include "stages/job/request.h"

/* The stage that has this process's terminal. */
typedef struct {
    const char *role;
    char *const *wrapper; /* words before its program, NULL-terminated, may be none */
} sl_attached;

/* Check the batch, which is parsed and stays the caller's, start a dispatcher, run the jobs, print
 * and write what they made. attached NULL: no stage has the terminal. t0_ns: when the command
 * began. Returns the exit status; an error is one line on stderr. */
int sl_cli_run_batch(sl_batch *o, const sl_attached *attached, int64_t t0_ns);

#endif
