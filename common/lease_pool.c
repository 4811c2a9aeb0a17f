/* lease_pool.c - a pool: its memory and who has it open; created, exported, opened,
 * closed, pinned, counted.
 *
 *   owner    create: memfd (sealed against resizing), block, device slab; export: the handle
 *   sender   open: the owner's memfd through /proc/PID/fd, checked; a free entry of `peers`
 *   both     close: own holds end, the entry is left, memory unmapped
 * Who is alive is asked of /proc (start times), of a pidfd where the kernel has one, never
 * of a pid alone. In doubt a process lives: a wrong "dead" would give a slot away under its
 * writer. An entry of a full table is taken from one that is dead, or has closed and has no
 * slot that names it. No lock: entries and slots change by compare-and-swap. */
#include "common/lease_pool.h"

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
#include <unistd.h>

#ifdef MFD_NOEXEC_SEAL
#define NOEXEC_SEAL MFD_NOEXEC_SEAL
#else
#define NOEXEC_SEAL 8u /* a kernel may demand it whose headers lack the name */
#endif

static const sl_slab_ops *_Atomic cuda;

void sl_pool_use_cuda(const sl_slab_ops *ops)
{
    atomic_store(&cuda, ops);
}

const sl_slab_ops *sl_cuda_in_use(void)
{
    return atomic_load(&cuda);
}

/* ---- who is alive ---- */

/* Start time of a process in ticks since boot. SL_GONE: it is dead, that is gone or a
 * zombie without running threads. SL_SYS: cannot be told (no descriptors left, no /proc). */
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
    for (int field = 3, used;
         at && field <= 22 && sscanf(at + (field == 3), " %31s%n", word, &used) == 1; field++) {
        at += used + (field == 3);
        if (field == 3) state = word[0];
        if (field == 20) threads = strtoll(word, NULL, 10);
        if (field == 22) ticks = strtoull(word, NULL, 10);
    }
    if (!ticks) return SL_SYS;
    *start = ticks;
    return (state == 'Z' || state == 'X') && threads <= 1 ? SL_GONE : SL_OK;
}

bool sl_peer_lives(uint64_t peer)
{
    uint64_t start = 0;
    if (!peer) return false;
    sl_code rc = process_start(sl_peer_pid(peer), &start);
    return rc == SL_SYS || (rc == SL_OK && sl_peer_word(sl_peer_pid(peer), start) == peer);
}

bool sl_owner_lives(const sl_pool *p)
{
    struct pollfd f = {.fd = p->owner_pidfd, .events = POLLIN};
    if (p->owned) return true;
    if (atomic_load_explicit(&p->block->closed, memory_order_acquire)) return false;
    if (p->owner_pidfd >= 0) return poll(&f, 1, 0) <= 0;
    return sl_peer_lives(p->owner);
}

/* ---- entries of the table of peers ---- */

static bool named_by_a_slot(const sl_pool *p, unsigned peer)
{
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = sl_word_of(p, i);
        if (sl_word_state(w) != SL_SLOT_FREE && sl_word_state(w) != SL_SLOT_READING &&
            sl_word_peer(w) == peer)
            return true;
    }
    return false;
}

void sl_peer_leave(const sl_pool *p, unsigned peer, uint64_t word)
{
    sl_cas(&p->block->peers[peer], word, named_by_a_slot(p, peer) ? word | SL_PEER_LEFT : 0);
}

static sl_code enter(sl_pool *p, sl_err *err)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (unsigned i = 1; i < SL_BLOCK_PEERS; i++)
            if (sl_cas(&p->block->peers[i], 0, p->self)) {
                p->peer = i;
                return SL_OK;
            }
        /* full: is one dead, or closed and its last slot read? */
        for (unsigned i = 1; i < SL_BLOCK_PEERS; i++) {
            uint64_t w = atomic_load(&p->block->peers[i]);
            if (!sl_peer_lives(w)) sl_peer_leave(p, i, w);
        }
    }
    return sl_fail(err, SL_BUSY, "pool %s: %d views of it are open, the most there may be", p->name,
                   SL_BLOCK_PEERS - 1);
}

/* The process's own peer word. */
static sl_code self_word(uint64_t *out, sl_err *err)
{
    uint64_t start;
    if (process_start(getpid(), &start))
        return sl_fail(err, SL_SYS, "/proc/%d/stat cannot be read: is /proc mounted?",
                       (int)getpid());
    *out = sl_peer_word(getpid(), start);
    return SL_OK;
}

/* ---- slots ---- */

