/* test_jobs - what the dispatcher does next: jobs and seats without processes or sockets.
 *
 * Seats are played by the test, numbered as in the configuration; what jobs have to say to
 * seats and clients is kept in the order in which it was said. */
#include "tests/t.h"

#include <sys/stat.h>

#include "common/clock.h"
#include "common/job.h"
#include "common/trace.h"
#include "stages/dispatch/jobs.h"

#define MODEL "tests/golden/tiny-i2v/model"
#define ONE_EACH                                                                                   \
    "{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; }, { name = \"decode\"; "  \
    "}, "                                                                                          \
    "{ name = \"mux\"; }"
enum { TEXT, IMAGE, DENOISE, DECODE, MUX, DENOISE_B }; /* seats of ONE_EACH, and one behind */

typedef struct {
    int seat; /* -1: a client */
    uint64_t client;
    sl_msg m;
} said;

static struct {
    sl_conf conf;
    sl_model model;
    sl_jobs *d;
    said log[1024];
    int count, read; /* messages; those that a test has looked at */
    int further[SL_CONF_SEATS];
    char dir[256];
    uint64_t epoch;
    uint32_t key;
} t;

static void to_seat(void *self, int seat, const sl_msg *m)
{
    (void)self;
    assert_true(t.count < 1024);
    t.log[t.count++] = (said){.seat = seat, .m = *m};
}

static void to_client(void *self, uint64_t client, const sl_msg *m)
{
    (void)self;
    assert_true(t.count < 1024);
    t.log[t.count++] = (said){.seat = -1, .client = client, .m = *m};
}

static void got_further(void *self, int seat)
{
    (void)self;
    t.further[seat]++;
}

static uint32_t new_key(void *self)
{
    (void)self;
    return ++t.key;
}

/* ---- seats, played ---- */

static uint64_t pool_of(int seat, int h)
{
    return 1000 + (uint64_t)seat * 10 + (uint64_t)h;
}

static void announce(int seat)
{
    const sl_conf_stage *s = &t.conf.stages[seat];
    for (int h = 0; h < SL_HANDOVER_COUNT; h++) {
        sl_msg_pool m = {.handle = {.pool = pool_of(seat, h), .slots = (uint32_t)s->slots}};
        snprintf(m.handover, sizeof m.handover, "%s", SL_HANDOVER[h].name);
        if (SL_HANDOVER[h].to == s->role) sl_jobs_on_pool(t.d, seat, &m);
    }
    if (sl_conf_teamed(&t.conf, s->role)) sl_jobs_on_rank(t.d, seat);
    sl_jobs_on_ready(t.d, seat, 100 + seat);
}

/* The dispatcher with these stages; `more` of the configuration. */
static void begin(const char *stages, const char *more)
{
    sl_jobs_out out = {NULL, to_seat, to_client, got_further, new_key};
    char text[2048];
    sl_err err = {0};
    memset(&t, 0, sizeof t);
    snprintf(t.dir, sizeof t.dir, "%s", t_tmpdir());
    snprintf(text, sizeof text, "%s\nstages: ( %s );\n", more, stages);
    sl_conf_defaults(&t.conf);
    T_OK(sl_conf_read_string(&t.conf, text, "test", &err));
    T_OK(sl_model_open(&t.model, MODEL, &err));
    T_OK(sl_jobs_open(&t.d, &t.conf, &t.model, &out, &err));
    for (int i = 0; i < t.conf.stage_count; i++)
        sl_jobs_add_seat(t.d, i, &t.conf.stages[i], sl_role_name(t.conf.stages[i].role));
    for (int i = 0; i < t.conf.stage_count; i++) announce(i);
}

static void end(void)
{
    sl_jobs_close(&t.d);
    t_rmdir(t.dir);
}

static void submit(uint64_t tag, uint64_t client, const char *name)
{
    sl_msg_submit m = {.tag = tag};
    char path[SL_PATH + 16];
    sl_job job;
    sl_err err = {0};
    snprintf(m.dir, sizeof m.dir, "%s/%s", t.dir, name);
    if (!mkdir(m.dir, 0700)) {
        T_OK(sl_job_init(&job, &err));
        job.width = 96, job.height = 64, job.frames = 9, job.steps = 3;
        snprintf(job.model, sizeof job.model, "%s", MODEL);
        snprintf(job.image, sizeof job.image, "x.png");
        snprintf(job.output, sizeof job.output, "%s/%s.mp4", t.dir, name);
        T_OK(sl_job_set_text(&job.prompt, "A cat", &err));
        snprintf(path, sizeof path, "%s/job.json", m.dir);
        T_OK(sl_job_write(&job, path, &err));
        sl_job_free(&job);
    }
    sl_jobs_submit(t.d, &m, client, NULL);
}

/* The next message to this seat (-1: a client) of this type, among those not looked at;
 * others before it are passed over. NULL: none. */
static const said *next(int seat, sl_msg_type type)
{
    for (int i = t.read; i < t.count; i++)
        if (t.log[i].seat == seat && t.log[i].m.type == type) {
            t.read = i + 1;
            return &t.log[i];
        }
    return NULL;
}

