/* found.h - what stands in the place of a model's file: for messages. */
#ifndef SL_FOUND_H
#define SL_FOUND_H

#include <stdbool.h>
#include <stddef.h>

/* What a path is that is not the file or folder wanted, as "a Git LFS pointer (`git lfs pull`
 * fetches the file)": by what is there and by its first bytes. false: it is not there, or nothing
 * special; out is "" then. */
bool sl_found(const char *path, char *out, size_t size);

/* What lies in `dir` in place of STEM.safetensors: weights of another name (STEM.fp16.safetensors,
 * a shard without an index) or kind (.bin, .ckpt, .pth, .gguf), a dangling link. false: nothing of
 * it. */
bool sl_found_weights(const char *dir, const char *stem, char *out, size_t size);

#endif
