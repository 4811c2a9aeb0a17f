/* lease_block.h - the memory that an owner and its senders share: layout of a pool's
 * control block.
 *
 * Included by lease_pool.h and tests only. The block lies at the start of the memfd, the
 * slots of a host pool behind it, each on a page of its own. Fields before `closed` are
 * written before the handle leaves the owner and never again.
 *
 * A PEER is a process that has the pool open: entry 0 is the owner, the others are senders.
 * Everything that changes hands is one 64-bit word, changed by compare-and-swap only, so
 * a process may be killed between any two instructions and leave nothing half done:
 *   a peer's word   left << 63 | pid << 40 | start time. The start time makes it safe
 *                   against a reused pid. 0: the entry is free. left: the process has
 *                   closed its view, but a slot that it sealed still names it.
 *   a slot's word   epoch << 16 | peer << 8 | state: the state and, in one, who holds it.
 *                   A process enters its own word in `peers` before it can claim a slot,
 *                   so whoever finds a slot held can tell by whom and if that one lives.
 * An entry of `peers` is given away again only when its process is dead or has closed,
 * and no slot names it. */
#ifndef SL_LEASE_BLOCK_H
#define SL_LEASE_BLOCK_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/lease.h"

#define SL_BLOCK_MAGIC 0x33304c4f4f504c53u /* "SLPOOL03": layout and rules, version 3 */
#define SL_BLOCK_PEERS 128                 /* most open views of one pool, the owner's included */
#define SL_BLOCK_ALIGN 256                 /* of a tensor in its slot, bytes */
#define SL_BLOCK_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Deadlines around devices, in ms.
 *   WORK   most that a seal, an open or a drop waits for work that is queued on a stream
 *   LAST   a dead sender's event that has not come so long after the death never will
 *   REST   of a slot in which a dead process had device work: the driver ends such work just
 *          after the process */
#define SL_LEASE_WORK_MS 120000
#define SL_LEASE_LAST_MS 100
#define SL_LEASE_REST_MS 1000

/* A slot's states, and the peer that its word names in each. lease.h draws the ways between
 * them. */
typedef enum {
    SL_SLOT_FREE,        /* 0 */
    SL_SLOT_RESERVED,    /* the sender */
    SL_SLOT_FILLING,     /* the sender */
    SL_SLOT_READY,       /* who sealed it */
    SL_SLOT_READING,     /* 0, the owner */
    SL_SLOT_QUARANTINED, /* the sender that it was taken from, and that may still write */
    SL_SLOT_ABANDONED,   /* who sealed it; nobody will read it, but device work still writes */
    SL_SLOT_STATES
} sl_slot_state;

typedef struct {
    char name[SL_LEASE_NAME];
    uint32_t dtype;
    uint32_t rank;
    int64_t shape[SL_MAX_RANK];
    uint64_t offset; /* from the start of the slot, bytes */
} sl_block_tensor;

typedef struct {
    uint32_t count;
    uint32_t complete; /* 1: all was written before the seal, so no event was recorded */
    sl_block_tensor tensor[SL_LEASE_TENSORS]; /* offsets rise and do not overlap */
} sl_block_table;

typedef struct {
    alignas(128) _Atomic uint64_t word;
    _Atomic int64_t rest_until_ms; /* not to be claimed before (CLOCK_MONOTONIC), though FREE;
                                    * written before the word */
    _Atomic uint32_t no_filled;    /* 1: a dead sender left `filled` pending, so nobody uses it */
    sl_block_table table;          /* written by the holder just before the seal */
    uint8_t filled_event[64], drained_event[64]; /* cudaIpcEventHandle_t; zero for a host pool */
} sl_block_slot;

typedef struct {
    uint64_t magic;
    uint64_t pool;
    uint32_t kind, slots;
    uint64_t slot_bytes;
    alignas(64) _Atomic uint32_t closed; /* 1: the owner has closed the pool */
    _Atomic uint32_t pinned; /* 1: a view has pinned the slots, devices copy to or from them */
    alignas(64) _Atomic uint32_t freed; /* counts returns to FREE; senders sleep on this futex */
    alignas(64) _Atomic uint64_t peers[SL_BLOCK_PEERS];
    sl_block_slot slot[SL_POOL_MAX_SLOTS];
} sl_block;

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "atomics in shared memory must be lock-free");
_Static_assert(sizeof(_Atomic uint64_t) == 8 && SL_BLOCK_PEERS <= 256,
               "a slot's word has 8 bits for the peer");

/* An epoch wraps after 2.8e14 hand-overs of one slot. */
#define SL_EPOCH_MASK ((UINT64_C(1) << 48) - 1)

static inline uint64_t sl_word(sl_slot_state state, unsigned peer, uint64_t epoch)
{
    return (epoch & SL_EPOCH_MASK) << 16 | (uint64_t)(peer & 255) << 8 | (uint64_t)state;
}
static inline unsigned sl_word_state(uint64_t w)
{
    return w & 255;
}
static inline unsigned sl_word_peer(uint64_t w)
{
    return w >> 8 & 255;
}
static inline uint64_t sl_word_epoch(uint64_t w)
{
    return w >> 16;
}

#define SL_PEER_LEFT (UINT64_C(1) << 63)
static inline uint64_t sl_peer_word(int32_t pid, uint64_t start)
{
    return (uint64_t)pid << 40 | (start & ((UINT64_C(1) << 40) - 1));
}
static inline int32_t sl_peer_pid(uint64_t peer)
{
    return (int32_t)(peer >> 40 & 0x7fffff);
}

#endif
