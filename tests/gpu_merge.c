/* gpu_merge.c - LoRA merged and taken off on the GPU: as test_merge.c, by the plug-in.
 *
 * gpu_merge --bench FOLDER [RANK]: seconds and bytes of a switch, beside loading; FOLDER is the
 * transformer's of a checkpoint, or of what `sluice pack --random` makes of its configurations.
 * limit: 120 s */
#include "tests/t_merge.h"

#include "kernels/plugin.h"

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {T_MERGE_TESTS};
    sl_err err = {0};
    const sl_plugin *gpu = sl_plugin_cuda(&err);
    if (!gpu || gpu->use(0, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    t_merge_ops = gpu->ops;
    if (argc > 2 && !strcmp(argv[1], "--bench"))
        return t_merge_bench(argv[2], argc > 3 ? atoi(argv[3]) : 64);
    return cmocka_run_group_tests_name("merge, cuda", tests, NULL, NULL);
}
