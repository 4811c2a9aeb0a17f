/* test_request.c - the library of stages/job without a command line: a request from JSON text
 * is completed, checked, admitted, and gets its folder; what is wrong is a code and one line,
 * and nothing is printed, written or ended. */
#include "tests/t.h"
#include "tests/t_run.h"
#include "tests/t_schema.h"

#include <jansson.h>

#include "common/picture.h"
#include "stages/job/check.h"
#include "stages/job/files.h"
#include "stages/job/dump.h"
#include "stages/job/folder.h"
#include "stages/job/hints.h"
#include "stages/job/intake.h"
#include "stages/job/options.h"
#include "stages/job/plan.h"
#include "stages/job/replay.h"
#include "stages/job/report.h"

static sl_err err;
static t_run r; /* its folders alone */
static sl_model model;
static sl_conf conf;

static int setup(void **state)
{
    (void)state;
    t_run_open(&r);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    t_run_close(&r);
    return 0;
}

/* ---- batches ---- */

static sl_code set(sl_batch *b, const char *name, const char *value)
{
    const sl_option *o = NULL;
    sl_code rc = sl_option_find(&o, name, SL_OPTION_OF_RUN, &err);
    void *owner = o && o->owner == SL_OPTION_OF_RUN ? (void *)b : (void *)&b->base;
    return rc ? rc : sl_option_set(owner, o, value, &err);
}

/* A batch of the tiny checkpoint; the stages' programs do not lie beside this test, so that a
 * configuration names them. `more`: further settings. */
static void open_batch(sl_batch *b, const char *more)
{
    static const char *const ROLES[] = {"text", "image", "denoise", "decode", "mux"};
    char text[2048];
    int n = snprintf(text, sizeof text, "%sstages: (", more);
    for (int i = 0; i < 5; i++)
        n += snprintf(text + n, sizeof text - (size_t)n,
                      "%s{ name = \"%s\"; program = \"%s/sluice-%s\"; }", i ? ", " : "", ROLES[i],
                      t_bin(), ROLES[i]);
    snprintf(text + n, sizeof text - (size_t)n, ");\n");
    t_write(r.conf, text);
    T_OK(sl_batch_init(b, &err));
    T_OK(set(b, "model", T_MODEL));
    T_OK(set(b, "conf", r.conf));
}

static sl_code add(sl_batch *b, const char *json)
{
    return sl_batch_add_json(b, json, strlen(json), "request", 0, &err);
}

static const char *asking(const char *more)
{
    return t_format("{\"prompt\": \"a cat\", \"image\": \"" T_IMAGE
                    "\", \"output\": \"%s/a.mp4\", \"frames\": 9, \"steps\": 3%s}",
                    r.out, more);
}

static bool empty(const char *dir)
{
    return rmdir(dir) == 0 && mkdir(dir, 0700) == 0;
}

/* ---- from text to folder ---- */

static void a_request_becomes_a_folder(void **state)
{
    char spool[300];
    sl_batch b;
    sl_admission fits;
    sl_job read;
    char path[SL_PATH];
    snprintf(spool, sizeof spool, "%s/spool", r.base);
    open_batch(&b, "");
    T_OK(add(
        &b, asking(", \"max-area\": 6144, \"guidance\": 1.5, \"seed\": \"18446744073709551615\"")));
    assert_int_equal(b.job_count, 1);
    T_OK(sl_batch_check(&b, &model, &conf, &err));
    sl_request *q = &b.jobs[0];
    /* as asked for */
    assert_string_equal(q->spec.prompt, "a cat");
    assert_int_equal(q->spec.frames, 9);
    assert_true(q->spec.seed == UINT64_MAX);
    /* completed: from the picture, the checkpoint, the settings */
    assert_int_equal(q->spec.width, 80);
    assert_int_equal(q->spec.height, 64);
    assert_int_equal(q->spec.bicubic, 1);
    assert_true(q->spec.guidance_2 == 1.5 && q->spec.shift == 3.0);
    assert_string_equal(q->spec.sampler, "unipc");
    assert_int_equal(q->spec.fps, 16); /* the model's */
    assert_int_equal(q->spec.crf, conf.video.crf);
    assert_true(*q->spec.model == '/' && !strcmp(q->spec.model, model.dir));

    T_OK(sl_plan_admit(&fits, &b, &model, &conf, &err));
    assert_true(fits.mapped > 0 && fits.held <= fits.mapped);

    q->id = 7;
    T_OK(sl_request_open_dir(q, spool, "", &err));
    assert_string_equal(q->dir, t_format("%s/%d-7", spool, (int)getpid()));
    assert_true(t_same_file(t_format("%s/image.input", q->dir), T_IMAGE));
    T_OK(sl_path_join(path, q->dir, "job.json", &err));
    T_OK(sl_job_read(&read, path, &err));
    assert_int_equal(read.width, 80);
    assert_true(read.seed == UINT64_MAX);
    assert_string_equal(read.prompt, "a cat");
    sl_job_free(&read);
    assert_true(empty(r.out)); /* a check makes no output */
    sl_remove_tree(spool);
    sl_batch_free(&b);
    sl_batch_free(&b); /* a freed one is fine */
    (void)state;
}

