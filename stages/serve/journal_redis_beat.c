/* journal_redis_beat.c - holds of a server on its jobs, the thread that renews them, and the one
 * that hears what others have changed.
 *
 * A handle takes jobs of silent servers only when its own beats have been heard for a lease without
 * a gap (`steady_ns`): after Redis was away, or this process was stopped, others come back too. */
#include "stages/serve/journal_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"

#define EAR_MS 250      /* how long the ear does not see that the handle closes */
#define SILENT_MS 10000 /* after which the ear asks whether the connection lives */

/* ---- holds ---- */

/* LoRA of a job's needs: their last word. */
static const char *loras_of(const sl_journal_job *job)
{
    const char *last = job->needs ? strrchr(job->needs, ' ') : NULL;
    return last ? last + 1 : "-";
}

sl_code sl_queue_add_hold(sl_queue *q, const sl_journal_job *job, const char *word, sl_err *err)
{
    sl_code rc = SL_OK;
    pthread_mutex_lock(&q->lock);
    if (q->hold_count == q->hold_room) {
        const int room = q->hold_room ? 2 * q->hold_room : 16;
        sl_queue_hold *more = realloc(q->holds, (size_t)room * sizeof *more);
        if (more) q->holds = more, q->hold_room = room;
        else rc = sl_fail(err, SL_NOMEM, "job %s: no memory for its hold", job->id);
    }
    if (!rc) {
        sl_queue_hold *h = &q->holds[q->hold_count++];
        *h = (sl_queue_hold){0};
        snprintf(h->id, sizeof h->id, "%s", job->id);
        snprintf(h->word, sizeof h->word, "%s", word);
        if (*q->offer) snprintf(q->loaded, sizeof q->loaded, "%s", loras_of(job));
        if (job->deaths >= SL_JOURNAL_ALONE) snprintf(q->alone, sizeof q->alone, "%s", job->id);
    }
    pthread_mutex_unlock(&q->lock);
    return rc;
}

void sl_queue_find_hold(sl_queue *q, const char *id, char out[SL_WORD])
{
    *out = 0;
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < SL_QUEUE_ENDED; i++)
        if (!strcmp(q->ended[i].id, id)) memcpy(out, q->ended[i].word, SL_WORD);
    for (int i = 0; i < q->hold_count; i++) /* the newest, if one was lost and claimed again */
        if (!strcmp(q->holds[i].id, id)) memcpy(out, q->holds[i].word, SL_WORD);
    pthread_mutex_unlock(&q->lock);
}

void sl_queue_remember_end(sl_queue *q, const char *id, const char *word)
{
    pthread_mutex_lock(&q->lock);
    sl_queue_hold *h = &q->ended[q->ended_count++ % SL_QUEUE_ENDED];
    snprintf(h->id, sizeof h->id, "%s", id);
    snprintf(h->word, sizeof h->word, "%s", word);
    pthread_mutex_unlock(&q->lock);
}

void sl_queue_end_hold(sl_queue *q, const char *word)
{
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < q->hold_count; i++)
        if (!strcmp(q->holds[i].word, word)) {
            if (!strcmp(q->holds[i].id, q->alone)) *q->alone = 0;
            memmove(&q->holds[i], &q->holds[i + 1],
                    (size_t)(--q->hold_count - i) * sizeof *q->holds);
            break;
        }
    pthread_mutex_unlock(&q->lock);
}

/* ---- beats ---- */

static void tell(sl_queue *q, sl_journal_heard what, const char *id)
{
    pthread_mutex_lock(&q->lock);
    void (*heard)(void *, sl_journal_heard, const char *) = q->heard;
    void *self = q->self;
    pthread_mutex_unlock(&q->lock);
    if (heard) heard(self, what, id);
}

/* Holds that are not gone, from the i-th on; how many. */
static int some_holds(sl_queue *q, int from, sl_queue_hold *out)
{
    int n = 0;
    pthread_mutex_lock(&q->lock);
    for (int i = from; i < q->hold_count && n < SL_QUEUE_HOLDS; i++) out[n++] = q->holds[i];
    pthread_mutex_unlock(&q->lock);
    return n;
}

static void note_lost(sl_queue *q, const sl_queue_hold *h)
{
    bool news = false;
    pthread_mutex_lock(&q->lock);
    for (int i = 0; i < q->hold_count; i++) news |= !strcmp(q->holds[i].word, h->word);
    pthread_mutex_unlock(&q->lock);
    if (!news) return; /* the job has ended meanwhile */
    sl_queue_remember_end(q, h->id, h->word);
    sl_queue_end_hold(q, h->word);
    tell(q, SL_JOURNAL_HEARD_LOST, h->id);
}

