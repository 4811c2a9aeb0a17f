/* seats.c - places for processes.
 *
 *   DOWN --start--> STARTING --HELLO--> LOADING --READY--> READY
 *    ^                 |                   |                 |
 *    '--- back-off ----+---- its process ends, or is killed -'
 *                      '---> BROKEN: too often without getting further, or for a reason that
 *                            stays (ARG, SHAPE, FORMAT)
 *
 * The back-off doubles with each death; a seat by which a job gets further begins anew. A
 * process dies with the dispatcher (PR_SET_PDEATHSIG). The order at its end is the loop's:
 * here it is collected, then jobs and turns lose what it had. */
#include "stages/dispatch/seats.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/pidfd.h"
#include "common/process.h"

#define MS 1000000ll
#define MAX_OFFSPRING 256
#define LAST_WORDS_MS 200 /* after a speaker's end, for what it said last */
#define DRAIN_MS 3000     /* longest wait for all processes to end */

/* Some job of the model has a hand-over to or from this role. */
static bool has_work(sl_role role, const sl_model *model)
{
    for (int h = 0; h < sl_handover_count(); h++)
        if ((SL_HANDOVER[h].from == role || SL_HANDOVER[h].to == role) &&
            sl_handover_applies((sl_handover)h, model, NULL))
            return true;
    return false;
}

void sl_seats_open(sl_seats *s, const sl_model *model)
{
    s->count = 0;
    s->attached = -1;
    for (int i = 0; i < s->conf->stage_count; i++) {
        const sl_conf_stage *c = &s->conf->stages[i];
        if (!has_work(c->role, model)) continue;
        sl_seats_seat *p = &s->at[s->count++];
        *p = (sl_seats_seat){.conf = c, .pidfd = -1, .speaker_fd = -1};
        sl_conf_name(s->conf, c, p->name);
    }
}

bool sl_seats_attach(sl_seats *s, sl_role role, char *const wrapper[], pid_t terminal)
{
    for (int i = 0; i < s->count && s->attached < 0; i++)
        if (s->at[i].conf->role == role) s->attached = i;
    s->wrapper = wrapper;
    s->terminal = terminal;
    return s->attached >= 0;
}

/* ---- news ---- */

static sl_msg stage_msg(const sl_seats_seat *p, const char *event)
{
    sl_msg m = {.type = SL_MSG_STAGE,
                .stage = {.pid = p->pid, .instance = (uint32_t)p->conf->instance}};
    snprintf(m.stage.stage, sizeof m.stage.stage, "%s", sl_role_name(p->conf->role));
    snprintf(m.stage.event, sizeof m.stage.event, "%s", event);
    snprintf(m.stage.device, sizeof m.stage.device, "%s", p->conf->device);
    return m;
}

static sl_msg ready_msg(const sl_seats_seat *p)
{
    sl_msg m = stage_msg(p, "ready");
    m.stage.load_s = p->ready.load_s;
    m.stage.weight_bytes = p->ready.weight_bytes;
    return m;
}

void sl_seats_tell_all(const sl_seats *s, void (*tell)(void *self, const sl_msg *m), void *self)
{
    for (int i = 0; i < s->count; i++) {
        const sl_seats_seat *p = &s->at[i];
        sl_msg start = {.type = SL_MSG_SPAN, .span = p->start},
               load = {.type = SL_MSG_SPAN, .span = p->load}, ready = ready_msg(p);
        if (p->start.t1_ns) tell(self, &start);
        if (p->load.t1_ns) tell(self, &load);
        if (p->state == SL_SEAT_READY) tell(self, &ready);
    }
}

/* ---- starting ---- */

