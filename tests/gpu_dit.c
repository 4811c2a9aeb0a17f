/* gpu_dit.c - the diffusion transformer on the GPU, layer by layer, against the CPU body
 * in float32.
 *
 * How far bf16 may be away is not a guess: the CPU also runs with every activation
 * rounded to bf16 after each operation, which no bf16 run can do without. The GPU, which
 * rounds inside attention as well, may be twice as far off as that, and one rounding
 * more. Every layer is printed.
 * limit: 240 s */
#include "tests/t_hopper.h"
#include "tests/t_net.h"
#include "tests/t_rounding.h"

#include "graphs/wan_dit.h"
#include "kernels/plugin.h"

static const sl_plugin *gpu;
static sl_err err;

/* ---- what a run gave, layer by layer ---- */

typedef struct {
    char name[32];
    float *x; /* pieces of one name follow each other */
    int64_t n;
} layer;

typedef struct {
    layer layers[64];
    int count;
} record;

static void keep(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    record *r = user;
    const int64_t n = sl_count(t);
    int i = 0;
    while (i < r->count && strcmp(r->layers[i].name, name)) i++;
    if (i == 64) fail_msg("more than 64 taps");
    layer *l = &r->layers[i];
    if (i == r->count) snprintf(l->name, sizeof l->name, "%s", name), r->count++;
    void *raw = malloc(sl_bytes(t));
    l->x = realloc(l->x, (size_t)(l->n + n) * sizeof *l->x);
    if (!raw || !l->x) fail_msg("%s: no memory", name);
    sl_download(ctx, raw, t);
    T_OK(sl_to_floats(l->x + l->n, raw, t->dtype, n, &err));
    l->n += n;
    free(raw);
}

static void record_free(record *r)
{
    for (int i = 0; i < r->count; i++) free(r->layers[i].x);
    memset(r, 0, sizeof *r);
}

/* ---- a network on one device ---- */

enum { STEPS = 2, STEP = 1 };

typedef struct {
    sl_ctx ctx;
    sl_loader *loader;
    sl_dit *m;
    sl_dit_config c;
    int t, h, w, image_tokens; /* tokens; of the picture */
    int kept;                  /* frames with timestep 0 */
} net;

static sl_precision precision; /* of the running test's networks */

/* dir NULL: random weights for *config. */
static void net_open(net *n, const sl_ops *ops, const char *dir, const sl_dit_config *config)
{
    char path[1400];
    memset(n, 0, sizeof *n);
    if (dir) {
        char *json = t_text(t_join(path, sizeof path, dir, "config.json"));
        T_OK(sl_model_parse_dit(&n->c, json, strlen(json), path, &err));
        free(json);
    } else {
        assert_non_null(config);
        n->c = *config;
    }
    n->c.precision.is = precision, n->c.precision.attends_to = STEPS;
    T_OK(sl_ctx_open(&n->ctx, ops, 0, &err));
    if (dir)
        T_OK(sl_loader_file(&n->loader, &n->ctx, dir, "diffusion_pytorch_model", "transformer",
                            &err));
    else T_OK(sl_loader_random(&n->loader, &n->ctx, 7, "transformer", &err));
    n->m = sl_dit_new(&n->c, n->loader);
    assert_non_null(n->m);
    T_OK(sl_loader_finish(n->loader, &err));
}

static void net_close(net *n)
{
    sl_dit_free(&n->m);
    sl_loader_close(&n->loader);
    sl_ctx_close(&n->ctx);
}

/* Numbers that bf16 holds, the same on every device; in memory of the device. NULL data
 * while planning. */
