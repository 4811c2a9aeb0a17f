/* test_conf.c - settings: defaults, the annotated file, and every mistake with its line,
 * key, value, range and nearest key. `test_conf --print` writes conf/demo.cfg. */
#include "tests/t.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>

#include "common/conf.h"

static void defaults_are_those_of_the_manual(void **state)
{
    (void)state;
    sl_conf c;
    sl_conf_defaults(&c);
    assert_string_equal(c.run.dir, "");
    assert_string_equal(c.run.spool, "");
    assert_int_equal(c.run.log, SL_LOG_INFO);
    assert_int_equal(c.run.log_format, SL_LOG_AS_TEXT);
    assert_int_equal(c.limits.pixels, 921600);
    assert_int_equal(c.limits.frames, 81);
    assert_int_equal(c.limits.jobs, 64);
    assert_int_equal(c.limits.prompt_bytes, 65536);
    assert_int_equal(c.denoise.state_every, 5);
    assert_true(c.fbcache.threshold == 0);
    assert_int_equal(c.fbcache.warmup + c.fbcache.max_hits + c.fbcache.final, 0);
    assert_int_equal(c.video.fps, 0);
    assert_int_equal(c.video.crf, 18);
    assert_string_equal(c.video.preset, "faster");
    assert_int_equal(c.video.threads, 0);
    assert_int_equal(c.supervise.restarts, 5);
    assert_int_equal(c.supervise.backoff_ms, 100);
    assert_int_equal(c.supervise.heartbeat_ms, 500);
    assert_int_equal(c.supervise.stall_s, 30);
    assert_int_equal(c.supervise.drain_s, 60);
    assert_string_equal(c.dispatch.turns, "gpu");
    assert_int_equal(c.dispatch.turn_timeout_s, 120);
    assert_int_equal(c.stage_count, SL_ROLE_COUNT);
    for (int i = 0; i < c.stage_count; i++) {
        char want[32];
        snprintf(want, sizeof want, "sluice-%s", sl_role_name((sl_role)i));
        assert_int_equal(c.stages[i].role, i);
        assert_string_equal(c.stages[i].program, want);
        assert_string_equal(c.stages[i].device, "cpu");
        assert_int_equal(c.stages[i].threads, 0);
        assert_int_equal(c.stages[i].slots, sl_chunks_to((sl_role)i) >= 0 ? 24 : 2);
        assert_int_equal(c.stages[i].arg_count, 0);
        assert_int_equal(c.stages[i].instance, 0);
    }
    assert_string_equal(sl_role_name((sl_role)9), "?");
}

static char *printed(const sl_conf *c)
{
    sl_err err = {0};
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    T_OK(sl_conf_print(c, f, &err));
    fclose(f);
    return text;
}

static void demo_cfg_is_what_print_writes(void **state)
{
    (void)state;
    sl_conf c, read;
    sl_err err = {0};
    sl_conf_defaults(&c);
    char *want = printed(&c), *have = calloc(1, strlen(want) + 2);
    FILE *f = fopen("conf/demo.cfg", "r");
    assert_non_null(f);
    (void)!fread(have, 1, strlen(want) + 1, f);
    fclose(f);
    if (strcmp(have, want))
        fail_msg("conf/demo.cfg differs from the table of keys; write it again: test_conf --print "
                 "> conf/demo.cfg");
    memset(&read, 0xff, sizeof read);
    sl_conf_defaults(&read);
    T_OK(sl_conf_read_file(&read, "conf/demo.cfg", &err));
    assert_memory_equal(&read, &c, sizeof c);
    free(want);
    free(have);
}

