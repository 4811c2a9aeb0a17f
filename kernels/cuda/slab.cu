/* slab.cu - device memory that stage processes share: one allocation exported by CUDA
 * IPC, two interprocess events a slot; pins.
 *
 * A process opens each handle once and counts its views of it; the process that made a
 * slab never opens its own handle (CUDA refuses that) but counts one view more. The table
 * of both is keyed by the handle's bytes.
 *
 * THREADS. Any thread may call any of these. `lock` guards the table and each slab's
 * views, and is held while a handle is opened, so that no two threads open the same; what
 * else a slab holds does not change while it has a view. What works on a slab first makes
 * its device the calling thread's. One wait, slab_finish's, is a thread of its own with a
 * deadline (FINISH_S), because CUDA's has none.
 *
 * Source: CUDA C programming guide, "Interprocess Communication"; allocations are whole
 * multiples of 2 MiB, as it advises, so that exporting one exports nothing else. */
#include "kernels/cuda/cuda.h"

#include <cuda.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT_ALIGN ((size_t)2 << 20)
#define FINISH_S 60 /* most that a close waits for the device */

static_assert(sizeof(sl_ipc_handle) == sizeof(cudaIpcMemHandle_t) &&
                  sizeof(sl_ipc_handle) == sizeof(cudaIpcEventHandle_t),
              "handles travel as 64 bytes");

struct slab {
    sl_ipc_handle key;
    int device; /* this process's, on which it was created or opened */
    bool owned;
    int slots, views;
    char *base;
    cudaEvent_t event[2][SL_POOL_MAX_SLOTS]; /* by sl_slab_event */
    slab *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static slab *slabs; /* under lock, and so are the views of each */

static sl_code failed(sl_err *err, cudaError_t e, const char *what)
{
    cudaGetLastError(); /* not to be found again after somebody's launch */
    return sl_fail(err, e == cudaErrorMemoryAllocation ? SL_NOMEM : SL_CUDA, "%s: %s", what,
                   cudaGetErrorString(e));
}

/* Only the first use of a slab by a thread that has no device, or another, changes
 * anything. */
static cudaError_t use_device_of(const slab *s)
{
    int current = -1;
    cudaError_t e = cudaGetDevice(&current);
    return e == cudaSuccess && current != s->device ? cudaSetDevice(s->device) : e;
}

static slab *find(const sl_ipc_handle memory)
{
    for (slab *s = slabs; s; s = s->next)
        if (!memcmp(s->key, memory, sizeof s->key)) return s;
    return NULL;
}

/* End what `s` holds, which may be half made. */
static void release(slab *s)
{
    if (use_device_of(s) == cudaSuccess) {
        for (int which = 0; which < 2; which++)
            for (int i = 0; i < s->slots; i++)
                if (s->event[which][i]) cudaEventDestroy(s->event[which][i]);
        if (s->base && s->owned) cudaFree(s->base);
        if (s->base && !s->owned) cudaIpcCloseMemHandle(s->base);
    }
    cudaGetLastError();
    free(s);
}

static slab *new_slab(int slots, bool owned)
{
    slab *s = (slab *)calloc(1, sizeof *s);
    if (!s) return NULL;
    s->slots = slots;
    s->owned = owned;
    s->views = 1;
    return s;
}

static void enlist(slab *s) /* under lock */
{
    s->next = slabs;
    slabs = s;
}

static sl_code make(slab *s, size_t slot_bytes, sl_ipc_handle *const handles[2], sl_err *err)
{
    size_t bytes = ((size_t)s->slots * slot_bytes + EXPORT_ALIGN - 1) / EXPORT_ALIGN * EXPORT_ALIGN,
           there = 0, total = 0;
    cudaError_t e;
    if ((e = cudaGetDevice(&s->device)) != cudaSuccess) return failed(err, e, "cudaGetDevice");
    if ((e = cudaMalloc((void **)&s->base, bytes)) != cudaSuccess) {
        char what[128];
        s->base = NULL;
        if (e == cudaErrorMemoryAllocation) cudaMemGetInfo(&there, &total);
        snprintf(what, sizeof what,
                 "%d slots of %zu bytes want %zu of device %d, which has %zu free", s->slots,
                 slot_bytes, bytes, s->device, there);
        return failed(err, e, what);
    }
    if ((e = cudaIpcGetMemHandle((cudaIpcMemHandle_t *)s->key, s->base)) != cudaSuccess)
        return failed(err, e, "cudaIpcGetMemHandle");
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < s->slots; i++) {
            cudaEvent_t *event = &s->event[which][i];
            if ((e = cudaEventCreateWithFlags(event, cudaEventInterprocess |
                                                         cudaEventDisableTiming)) != cudaSuccess) {
                *event = NULL;
                return failed(err, e, "interprocess event");
            }
            e = cudaIpcGetEventHandle((cudaIpcEventHandle_t *)handles[which][i], *event);
            if (e != cudaSuccess) return failed(err, e, "cudaIpcGetEventHandle");
        }
    return SL_OK;
}

