/* room.h - is there room on the disk for what a job writes? Asked before the work. */
#ifndef SL_ROOM_H
#define SL_ROOM_H

#include "stages/job/request.h"

/* Bytes of a job's dump: hand-overs, noise, with --dump-steps the latents after each step, frames.
 * What --dump-blocks writes is not counted. */
uint64_t sl_dump_bytes(const sl_job *job, const sl_model *model);

/* A checked job: hint [size] is "", or a line about a disk that looks too small; r->small_dump is
 * set where the dump does not fit, and the job goes on with as much of it as will. Errors: SL_SYS
 * not even the smallest video fits. */
sl_code sl_request_room(sl_request *r, const sl_model *model, char *hint, size_t size, sl_err *err);

#endif