static void a_dump_leaves_the_folder(void **state)
{
    sl_batch b;
    open_batch(&b, "");
    T_OK(add(&b, asking(t_format(", \"dump\": \"%s/dump\"", r.out))));
    T_OK(sl_batch_check(&b, &model, &conf, &err));
    sl_request *q = &b.jobs[0];
    assert_int_equal(q->spec.dump, 1);
    q->id = 1;
    T_OK(sl_request_open_dir(q, t_format("%s/spool", r.base), "", &err));
    t_write(t_format("%s/text.safetensors", q->dir), "text");
    t_write(t_format("%s/state.safetensors", q->dir), "no hand-over");
    int handovers = 0;
    T_OK(sl_request_dump(q, &(sl_dump_end){SL_OK, "", ""}, &handovers, &err));
    assert_int_equal(handovers, 1);
    assert_true(t_same_file(t_format("%s/dump/image.input", r.out), T_IMAGE));
    assert_int_equal(access(t_format("%s/dump/job.json", r.out), R_OK), 0);
    assert_int_equal(access(t_format("%s/dump/text.safetensors", r.out), R_OK), 0);
    assert_true(access(t_format("%s/dump/state.safetensors", r.out), F_OK) != 0);
    /* until the folder goes: a run that is killed now has lost nothing */
    assert_int_equal(access(t_format("%s/text.safetensors", q->dir), F_OK), 0);
    assert_int_equal(access(t_format("%s/dump/dump.json", r.out), R_OK), 0);
    sl_batch_free(&b);

    /* the dump is where a replay starts */
    open_batch(&b, "");
    sl_batch_free(&b);
    T_OK(sl_batch_init(&b, &err));
    T_OK(sl_batch_replay(&b, t_format("%s/dump", r.out), &err));
    T_OK(sl_batch_expand(&b, &err));
    T_CODE(sl_batch_open(&b, &model, &conf, &err), SL_ARG);
    assert_string_equal(err.msg, "--from is \"\", want text, image, denoise or decode");
    sl_batch_free(&b);
    T_OK(sl_batch_init(&b, &err));
    T_OK(sl_batch_replay(&b, t_format("%s/dump", r.out), &err));
    T_OK(set(&b, "from", "text"));
    T_OK(sl_batch_expand(&b, &err));
    assert_string_equal(b.jobs[0].spec.prompt, "a cat");
    assert_string_equal(b.jobs[0].spec.output, "out.mp4");
    sl_batch_free(&b);
    T_OK(sl_batch_init(&b, &err));
    T_CODE(sl_batch_replay(&b, r.base, &err), SL_ARG);
    T_SAYS(err.msg, "is no folder that --dump wrote: no job.json in it");
    sl_batch_free(&b);
    sl_remove_tree(t_format("%s/dump", r.out));
    sl_remove_tree(t_format("%s/spool", r.base));
    (void)state;
}

/* Every option of a job speaks to a stage, or is the run's own; a replay refuses those whose stage
 * it does not run again. */
static void a_replay_takes_what_it_can_use(void **state)
{
    static const char *const OWN = " model set params dump json trace ";
    const sl_option *o;
    sl_err bad = {0};
    (void)state;
    for (int i = 0; (o = sl_option_at(i)); i++) {
        if (o->owner == SL_OPTION_OF_RUN) continue;
        sl_request q = {.given = (uint64_t)1 << i};
        snprintf(q.spec.image, SL_PATH, "picture.png");
        const sl_role role = sl_replay_role(o->name, &model, &q.spec);
        const bool own = strstr(OWN, t_format(" %s ", o->name)) != NULL;
        assert_int_equal(own, role == SL_ROLES_MOST);
        for (int f = 0; f <= SL_ROLE_DECODE; f++) {
            const char *from = sl_role_name((sl_role)f);
            const bool fine = own || sl_role_follows(role, (sl_role)f);
            sl_code rc = sl_replay_check_options(&q, from, &model, &bad);
            if (rc != (fine ? SL_OK : SL_ARG))
                fail_msg("--%s from %s: %s", o->name, from, rc ? bad.msg : "taken");
            if (rc) T_SAYS(bad.msg, t_format("--%s is given, but a replay from %s", o->name, from));
        }
    }
}

