/* load.cu - weights onto the device: files through pinned slots, converted there; and
 * random weights made there.
 *
 * The pieces are sorted by their place in the files and cut into chunks of at most CHUNK
 * bytes, neighbours together. Each reader takes the next chunk, reads it into one of its
 * two pinned slots with one large read, and queues on its own stream: a copy straight to
 * the destination where the dtypes agree, else a copy to its device stage and a
 * conversion. The slot is filled anew once its event has come, so that a reader's read
 * and its copies overlap. Host memory: readers * 2 * CHUNK, whatever the files' size.
 *
 * THREADS. The caller plans, starts the readers and joins them; readers alone read and
 * copy. They share one job: `next` hands out chunks and `stop` ends them (atomics); err,
 * the first failure, and the counts of readers are under `lock`; segments and chunks do
 * not change once readers run. Slots, their stages and the stream are a reader's own.
 * Each wait for the device has a deadline (DEVICE_WAIT).
 *
 * A load beside the caller (load_begin) tells of each chunk whose event has come. Its
 * readers keep their memory until load_end, and load_begin returns when all have theirs:
 * a call that takes or gives back memory may wait for the whole device, hence for a stream
 * of the caller's that waits for another rank.
 *
 * SLUICE_LOAD_DIRECT=1: read past the page cache (O_DIRECT), to measure a disk. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "kernels/cuda/cuda.h"

namespace
{

const int64_t CHUNK = (int64_t)8 << 20; /* bytes of a file that one slot holds */
const int64_t PAGE = 4096;              /* reads begin and end at multiples of it */
/* bytes of no piece that are read along rather than skipped */
const int64_t GAP = (int64_t)64 << 10;
/* a piece is cut at multiples of this many elements: destinations stay aligned */
const int64_t GRAIN = 64;
const int SLOTS = 2;
const int READERS = 16;
const double DEVICE_WAIT = 60; /* seconds that a slot's copies may take */

struct segment { /* part of a piece, in one chunk */
    int piece;
    int64_t at, count;
    sl_dtype from, to;
    char *dst;
    size_t staged; /* place in the device stage, if dtypes differ */
};

struct chunk { /* bytes [begin, end) of a file, segments [first, last) */
    int fd, reading;
    int64_t begin, end;
    size_t first, last, staged;
};

struct job {
    std::vector<segment> segments;
    std::vector<chunk> chunks;
    std::vector<int> opened_files; /* O_DIRECT descriptors, ours */
    size_t slot_bytes = 0, stage_bytes = 0;
    uint64_t bytes_made = 0;
    double t0 = 0;
    int device = 0;
    const volatile int *cancel = NULL;
    sl_load_done_fn *done = NULL;
    void *user = NULL;
    std::vector<std::thread> readers;
    std::atomic<size_t> next{0};
    std::atomic<uint64_t> bytes_read{0};
    std::atomic<bool> stop{false};
    mutable std::mutex lock;
    std::condition_variable turn;
    size_t opened = 0, ended = 0; /* readers that have their memory, or never will; that have
                                     read all */
    bool closing = false;         /* they may give it back */
    sl_err err = {};              /* the first */
};

struct slot {
    char *host, *stage;
    cudaEvent_t event;
    bool busy; /* the event has been recorded and not been waited for */
    size_t chunk;
};

double seconds_now()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The first error wins and stops all readers. */
bool give_up(job *j, const sl_err &e)
{
    std::lock_guard<std::mutex> hold(j->lock);
    if (!j->err.code) j->err = e;
    j->stop = true;
    return false;
}

bool cuda_ok(job *j, cudaError_t e, const char *what)
{
    sl_err err;
    if (e == cudaSuccess) return true;
    sl_fail(&err, e == cudaErrorMemoryAllocation ? SL_NOMEM : SL_CUDA, "load: %s on device %d: %s",
            what, j->device, cudaGetErrorString(e));
    return give_up(j, err);
}

/* The file behind a descriptor, for messages. */
const char *name_of(int fd, char *buf, size_t size)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, buf, size - 1);
    if (n < 0) snprintf(buf, size, "descriptor %d", fd);
    else buf[n] = 0;
    return buf;
}

/* ---- chunks ---- */

