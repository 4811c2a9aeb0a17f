/* test_journal_file.c - the server's queue as a file: what is none, versions, threads, readers
 * beside writers, backups, a full disk, SIGKILL at any moment.
 * run: waits. takes: 10 s. limit: 240 s */
#include "tests/t_journal.h"

/* ---- files that are no journal ---- */

static void refused(sl_code want, const char *says)
{
    sl_journal_close(&j);
    T_CODE(sl_journal_open(&j, path, &err), want);
    assert_null(j);
    assert_null(strchr(err.msg, '\n'));
    T_SAYS(err.msg, "journal");
    T_SAYS(err.msg, says);
}

static void test_not_a_journal(void **state)
{
    static char noise[70000];
    uint64_t seed = 3;
    size_t before_bytes, after_bytes;
    (void)state;
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)(t_rand(&seed) * 127);
    sl_journal_close(&j);
    T_CODE(sl_journal_open(&j, "", &err), SL_ARG);
    put(path, -1, noise, sizeof noise);
    refused(SL_FORMAT, "not a database");
    put(path, -1, "hello", 5);
    refused(SL_FORMAT, "not a database");
    /* another program's is left as it was */
    unlink(path);
    sql_at(path, "CREATE TABLE jobs (id TEXT); INSERT INTO jobs VALUES ('x')");
    char *before = contents(path, &before_bytes);
    refused(SL_FORMAT, "another program's database: application 0, want 0x536c4a6e");
    sql_at(path, "PRAGMA application_id=7; PRAGMA user_version=1");
    refused(SL_FORMAT, "application 0x7, want");
    sql_at(path, "PRAGMA application_id=0; PRAGMA user_version=0");
    char *after = contents(path, &after_bytes);
    assert_int_equal(before_bytes, after_bytes);
    assert_memory_equal(before + 100, after + 100, before_bytes - 100); /* but counters */
    free(before);
    free(after);
    /* ours by name, and another schema */
    sql_at(path, "PRAGMA application_id=0x536c4a6e; PRAGMA user_version=2");
    refused(SL_FORMAT, "no such column");
    sql_at(path, "DROP TABLE jobs");
    refused(SL_FORMAT, "no such table: jobs");
    sql_at(path, "CREATE VIEW jobs AS WITH RECURSIVE c(id) AS (SELECT 1 UNION ALL SELECT id + 1 "
                 "FROM c) SELECT * FROM c");
    refused(SL_FORMAT, "");
    /* newer */
    unlink(path);
    T_OK(sl_journal_open(&j, path, &err));
    submit("a", "", 0);
    sl_journal_close(&j);
    sql_at(path, "PRAGMA user_version=7");
    refused(SL_FORMAT, "of version 7, want at most 2: a newer sluice wrote it");
    /* older: of a program that counted no deaths */
    sql_at(path, "ALTER TABLE jobs DROP COLUMN deaths; PRAGMA user_version=1");
    T_OK(sl_journal_open(&j, path, &err));
    has_state("a", SL_JOURNAL_QUEUED);
    assert_int_equal(number_at(path, "SELECT sum(deaths) FROM jobs"), 0);
    assert_int_equal(number_at(path, "PRAGMA user_version"), SL_JOURNAL_VERSION);
    /* empty ones are new: no bytes, or no tables */
    sl_journal_close(&j);
    unlink(path);
    put(path, -1, "", 0);
    T_OK(sl_journal_open(&j, path, &err));
    sl_journal_close(&j);
    unlink(path);
    sql_at(path, "PRAGMA journal_mode=WAL");
    T_OK(sl_journal_open(&j, path, &err));
    assert_int_equal(number_at(path, "PRAGMA user_version"), SL_JOURNAL_VERSION);
}

