/* outcome.h - a server's jobs to their end: followed, and what they made fetched.
 *
 * SIGINT and SIGTERM are taken while a vigil lasts. It ends with an interrupted wait, or, for jobs
 * that were begun here (`sluice run`), cancels them and waits on; a second one always ends it. */
#ifndef SL_CLI_OUTCOME_H
#define SL_CLI_OUTCOME_H

#include "stages/cli/progress.h"
#include "stages/cli/remote.h"

/* One job, and which files are wanted of it: "" none. */
typedef struct {
    char id[65];
    char output[SL_PATH];                 /* the video; "-": to stdout */
    char report[SL_PATH], trace[SL_PATH]; /* "-" likewise */
    char preview[SL_PATH], dump[SL_PATH]; /* dump: a folder */
    bool table;                           /* the report as a table, on stdout */
    json_t *video;                        /* the last object; NULL: not known */
    json_t *said;                         /* its report, if a file or the table asked for it */
    bool through;                         /* it has ended and its files are fetched, or failed */
    sl_code code;                         /* SL_OK: the job is complete, and so are its files */
} sl_outcome;

typedef struct {
    sl_remote *remote;
    sl_progress progress;
    bool cancels; /* a signal cancels the jobs */
    int signals;  /* a signalfd; -1: none */
    int caught;   /* the last signal; 0: none */
    int times;    /* how many */
} sl_vigil;

/* Block the signals and watch for them; *v is filled. Errors: SL_SYS. */
sl_code sl_vigil_open(sl_vigil *v, sl_remote *r, bool quiet, bool many, bool cancels, sl_err *err);
void sl_vigil_close(sl_vigil *v);
/* Until every job has ended and what is wanted is fetched. A job that fails is told in a line. The
 * result is an exit status: that of the gravest end, in the order of no server, deadline, refused,
 * failed. A signal that ended it is to be raised again by the caller (sl_vigil_leave). */
int sl_vigil_wait(sl_vigil *v, sl_outcome *jobs, int count);
/* End them, those that have not ended; what could not be cancelled is told in a line. */
void sl_vigil_cancel(sl_vigil *v, const sl_outcome *jobs, int count);
/* Ended by a signal: die of it, as one expects of a program. Returns if it was not. */
void sl_vigil_leave(const sl_vigil *v);
void sl_outcome_free(sl_outcome *o);

/* Before any work: can the files be written? Errors: SL_ARG. */
sl_code sl_outcome_check(const sl_outcome *o, sl_err *err);

#endif