sl_code check_piece(const sl_load_piece *p, int i, sl_err *err)
{
    bool from = p->from == SL_F32 || p->from == SL_BF16 || p->from == SL_F16,
         to = p->to == SL_F32 || p->to == SL_BF16;
    if (!from || !to)
        return sl_fail(err, SL_ARG,
                       "load: piece %d is %s and to be %s, want F32, BF16 or F16 to be F32 or BF16",
                       i, sl_dtype_tag(p->from), sl_dtype_tag(p->to));
    int64_t size = (int64_t)sl_dtype_size(p->from);
    if (p->count < 0 || p->offset < 0 || p->count > (INT64_MAX - p->offset - PAGE) / size)
        return sl_fail(err, SL_ARG,
                       "load: piece %d has %lld elements at offset %lld of its file, want 0 or "
                       "more within 2^63 bytes",
                       i, (long long)p->count, (long long)p->offset);
    if (p->count && (!p->dst || (uintptr_t)p->dst % sl_dtype_size(p->to)))
        return sl_fail(err, SL_ARG,
                       "load: piece %d goes to address %p, want one that is aligned for %s", i,
                       p->dst, sl_dtype_tag(p->to));
    return SL_OK;
}

void add_piece(job *j, const sl_load_piece *p, int piece)
{
    const int64_t size = (int64_t)sl_dtype_size(p->from), out = (int64_t)sl_dtype_size(p->to);
    for (int64_t done = 0, n; done < p->count; done += n) {
        const int64_t at = p->offset + done * size, left = p->count - done;
        n = 0;
        /* as much as the last chunk has room for, if this follows it */
        if (!j->chunks.empty()) {
            const chunk &last = j->chunks.back();
            if (last.fd == p->fd && at >= last.end && at - last.end <= GAP)
                n = (CHUNK - (at - last.begin)) / size;
        }
        if (n < left) n = n < GRAIN ? 0 : n / GRAIN * GRAIN;
        if (n <= 0) {
            j->chunks.push_back(
                chunk{p->fd, p->fd, at, at, j->segments.size(), j->segments.size(), 0});
            n = CHUNK / size / GRAIN * GRAIN;
        }
        if (n > left) n = left;
        chunk &c = j->chunks.back();
        segment s = {piece, at, n, p->from, p->to, (char *)p->dst + done * out, 0};
        if (s.from != s.to) {
            s.staged = (c.staged + 15) / 16 * 16;
            c.staged = s.staged + (size_t)(n * size);
        }
        j->segments.push_back(s);
        c.last = j->segments.size();
        c.end = at + n * size;
        j->stage_bytes = std::max(j->stage_bytes, c.staged);
        j->slot_bytes = std::max(j->slot_bytes, (size_t)(c.end - c.begin + 2 * PAGE));
    }
}

sl_code open_direct(job *j, sl_err *err)
{
    char path[400], link[40];
    for (size_t i = 0; i < j->chunks.size(); i++) {
        chunk &c = j->chunks[i];
        if (i && c.fd == j->chunks[i - 1].fd) {
            c.reading = j->chunks[i - 1].reading;
            continue;
        }
        snprintf(link, sizeof link, "/proc/self/fd/%d", c.fd);
        int fd = open(link, O_RDONLY | O_CLOEXEC | O_DIRECT);
        const int why = errno;
        if (fd < 0)
            return sl_fail_errno(err, why, "load: %s: cannot be opened with O_DIRECT",
                                 name_of(c.fd, path, sizeof path));
        j->opened_files.push_back(fd);
        c.reading = fd;
    }
    return SL_OK;
}

sl_code plan(job *j, const sl_load_piece *pieces, int n, sl_err *err)
{
    std::vector<int> order, file; /* file: a piece's, in the order in which the caller names them */
    std::map<int, int> files;
    for (int i = 0; i < n; i++) {
        sl_code rc = check_piece(&pieces[i], i, err);
        if (rc) return rc;
        order.push_back(i);
        file.push_back(files.emplace(pieces[i].fd, (int)files.size()).first->second);
        j->bytes_made += (uint64_t)pieces[i].count * sl_dtype_size(pieces[i].to);
    }
    std::stable_sort(order.begin(), order.end(), [pieces, &file](int a, int b) {
        return file[a] != file[b] ? file[a] < file[b] : pieces[a].offset < pieces[b].offset;
    });
    for (int i : order) add_piece(j, &pieces[i], i);
    const char *direct = getenv("SLUICE_LOAD_DIRECT");
    return direct && !strcmp(direct, "1") ? open_direct(j, err) : SL_OK;
}

/* ---- on the device ---- */

