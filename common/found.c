/* found.c - what stands in the place of a model's file: by its first bytes, or by its name. */
#include "common/found.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

#include "common/path.h"

const char *sl_found_kind(const void *bytes, size_t n)
{
    static const struct {
        const char *head, *is;
    } KINDS[] = {
        {"version https://git-lfs",
         "a Git LFS pointer, its data was not fetched: git lfs pull, or hf download"},
        {"\x80\2", "a Python pickle, want safetensors"},
        {"<!DOCTYPE", "a web page, not the file itself"},
        {"<html", "a web page, not the file itself"},
    };
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        const size_t length = strlen(KINDS[i].head);
        if (n >= length && !memcmp(bytes, KINDS[i].head, length)) return KINDS[i].is;
    }
    return NULL;
}

/* NULL: no weights. *rank: the larger, the nearer to what is wanted. */
static const char *weights_by_name(const char *name, const char *stem, int *rank)
{
    static const char *const OTHERS[] = {".ckpt", ".pth", ".pt", ".gguf"};
    const bool own = !strncmp(name, stem, strlen(stem));
    if (sl_ends_with(name, ".safetensors") ||
        (own && sl_ends_with(name, ".safetensors.index.json"))) {
        *rank = own ? 3 : 2;
        if (!own) return "weights under another name";
        return strstr(name, ".fp16.")   ? "a variant in fp16"
               : strstr(name, ".bf16.") ? "a variant in bf16"
                                        : "a variant, or a shard without its index";
    }
    *rank = 1;
    if (sl_ends_with(name, ".bin") || sl_ends_with(name, ".bin.index.json"))
        return "PyTorch's older format";
    for (size_t i = 0; i < sizeof OTHERS / sizeof *OTHERS; i++)
        if (sl_ends_with(name, OTHERS[i])) return "weights of another kind";
    return NULL;
}

bool sl_found_weights(const char *dir, const char *stem, char *out, size_t size)
{
    int best = 0;
    DIR *d = opendir(dir);
    *out = 0;
    for (const struct dirent *e; d && (e = readdir(d));) {
        int rank;
        const char *what = *e->d_name == '.' ? NULL : weights_by_name(e->d_name, stem, &rank);
        if (!what || rank <= best) continue;
        best = rank;
        snprintf(out, size, "%s, %s", e->d_name, what);
    }
    if (d) closedir(d);
    return best > 0;
}
