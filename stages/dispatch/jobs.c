/* jobs.c - the dispatcher's jobs: QUEUED -> TEXT + IMAGE -> DENOISE -> DECODE + MUX ->
 * DONE, or FAILED / CANCELLED.
 *
 * There is no stored "state" of a job that could be wrong after a death: what to do next
 * follows from which hand-overs exist (in a slot, in the spool) and what runs now. A
 * stage's death takes its slots and its work away; scheduling then simply sees what is
 * missing. */
#include "stages/dispatch/dispatch.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

static const sl_role PRODUCER[HAND_COUNT] = {SL_ROLE_TEXT, SL_ROLE_IMAGE, SL_ROLE_DENOISE};
static const sl_role RECEIVER[HAND_COUNT] = {SL_ROLE_DENOISE, SL_ROLE_DENOISE, SL_ROLE_DECODE};
static const char *const FILE_OF[HAND_COUNT] = {"text", "image", "denoise"};

/* ---- telling ---- */

static void send_to(dispatcher *d, const char *id, size_t size, const sl_msg *m)
{
    sl_err err = {0};
    sl_code rc = size ? sl_wire_send(d->router, id, size, m, &err) : SL_OK;
    if (rc && rc != SL_GONE) sl_log_err("client", &err);
}

void job_tell(dispatcher *d, const job *j, const sl_msg *m)
{
    send_to(d, j->client, j->client_size, m);
}

void tell_client(dispatcher *d, const sl_msg *m)
{
    send_to(d, d->client, d->client_size, m);
}

static void tell_span(dispatcher *d, const job *j, sl_role role, sl_span_kind kind, int64_t t0,
                      int64_t t1)
{
    sl_msg m = {.type = SL_MSG_SPAN,
                .span = {.job = j->id, .kind = kind, .t0_ns = t0, .t1_ns = t1}};
    snprintf(m.span.stage, sizeof m.span.stage, "%s", sl_role_name(role));
    job_tell(d, j, &m);
}

/* ---- questions ---- */

job *job_find(dispatcher *d, uint64_t id)
{
    for (int i = 0; i < d->job_count; i++)
        if (d->jobs[i].id == id) return &d->jobs[i];
    return NULL;
}

static bool idle(const peer *p)
{
    return p && p->state == PEER_READY && p->job == NO_JOB;
}

static bool any_running(const job *j)
{
    for (int r = 0; r < SL_ROLE_COUNT; r++)
        if (j->running[r]) return true;
    return false;
}

static bool have(const job *j, hand_kind k)
{
    return j->hands[k].ticketed || j->hands[k].spooled || j->hands[k].spooling;
}

static bool available(const job *j, hand_kind k)
{
    return j->hands[k].ticketed || j->hands[k].spooled;
}

/* Nobody will ask for this hand-over again, as things stand. */
static bool past(const job *j, hand_kind k)
{
    if (k == HAND_LATENTS) return j->running[SL_ROLE_DECODE] || j->decode_done;
    return j->running[SL_ROLE_DENOISE] || have(j, HAND_LATENTS) || past(j, HAND_LATENTS);
}

static bool wanted(const job *j, hand_kind k)
{
    if (k == HAND_IMAGE && !j->takes_image) return false;
    return !have(j, k) && !j->running[PRODUCER[k]] && (j->dump || !past(j, k));
}

static bool pair_exists(dispatcher *d)
{
    return peer_of(d, SL_ROLE_DECODE) && peer_of(d, SL_ROLE_MUX);
}

/* Some stage still works on the job, or writes its files. */
static bool busy(const job *j)
{
    for (int k = 0; k < HAND_COUNT; k++)
        if (j->hands[k].spooling) return true;
    return any_running(j);
}

/* Everything the job asked for is there. */
static bool complete(dispatcher *d, const job *j)
{
    if (busy(j)) return false;
    if (pair_exists(d) && !(j->decode_done && j->mux_done)) return false;
    for (int k = 0; k < HAND_COUNT; k++) {
        if (k == HAND_IMAGE && !j->takes_image) continue;
        if ((j->dump || (k == HAND_LATENTS && !pair_exists(d))) && !j->hands[k].spooled)
            return false;
    }
    return true;
}