/* All state is the batch's. */
static void two_batches_stand_beside_each_other(void **state)
{
    sl_batch a, b;
    sl_conf other;
    sl_model same;
    open_batch(&a, "");
    open_batch(&b, "");
    T_OK(set(&b, "steps", "11"));
    T_OK(add(&a, asking(", \"fps\": 12")));
    T_OK(add(&b, "{\"prompt\": \"a dog\", \"image\": \"" T_IMAGE "\", \"frames\": 5}"));
    T_OK(add(&b, t_format("{\"prompt\": \"\", \"image\": \"" T_IMAGE
                          "\", \"width\": 64, \"height\": 48, \"o\": \"%s/b.mp4\"}",
                          r.out)));
    T_OK(sl_batch_check(&b, &same, &other, &err));
    T_OK(sl_batch_check(&a, &model, &conf, &err));
    assert_int_equal(a.jobs[0].spec.fps, 12);
    assert_int_equal(a.jobs[0].spec.steps, 3);
    assert_int_equal(b.job_count, 2);
    assert_int_equal(b.jobs[0].spec.fps, 16);
    assert_int_equal(b.jobs[0].spec.steps, 11);
    assert_int_equal(b.jobs[1].spec.height, 48);
    T_SAYS(b.jobs[0].spec.output, "/out-1.mp4");
    T_SAYS(b.jobs[1].spec.output, "/b.mp4");
    sl_batch_free(&a);
    sl_batch_free(&b);
    (void)state;
}

/* ---- refusals ---- */

/* What the calls so far printed, on stdout or stderr. */
static int real_out, real_err, printed;

static void listen_to_ourselves(void)
{
    fflush(stdout);
    fflush(stderr);
    printed = open(t_format("%s/printed", r.base), O_RDWR | O_CREAT | O_TRUNC, 0600);
    real_out = dup(1);
    real_err = dup(2);
    assert_true(printed >= 0 && dup2(printed, 1) == 1 && dup2(printed, 2) == 2);
}

static void nothing_was_printed(void)
{
    fflush(stdout);
    fflush(stderr);
    const off_t bytes = lseek(printed, 0, SEEK_END);
    dup2(real_out, 1);
    dup2(real_err, 2);
    close(real_out);
    close(real_err);
    close(printed);
    assert_int_equal(bytes, 0);
}

