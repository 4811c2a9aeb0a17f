/* journal_redis.c - the queue that many servers share: each call is one run of journal.lua in
 * Redis. journal_redis.h says what lies behind it. */
#include "stages/serve/journal_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sl_queue *of(const sl_journal *base)
{
    return (sl_queue *)base;
}

/* What the script says of a call about a job that the caller should hold. */
static sl_code held(const redisReply *r, const char *id, sl_err *err)
{
    if (sl_queue_says(r, "ok")) return SL_OK;
    if (sl_queue_says(r, "none")) return sl_journal_no_job(id, err);
    if (sl_queue_says(r, "fenced"))
        return sl_fail(err, SL_GONE, "job %s is run by %s, not by this one any more", id,
                       sl_queue_part(r, 1));
    for (int s = 0; s < SL_JOURNAL_STATE_COUNT; s++)
        if (!strcmp(sl_queue_part(r, 1), sl_journal_states[s]))
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
    sl_queue *q = of(base);
    char op[SL_WORD], p[32], created[32], most[32], most_of[32];
    redisReply *r = NULL;
    size_t lines = 0;
    for (const char *c = job->files ? job->files : ""; *c; c++) lines += *c == '\n';
    const char **words = calloc(SL_QUEUE_WORDS + 2 * lines, sizeof *words);
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
                                 sl_queue_text(p, job->priority),
                                 sl_queue_text(created, job->created_s),
                                 job->request,
                                 job->needs ? job->needs : "",
                                 sl_queue_text(most, limits ? limits->queued : 0),
                                 sl_queue_text(most_of, limits ? limits->of_owner : 0)};
    const int n = sizeof first / sizeof *first;
    memcpy(words, first, sizeof first);
    sl_code rc = sl_queue_ask(q, &r, add_files(job, words, n, copy), words, err);
    if (!rc && sl_queue_says(r, "same")) snprintf(same, SL_JOURNAL_ID, "%s", sl_queue_part(r, 1));
    else if (!rc && sl_queue_says(r, "there")) rc = sl_journal_is_there(job->id, err);
    else if (!rc && sl_queue_says(r, "full") && limits)
        rc = sl_journal_full(sl_queue_whole(r, 1), sl_queue_whole(r, 2), limits, err);
    if (!rc && *same && !sl_journal_is_id(same))
        rc = sl_fail(err, SL_FORMAT, "a client's key is of no job");
    free(words);
    free(copy);
    return sl_queue_done(q, r, rc, err);
}

/* ---- jobs run ---- */

/* What a claim says of this handle. false: it runs a job that wants to be alone. */
static bool ready_to_claim(sl_queue *q, char offer[SL_JOURNAL_NEEDS], char loaded[SL_JOURNAL_NEEDS],
                           bool *idle, sl_err *err)
{
    pthread_mutex_lock(&q->lock);
    const bool ready = !*q->alone;
    if (!ready) sl_fail(err, SL_BUSY, "job %s runs alone: servers died with it before", q->alone);
    memcpy(offer, q->offer, SL_JOURNAL_NEEDS);
    memcpy(loaded, q->loaded, SL_JOURNAL_NEEDS);
    *idle = !q->hold_count;
    pthread_mutex_unlock(&q->lock);
    return ready;
}

static sl_code shared_claim(sl_journal *base, int64_t now_s, sl_journal_job *out, sl_err *err)
{
    sl_queue *q = of(base);
    char held_as[SL_WORD], now[32], lease[32], offer[SL_JOURNAL_NEEDS], loaded[SL_JOURNAL_NEEDS];
    redisReply *r;
    bool idle;
    if (!ready_to_claim(q, offer, loaded, &idle, err)) return SL_BUSY;
    sl_new_word(held_as);
    sl_code rc = sl_queue_say(
        q, &r, err, "claim", held_as, q->name, sl_queue_text(now, now_s > 0 ? now_s : 0),
        sl_queue_text(lease, q->lease_ms), offer, idle ? "1" : "0", loaded, NULL);
    if (!rc && sl_queue_says(r, "busy")) rc = sl_fail(err, SL_BUSY, "no job is queued");
    else if (!rc && sl_queue_says(r, "damaged"))
        rc = sl_fail(err, SL_FORMAT, "job %s waits, and has no row that does", sl_queue_part(r, 1));
    else if (!rc && !(rc = sl_queue_read_answer(r, out, err)))
        rc = sl_queue_add_hold(q, out, held_as, err);
    return sl_queue_done(q, r, rc, err); /* else its lease ends */
}

