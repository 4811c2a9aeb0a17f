/* journal_redis.h - what the parts of the queue on Redis share; nobody else includes it.
 *
 *   journal_redis.c        the calls of journal.h, and the body's table
 *   journal_redis_link.c   a run of the script, wherever Redis is
 *   journal_redis_rows.c   rows as they were read
 *   journal_redis_beat.c   holds, the threads beat and ear
 *   journal_redis_open.c   who it is, what it promises, the way in
 *
 *   any thread   a call: one run of the script on a connection that is idle, or a new one
 *   beat         renews the holds of this handle, tells what it offers, and puts jobs back whose
 *                server is silent
 *   ear          hears what has changed, and tells it
 *
 * `lock` guards the idle connections, the holds, what is offered, and whether Redis is away; nobody
 * waits for the network while holding it. */
#ifndef SL_JOURNAL_REDIS_H
#define SL_JOURNAL_REDIS_H

#include <pthread.h>

#include "common/word.h"
#include "stages/serve/journal_body.h"
#include "stages/serve/redis.h"

#define SL_QUEUE_CONNECT_MS 2000      /* longest wait for a connection */
#define SL_QUEUE_ANSWER_MS 2000       /* and for an answer */
#define SL_QUEUE_ASK_MS 5000          /* how long a call that cannot reach Redis tries again */
#define SL_QUEUE_LONGEST_PAUSE_MS 400 /* between two tries */
#define SL_QUEUE_IDLE 16              /* connections that are kept */
#define SL_QUEUE_WORDS 24             /* of most calls */
#define SL_QUEUE_HOLDS 1000           /* renewed at once */
#define SL_QUEUE_ENDED 64             /* jobs that are remembered when they have ended */

extern const char sl_journal_lua[]; /* the script */

typedef struct {
    char id[SL_JOURNAL_ID], word[SL_WORD];
} sl_queue_hold;

typedef struct {
    sl_journal base;
    sl_redis_at at;
    char name[SL_JOURNAL_SERVER], model[128], channel[48], work[64], show[64], sha[64],
        promise[400];
    bool safe, shows;
    int lease_ms;

    pthread_mutex_t lock; /* of everything below, to the blank line */
    pthread_cond_t ends;
    sl_redis *idle[SL_QUEUE_IDLE];
    int idle_count;
    sl_queue_hold *holds;
    int hold_count, hold_room;
    sl_queue_hold ended[SL_QUEUE_ENDED]; /* jobs that it has ended or lost: files of the first may
                                          * still go */
    int ended_count;                     /* of all; the newest SL_QUEUE_ENDED of them are there */
    bool away, closing, hurries;         /* hurries: a beat is to come at once */
    char why[400];                       /* it is away */
    int64_t steady_ns;                   /* since when beats are heard; 0: the last one was not */
    void (*heard)(void *self, sl_journal_heard what, const char *id);
    void *self;
    char offer[SL_JOURNAL_NEEDS];  /* what it can; "": anything */
    char loaded[SL_JOURNAL_NEEDS]; /* LoRA of the job that it claimed last */
    char says[SL_JOURNAL_SAYS];    /* what it tells of itself */
    char alone[SL_JOURNAL_ID];     /* the job that it runs beside no other; "": none */
    int retries;

    sl_queue_hold *renewed; /* [SL_QUEUE_HOLDS], beat's */
    pthread_t beat, ear;
    bool beats, hears; /* the threads run */
} sl_queue;

/* ---- a run of the script ---- */

/* The script's answer to n words, of which the first five are EVALSHA, its name, 0, the verb and
 * the channel; *out is an array, the caller's. It tries again for SL_QUEUE_ASK_MS. Errors: SL_SYS
 * Redis cannot be reached, or does not do it; SL_FORMAT. */
sl_code sl_queue_ask(sl_queue *q, redisReply **out, int n, const char **words, sl_err *err);
/* The same of the verb and its words, up to NULL. */
sl_code sl_queue_say(sl_queue *q, redisReply **out, sl_err *err, const char *verb, ...);
/* One try on this connection; *out may be an error. A Redis that was started anew is told the
 * script. */
sl_code sl_queue_ask_on(sl_redis *r, redisReply **out, int n, const char **words, sl_err *err);
/* The end of a call: the answer goes, a message of rc says which queue, in one line. Returns rc. */
sl_code sl_queue_done(sl_queue *q, redisReply *r, sl_code rc, sl_err *err);
/* An answer that is an error: what the server's callers do about it follows from the code. */
sl_code sl_queue_refuse(const redisReply *r, sl_err *err);
void sl_queue_one_line(sl_err *err);
void sl_queue_pause(int ms);
void sl_queue_drop_idle(sl_queue *q);

bool sl_queue_says(const redisReply *r, const char *word); /* is it the answer's first? */
/* The answer's i-th word, or number; "" and 0 if there is none. */
const char *sl_queue_part(const redisReply *r, size_t i);
int64_t sl_queue_whole(const redisReply *r, size_t i);
const redisReply *sl_queue_list(const redisReply *r, size_t i); /* an array; NULL there is none */
const char *sl_queue_text(char out[32], int64_t n);

/* ---- rows ---- */

/* A row is a hash as it was read: names and values in turn. *out is the caller's. */
sl_code sl_queue_read_job(const redisReply *hash, sl_journal_job *out, sl_err *err);
/* The row that is the answer's second word. */
sl_code sl_queue_read_answer(const redisReply *r, sl_journal_job *out, sl_err *err);
/* A number of a hash; 0 if there is none. */
int64_t sl_queue_count_in(const redisReply *hash, const char *name);

/* ---- holds, threads ---- */

sl_code sl_queue_add_hold(sl_queue *q, const sl_journal_job *job, const char *word, sl_err *err);
/* The word of this handle's hold on the job; "" if it has none. */
void sl_queue_find_hold(sl_queue *q, const char *id, char out[SL_WORD]);
void sl_queue_remember_end(sl_queue *q, const char *id, const char *word);
void sl_queue_end_hold(sl_queue *q, const char *word);
/* Threads beat and ear; they end when the handle closes. */
sl_code sl_queue_begin(sl_queue *q, sl_err *err);
void sl_queue_end(sl_queue *q);

/* The body's table: journal_redis.c. */
extern const sl_journal_body sl_queue_body;

#endif
