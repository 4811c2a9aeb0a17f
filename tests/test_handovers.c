/* test_handovers.c - the pipeline's two lists: what is derived from them is what each user of
 * it had written down before, for the real checkpoint's sizes and for tiny ones. */
#include "t.h"

#include "common/pipeline.h"

#define REAL "tests/golden/wan2.1-i2v-14b-720p-configs"

static void roles_and_handovers_have_one_name_each(void **state)
{
    static const char *const ROLES[] = {"text", "image", "denoise", "decode", "mux"};
    (void)state;
    assert_int_equal(SL_ROLE_COUNT, 5);
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        assert_string_equal(sl_role_name((sl_role)r), ROLES[r]);
        assert_int_equal(sl_role_by_name(ROLES[r]), r);
    }
    assert_string_equal(sl_role_name(SL_ROLE_COUNT), "?");
    assert_int_equal(sl_role_by_name("upscale"), -1);
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) {
        assert_int_equal(sl_handover_by_name(SL_HANDOVER[h].name), h);
        assert_int_equal(sl_handover_by_file(SL_HANDOVER[h].file), h);
    }
    assert_int_equal(sl_handover_by_name("denoise"), -1);
}

/* The lists that stood in the dispatcher, sizes, the dump and the configuration. */
static void derived_lists_are_the_written_ones(void **state)
{
    static const sl_role PRODUCER[] = {SL_ROLE_TEXT, SL_ROLE_IMAGE, SL_ROLE_DENOISE,
                                       SL_ROLE_DECODE};
    static const sl_role RECEIVER[] = {SL_ROLE_DENOISE, SL_ROLE_DENOISE, SL_ROLE_DECODE,
                                       SL_ROLE_MUX};
    static const char *const FILE_OF[] = {"text", "image", "denoise", "frames"};
    static const char *const POOL[] = {"text", "image", "latents", "frames"};
    static const int SLOTS[] = {2, 2, 2, 2, 24};
    (void)state;
    assert_int_equal(SL_HANDOVER_COUNT, 4);
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) {
        assert_int_equal(SL_HANDOVER[h].from, PRODUCER[h]);
        assert_int_equal(SL_HANDOVER[h].to, RECEIVER[h]);
        assert_string_equal(SL_HANDOVER[h].file, FILE_OF[h]);
        assert_string_equal(SL_HANDOVER[h].name, POOL[h]);
        assert_int_equal(SL_HANDOVER[h].how, h == SL_HANDOVER_FRAMES ? SL_CHUNKS : SL_WHOLE);
    }
    for (int r = 0; r < SL_ROLE_COUNT; r++)
        assert_int_equal(sl_default_slots((sl_role)r), SLOTS[r]);
}

static void want(const sl_tensor_spec *t, const char *name, sl_dtype dtype, int rank, int64_t a,
                 int64_t b, int64_t c, int64_t d)
{
    const int64_t shape[4] = {a, b, c, d};
    assert_string_equal(t->name, name);
    assert_int_equal(t->dtype, dtype);
    assert_int_equal(t->rank, rank);
    for (int i = 0; i < rank; i++) assert_int_equal(t->shape[i], shape[i]);
}

static void tensors_of_the_real_checkpoint(void **state)
{
    sl_model m;
    sl_err err = {0};
    sl_job job = {.guidance = 5, .width = 1280, .height = 720, .frames = 81};
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    (void)state;
    T_OK(sl_model_open(&m, REAL, &err));
    sl_grid g = sl_job_grid(&m, &job);
    assert_int_equal(g.latent_frames, 21);
    assert_int_equal(g.latent_height, 90);
    assert_int_equal(g.latent_width, 160);
    assert_int_equal(g.tokens, 75600);
    assert_int_equal(g.chunks, 21);
    assert_int_equal(g.chunk_frames, 4);

    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_TEXT, &m, &g, &job), 2);
    want(&t[0], "cond", SL_F32, 2, 512, 4096, 0, 0);
    want(&t[1], "uncond", SL_F32, 2, 512, 4096, 0, 0);
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_IMAGE, &m, &g, &job), 2);
    want(&t[0], "condition", SL_F32, 4, 20, 21, 90, 160);
    want(&t[1], "clip", SL_F32, 2, 257, 1280, 0, 0);
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_LATENTS, &m, &g, &job), 1);
    want(&t[0], "latents", SL_F32, 4, 16, 21, 90, 160);
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_FRAMES, &m, &g, &job), 1);
    want(&t[0], "rgb", SL_U8, 4, 4, 720, 1280, 3);
    job.guidance = 1;
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_TEXT, &m, &g, &job), 1);
}

