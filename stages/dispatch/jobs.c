/* jobs.c - the dispatcher's jobs: submitted, told of by seats, finished.
 *
 *   client --SUBMIT--> job --(schedule.c: JOB)--> crew --CHUNK--> crew's next seat
 *                       ^                          |
 *                       '---- DONE, PARKED, FAILED, end of a process: a seat is through
 *
 * A seat that falls out of a crew (FAILED, or its process ended) makes the whole attempt
 * fall: the others are told to CANCEL, and when all are through, scheduling sees what is
 * missing and begins anew. Attempts that fall without the job getting further are counted;
 * too many end it. So it is with a team, but its leader alone speaks for the job: what becomes
 * of its mates once it is through changes nothing. A death takes slots and work away and changes
 * nothing else: what lies in the folder under its final name is whole, whoever wrote it. */
#include "stages/dispatch/jobs.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/lora.h"
#include "stages/dispatch/schedule.h"

/* ---- opening ---- */

sl_code sl_jobs_open(sl_jobs **out, const sl_conf *conf, const sl_model *model,
                     const sl_jobs_out *to, sl_err *err)
{
    sl_jobs *d = *out = calloc(1, sizeof *d);
    if (!d || !(d->jobs = calloc(SL_JOBS_MAX, sizeof *d->jobs)) ||
        !(d->order_jobs = calloc(SL_JOBS_MAX, sizeof *d->order_jobs)) ||
        !(d->team_jobs = calloc(SL_JOBS_MAX, sizeof *d->team_jobs)) ||
        !(d->team_jobs_of = calloc(SL_JOBS_MAX, sizeof(int))))
        return sl_fail(err, SL_NOMEM, "dispatch: no memory");
    d->conf = conf;
    d->model = model;
    d->self = to->self;
    d->to_seat = to->to_seat;
    d->to_client = to->to_client;
    d->got_further = to->got_further;
    d->new_key = to->new_key;
    d->worked_ns = to->worked_ns;
    d->kill = to->kill;
    d->once = to->once;
    return SL_OK;
}

void sl_jobs_close(sl_jobs **dp)
{
    sl_jobs *d = *dp;
    *dp = NULL;
    if (!d) return;
    free(d->jobs);
    free(d->order_jobs);
    free(d->team_jobs);
    free(d->team_jobs_of);
    free(d);
}

int sl_jobs_count(const sl_jobs *d)
{
    return d->count;
}
const char *sl_jobs_dir(const sl_jobs *d, int i)
{
    return d->jobs[i].dir;
}
const char *sl_jobs_output(const sl_jobs *d, int i)
{
    return d->jobs[i].output;
}

const char *sl_jobs_name(const sl_jobs *d, uint64_t id)
{
    for (int i = 0; i < d->count; i++)
        if (d->jobs[i].id == id) return sl_table_name(&d->jobs[i]);
    return NULL;
}

/* ---- seats ---- */

/* No process, or one that has said nothing yet: as many slots as it is to announce. */
static void vacate(seat *s)
{
    *s = (seat){.stage = s->stage, .name = s->name, .teamed = s->teamed};
    for (int h = 0; h < sl_handover_count(); h++)
        if (SL_HANDOVER[h].to == s->stage->role) s->pools[h].slots = s->stage->slots;
}

void sl_jobs_add_seat(sl_jobs *d, int number, const sl_conf_stage *stage, const char *name)
{
    d->seats[number].stage = stage;
    d->seats[number].name = name;
    d->seats[number].teamed = sl_conf_teamed(d->conf, stage->role);
    vacate(&d->seats[number]);
}

void sl_jobs_on_pool(sl_jobs *d, int number, const sl_msg_pool *m)
{
    int h = sl_handover_by_name(m->handover);
    seat *s = &d->seats[number];
    if (h < 0 || SL_HANDOVER[h].to != s->stage->role) {
        sl_once_warn(d->once, "%s announces a pool for %s, which it does not take: ignored",
                     s->name, m->handover);
        return;
    }
    s->pools[h].id = m->handle.pool;
    s->pools[h].slots = (int)m->handle.slots;
}

void sl_jobs_on_rank(sl_jobs *d, int number)
{
    d->seats[number].rank = true;
}

void sl_jobs_on_load(sl_jobs *d, int number)
{
    d->seats[number].loads = true;
}

