/* t_comm.h - the tests of kernels/comm.h, for every body: ranks are processes, forked
 * here.
 *
 * A test is a function that each rank of a group runs; it returns NULL or what was wrong.
 * The process that forked them collects the answers and has a deadline. BODY is given by
 * the program that includes this: ranks on the CPU (test_comm.c) or on devices
 * (gpu_comm.c). */
#ifndef T_COMM_H
#define T_COMM_H

#include "t.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/comm.h"

typedef struct {
    sl_ctx *ctx;
    sl_comm *comm;
    int rank, ranks;
    void *host; /* as large as the window: what a device's is brought to */
} t_rank;

/* The table, body and device of a rank. Gives them and returns NULL, or what was wrong. */
typedef struct {
    const char *(*open)(int rank, const sl_ops **ops, const sl_comm_body **body);
    size_t window, arena;            /* arena 0: 16 MiB */
    int ranks;                       /* most of them */
    int limit_s;                     /* for the ranks of one call of t_ranks; 0: 90 */
    size_t (*device_used)(int rank); /* bytes of the rank's device that are taken; NULL: none */
    bool no_8_bits;                  /* the devices are not Hopper's, which alone have them */
} t_comm_body;

typedef const char *t_rank_fn(t_rank *r);

/* What the ranks and the test share. */
typedef struct {
    sl_comm_handle handle[SL_RANKS];
    _Atomic int there, connected, flag, ended;
    _Atomic pid_t pid[SL_RANKS];
    char says[SL_RANKS][256];
    int64_t ns[SL_RANKS];
} t_comm_shared;

static t_comm_shared *t_comm;
static t_comm_body t_body;

#define RANK_OK(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            snprintf(t_comm->says[r->rank], 256, __VA_ARGS__);                                     \
            return t_comm->says[r->rank];                                                          \
        }                                                                                          \
    } while (0)
#define RANK_CTX(r)                                                                                \
    RANK_OK(sl_ok((r)->ctx), "%s:%d: rank %d: %.180s", __FILE__, __LINE__, (r)->rank,              \
            (r)->ctx->err.msg)

static bool t_until(_Atomic int *what, int count)
{
    const int64_t by = sl_now_ns() + 20000000000;
    while (atomic_load(what) < count && sl_now_ns() < by) usleep(500);
    return atomic_load(what) >= count;
}

static inline const char *rank_run(t_rank *r, t_rank_fn *fn, int timeout_ms)
{
    const sl_ops *ops = NULL;
    const sl_comm_body *body = NULL;
    sl_err err = {0};
    static sl_ctx ctx;
    const char *bad = t_body.open(r->rank, &ops, &body);
    /* cppcheck-suppress returnDanglingLifetime; open returns a string of its own */
    if (bad) return bad;
    r->ctx = &ctx;
    RANK_OK(!sl_ctx_open(&ctx, ops, t_body.arena ? t_body.arena : (size_t)16 << 20, &err), "%.200s",
            err.msg);
    RANK_OK(!sl_comm_open(&r->comm, body, r->rank, t_body.window, timeout_ms, &err), "%.200s",
            err.msg);
    RANK_OK((r->host = calloc(1, t_body.window)), "no memory");
    sl_comm_handle_of(r->comm, &t_comm->handle[r->rank]);
    atomic_fetch_add(&t_comm->there, 1);
    RANK_OK(t_until(&t_comm->there, r->ranks), "the others did not come");
    for (int i = 0; i < r->ranks; i++)
        if (i != r->rank)
            RANK_OK(!sl_comm_connect(r->comm, &t_comm->handle[i], &err), "connect: %.200s",
                    err.msg);
    atomic_fetch_add(&t_comm->connected, 1);
    RANK_OK(t_until(&t_comm->connected, r->ranks), "the others did not connect");
    bad = fn(r);
    free(r->host);
    sl_comm_close(&r->comm);
    sl_ctx_close(&ctx);
    return bad;
}

/* Run fn on `ranks` processes; `meanwhile` (may be NULL) runs here. expect_dead: a rank
 * that is killed on the way, -1: none. */
