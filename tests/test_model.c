/* test_model.c - checkpoint configurations: the golden folder, the released models' own
 * files, and each refusal's message. */
#include "t.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/found.h"
#include "common/model.h"

static sl_err err;
static char dir[256];

/* ---- the released models' configurations (spec 1.2 to 1.7) ---- */

#define MEAN                                                                                       \
    "[-0.7571,-0.7089,-0.9113,0.1075,-0.1745,0.9653,-0.1517,1.5508,0.4134,-0.0715,0.5517,-0.3632," \
    "-0.1922,-0.9497,0.2503,-0.2921]"
#define STD                                                                                        \
    "[2.8184,1.4541,2.3275,2.6558,1.2196,1.7708,2.6052,2.0743,3.2687,2.1526,2.8652,1.5579,1.6382," \
    "1.1253,2.8251,1.916]"
static const char VAE[] = /* the old file: without is_residual, scale factors, channels */
    "{\"_class_name\":\"AutoencoderKLWan\",\"_diffusers_version\":\"0.33.0.dev0\",\"attn_scales\":["
    "],\"base_dim\":96,"
    "\"dim_mult\":[1,2,4,4],\"dropout\":0.0,\"latents_mean\":" MEAN ",\"latents_std\":" STD
    ",\"num_res_blocks\":2,"
    "\"temperal_downsample\":[false,true,true],\"z_dim\":16}";
static const char UNIPC[] = "{\"_class_name\":\"UniPCMultistepScheduler\",\"_diffusers_version\":"
                            "\"0.33.0.dev0\",\"beta_end\":0.02,\"beta_schedule\":"
                            "\"linear\","
                            "\"beta_start\":0.0001,\"disable_corrector\":[],\"dynamic_thresholding_"
                            "ratio\":0.995,\"final_sigmas_type\":\"zero\","
                            "\"flow_shift\":3.0,\"lower_order_final\":true,\"num_train_timesteps\":"
                            "1000,\"predict_x0\":true,"
                            "\"prediction_type\":\"flow_prediction\",\"rescale_betas_zero_snr\":"
                            "false,\"sample_max_value\":1.0,\"solver_order\":2,"
                            "\"solver_p\":null,\"solver_type\":\"bh2\",\"steps_offset\":0,"
                            "\"thresholding\":false,\"timestep_spacing\":\"linspace\","
                            "\"trained_betas\":null,\"use_beta_sigmas\":false,\"use_exponential_"
                            "sigmas\":false,\"use_flow_sigmas\":true,"
                            "\"use_karras_sigmas\":false}";
static const char UMT5[] = "{\"architectures\":[\"UMT5EncoderModel\"],\"classifier_dropout\":0.0,"
                           "\"d_ff\":10240,\"d_kv\":64,\"d_model\":4096,"
                           "\"decoder_start_token_id\":0,\"dense_act_fn\":\"gelu_new\",\"dropout_"
                           "rate\":0.1,\"eos_token_id\":1,"
                           "\"feed_forward_proj\":\"gated-gelu\",\"initializer_factor\":1.0,\"is_"
                           "encoder_decoder\":true,\"is_gated_act\":true,"
                           "\"layer_norm_epsilon\":1e-06,\"model_type\":\"umt5\",\"num_decoder_"
                           "layers\":24,\"num_heads\":64,\"num_layers\":24,"
                           "\"output_past\":true,\"pad_token_id\":0,\"relative_attention_max_"
                           "distance\":128,\"relative_attention_num_buckets\":32,"
                           "\"scalable_attention\":true,\"tie_word_embeddings\":false,\"tokenizer_"
                           "class\":\"T5Tokenizer\",\"torch_dtype\":\"float32\","
                           "\"use_cache\":true,\"vocab_size\":256384}";
static const char CLIP[] = "{\"architectures\":[\"CLIPVisionModelWithProjection\"],\"attention_"
                           "dropout\":0.0,\"dropout\":0.0,\"hidden_act\":\"gelu\","
                           "\"hidden_size\":1280,\"image_size\":224,\"initializer_factor\":1.0,"
                           "\"initializer_range\":0.02,\"intermediate_size\":5120,"
                           "\"layer_norm_eps\":1e-05,\"model_type\":\"clip_vision_model\",\"num_"
                           "attention_heads\":16,\"num_channels\":3,"
                           "\"num_hidden_layers\":32,\"patch_size\":14,\"projection_dim\":1024,"
                           "\"torch_dtype\":\"bfloat16\"}";
