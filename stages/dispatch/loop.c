/* loop.c - one event after the other, to whom it concerns.
 *
 *   SEAT     HELLO POOL READY HEARTBEAT, of no job: SPAN FAILED   --> seats
 *            ASK GIVE                                             --> turns
 *            RANK                                                 --> muster, jobs
 *            all else                                             --> jobs
 *   CLIENT   HELLO SUBMIT CANCEL DRAIN                            --> clients, jobs
 *   ENDED    --> seats collect it, jobs, turns and muster lose what it had, in this order
 *   SIGNAL   --> drain, or the parent is dying
 *   TICK     --> seats (start, stall), turns (lost holders), muster (who loads), jobs (who is
 *                waited for, what next), and the end
 *
 * Every handler returns before the next event is taken; nothing is read from the socket in
 * between. Clients have numbers here, since the socket's identities are no business of jobs. */
#include "stages/dispatch/loop.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/endpoint.h"
#include "common/log.h"
#include "common/process.h"

#define WATCH_NS 500000000ll /* between two looks for silence */
#define GAP_NS 1000000000ll /* between two ticks: this process was stopped, or the machine asleep */

/* ---- clients ---- */

static sl_client *client_of(sl_dispatch *d, const sl_bus_peer *peer)
{
    for (int i = 0; i < SL_CLIENTS; i++)
        if (d->clients[i].number && sl_bus_same(&d->clients[i].peer, peer)) return &d->clients[i];
    return NULL;
}

/* A message for one client; who cannot be reached any more is forgotten. */
static void send_client(sl_dispatch *d, sl_client *c, const sl_msg *m)
{
    if (sl_bus_send_client(d->bus, &c->peer, m) == SL_GONE) *c = (sl_client){0};
}

/* The client that speaks for the first time; NULL: there are too many. */
static sl_client *new_client(sl_dispatch *d, const sl_bus_peer *peer)
{
    sl_msg probe = {.type = SL_MSG_HEARTBEAT};
    sl_client *place = NULL;
    for (int pass = 0; pass < 2 && !place; pass++)
        for (int i = 0; i < SL_CLIENTS && !place; i++) {
            if (pass) send_client(d, &d->clients[i], &probe); /* who has left makes room */
            if (!d->clients[i].number) place = &d->clients[i];
        }
    if (place) *place = (sl_client){.number = ++d->last_client, .peer = *peer};
    else sl_log(SL_LOG_WARN, "a client is ignored: there are %d", SL_CLIENTS);
    return place;
}

/* News of processes, for everybody who said HELLO. */
static void tell_all(void *self, const sl_msg *m)
{
    sl_dispatch *d = self;
    for (int i = 0; i < SL_CLIENTS; i++)
        if (d->clients[i].pid) send_client(d, &d->clients[i], m);
}

static void tell_client(void *self, uint64_t client, const sl_msg *m)
{
    sl_dispatch *d = self;
    for (int i = 0; i < SL_CLIENTS; i++)
        if (client && d->clients[i].number == client) send_client(d, &d->clients[i], m);
}

typedef struct {
    sl_dispatch *d;
    sl_client *client;
} listener;

static void tell_one(void *self, const sl_msg *m)
{
    listener *l = self;
    if (l->client->number) send_client(l->d, l->client, m);
}

static void tell_seat(void *self, int seat, const sl_msg *m)
{
    sl_dispatch *d = self;
    if (m->type == SL_MSG_LOAD && m->load.team.size > 1) sl_jobs_on_load(d->jobs, seat);
    sl_bus_send(d->bus, seat, m);
}

static void got_further(void *self, int seat)
{
    sl_dispatch *d = self;
    sl_seats_thrive(&d->seats, seat);
}

static uint32_t new_key(void *self)
{
    sl_dispatch *d = self;
    return sl_muster_key(&d->muster);
}

/* Who waits for the device is not idle: the holder is watched. */
static int64_t worked_ns(void *self, int seat)
{
    sl_dispatch *d = self;
    return sl_turns_waits(&d->turns, seat) ? sl_now_ns() : sl_seats_worked_ns(&d->seats, seat);
}

static void kill_seat(void *self, int seat, const char *why, bool for_good)
{
    sl_dispatch *d = self;
    if (for_good) sl_seats_kill_for_good(&d->seats, seat, SL_FORMAT, why);
    else sl_seats_kill(&d->seats, seat, why);
}

/* ---- opening ---- */

