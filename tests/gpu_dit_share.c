/* gpu_dit_share.c - a forward shared by ranks on GPUs: ranks are dealt out
 * to all devices that are there, several to one if need be. limit: 400 s */
enum { HEAD = 128, EVERY_ROW = 1 };
#include "t_dit_share.h"

#include "kernels/plugin.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {T_DIT_SHARE_TESTS};
    t_body = (t_comm_body){
        .open = open_gpu, .window = (size_t)64 << 20, .arena = (size_t)256 << 20, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
