/* model.c - reads a checkpoint's configuration files and refuses what the
 * networks here cannot run.
 *
 * Defaults are those of the constructors in diffusers 0.40 (transformer_wan.py,
 * autoencoder_kl_wan.py, scheduling_unipc_multistep.py,
 * scheduling_flow_match_euler_discrete.py) and transformers (configuration_umt5.py,
 * configuration_clip.py, image_processing_clip.py). */
#include "common/model.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"

#define DIM_MAX 65536
#define SUPPORTED                                                                                  \
    "supported are Wan2.1 I2V, T2V and FLF2V and Wan2.2 I2V-A14B, T2V-A14B and TI2V-5B"

/* ---- values that must be what the networks do ---- */

static void want_string(sl_json_reader *r, const char *key, const char *otherwise, const char *want)
{
    const char *s = sl_json_string(r, key, otherwise);
    if (!r->code && (!s || strcmp(s, want))) {
        if (otherwise && strcmp(otherwise, want) && !json_object_get(r->object, key))
            sl_json_fail(r, key, "\"%s\" (absent means \"%s\")", want, otherwise);
        else sl_json_fail(r, key, "\"%s\"", want);
    }
}

static void want_bool(sl_json_reader *r, const char *key, bool otherwise, bool want)
{
    if (sl_json_bool(r, key, otherwise) != want)
        sl_json_fail(r, key, "%s", want ? "true" : "false");
}

static void want_int(sl_json_reader *r, const char *key, int otherwise, int want)
{
    const json_t *v = json_object_get(r->object, key);
    if (v ? !json_is_integer(v) || json_integer_value(v) != want : otherwise != want)
        sl_json_fail(r, key, "%d", want);
}

static void want_null(sl_json_reader *r, const char *key)
{
    if (sl_json_has(r, key)) sl_json_fail(r, key, "null");
}

static void want_empty(sl_json_reader *r, const char *key)
{
    if (sl_json_has(r, key) && (!json_is_array(json_object_get(r->object, key)) ||
                                json_array_size(json_object_get(r->object, key))))
        sl_json_fail(r, key, "[]");
}

/* `_class_name`, where it is given. */
static void want_class(sl_json_reader *r, const char *want)
{
    want_string(r, "_class_name", want, want);
}

/* An integer, or 0 for null and absent. */
static int int_or_null(sl_json_reader *r, const char *key, int lo, int hi)
{
    return sl_json_has(r, key) ? sl_json_int(r, key, 0, lo, hi) : 0;
}

/* n numbers in [lo, hi] into out; what is there stays if the key is absent. */
static void read_floats(sl_json_reader *r, const char *key, float *out, size_t n, double lo,
                        double hi)
{
    const json_t *a = sl_json_array(r, key, n, "numbers");
    for (size_t i = 0; a && i < n; i++) {
        const json_t *v = json_array_get(a, i);
        double x = json_number_value(v);
        if (!json_is_number(v) || !(x >= lo && x <= hi)) {
            sl_json_fail(r, key, "numbers from %g to %g", lo, hi);
            return;
        }
        out[i] = (float)x;
    }
}

static void read_ints(sl_json_reader *r, const char *key, int *out, size_t n, int lo, int hi)
{
    const json_t *a = sl_json_array(r, key, n, "integers");
    for (size_t i = 0; a && i < n; i++) {
        const json_t *v = json_array_get(a, i);
        if (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi) {
            sl_json_fail(r, key, "integers from %d to %d", lo, hi);
            return;
        }
        out[i] = (int)json_integer_value(v);
    }
}

/* ---- the configurations ---- */

