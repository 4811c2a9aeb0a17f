/* lease_device.h - what the CUDA plug-in lends to pools of kind SL_POOL_CUDA: a slab of device memory, two events a slot.
 *
 * Registered once, before the first such pool; until then sl_pool_create and sl_pool_open answer SL_CUDA. The control
 * block stays in host memory: only the data and the order of the work on it are the device's. Functions work on the
 * calling thread's current device, may be called from several threads, and fill *err where they return a code. */
#ifndef SL_LEASE_DEVICE_H
#define SL_LEASE_DEVICE_H

#include "common/lease.h"

typedef uint8_t sl_ipc_handle[64]; /* cudaIpcMemHandle_t or cudaIpcEventHandle_t */

typedef struct {
    /* The owner: allocate slots * slot_bytes, create the events, fill the handles. *slab is the caller's to close. */
    sl_code (*create)(void **slab, int slots, size_t slot_bytes, sl_ipc_handle memory, sl_ipc_handle *filled,
                      sl_ipc_handle *drained, sl_err *err);
    /* A sender: open the handles. */
    sl_code (*open)(void **slab, int slots, size_t slot_bytes, const sl_ipc_handle memory, const sl_ipc_handle *filled,
                    const sl_ipc_handle *drained, sl_err *err);
    void (*close)(void *slab);                                                  /* the owner's frees, a sender's unmaps */
    char *(*base)(void *slab);                                                  /* device address of slot 0 */
    sl_code (*filled)(void *slab, int slot, cudaStream_t stream, sl_err *err);  /* seal: record the slot's event on stream */
    sl_code (*await)(void *slab, int slot, cudaStream_t stream, sl_err *err);   /* open: stream waits for that event */
    sl_code (*drained)(void *slab, int slot, cudaStream_t stream, sl_err *err); /* drop: record the other event */
    sl_code (*settle)(void *slab, int slot, sl_err *err); /* reserve: the host waits until the last reader's work is over */
} sl_slab_ops;

void sl_pool_use_cuda(const sl_slab_ops *ops); /* `ops` must outlive the process's pools; NULL: none */

#endif