static const struct {
    const char *json; /* NULL: asking(more) */
    const char *more;
    sl_code code;
    const char *says;
} REFUSED[] = {
    /* by the text */
    {"", NULL, SL_FORMAT, "request: want one JSON object a line: "},
    {"[]", NULL, SL_FORMAT, "request: want one JSON object a line: this is none"},
    {"{\"steps\": 1, \"steps\": 2}", NULL, SL_FORMAT, "request: want one JSON object a line: "},
    {"{\"promt\": \"x\"}", NULL, SL_ARG, "request: unknown key promt, did you mean prompt?"},
    {"{\"conf\": \"x\"}", NULL, SL_ARG, "request: unknown key conf"},
    {"{\"steps\": \"many\"}", NULL, SL_ARG,
     "request: --steps is \"many\", want an integer (sampler steps"},
    {"{\"steps\": []}", NULL, SL_ARG, "request: steps is [], want a text or a number"},
    {"{\"dump-steps\": 1}", NULL, SL_ARG, "request: dump-steps is 1, want true or false"},
    {"{\"seed\": -2}", NULL, SL_ARG,
     "request: --seed is \"-2\", want an integer from 0 to 18446744073709551615, or -1"},
    {"{\"prompt\": \"a\\u0000b\"}", NULL, SL_FORMAT, "request: want one JSON object a line: "},
    /* by the checks */
    {"{}", NULL, SL_ARG, "no prompt: want --prompt TEXT (it may be empty)"},
    {"{\"prompt\": \"x\"}", NULL, SL_ARG, "no picture: "},
    {"{\"prompt\": \"x\", \"image\": \"/nowhere.png\"}", NULL, SL_SYS, "--image: /nowhere.png: "},
    {NULL, ", \"last-image\": \"" T_IMAGE "\"", SL_ARG, "--last-image is given, but "},
    {NULL, ", \"width\": 96", SL_ARG, "--width is 96 and --height 0, want both or neither"},
    {NULL, ", \"width\": 97, \"height\": 64", SL_ARG,
     "size is 97x64, want width and height that are multiples of 16"},
    {NULL, ", \"max-area\": 3", SL_ARG, "--max-area is 3, want 256 to 67108864 pixels"},
    {NULL, ", \"crf\": 99", SL_ARG, "crf is 99"},
    {NULL, ", \"sampler\": \"ddim\"", SL_ARG, "sampler is ddim, want unipc, euler or lightx2v"},
    {NULL, ", \"noise\": \"" T_IMAGE "\"", SL_FORMAT, "--noise: "},
    {NULL, ", \"dump-steps\": true", SL_ARG, "--dump-steps wants --dump DIR"},
    {NULL, ", \"o\": \"/nowhere/a.mp4\"", SL_ARG, "output /nowhere/a.mp4 cannot be written: "},
    {NULL, ", \"trace\": \"/nowhere/t.json\"", SL_ARG, "trace /nowhere/t.json cannot be written: "},
    {NULL, ", \"json\": \"/dev/null\", \"trace\": \"/dev/null\"", SL_ARG,
     "trace /dev/null is also the report"},
    {NULL, ", \"preview\": \"/nowhere/p.png\"", SL_ARG,
     "preview /nowhere/p.png cannot be written: "},
    {NULL, ", \"preview\": \"/dev/null\"", SL_ARG, "preview: /dev/null is "},
    {NULL, ", \"preview\": \"" T_IMAGE "\"", SL_ARG, "-96x64x9.png is also the input"},
    {NULL, ", \"model\": \"/other\"", SL_ARG, "wants model /other, the run has "},
};

/* Seeds of 64 bits, "-1", rates as they are written, a size of 0, and areas of any aspect. */
static void numbers_as_people_have_them(void **state)
{
    (void)state;
    sl_batch b;
    open_batch(&b, "");
    T_OK(set(&b, "width", "64"));
    T_OK(set(&b, "height", "64"));
    T_OK(add(&b, "\xef\xbb\xbf{\"prompt\": \"12345678901234567890 \\\" 1\", "
                 "\"seed\": 18446744073709551615, \"fps\": \"30000/1001\", "
                 "\"width\": 0, \"height\": 0}"));
    T_OK(add(&b, "{\"prompt\": \"a\", \"seed\": \"18446744073709551615\", \"fps\": 23.976}"));
    T_OK(add(&b, "{\"prompt\": \"a\", \"seed\": -1}"));
    assert_true(b.jobs[0].spec.seed == UINT64_MAX && b.jobs[1].spec.seed == UINT64_MAX);
    assert_string_equal(b.jobs[0].spec.prompt, "12345678901234567890 \" 1");
    assert_true(b.jobs[0].spec.fps == 30000.0 / 1001 && b.jobs[1].spec.fps == 23.976);
    assert_true(!b.jobs[0].has_width && !b.jobs[0].has_height && !b.jobs[0].spec.width);
    assert_true(b.jobs[1].has_width && b.jobs[1].spec.width == 64);
    assert_true(b.jobs[2].random_seed && !b.jobs[1].random_seed);
    T_CODE(add(&b, "{\"seed\": 18446744073709551616}"), SL_ARG);
    T_SAYS(err.msg, "want an integer from 0 to 18446744073709551615, or -1");
    T_CODE(add(&b, "{\"seed\": -2}"), SL_ARG);
    T_CODE(add(&b, "{\"fps\": \"30000/0\"}"), SL_ARG);
    T_CODE(add(&b, "{\"fps\": \"24/\"}"), SL_ARG);
    T_CODE(add(&b, "{\"fps\": \"nan\"}"), SL_ARG);
    sl_batch_free(&b);
    static const struct {
        double fps;
        int num, den;
    } RATES[] = {{16, 16, 1},           {24, 24, 1},
                 {23.976, 24000, 1001}, {23.98, 24000, 1001},
                 {29.97, 30000, 1001},  {30000.0 / 1001, 30000, 1001},
                 {59.94, 60000, 1001},  {12.5, 25, 2},
                 {8.333, 8333, 1000},   {119.88, 120000, 1001},
                 {239.76, 240000, 1001}};
    for (size_t i = 0; i < sizeof RATES / sizeof *RATES; i++) {
        int num, den;
        sl_fps_ratio(RATES[i].fps, &num, &den);
        if (num != RATES[i].num || den != RATES[i].den)
            fail_msg("%g is %d/%d, want %d/%d", RATES[i].fps, num, den, RATES[i].num, RATES[i].den);
    }
    for (int w = 1; w < 60000; w = w * 5 / 3 + 1)
        for (int h = 1; h < 60000; h = h * 5 / 3 + 1)
            for (int64_t area = 1024; area < 2000000; area = area * 7 / 3) {
                int a, c;
                sl_picture_video_size(w, h, area, 16, &a, &c);
                if ((int64_t)a * c > area || a < 16 || c < 16 || a % 16 || c % 16)
                    fail_msg("%dx%d under %lld: %dx%d", w, h, (long long)area, a, c);
            }
}

