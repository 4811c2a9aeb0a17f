/* journal_sqlite.c - the queue of one machine: its schema, its statements, and its rows.
 *
 *   db     every function that changes something: one change (enter ... leave)
 *   read   every function that only reads: one look (look ... leave), which waits for no commit
 *
 * See stages/serve/database.h. The order of the queue is made from its rows (read_queue): by claim
 * each time, for it changes the queue; by position when `version` is no longer that of the order it
 * remembers. A function that changes the queue makes `version` another after its commit and before
 * it returns. */
#include "stages/serve/journal_body.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stages/serve/database.h"
#include "stages/serve/fair.h"

#define MOST_CLAIMS (1ll << 62)

/* STEPS[v] makes version v + 1 of the schema out of version v. A step that was released is never
 * changed. */
static const char *const STEPS[SL_JOURNAL_VERSION] = {
    /* seq: grows with the time of submission. ended_s of a removed row: when it was removed.
     * claimed: number of its newest turn, of all claims; a release does not take it away. */
    "CREATE TABLE jobs ("
    " seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,"
    " key TEXT, state TEXT NOT NULL, priority INTEGER NOT NULL, created_s INTEGER NOT NULL,"
    " started_s INTEGER NOT NULL DEFAULT 0, ended_s INTEGER NOT NULL DEFAULT 0,"
    " progress REAL NOT NULL DEFAULT 0, cancel_asked INTEGER NOT NULL DEFAULT 0,"
    " attempts INTEGER NOT NULL DEFAULT 0, claimed INTEGER NOT NULL DEFAULT 0,"
    " code TEXT NOT NULL DEFAULT 'OK', message TEXT NOT NULL DEFAULT '',"
    " bytes INTEGER NOT NULL DEFAULT 0, request TEXT NOT NULL) STRICT;"
    "CREATE UNIQUE INDEX jobs_key ON jobs(owner, key) WHERE key IS NOT NULL;"
    "CREATE INDEX jobs_queue ON jobs(state, priority, owner, seq, claimed, created_s)"
    " WHERE state = 'queued';"
    "CREATE INDEX jobs_claims ON jobs(owner, priority, claimed);"
    "CREATE INDEX jobs_states ON jobs(state, ended_s, bytes);"
    "CREATE INDEX jobs_ended ON jobs(ended_s)"
    " WHERE state IN ('completed', 'failed', 'cancelled');",
    /* deaths: of the server while it ran, since a step was kept */
    "ALTER TABLE jobs ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;",
};

/* As read_job() reads them. */
#define COLUMNS                                                                                    \
    "seq, id, owner, state, priority, created_s, started_s, ended_s, progress, cancel_asked, "     \
    "attempts, code, message, bytes, deaths, request"
#define ENDED "state IN ('completed', 'failed', 'cancelled')"
#define MINE "(?2 IS NULL OR owner = ?2)" /* owner NULL: anybody's */
#define LISTED "FROM jobs WHERE state <> 'removed' AND " MINE " AND seq "

