/* test_ops_context.c - contexts: arena, sticky errors, cancel, tap, planning; and what
 * every operation refuses, word for word. */
#include "tests/t.h"

#include "kernels/ops.h"

static void opened(sl_ctx *ctx, const sl_ops *ops, size_t bytes)
{
    sl_err err;
    T_OK(sl_ctx_open(ctx, ops, bytes, &err));
}

/* The ctx must hold this error; it is cleared. */
static void fails(sl_ctx *ctx, sl_code code, const char *message)
{
    sl_err err = {0};
    T_CODE(sl_ctx_error(ctx, &err), code);
    assert_string_equal(err.msg, message);
    assert_true(sl_ok(ctx));
}

/* ---- arena ---- */

static void arena_is_a_stack_of_aligned_tensors(void **state)
{
    (void)state;
    sl_ctx ctx;
    opened(&ctx, &sl_ops_cpu, 4096);
    sl_tensor a = sl_new2(&ctx, SL_F32, 3, 5);
    size_t mark = sl_mark(&ctx);
    sl_tensor b = sl_new1(&ctx, SL_U8, 257), c = sl_new4(&ctx, SL_BF16, 1, 2, 3, 4);
    assert_true((uintptr_t)a.data % 256 == 0 && (uintptr_t)b.data % 256 == 0 &&
                (uintptr_t)c.data % 256 == 0);
    assert_true((char *)b.data == (char *)a.data + 256 && (char *)c.data == (char *)b.data + 512);
    assert_true(a.rank == 2 && a.shape[0] == 3 && a.shape[1] == 5 && a.pitch == 5 &&
                c.dtype == SL_BF16);
    assert_int_equal(ctx.arena_used, 1024);
    sl_release(&ctx, mark);
    assert_int_equal(ctx.arena_used, 256);
    sl_tensor d = sl_new1(&ctx, SL_U8, 1);
    assert_ptr_equal(d.data, b.data);
    assert_int_equal(ctx.arena_peak, 1024);
    sl_release(&ctx, 0);
    sl_new1(&ctx, SL_U8, 4096); /* the last byte can be had */
    assert_true(sl_ok(&ctx));
    sl_ctx_close(&ctx);
}

static void arena_holds_tensors_without_elements(void **state)
{
    (void)state;
    sl_ctx ctx;
    opened(&ctx, &sl_ops_cpu, 0);
    sl_tensor t = sl_new2(&ctx, SL_F32, 0, 5120);
    assert_true(sl_ok(&ctx) && t.shape[1] == 5120 && sl_count(&t) == 0);
    sl_zero(&ctx, &t);
    sl_copy(&ctx, &t, &t);
    assert_true(sl_ok(&ctx));
    sl_ctx_close(&ctx);
}

static void arena_that_is_too_small_names_both_sizes(void **state)
{
    (void)state;
    sl_ctx ctx;
    opened(&ctx, &sl_ops_cpu, 1000);
    sl_new1(&ctx, SL_U8, 300);
    sl_tensor t = sl_new2(&ctx, SL_F32, 10, 20);
    assert_null(t.data);
    assert_true(t.rank == 2 && t.shape[1] == 20);
    assert_false(sl_ok(&ctx));
    fails(&ctx, SL_NOMEM, "arena: F32 [10, 20] needs 800 bytes, 512 of 1000 are in use");
    sl_new4(&ctx, SL_F32, INT64_MAX / 8, 8, 8, 8);
    assert_int_equal(sl_ctx_error(&ctx, NULL), SL_SHAPE);
    sl_ctx_close(&ctx);
}

static void arena_grows_only_when_empty(void **state)
{
    (void)state;
    sl_ctx ctx;
    sl_err err;
    opened(&ctx, &sl_ops_cpu, 1024);
    sl_new1(&ctx, SL_U8, 100);
    T_OK(sl_ctx_reserve(&ctx, 1024, &err)); /* large enough already */
    T_CODE(sl_ctx_reserve(&ctx, 2048, &err), SL_INTERNAL);
    T_SAYS(err.msg, "arena: cannot grow to 2048 bytes while 256 are in use");
    sl_release(&ctx, 0);
    T_OK(sl_ctx_reserve(&ctx, (size_t)8 << 20, &err));
    sl_tensor t = sl_new1(&ctx, SL_U8, 8 << 20);
    sl_zero(&ctx, &t);
    assert_true(sl_ok(&ctx));
    sl_ctx_close(&ctx);
}

