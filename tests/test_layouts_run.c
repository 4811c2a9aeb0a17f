/* test_layouts_run.c - `sluice run` on one checkpoint in every layout, with a LoRA and without.
 *
 * A run each, all of lora-i2v's case. What holds the Diffusers folder's numbers gives its bytes,
 * hand-over by hand-over and in the video; 8-bit weights are as near to what diffusers computes
 * with them as any golden case (blocks 1e-4, steps 5e-4). With a LoRA the original layout gives the
 * folder's bytes again, and an 8-bit one those of the same weights in float32; without it after it,
 * those of before. SL_SHOW=1 prints the distances. limit: 240 s */
#include "tests/t_dump.h"
#include "tests/t_layouts.h"

#include <jansson.h>

#define TI2V "tests/golden/tiny-ti2v-5b"
#define GOLDEN "tests/golden/lora-i2v/lora-48x32x5"
#define LORA "tests/golden/lora-i2v/d-lightx2v.safetensors" /* changes of every kind */

#define CLIP " --image-encoder @comfy/clip_vision/clip_vision_h.safetensors"
#define VAE " --vae @comfy/vae/wan_2.1_vae.safetensors"
#define UMT5 " --text-encoder @comfy/text_encoders/umt5_xxl_"
#define OTHERS UMT5 "bf16.safetensors" VAE CLIP
#define FP8 "--transformer @" T_COMFY "fp8_"

/* @: the folder of all layouts. Jobs: b without a LoRA, l with one; t of TI2V-5B. */
static const struct {
    const char *name, *model, *jobs;
} RUNS[] = {
    {"diffusers", "--model " T_TINY, "bl"},
    {"wan-original", "--model @wan-original", "blb"},
    {"hub", "--model @" T_HUB, "b"},
    {"comfy", "--transformer @" T_COMFY "bf16.safetensors" OTHERS, "bl"},
    {"kijai",
     "--transformer @" T_COMFY "bf16.safetensors --text-encoder "
     "@kijai/umt5-xxl-enc-bf16.safetensors --vae @kijai/Wan2_1_VAE_fp32.safetensors --tokenizer "
     "@wan-original/google/umt5-xxl/spiece.model" CLIP,
     "b"},
    {"fp8", FP8 "e4m3fn.safetensors" OTHERS, "b"},
    {"fp8-scaled", FP8 "scaled.safetensors" OTHERS, "blb"},
    {"fp8-quant", FP8 "comfy_quant.safetensors" OTHERS, "bl"},
    {"fp8-kijai",
     "--transformer @kijai/Wan2_1-I2V-14B-480P_fp8_e4m3fn_scaled_KJ.safetensors" OTHERS, "b"},
    {"fp8-lightx2v",
     "--transformer @lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors" OTHERS, "b"},
    {"fp8-umt5",
     "--transformer @" T_COMFY "bf16.safetensors" UMT5 "fp8_e4m3fn_scaled.safetensors" VAE CLIP,
     "b"},
    {"fp16-umt5", "--transformer @" T_COMFY "bf16.safetensors" UMT5 "fp16.safetensors" VAE CLIP,
     "b"},
    /* fp8-scaled's weights, as pack writes them */
    {"float32", "--transformer @packed/transformer/diffusion_pytorch_model.safetensors" OTHERS,
     "bl"},
    {"ti2v-diffusers", "--model " TI2V "/model", "t"},
    {"ti2v", "--model @ti2v/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors", "t"},
    {"ti2v-original", "--model @ti2v-original", "t"},
};
#define RUN_COUNT ((int)(sizeof RUNS / sizeof *RUNS))

/* The case of a job: its picture, noise and prompts. */
static json_t *job_of(char kind)
{
    const bool ti2v = kind == 't';
    json_t *prompts =
        json_load_file(ti2v ? TI2V "/prompts.json" : "tests/golden/tiny-i2v/prompts.json", 0, NULL);
    const char *of = ti2v ? TI2V "/ti2v-96x64x5-i2v" : GOLDEN;
    assert_non_null(prompts);
    /* no file of weights says which shift the model wants */
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:b}", "image",
                          t_format("%s.png", of), "noise", t_format("%s.safetensors", of), "prompt",
                          json_string_value(json_array_get(prompts, 0)), "negative",
                          json_string_value(json_array_get(prompts, 7)), "width", ti2v ? 96 : 48,
                          "height", ti2v ? 64 : 32, "frames", 5, "steps", 3, "guidance", 4.,
                          "shift", ti2v ? 5. : 3., "dump_steps", 1, "dump_blocks", 1);
    assert_non_null(o);
    if (kind == 'l') json_object_set_new(o, "lora", json_string(LORA));
    json_decref(prompts);
    return o;
}

