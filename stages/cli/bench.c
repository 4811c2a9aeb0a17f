/* bench.c - `sluice bench`: how fast the networks and their parts run on this device,
 * each beside the floor that it sets. */
#include "stages/cli/bench.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stages/cli/cli.h"

/* normal numbers drawn once; no multiple of a row, so that rows differ */
#define BLOCK ((int64_t)8 * 524287)
#define MOST_RUNS 50
#define AT_LEAST_S 0.02 /* of one timed piece: shorter work is run several times in it */

static const struct {
    const char *name, *what;
    sl_code (*run)(bench *b, sl_err *err);
    bool asked_only;
} PARTS[] = {{"gemm", "the DiT's matrix products", bench_gemm, false},
             {"attention", "the networks' attentions", bench_attention, false},
             {"conv", "the VAE's largest convolutions", bench_conv, false},
             {"handover", "tensors to another process and back", bench_handover, false},
             {"image", "CLIP of one picture", bench_image, false},
             {"text", "UMT5 of two prompts of 512 tokens", bench_text, false},
             {"condition", "VAE encode of the condition", bench_condition, false},
             {"decode", "VAE decode", bench_decode, false},
             {"dit", "one forward of the diffusion transformer", bench_dit, false},
             {"job", "a whole job through all processes", bench_job, true}};
#define PART_COUNT ((int)(sizeof PARTS / sizeof *PARTS))

/* ---- counted operations ---- */

static void linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation activation)
{
    bench_work *k = ctx->tap_user;
    k->linear += 2.0 * (double)x->shape[0] * (double)x->shape[1] * (double)w->shape[0];
    k->body->linear(ctx, y, x, w, b, activation);
}

static bool linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                       const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    bench_work *k = ctx->tap_user;
    if (!k->body->linear_add || !k->body->linear_add(ctx, x, y, a, w, b, gate)) return false;
    k->linear += 2.0 * (double)a->shape[0] * (double)a->shape[1] * (double)w->shape[0];
    return true;
}

static void attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                      const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                      bool accumulate)
{
    bench_work *work = ctx->tap_user;
    work->attention += 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
    work->body->attention(ctx, o, q, k, v, heads, scale, bias, accumulate);
}

static bool attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                          const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                          float scale)
{
    bench_work *work = ctx->tap_user;
    if (!work->body->attention_two ||
        !work->body->attention_two(ctx, o, q, k1, v1, k2, v2, heads, scale))
        return false;
    work->attention +=
        4.0 * (double)q->shape[0] * (double)(k1->shape[0] + k2->shape[0]) * (double)q->shape[1];
    return true;
}

static void conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                   const sl_conv *c)
{
    bench_work *k = ctx->tap_user;
    k->conv += 2.0 * (double)sl_count(y) * (double)x->shape[3] * c->kt * c->kh * c->kw;
    k->body->conv3d(ctx, y, x, history, w, b, residual, c);
}

/* ---- a device ---- */

static sl_code open_device(bench *b, sl_err *err)
{
    char name[128] = "";
    sl_code rc;
    int sm = 0;
    b->body = &sl_ops_cpu;
    if (strcmp(b->device, "cpu")) {
        size_t total;
        if (!(b->plugin = sl_plugin_cuda(err))) return err->code;
        if (b->ordinal >= b->plugin->devices())
            return sl_fail(err, SL_ARG, "--device is %s, there are %d GPUs", b->device,
                           b->plugin->devices());
        if ((rc = b->plugin->use(b->ordinal, err)) ||
            (rc = b->plugin->memory(b->ordinal, &b->free_at_start, &total, err)) ||
            (rc = b->plugin->describe(b->ordinal, name, sizeof name, &sm, err)))
            return rc;
        b->body = b->plugin->ops;
        printf("%s  %s, sm_%d, %.1f GiB, %.1f GiB free\n", b->device, name, sm,
               (double)total / (1 << 30), (double)b->free_at_start / (1 << 30));
    } else printf("cpu\n");
    b->ops = *b->body;
    b->ops.linear = linear;
    b->ops.linear_add = linear_add;
    b->ops.attention = attention;
    b->ops.attention_two = attention_two;
    b->ops.conv3d = conv3d;
    return SL_OK;
}

