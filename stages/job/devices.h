/* devices.h - the GPUs of this machine, and which of them a run's stages want. */
#ifndef SL_DEVICES_H
#define SL_DEVICES_H

#include "common/conf.h"

#define SL_MAX_GPUS 64

typedef struct {
    int count; /* devices that are there */
    struct {
        uint64_t total, free; /* bytes; 0: nobody asked for this one */
        char name[96];
        int sm; /* 90 for H100 */
    } gpu[SL_MAX_GPUS];
} sl_gpus;

/* `device` ("cpu", "cuda:N"; "": as conf has it) for all stages that compute on one. Errors:
 * SL_ARG no such kind of device, or a role of the CPU's (mux) that is to work on a GPU. */
sl_code sl_conf_use_device(sl_conf *conf, const char *device, sl_err *err);
/* The GPUs that stages want. Nothing is asked if none does. Errors: SL_ARG the plug-in
 * cannot be opened (which file, why), a device is not there (how many are) or too old;
 * SL_CUDA; SL_TIMEOUT. */
sl_code sl_gpus_ask(sl_gpus *out, const sl_conf *conf, sl_err *err);
/* The bytes that "cuda:N" still gives; NULL: not a GPU, or nobody asked this one. */
const uint64_t *sl_gpus_free(const sl_gpus *gpus, const char *device);

#endif