static const said *want(int seat, sl_msg_type type)
{
    const said *s = next(seat, type);
    if (!s) fail_msg("no %s for %d", sl_wire_name(type), seat);
    return s;
}

/* The newest JOB that this seat has got; it is for `job`. */
static sl_msg_job job_at(int seat, uint64_t job)
{
    for (int i = t.count - 1; i >= 0; i--)
        if (t.log[i].seat == seat && t.log[i].m.type == SL_MSG_JOB) {
            assert_int_equal(t.log[i].m.job.job, job);
            return t.log[i].m.job;
        }
    fail_msg("seat %d has no JOB", seat);
    return (sl_msg_job){0};
}

static int jobs_sent(int seat)
{
    int n = 0;
    for (int i = 0; i < t.count; i++) n += t.log[i].seat == seat && t.log[i].m.type == SL_MSG_JOB;
    return n;
}

static void say(int seat, sl_msg m)
{
    assert_true(sl_jobs_on_message(t.d, seat, &m));
    sl_jobs_schedule(t.d);
}

/* The seat spools its hand-over of this job, or fails to. */
static void spooled(int seat, uint64_t job, sl_code code)
{
    sl_msg_job j = job_at(seat, job);
    for (int h = 0; h < SL_HANDOVER_COUNT; h++)
        if (SL_HANDOVER[h].from == t.conf.stages[seat].role && SL_HANDOVER[h].how == SL_WHOLE) {
            sl_msg m = {.type = SL_MSG_SPOOLED,
                        .spooled = {.job = job, .attempt = j.attempt, .code = (int32_t)code}};
            snprintf(m.spooled.name, sizeof m.spooled.name, "%s", SL_HANDOVER[h].file);
            say(seat, m);
        }
}

/* DONE: what the JOB named a pool for lies there now. Returns the ticket, or zeroes. */
static sl_ticket done(int seat, uint64_t job)
{
    sl_msg_job j = job_at(seat, job);
    sl_ticket ticket = {0};
    sl_msg m = {.type = SL_MSG_DONE, .done = {.job = job, .attempt = j.attempt, .bytes = 7}};
    for (uint32_t i = 0; i < j.to.count; i++)
        if (j.to.at[i].way == SL_BY_SLOT && SL_HANDOVER[j.to.at[i].handover].how == SL_WHOLE) {
            ticket = (sl_ticket){.pool = j.to.at[i].ticket.pool, .epoch = ++t.epoch};
            sl_tickets_add(&m.done.out, j.to.at[i].handover, &ticket);
        }
    say(seat, m);
    return ticket;
}

static void failed(int seat, uint64_t job, sl_code code)
{
    sl_msg m = {.type = SL_MSG_FAILED,
                .failed = {.job = job,
                           .attempt = job_at(seat, job).attempt,
                           .code = (int32_t)code,
                           .message = "why"}};
    say(seat, m);
}

static void taken(int seat, uint64_t job)
{
    say(seat, (sl_msg){.type = SL_MSG_TAKEN,
                       .taken = {.job = job, .attempt = job_at(seat, job).attempt}});
}

static void progress_of(int seat, uint64_t job, uint32_t steps, uint32_t total)
{
    say(seat, (sl_msg){.type = SL_MSG_PROGRESS,
                       .progress = {.job = job,
                                    .attempt = job_at(seat, job).attempt,
                                    .done = steps,
                                    .total = total}});
}

static void progress(int seat, uint64_t job, uint32_t steps)
{
    progress_of(seat, job, steps, 3);
}

static void dies(int seat)
{
    sl_jobs_on_death(t.d, seat, 100 + seat, "signal 9 (Killed)");
    sl_jobs_schedule(t.d);
}

static void give(int seat, uint64_t job)
{
    spooled(seat, job, SL_OK);
    done(seat, job);
}

/* The row of this hand-over. */
static const sl_ticket *row(const sl_tickets *list, sl_handover h, bool *by_file)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i].handover == (uint32_t)h) {
            *by_file = list->at[i].way == SL_BY_FILE;
            return &list->at[i].ticket;
        }
    fail_msg("no row of %s", SL_HANDOVER[h].name);
    return NULL;
}

static void by_file(const sl_tickets *list, sl_handover h)
{
    bool file = false;
    row(list, h, &file);
    if (!file) fail_msg("%s goes by a slot, want a file", SL_HANDOVER[h].name);
}

static void by_slot(const sl_tickets *list, sl_handover h, int seat)
{
    bool file = false;
    const sl_ticket *ticket = row(list, h, &file);
    if (file) fail_msg("%s goes by a file, want a slot", SL_HANDOVER[h].name);
    assert_int_equal(ticket->pool, pool_of(seat, h));
}

/* The seat's JOB takes h from a slot of its own; it gives h to the receiver's. */
static void takes_slot(int seat, uint64_t job, sl_handover h)
{
    sl_msg_job m = job_at(seat, job);
    by_slot(&m.in, h, seat);
}
static void gives_to(int seat, uint64_t job, sl_handover h, int receiver)
{
    sl_msg_job m = job_at(seat, job);
    by_slot(&m.to, h, receiver);
}

