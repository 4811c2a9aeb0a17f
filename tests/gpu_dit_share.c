/* gpu_dit_share.c - a forward shared by ranks on GPUs: ranks are dealt out
 * to all devices that are there, several to one if need be. limit: 400 s */
enum { HEAD = 128 };
#include "t_dit_share.h"

#include "t_gpu_rank.h"

int main(void)
{
    const struct CMUnitTest tests[] = {T_DIT_SHARE_TESTS};
    t_body = (t_comm_body){
        .open = open_gpu, .window = (size_t)64 << 20, .arena = (size_t)256 << 20, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