static void read_dit(sl_json_reader *r, void *out)
{
    sl_dit_config *c = out;
    *c = (sl_dit_config){.patch = {1, 2, 2}};
    want_class(r, "WanTransformer3DModel");
    c->layers = sl_json_int(r, "num_layers", 40, 1, SL_MOST_BLOCKS);
    c->heads = sl_json_int(r, "num_attention_heads", 40, 1, 512);
    c->head_dim = sl_json_int(r, "attention_head_dim", 128, 2, 512);
    c->dim = c->heads * c->head_dim;
    c->ffn_dim = sl_json_int(r, "ffn_dim", 13824, 1, 1 << 20);
    c->in_channels = sl_json_int(r, "in_channels", 16, 1, 4 * SL_MAX_Z);
    c->out_channels = sl_json_int(r, "out_channels", 16, 1, SL_MAX_Z);
    c->text_dim = sl_json_int(r, "text_dim", 4096, 1, DIM_MAX);
    c->freq_dim = sl_json_int(r, "freq_dim", 256, 2, DIM_MAX);
    c->image_dim = int_or_null(r, "image_dim", 1, DIM_MAX);
    c->added_kv_dim = int_or_null(r, "added_kv_proj_dim", 1, DIM_MAX);
    c->pos_embed_seq_len = int_or_null(r, "pos_embed_seq_len", 1, DIM_MAX);
    c->rope_max = sl_json_int(r, "rope_max_seq_len", 1024, 1, DIM_MAX);
    c->eps = (float)sl_json_real(r, "eps", 1e-6, 0, 1);
    want_bool(r, "cross_attn_norm", true, true);
    want_string(r, "qk_norm", "rms_norm_across_heads", "rms_norm_across_heads");
    read_ints(r, "patch_size", c->patch, 3, 1, 16);
    if (c->patch[0] != 1 || c->patch[1] != 2 || c->patch[2] != 2)
        sl_json_fail(r, "patch_size", "[1,2,2]");
    if (c->head_dim % 2) sl_json_fail(r, "attention_head_dim", "an even number");
    if (c->freq_dim % 2) sl_json_fail(r, "freq_dim", "an even number");
    if (c->dim > DIM_MAX)
        sl_json_fail(r, "num_attention_heads",
                     "heads x attention_head_dim of at most %d (it is %d)", DIM_MAX, c->dim);
    if (!r->code && !c->image_dim != !c->added_kv_dim)
        sl_json_fail(r, "added_kv_proj_dim",
                     c->image_dim ? "a number, as image_dim is" : "null, as image_dim is");
    if (c->added_kv_dim && c->added_kv_dim != c->dim)
        sl_json_fail(r, "added_kv_proj_dim", "%d (num_attention_heads x attention_head_dim)",
                     c->dim);
    if (c->pos_embed_seq_len && !c->image_dim)
        sl_json_fail(r, "pos_embed_seq_len", "null, as image_dim is");
}

static void read_umt5(sl_json_reader *r, void *out)
{
    sl_umt5_config *c = out;
    want_string(r, "model_type", "umt5", "umt5");
    want_string(r, "feed_forward_proj", "gated-gelu", "gated-gelu");
    want_string(r, "dense_act_fn", "gelu_new", "gelu_new");
    c->layers = sl_json_int(r, "num_layers", 8, 1, 512);
    c->heads = sl_json_int(r, "num_heads", 6, 1, 512);
    c->d_kv = sl_json_int(r, "d_kv", 64, 1, 512);
    c->d_model = sl_json_int(r, "d_model", 512, 1, DIM_MAX);
    c->d_ff = sl_json_int(r, "d_ff", 1024, 1, 1 << 20);
    c->vocab = sl_json_int(r, "vocab_size", 250112, 1, 1 << 24);
    c->buckets = sl_json_int(r, "relative_attention_num_buckets", 32, 4, 4096);
    c->max_distance = sl_json_int(r, "relative_attention_max_distance", 128, 2, 1 << 20);
    c->eps = (float)sl_json_real(r, "layer_norm_epsilon", 1e-6, 0, 1);
    if (c->buckets % 4) sl_json_fail(r, "relative_attention_num_buckets", "a multiple of 4");
    if (c->max_distance <= c->buckets / 4)
        sl_json_fail(r, "relative_attention_max_distance", "more than %d", c->buckets / 4);
}