/* As sl_to_floats and sl_to_bf16 of common/tensor.c, NaNs included. */
__device__ float widen(const void *src, int64_t i, sl_dtype from)
{
    if (from == SL_F32) return ((const float *)src)[i];
    const uint32_t h = ((const uint16_t *)src)[i];
    if (from == SL_BF16) return __uint_as_float(h << 16);
    const uint32_t sign = (h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 0x3ff;
    if (e == 0) return __uint_as_float(sign | __float_as_uint((float)m * 0x1p-24f));
    return __uint_as_float(sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13);
}

__device__ void put(void *dst, int64_t i, sl_dtype to, float x)
{
    if (to == SL_F32) {
        ((float *)dst)[i] = x;
        return;
    }
    const uint32_t u = __float_as_uint(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    ((uint16_t *)dst)[i] =
        (uint16_t)(nan ? (u >> 16) | 0x40 : (u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

__global__ void convert_kernel(void *dst, sl_dtype to, const void *src, sl_dtype from, int64_t n)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        put(dst, i, to, widen(src, i, from));
}

__device__ uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The numbers of produce() in graphs/weights.c: the same operations, each rounded by
 * itself. */
__global__ void random_kernel(void *dst, sl_dtype to, int64_t n, float centre, float spread,
                              uint64_t seed)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const float u =
            __fmul_rn(__int2float_rn((int)(uint32_t)(mix(seed + (uint64_t)i) >> 32)), 0x1p-31f);
        put(dst, i, to, __fadd_rn(centre, __fmul_rn(spread, u)));
    }
}

const int THREADS = 256;

int blocks_for(int64_t n)
{
    return (int)std::min<int64_t>((n + THREADS - 1) / THREADS, 2048);
}

/* ---- a reader ---- */

/* Wait until `event` has come; an event that was never recorded has. */
bool wait_for(job *j, cudaEvent_t event)
{
    const double t0 = seconds_now();
    for (;;) {
        cudaError_t e = cudaEventQuery(event);
        if (e == cudaSuccess) return true;
        if (e != cudaErrorNotReady) return cuda_ok(j, e, "copy or conversion");
        cudaGetLastError(); /* "not ready" is no failure */
        if (seconds_now() - t0 > DEVICE_WAIT) {
            sl_err err;
            sl_fail(&err, SL_TIMEOUT, "load: copies to device %d are not done after %.0f s",
                    j->device, DEVICE_WAIT);
            return give_up(j, err);
        }
        const timespec nap = {0, 20000};
        nanosleep(&nap, NULL);
    }
}

bool read_chunk(job *j, const chunk &c, char *host)
{
    const int64_t from = c.begin / PAGE * PAGE, need = c.end - from,
                  whole = (need + PAGE - 1) / PAGE * PAGE;
    char path[300];
    sl_err err;
    /* all of it at once to the disk */
    if (c.reading == c.fd) posix_fadvise(c.fd, from, whole, POSIX_FADV_WILLNEED);
    for (int64_t got = 0; got < need;) {
        /* O_DIRECT goes on at multiples only: the end of a file */
        const int fd = got % PAGE ? c.fd : c.reading;
        const ssize_t n = pread(fd, host + got, (size_t)(whole - got), from + got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            const int why = errno;
            sl_fail_errno(&err, why, "load: %s: bytes %lld to %lld cannot be read",
                          name_of(c.fd, path, sizeof path), (long long)c.begin, (long long)c.end);
            return give_up(j, err);
        }
        if (!n) {
            struct stat info; /* asked for, since another reader may be nearer to the end */
            const int64_t size = fstat(c.fd, &info) ? from + got : (int64_t)info.st_size;
            sl_fail(&err, SL_FORMAT,
                    "load: %s ends at byte %lld, want bytes %lld to %lld: the file was cut short",
                    name_of(c.fd, path, sizeof path), (long long)size, (long long)c.begin,
                    (long long)c.end);
            return give_up(j, err);
        }
        got += n;
    }
    j->bytes_read += (uint64_t)(c.end - c.begin);
    return true;
}

bool send_chunk(job *j, const chunk &c, slot *s, cudaStream_t stream)
{
    const int64_t from = c.begin / PAGE * PAGE;
    for (size_t i = c.first; i < c.last; i++) {
        const segment &g = j->segments[i];
        const char *src = s->host + (g.at - from);
        const size_t bytes = (size_t)g.count * sl_dtype_size(g.from);
        char *to = g.from == g.to ? g.dst : s->stage + g.staged;
        if (!cuda_ok(j, cudaMemcpyAsync(to, src, bytes, cudaMemcpyHostToDevice, stream), "copy"))
            return false;
        if (g.from == g.to) continue;
        convert_kernel<<<blocks_for(g.count), THREADS, 0, stream>>>(g.dst, g.to, to, g.from,
                                                                    g.count);
        if (!cuda_ok(j, cudaGetLastError(), "conversion")) return false;
    }
    if (!cuda_ok(j, cudaEventRecord(s->event, stream), "event")) return false;
    s->busy = true;
    return true;
}

bool open_slots(job *j, slot slots[SLOTS], cudaStream_t *stream)
{
    if (!cuda_ok(j, cudaSetDevice(j->device), "choosing it") ||
        !cuda_ok(j, cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "stream"))
        return false;
    for (int i = 0; i < SLOTS; i++) {
        if (!cuda_ok(j, cudaEventCreateWithFlags(&slots[i].event, cudaEventDisableTiming),
                     "event") ||
            !cuda_ok(j, cudaHostAlloc((void **)&slots[i].host, j->slot_bytes, cudaHostAllocDefault),
                     "pinned staging") ||
            (j->stage_bytes &&
             !cuda_ok(j, cudaMalloc((void **)&slots[i].stage, j->stage_bytes), "device staging")))
            return false;
    }
    return true;
}

/* The slot is free: the copies of its chunk, if it has one, are done. */
bool empty_slot(job *j, slot *s)
{
    if (!s->busy) return true;
    if (!wait_for(j, s->event)) return false;
    s->busy = false;
    if (!j->done) return true;
    const chunk &c = j->chunks[s->chunk];
    for (size_t i = c.first; i < c.last; i++)
        j->done(j->user, j->segments[i].piece, j->segments[i].count);
    return true;
}

/* Wait for what is queued; also for copies before a failure, which no event follows yet.
 * False: the device does not answer. */
bool drain(job *j, slot slots[SLOTS], cudaStream_t stream)
{
    for (int i = 0; i < SLOTS; i++)
        if (!empty_slot(j, &slots[i])) return false;
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].event && cudaEventRecord(slots[i].event, stream) == cudaSuccess &&
            !wait_for(j, slots[i].event))
            return false;
    return true;
}

