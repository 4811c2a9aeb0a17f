/* plugin.h - the CUDA plug-in sluice_cuda.so: what it lends to a program that was built
 * without CUDA.
 *
 * Programs never link CUDA. The first that wants a device "cuda:N" opens sluice_cuda.so
 * from the folder of its own binary (SLUICE_CUDA names another file); the plug-in finds
 * sl_fail, sl_ctx_fail and their like in the program that opened it. */
#ifndef SL_PLUGIN_H
#define SL_PLUGIN_H

#include "common/lease_device.h"
#include "kernels/ops.h"

#define SL_PLUGIN_ABI 12

/* One tensor (or a part of one) to bring from a file into device memory. */
typedef struct {
    int fd;
    int64_t offset; /* of its bytes in the file */
    int64_t count;  /* elements */
    sl_dtype from;  /* as stored: F32, BF16 or F16 */
    sl_dtype to;    /* on the device: F32 or BF16 (one rounding, to nearest even) */
    void *dst;      /* device memory, count * sizeof(to) */
} sl_load_piece;

typedef struct {
    uint64_t bytes_read, bytes_made;
    double seconds;
} sl_load_figures;

typedef struct sl_load sl_load; /* a load under way */
/* `count` more elements of piece `piece` lie on the device. Called by the threads that read. */
typedef void sl_load_done_fn(void *user, int piece, int64_t count);

struct sl_plugin {
    int abi; /* SL_PLUGIN_ABI */
    /* The bf16 bodies. sl_ctx_open makes the context on the calling thread's device, with a
     * stream of its own. */
    const sl_ops *ops;
    const sl_slab_ops *slabs;
    int (*devices)(void); /* how many there are */
    /* The calling thread works on the device from now on. */
    sl_code (*use)(int device, sl_err *err);
    /* Bytes of the device; opens CUDA's context on it. */
    sl_code (*memory)(int device, size_t *free_bytes, size_t *total_bytes, sl_err *err);
    /* The device's name and compute capability: "NVIDIA H100 80GB HBM3", 90. */
    sl_code (*describe)(int device, char *name, size_t size, int *sm, sl_err *err);
    /* *yes: each of the two may read the other's memory. */
    sl_code (*can_map)(int device, int other, bool *yes, sl_err *err);
    /* Pinned host memory; NULL if there is none. */
    void *(*host_alloc)(size_t bytes);
    void (*host_free)(void *p);
    /* Pins memory that is there (a shared slab). */
    sl_code (*host_register)(void *p, size_t bytes, sl_err *err);
    void (*host_unregister)(void *p);
    /* Asynchronous copies between pinned host memory and the device, on ctx's stream;
     * sl_sync waits. */
    void (*copy_in)(sl_ctx *ctx, void *device, const void *host, size_t bytes);
    void (*copy_out)(sl_ctx *ctx, void *host, const void *device, size_t bytes);
    /* Read n pieces with `threads` readers (0: a good number) through pinned staging,
     * convert on the device, wait for all of it. Never holds more than its staging of the
     * file in host memory. *cancel (may be NULL) nonzero: SL_CANCELLED. */
    sl_code (*load)(const sl_load_piece *pieces, int n, int threads, const volatile int *cancel,
                    sl_load_figures *figures, sl_err *err);
    /* The same beside the caller. load_begin returns once all readers have their memory; `done`
     * (may be NULL) tells what has arrived, about in the order of the pieces. load_over: all has
     * been read, or the load has failed. load_end waits for that, frees everything and gives the
     * first error; *load becomes NULL. Between the two no memory is taken or given back, which
     * could wait for a stream that waits for another rank. */
    sl_code (*load_begin)(sl_load **out, const sl_load_piece *pieces, int n, int threads,
                          const volatile int *cancel, sl_load_done_fn *done, void *user,
                          sl_err *err);
    bool (*load_over)(const sl_load *load);
    sl_code (*load_end)(sl_load **load, sl_load_figures *figures, sl_err *err);
    /* Makes n elements (F32 or BF16) of centre + spread * u, u uniform in -1 .. 1 from seed and
     * index: bit for bit graphs/weights.c's. On ctx's stream. */
    void (*random)(sl_ctx *ctx, void *dst, sl_dtype dtype, int64_t n, float centre, float spread,
                   uint64_t seed);
    /* Ranks on devices of one machine that can map each other, or on one device. */
    const struct sl_comm_body *comm_ipc;
    /* Ranks on devices of one machine, a device each, whether or not they can map each other. NCCL
     * 2.14 or newer is wanted: libnccl.so.2, or the file that SLUICE_NCCL names. */
    const struct sl_comm_body *comm_nccl;
};

/* The plug-in, opened on the first call and kept; safe from several threads. NULL: it is
 * not there (SL_ARG, the file's name and the reason), or its abi is another. */
const sl_plugin *sl_plugin_cuda(sl_err *err);

#endif
