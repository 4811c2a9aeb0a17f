/* temporary.h - what writers leave beside a file that they did not finish.
 *
 * A file that is not whole yet has the name PATH.tmp-PID-N, PID the writer's; it is renamed
 * to PATH when it is whole. */
#ifndef SL_TEMPORARY_H
#define SL_TEMPORARY_H

/* Remove the temporaries beside `path` whose writers are dead (SIGKILL). */
void sl_temporary_sweep(const char *path);

#endif
