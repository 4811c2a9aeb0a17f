/* test_turns - stages that share a device compute one at a time: the order, deaths,
 * cancels, stale and damaged messages, and whole jobs.
 *
 * Started with --connect, this program is a stage: the tests name it in their
 * configurations, with a role, a script and a file in which its pieces of work are noted.
 * All is on the CPU (dispatch.turns = "always"). takes: 3 s. limit: 60 s */
#include "tests/t_dispatch.h"

#include "common/trace.h"
#include "stages/dispatch/order.h"
#include "stages/seat/seat.h"

#define MS 1000000ll

static t_run run;

/* ---- the order alone ---- */

static void test_order(void **state)
{
    static const struct {
        sl_order_wait waits[4];
        int n, want;
    } CASES[] = {
        {{{true, 5}}, 1, 0},
        {{{false, 5}, {false, 4}}, 2, 1}, /* who asked first */
        /* a piece before a step that asked earlier */
        {{{true, 4}, {false, 5}}, 2, 1},
        {{{false, 6}, {true, 1}, {false, 5}}, 3, 2}, /* and among pieces who asked first */
        {{{true, 3}, {true, 2}}, 2, 1},
        /* a step that has waited for just as long as it may */
        {{{false, 95}, {true, 0}}, 2, 0},
        {{{false, 95}, {true, -1}}, 2, 1}, /* for longer */
        {{{false, -9}, {true, -1}}, 2, 1}, /* though a piece has waited for longer still */
        {{{true, -1}, {true, -2}, {false, -9}}, 3, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        int got = sl_order_next(CASES[i].waits, CASES[i].n, 100, 100);
        if (got != CASES[i].want)
            fail_msg("case %zu: %d goes next, want %d", i, got, CASES[i].want);
    }
}

/* Jobs, oldest first: ready, weights, overtaken; who gets a stage that has weights 7. */
static void test_order_of_jobs(void **state)
{
    enum { LATE = SL_ORDER_OVERTAKEN };
    static const struct {
        sl_order_job jobs[4];
        int n, want;
    } CASES[] = {
        {{{false, 7, 0}}, 1, -1},
        {{{true, 0, 0}}, 1, 0},                      /* nobody wants what is there */
        {{{true, 0, 0}, {true, 7, 0}}, 2, 1},        /* a younger one does */
        {{{true, 7, 0}, {true, 7, 0}}, 2, 0},        /* the oldest of them */
        {{{true, 0, 0}, {false, 7, 0}}, 2, 0},       /* it is not ready */
        {{{true, 9, 0}, {true, 0, 0}}, 2, 0},        /* both need a switch */
        {{{true, 9, LATE - 1}, {true, 7, 0}}, 2, 1}, /* may be overtaken once more */
        {{{true, 9, LATE}, {true, 7, 0}}, 2, 0},     /* no more */
        {{{false, 9, LATE}, {true, 0, 0}, {true, 7, 0}},
         3,
         2},                                                   /* it is not ready, and counts not */
        {{{true, 0, 0}, {true, 9, LATE}, {true, 7, 0}}, 3, 2}, /* the oldest has time */
        {{{true, 0, LATE}, {true, 9, LATE}, {true, 7, 0}}, 3, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        int got = sl_order_take(CASES[i].jobs, CASES[i].n, 7);
        if (got != CASES[i].want)
            fail_msg("case %zu: job %d is taken, want %d", i, got, CASES[i].want);
    }
}

/* However many of one set come, one of another set waits for SL_ORDER_OVERTAKEN of them. */
static void test_nobody_starves(void **state)
{
    sl_order_job jobs[2] = {{true, 9, 0}, {true, 7, 0}};
    int before = 0;
    (void)state;
    while (sl_order_take(jobs, 2, 7) == 1) before++, jobs[0].overtaken++;
    assert_int_equal(before, SL_ORDER_OVERTAKEN);
}

/* ---- stages of our own ---- */

static const char *notes; /* file: a line for each piece, and whatever else others wait for */

static void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *fmt, ...)
{
    char line[256];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    int fd = open(notes, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, (size_t)n) != n) _exit(9);
    close(fd);
}

static bool noted(const char *part)
{
    size_t n;
    char *text = t_read(notes, &n);
    bool found = text && strstr(text, part);
    free(text);
    return found;
}

static void await_note(const char *part)
{
    for (double by = t_seconds() + 20; !noted(part); usleep(500))
        if (t_seconds() > by) _exit(8);
}

/* One piece of `ms`: "ROLE NAME T0 T1 piece" once it is over. */
static void piece(sl_seat *seat, const char *role, sl_turn_kind kind, const char *what, int n,
                  int ms, bool more)
{
    sl_err err = {0};
    int64_t t0;
    if (sl_turn_begin(&seat->turn, kind, what, n, &err)) {
        note("%s %s %d: %s\n", role, what, n, err.msg);
        return;
    }
    t0 = sl_now_ns();
    note("%s begins %s %d\n", role, what, n);
    usleep((useconds_t)ms * 1000);
    note("piece %s %lld %lld\n", role, (long long)t0, (long long)sl_now_ns());
    sl_turn_end(&seat->turn, more);
}