/* false: there is no such program, and the seat is given up. */
static bool start(sl_seats *s, int seat)
{
    sl_seats_seat *p = &s->at[seat];
    sl_err no = {0};
    p->pool_count = p->spins = 0;
    p->system_ticks = p->user_ticks = p->faults = p->io_bytes = p->offspring_ticks = 0;
    p->hopeless = false;
    p->start.t1_ns = p->load.t1_ns = 0;
    *p->last_error = 0;
    p->last_code = SL_OK;
    p->started_ns = p->last_beat_ns = p->heard_ns = p->worked_ns = sl_now_ns();
    p->oom_kills = sl_out_of_memory_kills();
    if (sl_start_process(s, seat, &no) == SL_ARG) {
        p->state = SL_SEAT_BROKEN;
        p->last_code = SL_ARG;
        snprintf(p->last_error, sizeof p->last_error, "%s", no.msg);
        return false;
    }
    p->pidfd = -1;
    if (p->pid > 0) sl_pidfd_open(&p->pidfd, p->pid, &no);
    if (p->pidfd < 0) {
        sl_log(SL_LOG_ERROR, "%s could not be started: %s", p->name, no.msg);
        if (p->pid > 0) kill(p->pid, SIGKILL), waitpid(p->pid, NULL, 0);
        p->pid = 0;
        p->restart_at_ns = sl_now_ns() + 1000 * MS;
        return true;
    }
    p->state = SL_SEAT_STARTING;
    sl_bus_watch(s->bus, seat, p->pid, p->pidfd);
    sl_log(SL_LOG_DEBUG, "%s is process %d", p->name, (int)p->pid);
    return true;
}

/* The seat's process, as it was started, has come no further than `what`: it is killed, and after
 * SL_SEATS_MUTE of them the seat is given up. */
static void end_mute(sl_seats *s, int seat, const char *what)
{
    sl_seats_seat *p = &s->at[seat];
    char why[160];
    if (++p->mute < SL_SEATS_MUTE) {
        sl_seats_kill(s, seat, what);
        return;
    }
    snprintf(why, sizeof why, "%s, %d times in a row", what, p->mute);
    sl_seats_kill_for_good(s, seat, SL_TIMEOUT, why);
}

/* Another instance of the seat's role reads weights: ranks wait for each other then. */
static bool mate_loads(sl_seats *s, int seat, int64_t since_ns)
{
    for (int i = 0; i < s->count; i++)
        if (i != seat && s->at[i].conf->role == s->at[seat].conf->role &&
            s->at[i].state <= SL_SEAT_LOADING && s->at[i].pidfd >= 0 &&
            sl_seats_worked_ns(s, i) > since_ns)
            return true;
    return false;
}

/* Processes that do not beat; those that do, and will never be ready. */
static void look_for_silence(sl_seats *s, int seat, int64_t now)
{
    sl_seats_seat *p = &s->at[seat];
    const int stall_s = s->conf->supervise.stall_s, quiet_s = 2 * s->conf->supervise.quiet_s;
    const int64_t idle_ns = (quiet_s > stall_s ? quiet_s : stall_s) * 1000 * MS;
    char why[96];
    if (seat == s->attached) return;
    if (now - p->last_beat_ns > stall_s * 1000 * MS) {
        p->last_beat_ns = now; /* its end comes next */
        snprintf(why, sizeof why, "%s for %d s",
                 p->state == SL_SEAT_STARTING ? "said no HELLO, nor anything else,"
                                              : "gave no sign of life",
                 stall_s);
        if (p->state == SL_SEAT_STARTING) end_mute(s, seat, why);
        else sl_seats_kill(s, seat, why);
    } else if (p->state == SL_SEAT_LOADING && now - p->heard_ns > idle_ns &&
               now - sl_seats_worked_ns(s, seat) > idle_ns && !mate_loads(s, seat, now - idle_ns)) {
        p->heard_ns = now;
        snprintf(why, sizeof why, "said HELLO and not READY, and did nothing for %d s",
                 (int)(idle_ns / (1000 * MS)));
        end_mute(s, seat, why);
    }
}

int sl_seats_tick(sl_seats *s, bool ending)
{
    int64_t now = sl_now_ns();
    int broken = -1;
    for (int i = 0; i < s->count; i++) {
        sl_seats_seat *p = &s->at[i];
        if (p->state == SL_SEAT_DOWN && now >= p->restart_at_ns && !ending && broken < 0) {
            if (!start(s, i)) broken = i;
        } else if (p->pidfd >= 0) look_for_silence(s, i, now);
    }
    return broken;
}

