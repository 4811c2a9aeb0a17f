/* notices.c - what a run says before it begins. */
#include "stages/cli/notices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "stages/job/hints.h"
#include "stages/job/room.h"

typedef struct {
    char before[8][SL_PATH];
    int count;
    sl_request *job;
} told;

static void tell(void *to, const char *line)
{
    told *t = to;
    sl_request_warn(t->job, line);
    for (int i = 0; i < t->count && i < 8; i++)
        if (!strcmp(t->before[i], line)) return;
    snprintf(t->before[t->count % 8], SL_PATH, "%s", line);
    if (t->count < 8) t->count++;
    sl_log(SL_LOG_WARN, "%s", line);
}

void sl_notice_hints(const sl_batch *o, const sl_model *model)
{
    told *t = calloc(1, sizeof *t);
    sl_tokenizer *tokenizer = NULL;
    for (int i = 0; i < o->job_count && t; i++) {
        t->job = &o->jobs[i];
        sl_request_hints(t->job, model, &tokenizer, tell, t);
        if (t->job->no_video && !*t->job->dump_dir)
            tell(t, "the configuration has no stage mux: no video comes of this run, and without "
                    "--dump nothing does");
    }
    sl_tokenizer_close(&tokenizer);
    free(t);
}

sl_code sl_notice_room(sl_batch *o, const sl_model *model, sl_err *err)
{
    char hint[2 * SL_PATH];
    for (int i = 0; i < o->job_count; i++) {
        sl_code rc = sl_request_room(&o->jobs[i], model, hint, sizeof hint, err);
        if (rc) return rc;
        if (!*hint) continue;
        sl_log(SL_LOG_WARN, "%s", hint);
        sl_request_warn(&o->jobs[i], hint);
    }
    return SL_OK;
}

void sl_notice_replay(const sl_batch *o, const sl_conf *conf)
{
    char taken[512] = "", run[512] = "";
    for (int h = 0; h < sl_handover_count(); h++)
        if (o->jobs[0].from_dump >> h & 1)
            snprintf(taken + strlen(taken), sizeof taken - strlen(taken), "%s%s",
                     *taken ? ", " : "", SL_HANDOVER[h].name);
    for (int i = 0; i < sl_role_count(); i++)
        if (sl_conf_find(conf, sl_role_in_order(i)))
            snprintf(run + strlen(run), sizeof run - strlen(run), "%s%s", *run ? ", " : "",
                     sl_role_name(sl_role_in_order(i)));
    sl_log(SL_LOG_INFO, "from %.400s: %s; stages that run: %s", o->replay_dir,
           *taken ? taken : "nothing", run);
}