static void *kill_later(void *arg)
{
    usleep(*(int *)arg * 1000u);
    note("dies\n");
    raise(SIGKILL);
    return NULL;
}

static void be_text_beside_a_team(sl_seat *seat);

static void script_of(sl_seat *seat, const char *role, const char *script)
{
    static int soon = 15;
    pthread_t thread;
    bool again = noted(t_format("%s starts", role));
    note("%s starts\n", role);
    if (!strcmp(script, "steps")) {
        for (int i = 1; i <= 8; i++) piece(seat, role, SL_TURN_STEP, "step", i, 30, i < 8);
    } else if (!strcmp(script, "chunks")) { /* a whole decode, in the middle of a step */
        await_note("denoise begins step 3");
        for (int i = 1; i <= 5; i++) piece(seat, role, SL_TURN_PIECE, "chunk", i, 8, i < 5);
    } else if (!strcmp(script, "texts")) {
        await_note("denoise begins step 2");
        for (int i = 1; i <= 4; i++) piece(seat, role, SL_TURN_PIECE, "text", i, 10, false);
    } else if (!strcmp(script, "dies holding")) {
        sl_turn_begin(&seat->turn, SL_TURN_STEP, "step", 1, NULL);
        if (!again) {
            note("held\n");
            await_note("decode asks");
            usleep(20000);
            note("dies\n");
            raise(SIGKILL);
        }
        sl_turn_end(&seat->turn, false);
    } else if (!strcmp(script, "asks of a dead one")) {
        await_note("held\n");
        note("decode asks\n");
        piece(seat, role, SL_TURN_PIECE, "chunk", 1, 1, false);
    } else if (!strcmp(script, "dies waiting")) {
        await_note("denoise begins step 1");
        if (!again) pthread_create(&thread, NULL, kill_later, &soon);
        if (!again)
            sl_turn_begin(&seat->turn, SL_TURN_PIECE, "chunk", 1, NULL), note("was granted\n");
    } else if (!strcmp(script, "long step")) {
        piece(seat, role, SL_TURN_STEP, "step", 1, 150, true);
        piece(seat, role, SL_TURN_STEP, "step", 2, 1, false);
    } else if (!strcmp(script, "longer than sound")) {
        piece(seat, role, SL_TURN_STEP, "step", 7, 1400, false);
    } else if (!strcmp(script, "after step")) {
        await_note("denoise begins step");
        piece(seat, role, SL_TURN_PIECE, "chunk", 1, 1, false);
    } else if (!strcmp(script, "after held")) {
        await_note("held\n");
        piece(seat, role, SL_TURN_PIECE, "chunk", 1, 1, false);
        piece(seat, role, SL_TURN_PIECE, "chunk", 2, 1, false);
    } else if (!strcmp(script, "waits under a test")) {
        sl_seat_begin(seat, &(sl_msg_job){.job = 5, .attempt = 1});
        for (int i = 1; i <= 5; i++)
            piece(seat, role, SL_TURN_PIECE, "piece", i, i == 4 ? 100 : 1, i == 3);
        sl_seat_begin(seat, NULL);
    }
    if (!strcmp(script, "beside a team")) be_text_beside_a_team(seat);
    note("%s is through\n", role);
}

/* A stage that speaks the protocol itself, and not well. */
static void *raw_open(const char *endpoint, const char *role)
{
    void *s = zmq_socket(zmq_ctx_new(), ZMQ_DEALER);
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.pid = getpid(), .device = "cpu"}};
    snprintf(hello.hello.role, sizeof hello.hello.role, "%s", role);
    zmq_connect(s, endpoint);
    sl_wire_send(s, NULL, 0, &hello, NULL);
    return s;
}

static void raw_ask(void *s, uint64_t turn, uint32_t kind, uint64_t expected_ms)
{
    sl_msg m = {.type = SL_MSG_ASK,
                .ask = {.turn = turn, .kind = kind, .expected_ms = expected_ms, .what = "raw"}};
    sl_wire_send(s, NULL, 0, &m, NULL);
}

static void raw_give(void *s, uint64_t turn)
{
    sl_msg m = {.type = SL_MSG_GIVE, .give = {.turn = turn}};
    sl_wire_send(s, NULL, 0, &m, NULL);
}

static void raw_granted(void *s, uint64_t turn)
{
    sl_msg m;
    sl_err err = {0};
    for (double by = t_seconds() + 20; t_seconds() < by;) {
        zmq_pollitem_t item = {s, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, 100);
        while (sl_wire_recv(s, NULL, NULL, &m, &err) == SL_OK)
            if (m.type == SL_MSG_GRANT && m.grant.turn == turn) return;
    }
    _exit(7);
}