static void memory_that_does_not_exist_is_refused(void **state)
{
    (void)state;
    sl_ctx ctx;
    sl_err err;
    T_CODE(sl_ctx_open(&ctx, &sl_ops_cpu, SIZE_MAX - 100, &err), SL_NOMEM);
    T_SAYS(err.msg, "arena: no memory for 18446744073709551515 bytes on cpu");
    sl_ctx_close(&ctx); /* after a failed open */
    opened(&ctx, &sl_ops_cpu, 0);
    assert_null(sl_device_alloc(&ctx, SIZE_MAX / 2 + 2));
    fails(&ctx, SL_NOMEM, "no memory for 9223372036854775809 bytes on cpu");
    void *p = sl_device_alloc(&ctx, 1000);
    assert_true(p && (uintptr_t)p % 256 == 0);
    sl_device_free(&ctx, p);
    sl_device_free(&ctx, NULL);
    sl_ctx_close(&ctx);
    sl_ctx_close(&ctx); /* closed twice, and zeroed */
}

/* ---- errors, cancel, tap ---- */

static void first_error_sticks_and_stops_the_rest(void **state)
{
    (void)state;
    sl_ctx ctx;
    opened(&ctx, &sl_ops_cpu, 4096);
    sl_tensor a = sl_new2(&ctx, SL_F32, 2, 2), b = sl_new2(&ctx, SL_F32, 3, 2);
    float x[4] = {1, 2, 3, 4}, out[4] = {9, 9, 9, 9};
    sl_upload(&ctx, &a, x);
    sl_add(&ctx, &a, &a, &b);
    sl_add(&ctx, &b, &a, &a); /* wrong too, but second */
    sl_zero(&ctx, &a);        /* right, but too late */
    sl_download(&ctx, out, &a);
    assert_true(out[0] == 9 && ((float *)a.data)[0] == 1);
    sl_tensor late = sl_new1(&ctx, SL_F32, 4);
    assert_true(late.data == NULL && late.shape[0] == 4);
    assert_null(sl_device_alloc(&ctx, 16));
    fails(&ctx, SL_SHAPE, "add: b is [3, 2], want [2, 2]");
    assert_int_equal(ctx.arena_used, 0);
    sl_download(&ctx, out, &a); /* the ctx is good again */
    assert_true(out[3] == 4);
    assert_int_equal(sl_ctx_error(&ctx, NULL), SL_OK);
    sl_ctx_fail(&ctx, SL_NUMERIC, "step %d", 3);
    fails(&ctx, SL_NUMERIC, "step 3");
    sl_ctx_close(&ctx);
}

static void cancel_is_heard_by_the_next_operation(void **state)
{
    (void)state;
    sl_ctx ctx;
    volatile int stop = 0;
    opened(&ctx, &sl_ops_cpu, 4096);
    sl_tensor a = sl_new1(&ctx, SL_F32, 4);
    float x[4] = {1, 2, 3, 4};
    ctx.cancel = &stop;
    assert_false(sl_cancelled(&ctx));
    sl_upload(&ctx, &a, x);
    stop = 1;
    assert_false(sl_ok(&ctx));
    sl_zero(&ctx, &a);
    assert_true(((float *)a.data)[0] == 1);
    stop = 0; /* too late: what was skipped is missing */
    fails(&ctx, SL_CANCELLED, "cancelled");
    stop = 1;
    assert_int_equal(sl_ctx_error(&ctx, NULL), SL_CANCELLED); /* found by nobody before */
    assert_true(sl_cancelled(&ctx));
    sl_ctx_close(&ctx);
}

static void count_tap(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    float x[2];
    sl_download(ctx, x, t);
    assert_string_equal(name, "block.0.attn1");
    assert_true(x[1] == 8);
    ++*(int *)user;
}

static void tap_sees_values_until_an_error(void **state)
{
    (void)state;
    sl_ctx ctx;
    int calls = 0;
    float x[2] = {7, 8};
    opened(&ctx, &sl_ops_cpu, 4096);
    sl_tensor a = sl_new1(&ctx, SL_F32, 2);
    sl_upload(&ctx, &a, x);
    sl_tap(&ctx, "nobody looks", &a);
    ctx.tap = count_tap;
    ctx.tap_user = &calls;
    sl_tap(&ctx, "block.0.attn1", &a);
    assert_int_equal(calls, 1);
    sl_ctx_fail(&ctx, SL_ARG, "x");
    sl_tap(&ctx, "block.1", &a);
    assert_int_equal(calls, 1);
    sl_ctx_close(&ctx);
    opened(&ctx, &sl_ops_plan, 0);
    ctx.tap = count_tap;
    ctx.tap_user = &calls;
    a = sl_new1(&ctx, SL_F32, 2);
    sl_tap(&ctx, "planning", &a);
    assert_int_equal(calls, 1);
    sl_ctx_close(&ctx);
}

