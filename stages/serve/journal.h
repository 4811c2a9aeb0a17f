/* journal.h - the queue that survives: every job that was accepted, until it ends and is forgotten.
 *
 * This is the interface that the server works from; journal_body.h is how a body stands behind it:
 * one on SQLite (WAL), of one machine, and one on Redis, which many share. What is ACKNOWLEDGED
 * (every call here that changes something, but progress) is on the disk when the call returns, as
 * far as fsync goes (and Redis's settings, of the other); progress may be lost with the power, and
 * then the job shows an older one. A call that failed has changed nothing, and may be made again.
 *
 *   submit --> QUEUED --claim--> RUNNING --finish--> COMPLETED, FAILED, CANCELLED
 *                 |    <-release--  |                      |
 *                 '---- cancel ---->' (cancel_asked)       '--remove, expire--> REMOVED, forgotten
 *
 * A job ends once: finish takes a job that is RUNNING, cancel one that is QUEUED, and every later
 * end is refused with SL_GONE. REMOVED rows stay for a while, so that a DELETE said twice is no
 * error; nobody lists them.
 *
 * Who is claimed next: the largest priority first; within it, released jobs, then owners in turn
 * (stages/serve/fair.h).
 *
 * Everything that is read back is checked: a row that no journal has written is SL_FORMAT, and the
 * message names the job. A full disk (or quota, or limit of a file's size) is SL_SYS with
 * SL_JOURNAL_DISK_FULL in its message; SIGXFSZ should be ignored. An id that no job can have is one
 * that no job has.
 *
 * Any thread may call every function. Who only reads (get, list, position, count, knows) does not
 * wait for changes that are on their way to the disk, and sees every change that has returned; such
 * changes of several threads go to the disk together. Times are seconds since 1970, given by the
 * caller. */
#ifndef SL_JOURNAL_H
#define SL_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define SL_JOURNAL_ID 48             /* bytes of a job's id, its NUL included */
#define SL_JOURNAL_OWNER 64          /* bytes of an owner's name, its NUL included */
#define SL_JOURNAL_KEY 256           /* bytes of a client's key, its NUL included */
#define SL_JOURNAL_TEXT 512          /* bytes of a message, its NUL included */
#define SL_JOURNAL_REQUEST (4 << 20) /* bytes of a request, its NUL included */
#define SL_JOURNAL_SERVER 64         /* bytes of a server's name, its NUL included */
#define SL_JOURNAL_LIVE 128          /* bytes of what is told of a running job, likewise */
#define SL_JOURNAL_FILE 256          /* bytes of a file's name, and of its version, likewise */
#define SL_JOURNAL_CHANGES 16        /* files of a job that change at once, at most */
#define SL_JOURNAL_BYTES (1ll << 50) /* most bytes of a job's folder */
#define SL_JOURNAL_VERSION 2         /* of the schema that this program writes, on SQLite */
#define SL_JOURNAL_NEEDS 6144        /* bytes of what a job needs or a server offers, likewise */
#define SL_JOURNAL_SAYS 4096         /* bytes of what a server tells of itself, likewise */
#define SL_JOURNAL_PEERS 1000        /* servers that are told of at a time */
#define SL_JOURNAL_WAITING 20        /* jobs that wait, likewise */
#define SL_JOURNAL_ALONE 2           /* deaths after which a job runs alone */
#define SL_JOURNAL_DISK_FULL "disk full"

/* NAME, name in the database: it stays as it is. */
#define SL_JOURNAL_STATES(X)                                                                       \
    X(QUEUED, "queued")                                                                            \
    X(RUNNING, "running")                                                                          \
    X(COMPLETED, "completed")                                                                      \
    X(FAILED, "failed")                                                                            \
    X(CANCELLED, "cancelled")                                                                      \
    X(REMOVED, "removed")

typedef enum {
#define X(NAME, name) SL_JOURNAL_##NAME,
    SL_JOURNAL_STATES(X)
#undef X
        SL_JOURNAL_STATE_COUNT
} sl_journal_state;

