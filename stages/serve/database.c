/* database.c - an SQLite database of one program.
 *
 * A change that ends while others wait to begin does not commit: it becomes a MEMBER of the open
 * transaction, gives the lock away and waits. The next change goes on in the same transaction,
 * behind a savepoint; the last one, behind which nobody waits, commits, and tells all members. Each
 * thread is in it once, so it does end.
 *
 *   thread 1   enter BEGIN, change, leave: member ................... told
 *   thread 2         (lock)                enter SAVEPOINT, change, leave: COMMIT, tell
 */
#include "stages/serve/database.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/path.h"
#include "common/temporary.h"

#define OTHERS_MS 5000 /* how long somebody else's sqlite3 may hold the database */

typedef struct member {
    struct member *next;
    sl_code rc; /* of the commit */
    sl_err err;
    bool told;
} member;

struct sl_db {
    const sl_db_schema *schema;
    char path[SL_PATH];
    bool reader;
    atomic_int coming;    /* threads that wait for the lock, to change something */
    pthread_mutex_t lock; /* of everything below, to the blank line */
    sqlite3 *db;
    sqlite3_stmt **q; /* [statements] */
    bool synced;      /* whether a commit waits for the disk */
    bool looking;     /* the lock is held to read */
    member *members;  /* of the open transaction; NULL: none is open between two changes */

    pthread_mutex_t news_lock; /* of what members are told */
    pthread_cond_t news;
};

/* ---- errors ---- */

static void one_line(sl_err *err)
{
    if (!err) return;
    for (char *c = err->msg; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?';
}

static bool is_full(int basic, int cause)
{
    return basic == SQLITE_FULL || ((basic == SQLITE_IOERR || basic == SQLITE_CANTOPEN) &&
                                    (cause == ENOSPC || cause == EDQUOT || cause == EFBIG));
}

/* What SQLite says of a call that ended with rc. A failed COMMIT does not tell its cause: errno has
 * it, if it was 0 before the call. */
static sl_code fail(sqlite3 *db, int rc, sl_err *err)
{
    const int number = errno;
    const int basic = rc & 0xff, told = sqlite3_system_errno(db), cause = told ? told : number;
    const char *says = sqlite3_errmsg(db);
    sl_code code = SL_SYS;
    if (is_full(basic, cause)) {
        sl_fail(err, code, SL_DB_FULL ": %s", says);
        one_line(err);
        return code;
    }
    switch (basic) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        sl_fail(err, code, "another program has held it for %d ms: %s", OTHERS_MS, says);
        break;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        if (cause) sl_fail_errno(err, cause, "%s", says);
        else sl_fail(err, code, "%s", says);
        break;
    case SQLITE_NOMEM: code = sl_fail(err, SL_NOMEM, "%s", says); break;
    case SQLITE_CONSTRAINT: code = sl_fail(err, SL_ARG, "%s", says); break;
    case SQLITE_ERROR: /* SQL is right for our schema: it is another one */
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_TOOBIG:
    case SQLITE_MISMATCH:
        code = sl_fail(err, SL_FORMAT, "damaged, or another program's: %s", says);
        break;
    default: sl_fail(err, code, "%s", says);
    }
    one_line(err);
    return code;
}

static sl_code execute(sqlite3 *db, const char *sql, sl_err *err)
{
    errno = 0;
    int rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? SL_OK : fail(db, rc, err);
}

/* ---- open ---- */

/* Make the file, if there is none: its owner's alone, and errors in the system's own words. */
static sl_code make_file(const char *path, sl_err *err)
{
    struct stat is;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0) return sl_fail_errno(err, errno, "cannot be opened to be written");
    const int rc = fstat(fd, &is);
    close(fd);
    if (rc || !S_ISREG(is.st_mode)) return sl_fail(err, SL_SYS, "no regular file");
    return SL_OK;
}

/* Nothing that a foreign file brings along may run, or be endless. */
static sl_code guard(sqlite3 *db, const sl_db_schema *schema, sl_err *err)
{
    sqlite3_busy_timeout(db, OTHERS_MS);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, schema->value_bytes + 65536);
    sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_VIEW, 0, NULL);
    return execute(db, "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON", err);
}

