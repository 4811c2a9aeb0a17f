/* journal_redis_open.c - the way to a queue on Redis: which Redis it is, what its settings promise,
 * and whether it is this server's. */
#include "stages/serve/journal_redis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

#define SCHEMA "2"
#define LEAST_VERSION 7 /* of Redis */

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
static void promise(sl_queue *q, const char *info, const char *fsync)
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

static sl_code look_at(sl_queue *q, sl_redis *to, sl_err *err)
{
    const char *const info[] = {"INFO"}, *const fsync[] = {"CONFIG", "GET", "appendfsync"},
                      *const load[] = {"SCRIPT", "LOAD", sl_journal_lua};
    redisReply *r = NULL, *c = NULL, *s = NULL;
    sl_code rc = sl_redis_ask(to, &r, SL_QUEUE_ANSWER_MS, 1, info, NULL, err);
    if (!rc && r->type == REDIS_REPLY_ERROR) rc = sl_queue_refuse(r, err);
    else if (!rc && r->type != REDIS_REPLY_STRING) rc = sl_fail(err, SL_FORMAT, "INFO: no text");
    if (!rc && info_says(r->str, "loading", "1"))
        rc = sl_fail(err, SL_SYS, "LOADING: it reads its file");
    if (!rc) rc = check_kind(r->str, err);
    if (!rc) rc = sl_redis_ask(to, &c, SL_QUEUE_ANSWER_MS, 3, fsync, NULL, err);
    if (!rc) promise(q, r->str, c->type == REDIS_REPLY_ARRAY ? sl_queue_part(c, 1) : "");
    if (!rc) rc = sl_redis_ask(to, &s, SL_QUEUE_ANSWER_MS, 3, load, NULL, err);
    if (!rc && s->type == REDIS_REPLY_ERROR) rc = sl_queue_refuse(s, err);
    else if (!rc)
        snprintf(q->sha, sizeof q->sha, "%s", s->type == REDIS_REPLY_STRING ? s->str : "");
    if (r) freeReplyObject(r);
    if (c) freeReplyObject(c);
    if (s) freeReplyObject(s);
    return rc;
}

/* It may be starting, too. */
static sl_code find_redis(sl_queue *q, sl_err *err)
{
    const int64_t until_ns = sl_now_ns() + SL_QUEUE_ASK_MS * 1000000ll;
    for (;;) {
        sl_redis *to = NULL;
        sl_code rc = sl_redis_open(&to, &q->at, SL_QUEUE_CONNECT_MS, err);
        if (!rc) rc = look_at(q, to, err);
        sl_redis_close(&to);
        if ((rc != SL_SYS && rc != SL_TIMEOUT) || sl_now_ns() > until_ns ||
            (err && strstr(err->msg, "permit")))
            return rc;
        sl_queue_pause(SL_QUEUE_LONGEST_PAUSE_MS / 2);
    }
}

static sl_code enter(sl_queue *q, const char *store, sl_err *err)
{
    redisReply *r;
    sl_code rc = sl_queue_say(q, &r, err, "open", SCHEMA, q->model, store, NULL);
    if (!rc && sl_queue_says(r, "newer"))
        rc = sl_fail(err, SL_FORMAT,
                     "of version %s, want at most " SCHEMA ": a newer sluice wrote it",
                     sl_queue_part(r, 1));
    else if (!rc && sl_queue_says(r, "model"))
        rc = sl_fail(err, SL_ARG,
                     "has jobs for model \"%s\", this server's is \"%s\": want another database's "
                     "number, or the same model",
                     sl_queue_part(r, 1), q->model);
    else if (!rc && sl_queue_says(r, "store"))
        rc = sl_fail(err, SL_ARG,
                     "has jobs whose files are in another shared folder: want the same --blobs for "
                     "all its servers");
    if (r) freeReplyObject(r);
    return rc;
}

sl_code sl_journal_open_shared(sl_journal **out, const sl_journal_shared *at, sl_err *err)
{
    *out = NULL;
    sl_queue *q = calloc(1, sizeof *q);
    if (q) q->renewed = calloc(SL_QUEUE_HOLDS, sizeof *q->renewed);
    if (!q || !q->renewed) {
        free(q);
        return sl_fail(err, SL_NOMEM, "queue: no memory");
    }
    q->base.body = &sl_queue_body;
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
        if (!rc) rc = sl_queue_begin(q, err);
        if (rc) sl_context(err, rc, "queue %s", q->at.shown), sl_queue_one_line(err);
    }
    if (rc) sl_queue_body.close(&q->base);
    else *out = &q->base;
    return rc;
}
