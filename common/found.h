/* found.h - what stands in the place of a model's file: for messages. */
#ifndef SL_FOUND_H
#define SL_FOUND_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a file is that is none of tensors, by its first bytes: "a Git LFS pointer, ..."; NULL:
 * nothing special. To be asked when it has been refused: the head of a right one may look so. */
const char *sl_found_kind(const void *bytes, size_t n);

/* What lies in `dir` in place of STEM.safetensors, as "model.fp16.safetensors, a variant in fp16":
 * weights of another name (a variant, a shard without an index) or kind (.bin, .ckpt, .pth, .gguf).
 * false: nothing of it; out is "" then. */
bool sl_found_weights(const char *dir, const char *stem, char *out, size_t size);

#ifdef __cplusplus
}
#endif

#endif