static void test_cannot_be_opened(void **state)
{
    char there[600];
    struct stat is;
    (void)state;
    sl_journal_close(&j);
    assert_int_equal(stat(path, &is), 0);
    assert_int_equal(is.st_mode & 0777, 0600);
    T_CODE(sl_journal_open(&j, dir, &err), SL_SYS);
    T_SAYS(err.msg, "Is a directory");
    snprintf(there, sizeof there, "%s/none/journal.db", dir);
    T_CODE(sl_journal_open(&j, there, &err), SL_SYS);
    T_SAYS(err.msg, "No such file");
    snprintf(there, sizeof there, "%s/fifo", dir);
    assert_int_equal(mkfifo(there, 0600), 0);
    T_CODE(sl_journal_open(&j, there, &err), SL_SYS);
    T_SAYS(err.msg, "no regular file");
    /* not ours to write: as another user, where this one may everything */
    assert_int_equal(chmod(dir, 0755), 0);
    assert_int_equal(chmod(path, 0444), 0);
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) {
        if (!geteuid() && setuid(65534)) _exit(3);
        sl_code rc = sl_journal_open(&j, path, &err);
        _exit(rc == SL_SYS && strstr(err.msg, "Permission denied") ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void test_damaged(void **state)
{
    static char ones[4096];
    char id[SL_JOURNAL_ID];
    size_t bytes;
    (void)state;
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 300; i++) {
        snprintf(id, sizeof id, "job%d", i);
        submit(id, "ann", i);
    }
    sl_journal_close(&j);
    char *whole = contents(path, &bytes);
    for (size_t page = 1; page < bytes / 4096; page += 3) { /* page 0 is the header's */
        put(path, -1, whole, bytes);
        put(path, (long)page * 4096, ones, sizeof ones);
        if (sl_journal_open(&j, path, &err) == SL_OK) fail_msg("page %zu: nobody noticed", page);
        assert_int_equal(err.code, SL_FORMAT);
        assert_null(strchr(err.msg, '\n'));
    }
    put(path, -1, whole, bytes / 2); /* cut off */
    refused(SL_FORMAT, "");
    put(path, -1, whole, bytes);
    T_OK(sl_journal_open(&j, path, &err));
    free(whole);
}

/* Rows that no journal writes, while it is open, and at the next open. */
static void test_bad_rows(void **state)
{
    static const struct {
        const char *set, *says;
    } CASES[] = {
        {"state = 'done'", "job a: state is \"done\", want a word of the schema"},
        {"state = 'queued' || char(0)", "job a: state is \"queued\", want a text of at most"},
        {"priority = 2147483648", "job a: priority is \"2147483648\", want a number from -21"},
        {"created_s = -1", "job a: created_s is \"-1\", want a number from 0"},
        {"started_s = -1", "job a: started_s is"},
        {"ended_s = -1", "job a: ended_s is"},
        {"progress = 1.5", "job a: progress is \"1.5\", want a number from 0 to 1"},
        {"progress = -9e999", "job a: progress is"},
        {"cancel_asked = 2", "job a: cancel_asked is \"2\", want a number from 0 to 1"},
        {"attempts = -1", "job a: attempts is"},
        {"attempts = 9999999999", "job a: attempts is"},
        {"code = 'EVIL'", "job a: code is \"EVIL\", want a word"},
        {"code = 'a' || char(10) || 'b'", "job a: code is \"a?b\", want a word"},
        {"bytes = 1125899906842625", "job a: bytes is"},
        {"message = hex(zeroblob(256))", "job a: message is"},
        {"message = 'a' || char(0) || 'b'", "job a: message is \"a\", want a text of at most 511"},
        {"owner = hex(zeroblob(32))", "job a: owner is"},
        {"request = 'a' || char(0)", "job a: request is"},
        {"request = hex(zeroblob(2097152))", "job a: request is"},
    };
    sl_journal_job jobs[2], got;
    int count;
    bool more;
    (void)state;
    submit("b", "", 0);
    submit("a", "", 0);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char sql[200];
        snprintf(sql, sizeof sql,
                 "CREATE TABLE old AS SELECT * FROM jobs; UPDATE jobs SET %s WHERE "
                 "id = 'a'",
                 CASES[i].set);
        sql_at(path, sql);
        T_CODE(sl_journal_get(j, "a", NULL, &got, &err), SL_FORMAT);
        T_SAYS(err.msg, "journal: ");
        T_SAYS(err.msg, CASES[i].says);
        assert_null(strchr(err.msg, '\n'));
        T_CODE(sl_journal_list(j, NULL, "", 2, false, jobs, &count, &more, &err), SL_FORMAT);
        assert_true(!count && !more);
        T_OK(sl_journal_get(j, "b", NULL, &got, &err)); /* others do not suffer */
        sl_journal_job_free(&got);
        refused(SL_FORMAT, CASES[i].says);
        sql_at(path, "DELETE FROM jobs; INSERT INTO jobs SELECT * FROM old; DROP TABLE old");
        T_OK(sl_journal_open(&j, path, &err));
    }
    /* without a name */
    sql_at(path, "UPDATE jobs SET id = '../etc' WHERE id = 'a'");
    T_CODE(sl_journal_list(j, NULL, "", 2, false, jobs, &count, &more, &err), SL_FORMAT);
    T_SAYS(err.msg, "row 2: id is \"../etc\", want an id");
    refused(SL_FORMAT, "row 2: id is");
    sql_at(path, "UPDATE jobs SET id = 'a', claimed = 9223372036854775807 WHERE seq = 2");
    refused(SL_FORMAT, "a job has claim 9223372036854775807, want at most");
    /* claims are rolled back, too */
    sql_at(path, "UPDATE jobs SET claimed = 0, priority = 9 WHERE seq = 2");
    T_OK(sl_journal_open(&j, path, &err));
    sql_at(path, "UPDATE jobs SET attempts = 2147483647 WHERE seq = 2");
    T_CODE(sl_journal_claim(j, 1, &got, &err), SL_FORMAT);
    T_SAYS(err.msg, "job a: attempts is \"2147483648\"");
    assert_int_equal(number_at(path, "SELECT attempts FROM jobs WHERE seq = 2"), 2147483647);
    sql_at(path, "UPDATE jobs SET attempts = 0 WHERE seq = 2");
    claims("a");
    /* somebody ends the job that is first in the order that is remembered */
    submit("c", "", -1);
    assert_int_equal(sl_journal_position(j, "b"), 0);
    sql_at(path, "UPDATE jobs SET state = 'failed' WHERE id = 'b'");
    assert_int_equal(sl_journal_position(j, "b"), -1);
    claims("c");
}