/* Slots of videos of up to 1280x720x81, as sl_slot_bytes wrote them before: without the 4096 bytes
 * that it added for a table that lies elsewhere. */
static void bytes_of_the_real_checkpoint(void **state)
{
    sl_model m;
    sl_err err = {0};
    (void)state;
    T_OK(sl_model_open(&m, REAL, &err));
    sl_grid g = sl_grid_of_area(&m.family, 1280 * 720, 81);
    const int64_t latent = 1280 * 720 / 64 * 21;
    assert_int_equal(sl_handover_bytes(SL_HANDOVER_TEXT, &m, &g), 2 * 512 * 4096 * 4);
    assert_int_equal(sl_handover_bytes(SL_HANDOVER_IMAGE, &m, &g),
                     latent * 20 * 4 + 257 * 1280 * 4);
    assert_int_equal(sl_handover_bytes(SL_HANDOVER_LATENTS, &m, &g), latent * 16 * 4);
    assert_int_equal(sl_handover_bytes(SL_HANDOVER_FRAMES, &m, &g), 1280 * 720 * 3 * 4);
}

/* A first and a last picture: asked of the family and of the job. */
static void what_a_job_takes(void **state)
{
    sl_model m = {.family = {.picture = SL_NEVER, .spatial = 8, .temporal = 4, .patch = 2}};
    sl_job job = {.width = 64};
    (void)state;
    assert_false(sl_takes_picture(&m.family, NULL));
    assert_false(sl_handover_applies(SL_HANDOVER_IMAGE, &m, &job));
    assert_true(sl_handover_applies(SL_HANDOVER_TEXT, &m, &job));
    m.family.picture = SL_PER_JOB;
    assert_true(sl_takes_picture(&m.family, NULL));
    assert_false(sl_takes_picture(&m.family, &job));
    snprintf(job.image, sizeof job.image, "a.png");
    assert_true(sl_handover_applies(SL_HANDOVER_IMAGE, &m, &job));
    m.family.picture = SL_ALWAYS;
    m.family.clip = true;
    m.clip = (sl_clip_config){.image = 224, .patch = 14};
    *job.image = 0;
    assert_true(sl_takes_picture(&m.family, &job));
    assert_int_equal(sl_image_tokens(&m, &job), 257);
    m.family.last_picture = SL_ALWAYS;
    assert_int_equal(sl_image_tokens(&m, &job), 257);
    assert_int_equal(sl_image_tokens(&m, NULL), 514);
    snprintf(job.last_image, sizeof job.last_image, "b.png");
    assert_int_equal(sl_image_tokens(&m, &job), 514);
}

/* Another VAE and patch: nothing takes 8, 4 or 2 for granted. */
static void a_grid_of_another_family(void **state)
{
    const sl_family f = {.spatial = 16, .temporal = 4, .patch = 2};
    (void)state;
    sl_grid g = sl_grid_of(&f, 1280, 704, 121);
    assert_int_equal(g.latent_frames, 31);
    assert_int_equal(g.latent_height, 44);
    assert_int_equal(g.latent_width, 80);
    assert_int_equal(g.tokens, 31 * 22 * 40);
    g = sl_grid_of_area(&f, 1280 * 704, 121);
    assert_int_equal(g.latent_width * g.latent_height, 44 * 80);
    assert_int_equal(g.tokens, 31 * 22 * 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_and_handovers_have_one_name_each),
        cmocka_unit_test(derived_lists_are_the_written_ones),
        cmocka_unit_test(tensors_of_the_real_checkpoint),
        cmocka_unit_test(bytes_of_the_real_checkpoint),
        cmocka_unit_test(what_a_job_takes),
        cmocka_unit_test(a_grid_of_another_family),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