void sl_jobs_on_ready(sl_jobs *d, int number, pid_t pid)
{
    d->seats[number].loads = false;
    d->seats[number].ready = true;
    d->seats[number].ready_ns = sl_now_ns();
    d->seats[number].pid = pid;
}

/* ---- beginnings and ends ---- */

static bool is_spooled(const job *j, int h)
{
    char path[SL_PATH + 64];
    snprintf(path, sizeof path, "%s/%s.safetensors", j->dir, SL_HANDOVER[h].file);
    return access(path, R_OK) == 0;
}

/* What earlier processes finished lies in the folder; what they did not finish are
 * temporaries, and go. */
static void look_into_spool(job *j)
{
    char path[SL_PATH + 288];
    for (int h = 0; h < sl_handover_count(); h++)
        if (j->deliveries[h].has) j->deliveries[h].spooled = is_spooled(j, h);
    DIR *dir = opendir(j->dir);
    struct dirent *e;
    while (dir && (e = readdir(dir)))
        if (strstr(e->d_name, ".tmp")) {
            snprintf(path, sizeof path, "%s/%s", j->dir, e->d_name);
            unlink(path);
        }
    if (dir) closedir(dir);
}

/* What a filter would make that no stage here takes, of a replay behind it, is none of the
 * job's. */
static void leave_out(sl_jobs *d, job *j)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        delivery *v = &j->deliveries[h];
        if (sl_role_is_filter(SL_HANDOVER[h].from) && !v->spooled &&
            !sl_schedule_has(d, SL_HANDOVER[h].from) && !sl_schedule_has(d, SL_HANDOVER[h].to))
            v->has = false;
    }
}

static void finish(sl_jobs *d, job *j, sl_code code, const char *message)
{
    sl_msg m = {
        .type = SL_MSG_FINISHED,
        .finished = {.tag = j->tag, .job = j->id, .code = (int32_t)code, .bytes = j->bytes}};
    snprintf(m.finished.message, sizeof m.finished.message, "%s", message);
    for (int h = 0; h < sl_handover_count(); h++) sl_table_discard(d, &j->deliveries[h]);
    sl_table_to_client(d, j, &m);
    sl_log_about(sl_table_name(j), SL_LOG_DEBUG, "job %" PRIu64 ": %s %s", j->id,
                 sl_code_name(code), message);
    int at = (int)(j - d->jobs);
    memmove(j, j + 1, (size_t)(--d->count - at) * sizeof *j);
}

static void refuse(sl_jobs *d, uint64_t tag, uint64_t client, sl_code code, const char *message)
{
    sl_msg m = {.type = SL_MSG_FINISHED, .finished = {.tag = tag, .code = (int32_t)code}};
    snprintf(m.finished.message, sizeof m.finished.message, "%s", message);
    d->to_client(d->self, client, &m);
}

/* The job has the hand-over. One that is dumped ends with the last stage that is here: what would
 * be made behind that is none of its. */
static bool is_of_job(const sl_jobs *d, int h, const sl_job *spec)
{
    return SL_HANDOVER[h].how == SL_WHOLE && sl_handover_applies((sl_handover)h, d->model, spec) &&
           (!spec->dump || sl_schedule_reaches(d, SL_HANDOVER[h].from));
}

/* The folder as a job, in the first free place; not counted yet. */
static sl_code read_job(sl_jobs *d, job *j, const char *dir, sl_err *err)
{
    char path[SL_PATH];
    sl_job spec = {0};
    sl_code rc;
    memset(j, 0, sizeof *j);
    snprintf(j->dir, sizeof j->dir, "%s", dir);
    if (!(rc = sl_path_join(path, j->dir, "job.json", err)) &&
        !(rc = sl_job_read(&spec, path, err)))
        rc = sl_job_check(&spec, err);
    for (int h = 0; h < sl_handover_count() && !rc; h++)
        j->deliveries[h] =
            (delivery){.has = is_of_job(d, h, &spec), .maker = NO_SEAT, .seat = NO_SEAT};
    j->dump = spec.dump;
    j->key = sl_lora_key(spec.lora) + 3 * sl_lora_key(spec.lora_2);
    j->guided = sl_job_guided(&spec);
    j->alone = spec.dump_blocks;
    memcpy(j->output, spec.output, sizeof j->output);
    sl_job_free(&spec);
    if (rc) return rc;
    look_into_spool(j);
    leave_out(d, j);
    const char *lacks = sl_schedule_lacks(d, j);
    return lacks ? sl_fail(err, SL_ARG,
                           "job refused: the configuration has no stage %s, and nothing in the "
                           "spool stands for it",
                           lacks)
                 : SL_OK;
}

