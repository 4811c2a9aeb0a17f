/* t_merge.h - LoRA merged and taken off on one device: values against double, set after set, and
 * the checkpoint's own bytes in the end. The program that includes this names the device's table. */
#ifndef T_MERGE_H
#define T_MERGE_H

#include "tests/t_net.h"

#include "common/e4m3.h"
#include "common/safetensors.h"
#include "graphs/merge.h"

static const sl_ops *t_merge_ops;

/* What the network asks for. */
static const struct {
    const char *name;
    sl_weight_kind kind;
    sl_dtype stored;
    int rank;
    int64_t shape[5];
} T_ASKED[] = {
    {"blocks.0.attn1.to_q.weight", SL_W_MATRIX, SL_BF16, 2, {72, 40}},
    {"blocks.0.attn1.to_q.bias", SL_W_VECTOR, SL_F32, 1, {72}},
    {"blocks.0.attn1.to_k.weight", SL_W_MATRIX, SL_F32, 2, {72, 40}},
    {"blocks.0.scale_shift_table", SL_W_FLOAT, SL_F32, 3, {1, 6, 40}},
    {"patch_embedding.weight", SL_W_MATRIX, SL_BF16, 5, {72, 3, 1, 2, 2}},
    {"proj_out.weight", SL_W_MATRIX, SL_F16, 2, {130, 40}},
    {"blocks.0.norm2.weight", SL_W_FLOAT, SL_BF16, 1, {40}},
};
enum { T_ASKED_COUNT = sizeof T_ASKED / sizeof *T_ASKED };

/* Files: name, shape. alpha: a scalar of this value instead of numbers. */
typedef struct {
    const char *name;
    sl_dtype dtype;
    int rank;
    int64_t shape[5];
    float alpha;
} t_made;
static const t_made T_FILE_A[] = {
    {"diffusion_model.blocks.0.self_attn.q.lora_down.weight", SL_BF16, 2, {4, 40}, 0},
    {"diffusion_model.blocks.0.self_attn.q.lora_up.weight", SL_BF16, 2, {72, 4}, 0},
    {"diffusion_model.blocks.0.self_attn.q.alpha", SL_F32, 1, {1}, 3},
    {"diffusion_model.blocks.0.self_attn.q.diff_b", SL_BF16, 1, {72}, 0},
    {"diffusion_model.blocks.0.self_attn.k.lora_down.weight", SL_F16, 2, {3, 40}, 0},
    {"diffusion_model.blocks.0.self_attn.k.lora_up.weight", SL_F16, 2, {72, 3}, 0},
    {"diffusion_model.blocks.0.diff_m", SL_F32, 3, {1, 6, 40}, 0},
};
static const t_made T_FILE_B[] = {
    {"transformer.blocks.0.attn1.to_q.lora_A.weight", SL_F32, 2, {2, 40}, 0},
    {"transformer.blocks.0.attn1.to_q.lora_B.weight", SL_F32, 2, {72, 2}, 0},
    {"transformer.patch_embedding.diff", SL_BF16, 5, {72, 3, 1, 2, 2}, 0},
    {"transformer.proj_out.lora_A.weight", SL_BF16, 2, {17, 40}, 0},
    {"transformer.proj_out.lora_B.weight", SL_BF16, 2, {130, 17}, 0},
    {"transformer.norm.what", SL_BF16, 1, {2}, 0},
};

/* ---- a network's weights and two files, on the device ---- */

typedef struct {
    char dir[256];
    sl_ctx ctx;
    sl_loader *loader;
    sl_merge *merge;
    sl_tensor t[T_ASKED_COUNT];
    float *stored[T_ASKED_COUNT]; /* the checkpoint's numbers */
    void *first[T_ASKED_COUNT];   /* the device's bytes, as loaded */
    sl_lora *a, *b;
} t_merge_rig;

static inline const char *t_file(const t_merge_rig *r, const char *name)
{
    static char path[2][300];
    static int next;
    char *p = path[next++ % 2];
    snprintf(p, sizeof path[0], "%s/%s.safetensors", r->dir, name);
    return p;
}