/* ---- one job ---- */

static void a_job_goes_from_crew_to_crew(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(44, 9, "a");
    const said *s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 9);
    assert_int_equal(s->m.accepted.tag, 44);
    assert_int_equal(s->m.accepted.job, 1);
    sl_jobs_schedule(t.d);
    sl_msg_job text = job_at(TEXT, 1), image = job_at(IMAGE, 1);
    assert_int_equal(text.in.count, 0);
    by_slot(&text.to, SL_HANDOVER_TEXT, DENOISE);
    by_slot(&image.to, SL_HANDOVER_IMAGE, DENOISE);
    done(TEXT, 1);
    assert_int_equal(jobs_sent(DENOISE), 0);
    done(IMAGE, 1);
    sl_msg_job denoise = job_at(DENOISE, 1);
    by_slot(&denoise.in, SL_HANDOVER_TEXT, DENOISE);
    by_slot(&denoise.in, SL_HANDOVER_IMAGE, DENOISE);
    by_slot(&denoise.to, SL_HANDOVER_LATENTS, DECODE);
    spooled(TEXT, 1, SL_OK);
    spooled(IMAGE, 1, SL_OK);
    give(DENOISE, 1);
    t.read = 0;
    const said *mux = want(MUX, SL_MSG_JOB), *decode = want(DECODE, SL_MSG_JOB);
    assert_int_equal(mux->m.job.in.count, 0); /* chunks come by CHUNK */
    assert_int_equal(mux->m.job.attempt, decode->m.job.attempt);
    by_slot(&decode->m.job.in, SL_HANDOVER_LATENTS, DECODE);
    by_slot(&decode->m.job.to, SL_HANDOVER_FRAMES, MUX);
    say(DECODE, (sl_msg){.type = SL_MSG_CHUNK,
                         .chunk = {.job = 1,
                                   .attempt = decode->m.job.attempt,
                                   .handover = SL_HANDOVER_FRAMES,
                                   .slot = {.pool = pool_of(MUX, SL_HANDOVER_FRAMES)}}});
    want(MUX, SL_MSG_CHUNK);
    done(DECODE, 1);
    assert_null(next(-1, SL_MSG_FINISHED));
    done(MUX, 1);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 9);
    assert_int_equal(s->m.finished.tag, 44);
    assert_int_equal(s->m.finished.job, 1);
    assert_int_equal(s->m.finished.code, SL_OK);
    assert_int_equal(s->m.finished.bytes, 7);
    assert_int_equal(sl_jobs_count(t.d), 0);
    end();
}

/* ---- credits ---- */

/* The only text slot is held by job 2, which waits for a picture; the only image slot by
 * job 1, which waits for a text. Neither lies in a file. Job 1 is the oldest. */
static void the_oldest_never_waits_for_a_credit(void **state)
{
    (void)state;
    begin("{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; slots = 1; }, "
          "{ name = \"decode\"; }, { name = \"mux\"; }",
          "");
    submit(1, 1, "a");
    submit(2, 1, "b");
    sl_jobs_schedule(t.d);
    spooled(TEXT, 1, SL_SYS); /* the disk is full */
    done(TEXT, 1);
    assert_int_equal(jobs_sent(TEXT), 1); /* job 2's would have no slot */
    spooled(IMAGE, 1, SL_SYS);
    done(IMAGE, 1);
    assert_int_equal(jobs_sent(TEXT), 1); /* the slot is read */
    dies(IMAGE);
    taken(DENOISE, 1);
    spooled(TEXT, 2, SL_SYS);
    done(TEXT, 2);
    failed(DENOISE, 1, SL_BUSY); /* and its inputs are nowhere any more */
    sl_msg_job again = job_at(TEXT, 1);
    by_file(&again.to, SL_HANDOVER_TEXT);
    announce(IMAGE);
    sl_jobs_schedule(t.d);
    gives_to(IMAGE, 1, SL_HANDOVER_IMAGE, DENOISE);
    done(IMAGE, 1);
    assert_int_equal(jobs_sent(IMAGE), 2); /* job 2's waits for the slot */
    give(TEXT, 1);
    sl_msg_job denoise = job_at(DENOISE, 1);
    by_file(&denoise.in, SL_HANDOVER_TEXT);
    by_slot(&denoise.in, SL_HANDOVER_IMAGE, DENOISE);
    taken(DENOISE, 1);
    done(IMAGE, 2);
    give(DENOISE, 1);
    takes_slot(DENOISE, 2, SL_HANDOVER_TEXT);
    end();
}

