/* test_layouts.c - one checkpoint in every layout that people have it in: the same tensors, the
 * same sizes, and what is refused. The layouts are made by tests/golden/layouts/build.py. */
#include "tests/t_layouts.h"

#include <sys/stat.h>

#include "common/checkpoint.h"
#include "common/model.h"
#include "common/tokenizer.h"

#define MODEL T_TINY
#define TI2V "tests/golden/tiny-ti2v-5b/model"
#define CACHE T_HUB
#define at t_at
#define shell t_shell

static sl_err err;

/* Every tensor of the Diffusers part is in `st`, of the same shape and, stored in the same dtype,
 * with the same bytes; nothing else is. */
static void part_of(const char *folder, sl_st *st, sl_part_id id, const char *what)
{
    sl_model plain;
    sl_st *want;
    T_OK(sl_model_open(&plain, folder, &err));
    T_OK(sl_part_open(&want, &plain.layout, id, &err));
    assert_int_equal(sl_st_size(st), sl_st_size(want));
    for (int i = 0; i < sl_st_size(want); i++) {
        const sl_st_entry *a = sl_st_at(want, i), *b = sl_st_find(st, a->name);
        if (!b) { /* CLIP's, which has two names */
            char prefixed[200];
            snprintf(prefixed, sizeof prefixed, "vision_model.%s", a->name);
            b = sl_st_find(st, prefixed);
        }
        if (!b) fail_msg("%s: %s is missing", what, a->name);
        if (strcmp(a->dtype, b->dtype) || !sl_same_shape(&a->t, &b->t))
            fail_msg("%s: %s differs in dtype or shape", what, a->name);
        if (memcmp(a->t.data, b->t.data, sl_bytes(&a->t)))
            fail_msg("%s: %s differs", what, a->name);
    }
    sl_st_close(&want);
}

static void same_part(sl_st *st, sl_part_id id, const char *what)
{
    part_of(MODEL, st, id, what);
}

static void same_model(const sl_model *m, const char *what)
{
    sl_model plain;
    T_OK(sl_model_open(&plain, MODEL, &err));
    assert_memory_equal(&m->dit[0], &plain.dit[0], sizeof plain.dit[0]);
    assert_memory_equal(&m->umt5, &plain.umt5, sizeof plain.umt5);
    assert_memory_equal(&m->clip, &plain.clip, sizeof plain.clip);
    assert_memory_equal(&m->vae, &plain.vae, sizeof plain.vae);
    assert_memory_equal(&m->family, &plain.family, sizeof plain.family);
    assert_string_equal(m->pipeline, plain.pipeline);
    assert_int_equal(m->scheduler.kind, SL_SAMPLER_UNIPC);
    for (int i = 0; i < SL_PART_COUNT; i++) {
        sl_st *st;
        if (i == SL_PART_DIT_2) continue;
        T_OK(sl_part_open(&st, &m->layout, (sl_part_id)i, &err));
        same_part(st, (sl_part_id)i, what);
        sl_st_close(&st);
    }
}

static void same_tokens(const char *path)
{
    sl_tokenizer *a, *b;
    int32_t x[64], y[64];
    int n, m;
    static const char TEXT[] = "A red fox walks, slowly; \xc3\xa9t\xc3\xa9 \xe7\x8b\x90 12.5";
    T_OK(sl_tokenizer_open(&a, MODEL "/tokenizer/spiece.model", &err));
    T_OK(sl_tokenizer_open(&b, path, &err));
    T_OK(sl_tokenizer_encode(a, TEXT, strlen(TEXT), x, 64, &n, &err));
    T_OK(sl_tokenizer_encode(b, TEXT, strlen(TEXT), y, 64, &m, &err));
    assert_int_equal(n, m);
    assert_memory_equal(x, y, (size_t)n * sizeof *x);
    sl_tokenizer_close(&a);
    sl_tokenizer_close(&b);
}

static void wan_original(void **state)
{
    (void)state;
    sl_model m;
    T_OK(sl_model_open(&m, at("wan-original"), &err));
    assert_int_equal(m.layout.kind, SL_LAYOUT_WAN);
    same_model(&m, "wan-original");
    same_tokens(m.layout.tokenizer);
}

#define BF16 T_COMFY "bf16.safetensors"