static void t_ranks(int ranks, t_rank_fn *fn, int timeout_ms, void (*meanwhile)(void),
                    int expect_dead)
{
    char all[2048] = "";
    pid_t pids[SL_RANKS];
    t_comm = mmap(NULL, sizeof *t_comm, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(t_comm != MAP_FAILED);
    for (int i = 0; i < ranks; i++) {
        fflush(NULL);
        pids[i] = fork();
        if (!pids[i]) {
            t_rank r = {.rank = i, .ranks = ranks};
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            const char *bad = rank_run(&r, fn, timeout_ms);
            if (bad && bad != t_comm->says[i]) snprintf(t_comm->says[i], 256, "%s", bad);
            _exit(bad ? 1 : 0);
        }
        atomic_store(&t_comm->pid[i], pids[i]);
    }
    if (meanwhile) meanwhile();
    for (int i = 0; i < ranks; i++) {
        int status = 0;
        const int64_t by =
            sl_now_ns() + (t_body.limit_s ? t_body.limit_s : 90) * INT64_C(1000000000);
        pid_t ended;
        while (!(ended = waitpid(pids[i], &status, WNOHANG)) && sl_now_ns() < by) usleep(1000);
        if (!ended) {
            kill(pids[i], SIGKILL);
            waitpid(pids[i], &status, 0);
            snprintf(all + strlen(all), sizeof all - strlen(all), "rank %d did not end; ", i);
        } else if (i != expect_dead && (!WIFEXITED(status) || WEXITSTATUS(status)))
            snprintf(all + strlen(all), sizeof all - strlen(all), "rank %d: %.200s (status %d); ",
                     i, t_comm->says[i], status);
    }
    munmap(t_comm, sizeof *t_comm);
    if (*all) fail_msg("%s", all);
}

/* ---- tensors ---- */

/* The value at row n, column c of tensor `salt`: small integers, exact in bf16. */
static float value_at(int salt, int64_t n, int64_t c)
{
    return (float)((n * 31 + c * 7 + salt * 13) % 251);
}

/* Rows [first, first + rows) of the tensor, columns [col, col + cols): on ctx's device. */
static sl_tensor make_part(t_rank *r, int salt, sl_dtype dtype, int64_t first, int64_t rows,
                           int64_t col, int64_t cols)
{
    sl_tensor t = sl_new2(r->ctx, dtype, rows, cols);
    float *x = malloc((size_t)(rows * cols) * sizeof *x + 1);
    void *y = malloc(sl_bytes(&t) + 1);
    sl_err err = {0};
    for (int64_t n = 0; n < rows; n++)
        for (int64_t c = 0; c < cols; c++) x[n * cols + c] = value_at(salt, first + n, col + c);
    if (sl_from_floats(y, dtype, x, rows * cols, &err))
        sl_ctx_fail(r->ctx, err.code, "%s", err.msg);
    sl_upload(r->ctx, &t, y);
    sl_sync(r->ctx);
    free(x);
    free(y);
    return t;
}

static const char *compare(t_rank *r, const sl_tensor *t, int salt, int64_t first, int64_t col)
{
    const size_t mark = sl_mark(r->ctx);
    const sl_tensor dense = sl_new2(r->ctx, t->dtype, t->shape[0], t->shape[1]);
    float *x = malloc((size_t)sl_count(t) * sizeof *x + 1);
    sl_err err = {0};
    sl_copy(r->ctx, &dense, t);
    sl_download(r->ctx, r->host, &dense);
    sl_release(r->ctx, mark);
    RANK_CTX(r);
    RANK_OK(!sl_to_floats(x, r->host, t->dtype, sl_count(t), &err), "%.200s", err.msg);
    for (int64_t n = 0; n < t->shape[0]; n++)
        for (int64_t c = 0; c < t->shape[1]; c++)
            RANK_OK(x[n * t->shape[1] + c] == value_at(salt, first + n, col + c),
                    "rank %d: row %lld, column %lld is %g, want %g", r->rank, (long long)n,
                    (long long)c, (double)x[n * t->shape[1] + c],
                    (double)value_at(salt, first + n, col + c));
    free(x);
    return NULL;
}

static sl_tensor in_window(t_rank *r, size_t *at, sl_dtype dtype, int64_t rows, int64_t cols)
{
    sl_tensor t = sl_view2((char *)sl_comm_window(r->comm, NULL) + *at, dtype, rows, cols);
    *at += (sl_bytes(&t) + 255) / 256 * 256;
    return t;
}

/* Weights of a team: 0 all equal; 1 the first as large as they may be, the last has what is left; 2
 * large and small in turn. */
enum { T_SHARES = 3 };
static inline void t_shares(uint8_t weight[SL_RANKS], int size, int way)
{
    int left = size * SL_SHARE_EQUAL;
    memset(weight, 0, SL_RANKS);
    for (int i = 0; i < size && way; i++) {
        const int more = i + 1 == size && size % 2 ? 0
                         : i % 2                   ? 5
                                                   : -5,
                  want = way == 1 ? SL_SHARE_MOST : SL_SHARE_EQUAL + more;
        weight[i] = (uint8_t)(left < want ? left : want);
        left -= weight[i];
    }
}

/* One round of what a block does: three tensors to heads, one back in two groups, all
 * rows. */
static const char *round_trip(t_rank *r, sl_lane lane, const sl_team *team, int64_t n, int64_t d,
                              sl_dtype dtype, int salt)
{
    const sl_share mine = sl_share_of(team, n, team->me);
    const int64_t cols = d / team->size, left = cols / 2;
    const size_t mark = sl_mark(r->ctx);
    size_t at = 0;
    sl_tensor whole[4], heads[3], rows, all; /* a member's columns of the first three, its rows of
                                              * the fourth */
    const char *bad = NULL;
    for (int i = 0; i < 4; i++) whole[i] = in_window(r, &at, dtype, n, d);
    for (int i = 0; i < 3; i++) heads[i] = sl_cols(&whole[i], team->me * cols, cols);
    rows = sl_rows(&whole[3], mine.first, mine.rows);
    all = in_window(r, &at, dtype, n, d);
    for (int i = 0; i < 3; i++) {
        sl_tensor x = make_part(r, salt + i, dtype, mine.first, mine.rows, 0, d);
        if (i == 2 && mine.rows) { /* the third's are where they are wanted */
            sl_tensor y = sl_rows(&whole[i], mine.first, mine.rows);
            sl_copy(r->ctx, &y, &x);
            x = y;
        }
        sl_comm_to_heads(r->ctx, r->comm, lane, &whole[i], &x, n, i == 0);
        if (i != 1 || !mine.rows) continue; /* the second's own columns do not travel */
        sl_tensor own = make_part(r, salt + i, dtype, mine.first, mine.rows, team->me * cols, cols),
                  y = sl_rows(&heads[i], mine.first, mine.rows);
        sl_copy(r->ctx, &y, &own);
    }
    for (int i = 0; i < 3 && !bad; i++) {
        sl_comm_wait(r->ctx, r->comm, lane, 2 - i);
        RANK_CTX(r);
        bad = compare(r, &heads[i], salt + i, 0, team->me * cols);
    }
    if (bad) return bad;
    sl_tensor o = make_part(r, salt + 9, dtype, 0, n, team->me * cols, cols);
    if (left) sl_comm_to_rows(r->ctx, r->comm, lane, &whole[3], &o, n, 0, left, NULL, true);
    /* the second group's are where they are wanted */
    sl_tensor there = sl_cols(&whole[3], team->me * cols, cols),
              to = sl_cols(&there, left, cols - left), from = sl_cols(&o, left, cols - left);
    sl_copy(r->ctx, &to, &from);
    sl_comm_to_rows(r->ctx, r->comm, lane, &whole[3], &there, n, left, cols - left, NULL, false);
    sl_comm_signal(r->ctx, r->comm, lane);
    sl_comm_wait(r->ctx, r->comm, lane, 1);
    RANK_CTX(r);
    if ((bad = compare(r, &rows, salt + 9, mine.first, 0))) return bad;
    sl_tensor x = make_part(r, salt + 5, dtype, mine.first, mine.rows, 0, d);
    sl_comm_gather(r->ctx, r->comm, lane, &all, &x, n);
    sl_comm_wait(r->ctx, r->comm, lane, 0);
    RANK_CTX(r);
    bad = compare(r, &all, salt + 5, 0, 0);
    sl_comm_barrier(r->ctx, r->comm, lane); /* before the windows are laid out anew */
    RANK_CTX(r);
    sl_release(r->ctx, mark);
    return bad;
}

static const int T_ALL[SL_RANKS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static sl_team team_of(const t_rank *r, int size, const int *members, uint32_t key)
{
    sl_team t = {.size = size, .me = -1, .key = key};
    for (int i = 0; i < size; i++) {
        t.member[i] = members[i];
        if (members[i] == r->rank) t.me = i;
    }
    return t;
}

/* ---- tests ---- */

/* Rows go to whoever has them with other shares, which hold from then on. */
static inline const char *change_shares(t_rank *r, sl_lane lane, sl_team *team, int64_t n, int way)
{
    sl_team to = *team;
    t_shares(to.weight, to.size, way);
    const sl_share mine = sl_share_of(team, n, team->me), next = sl_share_of(&to, n, to.me);
    const size_t mark = sl_mark(r->ctx);
    size_t at = 0;
    sl_tensor y = in_window(r, &at, SL_F32, next.rows, 9),
              x = make_part(r, way, SL_F32, mine.first, mine.rows, 0, 9);
    sl_comm_move(r->ctx, r->comm, lane, &y, &x, n, &to);
    sl_comm_wait(r->ctx, r->comm, lane, 0);
    RANK_CTX(r);
    const char *bad = compare(r, &y, way, next.first, 0);
    sl_comm_barrier(r->ctx, r->comm, lane);
    sl_comm_weigh(r->ctx, r->comm, lane, to.weight);
    RANK_CTX(r);
    *team = to;
    sl_release(r->ctx, mark);
    return bad;
}

/* Teams of 1, 2, 4 and all, also of ranks that are not neighbours, rows that do not
 * divide, more ranks than rows; with equal shares, with others, and with shares that change. */
static inline const char *rank_exchanges(t_rank *r)
{
    static const int ALL[] = {0, 1, 2, 3, 4, 5, 6, 7}, ODD[] = {1, 3}, MIXED[] = {6, 2, 7, 1};
    static const int64_t ROWS[] = {1, 5, 64, 257};
    static const sl_dtype TYPES[] = {SL_BF16, SL_F32};
    const struct {
        int size;
        const int *members;
    } TEAMS[] = {{1, ALL}, {2, ALL}, {4, ALL}, {2, ODD}, {4, MIXED}, {3, ALL}, {8, ALL}};
    const char *bad = NULL;
    for (size_t t = 0; t < sizeof TEAMS / sizeof *TEAMS && !bad; t++) {
        int highest = 0;
        for (int i = 0; i < TEAMS[t].size; i++)
            highest = TEAMS[t].members[i] > highest ? TEAMS[t].members[i] : highest;
        sl_team team = team_of(r, TEAMS[t].size, TEAMS[t].members, 0);
        if (team.me < 0 || highest >= r->ranks) continue;
        for (int granules = 0; granules < 2 && !bad; granules++) {
            team.granule = granules ? 48 : 1;
            team.key = (uint32_t)(2 * (int)t + granules + 1);
            sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &team);
            RANK_CTX(r);
            for (int i = 0; i < 8 * T_SHARES && !bad; i++) {
                if (i % 8 == 0 && i) /* of each number of rows, there and back */
                    for (int k = 0; k < 8 && !bad; k++)
                        bad = change_shares(r, SL_LANE_SHARD, &team, ROWS[k % 4],
                                            k == 7 ? i / 8 : (i / 8 + k) % T_SHARES);
                if (bad) break;
                bad = round_trip(r, SL_LANE_SHARD, &team, ROWS[i % 4], 24 * (1 + i % 2),
                                 TYPES[i / 4 % 2], i);
            }
        }
    }
    return bad;
}

static inline void every_team_exchanges(void **state)
{
    (void)state;
    t_ranks(t_body.ranks, rank_exchanges, 20000, NULL, -1);
}

/* Two halves side by side, which meet on another lane; then one whole team. */
static inline const char *rank_halves(t_rank *r)
{
    const int n = r->ranks / 2, half = r->rank / n;
    int mine[SL_RANKS], all[SL_RANKS];
    const char *bad = NULL;
    for (int i = 0; i < n; i++) mine[i] = half * n + i;
    for (int i = 0; i < r->ranks; i++) all[i] = i;
    const int pair[] = {r->rank % n, r->rank % n + n};
    sl_team shard = team_of(r, n, mine, 1), meet = team_of(r, 2, pair, 1),
            whole = team_of(r, r->ranks, all, 2);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &shard);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_MEET, &meet);
    for (int i = 0; i < 5 && !bad; i++) {
        bad = round_trip(r, SL_LANE_SHARD, &shard, 33 + i, 24, SL_BF16, i + half);
        size_t at = (size_t)1 << 20;
        sl_tensor got = in_window(r, &at, SL_F32, 2, 12),
                  x = make_part(r, i, SL_F32, half, 1, 0, 12);
        sl_comm_gather(r->ctx, r->comm, SL_LANE_MEET, &got, &x, 2);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_MEET, 0);
        RANK_CTX(r);
        if (!bad) bad = compare(r, &got, i, 0, 0);
        sl_comm_barrier(r->ctx, r->comm, SL_LANE_MEET);
    }
    if (bad) return bad;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &whole);
    RANK_CTX(r);
    return round_trip(r, SL_LANE_SHARD, &whole, 100, 48, SL_F32, 3);
}

