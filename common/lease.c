/* lease.c - tensors handed between processes without a copy: slots in a memfd, moved on by compare-and-swap. */
#include "common/lease.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/lease_block.h"
#include "common/lease_device.h"

#define LOOK_MS 50 /* a waiting sender looks this often whether the owner lives and a wake-up was lost */

#ifdef MFD_NOEXEC_SEAL
#define NOEXEC_SEAL MFD_NOEXEC_SEAL
#else
#define NOEXEC_SEAL 8u /* a kernel may be set to demand it, and headers older than the kernel lack the name */
#endif

struct sl_pool { /* what is read from the block is checked once and kept here: the block may be scribbled over */
    sl_block *block;
    size_t mapped;
    char *data; /* slot 0 */
    uint64_t id;
    sl_pool_kind kind;
    int slots;
    size_t slot_bytes;
    char name[SL_POOL_NAME];
    bool owned;
    unsigned peer;             /* this view's entry in block->peers */
    uint64_t self, owner;      /* peer words */
    int fd;                    /* the owner's: the memfd; else -1 */
    int owner_pidfd;           /* a sender's; -1 where the kernel has none */
    const sl_slab_ops *device; /* of a SL_POOL_CUDA pool, else NULL */
    void *slab;
    sl_ipc_handle device_handle;
    const sl_slab_ops *pinner; /* whose pin the slots of a host pool have, else NULL */
};

struct sl_lease {
    sl_pool *pool;
    int slot;
    uint64_t epoch;
    enum { WRITING, READING, OVER } hold;
    size_t used;          /* bytes laid out so far */
    sl_block_table table; /* this process's own copy */
};

static const sl_slab_ops *_Atomic cuda;

void sl_pool_use_cuda(const sl_slab_ops *ops)
{
    atomic_store(&cuda, ops);
}

/* ---- who is alive ---- */

/* Start time of a process in ticks since boot. SL_GONE: it is dead, that is gone or a zombie without running threads.
 * SL_SYS: cannot be told (no descriptors left, no /proc). */
static sl_code process_start(int32_t pid, uint64_t *start)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT || errno == ESRCH ? SL_GONE : SL_SYS;
    ssize_t n = read(fd, text, sizeof text - 1);
    sl_code rc = n < 0 && errno == ESRCH ? SL_GONE : SL_SYS;
    close(fd);
    if (n <= 0) return rc;
    text[n] = 0;
    const char *at = strrchr(text, ')'); /* the name before it may hold anything, spaces too */
    char state = 0, word[32];
    long long threads = 0;
    unsigned long long ticks = 0;
    for (int field = 3, used; at && field <= 22 && sscanf(at + (field == 3), " %31s%n", word, &used) == 1; field++) {
        at += used + (field == 3);
        if (field == 3) state = word[0];
        if (field == 20) threads = strtoll(word, NULL, 10);
        if (field == 22) ticks = strtoull(word, NULL, 10);
    }
    if (!ticks) return SL_SYS;
    *start = ticks;
    return (state == 'Z' || state == 'X') && threads <= 1 ? SL_GONE : SL_OK;
}

/* Does the very process that entered this word still live, and keep its view open? When in doubt it does: then its slots
 * stay its own. */
static bool peer_lives(uint64_t peer)
{
    uint64_t start = 0;
    if (!peer) return false;
    sl_code rc = process_start(sl_peer_pid(peer), &start);
    return rc == SL_SYS || (rc == SL_OK && sl_peer_word(sl_peer_pid(peer), start) == peer);
}

static bool owner_lives(const sl_pool *p)
{
    struct pollfd f = {.fd = p->owner_pidfd, .events = POLLIN};
    if (p->owned) return true;
    if (atomic_load_explicit(&p->block->closed, memory_order_acquire)) return false;
    if (p->owner_pidfd >= 0) return poll(&f, 1, 0) <= 0;
    return peer_lives(p->owner);
}

/* ---- slots ---- */

static bool cas(_Atomic uint64_t *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit(word, &from, to, memory_order_acq_rel, memory_order_acquire);
}

