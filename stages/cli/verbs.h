/* verbs.h - the verbs of `sluice`: one table, from which help, the manual page and the completion
 * are made too; and a function each, in a file that has the verb's name unless said otherwise.
 *
 * argv are the words after the verb; the result is the exit status (SL_EXIT_... of common/err.h,
 * and those of stages/cli/remote.h). What is wrong is one line on stderr. */
#ifndef SL_CLI_VERBS_H
#define SL_CLI_VERBS_H

#include "common/err.h"

typedef int sl_verb_main(int argc, char **argv);

/* Words that stand beside the options. */
typedef enum {
    SL_TAKES_NOTHING,
    SL_TAKES_FOLDER,
    SL_TAKES_FILES,
    SL_TAKES_ROLE, /* a stage's name */
    SL_TAKES_ID,
    SL_TAKES_IDS,
    SL_TAKES_SHELL, /* bash */
    SL_TAKES_VERB
} sl_verb_takes;

/* Whose options a verb has. */
typedef enum {
    SL_OPTIONS_OWN,    /* `own`, which it reads itself */
    SL_OPTIONS_RUN,    /* the table of stages/job/options.h, and what client.h has for it */
    SL_OPTIONS_JOB,    /* of that table what describes a job, and what client.h has for it */
    SL_OPTIONS_CLIENT, /* what client.h has for it */
} sl_verb_options;

typedef struct {
    const char *name, *arg, *what; /* arg NULL: a flag */
} sl_own_option;

/* getopt's rows of the options that name files in place of a checkpoint's own: 'f', and
 * sl_component_file of the row's name is where the path goes. */
#define SL_CLI_FILES                                                                               \
    {"transformer", 1, 0, 'f'}, {"transformer-2", 1, 0, 'f'}, {"text-encoder", 1, 0, 'f'},         \
        {"image-encoder", 1, 0, 'f'}, {"vae", 1, 0, 'f'},                                          \
    {                                                                                              \
        "tokenizer", 1, 0, 'f'                                                                     \
    }

typedef struct {
    const char *name;
    sl_verb_main *run;
    sl_verb_takes takes;
    sl_verb_options options;
    const sl_own_option *own; /* the last has no name; NULL: none */
    const char *words;        /* what stands behind the verb, a line each way to say it */
    const char *what;
} sl_verb;

/* The i-th verb; NULL past the last. */
const sl_verb *sl_verb_at(int i);
/* NULL: there is none of this name. */
const sl_verb *sl_verb_find(const char *name);
/* Errors: SL_ARG with the nearest name, or with all. */
sl_code sl_verb_want(const sl_verb **out, const char *name, sl_err *err);

sl_verb_main sl_cli_run, sl_cli_replay; /* run.c */
sl_verb_main sl_cli_stage;
sl_verb_main sl_cli_inspect, sl_cli_plan, sl_cli_pack, sl_cli_diff;
sl_verb_main sl_cli_submit;                             /* and a run on a server: submit.h */
sl_verb_main sl_cli_status, sl_cli_list;                /* status.c */
sl_verb_main sl_cli_wait, sl_cli_cancel, sl_cli_delete; /* wait.c, cancel.c */
sl_verb_main sl_cli_logs, sl_cli_trace, sl_cli_report;  /* artefacts.c */
sl_verb_main sl_cli_completion, sl_cli_man;             /* completion.c, manual.c */
sl_verb_main sl_cli_protocol;
sl_verb_main sl_cli_serve;   /* becomes sluice-serve */
sl_verb_main sl_cli_version; /* of --version */
sl_verb_main sl_cli_help;    /* help.c */

#endif
