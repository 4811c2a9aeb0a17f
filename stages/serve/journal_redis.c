/* journal_redis.c - the queue that many servers share: journal.lua in Redis, and the way to it.
 *
 *   any thread   a call: one run of the script on a connection that is idle, or a new one
 *   beat         renews the holds of this handle, and puts jobs back whose server is silent
 *   ear          hears what has changed, and tells it
 *
 * `lock` guards the idle connections, the holds, and whether Redis is away; nobody waits for the
 * network while holding it.
 *
 * Redis may go away at any moment. A call tries again for ASK_MS; the script does nothing twice for
 * one nonce. When that was in vain, Redis is AWAY: calls fail at once, until a beat finds it again.
 * A handle takes jobs of silent servers only when its own beats have been heard for a lease without
 * a gap (`steady_ns`): after Redis was away, or this process was stopped, others come back too. */
#include "stages/serve/journal_body.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/word.h"
#include "stages/serve/redis.h"

#define SCHEMA "1"
#define LEAST_VERSION 7 /* of Redis */
#define CONNECT_MS 2000 /* longest wait for a connection */
#define ANSWER_MS 2000  /* and for an answer */
#define ASK_MS 5000     /* how long a call that cannot reach Redis tries again */
#define PAUSE_MS 10     /* before the second try; doubles up to: */
#define LONGEST_PAUSE_MS 400
#define EAR_MS 250      /* how long the ear does not see that the handle closes */
#define SILENT_MS 10000 /* after which the ear asks whether the connection lives */
#define IDLE 16         /* connections that are kept */
#define WORDS 24        /* of most calls */
#define BEAT_HOLDS 1000 /* renewed at once */
#define ENDED 64        /* jobs that are remembered when they have ended */

__asm__(".section .rodata\n.global sl_journal_lua\nsl_journal_lua:\n"
        ".incbin \"stages/serve/journal.lua\"\n.byte 0\n.previous\n");
extern const char sl_journal_lua[];

typedef struct {
    char id[SL_JOURNAL_ID], word[SL_WORD];
} hold;

typedef struct {
    sl_journal base;
    sl_redis_at at;
    char name[SL_JOURNAL_SERVER], model[128], channel[48], work[64], show[64], sha[64],
        promise[400];
    bool safe, shows;
    int lease_ms;

    pthread_mutex_t lock; /* of everything below, to the blank line */
    pthread_cond_t ends;
    sl_redis *idle[IDLE];
    int idle_count;
    hold *holds;
    int hold_count, hold_room;
    hold ended[ENDED]; /* jobs that it has ended or lost: files of the first may still go */
    int ended_count;   /* of all; the newest ENDED of them are there */
    bool away, closing;
    char why[400];     /* it is away */
    int64_t steady_ns; /* since when beats are heard; 0: the last one was not */
    void (*heard)(void *self, sl_journal_heard what, const char *id);
    void *self;

    hold *renewed; /* [BEAT_HOLDS], beat's */
    pthread_t beat, ear;
    bool beats, hears; /* the threads run */
} queue;

static queue *of(const sl_journal *base)
{
    return (queue *)base;
}

static void one_line(sl_err *err)
{
    if (!err) return;
    for (char *c = err->msg; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
}

static void pause_ms(int ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000l};
    nanosleep(&t, NULL);
}

/* ---- a command, wherever Redis is ---- */

static sl_redis *take_idle(queue *q)
{
    pthread_mutex_lock(&q->lock);
    sl_redis *r = q->idle_count ? q->idle[--q->idle_count] : NULL;
    pthread_mutex_unlock(&q->lock);
    return r;
}

static void keep_idle(queue *q, sl_redis *r)
{
    pthread_mutex_lock(&q->lock);
    if (q->idle_count < IDLE) q->idle[q->idle_count++] = r, r = NULL;
    pthread_mutex_unlock(&q->lock);
    sl_redis_close(&r);
}

static void drop_idle(queue *q)
{
    sl_redis *r;
    while ((r = take_idle(q))) sl_redis_close(&r);
}

static bool begins(const redisReply *r, const char *word)
{
    return r->type == REDIS_REPLY_ERROR && !strncmp(r->str, word, strlen(word));
}

/* EVALSHA; a Redis that was started anew does not know the script. */
static sl_code ask_once(sl_redis *r, redisReply **out, int n, const char **words, sl_err *err)
{
    sl_code rc = sl_redis_ask(r, out, ANSWER_MS, n, words, NULL, err);
    if (rc || !begins(*out, "NOSCRIPT")) return rc;
    freeReplyObject(*out);
    *out = NULL;
    const char *sha = words[1];
    words[0] = "EVAL";
    words[1] = sl_journal_lua;
    rc = sl_redis_ask(r, out, ANSWER_MS, n, words, NULL, err);
    words[0] = "EVALSHA";
    words[1] = sha;
    return rc;
}

static bool is_away(queue *q, sl_err *err)
{
    pthread_mutex_lock(&q->lock);
    const bool away = q->away;
    if (away) sl_fail(err, SL_SYS, "%s", q->why);
    pthread_mutex_unlock(&q->lock);
    return away;
}

static void note_away(queue *q, const sl_err *err)
{
    pthread_mutex_lock(&q->lock);
    if (!q->away) snprintf(q->why, sizeof q->why, "is away: %.380s", err->msg);
    q->away = true;
    pthread_mutex_unlock(&q->lock);
}