static uint64_t word_of(const sl_pool *p, int slot)
{
    return atomic_load_explicit(&p->block->slot[slot].word, memory_order_acquire);
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void wake_senders(const sl_pool *p)
{
    atomic_fetch_add_explicit(&p->block->freed, 1, memory_order_release);
    syscall(SYS_futex, &p->block->freed, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* FREE with the next epoch, if the word is still `from`. A process that dies before the wake-up costs the waiting
 * sender LOOK_MS, no more. */
static bool free_slot(const sl_pool *p, int slot, uint64_t from)
{
    if (!cas(&p->block->slot[slot].word, from, sl_word(SL_SLOT_FREE, 0, sl_word_epoch(from) + 1))) return false;
    wake_senders(p);
    return true;
}

/* As free_slot, for a slot in which a process that has died may have had work of a device: the slot rests first. An event that
 * the process left pending may never come, and no document says what recording it anew does then, so nobody does: whoever seals
 * this slot from now on waits for its own work. */
static bool free_after_death(const sl_pool *p, int slot, uint64_t from)
{
    sl_block_slot *s = &p->block->slot[slot];
    bool came = true;
    if (p->device || atomic_load_explicit(&p->block->pinned, memory_order_relaxed))
        atomic_store_explicit(&s->rest_until_ms, now_ms() + SL_LEASE_REST_MS, memory_order_relaxed);
    if (p->device && (p->device->reached(p->slab, slot, SL_SLAB_FILLED, &came, NULL) || !came))
        atomic_store_explicit(&s->no_filled, 1, memory_order_relaxed);
    return free_slot(p, slot, from);
}

static bool resting(const sl_pool *p, int slot)
{
    int64_t until = atomic_load_explicit(&p->block->slot[slot].rest_until_ms, memory_order_relaxed);
    uint64_t left = (uint64_t)until - (uint64_t)now_ms();
    return left - 1 < SL_LEASE_REST_MS; /* neither over nor, in a block scribbled over, longer than it can be */
}

static bool being_written(uint64_t w)
{
    return sl_word_state(w) == SL_SLOT_RESERVED || sl_word_state(w) == SL_SLOT_FILLING;
}

/* End this writer's hold, whatever became of it: true if it was still the holder, false if it had been revoked. A slot
 * in quarantine waited for just this. */
static bool end_writing(const sl_lease *l)
{
    const sl_pool *p = l->pool;
    for (;;) {
        uint64_t w = word_of(p, l->slot);
        bool mine = sl_word_peer(w) == p->peer && sl_word_epoch(w) == l->epoch;
        if (!mine || !(being_written(w) || sl_word_state(w) == SL_SLOT_QUARANTINED)) return false;
        if (free_slot(p, l->slot, w)) return sl_word_state(w) != SL_SLOT_QUARANTINED;
    }
}

/* The writer cannot tell that its device has done with the slot: nobody gets it while this process lives. */
static void quarantine_own(const sl_lease *l)
{
    const sl_pool *p = l->pool;
    uint64_t w = word_of(p, l->slot);
    while (being_written(w) && sl_word_peer(w) == p->peer && sl_word_epoch(w) == l->epoch)
        if (cas(&p->block->slot[l->slot].word, w, sl_word(SL_SLOT_QUARANTINED, p->peer, l->epoch))) break;
        else w = word_of(p, l->slot);
}

/* ---- work of devices ---- */

static void pause_between_looks(int64_t looks)
{
    struct timespec t = {.tv_nsec = looks < 2000 ? 20000 : 200000};
    if (looks > 200) nanosleep(&t, NULL); /* short work is over within a few looks */
}

/* Wait until nothing is queued on `stream`. On a host pool, NULL means that no device touches the slot. */
static sl_code wait_idle(const sl_pool *p, cudaStream_t stream, sl_err *err)
{
    const sl_slab_ops *ops = p->device;
    int64_t deadline = now_ms() + SL_LEASE_WORK_MS;
    bool idle = false;
    if (!ops && !stream) return SL_OK;
    if (!ops) ops = atomic_load(&cuda);
    if (!ops) return sl_fail(err, SL_ARG, "pool %s: a stream is given, and no CUDA plug-in is in use", p->name);
    for (int64_t looks = 0;; looks++) {
        sl_code rc = ops->idle(stream, &idle, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        if (idle) return SL_OK;
        if (now_ms() >= deadline)
            return sl_fail(err, SL_TIMEOUT, "pool %s: work on a slot was not over after %d s", p->name, SL_LEASE_WORK_MS / 1000);
        pause_between_looks(looks);
    }
}

/* Wait until what `sender` queued before its seal is over, then make stream follow it. An event that its process did not
 * live to see through never comes. */
static sl_code wait_filled(const sl_pool *p, int slot, uint64_t sender, cudaStream_t stream, sl_err *err)
{
    int64_t deadline = now_ms() + SL_LEASE_WORK_MS, look = now_ms() + LOOK_MS, last = INT64_MAX;
    bool filled = false;
    for (int64_t looks = 0;; looks++) {
        sl_code rc = p->device->reached(p->slab, slot, SL_SLAB_FILLED, &filled, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        if (filled) return p->device->wait(p->slab, slot, stream, err);
        int64_t now = now_ms();
        if (now >= last)
            return sl_fail(err, SL_GONE, "pool %s: process %d died before its device had written slot %d", p->name,
                           sl_peer_pid(sender), slot);
        if (now >= deadline)
            return sl_fail(err, SL_TIMEOUT, "pool %s: process %d had not written slot %d after %d s", p->name, sl_peer_pid(sender),
                           slot, SL_LEASE_WORK_MS / 1000);
        if (now >= look) {
            look = now + LOOK_MS;
            if (last == INT64_MAX && !peer_lives(sender)) last = now + SL_LEASE_LAST_MS;
        }
        pause_between_looks(looks);
    }
}

/* End a sealed slot (its word is `from`) that nobody will read. Work queued before the seal may still write it: then it is
 * ABANDONED, until a reserve finds the event come or a reap the sender dead. */
static bool give_up(const sl_pool *p, int slot, uint64_t from, unsigned peer)
{
    bool filled = !p->device || p->block->slot[slot].table.complete;
    if (!filled && p->device->reached(p->slab, slot, SL_SLAB_FILLED, &filled, NULL)) filled = false;
    if (filled) return free_slot(p, slot, from);
    uint64_t sender = peer < SL_BLOCK_PEERS ? atomic_load(&p->block->peers[peer]) & ~SL_PEER_LEFT : 0;
    if (!peer_lives(sender)) return free_after_death(p, slot, from);
    return cas(&p->block->slot[slot].word, from, sl_word(SL_SLOT_ABANDONED, peer, sl_word_epoch(from)));
}

/* ---- entries of the table of peers ---- */

/* The peer that a held slot names; 0: none, which only a scribbled word does. */
static uint64_t holder(const sl_pool *p, uint64_t w)
{
    unsigned peer = sl_word_peer(w);
    return peer < SL_BLOCK_PEERS ? atomic_load(&p->block->peers[peer]) : 0;
}

static bool named_by_a_slot(const sl_pool *p, unsigned peer)
{
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = word_of(p, i);
        if (sl_word_state(w) != SL_SLOT_FREE && sl_word_state(w) != SL_SLOT_READING && sl_word_peer(w) == peer) return true;
    }
    return false;
}

/* Give an entry of a dead or closed peer away. The word is compared: a newer tenant keeps its entry. */
static void leave(const sl_pool *p, unsigned peer, uint64_t word)
{
    cas(&p->block->peers[peer], word, named_by_a_slot(p, peer) ? word | SL_PEER_LEFT : 0);
}

static sl_code enter(sl_pool *p, sl_err *err)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (unsigned i = 1; i < SL_BLOCK_PEERS; i++)
            if (cas(&p->block->peers[i], 0, p->self)) {
                p->peer = i;
                return SL_OK;
            }
        for (unsigned i = 1; i < SL_BLOCK_PEERS; i++) { /* full: is one dead, or closed and its last slot read? */
            uint64_t w = atomic_load(&p->block->peers[i]);
            if (!peer_lives(w)) leave(p, i, w);
        }
    }
    return sl_fail(err, SL_BUSY, "pool %s: %d views of it are open, the most there may be", p->name, SL_BLOCK_PEERS - 1);
}

/* The process's own peer word. */
static sl_code self_word(uint64_t *out, sl_err *err)
{
    uint64_t start;
    if (process_start(getpid(), &start))
        return sl_fail(err, SL_SYS, "/proc/%d/stat cannot be read: is /proc mounted?", (int)getpid());
    *out = sl_peer_word(getpid(), start);
    return SL_OK;
}

/* ---- create, open, close ---- */

static size_t page_up(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (n + page - 1) / page * page;
}

/* Bytes of the memfd; SL_ARG when the numbers make no sense. slot_bytes is a multiple of a page. */
static sl_code pool_size(sl_pool_kind kind, int64_t slots, uint64_t slot_bytes, size_t *out, sl_err *err)
{
    size_t data = 0;
    if (slots < 1 || slots > SL_POOL_MAX_SLOTS)
        return sl_fail(err, SL_ARG, "pool has %lld slots, want 1 to %d", (long long)slots, SL_POOL_MAX_SLOTS);
    if (slot_bytes < 1 || slot_bytes > (UINT64_C(1) << 46))
        return sl_fail(err, SL_ARG, "pool has slots of %llu bytes, want 1 to 2^46", (unsigned long long)slot_bytes);
    if (slot_bytes % (size_t)sysconf(_SC_PAGESIZE))
        return sl_fail(err, SL_ARG, "pool has slots of %llu bytes, want a multiple of a page", (unsigned long long)slot_bytes);
    if (kind == SL_POOL_HOST) data = (size_t)slots * slot_bytes;
    *out = page_up(sizeof(sl_block)) + data;
    return SL_OK;
}

static sl_code map_block(sl_pool *p, int fd, size_t bytes, sl_err *err)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (at == MAP_FAILED) return sl_fail_errno(err, errno, "pool %s: map %zu bytes", p->name, bytes);
    p->block = at;
    p->mapped = bytes;
    if (p->kind == SL_POOL_HOST) p->data = (char *)at + page_up(sizeof(sl_block));
    return SL_OK;
}

/* Open or create the device slab of a SL_POOL_CUDA pool; nothing to do for a host pool. */
static sl_code map_device(sl_pool *p, sl_err *err)
{
    sl_ipc_handle filled[SL_POOL_MAX_SLOTS] = {0}, drained[SL_POOL_MAX_SLOTS] = {0};
    sl_code rc;
    if (p->kind != SL_POOL_CUDA) return SL_OK;
    if (p->owned) {
        if ((rc = p->device->create(&p->slab, p->slots, p->slot_bytes, p->device_handle, filled, drained, err)))
            return sl_context(err, rc, "pool %s", p->name);
        for (int i = 0; i < p->slots; i++) {
            memcpy(p->block->slot[i].filled_event, filled[i], sizeof filled[i]);
            memcpy(p->block->slot[i].drained_event, drained[i], sizeof drained[i]);
        }
    } else {
        for (int i = 0; i < p->slots; i++) {
            memcpy(filled[i], p->block->slot[i].filled_event, sizeof filled[i]);
            memcpy(drained[i], p->block->slot[i].drained_event, sizeof drained[i]);
        }
        if ((rc = p->device->open(&p->slab, p->slots, p->slot_bytes, p->device_handle, (const sl_ipc_handle *)filled,
                                  (const sl_ipc_handle *)drained, err)))
            return sl_context(err, rc, "pool %s", p->name);
    }
    p->data = p->device->base(p->slab);
    return SL_OK;
}

static sl_code new_pool(sl_pool **out, const char *name, uint32_t kind, sl_err *err)
{
    *out = NULL;
    if (kind != SL_POOL_HOST && kind != SL_POOL_CUDA)
        return sl_fail(err, SL_ARG, "pool %s: kind %u, want 0 (host) or 1 (CUDA)", name, kind);
    const sl_slab_ops *device = kind == SL_POOL_CUDA ? atomic_load(&cuda) : NULL;
    if (kind == SL_POOL_CUDA && !device)
        return sl_fail(err, SL_CUDA, "pool %s: its slots are device memory, and no CUDA plug-in is in use", name);
    sl_pool *p = calloc(1, sizeof *p);
    if (!p) return sl_fail(err, SL_NOMEM, "pool %s: no memory", name);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->kind = (sl_pool_kind)kind;
    p->device = device;
    p->fd = p->owner_pidfd = -1;
    *out = p;
    return SL_OK;
}

static sl_code create_block(sl_pool *p, sl_err *err)
{
    char label[SL_POOL_NAME + 8];
    size_t bytes;
    sl_code rc;
    if ((rc = pool_size(p->kind, p->slots, p->slot_bytes, &bytes, err))) return sl_context(err, rc, "pool %s", p->name);
    if ((rc = self_word(&p->self, err))) return rc;
    if (getrandom(&p->id, sizeof p->id, 0) != sizeof p->id) return sl_fail_errno(err, errno, "pool %s: getrandom", p->name);
    snprintf(label, sizeof label, "sluice-%s", p->name);
    p->fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING | NOEXEC_SEAL);
    if (p->fd < 0 && errno == EINVAL) p->fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING); /* before Linux 6.3 */
    if (p->fd < 0) return sl_fail_errno(err, errno, "pool %s: memfd_create", p->name);
    if (ftruncate(p->fd, (off_t)bytes)) return sl_fail_errno(err, errno, "pool %s: size %zu bytes", p->name, bytes);
    /* nobody can shrink it: touching the mapping can never raise SIGBUS */
    if (fcntl(p->fd, F_ADD_SEALS, SL_BLOCK_SEALS)) return sl_fail_errno(err, errno, "pool %s: seal its size", p->name);
    if ((rc = map_block(p, p->fd, bytes, err))) return rc;
    p->owner = p->self;
    p->block->magic = SL_BLOCK_MAGIC;
    p->block->pool = p->id;
    p->block->kind = p->kind;
    p->block->slots = (uint32_t)p->slots;
    p->block->slot_bytes = p->slot_bytes;
    atomic_store(&p->block->peers[0], p->self);
    for (int i = 0; i < p->slots; i++) atomic_store(&p->block->slot[i].word, sl_word(SL_SLOT_FREE, 0, 1));
    return map_device(p, err);
}

