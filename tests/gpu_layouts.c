/* gpu_layouts.c - whole runs of FP8 and GGUF checkpoints on the GPU, with a LoRA on top: as
 * test_layouts_run.c, the bytes of a run of the same numbers in float32 files. limit: 240 s */
#include "tests/t_layouts_run.h"

static const struct {
    const char *name, *model, *jobs;
} RUNS[] = {
    {"fp8-scaled", T_FP8 "scaled.safetensors" T_OTHERS, "blb"},
    {"float32", T_FLOAT32, "bl"},
    {"gguf", T_GGUF_FILES("gguf"), "blb"},
    {"gguf-float32", T_GGUF_FILES("safetensors"), "bl"},
};

static int run_all(void **state)
{
    t_layouts_make(state);
    t_pack_float32();
    for (size_t i = 0; i < sizeof RUNS / sizeof *RUNS; i++)
        t_run_jobs(RUNS[i].name, RUNS[i].model, RUNS[i].jobs, "cuda:0");
    return 0;
}

static void a_lora_on_fp8(void **state)
{
    (void)state;
    t_lora_on_and_off("fp8-scaled", "float32");
}

static void a_lora_on_gguf(void **state)
{
    (void)state;
    t_lora_on_and_off("gguf", "gguf-float32");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lora_on_fp8),
        cmocka_unit_test(a_lora_on_gguf),
    };
    return cmocka_run_group_tests(tests, run_all, t_layouts_remove);
}