static const char PROCESSOR[] =
    "{\"crop_size\":{\"height\":224,\"width\":224},\"do_center_crop\":true,\"do_normalize\":true,"
    "\"do_rescale\":true,\"do_resize\":"
    "true,"
    "\"image_mean\":[0.48145466,0.4578275,0.40821073],\"image_processor_type\":"
    "\"CLIPImageProcessor\","
    "\"image_std\":[0.26862954,0.26130258,0.27577711],\"processor_class\":\"CLIPProcessor\","
    "\"resample\":3,"
    "\"rescale_factor\":0.00392156862745098,\"size\":{\"shortest_edge\":224}}";
#define DIT(heads, layers, ffn, in, image, pos)                                                    \
    "{\"_class_name\":\"WanTransformer3DModel\",\"_diffusers_version\":\"0.33.0.dev0\"," image     \
    ",\"attention_head_dim\":128,"                                                                 \
    "\"cross_attn_norm\":true,\"eps\":1e-06,\"ffn_dim\":" ffn                                      \
    ",\"freq_dim\":256,\"in_channels\":" in ",\"num_attention_heads\":" heads                      \
    ",\"num_layers\":" layers ",\"out_channels\":16,\"patch_size\":[1,2,2]" pos                    \
    ",\"qk_norm\":\"rms_norm_across_heads\","                                                      \
    "\"rope_max_seq_len\":1024,\"text_dim\":4096}"
#define IMAGE "\"added_kv_proj_dim\":5120,\"image_dim\":1280"
#define NO_IMAGE "\"added_kv_proj_dim\":null,\"image_dim\":null"
static const char I2V_14B[] = DIT("40", "40", "13824", "36", IMAGE, "");
static const char FLF2V_14B[] = DIT("40", "40", "13824", "36", IMAGE, ",\"pos_embed_seq_len\":514");
static const char T2V_14B[] = DIT("40", "40", "13824", "16", NO_IMAGE, "");
static const char T2V_1_3B[] = DIT("12", "30", "8960", "16", NO_IMAGE, "");
static const char I2V_A14B[] =
    DIT("40", "40", "13824", "36", NO_IMAGE, ",\"pos_embed_seq_len\":null");

#define INDEX(pipeline, rest)                                                                      \
    "{\"_class_name\":\"" pipeline "\",\"_diffusers_version\":\"0.33.0.dev0\",\"scheduler\":["     \
    "\"diffusers\",\"UniPCMultistepScheduler\"],"                                                  \
    "\"text_encoder\":[\"transformers\",\"UMT5EncoderModel\"],\"tokenizer\":[\"transformers\","    \
    "\"T5TokenizerFast\"],"                                                                        \
    "\"transformer\":[\"diffusers\",\"WanTransformer3DModel\"],\"vae\":[\"diffusers\","            \
    "\"AutoencoderKLWan\"]" rest "}"
#define WITH_CLIP                                                                                  \
    ",\"image_encoder\":[\"transformers\",\"CLIPVisionModelWithProjection\"],\"image_processor\":" \
    "[\"transformers\","                                                                           \
    "\"CLIPImageProcessor\"]"
#define NO_CLIP ",\"image_encoder\":[null,null],\"image_processor\":[null,null]"
#define EXPERT ",\"transformer_2\":[\"diffusers\",\"WanTransformer3DModel\"]"

/* ---- making folders ---- */

static int set_up(void **state)
{
    (void)state;
    memset(&err, 0, sizeof err);
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    t_rmdir(dir);
    return 0;
}

static void put(const char *folder, const char *file, const char *text)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/%s", dir, folder, file);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* A whole folder; dit2 NULL: one expert. */
static void put_model(const char *index, const char *dit, const char *dit2)
{
    put(".", "model_index.json", index);
    put("transformer", "config.json", dit);
    if (dit2) put("transformer_2", "config.json", dit2);
    put("vae", "config.json", VAE);
    put("text_encoder", "config.json", UMT5);
    put("scheduler", "scheduler_config.json", UNIPC);
    put("image_encoder", "config.json", CLIP);
    put("image_processor", "preprocessor_config.json", PROCESSOR);
}

