/* pools.c - the pools of a stage.
 *
 * Who runs where:
 *   main thread       makes pools and opens others'; sl_pools_note: POOL and REAP about others'
 *   socket's thread   sl_pools_hear: which tickets exist, DISCARD, REAP of the stage's own
 * lock guards `mine`, which grows only: the main thread reads it without. `others` is the
 * main thread's alone, so that no pool is closed while it is written to. */
#include "stages/seat/pools.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/log.h"

void sl_pools_open(sl_pools *p, sl_control *control)
{
    p->control = control;
    pthread_mutex_init(&p->lock, NULL);
    p->made = true;
}

void sl_pools_close(sl_pools *p)
{
    if (!p->made) return;
    p->made = false;
    for (int i = 0; i < p->other_count; i++) sl_pool_close(&p->others[i].pool);
    for (int i = 0; i < p->mine_count; i++) sl_pool_close(&p->mine[i].pool);
    pthread_mutex_destroy(&p->lock);
}

/* ---- the stage's own ---- */

sl_code sl_pools_make(sl_pools *p, sl_handover h, sl_pool_kind kind, int slots, size_t slot_bytes,
                      sl_err *err)
{
    const char *name = SL_HANDOVER[h].name;
    sl_msg m = {.type = SL_MSG_POOL};
    sl_pool *pool = NULL;
    if (p->mine_count == SL_POOLS_MINE)
        return sl_fail(err, SL_ARG, "%s: more than %d hand-overs to one role", name, SL_POOLS_MINE);
    sl_code rc = sl_pool_create(&pool, name, kind, slots, slot_bytes, err);
    if (rc == SL_CUDA && kind == SL_POOL_CUDA) { /* a device or container without IPC */
        sl_log(SL_LOG_WARN, "%s goes through host memory: %s", name, err->msg);
        *err = (sl_err){0};
        rc = sl_pool_create(&pool, name, SL_POOL_HOST, slots, slot_bytes, err);
    }
    if (rc) return rc;
    pthread_mutex_lock(&p->lock);
    p->mine[p->mine_count].handover = h;
    p->mine[p->mine_count++].pool = pool;
    pthread_mutex_unlock(&p->lock);
    snprintf(m.pool.handover, sizeof m.pool.handover, "%s", name);
    sl_pool_export(pool, &m.pool.handle);
    sl_control_send(p->control, &m);
    return SL_OK;
}

sl_pool *sl_pools_mine(const sl_pools *p, sl_handover h)
{
    for (int i = 0; i < p->mine_count; i++)
        if (p->mine[i].handover == h) return p->mine[i].pool;
    return NULL;
}

void sl_pools_discard(sl_pools *p, const sl_ticket *ticket)
{
    for (int i = 0; i < p->mine_count; i++) sl_pool_discard(p->mine[i].pool, ticket);
}

/* A ticket of ours exists somewhere: its slot is not lost when its sender dies. */
static void remember(sl_pools *p, const sl_ticket *t)
{
    for (int i = 0; i < p->mine_count; i++)
        if (t->pool == sl_pool_id(p->mine[i].pool) && t->slot < SL_POOL_MAX_SLOTS)
            p->mine[i].told[t->slot] = *t;
}

bool sl_pools_hear(sl_pools *p, const sl_msg *m)
{
    bool done = false;
    pthread_mutex_lock(&p->lock);
    switch (m->type) {
    case SL_MSG_JOB:
        for (uint32_t i = 0; i < m->job.in.count; i++)
            if (m->job.in.at[i].way == SL_BY_SLOT) remember(p, &m->job.in.at[i].ticket);
        break;
    case SL_MSG_CHUNK: remember(p, &m->chunk.slot); break;
    case SL_MSG_KEEP:
        remember(p, &m->keep.ticket);
        done = true;
        break;
    case SL_MSG_REAP: /* the main thread's too: others' pools */
        for (int i = 0; i < p->mine_count; i++)
            sl_pool_reap_unsent(p->mine[i].pool, m->reap.pid, p->mine[i].told, SL_POOL_MAX_SLOTS);
        break;
    case SL_MSG_DISCARD:
        sl_pools_discard(p, &m->discard.ticket);
        done = true;
        break;
    default: break;
    }
    pthread_mutex_unlock(&p->lock);
    return done;
}

/* ---- others' ---- */

static void forget(sl_pools *p, int i)
{
    sl_pool_close(&p->others[i].pool);
    memmove(&p->others[i], &p->others[i + 1], (size_t)(--p->other_count - i) * sizeof p->others[0]);
}

/* Forget those whose owner is `pid`. pid 0: whose owner is no process any more. */
static void forget_of(sl_pools *p, int32_t pid)
{
    for (int i = p->other_count - 1; i >= 0; i--) {
        int32_t owner = p->others[i].handle.pid;
        if (pid ? owner == pid : owner <= 0 || (kill(owner, 0) && errno == ESRCH)) forget(p, i);
    }
}

bool sl_pools_note(sl_pools *p, const sl_msg *m)
{
    if (m->type == SL_MSG_REAP) forget_of(p, m->reap.pid);
    if (m->type != SL_MSG_POOL) return m->type == SL_MSG_REAP;
    forget_of(p, 0);
    if (p->other_count == SL_POOLS_OTHERS) {
        sl_log(SL_LOG_WARN, "pool for %s: more than %d receivers, the oldest is forgotten",
               m->pool.handover, SL_POOLS_OTHERS);
        forget(p, 0);
    }
    int i = p->other_count++;
    p->others[i].handover = sl_handover_by_name(m->pool.handover);
    p->others[i].handle = m->pool.handle;
    p->others[i].pool = NULL;
    return true;
}

/* The row of `to` that is about h; NULL: none. */
static const sl_ticket *named(const sl_msg_job *msg, sl_handover h, bool *by_file)
{
    *by_file = false;
    for (uint32_t i = 0; msg && i < msg->to.count; i++)
        if (msg->to.at[i].handover == (uint32_t)h) {
            *by_file = msg->to.at[i].way == SL_BY_FILE;
            return &msg->to.at[i].ticket;
        }
    return NULL;
}

sl_code sl_pools_to(sl_pools *p, const sl_msg_job *msg, sl_handover h, sl_pool **out, sl_err *err)
{
    const char *name = SL_HANDOVER[h].name;
    bool by_file;
    const sl_ticket *to = named(msg, h, &by_file);
    if (by_file) return sl_fail(err, SL_GONE, "%s is to be a file", name);
    sl_control_look(p->control); /* a POOL may just have come */
    int i = p->other_count - 1;
    while (i >= 0 &&
           (p->others[i].handover != (int)h || (to && p->others[i].handle.pool != to->pool)))
        i--;
    if (i < 0)
        return sl_fail(err, SL_GONE,
                       to ? "the receiver of %s that was named is not known here"
                          : "nobody receives %s yet",
                       name);
    if (!p->others[i].pool) {
        sl_code rc = sl_pool_open(&p->others[i].pool, &p->others[i].handle, err);
        if (rc && rc != SL_GONE) sl_log_err("hand-over", err);
        if (rc == SL_GONE) forget(p, i);
        if (rc) return sl_fail(err, SL_GONE, "receiver of %s is gone, or cannot be reached", name);
    }
    *out = p->others[i].pool;
    return SL_OK;
}
