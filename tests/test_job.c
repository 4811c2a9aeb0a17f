/* test_job.c - job.json: there and back, its defaults, and a clear line for every mistake
 * in it. */
#include "t.h"

#include <sys/stat.h>

#include "common/job.h"

static char dir[256];

static int make_dir(void **unused)
{
    (void)unused;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}
static int drop_dir(void **unused)
{
    (void)unused;
    t_rmdir(dir);
    return 0;
}

static const char *in_dir(const char *name)
{
    static char path[SL_PATH];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put_file(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

/* ---- there and back ---- */

#define SAME_text(a, b) (!strcmp(a, b))
#define SAME_object(a, b) SAME_text(a, b)
#define SAME_path(a, b) (!strcmp(a, b))
#define SAME_int(a, b) ((a) == (b))
#define SAME_u64(a, b) ((a) == (b))
#define SAME_real(a, b) (!memcmp(&(a), &(b), sizeof(double)))
#define SAME_flag(a, b) ((a) == (b))

static void same(const sl_job *a, const sl_job *b)
{
#define X(kind, name, def)                                                                         \
    if (!SAME_##kind(a->name, b->name)) fail_msg(#name " came back changed");
    SL_JOB_FIELDS(X)
#undef X
}

static void test_defaults(void **unused)
{
    sl_job j;
    sl_err err = {0};
    (void)unused;
    T_OK(sl_job_init(&j, &err));
    assert_int_equal(j.frames, 81); /* the reference pipeline's */
    assert_int_equal(j.steps, 50);
    assert_true(j.guidance == 5.0 && j.shift == 3.0 && j.fbcache == 0);
    assert_int_equal(j.fps, 16);
    assert_string_equal(j.sampler, "unipc");
    assert_string_equal(j.prompt, "");
    assert_string_equal(j.negative, "");
    sl_job_free(&j);
    sl_job_free(&j); /* a zeroed job is fine */
}

static void test_round_trip(void **unused)
{
    static const uint64_t SEEDS[] = {0,
                                     1,
                                     1ull << 53,
                                     (1ull << 53) + 1,
                                     INT64_MAX,
                                     (uint64_t)INT64_MAX + 1,
                                     UINT64_MAX - 1,
                                     UINT64_MAX};
    static const char *const TEXTS[] = {"", "a red ball", "naïve café — 一只猫 🐱",
                                        "\"quotes\" \\ / \t tab\nline\r\x01\x7f",
                                        " \xef\xbb\xbf bom"};
    sl_err err = {0};
    (void)unused;
    for (size_t i = 0; i < 40; i++) {
        sl_job a, b;
        T_OK(sl_job_init(&a, &err));
        T_OK(sl_job_set_text(&a.prompt, TEXTS[i % 5], &err));
        T_OK(sl_job_set_text(&a.negative, TEXTS[(i + 1) % 5], &err));
        snprintf(a.image, SL_PATH, "/tmp/%s.png", TEXTS[(i + 2) % 5]);
        memset(a.output, 'x', SL_PATH - 1);
        a.output[SL_PATH - 1] = 0;
        a.seed = SEEDS[i % 8];
        a.guidance = 1.0 / 3 * (double)(i + 1);
        a.shift = i % 2 ? 5e-324 : 1.7976931348623157e308;
        a.fbcache = 0.1;
        a.frames = -5;
        a.steps = i % 2 ? 1000000000 : -1000000000;
        a.dump = i % 2, a.bicubic = !(i % 2);
        T_OK(sl_job_write(&a, in_dir("job.json"), &err));
        T_OK(sl_job_read(&b, in_dir("job.json"), &err));
        same(&a, &b);
        sl_job_free(&a);
        sl_job_free(&b);
    }
    struct stat st;
    assert_int_equal(stat(in_dir("job.json.tmp"), &st), -1);
}

static void test_a_long_prompt(void **unused)
{
    sl_job a, b;
    sl_err err = {0};
    size_t n = 1 << 20;
    char *text = malloc(n + 1);
    (void)unused;
    memset(text, '\t', n); /* escaped, two bytes each */
    text[n] = 0;
    T_OK(sl_job_init(&a, &err));
    T_OK(sl_job_set_text(&a.prompt, text, &err));
    T_OK(sl_job_write(&a, in_dir("long.json"), &err));
    T_OK(sl_job_read(&b, in_dir("long.json"), &err));
    same(&a, &b);
    sl_job_free(&a);
    sl_job_free(&b);
    free(text);
}

static void test_what_is_absent_stays(void **unused)
{
    sl_job j;
    sl_err err = {0};
    const char *json = "{\"steps\": 7, \"seed\": \"18446744073709551615\", \"guidance\": 2}";
    (void)unused;
    T_OK(sl_job_init(&j, &err));
    j.frames = 5;
    T_OK(sl_job_parse(&j, json, strlen(json), "x", &err));
    assert_int_equal(j.frames, 5);
    assert_int_equal(j.steps, 7);
    assert_true(j.seed == UINT64_MAX && j.guidance == 2.0);
    sl_job_free(&j);
    put_file(in_dir("short.json"), json, strlen(json));
    T_OK(sl_job_read(&j, in_dir("short.json"), &err));
    assert_int_equal(j.frames, 81);
    sl_job_free(&j);
}

/* ---- mistakes in the text ---- */

static void test_mistakes(void **unused)
{
    static const struct {
        const char *json, *says;
        sl_code code;
    } CASES[] = {
        {"", "j.json:1:0: not JSON: ", SL_FORMAT},
        {"{", "j.json:1:1: not JSON: ", SL_FORMAT},
        {"{\"steps\": 5,\n \"fps\": }", "j.json:2:9: not JSON: ", SL_FORMAT},
        {"[]", "j.json: holds no JSON object, want {...}", SL_FORMAT},
        {"7", "not JSON", SL_FORMAT},
        {"{} {}", "j.json:1:4: not JSON: end of file expected", SL_FORMAT},
        {"{\"steps\": 5, \"steps\": 6}", "not JSON: duplicate object key", SL_FORMAT},
        {"{\"prompt\": \"\xff\"}", "not JSON: ", SL_FORMAT},
        {"{\"prompt\": \"a\\u0000b\"}", "not JSON: \\u0000 is not allowed", SL_FORMAT},
        {"{\"prompt\": \"\\ud800\"}", "not JSON: ", SL_FORMAT},
        {"{\"steps\": 99999999999999999999}", "not JSON: too big integer", SL_FORMAT},
        {"{\"guidance\": 1e999}", "not JSON: real number overflow", SL_FORMAT},
        {"{\"guidance\": NaN}", "not JSON: ", SL_FORMAT},
        {"{\"stepz\": 5}", "j.json: unknown key stepz", SL_ARG},
        {"{\"ste\\nps\": 5}", "j.json: unknown key ste?ps", SL_ARG},
        {"{\"prompt\": 5}", "j.json: prompt is 5, want a text", SL_ARG},
        {"{\"prompt\": null}", "j.json: prompt is null, want a text", SL_ARG},
        {"{\"model\": [1, 2]}", "j.json: model is [1,2], want a path of at most 1023 bytes",
         SL_ARG},
        {"{\"steps\": \"5\"}",
         "j.json: steps is \"5\", want an integer from -1000000000 to 1000000000", SL_ARG},
        {"{\"steps\": 5.0}", "j.json: steps is 5.0, want an integer", SL_ARG},
        {"{\"steps\": true}", "j.json: steps is true, want an integer", SL_ARG},
        {"{\"steps\": 99999999999}", "j.json: steps is 99999999999, want an integer", SL_ARG},
        {"{\"seed\": -1}", "j.json: seed is -1, want an integer from 0 to 18446744073709551615",
         SL_ARG},
        {"{\"seed\": 1.5}", "j.json: seed is 1.5, want an integer from 0", SL_ARG},
        {"{\"seed\": \"\"}", "j.json: seed is \"\", want an integer from 0", SL_ARG},
        {"{\"seed\": \"-1\"}", "j.json: seed is \"-1\", want an integer from 0", SL_ARG},
        {"{\"seed\": \" 1\"}", "j.json: seed is \" 1\", want an integer from 0", SL_ARG},
        {"{\"seed\": \"0x10\"}", "j.json: seed is \"0x10\", want an integer from 0", SL_ARG},
        {"{\"seed\": \"18446744073709551616\"}",
         "j.json: seed is \"18446744073709551616\", want an integer from 0", SL_ARG},
        {"{\"guidance\": \"5\"}", "j.json: guidance is \"5\", want a number", SL_ARG},
        {"{\"dump\": 1}", "j.json: dump is 1, want true or false", SL_ARG},
        {"{\"prompt\": {\"a\\nb\": 1}}", "j.json: prompt is {\"a\\nb\":1}, want a text", SL_ARG},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_job j;
        sl_err err = {0};
        T_OK(sl_job_init(&j, &err));
        T_CODE(sl_job_parse(&j, CASES[i].json, strlen(CASES[i].json), "j.json", &err),
               CASES[i].code);
        T_SAYS(err.msg, CASES[i].says);
        assert_null(strchr(err.msg, '\n'));
        sl_job_free(&j);
    }
}

static void test_a_path_too_long(void **unused)
{
    char json[SL_PATH + 64], joined[SL_PATH];
    sl_job j;
    sl_err err = {0};
    (void)unused;
    T_OK(sl_job_init(&j, &err));
    for (int n = SL_PATH - 1; n <= SL_PATH; n++) {
        int at = snprintf(json, sizeof json, "{\"image\": \"");
        memset(json + at, 'p', (size_t)n);
        snprintf(json + at + n, sizeof json - (size_t)(at + n), "\"}");
        if (n < SL_PATH) T_OK(sl_job_parse(&j, json, strlen(json), "j", &err));
        else {
            T_CODE(sl_job_parse(&j, json, strlen(json), "j", &err), SL_ARG);
            T_SAYS(err.msg, "want a path of at most 1023 bytes");
        }
    }
    T_OK(sl_path_join(joined, "a", "b", &err));
    assert_string_equal(joined, "a/b");
    T_CODE(sl_path_join(joined, j.image, "b", &err), SL_ARG);
    T_SAYS(err.msg, "is longer than 1023 bytes");
    sl_job_free(&j);
}

/* ---- files ---- */

static void no_file(const char *path, sl_code code, const char *says)
{
    sl_job j;
    sl_err err = {0};
    T_CODE(sl_job_read(&j, path, &err), code);
    T_SAYS(err.msg, path);
    T_SAYS(err.msg, says);
    sl_job_free(&j); /* harmless after an error */
}

static void test_files(void **unused)
{
    sl_job j;
    sl_err err = {0};
    (void)unused;
    no_file(in_dir("none.json"), SL_SYS, "No such file or directory");
    no_file(dir, SL_SYS, "is no regular file");
    mkfifo(in_dir("fifo"), 0600); /* would wait for a writer for ever */
    no_file(in_dir("fifo"), SL_SYS, "is no regular file");
    put_file(in_dir("empty"), "", 0);
    no_file(in_dir("empty"), SL_FORMAT, "not JSON");
    put_file(in_dir("nul"), "{}\0{}", 5);
    no_file(in_dir("nul"), SL_FORMAT, "not JSON");
    put_file(in_dir("wrong"), "{\"steps\": []}", 13);
    no_file(in_dir("wrong"), SL_ARG, "steps is [], want an integer");
    FILE *f = fopen(in_dir("huge"), "wb");
    assert_int_equal(ftruncate(fileno(f), (off_t)1 << 40), 0);
    fclose(f);
    no_file(in_dir("huge"), SL_FORMAT, "has 1099511627776 bytes, want at most");

    T_OK(sl_job_init(&j, &err));
    T_CODE(sl_job_write(&j, in_dir("none/job.json"), &err), SL_SYS);
    T_SAYS(err.msg, "No such file or directory");
    T_OK(sl_job_set_text(&j.prompt, "a\xff", &err));
    T_CODE(sl_job_write(&j, in_dir("bad.json"), &err), SL_FORMAT);
    T_SAYS(err.msg, "not valid UTF-8");
    assert_int_equal(access(in_dir("bad.json"), F_OK), -1);
    sl_job_free(&j);
}

static void test_a_full_disk(void **unused)
{
    sl_job j;
    sl_err err = {0};
    (void)unused;
    if (access("/dev/full", W_OK)) skip();
    /* where job.json is written before it has its name */
    assert_int_equal(symlink("/dev/full", in_dir("full.json.tmp")), 0);
    T_OK(sl_job_init(&j, &err));
    T_CODE(sl_job_write(&j, in_dir("full.json"), &err), SL_SYS);
    T_SAYS(err.msg, "No space left on device");
    assert_int_equal(access(in_dir("full.json"), F_OK), -1);
    assert_int_equal(access(in_dir("full.json.tmp"), F_OK), -1);
    sl_job_free(&j);
}

/* ---- ranges ---- */

static void good(sl_job *j)
{
    sl_err err = {0};
    T_OK(sl_job_init(j, &err));
    j->width = 832, j->height = 480;
    T_OK(sl_job_check(j, &err));
}

#define REFUSED(field, value, says)                                                                \
    do {                                                                                           \
        sl_job job_;                                                                               \
        sl_err err = {0};                                                                          \
        good(&job_);                                                                               \
        job_.field = value;                                                                        \
        T_CODE(sl_job_check(&job_, &err), SL_ARG);                                                 \
        assert_string_equal(err.msg, says);                                                        \
        sl_job_free(&job_);                                                                        \
    } while (0)

static void test_ranges(void **unused)
{
    (void)unused;
    REFUSED(frames, 80, "frames is 80, want 4k + 1 (nearest: 81)");
    REFUSED(frames, 82, "frames is 82, want 4k + 1 (nearest: 81)");
    REFUSED(frames, 83, "frames is 83, want 4k + 1 (nearest: 85)");
    REFUSED(frames, 0, "frames is 0, want 4k + 1 (nearest: 1)");
    REFUSED(frames, INT32_MIN, "frames is -2147483648, want 4k + 1 (nearest: 1)");
    REFUSED(frames, INT32_MAX, "frames is 2147483647, want 4k + 1 (nearest: 4097)");
    REFUSED(width, 0, "width is 0, want 16 to 8192 (pixels)");
    REFUSED(width, -16, "width is -16, want 16 to 8192 (pixels)");
    REFUSED(width, INT32_MAX, "width is 2147483647, want 16 to 8192 (pixels)");
    REFUSED(height, 8208, "height is 8208, want 16 to 8192 (pixels)");
    REFUSED(width, 100,
            "size is 100x480, want width and height that are multiples of 16 (nearest: 96x480)");
    REFUSED(height, 8191,
            "size is 832x8191, want width and height that are multiples of 16 (nearest: 832x8192)");
    REFUSED(fps, 0, "fps is 0, want 1 to 240 (frames a second)");
    REFUSED(steps, 0, "steps is 0, want 1 to 1000 (sampler steps)");
    REFUSED(steps, 1001, "steps is 1001, want 1 to 1000 (sampler steps)");
    REFUSED(crf, 52, "crf is 52, want 0 to 51 (x264 quality, lower is better)");
    REFUSED(guidance, NAN, "guidance is nan, want 0 to 1000 (classifier-free guidance)");
    REFUSED(guidance, -1, "guidance is -1, want 0 to 1000 (classifier-free guidance)");
    REFUSED(guidance_2, INFINITY,
            "guidance_2 is inf, want 0 to 1000 (the second expert's guidance)");
    REFUSED(shift, 0, "shift is 0, want 0.01 to 100 (timestep shift)");
    REFUSED(fbcache, -0.1, "fbcache is -0.1, want 0 to 10 (First Block Cache threshold, 0 is off)");
    REFUSED(fbcache, 10.1, "fbcache is 10.1, want 0 to 10 (First Block Cache threshold, 0 is off)");
    REFUSED(fbcache_warmup, -1, "fbcache_warmup is -1, want 0 to 1000 (steps)");
    REFUSED(fbcache_max_hits, -1,
            "fbcache_max_hits is -1, want 0 to 1000 (hits in a row, 0 is no cap)");
    REFUSED(fbcache_final, 1001, "fbcache_final is 1001, want 0 to 1000 (steps)");
    REFUSED(sampler[0], 'x', "sampler is xnipc, want unipc, euler or lightx2v");
    REFUSED(sampler[0], '\n', "sampler is ?nipc, want unipc, euler or lightx2v");
    REFUSED(output[0], (char)0xff, "output is not valid UTF-8");
}

static void test_bounds_are_fine(void **unused)
{
    sl_job j;
    sl_err err = {0};
    (void)unused;
    good(&j);
    j.width = 16, j.height = 8192, j.frames = 1, j.fps = 240, j.steps = 1000, j.crf = 0,
    j.guidance = 0, j.shift = 0.01;
    snprintf(j.sampler, SL_PATH, "euler");
    T_OK(sl_job_check(&j, &err));
    j.frames = 4097;
    T_OK(sl_job_check(&j, &err));
    assert_int_equal(sl_job_latent_frames(&j), 1025);
    j.frames = 81;
    assert_int_equal(sl_job_latent_frames(&j), 21);
    sl_job_free(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_a_long_prompt), cmocka_unit_test(test_what_is_absent_stays),
        cmocka_unit_test(test_mistakes),      cmocka_unit_test(test_a_path_too_long),
        cmocka_unit_test(test_files),         cmocka_unit_test(test_a_full_disk),
        cmocka_unit_test(test_ranges),        cmocka_unit_test(test_bounds_are_fine),
    };
    return cmocka_run_group_tests_name("job", tests, make_dir, drop_dir);
}
