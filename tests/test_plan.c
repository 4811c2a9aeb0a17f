/* test_plan - the bytes that `sluice plan` tells: by hand for the 14B model from its
 * configurations alone, and against what the stages of a real run take.
 *
 * takes: 5 s. limit: 240 s */
#include "tests/t.h"
#include "tests/t_run.h"

#include <jansson.h>
#include <sys/resource.h>

#include "stages/cli/arguments.h"
#include "stages/job/defaults.h"
#include "stages/job/plan.h"
#include "stages/sizes/sizes.h"

static sl_err err;
static t_run r;

static int setup(void **state)
{
    (void)state;
    t_run_open(&r);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    t_run_close(&r);
    return 0;
}

/* ---- configurations as they are published: spec 1.2 to 1.7 ---- */

#define SIXTEEN(x)                                                                                 \
    "[" x "," x "," x "," x "," x "," x "," x "," x "," x "," x "," x "," x "," x "," x "," x      \
    "," x "]"
static const struct {
    const char *file, *text;
} CONFIGS[] = {
    {"model_index.json",
     "{\"_class_name\": \"WanImageToVideoPipeline\", \"_diffusers_version\": \"0.33.0.dev0\", "
     "\"image_encoder\": [\"transformers\", \"CLIPVisionModelWithProjection\"], "
     "\"image_processor\": [\"transformers\", "
     "\"CLIPImageProcessor\"], "
     "\"scheduler\": [\"diffusers\", \"UniPCMultistepScheduler\"], \"text_encoder\": "
     "[\"transformers\", \"UMT5EncoderModel\"], "
     "\"tokenizer\": [\"transformers\", \"T5TokenizerFast\"], \"transformer\": [\"diffusers\", "
     "\"WanTransformer3DModel\"], "
     "\"vae\": [\"diffusers\", \"AutoencoderKLWan\"]}"},
    {"transformer/config.json",
     "{\"_class_name\": \"WanTransformer3DModel\", \"num_layers\": 40, \"num_attention_heads\": "
     "40, \"attention_head_dim\": 128, "
     "\"ffn_dim\": 13824, \"in_channels\": 36, \"out_channels\": 16, \"image_dim\": 1280, "
     "\"added_kv_proj_dim\": 5120, "
     "\"patch_size\": [1, 2, 2], \"cross_attn_norm\": true, \"qk_norm\": "
     "\"rms_norm_across_heads\", \"eps\": 1e-06, \"freq_dim\": "
     "256, "
     "\"text_dim\": 4096, \"rope_max_seq_len\": 1024}"},
    {"text_encoder/config.json", "{\"architectures\": [\"UMT5EncoderModel\"], \"model_type\": "
                                 "\"umt5\", \"d_model\": 4096, \"d_kv\": 64, \"d_ff\": 10240, "
                                 "\"num_heads\": 64, \"num_layers\": 24, \"vocab_size\": 256384, "
                                 "\"relative_attention_num_buckets\": 32, "
                                 "\"relative_attention_max_distance\": 128, \"feed_forward_proj\": "
                                 "\"gated-gelu\", \"layer_norm_epsilon\": 1e-06, "
                                 "\"dense_act_fn\": \"gelu_new\", \"is_gated_act\": true}"},
    {"image_encoder/config.json",
     "{\"architectures\": [\"CLIPVisionModelWithProjection\"], \"model_type\": "
     "\"clip_vision_model\", \"num_hidden_layers\": 32, "
     "\"num_attention_heads\": 16, \"hidden_size\": 1280, \"intermediate_size\": 5120, "
     "\"patch_size\": 14, \"image_size\": 224, "
     "\"projection_dim\": 1024, \"hidden_act\": \"gelu\", \"layer_norm_eps\": 1e-05, "
     "\"num_channels\": 3}"},
    {"image_processor/preprocessor_config.json",
     "{\"crop_size\": {\"height\": 224, \"width\": 224}, \"do_center_crop\": true, "
     "\"do_convert_rgb\": true, "
     "\"do_normalize\": true, \"do_rescale\": true, \"do_resize\": true, \"image_mean\": "
     "[0.48145466, 0.4578275, "
     "0.40821073], \"image_std\": [0.26862954, 0.26130258, 0.27577711], \"resample\": 3, "
     "\"rescale_factor\": "
     "0.00392156862745098, \"size\": {\"shortest_edge\": 224}}"},
    {"scheduler/scheduler_config.json",
     "{\"_class_name\": \"UniPCMultistepScheduler\", \"solver_order\": 2, \"solver_type\": "
     "\"bh2\", \"predict_x0\": true, "
     "\"prediction_type\": \"flow_prediction\", \"use_flow_sigmas\": true, \"flow_shift\": 3.0, "
     "\"lower_order_final\": true, "
     "\"final_sigmas_type\": \"zero\", \"num_train_timesteps\": 1000}"},
    {"vae/config.json",
     "{\"_class_name\": \"AutoencoderKLWan\", \"base_dim\": 96, \"z_dim\": 16, \"dim_mult\": [1, "
     "2, 4, 4], \"num_res_blocks\": 2, "
     "\"attn_scales\": [], \"temperal_downsample\": [false, true, true], \"dropout\": 0.0, "
     "\"latents_mean\": " SIXTEEN("0.5") ", "
                                         "\"latents_std\": " SIXTEEN("2.0") "}"},
};

static const char *big_model(void)
{
    static char dir[300];
    snprintf(dir, sizeof dir, "%s/14b", r.base);
    mkdir(dir, 0700);
    for (size_t i = 0; i < sizeof CONFIGS / sizeof *CONFIGS; i++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", dir, CONFIGS[i].file);
        char *slash = strrchr(path, '/');
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
        t_write(path, CONFIGS[i].text);
    }
    return dir;
}

/* ---- the command ---- */

#define END ((const char *)NULL)

