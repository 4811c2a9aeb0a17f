/* gpu_load_share.c - weights read together by ranks on GPUs: ranks are dealt out to all
 * devices that are there, several to one if need be.
 *
 * gpu_load_share --bench DIR [RANKS [WINDOW_MB]]: RANKS (2) load the weights of folder DIR
 * (a component that `sluice pack --random` wrote), first each all of them at the same time,
 * then shared, in turn; their bytes are compared once. From the page cache, but for
 * SLUICE_BENCH_DISK=1: each load begins with a cold one.
 *
 * limit: 400 s */
enum { SCALE = 24 };
#include "t_load_share.h"

#include "t_gpu_rank.h"

/* ---- measuring ---- */

enum { TURNS = 3 }; /* from a disk, one */

/* Of one load by one rank. */
typedef struct {
    double seconds, in_finish;
    uint64_t read, sum;
    sl_loader_sharing shared;
} timed;

static struct {
    const char *folder, *stem;
    bool cold;
    int turns;
    timed (*at)[TURNS + 1][2]; /* [rank][turn][shared] */
} bench;

static int by_place(const void *a, const void *b)
{
    const sl_st_entry *x = *(const sl_st_entry *const *)a, *y = *(const sl_st_entry *const *)b;
    return x->shard != y->shard ? x->shard - y->shard
                                : ((uintptr_t)x->t.data > (uintptr_t)y->t.data) -
                                      ((uintptr_t)x->t.data < (uintptr_t)y->t.data);
}

/* All float tensors in the order of the files, as a network's load function asks for them. */
static const char *ask_for_all(t_rank *r, sl_loader *l, sl_tensor **w, int *n)
{
    sl_err err = {0};
    sl_st *st = NULL;
    RANK_OK(!sl_st_open_dir(&st, bench.folder, bench.stem, &err), "%.200s", err.msg);
    const int all = sl_st_size(st);
    const sl_st_entry **order = malloc(((size_t)all + 1) * sizeof *order);
    *w = calloc((size_t)all + 1, sizeof **w);
    *n = 0;
    for (int i = 0; i < all; i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        if (e->t.rank && (e->t.dtype == SL_F32 || e->t.dtype == SL_BF16 || e->t.dtype == SL_F16))
            order[(*n)++] = e;
    }
    qsort(order, (size_t)*n, sizeof *order, by_place);
    for (int i = 0; i < *n; i++)
        sl_weight(l, &(*w)[i],
                  order[i]->t.dtype == SL_F32 ? SL_W_FLOAT
                  : order[i]->t.rank == 1     ? SL_W_VECTOR
                                              : SL_W_MATRIX,
                  order[i]->t.rank, order[i]->t.shape, "%s", order[i]->name);
    free(order);
    sl_st_close(&st);
    return NULL;
}

/* Of all bytes on the device. */
static uint64_t sum_of(t_rank *r, const sl_tensor *w, int n)
{
    uint64_t sum = 14695981039346656037u;
    for (int i = 0; i < n && sl_ok(r->ctx); i++) {
        const size_t bytes = sl_bytes(&w[i]);
        uint64_t *host = calloc(bytes / 8 + 1, 8);
        sl_download(r->ctx, host, &w[i]);
        for (size_t k = 0; k < bytes / 8 + 1; k++)
            sum = (sum ^ host[k]) * 1099511628211u, sum ^= sum >> 32;
        free(host);
    }
    return sum;
}