static void names_of_others_are_offered(void **state)
{
    (void)state;
    static const char *const NAMES[][2] = {
        {"num-frames", "frames"},  {"num_frames", "frames"},         {"guidance-scale", "guidance"},
        {"cfg", "guidance"},       {"negative-prompt", "negative"},  {"flow-shift", "shift"},
        {"sample_shift", "shift"}, {"num-inference-steps", "steps"}, {"ckpt-dir", "model"},
        {"promt", "prompt"}};
    const sl_option *o;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        T_CODE(sl_option_find(&o, NAMES[i][0], SL_OPTION_OF_RUN, &err), SL_ARG);
        T_SAYS(err.msg,
               t_format("unknown option --%s, did you mean --%s?", NAMES[i][0], NAMES[i][1]));
    }
    T_CODE(sl_option_find(&o, "gpu", SL_OPTION_OF_JOB, &err), SL_ARG); /* no key of a job */
    assert_null(strstr(err.msg, "device"));
}

static void collect(void *to, const char *line)
{
    char *said = to;
    snprintf(said + strlen(said), 2000 - strlen(said), "%s\n", line);
}

/* What is asked for and not done is told; what is done is not. */
static void what_is_not_done_is_told(void **state)
{
    sl_tokenizer *tokenizer = NULL;
    (void)state;
    static char many[4000];
    for (int i = 0; i < 600; i++) strcat(many, "cat ");
    const struct {
        const char *more, *says; /* says NULL: nothing */
    } CASES[] = {
        {"", NULL},
        {", \"guidance\": 5, \"negative\": \"grey\"", NULL},
        {", \"guidance\": 1, \"negative\": \"grey\"",
         "--negative is not used without guidance: --guidance is 1, want more than 1"},
        {", \"guidance_2\": 4", "--guidance-2 is not used: "},
        {", \"fbcache_warmup\": 2", "--fbcache-warmup is given, but there is no cache without"},
        {", \"fbcache_final\": 2", "--fbcache-final is given, but there is no cache without"},
        {", \"fbcache\": 0.1, \"fbcache_warmup\": 2, \"fbcache_final\": 1",
         "--fbcache skips nothing: --fbcache-warmup 2 and --fbcache-final 1 are all of 3 steps"},
        {", \"fbcache\": 0.1, \"fbcache_warmup\": 1", NULL},
        {", \"lora_lenient\": true", "--lora-lenient is given, but no --lora"},
        {", \"crf\": 0", "--crf 0 is lossless, H.264 profile High 4:4:4 Predictive"},
        {", \"crf\": 1", NULL},
        {", \"negative\": \"caf\u00c3\u00a9\", \"guidance\": 5", "--negative looks like UTF-8"},
        {", \"negative\": \"many\", \"guidance\": 5", "the first 512: its end is not used"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_batch b;
        char said[2000] = "";
        open_batch(&b, "");
        T_OK(add(&b, asking(CASES[i].more)));
        if (!strcmp(b.jobs[0].spec.negative, "many"))
            T_OK(sl_job_set_text(&b.jobs[0].spec.negative, many, &err));
        T_OK(sl_batch_check(&b, &model, &conf, &err));
        sl_request_hints(&b.jobs[0], &model, &tokenizer, collect, said);
        const char *end = strchr(said, '\n');
        if (CASES[i].says ? !strstr(said, CASES[i].says) || !end || end[1] : *said != 0)
            fail_msg("%s: \"%s\", want \"%s\"", CASES[i].more, said,
                     CASES[i].says ? CASES[i].says : "");
        sl_batch_free(&b);
    }
    { /* no H.264 */
        sl_batch b;
        char said[2000] = "";
        open_batch(&b, "");
        T_OK(add(&b, asking(", \"crf\": 0")));
        snprintf(b.jobs[0].spec.output, SL_PATH, "%s/a.gif", r.out);
        T_OK(sl_batch_check(&b, &model, &conf, &err));
        sl_request_hints(&b.jobs[0], &model, &tokenizer, collect, said);
        assert_string_equal(said, "");
        sl_batch_free(&b);
    }
    static const char *const BROKEN[] = {"it\u00e2\u20ac\u2122s", "\u00f0\u0178\u2018\u00b1",
                                         "\u00c3\u00bc"},
                             *const WHOLE[] = {
                                 "caf\u00e9", "\u00c3",       "\u00fcber \u20ac5",
                                 "\u732b",    "\u2018\u2019", "na\u00efve \u2014 \u00abyes\u00bb",
                                 ""};
    for (int i = 0; i < 3; i++)
        if (!sl_is_mojibake(BROKEN[i])) fail_msg("%s is none", BROKEN[i]);
    for (int i = 0; i < 7; i++)
        if (sl_is_mojibake(WHOLE[i])) fail_msg("%s is one", WHOLE[i]);
    sl_tokenizer_close(&tokenizer);
}

static void what_is_wrong_is_one_line(void **state)
{
    sl_batch b;
    const char *why = NULL;
    char said[1024] = "";
    listen_to_ourselves();
    for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED && !why; i++) {
        const bool other_model = REFUSED[i].more && strstr(REFUSED[i].more, "/other");
        sl_code rc = SL_OK;
        open_batch(&b, "");
        if (other_model) rc = add(&b, asking(""));
        if (!rc) rc = add(&b, REFUSED[i].json ? REFUSED[i].json : asking(REFUSED[i].more));
        if (!rc) rc = sl_batch_check(&b, &model, &conf, &err);
        if (rc != REFUSED[i].code || !strstr(err.msg, REFUSED[i].says) || strchr(err.msg, '\n')) {
            why = REFUSED[i].says;
            snprintf(said, sizeof said, "%s %s", sl_code_name(rc), rc ? err.msg : "");
        }
        sl_batch_free(&b);
    }
    nothing_was_printed();
    if (why) fail_msg("said \"%s\", want \"%s\"", said, why);
    assert_true(empty(r.out));
    (void)state;
}