/* ---- versions ---- */

static const char *const THREE[] = {"CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (7)",
                                    "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 8",
                                    "ALTER TABLE t ADD COLUMN c INTEGER DEFAULT 9"};
static const char *const BROKEN[] = {"", "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 8",
                                     "ALTER TABLE none ADD COLUMN c"};
static const char *const SUM[] = {"SELECT a FROM t", "SELECT a + b FROM t",
                                  "SELECT a + b + c FROM t"};

static sl_code sum_of(const char *const *steps, int version, int64_t *sum)
{
    const sl_db_schema schema = {.name = "numbers",
                                 .application = 99,
                                 .version = version,
                                 .steps = steps,
                                 .sql = &SUM[version - 1],
                                 .statements = 1,
                                 .value_bytes = 1000};
    sl_db *db;
    sl_code rc = sl_db_open(&db, path, &schema, &err);
    if (rc) return rc;
    sl_db_look(db);
    rc = sl_db_number(db, 0, sum, &err);
    rc = sl_db_leave(db, rc, &err);
    sl_db_close(&db);
    return rc;
}

static void test_migrations(void **state)
{
    int64_t sum;
    (void)state;
    sl_journal_close(&j);
    unlink(path);
    T_OK(sum_of(THREE, 1, &sum));
    assert_int_equal(sum, 7);
    T_CODE(sum_of(BROKEN, 3, &sum), SL_FORMAT); /* in its second step: the first is undone */
    T_SAYS(err.msg, "numbers ");
    T_SAYS(err.msg, "no such table: none");
    assert_int_equal(number_at(path, "PRAGMA user_version"), 1);
    T_OK(sum_of(THREE, 1, &sum));
    assert_int_equal(sum, 7);
    T_OK(sum_of(THREE, 3, &sum)); /* two steps at once */
    assert_int_equal(sum, 24);
    T_OK(sum_of(THREE, 3, &sum));
    assert_int_equal(sum, 24);
    T_CODE(sum_of(THREE, 2, &sum), SL_FORMAT);
    T_SAYS(err.msg, "of version 3, want at most 2");
    unlink(path);
    T_OK(sum_of(THREE, 2, &sum));
    assert_int_equal(sum, 15);
}

/* ---- threads ---- */

enum { EACH = 500 };
static atomic_int claimed_of[2 * EACH], left;

static void *submits(void *arg)
{
    const int from = *(int *)arg;
    for (int i = from; i < from + EACH; i++) {
        char id[SL_JOURNAL_ID], same[SL_JOURNAL_ID];
        snprintf(id, sizeof id, "%d", i);
        sl_journal_job job = named(id, i % 2 ? "ann" : "bob", i % 3);
        if (sl_journal_submit(j, &job, "", NULL, same, NULL)) abort();
        sl_journal_position(j, id);
    }
    return NULL;
}

static void *claims_all(void *arg)
{
    (void)arg;
    while (atomic_load(&left) > 0) {
        sl_journal_job job;
        sl_code rc = sl_journal_claim(j, 1, &job, NULL);
        if (rc == SL_BUSY) {
            usleep(500);
            continue;
        }
        if (rc || sl_journal_finish(j, job.id, SL_JOURNAL_COMPLETED, SL_OK, "", 1, 2, NULL))
            abort();
        atomic_fetch_add(&claimed_of[atoi(job.id)], 1);
        atomic_fetch_sub(&left, 1);
        sl_journal_job_free(&job);
    }
    return NULL;
}