static int credits_used(const dispatcher *d, hand_kind k)
{
    int n = 0;
    for (int i = 0; i < d->job_count; i++) n += d->jobs[i].hands[k].credit;
    return n;
}

/* The oldest job never waits for a credit: younger ones may hold them all, and wait for
 * it. Without a slot its hand-over goes by the spool. */
static bool has_credit(dispatcher *d, const job *j, hand_kind k)
{
    peer *r = peer_of(d, RECEIVER[k]);
    return !r || j == d->jobs || credits_used(d, k) < r->conf->slots;
}

/* Is this a slot of a pool that the peer has now, not before it was restarted? */
static bool receives(const peer *p, const sl_ticket *t)
{
    for (int i = 0; p && i < p->pool_count; i++)
        if (p->pools[i].handle.pool == t->pool) return true;
    return false;
}

/* ---- beginnings and ends ---- */

/* What lies in the folder under its final name is whole, whoever wrote it. */
static bool is_spooled(const job *j, hand_kind k)
{
    char path[SL_PATH + 32];
    snprintf(path, sizeof path, "%s/%s.safetensors", j->dir, FILE_OF[k]);
    return access(path, R_OK) == 0;
}

/* What earlier processes finished lies in the folder; what they did not finish are
 * temporaries, and go. */
static void look_into_spool(job *j)
{
    char path[SL_PATH + 288];
    for (int k = 0; k < HAND_COUNT; k++) j->hands[k].spooled = is_spooled(j, (hand_kind)k);
    DIR *dir = opendir(j->dir);
    struct dirent *e;
    while (dir && (e = readdir(dir)))
        if (strstr(e->d_name, ".tmp")) {
            snprintf(path, sizeof path, "%s/%s", j->dir, e->d_name);
            unlink(path);
        }
    if (dir) closedir(dir);
}

static void finish(dispatcher *d, job *j, sl_code code, const char *message)
{
    sl_msg m = {.type = SL_MSG_FINISHED,
                .finished = {.tag = j->id, .job = j->id, .code = (int32_t)code, .bytes = j->bytes}};
    snprintf(m.finished.message, sizeof m.finished.message, "%s", message);
    for (int k = 0; k < HAND_COUNT; k++)
        if (j->hands[k].ticketed) {
            sl_msg discard = {.type = SL_MSG_DISCARD, .discard = {.ticket = j->hands[k].ticket}};
            peer_send(d, peer_of(d, RECEIVER[k]), &discard);
        }
    job_tell(d, j, &m);
    sl_log(SL_LOG_DEBUG, "job %llu: %s %s", (unsigned long long)j->id, sl_code_name(code), message);
    int at = (int)(j - d->jobs);
    memmove(j, j + 1, (size_t)(--d->job_count - at) * sizeof *j);
}

/* The first stage that the job needs and this deployment leaves out; NULL: none. */
static const char *missing_stage(dispatcher *d, const job *j)
{
    for (int k = 0; k < HAND_COUNT; k++)
        if (wanted(j, (hand_kind)k) && !peer_of(d, PRODUCER[k])) return sl_role_name(PRODUCER[k]);
    return NULL;
}

static void refuse(dispatcher *d, uint64_t id, const char *client, size_t client_size, sl_code code,
                   const char *message)
{
    sl_msg m = {.type = SL_MSG_FINISHED, .finished = {.tag = id, .code = (int32_t)code}};
    snprintf(m.finished.message, sizeof m.finished.message, "%s", message);
    send_to(d, client, client_size, &m);
}

