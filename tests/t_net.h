/* t_net.h - what the network tests share: golden tensors by name, component folders, an
 * arena of planned size. */
#ifndef T_NET_H
#define T_NET_H

#include "tests/t.h"

#include "common/model.h"
#include "common/safetensors.h"
#include "graphs/weights.h"

/* The floats of golden tensor `key` (printf-style); the test fails if it is absent, not
 * F32 or (n >= 0) not of n elements. */
static inline const float *t_floats(const sl_st *st, int64_t n, const char *key, ...)
{
    char name[128];
    va_list args;
    va_start(args, key);
    vsnprintf(name, sizeof name, key, args);
    va_end(args);
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e) fail_msg("golden file has no %s", name);
    if (e->t.dtype != SL_F32 || (n >= 0 && sl_count(&e->t) != n))
        fail_msg("golden %s: %s of %lld elements, want F32 of %lld", name, sl_dtype_tag(e->t.dtype),
                 (long long)sl_count(&e->t), (long long)n);
    return e->t.data;
}

/* The 8-bit levels of golden tensor `name`, n of them, as (level / 255 - mean) / std of
 * their channel: `channels` equal parts. The caller frees. */
static inline float *t_pixels(const sl_st *st, const char *name, int64_t n, int channels,
                              const float *mean, const float *std)
{
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e) fail_msg("golden file has no %s", name);
    if (e->t.dtype != SL_U8 || sl_count(&e->t) != n)
        fail_msg("golden %s: %s of %lld elements, want U8 of %lld", name, sl_dtype_tag(e->t.dtype),
                 (long long)sl_count(&e->t), (long long)n);
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) {
        const int64_t c = i / (n / channels);
        x[i] =
            (float)((((const uint8_t *)e->t.data)[i] / 255.0 - (double)mean[c]) / (double)std[c]);
    }
    return x;
}

/* What CLIP's pictures and the VAE's are normalised by. */
static const float T_CLIP_MEAN[3] = {0.48145466f, 0.4578275f, 0.40821073f},
                   T_CLIP_STD[3] = {0.26862954f, 0.26130258f, 0.27577711f};
static const float T_HALF[1] = {0.5f};

/* Token ids `ids.{i}` of a text file; *n gets the count. */
static inline const int32_t *t_ids(const sl_st *st, int i, int *n)
{
    char name[32];
    snprintf(name, sizeof name, "ids.%d", i);
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e || e->t.dtype != SL_I32) fail_msg("golden file has no I32 %s", name);
    *n = (int)sl_count(&e->t);
    return e->t.data;
}

/* A whole file as text, NUL-terminated; the caller frees. */
static inline char *t_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 1 << 20);
    if (!f || !text) fail_msg("cannot read %s", path);
    if (fread(text, 1, (1 << 20) - 1, f) == 0) fail_msg("%s is empty", path);
    fclose(f);
    return text;
}

static inline const char *t_join(char *buf, size_t size, const char *dir, const char *rest)
{
    if (snprintf(buf, size, "%s/%s", dir, rest) >= (int)size)
        fail_msg("path too long: %s/%s", dir, rest);
    return buf;
}

/* Make ctx's arena as large as `plan`'s run needed. */
static inline void t_reserve(sl_ctx *ctx, sl_ctx *plan)
{
    sl_err err = {0};
    assert_int_equal(plan->arena_used, 0);
    T_OK(sl_ctx_error(plan, &err));
    T_OK(sl_ctx_reserve(ctx, plan->arena_peak ? plan->arena_peak : 1, &err));
}

#endif