/* `sluice plan ...` to JSON; the words end with END. The caller frees. */
static json_t *plan(const char *first, ...)
{
    const char *out = t_format("%s/plan.json", r.base);
    char *args[T_ARGS] = {(char *)"sluice", (char *)"plan", (char *)"--json", (char *)out,
                          (char *)"--quiet"};
    int n = 5;
    va_list ap;
    va_start(ap, first);
    for (const char *a = first; a; a = va_arg(ap, const char *)) args[n++] = (char *)a;
    va_end(ap);
    t_run_start(&r, args);
    t_run_ends(&r, 0);
    json_error_t je;
    json_t *root = json_load_file(out, 0, &je);
    assert_non_null(root);
    return root;
}

static int64_t of(const json_t *root, const char *stage, const char *key)
{
    json_t *v = json_object_get(json_object_get(json_object_get(root, "stages"), stage), key);
    if (!json_is_integer(v)) fail_msg("%s has no %s", stage, key);
    return json_integer_value(v);
}

/* `bytes` in whole, or up to this much of alignment, slabs and padding above it. */
static void about(int64_t found, int64_t bytes, int64_t above)
{
    if (found < bytes || found > bytes + above)
        fail_msg("%lld bytes, want %lld, and at most %lld more", (long long)found, (long long)bytes,
                 (long long)above);
}

/* ---- by hand ---- */

#define MIB ((int64_t)1 << 20)
#define LATENT_720 ((int64_t)16 * 21 * 90 * 160 * 4) /* bytes of 1280x720x81 in float32 */
#define TOKENS_720 ((int64_t)21 * 45 * 80)

/* Parameters: spec 1.8. The network does not ask for norm_added_q, [5120] in each block. */
#define DIT_PARAMETERS ((int64_t)16394878784 - 40 * 5120)
#define UMT5_PARAMETERS ((int64_t)5680910336)

static void weights_from_configurations(void **state)
{
    json_t *p = plan("--model", big_model(), "--width", "1280", "--height", "720", END);
    assert_true(json_is_false(json_object_get(p, "from_files")));
    about(of(p, "denoise", "weight_bytes"), DIT_PARAMETERS * 4, 4 * MIB);
    about(of(p, "text", "weight_bytes"), UMT5_PARAMETERS * 4, 4 * MIB);
    /* on the CPU matrices stay mapped; beside them biases (in one block 14 x 5120 +
     * 13824, and 4 norms of attention), converted */
    assert_true(of(p, "denoise", "mapped_bytes") > DIT_PARAMETERS * 4 - 64 * MIB);
    about(of(p, "denoise", "private_weight_bytes"),
          (int64_t)40 * (10 * 5120 + 13824 + 5120 + 5 * 5120) * 4, 32 * MIB);
    /* convolutions are packed, and no less for it: the encoder with its quant_conv;
     * channels are filled up to whole panels */
    about(of(p, "decode", "private_weight_bytes"), (int64_t)73295331 * 4, 16 * MIB);
    assert_int_equal(of(p, "decode", "mapped_bytes"), 0);
    json_decref(p);
    (void)state;
}

static void decoder_caches(void **state)
{
    /* Channels that the decoder keeps at each of its four resolutions, two frames of each
     * (spec 4.5): conv_in and the middle's four convolutions, three residual blocks of
     * two convolutions a level, the time convolution of the first two levels, conv_out. */
    int64_t p0 = 16 + 4 * 384 + 6 * 384 + 384, p1 = 192 + 5 * 384 + 384, p2 = 6 * 192,
            p3 = 6 * 96 + 96;
    int64_t want = 2 * 4 * (90 * 160) * (p0 + 4 * p1 + 16 * p2 + 64 * p3);
    const char *model = big_model();
    assert_int_equal(want, 8716492800);
    json_t *p = plan("--model", model, "--width", "1280", "--height", "720", END);
    assert_int_equal(of(p, "decode", "job_bytes"), want);
    json_decref(p);
    p = plan("--model", model, "--width", "832", "--height", "480", END);
    assert_int_equal(of(p, "decode", "job_bytes"), want / (90 * 160) * (60 * 104));
    json_decref(p);
    p = plan("--model", model, "--width", "1280", "--height", "720", "--device", "cuda:0", END);
    /* the latents lie there too */
    assert_int_equal(of(p, "decode", "job_bytes"), want / 2 + LATENT_720);
    json_decref(p);
    (void)state;
}

static void what_a_denoising_job_keeps(void **state)
{
    int64_t condition = LATENT_720 / 16 * 20, v = 2 * LATENT_720, sampler = 5 * LATENT_720,
            rope = TOKENS_720 * 64 * 4 * 2;
    int64_t times = (int64_t)50 * (1 + 6) * 5120 * 4,
            contexts = (int64_t)2 * 40 * (512 + 257) * 2 * 5120 * 4;
    int64_t want = condition + v + sampler + rope + times + contexts,
            tokens = TOKENS_720 * 5120 * 4;
    const char *model = big_model();
    assert_int_equal(want, 2725401600);
    json_t *p = plan("--model", model, "--width", "1280", "--height", "720", END);
    assert_int_equal(of(p, "denoise", "job_bytes"), want);
    /* the tokens, all queries, keys and values; the rest some thousand tokens at a time */
    about(of(p, "denoise", "work_bytes"), 4 * tokens, 1200 * MIB);
    json_decref(p);
    /* without guidance one branch; ten steps */
    p = plan("--model", model, "--width", "1280", "--height", "720", "--guidance", "1", "--steps",
             "10", END);
    assert_int_equal(of(p, "denoise", "job_bytes"),
                     want - LATENT_720 - times / 5 * 4 - contexts / 2);
    json_decref(p);
    /* the cache: two tensors of all tokens a branch */
    p = plan("--model", model, "--width", "1280", "--height", "720", "--fbcache", "0.1", END);
    assert_int_equal(of(p, "denoise", "job_bytes"), want + 4 * tokens);
    json_decref(p);
    (void)state;
}

