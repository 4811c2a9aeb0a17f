/* turns.h - seats on one device compute one at a time: who asks waits, who gives back or
 * dies makes room. order.h says who is next, stages/README.md why.
 *
 * Ranks of a team that share a device (role: one that has teams) compute one piece together: each
 * of them waits in the middle of it for the others, and would wait for ever if they had to take
 * turns. Those that ask for the same piece have the turn together.
 *
 * The owner adds every seat once and hands in what seats say. Answers go over the bus. */
#ifndef SL_TURNS_H
#define SL_TURNS_H

#include "stages/dispatch/bus.h"
#include "stages/dispatch/once.h"

typedef struct {
    const char *name, *device; /* the owner's; NULL: there is no such seat */
    int team;                  /* seats of one number work in teams; -1: alone */
    bool asks;                 /* the process has asked for a turn since it was started */
    uint64_t newest;           /* number of the newest turn that was asked for */
    uint64_t asked, held;      /* the turn that the seat waits for, that it has; 0: none */
    bool free;                 /* the seat holds the device without a question, until REVOKE */
    bool late;                 /* that the turn takes too long was said */
    int64_t since_ns;          /* since when the seat waits, or keeps others waiting */
    sl_msg_ask ask;            /* the newest question */
} sl_turns_seat;

typedef struct {
    sl_bus *bus;
    sl_once *once;
    int64_t patience_ns, looked_ns;
    sl_turns_seat seats[SL_CONF_SEATS];
} sl_turns;

void sl_turns_open(sl_turns *t, sl_bus *bus, const sl_conf *conf, sl_once *once);
/* team: the number of the seat's role, if that has teams here; otherwise -1. */
void sl_turns_add(sl_turns *t, int seat, const char *name, const char *device, int team);

void sl_turns_on_ask(sl_turns *t, int seat, const sl_msg_ask *m);
void sl_turns_on_give(sl_turns *t, int seat, const sl_msg_give *m);
/* The seat waits for a turn. */
bool sl_turns_waits(const sl_turns *t, int seat);
/* The seat's process has ended: the turn that it held or waited for is another's. */
void sl_turns_forget(sl_turns *t, int seat);
/* Nothing ran for so long: no turn took longer for it. */
void sl_turns_skip(sl_turns *t, int64_t ns);
/* Look at holders that keep others waiting: for too long? still to be reached? A seat whose
 * connection is lost has its turn taken away and is returned, to be killed; -1: none. */
int sl_turns_tick(sl_turns *t);

#endif
