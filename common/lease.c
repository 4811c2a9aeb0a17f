/* lease.c - slots and leases: reserved, filled, sealed, opened, dropped, discarded, and
 * taken back from the dead.
 *
 * No lock is held anywhere: a slot's word (lease_block.h) is moved by compare-and-swap, and
 * whoever moves it to a state in which it names a process is that process. Who moves what:
 *   a sender   FREE -> RESERVED -> FILLING -> READY; FREE when its lease is dropped unsealed;
 *              QUARANTINED -> FREE when it sees that its hold was revoked; ABANDONED -> FREE
 *              when it looks for a slot and the device's work on this one is over
 *   the owner  READY -> READING -> FREE; READY -> ABANDONED (a discard under device work);
 *              RESERVED, FILLING -> QUARANTINED (revoke); whatever a dead process held -> FREE
 * A return to FREE moves the epoch on, counts `freed` up and wakes the senders that sleep on
 * it. The table of tensors is written before the word that says READY and read after it;
 * what is read from the block is copied first and checked then, for the other process may
 * scribble on. Work on devices is ordered by the two events of a slot (lease_device.h). */
#include "common/lease.h"

#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/lease_pool.h"

#define LOOK_MS 50 /* how often a waiting sender looks: does the owner live, was a wake-up lost? */

struct sl_lease {
    sl_pool *pool;
    int slot;
    uint64_t epoch;
    enum { WRITING, READING, OVER } hold;
    size_t used;          /* bytes laid out so far */
    sl_block_table table; /* this process's own copy */
};

/* ---- slots ---- */

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* As sl_free_slot, for a slot in which a process that has died may have had work of a
 * device: the slot rests first. An event that the process left pending may never come,
 * and no document says what recording it anew does then, so nobody does: whoever seals
 * this slot from now on waits for its own work. */
static bool free_after_death(const sl_pool *p, int slot, uint64_t from)
{
    sl_block_slot *s = &p->block->slot[slot];
    bool came = true;
    if (p->device || atomic_load_explicit(&p->block->pinned, memory_order_relaxed))
        atomic_store_explicit(&s->rest_until_ms, now_ms() + SL_LEASE_REST_MS, memory_order_relaxed);
    if (p->device && (p->device->reached(p->slab, slot, SL_SLAB_FILLED, &came, NULL) || !came))
        atomic_store_explicit(&s->no_filled, 1, memory_order_relaxed);
    return sl_free_slot(p, slot, from);
}

static bool is_resting(const sl_pool *p, int slot)
{
    int64_t until = atomic_load_explicit(&p->block->slot[slot].rest_until_ms, memory_order_relaxed);
    uint64_t left = (uint64_t)until - (uint64_t)now_ms();
    /* neither over nor, in a block scribbled over, longer than it can be */
    return left - 1 < SL_LEASE_REST_MS;
}

/* End this writer's hold, whatever became of the slot. true: this writer still held it;
 * false: the hold had been revoked. A slot in quarantine waited for just this. */
static bool end_writing(const sl_lease *l)
{
    const sl_pool *p = l->pool;
    for (;;) {
        uint64_t w = sl_word_of(p, l->slot);
        bool mine = sl_word_peer(w) == p->peer && sl_word_epoch(w) == l->epoch;
        if (!mine || !(sl_being_written(w) || sl_word_state(w) == SL_SLOT_QUARANTINED))
            return false;
        if (sl_free_slot(p, l->slot, w)) return sl_word_state(w) != SL_SLOT_QUARANTINED;
    }
}

/* The writer cannot tell that its device has done with the slot: nobody gets it while
 * this process lives. */
static void quarantine_own(const sl_lease *l)
{
    const sl_pool *p = l->pool;
    uint64_t w = sl_word_of(p, l->slot);
    while (sl_being_written(w) && sl_word_peer(w) == p->peer && sl_word_epoch(w) == l->epoch)
        if (sl_cas(&p->block->slot[l->slot].word, w,
                   sl_word(SL_SLOT_QUARANTINED, p->peer, l->epoch)))
            break;
        else w = sl_word_of(p, l->slot);
}

/* The peer that a held slot names; 0: none, which only a scribbled word does. */
static uint64_t holder(const sl_pool *p, uint64_t w)
{
    unsigned peer = sl_word_peer(w);
    return peer < SL_BLOCK_PEERS ? atomic_load(&p->block->peers[peer]) : 0;
}

/* ---- work of devices ---- */

