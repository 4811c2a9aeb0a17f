/* test_lora.c - LoRA files read: every naming, alpha and rank rules, what is refused; a user's
 * FILE[:STRENGTH]; a job's rows. */
#include "tests/t_net.h"

#include <unistd.h>

#include "common/lora.h"
#include "common/safetensors.h"

static char dir[256];
static sl_err err;

static int open_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

static int close_dir(void **state)
{
    (void)state;
    t_rmdir(dir);
    return 0;
}

/* ---- files ---- */

/* A tensor to be written, its numbers 1, 2, 3 ... eighths. */
typedef struct {
    const char *name;
    sl_dtype dtype;
    int rank;
    int64_t shape[4];
    float value; /* not 0: all of its numbers */
} made;

static const char *write_lora(const made *t, int n, const char *metadata)
{
    static char path[300];
    sl_st_writer *w = NULL;
    snprintf(path, sizeof path, "%s/x.safetensors", dir);
    T_OK(sl_stw_open(&w, path, &err));
    for (int i = 0; i < n; i++)
        T_OK(sl_stw_declare(w, t[i].name, t[i].dtype, t[i].rank, t[i].shape, &err));
    if (metadata) T_OK(sl_stw_metadata(w, "lora_adapter_metadata", metadata, &err));
    for (int i = 0; i < n; i++) {
        const sl_tensor v = sl_view(NULL, t[i].dtype, t[i].rank, t[i].shape);
        float x[4096];
        uint64_t raw[4096];
        assert_true(sl_count(&v) <= 4096);
        for (int64_t k = 0; k < sl_count(&v); k++)
            x[k] = t[i].value != 0 ? t[i].value : 0.125f * (float)(k % 64 + 1);
        for (int64_t k = 0; k < sl_count(&v); k++) raw[k] = (uint64_t)x[k];
        if (t[i].dtype != SL_I64) T_OK(sl_from_floats(raw, t[i].dtype, x, sl_count(&v), &err));
        T_OK(sl_stw_write(w, t[i].name, raw, 0, sl_bytes(&v), &err));
    }
    T_OK(sl_stw_finish(&w, &err));
    return path;
}

static sl_lora *opened(const char *path)
{
    sl_lora *l = NULL;
    T_OK(sl_lora_open(&l, path, &err));
    return l;
}

static const sl_lora_change *change_of(const sl_lora *l, const char *target)
{
    const sl_lora_change *c;
    for (int i = 0; (c = sl_lora_at(l, i)); i++)
        if (!strcmp(c->target, target)) return c;
    fail_msg("%s changes no %s", sl_lora_path(l), target);
    return NULL;
}

static int count_of(const sl_lora *l)
{
    int n = 0;
    while (sl_lora_at(l, n)) n++;
    return n;
}

/* ---- names ---- */

/* The recorded namings of one LoRA: the same targets, scales and numbers. */
static void namings_of_one_lora(void **state)
{
    static const char *const FILES[] = {"a-peft", "a-original", "a-kohya"};
    static const sl_naming NAMINGS[] = {SL_NAMING_DIFFUSERS, SL_NAMING_ORIGINAL, SL_NAMING_KOHYA};
    sl_lora *first = NULL;
    uint64_t id = 0, other = 0;
    (void)state;
    for (int f = 0; f < 3; f++) {
        char path[64];
        sl_lora_facts facts;
        snprintf(path, sizeof path, "lora-i2v/%s.safetensors", FILES[f]);
        sl_lora *l = opened(t_golden(path));
        assert_int_equal(count_of(l), 36);
        assert_null(sl_lora_stray(l, 0));
        sl_lora_describe(l, &facts);
        assert_int_equal(facts.naming, NAMINGS[f]);
        assert_int_equal(facts.rank_lo, 4);
        assert_int_equal(facts.rank_hi, 4);
        assert_int_equal(facts.products, 36);
        assert_true(facts.alpha);
        T_OK(sl_lora_read(l, f ? &other : &id, &err));
        if (f) assert_true(other == id);
        if (!f) {
            first = l;
            continue;
        }
        for (int i = 0; i < 36; i++) {
            const sl_lora_change *a = sl_lora_at(first, i), *b = sl_lora_at(l, i);
            assert_string_equal(a->target, b->target);
            assert_true(a->scale == 0.5f && b->scale == 0.5f);
            assert_memory_equal(a->up.data, b->up.data, sl_bytes(&a->up));
            assert_memory_equal(a->down.data, b->down.data, sl_bytes(&a->down));
        }
        sl_lora_close(&l);
    }
    sl_lora_close(&first);
}

