/* team.c - the diffusion transformer by a team of ranks beside one rank, in turn.
 *
 * Processes: each device of --device gets a rank, forked before this process opens a device, since
 * CUDA does not survive a fork. A rank waits for a byte of the pipe (none: it was not needed),
 * makes the weights, meets the others, and takes every size through two measurements:
 *
 *   shared   one forward, by rank 0 alone, then by all of them
 *   halves   a guided step, which is two forwards and the guidance: both by rank 0 alone, then a
 *            branch by each half of the ranks, which exchange their velocities
 *
 * Ranks that share a forward begin with equal shares of its rows, which then follow what each
 * computes (graphs/balance.h), as a denoiser's do from step to step: runs to warm up until they
 * settle, at most WARM_MOST. On a GPU each run that counts comes behind one that does not, as a
 * job's forwards do: while rank 0 is alone the other cards rest, and begin faster.
 *
 * With a --guidance of 1 or less there is no guided step.
 *
 * All figures lie in memory that the processes share; each is written by one rank, before a barrier
 * or before it says that it has ended. This process prints what is finished. A rank that fails
 * tells the others to give up (sl_comm_abort) and says why. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "graphs/balance.h"
#include "kernels/comm_body.h"
#include "stages/bench/dit.h"

#define SILENT_MS 600000 /* others take a forward each meanwhile; the dead are noticed at once */
#define MEET_S 600       /* longest wait for the others' weights */
#define EXCHANGES 20     /* of the loop that measures them alone */
#define WARM_MOST 8      /* runs before those that count */
#define GUIDANCE 5.0f    /* its value changes nothing */

enum { SHARED, HALVES, MODES };

/* Of one size and mode. */
typedef struct {
    bool skipped; /* heads do not divide, or there are no halves */
    int shards;   /* ranks that share a forward */
    int runs;
    double alone[SL_BENCH_MOST_RUNS]; /* of rank 0 */
    int64_t start_ns[SL_BENCH_MOST_RUNS][SL_RANKS], end_ns[SL_BENCH_MOST_RUNS][SL_RANKS];
    int64_t waited_ns[SL_RANKS];             /* for data of others, in all runs */
    int64_t busy_ns[SL_RANKS];               /* all else, in all runs */
    uint64_t sent_bytes[SL_RANKS];           /* in one run */
    uint64_t sum_alone;                      /* of the bytes of v */
    uint64_t sums[SL_RANKS], ends[SL_RANKS]; /* after the first run, and after the last */
    double rows[SL_RANKS];                   /* of a forward's, 0 .. 1, in the last run */
    int warm, changes;                       /* runs to warm up; how often the shares changed */
    sl_bench_work work, work_alone;          /* of rank 0 */
    size_t peak;
    double card[SL_RANKS];   /* seconds of one forward of each rank alone, all at once */
    double exchange_s;       /* of one layer's exchange, nothing else running; 0: none */
    uint64_t exchange_bytes; /* that a rank sends in it */
} figures;

typedef struct {
    sl_comm_handle handle[SL_RANKS];
    _Atomic int there, connected, failed;
    _Atomic int finished; /* sizes times modes, by rank 0 */
    double weights_s;
    char comm[8];         /* the body's name */
    sl_err err[SL_RANKS]; /* of a rank that failed */
    figures at[SL_BENCH_SIZES][MODES];
} together;

typedef struct sl_bench_team {
    together *with;
    int go; /* the pipe's end */
    int count;
    pid_t pid[SL_RANKS]; /* 0: it has ended */
} team;

/* ---- a rank ---- */

typedef struct {
    together *with;
    int ranks, me;
    sl_bench b; /* this rank's own, on its device */
    sl_bench_dit_net d;
    sl_comm *comm;
    uint32_t key; /* of the newest attempt */
    sl_team whole, shard, pair;
    sl_balance balance[SL_BENCH_BRANCHES]; /* of all that share a forward, or of each half */
} rank;

static sl_code wait_for(const rank *r, _Atomic int *count, sl_err *err)
{
    const int64_t by = sl_now_ns() + MEET_S * 1000000000ll;
    while (atomic_load(count) < r->ranks) {
        if (atomic_load(&r->with->failed)) return sl_fail(err, SL_CANCELLED, "another rank failed");
        if (sl_now_ns() > by) return sl_fail(err, SL_TIMEOUT, "the other ranks did not come");
        usleep(1000);
    }
    return SL_OK;
}

