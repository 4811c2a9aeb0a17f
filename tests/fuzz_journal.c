/* fuzz_journal.c - any bytes as the journal's file, or any values as its rows: every function
 * answers, or refuses with one line.
 *
 * The first byte says which. 'S': the bytes are the file, as SQLite's files begin. 'P': three bytes
 * each are a place in a good file, and what stands there instead. Else rows follow, which another
 * program puts into the journal while it is open; a value is a byte for its kind, and what belongs
 * to it. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

#include "stages/serve/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void forget(void)
{
    static const char *const ENDS[] = {"", "-wal", "-shm", "-journal"};
    for (int i = 0; i < 4; i++) {
        char name[80];
        snprintf(name, sizeof name, "%s%s", path, ENDS[i]);
        unlink(name);
    }
}

static void begin(void)
{
    if (!*path) {
        /* in memory where there is some: the file is written often */
        snprintf(path, sizeof path, "%s/fuzz-journal-%d.db",
                 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", (int)getpid());
        atexit(forget);
    }
    forget();
}

/* ---- every function ---- */

static sl_code answers(sl_code rc, const sl_err *err)
{
    if (rc && (rc != err->code || !err->msg[0] || strchr(err->msg, '\n'))) abort();
    if (rc == SL_INTERNAL || rc == SL_NOMEM || (unsigned)rc >= SL_CODE_COUNT) abort();
    return rc;
}

static void check(const sl_journal_job *job)
{
    if (!*job->id || !memchr(job->id, 0, sizeof job->id) || strpbrk(job->id, "/\n") ||
        !job->request)
        abort();
    if (!memchr(job->owner, 0, sizeof job->owner) || !memchr(job->message, 0, sizeof job->message))
        abort();
    if ((unsigned)job->state >= SL_JOURNAL_STATE_COUNT || (unsigned)job->code >= SL_CODE_COUNT ||
        !(job->progress >= 0 && job->progress <= 1) || job->attempts < 0)
        abort();
}

static void read_all(sl_journal *j)
{
    sl_err err = {0};
    sl_journal_job jobs[4], job;
    sl_journal_counts counts;
    sl_journal_state before;
    char id[SL_JOURNAL_ID] = "a";
    int count;
    bool more;
    answers(sl_journal_count(j, &counts, &err), &err);
    for (int newest = 0; newest < 2; newest++)
        if (!answers(
                sl_journal_list(j, newest ? "o" : NULL, "", 4, newest, jobs, &count, &more, &err),
                &err))
            while (count) {
                check(&jobs[--count]);
                strcpy(id, jobs[count].id);
                sl_journal_job_free(&jobs[count]);
            }
    for (int i = 0; i < 2; i++, strcpy(id, "a")) {
        if (!answers(sl_journal_get(j, id, NULL, &job, &err), &err)) {
            check(&job);
            sl_journal_job_free(&job);
        }
        sl_journal_position(j, id);
        sl_journal_knows(j, id);
        answers(sl_journal_list(j, NULL, id, 1, true, jobs, &count, &more, &err), &err);
        while (count) sl_journal_job_free(&jobs[--count]);
    }
    for (int i = 0; i < 3 && !answers(sl_journal_claim(j, 5, &job, &err), &err); i++) {
        check(&job);
        answers(sl_journal_progress(j, job.id, 0.5, &err), &err);
        if (i) answers(sl_journal_release(j, job.id, &err), &err);
        else answers(sl_journal_finish(j, job.id, SL_JOURNAL_FAILED, SL_SYS, "", 1, 6, &err), &err);
        sl_journal_job_free(&job);
    }
    answers(sl_journal_cancel(j, id, NULL, 7, &before, &err), &err);
    answers(sl_journal_remove(j, id, NULL, 7, &err), &err);
    answers(sl_journal_expire(j, 1000, 10, 3, 8, id, &err), &err);
    answers(sl_journal_release_all(j, &count, &err), &err);
}

/* ---- good files, made once ---- */

/* The journal's table without its types, so that each column may hold anything; the order is that
 * of the values in the input. */
static const char TABLE[] =
    "DROP TABLE jobs; CREATE TABLE jobs (state, claimed, priority, progress, id, owner, key, "
    "created_s, started_s, ended_s, cancel_asked, attempts, code, message, bytes, request, "
    "seq INTEGER PRIMARY KEY, deaths)";
enum { COLUMNS = 17 };

typedef struct {
    uint8_t bytes[1 << 16];
    size_t used;
} image;

static void execute(const char *sql)
{
    sqlite3 *db;
    if (sqlite3_open(path, &db) || sqlite3_exec(db, sql, NULL, NULL, NULL)) abort();
    sqlite3_close(db);
}