static inline void halves_meet_and_join(void **state)
{
    (void)state;
    if (t_body.ranks < 4) skip();
    t_ranks(4, rank_halves, 20000, NULL, -1);
}

/* One pair of ranks on all lanes at once. */
static inline const char *rank_lanes(t_rank *r)
{
    const int all[] = {0, 1};
    const sl_team team = team_of(r, 2, all, 3);
    const size_t mark = sl_mark(r->ctx);
    const char *bad = NULL;
    for (int l = 0; l < SL_LANES; l++) sl_comm_begin(r->ctx, r->comm, (sl_lane)l, &team);
    for (int i = 0; i < 20 && !bad; i++) {
        sl_tensor got[SL_LANES];
        size_t at = 0;
        for (int l = 0; l < SL_LANES; l++) {
            sl_tensor x = make_part(r, i + l, SL_F32, 7 * r->rank, 7, 0, 5 + l);
            got[l] = in_window(r, &at, SL_F32, 14, 5 + l);
            sl_comm_gather(r->ctx, r->comm, (sl_lane)l, &got[l], &x, 14);
        }
        for (int l = SL_LANES - 1; l >= 0; l--) sl_comm_wait(r->ctx, r->comm, (sl_lane)l, 0);
        RANK_CTX(r);
        for (int l = 0; l < SL_LANES && !bad; l++) bad = compare(r, &got[l], i + l, 0, 0);
        sl_comm_barrier(r->ctx, r->comm, SL_LANE_TEAM);
        sl_release(r->ctx, mark);
    }
    return bad;
}

