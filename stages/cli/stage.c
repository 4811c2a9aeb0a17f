/* stage.c - `sluice stage`: one stage on this terminal, from a dump.
 *
 *     sluice stage decode --from DUMP -- gdb --args
 *
 * It is a replay that starts the one stage, and of its crew (decode and mux) the other as ever. The
 * stage has the terminal, behind the words after "--", and all the time it takes: no missing
 * heartbeat and no silence ends it. What it gives goes to a dump of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/conf.h"
#include "common/log.h"
#include "common/program.h"
#include "stages/cli/arguments.h"
#include "stages/cli/run.h"
#include "stages/cli/verbs.h"
#include "stages/job/options.h"

/* The words of a replay: DIR --from STAGE, the rest. Taken out of the command line: the role, and
 * the dump that --from names. */
typedef struct {
    char **argv; /* the caller's to free */
    int argc;
    const char *role;
    char *const *wrapper;
} words;

/* A stage may be a filter, which the configuration names. */
static sl_code use_filters(int argc, char **argv, sl_err *err)
{
    static sl_conf conf;
    const char *file = NULL;
    sl_code rc;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strncmp(argv[i], "--conf=", 7)) file = argv[i] + 7;
        else if (!strcmp(argv[i], "--conf") && i + 1 < argc) file = argv[i + 1];
    }
    sl_conf_defaults(&conf);
    if (!file) return SL_OK;
    if (!(rc = sl_conf_read_file(&conf, file, err))) sl_conf_use(&conf);
    return rc;
}

static sl_code take_words(words *w, int argc, char **argv, sl_err *err)
{
    static char *none[] = {NULL};
    const char *dump = NULL;
    int end = 1, n = 3;
    sl_code rc;
    while (end < argc && strcmp(argv[end], "--") != 0) end++;
    w->wrapper = end < argc ? argv + end + 1 : none;
    w->role = argc ? argv[0] : "";
    if (argc - end - 1 > SL_WRAPPER_WORDS)
        return sl_fail(err, SL_ARG,
                       "%d words behind --, want at most %d; or a script that has them",
                       argc - end - 1, SL_WRAPPER_WORDS);
    if ((rc = use_filters(argc, argv, err))) return rc;
    if (sl_role_by_name(w->role) < 0)
        return sl_fail(err, SL_ARG,
                       "\"%.40s\" is no stage, want sluice stage text|image|denoise|decode|mux, or "
                       "a filter of --conf, --from DIR",
                       w->role);
    if (!(w->argv = calloc((size_t)argc + 4, sizeof *w->argv)))
        return sl_fail(err, SL_NOMEM, "no memory");
    for (int i = 1; i < end; i++) {
        if (!strncmp(argv[i], "--from=", 7)) dump = argv[i] + 7;
        else if (!strcmp(argv[i], "--from") && i + 1 < end) dump = argv[++i];
        else w->argv[n++] = argv[i];
    }
    if (!dump)
        return sl_fail(err, SL_ARG,
                       "stage wants the folder that --dump wrote: sluice stage %s --from DIR",
                       w->role);
    w->argv[0] = (char *)dump;
    w->argv[1] = (char *)"--from";
    /* a crew begins with its first role */
    w->argv[2] = (char *)sl_role_name(sl_crew_of((sl_role)sl_role_by_name(w->role)));
    w->argc = n;
    return SL_OK;
}

/* Where what the stage makes goes, unless the user says it. */
static void use_defaults(sl_batch *b, const char *role)
{
    for (int i = 0; i < b->job_count; i++) {
        sl_request *r = &b->jobs[i];
        if (!*r->dump_dir) snprintf(r->dump_dir, sizeof r->dump_dir, "stage-%s", role);
        if (!sl_request_given(r, "output"))
            snprintf(r->spec.output, sizeof r->spec.output, "stage-%s.mp4", role);
    }
    snprintf(b->stage, sizeof b->stage, "%s", role);
}

int sl_cli_stage(int argc, char **argv)
{
    const int64_t t0_ns = sl_now_ns();
    sl_batch b = {0};
    words w = {0};
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    if (take_words(&w, argc, argv, &err) || sl_cli_parse(&b, true, w.argc, w.argv, &err))
        sl_complain("%s", err.msg);
    else {
        use_defaults(&b, w.role);
        status = sl_cli_run_batch(&b, &(sl_attached){w.role, w.wrapper}, t0_ns);
        if (!status && !b.quiet)
            sl_log(SL_LOG_INFO, "what %s gave is in %s", w.role, b.jobs[0].dump_dir);
    }
    free(w.argv);
    sl_batch_free(&b);
    return status;
}