static void add_jobs(sl_journal *j)
{
    for (int i = 0; i < 12; i++) {
        char same[SL_JOURNAL_ID];
        sl_journal_state before;
        sl_journal_job job = {.priority = i % 2, .request = "{}"};
        snprintf(job.id, sizeof job.id, "%c", 'a' + i);
        snprintf(job.owner, sizeof job.owner, "%s", i % 3 ? "o" : "");
        if (sl_journal_submit(j, &job, i % 4 ? "" : job.id, NULL, same, NULL)) abort();
        if (i % 4 == 3 && sl_journal_cancel(j, job.id, NULL, i, &before, NULL)) abort();
        if (i == 3 && sl_journal_remove(j, job.id, NULL, i, NULL)) abort();
    }
    read_all(j);
}

/* A journal of small pages: with jobs in all states, or with TABLE and nothing in it. */
static const image *good(bool with_jobs)
{
    static image images[2];
    image *im = &images[with_jobs];
    if (!im->used) {
        sl_journal *j = NULL;
        execute("PRAGMA page_size=512; VACUUM");
        if (sl_journal_open(&j, path, NULL)) abort();
        if (with_jobs) add_jobs(j);
        sl_journal_close(&j);
        if (!with_jobs) execute(TABLE);
        FILE *f = fopen(path, "r");
        if (!f) abort();
        im->used = fread(im->bytes, 1, sizeof im->bytes, f);
        fclose(f);
        forget();
    }
    return im;
}

static void write_file(const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "w");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) abort();
}

/* ---- rows ---- */

/* Bind one value; how many bytes it took. */
static size_t bind(sqlite3_stmt *q, int at, const uint8_t *data, size_t size)
{
    static const char *const WORDS[] = {"queued",    "running", "completed", "failed",
                                        "cancelled", "removed", "OK",        "SYS",
                                        "a",         "o",       "",          "b"};
    if (!size) {
        sqlite3_bind_int(q, at, 0);
        return 0;
    }
    const uint8_t kind = data[0];
    size_t n = 1;
    if (kind < 12) {
        sqlite3_bind_text(q, at, WORDS[kind], -1, SQLITE_STATIC);
    } else if (kind < 64) {
        sqlite3_bind_int(q, at, kind - 12);
    } else if (kind < 96 && size >= 9) {
        int64_t number;
        memcpy(&number, data + 1, 8);
        n += 8;
        sqlite3_bind_int64(q, at, number);
    } else if (kind < 128 && size >= 9) {
        double number;
        memcpy(&number, data + 1, 8);
        n += 8;
        sqlite3_bind_double(q, at, number);
    } else if (kind < 132) {
        sqlite3_bind_null(q, at);
    } else {
        size_t bytes = (size_t)(kind & 15) * (kind & 16 ? 40 : 1);
        if (bytes > size - 1) bytes = size - 1;
        n += bytes;
        if (kind & 32) sqlite3_bind_blob(q, at, data + 1, (int)bytes, SQLITE_TRANSIENT);
        else sqlite3_bind_text(q, at, (const char *)data + 1, (int)bytes, SQLITE_TRANSIENT);
    }
    return n;
}

static void rows(const uint8_t *data, size_t size)
{
    sl_journal *j = NULL;
    sl_err err = {0};
    sqlite3 *db;
    sqlite3_stmt *q;
    const image *empty = good(false);
    write_file(empty->bytes, empty->used);
    if (sl_journal_open(&j, path, &err) || sqlite3_open(path, &db)) abort();
    if (sqlite3_prepare_v2(
            db,
            "INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, "
            "?10, ?11, ?12, ?13, ?14, ?15, ?16, NULL, ?17)",
            -1, &q, NULL))
        abort();
    for (int n = 0; size && n < 20; n++) {
        for (int i = 1; i <= COLUMNS; i++) {
            size_t used = bind(q, i, data, size);
            data += used;
            size -= used;
        }
        sqlite3_step(q);
        sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    sqlite3_close(db);
    read_all(j);
    sl_journal_close(&j);
    if (answers(sl_journal_open(&j, path, &err), &err)) return;
    read_all(j);
    sl_journal_close(&j);
}

static void file(const uint8_t *data, size_t size)
{
    sl_journal *j = NULL;
    sl_err err = {0};
    write_file(data, size);
    if (answers(sl_journal_open(&j, path, &err), &err)) return;
    read_all(j);
    sl_journal_close(&j);
}

static void patched(const uint8_t *data, size_t size)
{
    image copy = *good(true);
    for (; size >= 3; size -= 3, data += 3)
        copy.bytes[(data[0] * 256u + data[1]) % copy.used] = data[2];
    file(copy.bytes, copy.used);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    begin();
    if (data[0] == 'P') patched(data + 1, size - 1);
    else if (data[0] == 'S') file(data, size);
    else rows(data + 1, size - 1);
    return 0;
}
