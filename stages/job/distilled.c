/* distilled.c - hints for models that want few steps, known by name. */
#include "stages/job/distilled.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* What makers and those who pack their files call them. */
static const char *const WORDS[] = {
    "lightx2v", "distill", "4step",   "4steps",       "8step",     "8steps",     "causvid",
    "accvid",   "fastwan", "fusionx", "self-forcing", "lightning", "phased-dmd", "hyper-sd",
};

static char folded(char c)
{
    return c == '_' || c == ' ' ? '-' : (char)tolower((unsigned char)c);
}

/* Behind the word in the text; NULL: it does not begin here. A dash in either may be left out. */
static const char *match(const char *text, const char *word)
{
    while (*word) {
        if (folded(*text) == *word) text++, word++;
        else if (*word == '-') word++;
        else if (folded(*text) == '-') text++;
        else return NULL;
    }
    return text;
}

const char *sl_distilled_word(const char *text)
{
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        for (const char *p = text; p && *p; p++) {
            const bool begins =
                p == text || !isalnum((unsigned char)p[-1]) || !isdigit((unsigned char)*WORDS[i]);
            const char *end =
                *p == *WORDS[i] || folded(*p) == *WORDS[i] ? match(p, WORDS[i]) : NULL;
            if (end && begins &&
                (!isdigit((unsigned char)*WORDS[i]) || !isalnum((unsigned char)*end)))
                return WORDS[i];
        }
    return NULL;
}

/* What the checkpoint is called: its folder, or the Hub's folder of which it is a snapshot. */
static void name_of_model(char out[256], const char *dir)
{
    const char *end = dir + strlen(dir), *begin;
    for (int up = 0;; up++) {
        while (end > dir && end[-1] == '/') end--;
        for (begin = end; begin > dir && begin[-1] != '/'; begin--) {
        }
        snprintf(out, 256, "%.*s", (int)(end - begin), begin);
        if (up || begin - dir < 11 || strncmp(begin - 11, "/snapshots/", 11)) return;
        end = begin - 11; /* models--ORG--NAME/snapshots/COMMIT */
    }
}

bool sl_distilled_hint(const sl_job *job, char *out, size_t size)
{
    char name[256];
    const bool guided = job->guidance > 1;
    *out = 0;
    if (job->steps <= SL_DISTILLED_MOST && !guided) return false;
    name_of_model(name, job->model);
    const char *word = sl_distilled_word(name);
    if (!word) return false;
    snprintf(
        out, size,
        "%s is distilled, by its name (%s): it is made for 4 to %d steps without guidance, and "
        "the job has %d with guidance %g; --sampler lightx2v asks for its own",
        name, word, SL_DISTILLED_MOST, job->steps, job->guidance);
    return true;
}