/* The process, what comes from it, and its speaker, should that have lost its parent. */
static void signal_all(const sl_seats_seat *p, int sig)
{
    pid_t all[MAX_OFFSPRING];
    if (p->pid <= 0) return;
    const int n = sl_process_offspring(p->pid, all, MAX_OFFSPRING);
    kill(p->pid, sig);
    for (int i = 0; i < n; i++) kill(all[i], sig);
    if (p->speaker_fd >= 0) sl_pidfd_send(p->speaker_fd, sig);
}

void sl_seats_pause(const sl_seats *s, bool pause)
{
    for (int i = 0; i < s->count; i++) signal_all(&s->at[i], pause ? SIGSTOP : SIGCONT);
}

void sl_seats_skip(sl_seats *s, int64_t ns)
{
    for (int i = 0; i < s->count; i++) {
        s->at[i].last_beat_ns += ns;
        s->at[i].restart_at_ns += ns;
        s->at[i].heard_ns += ns;
        s->at[i].spins = 0;
    }
}

void sl_seats_kill_silent(sl_seats *s, int seat, const char *why)
{
    sl_seats_seat *p = &s->at[seat];
    int64_t now = sl_now_ns(), limit_ms = 3 * (int64_t)s->conf->supervise.heartbeat_ms;
    if (limit_ms < SL_SEATS_SILENT_MS) limit_ms = SL_SEATS_SILENT_MS;
    if (p->pidfd < 0 || seat == s->attached || now - p->last_beat_ns < limit_ms * MS) return;
    sl_seats_kill(s, seat, why);
    p->last_beat_ns = now; /* its end comes next */
}

void sl_seats_kill(sl_seats *s, int seat, const char *why)
{
    const sl_seats_seat *p = &s->at[seat];
    sl_log(SL_LOG_WARN, "%s[%d] %s: killed", p->name, (int)(p->speaker ? p->speaker : p->pid), why);
    signal_all(p, SIGKILL);
}

void sl_seats_kill_for_good(sl_seats *s, int seat, sl_code code, const char *why)
{
    sl_seats_seat *p = &s->at[seat];
    snprintf(p->last_error, sizeof p->last_error, "%s", why);
    p->last_code = code;
    p->hopeless = true;
    signal_all(p, SIGKILL); /* the jobs, which end with it, say why */
}

/* ---- what processes say ---- */

/* The seat whose process this is, or from which it comes; -1: none. */
static int seat_of(const sl_seats *s, pid_t pid)
{
    for (int i = 0; i < s->count && pid > 0; i++)
        if (s->at[i].pid == pid) return i;
    for (int i = 0; i < s->count && pid > 0; i++)
        if (s->at[i].pid > 0 && sl_process_is_of(pid, s->at[i].pid, SL_SEATS_GENERATIONS)) return i;
    return -1;
}

/* The seat's process says HELLO from another process than the first time: a second worker. */
static bool is_second(const sl_seats_seat *p, pid_t pid)
{
    return p->speaker && p->speaker != pid;
}

/* Who speaks for the seat from now on. */
static void take_speaker(sl_seats_seat *p, pid_t pid)
{
    sl_err ignored = {0};
    p->speaker = pid;
    if (pid == p->pid || p->speaker_fd >= 0) return;
    sl_log(SL_LOG_DEBUG, "%s: process %d speaks for %d, from which it comes", p->name, (int)pid,
           (int)p->pid);
    if (sl_pidfd_open(&p->speaker_fd, pid, &ignored)) p->speaker_fd = -1;
}

int sl_seats_lost_speaker(sl_seats *s, pid_t next)
{
    const int64_t now = sl_now_ns();
    const int asks = next ? seat_of(s, next) : -1;
    for (int i = 0; i < s->count; i++) {
        sl_seats_seat *p = &s->at[i];
        struct pollfd f = {p->speaker_fd, POLLIN, 0};
        if (f.fd < 0 || poll(&f, 1, 0) != 1) continue;
        if (i == asks) return i;
        if (!p->speaker_gone_ns) p->speaker_gone_ns = now;
        else if (now - p->speaker_gone_ns > LAST_WORDS_MS * MS) return i;
    }
    return -1;
}

