/* folder.h - a job's folder, from its making to what is left of it. */
#ifndef SL_FOLDER_H
#define SL_FOLDER_H

#include "common/pipeline.h"
#include "stages/job/request.h"

/* SPOOL/PID-ID, or of a job with a dump DUMP/.sluice/PID-ID, so that a dump never goes through a
 * small spool (unless the dump has no room): job.json, and everything the stages will need
 * (pictures, noise, a replay's hand-overs), so that nothing of the user's is read twice. r->id is
 * set before; r->dir is set, also after an error: the caller removes what is there. What a killed
 * run has left in DUMP/.sluice goes a day later, when another one dumps there. `from`: the stage
 * that a replay starts at; "" for none. */
sl_code sl_request_open_dir(sl_request *r, const char *spool, const char *from, sl_err *err);
/* Remove the job's folder, and a dump's that was made for it and has nothing in it. One that is not
 * there is fine; r->dir stays, as the job's name. */
void sl_request_close_dir(const sl_request *r);

/* The job's folder has this hand-over, whole. */
bool sl_request_has(const sl_request *r, sl_handover h);

/* The folder's files that --dump promises, into r->dump_dir, in the place of another job's.
 * *handovers: how many of them are hand-overs; without any the folder is as it was. `whole`: the
 * job is done; else the latents after its steps lie in files of their own. Errors: SL_SYS, "its
 * dump is not: " or "its dump is not whole: " and why, behind "the video is written, ": each file
 * that is there is whole. */
sl_code sl_request_dump(const sl_request *r, bool whole, int *handovers, sl_err *err);

/* What a failed job had finished, into a new folder of `parent`, sluice-kept-UID-XXXXXX, from which
 * `sluice replay` goes on: kept, its path. It is the user's: no run removes it. On one file system
 * nothing is copied, and no room is needed; else, on a full disk, the latents alone may get there.
 * Errors: SL_SYS, not even they; nothing is left. */
sl_code sl_request_keep(const sl_request *r, const char *parent, char kept[SL_PATH], sl_err *err);

#endif
