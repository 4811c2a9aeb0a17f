/* test_ti2v.c - Wan2.2 TI2V-5B's tiny model through all processes: jobs with a picture and
 * without
 * in one run, replayed, resumed after a kill, by a team, packed; what is refused.
 * takes: 9 s. limit: 180 s */
#include "tests/t_run.h"

#include <jansson.h>

#define MODEL "tests/golden/tiny-ti2v-5b/model"
#define CONFIGS "tests/golden/wan2.2-ti2v-5b-configs"
#define PICTURE "tests/golden/tiny-ti2v-5b/ti2v-96x64x5-i2v.png"
/* 36 tokens, 6 of a kept frame */
#define SIZE "--width", "96", "--height", "64", "--frames", "21"

static t_run run;
static char undisturbed[300]; /* folder of the results of the first test */

/* One job with a picture, whose rows a team shares, and one without, whose branches it shares. */
static void start(const char *more, const char *fbcache)
{
    static char jobs[300];
    t_run_open(&run);
    t_run_conf(&run, 5, 30, more);
    snprintf(jobs, sizeof jobs, "%s/jobs", run.base);
    t_write(jobs, t_format("{\"output\": \"%s/i.mp4\", \"dump\": \"%s/i\", \"image\": \"" PICTURE
                           "\", \"prompt\": \"Snow.\", \"seed\": 1, \"guidance\": 1}\n"
                           "{\"output\": \"%s/t.mp4\", \"dump\": \"%s/t\", \"prompt\": \"A boat\", "
                           "\"seed\": 2}\n",
                           run.out, run.out, run.out, run.out));
    char *args[T_ARGS] = {"sluice",       "run",
                          "--quiet",      "--conf",
                          run.conf,       "--model",
                          MODEL,          SIZE,
                          "--steps",      "8",
                          "--jobs",       jobs,
                          "--dump-steps", fbcache ? "--fbcache" : NULL,
                          (char *)fbcache};
    t_run_start(&run, args);
}

static void compare_results(const char *what)
{
    static const char *const FILES[] = {"i.mp4",
                                        "t.mp4",
                                        "i/image.safetensors",
                                        "i/denoise.safetensors",
                                        "i/frames.safetensors",
                                        "t/denoise.safetensors",
                                        "t/frames.safetensors"};
    t_run_nothing_left(&run, 0);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (!t_same_file(t_format("%s/%s", run.out, FILES[i]),
                         t_format("%s/%s", undisturbed, FILES[i])))
            t_run_fail(&run, "%s: %s is not the undisturbed run's", what, FILES[i]);
    t_run_close(&run);
}

static void same_results(const char *what)
{
    t_run_ends(&run, 0);
    compare_results(what);
}

static void a_picture_is_the_jobs_choice(void **state)
{
    (void)state;
    start("", NULL);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    assert_int_equal(t_run_count(&run, "<- image DONE"), 1);
    assert_int_equal(t_run_count(&run, "<- denoise DONE"), 2);
    assert_int_equal(t_count_files(t_format("%s/t", run.out), "image"), 0);
    json_t *job = json_load_file(t_format("%s/t/job.json", run.out), 0, NULL);
    assert_true(json_number_value(json_object_get(job, "fps")) == 24);
    json_decref(job);
    snprintf(undisturbed, sizeof undisturbed, "%s", run.out); /* the folder stays */
    start("", NULL);
    same_results("again");
}

static void a_killed_denoiser_goes_on(void **state)
{
    static const char *const AT[] = {"stage=\"denoise\" done=5 ", "<- image DONE"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        start("", NULL);
        t_run_until(&run, AT[i]);
        assert_int_equal(kill(run.stages[1 + SL_ROLE_DENOISE], SIGKILL), 0);
        same_results(AT[i]);
    }
}

static void a_team_gives_the_bytes_of_one(void **state)
{
    (void)state;
    start(t_stages(SL_ROLE_DENOISE,
                   "{ name = \"denoise\"; devices = [\"cpu\", \"cpu\"]; team = 2; }"),
          NULL);
    t_run_ends(&run, 0);
    if (t_run_count(&run, " size=2 me=") != 4) t_run_fail(&run, "no team of 2 had both jobs");
    compare_results("a team of 2");
}

static void a_team_decides_as_one(void **state)
{
    char one[300], kept[300];
    (void)state;
    start("", "0.3");
    t_run_ends(&run, 0);
    snprintf(one, sizeof one, "%s", run.out);
    snprintf(kept, sizeof kept, "%s", undisturbed);
    snprintf(undisturbed, sizeof undisturbed, "%s", one);
    start(t_stages(SL_ROLE_DENOISE,
                   "{ name = \"denoise\"; devices = [\"cpu\", \"cpu\"]; team = 2; }"),
          "0.3");
    same_results("a team of 2 with the cache");
    snprintf(undisturbed, sizeof undisturbed, "%s", kept);
    *strrchr(one, '/') = 0;
    t_rmdir(one);
}

