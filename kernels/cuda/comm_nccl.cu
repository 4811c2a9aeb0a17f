/* comm_nccl.cu - ranks on GPUs that need not map each other's memory: NCCL moves the bytes, by
 * whatever way it finds between two devices.
 *
 * LINKS     Two ranks that meet on a lane have a communicator of two of their own, a link. So any
 *           subset of the group is a team, a dead rank takes its own links along and no other,
 *           and an operation waits for those of its own lane alone.
 * BEGIN     makes the links that are missing. Each rank shows, in the other's control block, which
 *           attempt made its end of a link and how many exchanges it has put on it. Between the
 *           two barriers of a beginning nobody changes that, so both ends see the same: equal,
 *           and the link stays; else both drop it and make it anew. What only one side has put on
 *           its way, or what a restarted rank does not know of, is never taken for something else.
 *           The lower rank draws NCCL's id and lays it into the higher one's control block. A
 *           first exchange of a few bytes brings up the way itself, so that no later one waits on
 *           the host for the other rank.
 * STREAMS   A stream per lane follows ctx's stream at the start of an operation: rows that do not
 *           lie one behind the other are packed; a kernel of NCCL for each other member sends and
 *           receives at once; what came is spread into the window. ctx's stream follows the event
 *           of an operation. Marks are not needed: what is received is written by this rank.
 *           NCCL launches a kernel from a thread of its own, and the host waits for the launch.
 * ORDER     Links are made, and kernels follow each other on a lane's stream, in rounds as of a
 *           tournament: in a round each member meets one other, and all count rounds alike. Of
 *           all meetings that are not over, one of the earliest operation's earliest round has
 *           both of its members free for it, so it comes to its end, and so do all. That holds
 *           because nothing waits but for what comes before it in this order: the host waits
 *           only for the operation RING before, and for room, which needs those before alone. So
 *           members that meet on several lanes begin operations of all lanes in one order.
 * SPACE     A kernel that waits for the other side holds multiprocessors, at most a quarter of
 *           them for each lane, so that another lane's finds some. A link holds buffers of NCCL's
 *           on the device, by its source some 9 MB a channel; its NCCL_MAX_CTAS and NCCL_BUFFSIZE
 *           make that less. Staging memory is as large as the largest operation's packed rows.
 * ENDS      The host looks on while it waits: at aborts, at the members' lives, at the deadline,
 *           at NCCL's own errors. When the attempt is over, ncclCommAbort ends the kernels of every
 *           link that has something on its way. It also frees, which waits for the whole device,
 *           so each link has a thread for it: all kernels are told before the first is waited for.
 *           The next beginning waits for those threads, while nothing else is on its way. A link
 *           that is idle is kept until then.
 * NCCL's interface is declared here, since its header does not come with CUDA.
 * Source: NCCL user guide, "Creating a communicator with options", "Fault Tolerance", "Group
 * Calls"; its source, 2.14 to 2.30. */
#include "kernels/cuda/comm_device.cuh"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

enum {
    RING = 16,     /* operations of a lane that may be on their way at once */
    CHANNELS = 32, /* most multiprocessors of a kernel of NCCL */
    GREETING = 256 /* bytes of a link's first exchange */
};
#define US 1000ll
#define MS 1000000ll
#define MAKE_MS 60000 /* longest that a link takes, the other rank being alive */
#define FREE_MS 10000 /* longest that NCCL takes to let go of one */
#define LOOK_MS 5     /* between two looks at the members while the host waits */

