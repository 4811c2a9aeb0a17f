/* hints.c - what a job was asked for and will not do. */
#include "stages/job/hints.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "common/path.h"
#include "common/prompt.h"
#include "common/video_format.h"
#include "graphs/umt5.h"
#include "stages/job/components.h"
#include "stages/job/distilled.h"
#include "stages/job/options.h"

#define INDEX_MOST (64 << 20) /* bytes of an index that is looked at */

typedef struct {
    const sl_request *r;
    const sl_model *model;
    sl_tokenizer **tokenizer;
    void (*say)(void *to, const char *line);
    void *to;
} hints;

__attribute__((format(printf, 2, 3))) static void say(const hints *h, const char *fmt, ...)
{
    char line[SL_PATH];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    h->say(h->to, line);
}

/* ---- prompts ---- */

/* Code point at *p, which moves on; 0 at the end and for what is no UTF-8. */
static uint32_t next_point(const unsigned char **p)
{
    const unsigned char *s = *p;
    const int more = *s < 0x80 ? 0 : *s < 0xe0 ? 1 : *s < 0xf0 ? 2 : 3;
    uint32_t v = more ? *s & (0x3f >> more) : *s;
    for (int i = 1; i <= more; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        v = v << 6 | (s[i] & 0x3f);
    }
    if (v) *p = s + more + 1;
    return v;
}

/* The byte that Windows-1252 (where it has none, Latin-1) shows as this character; -1: none. */
static int windows_1252(uint32_t c)
{
    static const uint16_t HIGH[32] = {
        0x20ac, 0x81,   0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
        0x2039, 0x0152, 0x8d,   0x017d, 0x8f,   0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
        0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0x9d,   0x017e, 0x0178};
    if (c < 0x100) return (int)c;
    for (int i = 0; i < 32; i++)
        if (HIGH[i] == c) return 0x80 + i;
    return -1;
}

bool sl_is_mojibake(const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    for (uint32_t c; (c = next_point(&p));) {
        const int lead = windows_1252(c), more = lead < 0xc2   ? 0
                                                 : lead < 0xe0 ? 1
                                                 : lead < 0xf0 ? 2
                                                 : lead < 0xf5 ? 3
                                                               : 0;
        const unsigned char *q = p;
        int seen = 0;
        for (; seen < more; seen++) {
            const int b = windows_1252(next_point(&q));
            if (b < 0x80 || b > 0xbf) break;
        }
        if (more && seen == more) return true;
    }
    return false;
}

/* 0 where it cannot be told. */
static int count_tokens(const hints *h, const char *text)
{
    char *clean = NULL;
    int n = 0;
    if (sl_prompt_clean(&clean, text, strlen(text), NULL)) return 0;
    const size_t room = strlen(clean) + 2;
    int32_t *ids = malloc(room * sizeof *ids);
    if (ids && !*h->tokenizer) sl_tokenizer_open(h->tokenizer, h->model->layout.tokenizer, NULL);
    if (ids && *h->tokenizer &&
        sl_tokenizer_encode(*h->tokenizer, clean, strlen(clean), ids, (int)room, &n, NULL))
        n = 0;
    free(ids);
    free(clean);
    return n;
}

static void about_text(const hints *h, const char *option, const char *text)
{
    /* a token is a byte at least, but for characters that normalization spells out */
    const bool may = h->tokenizer && strlen(text) >= SL_UMT5_MAX_TOKENS / 2;
    const int n = may ? count_tokens(h, text) : 0;
    if (n > SL_UMT5_MAX_TOKENS)
        say(h, "--%s has %d tokens, the model reads the first %d: its end is not used", option, n,
            SL_UMT5_MAX_TOKENS);
    if (sl_is_mojibake(text))
        say(h,
            "--%s looks like UTF-8 that was read as Windows-1252 (as \"caf\u00c3\u00a9\"): it is "
            "used as it stands, where the reference would mend it",
            option);
}

