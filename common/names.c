/* names.c - the tables of names, and a matcher that walks them.
 *
 * A row's `ours` is Diffusers' name and is matched like every other; `*` stands for a number, which
 * is carried over in order. A row with `inside` goes on in that table behind the next dot; where
 * that finds nothing the next row is tried. A row without `ours` names what nobody needs. */
#include "common/names.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define STARS 4  /* numbers in a name */
#define DIGITS 9 /* of a number */
#define THEIRS 3 /* other names of a module */

typedef struct row row;
struct row {
    const char *ours, *theirs[THEIRS];
    const row *inside; /* ends with a row of NULLs */
    int part, parts;   /* as in sl_name; parts 0 counts as 1 */
    int rank;          /* as in sl_name */
};

/* A module; one whose names go on in `table`; what nobody needs. */
#define M(name, ...)                                                                               \
    {                                                                                              \
        .ours = (name), .theirs = { __VA_ARGS__ }                                                  \
    }
#define IN(table, name, ...)                                                                       \
    {                                                                                              \
        .ours = (name), .theirs = {__VA_ARGS__}, .inside = (table)                                 \
    }
#define PART(number, of, name, ...)                                                                \
    {                                                                                              \
        .ours = (name), .theirs = {__VA_ARGS__}, .part = (number), .parts = (of)                   \
    }
#define RANK(extents, name, ...)                                                                   \
    {                                                                                              \
        .ours = (name), .theirs = {__VA_ARGS__}, .rank = (extents)                                 \
    }
#define UNNEEDED(...)                                                                              \
    {                                                                                              \
        .theirs = { __VA_ARGS__ }                                                                  \
    }
#define END                                                                                        \
    {                                                                                              \
        .ours = NULL                                                                               \
    }

/* ---- transformer: WanTransformer3DModel, and WanModel ---- */

