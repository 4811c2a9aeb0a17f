/* t_jobs.h - the dispatcher's jobs without processes or sockets, for test_jobs.c and
 * test_jobs_teams.c.
 *
 * Seats are played by the test, numbered as in the configuration; what jobs have to say to
 * seats and clients is kept in the order in which it was said. */
#ifndef T_JOBS_H
#define T_JOBS_H

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
    sl_once once;
    int64_t worked_ns[SL_CONF_SEATS];
    int kills, killed; /* how many seats were killed, the last, for what */
    bool for_good;
    char why[128];
} t;

static inline void to_seat(void *self, int seat, const sl_msg *m)
{
    (void)self;
    assert_true(t.count < 1024);
    t.log[t.count++] = (said){.seat = seat, .m = *m};
}

static inline void to_client(void *self, uint64_t client, const sl_msg *m)
{
    (void)self;
    assert_true(t.count < 1024);
    t.log[t.count++] = (said){.seat = -1, .client = client, .m = *m};
}

static inline void got_further(void *self, int seat)
{
    (void)self;
    t.further[seat]++;
}

static uint32_t new_key(void *self)
{
    (void)self;
    return ++t.key;
}

/* Seats compute when a test says so. */
static inline int64_t worked_ns(void *self, int seat)
{
    (void)self;
    return t.worked_ns[seat];
}

static inline void kill_seat(void *self, int seat, const char *why, bool for_good)
{
    (void)self;
    t.kills++;
    t.killed = seat;
    t.for_good = for_good;
    snprintf(t.why, sizeof t.why, "%s", why);
}

/* ---- seats, played ---- */

static uint64_t pool_of(int seat, int h)
{
    return 1000 + (uint64_t)seat * 10 + (uint64_t)h;
}

static inline void announce(int seat)
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
static inline void begin(const char *stages, const char *more)
{
    sl_jobs_out out = {NULL,    to_seat,   to_client, got_further,
                       new_key, worked_ns, kill_seat, &t.once};
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

static inline void end(void)
{
    sl_jobs_close(&t.d);
    t_rmdir(t.dir);
}

/* The LoRA of jobs that are submitted from now on, as rows of job.json. */
static const char *submitted_lora = "";

static inline void submit(uint64_t tag, uint64_t client, const char *name)
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
        T_OK(sl_job_set_text(&job.lora, submitted_lora, &err));
        snprintf(path, sizeof path, "%s/job.json", m.dir);
        T_OK(sl_job_write(&job, path, &err));
        sl_job_free(&job);
    }
    sl_jobs_submit(t.d, &m, client, NULL);
}

/* The next message to this seat (-1: a client) of this type, among those not looked at;
 * others before it are passed over. NULL: none. */
static inline const said *next(int seat, sl_msg_type type)
{
    for (int i = t.read; i < t.count; i++)
        if (t.log[i].seat == seat && t.log[i].m.type == type) {
            t.read = i + 1;
            return &t.log[i];
        }
    return NULL;
}

static inline const said *want(int seat, sl_msg_type type)
{
    const said *s = next(seat, type);
    if (!s) fail_msg("no %s for %d", sl_wire_name(type), seat);
    return s;
}

/* The newest JOB that this seat has got; it is for `job`. */
static inline sl_msg_job job_at(int seat, uint64_t job)
{
    for (int i = t.count - 1; i >= 0; i--)
        if (t.log[i].seat == seat && t.log[i].m.type == SL_MSG_JOB) {
            assert_int_equal(t.log[i].m.job.job, job);
            return t.log[i].m.job;
        }
    fail_msg("seat %d has no JOB", seat);
    return (sl_msg_job){0};
}

static inline int jobs_sent(int seat)
{
    int n = 0;
    for (int i = 0; i < t.count; i++) n += t.log[i].seat == seat && t.log[i].m.type == SL_MSG_JOB;
    return n;
}

