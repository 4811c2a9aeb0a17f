/* test_filters - filters in hand-overs: they change what they are handed, or only look; several in
 * a row, chunk by chunk; they are supervised as stages are; a dump keeps both sides, and a replay,
 * `sluice stage`, a run that is gone on with and a server know what a filter made. With
 * $SLUICE_PYTHON of Python's, too. takes: 9 s. limit: 300 s */
#include <math.h>

#include "common/json.h"
#include "common/safetensors.h"
#include "tests/t_run.h"

#define FILES 8

static t_run run;
static char filters[4096];       /* of the configuration */
static const char *program = ""; /* of a filter; "": helper_filter */
static char log_of[280];         /* what "look" writes */

/* ---- runs ---- */

static const char *at(const char *name)
{
    return t_format("%s/%s", run.base, name);
}

static void open_run(void)
{
    t_run_open(&run);
    *filters = 0;
    snprintf(log_of, sizeof log_of, "%s/looks", run.base);
}

/* One more filter. more: its group's other keys. */
static void add_filter(const char *on, const char *name, const char *more)
{
    const size_t n = strlen(filters);
    snprintf(filters + n, sizeof filters - n,
             "%s{ on = \"%s\"; name = \"%s\"; program = \"%s\"; %s }", n ? ",\n" : "", on, name,
             *program ? program : t_helper("helper_filter"), more);
}

static void add_look(const char *on, const char *name)
{
    add_filter(on, name, t_format("args = [\"look\", \"%s\"];", log_of));
}

/* stages: a list of them; "": all. */
static void write_conf(const char *more, const char *stages)
{
    t_run_conf(&run, 5, 30, t_format("filters: ( %s );\n%s%s", filters, more, stages));
}

#define WORDS 40
typedef struct {
    char *at[WORDS];
    int n;
} words;

static void add(words *w, const char *word)
{
    assert_true(w->n + 1 < WORDS);
    w->at[w->n++] = strdup(word);
}

static void start(words *w)
{
    t_run_start(&run, w->at);
    for (int i = 0; i < w->n; i++) free(w->at[i]);
}

/* `sluice run` of 17 frames: 5 chunks. dump: a folder's name, or NULL. */
static void start_job(const char *steps, const char *dump)
{
    static const char *const FIRST[] = {"sluice",  "run",      "--quiet",  "--model",  T_MODEL,
                                        "--image", T_IMAGE,    "--prompt", "A cat.",   "--width",
                                        "48",      "--height", "32",       "--frames", "17",
                                        "--seed",  "7",        "--conf"};
    words w = {0};
    for (size_t i = 0; i < sizeof FIRST / sizeof *FIRST; i++) add(&w, FIRST[i]);
    add(&w, run.conf);
    add(&w, "--steps"), add(&w, steps);
    add(&w, "-o"), add(&w, t_format("%s/a.mp4", run.out));
    if (dump) add(&w, "--dump"), add(&w, at(dump));
    start(&w);
}

/* `sluice VERB`: replay of a dump from a stage; stage, of the same. */
static void start_replay(const char *dump, const char *from, const char *video)
{
    words w = {0};
    add(&w, "sluice"), add(&w, "replay"), add(&w, at(dump)), add(&w, "--from"), add(&w, from);
    add(&w, "--conf"), add(&w, run.conf), add(&w, "--model"), add(&w, T_MODEL);
    add(&w, "-o"), add(&w, t_format("%s/%s", run.out, video));
    start(&w);
}

static void ends_well(void)
{
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
}

/* ---- what is there ---- */

