/* distilled.c - hints for models that want few steps, known by name. */
#include "stages/job/distilled.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "common/lora.h"

/* What makers and those who pack their files call them. */
static const char *const WORDS[] = {
    "lightx2v",   "distill",  "4step",   "4steps",  "8step",        "8steps",
    "causvid",    "accvid",   "fastwan", "fusionx", "self-forcing", "lightning",
    "phased-dmd", "hyper-sd", "turbo",   "rcm",
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

/* One that letters and digits around it would make another: 24steps, arcmotion. */
static bool stands_alone(const char *word)
{
    return isdigit((unsigned char)*word) || strlen(word) < 4;
}

const char *sl_distilled_word(const char *text)
{
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        for (const char *p = text; p && *p; p++) {
            const bool alone = stands_alone(WORDS[i]);
            const char *end = folded(*p) == *WORDS[i] ? match(p, WORDS[i]) : NULL;
            if (!end || (alone && isalnum((unsigned char)*end))) continue;
            if (!alone || p == text || !isalnum((unsigned char)p[-1])) return WORDS[i];
        }
    return NULL;
}

/* What a checkpoint is called: its folder, or the Hub's folder of which it is a snapshot. */
static void name_of_folder(char out[256], const char *dir)
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

const char *sl_distilled_model(const sl_layout *l, char name[256])
{
    static const sl_part_id EXPERTS[] = {SL_PART_DIT, SL_PART_DIT_2};
    const char *word = NULL;
    for (size_t i = 0; i < sizeof EXPERTS / sizeof *EXPERTS && !word; i++) {
        const sl_part *p = &l->parts[EXPERTS[i]];
        snprintf(name, 256, "%s",
                 *p->stem ? "" : sl_path_last(p->path)); /* a folder of it has none */
        word = sl_distilled_word(name);
    }
    if (word) return word;
    name_of_folder(name, l->dir);
    return sl_distilled_word(name);
}

const char *sl_distilled_lora(const char *path, const char **by)
{
    static const char *const KEYS[] = {"ss_output_name", "modelspec.title", "modelspec.description",
                                       "name",           "description",     "ss_training_comment"};
    sl_lora *l = NULL;
    const char *word = sl_distilled_word(sl_path_last(path));
    *by = "name";
    if (word || sl_lora_open(&l, path, NULL)) return word;
    *by = "header";
    for (size_t k = 0; k < sizeof KEYS / sizeof *KEYS && !word; k++)
        word = sl_distilled_word(sl_lora_metadata(l, KEYS[k]));
    sl_lora_close(&l);
    return word;
}

/* The first of a job's LoRA that says it. */
static const char *word_of_loras(const char *field, char name[256], const char **by)
{
    sl_lora_use uses[SL_LORA_MOST];
    const int n = sl_lora_uses(uses, field, NULL);
    const char *word = NULL;
    for (int i = 0; i < n && !word; i++) {
        snprintf(name, 256, "%s", sl_path_last(uses[i].file));
        word = sl_distilled_lora(uses[i].file, by);
    }
    return word;
}

bool sl_distilled_hint(const sl_job *job, const sl_layout *layout, char *out, size_t size)
{
    char name[256];
    const bool guided = job->guidance > 1;
    *out = 0;
    if (job->steps <= SL_DISTILLED_MOST && !guided) return false;
    const char *by = "name", *word = sl_distilled_model(layout, name);
    for (int e = 0; e < 2 && !word; e++)
        word = word_of_loras(e ? job->lora_2 : job->lora, name, &by);
    if (!word) return false;
    snprintf(out, size,
             "%s is distilled, by its %s (%s): it is made for 4 to %d steps without guidance, and "
             "the job has %d with guidance %g; --sampler lightx2v asks for its own",
             name, by, word, SL_DISTILLED_MOST, job->steps, job->guidance);
    return true;
}
