/* test_shares - what the members of a team remember of their shares, and agree on: processes on the
 * CPU that say what they computed. limit: 60 s */
#include "t_comm.h"

#include <math.h>

#include "kernels/comm_body.h"
#include "stages/denoise/shares.h"

static uint32_t key;

/* An attempt of ranks [0, size), in halves or not: each computes for busy_s[rank] in every step.
 * The weights of this rank's shares at the beginning and the end. */
static const char *attempt(t_rank *r, int size, bool halves, const double busy_s[],
                           denoise_shares *last, uint8_t at[2][SL_RANKS])
{
    const int n = halves ? size / 2 : size, first = r->rank / n * n;
    sl_denoise_memory mem = {.share = {.comm = r->comm, .lane = SL_LANE_SHARD, .tokens = 1000}};
    denoise_team t = {.comm = r->comm, .last = last};
    sl_err err = {0};
    t.whole = team_of(r, size, T_ALL, ++key);
    t.split = (sl_denoise_split){size, r->rank, halves, r->rank / n, n, r->rank % n};
    mem.share.team = team_of(r, n, T_ALL + first, key);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &t.whole);
    sl_comm_begin(r->ctx, r->comm, SL_LANE_SHARD, &mem.share.team);
    RANK_CTX(r);
    RANK_OK(!sl_denoise_shares_begin(&t, r->ctx, &mem, &err), "%.200s", err.msg);
    memcpy(at[0], mem.share.team.weight, SL_RANKS);
    for (int i = 0; i < 3; i++) {
        sl_fbcache_report reports[SL_BRANCHES] = {{1, true}, {1, true}};
        bool park = false;
        sl_denoise_shares_clock(&t);
        sl_denoise_shares_clocked(&t, true);
        RANK_OK(t.busy_ns >= 0, "a step of %lld ns", (long long)t.busy_ns);
        t.busy_ns = (int64_t)(busy_s[r->rank] * 1e9);
        sl_denoise_team_agree(&t, r->ctx, reports, &park);
        RANK_CTX(r);
        RANK_OK(!park && reports[0].computed && reports[1].computed, "agreed on something else");
        for (int k = 0; k < n; k++)
            RANK_OK(fabs(t.busy_s[k] - busy_s[first + k]) < 1e-5,
                    "key %u step %d: member %d computed for %g s, want %g", key, i, k, t.busy_s[k],
                    busy_s[first + k]);
        sl_denoise_shares_next(&t, r->ctx, &mem, 0.5);
        RANK_CTX(r);
    }
    memcpy(at[1], mem.share.team.weight, SL_RANKS);
    RANK_OK(!memcmp(at[1], sl_comm_team(r->comm, SL_LANE_SHARD)->weight, SL_RANKS),
            "the lane has other shares");
    const double mean = sl_denoise_shares_mean(&t), want = at[0][t.split.shard] / 64.0 / n;
    RANK_OK(fabs(mean - want) < 1e-9, "%g of the rows, want %g", mean, want);
    sl_comm_barrier(r->ctx, r->comm, SL_LANE_TEAM); /* all have read the last words */
    RANK_CTX(r);
    sl_comm_end(r->ctx, r->comm);
    return NULL;
}

static bool all_are(const uint8_t weight[], int n, int want)
{
    for (int i = 0; i < n; i++)
        if (weight[i] != want) return false;
    return true;
}

static const char *rank_remembers(t_rank *r)
{
    static const double UNEVEN[] = {1.03, 1, 1, 1.03}, EVEN[] = {1, 1, 1, 1};
    uint8_t at[2][SL_RANKS], was[SL_RANKS];
    denoise_shares last = {0};
    const char *bad;
    /* a fresh team begins with equal shares */
    if ((bad = attempt(r, 4, true, UNEVEN, &last, at))) return bad;
    RANK_OK(all_are(at[0], 2, SL_SHARE_EQUAL), "halves begin with %d, %d", at[0][0], at[0][1]);
    RANK_OK((at[1][0] < at[1][1]) == (r->rank < 2) && at[1][0] + at[1][1] == 128,
            "halves have %d, %d", at[1][0], at[1][1]);
    memcpy(was, at[1], sizeof was);
    /* the same members go on with theirs */
    if ((bad = attempt(r, 4, true, EVEN, &last, at))) return bad;
    RANK_OK(!memcmp(at[0], was, SL_RANKS), "begins with %d, %d, want %d, %d", at[0][0], at[0][1],
            was[0], was[1]);
    /* other members do not */
    if ((bad = attempt(r, 4, false, UNEVEN, &last, at))) return bad;
    RANK_OK(all_are(at[0], 4, SL_SHARE_EQUAL), "another team begins with %d, %d", at[0][0],
            at[0][1]);
    RANK_OK(at[1][0] < at[1][1] && at[1][0] == at[1][3], "it has %d, %d, %d, %d", at[1][0],
            at[1][1], at[1][2], at[1][3]);
    /* nor does a team in which one has forgotten */
    if (r->rank == 2) last = (denoise_shares){0};
    if ((bad = attempt(r, 4, false, EVEN, &last, at))) return bad;
    RANK_OK(all_are(at[0], 4, SL_SHARE_EQUAL), "begins with %d, %d", at[0][0], at[0][1]);
    /* or remembers something else */
    last.weight[0] = r->rank ? 62 : 60;
    last.weight[1] = r->rank ? 66 : 68;
    if ((bad = attempt(r, 4, false, EVEN, &last, at))) return bad;
    RANK_OK(all_are(at[0], 4, SL_SHARE_EQUAL), "begins with %d, %d", at[0][0], at[0][1]);
    return NULL;
}

static void a_team_remembers_its_shares(void **state)
{
    (void)state;
    t_ranks(4, rank_remembers, 20000, NULL, -1);
}

/* Halves of one rank each exchange nothing but their velocities: there is nothing to share. */
static const char *rank_alone(t_rank *r)
{
    denoise_shares last = {0};
    sl_denoise_memory mem = {0};
    denoise_team t = {.comm = r->comm, .last = &last};
    sl_err err = {0};
    t.whole = team_of(r, 2, T_ALL, 1);
    t.split = (sl_denoise_split){2, r->rank, true, r->rank, 1, 0};
    sl_comm_begin(r->ctx, r->comm, SL_LANE_TEAM, &t.whole);
    RANK_OK(!sl_denoise_shares_begin(&t, r->ctx, &mem, &err), "%.200s", err.msg);
    sl_denoise_shares_clock(&t);
    sl_denoise_shares_clocked(&t, true);
    sl_denoise_shares_next(&t, r->ctx, &mem, 0.5);
    RANK_CTX(r);
    RANK_OK(t.busy_ns == 0 && !last.size && sl_denoise_shares_mean(&t) == 1, "shared something");
    return NULL;
}

static void who_shares_nothing_is_left_alone(void **state)
{
    (void)state;
    t_ranks(2, rank_alone, 20000, NULL, -1);
}

static const char *open_cpu(int rank, const sl_ops **ops, const sl_comm_body **body)
{
    (void)rank;
    *ops = &sl_ops_cpu;
    *body = &sl_comm_shm;
    return NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_team_remembers_its_shares),
                                       cmocka_unit_test(who_shares_nothing_is_left_alone)};
    unsetenv("SLUICE_SHARES");
    t_body = (t_comm_body){.open = open_cpu, .window = (size_t)1 << 20, .ranks = 4};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