void close_slots(job *j, slot slots[SLOTS], cudaStream_t stream)
{
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].stage) cuda_ok(j, cudaFree(slots[i].stage), "device staging");
        if (slots[i].host) cuda_ok(j, cudaFreeHost(slots[i].host), "pinned staging");
        if (slots[i].event) cudaEventDestroy(slots[i].event);
    }
    if (stream) cudaStreamDestroy(stream);
}

/* One reader more has come as far as `count` says. */
void come(job *j, size_t *count)
{
    std::lock_guard<std::mutex> hold(j->lock);
    ++*count;
    j->turn.notify_all();
}

void read_chunks(job *j, slot slots[SLOTS], cudaStream_t stream)
{
    size_t k;
    for (int turn = 0; !j->stop && (k = j->next.fetch_add(1)) < j->chunks.size(); turn++) {
        slot *s = &slots[turn % SLOTS];
        if (j->cancel && *j->cancel) {
            sl_err err;
            sl_fail(&err, SL_CANCELLED, "cancelled");
            give_up(j, err);
            return;
        }
        if (!empty_slot(j, s) || !read_chunk(j, j->chunks[k], s->host)) return;
        s->chunk = k;
        if (!send_chunk(j, j->chunks[k], s, stream)) return;
    }
}

void run_reader(job *j)
{
    slot slots[SLOTS] = {};
    cudaStream_t stream = NULL;
    const bool opened = open_slots(j, slots, &stream);
    come(j, &j->opened);
    if (opened) read_chunks(j, slots, stream);
    const bool answers = !stream || drain(j, slots, stream);
    come(j, &j->ended);
    std::unique_lock<std::mutex> hold(j->lock);
    while (!j->closing) j->turn.wait(hold);
    hold.unlock();
    /* a device that does not answer keeps its slots: freeing them would wait for ever */
    if (answers) close_slots(j, slots, stream);
}

int reader_count(int threads, size_t chunks)
{
    cpu_set_t set;
    int n = threads;
    if (n <= 0) {
        CPU_ZERO(&set);
        n = sched_getaffinity(0, sizeof set, &set) ? 4 : CPU_COUNT(&set);
        n = std::min(n, READERS);
    }
    return (int)std::min<size_t>((size_t)std::max(n, 1), chunks);
}

/* Start n readers and wait until they have their memory; those that cannot be started are done
 * without. */