static void read_clip(sl_json_reader *r, void *out)
{
    sl_clip_config *c = out;
    *c = (sl_clip_config){.shortest_edge = 224,
                          .crop_h = 224,
                          .crop_w = 224,
                          .rescale = (float)(1 / 255.0),
                          .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                          .std = {0.26862954f, 0.26130258f, 0.27577711f}};
    want_string(r, "model_type", "clip_vision_model", "clip_vision_model");
    want_string(r, "hidden_act", "quick_gelu", "gelu");
    want_int(r, "num_channels", 3, 3);
    c->layers = sl_json_int(r, "num_hidden_layers", 12, 2, 512);
    c->heads = sl_json_int(r, "num_attention_heads", 12, 1, 512);
    c->hidden = sl_json_int(r, "hidden_size", 768, 1, DIM_MAX);
    c->intermediate = sl_json_int(r, "intermediate_size", 3072, 1, 1 << 20);
    c->patch = sl_json_int(r, "patch_size", 32, 1, 1024);
    c->image = sl_json_int(r, "image_size", 224, 1, 4096);
    c->eps = (float)sl_json_real(r, "layer_norm_eps", 1e-5, 0, 1);
    if (r->code) return;
    if (c->hidden % c->heads)
        sl_json_fail(r, "hidden_size", "a multiple of num_attention_heads, %d", c->heads);
    if (c->image % c->patch)
        sl_json_fail(r, "image_size", "a multiple of patch_size, %d", c->patch);
}

/* A size that is an integer or an object; a and b are the object's keys. */
static void read_size(sl_json_reader *r, const char *key, const char *a, int *x, const char *b,
                      int *y)
{
    const json_t *v = json_object_get(r->object, key);
    char file[SL_PATH + 32];
    if (!v) return;
    if (json_is_object(v)) {
        snprintf(file, sizeof file, "%s: %s", r->file, key);
        sl_json_reader sub = {v, file, r->err, r->code};
        *x = sl_json_int(&sub, a, 0, 1, 4096);
        if (!*x) sl_json_fail(&sub, a, "an integer from 1 to 4096");
        *y = b ? sl_json_int(&sub, b, 0, 1, 4096) : *x;
        if (!*y) sl_json_fail(&sub, b ? b : a, "an integer from 1 to 4096");
        r->code = sub.code;
    } else *x = *y = sl_json_int(r, key, *x, 1, 4096);
}

static void read_processor(sl_json_reader *r, void *out)
{
    sl_clip_config *c = out;
    static const char *const STEPS[] = {"do_convert_rgb", "do_resize", "do_center_crop",
                                        "do_rescale", "do_normalize"};
    int unused = c->shortest_edge;
    for (size_t i = 0; i < sizeof STEPS / sizeof STEPS[0]; i++) want_bool(r, STEPS[i], true, true);
    want_int(r, "resample", 3, 3);
    read_size(r, "size", "shortest_edge", &c->shortest_edge, NULL, &unused);
    read_size(r, "crop_size", "height", &c->crop_h, "width", &c->crop_w);
    read_floats(r, "image_mean", c->mean, 3, -1e3, 1e3);
    read_floats(r, "image_std", c->std, 3, 1e-6, 1e3);
    c->rescale = (float)sl_json_real(r, "rescale_factor", c->rescale, 0, 1);
    if (c->crop_h != c->image || c->crop_w != c->image)
        sl_json_fail(r, "crop_size", "%d x %d, the image_size of the image encoder", c->image,
                     c->image);
    if (c->shortest_edge < c->image) sl_json_fail(r, "size", "at least crop_size, %d", c->image);
}

/* The shortcuts have no weights: each number of one side goes to, or is the mean of, a whole number
 * of the other's. */
static bool shortcuts_fit(const sl_vae_config *c)
{
    if (c->mult[2] != c->mult[3]) return false;
    for (int i = 0, before = 1; i < 3; before = c->mult[i++]) {
        const int time = c->temporal_down[i] ? 2 : 1, back = c->temporal_down[2 - i] ? 2 : 1;
        if (before * time * 4 % c->mult[i]) return false; /* down level i */
        if (c->mult[3 - i] * back * 4 % (i ? c->mult[4 - i] : c->mult[3])) return false;
    }
    return true;
}