/* "SHAPE MEAN" of a tensor of a dump. */
static double mean_of(const char *dump, const char *file, const char *name, int64_t shape[4])
{
    sl_st *st = NULL;
    sl_err err = {0};
    double sum = 0;
    T_OK(sl_st_open_file(&st, t_format("%s/%s/%s.safetensors", run.base, dump, file), &err));
    const sl_st_entry *e = sl_st_find(st, name);
    if (!e) fail_msg("%s has no %s", file, name);
    for (int i = 0; i < 4; i++) shape[i] = i < e->t.rank ? e->t.shape[i] : 0;
    const int64_t n = sl_count(&e->t);
    for (int64_t i = 0; i < n; i++)
        sum += e->t.dtype == SL_F32 ? (double)((const float *)e->t.data)[i]
                                    : ((const uint8_t *)e->t.data)[i];
    sl_st_close(&st);
    return sum / (double)n;
}

static bool is_one_file(const char *dump, const char *a, const char *b)
{
    struct stat x, y;
    return !stat(t_format("%s/%s/%s.safetensors", run.base, dump, a), &x) &&
           !stat(t_format("%s/%s/%s.safetensors", run.base, dump, b), &y) && x.st_ino == y.st_ino;
}

/* Lines that "look" has written, beginning with this. */
static int looks(const char *part)
{
    FILE *f = fopen(log_of, "r");
    char line[200];
    int n = 0;
    while (f && fgets(line, sizeof line, f)) n += !strncmp(line, part, strlen(part));
    if (f) fclose(f);
    return n;
}

static double looked(const char *part)
{
    FILE *f = fopen(log_of, "r");
    char line[200], on[20];
    double mean = NAN;
    int chunk;
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, part, strlen(part))) sscanf(line, "%19s %d %lf", on, &chunk, &mean);
    if (f) fclose(f);
    return mean;
}

/* dump.json says of the filter: changed 1, only looked 0; -1: nothing. */
static int changed(const char *dump, const char *filter)
{
    json_t *note, *row;
    sl_err err = {0};
    size_t i;
    int is = -1;
    T_OK(sl_json_read(&note, t_format("%s/%s/dump.json", run.base, dump), 65536, &err));
    json_array_foreach(json_object_get(note, "filters"), i, row)
    {
        if (!strcmp(json_string_value(json_object_get(row, "name")), filter))
            is = json_is_true(json_object_get(row, "changed"));
    }
    json_decref(note);
    return is;
}

/* ---- what filters do ---- */

/* Two in a row on latents, one of which looks at what the first made; each other hand-over that
 * goes whole has one, too. The dump keeps both sides, and says which differ. */
static void test_whole(void **state)
{
    int64_t shape[4], of[4];
    (void)state;
    open_run();
    add_filter("latents", "half", "args = [\"times\", \"0.5\"];");
    add_look("latents", "look");
    add_filter("text", "loud", "args = [\"times\", \"2\"];");
    add_look("image", "watch");
    write_conf("", "");
    start_job("2", "dump");
    ends_well();
    const double raw = mean_of("dump", "denoise", "latents", shape),
                 half = mean_of("dump", "denoise.half", "latents", of);
    for (int i = 0; i < 4; i++) assert_int_equal(shape[i], of[i]);
    assert_true(fabs(half - raw / 2) < 1e-9 && fabs(raw) > 1e-6);
    assert_true(fabs(looked("latents") - half) < 1e-6);
    assert_int_equal(looks("latents"), 1);
    assert_int_equal(looks("image"), 1);
    assert_true(is_one_file("dump", "denoise.half", "denoise.look"));
    assert_true(is_one_file("dump", "image", "image.watch"));
    assert_false(is_one_file("dump", "denoise", "denoise.half"));
    assert_int_equal(changed("dump", "half"), 1);
    assert_int_equal(changed("dump", "look"), 0);
    assert_int_equal(changed("dump", "loud"), 1);
    assert_int_equal(changed("dump", "watch"), 0);
    assert_true(fabs(mean_of("dump", "text.loud", "cond", of) -
                     2 * mean_of("dump", "text", "cond", shape)) < 1e-9);
    t_run_close(&run);
}

/* Frames are twice as large, then looked at, in pools of one slot: mux has taken the first chunk
 * long before the decoder gives its last. */
