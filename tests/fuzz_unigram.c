/* fuzz_unigram.c - libFuzzer target: any text as tokenizer.json, and as the list of its pieces. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/unigram.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try(const char *text, size_t size)
{
    sl_err err = {0};
    unsigned char *model = NULL;
    size_t n = 0;
    if (sl_unigram_parse(&model, &n, text, size, "memory", &err)) {
        if (model || !err.msg[0] || strchr(err.msg, '\n')) __builtin_trap();
    } else if (!model || !n) __builtin_trap();
    free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *whole = NULL;
    char *copy = malloc(size + 1);
    if (!copy) return 0;
    memcpy(copy, data, size);
    copy[size] = 0;
    try(copy, size);
    const int n = asprintf(&whole,
                           "{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"normalizer\":{\"type\":"
                           "\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"},\"model\":%s}",
                           copy);
    if (n > 0) try(whole, (size_t)n);
    if (n >= 0) free(whole);
    free(copy);
    return 0;
}