static void close_speaker(sl_seats_seat *p)
{
    if (p->speaker_fd >= 0) close(p->speaker_fd);
    p->speaker_fd = -1;
    p->speaker = 0;
    p->speaker_gone_ns = 0;
    p->pool_count = 0;
}

void sl_seats_forget_speaker(sl_seats *s, int seat)
{
    sl_seats_seat *p = &s->at[seat];
    sl_log(SL_LOG_WARN, "%s[%d] ended; process %d, from which it came, did not", p->name,
           (int)p->speaker, (int)p->pid);
    close_speaker(p);
    sl_bus_name(s->bus, seat, NULL);
    p->state = SL_SEAT_STARTING;
    p->started_ns = p->last_beat_ns = sl_now_ns();
}

int sl_seats_on_hello(sl_seats *s, const sl_msg_hello *m, const sl_bus_peer *from)
{
    const int i = seat_of(s, m->pid);
    if (i < 0) {
        sl_once_warn(s->once,
                     "HELLO of %s, process %d, which was not started here nor comes from one that "
                     "was: ignored",
                     m->role, m->pid);
        return -1;
    }
    const sl_role role = s->at[i].conf->role;
    if (strcmp(sl_role_name(role), m->role)) {
        char why[96];
        snprintf(why, sizeof why, "process %d says HELLO as %s, want %s", m->pid, m->role,
                 sl_role_name(role));
        sl_seats_kill_for_good(s, i, SL_FORMAT, why);
        return -1;
    }
    if (is_second(&s->at[i], m->pid)) {
        sl_once_warn(s->once,
                     "HELLO of %s, process %d, beside process %d, which speaks for it: "
                     "ignored",
                     s->at[i].name, m->pid, (int)s->at[i].speaker);
        return -1;
    }
    take_speaker(&s->at[i], m->pid);
    sl_seats_seat *p = &s->at[i];
    sl_bus_name(s->bus, i, from);
    p->state = SL_SEAT_LOADING;
    p->last_beat_ns = p->heard_ns = sl_now_ns();
    sl_msg span = {
        .type = SL_MSG_SPAN,
        .span = {.kind = SL_SPAN_START, .t0_ns = p->started_ns, .t1_ns = p->last_beat_ns}};
    snprintf(span.span.stage, sizeof span.span.stage, "%s", sl_role_name(p->conf->role));
    p->start = span.span;
    s->tell(s->self, &span);
    sl_log(SL_LOG_DEBUG, "%s[%d] on %s says hello", p->name, m->pid, m->device);
    for (int k = 0; k < s->count; k++) /* where it can send to */
        for (int n = 0; n < s->at[k].pool_count && k != i; n++) {
            sl_msg pool = {.type = SL_MSG_POOL, .pool = s->at[k].pools[n]};
            sl_bus_send(s->bus, i, &pool);
        }
    return i;
}

void sl_seats_on_foreign_hello(sl_seats *s, const sl_msg_hello *m, const sl_err *what)
{
    const int i = seat_of(s, m->pid);
    if (i >= 0) sl_seats_on_nonsense(s, i, what);
    else
        sl_once_warn(s->once, "HELLO of %s, process %d, which was not started here: %.120s",
                     m->role, m->pid, what->msg);
}

void sl_seats_on_beat(sl_seats *s, int seat, bool word)
{
    s->at[seat].last_beat_ns = sl_now_ns();
    if (word) s->at[seat].heard_ns = s->at[seat].last_beat_ns;
}

bool sl_seats_on_pool(sl_seats *s, int seat, const sl_msg_pool *m)
{
    sl_msg out = {.type = SL_MSG_POOL, .pool = *m};
    sl_seats_seat *p = &s->at[seat];
    if (p->pool_count == SL_HANDOVERS_MOST) {
        sl_once_warn(s->once, "%s announces a pool for %s, and has %d: ignored", p->name,
                     m->handover, p->pool_count);
        return false;
    }
    p->pools[p->pool_count++] = *m;
    for (int i = 0; i < s->count; i++)
        if (i != seat) sl_bus_send(s->bus, i, &out);
    return true;
}

