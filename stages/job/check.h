/* check.h - complete and check every job before any work. */
#ifndef SL_CHECK_H
#define SL_CHECK_H

#include "common/conf.h"
#include "stages/job/request.h"

/* Complete every job of the batch from the checkpoint and the configuration, and look at
 * everything that can be looked at without computing: devices, programs, checkpoint headers,
 * pictures, noise, prompts, outputs, limits. *model and *conf are filled; conf's limits grow
 * to fit the jobs when the batch names no configuration file. Errors: one line; of a job
 * with a line it begins with "JOBSFILE:LINE: ". */
sl_code sl_batch_check(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err);

/* Of jobs that a run has checked before (record.h): settings, checkpoint, sizes and limits, which
 * may be others by now. Errors: one line. */
sl_code sl_batch_check_again(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err);

/* The last job of a batch that sl_batch_check has opened, one of a stream: checked like the others,
 * and against what they write. Errors: one line, with the job's line. */
sl_code sl_batch_check_last(sl_batch *b, const sl_model *model, const sl_conf *conf, sl_err *err);

/* The first half of it, without a look at the jobs: configuration, devices, programs, checkpoint
 * (the jobs', or the base's). */
sl_code sl_batch_open(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err);

/* As far as a plan of the memory needs it: sizes, steps and devices. Nothing else that a
 * user gave must be there, and GPUs that cannot be asked count as absent. */
sl_code sl_batch_complete(sl_batch *b, sl_model *model, sl_conf *conf, sl_err *err);

/* One job of an open checkpoint, whose sluice.json has been applied. `from`: the stage that
 * a replay starts at; "" for none. */
sl_code sl_request_check(sl_request *r, const char *from, const sl_model *model,
                         const sl_conf *conf, sl_err *err);
/* Values of the checkpoint's scheduler and the configuration, where nobody said anything: schedule,
 * rate, quality, cache. */
void sl_request_complete(sl_request *r, const sl_model *model, const sl_conf *conf);
/* A checked job is no larger than conf allows. `where`: put behind the setting's name in the
 * message (" in FILE"). Errors: SL_ARG. */
sl_code sl_request_check_limits(const sl_request *r, const sl_conf *conf, const char *where,
                                sl_err *err);

#endif