static void raw_script(const char *endpoint, const char *role, const char *script)
{
    void *s = raw_open(endpoint, role);
    uint64_t seed = 3;
    if (noted(t_format("%s starts", role))) { /* killed and started again */
        for (;;) pause();
    }
    note("%s starts\n", role);
    raw_ask(s, 10, 1, 0);
    raw_granted(s, 10);
    note("held\n");
    if (!strcmp(script, "raw, disconnects")) {
        await_note("decode starts");
        usleep(20000);
        int linger = 0;
        zmq_setsockopt(s, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(s);
        for (;;) pause();
    }
    raw_ask(s, 10, 1, 0); /* that number has been */
    raw_ask(s, 3, 1, 0);  /* and that */
    raw_ask(s, 11, 2, 0); /* no kind */
    raw_give(s, 0);       /* no turn */
    raw_give(s, 9);       /* of old */
    raw_give(s, 12);      /* never asked for */
    usleep(50000);        /* decode waits all the while */
    note(noted("decode begins") ? "a refused message freed the turn\n" : "still held\n");
    for (int i = 0; i < 1000; i++) { /* whatever comes; what is in order among it is served */
        uint32_t r = (uint32_t)((t_rand(&seed) + 1) * 1e9);
        if (r % 3)
            raw_ask(s, r % 5 ? r % 64 : (uint64_t)r << 31, r % 7 ? r & 1 : r,
                    (uint64_t)r << (r % 40));
        else raw_give(s, r % 5 ? r % 64 : UINT64_MAX);
    }
    note("%s is through\n", role);
    usleep(100000);
    raise(SIGKILL); /* with or without a turn */
}

/* ---- ranks of a team on one device ---- */

#define TEAM_STEPS 6

/* ASK for this step of job 7, and the GRANT. */
static void raw_step(void *s, uint64_t turn, int step)
{
    sl_msg m = {.type = SL_MSG_ASK, .ask = {.job = 7, .turn = turn, .kind = SL_TURN_STEP}};
    snprintf(m.ask.what, sizeof m.ask.what, "step %d", step);
    sl_wire_send(s, NULL, 0, &m, NULL);
    raw_granted(s, turn);
}

/* Rank `me` of two. In the middle of each step both wait for each other. What the other stages do
 * is timed by the notes. */
static void raw_rank(const char *endpoint, int me)
{
    void *s = raw_open(endpoint, "denoise");
    sl_msg m;
    sl_err err = {0};
    for (int i = 1; i <= TEAM_STEPS; i++) {
        /* step 3: the text asks while one is at the next step's question, the other in this step */
        if (me == 1 && i == 3) await_note("text asks 1\n"), usleep(20000);
        /* step 5: the text asks while one has the turn, and the other has not asked */
        if (me == 1 && i == 5) await_note("text asks 2\n"), usleep(20000);
        raw_step(s, (uint64_t)i, i);
        int64_t t0 = sl_now_ns();
        note("rank %d in step %d\n", me, i);
        await_note(t_format("rank %d in step %d\n", !me, i));
        usleep(5000);
        note("piece rank%d %lld %lld\n", me, (long long)t0, (long long)sl_now_ns());
        if (i == TEAM_STEPS || (me == 1 && i == 4)) raw_give(s, (uint64_t)i);
    }
    note("rank %d is through\n", me);
    while (sl_wire_recv(s, NULL, NULL, &m, &err) != SL_OK || m.type != SL_MSG_DRAIN) usleep(1000);
    exit(0);
}

static void be_text_beside_a_team(sl_seat *seat)
{
    await_note("rank 0 in step 2");
    await_note("piece rank0"); /* of step 1 at least; rank 1 is held up before step 3 */
    usleep(30000);
    note("text asks 1\n");
    piece(seat, "text", SL_TURN_PIECE, "text", 1, 10, false);
    await_note("rank 0 in step 5");
    note("text asks 2\n");
    piece(seat, "text", SL_TURN_PIECE, "text", 2, 10, false);
}

static int be_stage(int argc, char **argv)
{
    sl_seat *seat = NULL;
    sl_err err = {0};
    sl_msg m;
    const char *role = argv[argc - 3], *script = argv[argc - 2];
    notes = argv[argc - 1];
    if (!strncmp(script, "rank ", 5)) raw_rank(argv[2], atoi(script + 5));
    if (!strncmp(script, "raw", 3)) raw_script(argv[2], role, script);
    if (sl_seat_open(&seat, (sl_role)sl_role_by_name(role), argc, argv, &err))
        return sl_seat_exit(&seat, &err);
    sl_seat_ready(seat, sl_now_ns(), 0, 0);
    script_of(seat, role, script);
    while (!sl_control_next(&seat->control, false, &m, &err)) continue;
    return sl_seat_exit(&seat, &err);
}

/* ---- a dispatcher with them ---- */

static char notes_path[300];

/* Pairs of role and script, NULL-ended; `settings` of group dispatch. */
static void start(const char *settings, const char *const pairs[])
{
    char stages[4096] = "";
    size_t n = 0;
    for (int i = 0; pairs[i]; i += 2)
        n += (size_t)snprintf(
            stages + n, sizeof stages - n,
            "%s{ name = \"%s\"; program = \"%s\"; args = [\"%s\", \"%s\", \"%s\"]; }",
            i ? ", " : "", pairs[i], t_helper("test_turns"), pairs[i], pairs[i + 1], notes_path);
    t_run_conf(
        &run, 3, 30,
        t_format("dispatch: { turns = \"always\"; %s };\nstages: ( %s );\n", settings, stages));
    t_dispatch_start(&run);
}

static void open_run(void)
{
    t_run_open(&run);
    snprintf(notes_path, sizeof notes_path, "%s/notes", run.base);
    notes = notes_path;
}

static void until_noted(const char *part)
{
    for (double by = t_seconds() + 30; !noted(part); usleep(1000), t_dispatch_read_log(&run))
        if (t_seconds() > by) {
            size_t n;
            fprintf(stderr, "%s\n", t_read(notes, &n));
            t_run_fail(&run, "nobody noted \"%s\"", part);
        }
}

static void stop(void)
{
    kill(run.pid, SIGTERM);
    t_run_ends(&run, 0);
    if (t_count_processes(&run))
        t_run_fail(&run, "left behind: %d processes", t_count_processes(&run));
    t_run_close(&run);
}

typedef struct {
    char role[16];
    long long t0, t1;
} interval;

/* The pieces as they were noted, in order of their beginning. */
static int read_pieces(interval *out, int most)
{
    size_t size;
    int n = 0;
    char *text = t_read(notes, &size);
    assert_non_null(text);
    for (char *p = text; (p = strstr(p, "piece ")); p++)
        if (n < most && sscanf(p, "piece %15s %lld %lld", out[n].role, &out[n].t0, &out[n].t1) == 3)
            n++;
    free(text);
    return n;
}

static int by_start(const void *a, const void *b)
{
    const interval *x = a, *y = b;
    return (x->t0 > y->t0) - (x->t0 < y->t0);
}

/* They never overlap. */
static void one_at_a_time(interval *all, int n)
{
    qsort(all, (size_t)n, sizeof *all, by_start);
    for (int i = 1; i < n; i++)
        if (all[i].t0 < all[i - 1].t1)
            t_run_fail(&run, "%s computed %.3f ms beside %s (of %d pieces: %d)", all[i].role,
                       (double)(all[i - 1].t1 - all[i].t0) * 1e-6, all[i - 1].role, n, i);
}

/* A whole decode runs between two steps; text pieces that ask in the middle of it take
 * turns with its chunks. */
static void test_one_at_a_time(void **state)
{
    interval all[64];
    int between = 0, steps_before = 0, steps = 0, chunks = 0, texts = 0;
    (void)state;
    open_run();
    start("", (const char *const[]){"text", "texts", "denoise", "steps", "decode", "chunks", NULL});
    until_noted("text is through");
    until_noted("denoise is through");
    until_noted("decode is through");
    int n = read_pieces(all, 64);
    assert_int_equal(n, 8 + 5 + 4);
    one_at_a_time(all, n);
    for (int i = 0; i < n; i++) {
        if (!strcmp(all[i].role, "denoise")) {
            steps++;
            between += chunks > 0 && chunks < 5;
            steps_before += !chunks;
        } else if (!strcmp(all[i].role, "decode")) chunks++;
        else texts++;
    }
    assert_int_equal(steps, 8);
    assert_int_equal(texts, 4);
    if (between) t_run_fail(&run, "%d steps ran before the decode was through", between);
    if (steps_before < 3 || steps_before == 8)
        t_run_fail(&run, "%d of 8 steps ran before the decode, want 3 or a few more", steps_before);
    stop();
}

/* Ranks of one device have their turn together, whoever asks in between, and a text has its own
 * between two of their steps. */
static void test_a_team_has_its_turn_together(void **state)
{
    interval all[64];
    int texts = 0, together = 0;
    (void)state;
    open_run();
    start("", (const char *const[]){"text", "beside a team", "denoise", "rank 0", "denoise",
                                    "rank 1", NULL});
    until_noted("text is through");
    until_noted("rank 0 is through");
    until_noted("rank 1 is through");
    int n = read_pieces(all, 64);
    assert_int_equal(n, 2 * TEAM_STEPS + 2);
    qsort(all, (size_t)n, sizeof *all, by_start);
    for (int i = 0; i < n; i++) {
        bool text = !strcmp(all[i].role, "text");
        texts += text;
        for (int k = i + 1; k < n && all[k].t0 < all[i].t1; k++) {
            if (text || !strcmp(all[k].role, "text"))
                t_run_fail(&run, "%s computed beside %s", all[k].role, all[i].role);
            together++;
        }
    }
    assert_int_equal(texts, 2);
    assert_int_equal(together, TEAM_STEPS);
    /* the first text came before step 3, though one rank had asked for that before it */
    assert_string_equal(all[4].role, "text");
    /* the second after step 5, which had begun */
    assert_string_equal(all[11].role, "text");
    if (t_run_count(&run, "free=1 of cpu") > 2) /* of the text's */
        t_run_fail(&run, "a rank had the device for good");
    stop();
}

/* ---- deaths ---- */

static double noted_and_then(const char *first, const char *then)
{
    until_noted(first);
    double t0 = t_seconds();
    until_noted(then);
    return t_seconds() - t0;
}

static void test_holder_is_killed(void **state)
{
    (void)state;
    open_run();
    start("",
          (const char *const[]){"denoise", "dies holding", "decode", "asks of a dead one", NULL});
    double took = noted_and_then("dies", "decode is through");
    if (!(took < 2))
        t_run_fail(&run, "the turn of a dead stage was free after %.3f s, want at once", took);
    until_noted("denoise is through"); /* started again, it gets turns again */
    stop();
}

static void test_waiter_is_killed(void **state)
{
    (void)state;
    open_run();
    start("", (const char *const[]){"denoise", "long step", "decode", "dies waiting", NULL});
    until_noted("dies");
    until_noted("denoise is through");
    until_noted("decode is through");
    if (noted("was granted")) t_run_fail(&run, "a stage had a turn while another held it");
    stop();
}

static void test_holder_loses_its_connection(void **state)
{
    (void)state;
    open_run();
    start("", (const char *const[]){"denoise", "raw, disconnects", "decode", "after held", NULL});
    until_noted("decode is through");
    t_run_until(&run, "lost its connection while it held the turn of cpu: killed");
    t_run_until(&run, "ended: signal 9");
    stop();
}

static void test_a_long_turn_is_told(void **state)
{
    (void)state;
    open_run();
    start("turn_timeout_s = 1;",
          (const char *const[]){"denoise", "longer than sound", "decode", "after step", NULL});
    t_run_until(&run, "denoise has held its turn of cpu for 1.");
    T_SAYS(run.line, "(job 0, step 7), and decode waits");
    until_noted("decode is through"); /* nobody was preempted: what is noted does not overlap */
    interval all[8] = {0};
    one_at_a_time(all, read_pieces(all, 8));
    stop();
}

/* ---- stale and damaged messages to the dispatcher ---- */

static void test_bad_messages_are_refused(void **state)
{
    (void)state;
    open_run();
    start("", (const char *const[]){"denoise", "raw, nonsense", "decode", "after held", NULL});
    until_noted("decode is through");
    t_run_until(&run, "ended: signal 9");
    if (t_run_count(&run, "ignored") < 6)
        t_run_fail(&run, "%d messages were refused, want 6 or more", t_run_count(&run, "ignored"));
    if (!noted("still held")) t_run_fail(&run, "a message that should be refused freed the turn");
    stop();
}

/* ---- the stage's side, under a dispatcher that the test plays ---- */

typedef struct {
    void *zmq, *router;
    char from[64];
    size_t size;
    pid_t pid;
    int beats;
    double waited_s; /* its newest span of kind turn */
} played;

static void play(played *p, const char *name, const char *settings, const char *script)
{
    char endpoint[300], conf[300];
    int mandatory = 1, linger = 0;
    memset(p, 0, sizeof *p);
    snprintf(endpoint, sizeof endpoint, "ipc://%s/%s", run.base, name);
    snprintf(conf, sizeof conf, "%s/%s.cfg", run.base, name);
    t_write(conf,
            t_format("supervise: { heartbeat_ms = 20; };\ndispatch: { turns = \"always\"; %s };\n",
                     settings));
    p->zmq = zmq_ctx_new();
    p->router = zmq_socket(p->zmq, ZMQ_ROUTER);
    zmq_setsockopt(p->router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(p->router, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_bind(p->router, endpoint), 0);
    p->pid = fork();
    if (p->pid == 0) {
        char self[1024];
        snprintf(self, sizeof self, "%s", t_helper("test_turns"));
        execl(self, self, "--connect", endpoint, "--conf", conf, "--model", T_MODEL, "text", script,
              notes_path, (char *)NULL);
        _exit(127);
    }
}

/* The next message that is no heartbeat and no span; false: none within wait_ms. */
static bool heard(played *p, sl_msg *m, int wait_ms)
{
    sl_err err = {0};
    double by = t_seconds() + wait_ms * 1e-3;
    while (true) {
        while (sl_wire_recv(p->router, p->from, &p->size, m, &err) == SL_OK) {
            p->beats += m->type == SL_MSG_HEARTBEAT;
            if (m->type == SL_MSG_SPAN && m->span.kind == SL_SPAN_TURN)
                p->waited_s = (double)(m->span.t1_ns - m->span.t0_ns) * 1e-9;
            if (m->type != SL_MSG_HEARTBEAT && m->type != SL_MSG_SPAN) return true;
        }
        int left = (int)((by - t_seconds()) * 1000);
        if (left <= 0) return false;
        zmq_pollitem_t item = {p->router, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, left);
    }
}

static void hear(played *p, sl_msg *m, sl_msg_type want)
{
    char text[600];
    if (!heard(p, m, 20000)) fail_msg("no %s came", sl_wire_name(want));
    if (m->type != want)
        fail_msg("%s, want %s", sl_wire_text_of(m, text, sizeof text), sl_wire_name(want));
}

static void hear_nothing(played *p, int ms)
{
    char text[600];
    sl_msg m;
    if (heard(p, &m, ms)) fail_msg("%s, want nothing", sl_wire_text_of(&m, text, sizeof text));
}

static void say_grant(played *p, uint64_t turn, uint32_t is_free)
{
    sl_msg m = {.type = SL_MSG_GRANT, .grant = {.turn = turn, .free = is_free}};
    assert_int_equal(sl_wire_send(p->router, p->from, p->size, &m, NULL), SL_OK);
}

static void say_revoke(played *p, uint64_t turn)
{
    sl_msg m = {.type = SL_MSG_REVOKE, .revoke = {.turn = turn}};
    assert_int_equal(sl_wire_send(p->router, p->from, p->size, &m, NULL), SL_OK);
}

static void say_cancel(played *p, uint64_t job, uint32_t attempt)
{
    sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = job, .attempt = attempt}};
    assert_int_equal(sl_wire_send(p->router, p->from, p->size, &m, NULL), SL_OK);
}