static void read_vae(sl_json_reader *r, void *out)
{
    sl_vae_config *c = out;
    static const float MEAN[16] = {-0.7571f, -0.7089f, -0.9113f, 0.1075f,  -0.1745f, 0.9653f,
                                   -0.1517f, 1.5508f,  0.4134f,  -0.0715f, 0.5517f,  -0.3632f,
                                   -0.1922f, -0.9497f, 0.2503f,  -0.2921f};
    static const float STD[16] = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f,
                                  2.6052f, 2.0743f, 3.2687f, 2.1526f, 2.8652f, 1.5579f,
                                  1.6382f, 1.1253f, 2.8251f, 1.9160f};
    int time = 1;
    *c = (sl_vae_config){.mult = {1, 2, 4, 4}, .temporal_down = {false, true, true}};
    want_class(r, "AutoencoderKLWan");
    c->residual = sl_json_bool(r, "is_residual", false);
    if (sl_json_has(r, "patch_size")) want_int(r, "patch_size", 0, 2), c->patched = true;
    want_int(r, "in_channels", 3, c->patched ? 12 : 3);
    want_int(r, "out_channels", 3, c->patched ? 12 : 3);
    want_empty(r, "attn_scales");
    c->base = sl_json_int(r, "base_dim", 96, 1, 4096);
    c->decoder_base = int_or_null(r, "decoder_base_dim", 1, 4096);
    if (!c->decoder_base) c->decoder_base = c->base;
    c->z = sl_json_int(r, "z_dim", 16, 1, SL_MAX_Z);
    c->res_blocks = sl_json_int(r, "num_res_blocks", 2, 1, 16);
    read_ints(r, "dim_mult", c->mult, 4, 1, 64);
    const json_t *down = sl_json_array(r, "temperal_downsample", 3, "booleans"); /* spelt so */
    for (size_t i = 0; down && i < 3; i++) {
        if (!json_is_boolean(json_array_get(down, i)))
            sl_json_fail(r, "temperal_downsample", "3 booleans");
        c->temporal_down[i] = json_is_true(json_array_get(down, i));
    }
    for (int i = 0; i < 3; i++) time *= c->temporal_down[i] ? 2 : 1;
    c->temporal = sl_json_int(r, "scale_factor_temporal", 4, 1, 64);
    c->spatial = sl_json_int(r, "scale_factor_spatial", 8, 1, 64);
    if (c->temporal != 4) sl_json_fail(r, "scale_factor_temporal", "4");
    if (time != 4)
        sl_json_fail(r, "temperal_downsample", "two true values (scale_factor_temporal 4)");
    if (c->spatial != (c->patched ? 16 : 8))
        sl_json_fail(r, "scale_factor_spatial",
                     c->patched ? "16, as patch_size is 2" : "8, as there is no patch_size");
    if (c->residual && !shortcuts_fit(c))
        sl_json_fail(r, "dim_mult",
                     "widths that the shortcuts of is_residual divide, the last two equal");
    for (int i = 0; i < 4; i++)
        if (c->mult[i] * (c->base > c->decoder_base ? c->base : c->decoder_base) > DIM_MAX)
            sl_json_fail(r, "dim_mult", "widths of at most %d channels", DIM_MAX);
    for (int i = 0; i < 16; i++) c->mean[i] = MEAN[i], c->std[i] = STD[i];
    read_floats(r, "latents_mean", c->mean, (size_t)c->z, -1e6, 1e6);
    read_floats(r, "latents_std", c->std, (size_t)c->z, 1e-6, 1e6);
    if (c->z != 16 && !json_object_get(r->object, "latents_mean"))
        sl_json_fail(r, "latents_mean", "%d numbers (z_dim)", c->z);
    if (c->z != 16 && !json_object_get(r->object, "latents_std"))
        sl_json_fail(r, "latents_std", "%d numbers (z_dim)", c->z);
}

static void read_scheduler(sl_json_reader *r, void *out)
{
    sl_scheduler_config *c = out;
    const char *class = sl_json_string(r, "_class_name", "");
    *c = (sl_scheduler_config){0};
    if (!strcmp(class, "UniPCMultistepScheduler")) {
        c->kind = SL_SAMPLER_UNIPC;
        want_string(r, "prediction_type", "epsilon", "flow_prediction");
        want_bool(r, "use_flow_sigmas", false, true);
        want_int(r, "solver_order", 2, 2);
        want_string(r, "solver_type", "bh2", "bh2");
        want_bool(r, "predict_x0", true, true);
        want_bool(r, "lower_order_final", true, true);
        want_string(r, "final_sigmas_type", "zero", "zero");
        want_bool(r, "thresholding", false, false);
        want_bool(r, "rescale_betas_zero_snr", false, false);
        want_empty(r, "disable_corrector");
        want_null(r, "solver_p");
        c->flow_shift = sl_json_real(r, "flow_shift", 1, 0.01, 1000);
    } else if (!strcmp(class, "FlowMatchEulerDiscreteScheduler")) {
        c->kind = SL_SAMPLER_EULER;
        want_bool(r, "invert_sigmas", false, false);
        want_bool(r, "stochastic_sampling", false, false);
        c->flow_shift = sl_json_real(r, "shift", 1, 0.01, 1000);
    } else
        sl_json_fail(r, "_class_name",
                     "UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler");
    want_bool(r, "use_karras_sigmas", false, false);
    want_bool(r, "use_exponential_sigmas", false, false);
    want_bool(r, "use_beta_sigmas", false, false);
    want_bool(r, "use_dynamic_shifting", false, false);
    want_null(r, "shift_terminal");
    want_int(r, "num_train_timesteps", 1000, 1000);
    c->train_timesteps = 1000;
}

