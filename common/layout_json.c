/* layout_json.c - the configuration files of a Diffusers folder, for checkpoints that have none:
 * sizes come from the tensors' shapes, the rest is what all of Wan's models have.
 *
 * Sources: diffusers scripts/convert_wan_to_diffusers.py for keys and values; ComfyUI
 * comfy/model_detection.py for what the shapes tell; Wan2.1 and Wan2.2 wan/configs for shift and
 * boundary, which no file of weights holds. */
#include "common/layout.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/json.h"

#define CONFIG_MAX (1 << 20) /* bytes of a configuration file */
#define HEAD_DIM 128         /* of every transformer of Wan */

/* Wan2.2's VAE (Wan2.2 wan/modules/vae2_2.py). 2.1's are the defaults of who reads a config. */
static const double MEAN_22[48] = {
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174,  0.1838,  0.1557,  -0.1382, 0.0542,
    0.2813,  0.0891,  0.1570,  -0.0098, 0.0375,  -0.1825, -0.2246, -0.1207, -0.0698, 0.5109,
    0.2665,  -0.2108, -0.2158, 0.2502,  -0.2055, -0.0322, 0.1109,  0.1567,  -0.0729, 0.0899,
    -0.2799, -0.1230, -0.0313, -0.1649, 0.0117,  0.0723,  -0.2839, -0.2083, -0.0520, 0.3748,
    0.0152,  0.1957,  0.1433,  -0.2944, 0.3573,  -0.0548, -0.1681, -0.0667};
static const double STD_22[48] = {
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744};

/* ---- shapes ---- */

typedef struct {
    sl_st *st;
    const char *path;
    sl_err *err;
    sl_code code; /* the first failure */
} shapes;

static const sl_tensor *find(const shapes *s, const char *name)
{
    const sl_st_entry *e = sl_st_find(s->st, name);
    if (!e && !strncmp(name, "vision_model.", 13)) e = sl_st_find(s->st, name + 13);
    return e && sl_st_shape(e)->rank ? sl_st_shape(e) : NULL;
}

/* Extent `axis` of a tensor that must be there; 1 after a failure. */
static json_int_t extent(shapes *s, const char *name, int axis)
{
    const sl_tensor *t = find(s, name);
    if (t && axis < t->rank && t->shape[axis] > 0) return t->shape[axis];
    if (!s->code)
        s->code = sl_fail(s->err, SL_SHAPE,
                          t ? "%s: %s has %d dimensions that are not 0, from which its size "
                              "cannot be told"
                            : "%s: %s is missing, from which its size could be told",
                          s->path, name, t ? t->rank : 0);
    return 1;
}

/* How many in a row of names that a printf format makes of 0, 1 ... are there. */
static json_int_t count(const shapes *s, const char *format)
{
    char name[SL_NAME_BYTES];
    int n = 0;
    do {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof name, format, n);
#pragma GCC diagnostic pop
    } while (find(s, name) && ++n < 1000);
    return n;
}

/* ---- one network each ---- */

static json_t *infer_dit(shapes *s)
{
    static const char PROJ[] = "condition_embedder.image_embedder.ff.net.0.proj.weight",
                      POS[] = "condition_embedder.image_embedder.pos_embed";
    const json_int_t dim = extent(s, "patch_embedding.weight", 0);
    if (!s->code && dim % HEAD_DIM)
        s->code = sl_fail(s->err, SL_SHAPE, "%s: is %lld wide, want a multiple of %d", s->path,
                          (long long)dim, HEAD_DIM);
    json_t *c = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:b, s:s, s:[i, i, i], s:i}",
        "_class_name", "WanTransformer3DModel", "num_layers",
        count(s, "blocks.%d.attn1.to_q.weight"), "num_attention_heads", dim / HEAD_DIM,
        "attention_head_dim", (json_int_t)HEAD_DIM, "ffn_dim",
        extent(s, "blocks.0.ffn.net.0.proj.weight", 0), "in_channels",
        extent(s, "patch_embedding.weight", 1), "out_channels", extent(s, "proj_out.weight", 0) / 4,
        "text_dim", extent(s, "condition_embedder.text_embedder.linear_1.weight", 1), "freq_dim",
        extent(s, "condition_embedder.time_embedder.linear_1.weight", 1), "eps", 1e-6,
        "cross_attn_norm", 1, "qk_norm", "rms_norm_across_heads", "patch_size", 1, 2, 2,
        "rope_max_seq_len", 1024);
    if (c && find(s, PROJ)) {
        json_object_set_new(c, "image_dim", json_integer(extent(s, PROJ, 1)));
        json_object_set_new(c, "added_kv_proj_dim", json_integer(dim));
    }
    if (c && find(s, POS))
        json_object_set_new(c, "pos_embed_seq_len", json_integer(extent(s, POS, 1)));
    return c;
}

