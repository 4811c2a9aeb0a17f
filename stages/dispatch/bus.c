/* bus.c - the control socket, pidfds and SIGTERM, as one row of events.
 *
 *   ROUTER --.                        .--> SEAT, CLIENT, NONSENSE
 *   pidfds --+--> poll --> queue -----+--> ENDED, SIGNAL
 *   signal --'   (a batch)            '--> TICK, the end of the batch
 *
 * A batch is read as a whole before its first event is given out, so no handler runs while
 * another one reads. When a process has ended, its side of the connection still holds what
 * it said last: the tickets in it tell finished work from lost slots. hear_out() reads until
 * the socket refuses to send to that peer, which it does only when every byte before the
 * end has been read; then ENDED goes into the queue, behind all of that. */
#include "stages/dispatch/bus.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"

#define MS 1000000ll
#define LAST_WORDS_MS 1000 /* longest wait for the messages of a process that has ended */
#define FIRST_WORDS_MS 20  /* and for the HELLO of one that had said none */

typedef struct {
    pid_t pid;
    int pidfd; /* -1: not watched */
    bool ended;
    sl_bus_peer name;  /* whose messages are the seat's */
    sl_bus_peer hello; /* who said HELLO as this process, named or not yet */
} watched;

struct sl_bus {
    sl_tap *tap; /* NULL: nobody reads along */
    const char *names[SL_CONF_SEATS];
    void *zmq, *router;
    int signals; /* signalfd; -1 none */
    watched seats[SL_CONF_SEATS];
    sl_bus_event *queue; /* [head, count) are to come */
    size_t head, count, room;
};

/* ---- opening ---- */

