/* wait.c - `sluice wait`: a server's jobs to their end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/outcome.h"
#include "stages/cli/terminal.h"

/* Where the videos go: of one job a file, of several files in a folder. */
static sl_code set_output(sl_outcome *o, const sl_client *c, const char *id, sl_err *err)
{
    struct stat st;
    char name[80];
    const bool folder = *c->output && !stat(c->output, &st) && S_ISDIR(st.st_mode);
    if (!*c->output) return SL_OK;
    if (c->count > 1 && !folder)
        return sl_fail(err, SL_ARG, "--output %s is no folder, want one for %d videos", c->output,
                       c->count);
    if (!folder) {
        snprintf(o->output, sizeof o->output, "%s", c->output);
        return SL_OK;
    }
    snprintf(name, sizeof name, "%s.mp4", id);
    return sl_path_join(o->output, c->output, name, err);
}

static sl_code prepare(sl_outcome *jobs, const sl_client *c, sl_err *err)
{
    sl_code rc = SL_OK;
    for (int i = 0; i < c->count && !rc; i++) {
        snprintf(jobs[i].id, sizeof jobs[i].id, "%s", c->words[i]);
        if (!(rc = set_output(&jobs[i], c, c->words[i], err))) rc = sl_outcome_check(&jobs[i], err);
    }
    return rc;
}

int sl_cli_wait(int argc, char **argv)
{
    sl_client c;
    sl_remote r = {0};
    sl_err err = {0};
    sl_vigil v = {0};
    sl_outcome *jobs = NULL;
    int status = SL_EXIT_REFUSED;
    if (sl_client_parse(&c, sl_verb_find("wait"), NULL, NULL, argc, argv, &err)) goto done;
    if (!(jobs = calloc((size_t)c.count, sizeof *jobs))) goto done;
    if (prepare(jobs, &c, &err) || sl_client_connect(&r, &c, &err) ||
        sl_vigil_open(&v, &r, c.quiet || c.json, c.count > 1, false, &err))
        goto done;
    if (!c.has_retry_s) r.retry_s = SL_RETRY_WAIT_S;
    status = sl_vigil_wait(&v, jobs, c.count);
    for (int i = 0; i < c.count && c.json; i++)
        if (jobs[i].video && sl_json_to_file(jobs[i].video, "-", &err)) status = SL_EXIT_FAILED;
done:
    if (err.code) sl_complain("%s", err.msg);
    for (int i = 0; jobs && i < c.count; i++) sl_outcome_free(&jobs[i]);
    free(jobs);
    sl_client_free(&c);
    const sl_vigil ended_by = v;
    sl_vigil_close(&v);
    sl_remote_close(&r);
    sl_vigil_leave(&ended_by);
    return status;
}