sl_code sl_pool_create(sl_pool **out, const char *name, sl_pool_kind kind, int slots, size_t slot_bytes, sl_err *err)
{
    sl_code rc = new_pool(out, name, kind, err);
    if (rc) return rc;
    (*out)->owned = true;
    (*out)->slots = slots;
    (*out)->slot_bytes = slot_bytes > SIZE_MAX / 2 ? slot_bytes : page_up(slot_bytes);
    if ((rc = create_block(*out, err))) sl_pool_close(out);
    return rc;
}

void sl_pool_export(const sl_pool *p, sl_pool_handle *out)
{
    *out = (sl_pool_handle){
        .pool = p->id,
        .pid = sl_peer_pid(p->owner),
        .fd = p->fd,
        .kind = p->kind,
        .slots = (uint32_t)p->slots,
        .slot_bytes = p->slot_bytes,
    };
    memcpy(out->name, p->name, sizeof out->name);
    memcpy(out->device_handle, p->device_handle, sizeof out->device_handle);
}

/* A descriptor of the owner's memory, through /proc. The link is read first, so that a number which now means another
 * file of the owner's (or of a process with a reused pid) is never opened. */
static sl_code owner_memory(const sl_pool *p, const sl_pool_handle *h, int *fd, sl_err *err)
{
    char path[64], link[64];
    const char want[] = "/memfd:sluice-";
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0 && (errno == ENOENT || errno == ESRCH))
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone or has closed it", p->name, h->pid);
    if (n < 0) return sl_fail_errno(err, errno, "pool %s: %s", p->name, path);
    link[n] = 0;
    if (strncmp(link, want, sizeof want - 1))
        return sl_fail(err, SL_GONE, "pool %s: %s is %s, not a pool any more", p->name, path, link);
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd < 0 && (errno == ENOENT || errno == ESRCH))
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name, h->pid);
    if (*fd < 0) return sl_fail_errno(err, errno, "pool %s: open %s", p->name, path);
    return SL_OK;
}

