/* test_coded.c - FP8 and GGUF with a LoRA on top: in host memory, and on a device of the CPU's
 * bodies. */
#include "tests/t_apart.h"
#include "tests/t_coded.h"

static int on_host(void **state)
{
    (void)state;
    t_coded_ops = &sl_ops_cpu;
    return 0;
}

static int on_a_device(void **state)
{
    (void)state;
    t_coded_ops = t_apart();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_CODED_TESTS(on_host, "host memory"),
                                       T_CODED_TESTS(on_a_device, "a device")};
    return cmocka_run_group_tests_name("coded", tests, t_layouts_make, t_layouts_remove);
}