/* What one stage takes of its GPU. */
static int64_t on_gpu(const json_t *plan, const char *stage)
{
    return of(plan, stage, "weight_bytes") + of(plan, stage, "arena_bytes") +
           of(plan, stage, "device_slot_bytes") + of(plan, stage, "window_bytes") +
           of(plan, stage, "context_bytes");
}

static int64_t wanted(const json_t *plan, const char *device)
{
    return json_integer_value(
        json_object_get(json_object_get(json_object_get(plan, "devices"), device), "wanted_bytes"));
}

static const char *const COMPUTING[] = {"text", "image", "denoise", "decode"};

/* One device, then networks spread over devices: nothing is counted twice. */
static void devices_add_up(void **state)
{
    const char *model = big_model();
    char conf[400];
    snprintf(conf, sizeof conf, "%s/devices.cfg", r.base);
    json_t *p =
        plan("--model", model, "--width", "832", "--height", "480", "--device", "cuda:0", END);
    int64_t gpu = 0, arenas = 0;
    for (int i = 0; i < 4; i++) {
        gpu += on_gpu(p, COMPUTING[i]);
        arenas += of(p, COMPUTING[i], "weight_bytes") + of(p, COMPUTING[i], "arena_bytes");
        assert_int_equal(of(p, COMPUTING[i], "slot_bytes"),
                         of(p, COMPUTING[i], "device_slot_bytes"));
        assert_true(of(p, COMPUTING[i], "context_bytes") > 512 * MIB);
    }
    /* bf16, but for the fp32 list */
    about(of(p, "denoise", "weight_bytes"), DIT_PARAMETERS * 2 + (int64_t)29196800 * 2, 4 * MIB);
    about(of(p, "image", "weight_bytes"), (int64_t)611086080 * 4 + (int64_t)53595872 * 2,
          8 * MIB); /* CLIP is float32 (spec 2.5); convolutions are padded to whole tiles */
    assert_int_equal(of(p, "denoise", "mapped_bytes"), 0);
    assert_int_equal(wanted(p, "cuda:0"), gpu);
    assert_int_equal(of(p, "mux", "device_slot_bytes"), 0); /* frames go to host memory */
    assert_int_equal(of(p, "mux", "context_bytes"), 0);
    json_decref(p);

    t_write(conf, "stages: ({ name = \"text\"; program = \"sluice-text\"; device = \"cuda:1\"; }, "
                  "{ name = \"image\"; program = "
                  "\"sluice-image\"; device = \"cuda:2\"; },\n"
                  "{ name = \"denoise\"; program = \"sluice-denoise\"; device = \"cuda:0\"; }, { "
                  "name = \"decode\"; program = "
                  "\"sluice-decode\"; device = \"cuda:2\"; },\n"
                  "{ name = \"mux\"; program = \"sluice-mux\"; });\n");
    p = plan("--model", model, "--width", "832", "--height", "480", "--conf", conf, END);
    assert_int_equal(json_object_size(json_object_get(p, "devices")), 4);
    assert_int_equal(wanted(p, "cuda:0"), on_gpu(p, "denoise"));
    assert_int_equal(wanted(p, "cuda:1"), on_gpu(p, "text"));
    assert_int_equal(wanted(p, "cuda:2"), on_gpu(p, "image") + on_gpu(p, "decode"));
    int64_t spread = 0;
    for (int i = 0; i < 4; i++) {
        spread += of(p, COMPUTING[i], "weight_bytes") + of(p, COMPUTING[i], "arena_bytes");
        /* between two devices: host memory */
        assert_int_equal(of(p, COMPUTING[i], "device_slot_bytes"), 0);
    }
    assert_int_equal(spread, arenas);
    json_decref(p);
    (void)state;
}

/* The whole 14B model on one GPU of 80 GB, at both of the large sizes. */
static void all_of_14b_fits_one_gpu(void **state)
{
    static const char *const SIZES[][2] = {{"1280", "720"}, {"1024", "1024"}};
    for (int i = 0; i < 2; i++) {
        json_t *p = plan("--model", big_model(), "--width", SIZES[i][0], "--height", SIZES[i][1],
                         "--device", "cuda:0", END);
        if (wanted(p, "cuda:0") > (int64_t)76 << 30)
            fail_msg("%sx%s: %lld bytes, want at most 76 GiB", SIZES[i][0], SIZES[i][1],
                     (long long)wanted(p, "cuda:0"));
        json_decref(p);
    }
    (void)state;
}

/* In 8 bits the blocks' large matrices take half of bf16's bytes, and 4 for each output: 10
 * matrices of dim x dim (keys and values of text and picture, too) and 2 of dim x ffn in each of 40
 * blocks. */
static void eight_bits_take_half_of_the_large_matrices(void **state)
{
    const int64_t d = 5120, ffn = 13824, numbers = 40 * (10 * d * d + 2 * d * ffn),
                  outputs = 40 * (10 * d + ffn + d);
    json_t *p[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        p[i] = plan("--model", big_model(), "--width", "1280", "--height", "720", "--device",
                    "cuda:0", "--precision", i ? "fp8-linear" : "bf16", END);
        assert_string_equal(json_string_value(json_object_get(p[i], "precision")),
                            i ? "fp8-linear" : "bf16");
    }
    const int64_t whole = of(p[0], "denoise", "weight_bytes"),
                  eight = of(p[1], "denoise", "weight_bytes"), tokens = TOKENS_720;
    assert_int_equal(eight, whole - numbers + 4 * outputs);
    if (!(eight < 17000000000)) fail_msg("%lld bytes of weights", (long long)eight);
    assert_int_equal(of(p[1], "denoise", "job_bytes"), of(p[0], "denoise", "job_bytes"));
    /* the feed-forward's input and what is between its layers, in 8 bits beside bf16 */
    const int64_t work = of(p[1], "denoise", "work_bytes"),
                  most = of(p[0], "denoise", "work_bytes");
    if (!(work <= most + tokens * (d + ffn) + 2 * 4 * tokens + 1024))
        fail_msg("a step takes %lld bytes, in bf16 %lld", (long long)work, (long long)most);
    for (int i = 0; i < 2; i++) json_decref(p[i]);
}

