/* test_lora_run.c - `sluice run` with LoRA and distilled steps against what the reference
 * computed.
 *
 *   test_lora_run [PARENT]      the folder that holds tiny-i2v, lora-i2v and distill-4step
 *
 * One run, whose jobs each want another set, in every naming: so each job also shows that the
 * set
 * before it has gone. The first blocks are within 1e-4, each step's latents within 5e-4 (the
 * bounds
 * of all golden cases), and the last job, without a LoRA again, gives the first one's bytes.
 * SL_SHOW=1 prints the distances. takes: 2 s. */
#include "tests/t_dump.h"

#include <jansson.h>

/* A LoRA that did nothing would be this near to the base: they move 0.17 to 0.4. */
#define DIFFER 0.1

static const char *parent = "tests/golden";
static char work[256], parent_path[512];

static const struct {
    const char *name, *set; /* of the golden file; NULL: the distilled case */
    const char *files[2];   /* FILE.safetensors[:STRENGTH] */
} JOBS[] = {
    {"base", "base", {NULL, NULL}},
    {"peft", "a.1.0", {"a-peft.safetensors", NULL}},
    {"original", "a.1.0", {"a-original.safetensors:1", NULL}},
    {"kohya", "a.1.0", {"a-kohya.safetensors:1.0", NULL}},
    {"weak", "a.0.6", {"a-peft.safetensors:0.6", NULL}},
    {"both", "a.0.8+b.0.5", {"a-kohya.safetensors:0.8", "b-peft.safetensors:.5"}},
    {"distilled", NULL, {"a-original.safetensors", NULL}},
    {"all", "d.merged.1.0", {"d-lightx2v.safetensors", NULL}},
    {"less", "d.merged.0.6", {"d-lightx2v.safetensors:0.6", NULL}},
    {"again", "base", {NULL, NULL}},
};
#define JOB_COUNT ((int)(sizeof JOBS / sizeof *JOBS))

static json_t *job_line(int i, const json_t *prompts)
{
    const bool distilled = !JOBS[i].set;
    const char *case_of = distilled ? "distill-4step/distill-48x32x5" : "lora-i2v/lora-48x32x5";
    json_t *files = json_array();
    for (int k = 0; k < 2 && JOBS[i].files[k]; k++)
        json_array_append_new(files,
                              json_string(t_format("%s/lora-i2v/%s", parent, JOBS[i].files[k])));
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:b, s:b, s:s, s:s, s:o}",
                          "image", t_format("%s/%s.png", parent, case_of), "prompt",
                          json_string_value(json_array_get(prompts, 0)), "negative",
                          json_string_value(json_array_get(prompts, 7)), "noise",
                          t_format("%s/%s.safetensors", parent, case_of), "dump",
                          t_format("%s/%s", work, JOBS[i].name), "width", 48, "height", 32,
                          "frames", 5, "dump_steps", 1, "dump_blocks", 1, "output",
                          t_format("%s/%s.mp4", work, JOBS[i].name), "json",
                          t_format("%s/%s.json", work, JOBS[i].name), "lora", files);
    /* distilled: 4 steps, shift 5 and no guidance are the sampler's own */
    if (distilled) json_object_set_new(o, "sampler", json_string("lightx2v"));
    else json_object_set_new(o, "steps", json_integer(3));
    if (!distilled) json_object_set_new(o, "guidance", json_real(4));
    return o;
}

/* All jobs, in one pipeline. */
static int run_all(void **state)
{
    json_t *prompts = json_load_file(t_format("%s/tiny-i2v/prompts.json", parent), 0, NULL);
    (void)state;
    assert_non_null(prompts);
    snprintf(work, sizeof work, "%s", t_tmpdir());
    FILE *f = fopen(t_format("%s/jobs.jsonl", work), "w");
    assert_non_null(f);
    for (int i = 0; i < JOB_COUNT; i++) {
        json_t *o = job_line(i, prompts);
        char *text = json_dumps(o, JSON_COMPACT);
        assert_non_null(text);
        fprintf(f, "%s\n", text);
        free(text);
        json_decref(o);
    }
    fclose(f);
    json_decref(prompts);
    const char *command =
        t_format("%s/sluice run --quiet --model %s/tiny-i2v/model --jobs %s/jobs.jsonl", t_bin(),
                 parent, work);
    int status = system(command);
    if (status) fail_msg("exit status %d: %s", status, command);
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    t_rmdir(work);
    return 0;
}

