/* t_gpu_rank.h - a rank of t_comm.h on a GPU: ranks are dealt out to all devices that are there. */
#ifndef T_GPU_RANK_H
#define T_GPU_RANK_H

#include "t_comm.h"

#include "kernels/plugin.h"

static bool t_nccl; /* ranks exchange through NCCL, each with a device of its own; else ipc */

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
    *body = t_nccl ? p->comm_nccl : p->comm_ipc;
    return NULL;
}

/* As t_comm_body.device_used. */
static inline size_t gpu_used(int rank)
{
    sl_err err = {0};
    size_t left = 0, all = 0;
    const sl_plugin *p = sl_plugin_cuda(&err);
    return p->memory(rank % p->devices(), &left, &all, &err) ? 0 : all - left;
}

/* `question` in a process of its own, since ranks are forked before CUDA is opened: what it
 * returns, 0 to 200. It may write to `says`, if that is shared; -1: it has died. */
static inline int t_ask(int (*question)(char *says, size_t size), char *says, size_t size)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) _exit(question(says, size));
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline int t_count_devices(char *says, size_t size)
{
    sl_err err = {0};
    const sl_plugin *p = sl_plugin_cuda(&err);
    (void)says, (void)size;
    return p ? p->devices() : 0;
}

#endif
