/* t_journal.h - a journal in a folder of its own, and short forms of what is done with it. `body`
 * says whose it is: SQLite's, unless the test program changes that before it runs its cases. */
#ifndef T_JOURNAL_H
#define T_JOURNAL_H

#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <sqlite3.h>

#include "stages/serve/database.h"
#include "stages/serve/fair.h"
#include "stages/serve/journal.h"

static char dir[256], path[300];
static sl_journal *j;
static sl_err err;

/* What the cases want of a body, beside journal.h. Each works on `j`. */
typedef struct {
    void (*make)(void);                    /* an empty journal, open */
    void (*empty)(void);                   /* the same, in the place of the one that is open */
    void (*reopen)(void);                  /* as another process would find it */
    void (*drop)(void);                    /* close it, and leave nothing */
    int64_t (*rows)(const char *state);    /* how many are kept; NULL: in any state */
    int64_t (*text_bytes)(const char *id); /* of its request and message, REMOVED or not */
    void (*kept)(const char *id);          /* a step of a running job is kept */
} t_journal_body;

static inline int64_t number_at(const char *file, const char *sql);

static inline void sqlite_make(void)
{
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    snprintf(path, sizeof path, "%s/journal.db", dir);
    if (sl_journal_open(&j, path, &err)) fail_msg("%s", err.msg);
}

static inline void sqlite_drop(void)
{
    sl_journal_close(&j);
    t_rmdir(dir);
}

static inline void sqlite_empty(void)
{
    sqlite_drop();
    sqlite_make();
}

static inline void sqlite_reopen(void)
{
    sl_journal_close(&j);
    T_OK(sl_journal_open(&j, path, &err));
}

static inline int64_t sqlite_rows(const char *state)
{
    char sql[200];
    snprintf(sql, sizeof sql, "SELECT count(*) FROM jobs WHERE state LIKE '%s'",
             state ? state : "%");
    return number_at(path, sql);
}

static inline int64_t sqlite_text_bytes(const char *id)
{
    char sql[200];
    snprintf(sql, sizeof sql, "SELECT length(request) + length(message) FROM jobs WHERE id = '%s'",
             id);
    return number_at(path, sql);
}

static inline void sqlite_kept(const char *id)
{
    T_OK(sl_journal_kept(j, id, &err));
}

static const t_journal_body t_sqlite = {sqlite_make, sqlite_empty,      sqlite_reopen, sqlite_drop,
                                        sqlite_rows, sqlite_text_bytes, sqlite_kept};
static const t_journal_body *body = &t_sqlite;

static inline int open_new(void **state)
{
    (void)state;
    body->make();
    return 0;
}

static inline int close_it(void **state)
{
    (void)state;
    body->drop();
    return 0;
}

static inline void reopen(void)
{
    body->reopen();
}

/* ---- short forms ---- */

static inline sl_journal_job named(const char *id, const char *owner, int priority)
{
    static char request[] = "{\"prompt\":\"a lake\"}";
    sl_journal_job job = {.priority = priority, .created_s = 1000, .request = request};
    snprintf(job.id, sizeof job.id, "%s", id);
    snprintf(job.owner, sizeof job.owner, "%s", owner);
    return job;
}

static inline void submit(const char *id, const char *owner, int priority)
{
    char same[SL_JOURNAL_ID];
    sl_journal_job job = named(id, owner, priority);
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    assert_string_equal(same, "");
}

static inline void claims(const char *id)
{
    sl_journal_job job;
    T_OK(sl_journal_claim(j, 2000, &job, &err));
    if (strcmp(job.id, id)) fail_msg("job %s was claimed, want %s", job.id, id);
    assert_int_equal(job.state, SL_JOURNAL_RUNNING);
    sl_journal_job_free(&job);
}

static inline void finish(const char *id, sl_journal_state end, uint64_t bytes, int64_t now_s)
{
    T_OK(sl_journal_finish(j, id, end, end == SL_JOURNAL_COMPLETED ? SL_OK : SL_SYS, "why", bytes,
                           now_s, &err));
}

/* A job that ended at this time. */
static inline void ended(const char *id, uint64_t bytes, int64_t now_s)
{
    submit(id, "", 99);
    claims(id);
    finish(id, SL_JOURNAL_COMPLETED, bytes, now_s);
}

static inline void has_state(const char *id, sl_journal_state want)
{
    sl_journal_job job;
    T_OK(sl_journal_get(j, id, NULL, &job, &err));
    if (job.state != want)
        fail_msg("job %s is %s, want %s", id, sl_journal_state_name(job.state),
                 sl_journal_state_name(want));
    sl_journal_job_free(&job);
}

/* Somebody's own sqlite3 at the file. */
static inline void sql_at(const char *file, const char *sql)
{
    sqlite3 *db;
    char *says = NULL;
    assert_int_equal(sqlite3_open(file, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    if (sqlite3_exec(db, sql, NULL, NULL, &says)) fail_msg("%s: %s", sql, says);
    sqlite3_close(db);
}

static inline int64_t number_at(const char *file, const char *sql)
{
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open_v2(file, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    int64_t n = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return n;
}

static inline char *contents(const char *file, size_t *bytes)
{
    FILE *f = fopen(file, "r");
    char *all = malloc(1 << 22);
    assert_non_null(f);
    *bytes = fread(all, 1, 1 << 22, f);
    fclose(f);
    return all;
}

static inline void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static inline void put(const char *file, long at, const char *bytes, size_t n)
{
    FILE *f = fopen(file, at < 0 ? "w" : "r+");
    assert_non_null(f);
    if (at > 0) assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

#define WITH_JOURNAL(test) cmocka_unit_test_setup_teardown(test, open_new, close_it)

#endif
