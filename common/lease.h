/* lease.h - tensors handed between processes without a copy.
 *
 * A process that RECEIVES data OWNS a pool: it creates the slots once, at start, and
 * exports a handle, plain bytes that travel in a message. A SENDER opens the handle once.
 * Per hand-over the sender RESERVES a free slot, adds tensors to it (their memory is the
 * slot's own: compute or copy straight into it), SEALS it, and sends the ticket. The owner
 * OPENS the ticket, reads in place, and DROPS it: the slot is free again.
 *
 *   slot:  FREE -> RESERVED -> FILLING -> READY -> READING -> FREE
 *                      |          |         |
 *                      |          |         '-> ABANDONED -> FREE
 *                      '----------+-> QUARANTINED -> FREE
 *
 *   ABANDONED     discarded while a device still fills the slot
 *   QUARANTINED   revoked while a live writer may still touch the slot
 *   epoch         grows by 1 at each return to FREE, so an old ticket is stale
 *
 * Credits: no free slot, no reserve; that is the back-pressure. A reserve waits, up to
 * its deadline, on a futex in the pool and wakes when a slot is freed.
 * Death: a dead process loses all its holds. The owner calls sl_pool_reap(pid) when it
 * learns of a death: slots which that process held for writing are freed, those that it had
 * sealed stay READY. When the owner dies, the memory goes with its last mapping: nothing
 * is named, so nothing can be left behind.
 *
 * Kinds, chosen by the owner at create, the same calls on both:
 *   SL_POOL_HOST  data in shared memory: an unnamed memfd, which other processes open
 *                 through /proc/PID/fd. Tensors are host memory on both sides. The kind
 *                 between stages of which one is a CPU process (frames to the mux), or
 *                 whose devices cannot map each other. A side that works on a device calls
 *                 sl_pool_pin after create or open: then copies between the slots and its
 *                 device are asynchronous and as fast as the bus.
 *   SL_POOL_CUDA  data in one slab of the owner's device, exported once by CUDA IPC, with
 *                 two interprocess events a slot; the control block is a memfd as above.
 *                 Tensors are device memory on both sides: NO host code may touch t.data;
 *                 use sl_copy, sl_upload, sl_download or a kernel on the same stream.
 *                 Both processes need sl_pool_use_cuda (lease_device.h), and devices that
 *                 are one or can map each other (sl_plugin.can_map).
 *
 * Streams: NULL on a host pool means "the bytes are there". Work on the slot goes to
 * `stream`, and the calls order it:
 *   seal    HOST: waits until stream is idle, then publishes, so that a mux that reads
 *           needs no CUDA.
 *           CUDA: records the slot's `filled` event on stream and returns at once. A slot
 *           whose `filled` a dead sender left pending is sealed as on HOST: nobody uses
 *           that event any more.
 *   open    HOST: nothing to order.
 *           CUDA: waits on the host until `filled` has come, looking after the sender
 *           meanwhile, and makes stream follow it. A stream never waits for the event
 *           alone: the event of a killed process never comes, and a stream that waits for
 *           it hangs for ever.
 *   drop    of an opened slot. HOST: waits until stream is idle.
 *           CUDA: records `drained` on stream and returns at once; a reserve passes over
 *           slots whose `drained` has not come.
 *   drop    of a slot that was not sealed: waits until stream is idle, both kinds.
 * Each of these waits ends after 120 s with SL_TIMEOUT. A drop that cannot wait any longer,
 * and one on a broken device, leaves the slot held until the process dies, for work that is
 * queued may still touch it. A close waits 60 s at most for the device; if that does not
 * end, what the close would unmap stays mapped.
 *
 * Death on a device: the driver ends what a process had queued, at the latest shortly after
 * its last thread. A slot taken from a dead writer therefore rests for a second before it
 * is given away (it counts as free meanwhile); pools that no device touches do not rest. A
 * READY slot whose sender died before the device had filled it is SL_GONE at open. Memory
 * that the owner maps and frees stays mapped in a sender until the sender closes its view;
 * the device memory returns when both are closed or dead.
 * Trust: the control block is shared with another process of the same user; every index,
 * length and state read from it is checked, and a wrong one is an error, never a wild
 * pointer.
 * Threads: a pool may be used by several threads; one lease belongs to one thread at a
 * time. A view does not survive fork: the child opens the handle again. At most 127 views
 * of a pool are open besides the owner's. */