/* Files for so many GPUs name as many, and nothing that is not there. */
static void every_file_of_conf_reads(void **state)
{
    static const struct {
        const char *file;
        int gpus, ranks; /* ranks: denoisers that form teams */
    } FILES[] = {{"demo", 0, 0},     {"one-gpu", 1, 0},   {"three-gpus", 3, 0},
                 {"two-gpus", 2, 2}, {"four-gpus", 4, 4}, {"eight-gpus", 8, 8}};
    const int count = (int)(sizeof FILES / sizeof *FILES);
    glob_t found;
    (void)state;
    assert_int_equal(glob("conf/*.cfg", 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, count);
    globfree(&found);
    for (int i = 0; i < count; i++) {
        char path[64];
        int gpus = 0, ranks;
        sl_conf c;
        sl_err err = {0};
        snprintf(path, sizeof path, "conf/%s.cfg", FILES[i].file);
        sl_conf_defaults(&c);
        T_OK(sl_conf_read_file(&c, path, &err));
        for (int k = 0; k < c.stage_count; k++)
            if (!strncmp(c.stages[k].device, "cuda:", 5) && atoi(c.stages[k].device + 5) >= gpus)
                gpus = atoi(c.stages[k].device + 5) + 1;
        ranks = sl_conf_teamed(&c, SL_ROLE_DENOISE) ? sl_conf_instances(&c, SL_ROLE_DENOISE) : 0;
        if (gpus != FILES[i].gpus || ranks != FILES[i].ranks)
            fail_msg("%s: %d GPUs and %d ranks, want %d and %d", path, gpus, ranks, FILES[i].gpus,
                     FILES[i].ranks);
        for (int r = 0; r < SL_ROLE_COUNT; r++) assert_non_null(sl_conf_find(&c, (sl_role)r));
    }
}

static const char FULL[] =
    "run: { dir = \"/run/sluice \\\"a\\\\b\\\"\"; spool = \"/var/spool\"; log = \"debug\"; "
    "log_format = \"json\"; };\n"
    "limits = { pixels = 8294400; frames = 121; jobs = 7; prompt_bytes = 0x100; };\n"
    "denoise: { state_every = 0; }; fbcache: { threshold = 0.1; warmup = 4; max_hits = 3; final = "
    "1; };\n"
    "video: { fps = 24; crf = 20; preset = \"veryfast\"; threads = 2; };\n"
    "supervise: { restarts = 0; backoff_ms = 10; heartbeat_ms = 100; stall_s = 3; drain_s = 1; };\n"
    "dispatch: { turns = \"always\"; turn_timeout_s = 7; };\n"
    "stages: ( { name = \"mux\"; program = \"/opt/my-mux\"; args = [\"--fast\", \"x\\n\"]; },\n"
    "  { device = \"cuda:12\"; name = \"denoise\"; threads = 8; slots = 5; args = (); } );\n";

static void every_key_is_read(void **state)
{
    (void)state;
    sl_conf c;
    sl_err err = {0};
    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c, FULL, "x.cfg", &err));
    assert_string_equal(c.run.dir, "/run/sluice \"a\\b\"");
    assert_string_equal(c.run.spool, "/var/spool");
    assert_int_equal(c.run.log, SL_LOG_DEBUG);
    assert_int_equal(c.run.log_format, SL_LOG_AS_JSON);
    assert_int_equal(c.limits.pixels, 8294400);
    assert_int_equal(c.limits.frames, 121);
    assert_int_equal(c.limits.jobs, 7);
    assert_int_equal(c.limits.prompt_bytes, 256);
    assert_int_equal(c.denoise.state_every, 0);
    assert_true(c.fbcache.threshold == 0.1);
    assert_int_equal(c.fbcache.warmup, 4);
    assert_int_equal(c.fbcache.max_hits, 3);
    assert_int_equal(c.fbcache.final, 1);
    assert_int_equal(c.video.fps, 24);
    assert_int_equal(c.video.crf, 20);
    assert_string_equal(c.video.preset, "veryfast");
    assert_int_equal(c.video.threads, 2);
    assert_int_equal(c.supervise.restarts, 0);
    assert_int_equal(c.supervise.backoff_ms, 10);
    assert_int_equal(c.supervise.heartbeat_ms, 100);
    assert_int_equal(c.supervise.stall_s, 3);
    assert_int_equal(c.supervise.drain_s, 1);
    assert_string_equal(c.dispatch.turns, "always");
    assert_int_equal(c.dispatch.turn_timeout_s, 7);
    assert_int_equal(c.stage_count, 2);
    assert_int_equal(c.stages[0].role, SL_ROLE_MUX);
    assert_string_equal(c.stages[0].program, "/opt/my-mux");
    assert_int_equal(c.stages[0].arg_count, 2);
    assert_string_equal(c.stages[0].args[1], "x\n");
    const sl_conf_stage *d = sl_conf_find(&c, SL_ROLE_DENOISE);
    assert_ptr_equal(d, &c.stages[1]);
    assert_string_equal(d->program, "sluice-denoise");
    assert_string_equal(d->device, "cuda:12");
    assert_int_equal(d->threads, 8);
    assert_int_equal(d->slots, 5);
    assert_null(sl_conf_find(&c, SL_ROLE_TEXT));
}

