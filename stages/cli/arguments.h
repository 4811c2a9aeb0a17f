/* arguments.h - the command line of `sluice run`, `replay` and `plan`. */
#ifndef SL_CLI_ARGUMENTS_H
#define SL_CLI_ARGUMENTS_H

#include "stages/job/request.h"

/* A batch from the words after the verb; `replay`: the first is the dump's folder.
 * Everything is parsed, nothing looked at but a dump's job.json and the jobs file. *b is
 * freed by the caller, also after an error. Errors: SL_ARG, SL_SYS, SL_FORMAT one line. */
sl_code sl_cli_parse(sl_batch *b, bool replay, int argc, char **argv, sl_err *err);

#endif