/* A device that is not to be had is refused in one line, before anything starts. */
static void a_missing_gpu_is_refused(void **state)
{
    char *args[] = {(char *)"sluice",
                    (char *)"run",
                    (char *)"--model",
                    (char *)T_MODEL,
                    (char *)"--image",
                    (char *)T_IMAGE,
                    (char *)"--prompt",
                    (char *)"a",
                    (char *)"--device",
                    (char *)"cuda:63",
                    NULL};
    const char *given = getenv("SLUICE_CUDA");
    char kept[1024];
    snprintf(kept, sizeof kept, "%s", given ? given : "");
    setenv("SLUICE_CUDA", "/nonexistent/plugin.so", 1);
    t_run_start(&r, args);
    t_run_ends(&r, 2);
    if (given) setenv("SLUICE_CUDA", kept, 1);
    else unsetenv("SLUICE_CUDA");
    if (!t_run_said(&r,
                    "sluice: device cuda:63 (stage text): CUDA plug-in /nonexistent/plugin.so: ") ||
        t_run_count(&r, "\n") != 1)
        fail_msg("said: %s", r.text);
    t_run_nothing_left(&r, 0);

    t_run_start(&r, args); /* with the plug-in where it was built: there are not that many */
    t_run_ends(&r, 2);
    if (t_run_count(&r, "\n") != 1 || !t_run_said(&r, "sluice: device cuda:63 (stage text): "))
        fail_msg("said: %s", r.text);

    args[9] = (char *)"cuda:64";
    t_run_start(&r, args);
    t_run_ends(&r, 2);
    if (!t_run_said(&r, "--device is cuda:64, want cpu or cuda:N with N from 0 to 63"))
        fail_msg("said: %s", r.text);

    t_run_conf(&r, 1, 30,
               "stages: ({ name = \"mux\"; program = \"sluice-mux\"; device = \"cuda:0\"; });\n");
    args[8] = (char *)"--conf", args[9] = r.conf;
    t_run_start(&r, args);
    t_run_ends(&r, 2);
    if (!t_run_said(&r, "device cuda:0 (stage mux): it works on the CPU alone, want cpu"))
        fail_msg("said: %s", r.text);
    (void)state;
}

static void slots_hold_the_jobs_tensors(void **state)
{
    sl_model m;
    T_OK(sl_model_open(&m, big_model(), &err));
    about((int64_t)sl_slot_bytes(&m, SL_HANDOVER_TEXT, 921600, 81), (int64_t)2 * 512 * 4096 * 4,
          8192);
    about((int64_t)sl_slot_bytes(&m, SL_HANDOVER_LATENTS, 921600, 81), LATENT_720, 8192);
    about((int64_t)sl_slot_bytes(&m, SL_HANDOVER_IMAGE, 921600, 81),
          LATENT_720 / 16 * 20 + (int64_t)257 * 1280 * 4, 8192);
    assert_int_equal(sl_slot_bytes(&m, SL_HANDOVER_FRAMES, 921600, 81), 4 * 1280 * 720 * 3);
    (void)state;
}

/* ---- against the stages ---- */

/* A prompt of more pieces than 512: the text stage's largest arena. */
static const char *long_prompt(void)
{
    static char text[4096];
    for (size_t i = 0; i + 4 < sizeof text; i += 4) memcpy(text + i, i % 8 ? "fox " : "jay ", 4);
    return text;
}

static void plan_is_what_a_run_takes(void **state)
{
    static const char *const EXTRA[][2] = {
        {"--guidance", "5"}, {"--guidance", "1"}, {"--fbcache", "0.2"}};
    char told[400], video[400];
    snprintf(told, sizeof told, "%s/report.json", r.out);
    snprintf(video, sizeof video, "%s/a.mp4", r.out);
    for (int i = 0; i < (getenv("SLUICE_TEST_QUICK") && *getenv("SLUICE_TEST_QUICK") ? 1 : 3);
         i++) {
        char *const args[] = {(char *)"sluice",    (char *)"run",
                              (char *)"--model",   (char *)T_MODEL,
                              (char *)"--image",   (char *)T_IMAGE,
                              (char *)"--prompt",  (char *)long_prompt(),
                              (char *)"--width",   (char *)"96",
                              (char *)"--height",  (char *)"64",
                              (char *)"--frames",  (char *)"13",
                              (char *)"--steps",   (char *)"4",
                              (char *)"--seed",    (char *)"1",
                              (char *)"-o",        video,
                              (char *)"--json",    told,
                              (char *)"--quiet",   (char *)EXTRA[i][0],
                              (char *)EXTRA[i][1], NULL};
        t_run_start(&r, args);
        t_run_ends(&r, 0);
        json_error_t je;
        json_t *ran = json_load_file(told, 0, &je);
        json_t *planned = plan("--model", T_MODEL, "--width", "96", "--height", "64", "--frames",
                               "13", "--steps", "4", EXTRA[i][0], EXTRA[i][1], END);
        const char *const names[] = {"text", "image", "denoise", "decode", "mux"};
        assert_true(json_is_true(json_object_get(planned, "from_files")));
        for (int k = 0; k < 5; k++) {
            assert_int_equal(of(planned, names[k], "weight_bytes"),
                             of(ran, names[k], "weight_bytes"));
            assert_int_equal(of(planned, names[k], "arena_bytes"),
                             of(ran, names[k], "arena_bytes"));
        }
        json_decref(ran);
        json_decref(planned);
    }
    t_run_nothing_left(&r, 0);
    (void)state;
}