/* One try on a connection of this thread's. *again: Redis may answer later. */
static sl_code try_once(queue *q, redisReply **out, int n, const char **words, bool *again,
                        sl_err *err)
{
    sl_redis *r = take_idle(q);
    sl_code rc = r ? SL_OK : sl_redis_open(&r, &q->at, CONNECT_MS, err);
    *again = rc == SL_SYS || rc == SL_TIMEOUT;
    if (rc) return rc;
    rc = ask_once(r, out, n, words, err);
    *again = rc == SL_SYS || rc == SL_TIMEOUT;
    if (rc) {
        sl_redis_close(&r);
        drop_idle(q); /* they are as old */
        return rc;
    }
    keep_idle(q, r);
    if (begins(*out, "LOADING") || begins(*out, "BUSY ")) {
        *again = true;
        rc = sl_fail(err, SL_SYS, "%.200s", (*out)->str);
        freeReplyObject(*out);
        *out = NULL;
    }
    return rc;
}

/* An answer that is an error: what the server's callers do about it follows from the code. */
static sl_code refuse(const redisReply *r, sl_err *err)
{
    if (begins(r, "OOM"))
        return sl_fail(err, SL_SYS, SL_JOURNAL_DISK_FULL ": Redis has no memory left: %.200s",
                       r->str);
    if (begins(r, "MISCONF"))
        return sl_fail(err, SL_SYS, "%sRedis cannot write its file: %.250s",
                       strstr(r->str, "space") ? SL_JOURNAL_DISK_FULL ": " : "", r->str);
    if (begins(r, "NOPERM") || begins(r, "NOAUTH") || begins(r, "READONLY") ||
        strstr(r->str, "NOPERM") || strstr(r->str, "The user executing the script"))
        return sl_fail(err, SL_SYS, "Redis does not permit it: %.250s", r->str);
    return sl_fail(err, SL_FORMAT, "damaged, or another program's: %.250s", r->str);
}

/* The script's answer to n words, of which the first five are EVALSHA, its name, 0, the verb and
 * the channel; *out is an array, the caller's. */
static sl_code ask(queue *q, redisReply **out, int n, const char **words, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + ASK_MS * 1000000ll;
    sl_err why = {0};
    bool again;
    *out = NULL;
    if (is_away(q, err)) return SL_SYS;
    sl_code rc = try_once(q, out, n, words, &again, &why);
    for (int ms = PAUSE_MS; rc && again && sl_now_ns() < until_ns;) {
        pause_ms(ms + (int)(sl_now_ns() / 1000 % ms)); /* not all servers at once */
        ms = 2 * ms < LONGEST_PAUSE_MS ? 2 * ms : LONGEST_PAUSE_MS;
        if (is_away(q, err)) return SL_SYS;
        rc = try_once(q, out, n, words, &again, &why);
    }
    if (rc && again) {
        note_away(q, &why);
        return sl_fail(err, SL_SYS, "cannot be reached: %.400s", why.msg);
    }
    if (rc) return sl_fail(err, rc, "%s", why.msg);
    redisReply *r = *out;
    if (r->type == REDIS_REPLY_ERROR) rc = refuse(r, err);
    else if (r->type != REDIS_REPLY_ARRAY || !r->elements ||
             r->element[0]->type != REDIS_REPLY_STRING)
        rc = sl_fail(err, SL_FORMAT, "the script's answer is none");
    if (rc) freeReplyObject(r), *out = NULL;
    return rc;
}

/* The verb and its words, up to NULL. */
static sl_code say(queue *q, redisReply **out, sl_err *err, const char *verb, ...)
{
    const char *words[WORDS] = {"EVALSHA", q->sha, "0", verb, q->channel}, *w;
    int n = 5;
    va_list list;
    va_start(list, verb);
    while ((w = va_arg(list, const char *))) words[n++] = w;
    va_end(list);
    return ask(q, out, n, words, err);
}

/* Messages say which queue. */
static sl_code done(queue *q, redisReply *r, sl_code rc, sl_err *err)
{
    if (r) freeReplyObject(r);
    if (rc == SL_SYS || rc == SL_FORMAT || rc == SL_TIMEOUT) {
        sl_context(err, rc, "queue %s", q->at.shown);
        one_line(err);
    }
    return rc;
}

static bool says(const redisReply *r, const char *word)
{
    return !strcmp(r->element[0]->str, word);
}

/* The answer's i-th word; "" if there is none. */
static const char *part(const redisReply *r, size_t i)
{
    return i < r->elements && r->element[i]->type == REDIS_REPLY_STRING ? r->element[i]->str : "";
}

static int64_t whole(const redisReply *r, size_t i)
{
    if (i >= r->elements) return 0;
    const redisReply *e = r->element[i];
    return e->type == REDIS_REPLY_INTEGER  ? e->integer
           : e->type == REDIS_REPLY_STRING ? strtoll(e->str, NULL, 10)
                                           : 0;
}

static const char *text(char out[32], int64_t n)
{
    snprintf(out, 32, "%lld", (long long)n);
    return out;
}

/* ---- rows ---- */

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
    one_line(r->err);
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

static sl_code read_job(const redisReply *hash, sl_journal_job *out, sl_err *err)
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
    const char *request = text_of(&r, "request", SL_JOURNAL_REQUEST);
    if (!r.rc && (!(out->request = strdup(request)) || !(out->files = files_of(&r))))
        r.rc = sl_fail(err, SL_NOMEM, "job %s: no memory for it", id);
    const sl_code rc = r.rc;
    if (rc) sl_journal_job_free(out);
    return rc;
}

