/* t_load_share.h - weights that ranks of a team read together: the bytes of a lone load,
 * with few and many rounds; members that die, stop, give up or have a bad file.
 *
 * What happens to a member happens at a given operation of comm: its body is wrapped. The
 * program that includes this names the table and body of a rank (t_body_of) and SCALE, by
 * which the checkpoint is larger. */
#ifndef T_LOAD_SHARE_H
#define T_LOAD_SHARE_H

#include "t_comm.h"

#include <sys/stat.h>

#include "common/safetensors.h"
#include "graphs/weights.h"
#include "kernels/comm_body.h"

/* In the order of the file. */
static const struct {
    const char *name;
    sl_weight_kind kind;
    sl_dtype stored;
    int rank;
    int64_t shape[5]; /* the first times SCALE */
    bool eight;       /* wanted in 8 bits */
} ASKED[] = {
    {"a.weight", SL_W_MATRIX, SL_BF16, 2, {700, 300}, false},
    {"a.bias", SL_W_VECTOR, SL_BF16, 1, {701}, false},
    {"b.weight", SL_W_MATRIX, SL_F32, 2, {133, 517}, false},
    {"b.bias", SL_W_VECTOR, SL_F32, 1, {3}, false},
    {"table", SL_W_FLOAT, SL_F32, 3, {1, 6, 1037}, false},
    {"half", SL_W_FLOAT, SL_F16, 2, {33, 129}, false},
    {"c.weight", SL_W_CONV, SL_F32, 5, {4, 3, 3, 3, 3}, false},
    {"one", SL_W_FLOAT, SL_BF16, 1, {1}, false},
    {"d.weight", SL_W_MATRIX_F32, SL_BF16, 2, {255, 257}, false},
    {"e.weight", SL_W_MATRIX, SL_F16, 2, {511, 511}, false},
    {"f.weight", SL_W_MATRIX, SL_BF16, 2, {257, 260}, true},
    {"g.weight", SL_W_MATRIX, SL_F16, 2, {63, 130}, true},
};
enum { ASKED_COUNT = sizeof ASKED / sizeof *ASKED };

typedef enum { LIVES, DIES, STOPS, CUTS, GIVES_UP, MISSES } fate;

/* Of the running test; ranks inherit it. */
static struct {
    char dir[256];
    bool shuffled; /* asked for in another order than the file's */
    fate fate;     /* of rank 1, */
    int at;        /* at this operation */
} given;

/* What ranks tell. */
typedef struct {
    sl_loader_sharing shared;
    uint64_t read;
} told;

static told *tell;

static const char *(*t_body_of)(int rank, const sl_ops **ops, const sl_comm_body **body);
static const sl_comm_body *true_body;
static sl_comm_body wrapped;
static int exchanges, this_rank;
static volatile int given_up;

/* ---- fates ---- */

static void cut_short(int rank)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%d/m.safetensors", given.dir, rank);
    if (truncate(path, 200000 * SCALE)) abort();
}

static void meet_fate(void)
{
    if (given.fate == DIES) kill(getpid(), SIGKILL);
    if (given.fate == STOPS) kill(getpid(), SIGSTOP);
    if (given.fate == CUTS) cut_short(1);
    if (given.fate == GIVES_UP) given_up = 1;
}

static void wrapped_exchange(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int n,
                             const sl_comm_part parts[])
{
    if (++exchanges == given.at && this_rank == 1) meet_fate();
    true_body->exchange(ctx, c, lane, value, n, parts);
}

static const char *open_wrapped(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    const char *bad = t_body_of(rank, ops, body);
    if (bad) return bad;
    true_body = *body;
    wrapped = *true_body;
    wrapped.exchange = wrapped_exchange;
    *body = &wrapped;
    this_rank = rank;
    return NULL;
}

/* ---- a checkpoint ---- */