static json_t *infer_umt5(shapes *s)
{
    static const char BIAS[] =
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                      Q[] = "encoder.block.0.layer.0.SelfAttention.q.weight";
    const json_int_t heads = extent(s, BIAS, 1);
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:f}", "model_type", "umt5",
        "feed_forward_proj", "gated-gelu", "dense_act_fn", "gelu_new", "num_layers",
        count(s, "encoder.block.%d.layer.0.SelfAttention.q.weight"), "num_heads", heads, "d_kv",
        extent(s, Q, 0) / heads, "d_model", extent(s, "shared.weight", 1), "d_ff",
        extent(s, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0), "vocab_size",
        extent(s, "shared.weight", 0), "relative_attention_num_buckets", extent(s, BIAS, 0),
        "relative_attention_max_distance", 128, "layer_norm_epsilon", 1e-6);
}

/* The shapes do not tell heads: ViT-H has 80 numbers a head, the smaller ones 64. */
static json_t *infer_clip(shapes *s)
{
    static const char PATCH[] = "vision_model.embeddings.patch_embedding.weight",
                      LAYER[] = "vision_model.encoder.layers.%d.layer_norm1.weight",
                      FC1[] = "vision_model.encoder.layers.0.mlp.fc1.weight";
    const json_int_t hidden = extent(s, PATCH, 0), patch = extent(s, PATCH, 2),
                     tokens = extent(s, "vision_model.embeddings.position_embedding.weight", 0),
                     side = (json_int_t)lround(sqrt((double)(tokens - 1))),
                     head = hidden % 80 == 0 ? 80 : 64;
    if (!s->code && hidden % head)
        s->code = sl_fail(s->err, SL_SHAPE,
                          "%s: is %lld wide, from which its heads cannot be told, want config.json "
                          "beside it",
                          s->path, (long long)hidden);
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "model_type",
                     "clip_vision_model", "hidden_act", "gelu", "num_hidden_layers",
                     count(s, LAYER), "num_attention_heads", hidden / head, "hidden_size", hidden,
                     "intermediate_size", extent(s, FC1, 0), "patch_size", patch, "image_size",
                     side * patch, "layer_norm_eps", 1e-5);
}

static json_t *numbers(const double *x, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, json_real(x[i]));
    return a;
}

/* Width and time of each level of the encoder; 2.1 lists two residuals and a sampler a level. */
static void infer_levels(shapes *s, json_t *c, bool residual, json_int_t base)
{
    json_t *mult = json_array(), *time = json_array();
    char name[SL_NAME_BYTES];
    for (int i = 0; i < 4; i++) {
        if (residual)
            snprintf(name, sizeof name, "encoder.down_blocks.%d.resnets.0.conv1.weight", i);
        else snprintf(name, sizeof name, "encoder.down_blocks.%d.conv1.weight", 3 * i);
        json_array_append_new(mult, json_integer(extent(s, name, 0) / base));
        if (i == 3) break;
        if (residual)
            snprintf(name, sizeof name, "encoder.down_blocks.%d.downsampler.time_conv.weight", i);
        else snprintf(name, sizeof name, "encoder.down_blocks.%d.time_conv.weight", 3 * i + 2);
        json_array_append_new(time, json_boolean(find(s, name)));
    }
    json_object_set_new(c, "dim_mult", mult);
    json_object_set_new(c, "temperal_downsample", time); /* spelt so */
}

