/* test_umt5.c - the UMT5 encoder against the reference, layer by layer, and what it
 * refuses. */
#include "tests/t_net.h"

#include "graphs/umt5.h"

static const char *golden_dir = "tests/golden/tiny-i2v";

typedef struct {
    sl_ctx ctx, plan;
    sl_loader *loader;
    sl_umt5 *umt5;
    sl_umt5_config config;
    sl_st *text; /* golden figures */
    sl_err err;
} fixture;

static int open_all(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    char path[1200];
    sl_err err = {0};
    char *json = t_text(t_join(path, sizeof path, golden_dir, "model/text_encoder/config.json"));
    T_OK(sl_model_parse_umt5(&f->config, json, strlen(json), "config.json", &err));
    free(json);
    T_OK(sl_ctx_open(&f->ctx, &sl_ops_cpu, 0, &err));
    T_OK(sl_ctx_open(&f->plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_file(&f->loader, &f->ctx,
                        t_join(path, sizeof path, golden_dir, "model/text_encoder"), "model",
                        "text_encoder", &err));
    f->umt5 = sl_umt5_new(&f->config, f->loader);
    T_OK(sl_loader_finish(f->loader, &err));
    T_OK(
        sl_st_open_file(&f->text, t_join(path, sizeof path, golden_dir, "text.safetensors"), &err));
    *state = f;
    return 0;
}

static int close_all(void **state)
{
    fixture *f = *state;
    sl_umt5_free(&f->umt5);
    sl_umt5_free(&f->umt5); /* twice is fine */
    sl_loader_close(&f->loader);
    sl_st_close(&f->text);
    sl_ctx_close(&f->ctx);
    sl_ctx_close(&f->plan);
    free(f);
    return 0;
}

/* Encode prompt `i`; the caller frees. */
static float *encode(fixture *f, int i, int *n)
{
    sl_err err = {0};
    const int32_t *ids = t_ids(f->text, i, n);
    float *y = malloc(sizeof *y * (size_t)*n * (size_t)f->config.d_model);
    sl_tensor out = sl_view2(y, SL_F32, *n, f->config.d_model),
              no_data = sl_view2(NULL, SL_F32, *n, f->config.d_model);
    sl_umt5_encode(&f->plan, f->umt5, ids, *n, &no_data);
    t_reserve(&f->ctx, &f->plan);
    sl_umt5_encode(&f->ctx, f->umt5, ids, *n, &out);
    T_OK(sl_ctx_error(&f->ctx, &err));
    return y;
}

static void compare_layer(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    fixture *f = user;
    (void)ctx;
    double e =
        t_rel_l2(t->data, t_floats(f->text, sl_count(t), "layer.0.%s", name + strlen("layer.")),
                 sl_count(t));
    if (!(e <= 1e-4))
        fail_msg("umt5: %s is the first that is off: relative L2 %.3g, want <= 1e-4", name, e);
    f->err.code++; /* counts the layers seen */
}

static void every_layer_as_the_reference(void **state)
{
    fixture *f = *state;
    int n;
    f->ctx.tap = compare_layer;
    f->ctx.tap_user = f;
    free(encode(f, 0, &n));
    f->ctx.tap = NULL;
    assert_int_equal((int)f->err.code, f->config.layers + 1);
}

/* Prompts of 14, 1, 29 and 512 tokens: the last reaches every distance bucket. */
static void every_length_as_the_reference(void **state)
{
    static const int PROMPTS[] = {0, 1, 5, 9};
    fixture *f = *state;
    for (size_t i = 0; i < sizeof PROMPTS / sizeof *PROMPTS; i++) {
        int n;
        float *y = encode(f, PROMPTS[i], &n);
        double e =
            t_rel_l2(y, t_floats(f->text, (int64_t)n * f->config.d_model, "embed.%d", PROMPTS[i]),
                     (int64_t)n * f->config.d_model);
        if (!(e <= 1e-4))
            fail_msg("umt5: prompt %d of %d tokens: relative L2 %.3g, want <= 1e-4", PROMPTS[i], n,
                     e);
        free(y);
    }
}

static void the_planned_arena_is_what_is_used(void **state)
{
    fixture *f = *state;
    int n;
    free(encode(f, 9, &n));
    assert_int_equal(f->ctx.arena_peak, f->plan.arena_peak);
    assert_int_equal(f->ctx.arena_used, 0);
}

static void refuses_lengths_out_of_range(void **state)
{
    fixture *f = *state;
    sl_err err = {0};
    int32_t ids[513] = {0};
    sl_tensor out = sl_view2(NULL, SL_F32, 513, f->config.d_model);
    sl_umt5_encode(&f->plan, f->umt5, ids, 513, &out);
    T_CODE(sl_ctx_error(&f->plan, &err), SL_ARG);
    T_SAYS(err.msg, "umt5: 513 tokens, want 1 to 512");
    sl_umt5_encode(&f->plan, f->umt5, ids, 0, &out);
    T_CODE(sl_ctx_error(&f->plan, &err), SL_ARG);
}

static void refuses_an_id_beyond_the_vocabulary(void **state)
{
    fixture *f = *state;
    sl_err err = {0};
    int n;
    free(encode(f, 1, &n)); /* reserves */
    float y[128];
    int32_t id = f->config.vocab;
    sl_tensor out = sl_view2(y, SL_F32, 1, f->config.d_model);
    assert_true(f->config.d_model <= 128);
    sl_umt5_encode(&f->ctx, f->umt5, &id, 1, &out);
    assert_int_not_equal(sl_ctx_error(&f->ctx, &err), SL_OK);
    T_SAYS(err.msg, "1600");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_as_the_reference),
        cmocka_unit_test(every_length_as_the_reference),
        cmocka_unit_test(the_planned_arena_is_what_is_used),
        cmocka_unit_test(refuses_lengths_out_of_range),
        cmocka_unit_test(refuses_an_id_beyond_the_vocabulary),
    };
    if (argc > 1) golden_dir = argv[1];
    return cmocka_run_group_tests_name("umt5", tests, open_all, close_all);
}