/* A folder with one file of each kind; and the transformer's file alone, which finds the others. */
static void comfy(void **state)
{
    (void)state;
    sl_model m;
    shell("mkdir -p %s && cd %s && mkdir diffusion_models text_encoders vae clip_vision && "
          "ln -s ../../" BF16 " diffusion_models && "
          "ln -s ../../comfy/text_encoders/umt5_xxl_bf16.safetensors text_encoders && "
          "ln -s ../../comfy/vae/wan_2.1_vae.safetensors vae && "
          "ln -s ../../comfy/clip_vision/clip_vision_h.safetensors "
          "../../comfy/clip_vision/config.json "
          "clip_vision",
          at("one"), at("one"));
    T_OK(sl_model_open(&m, at("one"), &err));
    assert_int_equal(m.layout.kind, SL_LAYOUT_FILES);
    same_model(&m, "comfy");
    same_tokens(m.layout.tokenizer);
    assert_true(m.scheduler.flow_shift == 3); /* 480p by its name */
    T_OK(sl_model_open(&m, at("one/diffusion_models/wan2.1_i2v_480p_14B_bf16.safetensors"), &err));
    same_model(&m, "comfy, by its transformer");
}

/* Several files of a kind: one must be named; what differs in latent channels is told apart. */
static void comfy_named(void **state)
{
    (void)state;
    sl_model m;
    sl_st *st;
    sl_model_files files = {0};
    T_CODE(sl_model_open(&m, at("comfy"), &err), SL_ARG);
    T_SAYS(err.msg, "holds 4 transformers (wan2.1_i2v_480p_14B_bf16.safetensors, ");
    T_SAYS(err.msg, "want one named by --transformer FILE");
    snprintf(files.part[SL_PART_DIT], SL_PATH, "%s", at(BF16));
    T_CODE(sl_model_open_files(&m, at("comfy"), &files, &err), SL_ARG);
    T_SAYS(err.msg, "holds several files for text_encoder (umt5_xxl_bf16.safetensors, ");
    snprintf(files.part[SL_PART_TEXT], SL_PATH, "%s",
             at("comfy/text_encoders/umt5_xxl_bf16.safetensors"));
    T_OK(sl_model_open_files(&m, at("comfy"), &files, &err));
    same_model(&m, "comfy, named");
    T_OK(sl_model_open_files(&m, "", &files, &err));
    same_model(&m, "comfy, without a folder");
    /* files in place of a Diffusers folder's */
    T_OK(sl_model_open_files(&m, MODEL, &files, &err));
    assert_int_equal(m.layout.kind, SL_LAYOUT_DIFFUSERS);
    T_OK(sl_part_open(&st, &m.layout, SL_PART_DIT, &err));
    T_SAYS(sl_st_path(st, 0), "14B_bf16.safetensors");
    sl_st_close(&st);
    same_model(&m, "Diffusers, with files");
}

/* The WanVideoWrapper's: prefix `model.` at the VAE, original T5. */
static void kijai(void **state)
{
    (void)state;
    sl_st *st;
    T_OK(sl_checkpoint_open(&st, SL_NET_UMT5, at("kijai/umt5-xxl-enc-bf16.safetensors"), NULL,
                            &err));
    same_part(st, SL_PART_TEXT, "kijai");
    sl_st_close(&st);
    T_OK(sl_checkpoint_open(&st, SL_NET_VAE, at("kijai/Wan2_1_VAE_fp32.safetensors"), NULL, &err));
    same_part(st, SL_PART_VAE, "kijai");
    sl_st_close(&st);
}