/* ---- a checkpoint's sluice.json ---- */

/* What the first job is after `sluice run WORDS...` (space between) with `text` as the
 * checkpoint's sluice.json, the line as a jobs file's: "WxH AREA FRAMES FPS STEPS
 * GUIDANCE GUIDANCE-2 SHIFT SAMPLER NEGATIVE CACHE WARMUP HITS FINAL", a dash where
 * nobody said anything. */
static const char *job_after(const char *text, const char *words, const char *line)
{
    static char out[1024];
    char copy[512], jobs[400], *args[T_ARGS], *next = NULL;
    int n = 0;
    sl_batch o;
    sl_request d;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *w = strtok_r(copy, " ", &next); w; w = strtok_r(NULL, " ", &next)) args[n++] = w;
    snprintf(jobs, sizeof jobs, "%s/jobs.jsonl", r.base);
    t_write(t_format("%s/" SL_MODEL_DEFAULTS, r.base), text);
    t_write(jobs, line);
    if (*line) args[n++] = (char *)"--jobs", args[n++] = jobs;
    T_OK(sl_cli_parse(&o, false, n, args, &err));
    T_OK(sl_request_read_defaults(&d, r.base, &err));
    T_OK(sl_request_apply_defaults(&o.jobs[0], &d, &err));
    const sl_request *j = &o.jobs[0];
    const sl_job *s = &j->spec;
    size_t at = 0;
#define SAY(has, fmt, ...)                                                                         \
    at += (size_t)(j->has ? snprintf(out + at, sizeof out - at, fmt " ", __VA_ARGS__)              \
                          : snprintf(out + at, sizeof out - at, "- "))
    SAY(has_width, "%dx%d", s->width, s->height);
    SAY(has_max_area, "%d", (int)j->max_area);
    SAY(has_frames, "%d", s->frames);
    SAY(has_fps, "%g", s->fps);
    SAY(has_steps, "%d", s->steps);
    SAY(has_guidance, "%g", s->guidance);
    SAY(has_guidance_2, "%g", s->guidance_2);
    SAY(has_shift, "%g", s->shift);
    SAY(has_sampler, "%s", s->sampler);
    SAY(has_negative, "%s", s->negative);
    SAY(has_fbcache, "%g", s->fbcache);
    SAY(has_fbcache_warmup, "%d", s->fbcache_warmup);
    SAY(has_fbcache_max_hits, "%d", s->fbcache_max_hits);
    SAY(has_fbcache_final, "%d", s->fbcache_final);
#undef SAY
    out[at - 1] = 0;
    sl_job_free(&d.spec);
    sl_batch_free(&o);
    return out;
}