/* The row that is the answer's second word. */
static sl_code read_answer(const redisReply *r, sl_journal_job *out, sl_err *err)
{
    if (r->elements < 2) return sl_fail(err, SL_FORMAT, "a row is missing");
    return read_job(r->element[1], out, err);
}

/* ---- holds ---- */

static sl_code add_hold(queue *q, const char *id, const char *word, sl_err *err)
{
    sl_code rc = SL_OK;
    pthread_mutex_lock(&q->lock);
    if (q->hold_count == q->hold_room) {
        const int room = q->hold_room ? 2 * q->hold_room : 16;
        hold *more = realloc(q->holds, (size_t)room * sizeof *more);
        if (more) q->holds = more, q->hold_room = room;
        else rc = sl_fail(err, SL_NOMEM, "job %s: no memory for its hold", id);
    }
    if (!rc) {
        hold *h = &q->holds[q->hold_count++];
        *h = (hold){0};
        snprintf(h->id, sizeof h->id, "%s", id);
        snprintf(h->word, sizeof h->word, "%s", word);
    }
    pthread_mutex_unlock(&q->lock);
    return rc;
}

/* The word of this handle's hold on the job; "" if it has none. */
static void find_hold(queue *q, const char *id, char out[SL_WORD])
{
    *out = 0;
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < ENDED; i++)
        if (!strcmp(q->ended[i].id, id)) memcpy(out, q->ended[i].word, SL_WORD);
    for (int i = 0; i < q->hold_count; i++) /* the newest, if one was lost and claimed again */
        if (!strcmp(q->holds[i].id, id)) memcpy(out, q->holds[i].word, SL_WORD);
    pthread_mutex_unlock(&q->lock);
}

static void remember_end(queue *q, const char *id, const char *word)
{
    pthread_mutex_lock(&q->lock);
    hold *h = &q->ended[q->ended_count++ % ENDED];
    snprintf(h->id, sizeof h->id, "%s", id);
    snprintf(h->word, sizeof h->word, "%s", word);
    pthread_mutex_unlock(&q->lock);
}

static void end_hold(queue *q, const char *word)
{
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < q->hold_count; i++)
        if (!strcmp(q->holds[i].word, word)) {
            memmove(&q->holds[i], &q->holds[i + 1],
                    (size_t)(--q->hold_count - i) * sizeof *q->holds);
            break;
        }
    pthread_mutex_unlock(&q->lock);
}

/* What the script says of a call about a job that the caller should hold. */
static sl_code held(const redisReply *r, const char *id, sl_err *err)
{
    if (says(r, "ok")) return SL_OK;
    if (says(r, "none")) return sl_journal_no_job(id, err);
    if (says(r, "fenced"))
        return sl_fail(err, SL_GONE, "job %s is run by %s, not by this one any more", id,
                       part(r, 1));
    for (int s = 0; s < SL_JOURNAL_STATE_COUNT; s++)
        if (!strcmp(part(r, 1), sl_journal_states[s]))
            return sl_journal_not_running(id, (sl_journal_state)s, err);
    return sl_fail(err, SL_FORMAT, "the script's answer is none");
}

/* ---- jobs come ---- */

/* Names and values of the job's files, behind the words that are there; how many
 * words there are then. copy: of job->files, to be cut. */
static int add_files(const sl_journal_job *job, const char **words, int n, char *copy)
{
    for (char *line = copy, *next; job->files && *line; line = next) {
        char *end = strchr(line, '\n'), *space = strchr(line, ' ');
        next = end ? end + 1 : line + strlen(line);
        if (end) *end = 0;
        if (!space) continue;
        *space = 0;
        words[n++] = line;
        words[n++] = space + 1;
    }
    return n;
}

static sl_code shared_submit(sl_journal *base, const sl_journal_job *job, const char *key,
                             const sl_journal_limits *limits, char same[SL_JOURNAL_ID], sl_err *err)
{
    queue *q = of(base);
    char op[SL_WORD], p[32], created[32], most[32], most_of[32];
    redisReply *r = NULL;
    size_t lines = 0;
    for (const char *c = job->files ? job->files : ""; *c; c++) lines += *c == '\n';
    const char **words = calloc(WORDS + 2 * lines, sizeof *words);
    char *copy = strdup(job->files ? job->files : "");
    if (!words || !copy) {
        free(words);
        free(copy);
        return sl_fail(err, SL_NOMEM, "job %s: no memory to submit it", job->id);
    }
    sl_new_word(op);
    const char *const first[] = {"EVALSHA",
                                 q->sha,
                                 "0",
                                 "submit",
                                 q->channel,
                                 op,
                                 job->id,
                                 job->owner,
                                 key,
                                 text(p, job->priority),
                                 text(created, job->created_s),
                                 job->request,
                                 text(most, limits ? limits->queued : 0),
                                 text(most_of, limits ? limits->of_owner : 0)};
    const int n = sizeof first / sizeof *first;
    memcpy(words, first, sizeof first);
    sl_code rc = ask(q, &r, add_files(job, words, n, copy), words, err);
    if (!rc && says(r, "same")) snprintf(same, SL_JOURNAL_ID, "%s", part(r, 1));
    else if (!rc && says(r, "there")) rc = sl_journal_is_there(job->id, err);
    else if (!rc && says(r, "full") && limits)
        rc = sl_journal_full(whole(r, 1), whole(r, 2), limits, err);
    if (!rc && *same && !sl_journal_is_id(same))
        rc = sl_fail(err, SL_FORMAT, "a client's key is of no job");
    free(words);
    free(copy);
    return done(q, r, rc, err);
}

