/* prompt.c - clean a prompt as ftfy.fix_text and diffusers' prompt_clean do, on an array
 * of code points.
 *
 * Source: ftfy 6.3 fixes.py and __init__.py (fix_and_explain: the steps below, over again
 * until nothing changes, a line at a time); CPython html/__init__.py (unescape);
 * diffusers pipelines/wan (prompt_clean). Normal forms and capitals come from utf8proc. */
#include "common/prompt.h"

#include "common/html5.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

/* ftfy repeats its steps until the text stands still; a chain of "&amp;amp;amp..." can
 * make that as many rounds as it has characters. */
#define MAX_ROUNDS 1000

/* Code points. `oom` is set by the append that found no memory and stays; the caller
 * looks once, at the end. */
typedef struct {
    uint32_t *at;
    size_t n, room;
    bool oom;
} text;

static void put(text *t, uint32_t c)
{
    if (t->n == t->room) {
        size_t room = t->room ? t->room * 2 : 256;
        uint32_t *at = t->oom ? NULL : realloc(t->at, room * sizeof *at);
        if (!at) {
            t->oom = true;
            return;
        }
        t->at = at;
        t->room = room;
    }
    t->at[t->n++] = c;
}

static void put_all(text *t, const uint32_t *at, size_t n)
{
    for (size_t i = 0; i < n; i++) put(t, at[i]);
}

static bool is_same(const text *a, const text *b)
{
    return a->n == b->n && (!a->n || !memcmp(a->at, b->at, a->n * sizeof *a->at));
}

static void swap(text *a, text *b)
{
    text t = *a;
    *a = *b;
    *b = t;
}

static sl_code from_utf8(text *out, const char *bytes, size_t length, sl_err *err)
{
    for (size_t i = 0; i < length;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n =
            utf8proc_iterate((const uint8_t *)bytes + i, (utf8proc_ssize_t)(length - i), &c);
        if (n <= 0)
            return sl_fail(err, SL_FORMAT, "prompt: invalid UTF-8 at byte %zu (0x%02x)", i,
                           (uint8_t)bytes[i]);
        put(out, (uint32_t)c);
        i += (size_t)n;
    }
    return SL_OK;
}

/* NUL-terminated, malloc'd; NULL without memory. */
static char *to_utf8(const text *t)
{
    char *s = malloc(t->n * 4 + 1);
    size_t n = 0;
    if (!s) return NULL;
    for (size_t i = 0; i < t->n; i++)
        n += (size_t)utf8proc_encode_char((utf8proc_int32_t)t->at[i], (uint8_t *)s + n);
    s[n] = 0;
    return s;
}

