/* table.c - the CPU body: its table of operations, its memory, its threads' scratch
 * buffers. */
#include "kernels/cpu/cpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cblas.h>

#define HUGE_PAGE ((size_t)2 << 20)

static sl_code cpu_open(sl_ctx *ctx, sl_err *err)
{
    (void)ctx, (void)err;
#ifdef _OPENMP
    /* built on OpenMP it knows when a thread of ours calls it, and shares their number */
    if (openblas_get_parallel() != OPENBLAS_OPENMP)
#endif
        openblas_set_num_threads(1);
    return SL_OK;
}

static void *cpu_alloc(sl_ctx *ctx, size_t bytes)
{
    (void)ctx;
    size_t align = bytes >= 2 * HUGE_PAGE ? HUGE_PAGE : 256;
    if (bytes > SIZE_MAX - align) return NULL;
    bytes = (bytes + align - 1) / align * align;
    void *p = aligned_alloc(align, bytes ? bytes : align);
    /* a hint: fewer page faults and TLB misses */
    if (p && align == HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void cpu_free(sl_ctx *ctx, void *p)
{
    (void)ctx;
    free(p);
}

/* One set of buffers a thread, found through a key so that a thread that ends gives them
 * back. */
typedef struct {
    void *data[SL_SCRATCH_COUNT];
    size_t bytes[SL_SCRATCH_COUNT];
} scratch_set;

static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static pthread_key_t scratch_key;
static int scratch_key_error;

static void scratch_free(void *p)
{
    scratch_set *s = p;
    for (int i = 0; i < SL_SCRATCH_COUNT; i++) free(s->data[i]);
    free(s);
}

static void scratch_init(void)
{
    scratch_key_error = pthread_key_create(&scratch_key, scratch_free);
}

void *sl_cpu_scratch(sl_scratch purpose, size_t bytes)
{
    pthread_once(&scratch_once, scratch_init);
    if (scratch_key_error || bytes > PTRDIFF_MAX) return NULL;
    scratch_set *s = pthread_getspecific(scratch_key);
    if (!s) {
        if (!(s = calloc(1, sizeof *s))) return NULL;
        if (pthread_setspecific(scratch_key, s)) {
            free(s);
            return NULL;
        }
    }
    if (bytes > s->bytes[purpose] || !s->data[purpose]) {
        free(s->data[purpose]);
        s->data[purpose] = cpu_alloc(NULL, bytes);
        s->bytes[purpose] = s->data[purpose] ? bytes : 0;
    }
    return s->data[purpose];
}

const sl_ops sl_ops_cpu = {.name = "cpu",
                           .act = SL_F32,
                           .host_memory = true,
                           .stored_matrices = true,
                           .rows_at_once = SL_CPU_ROWS,
                           .row_granule = SL_CPU_GRANULE,
                           .open = cpu_open,
                           .alloc = cpu_alloc,
                           .free = cpu_free,
                           .upload = sl_cpu_upload,
                           .download = sl_cpu_download,
                           .sync = sl_cpu_sync,
                           .packed_conv_bytes = sl_cpu_packed_conv_bytes,
                           .pack_conv = sl_cpu_pack_conv,
#define BODY(op) .op = sl_cpu_##op,
                           SL_OPS(BODY)
#undef BODY
};
