/* t_dit_share.h - one forward shared by a team: 1, 2, 4 and 8 ranks give the same bytes
 * and the same decisions of the cache, with tokens that divide by the ranks and that do
 * not, in equal shares and in others that change from step to step, and on the CPU with one thread
 * or two.
 *
 * The model is random, small, of 8 heads, with text and image. The program that includes
 * this names the body and HEAD, the width of a head. */
#ifndef T_DIT_SHARE_H
#define T_DIT_SHARE_H

#include "t_comm.h"

#include "graphs/wan_dit.h"

enum {
    STEPS = 4,
    FEW_STEPS = 2,
    T = 3,
    IMAGE_TOKENS = 257,
    SIDE = 38 /* latents are at most as large */
};

static const sl_dit_config CONFIG = {.layers = 2,
                                     .heads = 8,
                                     .head_dim = HEAD,
                                     .dim = 8 * HEAD,
                                     .ffn_dim = 320,
                                     .in_channels = 36,
                                     .out_channels = 16,
                                     .text_dim = 64,
                                     .freq_dim = 32,
                                     .image_dim = 48,
                                     .added_kv_dim = 8 * HEAD,
                                     .patch = {1, 2, 2},
                                     .rope_max = 64,
                                     .eps = 1e-6f};

/* What a test gives its ranks, and what they give back. */
typedef struct {
    int h, w;     /* latents */
    int turn;     /* of the teams of one test */
    int steps;    /* FEW_STEPS where none differs from the others by shares or by the cache */
    int kept;     /* latent frames with a time of their own */
    int granules; /* most rows at once, in granules; 0: the device's */
    bool uneven;  /* shares are not equal, and others in each step */
    float threshold;
    sl_precision precision;
    float v[SL_RANKS][STEPS][16 * T * SIDE * SIDE];
    sl_fbcache_report report[SL_RANKS][STEPS];
} shared;

static shared *given;

typedef struct {
    sl_loader *loader;
    sl_dit *dit;
    sl_dit_times times;
    sl_dit_rope rope;
    sl_dit_context context;
    sl_fbcache cache;
    float *latents, *condition, *text, *image;
} net;

static float *numbers(int64_t n, unsigned seed)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; x && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) / 8388608.0f - 1;
    }
    return x;
}

/* On ctx's device, for as long as the process lives. */
static void *memory(sl_ctx *ctx, size_t bytes)
{
    return sl_device_alloc(ctx, bytes);
}

/* Numbers as a tensor on the device, of the dtype of activations if `act`. */
static sl_tensor tensor(sl_ctx *ctx, const float *x, bool act, int rank, const int64_t *shape)
{
    const sl_dtype type = act ? sl_act(ctx) : SL_F32;
    sl_tensor t = sl_view(NULL, type, rank, shape);
    sl_err err = {0};
    void *host = malloc(sl_bytes(&t) + 1);
    t.data = memory(ctx, sl_bytes(&t));
    if (sl_from_floats(host, type, x, sl_count(&t), &err))
        sl_ctx_fail(ctx, err.code, "%s", err.msg);
    sl_upload(ctx, &t, host);
    sl_sync(ctx);
    free(host);
    return t;
}