/* As many run ahead as there are slots; a slot is free once what lay there was taken. */
static void others_wait_for_a_credit(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    for (uint64_t i = 1; i <= 5; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
    give(TEXT, 1);
    give(IMAGE, 1);
    give(TEXT, 2);
    assert_int_equal(jobs_sent(TEXT), 2); /* 1 is read, 2 lies */
    taken(DENOISE, 1);
    assert_int_equal(jobs_sent(TEXT), 3);
    give(TEXT, 3);
    assert_int_equal(jobs_sent(TEXT), 3); /* 2 and 3 lie */
    give(IMAGE, 2);
    give(DENOISE, 1);
    assert_int_equal(jobs_sent(TEXT), 3);
    progress(DENOISE, 2, 1); /* a step tells as much as TAKEN */
    assert_int_equal(jobs_sent(TEXT), 4);
    end();
}

/* ---- instances ---- */

#define TWO_DENOISERS                                                                              \
    "{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; team = 1; }, { name = "    \
    "\"decode\"; }, { name = \"mux\"; }, { name = \"denoise\"; team = 1; }"

static void two_denoisers_work_on_two_jobs(void **state)
{
    (void)state;
    begin(TWO_DENOISERS, "");
    for (uint64_t i = 1; i <= 3; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1); /* for the first */
    takes_slot(DENOISE, 1, SL_HANDOVER_TEXT);
    give(TEXT, 2), give(IMAGE, 2); /* for the other, which has nothing to do */
    sl_msg_job b = job_at(DENOISE_B, 2);
    by_slot(&b.in, SL_HANDOVER_TEXT, DENOISE_B);
    by_slot(&b.in, SL_HANDOVER_IMAGE, DENOISE_B);
    taken(DENOISE, 1), taken(DENOISE_B, 2);

    /* job 3 lies at the first, which is busy; the other is idle and takes the files */
    sl_ticket text = done(TEXT, 3), image = done(IMAGE, 3);
    assert_int_equal(text.pool, pool_of(DENOISE, SL_HANDOVER_TEXT));
    assert_int_equal(image.pool, pool_of(DENOISE, SL_HANDOVER_IMAGE)); /* with the text */
    give(DENOISE_B, 2);
    taken(DECODE, 2);
    assert_int_equal(jobs_sent(DENOISE_B), 1); /* nothing is in a file yet */
    spooled(TEXT, 3, SL_OK);
    assert_int_equal(jobs_sent(DENOISE_B), 1);
    t.read = t.count;
    spooled(IMAGE, 3, SL_OK);
    b = job_at(DENOISE_B, 3);
    by_file(&b.in, SL_HANDOVER_TEXT);
    by_file(&b.in, SL_HANDOVER_IMAGE);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, text.epoch);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, image.epoch);
    end();
}

/* One of two dies: its slots and its job are lost, the other's are not touched. */
static void the_other_instance_goes_on(void **state)
{
    (void)state;
    begin(TWO_DENOISERS, "");
    submit(1, 1, "a"), submit(2, 1, "b");
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1), give(TEXT, 2), give(IMAGE, 2);
    uint32_t first = job_at(DENOISE, 1).attempt;
    job_at(DENOISE_B, 2);
    t.read = t.count;
    dies(DENOISE_B);
    for (int i = t.read; i < t.count; i++)
        if (t.log[i].seat >= 0) assert_int_equal(t.log[i].m.type, SL_MSG_REAP);
    announce(DENOISE_B);
    sl_jobs_schedule(t.d);
    sl_msg_job again = job_at(DENOISE_B, 2);
    by_file(&again.in, SL_HANDOVER_TEXT);
    assert_int_equal(job_at(DENOISE, 1).attempt, first);
    assert_int_equal(jobs_sent(DENOISE), 1);
    end();
}

/* Two decoders and one mux are one crew at a time; a second mux makes two. */
static void crews_are_made_of_who_is_idle(void **state)
{
    (void)state;
    for (int muxes = 1; muxes <= 2; muxes++) {
        begin(muxes == 1 ? ONE_EACH ", { name = \"decode\"; }"
                         : ONE_EACH ", { name = \"decode\"; }, { name = \"mux\"; }",
              "");
        enum { DECODE_B = 5, MUX_B };
        submit(1, 1, "a"), submit(2, 1, "b");
        sl_jobs_schedule(t.d);
        for (uint64_t i = 1; i <= 2; i++)
            give(TEXT, i), give(IMAGE, i), taken(DENOISE, i), give(DENOISE, i);
        gives_to(DECODE, 1, SL_HANDOVER_FRAMES, MUX);
        assert_int_equal(jobs_sent(DECODE_B), muxes - 1);
        if (muxes == 2) gives_to(DECODE_B, 2, SL_HANDOVER_FRAMES, MUX_B);
        done(DECODE, 1);
        assert_int_equal(jobs_sent(DECODE_B) + jobs_sent(DECODE), muxes); /* mux is at work */
        done(MUX, 1);
        if (muxes == 1) job_at(MUX, 2);
        end();
    }
}

/* ---- falling ---- */

static void until_decoding(void)
{
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1), give(DENOISE, 1);
}