static void pause_between_looks(int64_t looks)
{
    struct timespec t = {.tv_nsec = looks < 2000 ? 20000 : 200000};
    if (looks > 200) nanosleep(&t, NULL); /* short work is over within a few looks */
}

/* Wait until nothing is queued on `stream`. On a host pool, NULL means that no device
 * touches the slot. */
static sl_code wait_idle(const sl_pool *p, cudaStream_t stream, sl_err *err)
{
    const sl_slab_ops *ops = p->device;
    int64_t deadline = now_ms() + SL_LEASE_WORK_MS;
    bool idle = false;
    if (!ops && !stream) return SL_OK;
    if (!ops) ops = sl_cuda_in_use();
    if (!ops)
        return sl_fail(err, SL_ARG, "pool %s: a stream is given, and no CUDA plug-in is in use",
                       p->name);
    for (int64_t looks = 0;; looks++) {
        sl_code rc = ops->idle(stream, &idle, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        if (idle) return SL_OK;
        if (now_ms() >= deadline)
            return sl_fail(err, SL_TIMEOUT, "pool %s: work on a slot was not over after %d s",
                           p->name, SL_LEASE_WORK_MS / 1000);
        pause_between_looks(looks);
    }
}

/* Wait until what `sender` queued before its seal is over, then make stream follow it. An
 * event that its process did not live to see through never comes. */
static sl_code wait_filled(const sl_pool *p, int slot, uint64_t sender, cudaStream_t stream,
                           sl_err *err)
{
    int64_t deadline = now_ms() + SL_LEASE_WORK_MS, look = now_ms() + LOOK_MS, last = INT64_MAX;
    bool filled = false;
    for (int64_t looks = 0;; looks++) {
        sl_code rc = p->device->reached(p->slab, slot, SL_SLAB_FILLED, &filled, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        if (filled) return p->device->wait(p->slab, slot, stream, err);
        int64_t now = now_ms();
        if (now >= last)
            return sl_fail(err, SL_GONE,
                           "pool %s: process %d died before its device had written slot %d",
                           p->name, sl_peer_pid(sender), slot);
        if (now >= deadline)
            return sl_fail(err, SL_TIMEOUT,
                           "pool %s: process %d had not written slot %d after %d s", p->name,
                           sl_peer_pid(sender), slot, SL_LEASE_WORK_MS / 1000);
        if (now >= look) {
            look = now + LOOK_MS;
            if (last == INT64_MAX && !sl_peer_lives(sender)) last = now + SL_LEASE_LAST_MS;
        }
        pause_between_looks(looks);
    }
}

/* End a sealed slot (its word is `from`) that nobody will read. Work queued before the
 * seal may still write it: then it is ABANDONED, until a reserve finds the event come or
 * a reap the sender dead. */
static bool give_up(const sl_pool *p, int slot, uint64_t from, unsigned peer)
{
    bool filled = !p->device || p->block->slot[slot].table.complete;
    if (!filled && p->device->reached(p->slab, slot, SL_SLAB_FILLED, &filled, NULL)) filled = false;
    if (filled) return sl_free_slot(p, slot, from);
    uint64_t sender =
        peer < SL_BLOCK_PEERS ? atomic_load(&p->block->peers[peer]) & ~SL_PEER_LEFT : 0;
    if (!sl_peer_lives(sender)) return free_after_death(p, slot, from);
    return sl_cas(&p->block->slot[slot].word, from,
                  sl_word(SL_SLOT_ABANDONED, peer, sl_word_epoch(from)));
}

/* ---- the sender's side ---- */

/* May slot i be claimed, as its word `w` says? *w is read again if the slot came free
 * here. *soon: not yet, and nobody will wake us when it may. */
static sl_code claimable(const sl_pool *p, int i, uint64_t *w, bool *yes, bool *soon, sl_err *err)
{
    sl_code rc;
    *yes = false;
    if (p->device && sl_word_state(*w) == SL_SLOT_ABANDONED) {
        if ((rc = p->device->reached(p->slab, i, SL_SLAB_FILLED, yes, err))) return rc;
        if (*yes) sl_free_slot(p, i, *w);
        else *soon = true;
        *w = sl_word_of(p, i);
    }
    if (sl_word_state(*w) != SL_SLOT_FREE) {
        *yes = false;
        return SL_OK;
    }
    *yes = !is_resting(p, i);
    if (*yes && p->device && (rc = p->device->reached(p->slab, i, SL_SLAB_DRAINED, yes, err)))
        return rc;
    if (!*yes) *soon = true;
    return SL_OK;
}

/* The first free slot, so that memory which was never needed is never touched; *slot -1:
 * none. */
static sl_code claim(const sl_pool *p, int *slot, uint64_t *epoch, bool *soon, sl_err *err)
{
    *slot = -1;
    *soon = false;
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = sl_word_of(p, i);
        bool yes;
        sl_code rc = claimable(p, i, &w, &yes, soon, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        /* the word holds the epoch: had the slot been given away and dropped meanwhile,
         * it were another */
        if (!yes || !sl_cas(&p->block->slot[i].word, w,
                            sl_word(SL_SLOT_RESERVED, p->peer, sl_word_epoch(w))))
            continue;
        *epoch = sl_word_epoch(w);
        *slot = i;
        return SL_OK;
    }
    return SL_OK;
}

/* Sleep until `freed` is no longer `seen`, a signal comes, or it is until_ms. */
static void sleep_on(const sl_pool *p, uint32_t seen, int64_t until_ms)
{
    struct timespec t = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
    syscall(SYS_futex, &p->block->freed, FUTEX_WAIT_BITSET, seen, &t, NULL, FUTEX_BITSET_MATCH_ANY);
}

sl_code sl_lease_reserve(sl_lease **out, sl_pool *p, int wait_ms, sl_err *err)
{
    int64_t deadline = now_ms() + (wait_ms > 0 ? wait_ms : 0);
    uint64_t epoch = 0;
    int slot;
    bool soon;
    sl_code rc;
    *out = NULL;
    if (sl_peer_pid(p->self) != getpid())
        return sl_fail(err, SL_ARG,
                       "pool %s was opened by process %d, this is %d: open it again after a fork",
                       p->name, sl_peer_pid(p->self), (int)getpid());
    for (;;) {
        /* `freed` is read before the slots are looked at: no wake-up is missed */
        uint32_t seen = atomic_load_explicit(&p->block->freed, memory_order_acquire);
        if (!sl_owner_lives(p))
            return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name,
                           sl_peer_pid(p->owner));
        if ((rc = claim(p, &slot, &epoch, &soon, err))) return rc;
        if (slot >= 0) break;
        int64_t now = now_ms();
        if (now >= deadline)
            return sl_fail(err, SL_BUSY, "pool %s: none of %d slots came free in %d ms", p->name,
                           p->slots, wait_ms > 0 ? wait_ms : 0);
        int64_t until = now + (soon ? 1 : LOOK_MS);
        sleep_on(p, seen, until < deadline ? until : deadline);
    }
    sl_lease *l = calloc(1, sizeof *l);
    if (!l) {
        sl_free_slot(p, slot, sl_word(SL_SLOT_RESERVED, p->peer, epoch));
        return sl_fail(err, SL_NOMEM, "pool %s: no memory for a lease", p->name);
    }
    *l = (sl_lease){.pool = p, .slot = slot, .epoch = epoch, .hold = WRITING};
    *out = l;
    return SL_OK;
}

static sl_tensor tensor_at(const sl_lease *l, const sl_block_tensor *e)
{
    return sl_view(l->pool->data + (size_t)l->slot * l->pool->slot_bytes + e->offset,
                   (sl_dtype)e->dtype, (int)e->rank, e->shape);
}

static const sl_block_tensor *find(const sl_block_table *t, const char *name)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (!strcmp(t->tensor[i].name, name)) return &t->tensor[i];
    return NULL;
}