sl_code sl_bus_open(sl_bus **out, const char *endpoint, sl_err *err)
{
    int linger = 300, mandatory = 1, none = 0;
    sigset_t set;
    sl_bus *b = *out = calloc(1, sizeof *b);
    if (!b) return sl_fail(err, SL_NOMEM, "dispatch: no memory");
    b->signals = -1;
    for (int i = 0; i < SL_CONF_SEATS; i++) b->seats[i].pidfd = -1;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if ((b->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "signalfd");
    if (!(b->zmq = zmq_ctx_new()) || !(b->router = zmq_socket(b->zmq, ZMQ_ROUTER)))
        return sl_fail(err, SL_SYS, "zmq: %s", zmq_strerror(errno));
    zmq_setsockopt(b->router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(b->router, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory);
    zmq_setsockopt(b->router, ZMQ_SNDHWM, &none, sizeof none);
    zmq_setsockopt(b->router, ZMQ_RCVHWM, &none, sizeof none);
    if (zmq_bind(b->router, endpoint))
        return sl_fail(err, SL_SYS, "%s: %s", endpoint, zmq_strerror(errno));
    return SL_OK;
}

void sl_bus_close(sl_bus **bp)
{
    sl_bus *b = *bp;
    if (!b) return;
    *bp = NULL;
    if (b->router) zmq_close(b->router);
    if (b->zmq) zmq_ctx_term(b->zmq);
    if (b->signals >= 0) close(b->signals);
    free(b->queue);
    free(b);
}

/* ---- who is who ---- */

bool sl_bus_same(const sl_bus_peer *a, const sl_bus_peer *b)
{
    return a->size && a->size == b->size && !memcmp(a->bytes, b->bytes, a->size);
}

void sl_bus_watch(sl_bus *b, int seat, pid_t pid, int pidfd)
{
    b->seats[seat] = (watched){.pid = pid, .pidfd = pidfd};
}

void sl_bus_name(sl_bus *b, int seat, const sl_bus_peer *from)
{
    b->seats[seat].name = from ? *from : (sl_bus_peer){0};
}

bool sl_bus_has_ended(const sl_bus *b, int seat)
{
    struct pollfd f = {b->seats[seat].pidfd, POLLIN, 0};
    return f.fd >= 0 && poll(&f, 1, 0) == 1;
}

static int seat_of(const sl_bus *b, const sl_bus_peer *from)
{
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (sl_bus_same(&b->seats[i].name, from)) return i;
    return -1;
}

/* ---- sending ---- */

static sl_code send_to(sl_bus *b, const sl_bus_peer *to, const char *who, const sl_msg *m)
{
    sl_err err = {0};
    if (!to->size) return SL_GONE;
    sl_code rc = sl_wire_send(b->router, to->bytes, to->size, m, &err);
    if (rc && rc != SL_GONE) sl_log_err(who, &err); /* gone: its pidfd will tell */
    return rc;
}

void sl_bus_tap(sl_bus *b, sl_tap *tap, const char *const names[])
{
    b->tap = tap;
    memcpy(b->names, names, sizeof b->names);
}

sl_code sl_bus_send(sl_bus *b, int seat, const sl_msg *m)
{
    if (b->seats[seat].name.size)
        sl_tap_message(b->tap, true, b->names[seat], b->seats[seat].pid, m);
    return send_to(b, &b->seats[seat].name, "stage", m);
}

sl_code sl_bus_send_client(sl_bus *b, const sl_bus_peer *to, const sl_msg *m)
{
    sl_tap_message(b->tap, true, NULL, 0, m);
    return send_to(b, to, "client", m);
}

/* ---- events ---- */

/* A new event at the end of the queue; NULL: no memory, and it is lost. */
static sl_bus_event *append(sl_bus *b, sl_bus_kind kind)
{
    if (b->count == b->room) {
        size_t room = b->room ? 2 * b->room : 64;
        sl_bus_event *more = realloc(b->queue, room * sizeof *more);
        if (!more) return NULL;
        b->queue = more;
        b->room = room;
    }
    sl_bus_event *e = &b->queue[b->count++];
    *e = (sl_bus_event){.kind = kind, .seat = -1};
    return e;
}

/* Everything that has come so far. The seat of a message is looked up when it is given
 * out: the HELLO that names it may stand before it in the queue. */
static sl_code receive(sl_bus *b, sl_err *err)
{
    while (true) {
        sl_bus_event *e = append(b, SL_BUS_CLIENT);
        if (!e) return sl_fail(err, SL_NOMEM, "dispatch: no memory for a message");
        sl_code rc = sl_wire_recv(b->router, e->from.bytes, &e->from.size, &e->msg, &e->err);
        if (rc && rc != SL_FORMAT) {
            b->count--;
            if (rc != SL_BUSY) *err = e->err;
            return rc == SL_BUSY ? SL_OK : rc;
        }
        if (rc) e->kind = SL_BUS_NONSENSE;
        for (int i = 0; !rc && e->msg.type == SL_MSG_HELLO && i < SL_CONF_SEATS; i++)
            if (b->seats[i].pidfd >= 0 && b->seats[i].pid == e->msg.hello.pid)
                b->seats[i].hello = e->from;
    }
}

/* The last words of a seat's process, then ENDED. The kernel has closed its socket by now. */
static sl_code hear_out(sl_bus *b, int seat, sl_err *err)
{
    watched *w = &b->seats[seat];
    sl_msg probe = {.type = SL_MSG_HEARTBEAT};
    int64_t t0 = sl_now_ns();
    while (true) {
        const sl_bus_peer *who = w->name.size ? &w->name : &w->hello;
        bool known = who->size > 0;
        bool closed =
            known && sl_wire_send(b->router, who->bytes, who->size, &probe, NULL) == SL_GONE;
        sl_code rc = receive(b, err);
        if (rc) return rc;
        if (closed || sl_now_ns() - t0 > (known ? LAST_WORDS_MS : FIRST_WORDS_MS) * MS) break;
        zmq_pollitem_t item = {b->router, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, 1);
    }
    w->ended = true;
    sl_bus_event *e = append(b, SL_BUS_ENDED);
    if (e) e->seat = seat;
    return e ? SL_OK : sl_fail(err, SL_NOMEM, "dispatch: no memory for an event");
}

/* Wait for something and read it all: one batch. */
static sl_code fill(sl_bus *b, sl_err *err)
{
    zmq_pollitem_t items[2 + SL_CONF_SEATS] = {{b->router, 0, ZMQ_POLLIN, 0},
                                               {NULL, b->signals, ZMQ_POLLIN, 0}};
    int seats[SL_CONF_SEATS], n = 2;
    struct signalfd_siginfo info;
    sl_code rc;
    b->head = b->count = 0;
    for (int i = 0; i < SL_CONF_SEATS; i++)
        if (b->seats[i].pidfd >= 0 && !b->seats[i].ended) {
            seats[n - 2] = i;
            items[n++] = (zmq_pollitem_t){NULL, b->seats[i].pidfd, ZMQ_POLLIN, 0};
        }
    if (zmq_poll(items, n, SL_BUS_TICK_MS) < 0 && errno != EINTR)
        return sl_fail(err, SL_SYS, "poll: %s", zmq_strerror(errno));
    if ((rc = receive(b, err))) return rc;
    for (int i = 2; i < n; i++)
        if (items[i].revents && (rc = hear_out(b, seats[i - 2], err))) return rc;
    while (read(b->signals, &info, sizeof info) == sizeof info) {
        sl_bus_event *e = append(b, SL_BUS_SIGNAL);
        if (e) e->pid = (pid_t)info.ssi_pid;
    }
    return append(b, SL_BUS_TICK) ? SL_OK
                                  : sl_fail(err, SL_NOMEM, "dispatch: no memory for an event");
}

/* Who said it, as far as that is known: HELLO says it itself. */
static void listen_in(sl_bus *b, const sl_bus_event *e)
{
    const char *peer = e->seat >= 0 ? b->names[e->seat] : NULL;
    pid_t pid = e->seat >= 0 ? b->seats[e->seat].pid : 0;
    if (e->msg.type == SL_MSG_HELLO) peer = e->msg.hello.role, pid = e->msg.hello.pid;
    if (e->kind == SL_BUS_NONSENSE) sl_tap_nonsense(b->tap, peer, pid, &e->err);
    else sl_tap_message(b->tap, false, peer, pid, &e->msg);
}

sl_code sl_bus_next(sl_bus *b, sl_bus_event *out, sl_err *err)
{
    sl_code rc;
    if (b->head == b->count && (rc = fill(b, err))) return rc;
    *out = b->queue[b->head++];
    if (out->kind == SL_BUS_CLIENT || out->kind == SL_BUS_NONSENSE) {
        out->seat = seat_of(b, &out->from);
        if (out->kind == SL_BUS_CLIENT && out->seat >= 0) out->kind = SL_BUS_SEAT;
        listen_in(b, out);
    }
    return SL_OK;
}
