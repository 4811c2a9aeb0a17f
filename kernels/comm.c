/* comm.c - ranks of one forward: the group, teams, marks, and operations as parts for a
 * body.
 *
 * Who writes what: each rank owns a control block in shared memory (a memfd that the
 * others open through /proc/PID/fd). Rank p sets arrived[lane][p] in the block of rank r
 * when an operation's data for r lies in r's window; r waits for the marks of all
 * members. Nobody else writes that word, so marks need no lock. A mark holds the
 * attempt's key, so that what an attempt that was given up still sets is smaller than
 * what the next one waits for. `woken` is a futex: every mark and abort adds one. Waits
 * look at it for at most 20 ms at a time, then at the members' pidfds and signs of life
 * (`beat`): a dead or stopped rank ends them. */
#include "kernels/comm.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/comm_body.h"

#define MAGIC 0x4d4d4f43u /* "COMM" */
#define MS 1000000ll
#define LOOK_MS 20 /* between two looks at the members while nothing comes */

/* Of one rank. The others write `arrived` and `aborted`; the rank itself writes `beat`,
 * and waits on `woken`. */
typedef struct {
    uint32_t magic;
    int32_t rank;
    _Atomic uint32_t woken;   /* futex: grows with each mark and abort */
    _Atomic uint32_t beat;    /* signs of life */
    _Atomic uint32_t aborted; /* newest key whose attempt was given up */
    uint32_t reserved;
    _Atomic uint64_t arrived[SL_LANES][SL_RANKS]; /* newest mark that each rank has set here */
    /* what each rank tells; of the tell before, which this rank may still be reading, and of the
     * newest */
    _Atomic uint64_t words[SL_LANES][SL_RANKS][2];
} block;

_Static_assert(sizeof(block) <= SL_COMM_BOARD, "what follows is the bodies'");

typedef struct {
    block *block; /* NULL: not connected */
    char *window; /* host or device memory, in this process */
    size_t window_bytes;
    pid_t pid;
    int pidfd;       /* -1: own rank, or unknown to the kernel */
    uint32_t beat;   /* the newest that was seen, */
    int64_t beat_ns; /* and since when */
} peer;

typedef struct {
    sl_team team;
    bool begun;
    uint32_t count; /* operations started */
    uint32_t told;  /* of those, sl_comm_tell */
} lane_state;

struct sl_comm {
    const sl_comm_body *body;
    int rank, fd, timeout_ms;
    size_t bytes;
    peer peers[SL_RANKS]; /* own rank's too */
    lane_state lanes[SL_LANES];
    sl_comm_handle handle;
    sl_comm_stats stats;
    void *state; /* the body's own */
};

/* The attempt's key, then how many operations of the lane are done. Marks of one key are
 * compared as numbers; a smaller key is an earlier attempt. */
static uint64_t mark(uint32_t key, uint32_t count)
{
    return (uint64_t)key << 32 | count;
}

/* ---- the group ---- */