static void an_operation_that_a_body_lacks_is_named(void **state)
{
    (void)state;
    sl_ctx ctx;
    sl_ops poor = sl_ops_cpu;
    poor.name = "poor";
    poor.silu = NULL;
    opened(&ctx, &poor, 4096);
    sl_tensor a = sl_new1(&ctx, SL_F32, 2);
    sl_silu(&ctx, &a, &a);
    fails(&ctx, SL_INTERNAL, "silu: poor does not have it");
    sl_ctx_close(&ctx);
}

/* ---- planning ---- */

/* A miniature network; its result is in the arena. */
static void network(sl_ctx *ctx, int64_t tokens)
{
    sl_tensor x = sl_new2(ctx, SL_F32, tokens, 32), w = sl_new2(ctx, SL_F32, 48, 32),
              v = sl_new1(ctx, SL_F32, 32);
    sl_zero(ctx, &x);
    sl_zero(ctx, &w);
    sl_zero(ctx, &v);
    for (int i = 0; i < 3; i++) {
        size_t mark = sl_mark(ctx);
        sl_tensor n = sl_new2(ctx, SL_F32, tokens, 32), qkv = sl_new2(ctx, SL_F32, tokens, 48);
        sl_layernorm_modulate(ctx, &n, &x, &v, &v, 1e-6f);
        sl_linear(ctx, &qkv, &n, &w, NULL, SL_ACT_GELU_TANH);
        sl_tensor q = sl_cols(&qkv, 0, 16), k = sl_cols(&qkv, 16, 16), a = sl_cols(&qkv, 32, 16),
                  o = sl_cols(&n, 0, 16);
        sl_attention(ctx, &o, &q, &k, &a, 2, 1, NULL, false);
        sl_gated_add(ctx, &x, &n, &v);
        sl_release(ctx, mark);
    }
}

static void plan_measures_what_a_run_takes(void **state)
{
    (void)state;
    sl_ctx plan, run;
    opened(&plan, &sl_ops_plan, 0);
    assert_true(plan.arena == NULL && plan.arena_bytes == SIZE_MAX && sl_ok(&plan) &&
                sl_act(&plan) == SL_F32);
    network(&plan, 37);
    assert_true(sl_ok(&plan));
    opened(&run, &sl_ops_cpu, plan.arena_peak);
    network(&run, 37);
    assert_true(sl_ok(&run));
    assert_int_equal(plan.arena_peak, run.arena_peak);
    network(&run, 38); /* one row more does not fit */
    assert_int_equal(sl_ctx_error(&run, NULL), SL_NOMEM);
    sl_ctx_close(&run);
    network(&plan, 75600); /* nothing is touched, however large */
    assert_true(sl_ok(&plan));
    sl_ctx_close(&plan);
}

static void plan_has_no_data_and_checks_shapes(void **state)
{
    (void)state;
    sl_ctx ctx;
    float out[2] = {5, 5};
    opened(&ctx, &sl_ops_plan, 1000);
    sl_tensor a = sl_new2(&ctx, SL_F32, 4, 8), b = sl_new2(&ctx, SL_F32, 4, 9);
    assert_null(a.data);
    sl_upload(&ctx, &a, NULL);
    sl_download(&ctx, NULL, &a);
    sl_sync(&ctx);
    sl_embed(&ctx, &a, &a, NULL);
    sl_mean_abs(&ctx, out, &a, &a);
    assert_true(sl_ok(&ctx) && out[0] == 0 && out[1] == 0);
    assert_null(sl_device_alloc(&ctx, 100));
    assert_true(sl_ok(&ctx));
    sl_silu(&ctx, &a, &b);
    fails(&ctx, SL_SHAPE, "silu: y is [4, 8], want [4, 9]");
    sl_new2(&ctx, SL_U8, INT64_MAX / 2, 1);
    sl_new2(&ctx, SL_U8, INT64_MAX / 2, 1);
    sl_new2(&ctx, SL_U8, INT64_MAX / 2, 1);
    assert_int_equal(sl_ctx_error(&ctx, NULL), SL_NOMEM); /* the sum is guarded as well */
    sl_ctx_close(&ctx);
}

/* ---- refusals ---- */

#define F32(...)                                                                                   \
    shaped(SL_F32, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                      \
           (int64_t[]){__VA_ARGS__})
#define OF(dtype, ...)                                                                             \
    shaped(dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                       \
           (int64_t[]){__VA_ARGS__})

/* A tensor without data: refusals are tested on the plan body. From a ring, larger than
 * what one test needs. */
static const sl_tensor *shaped(sl_dtype dtype, int rank, const int64_t *shape)
{
    static sl_tensor ring[256];
    static int at;
    sl_tensor *t = &ring[at++ % 256];
    *t = sl_view(NULL, dtype, rank, shape);
    return t;
}

static const sl_tensor *pitched(const sl_tensor *t, int64_t pitch)
{
    ((sl_tensor *)(uintptr_t)t)->pitch = pitch;
    return t;
}