/* LightX2V's: every small tensor as a difference, the modulation named by its owner. */
static void lightx2v_changes_everything(void **state)
{
    static const char *const DIFFERENCES[] = {
        "blocks.1.scale_shift_table",
        "scale_shift_table",
        "blocks.0.norm2.weight",
        "blocks.0.norm2.bias",
        "blocks.2.attn2.norm_added_k.weight",
        "blocks.0.attn1.norm_q.weight",
        "blocks.0.ffn.net.0.proj.bias",
        "patch_embedding.weight",
        "patch_embedding.bias",
        "proj_out.weight",
        "condition_embedder.image_embedder.norm1.weight",
        "condition_embedder.time_proj.bias",
    };
    sl_lora_facts facts;
    sl_lora *l = opened(t_golden("lora-i2v/d-lightx2v.safetensors"));
    (void)state;
    assert_null(sl_lora_stray(l, 0));
    for (size_t i = 0; i < sizeof DIFFERENCES / sizeof *DIFFERENCES; i++) {
        const sl_lora_change *c = change_of(l, DIFFERENCES[i]);
        assert_int_equal(c->up.rank, 0);
        assert_true(c->scale == 1);
    }
    assert_int_equal(change_of(l, "condition_embedder.text_embedder.linear_1.weight")->up.rank, 2);
    sl_lora_describe(l, &facts);
    assert_false(facts.alpha);
    sl_lora_close(&l);
}

#define Q "blocks.3.attn1.to_q.weight"
#define PAIR(down, up)                                                                             \
    {down, SL_F32, 2, {2, 8}, 0},                                                                  \
    {                                                                                              \
        up, SL_F32, 2, {16, 2}, 0                                                                  \
    }