const char *sl_journal_state_name(sl_journal_state state);

typedef struct {
    char id[SL_JOURNAL_ID];       /* letters, digits, - _ and, but first, a dot */
    char owner[SL_JOURNAL_OWNER]; /* name of the token that it came with; "": the machine's own */
    sl_journal_state state;
    int priority;                          /* larger goes first */
    int64_t created_s, started_s, ended_s; /* 0: not yet; started_s: the first claim */
    double progress;                       /* 0 to 1; never falls */
    bool cancel_asked;                     /* while it was RUNNING */
    int attempts;                          /* how often it was claimed */
    sl_code code;                          /* of FAILED and CANCELLED */
    char message[SL_JOURNAL_TEXT];         /* likewise */
    uint64_t bytes;                        /* of its folder once it has ended, for the quota */
    int deaths; /* how often its server died while it ran, since a step of it was kept */
    /* Of a queue that many servers share (else "", 0 and NULL): */
    char server[SL_JOURNAL_SERVER]; /* while it is RUNNING: who runs it */
    char live[SL_JOURNAL_LIVE];     /* likewise: what that one tells of it (sl_journal_show) */
    int64_t fence;                  /* number of its newest claim, of all claims: it grows */
    int64_t since_s;                /* while it is RUNNING: its newest claim */
    char waits[200]; /* while it is QUEUED: why no server that is up takes it; "": one does */
    char *needs;     /* sl_journal_print_needs; NULL or "": any server can. Owned as request is */
    char *files;     /* "NAME VERSION BYTES\n" for each file of it that others may have; owned as
                  * request is */

    char *request; /* JSON text of what was asked for, which the journal does not look into.
                    * malloc'd; submit borrows it, every function that fills a job gives the caller
                    * its own */
} sl_journal_job;

bool sl_journal_is_id(const char *id);         /* can a job be called so? */
void sl_journal_job_free(sl_journal_job *job); /* zeroes it; a zeroed job is fine */

typedef struct sl_journal sl_journal;

/* Open or make the database, migrate an older schema, check that it is whole (quick_check, and each
 * row). Another server may not have it open (it holds the state folder's lock), nor this process a
 * second time; a backup may be made of it by anybody's sqlite3. A file that is no journal of this
 * version or an older one is left as it is. *out is the caller's to close. Errors: SL_SYS cannot be
 * opened, read or written; SL_FORMAT damaged, no journal at all, or of a newer version (found,
 * wanted). */
sl_code sl_journal_open(sl_journal **out, const char *path, sl_err *err);
void sl_journal_close(sl_journal **j); /* NULL is fine */

/* ---- jobs come ---- */

typedef struct {
    int queued;   /* most QUEUED jobs; 0: no limit */
    int of_owner; /* most QUEUED jobs of one owner; 0: no limit */
} sl_journal_limits;

/* A new QUEUED job: id, owner, priority, created_s, request are read. key: the client's own name
 * for the job ("" none): if this owner has used it for a job that is not forgotten (it may be
 * REMOVED), nothing is added and *same is that job's id; else *same is "". limits NULL: none.
 * Errors: SL_BUSY the queue is full (message: how many, the limit); SL_ARG the id is there already,
 * or a text is too long or not one; SL_SYS. */
sl_code sl_journal_submit(sl_journal *j, const sl_journal_job *job, const char *key,
                          const sl_journal_limits *limits, char same[SL_JOURNAL_ID], sl_err *err);

/* ---- jobs run ---- */

/* The job whose turn it is becomes RUNNING; *out is the caller's to free. cancel_asked may be set,
 * if the job was released after that. Errors: SL_BUSY none is queued; SL_SYS. */
sl_code sl_journal_claim(sl_journal *j, int64_t now_s, sl_journal_job *out, sl_err *err);
/* Not lost, but not to be run on here: RUNNING becomes QUEUED, before all others of its priority
 * (started_s is set). SL_GONE: it is not RUNNING. */