/* Out of the page cache; what is dirty is written first. */
static void forget_files(void)
{
    sl_st *st = NULL;
    char paths[64][512];
    int n = 0;
    if (!sl_st_open_dir(&st, bench.folder, bench.stem, NULL))
        for (; n < sl_st_shards(st) && n < 64; n++)
            snprintf(paths[n], sizeof paths[n], "%s", sl_st_path(st, n));
    sl_st_close(&st); /* what is mapped stays */
    sync();
    for (int i = 0; i < n; i++) {
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

static const char *load_timed(t_rank *r, const sl_team *team, bool share, bool sum, timed *out)
{
    sl_loader *l = NULL;
    sl_tensor *w = NULL;
    sl_err err = {0};
    int n;
    if (bench.cold && r->rank == 0) forget_files();
    sl_comm_barrier(r->ctx, r->comm, SL_LANE_TEAM);
    RANK_CTX(r);
    const int64_t t0 = sl_now_ns();
    RANK_OK(!sl_loader_file(&l, r->ctx, bench.folder, bench.stem, "bench", &err), "%.200s",
            err.msg);
    const char *bad = ask_for_all(r, l, &w, &n);
    if (bad) return bad;
    if (share) sl_loader_share(l, r->comm, SL_LANE_TEAM, team);
    RANK_OK(!sl_loader_finish(l, &err), "%.200s", err.msg);
    out->seconds = (double)(sl_now_ns() - t0) * 1e-9;
    out->shared = sl_loader_shared(l);
    sl_loader_figures(l, &out->read, &out->in_finish);
    if (sum) out->sum = sum_of(r, w, n);
    sl_loader_close(&l);
    free(w);
    RANK_CTX(r);
    return NULL;
}

static const char *rank_bench(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    const char *bad = NULL;
    sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &team);
    for (int turn = 0; turn <= bench.turns && !bad; turn++) /* the first warms up, and is summed */
        for (int share = 0; share < 2 && !bad; share++)
            bad = load_timed(r, &team, share, !turn, &bench.at[r->rank][turn][share]);
    sl_comm_barrier(r->ctx, r->comm, SL_LANE_TEAM);
    return bad;
}

static int ranks_wanted = 2;

static void shared_beside_all(void **state)
{
    double best[2] = {1e9, 1e9}, sum[2] = {0};
    const int ranks = ranks_wanted;
    (void)state;
    t_ranks(ranks, rank_bench, 200000, NULL, -1);
    const double gb = (double)bench.at[0][1][0].read * 1e-9;
    printf("%s: %.2f GB of files, %d ranks, window %zu MB, %s\n", bench.folder, gb, ranks,
           t_body.window >> 20, bench.cold ? "from the disk" : "from the page cache");
    for (int turn = 0; turn <= bench.turns; turn++)
        for (int share = 0; share < 2; share++) {
            double slowest = 0;
            for (int k = 0; k < ranks; k++)
                if (bench.at[k][turn][share].seconds > slowest)
                    slowest = bench.at[k][turn][share].seconds;
            printf("  %s %s: %.3f s", turn ? "turn" : "warm", share ? "shared  " : "each all",
                   slowest);
            for (int k = 0; k < ranks; k++) {
                const timed *t = &bench.at[k][turn][share];
                printf("  rank %d %.3f s, %.3f before reading, %.2f GB read, %.2f from others, "
                       "%.3f s in rounds%s",
                       k, t->seconds, t->seconds - t->in_finish, (double)t->read * 1e-9,
                       (double)t->shared.received * 1e-9, (double)t->shared.waited_ns * 1e-9,
                       t->shared.ended ? ", ENDED EARLY" : "");
            }
            printf("\n");
            if (turn && slowest < best[share]) best[share] = slowest;
            if (turn) sum[share] += slowest / bench.turns;
        }
    bool same = true;
    for (int k = 0; k < ranks; k++)
        for (int share = 0; share < 2; share++)
            same = same && bench.at[k][0][share].sum == bench.at[0][0][0].sum;
    printf("  shared / each all: %.3f of the means, %.3f of the best; %s\n", sum[1] / sum[0],
           best[1] / best[0], same ? "the same bytes" : "OTHER BYTES");
    assert_true(same);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_LOAD_SHARE_TESTS};
    const struct CMUnitTest measure[] = {cmocka_unit_test(shared_beside_all)};
    t_body = (t_comm_body){.ranks = 4};
    t_body_of = open_gpu;
    t_load_share_start();
    setlinebuf(stdout);
    if (argc < 2) return cmocka_run_group_tests(tests, NULL, NULL);
    if (argc < 3 || argc > 5 || strcmp(argv[1], "--bench")) {
        fprintf(stderr, "gpu_load_share: want --bench DIR [RANKS [WINDOW_MB]] or nothing\n");
        return 2;
    }
    if (argc > 3) ranks_wanted = atoi(argv[3]);
    if (ranks_wanted < 1 || ranks_wanted > SL_RANKS) ranks_wanted = 2;
    t_body.window = (size_t)(argc > 4 ? atoi(argv[4]) : 512) << 20;
    bench.folder = argv[2];
    bench.cold = getenv("SLUICE_BENCH_DISK") != NULL;
    bench.turns = bench.cold ? 1 : TURNS;
    t_body.limit_s = 400;
    bench.stem = "diffusion_pytorch_model";
    sl_st *st = NULL;
    if (sl_st_open_dir(&st, bench.folder, bench.stem, NULL)) bench.stem = "model";
    sl_st_close(&st);
    bench.at = mmap(NULL, SL_RANKS * sizeof *bench.at, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bench.at == MAP_FAILED) abort();
    return cmocka_run_group_tests(measure, NULL, NULL);
}