static void wake_senders(const sl_pool *p)
{
    atomic_fetch_add_explicit(&p->block->freed, 1, memory_order_release);
    syscall(SYS_futex, &p->block->freed, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

bool sl_free_slot(const sl_pool *p, int slot, uint64_t from)
{
    if (!sl_cas(&p->block->slot[slot].word, from,
                sl_word(SL_SLOT_FREE, 0, sl_word_epoch(from) + 1)))
        return false;
    wake_senders(p);
    return true;
}

/* ---- create, open, close ---- */

static size_t page_up(size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (n + page - 1) / page * page;
}

/* Bytes of the memfd; SL_ARG when the numbers make no sense. slot_bytes is a multiple of
 * a page. */
static sl_code pool_size(sl_pool_kind kind, int64_t slots, uint64_t slot_bytes, size_t *out,
                         sl_err *err)
{
    size_t data = 0;
    if (slots < 1 || slots > SL_POOL_MAX_SLOTS)
        return sl_fail(err, SL_ARG, "pool has %lld slots, want 1 to %d", (long long)slots,
                       SL_POOL_MAX_SLOTS);
    if (slot_bytes < 1 || slot_bytes > (UINT64_C(1) << 46))
        return sl_fail(err, SL_ARG, "pool has slots of %llu bytes, want 1 to 2^46",
                       (unsigned long long)slot_bytes);
    if (slot_bytes % (size_t)sysconf(_SC_PAGESIZE))
        return sl_fail(err, SL_ARG, "pool has slots of %llu bytes, want a multiple of a page",
                       (unsigned long long)slot_bytes);
    if (kind == SL_POOL_HOST) data = (size_t)slots * slot_bytes;
    *out = page_up(sizeof(sl_block)) + data;
    return SL_OK;
}

static sl_code map_block(sl_pool *p, int fd, size_t bytes, sl_err *err)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (at == MAP_FAILED)
        return sl_fail_errno(err, errno, "pool %s: map %zu bytes", p->name, bytes);
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
        if ((rc = p->device->create(&p->slab, p->slots, p->slot_bytes, p->device_handle, filled,
                                    drained, err)))
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
        if ((rc = p->device->open(&p->slab, p->slots, p->slot_bytes, p->device_handle,
                                  (const sl_ipc_handle *)filled, (const sl_ipc_handle *)drained,
                                  err)))
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
        return sl_fail(err, SL_CUDA,
                       "pool %s: its slots are device memory, and no CUDA plug-in is in use", name);
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
    if ((rc = pool_size(p->kind, p->slots, p->slot_bytes, &bytes, err)))
        return sl_context(err, rc, "pool %s", p->name);
    if ((rc = self_word(&p->self, err))) return rc;
    if (getrandom(&p->id, sizeof p->id, 0) != sizeof p->id)
        return sl_fail_errno(err, errno, "pool %s: getrandom", p->name);
    snprintf(label, sizeof label, "sluice-%s", p->name);
    p->fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING | NOEXEC_SEAL);
    /* before Linux 6.3 */
    if (p->fd < 0 && errno == EINVAL) p->fd = memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (p->fd < 0) return sl_fail_errno(err, errno, "pool %s: memfd_create", p->name);
    if (ftruncate(p->fd, (off_t)bytes))
        return sl_fail_errno(err, errno, "pool %s: size %zu bytes", p->name, bytes);
    /* nobody can shrink it: touching the mapping can never raise SIGBUS */
    if (fcntl(p->fd, F_ADD_SEALS, SL_BLOCK_SEALS))
        return sl_fail_errno(err, errno, "pool %s: seal its size", p->name);
    if ((rc = map_block(p, p->fd, bytes, err))) return rc;
    p->owner = p->self;
    p->block->magic = SL_BLOCK_MAGIC;
    p->block->pool = p->id;
    p->block->kind = p->kind;
    p->block->slots = (uint32_t)p->slots;
    p->block->slot_bytes = p->slot_bytes;
    atomic_store(&p->block->peers[0], p->self);
    for (int i = 0; i < p->slots; i++)
        atomic_store(&p->block->slot[i].word, sl_word(SL_SLOT_FREE, 0, 1));
    return map_device(p, err);
}

sl_code sl_pool_create(sl_pool **out, const char *name, sl_pool_kind kind, int slots,
                       size_t slot_bytes, sl_err *err)
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

/* A descriptor of the owner's memory, through /proc. The link is read first, so that a
 * number which now means another file of the owner's (or of a process with a reused pid)
 * is never opened. */
