/* wan_dit.h - the Wan diffusion transformer: noisy latents, condition, text, image ->
 * flow velocity. Spec 2.1, 3.10; diffusers models/transformers/transformer_wan.py.
 *
 * What does not change between the steps of a job is computed once: sl_dit_context (text
 * and image keys and values of every cross-attention, for one prompt) and sl_dit_times
 * (the time embeddings and projections of all steps). */
#ifndef SL_WAN_DIT_H
#define SL_WAN_DIT_H

#include "common/model.h"
#include "graphs/fbcache.h"
#include "graphs/weights.h"
#include "kernels/comm.h"

#define SL_TEXT_TOKENS 512

typedef struct sl_dit sl_dit;

/* Allocate and name all weights through `l`, which owns them, tells about errors
 * (sl_loader_finish) and must outlive the network. The caller frees; free sets *m to
 * NULL, and NULL is fine. NULL: no memory. */
sl_dit *sl_dit_new(const sl_dit_config *config, sl_loader *l);
void sl_dit_free(sl_dit **m);
/* Work on at most `rows` tokens at once wherever an operation allows it: less memory, the
 * same result up to the order of sums inside a matrix product. 0, as at first: the rows
 * of the device's table (ops.h, rows_at_once). A GPU takes all tokens at once: each
 * weight and each head's keys and values are then read once a layer, and the most that is
 * kept is five token tensors (3.9 GB at 1280x720x81 in bf16) instead of a little over
 * four. */
void sl_dit_set_rows(sl_dit *m, int64_t rows);

/* ---- once a job ----
 *
 * Each table below lies in device memory that the caller gives, sl_dit_..._bytes of it,
 * 256-byte aligned, and that lives as long as the table; while planning it is NULL and
 * the table has shapes only. Errors are kept in ctx. */

/* Keys and values of one prompt for all layers.
 *   text   act [512, text_dim], zero rows past the prompt's end
 *   image  act [257, image_dim], with a position table [514, image_dim]; NULL when the
 *          model takes none
 * Errors: SL_SHAPE, SL_ARG; *out is zeroed then. Taps (only when ctx->tap): "text" [512,
 * dim], "image" [257 or 514, dim]. */
typedef struct {
    int image_tokens;
    sl_tensor text_kv;  /* act [layers, 512, 2 * dim], key then value */
    sl_tensor image_kv; /* act [layers, image_tokens, 2 * dim]; rank 0 without image */
} sl_dit_context;
size_t sl_dit_context_bytes(const sl_ctx *ctx, const sl_dit *m, int image_tokens);
void sl_dit_context_make(sl_ctx *ctx, const sl_dit *m, sl_dit_context *out, void *memory,
                         const sl_tensor *text, const sl_tensor *image);

/* The time embedding and its projection for each of `timesteps` (0 .. 1000; rounded to
 * float32). Taps: "time_proj". */
typedef struct {
    int steps;
    sl_tensor temb; /* act [steps, dim] */
    sl_tensor proj; /* act [steps, 6 * dim] */
} sl_dit_times;
size_t sl_dit_times_bytes(const sl_ctx *ctx, const sl_dit *m, int steps);
void sl_dit_times_make(sl_ctx *ctx, const sl_dit *m, sl_dit_times *out, void *memory,
                       const double *timesteps, int steps);

/* Rotary tables for a token grid: per token the angles of its pairs, time's first, then
 * height's, then width's (spec 3.10).
 * Errors: SL_ARG an axis that is not 1 .. rope_max tokens long; *out is zeroed then. */
typedef struct {
    int t, h, w;        /* tokens: T, (h/8)/2, (w/8)/2 */
    sl_tensor cos, sin; /* F32 [t * h * w, head_dim / 2] */
} sl_dit_rope;
size_t sl_dit_rope_bytes(const sl_dit *m, int t, int h, int w);
void sl_dit_rope_make(sl_ctx *ctx, const sl_dit *m, sl_dit_rope *out, void *memory, int t, int h,
                      int w);

