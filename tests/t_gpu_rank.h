/* t_gpu_rank.h - a rank of t_comm.h on a GPU: ranks are dealt out to all devices that are there. */
#ifndef T_GPU_RANK_H
#define T_GPU_RANK_H

#include "t_comm.h"

#include "kernels/plugin.h"

/* As t_comm_body.open. A wait on the device blocks the hardware queue of its stream: as many of
 * them as there may be, said before the device is opened. */
static const char *open_gpu(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    sl_err err = {0};
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    const sl_plugin *p = sl_plugin_cuda(&err);
    const int devices = p ? p->devices() : 0;
    if (!devices || p->use(rank % devices, &err)) return "no device";
    *ops = p->ops;
    *body = p->comm_ipc;
    return NULL;
}

#endif