static void share_the_cores(const rank *r)
{
#ifdef _OPENMP
    const int threads = omp_get_max_threads() / r->ranks;
    if (!r->b.plugin) omp_set_num_threads(threads > 0 ? threads : 1);
#else
    (void)r;
#endif
}

/* Ranks that share a forward: all, or each half of them. */
static int shards_of(const rank *r, int mode)
{
    return mode == HALVES ? r->ranks / 2 : r->ranks;
}

static bool is_possible(const rank *r, int mode)
{
    const int heads = r->b.model.dit[0].heads, n = shards_of(r, mode);
    if (mode == HALVES && (r->ranks % 2 || r->b.unguided)) return false;
    return heads % n == 0;
}

/* Bytes of both branches' velocities, at the window's end. */
static size_t pair_bytes(const rank *r, const sl_bench_size *s)
{
    const sl_grid g = sl_bench_grid(&r->b, s);
    const int64_t n =
        r->b.model.dit[0].out_channels * g.latent_frames * g.latent_height * g.latent_width;
    return (size_t)(2 * n) * sl_dtype_size(sl_act(&r->d.n.ctx));
}

static size_t window_bytes(const rank *r)
{
    size_t most = 0;
    for (int i = 0; i < r->b.size_count; i++)
        for (int mode = 0; mode < MODES; mode++) {
            if (!is_possible(r, mode)) continue;
            const size_t bytes = pair_bytes(r, &r->b.sizes[i]) + 256 +
                                 sl_dit_share_bytes(&r->d.n.ctx, r->d.m,
                                                    sl_bench_grid(&r->b, &r->b.sizes[i]).tokens);
            if (bytes > most) most = bytes;
        }
    return most;
}

/* How the ranks reach each other: as asked for, or by ipc if all of their devices can map each
 * other. */
static sl_code choose_body(rank *r, const sl_comm_body **out, sl_err *err)
{
    const sl_device_list *d = &r->b.devices;
    const sl_plugin *p = r->b.plugin;
    bool all = true;
    *out = &sl_comm_shm;
    if (!p) return SL_OK;
    for (int i = 0; i < d->count && !*r->b.comm; i++)
        for (int k = 0; k < i && all; k++) {
            sl_code rc = p->can_map(atoi(d->at[i] + 5), atoi(d->at[k] + 5), &all, err);
            if (rc) return rc;
        }
    *out = strcmp(r->b.comm, "nccl") && all ? p->comm_ipc : p->comm_nccl;
    return SL_OK;
}

/* The weights are made, and every rank has this one's handle. */
static sl_code rank_open(rank *r, sl_err *err)
{
    const sl_comm_body *body;
    const int64_t t0 = sl_now_ns();
    sl_code rc;
    /* a wait on the device blocks the hardware queue of its stream: as many as there may be */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    snprintf(r->b.device, sizeof r->b.device, "%s", r->b.devices.at[r->me]);
    if ((rc = sl_bench_open_device(&r->b, err))) return rc;
    share_the_cores(r);
    if ((rc = choose_body(r, &body, err)) || (rc = sl_bench_dit_open(&r->d, &r->b, err)) ||
        (rc = sl_comm_open(&r->comm, body, r->me, window_bytes(r), SILENT_MS, err)))
        return rc;
    if (r->me == 0) {
        r->with->weights_s = (double)(sl_now_ns() - t0) * 1e-9;
        snprintf(r->with->comm, sizeof r->with->comm, "%s", body->name);
    }
    sl_comm_handle_of(r->comm, &r->with->handle[r->me]);
    atomic_fetch_add(&r->with->there, 1);
    if ((rc = wait_for(r, &r->with->there, err))) return rc;
    for (int i = 0; i < r->ranks; i++)
        if (i != r->me && (rc = sl_comm_connect(r->comm, &r->with->handle[i], err))) return rc;
    atomic_fetch_add(&r->with->connected, 1);
    return wait_for(r, &r->with->connected, err);
}

/* The members `first`, `first + step`, ... */
static sl_team part(const rank *r, int first, int step, int n, int granule)
{
    sl_team t = {.size = n, .key = r->key, .granule = granule};
    for (int i = 0; i < n; i++) {
        t.member[i] = first + i * step;
        if (t.member[i] == r->me) t.me = i;
    }
    return t;
}