/* Map the owner's memory and believe nothing that it says before it is compared. */
static sl_code open_block(sl_pool *p, const sl_pool_handle *h, int fd, sl_err *err)
{
    struct stat st;
    size_t bytes;
    sl_code rc;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SL_BLOCK_SEALS) != SL_BLOCK_SEALS)
        return sl_fail(err, SL_FORMAT, "pool %s: its memory is not sealed against shrinking", p->name);
    if (pool_size(p->kind, h->slots, h->slot_bytes, &bytes, err)) return sl_context(err, SL_FORMAT, "pool %s: handle", p->name);
    if (fstat(fd, &st)) return sl_fail_errno(err, errno, "pool %s", p->name);
    if ((uint64_t)st.st_size < page_up(sizeof(sl_block)))
        return sl_fail(err, SL_FORMAT, "pool %s: its memory has %lld bytes, want at least %zu", p->name, (long long)st.st_size,
                       sizeof(sl_block));
    uint64_t found[5];
    if (pread(fd, found, sizeof found, 0) != sizeof found) return sl_fail_errno(err, errno, "pool %s: read its block", p->name);
    _Static_assert(offsetof(sl_block, pool) == 8 && offsetof(sl_block, slot_bytes) == 24, "the order of pread above");
    if (found[1] != h->pool) return sl_fail(err, SL_GONE, "pool %s: process %d has another pool there now", p->name, h->pid);
    if (found[0] != SL_BLOCK_MAGIC)
        return sl_fail(err, SL_FORMAT, "pool %s: its block starts with %#llx, want %#llx (another version of sluice?)", p->name,
                       (unsigned long long)found[0], (unsigned long long)SL_BLOCK_MAGIC);
    if (found[2] != ((uint64_t)h->slots << 32 | h->kind) || found[3] != h->slot_bytes || (uint64_t)st.st_size != bytes)
        return sl_fail(err, SL_FORMAT,
                       "pool %s: block has kind %u, %u slots of %llu bytes in %lld, handle has kind %u, %u slots of %llu in %zu",
                       p->name, (unsigned)found[2], (unsigned)(found[2] >> 32), (unsigned long long)found[3], (long long)st.st_size,
                       h->kind, h->slots, (unsigned long long)h->slot_bytes, bytes);
    p->id = h->pool;
    p->slots = (int)h->slots;
    p->slot_bytes = h->slot_bytes;
    memcpy(p->device_handle, h->device_handle, sizeof p->device_handle);
    if ((rc = map_block(p, fd, bytes, err))) return rc;
    if ((rc = self_word(&p->self, err))) return rc;
    if ((rc = enter(p, err))) return rc;
    return map_device(p, err);
}

