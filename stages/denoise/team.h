/* team.h - a denoiser as one of several ranks that work on a job together.
 *
 *     open -> inputs -> (shares.h) -> per step: (forwards), meet, agree -> close
 * Every member calls the same functions in the same order. The first member leads: it takes the
 * inputs, hands the latents over, and says what is to be said of the job. A team of one does
 * nothing in all of them. */
#ifndef SL_DENOISE_TEAM_H
#define SL_DENOISE_TEAM_H

#include "graphs/balance.h"
#include "graphs/fbcache.h"
#include "graphs/layers.h"
#include "kernels/comm.h"
#include "stages/seat/parcel.h"
#include "stages/sizes/denoise.h"

/* What a job starts from. Owned. */
typedef struct {
    sl_parcel text;  /* a tensor a branch */
    sl_parcel image; /* empty for a job without pictures */
} denoise_inputs;

/* The newest shares of those with whom a denoiser has shared forwards, for its next job. */
typedef struct {
    int size; /* 0: of nobody */
    int member[SL_RANKS];
    uint8_t weight[SL_RANKS];
} denoise_shares;

typedef struct {
    sl_comm *comm; /* NULL: a team of one */
    sl_team whole;
    sl_denoise_split split;
    /* shares.h: of those who share this member's forwards */
    sl_balance balance;
    denoise_shares *last;    /* the process's */
    int64_t clock_ns;        /* when the step began, but for what was waited before */
    int64_t busy_ns;         /* what this member computed in the step; 0: it tells nothing */
    double busy_s[SL_RANKS]; /* and what each of them did, known after agree */
    int64_t steps, weights;  /* of this member: how many, the sum of its weights in them */
} denoise_team;

/* Join the team of a JOB: every member is waited for. last: of this process, its to keep. Errors:
 * SL_GONE a member is dead or silent; SL_CANCELLED; SL_ARG heads that do not divide, naming sizes
 * that do. */
sl_code sl_denoise_team_open(denoise_team *t, sl_seat *seat, sl_ctx *ctx, const sl_msg_job *msg,
                             const sl_job *job, denoise_shares *last, sl_err *err);
/* The attempt is over for this member. failed: the others are told to give it up. ctx has no error
 * afterwards. */
void sl_denoise_team_close(denoise_team *t, sl_ctx *ctx, bool failed);

static inline bool sl_denoise_leads(const denoise_team *t)
{
    return t->whole.me == 0;
}

/* The leader's inputs, taken, reach all: the others' parcels then have device sides in the window,
 * until sl_denoise_shares_begin. Errors: as open; ctx's. */
sl_code sl_denoise_team_inputs(denoise_team *t, const sl_seat *seat, sl_ctx *ctx, const sl_job *job,
                               denoise_inputs *in, sl_err *err);

/* With halves: v[own branch] goes to the member of the other half that shares the same rows, and
 * v[other branch] becomes what came from there, in the window until the next agree. Queued. */
void sl_denoise_team_meet(const denoise_team *t, sl_ctx *ctx, sl_tensor v[SL_BRANCHES]);

/* Between two steps: the decisions of both branches become known to all, whether anybody was told
 * to park, and what each has computed. One barrier, on the host. Errors: ctx's. */
void sl_denoise_team_agree(denoise_team *t, sl_ctx *ctx, sl_fbcache_report reports[SL_BRANCHES],
                           bool *park);

#endif