static sl_code first_row(sqlite3 *db, const char *sql, sqlite3_stmt **q, sl_err *err)
{
    int rc = sqlite3_prepare_v2(db, sql, -1, q, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_step(*q);
    return rc == SQLITE_ROW ? SL_OK : fail(db, rc, err);
}

/* The pragma must answer with this word; else it is an error of this code. */
static sl_code must_say(sqlite3 *db, const char *pragma, const char *want, sl_code code,
                        sl_err *err)
{
    sqlite3_stmt *q = NULL;
    sl_code rc = first_row(db, pragma, &q, err);
    const char *found = rc ? NULL : (const char *)sqlite3_column_text(q, 0);
    if (!rc && (!found || strcmp(found, want))) {
        rc = sl_fail(err, code, "%s: \"%.200s\", want %s", pragma, found ? found : "", want);
        one_line(err);
    }
    sqlite3_finalize(q);
    return rc;
}

/* Before anything is written: whose database is it, and which version? An empty one is 0. */
static sl_code identify(sqlite3 *db, const sl_db_schema *schema, int *version, sl_err *err)
{
    sqlite3_stmt *q = NULL;
    sl_code rc = first_row(db,
                           "SELECT application_id, user_version, (SELECT count(*) FROM "
                           "sqlite_schema) FROM pragma_application_id, pragma_user_version",
                           &q, err);
    if (!rc) {
        const int application = sqlite3_column_int(q, 0), tables = sqlite3_column_int(q, 2);
        *version = sqlite3_column_int(q, 1);
        const bool is_new = !application && !*version && !tables;
        if (!is_new && (application != schema->application || *version < 1))
            rc = sl_fail(err, SL_FORMAT, "another program's database: application %#x, want %#x",
                         (unsigned)application, (unsigned)schema->application);
        else if (*version > schema->version)
            rc = sl_fail(err, SL_FORMAT, "of version %d, want at most %d: a newer sluice wrote it",
                         *version, schema->version);
    }
    sqlite3_finalize(q);
    return rc;
}

/* All steps in one transaction: a process that is killed in between leaves the old version. */
static sl_code migrate(sqlite3 *db, const sl_db_schema *schema, int version, sl_err *err)
{
    char pragmas[96];
    if (version == schema->version) return SL_OK;
    sl_code rc = execute(db, "BEGIN IMMEDIATE", err);
    for (int v = version; !rc && v < schema->version; v++) rc = execute(db, schema->steps[v], err);
    snprintf(pragmas, sizeof pragmas, "PRAGMA application_id=%d; PRAGMA user_version=%d",
             schema->application, schema->version);
    if (!rc) rc = execute(db, pragmas, err);
    return rc ? rc : execute(db, "COMMIT", err); /* else closing rolls it back */
}

static sl_code prepare(sl_db *db, sl_err *err)
{
    const sl_db_schema *schema = db->schema;
    for (int i = 0; i < schema->statements; i++) {
        int rc = sqlite3_prepare_v3(db->db, schema->sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                                    &db->q[i], NULL);
        if (rc != SQLITE_OK) return fail(db->db, rc, err);
    }
    return SL_OK;
}

static sl_code connect_to(const char *path, int flags, sqlite3 **db, const sl_db_schema *schema,
                          sl_err *err)
{
    int rc = sqlite3_open_v2(path, db, flags | SQLITE_OPEN_NOMUTEX, NULL);
    return rc == SQLITE_OK ? guard(*db, schema, err) : fail(*db, rc, err);
}

static sl_code open_file(sl_db *db, sl_err *err)
{
    const sl_db_schema *schema = db->schema;
    int version = 0;
    sl_code rc;
    if ((rc = make_file(db->path, err)) ||
        (rc = connect_to(db->path, SQLITE_OPEN_READWRITE, &db->db, schema, err)) ||
        (rc = identify(db->db, schema, &version, err)) ||
        (rc = must_say(db->db, "PRAGMA quick_check(1)", "ok", SL_FORMAT, err)) ||
        (rc = must_say(db->db, "PRAGMA journal_mode=WAL", "wal", SL_SYS, err)) ||
        (rc = execute(db->db, "PRAGMA synchronous=FULL; PRAGMA secure_delete=ON", err)) ||
        (rc = must_say(db->db, "PRAGMA journal_size_limit=16777216", "16777216", SL_SYS, err)) ||
        (rc = migrate(db->db, schema, version, err)))
        return rc;
    db->synced = true;
    return prepare(db, err);
}

static sl_db *new_db(const char *path, const sl_db_schema *schema)
{
    sl_db *db = calloc(1, sizeof *db);
    if (db) db->q = calloc((size_t)schema->statements, sizeof(sqlite3_stmt *));
    if (!db || !db->q) {
        free(db);
        return NULL;
    }
    db->schema = schema;
    pthread_mutex_init(&db->lock, NULL);
    pthread_mutex_init(&db->news_lock, NULL);
    pthread_cond_init(&db->news, NULL);
    strcpy(db->path, path);
    return db;
}

/* What was to be opened is *out, or closed. */
static sl_code opened(sl_db **out, sl_db *db, sl_code rc, sl_err *err)
{
    if (rc) {
        sl_context(err, rc, "%s %s", db->schema->name, db->path);
        sl_db_close(&db);
    }
    *out = db;
    return rc;
}

sl_code sl_db_open(sl_db **out, const char *path, const sl_db_schema *schema, sl_err *err)
{
    *out = NULL;
    if (!*path || strlen(path) >= SL_PATH)
        return sl_fail(err, SL_ARG, "%s: a path of %zu bytes, want 1 to %d", schema->name,
                       strlen(path), SL_PATH - 1);
    sl_db *db = new_db(path, schema);
    if (!db) return sl_fail(err, SL_NOMEM, "%s: no memory", schema->name);
    return opened(out, db, open_file(db, err), err);
}

sl_code sl_db_open_reader(sl_db **out, const sl_db *of, sl_err *err)
{
    *out = NULL;
    sl_db *db = new_db(of->path, of->schema);
    if (!db) return sl_fail(err, SL_NOMEM, "%s: no memory", of->schema->name);
    db->reader = true;
    sl_code rc = connect_to(db->path, SQLITE_OPEN_READONLY, &db->db, db->schema, err);
    return opened(out, db, rc ? rc : prepare(db, err), err);
}

void sl_db_close(sl_db **db)
{
    sl_db *d = *db;
    if (!d) return;
    for (int i = 0; i < d->schema->statements; i++) sqlite3_finalize(d->q[i]);
    sqlite3_close(d->db);
    pthread_cond_destroy(&d->news);
    pthread_mutex_destroy(&d->news_lock);
    pthread_mutex_destroy(&d->lock);
    free(d->q);
    free(d);
    *db = NULL;
}

/* ---- the lock, and transactions ---- */

void sl_db_look(sl_db *db)
{
    pthread_mutex_lock(&db->lock);
    db->looking = true;
    /* several statements see the same; without it each would see what is there */
    if (db->reader) execute(db->db, "BEGIN", NULL);
}

static sl_code begin(sl_db *db, bool synced, sl_err *err)
{
    sl_code rc = SL_OK;
    if (db->members) return execute(db->db, "SAVEPOINT change", err);
    if (db->synced != synced)
        rc = execute(db->db, synced ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL", err);
    if (rc) return rc;
    db->synced = synced;
    return execute(db->db, "BEGIN IMMEDIATE", err);
}

sl_code sl_db_enter(sl_db *db, bool synced, sl_err *err)
{
    atomic_fetch_add(&db->coming, 1);
    pthread_mutex_lock(&db->lock);
    atomic_fetch_sub(&db->coming, 1);
    sl_code rc = begin(db, synced, err);
    return rc ? sl_db_leave(db, rc, err) : SL_OK;
}

static bool is_open(const sl_db *db)
{
    return !sqlite3_get_autocommit(db->db);
}

/* The transaction has ended, as rc and err say. */
static void tell_members(sl_db *db, sl_code rc, const sl_err *err)
{
    pthread_mutex_lock(&db->news_lock);
    for (member *m = db->members; m; m = m->next) {
        m->rc = rc;
        m->err = *err;
        m->told = true;
    }
    db->members = NULL;
    pthread_cond_broadcast(&db->news);
    pthread_mutex_unlock(&db->news_lock);
}

/* A change has failed. The others stay, unless SQLite has undone all of the transaction already, as
 * it does when the disk is full. */
static void undo(sl_db *db, sl_code rc, const sl_err *err)
{
    if (db->members && is_open(db) && !execute(db->db, "ROLLBACK TO change; RELEASE change", NULL))
        return;
    if (is_open(db)) execute(db->db, "ROLLBACK", NULL);
    tell_members(db, rc, err);
}

static sl_code commit(sl_db *db, sl_err *err)
{
    sl_code rc = execute(db->db, "COMMIT", err);
    if (is_open(db)) execute(db->db, "ROLLBACK", NULL);
    tell_members(db, rc, err);
    return rc;
}

/* The lock goes to the change that waits for it, and so does the commit. */
static sl_code wait_as_member(sl_db *db, sl_err *err)
{
    member me = {.next = db->members};
    /* it stays until it is told, below */
    // cppcheck-suppress autoVariables
    db->members = &me;
    pthread_mutex_lock(&db->news_lock);
    pthread_mutex_unlock(&db->lock);
    while (!me.told) pthread_cond_wait(&db->news, &db->news_lock);
    pthread_mutex_unlock(&db->news_lock);
    *err = me.err;
    return me.rc;
}

/* The end of a change: how the transaction went. The lock is not held any more. */
static sl_code end_change(sl_db *db, sl_code rc, sl_err *err)
{
    sl_code end = SL_OK;
    if (!rc && !is_open(db)) rc = sl_fail(err, SL_SYS, "a change was undone");
    if (!rc && db->members) rc = execute(db->db, "RELEASE change", err);
    if (rc) undo(db, rc, err);
    if (is_open(db)) {
        sl_err why = {0};
        /* a change that failed waits too, or many of them could put the end off */
        if (db->synced && atomic_load(&db->coming)) {
            end = wait_as_member(db, &why);
            if (!rc && end) *err = why;
            return rc ? rc : end;
        }
        end = commit(db, &why);
        if (!rc && end) *err = why;
    }
    pthread_mutex_unlock(&db->lock);
    return rc ? rc : end;
}

sl_code sl_db_leave(sl_db *db, sl_code rc, sl_err *err)
{
    sl_err own = {0};
    if (db->looking) {
        db->looking = false;
        if (db->reader && is_open(db)) execute(db->db, "COMMIT", NULL);
        pthread_mutex_unlock(&db->lock);
    } else rc = end_change(db, rc, err ? err : &own);
    return rc == SL_SYS || rc == SL_FORMAT ? sl_context(err, rc, "%s", db->schema->name) : rc;
}

/* ---- statements ---- */

static sl_code ask(sl_db *db, int which, bool *row, sl_err *err, const char *kinds, va_list args)
{
    sqlite3_stmt *q = db->q[which];
    int rc = SQLITE_OK;
    for (int i = 0; kinds[i] && rc == SQLITE_OK; i++) {
        if (kinds[i] == 't')
            rc = sqlite3_bind_text(q, i + 1, va_arg(args, const char *), -1, SQLITE_STATIC);
        else if (kinds[i] == 'i') rc = sqlite3_bind_int64(q, i + 1, va_arg(args, int64_t));
        else rc = sqlite3_bind_double(q, i + 1, va_arg(args, double));
    }
    errno = 0;
    if (rc == SQLITE_OK) rc = sqlite3_step(q);
    *row = rc == SQLITE_ROW;
    if (rc == SQLITE_ROW || rc == SQLITE_DONE) return SL_OK;
    sl_code code = fail(db->db, rc, err);
    sqlite3_reset(q);
    return code;
}

sl_code sl_db_ask(sl_db *db, int which, bool *row, sl_err *err, const char *kinds, ...)
{
    va_list args;
    va_start(args, kinds);
    sl_code rc = ask(db, which, row, err, kinds, args);
    va_end(args);
    return rc;
}

sl_code sl_db_next(sl_db *db, int which, bool *row, sl_err *err)
{
    return sl_db_ask(db, which, row, err, "");
}

void sl_db_reset(sl_db *db, int which)
{
    sqlite3_reset(db->q[which]);
}

sl_code sl_db_run(sl_db *db, int which, int *changed, sl_err *err, const char *kinds, ...)
{
    bool row;
    va_list args;
    va_start(args, kinds);
    sl_code rc = ask(db, which, &row, err, kinds, args);
    va_end(args);
    if (changed) *changed = rc ? 0 : sqlite3_changes(db->db);
    sl_db_reset(db, which);
    return rc;
}

sl_code sl_db_number(sl_db *db, int which, int64_t *out, sl_err *err)
{
    bool row;
    *out = 0;
    sl_code rc = sl_db_ask(db, which, &row, err, "");
    if (rc) return rc;
    sl_row r = sl_row_of(db, which, err);
    *out = sl_row_number(&r, 0, INT64_MAX);
    sl_db_reset(db, which);
    return r.rc;
}

/* ---- rows ---- */

sl_row sl_row_of(sl_db *db, int which, sl_err *err)
{
    return (sl_row){.q = db->q[which], .err = err};
}

/* The value of the column before this one. */
void sl_row_refuse(sl_row *r, const char *want)
{
    const int column = r->column - 1;
    if (r->rc) return;
    const char *found = (const char *)sqlite3_column_text(r->q, column);
    r->rc = sl_fail(r->err, SL_FORMAT, "%s%s%s is \"%.40s\", want %s", r->who, *r->who ? ": " : "",
                    sqlite3_column_name(r->q, column), found ? found : "", want);
    one_line(r->err);
}

int64_t sl_row_number(sl_row *r, int64_t low, int64_t high)
{
    const int column = r->column++;
    const int64_t n = sqlite3_column_int64(r->q, column);
    if (!r->rc && sqlite3_column_type(r->q, column) == SQLITE_INTEGER && n >= low && n <= high)
        return n;
    char want[80];
    snprintf(want, sizeof want, "a number from %lld to %lld", (long long)low, (long long)high);
    sl_row_refuse(r, want);
    return 0;
}

double sl_row_fraction(sl_row *r)
{
    const int column = r->column++;
    const double x = sqlite3_column_double(r->q, column);
    if (!r->rc && sqlite3_column_type(r->q, column) == SQLITE_FLOAT && x >= 0 && x <= 1) return x;
    sl_row_refuse(r, "a number from 0 to 1");
    return 0;
}

const char *sl_row_text(sl_row *r, int size)
{
    const int column = r->column++;
    if (!r->rc && sqlite3_column_type(r->q, column) == SQLITE_TEXT) {
        const char *t = (const char *)sqlite3_column_text(r->q, column);
        const int bytes = sqlite3_column_bytes(r->q, column);
        if (t && bytes < size && strlen(t) == (size_t)bytes) return t;
    }
    char want[80];
    snprintf(want, sizeof want, "a text of at most %d bytes, without NULs", size - 1);
    sl_row_refuse(r, want);
    return "";
}

void sl_row_copy(sl_row *r, char *to, int size)
{
    const char *t = sl_row_text(r, size);
    memcpy(to, t, strlen(t) + 1);
}

int sl_row_word(sl_row *r, const char *const *words, int count)
{
    const char *t = sl_row_text(r, 64);
    for (int i = 0; i < count; i++)
        if (!strcmp(t, words[i])) return i;
    sl_row_refuse(r, "a word of the schema");
    return 0;
}

/* ---- a copy ---- */

/* What is in the database now, to a file that is not there yet. */
static sl_code copy_to(const sl_db *from, const char *to, sl_err *err)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *q = NULL;
    sl_code rc = connect_to(from->path, SQLITE_OPEN_READONLY, &db, from->schema, err);
    if (!rc) {
        int got = sqlite3_prepare_v2(db, "VACUUM INTO ?1", -1, &q, NULL);
        if (got == SQLITE_OK) got = sqlite3_bind_text(q, 1, to, -1, SQLITE_STATIC);
        if (got == SQLITE_OK) got = sqlite3_step(q);
        if (got != SQLITE_DONE) rc = fail(db, got, err);
    }
    sqlite3_finalize(q);
    sqlite3_close(db);
    if (rc) return rc;
    rc = connect_to(to, SQLITE_OPEN_READONLY, &db, from->schema, err);
    if (!rc) rc = must_say(db, "PRAGMA quick_check(1)", "ok", SL_SYS, err);
    sqlite3_close(db);
    return rc;
}

static sl_code sync_path(const char *path, int flags, sl_err *err)
{
    const int fd = open(path, flags | O_CLOEXEC);
    const int bad = fd < 0 || fsync(fd) ? errno : 0;
    if (fd >= 0) close(fd);
    return bad ? sl_fail_errno(err, bad, "cannot sync %s", path) : SL_OK;
}

sl_code sl_db_copy(const sl_db *db, const char *path, sl_err *err)
{
    char *temporary = NULL, folder[SL_PATH];
    int held;
    struct stat own, old;
    if (!*path || strlen(path) >= SL_PATH)
        return sl_fail(err, SL_ARG, "%s: a copy's path of %zu bytes, want 1 to %d",
                       db->schema->name, strlen(path), SL_PATH - 1);
    if (!stat(path, &old) && !stat(db->path, &own) && own.st_ino == old.st_ino &&
        own.st_dev == old.st_dev)
        return sl_fail(err, SL_ARG, "%s: %s is the database itself, want another file for a copy",
                       db->schema->name, path);
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    sl_temporary_sweep(path);
    sl_code rc = sl_temporary_make(&temporary, &held, path, err);
    if (!rc) rc = copy_to(db, temporary, err);
    if (!rc) rc = sync_path(temporary, O_RDWR, err);
    if (!rc && rename(temporary, path)) rc = sl_fail_errno(err, errno, "cannot rename to %s", path);
    if (rc && temporary) unlink(temporary);
    if (held >= 0) close(held);
    free(temporary);
    if (!rc) rc = sync_path(folder, O_RDONLY | O_DIRECTORY, err);
    return rc ? sl_context(err, rc, "%s: copy to %s", db->schema->name, path) : SL_OK;
}