sl_code bench_net_open(bench_net *n, bench *b, const char *label, sl_err *err)
{
    sl_code rc;
    *n = (bench_net){.b = b, .work = {.body = b->body}};
    if ((rc = sl_ctx_open(&n->ctx, &b->ops, 0, err))) return rc;
    n->ctx.tap_user = &n->work;
    if (label) rc = sl_loader_random(&n->loader, &n->ctx, 1, label, err);
    return rc;
}

void bench_net_close(bench_net *n)
{
    sl_loader_close(&n->loader);
    sl_ctx_close(&n->ctx);
}

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* The sum of four 16-bit uniforms is near enough to normal. */
static float normal(uint64_t i)
{
    uint64_t r = mix(i);
    float sum = (float)(r & 0xffff) + (float)(r >> 16 & 0xffff) + (float)(r >> 32 & 0xffff) +
                (float)(r >> 48);
    return (sum - 131070) * 2.6429e-5f; /* 1 / (65536 sqrt(4 / 12)) */
}

/* BLOCK normal numbers. NULL: no memory. */
static const float *noise_of(bench *b)
{
    if (b->noise || !(b->noise = malloc(BLOCK * sizeof *b->noise))) return b->noise;
    for (int64_t i = 0; i < BLOCK; i++) b->noise[i] = normal((uint64_t)i);
    return b->noise;
}

/* One block from the host; the device doubles it until there is enough. */
void bench_fill(bench_net *n, const sl_tensor *t, float scale)
{
    const int64_t count = sl_count(t), block = count < BLOCK ? count : BLOCK;
    const size_t size = sl_dtype_size(t->dtype);
    const float *noise = noise_of(n->b);
    char *host = malloc((size_t)block * size + 1);
    if (!host || !noise) {
        sl_ctx_fail(&n->ctx, SL_NOMEM, "no memory for %lld random numbers", (long long)BLOCK);
        free(host);
        return;
    }
    int64_t from = n->b->dealt = (n->b->dealt + 1000003) % BLOCK;
    for (int64_t i = 0; i < block; i++, from = from + 1 < BLOCK ? from + 1 : 0) {
        if (t->dtype == SL_F32) ((float *)(void *)host)[i] = scale * noise[from];
        else ((sl_bf16 *)(void *)host)[i] = sl_to_bf16(scale * noise[from]);
    }
    const sl_tensor first = sl_view1(t->data, t->dtype, block);
    sl_upload(&n->ctx, &first, host);
    for (int64_t done = block, more; done < count && sl_ok(&n->ctx); done += more) {
        more = count - done < done ? count - done : done;
        const sl_tensor from_here = sl_view1(t->data, t->dtype, more),
                        to = sl_view1((char *)t->data + (size_t)done * size, t->dtype, more);
        sl_copy(&n->ctx, &to, &from_here);
    }
    sl_sync(&n->ctx); /* before host is freed */
    free(host);
}

sl_tensor bench_tensor(bench_net *n, sl_dtype dtype, int64_t a, int64_t b, float scale)
{
    sl_tensor t = sl_view2(NULL, dtype, a, b);
    t.data = sl_device_alloc(&n->ctx, sl_bytes(&t));
    if (t.data) bench_fill(n, &t, scale);
    return t;
}