static inline void t_save(const char *path, int n, const char *const names[],
                          const sl_dtype dtypes[], const int ranks[], const int64_t shapes[][5],
                          const float alphas[], uint64_t seed)
{
    sl_tensor t[16];
    sl_err err;
    for (int i = 0; i < n; i++) {
        t[i] = sl_view(NULL, dtypes[i], ranks[i], shapes[i]);
        const int64_t count = sl_count(&t[i]);
        float *x = malloc((size_t)count * sizeof *x);
        t[i].data = malloc(sl_bytes(&t[i]) + 1);
        t_fill(x, count, seed + (uint64_t)i);
        for (int64_t k = 0; k < count; k++) x[k] = alphas[i] != 0 ? alphas[i] : 0.3f * x[k];
        T_OK(sl_from_floats(t[i].data, dtypes[i], x, count, &err));
        free(x);
    }
    T_OK(sl_st_save(path, n, names, t, &err));
    for (int i = 0; i < n; i++) free(t[i].data);
}

static inline sl_lora *t_save_lora(const char *path, const t_made *m, int n, uint64_t seed)
{
    const char *names[16];
    sl_dtype dtypes[16];
    int ranks[16];
    int64_t shapes[16][5];
    float alphas[16];
    sl_lora *l = NULL;
    sl_err err;
    for (int i = 0; i < n; i++) {
        names[i] = m[i].name, dtypes[i] = m[i].dtype, ranks[i] = m[i].rank, alphas[i] = m[i].alpha;
        memcpy(shapes[i], m[i].shape, sizeof shapes[i]);
    }
    t_save(path, n, names, dtypes, ranks, shapes, alphas, seed);
    T_OK(sl_lora_open(&l, path, &err));
    return l;
}

static inline void t_merge_open(t_merge_rig *r)
{
    const char *names[16];
    sl_dtype dtypes[16];
    int ranks[16];
    int64_t shapes[16][5];
    float alphas[16] = {0};
    sl_err err;
    memset(r, 0, sizeof *r);
    snprintf(r->dir, sizeof r->dir, "%s", t_tmpdir());
    for (int i = 0; i < T_ASKED_COUNT; i++) {
        names[i] = T_ASKED[i].name, dtypes[i] = T_ASKED[i].stored, ranks[i] = T_ASKED[i].rank;
        memcpy(shapes[i], T_ASKED[i].shape, sizeof shapes[i]);
    }
    t_save(t_file(r, "m"), T_ASKED_COUNT, names, dtypes, ranks, shapes, alphas, 100);
    r->a = t_save_lora(t_file(r, "a"), T_FILE_A, 7, 200);
    r->b = t_save_lora(t_file(r, "b"), T_FILE_B, 6, 300);
    T_OK(sl_ctx_open(&r->ctx, t_merge_ops, 0, &err));
    T_OK(sl_loader_file(&r->loader, &r->ctx, r->dir, "m", "transformer", &err));
    for (int i = 0; i < T_ASKED_COUNT; i++)
        sl_weight(r->loader, &r->t[i], T_ASKED[i].kind, T_ASKED[i].rank, T_ASKED[i].shape, "%s",
                  T_ASKED[i].name);
    T_OK(sl_loader_finish(r->loader, &err));
    sl_st *st = NULL;
    T_OK(sl_st_open_file(&st, t_file(r, "m"), &err));
    for (int i = 0; i < T_ASKED_COUNT; i++) {
        const sl_st_entry *e = sl_st_find(st, T_ASKED[i].name);
        const int64_t n = sl_count(&e->t);
        r->stored[i] = malloc((size_t)n * sizeof(float));
        T_OK(sl_to_floats(r->stored[i], e->t.data, e->t.dtype, n, &err));
        r->first[i] = malloc(sl_bytes(&r->t[i]));
        sl_download(&r->ctx, r->first[i], &r->t[i]);
    }
    sl_st_close(&st);
    T_OK(sl_merge_open(&r->merge, r->loader, &r->ctx, &err));
}

