/* test_handovers.c - the pipeline's two lists and what is derived from them: names, numbers,
 * crews, replays; tensors and bytes for the real checkpoint's sizes and for tiny ones. */
#include "t.h"

#include "common/pipeline.h"

#define REAL "tests/golden/wan2.1-i2v-14b-720p-configs"

static void roles_and_handovers_have_one_name_each(void **state)
{
    (void)state;
    for (int r = 0; r < SL_ROLE_COUNT; r++)
        assert_int_equal(sl_role_by_name(sl_role_name((sl_role)r)), r);
    assert_string_equal(sl_role_name(SL_ROLE_COUNT), "?");
    assert_int_equal(sl_role_by_name("nobody"), -1);
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) {
        assert_int_equal(sl_handover_by_name(SL_HANDOVER[h].name), h);
        assert_int_equal(sl_handover_by_file(SL_HANDOVER[h].file), h);
    }
    assert_int_equal(sl_handover_by_name("denoise"), -1);
}

/* Numbers travel in messages, files lie in dumps: new rows come behind these. */
static void rows_keep_number_and_file(void **state)
{
    static const char *const FILE_OF[] = {"text", "image", "denoise", "frames"};
    static const char *const POOL[] = {"text", "image", "latents", "frames"};
    (void)state;
    for (int h = 0; h < 4; h++) {
        assert_string_equal(SL_HANDOVER[h].file, FILE_OF[h]);
        assert_string_equal(SL_HANDOVER[h].name, POOL[h]);
        assert_int_equal(SL_HANDOVER[h].how, h == SL_HANDOVER_FRAMES ? SL_CHUNKS : SL_WHOLE);
    }
}

/* What a job meets later takes from what it meets earlier, and one sender's chunks at most. */
static void rows_lead_from_the_first_role_to_the_last(void **state)
{
    (void)state;
    for (int r = 0; r < SL_ROLE_COUNT; r++) {
        int chunks = 0;
        for (int h = 0; h < SL_HANDOVER_COUNT; h++)
            chunks += SL_HANDOVER[h].to == (sl_role)r && SL_HANDOVER[h].how == SL_CHUNKS;
        assert_in_range(chunks, 0, 1);
        assert_int_equal(sl_chunks_to((sl_role)r) >= 0, chunks);
        assert_int_equal(sl_default_slots((sl_role)r), chunks ? 24 : 2);
        assert_true(sl_role_follows(SL_ROLE_MUX, (sl_role)r));
        assert_int_equal(sl_role_follows((sl_role)r, SL_ROLE_MUX), r == SL_ROLE_MUX);
    }
    for (int h = 0; h < SL_HANDOVER_COUNT; h++)
        assert_true(SL_HANDOVER[h].from < SL_HANDOVER[h].to);
}

static void a_replay_runs_what_follows(void **state)
{
    (void)state;
    assert_true(sl_role_follows(SL_ROLE_TEXT, SL_ROLE_TEXT));
    assert_false(sl_role_follows(SL_ROLE_IMAGE, SL_ROLE_TEXT));
    assert_false(sl_role_follows(SL_ROLE_TEXT, SL_ROLE_IMAGE));
    assert_true(sl_role_follows(SL_ROLE_DENOISE, SL_ROLE_IMAGE));
    assert_false(sl_role_follows(SL_ROLE_DENOISE, SL_ROLE_DECODE));
    assert_true(sl_role_follows(SL_ROLE_DECODE, SL_ROLE_TEXT));
}

