/* t_layouts_run.h - `sluice run` on the golden checkpoints as other programs have them: jobs of
 * lora-i2v's case, and what two runs made held against each other. */
#ifndef T_LAYOUTS_RUN_H
#define T_LAYOUTS_RUN_H

#include "tests/t_dump.h"
#include "tests/t_layouts.h"

#include <jansson.h>

#define T_TI2V "tests/golden/tiny-ti2v-5b"
#define T_LAYOUTS_GOLDEN "tests/golden/lora-i2v/lora-48x32x5"
#define T_LAYOUTS_LORA "tests/golden/lora-i2v/d-lightx2v.safetensors" /* changes of every kind */

#define T_CLIP_FILE " --image-encoder @comfy/clip_vision/clip_vision_h.safetensors"
#define T_VAE_FILE " --vae @comfy/vae/wan_2.1_vae.safetensors"
#define T_UMT5_FILE " --text-encoder @comfy/text_encoders/umt5_xxl_"
#define T_OTHERS T_UMT5_FILE "bf16.safetensors" T_VAE_FILE T_CLIP_FILE
#define T_SPM " --tokenizer @wan-original/google/umt5-xxl/spiece.model"
#define T_FP8 "--transformer @" T_COMFY "fp8_"

#define T_FLOAT32 "--transformer @packed/transformer/diffusion_pytorch_model.safetensors" T_OTHERS
#define T_GGUF_FILES(suffix)                                                                       \
    "--transformer @gguf/transformer." suffix                                                      \
    " --text-encoder @gguf/umt5." suffix T_SPM T_VAE_FILE T_CLIP_FILE

/* The case of a job: its picture, noise and prompts. */
static inline json_t *t_job_of(char kind)
{
    const bool ti2v = kind == 't';
    json_t *prompts = json_load_file(
        ti2v ? T_TI2V "/prompts.json" : "tests/golden/tiny-i2v/prompts.json", 0, NULL);
    const char *of = ti2v ? T_TI2V "/ti2v-96x64x5-i2v" : T_LAYOUTS_GOLDEN;
    assert_non_null(prompts);
    /* no file of weights says which shift the model wants */
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:f, s:b, s:b}", "image",
                          t_format("%s.png", of), "noise", t_format("%s.safetensors", of), "prompt",
                          json_string_value(json_array_get(prompts, 0)), "negative",
                          json_string_value(json_array_get(prompts, 7)), "width", ti2v ? 96 : 48,
                          "height", ti2v ? 64 : 32, "frames", 5, "steps", 3, "guidance", 4.,
                          "shift", ti2v ? 5. : 3., "dump_steps", 1, "dump_blocks", 1);
    assert_non_null(o);
    if (kind == 'l') json_object_set_new(o, "lora", json_string(T_LAYOUTS_LORA));
    json_decref(prompts);
    return o;
}

static inline void t_write_jobs(const char *name, const char *jobs)
{
    FILE *f = fopen(t_at(t_format("%s.jsonl", name)), "w");
    assert_non_null(f);
    for (int i = 0; jobs[i]; i++) {
        const char *to = t_at(t_format("%s.%d", name, i));
        json_t *o = t_job_of(jobs[i]);
        json_object_set_new(o, "dump", json_string(to));
        json_object_set_new(o, "output", json_string(t_format("%s.mp4", to)));
        json_dumpf(o, f, JSON_COMPACT);
        fputc('\n', f);
        json_decref(o);
    }
    fclose(f);
}

/* @ in the options becomes the folder. Static buffer. */
static inline const char *t_placed(const char *options)
{
    static char out[4000];
    size_t n = 0;
    for (; *options; options++)
        n += (size_t)(*options == '@' ? snprintf(out + n, sizeof out - n, "%s/", t_layouts)
                                      : snprintf(out + n, sizeof out - n, "%c", *options));
    assert_true(n < sizeof out);
    return out;
}

/* The weights of FP8's `scaled`, as pack writes them: T_FLOAT32. */
static inline void t_pack_float32(void)
{
    t_shell("%s/sluice pack --quiet --dtype f32 -o %s %s", t_bin(), t_at("packed"),
            t_placed("--model @comfy " T_FP8 "scaled.safetensors" T_OTHERS));
}

/* A run on this device, its dumps in NAME.0, NAME.1 ... of the folder. */
static inline void t_run_jobs(const char *name, const char *options, const char *jobs,
                              const char *device)
{
    t_write_jobs(name, jobs);
    t_shell("%s/sluice run --quiet --device %s --jobs %s %s", t_bin(), device,
            t_at(t_format("%s.jsonl", name)), t_placed(options));
}

/* Job k of two runs made the same. A dump's files say of which model they are; a video's bytes are
 * its frames'. */
static inline void t_same_bytes(const char *run, int k, const char *as, int n)
{
    static const char *const FILES[] = {"/text.safetensors", "/image.safetensors",
                                        "/denoise.safetensors", "/frames.safetensors", ".mp4"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        const char *a = t_format("%s.%d%s", t_at(run), k, FILES[i]),
                   *b = t_format("%s.%d%s", t_at(as), n, FILES[i]);
        if (!(strstr(a, ".mp4") ? t_same_file(a, b) : t_same_tensors(a, b)))
            fail_msg("%s: %s is not that of %s, job %d", run, a, as, n);
    }
}

/* How far the last latents of one job are from another's. */
static inline double t_latents_apart(const char *run, int k, const char *as, int n)
{
    sl_st *a = t_open_st(t_format("%s.%d/denoise.safetensors", t_at(run), k)),
          *b = t_open_st(t_format("%s.%d/denoise.safetensors", t_at(as), n));
    const double d = t_distance(a, "step.2.latents", b, "step.2.latents");
    sl_st_close(&a);
    sl_st_close(&b);
    return d;
}

/* On: what the same weights in float32 give with it. Off: the bytes of before. */
static inline void t_lora_on_and_off(const char *run, const char *in_float32)
{
    t_same_bytes(run, 0, in_float32, 0);
    t_same_bytes(run, 1, in_float32, 1);
    t_same_bytes(run, 2, run, 0);
    const double moved = t_latents_apart(run, 1, run, 0);
    if (!(moved > 0.1)) fail_msg("%s: the LoRA moves the latents by %.3g alone", run, moved);
}

#endif
