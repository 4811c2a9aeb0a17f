/* t_coded.h - 8 bits and fewer on one device: weights of FP8 and GGUF, then a LoRA on them, then
 * without it, tensor by tensor against the same numbers in a float32 file. The program that
 * includes this names the device's table. */
#ifndef T_CODED_H
#define T_CODED_H

#include "tests/t_layouts.h"
#include "tests/t_net.h"

#include "common/checkpoint.h"
#include "graphs/merge.h"
#include "graphs/wan_dit.h"

#define T_CODED_LORA "tests/golden/lora-i2v/d-lightx2v.safetensors" /* changes of every kind */

static const sl_ops *t_coded_ops;

/* tiny-i2v's transformer on the device. */
typedef struct {
    sl_ctx ctx;
    sl_loader *loader;
    sl_dit *dit;
    sl_merge *merge;
} t_coded_net;

static inline void t_coded_open(t_coded_net *n, const char *path)
{
    sl_model tiny;
    sl_st *st = NULL;
    sl_err err;
    *n = (t_coded_net){0};
    T_OK(sl_model_open(&tiny, T_TINY, &err));
    T_OK(sl_ctx_open(&n->ctx, t_coded_ops, 0, &err));
    T_OK(sl_checkpoint_open(&st, SL_NET_DIT, path, NULL, &err));
    T_OK(sl_loader_set(&n->loader, &n->ctx, &st, "transformer", &err));
    n->dit = sl_dit_new(&tiny.dit[0], n->loader);
    assert_non_null(n->dit);
    T_OK(sl_loader_finish(n->loader, &err));
    T_OK(sl_merge_open(&n->merge, n->loader, &n->ctx, &err));
}

static inline void t_coded_close(t_coded_net *n)
{
    sl_merge_close(&n->merge);
    sl_dit_free(&n->dit);
    sl_loader_close(&n->loader);
    sl_ctx_close(&n->ctx);
}

/* Tensor i as float32; the caller frees. NULL: past the last. */
static inline float *t_coded_floats(t_coded_net *n, int i, int64_t *count)
{
    const sl_weight_place *p = sl_loader_place(n->loader, i);
    if (!p) return NULL;
    *count = sl_count(p->out);
    void *raw = malloc(sl_bytes(p->out) + 1);
    float *x = malloc((size_t)*count * sizeof *x);
    assert_true(raw && x);
    sl_download(&n->ctx, raw, p->out);
    assert_int_equal(sl_to_floats(x, raw, p->out->dtype, *count, NULL), SL_OK);
    free(raw);
    return x;
}

/* Every tensor has the same numbers in both; how many there are. */
static inline int t_coded_same(t_coded_net *a, t_coded_net *b, const char *when)
{
    int i = 0;
    int64_t n = 0, m = 0;
    for (float *x, *y; (x = t_coded_floats(a, i, &n)); i++) {
        const char *name = sl_loader_place(a->loader, i)->name;
        assert_non_null(y = t_coded_floats(b, i, &m));
        assert_int_equal(n, m);
        for (int64_t k = 0; k < n; k++)
            if (x[k] != y[k])
                fail_msg("%s: %s[%lld] is %.9g, want %.9g", when, name, (long long)k, (double)x[k],
                         (double)y[k]);
        free(x);
        free(y);
    }
    return i;
}

/* All that a checkpoint's file holds, decoded, as float32 in one of its own. */
static inline void t_coded_as_float32(const char *to, const char *from)
{
    sl_st *st = NULL;
    sl_err err;
    T_OK(sl_checkpoint_open(&st, SL_NET_DIT, from, NULL, &err));
    const int n = sl_st_size(st);
    const char **names = calloc((size_t)n, sizeof *names);
    sl_tensor *t = calloc((size_t)n, sizeof *t);
    assert_true(names && t);
    for (int i = 0; i < n; i++) {
        const sl_st_entry *e = sl_st_at(st, i);
        const sl_tensor *shape = sl_st_shape(e);
        names[i] = e->name;
        t[i] = sl_view(malloc((size_t)sl_count(shape) * sizeof(float)), SL_F32, shape->rank,
                       shape->shape);
        assert_non_null(t[i].data);
        sl_st_floats(t[i].data, e, 0, sl_count(shape));
    }
    T_OK(sl_st_save(to, n, names, t, &err));
    for (int i = 0; i < n; i++) free(t[i].data);
    free(names);
    free(t);
    sl_st_close(&st);
}

static inline void t_coded_use(t_coded_net *n, const sl_lora *lora, double strength)
{
    sl_merge_figures f;
    sl_err err;
    T_OK(sl_merge_use(n->merge, &lora, &strength, lora ? 1 : 0, false, &f, &err));
    assert_int_equal(f.tensors > 0, lora != NULL);
}

/* state: the file's name among the layouts. */
static inline void t_coded_case(void **state)
{
    const char *file = *state;
    t_coded_net coded, plain, fresh;
    sl_lora *lora = NULL;
    sl_err err;
    char path[600];
    snprintf(path, sizeof path, "%s", t_at("float32.safetensors"));
    t_coded_as_float32(path, t_at(file));
    T_OK(sl_lora_open(&lora, T_CODED_LORA, &err));
    t_coded_open(&coded, t_at(file));
    t_coded_open(&plain, path);
    assert_true(t_coded_same(&coded, &plain, "as loaded") > 50);
    for (int round = 0; round < 2; round++) {
        t_coded_use(&coded, lora, 0.8 - round);
        t_coded_use(&plain, lora, 0.8 - round);
        t_coded_same(&coded, &plain, "with a LoRA");
    }
    t_coded_use(&coded, NULL, 0);
    t_coded_open(&fresh, t_at(file));
    t_coded_same(&coded, &fresh, "without it again");
    t_coded_close(&fresh);
    t_coded_close(&plain);
    t_coded_close(&coded);
    sl_lora_close(&lora);
}

/* on: a setup that sets t_coded_ops; where: its name, a literal. */
#define T_CODED_CASE(on, where, file)                                                              \
    {                                                                                              \
        where ", " file, t_coded_case, on, NULL, (void *)(uintptr_t)file                           \
    }
#define T_CODED_TESTS(on, where)                                                                   \
    T_CODED_CASE(on, where, "gguf/transformer.gguf"),                                              \
        T_CODED_CASE(on, where, T_COMFY "fp8_e4m3fn.safetensors"),                                 \
        T_CODED_CASE(on, where, T_COMFY "fp8_scaled.safetensors"),                                 \
        T_CODED_CASE(on, where, "lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors")

#endif
