/* journal_body.h - what stands behind journal.h: a table of functions for each body.
 *
 * A body's own struct begins with a sl_journal. journal_body.c checks what every body would check
 * (ids, texts, numbers, ends), then calls the table; so a body is never asked about an id that no
 * job can have, and every refusal reads alike whoever keeps the queue. Comments of journal.h hold
 * for the functions of the same name here.
 *
 *   journal.h               what the server calls; journal_body.c checks
 *   journal_sqlite.c        one machine: a file
 *   journal_redis.c         many machines: Redis, and journal.lua in it (journal_redis.h) */
#ifndef SL_JOURNAL_BODY_H
#define SL_JOURNAL_BODY_H

#include "stages/serve/journal.h"

typedef struct {
    void (*close)(sl_journal *j);
    sl_code (*submit)(sl_journal *j, const sl_journal_job *job, const char *key,
                      const sl_journal_limits *limits, char same[SL_JOURNAL_ID], sl_err *err);
    sl_code (*claim)(sl_journal *j, int64_t now_s, sl_journal_job *out, sl_err *err);
    sl_code (*release)(sl_journal *j, const char *id, sl_err *err);
    sl_code (*release_all)(sl_journal *j, int *count, sl_err *err);
    sl_code (*progress)(sl_journal *j, const char *id, double progress, const char *live,
                        sl_err *err);
    sl_code (*finish)(sl_journal *j, const char *id, sl_journal_state end, sl_code code,
                      const char *message, uint64_t bytes, int64_t now_s, sl_err *err);
    sl_code (*get)(sl_journal *j, const char *id, const char *owner, sl_journal_job *out,
                   sl_err *err);
    sl_code (*cancel)(sl_journal *j, const char *id, const char *owner, int64_t now_s,
                      sl_journal_state *before, sl_err *err);
    sl_code (*remove)(sl_journal *j, const char *id, const char *owner, int64_t now_s, sl_err *err);
    sl_code (*list)(sl_journal *j, const char *owner, const char *after, int limit,
                    bool newest_first, sl_journal_job *jobs, int *count, bool *more, sl_err *err);
    int (*position)(sl_journal *j, const char *id);
    sl_code (*count)(sl_journal *j, sl_journal_counts *out, sl_err *err);
    sl_code (*expire)(sl_journal *j, int64_t before_s, uint64_t quota, int64_t forget_s,
                      int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err);
    bool (*knows)(sl_journal *j, const char *id);
    void (*retries)(sl_journal *j, int most);
    sl_code (*backup)(sl_journal *j, const char *path, sl_err *err);
    sl_code (*kept)(sl_journal *j, const char *id, sl_err *err); /* NULL: nothing to do */
    /* of a queue that many share; else NULL: */
    const char *(*promise)(const sl_journal *j, bool *safe);
    sl_code (*files)(sl_journal *j, const char *id, int n, sl_journal_change *changes, sl_err *err);
    void (*listen)(sl_journal *j, void (*heard)(void *self, sl_journal_heard what, const char *id),
                   void *self);
    sl_code (*offer)(sl_journal *j, const char *offer, const char *says, sl_err *err);
    sl_code (*offered)(sl_journal *j, const char *needs, bool *now, bool *known, sl_err *err);
    sl_code (*fleet)(sl_journal *j, sl_journal_fleet *out, sl_err *err);
} sl_journal_body;

struct sl_journal {
    const sl_journal_body *body;
};

/* The words of states and codes, as rows have them. */
extern const char *const sl_journal_states[SL_JOURNAL_STATE_COUNT];
extern const char *const sl_journal_codes[SL_CODE_COUNT];

/* SL_GONE; the message quotes no id that is none. */
sl_code sl_journal_no_job(const char *id, sl_err *err);
/* SL_GONE: a call about a RUNNING job found it in this state. */
sl_code sl_journal_not_running(const char *id, sl_journal_state state, sl_err *err);
/* The refusals of a full queue, and of an id that is there. */
sl_code sl_journal_full(int64_t queued, int64_t of_owner, const sl_journal_limits *limits,
                        sl_err *err);
sl_code sl_journal_is_there(const char *id, sl_err *err);

#endif