static void a_crew_falls_together(void **state)
{
    (void)state;
    begin(ONE_EACH, "supervise: { restarts = 1; };");
    until_decoding();
    uint32_t attempt = job_at(MUX, 1).attempt;
    t.read = t.count;
    dies(DECODE);
    assert_int_equal(want(MUX, SL_MSG_CANCEL)->m.cancel.attempt, attempt);
    announce(DECODE);
    sl_jobs_schedule(t.d);
    assert_int_equal(jobs_sent(DECODE), 1); /* mux has not stopped yet */
    failed(MUX, 1, SL_CANCELLED);
    sl_msg_job again = job_at(DECODE, 1);
    assert_true(again.attempt > attempt);
    assert_int_equal(job_at(MUX, 1).attempt, again.attempt);
    by_file(&again.in, SL_HANDOVER_LATENTS);

    /* both say that they could not go on: that is one failure, not two */
    progress(DECODE, 1, 1);
    failed(MUX, 1, SL_GONE);
    failed(DECODE, 1, SL_GONE);
    assert_int_equal(jobs_sent(DECODE), 3);
    failed(DECODE, 1, SL_GONE); /* without getting further: the second */
    failed(MUX, 1, SL_CANCELLED);
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_SYS);
    assert_string_equal(s->m.finished.message, "decode ended 2 times on this job without getting "
                                               "further (last: why): giving up");
    end();
}

/* The video is there: whatever becomes of decode now. */
static void the_last_of_a_crew_decides(void **state)
{
    (void)state;
    begin(ONE_EACH, "supervise: { restarts = 0; };");
    until_decoding();
    done(MUX, 1);
    dies(DECODE);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
    end();
}

static void a_cancel_after_the_end_is_late(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    until_decoding();
    done(MUX, 1);
    sl_jobs_cancel(t.d, 1, 1);
    want(DECODE, SL_MSG_CANCEL);
    failed(DECODE, 1, SL_CANCELLED);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
    end();
}

/* Tickets that wait are named before their maker's slots are freed. */
static void keep_comes_before_reap(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    sl_ticket ticket = done(TEXT, 1);
    t.read = t.count;
    dies(TEXT);
    assert_int_equal(want(DENOISE, SL_MSG_KEEP)->m.keep.ticket.epoch, ticket.epoch);
    assert_int_equal(want(DENOISE, SL_MSG_REAP)->m.reap.pid, 100 + TEXT);
    announce(TEXT);
    done(IMAGE, 1); /* the text lies there still */
    takes_slot(DENOISE, 1, SL_HANDOVER_TEXT);
    assert_int_equal(jobs_sent(TEXT), 1);
    end();
}

/* A result of an attempt given up lies in a slot that nobody will open. */
static void stale_tickets_are_discarded(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    sl_msg m = {.type = SL_MSG_DONE, .done = {.job = 1, .attempt = 77}};
    sl_ticket ticket = {.pool = pool_of(DENOISE, SL_HANDOVER_TEXT), .epoch = 5};
    sl_tickets_add(&m.done.out, SL_HANDOVER_TEXT, &ticket);
    say(TEXT, m);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, 5);
    say(DECODE,
        (sl_msg){.type = SL_MSG_CHUNK,
                 .chunk = {.job = 1,
                           .attempt = 3,
                           .handover = SL_HANDOVER_FRAMES,
                           .slot = {.pool = pool_of(MUX, SL_HANDOVER_FRAMES), .epoch = 6}}});
    assert_int_equal(want(MUX, SL_MSG_DISCARD)->m.discard.ticket.epoch, 6);
    end();
}

/* ---- teams ---- */

/* Four ranks, as seats; the model has 2 heads. */
enum { R0 = 2, R1, R2, R3, DECODE_T, MUX_T };
#define RANKS(devices, team)                                                                       \
    "{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; devices = [" devices       \
    "]; team = " team "; }, { name = \"decode\"; }, { name = \"mux\"; }"
#define FOUR(team) RANKS("\"cpu\", \"cpu\", \"cpu\", \"cpu\"", team)

/* The jobs' text and picture are made and spooled, in order. */
static void give_inputs(uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) give(TEXT, i), give(IMAGE, i);
}

static void submit_some(uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
}

/* The newest attempt of the job is of these seats, in this order; returns it. */
static uint32_t team_is(uint64_t job, int n, const int seats[])
{
    sl_msg_job first = job_at(seats[0], job);
    for (int i = 0; i < n; i++) {
        sl_msg_job m = job_at(seats[i], job);
        assert_int_equal(m.attempt, first.attempt);
        assert_string_equal(m.dir, first.dir);
        assert_int_equal(m.team.size, n);
        assert_int_equal(m.team.me, i);
        assert_int_equal(m.team.key, first.team.key);
        for (int k = 0; k < SL_RANKS; k++)
            assert_int_equal(m.team.member[k], k < n ? seats[k] - R0 : 0);
        if (i) assert_int_equal(m.in.count + m.to.count, 0); /* they are the leader's */
    }
    assert_int_equal(first.in.count, 2);
    assert_int_equal(first.to.count, 1);
    return first.attempt;
}
#define TEAM_IS(job, ...)                                                                          \
    team_is(job, (int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), (int[]){__VA_ARGS__})

static void parked(int seat, uint64_t job)
{
    say(seat, (sl_msg){.type = SL_MSG_PARKED,
                       .parked = {.job = job, .attempt = job_at(seat, job).attempt, .step = 1}});
}