#define SHAPE_ERROR(call, message)                                                                 \
    do {                                                                                           \
        call;                                                                                      \
        fails(c, SL_SHAPE, message);                                                               \
    } while (0)

static void elementwise_refusals(void **state)
{
    (void)state;
    sl_ctx ctx, *c = &ctx;
    opened(c, &sl_ops_plan, 0);
    const sl_tensor *four = F32(4, 4);
    const int32_t *none = NULL;
    SHAPE_ERROR(sl_zero(c, NULL), "zero: y is absent");
    SHAPE_ERROR(sl_zero(c, &(sl_tensor){0}), "zero: y is absent");
    SHAPE_ERROR(sl_zero(c, pitched(F32(4, 3), 8)),
                "zero: y has rows of 3 at a pitch of 8, want dense");
    SHAPE_ERROR(sl_upload(c, pitched(F32(4, 3), 8), NULL),
                "upload: dst has rows of 3 at a pitch of 8, want dense");
    SHAPE_ERROR(sl_download(c, NULL, pitched(F32(4, 3), 8)),
                "download: src has rows of 3 at a pitch of 8, want dense");
    SHAPE_ERROR(sl_copy(c, F32(4, 3), four), "copy: y is [4, 3], want [4, 4]");
    SHAPE_ERROR(sl_copy(c, OF(SL_U8, 4, 4), four), "copy: y is U8, want F32 or BF16 or F16");
    SHAPE_ERROR(sl_copy(c, four, OF(SL_I64, 4, 4)), "copy: y is F32, want I64");
    SHAPE_ERROR(sl_copy(c, F32(16), four), "copy: y is [16], want 2 extents");
    SHAPE_ERROR(sl_copy(c, four, pitched(F32(4, 4), 3)),
                "copy: x has rows of 4 at a pitch of 3: they overlap");
    SHAPE_ERROR(sl_copy(c, F32(2, 2, 2), pitched(F32(2, 2, 2), 9)),
                "copy: x has rows of 4 at a pitch of 9, want dense");
    SHAPE_ERROR(sl_add(c, four, OF(SL_BF16, 4, 4), four), "add: a is BF16, want F32");
    SHAPE_ERROR(sl_sub(c, four, four, F32(4, 4, 1)), "sub: b is [4, 4, 1], want 2 extents");
    SHAPE_ERROR(sl_geglu(c, four, four, F32(4, 5)), "geglu: b is [4, 5], want [4, 4]");
    SHAPE_ERROR(sl_embed(c, F32(3, 5), four, none), "embed: y is [3, 5], want [3, 4]");
    SHAPE_ERROR(sl_embed(c, F32(3, 4), OF(SL_U8, 9, 4), none),
                "embed: table is U8, want F32 or BF16 or F16");
    sl_ctx_close(c);
}

static void embedding_refuses_an_unknown_id(void **state)
{
    (void)state;
    sl_ctx ctx;
    opened(&ctx, &sl_ops_cpu, 4096);
    sl_tensor table = sl_new2(&ctx, SL_F32, 5, 8), y = sl_new2(&ctx, SL_F32, 3, 8);
    sl_embed(&ctx, &y, &table, (int32_t[]){0, 4, 5});
    fails(&ctx, SL_ARG, "embed: id 5 at position 2, want 0 to 4");
    sl_embed(&ctx, &y, &table, (int32_t[]){-1, 4, 3});
    fails(&ctx, SL_ARG, "embed: id -1 at position 0, want 0 to 4");
    sl_ctx_close(&ctx);
}