#define STATEMENTS(X)                                                                              \
    X(ALL, "SELECT " COLUMNS " FROM jobs")                                                         \
    X(NEWEST_CLAIM, "SELECT coalesce(max(claimed), 0) FROM jobs")                                  \
    X(SAME, "SELECT id FROM jobs WHERE owner = ?1 AND key = ?2")                                   \
    X(WAITING, "SELECT count(*), coalesce(sum(owner = ?1), 0) FROM jobs WHERE state = 'queued'")   \
    X(SUBMIT, "INSERT INTO jobs (id, owner, key, state, priority, created_s, request) "            \
              "VALUES (?1, ?2, nullif(?3, ''), 'queued', ?4, ?5, ?6)")                             \
    X(QUEUE, "SELECT seq, priority, owner, claimed FROM jobs WHERE state = 'queued' "              \
             "ORDER BY priority, owner, seq")                                                      \
    X(LAST_CLAIM, "SELECT max(claimed) FROM jobs WHERE owner = ?1 AND priority = ?2")              \
    X(QUEUED_SEQ, "SELECT seq FROM jobs WHERE id = ?1 AND state = 'queued'")                       \
    X(CLAIM,                                                                                       \
      "UPDATE jobs SET state = 'running', attempts = attempts + 1, "                               \
      "started_s = iif(started_s, started_s, max(?2, 0)), claimed = iif(claimed, claimed, ?3) "    \
      "WHERE seq = ?1 AND state = 'queued'")                                                       \
    X(BY_SEQ, "SELECT " COLUMNS " FROM jobs WHERE seq = ?1")                                       \
    X(RELEASE, "UPDATE jobs SET state = 'queued' WHERE id = ?1 AND state = 'running'")             \
    X(RELEASE_ALL,                                                                                 \
      "UPDATE jobs SET state = 'queued', deaths = deaths + 1 WHERE state = 'running'")             \
    X(GIVE_UP,                                                                                     \
      "UPDATE jobs SET state = iif(cancel_asked, 'cancelled', 'failed'), "                         \
      "code = iif(cancel_asked, 'CANCELLED', 'GONE'), ended_s = ?2, message = iif(cancel_asked, "  \
      "'cancelled', deaths || ' times its server died while it ran, and no step was kept "         \
      "between: it is not tried again (serve.retries)') WHERE state = 'running' AND deaths >= ?1") \
    X(LAST_DEATH, "UPDATE jobs SET deaths = deaths + 1 WHERE state = 'running' AND deaths >= ?1")  \
    X(KEPT, "UPDATE jobs SET deaths = 0 WHERE id = ?1 AND state = 'running'")                      \
    X(RUNNING, "SELECT count(*), coalesce(max(deaths), 0) FROM jobs WHERE state = 'running'")      \
    X(DEATHS, "SELECT deaths FROM jobs WHERE seq = ?1")                                            \
    X(PROGRESS, "UPDATE jobs SET progress = ?2 "                                                   \
                "WHERE id = ?1 AND state = 'running' AND progress < ?2")                           \
    X(FINISH,                                                                                      \
      "UPDATE jobs SET state = ?2, code = ?3, message = ?4, bytes = ?5, ended_s = max(?6, 0), "    \
      "progress = iif(?2 = 'completed', 1, progress) "                                             \
      "WHERE id = ?1 AND state = 'running'")                                                       \
    X(GET, "SELECT " COLUMNS " FROM jobs WHERE id = ?1 AND " MINE " AND state <> 'removed'")       \
    X(STATE, "SELECT id, state FROM jobs WHERE id = ?1 AND " MINE)                                 \
    X(CANCEL, "UPDATE jobs SET state = 'cancelled', code = 'CANCELLED', ended_s = max(?2, 0), "    \
              "message = 'cancelled while it waited in the queue' WHERE id = ?1")                  \
    X(ASK_CANCEL, "UPDATE jobs SET cancel_asked = 1 WHERE id = ?1")                                \
    X(REMOVE,                                                                                      \
      "UPDATE jobs SET state = 'removed', ended_s = max(?2, 0), message = '', request = '' "       \
      "WHERE id = ?1")                                                                             \
    X(AFTER, "SELECT seq FROM jobs WHERE id = ?1 AND " MINE)                                       \
    X(LIST_OLDEST, "SELECT " COLUMNS " " LISTED "> ?1 ORDER BY seq LIMIT ?3")                      \
    X(LIST_NEWEST, "SELECT " COLUMNS " " LISTED "< ?1 ORDER BY seq DESC LIMIT ?3")                 \
    X(COUNT, "SELECT state, count(*), coalesce(sum(bytes), 0) FROM jobs GROUP BY state")           \
    X(OLDEST, "SELECT coalesce(min(created_s), 0) FROM jobs WHERE state = 'queued'")               \
    X(BYTES, "SELECT coalesce(sum(bytes), 0) FROM jobs WHERE " ENDED)                              \
    X(DUE, "SELECT id, ended_s FROM jobs WHERE " ENDED " ORDER BY ended_s LIMIT 1")                \
    X(FORGET, "DELETE FROM jobs WHERE state = 'removed' AND ended_s < ?1")

enum {
#define X(NAME, sql) NAME,
    STATEMENTS(X)
#undef X
        STATEMENT_COUNT
};
static const char *const SQL[] = {
#define X(NAME, sql) sql,
    STATEMENTS(X)
#undef X
};
static const sl_db_schema SCHEMA = {
    .name = "journal",
    .application = 0x536c4a6e, /* "SlJn" */
    .version = SL_JOURNAL_VERSION,
    .steps = STEPS,
    .sql = SQL,
    .statements = STATEMENT_COUNT,
    .value_bytes = SL_JOURNAL_REQUEST,
};

