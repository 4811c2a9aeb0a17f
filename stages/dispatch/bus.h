/* bus.h - the control socket and what else wakes the dispatcher, as one row of events.
 *
 * A bus knows seats by their numbers, clients by the identity that the socket gave them,
 * and no jobs. It binds a ROUTER; the owner tells it which processes to watch and, once one
 * has said HELLO, which identity speaks for that seat. Everything that comes stands in one
 * queue: a process's last words always before the event that it has ended.
 * One thread. */
#ifndef SL_BUS_H
#define SL_BUS_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/conf.h"
#include "common/wire.h"
#include "stages/dispatch/tap.h"

#define SL_BUS_TICK_MS 50 /* longest time between two ticks */

/* Who is at the other end of the socket: the identity that ZeroMQ gave it. Zeroed: nobody. */
typedef struct {
    size_t size;
    char bytes[64];
} sl_bus_peer;

typedef enum {
    SL_BUS_SEAT,     /* seat says msg */
    SL_BUS_CLIENT,   /* `from`, who is no seat, says msg */
    SL_BUS_NONSENSE, /* seat (-1: somebody) sent what is no message: err */
    SL_BUS_ENDED,    /* seat's process has ended, and all that it said stood before this */
    SL_BUS_SIGNAL,   /* SIGTERM, from process pid */
    SL_BUS_TICK      /* the end of each batch of events */
} sl_bus_kind;

typedef struct {
    sl_bus_kind kind;
    int seat;
    pid_t pid;
    sl_bus_peer from;
    sl_msg msg;
    sl_err err;
} sl_bus_event;

typedef struct sl_bus sl_bus;

/* Bind `endpoint` and block SIGTERM, which comes as an event from now on. *out is the
 * caller's to close, also after an error. Errors: SL_SYS, SL_NOMEM. */
sl_code sl_bus_open(sl_bus **out, const char *endpoint, sl_err *err);
void sl_bus_close(sl_bus **b); /* what was sent still leaves, for 300 ms; NULL is fine */

/* The next event, waiting for it. Errors: SL_SYS the socket is of no use any more. */
sl_code sl_bus_next(sl_bus *b, sl_bus_event *out, sl_err *err);

/* All messages go by this tap, too, which is the caller's; seats have these names, [SL_CONF_SEATS],
 * NULL for none. */
void sl_bus_tap(sl_bus *b, sl_tap *tap, const char *const names[]);

/* The seat's process is pid, whose end pidfd (the caller's) tells; pidfd -1: no more. */
void sl_bus_watch(sl_bus *b, int seat, pid_t pid, int pidfd);
/* The seat's process speaks as `from`; NULL: nobody speaks for the seat. */
void sl_bus_name(sl_bus *b, int seat, const sl_bus_peer *from);
/* The seat's process has ended, whether or not that event was taken yet. */
bool sl_bus_has_ended(const sl_bus *b, int seat);

/* Send to a seat, to a client. SL_GONE: the process has not said HELLO, or is lost. Other
 * errors are in the log. */
sl_code sl_bus_send(sl_bus *b, int seat, const sl_msg *m);
sl_code sl_bus_send_client(sl_bus *b, const sl_bus_peer *to, const sl_msg *m);

/* Both are the same peer. */
bool sl_bus_same(const sl_bus_peer *a, const sl_bus_peer *b);

#endif
