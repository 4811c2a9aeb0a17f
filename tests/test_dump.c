/* test_dump - what is left of a job, however it ends: its dump is of this job alone, says
 * whether
 * it is complete, and a replay goes on from it. takes: 3 s. */
#include "tests/t.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* not all of these cases */
#include "tests/t_hostile.h"

#include "common/json.h"
#include "tests/t_run.h"

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* What stands in dump.json of the folder; "" for what is no text, "true" or "false" of complete. */
static const char *noted(const char *folder, const char *key)
{
    json_t *note;
    sl_err err = {0};
    T_OK(sl_json_read(&note, f("%s/dump.json", folder), 65536, &err));
    const json_t *value = json_object_get(note, key);
    const char *text = json_is_boolean(value) ? (json_is_true(value) ? "true" : "false")
                                              : json_string_value(value);
    text = f("%s", text ? text : "");
    json_decref(note);
    return text;
}

/* A row of __metadata__ of a file of the folder. */
static const char *origin(const char *folder, const char *file, const char *key)
{
    sl_st *st;
    sl_err err = {0};
    T_OK(sl_st_open_file(&st, f("%s/%s.safetensors", folder, file), &err));
    const char *value = sl_st_metadata(st, key);
    value = f("%s", value ? value : "");
    sl_st_close(&st);
    return value;
}

/* The exit status; *said: stderr, of which the caller has a copy until the test ends. */
static int outcome(const command *c, const char **said)
{
    size_t n;
    const int status = finish(c, start(c));
    char *text = get_file(at("stderr"), &n);
    *said = f("%s", text);
    free(text);
    return status;
}

/* ---- a job that is done ---- */

static const char *const FILES[] = {"text", "image", "denoise", "frames", "blocks/block.0"};

static void a_dump_says_what_it_is(void **unused)
{
    (void)unused;
    for (int i = 0; i < 3; i++) {
        command c = job();
        set(&c, "--steps", "2");
        if (i == 2) set(&c, "--prompt", "a dog");
        add(&c, "--dump-steps");
        add(&c, "--dump-blocks");
        set(&c, "--dump", f("%s/%d", root, i));
        works_("a dump", &c, 1, true);
    }
    const char *first = at("0"), *again = at("1"), *other_job = at("2");
    assert_string_equal(noted(first, "complete"), "true");
    assert_string_equal(noted(first, "end"), "done");
    assert_string_equal(noted(first, "seed"), "1");
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        assert_string_equal(origin(first, FILES[i], "job"), noted(first, "job"));
        assert_string_equal(origin(first, FILES[i], "version"), noted(first, "version"));
        assert_string_equal(origin(first, FILES[i], "seed"), "1");
        assert_string_equal(origin(first, FILES[i], "device"), "cpu");
        /* the same job's are the same files */
        if (!t_same_file(f("%s/%s.safetensors", first, FILES[i]),
                         f("%s/%s.safetensors", again, FILES[i])))
            fail_msg("%s is another file of the same job's", FILES[i]);
    }
    assert_string_equal(origin(first, "denoise", "program"), "sluice-denoise");
    assert_string_equal(origin(first, "frames", "program"), "sluice-mux");
    assert_string_not_equal(noted(first, "job"), noted(other_job, "job"));
    /* a step's latents are in one file */
    assert_false(there(f("%s/step.0.safetensors", first)));
    for (int i = 0; i < 3; i++) t_rmdir(f("%s/%d", root, i));
}

/* ---- a job that fails ---- */

static void write_conf(const char *decode)
{
    put_text(at("run.cfg"), t_stages(SL_ROLE_DECODE, decode));
}

/* Decode raises after the denoising: the line that is printed makes the video, once the stage is
 * mended. What it had made of frames is there. */