static void a_run_that_does_not_fit_is_not_admitted(void **state)
{
    sl_batch b;
    sl_admission fits;
    open_batch(&b, "limits: { memory_bytes = 1000; };\n");
    T_OK(add(&b, asking("")));
    T_OK(sl_batch_check(&b, &model, &conf, &err));
    T_CODE(sl_plan_admit(&fits, &b, &model, &conf, &err), SL_NOMEM);
    T_SAYS(err.msg, "bytes of memory, there are 1000 (limits.memory_bytes); the largest stage is ");
    sl_batch_free(&b);

    open_batch(&b, "limits: { jobs = 1; };\n");
    T_OK(add(&b, asking("")));
    T_OK(add(&b, asking(t_format(", \"o\": \"%s/b.mp4\"", r.out))));
    T_CODE(sl_batch_check(&b, &model, &conf, &err), SL_ARG);
    T_SAYS(err.msg, "2 jobs, want at most 1 (limits.jobs in ");
    sl_batch_free(&b);
    (void)state;
}

static void a_batch_has_an_end(void **state)
{
    sl_batch b;
    sl_request *q;
    T_OK(sl_batch_init(&b, &err));
    for (int i = 0; i < SL_MAX_RUN_JOBS; i++) T_OK(sl_batch_add(&b, &q, &err));
    T_CODE(sl_batch_add(&b, &q, &err), SL_ARG);
    assert_string_equal(err.msg, "the run has more than 1024 jobs");
    sl_batch_free(&b);
    (void)state;
}

/* ---- the table ---- */

