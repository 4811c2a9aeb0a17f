/* replay.h - what a replay runs again, and which options mean something to it. */
#ifndef SL_REPLAY_H
#define SL_REPLAY_H

#include "stages/job/request.h"

/* An option of a job speaks to a stage; a replay that does not run the stage again would do nothing
 * with it. Errors: SL_ARG with the stage from which it would. r->spec is complete but for the size;
 * `from` is a stage. */
sl_code sl_replay_check_options(const sl_request *r, const char *from, const sl_model *model,
                                sl_err *err);
/* Of a fork (fork.h): stages before the denoiser to which r's options speak; bit sl_role. */
unsigned sl_replay_again(const sl_request *r);
/* r->again, and the filters before the stage `from` whose results the dump lacks, or has behind
 * other filters: they run again. */
unsigned sl_replay_filters(const sl_request *r, const char *from);
/* Errors: SL_ARG no stage of this name begins a crew, whose hand-overs are files. */
sl_code sl_replay_check_from(const char *from, sl_err *err);
/* A replay, a run from the stage `from` on, does not make this hand-over: it is the dump's. */
bool sl_replay_takes(const sl_request *r, const char *from, sl_handover h);
/* And some stage that runs reads it. */
bool sl_replay_needs(const sl_request *r, const char *from, sl_handover h);
/* The hand-overs that it takes and that are there: bit h for hand-over h. */
uint32_t sl_replay_taken(const sl_request *r, const char *from);
/* The stage that the option speaks to; SL_ROLES_MOST: none, the run itself takes it. */
sl_role sl_replay_role(const char *option, const sl_model *model, const sl_job *job);

/* What a shell is to be told to go on with the job whose hand-overs lie in `dir`, into out [size]:
 * "sluice replay DIR --from STAGE", what the run was told of configuration, devices and files, and
 * the video's name. STAGE is the first whose result is not there. "": it would take more than that
 * stage and those after it, or does not fit into size. */
void sl_replay_line(char *out, size_t size, const sl_batch *b, const sl_request *r,
                    const sl_model *model, const char *dir);

#endif
