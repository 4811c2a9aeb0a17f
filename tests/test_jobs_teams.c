/* test_jobs_teams - what the dispatcher does next where several ranks work on one job: who leads,
 * how many they are, when they are parked, and what a member's end means. */
#include "tests/t_jobs.h"

/* ---- teams ---- */

/* Four ranks, as seats; the model has 2 heads. */
enum { R0 = 2, R1, R2, R3, DECODE_T, MUX_T };
#define RANKS(devices, team)                                                                       \
    "{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; devices = [" devices       \
    "]; team = " team "; }, { name = \"decode\"; }, { name = \"mux\"; }"
#define FOUR(team) RANKS("\"cpu\", \"cpu\", \"cpu\", \"cpu\"", team)

/* The jobs' text and picture are made and spooled, in order. */
static void give_inputs(uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) give(TEXT, i), give(IMAGE, i);
}

static void submit_some(uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
}

/* The newest attempt of the job is of these seats, in this order; returns it. */
static uint32_t team_is(uint64_t job, int n, const int seats[])
{
    sl_msg_job first = job_at(seats[0], job);
    for (int i = 0; i < n; i++) {
        sl_msg_job m = job_at(seats[i], job);
        assert_int_equal(m.attempt, first.attempt);
        assert_string_equal(m.dir, first.dir);
        assert_int_equal(m.team.size, n);
        assert_int_equal(m.team.me, i);
        assert_int_equal(m.team.key, first.team.key);
        for (int k = 0; k < SL_RANKS; k++)
            assert_int_equal(m.team.member[k], k < n ? seats[k] - R0 : 0);
        if (i) assert_int_equal(m.in.count + m.to.count, 0); /* they are the leader's */
    }
    assert_int_equal(first.in.count, 2);
    assert_int_equal(first.to.count, 1);
    return first.attempt;
}
#define TEAM_IS(job, ...)                                                                          \
    team_is(job, (int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), (int[]){__VA_ARGS__})

static void parked(int seat, uint64_t job)
{
    say(seat, (sl_msg){.type = SL_MSG_PARKED,
                       .parked = {.job = job, .attempt = job_at(seat, job).attempt, .step = 1}});
}

/* How many messages of this type the seat was sent since t.read. */
static int count_of(int seat, sl_msg_type type)
{
    int n = 0;
    for (int i = t.read; i < t.count; i++) n += t.log[i].seat == seat && t.log[i].m.type == type;
    return n;
}

static void four_at_one_job(void)
{
    begin(FOUR("\"auto\""), "supervise: { restarts = 1; };");
    submit_some(1, 1);
    give_inputs(1, 1);
    TEAM_IS(1, R0, R1, R2, R3);
    t.read = t.count;
}

/* R2 and R3 have begun to load with the two that are ready. */
static void two_load_yet(void)
{
    begin(FOUR("\"auto\""), "supervise: { restarts = 1; };");
    for (int r = R2; r <= R3; r++) {
        sl_jobs_on_death(t.d, r, 100 + r, "");
        sl_jobs_on_rank(t.d, r);
        sl_jobs_on_load(t.d, r);
    }
    t.read = t.count;
    submit_some(1, 1);
    give_inputs(1, 1);
    sl_jobs_schedule(t.d);
    for (int r = R0; r <= R3; r++) assert_int_equal(count_of(r, SL_MSG_JOB), 0);
}

/* A job does not begin with some of the ranks that load together, to be parked for the others. */
static void ranks_that_load_together_are_waited_for(void **state)
{
    (void)state;
    two_load_yet();
    sl_jobs_on_ready(t.d, R2, 200);
    sl_jobs_schedule(t.d);
    assert_int_equal(count_of(R0, SL_MSG_JOB), 0);
    sl_jobs_on_ready(t.d, R3, 201);
    sl_jobs_schedule(t.d);
    TEAM_IS(1, R0, R1, R2, R3);
    end();
    /* one that ends meanwhile is not waited for: when it comes again, it loads alone */
    two_load_yet();
    sl_jobs_on_death(t.d, R2, 102, "");
    sl_jobs_on_death(t.d, R3, 103, "");
    sl_jobs_schedule(t.d);
    TEAM_IS(1, R0, R1);
    end();
    /* nor for longer than 5 s */
    two_load_yet();
    sl_jobs_skip(t.d, -4000000000ll);
    sl_jobs_schedule(t.d);
    assert_int_equal(count_of(R0, SL_MSG_JOB), 0);
    sl_jobs_skip(t.d, -1000000000ll);
    sl_jobs_schedule(t.d);
    TEAM_IS(1, R0, R1);
    /* a job that runs goes on: it is not parked for what is not ready */
    sl_jobs_schedule(t.d);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0);
    end();
}

