/* test_weights.c - the loaders: what stays mapped, what is converted, counted, made up,
 * found wrong. */
#include "t.h"

#include "common/safetensors.h"
#include "graphs/weights.h"

static sl_err err;
static sl_ctx cpu, plan, small;
static char dir[256];

/* ---- a second device: activations in BF16, memory limited and counted ---- */

static int live_blocks, uploads;
static size_t memory_left;

static void *small_alloc(sl_ctx *ctx, size_t bytes)
{
    (void)ctx;
    if (bytes > memory_left) return NULL;
    memory_left -= bytes;
    live_blocks++;
    return aligned_alloc(256, (bytes + 255) / 256 * 256);
}

static void small_free(sl_ctx *ctx, void *p)
{
    (void)ctx;
    live_blocks--;
    free(p);
}

static void small_upload(sl_ctx *ctx, const sl_tensor *dst, const void *host)
{
    (void)ctx;
    uploads++;
    memcpy(dst->data, host, sl_bytes(dst));
}

static void small_sync(sl_ctx *ctx)
{
    (void)ctx;
}

static void small_pack(sl_ctx *ctx, void *dst, const float *src, const int64_t s[5])
{
    (void)ctx;
    sl_from_floats(dst, SL_BF16, src, s[0] * s[1] * s[2] * s[3] * s[4], NULL);
}

static const sl_ops small_ops = {.name = "small",
                                 .act = SL_BF16,
                                 .alloc = small_alloc,
                                 .free = small_free,
                                 .upload = small_upload,
                                 .sync = small_sync,
                                 .pack_conv = small_pack};

static int set_up(void **state)
{
    (void)state;
    memset(&err, 0, sizeof err);
    live_blocks = uploads = 0;
    memory_left = SIZE_MAX;
    T_OK(sl_ctx_open(&cpu, &sl_ops_cpu, 0, &err));
    T_OK(sl_ctx_open(&plan, &sl_ops_plan, 0, &err));
    T_OK(sl_ctx_open(&small, &small_ops, 0, &err));
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sl_ctx_close(&cpu);
    sl_ctx_close(&plan);
    sl_ctx_close(&small);
    assert_int_equal(live_blocks, 0);
    t_rmdir(dir);
    return 0;
}

static void save(int n, const char *const names[], const sl_tensor tensors[])
{
    char path[300];
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    T_OK(sl_st_save(path, n, names, tensors, &err));
}

#define SHAPE(...) ((int64_t[]){__VA_ARGS__})
#define DIT t_golden("tiny-i2v/model/transformer"), "diffusion_pytorch_model"

/* ---- from a checkpoint ---- */

