/* test_team - how many ranks each job should have, case by case, and over random ones what always
 * holds. */
#include "tests/t.h"

#include "common/pipeline.h"
#include "stages/dispatch/team.h"

static void sizes_that_fit(void **state)
{
    static const struct {
        int heads, guided, size[16]; /* all up to 16; 0 ends */
    } CASES[] = {
        {40, 1, {1, 2, 4, 5, 8, 10, 16}},
        {40, 0, {1, 2, 4, 5, 8, 10}},
        {12, 1, {1, 2, 3, 4, 6, 8, 12}},
        {12, 0, {1, 2, 3, 4, 6, 12}},
        {8, 1, {1, 2, 4, 8, 16}},
        {1, 1, {1, 2}},
        {1, 0, {1}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++)
        for (int size = -1, k = 0; size <= 16; size++) {
            bool want = CASES[i].size[k] == size && size > 0;
            k += want;
            if (sl_team_fits(CASES[i].heads, CASES[i].guided, size) != want)
                fail_msg("%d heads, guided %d, a team of %d: want %d", CASES[i].heads,
                         CASES[i].guided, size, want);
        }
}

/* A job: g, u (guided or not) or a (guided, and of one rank alone), the ranks at work, then
 *   p may be parked   k keeps its team   r could begin now   m what it begins from is being made
 * What is wanted: the ranks that each should have, ! where it is parked. */
static const struct {
    int ranks, team, heads;
    const char *jobs, *want, *why;
} CASES[] = {
    {2, 0, 40, "g0r", "2", "alone, a job has all"},
    {8, 0, 40, "g0r", "8", "halves of 4"},
    {3, 0, 40, "g0r", "2", "3 divide nothing"},
    {6, 0, 40, "g0r", "5", "an odd team shares heads as a whole"},
    {16, 0, 40, "u0r", "10", "16 do not divide 40 heads without halves"},
    {1, 0, 40, "g0r g0r", "1 0", "the oldest first"},
    {2, 0, 40, "g0r g0r", "1 1", "many jobs, small teams"},
    {4, 0, 40, "g0r g0r", "2 2", "of one size"},
    {3, 0, 40, "g0r g0r", "2 1", "the oldest is raised first"},
    {8, 0, 40, "g0r g0r g0r", "4 2 2", "the smallest is raised as long as there are ranks"},
    {4, 0, 40, "g0r g0r g0r g0r g0r", "1 1 1 1 0", "no more jobs than ranks"},
    {8, 0, 40, "g0m g0r", "4 4", "who comes in a moment counts"},
    {2, 0, 40, "a0r", "1", "intermediates are of one rank"},
    {4, 0, 40, "a0r g0r", "1 2", "the other has what fits"},
    {4, 4, 40, "a0r", "1", "a fixed team likewise"},
    {2, 0, 40, "", "", "nobody"},
    {0, 0, 40, "g0r g0m", "0 0", "no rank is ready"},

    {2, 0, 40, "g2p g0r", "1! 1", "parted for one that waits"},
    {2, 0, 40, "g2p g0m", "1 1", "not before it can begin"},
    {2, 0, 40, "g2k g0r", "2 0", "nor for a step or two"},
    {2, 0, 40, "g1p", "2!", "raised when alone"},
    {2, 0, 40, "g1k", "1", "nor that for a step or two"},
    {2, 0, 40, "g1p g0m", "1 1", "ranks that somebody is to get are not idle"},
    {2, 0, 40, "g1p g1p g0r", "1 1 0", "a younger one waits"},
    {2, 0, 40, "g0r g1p g1p", "0 1 1", "an older one too: who runs comes first"},
    {4, 0, 40, "g2p g2p g0r", "2 1! 1", "the youngest of equals gives"},
    {8, 0, 40, "g4p g2p g2p g0r", "2! 2 2 2", "who has most gives"},
    {8, 0, 40, "g8p g0r g0r g0r", "2! 2 2 2", "all at once"},
    {4, 0, 40, "g2k g2p g0r", "2 1! 1", "who keeps its team does not"},
    {3, 0, 40, "g1p g2p", "2 1", "better is no reason while nobody gains"},
    {4, 0, 40, "g1p g2p g0r", "2 1 1", "an idle rank is enough for who waits"},
    {4, 0, 40, "g1p g1p", "2! 2!", "both are raised"},
    {4, 0, 40, "g1p g1k", "2! 1", "the one that may be"},
    {4, 0, 40, "g2p", "4!", "the rest has gone"},
    {4, 0, 12, "g2p", "4!", "twelve heads"},
    {4, 0, 12, "g3p", "4!", "one more"},
    {2, 0, 40, "g0m g1p", "1 1", "one that is begun again has its place"},

    {4, 2, 40, "g0r g0r g0r", "2 2 0", "fixed: as many as fit"},
    {3, 2, 40, "g0r g0r", "2 0", "not less"},
    {3, 3, 40, "g0r", "2", "the largest that divides"},
    {8, 4, 40, "g0r", "4", "not more"},
    {1, 2, 40, "g0r g0r", "1 0", "with those that are there"},
    {2, 2, 40, "g1p g0r", "2! 0", "raised when the other is there again"},
    {2, 2, 40, "g1k g0r", "1 0", "nobody overtakes"},
    {2, 2, 40, "g2p g0r", "2 0", "never parted"},
    {4, 4, 40, "g2k g2p g0r", "2 2 0", "who runs is not ended for who cannot have its own"},
};

static int read_jobs(const char *text, sl_team_job out[16])
{
    char shape, flag;
    int ranks, n = 0, used = 0;
    for (; sscanf(text, " %c%d%c%n", &shape, &ranks, &flag, &used) == 3; text += used)
        out[n++] = (sl_team_job){.guided = shape != 'u',
                                 .alone = shape == 'a',
                                 .ranks = ranks,
                                 .runnable = flag == 'r',
                                 .may_park = flag == 'p',
                                 .want = 99,
                                 .park = true};
    return n;
}

static void cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_team_job jobs[16];
        char got[128] = "";
        int n = read_jobs(CASES[i].jobs, jobs);
        sl_team_share(jobs, n, CASES[i].ranks, CASES[i].team, CASES[i].heads);
        for (int k = 0; k < n; k++)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d%s", k ? " " : "",
                     jobs[k].want, jobs[k].park ? "!" : "");
        if (strcmp(got, CASES[i].want))
            fail_msg("%d ranks, team %d, %d heads, jobs %s: %s, want %s (%s)", CASES[i].ranks,
                     CASES[i].team, CASES[i].heads, CASES[i].jobs, got, CASES[i].want,
                     CASES[i].why);
    }
}