static void every_job_option_is_a_key(void **state)
{
    const sl_option *o;
    int n = 0;
    for (; (o = sl_option_at(n)); n++) {
        const char *value = o->kind == SL_OPTION_FLAG     ? "true"
                            : o->kind == SL_OPTION_PARAMS ? "{\"a\": 1}"
                            : o->kind == SL_OPTION_SET    ? "\"a=1\""
                                                          : "\"1\"";
        sl_batch b;
        T_OK(sl_batch_init(&b, &err));
        const sl_code rc = add(&b, t_format("{\"%s\": %s}", o->name, value));
        if (o->owner == SL_OPTION_OF_RUN) assert_int_equal(rc, SL_ARG);
        else T_OK(rc);
        if (!rc && o->given) assert_true(*((const bool *)&b.jobs[0] + o->given));
        sl_batch_free(&b);
    }
    assert_null(sl_option_at(n + 1));
    assert_null(sl_option_at(-1));
    (void)state;
}

/* What a stage of one's own is told: key by key, or whole; a line of a jobs file adds to the
 * command's. */
static void params_are_free_form(void **state)
{
    static const char *const BAD[][3] = {
        {"set", "no value", "--set: \"no value\", want KEY=VALUE with a key of 1 to 63 bytes"},
        {"set", "=1", "--set: \"=1\", want KEY=VALUE with a key of 1 to 63 bytes"},
        {"set", "a=\xff", "--set: a: key or value is not valid UTF-8"},
        {"params", "[1]", "--params: params: holds no JSON object, want {...}"},
        {"params", "{", "--params: params:1:1: not JSON: string or '}' expected"},
    };
    sl_batch b;
    (void)state;
    T_OK(sl_batch_init(&b, &err));
    T_OK(set(&b, "set", "strength=0.5"));
    T_OK(set(&b, "set", "name=a b=c"));
    T_OK(set(&b, "set", "list=[1, true]"));
    T_OK(set(&b, "set", "strength=1"));
    assert_string_equal(b.base.spec.params,
                        "{\"strength\":1,\"name\":\"a b=c\",\"list\":[1,true]}");
    T_OK(add(&b, "{\"set\": \"strength=2\"}"));
    T_OK(add(&b, "{\"params\": {\"only\": {\"this\": null}}}"));
    T_SAYS(b.jobs[0].spec.params, "{\"strength\":2,\"name\":");
    assert_string_equal(b.jobs[1].spec.params, "{\"only\":{\"this\":null}}");
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        T_CODE(set(&b, BAD[i][0], BAD[i][1]), SL_ARG);
        T_SAYS(err.msg, BAD[i][2]);
    }
    char *large = malloc(SL_PARAMS_BYTES + 32);
    memset(large, 'x', SL_PARAMS_BYTES + 16);
    memcpy(large, "a=", 2);
    large[SL_PARAMS_BYTES + 16] = 0;
    T_CODE(set(&b, "set", large), SL_ARG);
    T_SAYS(err.msg, "bytes, want at most 16384");
    free(large);
    sl_batch_free(&b);
}

/* ---- the report ---- */

