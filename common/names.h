/* names.h - what the tensors of the four networks are called, by whoever wrote the file.
 *
 * Each network has one table: the name that Diffusers (transformers, for the encoders) gives a
 * module beside the names that others give it, so that checkpoints and LoRA of any maker are
 * looked up by one name. A module is a tensor's name without its last part (`.weight`, `.bias`); a
 * parameter that stands alone (`scale_shift_table`) counts as one. Strings only: no file is
 * opened, nothing is kept, every function may be called from any thread. Sources: diffusers
 * scripts/convert_wan_to_diffusers.py; Wan2.1 wan/modules/{model,t5,vae,clip}.py; Wan2.2
 * wan/modules/vae2_2.py; llama.cpp gguf-py/gguf/tensor_mapping.py for T5 in GGUF. */
#ifndef SL_NAMES_H
#define SL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#define SL_NAME_BYTES 160 /* most bytes of a module's name, its NUL included */

typedef enum { SL_NET_DIT, SL_NET_UMT5, SL_NET_CLIP, SL_NET_VAE, SL_NET_COUNT } sl_net;

const char *sl_net_name(sl_net net); /* "transformer", "text encoder" ... for messages */

typedef enum {
    SL_NAMING_DIFFUSERS, /* Diffusers' and transformers' own */
    SL_NAMING_ORIGINAL,  /* Wan-AI's; ComfyUI, the WanVideoWrapper, LightX2V and GGUF have it too */
    SL_NAMING_KOHYA,     /* either of them with `_` for `.`, behind `lora_unet_` */
    SL_NAMING_LLAMA,     /* T5 in GGUF */
} sl_naming;

typedef struct {
    char module[SL_NAME_BYTES]; /* in Diffusers' naming; "" if `unneeded` */
    const char *rest;           /* what follows the module in the name asked for: "" or ".weight",
                                 * ".lora_down.weight", ".scale_weight" ...; points into that name
                                 * */
    int prefix;                 /* bytes of the name before the module: "diffusion_model." has 16 */
    sl_naming naming;
    int part, parts; /* the tensor holds `parts` modules one after the other along its rows, of
                      * which this is number `part` (CLIP's to_qkv has 3); else 0 of 1 */
    int rank;        /* of the tensor, which the file may hold with more extents of 1 before it;
                      * 0: as the file has it */
    bool unneeded;   /* known, and no part of what is run (textual.*, freqs, spiece_model) */
} sl_name;

/* Which module `name` is or belongs to. Every prefix that is in use is taken off (`transformer.`,
 * `diffusion_model.`, `model.diffusion_model.`, `base_model.model.`, `lora_unet_` and the like);
 * `name` may be a module's alone or go on behind a `.`. False, and *out zero: the network has no
 * module of this name, or none of number `part`. LightX2V's `blocks.N.diff_m` and `head.diff_m`
 * are no modules: ask for `blocks.N.modulation` and `head.modulation`. */
bool sl_names_find(sl_net net, const char *name, int part, sl_name *out);

/* The whole name of a tensor in Diffusers' naming, module and rest. False, and out is "": no place
 * for it, `unneeded`, or it does not fit. */
bool sl_names_tensor(sl_net net, const char *name, int part, char *out, size_t size);

#endif
