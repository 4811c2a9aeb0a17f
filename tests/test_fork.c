/* test_fork - a replay that begins in the middle of the denoising: the same bytes where nothing
 * else is asked for, another guidance, prompt, sampler, LoRA or cache from there on.
 * takes: 11 s. */
#include "tests/t.h"

#pragma GCC diagnostic ignored "-Wunused-function" /* not all of these cases */
#include "tests/t_hostile.h"

#include "common/state.h"
#include "stages/denoise/taps.h"
#include "tests/t_run.h"

#define STEPS 6

/* `sluice run` of a job with more than one step, dumped into the folder; options end with NULL. */
static void dump_with(const char *folder, const char *const options[])
{
    command c = job();
    set(&c, "--steps", f("%d", STEPS));
    set(&c, "--guidance", "5");
    set(&c, "--dump", folder);
    for (int i = 0; options && options[i]; i += 2) set(&c, options[i], options[i + 1]);
    add(&c, "--dump-steps");
    set(&c, "-o", f("%s.mp4", folder));
    works_(folder, &c, 0, false);
}

/* A fork of the dump in `from`, dumped into `to`; what it said. */
static const char *fork_to(const char *to, const char *from, int step, const char *const options[])
{
    size_t n;
    command c = other("replay", from);
    set(&c, "--from", "denoise");
    if (step) set(&c, "--step", f("%d", step));
    set(&c, "--dump", to);
    set(&c, "-o", f("%s.mp4", to));
    for (int i = 0; options && options[i]; i += 2) set(&c, options[i], options[i + 1]);
    add(&c, "--dump-steps");
    add(&c, "--quiet");
    const int status = finish(&c, start(&c));
    char *said = get_file(at("stderr"), &n);
    if (status) fail_msg("exit status %d: %s\n%s", status, text_of(&c), said);
    const char *kept_text = f("%s", said);
    free(said);
    nothing_left(&c, 0);
    return kept_text;
}

static bool same(const char *a, const char *b)
{
    return t_same_file(f("%s.mp4", a), f("%s.mp4", b)) &&
           t_same_file(f("%s/frames.safetensors", a), f("%s/frames.safetensors", b));
}

/* A tensor of a dump's file, F32 and whole; the caller has it until it closes *st. */
static sl_tensor tensor(sl_st **st, const char *folder, const char *file, const char *name)
{
    sl_err err = {0};
    T_OK(sl_st_open_file(st, f("%s/%s.safetensors", folder, file), &err));
    const sl_st_entry *e = sl_st_find(*st, name);
    if (!e) fail_msg("%s/%s has no %s", folder, file, name);
    return e->t;
}

static bool same_tensor(const char *a, const char *b, const char *file, const char *name)
{
    sl_st *x, *y;
    const sl_tensor of_a = tensor(&x, a, file, name), of_b = tensor(&y, b, file, name);
    const bool equal =
        sl_same_shape(&of_a, &of_b) && !memcmp(of_a.data, of_b.data, sl_bytes(&of_a));
    sl_st_close(&x);
    sl_st_close(&y);
    return equal;
}

static void nothing_else_is_asked_for(void **unused)
{
    (void)unused;
    static const char *const SAMPLERS[] = {"unipc", "euler"};
    for (int s = 0; s < 2; s++) {
        dump_with(at("whole"), (const char *[]){"--sampler", SAMPLERS[s], NULL});
        for (int k = 1; k < STEPS; k += 2) {
            fork_to(at("fork"), at("whole"), k, NULL);
            if (!same(at("whole"), at("fork")))
                fail_msg("%s, step %d: other bytes", SAMPLERS[s], k);
            for (int i = k; i < STEPS; i++)
                assert_true(
                    same_tensor(at("whole"), at("fork"), "denoise", f("step.%d.latents", i)));
            if (k > 1) continue;
            /* a dump of a fork is a dump: replayed, and forked again */
            fork_to(at("again"), at("fork"), 0, NULL);
            assert_true(same(at("whole"), at("again")));
            fork_to(at("again"), at("fork"), 3, NULL);
            assert_true(same(at("whole"), at("again")));
        }
    }
}

/* Where the cache skipped a step, the fork begins at the last one that was computed. */
static void a_step_that_the_cache_skipped(void **unused)
{
    int skipped = 0;
    (void)unused;
    dump_with(at("whole"), (const char *[]){"--fbcache", "0.3", NULL});
    for (int k = 1; k < STEPS; k++) {
        sl_st *st;
        int64_t level[SL_LEVEL_COUNT];
        memcpy(level, tensor(&st, at("whole"), f("state.%d", k), "level").data, sizeof level);
        sl_st_close(&st);
        skipped += !level[SL_LEVEL_COMPUTED];
        fork_to(at("fork"), at("whole"), k, NULL);
        if (!same(at("whole"), at("fork"))) fail_msg("step %d: other bytes", k);
    }
    assert_true(skipped > 0 && skipped < STEPS - 1);
    /* another cache begins where it was told to */
    const char *said =
        fork_to(at("fork"), at("whole"), 4, (const char *[]){"--fbcache", "0", NULL});
    T_SAYS(said, f("begins at step 5 of %d", STEPS));
    assert_false(same(at("whole"), at("fork")));
}