static void test_frames(void **state)
{
    int64_t small[4], large[4];
    (void)state;
    open_run();
    add_filter("frames", "double", "slots = 1; scale = 2; args = [\"double\"];");
    add_filter("frames", "look", t_format("slots = 1; args = [\"look\", \"%s\"];", log_of));
    write_conf("", t_stages(SL_ROLE_MUX, "{ name = \"mux\"; slots = 1; }"));
    start_job("2", "dump");
    ends_well();
    const char *first = strstr(run.text, "stage=\"mux\" done=1 "),
               *last = strstr(run.text, "<- decode CHUNK");
    for (const char *p = last; p; p = strstr(p + 1, "<- decode CHUNK")) last = p;
    assert_true(first && last && first < last);
    const double a = mean_of("dump", "frames", "frames", small),
                 b = mean_of("dump", "frames.double", "frames", large);
    assert_int_equal(small[0], 17);
    assert_int_equal(large[0], 17);
    for (int i = 1; i < 3; i++) assert_int_equal(large[i], 2 * small[i]);
    assert_true(fabs(a - b) < 1e-9);
    assert_int_equal(looks("frames"), 5);
    assert_true(is_one_file("dump", "frames.double", "frames.look"));
    assert_int_equal(changed("dump", "double"), 1);
    assert_int_equal(changed("dump", "look"), 0);
    t_run_close(&run);
}

/* ---- supervision ---- */

#define MAX_KILLS 4
typedef struct {
    const char *on, *more;
    const char *kills[MAX_KILLS + 1]; /* once this is in a line of the log: SIGKILL */
} strike;

static const strike STRIKES[] = {
    {"latents",
     "args = [\"times\", \"0.5\", \"die\", \"%s/died\", \"1\"];",
     {"victim is process", "<- victim READY", "<- victim DONE"}},
    {"frames",
     "slots = 1; args = [\"times\", \"9\", \"die\", \"%s/died\", \"3\"];",
     {"victim is process", "<- victim READY", "<- victim CHUNK"}},
};

static pid_t victim(void)
{
    const char *last = NULL;
    int pid = 0;
    for (const char *p = run.text; (p = strstr(p, "victim is process ")); p++) last = p;
    if (last) sscanf(last, "victim is process %d", &pid);
    return pid;
}

static void test_killed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof STRIKES / sizeof *STRIKES; i++) {
        const strike *s = &STRIKES[i];
        char kept[300], more[400];
        open_run();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(more, sizeof more, s->more, run.base);
#pragma GCC diagnostic pop
        add_filter(s->on, "victim", more);
        write_conf("", t_stages(SL_ROLE_MUX, "{ name = \"mux\"; slots = 1; }"));
        t_write(at("died"), ""); /* undisturbed */
        start_job("2", NULL);
        ends_well();
        snprintf(kept, sizeof kept, "%s/kept.mp4", run.base);
        assert_int_equal(rename(t_format("%s/a.mp4", run.out), kept), 0);
        unlink(at("died"));
        start_job("2", NULL);
        pid_t dead = 0;
        for (int k = 0; s->kills[k];) {
            if (!t_run_line(&run)) t_run_fail(&run, "it ended before \"%s\"", s->kills[k]);
            if (!strstr(run.line, s->kills[k]) || victim() == dead) continue;
            dead = victim();
            kill(dead, SIGKILL);
            k++;
        }
        ends_well();
        if (access(at("died"), F_OK)) t_run_fail(&run, "it did not come to the filter's own end");
        if (!t_same_file(t_format("%s/a.mp4", run.out), kept))
            t_run_fail(&run, "the video is not the undisturbed run's");
        t_run_close(&run);
    }
}

