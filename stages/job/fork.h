/* fork.h - a replay that begins in the middle of the denoising: `replay DIR --from denoise --step
 * K` of a dump with --dump-steps, with another guidance, prompt, picture, sampler, LoRA or cache
 * from there on. Without any of them its bytes are the dump's. */
#ifndef SL_FORK_H
#define SL_FORK_H

#include "stages/job/request.h"

/* All of r's options are set: which stages before the denoiser it asks for again (r->again), and
 * the dump's file of the state (r->fork_file). step: the option's, 0: none was given. */
void sl_fork_note(sl_request *r, int step);
/* r->spec is complete. A step that the cache skipped is no place to begin with the same bytes:
 * where nothing else is asked for, r->spec.fork becomes the last one before that it computed.
 * Errors: SL_ARG an option that no fork can follow, a step that is none, a sampler that has no such
 * noise level; SL_SYS, SL_FORMAT, SL_SHAPE the dump's file. */
sl_code sl_fork_check(sl_request *r, const char *from, const sl_model *model, sl_err *err);

#endif