static void begin(rank *r, int mode)
{
    sl_ctx *ctx = &r->d.n.ctx;
    const int n = shards_of(r, mode), granule = ctx->ops->row_granule;
    r->key++;
    r->whole = part(r, 0, 1, r->ranks, granule);
    r->shard = part(r, r->me / n * n, 1, n, granule);
    r->pair = part(r, r->me % n, n, 2, 1);
    sl_comm_begin(ctx, r->comm, SL_LANE_TEAM, &r->whole);
    if (n > 1) sl_comm_begin(ctx, r->comm, SL_LANE_SHARD, &r->shard);
    if (mode == HALVES) sl_comm_begin(ctx, r->comm, SL_LANE_MEET, &r->pair);
}

/* What the halves have, exchanged; v[own] and what came. */
static void meet(rank *r, int own, sl_tensor v[SL_BENCH_BRANCHES])
{
    sl_ctx *ctx = &r->d.n.ctx;
    size_t bytes;
    char *window = sl_comm_window(r->comm, &bytes);
    const int64_t n = sl_count(&v[own]);
    const size_t half = sl_bytes(&v[own]);
    const sl_tensor x = sl_view2(v[own].data, v[own].dtype, 1, n),
                    y = sl_view2(window + (bytes - 2 * half) / 256 * 256, v[own].dtype, 2, n);
    sl_comm_gather(ctx, r->comm, SL_LANE_MEET, &y, &x, 2);
    sl_comm_wait(ctx, r->comm, SL_LANE_MEET, 0);
    v[!own].data = (char *)y.data + (size_t)(!own) * half;
}

/* A forward, or a guided step; by this rank alone or as one of the team. Queued. */
static void work(rank *r, int mode, bool alone, const sl_dit_share *share)
{
    sl_bench_dit_net *d = &r->d;
    sl_tensor v[SL_BENCH_BRANCHES] = {d->v[0], d->v[1]};
    const int own = mode == HALVES ? r->me / shards_of(r, mode) : 0;
    if (mode == SHARED || !alone) sl_bench_dit_forward(d, &d->n.ctx, own, alone ? NULL : share);
    else
        for (int b = 0; b < SL_BENCH_BRANCHES; b++) sl_bench_dit_forward(d, &d->n.ctx, b, NULL);
    if (mode == SHARED) return;
    if (!alone) meet(r, own, v);
    sl_guidance(&d->n.ctx, &d->v[0], &v[0], &v[1], GUIDANCE);
}

static double alone_s(rank *r, int mode)
{
    const int64_t t0 = sl_now_ns();
    work(r, mode, true, NULL);
    sl_sync(&r->d.n.ctx);
    return (double)(sl_now_ns() - t0) * 1e-9;
}

static uint64_t sum_of(rank *r)
{
    const sl_tensor *v = &r->d.v[0];
    uint64_t sum = 14695981039346656037u; /* FNV-1a */
    unsigned char *bytes = malloc(sl_bytes(v));
    if (!bytes) sl_ctx_fail(&r->d.n.ctx, SL_NOMEM, "no memory for the velocities");
    else sl_download(&r->d.n.ctx, bytes, v);
    for (size_t i = 0; bytes && sl_ok(&r->d.n.ctx) && i < sl_bytes(v); i++)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    free(bytes);
    return sum;
}

/* Each card by itself, but all at once: what the slower one takes is no loss of the team's. */
static void time_cards(rank *r, figures *f)
{
    for (int i = 0; i < 2; i++) { /* the first warms up */
        sl_comm_barrier(&r->d.n.ctx, r->comm, SL_LANE_TEAM);
        f->card[r->me] = alone_s(r, SHARED);
    }
}

