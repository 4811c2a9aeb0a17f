/* gpu_comm.c - ranks that exchange through CUDA IPC on GPUs: ranks are dealt out
 * to all devices that are there, several to one if need be. limit: 400 s */
#include "t_comm.h"

#include "t_gpu_rank.h"

int main(void)
{
    const struct CMUnitTest tests[] = {T_COMM_TESTS};
    t_body = (t_comm_body){
        .open = open_gpu, .window = (size_t)4 << 20, .arena = (size_t)16 << 20, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