sl_code sl_journal_release(sl_journal *j, const char *id, sl_err *err);
/* At a start of the server: all RUNNING jobs are released, for the one before it died; the death is
 * counted to each, and may be one too many (sl_journal_retries). *count how many. */
sl_code sl_journal_release_all(sl_journal *j, int *count, sl_err *err);
/* How often a job is tried again whose server died, or was silent for too long, while it ran, and
 * no step of it was kept between; after that it ends, FAILED with SL_GONE. 0, as it is at first:
 * without an end. A job with SL_JOURNAL_ALONE deaths is claimed only by a handle that runs nothing
 * else, and then runs alone until a step is kept: whoever was beside the one that kills its servers
 * is found to be innocent. */
void sl_journal_retries(sl_journal *j, int most);
/* A hand-over or a state of a RUNNING job is kept: its deaths are 0 again. Of a queue that servers
 * share, sl_journal_file does that. */
sl_code sl_journal_kept(sl_journal *j, const char *id, sl_err *err);
/* The job has got so far. A smaller number than before, or a job that is not RUNNING, changes
 * nothing; more than 1 is 1. Errors: SL_ARG not a number. */
sl_code sl_journal_progress(sl_journal *j, const char *id, double progress, sl_err *err);
/* Likewise, and what others are to be told of it: a text without line breaks. */
sl_code sl_journal_show(sl_journal *j, const char *id, double progress, const char *live,
                        sl_err *err);
/* RUNNING ends as COMPLETED (its progress is 1 then), FAILED or CANCELLED. The message is cut to
 * SL_JOURNAL_TEXT, between two characters of UTF-8; NULL is "". Errors: SL_GONE it is not RUNNING;
 * SL_ARG another end, no code, too many bytes. */
sl_code sl_journal_finish(sl_journal *j, const char *id, sl_journal_state end, sl_code code,
                          const char *message, uint64_t bytes, int64_t now_s, sl_err *err);

/* ---- what people ask ---- */

/* owner NULL: anybody's job. Errors of all with an id: SL_GONE there is no such job, or it is
 * another owner's, or REMOVED. */
sl_code sl_journal_get(sl_journal *j, const char *id, const char *owner, sl_journal_job *out,
                       sl_err *err);
/* QUEUED becomes CANCELLED, RUNNING gets cancel_asked, an ended job stays as it is. *before: the
 * state that it had. */
sl_code sl_journal_cancel(sl_journal *j, const char *id, const char *owner, int64_t now_s,
                          sl_journal_state *before, sl_err *err);
/* An ended job becomes REMOVED: its request and message are deleted. A job that is REMOVED already:
 * SL_OK. Errors: SL_BUSY it has not ended (cancel it first); SL_GONE. */
sl_code sl_journal_remove(sl_journal *j, const char *id, const char *owner, int64_t now_s,
                          sl_err *err);

/* Jobs in the order of submission. after: the id that the list begins behind, "" for the beginning;
 * it may have been REMOVED meanwhile. limit at least 1; newest_first as it says. jobs[limit] get
 * the jobs, *count how many, *more whether there are others behind them. The caller frees the jobs.
 * Errors: SL_GONE no job of this owner is called `after`, or it is forgotten. */
sl_code sl_journal_list(sl_journal *j, const char *owner, const char *after, int limit,
                        bool newest_first, sl_journal_job *jobs, int *count, bool *more,
                        sl_err *err);
/* How many jobs will be claimed before this one; -1: it is not QUEUED (or the journal cannot be
 * read). The order is remembered between changes of the queue: asking often costs the look-up of
 * the id and a search in an array. */
int sl_journal_position(sl_journal *j, const char *id);

typedef struct {
    int64_t jobs[SL_JOURNAL_STATE_COUNT]; /* in each state now */
    int64_t oldest_queued_s;              /* its created_s; 0: none is queued */
    uint64_t bytes;                       /* of all folders of ended jobs */
    /* Of a queue that many servers share: */
    int64_t servers;  /* that were heard of within a lease */
    int64_t taken;    /* jobs that went back to the queue because their server was silent */
    int64_t fenced;   /* changes that were refused because the job was another server's by then */
    int64_t given_up; /* jobs that were tried often enough (sl_journal_retries) */
    int64_t stuck;    /* QUEUED jobs that no server which is up takes */
    char why[200];    /* one of them waits */
} sl_journal_counts;

