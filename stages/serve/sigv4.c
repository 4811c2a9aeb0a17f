/* sigv4.c - AWS Signature Version 4.
 *
 *   canonical request   method, path, sorted query, sorted headers, their names, the body's digest
 *   text to sign        the algorithm, the time, the scope (day/region/service), its digest
 *   signature           HMAC of the text, under a key made of the secret and the scope */
#include "stages/serve/sigv4.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "common/sha256.h"

#define ALGORITHM "AWS4-HMAC-SHA256"

/* A header, or a parameter of a query: two pieces of somebody's text. */
typedef struct {
    const char *name, *value;
    size_t name_size, value_size;
} part;

typedef struct {
    char time[20], day[12];
    char scope[160];
    part headers[SL_SIGV4_PARTS], query[SL_SIGV4_PARTS];
    int header_count, query_count;
} work;

void sl_sigv4_escape(FILE *to, const char *text, bool slash)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (isalnum(*c) || strchr("-._~", *c) || (slash && *c == '/')) fputc(*c, to);
        else fprintf(to, "%%%02X", *c);
}

/* ---- parts, in order ---- */

static int compare_bytes(const char *a, size_t n, const char *b, size_t m)
{
    const int first = memcmp(a, b, n < m ? n : m);
    return first ? first : (n > m) - (n < m);
}

static int compare(const void *x, const void *y)
{
    const part *a = x, *b = y;
    const int names = compare_bytes(a->name, a->name_size, b->name, b->name_size);
    return names ? names : compare_bytes(a->value, a->value_size, b->value, b->value_size);
}

static sl_code too_many(sl_err *err, const char *what)
{
    return sl_fail(err, SL_ARG, "a signed request has more than %d %s", SL_SIGV4_PARTS, what);
}

static sl_code add_header(work *w, const char *line, sl_err *err)
{
    const size_t n = strcspn(line, ":");
    const char *value = line + n + (line[n] == ':');
    if (w->header_count == SL_SIGV4_PARTS) return too_many(err, "headers");
    w->headers[w->header_count++] = (part){line, value, n, strlen(value)};
    return SL_OK;
}

static sl_code add_query(work *w, const char *query, sl_err *err)
{
    while (*query) {
        const size_t n = strcspn(query, "&"), name = strcspn(query, "=&");
        const size_t value = name < n ? name + 1 : name;
        if (w->query_count == SL_SIGV4_PARTS) return too_many(err, "parameters");
        w->query[w->query_count++] = (part){query, query + value, name, n - value};
        query += n + (query[n] == '&');
    }
    return SL_OK;
}

static void print_query(FILE *to, const work *w)
{
    for (int i = 0; i < w->query_count; i++)
        fprintf(to, "%s%.*s=%.*s", i ? "&" : "", (int)w->query[i].name_size, w->query[i].name,
                (int)w->query[i].value_size, w->query[i].value);
}

/* Without the white space around it, and with one space where there are several. */
static void print_value(FILE *to, const part *p)
{
    bool begun = false, space = false;
    for (size_t i = 0; i < p->value_size; i++) {
        if (p->value[i] == ' ' || p->value[i] == '\t') {
            space = begun;
            continue;
        }
        if (space) fputc(' ', to);
        fputc(p->value[i], to);
        begun = true;
        space = false;
    }
}

static void print_names(FILE *to, const work *w)
{
    for (int i = 0; i < w->header_count; i++)
        fprintf(to, "%s%.*s", i ? ";" : "", (int)w->headers[i].name_size, w->headers[i].name);
}

/* ---- the signature ---- */

static void note_time(work *w, const sl_sigv4_ask *a)
{
    struct tm t;
    gmtime_r(&a->now, &t);
    strftime(w->time, sizeof w->time, "%Y%m%dT%H%M%SZ", &t);
    strftime(w->day, sizeof w->day, "%Y%m%d", &t);
    snprintf(w->scope, sizeof w->scope, "%s/%.60s/%.60s/aws4_request", w->day, a->region,
             a->service);
}

static sl_code digest_of_request(char out[SL_SHA256_HEX], work *w, const sl_sigv4_ask *a,
                                 sl_err *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to) return sl_fail(err, SL_NOMEM, "no memory to sign a request");
    qsort(w->headers, (size_t)w->header_count, sizeof *w->headers, compare);
    qsort(w->query, (size_t)w->query_count, sizeof *w->query, compare);
    fprintf(to, "%s\n%s\n", a->method, a->path);
    print_query(to, w);
    fputc('\n', to);
    for (int i = 0; i < w->header_count; i++) {
        fprintf(to, "%.*s:", (int)w->headers[i].name_size, w->headers[i].name);
        print_value(to, &w->headers[i]);
        fputc('\n', to);
    }
    fputc('\n', to);
    print_names(to, w);
    fprintf(to, "\n%s", a->payload);
    const bool bad = fclose(to);
    if (!bad) sl_sha256_hex(out, text, size);
    free(text);
    return bad ? sl_fail(err, SL_NOMEM, "no memory to sign a request") : SL_OK;
}

