/* test_dit_share.c - a forward shared by ranks on the CPU. takes: 14 s. limit: 240 s */
enum { HEAD = 24 };
#include "t_dit_share.h"

static const char *open_cpu(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    (void)rank;
    *ops = &sl_ops_cpu;
    *body = &sl_comm_shm;
    return NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_DIT_SHARE_TESTS};
    t_body = (t_comm_body){
        .open = open_cpu, .window = (size_t)8 << 20, .arena = (size_t)64 << 20, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