/* The network and all tables of one job; memory goes with the process. */
static const char *open_net(t_rank *r, net *n, int64_t rows)
{
    static const double STEP_TIMES[STEPS + 1] = {1000, 900, 640, 250, 0};
    const sl_fbcache_rules rules = {.threshold = given->threshold};
    sl_dit_config config = CONFIG;
    sl_ctx *ctx = r->ctx;
    sl_err err = {0};
    config.precision.is = given->precision, config.precision.attends_to = STEPS;
    RANK_OK(!sl_loader_random(&n->loader, ctx, 7, "dit", &err), "%.200s", err.msg);
    RANK_OK((n->dit = sl_dit_new(&config, n->loader)), "no network");
    if (ctx->ops->rows_at_once) /* a GPU takes all at once */
        sl_dit_set_rows(n->dit, (int64_t)given->granules * ctx->ops->row_granule);
    RANK_OK(!sl_loader_finish(n->loader, &err), "%.200s", err.msg);
    sl_dit_times_make(ctx, n->dit, &n->times,
                      memory(ctx, sl_dit_times_bytes(ctx, n->dit, STEPS + 1)), STEP_TIMES,
                      STEPS + 1);
    sl_dit_rope_make(ctx, n->dit, &n->rope,
                     memory(ctx, sl_dit_rope_bytes(n->dit, T, given->h / 2, given->w / 2)), T,
                     given->h / 2, given->w / 2);
    n->text = numbers(SL_TEXT_TOKENS * CONFIG.text_dim, 3);
    n->image = numbers(IMAGE_TOKENS * CONFIG.image_dim, 4);
    sl_tensor text = tensor(ctx, n->text, true, 2, (int64_t[]){SL_TEXT_TOKENS, CONFIG.text_dim}),
              image = tensor(ctx, n->image, true, 2, (int64_t[]){IMAGE_TOKENS, CONFIG.image_dim});
    sl_dit_context_make(ctx, n->dit, &n->context,
                        memory(ctx, sl_dit_context_bytes(ctx, n->dit, IMAGE_TOKENS)), &text,
                        &image);
    sl_fbcache_init(ctx, &n->cache, &rules, memory(ctx, sl_fbcache_bytes(ctx, rows, CONFIG.dim)),
                    rows, CONFIG.dim);
    n->cache.steps = STEPS;
    n->latents = numbers(16 * T * (int64_t)given->h * given->w, 1);
    n->condition = numbers(20 * T * (int64_t)given->h * given->w, 2);
    RANK_CTX(r);
    return NULL;
}

static const char *rank_forwards(t_rank *r)
{
    const int64_t tokens = T * (int64_t)(given->h / 2) * (given->w / 2), h = given->h, w = given->w;
    net n = {0};
    sl_team team = {.size = r->ranks, .me = r->rank, .key = 1, .granule = r->ctx->ops->row_granule};
    sl_dit_share share;
    for (int i = 0; i < r->ranks; i++) team.member[i] = i;
    t_threads(1 + (r->rank + given->turn) % 2);
    if (given->uneven) t_shares(team.weight, r->ranks, 1);
    const char *bad = open_net(r, &n, sl_share_most(tokens, r->ranks, team.granule));
    if (bad) return bad;
    sl_fbcache_set_rows(&n.cache, sl_share_of(&team, tokens, r->rank).rows);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &team);
    sl_dit_share_make(r->ctx, n.dit, &share, r->comm, SL_LANE_SHARD, &team, tokens);
    RANK_CTX(r);
    const sl_tensor condition = tensor(r->ctx, n.condition, false, 4, (int64_t[]){20, T, h, w}),
                    latents = tensor(r->ctx, n.latents, false, 4, (int64_t[]){16, T, h, w}),
                    v = tensor(r->ctx, n.latents, false, 4, (int64_t[]){16, T, h, w});
    for (int step = 0; step < given->steps; step++) {
        const sl_dit_input in = {.latents = &latents,
                                 .condition = &condition,
                                 .times = &n.times,
                                 .step = step,
                                 .kept_frames = given->kept,
                                 .kept_step = STEPS,
                                 .rope = &n.rope,
                                 .context = &n.context,
                                 .cache = &n.cache,
                                 .share = r->ranks > 1 ? &share : NULL};
        n.cache.step = step;
        if (given->uneven && step) {
            sl_comm_barrier(r->ctx, r->comm, SL_LANE_SHARD);
            t_shares(team.weight, r->ranks, (step + 1) % T_SHARES);
            sl_dit_share_weigh(r->ctx, &share, team.weight, 1, (sl_fbcache *[]){&n.cache});
        }
        sl_upload(r->ctx, &latents, n.latents);
        sl_dit_forward(r->ctx, n.dit, &v, &in, &given->report[r->rank][step]);
        sl_comm_settle(r->ctx, r->comm);
        sl_download(r->ctx, given->v[r->rank][step], &v);
        RANK_CTX(r);
        /* the next step's start: all of it matters */
        for (int64_t i = 0; i < sl_count(&v); i++)
            n.latents[i] -= 0.2f * given->v[r->rank][step][i];
    }
    sl_comm_barrier(r->ctx, r->comm, SL_LANE_SHARD);
    return NULL;
}

