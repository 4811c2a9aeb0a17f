/* test_ranks - t_ranks.h on the CPU, by shared memory. SLUICE_SOAK=1 kills either rank of either
 * kind within steps; an argument chooses tests: test_ranks 'test_ends*'.
 * takes: 45 s. limit: 480 s */
#include "tests/t_ranks.h"

static const char *on_cpu(int i)
{
    (void)i;
    return "cpu";
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_RANKS_TESTS};
    t_device = on_cpu;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("ranks", tests, make_model, remove_model);
}
