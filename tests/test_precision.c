/* test_precision.c - a job's precision: its names, which weights and devices allow it; the tiny
 * model in 8 bits through all processes: again, killed, by a team, replayed, with blocks left
 * out.
 * takes: 5 s. limit: 180 s */
#include "tests/t_run.h"

#include <jansson.h>

#include "common/precision.h"
#include "common/safetensors.h"
#include "stages/job/precision.h"
#include "stages/job/report_table.h"

static sl_err err;

/* ---- names ---- */

static void names_are_read(void **state)
{
    sl_precision p;
    (void)state;
    for (int i = 0; i < SL_PRECISION_COUNT; i++) {
        T_OK(sl_precision_read(&p, sl_precision_name((sl_precision)i), &err));
        assert_int_equal(p, i);
    }
    T_CODE(sl_precision_read(&p, "fp4", &err), SL_ARG);
    assert_string_equal(err.msg, "precision is fp4, want bf16, fp8-linear or fp8");
    T_CODE(sl_precision_read(&p, "", &err), SL_ARG);
    assert_string_equal(err.msg, "precision is empty, want bf16, fp8-linear or fp8");
}

static void weights_allow_what_they_hold(void **state)
{
    (void)state;
    T_OK(sl_precision_fits(SL_PRECISION_BF16, SL_PRECISION_BF16, &err));
    T_OK(sl_precision_fits(SL_PRECISION_FP8_LINEAR, SL_PRECISION_FP8_LINEAR, &err));
    T_OK(sl_precision_fits(SL_PRECISION_FP8, SL_PRECISION_FP8, &err));
    T_OK(sl_precision_fits(SL_PRECISION_FP8, SL_PRECISION_FP8_LINEAR, &err));
    T_CODE(sl_precision_fits(SL_PRECISION_FP8_LINEAR, SL_PRECISION_FP8, &err), SL_ARG);
    T_CODE(sl_precision_fits(SL_PRECISION_FP8, SL_PRECISION_BF16, &err), SL_ARG);
    T_CODE(sl_precision_fits(SL_PRECISION_BF16, SL_PRECISION_FP8_LINEAR, &err), SL_ARG);
    assert_string_equal(err.msg, "precision is fp8-linear, but the weights are loaded for bf16 "
                                 "(denoise.precision, or --precision of the run)");
    T_CODE(sl_precision_fits(SL_PRECISION_FP8_LINEAR, SL_PRECISION_BF16, &err), SL_ARG);
}

/* What a state keeps of it: all that a device's latents may depend on. */
static void words_of_a_state(void **state)
{
    static const struct {
        const char *name, *whole, *steps;
        bool attends;
        int64_t want[5]; /* the last: of the first 64 blocks */
    } OF[] = {{"bf16", "1", "4-26", false, {0}},
              {"fp8-linear", "", "4-26", false, {1}},
              {"fp8", "0,2", "", false, {1, 0, 0, 0, 5}},
              {"fp8", "", "4-26", true, {1, 0, 3, 26, 0}},
              {"fp8", "", "", true, {1, 0, 0, INT32_MAX, 0}}};
    int64_t words[SL_PRECISION_WORDS];
    sl_dit_precision p;
    (void)state;
    for (size_t i = 0; i < sizeof OF / sizeof *OF; i++) {
        T_OK(sl_dit_precision_read(&p, OF[i].name, OF[i].whole, OF[i].steps, 3, &err));
        sl_dit_precision_words(words, &p, OF[i].attends);
        assert_memory_equal(words, OF[i].want, sizeof OF[i].want);
        p.float32_sums = true;
        sl_dit_precision_words(words, &p, OF[i].attends);
        assert_int_equal(words[1], p.is != SL_PRECISION_BF16);
    }
}

