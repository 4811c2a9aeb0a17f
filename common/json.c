/* json.c - JSON through jansson: parsing with limits, and typed reads with errors that
 * name the key. */
#include "common/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void sl_one_line(sl_err *err)
{
    if (err)
        for (unsigned char *p = (unsigned char *)err->msg; *p; p++)
            if (*p < 32 || *p == 127) *p = '?';
}

static void skip_mark(const char **text, size_t *length)
{
    if (*length >= 3 && !memcmp(*text, "\xef\xbb\xbf", 3)) *text += 3, *length -= 3;
}

/* Integers of 19 digits and more in quotes; NULL without memory. *n: its bytes. */
static char *quote_long_integers(const char *text, size_t length, size_t *n)
{
    char *out = malloc(length + length / 9 + 3);
    bool inside = false;
    *n = 0;
    for (size_t i = 0; out && i < length;) {
        size_t digits = 0;
        if (!inside)
            while (i + digits < length && text[i + digits] >= '0' && text[i + digits] <= '9')
                digits++;
        const char next = i + digits < length ? text[i + digits] : 0;
        const bool is_long = digits >= 19 && next != '.' && next != 'e' && next != 'E' &&
                             (!i || !strchr(".eE+-", text[i - 1]));
        if (digits) {
            if (is_long) out[(*n)++] = '"';
            memcpy(out + *n, text + i, digits);
            *n += digits;
            if (is_long) out[(*n)++] = '"';
            i += digits;
            continue;
        }
        if (inside && text[i] == '\\' && i + 1 < length) out[(*n)++] = text[i++];
        else if (text[i] == '"') inside = !inside;
        out[(*n)++] = text[i++];
    }
    return out;
}

json_t *sl_json_load(const char *text, size_t length, size_t flags, json_error_t *e)
{
    json_error_t own;
    if (!e) e = &own;
    skip_mark(&text, &length);
    json_t *root = json_loadb(text, length, flags, e);
    if (root || json_error_code(e) != json_error_numeric_overflow) return root;
    size_t n;
    char *quoted = quote_long_integers(text, length, &n);
    if (quoted) root = json_loadb(quoted, n, flags, e);
    free(quoted);
    return root;
}

json_t *sl_json_number(double x)
{
    return x == (double)(json_int_t)x ? json_integer((json_int_t)x) : json_real(x);
}

double sl_json_number_of(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* `e` tells what jansson says where it gives NULL. */
static sl_code want_object(json_t **out, const json_error_t *e, const char *name, sl_err *err)
{
    sl_code rc = SL_OK;
    if (!*out && json_error_code(e) == json_error_out_of_memory)
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for its JSON", name);
    else if (!*out)
        rc = sl_fail(err, SL_FORMAT, "%s:%d:%d: not JSON: %s", name, e->line, e->column, e->text);
    else if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        rc = sl_fail(err, SL_FORMAT, "%s: holds no JSON object, want {...}", name);
    }
    if (rc) sl_one_line(err);
    return rc;
}

sl_code sl_json_parse(json_t **out, const char *text, size_t length, const char *name, sl_err *err)
{
    json_error_t e;
    skip_mark(&text, &length);
    *out = json_loadb(text, length, JSON_REJECT_DUPLICATES, &e);
    return want_object(out, &e, name, err);
}

sl_code sl_json_parse_long(json_t **out, const char *text, size_t length, const char *name,
                           sl_err *err)
{
    json_error_t e;
    *out = sl_json_load(text, length, JSON_REJECT_DUPLICATES, &e);
    return want_object(out, &e, name, err);
}