static void something_else_is_asked_for(void **unused)
{
    static const char *const CASES[][3] = {
        {"--guidance", "2"},
        {"--prompt", "a dog"},
        {"--negative", "bad"},
        {"--sampler", "euler"},
        {"--lora", "tests/golden/lora-i2v/a-peft.safetensors"},
    };
    (void)unused;
    dump_with(at("whole"), NULL);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        fork_to(at("fork"), at("whole"), 3, CASES[i]);
        if (same(at("whole"), at("fork"))) fail_msg("%s changes nothing", CASES[i][0]);
        /* the same state, other latents after it */
        assert_true(same_tensor(at("whole"), at("fork"), "state.3", "x"));
        assert_false(same_tensor(at("whole"), at("fork"), "denoise", "step.3.latents"));
        const bool text = strstr("--prompt --negative", CASES[i][0]) != NULL;
        assert_int_equal(t_same_file(f("%s/text.safetensors", at("whole")),
                                     f("%s/text.safetensors", at("fork"))),
                         !text);
    }
    /* back to the other sampler, which has no history there */
    dump_with(at("whole"), (const char *[]){"--sampler", "euler", NULL});
    fork_to(at("fork"), at("whole"), 3, (const char *[]){"--sampler", "unipc", NULL});
    assert_false(same(at("whole"), at("fork")));
    /* a dump without guidance has no uncond: the text is made again */
    dump_with(at("whole"), (const char *[]){"--guidance", "1", NULL});
    fork_to(at("fork"), at("whole"), 3, (const char *[]){"--guidance", "5", NULL});
    assert_true(same_tensor(at("whole"), at("fork"), "text", "cond"));
    assert_true(same_tensor(at("whole"), at("fork"), "state.3", "x"));
}

/* A job that failed in the middle goes on from its last step. */
static void a_job_that_was_cancelled(void **unused)
{
    char names[512];
    command c = job();
    (void)unused;
    dump_with(at("whole"), (const char *[]){"--steps", "100", NULL});
    set(&c, "--steps", "100");
    set(&c, "--guidance", "5");
    set(&c, "--dump", at("part"));
    add(&c, "--dump-steps");
    pid_t pid = start(&c);
    for (int i = 0; i < 3000; i++) {
        const char *work = at("part/.sluice");
        if (list_dir(work, names, sizeof names) == 1 &&
            !access(f("%s/%.*s/state.9.safetensors", work, (int)strcspn(names, " "), names), F_OK))
            break;
        usleep(5000);
    }
    kill(pid, SIGINT);
    assert_int_equal(finish(&c, pid), 1);
    fork_to(at("fork"), at("part"), 9, NULL);
    assert_true(same(at("whole"), at("fork")));
}

static void refusals(void **unused)
{
    static const struct {
        const char *from, *step, *option, *value, *says;
    } CASES[] = {
        {"denoise", "2", NULL, NULL, "--step is 2, want 1 to 1: the dump has 2 steps"},
        {"denoise", "-1", NULL, NULL, "--step is -1, want 1 to 1"},
        {"decode", "1", NULL, NULL, "--step is given, but --from is decode, want --from denoise"},
        {"denoise", "1", "--steps", "3", "--steps is given, but a fork keeps the dump's"},
        {"denoise", "1", "--seed", "3", "--seed is given, but a fork keeps the dump's"},
        {"denoise", "1", "--width", "64", "--width is given"},
        {"denoise", "1", NULL, NULL, "has no state.1.safetensors, want a dump with --dump-steps"},
    };
    command c;
    (void)unused;
    dump_with(at("whole"), (const char *[]){"--steps", "2", NULL});
    unlink(at("whole/state.1.safetensors"));
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        c = other("replay", at("whole"));
        set(&c, "--from", CASES[i].from);
        set(&c, "--step", CASES[i].step);
        if (CASES[i].option) set(&c, CASES[i].option, CASES[i].value);
        set(&c, "-o", at("out/out.mp4"));
        REFUSED(2, c, CASES[i].says);
    }
    c = job();
    set(&c, "--step", "1");
    REFUSED(2, c, "--step belongs to sluice replay");
}

/* ---- --dump-blocks-of ---- */

