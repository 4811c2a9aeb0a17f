/* notices.h - what a run says before it begins: what will not be done, where there is little room,
 * what a replay takes. Lines of the log. */
#ifndef SL_CLI_NOTICES_H
#define SL_CLI_NOTICES_H

#include "common/conf.h"
#include "stages/job/request.h"

/* What the batch's jobs are asked for and will not do, each such thing once. */
void sl_notice_hints(const sl_batch *o, const sl_model *model);
/* Disks that are small for what the jobs write. Errors: SL_SYS too small for a video. */
sl_code sl_notice_room(sl_batch *o, const sl_model *model, sl_err *err);
/* The hand-overs that a replay, of one job or more, takes from its dump; the stages that run. */
void sl_notice_replay(const sl_batch *o, const sl_conf *conf);

#endif