void job_submit(dispatcher *d, const sl_msg_submit *m, const char *client, size_t client_size)
{
    char path[SL_PATH];
    sl_job spec = {0};
    sl_err err = {0};
    sl_msg accepted = {.type = SL_MSG_ACCEPTED, .accepted = {.tag = m->tag, .job = m->tag}};
    job *j = job_find(d, m->tag);
    if (!j) {
        for (int i = 0; i < d->peer_count; i++)
            if (d->peers[i].state == PEER_BROKEN) {
                refuse(d, m->tag, client, client_size,
                       d->peers[i].last_code ? d->peers[i].last_code : SL_SYS,
                       d->peers[i].last_error);
                return;
            }
        if (m->tag == NO_JOB || d->draining || d->job_count == MAX_JOBS ||
            d->job_count >= d->conf.limits.jobs) {
            char why[160];
            snprintf(why, sizeof why, "job refused: %s (%d jobs held, limits.jobs is %d)",
                     d->draining ? "draining" : "too many jobs", d->job_count, d->conf.limits.jobs);
            refuse(d, m->tag, client, client_size, SL_BUSY, why);
            return;
        }
        if (sl_path_join(path, m->dir, "job.json", &err) || sl_job_read(&spec, path, &err) ||
            sl_job_check(&spec, &err)) {
            refuse(d, m->tag, client, client_size, err.code, err.msg);
            sl_job_free(&spec);
            return;
        }
        j = &d->jobs[d->job_count];
        memset(j, 0, sizeof *j);
        j->id = m->tag;
        snprintf(j->dir, sizeof j->dir, "%s", m->dir);
        j->takes_image = d->model.family.picture;
        j->dump = spec.dump;
        memcpy(j->output, spec.output, sizeof j->output);
        sl_job_free(&spec);
        look_into_spool(j);
        if (missing_stage(d, j)) {
            char why[160];
            snprintf(why, sizeof why,
                     "job refused: the configuration has no stage %s, and nothing in the spool "
                     "stands for it",
                     missing_stage(d, j));
            refuse(d, m->tag, client, client_size, SL_ARG, why);
            return;
        }
        d->job_count++;
    }
    memcpy(j->client, client, client_size);
    j->client_size = client_size;
    job_tell(d, j, &accepted);
}

/* Tell a stage that works on the job to stop; it answers FAILED(CANCELLED). */
static void stop_stage(dispatcher *d, const job *j, sl_role role)
{
    sl_msg m = {.type = SL_MSG_CANCEL, .cancel = {.job = j->id, .attempt = j->running[role]}};
    if (j->running[role]) peer_send(d, peer_of(d, role), &m);
}

static void end_job(dispatcher *d, job *j, sl_code code, const char *why)
{
    if (j->ending) return;
    j->ending = true;
    j->code = code;
    snprintf(j->message, sizeof j->message, "%s", why);
    for (int r = 0; r < SL_ROLE_COUNT; r++) stop_stage(d, j, (sl_role)r);
}

void job_cancel(dispatcher *d, uint64_t id, sl_code code, const char *why)
{
    job *j = job_find(d, id);
    if (j) end_job(d, j, code, why);
}

void jobs_fail_all(dispatcher *d, sl_code code, const char *why)
{
    for (int i = 0; i < d->job_count; i++) end_job(d, &d->jobs[i], code, why);
}

/* ---- what stages say ---- */

/* The job that this stage works on, if the message is about that and not about an attempt
 * given up. */
static job *current(dispatcher *d, const peer *p, uint64_t id, uint32_t attempt)
{
    job *j = job_find(d, id);
    return j && j->running[p->role] == attempt && attempt ? j : NULL;
}

/* The stage is free again, if it spoke of what it was last given. */
static void release(peer *p, job *j, uint32_t attempt)
{
    if (j) j->running[p->role] = 0;
    if (p->attempt != attempt) return;
    p->job = NO_JOB;
    p->attempt = 0;
}

static void advance(peer *p, job *j, uint64_t rank)
{
    j->progress = rank;
    if (rank > j->best) {
        j->best = rank;
        j->deaths = 0;
        p->failures = 0;
    }
}