typedef struct {
    int64_t seq;
    int before; /* how many are claimed before it */
} place;

typedef struct {
    int count, room;
    sl_fair_job *jobs; /* [count], in the order of claims */
} queue;

typedef struct {
    sl_journal base;
    sl_db *db;      /* its lock is that of: */
    int64_t claims; /* the newest number of a claim */
    int retries;    /* 0: without an end */
    queue queue;    /* claim's */

    sl_db *read;      /* its lock is that of: */
    uint64_t ordered; /* the version whose order this is; 0: none */
    queue order;
    place *places; /* [order.count], by seq */

    atomic_ullong version; /* of the queue, from 1 */
} file;

static file *of(sl_journal *base)
{
    return (file *)base;
}

/* ---- rows ---- */

static void read_id(sl_row *r, char id[SL_JOURNAL_ID])
{
    sl_row_copy(r, id, SL_JOURNAL_ID);
    if (sl_journal_is_id(id)) snprintf(r->who, sizeof r->who, "job %s", id);
    else sl_row_refuse(r, "an id: letters, digits, - _ and, but first, a dot");
}

static void read_row(sl_row *r, int64_t *seq)
{
    *seq = sl_row_number(r, INT64_MIN, INT64_MAX);
    snprintf(r->who, sizeof r->who, "row %lld", (long long)*seq);
}

static sl_journal_state read_state(sl_row *r)
{
    return (sl_journal_state)sl_row_word(r, sl_journal_states, SL_JOURNAL_STATE_COUNT);
}

/* The row of COLUMNS at which the statement is; *out is the caller's. */
static sl_code read_job(sl_db *db, int which, sl_journal_job *out, sl_err *err)
{
    sl_row r = sl_row_of(db, which, err);
    int64_t seq;
    memset(out, 0, sizeof *out);
    read_row(&r, &seq);
    read_id(&r, out->id);
    sl_row_copy(&r, out->owner, sizeof out->owner);
    out->state = read_state(&r);
    out->priority = (int)sl_row_number(&r, INT_MIN, INT_MAX);
    out->created_s = sl_row_number(&r, 0, INT64_MAX);
    out->started_s = sl_row_number(&r, 0, INT64_MAX);
    out->ended_s = sl_row_number(&r, 0, INT64_MAX);
    out->progress = sl_row_fraction(&r);
    out->cancel_asked = sl_row_number(&r, 0, 1);
    out->attempts = (int)sl_row_number(&r, 0, INT_MAX);
    out->code = (sl_code)sl_row_word(&r, sl_journal_codes, SL_CODE_COUNT);
    sl_row_copy(&r, out->message, sizeof out->message);
    out->bytes = (uint64_t)sl_row_number(&r, 0, SL_JOURNAL_BYTES);
    out->deaths = (int)sl_row_number(&r, 0, INT_MAX);
    const char *request = sl_row_text(&r, SL_JOURNAL_REQUEST);
    if (!r.rc && !(out->request = strdup(request)))
        r.rc = sl_fail(err, SL_NOMEM, "job %s: no memory for its request", out->id);
    if (r.rc) sl_journal_job_free(out);
    return r.rc;
}

/* *there: is there a job of this id and owner (REMOVED too)? *state is its state then. */
static sl_code state_of(sl_db *db, const char *id, const char *owner, bool *there,
                        sl_journal_state *state, sl_err *err)
{
    *there = false;
    *state = SL_JOURNAL_REMOVED;
    sl_code rc = sl_db_ask(db, STATE, there, err, "tt", id, owner);
    if (!rc && *there) {
        char same[SL_JOURNAL_ID];
        sl_row r = sl_row_of(db, STATE, err);
        read_id(&r, same);
        *state = read_state(&r);
        rc = r.rc;
    }
    sl_db_reset(db, STATE);
    return rc;
}

/* ---- open ---- */

