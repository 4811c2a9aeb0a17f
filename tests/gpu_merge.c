/* gpu_merge.c - LoRA merged and taken off on the GPU: as test_merge.c, by the plug-in.
 * limit: 120 s */
#include "tests/t_merge.h"

#include "kernels/plugin.h"

int main(void)
{
    const struct CMUnitTest tests[] = {T_MERGE_TESTS};
    sl_err err = {0};
    const sl_plugin *gpu = sl_plugin_cuda(&err);
    if (!gpu) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    t_merge_ops = gpu->ops;
    return cmocka_run_group_tests_name("merge, cuda", tests, NULL, NULL);
}
