/* table.cu - the CUDA body's table of operations, its contexts and memory, and the entry
 * of the plug-in. */
#include "kernels/cuda/cuda.h"

#include <string.h>

extern "C" const struct sl_comm_body sl_cuda_comm_ipc, sl_cuda_comm_nccl; /* comm_*.cu */

enum { WORKSPACE = 64 << 20, SCRATCH_STEP = 2 << 20, HOST_OUT = 1024 };

/* ---- errors ---- */

/* cudaErrorMemoryAllocation says neither how much was wanted nor how much is there: the
 * callers that allocate do. */
static sl_code code_of(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? SL_NOMEM : SL_CUDA;
}

static sl_code failed(sl_err *err, cudaError_t e, const char *what)
{
    /* a failure that is reported here shall not appear after the next launch */
    cudaGetLastError();
    return sl_fail(err, code_of(e), "%s: %s (%s)", what, cudaGetErrorString(e),
                   cudaGetErrorName(e));
}

bool sl_cuda_ok(sl_ctx *ctx, cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return true;
    cudaGetLastError();
    sl_ctx_fail(ctx, code_of(e), "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
    return false;
}

bool sl_cuda_lt_ok(sl_ctx *ctx, cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return true;
    sl_ctx_fail(ctx, SL_CUDA, "%s: cublasLt: %s", what, cublasLtGetStatusName(s));
    return false;
}

void *sl_cuda_tensor_maps(const sl_cuda *cu)
{
    static void *const encode = [] {
        void *f = nullptr;
        cudaDriverEntryPointQueryResult found;
        const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                               cudaEnableDefault, &found);
        if (e == cudaSuccess && found == cudaDriverEntryPointSuccess) return f;
        cudaGetLastError(); /* an old driver: other kernels do it */
        return (void *)nullptr;
    }();
    return cu->sm == 90 ? encode : nullptr;
}

bool sl_cuda_dnn_ok(sl_ctx *ctx, cudnnStatus_t s, const char *what)
{
    if (s == CUDNN_STATUS_SUCCESS) return true;
    char more[256] = "";
    cudnnGetLastErrorString(more, sizeof more);
    sl_ctx_fail(ctx, SL_CUDA, "%s: cuDNN: %s%s%s", what, cudnnGetErrorString(s), *more ? ": " : "",
                more);
    return false;
}

/* ---- memory ---- */

/* Device memory; NULL, and ctx has failed with SL_NOMEM and both sizes. */
static void *device_memory(sl_ctx *ctx, size_t bytes, const char *what)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 256);
    if (e == cudaSuccess) return p;
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    if (e == cudaErrorMemoryAllocation && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess)
        sl_ctx_fail(ctx, SL_NOMEM, "%s: %zu bytes wanted on cuda:%d, %zu of %zu are free", what,
                    bytes, sl_cuda_of(ctx)->device, free_bytes, total);
    else sl_cuda_ok(ctx, e, what);
    return NULL;
}

static void *cuda_alloc(sl_ctx *ctx, size_t bytes)
{
    return device_memory(ctx, bytes, "device memory");
}

static void cuda_free(sl_ctx *ctx, void *p)
{
    /* waits for the device: nothing queued still uses it */
    if (p) sl_cuda_ok(ctx, cudaFree(p), "freeing device memory");
}

void *sl_cuda_scratch(sl_ctx *ctx, size_t bytes)
{
    sl_cuda *c = sl_cuda_of(ctx);
    if (ctx->err.code) return NULL;
    if (bytes <= c->scratch_bytes && c->scratch) return c->scratch;
    if (!sl_cuda_ok(ctx, cudaStreamSynchronize(ctx->stream), "waiting to grow the scratch memory"))
        return NULL;
    if (c->scratch && !sl_cuda_ok(ctx, cudaFree(c->scratch), "growing the scratch memory"))
        return NULL;
    c->scratch_bytes = 0;
    bytes = (bytes + SCRATCH_STEP) / SCRATCH_STEP * SCRATCH_STEP;
    c->scratch = device_memory(ctx, bytes, "scratch memory");
    if (c->scratch) c->scratch_bytes = bytes;
    return c->scratch;
}

/* ---- contexts ---- */

static void cuda_close(sl_ctx *ctx)
{
    sl_cuda *c = sl_cuda_of(ctx);
    if (!c) return;
    if (ctx->stream) cudaStreamSynchronize(ctx->stream);
    sl_cuda_gemms_free(c->gemms);
    sl_cuda_attns_free(c->attns);
    sl_cuda_convs_free(c->convs);
    if (c->dnn) cudnnDestroy(c->dnn);
    if (c->lt) cublasLtDestroy(c->lt);
    cudaFree(c->scratch);
    cudaFree(c->workspace);
    cudaFree(c->counters);
    cudaFreeHost(c->host_out);
    if (ctx->stream) cudaStreamDestroy(ctx->stream);
    cudaGetLastError();
    delete c;
    ctx->device = NULL;
    ctx->stream = NULL;
}