/* Two VAEs in a folder are told apart by their latents, and each is what it was. */
static void ti2v(void **state)
{
    (void)state;
    static const char *const AT[] = {
        "ti2v", "ti2v/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors", "ti2v-original"};
    sl_model m, plain;
    sl_st *st;
    T_OK(sl_model_open(&plain, TI2V, &err));
    T_OK(sl_checkpoint_open(&st, SL_NET_VAE, at("comfy/vae/wan2.2_vae.safetensors"), NULL, &err));
    part_of(TI2V, st, SL_PART_VAE, "wan2.2_vae");
    sl_st_close(&st);
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        T_OK(sl_model_open(&m, at(AT[i]), &err));
        assert_memory_equal(&m.dit[0], &plain.dit[0], sizeof plain.dit[0]);
        assert_memory_equal(&m.umt5, &plain.umt5, sizeof plain.umt5);
        assert_memory_equal(&m.vae, &plain.vae, sizeof plain.vae);
        assert_memory_equal(&m.family, &plain.family, sizeof plain.family);
        assert_true(m.scheduler.flow_shift == plain.scheduler.flow_shift);
        for (int k = 0; k < SL_PART_COUNT; k++) {
            if (k == SL_PART_DIT_2 || k == SL_PART_IMAGE) continue;
            T_OK(sl_part_open(&st, &m.layout, (sl_part_id)k, &err));
            part_of(TI2V, st, (sl_part_id)k, AT[i]);
            sl_st_close(&st);
        }
        same_tokens(m.layout.tokenizer);
    }
    shell("cp %s %s", at("comfy/vae/wan_2.1_vae.safetensors"), at("ti2v/vae"));
    T_OK(sl_model_open(&m, at("ti2v"), &err));
    assert_string_equal(sl_path_last(m.layout.parts[SL_PART_VAE].path), "wan2.2_vae.safetensors");
}

static void hub_cache(void **state)
{
    (void)state;
    sl_model m;
    T_OK(sl_model_open(&m, at(CACHE), &err));
    assert_true(m.layout.hub);
    same_model(&m, "hub, top");
    T_OK(sl_model_open(&m, at(CACHE "/snapshots/0123456789abcdef0123456789abcdef01234567"), &err));
    assert_true(m.layout.hub);
    same_model(&m, "hub, snapshot");

    shell("cp -a %s %s", at(CACHE), at("cut"));
    shell("cd %s/snapshots/*/vae && rm $(readlink diffusion_pytorch_model.safetensors)", at("cut"));
    sl_st *st;
    T_OK(sl_model_open(&m, at("cut"), &err));
    T_CODE(sl_part_open(&st, &m.layout, SL_PART_VAE, &err), SL_SYS);
    T_SAYS(err.msg, "is a link to what is not there: the download was cut short");
    shell("rm %s/refs/main", at("cut")); /* one snapshot */
    T_OK(sl_model_open(&m, at("cut"), &err));
    shell("mkdir %s/snapshots/another", at("cut"));
    T_CODE(sl_model_open(&m, at("cut"), &err), SL_SYS);
    T_SAYS(err.msg, "refs/main names no snapshot");
    shell("echo ../../../etc > %s/refs/main", at("cut"));
    T_CODE(sl_model_open(&m, at("cut"), &err), SL_FORMAT);
    shell("echo 00 > %s/refs/main", at("cut"));
    T_CODE(sl_model_open(&m, at("cut"), &err), SL_SYS);
    T_SAYS(err.msg, "the download was cut short");
}

/* ---- 8 bits ---- */