static void end_play(played *p)
{
    sl_msg m = {.type = SL_MSG_DRAIN};
    int status = -1;
    sl_wire_send(p->router, p->from, p->size, &m, NULL);
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    assert_int_equal(status, 0);
    zmq_close(p->router);
    zmq_ctx_term(p->zmq);
}

/* Stale grants and revokes change nothing; a waiting stage beats; CANCEL ends the wait.
 * Pieces 1 to 5 of the script "waits under a test". */
static void test_stage_side(void **state)
{
    played p;
    sl_msg m;
    (void)state;
    open_run();
    play(&p, "ctl", "", "waits under a test");
    hear(&p, &m, SL_MSG_HELLO);
    hear(&p, &m, SL_MSG_READY);

    hear(&p, &m, SL_MSG_ASK); /* piece 1 */
    assert_int_equal(m.ask.turn, 1);
    assert_int_equal(m.ask.job, 5);
    assert_int_equal(m.ask.kind, SL_TURN_PIECE);
    assert_string_equal(m.ask.what, "piece 1");
    say_grant(&p, 0, 1);
    say_grant(&p, 2, 0);
    say_grant(&p, UINT64_MAX, 1);
    say_revoke(&p, 0);
    say_revoke(&p, 1);
    say_cancel(&p, 5, 2); /* another attempt */
    p.beats = 0;
    hear_nothing(&p, 100);
    if (p.beats < 2) fail_msg("%d heartbeats in 100 ms of waiting, want one every 20 ms", p.beats);
    assert_false(noted("text begins piece 1"));
    say_grant(&p, 1, 0);
    hear(&p, &m, SL_MSG_GIVE);
    assert_int_equal(m.give.turn, 1);

    /* piece 2: of old, then its own, free until revoked: it gives nothing back at its end */
    hear(&p, &m, SL_MSG_ASK);
    assert_int_equal(m.ask.turn, 2);
    say_grant(&p, 1, 1);
    say_grant(&p, 2, 1);
    until_noted("text begins piece 4"); /* 3 and 4 follow without a question; while 4 runs .. */
    say_grant(&p, 2, 0);
    say_revoke(&p, 1);
    say_revoke(&p, 2);
    say_revoke(&p, 2);
    hear(&p, &m, SL_MSG_GIVE); /* .. nothing is given; at its end, once */
    assert_int_equal(m.give.turn, 2);
    assert_true(noted("piece text"));

    hear(&p, &m, SL_MSG_ASK); /* piece 5 */
    assert_int_equal(m.ask.turn, 3);
    assert_true(m.ask.expected_ms >= 90); /* as long as the last one */
    say_cancel(&p, 5, 1);
    hear(&p, &m, SL_MSG_GIVE);
    assert_int_equal(m.give.turn, 3);
    say_grant(&p, 3, 0); /* crossed it: not wanted any more */
    until_noted("text piece 5: cancelled");
    until_noted("text is through");
    hear_nothing(&p, 30);
    end_play(&p);
    t_run_close(&run);
}

