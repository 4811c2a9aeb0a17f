/* test_ranks - t_ranks.h on the CPU, by shared memory. SLUICE_SOAK=1 kills either rank of
 * either
 * kind within steps. takes: 75 s. limit: 480 s */
#include "tests/t_ranks.h"

static const char *on_cpu(int i)
{
    (void)i;
    return "cpu";
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_RANKS_TESTS};
    t_device = on_cpu;
    return cmocka_run_group_tests_name("ranks", tests, make_model, remove_model);
}
