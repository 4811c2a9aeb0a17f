/* measure.c - one measurement: a device whose operations are counted, random numbers on it, a
 * clock around a piece of work, the line that tells it. */
#include "stages/bench/measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* normal numbers drawn once; no multiple of a row, so that rows differ */
#define BLOCK ((int64_t)8 * 524287)
#define AT_LEAST_S 0.02 /* seconds of one timed piece: shorter work is run several times in it */

sl_grid sl_bench_grid(const sl_bench *b, const sl_bench_size *s)
{
    return sl_grid_of(&b->model.family, s->w, s->h, s->frames);
}

/* ---- counted operations ---- */

static void linear(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *w,
                   const sl_tensor *b, sl_activation activation)
{
    sl_bench_work *k = ctx->tap_user;
    k->linear += 2.0 * (double)x->shape[0] * (double)x->shape[1] * (double)w->shape[0];
    k->body->linear(ctx, y, x, w, b, activation);
}

static bool linear_add(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_tensor *a,
                       const sl_tensor *w, const sl_tensor *b, const sl_tensor *gate)
{
    sl_bench_work *k = ctx->tap_user;
    if (!k->body->linear_add || !k->body->linear_add(ctx, x, y, a, w, b, gate)) return false;
    k->linear += 2.0 * (double)a->shape[0] * (double)a->shape[1] * (double)w->shape[0];
    return true;
}

static double eight_operations(const sl_eight *x, const sl_eight *w)
{
    return 2.0 * (double)sl_count(&x->codes) * (double)w->codes.shape[0];
}

static void linear_eight(sl_ctx *ctx, const sl_tensor *y, const sl_eight *x, const sl_eight *w,
                         const sl_tensor *b)
{
    sl_bench_work *k = ctx->tap_user;
    k->linear += eight_operations(x, w);
    k->body->linear_eight(ctx, y, x, w, b);
}

static bool linear_add_eight(sl_ctx *ctx, const sl_tensor *x, const sl_tensor *y, const sl_eight *a,
                             const sl_eight *w, const sl_tensor *b, const sl_tensor *gate)
{
    sl_bench_work *k = ctx->tap_user;
    if (!k->body->linear_add_eight || !k->body->linear_add_eight(ctx, x, y, a, w, b, gate))
        return false;
    k->linear += eight_operations(a, w);
    return true;
}

static void attention(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                      const sl_tensor *v, int heads, float scale, const sl_tensor *bias,
                      bool accumulate)
{
    sl_bench_work *work = ctx->tap_user;
    work->attention += 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
    work->body->attention(ctx, o, q, k, v, heads, scale, bias, accumulate);
}

static bool attention_two(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k1,
                          const sl_tensor *v1, const sl_tensor *k2, const sl_tensor *v2, int heads,
                          float scale)
{
    sl_bench_work *work = ctx->tap_user;
    if (!work->body->attention_two ||
        !work->body->attention_two(ctx, o, q, k1, v1, k2, v2, heads, scale))
        return false;
    work->attention +=
        4.0 * (double)q->shape[0] * (double)(k1->shape[0] + k2->shape[0]) * (double)q->shape[1];
    return true;
}

static bool attention_parts(sl_ctx *ctx, const sl_tensor *o, const sl_tensor *q, const sl_tensor *k,
                            const sl_tensor *v, int heads, float scale, int parts,
                            const int64_t *first, int last, sl_done *done)
{
    sl_bench_work *work = ctx->tap_user;
    if (!work->body->attention_parts ||
        !work->body->attention_parts(ctx, o, q, k, v, heads, scale, parts, first, last, done))
        return false;
    work->attention += 4.0 * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
    return true;
}

static void attention_eight(sl_ctx *ctx, const sl_tensor *o, const sl_queries_eight *q,
                            const sl_keys_eight *keys, int heads, int parts, const int64_t *first,
                            int last, sl_done *done)
{
    sl_bench_work *k = ctx->tap_user;
    k->attention += 4.0 * (double)o->shape[0] * (double)keys->rows * (double)o->shape[1];
    k->body->attention_eight(ctx, o, q, keys, heads, parts, first, last, done);
}

static void conv3d(sl_ctx *ctx, const sl_tensor *y, const sl_tensor *x, const sl_tensor *history,
                   const sl_tensor *w, const sl_tensor *b, const sl_tensor *residual,
                   const sl_conv *c)
{
    sl_bench_work *k = ctx->tap_user;
    k->conv += 2.0 * (double)sl_count(y) * (double)x->shape[3] * c->kt * c->kh * c->kw;
    k->body->conv3d(ctx, y, x, history, w, b, residual, c);
}