static void matrix_refusals(void **state)
{
    (void)state;
    sl_ctx ctx, *c = &ctx;
    opened(c, &sl_ops_plan, 0);
    const sl_tensor *x = F32(3, 8), *w = F32(5, 8), *y = F32(3, 5), *v = F32(8);
    SHAPE_ERROR(sl_linear(c, y, F32(3, 8, 1), w, NULL, SL_ACT_NONE),
                "linear: x is [3, 8, 1], want 2 extents");
    SHAPE_ERROR(sl_linear(c, F32(3, 6), x, w, NULL, SL_ACT_NONE),
                "linear: y is [3, 6], want [3, 5]");
    SHAPE_ERROR(sl_linear(c, y, x, F32(5, 9), NULL, SL_ACT_NONE),
                "linear: w is [5, 9], want [5, 8]");
    SHAPE_ERROR(sl_linear(c, y, x, OF(SL_I32, 5, 8), NULL, SL_ACT_NONE),
                "linear: w is I32, want F32 or BF16 or F16");
    SHAPE_ERROR(sl_linear(c, y, x, pitched(F32(5, 8), 9), NULL, SL_ACT_NONE),
                "linear: w has rows of 8 at a pitch of 9, want dense");
    SHAPE_ERROR(sl_linear(c, y, x, w, F32(4), SL_ACT_NONE), "linear: b is [4], want [5]");
    SHAPE_ERROR(sl_linear(c, y, x, w, OF(SL_BF16, 5), SL_ACT_NONE), "linear: b is BF16, want F32");
    SHAPE_ERROR(sl_linear(c, y, F32(3, 0), F32(5, 0), NULL, SL_ACT_NONE),
                "linear: x's columns is 0, want at least 1");
    SHAPE_ERROR(sl_linear(c, y, x, w, NULL, (sl_activation)7),
                "linear: activation is 7, want 0 to 3");
    SHAPE_ERROR(sl_layernorm(c, x, x, v, NULL, 1), "layernorm: b is absent");
    SHAPE_ERROR(sl_layernorm(c, x, x, F32(7), v, 1), "layernorm: w is [7], want [8]");
    SHAPE_ERROR(sl_layernorm(c, pitched(F32(3, 8), 9), x, NULL, NULL, 1),
                "layernorm: y has rows of 8 at a pitch of 9, want dense");
    SHAPE_ERROR(sl_layernorm_modulate(c, x, x, v, F32(9), 1),
                "layernorm_modulate: shift is [9], want [8]");
    SHAPE_ERROR(sl_layernorm_modulate(c, x, x, NULL, v, 1), "layernorm_modulate: scale is absent");
    SHAPE_ERROR(sl_rmsnorm(c, F32(4, 8), x, v, 1), "rmsnorm: y is [4, 8], want [3, 8]");
    SHAPE_ERROR(sl_rmsnorm(c, x, x, NULL, 1), "rmsnorm: w is absent");
    SHAPE_ERROR(sl_rmsnorm_rope(c, x, x, v, 1, F32(3, 4), F32(3, 4), 3),
                "rmsnorm_rope: x's columns is 8, want a multiple of 6");
    SHAPE_ERROR(sl_rmsnorm_rope(c, x, x, v, 1, F32(3, 4), F32(3, 4), 0),
                "rmsnorm_rope: heads is 0, want at least 1");
    SHAPE_ERROR(sl_rmsnorm_rope(c, x, x, v, 1, F32(3, 4), F32(3, 4), 2),
                "rmsnorm_rope: cos is [3, 4], want [3, 2]");
    SHAPE_ERROR(sl_rmsnorm_rope(c, x, x, v, 1, F32(3, 4), F32(2, 4), 1),
                "rmsnorm_rope: sin is [2, 4], want [3, 4]");
    SHAPE_ERROR(sl_gated_add(c, x, F32(3, 9), v), "gated_add: y is [3, 9], want [3, 8]");
    SHAPE_ERROR(sl_gated_add(c, x, x, F32(3)), "gated_add: gate is [3], want [8]");
    SHAPE_ERROR(sl_linear_add(c, F32(3, 5), y, x, F32(5, 9), NULL, NULL),
                "linear_add: w is [5, 9], want [5, 8]");
    SHAPE_ERROR(sl_linear_add(c, F32(3, 6), y, x, w, NULL, NULL),
                "linear_add: y is [3, 5], want [3, 6]");
    SHAPE_ERROR(sl_linear_add(c, F32(3, 5), y, x, w, NULL, F32(3)),
                "linear_add: gate is [3], want [5]");
    SHAPE_ERROR(sl_attention(c, x, x, F32(0, 8), F32(0, 8), 2, 1, NULL, false),
                "attention: k's rows is 0, want at least 1");
    SHAPE_ERROR(sl_attention(c, x, x, F32(5, 8), F32(4, 8), 2, 1, NULL, false),
                "attention: v is [4, 8], want [5, 8]");
    SHAPE_ERROR(sl_attention(c, x, x, F32(5, 6), w, 2, 1, NULL, false),
                "attention: k is [5, 6], want [5, 8]");
    SHAPE_ERROR(sl_attention(c, y, x, w, w, 2, 1, NULL, false),
                "attention: o is [3, 5], want [3, 8]");
    SHAPE_ERROR(sl_attention(c, x, x, w, w, 3, 1, NULL, false),
                "attention: q's columns is 8, want a multiple of 3");
    SHAPE_ERROR(sl_attention(c, x, x, w, w, -1, 1, NULL, false),
                "attention: heads is -1, want at least 1");
    SHAPE_ERROR(sl_attention(c, x, x, w, w, 2, 1, F32(2, 8), false),
                "attention: bias is [2, 8], want [2, 7]");
    SHAPE_ERROR(sl_attention_two(c, x, x, F32(0, 8), F32(0, 8), w, w, 2, 1),
                "attention_two: k1's rows is 0, want at least 1");
    SHAPE_ERROR(sl_attention_two(c, x, x, w, F32(4, 8), w, w, 2, 1),
                "attention_two: v1 is [4, 8], want [5, 8]");
    SHAPE_ERROR(sl_attention_two(c, x, x, w, w, F32(5, 6), w, 2, 1),
                "attention_two: k2 is [5, 6], want [5, 8]");
    SHAPE_ERROR(sl_attention_two(c, x, x, w, w, F32(7, 8), w, 2, 1),
                "attention_two: v2 is [5, 8], want [7, 8]");
    SHAPE_ERROR(sl_attention_two(c, y, x, w, w, w, w, 2, 1),
                "attention_two: o is [3, 5], want [3, 8]");
    SHAPE_ERROR(sl_attention_two(c, x, x, w, w, w, w, 3, 1),
                "attention_two: q's columns is 8, want a multiple of 3");
    sl_ctx_close(c);
}