/* Free, and idle: given back as soon as somebody else asks. */
static void test_idle(void **state)
{
    played p;
    sl_msg m;
    (void)state;
    open_run();
    note("denoise begins step\n");
    play(&p, "idle", "", "after step");
    hear(&p, &m, SL_MSG_HELLO);
    hear(&p, &m, SL_MSG_READY);
    hear(&p, &m, SL_MSG_ASK);
    say_grant(&p, 1, 1);
    until_noted("text is through");
    hear_nothing(&p, 30);
    say_revoke(&p, 1);
    hear(&p, &m, SL_MSG_GIVE);
    assert_int_equal(m.give.turn, 1);
    say_revoke(&p, 1);
    hear_nothing(&p, 30);
    end_play(&p);
    t_run_close(&run);
}

/* Never granted: it goes on by itself after 4 x turn_timeout_s. It waits while the other
 * tests run. */
static played never;
static char never_base[300];

static int start_waiting(void **state)
{
    (void)state;
    open_run();
    note("denoise begins step\n");
    play(&never, "never", "turn_timeout_s = 1;", "after step");
    strcpy(never_base, run.base);
    return 0;
}

static void test_never_granted(void **state)
{
    sl_msg m;
    (void)state;
    hear(&never, &m, SL_MSG_HELLO);
    hear(&never, &m, SL_MSG_READY);
    hear(&never, &m, SL_MSG_ASK);
    hear(&never, &m, SL_MSG_GIVE);
    assert_int_equal(m.give.turn, 1);
    if (!(never.waited_s >= 4 && never.waited_s < 6))
        fail_msg("gave up after %.3f s, want 4", never.waited_s);
    hear_nothing(&never, 30);
    end_play(&never);
    t_rmdir(never_base);
}