/* ---- jobs run ---- */

static sl_code shared_claim(sl_journal *base, int64_t now_s, sl_journal_job *out, sl_err *err)
{
    queue *q = of(base);
    char held_as[SL_WORD], now[32], lease[32];
    redisReply *r;
    sl_new_word(held_as);
    sl_code rc = say(q, &r, err, "claim", held_as, q->name, text(now, now_s > 0 ? now_s : 0),
                     text(lease, q->lease_ms), NULL);
    if (!rc && says(r, "busy")) rc = sl_fail(err, SL_BUSY, "no job is queued");
    else if (!rc && says(r, "damaged"))
        rc = sl_fail(err, SL_FORMAT, "job %s waits, and has no row that does", part(r, 1));
    else if (!rc && !(rc = read_answer(r, out, err))) rc = add_hold(q, out->id, held_as, err);
    return done(q, r, rc, err); /* else its lease ends */
}

static sl_code shared_release(sl_journal *base, const char *id, sl_err *err)
{
    queue *q = of(base);
    char op[SL_WORD], held_as[SL_WORD];
    redisReply *r;
    sl_new_word(op);
    find_hold(q, id, held_as);
    sl_code rc = say(q, &r, err, "release", op, id, held_as, NULL);
    if (!rc) rc = held(r, id, err);
    if (!rc || rc == SL_GONE) end_hold(q, held_as);
    return done(q, r, rc, err);
}

static sl_code shared_release_all(sl_journal *base, int *count, sl_err *err)
{
    queue *q = of(base);
    redisReply *r;
    sl_code rc = say(q, &r, err, "release_all", q->name, NULL);
    if (!rc) *count = (int)whole(r, 1);
    return done(q, r, rc, err);
}

static sl_code shared_progress(sl_journal *base, const char *id, double progress, const char *live,
                               sl_err *err)
{
    queue *q = of(base);
    char held_as[SL_WORD], number[40];
    redisReply *r;
    find_hold(q, id, held_as);
    snprintf(number, sizeof number, "%.17g", progress);
    sl_code rc = say(q, &r, err, "progress", id, held_as, number, live, NULL);
    return done(q, r, rc, err);
}

static sl_code shared_finish(sl_journal *base, const char *id, sl_journal_state end, sl_code code,
                             const char *message, uint64_t bytes, int64_t now_s, sl_err *err)
{
    queue *q = of(base);
    char op[SL_WORD], held_as[SL_WORD], size[32], now[32];
    redisReply *r;
    sl_new_word(op);
    find_hold(q, id, held_as);
    sl_code rc =
        say(q, &r, err, "finish", op, id, held_as, sl_journal_states[end], sl_code_name(code),
            message, text(size, (int64_t)bytes), text(now, now_s), NULL);
    if (!rc) rc = held(r, id, err);
    if (!rc) remember_end(q, id, held_as);
    if (!rc || rc == SL_GONE) end_hold(q, held_as);
    return done(q, r, rc, err);
}

static sl_code shared_file(sl_journal *base, const char *id, const char *name, const char *version,
                           uint64_t bytes, char was[SL_JOURNAL_FILE], sl_err *err)
{
    queue *q = of(base);
    char held_as[SL_WORD], file[SL_JOURNAL_FILE + 32] = "";
    redisReply *r;
    find_hold(q, id, held_as);
    if (*version) snprintf(file, sizeof file, "%s %llu", version, (unsigned long long)bytes);
    sl_code rc = say(q, &r, err, "file", id, held_as, name, file, NULL);
    if (!rc) rc = held(r, id, err);
    if (!rc && sscanf(part(r, 1), "%255s", was) != 1) *was = 0;
    return done(q, r, rc, err);
}

/* ---- what people ask ---- */

static sl_code shared_get(sl_journal *base, const char *id, const char *owner, sl_journal_job *out,
                          sl_err *err)
{
    queue *q = of(base);
    redisReply *r;
    sl_code rc = say(q, &r, err, "get", id, owner ? "0" : "1", owner ? owner : "", NULL);
    if (!rc) rc = says(r, "ok") ? read_answer(r, out, err) : sl_journal_no_job(id, err);
    return done(q, r, rc, err);
}

static sl_code shared_cancel(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                             sl_journal_state *before, sl_err *err)
{
    queue *q = of(base);
    char op[SL_WORD], now[32];
    redisReply *r;
    sl_new_word(op);
    sl_code rc = say(q, &r, err, "cancel", op, id, owner ? "0" : "1", owner ? owner : "",
                     text(now, now_s), NULL);
    if (!rc && !says(r, "ok")) rc = sl_journal_no_job(id, err);
    for (int s = 0; !rc && s < SL_JOURNAL_STATE_COUNT; s++)
        if (!strcmp(part(r, 1), sl_journal_states[s])) *before = (sl_journal_state)s;
    return done(q, r, rc, err);
}