/* str.isspace of Python. */
static bool is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool is_alnum(uint32_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static int digit(uint32_t c, int base)
{
    int d = c >= '0' && c <= '9'   ? (int)c - '0'
            : c >= 'a' && c <= 'f' ? (int)c - 'a' + 10
            : c >= 'A' && c <= 'F' ? (int)c - 'A' + 10
                                   : 99;
    return d < base ? d : -1;
}

/* Windows-1252 for 0x80..0x9f; 0: not assigned, the control character stays. */
static const uint16_t CP1252[32] = {
    0x20ac, 0,      0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
    0x2039, 0x0152, 0,      0x017d, 0,      0,      0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0,      0x017e, 0x0178,
};

static uint32_t from_cp1252(uint32_t c)
{
    return c >= 0x80 && c < 0xa0 && CP1252[c - 0x80] ? CP1252[c - 0x80] : c;
}

static int compare_name(const void *key, const void *entry)
{
    return strcmp(key, ((const html5_entity *)entry)->name);
}

/* The entity whose name is the n code points at s; NULL if there is none. */
static const html5_entity *entity(const uint32_t *s, size_t n)
{
    char name[40];
    if (!n || n >= sizeof name) return NULL;
    for (size_t i = 0; i < n; i++) {
        if (!is_alnum(s[i])) return NULL;
        name[i] = (char)s[i];
    }
    name[n] = 0;
    return bsearch(name, HTML5, sizeof HTML5 / sizeof *HTML5, sizeof *HTML5, compare_name);
}

static void put_entity(text *out, const html5_entity *e)
{
    put(out, e->a);
    if (e->b) put(out, e->b);
}

/* The longest bare name (as "amp") that s starts with, of 2 to n - 1 characters; its
 * length, 0 if none. */
static size_t bare_prefix(const uint32_t *s, size_t n, const html5_entity **e)
{
    for (size_t k = n; k-- > 2;)
        if ((*e = entity(s, k)) && (*e)->bare) return k;
    return 0;
}

/* What HTML 5 makes of &#num; */
static void put_numeric(text *out, uint64_t num)
{
    if (num == 0 || num > 0x10ffff || (num >= 0xd800 && num <= 0xdfff)) put(out, 0xfffd);
    else if (num >= 0x80 && num < 0xa0) put(out, from_cp1252((uint32_t)num));
    else if ((num < 0x20 && num != '\t' && num != '\n' && num != '\f' && num != '\r') ||
             num == 0x7f || (num >= 0xfdd0 && num <= 0xfdef) || (num & 0xfffe) == 0xfffe)
        return;
    else put(out, (uint32_t)num);
}

/* The digits at s: how many of the n (0: not a number); *num saturates above Unicode. */
static size_t number(const uint32_t *s, size_t n, int base, uint64_t *num)
{
    size_t k = 0;
    for (*num = 0; k < n && digit(s[k], base) >= 0; k++)
        if (*num <= 0x10ffff) *num = *num * (uint64_t)base + (uint64_t)digit(s[k], base);
    return k;
}

/* html.unescape: names also without their semicolon where HTML 5 allows it. */
static void html_unescape(text *out, const text *in)
{
    for (size_t i = 0; i < in->n;) {
        const uint32_t *s = in->at + i + 1;
        size_t left = in->n - i - 1, k = 0;
        const html5_entity *e;
        uint64_t num;
        if (in->at[i] != '&' || !left) {
            put(out, in->at[i++]);
            continue;
        }
        if (s[0] == '#') {
            size_t lead = left > 1 && (s[1] == 'x' || s[1] == 'X') ? 2 : 1;
            size_t digits = number(s + lead, left - lead, lead == 2 ? 16 : 10, &num);
            if (digits) {
                put_numeric(out, num);
                k = lead + digits;
                k += k < left && s[k] == ';';
            } else {
                put(out, '&');
            }
            i += 1 + k;
            continue;
        }
        while (k < left && k < 32 && !strchr("\t\n\f <&#;", s[k] < 128 ? (int)s[k] : 1)) k++;
        bool semicolon = k && k < left && s[k] == ';';
        size_t bare;
        if ((e = entity(s, k)) && (semicolon || e->bare)) {
            put_entity(out, e);
            i += 1 + k + semicolon;
        } else if ((bare = bare_prefix(s, k + semicolon, &e))) {
            put_entity(out, e);
            put_all(out, s + bare, k + semicolon - bare);
            i += 1 + k + semicolon;
        } else {
            put(out, '&');
            put_all(out, s, k + semicolon);
            i += 1 + k + semicolon;
        }
    }
}

/* ftfy also reads "&EACUTE;": a lower-case name in capitals, unless HTML itself reads it
 * in some way. False if this is not one. */
static bool put_capital(text *out, const uint32_t *s, size_t n)
{
    uint32_t low[32];
    const html5_entity *e;
    if (n > 24 || bare_prefix(s, n + 1, &e)) return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] >= 'a' && s[i] <= 'z') return false;
        low[i] = s[i] >= 'A' && s[i] <= 'Z' ? s[i] + 32 : s[i];
    }
    if (!(e = entity(low, n))) return false;
    for (size_t i = 0; i < sizeof HTML5_UPPER / sizeof *HTML5_UPPER; i++)
        if (!strcmp(HTML5_UPPER[i].name, e->name)) {
            for (const uint32_t *c = HTML5_UPPER[i].upper; *c; c++) put(out, *c);
            return true;
        }
    put(out, (uint32_t)utf8proc_toupper((utf8proc_int32_t)e->a));
    if (e->b) put(out, (uint32_t)utf8proc_toupper((utf8proc_int32_t)e->b));
    return true;
}

/* What ftfy makes of the entity &s;, s being n letters and digits, perhaps after a '#'.
 * False: leave it alone. */
static bool put_ftfy_entity(text *out, const uint32_t *s, size_t n)
{
    const html5_entity *e;
    uint64_t num;
    if (s[0] != '#') {
        if (!(e = entity(s, n))) return put_capital(out, s, n);
        put_entity(out, e);
        return true;
    }
    size_t lead = n > 1 && (s[1] == 'x' || s[1] == 'X') ? 2 : 1;
    size_t digits = number(s + lead, n - lead, lead == 2 ? 16 : 10, &num);
    /* a semicolon in the result looks to ftfy like a rest */
    if (!digits || lead + digits != n || num == ';') return false;
    put_numeric(out, num);
    return true;
}