static void sampler_refusals(void **state)
{
    (void)state;
    sl_ctx ctx, *c = &ctx;
    opened(c, &sl_ops_plan, 0);
    const sl_tensor *lat = F32(16, 2, 4, 6), *flat = F32(8);
    SHAPE_ERROR(sl_patchify(c, F32(12, 64), F32(16, 2, 5, 6), NULL),
                "patchify: the latents' height is 5, want a multiple of 2");
    SHAPE_ERROR(sl_patchify(c, F32(12, 64), F32(16, 2, 4, 7), NULL),
                "patchify: the latents' width is 7, want a multiple of 2");
    SHAPE_ERROR(sl_patchify(c, F32(12, 64), lat, F32(20, 2, 4, 6)),
                "patchify: y is [12, 64], want [12, 144]");
    SHAPE_ERROR(sl_patchify(c, F32(12, 144), lat, F32(20, 3, 4, 6)),
                "patchify: condition is [20, 3, 4, 6], want [20, 2, 4, 6]");
    SHAPE_ERROR(sl_patchify(c, F32(12, 64), OF(SL_BF16, 16, 2, 4, 6), NULL),
                "patchify: latents is BF16, want F32");
    SHAPE_ERROR(sl_unpatchify(c, lat, F32(12, 60)), "unpatchify: x is [12, 60], want [12, 64]");
    SHAPE_ERROR(sl_guidance(c, flat, flat, F32(9), 5), "guidance: uncond is [9], want [8]");
    SHAPE_ERROR(sl_flow_x0(c, flat, flat, OF(SL_U8, 8), 1),
                "flow_x0: v is U8, want F32 or BF16 or F16");
    SHAPE_ERROR(sl_flow_x0(c, F32(7), flat, flat, 1), "flow_x0: x0 is [7], want [8]");
    const sl_tensor *xs[] = {flat, flat, F32(9), flat};
    const float a[] = {1, 1, 1, 1};
    const sl_tensor *w = F32(4, 6);
    SHAPE_ERROR(sl_low_rank_add(c, w, w, F32(4, 2), F32(3, 6), 1),
                "low_rank_add: up is [4, 2], want [4, 3]");
    SHAPE_ERROR(sl_low_rank_add(c, w, w, F32(4, 3), F32(3, 5), 1),
                "low_rank_add: down is [3, 5], want [3, 6]");
    SHAPE_ERROR(sl_low_rank_add(c, w, w, NULL, F32(4, 5), 1),
                "low_rank_add: down is [4, 5], want [4, 6]");
    SHAPE_ERROR(sl_low_rank_add(c, w, w, OF(SL_BF16, 4, 3), F32(3, 6), 1),
                "low_rank_add: up is BF16, want F32");
    SHAPE_ERROR(sl_lincomb(c, flat, 5, xs, a), "lincomb: n is 5, want 1 to 4");
    SHAPE_ERROR(sl_lincomb(c, flat, 0, xs, a), "lincomb: n is 0, want 1 to 4");
    SHAPE_ERROR(sl_lincomb(c, flat, 3, xs, a), "lincomb: x[2] is [9], want [8]");
    float out[2];
    SHAPE_ERROR(sl_mean_abs(c, out, flat, F32(7)), "mean_abs: r is [7], want [8]");
    SHAPE_ERROR(sl_mean_abs(c, out, F32(0), F32(0)),
                "mean_abs: prev's number of elements is 0, want at least 1");
    sl_ctx_close(c);
}