static sl_code check_rows(file *j, sl_err *err)
{
    bool row;
    sl_code rc = sl_db_ask(j->read, ALL, &row, err, "");
    while (!rc && row) {
        sl_journal_job job;
        if ((rc = read_job(j->read, ALL, &job, err))) break;
        sl_journal_job_free(&job);
        rc = sl_db_next(j->read, ALL, &row, err);
    }
    sl_db_reset(j->read, ALL);
    if (!rc) rc = sl_db_number(j->read, NEWEST_CLAIM, &j->claims, err);
    if (!rc && j->claims > MOST_CLAIMS)
        rc = sl_fail(err, SL_FORMAT, "a job has claim %lld, want at most %lld",
                     (long long)j->claims, MOST_CLAIMS);
    return rc;
}

static void file_close(sl_journal *base)
{
    file *j = of(base);
    sl_db_close(&j->read);
    sl_db_close(&j->db);
    free(j->queue.jobs);
    free(j->order.jobs);
    free(j->places);
    free(j);
}

/* ---- the order of the queue ---- */

static sl_code more_room(queue *q, sl_err *err)
{
    const int room = q->room ? 2 * q->room : 64;
    sl_fair_job *jobs = realloc(q->jobs, (size_t)room * sizeof *jobs);
    if (!jobs) return sl_fail(err, SL_NOMEM, "no memory for a queue of %d jobs", room);
    q->jobs = jobs;
    q->room = room;
    return SL_OK;
}

/* The number of the newest claim of a job's owner in its priority. */
static sl_code last_claim(sl_db *db, const char *owner, int priority, int64_t *last, sl_err *err)
{
    bool row;
    sl_code rc = sl_db_ask(db, LAST_CLAIM, &row, err, "ti", owner, (int64_t)priority);
    if (rc) return rc;
    sl_row r = sl_row_of(db, LAST_CLAIM, err);
    *last = sl_row_number(&r, 0, MOST_CLAIMS);
    sl_db_reset(db, LAST_CLAIM);
    return r.rc;
}

/* The row at which QUEUE is, behind the rows before it. owner: of the row before; of this one. */
static sl_code add_to_queue(sl_db *db, queue *q, char owner[SL_JOURNAL_OWNER], sl_err *err)
{
    sl_row r = sl_row_of(db, QUEUE, err);
    sl_fair_job job = {0};
    char own[SL_JOURNAL_OWNER];
    read_row(&r, &job.seq);
    job.priority = (int)sl_row_number(&r, INT_MIN, INT_MAX);
    sl_row_copy(&r, own, sizeof own);
    job.claimed = sl_row_number(&r, 0, MOST_CLAIMS);
    sl_code rc = r.rc;
    if (!rc && q->count == q->room) rc = more_room(q, err);
    if (rc) return rc;
    const sl_fair_job *before = q->count ? &q->jobs[q->count - 1] : NULL;
    if (before) job.owner = before->owner + !!strcmp(owner, own);
    if (before && before->owner == job.owner && before->priority == job.priority)
        job.last = before->last;
    else rc = last_claim(db, own, job.priority, &job.last, err);
    memcpy(owner, own, sizeof own);
    q->jobs[q->count++] = job;
    return rc;
}

static sl_code read_queue(sl_db *db, queue *q, sl_err *err)
{
    char owner[SL_JOURNAL_OWNER] = "";
    bool row;
    q->count = 0;
    sl_code rc = sl_db_ask(db, QUEUE, &row, err, "");
    while (!rc && row)
        if (!(rc = add_to_queue(db, q, owner, err))) rc = sl_db_next(db, QUEUE, &row, err);
    sl_db_reset(db, QUEUE);
    if (!rc) sl_fair_order(q->jobs, q->count);
    return rc;
}

static int by_seq(const void *x, const void *y)
{
    const place *a = x, *b = y;
    return (a->seq > b->seq) - (a->seq < b->seq);
}

/* The order as the look sees it, which is at least as new as this version. */
static sl_code remember_order(file *j, uint64_t version)
{
    j->ordered = 0;
    sl_code rc = read_queue(j->read, &j->order, NULL);
    const size_t n = (size_t)j->order.count;
    if (rc || !n) return rc;
    place *places = realloc(j->places, n * sizeof *places);
    if (!places) return SL_NOMEM;
    j->places = places;
    for (size_t i = 0; i < n; i++) places[i] = (place){j->order.jobs[i].seq, (int)i};
    qsort(places, n, sizeof *places, by_seq);
    j->ordered = version;
    return SL_OK;
}

