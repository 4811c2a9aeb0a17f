/* test_load_share.c - weights read together by ranks on the CPU: a device of the CPU's
 * bodies whose memory is not the host's, so that nothing stays mapped, and windows in
 * shared memory. takes: 3 s. limit: 120 s */
enum { SCALE = 1 };
#include "t_load_share.h"

static sl_ops apart;

static const char *open_cpu(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    (void)rank;
    apart = sl_ops_cpu;
    apart.name = "apart";
    apart.act = SL_BF16;
    apart.host_memory = apart.stored_matrices = false;
    *ops = &apart;
    *body = &sl_comm_shm;
    return NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_LOAD_SHARE_TESTS};
    t_threads(1); /* in the ranks too, which are forked */
    t_body = (t_comm_body){.ranks = 4};
    t_body_of = open_cpu;
    t_load_share_start();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