static void refused(sl_code code, const char *part)
{
    sl_model m;
    T_CODE(sl_model_open(&m, dir, &err), code);
    T_SAYS(err.msg, part);
    assert_null(strchr(err.msg, '\n'));
}

/* ---- what is read ---- */

static void the_golden_folder_is_read(void **state)
{
    sl_model m;
    T_OK(sl_model_open(&m, t_golden("tiny-i2v/model"), &err));
    assert_string_equal(m.pipeline, "WanImageToVideoPipeline");
    assert_true(m.family.picture && m.family.clip && !m.family.last_picture);
    assert_int_equal(m.family.experts, 1);
    assert_int_equal(m.dit[0].layers, 3);
    assert_int_equal(m.dit[0].dim, 256);
    assert_int_equal(m.dit[0].in_channels, 36);
    assert_int_equal(m.umt5.layers, 3);
    assert_int_equal(m.umt5.vocab, 1600);
    assert_int_equal(m.clip.hidden, 96);
    assert_int_equal(m.clip.crop_w, 224);
    assert_int_equal(m.vae.base, 8);
    assert_int_equal(m.vae.decoder_base, 8);
    assert_true(m.vae.mean[1] == -0.7089f && m.vae.std[15] == 1.916f);
    assert_int_equal(m.scheduler.kind, SL_SAMPLER_UNIPC);
    assert_true(m.scheduler.flow_shift == 3);
    (void)state;
}

static void i2v_14b_is_read(void **state)
{
    sl_model m;
    put_model(INDEX("WanImageToVideoPipeline", WITH_CLIP), I2V_14B, NULL);
    T_OK(sl_model_open(&m, dir, &err));
    assert_string_equal(m.dir, dir);
    assert_int_equal(m.dit[0].layers, 40);
    assert_int_equal(m.dit[0].heads, 40);
    assert_int_equal(m.dit[0].dim, 5120);
    assert_int_equal(m.dit[0].ffn_dim, 13824);
    assert_int_equal(m.dit[0].image_dim, 1280);
    assert_int_equal(m.dit[0].added_kv_dim, 5120);
    assert_int_equal(m.dit[0].pos_embed_seq_len, 0);
    assert_int_equal(m.dit[0].rope_max, 1024);
    assert_true(m.dit[0].eps == 1e-6f);
    assert_int_equal(m.umt5.d_model, 4096);
    assert_int_equal(m.umt5.d_ff, 10240);
    assert_int_equal(m.umt5.vocab, 256384);
    assert_int_equal(m.clip.layers, 32);
    assert_int_equal(m.clip.heads, 16);
    assert_true(m.clip.eps == 1e-5f && m.clip.rescale == 0.00392156862745098f &&
                m.clip.std[2] == 0.27577711f);
    assert_int_equal(m.vae.base, 96);
    assert_int_equal(m.vae.decoder_base, 96); /* absent */
    assert_int_equal(m.vae.temporal, 4);
    assert_int_equal(m.vae.spatial, 8);
    assert_false(m.vae.temporal_down[0]);
    assert_true(m.vae.temporal_down[1] && m.vae.temporal_down[2]);
    assert_int_equal(m.scheduler.train_timesteps, 1000);
    (void)state;
}

static void flf2v_14b_is_read(void **state)
{
    sl_model m;
    put_model(INDEX("WanImageToVideoPipeline", WITH_CLIP), FLF2V_14B, NULL);
    T_OK(sl_model_open(&m, dir, &err));
    assert_true(m.family.picture && m.family.last_picture && m.family.clip);
    assert_int_equal(m.dit[0].pos_embed_seq_len, 514);
    (void)state;
}

static void t2v_is_read(void **state)
{
    sl_model m;
    put_model(INDEX("WanPipeline", ""), T2V_14B, NULL);
    T_OK(sl_model_open(&m, dir, &err));
    assert_true(!m.family.picture && !m.family.clip && !m.family.last_picture);
    assert_int_equal(m.dit[0].in_channels, 16);
    put_model(INDEX("WanPipeline",
                    ",\"boundary_ratio\":null,\"transformer_2\":null,\"expand_timesteps\":false"),
              T2V_1_3B, NULL);
    T_OK(sl_model_open(&m, dir, &err));
    assert_int_equal(m.dit[0].dim, 1536);
    assert_int_equal(m.family.experts, 1);
    (void)state;
}

