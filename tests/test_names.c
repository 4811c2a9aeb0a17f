/* test_names.c - the names that others give to tensors: the recorded pairs, every prefix, and what
 * must not match. */
#include "t.h"

#include "common/names.h"

/* "theirs" is `ours`, whole. */
static void is_called(sl_net net, const char *theirs, int part, const char *ours)
{
    char got[2 * SL_NAME_BYTES];
    if (!sl_names_tensor(net, theirs, part, got, sizeof got) || strcmp(got, ours))
        fail_msg("%s: %s (part %d) is \"%s\", want %s", sl_net_name(net), theirs, part, got, ours);
}

static sl_net net_named(const char *name)
{
    for (int i = 0; i < SL_NET_COUNT; i++)
        if (!strcmp(sl_net_name((sl_net)i), name)) return (sl_net)i;
    fail_msg("pairs.tsv: no network is called %s", name);
    return SL_NET_COUNT;
}

/* Pairs of names as the reference's converters have them, and LoRA keys whose tensors have the same
 * bytes. Diffusers' own name means itself. */
static void recorded_pairs(void **state)
{
    (void)state;
    char line[512];
    int n = 0;
    FILE *f = fopen(t_golden("names/pairs.tsv"), "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        char *save, *net = strtok_r(line, "\t", &save), *theirs = strtok_r(NULL, "\t", &save),
                    *ours = strtok_r(NULL, "\t", &save), *part = strtok_r(NULL, "\n", &save);
        assert_non_null(part);
        is_called(net_named(net), theirs, atoi(part), ours);
        is_called(net_named(net), ours, 0, ours);
        n++;
    }
    fclose(f);
    assert_int_equal(n, 528);
}

static void prefixes(void **state)
{
    (void)state;
    static const char *const OFTEN[] = {"",
                                        "diffusion_model.",
                                        "model.diffusion_model.",
                                        "transformer.",
                                        "transformer_2.",
                                        "base_model.model.",
                                        "base_model.model.diffusion_model.",
                                        "model.",
                                        "unet."};
    char name[256];
    for (size_t i = 0; i < sizeof OFTEN / sizeof *OFTEN; i++) {
        sl_name n;
        snprintf(name, sizeof name, "%sblocks.12.self_attn.o.lora_down.weight", OFTEN[i]);
        assert_true(sl_names_find(SL_NET_DIT, name, 0, &n));
        assert_string_equal(n.module, "blocks.12.attn1.to_out.0");
        assert_string_equal(n.rest, ".lora_down.weight");
        assert_int_equal(n.prefix, strlen(OFTEN[i]));
        assert_int_equal(n.naming, SL_NAMING_ORIGINAL);
        snprintf(name, sizeof name, "%sblocks.12.attn1.to_out.0", OFTEN[i]);
        assert_true(sl_names_find(SL_NET_DIT, name, 0, &n));
        assert_string_equal(n.module, "blocks.12.attn1.to_out.0");
        assert_string_equal(n.rest, "");
        assert_int_equal(n.naming, SL_NAMING_DIFFUSERS);
    }
    is_called(SL_NET_UMT5, "text_encoders.umt5xxl.transformer.shared.weight", 0, "shared.weight");
    is_called(SL_NET_UMT5, "encoder.embed_tokens.weight", 0, "shared.weight");
    is_called(SL_NET_VAE, "vae.conv2.bias", 0, "post_quant_conv.bias");
    is_called(SL_NET_VAE, "model.conv1.bias", 0, "quant_conv.bias");
    is_called(SL_NET_CLIP, "post_layernorm.bias", 0, "vision_model.post_layernorm.bias");
}

/* `_` stands for `.` behind lora_unet_ only; some writers keep some of the dots. */
static void kohya(void **state)
{
    (void)state;
    static const char *const SAME[] = {
        "lora_unet_blocks_3_cross_attn_k_img.alpha", "lora_unet__blocks_3_cross_attn_k_img.alpha",
        "lora_unet_blocks_3.cross_attn.k_img.alpha", "lora_unet_blocks.3_cross_attn_k_img.alpha",
        "lora_unet_blocks_3_attn2_add_k_proj.alpha", "lora_unet__blocks_3.attn2.add_k_proj.alpha"};
    sl_name n;
    for (size_t i = 0; i < sizeof SAME / sizeof *SAME; i++) {
        assert_true(sl_names_find(SL_NET_DIT, SAME[i], 0, &n));
        assert_string_equal(n.module, "blocks.3.attn2.add_k_proj");
        assert_string_equal(n.rest, ".alpha");
        assert_int_equal(n.naming, SL_NAMING_KOHYA);
    }
    is_called(SL_NET_DIT, "lora_unet_blocks_39_ffn_2.lora_up.weight", 0,
              "blocks.39.ffn.net.2.lora_up.weight");
    is_called(SL_NET_DIT, "lora_unet_time_embedding_2.alpha", 0,
              "condition_embedder.time_embedder.linear_2.alpha");
    is_called(SL_NET_DIT, "lora_unet_head_head.alpha", 0, "proj_out.alpha");
    assert_false(sl_names_find(SL_NET_DIT, "blocks_3_self_attn_q.alpha", 0, &n));
    assert_false(sl_names_find(SL_NET_DIT, "lora_unet_blocks_3_self_attn_q_alpha", 0, &n));
}