/* ---- one measurement ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_tell(bench *b, const char *what, const char *size, const bench_work *work, double bytes,
                size_t peak, double *seconds, int count)
{
    static const bench_work NONE;
    const bench_work *k = work ? work : &NONE;
    const double operations = k->linear + k->attention + k->conv;
    qsort(seconds, (size_t)count, sizeof *seconds, by_value);
    const double median =
        count % 2 ? seconds[count / 2] : (seconds[count / 2 - 1] + seconds[count / 2]) / 2;
    const int tail = count / 10; /* of many runs, the odd ones are left out of the spread */
    const double spread = (seconds[count - 1 - tail] - seconds[tail]) / median;
    const double arithmetic = b->product_rate > 0 ? operations / b->product_rate : 0,
                 moving = b->copy_rate > 0 ? bytes / b->copy_rate : 0;
    const double least = arithmetic > moving ? arithmetic : moving;
    char label[96];
    snprintf(label, sizeof label, "%s %s", what, size);
    printf("%-42s %11.3f ms  +-%4.1f %%", label, median * 1e3, 50 * spread);
    if (operations > 0)
        printf(" %9.1f %cFLOP/s", operations / median * (b->plugin ? 1e-12 : 1e-9),
               b->plugin ? 'T' : 'G');
    else if (bytes > 0) printf(" %9.1f GB/s   ", bytes / median * 1e-9);
    if (least > 0) printf("  floor %10.3f ms, %5.1f %%", least * 1e3, 100 * least / median);
    if (peak) printf("  peak %.2f GiB", (double)peak / (1 << 30));
    if (k->first > 2 * median + 0.1) printf("  first %.2f s", k->first);
    printf("\n");
    fflush(stdout);
    json_array_append_new(
        b->results,
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "what",
                  what, "size", size, "seconds", median, "first", k->first, "least", seconds[tail],
                  "most", seconds[count - 1 - tail], "runs", count, "linear_ops", k->linear,
                  "attention_ops", k->attention, "conv_ops", k->conv, "bytes", bytes, "floor",
                  least, "reached", least / median, "peak_bytes", (json_int_t)peak));
}

static double seconds_of(bench_net *n, bench_run_fn *run, void *arg, int times)
{
    int64_t t0 = sl_now_ns();
    for (int i = 0; i < times && sl_ok(&n->ctx); i++) run(arg);
    sl_sync(&n->ctx);
    return (double)(sl_now_ns() - t0) * 1e-9 / times;
}

/* In use now: of a GPU all that this process has taken since its start, nothing of which
 * was given back since. */
static size_t peak_of(bench_net *n, size_t held)
{
    size_t now, total;
    const bench *b = n->b;
    if (b->plugin && !b->plugin->memory(b->ordinal, &now, &total, NULL))
        return now < b->free_at_start ? b->free_at_start - now : 0;
    return held + n->ctx.arena_bytes + (n->loader ? sl_loader_bytes(n->loader) : 0);
}

sl_code bench_time(bench_net *n, const char *what, const char *size, double bytes, size_t held,
                   bench_run_fn *run, void *arg, sl_err *err)
{
    double seconds[MOST_RUNS];
    n->work = (bench_work){.body = n->work.body};
    double once = seconds_of(n, run, arg, 1);
    bench_work work = n->work;
    work.first = once;
    /* the first makes plans and grows scratch */
    if (once < 1) once = seconds_of(n, run, arg, 1);
    const int times = once < AT_LEAST_S ? (int)fmin(ceil(AT_LEAST_S / fmax(once, 1e-7)), 10000) : 1;
    int count = n->b->repeat               ? n->b->repeat
                : n->b->quick || once > 20 ? 1
                : once > 5                 ? 2
                : once > 0.5               ? 3
                                           : 7;
    if (count > MOST_RUNS) count = MOST_RUNS;
    for (int i = 0; i < count; i++) seconds[i] = seconds_of(n, run, arg, times);
    const size_t peak = peak_of(n, held);
    if (sl_ctx_error(&n->ctx, err)) return sl_context(err, err->code, "%s %s", what, size);
    bench_tell(n->b, what, size, &work, bytes, peak, seconds, count);
    return SL_OK;
}

/* ---- the two ceilings ---- */

typedef struct {
    bench_net n;
    sl_tensor x, w, y;
} ceiling;

static void run_product(void *arg)
{
    ceiling *c = arg;
    sl_linear(&c->n.ctx, &c->y, &c->x, &c->w, NULL, SL_ACT_NONE);
}

static void run_copy(void *arg)
{
    ceiling *c = arg;
    sl_copy(&c->n.ctx, &c->y, &c->x);
}

/* The newest line's rate: of its operations, or of its bytes. */
static double newest_rate(const bench *b, bool operations)
{
    const json_t *r = json_array_get(b->results, json_array_size(b->results) - 1);
    return json_number_value(json_object_get(r, operations ? "linear_ops" : "bytes")) /
           json_number_value(json_object_get(r, "least"));
}