/* Pin down who the owner is: a pidfd and the start time, taken so that both mean the process that has the memory. */
static sl_code find_owner(sl_pool *p, int32_t pid, sl_err *err)
{
    uint64_t start;
    p->owner_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    sl_code rc = process_start(pid, &start);
    if (rc == SL_SYS) return sl_fail(err, SL_SYS, "pool %s: /proc/%d/stat cannot be read", p->name, pid);
    if (rc) return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name, pid);
    p->owner = sl_peer_word(pid, start);
    return SL_OK;
}

sl_code sl_pool_open(sl_pool **out, const sl_pool_handle *handle, sl_err *err)
{
    sl_pool_handle h = *handle; /* from a message: the name may lack its NUL */
    int fd = -1;
    h.name[SL_POOL_NAME - 1] = 0;
    sl_code rc = new_pool(out, h.name, h.kind, err);
    if (rc == SL_ARG) rc = sl_context(err, SL_FORMAT, "handle");
    if (rc) return rc;
    if ((rc = find_owner(*out, h.pid, err))) goto done;
    if ((rc = owner_memory(*out, &h, &fd, err))) goto done;
    if ((rc = open_block(*out, &h, fd, err))) goto done;
    if (!owner_lives(*out)) rc = sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", h.name, h.pid);
done:
    if (fd >= 0) close(fd);
    if (rc) sl_pool_close(out);
    return rc;
}

/* Leases that were forgotten end here: the mapping goes, so nobody can write through them. */
static void end_own_holds(const sl_pool *p)
{
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = word_of(p, i);
        bool held = being_written(w) || sl_word_state(w) == SL_SLOT_QUARANTINED || sl_word_state(w) == SL_SLOT_ABANDONED;
        if (sl_word_peer(w) == p->peer && held) free_slot(p, i, w);
    }
    leave(p, p->peer, p->self);
}

void sl_pool_close(sl_pool **pool)
{
    sl_pool *p = *pool;
    if (!p) return;
    bool mine = p->block && sl_peer_pid(p->self) == getpid(); /* else a forked child, or a half-done open */
    const sl_slab_ops *ops = p->slab ? p->device : p->pinner;
    sl_code rc = mine && ops ? ops->finish(p->slab, NULL) : SL_OK;
    bool stuck = rc == SL_TIMEOUT; /* the device may use the memory still, and to give it back would wait without a deadline */
    if (mine && p->owned) {
        atomic_store(&p->block->closed, 1);
        wake_senders(p);
    } else if (mine && p->peer && !rc) { /* else the holds end with the process, as its broken device does */
        end_own_holds(p);
    }
    if (mine && p->slab && !stuck) p->device->close(p->slab);
    if (mine && p->pinner && !stuck) p->pinner->unpin(p->data);
    if (p->block && !stuck) munmap(p->block, p->mapped);
    if (p->fd >= 0) close(p->fd);
    if (p->owner_pidfd >= 0) close(p->owner_pidfd);
    free(p);
    *pool = NULL;
}

sl_code sl_pool_pin(sl_pool *p, sl_err *err)
{
    const sl_slab_ops *ops = atomic_load(&cuda);
    sl_code rc;
    if (p->device || p->pinner) return SL_OK;
    if (!ops) return sl_fail(err, SL_CUDA, "pool %s: to be pinned, and no CUDA plug-in is in use", p->name);
    atomic_store(&p->block->pinned, 1); /* before: from the first copy on, a slot rests after a death */
    if ((rc = ops->pin(p->data, (size_t)p->slots * p->slot_bytes, err))) return sl_context(err, rc, "pool %s", p->name);
    p->pinner = ops;
    return SL_OK;
}

sl_pool_kind sl_pool_kind_of(const sl_pool *p)
{
    return p->kind;
}

bool sl_pool_pinned(const sl_pool *p)
{
    return p->pinner != NULL;
}