void sl_seats_on_ready(sl_seats *s, int seat, const sl_msg_ready *m)
{
    sl_seats_seat *p = &s->at[seat];
    p->state = SL_SEAT_READY;
    p->mute = 0;
    p->ready = *m;
    sl_log(SL_LOG_DEBUG, "%s is ready after %.2f s with %.1f MB of weights", p->name, m->load_s,
           (double)m->weight_bytes * 1e-6);
    sl_msg news = ready_msg(p);
    s->tell(s->self, &news);
}

void sl_seats_on_span(sl_seats *s, int seat, const sl_msg_span *m)
{
    sl_msg news = {.type = SL_MSG_SPAN, .span = *m};
    if (m->kind == SL_SPAN_LOAD) s->at[seat].load = *m;
    s->tell(s->self, &news);
}

void sl_seats_on_failed(sl_seats *s, int seat, const sl_msg_failed *m)
{
    sl_seats_seat *p = &s->at[seat];
    snprintf(p->last_error, sizeof p->last_error, "%.500s", m->message);
    p->last_code = (unsigned)m->code < SL_CODE_COUNT ? (sl_code)m->code : SL_INTERNAL;
}

void sl_seats_on_nonsense(sl_seats *s, int seat, const sl_err *what)
{
    const sl_seats_seat *p = &s->at[seat];
    char why[SL_TEXT];
    if (p->pidfd < 0 || p->last_code) return;
    snprintf(why, sizeof why, "speaks another protocol: %.400s", what->msg);
    sl_seats_kill_for_good(s, seat, SL_FORMAT, why); /* it will not get better */
}

/* ---- ends ---- */

static void how_it_ended(int status, const struct rusage *used, uint64_t kills, char *how,
                         size_t size)
{
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && sl_out_of_memory_kills() > kills)
        snprintf(how, size, "killed by the kernel: out of memory at %ld MB",
                 used->ru_maxrss / 1024);
    else if (WIFSIGNALED(status))
        snprintf(how, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(how, size, "exit status %d%s", WEXITSTATUS(status),
                 WEXITSTATUS(status) == 127 ? ", could not be executed" : "");
}

/* Give the seat up, with a reason for the jobs that are there and those that come later. */
static void give_up(sl_seats_seat *p, const char *how)
{
    char why[SL_TEXT];
    p->state = SL_SEAT_BROKEN;
    if (*p->last_error) snprintf(why, sizeof why, "%s: %.400s", p->name, p->last_error);
    else
        snprintf(why, sizeof why, "%s ended %d times in a row (%s): giving up", p->name,
                 p->failures, how);
    snprintf(p->last_error, sizeof p->last_error, "%s", why);
}

void sl_seats_on_ended(sl_seats *s, int seat, bool draining, sl_seats_end *out)
{
    sl_seats_seat *p = &s->at[seat];
    int status = 0;
    struct rusage used = {0};
    *out = (sl_seats_end){.pid = p->speaker ? p->speaker : p->pid};
    wait4(p->pid, &status, 0, &used); /* it has ended: this does not wait */
    close(p->pidfd);
    sl_voice_close(&p->voice);
    if (p->speaker_fd >= 0) sl_pidfd_send(p->speaker_fd, SIGKILL);
    sl_bus_watch(s->bus, seat, 0, -1);
    how_it_ended(status, &used, p->oom_kills, out->how, sizeof out->how);
    bool well = WIFEXITED(status) && !WEXITSTATUS(status);
    /* A mistake in the model or the settings will not go away by itself; anything else is
     * tried again, later each time. */
    if (seat == s->attached && !p->last_code) {
        p->last_code = SL_SYS;
        snprintf(p->last_error, sizeof p->last_error, "its process ended (%s)", out->how);
    }
    bool hopeless = seat == s->attached || p->hopeless || p->last_code == SL_ARG ||
                    p->last_code == SL_SHAPE || p->last_code == SL_FORMAT;
    if (draining && well) sl_log(SL_LOG_DEBUG, "%s drained", p->name);
    else if (hopeless || p->failures >= s->conf->supervise.restarts) /* its jobs say why */
        sl_log(SL_LOG_DEBUG, "%s[%d] ended: %s", p->name, (int)p->pid, out->how);
    else
        sl_log(SL_LOG_WARN, "%s[%d] ended: %s%s%.300s", p->name, (int)p->pid, out->how,
               *p->last_error ? ": " : "", p->last_error);
    sl_msg news = stage_msg(p, "ended");
    p->pidfd = -1;
    p->pid = 0;
    close_speaker(p);
    p->state = SL_SEAT_DOWN;
    s->tell(s->self, &news);

    out->broken = hopeless || ++p->failures > s->conf->supervise.restarts;
    if (out->broken) {
        give_up(p, out->how);
        if (!hopeless) p->last_code = SL_SYS;
        return;
    }
    int64_t wait = (int64_t)s->conf->supervise.backoff_ms
                   << (p->failures < 8 ? p->failures - 1 : 7);
    p->restart_at_ns = sl_now_ns() + (well ? 0 : wait * MS);
}