static void job_as_the_reference(void **state)
{
    const int i = (int)(intptr_t)*state;
    const char *job = JOBS[i].name, *set = JOBS[i].set;
    sl_st *want =
        t_open_st(t_format("%s/%s.safetensors", parent,
                           set ? "lora-i2v/lora-48x32x5" : "distill-4step/distill-48x32x5"));
    t_as_reference(job, t_format("%s/%s", work, job), want, set ? set : "lightx2v", set ? 3 : 0,
                   set ? 3 : 4);
    if (set && strcmp(set, "base")) {
        sl_st *got = t_open_st(t_format("%s/%s/denoise.safetensors", work, job));
        const double moved = t_distance(got, "step.2.latents", want, "base.step.2.latents");
        if (!(moved > DIFFER)) fail_msg("%s: the LoRA moves the latents by %.3g alone", job, moved);
        sl_st_close(&got);
    }
    sl_st_close(&want);
}

/* Two jobs gave the same latents, bit for bit. */
static void same_latents(const char *job, const char *as)
{
    sl_st *a = t_open_st(t_format("%s/%s/denoise.safetensors", work, job)),
          *b = t_open_st(t_format("%s/%s/denoise.safetensors", work, as));
    const sl_st_entry *x = sl_st_find(a, "latents"), *y = sl_st_find(b, "latents");
    assert_true(x && y && sl_same_shape(&x->t, &y->t));
    assert_memory_equal(x->t.data, y->t.data, sl_bytes(&x->t));
    sl_st_close(&a);
    sl_st_close(&b);
}

/* Taken off means: the very weights of before. */
static void without_a_lora_the_bytes_are_the_same(void **state)
{
    (void)state;
    same_latents("again", "base");
}

/* The namings of one LoRA are the same numbers, so the same bytes. */
static void namings_make_no_difference(void **state)
{
    (void)state;
    same_latents("original", "peft");
    same_latents("kohya", "peft");
}

/* The report says which files, how strong, and which content: one, whatever the naming. */
static void reports_name_the_lora(void **state)
{
    json_t *both = json_load_file(t_format("%s/both.json", work), 0, NULL),
           *peft = json_load_file(t_format("%s/peft.json", work), 0, NULL),
           *base = json_load_file(t_format("%s/base.json", work), 0, NULL);
    json_t *rows = json_object_get(both, "lora");
    (void)state;
    assert_int_equal(json_array_size(rows), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "file")),
                        "a-kohya.safetensors");
    assert_true(json_number_value(json_object_get(json_array_get(rows, 1), "strength")) == 0.5);
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(rows, 0), "id")),
        json_string_value(json_object_get(json_array_get(json_object_get(peft, "lora"), 0), "id")));
    assert_null(json_object_get(base, "lora"));
    assert_null(json_object_get(both, "lora_2"));
    json_decref(both);
    json_decref(peft);
    json_decref(base);
}

int main(int argc, char **argv)
{
    struct CMUnitTest tests[JOB_COUNT + 3];
    if (argc > 1) {
        snprintf(parent_path, sizeof parent_path, "%s", argv[1]);
        parent = parent_path;
    }
    for (int i = 0; i < JOB_COUNT; i++)
        tests[i] = (struct CMUnitTest){JOBS[i].name, job_as_the_reference, NULL, NULL,
                                       (void *)(intptr_t)i};
    tests[JOB_COUNT] = (struct CMUnitTest)cmocka_unit_test(without_a_lora_the_bytes_are_the_same);
    tests[JOB_COUNT + 1] = (struct CMUnitTest)cmocka_unit_test(namings_make_no_difference);
    tests[JOB_COUNT + 2] = (struct CMUnitTest)cmocka_unit_test(reports_name_the_lora);
    return cmocka_run_group_tests_name("lora_run", tests, run_all, remove_all);
}
