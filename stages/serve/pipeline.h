/* pipeline.h - the server's main thread: the dispatcher, and the journal's jobs through it.
 *
 *   journal --claim--> folder --SUBMIT--> dispatcher --FINISHED--> reports --finish--> journal
 *
 * Only so many jobs are in the dispatcher at a time (serve.ahead), so that the order of the queue
 * stays the journal's until late. What dies:
 *   a stage         the dispatcher's business
 *   the dispatcher  is started again, and gets all running jobs anew
 *   this process    the next one finds the jobs RUNNING, and goes on from their folders
 * A stage that cannot be started any more (BROKEN) may be the fault of one job: the jobs go back
 * to the queue and run one at a time; the one that breaks it alone fails. If several in a row do,
 * it is the machine's fault: nothing is claimed but one job a minute, and none fails for it.
 * A disk that is full fails no job either: it goes back to the queue until there is room. */
#ifndef SL_PIPELINE_LOOP_H
#define SL_PIPELINE_LOOP_H

#include "stages/serve/server.h"

/* Run until a signal has drained it: SIGTERM and SIGINT finish what runs, for at most
 * supervise.drain_s, a second one ends at once; what is left stays in the journal. SIGHUP calls
 * reload(self). Signals are blocked in all threads before this. began() is called when the pipeline
 * is ready for the first time. Errors: SL_SYS the dispatcher cannot run at all. */
sl_code sl_pipeline_run(sl_server *s, void (*reload)(void *self), void (*began)(void *self),
                        void *self, sl_err *err);

#endif