static inline void t_merge_close(t_merge_rig *r)
{
    sl_merge_close(&r->merge);
    sl_merge_close(&r->merge); /* twice is fine */
    sl_lora_close(&r->a);
    sl_lora_close(&r->b);
    sl_loader_close(&r->loader);
    sl_ctx_close(&r->ctx);
    for (int i = 0; i < T_ASKED_COUNT; i++) free(r->stored[i]), free(r->first[i]);
    t_rmdir(r->dir);
}

/* What weight i is with these strengths (0: without the file), in double. */
static inline double *t_wanted(const t_merge_rig *r, int i, double a, double b)
{
    const int64_t n = sl_count(&r->t[i]), rows = T_ASKED[i].shape[0], cols = n / rows;
    double *w = malloc((size_t)n * sizeof *w);
    for (int64_t k = 0; k < n; k++) w[k] = (double)r->stored[i][k];
    for (int f = 0; f < 2; f++) {
        const sl_lora_change *c;
        const double strength = f ? b : a;
        for (int k = 0; strength != 0 && (c = sl_lora_at(f ? r->b : r->a, k)); k++) {
            if (strcmp(c->target, T_ASKED[i].name)) continue;
            const int64_t rank = c->up.rank ? c->up.shape[1] : 0, nd = sl_count(&c->down);
            float *d = malloc((size_t)nd * sizeof *d), *u = malloc((size_t)(rows * rank + 1) * 4);
            sl_to_floats(d, c->down.data, c->down.dtype, nd, NULL);
            if (rank) sl_to_floats(u, c->up.data, c->up.dtype, rows * rank, NULL);
            for (int64_t y = 0; y < rows; y++)
                for (int64_t x = 0; x < cols; x++) {
                    double s = rank ? 0 : (double)d[y * cols + x];
                    for (int64_t q = 0; q < rank; q++)
                        s += (double)u[y * rank + q] * (double)d[q * cols + x];
                    w[y * cols + x] += strength * (double)c->scale * s;
                }
            free(d);
            free(u);
        }
    }
    return w;
}

/* Every weight is what it should be, rounded once. */
static inline void t_check(t_merge_rig *r, double a, double b)
{
    for (int i = 0; i < T_ASKED_COUNT; i++) {
        const sl_tensor *t = &r->t[i];
        const int64_t n = sl_count(t);
        double *want = t_wanted(r, i, a, b);
        void *raw = malloc(sl_bytes(t));
        float *got = malloc((size_t)n * sizeof *got);
        sl_download(&r->ctx, raw, t);
        assert_int_equal(sl_to_floats(got, raw, t->dtype, n, NULL), SL_OK);
        /* half a unit in the last place, and what sums of 20 products in float32 stray */
        const double half = t->dtype == SL_F32 ? 0x1p-24 : t->dtype == SL_BF16 ? 0x1p-8 : 0x1p-11;
        for (int64_t k = 0; k < n; k++)
            if (!(fabs((double)got[k] - want[k]) <= fabs(want[k]) * half + 2e-6))
                fail_msg("%s[%lld] with a %g, b %g is %.9g, want %.9g", T_ASKED[i].name,
                         (long long)k, a, b, (double)got[k], want[k]);
        free(want);
        free(raw);
        free(got);
    }
}

static inline void t_check_first(t_merge_rig *r)
{
    for (int i = 0; i < T_ASKED_COUNT; i++) {
        void *raw = malloc(sl_bytes(&r->t[i]));
        sl_download(&r->ctx, raw, &r->t[i]);
        if (memcmp(raw, r->first[i], sl_bytes(&r->t[i])))
            fail_msg("%s is not the checkpoint's again", T_ASKED[i].name);
        free(raw);
    }
}

