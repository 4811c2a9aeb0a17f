/* taps.c - which tensors of the denoiser's forwards a dump keeps. */
#include "common/taps.h"

#include <stdio.h>
#include <string.h>

static void set(uint64_t *bits, int from, int to)
{
    for (int i = from; i <= to; i++) bits[i / 64] |= (uint64_t)1 << i % 64;
}

static bool is_set(const uint64_t *bits, int i)
{
    return i >= 0 && i < SL_TAPS_MOST && bits[i / 64] >> i % 64 & 1;
}

/* "0,3-5" or "all", numbers below `count`. */
static sl_code parse_list(uint64_t *bits, const char *what, const char *list, int count,
                          sl_err *err)
{
    memset(bits, 0, sizeof((sl_taps *)0)->steps);
    if (!strcmp(list, "all")) {
        set(bits, 0, count - 1);
        return SL_OK;
    }
    for (const char *at = list;; at++) {
        int from, to, end = 0;
        if (sscanf(at, "%4d%n", &from, &end) != 1 || *at == '+' || from < 0) break;
        at += end;
        to = from;
        if (*at == '-' && (sscanf(at + 1, "%4d%n", &to, &end) != 1 || at[1] == '+')) break;
        if (*at == '-') at += 1 + end;
        if (to < from || to >= count)
            return sl_fail(err, SL_ARG, "%s=%.60s has %d, want numbers from 0 to %d", what, list,
                           to < from ? from : to, count - 1);
        set(bits, from, to);
        if (!*at) return SL_OK;
        if (*at != ',') break;
    }
    return sl_fail(err, SL_ARG, "%s=%.60s, want numbers and ranges as 0,3-5, or all", what, list);
}

static sl_code parse_branches(sl_taps *t, const char *list, sl_err *err)
{
    static const char *const NAMES[] = {"cond", "uncond"};
    t->branches[0] = t->branches[1] = false;
    for (const char *at = list;;) {
        const size_t n = strcspn(at, ",");
        int b = 0;
        while (b < 2 && (strlen(NAMES[b]) != n || strncmp(at, NAMES[b], n))) b++;
        if (b == 2)
            return sl_fail(err, SL_ARG, "branches=%.60s, want cond, uncond or cond,uncond", list);
        t->branches[b] = true;
        if (!at[n]) return SL_OK;
        at += n + 1;
    }
}

sl_code sl_taps_parse(sl_taps *t, const char *text, int steps, int blocks, sl_err *err)
{
    char word[256];
    sl_code rc = SL_OK;
    *t = (sl_taps){.branches = {true, false}};
    set(t->steps, 0, 0);
    set(t->blocks, 0, blocks - 1);
    for (const char *at = text + strspn(text, " "); *at && !rc; at += strspn(at, " ")) {
        const size_t n = strcspn(at, " ");
        if (n >= sizeof word) return sl_fail(err, SL_ARG, "\"%.60s...\" is too long a word", at);
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        at += n;
        if (!strncmp(word, "steps=", 6)) rc = parse_list(t->steps, "steps", word + 6, steps, err);
        else if (!strncmp(word, "blocks=", 7))
            rc = parse_list(t->blocks, "blocks", word + 7, blocks, err);
        else if (!strncmp(word, "branches=", 9)) rc = parse_branches(t, word + 9, err);
        else if (!strcmp(word, "attention")) t->attention = true;
        else
            rc = sl_fail(err, SL_ARG,
                         "\"%.60s\" is none of steps=LIST, branches=LIST, blocks=LIST, attention",
                         word);
    }
    return rc;
}

bool sl_taps_step(const sl_taps *t, int step)
{
    return is_set(t->steps, step);
}

bool sl_taps_name(const sl_taps *t, const char *name)
{
    int block;
    return sscanf(name, "block.%4d", &block) != 1 || is_set(t->blocks, block);
}