static const row DIT_BLOCK[] = {
    M("attn1.to_q", "self_attn.q"),
    M("attn1.to_k", "self_attn.k"),
    M("attn1.to_v", "self_attn.v"),
    M("attn1.to_out.0", "self_attn.o"),
    M("attn1.norm_q", "self_attn.norm_q"),
    M("attn1.norm_k", "self_attn.norm_k"),
    M("attn2.to_q", "cross_attn.q"),
    M("attn2.to_k", "cross_attn.k"),
    M("attn2.to_v", "cross_attn.v"),
    M("attn2.to_out.0", "cross_attn.o"),
    M("attn2.norm_q", "cross_attn.norm_q"),
    M("attn2.norm_k", "cross_attn.norm_k"),
    M("attn2.add_k_proj", "cross_attn.k_img"),
    M("attn2.add_v_proj", "cross_attn.v_img"),
    M("attn2.norm_added_k", "cross_attn.norm_k_img"),
    M("attn2.norm_added_q", "cross_attn.norm_q_img"),
    /* Either side numbers the three norms its own way, and one has parameters: that before
     * cross-attention. So neither name can mean another norm. */
    M("norm2", "norm3"),
    M("ffn.net.0.proj", "ffn.0"),
    M("ffn.net.2", "ffn.2"),
    M("scale_shift_table", "modulation"),
    END,
};
#define EMBEDDER "condition_embedder."
static const row DIT[] = {
    IN(DIT_BLOCK, "blocks.*", NULL),
    M("patch_embedding", NULL),
    M(EMBEDDER "time_embedder.linear_1", "time_embedding.0"),
    M(EMBEDDER "time_embedder.linear_2", "time_embedding.2"),
    M(EMBEDDER "time_proj", "time_projection.1"),
    M(EMBEDDER "text_embedder.linear_1", "text_embedding.0"),
    M(EMBEDDER "text_embedder.linear_2", "text_embedding.2"),
    M(EMBEDDER "image_embedder.norm1", "img_emb.proj.0"),
    M(EMBEDDER "image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    M(EMBEDDER "image_embedder.ff.net.2", "img_emb.proj.3"),
    M(EMBEDDER "image_embedder.norm2", "img_emb.proj.4"),
    M(EMBEDDER "image_embedder.pos_embed", "img_emb.emb_pos"),
    M("scale_shift_table", "head.modulation"),
    M("proj_out", "head.head"),
    UNNEEDED("freqs", "scaled_fp8"),
    END,
};

/* ---- text encoder: UMT5EncoderModel, Wan's T5Encoder, llama.cpp's T5 ---- */

static const row UMT5_BLOCK[] = {
    M("layer.0.SelfAttention.q", "attn.q", "attn_q"),
    M("layer.0.SelfAttention.k", "attn.k", "attn_k"),
    M("layer.0.SelfAttention.v", "attn.v", "attn_v"),
    M("layer.0.SelfAttention.o", "attn.o", "attn_o"),
    M("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding", "attn_rel_b"),
    M("layer.0.layer_norm", "norm1", "attn_norm"),
    M("layer.1.layer_norm", "norm2", "ffn_norm"),
    M("layer.1.DenseReluDense.wi_0", "ffn.gate.0", "ffn_gate"),
    M("layer.1.DenseReluDense.wi_1", "ffn.fc1", "ffn_up"),
    M("layer.1.DenseReluDense.wo", "ffn.fc2", "ffn_down"),
    END,
};
static const row UMT5[] = {
    IN(UMT5_BLOCK, "encoder.block.*", "blocks.*", "enc.blk.*"),
    M("shared", "encoder.embed_tokens", "token_embedding", "token_embd"),
    M("encoder.final_layer_norm", "norm", "enc.output_norm"),
    UNNEEDED("spiece_model", "scaled_fp8"),
    END,
};

/* ---- image encoder: CLIPVisionModel with and without its prefix, and open-clip's ---- */

static const row CLIP_LAYER[] = {
    PART(0, 3, "self_attn.q_proj", "attn.to_qkv"),
    PART(1, 3, "self_attn.k_proj", "attn.to_qkv"),
    PART(2, 3, "self_attn.v_proj", "attn.to_qkv"),
    M("self_attn.out_proj", "attn.proj"),
    M("layer_norm1", "norm1"),
    M("layer_norm2", "norm2"),
    M("mlp.fc1", "mlp.0"),
    M("mlp.fc2", "mlp.2"),
    END,
};
#define EMBED "embeddings."
#define VISION "vision_model."
static const row CLIP[] = {
    IN(CLIP_LAYER, VISION "encoder.layers.*", "encoder.layers.*", "visual.transformer.*"),
    RANK(1, VISION EMBED "class_embedding", EMBED "class_embedding", "visual.cls_embedding"),
    RANK(2, VISION EMBED "position_embedding.weight", EMBED "position_embedding.weight",
         "visual.pos_embedding"),
    M(VISION EMBED "patch_embedding", EMBED "patch_embedding", "visual.patch_embedding"),
    M(VISION "pre_layrnorm", "pre_layrnorm", "visual.pre_norm"),
    M(VISION "post_layernorm", "post_layernorm", "visual.post_norm"),
    M("visual_projection", NULL),
    M(VISION EMBED "position_ids", EMBED "position_ids"),
    UNNEEDED("visual.head", "log_scale", "textual"),
    UNNEEDED("scaled_fp8"),
    END,
};

/* ---- VAE: AutoencoderKLWan, and Wan's of 2.1 (one flat list) and 2.2 (a list a block) ---- */

static const row RES[] = {
    M("norm1", "residual.0"), M("conv1", "residual.2"),       M("norm2", "residual.3"),
    M("conv2", "residual.6"), M("conv_shortcut", "shortcut"), END,
};
static const row ATTENTION[] = {M("norm", NULL), M("to_qkv", NULL), M("proj", NULL), END};
static const row RESAMPLE[] = {M("resample.1", NULL), M("time_conv", NULL), END};
/* 2.1's decoder: entry n of the list is residual `res` of a block, or the block's sampler. */
#define FLAT(block, res, n)                                                                        \
    IN(RES, "decoder.up_blocks." #block ".resnets." #res, "decoder.upsamples." #n)
#define FLAT_UP(block, n)                                                                          \
    IN(RESAMPLE, "decoder.up_blocks." #block ".upsamplers.0", "decoder.upsamples." #n)
static const row VAE[] = {
    M("quant_conv", "conv1"),
    M("post_quant_conv", "conv2"),
    M("encoder.conv_in", "encoder.conv1"),
    M("decoder.conv_in", "decoder.conv1"),
    M("encoder.norm_out", "encoder.head.0"),
    M("decoder.norm_out", "decoder.head.0"),
    M("encoder.conv_out", "encoder.head.2"),
    M("decoder.conv_out", "decoder.head.2"),
    IN(RES, "encoder.mid_block.resnets.0", "encoder.middle.0"),
    IN(RES, "decoder.mid_block.resnets.0", "decoder.middle.0"),
    IN(ATTENTION, "encoder.mid_block.attentions.0", "encoder.middle.1"),
    IN(ATTENTION, "decoder.mid_block.attentions.0", "decoder.middle.1"),
    IN(RES, "encoder.mid_block.resnets.1", "encoder.middle.2"),
    IN(RES, "decoder.mid_block.resnets.1", "decoder.middle.2"),
    /* 2.1 */
    IN(RES, "encoder.down_blocks.*", "encoder.downsamples.*"),
    IN(RESAMPLE, "encoder.down_blocks.*", "encoder.downsamples.*"),
    FLAT(0, 0, 0),
    FLAT(0, 1, 1),
    FLAT(0, 2, 2),
    FLAT_UP(0, 3),
    FLAT(1, 0, 4),
    FLAT(1, 1, 5),
    FLAT(1, 2, 6),
    FLAT_UP(1, 7),
    FLAT(2, 0, 8),
    FLAT(2, 1, 9),
    FLAT(2, 2, 10),
    FLAT_UP(2, 11),
    FLAT(3, 0, 12),
    FLAT(3, 1, 13),
    FLAT(3, 2, 14),
    /* 2.2: a block's last entry is its sampler, where it has one */
    IN(RESAMPLE, "encoder.down_blocks.*.downsampler", "encoder.downsamples.*.downsamples.2"),
    IN(RES, "encoder.down_blocks.*.resnets.*", "encoder.downsamples.*.downsamples.*"),
    IN(RESAMPLE, "decoder.up_blocks.*.upsampler", "decoder.upsamples.*.upsamples.3"),
    IN(RES, "decoder.up_blocks.*.resnets.*", "decoder.upsamples.*.upsamples.*"),
    END,
};

/* ---- prefixes ---- */

typedef struct {
    const char *text;
    bool underscores; /* behind it `_` stands for `.` */
} prefix;

/* Taken off again and again, so that "base_model.model.diffusion_model." goes, too. A longer one
 * stands before its own beginning. */
static const prefix DIT_PREFIXES[] = {
    {"model.", false},         {"diffusion_model.", false}, {"transformer.", false},
    {"transformer_2.", false}, {"base_model.", false},      {"unet.", false},
    {"lora_unet__", true},     {"lora_unet_", true},        {NULL, false}};
static const prefix UMT5_PREFIXES[] = {{"text_encoders.", false}, {"umt5xxl.", false},
                                       {"transformer.", false},   {"text_encoder.", false},
                                       {"model.", false},         {NULL, false}};
static const prefix CLIP_PREFIXES[] = {
    {"clip_vision.", false}, {"image_encoder.", false}, {"model.", false}, {NULL, false}};
static const prefix VAE_PREFIXES[] = {
    {"vae.", false}, {"first_stage_model.", false}, {"model.", false}, {NULL, false}};

static const struct {
    const char *name;
    const row *rows;
    const prefix *prefixes;
} NETS[SL_NET_COUNT] = {
    [SL_NET_DIT] = {"transformer", DIT, DIT_PREFIXES},
    [SL_NET_UMT5] = {"text encoder", UMT5, UMT5_PREFIXES},
    [SL_NET_CLIP] = {"image encoder", CLIP, CLIP_PREFIXES},
    [SL_NET_VAE] = {"VAE", VAE, VAE_PREFIXES},
};

const char *sl_net_name(sl_net net)
{
    return net < SL_NET_COUNT ? NETS[net].name : "?";
}

/* ---- matching ---- */

typedef struct {
    const char *digits[STARS]; /* of the numbers, in order */
    int lengths[STARS], count;
} numbers;

/* Where `text` goes on behind `pattern`, which ends before a `.` or the end; NULL: no match. */
static const char *match(const char *pattern, const char *text, bool underscores, numbers *found)
{
    for (; *pattern; pattern++) {
        if (*pattern == '*') {
            int n = 0;
            while (isdigit((unsigned char)text[n])) n++;
            if (!n || n > DIGITS || found->count == STARS) return NULL;
            found->digits[found->count] = text;
            found->lengths[found->count++] = n;
            text += n;
        } else if (*text == *pattern || (underscores && *pattern == '.' && *text == '_')) text++;
        else return NULL;
    }
    return !*text || *text == '.' || (underscores && *text == '_') ? text : NULL;
}

/* Append `pattern` with its numbers; false: it does not fit. */
static bool append(sl_name *out, const char *pattern, const numbers *found)
{
    size_t at = strlen(out->module);
    int star = 0, n = 0;
    if (at) n = snprintf(out->module + at, sizeof out->module - at, ".");
    for (; *pattern && n >= 0 && (at += (size_t)n) < sizeof out->module; pattern++)
        if (*pattern == '*')
            n = snprintf(out->module + at, sizeof out->module - at, "%.*s", found->lengths[star],
                         found->digits[star]),
            star++;
        else n = snprintf(out->module + at, sizeof out->module - at, "%c", *pattern);
    return at + (size_t)n < sizeof out->module;
}

static bool walk(const row *rows, const char *text, bool underscores, int part, sl_name *out);

/* Who says `pattern` for r->ours. transformers itself has two names for some modules: one without
 * the prefix that the other has, and the embedding, which is shared with a decoder. */
static sl_naming naming_of(const row *r, const char *pattern)
{
    const size_t n = strlen(pattern), whole = r->ours ? strlen(r->ours) : 0;
    if (!strcmp(pattern, "encoder.embed_tokens") || !r->ours) return SL_NAMING_DIFFUSERS;
    if (whole > n && r->ours[whole - n - 1] == '.' && !strcmp(r->ours + whole - n, pattern))
        return SL_NAMING_DIFFUSERS;
    if (!strncmp(pattern, "enc.", 4) || !strcmp(pattern, "token_embd")) return SL_NAMING_LLAMA;
    return SL_NAMING_ORIGINAL;
}

/* One row under one of its names. */
static bool try_row(const row *r, const char *pattern, bool is_ours, const char *text,
                    bool underscores, int part, sl_name *out)
{
    const sl_name before = *out;
    numbers found = {0};
    const char *rest = match(pattern, text, underscores, &found);
    if (!rest) return false;
    if (!is_ours && out->naming == SL_NAMING_DIFFUSERS) out->naming = naming_of(r, pattern);
    if (!r->ours) out->unneeded = true;
    else if (!append(out, r->ours, &found)) goto no;
    if (r->inside) {
        if (*rest && walk(r->inside, rest + 1, underscores, part, out)) return true;
        goto no;
    }
    if (*rest == '_') goto no; /* a module goes on behind a dot */
    out->part = is_ours ? 0 : r->part;
    out->parts = is_ours || !r->parts ? 1 : r->parts;
    out->rank = r->rank;
    out->rest = rest;
    if (out->unneeded) out->module[0] = 0;
    if (out->part == part) return true;
no:
    *out = before;
    return false;
}

static bool walk(const row *rows, const char *text, bool underscores, int part, sl_name *out)
{
    for (const row *r = rows; r->ours || r->theirs[0]; r++) {
        if (r->ours && try_row(r, r->ours, true, text, underscores, part, out)) return true;
        for (int i = 0; i < THEIRS && r->theirs[i]; i++)
            if (try_row(r, r->theirs[i], false, text, underscores, part, out)) return true;
    }
    return false;
}

bool sl_names_find(sl_net net, const char *name, int part, sl_name *out)
{
    const char *text = name;
    bool underscores = false;
    *out = (sl_name){0};
    for (const prefix *p = NETS[net].prefixes; p->text;) {
        const size_t n = strlen(p->text);
        if (strncmp(text, p->text, n)) {
            p++;
            continue;
        }
        text += n;
        underscores |= p->underscores;
        p = NETS[net].prefixes;
    }
    if (!walk(NETS[net].rows, text, underscores, part, out)) {
        *out = (sl_name){0};
        return false;
    }
    out->prefix = (int)(text - name);
    if (underscores) out->naming = SL_NAMING_KOHYA;
    return true;
}

bool sl_names_tensor(sl_net net, const char *name, int part, char *out, size_t size)
{
    sl_name n;
    if (size) *out = 0;
    if (!sl_names_find(net, name, part, &n) || n.unneeded) return false;
    const int length = snprintf(out, size, "%s%s", n.module, n.rest);
    if (length >= 0 && (size_t)length < size) return true;
    if (size) *out = 0;
    return false;
}
