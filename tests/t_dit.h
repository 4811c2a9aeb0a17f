/* t_dit.h - a DiT with everything one job needs, for the tests that run forwards: open,
 * plan, run, close. */
#ifndef T_DIT_H
#define T_DIT_H

#include <limits.h>

#include "tests/t_net.h"

#include "graphs/wan_dit.h"

/* One prompt's context with its memory. */
typedef struct {
    sl_dit_context c;
    void *memory;
} t_context;

/* A transformer and the tables of one job. All memory is the host's: the CPU body runs. */
typedef struct {
    sl_ctx ctx, plan;
    sl_loader *loader;
    sl_dit_config config;
    sl_dit *dit;
    sl_dit_times times;
    sl_dit_rope rope;
    void *times_memory, *rope_memory;
    bool float_rope;            /* the model's rotary tables are float32 */
    int kept_frames, kept_step; /* of the forwards */
} t_dit;

static inline void *t_memory(size_t bytes)
{
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
    if (!p) fail_msg("no memory for %zu bytes", bytes);
    return p;
}

/* `dir` holds config.json and the weights, which are kept as `precision` says. */
static inline void t_dit_open_as(t_dit *d, const char *dir, sl_precision precision)
{
    char path[1400];
    sl_err err = {0};
    memset(d, 0, sizeof *d);
    char *json = t_text(t_join(path, sizeof path, dir, "config.json"));
    T_OK(sl_model_parse_dit(&d->config, json, strlen(json), path, &err));
    free(json);
    d->config.precision.is = precision, d->config.precision.attends_to = INT_MAX;
    T_OK(sl_ctx_open(&d->ctx, &sl_ops_cpu, 0, &err));
    T_OK(sl_ctx_open(&d->plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_file(&d->loader, &d->ctx, dir, "diffusion_pytorch_model", "transformer", &err));
    d->dit = sl_dit_new(&d->config, d->loader);
    T_OK(sl_loader_finish(d->loader, &err));
}

static inline void t_dit_open(t_dit *d, const char *dir)
{
    t_dit_open_as(d, dir, SL_PRECISION_BF16);
}

static inline void t_dit_close(t_dit *d)
{
    sl_dit_free(&d->dit);
    sl_dit_free(&d->dit); /* twice is fine */
    sl_loader_close(&d->loader);
    sl_ctx_close(&d->ctx);
    sl_ctx_close(&d->plan);
    free(d->times_memory);
    free(d->rope_memory);
}

static inline void t_dit_times(t_dit *d, const double *timesteps, int steps)
{
    sl_err err = {0};
    sl_dit_times_make(&d->plan, d->dit, &d->times, NULL, timesteps, steps);
    t_reserve(&d->ctx, &d->plan);
    d->times_memory = t_memory(sl_dit_times_bytes(&d->ctx, d->dit, steps));
    sl_dit_times_make(&d->ctx, d->dit, &d->times, d->times_memory, timesteps, steps);
    T_OK(sl_ctx_error(&d->ctx, &err));
}

/* Every entry of the older golden figures' rotary tables is a bf16 number: those models were
 * evidently cast to bf16 and back, which weights stored in bf16 survive unchanged and the
 * tables do not. The published pipeline keeps float32 tables, and so does
 * sl_dit_rope_make; to compare at float32's precision the tests round the tables as that
 * cast did. SL_ROPE_F32=1 leaves them alone, to see what the rounding is worth. */
static inline void t_dit_rope(t_dit *d, int t, int h, int w)
{
    sl_err err = {0};
    d->rope_memory = t_memory(sl_dit_rope_bytes(d->dit, t, h, w));
    sl_dit_rope_make(&d->ctx, d->dit, &d->rope, d->rope_memory, t, h, w);
    T_OK(sl_ctx_error(&d->ctx, &err));
    if (d->float_rope || getenv("SL_ROPE_F32")) return;
    float *c = d->rope.cos.data, *s = d->rope.sin.data;
    for (int64_t i = 0; i < sl_count(&d->rope.cos); i++) {
        c[i] = sl_from_bf16(sl_to_bf16(c[i]));
        s[i] = sl_from_bf16(sl_to_bf16(s[i]));
    }
}

/* The context of a prompt's embedding [n, text_dim], zero rows after it, and of image
 * tokens (NULL: none). */
static inline void t_dit_context(t_dit *d, t_context *out, const float *embedding, int n,
                                 const float *image, int image_tokens)
{
    sl_err err = {0};
    float *rows = calloc((size_t)SL_TEXT_TOKENS * (size_t)d->config.text_dim, sizeof *rows);
    memcpy(rows, embedding, sizeof *rows * (size_t)n * (size_t)d->config.text_dim);
    sl_tensor text = sl_view2(rows, SL_F32, SL_TEXT_TOKENS, d->config.text_dim);
    sl_tensor tokens =
        sl_view2((void *)(uintptr_t)image, SL_F32, image_tokens, d->config.image_dim);
    sl_dit_context_make(&d->plan, d->dit, &out->c, NULL, &text, image ? &tokens : NULL);
    t_reserve(&d->ctx, &d->plan);
    out->memory = t_memory(sl_dit_context_bytes(&d->ctx, d->dit, image_tokens));
    sl_dit_context_make(&d->ctx, d->dit, &out->c, out->memory, &text, image ? &tokens : NULL);
    T_OK(sl_ctx_error(&d->ctx, &err));
    free(rows);
}

/* One forward; the arena is planned first. The error stays in d->ctx. */
static inline void t_dit_forward(t_dit *d, const sl_tensor *v, const sl_tensor *latents,
                                 const sl_tensor *condition, int step, const t_context *context,
                                 sl_fbcache *cache, sl_fbcache_report *report)
{
    sl_fbcache planned = {0};
    if (cache) planned = *cache;
    sl_dit_input in = {.latents = latents,
                       .condition = condition,
                       .times = &d->times,
                       .step = step,
                       .kept_frames = d->kept_frames,
                       .kept_step = d->kept_step,
                       .rope = &d->rope,
                       .context = &context->c,
                       .cache = cache ? &planned : NULL};
    sl_dit_forward(&d->plan, d->dit, v, &in, NULL);
    t_reserve(&d->ctx, &d->plan);
    in.cache = cache;
    sl_dit_forward(&d->ctx, d->dit, v, &in, report);
}

#endif