/* It answers a cancel, and lives on. */
static void test_cancelled(void **state)
{
    static const char *const ON[] = {"latents", "frames"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        open_run();
        add_filter(ON[i], "victim",
                   t_format("args = [\"look\", \"%s\", \"hold\", \"%s\"];", log_of, at("never")));
        write_conf("", "");
        start_job("2", NULL);
        for (double until = t_seconds() + 60; !looks(ON[i]);) {
            if (t_seconds() > until || !t_run_line(&run)) t_run_fail(&run, "nobody looked");
            usleep(100);
        }
        const double t0 = t_seconds();
        kill(run.pid, SIGINT);
        t_run_until(&run, "<- victim FAILED");
        if (!strstr(run.line, "code=11")) t_run_fail(&run, "%s", run.line);
        if (t_seconds() - t0 > 3) t_run_fail(&run, "it took %.1f s", t_seconds() - t0);
        t_run_ends(&run, 1);
        if (t_run_said(&run, t_format("victim[%d] ended: signal", (int)victim())))
            t_run_fail(&run, "the filter was killed");
        t_run_nothing_left(&run, 0);
        t_run_close(&run);
    }
}

/* A filter that refuses, that gives what is no number, whose frames are of another size than was
 * said, that is a stage's program, or none: one line each. */