size_t sl_pool_slot_bytes(const sl_pool *p)
{
    return p->slot_bytes;
}

int sl_pool_slots(const sl_pool *p)
{
    return p->slots;
}

uint64_t sl_pool_id(const sl_pool *p)
{
    return p->id;
}

void sl_pool_count(const sl_pool *p, sl_pool_counts *out)
{
    *out = (sl_pool_counts){0};
    for (int i = 0; i < p->slots; i++) switch (sl_word_state(word_of(p, i))) {
        case SL_SLOT_FREE: out->free++; break;
        case SL_SLOT_RESERVED:
        case SL_SLOT_FILLING: out->writing++; break;
        case SL_SLOT_READY: out->ready++; break;
        case SL_SLOT_READING: out->reading++; break;
        default: out->quarantined++; break; /* a state that is none is not safe to use either */
        }
}

/* ---- the sender's side ---- */

/* May slot i be claimed, as its word `w` says? *w is read again if the slot came free here. *soon: not yet, and nobody will
 * wake us when it may. */
static sl_code claimable(const sl_pool *p, int i, uint64_t *w, bool *yes, bool *soon, sl_err *err)
{
    sl_code rc;
    *yes = false;
    if (p->device && sl_word_state(*w) == SL_SLOT_ABANDONED) {
        if ((rc = p->device->reached(p->slab, i, SL_SLAB_FILLED, yes, err))) return rc;
        if (*yes) free_slot(p, i, *w);
        else *soon = true;
        *w = word_of(p, i);
    }
    if (sl_word_state(*w) != SL_SLOT_FREE) {
        *yes = false;
        return SL_OK;
    }
    *yes = !resting(p, i);
    if (*yes && p->device && (rc = p->device->reached(p->slab, i, SL_SLAB_DRAINED, yes, err))) return rc;
    if (!*yes) *soon = true;
    return SL_OK;
}

/* The first free slot, so that memory which was never needed is never touched; *slot -1: none. */
static sl_code claim(const sl_pool *p, int *slot, uint64_t *epoch, bool *soon, sl_err *err)
{
    *slot = -1;
    *soon = false;
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = word_of(p, i);
        bool yes;
        sl_code rc = claimable(p, i, &w, &yes, soon, err);
        if (rc) return sl_context(err, rc, "pool %s", p->name);
        /* the word holds the epoch: had the slot been given away and dropped meanwhile, it were another */
        if (!yes || !cas(&p->block->slot[i].word, w, sl_word(SL_SLOT_RESERVED, p->peer, sl_word_epoch(w)))) continue;
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
        return sl_fail(err, SL_ARG, "pool %s was opened by process %d, this is %d: open it again after a fork", p->name,
                       sl_peer_pid(p->self), (int)getpid());
    for (;;) {
        uint32_t seen = atomic_load_explicit(&p->block->freed, memory_order_acquire); /* before looking: no wake-up is missed */
        if (!owner_lives(p))
            return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name, sl_peer_pid(p->owner));
        if ((rc = claim(p, &slot, &epoch, &soon, err))) return rc;
        if (slot >= 0) break;
        int64_t now = now_ms();
        if (now >= deadline)
            return sl_fail(err, SL_BUSY, "pool %s: none of %d slots came free in %d ms", p->name, p->slots,
                           wait_ms > 0 ? wait_ms : 0);
        int64_t until = now + (soon ? 1 : LOOK_MS);
        sleep_on(p, seen, until < deadline ? until : deadline);
    }
    sl_lease *l = calloc(1, sizeof *l);
    if (!l) {
        free_slot(p, slot, sl_word(SL_SLOT_RESERVED, p->peer, epoch));
        return sl_fail(err, SL_NOMEM, "pool %s: no memory for a lease", p->name);
    }
    *l = (sl_lease){.pool = p, .slot = slot, .epoch = epoch, .hold = WRITING};
    *out = l;
    return SL_OK;
}

static sl_tensor tensor_at(const sl_lease *l, const sl_block_tensor *e)
{
    return sl_view(l->pool->data + (size_t)l->slot * l->pool->slot_bytes + e->offset, (sl_dtype)e->dtype, (int)e->rank, e->shape);
}

static const sl_block_tensor *find(const sl_block_table *t, const char *name)
{
    for (uint32_t i = 0; i < t->count; i++)
        if (!strcmp(t->tensor[i].name, name)) return &t->tensor[i];
    return NULL;
}