/* The compute capability that choices are made for: the device's; without code for Hopper (make
 * ARCHES=80ptx) an A100's, so that its path can be tried on a later card. cublasLt and cuDNN still
 * see the card itself. */
static int chosen_for(int major, int minor)
{
    const int sm = major * 10 + minor;
    return !SL_CUDA_HOPPER && sm > 80 ? 80 : sm;
}

/* Everything of a context but its arena; what is there when it fails, cuda_close takes
 * away. */
static bool open_all(sl_ctx *ctx, sl_cuda *c)
{
    int major = 0, minor = 0;
    if (!sl_cuda_ok(ctx, cudaGetDevice(&c->device), "opening the CUDA device") ||
        !sl_cuda_ok(ctx,
                    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device),
                    "compute capability") ||
        !sl_cuda_ok(ctx,
                    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device),
                    "compute capability") ||
        !sl_cuda_ok(ctx, cudaDeviceGetAttribute(&c->sms, cudaDevAttrMultiProcessorCount, c->device),
                    "multiprocessors"))
        return false;
    c->sm = chosen_for(major, minor);
    if (c->sm < 80) {
        sl_ctx_fail(ctx, SL_CUDA, "cuda:%d has compute capability %d.%d, want 8.0 or later",
                    c->device, major, minor);
        return false;
    }
    if (!sl_cuda_ok(ctx, cudaStreamCreateWithFlags(&ctx->stream, cudaStreamNonBlocking),
                    "creating a stream") ||
        !sl_cuda_lt_ok(ctx, cublasLtCreate(&c->lt), "opening cublasLt") ||
        !sl_cuda_dnn_ok(ctx, cudnnCreate(&c->dnn), "opening cuDNN") ||
        !sl_cuda_dnn_ok(ctx, cudnnSetStream(c->dnn, ctx->stream), "opening cuDNN") ||
        !sl_cuda_ok(ctx, cudaMallocHost((void **)&c->host_out, HOST_OUT * sizeof(float)),
                    "pinned memory for small results"))
        return false;
    c->workspace_bytes = WORKSPACE;
    if (!(c->workspace = device_memory(ctx, WORKSPACE, "workspace"))) return false;
    /* zeros before any stream may wait for them */
    c->counters = (uint32_t *)device_memory(ctx, sizeof c->counted, "counters");
    return c->counters &&
           sl_cuda_ok(ctx, cudaMemsetAsync(c->counters, 0, sizeof c->counted, ctx->stream),
                      "counters") &&
           sl_cuda_ok(ctx, cudaStreamSynchronize(ctx->stream), "counters");
}

static sl_code cuda_open(sl_ctx *ctx, sl_err *err)
{
    sl_cuda *c = new sl_cuda();
    ctx->device = c;
    if (open_all(ctx, c)) return SL_OK;
    if (err) *err = ctx->err;
    return ctx->err.code;
}

/* ---- transfers ---- */

/* True: an asynchronous copy from here may still be reading when the call returns. From
 * pageable memory none is. */
static bool is_pinned(const void *host)
{
    cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, host) != cudaSuccess) {
        cudaGetLastError();
        return true;
    }
    return a.type != cudaMemoryTypeUnregistered;
}

static void cuda_sync(sl_ctx *ctx)
{
    sl_cuda_ok(ctx, cudaStreamSynchronize(ctx->stream), "waiting for the device");
}

static void cuda_upload(sl_ctx *ctx, const sl_tensor *dst, const void *host)
{
    size_t bytes = sl_bytes(dst);
    if (!bytes) return;
    if (sl_cuda_ok(ctx,
                   cudaMemcpyAsync(dst->data, host, bytes, cudaMemcpyHostToDevice, ctx->stream),
                   "upload") &&
        is_pinned(host))
        cuda_sync(ctx);
}

static void cuda_download(sl_ctx *ctx, void *host, const sl_tensor *src)
{
    size_t bytes = sl_bytes(src);
    if (bytes &&
        !sl_cuda_ok(ctx,
                    cudaMemcpyAsync(host, src->data, bytes, cudaMemcpyDeviceToHost, ctx->stream),
                    "download"))
        return;
    cuda_sync(ctx);
}

static void copy_in(sl_ctx *ctx, void *device, const void *host, size_t bytes)
{
    if (ctx->err.code || sl_cancelled(ctx) || !bytes) return;
    sl_cuda_ok(ctx, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, ctx->stream),
               "copy to the device");
}

static void copy_out(sl_ctx *ctx, void *host, const void *device, size_t bytes)
{
    if (ctx->err.code || sl_cancelled(ctx) || !bytes) return;
    sl_cuda_ok(ctx, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, ctx->stream),
               "copy from the device");
}

/* ---- devices ---- */

static int devices(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    cudaGetLastError();
    return 0;
}

static sl_code known(int device, sl_err *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) return failed(err, e, "looking for CUDA devices");
    if (device >= 0 && device < n) return SL_OK;
    return sl_fail(err, SL_ARG, "cuda:%d: there are %d CUDA devices, want 0 to %d", device, n,
                   n - 1);
}