#ifndef SL_LEASE_H
#define SL_LEASE_H

#include "common/tensor.h"

typedef struct CUstream_st *cudaStream_t;

typedef enum { SL_POOL_HOST, SL_POOL_CUDA } sl_pool_kind;

#define SL_LEASE_TENSORS 4 /* most tensors in one slot */
#define SL_LEASE_NAME 24   /* bytes of a tensor's name, its NUL included */
#define SL_POOL_NAME 24
#define SL_POOL_MAX_SLOTS 64

typedef struct sl_pool sl_pool;   /* opaque: one process's view of a pool */
typedef struct sl_lease sl_lease; /* opaque: this process's hold on one slot */

/* A ticket names one sealed hand-over. Plain bytes, may be sent. */
typedef struct {
    uint64_t pool; /* the pool's random identity, not an index */
    uint32_t slot;
    uint32_t reserved;
    uint64_t epoch;
} sl_ticket;

/* A handle is what a sender needs to open the pool. Plain bytes, may be sent. */
typedef struct {
    uint64_t pool; /* random identity */
    int32_t pid;   /* owner */
    int32_t fd;    /* the owner's descriptor of the control (and host data) memory */
    uint32_t kind; /* sl_pool_kind */
    uint32_t slots;
    uint64_t slot_bytes;
    char name[SL_POOL_NAME];
    uint8_t device_handle[64]; /* cudaIpcMemHandle_t, zero for a host pool */
} sl_pool_handle;

/* Create a pool of `slots` slots of `slot_bytes` each (rounded up to a page; memory is
 * taken as it is touched). SL_POOL_CUDA: on the calling thread's device, all of it at
 * once. *out is the caller's to close. Errors: SL_ARG slots outside 1 ..
 * SL_POOL_MAX_SLOTS; SL_SYS; SL_CUDA no plug-in is in use, or the device has no IPC;
 * SL_NOMEM. */
sl_code sl_pool_create(sl_pool **out, const char *name, sl_pool_kind kind, int slots,
                       size_t slot_bytes, sl_err *err);
/* The handle of this process's pool. */
void sl_pool_export(const sl_pool *pool, sl_pool_handle *out);
/* Open another process's pool (or this process's own, in tests). Errors: SL_GONE if the
 * owner is dead or the identity does not match; SL_FORMAT if the handle or the control
 * block makes no sense; SL_BUSY too many views; SL_CUDA for a pool of that kind, if this
 * process has no plug-in in use or the thread's device cannot map the owner's. */
sl_code sl_pool_open(sl_pool **out, const sl_pool_handle *handle, sl_err *err);
/* Pin this view's slots for devices (all of them: the memory is taken now), once; undone
 * by the close. A pool of kind SL_POOL_CUDA needs none: SL_OK. Errors: SL_CUDA no plug-in
 * is in use, or the memory cannot be pinned. */
sl_code sl_pool_pin(sl_pool *pool, sl_err *err);
/* Unmap; the owner's close makes every outstanding ticket stale. Leases must have been
 * dropped. The close waits for what this process has queued on a device that touches the
 * pool. *pool becomes NULL. */
void sl_pool_close(sl_pool **pool);

