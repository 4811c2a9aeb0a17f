/* test_demo_lora.c - the demo model's LoRA for 4 steps: what it is, that it brings 4 steps nearer
 * to the 12 that it was distilled from, and that it goes without a trace. takes: 6 s. */
#include "tests/t_dump.h"

#include <jansson.h>

#include "common/lora.h"

#define MODEL "models/demo"
#define LORA MODEL "/lora/4steps.safetensors"
#define BYTES_MOST 1000000

static char work[256];

/* In one pipeline. */
static const struct {
    const char *name;
    int steps;
    bool lora;
} JOBS[] = {{"plain", 4, false}, {"twelve", 12, false}, {"lora", 4, true}, {"again", 4, false}};

static int run_all(void **state)
{
    (void)state;
    snprintf(work, sizeof work, "%s", t_tmpdir());
    FILE *f = fopen(t_format("%s/jobs.jsonl", work), "w");
    assert_non_null(f);
    for (size_t i = 0; i < sizeof JOBS / sizeof *JOBS; i++) {
        const char *to = t_format("%s/%s", work, JOBS[i].name);
        json_t *o = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:s}", "image",
                              "tests/demo-model/pictures/meadow.jpg", "prompt",
                              "The camera zooms in while snow falls", "width", 192, "height", 128,
                              "frames", 9, "steps", JOBS[i].steps, "seed", 3, "dump", to, "output",
                              t_format("%s.mp4", to));
        assert_non_null(o);
        if (JOBS[i].steps == 4) json_object_set_new(o, "sampler", json_string("lightx2v"));
        if (JOBS[i].lora) json_object_set_new(o, "lora", json_string(LORA));
        json_dumpf(o, f, JSON_COMPACT);
        fputc('\n', f);
        json_decref(o);
    }
    fclose(f);
    const char *command =
        t_format("%s/sluice run --quiet --model " MODEL " --jobs %s/jobs.jsonl", t_bin(), work);
    const int status = system(command);
    if (status) fail_msg("exit status %d: %s", status, command);
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    if (*work) t_rmdir(work);
    return 0;
}

/* How far the latents of two jobs are apart. */
static double apart(const char *a, const char *b)
{
    sl_st *x = t_open_st(t_format("%s/%s/denoise.safetensors", work, a)),
          *y = t_open_st(t_format("%s/%s/denoise.safetensors", work, b));
    const double d = t_distance(x, "latents", y, "latents");
    sl_st_close(&x);
    sl_st_close(&y);
    return d;
}

static void what_it_is(void **state)
{
    sl_lora *l = NULL;
    sl_lora_facts f;
    sl_err err = {0};
    uint64_t id = 0;
    (void)state;
    T_OK(sl_lora_open(&l, LORA, &err));
    T_OK(sl_lora_read(l, &id, &err)); /* finite */
    sl_lora_describe(l, &f);
    assert_int_equal(f.naming, SL_NAMING_ORIGINAL);
    assert_int_equal(f.rank_lo, 8);
    assert_int_equal(f.rank_hi, 8);
    assert_int_equal(f.products, 7 * 12);        /* linear layers of the blocks */
    assert_int_equal(f.differences, 7 * 12 + 8); /* their biases; modulations */
    assert_null(sl_lora_stray(l, 0));
    sl_lora_close(&l);
    FILE *file = fopen(LORA, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    assert_true(ftell(file) < BYTES_MOST);
    fclose(file);
}

static void four_steps_are_nearer_to_twelve(void **state)
{
    (void)state;
    const double with = apart("lora", "twelve"), without = apart("plain", "twelve");
    if (getenv("SL_SHOW")) printf("with %.3f, without %.3f\n", with, without);
    if (!(with < 0.8 * without))
        fail_msg("with the LoRA the latents are %.3f from those of 12 steps, without it %.3f, want "
                 "a fifth less",
                 with, without);
}

static void without_it_the_bytes_are_the_same(void **state)
{
    (void)state;
    const char *a = t_format("%s/again.mp4", work), *b = t_format("%s/plain.mp4", work);
    assert_true(t_same_file(a, b));
    assert_true(apart("again", "plain") == 0);
    assert_true(apart("lora", "plain") > 0.01);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_is),
        cmocka_unit_test(four_steps_are_nearer_to_twelve),
        cmocka_unit_test(without_it_the_bytes_are_the_same),
    };
    return cmocka_run_group_tests(tests, run_all, remove_all);
}
