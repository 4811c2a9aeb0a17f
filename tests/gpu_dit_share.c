/* gpu_dit_share.c - a forward shared by ranks on GPUs: ranks are dealt out
 * to all devices that are there, several to one if need be.
 *
 * gpu_dit_share [TESTS]: those alone that this pattern names. limit: 400 s */
enum { HEAD = 128 };
#include "t_dit_share.h"

#include "t_gpu_rank.h"
#include "t_hopper.h"

static int is_hopper(char *says, size_t size)
{
    (void)says, (void)size;
    return gpu_is_hopper("teams in 8 bits");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_DIT_SHARE_TESTS};
    t_body = (t_comm_body){
        .open = open_gpu, .window = (size_t)64 << 20, .arena = (size_t)256 << 20, .ranks = 8};
    t_body.no_8_bits = t_ask(is_hopper, NULL, 0) != 1;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