static void matrices_stay_mapped_as_stored(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w, table;
    T_OK(sl_loader_file(&l, &cpu, DIT, "transformer", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(384, 256), "blocks.%d.ffn.net.0.proj.weight", 1);
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal(w.dtype, SL_BF16);
    assert_int_equal(w.pitch, 256);
    assert_int_equal(sl_loader_bytes(l), 384 * 256 * 2); /* and nothing else was taken */
    assert_int_equal(sl_loader_parameters(l), 384 * 256);
    sl_weight(l, &table, SL_W_MATRIX, 5, SHAPE(256, 36, 1, 2, 2), "patch_embedding.weight");
    assert_int_equal(table.rank, 5);
    T_OK(sl_loader_finish(l, &err));
    sl_loader_close(&l);
    assert_null(l);
    sl_loader_close(&l);
    (void)state;
}

static void vectors_become_float32(void **state)
{
    sl_loader *l = NULL;
    sl_st *st = NULL;
    sl_tensor b, norm, table, stored;
    float want[1536];
    T_OK(sl_st_open_dir(&st, DIT, &err));
    T_OK(sl_loader_file(&l, &cpu, DIT, "transformer", &err));
    sl_weight(l, &b, SL_W_VECTOR, 1, SHAPE(256), "blocks.0.attn1.to_q.bias");
    sl_weight(l, &norm, SL_W_VECTOR, 1, SHAPE(256), "blocks.0.attn1.norm_q.weight");
    sl_weight(l, &table, SL_W_FLOAT, 3, SHAPE(1, 6, 256), "blocks.0.scale_shift_table");
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal(b.dtype, SL_F32);
    assert_int_equal((uintptr_t)b.data % 256, 0);
    assert_int_equal((char *)norm.data - (char *)b.data, 1024); /* one slab */
    stored = sl_st_find(st, "blocks.0.attn1.to_q.bias")->t;
    assert_int_equal(stored.dtype, SL_BF16);
    T_OK(sl_to_floats(want, stored.data, stored.dtype, 256, &err));
    assert_memory_equal(b.data, want, 1024);
    stored = sl_st_find(st, "blocks.0.scale_shift_table")->t;
    T_OK(sl_to_floats(want, stored.data, stored.dtype, 1536, &err));
    assert_memory_equal(table.data, want, sizeof want);
    sl_loader_close(&l);
    sl_st_close(&st);
    (void)state;
}

static void convolutions_are_packed(void **state)
{
    sl_loader *l = NULL;
    sl_st *st = NULL;
    sl_tensor w, flat;
    const int64_t shape[5] = {8, 3, 3, 3, 3};
    T_OK(sl_st_open_dir(&st, t_golden("tiny-i2v/model/vae"), "diffusion_pytorch_model", &err));
    T_OK(sl_loader_file(&l, &cpu, t_golden("tiny-i2v/model/vae"), "diffusion_pytorch_model", "vae",
                        &err));
    sl_weight(l, &w, SL_W_CONV, 5, shape, "encoder.conv_in.weight");
    sl_weight(l, &flat, SL_W_CONV, 4, SHAPE(8, 8, 3, 3), "encoder.down_blocks.2.resample.1.weight");
    T_OK(sl_loader_finish(l, &err));
    size_t bytes = cpu.ops->packed_conv_bytes(&cpu, shape);
    float *want = calloc(1, bytes);
    assert_non_null(want);
    cpu.ops->pack_conv(&cpu, want, sl_st_find(st, "encoder.conv_in.weight")->t.data, shape);
    assert_memory_equal(w.data, want, bytes);
    assert_int_equal(flat.rank, 5);
    assert_int_equal(flat.shape[2], 1);
    assert_int_equal(flat.shape[4], 3);
    free(want);
    sl_loader_close(&l);
    sl_st_close(&st);
    (void)state;
}

static void an_unaligned_matrix_is_copied(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w;
    uint8_t pad[3] = {1, 2, 3};
    float x[12];
    t_fill(x, 12, 1);
    save(2, (const char *const[]){"pad", "w"},
         (sl_tensor[]){sl_view1(pad, SL_U8, 3), sl_view2(x, SL_F32, 3, 4)});
    T_OK(sl_loader_file(&l, &cpu, dir, "m", "test", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(3, 4), "w");
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal((uintptr_t)w.data % 256, 0);
    assert_memory_equal(w.data, x, sizeof x);
    assert_int_equal(sl_loader_unused(l), 1);
    sl_weight_skip(l, "%s", "pad");
    sl_weight_skip(l, "never there");
    assert_int_equal(sl_loader_unused(l), 0);
    sl_loader_close(&l);
    (void)state;
}

static void another_device_gets_bf16(void **state)
{
    sl_loader *l = NULL;
    sl_tensor m, v, f, h, c;
    float x[12];
    sl_f16 half[12];
    sl_bf16 want[12], brain[12];
    t_fill(x, 12, 1);
    T_OK(sl_from_floats(half, SL_F16, x, 12, &err));
    T_OK(sl_from_floats(brain, SL_BF16, x, 12, &err));
    save(3, (const char *const[]){"w", "half", "brain"},
         (sl_tensor[]){sl_view2(x, SL_F32, 3, 4), sl_view2(half, SL_F16, 3, 4),
                       sl_view2(brain, SL_BF16, 3, 4)});
    T_OK(sl_loader_file(&l, &small, dir, "m", "test", &err));
    sl_weight(l, &m, SL_W_MATRIX, 2, SHAPE(3, 4), "w");
    sl_weight(l, &v, SL_W_VECTOR, 2, SHAPE(3, 4), "w");
    sl_weight(l, &f, SL_W_FLOAT, 2, SHAPE(3, 4), "half");
    sl_weight(l, &h, SL_W_MATRIX, 2, SHAPE(3, 4), "half");
    T_OK(sl_loader_finish(l, &err));
    assert_true(m.dtype == SL_BF16 && v.dtype == SL_BF16 && f.dtype == SL_F32 &&
                h.dtype == SL_BF16);
    assert_memory_equal(m.data, brain, sizeof brain);
    assert_memory_equal(v.data, brain, sizeof brain);
    T_NEAR((float *)f.data, x, 12, 0x1p-11); /* half's own rounding of numbers below 1 */
    T_OK(sl_from_floats(want, SL_BF16, f.data, 12, &err));
    assert_memory_equal(h.data, want, sizeof want);
    uint64_t bytes;
    double seconds;
    sl_loader_figures(l, &bytes, &seconds);
    assert_true(bytes == 48 + 48 + 24 + 24 && seconds > 0); /* "w" and "half" twice */
    sl_weight(l, &m, SL_W_MATRIX, 2, SHAPE(3, 4), "brain");
    assert_null(m.data); /* until it is asked for */
    T_OK(sl_loader_finish(l, &err));
    assert_memory_equal(m.data, brain, sizeof brain);
    sl_loader_close(&l);

    float k[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    save(1, (const char *const[]){"c"}, (sl_tensor[]){sl_view4(k, SL_F32, 2, 1, 2, 2)});
    T_OK(sl_loader_file(&l, &small, dir, "m", "test", &err));
    sl_weight(l, &c, SL_W_CONV, 4, SHAPE(2, 1, 2, 2), "c");
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal(c.dtype, SL_BF16);
    assert_true(sl_from_bf16(((sl_bf16 *)c.data)[7]) == 8);
    sl_loader_close(&l);
    (void)state;
}

/* ---- refusals ---- */

static void wrong_tensors_are_named(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w, later;
    T_OK(sl_loader_file(&l, &cpu, DIT, "transformer", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(384, 128), "blocks.0.ffn.net.0.proj.weight");
    /* a shape, so that a load function can go on */
    assert_true(w.rank == 2 && w.shape[1] == 128 && !w.data);
    sl_weight(l, &later, SL_W_MATRIX, 2, SHAPE(1, 1), "no.such");
    T_CODE(sl_loader_finish(l, &err), SL_SHAPE); /* the first error */
    T_SAYS(err.msg,
           "transformer: blocks.0.ffn.net.0.proj.weight has shape [384, 256], want [384, 128]");
    T_SAYS(err.msg, ".safetensors");
    sl_loader_close(&l);

    T_OK(sl_loader_file(&l, &cpu, DIT, "transformer", &err));
    sl_weight(l, &w, SL_W_VECTOR, 1, SHAPE(7), "blocks.%d.none", 3);
    T_CODE(sl_loader_finish(l, &err), SL_SHAPE);
    T_SAYS(err.msg, "transformer: blocks.3.none is missing, want [7]");
    sl_loader_close(&l);

    int64_t ids[2] = {1, 2};
    save(1, (const char *const[]){"ids"}, (sl_tensor[]){sl_view1(ids, SL_I64, 2)});
    T_OK(sl_loader_file(&l, &cpu, dir, "m", "test", &err));
    sl_weight(l, &w, SL_W_VECTOR, 1, SHAPE(2), "ids");
    T_CODE(sl_loader_finish(l, &err), SL_SHAPE);
    T_SAYS(err.msg, "test: ids has dtype I64, want F32, BF16 or F16");
    sl_loader_close(&l);

    T_CODE(sl_loader_file(&l, &cpu, dir, "other", "test", &err), SL_SYS);
    T_SAYS(err.msg, "test: ");
    T_SAYS(err.msg, "holds m.safetensors, weights under another name, want other.safetensors or ");
    assert_null(l);
    T_OK(sl_loader_plan(&l, &plan, "test", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(INT64_MAX, 8), "huge");
    T_CODE(sl_loader_finish(l, &err), SL_SHAPE);
    T_SAYS(err.msg, "test: huge: tensor is larger than 2^63 bytes");
    sl_loader_close(&l);
    (void)state;
}

static void a_full_device_is_named_and_given_back(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w;
    memory_left = ((size_t)5 << 20) - 1;
    T_OK(sl_loader_random(&l, &small, 1, "test", &err));
    for (int i = 0; i < 5; i++) sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(512, 1024), "w.%d", i);
    T_CODE(sl_loader_finish(l, &err), SL_NOMEM);
    T_SAYS(err.msg, "test: weights: no memory for 5242880 bytes on small");
    assert_null(w.data);
    assert_int_equal(sl_ctx_error(&small, NULL), SL_OK); /* the context can be used again */
    sl_loader_close(&l);
    assert_int_equal(live_blocks, 0);
    (void)state;
}

/* Found when the bytes are read: the file was whole when it was opened. */
static void a_file_that_is_cut_short_is_named(void **state)
{
    sl_loader *l = NULL;
    sl_tensor a, b;
    char path[300];
    float x[2000];
    t_fill(x, 2000, 1);
    save(2, (const char *const[]){"a", "b"},
         (sl_tensor[]){sl_view1(x, SL_F32, 1000), sl_view1(x + 1000, SL_F32, 1000)});
    T_OK(sl_loader_file(&l, &small, dir, "m", "test", &err));
    sl_weight(l, &a, SL_W_VECTOR, 1, SHAPE(1000), "a");
    sl_weight(l, &b, SL_W_VECTOR, 1, SHAPE(1000), "b");
    snprintf(path, sizeof path, "%s/m.safetensors", dir);
    assert_int_equal(truncate(path, 6000), 0);
    T_CODE(sl_loader_finish(l, &err), SL_FORMAT);
    T_SAYS(err.msg, "m.safetensors ends at byte 6000, want bytes ");
    T_SAYS(err.msg, "test: ");
    assert_true(!a.data && !b.data);
    sl_loader_close(&l);
    (void)state;
}

static void a_cancelled_load_ends(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w;
    const volatile int now = 1;
    T_OK(sl_loader_random(&l, &small, 1, "test", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(64, 64), "w");
    small.cancel = &now;
    T_CODE(sl_loader_finish(l, &err), SL_CANCELLED);
    assert_null(w.data);
    small.cancel = NULL;
    sl_loader_close(&l);
    (void)state;
}

/* ---- counting, making up ---- */

static void ask_for_a_few(sl_loader *l, sl_tensor w[5])
{
    sl_weight(l, &w[0], SL_W_MATRIX, 2, SHAPE(700, 300), "a.weight");
    sl_weight(l, &w[1], SL_W_VECTOR, 1, SHAPE(700), "a.bias");
    sl_weight(l, &w[2], SL_W_VECTOR, 1, SHAPE(300), "norm1.weight");
    sl_weight(l, &w[3], SL_W_FLOAT, 4, SHAPE(64, 1, 1, 1), "norm.gamma");
    sl_weight(l, &w[4], SL_W_CONV, 5, SHAPE(64, 32, 3, 3, 3), "c.weight");
}

static void a_plan_counts_what_loading_takes(void **state)
{
    sl_loader *a = NULL, *b = NULL;
    sl_tensor w[5];
    T_OK(sl_loader_plan(&a, &plan, "test", &err));
    T_OK(sl_loader_random(&b, &cpu, 1, "test", &err));
    ask_for_a_few(a, w);
    for (int i = 0; i < 5; i++) assert_null(w[i].data);
    ask_for_a_few(b, w);
    for (int i = 0; i < 5; i++) assert_non_null(w[i].data);
    T_OK(sl_loader_finish(a, &err));
    T_OK(sl_loader_finish(b, &err));
    assert_int_equal(sl_loader_bytes(a), sl_loader_bytes(b));
    assert_int_equal(sl_loader_parameters(a), 700 * 300 + 700 + 300 + 64 + 64 * 32 * 27);
    assert_int_equal(sl_loader_parameters(b), sl_loader_parameters(a));
    assert_true(sl_loader_bytes(a) >= (size_t)sl_loader_parameters(a) * 4);
    T_OK(sl_loader_check_finite(a, &err));
    sl_loader_close(&a);
    sl_loader_close(&b);
    (void)state;
}

static void a_device_takes_one_allocation_as_planned(void **state)
{
    sl_loader *a = NULL, *b = NULL;
    sl_tensor w[5], v[5];
    sl_ops table = sl_ops_plan_of(&small_ops);
    sl_ctx counting;
    T_OK(sl_ctx_open(&counting, &table, 0, &err));
    T_OK(sl_loader_plan(&a, &counting, "test", &err));
    T_OK(sl_loader_random(&b, &small, 1, "test", &err));
    ask_for_a_few(a, v);
    ask_for_a_few(b, w);
    T_OK(sl_loader_finish(a, &err));
    T_OK(sl_loader_finish(b, &err));
    /* [700, 300], [700], [300] in BF16, 64 in F32, 64 x 32 x 27 in BF16, each a multiple
     * of 256 bytes */
    assert_int_equal(sl_loader_bytes(a), 420096 + 1536 + 768 + 256 + 110592);
    assert_int_equal(sl_loader_bytes(b), sl_loader_bytes(a));
    assert_int_equal(sl_loader_mapped(a), 0);
    assert_int_equal(SIZE_MAX - memory_left, sl_loader_bytes(a));
    assert_int_equal(live_blocks, 1);
    for (int i = 0; i < 5; i++) {
        assert_int_equal((uintptr_t)w[i].data % 256, 0);
        assert_null(v[i].data);
        assert_int_equal(v[i].dtype, w[i].dtype);
    }
    sl_loader_close(&a);
    sl_loader_close(&b);
    sl_ctx_close(&counting);
    (void)state;
}

/* A matrix for float32 arithmetic: as stored on the CPU, F32 on a device, whatever the
 * file holds. */
static void float32_matrices_are_f32_on_a_device(void **state)
{
    const float x[12] = {1, -2, 0x1p-20f, 1.0009765625f, 5, 6, 7, 8, 9, 10, 11, 12};
    const sl_dtype D[] = {SL_F32, SL_BF16, SL_F16};
    const char *const names[] = {"f32", "bf16", "f16"};
    char raw[3][48];
    sl_tensor stored[3], here, there, counted;
    sl_loader *a = NULL, *b = NULL, *c = NULL;
    sl_ops table = sl_ops_plan_of(&small_ops);
    sl_ctx counting;
    for (int i = 0; i < 3; i++) {
        T_OK(sl_from_floats(raw[i], D[i], x, 12, &err));
        stored[i] = sl_view2(raw[i], D[i], 3, 4);
    }
    save(3, names, stored);
    T_OK(sl_ctx_open(&counting, &table, 0, &err));
    for (int i = 0; i < 3; i++) {
        float want[12];
        T_OK(sl_to_floats(want, raw[i], D[i], 12, &err));
        T_OK(sl_loader_file(&a, &cpu, dir, "m", "test", &err));
        T_OK(sl_loader_file(&b, &small, dir, "m", "test", &err));
        T_OK(sl_loader_plan(&c, &counting, "test", &err));
        sl_weight(a, &here, SL_W_MATRIX_F32, 2, SHAPE(3, 4), "%s", names[i]);
        sl_weight(b, &there, SL_W_MATRIX_F32, 2, SHAPE(3, 4), "%s", names[i]);
        sl_weight(c, &counted, SL_W_MATRIX_F32, 2, SHAPE(3, 4), "%s", names[i]);
        T_OK(sl_loader_finish(a, &err));
        T_OK(sl_loader_finish(b, &err));
        T_OK(sl_loader_finish(c, &err));
        assert_int_equal(here.dtype, D[i]);
        assert_int_equal(sl_loader_mapped(a), sl_bytes(&here));
        assert_memory_equal(here.data, raw[i], sl_bytes(&here));
        assert_int_equal(there.dtype, SL_F32);
        assert_int_equal(counted.dtype, SL_F32);
        assert_memory_equal(there.data, want, sizeof want);
        assert_int_equal(sl_loader_bytes(c), sl_loader_bytes(b));
        sl_loader_close(&a);
        sl_loader_close(&b);
        sl_loader_close(&c);
    }
    sl_ctx_close(&counting);
    (void)state;
}

/* Each tensor of a sharded checkpoint on a device: what the file holds, rounded. */
static void a_checkpoint_arrives_whole(void **state)
{
    sl_loader *l = NULL;
    sl_st *st = NULL;
    T_OK(sl_st_open_dir(&st, DIT, &err));
    const int n = sl_st_size(st);
    sl_tensor *w = calloc((size_t)n, sizeof *w);
    assert_non_null(w);
    T_OK(sl_loader_file(&l, &small, DIT, "transformer", &err));
    for (int i = 0; i < n; i++) {
        const sl_tensor *t = &sl_st_at(st, i)->t;
        sl_weight(l, &w[i], i % 3 ? SL_W_MATRIX : SL_W_FLOAT, t->rank, t->shape, "%s",
                  sl_st_at(st, i)->name);
    }
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal(live_blocks, 1);
    assert_int_equal(sl_loader_unused(l), 0);
    T_OK(sl_loader_check_finite(l, &err));
    for (int i = 0; i < n; i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        const int64_t count = sl_count(&e->t);
        float *x = malloc((size_t)count * 4);
        void *want = malloc((size_t)count * 4);
        assert_true(x && want);
        T_OK(sl_to_floats(x, e->t.data, e->t.dtype, count, &err));
        T_OK(sl_from_floats(want, w[i].dtype, x, count, &err));
        assert_int_equal(w[i].dtype, i % 3 ? SL_BF16 : SL_F32);
        if (memcmp(w[i].data, want, sl_bytes(&w[i]))) fail_msg("%s differs", e->name);
        free(want);
        free(x);
    }
    free(w);
    sl_loader_close(&l);
    sl_st_close(&st);
    (void)state;
}

static void note(void *user, const char *name, const sl_tensor *stored, const sl_st_entry *from)
{
    char *text = user, shape[128];
    size_t at = strlen(text);
    assert_true(!stored->data && stored->dtype == SL_F32 && !from);
    snprintf(text + at, 500 - at, "%s %s\n", name, sl_shape_text(stored, shape, sizeof shape));
}

static void a_plan_tells_what_is_asked_for(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w[5];
    char text[500] = "";
    T_OK(sl_loader_plan(&l, &plan, "test", &err));
    sl_loader_watch(l, note, text);
    ask_for_a_few(l, w);
    assert_string_equal(
        text, "a.weight [700, 300]\na.bias [700]\nnorm1.weight [300]\nnorm.gamma [64, 1, 1, 1]\n"
              "c.weight [64, 32, 3, 3, 3]\n");
    sl_loader_close(&l);
    (void)state;
}

static double mean(const sl_tensor *t)
{
    double s = 0;
    for (int64_t i = 0; i < sl_count(t); i++) s += ((float *)t->data)[i];
    return s / (double)sl_count(t);
}

static double deviation(const sl_tensor *t)
{
    double s = 0, m = mean(t);
    for (int64_t i = 0; i < sl_count(t); i++)
        s += (((float *)t->data)[i] - m) * (((float *)t->data)[i] - m);
    return sqrt(s / (double)sl_count(t));
}

static void random_weights_have_the_right_scale(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w[5];
    T_OK(sl_loader_random(&l, &cpu, 7, "test", &err));
    ask_for_a_few(l, w);
    T_OK(sl_loader_finish(l, &err));
    /* 210,000 samples: 1 % is more than five standard errors of mean and deviation */
    assert_true(fabs(deviation(&w[0]) * sqrt(300) - 1) < 0.01 && fabs(mean(&w[0])) < 0.01);
    assert_true(fabs(mean(&w[1])) < 0.02 && deviation(&w[1]) < 0.02);
    assert_true(fabs(mean(&w[2]) - 1) < 0.03 && deviation(&w[2]) < 0.1);
    assert_true(fabs(mean(&w[3]) - 1) < 0.05);
    sl_loader_close(&l);
    (void)state;
}

static void random_weights_depend_on_seed_and_name_alone(void **state)
{
    sl_loader *l = NULL, *other = NULL, *bf16 = NULL;
    sl_tensor w[5], again, elsewhere, rounded;
    T_OK(sl_loader_random(&l, &cpu, 7, "test", &err));
    ask_for_a_few(l, w);
    sl_weight(l, &again, SL_W_MATRIX, 2, SHAPE(700, 300), "a.weight");
    assert_memory_equal(again.data, w[0].data, sl_bytes(&again));
    sl_weight(l, &again, SL_W_MATRIX, 2, SHAPE(700, 300), "b.weight");
    assert_memory_not_equal(again.data, w[0].data, sl_bytes(&again));
    float *part = malloc(1000 * 4);
    sl_weight_random(part, SL_F32, 7, "b.weight", &again, 5000, 1000);
    assert_memory_equal(part, (float *)again.data + 5000, 1000 * 4);
    free(part);
    T_OK(sl_loader_random(&other, &cpu, 8, "test", &err));
    sl_weight(other, &elsewhere, SL_W_MATRIX, 2, SHAPE(700, 300), "a.weight");
    assert_memory_not_equal(elsewhere.data, w[0].data, sl_bytes(&elsewhere));

    /* More than one stage, and a last piece that fills no block: the same numbers on a
     * device, rounded. */
    const int64_t rows = 2049, columns = 4097;
    T_OK(sl_loader_random(&bf16, &small, 8, "test", &err));
    sl_weight(bf16, &rounded, SL_W_MATRIX, 2, SHAPE(rows, columns), "big.weight");
    sl_weight(other, &elsewhere, SL_W_MATRIX, 2, SHAPE(rows, columns), "big.weight");
    T_OK(sl_loader_finish(bf16, &err));
    T_OK(sl_loader_finish(other, &err));
    assert_int_equal(uploads, 2);
    for (int64_t i = 0; i < rows * columns; i++)
        if (((sl_bf16 *)rounded.data)[i] != sl_to_bf16(((float *)elsewhere.data)[i]))
            fail_msg("element %lld differs", (long long)i);
    sl_loader_close(&l);
    sl_loader_close(&other);
    sl_loader_close(&bf16);
    (void)state;
}

/* ---- inspecting ---- */

static void inspecting_lists_what_is_odd(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w;
    float x[12] = {0};
    int64_t ids[2] = {0};
    save(5, (const char *const[]){"good", "bent", "extra\nline", "known", "ids"},
         (sl_tensor[]){sl_view2(x, SL_F32, 3, 4), sl_view1(x, SL_F32, 3), sl_view1(x, SL_F32, 5),
                       sl_view1(x, SL_F32, 1), sl_view1(ids, SL_I64, 2)});
    T_OK(sl_loader_inspect(&l, &plan, dir, "m", "test", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(3, 4), "good");
    sl_weight(l, &w, SL_W_VECTOR, 1, SHAPE(4), "bent");
    sl_weight(l, &w, SL_W_VECTOR, 2, SHAPE(8, 8), "gone");
    sl_weight(l, &w, SL_W_VECTOR, 1, SHAPE(2), "ids");
    sl_weight_skip(l, "known");
    T_OK(sl_loader_finish(l, &err));
    T_OK(sl_loader_finish(l, &err));
    assert_string_equal(sl_loader_finding(l, 0), "misshapen bent [3], want [4]");
    assert_string_equal(sl_loader_finding(l, 1), "missing gone [8, 8]");
    assert_string_equal(sl_loader_finding(l, 2), "unusable ids I64, want F32, BF16 or F16");
    assert_string_equal(sl_loader_finding(l, 3), "unexpected extra?line [5]");
    assert_null(sl_loader_finding(l, 4));
    assert_null(sl_loader_finding(l, -1));
    assert_int_equal(sl_loader_unused(l), 1);
    sl_loader_close(&l);
    (void)state;
}

static void numbers_that_are_none_are_named(void **state)
{
    sl_loader *l = NULL;
    sl_tensor w;
    float x[100] = {0};
    sl_bf16 y[100] = {0};
    x[25] = NAN;
    y[99] = sl_to_bf16(-INFINITY);
    save(3, (const char *const[]){"a", "b", "unused"},
         (sl_tensor[]){sl_view2(y, SL_BF16, 10, 10), sl_view3(x, SL_F32, 5, 2, 10),
                       sl_view1(x, SL_F32, 100)});
    T_OK(sl_loader_file(&l, &cpu, dir, "m", "transformer", &err));
    T_OK(sl_loader_check_finite(l, &err)); /* nothing asked for yet */
    sl_weight(l, &w, SL_W_FLOAT, 3, SHAPE(5, 2, 10), "b");
    T_OK(sl_loader_finish(l, &err));
    T_CODE(sl_loader_check_finite(l, &err), SL_NUMERIC);
    assert_string_equal(err.msg, "transformer: b has NaN at [1, 0, 5]");
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(10, 10), "a");
    T_CODE(sl_loader_check_finite(l, &err), SL_NUMERIC);
    assert_string_equal(err.msg, "transformer: a has infinity at [9, 9]");
    sl_loader_close(&l);
    T_OK(sl_loader_file(&l, &cpu, DIT, "transformer", &err));
    sl_weight(l, &w, SL_W_MATRIX, 2, SHAPE(384, 256), "blocks.0.ffn.net.0.proj.weight");
    T_OK(sl_loader_check_finite(l, &err));
    sl_loader_close(&l);
    (void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(matrices_stay_mapped_as_stored),
        T(vectors_become_float32),
        T(convolutions_are_packed),
        T(an_unaligned_matrix_is_copied),
        T(another_device_gets_bf16),
        T(wrong_tensors_are_named),
        T(a_full_device_is_named_and_given_back),
        T(a_file_that_is_cut_short_is_named),
        T(a_cancelled_load_ends),
        T(a_plan_counts_what_loading_takes),
        T(a_device_takes_one_allocation_as_planned),
        T(float32_matrices_are_f32_on_a_device),
        T(a_checkpoint_arrives_whole),
        T(a_plan_tells_what_is_asked_for),
        T(random_weights_have_the_right_scale),
        T(random_weights_depend_on_seed_and_name_alone),
        T(inspecting_lists_what_is_odd),
        T(numbers_that_are_none_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