void sl_jobs_submit(sl_jobs *d, const sl_msg_submit *m, uint64_t client, const sl_err *closed)
{
    sl_err err = {0};
    job *j = NULL;
    for (int i = 0; i < d->count && !j; i++)
        if (!strcmp(d->jobs[i].dir, m->dir)) j = &d->jobs[i];
    if (!j) {
        if (closed) err = *closed;
        else if (d->draining || d->count == SL_JOBS_MAX || d->count >= d->conf->limits.jobs)
            sl_fail(&err, SL_BUSY, "job refused: %s (%d jobs held, limits.jobs is %d)",
                    d->draining ? "draining" : "too many jobs", d->count, d->conf->limits.jobs);
        if (err.code || read_job(d, &d->jobs[d->count], m->dir, &err)) {
            refuse(d, m->tag, client, err.code, err.msg);
            return;
        }
        j = &d->jobs[d->count++];
        j->id = ++d->last_id;
    }
    j->tag = m->tag;
    j->client = client;
    sl_msg accepted = {.type = SL_MSG_ACCEPTED, .accepted = {.tag = j->tag, .job = j->id}};
    sl_table_to_client(d, j, &accepted);
}

void sl_jobs_cancel(sl_jobs *d, uint64_t id, uint64_t client)
{
    job *j = sl_table_job(d, id);
    if (j && j->client == client) sl_table_end(d, j, SL_CANCELLED, "cancelled");
    else if (j)
        sl_log_about(sl_table_name(j), SL_LOG_WARN,
                     "CANCEL of job %" PRIu64 ": ignored, it is another's", id);
}

void sl_jobs_drain(sl_jobs *d, uint64_t client)
{
    if (!client) d->draining = true;
    for (int i = 0; i < d->count; i++)
        if (!client || d->jobs[i].client == client) d->jobs[i].draining = true;
}

void sl_jobs_fail_all(sl_jobs *d, sl_code code, const char *why)
{
    for (int i = 0; i < d->count; i++) sl_table_end(d, &d->jobs[i], code, why);
}

/* ---- attempts ---- */

static bool leads(const attempt *a, const seat *s, int number)
{
    return a->seat[s->stage->role] == number;
}

/* The job that this seat works on, if the message is about that and not about an attempt
 * given up; *a is its attempt. */
static job *current(sl_jobs *d, int number, uint64_t id, uint32_t attempt_number, attempt **a)
{
    const seat *s = &d->seats[number];
    job *j = sl_table_job(d, id);
    if (!j || !attempt_number || s->job != id || s->attempt != attempt_number) return NULL;
    *a = &j->attempts[sl_crew_of(s->stage->role)];
    return (*a)->number == attempt_number && sl_table_is_in(*a, s, number) ? j : NULL;
}

/* As current, for what a mate does not say. */
static job *led(sl_jobs *d, int number, uint64_t id, uint32_t attempt_number, attempt **a)
{
    job *j = current(d, number, id, attempt_number, a);
    return j && leads(*a, &d->seats[number], number) ? j : NULL;
}

/* Seats of the attempt that are not through. */
static int count_in(const attempt *a)
{
    int n = 0;
    for (int r = 0; r < sl_role_count(); r++) n += a->seat[r] != NO_SEAT;
    for (int i = 0; i < SL_RANKS; i++) n += a->mates[i] != NO_SEAT;
    return n;
}

/* The seat is through with the attempt, which is over with its last one. A team's seats are free
 * all at once. */
static void leave(sl_jobs *d, const job *j, attempt *a, int number)
{
    seat *s = &d->seats[number];
    sl_role role = s->stage->role;
    if (leads(a, s, number)) a->seat[role] = NO_SEAT;
    for (int i = 0; i < SL_RANKS; i++)
        if (a->mates[i] == number) a->mates[i] = NO_SEAT;
    s->attempt = 0;
    if (!a->size) s->job = NO_JOB;
    a->ending = true;
    if (count_in(a)) return;
    a->number = 0;
    for (int i = 0; i < SL_CONF_SEATS && a->size; i++) {
        seat *mate = &d->seats[i];
        if (mate->stage && mate->stage->role == role && mate->job == j->id && !mate->attempt)
            mate->job = NO_JOB;
    }
}