/* Prefixes and suffixes that writers use, each pair of the same module. */
static void pairs_of_every_writer(void **state)
{
    static const char *const NAMES[][2] = {
        {"transformer.blocks.3.attn1.to_q.lora_A.weight",
         "transformer.blocks.3.attn1.to_q.lora_B.weight"},
        {"transformer_2.blocks.3.attn1.to_q.lora_A.default.weight",
         "transformer_2.blocks.3.attn1.to_q.lora_B.default.weight"},
        {"diffusion_model.blocks.3.self_attn.q.lora_A.weight",
         "diffusion_model.blocks.3.self_attn.q.lora_B.weight"},
        {"base_model.model.blocks.3.self_attn.q.lora_A.weight",
         "base_model.model.blocks.3.self_attn.q.lora_B.weight"},
        {"lora_unet__blocks_3_self_attn_q.lora_down.weight",
         "lora_unet__blocks_3_self_attn_q.lora_up.weight"},
        {"lora_unet_blocks_3_attn1_to_q.lora_down.weight",
         "lora_unet_blocks_3_attn1_to_q.lora_up.weight"},
        {"blocks.3.self_attn.q.lora.down.weight", "blocks.3.self_attn.q.lora.up.weight"},
        {"model.blocks.3.self_attn.q_lora.down.weight",
         "model.blocks.3.self_attn.q_lora.up.weight"},
        {"unet.blocks.3.attn1.to_q.lora_A", "unet.blocks.3.attn1.to_q.lora_B"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        const made T[] = {PAIR(NAMES[i][0], NAMES[i][1])};
        sl_lora *l = opened(write_lora(T, 2, NULL));
        if (count_of(l) != 1 || strcmp(sl_lora_at(l, 0)->target, Q))
            fail_msg("%s: %d changes, the first of %s", NAMES[i][0], count_of(l),
                     sl_lora_at(l, 0) ? sl_lora_at(l, 0)->target : "none");
        assert_true(sl_lora_at(l, 0)->scale == 1);
        assert_int_equal(sl_lora_at(l, 0)->down.shape[1], 8);
        sl_lora_close(&l);
    }
}

#define DOWN "diffusion_model.blocks.3.self_attn.q.lora_down.weight"
#define UP "diffusion_model.blocks.3.self_attn.q.lora_up.weight"
#define ALPHA "diffusion_model.blocks.3.self_attn.q.alpha"

/* alpha / rank by tensor, by metadata, by neither; with the root for rsLoRA. */
static void scales(void **state)
{
    static const struct {
        sl_dtype alpha_as;
        float alpha; /* 0: no tensor */
        const char *metadata;
        float scale;
    } CASES[] = {
        {SL_F32, 0, NULL, 1},
        {SL_F32, 3, NULL, 1.5f},
        {SL_BF16, 1, NULL, 0.5f},
        {SL_I64, 4, NULL, 2},
        {SL_F32, 0, "{\"transformer.r\": 2, \"transformer.lora_alpha\": 5}", 2.5f},
        {SL_F32, 0, "{\"lora_alpha\": 5}", 2.5f},
        {SL_F32, 0, "{\"transformer.lora_alpha\": 0}", 1},
        {SL_F32, 0, "{\"transformer.r\": 2}", 1},
        {SL_F32, 0,
         "{\"transformer.lora_alpha\": 5, \"transformer.alpha_pattern\": "
         "{\"self_attn.k\": 7, \"self_attn.q\": 1}}",
         0.5f},
        {SL_F32, 0,
         "{\"transformer.lora_alpha\": 5, \"transformer.alpha_pattern\": "
         "{\"blocks.3.attn1.to_q\": 1}}",
         0.5f},
        {SL_F32, 0,
         "{\"transformer.lora_alpha\": 5, \"transformer.alpha_pattern\": {\"attn.q\": 1}}", 2.5f},
        {SL_F32, 0, "{\"transformer.lora_alpha\": 4, \"transformer.use_rslora\": true}",
         2.8284271f},
        /* the tensor is nearer */
        {SL_F32, 3, "{\"transformer.lora_alpha\": 4}", 1.5f},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const made T[] = {PAIR(DOWN, UP), {ALPHA, CASES[i].alpha_as, 1, {1}, CASES[i].alpha}};
        sl_lora *l = opened(write_lora(T, CASES[i].alpha != 0 ? 3 : 2, CASES[i].metadata));
        const float got = sl_lora_at(l, 0)->scale;
        if (!(fabsf(got - CASES[i].scale) <= 1e-6f))
            fail_msg("case %zu: scale %g, want %g", i, (double)got, (double)CASES[i].scale);
        sl_lora_close(&l);
    }
}

/* A convolution's factors are seen as matrices; lora_B.bias is scaled as the product is. */
static void convolutions_and_biases(void **state)
{
    static const made T[] = {
        {"patch_embedding.lora_down.weight", SL_F32, 4, {3, 4, 2, 2}, 0},
        {"patch_embedding.lora_up.weight", SL_F32, 4, {16, 3, 1, 1}, 0},
        {"patch_embedding.alpha", SL_F32, 1, {1}, 6},
        {"patch_embedding.lora_up.bias", SL_F32, 1, {16}, 0},
        {"patch_embedding.diff_b", SL_F32, 1, {16}, 0},
    };
    sl_lora *l = opened(write_lora(T, 5, NULL));
    (void)state;
    assert_int_equal(count_of(l), 3);
    const sl_lora_change *c = change_of(l, "patch_embedding.weight");
    assert_int_equal(c->down.shape[0], 3);
    assert_int_equal(c->down.shape[1], 16);
    assert_int_equal(c->up.shape[0], 16);
    assert_true(c->scale == 2);
    float scales_found = 0;
    for (int i = 0; i < 3; i++)
        if (!strcmp(sl_lora_at(l, i)->target, "patch_embedding.bias"))
            scales_found += sl_lora_at(l, i)->scale;
    assert_true(scales_found == 3); /* 2 of lora_up.bias, 1 of diff_b */
    sl_lora_close(&l);
}

/* ---- what is refused ---- */

static void refused(const made *t, int n, const char *metadata, sl_code code, const char *says)
{
    sl_lora *l = NULL;
    const char *path = write_lora(t, n, metadata);
    T_CODE(sl_lora_open(&l, path, &err), code);
    assert_null(l);
    T_SAYS(err.msg, says);
    T_SAYS(err.msg, "x.safetensors: ");
    assert_null(strchr(err.msg, '\n'));
}
#define REFUSED(code, says, metadata, ...)                                                         \
    refused((made[]){__VA_ARGS__}, (int)(sizeof((made[]){__VA_ARGS__}) / sizeof(made)), metadata,  \
            code, says)

/* The file's only I64 is one of doubles, which no tensor here can be. */
static void refused_as_f64(const made *t, int n, const char *says)
{
    sl_lora *l = NULL;
    const char *path = write_lora(t, n, NULL);
    char head[1024];
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    const size_t got = fread(head, 1, sizeof head - 1, f);
    head[got] = 0;
    const char *tag = memmem(head, got, "\"I64\"", 5);
    assert_non_null(tag);
    fseek(f, tag - head, SEEK_SET);
    fputs("\"F64\"", f);
    fclose(f);
    T_CODE(sl_lora_open(&l, path, &err), SL_SHAPE);
    T_SAYS(err.msg, says);
}

static void hostile_files_get_one_line(void **state)
{
    sl_lora *l = NULL;
    (void)state;
    REFUSED(SL_FORMAT, DOWN " has no lora_up (lora_B) beside it", NULL,
            {DOWN, SL_F32, 2, {2, 8}, 0});
    REFUSED(SL_FORMAT, UP " has no lora_down (lora_A) beside it", NULL,
            {UP, SL_F32, 2, {16, 2}, 0});
    REFUSED(SL_SHAPE, "has shape [16, 3]", NULL, {DOWN, SL_F32, 2, {2, 8}, 0},
            {UP, SL_F32, 2, {16, 3}, 0});
    REFUSED(SL_SHAPE, "want [N, rank] and [rank, K]", NULL, {DOWN, SL_F32, 1, {8}, 0},
            {UP, SL_F32, 2, {16, 1}, 0});
    REFUSED(SL_SHAPE, "want one dtype", NULL, {DOWN, SL_F32, 2, {2, 8}, 0},
            {UP, SL_BF16, 2, {16, 2}, 0});
    REFUSED(SL_SHAPE, "has dtype I64, want F32, BF16 or F16", NULL, {DOWN, SL_I64, 2, {2, 8}, 0},
            {UP, SL_I64, 2, {16, 2}, 0});
    REFUSED(SL_SHAPE, ALPHA " is no single number", NULL, PAIR(DOWN, UP),
            {ALPHA, SL_F32, 1, {2}, 0});
    const made doubles[] = {PAIR(DOWN, UP), {ALPHA, SL_I64, 1, {1}, 4}};
    refused_as_f64(doubles, 3, ALPHA " has dtype F64, want F32, BF16, F16, I64 or I32");
    REFUSED(SL_NUMERIC, ALPHA " is inf, want a finite number", NULL, PAIR(DOWN, UP),
            {ALPHA, SL_F32, 1, {1}, INFINITY});
    REFUSED(SL_ARG, "DoRA, LoHa, LoKr and LoCon are not done here", NULL, PAIR(DOWN, UP),
            {"diffusion_model.blocks.3.self_attn.q.dora_scale", SL_F32, 2, {16, 1}, 0});
    REFUSED(SL_ARG, "hada_w1_a", NULL,
            {"lora_unet_blocks_3_self_attn_q.hada_w1_a", SL_F32, 2, {16, 1}, 0});
    REFUSED(SL_ARG, "lora_mid.weight", NULL, PAIR(DOWN, UP),
            {"diffusion_model.blocks.3.self_attn.q.lora_mid.weight", SL_F32, 2, {2, 2}, 0});
    REFUSED(SL_FORMAT,
            "none of its 1 tensors is of a LoRA for a Wan transformer, the first is "
            "lora_unet_down_blocks_0.lora_up.weight",
            NULL, {"lora_unet_down_blocks_0.lora_up.weight", SL_F32, 2, {2, 2}, 0});
    REFUSED(SL_FORMAT, "are the same of one module", NULL, PAIR(DOWN, UP),
            {"transformer.blocks.3.attn1.to_q.lora_A.weight", SL_F32, 2, {2, 8}, 0});
    REFUSED(SL_FORMAT, "lora_adapter_metadata", "{\"lora_alpha\": ", PAIR(DOWN, UP));
    REFUSED(SL_FORMAT, "is no finite number", "{\"lora_alpha\": \"many\"}", PAIR(DOWN, UP));
    T_CODE(sl_lora_open(&l, "/no/such/file", &err), SL_SYS);
    assert_null(l);
    T_CODE(sl_lora_open(&l, dir, &err), SL_SYS);
    /* cut short: what the header promises is not there */
    const made T[] = {PAIR(DOWN, UP)};
    const char *path = write_lora(T, 2, NULL);
    assert_int_equal(truncate(path, 200), 0);
    T_CODE(sl_lora_open(&l, path, &err), SL_FORMAT);
}

static void numbers_that_are_none(void **state)
{
    const made T[] = {{DOWN, SL_BF16, 2, {2, 8}, 0}, {UP, SL_BF16, 2, {16, 2}, NAN}};
    sl_lora *l = opened(write_lora(T, 2, NULL));
    uint64_t id;
    (void)state;
    T_CODE(sl_lora_read(l, &id, &err), SL_NUMERIC);
    T_SAYS(err.msg, "has NaN or infinity at element 0");
    sl_lora_close(&l);
}

/* Names that are of no module are kept apart. */
static void strays_are_listed(void **state)
{
    static const made T[] = {PAIR(DOWN, UP),
                             {"text_encoder.q.lora_A.weight", SL_F32, 2, {2, 8}, 0},
                             {"diffusion_model.blocks.3.self_attn.q.what", SL_F32, 1, {1}, 0}};
    sl_lora *l = opened(write_lora(T, 4, NULL));
    (void)state;
    assert_int_equal(count_of(l), 1);
    assert_string_equal(sl_lora_stray(l, 0), "diffusion_model.blocks.3.self_attn.q.what");
    assert_string_equal(sl_lora_stray(l, 1), "text_encoder.q.lora_A.weight");
    assert_null(sl_lora_stray(l, 2));
    sl_lora_close(&l);
}

/* ---- rows ---- */

static void files_and_strengths(void **state)
{
    static const struct {
        const char *text, *file;
        double strength;
    } CASES[] = {{"a.safetensors", "a.safetensors", 1},
                 {"a.safetensors:0.5", "a.safetensors", 0.5},
                 {"a:-1", "a", -1},
                 {"C:\\x\\a.safetensors", "C:\\x\\a.safetensors", 1},
                 {"/d:1/a", "/d:1/a", 1},
                 {"a:1:2", "a:1", 2},
                 {"a:", "a:", 1},
                 {"a:1e1", "a", 10}};
    static const char *const BAD[] = {"", ":1", "a:1000", "a:1.2.3", "a:--1", "a\nb"};
    sl_lora_use u;
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        T_OK(sl_lora_use_parse(&u, CASES[i].text, &err));
        assert_string_equal(u.file, CASES[i].file);
        assert_true(u.strength == CASES[i].strength);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        T_CODE(sl_lora_use_parse(&u, BAD[i], &err), SL_ARG);
        assert_null(strchr(err.msg, '\n'));
    }
}

