/* shares.h - a team's shares of the rows, which follow what its members are able to do.
 *
 *     begin -> per step: clock, (forwards), clocked, sl_denoise_team_agree, next
 * How large they are is decided by graphs/balance.h, from what each member says in agree that it
 * has computed; those who share a forward decide alike. A step that the First Block Cache cut short
 * tells nothing. A team of one, and halves of one rank each, do nothing here.
 *
 * SLUICE_SHARES in the environment of all ranks gives shares instead (sl_balance_begin). */
#ifndef SL_DENOISE_SHARES_H
#define SL_DENOISE_SHARES_H

#include "stages/denoise/team.h"

/* Before the first step, with memory taken and its tables made; one barrier. The shares are the
 * last of the same members, if each of them remembers the same, otherwise equal ones. Errors:
 * ctx's; SL_ARG of SLUICE_SHARES. */
sl_code sl_denoise_shares_begin(denoise_team *t, sl_ctx *ctx, sl_denoise_memory *mem, sl_err *err);

/* A step's forwards begin; the device has done them. computed: all of them were computed whole. */
void sl_denoise_shares_clock(denoise_team *t);
void sl_denoise_shares_clocked(denoise_team *t, bool computed);

/* Behind agree, where another step follows: other shares, if it is time for them. Errors: ctx's.
 * part: of what a member computes in a step, that which goes with its rows. */
void sl_denoise_shares_next(denoise_team *t, sl_ctx *ctx, sl_denoise_memory *mem, double part);

/* This member's part of a forward's rows, in the mean of the steps so far, 0 .. 1; 1 where nobody
 * shares. */
double sl_denoise_shares_mean(const denoise_team *t);

#endif
