/* test_clip.c - the CLIP vision tower against the reference, and what it refuses. */
#include "tests/t_net.h"

#include "graphs/clip.h"

#define TOKENS 257

typedef struct {
    sl_ctx ctx, plan;
    sl_loader *loader;
    sl_clip *clip;
    sl_clip_config config;
    sl_st *golden;
} fixture;

static int open_all(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    sl_err err = {0};
    char *json = t_text(t_golden("tiny-i2v/model/image_encoder/config.json"));
    T_OK(sl_model_parse_clip(&f->config, json, strlen(json), "config.json", &err));
    free(json);
    T_OK(sl_ctx_open(&f->ctx, &sl_ops_cpu, 0, &err));
    T_OK(sl_ctx_open(&f->plan, &sl_ops_plan, 0, &err));
    T_OK(sl_loader_file(&f->loader, &f->ctx, t_golden("tiny-i2v/model/image_encoder"), "model",
                        "image_encoder", &err));
    f->clip = sl_clip_new(&f->config, f->loader);
    T_OK(sl_loader_finish(f->loader, &err));
    T_OK(sl_st_open_file(&f->golden, t_golden("tiny-i2v/i2v-96x64x9.safetensors"), &err));
    *state = f;
    return 0;
}

static int close_all(void **state)
{
    fixture *f = *state;
    sl_clip_free(&f->clip);
    sl_clip_free(&f->clip); /* twice is fine */
    sl_loader_close(&f->loader);
    sl_st_close(&f->golden);
    sl_ctx_close(&f->ctx);
    sl_ctx_close(&f->plan);
    free(f);
    return 0;
}

static void count_layers(void *user, sl_ctx *ctx, const char *name, const sl_tensor *t)
{
    (void)ctx, (void)t;
    T_SAYS(name, "clip.layer.");
    ++*(int *)user;
}

static void penultimate_as_the_reference(void **state)
{
    fixture *f = *state;
    sl_err err = {0};
    int layers = 0;
    const int64_t n = TOKENS * (int64_t)f->config.hidden;
    float *y = malloc(sizeof *y * (size_t)n);
    sl_tensor out = sl_view2(y, SL_F32, TOKENS, f->config.hidden),
              no_data = sl_view2(NULL, SL_F32, TOKENS, f->config.hidden);
    float *pixels = t_pixels(f->golden, "clip.pixels", 3 * 224 * 224, 3, T_CLIP_MEAN, T_CLIP_STD);
    sl_clip_encode(&f->plan, f->clip, NULL, &no_data);
    t_reserve(&f->ctx, &f->plan);
    f->ctx.tap = count_layers;
    f->ctx.tap_user = &layers;
    sl_clip_encode(&f->ctx, f->clip, pixels, &out);
    f->ctx.tap = NULL;
    T_OK(sl_ctx_error(&f->ctx, &err));
    /* two float32 computations: the exactness that is promised */
    T_REL(y, t_floats(f->golden, n, "clip.penultimate"), n, 1e-4);
    assert_int_equal(layers, f->config.layers - 1);
    assert_int_equal(f->ctx.arena_peak, f->plan.arena_peak);
    free(pixels);
    free(y);
}

static void refuses_an_output_of_another_shape(void **state)
{
    fixture *f = *state;
    sl_err err = {0};
    sl_tensor out = sl_view2(NULL, SL_F32, 256, f->config.hidden);
    sl_clip_encode(&f->plan, f->clip, NULL, &out);
    T_CODE(sl_ctx_error(&f->plan, &err), SL_SHAPE);
    T_SAYS(err.msg, "clip: output has shape [256, 96], want [257, 96]");
}

/* transformers before 5 put "vision_model." before every name, and so do the published
 * checkpoints. */
static void reads_names_with_the_old_prefix(void **state)
{
    fixture *f = *state;
    sl_err err = {0};
    sl_st *st = NULL;
    sl_loader *l = NULL;
    char path[1400], dir[300];
    T_OK(sl_st_open_dir(&st, t_golden("tiny-i2v/model/image_encoder"), "model", &err));
    const int n = sl_st_size(st);
    char(*names)[128] = calloc((size_t)n, sizeof *names);
    const char **pointers = calloc((size_t)n, sizeof *pointers);
    sl_tensor *tensors = calloc((size_t)n, sizeof *tensors);
    for (int i = 0; i < n; i++) {
        snprintf(names[i], sizeof names[i], "vision_model.%s", sl_st_at(st, i)->name);
        pointers[i] = names[i];
        tensors[i] = sl_st_at(st, i)->t;
    }
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    T_OK(sl_st_save(t_join(path, sizeof path, dir, "model.safetensors"), n, pointers, tensors,
                    &err));
    T_OK(sl_loader_file(&l, &f->ctx, dir, "model", "image_encoder", &err));
    sl_clip *clip = sl_clip_new(&f->config, l);
    T_OK(sl_loader_finish(l, &err));
    assert_int_equal(sl_loader_unused(l), 0);
    sl_clip_free(&clip);
    sl_loader_close(&l);
    sl_st_close(&st);
    free(names);
    free(pointers);
    free(tensors);
    t_rmdir(dir);
}

/* The last layer and the pooled head are known and not asked for. */
static void leaves_nothing_unexplained(void **state)
{
    fixture *f = *state;
    assert_int_equal(sl_loader_unused(f->loader), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(penultimate_as_the_reference),
        cmocka_unit_test(refuses_an_output_of_another_shape),
        cmocka_unit_test(reads_names_with_the_old_prefix),
        cmocka_unit_test(leaves_nothing_unexplained),
    };
    return cmocka_run_group_tests_name("clip", tests, open_all, close_all);
}