sl_code sl_lease_add(sl_lease *l, const char *name, sl_dtype dtype, int rank, const int64_t *shape,
                     sl_tensor *t, sl_err *err)
{
    const sl_pool *p = l->pool;
    int64_t bytes;
    if (l->hold != WRITING)
        return sl_fail(err, SL_ARG, "pool %s: tensor %s added to a slot that is not being written",
                       p->name, name);
    if (l->table.count == SL_LEASE_TENSORS)
        return sl_fail(err, SL_ARG,
                       "pool %s: tensor %s is one too many for a slot, want at most %d", p->name,
                       name, SL_LEASE_TENSORS);
    if (!name[0] || strlen(name) >= SL_LEASE_NAME)
        return sl_fail(err, SL_ARG, "pool %s: tensor name \"%.64s\" has %zu bytes, want 1 to %d",
                       p->name, name, strlen(name), SL_LEASE_NAME - 1);
    if (find(&l->table, name))
        return sl_fail(err, SL_ARG, "pool %s: a tensor %s is in the slot already", p->name, name);
    if ((unsigned)dtype >= SL_DTYPE_COUNT)
        return sl_fail(err, SL_SHAPE, "pool %s: tensor %s has dtype %d, want 0 to %d", p->name,
                       name, (int)dtype, SL_DTYPE_COUNT - 1);
    if (rank < 1 || rank > SL_MAX_RANK)
        return sl_fail(err, SL_SHAPE, "pool %s: tensor %s has %d dimensions, want 1 to %d", p->name,
                       name, rank, SL_MAX_RANK);
    if (sl_shape_bytes(dtype, rank, shape, &bytes, err))
        return sl_context(err, SL_SHAPE, "pool %s: tensor %s", p->name, name);
    if ((uint64_t)bytes > p->slot_bytes - l->used)
        return sl_fail(err, SL_SHAPE,
                       "pool %s: tensor %s takes %lld bytes, %zu of the slot's %zu are left",
                       p->name, name, (long long)bytes, p->slot_bytes - l->used, p->slot_bytes);

    uint64_t reserved = sl_word(SL_SLOT_RESERVED, p->peer, l->epoch),
             filling = sl_word(SL_SLOT_FILLING, p->peer, l->epoch);
    if (!sl_cas(&p->block->slot[l->slot].word, reserved, filling) &&
        sl_word_of(p, l->slot) != filling)
        return sl_fail(err, SL_GONE, "pool %s: slot %d was revoked while it was being written",
                       p->name, l->slot);

    sl_block_tensor *e = &l->table.tensor[l->table.count++];
    *e = (sl_block_tensor){.dtype = (uint32_t)dtype, .rank = (uint32_t)rank, .offset = l->used};
    snprintf(e->name, sizeof e->name, "%s", name);
    memcpy(e->shape, shape, (size_t)rank * sizeof *shape);
    size_t end = l->used + (size_t)bytes;
    /* slots are whole pages: never past the end */
    l->used = (end + SL_BLOCK_ALIGN - 1) / SL_BLOCK_ALIGN * SL_BLOCK_ALIGN;
    *t = tensor_at(l, e);
    return SL_OK;
}