static void what_is_printed_reads_back_the_same(void **state)
{
    (void)state;
    sl_conf c, again;
    sl_err err = {0};
    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c, FULL, "x.cfg", &err));
    char *text = printed(&c);
    sl_conf_defaults(&again);
    T_OK(sl_conf_read_string(&again, text, "printed", &err));
    assert_true(again.fbcache.threshold == c.fbcache.threshold);
    char *twice = printed(&again);
    assert_string_equal(text, twice);
    free(text);
    free(twice);
}

static void absent_keys_keep_their_value(void **state)
{
    (void)state;
    sl_conf c;
    sl_err err = {0};
    sl_conf_defaults(&c);
    c.limits.jobs = 3;
    T_OK(sl_conf_read_string(&c, "limits: { frames = 5; };", "x.cfg", &err));
    assert_int_equal(c.limits.frames, 5);
    assert_int_equal(c.limits.jobs, 3);
    assert_int_equal(c.stage_count, SL_ROLE_COUNT);
    T_OK(sl_conf_read_string(&c, "", "x.cfg", &err));
    T_OK(sl_conf_read_string(&c, "# only a comment", "x.cfg", &err));
}

#define TEN(x) x x x x x x x x x x

static void a_role_has_instances(void **state)
{
    (void)state;
    static const char TEXT[] =
        "stages: ( { name = \"denoise\"; devices = [\"cuda:0\", \"cuda:3\"]; slots = 4; },\n"
        "  { name = \"text\"; }, { name = \"denoise\"; device = \"cuda:1\"; threads = 2; },\n"
        "  { name = \"text\"; devices = (\"cuda:2\"); } );\n";
    static const struct {
        sl_role role;
        int instance, slots;
        const char *device;
    } want[] = {{SL_ROLE_DENOISE, 0, 4, "cuda:0"},
                {SL_ROLE_DENOISE, 1, 4, "cuda:3"},
                {SL_ROLE_TEXT, 0, 2, "cpu"},
                {SL_ROLE_DENOISE, 2, 2, "cuda:1"},
                {SL_ROLE_TEXT, 1, 2, "cuda:2"}};
    sl_conf c, again;
    sl_err err = {0};
    sl_conf_defaults(&c);
    T_OK(sl_conf_read_string(&c, TEXT, "x.cfg", &err));
    char *text = printed(&c);
    sl_conf_defaults(&again);
    T_OK(sl_conf_read_string(&again, text, "printed", &err));
    free(text);
    assert_int_equal(c.stage_count, 5);
    assert_int_equal(again.stage_count, 5);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(c.stages[i].role, want[i].role);
        assert_int_equal(c.stages[i].instance, want[i].instance);
        assert_int_equal(c.stages[i].slots, want[i].slots);
        assert_string_equal(c.stages[i].device, want[i].device);
        assert_memory_equal(&again.stages[i], &c.stages[i], sizeof c.stages[i]);
    }
    assert_ptr_equal(sl_conf_find(&c, SL_ROLE_TEXT), &c.stages[2]);
    assert_int_equal(sl_conf_instances(&c, SL_ROLE_DENOISE), 3);
    assert_int_equal(sl_conf_instances(&c, SL_ROLE_MUX), 0);
}

