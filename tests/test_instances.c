/* test_instances - two denoisers, two decoders and two muxes work on two jobs at a time, with
 * the bytes of one after the other; one is killed and the other job goes on; two clients at
 * one dispatcher. Real processes, on the CPU. takes: 5 s. limit: 180 s */
#include "tests/t_dispatch.h"

#define STEPS "12"
#define TWO_EACH                                                                                   \
    "stages: ( { name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; team = 1; "      \
    "devices = "                                                                                   \
    "[\"cpu\", \"cpu\"]; },\n { name = \"decode\"; devices = [\"cpu\", \"cpu\"]; }, { name = "     \
    "\"mux\"; }, { name = \"mux\"; } );\n"

static t_run run;
static char reference[300]; /* folder of the jobs, done one after the other */

/* ---- two jobs at a time ---- */

static void start(const char *conf)
{
    char jobs[300], text[2048];
    t_run_open(&run);
    t_run_conf(&run, 5, 30, conf);
    snprintf(jobs, sizeof jobs, "%s/jobs", run.base);
    snprintf(
        text, sizeof text,
        "{\"output\": \"%s/1.mp4\", \"dump\": \"%s/1\", \"prompt\": \"Snow.\", \"seed\": 1}\n"
        "{\"output\": \"%s/2.mp4\", \"dump\": \"%s/2\", \"prompt\": \"A boat\", \"seed\": 2}\n",
        run.out, run.out, run.out, run.out);
    t_write(jobs, text);
    char *args[] = {"sluice",  "run",     "--quiet", "--conf", run.conf,   "--model", T_MODEL,
                    "--image", T_IMAGE,   "--width", "48",     "--height", "32",      "--frames",
                    "25",      "--steps", STEPS,     "--jobs", jobs,       NULL};
    t_run_start(&run, args);
}

static void check_results(void)
{
    static const char *const FILES[] = {"text", "image", "denoise", "frames"};
    t_run_nothing_left(&run, 0);
    for (int id = 1; id <= 2; id++) {
        const char *video = t_format("%d.mp4", id);
        if (!t_same_file(t_format("%s/%s", run.out, video), t_format("%s/%s", reference, video)))
            t_run_fail(&run, "%s is not what it is without company", video);
        for (int k = 0; k < 4; k++) {
            const char *file = t_format("%d/%s.safetensors", id, FILES[k]);
            if (!t_same_file(t_format("%s/%s", run.out, file), t_format("%s/%s", reference, file)))
                t_run_fail(&run, "%s is not what it is without company", file);
        }
    }
}

static void test_both_work(void **state)
{
    static const char *const NAMES[] = {"denoise.0", "denoise.1", "decode.0",
                                        "decode.1",  "mux.0",     "mux.1"};
    (void)state;
    start(TWO_EACH);
    t_run_ends(&run, 0);
    for (int i = 0; i < 6; i++)
        if (t_run_count(&run, t_format("<- %s DONE", NAMES[i])) != 1)
            t_run_fail(&run, "%s ended %d jobs, want 1", NAMES[i],
                       t_run_count(&run, t_format("<- %s DONE", NAMES[i])));
    if (t_run_said(&run, "that was named is not known here") || t_run_said(&run, "none of 2 slots"))
        t_run_fail(&run, "a seat was named whose pool was not there, or full");
    check_results();
    t_run_close(&run);
}

/* The newest process of this name. */
static pid_t pid_of(const char *name)
{
    const char *part = t_format("%s is process ", name);
    int pid = 0;
    for (const char *p = run.text; (p = strstr(p, part)); p++) pid = atoi(p + strlen(part));
    return pid;
}

/* Lines of the log with both parts. */
static int count_lines(const char *part, const char *other)
{
    int n = 0;
    for (const char *p = run.text; (p = strstr(p, part)); p++) {
        const char *end = strchr(p, '\n'), *q = strstr(p, other);
        n += q && end && q < end;
    }
    return n;
}

/* A denoiser, a decoder, a mux dies at work on job 2, which is repeated; of job 1 not a step
 * is. */
static void test_one_is_killed(void **state)
{
    static const struct {
        const char *role, *said, *of;
    } CASES[] = {{"<- denoise.", " PROGRESS job=2 ", " done=4 "},
                 {"<- decode.", " CHUNK job=2 ", ""},
                 {"<- mux.", " PROGRESS job=2 ", ""}};
    const char *quick = getenv("SLUICE_TEST_QUICK"); /* sanitizers are slow: the decoder alone */
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char name[32];
        if (quick && *quick && i != 1) continue;
        start(TWO_EACH);
        do t_run_until(&run, CASES[i].role);
        while (!strstr(run.line, CASES[i].said) || !strstr(run.line, CASES[i].of));
        assert_int_equal(sscanf(strstr(run.line, "<- "), "<- %31s", name), 1);
        assert_int_equal(kill(pid_of(name), SIGKILL), 0);
        t_run_until(&run, t_format("%s[", name));
        t_run_ends(&run, 0);
        int steps = count_lines(" PROGRESS job=1 ", "stage=\"denoise\""),
            chunks = count_lines(" PROGRESS job=1 ", "stage=\"mux\"");
        if (steps != atoi(STEPS) || chunks != 7)
            t_run_fail(&run, "%s died: job 1 took %d steps and %d chunks, want " STEPS " and 7",
                       name, steps, chunks);
        check_results();
        t_run_close(&run);
    }
}