static inline void t_use(t_merge_rig *r, double a, double b, sl_merge_figures *f)
{
    const sl_lora *files[2];
    double strength[2];
    int n = 0;
    sl_err err;
    if (a != 0) files[n] = r->a, strength[n++] = a;
    if (b != 0) files[n] = r->b, strength[n++] = b;
    T_OK(sl_merge_use(r->merge, files, strength, n, true, f, &err));
}

static inline bool t_touches(const t_merge_rig *r, const char *name, double a, double b)
{
    const sl_lora_change *c;
    for (int f = 0; f < 2; f++)
        for (int k = 0; (f ? b : a) != 0 && (c = sl_lora_at(f ? r->b : r->a, k)); k++)
            if (!strcmp(c->target, name)) return true;
    return false;
}

/* What is read of the checkpoint from one set to the next: on a device each tensor once that the
 * last has touched, or that the next does and the device keeps rounded. */
static inline uint64_t t_wanted_bytes(const t_merge_rig *r, double a0, double b0, double a,
                                      double b)
{
    const sl_weight_place *p;
    uint64_t bytes = 0;
    for (int i = 0; !r->ctx.ops->host_memory && (p = sl_loader_place(r->loader, i)); i++)
        if (t_touches(r, p->name, a0, b0) || (!p->exact && t_touches(r, p->name, a, b)))
            bytes += p->stored_bytes;
    return bytes;
}

/* ---- the cases ---- */

/* From set to set, each from the checkpoint's numbers, and back. */
static void sets_follow_each_other(void **state)
{
    static const struct {
        double a, b;
        int tensors, restored;
    } SETS[] = {{1, 0, 4, 0},     {0.5, -1, 6, 4},  {0, 1, 3, 6}, {0, 0, 0, 3},
                {-0.25, 0, 4, 0}, {-0.25, 0, 4, 4}, {0, 0, 0, 4}, {0, 0, 0, 0}};
    t_merge_rig r;
    (void)state;
    t_merge_open(&r);
    t_check(&r, 0, 0);
    for (size_t i = 0; i < sizeof SETS / sizeof *SETS; i++) {
        sl_merge_figures f;
        t_use(&r, SETS[i].a, SETS[i].b, &f);
        t_check(&r, SETS[i].a, SETS[i].b);
        assert_int_equal(f.tensors, SETS[i].tensors);
        assert_int_equal(f.restored, SETS[i].restored);
        assert_int_equal(f.bytes_read, t_wanted_bytes(&r, i ? SETS[i - 1].a : 0,
                                                      i ? SETS[i - 1].b : 0, SETS[i].a, SETS[i].b));
        if (SETS[i].a == 0 && SETS[i].b == 0) t_check_first(&r);
    }
    t_merge_close(&r);
}

/* The codes of a matrix in 8 bits, then its scales. The caller frees. */
static inline char *t_bytes_of(t_merge_rig *r, const sl_eight *e)
{
    const size_t codes = sl_bytes(&e->codes);
    char *bytes = malloc(codes + sl_bytes(&e->scale));
    assert_non_null(bytes);
    sl_download(&r->ctx, bytes, &e->codes);
    sl_download(&r->ctx, bytes + codes, &e->scale);
    return bytes;
}

/* Every number of a matrix in 8 bits is off by half a code's last place at most. */
static inline void t_check_eight(t_merge_rig *r, const sl_eight *e, int asked, double a, double b)
{
    const int64_t rows = e->codes.shape[0], cols = e->codes.shape[1];
    double *want = t_wanted(r, asked, a, b);
    char *bytes = t_bytes_of(r, e);
    const float *scales = (const float *)(const void *)(bytes + sl_bytes(&e->codes));
    for (int64_t y = 0; y < rows; y++) {
        double most = 0;
        for (int64_t x = 0; x < cols; x++) most = fmax(most, fabs(want[y * cols + x]));
        for (int64_t x = 0; x < cols; x++) {
            const double w = want[y * cols + x],
                         got =
                             (double)scales[y] * (double)sl_from_e4m3((uint8_t)bytes[y * cols + x]);
            if (!(fabs(got - w) <= fmax(fabs(w) / 16, most / 448 / 1024) + 2e-6))
                fail_msg("%s in 8 bits, [%lld, %lld] with a %g, b %g is %.9g, want %.9g",
                         T_ASKED[asked].name, (long long)y, (long long)x, a, b, got, w);
        }
    }
    free(want);
    free(bytes);
}