static void loras_have_names(void **state)
{
    static const struct {
        const char *text, *says;
    } BAD[] = {
        {"lora = 3;", "c:1: lora is 3, want a list of at most 32 groups"},
        {"lora = ( 3 );", "c:1: lora[0] is 3, want a group"},
        {"lora = ( { file = \"a\"; } );", "c:1: lora[0] has no name"},
        {"lora = ( { name = \"a\"; } );", "c:1: lora[0] has no file"},
        {"lora = ( { name = \"a b\"; file = \"x\"; } );", "a name with one of them"},
        {"lora = ( { name = \"a\"; file = \"x\"; strength = 101; } );",
         "c:1: lora[0].strength is 101, want a number from -100 to 100"},
        {"lora = ( { name = \"a\"; flie = \"x\"; } );",
         "c:1: unknown key lora[0].flie, the nearest known one is file"},
        {"lora = ( { name = \"a\"; file = \"x\"; },\n { name = \"a\"; file = \"y\"; } );",
         "lora[1].name is \"a\", as that of lora[0] is"},
    };
    sl_conf *c = malloc(sizeof *c);
    sl_err err = {0};
    (void)state;
    sl_conf_defaults(c);
    assert_int_equal(c->lora_count, 0);
    T_OK(sl_conf_read_string(
        c,
        "lora: ( { name = \"fast\"; file = \"f\"; strength = 0.5; }, "
        "{ name = \"both\"; file = \"g\"; file_2 = \"h\"; strength_2 = -1; } );",
        "c", &err));
    assert_int_equal(c->lora_count, 2);
    assert_string_equal(c->lora[0].name, "fast");
    assert_true(c->lora[0].strength == 0.5 && c->lora[0].strength_2 == 1);
    assert_string_equal(c->lora[1].file_2, "h");
    assert_true(c->lora[1].strength_2 == -1);
    char *text = printed(c);
    sl_conf *again = malloc(sizeof *again);
    sl_conf_defaults(again);
    T_OK(sl_conf_read_string(again, text, "printed", &err));
    assert_int_equal(again->lora_count, 2);
    assert_memory_equal(c->lora, again->lora, sizeof c->lora);
    free(text);
    free(again);
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        T_CODE(sl_conf_read_string(c, BAD[i].text, "c", &err), SL_ARG);
        T_SAYS(err.msg, BAD[i].says);
    }
    free(c);
}

