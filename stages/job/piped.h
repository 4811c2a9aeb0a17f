/* piped.h - inputs that can be read only once: pipes and standard input. */
#ifndef SL_PIPED_H
#define SL_PIPED_H

#include "stages/job/request.h"

/* Inputs are read more than once: to be checked, and to be copied to the spool. Each path of n that
 * is "-", a pipe or a socket is read to its end into memory, and becomes a path of that; equal ones
 * are read once. The memory is this process's until it ends. A path is a buffer of SL_PATH bytes.
 * Errors: SL_ARG a named pipe that nobody has opened to write for 3 s; SL_SYS cannot be read;
 * SL_FORMAT more than a picture may have; SL_NOMEM. */
sl_code sl_take_pipes(char *const *paths, int n, sl_err *err);

/* Pictures and noise of all jobs of a batch. */
sl_code sl_batch_take_pipes(sl_batch *b, sl_err *err);

#endif