sl_code sl_journal_count(sl_journal *j, sl_journal_counts *out, sl_err *err);

/* ---- jobs go ---- */

/* Who is to be removed next: the ended job that ended longest ago, if it ended before `before_s`,
 * or if all folders of ended jobs together have more than `quota` bytes (0: no limit). Its row is
 * REMOVED when this returns, and its folder is the caller's to remove. SL_BUSY: nobody is due.
 * Rows that are REMOVED since before `forget_s` are deleted on the way. */
sl_code sl_journal_expire(sl_journal *j, int64_t before_s, uint64_t quota, int64_t forget_s,
                          int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err);
/* Is there a row of this id that is not REMOVED? A folder without one is a leftover. Where the
 * journal cannot be read: true. */
bool sl_journal_knows(sl_journal *j, const char *id);

/* A copy of the journal as it is now, made while others go on; replaces `path` when it is whole and
 * on the disk. Errors: SL_SYS; SL_ARG `path` is the journal itself, or the queue has no file. */
sl_code sl_journal_backup(sl_journal *j, const char *path, sl_err *err);

/* ---- a queue that many servers share: Redis ---- */

typedef struct {
    const char *url;   /* stages/serve/redis.h */
    const char *name;  /* this server's: an id, and no other server's */
    const char *model; /* all servers of a queue serve the same */
    const char *store; /* a word for where its jobs' files are, the same for all; NULL: "" */
    bool shows;        /* it hears of all jobs' states and steps; else of work alone */
    int lease_ms; /* a server that is silent for longer loses its jobs to others; 100 or more */
} sl_journal_shared;

/* Open the queue, which is made where there is none. Everything above holds, and:
 * - What is acknowledged is in Redis; what that is worth says sl_journal_promise.
 * - A claim is a HOLD of this handle on the job: a lease that a thread of the handle renews. A
 *   handle that could not renew in time loses its jobs to the queue (they are RELEASED), and every
 *   later release, finish, file and progress of it is refused with SL_GONE: its number, the fence,
 *   is an older one. Nobody takes a job before he himself has been heard for a lease: when Redis
 *   was away, everybody has the time to come back.
 * - release_all releases what servers of this name hold: those before this one.
 * - A call that cannot reach Redis tries again for some seconds, and when that was in vain all
 *   calls fail at once, with SL_SYS, until it is back. Whether the last one that failed has changed
 *   something is not known then; made again by the same function, it is not done twice.
 * *out is the caller's to close; strings are copied. Errors: SL_ARG no address, not let in, another
 * model's queue, no Redis 7 (found, wanted), a replica, a Cluster, one that evicts keys; SL_FORMAT
 * of a newer version, or another program's; SL_SYS, SL_TIMEOUT cannot be reached. */
sl_code sl_journal_open_shared(sl_journal **out, const sl_journal_shared *at, sl_err *err);
/* One line: which Redis it is, and what its settings promise of what is acknowledged; *safe: that
 * it outlives Redis's process. NULL: the queue is a file of this machine. */
const char *sl_journal_promise(const sl_journal *j, bool *safe);

/* File NAME of a job that this handle runs is `version`, with so many bytes, from now on: whoever
 * runs or shows the job finds it there. A version begins with the job's fence and a dot. */
typedef struct {
    const char *name, *version; /* version "": there is none any more */
    uint64_t bytes;
    char was[SL_JOURNAL_FILE]; /* told: the version before, "" none */
} sl_journal_change;

/* n of them at once, all or none. Of a job that this handle has ended files may still go. Errors:
 * SL_GONE the job is not this handle's (any more); SL_ARG no such name, or too many. */