/* What LightX2V and ComfyUI hang at modules that are no matrices. */
static void alone(void **state)
{
    (void)state;
    is_called(SL_NET_DIT, "diffusion_model.blocks.0.norm3.diff_b", 0, "blocks.0.norm2.diff_b");
    is_called(SL_NET_DIT, "diffusion_model.head.modulation", 0, "scale_shift_table");
    is_called(SL_NET_DIT, "diffusion_model.blocks.7.modulation.diff", 0,
              "blocks.7.scale_shift_table.diff");
    is_called(SL_NET_DIT, "diffusion_model.patch_embedding.diff", 0, "patch_embedding.diff");
    is_called(SL_NET_DIT, "blocks.0.cross_attn.norm_k_img.diff", 0,
              "blocks.0.attn2.norm_added_k.diff");
}

static void llama(void **state)
{
    (void)state;
    static const char *const PAIRS[][2] = {
        {"token_embd.weight", "shared.weight"},
        {"enc.output_norm.weight", "encoder.final_layer_norm.weight"},
        {"enc.blk.23.attn_q.weight", "encoder.block.23.layer.0.SelfAttention.q.weight"},
        {"enc.blk.0.attn_rel_b.weight",
         "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
        {"enc.blk.0.attn_norm.weight", "encoder.block.0.layer.0.layer_norm.weight"},
        {"enc.blk.0.ffn_norm.weight", "encoder.block.0.layer.1.layer_norm.weight"},
        {"enc.blk.0.ffn_gate.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"},
        {"enc.blk.0.ffn_up.weight", "encoder.block.0.layer.1.DenseReluDense.wi_1.weight"},
        {"enc.blk.0.ffn_down.weight", "encoder.block.0.layer.1.DenseReluDense.wo.weight"},
    };
    for (size_t i = 0; i < sizeof PAIRS / sizeof *PAIRS; i++) {
        sl_name n;
        is_called(SL_NET_UMT5, PAIRS[i][0], 0, PAIRS[i][1]);
        assert_true(sl_names_find(SL_NET_UMT5, PAIRS[i][0], 0, &n));
        assert_int_equal(n.naming, SL_NAMING_LLAMA);
    }
}

static void parts_and_ranks(void **state)
{
    (void)state;
    sl_name n;
    const char *qkv = "visual.transformer.31.attn.to_qkv.bias";
    is_called(SL_NET_CLIP, qkv, 2, "vision_model.encoder.layers.31.self_attn.v_proj.bias");
    assert_true(sl_names_find(SL_NET_CLIP, qkv, 1, &n));
    assert_int_equal(n.parts, 3);
    assert_int_equal(n.part, 1);
    assert_false(sl_names_find(SL_NET_CLIP, qkv, 3, &n));
    assert_false(sl_names_find(SL_NET_CLIP, "vision_model.encoder.layers.0.mlp.fc1.bias", 1, &n));
    assert_true(sl_names_find(SL_NET_CLIP, "visual.pos_embedding", 0, &n));
    assert_string_equal(n.module, "vision_model.embeddings.position_embedding.weight");
    assert_int_equal(n.rank, 2);
    assert_int_equal(n.parts, 1);
}

static void unneeded(void **state)
{
    (void)state;
    static const struct {
        sl_net net;
        const char *name;
    } AT[] = {{SL_NET_DIT, "freqs"},
              {SL_NET_DIT, "model.diffusion_model.freqs"},
              {SL_NET_DIT, "scaled_fp8"},
              {SL_NET_UMT5, "spiece_model"},
              {SL_NET_CLIP, "textual.transformer.model.embeddings.word_embeddings.weight"},
              {SL_NET_CLIP, "log_scale"},
              {SL_NET_CLIP, "visual.head"}};
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_name n;
        char text[64];
        assert_true(sl_names_find(AT[i].net, AT[i].name, 0, &n));
        assert_true(n.unneeded);
        assert_string_equal(n.module, "");
        assert_false(sl_names_tensor(AT[i].net, AT[i].name, 0, text, sizeof text));
        assert_string_equal(text, "");
    }
}

static void no_place(void **state)
{
    (void)state;
    static const struct {
        sl_net net;
        const char *name;
    } AT[] = {{SL_NET_DIT, ""},
              {SL_NET_DIT, "diffusion_model."},
              {SL_NET_DIT, "blocks"},
              {SL_NET_DIT, "blocks.0"},
              {SL_NET_DIT, "blocks.0.diff_m"},
              {SL_NET_DIT, "blocks..attn1.to_q"},
              {SL_NET_DIT, "blocks.x.attn1.to_q"},
              {SL_NET_DIT, "blocks.1234567890.attn1.to_q"},
              {SL_NET_DIT, "blocks.0.attn1.to_qx"},
              {SL_NET_DIT, "blocks.0.attn3.to_q"},
              {SL_NET_DIT, "double_blocks.0.img_attn.qkv.weight"},
              {SL_NET_DIT, "control_adapter.conv.weight"},
              {SL_NET_UMT5, "decoder.block.0.layer.0.SelfAttention.q.weight"},
              {SL_NET_VAE, "decoder.upsamples.15.residual.0.gamma"},
              {SL_NET_VAE, "decoder.middle.3.residual.0.gamma"},
              {SL_NET_CLIP, "visual.transformer.0.attn.to_q.weight"}};
    char small[8];
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        sl_name n;
        if (sl_names_find(AT[i].net, AT[i].name, 0, &n))
            fail_msg("%s is %s%s, want no place", AT[i].name, n.module, n.rest);
        assert_string_equal(n.module, "");
    }
    assert_false(sl_names_tensor(SL_NET_DIT, "head.head.bias", 0, small, sizeof small));
    assert_string_equal(small, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_pairs), cmocka_unit_test(prefixes),
        cmocka_unit_test(kohya),          cmocka_unit_test(alone),
        cmocka_unit_test(llama),          cmocka_unit_test(parts_and_ranks),
        cmocka_unit_test(unneeded),       cmocka_unit_test(no_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
