/* test_lora_run.c - `sluice run` with LoRA and distilled steps against what the reference computed.
 *
 *   test_lora_run [PARENT]      the folder that holds tiny-i2v, lora-i2v and distill-4step
 *
 * One run, whose jobs each want another set, in every naming: so each job also shows that the set
 * before it has gone. The first blocks are within 1e-4, each step's latents within 5e-4 (the bounds
 * of all golden cases), and the last job, without a LoRA again, gives the first one's bytes.
 * SL_SHOW=1 prints the distances. */
#include "tests/t_net.h"

#include <jansson.h>
#include <unistd.h>

#define LAYER_TOL 1e-4
#define STEP_TOL 5e-4
#define DIFFER                                                                                     \
    0.1 /* a LoRA that did nothing would be this near to the base: they move 0.17 to 0.4 */

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

static const char *path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static const char *path(const char *fmt, ...)
{
    static char buf[8][1024];
    static int next;
    va_list ap;
    char *b = buf[next++ % 8];
    va_start(ap, fmt);
    vsnprintf(b, sizeof buf[0], fmt, ap);
    va_end(ap);
    return b;
}

static json_t *job_line(int i, const json_t *prompts)
{
    const bool distilled = !JOBS[i].set;
    const char *case_of = distilled ? "distill-4step/distill-48x32x5" : "lora-i2v/lora-48x32x5";
    json_t *files = json_array();
    for (int k = 0; k < 2 && JOBS[i].files[k]; k++)
        json_array_append_new(files, json_string(path("%s/lora-i2v/%s", parent, JOBS[i].files[k])));
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:b, s:b, s:s, s:s, s:o}", "image",
        path("%s/%s.png", parent, case_of), "prompt", json_string_value(json_array_get(prompts, 0)),
        "negative", json_string_value(json_array_get(prompts, 7)), "noise",
        path("%s/%s.safetensors", parent, case_of), "dump", path("%s/%s", work, JOBS[i].name),
        "width", 48, "height", 32, "frames", 5, "dump_steps", 1, "dump_blocks", 1, "output",
        path("%s/%s.mp4", work, JOBS[i].name), "json", path("%s/%s.json", work, JOBS[i].name),
        "lora", files);
    /* distilled: 4 steps, shift 5 and no guidance are the sampler's own */
    if (distilled) json_object_set_new(o, "sampler", json_string("lightx2v"));
    else json_object_set_new(o, "steps", json_integer(3));
    if (!distilled) json_object_set_new(o, "guidance", json_real(4));
    return o;
}

/* All jobs, in one pipeline. */
static int run_all(void **state)
{
    const char *bin = getenv("SLUICE_BIN");
    json_t *prompts = json_load_file(path("%s/tiny-i2v/prompts.json", parent), 0, NULL);
    (void)state;
    assert_non_null(prompts);
    snprintf(work, sizeof work, "%s", t_tmpdir());
    FILE *f = fopen(path("%s/jobs.jsonl", work), "w");
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
        path("%s/sluice run --quiet --model %s/tiny-i2v/model --jobs %s/jobs.jsonl",
             bin ? bin : "bin", parent, work);
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

static sl_st *open_st(const char *name)
{
    sl_st *st = NULL;
    sl_err err = {0};
    T_OK(sl_st_open_file(&st, name, &err));
    return st;
}

static double distance(const sl_st *got, const char *name, const sl_st *want, const char *as)
{
    const sl_st_entry *g = sl_st_find(got, name);
    if (!g) fail_msg("the dump has no %s", name);
    const int64_t n = sl_count(&g->t);
    return t_rel_l2(g->t.data, t_floats(want, n, "%s", as), n);
}

static void check_near(const char *job, const char *what, double e, double tol)
{
    if (getenv("SL_SHOW")) printf("%s: %s %.3g\n", job, what, e);
    if (!(e <= tol)) fail_msg("%s: %s is off: relative L2 %.3g, want <= %g", job, what, e, tol);
}

static void job_as_the_reference(void **state)
{
    const int i = (int)(intptr_t)*state;
    const char *job = JOBS[i].name, *set = JOBS[i].set;
    sl_st *want = open_st(path("%s/%s.safetensors", parent,
                               set ? "lora-i2v/lora-48x32x5" : "distill-4step/distill-48x32x5")),
          *got = open_st(path("%s/%s/denoise.safetensors", work, job));
    for (int k = 0; k < 3 && set; k++) {
        sl_st *block = open_st(path("%s/%s/blocks/block.%d.safetensors", work, job, k));
        check_near(job, path("block.%d", k),
                   distance(block, path("block.%d", k), want, path("%s.dit.block.%d", set, k)),
                   LAYER_TOL);
        sl_st_close(&block);
    }
    for (int k = 0; k < (set ? 3 : 4); k++)
        check_near(job, path("step.%d.latents", k),
                   distance(got, path("step.%d.latents", k), want,
                            path("%s.step.%d.latents", set ? set : "lightx2v", k)),
                   STEP_TOL);
    if (set && strcmp(set, "base")) {
        const double moved = distance(got, "step.2.latents", want, "base.step.2.latents");
        if (!(moved > DIFFER)) fail_msg("%s: the LoRA moves the latents by %.3g alone", job, moved);
    }
    sl_st_close(&want);
    sl_st_close(&got);
}

/* Taken off means: the very weights of before. */
static void without_a_lora_the_bytes_are_the_same(void **state)
{
    sl_st *a = open_st(path("%s/base/denoise.safetensors", work)),
          *b = open_st(path("%s/again/denoise.safetensors", work));
    const sl_st_entry *x = sl_st_find(a, "latents"), *y = sl_st_find(b, "latents");
    (void)state;
    assert_true(x && y && sl_same_shape(&x->t, &y->t));
    assert_memory_equal(x->t.data, y->t.data, sl_bytes(&x->t));
    sl_st_close(&a);
    sl_st_close(&b);
}

/* The namings of one LoRA are the same numbers, so the same bytes. */
static void namings_make_no_difference(void **state)
{
    (void)state;
    for (int i = 2; i <= 3; i++) {
        sl_st *a = open_st(path("%s/peft/denoise.safetensors", work)),
              *b = open_st(path("%s/%s/denoise.safetensors", work, JOBS[i].name));
        const sl_st_entry *x = sl_st_find(a, "latents"), *y = sl_st_find(b, "latents");
        assert_true(x && y && sl_same_shape(&x->t, &y->t));
        assert_memory_equal(x->t.data, y->t.data, sl_bytes(&x->t));
        sl_st_close(&a);
        sl_st_close(&b);
    }
}

/* The report says which files, how strong, and which content: one, whatever the naming. */
static void reports_name_the_lora(void **state)
{
    json_t *both = json_load_file(path("%s/both.json", work), 0, NULL),
           *peft = json_load_file(path("%s/peft.json", work), 0, NULL),
           *base = json_load_file(path("%s/base.json", work), 0, NULL);
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