static sl_code make_block(sl_comm *c, sl_err *err)
{
    c->fd = memfd_create("sluice-comm", MFD_CLOEXEC);
    if (c->fd < 0) return sl_fail_errno(err, errno, "comm: memory file");
    if (ftruncate(c->fd, SL_COMM_PAGE)) return sl_fail_errno(err, errno, "comm: memory file");
    void *p = mmap(NULL, SL_COMM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
    if (p == MAP_FAILED) return sl_fail_errno(err, errno, "comm: control block");
    peer *own = &c->peers[c->rank];
    own->block = p;
    own->pid = getpid();
    own->block->magic = MAGIC;
    own->block->rank = c->rank;
    return SL_OK;
}

sl_code sl_comm_open(sl_comm **out, const sl_comm_body *body, int rank, size_t bytes,
                     int timeout_ms, sl_err *err)
{
    *out = NULL;
    if (rank < 0 || rank >= SL_RANKS)
        return sl_fail(err, SL_ARG, "comm: rank %d, want 0 to %d", rank, SL_RANKS - 1);
    sl_comm *c = calloc(1, sizeof *c);
    if (!c) return sl_fail(err, SL_NOMEM, "comm: no memory");
    *c = (sl_comm){.body = body, .rank = rank, .fd = -1, .timeout_ms = timeout_ms, .bytes = bytes};
    for (int i = 0; i < SL_RANKS; i++) c->peers[i].pidfd = -1;
    sl_code rc = make_block(c, err);
    c->handle = (sl_comm_handle){
        .rank = rank, .pid = getpid(), .fd = c->fd, .window_bytes = (uint64_t)bytes};
    if (!rc) rc = body->open(c, &c->handle, err);
    if (rc) {
        sl_comm_close(&c);
        return rc;
    }
    *out = c;
    return SL_OK;
}

void sl_comm_handle_of(const sl_comm *c, sl_comm_handle *out)
{
    *out = c->handle;
}

static void disconnect(sl_comm *c, int rank)
{
    peer *p = &c->peers[rank];
    if (p->block) c->body->disconnect(c, rank);
    if (p->block) munmap(p->block, SL_COMM_PAGE);
    if (p->pidfd >= 0) close(p->pidfd);
    *p = (peer){.pidfd = -1};
}

sl_code sl_comm_connect(sl_comm *c, const sl_comm_handle *h, sl_err *err)
{
    char path[64];
    if (h->rank < 0 || h->rank >= SL_RANKS || h->rank == c->rank)
        return sl_fail(err, SL_ARG, "comm: rank %d connects rank %d, want another from 0 to %d",
                       c->rank, h->rank, SL_RANKS - 1);
    disconnect(c, h->rank);
    peer *p = &c->peers[h->rank];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h->pid, h->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return sl_fail(err, SL_GONE, "comm: rank %d, process %d, is not there", h->rank, h->pid);
    p->pidfd = (int)syscall(SYS_pidfd_open, h->pid, 0);
    p->pid = h->pid;
    p->window_bytes = h->window_bytes;
    struct stat st;
    void *page = MAP_FAILED;
    if (!fstat(fd, &st) && st.st_size >= SL_COMM_PAGE)
        page = mmap(NULL, SL_COMM_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) {
        disconnect(c, h->rank);
        return sl_fail(err, SL_SYS, "comm: the block of rank %d cannot be mapped", h->rank);
    }
    p->block = page;
    sl_code rc = SL_OK;
    if (p->block->magic != MAGIC || p->block->rank != h->rank)
        rc = sl_fail(err, SL_FORMAT, "comm: process %d shows no block of rank %d", h->pid, h->rank);
    if (!rc) rc = c->body->connect(c, h, err);
    if (rc) disconnect(c, h->rank);
    return rc;
}

void sl_comm_close(sl_comm **cp)
{
    sl_comm *c = *cp;
    if (!c) return;
    *cp = NULL;
    for (int i = 0; i < SL_RANKS; i++)
        if (i != c->rank) disconnect(c, i);
    c->body->close(c);
    if (c->peers[c->rank].block) munmap(c->peers[c->rank].block, SL_COMM_PAGE);
    if (c->fd >= 0) close(c->fd);
    free(c);
}

void *sl_comm_window(const sl_comm *c, size_t *bytes)
{
    if (bytes) *bytes = c->bytes;
    return c->peers[c->rank].window;
}

/* ---- marks ---- */

static void wake(block *b)
{
    atomic_fetch_add_explicit(&b->woken, 1, memory_order_release);
    syscall(SYS_futex, &b->woken, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void sl_comm_set_mark(const sl_comm *c, int rank, sl_lane lane, uint64_t value)
{
    block *b = c->peers[rank].block;
    atomic_store_explicit(&b->arrived[lane][c->rank], value, memory_order_release);
    wake(b);
}

/* The attempt was given up by somebody. */
static bool is_aborted(const sl_comm *c, uint32_t key)
{
    return atomic_load_explicit(&c->peers[c->rank].block->aborted, memory_order_acquire) >= key;
}

/* Member i of the lane's team, other than this rank, has set `value`. */
static bool has_arrived(const sl_comm *c, sl_lane lane, int i, uint64_t value)
{
    const sl_team *t = &c->lanes[lane].team;
    const block *own = c->peers[c->rank].block;
    return i == t->me ||
           atomic_load_explicit(&own->arrived[lane][t->member[i]], memory_order_acquire) >= value;
}

/* The first member that has not set `value`; -1: all have. */
static int missing(const sl_comm *c, sl_lane lane, uint64_t value)
{
    for (int i = 0; i < c->lanes[lane].team.size; i++)
        if (!has_arrived(c, lane, i, value)) return i;
    return -1;
}

static bool is_dead(const peer *p)
{
    struct pollfd f = {.fd = p->pidfd, .events = POLLIN};
    return p->pidfd >= 0 && poll(&f, 1, 0) > 0;
}

/* No sign of life of a member for longer than it may be, counted from t0 at the earliest. */
static bool is_silent(const sl_comm *c, peer *p, int64_t t0_ns, int64_t now)
{
    const uint32_t beat = atomic_load_explicit(&p->block->beat, memory_order_relaxed);
    if (beat != p->beat) p->beat = beat, p->beat_ns = now;
    return now - (p->beat_ns > t0_ns ? p->beat_ns : t0_ns) > c->timeout_ms * MS;
}

static bool given_up(sl_ctx *ctx, const sl_comm *c, const sl_team *t)
{
    if (!is_aborted(c, t->key) && !(ctx->cancel && *ctx->cancel)) return false;
    sl_ctx_fail(ctx, SL_CANCELLED, "comm: the team gave the attempt up");
    return true;
}

/* A wait for `value` of the lane's team that began at t0 must end: true, and ctx has
 * failed. Who has set the mark already may have ended since. */
static bool must_end(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int64_t t0_ns)
{
    const sl_team *t = &c->lanes[lane].team;
    if (given_up(ctx, c, t)) return true;
    for (int i = 0; i < t->size; i++) {
        peer *p = &c->peers[t->member[i]];
        if (has_arrived(c, lane, i, value)) continue;
        if (is_dead(p))
            sl_ctx_fail(ctx, SL_GONE, "comm: rank %d, process %d, has ended", t->member[i],
                        (int)p->pid);
        else if (is_silent(c, p, t0_ns, sl_now_ns()))
            sl_ctx_fail(ctx, SL_TIMEOUT,
                        "comm: rank %d, process %d, gave no sign of life for %d ms", t->member[i],
                        (int)p->pid, c->timeout_ms);
        else continue;
        return true;
    }
    return false;
}

bool sl_comm_must_end(sl_ctx *ctx, sl_comm *c, int64_t t0_ns)
{
    sl_comm_beat(c);
    for (int l = 0; l < SL_LANES; l++)
        if (c->lanes[l].begun && must_end(ctx, c, (sl_lane)l, UINT64_MAX, t0_ns)) return true;
    return false;
}

bool sl_comm_given_up(sl_ctx *ctx, sl_comm *c)
{
    for (int l = 0; l < SL_LANES; l++)
        if (c->lanes[l].begun && given_up(ctx, c, &c->lanes[l].team)) return true;
    return false;
}

void sl_comm_beat(sl_comm *c)
{
    atomic_fetch_add_explicit(&c->peers[c->rank].block->beat, 1, memory_order_relaxed);
}

void sl_comm_wait_marks(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value)
{
    block *own = c->peers[c->rank].block;
    const sl_team *t = &c->lanes[lane].team;
    const int64_t t0 = sl_now_ns();
    sl_comm_beat(c);
    /* an aborted attempt is over even where nothing is missing: a member that has begun
     * the next one has set larger marks */
    if (missing(c, lane, value) < 0 && !is_aborted(c, t->key)) return;
    while (sl_ok(ctx)) {
        uint32_t seen = atomic_load_explicit(&own->woken, memory_order_acquire);
        if (missing(c, lane, value) < 0) {
            given_up(ctx, c, t);
            break;
        }
        if (must_end(ctx, c, lane, value, t0)) break;
        struct timespec look = {0, LOOK_MS * MS};
        sl_comm_beat(c);
        syscall(SYS_futex, &own->woken, FUTEX_WAIT, seen, &look, NULL, 0);
    }
    if (!sl_ok(ctx)) sl_comm_abort(c, t); /* the others need not find out by themselves */
    sl_comm_add_waited(c, lane, sl_now_ns() - t0);
}

void sl_comm_abort(sl_comm *c, const sl_team *team)
{
    for (int i = 0; i < team->size; i++) {
        block *b = c->peers[team->member[i]].block;
        if (!b) continue;
        uint32_t old = atomic_load(&b->aborted);
        while (old < team->key && !atomic_compare_exchange_weak(&b->aborted, &old, team->key))
            continue;
        wake(b);
    }
}

/* ---- what a body sees ---- */

int sl_comm_rank(const sl_comm *c)
{
    return c->rank;
}
int sl_comm_fd(const sl_comm *c)
{
    return c->fd;
}
void *sl_comm_state(const sl_comm *c)
{
    return c->state;
}
void sl_comm_set_state(sl_comm *c, void *state)
{
    c->state = state;
}
void *sl_comm_block_of(const sl_comm *c, int rank)
{
    return c->peers[rank].block;
}
char *sl_comm_window_of(const sl_comm *c, int rank)
{
    return c->peers[rank].window;
}
size_t sl_comm_window_bytes(const sl_comm *c, int rank)
{
    return c->peers[rank].window_bytes;
}
void sl_comm_set_window(sl_comm *c, int rank, char *window, size_t bytes)
{
    c->peers[rank].window = window;
    c->peers[rank].window_bytes = bytes;
}
void sl_comm_add_waited(sl_comm *c, sl_lane lane, int64_t ns)
{
    c->stats.waited_ns[lane] += ns;
}
const sl_team *sl_comm_team(const sl_comm *c, sl_lane lane)
{
    return &c->lanes[lane].team;
}
size_t sl_comm_mark_offset(sl_lane lane, int from)
{
    return offsetof(block, arrived) + ((size_t)lane * SL_RANKS + (size_t)from) * sizeof(uint64_t);
}

/* ---- a team ---- */

bool sl_shares_fit(const uint8_t weight[], int size)
{
    int sum = 0, most = 0;
    for (int i = 0; i < size; i++) {
        sum += weight[i];
        if (weight[i] > most) most = weight[i];
    }
    return !sum || (sum == size * SL_SHARE_EQUAL && most <= SL_SHARE_MOST);
}

/* The whole granules of n rows; of fewer rows than a granule one. */
static int64_t granules_of(int64_t n, int64_t g)
{
    return n / g > 0 ? n / g : n > 0;
}

/* How many of `all` granules lie before member i's. */
static int64_t granules_before(const sl_team *t, int64_t all, int i)
{
    int64_t sum = 0, before = 0;
    bool even = true;
    for (int k = 0; k < t->size; k++) {
        sum += t->weight[k];
        if (k < i) before += t->weight[k];
        even = even && t->weight[k] == t->weight[0];
    }
    const int64_t more = all % t->size;
    return even ? all / t->size * i + (i < more ? i : more) : all * before / sum;
}

sl_share sl_share_of(const sl_team *t, int64_t n, int i)
{
    const int64_t g = t->granule > 1 ? t->granule : 1, all = granules_of(n, g),
                  before = granules_before(t, all, i), until = granules_before(t, all, i + 1),
                  first = before == all ? n : before * g, end = until == all ? n : until * g;
    return (sl_share){first, end - first};
}

int64_t sl_share_most(int64_t n, int size, int granule)
{
    const int64_t g = granule > 1 ? granule : 1, all = granules_of(n, g),
                  equal = size * SL_SHARE_EQUAL, most = (all * SL_SHARE_MOST + equal - 1) / equal;
    return most < all ? most * g + n % g : n;
}

static bool weights_fit(sl_ctx *ctx, const uint8_t weight[], int size)
{
    if (sl_shares_fit(weight, size)) return true;
    int sum = 0;
    for (int i = 0; i < size; i++) sum += weight[i];
    sl_ctx_fail(ctx, SL_ARG, "comm: weights of %d shares, together %d, want %d, each at most %d",
                size, sum, size * SL_SHARE_EQUAL, SL_SHARE_MOST);
    return false;
}

static bool team_fits(sl_ctx *ctx, const sl_comm *c, const sl_team *t)
{
    if (t->size < 1 || t->size > SL_RANKS || t->me < 0 || t->me >= t->size ||
        t->member[t->me] != c->rank || !t->key) {
        sl_ctx_fail(ctx, SL_ARG, "comm: a team of %d, whose member %d is to be rank %d, key %u",
                    t->size, t->me, c->rank, t->key);
        return false;
    }
    if (!weights_fit(ctx, t->weight, t->size)) return false;
    for (int i = 0; i < t->size; i++) {
        int r = t->member[i];
        for (int k = 0; k < i; k++)
            if (t->member[k] == r) r = -1;
        if (r >= 0 && r < SL_RANKS && c->peers[r].block) continue;
        sl_ctx_fail(ctx, r < 0 || r >= SL_RANKS ? SL_ARG : SL_GONE,
                    "comm: member %d of the team is rank %d, which is %s", i, t->member[i],
                    r < 0 || r >= SL_RANKS ? "none, or named twice" : "not connected");
        return false;
    }
    return true;
}

static void settle_of(sl_ctx *ctx)
{
    sl_comm_settle(ctx, ctx->settle_with);
}

void sl_comm_begin(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_team *team)
{
    lane_state *l = &c->lanes[lane];
    if (!sl_ok(ctx) || !team_fits(ctx, c, team)) return;
    if (team->key <= l->team.key) {
        sl_ctx_fail(ctx, SL_ARG, "comm: key %u of an attempt, want more than the last, %u",
                    team->key, l->team.key);
        return;
    }
    *l = (lane_state){.team = *team, .begun = true};
    ctx->settle = settle_of;
    ctx->settle_with = c;
    sl_comm_barrier(ctx, c, lane);
    if (c->body->begin && sl_ok(ctx)) c->body->begin(ctx, c, lane);
}

void sl_comm_weigh(sl_ctx *ctx, sl_comm *c, sl_lane lane, const uint8_t weight[SL_RANKS])
{
    sl_team *t = &c->lanes[lane].team;
    if (sl_ok(ctx) && weights_fit(ctx, weight, t->size))
        memcpy(t->weight, weight, sizeof t->weight);
}

void sl_comm_end(sl_ctx *ctx, sl_comm *c)
{
    if (!ctx->settle) return;
    sl_comm_settle(ctx, c);
    for (int l = 0; l < SL_LANES; l++) c->lanes[l].begun = false;
    ctx->settle = NULL;
}

void sl_comm_settle(sl_ctx *ctx, sl_comm *c)
{
    if (!ctx->ops->plan) c->body->settle(ctx, c);
}

void sl_comm_release(sl_comm *c)
{
    block *own = c->peers[c->rank].block;
    for (int l = 0; l < SL_LANES; l++) {
        const lane_state *s = &c->lanes[l];
        if (!s->begun) continue;
        for (int i = 0; i < s->team.size; i++) { /* a mark of a next attempt stays */
            _Atomic uint64_t *at = &own->arrived[l][s->team.member[i]];
            const uint64_t end = mark(s->team.key, UINT32_MAX);
            uint64_t old = atomic_load(at);
            while (old < end && !atomic_compare_exchange_weak(at, &old, end)) continue;
        }
        if (!is_aborted(c, s->team.key)) sl_comm_abort(c, &s->team);
    }
}

void sl_comm_barrier(sl_ctx *ctx, sl_comm *c, sl_lane lane)
{
    uint64_t all[SL_RANKS];
    sl_comm_tell(ctx, c, lane, 0, all);
}

void sl_comm_tell(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t mine, uint64_t all[SL_RANKS])
{
    lane_state *l = &c->lanes[lane];
    sl_comm_settle(ctx, c); /* after it none of this rank's own marks is on its way */
    if (!sl_ok(ctx)) return;
    const uint64_t value = mark(l->team.key, ++l->count);
    const int turn = ++l->told % 2;
    for (int i = 0; i < l->team.size; i++) {
        block *b = c->peers[l->team.member[i]].block;
        atomic_store_explicit(&b->words[lane][c->rank][turn], mine, memory_order_relaxed);
        if (i != l->team.me) sl_comm_set_mark(c, l->team.member[i], lane, value);
    }
    sl_comm_wait_marks(ctx, c, lane, value);
    const block *own = c->peers[c->rank].block;
    for (int i = 0; i < l->team.size; i++)
        all[i] =
            atomic_load_explicit(&own->words[lane][l->team.member[i]][turn], memory_order_relaxed);
}

/* ---- operations ---- */

/* Offset of a window's tensor; -1 after an error: it does not lie in the window. */
static int64_t offset_of(sl_ctx *ctx, const sl_comm *c, const sl_tensor *y, const char *what)
{
    const char *base = c->peers[c->rank].window, *p = y->data;
    if (p >= base && p + sl_bytes(y) <= base + c->bytes) return p - base;
    sl_ctx_fail(ctx, SL_ARG, "comm: %s does not receive into the window", what);
    return -1;
}

static size_t pitch_of(const sl_tensor *t)
{
    return (size_t)t->pitch * sl_dtype_size(t->dtype);
}

static bool fits(sl_ctx *ctx, const char *what, const sl_tensor *t, int64_t rows, int64_t cols)
{
    char text[96];
    if (t->rank == 2 && t->shape[0] == rows && t->shape[1] == cols) return true;
    sl_ctx_fail(ctx, SL_SHAPE, "comm: %s is %s, want [%lld, %lld]", what,
                sl_shape_text(t, text, sizeof text), (long long)rows, (long long)cols);
    return false;
}

/* Give the body the parts of one operation. */
static void start(sl_ctx *ctx, sl_comm *c, sl_lane lane, int n, const sl_comm_part parts[])
{
    lane_state *l = &c->lanes[lane];
    for (int i = 0; i < n; i++) {
        const sl_comm_part *p = &parts[i];
        if (p->rank != c->rank) c->stats.sent_bytes += p->width * p->rows;
        if (!p->rows ||
            p->to + (p->rows - 1) * p->to_pitch + p->width <= c->peers[p->rank].window_bytes)
            continue;
        sl_ctx_fail(ctx, SL_NOMEM, "comm: rank %d has a window of %zu bytes, want %zu", p->rank,
                    c->peers[p->rank].window_bytes, p->to + (p->rows - 1) * p->to_pitch + p->width);
        return;
    }
    c->stats.operations++;
    sl_comm_beat(c);
    c->body->exchange(ctx, c, lane, mark(l->team.key, ++l->count), n, parts);
}

void sl_comm_to_heads(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                      int64_t n, bool own)
{
    if (ctx->ops->plan) return;
    const sl_team *t = &c->lanes[lane].team;
    const sl_share mine = sl_share_of(t, n, t->me);
    const int64_t d = x->rank == 2 ? x->shape[1] : 0, cols = d / t->size;
    sl_comm_part list[SL_RANKS];
    int64_t at;
    if (!sl_ok(ctx)) return;
    if (d % t->size)
        sl_ctx_fail(ctx, SL_SHAPE, "comm: %lld columns, want a multiple of the team's %d",
                    (long long)d, t->size);
    if (!sl_ok(ctx) || !fits(ctx, "rows", x, mine.rows, d) || !fits(ctx, "heads", y, n, d) ||
        (at = offset_of(ctx, c, y, "to_heads")) < 0)
        return;
    const size_t e = sl_dtype_size(x->dtype), pitch = pitch_of(y);
    for (int i = 0; i < t->size; i++) {
        const sl_share his = sl_share_of(t, n, i);
        const bool goes = own || i != t->me;
        list[i] = (sl_comm_part){
            .rank = t->member[i],
            .from = (const char *)x->data + (size_t)(i * cols) * e,
            .from_pitch = pitch_of(x),
            .to = (size_t)at + (size_t)mine.first * pitch + (size_t)(i * cols) * e,
            .to_pitch = pitch,
            .width = (size_t)cols * e,
            .rows = goes ? (size_t)mine.rows : 0,
            .at = (size_t)at + (size_t)his.first * pitch + (size_t)(t->me * cols) * e,
            .at_pitch = pitch,
            .at_width = (size_t)cols * e,
            .at_rows = goes ? (size_t)his.rows : 0};
    }
    start(ctx, c, lane, t->size, list);
}

void sl_comm_to_rows(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                     int64_t n, int64_t first, int64_t cols, const sl_done *done, bool own)
{
    if (ctx->ops->plan) return;
    const sl_team *t = &c->lanes[lane].team;
    const sl_share mine = sl_share_of(t, n, t->me);
    const int64_t share = x->rank == 2 ? x->shape[1] : 0;
    sl_comm_part parts[SL_RANKS];
    int64_t at;
    if (!sl_ok(ctx) || !fits(ctx, "heads", x, n, share) ||
        !fits(ctx, "rows", y, n, share * t->size))
        return;
    if (first < 0 || cols < 1 || first + cols > share)
        sl_ctx_fail(ctx, SL_SHAPE, "comm: columns %lld to %lld of a share of %lld",
                    (long long)first, (long long)(first + cols), (long long)share);
    if (!sl_ok(ctx) || (at = offset_of(ctx, c, y, "to_rows")) < 0) return;
    const size_t e = sl_dtype_size(x->dtype), pitch = pitch_of(y), from_pitch = pitch_of(x);
    for (int i = 0; i < t->size; i++) {
        const sl_share his = sl_share_of(t, n, i);
        const bool goes = own || i != t->me;
        parts[i] = (sl_comm_part){
            .rank = t->member[i],
            .from = (const char *)x->data + (size_t)his.first * from_pitch + (size_t)first * e,
            .from_pitch = from_pitch,
            .to = (size_t)at + (size_t)his.first * pitch + (size_t)(t->me * share + first) * e,
            .to_pitch = pitch,
            .width = (size_t)cols * e,
            .rows = goes ? (size_t)his.rows : 0,
            .at = (size_t)at + (size_t)mine.first * pitch + (size_t)(i * share + first) * e,
            .at_pitch = pitch,
            .at_width = (size_t)cols * e,
            .at_rows = goes ? (size_t)mine.rows : 0,
            .done = done ? &done[i] : NULL};
    }
    start(ctx, c, lane, t->size, parts);
}

void sl_comm_signal(sl_ctx *ctx, sl_comm *c, sl_lane lane)
{
    const sl_team *t = &c->lanes[lane].team;
    sl_comm_part parts[SL_RANKS] = {0};
    if (ctx->ops->plan || !sl_ok(ctx)) return;
    for (int i = 0; i < t->size; i++) parts[i].rank = t->member[i];
    start(ctx, c, lane, t->size, parts);
}

void sl_comm_gather(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                    int64_t n)
{
    if (ctx->ops->plan) return;
    const sl_team *t = &c->lanes[lane].team;
    const sl_share mine = sl_share_of(t, n, t->me);
    const int64_t d = x->rank == 2 ? x->shape[1] : 0;
    sl_comm_part parts[SL_RANKS];
    int64_t at;
    if (!sl_ok(ctx) || !fits(ctx, "rows", x, mine.rows, d) || !fits(ctx, "all rows", y, n, d) ||
        (at = offset_of(ctx, c, y, "gather")) < 0)
        return;
    const size_t e = sl_dtype_size(x->dtype), pitch = pitch_of(y);
    for (int i = 0; i < t->size; i++) {
        const sl_share his = sl_share_of(t, n, i);
        parts[i] = (sl_comm_part){.rank = t->member[i],
                                  .from = x->data,
                                  .from_pitch = pitch_of(x),
                                  .to = (size_t)at + (size_t)mine.first * pitch,
                                  .to_pitch = pitch,
                                  .width = (size_t)d * e,
                                  .rows = (size_t)mine.rows,
                                  .at = (size_t)at + (size_t)his.first * pitch,
                                  .at_pitch = pitch,
                                  .at_width = (size_t)d * e,
                                  .at_rows = (size_t)his.rows};
    }
    start(ctx, c, lane, t->size, parts);
}

/* The rows that two shares have in common; none: rows 0. */
static sl_share in_both(sl_share a, sl_share b)
{
    const int64_t first = a.first > b.first ? a.first : b.first, a_end = a.first + a.rows,
                  b_end = b.first + b.rows, end = a_end < b_end ? a_end : b_end;
    return (sl_share){first, end > first ? end - first : 0};
}

void sl_comm_move(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                  int64_t n, const sl_team *to)
{
    if (ctx->ops->plan) return;
    const sl_team *t = &c->lanes[lane].team;
    const sl_share mine = sl_share_of(t, n, t->me), next = sl_share_of(to, n, t->me);
    const int64_t d = x->rank == 2 ? x->shape[1] : 0;
    sl_comm_part parts[SL_RANKS];
    int64_t at;
    if (!sl_ok(ctx) || !fits(ctx, "rows", x, mine.rows, d) ||
        !fits(ctx, "rows to come", y, next.rows, d) || (at = offset_of(ctx, c, y, "move")) < 0)
        return;
    const size_t pitch = pitch_of(y), from_pitch = pitch_of(x),
                 width = (size_t)d * sl_dtype_size(x->dtype);
    for (int i = 0; i < t->size; i++) {
        const sl_share his_next = sl_share_of(to, n, i), goes = in_both(mine, his_next),
                       comes = in_both(sl_share_of(t, n, i), next);
        parts[i] = (sl_comm_part){.rank = t->member[i],
                                  .width = width,
                                  .at_width = width,
                                  .from_pitch = from_pitch,
                                  .to_pitch = pitch,
                                  .at_pitch = pitch,
                                  .rows = (size_t)goes.rows,
                                  .at_rows = (size_t)comes.rows};
        if (goes.rows) {
            parts[i].from = (const char *)x->data + (size_t)(goes.first - mine.first) * from_pitch;
            parts[i].to = (size_t)at + (size_t)(goes.first - his_next.first) * pitch;
        }
        if (comes.rows) parts[i].at = (size_t)at + (size_t)(comes.first - next.first) * pitch;
    }
    start(ctx, c, lane, t->size, parts);
}

void sl_comm_broadcast(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y,
                       const sl_tensor *x, int root)
{
    if (ctx->ops->plan) return;
    const sl_team *t = &c->lanes[lane].team;
    sl_comm_part parts[SL_RANKS];
    const size_t bytes = sl_bytes(y);
    int64_t at;
    if (!sl_ok(ctx)) return;
    if (root < 0 || root >= t->size || (root == t->me && sl_bytes(x) != bytes))
        sl_ctx_fail(ctx, SL_ARG, "comm: broadcast of %zu bytes from member %d of %d, want %zu",
                    root == t->me ? sl_bytes(x) : 0, root, t->size, bytes);
    if (!sl_ok(ctx) || (at = offset_of(ctx, c, y, "broadcast")) < 0) return;
    for (int i = 0; i < t->size; i++) /* root's own copy may be what it sends */
        parts[i] = (sl_comm_part){.rank = t->member[i],
                                  .from = root == t->me ? x->data : NULL,
                                  .to = (size_t)at,
                                  .width = bytes,
                                  .rows = root == t->me && (i != root || x->data != y->data),
                                  .at = (size_t)at,
                                  .at_width = bytes,
                                  .at_rows = i == root && root != t->me};
    start(ctx, c, lane, t->size, parts);
}

void sl_comm_wait(sl_ctx *ctx, sl_comm *c, sl_lane lane, int but)
{
    if (ctx->ops->plan || !sl_ok(ctx)) return;
    const lane_state *l = &c->lanes[lane];
    if ((uint32_t)but >= l->count) return;
    c->body->wait(ctx, c, lane, mark(l->team.key, l->count - (uint32_t)but));
}

sl_comm_stats sl_comm_stats_of(const sl_comm *c)
{
    return c->stats;
}

sl_comm_stats sl_comm_take_stats(sl_comm *c)
{
    const sl_comm_stats s = c->stats;
    c->stats = (sl_comm_stats){0};
    return s;
}