/* How many messages of this type the seat was sent since t.read. */
static int count_of(int seat, sl_msg_type type)
{
    int n = 0;
    for (int i = t.read; i < t.count; i++) n += t.log[i].seat == seat && t.log[i].m.type == type;
    return n;
}

static void four_at_one_job(void)
{
    begin(FOUR("\"auto\""), "supervise: { restarts = 1; };");
    submit_some(1, 1);
    give_inputs(1, 1);
    TEAM_IS(1, R0, R1, R2, R3);
    t.read = t.count;
}

static void a_job_has_all_ranks(void **state)
{
    (void)state;
    four_at_one_job();
    uint32_t attempt = job_at(R0, 1).attempt, key = t.key;
    takes_slot(R0, 1, SL_HANDOVER_TEXT);
    gives_to(R0, 1, SL_HANDOVER_LATENTS, DECODE_T);
    say(R2, (sl_msg){.type = SL_MSG_SHARE, .share = {.job = 1, .attempt = attempt, .instance = 2}});
    assert_int_equal(want(-1, SL_MSG_SHARE)->m.share.instance, 2);
    memset(t.further, 0, sizeof t.further);
    progress(R0, 1, 1);
    for (int r = R0; r <= R3; r++) assert_int_equal(t.further[r], 1); /* all of them did */
    progress(R1, 1, 2);                                               /* not a mate's to say */
    assert_int_equal(t.further[R1], 1);
    done(R1, 1); /* a mate's is not the job's */
    done(R3, 1);
    assert_int_equal(jobs_sent(DECODE_T), 0);
    spooled(R0, 1, SL_OK);
    done(R0, 1);
    takes_slot(DECODE_T, 1, SL_HANDOVER_LATENTS);
    /* the next does not begin while a rank of the last is at work */
    submit_some(2, 2);
    give_inputs(2, 2);
    assert_int_equal(jobs_sent(R0), 1);
    done(R2, 1);
    TEAM_IS(2, R0, R1, R2, R3);
    assert_true(t.key > key);
    end();
}

static void the_leader_is_where_inputs_lie(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 2);
    give_inputs(1, 1);
    TEAM_IS(1, R0); /* the other's turn comes in a moment */
    assert_int_equal(jobs_sent(R1), 0);
    taken(R0, 1);
    done(TEXT, 2), done(IMAGE, 2); /* for the other; not in a file */
    TEAM_IS(2, R1);
    takes_slot(R1, 2, SL_HANDOVER_TEXT);
    end();
}

/* Only who is known to the others is in a team. */
static void a_rank_has_to_be_known(void **state)
{
    (void)state;
    begin(FOUR("\"auto\""), "");
    dies(R1);
    sl_jobs_on_ready(t.d, R1, 77);
    submit_some(1, 1);
    give_inputs(1, 1);
    TEAM_IS(1, R0, R2); /* three do not fit */
    end();
}

static void teams_of_a_fixed_size(void **state)
{
    (void)state;
    begin(FOUR("2"), "");
    submit_some(1, 3);
    give_inputs(1, 3);
    TEAM_IS(1, R0, R1);
    TEAM_IS(2, R2, R3);
    done(R0, 1);
    assert_int_equal(jobs_sent(R1), 1); /* job 3 waits for two */
    done(R1, 1);
    TEAM_IS(3, R0, R1);
    end();
}

/* As many as are there; when the other is back they are two again. */
static void a_fixed_team_goes_on_with_who_is_there(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "2"), "");
    submit_some(1, 2);
    give_inputs(1, 2);
    TEAM_IS(1, R0, R1);
    dies(R0);
    failed(R1, 1, SL_CANCELLED);
    TEAM_IS(1, R1);
    t.read = t.count;
    announce(R0);
    sl_jobs_schedule(t.d);
    want(R1, SL_MSG_PARK);
    parked(R1, 1);
    TEAM_IS(1, R0, R1);
    end();
}

/* Four jobs end at the same time, and decode has two slots. */
static void no_rank_waits_for_a_credit(void **state)
{
    (void)state;
    begin(FOUR("\"auto\""), "");
    submit_some(1, 4);
    give_inputs(1, 4);
    for (int r = R0; r <= R3; r++) {
        sl_msg_job m = job_at(r, (uint64_t)(r - R0) + 1);
        assert_int_equal(m.team.size, 1);
        if (r - R0 < 2) by_slot(&m.to, SL_HANDOVER_LATENTS, DECODE_T);
        else by_file(&m.to, SL_HANDOVER_LATENTS);
    }
    end();
}

/* ---- a team parts and joins ---- */

