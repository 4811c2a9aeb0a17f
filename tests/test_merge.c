/* test_merge.c - LoRA merged and taken off: in host memory, and on a device of the CPU's bodies
 * whose memory is not the host's and whose weights are bf16.
 *
 * test_merge --bench FOLDER [RANK]: seconds of a switch in host memory (t_merge.h). */
#include "tests/t_apart.h"
#include "tests/t_merge.h"

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_MERGE_TESTS};
    t_merge_ops = &sl_ops_cpu;
    if (argc > 2 && !strcmp(argv[1], "--bench"))
        return t_merge_bench(argv[2], argc > 3 ? atoi(argv[3]) : 64);
    int failed = cmocka_run_group_tests_name("merge, host memory", tests, NULL, NULL);
    t_merge_ops = t_apart();
    return failed + cmocka_run_group_tests_name("merge, a device", tests, NULL, NULL);
}