namespace
{

/* ---- the library ---- */

typedef struct ncclComm *nccl_comm;
typedef struct {
    char bytes[128];
} nccl_id;
/* ncclConfig_t as of 2.17: larger libraries take the rest as unset, 2.14 to 2.16 read as far as
 * `blocking`. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, cluster, min_channels, max_channels;
    const char *net;
} nccl_config;
enum { NCCL_OK = 0, NCCL_GONE = 6, NCCL_IN_PROGRESS = 7, NCCL_BYTES = 0 };
enum { NCCL_WANTED = 21400, NCCL_CONFIG = 21700, NCCL_UNSET = -2147483647 - 1 };
#define WANTED_NCCL "2.14 or newer" /* the first whose calls need not wait for the other side */

#ifdef NCCL_VERSION_CODE
static_assert(sizeof(nccl_id) == sizeof(ncclUniqueId) && NCCL_OK == (int)ncclSuccess &&
                  NCCL_GONE == (int)ncclRemoteError && NCCL_IN_PROGRESS == (int)ncclInProgress &&
                  NCCL_BYTES == (int)ncclInt8 && NCCL_UNSET == NCCL_CONFIG_UNDEF_INT &&
                  offsetof(nccl_config, blocking) == offsetof(ncclConfig_t, blocking) &&
                  offsetof(nccl_config, max_channels) == offsetof(ncclConfig_t, maxCTAs) &&
                  offsetof(nccl_config, net) == offsetof(ncclConfig_t, netName),
              "NCCL's interface is another");
#endif

#define NCCL_CALLS(X)                                                                              \
    X(int, ncclGetVersion, (int *version))                                                         \
    X(int, ncclGetUniqueId, (nccl_id * id))                                                        \
    X(int, ncclCommInitRankConfig,                                                                 \
      (nccl_comm * comm, int ranks, nccl_id id, int rank, nccl_config *config))                    \
    X(int, ncclCommAbort, (nccl_comm comm))                                                        \
    X(int, ncclCommGetAsyncError, (nccl_comm comm, int *state))                                    \
    X(int, ncclSend,                                                                               \
      (const void *from, size_t n, int type, int rank, nccl_comm comm, cudaStream_t stream))       \
    X(int, ncclRecv,                                                                               \
      (void *to, size_t n, int type, int rank, nccl_comm comm, cudaStream_t stream))               \
    X(int, ncclGroupStart, (void))                                                                 \
    X(int, ncclGroupEnd, (void))                                                                   \
    X(const char *, ncclGetErrorString, (int result))                                              \
    X(const char *, ncclGetLastError, (nccl_comm comm))

struct nccl_calls {
#define X(type, name, arguments) type(*name) arguments;
    NCCL_CALLS(X)
#undef X
};

pthread_once_t once = PTHREAD_ONCE_INIT;
nccl_calls nccl;
sl_err missing; /* code SL_OK: the library is there */

bool find_call(void *library, const char *file, const char *name, void *at)
{
    void *f = dlsym(library, name);
    memcpy(at, &f, sizeof f);
    if (f) return true;
    sl_fail(&missing, SL_ARG,
            "comm: %.200s has no %s, want NCCL " WANTED_NCCL " (SLUICE_NCCL names another file)",
            file, name);
    return false;
}

void load_library(void)
{
    const char *given = getenv("SLUICE_NCCL"), *file = given && *given ? given : "libnccl.so.2";
    int v = 0;
    /* NVLink multicast, which nothing here uses, is the whole machine's: NCCL does not try it */
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        sl_fail(&missing, SL_ARG,
                "comm: no NCCL, want " WANTED_NCCL " (SLUICE_NCCL names its file): %.300s",
                why ? why : file);
        return;
    }
    if (!find_call(library, file, "ncclGetVersion", &nccl.ncclGetVersion)) return;
    if (nccl.ncclGetVersion(&v) || v < NCCL_WANTED) {
        const int base = v < 10000 ? 1000 : 10000; /* of the major number; 2.9 changed it */
        sl_fail(&missing, SL_ARG,
                "comm: %.200s is NCCL %d.%d.%d, want " WANTED_NCCL
                " (SLUICE_NCCL names another file)",
                file, v / base, v % base / 100, v % 100);
        return;
    }
#define X(type, name, arguments)                                                                   \
    if (!find_call(library, file, #name, &nccl.name)) return;
    NCCL_CALLS(X)
#undef X
}

bool went_well(int result)
{
    return result == NCCL_OK || result == NCCL_IN_PROGRESS;
}

/* ---- state ---- */

/* With one other rank on one lane. */
struct nccl_link {
    nccl_comm comm; /* counts while `there`: NCCL writes it once more when an end was quick */
    bool there;
    bool used;     /* something may be on its way */
    uint64_t step; /* key of the attempt that made it, then how many exchanges; 0: none */
};

/* A communicator that is being ended, or is to be. */
enum { EMPTY, WAITS, BUSY, OVER };
struct grave {
    int state; /* BUSY: its thread's, which makes it OVER */
    nccl_comm comm;
    int device;
};

struct nccl_state {
    int device, channels; /* most multiprocessors of a kernel */
    char place[64];       /* the device's, on the bus */
    cudaStream_t stream[SL_LANES];
    cudaEvent_t done[SL_LANES][RING]; /* by operation, modulo RING */
    cudaEvent_t ready;                /* on ctx's stream: what an operation sends is there */
    char *staging[SL_LANES];          /* parts as they travel; grows */
    size_t staging_bytes[SL_LANES];
    char *greeting; /* 2 * GREETING bytes */
    nccl_link links[SL_LANES][SL_RANKS];
    grave graves[SL_LANES * SL_RANKS]; /* as many as links, which are made when all are empty */
    sl_comm_clocks clocks;
};

/* The bodies' part of a rank's control block. */
struct board {
    uint64_t step[SL_LANES][SL_RANKS]; /* each other rank shows its end of the link with this one */
    struct {
        uint64_t whose; /* attempt and lane; written last */
        nccl_id id;
    } drawn[SL_RANKS]; /* by each lower rank */
};
static_assert(sizeof(board) <= SL_COMM_PAGE - SL_COMM_BOARD, "a board fits into a control block");

/* What the steps of one call work on, and the wait that the host is in. */
struct task {
    sl_ctx *ctx;
    sl_comm *c;
    nccl_state *s;
    sl_lane lane;
    int me;
    int64_t since, looked; /* when the wait began; the newest look at the members */
    int64_t by;            /* deadline of the link that is being made, 0: none, */
    int with;              /* and with which rank */
};

task task_of(sl_ctx *ctx, sl_comm *c, sl_lane lane)
{
    task t = {};
    t.ctx = ctx, t.c = c, t.lane = lane;
    t.s = (nccl_state *)sl_comm_state(c);
    t.me = sl_comm_rank(c);
    t.since = t.looked = sl_now_ns();
    return t;
}

board *board_of(const sl_comm *c, int rank)
{
    char *block = (char *)sl_comm_block_of(c, rank);
    return block ? (board *)(block + SL_COMM_BOARD) : NULL;
}

/* Show the other rank this end of the link. */
void show(const sl_comm *c, sl_lane lane, int rank, uint64_t step)
{
    board *b = board_of(c, rank);
    if (b) __atomic_store_n(&b->step[lane][sl_comm_rank(c)], step, __ATOMIC_RELEASE);
}

/* ---- ends of links ---- */

void *end_link(void *p)
{
    grave *g = (grave *)p;
    cudaSetDevice(g->device);
    nccl.ncclCommAbort(g->comm);
    __atomic_store_n(&g->state, OVER, __ATOMIC_RELEASE); /* g is the rank's again */
    return NULL;
}

int state_of(const grave *g)
{
    return __atomic_load_n(&g->state, __ATOMIC_ACQUIRE);
}

void start_end(grave *g)
{
    pthread_t thread;
    g->state = BUSY;
    if (pthread_create(&thread, NULL, end_link, g)) end_link(g);
    else pthread_detach(thread);
}

/* The link is no more; its kernels end now if it is used, and else it is left for all_ended. */
void drop(sl_comm *c, nccl_state *s, sl_lane lane, int rank)
{
    nccl_link *l = &s->links[lane][rank];
    grave *g = s->graves;
    const nccl_link old = *l;
    l->there = l->used = false;
    l->step = 0;
    show(c, lane, rank, 0);
    if (!old.there) return;
    while (state_of(g) != EMPTY) g++;
    g->comm = old.comm;
    g->device = s->device;
    g->state = WAITS;
    if (old.used) start_end(g);
}

/* One look: all ends of links are over. Starts those that wait. */
bool all_ended(nccl_state *s)
{
    bool all = true;
    for (grave &g : s->graves) {
        const int state = state_of(&g);
        if (state == WAITS) start_end(&g);
        if (state == OVER) g.state = EMPTY;
        all = all && (state == OVER || state == EMPTY);
    }
    return all;
}

/* The attempt is over: tell the members, and end the kernels that wait for one. */
void give_up(sl_comm *c, nccl_state *s)
{
    for (int l = 0; l < SL_LANES; l++) {
        const sl_team *t = sl_comm_team(c, (sl_lane)l);
        if (t->size) sl_comm_abort(c, t);
    }
    for (int l = 0; l < SL_LANES; l++)
        for (int r = 0; r < SL_RANKS; r++)
            if (s->links[l][r].used) drop(c, s, (sl_lane)l, r);
}

/* ---- waits of the host ---- */

/* NCCL said no; ctx fails. When a member has died, that is said in place of what NCCL makes of
 * it. */
void refuse(task *t, int rank, int result)
{
    const int64_t by = sl_now_ns() + 200 * MS;
    const char *what = nccl.ncclGetErrorString(result), *more = nccl.ncclGetLastError(NULL);
    do {
        if (sl_comm_must_end(t->ctx, t->c, t->since)) return;
        sl_comm_nap(2000);
    } while (sl_now_ns() < by);
    const int line = more ? (int)strcspn(more, "\n") : 0;
    sl_ctx_fail(t->ctx, result == NCCL_GONE ? SL_GONE : SL_CUDA,
                "comm: NCCL between ranks %d and %d: %.100s%s%.*s", t->me, rank,
                what ? what : "unknown error", line ? ": " : "", line < 200 ? line : 200,
                more ? more : "");
}

/* A link that is in use has broken; ctx has failed. */
bool is_broken(task *t)
{
    for (int l = 0; l < SL_LANES; l++)
        for (int r = 0; r < SL_RANKS; r++) {
            const nccl_link *k = &t->s->links[l][r];
            int state = NCCL_OK;
            if (!k->used || !k->there) continue;
            const int result = nccl.ncclCommGetAsyncError(k->comm, &state);
            if (result == NCCL_OK && went_well(state)) continue;
            refuse(t, r, result ? result : state);
            return true;
        }
    return false;
}

void wait_begins(task *t)
{
    t->since = t->looked = sl_now_ns();
}

/* Between two looks at what is waited for. True: the wait must end, and ctx has failed. */
bool must_stop(task *t)
{
    const int64_t now = sl_now_ns(), waited = now - t->since;
    if (t->by && now > t->by) {
        sl_ctx_fail(t->ctx, SL_TIMEOUT, "comm: NCCL did not join ranks %d and %d in %d s", t->me,
                    t->with, MAKE_MS / 1000);
        return true;
    }
    if (now - t->looked > LOOK_MS * MS) {
        t->looked = now;
        if (sl_comm_must_end(t->ctx, t->c, t->since) || is_broken(t)) return true;
    }
    if (waited < 200 * US) sched_yield(); /* a launch takes some 50 us */
    else sl_comm_nap(waited < 2 * MS ? 20 : 200);
    return false;
}

/* 1: it is over; 0: not yet; -1: something broke, and ctx has failed. */
int is_over(sl_ctx *ctx, cudaError_t e)
{
    if (e != cudaErrorNotReady) return sl_cuda_ok(ctx, e, "comm: waiting for the device") ? 1 : -1;
    cudaGetLastError();
    return 0;
}

/* Nothing of this rank's is on its way any more, as is_over. */
int is_idle(sl_ctx *ctx, const nccl_state *s)
{
    cudaError_t e = cudaStreamQuery(ctx->stream);
    for (int l = 0; l < SL_LANES && e == cudaSuccess; l++) e = cudaStreamQuery(s->stream[l]);
    return is_over(ctx, e);
}

/* Each of the next gives false when ctx has failed. */

bool wait_for_all(task *t)
{
    int over;
    wait_begins(t);
    while ((over = is_idle(t->ctx, t->s)) == 0)
        if (must_stop(t)) return false;
    return over > 0;
}

bool wait_for_event(task *t, cudaEvent_t event)
{
    int over;
    wait_begins(t);
    while ((over = is_over(t->ctx, cudaEventQuery(event))) == 0)
        if (must_stop(t)) return false;
    return over > 0;
}

/* NCCL has done on the host what it was last asked for on this link: a kernel is in its stream. */
bool wait_for_link(task *t, int rank)
{
    const nccl_link *l = &t->s->links[t->lane][rank];
    wait_begins(t);
    for (;;) {
        int state = NCCL_OK;
        const int result = nccl.ncclCommGetAsyncError(l->comm, &state);
        if (result == NCCL_OK && state == NCCL_OK) return true;
        if (result || state != NCCL_IN_PROGRESS) {
            refuse(t, rank, result ? result : state);
            return false;
        }
        if (must_stop(t)) return false;
    }
}

/* ---- the tournament ---- */

/* How many rounds n members need, and whom member i meets in round k (-1: nobody): with an even
 * number the last one stays in its place while the others go round. */
int rounds_of(int n)
{
    return n - (n % 2 == 0);
}

int met_by(int n, int i, int k)
{
    const int m = rounds_of(n), last = n % 2 == 0 ? n - 1 : -1;
    if (i == last) return k * ((m + 1) / 2) % m; /* the one that would meet itself */
    const int other = (k - i + m) % m;
    return other == i ? last : other;
}

/* ---- exchange ---- */

/* One kernel: `bytes` to the other rank, `back` from it. */
bool swap(task *t, int rank, const void *from, size_t bytes, void *to, size_t back)
{
    nccl_link *l = &t->s->links[t->lane][rank];
    const int other = t->me < rank; /* its rank in the link */
    cudaStream_t stream = t->s->stream[t->lane];
    l->used = true;
    int result = nccl.ncclGroupStart();
    if (result) {
        refuse(t, rank, result);
        return false;
    }
    if (bytes) result = nccl.ncclSend(from, bytes, NCCL_BYTES, other, l->comm, stream);
    if (back && went_well(result))
        result = nccl.ncclRecv(to, back, NCCL_BYTES, other, l->comm, stream);
    const int end = nccl.ncclGroupEnd();
    if (went_well(result)) result = end;
    if (!went_well(result)) {
        refuse(t, rank, result);
        return false;
    }
    return wait_for_link(t, rank);
}

/* One direction of a part: rows, and how they travel. */
struct way {
    char *rows;
    size_t pitch, width, n;
    size_t bytes;  /* of all rows */
    size_t staged; /* offset in the staging memory, SIZE_MAX: the rows lie one behind the other */
};

way way_of(char *rows, size_t n, size_t width, size_t pitch, size_t *room)
{
    way w = {rows, pitch ? pitch : width, width, n, width * n, SIZE_MAX};
    if (n <= 1 || w.pitch == width) return w;
    w.staged = *room;
    *room += (w.bytes + 255) / 256 * 256;
    return w;
}

char *place_of(const task *t, const way *w)
{
    return w->staged == SIZE_MAX ? w->rows : t->s->staging[t->lane] + w->staged;
}

/* Staging memory of at least `room` bytes. Freeing the old waits for the device, so that nothing
 * may be on its way which waits for another rank. */
bool make_room(task *t, size_t room)
{
    char **staging = &t->s->staging[t->lane];
    size_t *bytes = &t->s->staging_bytes[t->lane];
    if (room <= *bytes) return true;
    if (!wait_for_all(t)) return false;
    cudaFree(*staging);
    *staging = NULL;
    *bytes = 0;
    if (cudaMalloc((void **)staging, room) == cudaSuccess) {
        *bytes = room;
        return true;
    }
    cudaGetLastError();
    sl_ctx_fail(t->ctx, SL_NOMEM, "comm: no %zu bytes of device memory for what travels", room);
    return false;
}

bool copy_rows(task *t, void *to, size_t to_pitch, const void *from, size_t from_pitch,
               size_t width, size_t n)
{
    if (!n || !width) return true;
    return sl_cuda_ok(t->ctx,
                      cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, n,
                                        cudaMemcpyDeviceToDevice, t->s->stream[t->lane]),
                      "comm: a copy of rows");
}

/* Rows to the staging memory, or back. */
bool pack(task *t, const way *w)
{
    return w->staged == SIZE_MAX ||
           copy_rows(t, place_of(t, w), w->width, w->rows, w->pitch, w->width, w->n);
}

bool spread(task *t, const way *w)
{
    return w->staged == SIZE_MAX ||
           copy_rows(t, w->rows, w->pitch, place_of(t, w), w->width, w->width, w->n);
}

/* The parts with all other members, round by round. */
bool meet_all(task *t, int n, const sl_comm_part parts[], const way out[], const way in[])
{
    const int me = sl_comm_team(t->c, t->lane)->me;
    for (int k = 0; k < rounds_of(n); k++) {
        const int i = met_by(n, me, k);
        if (i < 0 || (!out[i].bytes && !in[i].bytes)) continue; /* the other side sees the same */
        const int rank = parts[i].rank;
        nccl_link *l = &t->s->links[t->lane][rank];
        if (!l->there) {
            sl_ctx_fail(t->ctx, SL_ARG, "comm: no attempt was begun with rank %d", rank);
            return false;
        }
        if (!swap(t, rank, place_of(t, &out[i]), out[i].bytes, place_of(t, &in[i]), in[i].bytes))
            return false;
        show(t->c, t->lane, rank, ++l->step);
    }
    return true;
}

bool exchange(task *t, uint64_t value, int n, const sl_comm_part parts[])
{
    nccl_state *s = t->s;
    sl_ctx *ctx = t->ctx;
    cudaStream_t stream = s->stream[t->lane];
    cudaEvent_t done = s->done[t->lane][(uint32_t)value % RING];
    char *window = sl_comm_window_of(t->c, t->me);
    way out[SL_RANKS], in[SL_RANKS];
    size_t room = 0;
    for (int i = 0; i < n; i++) {
        const sl_comm_part *p = &parts[i];
        const bool own = p->rank == t->me;
        out[i] = way_of((char *)p->from, own ? 0 : p->rows, p->width, p->from_pitch, &room);
        in[i] = way_of(window + p->at, own ? 0 : p->at_rows, p->at_width, p->at_pitch, &room);
    }
    /* of the operation RING before, whose event this is */
    if (!wait_for_event(t, done) || !make_room(t, room)) return false;
    if (!sl_cuda_ok(ctx, cudaEventRecord(s->ready, ctx->stream), "comm: start of an exchange") ||
        !sl_cuda_ok(ctx, cudaStreamWaitEvent(stream, s->ready, 0), "comm: start of an exchange"))
        return false;
    for (int i = 0; i < n; i++) {
        const sl_comm_part *p = &parts[i];
        if (p->rank == t->me &&
            !copy_rows(t, window + p->to, p->to_pitch ? p->to_pitch : p->width, p->from,
                       p->from_pitch ? p->from_pitch : p->width, p->width, p->rows))
            return false;
        if (!pack(t, &out[i])) return false;
    }
    if (!meet_all(t, n, parts, out, in)) return false;
    for (int i = 0; i < n; i++)
        if (!spread(t, &in[i])) return false;
    return sl_cuda_ok(ctx, cudaEventRecord(done, stream), "comm: an event");
}

void nccl_exchange(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int n,
                   const sl_comm_part parts[])
{
    task t = task_of(ctx, c, lane);
    if (!exchange(&t, value, n, parts)) give_up(c, t.s);
}

void nccl_wait(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value)
{
    nccl_state *s = (nccl_state *)sl_comm_state(c);
    sl_comm_tick(ctx, &s->clocks, lane, 0);
    if (sl_cuda_ok(ctx, cudaStreamWaitEvent(ctx->stream, s->done[lane][(uint32_t)value % RING], 0),
                   "comm: a wait"))
        sl_comm_tick(ctx, &s->clocks, lane, 1);
}

void nccl_settle(sl_ctx *ctx, sl_comm *c)
{
    task t = task_of(ctx, c, (sl_lane)0);
    nccl_state *s = t.s;
    bool given_up = false;
    int64_t by = 0;
    int over;
    while ((over = is_idle(ctx, s)) == 0) {
        if (!given_up && (!sl_ok(ctx) || must_stop(&t))) {
            give_up(c, s);
            given_up = true;
            by = sl_now_ns() + FREE_MS * MS;
        }
        if (!given_up) continue;
        if (sl_now_ns() > by) {
            sl_ctx_fail(ctx, SL_CUDA, "comm: the device does not end what was queued");
            return;
        }
        sl_comm_nap(100);
    }
    if (over < 0) {
        if (!given_up) give_up(c, s);
        return;
    }
    for (int l = 0; l < SL_LANES; l++)
        for (int r = 0; r < SL_RANKS; r++) s->links[l][r].used = false;
    sl_comm_read_clocks(c, &s->clocks);
    sl_comm_beat(c);
    if (sl_ok(ctx)) sl_comm_given_up(ctx, c); /* also where nothing was on its way */
}

/* ---- begin ---- */

/* The id of the link to come, drawn by the lower rank. */
bool agree_on_id(task *t, int rank, nccl_id *id)
{
    const uint64_t whose =
        (uint64_t)sl_comm_team(t->c, t->lane)->key << 8 | (uint64_t)(t->lane + 1);
    if (t->me < rank) {
        auto *drawn = &board_of(t->c, rank)->drawn[t->me];
        const int result = nccl.ncclGetUniqueId(id);
        if (result) {
            refuse(t, rank, result);
            return false;
        }
        __atomic_store_n(&drawn->whose, 0, __ATOMIC_SEQ_CST);
        drawn->id = *id;
        __atomic_store_n(&drawn->whose, whose, __ATOMIC_RELEASE);
        return true;
    }
    auto *drawn = &board_of(t->c, t->me)->drawn[rank];
    wait_begins(t);
    while (__atomic_load_n(&drawn->whose, __ATOMIC_ACQUIRE) != whose)
        if (must_stop(t)) return false;
    *id = drawn->id;
    return true;
}

/* The link with another member, up to its first exchange. */
bool make_link(task *t, int rank)
{
    nccl_state *s = t->s;
    nccl_link *l = &s->links[t->lane][rank];
    nccl_config config = {sizeof config, 0xcafebeef, NCCL_CONFIG, 0,
                          NCCL_UNSET,    NCCL_UNSET, s->channels, NULL};
    nccl_id id;
    t->by = sl_now_ns() + MAKE_MS * MS;
    t->with = rank;
    if (!agree_on_id(t, rank, &id)) return false;
    l->comm = NULL;
    const int result = nccl.ncclCommInitRankConfig(&l->comm, 2, id, t->me > rank, &config);
    l->there = l->used = l->comm != NULL;
    if (!went_well(result)) {
        refuse(t, rank, result);
        return false;
    }
    if (!wait_for_link(t, rank) ||
        !swap(t, rank, s->greeting, GREETING, s->greeting + GREETING, GREETING) || !wait_for_all(t))
        return false;
    t->by = 0;
    l->step = (uint64_t)sl_comm_team(t->c, t->lane)->key << 32;
    show(t->c, t->lane, rank, l->step);
    return true;
}

bool join(task *t)
{
    const sl_team *team = sl_comm_team(t->c, t->lane);
    const board *own = board_of(t->c, t->me);
    for (int i = 0; i < team->size; i++) {
        const int r = team->member[i];
        const uint64_t mine = t->s->links[t->lane][r].step,
                       his = __atomic_load_n(&own->step[t->lane][r], __ATOMIC_ACQUIRE);
        if (r != t->me && (!mine || mine != his)) drop(t->c, t->s, t->lane, r);
    }
    const int64_t by = sl_now_ns() + FREE_MS * MS;
    wait_begins(t);
    while (!all_ended(t->s)) {
        if (must_stop(t)) return false;
        if (sl_now_ns() <= by) continue;
        sl_ctx_fail(t->ctx, SL_CUDA, "comm: NCCL does not let go of ranks that it was joined with");
        return false;
    }
    for (int k = 0; k < rounds_of(team->size); k++) {
        const int i = met_by(team->size, team->me, k);
        if (i >= 0 && !t->s->links[t->lane][team->member[i]].there &&
            !make_link(t, team->member[i]))
            return false;
    }
    /* all have looked and made theirs before the first operation changes what is shown */
    sl_comm_barrier(t->ctx, t->c, t->lane);
    return sl_ok(t->ctx);
}

void nccl_begin(sl_ctx *ctx, sl_comm *c, sl_lane lane)
{
    task t = task_of(ctx, c, lane);
    if (!join(&t)) give_up(c, t.s);
}

/* ---- open, connect, close ---- */

/* A stream per lane, before all others when a multiprocessor is free, and its events. */
cudaError_t make_streams(nccl_state *s)
{
    int least = 0, greatest = 0;
    cudaError_t e = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    for (int l = 0; l < SL_LANES && e == cudaSuccess; l++) {
        e = cudaStreamCreateWithPriority(&s->stream[l], cudaStreamNonBlocking, greatest);
        for (int i = 0; i < RING && e == cudaSuccess; i++)
            e = cudaEventCreateWithFlags(&s->done[l][i], cudaEventDisableTiming);
    }
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming);
    return e;
}