/* Four rows of one weight, as PyTorch dequantises them; in every kind of scale. */
static void fp8(void **state)
{
    (void)state;
    static const struct {
        const char *file, *golden;
    } AT[] = {{"comfy/diffusion_models/wan2.1_i2v_480p_14B_fp8_e4m3fn.safetensors", "plain"},
              {"comfy/diffusion_models/wan2.1_i2v_480p_14B_fp8_scaled.safetensors", "scaled"},
              {"comfy/diffusion_models/wan2.1_i2v_480p_14B_fp8_comfy_quant.safetensors", "scaled"},
              {"kijai/Wan2_1-I2V-14B-480P_fp8_e4m3fn_scaled_KJ.safetensors", "kj"},
              {"lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors", "rows"}};
    sl_st *golden, *st, *plain;
    T_OK(sl_st_open_file(&golden, t_golden("layouts/fp8.safetensors"), &err));
    T_OK(sl_checkpoint_open(&plain, SL_NET_DIT, at(BF16), NULL, &err));
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        char name[80];
        static float got[4 * 256], want[4 * 256];
        T_OK(sl_checkpoint_open(&st, SL_NET_DIT, at(AT[i].file), NULL, &err));
        assert_int_equal(sl_st_size(st), sl_st_size(plain));
        const sl_st_entry *e = sl_st_find(st, "blocks.1.attn2.add_k_proj.weight");
        snprintf(name, sizeof name, "%s.weight.blocks.1.cross_attn.k_img", AT[i].golden);
        const sl_st_entry *g = sl_st_find(golden, name);
        assert_non_null(e);
        assert_non_null(g);
        assert_int_equal(e->coding, SL_F8_E4M3);
        const int64_t n = sl_count(&g->t);
        assert_true(n <= 4 * 256);
        sl_to_floats(want, g->t.data, g->t.dtype, n, NULL);
        sl_st_floats(got, e, 0, n);
        for (int64_t k = 0; k < n; k++)
            if (got[k] != want[k])
                fail_msg("%s: element %lld is %.9g, want %.9g", AT[i].file, (long long)k,
                         (double)got[k], (double)want[k]);
        /* from the middle of rows on */
        sl_st_floats(got, e, 100, n - 100);
        assert_memory_equal(got, want + 100, (size_t)(n - 100) * sizeof *got);
        /* every tensor is near the bf16 one: half a step of 3 bits of mantissa, and the smallest */
        for (int k = 0; k < sl_st_size(plain); k++) {
            const sl_st_entry *a = sl_st_at(plain, k), *b = sl_st_find(st, a->name);
            const int64_t count = sl_count(&a->t);
            float *x = malloc((size_t)count * sizeof *x), *y = malloc((size_t)count * sizeof *y);
            assert_non_null(b);
            sl_st_floats(x, a, 0, count);
            sl_st_floats(y, b, 0, count);
            T_REL(y, x, count, 0.04);
            free(x);
            free(y);
        }
        sl_st_close(&st);
    }
    sl_st_close(&plain);
    sl_st_close(&golden);
}

static void fp8_text_encoder(void **state)
{
    (void)state;
    sl_st *st;
    T_OK(sl_checkpoint_open(&st, SL_NET_UMT5,
                            at("comfy/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"), NULL,
                            &err));
    assert_int_equal(sl_st_size(st), 32);
    assert_int_equal(sl_st_find(st, "encoder.block.0.layer.0.SelfAttention.q.weight")->scale_count,
                     1);
    sl_st_close(&st);
}

/* One block's q of two rows, in 8 bits, and what `more` of the header says, over these bytes. */
static void crafted(const char *more, const char *data, size_t n)
{
    char header[2000];
    const int length = snprintf(header, sizeof header, "{%s}", more);
    FILE *f = fopen(at("crafted.safetensors"), "wb");
    assert_non_null(f);
    for (int i = 0; i < 8; i++) fputc((int)((uint64_t)length >> 8 * i & 255), f);
    fwrite(header, 1, (size_t)length, f);
    fwrite(data, 1, n, f);
    fclose(f);
}

#define Q "diffusion_model.blocks.0.self_attn.q."
#define WEIGHT "\"" Q "weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,2],\"data_offsets\":[0,4]}"
#define F32(name, shape, from, to)                                                                 \
    ",\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define DOWN "\"" Q "lora_down.weight\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}"
#define UP F32(Q "lora_up.weight", "[1,2]", 8, 16)
/* codes 1, 2, -1, 0.5; then floats of 2, 4 */
#define CODES "\x38\x40\xb8\x30"
#define TWO "\0\0\0\x40"
#define FOUR "\0\0\x80\x40"

static void scale_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *more, *data;
        size_t n;
        float want[4];
    } AT[] = {
        {WEIGHT, CODES, 4, {1, 2, -1, .5f}},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8), CODES TWO, 8, {2, 4, -2, 1}},
        {WEIGHT F32(Q "weight_scale", "[1]", 4, 8), CODES TWO, 8, {2, 4, -2, 1}},
        {WEIGHT F32(Q "weight_scale", "[2,1]", 4, 12), CODES TWO FOUR, 12, {2, 4, -4, 2}},
        {WEIGHT F32(Q "weight_scale", "[2]", 4, 12), CODES TWO FOUR, 12, {2, 4, -4, 2}},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8) F32(Q "scale_input", "[]", 8, 12),
         CODES TWO FOUR,
         12,
         {2, 4, -2, 1}},
    };
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_st *st;
        float got[4];
        crafted(AT[i].more, AT[i].data, AT[i].n);
        T_OK(sl_checkpoint_open(&st, SL_NET_DIT, at("crafted.safetensors"), NULL, &err));
        assert_int_equal(sl_st_size(st), 1);
        assert_string_equal(sl_st_at(st, 0)->name, "blocks.0.attn1.to_q.weight");
        sl_st_floats(got, sl_st_at(st, 0), 0, 4);
        assert_memory_equal(got, AT[i].want, sizeof got);
        sl_st_close(&st);
    }
}