sl_code sl_lease_add(sl_lease *l, const char *name, sl_dtype dtype, int rank, const int64_t *shape, sl_tensor *t, sl_err *err)
{
    const sl_pool *p = l->pool;
    int64_t bytes;
    if (l->hold != WRITING)
        return sl_fail(err, SL_ARG, "pool %s: tensor %s added to a slot that is not being written", p->name, name);
    if (l->table.count == SL_LEASE_TENSORS)
        return sl_fail(err, SL_ARG, "pool %s: tensor %s is one too many for a slot, want at most %d", p->name, name,
                       SL_LEASE_TENSORS);
    if (!name[0] || strlen(name) >= SL_LEASE_NAME)
        return sl_fail(err, SL_ARG, "pool %s: tensor name \"%.64s\" has %zu bytes, want 1 to %d", p->name, name, strlen(name),
                       SL_LEASE_NAME - 1);
    if (find(&l->table, name)) return sl_fail(err, SL_ARG, "pool %s: a tensor %s is in the slot already", p->name, name);
    if ((unsigned)dtype >= SL_DTYPE_COUNT)
        return sl_fail(err, SL_SHAPE, "pool %s: tensor %s has dtype %d, want 0 to %d", p->name, name, (int)dtype,
                       SL_DTYPE_COUNT - 1);
    if (rank < 1 || rank > SL_MAX_RANK)
        return sl_fail(err, SL_SHAPE, "pool %s: tensor %s has %d dimensions, want 1 to %d", p->name, name, rank, SL_MAX_RANK);
    if (sl_shape_bytes(dtype, rank, shape, &bytes, err)) return sl_context(err, SL_SHAPE, "pool %s: tensor %s", p->name, name);
    if ((uint64_t)bytes > p->slot_bytes - l->used)
        return sl_fail(err, SL_SHAPE, "pool %s: tensor %s takes %lld bytes, %zu of the slot's %zu are left", p->name, name,
                       (long long)bytes, p->slot_bytes - l->used, p->slot_bytes);

    uint64_t reserved = sl_word(SL_SLOT_RESERVED, p->peer, l->epoch), filling = sl_word(SL_SLOT_FILLING, p->peer, l->epoch);
    if (!cas(&p->block->slot[l->slot].word, reserved, filling) && word_of(p, l->slot) != filling)
        return sl_fail(err, SL_GONE, "pool %s: slot %d was revoked while it was being written", p->name, l->slot);

    sl_block_tensor *e = &l->table.tensor[l->table.count++];
    *e = (sl_block_tensor){.dtype = (uint32_t)dtype, .rank = (uint32_t)rank, .offset = l->used};
    snprintf(e->name, sizeof e->name, "%s", name);
    memcpy(e->shape, shape, (size_t)rank * sizeof *shape);
    size_t end = l->used + (size_t)bytes;
    l->used = (end + SL_BLOCK_ALIGN - 1) / SL_BLOCK_ALIGN * SL_BLOCK_ALIGN; /* slots are whole pages: never past the end */
    *t = tensor_at(l, e);
    return SL_OK;
}

sl_code sl_lease_seal(sl_lease *l, cudaStream_t stream, sl_ticket *out, sl_err *err)
{
    const sl_pool *p = l->pool;
    sl_block_slot *s = &p->block->slot[l->slot];
    sl_code rc;
    if (l->hold != WRITING) return sl_fail(err, SL_ARG, "pool %s: seal of a slot that is not being written", p->name);
    if (!l->table.count) return sl_fail(err, SL_ARG, "pool %s: seal of a slot without a tensor", p->name);
    if (p->device && !owner_lives(p)) /* its events are gone with it */
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name, sl_peer_pid(p->owner));
    l->table.complete = !p->device || atomic_load_explicit(&s->no_filled, memory_order_relaxed);
    if (l->table.complete && (rc = wait_idle(p, stream, err))) return rc;
    if (!l->table.complete && (rc = p->device->record(p->slab, l->slot, SL_SLAB_FILLED, stream, err)))
        return sl_context(err, rc, "pool %s", p->name);
    memcpy(&s->table, &l->table, sizeof s->table); /* revoked or not, the slot is nobody else's before this hold ends */
    l->hold = OVER;
    if (!cas(&s->word, sl_word(SL_SLOT_FILLING, p->peer, l->epoch), sl_word(SL_SLOT_READY, p->peer, l->epoch))) {
        if (!wait_idle(p, stream, NULL)) end_writing(l); /* else it stays in quarantine */
        return sl_fail(err, SL_GONE, "pool %s: slot %d was revoked while it was being written", p->name, l->slot);
    }
    *out = (sl_ticket){.pool = p->id, .slot = (uint32_t)l->slot, .epoch = l->epoch};
    if (!owner_lives(p)) return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", p->name, sl_peer_pid(p->owner));
    return SL_OK;
}

/* ---- the owner's side ---- */

/* The table of a slot as its sender left it: every number is checked, for it will become a pointer. */
static sl_code check_table(const sl_pool *p, const sl_block_table *t, sl_err *err)
{
    uint64_t end = 0;
    if (t->count < 1 || t->count > SL_LEASE_TENSORS)
        return sl_fail(err, SL_FORMAT, "pool %s: slot has %u tensors, want 1 to %d", p->name, t->count, SL_LEASE_TENSORS);
    for (uint32_t i = 0; i < t->count; i++) {
        const sl_block_tensor *e = &t->tensor[i];
        int64_t bytes;
        if (!e->name[0] || !memchr(e->name, 0, sizeof e->name))
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has no proper name", p->name, i);
        if (e->dtype >= SL_DTYPE_COUNT)
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has dtype %u, want 0 to %d", p->name, i, e->dtype,
                           SL_DTYPE_COUNT - 1);
        if (e->rank < 1 || e->rank > SL_MAX_RANK)
            return sl_fail(err, SL_FORMAT, "pool %s: tensor %u has %u dimensions, want 1 to %d", p->name, i, e->rank, SL_MAX_RANK);
        if (sl_shape_bytes((sl_dtype)e->dtype, (int)e->rank, e->shape, &bytes, err))
            return sl_context(err, SL_FORMAT, "pool %s: tensor %u", p->name, i);
        if (e->offset % SL_BLOCK_ALIGN || e->offset < end || e->offset > p->slot_bytes ||
            (uint64_t)bytes > p->slot_bytes - e->offset)
            return sl_fail(
                err, SL_FORMAT,
                "pool %s: tensor %u lies at byte %llu for %lld bytes, want a multiple of %d from %llu and an end within %zu",
                p->name, i, (unsigned long long)e->offset, (long long)bytes, SL_BLOCK_ALIGN, (unsigned long long)end,
                p->slot_bytes);
        end = e->offset + (uint64_t)bytes;
    }
    return SL_OK;
}