static void a_second_job_parts_the_team(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "supervise: { restarts = 0; };");
    submit_some(1, 1);
    give_inputs(1, 1);
    uint32_t attempt = TEAM_IS(1, R0, R1);
    progress_of(R0, 1, 2, 12);
    submit_some(2, 2);
    t.read = t.count;
    give(TEXT, 2); /* its picture is not there yet */
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0);
    give(IMAGE, 2);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 1);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    const said *s = want(R0, SL_MSG_PARK);
    assert_int_equal(s->m.park.job, 1);
    assert_int_equal(s->m.park.attempt, attempt);
    t.read = t.count;
    sl_jobs_schedule(t.d);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0); /* once */
    parked(R1, 1);
    assert_int_equal(jobs_sent(R1), 1); /* the other may still write to it */
    int64_t before = sl_now_ns();
    t.read = t.count;
    parked(R0, 1);
    assert_true(TEAM_IS(1, R0) > attempt);
    TEAM_IS(2, R1);
    sl_msg_job again = job_at(R0, 1);
    by_file(&again.in, SL_HANDOVER_TEXT);
    do s = want(-1, SL_MSG_SPAN);
    while (s->m.span.job != 1);
    assert_int_equal(s->m.span.kind, SL_SPAN_QUEUE); /* since it was parked, not since ever */
    assert_true(s->m.span.t0_ns >= before);

    /* the first is done: the other has both, unless it is nearly done too */
    progress_of(R1, 2, 10, 12);
    t.read = t.count;
    give(R0, 1);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 0);
    progress_of(R1, 2, 9, 12);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    parked(R1, 2);
    TEAM_IS(2, R0, R1);
    end();
}

/* What it began from would have to be made again. */
static void no_job_is_parked_before_its_inputs_are_spooled(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 1);
    done(TEXT, 1), give(IMAGE, 1);
    TEAM_IS(1, R0, R1);
    submit_some(2, 2);
    sl_msg late = {.type = SL_MSG_SPOOLED, .spooled = {.job = 1, .attempt = 1, .name = "text"}};
    done(TEXT, 2), done(IMAGE, 2);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0);
    say(TEXT, late);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 1);
    end();
}

/* PARK came after the last step. */
static void a_parked_team_may_be_done(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 1);
    give_inputs(1, 1);
    submit_some(2, 2);
    give_inputs(2, 2);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    give(R0, 1);
    done(R1, 1);
    takes_slot(R2, 1, SL_HANDOVER_LATENTS); /* no rank here, but decode */
    TEAM_IS(2, R0, R1);
    end();
}

/* ---- ranks die ---- */

static void a_team_falls_together(void **state)
{
    (void)state;
    for (int dead = R0; dead <= R1; dead++) { /* the leader, a mate */
        int other = dead == R0 ? R1 : R0;
        four_at_one_job();
        uint32_t attempt = job_at(R0, 1).attempt;
        for (int r = R0; r <= R3; r++) assert_false(sl_jobs_waits_for(t.d, r));
        failed(R2, 1, SL_GONE); /* sees it first: that is one loss, not two */
        for (int r = R0; r <= R3; r++) assert_int_equal(count_of(r, SL_MSG_CANCEL), r != R2);
        assert_int_equal(want(other, SL_MSG_CANCEL)->m.cancel.attempt, attempt);
        for (int r = R0; r <= R3; r++) assert_int_equal(sl_jobs_waits_for(t.d, r), r != R2);
        assert_false(sl_jobs_waits_for(t.d, DECODE_T));
        dies(dead);
        failed(other, 1, SL_CANCELLED);
        assert_int_equal(jobs_sent(other), 1); /* R3 may still write to it */
        failed(R3, 1, SL_CANCELLED);
        int team[] = {other, R2};
        assert_true(team_is(1, 2, team) > attempt); /* three do not fit */
        sl_msg_job again = job_at(other, 1);
        by_file(&again.in, SL_HANDOVER_TEXT);
        assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0);
        /* it is back, and there are four again */
        t.read = t.count;
        announce(dead);
        sl_jobs_schedule(t.d);
        assert_int_equal(count_of(other, SL_MSG_PARK), 1);
        parked(other, 1);
        parked(R2, 1);
        TEAM_IS(1, R0, R1, R2, R3);
        end();
    }
}

/* Twice without getting further, of restarts = 1. */
static void falls_are_counted_once(void **state)
{
    (void)state;
    four_at_one_job();
    for (int i = 0; i < 2; i++) {
        failed(R1, 1, SL_TIMEOUT);
        for (int r = R0; r <= R3; r++)
            if (r != R1) failed(r, 1, r == R0 ? SL_CANCELLED : SL_GONE);
        assert_int_equal(jobs_sent(R0), 2);
    }
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_SYS);
    T_SAYS(s->m.finished.message, "ended 2 times on this job without getting further");
    end();
}

/* A rank whose device failed says so and ends. */
static void a_device_that_fails_is_no_reason_to_end_the_job(void **state)
{
    (void)state;
    four_at_one_job();
    failed(R2, 1, SL_CUDA);
    for (int r = R0; r <= R3; r++)
        if (r != R2) failed(r, 1, SL_CANCELLED);
    TEAM_IS(1, R0, R1);
    dies(R2); /* which was not at work any more */
    assert_int_equal(count_of(R0, SL_MSG_CANCEL), 1);
    end();
}