static sl_code shared_remove(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                             sl_err *err)
{
    queue *q = of(base);
    char now[32];
    redisReply *r;
    sl_code rc = say(q, &r, err, "remove", id, owner ? "0" : "1", owner ? owner : "",
                     text(now, now_s), NULL);
    if (!rc && says(r, "not"))
        rc = sl_fail(err, SL_BUSY, "job %s is %s, want it ended: cancel it first", id, part(r, 1));
    else if (!rc && !says(r, "ok")) rc = sl_journal_no_job(id, err);
    return done(q, r, rc, err);
}

static sl_code shared_list(sl_journal *base, const char *owner, const char *after, int limit,
                           bool newest_first, sl_journal_job *jobs, int *count, bool *more,
                           sl_err *err)
{
    queue *q = of(base);
    char most[32];
    redisReply *r;
    sl_code rc = say(q, &r, err, "list", owner ? "0" : "1", owner ? owner : "", after,
                     text(most, (int64_t)limit + 1), newest_first ? "1" : "0", NULL);
    if (!rc && !says(r, "ok")) rc = sl_journal_no_job(after, err);
    if (!rc && (r->elements < 2 || r->element[1]->type != REDIS_REPLY_ARRAY))
        rc = sl_fail(err, SL_FORMAT, "a list is none");
    const size_t rows = rc ? 0 : r->element[1]->elements;
    for (size_t i = 0; !rc && i < rows && *count < limit; i++)
        if (!(rc = read_job(r->element[1]->element[i], &jobs[*count], err))) (*count)++;
    *more = !rc && rows > (size_t)limit;
    return done(q, r, rc, err);
}

static int shared_position(sl_journal *base, const char *id)
{
    queue *q = of(base);
    redisReply *r;
    const sl_code rc = say(q, &r, NULL, "position", id, NULL);
    const int before = rc ? -1 : (int)whole(r, 1);
    done(q, r, rc, NULL);
    return before;
}

static sl_code shared_count(sl_journal *base, sl_journal_counts *out, sl_err *err)
{
    queue *q = of(base);
    char lease[32];
    redisReply *r;
    sl_code rc = say(q, &r, err, "count", text(lease, q->lease_ms), NULL);
    if (!rc && (r->elements < 6 || r->element[1]->type != REDIS_REPLY_ARRAY ||
                r->element[4]->type != REDIS_REPLY_ARRAY))
        rc = sl_fail(err, SL_FORMAT, "counts are none");
    if (rc) return done(q, r, rc, err);
    const row states = {.hash = r->element[1]}, stats = {.hash = r->element[4]};
    for (int s = 0; s < SL_JOURNAL_STATE_COUNT; s++) {
        const redisReply *n = field(&states, sl_journal_states[s]);
        out->jobs[s] = n ? strtoll(n->str, NULL, 10) : 0;
    }
    const redisReply *taken = field(&stats, "taken"), *fenced = field(&stats, "fenced");
    out->bytes = (uint64_t)whole(r, 2);
    out->oldest_queued_s = whole(r, 3);
    out->taken = taken ? strtoll(taken->str, NULL, 10) : 0;
    out->fenced = fenced ? strtoll(fenced->str, NULL, 10) : 0;
    out->servers = whole(r, 5);
    return done(q, r, SL_OK, err);
}

/* ---- jobs go ---- */

static sl_code shared_expire(sl_journal *base, int64_t before_s, uint64_t quota, int64_t forget_s,
                             int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err)
{
    queue *q = of(base);
    char op[SL_WORD], before[32], bytes[32], forget[32], now[32];
    redisReply *r;
    sl_new_word(op);
    if (quota > SL_JOURNAL_BYTES) quota = SL_JOURNAL_BYTES;
    sl_code rc = say(q, &r, err, "expire", op, text(before, before_s), text(bytes, (int64_t)quota),
                     text(forget, forget_s), text(now, now_s), NULL);
    if (!rc && says(r, "busy")) rc = sl_fail(err, SL_BUSY, "no job is due to be removed");
    else if (!rc && !sl_journal_is_id(part(r, 1)))
        rc = sl_fail(err, SL_FORMAT, "what is due is no job");
    else if (!rc) snprintf(id, SL_JOURNAL_ID, "%s", part(r, 1));
    return done(q, r, rc, err);
}

static bool shared_knows(sl_journal *base, const char *id)
{
    sl_journal_job job = {0};
    const sl_code rc = shared_get(base, id, NULL, &job, NULL);
    sl_journal_job_free(&job);
    return rc != SL_GONE;
}

static sl_code shared_backup(sl_journal *base, const char *path, sl_err *err)
{
    (void)path;
    return sl_fail(err, SL_ARG, "queue %s has no file here: Redis's BGSAVE makes a copy",
                   of(base)->at.shown);
}

/* ---- beats ---- */

static void tell(queue *q, sl_journal_heard what, const char *id)
{
    pthread_mutex_lock(&q->lock);
    void (*heard)(void *, sl_journal_heard, const char *) = q->heard;
    void *self = q->self;
    pthread_mutex_unlock(&q->lock);
    if (heard) heard(self, what, id);
}

/* Holds that are not gone, from the i-th on; how many. */
static int some_holds(queue *q, int from, hold *out)
{
    int n = 0;
    pthread_mutex_lock(&q->lock);
    for (int i = from; i < q->hold_count && n < BEAT_HOLDS; i++) out[n++] = q->holds[i];
    pthread_mutex_unlock(&q->lock);
    return n;
}