static void bad_scales(void **state)
{
    (void)state;
    static const char NOTE[] = "{\"format\": \"nvfp4\"}      ";
    static const struct {
        const char *more, *data;
        size_t n;
        const char *says;
    } AT[] = {
        /* the largest code: scales were made so, and are not there */
        {WEIGHT, "\x7e\x40\xb8\x30", 4, "holds 448, as scaled weights do"},
        {WEIGHT ",\"scaled_fp8\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],\"data_offsets\":[4,4]}",
         CODES, 4, "is F8_E4M3 without its scale, which scaled_fp8 says it has"},
        {WEIGHT F32("blocks.1.ffn.0.scale_weight", "[]", 4, 8), CODES TWO, 8,
         "blocks.1.ffn.0.scale_weight has no weight beside it"},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8), CODES "\0\0\0\0", 8, "holds 0, want a finite"},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8), CODES "\0\0\0\xc0", 8,
         "holds -2, want a finite"},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8), CODES "\0\0\xc0\x7f", 8, "holds nan"},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8), CODES "\0\0\x80\x7f", 8, "holds inf"},
        {WEIGHT F32(Q "scale_weight", "[1,2]", 4, 12), CODES TWO FOUR, 12,
         "has shape [1, 2], want [] or [2, 1]"},
        {WEIGHT F32(Q "scale_weight", "[3]", 4, 16), CODES TWO FOUR TWO, 16,
         "has shape [3], want [] or [2, 1]"},
        {WEIGHT F32(Q "scale_weight", "[]", 4, 8) F32(Q "weight_scale", "[]", 8, 12),
         CODES TWO FOUR, 12, "is a second scale"},
        {"\"" Q "weight\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}" F32(
             Q "scale_weight", "[]", 4, 8),
         CODES TWO, 8, "is a scale for a weight of dtype BF16"},
        {WEIGHT ",\"" Q "comfy_quant\":{\"dtype\":\"U8\",\"shape\":[24],\"data_offsets\":[4,28]}",
         NULL, 28, "is quantised as nvfp4, want float8_e4m3fn"},
        {WEIGHT ",\"__metadata__\":{\"_quantization_metadata\":\"{\\\"layers\\\":{\\\"a\\\":{"
                "\\\"format\\\":\\\"mxfp8\\\"}}}\"}",
         CODES, 4, "a is quantised as mxfp8"},
        {WEIGHT ",\"__metadata__\":{\"_quantization_metadata\":\"{\\\"layers\\\":{\\\"a\\\":{"
                "\\\"format\\\":\\\"float8_e4m3fn\\\"}}}\"}",
         CODES, 4, "without its scale, which _quantization_metadata says it has"},
        {WEIGHT ",\"blocks.0.attn1.to_q.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],"
                "\"data_offsets\":[4,4]}",
         CODES, 4, "are both blocks.0.attn1.to_q.weight"},
    };
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_st *st = NULL;
        char note[28];
        memcpy(note, CODES, 4);
        memcpy(note + 4, NOTE, 24);
        crafted(AT[i].more, AT[i].data ? AT[i].data : note, AT[i].n);
        T_CODE(sl_checkpoint_open(&st, SL_NET_DIT, at("crafted.safetensors"), NULL, &err),
               SL_FORMAT);
        T_SAYS(err.msg, AT[i].says);
        assert_null(strchr(err.msg, '\n'));
        assert_null(st);
    }
}

/* ---- the commands ---- */