sl_code bench_ceilings(bench *b, sl_err *err)
{
    const int64_t n = b->plugin ? 8192 : 1536, rows = b->plugin ? 131072 : 8192;
    char size[64];
    ceiling c;
    sl_code rc = bench_net_open(&c.n, b, NULL, err);
    if (rc) return rc;
    const sl_dtype act = sl_act(&c.n.ctx);
    c.x = bench_tensor(&c.n, act, n, n, 1), c.w = bench_tensor(&c.n, act, n, n, 1),
    c.y = bench_tensor(&c.n, act, n, n, 1);
    snprintf(size, sizeof size, "%lldx%lldx%lld", (long long)n, (long long)n, (long long)n);
    if (!(rc = bench_time(&c.n, "product", size, 0, sl_bytes(&c.x) * 3, run_product, &c, err)))
        b->product_rate = newest_rate(b, true);
    sl_device_free(&c.n.ctx, c.x.data);
    sl_device_free(&c.n.ctx, c.w.data);
    sl_device_free(&c.n.ctx, c.y.data);
    if (!rc) {
        c.x = bench_tensor(&c.n, act, rows, 4096, 1), c.y = bench_tensor(&c.n, act, rows, 4096, 1);
        snprintf(size, sizeof size, "%zu MB", sl_bytes(&c.x) / 1000000);
        rc = bench_time(&c.n, "copy", size, 2 * (double)sl_bytes(&c.x), sl_bytes(&c.x) * 2,
                        run_copy, &c, err);
        if (!rc) b->copy_rate = newest_rate(b, false);
        sl_device_free(&c.n.ctx, c.x.data);
        sl_device_free(&c.n.ctx, c.y.data);
    }
    bench_net_close(&c.n);
    return rc;
}

/* ---- the verb ---- */

static void usage(FILE *to)
{
    fprintf(to, "sluice bench [WHAT...] [--device cpu|cuda:N] [--model DIR] [--size WxHxFRAMES]... "
                "[--repeat N] [--steps N] "
                "[--rows N] [--quick]\n"
                "             [--guidance G] [--profile] [--image FILE] [--json FILE]\n"
                "\n"
                "How fast the networks and their parts run with random weights, each beside its "
                "floor: its operations over the "
                "rate of this device's\n"
                "matrix product, or its bytes over the rate of its copy, both measured first. "
                "Shapes are the 14B model's on a GPU; "
                "on a CPU, or with\n"
                "--model, a checkpoint's (models/demo). WHAT, all but job if none is named:\n");
    for (int i = 0; i < PART_COUNT; i++) fprintf(to, "  %-10s %s\n", PARTS[i].name, PARTS[i].what);
    fprintf(to,
            "--repeat   timed runs of each (1 to %d)\n"
            "--rows     tokens that the DiT takes at a time where it can choose\n"
            "--steps    of the job (the checkpoint's sluice.json, else 30; 2 with --quick); "
            "--image its picture (one is made)\n"
            "--guidance of the job (the checkpoint's sluice.json, else 5: two forwards a step; 1 "
            "or less: one)\n"
            "--quick    the smallest size, one run of each\n"
            "--profile  one more run of each network with a clock around each operation: a table "
            "of where the time goes\n",
            MOST_RUNS);
}

static sl_code number(const char *name, const char *text, long long lo, long long hi,
                      long long *out, sl_err *err)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (errno || *end || end == text || *out < lo || *out > hi)
        return sl_fail(err, SL_ARG, "%s is \"%.40s\", want an integer from %lld to %lld", name,
                       text, lo, hi);
    return SL_OK;
}

static sl_code real(const char *name, const char *text, double *out, sl_err *err)
{
    char *end;
    *out = strtod(text, &end);
    if (*end || end == text || !(*out >= 0 && *out <= 100))
        return sl_fail(err, SL_ARG, "%s is \"%.40s\", want a number from 0 to 100", name, text);
    return SL_OK;
}

static sl_code add_size(bench *b, const char *text, sl_err *err)
{
    bench_size s = {0};
    int end = 0;
    if (b->size_count == BENCH_SIZES)
        return sl_fail(err, SL_ARG, "--size is given more than %d times", BENCH_SIZES);
    if (sscanf(text, "%5dx%5dx%4d%n", &s.w, &s.h, &s.frames, &end) != 3 || text[end] || s.w < 16 ||
        s.h < 16 || s.w % 16 || s.h % 16 || s.frames < 1 || s.frames % 4 != 1)
        return sl_fail(err, SL_ARG,
                       "--size is \"%.40s\", want WIDTHxHEIGHTxFRAMES such as 1280x720x81, "
                       "multiples of 16 and 4n + 1 frames",
                       text);
    int at = b->size_count++;
    for (; at > 0 && (int64_t)b->sizes[at - 1].w * b->sizes[at - 1].h * b->sizes[at - 1].frames >
                         (int64_t)s.w * s.h * s.frames;
         at--)
        b->sizes[at] = b->sizes[at - 1];
    b->sizes[at] = s;
    return SL_OK;
}