void sl_seats_thrive(sl_seats *s, int seat)
{
    s->at[seat].failures = 0;
}

const sl_seats_seat *sl_seats_broken(const sl_seats *s)
{
    for (int r = 0; r < sl_role_count(); r++) {
        const sl_seats_seat *broken = NULL;
        bool works = false;
        for (int i = 0; i < s->count; i++) {
            const sl_seats_seat *p = &s->at[i];
            if (p->conf->role != (sl_role)r) continue;
            if (p->state == SL_SEAT_BROKEN) broken = p;
            else works = true;
        }
        if (broken && !works) return broken;
    }
    return NULL;
}

/* A worker that a wrapper starts when all is over is told to go, as soon as it says HELLO. */
static void turn_away(const sl_seats *s)
{
    const sl_msg drain = {.type = SL_MSG_DRAIN};
    sl_bus_event e;
    sl_err err = {0};
    if (sl_bus_next(s->bus, &e, &err)) usleep(SL_BUS_TICK_MS * 1000); /* the socket is gone */
    else if (e.kind == SL_BUS_CLIENT && e.msg.type == SL_MSG_HELLO &&
             strcmp(e.msg.hello.role, "client"))
        sl_bus_send_client(s->bus, &e.from, &drain);
}

/* The process ends by itself. A person at the terminal has all the time that they want. */
static bool wait_for_end(const sl_seats *s, int seat, int64_t by_ns)
{
    struct pollfd f = {s->at[seat].pidfd, POLLIN, 0};
    while (seat == s->attached && *s->wrapper && getppid() == s->terminal) {
        if (poll(&f, 1, 0) == 1) return true;
        turn_away(s);
    }
    const int64_t left = (by_ns - sl_now_ns()) / MS;
    return poll(&f, 1, left > 0 ? (int)left : 0) == 1;
}

void sl_seats_close(sl_seats *s)
{
    sl_msg drain = {.type = SL_MSG_DRAIN};
    int64_t by = sl_now_ns() + DRAIN_MS * MS;
    for (int i = 0; i < s->count; i++) {
        const sl_seats_seat *p = &s->at[i];
        sl_bus_send(s->bus, i, &drain);
        /* heard no DRAIN; a debugger that waits for `run` goes by itself */
        if (p->pid > 0 && p->state == SL_SEAT_STARTING && i != s->attached) kill(p->pid, SIGTERM);
    }
    for (int i = 0; i < s->count; i++) {
        sl_seats_seat *p = &s->at[i];
        if (p->pid <= 0) continue;
        if (!wait_for_end(s, i, by)) signal_all(p, SIGKILL);
        waitpid(p->pid, NULL, 0);
        if (p->speaker_fd >= 0) sl_pidfd_send(p->speaker_fd, SIGKILL); /* a wrapper went first */
        close_speaker(p);
        sl_voice_close(&p->voice);
        close(p->pidfd);
        p->pidfd = -1;
        p->pid = 0;
    }
}