/* ---- from text ---- */

#define PARSE(function, type, read)                                                                \
    sl_code function(type *out, const char *json, size_t length, const char *name, sl_err *err)    \
    {                                                                                              \
        json_t *root;                                                                              \
        sl_code rc = sl_json_parse(&root, json, length, name, err);                                \
        if (rc) return rc;                                                                         \
        sl_json_reader r = {root, name, err, SL_OK};                                               \
        read(&r, out);                                                                             \
        json_decref(root);                                                                         \
        return r.code;                                                                             \
    }
PARSE(sl_model_parse_dit, sl_dit_config, read_dit)
PARSE(sl_model_parse_umt5, sl_umt5_config, read_umt5)
PARSE(sl_model_parse_clip, sl_clip_config, read_clip)
PARSE(sl_model_parse_processor, sl_clip_config, read_processor)
PARSE(sl_model_parse_vae, sl_vae_config, read_vae)
PARSE(sl_model_parse_scheduler, sl_scheduler_config, read_scheduler)

/* ---- the folder ---- */

/* Class of a component in model_index.json, one of a NULL-ended list; NULL if the
 * component is null or absent. */
static const char *component(sl_json_reader *index, const char *key, const char *const *classes)
{
    const json_t *pair = json_object_get(index->object, key);
    char list[256] = "";
    if (index->code || !pair || json_is_null(pair)) return NULL;
    const json_t *class = json_array_get(pair, 1);
    if (json_array_size(pair) == 2 && json_is_null(class)) return NULL;
    for (int i = 0; classes[i]; i++) {
        if (json_array_size(pair) == 2 && json_is_string(class) &&
            !strcmp(json_string_value(class), classes[i]))
            return classes[i];
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? " or " : "",
                 classes[i]);
    }
    sl_json_fail(index, key, "[library, class] with class %s", list);
    return NULL;
}

static void must_have(sl_json_reader *index, const char *key, const char *class)
{
    if (!class) sl_json_fail(index, key, "a component");
}

typedef void read_fn(sl_json_reader *r, void *out);

/* Read a configuration file through `read`; the error is kept in `first`, once. */
static void read_file(sl_json_reader *first, const sl_layout *l, const char *file, read_fn *read,
                      void *out)
{
    char shown[SL_PATH + 64];
    json_t *root;
    if (first->code) return;
    if ((first->code = sl_layout_json(&root, shown, l, file, first->err))) return;
    sl_json_reader r = {root, shown, first->err, SL_OK};
    read(&r, out);
    first->code = r.code;
    json_decref(root);
}

/* "DIR/FILE: KEY is FOUND, want WANT (WHY)" unless found == want or something failed
 * before. */
static void want_equal(sl_json_reader *first, const sl_model *m, const char *file, const char *key,
                       int found, int want, const char *why)
{
    if (!first->code && found != want)
        first->code = sl_fail(first->err, SL_FORMAT, "%s/%s: %s is %d, want %d (%s)", m->dir, file,
                              key, found, want, why);
}

