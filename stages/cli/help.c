/* help.c - `sluice help`: the verbs, or one of them with its options. */
#include "stages/cli/help.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/job/defaults.h"

/* "sluice VERB WORDS", a line each way to say it. */
static void print_ways(const sl_verb *v, FILE *to)
{
    const char *line = v->words;
    do {
        const int n = (int)strcspn(line, "\n");
        fprintf(to, "  sluice %s%s%.*s\n", v->name, n ? " " : "", n, line);
        line += n + (line[n] == '\n');
    } while (*line);
}

static void print_option(const char *name, char letter, const char *arg, const char *what, FILE *to)
{
    char left[64], letters[8] = "";
    if (letter) snprintf(letters, sizeof letters, "-%c, ", letter);
    snprintf(left, sizeof left, "%s--%s %s", letters, name, arg ? arg : "");
    fprintf(to, "  %-24s %s\n", left, what);
}

static void print_options(const sl_verb *v, FILE *to)
{
    const sl_option *o;
    char letter;
    for (int i = 0; (o = sl_client_option_at(v, i, &letter)); i++)
        print_option(o->name, letter, o->arg, o->what, to);
    for (const sl_own_option *own = v->own; own && own->name; own++)
        print_option(own->name, 0, own->arg, own->what, to);
}

void sl_help_verb(const sl_verb *v, FILE *to)
{
    print_ways(v, to);
    fprintf(to, "      %s\n", v->what);
    if (sl_client_option_at(v, 0, NULL) || v->own) fprintf(to, "\n");
    print_options(v, to);
    if (v->options == SL_OPTIONS_RUN || v->options == SL_OPTIONS_JOB)
        fprintf(to, "\n" SL_HELP_DEFAULTS "\n");
}

void sl_help_all(FILE *to)
{
    const sl_verb *v;
    fprintf(to, "sluice - picture and prompt in, video out\n\n");
    for (int i = 0; (v = sl_verb_at(i)); i++) {
        print_ways(v, to);
        fprintf(to, "      %s\n", v->what);
    }
    fprintf(to, "\nsluice --version: commit, libraries and devices, for a report of a fault.\n");
    fprintf(to, "\nOptions of run (sluice help VERB has those of another):\n\n");
    print_options(sl_verb_find("run"), to);
    fprintf(to,
            "\n" SL_HELP_DEFAULTS "\n\n" SL_HELP_SERVER "\n\nExit status: " SL_HELP_STATUS "\n");
}

int sl_cli_help(int argc, char **argv)
{
    const sl_verb *v = NULL;
    sl_err err = {0};
    if (argc > 1) {
        sl_complain("help wants one command, found %d", argc);
        return SL_EXIT_REFUSED;
    }
    if (argc && sl_verb_want(&v, argv[0], &err)) {
        sl_complain("%s", err.msg);
        return SL_EXIT_REFUSED;
    }
    if (v) sl_help_verb(v, stdout);
    else sl_help_all(stdout);
    return SL_EXIT_OK;
}
