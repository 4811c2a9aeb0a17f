/* program.c - a stage's program, by the name that a configuration has for it. */
#include "common/program.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first folder of PATH that has it. false: none. */
static bool find_in_path(char out[SL_PATH], const char *name)
{
    const char *dirs = getenv("PATH");
    while (dirs && *dirs) {
        const int n = (int)strcspn(dirs, ":");
        if (n && snprintf(out, SL_PATH, "%.*s/%s", n, dirs, name) < SL_PATH && !access(out, X_OK))
            return true;
        dirs += n + (dirs[n] == ':');
    }
    return false;
}

static sl_code split(sl_program *p, sl_err *err)
{
    char *rest = p->text, *word;
    while ((word = strsep(&rest, " "))) {
        if (!*word) continue;
        if (p->count == SL_PROGRAM_WORDS)
            return sl_fail(err, SL_ARG, "program has more than %d words, want args for the others",
                           SL_PROGRAM_WORDS);
        p->word[p->count++] = word;
    }
    return SL_OK;
}

sl_code sl_program_find(sl_program *out, const char *program, const char *bin_dir, sl_err *err)
{
    sl_code rc;
    *out = (sl_program){0};
    if ((size_t)snprintf(out->text, sizeof out->text, "%s", program) >= sizeof out->text)
        return sl_fail(err, SL_ARG, "program has %zu bytes, want at most %d", strlen(program),
                       SL_PATH - 1);
    /* a path may have spaces */
    if (strchr(program, '/') && !access(program, F_OK)) out->word[out->count++] = out->text;
    else if ((rc = split(out, err))) return rc;
    if (!out->count) return sl_fail(err, SL_ARG, "program has no word");
    if (strchr(out->word[0], '/')) {
        snprintf(out->path, sizeof out->path, "%s", out->word[0]);
        return SL_OK;
    }
    if ((rc = sl_path_join(out->path, bin_dir, out->word[0], err))) return rc;
    /* a command, whose program is another's */
    char elsewhere[SL_PATH];
    if (!access(out->path, F_OK)) return SL_OK;
    if (find_in_path(elsewhere, out->word[0])) memcpy(out->path, elsewhere, sizeof elsewhere);
    else if (!access(out->word[0], F_OK)) /* "mine.py", of this folder */
        snprintf(out->path, sizeof out->path, "./%s", out->word[0]);
    return SL_OK;
}
