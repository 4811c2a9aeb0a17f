/* gpu_coded.c - FP8 and GGUF on the GPU with a LoRA on top: as test_coded.c, by the plug-in.
 * limit: 120 s */
#include "tests/t_coded.h"

#include "kernels/plugin.h"

int main(void)
{
    const struct CMUnitTest tests[] = {T_CODED_TESTS(NULL, "cuda")};
    sl_err err = {0};
    const sl_plugin *gpu = sl_plugin_cuda(&err);
    if (!gpu || gpu->use(0, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return 1;
    }
    t_coded_ops = gpu->ops;
    return cmocka_run_group_tests_name("coded", tests, t_layouts_make, t_layouts_remove);
}