bool sl_jobs_waits_for(const sl_jobs *d, int number)
{
    const seat *s = &d->seats[number];
    for (int i = 0; s->stage && s->attempt && i < d->count; i++) {
        const attempt *a = &d->jobs[i].attempts[sl_crew_of(s->stage->role)];
        if (d->jobs[i].id == s->job) return sl_table_is_in(a, s, number) && a->size && a->ending;
    }
    return false;
}

/* One of the crew fell out: the others begin again with it. true: nobody had said so yet, and
 * that is a loss. */
static bool fall(sl_jobs *d, job *j, attempt *a, sl_role role)
{
    if (j->made[sl_crew_of(role)] || a->fallen) return false;
    a->fallen = true;
    sl_table_stop(d, j, a);
    return !a->well;
}

/* An attempt fell: try again, but not for ever. */
static void try_again(sl_jobs *d, job *j, int number, const char *how)
{
    char why[SL_TEXT];
    if (++j->deaths <= d->conf->supervise.restarts) return;
    snprintf(why, sizeof why,
             "%s ended %d times on this job without getting further (last: %.300s): giving up",
             d->seats[number].name, j->deaths, how);
    sl_table_end(d, j, SL_SYS, why);
}

/* The seat has finished so many steps of the job, and its team with it; UINT32_MAX: all of
 * them. */
static void advance(sl_jobs *d, job *j, int number, uint32_t done)
{
    sl_role role = d->seats[number].stage->role;
    if (done <= j->furthest[role]) return;
    j->furthest[role] = done;
    j->deaths = 0;
    if (role == j->faulty) j->faults = 0;
    for (int i = 0; i < SL_CONF_SEATS; i++) {
        const seat *s = &d->seats[i];
        bool mate = s->teamed && s->stage->role == role && s->job == j->id;
        if (i == number || mate) d->got_further(d->self, i);
    }
}

/* ---- what seats say ---- */

static void on_progress(sl_jobs *d, int number, const sl_msg *m)
{
    attempt *a;
    job *j = led(d, number, m->progress.job, m->progress.attempt, &a);
    if (!j) return;
    a->taken = true; /* or nothing could have been computed */
    a->done = m->progress.done;
    a->total = m->progress.total;
    advance(d, j, number, m->progress.done);
    sl_table_to_client(d, j, m);
}

static void on_chunk(sl_jobs *d, int number, const sl_msg *m)
{
    attempt *a;
    const sl_msg_chunk *c = &m->chunk;
    job *j = led(d, number, c->job, c->attempt, &a);
    bool known = c->handover < (uint32_t)sl_handover_count() &&
                 SL_HANDOVER[c->handover].from == d->seats[number].stage->role;
    int to = j && known && sl_watch_chunk(d, j, a, number, c) ? a->seat[SL_HANDOVER[c->handover].to]
                                                              : NO_SEAT;
    if (j) a->taken = true;
    if (to != NO_SEAT) sl_table_to_seat(d, to, m);
    else sl_table_discard_ticket(d, c->handover, &c->slot);
}

static void on_spooled(sl_jobs *d, int number, const sl_msg_spooled *m)
{
    job *j = sl_table_job(d, m->job);
    int h = sl_handover_by_file(m->name);
    const seat *s = &d->seats[number];
    /* of chunks the receiver keeps a file, if it is asked to */
    const sl_role writer = h < 0                             ? SL_ROLES_MOST
                           : SL_HANDOVER[h].how == SL_CHUNKS ? SL_HANDOVER[h].to
                                                             : SL_HANDOVER[h].from;
    if (!j || writer != s->stage->role) return;
    if (m->code && j->dump && !*j->undumped) /* the video goes before the files beside it */
        snprintf(j->undumped, sizeof j->undumped, "%s: %.480s", s->name, m->message);
    delivery *v = &j->deliveries[h];
    if (!v->has) return;
    v->spooled |= m->code == SL_OK;
    v->lost = m->code != SL_OK && j->dump;
    v->spooling = false;
    v->answered = m->attempt;
    if (m->code && !j->dump)
        sl_log_about(sl_table_name(j), SL_LOG_WARN,
                     "job %" PRIu64
                     " goes on, but would not survive a death of %s or the next stage: %.300s",
                     m->job, s->name, m->message);
}