sl_code sl_lease_seal(sl_lease *l, cudaStream_t stream, sl_ticket *out, sl_err *err)
{
    const sl_pool *p = l->pool;
    sl_block_slot *s = &p->block->slot[l->slot];
    sl_code rc;
    if (l->hold != WRITING)
        return sl_fail(err, SL_ARG, "pool %s: seal of a slot that is not being written", p->name);
    if (!l->table.count)
        return sl_fail(err, SL_ARG, "pool %s: seal of a slot without a tensor", p->name);
    if (p->device && !sl_owner_lives(p)) /* its events are gone with it */
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name,
                       sl_peer_pid(p->owner));
    l->table.complete = !p->device || atomic_load_explicit(&s->no_filled, memory_order_relaxed);
    if (l->table.complete && (rc = wait_idle(p, stream, err))) return rc;
    if (!l->table.complete &&
        (rc = p->device->record(p->slab, l->slot, SL_SLAB_FILLED, stream, err)))
        return sl_context(err, rc, "pool %s", p->name);
    /* revoked or not, the slot is nobody else's before this hold ends */
    memcpy(&s->table, &l->table, sizeof s->table);
    l->hold = OVER;
    if (!sl_cas(&s->word, sl_word(SL_SLOT_FILLING, p->peer, l->epoch),
                sl_word(SL_SLOT_READY, p->peer, l->epoch))) {
        if (!wait_idle(p, stream, NULL)) end_writing(l); /* else it stays in quarantine */
        return sl_fail(err, SL_GONE, "pool %s: slot %d was revoked while it was being written",
                       p->name, l->slot);
    }
    *out = (sl_ticket){.pool = p->id, .slot = (uint32_t)l->slot, .epoch = l->epoch};
    if (!sl_owner_lives(p))
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name,
                       sl_peer_pid(p->owner));
    return SL_OK;
}

/* ---- the owner's side ---- */

/* The table of a slot as its sender left it: every number is checked, for it will become
 * a pointer. */