static void filters_stand_in_hand_overs(void **state)
{
    static const struct {
        const char *text, *says;
    } BAD[] = {
        {"filters = 3;", "c:1: filters is 3 of 0, want a list"},
        {"filters = ( 3 );", "c:1: filters[0] is 3, want a group"},
        {"filters = ( { program = \"a\"; } );",
         "c:1: filters[0] has no on, want one of text, image, latents, frames"},
        {"filters = ( { on = \"video\"; program = \"a\"; } );",
         "c:1: filters[0].on is \"video\", want one of text, image, latents, frames"},
        {"filters = ( { on = \"text\"; } );", "c:1: filters[0] has no program, want one"},
        {"filters = ( { on = \"text\"; program = \"a\"; slot = 1; } );",
         "c:1: unknown key filters[0].slot, the nearest known one is slots"},
        {"filters = ( { on = \"text\"; program = \"mux\"; } );",
         "filters[0].name is \"mux\", which is a stage: want another"},
        {"filters = ( { on = \"text\"; program = \"a\"; },\n { on = \"frames\"; program = \"a\"; } "
         ");",
         "c:2: filters[1].name is \"a\", which is that of another filter: want another"},
        {"filters = ( { on = \"text\"; program = \"a\"; name = \"a.b\"; } );",
         "filters[0].name is \"a.b\", want 1 to 15 letters, digits, _ and -"},
        {"filters = ( { on = \"text\"; program = \"a\"; name = \"abcdefghijklmnop\"; } );",
         "filters[0].name is \"abcdefghijklmnop\", want a string of at most 15 bytes"},
        {"filters = ( { on = \"text\"; program = \"a\"; scale = 2; } );",
         "filters[0].scale is 2, want 1: whoever takes text takes it in one size alone"},
        {"filters = ( { on = \"frames\"; program = \"a\"; scale = 1.3; } );",
         "filters[0].scale makes frames 1.3 times as large, want a multiple of 1/8, at most 8"},
        {"filters = ( { on = \"frames\"; program = \"a\"; scale = 4; },"
         "{ on = \"frames\"; program = \"b\"; scale = 4; } );",
         "filters[1].scale makes frames 16 times as large"},
        {"filtres = ( );", "c:1: unknown group filtres, the nearest known one is filters"},
        {"stages = ( );", "c:1: stages is empty, want a list of one or more groups"},
    };
    static const struct {
        const char *program, *name;
    } NAMES[] = {{"mine.py", "mine"},
                 {"python3 x/mine.py", "mine"},
                 {"/usr/bin/python3.11 -u mine.py --fast", "mine"},
                 {"shine", "shine"},
                 {"pythonic.py", "pythonic"},
                 {"sh a-b.sh", "a-b"},
                 {"./a_very_long_name_indeed", "a_very_long_nam"}};
    sl_conf *c = malloc(sizeof *c), *again = malloc(sizeof *again);
    sl_err err = {0};
    char text[400];
    (void)state;
    sl_conf_defaults(c);
    T_OK(
        sl_conf_read_string(c,
                            "filters: ( { on = \"latents\"; program = \"one\"; args = [\"a b\"]; },"
                            "{ on = \"frames\"; program = \"two\"; scale = 1.5; slots = 3; },"
                            "{ on = \"frames\"; program = \"three\"; runs = 0; } );\n"
                            "stages: ( { name = \"mux\"; } );",
                            "c", &err));
    assert_int_equal(c->filter_count, 3);
    assert_int_equal(c->stage_count, 3); /* those that run stand behind the stages */
    assert_int_equal(c->stages[0].role, SL_ROLE_MUX);
    assert_int_equal(c->stages[1].role, SL_ROLE_COUNT);
    assert_int_equal(c->stages[2].role, SL_ROLE_COUNT + 1);
    assert_string_equal(c->stages[1].args[0], "a b");
    assert_int_equal(c->stages[1].slots, 2);
    assert_int_equal(c->filters[2].stage.slots, 24);
    assert_true(c->filters[1].is.scale == 1.5 && c->filters[0].is.on == SL_HANDOVER_LATENTS);
    char *told = printed(c);
    sl_conf_defaults(again);
    T_OK(sl_conf_read_string(again, told, "printed", &err));
    assert_int_equal(again->filter_count, 3);
    assert_memory_equal(c->filters, again->filters, sizeof c->filters);
    assert_int_equal(again->stage_count, 3);
    free(told);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        snprintf(text, sizeof text, "filters: ( { on = \"text\"; program = \"%s\"; } );",
                 NAMES[i].program);
        T_OK(sl_conf_read_string(c, text, "c", &err));
        assert_string_equal(c->filters[0].is.name, NAMES[i].name);
    }
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        sl_conf_defaults(c);
        T_CODE(sl_conf_read_string(c, BAD[i].text, "c", &err), SL_ARG);
        T_SAYS(err.msg, BAD[i].says);
    }
    free(again);
    free(c);
}