static json_t *infer_vae(shapes *s)
{
    const bool residual = find(s, "encoder.down_blocks.0.resnets.0.conv1.weight");
    const json_int_t base = extent(s, "encoder.conv_in.weight", 0),
                     z = extent(s, "decoder.conv_in.weight", 1);
    json_t *c =
        json_pack("{s:s, s:I, s:I, s:i, s:i, s:I, s:I, s:b}", "_class_name", "AutoencoderKLWan",
                  "base_dim", base, "z_dim", z, "num_res_blocks", 2, "scale_factor_temporal", 4,
                  "in_channels", extent(s, "encoder.conv_in.weight", 1), "out_channels",
                  extent(s, "decoder.conv_out.weight", 0), "is_residual", residual);
    if (!c) return NULL;
    infer_levels(s, c, residual, base);
    const json_t *mult = json_object_get(c, "dim_mult");
    const json_int_t last = json_integer_value(json_array_get(mult, 3));
    if (last)
        json_object_set_new(c, "decoder_base_dim",
                            json_integer(extent(s, "decoder.conv_in.weight", 0) / last));
    if (residual) {
        json_object_set_new(c, "patch_size", json_integer(2));
        json_object_set_new(c, "scale_factor_spatial", json_integer(16));
    }
    if (z == 48) {
        json_object_set_new(c, "latents_mean", numbers(MEAN_22, 48));
        json_object_set_new(c, "latents_std", numbers(STD_22, 48));
    }
    return c;
}

static json_t *infer(shapes *s, sl_net net)
{
    switch (net) {
    case SL_NET_DIT: return infer_dit(s);
    case SL_NET_UMT5: return infer_umt5(s);
    case SL_NET_CLIP: return infer_clip(s);
    case SL_NET_VAE: return infer_vae(s);
    case SL_NET_COUNT: break;
    }
    return NULL;
}

/* ---- what lies beside ---- */

/* DIR/config.json, or X.json beside X.safetensors, if it is of this network; Wan-AI's says less
 * than the shapes do, but for eps. */
static json_t *beside(const sl_part *p, sl_net net, char shown[SL_PATH + 64])
{
    static const struct {
        const char *key, *value;
    } SIGN[SL_NET_COUNT] = {[SL_NET_DIT] = {"_class_name", "WanTransformer3DModel"},
                            [SL_NET_UMT5] = {"model_type", "umt5"},
                            [SL_NET_CLIP] = {"model_type", "clip_vision_model"},
                            [SL_NET_VAE] = {"_class_name", "AutoencoderKLWan"}};
    for (int way = 0; way < (*p->stem ? 1 : 2); way++) {
        char path[SL_PATH + 64];
        json_t *c = NULL;
        snprintf(path, sizeof path, "%s", p->path);
        char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
        if (*p->stem) snprintf(path, sizeof path, "%s/config.json", p->path);
        else if (way && dot) snprintf(dot, sizeof path - (size_t)(dot - path), ".json");
        else if (slash) snprintf(slash, sizeof path - (size_t)(slash - path), "/config.json");
        if (access(path, F_OK) || sl_json_read(&c, path, CONFIG_MAX, NULL)) continue;
        const char *found = json_string_value(json_object_get(c, SIGN[net].key));
        if (found && !strcmp(found, SIGN[net].value)) {
            snprintf(shown, SL_PATH + 64, "%s", path);
            return c;
        }
        json_decref(c);
    }
    return NULL;
}

/* A part's configuration, from beside it or from its shapes. */
static sl_code part_config(json_t **out, char shown[SL_PATH + 64], const sl_layout *l,
                           sl_part_id id, sl_err *err)
{
    const sl_part *p = &l->parts[id];
    shapes s = {.path = p->path, .err = err};
    if ((*out = beside(p, sl_part_net(id), shown))) return SL_OK;
    if ((s.code = sl_part_open(&s.st, l, id, err))) return s.code;
    snprintf(shown, SL_PATH + 64, "%s", p->path);
    *out = infer(&s, sl_part_net(id));
    sl_st_close(&s.st);
    if (!s.code && !*out) s.code = sl_fail(err, SL_NOMEM, "%s: no memory", p->path);
    if (s.code) {
        json_decref(*out);
        *out = NULL;
    }
    return s.code;
}

/* ---- the pipeline ---- */

typedef struct {
    json_int_t in, out;
    bool clip, two; /* an image branch; two experts */
    bool last;      /* first and last frame */
    bool small;     /* 480P by its name */
} family;

static json_int_t number(const json_t *c, const char *key)
{
    return json_integer_value(json_object_get(c, key));
}

static bool names_480(const sl_layout *l)
{
    const sl_part *p = &l->parts[SL_PART_DIT];
    return strcasestr(sl_path_last(p->path), "480p") || strcasestr(sl_path_last(l->dir), "480p");
}

