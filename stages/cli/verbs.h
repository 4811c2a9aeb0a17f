/* verbs.h - the verbs of `sluice`, a file each. argv are the words after the verb; the result
 * is the exit status (SL_EXIT_...). What is wrong is one line on stderr. */
#ifndef SL_CLI_VERBS_H
#define SL_CLI_VERBS_H

#include <stdbool.h>
#include <stdint.h>

/* run.c: `sluice run`, or `sluice replay`; t0_ns: when the program began. */
int sl_cli_run(bool replay, int argc, char **argv, int64_t t0_ns);
int sl_cli_inspect(int argc, char **argv);
int sl_cli_plan(int argc, char **argv);
int sl_cli_pack(int argc, char **argv);

#endif
