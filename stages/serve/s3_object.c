/* s3_object.c - reading, deleting and listing objects; s3_send.c sends them. */
#include "stages/serve/s3_object.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

sl_code sl_s3_put_text(sl_s3 *s, const char *key, const void *bytes, size_t size, bool fresh,
                       sl_err *err)
{
    sl_s3_ask ask = {.method = "PUT",
                     .key = key,
                     .headers = {fresh ? "if-none-match: *" : NULL},
                     .bytes = bytes,
                     .size = size};
    sl_s3_reply r;
    sl_code rc = sl_s3_do(s, &ask, &r, err);
    const bool unknown = rc && fresh && r.code == 501;
    sl_s3_reply_free(&r);
    if (!unknown) return rc;
    ask.headers[0] = NULL;
    rc = sl_s3_do(s, &ask, &r, err);
    sl_s3_reply_free(&r);
    return rc;
}

sl_code sl_s3_get_text(sl_s3 *s, const char *key, char *out, size_t room, sl_err *err)
{
    const sl_s3_ask ask = {.method = "GET", .key = key};
    sl_s3_reply r;
    sl_code rc = sl_s3_do(s, &ask, &r, err);
    *out = 0;
    if (!rc && r.size >= room)
        rc = sl_fail(err, SL_FORMAT, "%s/%s has %zu bytes, want at most %zu", sl_s3_at(s)->name,
                     key, r.size, room - 1);
    if (!rc && r.body) memcpy(out, r.body, r.size + 1);
    sl_s3_reply_free(&r);
    return rc;
}

/* ---- reading ---- */

typedef struct {
    const sl_s3_reading *of;
    uint64_t got;
    sl_sha256 sum;
    char etag[96]; /* of the object that was begun with */
    bool ranged;   /* a part of it was asked for */
    bool other;    /* it has another size, or other bytes */
} reading;

/* The bytes are the last of a whole object: they are what was sent. */
static bool ends_well(reading *g, const sl_s3_reply *r)
{
    unsigned char digest[SL_SHA256];
    char hex[SL_SHA256_HEX];
    if (g->of->from || g->of->size != g->of->all || !*r->sha256) return true;
    sl_sha256_end(&g->sum, digest);
    sl_sha256_to_hex(hex, digest);
    return !strcmp(hex, r->sha256);
}

static bool take_piece(void *self, const sl_s3_reply *r, const char *bytes, size_t n)
{
    reading *g = self;
    if (r->all != g->of->all || n > g->of->size - g->got || (g->ranged && r->code != 206))
        return g->other = true, false;
    if (!*g->etag) memcpy(g->etag, r->etag, sizeof g->etag);
    sl_sha256_add(&g->sum, bytes, n);
    g->got += n;
    if (g->got == g->of->size && !ends_well(g, r)) return g->other = true, false;
    return g->of->take(g->of->self, bytes, n);
}

static bool is_over(void *self)
{
    const reading *g = self;
    return g->of->over && g->of->over(g->of->self);
}

static sl_code is_other(const sl_s3 *s, const reading *g, const sl_s3_reply *r, sl_err *err)
{
    if (r->all != g->of->all)
        return sl_fail(err, SL_GONE, "%s/%s has %llu bytes, want %llu", sl_s3_at(s)->name,
                       g->of->key, (unsigned long long)r->all, (unsigned long long)g->of->all);
    return sl_fail(err, SL_GONE, "%s/%s has other bytes than were sent", sl_s3_at(s)->name,
                   g->of->key);
}

sl_code sl_s3_read(sl_s3 *s, const sl_s3_reading *of, sl_err *err)
{
    reading g = {.of = of};
    sl_s3_tries tries = {0};
    sl_code rc;
    bool again = true;
    sl_sha256_begin(&g.sum);
    for (;;) {
        char range[80], match[112];
        const uint64_t before = g.got;
        sl_s3_reply r;
        sl_s3_ask ask = {.method = "GET",
                         .key = of->key,
                         .take = take_piece,
                         .over = of->over ? is_over : NULL,
                         .self = &g};
        int n = 0;
        snprintf(range, sizeof range, "range: bytes=%llu-%llu",
                 (unsigned long long)(of->from + g.got),
                 (unsigned long long)(of->from + of->size - 1));
        snprintf(match, sizeof match, "if-match: %s", g.etag);
        g.ranged = of->from + g.got || of->size != of->all;
        if (g.ranged) ask.headers[n++] = range;
        if (*g.etag) ask.headers[n++] = match;
        rc = sl_s3_once(s, &ask, &r, &again, err);
        if (g.other || (!rc && r.all != of->all)) rc = is_other(s, &g, &r, err), again = false;
        else if (!rc && g.got != of->size) /* none of the bytes of a range, say */
            rc = sl_fail(err, SL_SYS, "%s/%s: %llu bytes came, want %llu", sl_s3_at(s)->name,
                         of->key, (unsigned long long)g.got, (unsigned long long)of->size);
        else if (rc == SL_BUSY) /* If-Match: another stands under its name */
            rc = sl_fail(err, SL_GONE, "%s/%s has been replaced", sl_s3_at(s)->name, of->key);
        sl_s3_reply_free(&r);
        if (!rc || !again) return rc;
        if (g.got != before) tries = (sl_s3_tries){0}; /* it gets on */
        if (!sl_s3_wait(s, &tries, &ask)) return rc;
    }
}