/* ---- whole jobs with the real stages ---- */

#define JOBS 2
#define STEPS 5

static char reference[300]; /* folder of an undisturbed run without turns */

/* What a client learns of two jobs. */
typedef struct {
    sl_trace trace;
    int finished;
} news;

/* Start the real stages, submit two jobs, and collect their spans until both are
 * finished. */
static void two_jobs(const char *turns, news *out)
{
    void *zmq = zmq_ctx_new(), *s;
    static char dirs[JOBS][SL_DIR];
    sl_msg m;
    sl_err err = {0};
    memset(out, 0, sizeof *out);
    t_run_open(&run);
    t_run_conf(&run, 3, 30, t_format("dispatch: { turns = \"%s\"; };\n", turns));
    for (uint64_t id = 1; id <= JOBS; id++) t_dispatch_job(&run, id, STEPS, dirs[id - 1]);
    t_dispatch_start(&run);
    s = t_dispatch_client(zmq, &run, getpid());
    for (uint64_t id = 1; id <= JOBS; id++) t_dispatch_submit(s, id, dirs[id - 1]);
    while (out->finished < JOBS) {
        t_dispatch_hear(&run, s, &m);
        if (m.type == SL_MSG_FINISHED && m.finished.code)
            t_run_fail(&run, "job %d: %s", (int)m.finished.job, m.finished.message);
        out->finished += m.type == SL_MSG_FINISHED;
        sl_span span = sl_span_make(m.span.job, m.span.stage, (sl_span_kind)m.span.kind,
                                    m.span.t0_ns, m.span.t1_ns);
        if (m.type == SL_MSG_SPAN) T_OK(sl_trace_add(&out->trace, &span, &err));
    }
    /* a SIGTERM from us would say that we are dying, and the folders go */
    m = (sl_msg){.type = SL_MSG_DRAIN};
    sl_wire_send(s, NULL, 0, &m, NULL);
    t_run_ends(&run, 0);
    zmq_close(s);
    zmq_ctx_term(zmq);
}

