/* wan_dit.h - the Wan diffusion transformer: noisy latents, condition, text, image -> flow velocity.
 * Spec 2.1, 3.10; diffusers models/transformers/transformer_wan.py.
 *
 * What does not change between the steps of a job is computed once: sl_dit_context (text and image keys and values of every
 * cross-attention, for one prompt) and sl_dit_times (the time embeddings and projections of all steps). */
#ifndef SL_WAN_DIT_H
#define SL_WAN_DIT_H

#include "common/model.h"
#include "graphs/fbcache.h"
#include "graphs/weights.h"

#define SL_TEXT_TOKENS 512

typedef struct sl_dit sl_dit;

sl_dit *sl_dit_new(const sl_dit_config *config, sl_loader *l);
void sl_dit_free(sl_dit **m);
const sl_dit_config *sl_dit_config_of(const sl_dit *m);
/* Work on at most `rows` tokens at a time (default 8192) wherever an operation allows it: less memory, the same result up to the
 * order of sums inside a matrix product. */
void sl_dit_set_rows(sl_dit *m, int64_t rows);

/* ---- once a job ---- */

/* Keys and values of one prompt for all layers: memory of sl_dit_context_bytes that the caller gives, device side.
 *   text   act [512, text_dim], zero rows past the prompt's end
 *   image  act [257 or 514, image_dim], or NULL when the model takes none
 * Taps (only when ctx->tap): "text" [512, dim], "image" [257, dim]. */
typedef struct {
    int image_tokens;
    sl_tensor text_kv;          /* act [layers, 512, 2 * dim], key then value */
    sl_tensor image_kv;         /* act [layers, image_tokens, 2 * dim]; rank 0 without image */
} sl_dit_context;
size_t sl_dit_context_bytes(const sl_ctx *ctx, const sl_dit *m, int image_tokens);
void sl_dit_context_make(sl_ctx *ctx, const sl_dit *m, sl_dit_context *out, void *memory, const sl_tensor *text,
                         const sl_tensor *image);

/* temb act [steps, dim] and time projection F32-or-act [steps, 6 * dim] of every timestep. Memory likewise. Taps: "time_proj". */
typedef struct {
    int steps;
    sl_tensor temb, proj;
} sl_dit_times;
size_t sl_dit_times_bytes(const sl_ctx *ctx, const sl_dit *m, int steps);
void sl_dit_times_make(sl_ctx *ctx, const sl_dit *m, sl_dit_times *out, void *memory, const double *timesteps, int steps);

/* Rotary tables for a token grid: F32 [T*Hp*Wp, head_dim/2] each, interleaved-pair angles. */
typedef struct {
    int t, h, w;                /* token grid */
    sl_tensor cos, sin;
} sl_dit_rope;
size_t sl_dit_rope_bytes(const sl_dit *m, int t, int h, int w);
void sl_dit_rope_make(sl_ctx *ctx, const sl_dit *m, sl_dit_rope *out, void *memory, int t, int h, int w);

/* ---- once per forward ---- */

/* v act or F32 [out_channels, T, h/8, w/8] = DiT(latents, condition, step's time, context).
 *   latents    F32 [16, T, Hl, Wl];  condition F32 [20, T, Hl, Wl], or NULL (T2V)
 *   cache      First Block Cache state of this branch, or NULL to compute always; report (may be NULL) gets the decision
 * Taps: "input" (the patch rows [N, in_channels * 4]), "patch", "block.{i}" [N, dim], and "block.0.{attn1,attn2,ffn}" (what is
 * added, before its gate), which come in the pieces of sl_dit_set_rows, in order.
 * ctx->cancel is looked at between blocks. */
void sl_dit_forward(sl_ctx *ctx, const sl_dit *m, const sl_tensor *v, const sl_tensor *latents, const sl_tensor *condition,
                    const sl_dit_times *times, int step, const sl_dit_rope *rope, const sl_dit_context *context,
                    sl_fbcache *cache, sl_fbcache_report *report);

#endif