sl_code sl_json_read(json_t **out, const char *path, size_t max_bytes, sl_err *err)
{
    struct stat st;
    char *text = NULL;
    size_t have = 0;
    sl_code rc;
    /* O_NONBLOCK: a FIFO must not hold us up */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *out = NULL;
    if (fd < 0) return sl_fail_errno(err, errno, "%s: cannot be opened", path);
    if (fstat(fd, &st)) rc = sl_fail_errno(err, errno, "%s: cannot be read", path);
    else if (!S_ISREG(st.st_mode)) rc = sl_fail(err, SL_SYS, "%s: is no regular file", path);
    else if ((uint64_t)st.st_size > max_bytes)
        rc = sl_fail(err, SL_FORMAT, "%s: has %lld bytes, want at most %zu", path,
                     (long long)st.st_size, max_bytes);
    else if (!(text = malloc((size_t)st.st_size + 1)))
        rc = sl_fail(err, SL_NOMEM, "%s: no memory for its text", path);
    else rc = SL_OK;
    while (!rc && have < (size_t)st.st_size) {
        ssize_t n = read(fd, text + have, (size_t)st.st_size - have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) rc = sl_fail_errno(err, errno, "%s: cannot be read", path);
        if (n <= 0) break;
        have += (size_t)n;
    }
    if (!rc) rc = sl_json_parse(out, text, have, path, err);
    free(text);
    close(fd);
    return rc;
}

sl_code sl_json_write(json_t *root, const char *path, size_t flags, const char *what, sl_err *err)
{
    struct stat st;
    errno = 0;
    if (!root) return sl_fail(err, SL_NOMEM, "%s %s: no memory", what, path);
    const bool bad = json_dump_file(root, path, flags) != 0;
    const int why = errno;
    json_decref(root);
    if (!bad) return SL_OK;
    if (!stat(path, &st) && S_ISREG(st.st_mode)) unlink(path); /* half a file is none */
    return sl_fail_errno(err, why ? why : EIO, "%s %s", what, path);
}

bool sl_json_has(const sl_json_reader *r, const char *key)
{
    const json_t *v = json_object_get(r->object, key);
    return v && !json_is_null(v);
}

void sl_json_fail(sl_json_reader *r, const char *key, const char *want_fmt, ...)
{
    char want[256], *text = NULL;
    const json_t *v = json_object_get(r->object, key);
    va_list ap;
    if (r->code) return;
    va_start(ap, want_fmt);
    vsnprintf(want, sizeof want, want_fmt, ap);
    va_end(ap);
    if (v) text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
    r->code = sl_fail(r->err, SL_FORMAT, "%s: %s is %.60s%s, want %s", r->file, key,
                      text ? text
                      : v  ? "?"
                           : "absent",
                      text && strlen(text) > 60 ? "..." : "", want);
    sl_one_line(r->err);
    free(text);
}

int sl_json_int(sl_json_reader *r, const char *key, int otherwise, int lo, int hi)
{
    const json_t *v = json_object_get(r->object, key);
    if (r->code || !v) return otherwise;
    if (json_is_integer(v) && json_integer_value(v) >= lo && json_integer_value(v) <= hi)
        return (int)json_integer_value(v);
    sl_json_fail(r, key, "an integer from %d to %d", lo, hi);
    return otherwise;
}

double sl_json_real(sl_json_reader *r, const char *key, double otherwise, double lo, double hi)
{
    const json_t *v = json_object_get(r->object, key);
    if (r->code || !v) return otherwise;
    if (json_is_number(v) && json_number_value(v) >= lo && json_number_value(v) <= hi)
        return json_number_value(v);
    sl_json_fail(r, key, "a number from %g to %g", lo, hi);
    return otherwise;
}

bool sl_json_bool(sl_json_reader *r, const char *key, bool otherwise)
{
    const json_t *v = json_object_get(r->object, key);
    if (r->code || !v) return otherwise;
    if (json_is_boolean(v)) return json_is_true(v);
    sl_json_fail(r, key, "true or false");
    return otherwise;
}

const char *sl_json_string(sl_json_reader *r, const char *key, const char *otherwise)
{
    const json_t *v = json_object_get(r->object, key);
    if (r->code || !v) return otherwise;
    if (json_is_string(v)) return json_string_value(v);
    sl_json_fail(r, key, "a string");
    return otherwise;
}

const json_t *sl_json_array(sl_json_reader *r, const char *key, size_t n, const char *what)
{
    const json_t *v = json_object_get(r->object, key);
    if (r->code || !v) return NULL;
    if (json_is_array(v) && json_array_size(v) == n) return v;
    if (json_is_array(v)) {
        r->code = sl_fail(r->err, SL_FORMAT, "%s: %s has %zu values, want %zu %s", r->file, key,
                          json_array_size(v), n, what);
        sl_one_line(r->err);
    } else sl_json_fail(r, key, "a list of %zu %s", n, what);
    return NULL;
}
