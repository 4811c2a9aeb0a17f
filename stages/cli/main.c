/* sluice - the one command a person types. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "kernels/cpu/blas.h"
#include "stages/cli/help.h"
#include "stages/cli/verbs.h"

static bool asks_for_help(const char *word)
{
    return !strcmp(word, "--help") || !strcmp(word, "-h");
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    const sl_verb *verb = NULL;
    sl_err err = {0};
    sl_log_open("sluice", SL_LOG_INFO);
    /* the benchmarks are all that computes here, and not in a stage */
    if (!strcmp(name, "bench")) sl_blas_settle_here(argv);
    sl_blas_settle();
    if (asks_for_help(name)) {
        sl_help_all(stdout);
        return SL_EXIT_OK;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V") || !strcmp(name, "version"))
        return sl_cli_version(argc - 2, argv + 2);
    if (sl_verb_want(&verb, name, &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    /* the benchmarks have a help of their own */
    if (argc > 2 && asks_for_help(argv[2]) && strcmp(name, "bench")) {
        sl_help_verb(verb, stdout);
        return SL_EXIT_OK;
    }
    return verb->run(argc - 2, argv + 2);
}