sl_code nccl_open(sl_comm *c, sl_comm_handle *h, sl_err *err)
{
    int multiprocessors = 0;
    pthread_once(&once, load_library);
    if (missing.code) {
        if (err) *err = missing;
        return missing.code;
    }
    nccl_state *s = (nccl_state *)calloc(1, sizeof *s);
    if (!s) return sl_fail(err, SL_NOMEM, "comm: no memory");
    sl_comm_set_state(c, s);
    cudaError_t e = cudaGetDevice(&s->device);
    if (e == cudaSuccess) e = cudaDeviceGetPCIBusId(s->place, sizeof s->place, s->device);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, s->device);
    if (e != cudaSuccess) return sl_comm_failed(err, e, "the device");
    /* a power of two, to which NCCL rounds up */
    for (s->channels = 1; s->channels < CHANNELS && s->channels * 2 * 4 <= multiprocessors;)
        s->channels *= 2;
    memcpy(h->device, s->place, sizeof h->device);
    sl_code rc = sl_comm_make_window(c, (size_t)h->window_bytes, err);
    if (rc) return rc;
    if ((e = cudaMalloc((void **)&s->greeting, 2 * GREETING)) != cudaSuccess)
        return sl_comm_failed(err, e, "a first exchange");
    if ((e = make_streams(s)) != cudaSuccess) return sl_comm_failed(err, e, "streams of the lanes");
    return SL_OK;
}