void start_readers(job *j, int n)
{
    j->readers.reserve((size_t)n);
    try {
        while (j->readers.size() < (size_t)n) j->readers.emplace_back(run_reader, j);
    } catch (const std::exception &) {
        if (j->readers.empty()) {
            sl_err err;
            sl_fail(&err, SL_NOMEM, "load: no thread can be started");
            give_up(j, err);
        }
    }
    std::unique_lock<std::mutex> hold(j->lock);
    while (j->opened < j->readers.size()) j->turn.wait(hold);
}

/* Let readers give back what they hold, once they have read all. */
void let_go(job *j)
{
    std::lock_guard<std::mutex> hold(j->lock);
    j->closing = true;
    j->turn.notify_all();
}

sl_code finish(job *j, sl_load_figures *figures, sl_err *err)
{
    let_go(j);
    for (std::thread &t : j->readers) t.join();
    for (int fd : j->opened_files) close(fd);
    const sl_code rc = j->err.code;
    if (rc && err) *err = j->err;
    if (figures) {
        figures->bytes_made = rc ? 0 : j->bytes_made;
        figures->bytes_read = j->bytes_read;
        figures->seconds = seconds_now() - j->t0;
    }
    return rc;
}

sl_code begin(job *j, const sl_load_piece *pieces, int n, int threads, sl_err *err)
{
    cudaFuncAttributes loaded;
    j->t0 = seconds_now();
    cudaError_t e = cudaGetDevice(&j->device);
    if (e != cudaSuccess)
        return sl_fail(err, SL_CUDA, "load: this thread's device: %s", cudaGetErrorString(e));
    try {
        sl_code rc = plan(j, pieces, n, err);
        if (rc) return rc;
        /* loaded now rather than by its first launch, which may wait for the whole device */
        if (j->stage_bytes && (e = cudaFuncGetAttributes(&loaded, convert_kernel)) != cudaSuccess)
            return sl_fail(err, SL_CUDA, "load: conversion: %s", cudaGetErrorString(e));
        if (!j->chunks.empty()) start_readers(j, reader_count(threads, j->chunks.size()));
    } catch (const std::bad_alloc &) {
        return sl_fail(err, SL_NOMEM, "load: no memory for a list of %d pieces", n);
    }
    return SL_OK;
}

} // namespace

sl_code sl_cuda_load(const sl_load_piece *pieces, int n, int threads, const volatile int *cancel,
                     sl_load_figures *figures, sl_err *err)
{
    job j;
    if (figures) memset(figures, 0, sizeof *figures);
    j.cancel = cancel;
    j.closing = true;
    const sl_code rc = begin(&j, pieces, n, threads, err);
    if (rc) finish(&j, NULL, NULL);
    return rc ? rc : finish(&j, figures, err);
}

sl_code sl_cuda_load_begin(sl_load **out, const sl_load_piece *pieces, int n, int threads,
                           const volatile int *cancel, sl_load_done_fn *done, void *user,
                           sl_err *err)
{
    job *j = new (std::nothrow) job;
    *out = NULL;
    if (!j) return sl_fail(err, SL_NOMEM, "load: no memory");
    j->cancel = cancel;
    j->done = done;
    j->user = user;
    const sl_code rc = begin(j, pieces, n, threads, err);
    if (!rc) *out = (sl_load *)j;
    else {
        finish(j, NULL, NULL);
        delete j;
    }
    return rc;
}

bool sl_cuda_load_over(const sl_load *load)
{
    const job *j = (const job *)load;
    std::lock_guard<std::mutex> hold(j->lock);
    return j->ended == j->readers.size();
}

sl_code sl_cuda_load_end(sl_load **load, sl_load_figures *figures, sl_err *err)
{
    job *j = (job *)*load;
    *load = NULL;
    const sl_code rc = finish(j, figures, err);
    delete j;
    return rc;
}

void sl_cuda_random(sl_ctx *ctx, void *dst, sl_dtype dtype, int64_t n, float centre, float spread,
                    uint64_t seed)
{
    if (n <= 0) return;
    if (dtype != SL_F32 && dtype != SL_BF16) {
        sl_ctx_fail(ctx, SL_ARG, "random weights: dtype %s, want F32 or BF16", sl_dtype_tag(dtype));
        return;
    }
    random_kernel<<<blocks_for(n), THREADS, 0, ctx->stream>>>(dst, dtype, n, centre, spread, seed);
    SL_LAUNCHED(ctx, "random weights");
}