static int place_of(const file *j, int64_t seq)
{
    const place key = {.seq = seq};
    const place *p =
        j->ordered ? bsearch(&key, j->places, (size_t)j->order.count, sizeof key, by_seq) : NULL;
    return p ? p->before : -1;
}

static int file_position(sl_journal *base, const char *id)
{
    file *j = of(base);
    bool row;
    int before = -1;
    int64_t seq = 0;
    sl_db_look(j->read);
    const uint64_t version = atomic_load(&j->version); /* before the look sees anything */
    sl_code rc = sl_db_ask(j->read, QUEUED_SEQ, &row, NULL, "t", id);
    if (!rc && row) {
        sl_row r = sl_row_of(j->read, QUEUED_SEQ, NULL);
        read_row(&r, &seq);
        rc = r.rc;
    }
    sl_db_reset(j->read, QUEUED_SEQ);
    if (!rc && row) {
        if (j->ordered == version) before = place_of(j, seq);
        /* also where its submission is committed, and has not returned yet */
        if (before < 0 && !(rc = remember_order(j, version))) before = place_of(j, seq);
    }
    sl_db_leave(j->read, rc, NULL);
    return before;
}

/* The end of a change of the queue. */
static sl_code leave_queue(file *j, sl_code rc, sl_err *err)
{
    rc = sl_db_leave(j->db, rc, err);
    atomic_fetch_add(&j->version, 1);
    return rc;
}

/* ---- jobs come ---- */

static sl_code find_same(file *j, const char *owner, const char *key, char same[SL_JOURNAL_ID],
                         sl_err *err)
{
    bool row;
    sl_code rc = sl_db_ask(j->db, SAME, &row, err, "tt", owner, key);
    if (!rc && row) {
        sl_row r = sl_row_of(j->db, SAME, err);
        read_id(&r, same);
        rc = r.rc;
        if (rc) *same = 0;
    }
    sl_db_reset(j->db, SAME);
    return rc;
}

static sl_code check_limits(file *j, const char *owner, const sl_journal_limits *limits,
                            sl_err *err)
{
    bool row;
    sl_code rc = sl_db_ask(j->db, WAITING, &row, err, "t", owner);
    if (rc) return rc;
    sl_row r = sl_row_of(j->db, WAITING, err);
    const int64_t queued = sl_row_number(&r, 0, INT64_MAX),
                  of_owner = sl_row_number(&r, 0, INT64_MAX);
    sl_db_reset(j->db, WAITING);
    if (r.rc) return r.rc;
    return sl_journal_full(queued, of_owner, limits, err);
}

static sl_code file_submit(sl_journal *base, const sl_journal_job *job, const char *key,
                           const sl_journal_limits *limits, char same[SL_JOURNAL_ID], sl_err *err)
{
    file *j = of(base);
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    if (*key) rc = find_same(j, job->owner, key, same, err);
    if (!rc && !*same) {
        if (limits) rc = check_limits(j, job->owner, limits, err);
        if (!rc) {
            rc = sl_db_run(j->db, SUBMIT, NULL, err, "tttiit", job->id, job->owner, key,
                           (int64_t)job->priority, job->created_s, job->request);
            if (rc == SL_ARG) rc = sl_journal_is_there(job->id, err);
        }
    }
    return leave_queue(j, rc, err);
}

/* ---- jobs run ---- */

/* A job that runs alone waits until no other runs, and no other begins beside it. */
static sl_code check_alone(file *j, int64_t seq, sl_err *err)
{
    bool row;
    int64_t deaths = 0;
    sl_code rc = sl_db_ask(j->db, DEATHS, &row, err, "i", seq);
    if (!rc && row) {
        sl_row r = sl_row_of(j->db, DEATHS, err);
        deaths = sl_row_number(&r, 0, INT_MAX);
        rc = r.rc;
    }
    sl_db_reset(j->db, DEATHS);
    if (rc || (rc = sl_db_ask(j->db, RUNNING, &row, err, ""))) return rc;
    sl_row r = sl_row_of(j->db, RUNNING, err);
    const int64_t running = sl_row_number(&r, 0, INT64_MAX), worst = sl_row_number(&r, 0, INT_MAX);
    sl_db_reset(j->db, RUNNING);
    if (r.rc) return r.rc;
    if (running && (worst >= SL_JOURNAL_ALONE || deaths >= SL_JOURNAL_ALONE))
        return sl_fail(err, SL_BUSY, "a job that its server died with runs alone");
    return SL_OK;
}