void jobs_on_taken(dispatcher *d, peer *p, const sl_msg_taken *m)
{
    job *j = current(d, p, m->job, m->attempt);
    for (int k = 0; j && k < HAND_COUNT; k++)
        if (RECEIVER[k] == p->role) j->hands[k].credit = false;
}

void jobs_on_progress(dispatcher *d, peer *p, const sl_msg_progress *m)
{
    job *j = current(d, p, m->job, m->attempt);
    sl_msg out = {.type = SL_MSG_PROGRESS, .progress = *m};
    if (!j) return;
    advance(p, j, (uint64_t)p->role << 32 | m->done);
    job_tell(d, j, &out);
}

void jobs_on_chunk(dispatcher *d, peer *p, const sl_msg_chunk *m)
{
    job *j = current(d, p, m->job, m->attempt);
    sl_msg out = {.type = SL_MSG_CHUNK, .chunk = *m};
    sl_msg discard = {.type = SL_MSG_DISCARD, .discard = {.ticket = m->slot}};
    bool wanted_there = j && j->running[SL_ROLE_MUX] == m->attempt;
    peer_send(d, peer_of(d, SL_ROLE_MUX), wanted_there ? &out : &discard);
}

void jobs_on_spooled(dispatcher *d, peer *p, const sl_msg_spooled *m)
{
    job *j = job_find(d, m->job);
    for (int k = 0; j && k < HAND_COUNT; k++)
        if (PRODUCER[k] == p->role && !strcmp(m->name, FILE_OF[k])) {
            j->hands[k].spooled |= m->code == SL_OK;
            j->hands[k].spooling = false;
            j->hands[k].answered = m->attempt;
            if (m->code && j->dump) { /* the file itself was asked for */
                char why[SL_TEXT];
                snprintf(why, sizeof why, "%s: %.480s", sl_role_name(p->role), m->message);
                end_job(d, j, SL_SYS, why);
            } else if (m->code)
                sl_log(SL_LOG_WARN,
                       "job %llu goes on, but would not survive a death of %s or the next stage: "
                       "%.300s",
                       (unsigned long long)m->job, sl_role_name(p->role), m->message);
        }
}

void jobs_on_done(dispatcher *d, peer *p, const sl_msg_done *m)
{
    job *j = current(d, p, m->job, m->attempt);
    sl_msg stage = {.type = SL_MSG_STAGE,
                    .stage = {.pid = p->pid,
                              .peak_bytes = m->peak_bytes,
                              .arena_bytes = m->arena_bytes,
                              .job = m->job}};
    release(p, j, m->attempt);
    if (!j) { /* of an attempt given up: the receiver will not hear of it otherwise */
        sl_msg discard = {.type = SL_MSG_DISCARD, .discard = {.ticket = m->out.at[0].ticket}};
        for (int k = 0; m->out.count && k < HAND_COUNT; k++)
            if (PRODUCER[k] == p->role) peer_send(d, peer_of(d, RECEIVER[k]), &discard);
        return;
    }
    p->failures = 0;
    snprintf(stage.stage.stage, sizeof stage.stage.stage, "%s", sl_role_name(p->role));
    snprintf(stage.stage.event, sizeof stage.stage.event, "done");
    snprintf(stage.stage.device, sizeof stage.stage.device, "%s", p->conf->device);
    job_tell(d, j, &stage);
    advance(p, j, (uint64_t)p->role << 32 | UINT32_MAX);
    for (int k = 0; k < HAND_COUNT; k++)
        if (PRODUCER[k] == p->role) {
            hand *h = &j->hands[k];
            h->spooling = !h->spooled && h->answered != m->attempt;
            h->ticketed =
                m->out.count > 0 && receives(peer_of(d, RECEIVER[k]), &m->out.at[0].ticket);
            h->ticket = m->out.at[0].ticket;
            if (!h->ticketed) h->credit = false;
        }
    if (p->role == SL_ROLE_DECODE && m->attempt == j->pair) j->decode_done = true;
    /* it has had every frame: whatever became of decode meanwhile */
    if (p->role == SL_ROLE_MUX) {
        j->decode_done = j->mux_done = true;
        j->bytes = m->bytes;
    }
}

