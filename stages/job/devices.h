/* devices.h - the GPUs of this machine, and which of them a run's stages want. */
#ifndef SL_DEVICES_H
#define SL_DEVICES_H

#include "common/conf.h"
#include "stages/sizes/sizes.h"

#define SL_DEVICE_LIST 160 /* bytes of a list of devices as text, its NUL included */

typedef struct {
    int count; /* devices that are there */
    struct {
        uint64_t total, free; /* bytes; 0: nobody asked for this one */
        char name[96];
        int sm; /* 90 for H100 */
    } gpu[SL_MAX_GPUS];
    sl_gpu_maps maps; /* of those that were asked for */
} sl_gpus;

/* "cuda:0,cuda:1", read. */
typedef struct {
    int count; /* 1 .. SL_RANKS */
    char at[SL_RANKS][16];
} sl_device_list;

/* Read "cpu" or "cuda:N", or several of one kind with commas between; one may stand there twice.
 * Errors: SL_ARG, naming --device. */
sl_code sl_device_list_read(sl_device_list *out, const char *text, sl_err *err);
/* `devices`: such a list for the stages that compute; "": as conf has it. One device is for all of
 * them. Of several each gets an instance of denoise, and together these may be a team; what comes
 * before it in the pipeline works on the first, what comes after it on the last, so that a decode
 * beside the next job's steps disturbs one rank alone. Errors: SL_ARG as sl_device_list_read; more
 * processes than a deployment has, or fewer devices than conf's team has members; a role of the
 * CPU's (mux) that is to work on a GPU. */
sl_code sl_conf_use_device(sl_conf *conf, const char *devices, sl_err *err);
/* The GPUs that stages want. Nothing is asked if none does. Errors: SL_ARG the plug-in
 * cannot be opened (which file, why), a device is not there (how many are) or too old;
 * SL_CUDA; SL_TIMEOUT. */
sl_code sl_gpus_ask(sl_gpus *out, const sl_conf *conf, sl_err *err);
/* The bytes that "cuda:N" still gives; NULL: not a GPU, or nobody asked this one. */
const uint64_t *sl_gpus_free(const sl_gpus *gpus, const char *device);

#endif