static void a14b_is_read(void **state)
{
    sl_model m;
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP EXPERT ",\"boundary_ratio\":0.9"), I2V_A14B,
              I2V_A14B);
    T_OK(sl_model_open(&m, dir, &err));
    assert_int_equal(m.family.experts, 2);
    assert_true(m.boundary_ratio == 0.9 && m.family.picture && !m.family.clip);
    assert_int_equal(m.dit[1].dim, 5120);
    put_model(INDEX("WanPipeline", EXPERT ",\"boundary_ratio\":0.875"), T2V_14B, T2V_14B);
    T_OK(sl_model_open(&m, dir, &err));
    assert_true(m.boundary_ratio == 0.875 && !m.family.picture);
    (void)state;
}

/* Whether a picture is taken is the job's choice. */
static void ti2v_is_read(void **state)
{
    sl_model m;
    T_OK(sl_model_open(&m, t_golden("tiny-ti2v-5b/model"), &err));
    assert_int_equal(m.family.picture, SL_PER_JOB);
    assert_int_equal(m.family.last_picture, SL_NEVER);
    assert_true(m.family.time_per_token && !m.family.clip);
    assert_int_equal(m.family.spatial, 16);
    assert_int_equal(m.family.experts, 1);
    assert_int_equal(m.dit[0].in_channels, 48);
    assert_true(m.vae.residual && m.vae.patched);
    assert_int_equal(m.vae.base, 4);
    assert_int_equal(m.vae.decoder_base, 6);
    assert_true(m.vae.mean[47] == -0.0667f && m.vae.std[47] == 0.7744f);
    (void)state;
}

static void absent_keys_get_the_reference_defaults(void **state)
{
    sl_dit_config d;
    sl_vae_config v;
    sl_umt5_config u;
    sl_clip_config c;
    sl_scheduler_config s;
    T_OK(sl_model_parse_dit(&d, "{}", 2, "x", &err));
    assert_int_equal(d.dim, 5120);
    assert_int_equal(d.in_channels, 16);
    assert_int_equal(d.image_dim, 0);
    T_OK(sl_model_parse_vae(&v, "{}", 2, "x", &err));
    assert_int_equal(v.z, 16);
    assert_true(v.mean[0] == -0.7571f && v.std[0] == 2.8184f);
    T_OK(sl_model_parse_umt5(&u, "{}", 2, "x", &err));
    assert_int_equal(u.buckets, 32);
    /* transformers' default activation is another one */
    T_CODE(sl_model_parse_clip(&c, "{}", 2, "x", &err), SL_FORMAT);
    T_SAYS(err.msg, "x: hidden_act is absent, want \"gelu\" (absent means \"quick_gelu\")");
    const char *euler = "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\",\"shift\":5.0}";
    T_OK(sl_model_parse_scheduler(&s, euler, strlen(euler), "x", &err));
    assert_int_equal(s.kind, SL_SAMPLER_EULER);
    assert_true(s.flow_shift == 5);
    (void)state;
}

/* ---- what is refused ---- */

static void folders_without_files_are_refused(void **state)
{
    char path[600];
    refused(SL_SYS,
            "holds no model_index.json and no transformer of Wan, want a folder of Diffusers");
    put_model(INDEX("WanImageToVideoPipeline", WITH_CLIP), I2V_14B, NULL);
    snprintf(path, sizeof path, "%s/vae/config.json", dir);
    unlink(path);
    refused(SL_SYS, "vae/config.json: cannot be opened: No such file");
    put("vae", "config.json", "{\"z_dim\":16");
    refused(SL_FORMAT, "vae/config.json:1:11: not JSON");
    put("vae", "config.json", "[]");
    refused(SL_FORMAT, "vae/config.json: holds no JSON object");
    put("vae", "config.json", "");
    refused(SL_FORMAT, "vae/config.json:1:0: not JSON");
    put("vae", "config.json", "{\"z_dim\":16,\"z_dim\":16}");
    refused(SL_FORMAT, "duplicate");
    (void)state;
}

