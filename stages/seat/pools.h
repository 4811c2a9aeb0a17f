/* pools.h - the pools of a stage: those in which it receives, and those of its receivers.
 *
 * The stage's own pools are announced with POOL when they are made; DISCARD, KEEP and REAP
 * are about them. Others' pools become known by POOL: all that are known are kept, one a
 * hand-over and owner, and opened when first needed. A pool whose owner is gone is
 * forgotten: when REAP says so, when the next POOL comes, or when opening finds it out.
 * Functions are the main thread's unless said otherwise. Zeroed pools may be closed. */
#ifndef SL_POOLS_H
#define SL_POOLS_H

#include "stages/seat/control.h"

#define SL_POOLS_MINE SL_TICKETS /* most hand-overs that a role receives */
#define SL_POOLS_OTHERS 32       /* most pools of receivers that are known at a time */

typedef struct {
    sl_control *control;
    bool made;
    pthread_mutex_t lock; /* of mine, mine_count */
    struct {
        sl_handover handover;
        sl_pool *pool;
        sl_ticket told[SL_POOL_MAX_SLOTS]; /* the newest ticket of each slot that was heard of */
    } mine[SL_POOLS_MINE];
    int mine_count;
    struct {
        int handover; /* sl_handover; -1: of a name that this program does not know */
        sl_pool_handle handle;
        sl_pool *pool;         /* NULL: not opened yet */
    } others[SL_POOLS_OTHERS]; /* the oldest first; the main thread's */
    int other_count;
    bool pin_failed; /* others' pools could not be pinned for this stage's device: said once */
} sl_pools;

void sl_pools_open(sl_pools *p, sl_control *control);
/* Close all pools. After sl_control_close: no message may come any more. */
void sl_pools_close(sl_pools *p);

/* Make the pool in which h is received, and announce it. A device or container without
 * IPC gets host memory instead of SL_POOL_CUDA, and a warning. Errors: as sl_pool_create;
 * SL_ARG more than SL_POOLS_MINE. */
sl_code sl_pools_make(sl_pools *p, sl_handover h, sl_pool_kind kind, int slots, size_t slot_bytes,
                      sl_err *err);
/* The pool in which h is received, owned by p; NULL: there is none. */
sl_pool *sl_pools_mine(const sl_pools *p, sl_handover h);
/* Free the slot of a ticket that nobody opened, whichever pool the ticket is of. A stale
 * ticket is ignored. */
void sl_pools_discard(sl_pools *p, const sl_ticket *ticket);

/* The pool of a receiver of h that an attempt gives to: the one that the JOB's list `to`
 * names; without such a row the newest that was announced. Owned by p, valid until the
 * next call. Errors: SL_GONE the job is to leave a file, nobody receives h yet, or its
 * receiver is gone. */
sl_code sl_pools_to(sl_pools *p, const sl_msg_job *msg, sl_handover h, sl_pool **out, sl_err *err);

/* What the control asks (sl_hear_fn, sl_note_fn): hear on the socket's thread, note on the
 * main thread. true: dealt with. */
bool sl_pools_hear(sl_pools *p, const sl_msg *m);
bool sl_pools_note(sl_pools *p, const sl_msg *m);

#endif
