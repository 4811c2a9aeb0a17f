/* layout.h - where a checkpoint's parts lie, in the folders and files that people have.
 *
 * Known are the Diffusers folder; the Hub's cache, by its top folder (models--ORG--NAME) or a
 * snapshot; Wan-AI's own folder (shards, and .pth files); folders of single files, as ComfyUI, the
 * WanVideoWrapper and LightX2V use them, told apart by the tensors in them and not by their names;
 * and files that the user names. Whatever it is, it is shown as a Diffusers folder: sl_layout_json
 * gives the configuration files that such a folder would have, made from the tensors' shapes where
 * none lies there. */
#ifndef SL_LAYOUT_H
#define SL_LAYOUT_H

#include <jansson.h>

#include "common/names.h"
#include "common/path.h"
#include "common/safetensors.h"

/* name in a Diffusers folder, stem of its files, network */
#define SL_PARTS(X)                                                                                \
    X(TEXT, "text_encoder", "model", UMT5)                                                         \
    X(IMAGE, "image_encoder", "model", CLIP)                                                       \
    X(DIT, "transformer", "diffusion_pytorch_model", DIT)                                          \
    X(DIT_2, "transformer_2", "diffusion_pytorch_model", DIT)                                      \
    X(VAE, "vae", "diffusion_pytorch_model", VAE)

typedef enum {
#define X(id, name, stem, net) SL_PART_##id,
    SL_PARTS(X)
#undef X
        SL_PART_COUNT
} sl_part_id;

const char *sl_part_name(sl_part_id id); /* "text_encoder" */
sl_net sl_part_net(sl_part_id id);

/* Files that the user names instead of what the folder holds; "" each where none is named. */
typedef struct {
    char part[SL_PART_COUNT][SL_PATH];
    char tokenizer[SL_PATH];
} sl_model_files;

typedef enum {
    SL_LAYOUT_DIFFUSERS,
    SL_LAYOUT_WAN,   /* Wan-AI's */
    SL_LAYOUT_FILES, /* single files */
} sl_layout_kind;

typedef struct {
    char path[SL_PATH]; /* a file; a folder if `stem` is not ""; "": not there */
    char stem[32];
    bool named; /* by the user */
    char
        several[256]; /* the files of which one would have to be named; "": there are not several */
} sl_part;

typedef struct {
    sl_layout_kind kind;
    bool hub;          /* reached through the Hub's cache */
    char dir[SL_PATH]; /* the folder itself: a snapshot, not the cache's top folder */
    sl_part parts[SL_PART_COUNT];
    char tokenizer[SL_PATH]; /* spiece.model, tokenizer.json, or a file of weights with a
                              * `spiece_model` in it; "": none */
} sl_layout;

/* Find the parts under `dir`; files may be NULL. `dir` may be a file: it is its part, and others
 * are looked for in its folder (above diffusion_models/ or unet/). "": the folder of the
 * transformer in `files`. Opens files' headers. Errors: SL_SYS nothing there, nothing known, a
 * cache without its snapshot; SL_ARG several transformers, with their names; a LoRA. Other parts
 * that are missing or ambiguous are no error until sl_part_open. */
sl_code sl_layout_find(sl_layout *out, const char *dir, const sl_model_files *files, sl_err *err);

/* A part's tensors, under Diffusers' names. *out is the caller's to close. Errors: as
 * sl_checkpoint_open; SL_SYS the part is not there, and where to get it. */
sl_code sl_part_open(sl_st **out, const sl_layout *l, sl_part_id id, sl_err *err);
/* Does the part have weights at all? In a Diffusers folder its index or its single file. */
bool sl_part_has_weights(const sl_layout *l, sl_part_id id);

/* A configuration file of the Diffusers folder, by its name there ("transformer/config.json",
 * "model_index.json"). *shown: what stands for the file in messages. *out is the caller's to
 * json_decref. Errors: SL_SYS, SL_FORMAT; SL_SHAPE a shape from which it cannot be told. */
sl_code sl_layout_json(json_t **out, char shown[SL_PATH + 64], const sl_layout *l, const char *file,
                       sl_err *err);

/* The network that a set of tensors is, as sl_st_open_file gives it; SL_NET_COUNT: none that is
 * known. *lora: it is an adapter, not a model. */
sl_net sl_layout_net(const sl_st *st, bool *lora);

#endif