static void a_job_has_all_ranks(void **state)
{
    (void)state;
    four_at_one_job();
    uint32_t attempt = job_at(R0, 1).attempt, key = t.key;
    takes_slot(R0, 1, SL_HANDOVER_TEXT);
    gives_to(R0, 1, SL_HANDOVER_LATENTS, DECODE_T);
    say(R2, (sl_msg){.type = SL_MSG_SHARE, .share = {.job = 1, .attempt = attempt, .instance = 2}});
    assert_int_equal(want(-1, SL_MSG_SHARE)->m.share.instance, 2);
    memset(t.further, 0, sizeof t.further);
    progress(R0, 1, 1);
    for (int r = R0; r <= R3; r++) assert_int_equal(t.further[r], 1); /* all of them did */
    progress(R1, 1, 2);                                               /* not a mate's to say */
    assert_int_equal(t.further[R1], 1);
    done(R1, 1); /* a mate's is not the job's */
    done(R3, 1);
    assert_int_equal(jobs_sent(DECODE_T), 0);
    spooled(R0, 1, SL_OK);
    done(R0, 1);
    takes_slot(DECODE_T, 1, SL_HANDOVER_LATENTS);
    /* the next does not begin while a rank of the last is at work */
    submit_some(2, 2);
    give_inputs(2, 2);
    assert_int_equal(jobs_sent(R0), 1);
    done(R2, 1);
    TEAM_IS(2, R0, R1, R2, R3);
    assert_true(t.key > key);
    end();
}

static void the_leader_is_where_inputs_lie(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 2);
    give_inputs(1, 1);
    TEAM_IS(1, R0); /* the other's turn comes in a moment */
    assert_int_equal(jobs_sent(R1), 0);
    taken(R0, 1);
    done(TEXT, 2), done(IMAGE, 2); /* for the other; not in a file */
    TEAM_IS(2, R1);
    takes_slot(R1, 2, SL_HANDOVER_TEXT);
    end();
}

/* Only who is known to the others is in a team. */
static void a_rank_has_to_be_known(void **state)
{
    (void)state;
    begin(FOUR("\"auto\""), "");
    dies(R1);
    sl_jobs_on_ready(t.d, R1, 77);
    submit_some(1, 1);
    give_inputs(1, 1);
    TEAM_IS(1, R0, R2); /* three do not fit */
    end();
}

static void teams_of_a_fixed_size(void **state)
{
    (void)state;
    begin(FOUR("2"), "");
    submit_some(1, 3);
    give_inputs(1, 3);
    TEAM_IS(1, R0, R1);
    TEAM_IS(2, R2, R3);
    done(R0, 1);
    assert_int_equal(jobs_sent(R1), 1); /* job 3 waits for two */
    done(R1, 1);
    TEAM_IS(3, R0, R1);
    end();
}

/* As many as are there; when the other is back they are two again. */
static void a_fixed_team_goes_on_with_who_is_there(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "2"), "");
    submit_some(1, 2);
    give_inputs(1, 2);
    TEAM_IS(1, R0, R1);
    dies(R0);
    failed(R1, 1, SL_CANCELLED);
    TEAM_IS(1, R1);
    t.read = t.count;
    announce(R0);
    sl_jobs_schedule(t.d);
    want(R1, SL_MSG_PARK);
    parked(R1, 1);
    TEAM_IS(1, R0, R1);
    end();
}

/* Four jobs end at the same time, and decode has two slots. */
static void no_rank_waits_for_a_credit(void **state)
{
    (void)state;
    begin(FOUR("\"auto\""), "");
    submit_some(1, 4);
    give_inputs(1, 4);
    for (int r = R0; r <= R3; r++) {
        sl_msg_job m = job_at(r, (uint64_t)(r - R0) + 1);
        assert_int_equal(m.team.size, 1);
        if (r - R0 < 2) by_slot(&m.to, SL_HANDOVER_LATENTS, DECODE_T);
        else by_file(&m.to, SL_HANDOVER_LATENTS);
    }
    end();
}

/* ---- a team parts and joins ---- */