/* One layer's exchange and nothing else: as often as to heads so often back to rows. */
static void time_exchange(rank *r, const sl_dit_share *share, figures *f)
{
    sl_ctx *ctx = &r->d.n.ctx;
    const int64_t n = share->tokens, d = r->b.model.dit[0].dim;
    const sl_share mine = sl_share_of(&share->team, n, share->team.me);
    const int64_t cols = d / r->shard.size;
    const sl_tensor *all[] = {&share->q, &share->k, &share->v};
    const sl_tensor o = sl_cols(&share->o, share->team.me * cols, cols);
    int64_t t0 = 0;
    for (int k = 0; k < 3; k++) sl_zero(ctx, all[k]);
    sl_zero(ctx, &share->o);
    for (int i = -2; i < EXCHANGES; i++) {
        if (!i) {
            sl_comm_barrier(ctx, r->comm, SL_LANE_TEAM);
            sl_comm_take_stats(r->comm);
            t0 = sl_now_ns();
        }
        for (int k = 0; k < 3; k++) {
            const sl_tensor x = sl_rows(all[k], mine.first, mine.rows);
            sl_comm_to_heads(ctx, r->comm, SL_LANE_SHARD, all[k], &x, n, false);
        }
        sl_comm_wait(ctx, r->comm, SL_LANE_SHARD, 0);
        sl_comm_to_rows(ctx, r->comm, SL_LANE_SHARD, &share->o, &o, n, 0, cols, NULL, false);
        sl_comm_wait(ctx, r->comm, SL_LANE_SHARD, 0);
    }
    sl_comm_settle(ctx, r->comm);
    if (r->me) return;
    f->exchange_s = (double)(sl_now_ns() - t0) * 1e-9 / EXCHANGES;
    f->exchange_bytes = sl_comm_take_stats(r->comm).sent_bytes / EXCHANGES;
}

/* Every rank follows the shares of all, so that all stop to warm up at one time. */
static void begin_shares(rank *r, sl_dit_share *share)
{
    sl_ctx *ctx = &r->d.n.ctx;
    const int n = r->shard.size;
    sl_err err = {0};
    for (int h = 0; h < r->ranks / n; h++)
        if (sl_balance_begin(&r->balance[h], n, NULL, getenv("SLUICE_SHARES"), &err)) {
            sl_ctx_fail(ctx, err.code, "%s", err.msg);
            return;
        }
    sl_dit_share_weigh(ctx, share, r->balance[r->me / n].weight, 0, NULL);
}

static bool settled(const rank *r)
{
    bool all = true;
    for (int h = 0; h < r->ranks / r->shard.size; h++) all = all && r->balance[h].settled;
    return all;
}

/* All tell each other what they have computed in a run, and share the next forward by it. */
static void follow(rank *r, double busy_s, sl_dit_share *share, figures *f)
{
    sl_ctx *ctx = &r->d.n.ctx;
    const double part = sl_dit_part_of_rows(r->d.m, share->tokens, r->d.context[0].image_tokens);
    const int n = r->shard.size;
    uint64_t all[SL_RANKS] = {0};
    sl_comm_tell(ctx, r->comm, SL_LANE_TEAM, busy_s > 0 ? (uint64_t)(busy_s * 1e9) : 0, all);
    for (int h = 0; h < r->ranks / n && sl_ok(ctx); h++) {
        double each[SL_RANKS];
        for (int i = 0; i < n; i++) each[i] = (double)all[h * n + i] * 1e-9;
        if (!sl_balance_next(&r->balance[h], part, each)) continue;
        if (!r->me) f->changes++;
        if (h == r->me / n) sl_dit_share_weigh(ctx, share, r->balance[h].weight, 0, NULL);
    }
}

/* One run by all; i < 0: to warm up. share: NULL, nobody shares. */
static void team_run(rank *r, int mode, int i, sl_dit_share *share, figures *f)
{
    sl_ctx *ctx = &r->d.n.ctx;
    sl_comm_barrier(ctx, r->comm, SL_LANE_TEAM);
    sl_comm_take_stats(r->comm);
    r->d.n.work = (sl_bench_work){.body = r->d.n.work.body};
    const int64_t t0 = sl_now_ns();
    work(r, mode, false, share);
    sl_sync(ctx);
    const int64_t t1 = sl_now_ns();
    const sl_comm_stats s = sl_comm_take_stats(r->comm);
    const int64_t waited = s.waited_ns[SL_LANE_SHARD] + s.waited_ns[SL_LANE_MEET];
    if (share) {
        const sl_share mine = sl_share_of(&share->team, share->tokens, share->team.me);
        f->rows[r->me] = (double)mine.rows / (double)share->tokens;
        follow(r, (double)(t1 - t0 - waited) * 1e-9, share, f);
    }
    if (i < 0 || !sl_ok(ctx)) return;
    f->start_ns[i][r->me] = t0;
    f->end_ns[i][r->me] = t1;
    f->waited_ns[r->me] += waited;
    f->busy_ns[r->me] += t1 - t0 - waited;
    f->sent_bytes[r->me] = s.sent_bytes;
    if (!r->me) f->work = r->d.n.work;
}