static void chosen_blocks(void **unused)
{
    static const char *const THERE[] = {"step.1.uncond.block.2.attn1.q", "step.1.block.2",
                                        "step.1.block.2.attn2.k", "step.1.uncond.input", "text"},
                             *const NOT[] = {"block.2", "step.1.block.0", "step.2.block.2"};
    command c = job();
    (void)unused;
    set(&c, "--steps", "3");
    set(&c, "--guidance", "5");
    set(&c, "--dump", at("whole"));
    set(&c, "--dump-blocks-of", "steps=1 branches=cond,uncond blocks=2 attention");
    works_("blocks", &c, 1, true);
    for (size_t i = 0; i < sizeof THERE / sizeof *THERE; i++)
        if (access(f("%s/%s.safetensors", at("whole/blocks"), THERE[i]), R_OK))
            fail_msg("%s is missing", THERE[i]);
    for (size_t i = 0; i < sizeof NOT / sizeof *NOT; i++)
        if (!access(f("%s/%s.safetensors", at("whole/blocks"), NOT[i]), R_OK))
            fail_msg("%s is there", NOT[i]);
    static const char *const BAD[][2] = {
        {"steps=3", "--dump-blocks-of: steps=3 has 3, want numbers from 0 to 2"},
        {"blocks=1-", "blocks=1-, want numbers and ranges as 0,3-5, or all"},
        {"branches=both", "branches=both, want cond, uncond or cond,uncond"},
        {"heads", "\"heads\" is none of steps=LIST, branches=LIST, blocks=LIST, attention"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        set(&c, "--dump-blocks-of", BAD[i][0]);
        REFUSED(2, c, BAD[i][1]);
    }
    t_rmdir(at("whole"));
}

/* A tensor of a block has a row for each token. */
static void blocks_have_all_tokens(void **unused)
{
    sl_st *st;
    command c = job();
    (void)unused;
    set(&c, "--width", "256");
    set(&c, "--height", "192");
    set(&c, "--dump", at("whole"));
    set(&c, "--dump-blocks-of", "blocks=0 attention");
    works_("many tokens", &c, 1, true);
    static const char *const NAMES[] = {"block.0.attn1", "block.0.attn2.q", "block.0.ffn"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        const sl_tensor t = tensor(&st, at("whole/blocks"), NAMES[i], NAMES[i]);
        assert_int_equal(t.shape[0], 2 * 16 * 12); /* of 5 frames */
        sl_st_close(&st);
    }
    t_rmdir(at("whole"));
}

/* More tokens than are taken at once (8,448 on the CPU): what a block makes piece by piece is one
 * tensor, also where two are made in turn. */
static void pieces_are_one_tensor(void **unused)
{
    enum { ROWS = 7, D = 3, AT_ONCE = 2 };
    static const char *const NAMES[] = {"block.0.attn1", "block.0.ffn"};
    float x[2][ROWS * D];
    sl_ctx ctx = {0};
    sl_origin origin = {.job = "1", .seed = "1"};
    denoise_taps taps = {.origin = &origin};
    sl_st *st;
    sl_err err = {0};
    (void)unused;
    for (int i = 0; i < 2 * ROWS * D; i++) x[i / (ROWS * D)][i % (ROWS * D)] = (float)i;
    mkdir(at("whole"), 0700);
    snprintf(taps.dir, sizeof taps.dir, "%s", at("whole"));
    sl_origin_of_process(&origin, "test_fork", "cpu");
    T_OK(sl_taps_parse(&taps.which, "blocks=0 attention", 1, 1, &err));
    T_OK(sl_ctx_open(&ctx, &sl_ops_cpu, 1 << 20, &err));
    ctx.tap_of = ROWS;
    for (int first = 0; first < ROWS; first += AT_ONCE)
        for (int k = 0; k < 2; k++) {
            const int64_t rows = ROWS - first < AT_ONCE ? ROWS - first : AT_ONCE;
            const sl_tensor piece = sl_view2(x[k] + first * D, SL_F32, rows, D);
            if (first) { /* no file is whole before its last piece */
                char path[SL_PATH];
                snprintf(path, sizeof path, "%s/%s.safetensors", at("whole"), NAMES[k]);
                assert_int_equal(access(path, F_OK), -1);
            }
            sl_denoise_tap(&taps, &ctx, NAMES[k], &piece);
        }
    sl_denoise_taps_close(&taps);
    for (int k = 0; k < 2; k++) {
        const sl_tensor t = tensor(&st, at("whole"), NAMES[k], NAMES[k]);
        assert_int_equal(t.shape[0], ROWS);
        assert_int_equal(t.shape[1], D);
        assert_memory_equal(t.data, x[k], sizeof x[k]);
        sl_st_close(&st);
    }
    sl_ctx_close(&ctx);
    t_rmdir(at("whole"));
}

static int clean(void **unused)
{
    static const char *const FOLDERS[] = {"whole", "fork", "again", "part"};
    for (size_t i = 0; i < sizeof FOLDERS / sizeof *FOLDERS; i++) {
        t_rmdir(at(FOLDERS[i]));
        unlink(f("%s.mp4", at(FOLDERS[i])));
    }
    return t_hostile_clean(unused);
}

int main(void)
{
#define CLEAN(test) cmocka_unit_test_setup_teardown(test, t_hostile_clean, clean)
    const struct CMUnitTest tests[] = {
        CLEAN(nothing_else_is_asked_for),
        CLEAN(a_step_that_the_cache_skipped),
        CLEAN(something_else_is_asked_for),
        CLEAN(a_job_that_was_cancelled),
        CLEAN(refusals),
        CLEAN(chosen_blocks),
        CLEAN(blocks_have_all_tokens),
        CLEAN(pieces_are_one_tensor),
    };
    return cmocka_run_group_tests_name("fork", tests, t_hostile_setup, t_hostile_teardown);
}