sl_code sl_dispatch_open(sl_dispatch *d, sl_err *err)
{
    sl_jobs_out out = {d,       tell_seat, tell_client, got_further,
                       new_key, worked_ns, kill_seat,   &d->once};
    sl_code rc;
    sl_conf_defaults(&d->conf);
    if ((rc = sl_conf_read_file(&d->conf, d->conf_path, err))) return rc;
    sl_conf_use(&d->conf);
    sl_log_open("dispatch", d->conf.run.log);
    sl_log_use_format(d->conf.run.log_format);
    if ((rc = sl_model_open_files(&d->model, d->model_dir, &d->conf.model.files, err))) return rc;
    if ((rc = sl_endpoint_open(d->endpoint, &d->endpoint_fd, d->run_dir, err)) ||
        (rc = sl_jobs_open(&d->jobs, &d->conf, &d->model, &out, err)) ||
        (rc = sl_bus_open(&d->bus, d->endpoint, err)))
        return rc;
    d->seats = (sl_seats){.bus = d->bus,
                          .conf = &d->conf,
                          .conf_path = d->conf_path,
                          .model_dir = d->model.dir,
                          .bin_dir = d->bin_dir,
                          .endpoint = d->endpoint,
                          .once = &d->once,
                          .tell = tell_all,
                          .self = d};
    sl_seats_open(&d->seats, &d->model);
    if (*d->wire_path) {
        const char *names[SL_CONF_SEATS] = {0};
        if ((rc = sl_tap_open(&d->tap, d->wire_path, err))) return rc;
        for (int i = 0; i < d->seats.count; i++) names[i] = d->seats.at[i].name;
        sl_bus_tap(d->bus, d->tap, names);
    }
    const int attached = d->attached ? sl_role_by_name(d->attached) : -1;
    if (d->attached &&
        (attached < 0 || !sl_seats_attach(&d->seats, (sl_role)attached, d->wrapper, d->parent)))
        return sl_fail(err, SL_ARG, "--attach %s: the configuration has no such stage",
                       d->attached);
    sl_turns_open(&d->turns, d->bus, &d->conf, &d->once);
    sl_muster_open(&d->muster, d, tell_seat);
    for (int i = 0; i < d->seats.count; i++) {
        const sl_seats_seat *s = &d->seats.at[i];
        sl_role role = s->conf->role;
        sl_turns_add(&d->turns, i, s->name, s->conf->device,
                     sl_conf_teamed(&d->conf, role) ? (int)role : -1);
        sl_muster_add(&d->muster, i, &d->conf, s->conf);
        sl_jobs_add_seat(d->jobs, i, s->conf, s->name);
    }
    return SL_OK;
}

void sl_dispatch_stop(sl_dispatch *d)
{
    if (d->seats.count) sl_seats_close(&d->seats);
    sl_once_tell(&d->once);
    sl_bus_close(&d->bus);
    sl_tap_close(&d->tap);
}

/* ---- events ---- */

/* A seat is given up. Others of its role may go on; without any, no job can. */
static void on_broken(sl_dispatch *d, int seat)
{
    const sl_seats_seat *s = &d->seats.at[seat], *reason = sl_seats_broken(&d->seats);
    sl_muster_forget(&d->muster, seat, true);
    if (reason) {
        sl_msg news = {.type = SL_MSG_STAGE, .stage = {.instance = (uint32_t)s->conf->instance}};
        snprintf(news.stage.stage, sizeof news.stage.stage, "%s", sl_role_name(s->conf->role));
        snprintf(news.stage.event, sizeof news.stage.event, "broken");
        snprintf(news.stage.device, sizeof news.stage.device, "%s", s->conf->device);
        tell_all(d, &news);
        sl_jobs_fail_all(d->jobs, s->last_code, s->last_error);
    } else sl_log(SL_LOG_WARN, "%s; others go on without it", s->last_error);
}

static void on_ended(sl_dispatch *d, int seat)
{
    sl_seats_end end;
    sl_seats_on_ended(&d->seats, seat, d->draining, &end);
    sl_jobs_on_death(d->jobs, seat, end.pid, end.how);
    sl_turns_forget(&d->turns, seat);
    sl_muster_forget(&d->muster, seat, false);
    if (end.broken) on_broken(d, seat);
}

/* The stage's process has ended, the wrapper from which it came has not. */
static void on_lost_speaker(sl_dispatch *d, int seat)
{
    const pid_t pid = d->seats.at[seat].speaker;
    sl_seats_forget_speaker(&d->seats, seat);
    sl_jobs_on_death(d->jobs, seat, pid, "its process ended, its wrapper did not");
    sl_turns_forget(&d->turns, seat);
    sl_muster_forget(&d->muster, seat, false);
}