static void rows_of_a_job(void **state)
{
    const sl_lora_use uses[2] = {{"/a b/c.safetensors", 0.1, 0x0123456789abcdef}, {"d", -2, 0}};
    sl_lora_use got[SL_LORA_MOST];
    char *field = sl_lora_field(uses, 2);
    (void)state;
    assert_non_null(field);
    assert_int_equal(sl_lora_uses(got, field, &err), 2);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(got[i].file, uses[i].file);
        assert_true(got[i].strength == uses[i].strength);
        assert_true(got[i].id == uses[i].id);
    }
    assert_int_equal(sl_lora_uses(got, "", &err), 0);
    assert_true(sl_lora_key("") == 0);
    assert_true(sl_lora_key(field) != 0);
    assert_true(sl_lora_key(field) != sl_lora_key("0.1 0123456789abcdef x"));
    assert_true(sl_lora_key("1 5 a") == sl_lora_key("1 5 b")); /* content, not place */
    assert_true(sl_lora_key("1 5 a") != sl_lora_key("0.5 5 a"));
    free(field);
    static const char *const BAD[] = {"x", "1", "1 5", "1 5 ", "nan 5 a", "1 zz a", "1000 5 a"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        if (sl_lora_uses(got, BAD[i], &err) != -1) fail_msg("\"%s\" is taken", BAD[i]);
}