static void other_pipelines_are_refused(void **state)
{
    put_model(INDEX("WanVACEPipeline", ""), T2V_14B, NULL);
    refused(SL_FORMAT, "model_index.json: _class_name is \"WanVACEPipeline\", want "
                       "WanImageToVideoPipeline or WanPipeline "
                       "(supported are Wan2.1 I2V");
    T_SAYS(err.msg, "A14B, T2V-A14B and TI2V-5B)");
    put(".", "model_index.json", "{\"_class_name\":\"WanPipeline\"}");
    refused(SL_FORMAT, "transformer is absent, want a component");
    put(".", "model_index.json",
        "{\"_class_name\":\"WanPipeline\",\"transformer\":[\"diffusers\","
        "\"WanVACETransformer3DModel\"]}");
    refused(SL_FORMAT, "transformer is [\"diffusers\",\"WanVACETransformer3DModel\"], want "
                       "[library, class] with class WanTransformer3DModel");
    put(".", "model_index.json", "{\"_class_name\":\"WanPipeline\",\"transformer\":\"x\"}");
    refused(SL_FORMAT, "transformer is \"x\", want [library, class]");
    (void)state;
}

static void parts_that_do_not_fit_are_refused(void **state)
{
    put_model(INDEX("WanImageToVideoPipeline", WITH_CLIP), T2V_14B, NULL);
    refused(SL_FORMAT,
            "transformer/config.json: in_channels is 16, want 36 (WanImageToVideoPipeline");
    put_model(INDEX("WanPipeline", ""), I2V_A14B, NULL);
    refused(SL_FORMAT, "transformer/config.json: in_channels is 36, want 16 (WanPipeline");
    put_model(INDEX("WanPipeline", ",\"expand_timesteps\":true"), I2V_A14B, NULL);
    refused(SL_FORMAT, "transformer/config.json: in_channels is 36, want 16 (expand_timesteps: "
                       "latents alone)");
    put_model(INDEX("WanPipeline", EXPERT ",\"expand_timesteps\":true"), T2V_14B, T2V_14B);
    refused(SL_FORMAT, "want null, as expand_timesteps is true");
    put_model(INDEX("WanPipeline", WITH_CLIP), I2V_14B, NULL);
    refused(SL_FORMAT, "_class_name is \"WanPipeline\", want WanImageToVideoPipeline, as "
                       "transformer/config.json has an image_dim");
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP), I2V_14B, NULL);
    refused(SL_FORMAT, "image_encoder is [null,null], want a component");
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP EXPERT), I2V_A14B, I2V_A14B);
    refused(SL_FORMAT, "boundary_ratio is absent, want a number between 0 and 1");
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP ",\"boundary_ratio\":0.9"), I2V_A14B, NULL);
    refused(SL_FORMAT, "boundary_ratio is 0.9, want null");
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP EXPERT ",\"boundary_ratio\":1.5"), I2V_A14B,
              I2V_A14B);
    refused(SL_FORMAT, "boundary_ratio is 1.5, want a number from 0 to 1");
    put_model(INDEX("WanImageToVideoPipeline", NO_CLIP EXPERT ",\"boundary_ratio\":0.9"), I2V_A14B,
              T2V_14B);
    refused(SL_FORMAT, "transformer_2/config.json: in_channels is 16, want 36");
    put_model(INDEX("WanPipeline", ""), T2V_14B, NULL);
    put("text_encoder", "config.json", "{\"d_model\":2048}");
    refused(SL_FORMAT,
            "transformer/config.json: text_dim is 4096, want 2048 (d_model of the text encoder)");
    put_model(INDEX("WanPipeline", ""), T2V_14B, NULL);
    put("scheduler", "scheduler_config.json",
        "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}");
    refused(
        SL_FORMAT,
        "scheduler is [\"diffusers\",\"UniPCMultistepScheduler\"], want the class that scheduler");
    put_model(INDEX("WanImageToVideoPipeline", WITH_CLIP),
              DIT("40", "40", "13824", "36", IMAGE, ",\"pos_embed_seq_len\":257"), NULL);
    refused(SL_FORMAT, "pos_embed_seq_len is 257, want 514 (tokens of two pictures)");
    (void)state;
}

