/* progress.h - the line on stderr that tells how far jobs are, for a run here and for a job of
 * a server.
 *
 * On a terminal a stage has one line, which is written anew; in a log each news is a line, at
 * most one a second. */
#ifndef SL_CLI_PROGRESS_H
#define SL_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    bool quiet;       /* nothing is written */
    bool many;        /* of several jobs: lines begin with the job's number */
    bool logs;        /* news go to the log, as lines of its format, about the job of this name: */
    const char *name; /* NULL: it has none */
    /* what was written last */
    int64_t last_ns;
    char what[64];
    uint64_t job;
} sl_progress; /* {0}: of one job, not quiet */

/* News of a job's stage: `done` of its `total` steps, of about `seconds` each. `ranks` work on it
 * together; 0: not known, or the stage has no teams. Stages that keep pace with their sender are
 * told of at their end alone. */
void sl_progress_step(sl_progress *p, uint64_t job, const char *stage, unsigned done,
                      unsigned total, double seconds, int ranks);
/* News of another kind, as "queued, 2 before it". The same text again writes nothing. */
void sl_progress_note(sl_progress *p, uint64_t job, const char *text);
/* What comes next on stderr or stdout is no news: the terminal's line ends. */
void sl_progress_end(sl_progress *p);

#endif