/* A file that changed between check and merge is not merged. */
static void a_changed_file_is_noticed(void **state)
{
    const made T[] = {PAIR(DOWN, UP)},
               OTHER[] = {{DOWN, SL_F32, 2, {2, 8}, 3}, {UP, SL_F32, 2, {16, 2}, 0}};
    sl_lora_set set;
    sl_lora_use use = {.strength = 1};
    snprintf(use.file, sizeof use.file, "%s", write_lora(T, 2, NULL));
    char *field = sl_lora_field(&use, 1);
    (void)state;
    T_OK(sl_lora_set_open(&set, field, &err));
    T_OK(sl_lora_set_read(&set, &err));
    use.id = set.use[0].id;
    assert_true(use.id != 0);
    sl_lora_set_close(&set);
    free(field);
    field = sl_lora_field(&use, 1);
    T_OK(sl_lora_set_open(&set, field, &err));
    T_OK(sl_lora_set_read(&set, &err));
    sl_lora_set_close(&set);
    write_lora(OTHER, 2, NULL);
    T_OK(sl_lora_set_open(&set, field, &err));
    T_CODE(sl_lora_set_read(&set, &err), SL_GONE);
    T_SAYS(err.msg, "its content is another than when the job was taken");
    sl_lora_set_close(&set);
    free(field);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(namings_of_one_lora),       cmocka_unit_test(lightx2v_changes_everything),
        cmocka_unit_test(pairs_of_every_writer),     cmocka_unit_test(scales),
        cmocka_unit_test(convolutions_and_biases),   cmocka_unit_test(hostile_files_get_one_line),
        cmocka_unit_test(numbers_that_are_none),     cmocka_unit_test(strays_are_listed),
        cmocka_unit_test(files_and_strengths),       cmocka_unit_test(rows_of_a_job),
        cmocka_unit_test(a_changed_file_is_noticed),
    };
    return cmocka_run_group_tests_name("lora", tests, open_dir, close_dir);
}
