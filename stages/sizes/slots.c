/* slots.c - slots of a hand-over: where they lie and what they take; no network has part in it. */
#include <stdlib.h>
#include <string.h>

#include "stages/sizes/sizes.h"

/* The GPU's number; -1: a CPU. */
static int gpu_of(const char *device)
{
    return strncmp(device, "cuda:", 5) ? -1 : atoi(device + 5);
}

sl_pool_kind sl_slot_kind(const sl_conf *conf, sl_handover h, const char *device,
                          const sl_gpu_maps *maps)
{
    const int own = gpu_of(device);
    bool any = false;
    if (own < 0 || own >= SL_MAX_GPUS || SL_HANDOVER[h].how == SL_CHUNKS) return SL_POOL_HOST;
    for (int i = 0; i < conf->stage_count; i++) {
        const int from = gpu_of(conf->stages[i].device);
        if (conf->stages[i].role != SL_HANDOVER[h].from) continue;
        if (from < 0 || from >= SL_MAX_GPUS) return SL_POOL_HOST;
        if (from != own && !(maps->of[own] >> from & 1)) return SL_POOL_HOST;
        any = true;
    }
    return any ? SL_POOL_CUDA : SL_POOL_HOST;
}

size_t sl_slot_bytes(const sl_model *model, sl_handover h, int64_t pixels, int frames)
{
    sl_grid grid = sl_grid_of_area(&model->family, pixels, frames);
    return sl_handover_bytes(h, model, &grid);
}