static sl_code use(int device, sl_err *err)
{
    sl_code rc = known(device, err);
    if (rc) return rc;
    cudaError_t e = cudaSetDevice(device);
    return e == cudaSuccess ? SL_OK : failed(err, e, "selecting the CUDA device");
}

/* The calling thread's device is the same afterwards. */
static sl_code memory(int device, size_t *free_bytes, size_t *total_bytes, sl_err *err)
{
    int before = 0;
    sl_code rc = known(device, err);
    if (rc) return rc;
    cudaError_t e = cudaGetDevice(&before);
    if (e == cudaSuccess) e = cudaSetDevice(device);
    if (e == cudaSuccess) e = cudaMemGetInfo(free_bytes, total_bytes);
    cudaSetDevice(before);
    return e == cudaSuccess ? SL_OK : failed(err, e, "asking for the device's free memory");
}

static sl_code describe(int device, char *name, size_t size, int *sm, sl_err *err)
{
    cudaDeviceProp p;
    sl_code rc = known(device, err);
    if (rc) return rc;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) return failed(err, e, "asking for the device's properties");
    if (size) {
        size_t n = strnlen(p.name, sizeof p.name);
        if (n > size - 1) n = size - 1;
        memcpy(name, p.name, n);
        name[n] = 0;
    }
    *sm = chosen_for(p.major, p.minor);
    return SL_OK;
}

static sl_code can_map(int device, int other, bool *yes, sl_err *err)
{
    int there = 1, back = 1;
    sl_code rc;
    if ((rc = known(device, err)) || (rc = known(other, err))) return rc;
    cudaError_t e = cudaSuccess;
    if (device != other) {
        e = cudaDeviceCanAccessPeer(&there, device, other);
        if (e == cudaSuccess) e = cudaDeviceCanAccessPeer(&back, other, device);
    }
    *yes = e == cudaSuccess && there && back;
    return e == cudaSuccess
               ? SL_OK
               : failed(err, e, "asking whether two devices can map each other's memory");
}

static void *host_alloc(size_t bytes)
{
    void *p = NULL;
    if (cudaHostAlloc(&p, bytes, cudaHostAllocPortable) == cudaSuccess) return p;
    cudaGetLastError();
    return NULL;
}

static void host_free(void *p)
{
    if (p && cudaFreeHost(p) != cudaSuccess) cudaGetLastError();
}

static sl_code host_register(void *p, size_t bytes, sl_err *err)
{
    cudaError_t e = cudaHostRegister(p, bytes, cudaHostRegisterPortable);
    if (e == cudaSuccess) return SL_OK;
    cudaGetLastError();
    return sl_fail(err, code_of(e), "pinning %zu bytes of shared memory: %s", bytes,
                   cudaGetErrorString(e));
}

static void host_unregister(void *p)
{
    if (p && cudaHostUnregister(p) != cudaSuccess) cudaGetLastError();
}

/* ---- the tables ---- */

extern "C" {
extern const sl_plugin sl_plugin_entry; /* what kernels/plugin.c looks for */
}

static sl_ops all_ops()
{
    sl_ops t = {};
    t.name = "cuda";
    t.act = SL_BF16;
    t.row_granule = 1;
    t.columns_apart = true;
    t.eight_width = 128;
    t.plugin = &sl_plugin_entry;
    t.open = cuda_open;
    t.close = cuda_close;
    t.alloc = cuda_alloc;
    t.free = cuda_free;
    t.upload = cuda_upload;
    t.download = cuda_download;
    t.sync = cuda_sync;
    t.packed_conv_bytes = sl_cuda_packed_conv_bytes;
    t.pack_conv = sl_cuda_pack_conv;
#define BODY(op) t.op = sl_cuda_##op;
    SL_OPS(BODY)
#undef BODY
    return t;
}

const sl_ops sl_ops_cuda = all_ops(); /* when the library is opened */

static sl_plugin all_of_it()
{
    sl_plugin t = {};
    t.abi = SL_PLUGIN_ABI;
    t.ops = &sl_ops_cuda;
    t.slabs = &sl_cuda_slabs;
#define LENT(name) t.name = name
    LENT(devices);
    LENT(use);
    LENT(memory);
    LENT(describe);
    LENT(can_map);
    LENT(host_alloc);
    LENT(host_free);
    LENT(host_register);
    LENT(host_unregister);
    LENT(copy_in);
    LENT(copy_out);
#undef LENT
    t.load = sl_cuda_load;
    t.load_begin = sl_cuda_load_begin;
    t.load_over = sl_cuda_load_over;
    t.load_end = sl_cuda_load_end;
    t.random = sl_cuda_random;
    t.comm_ipc = &sl_cuda_comm_ipc;
    t.comm_nccl = &sl_cuda_comm_nccl;
    return t;
}

const sl_plugin sl_plugin_entry = all_of_it();
