/* journal_redis_link.c - a run of the queue's script, wherever Redis is.
 *
 * Redis may go away at any moment. A call tries again for SL_QUEUE_ASK_MS; the script does nothing
 * twice for one nonce. When that was in vain, Redis is AWAY: calls fail at once, until a beat finds
 * it again (journal_redis_beat.c). */
#include "stages/serve/journal_redis.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"

#define PAUSE_MS 10 /* before the second try; doubles */

__asm__(".section .rodata\n.global sl_journal_lua\nsl_journal_lua:\n"
        ".incbin \"stages/serve/journal.lua\"\n.incbin \"stages/serve/journal_verbs.lua\"\n"
        ".byte 0\n.previous\n");

void sl_queue_one_line(sl_err *err)
{
    if (!err) return;
    for (char *c = err->msg; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
}

void sl_queue_pause(int ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000l};
    nanosleep(&t, NULL);
}

/* ---- a command, wherever Redis is ---- */

static sl_redis *take_idle(sl_queue *q)
{
    pthread_mutex_lock(&q->lock);
    sl_redis *r = q->idle_count ? q->idle[--q->idle_count] : NULL;
    pthread_mutex_unlock(&q->lock);
    return r;
}

static void keep_idle(sl_queue *q, sl_redis *r)
{
    pthread_mutex_lock(&q->lock);
    if (q->idle_count < SL_QUEUE_IDLE) q->idle[q->idle_count++] = r, r = NULL;
    pthread_mutex_unlock(&q->lock);
    sl_redis_close(&r);
}

void sl_queue_drop_idle(sl_queue *q)
{
    sl_redis *r;
    while ((r = take_idle(q))) sl_redis_close(&r);
}

static bool begins(const redisReply *r, const char *word)
{
    return r->type == REDIS_REPLY_ERROR && !strncmp(r->str, word, strlen(word));
}

sl_code sl_queue_ask_on(sl_redis *r, redisReply **out, int n, const char **words, sl_err *err)
{
    sl_code rc = sl_redis_ask(r, out, SL_QUEUE_ANSWER_MS, n, words, NULL, err);
    if (rc || !begins(*out, "NOSCRIPT")) return rc;
    freeReplyObject(*out);
    *out = NULL;
    const char *sha = words[1];
    words[0] = "EVAL";
    words[1] = sl_journal_lua;
    rc = sl_redis_ask(r, out, SL_QUEUE_ANSWER_MS, n, words, NULL, err);
    words[0] = "EVALSHA";
    words[1] = sha;
    return rc;
}

static bool is_away(sl_queue *q, sl_err *err)
{
    pthread_mutex_lock(&q->lock);
    const bool away = q->away;
    if (away) sl_fail(err, SL_SYS, "%s", q->why);
    pthread_mutex_unlock(&q->lock);
    return away;
}

static void note_away(sl_queue *q, const sl_err *err)
{
    pthread_mutex_lock(&q->lock);
    if (!q->away) snprintf(q->why, sizeof q->why, "is away: %.380s", err->msg);
    q->away = true;
    pthread_mutex_unlock(&q->lock);
}

/* One try on a connection of this thread's. *again: Redis may answer later. */
static sl_code try_once(sl_queue *q, redisReply **out, int n, const char **words, bool *again,
                        sl_err *err)
{
    sl_redis *r = take_idle(q);
    sl_code rc = r ? SL_OK : sl_redis_open(&r, &q->at, SL_QUEUE_CONNECT_MS, err);
    *again = rc == SL_SYS || rc == SL_TIMEOUT;
    if (rc) return rc;
    rc = sl_queue_ask_on(r, out, n, words, err);
    *again = rc == SL_SYS || rc == SL_TIMEOUT;
    if (rc) {
        sl_redis_close(&r);
        sl_queue_drop_idle(q); /* they are as old */
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

sl_code sl_queue_refuse(const redisReply *r, sl_err *err)
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

sl_code sl_queue_ask(sl_queue *q, redisReply **out, int n, const char **words, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + SL_QUEUE_ASK_MS * 1000000ll;
    sl_err why = {0};
    bool again;
    *out = NULL;
    if (is_away(q, err)) return SL_SYS;
    sl_code rc = try_once(q, out, n, words, &again, &why);
    for (int ms = PAUSE_MS; rc && again && sl_now_ns() < until_ns;) {
        sl_queue_pause(ms + (int)(sl_now_ns() / 1000 % ms)); /* not all servers at once */
        ms = 2 * ms < SL_QUEUE_LONGEST_PAUSE_MS ? 2 * ms : SL_QUEUE_LONGEST_PAUSE_MS;
        if (is_away(q, err)) return SL_SYS;
        rc = try_once(q, out, n, words, &again, &why);
    }
    if (rc && again) {
        note_away(q, &why);
        return sl_fail(err, SL_SYS, "cannot be reached: %.400s", why.msg);
    }
    if (rc) return sl_fail(err, rc, "%s", why.msg);
    redisReply *r = *out;
    if (r->type == REDIS_REPLY_ERROR) rc = sl_queue_refuse(r, err);
    else if (r->type != REDIS_REPLY_ARRAY || !r->elements ||
             r->element[0]->type != REDIS_REPLY_STRING)
        rc = sl_fail(err, SL_FORMAT, "the script's answer is none");
    if (rc) freeReplyObject(r), *out = NULL;
    return rc;
}

sl_code sl_queue_say(sl_queue *q, redisReply **out, sl_err *err, const char *verb, ...)
{
    const char *words[SL_QUEUE_WORDS] = {"EVALSHA", q->sha, "0", verb, q->channel}, *w;
    int n = 5;
    va_list list;
    va_start(list, verb);
    while ((w = va_arg(list, const char *))) words[n++] = w;
    va_end(list);
    return sl_queue_ask(q, out, n, words, err);
}

sl_code sl_queue_done(sl_queue *q, redisReply *r, sl_code rc, sl_err *err)
{
    if (r) freeReplyObject(r);
    if (rc == SL_SYS || rc == SL_FORMAT || rc == SL_TIMEOUT) {
        sl_context(err, rc, "queue %s", q->at.shown);
        sl_queue_one_line(err);
    }
    return rc;
}

bool sl_queue_says(const redisReply *r, const char *word)
{
    return !strcmp(r->element[0]->str, word);
}

const char *sl_queue_part(const redisReply *r, size_t i)
{
    return i < r->elements && r->element[i]->type == REDIS_REPLY_STRING ? r->element[i]->str : "";
}

int64_t sl_queue_whole(const redisReply *r, size_t i)
{
    if (i >= r->elements) return 0;
    const redisReply *e = r->element[i];
    return e->type == REDIS_REPLY_INTEGER  ? e->integer
           : e->type == REDIS_REPLY_STRING ? strtoll(e->str, NULL, 10)
                                           : 0;
}

const redisReply *sl_queue_list(const redisReply *r, size_t i)
{
    return i < r->elements && r->element[i]->type == REDIS_REPLY_ARRAY ? r->element[i] : NULL;
}

const char *sl_queue_text(char out[32], int64_t n)
{
    snprintf(out, 32, "%lld", (long long)n);
    return out;
}
