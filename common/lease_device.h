/* lease_device.h - what the CUDA plug-in lends to pools: a slab of device memory with two
 * events a slot, and pinning of host slabs.
 *
 * sl_pool_use_cuda registers the plug-in's functions once, before the first pool of kind
 * SL_POOL_CUDA; until then sl_pool_create and sl_pool_open answer SL_CUDA. The control
 * block stays in host memory: only the data and the order of the work on it are the
 * device's.
 * Threads: a slab belongs to the calling thread's current device at create or open. Later
 * calls may come from any thread of that process; a thread that works on another device
 * works on the slab's from then on.
 * Waiting: only `finish`, which has a deadline of its own, and `close`, which comes after a
 * `finish`, wait for a device. For all else lease.c asks again and again, up to its
 * deadlines.
 * Functions fill *err where they return a code. */
#ifndef SL_LEASE_DEVICE_H
#define SL_LEASE_DEVICE_H

#include "common/lease.h"

typedef uint8_t sl_ipc_handle[64]; /* cudaIpcMemHandle_t or cudaIpcEventHandle_t */

/* The two moments of a slot. A sender records `filled` when it seals, the owner records
 * `drained` when it drops; nobody else records either, so a sender never waits for work
 * of another sender, which may have died and will then never be over. */
typedef enum { SL_SLAB_FILLED, SL_SLAB_DRAINED } sl_slab_event;

typedef struct {
    /* The owner: allocate slots * slot_bytes, create the events, fill the handles. *slab
     * is the caller's to close. SL_NOMEM: no such memory on the device. */
    sl_code (*create)(void **slab, int slots, size_t slot_bytes, sl_ipc_handle memory,
                      sl_ipc_handle *filled, sl_ipc_handle *drained, sl_err *err);
    /* A sender: open the handles, which a process does once: further views share it, and
     * the owner's own process its slab. */
    sl_code (*open)(void **slab, int slots, size_t slot_bytes, const sl_ipc_handle memory,
                    const sl_ipc_handle *filled, const sl_ipc_handle *drained, sl_err *err);
    /* End a view. The process's last one frees the memory (the owner) or unmaps it (a
     * sender). */
    void (*close)(void *slab);
    /* The address of slot 0, in this process. */
    char *(*base)(void *slab);
    /* Record the event behind the work now on stream. */
    sl_code (*record)(void *slab, int slot, sl_slab_event which, cudaStream_t stream, sl_err *err);
    /* *yes: the event's last record has been reached, or there was none. */
    sl_code (*reached)(void *slab, int slot, sl_slab_event which, bool *yes, sl_err *err);
    /* Make work that is put on stream from now on follow `filled`. */
    sl_code (*wait)(void *slab, int slot, cudaStream_t stream, sl_err *err);
    /* *yes: nothing is queued on stream any more. */
    sl_code (*idle)(cudaStream_t stream, bool *yes, sl_err *err);
    /* Wait for all that this process has queued on slab's device (NULL: the current).
     * SL_TIMEOUT: it does not end; then the slab is not closed, nor memory unpinned. */
    sl_code (*finish)(void *slab, sl_err *err);
    /* Host memory of a shared slab, page-aligned: copies between it and any device are
     * asynchronous from now on. */
    sl_code (*pin)(void *p, size_t bytes, sl_err *err);
    void (*unpin)(void *p);
} sl_slab_ops;

/* Use these functions from now on. `ops` must outlive the process's pools; NULL: none. */
void sl_pool_use_cuda(const sl_slab_ops *ops);

#endif