/* Matrices in 8 bits become the checkpoint's numbers and the sets', summed in float32 and quantised
 * once, and the very bytes of before when the sets are taken off. */
static void in_8_bits_the_sum_is_quantised_once(void **state)
{
    static const int ASK[] = {0, 2, 5}; /* from bf16, float32, float16 */
    static const double SETS[][2] = {{1, 0}, {0.5, -1}, {0, 1}, {0, 0}, {-0.25, 0}, {0, 0}};
    t_merge_rig r;
    sl_eight e[3];
    char *first[3];
    sl_loader *l = NULL;
    sl_merge *m = NULL;
    sl_err err = {0};
    (void)state;
    t_merge_open(&r);
    T_OK(sl_loader_file(&l, &r.ctx, r.dir, "m", "transformer", &err));
    for (int i = 0; i < 3; i++)
        sl_weight_eight(l, &e[i], T_ASKED[ASK[i]].shape[0], T_ASKED[ASK[i]].shape[1], "%s",
                        T_ASKED[ASK[i]].name);
    T_OK(sl_loader_finish(l, &err));
    T_OK(sl_merge_open(&m, l, &r.ctx, &err));
    for (int i = 0; i < 3; i++) {
        first[i] = t_bytes_of(&r, &e[i]);
        t_check_eight(&r, &e[i], ASK[i], 0, 0);
    }
    for (size_t s = 0; s < sizeof SETS / sizeof *SETS; s++) {
        const sl_lora *files[2];
        double strength[2];
        sl_merge_figures f;
        int n = 0;
        if (SETS[s][0] != 0) files[n] = r.a, strength[n++] = SETS[s][0];
        if (SETS[s][1] != 0) files[n] = r.b, strength[n++] = SETS[s][1];
        T_OK(sl_merge_use(m, files, strength, n, true, &f, &err));
        for (int i = 0; i < 3; i++) {
            t_check_eight(&r, &e[i], ASK[i], SETS[s][0], SETS[s][1]);
            char *now = t_bytes_of(&r, &e[i]);
            if (!n)
                assert_memory_equal(now, first[i], sl_bytes(&e[i].codes) + sl_bytes(&e[i].scale));
            free(now);
        }
    }
    for (int i = 0; i < 3; i++) free(first[i]);
    sl_merge_close(&m);
    sl_loader_close(&l);
    t_merge_close(&r);
}

/* A switch that is cancelled leaves disorder, which the next one ends. */
static void a_cancelled_switch_is_made_good(void **state)
{
    t_merge_rig r;
    sl_merge_figures f;
    sl_err err = {0};
    volatile int cancel = 1;
    (void)state;
    t_merge_open(&r);
    t_use(&r, 1, 0, &f);
    r.ctx.cancel = &cancel;
    const sl_lora *const both[] = {r.a, r.b};
    T_CODE(sl_merge_use(r.merge, both, (double[]){1, 1}, 2, true, &f, &err), SL_CANCELLED);
    r.ctx.cancel = NULL;
    t_use(&r, 0, 1, &f);
    t_check(&r, 0, 1);
    t_use(&r, 0, 0, &f);
    t_check_first(&r);
    t_merge_close(&r);
}