static sl_code claim_first(file *j, int64_t now_s, sl_journal_job *out, sl_err *err)
{
    bool row;
    int changed;
    sl_code rc = read_queue(j->db, &j->queue, err);
    if (rc) return rc;
    if (!j->queue.count) return sl_fail(err, SL_BUSY, "no job is queued");
    const int64_t seq = j->queue.jobs[0].seq;
    if ((rc = check_alone(j, seq, err))) return rc;
    rc = sl_db_run(j->db, CLAIM, &changed, err, "iii", seq, now_s, j->claims + 1);
    if (rc) return rc;
    if (!changed)
        return sl_fail(err, SL_FORMAT, "row %lld is queued by an index alone", (long long)seq);
    j->claims++;
    rc = sl_db_ask(j->db, BY_SEQ, &row, err, "i", seq);
    if (!rc) rc = read_job(j->db, BY_SEQ, out, err);
    sl_db_reset(j->db, BY_SEQ);
    return rc;
}

static sl_code file_claim(sl_journal *base, int64_t now_s, sl_journal_job *out, sl_err *err)
{
    file *j = of(base);
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = claim_first(j, now_s, out, err);
    return leave_queue(j, rc, err);
}

/* Why a statement about a RUNNING job has changed none. */
static sl_code not_running(file *j, const char *id, sl_err *err)
{
    bool there;
    sl_journal_state state;
    sl_code rc = state_of(j->db, id, NULL, &there, &state, err);
    if (rc) return rc;
    return sl_journal_not_running(id, there ? state : SL_JOURNAL_REMOVED, err);
}

static sl_code file_release(sl_journal *base, const char *id, sl_err *err)
{
    file *j = of(base);
    int changed;
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = sl_db_run(j->db, RELEASE, &changed, err, "t", id);
    if (!rc && !changed) rc = not_running(j, id, err);
    return leave_queue(j, rc, err);
}

static sl_code file_release_all(sl_journal *base, int *count, sl_err *err)
{
    file *j = of(base);
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    int ended = 0;
    if (j->retries) { /* who has died so often already, and once more now */
        rc = sl_db_run(j->db, LAST_DEATH, NULL, err, "i", (int64_t)j->retries);
        if (!rc)
            rc = sl_db_run(j->db, GIVE_UP, &ended, err, "ii", (int64_t)j->retries + 1,
                           (int64_t)time(NULL));
    }
    if (!rc) rc = sl_db_run(j->db, RELEASE_ALL, count, err, "");
    if (!rc) *count += ended;
    return leave_queue(j, rc, err);
}

static void file_retries(sl_journal *base, int most)
{
    file *j = of(base);
    sl_db_look(j->db); /* its lock */
    j->retries = most;
    sl_db_leave(j->db, SL_OK, NULL);
}

static sl_code file_kept(sl_journal *base, const char *id, sl_err *err)
{
    file *j = of(base);
    sl_code rc = sl_db_enter(j->db, false, err);
    if (rc) return rc;
    rc = sl_db_run(j->db, KEPT, NULL, err, "t", id);
    return sl_db_leave(j->db, rc, err);
}

static sl_code file_progress(sl_journal *base, const char *id, double progress, const char *live,
                             sl_err *err)
{
    file *j = of(base);
    (void)live; /* nobody else shows the job */
    if (!(progress >= 0))
        return sl_fail(err, SL_ARG, "progress is %g, want a number from 0 to 1", progress);
    sl_code rc = sl_db_enter(j->db, false, err);
    if (rc) return rc;
    rc = sl_db_run(j->db, PROGRESS, NULL, err, "tr", id, progress);
    return sl_db_leave(j->db, rc, err);
}