/* Decode and mux work on one attempt together: when one of them stops, so does the other,
 * and both begin again. */
static void break_pair(dispatcher *d, job *j, sl_role role)
{
    if ((role != SL_ROLE_DECODE && role != SL_ROLE_MUX) || j->mux_done) return;
    j->pair = 0;
    j->decode_done = false;
    stop_stage(d, j, role == SL_ROLE_DECODE ? SL_ROLE_MUX : SL_ROLE_DECODE);
}

/* A stage gave the job back or died with it: try again, but not for ever. */
static void try_again(dispatcher *d, job *j, sl_role role, const char *how)
{
    char why[SL_TEXT];
    if (++j->deaths <= d->conf.supervise.restarts) return;
    snprintf(why, sizeof why,
             "%s ended %d times on this job without getting further (last: %.300s): giving up",
             sl_role_name(role), j->deaths, how);
    end_job(d, j, SL_SYS, why);
}

void jobs_on_failed(dispatcher *d, peer *p, const sl_msg_failed *m)
{
    if (m->job == NO_JOB) { /* it could not even start: kept for when it ends */
        snprintf(p->last_error, sizeof p->last_error, "%.500s", m->message);
        p->last_code = (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL;
        return;
    }
    job *j = current(d, p, m->job, m->attempt);
    release(p, j, m->attempt);
    if (!j) return;
    for (int k = 0; k < HAND_COUNT; k++)
        if (PRODUCER[k] == p->role || RECEIVER[k] == p->role)
            j->hands[k].credit = j->hands[k].ticketed;
    break_pair(d, j, p->role);
    if (m->code == SL_CANCELLED) return; /* we asked for it */
    if (m->code == SL_GONE || m->code == SL_BUSY) try_again(d, j, p->role, m->message);
    else {
        char why[SL_TEXT];
        snprintf(why, sizeof why, "%s: %.480s", sl_role_name(p->role), m->message);
        end_job(d, j, (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL, why);
    }
}

/* The owners of pools free what the dead process was writing, and what it had sealed and
 * told nobody of. Its DONEs have all been read; those whose tickets are still here, in a
 * job that waits, are named first. */
static void tell_reap(dispatcher *d, const peer *dead, pid_t pid)
{
    sl_msg keep = {.type = SL_MSG_KEEP}, reap = {.type = SL_MSG_REAP, .reap = {.pid = pid}};
    for (int i = 0; i < d->job_count; i++)
        for (int k = 0; k < HAND_COUNT; k++)
            if (PRODUCER[k] == dead->role && d->jobs[i].hands[k].ticketed) {
                keep.keep.ticket = d->jobs[i].hands[k].ticket;
                peer_send(d, peer_of(d, RECEIVER[k]), &keep);
            }
    for (int i = 0; i < d->peer_count; i++)
        if (&d->peers[i] != dead) peer_send(d, &d->peers[i], &reap);
}

void jobs_on_death(dispatcher *d, peer *p, pid_t pid, const char *how)
{
    for (int i = 0; i < d->job_count; i++) {
        job *j = &d->jobs[i];
        for (int k = 0; k < HAND_COUNT; k++) {
            hand *h = &j->hands[k];
            /* its slots went with it */
            if (RECEIVER[k] == p->role) h->ticketed = h->credit = false;
            if (PRODUCER[k] == p->role) {
                if (j->running[p->role] || h->spooling) h->spooled = is_spooled(j, (hand_kind)k);
                h->spooling = false; /* whatever was not on disk never will be */
                if (j->running[p->role]) h->credit = h->ticketed;
            }
        }
        if (j->running[p->role]) {
            j->running[p->role] = 0;
            break_pair(d, j, p->role);
            if (!j->ending && !j->mux_done) try_again(d, j, p->role, how);
        }
    }
    p->job = NO_JOB;
    p->attempt = 0;
    tell_reap(d, p, pid);
}

/* ---- scheduling ---- */

static void begin(dispatcher *d, job *j, peer *p, uint32_t attempt, hand *first, hand *second)
{
    sl_msg m = {.type = SL_MSG_JOB, .job = {.job = j->id, .attempt = attempt}};
    memcpy(m.job.dir, j->dir, sizeof m.job.dir);
    for (int i = 0; i < 2; i++) {
        hand *h = i ? second : first;
        if (!h) continue;
        sl_tickets_add(&m.job.in, (uint32_t)(h - j->hands), h->ticketed ? &h->ticket : NULL);
        h->ticketed = false; /* the receiver has it now */
    }
    j->running[p->role] = attempt;
    if (p->role >= SL_ROLE_DENOISE || j == d->jobs) j->started = true;
    p->job = j->id;
    p->attempt = attempt;
    int64_t now = sl_now_ns();
    if (j->runnable_ns[p->role])
        tell_span(d, j, p->role, SL_SPAN_QUEUE, j->runnable_ns[p->role], now);
    j->runnable_ns[p->role] = 0;
    peer_send(d, p, &m);
}

/* The job could use this stage now: remember since when; true if the stage is free. */
static bool could_use(dispatcher *d, job *j, sl_role role)
{
    if (!j->runnable_ns[role]) j->runnable_ns[role] = sl_now_ns();
    return idle(peer_of(d, role));
}

static void schedule_job(dispatcher *d, job *j)
{
    hand *h = j->hands;
    for (int k = HAND_TEXT; k <= HAND_IMAGE; k++)
        if (wanted(j, (hand_kind)k) && could_use(d, j, PRODUCER[k]) &&
            has_credit(d, j, (hand_kind)k)) {
            h[k].credit = true;
            begin(d, j, peer_of(d, PRODUCER[k]), ++j->attempt, NULL, NULL);
        }
    if (wanted(j, HAND_LATENTS) && available(j, HAND_TEXT) &&
        (!j->takes_image || available(j, HAND_IMAGE)) && could_use(d, j, SL_ROLE_DENOISE) &&
        has_credit(d, j, HAND_LATENTS)) {
        h[HAND_LATENTS].credit = true;
        begin(d, j, peer_of(d, SL_ROLE_DENOISE), ++j->attempt, &h[HAND_TEXT], &h[HAND_IMAGE]);
    }
    if (pair_exists(d) && available(j, HAND_LATENTS) && !j->decode_done && !j->mux_done &&
        !j->running[SL_ROLE_DECODE] && !j->running[SL_ROLE_MUX] &&
        could_use(d, j, SL_ROLE_DECODE) && idle(peer_of(d, SL_ROLE_MUX)) &&
        peer_of(d, SL_ROLE_MUX)->pool_count) {
        uint32_t attempt = ++j->attempt;
        h[HAND_LATENTS].credit = false;
        j->pair = attempt;
        /* first the receiver: it knows the job before a chunk comes */
        begin(d, j, peer_of(d, SL_ROLE_MUX), attempt, NULL, NULL);
        begin(d, j, peer_of(d, SL_ROLE_DECODE), attempt, &h[HAND_LATENTS], NULL);
    }
}

void jobs_schedule(dispatcher *d)
{
    for (int i = 0; i < d->job_count; i++) {
        job *j = &d->jobs[i];
        if (d->draining && !j->started && !j->ending)
            end_job(d, j, SL_CANCELLED, "not run: draining");
        /* the cancel came when the video was written */
        bool late = j->ending && j->code == SL_CANCELLED && j->mux_done;
        if ((!j->ending || late) && complete(d, j)) {
            finish(d, j, SL_OK, "");
            i--;
        } else if (j->ending && !busy(j)) {
            finish(d, j, j->code, j->message);
            i--;
        } else if (!j->ending) schedule_job(d, j);
    }
}