static sl_code copy_text(char *out, size_t size, const char *name, const char *text, sl_err *err)
{
    if ((size_t)snprintf(out, size, "%s", text) >= size)
        return sl_fail(err, SL_ARG, "%s has %zu bytes, want fewer than %zu", name, strlen(text),
                       size);
    return SL_OK;
}

static sl_code parse(bench *b, bool wanted[PART_COUNT], int argc, char **argv, sl_err *err)
{
    static const struct option LONG[] = {
        {"device", 1, 0, 'd'}, {"json", 1, 0, 'j'},    {"model", 1, 0, 'm'},    {"size", 1, 0, 's'},
        {"repeat", 1, 0, 'r'}, {"steps", 1, 0, 'n'},   {"image", 1, 0, 'i'},    {"rows", 1, 0, 'o'},
        {"quick", 0, 0, 'q'},  {"profile", 0, 0, 'p'}, {"guidance", 1, 0, 'g'}, {0, 0, 0, 0}};
    sl_code rc = SL_OK;
    long long n;
    int c, named = 0;
    optind = 0;
    opterr = 0;
    while (!rc && (c = getopt_long(argc, argv, "", LONG, NULL)) >= 0) {
        if (c == 'd') rc = copy_text(b->device, sizeof b->device, "--device", optarg, err);
        else if (c == 'j') rc = copy_text(b->json, sizeof b->json, "--json", optarg, err);
        else if (c == 'm')
            rc = copy_text(b->model_dir, sizeof b->model_dir, "--model", optarg, err);
        else if (c == 'i') rc = copy_text(b->image, sizeof b->image, "--image", optarg, err);
        else if (c == 's') rc = add_size(b, optarg, err);
        else if (c == 'q') b->quick = true;
        else if (c == 'p') b->profile = true;
        else if (c == 'r')
            rc = number("--repeat", optarg, 1, MOST_RUNS, &n, err), b->repeat = rc ? 0 : (int)n;
        else if (c == 'n')
            rc = number("--steps", optarg, 1, 1000, &n, err), b->steps = rc ? 0 : (int)n;
        else if (c == 'g') rc = real("--guidance", optarg, &b->guidance, err);
        else if (c == 'o') rc = number("--rows", optarg, 1, 1 << 24, &n, err), b->rows = rc ? 0 : n;
        else
            rc = sl_fail(err, SL_ARG,
                         "bench: %.60s is unknown or lacks its value: sluice bench --help",
                         argv[optind - 1]);
    }
    for (int i = optind; i < argc && !rc; i++, named++) {
        int k = 0;
        while (k < PART_COUNT && strcmp(PARTS[k].name, argv[i])) k++;
        if (k == PART_COUNT)
            return sl_fail(err, SL_ARG,
                           "bench: \"%.60s\" is nothing that can be measured, want some of gemm "
                           "attention conv handover image text "
                           "condition decode dit job",
                           argv[i]);
        wanted[k] = true;
    }
    for (int k = 0; k < PART_COUNT && !named; k++) wanted[k] = !PARTS[k].asked_only;
    if (rc) return rc;
    if (strcmp(b->device, "cpu") && (strncmp(b->device, "cuda:", 5) ||
                                     number("--device's number", b->device + 5, 0, 1023, &n, NULL)))
        return sl_fail(err, SL_ARG, "--device is \"%s\", want cpu or cuda:N", b->device);
    if (strcmp(b->device, "cpu")) b->ordinal = atoi(b->device + 5);
    return SL_OK;
}

/* Sizes, steps and guidance that were not given; the folder of the shapes, and the
 * shapes. */
