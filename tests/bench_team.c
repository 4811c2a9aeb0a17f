/* bench_team.c - a forward of the 14B transformer by one rank and by teams: seconds,
 * efficiency, bytes exchanged. On GPUs, with random weights: bench_team cuda [RANKS...];
 * without an argument a small model's on the CPU. limit: 600 s */
#include "t_gpu_rank.h"

#include "graphs/wan_dit.h"

typedef struct {
    int width, height, frames, ranks, runs;
    double seconds[SL_RANKS], best[SL_RANKS];
    uint64_t sum[SL_RANKS]; /* of the bytes of v */
    sl_comm_stats stats[SL_RANKS];
    size_t window;
} figures;

static figures *shared;
static bool on_gpu;

static const sl_dit_config BIG = {.layers = 40,
                                  .heads = 40,
                                  .head_dim = 128,
                                  .dim = 5120,
                                  .ffn_dim = 13824,
                                  .in_channels = 36,
                                  .out_channels = 16,
                                  .text_dim = 4096,
                                  .freq_dim = 256,
                                  .image_dim = 1280,
                                  .added_kv_dim = 5120,
                                  .patch = {1, 2, 2},
                                  .rope_max = 1024,
                                  .eps = 1e-6f};

static sl_dit_config config(void)
{
    sl_dit_config c = BIG;
    if (!on_gpu) {
        c.layers = 2, c.heads = 8, c.head_dim = 64, c.dim = c.added_kv_dim = 512, c.ffn_dim = 1024;
        c.text_dim = 256, c.image_dim = 128;
    }
    return c;
}

static const char *open_body(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    if (!on_gpu) {
        *ops = &sl_ops_cpu;
        *body = &sl_comm_shm;
        return NULL;
    }
    return open_gpu(rank, ops, body);
}

static sl_tensor zeros(sl_ctx *ctx, sl_dtype dtype, int rank, const int64_t *shape)
{
    sl_tensor t = sl_view(NULL, dtype, rank, shape);
    t.data = ctx->ops->plan ? NULL : sl_device_alloc(ctx, sl_bytes(&t));
    if (!ctx->ops->plan) sl_zero(ctx, &t);
    return t;
}

/* One forward on ctx, which may only measure. */
static void forward(sl_ctx *ctx, const sl_dit *dit, const sl_dit_config *c,
                    const sl_dit_times *times, const sl_dit_rope *rope,
                    const sl_dit_context *context, const sl_dit_share *share, sl_tensor in[3])
{
    (void)c;
    const sl_dit_input input = {.latents = &in[0],
                                .condition = &in[1],
                                .times = times,
                                .rope = rope,
                                .context = context,
                                .share = share};
    sl_dit_forward(ctx, dit, &in[2], &input, NULL);
}

static const char *rank_bench(t_rank *r)
{
    static const double TIMES[] = {900};
    const sl_dit_config c = config();
    const int64_t t = (shared->frames - 1) / 4 + 1, h = shared->height / 8, w = shared->width / 8,
                  tokens = t * (h / 2) * (w / 2);
    sl_team team = {.size = r->ranks, .me = r->rank, .key = 1, .granule = r->ctx->ops->row_granule};
    sl_loader *loader;
    sl_dit_times times, plan_times;
    sl_dit_rope rope, plan_rope;
    sl_dit_context context, plan_context;
    sl_dit_share share, plan_share;
    sl_ctx plan, *ctx = r->ctx;
    sl_ops body = sl_ops_plan_of(ctx->ops);
    sl_err err = {0};
    for (int i = 0; i < r->ranks; i++) team.member[i] = i;
    RANK_OK(!sl_loader_random(&loader, ctx, 7, "dit", &err), "%.200s", err.msg);
    sl_dit *dit = sl_dit_new(&c, loader);
    RANK_OK(dit && !sl_loader_finish(loader, &err), "%.200s", err.msg);
    /* the arena */
    RANK_OK(!sl_ctx_open(&plan, &body, 0, &err), "%.200s", err.msg);
    const int64_t text_shape[] = {SL_TEXT_TOKENS, c.text_dim}, image_shape[] = {257, c.image_dim},
                  shapes[3][4] = {{16, t, h, w}, {20, t, h, w}, {16, t, h, w}};
    sl_tensor planned[3], in[3];
    for (int i = 0; i < 3; i++) planned[i] = zeros(&plan, SL_F32, 4, shapes[i]);
    sl_tensor text = zeros(&plan, sl_act(ctx), 2, text_shape),
              image = zeros(&plan, sl_act(ctx), 2, image_shape);
    sl_dit_times_make(&plan, dit, &plan_times, NULL, TIMES, 1);
    sl_dit_rope_make(&plan, dit, &plan_rope, NULL, (int)t, (int)h / 2, (int)w / 2);
    sl_dit_context_make(&plan, dit, &plan_context, NULL, &text, &image);
    sl_dit_share_make(&plan, dit, &plan_share, NULL, SL_LANE_SHARD, &team, tokens);
    forward(&plan, dit, &c, &plan_times, &plan_rope, &plan_context,
            r->ranks > 1 ? &plan_share : NULL, planned);
    RANK_OK(sl_ok(&plan), "%.200s", plan.err.msg);
    RANK_OK(!sl_ctx_reserve(ctx, plan.arena_peak, &err), "%.200s", err.msg);
    /* the tables and inputs */
    for (int i = 0; i < 3; i++) in[i] = zeros(ctx, SL_F32, 4, shapes[i]);
    text = zeros(ctx, sl_act(ctx), 2, text_shape), image = zeros(ctx, sl_act(ctx), 2, image_shape);
    float *noise = malloc(sl_bytes(&in[0]));
    for (int64_t i = 0; i < sl_count(&in[0]); i++) noise[i] = (float)((i * 7919) % 1000) / 500 - 1;
    sl_upload(ctx, &in[0], noise);
    sl_dit_times_make(ctx, dit, &times, sl_device_alloc(ctx, sl_dit_times_bytes(ctx, dit, 1)),
                      TIMES, 1);
    sl_dit_rope_make(ctx, dit, &rope,
                     sl_device_alloc(ctx, sl_dit_rope_bytes(dit, (int)t, (int)h / 2, (int)w / 2)),
                     (int)t, (int)h / 2, (int)w / 2);
    sl_dit_context_make(ctx, dit, &context,
                        sl_device_alloc(ctx, sl_dit_context_bytes(ctx, dit, 257)), &text, &image);
    sl_comm_begin(ctx, r->comm, SL_LANE_SHARD, &team);
    sl_dit_share_make(ctx, dit, &share, r->comm, SL_LANE_SHARD, &team, tokens);
    RANK_CTX(r);
    shared->best[r->rank] = 1e9;
    for (int i = 0; i <= shared->runs; i++) { /* the first warms up */
        sl_comm_barrier(ctx, r->comm, SL_LANE_SHARD);
        sl_comm_take_stats(r->comm);
        const int64_t t0 = sl_now_ns();
        forward(ctx, dit, &c, &times, &rope, &context, r->ranks > 1 ? &share : NULL, in);
        sl_comm_settle(ctx, r->comm);
        RANK_CTX(r);
        const double s = (double)(sl_now_ns() - t0) * 1e-9;
        shared->stats[r->rank] = sl_comm_take_stats(r->comm);
        if (i) shared->seconds[r->rank] += s / shared->runs;
        if (i && s < shared->best[r->rank]) shared->best[r->rank] = s;
    }
    sl_download(ctx, noise, &in[2]); /* as large as the latents */
    RANK_CTX(r);
    uint64_t sum = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < sl_bytes(&in[2]); i++)
        sum = (sum ^ ((const unsigned char *)noise)[i]) * 1099511628211u;
    shared->sum[r->rank] = sum;
    sl_comm_barrier(ctx, r->comm, SL_LANE_SHARD);
    return NULL;
}