/* Standard output of bin/sluice, in `text`; its exit status. */
static int sluice(char *text, size_t size, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int sluice(char *text, size_t size, const char *fmt, ...)
{
    const char *bin = getenv("SLUICE_BIN");
    char command[2000];
    int n = snprintf(command, sizeof command, "%s/sluice ", bin ? bin : "bin");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(command + n, sizeof command - (size_t)n, fmt, ap);
    va_end(ap);
    strcat(command, " 2>&1");
    FILE *f = popen(command, "r");
    assert_non_null(f);
    text[fread(text, 1, size - 1, f)] = 0;
    return WEXITSTATUS(pclose(f));
}

static void inspect(void **state)
{
    (void)state;
    char text[8000];
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("wan-original")), 0);
    T_SAYS(text, "layout         Wan-AI's own");
    T_SAYS(text, "no problems");
    assert_int_equal(sluice(text, sizeof text, "inspect %s --transformer %s --text-encoder %s",
                            at("comfy"),
                            at("comfy/diffusion_models/"
                               "wan2.1_i2v_480p_14B_fp8_scaled.safetensors"),
                            at("comfy/text_encoders/umt5_xxl_fp16.safetensors")),
                     0);
    T_SAYS(text, "layout         single files");
    T_SAYS(text, "F8_E4M3 (scaled) 96.4 %, F16 3.6 %");
    T_SAYS(text, "--precision fp8-linear takes its blocks' F8_E4M3 matrices as they are");
    /* a transformer without the others */
    assert_int_equal(sluice(text, sizeof text, "inspect %s",
                            at("lightx2v/wan2.1_i2v_480p_scaled_fp8_e4m3_lightx2v.safetensors")),
                     1);
    T_SAYS(text, "family         Wan2.1 I2V");
    T_SAYS(text, "3 layers, 256 wide, 36 channels in, image cross-attention");
    T_SAYS(text, "distilled      by its name (\"lightx2v\")");
    T_SAYS(text, "want --vae FILE (wan_2.1_vae.safetensors in Comfy-Org/");
    assert_int_equal(
        sluice(text, sizeof text, "inspect %s", at("wan-original/models_t5_umt5-xxl-enc-bf16.pth")),
        0);
    T_SAYS(text, "a text encoder (UMT5) alone, 32 tensors");
    /* TI2V-5B's file among its siblings, and alone */
    assert_int_equal(sluice(text, sizeof text, "inspect %s",
                            at("ti2v/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors")),
                     0);
    T_SAYS(text, "family         Wan2.2 TI2V-5B");
    T_SAYS(text, "vae            base 4 (decoder 6), 48 latent channels of 16 x 16 pixels");
    T_SAYS(text, "no problems");
    shell("mkdir %s && cp %s %s", at("alone"),
          at("ti2v/diffusion_models/wan2.2_ti2v_5B_bf16.safetensors"), at("alone/x.safetensors"));
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("alone/x.safetensors")), 1);
    T_SAYS(text, "family         Wan2.2 TI2V-5B");
    T_SAYS(text, "2 layers, 256 wide, 48 channels in\n");
    T_SAYS(text, "(for TI2V-5B wan2.2_vae.safetensors in its 2.2)");
    /* a LoRA of one module, rank 2; with another's factor; half of it */
    crafted(DOWN UP, TWO FOUR TWO FOUR, 16);
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("crafted.safetensors")), 0);
    T_SAYS(text, "a LoRA, no model");
    T_SAYS(text, "rank           2");
    T_SAYS(text, "modules        1 of them\n");
    T_SAYS(text, "Wan-AI's (ComfyUI's), behind \"diffusion_model.\"");
    T_SAYS(text, "alpha          none: as the rank");
    T_SAYS(text, "a transformer 1 wide");
    crafted(DOWN UP F32("x.lora_down.weight", "[2,1]", 16, 24), TWO FOUR TWO FOUR TWO FOUR, 24);
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("crafted.safetensors")), 1);
    T_SAYS(text, "1 tensor for modules that the transformer does not have, the first is "
                 "x.lora_down.weight");
    crafted(DOWN, TWO FOUR, 8);
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("crafted.safetensors")), 1);
    T_SAYS(text, "a LoRA, which cannot be used: ");
    T_SAYS(text, "self_attn.q.lora_down.weight has no lora_up (lora_B) beside it");
    /* weights without a place */
    shell("cp -r " MODEL " %s && chmod -R u+w %s && rm -f %s/*.json %s/diffusion*", at("odd"),
          at("odd"), at("odd/vae"), at("odd/transformer"));
    shell("cp " MODEL "/vae/config.json %s && cp %s %s/diffusion_pytorch_model.safetensors",
          at("odd/vae"), at(BF16), at("odd/transformer"));
    shell("cp " MODEL "/transformer/config.json %s && sed -i s/3,/2,/ %s", at("odd/transformer"),
          at("odd/transformer/config.json"));
    assert_int_equal(sluice(text, sizeof text, "inspect %s", at("odd")), 1);
    T_SAYS(text, "unexpected blocks.2.attn1.norm_k.weight [256]");
    T_SAYS(text, "32 weights without a place: it runs without them");
    assert_int_equal(sluice(text, sizeof text, "inspect --lenient %s", at("odd")), 0);
}