/* Where t.data of the pool's tensors lies. */
sl_pool_kind sl_pool_kind_of(const sl_pool *pool);
/* This view's slots are pinned. */
bool sl_pool_pinned(const sl_pool *pool);
size_t sl_pool_slot_bytes(const sl_pool *pool);
int sl_pool_slots(const sl_pool *pool);
uint64_t sl_pool_id(const sl_pool *pool);
/* How many slots are in each state. */
typedef struct {
    int free, writing, ready, reading, quarantined; /* writing: reserved or filling;
                                                     * quarantined: or abandoned */
} sl_pool_counts;
/* Count the slots, for reports and tests. */
void sl_pool_count(const sl_pool *pool, sl_pool_counts *out);

/* ---- the sender's side ---- */

/* Take a free slot, waiting up to wait_ms (0: do not wait). *out is the caller's to drop.
 * A waiting sender notices the owner's death within 50 ms. Errors: SL_BUSY none free in
 * time; SL_GONE the owner died or closed the pool; SL_ARG after a fork; SL_CUDA. */
sl_code sl_lease_reserve(sl_lease **out, sl_pool *pool, int wait_ms, sl_err *err);
/* Lay out one more dense tensor in the slot (256-byte aligned) and give its memory in *t.
 * RESERVED -> FILLING.
 * Errors: SL_ARG too many tensors, a long name or one used twice; SL_SHAPE the tensor does
 * not fit (the message names bytes wanted and left); SL_GONE the slot was revoked meanwhile. */
sl_code sl_lease_add(sl_lease *l, const char *name, sl_dtype dtype, int rank, const int64_t *shape,
                     sl_tensor *t, sl_err *err);
/* End writing. The bytes never change from here on. The lease stays the caller's to drop
 * (which no longer frees the slot).
 * Errors: SL_GONE the slot was revoked meanwhile (it is freed, the data lost by intent) or
 * the owner died; SL_ARG no tensor was added, or there is a stream and no plug-in in use;
 * SL_CUDA, SL_TIMEOUT the work on stream failed or did not end, and nothing is sealed. */
sl_code sl_lease_seal(sl_lease *l, cudaStream_t stream, sl_ticket *out, sl_err *err);

/* ---- the owner's side ---- */

/* Take the hold that a ticket names. READY -> READING. *out is the caller's to drop.
 * Errors: SL_GONE the ticket is stale, or of another pool, or its sender died before its
 * device had written all. SL_FORMAT the slot's table of tensors makes no sense (the slot
 * is freed). SL_ARG this process is not the owner. SL_CUDA, SL_TIMEOUT. */
sl_code sl_lease_open(sl_lease **out, sl_pool *pool, const sl_ticket *ticket, cudaStream_t stream,
                      sl_err *err);
/* The tensor called `name` in an opened (or own, being filled) slot: a view, valid until
 * the drop. SL_FORMAT: none of that name. */
sl_code sl_lease_tensor(const sl_lease *l, const char *name, sl_tensor *t, sl_err *err);

/* End the hold. Before a seal: the slot is freed unsent. After a seal: nothing more than
 * freeing the handle. After an open: the slot is free and a waiting sender wakes.
 * `stream` as above. *l becomes NULL; NULL is fine. */
void sl_lease_drop(sl_lease **l, cudaStream_t stream);

/* Free a ticket's slot without reading it (a cancelled job). false: the ticket is stale and
 * was ignored. */
bool sl_pool_discard(sl_pool *pool, const sl_ticket *ticket);
/* Take every slot from process `pid` that it is writing: quarantined while the process
 * lives, freed if it is dead. Returns how many. */
int sl_pool_revoke(sl_pool *pool, int32_t pid);
/* Process `pid` is dead: free the slots that it was writing or had in quarantine. READY
 * slots stay. Returns how many were freed. A process that lives (the caller was early, or
 * the pid is another's by now) loses nothing: 0. */
int sl_pool_reap(sl_pool *pool, int32_t pid);
/* As sl_pool_reap, and free also the READY slots that `pid` sealed except those in
 * sent[count]: a process that dies between seal and send leaves a ticket that nobody
 * knows. To be called when every message of the dead process has been read. */
int sl_pool_reap_unsent(sl_pool *pool, int32_t pid, const sl_ticket *sent, int count);

#endif