static void the_user_comes_before_the_checkpoint(void **state)
{
    static const char ALL[] = "{\"max-area\": 4096, \"frames\": 33, \"fps\": 8, \"steps\": 12, "
                              "\"guidance\": 2, \"guidance_2\": 3, \"shift\": "
                              "7, \"sampler\": \"euler\", \"negative\": \"blur\", \"fbcache\": "
                              "0.1, \"fbcache-warmup\": 2, "
                              "\"fbcache-max-hits\": 3, \"fbcache-final\": \"4\"}",
                      SIZE[] = "{\"width\": 64, \"height\": 48}",
                      DISTILLED[] = "{\"sampler\": \"lightx2v\", \"steps\": 6, "
                                    "\"guidance\": 1, \"shift\": 4}";
    static const struct {
        const char *text, *words, *line, *want;
    } CASES[] = {
        {"{}", "", "", "- - - - - - - - - - - - - -"},
        {ALL, "", "", "- 4096 33 8 12 2 3 7 euler blur 0.1 2 3 4"},
        {ALL, "--frames 5", "", "- 4096 5 8 12 2 3 7 euler blur 0.1 2 3 4"},
        {ALL, "--frames 5", "{\"frames\": 9, \"fps\": 24}",
         "- 4096 9 24 12 2 3 7 euler blur 0.1 2 3 4"},
        {ALL, "--negative x --shift 5 --sampler unipc", "{\"steps\": 3}",
         "- 4096 33 8 3 2 3 5 unipc x 0.1 2 3 4"},
        /* a given zero is a value like any other */
        {ALL,
         "--fbcache 0 --fbcache-warmup 0 --fbcache-max-hits 0 --fbcache-final 0 --guidance-2 0", "",
         "- 4096 33 8 12 2 0 7 euler blur 0 0 0 0"},
        /* --guidance is both experts', as without a file */
        {ALL, "--guidance 1", "", "- 4096 33 8 12 1 - 7 euler blur 0.1 2 3 4"},
        {ALL, "", "{\"guidance\": 1, \"guidance-2\": 4}",
         "- 4096 33 8 12 1 4 7 euler blur 0.1 2 3 4"},
        /* another sampler's steps are not a distilled model's */
        {ALL, "--sampler lightx2v", "", "- 4096 33 8 - - - - lightx2v blur 0.1 2 3 4"},
        {ALL, "--sampler lightx2v --steps 8", "", "- 4096 33 8 8 - - - lightx2v blur 0.1 2 3 4"},
        {DISTILLED, "", "", "- - - - 6 1 - 4 lightx2v - - - - -"},
        {DISTILLED, "--sampler lightx2v", "", "- - - - 6 1 - 4 lightx2v - - - - -"},
        /* a size puts an area aside, and an area a size; half a size is not filled up */
        {ALL, "--width 32 --height 16", "", "32x16 - 33 8 12 2 3 7 euler blur 0.1 2 3 4"},
        {ALL, "", "{\"width\": 32, \"height\": 16}", "32x16 - 33 8 12 2 3 7 euler blur 0.1 2 3 4"},
        {ALL, "--max-area 1024", "", "- 1024 33 8 12 2 3 7 euler blur 0.1 2 3 4"},
        {SIZE, "", "", "64x48 - - - - - - - - - - - - -"},
        {SIZE, "--max-area 1024", "", "- 1024 - - - - - - - - - - - -"},
        {SIZE, "--width 32", "", "32x0 - - - - - - - - - - - - -"},
        {SIZE, "--width 32", "{\"height\": 16}", "32x16 - - - - - - - - - - - - -"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *got = job_after(CASES[i].text, CASES[i].words, CASES[i].line);
        if (strcmp(got, CASES[i].want))
            fail_msg("case %zu (%s %s): %s, want %s", i, CASES[i].words, CASES[i].line, got,
                     CASES[i].want);
    }
    (void)state;
}

/* The demo model needs no options. */
static void a_plan_starts_from_the_checkpoints_defaults(void **state)
{
    static const char *const MORE[][2] = {
        {"--quiet", NULL}, {"--steps", "3"}, {"--max-area", "4096"}};
    static const int WANT[][3] = {{320, 33, 12}, {320, 33, 3}, {80, 33, 12}};
    for (int i = 0; i < 3; i++) {
        json_t *p = plan("--model", "models/demo", MORE[i][0], MORE[i][1], END);
        assert_int_equal(json_integer_value(json_object_get(p, "width")), WANT[i][0]);
        assert_int_equal(json_integer_value(json_object_get(p, "frames")), WANT[i][1]);
        assert_int_equal(json_integer_value(json_object_get(p, "step_count")), WANT[i][2]);
        json_decref(p);
    }
    (void)state;
}

/* Each instance has its weights on its own device, and its slots. */
static void instances_count_each_on_its_device(void **state)
{
    const char *conf = t_format("%s/two.cfg", r.base);
    t_write(conf, "stages: ( { name = \"text\"; }, { name = \"denoise\"; devices = [\"cuda:0\", "
                  "\"cuda:1\"]; }, { name = \"decode\"; devices = [\"cpu\", \"cpu\"]; } );\n");
    json_t *p = plan("--model", T_MODEL, "--image", T_IMAGE, "--width", "96", "--height", "64",
                     "--frames", "9", "--steps", "2", "--prompt", "x", "--conf", conf, END),
           *devices = json_object_get(p, "devices");
    int64_t wanted[2];
    for (int i = 0; i < 2; i++)
        wanted[i] = json_integer_value(
            json_object_get(json_object_get(devices, i ? "cuda:1" : "cuda:0"), "wanted_bytes"));
    assert_true(wanted[0] > 0);
    assert_int_equal(wanted[0], wanted[1]);
    assert_int_equal(of(p, "denoise.0", "weight_bytes"), of(p, "denoise.1", "weight_bytes"));
    assert_int_equal(of(p, "denoise.1", "slot_bytes"), of(p, "denoise.0", "slot_bytes"));
    assert_int_equal(of(p, "decode.1", "job_bytes"), of(p, "decode.0", "job_bytes"));
    json_decref(p);
    (void)state;
}

/* ---- ranks ---- */

/* Bytes of a rank's window: queries, keys, values and results of all tokens, what the head makes,
 * the cache's sums; velocities of both branches. */
static int64_t window_of(int64_t tokens, int64_t latents)
{
    return tokens * 5120 * 2 * 4 + tokens * 64 * 2 + tokens * 2 * 4 + latents;
}

static void ranks_count_each_on_its_device(void **state)
{
    const char *model = big_model();
    json_t *alone = plan("--model", model, "--width", "1280", "--height", "720", "--fbcache", "0.1",
                         "--device", "cuda:0", END),
           *p = plan("--model", model, "--width", "1280", "--height", "720", "--fbcache", "0.1",
                     "--device", "cuda:0,cuda:1", END);
    assert_int_equal(of(alone, "denoise", "window_bytes"), 0);
    for (int i = 0; i < 2; i++) {
        const char *rank = i ? "denoise.1" : "denoise.0";
        assert_int_equal(of(p, rank, "weight_bytes"), of(alone, "denoise", "weight_bytes"));
        assert_int_equal(of(p, rank, "arena_bytes"), of(alone, "denoise", "arena_bytes"));
        about(of(p, rank, "window_bytes"), window_of(TOKENS_720, LATENT_720), 4096);
    }
    assert_int_equal(wanted(p, "cuda:0"),
                     on_gpu(p, "text") + on_gpu(p, "image") + on_gpu(p, "denoise.0"));
    assert_int_equal(wanted(p, "cuda:1"), on_gpu(p, "denoise.1") + on_gpu(p, "decode"));
    json_decref(p);
    /* two of one GPU: both are its bytes */
    p = plan("--model", model, "--width", "1280", "--height", "720", "--device", "cuda:0,cuda:0",
             END);
    assert_int_equal(wanted(p, "cuda:0"), on_gpu(p, "text") + on_gpu(p, "image") +
                                              2 * on_gpu(p, "denoise.0") + on_gpu(p, "decode"));
    json_decref(p);
    json_decref(alone);
    (void)state;
}

/* A team that is fixed takes no more than one rank alone, which stands for all of "auto". */
static void a_rank_alone_takes_most(void **state)
{
    static const char *const GUIDANCE[] = {"5", "1"}, *const KIND[] = {"cpu", "cuda:0"};
    const char *model = big_model();
    char conf[300];
    snprintf(conf, sizeof conf, "%s/team.cfg", r.base);
    for (int i = 0; i < 4; i++) {
        int64_t most = 0, kept = 0;
        for (int team = 1; team <= 8; team *= 2) {
            char list[256] = "";
            for (int k = 0; k < 8; k++)
                snprintf(list + strlen(list), sizeof list - strlen(list), "%s\"%s\"", k ? ", " : "",
                         KIND[i / 2]);
            t_write(conf,
                    t_format("stages: ( { name = \"denoise\"; devices = [%s]; team = %d; } );",
                             list, team));
            json_t *p = plan("--model", model, "--width", "832", "--height", "480", "--fbcache",
                             "0.1", "--guidance", GUIDANCE[i % 2], "--conf", conf, END);
            if (team == 1) most = of(p, "denoise.0", "arena_bytes");
            if (team == 1) kept = of(p, "denoise.0", "job_bytes");
            if (of(p, "denoise.7", "arena_bytes") > most || of(p, "denoise.7", "job_bytes") > kept)
                fail_msg("team of %d on %s: %lld bytes, want at most %lld", team, KIND[i / 2],
                         (long long)of(p, "denoise.7", "arena_bytes"), (long long)most);
            assert_true((of(p, "denoise.7", "window_bytes") > 0) == (team > 1));
            json_decref(p);
        }
    }
    (void)state;
}

/* Every GPU of the deployments that are shipped holds its share of the 14B model. */
static void deployments_fit_gpus_of_80_gb(void **state)
{
    static const struct {
        const char *conf;
        int gpus;
    } FILES[] = {{"conf/one-gpu.cfg", 1},
                 {"conf/two-gpus.cfg", 2},
                 {"conf/three-gpus.cfg", 3},
                 {"conf/four-gpus.cfg", 4},
                 {"conf/eight-gpus.cfg", 8}};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        json_t *p = plan("--model", big_model(), "--width", "1280", "--height", "720", "--conf",
                         FILES[i].conf, END);
        assert_int_equal(json_object_size(json_object_get(p, "devices")), FILES[i].gpus + 1);
        for (int g = 0; g < FILES[i].gpus; g++) {
            int64_t bytes = wanted(p, t_format("cuda:%d", g));
            if (bytes <= 0 || bytes > (int64_t)76 << 30)
                fail_msg("%s: %lld bytes of cuda:%d, want at most 76 GiB", FILES[i].conf,
                         (long long)bytes, g);
        }
        json_decref(p);
    }
    (void)state;
}

