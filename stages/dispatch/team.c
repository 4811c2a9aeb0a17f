/* team.c - how many ranks each job should have.
 *
 * An older job that waits for its text counts: it comes in a moment, and would be given the ranks
 * of others then, who had been parked twice. A team is changed for a reason only: targets that
 * differ are none, if nobody gains by it now. */
#include "stages/dispatch/team.h"

#include <stddef.h>

#include "common/pipeline.h"

static bool fits(const sl_team_job *j, int heads, int size)
{
    return j->alone ? size == 1 : sl_team_fits(heads, j->guided, size);
}

/* The largest team of at most `most` that fits; 0: there is none. */
static int largest(const sl_team_job *j, int most, int heads)
{
    while (most > 0 && !fits(j, heads, most)) most--;
    return most;
}

/* What the job lacks to its next size, if that is at most `free`; 0: there is none. */
static int next_size(const sl_team_job *j, int free, int heads)
{
    for (int more = 1; more <= free; more++)
        if (fits(j, heads, j->want + more)) return more;
    return 0;
}

/* ---- targets ---- */

static void share_fixed(sl_team_job *active[], int n, int free, int most, int heads)
{
    for (int i = 0; i < n; i++) {
        sl_team_job *j = active[i];
        int size = largest(j, most, heads);
        if (size > free && !j->ranks) return; /* nobody overtakes the oldest */
        if (size > free) size = largest(j, j->ranks < free ? j->ranks : free, heads);
        j->want = size;
        free -= size;
    }
}

static void share_auto(sl_team_job *active[], int n, int free, int heads)
{
    if (n > free) n = free;
    for (int i = 0; i < n; i++, free--) active[i]->want = 1;
    while (true) {
        sl_team_job *least = NULL;
        for (int i = 0; i < n; i++)
            if (next_size(active[i], free, heads) && (!least || active[i]->want < least->want))
                least = active[i];
        if (!least) return;
        int more = next_size(least, free, heads);
        least->want += more;
        free -= more;
    }
}

/* ---- who is parked for it ---- */

/* The job that gives most, the youngest of equals; NULL: none gives any more. */
static sl_team_job *who_gives(sl_team_job *jobs, int n)
{
    sl_team_job *best = NULL;
    for (int i = 0; i < n; i++) {
        sl_team_job *j = &jobs[i];
        if (j->ranks > j->want && j->may_park && !j->park &&
            (!best || j->ranks - j->want >= best->ranks - best->want))
            best = j;
    }
    return best;
}

static void choose_parked(sl_team_job *jobs, int n, int ranks)
{
    int idle = ranks, lacks = 0, promised = 0;
    for (int i = 0; i < n; i++) {
        idle -= jobs[i].ranks;
        if (jobs[i].ranks) continue;
        promised += jobs[i].want;
        if (jobs[i].runnable) lacks += jobs[i].want;
    }
    for (lacks -= idle; lacks > 0;) {
        sl_team_job *giver = who_gives(jobs, n);
        if (!giver) break;
        giver->park = true;
        lacks -= giver->ranks - giver->want;
    }
    int spare = idle - promised;
    for (int i = 0; i < n; i++) {
        sl_team_job *j = &jobs[i];
        int more = j->want - j->ranks;
        if (!j->ranks || !j->may_park || more <= 0 || more > spare) continue;
        j->park = true;
        spare -= more;
    }
}

void sl_team_share(sl_team_job *jobs, int n, int ranks, int team, int heads)
{
    sl_team_job *active[SL_RANKS]; /* in order; no more can have a rank */
    int count = 0, free = ranks;
    for (int i = 0; i < n; i++) {
        sl_team_job *j = &jobs[i];
        j->park = false;
        j->want = j->may_park ? 0 : j->ranks;
        free -= j->want;
    }
    for (int run = 1; run >= 0; run--)
        for (int i = 0; i < n && count < SL_RANKS; i++)
            if ((jobs[i].ranks > 0) == run && !jobs[i].want) active[count++] = &jobs[i];
    if (free > 0 && team) share_fixed(active, count, free, team < ranks ? team : ranks, heads);
    else if (free > 0) share_auto(active, count, free, heads);
    choose_parked(jobs, n, ranks);
}