static void derive(unsigned char key[SL_SHA256], const sl_sigv4_keys *k, const work *w,
                   const sl_sigv4_ask *a)
{
    char secret[4 + sizeof k->secret];
    snprintf(secret, sizeof secret, "AWS4%s", k->secret);
    sl_hmac_sha256(key, secret, strlen(secret), w->day, strlen(w->day));
    sl_hmac_sha256(key, key, SL_SHA256, a->region, strlen(a->region));
    sl_hmac_sha256(key, key, SL_SHA256, a->service, strlen(a->service));
    sl_hmac_sha256(key, key, SL_SHA256, "aws4_request", 12);
    explicit_bzero(secret, sizeof secret);
}

static sl_code signature_of(char out[SL_SHA256_HEX], const sl_sigv4_keys *k, work *w,
                            const sl_sigv4_ask *a, sl_err *err)
{
    char digest[SL_SHA256_HEX], text[320];
    unsigned char key[SL_SHA256], bytes[SL_SHA256];
    sl_code rc = digest_of_request(digest, w, a, err);
    if (rc) return rc;
    snprintf(text, sizeof text, ALGORITHM "\n%s\n%s\n%s", w->time, w->scope, digest);
    derive(key, k, w, a);
    sl_hmac_sha256(bytes, key, sizeof key, text, strlen(text));
    sl_sha256_to_hex(out, bytes);
    explicit_bzero(key, sizeof key);
    return SL_OK;
}

/* ---- headers, links ---- */

sl_code sl_sigv4_sign(char **lines, const sl_sigv4_keys *k, const sl_sigv4_ask *a, sl_err *err)
{
    work w = {0};
    char host[320], when[40], token[sizeof k->token + 32], signature[SL_SHA256_HEX];
    size_t size = 0;
    sl_code rc;
    *lines = NULL;
    note_time(&w, a);
    snprintf(host, sizeof host, "host:%s", a->host);
    snprintf(when, sizeof when, "x-amz-date:%s", w.time);
    snprintf(token, sizeof token, "x-amz-security-token:%s", k->token);
    if ((rc = add_header(&w, host, err)) || (rc = add_header(&w, when, err)) ||
        (*k->token && (rc = add_header(&w, token, err))) || (rc = add_query(&w, a->query, err)))
        return rc;
    for (const char *const *h = a->headers; h && *h; h++)
        if ((rc = add_header(&w, *h, err))) return rc;
    if ((rc = signature_of(signature, k, &w, a, err))) return rc;
    FILE *to = open_memstream(lines, &size);
    if (!to) return sl_fail(err, SL_NOMEM, "no memory to sign a request");
    fprintf(to, "x-amz-date: %s\n", w.time);
    if (*k->token) fprintf(to, "x-amz-security-token: %s\n", k->token);
    fprintf(to, "authorization: " ALGORITHM " Credential=%s/%s, SignedHeaders=", k->id, w.scope);
    print_names(to, &w);
    fprintf(to, ", Signature=%s\n", signature);
    return fclose(to) ? sl_fail(err, SL_NOMEM, "no memory to sign a request") : SL_OK;
}

/* The parameters that every link has, but the signature. malloc'd; NULL: no memory. */
static char *link_query(const work *w, const sl_sigv4_keys *k, const sl_sigv4_ask *a, int seconds)
{
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    fprintf(to, "%s%sX-Amz-Algorithm=" ALGORITHM "&X-Amz-Credential=", a->query,
            *a->query ? "&" : "");
    sl_sigv4_escape(to, k->id, false);
    fputs("%2F", to);
    sl_sigv4_escape(to, w->scope, false);
    fprintf(to, "&X-Amz-Date=%s&X-Amz-Expires=%d&X-Amz-SignedHeaders=", w->time, seconds);
    for (int i = 0; i < w->header_count; i++)
        fprintf(to, "%s%.*s", i ? "%3B" : "", (int)w->headers[i].name_size, w->headers[i].name);
    if (*k->token) {
        fputs("&X-Amz-Security-Token=", to);
        sl_sigv4_escape(to, k->token, false);
    }
    if (!fclose(to)) return text;
    free(text);
    return NULL;
}

sl_code sl_sigv4_link(char **query, const sl_sigv4_keys *k, const sl_sigv4_ask *a, int seconds,
                      sl_err *err)
{
    work w = {0};
    char host[320], signature[SL_SHA256_HEX];
    size_t size = 0;
    sl_code rc;
    *query = NULL;
    note_time(&w, a);
    snprintf(host, sizeof host, "host:%s", a->host);
    if ((rc = add_header(&w, host, err))) return rc;
    for (const char *const *h = a->headers; h && *h; h++)
        if ((rc = add_header(&w, *h, err))) return rc;
    qsort(w.headers, (size_t)w.header_count, sizeof *w.headers, compare);
    char *all = link_query(&w, k, a, seconds);
    if (!all) return sl_fail(err, SL_NOMEM, "no memory to sign a link");
    rc = add_query(&w, all, err);
    if (!rc) rc = signature_of(signature, k, &w, a, err);
    FILE *to = rc ? NULL : open_memstream(query, &size);
    if (!rc && !to) rc = sl_fail(err, SL_NOMEM, "no memory to sign a link");
    if (to) {
        print_query(to, &w);
        fprintf(to, "&X-Amz-Signature=%s", signature);
        if (fclose(to)) rc = sl_fail(err, SL_NOMEM, "no memory to sign a link");
    }
    free(all);
    return rc;
}