static sl_code shared_release(sl_journal *base, const char *id, sl_err *err)
{
    sl_queue *q = of(base);
    char op[SL_WORD], held_as[SL_WORD];
    redisReply *r;
    sl_new_word(op);
    sl_queue_find_hold(q, id, held_as);
    sl_code rc = sl_queue_say(q, &r, err, "release", op, id, held_as, NULL);
    if (!rc) rc = held(r, id, err);
    if (!rc || rc == SL_GONE) sl_queue_end_hold(q, held_as);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_release_all(sl_journal *base, int *count, sl_err *err)
{
    sl_queue *q = of(base);
    redisReply *r;
    char retries[32];
    pthread_mutex_lock(&q->lock);
    sl_queue_text(retries, q->retries);
    pthread_mutex_unlock(&q->lock);
    sl_code rc = sl_queue_say(q, &r, err, "release_all", q->name, retries, NULL);
    if (!rc) *count = (int)sl_queue_whole(r, 1);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_progress(sl_journal *base, const char *id, double progress, const char *live,
                               sl_err *err)
{
    sl_queue *q = of(base);
    char held_as[SL_WORD], number[40];
    redisReply *r;
    sl_queue_find_hold(q, id, held_as);
    snprintf(number, sizeof number, "%.17g", progress);
    sl_code rc = sl_queue_say(q, &r, err, "progress", id, held_as, number, live, NULL);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_finish(sl_journal *base, const char *id, sl_journal_state end, sl_code code,
                             const char *message, uint64_t bytes, int64_t now_s, sl_err *err)
{
    sl_queue *q = of(base);
    char op[SL_WORD], held_as[SL_WORD], size[32], now[32];
    redisReply *r;
    sl_new_word(op);
    sl_queue_find_hold(q, id, held_as);
    sl_code rc = sl_queue_say(q, &r, err, "finish", op, id, held_as, sl_journal_states[end],
                              sl_code_name(code), message, sl_queue_text(size, (int64_t)bytes),
                              sl_queue_text(now, now_s), NULL);
    if (!rc) rc = held(r, id, err);
    if (!rc) sl_queue_remember_end(q, id, held_as);
    if (!rc || rc == SL_GONE) sl_queue_end_hold(q, held_as);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_files(sl_journal *base, const char *id, int n, sl_journal_change *changes,
                            sl_err *err)
{
    sl_queue *q = of(base);
    char held_as[SL_WORD], file[SL_JOURNAL_CHANGES][SL_JOURNAL_FILE + 32];
    const char *words[7 + 2 * SL_JOURNAL_CHANGES] = {"EVALSHA",  q->sha, "0",    "files",
                                                     q->channel, id,     held_as};
    int count = 7;
    bool lives = false;
    redisReply *r;
    sl_queue_find_hold(q, id, held_as);
    for (int i = 0; i < n; i++) {
        const sl_journal_change *c = &changes[i];
        *file[i] = 0;
        if (*c->version)
            snprintf(file[i], sizeof file[i], "%s %llu", c->version, (unsigned long long)c->bytes);
        words[count++] = c->name;
        words[count++] = file[i];
        lives |= *c->version && strstr(c->name, ".safetensors");
    }
    sl_code rc = sl_queue_ask(q, &r, count, words, err);
    if (!rc) rc = held(r, id, err);
    for (int i = 0; i < n && !rc; i++)
        if (sscanf(sl_queue_part(r, (size_t)i + 1), "%255s", changes[i].was) != 1)
            *changes[i].was = 0;
    if (!rc && lives) { /* others may come beside it */
        pthread_mutex_lock(&q->lock);
        if (!strcmp(q->alone, id)) *q->alone = 0;
        pthread_mutex_unlock(&q->lock);
    }
    return sl_queue_done(q, r, rc, err);
}

/* ---- what people ask ---- */

static sl_code shared_get(sl_journal *base, const char *id, const char *owner, sl_journal_job *out,
                          sl_err *err)
{
    sl_queue *q = of(base);
    redisReply *r;
    char lease[32];
    sl_code rc = sl_queue_say(q, &r, err, "get", id, owner ? "0" : "1", owner ? owner : "",
                              sl_queue_text(lease, q->lease_ms), NULL);
    if (!rc)
        rc =
            sl_queue_says(r, "ok") ? sl_queue_read_answer(r, out, err) : sl_journal_no_job(id, err);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_cancel(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                             sl_journal_state *before, sl_err *err)
{
    sl_queue *q = of(base);
    char op[SL_WORD], now[32];
    redisReply *r;
    sl_new_word(op);
    sl_code rc = sl_queue_say(q, &r, err, "cancel", op, id, owner ? "0" : "1", owner ? owner : "",
                              sl_queue_text(now, now_s), NULL);
    if (!rc && !sl_queue_says(r, "ok")) rc = sl_journal_no_job(id, err);
    for (int s = 0; !rc && s < SL_JOURNAL_STATE_COUNT; s++)
        if (!strcmp(sl_queue_part(r, 1), sl_journal_states[s])) *before = (sl_journal_state)s;
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_remove(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                             sl_err *err)
{
    sl_queue *q = of(base);
    char now[32];
    redisReply *r;
    sl_code rc = sl_queue_say(q, &r, err, "remove", id, owner ? "0" : "1", owner ? owner : "",
                              sl_queue_text(now, now_s), NULL);
    if (!rc && sl_queue_says(r, "not"))
        rc = sl_fail(err, SL_BUSY, "job %s is %s, want it ended: cancel it first", id,
                     sl_queue_part(r, 1));
    else if (!rc && !sl_queue_says(r, "ok")) rc = sl_journal_no_job(id, err);
    return sl_queue_done(q, r, rc, err);
}

static sl_code shared_list(sl_journal *base, const char *owner, const char *after, int limit,
                           bool newest_first, sl_journal_job *jobs, int *count, bool *more,
                           sl_err *err)
{
    sl_queue *q = of(base);
    char most[32], lease[32];
    redisReply *r;
    sl_code rc = sl_queue_say(q, &r, err, "list", owner ? "0" : "1", owner ? owner : "", after,
                              sl_queue_text(most, (int64_t)limit + 1), newest_first ? "1" : "0",
                              sl_queue_text(lease, q->lease_ms), NULL);
    if (!rc && !sl_queue_says(r, "ok")) rc = sl_journal_no_job(after, err);
    if (!rc && (r->elements < 2 || r->element[1]->type != REDIS_REPLY_ARRAY))
        rc = sl_fail(err, SL_FORMAT, "a list is none");
    const size_t rows = rc ? 0 : r->element[1]->elements;
    for (size_t i = 0; !rc && i < rows && *count < limit; i++)
        if (!(rc = sl_queue_read_job(r->element[1]->element[i], &jobs[*count], err))) (*count)++;
    *more = !rc && rows > (size_t)limit;
    return sl_queue_done(q, r, rc, err);
}

static int shared_position(sl_journal *base, const char *id)
{
    sl_queue *q = of(base);
    redisReply *r;
    const sl_code rc = sl_queue_say(q, &r, NULL, "position", id, NULL);
    const int before = rc ? -1 : (int)sl_queue_whole(r, 1);
    sl_queue_done(q, r, rc, NULL);
    return before;
}

static sl_code shared_count(sl_journal *base, sl_journal_counts *out, sl_err *err)
{
    sl_queue *q = of(base);
    char lease[32];
    redisReply *r;
    sl_code rc = sl_queue_say(q, &r, err, "count", sl_queue_text(lease, q->lease_ms), NULL);
    const redisReply *states = rc ? NULL : sl_queue_list(r, 1),
                     *stats = rc ? NULL : sl_queue_list(r, 4);
    if (!rc && (r->elements < 8 || !states || !stats))
        rc = sl_fail(err, SL_FORMAT, "counts are none");
    if (rc) return sl_queue_done(q, r, rc, err);
    for (int s = 0; s < SL_JOURNAL_STATE_COUNT; s++)
        out->jobs[s] = sl_queue_count_in(states, sl_journal_states[s]);
    out->bytes = (uint64_t)sl_queue_whole(r, 2);
    out->oldest_queued_s = sl_queue_whole(r, 3);
    out->taken = sl_queue_count_in(stats, "taken");
    out->fenced = sl_queue_count_in(stats, "fenced");
    out->given_up = sl_queue_count_in(stats, "given_up");
    out->servers = sl_queue_whole(r, 5);
    out->stuck = sl_queue_whole(r, 6);
    snprintf(out->why, sizeof out->why, "%.*s", (int)sizeof out->why - 1, sl_queue_part(r, 7));
    return sl_queue_done(q, r, SL_OK, err);
}

/* ---- jobs go ---- */

static sl_code shared_expire(sl_journal *base, int64_t before_s, uint64_t quota, int64_t forget_s,
                             int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err)
{
    sl_queue *q = of(base);
    char op[SL_WORD], before[32], bytes[32], forget[32], now[32];
    redisReply *r;
    sl_new_word(op);
    if (quota > SL_JOURNAL_BYTES) quota = SL_JOURNAL_BYTES;
    sl_code rc = sl_queue_say(q, &r, err, "expire", op, sl_queue_text(before, before_s),
                              sl_queue_text(bytes, (int64_t)quota), sl_queue_text(forget, forget_s),
                              sl_queue_text(now, now_s), NULL);
    if (!rc && sl_queue_says(r, "busy")) rc = sl_fail(err, SL_BUSY, "no job is due to be removed");
    else if (!rc && !sl_journal_is_id(sl_queue_part(r, 1)))
        rc = sl_fail(err, SL_FORMAT, "what is due is no job");
    else if (!rc) snprintf(id, SL_JOURNAL_ID, "%s", sl_queue_part(r, 1));
    return sl_queue_done(q, r, rc, err);
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

/* ---- the fleet ---- */

static sl_code shared_offer(sl_journal *base, const char *offer, const char *says, sl_err *err)
{
    sl_queue *q = of(base);
    (void)err;
    pthread_mutex_lock(&q->lock);
    snprintf(q->offer, sizeof q->offer, "%s", offer);
    snprintf(q->says, sizeof q->says, "%s", says);
    if (!*q->loaded && *offer) snprintf(q->loaded, sizeof q->loaded, "-");
    q->hurries = true;
    pthread_cond_broadcast(&q->ends);
    pthread_mutex_unlock(&q->lock);
    return SL_OK;
}

static void shared_retries(sl_journal *base, int most)
{
    sl_queue *q = of(base);
    pthread_mutex_lock(&q->lock);
    q->retries = most;
    pthread_mutex_unlock(&q->lock);
}

static sl_code shared_offered(sl_journal *base, const char *needs, bool *now, bool *known,
                              sl_err *err)
{
    sl_queue *q = of(base);
    char lease[32];
    redisReply *r;
    sl_code rc =
        sl_queue_say(q, &r, err, "offered", needs, sl_queue_text(lease, q->lease_ms), NULL);
    *now = !rc && sl_queue_whole(r, 1);
    *known = !rc && sl_queue_whole(r, 2);
    return sl_queue_done(q, r, rc, err);
}

static bool read_peer(sl_journal_peer *to, const redisReply *r)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 3) return false;
    snprintf(to->name, sizeof to->name, "%.*s", SL_JOURNAL_SERVER - 1, sl_queue_part(r, 0));
    to->silent_ms = sl_queue_whole(r, 1);
    snprintf(to->says, sizeof to->says, "%.*s", SL_JOURNAL_SAYS - 1, sl_queue_part(r, 2));
    return true;
}

static bool read_work(sl_journal_job *to, const redisReply *r)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 7 || !sl_journal_is_id(sl_queue_part(r, 0)))
        return false;
    *to = (sl_journal_job){.state = SL_JOURNAL_RUNNING};
    snprintf(to->id, sizeof to->id, "%s", sl_queue_part(r, 0));
    snprintf(to->server, sizeof to->server, "%.*s", SL_JOURNAL_SERVER - 1, sl_queue_part(r, 1));
    snprintf(to->owner, sizeof to->owner, "%.*s", SL_JOURNAL_OWNER - 1, sl_queue_part(r, 2));
    snprintf(to->live, sizeof to->live, "%.*s", SL_JOURNAL_LIVE - 1, sl_queue_part(r, 3));
    to->since_s = sl_queue_whole(r, 4);
    to->attempts = (int)sl_queue_whole(r, 5);
    to->progress = strtod(sl_queue_part(r, 6), NULL);
    return true;
}

static bool read_waiting(sl_journal_job *to, const redisReply *r)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 6 || !sl_journal_is_id(sl_queue_part(r, 0)))
        return false;
    *to = (sl_journal_job){.state = SL_JOURNAL_QUEUED};
    snprintf(to->id, sizeof to->id, "%s", sl_queue_part(r, 0));
    snprintf(to->owner, sizeof to->owner, "%.*s", SL_JOURNAL_OWNER - 1, sl_queue_part(r, 1));
    to->created_s = sl_queue_whole(r, 2);
    to->priority = (int)sl_queue_whole(r, 3);
    to->attempts = (int)sl_queue_whole(r, 4);
    snprintf(to->waits, sizeof to->waits, "%.*s", (int)sizeof to->waits - 1, sl_queue_part(r, 5));
    return true;
}

static sl_code shared_fleet(sl_journal *base, sl_journal_fleet *out, sl_err *err)
{
    sl_queue *q = of(base);
    char servers[32], jobs[32], waiting[32], lease[32];
    redisReply *r;
    sl_code rc = sl_queue_say(q, &r, err, "fleet", sl_queue_text(servers, SL_JOURNAL_PEERS),
                              sl_queue_text(jobs, 4 * SL_JOURNAL_PEERS),
                              sl_queue_text(waiting, SL_JOURNAL_WAITING),
                              sl_queue_text(lease, q->lease_ms), NULL);
    const redisReply *of_each[] = {rc ? NULL : sl_queue_list(r, 1), rc ? NULL : sl_queue_list(r, 2),
                                   rc ? NULL : sl_queue_list(r, 5)};
    if (!rc && (!of_each[0] || !of_each[1] || !of_each[2]))
        rc = sl_fail(err, SL_FORMAT, "a fleet is none");
    if (rc) return sl_queue_done(q, r, rc, err);
    out->peers = calloc(of_each[0]->elements + 1, sizeof *out->peers);
    out->jobs = calloc(of_each[1]->elements + 1, sizeof *out->jobs);
    out->waiting = calloc(of_each[2]->elements + 1, sizeof *out->waiting);
    if (!out->peers || !out->jobs || !out->waiting)
        return sl_queue_done(q, r, sl_fail(err, SL_NOMEM, "no memory for a fleet"), err);
    for (size_t i = 0; i < of_each[0]->elements; i++)
        out->peer_count += read_peer(&out->peers[out->peer_count], of_each[0]->element[i]);
    for (size_t i = 0; i < of_each[1]->elements; i++)
        out->job_count += read_work(&out->jobs[out->job_count], of_each[1]->element[i]);
    for (size_t i = 0; i < of_each[2]->elements; i++)
        out->waiting_count +=
            read_waiting(&out->waiting[out->waiting_count], of_each[2]->element[i]);
    out->lease_ms = q->lease_ms;
    out->all_peers = sl_queue_whole(r, 3);
    out->all_jobs = sl_queue_whole(r, 4);
    return sl_queue_done(q, r, SL_OK, err);
}

/* ---- the body ---- */

static void shared_listen(sl_journal *base,
                          void (*heard)(void *self, sl_journal_heard what, const char *id),
                          void *self)
{
    sl_queue *q = of(base);
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
    sl_queue *q = of(base);
    const bool told = q->beats;
    redisReply *r = NULL;
    sl_queue_end(q);
    if (told && !sl_queue_say(q, &r, NULL, "leave", q->name, NULL)) freeReplyObject(r);
    sl_queue_drop_idle(q);
    free(q->holds);
    free(q->renewed);
    pthread_cond_destroy(&q->ends);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

const sl_journal_body sl_queue_body = {
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
    .files = shared_files,
    .listen = shared_listen,
    .offer = shared_offer,
    .offered = shared_offered,
    .retries = shared_retries,
    .fleet = shared_fleet,
};