static void on_rank(sl_dispatch *d, int seat, const sl_msg_rank *m)
{
    if (sl_muster_on_rank(&d->muster, seat, m)) sl_jobs_on_rank(d->jobs, seat);
    else
        sl_once_warn(&d->once, "RANK %d sent by %s, which is no such rank: ignored", m->rank,
                     d->seats.at[seat].name);
}

static void on_seat(sl_dispatch *d, int seat, const sl_msg *m)
{
    sl_seats_on_beat(&d->seats, seat, m->type != SL_MSG_HEARTBEAT);
    switch (m->type) {
    case SL_MSG_HEARTBEAT: return;
    case SL_MSG_POOL:
        if (sl_seats_on_pool(&d->seats, seat, &m->pool)) sl_jobs_on_pool(d->jobs, seat, &m->pool);
        return;
    case SL_MSG_RANK: on_rank(d, seat, &m->rank); return;
    case SL_MSG_READY:
        sl_seats_on_ready(&d->seats, seat, &m->ready);
        sl_jobs_on_ready(d->jobs, seat, d->seats.at[seat].speaker);
        return;
    case SL_MSG_ASK: sl_turns_on_ask(&d->turns, seat, &m->ask); return;
    case SL_MSG_GIVE: sl_turns_on_give(&d->turns, seat, &m->give); return;
    case SL_MSG_SPAN:
        if (!m->span.job) sl_seats_on_span(&d->seats, seat, &m->span);
        else sl_jobs_on_message(d->jobs, seat, m);
        return;
    case SL_MSG_FAILED:
        if (!m->failed.job) sl_seats_on_failed(&d->seats, seat, &m->failed);
        else sl_jobs_on_message(d->jobs, seat, m);
        return;
    default:
        if (!sl_jobs_on_message(d->jobs, seat, m))
            sl_once_warn(&d->once, "%s sent by %s: ignored", sl_wire_name(m->type),
                         d->seats.at[seat].name);
    }
}

static void drain(sl_dispatch *d, const char *why)
{
    if (d->draining) return;
    sl_log(SL_LOG_DEBUG, "draining: %s", why);
    d->draining = true;
    d->drain_by_ns = sl_now_ns() + d->conf.supervise.drain_s * 1000000000ll;
    sl_jobs_drain(d->jobs, 0);
}

static void on_submit(sl_dispatch *d, const sl_client *c, const sl_msg_submit *m)
{
    const sl_seats_seat *broken = sl_seats_broken(&d->seats);
    sl_err closed = {0};
    if (broken)
        sl_fail(&closed, broken->last_code ? broken->last_code : SL_SYS, "%s", broken->last_error);
    sl_jobs_submit(d->jobs, m, c->number, broken ? &closed : NULL);
}

static void on_client(sl_dispatch *d, const sl_bus_peer *from, const sl_msg *m)
{
    sl_client *c = client_of(d, from);
    if (m->type == SL_MSG_HELLO && strcmp(m->hello.role, "client")) {
        int seat = sl_seats_lost_speaker(&d->seats, m->hello.pid);
        if (seat >= 0) on_lost_speaker(d, seat);
        seat = sl_seats_on_hello(&d->seats, &m->hello, from);
        if (seat >= 0) sl_muster_on_hello(&d->muster, seat);
        return;
    }
    if (!c && !(c = new_client(d, from))) return;
    switch (m->type) {
    case SL_MSG_HELLO:
        c->pid = m->hello.pid;
        sl_seats_tell_all(&d->seats, tell_one, &(listener){d, c});
        break;
    case SL_MSG_SUBMIT: on_submit(d, c, &m->submit); break;
    case SL_MSG_CANCEL: sl_jobs_cancel(d->jobs, m->cancel.job, c->number); break;
    case SL_MSG_DRAIN:
        if (c->pid == d->parent) drain(d, "the client asked");
        else sl_jobs_drain(d->jobs, c->number);
        break;
    default:
        sl_once_warn(&d->once, "%s sent by somebody who is no stage: ignored",
                     sl_wire_name(m->type));
    }
}

static void log_event(const sl_dispatch *d, const sl_bus_event *e)
{
    char text[512];
    if ((e->kind != SL_BUS_SEAT && e->kind != SL_BUS_CLIENT) || !sl_log_shows(SL_LOG_DEBUG) ||
        e->msg.type == SL_MSG_HEARTBEAT || e->msg.type == SL_MSG_SPAN)
        return;
    sl_log_about(sl_jobs_name(d->jobs, sl_wire_job(&e->msg)), SL_LOG_DEBUG, "<- %s %s",
                 e->seat >= 0 ? d->seats.at[e->seat].name : "client",
                 sl_wire_text_of(&e->msg, text, sizeof text));
}

/* Ranks whose team waits for them: while one may still write to the others' memory, none of them
 * takes another job. */
