/* test_pipeline - jobs through the whole pipeline: many in flight, cancelled, drained,
 * replayed, with stages swapped and left out. takes: 9 s. limit: 240 s */
#include "tests/t_run.h"

#include <jansson.h>

#include "common/safetensors.h"

static t_run run;
static char dump[300]; /* of the undisturbed run */

#define PROMPT "A cat runs, and it rains."

/* `sluice run` of the usual job at some length; more options follow, ended by NULL. */
static void start(const char *frames, const char *steps, ...)
{
    static char output[400];
    char *args[T_ARGS] = {"sluice",       "run",        "--quiet",     "--conf",   run.conf,
                          "--model",      T_MODEL,      "--image",     T_IMAGE,    "--prompt",
                          PROMPT,         "--negative", "blur",        "--width",  "48",
                          "--height",     "32",         "--seed",      "7",        "--frames",
                          (char *)frames, "--steps",    (char *)steps, "--output", output};
    int n = 0;
    va_list ap;
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    while (args[n]) n++;
    va_start(ap, steps);
    while ((args[n] = va_arg(ap, char *)) != NULL) n++;
    va_end(ap);
    t_run_start(&run, args);
}

static void open_run(const char *conf)
{
    t_run_open(&run);
    t_run_conf(&run, 5, 30, conf);
}

/* The run has ended as it should, and nothing but these files is there. */
static void check_end(int status, int files)
{
    t_run_ends(&run, status);
    t_run_nothing_left(&run, 0);
    if (t_count_files(run.out, NULL) != files)
        t_run_fail(&run, "%d files in the output folder, want %d", t_count_files(run.out, NULL),
                   files);
}