/* ---- two clients ---- */

typedef struct {
    void *socket;
    uint64_t id; /* from ACCEPTED */
    int finished, progress;
    bool heard_ready;
} client;

static void hear(client *c)
{
    sl_msg m;
    uint64_t job = 0;
    t_dispatch_hear(&run, c->socket, &m);
    switch (m.type) {
    case SL_MSG_ACCEPTED:
        assert_int_equal(m.accepted.tag, 1);
        assert_int_equal(c->id, 0);
        c->id = m.accepted.job;
        return;
    case SL_MSG_FINISHED:
        if (m.finished.code) t_run_fail(&run, "job: %s", m.finished.message);
        assert_int_equal(m.finished.tag, 1);
        job = m.finished.job;
        c->finished++;
        break;
    case SL_MSG_PROGRESS:
        job = m.progress.job;
        c->progress++;
        break;
    case SL_MSG_STEP: job = m.step.job; break;
    case SL_MSG_SPAN: job = m.span.job; break;
    case SL_MSG_STAGE:
        job = m.stage.job;
        c->heard_ready |= !strcmp(m.stage.event, "ready");
        break;
    default: t_run_fail(&run, "%s came to a client", sl_wire_name(m.type));
    }
    if (job && job != c->id)
        t_run_fail(&run, "%s of job %d came to the client of job %d", sl_wire_name(m.type),
                   (int)job, (int)c->id);
}

/* Both call their job 1. */
static void test_two_clients(void **state)
{
    static char dirs[2][SL_DIR];
    void *zmq = zmq_ctx_new();
    client c[2] = {0};
    sl_msg m;
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 3, 30, "");
    for (uint64_t i = 0; i < 2; i++) t_dispatch_job(&run, i + 1, 5, dirs[i]);
    t_dispatch_start(&run);
    for (int i = 0; i < 2; i++) {
        c[i].socket = t_dispatch_client(zmq, &run, getpid());
        t_dispatch_submit(c[i].socket, 1, dirs[i]);
        while (!c[i].id) hear(&c[i]);
    }
    assert_int_not_equal(c[0].id, c[1].id);
    /* the other's job is not this client's to cancel */
    m = (sl_msg){.type = SL_MSG_CANCEL, .cancel = {.job = c[0].id}};
    sl_wire_send(c[1].socket, NULL, 0, &m, NULL);
    while (!c[0].finished) hear(&c[0]);
    while (!c[1].finished) hear(&c[1]);
    for (int i = 0; i < 2; i++) {
        assert_true(c[i].progress > 5);
        assert_true(c[i].heard_ready);
        assert_int_equal(t_count_files(run.out, t_format("%d.mp4", i + 1)), 1);
    }
    /* who comes later hears what there is */
    client late = {.socket = t_dispatch_client(zmq, &run, getpid())};
    while (!late.heard_ready) hear(&late);
    /* a client that did not start the dispatcher ends its own jobs alone */
    void *stranger = t_dispatch_client(zmq, &run, 1);
    m = (sl_msg){.type = SL_MSG_DRAIN};
    sl_wire_send(stranger, NULL, 0, &m, NULL);
    t_dispatch_submit(late.socket, 1, dirs[0]); /* its files are there */
    while (!late.finished) hear(&late);
    assert_int_equal(late.id, 3);
    sl_wire_send(late.socket, NULL, 0, &m, NULL);
    t_run_ends(&run, 0);
    for (int i = 0; i < 2; i++) zmq_close(c[i].socket);
    zmq_close(late.socket);
    zmq_close(stranger);
    zmq_ctx_term(zmq);
    t_run_close(&run);
}

/* ---- the undisturbed run ---- */

static int make_reference(void **state)
{
    (void)state;
    start("");
    t_run_ends(&run, 0);
    snprintf(reference, sizeof reference, "%s", run.out);
    return 0;
}

static int remove_reference(void **state)
{
    (void)state;
    *strrchr(reference, '/') = 0;
    t_rmdir(reference);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_work),
        cmocka_unit_test(test_one_is_killed),
        cmocka_unit_test(test_two_clients),
    };
    return cmocka_run_group_tests_name("instances", tests, make_reference, remove_reference);
}