#define REFUSED(kind, type, json, part)                                                            \
    do {                                                                                           \
        type c_ = {0};                                                                             \
        T_CODE(sl_model_parse_##kind(&c_, (json), strlen(json), "c.json", &err), SL_FORMAT);       \
        T_SAYS(err.msg, (part));                                                                   \
    } while (0)

static void bad_transformers_are_refused(void **state)
{
    REFUSED(dit, sl_dit_config, "{\"_class_name\":\"FluxTransformer2DModel\"}",
            "c.json: _class_name is \"FluxTransformer2DModel\", want \"WanTransformer3DModel\"");
    REFUSED(dit, sl_dit_config, "{\"num_layers\":-3}",
            "c.json: num_layers is -3, want an integer from 1 to 512");
    REFUSED(dit, sl_dit_config, "{\"num_layers\":40.0}", "num_layers is 40.0, want an integer");
    REFUSED(dit, sl_dit_config, "{\"num_layers\":\"40\"}", "num_layers is \"40\", want an integer");
    REFUSED(dit, sl_dit_config, "{\"num_layers\":null}", "num_layers is null, want an integer");
    REFUSED(dit, sl_dit_config, "{\"num_layers\":9223372036854775807}",
            "num_layers is 9223372036854775807");
    REFUSED(dit, sl_dit_config, "{\"attention_head_dim\":127}",
            "attention_head_dim is 127, want an even number");
    REFUSED(dit, sl_dit_config, "{\"attention_head_dim\":512,\"num_attention_heads\":512}",
            "num_attention_heads is 512, want heads x");
    REFUSED(dit, sl_dit_config, "{\"patch_size\":[1,4,4]}", "patch_size is [1,4,4], want [1,2,2]");
    REFUSED(dit, sl_dit_config, "{\"patch_size\":[1,2]}",
            "patch_size has 2 values, want 3 integers");
    REFUSED(dit, sl_dit_config, "{\"patch_size\":2}", "patch_size is 2, want a list of 3 integers");
    REFUSED(dit, sl_dit_config, "{\"qk_norm\":null}", "qk_norm is null, want a string");
    REFUSED(dit, sl_dit_config, "{\"cross_attn_norm\":false}",
            "cross_attn_norm is false, want true");
    REFUSED(dit, sl_dit_config, "{\"image_dim\":1280}",
            "added_kv_proj_dim is absent, want a number, as image_dim is");
    REFUSED(dit, sl_dit_config, "{\"image_dim\":1280,\"added_kv_proj_dim\":1280}",
            "added_kv_proj_dim is 1280, want 5120");
    REFUSED(dit, sl_dit_config, "{\"pos_embed_seq_len\":514}",
            "pos_embed_seq_len is 514, want null");
    REFUSED(dit, sl_dit_config, "{\"eps\":\"a\\nb\"}",
            "eps is \"a\\nb\", want a number from 0 to 1");
    REFUSED(dit, sl_dit_config, "{\"eps\":1e999}", "c.json:1:");
    (void)state;
}

static void bad_vaes_are_refused(void **state)
{
    REFUSED(vae, sl_vae_config, "{\"is_residual\":true,\"z_dim\":48}",
            "latents_mean is absent, want 48 numbers (z_dim)");
    REFUSED(vae, sl_vae_config, "{\"is_residual\":true,\"dim_mult\":[1,2,4,8]}",
            "dim_mult is [1,2,4,8], want widths that the shortcuts of is_residual divide, the last "
            "two equal");
    REFUSED(vae, sl_vae_config, "{\"is_residual\":true,\"dim_mult\":[1,3,4,4]}",
            "want widths that the shortcuts of is_residual divide");
    REFUSED(vae, sl_vae_config, "{\"patch_size\":4}", "patch_size is 4, want 2");
    REFUSED(vae, sl_vae_config, "{\"patch_size\":2}", "in_channels is absent, want 12");
    REFUSED(vae, sl_vae_config, "{\"patch_size\":2,\"in_channels\":12,\"out_channels\":12}",
            "scale_factor_spatial is absent, want 16, as patch_size is 2");
    REFUSED(vae, sl_vae_config, "{\"z_dim\":8}", "latents_mean is absent, want 8 numbers (z_dim)");
    REFUSED(vae, sl_vae_config, "{\"z_dim\":8,\"latents_mean\":" MEAN "}",
            "latents_mean has 16 values, want 8 numbers");
    REFUSED(vae, sl_vae_config, "{\"z_dim\":65}", "z_dim is 65, want an integer from 1 to 64");
    REFUSED(vae, sl_vae_config, "{\"z_dim\":2,\"latents_mean\":[0,1],\"latents_std\":[0,1]}",
            "latents_std is [0,1], want numbers from");
    REFUSED(vae, sl_vae_config, "{\"z_dim\":2,\"latents_mean\":[0,null],\"latents_std\":[1,1]}",
            "latents_mean is [0,null], want numbers");
    REFUSED(vae, sl_vae_config, "{\"dim_mult\":[1,2,4]}", "dim_mult has 3 values, want 4 integers");
    REFUSED(vae, sl_vae_config, "{\"temperal_downsample\":[true,true,true]}",
            "temperal_downsample is [true,true,true], want two true");
    REFUSED(vae, sl_vae_config, "{\"temperal_downsample\":[0,1,1]}",
            "temperal_downsample is [0,1,1], want 3 booleans");
    REFUSED(vae, sl_vae_config, "{\"scale_factor_spatial\":16}",
            "scale_factor_spatial is 16, want 8");
    REFUSED(vae, sl_vae_config, "{\"attn_scales\":[0.5]}", "attn_scales is [0.5], want []");
    REFUSED(vae, sl_vae_config, "{\"base_dim\":4096,\"dim_mult\":[1,2,4,64]}",
            "dim_mult is [1,2,4,64], want widths of at most 65536");
    (void)state;
}

static void bad_encoders_are_refused(void **state)
{
    REFUSED(umt5, sl_umt5_config, "{\"model_type\":\"t5\"}", "model_type is \"t5\", want \"umt5\"");
    REFUSED(umt5, sl_umt5_config, "{\"feed_forward_proj\":\"relu\"}",
            "feed_forward_proj is \"relu\", want \"gated-gelu\"");
    REFUSED(umt5, sl_umt5_config, "{\"relative_attention_num_buckets\":30}",
            "want a multiple of 4");
    REFUSED(umt5, sl_umt5_config, "{\"relative_attention_max_distance\":8}", "want more than 8");
    REFUSED(umt5, sl_umt5_config, "{\"vocab_size\":0}", "vocab_size is 0, want an integer from 1");
    REFUSED(clip, sl_clip_config, "{\"hidden_act\":\"gelu\",\"hidden_size\":100}",
            "hidden_size is 100, want a multiple of num_attention_heads, 12");
    REFUSED(clip, sl_clip_config, "{\"hidden_act\":\"gelu\",\"image_size\":225}",
            "image_size is 225, want a multiple of patch_size, 32");
    REFUSED(clip, sl_clip_config, "{\"hidden_act\":\"gelu\",\"num_channels\":1}",
            "num_channels is 1, want 3");
    (void)state;
}

static void processors_are_read_or_refused(void **state)
{
    sl_clip_config c;
    T_OK(sl_model_parse_clip(&c, CLIP, strlen(CLIP), "c.json", &err));
    assert_int_equal(c.shortest_edge, 224);
    T_OK(sl_model_parse_processor(&c, "{}", 2, "p.json", &err));
    const char *plain = "{\"size\":256,\"crop_size\":224}";
    T_OK(sl_model_parse_processor(&c, plain, strlen(plain), "p.json", &err));
    assert_int_equal(c.shortest_edge, 256);
    const char *const bad[][2] = {
        {"{\"do_resize\":false}", "p.json: do_resize is false, want true"},
        {"{\"resample\":2}", "resample is 2, want 3"},
        {"{\"size\":{\"height\":224,\"width\":224}}",
         "p.json: size: shortest_edge is absent, want an integer"},
        {"{\"size\":200}", "size is 200, want at least crop_size, 224"},
        {"{\"crop_size\":{\"height\":224,\"width\":336}}", "want 224 x 224"},
        {"{\"crop_size\":{\"height\":224}}", "crop_size: width is absent"},
        {"{\"image_std\":[0,1,1]}", "image_std is [0,1,1], want numbers from"},
        {"{\"rescale_factor\":null}", "rescale_factor is null, want a number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        T_OK(sl_model_parse_clip(&c, CLIP, strlen(CLIP), "c.json", &err));
        T_CODE(sl_model_parse_processor(&c, bad[i][0], strlen(bad[i][0]), "p.json", &err),
               SL_FORMAT);
        T_SAYS(err.msg, bad[i][1]);
    }
    (void)state;
}

#define UNIPC_WITH(pair)                                                                           \
    "{\"_class_name\":\"UniPCMultistepScheduler\",\"prediction_type\":\"flow_prediction\",\"use_"  \
    "flow_sigmas\":true," pair "}"
static void bad_schedulers_are_refused(void **state)
{
    REFUSED(scheduler, sl_scheduler_config, "{\"_class_name\":\"DDIMScheduler\"}",
            "_class_name is \"DDIMScheduler\", want UniPCMultistepScheduler or");
    REFUSED(scheduler, sl_scheduler_config, "{}",
            "_class_name is absent, want UniPCMultistepScheduler or");
    REFUSED(scheduler, sl_scheduler_config, "{\"_class_name\":\"UniPCMultistepScheduler\"}",
            "prediction_type is absent, want \"flow_prediction\" (absent means \"epsilon\")");
    REFUSED(scheduler, sl_scheduler_config,
            "{\"_class_name\":\"UniPCMultistepScheduler\",\"prediction_type\":\"v_prediction\"}",
            "prediction_type is \"v_prediction\", want \"flow_prediction\"");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"solver_order\":3"),
            "solver_order is 3, want 2");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"solver_type\":\"bh1\""),
            "solver_type is \"bh1\", want \"bh2\"");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"flow_shift\":0"),
            "flow_shift is 0, want a number from 0.01 to 1000");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"disable_corrector\":[0]"),
            "disable_corrector is [0], want []");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"use_karras_sigmas\":true"),
            "use_karras_sigmas is true, want false");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"num_train_timesteps\":500"),
            "num_train_timesteps is 500, want 1000");
    REFUSED(scheduler, sl_scheduler_config, UNIPC_WITH("\"use_dynamic_shifting\":true"),
            "use_dynamic_shifting is true, want false");
    (void)state;
}