static void note_lost(queue *q, const hold *h)
{
    bool news = false;
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < q->hold_count; i++) news |= !strcmp(q->holds[i].word, h->word);
    pthread_mutex_unlock(&q->lock);
    if (!news) return; /* the job has ended meanwhile */
    remember_end(q, h->id, h->word);
    end_hold(q, h->word);
    tell(q, SL_JOURNAL_HEARD_LOST, h->id);
}

/* One beat for these holds. */
static sl_code renew(queue *q, sl_redis *to, const hold *holds, int n, bool take, sl_err *err)
{
    const char *words[8 + BEAT_HOLDS] = {"EVALSHA", q->sha, "0", "beat", q->channel, q->name};
    char lease[32];
    redisReply *r = NULL;
    words[6] = text(lease, q->lease_ms);
    words[7] = take ? "1" : "0";
    for (int i = 0; i < n; i++) words[8 + i] = holds[i].word;
    sl_code rc = ask_once(to, &r, 8 + n, words, err);
    if (!rc && r->type != REDIS_REPLY_ARRAY)
        rc = sl_fail(err, SL_SYS, "%.300s", r->type == REDIS_REPLY_ERROR ? r->str : "no answer");
    if (!rc && r->elements > 2 && r->element[2]->type == REDIS_REPLY_ARRAY)
        for (int i = 0; i < n && i < (int)r->element[2]->elements; i++) {
            const int64_t is = whole(r->element[2], (size_t)i);
            if (is == 0) note_lost(q, &holds[i]);
            if (is == 2) tell(q, SL_JOURNAL_HEARD_CANCEL, holds[i].id);
        }
    if (r) freeReplyObject(r);
    return rc;
}

static sl_code beat_once(queue *q, sl_redis **to, bool take, sl_err *err)
{
    sl_code rc = *to ? SL_OK : sl_redis_open(to, &q->at, CONNECT_MS, err);
    for (int from = 0, n; !rc; from += n) {
        n = some_holds(q, from, q->renewed);
        rc = renew(q, *to, q->renewed, n, take, err);
        if (n < BEAT_HOLDS) break;
    }
    if (rc) sl_redis_close(to);
    return rc;
}

/* After a beat: is Redis away, is it back, and since when is this handle heard? */
static void note_beat(queue *q, sl_code rc, const sl_err *err, int64_t *last_ns)
{
    const int64_t now = sl_now_ns();
    bool back = false;
    pthread_mutex_lock(&q->lock);
    if (rc) {
        q->steady_ns = 0;
        if (q->away) snprintf(q->why, sizeof q->why, "is away: %.380s", err->msg);
    } else {
        if (!q->steady_ns || now - *last_ns > q->lease_ms * 1000000ll) q->steady_ns = now;
        *last_ns = now;
        back = q->away;
        q->away = false;
    }
    pthread_mutex_unlock(&q->lock);
    if (back) tell(q, SL_JOURNAL_HEARD_ALL, "");
}

/* Wait so long, or until the handle closes; does it? */
static bool rest(queue *q, int ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000l;
    if (until.tv_nsec >= 1000000000l) until.tv_sec++, until.tv_nsec -= 1000000000l;
    pthread_mutex_lock(&q->lock);
    while (!q->closing && !pthread_cond_timedwait(&q->ends, &q->lock, &until)) {
    }
    const bool closing = q->closing;
    pthread_mutex_unlock(&q->lock);
    return closing;
}

static void *beat(void *arg)
{
    queue *q = arg;
    sl_redis *to = NULL;
    int64_t last_ns = 0;
    int wait_ms = 0;
    while (!rest(q, wait_ms)) {
        sl_err err = {0};
        pthread_mutex_lock(&q->lock);
        const bool take =
            q->steady_ns && sl_now_ns() - q->steady_ns > q->lease_ms * 1000000ll &&
            sl_now_ns() - last_ns < q->lease_ms * 1000000ll; /* this process was not stopped */
        pthread_mutex_unlock(&q->lock);
        const sl_code rc = beat_once(q, &to, take, &err);
        note_beat(q, rc, &err, &last_ns);
        const int usual = q->lease_ms / 3;
        if (!rc) wait_ms = usual;
        else wait_ms = wait_ms && 2 * wait_ms < LONGEST_PAUSE_MS ? 2 * wait_ms : LONGEST_PAUSE_MS;
        if (wait_ms > usual) wait_ms = usual;
    }
    sl_redis_close(&to);
    return NULL;
}

/* ---- the ear ---- */

static void hear_one(queue *q, const redisReply *r)
{
    static const char *const NAMES[SL_JOURNAL_HEARD_COUNT] = {"queue",  "state", "step",
                                                              "cancel", "lost",  "all"};
    char what[16], id[SL_JOURNAL_ID];
    if (r->type != REDIS_REPLY_ARRAY || strcmp(part(r, 0), "message") ||
        sscanf(part(r, 2), "%15s %47s", what, id) != 2 || !sl_journal_is_id(id))
        return;
    for (int i = 0; i < SL_JOURNAL_HEARD_LOST; i++)
        if (!strcmp(what, NAMES[i])) tell(q, (sl_journal_heard)i, id);
}

/* Subscribed until the connection is lost or the handle closes. */
static void listen_on(queue *q, sl_redis *to)
{
    const char *const ping[] = {"PING"};
    int silent_ms = 0;
    while (!rest(q, 0)) {
        redisReply *r;
        sl_code rc = sl_redis_hear(to, &r, EAR_MS, NULL);
        if (!rc) hear_one(q, r), freeReplyObject(r), silent_ms = 0;
        else if (rc != SL_BUSY) return;
        else if ((silent_ms += EAR_MS) >= SILENT_MS) {
            if (sl_redis_ask(to, &r, SILENT_MS, 1, ping, NULL, NULL)) return;
            hear_one(q, r); /* the answer, or what came before it */
            freeReplyObject(r);
            silent_ms = 0;
        }
    }
}