static void test_refused(void **state)
{
    const struct {
        const char *on, *more, *program, *says;
    } CASES[] = {
        {"latents", "args = [\"fail\"];", NULL, "failed: bad: latents is refused, want another"},
        {"latents", "args = [\"nan\"];", NULL,
         "failed: bad: latents [16, 5, 4, 6] has NaN or infinity at element 1"},
        {"frames", "scale = 2;", NULL,
         "failed: bad: bad: frames change their size (scale), and cannot go on as they came"},
        {"latents", "", "sluice-decode", "says HELLO as decode, want bad"},
        {"latents", "", "no-such-program", "filter bad: program"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        open_run();
        add_filter(CASES[i].on, "bad", CASES[i].more);
        if (CASES[i].program)
            snprintf(filters, sizeof filters, "{ on = \"%s\"; name = \"bad\"; program = \"%s\"; }",
                     CASES[i].on, CASES[i].program);
        write_conf("", "");
        start_job("1", NULL);
        const int status = t_run_end(&run);
        if (status != 1 && status != 2) t_run_fail(&run, "exit status %d", status);
        if (!t_run_said(&run, CASES[i].says)) t_run_fail(&run, "nobody says \"%s\"", CASES[i].says);
        assert_int_equal(t_count_processes(&run), 0); /* what the job had finished is kept */
        t_run_close(&run);
    }
}

/* ---- what was made stays made ---- */

/* The dispatcher is killed while the frames are held up: the filter is not asked again. */
static void test_dispatcher_killed(void **state)
{
    (void)state;
    open_run();
    add_look("latents", "look");
    add_filter("frames", "gate", t_format("args = [\"hold\", \"%s\"];", at("go")));
    write_conf("", "");
    start_job("2", NULL);
    t_run_until(&run, "<- look SPOOLED");
    kill(run.stages[0], SIGKILL);
    t_write(at("go"), "");
    ends_well();
    assert_int_equal(looks("latents"), 1);
    t_run_close(&run);
}

static void start_again(void)
{
    words w = {0};
    add(&w, "sluice"), add(&w, "run"), add(&w, "--quiet"), add(&w, "--resume");
    add(&w, "--conf"), add(&w, run.conf);
    start(&w);
}

/* The command and all its processes are killed. With other filters --resume refuses the job, in a
 * line; with the same ones it goes on behind what the filter made. */
static void test_resumed(void **state)
{
    char spool[300], own[sizeof filters];
    (void)state;
    open_run();
    snprintf(spool, sizeof spool, "run: { log = \"debug\"; spool = \"%s/spool\"; };\n", run.base);
    add_filter("latents", "half",
               t_format("args = [\"look\", \"%s\", \"times\", \"0.5\"];", log_of));
    add_filter("frames", "gate", t_format("args = [\"hold\", \"%s\"];", at("go")));
    t_write(at("go"), "");
    memcpy(own, filters, sizeof own);
    t_write(run.conf,
            t_format("%sfilters: ( %s );\nvideo: { preset = \"veryfast\"; threads = 2; };\n"
                     "supervise: { backoff_ms = 5; heartbeat_ms = 100; };\n",
                     spool, filters));
    start_job("2", NULL);
    ends_well();
    assert_int_equal(rename(t_format("%s/a.mp4", run.out), at("kept.mp4")), 0);
    assert_int_equal(looks("latents"), 1);

    unlink(at("go"));
    start_job("2", NULL);
    t_run_until(&run, "<- half SPOOLED");
    t_run_kill_all(&run);
    assert_int_equal(looks("latents"), 2);

    *filters = 0;
    add_look("frames", "other");
    t_write(run.conf, t_format("%sfilters: ( %s );\n", spool, filters));
    start_again();
    t_run_ends(&run, 2);
    if (!t_run_said(&run, "began with filters \"latents:half frames:gate\", the configuration has "
                          "\"frames:other\": want the same"))
        t_run_fail(&run, "nobody says that the filters are others");

    t_write(run.conf,
            t_format("%sfilters: ( %s );\nvideo: { preset = \"veryfast\"; threads = 2; };\n", spool,
                     own));
    t_write(at("go"), "");
    start_again();
    t_run_ends(&run, 0);
    if (t_run_said(&run, "<- half DONE")) t_run_fail(&run, "the filter was asked again");
    assert_int_equal(looks("latents"), 2);
    assert_true(t_same_file(t_format("%s/a.mp4", run.out), at("kept.mp4")));
    t_run_close(&run);
}

static void start_server(const char *conf)
{
    words w = {0};
    t_write(run.conf, conf);
    add(&w, "sluice"), add(&w, "serve"), add(&w, "--model"), add(&w, T_MODEL);
    add(&w, "--conf"), add(&w, run.conf), add(&w, "--state"), add(&w, at("state"));
    add(&w, "--listen"), add(&w, "127.0.0.1:0");
    start(&w);
}

/* A server is killed, and finds its job again with other filters: all of it is made anew. */
static void test_served(void **state)
{
    char conf[2][sizeof filters + 64];
    (void)state;
    open_run();
    add_filter("frames", "gate", t_format("args = [\"hold\", \"%s\"];", at("go")));
    snprintf(conf[0], sizeof conf[0], "run: { log = \"debug\"; };\nfilters: ( %s );\n", filters);
    *filters = 0;
    add_look("latents", "look");
    snprintf(conf[1], sizeof conf[1], "run: { log = \"debug\"; };\nfilters: ( %s );\n", filters);
    start_server(conf[0]);
    t_run_until(&run, "info: ready");
    assert_int_equal(
        system(
            t_format("%s/sluice submit --quiet --server %s/state/sluice.sock --image %s --prompt "
                     "cat --width 48 --height 32 --frames 9 --steps 2 >%s/id 2>&1",
                     t_bin(), run.base, T_IMAGE, run.base)),
        0);
    t_run_until(&run, "<- denoise SPOOLED");
    t_run_until(&run, "<- decode CHUNK");
    t_run_kill_all(&run);

    start_server(conf[1]);
    t_run_until(&run,
                "it was taken with filters \"frames:gate\", there are \"latents:look\" now: all "
                "of it is made with these");
    t_run_until(&run, "<- denoise DONE");
    t_run_until(&run, ": completed");
    assert_int_equal(looks("latents"), 1);
    kill(run.pid, SIGTERM);
    t_run_ends(&run, 0);
    t_run_close(&run);
}

/* From any stage behind the denoiser, a filter too; what the dump has behind the same filters is
 * taken, and what it has not is made. */
static void test_replayed(void **state)
{
    const struct {
        const char *filters[3], *from, *runs;
        bool same;
    } CASES[] = {
        {{"half", "look"}, "decode", "stages that run: decode, mux", true},
        {{"half", "look"}, "half", "stages that run: half, look, decode, mux", true},
        {{"half", "look"}, "look", "stages that run: look, decode, mux", true},
        {{"look", "half"}, "decode", "stages that run: look, half, decode, mux", true},
        {{"look"}, "decode", "stages that run: look, decode, mux", false},
        {{NULL}, "decode", "stages that run: decode, mux", false},
        {{"half", "look", "half2"}, "decode", "stages that run: half2, decode, mux", false},
    };
    (void)state;
    open_run();
    add_filter("latents", "half", "args = [\"times\", \"0.5\"];");
    add_look("latents", "look");
    write_conf("", "");
    start_job("2", "dump");
    ends_well();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        *filters = 0;
        for (int k = 0; k < 3 && CASES[i].filters[k]; k++)
            if (strncmp(CASES[i].filters[k], "half", 4)) add_look("latents", "look");
            else add_filter("latents", CASES[i].filters[k], "args = [\"times\", \"0.5\"];");
        write_conf("", "");
        start_replay("dump", CASES[i].from, "b.mp4");
        ends_well();
        if (!t_run_said(&run, t_format("%s\n", CASES[i].runs)))
            t_run_fail(&run, "case %zu: nobody says \"%s\"", i, CASES[i].runs);
        if (t_same_file(t_format("%s/a.mp4", run.out), t_format("%s/b.mp4", run.out)) !=
            CASES[i].same)
            t_run_fail(&run, "case %zu: want %s video", i, CASES[i].same ? "the same" : "another");
    }
    /* a filter that nobody asks, of a stage that does not run */
    *filters = 0;
    add_filter("text", "loud", "args = [\"times\", \"2\"];");
    write_conf("", "");
    words w = {0};
    add(&w, "sluice"), add(&w, "replay"), add(&w, at("dump")), add(&w, "--from"), add(&w, "decode");
    add(&w, "--conf"), add(&w, run.conf), add(&w, "--model"), add(&w, T_MODEL);
    add(&w, "-o"), add(&w, t_format("%s/b.mp4", run.out)), add(&w, "--dump"), add(&w, at("second"));
    start(&w);
    ends_well();
    if (!t_run_said(&run, "stages that run: decode, mux\n")) t_run_fail(&run, "others run, too");
    start_replay("dump", "nobody", "b.mp4");
    t_run_ends(&run, 2);
    if (!t_run_said(&run, "--from is \"nobody\", want text, image, loud, denoise or decode"))
        t_run_fail(&run, "--from");
    t_run_close(&run);
}