/* What stands where a model's file or folder should be is named for what it is. */
static void what_is_found_instead_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } KINDS[] = {
        {"version https://git-lfs.github.com/spec/v1\noid", 46,
         "a Git LFS pointer, its data was not fetched"},
        {"\x80\2}q", 4, "a Python pickle"},
        {"<!DOCTYPE html>", 15, "a web page"},
        {"<htm", 4, NULL},
        {"", 0, NULL},
        {"hello", 5, NULL},
    };
    char path[400], other[1000], found[1024];
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++) {
        const char *kind = sl_found_kind(KINDS[i].bytes, KINDS[i].n);
        assert_int_equal(kind != NULL, KINDS[i].says != NULL);
        if (kind) T_SAYS(kind, KINDS[i].says);
    }
    static const char *const WEIGHTS[][2] = {
        {"model.gguf", "model.gguf, weights of another kind"},
        {"other.safetensors", "other.safetensors, weights under another name"},
        {"model.fp16.safetensors", "model.fp16.safetensors, a variant in fp16"}};
    snprintf(other, sizeof other, "%s/weights", dir);
    assert_int_equal(mkdir(other, 0700), 0);
    assert_false(sl_found_weights(other, "model", found, sizeof found));
    for (int i = 0; i < 3; i++) { /* each counts for more than those before it */
        snprintf(path, sizeof path, "%.300s/weights/%s", dir, WEIGHTS[i][0]);
        fclose(fopen(path, "w"));
        assert_true(sl_found_weights(other, "model", found, sizeof found));
        assert_string_equal(found, WEIGHTS[i][1]);
    }
    snprintf(other, sizeof other, "rm -rf %s/weights", dir);
    assert_int_equal(system(other), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_golden_folder_is_read),
        T(i2v_14b_is_read),
        T(flf2v_14b_is_read),
        T(t2v_is_read),
        T(a14b_is_read),
        T(ti2v_is_read),
        T(absent_keys_get_the_reference_defaults),
        T(folders_without_files_are_refused),
        T(what_is_found_instead_is_named),
        T(other_pipelines_are_refused),
        T(parts_that_do_not_fit_are_refused),
        T(bad_transformers_are_refused),
        T(bad_vaes_are_refused),
        T(bad_encoders_are_refused),
        T(processors_are_read_or_refused),
        T(bad_schedulers_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