/* ---- a device ---- */

sl_code sl_bench_open_device(sl_bench *b, sl_err *err)
{
    sl_code rc;
    b->body = &sl_ops_cpu;
    if (strcmp(b->device, "cpu")) {
        size_t total;
        b->ordinal = atoi(b->device + 5);
        if (!(b->plugin = sl_plugin_cuda(err))) return err->code;
        if (b->ordinal >= b->plugin->devices())
            return sl_fail(err, SL_ARG, "--device is %s, there are %d GPUs", b->device,
                           b->plugin->devices());
        if ((rc = b->plugin->use(b->ordinal, err)) ||
            (rc = b->plugin->memory(b->ordinal, &b->free_at_start, &total, err)))
            return rc;
        b->body = b->plugin->ops;
    }
    b->ops = *b->body;
    b->ops.linear = linear;
    b->ops.linear_add = linear_add;
    b->ops.linear_eight = linear_eight;
    b->ops.linear_add_eight = linear_add_eight;
    b->ops.attention = attention;
    b->ops.attention_two = attention_two;
    b->ops.attention_parts = attention_parts;
    b->ops.attention_eight = attention_eight;
    b->ops.conv3d = conv3d;
    return SL_OK;
}

void sl_bench_print_device(const sl_bench *b)
{
    char name[128] = "?";
    size_t left = 0, total = 0;
    int sm = 0;
    if (b->plugin) {
        b->plugin->describe(b->ordinal, name, sizeof name, &sm, NULL);
        b->plugin->memory(b->ordinal, &left, &total, NULL);
        printf("%s  %s, sm_%d, %.1f GiB, %.1f GiB free\n", b->device, name, sm,
               (double)total / (1 << 30), (double)left / (1 << 30));
    } else printf("cpu\n");
}

sl_code sl_bench_net_open(sl_bench_net *n, sl_bench *b, const char *label, sl_err *err)
{
    sl_code rc;
    *n = (sl_bench_net){.b = b, .work = {.body = b->body}};
    if ((rc = sl_ctx_open(&n->ctx, &b->ops, 0, err))) return rc;
    n->ctx.tap_user = &n->work;
    if (label) rc = sl_loader_random(&n->loader, &n->ctx, 1, label, err);
    return rc;
}

void sl_bench_net_close(sl_bench_net *n)
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
static const float *noise_of(sl_bench *b)
{
    if (b->noise || !(b->noise = malloc(BLOCK * sizeof *b->noise))) return b->noise;
    for (int64_t i = 0; i < BLOCK; i++) b->noise[i] = normal((uint64_t)i);
    return b->noise;
}

/* One block from the host; the device doubles it until there is enough. */
void sl_bench_fill(sl_bench_net *n, const sl_tensor *t, float scale)
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

sl_tensor sl_bench_tensor(sl_bench_net *n, sl_dtype dtype, int64_t a, int64_t b, float scale)
{
    sl_tensor t = sl_view2(NULL, dtype, a, b);
    t.data = sl_device_alloc(&n->ctx, sl_bytes(&t));
    if (t.data) sl_bench_fill(n, &t, scale);
    return t;
}