static sl_tensor input(sl_ctx *ctx, sl_dtype dtype, int rank, const int64_t *shape, uint64_t seed)
{
    sl_tensor t = sl_view(NULL, dtype, rank, shape);
    if (ctx->ops->plan) return t;
    const int64_t n = sl_count(&t);
    float *x = malloc((size_t)n * sizeof *x);
    void *raw = malloc(sl_bytes(&t));
    if (!x || !raw) fail_msg("no memory");
    t_fill(x, n, seed);
    for (int64_t i = 0; i < n; i++) x[i] = sl_from_bf16(sl_to_bf16(1.7f * x[i]));
    T_OK(sl_from_floats(raw, dtype, x, n, &err));
    t.data = sl_device_alloc(ctx, sl_bytes(&t));
    if (t.data) sl_upload(ctx, &t, raw);
    sl_sync(ctx);
    free(x);
    free(raw);
    return t;
}

/* Tables, context, one forward on `ctx` (planning: shapes only). What was taken is given
 * back. */
static void forward_on(net *n, sl_ctx *ctx)
{
    static const double timesteps[STEPS + 1] = {999, 541, 0};
    const int extra = n->c.in_channels - n->c.out_channels;
    const bool real = !ctx->ops->plan;
    const int64_t latent[] = {n->c.out_channels, n->t, 2 * n->h, 2 * n->w},
                  condition[] = {extra, n->t, 2 * n->h, 2 * n->w};
    const int64_t prompt[] = {SL_TEXT_TOKENS, n->c.text_dim},
                  picture[] = {n->image_tokens, n->c.image_dim};
    void *memory[3] = {NULL};
    sl_tensor x = input(ctx, SL_F32, 4, latent, 1), y = {0}, image = {0},
              v = sl_view(NULL, sl_act(ctx), 4, latent);
    sl_tensor text = input(ctx, sl_act(ctx), 2, prompt, 3);
    if (extra) y = input(ctx, SL_F32, 4, condition, 2);
    if (n->c.image_dim) image = input(ctx, sl_act(ctx), 2, picture, 4);
    sl_dit_times times;
    sl_dit_rope rope;
    sl_dit_context context;
#define MEMORY(i, bytes) (real ? (memory[i] = sl_device_alloc(ctx, bytes)) : NULL)
    sl_dit_times_make(ctx, n->m, &times, MEMORY(0, sl_dit_times_bytes(ctx, n->m, STEPS + 1)),
                      timesteps, STEPS + 1);
    sl_dit_rope_make(ctx, n->m, &rope, MEMORY(1, sl_dit_rope_bytes(n->m, n->t, n->h, n->w)), n->t,
                     n->h, n->w);
    sl_dit_context_make(ctx, n->m, &context,
                        MEMORY(2, sl_dit_context_bytes(ctx, n->m, n->image_tokens)), &text,
                        image.rank ? &image : NULL);
#undef MEMORY
    if (real) v.data = sl_device_alloc(ctx, sl_bytes(&v));
    const sl_dit_input in = {.latents = &x,
                             .condition = extra ? &y : NULL,
                             .times = &times,
                             .step = STEP,
                             .kept_frames = n->kept,
                             .kept_step = STEPS,
                             .rope = &rope,
                             .context = &context};
    sl_dit_forward(ctx, n->m, &v, &in, NULL);
    sl_tap(ctx, "v", &v);
    void *all[] = {x.data, y.data, text.data, image.data, v.data, memory[0], memory[1], memory[2]};
    for (size_t i = 0; real && i < sizeof all / sizeof *all; i++) sl_device_free(ctx, all[i]);
}

/* Run on the net's device, with `ops` (NULL: its own), and record. */
static void run(net *n, const sl_ops *ops, record *r)
{
    const sl_ops *own = n->ctx.ops;
    sl_ops body = sl_ops_plan_of(own);
    sl_ctx plan;
    T_OK(sl_ctx_open(&plan, &body, 0, &err));
    forward_on(n, &plan);
    t_reserve(&n->ctx, &plan);
    sl_ctx_close(&plan);
    if (ops) n->ctx.ops = ops;
    n->ctx.tap = keep;
    n->ctx.tap_user = r;
    forward_on(n, &n->ctx);
    n->ctx.tap = NULL;
    n->ctx.ops = own;
    T_OK(sl_ctx_error(&n->ctx, &err));
}