static inline void lanes_do_not_mix(void **state)
{
    (void)state;
    t_ranks(2, rank_lanes, 20000, NULL, -1);
}

static inline const char *rank_broadcasts(t_rank *r)
{
    int all[SL_RANKS];
    const char *bad = NULL;
    for (int i = 0; i < r->ranks; i++) all[i] = i;
    sl_team team = team_of(r, r->ranks, all, 7);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &team);
    for (int root = 0; root < r->ranks && !bad; root++) {
        size_t at = 0;
        const size_t mark = sl_mark(r->ctx);
        sl_tensor y = in_window(r, &at, SL_BF16, 70, 50), x = {0};
        if (root == team.me) x = make_part(r, root, SL_BF16, 0, 70, 0, 50);
        sl_comm_broadcast(r->ctx, r->comm, SL_LANE_TEAM, &y, &x, root);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_TEAM, 0);
        RANK_CTX(r);
        bad = compare(r, &y, root, 0, 0);
        sl_comm_barrier(r->ctx, r->comm, SL_LANE_TEAM);
        sl_release(r->ctx, mark);
    }
    return bad;
}

static inline void a_broadcast_reaches_all(void **state)
{
    (void)state;
    t_ranks(t_body.ranks < 4 ? t_body.ranks : 4, rank_broadcasts, 20000, NULL, -1);
}