/* How the ranks of a team share one forward: each has the rows of its share of the
 * tokens, and in self-attention the rows of all for its share of the heads. Its tensors
 * lie in the rank's window (comm.h), where the others write; the team has begun its lane.
 * Every rank gets the same v, and the same bytes as one rank alone: products, norms and
 * attention of a row and head are the same wherever they are made, and the cache's sums
 * have one order. */
typedef struct {
    sl_comm *comm;
    sl_lane lane;
    sl_team team;         /* with its shares; size 0: there is none */
    int64_t tokens;       /* of the whole video, N */
    sl_tensor q, k, v, o; /* act [N, dim]: a rank has its rows, and the columns of its heads */
    sl_tensor head;       /* act [N, out_channels * 4] */
    sl_tensor sums;       /* F32 [N, 2], for the cache */
} sl_dit_share;
/* Bytes of the window, whatever the team's size. Errors of make, in ctx: SL_ARG heads that do not
 * divide by the team's size, naming those that do; SL_NOMEM a window that is too small. *out is
 * zeroed then. While planning a forward takes what it would with the largest share. */
size_t sl_dit_share_bytes(const sl_ctx *ctx, const sl_dit *m, int64_t tokens);
void sl_dit_share_make(sl_ctx *ctx, const sl_dit *m, sl_dit_share *out, sl_comm *comm, sl_lane lane,
                       const sl_team *team, int64_t tokens);

/* Other shares, between two forwards: all members give the same weights, behind a barrier of all.
 * What caches[0 .. count) hold, each of this rank's rows of one branch, follows the rows. On the
 * host until it is done. Errors: ctx's; SL_ARG weights that do not fit (sl_shares_fit). */
void sl_dit_share_weigh(sl_ctx *ctx, sl_dit_share *s, const uint8_t weight[SL_RANKS], int count,
                        sl_fbcache *const caches[]);
/* Which part of what a rank computes in a forward goes with its rows, by the number of operations:
 * all but self-attention, which goes by heads. 0 < part < 1. */
double sl_dit_part_of_rows(const sl_dit *m, int64_t tokens, int image_tokens);

/* ---- once per forward ---- */

/* What one forward works on. All of it stays the caller's and as it is, but for the
 * cache. */
typedef struct {
    const sl_tensor *latents;   /* F32 [16, T, h/8, w/8], h/8 and w/8 even */
    const sl_tensor *condition; /* F32 [20, T, h/8, w/8]; NULL: none (T2V). With the
                                 * latents in_channels together */
    const sl_dit_times *times;  /* of the schedule */
    int step;                   /* row of `times`, 0 .. times->steps - 1 */
    /* Latent frames at the beginning that are given, not denoised, 0 .. T (TI2V-5B: 1 with a
     * picture): their tokens have row `kept_step` of `times`, that of timestep 0. Spec 9.3. */
    int kept_frames, kept_step;
    const sl_dit_rope *rope;       /* of this T, h, w */
    const sl_dit_context *context; /* of this prompt */
    /* First Block Cache of this branch, of this rank's rows; NULL: compute always */
    sl_fbcache *cache;
    const sl_dit_share *share; /* NULL: this rank works alone */
    bool whole_attention;      /* never in 8 bits, whatever the weights are kept in */
} sl_dit_input;

/* v act or F32 [out_channels, T, h/8, w/8] = DiT(in). *report (may be NULL) gets the
 * cache's decision.
 * Errors (kept in ctx): SL_SHAPE or SL_ARG if the inputs do not belong together. After
 * any error v is undefined; one on the way empties the cache.
 * Taps: "input" (the patch rows [N, in_channels * 4]), "patch", "block.{i}" [N, dim], and
 * "block.0.{attn1,attn2,ffn}" (what is added, before its gate), which come in the pieces
 * of sl_dit_set_rows, in order.
 * ctx->cancel is looked at between blocks. */
void sl_dit_forward(sl_ctx *ctx, const sl_dit *m, const sl_tensor *v, const sl_dit_input *in,
                    sl_fbcache_report *report);

#endif