/* What the networks of one checkpoint must agree on. */
static void check_together(sl_json_reader *first, const sl_model *m)
{
    static const char *const FILES[2] = {"transformer/config.json", "transformer_2/config.json"};
    int clip_tokens = m->family.clip ? sl_clip_tokens(&m->clip) : 0;
    for (int i = 0; i < m->family.experts; i++) {
        const sl_dit_config *d = &m->dit[i];
        want_equal(first, m, FILES[i], "out_channels", d->out_channels, m->vae.z,
                   "z_dim of the VAE");
        if (m->family.picture == SL_ALWAYS)
            want_equal(first, m, FILES[i], "in_channels", d->in_channels,
                       2 * m->vae.z + m->vae.temporal,
                       "WanImageToVideoPipeline: latents, mask and condition");
        else
            want_equal(first, m, FILES[i], "in_channels", d->in_channels, m->vae.z,
                       m->family.time_per_token ? "expand_timesteps: latents alone"
                                                : "WanPipeline: latents alone");
        want_equal(first, m, FILES[i], "text_dim", d->text_dim, m->umt5.d_model,
                   "d_model of the text encoder");
        if (m->family.clip)
            want_equal(first, m, FILES[i], "image_dim", d->image_dim, m->clip.hidden,
                       "hidden_size of the image encoder");
        if (d->pos_embed_seq_len)
            want_equal(first, m, FILES[i], "pos_embed_seq_len", d->pos_embed_seq_len,
                       2 * clip_tokens, "tokens of two pictures");
        if (i == 0) continue;
        want_equal(first, m, FILES[i], "attention_head_dim", d->head_dim, m->dit[0].head_dim,
                   "as in transformer/config.json");
        want_equal(first, m, FILES[i], "image_dim", d->image_dim, m->dit[0].image_dim,
                   "as in transformer/config.json");
        want_equal(first, m, FILES[i], "pos_embed_seq_len", d->pos_embed_seq_len,
                   m->dit[0].pos_embed_seq_len, "as in transformer/config.json");
        want_equal(first, m, FILES[i], "rope_max_seq_len", d->rope_max, m->dit[0].rope_max,
                   "as in transformer/config.json");
    }
}

/* Everything that model_index.json says: the scheduler's class, whether there are an
 * image encoder and its processor. */
static void read_index(sl_json_reader *r, sl_model *m, const char **scheduler, bool *clip,
                       bool *processor)
{
    static const char *const
        DIT[] = {"WanTransformer3DModel", NULL},
        *const VAE[] = {"AutoencoderKLWan", NULL}, *const TEXT[] = {"UMT5EncoderModel", NULL},
        *const CLIP[] = {"CLIPVisionModel", "CLIPVisionModelWithProjection", NULL},
        *const PROCESSOR[] = {"CLIPImageProcessor", "CLIPImageProcessorFast",
                              "CLIPImageProcessorPil", NULL},
        *const TOKENIZER[] = {"T5TokenizerFast", "T5Tokenizer", NULL},
        *const SCHEDULER[] = {"UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", NULL};
    const char *class = sl_json_string(r, "_class_name", "");
    if (strcmp(class, "WanImageToVideoPipeline") && strcmp(class, "WanPipeline"))
        sl_json_fail(r, "_class_name", "WanImageToVideoPipeline or WanPipeline (" SUPPORTED ")");
    m->family.time_per_token = sl_json_bool(r, "expand_timesteps", false);
    if (r->code) return;
    snprintf(m->pipeline, sizeof m->pipeline, "%s", class);
    m->family.picture = m->family.time_per_token                   ? SL_PER_JOB
                        : strcmp(class, "WanImageToVideoPipeline") ? SL_NEVER
                                                                   : SL_ALWAYS;
    must_have(r, "transformer", component(r, "transformer", DIT));
    must_have(r, "vae", component(r, "vae", VAE));
    must_have(r, "text_encoder", component(r, "text_encoder", TEXT));
    must_have(r, "tokenizer", component(r, "tokenizer", TOKENIZER));
    must_have(r, "scheduler", *scheduler = component(r, "scheduler", SCHEDULER));
    m->family.experts = component(r, "transformer_2", DIT) ? 2 : 1;
    if (m->family.time_per_token && m->family.experts == 2)
        sl_json_fail(r, "transformer_2", "null, as expand_timesteps is true");
    *clip = component(r, "image_encoder", CLIP) != NULL;
    *processor = component(r, "image_processor", PROCESSOR) != NULL;
    if (m->family.experts == 1 && sl_json_has(r, "boundary_ratio"))
        sl_json_fail(r, "boundary_ratio", "null, as there is no transformer_2");
    if (m->family.experts == 2) {
        m->boundary_ratio =
            sl_json_has(r, "boundary_ratio") ? sl_json_real(r, "boundary_ratio", 0, 0, 1) : 0;
        if (!(m->boundary_ratio > 0 && m->boundary_ratio < 1))
            sl_json_fail(r, "boundary_ratio",
                         "a number between 0 and 1, as there is a transformer_2");
    }
}