/* From each stage that made something, with the picture that the dump has, or none. */
static void replayed_from_any_stage(void **state)
{
    static const char *const FROM[] = {"text", "image", "denoise", "decode"};
    static char dump[400], output[400], again[400];
    (void)state;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 4; i++) {
            const char *job = k ? "t" : "i";
            t_run_open(&run);
            t_run_conf(&run, 5, 30, "");
            snprintf(dump, sizeof dump, "%s/%s", undisturbed, job);
            snprintf(output, sizeof output, "%s/a.mp4", run.out);
            snprintf(again, sizeof again, "%s/a", run.out);
            char *args[] = {"sluice",  "replay", dump,     "--from",   (char *)FROM[i],
                            "--quiet", "--conf", run.conf, "--output", output,
                            "--dump",  again,    NULL};
            t_run_start(&run, args);
            t_run_ends(&run, 0);
            t_run_nothing_left(&run, 0);
            assert_int_equal(t_run_count(&run, "<- image DONE"), i == 1 && !k);
            if (!t_same_file(t_format("%s/frames.safetensors", dump),
                             t_format("%s/frames.safetensors", again)) ||
                !t_same_file(t_format("%s.mp4", dump), output))
                t_run_fail(&run, "replay of %s from %s gives other frames", job, FROM[i]);
            t_run_close(&run);
        }
}

/* A dump of a job without a picture gets one. */
static void a_replay_may_bring_a_picture(void **state)
{
    static char dump[400], output[400];
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    snprintf(dump, sizeof dump, "%s/t", undisturbed);
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    char *args[] = {"sluice", "replay",   dump,   "--from",  "image", "--quiet", "--conf",
                    run.conf, "--output", output, "--image", PICTURE, NULL};
    t_run_start(&run, args);
    t_run_ends(&run, 0);
    assert_int_equal(t_run_count(&run, "<- image DONE"), 1);
    assert_false(t_same_file(t_format("%s.mp4", dump), output));
    t_run_close(&run);
}

/* Stored in the order of the network, and with random weights of its shapes. */
static void packed_and_random(void **state)
{
    static char packed[400], loose[400], output[400];
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    snprintf(packed, sizeof packed, "%s/packed", run.base);
    snprintf(loose, sizeof loose, "%s/random", run.base);
    char *pack[] = {"sluice", "pack", "--model", MODEL, "-o", packed, NULL},
         *random[] = {"sluice", "pack", "--random", "--model", MODEL, "-o", loose, NULL};
    t_run_start(&run, pack);
    t_run_ends(&run, 0);
    t_run_start(&run, random);
    t_run_ends(&run, 0);
    for (int i = 0; i < 2; i++) {
        snprintf(output, sizeof output, "%s/%d.mp4", run.out, i);
        char *args[] = {
            "sluice",  "run",   "--quiet",    "--conf",  run.conf, "--model",  i ? loose : packed,
            "--image", PICTURE, SIZE,         "--steps", "8",      "--prompt", "Snow.",
            "--seed",  "1",     "--guidance", "1",       "-o",     output,     NULL};
        t_run_start(&run, args);
        t_run_ends(&run, 0);
    }
    if (!t_same_file(t_format("%s/0.mp4", run.out), t_format("%s/i.mp4", undisturbed)))
        t_run_fail(&run, "packed weights give another video");
    t_run_close(&run);
}

/* ---- what is refused, and said ---- */

static void says(int status, const char *line, const char *const *more)
{
    static char output[400];
    snprintf(output, sizeof output, "%s/x.mp4", run.out);
    char *args[T_ARGS] = {"sluice",   "run", "--quiet", "--model", MODEL,
                          "--prompt", "x",   "-o",      output};
    int n = 0;
    while (args[n]) n++;
    while (*more) args[n++] = (char *)*more++;
    t_run_start(&run, args);
    t_run_ends(&run, status);
    if (!t_run_said(&run, line)) t_run_fail(&run, "said \"%s\", want \"%s\"", run.text, line);
}

static void bad_jobs_get_a_line(void **state)
{
    (void)state;
    t_run_open(&run);
    says(2, "size is 80x48, want width and height that are multiples of 32 (nearest: 96x64)",
         (const char *[]){"--width", "80", "--height", "48", NULL});
    says(2, "--last-image is given, but ",
         (const char *[]){"--last-image", PICTURE, "--image", PICTURE, NULL});
    says(2, "noise has shape [48, 2, 4, 6], want [48, 2, 4, 4]",
         (const char *[]){"--noise", "tests/golden/tiny-ti2v-5b/ti2v-96x64x5-i2v.safetensors",
                          "--frames", "5", "--width", "64", "--height", "64", NULL});
    t_run_close(&run);
}

/* From its configurations alone: 4,999.8 million parameters. */
static void a_plan_of_the_published_model(void **state)
{
    (void)state;
    char command[1024];
    snprintf(command, sizeof command,
             "%s/sluice plan --model " CONFIGS " --width 1280 --height 704 --frames 121 | grep -qE "
             "'^  denoise +cpu +19989\\.[0-9] '",
             t_bin());
    assert_int_equal(system(command), 0);
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
        cmocka_unit_test(a_picture_is_the_jobs_choice),
        cmocka_unit_test(a_killed_denoiser_goes_on),
        cmocka_unit_test(a_team_gives_the_bytes_of_one),
        cmocka_unit_test(a_team_decides_as_one),
        cmocka_unit_test(replayed_from_any_stage),
        cmocka_unit_test(a_replay_may_bring_a_picture),
        cmocka_unit_test(packed_and_random),
        cmocka_unit_test(bad_jobs_get_a_line),
        cmocka_unit_test(a_plan_of_the_published_model),
    };
    return cmocka_run_group_tests(tests, NULL, remove_results);
}