/* Their results: [file] of job [id - 1] in `base`. */
static const char *result(const char *base, int id, int which)
{
    static const char *const FILES[] = {"text", "image", "denoise", "frames"};
    return which == 4 ? t_format("%s/out/%d.mp4", base, id)
                      : t_format("%s/out/%d/%s.safetensors", base, id, FILES[which]);
}

/* When each stage had a turn, as it says itself in the log. */
static int read_turns(interval *out, int most)
{
    int n = 0;
    for (const char *p = run.text; (p = strstr(p, "] debug: had turn ")); p++) {
        const char *role = p;
        while (role > run.text && *role != ' ') role--;
        assert_true(n < most);
        assert_int_equal(sscanf(role, " %15[a-z]", out[n].role), 1);
        assert_int_equal(
            sscanf(p, "] debug: had turn %*u of cpu from %lld to %lld ns", &out[n].t0, &out[n].t1),
            2);
        n++;
    }
    return n;
}

/* Turns of the real stages never overlap, and no step is in the middle of a decode while
 * the next job is denoised; the results are those without turns. */
static void test_two_jobs(void **state)
{
    static interval all[512];
    news without, with;
    int n = 0, inside = 0, waited = 0, after = 0;
    (void)state;
    two_jobs("never", &without);
    snprintf(reference, sizeof reference, "%s", run.base);
    for (size_t i = 0; i < without.trace.count; i++)
        assert_int_not_equal(without.trace.spans[i].kind, SL_SPAN_TURN);
    two_jobs("always", &with);
    for (int id = 1; id <= JOBS; id++)
        for (int k = 0; k < 5; k++)
            if (!t_same_file(result(run.base, id, k), result(reference, id, k)))
                t_run_fail(&run, "%s is not what it is without turns", result(run.base, id, k));

    int64_t first_decode = INT64_MAX, last_decode = 0;
    for (size_t i = 0; i < with.trace.count; i++) {
        const sl_span *s = &with.trace.spans[i];
        waited += s->kind == SL_SPAN_TURN;
        if (s->kind != SL_SPAN_COMPUTE || strcmp(s->stage, "decode") || s->job != 1) continue;
        if (s->t0_ns < first_decode) first_decode = s->t0_ns;
        if (s->t1_ns > last_decode) last_decode = s->t1_ns;
    }
    for (size_t i = 0; i < with.trace.count; i++) {
        const sl_span *s = &with.trace.spans[i];
        if (s->kind != SL_SPAN_COMPUTE || strcmp(s->stage, "denoise")) continue;
        inside += s->t0_ns > first_decode && s->t1_ns < last_decode;
        after += s->job == 2 && s->t0_ns > last_decode;
    }
    assert_true(waited > STEPS);
    n = read_turns(all, 512);
    assert_true(n >= JOBS * (2 + STEPS + 3));
    one_at_a_time(all, n);
    assert_true(after > 0);
    /* more often: it had to wait for mux in between */
    if (inside && t_run_count(&run, "<- decode GIVE") == JOBS)
        t_run_fail(&run, "%d steps ran in the middle of a decode", inside);
    sl_trace_free(&without.trace);
    sl_trace_free(&with.trace);
    t_run_close(&run);
}