static int open_files(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static long resident_pages(void)
{
    long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%ld %ld", &size, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return resident;
}

static inline const char *rank_many(t_rank *r)
{
    const int all[] = {0, 1};
    sl_team team = team_of(r, 2, all, 1);
    size_t at = 0;
    sl_tensor x = make_part(r, 1, SL_BF16, 32 * r->rank, 32, 0, 16),
              whole = in_window(r, &at, SL_BF16, 64, 16), z = in_window(r, &at, SL_BF16, 64, 16),
              y = sl_cols(&whole, 8 * r->rank, 8);
    int files = 0;
    long pages = 0;
    size_t device = 0;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &team);
    for (int i = 0; i < 10000; i++) {
        if (i == 1000) {
            sl_comm_settle(r->ctx, r->comm);
            files = open_files(), pages = resident_pages();
            if (t_body.device_used) device = t_body.device_used(r->rank);
        }
        sl_comm_to_heads(r->ctx, r->comm, SL_LANE_SHARD, &whole, &x, 64, true);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_SHARD, 0);
        sl_comm_to_rows(r->ctx, r->comm, SL_LANE_SHARD, &z, &y, 64, 0, 8, NULL, true);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_SHARD, 0);
        RANK_CTX(r);
    }
    RANK_OK(open_files() == files, "%d files are open, want %d", open_files(), files);
    RANK_OK(resident_pages() - pages < 256, "%ld pages more", resident_pages() - pages);
    sl_comm_settle(r->ctx, r->comm);
    if (t_body.device_used) {
        const size_t now = t_body.device_used(r->rank);
        RANK_OK(now < device + (8 << 20), "%zu bytes of the device, %zu before", now, device);
    }
    sl_comm_stats s = sl_comm_take_stats(r->comm);
    RANK_OK(s.operations == 20000, "%llu operations", (unsigned long long)s.operations);
    z = sl_rows(&z, 32 * r->rank, 32);
    return compare(r, &z, 1, 32 * r->rank, 0);
}

static inline void ten_thousand_exchanges_leak_nothing(void **state)
{
    (void)state;
    t_ranks(2, rank_many, 20000, NULL, -1);
}

/* Words of a member that tells twice as much as the others wait for, with exchanges between. */
static inline const char *rank_tells(t_rank *r)
{
    int all[SL_RANKS];
    uint64_t words[SL_RANKS];
    for (int i = 0; i < r->ranks; i++) all[i] = i;
    sl_team team = team_of(r, r->ranks, all, 9);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &team);
    for (uint64_t i = 0; i < 300; i++) {
        sl_comm_tell(r->ctx, r->comm, SL_LANE_TEAM, i << 32 | (uint64_t)r->rank, words);
        RANK_CTX(r);
        for (int k = 0; k < r->ranks; k++)
            RANK_OK(words[k] == (i << 32 | (uint64_t)k), "member %d told %llx at %llu", k,
                    (unsigned long long)words[k], (unsigned long long)i);
        size_t at = 0;
        sl_tensor x = make_part(r, 1, SL_F32, r->rank, 1, 0, 8),
                  y = in_window(r, &at, SL_F32, r->ranks, 8);
        if (i % 3 == 0) sl_comm_gather(r->ctx, r->comm, SL_LANE_TEAM, &y, &x, r->ranks);
        if (i % 3 == 0) sl_comm_wait(r->ctx, r->comm, SL_LANE_TEAM, 0);
    }
    sl_comm_end(r->ctx, r->comm);
    RANK_CTX(r);
    RANK_OK(!r->ctx->settle, "%s", "waits still settle after the end");
    return NULL;
}

static inline void words_reach_all(void **state)
{
    (void)state;
    t_ranks(t_body.ranks < 4 ? t_body.ranks : 4, rank_tells, 20000, NULL, -1);
}

/* ---- ends ---- */

/* Exchange without an end; then what ended it, and in what time since the flag was
 * raised. */