static sl_code measure(rank *r, const sl_bench_size *s, int mode, figures *f, sl_err *err)
{
    sl_ctx *ctx = &r->d.n.ctx;
    sl_dit_share share = {0};
    begin(r, mode);
    if (r->shard.size > 1)
        sl_dit_share_make(ctx, r->d.m, &share, r->comm, SL_LANE_SHARD, &r->shard,
                          sl_bench_grid(&r->b, s).tokens);
    sl_dit_share *shared = share.team.size ? &share : NULL;
    if (shared && sl_ok(ctx)) begin_shares(r, shared);
    if (!r->me && sl_ok(ctx)) {
        r->d.n.work = (sl_bench_work){.body = r->d.n.work.body};
        const double first = alone_s(r, mode);
        f->work_alone = r->d.n.work;
        f->work_alone.first = first;
        f->runs = sl_bench_runs(&r->b, alone_s(r, mode));
        f->sum_alone = sum_of(r);
        f->shards = r->shard.size;
    }
    team_run(r, mode, -1, shared, f);
    f->sums[r->me] = sum_of(r);
    int warm = 1;
    for (; shared && sl_ok(ctx) && !settled(r) && warm < WARM_MOST; warm++)
        team_run(r, mode, -1, shared, f);
    if (!r->me) f->warm = warm;
    for (int i = 0; i < f->runs && sl_ok(ctx); i++) {
        if (!r->me) f->alone[i] = alone_s(r, mode);
        if (shared && r->b.plugin) team_run(r, mode, -1, shared, f);
        team_run(r, mode, i, shared, f);
    }
    f->ends[r->me] = sum_of(r);
    if (mode == SHARED && r->b.plugin) time_cards(r, f);
    if (mode == SHARED && shared) time_exchange(r, shared, f);
    if (!r->me) f->peak = sl_bench_peak(&r->d.n, 0);
    sl_comm_barrier(ctx, r->comm, SL_LANE_TEAM);
    const sl_code rc = sl_ok(ctx) ? SL_OK : (*err = ctx->err, ctx->err.code);
    if (rc) sl_comm_abort(r->comm, &r->whole);
    sl_comm_end(ctx, r->comm);
    return rc;
}

static sl_code rank_run(rank *r, sl_err *err)
{
    sl_code rc = rank_open(r, err);
    for (int i = 0; i < r->b.size_count && !rc; i++) {
        const sl_bench_size *s = &r->b.sizes[i];
        int teams[1 + MODES] = {1}, count = 1;
        for (int mode = 0; mode < MODES; mode++)
            if (is_possible(r, mode)) teams[count++] = shards_of(r, mode);
        if ((rc = sl_bench_dit_reserve(&r->d, s, SL_BENCH_BRANCHES, count, teams, err))) break;
        sl_bench_dit_job(&r->d, &r->d.n.ctx, s, SL_BENCH_BRANCHES);
        for (int mode = 0; mode < MODES && !rc; mode++) {
            figures *f = &r->with->at[i][mode];
            if (is_possible(r, mode)) rc = measure(r, s, mode, f, err);
            else f->skipped = true;
            if (!rc && !r->me) atomic_fetch_add(&r->with->finished, 1);
        }
        sl_bench_dit_drop(&r->d);
    }
    return rc;
}

/* ---- starting and stopping ---- */

static void rank_main(team *t, const sl_bench *b, int me, int go)
{
    static rank r; /* one a process: its context does not move */
    char byte;
    sl_err err = {0};
    if (read(go, &byte, 1) != 1) _exit(0);
    r = (rank){.with = t->with, .ranks = t->count, .me = me, .b = *b};
    const sl_code rc = rank_run(&r, &err);
    if (rc) {
        t->with->err[me] = err;
        atomic_fetch_add(&t->with->failed, 1);
    }
    sl_comm_close(&r.comm);
    sl_bench_dit_close(&r.d);
    _exit(rc != SL_OK);
}