/* What the seat worked with, for the job's report. */
static void tell_done(sl_jobs *d, const job *j, const seat *s, const sl_msg_done *m)
{
    sl_msg news = {.type = SL_MSG_STAGE,
                   .stage = {.instance = (uint32_t)s->stage->instance,
                             .pid = s->pid,
                             .peak_bytes = m->peak_bytes,
                             .arena_bytes = m->arena_bytes,
                             .job = m->job}};
    snprintf(news.stage.stage, sizeof news.stage.stage, "%s", sl_role_name(s->stage->role));
    snprintf(news.stage.event, sizeof news.stage.event, "done");
    snprintf(news.stage.device, sizeof news.stage.device, "%s", s->stage->device);
    sl_table_to_client(d, j, &news);
}

/* Nobody will hear of these tickets otherwise. */
static void discard_all(sl_jobs *d, const sl_tickets *out)
{
    for (uint32_t i = 0; i < out->count; i++)
        if (out->at[i].way == SL_BY_SLOT)
            sl_table_discard_ticket(d, out->at[i].handover, &out->at[i].ticket);
}

static void on_done(sl_jobs *d, int number, const sl_msg_done *m)
{
    const seat *s = &d->seats[number];
    sl_role role = s->stage->role, crew = sl_crew_of(role);
    attempt *a;
    job *j = current(d, number, m->job, m->attempt, &a);
    bool speaks = j && leads(a, s, number);
    if (!speaks) discard_all(d, &m->out); /* of an attempt given up */
    if (!j || !sl_watch_chunks_done(d, j, a, number)) return;
    if (speaks && a->size) a->well = true;
    leave(d, j, a, number);
    d->got_further(d->self, number); /* it works, whatever it is for */
    tell_done(d, j, s, m);
    if (!speaks) return;
    advance(d, j, number, UINT32_MAX);
    for (int h = 0; h < sl_handover_count(); h++) {
        delivery *v = &j->deliveries[h];
        const sl_ticket *t = sl_tickets_find(&m->out, (uint32_t)h);
        if (SL_HANDOVER[h].from != role || !v->has) continue;
        v->spooling = !v->spooled && v->answered != m->attempt;
        v->spooling_ns = sl_now_ns();
        v->seat = t ? sl_table_owner(d, h, t->pool) : NO_SEAT;
        if (t) v->ticket = *t;
    }
    /* it has had every chunk: whatever became of the others of its crew meanwhile */
    if (sl_crew_is_last(crew) && sl_crew_ends_with(role)) {
        j->made[crew] = true;
        j->bytes = m->bytes;
    }
}

/* To be continued by another team, from the state that the leader has spooled. */
static void on_parked(sl_jobs *d, int number, const sl_msg_parked *m)
{
    attempt *a;
    job *j = current(d, number, m->job, m->attempt, &a);
    if (!j) return;
    if (leads(a, &d->seats[number], number)) a->well = true;
    leave(d, j, a, number);
    d->got_further(d->self, number);
}

/* The job is to be tried again: its neighbour was not there, or, of a rank, its device or another
 * rank gave out, which says nothing of the job. */
static bool is_worth_another(const seat *s, int32_t code)
{
    return code == SL_GONE || code == SL_BUSY ||
           (s->teamed && (code == SL_CUDA || code == SL_TIMEOUT));
}