/* ---- files ---- */

/* The index says that this file is one of the shards. */
static bool index_names(const char *index, const char *file)
{
    json_t *root = NULL, *v;
    const char *key;
    bool names = false;
    if (sl_json_read(&root, index, INDEX_MOST, NULL)) return true; /* it is told elsewhere */
    json_object_foreach(json_object_get(root, "weight_map"), key, v) names =
        names || (json_string_value(v) && !strcmp(json_string_value(v), file));
    json_decref(root);
    return names;
}

/* Shards go before a single file, as in diffusers: one that was left there is not read. */
static void about_files(const hints *h)
{
    char file[80], single[SL_PATH], index[SL_PATH];
    for (int i = 0; i < SL_PART_COUNT; i++) {
        const sl_part *p = &h->model->layout.parts[i];
        if (!*p->stem) continue;
        snprintf(file, sizeof file, "%s.safetensors", p->stem);
        if (sl_path_join(single, p->path, file, NULL) || access(single, F_OK) ||
            (size_t)snprintf(index, sizeof index, "%.*s.index.json", SL_PATH - 16, single) >=
                sizeof index ||
            access(index, F_OK) || index_names(index, file))
            continue;
        say(h, "%s/%s is not read: the shards that its index names are", sl_path_last(p->path),
            file);
    }
}

/* ---- options ---- */

static void about_cache(const hints *h)
{
    const sl_job *s = &h->r->spec;
    static const char *const OPTIONS[] = {"fbcache-warmup", "fbcache-max-hits", "fbcache-final"};
    const char *option = NULL;
    for (int i = 0; i < 3 && !option; i++)
        if (sl_request_given(h->r, OPTIONS[i])) option = OPTIONS[i];
    if (option && s->fbcache <= 0)
        say(h, "--%s is given, but there is no cache without --fbcache THRESHOLD", option);
    if (s->fbcache > 0 && s->fbcache_warmup + s->fbcache_final >= s->steps)
        say(h,
            "--fbcache skips nothing: --fbcache-warmup %d and --fbcache-final %d are all of %d "
            "steps",
            s->fbcache_warmup, s->fbcache_final, s->steps);
}

/* A name that says no format is a program's of the user's own, which may write H.264, too. */
static bool is_h264(const char *output)
{
    const sl_video_format *f;
    return sl_video_format_of(&f, output, NULL) || !strcmp(f->encoders, SL_VIDEO_H264);
}

void sl_request_hints(const sl_request *r, const sl_model *model, sl_tokenizer **tokenizer,
                      void (*say_it)(void *to, const char *line), void *to)
{
    const hints h = {r, model, tokenizer, say_it, to};
    const sl_job *s = &r->spec;
    char distilled[SL_PATH];
    const bool guided = sl_job_guided(s);
    about_text(&h, "prompt", s->prompt);
    if (guided) about_text(&h, "negative", s->negative);
    else if (sl_request_given(r, "negative") && *s->negative)
        say(&h, "--negative is not used without guidance: --guidance is %g, want more than 1",
            s->guidance);
    if (sl_request_given(r, "guidance-2") && model->family.experts < 2)
        say(&h, "--guidance-2 is not used: %s has one transformer", sl_path_last(model->dir));
    about_cache(&h);
    if (r->has_noise && sl_request_given(r, "seed"))
        say(&h, "--seed is not used: --noise gives the numbers");
    if (s->lora_lenient && !*s->lora && !*s->lora_2)
        say(&h, "--lora-lenient is given, but no --lora");
    if (s->crf == 0 && is_h264(s->output))
        say(&h, "--crf 0 is lossless, H.264 profile High 4:4:4 Predictive, which browsers, "
                "QuickTime and most hardware do not play; --crf 1 is the best that they do");
    about_files(&h);
    if (sl_distilled_hint(s, &model->layout, distilled, sizeof distilled)) say(&h, "%s", distilled);
}