/* What has no place is named, or left out and counted. */
static void files_that_do_not_fit(void **state)
{
    static const t_made WIDE[] = {{"blocks.0.attn1.to_q.lora_A.weight", SL_F32, 2, {2, 48}, 0},
                                  {"blocks.0.attn1.to_q.lora_B.weight", SL_F32, 2, {72, 2}, 0}};
    static const t_made OTHER[] = {{"blocks.7.attn1.to_q.lora_A.weight", SL_F32, 2, {2, 40}, 0},
                                   {"blocks.7.attn1.to_q.lora_B.weight", SL_F32, 2, {72, 2}, 0}};
    static const t_made TABLE[] = {{"blocks.0.diff_m", SL_F32, 2, {6, 40}, 0}};
    static const t_made LONG[] = {{"blocks.0.diff_m", SL_F32, 2, {7, 40}, 0}};
    t_merge_rig r;
    sl_merge_sizes s;
    sl_err err = {0};
    (void)state;
    t_merge_open(&r);
    sl_lora *wide = t_save_lora(t_file(&r, "wide"), WIDE, 2, 1),
            *other = t_save_lora(t_file(&r, "other"), OTHER, 2, 2),
            *table = t_save_lora(t_file(&r, "table"), TABLE, 1, 3),
            *longer = t_save_lora(t_file(&r, "long"), LONG, 1, 4);
#define CHECK(file, lenient)                                                                       \
    sl_merge_check(r.loader, (const sl_lora *const[]){file}, 1, lenient, &s, &err)
    T_CODE(CHECK(wide, true), SL_SHAPE);
    T_SAYS(err.msg,
           "wide.safetensors: the factors of blocks.0.attn1.to_q.weight make [72, 48], the "
           "model has [72, 40]");
    T_CODE(CHECK(longer, true), SL_SHAPE);
    T_SAYS(err.msg,
           "blocks.0.diff_m has shape [7, 40], blocks.0.scale_shift_table wants [1, 6, 40]");
    T_OK(CHECK(table, false)); /* an extent of 1 more or less is no difference */
    T_CODE(CHECK(other, false), SL_ARG);
    T_SAYS(err.msg, "has no place in this model (--lora-lenient leaves such tensors out)");
    T_SAYS(err.msg, "blocks.7.attn1.to_q");
    T_CODE(CHECK(other, true), SL_ARG);
    T_SAYS(err.msg, "none of its tensors has a place in this model");
    T_CODE(CHECK(r.b, false), SL_ARG);
    T_SAYS(err.msg, "b.safetensors: transformer.norm.what has no place");
    T_OK(CHECK(r.b, true));
    assert_int_equal(s.left_out, 1);
    assert_string_equal(s.left, "transformer.norm.what");
    assert_int_equal(s.tensors, 3);
#undef CHECK
    sl_lora_close(&wide);
    sl_lora_close(&other);
    sl_lora_close(&table);
    sl_lora_close(&longer);
    t_merge_close(&r);
}

/* ---- measuring ---- */

#include "common/clock.h"
#include "graphs/wan_dit.h"

/* A LoRA of `rank` in bf16 for every linear layer of the blocks, random; its bytes. */
static inline size_t t_bench_lora(const char *path, const sl_loader *l, int rank)
{
    sl_st_writer *w = NULL;
    const sl_weight_place *p;
    sl_err err;
    size_t bytes = 0;
    uint16_t *noise = malloc((size_t)1 << 24);
    assert_non_null(noise);
    uint64_t seed = 5;
    for (size_t i = 0; i < (size_t)1 << 23; i++) noise[i] = sl_to_bf16(0.01f * t_rand(&seed));
    T_OK(sl_stw_open(&w, path, &err));
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; (p = sl_loader_place(l, i)); i++) {
            const size_t n = strlen(p->name);
            if (p->out->rank != 2 || strncmp(p->name, "blocks.", 7) || n < 8) continue;
            for (int up = 0; up < 2; up++) {
                char name[256];
                const int64_t shape[2] = {up ? p->out->shape[0] : rank,
                                          up ? rank : p->out->shape[1]};
                const size_t size = (size_t)(shape[0] * shape[1]) * 2;
                snprintf(name, sizeof name, "transformer.%.*s.lora_%c.weight", (int)n - 7, p->name,
                         up ? 'B' : 'A');
                assert_true(size <= (size_t)1 << 24);
                if (!pass) T_OK(sl_stw_declare(w, name, SL_BF16, 2, shape, &err));
                else T_OK(sl_stw_write(w, name, noise, 0, size, &err));
                bytes += pass ? size : 0;
            }
        }
    T_OK(sl_stw_finish(&w, &err));
    free(noise);
    return bytes;
}

