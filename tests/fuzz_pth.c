/* fuzz_pth.c - libFuzzer target: any bytes as a .pth, and as the pickle of a right one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/safetensors.h"
#include "t_pth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try(const void *bytes, size_t size)
{
    sl_err err = {0};
    if (sl_st_parse(bytes, size, &err) && (!err.msg[0] || strchr(err.msg, '\n'))) __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char zeros[64];
    if (!size) return 0;
    t_zip z = {.zip64 = data[0] & 1};
    t_zip_add(&z, "a/data.pkl", data + 1, size - 1);
    t_zip_add(&z, "a/data/0", zeros, sizeof zeros);
    t_zip_add(&z, "a/data/1", zeros, 32);
    t_zip_end(&z);
    /* the first byte: which of the directory's bytes changes, if any */
    if (data[0] > 1) z.b.bytes[z.directory + data[0] % (z.b.count - z.directory)] ^= data[size / 2];
    unsigned char *copy = malloc(z.b.count);
    if (copy) {
        memcpy(copy, z.b.bytes, z.b.count);
        try(copy, z.b.count);
    }
    free(copy);
    free(z.b.bytes);
    if (size < 4) return 0;
    /* the input itself, as a zip */
    copy = malloc(size);
    if (copy) {
        memcpy(copy, data, size);
        memcpy(copy, "PK\3\4", 4);
        try(copy, size);
    }
    free(copy);
    return 0;
}