/* ftfy's unescape_html: only &name; with its semicolon, 24 letters and digits at most. */
static void ftfy_unescape(text *out, const text *in)
{
    for (size_t i = 0; i < in->n;) {
        const uint32_t *s = in->at + i + 1;
        size_t left = in->n - i - 1, k = 0;
        if (in->at[i] == '&') {
            size_t hash = left && s[0] == '#', name = 0;
            while (hash + name < left && name < 25 && is_alnum(s[hash + name])) name++;
            if (name && name < 25 && hash + name < left && s[hash + name] == ';') k = hash + name;
        }
        if (k && put_ftfy_entity(out, s, k)) i += k + 2;
        else put(out, in->at[i++]);
    }
}

/* Latin ligatures and digraphs that ftfy takes apart. */
static const struct {
    uint16_t from;
    uint16_t to[4];
} LIGATURES[] = {
    {0x132, {'I', 'J'}},       {0x133, {'i', 'j'}},       {0x149, {0x2bc, 'n'}},
    {0x1f1, {'D', 'Z'}},       {0x1f2, {'D', 'z'}},       {0x1f3, {'d', 'z'}},
    {0x1c4, {'D', 0x17d}},     {0x1c5, {'D', 0x17e}},     {0x1c6, {'d', 0x17e}},
    {0x1c7, {'L', 'J'}},       {0x1c8, {'L', 'j'}},       {0x1c9, {'l', 'j'}},
    {0x1ca, {'N', 'J'}},       {0x1cb, {'N', 'j'}},       {0x1cc, {'n', 'j'}},
    {0xfb00, {'f', 'f'}},      {0xfb01, {'f', 'i'}},      {0xfb02, {'f', 'l'}},
    {0xfb03, {'f', 'f', 'i'}}, {0xfb04, {'f', 'f', 'l'}}, {0xfb05, {0x17f, 't'}},
    {0xfb06, {'s', 't'}},
};

/* Full-width and half-width forms to the usual ones: NFKC of that block, and the
 * ideographic space. */
static void put_width(text *out, uint32_t c)
{
    utf8proc_int32_t wide[18];
    int last = 0;
    if (c == 0x3000) {
        put(out, ' ');
        return;
    }
    utf8proc_ssize_t n = utf8proc_decompose_char(
        (utf8proc_int32_t)c, wide, 18, UTF8PROC_COMPOSE | UTF8PROC_COMPAT | UTF8PROC_STABLE, &last);
    if (n > 0) n = utf8proc_normalize_utf32(wide, n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < n; i++) put(out, (uint32_t)wide[i]);
}

/* The steps of ftfy that look at one character: fix_c1_controls, fix_latin_ligatures,
 * fix_character_width, uncurl_quotes. */
static void put_fixed(text *out, uint32_t c)
{
    c = from_cp1252(c);
    if (c >= 0xff01 && c < 0xfff0) {
        put_width(out, c);
        return;
    }
    for (size_t i = 0; c >= 0x132 && i < sizeof LIGATURES / sizeof *LIGATURES; i++)
        if (LIGATURES[i].from == c) {
            for (const uint16_t *to = LIGATURES[i].to; *to; to++)
                put(out, *to == 0x2bc ? '\'' : *to);
            return;
        }
    if (c == 0x3000) put_width(out, c);
    else if (c == 0x2bc || (c >= 0x2018 && c <= 0x201b)) put(out, '\'');
    else if (c >= 0x201c && c <= 0x201f) put(out, '"');
    else put(out, c);
}

/* fix_line_breaks. */
static void line_breaks(text *out, const text *in)
{
    for (size_t i = 0; i < in->n; i++) {
        uint32_t c = in->at[i];
        if (c == '\r' && i + 1 < in->n && in->at[i + 1] == '\n') i++;
        put(out, c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? '\n' : c);
    }
}