sl_code sl_bench_team_start(sl_bench *b, sl_err *err)
{
    int go[2];
    const pid_t self = getpid();
    team *t = b->team = calloc(1, sizeof *t);
    if (!t) return sl_fail(err, SL_NOMEM, "no memory");
    t->go = -1;
    t->with =
        mmap(NULL, sizeof *t->with, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (t->with == MAP_FAILED) {
        t->with = NULL;
        return sl_fail_errno(err, errno, "ranks: shared memory");
    }
    if (pipe2(go, O_CLOEXEC)) return sl_fail_errno(err, errno, "ranks: pipe");
    t->count = b->devices.count;
    fflush(NULL);
    for (int i = 0; i < t->count; i++) {
        t->pid[i] = fork();
        if (t->pid[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != self) _exit(1);
            close(go[1]);
            rank_main(t, b, i, go[0]);
        }
        if (t->pid[i] < 0) {
            sl_fail_errno(err, errno, "ranks: another process");
            t->pid[i] = 0;
            t->count = i;
            break;
        }
    }
    close(go[0]);
    t->go = go[1];
    return err->code;
}

static void kill_all(team *t)
{
    for (int i = 0; i < t->count; i++)
        if (t->pid[i] > 0) kill(t->pid[i], SIGKILL);
}

void sl_bench_team_stop(sl_bench *b)
{
    team *t = b->team;
    if (!t) return;
    b->team = NULL;
    if (t->go >= 0) close(t->go);
    for (int i = 0; i < t->count; i++)
        if (t->pid[i] > 0) waitpid(t->pid[i], NULL, 0);
    if (t->with) munmap(t->with, sizeof *t->with);
    free(t);
}

/* ---- what came of it ---- */

static double ms(double ns)
{
    return ns * 1e-6;
}

/* The newest result has these, too. */
static void add_to_newest(sl_bench *b, json_t *more)
{
    json_t *newest = json_array_get(b->results, json_array_size(b->results) - 1);
    json_object_update(newest, more);
    json_decref(more);
}

/* The median of the runs, seconds; what the runs sort. */
static double newest_seconds(const sl_bench *b)
{
    const json_t *newest = json_array_get(b->results, json_array_size(b->results) - 1);
    return json_number_value(json_object_get(newest, "seconds"));
}

static void tell(sl_bench *b, const sl_bench_size *s, int mode, figures *f)
{
    const team *t = b->team;
    const int n = t->count;
    char size[64], what[32];
    double seconds[SL_BENCH_MOST_RUNS], skew = 0, waited = 0, card = 0;
    uint64_t sent = 0;
    bool same = true;
    sl_bench_size_text(size, s);
    if (f->skipped) {
        printf("dit %s, %s by %d: left out, %s\n", size,
               mode == SHARED ? "a forward" : "a guided step", n,
               mode == SHARED ? "the heads do not divide"
               : n % 2        ? "there are no halves"
               : b->unguided  ? "no guidance"
                              : "the heads do not divide");
        return;
    }
    for (int i = 0; i < f->runs; i++) {
        int64_t start = f->start_ns[i][0], end = f->end_ns[i][0], first = end;
        for (int k = 1; k < n; k++) {
            if (f->start_ns[i][k] < start) start = f->start_ns[i][k];
            if (f->end_ns[i][k] > end) end = f->end_ns[i][k];
            if (f->end_ns[i][k] < first) first = f->end_ns[i][k];
        }
        seconds[i] = (double)(end - start) * 1e-9;
        skew += (double)(end - first) / f->runs;
    }
    for (int k = 0; k < n; k++) {
        const double mine = (double)f->waited_ns[k] / f->runs;
        if (mine > waited) waited = mine;
        if (f->sent_bytes[k] > sent) sent = f->sent_bytes[k];
        if (f->card[k] > card) card = f->card[k];
        same = same && f->sums[k] == f->sum_alone && f->ends[k] == f->sum_alone;
    }
    const char *kind = mode == SHARED ? "dit" : "step";
    snprintf(what, sizeof what, "%s 1 rank", kind);
    sl_bench_tell(b, what, size, &f->work_alone, 0, 0, f->alone, f->runs);
    const double one = newest_seconds(b);
    snprintf(what, sizeof what, "%s %d ranks", kind, n);
    sl_bench_tell(b, what, size, &f->work, 0, f->peak, seconds, f->runs);
    const double all = newest_seconds(b),
                 rate = f->exchange_s > 0 ? (double)f->exchange_bytes / f->exchange_s : 0;
    printf("    %.2f times as fast, efficiency %.2f %%; sent %.3f GB a rank; not hidden %.3f ms "
           "(%.2f %%), skew %.3f ms; %s\n",
           one / all, 100 * one / all / n, (double)sent * 1e-9, ms(waited),
           100 * waited * 1e-9 / all, ms(skew), same ? "the same bytes" : "OTHER BYTES");
    printf("    by rank, computing (waiting):");
    for (int k = 0; k < n; k++)
        printf(" %.3f (%.3f)", ms((double)f->busy_ns[k] / f->runs),
               ms((double)f->waited_ns[k] / f->runs));
    printf(" ms\n");
    if (rate > 0)
        printf("    a layer's exchange alone: %.2f MB a rank in %.3f ms, %.1f GB/s\n",
               (double)f->exchange_bytes * 1e-6, f->exchange_s * 1e3, rate * 1e-9);
    if (f->shards > 1) {
        printf("    rows of a forward:");
        for (int k = 0; k < n; k++) printf(" %.2f", 100 * f->rows[k]);
        printf(" %%, changed %d times; %d runs to warm up\n", f->changes, f->warm);
    }
    if (card > 0) {
        printf("    cards each by itself:");
        for (int k = 0; k < n; k++) printf(" %.3f", f->card[k]);
        printf(" s; beside the slowest efficiency %.2f %%\n", 100 * card / all / n);
    }
    fflush(stdout);
    json_t *rows = json_array(), *computing = json_array(), *waiting = json_array();
    for (int k = 0; k < n; k++) {
        if (f->shards > 1) json_array_append_new(rows, json_real(f->rows[k]));
        json_array_append_new(computing, json_real((double)f->busy_ns[k] / f->runs * 1e-9));
        json_array_append_new(waiting, json_real((double)f->waited_ns[k] / f->runs * 1e-9));
    }
    add_to_newest(b,
                  json_pack("{s:o, s:o, s:o, s:i, s:i}", "rows", rows, "computing", computing,
                            "waiting", waiting, "share_changes", f->changes, "warm_runs", f->warm));
    add_to_newest(b,
                  json_pack("{s:s, s:i, s:i, s:f, s:f, s:f, s:I, s:f, s:f, s:b, s:f, s:I, s:f}",
                            "comm", t->with->comm, "ranks", n, "shards", f->shards, "one_rank", one,
                            "speedup", one / all, "efficiency", one / all / n, "sent_bytes",
                            (json_int_t)sent, "waited", waited * 1e-9, "skew", skew * 1e-9,
                            "same_bytes", (int)same, "exchange_seconds", f->exchange_s,
                            "exchange_bytes", (json_int_t)f->exchange_bytes, "slowest_card", card));
}

/* What a rank said that failed itself; CANCELLED is only what came of it elsewhere. */
static sl_code reason(const team *t, int ended, int status, sl_err *err)
{
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < t->count; i++) {
            const sl_err *e = &t->with->err[i];
            if (e->code && (pass || e->code != SL_CANCELLED))
                return sl_fail(err, e->code, "rank %d: %.200s", i, e->msg);
        }
    return sl_fail(err, SL_GONE, "rank %d ended with %s %d", ended,
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

sl_code sl_bench_team(sl_bench *b, sl_err *err)
{
    team *t = b->team;
    int told = 0, bad = -1, bad_status = 0;
    for (int i = 0; i < t->count; i++)
        if (write(t->go, "g", 1) != 1) return sl_fail_errno(err, errno, "ranks: pipe");
    for (int left = t->count; left > 0;) {
        usleep(10000);
        for (int i = 0; i < t->count; i++) {
            int status = 0;
            if (t->pid[i] <= 0 || waitpid(t->pid[i], &status, WNOHANG) != t->pid[i]) continue;
            t->pid[i] = 0;
            left--;
            if (status && bad < 0) bad = i, bad_status = status;
            if (status && WIFSIGNALED(status)) kill_all(t); /* the others would wait for it */
        }
        if (!told && atomic_load(&t->with->finished))
            printf("dit: %d ranks over %s, weights made in %.2f s\n", t->count, t->with->comm,
                   t->with->weights_s);
        for (const int n = atomic_load(&t->with->finished); told < n; told++)
            tell(b, &b->sizes[told / MODES], told % MODES,
                 &t->with->at[told / MODES][told % MODES]);
    }
    return bad < 0 ? SL_OK : reason(t, bad, bad_status, err);
}
