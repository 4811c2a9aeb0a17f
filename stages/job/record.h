/* record.h - a run's record in run.spool: what it was asked for beside its jobs' job.json, so that
 * `sluice run --resume` goes on when the command and all its processes have been killed.
 *
 * A record is a file run-XXXXXX.json. Its run locks it (flock), and the lock is inherited by every
 * process that the run starts: it is free when the last of them is gone, so nobody goes on with a
 * folder that a dying stage still writes to. The record is empty until all jobs have their folders;
 * a run that is killed before that had not begun. Each job's folder names its record (folder.h),
 * and stays for as long as that is there. A job has ended when its job.json is gone. */
#ifndef SL_RECORD_H
#define SL_RECORD_H

#include "stages/job/request.h"

typedef struct {
    char path[SL_PATH]; /* "": there is none */
    int fd;             /* holds the lock; inherited */
    bool written;       /* it has the run's jobs */
} sl_record;

/* A new record, empty and locked, in a folder that is there. Errors: SL_SYS. */
sl_code sl_record_make(sl_record *rec, const char *spool, sl_err *err);
/* The batch's jobs all have their folders: now they are to be gone on with. Errors: SL_SYS;
 * SL_FORMAT a path that is no UTF-8. */
sl_code sl_record_write(sl_record *rec, const sl_batch *b, sl_err *err);
/* Unlock; `done`: every job has ended, and the record goes. An unused record is fine. */
void sl_record_close(sl_record *rec, bool done);

/* Names of the folder's records, sorted, malloc'd each and together; returns how many. */
int sl_record_list(char ***names, const char *spool);
/* Take over the run of a record: wait until its processes are gone, lock it, read its jobs that
 * have not ended into *b, which has been initialised and says this run's conf and device. A record
 * without such jobs is removed, and *b has none. Errors: SL_BUSY the run goes on, or its processes
 * did not end in time; SL_FORMAT, SL_SYS, SL_NOMEM. rec is to be closed after SL_OK. */
sl_code sl_record_take(sl_record *rec, sl_batch *b, const char *spool, const char *name,
                       sl_err *err);

#endif
