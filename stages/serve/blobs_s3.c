/* blobs_s3.c - jobs' files in an S3-compatible store.
 *
 * That the store has its word still is looked at every CHECK_S seconds, after an error, and before
 * a file is said to be missing: a bucket that was emptied, or is another one, is away. */
#include "stages/serve/blobs_body.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/temporary.h"
#include "common/word.h"
#include "stages/serve/s3_object.h"

#define CHECK_S 10
#define WORD_KEY "store"
#define MARKS "new/"
#define KEY 640 /* bytes of ID/VERSION-NAME */

typedef struct {
    sl_s3 *s3;
    atomic_llong checked_ns; /* when the word was there; 0: it is to be looked at */
} store;

static store *of(const sl_blobs *b)
{
    return b->self;
}

static const char *key_of(char out[KEY], const char *id, const char *file)
{
    snprintf(out, KEY, "%s/%s", id, file);
    return out;
}

/* ---- the store's word ---- */

static sl_code get_word(const sl_blobs *b, char out[40], sl_err *err)
{
    sl_code rc = sl_s3_get_text(of(b)->s3, WORD_KEY, out, 40, err);
    if (rc == SL_FORMAT ||
        (!rc && (strlen(out) != SL_BLOBS_WORD || strspn(out, "0123456789abcdef") != SL_BLOBS_WORD)))
        rc = sl_fail(err, SL_ARG, "%s/" WORD_KEY " is no word of a shared store", b->dir);
    return rc;
}

/* The first server writes it. */
static sl_code read_word(sl_blobs *b, sl_err *err)
{
    char word[SL_WORD];
    sl_code rc = get_word(b, b->word, err);
    if (rc != SL_GONE) return rc;
    sl_new_word(word);
    rc = sl_s3_put_text(of(b)->s3, WORD_KEY, word, SL_BLOBS_WORD, true, err);
    if (rc && rc != SL_BUSY) return rc;
    if ((rc = get_word(b, b->word, err))) return rc;
    if (!strcmp(b->word, word)) sl_log(SL_LOG_INFO, "%s is a new store", b->dir);
    return SL_OK;
}

/* It is the store that this server began with. */
static sl_code is_there(const sl_blobs *b, bool now, sl_err *err)
{
    store *s = of(b);
    const int64_t seen = atomic_load(&s->checked_ns);
    char word[40];
    if (!now && seen && sl_now_ns() - seen < CHECK_S * 1000000000ll) return SL_OK;
    sl_code rc = get_word(b, word, err);
    if (rc == SL_GONE)
        rc = sl_fail(err, SL_SYS, "the shared store %s is not there: it is empty", b->dir);
    else if (!rc && strcmp(word, b->word))
        rc = sl_fail(err, SL_SYS, "the shared store %s is not there: another has its name", b->dir);
    atomic_store(&s->checked_ns, rc ? 0 : sl_now_ns());
    return rc;
}

/* What a request came to: after an error the word is looked at. */
static sl_code note(const sl_blobs *b, sl_code rc)
{
    if (rc == SL_SYS) atomic_store(&of(b)->checked_ns, 0);
    return rc;
}

static void close_store(sl_blobs *b)
{
    store *s = of(b);
    if (s) sl_s3_close(&s->s3);
    free(s);
    b->self = NULL;
}

/* A mistake in the settings ends the server with one line; so does a store that is away. */
static sl_code open_store(sl_blobs *b, const char *where, const sl_conf *conf, sl_err *err)
{
    store *s = b->self = calloc(1, sizeof *s);
    sl_code rc =
        s ? sl_s3_open(&s->s3, where, &conf->s3, err) : sl_fail(err, SL_NOMEM, "no memory");
    if (rc) return rc;
    snprintf(b->dir, sizeof b->dir, "%s", sl_s3_at(s->s3)->name);
    if ((rc = read_word(b, err)))
        return sl_context(err, rc, "the store at %s", sl_s3_at(s->s3)->way.url);
    atomic_store(&s->checked_ns, sl_now_ns());
    return SL_OK;
}

/* ---- files ---- */

static bool no_path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *file)
{
    (void)b, (void)id, (void)file;
    *out = 0;
    return false;
}

static sl_code put(const sl_blobs *b, const char *id, const char *file, const char *from,
                   uint64_t *bytes, sl_err *err)
{
    char key[KEY];
    sl_code rc = is_there(b, false, err);
    if (rc) return rc;
    return note(b, sl_s3_put(of(b)->s3, key_of(key, id, file), from, b->bytes_per_s, bytes, err));
}

static sl_code read_object(const sl_blobs *b, const char *file, const sl_blobs_reading *r,
                           sl_err *err)
{
    char key[KEY];
    const sl_s3_reading reading = {.key = key_of(key, r->id, file),
                                   .all = r->all,
                                   .from = r->from,
                                   .size = r->size,
                                   .take = r->take,
                                   .over = r->over,
                                   .self = r->self};
    sl_code rc = note(b, sl_s3_read(of(b)->s3, &reading, err));
    /* missing, as far as this is the store */
    if (rc == SL_GONE && is_there(b, true, NULL)) rc = is_there(b, true, err);
    return rc;
}