static void write_jobs(const char *name, const char *jobs)
{
    FILE *f = fopen(t_at(t_format("%s.jsonl", name)), "w");
    assert_non_null(f);
    for (int i = 0; jobs[i]; i++) {
        const char *to = t_at(t_format("%s.%d", name, i));
        json_t *o = job_of(jobs[i]);
        json_object_set_new(o, "dump", json_string(to));
        json_object_set_new(o, "output", json_string(t_format("%s.mp4", to)));
        json_dumpf(o, f, JSON_COMPACT);
        fputc('\n', f);
        json_decref(o);
    }
    fclose(f);
}

/* @ in the options becomes the folder. Static buffer. */
static const char *placed(const char *options)
{
    static char out[4000];
    size_t n = 0;
    for (; *options; options++)
        n += (size_t)(*options == '@' ? snprintf(out + n, sizeof out - n, "%s/", t_layouts)
                                      : snprintf(out + n, sizeof out - n, "%c", *options));
    assert_true(n < sizeof out);
    return out;
}

static int run_all(void **state)
{
    t_layouts_make(state);
    t_shell("%s/sluice pack --quiet --dtype f32 -o %s %s", t_bin(), t_at("packed"),
            placed("--model @comfy " FP8 "scaled.safetensors" OTHERS));
    for (int i = 0; i < RUN_COUNT; i++) {
        write_jobs(RUNS[i].name, RUNS[i].jobs);
        t_shell("%s/sluice run --quiet --jobs %s %s", t_bin(),
                t_at(t_format("%s.jsonl", RUNS[i].name)), placed(RUNS[i].model));
    }
    return 0;
}

/* ---- what came of it ---- */

/* Job k of two runs made the same. Dumps are compared as files; a video's bytes are its frames'. */
static void same_bytes(const char *run, int k, const char *as, int n)
{
    static const char *const FILES[] = {"/text.safetensors", "/image.safetensors",
                                        "/denoise.safetensors", "/frames.safetensors", ".mp4"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        const char *a = t_format("%s.%d%s", t_at(run), k, FILES[i]),
                   *b = t_format("%s.%d%s", t_at(as), n, FILES[i]);
        if (!t_same_file(a, b)) fail_msg("%s: %s is not that of %s, job %d", run, a, as, n);
    }
}

static void all_of_one_checkpoint_give_its_bytes(void **state)
{
    static const char *const RUN[] = {"wan-original", "hub", "comfy", "kijai"};
    (void)state;
    for (size_t i = 0; i < sizeof RUN / sizeof *RUN; i++) same_bytes(RUN[i], 0, "diffusers", 0);
    same_bytes("ti2v", 0, "ti2v-diffusers", 0);
    same_bytes("ti2v-original", 0, "ti2v-diffusers", 0);
}

static void a_lora_on_other_layouts_gives_the_same_bytes(void **state)
{
    (void)state;
    same_bytes("wan-original", 1, "diffusers", 1);
    same_bytes("comfy", 1, "diffusers", 1);
    same_bytes("wan-original", 2, "diffusers", 0); /* and goes again */
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
    as_the_reference("diffusers", GOLDEN ".safetensors", "base");
    as_the_reference("comfy", GOLDEN ".safetensors", "base");
    /* a text encoder in F16 has lost bits below 6e-5 alone */
    as_the_reference("fp16-umt5", GOLDEN ".safetensors", "base");
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
    same_bytes("fp8-quant", 0, "fp8-scaled", 0);
    same_bytes("fp8-quant", 1, "fp8-scaled", 1);
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

/* On: what the same weights in float32 give with it. Off: the bytes of before. */
static void a_lora_on_fp8(void **state)
{
    (void)state;
    same_bytes("fp8-scaled", 0, "float32", 0);
    same_bytes("fp8-scaled", 1, "float32", 1);
    same_bytes("fp8-scaled", 2, "fp8-scaled", 0);
    sl_st *on = t_open_st(t_format("%s.1/denoise.safetensors", t_at("fp8-scaled"))),
          *off = t_open_st(t_format("%s.0/denoise.safetensors", t_at("fp8-scaled")));
    const double moved = t_distance(on, "step.2.latents", off, "step.2.latents");
    if (!(moved > 0.1)) fail_msg("the LoRA moves the latents by %.3g alone", moved);
    sl_st_close(&on);
    sl_st_close(&off);
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
    };
    return cmocka_run_group_tests(tests, run_all, t_layouts_remove);
}