static sl_code file_finish(sl_journal *base, const char *id, sl_journal_state end, sl_code code,
                           const char *message, uint64_t bytes, int64_t now_s, sl_err *err)
{
    file *j = of(base);
    int changed;
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = sl_db_run(j->db, FINISH, &changed, err, "ttttii", id, sl_journal_states[end],
                   sl_code_name(code), message, (int64_t)bytes, now_s);
    if (!rc && !changed) rc = not_running(j, id, err);
    return sl_db_leave(j->db, rc, err);
}

/* ---- what people ask ---- */

static sl_code file_get(sl_journal *base, const char *id, const char *owner, sl_journal_job *out,
                        sl_err *err)
{
    file *j = of(base);
    bool row = false;
    sl_db_look(j->read);
    sl_code rc = sl_db_ask(j->read, GET, &row, err, "tt", id, owner);
    if (!rc) rc = row ? read_job(j->read, GET, out, err) : sl_journal_no_job(id, err);
    sl_db_reset(j->read, GET);
    return sl_db_leave(j->read, rc, err);
}

static sl_code file_cancel(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                           sl_journal_state *before, sl_err *err)
{
    file *j = of(base);
    bool there;
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = state_of(j->db, id, owner, &there, before, err);
    if (!rc && (!there || *before == SL_JOURNAL_REMOVED)) rc = sl_journal_no_job(id, err);
    if (!rc && *before == SL_JOURNAL_QUEUED) {
        rc = sl_db_run(j->db, CANCEL, NULL, err, "ti", id, now_s);
    } else if (!rc && *before == SL_JOURNAL_RUNNING) {
        rc = sl_db_run(j->db, ASK_CANCEL, NULL, err, "t", id);
    }
    return leave_queue(j, rc, err);
}

static sl_code file_remove(sl_journal *base, const char *id, const char *owner, int64_t now_s,
                           sl_err *err)
{
    file *j = of(base);
    bool there;
    sl_journal_state state;
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = state_of(j->db, id, owner, &there, &state, err);
    if (!rc && !there) rc = sl_journal_no_job(id, err);
    if (!rc && (state == SL_JOURNAL_QUEUED || state == SL_JOURNAL_RUNNING))
        rc = sl_fail(err, SL_BUSY, "job %s is %s, want it ended: cancel it first", id,
                     sl_journal_states[state]);
    if (!rc && state != SL_JOURNAL_REMOVED)
        rc = sl_db_run(j->db, REMOVE, NULL, err, "ti", id, now_s);
    return sl_db_leave(j->db, rc, err);
}

/* Where the list begins: behind *seq. */
static sl_code find_after(file *j, const char *owner, const char *after, int64_t *seq, sl_err *err)
{
    bool row = false;
    if (!*after) return SL_OK;
    sl_code rc = sl_db_ask(j->read, AFTER, &row, err, "tt", after, owner);
    if (!rc && !row) rc = sl_journal_no_job(after, err);
    if (!rc) {
        sl_row r = sl_row_of(j->read, AFTER, err);
        read_row(&r, seq);
        rc = r.rc;
    }
    sl_db_reset(j->read, AFTER);
    return rc;
}

static sl_code file_list(sl_journal *base, const char *owner, const char *after, int limit,
                         bool newest_first, sl_journal_job *jobs, int *count, bool *more,
                         sl_err *err)
{
    file *j = of(base);
    const int which = newest_first ? LIST_NEWEST : LIST_OLDEST;
    int64_t seq = newest_first ? INT64_MAX : INT64_MIN;
    bool row = false;
    sl_db_look(j->read);
    sl_code rc = find_after(j, owner, after, &seq, err);
    if (!rc) rc = sl_db_ask(j->read, which, &row, err, "iti", seq, owner, (int64_t)limit + 1);
    while (!rc && row && *count < limit) {
        if ((rc = read_job(j->read, which, &jobs[*count], err))) break;
        (*count)++;
        rc = sl_db_next(j->read, which, &row, err);
    }
    *more = !rc && row;
    sl_db_reset(j->read, which);
    return sl_db_leave(j->read, rc, err);
}