static void *ear(void *arg)
{
    queue *q = arg;
    const char *const subscribe[] = {"SUBSCRIBE", q->work, q->show};
    for (bool first = true; !rest(q, first ? 0 : LONGEST_PAUSE_MS); first = false) {
        sl_redis *to = NULL;
        redisReply *r = NULL;
        if (sl_redis_open(&to, &q->at, CONNECT_MS, NULL) ||
            sl_redis_ask(to, &r, ANSWER_MS, q->shows ? 3 : 2, subscribe, NULL, NULL)) {
            sl_redis_close(&to);
            continue;
        }
        const bool there = r->type == REDIS_REPLY_ARRAY;
        freeReplyObject(r);
        if (there && !first) tell(q, SL_JOURNAL_HEARD_ALL, ""); /* what was missed */
        if (there) listen_on(q, to);
        sl_redis_close(&to);
    }
    return NULL;
}

static void shared_listen(sl_journal *base,
                          void (*heard)(void *self, sl_journal_heard what, const char *id),
                          void *self)
{
    queue *q = of(base);
    pthread_mutex_lock(&q->lock);
    q->heard = heard;
    q->self = self;
    pthread_mutex_unlock(&q->lock);
}

static const char *shared_promise(const sl_journal *base, bool *safe)
{
    *safe = of(base)->safe;
    return of(base)->promise;
}