static void blocks_may_stay_as_they_are(void **state)
{
    static const char *const BAD[] = {"3",   "-1",  "0,",   ",0",   "0;1",
                                      "one", "0 1", "0, 1", "0,,1", "99999999999999999999"};
    sl_dit_precision p;
    (void)state;
    T_OK(sl_dit_precision_read(&p, "fp8-linear", "0,2", "", 3, &err));
    assert_true(!sl_block_is_eight(&p, 0) && sl_block_is_eight(&p, 1) && !sl_block_is_eight(&p, 2));
    T_OK(sl_dit_precision_read(&p, "fp8-linear", "", "", 512, &err));
    for (int i = 0; i < 512; i++) assert_true(sl_block_is_eight(&p, i));
    T_OK(sl_dit_precision_read(&p, "fp8-linear", "511", "", 512, &err));
    assert_false(sl_block_is_eight(&p, 511));
    T_OK(sl_dit_precision_read(&p, "bf16", "1", "", 3, &err));
    for (int i = 0; i < 3; i++) assert_false(sl_block_is_eight(&p, i));
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        T_CODE(sl_dit_precision_read(&p, "fp8-linear", BAD[i], "", 3, &err), SL_ARG);
        assert_string_equal(err.msg,
                            t_format("denoise.bf16_blocks is \"%s\", want numbers from 0 to 2 with "
                                     "commas between",
                                     BAD[i]));
    }
    T_CODE(sl_dit_precision_read(&p, "fp16", "", "", 3, &err), SL_ARG);
    assert_string_equal(err.msg,
                        "denoise.precision: precision is fp16, want bf16, fp8-linear or fp8");
}

/* An A100 is refused by name, and only where it denoises. */
static void other_gpus_are_refused_by_name(void **state)
{
    sl_conf conf;
    sl_gpus gpus = {.count = 2};
    (void)state;
    sl_conf_defaults(&conf);
    T_OK(sl_conf_use_device(&conf, "cuda:0,cuda:1", &err));
    for (int i = 0; i < 2; i++) {
        gpus.gpu[i].total = gpus.gpu[i].free = 1;
        gpus.gpu[i].sm = i ? 80 : 90;
        snprintf(gpus.gpu[i].name, sizeof gpus.gpu[i].name, i ? "NVIDIA A100" : "NVIDIA H100");
    }
    T_OK(sl_precision_check_devices(&conf, &gpus, &err));
    snprintf(conf.denoise.precision, sizeof conf.denoise.precision, "fp8-linear");
    T_CODE(sl_precision_check_devices(&conf, &gpus, &err), SL_ARG);
    assert_string_equal(err.msg, "precision fp8-linear wants a GPU of compute capability 9.0, "
                                 "cuda:1 (NVIDIA A100) has 8.0: want bf16 there");
    gpus.gpu[1].sm = 90;
    T_OK(sl_precision_check_devices(&conf, &gpus, &err));
}

/* ---- jobs ---- */

static t_run run;
static char undisturbed[300]; /* folder of the first run's results */

/* Of run, denoise and more of a configuration. */
static void configure_with(const char *in_run, const char *denoise, const char *more)
{
    t_write(run.conf, t_format("run: { log = \"debug\"; %s };\nvideo: { preset = \"veryfast\"; "
                               "threads = 2; };\nsupervise: { backoff_ms = 5; heartbeat_ms = 100; "
                               "};\ndenoise: { state_every = 2; %s };\n%s",
                               in_run, denoise, more));
}

static void configure(const char *denoise, const char *more)
{
    configure_with("", denoise, more);
}

/* precision NULL: the configuration's. */
static void start(const char *precision)
{
    static char output[300], dump[300], report[300];
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    snprintf(dump, sizeof dump, "%s/a", run.out);
    snprintf(report, sizeof report, "%s/a.json", run.out);
    char *args[T_ARGS] = {"sluice",   "run",   "--conf",   run.conf, "--model", T_MODEL,
                          "--image",  T_IMAGE, "--prompt", "Snow.",  "--width", "48",
                          "--height", "32",    "--frames", "9",      "--steps", "6",
                          "--seed",   "1",     "-o",       output,   "--dump",  dump,
                          "--json",   report};
    int n = 0;
    while (args[n]) n++;
    if (precision) args[n++] = "--precision", args[n++] = (char *)precision;
    t_run_start(&run, args);
}

static void same_results(const char *what)
{
    static const char *const FILES[] = {"a.mp4", "a/denoise.safetensors"};
    t_run_ends(&run, 0);
    for (int i = 0; i < 2; i++)
        if (!t_same_file(t_format("%s/%s", run.out, FILES[i]),
                         t_format("%s/%s", undisturbed, FILES[i])))
            t_run_fail(&run, "%s: %s is not the undisturbed run's", what, FILES[i]);
    t_run_close(&run);
}

static void reported(const char *file, const char *want)
{
    json_t *report = json_load_file(file, 0, NULL);
    const char *found = json_string_value(json_object_get(report, "precision"));
    assert_non_null(found);
    assert_string_equal(found, want);
    json_decref(report);
}