/* remove_terminal_escapes: ESC [ digits and semicolons, a letter. */
static void terminal_escapes(text *out, const text *in)
{
    for (size_t i = 0; i < in->n; i++) {
        size_t k = i + 2;
        if (in->at[i] == 27 && i + 1 < in->n && in->at[i + 1] == '[') {
            while (k < in->n && ((in->at[k] >= '0' && in->at[k] <= '9') || in->at[k] == ';')) k++;
            if (k < in->n && is_alnum(in->at[k])) {
                i = k;
                continue;
            }
        }
        put(out, in->at[i]);
    }
}

/* What remove_control_chars takes out: controls, deprecated format characters, the
 * byte-order mark. */
static bool is_control(uint32_t c)
{
    return c < 9 || c == 11 || (c >= 14 && c < 32) || c == 127 || (c >= 0x206a && c < 0x2070) ||
           c == 0xfeff || (c >= 0xfff9 && c < 0xfffd);
}

/* NFC in place. */
static void compose(text *t, text *scratch)
{
    bool simple = true;
    for (size_t i = 0; i < t->n && simple; i++) simple = t->at[i] < 0x300;
    if (simple) return;
    scratch->n = 0;
    char *utf8 = to_utf8(t);
    uint8_t *nfc = NULL;
    if (!utf8 || utf8proc_map((uint8_t *)utf8, (utf8proc_ssize_t)strlen(utf8), &nfc,
                              UTF8PROC_STABLE | UTF8PROC_COMPOSE) < 0)
        scratch->oom = true;
    else from_utf8(scratch, (char *)nfc, strlen((char *)nfc), NULL);
    free(utf8);
    free(nfc);
    swap(t, scratch);
}

/* One line through ftfy's steps until it stands still. a: the line, then the result; b,
 * c: scratch. */
static void fix_line(text *a, text *b, text *c, bool unescape)
{
    for (int round = 0; round < MAX_ROUNDS; round++) {
        b->n = c->n = 0;
        put_all(c, a->at, a->n); /* what the round began with */
        if (unescape) {
            ftfy_unescape(b, a);
            swap(a, b);
        }
        b->n = 0;
        for (size_t i = 0; i < a->n; i++) put_fixed(b, a->at[i]);
        a->n = 0;
        line_breaks(a, b);
        b->n = 0;
        terminal_escapes(b, a);
        a->n = 0;
        for (size_t i = 0; i < b->n; i++)
            if (!is_control(b->at[i])) put(a, b->at[i]);
        compose(a, b);
        if (a->oom || b->oom || c->oom || is_same(a, c)) return;
    }
}

/* ftfy.fix_text: line by line; from the first line with a '<' on, entities are left
 * alone. */
static void fix_text(text *out, const text *in)
{
    text a = {0}, b = {0}, c = {0};
    bool unescape = true;
    for (size_t i = 0, end; i < in->n && !out->oom; i = end) {
        a.n = 0;
        for (end = i; end < in->n && (end == i || in->at[end - 1] != '\n'); end++) {
            put(&a, in->at[end]);
            if (in->at[end] == '<') unescape = false;
        }
        fix_line(&a, &b, &c, unescape);
        put_all(out, a.at, a.n);
        if (a.oom || b.oom || c.oom) out->oom = true;
    }
    free(a.at);
    free(b.at);
    free(c.at);
}

/* Runs of white space to one space, none at the ends. */
static void fold_space(text *out, const text *in)
{
    bool gap = false;
    for (size_t i = 0; i < in->n; i++) {
        if (is_space(in->at[i])) {
            gap = out->n > 0;
            continue;
        }
        if (gap) put(out, ' ');
        gap = false;
        put(out, in->at[i]);
    }
}

sl_code sl_prompt_clean(char **out, const char *bytes, size_t length, sl_err *err)
{
    text a = {0}, b = {0};
    sl_code rc = SL_OK;
    *out = NULL;
    if (length > SL_PROMPT_MAX)
        return sl_fail(err, SL_ARG, "prompt: %zu bytes, at most %zu are taken", length,
                       (size_t)SL_PROMPT_MAX);
    if ((rc = from_utf8(&a, bytes, length, err))) goto done;
    fix_text(&b, &a);
    for (int i = 0; i < 2; i++) {
        a.n = 0;
        html_unescape(&a, &b);
        swap(&a, &b);
    }
    a.n = 0;
    fold_space(&a, &b);
    if (a.oom || b.oom || !(*out = to_utf8(&a)))
        rc = sl_fail(err, SL_NOMEM, "prompt: no memory for %zu bytes", length);
done:
    free(a.at);
    free(b.at);
    return rc;
}