static void write_checkpoint(float odd)
{
    const char *names[ASKED_COUNT];
    sl_tensor t[ASKED_COUNT];
    char path[300];
    sl_err err = {0};
    for (int i = 0; i < ASKED_COUNT; i++) {
        int64_t shape[5];
        memcpy(shape, ASKED[i].shape, sizeof shape);
        shape[0] *= SCALE;
        names[i] = ASKED[i].name;
        t[i] = sl_view(NULL, ASKED[i].stored, ASKED[i].rank, shape);
        const int64_t n = sl_count(&t[i]);
        float *x = malloc((size_t)n * sizeof *x);
        t[i].data = malloc(sl_bytes(&t[i]));
        assert_true(x && t[i].data);
        t_fill(x, n, (uint64_t)i + 1);
        if (!strcmp(ASKED[i].name, "half")) x[130] = odd;
        T_OK(sl_from_floats(t[i].data, t[i].dtype, x, n, &err));
        free(x);
    }
    snprintf(path, sizeof path, "%s/m.safetensors", given.dir);
    T_OK(sl_st_save(path, ASKED_COUNT, names, t, &err));
    for (int i = 0; i < ASKED_COUNT; i++) free(t[i].data);
}

/* A folder of its own for each rank, of the same bytes; rank 1's as old as the others', or not. */
static void copy_checkpoint(int ranks, bool one_is_newer)
{
    char line[1200];
    for (int i = 0; i < ranks; i++) {
        snprintf(line, sizeof line, "mkdir '%s/%d' && cp -p '%s/m.safetensors' '%s/%d/'%s%s%s",
                 given.dir, i, given.dir, given.dir, i, i == 1 && one_is_newer ? " && touch '" : "",
                 i == 1 && one_is_newer ? given.dir : "",
                 i == 1 && one_is_newer ? "/1/m.safetensors'" : "");
        if (system(line)) fail_msg("%s", line);
    }
}

static uint64_t checkpoint_bytes(void)
{
    uint64_t bytes = 0;
    for (int i = 0; i < ASKED_COUNT; i++) {
        int64_t n = SCALE;
        for (int d = 0; d < ASKED[i].rank; d++) n *= ASKED[i].shape[d];
        bytes += (uint64_t)n * sl_dtype_size(ASKED[i].stored);
    }
    return bytes;
}

static int open_test(void **state)
{
    (void)state;
    memset(&given, 0, sizeof given);
    snprintf(given.dir, sizeof given.dir, "%s", t_tmpdir());
    exchanges = 0;
    t_body.window = (size_t)1 << 20;
    write_checkpoint(0.5f);
    memset(tell, 0, SL_RANKS * sizeof *tell);
    return 0;
}

static int close_test(void **state)
{
    (void)state;
    t_rmdir(given.dir);
    return 0;
}

/* ---- a rank ---- */

typedef struct {
    sl_loader *loader;
    sl_tensor w[ASKED_COUNT];
    sl_eight e[ASKED_COUNT];
    void *bytes[ASKED_COUNT]; /* copied to the host */
    size_t size[ASKED_COUNT];
} weights;

/* The i-th to be asked for. */
static int asked_at(int i)
{
    return given.shuffled ? (i * 7 + 3) % ASKED_COUNT : i;
}

static void ask(weights *w, int from, int to)
{
    for (int k = from; k < to; k++) {
        const int i = asked_at(k);
        int64_t shape[5];
        memcpy(shape, ASKED[i].shape, sizeof shape);
        shape[0] *= SCALE;
        if (ASKED[i].eight) {
            sl_weight_eight(w->loader, &w->e[i], shape[0], shape[1], "%s", ASKED[i].name);
            continue;
        }
        sl_weight(w->loader, &w->w[i], ASKED[i].kind, ASKED[i].rank, shape, "%s", ASKED[i].name);
    }
}

static const char *fetch(t_rank *r, weights *w)
{
    for (int i = 0; i < ASKED_COUNT; i++) {
        sl_tensor t = w->w[i];
        if (ASKED[i].eight) { /* the codes, then their scales */
            const sl_eight *e = &w->e[i];
            RANK_OK(e->codes.data && e->scale.data, "%s has no data", ASKED[i].name);
            w->size[i] = sl_bytes(&e->codes) + sl_bytes(&e->scale);
            w->bytes[i] = malloc(w->size[i]);
            sl_download(r->ctx, w->bytes[i], &e->codes);
            sl_download(r->ctx, (char *)w->bytes[i] + sl_bytes(&e->codes), &e->scale);
            continue;
        }
        RANK_OK(t.data, "%s has no data", ASKED[i].name);
        w->size[i] = ASKED[i].kind == SL_W_CONV ? r->ctx->ops->packed_conv_bytes(r->ctx, t.shape)
                                                : sl_bytes(&t);
        w->bytes[i] = malloc(w->size[i]);
        t = sl_view1(t.data, SL_U8, (int64_t)w->size[i]);
        sl_download(r->ctx, w->bytes[i], &t);
    }
    RANK_CTX(r);
    return NULL;
}