static void a_second_job_parts_the_team(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "supervise: { restarts = 0; };");
    submit_some(1, 1);
    give_inputs(1, 1);
    uint32_t attempt = TEAM_IS(1, R0, R1);
    progress_of(R0, 1, 2, 12);
    submit_some(2, 2);
    t.read = t.count;
    give(TEXT, 2); /* its picture is not there yet */
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0);
    give(IMAGE, 2);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 1);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    const said *s = want(R0, SL_MSG_PARK);
    assert_int_equal(s->m.park.job, 1);
    assert_int_equal(s->m.park.attempt, attempt);
    t.read = t.count;
    sl_jobs_schedule(t.d);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0); /* once */
    parked(R1, 1);
    assert_int_equal(jobs_sent(R1), 1); /* the other may still write to it */
    int64_t before = sl_now_ns();
    t.read = t.count;
    parked(R0, 1);
    assert_true(TEAM_IS(1, R0) > attempt);
    TEAM_IS(2, R1);
    sl_msg_job again = job_at(R0, 1);
    by_file(&again.in, SL_HANDOVER_TEXT);
    do s = want(-1, SL_MSG_SPAN);
    while (s->m.span.job != 1);
    assert_int_equal(s->m.span.kind, SL_SPAN_QUEUE); /* since it was parked, not since ever */
    assert_true(s->m.span.t0_ns >= before);

    /* the first is done: the other has both, unless it is nearly done too */
    progress_of(R1, 2, 10, 12);
    t.read = t.count;
    give(R0, 1);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 0);
    progress_of(R1, 2, 9, 12);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    parked(R1, 2);
    TEAM_IS(2, R0, R1);
    end();
}

/* What it began from would have to be made again. */
static void no_job_is_parked_before_its_inputs_are_spooled(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 1);
    done(TEXT, 1), give(IMAGE, 1);
    TEAM_IS(1, R0, R1);
    submit_some(2, 2);
    sl_msg late = {.type = SL_MSG_SPOOLED, .spooled = {.job = 1, .attempt = 1, .name = "text"}};
    done(TEXT, 2), done(IMAGE, 2);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 0);
    say(TEXT, late);
    assert_int_equal(count_of(R0, SL_MSG_PARK), 1);
    end();
}

/* PARK came after the last step. */
static void a_parked_team_may_be_done(void **state)
{
    (void)state;
    begin(RANKS("\"cpu\", \"cpu\"", "\"auto\""), "");
    submit_some(1, 1);
    give_inputs(1, 1);
    submit_some(2, 2);
    give_inputs(2, 2);
    assert_int_equal(count_of(R1, SL_MSG_PARK), 1);
    give(R0, 1);
    done(R1, 1);
    takes_slot(R2, 1, SL_HANDOVER_LATENTS); /* no rank here, but decode */
    TEAM_IS(2, R0, R1);
    end();
}

/* ---- ranks die ---- */

static void a_team_falls_together(void **state)
{
    (void)state;
    for (int dead = R0; dead <= R1; dead++) { /* the leader, a mate */
        int other = dead == R0 ? R1 : R0;
        four_at_one_job();
        uint32_t attempt = job_at(R0, 1).attempt;
        for (int r = R0; r <= R3; r++) assert_false(sl_jobs_waits_for(t.d, r));
        failed(R2, 1, SL_GONE); /* sees it first: that is one loss, not two */
        for (int r = R0; r <= R3; r++) assert_int_equal(count_of(r, SL_MSG_CANCEL), r != R2);
        assert_int_equal(want(other, SL_MSG_CANCEL)->m.cancel.attempt, attempt);
        for (int r = R0; r <= R3; r++) assert_int_equal(sl_jobs_waits_for(t.d, r), r != R2);
        assert_false(sl_jobs_waits_for(t.d, DECODE_T));
        dies(dead);
        failed(other, 1, SL_CANCELLED);
        assert_int_equal(jobs_sent(other), 1); /* R3 may still write to it */
        failed(R3, 1, SL_CANCELLED);
        int team[] = {other, R2};
        assert_true(team_is(1, 2, team) > attempt); /* three do not fit */
        sl_msg_job again = job_at(other, 1);
        by_file(&again.in, SL_HANDOVER_TEXT);
        assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0);
        /* it is back, and there are four again */
        t.read = t.count;
        announce(dead);
        sl_jobs_schedule(t.d);
        assert_int_equal(count_of(other, SL_MSG_PARK), 1);
        parked(other, 1);
        parked(R2, 1);
        TEAM_IS(1, R0, R1, R2, R3);
        end();
    }
}