static sl_code find_family(family *f, const sl_layout *l, sl_err *err)
{
    char shown[SL_PATH + 64];
    json_t *c = NULL;
    sl_code rc = part_config(&c, shown, l, SL_PART_DIT, err);
    if (rc) return rc;
    *f = (family){.in = number(c, "in_channels"),
                  .out = number(c, "out_channels"),
                  .clip = number(c, "image_dim") > 0,
                  .last = number(c, "pos_embed_seq_len") > 0,
                  .two = *l->parts[SL_PART_DIT_2].path,
                  .small = names_480(l)};
    json_decref(c);
    if (f->in == f->out || f->in == 2 * f->out + 4) {
        if (f->in == f->out || f->clip || f->two) return SL_OK;
        return sl_fail(err, SL_ARG,
                       "%s: is one of the two experts of Wan2.2 I2V-A14B, want both: --transformer "
                       "HIGH-NOISE-FILE --transformer-2 LOW-NOISE-FILE",
                       shown);
    }
    return sl_fail(err, SL_ARG,
                   "%s: takes %lld channels and gives %lld, which is no model of Wan2.1 or Wan2.2 "
                   "that is known here (Fun-Control, VACE and their like are not)",
                   shown, (long long)f->in, (long long)f->out);
}

/* As Wan-AI's own configurations have it for each family. */
static double shift_of(const family *f)
{
    if (f->last) return 16;
    if (f->two && f->in == f->out) return 12;
    return f->small && f->clip ? 3 : 5;
}

static json_t *pair(bool there, const char *library, const char *class)
{
    return there ? json_pack("[s, s]", library, class) : json_pack("[n, n]");
}

static json_t *model_index(const family *f)
{
    const bool picture = f->in != f->out;
    json_t *c =
        json_pack("{s:s, s:b, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "_class_name",
                  picture ? "WanImageToVideoPipeline" : "WanPipeline", "expand_timesteps",
                  f->in == 48, "text_encoder", pair(true, "transformers", "UMT5EncoderModel"),
                  "tokenizer", pair(true, "transformers", "T5TokenizerFast"), "transformer",
                  pair(true, "diffusers", "WanTransformer3DModel"), "transformer_2",
                  pair(f->two, "diffusers", "WanTransformer3DModel"), "vae",
                  pair(true, "diffusers", "AutoencoderKLWan"), "scheduler",
                  pair(true, "diffusers", "UniPCMultistepScheduler"), "image_encoder",
                  pair(f->clip, "transformers", "CLIPVisionModel"), "image_processor",
                  pair(f->clip, "transformers", "CLIPImageProcessor"));
    if (c && f->two) json_object_set_new(c, "boundary_ratio", json_real(picture ? 0.9 : 0.875));
    return c;
}

static json_t *scheduler(const family *f)
{
    return json_pack("{s:s, s:s, s:b, s:f}", "_class_name", "UniPCMultistepScheduler",
                     "prediction_type", "flow_prediction", "use_flow_sigmas", 1, "flow_shift",
                     shift_of(f));
}

/* ---- the one call ---- */

static bool is_config_of(const char *file, sl_part_id id)
{
    const size_t n = strlen(sl_part_name(id));
    return !strncmp(file, sl_part_name(id), n) && !strcmp(file + n, "/config.json");
}

sl_code sl_layout_json(json_t **out, char shown[SL_PATH + 64], const sl_layout *l, const char *file,
                       sl_err *err)
{
    family f;
    sl_code rc;
    *out = NULL;
    snprintf(shown, SL_PATH + 64, "%s/%s", l->dir, file);
    for (int i = 0; i < SL_PART_COUNT; i++) {
        if (!is_config_of(file, (sl_part_id)i)) continue;
        /* a named file may be of another size than the folder's; CLIP's shapes do not tell all */
        const bool own = l->kind == SL_LAYOUT_DIFFUSERS &&
                         (!l->parts[i].named || sl_part_net((sl_part_id)i) == SL_NET_CLIP);
        if (!own) return part_config(out, shown, l, (sl_part_id)i, err);
    }
    if (l->kind == SL_LAYOUT_DIFFUSERS) return sl_json_read(out, shown, CONFIG_MAX, err);
    if (!strcmp(file, "image_processor/preprocessor_config.json")) *out = json_object();
    else {
        if ((rc = find_family(&f, l, err))) return rc;
        snprintf(shown, SL_PATH + 64, "%s", l->parts[SL_PART_DIT].path);
        if (!strcmp(file, "model_index.json")) *out = model_index(&f);
        else if (!strcmp(file, "scheduler/scheduler_config.json")) *out = scheduler(&f);
        else return sl_fail(err, SL_INTERNAL, "%s: there is no such configuration", file);
    }
    return *out ? SL_OK : sl_fail(err, SL_NOMEM, "%s: no memory", shown);
}
