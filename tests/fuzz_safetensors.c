/* fuzz_safetensors.c - libFuzzer target: any bytes as a tensor file and as a shard index. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned char image[1 << 16];
    sl_err err = {0};
    if (sl_st_parse(data, size, &err) && (!err.msg[0] || strchr(err.msg, '\n'))) __builtin_trap();
    if (sl_st_parse_index(data, size, &err) && (!err.msg[0] || strchr(err.msg, '\n')))
        __builtin_trap();

    /* The input as header text under a right length, over 64 bytes of data: gets past the
     * first checks more often. */
    if (size > sizeof image - 72) return 0;
    memset(image, 0, 8);
    image[0] = (unsigned char)size;
    image[1] = (unsigned char)(size >> 8);
    if (size) memcpy(image + 8, data, size);
    memset(image + 8 + size, 0, 64);
    sl_st_parse(image, 8 + size + 64, &err);
    return 0;
}