static void the_mux_works_on_the_host(void **state)
{
    (void)state;
    assert_true(sl_role_on_host(SL_ROLE_MUX));
    assert_false(sl_role_on_host(SL_ROLE_TEXT));
    assert_false(sl_role_on_host(SL_ROLE_DECODE));
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

/* Each filter adds a role and a row; the rows of the lists keep their numbers and files. */
static void filters_stand_between(void **state)
{
    static const sl_filter_row FILTERS[] = {{"soft", SL_HANDOVER_LATENTS, 1},
                                            {"up", SL_HANDOVER_FRAMES, 2},
                                            {"look", SL_HANDOVER_LATENTS, 1},
                                            {"down", SL_HANDOVER_FRAMES, 0.75}};
    const sl_role SOFT = (sl_role)SL_ROLE_COUNT, UP = SOFT + 1, LOOK = SOFT + 2, DOWN = SOFT + 3;
    const sl_handover SOFTENED = (sl_handover)SL_HANDOVER_COUNT, LARGE = SOFTENED + 1,
                      LOOKED = SOFTENED + 2, SMALL = SOFTENED + 3;
    const sl_role ORDER[] = {SL_ROLE_TEXT, SL_ROLE_IMAGE, SL_ROLE_DENOISE,
                             SOFT,         LOOK,          SL_ROLE_DECODE,
                             UP,           DOWN,          SL_ROLE_MUX};
    const sl_job job = {.guidance = 5, .width = 832, .height = 480, .frames = 81};
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    char line[SL_FILTERS_TEXT];
    sl_model m;
    sl_err err = {0};
    (void)state;
    T_OK(sl_model_open(&m, REAL, &err));
    sl_pipeline_use(FILTERS, 4);
    assert_int_equal(sl_role_count(), SL_ROLE_COUNT + 4);
    for (int i = 0; i < sl_role_count(); i++) {
        assert_int_equal(sl_role_in_order(i), ORDER[i]);
        assert_int_equal(sl_role_place((int)ORDER[i]), i);
        assert_int_equal(sl_role_by_name(sl_role_name(ORDER[i])), ORDER[i]);
    }
    assert_string_equal(sl_pipeline_text(line), "latents:soft frames:up latents:look frames:down");
    assert_string_equal(SL_HANDOVER[LOOKED].name, "latents.look");
    assert_string_equal(SL_HANDOVER[LOOKED].file, "denoise.look");
    assert_int_equal(sl_handover_by_file("frames.down"), SMALL);
    assert_int_equal(SL_HANDOVER[SL_HANDOVER_LATENTS].to, SOFT);
    assert_int_equal(SL_HANDOVER[SOFTENED].to, LOOK);
    assert_int_equal(SL_HANDOVER[LOOKED].to, SL_ROLE_DECODE);
    assert_int_equal(sl_handover_to(SL_ROLE_DECODE, SL_HANDOVER_LATENTS), LOOKED);
    assert_int_equal(sl_handover_to(SL_ROLE_DENOISE, SL_HANDOVER_TEXT), SL_HANDOVER_TEXT);
    assert_int_equal(sl_handover_to(SL_ROLE_MUX, SL_HANDOVER_TEXT), -1);
    assert_int_equal(sl_filter_takes(DOWN), LARGE);
    assert_int_equal(sl_filter_gives(DOWN), SMALL);
    assert_int_equal(sl_chunks_to(SL_ROLE_MUX), SMALL);
    assert_int_equal(sl_crew_of(SL_ROLE_MUX), SL_ROLE_DECODE);
    assert_int_equal(sl_crew_of(LOOK), LOOK);
    assert_int_equal(sl_default_slots(UP), 24);
    assert_true(sl_role_follows(SL_ROLE_DECODE, SOFT) && sl_role_follows(UP, SL_ROLE_TEXT));
    assert_false(sl_role_follows(SOFT, LOOK) || sl_role_has_teams(SOFT) || sl_role_on_host(SOFT));

    const sl_grid g = sl_job_grid(&m, &job), area = sl_grid_of_area(&m.family, 832 * 480, 81);
    sl_handover_tensors(t, LOOKED, &m, &g, &job);
    want(&t[0], "latents", SL_F32, 4, 16, 21, 60, 104);
    sl_handover_tensors(t, LARGE, &m, &g, &job);
    want(&t[0], "rgb", SL_U8, 4, 4, 960, 1664, 3);
    sl_handover_tensors(t, SMALL, &m, &g, &job);
    want(&t[0], "rgb", SL_U8, 4, 4, 720, 1248, 3);
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].how == SL_CHUNKS)
            assert_int_equal(sl_handover_bytes((sl_handover)h, &m, &area),
                             sl_handover_bytes((sl_handover)h, &m, &g));
    sl_pipeline_use(NULL, 0);
    assert_int_equal(sl_role_count(), SL_ROLE_COUNT);
    assert_int_equal(SL_HANDOVER[SL_HANDOVER_LATENTS].to, SL_ROLE_DECODE);
    assert_int_equal(sl_handover_by_name("latents.soft"), -1);
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

/* Wan2.2 TI2V-5B: the picture is one latent frame, without a mask. */
static void tensors_of_ti2v(void **state)
{
    sl_model m;
    sl_err err = {0};
    sl_tensor_spec t[SL_HANDOVER_TENSORS];
    (void)state;
    T_OK(sl_model_open(&m, "tests/golden/wan2.2-ti2v-5b-configs", &err));
    const sl_grid g = sl_grid_of(&m.family, 1280, 704, 121);
    assert_int_equal(sl_edge(&m.family), 32);
    assert_int_equal(sl_condition_frames(&m.family, 121), 1);
    assert_int_equal(m.family.fps, 24);
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_IMAGE, &m, &g, NULL), 1);
    assert_memory_equal(t[0].shape, ((int64_t[]){48, 1, 44, 80}), 4 * sizeof(int64_t));
    assert_int_equal(sl_handover_tensors(t, SL_HANDOVER_LATENTS, &m, &g, NULL), 1);
    assert_memory_equal(t[0].shape, ((int64_t[]){48, 31, 44, 80}), 4 * sizeof(int64_t));
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
        cmocka_unit_test(rows_keep_number_and_file),
        cmocka_unit_test(rows_lead_from_the_first_role_to_the_last),
        cmocka_unit_test(a_replay_runs_what_follows),
        cmocka_unit_test(the_mux_works_on_the_host),
        cmocka_unit_test(tensors_of_the_real_checkpoint),
        cmocka_unit_test(filters_stand_between),
        cmocka_unit_test(bytes_of_the_real_checkpoint),
        cmocka_unit_test(what_a_job_takes),
        cmocka_unit_test(tensors_of_ti2v),
        cmocka_unit_test(a_grid_of_another_family),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