/* ---- one measurement ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void sl_bench_tell(sl_bench *b, const char *what, const char *size, const sl_bench_work *work,
                   double bytes, size_t peak, double *seconds, int count)
{
    static const sl_bench_work NONE;
    const sl_bench_work *k = work ? work : &NONE;
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

static double seconds_of(sl_bench_net *n, sl_bench_run_fn *run, void *arg, int times)
{
    int64_t t0 = sl_now_ns();
    for (int i = 0; i < times && sl_ok(&n->ctx); i++) run(arg);
    sl_sync(&n->ctx);
    return (double)(sl_now_ns() - t0) * 1e-9 / times;
}

size_t sl_bench_peak(const sl_bench_net *n, size_t held)
{
    size_t now, total;
    const sl_bench *b = n->b;
    if (b->plugin && !b->plugin->memory(b->ordinal, &now, &total, NULL))
        return now < b->free_at_start ? b->free_at_start - now : 0;
    return held + n->ctx.arena_bytes + (n->loader ? sl_loader_bytes(n->loader) : 0);
}

int sl_bench_runs(const sl_bench *b, double seconds)
{
    const int count = b->repeat                  ? b->repeat
                      : b->quick || seconds > 20 ? 1
                      : seconds > 5              ? 2
                      : seconds > 0.5            ? 3
                                                 : 7;
    return count < SL_BENCH_MOST_RUNS ? count : SL_BENCH_MOST_RUNS;
}

double sl_bench_weight_bytes(const sl_bench_net *n)
{
    return (double)sl_loader_bytes(n->loader);
}

const char *sl_bench_size_text(char buf[64], const sl_bench_size *s)
{
    snprintf(buf, 64, "%dx%dx%d", s->w, s->h, s->frames);
    return buf;
}

sl_code sl_bench_time(sl_bench_net *n, const char *what, const char *size, double bytes,
                      size_t held, sl_bench_run_fn *run, void *arg, sl_err *err)
{
    double seconds[SL_BENCH_MOST_RUNS];
    n->work = (sl_bench_work){.body = n->work.body};
    double once = seconds_of(n, run, arg, 1);
    sl_bench_work work = n->work;
    work.first = once;
    /* the first run makes plans and grows scratch */
    if (once < 1) once = seconds_of(n, run, arg, 1);
    const int times = once < AT_LEAST_S ? (int)fmin(ceil(AT_LEAST_S / fmax(once, 1e-7)), 10000) : 1;
    const int count = sl_bench_runs(n->b, once);
    for (int i = 0; i < count; i++) seconds[i] = seconds_of(n, run, arg, times);
    const size_t peak = sl_bench_peak(n, held);
    if (sl_ctx_error(&n->ctx, err)) return sl_context(err, err->code, "%s %s", what, size);
    sl_bench_tell(n->b, what, size, &work, bytes, peak, seconds, count);
    return SL_OK;
}

sl_code sl_bench_measure(sl_bench_net *n, const char *what, const char *size, double bytes,
                         size_t held, sl_bench_run_fn *run, void *arg, sl_err *err)
{
    sl_code rc = sl_bench_time(n, what, size, bytes, held, run, arg, err);
    return rc || !n->b->profile ? rc : sl_bench_profile(n, what, size, run, arg, err);
}

/* ---- the two ceilings ---- */

typedef struct {
    sl_bench_net n;
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
static double newest_rate(const sl_bench *b, bool operations)
{
    const json_t *r = json_array_get(b->results, json_array_size(b->results) - 1);
    return json_number_value(json_object_get(r, operations ? "linear_ops" : "bytes")) /
           json_number_value(json_object_get(r, "least"));
}

sl_code sl_bench_ceilings(sl_bench *b, sl_err *err)
{
    const int64_t n = b->plugin ? 8192 : 1536, rows = b->plugin ? 131072 : 8192;
    char size[64];
    ceiling c;
    sl_code rc = sl_bench_net_open(&c.n, b, NULL, err);
    if (rc) return rc;
    const sl_dtype act = sl_act(&c.n.ctx);
    c.x = sl_bench_tensor(&c.n, act, n, n, 1), c.w = sl_bench_tensor(&c.n, act, n, n, 1),
    c.y = sl_bench_tensor(&c.n, act, n, n, 1);
    snprintf(size, sizeof size, "%lldx%lldx%lld", (long long)n, (long long)n, (long long)n);
    if (!(rc = sl_bench_time(&c.n, "product", size, 0, sl_bytes(&c.x) * 3, run_product, &c, err)))
        b->product_rate = newest_rate(b, true);
    sl_device_free(&c.n.ctx, c.x.data);
    sl_device_free(&c.n.ctx, c.w.data);
    sl_device_free(&c.n.ctx, c.y.data);
    if (!rc) {
        c.x = sl_bench_tensor(&c.n, act, rows, 4096, 1),
        c.y = sl_bench_tensor(&c.n, act, rows, 4096, 1);
        snprintf(size, sizeof size, "%zu MB", sl_bytes(&c.x) / 1000000);
        rc = sl_bench_time(&c.n, "copy", size, 2 * (double)sl_bytes(&c.x), sl_bytes(&c.x) * 2,
                           run_copy, &c, err);
        if (!rc) b->copy_rate = newest_rate(b, false);
        sl_device_free(&c.n.ctx, c.x.data);
        sl_device_free(&c.n.ctx, c.y.data);
    }
    sl_bench_net_close(&c.n);
    return rc;
}