static void video_refusals(void **state)
{
    (void)state;
    sl_ctx ctx, *c = &ctx;
    opened(c, &sl_ops_plan, 0);
    const sl_conv three = {3, 3, 3, 1, 1, 1, 0, 0}, down = {1, 3, 3, 1, 2, 0, 1, 0},
                  up = {1, 3, 3, 1, 1, 1, 0, 1}, half = {3, 1, 1, 2, 1, 0, 0, 0};
    sl_conv bad = three;
    const sl_tensor *x = F32(2, 6, 8, 4), *y = F32(2, 6, 8, 5), *w = F32(5, 4, 3, 3, 3),
                    *b = F32(5);
    sl_conv3d(c, y, x, NULL, w, b, y, &three);
    sl_conv3d(c, y, x, F32(2, 6, 8, 4), w, b, NULL, &three);
    sl_conv3d(c, F32(2, 3, 4, 5), x, NULL, F32(5, 4, 1, 3, 3), b, NULL, &down);
    sl_conv3d(c, F32(2, 12, 16, 5), x, NULL, F32(5, 4, 1, 3, 3), b, NULL, &up);
    sl_conv3d(c, F32(1, 6, 8, 5), x, F32(1, 6, 8, 4), F32(5, 4, 3, 1, 1), b, NULL, &half);
    assert_true(sl_ok(c));
    bad.stride_hw = 3;
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, w, b, NULL, &bad), "conv3d: stride_hw is 3, want 1 to 2");
    bad = half;
    bad.kt = 1;
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, w, b, NULL, &bad),
                "conv3d: kt (with stride_t 2) is 1, want 3 to 3");
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, F32(5, 3, 3, 3, 3), b, NULL, &three),
                "conv3d: w is [5, 3, 3, 3, 3], want [5, 4, 3, 3, 3]");
    SHAPE_ERROR(sl_conv3d(c, x, x, NULL, w, b, NULL, &three),
                "conv3d: y is [2, 6, 8, 4], want [2, 6, 8, 5]");
    SHAPE_ERROR(sl_conv3d(c, y, x, F32(1, 6, 8, 4), w, b, NULL, &three),
                "conv3d: history is [1, 6, 8, 4], want [2, 6, 8, 4]");
    SHAPE_ERROR(sl_conv3d(c, F32(1, 6, 8, 5), x, NULL, F32(5, 4, 3, 1, 1), b, NULL, &half),
                "conv3d: history is absent");
    SHAPE_ERROR(sl_conv3d(c, F32(1, 6, 8, 5), F32(3, 6, 8, 4), F32(1, 6, 8, 4), F32(5, 4, 3, 1, 1),
                          b, NULL, &half),
                "conv3d: x's frames is 3, want a multiple of 2");
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, w, NULL, NULL, &three), "conv3d: b is absent");
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, w, F32(6), NULL, &three), "conv3d: b is [6], want [5]");
    SHAPE_ERROR(sl_conv3d(c, y, x, NULL, w, b, x, &three),
                "conv3d: residual is [2, 6, 8, 4], want [2, 6, 8, 5]");
    SHAPE_ERROR(sl_conv_history(c, F32(2, 6, 8, 5), x),
                "conv_history: history is [2, 6, 8, 5], want [2, 6, 8, 4]");
    SHAPE_ERROR(sl_vae_norm(c, x, x, F32(5), true), "vae_norm: gamma is [5], want [4]");
    SHAPE_ERROR(sl_time_shuffle(c, x, F32(1, 6, 8, 7)),
                "time_shuffle: x's channels is 7, want a multiple of 2");
    SHAPE_ERROR(sl_time_shuffle(c, x, F32(1, 6, 8, 6)),
                "time_shuffle: y is [2, 6, 8, 4], want [2, 6, 8, 3]");
    SHAPE_ERROR(sl_to_channels_last(c, x, F32(4, 2, 8, 6), NULL, NULL),
                "to_channels_last: y is [2, 6, 8, 4], want [2, 8, 6, 4]");
    SHAPE_ERROR(sl_to_channels_first(c, F32(5, 2, 6, 8), x, NULL, NULL),
                "to_channels_first: x's channels is 4, want at least 5");
    SHAPE_ERROR(sl_avg_down(c, F32(2, 3, 4, 4), F32(2, 6, 7, 4), 1),
                "avg_down: x's width is 7, want a multiple of 2");
    SHAPE_ERROR(sl_avg_down(c, F32(2, 3, 4, 3), F32(2, 6, 8, 4), 1),
                "avg_down: x's numbers a pixel of y is 16, want a multiple of 3");
    SHAPE_ERROR(sl_avg_down(c, F32(1, 3, 4, 4), F32(3, 6, 8, 4), 2),
                "avg_down: y is [1, 3, 4, 4], want [2, 3, 4, 4]");
    SHAPE_ERROR(sl_avg_down(c, F32(1, 3, 4, 4), F32(2, 6, 8, 4), 3),
                "avg_down: time is 3, want 1 to 2");
    SHAPE_ERROR(sl_dup_up(c, F32(3, 12, 16, 3), F32(2, 6, 8, 5), 2),
                "dup_up: y's numbers a pixel of x is 24, want a multiple of 5");
    SHAPE_ERROR(sl_dup_up(c, F32(2, 12, 16, 3), F32(2, 6, 8, 4), 2),
                "dup_up: y is [2, 12, 16, 3], want [4, 12, 16, 3]");
    SHAPE_ERROR(sl_pixel_shuffle(c, F32(2, 12, 16, 1), F32(2, 6, 8, 6)),
                "pixel_shuffle: x's channels is 6, want a multiple of 4");
    SHAPE_ERROR(sl_pixel_shuffle(c, F32(2, 12, 16, 2), F32(2, 6, 8, 4)),
                "pixel_shuffle: y is [2, 12, 16, 2], want [2, 12, 16, 1]");
    SHAPE_ERROR(sl_frames_rgb8(c, OF(SL_U8, 2, 6, 8, 4), x),
                "frames_rgb8: x is [2, 6, 8, 4], want [2, 6, 8, 3]");
    SHAPE_ERROR(sl_frames_rgb8(c, F32(2, 6, 8, 3), F32(2, 6, 8, 3)),
                "frames_rgb8: y is F32, want U8");
    sl_ctx_close(c);
}

