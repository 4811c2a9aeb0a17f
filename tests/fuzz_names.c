/* fuzz_names.c - libFuzzer target: any text as a tensor's name in each network's tables. */
#include <stdint.h>
#include <string.h>

#include "common/names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[512], again[512 + SL_NAME_BYTES];
    if (size >= sizeof name) return 0;
    memcpy(name, data, size);
    name[size] = 0;
    for (int net = 0; net < SL_NET_COUNT; net++)
        for (int part = 0; part < 3; part++) {
            sl_name n, same;
            if (!sl_names_find((sl_net)net, name, part, &n)) {
                if (n.module[0] || n.rest) __builtin_trap();
                continue;
            }
            if (n.rest < name || n.rest > name + strlen(name)) __builtin_trap();
            if (n.unneeded) continue;
            /* Diffusers' name is itself, with nothing before it. */
            if (!sl_names_tensor((sl_net)net, name, part, again, sizeof again)) __builtin_trap();
            if (!sl_names_find((sl_net)net, again, 0, &same) || same.prefix ||
                same.naming != SL_NAMING_DIFFUSERS || strcmp(same.module, n.module) ||
                strcmp(same.rest, n.rest))
                __builtin_trap();
        }
    return 0;
}