/* Every report adds up, and shows the waiting; stages are killed while they hold a turn
 * and while they wait for one. */
static void test_kills_in_whole_jobs(void **state)
{
    static const struct {
        const char *line, *role;
    } STRIKES[] = {{"-> image GRANT", "image"},
                   {"-> denoise GRANT turn=4", "denoise"},
                   {"<- decode ASK", "decode"},
                   {"-> decode GRANT turn=3", "decode"},
                   {"<- denoise ASK job=2", "denoise"}};
    enum { ALL = sizeof STRIKES / sizeof *STRIKES };
    bool struck[ALL] = {false};
    char jobs[300], report[300];
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 9, 30, "dispatch: { turns = \"always\"; };\n");
    snprintf(jobs, sizeof jobs, "%s/jobs", run.base);
    snprintf(report, sizeof report, "%s/report", run.base);
    char text[4000] = "";
    for (int id = 1; id <= JOBS; id++)
        snprintf(
            text + strlen(text), sizeof text - strlen(text),
            "{\"output\": \"%s/%d.mp4\", \"dump\": \"%s/%d\", \"prompt\": \"%s\", \"seed\": %d}\n",
            run.out, id, run.out, id, id % 2 ? "A cat runs, and it rains." : "Snow.", id);
    t_write(jobs, text);
    char *args[] = {"sluice", "run",      "--quiet", "--conf",  run.conf, "--model",
                    T_MODEL,  "--image",  T_IMAGE,   "--width", "96",     "--height",
                    "64",     "--frames", "9",       "--steps", "5",      "--jobs",
                    jobs,     "--json",   report,    NULL};
    t_run_start(&run, args);
    int left = ALL;
    while (t_run_line(&run))
        for (int i = 0; i < ALL; i++) {
            if (struck[i] || !strstr(run.line, STRIKES[i].line)) continue;
            for (int r = 0; r < T_ROLE_COUNT; r++)
                if (!strcmp(T_ROLES[r], STRIKES[i].role)) kill(run.stages[r], SIGKILL);
            struck[i] = true;
            left--;
        }
    for (int i = 0; i < ALL; i++)
        if (!struck[i]) t_run_fail(&run, "no line had \"%s\"", STRIKES[i].line);
    t_run_ends(&run, 0);
    t_run_nothing_left(&run, 0);
    for (int id = 1; id <= JOBS; id++)
        for (int k = 0; k < 5; k++)
            if (!t_same_file(result(run.base, id, k), result(reference, id, k)))
                t_run_fail(&run, "%s is not what it is without kills", result(run.base, id, k));
    size_t n;
    char *json = t_read(report, &n);
    T_SAYS(json, "\"turn\": ");
    free(json);
    t_run_close(&run);
}

static int remove_reference(void **state)
{
    (void)state;
    if (*reference) t_rmdir(reference);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_order_of_jobs),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_stage_side),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_one_at_a_time),
        cmocka_unit_test(test_a_team_has_its_turn_together),
        cmocka_unit_test(test_holder_is_killed),
        cmocka_unit_test(test_waiter_is_killed),
        cmocka_unit_test(test_holder_loses_its_connection),
        cmocka_unit_test(test_a_long_turn_is_told),
        cmocka_unit_test(test_bad_messages_are_refused),
        cmocka_unit_test(test_two_jobs),
        cmocka_unit_test(test_never_granted),
        cmocka_unit_test(test_kills_in_whole_jobs),
    };
    if (argc > 1 && !strcmp(argv[1], "--connect")) return be_stage(argc, argv);
    return cmocka_run_group_tests_name("turns", tests, start_waiting, remove_reference);
}
