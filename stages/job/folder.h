/* folder.h - a job's folder, its making and its end. */
#ifndef SL_FOLDER_H
#define SL_FOLDER_H

#include "common/pipeline.h"
#include "stages/job/request.h"

/* SPOOL/PID-ID, or of a job with a dump DUMP/.sluice/PID-ID, so that a dump never goes through a
 * small spool (unless the dump has no room): job.json, and everything the stages will need
 * (pictures, noise, a replay's hand-overs), so that nothing of the user's is read twice. r->id is
 * set before; r->dir is set, also after an error: the caller removes what is there. What a killed
 * run has left in DUMP/.sluice goes a day later, when another one dumps there, unless the record
 * that the folder names (r->record) is still there. `from`: the stage
 * that a replay starts at; "" for none. */
sl_code sl_request_open_dir(sl_request *r, const char *spool, const char *from, sl_err *err);
/* Likewise of run.spool itself: folders of dead runs, a day old, without a record. Of the run of
 * `record`, whose lock the caller has: all. "": of none. */
void sl_request_sweep(const char *spool, const char *record);
/* Remove the job's folder, its job.json first, and a dump's that was made for it and has nothing in
 * it. One that is not there is fine; r->dir stays, as the job's name. */
void sl_request_close_dir(const sl_request *r);

#endif