/* ---- tests ---- */

/* The largest difference, as a fraction of the largest number. */
static double worst(const float *a, const float *b, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)b[i]));
    return t_max_abs(a, b, n) / (most > 0 ? most : 1);
}

/* rows: tokens at a time; 0 the graph's own choice. kept: frames with timestep 0. */
static void compare_kept(const char *what, const char *dir, const sl_dit_config *config, int t,
                         int h, int w, int image_tokens, int rows, int kept)
{
    const sl_ops rounded_ops = rounding();
    record device = {.count = 0}, rounded = {.count = 0}, exact = {.count = 0};
    net n;
    int bad = 0;
    net_open(&n, &sl_ops_cpu, dir, config);
    n.t = t, n.h = h, n.w = w, n.image_tokens = image_tokens, n.kept = kept;
    if (rows) sl_dit_set_rows(n.m, rows);
    round_weights = !dir;
    run(&n, &rounded_ops, &rounded);
    run(&n, NULL, &exact);
    net_close(&n);

    net_open(&n, gpu->ops, dir, config);
    n.t = t, n.h = h, n.w = w, n.image_tokens = image_tokens, n.kept = kept;
    if (rows) sl_dit_set_rows(n.m, rows);
    run(&n, NULL, &device);
    net_close(&n);

    assert_int_equal(device.count, exact.count);
    printf("%s, %d x %d x %d tokens%s\n  %-16s %12s %12s %12s\n", what, t, h, w,
           rows ? ", in pieces" : "", "layer", "GPU", "bf16 on CPU", "GPU, largest");
    for (int i = 0; i < exact.count; i++) {
        const layer *e = &exact.layers[i], *d = &device.layers[i], *r = &rounded.layers[i];
        assert_string_equal(d->name, e->name);
        assert_int_equal(d->n, e->n);
        const double found = t_rel_l2(d->x, e->x, e->n),
                     limit = 2 * t_rel_l2(r->x, e->x, e->n) + 4e-3, most = worst(d->x, e->x, e->n);
        const bool ok = found <= limit && most <= 0.1;
        bad += !ok;
        printf("  %-16s %12.3g %12.3g %12.3g%s\n", e->name, found, t_rel_l2(r->x, e->x, e->n), most,
               ok ? "" : "   <-- OFF");
    }
    record_free(&device);
    record_free(&rounded);
    record_free(&exact);
    if (bad) fail_msg("%s: %d layers are off; the first of them is where to look", what, bad);
}

static void compare(const char *what, const char *dir, const sl_dit_config *config, int t, int h,
                    int w, int image_tokens, int rows)
{
    compare_kept(what, dir, config, t, h, w, image_tokens, rows, 0);
}

static void i2v_layer_by_layer(void **state)
{
    (void)state;
    compare("tiny-i2v", "tests/golden/tiny-i2v/model/transformer", NULL, 3, 4, 6, 257, 0);
}

static void odd_sizes_in_pieces(void **state)
{
    (void)state;
    compare("tiny-i2v", "tests/golden/tiny-i2v/model/transformer", NULL, 3, 7, 15, 257, 64);
}

static void first_and_last_picture(void **state)
{
    (void)state;
    compare("tiny-flf2v", "tests/golden/tiny-flf2v/model/transformer", NULL, 3, 4, 6, 514, 0);
}

static void without_a_picture(void **state)
{
    (void)state;
    compare("tiny-i2v-a14b", "tests/golden/tiny-i2v-a14b/model/transformer", NULL, 3, 4, 6, 0, 0);
}