/* FOLDER is a transformer's, as `sluice pack --random` writes it: how long a switch takes, beside
 * what reading the touched tensors alone takes. A cold page cache is the caller's to make. */
static inline int t_merge_bench(const char *folder, int rank)
{
    char path[1400], file[300];
    sl_dit_config config;
    sl_ctx ctx;
    sl_loader *l = NULL;
    sl_merge *m = NULL;
    sl_lora *lora = NULL;
    sl_lora_set set = {0};
    sl_merge_sizes sizes;
    sl_err err = {0};
    uint64_t read;
    double seconds;
    char *json = t_text(t_join(path, sizeof path, folder, "config.json"));
    T_OK(sl_model_parse_dit(&config, json, strlen(json), path, &err));
    free(json);
    T_OK(sl_ctx_open(&ctx, t_merge_ops, 0, &err));
    T_OK(sl_loader_file(&l, &ctx, folder, "diffusion_pytorch_model", "transformer", &err));
    sl_dit *dit = sl_dit_new(&config, l);
    T_OK(sl_loader_finish(l, &err));
    sl_loader_figures(l, &read, &seconds);
    printf("loaded: %.2f GB in %.3f s\n", (double)read * 1e-9, seconds);
    snprintf(file, sizeof file, "%s/lora.safetensors", t_tmpdir());
    const size_t bytes = t_bench_lora(file, l, rank);
    int64_t t0 = sl_now_ns();
    snprintf(set.use[0].file, sizeof set.use[0].file, "%s", file);
    T_OK(sl_lora_open(&lora, file, &err));
    set.file[0] = lora, set.n = 1;
    T_OK(sl_lora_set_read(&set, &err));
    printf("LoRA of rank %d: %.3f GB, opened and read in %.3f s\n", rank, (double)bytes * 1e-9,
           (double)(sl_now_ns() - t0) * 1e-9);
    const sl_lora *files[] = {lora};
    T_OK(sl_merge_check(l, files, 1, false, &sizes, &err));
    printf("touches %d tensors; %.2f GB of host memory, if weights lie there; arena %.3f GB\n",
           sizes.tensors, (double)sizes.host_bytes * 1e-9, (double)sizes.arena_bytes * 1e-9);
    T_OK(sl_merge_open(&m, l, &ctx, &err));
    static const struct {
        const char *what;
        double strength;
    } STEPS[] = {{"on", 1},       {"another strength", 0.5}, {"off", 0},
                 {"on again", 1}, {"another strength", 0.5}, {"off", 0}};
    for (int i = 0; i < 6; i++) {
        sl_merge_figures f;
        T_OK(sl_merge_use(m, files, &STEPS[i].strength, STEPS[i].strength != 0, false, &f, &err));
        printf("%-18s %3d merged, %3d restored, %6.2f GB read again, %.3f s\n", STEPS[i].what,
               f.tensors, f.restored, (double)f.bytes_read * 1e-9, f.seconds);
    }
    sl_merge_close(&m);
    sl_lora_close(&lora);
    sl_dit_free(&dit);
    sl_loader_close(&l);
    sl_ctx_close(&ctx);
    *strrchr(file, '/') = 0;
    t_rmdir(file);
    return 0;
}

#define T_MERGE_TESTS                                                                              \
    cmocka_unit_test(sets_follow_each_other),                                                      \
        cmocka_unit_test(in_8_bits_the_sum_is_quantised_once),                                     \
        cmocka_unit_test(a_cancelled_switch_is_made_good), cmocka_unit_test(files_that_do_not_fit)

#endif