static void drop(weights *w)
{
    for (int i = 0; i < ASKED_COUNT; i++) free(w->bytes[i]);
    sl_loader_close(&w->loader);
    memset(w, 0, sizeof *w);
}

/* The rank's folder: its own if it has one. */
static const char *folder_of(int rank)
{
    static char path[300];
    snprintf(path, sizeof path, "%s/%d", given.dir, rank);
    return access(path, R_OK) ? given.dir : path;
}

static const char *open_weights(t_rank *r, weights *w)
{
    sl_err err = {0};
    memset(w, 0, sizeof *w);
    RANK_OK(!sl_loader_file(&w->loader, r->ctx, folder_of(r->rank), "m", "test", &err), "%.200s",
            err.msg);
    return NULL;
}

static sl_team all_of(const t_rank *r, uint32_t key)
{
    int all[SL_RANKS];
    for (int i = 0; i < r->ranks; i++) all[i] = i;
    return team_of(r, r->ranks, all, key);
}

/* What this rank loads by itself. */
static const char *load_alone(t_rank *r, weights *w)
{
    sl_err err = {0};
    const char *bad = open_weights(r, w);
    if (bad) return bad;
    ask(w, 0, ASKED_COUNT);
    RANK_OK(!sl_loader_finish(w->loader, &err), "%.200s", err.msg);
    return fetch(r, w);
}

/* The same by the team, in two calls of sl_loader_finish. */
static sl_code load_shared(t_rank *r, weights *w, const sl_team *team, sl_err *err)
{
    const int some = 4;
    double seconds;
    sl_loader_share(w->loader, r->comm, SL_LANE_TEAM, team);
    ask(w, 0, some);
    sl_code rc = sl_loader_finish(w->loader, err);
    if (!rc) ask(w, some, ASKED_COUNT);
    if (!rc) rc = sl_loader_finish(w->loader, err);
    tell[r->rank].shared = sl_loader_shared(w->loader);
    sl_loader_figures(w->loader, &tell[r->rank].read, &seconds);
    return rc;
}

static const char *compare_weights(t_rank *r, const weights *found, const weights *want)
{
    for (int i = 0; i < ASKED_COUNT; i++) {
        const unsigned char *f = found->bytes[i], *w = want->bytes[i];
        size_t at = 0;
        RANK_OK(found->size[i] == want->size[i], "%s: %zu bytes, want %zu", ASKED[i].name,
                found->size[i], want->size[i]);
        while (at < want->size[i] && f[at] == w[at]) at++;
        RANK_OK(at == want->size[i], "%s: byte %zu of %zu is 0x%x, want 0x%x", ASKED[i].name, at,
                want->size[i], f[at], w[at]);
    }
    return NULL;
}

/* Shared by the team: the bytes of `alone`. */
static const char *both(t_rank *r, const sl_team *team, weights *alone)
{
    weights w;
    sl_err err = {0};
    const char *bad = open_weights(r, &w);
    if (bad) return bad;
    RANK_OK(!load_shared(r, &w, team, &err), "rank %d: %.200s", r->rank, err.msg);
    if (!(bad = fetch(r, &w))) bad = compare_weights(r, &w, alone);
    drop(&w);
    return bad;
}

/* ---- tests ---- */

static inline const char *rank_shares(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    weights alone;
    const char *bad = load_alone(r, &alone);
    if (!bad) bad = both(r, &team, &alone);
    drop(&alone);
    return bad;
}

