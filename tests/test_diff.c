/* test_diff - `sluice diff`: figures of two tensors, the pipeline's order, the block into
 * which a
 * wrong weight was put. takes: 2 s. */
#include "tests/t.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* not all of these cases */
#include "tests/t_hostile.h"

#include "common/json.h"
#include "stages/cli/compare.h"
#include "stages/cli/dumped.h"

/* ---- figures ---- */

/* Two files of one tensor each, open. */
typedef struct {
    sl_st *a, *b;
} two;

static two open_two(const sl_tensor *a, const sl_tensor *b)
{
    two t;
    sl_err err = {0};
    T_OK(sl_st_save(at("a.safetensors"), 1, (const char *[]){"x"}, a, &err));
    T_OK(sl_st_save(at("b.safetensors"), 1, (const char *[]){"x"}, b, &err));
    T_OK(sl_st_open_file(&t.a, at("a.safetensors"), &err));
    T_OK(sl_st_open_file(&t.b, at("b.safetensors"), &err));
    return t;
}

static sl_code compare_two(sl_difference *d, const sl_tensor *a, const sl_tensor *b, sl_err *err)
{
    two t = open_two(a, b);
    sl_code rc = sl_compare(d, sl_st_at(t.a, 0), sl_st_at(t.b, 0), err);
    sl_st_close(&t.a);
    sl_st_close(&t.b);
    return rc;
}

static void figures_of_floats(void **unused)
{
    float a[6] = {3, 4, 0, 0, 0, 0}, b[6] = {3, 4, 0, 0.5f, 0, -0.5f};
    sl_f16 half[6];
    const sl_tensor ta = sl_view2(a, SL_F32, 2, 3), tb = sl_view2(b, SL_F32, 2, 3);
    sl_difference d;
    sl_err err = {0};
    (void)unused;
    T_OK(compare_two(&d, &ta, &ta, &err));
    assert_true(d.same && d.at == -1 && d.rel_l2 == 0 && isinf(d.psnr));
    T_OK(compare_two(&d, &ta, &tb, &err));
    assert_false(d.same);
    assert_true(fabs(d.rel_l2 - sqrt(0.5) / 5) < 1e-12);
    assert_true(d.largest == 0.5 && d.at == 3 && d.of_a == 0 && d.of_b == 0.5);
    /* the mean square is 0.5 / 6, the peak 4 */
    assert_true(fabs(d.psnr - 10 * log10(16 / (0.5 / 6))) < 1e-9);
    /* another dtype, the same numbers */
    T_OK(sl_from_floats(half, SL_F16, a, 6, &err));
    const sl_tensor th = sl_view2(half, SL_F16, 2, 3);
    T_OK(compare_two(&d, &ta, &th, &err));
    assert_true(d.same);
}

static void figures_of_bytes_and_integers(void **unused)
{
    uint8_t a[4] = {0, 10, 20, 30}, b[4] = {0, 10, 20, 40};
    int64_t ids[2] = {7, 1ll << 40}, others[2] = {7, (1ll << 40) + 3};
    const sl_tensor ta = sl_view1(a, SL_U8, 4), tb = sl_view1(b, SL_U8, 4),
                    ti = sl_view1(ids, SL_I64, 2), tj = sl_view1(others, SL_I64, 2);
    sl_difference d;
    sl_err err = {0};
    (void)unused;
    T_OK(compare_two(&d, &ta, &tb, &err));
    assert_true(d.largest == 10 && d.at == 3);
    assert_true(fabs(d.psnr - 10 * log10(255.0 * 255 / 25)) < 1e-9);
    T_OK(compare_two(&d, &ti, &tj, &err));
    assert_true(d.largest == 3 && d.at == 1);
}

static void what_is_no_number(void **unused)
{
    float a[3] = {1, NAN, 2}, b[3] = {1, NAN, INFINITY};
    const sl_tensor ta = sl_view1(a, SL_F32, 3), tb = sl_view1(b, SL_F32, 3),
                    tc = sl_view1(b, SL_F32, 2);
    sl_difference d;
    sl_err err = {0};
    (void)unused;
    T_OK(compare_two(&d, &ta, &ta, &err));
    assert_true(d.same);
    T_OK(compare_two(&d, &ta, &tb, &err));
    assert_true(!d.same && isinf(d.largest) && d.at == 2 && !(d.rel_l2 <= 1e300));
    T_CODE(compare_two(&d, &ta, &tc, &err), SL_SHAPE);
    assert_string_equal(err.msg, "shapes [3] and [2]");
}