static sl_code exchange_until(t_rank *r, const sl_team *team)
{
    size_t at = 0;
    const int64_t n = 8 * team->size;
    sl_tensor x = make_part(r, 1, SL_F32, 8 * team->me, 8, 0, 4 * team->size),
              whole = in_window(r, &at, SL_F32, n, 4 * team->size),
              z = in_window(r, &at, SL_F32, n, 4 * team->size),
              y = sl_cols(&whole, 4 * team->me, 4);
    sl_err err = {0};
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, team);
    while (sl_ok(r->ctx)) {
        sl_comm_to_heads(r->ctx, r->comm, SL_LANE_SHARD, &whole, &x, n, true);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_SHARD, 0);
        sl_comm_to_rows(r->ctx, r->comm, SL_LANE_SHARD, &z, &y, n, 0, 4, NULL, true);
        sl_comm_wait(r->ctx, r->comm, SL_LANE_SHARD, 0);
        sl_comm_settle(r->ctx, r->comm);
        atomic_fetch_add(&t_comm->flag, 1);
    }
    t_comm->ns[r->rank] = sl_now_ns();
    return sl_ctx_error(r->ctx, &err);
}

/* Ranks of the tests of ends: three, or as many as there are. */
static inline int few(void)
{
    return t_body.ranks < 3 ? t_body.ranks : 3;
}

static inline const char *rank_aborted(t_rank *r)
{
    sl_team team = team_of(r, r->ranks, T_ALL, 1), again = team_of(r, r->ranks, T_ALL, 2);
    if (r->rank == 1) { /* begins, and gives up while the others wait for it */
        sl_err err;
        sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &team);
        RANK_CTX(r);
        usleep(100000);
        t_comm->ns[1] = sl_now_ns();
        sl_comm_abort(r->comm, &team);
        sl_ctx_error(r->ctx, &err);
    } else {
        sl_code rc = exchange_until(r, &team);
        RANK_OK(rc == SL_CANCELLED, "ended with %s, want CANCELLED", sl_code_name(rc));
        RANK_OK(t_comm->ns[r->rank] - t_comm->ns[1] < 1000000000, "%.3f s after the abort",
                (double)(t_comm->ns[r->rank] - t_comm->ns[1]) * 1e-9);
    }
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &again); /* the group stays */
    RANK_CTX(r);
    return round_trip(r, SL_LANE_SHARD, &again, 50, 24, SL_BF16, 2);
}

static inline void an_abort_ends_all_within_a_second(void **state)
{
    (void)state;
    t_ranks(few(), rank_aborted, 20000, NULL, -1);
}

static inline const char *rank_bereaved(t_rank *r)
{
    const int rest[] = {0, 2};
    sl_team team = team_of(r, r->ranks, T_ALL, 1), left = team_of(r, r->ranks - 1, rest, 2);
    sl_code rc = exchange_until(r, &team);
    if (r->rank == 1) return NULL; /* stopped and then killed: never here */
    RANK_OK(rc == SL_GONE || rc == SL_CANCELLED || rc == SL_TIMEOUT, "ended with %s",
            sl_code_name(rc));
    RANK_OK(t_comm->ns[r->rank] - t_comm->ns[1] < 2000000000, "%.3f s after the end",
            (double)(t_comm->ns[r->rank] - t_comm->ns[1]) * 1e-9);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &left); /* goes on without it */
    RANK_CTX(r);
    return round_trip(r, SL_LANE_SHARD, &left, 50, 24, SL_BF16, 2);
}

static void kill_one(void)
{
    t_until(&t_comm->flag, 300);
    t_comm->ns[1] = sl_now_ns();
    kill(atomic_load(&t_comm->pid[1]), SIGKILL);
}

static void stop_one(void)
{
    t_until(&t_comm->flag, 300);
    t_comm->ns[1] = sl_now_ns();
    kill(atomic_load(&t_comm->pid[1]), SIGSTOP);
    usleep(4000000); /* past every deadline; its team has gone on */
    kill(atomic_load(&t_comm->pid[1]), SIGKILL);
}

static inline void a_killed_rank_ends_the_attempt(void **state)
{
    (void)state;
    t_ranks(few(), rank_bereaved, 20000, kill_one, 1);
}

static inline void a_stopped_rank_ends_the_attempt(void **state)
{
    (void)state;
    t_ranks(few(), rank_bereaved, 1000, stop_one, 1);
}

/* A rank that has died is there again as another process. The next attempt begins when all have
 * ended the one before. */
static inline const char *rank_again(t_rank *r)
{
    sl_team again = team_of(r, r->ranks, T_ALL, 2);
    RANK_OK(t_until(&t_comm->ended, r->ranks - 1), "%s", "the attempt did not end");
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &again);
    RANK_CTX(r);
    return round_trip(r, SL_LANE_SHARD, &again, 50, 24, SL_BF16, 2);
}

static inline const char *rank_outlives(t_rank *r)
{
    sl_team team = team_of(r, r->ranks, T_ALL, 1);
    sl_err err = {0};
    exchange_until(r, &team);
    atomic_fetch_add(&t_comm->ended, 1);
    RANK_OK(t_until(&t_comm->connected, r->ranks + 1), "%s", "nobody came again");
    RANK_OK(!sl_comm_connect(r->comm, &t_comm->handle[1], &err), "connect again: %.200s", err.msg);
    return rank_again(r);
}

