/* fuzz_gguf.c - libFuzzer target: any bytes as a GGUF file, whose tensors are then decoded. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/st_set.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_err err = {0};
    sl_st_shard shard = {0};
    sl_st st = {.shards = &shard, .shard_count = 1};
    if (size < 4) return 0;
    unsigned char *copy = malloc(size);
    if (!copy) return 0;
    memcpy(copy, data, size);
    memcpy(copy, "GGUF", 4);
    if (sl_gguf_parse(&st, 0, copy, size, "memory", &err)) {
        if (!err.msg[0]) __builtin_trap();
    } else
        for (int i = 0; i < st.count; i++) {
            float x[300];
            const sl_tensor *t = sl_st_shape(&st.entries[i]);
            const bool is_float = st.entries[i].coding || t->dtype == SL_F32 ||
                                  t->dtype == SL_F16 || t->dtype == SL_BF16;
            const int64_t n = sl_count(t) < 300 ? sl_count(t) : 300;
            if (is_float && n) sl_st_floats(x, &st.entries[i], sl_count(t) - n, n);
        }
    json_decref(shard.header);
    for (int i = 0; i < st.owned_count; i++) free(st.owned[i]);
    free(st.owned);
    free(st.entries);
    free(copy);
    return 0;
}