static void overlaps_are_refused(void **state)
{
    (void)state;
    sl_ctx ctx, *c = &ctx;
    static float m[4096];
    opened(c, &sl_ops_cpu, 0);
    sl_tensor a = sl_view2(m, SL_F32, 8, 16), b = sl_view2(m + 16, SL_F32, 8, 16),
              w = sl_view2(m + 1024, SL_F32, 16, 16);
    sl_linear(c, &b, &a, &w, NULL, SL_ACT_NONE);
    fails(c, SL_ARG, "linear: y overlaps x");
    sl_linear(c, &a, &a, &w, NULL, SL_ACT_NONE);
    fails(c, SL_ARG, "linear: y overlaps x");
    sl_add(c, &b, &a, &b);
    fails(c, SL_ARG, "add: y overlaps a without being it");
    sl_tensor half = a;
    half.dtype = SL_BF16;
    sl_copy(c, &half, &a);
    fails(c, SL_ARG, "copy: y overlaps x without being it");
    sl_attention(c, &a, &w, &w, &w, 1, 1, NULL, false);
    fails(c, SL_SHAPE, "attention: o is [8, 16], want [16, 16]");
    sl_attention(c, &w, &w, &a, &a, 1, 1, NULL, false);
    fails(c, SL_ARG, "attention: o overlaps q");
    sl_tensor inside = sl_rows(&w, 4, 8), other = sl_view2(m + 2048, SL_F32, 16, 16);
    sl_attention_two(c, &inside, &a, &other, &other, &other, &w, 1, 1);
    fails(c, SL_ARG, "attention_two: o overlaps v2");
    sl_tensor left = sl_cols(&w, 0, 8), right = sl_cols(&w, 8, 8), middle = sl_cols(&w, 4, 8),
              below = sl_rows(&right, 4, 12);
    sl_rmsnorm(c, &left, &right, &(sl_tensor){m, SL_F32, 1, {8}, 1}, 1e-6f); /* neighbours */
    assert_true(sl_ok(c));
    sl_rmsnorm(c, &left, &middle, &(sl_tensor){m, SL_F32, 1, {8}, 1}, 1e-6f);
    fails(c, SL_ARG, "rmsnorm: y overlaps x without being it");
    sl_tensor from = sl_rows(&left, 0, 12);
    sl_copy(c, &below, &from); /* neighbours, rows apart */
    assert_true(sl_ok(c));
    sl_copy(c, &from, &below);
    assert_true(sl_ok(c));
    sl_tensor absent = sl_view2(NULL, SL_F32, 8, 16);
    sl_silu(c, &a, &absent);
    fails(c, SL_ARG, "silu: x has no data");
    sl_ctx_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_is_a_stack_of_aligned_tensors),
        cmocka_unit_test(arena_holds_tensors_without_elements),
        cmocka_unit_test(arena_that_is_too_small_names_both_sizes),
        cmocka_unit_test(arena_grows_only_when_empty),
        cmocka_unit_test(memory_that_does_not_exist_is_refused),
        cmocka_unit_test(first_error_sticks_and_stops_the_rest),
        cmocka_unit_test(cancel_is_heard_by_the_next_operation),
        cmocka_unit_test(tap_sees_values_until_an_error),
        cmocka_unit_test(an_operation_that_a_body_lacks_is_named),
        cmocka_unit_test(plan_measures_what_a_run_takes),
        cmocka_unit_test(plan_has_no_data_and_checks_shapes),
        cmocka_unit_test(elementwise_refusals),
        cmocka_unit_test(embedding_refuses_an_unknown_id),
        cmocka_unit_test(matrix_refusals),
        cmocka_unit_test(sampler_refusals),
        cmocka_unit_test(video_refusals),
        cmocka_unit_test(overlaps_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