static inline void every_team_loads_the_same_bytes(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 4 && ranks <= t_body.ranks; ranks++)
        for (int i = 0; i < 6; i++) {
            const size_t windows[] = {(size_t)ranks * 65536, 300001, (size_t)16 << 20};
            uint64_t read = 0, received = 0, sent = 0;
            t_body.window = windows[i % 3];
            given.shuffled = i > 2;
            t_ranks(ranks, rank_shares, 20000, NULL, -1);
            for (int k = 0; k < ranks; k++) {
                const told *t = &tell[k];
                read += t->read, received += t->shared.received, sent += t->shared.sent;
                assert_int_equal(t->shared.ranks, ranks);
                assert_false(t->shared.ended);
                /* the convolution is read by all, as are some grains more or less */
                assert_in_range(t->read, checkpoint_bytes() / (uint64_t)ranks - 8192 * SCALE,
                                checkpoint_bytes() / (uint64_t)ranks + 8192 * SCALE);
            }
            const uint64_t conv = (uint64_t)4 * SCALE * 81 * 4;
            assert_int_equal(read, checkpoint_bytes() + conv * (uint64_t)(ranks - 1));
            assert_int_equal(received, sent);
            assert_true(ranks == 1 ? !received : received > 0);
        }
}

/* The team loses rank 1; rank 1 says how it was. */
static inline const char *rank_loses_one(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    const int rest[] = {0, 2};
    const sl_team left = team_of(r, 2, rest, 2);
    weights alone, w;
    sl_err err = {0};
    const char *bad = load_alone(r, &alone);
    if (!bad) bad = open_weights(r, &w);
    if (bad) return bad;
    r->ctx->cancel = &given_up;
    if (r->rank == 1 && given.fate == MISSES)
        sl_weight(w.loader, &w.w[0], SL_W_VECTOR, 1, (int64_t[]){7}, "none");
    sl_code rc = load_shared(r, &w, &team, &err);
    if (r->rank == 1) {
        const sl_code want = given.fate == CUTS     ? SL_FORMAT
                             : given.fate == MISSES ? SL_SHAPE
                                                    : SL_CANCELLED;
        RANK_OK(rc == want, "rank 1 ended with %s %.150s", sl_code_name(rc), err.msg);
        if (want == SL_FORMAT)
            RANK_OK(strstr(err.msg, "cut short") && strstr(err.msg, "test: "), "it says %.200s",
                    err.msg);
        return NULL;
    }
    RANK_OK(!rc, "rank %d: %.200s", r->rank, err.msg);
    if ((bad = fetch(r, &w)) || (bad = compare_weights(r, &w, &alone))) return bad;
    atomic_fetch_add(&t_comm->flag, 1);
    if (given.fate == STOPS) RANK_OK(t_until(&t_comm->flag, 3), "the test went away");
    drop(&w);
    /* the group stays */
    const told before = tell[r->rank];
    if ((bad = both(r, &left, &alone))) return bad;
    RANK_OK(!tell[r->rank].shared.ended, "the next attempt ended, too");
    tell[r->rank] = before;
    return NULL;
}

static void kill_the_stopped(void)
{
    t_until(&t_comm->flag, 2);
    kill(atomic_load(&t_comm->pid[1]), SIGKILL);
    atomic_fetch_add(&t_comm->flag, 1);
}

/* received: something came before the end. */
static void lose_one(fate how, int at, bool received)
{
    if (t_body.ranks < 3) skip();
    t_body.window = 3 * (size_t)65536 * SCALE;
    given.fate = how;
    given.at = at;
    t_ranks(3, rank_loses_one, how == STOPS ? 2500 : 20000, how == STOPS ? kill_the_stopped : NULL,
            how == DIES || how == STOPS ? 1 : -1);
    for (int k = 0; k < 3; k += 2) {
        assert_true(tell[k].shared.ended);
        if (received) assert_true(tell[k].shared.received > 0);
        assert_true(tell[k].read > checkpoint_bytes() / 3 + checkpoint_bytes() / 12);
    }
}

static inline void a_killed_rank_fails_nobody_else(void **state)
{
    static const int AT[] = {1, 4, 5, 9, 30};
    (void)state;
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) lose_one(DIES, AT[i], AT[i] > 10);
}

static inline void a_stopped_rank_fails_nobody_else(void **state)
{
    (void)state;
    lose_one(STOPS, 30, true);
}

static inline void a_cancelled_rank_fails_nobody_else(void **state)
{
    (void)state;
    lose_one(GIVES_UP, 30, true);
}

