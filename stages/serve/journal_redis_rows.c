/* journal_redis_rows.c - rows of the queue on Redis: each field is checked as it is read. */
#include "stages/serve/journal_redis.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A hash as it was read: names and values in turn. The first field that is not as it should be sets
 * rc to SL_FORMAT. */
typedef struct {
    const redisReply *hash;
    const char *id;
    sl_code rc;
    sl_err *err;
} row;

static const redisReply *field(const row *r, const char *name)
{
    const redisReply *h = r->hash;
    for (size_t i = 0; i + 1 < h->elements; i += 2)
        if (h->element[i]->type == REDIS_REPLY_STRING && !strcmp(h->element[i]->str, name))
            return h->element[i + 1]->type == REDIS_REPLY_STRING ? h->element[i + 1] : NULL;
    return NULL;
}

static void bad(row *r, const char *name, const char *want)
{
    const redisReply *f = field(r, name);
    if (r->rc) return;
    r->rc = f ? sl_fail(r->err, SL_FORMAT, "job %s: %s is \"%.60s\", want %s", r->id, name, f->str,
                        want)
              : sl_fail(r->err, SL_FORMAT, "job %s: it has no %s", r->id, name);
    sl_queue_one_line(r->err);
}

int64_t sl_queue_count_in(const redisReply *hash, const char *name)
{
    const row r = {.hash = hash};
    const redisReply *f = field(&r, name);
    return f ? strtoll(f->str, NULL, 10) : 0;
}

static int64_t number_of(row *r, const char *name, int64_t low, int64_t high)
{
    const redisReply *f = field(r, name);
    char *end = NULL;
    errno = 0;
    const int64_t n = f ? strtoll(f->str, &end, 10) : 0;
    if (f && f->len && !*end && !errno && n >= low && n <= high) return n;
    bad(r, name, "a number in its range");
    return 0;
}

/* Of a field that rows of an older program do not have. */
static int64_t number_or_0(row *r, const char *name, int64_t high)
{
    return field(r, name) ? number_of(r, name, 0, high) : 0;
}

static double fraction_of(row *r, const char *name)
{
    const redisReply *f = field(r, name);
    char *end = NULL;
    const double x = f ? strtod(f->str, &end) : 0;
    if (f && f->len && !*end && x >= 0 && x <= 1) return x;
    bad(r, name, "a number from 0 to 1");
    return 0;
}

static const char *text_of(row *r, const char *name, size_t room)
{
    const redisReply *f = field(r, name);
    if (f && f->len < room && strlen(f->str) == f->len) return f->str;
    bad(r, name, "a text, not too long");
    return "";
}

static int word_of(row *r, const char *name, const char *const *words, int count)
{
    const redisReply *f = field(r, name);
    for (int i = 0; f && i < count; i++)
        if (!strcmp(f->str, words[i])) return i;
    bad(r, name, "a word of the schema");
    return 0;
}

/* Lines of `files`: of every field f:NAME. */
static char *files_of(row *r)
{
    char *all = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&all, &size);
    if (!to) return NULL;
    for (size_t i = 0; i + 1 < r->hash->elements; i += 2) {
        const redisReply *n = r->hash->element[i], *v = r->hash->element[i + 1];
        char version[SL_JOURNAL_FILE];
        unsigned long long bytes;
        if (n->type != REDIS_REPLY_STRING || strncmp(n->str, "f:", 2)) continue;
        if (v->type != REDIS_REPLY_STRING || n->len - 2 >= SL_JOURNAL_FILE ||
            strcspn(n->str, " \t\r\n") != n->len ||
            sscanf(v->str, "%255s %llu", version, &bytes) != 2 || bytes > SL_JOURNAL_BYTES)
            bad(r, n->str, "a version and bytes");
        else fprintf(to, "%s %s %llu\n", n->str + 2, version, bytes);
    }
    if (fclose(to)) free(all), all = NULL;
    return all;
}

sl_code sl_queue_read_job(const redisReply *hash, sl_journal_job *out, sl_err *err)
{
    row r = {.hash = hash, .id = "?", .err = err};
    memset(out, 0, sizeof *out);
    if (hash->type != REDIS_REPLY_ARRAY) return sl_fail(err, SL_FORMAT, "a row is none");
    const char *id = text_of(&r, "id", SL_JOURNAL_ID);
    if (!r.rc && !sl_journal_is_id(id)) bad(&r, "id", "an id");
    if (r.rc) return r.rc;
    r.id = id;
    snprintf(out->id, sizeof out->id, "%s", id);
    snprintf(out->owner, sizeof out->owner, "%s", text_of(&r, "owner", sizeof out->owner));
    out->state = (sl_journal_state)word_of(&r, "state", sl_journal_states, SL_JOURNAL_STATE_COUNT);
    out->priority = (int)number_of(&r, "priority", INT_MIN, INT_MAX);
    out->created_s = number_of(&r, "created_s", 0, INT64_MAX);
    out->started_s = number_of(&r, "started_s", 0, INT64_MAX);
    out->ended_s = number_of(&r, "ended_s", 0, INT64_MAX);
    out->progress = fraction_of(&r, "progress");
    out->cancel_asked = number_of(&r, "cancel_asked", 0, 1);
    out->attempts = (int)number_of(&r, "attempts", 0, INT_MAX);
    out->code = (sl_code)word_of(&r, "code", sl_journal_codes, SL_CODE_COUNT);
    snprintf(out->message, sizeof out->message, "%s", text_of(&r, "message", sizeof out->message));
    out->bytes = (uint64_t)number_of(&r, "bytes", 0, SL_JOURNAL_BYTES);
    out->fence = number_of(&r, "fence", 0, INT64_MAX);
    snprintf(out->server, sizeof out->server, "%s", text_of(&r, "worker", sizeof out->server));
    snprintf(out->live, sizeof out->live, "%s", text_of(&r, "live", sizeof out->live));
    out->deaths = (int)number_or_0(&r, "deaths", INT_MAX);
    out->since_s = number_or_0(&r, "since_s", INT64_MAX);
    const char *needs = field(&r, "needs") ? text_of(&r, "needs", SL_JOURNAL_NEEDS) : "";
    if (field(&r, "waits"))
        snprintf(out->waits, sizeof out->waits, "%.*s", (int)sizeof out->waits - 1,
                 field(&r, "waits")->str);
    const char *request = text_of(&r, "request", SL_JOURNAL_REQUEST);
    if (!r.rc && (!(out->request = strdup(request)) || !(out->needs = strdup(needs)) ||
                  !(out->files = files_of(&r))))
        r.rc = sl_fail(err, SL_NOMEM, "job %s: no memory for it", id);
    const sl_code rc = r.rc;
    if (rc) sl_journal_job_free(out);
    return rc;
}

sl_code sl_queue_read_answer(const redisReply *r, sl_journal_job *out, sl_err *err)
{
    if (r->elements < 2) return sl_fail(err, SL_FORMAT, "a row is missing");
    return sl_queue_read_job(r->element[1], out, err);
}
