/* test_distilled.c - which names say that a model is distilled, which jobs deserve a hint, and what
 * --sampler lightx2v asks for. */
#include "tests/t.h"

#include "stages/job/check.h"
#include "stages/job/distilled.h"
#include "stages/job/options.h"

static void names_that_say_it(void **state)
{
    static const struct {
        const char *name, *word;
    } CASES[] = {
        {"lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors", "lightx2v"},
        {"Wan21_T2V_14B_StepDistill_rank32", "distill"},
        {"wan2.2_i2v_A14b_high_noise_lora_rank64_4step_1022", "4step"},
        {"Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1", "4steps"},
        {"high_4-step", "4step"},
        {"Wan21_CausVid_14B_T2V_lora_rank32", "causvid"},
        {"WAN SELF FORCING", "self-forcing"},
        {"Wan2.1-I2V-14B-720P-Diffusers", NULL},
        {"TurboWan2.1-I2V", "turbo"},
        {"Wan2.1-rCM-4B", "rcm"},
        {"my_24step_test", NULL},
        {"arcmotion", NULL},
        {"4stepping-stones", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const char *got = sl_distilled_word(CASES[i].name);
        if (!got != !CASES[i].word || (got && strcmp(got, CASES[i].word)))
            fail_msg("%s: %s, want %s", CASES[i].name, got ? got : "none",
                     CASES[i].word ? CASES[i].word : "none");
    }
    assert_null(sl_distilled_word(NULL));
    (void)state;
}

static void jobs_that_deserve_a_hint(void **state)
{
    static const char PLAIN[] = "/m/Wan2.1-I2V-14B", DISTILLED[] = "/m/Wan2.1-lightx2v/",
                      HUB[] = "/c/models--lightx2v--Wan2.1/snapshots/0123abcd";
    static const struct {
        const char *dir;
        int steps;
        double guidance;
        bool hint;
    } CASES[] = {{PLAIN, 40, 5, false},   {DISTILLED, 40, 5, true}, {DISTILLED, 40, 1, true},
                 {DISTILLED, 4, 5, true}, {DISTILLED, 4, 1, false}, {DISTILLED, 8, 1, false},
                 {HUB, 40, 5, true}};
    sl_err err = {0};
    char hint[SL_PATH];
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_job job = {0};
        T_OK(sl_job_init(&job, &err));
        sl_layout layout = {0};
        snprintf(layout.dir, SL_PATH, "%s", CASES[i].dir);
        job.steps = CASES[i].steps;
        job.guidance = CASES[i].guidance;
        assert_int_equal(sl_distilled_hint(&job, &layout, hint, sizeof hint), CASES[i].hint);
        assert_int_equal(*hint != 0, CASES[i].hint);
        sl_job_free(&job);
    }
    /* a LoRA says it for a model that does not */
    sl_job lora = {0};
    T_OK(sl_job_init(&lora, &err));
    sl_layout layout = {0};
    snprintf(layout.dir, SL_PATH, "%s", PLAIN);
    T_OK(sl_job_set_text(&lora.lora, "1 0 /x/plain\n1 0 /x/wan_4steps.safetensors", &err));
    assert_true(sl_distilled_hint(&lora, &layout, hint, sizeof hint));
    T_SAYS(hint, "wan_4steps.safetensors is distilled, by its name (4steps)");
    sl_job_free(&lora);
    sl_job job = {.steps = 40, .guidance = 5};
    snprintf(layout.dir, SL_PATH, "%s", DISTILLED);
    assert_true(sl_distilled_hint(&job, &layout, hint, sizeof hint));
    T_SAYS(hint,
           "Wan2.1-lightx2v is distilled, by its name (lightx2v): it is made for 4 to 8 steps "
           "without guidance, and the job has 40 with guidance 5");
    /* a transformer's file, whatever its folder; the folder that holds a part of one is none */
    snprintf(layout.dir, SL_PATH, "%s", PLAIN);
    snprintf(layout.parts[SL_PART_DIT_2].path, SL_PATH, "/x/low_4step.safetensors");
    assert_true(sl_distilled_hint(&job, &layout, hint, sizeof hint));
    T_SAYS(hint, "low_4step.safetensors is distilled, by its name (4step)");
    snprintf(layout.parts[SL_PART_DIT_2].stem, sizeof layout.parts->stem, "diffusion");
    assert_false(sl_distilled_hint(&job, &layout, hint, sizeof hint));
}

/* What is not said is what distilled models are trained for. */
static void the_sampler_brings_its_steps(void **state)
{
    static const struct {
        const char *option, *value;
        int steps;
        double guidance, shift;
    } CASES[] = {{NULL, NULL, 4, 1, 5},
                 {"steps", "8", 8, 1, 5},
                 {"shift", "3", 4, 1, 3},
                 {"guidance", "2", 4, 2, 5}};
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_batch b;
        sl_model model;
        sl_conf conf;
        sl_err err = {0};
        sl_request *r;
        const sl_option *o;
        T_OK(sl_batch_init(&b, &err));
        snprintf(b.base.spec.model, SL_PATH, "models/demo"); /* whose own are 12 steps, shift 5 */
        T_OK(sl_option_find(&o, "sampler", SL_OPTION_OF_JOB, &err));
        T_OK(sl_option_set(&b.base, o, "lightx2v", &err));
        if (CASES[i].option) {
            T_OK(sl_option_find(&o, CASES[i].option, SL_OPTION_OF_JOB, &err));
            T_OK(sl_option_set(&b.base, o, CASES[i].value, &err));
        }
        T_OK(sl_batch_add(&b, &r, &err));
        T_OK(sl_batch_complete(&b, &model, &conf, &err));
        assert_int_equal(r->spec.steps, CASES[i].steps);
        assert_true(r->spec.guidance == CASES[i].guidance);
        assert_true(r->spec.shift == CASES[i].shift);
        sl_batch_free(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_that_say_it),
        cmocka_unit_test(jobs_that_deserve_a_hint),
        cmocka_unit_test(the_sampler_brings_its_steps),
    };
    return cmocka_run_group_tests_name("distilled", tests, NULL, NULL);
}