sl_code nccl_connect(sl_comm *c, const sl_comm_handle *h, sl_err *err)
{
    const nccl_state *s = (const nccl_state *)sl_comm_state(c);
    if (!memcmp(h->device, s->place, sizeof s->place))
        return sl_fail(err, SL_ARG,
                       "comm: ranks %d and %d are both on device %d (%.32s), and NCCL wants one "
                       "for each rank; ipc lets them share it",
                       sl_comm_rank(c), h->rank, s->device, s->place);
    for (int l = 0; l < SL_LANES; l++) show(c, (sl_lane)l, h->rank, 0); /* of an end before this */
    return SL_OK;
}

void nccl_disconnect(sl_comm *c, int rank)
{
    nccl_state *s = (nccl_state *)sl_comm_state(c);
    for (int l = 0; s && l < SL_LANES; l++) drop(c, s, (sl_lane)l, rank);
    sl_comm_set_window(c, rank, NULL, 0);
}

void nccl_close(sl_comm *c)
{
    nccl_state *s = (nccl_state *)sl_comm_state(c);
    if (!s) return;
    sl_comm_set_state(c, NULL);
    const int64_t by = sl_now_ns() + FREE_MS * MS;
    while (!all_ended(s)) {
        if (sl_now_ns() > by) return; /* threads of NCCL's still hold all this: it stays */
        sl_comm_nap(1000);
    }
    for (int l = 0; l < SL_LANES; l++) {
        if (s->stream[l]) cudaStreamDestroy(s->stream[l]);
        for (int i = 0; i < RING; i++)
            if (s->done[l][i]) cudaEventDestroy(s->done[l][i]);
        cudaFree(s->staging[l]);
    }
    if (s->ready) cudaEventDestroy(s->ready);
    sl_comm_free_clocks(&s->clocks);
    cudaFree(s->greeting);
    cudaFree(sl_comm_window_of(c, sl_comm_rank(c)));
    cudaGetLastError();
    sl_comm_set_window(c, sl_comm_rank(c), NULL, 0);
    free(s);
}

} // namespace

extern "C" const sl_comm_body sl_cuda_comm_nccl = {
    "nccl",        nccl_open, nccl_connect, nccl_disconnect, nccl_close,
    nccl_exchange, nccl_wait, nccl_settle,  nccl_begin,
};
