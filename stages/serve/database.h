/* database.h - an SQLite database of one program: its schema and versions, statements that are
 * prepared once, changes that are on the disk when they return, and rows that are checked.
 *
 * A sl_db is one connection with one lock. A function of the owner takes the lock (sl_db_look to
 * read, sl_db_enter to change), uses statements, and ends with sl_db_leave, which commits, or rolls
 * back what failed, and unlocks. Everything else here wants the lock held, but open, close and
 * copy.
 *
 * Threads that change something at the same time wait for the disk together: their changes share a
 * transaction, and each returns when it is committed. A change that fails is undone alone; if the
 * commit fails, all of them have.
 *
 * The lock is held while the disk is waited for. Who only reads does so on a connection of its own
 * (sl_db_open_reader), as the copy does: readers of a write-ahead log wait for no writer.
 *
 * Messages are one line, whatever they quote. Codes: SL_SYS the file cannot be opened, read or
 * written (a full disk, quota or limit: the message has SL_DB_FULL in it); SL_FORMAT damaged, or
 * not as it should be; SL_ARG a row that must be unique is there already; SL_NOMEM. */
#ifndef SL_DATABASE_H
#define SL_DATABASE_H

#include <stdbool.h>
#include <stdint.h>

#include <sqlite3.h>

#include "common/err.h"

#define SL_DB_FULL "disk full"

typedef struct {
    const char *name;         /* as messages call the database */
    int application, version; /* in the file's header */
    const char *const *steps; /* [version]: SQL that makes version v + 1 of the schema out of v */
    const char *const *sql;   /* [statements] */
    int statements;
    int value_bytes; /* most bytes of a row's value; in a foreign file it may be anything */
} sl_db_schema;

typedef struct sl_db sl_db;

/* Open or make the database, check that it is whole (quick_check), migrate an older schema in one
 * transaction, prepare the statements. A file of another program or a newer version is left as it
 * is. The schema is borrowed. *out is the caller's to close. */
sl_code sl_db_open(sl_db **out, const char *path, const sl_db_schema *schema, sl_err *err);
/* Another connection to a database that is open: it sees what was committed when the look began,
 * and is closed first. */
sl_code sl_db_open_reader(sl_db **out, const sl_db *of, sl_err *err);
void sl_db_close(sl_db **db); /* NULL is fine */

/* ---- the lock, and transactions ---- */

void sl_db_look(sl_db *db);
/* To change something, all of it or nothing. On an error there is nothing to leave. synced: leave
 * waits for the disk. */
sl_code sl_db_enter(sl_db *db, bool synced, sl_err *err);
/* The end of what began with look or enter; rc: how it went, which is returned, unless the commit
 * fails. Messages of SL_SYS and SL_FORMAT get the database's name before them. */
sl_code sl_db_leave(sl_db *db, sl_code rc, sl_err *err);

/* ---- statements: `which` is an index into schema->sql ---- */

/* Bind the arguments, one for each letter of `kinds`: t text (borrowed until the reset; NULL is
 * fine), i int64_t, r double; take the first step. *row: there is one, to be read before the next
 * step. */
sl_code sl_db_ask(sl_db *db, int which, bool *row, sl_err *err, const char *kinds, ...);
sl_code sl_db_next(sl_db *db, int which, bool *row, sl_err *err); /* the next row */
void sl_db_reset(sl_db *db, int which);                           /* after the last row one wants */
/* A statement without rows. *changed: how many rows it changed; NULL is fine. */
sl_code sl_db_run(sl_db *db, int which, int *changed, sl_err *err, const char *kinds, ...);
/* The number, 0 or more, that is the one row of a statement without arguments. */
sl_code sl_db_number(sl_db *db, int which, int64_t *out, sl_err *err);

/* ---- rows ---- */

/* A row is read column by column, each with what it must be. The first that is not so sets rc to
 * SL_FORMAT; it, and all after it, are read as 0 and "". */
typedef struct {
    sqlite3_stmt *q;
    int column;
    sl_code rc;
    sl_err *err;
    char who[64]; /* whose row it is, for messages: the caller's to write */
} sl_row;

sl_row sl_row_of(sl_db *db, int which, sl_err *err);
int64_t sl_row_number(sl_row *r, int64_t low, int64_t high);
double sl_row_fraction(sl_row *r); /* 0 to 1 */
/* A text of less than `size` bytes, without NULs; it is SQLite's until the next step. */
const char *sl_row_text(sl_row *r, int size);
void sl_row_copy(sl_row *r, char *to, int size);
/* The index of a text in words[count]. */
int sl_row_word(sl_row *r, const char *const *words, int count);
/* What was just read is not as it should be, for a reason that the caller knows. */
void sl_row_refuse(sl_row *r, const char *want);

/* ---- a copy ---- */

/* A copy of the database as it is now, one file without a write-ahead log, made while others go on
 * (VACUUM INTO); replaces `path` when it is whole (quick_check) and on the disk.
 * Errors: as above; SL_ARG `path` is the database itself, or too long. */
sl_code sl_db_copy(const sl_db *db, const char *path, sl_err *err);

#endif