static void shared_close(sl_journal *base)
{
    queue *q = of(base);
    pthread_mutex_lock(&q->lock);
    q->closing = true;
    pthread_cond_broadcast(&q->ends);
    pthread_mutex_unlock(&q->lock);
    if (q->beats) pthread_join(q->beat, NULL);
    if (q->hears) pthread_join(q->ear, NULL);
    drop_idle(q);
    free(q->holds);
    free(q->renewed);
    pthread_cond_destroy(&q->ends);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static const sl_journal_body BODY = {
    .close = shared_close,
    .submit = shared_submit,
    .claim = shared_claim,
    .release = shared_release,
    .release_all = shared_release_all,
    .progress = shared_progress,
    .finish = shared_finish,
    .get = shared_get,
    .cancel = shared_cancel,
    .remove = shared_remove,
    .list = shared_list,
    .position = shared_position,
    .count = shared_count,
    .expire = shared_expire,
    .knows = shared_knows,
    .backup = shared_backup,
    .promise = shared_promise,
    .file = shared_file,
    .listen = shared_listen,
};

/* ---- open: who is it, and what does it promise? ---- */

/* The value of `name:` in INFO's text; "" if there is none. */
static void info_of(const char *info, const char *name, char out[64])
{
    const size_t n = strlen(name);
    *out = 0;
    for (const char *at = info; at && *at; at = strchr(at, '\n'), at += at != NULL)
        if (!strncmp(at, name, n) && at[n] == ':') {
            snprintf(out, 64, "%.*s", (int)strcspn(at + n + 1, "\r\n"), at + n + 1);
            return;
        }
}

static bool info_says(const char *info, const char *name, const char *want)
{
    char is[64];
    info_of(info, name, is);
    return !strcmp(is, want);
}

static sl_code check_kind(const char *info, sl_err *err)
{
    char version[64], policy[64], most[64];
    info_of(info, "redis_version", version);
    info_of(info, "maxmemory_policy", policy);
    info_of(info, "maxmemory", most);
    if (atoi(version) < LEAST_VERSION)
        return sl_fail(err, SL_ARG, "is Redis %s, want %d.0 or later, or Valkey",
                       *version ? version : "of no version", LEAST_VERSION);
    if (info_says(info, "cluster_enabled", "1"))
        return sl_fail(err, SL_ARG,
                       "is a Redis Cluster, want a single Redis (or a primary with "
                       "replicas)");
    if (!info_says(info, "role", "master"))
        return sl_fail(err, SL_ARG, "is a replica, want its primary");
    if (strcmp(most, "0") && !strncmp(policy, "allkeys", 7))
        return sl_fail(err, SL_ARG,
                       "throws jobs away when its memory is full: maxmemory-policy is %s, want "
                       "noeviction",
                       policy);
    return SL_OK;
}

/* What its settings promise; fsync: of its append-only file, "" unknown. */
static void promise(queue *q, const char *info, const char *fsync)
{
    char version[64], valkey[64];
    const bool appends = info_says(info, "aof_enabled", "1");
    info_of(info, "redis_version", version);
    info_of(info, "valkey_version", valkey);
    const char *what =
        !appends ? "appendonly is no: what was accepted since its last snapshot is lost when Redis "
                   "ends"
        : !strcmp(fsync, "always")
            ? "appendonly yes, appendfsync always: what was accepted is on its disk"
        : !strcmp(fsync, "everysec")
            ? "appendonly yes, appendfsync everysec: what was accepted outlives Redis's process; a "
              "crash of its machine may lose the last two seconds"
        : !strcmp(fsync, "no")
            ? "appendonly yes, appendfsync no: what was accepted outlives Redis's process; a crash "
              "of its machine may lose half a minute"
            : "appendonly yes; appendfsync is not told (CONFIG GET is not permitted): ask who runs "
              "it what a crash may lose";
    q->safe = appends;
    snprintf(q->promise, sizeof q->promise, "queue %.150s is %s %s; %s", q->at.shown,
             *valkey ? "Valkey" : "Redis", *valkey ? valkey : version, what);
}

static sl_code look_at(queue *q, sl_redis *to, sl_err *err)
{
    const char *const info[] = {"INFO"}, *const fsync[] = {"CONFIG", "GET", "appendfsync"},
                      *const load[] = {"SCRIPT", "LOAD", sl_journal_lua};
    redisReply *r = NULL, *c = NULL, *s = NULL;
    sl_code rc = sl_redis_ask(to, &r, ANSWER_MS, 1, info, NULL, err);
    if (!rc && r->type == REDIS_REPLY_ERROR) rc = refuse(r, err);
    else if (!rc && r->type != REDIS_REPLY_STRING) rc = sl_fail(err, SL_FORMAT, "INFO: no text");
    if (!rc && info_says(r->str, "loading", "1"))
        rc = sl_fail(err, SL_SYS, "LOADING: it reads its file");
    if (!rc) rc = check_kind(r->str, err);
    if (!rc) rc = sl_redis_ask(to, &c, ANSWER_MS, 3, fsync, NULL, err);
    if (!rc) promise(q, r->str, c->type == REDIS_REPLY_ARRAY ? part(c, 1) : "");
    if (!rc) rc = sl_redis_ask(to, &s, ANSWER_MS, 3, load, NULL, err);
    if (!rc && s->type == REDIS_REPLY_ERROR) rc = refuse(s, err);
    else if (!rc)
        snprintf(q->sha, sizeof q->sha, "%s", s->type == REDIS_REPLY_STRING ? s->str : "");
    if (r) freeReplyObject(r);
    if (c) freeReplyObject(c);
    if (s) freeReplyObject(s);
    return rc;
}

/* It may be starting, too. */
static sl_code find_redis(queue *q, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + ASK_MS * 1000000ll;
    for (;;) {
        sl_redis *to = NULL;
        sl_code rc = sl_redis_open(&to, &q->at, CONNECT_MS, err);
        if (!rc) rc = look_at(q, to, err);
        sl_redis_close(&to);
        if ((rc != SL_SYS && rc != SL_TIMEOUT) || sl_now_ns() > until_ns ||
            (err && strstr(err->msg, "permit")))
            return rc;
        pause_ms(LONGEST_PAUSE_MS / 2);
    }
}

static sl_code enter(queue *q, const char *store, sl_err *err)
{
    redisReply *r;
    sl_code rc = say(q, &r, err, "open", SCHEMA, q->model, store, NULL);
    if (!rc && says(r, "newer"))
        rc = sl_fail(err, SL_FORMAT,
                     "of version %s, want at most " SCHEMA ": a newer sluice wrote it", part(r, 1));
    else if (!rc && says(r, "model"))
        rc = sl_fail(err, SL_ARG,
                     "has jobs for model \"%s\", this server's is \"%s\": want another database's "
                     "number, or the same model",
                     part(r, 1), q->model);
    else if (!rc && says(r, "store"))
        rc = sl_fail(err, SL_ARG,
                     "has jobs whose files are in another shared folder: want the same --blobs for "
                     "all its servers");
    if (r) freeReplyObject(r);
    return rc;
}

static sl_code begin_threads(queue *q, sl_err *err)
{
    q->beats = !pthread_create(&q->beat, NULL, beat, q);
    q->hears = !pthread_create(&q->ear, NULL, ear, q);
    return q->beats && q->hears ? SL_OK : sl_fail(err, SL_SYS, "no thread can be made");
}

sl_code sl_journal_open_shared(sl_journal **out, const sl_journal_shared *at, sl_err *err)
{
    *out = NULL;
    queue *q = calloc(1, sizeof *q);
    if (q) q->renewed = calloc(BEAT_HOLDS, sizeof *q->renewed);
    if (!q || !q->renewed) {
        free(q);
        return sl_fail(err, SL_NOMEM, "queue: no memory");
    }
    q->base.body = &BODY;
    q->lease_ms = at->lease_ms;
    q->shows = at->shows;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->ends, NULL);
    sl_code rc = sl_redis_parse(&q->at, at->url, err);
    if (!rc && (!sl_journal_is_id(at->name) || at->lease_ms < 100))
        rc = sl_fail(err, SL_ARG,
                     "a server is called \"%.60s\" and its lease is %d ms, want "
                     "letters, digits, - _ . and 100 ms or more",
                     at->name, at->lease_ms);
    if (!rc) {
        snprintf(q->name, sizeof q->name, "%s", at->name);
        snprintf(q->model, sizeof q->model, "%s", at->model);
        snprintf(q->channel, sizeof q->channel, "sluice:events:%d", q->at.db);
        snprintf(q->work, sizeof q->work, "%s:work", q->channel);
        snprintf(q->show, sizeof q->show, "%s:show", q->channel);
        rc = find_redis(q, err);
        if (!rc) rc = enter(q, at->store ? at->store : "", err);
        if (!rc) rc = begin_threads(q, err);
        if (rc) sl_context(err, rc, "queue %s", q->at.shown), one_line(err);
    }
    if (rc) shared_close(&q->base);
    else *out = &q->base;
    return rc;
}
