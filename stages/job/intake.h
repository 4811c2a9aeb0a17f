/* intake.h - requests taken in: from JSON text, from a jobs file, from a dump to be replayed. */
#ifndef SL_INTAKE_H
#define SL_INTAKE_H

#include "stages/job/request.h"

/* The base is the dumped job in `dir`, a folder that --dump wrote; its noise is used unless
 * another one or a seed is asked for. Called before any option is set. Errors: SL_ARG, what
 * job.json says. */
sl_code sl_batch_replay(sl_batch *b, const char *dir, sl_err *err);

/* One more job: the base, and over it a JSON object with options as keys. Messages begin with
 * "NAME:LINE: "; line 0: the text is no line of a jobs file, they begin with "NAME: ". A job
 * without an output gets out-N.mp4. Errors: SL_FORMAT, SL_ARG. */
sl_code sl_batch_add_json(sl_batch *b, const char *text, size_t length, const char *name, int line,
                          sl_err *err);
/* What messages call the jobs file: its path, or "stdin". */
const char *sl_batch_jobs_name(const sl_batch *b);
/* The batch with its last job alone: a view, not to be freed. */
sl_batch sl_batch_last(const sl_batch *b);
/* All options are set: the jobs are the lines of the jobs file, or, without one, the base
 * alone; with --resume there are none yet (record.h). A jobs file that is a pipe or standard input
 * is not read: b->jobs_stream. Nothing but the jobs file is looked at. Errors: SL_ARG, SL_SYS,
 * SL_FORMAT. */
sl_code sl_batch_expand(sl_batch *b, sl_err *err);

#endif