/* Seconds of the slowest rank. */
static double measure(int ranks, int width, int height, int frames, int runs)
{
    double s = 0;
    const sl_dit_config c = config();
    const int64_t tokens = (int64_t)((frames - 1) / 4 + 1) * (height / 16) * (int64_t)(width / 16);
    memset(shared, 0, sizeof *shared);
    shared->width = width, shared->height = height, shared->frames = frames, shared->runs = runs;
    /* as sl_dit_share_bytes, before there is a network */
    t_body.window = (size_t)(tokens / ranks + 256) * (size_t)c.dim * 4 * (on_gpu ? 2 : 4) +
                    (size_t)tokens * (64 * 4 + 8) + ((size_t)8 << 20);
    t_ranks(ranks, rank_bench, 10000, NULL, -1);
    for (int i = 0; i < ranks; i++)
        if (shared->seconds[i] > s) s = shared->seconds[i];
    return s;
}

static void team_figures(void **state)
{
    static const int BIG_SIZES[][3] = {{832, 480, 81}, {1024, 576, 81}, {1280, 720, 81}},
                     SMALL[][3] = {{320, 192, 17}};
    static const int TEAMS[] = {2, 4, 8};
    const int sizes = on_gpu ? 3 : 1;
    sl_err err = {0};
    int devices = 2;
    (void)state;
    if (on_gpu) { /* asked in a child: ranks are forked before CUDA is */
        pid_t pid = fork();
        int status = 0;
        if (!pid) {
            const sl_plugin *p = sl_plugin_cuda(&err);
            _exit(p ? p->devices() : 0);
        }
        waitpid(pid, &status, 0);
        devices = WEXITSTATUS(status);
    }
    for (int i = 0; i < sizes; i++) {
        const int *s = on_gpu ? BIG_SIZES[i] : SMALL[i];
        const double one = measure(1, s[0], s[1], s[2], 3);
        const uint64_t alone = shared->sum[0];
        printf("%dx%dx%d  1 rank   %8.3f s\n", s[0], s[1], s[2], one);
        for (size_t k = 0; k < sizeof TEAMS / sizeof *TEAMS && TEAMS[k] <= devices; k++) {
            const double team = measure(TEAMS[k], s[0], s[1], s[2], 3);
            const sl_comm_stats *st = &shared->stats[0];
            bool same = true;
            for (int r = 0; r < TEAMS[k]; r++) same = same && shared->sum[r] == alone;
            printf("%dx%dx%d  %d ranks  %8.3f s  efficiency %5.2f %%  sent %.2f GB a rank in %llu "
                   "operations, %s\n",
                   s[0], s[1], s[2], TEAMS[k], team, 100 * one / team / TEAMS[k],
                   (double)st->sent_bytes * 1e-9, (unsigned long long)st->operations,
                   same ? "the same bytes" : "OTHER BYTES");
            fflush(stdout);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(team_figures)};
    on_gpu = argc > 1 && !strcmp(argv[1], "cuda");
    if (!on_gpu) setenv("OMP_NUM_THREADS", "1", 1);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    t_body = (t_comm_body){.open = open_body, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