static sl_code check_table(const sl_pool *p, const sl_block_table *t, sl_err *err)
{
    uint64_t end = 0;
    if (t->count < 1 || t->count > SL_LEASE_TENSORS)
        return sl_fail(err, SL_FORMAT, "pool %s: slot has %u tensors, want 1 to %d", p->name,
                       t->count, SL_LEASE_TENSORS);
    for (uint32_t i = 0; i < t->count; i++) {
        const sl_block_tensor *e = &t->tensor[i];
        int64_t bytes;
        if (!e->name[0] || !memchr(e->name, 0, sizeof e->name))
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has no proper name", p->name, i);
        if (e->dtype >= SL_DTYPE_COUNT)
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has dtype %u, want 0 to %d", p->name,
                           i, e->dtype, SL_DTYPE_COUNT - 1);
        if (e->rank < 1 || e->rank > SL_MAX_RANK)
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has %u dimensions, want 1 to %d",
                           p->name, i, e->rank, SL_MAX_RANK);
        if (sl_shape_bytes((sl_dtype)e->dtype, (int)e->rank, e->shape, &bytes, err))
            return sl_context(err, SL_FORMAT, "pool %s: tensor %u", p->name, i);
        if (e->offset % SL_BLOCK_ALIGN || e->offset < end || e->offset > p->slot_bytes ||
            (uint64_t)bytes > p->slot_bytes - e->offset)
            return sl_fail(err, SL_FORMAT,
                           "pool %s: tensor %u lies at byte %llu for %lld bytes, want a multiple "
                           "of %d from %llu and an end within %zu",
                           p->name, i, (unsigned long long)e->offset, (long long)bytes,
                           SL_BLOCK_ALIGN, (unsigned long long)end, p->slot_bytes);
        end = e->offset + (uint64_t)bytes;
    }
    return SL_OK;
}

/* The READY word that a ticket names, or 0 when it names none in this pool (a READY word
 * is never 0). */
static uint64_t ready_word(const sl_pool *p, const sl_ticket *t)
{
    if (t->pool != p->id || t->slot >= (uint32_t)p->slots) return 0;
    uint64_t w = sl_word_of(p, (int)t->slot);
    return sl_word_state(w) == SL_SLOT_READY && sl_word_epoch(w) == t->epoch ? w : 0;
}

sl_code sl_lease_open(sl_lease **out, sl_pool *p, const sl_ticket *t, cudaStream_t stream,
                      sl_err *err)
{
    uint64_t w = ready_word(p, t), reading;
    sl_code rc;
    *out = NULL;
    if (!p->owned)
        return sl_fail(err, SL_ARG, "pool %s: only its owner, process %d, opens tickets", p->name,
                       sl_peer_pid(p->owner));
    if (t->pool != p->id)
        return sl_fail(err, SL_GONE, "pool %s: ticket is of pool %016llx, this is %016llx", p->name,
                       (unsigned long long)t->pool, (unsigned long long)p->id);
    if (!w)
        return sl_fail(err, SL_GONE, "pool %s: ticket of slot %u, epoch %llu, is stale", p->name,
                       t->slot, (unsigned long long)t->epoch);
    sl_lease *l = calloc(1, sizeof *l);
    if (!l) return sl_fail(err, SL_NOMEM, "pool %s: no memory for a lease", p->name);
    /* the sender's entry is not given away while the slot's word names it */
    uint64_t sender = holder(p, w) & ~SL_PEER_LEFT;
    reading = sl_word(SL_SLOT_READING, 0, t->epoch);
    if (!sl_cas(&p->block->slot[t->slot].word, w, reading)) {
        free(l);
        return sl_fail(err, SL_GONE, "pool %s: ticket of slot %u, epoch %llu, is stale", p->name,
                       t->slot, (unsigned long long)t->epoch);
    }
    *l = (sl_lease){.pool = p, .slot = (int)t->slot, .epoch = t->epoch, .hold = READING};
    memcpy(&l->table, &p->block->slot[t->slot].table, sizeof l->table);
    /* checks and uses see this copy, never the shared one again */
    atomic_signal_fence(memory_order_seq_cst);
    rc = check_table(p, &l->table, err);
    if (!rc && p->device && !l->table.complete) rc = wait_filled(p, l->slot, sender, stream, err);
    if (rc) {
        give_up(p, l->slot, reading, sl_word_peer(w));
        free(l);
        return rc;
    }
    *out = l;
    return SL_OK;
}

