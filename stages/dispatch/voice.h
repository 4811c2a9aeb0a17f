/* voice.h - what programs that are not Sluice's own print: each line goes to the log with the name
 * and the process of its stage. A line that is one of the log already goes as it is.
 *
 * One thread a process reads its standard output and error, so that a program never waits for the
 * dispatcher, nor the dispatcher for it. */
#ifndef SL_VOICE_H
#define SL_VOICE_H

#include "common/err.h"

typedef struct sl_voice sl_voice; /* opaque */

/* *end is where the process is to write; the caller closes it once the process has it. *out is the
 * caller's to close. Errors: SL_SYS, SL_NOMEM: the process prints to ours. */
sl_code sl_voice_open(sl_voice **out, int *end, const char *name, sl_err *err);
/* The lines are this process's. */
void sl_voice_of(sl_voice *v, int pid);
/* The process has ended: wait a moment for its last lines. A child of its that still has the pipe
 * is read on, by nobody's leave. NULL is fine. */
void sl_voice_close(sl_voice **v);

#endif
