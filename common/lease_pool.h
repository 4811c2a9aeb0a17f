/* lease_pool.h - what lease_pool.c and lease.c share: one process's view of a pool, and
 * the words of its slots.
 *
 * Included by these two only; what every other file may know is in lease.h. lease.c
 * stands on lease_pool.c, never the reverse. */
#ifndef SL_LEASE_POOL_H
#define SL_LEASE_POOL_H

#include "common/lease.h"
#include "common/lease_block.h"
#include "common/lease_device.h"

/* One view. What is read from the block is checked once and kept here, for the block may be
 * scribbled over. */
struct sl_pool {
    sl_block *block;
    size_t mapped;
    char *data; /* slot 0 */
    uint64_t id;
    sl_pool_kind kind;
    int slots;
    size_t slot_bytes;
    char name[SL_POOL_NAME];
    bool owned;                /* this process made the pool */
    unsigned peer;             /* this view's entry in block->peers */
    uint64_t self, owner;      /* peer words */
    int fd;                    /* the owner's: the memfd; else -1 */
    int owner_pidfd;           /* a sender's; -1 where the kernel has none */
    const sl_slab_ops *device; /* of a SL_POOL_CUDA pool, else NULL */
    void *slab;
    sl_ipc_handle device_handle;
    const sl_slab_ops *pinner; /* who pinned the slots of a host pool; NULL: nobody */
};

/* The one way to change a shared word; false: it was not `from` any more. */
static inline bool sl_cas(_Atomic uint64_t *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit(word, &from, to, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* A slot's word, now. */
static inline uint64_t sl_word_of(const sl_pool *p, int slot)
{
    return atomic_load_explicit(&p->block->slot[slot].word, memory_order_acquire);
}

/* Does a slot's word say that a sender holds it, to fill it? */
static inline bool sl_being_written(uint64_t w)
{
    return sl_word_state(w) == SL_SLOT_RESERVED || sl_word_state(w) == SL_SLOT_FILLING;
}

/* The plug-in now in use (sl_pool_use_cuda); NULL: none. */
const sl_slab_ops *sl_cuda_in_use(void);

/* Does the very process that entered this word still live, and keep its view open? When in
 * doubt the answer is yes: then that process's slots stay its own. */
bool sl_peer_lives(uint64_t peer);
/* Does the pool's owner live, and has it not closed the pool? */
bool sl_owner_lives(const sl_pool *p);
/* Give an entry of a dead or closed peer away. The word is compared: a newer tenant keeps
 * its entry. */
void sl_peer_leave(const sl_pool *p, unsigned peer, uint64_t word);
/* FREE with the next epoch, if the word is still `from`. A process that dies before the
 * wake-up costs the waiting sender LOOK_MS (of lease.c), no more. */
bool sl_free_slot(const sl_pool *p, int slot, uint64_t from);

#endif