static void a_report_tells_what_messages_said(void **state)
{
    sl_batch b;
    sl_report report;
    char path[300];
    snprintf(path, sizeof path, "%s/report.json", r.base);
    open_batch(&b, "");
    T_OK(add(&b, asking("")));
    T_OK(sl_batch_check(&b, &model, &conf, &err));
    b.jobs[0].id = 9;
    T_OK(sl_report_init(&report, b.jobs, b.job_count, 1000000000, &err));
    assert_null(sl_report_find(&report, 1));
    sl_msg span = {.type = SL_MSG_SPAN,
                   .span = {.job = 9,
                            .kind = SL_SPAN_COMPUTE,
                            .stage = "text",
                            .t0_ns = 1000000000,
                            .t1_ns = 3000000000}},
           stage = {.type = SL_MSG_STAGE,
                    .stage = {.job = 9, .stage = "text", .device = "cpu", .peak_bytes = 77}},
           step = {.type = SL_MSG_STEP,
                   .step = {.job = 9,
                            .step = 1,
                            .seconds = 0.5,
                            .cond_metric = NAN,
                            .uncond_metric = NAN,
                            .cond_computed = 1,
                            .uncond_computed = -1}};
    /* ranks: who works on it now, and what each did in its attempts */
    static const char *const EVENTS[] = {"leads", "joins", "joins", "leads", "joins"};
    static const int WHO[] = {1, 0, 3, 0, 1};
    sl_report_job *job = sl_report_find(&report, 9);
    assert_non_null(job);
    assert_int_equal(sl_report_team(job), 0);
    for (int i = 0; i < 5; i++) {
        sl_msg m = {.type = SL_MSG_STAGE,
                    .stage = {.job = 9, .stage = "denoise", .instance = (uint32_t)WHO[i]}};
        snprintf(m.stage.event, sizeof m.stage.event, "%s", EVENTS[i]);
        snprintf(m.stage.device, sizeof m.stage.device, "cuda:%d", WHO[i]);
        sl_report_message(&report, &m);
        if (i == 2) assert_int_equal(sl_report_team(job), 3);
    }
    assert_int_equal(sl_report_team(job), 2);
    sl_msg share = {.type = SL_MSG_SHARE,
                    .share = {.job = 9,
                              .stage = "denoise",
                              .instance = 1,
                              .size = 3,
                              .steps = 1,
                              .rows = 0.25,
                              .step_s = 2,
                              .exchange_s = 0.25,
                              .wait_s = 0.5,
                              .sent_bytes = 100,
                              .device_bytes = 7000}};
    sl_report_message(&report, &share);
    share.share.size = 2, share.share.steps = 2, share.share.device_bytes = 6000;
    share.share.rows = 0.625;
    sl_report_message(&report, &share);
    share.share.instance = SL_RANKS; /* nobody's */
    sl_report_message(&report, &share);
    share.share.instance = 0, share.share.job = 8;
    sl_report_message(&report, &share);

    sl_report_message(&report, &span);
    sl_report_message(&report, &stage);
    sl_report_message(&report, &step);
    step.step.step = 3; /* the job has no such step */
    sl_report_message(&report, &step);
    job->t1_ns = 5000000000;
    T_OK(sl_report_write(&report, job, path, &err));
    json_t *told = json_load_file(path, 0, NULL);
    assert_non_null(told);
    json_t *text = json_object_get(json_object_get(told, "stages"), "text"),
           *second = json_array_get(json_object_get(told, "steps"), 0);
    assert_true(json_real_value(json_object_get(told, "total")) == 4.0);
    assert_true(json_real_value(json_object_get(told, "unaccounted")) == 2.0);
    assert_true(json_real_value(json_object_get(text, "computing")) == 2.0);
    assert_int_equal(json_integer_value(json_object_get(text, "peak_bytes")), 77);
    assert_true(json_real_value(json_object_get(second, "seconds")) == 0.5);
    assert_int_equal(json_integer_value(json_object_get(second, "step")), 2);
    assert_int_equal(json_array_size(json_object_get(told, "steps")), 1); /* that one ran */
    t_is_report(told);
    json_t *ranks = json_object_get(told, "ranks"), *rank = json_array_get(ranks, 0);
    assert_int_equal(json_array_size(ranks), 1);
    assert_int_equal(json_integer_value(json_object_get(rank, "instance")), 1);
    assert_string_equal(json_string_value(json_object_get(rank, "device")), "cuda:1");
    assert_int_equal(json_integer_value(json_object_get(rank, "attempts")), 2);
    assert_int_equal(json_integer_value(json_object_get(rank, "team")), 3);
    assert_int_equal(json_integer_value(json_object_get(rank, "steps")), 3);
    assert_true(json_real_value(json_object_get(rank, "rows")) == 0.5);
    assert_true(json_real_value(json_object_get(rank, "computing")) == 2.5);
    assert_true(json_real_value(json_object_get(rank, "exchange")) == 0.5);
    assert_true(json_real_value(json_object_get(rank, "waiting")) == 1.0);
    assert_int_equal(json_integer_value(json_object_get(rank, "sent_bytes")), 200);
    assert_int_equal(json_integer_value(json_object_get(rank, "device_bytes")), 7000);
    json_decref(told);
    T_CODE(sl_report_write(&report, job, "/nowhere/report.json", &err), SL_SYS);
    T_SAYS(err.msg, "report /nowhere/report.json: ");
    sl_report_free(&report);
    sl_report_free(&report);
    sl_batch_free(&b);
    (void)state;
}

#define T(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_request_becomes_a_folder),
        T(a_dump_leaves_the_folder),
        T(a_replay_takes_what_it_can_use),
        T(two_batches_stand_beside_each_other),
        T(numbers_as_people_have_them),
        T(what_is_not_done_is_told),
        T(names_of_others_are_offered),
        T(what_is_wrong_is_one_line),
        T(a_run_that_does_not_fit_is_not_admitted),
        T(a_batch_has_an_end),
        T(every_job_option_is_a_key),
        T(params_are_free_form),
        T(a_report_tells_what_messages_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