/* Whatever else it is, is the job's. */
static void an_error_of_a_mate_ends_the_job(void **state)
{
    (void)state;
    four_at_one_job();
    failed(R3, 1, SL_NUMERIC);
    assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0); /* others are at work */
    for (int r = R0; r <= R2; r++) failed(r, 1, SL_CANCELLED);
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_NUMERIC);
    assert_string_equal(s->m.finished.message, "denoise: why");
    end();
}

/* The leader is through: the job does not fall with a mate. */
static void the_leader_decides(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        four_at_one_job();
        give(R0, 1);
        done(R3, 1);
        takes_slot(DECODE_T, 1, SL_HANDOVER_LATENTS);
        assert_true(sl_jobs_waits_for(t.d, R1)); /* it may have been stopped */
        assert_true(sl_jobs_waits_for(t.d, R2));
        if (how == 0) dies(R1);
        else failed(R1, 1, how == 1 ? SL_GONE : SL_NUMERIC);
        want(R2, SL_MSG_CANCEL);
        assert_false(sl_jobs_waits_for(t.d, R1));
        failed(R2, 1, SL_CANCELLED);
        assert_int_equal(jobs_sent(R0), 1);
        taken(DECODE_T, 1);
        done(DECODE_T, 1);
        done(MUX_T, 1);
        assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
        end();
    }
}

static void all_ranks_hear_of_a_cancel(void **state)
{
    (void)state;
    four_at_one_job();
    sl_jobs_cancel(t.d, 1, 1);
    for (int r = R0; r <= R3; r++) {
        assert_int_equal(count_of(r, SL_MSG_CANCEL), 1);
        assert_true(sl_jobs_waits_for(t.d, r)); /* one may be stopped */
    }
    for (int r = R0; r <= R3; r++) {
        assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0);
        if (r == R1) dies(r);
        else failed(r, 1, SL_CANCELLED);
    }
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_CANCELLED);
    end();
}

/* ---- clients ---- */

static void clients_have_their_own_jobs(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 5, "a");
    submit(1, 6, "b");
    assert_int_equal(want(-1, SL_MSG_ACCEPTED)->m.accepted.job, 1);
    const said *s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 6);
    assert_int_equal(s->m.accepted.tag, 1);
    assert_int_equal(s->m.accepted.job, 2);
    sl_jobs_schedule(t.d);
    sl_jobs_cancel(t.d, 1, 6); /* not its own */
    sl_jobs_schedule(t.d);
    assert_null(next(TEXT, SL_MSG_CANCEL));

    /* another client asks for the folder: it is the same job, whose news it gets */
    submit(3, 7, "a");
    s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 7);
    assert_int_equal(s->m.accepted.job, 1);
    progress(TEXT, 1, 1);
    assert_int_equal(want(-1, SL_MSG_PROGRESS)->client, 7);
    sl_jobs_cancel(t.d, 1, 7);
    sl_jobs_drain(t.d, 6); /* job 2 has not begun */
    sl_jobs_schedule(t.d);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 6);
    assert_int_equal(s->m.finished.code, SL_CANCELLED);
    assert_string_equal(s->m.finished.message, "not run: draining");
    failed(TEXT, 1, SL_CANCELLED);
    failed(IMAGE, 1, SL_CANCELLED);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 7);
    assert_int_equal(s->m.finished.tag, 3);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_goes_from_crew_to_crew),
        cmocka_unit_test(the_oldest_never_waits_for_a_credit),
        cmocka_unit_test(others_wait_for_a_credit),
        cmocka_unit_test(two_denoisers_work_on_two_jobs),
        cmocka_unit_test(the_other_instance_goes_on),
        cmocka_unit_test(crews_are_made_of_who_is_idle),
        cmocka_unit_test(a_crew_falls_together),
        cmocka_unit_test(the_last_of_a_crew_decides),
        cmocka_unit_test(a_cancel_after_the_end_is_late),
        cmocka_unit_test(keep_comes_before_reap),
        cmocka_unit_test(stale_tickets_are_discarded),
        cmocka_unit_test(a_job_has_all_ranks),
        cmocka_unit_test(the_leader_is_where_inputs_lie),
        cmocka_unit_test(a_rank_has_to_be_known),
        cmocka_unit_test(teams_of_a_fixed_size),
        cmocka_unit_test(a_fixed_team_goes_on_with_who_is_there),
        cmocka_unit_test(no_rank_waits_for_a_credit),
        cmocka_unit_test(a_second_job_parts_the_team),
        cmocka_unit_test(no_job_is_parked_before_its_inputs_are_spooled),
        cmocka_unit_test(a_parked_team_may_be_done),
        cmocka_unit_test(a_team_falls_together),
        cmocka_unit_test(falls_are_counted_once),
        cmocka_unit_test(a_device_that_fails_is_no_reason_to_end_the_job),
        cmocka_unit_test(an_error_of_a_mate_ends_the_job),
        cmocka_unit_test(the_leader_decides),
        cmocka_unit_test(all_ranks_hear_of_a_cancel),
        cmocka_unit_test(clients_have_their_own_jobs),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