/* Heads that do not divide are refused before anything starts, with the sizes that do. */
static void a_team_that_does_not_fit_is_refused(void **state)
{
    static const struct {
        int team;
        const char *guidance, *want; /* NULL: fits */
    } CASES[] = {
        {3, "5",
         "sluice: denoise: a team of 3 for 40 heads with guidance, want one of 1, 2, 4, 5, "
         "8, 10, 16\n"},
        {6, "5", "a team of 6 for 40 heads with guidance, want one of 1, 2, 4, 5, 8, 10, 16\n"},
        {6, "1", "sluice: denoise: a team of 6 for 40 heads, want one of 1, 2, 4, 5, 8, 10\n"},
        {16, "1", "a team of 16 for 40 heads, want one of 1, 2, 4, 5, 8, 10\n"},
        {16, "5", NULL},
        {5, "5", NULL},
    };
    const char *model = big_model();
    char conf[300];
    snprintf(conf, sizeof conf, "%s/team.cfg", r.base);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char list[256] = "";
        for (int k = 0; k < CASES[i].team; k++)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s\"cpu\"", k ? ", " : "");
        t_write(conf, t_format("stages: ( { name = \"denoise\"; devices = [%s]; team = %d; } );",
                               list, CASES[i].team));
        char *args[] = {(char *)"sluice",          (char *)"plan",
                        (char *)"--model",         (char *)model,
                        (char *)"--width",         (char *)"832",
                        (char *)"--height",        (char *)"480",
                        (char *)"--conf",          (char *)conf,
                        (char *)"--quiet",         (char *)"--guidance",
                        (char *)CASES[i].guidance, NULL};
        t_run_start(&r, args);
        t_run_ends(&r, CASES[i].want ? 2 : 0);
        if (CASES[i].want ? !t_run_said(&r, CASES[i].want) || t_run_count(&r, "\n") != 1 : r.used)
            fail_msg("case %zu said: %s", i, r.text);
    }
    /* as a run does, which has a model of two heads here */
    t_run_conf(&r, 1, 30,
               t_stages(SL_ROLE_DENOISE, "{ name = \"denoise\"; team = 3; devices = "
                                         "[\"cpu\", \"cpu\", \"cpu\"]; }"));
    char *args[] = {(char *)"sluice",
                    (char *)"run",
                    (char *)"--model",
                    (char *)T_MODEL,
                    (char *)"--image",
                    (char *)T_IMAGE,
                    (char *)"--prompt",
                    (char *)"a",
                    (char *)"-o",
                    (char *)t_format("%s/a.mp4", r.out),
                    (char *)"--conf",
                    r.conf,
                    NULL};
    t_run_start(&r, args);
    t_run_ends(&r, 2);
    if (!t_run_said(&r, "sluice: denoise: a team of 3 for 2 heads with guidance, want one of 1, 2, "
                        "4\n"))
        fail_msg("said: %s", r.text);
    t_run_nothing_left(&r, 0);
    (void)state;
}

/* ---- admission ---- */