/* The table of a report speaks of 8 bits, or does not. */
static void in_table(const char *file, bool said)
{
    char *text = NULL;
    size_t size = 0;
    json_t *report = json_load_file(file, 0, NULL);
    FILE *f = open_memstream(&text, &size);
    assert_true(report && f);
    sl_report_print_json(report, NULL, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(strstr(text, "; fp8-linear\n") != NULL, said);
    free(text);
    json_decref(report);
}

/* Relative L2 distance of two runs' latents. */
static double latents_off(const char *a, const char *b)
{
    sl_st *st[2] = {0};
    T_OK(sl_st_open_file(&st[0], t_format("%s/a/denoise.safetensors", a), &err));
    T_OK(sl_st_open_file(&st[1], t_format("%s/a/denoise.safetensors", b), &err));
    const sl_tensor *x = &sl_st_find(st[0], "latents")->t, *y = &sl_st_find(st[1], "latents")->t;
    const double off = t_rel_l2(x->data, y->data, sl_count(x));
    sl_st_close(&st[0]);
    sl_st_close(&st[1]);
    return off;
}

/* The option decides what is loaded; report, job and table tell it. Other latents than in float32,
 * but not by much: the next test has the same with all blocks left out. */
static void a_run_in_8_bits(void **state)
{
    char in_float[300];
    (void)state;
    t_run_open(&run);
    configure("", "");
    start(NULL);
    t_run_ends(&run, 0);
    reported(t_format("%s/a.json", run.out), "bf16");
    in_table(t_format("%s/a.json", run.out), false);
    snprintf(in_float, sizeof in_float, "%s", run.out);
    t_run_open(&run);
    configure("", "");
    start("fp8-linear");
    t_run_ends(&run, 0);
    snprintf(undisturbed, sizeof undisturbed, "%s", run.out); /* the folder stays */
    reported(t_format("%s/a.json", run.out), "fp8-linear");
    reported(t_format("%s/a/job.json", run.out), "fp8-linear");
    in_table(t_format("%s/a.json", run.out), true);
    const double off = latents_off(undisturbed, in_float);
    if (!(off > 1e-4 && off < 0.2))
        t_run_fail(&run, "latents in 8 bits are %.3g off, want 1e-4 to 0.2", off);
    *strrchr(in_float, '/') = 0;
    t_rmdir(in_float);
    t_run_open(&run); /* the configuration's word is enough */
    configure("precision = \"fp8-linear\";", "");
    start(NULL);
    same_results("by the configuration");
}

/* With every block left out, the weights and the bytes are those of bf16. */
static void blocks_left_out_are_as_without(void **state)
{
    char kept[300];
    (void)state;
    t_run_open(&run);
    configure("", "");
    start("bf16");
    t_run_ends(&run, 0);
    snprintf(kept, sizeof kept, "%s", run.out);
    t_run_open(&run);
    configure("bf16_blocks = \"2,0,1\";", "");
    start("fp8-linear");
    t_run_ends(&run, 0);
    assert_true(latents_off(run.out, kept) == 0);
    t_run_close(&run);
    t_run_open(&run);
    configure("bf16_blocks = \"0\";", "");
    start("fp8-linear");
    t_run_ends(&run, 0);
    const double one = latents_off(run.out, kept), none = latents_off(undisturbed, kept);
    if (!(one > 0 && one < none))
        t_run_fail(&run, "without one block latents are %.3g off, with all %.3g", one, none);
    t_run_close(&run);
    *strrchr(kept, '/') = 0;
    t_rmdir(kept);
}

static void a_killed_denoiser_goes_on(void **state)
{
    (void)state;
    t_run_open(&run);
    configure("", "");
    start("fp8-linear");
    t_run_until(&run, "stage=\"denoise\" done=4 ");
    assert_int_equal(kill(run.stages[1 + SL_ROLE_DENOISE], SIGKILL), 0);
    same_results("after a kill");
}

/* A state is gone on with by --resume under the settings that it was made under; under others the
 * job begins anew, and has the bytes that these give. */
static void a_state_is_of_its_settings(void **state)
{
    static const char *const OTHERS[] = {"bf16_blocks = \"0\";", "fp8_attention_steps = \"5-\";",
                                         "fp8_sums = \"float32\";", ""};
    static char own[400], spool[400], before[300];
    (void)state;
    snprintf(before, sizeof before, "%s", undisturbed);
    for (int i = 0; i < 4; i++) { /* last: its own */
        snprintf(own, sizeof own, "precision = \"fp8\"; %s", OTHERS[i]);
        t_run_open(&run);
        configure(own, "");
        start(NULL);
        t_run_ends(&run, 0);
        snprintf(undisturbed, sizeof undisturbed, "%s", run.out);

        t_run_open(&run);
        snprintf(spool, sizeof spool, "spool = \"%s/spool\";", run.base);
        configure_with(spool, "precision = \"fp8\";", "");
        start(NULL);
        t_run_until(&run, "stage=\"denoise\" done=5 ");
        t_run_kill_all(&run);
        configure_with(spool, own, "");
        char *args[] = {"sluice", "run", "--quiet", "--resume", "--conf", run.conf, NULL};
        t_run_start(&run, args);
        t_run_ends(&run, 0);
        const bool anew = t_run_said(&run, "begins anew: its state was made under another setting "
                                           "of the precision"),
                   on = t_run_said(&run, " goes on at step ");
        if (anew != (i < 3) || on != (i == 3))
            t_run_fail(&run, "with %s the job %s", own,
                       anew ? "began anew"
                       : on ? "went on"
                            : "has no state");
        if (!t_same_file(t_format("%s/a/denoise.safetensors", run.out),
                         t_format("%s/a/denoise.safetensors", undisturbed)))
            t_run_fail(&run, "with %s latents are not an undisturbed run's", own);
        t_run_close(&run);
        *strrchr(undisturbed, '/') = 0;
        t_rmdir(undisturbed);
    }
    snprintf(undisturbed, sizeof undisturbed, "%s", before);
}

static void a_team_gives_the_bytes_of_one(void **state)
{
    (void)state;
    t_run_open(&run);
    configure("", t_stages(SL_ROLE_DENOISE,
                           "{ name = \"denoise\"; devices = [\"cpu\", \"cpu\"]; team = 2; }"));
    start("fp8-linear");
    same_results("a team of 2");
}

/* A replay is in its dump's precision, or in another one that is asked for. */
static void a_replay_is_its_dumps(void **state)
{
    static const char *const ASKED[] = {NULL, "bf16"};
    static char dump[400], output[400], again[400], report[400];
    (void)state;
    for (int i = 0; i < 2; i++) {
        t_run_open(&run);
        configure("", "");
        snprintf(dump, sizeof dump, "%s/a", undisturbed);
        snprintf(output, sizeof output, "%s/a.mp4", run.out);
        snprintf(again, sizeof again, "%s/a", run.out);
        snprintf(report, sizeof report, "%s/a.json", run.out);
        char *args[T_ARGS] = {"sluice",  "replay", dump,     "--from", "denoise",
                              "--quiet", "--conf", run.conf, "-o",     output,
                              "--dump",  again,    "--json", report,   NULL};
        if (ASKED[i]) args[14] = "--precision", args[15] = (char *)ASKED[i];
        t_run_start(&run, args);
        t_run_ends(&run, 0);
        reported(report, i ? "bf16" : "fp8-linear");
        const double off = latents_off(run.out, undisturbed);
        if (i ? !(off > 1e-4) : off != 0) t_run_fail(&run, "a replay is %.3g off", off);
        t_run_close(&run);
    }
}

/* Attention in 8 bits: other latents than fp8-linear's, the same alone, by a team and after a kill;
 * in no step, or for a job that does not ask for it, fp8-linear's. */
static void attention_is_in_8_bits_too(void **state)
{
    static const char *const HOW[] = {"a team of 2", "after a kill"};
    char linear[300], kept[300];
    (void)state;
    t_run_open(&run);
    configure("", "");
    start("fp8");
    t_run_ends(&run, 0);
    reported(t_format("%s/a.json", run.out), "fp8");
    snprintf(kept, sizeof kept, "%s", run.out);
    const double off = latents_off(kept, undisturbed);
    if (!(off > 1e-5 && off < 0.2))
        t_run_fail(&run, "latents with attention in 8 bits are %.3g off, want 1e-5 to 0.2", off);
    snprintf(linear, sizeof linear, "%s", undisturbed);
    snprintf(undisturbed, sizeof undisturbed, "%s", kept);
    for (int i = 0; i < 2; i++) {
        t_run_open(&run);
        configure("", i ? ""
                        : t_stages(SL_ROLE_DENOISE, "{ name = \"denoise\"; devices = [\"cpu\", "
                                                    "\"cpu\"]; team = 2; }"));
        start("fp8");
        if (i) {
            t_run_until(&run, "stage=\"denoise\" done=4 ");
            assert_int_equal(kill(run.stages[1 + SL_ROLE_DENOISE], SIGKILL), 0);
        }
        same_results(HOW[i]);
    }
    snprintf(undisturbed, sizeof undisturbed, "%s", linear);
    t_run_open(&run);
    configure("fp8_attention_steps = \"7-\";", "");
    start("fp8");
    t_run_ends(&run, 0);
    assert_true(latents_off(run.out, undisturbed) == 0);
    t_run_close(&run);
    *strrchr(kept, '/') = 0;
    t_rmdir(kept);
}

/* ---- what is refused ---- */

static void says(const char *line, const char *const *more)
{
    static char output[400];
    snprintf(output, sizeof output, "%s/x.mp4", run.out);
    char *args[T_ARGS] = {"sluice",  "run",   "--quiet", "--model", T_MODEL,
                          "--image", T_IMAGE, "-o",      output};
    int n = 0;
    while (args[n]) n++;
    while (*more) args[n++] = (char *)*more++;
    t_run_start(&run, args);
    t_run_ends(&run, 2);
    if (!t_run_said(&run, line)) t_run_fail(&run, "said \"%s\", want \"%s\"", run.text, line);
}

static void what_weights_do_not_allow_is_refused(void **state)
{
    static char jobs[300];
    (void)state;
    t_run_open(&run);
    snprintf(jobs, sizeof jobs, "%s/jobs", run.base);
    says("precision is fp9, want bf16, fp8-linear or fp8",
         (const char *[]){"--prompt", "x", "--precision", "fp9", NULL});
    t_write(jobs, t_format("{\"prompt\": \"x\"}\n{\"prompt\": \"x\", \"output\": \"%s/y.mp4\", "
                           "\"precision\": \"fp8-linear\"}\n",
                           run.out));
    says("jobs:2: precision is fp8-linear, but the weights are loaded for bf16",
         (const char *[]){"--jobs", jobs, NULL});
    t_write(jobs, t_format("{\"prompt\": \"x\"}\n{\"prompt\": \"x\", \"output\": \"%s/y.mp4\", "
                           "\"precision\": \"bf16\"}\n",
                           run.out));
    says("jobs:2: precision is bf16, but the weights are loaded for fp8-linear",
         (const char *[]){"--jobs", jobs, "--precision", "fp8-linear", NULL});
    configure("bf16_blocks = \"3\";", "");
    says("denoise.bf16_blocks is \"3\", want numbers from 0 to 2 with commas between",
         (const char *[]){"--prompt", "x", "--conf", run.conf, NULL});
    configure("fp8_attention_steps = \"0-3\";", "");
    says("denoise.fp8_attention_steps is \"0-3\", want steps as in \"4-26\"",
         (const char *[]){"--prompt", "x", "--precision", "fp8", "--conf", run.conf, NULL});
    configure("precision = \"fp4\";", "");
    says("denoise.precision is \"fp4\", want one of bf16, fp8-linear, fp8",
         (const char *[]){"--prompt", "x", "--conf", run.conf, NULL});
    t_run_close(&run);
}

static int remove_results(void **state)
{
    (void)state;
    if (!*undisturbed) return 0;
    *strrchr(undisturbed, '/') = 0;
    t_rmdir(undisturbed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_read),
        cmocka_unit_test(weights_allow_what_they_hold),
        cmocka_unit_test(words_of_a_state),
        cmocka_unit_test(blocks_may_stay_as_they_are),
        cmocka_unit_test(other_gpus_are_refused_by_name),
        cmocka_unit_test(a_run_in_8_bits),
        cmocka_unit_test(blocks_left_out_are_as_without),
        cmocka_unit_test(a_killed_denoiser_goes_on),
        cmocka_unit_test(a_state_is_of_its_settings),
        cmocka_unit_test(a_team_gives_the_bytes_of_one),
        cmocka_unit_test(a_replay_is_its_dumps),
        cmocka_unit_test(attention_is_in_8_bits_too),
        cmocka_unit_test(what_weights_do_not_allow_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, remove_results);
}
