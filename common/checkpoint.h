/* checkpoint.h - one network's tensors under Diffusers' names, whatever file they are in.
 *
 * What makers of files do differently ends here: names and prefixes (common/names.h), tensors that
 * hold several (open-clip's to_qkv), leading extents of 1, and 8-bit weights with their scales
 * beside them. What nobody needs (`freqs`, open-clip's text tower) is left out. */
#ifndef SL_CHECKPOINT_H
#define SL_CHECKPOINT_H

#include "common/names.h"
#include "common/safetensors.h"

/* Open a file (stem NULL), or a folder as sl_st_open_dir does. A name without a place keeps its
 * own, and CLIP's may be without `vision_model.`, as transformers 5 has them. 8-bit weights become
 * coded entries with the scales that the file gives them, as ComfyUI's `scale_weight`, its newer
 * `weight_scale` with `comfy_quant`, or LightX2V's `weight_scale` with a value a row; dequantised,
 * W = float(code) * scale. *out is the caller's to close. Errors, beside sl_st_open_file's:
 * SL_FORMAT two tensors with one place; a scale that is zero, negative or not finite, of another
 * shape than [] and [rows, 1], without its weight, or of a weight that is not 8-bit; an 8-bit
 * weight without its scale where the file's others have one, or whose codes use the whole range,
 * as only scaled ones do; another quantisation than float8_e4m3fn and float8_e5m2, by name. */
sl_code sl_checkpoint_open(sl_st **out, sl_net net, const char *path, const char *stem,
                           sl_err *err);

#endif