static void mistakes_name_file_line_key_value_and_range(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } at[] = {
        {"limits:\n{\n    frames = 0;\n};\n", "x.cfg:3: limits.frames is 0, want an integer from 1 "
                                              "to 4097 (most frames of a video; default 81)"},
        {"limits: { frames = \"many\"; };", "x.cfg:1: limits.frames is \"many\", want an integer "
                                            "from 1 to 4097 (most frames of a video; default 81)"},
        {"limits: { frames = 5.0; };", "x.cfg:1: limits.frames is 5, want an integer from 1 to "
                                       "4097 (most frames of a video; default 81)"},
        {"limits: { frames = true; };", "x.cfg:1: limits.frames is true, want an integer from 1 to "
                                        "4097 (most frames of a video; default 81)"},
        {"limits: { pixels = 99999999999L; };",
         "x.cfg:1: limits.pixels is 99999999999, want an integer from 256 to 67108864 "
         "(largest width * height of a video; default 921600)"},
        {"fbcache: { threshold = -0.5; };",
         "x.cfg:1: fbcache.threshold is -0.5, want a number from 0 to 10 (First Block Cache: reuse "
         "up to "
         "this relative change of the first block (0: off); default 0)"},
        {"fbcache: { threshold = [1, 2]; };",
         "x.cfg:1: fbcache.threshold is an array, want a number from 0 to 10 (First Block Cache: "
         "reuse "
         "up to this relative change of the first block (0: off); default 0)"},
        {"run: { log = \"loud\"; };",
         "x.cfg:1: run.log is \"loud\", want one of error, warn, info, debug (the least grave "
         "messages shown; default \"info\")"},
        {"run: { log = \"error|warn\"; };",
         "x.cfg:1: run.log is \"error|warn\", want one of error, warn, info, debug (the least "
         "grave messages shown; default \"info\")"},
        {"run: { log = \"\"; };", "x.cfg:1: run.log is \"\", want one of error, warn, info, debug "
                                  "(the least grave messages shown; default \"info\")"},
        {"video: { preset = 3; };",
         "x.cfg:1: video.preset is 3, want one of ultrafast, superfast, veryfast, faster, fast, "
         "medium, slow, "
         "slower, veryslow, placebo (time against size of x264; default \"faster\")"},
        {"dispatch: { turns = \"cpu\"; };",
         "x.cfg:1: dispatch.turns is \"cpu\", want one of gpu, always, never (stages that compute "
         "one at a time, a step or a chunk "
         "each: gpu those that share a GPU, always those that share any device; default \"gpu\")"},
        {"run: { log_format = \"xml\"; };",
         "x.cfg:1: run.log_format is \"xml\", want one of text, json (lines of messages: "
         "text for people, json for machines, one object a line with the job's name; default "
         "\"text\")"},
        {"run: { dir = \"a\\nb\"; };",
         "x.cfg:1: run.dir is \"a?b\", want a string of at most 1023 bytes (folder for sockets and "
         "spool (\"\": a private one is made and removed))"},
        {"video: { heartbeat_ms = 7; };", "x.cfg:1: unknown key video.heartbeat_ms, the nearest "
                                          "known one is supervise.heartbeat_ms"},
        {"limits: {\n pixel = 7; };",
         "x.cfg:2: unknown key limits.pixel, the nearest known one is limits.pixels"},
        {"limit: { pixels = 7; };",
         "x.cfg:1: unknown group limit, the nearest known one is limits"},
        {"stage: ( );", "x.cfg:1: unknown group stage, the nearest known one is stages"},
        {"\nfps = 7;", "x.cfg:2: unknown key fps, the nearest known one is video.fps"},
        {"video = 7;", "x.cfg:1: video is 7, want a group { ... }"},
        {"stages = 7;", "x.cfg:1: stages is 7, want a list of one or more groups ( { name = "
                        "\"text\"; ... }, ... )"},
        {"stages = ();", "x.cfg:1: stages is empty, want a list of one or more groups ( { name = "
                         "\"text\"; ... }, ... )"},
        {"stages = ( 7 );", "x.cfg:1: stages[0] is 7, want a group { name = \"text\"; ... }"},
        {"stages = ( { device = \"cpu\"; } );",
         "x.cfg:1: stages[0] has no name, want one of text, image, ..."},
        {"stages = ( { name = \"txt\"; } );",
         "x.cfg:1: stages[0].name is \"txt\", want one of text, image, ..."},
        {"stages = ( { name = \"denoise\"; devices = [\"cpu\", \"gpu\"]; } );",
         "x.cfg:1: stages[0].devices[1] is \"gpu\", want 1 to 32 of \"cpu\" or \"cuda:N\" with N "
         "from 0 to 63 (in place of device: one process for each, all of this role)"},
        {"stages = ( { name = \"denoise\"; devices = []; } );",
         "x.cfg:1: stages[0].devices is an array, want 1 to 32 of \"cpu\" or \"cuda:N\" with N "
         "from "
         "0 to 63 (in place of device: one process for each, all of this role)"},
        {"stages = ( { name = \"denoise\"; devices = \"cuda:0\"; } );",
         "x.cfg:1: stages[0].devices is \"cuda:0\", want 1 to 32 of \"cpu\" or \"cuda:N\" with N "
         "from 0 to 63 (in place of device: one process for each, all of this role)"},
        {"stages = ( { name = \"text\"; },\n { name = \"denoise\"; devices = [\"cuda:0\"]; device "
         "= "
         "\"cpu\"; } );",
         "x.cfg:2: stages[1] has both device and devices, want one of them"},
        {"stages = ( { name = \"text\"; devices = [" TEN("\"cpu\", ")
             TEN("\"cpu\", ") "\"cpu\"]; },\n"
                              " { name = \"mux\"; devices = [" TEN(
                                  "\"cpu\", ") "\"cpu\", \"cpu\"]; } );",
         "x.cfg:2: stages[1] makes them 33 processes, want at most 32 in all"},
        {"stages = ( { name = \"text\"; thread = 1; } );",
         "x.cfg:1: unknown key stages[0].thread, the nearest known one is threads"},
        {"stages = ( { name = \"text\"; device = \"gpu\"; } );",
         "x.cfg:1: stages[0].device is \"gpu\", want \"cpu\" or \"cuda:N\" "
         "with N from 0 to 63 (where it computes; default \"cpu\")"},
        {"stages = ( { name = \"text\"; program = \"\"; } );",
         "x.cfg:1: stages[0].program is \"\", want a string of 1 to 1023 bytes (a path, the "
         "name of a program beside sluice, or a command (\"python3 mine.py\"))"},
        {"stages = ( { name = \"text\"; args = \"x\"; } );",
         "x.cfg:1: stages[0].args is \"x\", want at most 16 strings of at most 255 bytes (more "
         "arguments for the program)"},
        {"stages = ( { name = \"text\"; args = (\"x\", 3); } );",
         "x.cfg:1: stages[0].args[1] is 3, want at most 16 strings of at most 255 bytes (more "
         "arguments for the program)"},
        {"stages = ( { name = \"text\"; slots = 65; } );",
         "x.cfg:1: stages[0].slots is 65, want an integer from 1 to 64 (slots of each pool "
         "that it receives in: hand-overs that may wait for it (frames: 24); default 2)"},
        {"video: { fps = 0.5; };", "x.cfg: video.fps is 0.5, want 0 (the model's) or 1 to 240"},
        {"supervise: { heartbeat_ms = 5000; stall_s = 9; };",
         "x.cfg: supervise.stall_s is 9, want at least two heartbeats (supervise.heartbeat_ms is "
         "5000)"},
        {"limits: { frames = 5;\n  frames = 6; };", "x.cfg:2: duplicate setting name"},
        {"limits: {\n frames = ; };", "x.cfg:2: syntax error"},
        {"a = 1;\n  @include \"/\"\n",
         "x.cfg:2: @include is not supported, want all settings in one file"},
    };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        sl_conf c, before;
        sl_err err = {0};
        sl_conf_defaults(&c);
        before = c;
        T_CODE(sl_conf_read_string(&c, at[i].text, "x.cfg", &err), SL_ARG);
        size_t n = strlen(at[i].message);
        if (!strcmp(at[i].message + n - 3, "...")) err.msg[n - 3] = 0, strcat(err.msg, "...");
        assert_string_equal(err.msg, at[i].message);
        assert_memory_equal(&c, &before, sizeof c); /* an error changes nothing */
    }
}