static void on_failed(sl_jobs *d, int number, const sl_msg_failed *m)
{
    seat *s = &d->seats[number];
    attempt *a;
    job *j = current(d, number, m->job, m->attempt, &a);
    if (!j) return;
    leave(d, j, a, number);
    bool first = fall(d, j, a, s->stage->role);
    if (m->code == SL_CANCELLED) return;                   /* that was asked for */
    if (s->teamed && m->code == SL_CUDA) s->ready = false; /* its process ends */
    if (a->well) return; /* of a mate, and the job has what it was for */
    if (is_worth_another(s, m->code)) {
        if (first) try_again(d, j, number, m->message);
    } else {
        char why[SL_TEXT];
        snprintf(why, sizeof why, "%s: %.480s", s->name, m->message);
        sl_table_end(d, j, (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL, why);
    }
}

/* Put aside: what it brings is freed. */
static void drop(sl_jobs *d, const sl_msg *m)
{
    if (m->type == SL_MSG_DONE) discard_all(d, &m->done.out);
    if (m->type == SL_MSG_CHUNK) sl_table_discard_ticket(d, m->chunk.handover, &m->chunk.slot);
}

bool sl_jobs_on_message(sl_jobs *d, int number, const sl_msg *m)
{
    attempt *a;
    job *j;
    if (!sl_watch_hears(d, number, m)) {
        drop(d, m);
        return true;
    }
    switch (m->type) {
    case SL_MSG_TAKEN:
        if (led(d, number, m->taken.job, m->taken.attempt, &a)) a->taken = true;
        return true;
    case SL_MSG_PROGRESS: on_progress(d, number, m); return true;
    case SL_MSG_CHUNK: on_chunk(d, number, m); return true;
    case SL_MSG_SPOOLED: on_spooled(d, number, &m->spooled); return true;
    case SL_MSG_DONE: on_done(d, number, &m->done); return true;
    case SL_MSG_PARKED: on_parked(d, number, &m->parked); return true;
    case SL_MSG_FAILED: on_failed(d, number, &m->failed); return true;
    case SL_MSG_STEP:
        if ((j = sl_table_job(d, m->step.job))) sl_table_to_client(d, j, m);
        return true;
    case SL_MSG_SHARE:
        if ((j = sl_table_job(d, m->share.job))) sl_table_to_client(d, j, m);
        return true;
    case SL_MSG_SPAN:
        if ((j = sl_table_job(d, m->span.job))) sl_table_to_client(d, j, m);
        return true;
    default: return false;
    }
}

/* ---- deaths ---- */

/* The owners of pools free what the dead process was writing, and what it had sealed and
 * told nobody of. Its DONEs have all been read; those whose tickets are still here, in a
 * job that waits, are named first. */
static void tell_reap(sl_jobs *d, int dead, pid_t pid)
{
    sl_msg keep = {.type = SL_MSG_KEEP}, reap = {.type = SL_MSG_REAP, .reap = {.pid = pid}};
    for (int i = 0; i < d->count; i++)
        for (int h = 0; h < sl_handover_count(); h++) {
            const delivery *v = &d->jobs[i].deliveries[h];
            if (SL_HANDOVER[h].from != d->seats[dead].stage->role || v->seat == NO_SEAT) continue;
            keep.keep.ticket = v->ticket;
            sl_table_to_seat(d, v->seat, &keep);
        }
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (d->seats[i].stage && i != dead) sl_table_to_seat(d, i, &reap);
}

/* What the job had in the dead seat's pools, and what it was writing for the job. */
static void lose_deliveries(job *j, int dead)
{
    for (int h = 0; h < sl_handover_count(); h++) {
        delivery *v = &j->deliveries[h];
        attempt *from = &j->attempts[sl_crew_of(SL_HANDOVER[h].from)];
        bool making = from->number && from->seat[SL_HANDOVER[h].from] == dead;
        if (v->seat == dead) v->seat = NO_SEAT; /* its slots went with it */
        if (from->makes_for[h] == dead) from->makes_for[h] = NO_SEAT;
        if (!v->has || v->maker != dead || !(making || v->spooling)) continue;
        v->spooled = is_spooled(j, h);
        v->spooling = false; /* whatever was not on disk never will be */
    }
}

void sl_jobs_on_death(sl_jobs *d, int number, pid_t pid, const char *how)
{
    seat *s = &d->seats[number];
    sl_role crew = sl_crew_of(s->stage->role);
    for (int i = 0; i < d->count; i++) {
        job *j = &d->jobs[i];
        attempt *a = &j->attempts[crew];
        lose_deliveries(j, number);
        if (!sl_table_is_in(a, s, number)) continue;
        leave(d, j, a, number);
        bool first = fall(d, j, a, s->stage->role);
        if (first && !j->ending) try_again(d, j, number, *s->fault ? s->fault : how);
    }
    vacate(s);
    tell_reap(d, number, pid);
}

/* ---- what next ---- */

void sl_jobs_schedule(sl_jobs *d)
{
    for (int i = 0; i < d->count; i++) {
        job *j = &d->jobs[i];
        if ((d->draining || j->draining) && !j->started && !j->ending)
            sl_table_end(d, j, SL_CANCELLED, "not run: draining");
        /* the cancel came when the video was written */
        bool late = j->ending && j->code == SL_CANCELLED && sl_schedule_is_made(d, j);
        if ((!j->ending || late) && sl_schedule_is_complete(d, j)) {
            finish(d, j, SL_OK, j->undumped);
            i--;
        } else if (j->ending && !sl_schedule_is_busy(j)) {
            finish(d, j, j->code, j->message);
            i--;
        }
    }
    sl_schedule_teams(d);
    for (int i = 0; i < d->count; i++)
        if (!d->jobs[i].ending) sl_schedule_start(d, &d->jobs[i]);
}