static char t_replaced[512]; /* what the rank that came again says */

static void replace_one(void)
{
    const pid_t old = atomic_load(&t_comm->pid[1]);
    siginfo_t info;
    int status = 0;
    t_until(&t_comm->flag, 300);
    kill(old, SIGKILL);
    waitid(P_PID, (id_t)old, &info, WEXITED | WNOWAIT);
    fflush(NULL);
    pid_t pid = fork(), ended;
    if (!pid) {
        t_rank r = {.rank = 1, .ranks = few()};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const char *bad = rank_run(&r, rank_again, 20000);
        if (bad && bad != t_comm->says[1]) snprintf(t_comm->says[1], 256, "%s", bad);
        _exit(bad ? 1 : 0);
    }
    const int64_t by = sl_now_ns() + 60000000000;
    while (!(ended = waitpid(pid, &status, WNOHANG)) && sl_now_ns() < by) usleep(1000);
    if (!ended) {
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    *t_replaced = 0;
    if (!ended || !WIFEXITED(status) || WEXITSTATUS(status))
        snprintf(t_replaced, sizeof t_replaced, "the rank that came again: %s (status %d)",
                 t_comm->says[1], status);
}

static inline void a_rank_that_died_comes_again(void **state)
{
    (void)state;
    t_ranks(few(), rank_outlives, 20000, replace_one, 1);
    if (*t_replaced) fail_msg("%s", t_replaced);
}

/* What one rank sent in an attempt that the other gave up does not come in the next one. */
static inline const char *rank_one_sided(t_rank *r)
{
    const int all[] = {0, 1};
    const char *bad = NULL;
    for (uint32_t i = 1; i <= 6 && !bad; i++) {
        const sl_team team = team_of(r, 2, all, i);
        const size_t mark = sl_mark(r->ctx);
        size_t at = 0;
        sl_tensor x = make_part(r, (int)i, SL_F32, 0, 3, 0, 4), y = in_window(r, &at, SL_F32, 3, 4);
        sl_err err;
        sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &team);
        RANK_CTX(r);
        if (i % 2 && r->rank) {
            usleep(50000);
            sl_comm_abort(r->comm, &team);
        } else {
            sl_comm_broadcast(r->ctx, r->comm, SL_LANE_TEAM, &y, &x, 0);
            sl_comm_wait(r->ctx, r->comm, SL_LANE_TEAM, 0);
            sl_comm_settle(r->ctx, r->comm);
            if (!(i % 2)) bad = compare(r, &y, (int)i, 0, 0);
        }
        sl_comm_end(r->ctx, r->comm);
        sl_ctx_error(r->ctx, &err);
        sl_release(r->ctx, mark);
    }
    return bad;
}

static inline void what_was_given_up_does_not_come(void **state)
{
    (void)state;
    t_ranks(2, rank_one_sided, 20000, NULL, -1);
}

static const char *wants(t_rank *r, sl_code code, const char *says)
{
    sl_err err = {0};
    sl_code rc = sl_ctx_error(r->ctx, &err);
    RANK_OK(rc == code && strstr(err.msg, says), "%s \"%.120s\", want %s \"%.80s\"",
            sl_code_name(rc), err.msg, sl_code_name(code), says);
    return NULL;
}

static inline const char *rank_refusals(t_rank *r)
{
    const int all[] = {0, 1}, none[] = {0, 9}, twice[] = {0, 0};
    sl_team team = team_of(r, 2, all, 5), old = team_of(r, 2, all, 5),
            lost = team_of(r, 2, none, 6), same = team_of(r, 2, twice, 6);
    size_t at = 0;
    const char *bad = NULL;
    lost.me = same.me = 0;
    lost.member[0] = same.member[0] = r->rank;
    if (r->rank) same.member[1] = r->rank;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &lost);
    if ((bad = wants(r, SL_GONE, "rank 9, which is not connected"))) return bad;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &same);
    if ((bad = wants(r, SL_ARG, "named twice"))) return bad;
    same = team, same.weight[0] = 64, same.weight[1] = 65;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &same);
    if ((bad = wants(r, SL_ARG, "weights of 2 shares, together 129, want 128, each at most 72")))
        return bad;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &team);
    RANK_CTX(r);
    same.weight[0] = 55, same.weight[1] = 73;
    sl_comm_weigh(r->ctx, r->comm, SL_LANE_SHARD, same.weight);
    if ((bad = wants(r, SL_ARG, "weights of 2 shares, together 128, want 128, each at most 72")))
        return bad;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &old);
    if ((bad = wants(r, SL_ARG, "key 5 of an attempt, want more than the last, 5"))) return bad;
    sl_tensor x = make_part(r, 0, SL_F32, 0, 4, 0, 6), y = in_window(r, &at, SL_F32, 8, 6),
              outside = sl_new2(r->ctx, SL_F32, 8, 6);
    sl_comm_to_heads(r->ctx, r->comm, SL_LANE_SHARD, &outside, &x, 8, true);
    if ((bad = wants(r, SL_ARG, "does not receive into the window"))) return bad;
    x = make_part(r, 0, SL_F32, 0, 4, 0, 6);
    sl_comm_to_heads(r->ctx, r->comm, SL_LANE_SHARD, &y, &x, 9, true);
    if ((bad = wants(r, SL_SHAPE, "want ["))) return bad;
    x = make_part(r, 0, SL_F32, 0, 4, 0, 5);
    sl_comm_to_heads(r->ctx, r->comm, SL_LANE_SHARD, &y, &x, 8, true);
    if ((bad = wants(r, SL_SHAPE, "5 columns, want a multiple of the team's 2"))) return bad;
    sl_comm_barrier(r->ctx, r->comm, SL_LANE_SHARD);
    RANK_CTX(r);
    return NULL;
}