/* Two rows of time; pieces end within the kept frame, of 24 and 105 tokens, and after it. */
static void a_kept_frame(void **state)
{
    static const char DIR[] = "tests/golden/tiny-ti2v-5b/model/transformer";
    (void)state;
    compare_kept("tiny-ti2v-5b", DIR, NULL, 3, 4, 6, 0, 0, 1);
    compare_kept("tiny-ti2v-5b", DIR, NULL, 3, 7, 15, 0, 64, 1);
    compare("tiny-ti2v-5b, from text", DIR, NULL, 3, 4, 6, 0, 0);
}

static const sl_dit_config BLOCK_OF_14B = {.layers = 1,
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

static void one_block_of_14b(void **state)
{
    (void)state;
    compare("a block of 14B, random", NULL, &BLOCK_OF_14B, 2, 5, 7, 257, 0);
}

/* The same quantised numbers on both sides: what bf16 between them moves may turn a code into its
 * neighbour, on the CPU that rounds as on the GPU. */
static void in_8_bits(void **state)
{
    (void)state;
    if (!gpu_is_hopper("products in 8 bits")) skip();
    precision = SL_PRECISION_FP8_LINEAR;
    compare("tiny-i2v, 8 bits", "tests/golden/tiny-i2v/model/transformer", NULL, 3, 4, 6, 257, 0);
    compare("tiny-i2v, 8 bits", "tests/golden/tiny-i2v/model/transformer", NULL, 3, 7, 15, 257, 64);
    compare_kept("tiny-ti2v-5b, 8 bits", "tests/golden/tiny-ti2v-5b/model/transformer", NULL, 3, 7,
                 15, 0, 0, 1);
    compare("a block of 14B, random, 8 bits", NULL, &BLOCK_OF_14B, 2, 5, 7, 257, 0);
    precision = SL_PRECISION_BF16;
}

/* Attention among the tokens, too; 270 of them are three blocks of keys. */
static void attention_in_8_bits(void **state)
{
    (void)state;
    if (!gpu_is_hopper("attention in 8 bits")) skip();
    precision = SL_PRECISION_FP8;
    compare("a block of 14B, random, attention in 8 bits", NULL, &BLOCK_OF_14B, 2, 5, 7, 257, 0);
    compare("a block of 14B, random, attention in 8 bits", NULL, &BLOCK_OF_14B, 3, 9, 10, 257, 0);
    precision = SL_PRECISION_BF16;
}

static void the_same_bits_twice(void **state)
{
    record a = {.count = 0}, b = {.count = 0};
    net n;
    (void)state;
    net_open(&n, gpu->ops, "tests/golden/tiny-i2v/model/transformer", NULL);
    n.t = 5, n.h = 9, n.w = 13, n.image_tokens = 257;
    run(&n, NULL, &a);
    run(&n, NULL, &b);
    net_close(&n);
    assert_int_equal(a.count, b.count);
    for (int i = 0; i < a.count; i++)
        if (memcmp(a.layers[i].x, b.layers[i].x, (size_t)a.layers[i].n * sizeof(float)))
            fail_msg("%s: two runs of the same numbers differ by %.3g", a.layers[i].name,
                     t_max_abs(a.layers[i].x, b.layers[i].x, a.layers[i].n));
    record_free(&a);
    record_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(i2v_layer_by_layer),
                                       cmocka_unit_test(odd_sizes_in_pieces),
                                       cmocka_unit_test(first_and_last_picture),
                                       cmocka_unit_test(without_a_picture),
                                       cmocka_unit_test(a_kept_frame),
                                       cmocka_unit_test(one_block_of_14b),
                                       cmocka_unit_test(in_8_bits),
                                       cmocka_unit_test(attention_in_8_bits),
                                       cmocka_unit_test(the_same_bits_twice)};
    gpu = sl_plugin_cuda(&err);
    if (!gpu || !gpu->devices() || gpu->use(0, &err)) {
        printf("gpu_dit: skipped: %s\n", gpu && !err.code ? "no GPU" : err.msg);
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
