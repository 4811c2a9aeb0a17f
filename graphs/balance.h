/* balance.h - how many rows each rank of a team should have, so that all are done at one time: the
 * policy alone, without ranks.
 *
 * Two cards of one kind differ by a few hundredths, and more under a limit of power: the one that
 * waits for the other saves power, its clock rises, and it waits the more. Attention goes by heads
 * and stays as it is; all else goes by rows. After each forward every rank brings the seconds that
 * each of them computed, without what it waited, in the same order: the same numbers, so the same
 * answer everywhere.
 *
 * Shares change seldom, for each new number of rows costs plans of products: by whole weights of
 * 1/64, from the mean of several forwards, a part of the way, and only for what a forward gains by
 * it. Bytes do not depend on shares. */
#ifndef SL_BALANCE_H
#define SL_BALANCE_H

#include "kernels/comm.h"

enum {
    SL_BALANCE_LEAST = 2 * SL_SHARE_EQUAL - SL_SHARE_MOST, /* the smallest weight that is given */
    SL_BALANCE_FIRST = 2, /* forwards before the first change; twice as many before each next one */
    SL_BALANCE_MOST_CHANGES = 4
};
#define SL_BALANCE_WAY 0.75       /* of the way to equal times, at once */
#define SL_BALANCE_GAIN 0.003     /* the least part of a forward that a change must save */
#define SL_BALANCE_MOST_S 3600.0  /* a forward of more seconds is none */
#define SL_BALANCE_MOST_RATIO 4.0 /* of the slowest to the fastest; beyond it one was disturbed */

typedef struct {
    int size;
    uint8_t weight[SL_RANKS]; /* of the shares now, for sl_team; 0 behind size */
    int changes;
    int skip;                /* forwards to come that tell nothing: they made plans */
    int seen;                /* forwards with these shares, and of them */
    double busy_s[SL_RANKS]; /* the sums of what each computed */
    bool settled;            /* the newest mean asked for no change, or shares are given */
    const char *given;       /* shares are these, whatever is measured; NULL: measured ones */
    int turn;                /* of those that were given */
} sl_balance;

/* A team of `size` that has seen nothing: shares as `last` had them (sl_team's weights), NULL:
 * equal.
 * given: NULL, or shares to take instead of measured ones, as "72:56,56:72,64:64:70:58": weights of
 * all members, as sl_shares_fit wants them; lists of the team's size take turns, one a forward, and
 * without any shares are equal. It must live as long as *b. Errors: SL_ARG what is no such text, or
 * does not fit; shares are equal then. */
sl_code sl_balance_begin(sl_balance *b, int size, const uint8_t last[], const char *given,
                         sl_err *err);

/* A forward is over in which member i computed for busy_s[i] seconds, of which `part` goes with the
 * rows where shares are equal (sl_dit_part_of_rows). True: b->weight has changed, and is to hold
 * from the next forward on. Times that make no sense, of one member or beside each other, are as if
 * the forward had not been. */
bool sl_balance_next(sl_balance *b, double part, const double busy_s[]);

#endif