static inline void say(int seat, sl_msg m)
{
    assert_true(sl_jobs_on_message(t.d, seat, &m));
    sl_jobs_schedule(t.d);
}

/* The seat spools its hand-over of this job, or fails to. */
static inline void spooled(int seat, uint64_t job, sl_code code)
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

/* Chunk `index` of `chunks`, in a slot of the receiver that the JOB names. */
static inline void chunk(int seat, uint64_t job, uint32_t index, uint32_t chunks)
{
    sl_msg_job j = job_at(seat, job);
    for (uint32_t i = 0; i < j.to.count; i++)
        if (SL_HANDOVER[j.to.at[i].handover].how == SL_CHUNKS)
            say(seat, (sl_msg){.type = SL_MSG_CHUNK,
                               .chunk = {.job = job,
                                         .attempt = j.attempt,
                                         .handover = j.to.at[i].handover,
                                         .index = index,
                                         .chunks = chunks,
                                         .slot = {.pool = j.to.at[i].ticket.pool}}});
}

/* DONE: what the JOB named a pool for lies there now; before it the one chunk of who hands chunks
 * on. Returns the ticket, or zeroes. */
static inline sl_ticket done(int seat, uint64_t job)
{
    sl_msg_job j = job_at(seat, job);
    chunk(seat, job, 0, 1);
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

static inline void failed(int seat, uint64_t job, sl_code code)
{
    sl_msg m = {.type = SL_MSG_FAILED,
                .failed = {.job = job,
                           .attempt = job_at(seat, job).attempt,
                           .code = (int32_t)code,
                           .message = "why"}};
    say(seat, m);
}

static inline void taken(int seat, uint64_t job)
{
    say(seat, (sl_msg){.type = SL_MSG_TAKEN,
                       .taken = {.job = job, .attempt = job_at(seat, job).attempt}});
}

static inline void progress_of(int seat, uint64_t job, uint32_t steps, uint32_t total)
{
    say(seat, (sl_msg){.type = SL_MSG_PROGRESS,
                       .progress = {.job = job,
                                    .attempt = job_at(seat, job).attempt,
                                    .done = steps,
                                    .total = total}});
}

static inline void progress(int seat, uint64_t job, uint32_t steps)
{
    progress_of(seat, job, steps, 3);
}

static inline void dies(int seat)
{
    sl_jobs_on_death(t.d, seat, 100 + seat, "signal 9 (Killed)");
    sl_jobs_schedule(t.d);
}

static inline void give(int seat, uint64_t job)
{
    spooled(seat, job, SL_OK);
    done(seat, job);
}

/* The row of this hand-over. */
static inline const sl_ticket *row(const sl_tickets *list, sl_handover h, bool *by_file)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (list->at[i].handover == (uint32_t)h) {
            *by_file = list->at[i].way == SL_BY_FILE;
            return &list->at[i].ticket;
        }
    fail_msg("no row of %s", SL_HANDOVER[h].name);
    return NULL;
}

static inline void by_file(const sl_tickets *list, sl_handover h)
{
    bool file = false;
    row(list, h, &file);
    if (!file) fail_msg("%s goes by a slot, want a file", SL_HANDOVER[h].name);
}

static inline void by_slot(const sl_tickets *list, sl_handover h, int seat)
{
    bool file = false;
    const sl_ticket *ticket = row(list, h, &file);
    if (file) fail_msg("%s goes by a file, want a slot", SL_HANDOVER[h].name);
    assert_int_equal(ticket->pool, pool_of(seat, h));
}

/* The seat's JOB takes h from a slot of its own; it gives h to the receiver's. */
static inline void takes_slot(int seat, uint64_t job, sl_handover h)
{
    sl_msg_job m = job_at(seat, job);
    by_slot(&m.in, h, seat);
}
static inline void gives_to(int seat, uint64_t job, sl_handover h, int receiver)
{
    sl_msg_job m = job_at(seat, job);
    by_slot(&m.to, h, receiver);
}

#endif
