/* model.h - what a checkpoint says about itself: which pipeline, which
 * networks, which sizes.
 *
 * sl_model_open reads model_index.json and each component's config.json (spec 1.2-1.7),
 * fills in diffusers' defaults for keys that are absent, and refuses what this program
 * cannot run, naming file, key, value and what it wants. It opens no weights. */
#ifndef SL_MODEL_H
#define SL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/layout.h"
#include "common/path.h"
#include "common/precision.h"

#define SL_MAX_Z 64 /* most latent channels */

typedef struct {                      /* WanTransformer3DModel */
    int layers, heads, head_dim, dim; /* dim = heads * head_dim */
    int ffn_dim, in_channels, out_channels, text_dim, freq_dim;
    int image_dim;         /* 0: no image cross-attention (T2V, A14B) */
    int added_kv_dim;      /* 0 likewise */
    int pos_embed_seq_len; /* 0: none; 514 for FLF2V */
    int patch[3];          /* 1, 2, 2 */
    int rope_max;          /* longest axis in tokens, 1024 */
    float eps;
    sl_dit_precision precision; /* no word of the checkpoint's: sl_model_use_precision */
} sl_dit_config;

typedef struct { /* UMT5EncoderModel */
    int layers, heads, d_kv, d_model, d_ff, vocab, buckets, max_distance;
    float eps;
} sl_umt5_config;

typedef struct { /* CLIPVisionModel */
    int layers, heads, hidden, intermediate, patch, image;
    float eps;
    /* preprocessor_config.json */
    int shortest_edge, crop_h, crop_w;
    float mean[3], std[3], rescale;
} sl_clip_config;

typedef struct { /* AutoencoderKLWan */
    int base, decoder_base, z, mult[4], res_blocks;
    bool temporal_down[3];               /* encoder order */
    bool residual;                       /* Wan2.2: every level has a shortcut, is_residual */
    bool patched;                        /* Wan2.2: 2 x 2 pixels enter as one, patch_size 2 */
    float mean[SL_MAX_Z], std[SL_MAX_Z]; /* z values each */
    int temporal, spatial;               /* frames and pixels of a latent: 4, 8 (patched: 16) */
} sl_vae_config;

/* How a noise level becomes the next: name as options have it. `lightx2v` is what 4-step models are
 * trained for (graphs/unipc.h); a scheduler's configuration names one of the other two. */
#define SL_SAMPLERS(F) F(UNIPC, "unipc") F(EULER, "euler") F(LIGHTX2V, "lightx2v")
#define SL_SAMPLER_KIND(upper, name) SL_SAMPLER_##upper,
typedef enum { SL_SAMPLERS(SL_SAMPLER_KIND) SL_SAMPLER_COUNT } sl_sampler_kind;
#undef SL_SAMPLER_KIND
const char *sl_sampler_name(sl_sampler_kind kind);
int sl_sampler_by_name(const char *name); /* -1: none of that name */

typedef struct {
    sl_sampler_kind kind; /* UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler */
    double flow_shift;
    int train_timesteps; /* 1000 */
} sl_scheduler_config;

/* Whether a model takes an input. PER_JOB: the job says, by giving it or not. */
typedef enum { SL_NEVER, SL_PER_JOB, SL_ALWAYS } sl_when;

/* What tells one family of models from another, beside the sizes of its networks. */
typedef struct {
    sl_when picture;      /* latents are conditioned on a first frame */
    sl_when last_picture; /* and on a last one */
    bool clip;            /* the pictures' CLIP tokens are attended to */
    bool time_per_token;  /* TI2V-5B: the picture is the first latent frame, kept as it is at
                           * timestep 0; false: it is a condition beside the latents */
    int experts;          /* denoising networks, by noise level: 1, or 2 */
    int spatial;          /* pixels of a latent's edge: 8, or 16 */
    int temporal;         /* frames of a latent: 4; the first frame has one of its own */
    int patch;            /* latents of a token's edge: 2 */
    int fps;              /* frames a second of the videos that it was made for: 16, or 24 */
} sl_family;

typedef struct {
    char dir[SL_PATH]; /* layout.dir */
    sl_layout layout;  /* where its parts lie */
    char pipeline[64]; /* model_index.json _class_name */
    sl_family family;
    double boundary_ratio; /* 0 with one expert */
    sl_dit_config dit[2];  /* [0] transformer (high noise), [1] transformer_2 */
    sl_umt5_config umt5;
    sl_clip_config clip;
    sl_vae_config vae;
    sl_scheduler_config scheduler;
} sl_model;

/* Tokens that CLIP makes of one picture, its class token included: 257. */
int sl_clip_tokens(const sl_clip_config *c);

/* Read the configs under `dir`, a checkpoint in any layout that common/layout.h knows. *out is
 * plain data. Errors: SL_SYS missing file; SL_FORMAT/SL_ARG with file, key, found, wanted; as
 * sl_layout_find and sl_layout_json. */
sl_code sl_model_open(sl_model *out, const char *dir, sl_err *err);
/* Likewise with files of the user's (NULL: none) in place of the folder's; dir may be "". */
sl_code sl_model_open_files(sl_model *out, const char *dir, const sl_model_files *files,
                            sl_err *err);

/* The transformers' weights are to be kept, and multiplied, as the settings say: those of
 * sl_dit_precision_read, and denoise.fp8_sums, "fast" or "float32". Errors: as
 * sl_dit_precision_read. */
sl_code sl_model_use_precision(sl_model *m, const char *name, const char *bf16_blocks,
                               const char *attention_steps, const char *sums, sl_err *err);

/* Fill one config from JSON text, as sl_model_open does (fuzz targets and tests). `name`
 * stands for the file in messages. */
sl_code sl_model_parse_dit(sl_dit_config *out, const char *json, size_t length, const char *name,
                           sl_err *err);
sl_code sl_model_parse_umt5(sl_umt5_config *out, const char *json, size_t length, const char *name,
                            sl_err *err);
/* config.json of the tower; the fields of preprocessor_config.json get their defaults. */
sl_code sl_model_parse_clip(sl_clip_config *out, const char *json, size_t length, const char *name,
                            sl_err *err);
/* preprocessor_config.json, into a configuration that sl_model_parse_clip has filled. */
sl_code sl_model_parse_processor(sl_clip_config *out, const char *json, size_t length,
                                 const char *name, sl_err *err);
sl_code sl_model_parse_vae(sl_vae_config *out, const char *json, size_t length, const char *name,
                           sl_err *err);
sl_code sl_model_parse_scheduler(sl_scheduler_config *out, const char *json, size_t length,
                                 const char *name, sl_err *err);

#endif
