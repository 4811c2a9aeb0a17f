/* submit.h - jobs for a server: described, submitted, waited for, fetched. */
#ifndef SL_CLI_SUBMIT_H
#define SL_CLI_SUBMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "stages/cli/progress.h"
#include "stages/cli/remote.h"

/* Does a command line of `run` name a server? */
bool sl_submit_is_remote(int argc, char **argv);
/* `sluice run --server WHERE ...`: the exit status. */
int sl_submit_run(int argc, char **argv);

#endif