static void a_decode_that_raises(void **unused)
{
    const char *flat = f("%s", t_helper("helper_decode_flat")), *said;
    sl_st *st;
    sl_tensor frames;
    sl_err err = {0};
    command c = job();
    (void)unused;
    set(&c, "--frames", "9");
    set(&c, "--conf", at("run.cfg"));
    write_conf(f("{ name = \"decode\"; program = \"%s\"; }", flat));
    set(&c, "-o", at("whole.mp4"));
    works_("undisturbed", &c, 0, false);

    write_conf(
        t_format("{ name = \"decode\"; program = \"%s\"; args = [\"--raise-at\", \"1\"]; }", flat));
    set(&c, "-o", at("out/it's done.mp4"));
    set(&c, "--dump", at("dump"));
    assert_int_equal(outcome(&c, &said), 1);
    T_SAYS(said, "failed: decode: flat: raised before chunk 1");
    assert_string_equal(noted(at("dump"), "complete"), "false");
    assert_string_equal(noted(at("dump"), "end"), "failed");
    assert_string_equal(noted(at("dump"), "message"), "decode: flat: raised before chunk 1");
    T_OK(sl_st_open_file(&st, at("dump/frames.safetensors"), &err));
    T_OK(sl_st_want(st, "frames", SL_U8, 4, (int64_t[]){1, 32, 32, 3}, &frames, &err));
    sl_st_close(&st);
    nothing_left(&c, 0);

    const char *line = strstr(said, "go on with sluice ");
    if (!line) fail_msg("no line that goes on: %s", said);
    line = f("%.*s", (int)strcspn(line + 11, "\n"), line + 11);
    T_SAYS(line,
           f("sluice replay %s --from decode --conf %s --output ", at("dump"), at("run.cfg")));
    write_conf(f("{ name = \"decode\"; program = \"%s\"; }", flat));
    const char *bin = getenv("SLUICE_BIN") ? getenv("SLUICE_BIN") : "bin";
    if (system(f("TMPDIR='%s' PATH=\"%s:$PATH\"; export TMPDIR PATH; %s >'%s' 2>&1", at("tmp"), bin,
                 line, at("said"))))
        fail_msg("%s: %s", line, get_file(at("said"), &(size_t){0}));
    assert_true(t_same_file(at("out/it's done.mp4"), at("whole.mp4")));
    unlink(at("whole.mp4"));
    unlink(at("out/it's done.mp4"));
    t_rmdir(at("dump"));
}

/* A denoiser that fails: the steps that it came to are there, and the line begins there. */
static void a_denoiser_that_fails(void **unused)
{
    const char *said;
    command c = job();
    (void)unused;
    fresh_model();
    poke("transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
         "blocks.2.attn1.to_v.bias", 9, false);
    set(&c, "--model", at("model"));
    set(&c, "--dump", at("dump"));
    assert_int_equal(outcome(&c, &said), 1);
    T_SAYS(said, f("; what it had is in %s: go on with sluice replay %s --from denoise --output %s",
                   at("dump"), at("dump"), at("out/out.mp4")));
    assert_string_equal(noted(at("dump"), "complete"), "false");
    nothing_left(&c, 0);
    t_rmdir(at("dump"));
}

/* ---- a job that is cancelled ---- */

static void a_cancelled_job(void **unused)
{
    char names[512];
    command c = job();
    (void)unused;
    /* another's, which is not to be taken for this one's */
    mkdir(at("dump"), 0700);
    put_text(at("dump/dump.json"), "{\"complete\": true}");
    put_text(at("dump/frames.safetensors"), "another's");
    put_text(at("dump/state.3.safetensors"), "another's");
    set(&c, "--steps", "1000");
    set(&c, "--dump", at("dump"));
    add(&c, "--dump-steps");
    pid_t pid = start(&c);
    /* until steps are there */
    for (int i = 0; i < 3000; i++) {
        const char *work = at("dump/.sluice");
        if (list_dir(work, names, sizeof names) == 1 &&
            there(f("%s/%.*s/step.3.safetensors", work, (int)strcspn(names, " "), names)))
            break;
        usleep(10000);
    }
    kill(pid, SIGINT);
    assert_int_equal(finish(&c, pid), 1);
    assert_string_equal(noted(at("dump"), "complete"), "false");
    assert_string_equal(noted(at("dump"), "end"), "cancelled");
    assert_true(there(at("dump/text.safetensors")));
    assert_true(there(at("dump/step.3.safetensors")));
    assert_false(there(at("dump/frames.safetensors")));
    nothing_left(&c, 0);
    t_rmdir(at("dump"));
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup_teardown(test, t_hostile_clean, t_hostile_clean)
    const struct CMUnitTest tests[] = {
        CLEAN(a_dump_says_what_it_is),
        CLEAN(a_decode_that_raises),
        CLEAN(a_denoiser_that_fails),
        CLEAN(a_cancelled_job),
    };
    return cmocka_run_group_tests_name("dump", tests, t_hostile_setup, t_hostile_teardown);
}