static void devices_are_cpu_or_cuda_n(void **state)
{
    (void)state;
    static const struct {
        const char *device;
        bool good;
    } at[] = {{"cpu", true},      {"cuda:0", true},   {"cuda:63", true},
              {"cuda:64", false}, {"cuda:", false},   {"cuda", false},
              {"cuda:01", false}, {"cuda:-1", false}, {"cuda:1x", false},
              {"cpu ", false},    {"", false},        {"cuda:99999999999999999999", false}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        char text[128];
        sl_conf c;
        sl_err err = {0};
        sl_conf_defaults(&c);
        snprintf(text, sizeof text, "stages = ( { name = \"text\"; device = \"%s\"; } );",
                 at[i].device);
        T_CODE(sl_conf_read_string(&c, text, "x.cfg", &err), at[i].good ? SL_OK : SL_ARG);
    }
}

static void long_strings_are_refused(void **state)
{
    (void)state;
    static char text[4096];
    char path[SL_CONF_PATH + 1];
    sl_conf c;
    sl_err err = {0};
    sl_conf_defaults(&c);
    memset(path, 'p', sizeof path);
    for (int length = SL_CONF_PATH - 1; length <= SL_CONF_PATH; length++) {
        snprintf(text, sizeof text, "run: { dir = \"%.*s\"; };", length, path);
        T_CODE(sl_conf_read_string(&c, text, "x.cfg", &err),
               length < SL_CONF_PATH ? SL_OK : SL_ARG);
    }
    T_SAYS(err.msg, "ppp...\", want a string of at most 1023 bytes");
    assert_int_equal(strlen(c.run.dir), SL_CONF_PATH - 1);
    int at = snprintf(text, sizeof text, "stages = ( { name = \"text\"; args = [");
    for (int i = 0; i < SL_CONF_ARGS + 1; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, "%s\"a\"", i ? "," : "");
    snprintf(text + at, sizeof text - (size_t)at, "]; } );");
    T_CODE(sl_conf_read_string(&c, text, "x.cfg", &err), SL_ARG);
    T_SAYS(err.msg, "args is an array, want at most 16 strings");
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
}

