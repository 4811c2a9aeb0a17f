/* s3_xml.c - elements of a store's answers. */
#include "stages/serve/s3_xml.h"

#include <stdlib.h>
#include <string.h>

static sl_s3_text from(sl_s3_text t, const char *at)
{
    return (sl_s3_text){at, (size_t)(t.at + t.size - at)};
}

static bool begins(sl_s3_text t, const char *word, size_t n)
{
    return t.size >= n && !memcmp(t.at, word, n);
}

/* The next "<TAG>" or "<TAG ...>", or "</TAG>": where it begins, and what is behind it. */
static bool find(sl_s3_text in, const char *tag, bool closing, const char **begin,
                 const char **behind)
{
    const size_t n = strlen(tag);
    const char *at;
    while (in.size && (at = memchr(in.at, '<', in.size))) {
        in = from(in, at + 1);
        sl_s3_text name = in;
        if (closing && begins(name, "/", 1)) name = from(name, name.at + 1);
        else if (closing) continue;
        if (!begins(name, tag, n)) continue;
        name = from(name, name.at + n);
        if (!name.size || !strchr("> \t\r\n", *name.at) || !*name.at) continue;
        const char *end = memchr(name.at, '>', name.size);
        if (!end) return false;
        *begin = at;
        *behind = end + 1;
        return true;
    }
    return false;
}

bool sl_s3_xml_next(sl_s3_text *in, const char *tag, sl_s3_text *out)
{
    const char *open, *inside, *close, *behind;
    if (!find(*in, tag, false, &open, &inside) ||
        !find(from(*in, inside), tag, true, &close, &behind))
        return false;
    *out = (sl_s3_text){inside, (size_t)(close - inside)};
    *in = from(*in, behind);
    return true;
}

/* UTF-8 of a code point; bytes, 0: it is none. */
static size_t put_point(char out[4], unsigned long c)
{
    static const unsigned char LEAD[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    const size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    if (!c || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    for (size_t i = n; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(LEAD[n] | c);
    return n;
}

/* The entity at the beginning of `in`, "&amp;" or "&#38;"; bytes of *out, 0: it is none. */
static size_t entity(sl_s3_text in, char out[4], size_t *used)
{
    static const struct {
        const char *name;
        char is;
    } ALL[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    char number[12] = "", *end;
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++) {
        if (!begins(in, ALL[i].name, strlen(ALL[i].name))) continue;
        *out = ALL[i].is;
        *used = strlen(ALL[i].name);
        return 1;
    }
    const bool hex = begins(in, "&#x", 3);
    const size_t skip = hex ? 3 : 2;
    if (!begins(in, "&#", 2)) return 0;
    for (size_t i = 0; i < sizeof number - 1 && skip + i < in.size; i++)
        if ((number[i] = in.at[skip + i]) == ';') break;
    const unsigned long c = strtoul(number, &end, hex ? 16 : 10);
    if (end == number || *end != ';' || *number == '-' || *number == '+') return 0;
    *used = skip + (size_t)(end - number) + 1;
    return put_point(out, c);
}

bool sl_s3_xml_get(sl_s3_text in, const char *tag, char *out, size_t room)
{
    sl_s3_text text;
    size_t n = 0;
    *out = 0;
    if (!sl_s3_xml_next(&in, tag, &text)) return false;
    while (text.size) {
        char is[4] = {*text.at};
        size_t used = 1;
        size_t bytes = *text.at == '&' ? entity(text, is, &used) : 1;
        if (!bytes) bytes = used = 1, *is = *text.at;
        if (n + bytes >= room) {
            *out = 0;
            return false;
        }
        memcpy(out + n, is, bytes);
        n += bytes;
        text = from(text, text.at + used);
    }
    out[n] = 0;
    return true;
}