static void test_threads(void **state)
{
    pthread_t t[4];
    int from[2] = {0, EACH};
    sl_journal_counts c;
    (void)state;
    atomic_store(&left, 2 * EACH);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, submits, &from[i]), 0);
        assert_int_equal(pthread_create(&t[2 + i], NULL, claims_all, NULL), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    for (int i = 0; i < 2 * EACH; i++) assert_int_equal(atomic_load(&claimed_of[i]), 1);
    T_OK(sl_journal_count(j, &c, &err));
    assert_int_equal(c.jobs[SL_JOURNAL_COMPLETED], 2 * EACH);
    assert_int_equal(c.bytes, 2 * EACH);
}

/* ---- readers, and changes that go to the disk together ---- */

static atomic_int began;

static void *submits_one(void *arg)
{
    char same[SL_JOURNAL_ID];
    sl_journal_job job = named(arg, "ann", 0);
    atomic_fetch_add(&began, 1);
    return (void *)(intptr_t)sl_journal_submit(j, &job, "", NULL, same, NULL);
}

/* A submission waits for somebody's write lock, and with it the journal's: who asks does not. */
static void test_readers_do_not_wait(void **state)
{
    sl_journal_job jobs[2], got;
    sl_journal_counts counts;
    sqlite3 *other;
    pthread_t t;
    void *rc;
    int count;
    bool more;
    (void)state;
    submit("a", "ann", 0);
    submit("b", "bob", 1);
    assert_int_equal(sqlite3_open(path, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    atomic_store(&began, 0);
    assert_int_equal(pthread_create(&t, NULL, submits_one, "c"), 0);
    while (!atomic_load(&began)) usleep(1000);
    usleep(20000); /* it is in the journal, most likely */
    T_OK(sl_journal_get(j, "a", "ann", &got, &err));
    sl_journal_job_free(&got);
    T_OK(sl_journal_list(j, NULL, "a", 2, false, jobs, &count, &more, &err));
    assert_true(count == 1 && !strcmp(jobs[0].id, "b"));
    sl_journal_job_free(&jobs[0]);
    assert_int_equal(sl_journal_position(j, "a"), 1);
    assert_int_equal(sl_journal_position(j, "b"), 0);
    T_OK(sl_journal_count(j, &counts, &err));
    assert_int_equal(counts.jobs[SL_JOURNAL_QUEUED], 2);
    assert_true(sl_journal_knows(j, "a"));
    assert_false(sl_journal_knows(j, "c"));
    /* had one of them waited, the submission would have given up by now */
    assert_int_equal(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(other);
    pthread_join(t, &rc);
    assert_int_equal((intptr_t)rc, SL_OK);
    assert_int_equal(sl_journal_position(j, "c"), 2);
}

static const char *const COUNTER[] = {
    "CREATE TABLE t (a INTEGER PRIMARY KEY CHECK (a < 100)) STRICT"};
static const char *const COUNT_SQL[] = {"INSERT INTO t VALUES (?1)", "SELECT count(*) FROM t",
                                        "INSERT INTO t VALUES (?1 + 1)",
                                        "INSERT OR ROLLBACK INTO t VALUES (?1)"};
static const sl_db_schema COUNTER_SCHEMA = {.name = "numbers",
                                            .application = 98,
                                            .version = 1,
                                            .steps = COUNTER,
                                            .sql = COUNT_SQL,
                                            .statements = 4,
                                            .value_bytes = 1000};

typedef struct {
    sl_db *db;
    int64_t number;
    sl_code rc;
    sl_err err;
} adding;

/* Two rows, the second of which may be there already; then the first is not there either. */
static void add_two(adding *a)
{
    a->rc = sl_db_run(a->db, 0, NULL, &a->err, "i", a->number);
    if (!a->rc) a->rc = sl_db_run(a->db, 2, NULL, &a->err, "i", a->number);
    a->rc = sl_db_leave(a->db, a->rc, &a->err);
}

static void *adds_two(void *arg)
{
    adding *a = arg;
    atomic_fetch_add(&began, 1);
    a->rc = sl_db_enter(a->db, true, &a->err);
    if (!a->rc) add_two(a);
    return NULL;
}

/* Commits in a write-ahead log: frames that tell the size of the database. */
static int commits_of(const char *file, long from, long *end)
{
    size_t bytes;
    char *all = contents(file, &bytes);
    const unsigned char *u = (unsigned char *)all;
    assert_true(bytes >= 32);
    const size_t frame =
        24 + ((size_t)u[8] << 24 | (size_t)u[9] << 16 | (size_t)u[10] << 8 | u[11]);
    int n = 0;
    *end = from ? from : 32;
    for (; (size_t)*end + frame <= bytes; *end += (long)frame) {
        const unsigned char *f = u + *end;
        n += (f[4] | f[5] | f[6] | f[7]) != 0;
    }
    free(all);
    return n;
}

/* Changes that begin while another goes on share its commit; one that fails is undone alone. */
static void test_together(void **state)
{
    enum { N = 8 };
    adding a[N + 1] = {0};
    pthread_t t[N];
    sl_db *db, *read;
    char file[400], wal[410];
    int64_t count;
    long end;
    (void)state;
    snprintf(file, sizeof file, "%s/numbers.db", dir);
    snprintf(wal, sizeof wal, "%s-wal", file);
    T_OK(sl_db_open(&db, file, &COUNTER_SCHEMA, &err));
    T_OK(sl_db_open_reader(&read, db, &err));
    int before = commits_of(wal, 0, &end);
    a[N] = (adding){.db = db, .number = 0};
    T_OK(sl_db_enter(db, true, &err));
    atomic_store(&began, 0);
    for (int i = 0; i < N; i++) { /* those of odd i have number 10, or 99, and fail, but for one */
        a[i] = (adding){.db = db, .number = i == 7 ? 99 : i % 2 ? 10 : 20 + 2 * i};
        assert_int_equal(pthread_create(&t[i], NULL, adds_two, &a[i]), 0);
    }
    while (atomic_load(&began) < N) usleep(1000);
    usleep(20000); /* they wait to begin, most likely */
    sl_db_look(read);
    T_OK(sl_db_leave(read, sl_db_number(read, 1, &count, &err), &err));
    assert_int_equal(count, 0);
    add_two(&a[N]);
    T_OK(a[N].rc);
    sl_db_look(read); /* what has returned is seen, by others too */
    T_OK(sl_db_leave(read, sl_db_number(read, 1, &count, &err), &err));
    assert_true(count >= 2);
    int failed = 0;
    for (int i = 0; i < N; i++) {
        pthread_join(t[i], NULL);
        if (i % 2 == 0) T_OK(a[i].rc);
        else failed += a[i].rc == SL_ARG;
    }
    assert_int_equal(failed, 3);
    assert_int_equal(number_at(file, "SELECT count(*) FROM t"), 2 * (N + 1 - 3));
    assert_int_equal(number_at(file, "SELECT count(*) FROM t WHERE a = 99"), 0);
    const int commits = commits_of(wal, end, &end);
    print_message("%d changes, %d commits (%d before)\n", N + 1 - 3, commits, before);
    assert_true(commits >= 1 && commits <= N + 1);
    sl_db_close(&read);
    sl_db_close(&db);
}

static void *undoes_all(void *arg)
{
    adding *a = arg;
    atomic_fetch_add(&began, 1);
    a->rc = sl_db_enter(a->db, true, &a->err);
    if (a->rc) return NULL;
    a->rc = sl_db_run(a->db, 3, NULL, &a->err, "i", a->number);
    a->rc = sl_db_leave(a->db, a->rc, &a->err);
    return NULL;
}

/* SQLite may undo a whole transaction because of one change: all that were in it are told. */
static void test_together_undone(void **state)
{
    char file[400];
    adding a = {0}, b = {0};
    sl_db *db;
    pthread_t t;
    (void)state;
    snprintf(file, sizeof file, "%s/numbers.db", dir);
    T_OK(sl_db_open(&db, file, &COUNTER_SCHEMA, &err));
    a = (adding){.db = db, .number = 1};
    b = (adding){.db = db, .number = 100};
    T_OK(sl_db_enter(db, true, &err));
    atomic_store(&began, 0);
    assert_int_equal(pthread_create(&t, NULL, undoes_all, &b), 0);
    while (!atomic_load(&began)) usleep(1000);
    usleep(20000); /* it waits to begin, most likely */
    add_two(&a);
    pthread_join(t, NULL);
    const bool shared = a.rc;
    T_CODE(b.rc, SL_ARG);
    T_CODE(a.rc, shared ? SL_ARG : SL_OK);
    if (shared) assert_string_equal(a.err.msg, b.err.msg);
    assert_int_equal(number_at(file, "SELECT count(*) FROM t"), shared ? 0 : 2);
    a = (adding){.db = db, .number = 1};
    adds_two(&a);
    T_CODE(a.rc, shared ? SL_OK : SL_ARG);
    assert_int_equal(number_at(file, "SELECT count(*) FROM t"), 2);
    sl_db_close(&db);
}

/* The disk is full for all that share a commit: none of them has happened. */
static void test_together_full(void **state)
{
    char wal[320];
    pthread_t t[4];
    const char *const ids[] = {"a", "b", "c", "d"};
    struct stat is;
    int submitted = 0;
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    snprintf(wal, sizeof wal, "%s-wal", path);
    for (int round = 0; round < 10; round++) {
        sqlite3 *other;
        assert_int_equal(sqlite3_open(path, &other), SQLITE_OK);
        assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
        assert_int_equal(stat(wal, &is), 0);
        atomic_store(&began, 0);
        for (int i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&t[i], NULL, submits_one, (void *)ids[i]), 0);
        while (atomic_load(&began) < 4) usleep(1000);
        limit_files((rlim_t)is.st_size + (rlim_t)(round * 4000));
        assert_int_equal(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(other);
        for (int i = 0; i < 4; i++) {
            void *rc;
            pthread_join(t[i], &rc);
            /* what was acknowledged is there, and only that; SL_ARG: an earlier round's */
            if ((intptr_t)rc == SL_OK) submitted++;
            else if ((intptr_t)rc == SL_SYS) assert_false(sl_journal_knows(j, ids[i]));
            else assert_int_equal((intptr_t)rc, SL_ARG);
        }
        limit_files(RLIM_INFINITY);
        assert_int_equal(number_at(path, "SELECT count(*) FROM jobs"), submitted);
    }
    assert_int_equal(submitted, 4);
}

/* ---- backup ---- */

static atomic_int acknowledged, stop;

static void *writes(void *arg)
{
    (void)arg;
    for (int i = 0; !atomic_load(&stop); i++) {
        char id[SL_JOURNAL_ID], same[SL_JOURNAL_ID];
        snprintf(id, sizeof id, "w%d", i);
        sl_journal_job job = named(id, "ann", i % 3);
        if (sl_journal_submit(j, &job, "", NULL, same, NULL)) abort();
        atomic_fetch_add(&acknowledged, 1);
    }
    return NULL;
}

static void test_backup(void **state)
{
    char copy[600], old[700];
    pthread_t t;
    int64_t last = 0;
    (void)state;
    snprintf(copy, sizeof copy, "%s/copy.db", dir);
    /* of a process that was killed long ago */
    const struct timespec long_ago[2] = {{1000000000, 0}, {1000000000, 0}};
    snprintf(old, sizeof old, "%s.tmp-00000001-99999999-0", copy);
    put(old, -1, "x", 1);
    assert_int_equal(utimensat(AT_FDCWD, old, long_ago, 0), 0);
    assert_int_equal(pthread_create(&t, NULL, writes, NULL), 0);
    for (int i = 0; i < 8; i++) {
        const int least = atomic_load(&acknowledged);
        T_OK(sl_journal_backup(j, copy, &err)); /* over the one before */
        int64_t rows = number_at(copy, "SELECT count(*) FROM jobs");
        assert_true(rows >= least && rows >= last);
        last = rows;
        assert_int_equal(number_at(copy, "SELECT count(*) FROM pragma_quick_check"), 1);
    }
    atomic_store(&stop, 1);
    pthread_join(t, NULL);
    assert_int_not_equal(access(old, F_OK), 0);
    T_OK(sl_journal_backup(j, copy, &err));
    /* one file, that is a journal as this one is */
    char wal[700];
    snprintf(wal, sizeof wal, "%s-wal", copy);
    assert_int_not_equal(access(wal, F_OK), 0);
    sl_journal *second;
    sl_journal_counts a, b;
    T_OK(sl_journal_open(&second, copy, &err));
    T_OK(sl_journal_count(second, &b, &err));
    T_OK(sl_journal_count(j, &a, &err));
    assert_memory_equal(&a, &b, sizeof a);
    sl_journal_close(&second);

    T_CODE(sl_journal_backup(j, path, &err), SL_ARG);
    T_SAYS(err.msg, "is the database itself");
    snprintf(copy, sizeof copy, "%s/none/copy.db", dir);
    T_CODE(sl_journal_backup(j, copy, &err), SL_SYS);
    T_CODE(sl_journal_backup(j, dir, &err), SL_SYS);
    T_CODE(sl_journal_backup(j, "", &err), SL_ARG);
}

/* ---- a full disk ---- */

static void test_full(void **state)
{
    char same[SL_JOURNAL_ID], id[SL_JOURNAL_ID], wal[320], copy[320];
    sl_journal_state before;
    sl_journal_job job;
    struct stat is;
    int done = 0, failed = 0;
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    snprintf(wal, sizeof wal, "%s-wal", path);
    snprintf(copy, sizeof copy, "%s/copy.db", dir);
    for (int i = 0; i < 100; i++) {
        snprintf(id, sizeof id, "%d", done);
        if (i % 10 == 5) { /* full from here on, and there is room again five jobs later */
            assert_int_equal(stat(wal, &is), 0);
            limit_files((rlim_t)is.st_size + (rlim_t)(i * 60));
        }
        if (i % 10 == 0) limit_files(RLIM_INFINITY);
        job = named(id, "ann", 0);
        sl_code rc = sl_journal_submit(j, &job, "", NULL, same, &err);
        if (rc) {
            T_CODE(rc, SL_SYS);
            T_SAYS(err.msg, "journal: " SL_JOURNAL_DISK_FULL);
            failed++;
            assert_true(i % 10 >= 5);
            assert_false(sl_journal_knows(j, id));
            T_CODE(sl_journal_cancel(j, "0", NULL, 1, &before, &err), SL_SYS);
        } else {
            done++;
        }
        for (int k = 0; k < done; k++) {
            snprintf(id, sizeof id, "%d", k);
            has_state(id, SL_JOURNAL_QUEUED);
        }
    }
    assert_true(failed > 10);
    limit_files(20000);
    T_CODE(sl_journal_backup(j, copy, &err), SL_SYS);
    T_SAYS(err.msg, SL_JOURNAL_DISK_FULL);
    assert_int_not_equal(access(copy, F_OK), 0);
    limit_files(RLIM_INFINITY);
    reopen();
    T_OK(sl_journal_list(j, NULL, "", 1, true, &job, &(int){0}, &(bool){0}, &err));
    snprintf(id, sizeof id, "%d", done - 1);
    assert_string_equal(job.id, id);
    sl_journal_job_free(&job);
    assert_int_equal(number_at(path, "SELECT count(*) FROM jobs"), done);
    claims("0");

    /* no room for a new one, and then there is */
    sl_journal_close(&j);
    unlink(path);
    for (rlim_t bytes = 0; bytes <= 40000; bytes += 4096) {
        limit_files(bytes);
        T_CODE(sl_journal_open(&j, path, &err), SL_SYS);
        limit_files(RLIM_INFINITY);
        T_SAYS(err.msg, SL_JOURNAL_DISK_FULL);
        assert_null(j);
    }
    T_OK(sl_journal_open(&j, path, &err));
    submit("a", "", 0);
}

/* ---- SIGKILL ---- */

/* What the child did, told when it was acknowledged: a letter, the number of the job, a space. */
static void told(int fd, char what, int number)
{
    char line[32];
    int n = snprintf(line, sizeof line, "%c%d ", what, number);
    if (write(fd, line, (size_t)n) != n) _exit(9);
}

static void work(int fd, int first, unsigned seed)
{
    int count;
    if (sl_journal_open(&j, path, &err) || sl_journal_release_all(j, &count, &err)) _exit(2);
    told(fd, 'L', 0);
    for (int n = first;; n++) {
        char id[SL_JOURNAL_ID], same[SL_JOURNAL_ID];
        snprintf(id, sizeof id, "%d", n);
        sl_journal_job job = named(id, n % 2 ? "ann" : "bob", 0);
        if (sl_journal_submit(j, &job, id, NULL, same, &err) || *same) _exit(3);
        told(fd, 'S', n);
        if (rand_r(&seed) % 3 == 0) continue;
        if (sl_journal_claim(j, n, &job, &err)) _exit(4);
        const int k = atoi(job.id);
        told(fd, 'C', k);
        if (sl_journal_progress(j, job.id, 0.5, &err)) _exit(5);
        const bool completed = k % 3;
        if (sl_journal_finish(j, job.id, completed ? SL_JOURNAL_COMPLETED : SL_JOURNAL_FAILED,
                              completed ? SL_OK : SL_SYS, "", (uint64_t)k, n, &err))
            _exit(6);
        told(fd, 'F', k);
        if (sl_journal_finish(j, job.id, SL_JOURNAL_FAILED, SL_SYS, "", 0, n, NULL) != SL_GONE)
            _exit(7);
        if (k % 4 == 0) {
            if (sl_journal_remove(j, job.id, NULL, n, &err)) _exit(8);
            told(fd, 'R', k);
        }
        sl_journal_job_free(&job);
    }
}

enum { JOBS = 100000 };
/* How far each is: 0 unknown, 1 queued, 2 running, 3 ended, 4 removed. */
static unsigned char far[JOBS], attempts[JOBS];

static int hear(const char *text, int *last)
{
    int words = 0;
    for (const char *c = text; *c; c = strchr(c, ' ') + 1, words++) {
        const int k = atoi(c + 1);
        assert_true(k < JOBS);
        if (*c == 'L') {
            for (int i = 0; i < JOBS; i++)
                if (far[i] == 2) far[i] = 1;
        } else if (*c == 'S') {
            assert_int_equal(far[k], 0);
            far[k] = 1;
            *last = k;
        } else if (*c == 'C') {
            assert_true(far[k] == 1);
            far[k] = 2;
            attempts[k]++;
        } else if (*c == 'F') {
            assert_int_equal(far[k], 2); /* once */
            far[k] = 3;
        } else if (*c == 'R') {
            assert_int_equal(far[k], 3);
            far[k] = 4;
        }
    }
    return words;
}

/* What the journal says must be what was acknowledged, but for one call that was on its way;
 * releasing: which may be the release of what ran when the process before was killed. */
static int check_killed(bool releasing, int *last)
{
    int ahead = 0, seen = 0;
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(
        sqlite3_prepare_v2(db, "SELECT id, state, attempts, bytes FROM jobs", -1, &q, NULL),
        SQLITE_OK);
    while (sqlite3_step(q) == SQLITE_ROW) {
        const int k = sqlite3_column_int(q, 0);
        const char *state = (const char *)sqlite3_column_text(q, 1);
        const char *end = k % 3 ? "completed" : "failed";
        const unsigned char now = !strcmp(state, "queued")    ? 1
                                  : !strcmp(state, "running") ? 2
                                  : !strcmp(state, end)       ? 3
                                  : !strcmp(state, "removed") ? 4
                                                              : 0;
        if (releasing && now == 1 && far[k] == 2) far[k] = 1;
        if (now < far[k] || now > far[k] + 1)
            fail_msg("job %d is %s, acknowledged was %d", k, state, far[k]);
        if (now >= 3) assert_int_equal(sqlite3_column_int(q, 3), k);
        ahead += now - far[k];
        if (now == 2 && far[k] == 1) attempts[k]++;
        if (k > *last) *last = k;
        assert_int_equal(sqlite3_column_int(q, 2), attempts[k]);
        far[k] = now;
        seen++;
    }
    sqlite3_finalize(q);
    sqlite3_close(db);
    assert_true(ahead <= 1);
    for (int k = 0; k < JOBS; k++) seen -= far[k] > 0;
    assert_int_equal(seen, 0);
    return ahead;
}

static void test_killed(void **state)
{
    static char text[1 << 20];
    unsigned seed = 11;
    int last = -1, words = 0, ahead = 0;
    (void)state;
    sl_journal_close(&j);
    unlink(path);
    memset(far, 0, sizeof far);
    for (int round = 0; round < 24; round++) {
        int pipes[2], status;
        size_t used = 0;
        assert_int_equal(pipe(pipes), 0);
        fflush(NULL);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            close(pipes[0]);
            work(pipes[1], last + 1, (unsigned)round);
        }
        close(pipes[1]);
        /* at first while it opens, then after so many bytes of its tale, then a moment later */
        const size_t enough = round < 6 ? 0 : (size_t)(rand_r(&seed) % 1500);
        while (used < enough) {
            ssize_t n = read(pipes[0], text + used, sizeof text - 1 - used);
            if (n <= 0) fail_msg("the child ended by itself");
            used += (size_t)n;
        }
        usleep(rand_r(&seed) % (round < 6 ? 15000 : 4000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status)) fail_msg("the child ended with %d", WEXITSTATUS(status));
        for (ssize_t n; (n = read(pipes[0], text + used, sizeof text - 1 - used)) > 0;)
            used += (size_t)n;
        close(pipes[0]);
        text[used] = 0;
        words += hear(text, &last);
        T_OK(sl_journal_open(&j, path, &err)); /* with quick_check */
        sl_journal_close(&j);
        ahead += check_killed(used == 0, &last);
    }
    print_message("%d calls acknowledged, %d more done\n", words, ahead);
    assert_true(words > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_JOURNAL(test_not_a_journal),
        WITH_JOURNAL(test_cannot_be_opened),
        WITH_JOURNAL(test_damaged),
        WITH_JOURNAL(test_bad_rows),
        WITH_JOURNAL(test_migrations),
        WITH_JOURNAL(test_threads),
        WITH_JOURNAL(test_readers_do_not_wait),
        WITH_JOURNAL(test_together),
        WITH_JOURNAL(test_together_undone),
        WITH_JOURNAL(test_together_full),
        WITH_JOURNAL(test_backup),
        WITH_JOURNAL(test_full),
        WITH_JOURNAL(test_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