static void pack(void **state)
{
    (void)state;
    char text[2000];
    sl_model m;
    assert_int_equal(sluice(text, sizeof text, "pack --quiet --dtype bf16 --model %s -o %s",
                            at("wan-original"), at("packed")),
                     0);
    T_OK(sl_model_open(&m, at("packed"), &err));
    assert_int_equal(m.layout.kind, SL_LAYOUT_DIFFUSERS);
    shell("cmp " MODEL "/tokenizer/spiece.model %s/tokenizer/spiece.model", at("packed"));
    for (int k = 0; k < 2; k++) {
        sl_st *a, *b;
        sl_model plain;
        const sl_part_id id = k ? SL_PART_TEXT : SL_PART_VAE;
        T_OK(sl_model_open(&plain, MODEL, &err));
        T_OK(sl_part_open(&a, &m.layout, id, &err));
        T_OK(sl_part_open(&b, &plain.layout, id, &err));
        for (int i = 0; i < sl_st_size(b); i++) {
            const sl_st_entry *x = sl_st_find(a, sl_st_at(b, i)->name), *y = sl_st_at(b, i);
            assert_true(x && x->t.dtype == y->t.dtype);
            assert_memory_equal(x->t.data, y->t.data, sl_bytes(&y->t));
        }
        sl_st_close(&a);
        sl_st_close(&b);
    }
}

/* Files that are not what they are taken for. */
static void other_files(void **state)
{
    (void)state;
    sl_model m;
    sl_st *st;
    FILE *f = fopen(at("pointer.safetensors"), "w");
    fputs("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", f);
    fclose(f);
    T_CODE(sl_st_open_file(&st, at("pointer.safetensors"), &err), SL_FORMAT);
    T_SAYS(err.msg, "is a Git LFS pointer, its data was not fetched");
    shell("mkdir %s && touch %s", at("v"), at("v/model.fp16.safetensors"));
    T_CODE(sl_st_open_dir(&st, at("v"), "model", &err), SL_SYS);
    T_SAYS(err.msg, "holds model.fp16.safetensors, a variant in fp16, want model.safetensors");
    shell("mv %s %s", at("v/model.fp16.safetensors"), at("v/pytorch_model.bin"));
    T_CODE(sl_st_open_dir(&st, at("v"), "model", &err), SL_SYS);
    T_SAYS(err.msg, "holds pytorch_model.bin, PyTorch's older format");
    crafted("\"diffusion_model.blocks.0.self_attn.q.lora_down.weight\":{\"dtype\":\"F32\","
            "\"shape\":[1],\"data_offsets\":[0,4]}",
            TWO, 4);
    T_CODE(sl_model_open(&m, at("crafted.safetensors"), &err), SL_ARG);
    T_SAYS(err.msg, "is a LoRA, no model: want --lora ");
    T_CODE(sl_model_open(&m, MODEL "/vae/diffusion_pytorch_model.safetensors", &err), SL_SYS);
    T_SAYS(err.msg, "no transformer of Wan");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wan_original), cmocka_unit_test(comfy),
        cmocka_unit_test(comfy_named),  cmocka_unit_test(kijai),
        cmocka_unit_test(ti2v),         cmocka_unit_test(hub_cache),
        cmocka_unit_test(fp8),          cmocka_unit_test(fp8_text_encoder),
        cmocka_unit_test(scale_shapes), cmocka_unit_test(bad_scales),
        cmocka_unit_test(inspect),      cmocka_unit_test(pack),
        cmocka_unit_test(other_files),
    };
    return cmocka_run_group_tests(tests, t_layouts_make, t_layouts_remove);
}
