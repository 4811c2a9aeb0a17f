/* help.h - what `sluice help` says, and texts that the manual page shares with it. */
#ifndef SL_CLI_HELP_H
#define SL_CLI_HELP_H

#include <stdio.h>

#include "stages/cli/verbs.h"

#define SL_HELP_DEFAULTS                                                                           \
    "A checkpoint's own: DIR/" SL_MODEL_DEFAULTS                                                   \
    ", if it is there, a JSON object with options as keys: max-area, width,\n"                     \
    "height, frames, fps, steps, guidance, guidance-2, shift, sampler, negative and those of the " \
    "cache."
#define SL_HELP_SERVER                                                                             \
    "A server is found by --server, else SLUICE_SERVER, else in the default state folder\n"        \
    "(XDG_STATE_HOME/sluice, else ~/.local/state/sluice); its token by --token-file, else "        \
    "SLUICE_TOKEN."
#define SL_HELP_STATUS                                                                             \
    "0 done; 1 a job failed or was cancelled; 2 refused: bad usage or input, or the\n"             \
    "server said no (4xx); 3 no server, or it failed; 124 the time of --timeout has passed."

void sl_help_all(FILE *to);
void sl_help_verb(const sl_verb *v, FILE *to);

#endif