/* ---- order ---- */

static void put_tensor(const char *path, const char *name)
{
    float x[1] = {0};
    const sl_tensor t = sl_view1(x, SL_F32, 1);
    sl_err err = {0};
    T_OK(sl_st_save(path, 1, (const char *[]){name}, &t, &err));
}

static void a_dump_in_the_pipelines_order(void **unused)
{
    static const struct {
        const char *file, *tensor, *name, *maker;
    } ORDERED[] = {
        {"text", "ids.cond", "ids.cond", "text"},
        {"image", "clip", "clip", "image"},
        {"denoise", "noise", "noise", "denoise"},
        {"blocks/text", "text", "blocks/text", "denoise, once a job"},
        {"blocks/input", "input", "blocks/input", "denoise, before the blocks of step 0, cond"},
        {"blocks/block.0.attn1.q", "block.0.attn1.q", "blocks/block.0.attn1.q",
         "denoise, block 0 of step 0, cond"},
        {"blocks/block.0.ffn", "block.0.ffn", "blocks/block.0.ffn",
         "denoise, block 0 of step 0, cond"},
        {"blocks/block.0", "block.0", "blocks/block.0", "denoise, block 0 of step 0, cond"},
        {"blocks/block.2", "block.2", "blocks/block.2", "denoise, block 2 of step 0, cond"},
        {"blocks/block.10", "block.10", "blocks/block.10", "denoise, block 10 of step 0, cond"},
        {"blocks/uncond.block.1", "uncond.block.1", "blocks/uncond.block.1",
         "denoise, block 1 of step 0, uncond"},
        {"step.0", "step.0.latents", "step.0.latents", "denoise, step 0"},
        {"state.1", "x", "state.1.x", "denoise, before step 1"},
        {"blocks/step.1.uncond.block.0", "step.1.uncond.block.0", "blocks/step.1.uncond.block.0",
         "denoise, block 0 of step 1, uncond"},
        {"step.1", "step.1.latents", "step.1.latents", "denoise, step 1"},
        {"step.10", "step.10.latents", "step.10.latents", "denoise, step 10"},
        {"frames", "frames", "frames", "decode"},
        {"mine", "mine", "mine", ""},
    };
    const int n = (int)(sizeof ORDERED / sizeof *ORDERED);
    sl_dump d;
    sl_err err = {0};
    char maker[80];
    (void)unused;
    mkdir(at("dump"), 0700);
    mkdir(at("dump/blocks"), 0700);
    for (int i = n - 1; i >= 0; i--)
        put_tensor(f("%s/dump/%s.safetensors", root, ORDERED[i].file), ORDERED[i].tensor);
    T_OK(sl_dump_open(&d, at("dump"), &err));
    assert_int_equal(d.count, n);
    for (int i = 0; i < n; i++) {
        assert_string_equal(d.at[i].name, ORDERED[i].name);
        assert_string_equal(sl_dumped_maker(&d.at[i], maker, sizeof maker), ORDERED[i].maker);
    }
    sl_dump_close(&d);
    t_rmdir(at("dump"));
}

/* ---- the command ---- */

/* What `sluice diff` of these words writes as JSON, and its exit status. */
static json_t *diff(int status, const char *a, const char *b, const char *tol)
{
    size_t n;
    json_error_t why;
    command c = other("diff", a);
    add(&c, b);
    add(&c, "--json");
    if (tol) set(&c, "--tol", tol);
    const int got = finish(&c, start(&c));
    char *out = get_file(at("stdout"), &n), *line = get_file(at("stderr"), &n);
    if (got != status) fail_msg("exit status %d, want %d: %s%s", got, status, out, line);
    json_t *said = json_loads(out, 0, &why);
    if (!said) fail_msg("no JSON: %s: %s%s", why.text, out, line);
    free(out);
    free(line);
    return said;
}