/* Twice without getting further, of restarts = 1. */
static void falls_are_counted_once(void **state)
{
    (void)state;
    four_at_one_job();
    for (int i = 0; i < 2; i++) {
        failed(R1, 1, SL_TIMEOUT);
        for (int r = R0; r <= R3; r++)
            if (r != R1) failed(r, 1, r == R0 ? SL_CANCELLED : SL_GONE);
        assert_int_equal(jobs_sent(R0), 2);
    }
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_SYS);
    T_SAYS(s->m.finished.message, "ended 2 times on this job without getting further");
    end();
}

/* A rank whose device failed says so and ends. */
static void a_device_that_fails_is_no_reason_to_end_the_job(void **state)
{
    (void)state;
    four_at_one_job();
    failed(R2, 1, SL_CUDA);
    for (int r = R0; r <= R3; r++)
        if (r != R2) failed(r, 1, SL_CANCELLED);
    TEAM_IS(1, R0, R1);
    dies(R2); /* which was not at work any more */
    assert_int_equal(count_of(R0, SL_MSG_CANCEL), 1);
    end();
}

/* Whatever else it is, is the job's. */
static void an_error_of_a_mate_ends_the_job(void **state)
{
    (void)state;
    four_at_one_job();
    failed(R3, 1, SL_NUMERIC);
    assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0); /* others are at work */
    for (int r = R0; r <= R2; r++) failed(r, 1, SL_CANCELLED);
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_NUMERIC);
    assert_string_equal(s->m.finished.message, "denoise: why");
    end();
}

/* The leader is through: the job does not fall with a mate. */
static void the_leader_decides(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        four_at_one_job();
        give(R0, 1);
        done(R3, 1);
        takes_slot(DECODE_T, 1, SL_HANDOVER_LATENTS);
        assert_true(sl_jobs_waits_for(t.d, R1)); /* it may have been stopped */
        assert_true(sl_jobs_waits_for(t.d, R2));
        if (how == 0) dies(R1);
        else failed(R1, 1, how == 1 ? SL_GONE : SL_NUMERIC);
        want(R2, SL_MSG_CANCEL);
        assert_false(sl_jobs_waits_for(t.d, R1));
        failed(R2, 1, SL_CANCELLED);
        assert_int_equal(jobs_sent(R0), 1);
        taken(DECODE_T, 1);
        done(DECODE_T, 1);
        done(MUX_T, 1);
        assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
        end();
    }
}

static void all_ranks_hear_of_a_cancel(void **state)
{
    (void)state;
    four_at_one_job();
    sl_jobs_cancel(t.d, 1, 1);
    for (int r = R0; r <= R3; r++) {
        assert_int_equal(count_of(r, SL_MSG_CANCEL), 1);
        assert_true(sl_jobs_waits_for(t.d, r)); /* one may be stopped */
    }
    for (int r = R0; r <= R3; r++) {
        assert_int_equal(count_of(-1, SL_MSG_FINISHED), 0);
        if (r == R1) dies(r);
        else failed(r, 1, SL_CANCELLED);
    }
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_CANCELLED);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_that_load_together_are_waited_for),
        cmocka_unit_test(a_job_has_all_ranks),
        cmocka_unit_test(the_leader_is_where_inputs_lie),
        cmocka_unit_test(a_rank_has_to_be_known),
        cmocka_unit_test(teams_of_a_fixed_size),
        cmocka_unit_test(a_fixed_team_goes_on_with_who_is_there),
        cmocka_unit_test(no_rank_waits_for_a_credit),
        cmocka_unit_test(a_second_job_parts_the_team),
        cmocka_unit_test(no_job_is_parked_before_its_inputs_are_spooled),
        cmocka_unit_test(a_parked_team_may_be_done),
        cmocka_unit_test(a_team_falls_together),
        cmocka_unit_test(falls_are_counted_once),
        cmocka_unit_test(a_device_that_fails_is_no_reason_to_end_the_job),
        cmocka_unit_test(an_error_of_a_mate_ends_the_job),
        cmocka_unit_test(the_leader_decides),
        cmocka_unit_test(all_ranks_hear_of_a_cancel),
    };
    return cmocka_run_group_tests_name("jobs of teams", tests, NULL, NULL);
}