/* The READY word that a ticket names, or 0 when it names none in this pool (a READY word is never 0). */
static uint64_t ready_word(const sl_pool *p, const sl_ticket *t)
{
    if (t->pool != p->id || t->slot >= (uint32_t)p->slots) return 0;
    uint64_t w = word_of(p, (int)t->slot);
    return sl_word_state(w) == SL_SLOT_READY && sl_word_epoch(w) == t->epoch ? w : 0;
}

sl_code sl_lease_open(sl_lease **out, sl_pool *p, const sl_ticket *t, cudaStream_t stream, sl_err *err)
{
    uint64_t w = ready_word(p, t), reading;
    sl_code rc;
    *out = NULL;
    if (!p->owned)
        return sl_fail(err, SL_ARG, "pool %s: only its owner, process %d, opens tickets", p->name, sl_peer_pid(p->owner));
    if (t->pool != p->id)
        return sl_fail(err, SL_GONE, "pool %s: ticket is of pool %016llx, this is %016llx", p->name, (unsigned long long)t->pool,
                       (unsigned long long)p->id);
    if (!w)
        return sl_fail(err, SL_GONE, "pool %s: ticket of slot %u, epoch %llu, is stale", p->name, t->slot,
                       (unsigned long long)t->epoch);
    sl_lease *l = calloc(1, sizeof *l);
    if (!l) return sl_fail(err, SL_NOMEM, "pool %s: no memory for a lease", p->name);
    uint64_t sender = holder(p, w) & ~SL_PEER_LEFT; /* while the word names it, the entry is not given away */
    reading = sl_word(SL_SLOT_READING, 0, t->epoch);
    if (!cas(&p->block->slot[t->slot].word, w, reading)) {
        free(l);
        return sl_fail(err, SL_GONE, "pool %s: ticket of slot %u, epoch %llu, is stale", p->name, t->slot,
                       (unsigned long long)t->epoch);
    }
    *l = (sl_lease){.pool = p, .slot = (int)t->slot, .epoch = t->epoch, .hold = READING};
    memcpy(&l->table, &p->block->slot[t->slot].table, sizeof l->table);
    atomic_signal_fence(memory_order_seq_cst); /* checks and uses see this copy, never the shared one again */
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
        return sl_fail(err, SL_ARG, "pool %s: tensor %s asked of a slot that has been sealed", l->pool->name, name);
    const sl_block_tensor *e = find(&l->table, name);
    if (!e) return sl_fail(err, SL_FORMAT, "pool %s: slot %d has no tensor %s", l->pool->name, l->slot, name);
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
        sl_code rc = p->device ? p->device->record(p->slab, l->slot, SL_SLAB_DRAINED, stream, NULL) : wait_idle(p, stream, NULL);
        if (!rc) free_slot(p, l->slot, sl_word(SL_SLOT_READING, 0, l->epoch));
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
        for (;;) { /* again when the writer moved the word meanwhile: reserved -> filling -> ready */
            uint64_t w = word_of(p, i), who = holder(p, w);
            if (!being_written(w) || sl_peer_pid(who) != pid) break;
            bool done = peer_lives(who)
                            ? cas(&p->block->slot[i].word, w, sl_word(SL_SLOT_QUARANTINED, sl_word_peer(w), sl_word_epoch(w)))
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
        if (sent[i].pool == p->id && sent[i].slot == (uint32_t)slot && sent[i].epoch == sl_word_epoch(w)) return true;
    return false;
}

/* Every entry of a process `pid` that is dead; one that lives, under a reused pid, is left alone. */
static int reap(sl_pool *p, int32_t pid, bool unsent_too, const sl_ticket *sent, int sent_count)
{
    bool dead[SL_BLOCK_PEERS] = {false};
    uint64_t words[SL_BLOCK_PEERS];
    int count = 0;
    for (int i = 0; i < SL_BLOCK_PEERS; i++) {
        words[i] = atomic_load(&p->block->peers[i]);
        dead[i] = words[i] && sl_peer_pid(words[i]) == pid && !peer_lives(words[i] & ~SL_PEER_LEFT);
    }
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = word_of(p, i);
        unsigned state = sl_word_state(w), peer = sl_word_peer(w);
        bool held = being_written(w) || state == SL_SLOT_QUARANTINED || state == SL_SLOT_ABANDONED;
        bool lost = unsent_too && state == SL_SLOT_READY && !was_sent(p, i, w, sent, sent_count);
        bool broken = state >= SL_SLOT_STATES || (held && !holder(p, w)) || (state == SL_SLOT_ABANDONED && !p->device);
        /* the entry is compared after the word was read: if it still is the dead one's, so is the hold */
        bool of_dead = peer < SL_BLOCK_PEERS && dead[peer] && atomic_load(&p->block->peers[peer]) == words[peer];
        if (broken || ((held || lost) && of_dead)) count += free_after_death(p, i, w);
    }
    for (unsigned i = 1; i < SL_BLOCK_PEERS; i++)
        if (dead[i]) leave(p, i, words[i]);
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