sl_code sl_journal_files(sl_journal *j, const char *id, int n, sl_journal_change *changes,
                         sl_err *err);
/* One of them. */
sl_code sl_journal_file(sl_journal *j, const char *id, const char *name, const char *version,
                        uint64_t bytes, char was[SL_JOURNAL_FILE], sl_err *err);
/* The version and size of file NAME in the `files` of a job; false: it has none. */
bool sl_journal_find_file(const sl_journal_job *job, const char *name,
                          char version[SL_JOURNAL_FILE], uint64_t *bytes);

/* ---- who can what ---- */

/* What a job needs, or a server offers. Words have no space and no comma; "*" is any. */
typedef struct {
    int64_t pixels;         /* of a frame, at most */
    int frames;             /* at most */
    const char *precisions; /* in one of which a job computes: words, with commas between */
    const char *loras;      /* names, with commas between; "" none */
} sl_journal_needs;

/* As a text. Errors: SL_ARG a word that is none, or too long. */
sl_code sl_journal_print_needs(char out[SL_JOURNAL_NEEDS], const sl_journal_needs *n, sl_err *err);

/* What this handle can (sl_journal_print_needs; "": anything) and tells of itself, a line, from now
 * on: others know it with a beat, which comes at once, and until a lease after the last one. A
 * claim takes the first job that it can do. Jobs that need the LoRA of the job that it claimed last
 * may go before others of their priority, which happens to no job more than eight times. says: ""
 * nothing. Of a queue of one machine it is nobody's business. Errors: SL_ARG. */
sl_code sl_journal_offer(sl_journal *j, const char *offer, const char *says, sl_err *err);
/* Does a server that is up offer what is needed (*now), or one that was within a day (*known)? Of a
 * queue of one machine: neither. */
sl_code sl_journal_offered(sl_journal *j, const char *needs, bool *now, bool *known, sl_err *err);

typedef struct {
    char name[SL_JOURNAL_SERVER];
    int64_t silent_ms; /* since its last beat */
    char says[SL_JOURNAL_SAYS];
} sl_journal_peer;

typedef struct {
    int64_t lease_ms;
    int peer_count, job_count;
    sl_journal_peer *peers; /* [peer_count], the newest beat first; one that has been silent for ten
                             * leases is forgotten, one that has ended goes at once */
    sl_journal_job *jobs;   /* [job_count] that run: id, owner, server, live, since_s, attempts and
                             * progress of each, no more */
    int waiting_count;
    sl_journal_job *waiting;     /* [waiting_count], SL_JOURNAL_WAITING at most, that wait longest:
                                  * id, owner, created_s, priority, attempts and waits of each */
    int64_t all_peers, all_jobs; /* there may be more than are told of */
} sl_journal_fleet;

/* Of a queue of one machine: nobody. *out is the caller's, to be freed also after an error. */
sl_code sl_journal_fleet_of(sl_journal *j, sl_journal_fleet *out, sl_err *err);
void sl_journal_fleet_free(sl_journal_fleet *f); /* zeroes it */

/* ---- news ---- */

typedef enum {
    SL_JOURNAL_HEARD_QUEUE,  /* a job waits */
    SL_JOURNAL_HEARD_STATE,  /* a job's row has changed: of a handle that `shows` */
    SL_JOURNAL_HEARD_STEP,   /* a running job has got on: likewise */
    SL_JOURNAL_HEARD_CANCEL, /* a cancel was asked for */
    SL_JOURNAL_HEARD_LOST,   /* a job that this handle ran is not its own any more */
    SL_JOURNAL_HEARD_ALL,    /* news were missed: anything may have changed; id is "" */
    SL_JOURNAL_HEARD_COUNT
} sl_journal_heard;

/* What any server changes, this one too, is told from a thread of the journal's from now on, until
 * close. heard calls no function of the journal. Of a queue of one machine nothing is told. */
void sl_journal_listen(sl_journal *j,
                       void (*heard)(void *self, sl_journal_heard what, const char *id),
                       void *self);

#endif