sl_code sl_lease_tensor(const sl_lease *l, const char *name, sl_tensor *t, sl_err *err)
{
    if (l->hold == OVER)
        return sl_fail(err, SL_ARG, "pool %s: tensor %s asked of a slot that has been sealed",
                       l->pool->name, name);
    const sl_block_tensor *e = find(&l->table, name);
    if (!e)
        return sl_fail(err, SL_FORMAT, "pool %s: slot %d has no tensor %s", l->pool->name, l->slot,
                       name);
    *t = tensor_at(l, e);
    return SL_OK;
}

void sl_lease_drop(sl_lease **lease, cudaStream_t stream)
{
    sl_lease *l = *lease;
    if (!l) return;
    const sl_pool *p = l->pool;
    if (l->hold == WRITING) {
        if (l->table.count && wait_idle(p, stream, NULL))
            quarantine_own(l); /* without a tensor, nobody had an address to write to */
        else end_writing(l);
    } else if (l->hold == READING) { /* if its reads cannot be ordered, the slot stays held */
        sl_code rc = p->device ? p->device->record(p->slab, l->slot, SL_SLAB_DRAINED, stream, NULL)
                               : wait_idle(p, stream, NULL);
        if (!rc) sl_free_slot(p, l->slot, sl_word(SL_SLOT_READING, 0, l->epoch));
    }
    free(l);
    *lease = NULL;
}

bool sl_pool_discard(sl_pool *p, const sl_ticket *ticket)
{
    uint64_t w = ready_word(p, ticket);
    return w && give_up(p, (int)ticket->slot, w, sl_word_peer(w));
}

/* ---- the dead and the slow ---- */

int sl_pool_revoke(sl_pool *p, int32_t pid)
{
    int count = 0;
    for (int i = 0; i < p->slots; i++)
        for (;;) { /* again when the writer moved the word: reserved -> filling -> ready */
            uint64_t w = sl_word_of(p, i), who = holder(p, w);
            if (!sl_being_written(w) || sl_peer_pid(who) != pid) break;
            bool done =
                sl_peer_lives(who)
                    ? sl_cas(&p->block->slot[i].word, w,
                             sl_word(SL_SLOT_QUARANTINED, sl_word_peer(w), sl_word_epoch(w)))
                    : free_after_death(p, i, w);
            count += done;
            if (done) break;
        }
    return count;
}

/* Is this ticket among those that were sent? */
static bool was_sent(const sl_pool *p, int slot, uint64_t w, const sl_ticket *sent, int count)
{
    for (int i = 0; i < count; i++)
        if (sent[i].pool == p->id && sent[i].slot == (uint32_t)slot &&
            sent[i].epoch == sl_word_epoch(w))
            return true;
    return false;
}

/* Every entry of a process `pid` that is dead; one that lives, under a reused pid, is
 * left alone. */
static int reap(sl_pool *p, int32_t pid, bool unsent_too, const sl_ticket *sent, int sent_count)
{
    bool dead[SL_BLOCK_PEERS] = {false};
    uint64_t words[SL_BLOCK_PEERS];
    int count = 0;
    for (int i = 0; i < SL_BLOCK_PEERS; i++) {
        words[i] = atomic_load(&p->block->peers[i]);
        dead[i] =
            words[i] && sl_peer_pid(words[i]) == pid && !sl_peer_lives(words[i] & ~SL_PEER_LEFT);
    }
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = sl_word_of(p, i);
        unsigned state = sl_word_state(w), peer = sl_word_peer(w);
        bool held =
            sl_being_written(w) || state == SL_SLOT_QUARANTINED || state == SL_SLOT_ABANDONED;
        bool lost = unsent_too && state == SL_SLOT_READY && !was_sent(p, i, w, sent, sent_count);
        bool broken = state >= SL_SLOT_STATES || (held && !holder(p, w)) ||
                      (state == SL_SLOT_ABANDONED && !p->device);
        /* the entry is compared after the word was read: if it still is the dead one's,
         * so is the hold */
        bool of_dead = peer < SL_BLOCK_PEERS && dead[peer] &&
                       atomic_load(&p->block->peers[peer]) == words[peer];
        if (broken || ((held || lost) && of_dead)) count += free_after_death(p, i, w);
    }
    for (unsigned i = 1; i < SL_BLOCK_PEERS; i++)
        if (dead[i]) sl_peer_leave(p, i, words[i]);
    return count;
}

int sl_pool_reap(sl_pool *p, int32_t pid)
{
    return reap(p, pid, false, NULL, 0);
}

int sl_pool_reap_unsent(sl_pool *p, int32_t pid, const sl_ticket *sent, int count)
{
    return reap(p, pid, true, sent, count);
}