/* All teams of a size and threshold against one rank alone, on one thread. */
static void same_bytes_by(int granules, sl_precision precision, int h, int w, int kept,
                          float threshold, bool some_hits, bool uneven)
{
    static const int TEAMS[] = {1, 1, 2, 4, 8};
    const size_t bytes = sizeof(float) * (size_t)(16 * T * h * w);
    shared *alone = malloc(sizeof *alone);
    int hits = 0;
    given = mmap(NULL, sizeof *given, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(given != MAP_FAILED && alone);
    given->h = h, given->w = w, given->kept = kept, given->threshold = threshold;
    given->precision = precision;
    given->granules = granules;
    given->uneven = uneven;
    given->steps = uneven || threshold > 0 ? STEPS : FEW_STEPS;
    for (size_t t = 0; t < sizeof TEAMS / sizeof *TEAMS; t++) {
        given->turn = (int)t;
        t_ranks(TEAMS[t], rank_forwards, 20000, NULL, -1);
        if (!t) memcpy(alone, given, sizeof *alone);
        for (int r = 0; t && r < TEAMS[t]; r++)
            for (int s = 0; s < given->steps; s++) {
                const sl_fbcache_report *a = &given->report[r][s], *b = &alone->report[0][s];
                if (memcmp(given->v[r][s], alone->v[0][s], bytes))
                    fail_msg("%dx%d, team of %d, rank %d: step %d has other bytes than one rank", w,
                             h, TEAMS[t], r, s);
                if (memcmp(&a->metric, &b->metric, sizeof a->metric) || a->computed != b->computed)
                    fail_msg("%dx%d, team of %d, rank %d: step %d decided by %.9g, want %.9g", w, h,
                             TEAMS[t], r, s, (double)a->metric, (double)b->metric);
            }
    }
    for (int s = 0; s < given->steps; s++) hits += !alone->report[0][s].computed;
    if (some_hits) assert_in_range(hits, 1, STEPS - 1);
    munmap(given, sizeof *given);
    free(alone);
}

static void same_bytes_in(sl_precision precision, int h, int w, int kept, float threshold,
                          bool some_hits, bool uneven)
{
    same_bytes_by(0, precision, h, w, kept, threshold, some_hits, uneven);
}

static void same_bytes_of(int h, int w, int kept, float threshold, bool some_hits, bool uneven)
{
    same_bytes_in(SL_PRECISION_BF16, h, w, kept, threshold, some_hits, uneven);
}

static void same_bytes(int h, int w, int kept, float threshold, bool some_hits)
{
    same_bytes_of(h, w, kept, threshold, some_hits, false);
}

/* A row's scale is its own, and its codes are multiplied as whole rows wherever it is; attention's
 * scales are of heads. */
static void a_team_gives_the_bytes_of_one_in_8_bits(void **state)
{
    static const sl_precision IN[] = {SL_PRECISION_FP8_LINEAR, SL_PRECISION_FP8};
    (void)state;
    if (t_body.no_8_bits) skip();
    for (int i = 0; i < 2; i++) {
        same_bytes_in(IN[i], 24, 24, 0, 0, false, true);
        same_bytes_in(IN[i], 20, 32, 1, 0.35f, true, true);
    }
    same_bytes_in(SL_PRECISION_FP8_LINEAR, 30, 30, 0, 0, false, false); /* 675 */
}

static void a_team_gives_the_bytes_of_one(void **state)
{
    (void)state;
    same_bytes(16, 32, 0, 0, false); /* 384 tokens: 8 of the CPU's granules of 48 */
    same_bytes(24, 24, 0, 0, false); /* 432: 9, which divide by no team */
    same_bytes(22, 28, 0, 0, false); /* 462: 57 and 58 rows a rank of 8; not of whole granules */
    same_bytes(38, 38, 0, 0, false); /* 1,083: odd */
    same_bytes(6, 10, 0, 0, false);  /* 45: less than a granule; 5 and 6 rows a rank of 8 */
}

/* More rows than are multiplied at a time, by one and by each of a few. */
static void rows_are_taken_piece_by_piece(void **state)
{
    (void)state;
    same_bytes_by(1, SL_PRECISION_BF16, 22, 28, 0, 0, false, false);
    same_bytes_by(3, SL_PRECISION_BF16, 22, 28, 1, 0, false, true);
}

/* A rank's rows are of the kept frame, of the others, or of both: a frame of 154 and 15 tokens,
 * which granules and shares do not divide. */
static void a_kept_frame_is_shared_too(void **state)
{
    (void)state;
    same_bytes(22, 28, 1, 0, false);
    same_bytes(6, 10, 2, 0, false);
    same_bytes(20, 32, 1, 0.35f, true);
}

static void a_team_decides_as_one(void **state)
{
    (void)state;
    same_bytes(20, 32, 0, 0.35f, true); /* 480 tokens */
}

/* The last of a team of 8 has an eighth of an equal share, none where there are few tokens. */
static void shares_may_be_uneven(void **state)
{
    (void)state;
    same_bytes_of(22, 28, 0, 0, false, true);
    same_bytes_of(30, 30, 0, 0, false, true);
    same_bytes_of(6, 10, 0, 0, false, true);
    same_bytes_of(22, 28, 1, 0, false, true);
}

/* What the cache holds follows its rows. */
static void uneven_shares_decide_as_one(void **state)
{
    (void)state;
    same_bytes_of(20, 32, 0, 0.35f, true, true);
    same_bytes_of(20, 32, 1, 0.35f, true, true);
}

static const char *rank_seven(t_rank *r)
{
    net n = {0};
    sl_team team = {.size = 3, .me = 0, .key = 1, .granule = r->ctx->ops->row_granule};
    sl_dit_share share;
    sl_err err = {0};
    given->h = given->w = 8;
    const char *bad = open_net(r, &n, 48);
    if (bad) return bad;
    sl_dit_share_make(r->ctx, n.dit, &share, r->comm, SL_LANE_SHARD, &team, 48);
    RANK_OK(sl_ctx_error(r->ctx, &err) == SL_ARG, "a team of 3 was taken");
    RANK_OK(!strcmp(err.msg, "dit: a team of 3 for 8 heads, want one of 1, 2, 4, 8"), "%.200s",
            err.msg);
    team.size = 1;
    sl_dit_share_make(r->ctx, n.dit, &share, r->comm, SL_LANE_SHARD, &team, 1 << 20);
    RANK_OK(sl_ctx_error(r->ctx, &err) == SL_NOMEM, "a window was taken that is too small");
    return NULL;
}

static void heads_that_do_not_divide_are_refused(void **state)
{
    (void)state;
    given = mmap(NULL, sizeof *given, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    t_ranks(1, rank_seven, 20000, NULL, -1);
    munmap(given, sizeof *given);
}

#define T_DIT_SHARE_TESTS                                                                          \
    cmocka_unit_test(a_team_gives_the_bytes_of_one),                                               \
        cmocka_unit_test(rows_are_taken_piece_by_piece),                                           \
        cmocka_unit_test(a_team_gives_the_bytes_of_one_in_8_bits),                                 \
        cmocka_unit_test(a_team_decides_as_one), cmocka_unit_test(a_kept_frame_is_shared_too),     \
        cmocka_unit_test(shares_may_be_uneven), cmocka_unit_test(uneven_shares_decide_as_one),     \
        cmocka_unit_test(heads_that_do_not_divide_are_refused)

#endif