int sl_clip_tokens(const sl_clip_config *c)
{
    int side = c->image / c->patch;
    return side * side + 1;
}

const char *sl_sampler_name(sl_sampler_kind kind)
{
#define NAME(upper, name) name,
    static const char *const NAMES[] = {SL_SAMPLERS(NAME)};
#undef NAME
    return NAMES[kind];
}

int sl_sampler_by_name(const char *name)
{
    int kind = SL_SAMPLER_COUNT - 1;
    while (kind >= 0 && strcmp(sl_sampler_name((sl_sampler_kind)kind), name)) kind--;
    return kind;
}

sl_code sl_model_use_precision(sl_model *m, const char *name, const char *bf16_blocks,
                               const char *attention_steps, const char *sums, sl_err *err)
{
    sl_code rc = SL_OK;
    for (int e = 0; e < m->family.experts && !rc; e++) {
        rc = sl_dit_precision_read(&m->dit[e].precision, name, bf16_blocks, attention_steps,
                                   m->dit[e].layers, err);
        m->dit[e].precision.float32_sums = !strcmp(sums, "float32");
    }
    return rc;
}

sl_code sl_model_open(sl_model *m, const char *dir, sl_err *err)
{
    return sl_model_open_files(m, dir, NULL, err);
}

sl_code sl_model_open_files(sl_model *m, const char *dir, const sl_model_files *files, sl_err *err)
{
    char path[SL_PATH + 64];
    json_t *root = NULL;
    const char *scheduler = NULL;
    bool clip = false, processor = false;
    const sl_layout *l = &m->layout;
    sl_code rc;

    *m = (sl_model){0};
    if ((rc = sl_layout_find(&m->layout, dir, files, err))) return rc;
    memcpy(m->dir, m->layout.dir, sizeof m->dir);
    sl_json_reader r = {NULL, path, err, sl_layout_json(&root, path, l, "model_index.json", err)};
    if (r.code) return r.code;
    r.object = root;
    read_index(&r, m, &scheduler, &clip, &processor);
    read_file(&r, l, "transformer/config.json", read_dit, &m->dit[0]);
    if (m->family.experts == 2) read_file(&r, l, "transformer_2/config.json", read_dit, &m->dit[1]);
    read_file(&r, l, "vae/config.json", read_vae, &m->vae);
    read_file(&r, l, "text_encoder/config.json", read_umt5, &m->umt5);
    read_file(&r, l, "scheduler/scheduler_config.json", read_scheduler, &m->scheduler);
    if (!r.code && strcmp(scheduler, m->scheduler.kind == SL_SAMPLER_UNIPC
                                         ? "UniPCMultistepScheduler"
                                         : "FlowMatchEulerDiscreteScheduler"))
        sl_json_fail(&r, "scheduler", "the class that scheduler/scheduler_config.json names");

    m->family.clip = m->dit[0].image_dim > 0;
    m->family.last_picture = m->dit[0].pos_embed_seq_len ? SL_ALWAYS : SL_NEVER;
    m->family.spatial = m->vae.spatial;
    m->family.temporal = m->vae.temporal;
    m->family.patch = m->dit[0].patch[1];
    m->family.fps = m->family.time_per_token ? 24 : 16;
    if (m->family.clip && m->family.time_per_token)
        sl_json_fail(&r, "expand_timesteps", "false, as transformer/config.json has an image_dim");
    if (m->family.clip && !m->family.picture)
        sl_json_fail(&r, "_class_name",
                     "WanImageToVideoPipeline, as transformer/config.json has an image_dim");
    if (m->family.clip && !clip)
        sl_json_fail(&r, "image_encoder",
                     "a component, as transformer/config.json has an image_dim");
    if (m->family.clip && !processor)
        sl_json_fail(&r, "image_processor", "a component, as there is an image_encoder");
    if (m->family.clip) {
        read_file(&r, l, "image_encoder/config.json", read_clip, &m->clip);
        read_file(&r, l, "image_processor/preprocessor_config.json", read_processor, &m->clip);
    }
    if (!r.code) check_together(&r, m);
    json_decref(root);
    return r.code;
}
