/* request.c - batches made, extended and freed. */
#include "stages/job/request.h"

#include <stdlib.h>
#include <string.h>

sl_code sl_batch_init(sl_batch *b, sl_err *err)
{
    sl_code rc;
    memset(b, 0, sizeof *b);
    if ((rc = sl_job_init(&b->base.spec, err))) return rc;
    if (!(b->jobs = calloc(SL_MAX_RUN_JOBS, sizeof *b->jobs)))
        return sl_fail(err, SL_NOMEM, "no memory");
    return SL_OK;
}

void sl_batch_free(sl_batch *b)
{
    sl_job_free(&b->base.spec);
    for (int i = 0; i < b->job_count; i++) {
        sl_job_free(&b->jobs[i].spec);
        free(b->jobs[i].warnings);
    }
    free(b->jobs);
    memset(b, 0, sizeof *b);
}

static sl_code copy_request(sl_request *to, const sl_request *from, sl_err *err)
{
    *to = *from;
    to->warnings = NULL;
    return sl_job_copy(&to->spec, &from->spec, err);
}

sl_code sl_batch_add(sl_batch *b, sl_request **out, sl_err *err)
{
    if (b->job_count == SL_MAX_RUN_JOBS)
        return sl_fail(err, SL_ARG, "%s has more than %d jobs",
                       *b->jobs_file ? b->jobs_file : "the run", SL_MAX_RUN_JOBS);
    *out = &b->jobs[b->job_count++];
    return copy_request(*out, &b->base, err);
}

void sl_request_warn(sl_request *r, const char *line)
{
    const size_t before = r->warnings ? strlen(r->warnings) + 1 : 0;
    char *more = realloc(r->warnings, before + strlen(line) + 1);
    if (!more) return;
    if (before) more[before - 1] = '\n';
    strcpy(more + before, line);
    r->warnings = more;
}