static void files_that_are_none_are_refused(void **state)
{
    (void)state;
    const char *dir = t_tmpdir();
    char path[512], want[640];
    sl_conf c;
    sl_err err = {0};
    sl_conf_defaults(&c);
    snprintf(path, sizeof path, "%s/x.cfg", dir);
    T_CODE(sl_conf_read_file(&c, path, &err), SL_SYS);
    snprintf(want, sizeof want, "%s: No such file or directory", path);
    assert_string_equal(err.msg, want);
    T_CODE(sl_conf_read_file(&c, dir, &err), SL_SYS);
    T_SAYS(err.msg, ": not a regular file");
    assert_int_equal(mkfifo(path, 0600), 0);
    T_CODE(sl_conf_read_file(&c, path, &err), SL_SYS);
    T_SAYS(err.msg, ": not a regular file");
    unlink(path);
    write_file(path, "run: {\0};", 9);
    T_CODE(sl_conf_read_file(&c, path, &err), SL_ARG);
    T_SAYS(err.msg, ": holds a NUL byte, want text");
    static char big[(1 << 20) + 1];
    memset(big, '\n', sizeof big);
    write_file(path, big, sizeof big);
    T_CODE(sl_conf_read_file(&c, path, &err), SL_SYS);
    T_SAYS(err.msg, ": 1048577 bytes, want at most 1048576");
    write_file(path, "\n\nlimits: { frames = 0; };", 26);
    T_CODE(sl_conf_read_file(&c, path, &err), SL_ARG);
    snprintf(want, sizeof want, "%s:3: limits.frames is 0", path);
    T_SAYS(err.msg, want);
    write_file(path, "", 0);
    T_OK(sl_conf_read_file(&c, path, &err));
    t_rmdir(dir);
}

static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    sl_conf c;
    sl_err err = {0};
    FILE *f = fopen("/dev/full", "w");
    assert_non_null(f);
    sl_conf_defaults(&c);
    T_CODE(sl_conf_print(&c, f, &err), SL_SYS);
    T_SAYS(err.msg, "No space left");
    fclose(f);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--print")) {
        sl_conf c;
        sl_err err = {0};
        sl_conf_defaults(&c);
        return sl_conf_print(&c, stdout, &err) != SL_OK;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_manual),
        cmocka_unit_test(demo_cfg_is_what_print_writes),
        cmocka_unit_test(loras_have_names),
        cmocka_unit_test(filters_stand_in_hand_overs),
        cmocka_unit_test(every_file_of_conf_reads),
        cmocka_unit_test(every_key_is_read),
        cmocka_unit_test(what_is_printed_reads_back_the_same),
        cmocka_unit_test(absent_keys_keep_their_value),
        cmocka_unit_test(a_role_has_instances),
        cmocka_unit_test(mistakes_name_file_line_key_value_and_range),
        cmocka_unit_test(devices_are_cpu_or_cuda_n),
        cmocka_unit_test(long_strings_are_refused),
        cmocka_unit_test(files_that_are_none_are_refused),
        cmocka_unit_test(a_full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