/* ---- what always holds ---- */

static int random_below(uint64_t *seed, int n)
{
    return (int)((t_rand(seed) + 1) / 2 * (float)n) % n;
}

static void check(const sl_team_job *jobs, int n, int ranks, int team, int heads)
{
    int wanted = 0, given = 0, idle = ranks, lacks = 0;
    for (int i = 0; i < n; i++) {
        const sl_team_job *j = &jobs[i];
        wanted += j->want;
        idle -= j->ranks;
        given += j->park ? j->ranks - j->want : 0;
        lacks += j->runnable ? j->want : 0;
        if (j->want && j->want != j->ranks) assert_true(sl_team_fits(heads, j->guided, j->want));
        if (team && !j->ranks) assert_true(j->want <= team);
        if (!j->ranks || !j->may_park) assert_false(j->park);
        if (j->ranks && !j->may_park) assert_int_equal(j->want, j->ranks);
        if (j->park) assert_int_not_equal(j->want, j->ranks);
    }
    assert_true(wanted <= ranks);
    for (int i = 0; i < n && !team; i++) /* nobody idles while somebody waits */
        if (!jobs[i].want) assert_int_equal(wanted, ranks);
    if (lacks > idle && !team) assert_true(idle + given >= lacks); /* it is worth it */
}

/* What is decided is done: who is parked is there again at once, who can begin does. How many were
 * parked. */
static int turn(sl_team_job *jobs, int n, int ranks, int team, int heads)
{
    int idle = ranks, parked = 0;
    sl_team_share(jobs, n, ranks, team, heads);
    check(jobs, n, ranks, team, heads);
    for (int i = 0; i < n; i++) {
        if (jobs[i].park) jobs[i].ranks = 0;
        parked += jobs[i].park;
        idle -= jobs[i].ranks;
    }
    for (int i = 0; i < n; i++) {
        sl_team_job *j = &jobs[i];
        if (!j->ranks && j->want <= idle) {
            j->ranks = j->want;
            idle -= j->want;
        }
        j->runnable = !j->ranks;
        j->may_park = j->ranks > 0;
    }
    return parked;
}

/* Random jobs and ranks; and while nobody comes or goes, nobody is parked in a circle. */
static void it_settles(void **state)
{
    uint64_t seed = 7;
    (void)state;
    for (int round = 0; round < 20000; round++) {
        sl_team_job jobs[12] = {0};
        int ranks = 1 + random_below(&seed, 16), free = ranks, n = random_below(&seed, 12),
            heads = (int[]){40, 12, 8, 5}[random_below(&seed, 4)],
            team = random_below(&seed, 3) ? 0 : 1 + random_below(&seed, ranks);
        for (int i = 0; i < n; i++) {
            sl_team_job *j = &jobs[i];
            int at_work = random_below(&seed, (team && team < free ? team : free) + 1);
            j->guided = random_below(&seed, 2);
            if (random_below(&seed, 2) && sl_team_fits(heads, j->guided, at_work)) {
                j->ranks = at_work;
                j->may_park = random_below(&seed, 4) > 0;
                free -= at_work;
            } else j->runnable = random_below(&seed, 3) > 0;
        }
        for (int i = 0; i < 3; i++) turn(jobs, n, ranks, team, heads);
        if (turn(jobs, n, ranks, team, heads))
            fail_msg("round %d: somebody is parked for the fourth time", round);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_that_fit),
        cmocka_unit_test(cases),
        cmocka_unit_test(it_settles),
    };
    return cmocka_run_group_tests_name("team", tests, NULL, NULL);
}