static sl_code file_count(sl_journal *base, sl_journal_counts *out, sl_err *err)
{
    file *j = of(base);
    bool row;
    sl_db_look(j->read);
    sl_code rc = sl_db_ask(j->read, COUNT, &row, err, "");
    while (!rc && row) {
        sl_row r = sl_row_of(j->read, COUNT, err);
        const sl_journal_state state = read_state(&r);
        out->jobs[state] = sl_row_number(&r, 0, INT64_MAX);
        sl_row_number(&r, 0, INT64_MAX);
        rc = r.rc ? r.rc : sl_db_next(j->read, COUNT, &row, err);
    }
    sl_db_reset(j->read, COUNT);
    int64_t bytes = 0;
    if (!rc) rc = sl_db_number(j->read, BYTES, &bytes, err);
    if (!rc) rc = sl_db_number(j->read, OLDEST, &out->oldest_queued_s, err);
    out->bytes = (uint64_t)bytes;
    return sl_db_leave(j->read, rc, err);
}

/* ---- jobs go ---- */

static sl_code forget(file *j, int64_t forget_s, sl_err *err)
{
    int forgotten = 0;
    sl_code rc = sl_db_enter(j->db, true, err);
    if (rc) return rc;
    rc = sl_db_run(j->db, FORGET, &forgotten, err, "i", forget_s);
    rc = sl_db_leave(j->db, rc, err);
    if (forgotten) atomic_fetch_add(&j->version, 1); /* their owners' claims are forgotten, too */
    return rc;
}

static sl_code remove_due(file *j, int64_t before_s, uint64_t quota, int64_t now_s,
                          char id[SL_JOURNAL_ID], sl_err *err)
{
    bool row = false;
    int64_t bytes = 0, ended_s = 0;
    sl_code rc = sl_db_ask(j->db, DUE, &row, err, "");
    if (!rc && row) {
        sl_row r = sl_row_of(j->db, DUE, err);
        read_id(&r, id);
        ended_s = sl_row_number(&r, 0, INT64_MAX);
        rc = r.rc;
    }
    sl_db_reset(j->db, DUE);
    if (!rc && quota) rc = sl_db_number(j->db, BYTES, &bytes, err);
    if (rc) return rc;
    if (!row || (ended_s >= before_s && (uint64_t)bytes <= quota))
        return sl_fail(err, SL_BUSY, "no job is due to be removed");
    return sl_db_run(j->db, REMOVE, NULL, err, "ti", id, now_s);
}

static sl_code file_expire(sl_journal *base, int64_t before_s, uint64_t quota, int64_t forget_s,
                           int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err)
{
    file *j = of(base);
    sl_code rc = forget(j, forget_s, err);
    if (rc || (rc = sl_db_enter(j->db, true, err))) return rc;
    rc = remove_due(j, before_s, quota, now_s, id, err);
    return sl_db_leave(j->db, rc, err);
}

static bool file_knows(sl_journal *base, const char *id)
{
    file *j = of(base);
    bool there;
    sl_journal_state state;
    sl_db_look(j->read);
    sl_code rc = state_of(j->read, id, NULL, &there, &state, NULL);
    sl_db_leave(j->read, rc, NULL);
    return rc || (there && state != SL_JOURNAL_REMOVED);
}

static sl_code file_backup(sl_journal *base, const char *path, sl_err *err)
{
    file *j = of(base);
    return sl_db_copy(j->db, path, err);
}

static const sl_journal_body BODY = {
    .close = file_close,
    .submit = file_submit,
    .claim = file_claim,
    .release = file_release,
    .release_all = file_release_all,
    .progress = file_progress,
    .finish = file_finish,
    .get = file_get,
    .cancel = file_cancel,
    .remove = file_remove,
    .list = file_list,
    .position = file_position,
    .count = file_count,
    .expire = file_expire,
    .knows = file_knows,
    .backup = file_backup,
    .retries = file_retries,
    .kept = file_kept,
};

sl_code sl_journal_open(sl_journal **out, const char *path, sl_err *err)
{
    *out = NULL;
    file *j = calloc(1, sizeof *j);
    if (!j) return sl_fail(err, SL_NOMEM, "journal: no memory");
    j->base.body = &BODY;
    atomic_init(&j->version, 1);
    sl_code rc = sl_db_open(&j->db, path, &SCHEMA, err);
    if (!rc) rc = sl_db_open_reader(&j->read, j->db, err);
    if (!rc) {
        sl_db_look(j->read);
        rc = sl_db_leave(j->read, check_rows(j, err), err);
    }
    if (rc) file_close(&j->base);
    else *out = &j->base;
    return rc;
}
