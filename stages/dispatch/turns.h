/* turns.h - seats on one device compute one at a time: who asks waits, who gives back or
 * dies makes room. order.h says who is next, stages/README.md why.
 *
 * The owner adds every seat once and hands in what seats say. Answers go over the bus. */
#ifndef SL_TURNS_H
#define SL_TURNS_H

#include "stages/dispatch/bus.h"

typedef struct {
    const char *name, *device; /* the owner's; NULL: there is no such seat */
    bool asks;                 /* has asked for a turn since its process was started */
    uint64_t newest;           /* number of the newest turn that it asked for */
    uint64_t asked, held;      /* the turn that it waits for, the one that it has; 0: none */
    bool free;                 /* holds the device without a question, until REVOKE */
    bool late;                 /* that the turn takes too long was said */
    int64_t since_ns;          /* since when it waits, or keeps others waiting */
    sl_msg_ask ask;            /* the newest question */
} sl_turns_seat;

typedef struct {
    sl_bus *bus;
    int64_t patience_ns, looked_ns;
    sl_turns_seat seats[SL_CONF_SEATS];
} sl_turns;

void sl_turns_open(sl_turns *t, sl_bus *bus, const sl_conf *conf);
void sl_turns_add(sl_turns *t, int seat, const char *name, const char *device);

void sl_turns_on_ask(sl_turns *t, int seat, const sl_msg_ask *m);
void sl_turns_on_give(sl_turns *t, int seat, const sl_msg_give *m);
/* Its process has ended: what it held or waited for is another's. */
void sl_turns_forget(sl_turns *t, int seat);
/* Look at holders that keep others waiting: for too long? still to be reached? A seat whose
 * connection is lost has its turn taken away and is returned, to be killed; -1: none. */
int sl_turns_tick(sl_turns *t);

#endif
