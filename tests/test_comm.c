/* test_comm.c - ranks on the CPU: up to eight processes that exchange through shared memory.
 * takes: 4 s. run: waits */
#include "t_comm.h"

static const char *open_cpu(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    (void)rank;
    *ops = &sl_ops_cpu;
    *body = &sl_comm_shm;
    return NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_COMM_TESTS};
    t_body = (t_comm_body){.open = open_cpu, .window = (size_t)4 << 20, .ranks = 8};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