static sl_code owner_memory(const sl_pool *p, const sl_pool_handle *h, int *fd, sl_err *err)
{
    char path[64], link[64];
    const char want[] = "/memfd:sluice-";
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    if (n < 0 && (errno == ENOENT || errno == ESRCH))
        return sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone or has closed it",
                       p->name, h->pid);
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
        return sl_fail(err, SL_FORMAT, "pool %s: its memory is not sealed against shrinking",
                       p->name);
    if (pool_size(p->kind, h->slots, h->slot_bytes, &bytes, err))
        return sl_context(err, SL_FORMAT, "pool %s: handle", p->name);
    if (fstat(fd, &st)) return sl_fail_errno(err, errno, "pool %s", p->name);
    if ((uint64_t)st.st_size < page_up(sizeof(sl_block)))
        return sl_fail(err, SL_FORMAT, "pool %s: its memory has %lld bytes, want at least %zu",
                       p->name, (long long)st.st_size, sizeof(sl_block));
    uint64_t found[5];
    if (pread(fd, found, sizeof found, 0) != sizeof found)
        return sl_fail_errno(err, errno, "pool %s: read its block", p->name);
    _Static_assert(offsetof(sl_block, pool) == 8 && offsetof(sl_block, slot_bytes) == 24,
                   "the order of pread above");
    if (found[1] != h->pool)
        return sl_fail(err, SL_GONE, "pool %s: process %d has another pool there now", p->name,
                       h->pid);
    if (found[0] != SL_BLOCK_MAGIC)
        return sl_fail(
            err, SL_FORMAT,
            "pool %s: its block starts with %#llx, want %#llx (another version of sluice?)",
            p->name, (unsigned long long)found[0], (unsigned long long)SL_BLOCK_MAGIC);
    if (found[2] != ((uint64_t)h->slots << 32 | h->kind) || found[3] != h->slot_bytes ||
        (uint64_t)st.st_size != bytes)
        return sl_fail(err, SL_FORMAT,
                       "pool %s: block has kind %u, %u slots of %llu bytes in %lld, handle has "
                       "kind %u, %u slots of %llu in %zu",
                       p->name, (unsigned)found[2], (unsigned)(found[2] >> 32),
                       (unsigned long long)found[3], (long long)st.st_size, h->kind, h->slots,
                       (unsigned long long)h->slot_bytes, bytes);
    p->id = h->pool;
    p->slots = (int)h->slots;
    p->slot_bytes = h->slot_bytes;
    memcpy(p->device_handle, h->device_handle, sizeof p->device_handle);
    if ((rc = map_block(p, fd, bytes, err))) return rc;
    if ((rc = self_word(&p->self, err))) return rc;
    if ((rc = enter(p, err))) return rc;
    return map_device(p, err);
}

/* Pin down who the owner is: a pidfd and the start time, taken so that both mean the
 * process that has the memory. */
static sl_code find_owner(sl_pool *p, int32_t pid, sl_err *err)
{
    uint64_t start;
    p->owner_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    sl_code rc = process_start(pid, &start);
    if (rc == SL_SYS)
        return sl_fail(err, SL_SYS, "pool %s: /proc/%d/stat cannot be read", p->name, pid);
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
    if (!sl_owner_lives(*out))
        rc = sl_fail(err, SL_GONE, "pool %s: process %d, its owner, is gone", h.name, h.pid);
done:
    if (fd >= 0) close(fd);
    if (rc) sl_pool_close(out);
    return rc;
}

/* Leases that were forgotten end here: the mapping goes, so nobody can write through
 * them. */
static void end_own_holds(const sl_pool *p)
{
    for (int i = 0; i < p->slots; i++) {
        uint64_t w = sl_word_of(p, i);
        bool held = sl_being_written(w) || sl_word_state(w) == SL_SLOT_QUARANTINED ||
                    sl_word_state(w) == SL_SLOT_ABANDONED;
        if (sl_word_peer(w) == p->peer && held) sl_free_slot(p, i, w);
    }
    sl_peer_leave(p, p->peer, p->self);
}

void sl_pool_close(sl_pool **pool)
{
    sl_pool *p = *pool;
    if (!p) return;
    /* else a forked child, or a half-done open */
    bool mine = p->block && sl_peer_pid(p->self) == getpid();
    const sl_slab_ops *ops = p->slab ? p->device : p->pinner;
    sl_code rc = mine && ops ? ops->finish(p->slab, NULL) : SL_OK;
    /* the device may use the memory still, and to give it back would wait without a
     * deadline */
    bool stuck = rc == SL_TIMEOUT;
    if (mine && p->owned) {
        atomic_store(&p->block->closed, 1);
        wake_senders(p);
        /* else the holds end with the process, as its broken device does */
    } else if (mine && p->peer && !rc) {
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
    if (!ops)
        return sl_fail(err, SL_CUDA, "pool %s: to be pinned, and no CUDA plug-in is in use",
                       p->name);
    /* before: from the first copy on, a slot rests after a death */
    atomic_store(&p->block->pinned, 1);
    if ((rc = ops->pin(p->data, (size_t)p->slots * p->slot_bytes, err)))
        return sl_context(err, rc, "pool %s", p->name);
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
    for (int i = 0; i < p->slots; i++) switch (sl_word_state(sl_word_of(p, i))) {
        case SL_SLOT_FREE: out->free++; break;
        case SL_SLOT_RESERVED:
        case SL_SLOT_FILLING: out->writing++; break;
        case SL_SLOT_READY: out->ready++; break;
        case SL_SLOT_READING: out->reading++; break;
        default: out->quarantined++; break; /* a state that is none is not safe to use either */
        }
}
