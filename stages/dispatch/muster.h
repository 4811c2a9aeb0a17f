/* muster.h - ranks before they take jobs: how each is reached by the others of its role, and who
 * loads the weights together.
 *
 *   RANK   is passed on to every other rank of the role, and to those that come later when they
 *          say HELLO: so before any JOB that needs it
 *   LOAD   goes to all ranks together when all that are to come have said RANK, or some have
 *          waited for SL_MUSTER_MS; and to a rank alone, at once, if another of its role has
 *          had it: that one was started again
 *
 * Keys of LOAD and of attempts are numbers of one count. The owner adds the seats once and hands
 * in what happens; what is to be said goes out through to_seat. No jobs are known here, and no
 * sockets. */
#ifndef SL_DISPATCH_MUSTER_H
#define SL_DISPATCH_MUSTER_H

#include "common/conf.h"
#include "common/wire.h"

#define SL_MUSTER_MS 5000 /* longest wait for ranks that are to load together */

typedef struct {
    const sl_conf_stage *stage; /* NULL: no such seat, or its role has no teams here */
    bool announced;             /* its RANK has come */
    bool loads;                 /* its LOAD has gone */
    bool given_up;              /* no process will be started any more */
    int64_t since_ns;           /* when its RANK came */
    sl_msg_rank rank;
} sl_muster_seat;

typedef struct {
    void *self;
    void (*to_seat)(void *self, int seat, const sl_msg *m);
    uint32_t last_key;
    sl_muster_seat seats[SL_CONF_SEATS];
} sl_muster;

void sl_muster_open(sl_muster *r, void *self,
                    void (*to_seat)(void *self, int seat, const sl_msg *m));
/* `stage`, one of conf's, outlives *r. */
void sl_muster_add(sl_muster *r, int seat, const sl_conf *conf, const sl_conf_stage *stage);

/* The seat's process has said HELLO. */
void sl_muster_on_hello(sl_muster *r, int seat);
/* false: the seat is no rank, or not this one; ignored. */
bool sl_muster_on_rank(sl_muster *r, int seat, const sl_msg_rank *m);
/* The seat's process has ended. for_good: there will be no other. */
void sl_muster_forget(sl_muster *r, int seat, bool for_good);
/* Send LOAD to whom it is due. */
void sl_muster_tick(sl_muster *r, int64_t now_ns);

/* A key larger than any before. */
uint32_t sl_muster_key(sl_muster *r);

#endif