static inline void a_rank_that_misses_a_tensor_fails_nobody_else(void **state)
{
    (void)state;
    lose_one(MISSES, 0, false);
}

static inline void a_file_cut_short_fails_its_rank_alone(void **state)
{
    (void)state;
    copy_checkpoint(3, false);
    lose_one(CUTS, 1, false);
}

static inline const char *rank_finds_it_cut(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    weights w;
    sl_err err = {0};
    const char *bad = open_weights(r, &w);
    if (bad) return bad;
    cut_short(r->rank);
    sl_code rc = load_shared(r, &w, &team, &err);
    RANK_OK(rc == SL_FORMAT && strstr(err.msg, "cut short"), "rank %d: %s %.200s", r->rank,
            sl_code_name(rc), err.msg);
    sl_loader_close(&w.loader);
    return NULL;
}

static inline void a_file_cut_short_for_all_fails_all(void **state)
{
    const int ranks = t_body.ranks < 3 ? 2 : 3;
    (void)state;
    copy_checkpoint(ranks, false);
    t_ranks(ranks, rank_finds_it_cut, 20000, NULL, -1);
}

static inline void ranks_with_other_files_do_not_share(void **state)
{
    (void)state;
    copy_checkpoint(2, true);
    t_ranks(2, rank_shares, 20000, NULL, -1);
    for (int k = 0; k < 2; k++) {
        assert_true(tell[k].shared.ended);
        assert_int_equal(tell[k].shared.received, 0);
        assert_int_equal(tell[k].read, checkpoint_bytes());
    }
}

static inline const char *rank_is_refused(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    weights w;
    sl_err err = {0};
    const char *bad = open_weights(r, &w);
    if (bad) return bad;
    sl_code rc = load_shared(r, &w, &team, &err);
    RANK_OK(rc == SL_ARG && !strcmp(err.msg, "test: loading shared by 2 ranks: a window of 131071 "
                                             "bytes, want at least 131072"),
            "%s %.200s", sl_code_name(rc), err.msg);
    sl_loader_close(&w.loader);
    return NULL;
}

static inline void a_window_that_is_too_small_is_refused(void **state)
{
    (void)state;
    t_body.window = 131071;
    t_ranks(2, rank_is_refused, 20000, NULL, -1);
}

static inline const char *rank_finds_nan(t_rank *r)
{
    const sl_team team = all_of(r, 1);
    weights w;
    sl_err err = {0};
    const char *bad = open_weights(r, &w);
    if (bad) return bad;
    RANK_OK(!load_shared(r, &w, &team, &err), "%.200s", err.msg);
    sl_code rc = sl_loader_check_finite(w.loader, &err);
    RANK_OK(rc == SL_NUMERIC && !strcmp(err.msg, "test: half has NaN at [1, 1]"), "%s %.200s",
            sl_code_name(rc), err.msg);
    sl_loader_close(&w.loader);
    return NULL;
}

static inline void numbers_that_are_none_are_named_by_all(void **state)
{
    (void)state;
    write_checkpoint(NAN);
    t_ranks(2, rank_finds_nan, 20000, NULL, -1);
}

/* The figures of ranks; once, before the tests. */
static inline void t_load_share_start(void)
{
    tell = mmap(NULL, SL_RANKS * sizeof *tell, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                -1, 0);
    if (tell == MAP_FAILED) abort();
    t_body.open = open_wrapped;
}

#define T_SHARED(f) cmocka_unit_test_setup_teardown(f, open_test, close_test)
#define T_LOAD_SHARE_TESTS                                                                         \
    T_SHARED(every_team_loads_the_same_bytes), T_SHARED(a_killed_rank_fails_nobody_else),          \
        T_SHARED(a_stopped_rank_fails_nobody_else), T_SHARED(a_cancelled_rank_fails_nobody_else),  \
        T_SHARED(a_rank_that_misses_a_tensor_fails_nobody_else),                                   \
        T_SHARED(a_file_cut_short_fails_its_rank_alone),                                           \
        T_SHARED(a_file_cut_short_for_all_fails_all),                                              \
        T_SHARED(ranks_with_other_files_do_not_share),                                             \
        T_SHARED(a_window_that_is_too_small_is_refused),                                           \
        T_SHARED(numbers_that_are_none_are_named_by_all)

#endif