static sl_code complete(bench *b, const char *private_dir, sl_err *err)
{
    const bool cpu = !strcmp(b->device, "cpu");
    static const char *const CPU[] = {"160x96x9", "320x192x17"}, *const GPU[] = {"832x480x81",
                                                                                 "1024x576x81",
                                                                                 "1280x720x81"};
    cli_job d;
    sl_code rc;
    if (!b->size_count)
        for (int i = 0; i < (b->quick ? 1 : cpu ? 2 : 3); i++)
            if ((rc = add_size(b, cpu ? CPU[i] : GPU[i], err))) return rc;
    if ((rc = program_dir(b->program_dir, err))) return rc;
    if (!*b->model_dir && cpu)
        rc = sl_path_join(b->model_dir, b->program_dir, "../models/demo", err);
    else if (!*b->model_dir && !(rc = sl_path_join(b->model_dir, private_dir, "14b", err)))
        rc = bench_write_14b(b->model_dir, err);
    if (rc) return rc;
    if ((rc = sl_model_open(&b->model, b->model_dir, err)))
        return sl_context(err, rc, "the shapes to measure (--model DIR)");
    rc = defaults_read(&d, b->model_dir, err);
    if (!b->steps) b->steps = b->quick ? 2 : d.has_steps ? d.spec.steps : 30;
    if (isnan(b->guidance)) b->guidance = d.has_guidance ? d.spec.guidance : 5;
    sl_job_free(&d.spec);
    return rc;
}

static sl_code write_json(const bench *b, sl_err *err)
{
    char name[128] = "cpu";
    int sm = 0;
    if (b->plugin) b->plugin->describe(b->ordinal, name, sizeof name, &sm, NULL);
    json_t *root = json_pack("{s:s, s:s, s:i, s:f, s:f, s:O}", "device", b->device, "name", name,
                             "sm", sm, "product_rate", b->product_rate, "copy_rate", b->copy_rate,
                             "results", b->results);
    errno = 0;
    int bad = !root || json_dump_file(root, b->json, JSON_INDENT(2) | JSON_REAL_PRECISION(9)),
        why = errno;
    json_decref(root);
    return bad ? sl_fail_errno(err, why ? why : EIO, "report %s", b->json) : SL_OK;
}

int cli_bench(int argc, char **argv)
{
    bench b = {.device = "cpu", .peer_socket = -1, .guidance = NAN, .results = json_array()};
    bool wanted[PART_COUNT] = {false};
    char private_dir[SL_PATH] = "";
    const int64_t started = sl_now_ns();
    sl_err err = {0};
    sl_code rc;
    if (argc > 0 && (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h"))) {
        usage(stdout);
        json_decref(b.results);
        return EXIT_OK;
    }
    if ((rc = parse(&b, wanted, argc + 1, argv - 1, &err)) ||
        (rc = make_run_dir(private_dir, "", &err)) || (rc = complete(&b, private_dir, &err))) {
        complain("%s", err.msg);
        if (*private_dir) remove_tree(private_dir);
        json_decref(b.results);
        return EXIT_REFUSED;
    }
    for (int i = 0; i < PART_COUNT && !rc; i++)
        if (wanted[i] && PARTS[i].run == bench_handover) rc = bench_handover_start(&b, &err);
    const int64_t opening = sl_now_ns();
    if (!rc) rc = open_device(&b, &err);
    const int64_t opened = sl_now_ns();
    if (!rc) rc = bench_ceilings(&b, &err);
    if (!rc)
        printf("start-up %.2f s: device %.2f s, rates %.2f s\n",
               (double)(sl_now_ns() - started) * 1e-9, (double)(opened - opening) * 1e-9,
               (double)(sl_now_ns() - opened) * 1e-9);
    for (int i = 0; i < PART_COUNT && (b.product_rate > 0 || !rc); i++) {
        sl_err own = {0}; /* the others are still worth measuring */
        if (wanted[i] && PARTS[i].run(&b, &own))
            complain("bench %s: %s", PARTS[i].name, own.msg), rc = own.code;
    }
    bench_handover_stop(&b);
    if (*b.json) {
        sl_err second = {0};
        if (write_json(&b, &second)) complain("%s", second.msg), rc = rc ? rc : second.code;
    }
    if (err.code) complain("%s", err.msg);
    remove_tree(private_dir);
    json_decref(b.results);
    free(b.noise);
    return rc ? EXIT_FAILED : EXIT_OK;
}
