/* test_layouts_run.c - `sluice run` on one checkpoint in every layout, with a LoRA and without.
 *
 * A run each, all of lora-i2v's case. What holds the Diffusers folder's numbers gives its
 * bytes,
 * hand-over by hand-over and in the video; 8-bit weights are as near to what diffusers computes
 * with them as any golden case (blocks 1e-4, steps 5e-4). GGUF's give the bytes of a file with
 * the
 * numbers in float32 that tests/golden/gguf/model.py decodes them to. With a LoRA the original
 * layout gives the folder's bytes again, an 8-bit one and GGUF those of the same weights in
 * float32; without it after it, those of before. SL_SHOW=1 prints the distances.
 * takes: 8 s. limit: 240 s */
#include "tests/t_layouts_run.h"

/* @: the folder of all layouts. Jobs: b without a LoRA, l with one; t of TI2V-5B. */
static const struct {
    const char *name, *model, *jobs;
} RUNS[] = {
    {"diffusers", "--model " T_TINY, "bl"},
    {"wan-original", "--model @wan-original", "blb"},
    {"hub", "--model @" T_HUB, "b"},
    {"comfy", "--transformer @" T_COMFY "bf16.safetensors" T_OTHERS, "bl"},
    {"kijai",
     "--transformer @" T_COMFY "bf16.safetensors --text-encoder "
     "@kijai/umt5-xxl-enc-bf16.safetensors --vae @kijai/Wan2_1_VAE_fp32.safetensors" T_SPM
         T_CLIP_FILE,
     "b"},
    {"fp8", T_FP8 "e4m3fn.safetensors" T_OTHERS, "b"},
    {"fp8-scaled", T_FP8 "scaled.safetensors" T_OTHERS, "blb"},
    {"fp8-quant", T_FP8 "comfy_quant.safetensors" T_OTHERS, "bl"},
    {"fp8-kijai",
     "--transformer @kijai/Wan2_1-I2V-14B-480P_fp8_e4m3fn_scaled_KJ.safetensors" T_OTHERS, "b"},
    {"fp8-lightx2v",
     "--transformer @lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors" T_OTHERS, "b"},
    {"fp8-umt5",
     "--transformer @" T_COMFY "bf16.safetensors" T_UMT5_FILE
     "fp8_e4m3fn_scaled.safetensors" T_VAE_FILE T_CLIP_FILE,
     "b"},
    {"fp16-umt5",
     "--transformer @" T_COMFY "bf16.safetensors" T_UMT5_FILE
     "fp16.safetensors" T_VAE_FILE T_CLIP_FILE,
     "b"},
    {"float32", T_FLOAT32, "bl"},
    {"gguf", T_GGUF_FILES("gguf"), "blb"},
    {"gguf-float32", T_GGUF_FILES("safetensors"), "bl"},
    {"ti2v-diffusers", "--model " T_TI2V "/model", "t"},
    {"ti2v", "--model @ti2v/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors", "t"},
    {"ti2v-original", "--model @ti2v-original", "t"},
};
#define RUN_COUNT ((int)(sizeof RUNS / sizeof *RUNS))

static int run_all(void **state)
{
    t_layouts_make(state);
    t_pack_float32();
    for (int i = 0; i < RUN_COUNT; i++)
        t_run_jobs(RUNS[i].name, RUNS[i].model, RUNS[i].jobs, "cpu");
    return 0;
}

/* ---- what came of it ---- */

static void all_of_one_checkpoint_give_its_bytes(void **state)
{
    static const char *const RUN[] = {"wan-original", "hub", "comfy", "kijai"};
    (void)state;
    for (size_t i = 0; i < sizeof RUN / sizeof *RUN; i++) t_same_bytes(RUN[i], 0, "diffusers", 0);
    t_same_bytes("ti2v", 0, "ti2v-diffusers", 0);
    t_same_bytes("ti2v-original", 0, "ti2v-diffusers", 0);
}

static void a_lora_on_other_layouts_gives_the_same_bytes(void **state)
{
    (void)state;
    t_same_bytes("wan-original", 1, "diffusers", 1);
    t_same_bytes("comfy", 1, "diffusers", 1);
    t_same_bytes("wan-original", 2, "diffusers", 0); /* and goes again */
}

/* A run's first job is what the reference computed; `set` of the golden file. */
static void as_the_reference(const char *run, const char *golden, const char *set)
{
    sl_st *want = t_open_st(golden);
    t_as_reference(run, t_format("%s.0", t_at(run)), want, set, 3, 3);
    sl_st_close(&want);
}

static void bf16_as_the_reference(void **state)
{
    (void)state;
    as_the_reference("diffusers", T_LAYOUTS_GOLDEN ".safetensors", "base");
    as_the_reference("comfy", T_LAYOUTS_GOLDEN ".safetensors", "base");
    /* a text encoder in F16 has lost bits below 6e-5 alone */
    as_the_reference("fp16-umt5", T_LAYOUTS_GOLDEN ".safetensors", "base");
}

static void fp8_as_the_reference(void **state)
{
    static const struct {
        const char *run, *set;
    } AT[] = {{"fp8", "plain"},
              {"fp8-scaled", "scaled"},
              {"fp8-quant", "scaled"},
              {"fp8-kijai", "kj"},
              {"fp8-lightx2v", "rows"}};
    (void)state;
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++)
        as_the_reference(AT[i].run, t_golden("layouts/fp8.safetensors"), AT[i].set);
    t_same_bytes("fp8-quant", 0, "fp8-scaled", 0);
    t_same_bytes("fp8-quant", 1, "fp8-scaled", 1);
}

static void fp8_text_as_the_reference(void **state)
{
    sl_st *want = t_open_st(t_golden("layouts/fp8.safetensors")),
          *got = t_open_st(t_format("%s.0/text.safetensors", t_at("fp8-umt5")));
    const sl_st_entry *e = sl_st_find(want, "umt5.embed.0"), *g = sl_st_find(got, "cond");
    (void)state;
    assert_true(e && g && e->t.shape[1] == g->t.shape[1] && e->t.shape[0] < g->t.shape[0]);
    const int64_t n = sl_count(&e->t);
    t_near("fp8-umt5", "umt5.embed.0", t_rel_l2(g->t.data, t_floats(want, n, "umt5.embed.0"), n),
           T_LAYER_TOL);
    sl_st_close(&want);
    sl_st_close(&got);
}

static void a_lora_on_fp8(void **state)
{
    (void)state;
    t_lora_on_and_off("fp8-scaled", "float32");
}

/* Transformer and text encoder; four bits are near the bf16 that they were made of, and not it. */
static void gguf_and_a_lora_on_it(void **state)
{
    (void)state;
    t_lora_on_and_off("gguf", "gguf-float32");
    const double apart = t_latents_apart("gguf", 0, "diffusers", 0);
    if (!(apart > 1e-3 && apart < 0.1)) fail_msg("gguf: %.3g from the bf16 latents", apart);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_of_one_checkpoint_give_its_bytes),
        cmocka_unit_test(a_lora_on_other_layouts_gives_the_same_bytes),
        cmocka_unit_test(bf16_as_the_reference),
        cmocka_unit_test(fp8_as_the_reference),
        cmocka_unit_test(fp8_text_as_the_reference),
        cmocka_unit_test(a_lora_on_fp8),
        cmocka_unit_test(gguf_and_a_lora_on_it),
    };
    return cmocka_run_group_tests(tests, run_all, t_layouts_remove);
}