static sl_code slab_create(void **out, int slots, size_t slot_bytes, sl_ipc_handle memory,
                           sl_ipc_handle *filled, sl_ipc_handle *drained, sl_err *err)
{
    sl_ipc_handle *const handles[2] = {filled, drained};
    slab *s = new_slab(slots, true);
    *out = NULL;
    if (!s) return sl_fail(err, SL_NOMEM, "no memory for a slab");
    sl_code rc = make(s, slot_bytes, handles, err);
    if (rc) {
        release(s);
        return rc;
    }
    memcpy(memory, s->key, sizeof s->key);
    pthread_mutex_lock(&lock);
    enlist(s);
    pthread_mutex_unlock(&lock);
    *out = s;
    return SL_OK;
}

/* Bytes that are mapped at p, as the driver knows them; SIZE_MAX if it does not tell. The
 * plug-in does not link the driver. */
static size_t mapped_bytes(const void *p)
{
    typedef CUresult CUDAAPI range_fn(CUdeviceptr *, size_t *, CUdeviceptr);
    void *range = NULL;
    cudaDriverEntryPointQueryResult found;
    CUdeviceptr base;
    size_t bytes;
    cudaError_t e = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &range, 3020,
                                                     cudaEnableDefault, &found);
    if (e != cudaSuccess || found != cudaDriverEntryPointSuccess) return SIZE_MAX;
    return ((range_fn *)range)(&base, &bytes, (CUdeviceptr)p) == CUDA_SUCCESS
               ? bytes - (size_t)((CUdeviceptr)p - base)
               : SIZE_MAX;
}

static sl_code map(slab *s, size_t slot_bytes, const sl_ipc_handle *const handles[2], sl_err *err)
{
    cudaIpcMemHandle_t memory;
    cudaIpcEventHandle_t event;
    cudaError_t e;
    memcpy(&memory, s->key, sizeof memory);
    if ((e = cudaGetDevice(&s->device)) != cudaSuccess) return failed(err, e, "cudaGetDevice");
    if ((e = cudaIpcOpenMemHandle((void **)&s->base, memory, cudaIpcMemLazyEnablePeerAccess)) !=
        cudaSuccess) {
        char what[96];
        s->base = NULL;
        snprintf(what, sizeof what, "device %d cannot map the owner's slots", s->device);
        return failed(err, e, what);
    }
    size_t mapped = mapped_bytes(s->base), wanted = (size_t)s->slots * slot_bytes;
    if (mapped < wanted)
        return sl_fail(err, SL_FORMAT, "the owner's slab has %zu bytes, want %zu", mapped, wanted);
    for (int which = 0; which < 2; which++)
        for (int i = 0; i < s->slots; i++) {
            memcpy(&event, handles[which][i], sizeof event);
            if ((e = cudaIpcOpenEventHandle(&s->event[which][i], event)) != cudaSuccess) {
                s->event[which][i] = NULL;
                return failed(err, e, "cudaIpcOpenEventHandle");
            }
        }
    return SL_OK;
}

static sl_code slab_open(void **out, int slots, size_t slot_bytes, const sl_ipc_handle memory,
                         const sl_ipc_handle *filled, const sl_ipc_handle *drained, sl_err *err)
{
    const sl_ipc_handle *const handles[2] = {filled, drained};
    sl_code rc = SL_OK;
    *out = NULL;
    pthread_mutex_lock(&lock); /* held all the while: two threads never open one handle */
    slab *s = find(memory);
    if (s && s->slots != slots) {
        rc = sl_fail(err, SL_FORMAT, "the owner's slab has %d slots, this handle %d", s->slots,
                     slots);
    } else if (s) {
        s->views++;
    } else if (!(s = new_slab(slots, false))) {
        rc = sl_fail(err, SL_NOMEM, "no memory for a slab");
    } else {
        memcpy(s->key, memory, sizeof s->key);
        if ((rc = map(s, slot_bytes, handles, err))) release(s);
        else enlist(s);
    }
    pthread_mutex_unlock(&lock);
    if (!rc) *out = s;
    return rc;
}