/* `sluice stage` runs one filter, alone, from a dump. */
static void test_stage(void **state)
{
    int64_t shape[4];
    words w = {0};
    (void)state;
    open_run();
    add_filter("latents", "half", "args = [\"times\", \"0.5\"];");
    write_conf("", "");
    start_job("2", "dump");
    ends_well();
    add(&w, "sluice"), add(&w, "stage"), add(&w, "half"), add(&w, "--from"), add(&w, at("dump"));
    add(&w, "--conf"), add(&w, run.conf), add(&w, "--model"), add(&w, T_MODEL);
    add(&w, "--dump"), add(&w, at("alone"));
    add(&w, "-o"), add(&w, at("alone.mp4"));
    start(&w);
    ends_well();
    if (!t_run_said(&run, "stages that run: half\n")) t_run_fail(&run, "others run, too");
    assert_true(fabs(mean_of("alone", "denoise.half", "latents", shape) -
                     mean_of("dump", "denoise.half", "latents", shape)) < 1e-12);
    t_run_close(&run);
}

/* The same as of a C filter. */
static void test_python(void **state)
{
    static char command[600];
    const char *python = getenv("SLUICE_PYTHON");
    if (!python) skip();
    snprintf(command, sizeof command, "%s stages/python/tests/filter.py", python);
    program = command;
    test_killed(state);
    test_cancelled(state);
    test_dispatcher_killed(state);
    program = "";
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),   cmocka_unit_test(test_frames),
        cmocka_unit_test(test_killed),  cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_dispatcher_killed),
        cmocka_unit_test(test_resumed), cmocka_unit_test(test_replayed),
        cmocka_unit_test(test_stage),   cmocka_unit_test(test_served),
        cmocka_unit_test(test_python),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