typedef struct {
    int fd;
    sl_code rc;
    sl_err *err;
} file_sink;

static bool write_all(void *self, const char *bytes, size_t n)
{
    file_sink *to = self;
    while (n && !to->rc) {
        const ssize_t k = write(to->fd, bytes, n);
        if (k < 0 && errno != EINTR) to->rc = sl_fail_errno(to->err, errno, "write");
        if (k > 0) bytes += k, n -= (size_t)k;
    }
    return !to->rc;
}

static sl_code get(const sl_blobs *b, const char *id, const char *file, uint64_t bytes,
                   const char *to, sl_err *err)
{
    char *temporary = NULL;
    sl_err why = {0};
    file_sink sink = {.fd = -1, .err = &why};
    sl_code rc = sl_temporary_make(&temporary, &sink.fd, to, err);
    if (rc) return rc;
    const sl_blobs_reading all = {
        .id = id, .all = bytes, .size = bytes, .take = write_all, .self = &sink};
    rc = read_object(b, file, &all, err);
    if (sink.rc) rc = sl_fail(err, sink.rc, "%s: %s", to, why.msg);
    if (!rc && rename(temporary, to)) rc = sl_fail_errno(err, errno, "%s", to);
    if (rc) unlink(temporary);
    close(sink.fd);
    free(temporary);
    return rc;
}

static sl_code link_to(char **url, const sl_blobs *b, const char *id, const char *file, int seconds,
                       const char *type, const char *shown, sl_err *err)
{
    char key[KEY];
    return sl_s3_link(url, of(b)->s3, key_of(key, id, file), seconds, type, shown, err);
}

static void drop(const sl_blobs *b, const char *id, const char *file)
{
    char key[KEY];
    if (*file) note(b, sl_s3_delete(of(b)->s3, key_of(key, id, file), NULL));
}

/* ---- marks ---- */

static const char *mark_of(char out[KEY], const char *id)
{
    snprintf(out, KEY, MARKS "%s", id);
    return out;
}

static sl_code mark(const sl_blobs *b, const char *id, sl_err *err)
{
    char key[KEY];
    sl_code rc = is_there(b, false, err);
    return rc ? rc : note(b, sl_s3_put_text(of(b)->s3, mark_of(key, id), "", 0, false, err));
}

static void unmark(const sl_blobs *b, const char *id)
{
    char key[KEY];
    note(b, sl_s3_delete(of(b)->s3, mark_of(key, id), NULL));
}

typedef struct {
    const sl_blobs *b;
    sl_code rc;
    sl_err *err;
} removal;

static void remove_one(void *self, const char *key, time_t when)
{
    removal *r = self;
    (void)when;
    if (!r->rc) r->rc = sl_s3_delete(of(r->b)->s3, key, r->err);
}

/* Marked meanwhile: what is left, because the store or this server goes away, is known by it. */
static sl_code remove_all(const sl_blobs *b, const char *id, sl_err *err)
{
    removal r = {.b = b, .err = err};
    char begin[KEY];
    sl_code rc = mark(b, id, err);
    if (rc) return rc;
    snprintf(begin, sizeof begin, "%s/", id);
    rc = sl_s3_each(of(b)->s3, begin, remove_one, &r, err);
    if (!rc) rc = r.rc;
    if (!rc) unmark(b, id);
    return note(b, rc);
}

typedef struct {
    int64_t before;
    void (*look)(void *self, const char *id);
    void *self;
} marks;

static void look_at_mark(void *self, const char *key, time_t when)
{
    const marks *m = self;
    if (when && when < m->before) m->look(m->self, key + strlen(MARKS));
}

static void each_marked(const sl_blobs *b, int64_t old_s, void (*look)(void *self, const char *id),
                        void *self)
{
    marks m = {time(NULL) - old_s, look, self};
    sl_err err = {0};
    sl_code rc = is_there(b, true, &err);
    if (!rc) rc = sl_s3_each(of(b)->s3, MARKS, look_at_mark, &m, &err);
    if (!rc) rc = sl_s3_sweep(of(b)->s3, old_s, &err);
    if (note(b, rc)) sl_log(SL_LOG_WARN, "leftovers are looked for later: %s", err.msg);
}

static uint64_t nobody_knows(const sl_blobs *b)
{
    (void)b;
    return UINT64_MAX;
}

const sl_blobs_body sl_blobs_s3 = {
    .open = open_store,
    .close = close_store,
    .put = put,
    .get = get,
    .path = no_path,
    .read = read_object,
    .link = link_to,
    .drop = drop,
    .remove = remove_all,
    .mark = mark,
    .unmark = unmark,
    .each_marked = each_marked,
    .free = nobody_knows,
};