static void slab_close(void *slab_)
{
    slab *s = (slab *)slab_;
    pthread_mutex_lock(&lock);
    if (!--s->views) {
        slab **at = &slabs;
        while (*at != s) at = &(*at)->next;
        *at = s->next;
        release(s);
    }
    pthread_mutex_unlock(&lock);
}

static char *slab_base(void *slab_)
{
    return ((slab *)slab_)->base;
}

static sl_code slab_record(void *slab_, int slot, sl_slab_event which, cudaStream_t stream,
                           sl_err *err)
{
    slab *s = (slab *)slab_;
    cudaError_t e = use_device_of(s);
    if (e == cudaSuccess) e = cudaEventRecord(s->event[which][slot], stream);
    return e == cudaSuccess
               ? SL_OK
               : failed(err, e, which == SL_SLAB_FILLED ? "record filled" : "record drained");
}

static sl_code slab_reached(void *slab_, int slot, sl_slab_event which, bool *yes, sl_err *err)
{
    slab *s = (slab *)slab_;
    cudaError_t e = use_device_of(s);
    if (e == cudaSuccess) e = cudaEventQuery(s->event[which][slot]);
    *yes = e == cudaSuccess;
    if (e == cudaErrorNotReady) cudaGetLastError();
    return e == cudaSuccess || e == cudaErrorNotReady
               ? SL_OK
               : failed(err, e, which == SL_SLAB_FILLED ? "query filled" : "query drained");
}

static sl_code slab_wait(void *slab_, int slot, cudaStream_t stream, sl_err *err)
{
    slab *s = (slab *)slab_;
    cudaError_t e = use_device_of(s);
    if (e == cudaSuccess) e = cudaStreamWaitEvent(stream, s->event[SL_SLAB_FILLED][slot], 0);
    return e == cudaSuccess ? SL_OK : failed(err, e, "wait for filled");
}

static sl_code slab_idle(cudaStream_t stream, bool *yes, sl_err *err)
{
    cudaError_t e = cudaStreamQuery(stream);
    *yes = e == cudaSuccess;
    if (e == cudaErrorNotReady) cudaGetLastError();
    return e == cudaSuccess || e == cudaErrorNotReady ? SL_OK
                                                      : failed(err, e, "work on the stream");
}

static void *synchronize(void *device)
{
    cudaError_t e = cudaSetDevice((int)(intptr_t)device);
    if (e == cudaSuccess) e = cudaDeviceSynchronize();
    return (void *)(intptr_t)e;
}

/* cudaDeviceSynchronize knows no deadline: a thread calls it, and is left behind where
 * the device never ends its work. */
static sl_code slab_finish(void *slab_, sl_err *err)
{
    int device = 0;
    pthread_t thread;
    void *result = NULL;
    struct timespec until;
    cudaError_t e = slab_ ? use_device_of((slab *)slab_) : cudaSuccess;
    if (e == cudaSuccess) e = cudaGetDevice(&device);
    if (e != cudaSuccess) return failed(err, e, "work on the device");
    if (pthread_create(&thread, NULL, synchronize, (void *)(intptr_t)device))
        return sl_fail(err, SL_NOMEM, "no thread to wait for the device with");
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += FINISH_S;
    if (pthread_clockjoin_np(thread, &result, CLOCK_MONOTONIC, &until)) {
        pthread_detach(thread);
        return sl_fail(err, SL_TIMEOUT, "work on device %d was not over after %d s", device,
                       FINISH_S);
    }
    e = (cudaError_t)(intptr_t)result;
    return e == cudaSuccess ? SL_OK : failed(err, e, "work on the device");
}

static sl_code slab_pin(void *p, size_t bytes, sl_err *err)
{
    char what[64];
    cudaError_t e = cudaHostRegister(p, bytes, cudaHostRegisterPortable);
    snprintf(what, sizeof what, "pin %zu bytes", bytes);
    return e == cudaSuccess ? SL_OK : failed(err, e, what);
}

static void slab_unpin(void *p)
{
    if (cudaHostUnregister(p) != cudaSuccess) cudaGetLastError();
}

const sl_slab_ops sl_cuda_slabs = {
    slab_create, slab_open, slab_close,  slab_base, slab_record, slab_reached,
    slab_wait,   slab_idle, slab_finish, slab_pin,  slab_unpin,
};