static void a_run_that_does_not_fit_is_refused(void **state)
{
    char video[400];
    snprintf(video, sizeof video, "%s/a.mp4", r.out);
    char *const args[] = {(char *)"sluice",
                          (char *)"run",
                          (char *)"--model",
                          (char *)T_MODEL,
                          (char *)"--image",
                          (char *)T_IMAGE,
                          (char *)"--prompt",
                          (char *)"a",
                          (char *)"--width",
                          (char *)"96",
                          (char *)"--height",
                          (char *)"64",
                          (char *)"--frames",
                          (char *)"9",
                          (char *)"--steps",
                          (char *)"2",
                          (char *)"-o",
                          video,
                          (char *)"--conf",
                          r.conf,
                          NULL};
    t_run_conf(&r, 1, 30, "limits: { memory_bytes = 1000000; };\n");
    t_run_start(&r, args);
    t_run_ends(&r, 2);
    if (!t_run_said(&r, "sluice: the run wants ") ||
        !t_run_said(&r, " bytes of memory, there are 1000000 (limits.memory_bytes); the largest "
                        "stage is denoise with ") ||
        t_run_count(&r, "\n") != 1)
        fail_msg("said: %s", r.text);
    assert_true(access(video, F_OK) != 0);
    t_run_nothing_left(&r, 0);

    t_run_conf(&r, 1, 30, "limits: { memory_bytes = 1000000000; };\n");
    t_run_start(&r, args);
    t_run_ends(&r, 0);
    t_run_nothing_left(&r, 0);
    (void)state;
}

static void put(const char *path, const char *text)
{
    char full[700];
    snprintf(full, sizeof full, "%s/machine%s", r.base, path);
    for (char *p = full + strlen(r.base) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(full, 0700);
    }
    t_write(full, text);
}

/* The tightest group decides, and page cache counts as free. */
static void what_the_machine_gives(void **state)
{
    sl_machine_memory m;
    const char *root = t_format("%s/machine", r.base);
    T_CODE(sl_plan_machine(&m, root, &err), SL_SYS);
    T_SAYS(err.msg, "no MemTotal and MemAvailable");
    put("/proc/meminfo",
        "MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    800 kB\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_true(m.total == 1024000 && m.available == 819200 && m.group == UINT64_MAX &&
                m.gives == 819200);

    put("/proc/self/cgroup", "4:memory:/old\n0::/a/b\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_true(m.gives == 819200);
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    put("/sys/fs/cgroup/a/memory.max", "600000\n");
    put("/sys/fs/cgroup/a/memory.current", "500000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 100000);
    put("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 150000\nactive_file 50000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 300000);
    /* a container's own view: its group is the top */
    put("/sys/fs/cgroup/memory.max", "5000\n");
    put("/sys/fs/cgroup/memory.current", "6000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 0);
    put("/proc/self/cgroup", "0::/\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 0);

    /* version 1, alone and beside the other; the tightest counts, nested or not */
    put("/proc/self/cgroup", "12:cpu,cpuacct:/x\n7:memory:/job/step\n1:name=systemd:/y\n");
    put("/sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "1000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_true(m.group == UINT64_MAX && m.gives == 819200);
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "700000\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "650000\n");
    put("/sys/fs/cgroup/memory/job/memory.stat",
        "inactive_file 1\ntotal_inactive_file 100000\ntotal_active_file 50000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 200000);
    put("/proc/self/cgroup", "7:hugetlb,memory,pids:/job/step\n0::/\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 0); /* /sys/fs/cgroup/memory.max from above */
    /* none of a chain limits anything: as version 1 says it on pages of other sizes, more than the
     * machine has, and just what it has */
    static const char *const NO_LIMITS[] = {"9223372036854771712\n",
                                            "9223372036854710272\n",
                                            "18446744073709551615\n",
                                            "99999999999999999999\n",
                                            "1024001\n",
                                            "1024000\n"};
    for (size_t i = 0; i < sizeof NO_LIMITS / sizeof *NO_LIMITS; i++) {
        put("/proc/self/cgroup", "7:memory:/job/step\n");
        put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", NO_LIMITS[i]);
        put("/sys/fs/cgroup/memory/memory.limit_in_bytes", NO_LIMITS[i]);
        put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "900000\n");
        T_OK(sl_plan_machine(&m, root, &err));
        assert_true(m.group == UINT64_MAX && m.gives == 819200);
        put("/proc/self/cgroup", "0::/a/b\n");
        put("/sys/fs/cgroup/a/memory.max", NO_LIMITS[i]);
        put("/sys/fs/cgroup/memory.max", NO_LIMITS[i]);
        T_OK(sl_plan_machine(&m, root, &err));
        assert_true(m.group == UINT64_MAX && m.gives == 819200);
    }
    put("/sys/fs/cgroup/a/b/memory.max", "1023999\n"); /* one byte less is a limit */
    put("/sys/fs/cgroup/a/b/memory.current", "400000\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_true(m.group == 623999 && m.gives == 623999);
    put("/proc/self/cgroup", "7:memoryless:/job/step\n");
    T_OK(sl_plan_machine(&m, root, &err));
    assert_int_equal(m.gives, 819200);

    struct rlimit was, is;
    assert_int_equal(getrlimit(RLIMIT_AS, &was), 0);
    is = was;
    is.rlim_cur = (rlim_t)1 << 40;
    assert_int_equal(setrlimit(RLIMIT_AS, &is), 0);
    T_OK(sl_plan_machine(&m, root, &err));
    assert_true(m.address == (uint64_t)1 << 40);
    assert_int_equal(setrlimit(RLIMIT_AS, &was), 0);
    (void)state;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {T(weights_from_configurations),
                                       T(decoder_caches),
                                       T(what_a_denoising_job_keeps),
                                       T(devices_add_up),
                                       T(slots_hold_the_jobs_tensors),
                                       T(plan_is_what_a_run_takes),
                                       T(the_user_comes_before_the_checkpoint),
                                       T(a_plan_starts_from_the_checkpoints_defaults),
                                       T(instances_count_each_on_its_device),
                                       T(ranks_count_each_on_its_device),
                                       T(a_rank_alone_takes_most),
                                       T(deployments_fit_gpus_of_80_gb),
                                       T(a_team_that_does_not_fit_is_refused),
                                       T(a_run_that_does_not_fit_is_refused),
                                       T(what_the_machine_gives),
                                       T(all_of_14b_fits_one_gpu),
                                       T(eight_bits_take_half_of_the_large_matrices),
                                       T(a_missing_gpu_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