static inline void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    t_ranks(2, rank_refusals, 20000, NULL, -1);
}

static inline void shares_are_even_and_whole(void **state)
{
    (void)state;
    for (int64_t n = 0; n < 200; n++)
        for (int size = 1; size <= SL_RANKS; size++)
            for (int g = 1; g <= 48; g += g < 3 ? 1 : 45) {
                int64_t at = 0, most = 0;
                const sl_team team = {.size = size, .granule = g};
                for (int i = 0; i < size; i++) {
                    sl_share s = sl_share_of(&team, n, i);
                    assert_int_equal(s.first, at);
                    if (s.rows) assert_int_equal(s.first % g, 0);
                    if (s.rows && n >= g) assert_true(s.rows >= g);
                    if (g == 1) assert_in_range(s.rows, n / size, n / size + 1);
                    assert_true(s.rows <= (n / g / size + 2) * g || n < g);
                    if (s.rows > most) most = s.rows;
                    at += s.rows;
                }
                assert_int_equal(at, n);
                assert_true(sl_share_most(n, size, g) >= most);
            }
}

/* Each has what its weight says to a granule, nobody more than the most, together they have all. */
static inline void shares_follow_weights(void **state)
{
    static const int64_t ROWS[] = {0, 1, 47, 48, 300, 462, 1953, 32760, 75600};
    (void)state;
    for (size_t k = 0; k < sizeof ROWS / sizeof *ROWS; k++)
        for (int size = 1; size <= SL_RANKS; size++)
            for (int g = 1; g <= 48; g += 47)
                for (int way = 1; way < T_SHARES; way++) {
                    sl_team team = {.size = size, .granule = g};
                    const int64_t n = ROWS[k], equal = size * SL_SHARE_EQUAL;
                    int64_t at = 0;
                    t_shares(team.weight, size, way);
                    assert_true(sl_shares_fit(team.weight, size));
                    for (int i = 0; i < size; i++) {
                        const sl_share s = sl_share_of(&team, n, i);
                        const int64_t want = n * team.weight[i] / equal;
                        assert_int_equal(s.first, at);
                        if (s.rows) assert_int_equal(s.first % g, 0);
                        if (n >= g) assert_in_range(s.rows + 2 * g, want, want + 4 * g);
                        assert_true(s.rows <= sl_share_most(n, size, g));
                        at += s.rows;
                    }
                    assert_int_equal(at, n);
                }
    /* a sixteenth more than a half, an eighth more at the most */
    const sl_team two = {.size = 2, .weight = {68, 60}};
    assert_int_equal(sl_share_of(&two, 32760, 0).rows, 17403);
    assert_int_equal(sl_share_of(&two, 32760, 1).first, 17403);
    assert_int_equal(sl_share_most(32760, 2, 1), 18428);
    assert_int_equal(sl_share_most(32760, 1, 1), 32760);
    assert_false(sl_shares_fit((uint8_t[]){73, 55}, 2));
    assert_false(sl_shares_fit((uint8_t[]){64, 63}, 2));
}

#define T_COMM_TESTS                                                                               \
    cmocka_unit_test(shares_are_even_and_whole), cmocka_unit_test(shares_follow_weights),          \
        cmocka_unit_test(every_team_exchanges), cmocka_unit_test(halves_meet_and_join),            \
        cmocka_unit_test(lanes_do_not_mix), cmocka_unit_test(a_broadcast_reaches_all),             \
        cmocka_unit_test(words_reach_all), cmocka_unit_test(ten_thousand_exchanges_leak_nothing),  \
        cmocka_unit_test(an_abort_ends_all_within_a_second),                                       \
        cmocka_unit_test(a_killed_rank_ends_the_attempt),                                          \
        cmocka_unit_test(a_stopped_rank_ends_the_attempt),                                         \
        cmocka_unit_test(a_rank_that_died_comes_again),                                            \
        cmocka_unit_test(what_was_given_up_does_not_come),                                         \
        cmocka_unit_test(what_does_not_fit_is_refused)

#endif