static void first_is(const json_t *said, const char *name, const char *maker)
{
    const json_t *first = json_object_get(said, "first");
    const char *got = json_string_value(json_object_get(first, "name"));
    if (!got || strcmp(got, name)) fail_msg("the first is %s, want %s", got ? got : "none", name);
    assert_string_equal(json_string_value(json_object_get(first, "made_by")), maker);
}

static void dump_to(const char *folder, const char *model, const char *option, const char *value)
{
    command c = job();
    set(&c, "--model", model);
    set(&c, "--dump", folder);
    if (option) set(&c, option, value);
    add(&c, "--dump-blocks");
    works_(folder, &c, 1, true);
}

static void a_wrong_weight_is_found(void **unused)
{
    static const char SHARD[] = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors";
    size_t n;
    json_t *said;
    (void)unused;
    dump_to(at("right"), GOLDEN_MODEL, NULL, NULL);
    said = diff(0, at("right"), at("right"), NULL);
    assert_true(json_is_null(json_object_get(said, "first")));
    assert_int_equal(json_object_size(json_object_get(said, "jobs")), 0);
    json_decref(said);

    fresh_model();
    put_element(SHARD, "blocks.2.attn1.to_v.bias", 0, 1);
    dump_to(at("wrong"), at("model"), NULL, NULL);
    said = diff(1, at("right"), at("wrong"), NULL);
    first_is(said, "blocks/block.2", "denoise, block 2 of step 0, cond");
    assert_non_null(json_object_get(json_object_get(said, "jobs"), "model"));
    json_decref(said);
    json_decref(diff(0, at("right"), at("wrong"), "10")); /* all of it is within that */

    command c = other("diff", at("right"));
    add(&c, at("wrong"));
    assert_int_equal(finish(&c, start(&c)), 1);
    char *out = get_file(at("stdout"), &n);
    T_SAYS(out, "blocks/block.1 ");
    T_SAYS(out, "\nthe first that parts: blocks/block.2, made by denoise, block 2 of step 0, cond");
    free(out);

    /* another prompt, without a dump's frames */
    dump_to(at("other"), GOLDEN_MODEL, "--prompt", "a dog");
    unlink(at("other/frames.safetensors"));
    said = diff(1, at("right"), at("other"), NULL);
    first_is(said, "ids.cond", "text");
    assert_int_equal(json_integer_value(json_object_get(said, "in_one")), 1);
    json_decref(said);

    /* files, one tensor of two */
    said = diff(1, at("right/denoise.safetensors"), at("wrong/denoise.safetensors"), NULL);
    first_is(said, "latents", "denoise");
    json_decref(said);
    t_rmdir(at("right"));
    t_rmdir(at("wrong"));
    t_rmdir(at("other"));
}

static void refusals(void **unused)
{
    (void)unused;
    REFUSED(2, other("diff", at("out")), "diff wants two dumps, or two files of tensors");
    command c = other("diff", at("out"));
    add(&c, at("nowhere"));
    REFUSED(2, c, "out is no folder that --dump wrote: no tensors in it");
    put_tensor(at("x.safetensors"), "x");
    c = other("diff", at("x.safetensors"));
    add(&c, at("nowhere"));
    REFUSED(2, c, "nowhere", "No such file");
    set(&c, "--tol", "-1");
    REFUSED(2, c, "--tol is \"-1\", want a relative L2 of 0 or more");
    put_text(at("broken.safetensors"), "eight bytes and more");
    c = other("diff", at("x.safetensors"));
    add(&c, at("broken.safetensors"));
    REFUSED(2, c, "broken.safetensors");
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup_teardown(test, t_hostile_clean, t_hostile_clean)
    const struct CMUnitTest tests[] = {
        CLEAN(figures_of_floats),       CLEAN(figures_of_bytes_and_integers),
        CLEAN(what_is_no_number),       CLEAN(a_dump_in_the_pipelines_order),
        CLEAN(a_wrong_weight_is_found), CLEAN(refusals),
    };
    return cmocka_run_group_tests_name("diff", tests, t_hostile_setup, t_hostile_teardown);
}