static void look_at_ranks(sl_dispatch *d)
{
    sl_muster_tick(&d->muster, sl_now_ns());
    for (int i = 0; i < d->seats.count; i++)
        if (sl_jobs_waits_for(d->jobs, i))
            sl_seats_kill_silent(&d->seats, i, "gave no sign of life while its team waits");
}

/* Ctrl-Z stops who started this process; its stages stop and go on with it. true: they are stopped.
 * Time in which they, or this process, did not run counts for no supervision. */
static bool is_paused(sl_dispatch *d)
{
    const int64_t now = sl_now_ns(), passed = d->ticked_ns ? now - d->ticked_ns : 0;
    sl_process parent;
    if (d->ticked_ns && passed < SL_BUS_TICK_MS * 500000ll) return d->paused; /* a busy moment */
    const bool stopped = sl_process_look(&parent, d->parent) && parent.state == 'T';
    d->ticked_ns = now;
    if (stopped != d->paused) {
        sl_log(SL_LOG_DEBUG, stopped ? "paused: the process that started this one is stopped"
                                     : "the process that started this one goes on");
        sl_seats_pause(&d->seats, stopped);
        d->paused = stopped;
    }
    if (stopped || passed > GAP_NS) {
        sl_seats_skip(&d->seats, passed);
        sl_turns_skip(&d->turns, passed);
        sl_jobs_skip(d->jobs, passed);
        d->drain_by_ns += passed;
    }
    return stopped;
}

/* What is no message: of a seat's process, of another version of the protocol, of anybody. */
static void on_nonsense(sl_dispatch *d, const sl_bus_event *e)
{
    if (e->seat >= 0) sl_seats_on_nonsense(&d->seats, e->seat, &e->err);
    else if (e->msg.type == SL_MSG_HELLO)
        sl_seats_on_foreign_hello(&d->seats, &e->msg.hello, &e->err);
    else sl_once_warn(&d->once, "of somebody who is no stage: %s", e->err.msg);
}

/* true: go on. */
static bool on_tick(sl_dispatch *d)
{
    if (getppid() == d->parent && is_paused(d)) return true;
    sl_seats_look(&d->seats);
    int broken = sl_seats_tick(&d->seats, d->draining && !sl_jobs_count(d->jobs)),
        lost = sl_turns_tick(&d->turns);
    if (broken >= 0) on_broken(d, broken);
    if (lost >= 0) {
        char why[96];
        snprintf(why, sizeof why, "lost its connection while it held the turn of %s",
                 d->seats.at[lost].conf->device);
        sl_seats_kill(&d->seats, lost, why);
    }
    look_at_ranks(d);
    const int gone = sl_seats_lost_speaker(&d->seats, 0);
    if (gone >= 0) on_lost_speaker(d, gone);
    /* whose stage a person holds at a terminal waits for that person */
    if (d->seats.attached < 0 && sl_now_ns() - d->watched_ns > WATCH_NS) {
        d->watched_ns = sl_now_ns();
        sl_jobs_watch(d->jobs, d->watched_ns);
    }
    d->orphan |= getppid() != d->parent;
    if (d->orphan) { /* whoever started us is dead: nobody wants the results */
        sl_log(SL_LOG_WARN, "the process that started this one is gone: stopping");
        return false;
    }
    sl_jobs_schedule(d->jobs);
    if (d->draining && !sl_jobs_count(d->jobs)) return false;
    if (d->draining && sl_now_ns() > d->drain_by_ns) {
        sl_jobs_fail_all(d->jobs, SL_TIMEOUT, "not finished within supervise.drain_s");
        sl_jobs_schedule(d->jobs);
        return false;
    }
    return true;
}

void sl_dispatch_loop(sl_dispatch *d)
{
    static sl_bus_event e;
    sl_err err = {0};
    bool go_on = true;
    while (go_on && !sl_bus_next(d->bus, &e, &err)) {
        log_event(d, &e);
        switch (e.kind) {
        case SL_BUS_SEAT: on_seat(d, e.seat, &e.msg); break;
        case SL_BUS_CLIENT: on_client(d, &e.from, &e.msg); break;
        case SL_BUS_NONSENSE: on_nonsense(d, &e); break;
        case SL_BUS_ENDED: on_ended(d, e.seat); break;
        case SL_BUS_SIGNAL:
            /* PR_SET_PDEATHSIG: the parent may take a while to be quite gone, getppid() to
             * see it */
            if (e.pid == d->parent) d->orphan = true;
            else drain(d, "SIGTERM");
            break;
        case SL_BUS_TICK: go_on = on_tick(d); break;
        }
    }
    if (err.code) sl_log_err("stopping", &err);
}
