/* folder.h - a job's folder in the spool, from its making to its dump. */
#ifndef SL_FOLDER_H
#define SL_FOLDER_H

#include "stages/job/request.h"

/* SPOOL/PID-ID: job.json, and everything the stages will need (pictures, noise, a replay's
 * hand-overs), so that nothing of the user's is read twice. r->id is set before; r->dir is
 * set, also after an error: the caller removes what is there. `from`: the stage that a
 * replay starts at; "" for none. */
sl_code sl_request_open_dir(sl_request *r, const char *spool, const char *from, sl_err *err);

/* The folder's files that --dump promises, into r->dump_dir. On a full disk what was written
 * of them goes again; the video stays. */
sl_code sl_request_dump(const sl_request *r, sl_err *err);

#endif
