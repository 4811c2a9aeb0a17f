/* manual.c - `sluice man`: the manual page, in the macros of man(7), from the tables of verbs and
 * options. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/help.h"
#include "stages/job/defaults.h"

/* Text in which nothing is a request or an escape. Hyphens of options are minus signs, which can
 * be copied. A line break becomes a space. */
static void put(const char *text)
{
    for (const char *c = text; *c; c++) {
        const bool first = c == text || c[-1] == '\n';
        if (first && (*c == '.' || *c == '\'')) fputs("\\&", stdout);
        if (*c == '\\') fputs("\\e", stdout);
        else if (*c == '-') fputs("\\-", stdout);
        else if (*c == '~') fputs("\\(ti", stdout);
        else if (*c == '^') fputs("\\(ha", stdout);
        else if (*c == '`') fputs("\\(ga", stdout);
        else if (*c == '\'') fputs("\\(aq", stdout);
        else if (*c == '"') fputs("\\(dq", stdout);
        else putchar(*c == '\n' ? ' ' : *c);
    }
}

static void line(const char *text)
{
    put(text);
    putchar('\n');
}

static void section(const char *name)
{
    printf(".SH %s\n", name);
}

/* "sluice VERB WORDS", each way to say it: the verb in bold. */
static void ways(const sl_verb *v)
{
    const char *at = v->words;
    do {
        char words[256];
        const int n = (int)strcspn(at, "\n");
        snprintf(words, sizeof words, "%.*s", n, at);
        printf("\\fBsluice %s\\fR%s", v->name, n ? " " : "");
        line(words);
        at += n + (at[n] == '\n');
        if (*at) printf(".br\n");
    } while (*at);
}

static void option(const char *name, char letter, const char *arg, const char *what)
{
    printf(".TP\n");
    if (letter) printf("\\fB\\-%c\\fR, ", letter);
    printf("\\fB\\-\\-");
    put(name);
    printf("\\fR");
    if (arg) {
        printf(" \\fI");
        put(arg);
        printf("\\fR");
    }
    putchar('\n');
    line(what);
}

static void options(const sl_verb *v)
{
    const sl_option *o;
    char letter;
    for (int i = 0; (o = sl_client_option_at(v, i, &letter)); i++)
        option(o->name, letter, o->arg, o->what);
    for (const sl_own_option *own = v->own; own && own->name; own++)
        option(own->name, 0, own->arg, own->what);
}

/* Options that describe jobs have a section of their own. */
static void verbs(void)
{
    const sl_verb *v;
    section("COMMANDS");
    for (int i = 0; (v = sl_verb_at(i)); i++) {
        printf(".SS ");
        line(v->name);
        ways(v);
        printf(".PP\n");
        line(v->what);
        if (v->options == SL_OPTIONS_CLIENT || v->options == SL_OPTIONS_OWN) options(v);
        else if (v->options == SL_OPTIONS_JOB) {
            const sl_option *o;
            char letter;
            printf(".PP\nOptions of\n.B run\nthat describe a job, and:\n");
            for (int k = 0; (o = sl_client_option_at(v, k, &letter)) && !strchr(o->name, 0); k++)
                continue;
            for (int k = 0; (o = sl_client_option_at(v, k, &letter)); k++) {
                bool of_run = false;
                for (int j = 0; sl_option_at(j); j++) of_run = of_run || sl_option_at(j) == o;
                if (!of_run) option(o->name, letter, o->arg, o->what);
            }
        }
    }
}

static void statuses(void)
{
    static const struct {
        const char *status, *what;
    } ALL[] = {
        {"0", "Done."},
        {"1", "A job failed or was cancelled; what diff compares parts."},
        {"2", "Refused before any work: bad usage or input, or a server said no (4xx)."},
        {"3", "There is no server, or it failed (5xx), or it does not answer as one."},
        {"124", "The time that --timeout gives has passed; the jobs go on."},
    };
    section("EXIT STATUS");
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) {
        printf(".TP\n.B %s\n", ALL[i].status);
        line(ALL[i].what);
    }
}

static void environment(void)
{
    static const struct {
        const char *name, *what;
    } ALL[] = {
        {"SLUICE_SERVER", "where the server is, if --server does not say it"},
        {"SLUICE_TOKEN", "the token, if --token-file names none"},
        {"XDG_STATE_HOME", "holds the default state folder, sluice; else ~/.local/state does"},
        {"OPENBLAS_CORETYPE",
         "which kernels OpenBLAS takes on the CPU; without it those for the "
         "processor's instructions, known to OpenBLAS or not (sluice --version)"},
        {"TMPDIR", "holds the folders of runs; without one, or if it cannot be written or is a "
                   "session's (which is told), /var/tmp does, else /tmp"},
    };
    section("ENVIRONMENT");
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) {
        printf(".TP\n.B %s\n", ALL[i].name);
        line(ALL[i].what);
    }
}

static void examples(void)
{
    static const struct {
        const char *what, *command;
    } ALL[] = {
        {"A video here:",
         "sluice run --model models/demo --image picture.png --prompt \"pan left\" -o out.mp4"},
        {"A server, and a job for it that is waited for:",
         "sluice serve --model models/demo &\n"
         "sluice submit --image picture.png --prompt \"pan left\" --wait -o out.mp4"},
        {"Another machine's, with a token:",
         "sluice run --server https://video.example --token-file ~/.sluice-token \\\n"
         "    --image picture.png --prompt \"pan left\" -o out.mp4"},
        {"All that is left of a night, fetched into a folder:",
         "sluice wait -o videos/ $(sluice list --all --ids)"},
    };
    section("EXAMPLES");
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) {
        const char *at = ALL[i].command;
        printf("%s", i ? ".PP\n" : "");
        line(ALL[i].what);
        printf(".PP\n.nf\n.RS 4\n");
        while (*at) {
            char command[160];
            const int n = (int)strcspn(at, "\n");
            snprintf(command, sizeof command, "%.*s", n, at);
            line(command);
            at += n + (at[n] == '\n');
        }
        printf(".RE\n.fi\n");
    }
}

int sl_cli_man(int argc, char **argv)
{
    if (argc) {
        sl_complain("man takes no words, found \"%.60s\": sluice man | man -l -", argv[0]);
        return SL_EXIT_REFUSED;
    }
    printf(".TH SLUICE 1 \"\" \"Sluice\" \"User Commands\"\n");
    section("NAME");
    printf("sluice \\- picture and prompt in, video out\n");
    section("SYNOPSIS");
    printf(".B sluice\n.I command\n.RI [ options ]\n");
    section("DESCRIPTION");
    line("Makes videos from a picture and a prompt with checkpoints of the Wan family: as one run "
         "of this command, or as jobs of a server that keeps a queue.");
    printf(".PP\n");
    line("An option's value stands behind it or behind a \"=\". Words of an option may be joined "
         "by \"-\" or \"_\".");
    verbs();
    section("OPTIONS OF RUN");
    options(sl_verb_find("run"));
    printf(".PP\n");
    line(SL_HELP_DEFAULTS);
    section("SERVERS");
    line(SL_HELP_SERVER);
    printf(".PP\n");
    line("A server that has no room (429) or is not ready (503) is asked again when it says so, "
         "for the seconds that --retry-s gives. A connection that is lost is taken up again. "
         "Ctrl-C cancels the jobs that a run or a submission waits for, and a second one leaves "
         "them; it ends a wait, and the jobs go on.");
    environment();
    statuses();
    examples();
    return SL_EXIT_OK;
}