/* One beat for these holds. */
static sl_code renew(sl_queue *q, sl_redis *to, const sl_queue_hold *holds, int n, bool take,
                     sl_err *err)
{
    const char *words[11 + SL_QUEUE_HOLDS] = {"EVALSHA", q->sha, "0", "beat", q->channel, q->name};
    char lease[32], offer[SL_JOURNAL_NEEDS], says[SL_JOURNAL_SAYS], retries[32];
    redisReply *r = NULL;
    pthread_mutex_lock(&q->lock);
    memcpy(offer, q->offer, sizeof offer);
    memcpy(says, q->says, sizeof says);
    words[10] = sl_queue_text(retries, q->retries);
    pthread_mutex_unlock(&q->lock);
    words[6] = sl_queue_text(lease, q->lease_ms);
    words[7] = offer;
    words[8] = says;
    words[9] = take ? "1" : "0";
    for (int i = 0; i < n; i++) words[11 + i] = holds[i].word;
    sl_code rc = sl_queue_ask_on(to, &r, 11 + n, words, err);
    if (!rc && r->type != REDIS_REPLY_ARRAY)
        rc = sl_fail(err, SL_SYS, "%.300s", r->type == REDIS_REPLY_ERROR ? r->str : "no answer");
    if (!rc && r->elements > 2 && r->element[2]->type == REDIS_REPLY_ARRAY)
        for (int i = 0; i < n && i < (int)r->element[2]->elements; i++) {
            const int64_t is = sl_queue_whole(r->element[2], (size_t)i);
            if (is == 0) note_lost(q, &holds[i]);
            if (is == 2) tell(q, SL_JOURNAL_HEARD_CANCEL, holds[i].id);
        }
    if (r) freeReplyObject(r);
    return rc;
}

static sl_code beat_once(sl_queue *q, sl_redis **to, bool take, sl_err *err)
{
    sl_code rc = *to ? SL_OK : sl_redis_open(to, &q->at, SL_QUEUE_CONNECT_MS, err);
    for (int from = 0, n; !rc; from += n) {
        n = some_holds(q, from, q->renewed);
        rc = renew(q, *to, q->renewed, n, take, err);
        if (n < SL_QUEUE_HOLDS) break;
    }
    if (rc) sl_redis_close(to);
    return rc;
}

/* After a beat: is Redis away, is it back, and since when is this handle heard? */
static void note_beat(sl_queue *q, sl_code rc, const sl_err *err, int64_t *last_ns)
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

/* Wait so long, or until the handle closes; does it? hurry: or it has something new to tell. */
static bool rest(sl_queue *q, int ms, bool hurry)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000l;
    if (until.tv_nsec >= 1000000000l) until.tv_sec++, until.tv_nsec -= 1000000000l;
    pthread_mutex_lock(&q->lock);
    while (!q->closing && !(hurry && q->hurries) &&
           !pthread_cond_timedwait(&q->ends, &q->lock, &until)) {
    }
    const bool closing = q->closing;
    if (hurry) q->hurries = false;
    pthread_mutex_unlock(&q->lock);
    return closing;
}

static void *beat(void *arg)
{
    sl_queue *q = arg;
    sl_redis *to = NULL;
    int64_t last_ns = 0;
    int wait_ms = 0;
    while (!rest(q, wait_ms, true)) {
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
        else
            wait_ms = wait_ms && 2 * wait_ms < SL_QUEUE_LONGEST_PAUSE_MS
                          ? 2 * wait_ms
                          : SL_QUEUE_LONGEST_PAUSE_MS;
        if (wait_ms > usual) wait_ms = usual;
    }
    sl_redis_close(&to);
    return NULL;
}

/* ---- the ear ---- */

static void hear_one(sl_queue *q, const redisReply *r)
{
    static const char *const NAMES[SL_JOURNAL_HEARD_COUNT] = {"queue",  "state", "step",
                                                              "cancel", "lost",  "all"};
    char what[16], id[SL_JOURNAL_ID];
    if (r->type != REDIS_REPLY_ARRAY || strcmp(sl_queue_part(r, 0), "message") ||
        sscanf(sl_queue_part(r, 2), "%15s %47s", what, id) != 2 || !sl_journal_is_id(id))
        return;
    for (int i = 0; i < SL_JOURNAL_HEARD_LOST; i++)
        if (!strcmp(what, NAMES[i])) tell(q, (sl_journal_heard)i, id);
}

/* Subscribed until the connection is lost or the handle closes. */
static void listen_on(sl_queue *q, sl_redis *to)
{
    const char *const ping[] = {"PING"};
    int silent_ms = 0;
    while (!rest(q, 0, false)) {
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
    sl_queue *q = arg;
    const char *const subscribe[] = {"SUBSCRIBE", q->work, q->show};
    for (bool first = true; !rest(q, first ? 0 : SL_QUEUE_LONGEST_PAUSE_MS, false); first = false) {
        sl_redis *to = NULL;
        redisReply *r = NULL;
        if (sl_redis_open(&to, &q->at, SL_QUEUE_CONNECT_MS, NULL) ||
            sl_redis_ask(to, &r, SL_QUEUE_ANSWER_MS, q->shows ? 3 : 2, subscribe, NULL, NULL)) {
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

/* ---- the threads' lives ---- */

sl_code sl_queue_begin(sl_queue *q, sl_err *err)
{
    q->beats = !pthread_create(&q->beat, NULL, beat, q);
    q->hears = !pthread_create(&q->ear, NULL, ear, q);
    return q->beats && q->hears ? SL_OK : sl_fail(err, SL_SYS, "no thread can be made");
}

void sl_queue_end(sl_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closing = true;
    pthread_cond_broadcast(&q->ends);
    pthread_mutex_unlock(&q->lock);
    if (q->beats) pthread_join(q->beat, NULL);
    if (q->hears) pthread_join(q->ear, NULL);
    q->beats = q->hears = false;
}