/* Where in the log this is first said; past its end: never. */
static size_t when(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static size_t when(const char *fmt, ...)
{
    char part[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(part, sizeof part, fmt, ap);
    va_end(ap);
    const char *p = strstr(run.text, part);
    return p ? (size_t)(p - run.text) : run.used;
}

/* ---- many jobs ---- */

static const char *jobs_file(int count)
{
    static char path[300];
    static const char *const PROMPTS[] = {"Snow.", "A boat at sea", "", "Two dogs"};
    static const int WIDTH[] = {48, 32, 48, 64}, FRAMES[] = {17, 13, 9, 5};
    FILE *f;
    snprintf(path, sizeof path, "%s/jobs.jsonl", run.base);
    f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < count; i++)
        fprintf(f,
                "{\"output\": \"%s/%d.mp4\", \"prompt\": \"%s\", \"width\": %d, \"frames\": %d, "
                "\"seed\": %d}\n",
                run.out, i + 1, PROMPTS[i % 4], WIDTH[i % 4], FRAMES[i % 4], i + 1);
    fclose(f);
    return path;
}

static void test_jobs_overlap(void **state)
{
    char alone[400];
    (void)state;
    open_run("");
    start("17", "30", "--jobs", jobs_file(4), NULL);
    check_end(0, 4);
    if (!(when("<- text DONE job=2") < when("<- denoise DONE job=1")))
        t_run_fail(&run, "text of job 2 waited for the denoising of job 1");
    if (!(when("<- image DONE job=2") < when("<- denoise DONE job=1")))
        t_run_fail(&run, "image of job 2 waited for the denoising of job 1");
    if (!(when("<- decode CHUNK job=1") < when("<- denoise DONE job=2") &&
          when("<- denoise TAKEN job=2") < when("<- mux DONE job=1")))
        t_run_fail(&run, "decoding of job 1 did not overlap the denoising of job 2");
    for (int i = 1; i < 4; i++)
        if (!(when("<- denoise DONE job=%d", i) < when("<- denoise DONE job=%d", i + 1)))
            t_run_fail(&run, "job %d was denoised before job %d", i + 1, i);

    /* company changes nothing: job 2 by itself gives the same bytes */
    snprintf(alone, sizeof alone, "%s/alone.mp4", run.out);
    start("13", "30", "--prompt", "A boat at sea", "--width", "32", "--seed", "2", "--output",
          alone, NULL);
    check_end(0, 5);
    if (!t_same_file(alone, t_format("%s/2.mp4", run.out)))
        t_run_fail(&run, "job 2 is another video in company than alone");
    t_run_close(&run);
}

/* ---- ends that are asked for ---- */

static void test_cancel(void **state)
{
    static const char *const AT[] = {"text is process", "<- image READY",
                                     "stage=\"denoise\" done=3 ", "index=1 chunks=13"};
    (void)state;
    for (size_t i = 0; i < sizeof AT / sizeof *AT; i++) {
        bool denoising = strstr(AT[i], "denoise") != NULL;
        open_run("");
        start("49", denoising ? "100" : "3", NULL);
        t_run_until(&run, AT[i]);
        kill(run.pid, SIGINT);
        t_run_until(&run, "<- client CANCEL");
        size_t at = run.at;
        check_end(1, 0);
        if (!t_run_said(&run, "cancelled"))
            t_run_fail(&run, "nobody said that the job was cancelled");
        int steps = 0; /* the one under way may end, no other */
        for (const char *p = run.text + at; (p = strstr(p, "<- denoise PROGRESS")); p++) steps++;
        if (denoising && steps > 1) t_run_fail(&run, "%d steps ended after the cancel", steps);
        t_run_close(&run);
    }
}

static void test_terminate(void **state)
{
    (void)state;
    open_run("");
    start("17", "20", "--jobs", jobs_file(6), NULL);
    t_run_until(&run, "stage=\"denoise\" done=3 ");
    kill(run.pid, SIGTERM);
    t_run_until(&run, "<- client DRAIN");
    kill(run.stages[3], SIGKILL); /* and a death meanwhile changes nothing */
    t_run_ends(&run, 1);
    t_run_nothing_left(&run, 0);
    int done = t_count_files(run.out, ".mp4"),
        not_run = t_run_count(&run, ".mp4: cancelled: not run");
    if (done < 1 || not_run < 1 || done + not_run != 6)
        t_run_fail(&run, "%d jobs done and %d not run, want 6 in all", done, not_run);
    for (int i = 1; i <= done; i++)
        if (!t_count_files(run.out, t_format("%d.mp4", i)))
            t_run_fail(&run, "job %d was under way and is not there", i);
    t_run_close(&run);
}

/* ---- replay ---- */

static bool replayed_same(const char *from, const char *option, const char *value)
{
    static char output[400], again[400];
    char *args[T_ARGS] = {"sluice",  "replay", dump,           "--from",     (char *)from,
                          "--quiet", "--conf", run.conf,       "--output",   output,
                          "--dump",  again,    (char *)option, (char *)value};
    snprintf(output, sizeof output, "%s/%s.mp4", run.out, from);
    snprintf(again, sizeof again, "%s/%s", run.out, from);
    t_run_start(&run, args);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    return t_same_file(t_format("%s/frames.safetensors", dump),
                       t_format("%s/frames.safetensors", again)) &&
           t_same_file(t_format("%s/../a.mp4", dump), output);
}

static void test_replay(void **state)
{
    static const char *const STAGES[] = {"text", "image", "denoise", "decode"};
    (void)state;
    open_run("");
    for (int i = 0; i < 4; i++) {
        if (!replayed_same(STAGES[i], NULL, NULL))
            t_run_fail(&run, "replay --from %s gives other frames", STAGES[i]);
        /* what lies before --from, or beside it, is not made again */
        for (int k = 1; k < 4; k++)
            if ((k < i || (i < 2 && k != i && k < 2)) &&
                t_run_said(&run, t_format("<- %s DONE", STAGES[k])))
                t_run_fail(&run, "replay --from %s ran %s again", STAGES[i], STAGES[k]);
    }
    if (replayed_same("denoise", "--seed", "8"))
        t_run_fail(&run, "another seed gives the same frames");
    if (replayed_same("denoise", "--steps", "5"))
        t_run_fail(&run, "other steps give the same frames");
    if (replayed_same("text", "--prompt", "A lake"))
        t_run_fail(&run, "another prompt gives the same frames");
    t_run_close(&run);
}

/* ---- a checkpoint's sluice.json ---- */

/* T_MODEL by links, with this file. */
static const char *model_with_defaults(const char *text)
{
    static char model[300];
    char cwd[512];
    DIR *d = opendir(T_MODEL);
    struct dirent *e;
    assert_true(d && getcwd(cwd, sizeof cwd));
    snprintf(model, sizeof model, "%s/model", run.base);
    mkdir(model, 0700);
    while ((e = readdir(d)))
        if (*e->d_name != '.' && symlink(t_format("%s/" T_MODEL "/%s", cwd, e->d_name),
                                         t_format("%s/%s", model, e->d_name)))
            assert_int_equal(errno, EEXIST);
    closedir(d);
    t_write(t_format("%s/sluice.json", model), text);
    return model;
}

static void reported(const char *key, double want)
{
    json_t *report = json_load_file(t_format("%s/report.json", run.base), 0, NULL),
           *v = json_object_get(report, key);
    if (!json_is_number(v) || json_number_value(v) != want)
        t_run_fail(&run, "%s is %g, want %g", key, json_number_value(v), want);
    json_decref(report);
}

/* A model, a picture and a prompt are enough. */
static void test_defaults(void **state)
{
    char output[300], report[300];
    (void)state;
    open_run("fbcache: { threshold = 0.5; };\n");
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    snprintf(report, sizeof report, "%s/report.json", run.base);
    const char *model = model_with_defaults("{\"max-area\": 2304, \"frames\": 5, \"fps\": 8, "
                                            "\"steps\": 1, \"guidance\": 1, \"shift\": 4, "
                                            "\"sampler\": \"euler\", \"fbcache\": 0}");
    char *args[] = {"sluice", "run",     "--quiet",     "--conf",  run.conf, "--json",
                    report,   "--model", (char *)model, "--image", T_IMAGE,  "--prompt",
                    PROMPT,   "-o",      output,        NULL};
    t_run_start(&run, args);
    check_end(0, 1);
    reported("width", 48); /* of a picture of 130x90 */
    reported("height", 32);
    reported("frames", 5);
    reported("fps", 8);
    reported("step_count", 1);
    reported("guidance", 1);
    reported("shift", 4);
    reported("fbcache", 0);
    t_run_close(&run);
}

/* Where the user says everything, the file changes nothing: the same bytes; and a replay
 * is its dump. */
static void test_defaults_put_aside(void **state)
{
    (void)state;
    open_run("");
    const char *model = model_with_defaults(
        "{\"max-area\": 1024, \"frames\": 5, \"fps\": 8, \"steps\": 1, \"guidance\": 1, "
        "\"guidance-2\": 9, "
        "\"shift\": 9, \"negative\": \"x\", \"fbcache-warmup\": 3, \"fbcache\": 1}");
    start("17", "12", "--model", model, "--guidance", "5", "--fps", "16", "--shift", "3",
          "--fbcache", "0", NULL);
    check_end(0, 1);
    if (!t_same_file(t_format("%s/a.mp4", run.out), t_format("%s/../a.mp4", dump)))
        t_run_fail(&run, "another video");
    if (!replayed_same("denoise", "--model", model)) t_run_fail(&run, "replay gives other frames");
    t_run_close(&run);
}

/* ---- other stages ---- */

static const uint8_t *frames_of(sl_st **st, const char *folder, int64_t *count)
{
    sl_err err = {0};
    T_OK(sl_st_open_file(st, t_format("%s/frames.safetensors", folder), &err));
    const sl_st_entry *e = sl_st_find(*st, "frames");
    assert_non_null(e);
    *count = sl_count(&e->t);
    return e->t.data;
}

static void test_other_mux(void **state)
{
    static const char HEADER[] = "YUV4MPEG2 W48 H32 F16:1 Ip A1:1 C444\n";
    const size_t frame = (size_t)48 * 32 * 3;
    size_t size;
    int64_t count;
    sl_st *st = NULL;
    (void)state;
    open_run(t_stages(SL_ROLE_MUX, t_format("{ name = \"mux\"; program = \"%s\"; }",
                                            t_helper("helper_mux_y4m"))));
    start("17", "12", NULL);
    check_end(0, 1);
    char *file = t_read(t_format("%s/a.mp4", run.out), &size);
    const uint8_t *rgb = frames_of(&st, dump, &count), *y = (const uint8_t *)file + strlen(HEADER);
    assert_int_equal(size, strlen(HEADER) + 17 * (6 + frame));
    assert_memory_equal(file, HEADER, strlen(HEADER));
    assert_int_equal(count, 17 * frame);
    for (int i = 0; i < 17; i++, y += frame, rgb += frame) {
        assert_memory_equal(y, "FRAME\n", 6);
        y += 6;
        for (size_t k = 0; k < frame / 3; k++)
            assert_int_equal(
                y[k],
                ((66 * rgb[3 * k] + 129 * rgb[3 * k + 1] + 25 * rgb[3 * k + 2] + 128) >> 8) + 16);
    }
    sl_st_close(&st);
    free(file);
    t_run_close(&run);
}

static void test_other_decode(void **state)
{
    char again[300];
    int64_t count;
    sl_st *st = NULL, *latents = NULL;
    sl_err err = {0};
    (void)state;
    open_run(t_stages(SL_ROLE_DECODE, t_format("{ name = \"decode\"; program = \"%s\"; }",
                                               t_helper("helper_decode_flat"))));
    snprintf(again, sizeof again, "%s/a", run.out);
    start("17", "12", "--dump", again, NULL);
    t_run_until(&run, "index=0 chunks=5");
    kill(run.stages[4], SIGKILL); /* it is supervised like any other */
    check_end(0, 2);
    if (!t_same_file(t_format("%s/denoise.safetensors", dump),
                     t_format("%s/denoise.safetensors", again)))
        t_run_fail(&run, "the latents are others");
    const uint8_t *rgb = frames_of(&st, again, &count);
    T_OK(sl_st_open_file(&latents, t_format("%s/denoise.safetensors", again), &err));
    const float *x = sl_st_find(latents, "latents")->t.data; /* [16, 5, 4, 6] */
    assert_int_equal(count, 17 * 48 * 32 * 3);
    for (int64_t i = 0; i < count; i++) {
        int64_t c = i % 3, column = i / 3 % 48, row = i / (3 * 48) % 32, f = i / (3 * 48 * 32),
                t = (f + 3) / 4;
        float v = 128 + 48 * x[(c * 5 + t) * 24 + row / 8 * 6 + column / 8];
        assert_int_equal(rgb[i], lrintf(fminf(fmaxf(v, 0), 255)));
    }
    sl_st_close(&st);
    sl_st_close(&latents);
    t_run_close(&run);
}

/* Without decode and mux a job ends with its latents. */
static void test_without_decode(void **state)
{
    char again[300];
    (void)state;
    open_run("stages: ( { name = \"text\"; program = \"sluice-text\"; }, { name = \"image\"; "
             "program = \"sluice-image\"; },"
             " { name = \"denoise\"; program = \"sluice-denoise\"; } );\n");
    snprintf(again, sizeof again, "%s/a", run.out);
    start("17", "12", "--dump", again, NULL);
    check_end(0, 1);
    if (!t_same_file(t_format("%s/denoise.safetensors", dump),
                     t_format("%s/denoise.safetensors", again)))
        t_run_fail(&run, "the latents are others");
    t_run_close(&run);
}

/* Without a stage that the job needs, it is refused, not kept waiting. */
static void test_without_text(void **state)
{
    (void)state;
    open_run("stages: ( { name = \"image\"; program = \"sluice-image\"; }, { name = \"denoise\"; "
             "program = \"sluice-denoise\"; } );\n");
    start("17", "12", NULL);
    int status = t_run_end(&run);
    if (status != 1 && status != 2) t_run_fail(&run, "exit status %d, want 1 or 2", status);
    if (!t_run_said(&run, "text")) t_run_fail(&run, "nobody said that text is missing");
    t_run_nothing_left(&run, 0);
    assert_int_equal(t_count_files(run.out, NULL), 0);
    t_run_close(&run);
}

/* ---- a spool that cannot be written ---- */

/* A folder lies where the latents' file should be: the job does without, and says so where the
 * file itself was asked for. */
static void test_spool_fails(void **state)
{
    (void)state;
    for (int dumped = 0; dumped < 2; dumped++) {
        char folder[1024] = "", again[300];
        open_run("");
        snprintf(again, sizeof again, "%s/a", run.out);
        start("17", "12", dumped ? "--dump" : NULL, again, NULL);
        t_run_until(&run, "<- client SUBMIT");
        assert_int_equal(sscanf(strstr(run.line, "dir=\""), "dir=\"%900[^\"]", folder), 1);
        t_run_until(&run, "<- denoise TAKEN");
        assert_int_equal(mkdir(t_format("%s/denoise.safetensors", folder), 0700), 0);
        t_run_ends(&run, dumped);
        t_run_nothing_left(&run, 0);
        if (dumped && !t_run_said(&run, "denoise.safetensors: cannot be "))
            t_run_fail(&run, "nobody said what cannot be written");
        if (dumped && !t_run_said(&run, "the video is written, its dump is not whole: "))
            t_run_fail(&run, "nobody said what the dump lacks");
        if (!t_same_file(t_format("%s/a.mp4", run.out), t_format("%s/../a.mp4", dump)))
            t_run_fail(&run, "another video without the spool");
        t_run_close(&run);
    }
}

/* ---- the undisturbed run ---- */

/* ---- without a checkpoint ---- */

/* A folder of configurations and a tokenizer is enough with model.random; without the setting the
 * weights are missed before anything starts, and so is the tokenizer with it. */
static void test_random_weights(void **state)
{
    static const char *const PARTS[] = {"model_index.json",         "scheduler",
                                        "image_processor",          "tokenizer",
                                        "text_encoder/config.json", "image_encoder/config.json",
                                        "transformer/config.json",  "vae/config.json"};
    char model[400], from[1200], to[700], cwd[512], video[500];
    (void)state;
    open_run("model: { random = 1; };\n");
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(model, sizeof model, "%s/model", run.base);
    snprintf(video, sizeof video, "%s/r.mp4", run.out);
    assert_int_equal(mkdir(model, 0700), 0);
    for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
        snprintf(from, sizeof from, "%s/" T_MODEL "/%s", cwd, PARTS[i]);
        snprintf(to, sizeof to, "%s/%s", model, PARTS[i]);
        char *slash = strchr(to + strlen(model) + 1, '/');
        if (slash) *slash = 0, mkdir(to, 0700), *slash = '/';
        assert_int_equal(symlink(from, to), 0);
    }
    char *args[] = {"sluice", "run",      "--quiet", "--conf",   run.conf, "--model",
                    model,    "--image",  T_IMAGE,   "--prompt", PROMPT,   "--width",
                    "48",     "--height", "32",      "--frames", "5",      "--steps",
                    "2",      "--seed",   "7",       "-o",       video,    NULL};
    t_run_start(&run, args);
    check_end(0, 1);
    t_run_conf(&run, 5, 30, "");
    t_run_start(&run, args);
    check_end(2, 1);
    if (!t_run_said(&run, "safetensors")) t_run_fail(&run, "nobody missed the weights");
    t_run_conf(&run, 5, 30, "model: { random = 1; };\n");
    snprintf(to, sizeof to, "%s/tokenizer", model);
    assert_int_equal(unlink(to), 0);
    t_run_start(&run, args);
    check_end(2, 1);
    if (!t_run_said(&run, t_format("no tokenizer: %s/spiece.model: No such file or directory", to)))
        t_run_fail(&run, "nobody missed the tokenizer");
    t_run_close(&run);
}

static int make_dump(void **state)
{
    (void)state;
    open_run("");
    snprintf(dump, sizeof dump, "%s/a", run.out);
    start("17", "12", "--dump", dump, NULL);
    check_end(0, 2);
    return 0;
}

static int remove_dump(void **state)
{
    (void)state;
    char *end = strstr(dump, "/out/");
    if (end) *end = 0, t_rmdir(dump);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jobs_overlap),   cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_terminate),      cmocka_unit_test(test_replay),
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_defaults_put_aside),
        cmocka_unit_test(test_other_mux),      cmocka_unit_test(test_other_decode),
        cmocka_unit_test(test_without_decode), cmocka_unit_test(test_without_text),
        cmocka_unit_test(test_spool_fails),    cmocka_unit_test(test_random_weights),
    };
    return cmocka_run_group_tests_name("pipeline", tests, make_dump, remove_dump);
}