/* ---- deleting, listing ---- */

sl_code sl_s3_delete(sl_s3 *s, const char *key, sl_err *err)
{
    const sl_s3_ask ask = {.method = "DELETE", .key = key};
    sl_s3_reply r;
    sl_code rc = sl_s3_do(s, &ask, &r, err);
    sl_s3_reply_free(&r);
    return rc == SL_GONE ? SL_OK : rc;
}

/* "2026-11-30T12:34:56.000Z"; 0: it is none. */
static time_t time_of(const char *text)
{
    struct tm t = {0};
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d", &t.tm_year, &t.tm_mon, &t.tm_mday, &t.tm_hour,
               &t.tm_min, &t.tm_sec) != 6)
        return 0;
    t.tm_year -= 1900;
    t.tm_mon--;
    return timegm(&t);
}

/* "&NAME=VALUE", escaped. */
static void put_value(FILE *to, const char *name, const char *value)
{
    fprintf(to, "&%s=", name);
    sl_sigv4_escape(to, value, false);
}

/* One page of a list; *query is taken over. */
static sl_code get_page(sl_s3 *s, char *query, sl_s3_reply *r, sl_err *err)
{
    const sl_s3_ask ask = {.method = "GET", .query = query};
    *r = (sl_s3_reply){0};
    sl_code rc =
        query ? sl_s3_do(s, &ask, r, err) : sl_fail(err, SL_NOMEM, "no memory for a request");
    free(query);
    if (rc == SL_GONE) rc = SL_SYS; /* there is no such bucket, as some stores say it */
    return rc;
}

static char *list_query(const sl_s3 *s, const char *begin, const char *token)
{
    char *query = NULL, whole[SL_S3_PREFIX + 300];
    size_t size = 0;
    FILE *to = open_memstream(&query, &size);
    if (!to) return NULL;
    snprintf(whole, sizeof whole, "%s%s", sl_s3_at(s)->prefix, begin);
    fputs("list-type=2", to);
    put_value(to, "prefix", whole);
    if (*token) put_value(to, "continuation-token", token);
    if (!fclose(to)) return query;
    free(query);
    return NULL;
}

/* Shows a page's objects; whether there are more. */
static bool show_page(const sl_s3 *s, const sl_s3_reply *r, char *token, size_t room,
                      void (*look)(void *self, const char *key, time_t when), void *self)
{
    sl_s3_text all = {r->body, r->size}, one;
    const char *prefix = sl_s3_at(s)->prefix;
    char key[1100], when[40], more[8];
    while (sl_s3_xml_next(&all, "Contents", &one))
        if (sl_s3_xml_get(one, "Key", key, sizeof key) &&
            sl_s3_xml_get(one, "LastModified", when, sizeof when) &&
            !strncmp(key, prefix, strlen(prefix)))
            look(self, key + strlen(prefix), time_of(when));
    all = (sl_s3_text){r->body, r->size};
    return sl_s3_xml_get(all, "IsTruncated", more, sizeof more) && !strcmp(more, "true") &&
           sl_s3_xml_get(all, "NextContinuationToken", token, room) && *token;
}

sl_code sl_s3_each(sl_s3 *s, const char *begin,
                   void (*look)(void *self, const char *key, time_t when), void *self, sl_err *err)
{
    char token[2048] = "";
    bool more = true;
    sl_code rc = SL_OK;
    while (!rc && more) {
        sl_s3_reply r;
        rc = get_page(s, list_query(s, begin, token), &r, err);
        more = !rc && show_page(s, &r, token, sizeof token, look, self);
        sl_s3_reply_free(&r);
    }
    return rc;
}

static char *uploads_query(const sl_s3 *s)
{
    char *query = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&query, &size);
    if (!to) return NULL;
    fputs("uploads=", to);
    put_value(to, "prefix", sl_s3_at(s)->prefix);
    if (!fclose(to)) return query;
    free(query);
    return NULL;
}

/* A page at a time; more of them are left to the next sweep. */
sl_code sl_s3_sweep(sl_s3 *s, int64_t old_s, sl_err *err)
{
    sl_s3_reply r, answer;
    const char *prefix = sl_s3_at(s)->prefix;
    sl_code rc = get_page(s, uploads_query(s), &r, err);
    sl_s3_text all = {r.body, r.size}, one;
    char key[1100], id[1024], when[40], *query;
    while (!rc && sl_s3_xml_next(&all, "Upload", &one)) {
        if (!sl_s3_xml_get(one, "Key", key, sizeof key) ||
            !sl_s3_xml_get(one, "UploadId", id, sizeof id) ||
            !sl_s3_xml_get(one, "Initiated", when, sizeof when) ||
            strncmp(key, prefix, strlen(prefix)) || time(NULL) - time_of(when) <= old_s)
            continue;
        size_t size = 0;
        FILE *to = open_memstream(&query, &size);
        if (!to) break;
        fputs("uploadId=", to);
        sl_sigv4_escape(to, id, false);
        fclose(to);
        const sl_s3_ask ask = {.method = "DELETE", .key = key + strlen(prefix), .query = query};
        rc = sl_s3_do(s, &ask, &answer, err);
        if (rc == SL_GONE) rc = SL_OK;
        sl_s3_reply_free(&answer);
        free(query);
    }
    sl_s3_reply_free(&r);
    return rc;
}
