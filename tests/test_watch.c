/* test_watch - who is blamed for silence, and when: by clocks that the test sets. */
#include "tests/t_jobs.h"

#define S 1000000000ll

/* Look for silence as if so many seconds had passed. */
static void watch(double s)
{
    sl_jobs_watch(t.d, sl_now_ns() + (int64_t)(s * 1e9));
}

static void begin_job(void)
{
    begin(ONE_EACH, "supervise: { quiet_s = 10; piece_s = 1000; };");
    submit(1, 9, "a");
    sl_jobs_schedule(t.d);
}

/* Until the frames are made. */
static void begin_frames(void)
{
    begin_job();
    give(TEXT, 1);
    give(IMAGE, 1);
    taken(DENOISE, 1);
    give(DENOISE, 1);
    t.kills = 0;
}

static void killed(int seat, const char *why)
{
    if (t.kills != 1 || t.killed != seat)
        fail_msg("%d seats were killed, the last %d; want seat %d alone", t.kills, t.killed, seat);
    T_SAYS(t.why, why);
    t.kills = 0;
}

/* ---- one seat ---- */

static void silence_is_told_then_ended(void **state)
{
    (void)state;
    begin_job();
    give(IMAGE, 1);
    watch(9);
    watch(19);
    assert_int_equal(t.kills, 0);
    watch(20.5);
    killed(TEXT, "neither computed nor said anything of job a for 20 s (last: nothing)");
    watch(25); /* its end is waited for */
    assert_int_equal(t.kills, 0);
    dies(TEXT);
    assert_null(next(-1, SL_MSG_FINISHED));
    announce(TEXT);
    sl_jobs_schedule(t.d);
    assert_int_equal(jobs_sent(TEXT), 2);
    watch(20.5);
    killed(TEXT, "neither computed");
    dies(TEXT);
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_TIMEOUT);
    T_SAYS(s->m.finished.message,
           "text neither computed nor said anything of job a for 20 s (last: "
           "nothing), 2 times without the job getting further: giving up");
    end();
}

static void who_computes_is_let_be(void **state)
{
    (void)state;
    begin_job();
    give(IMAGE, 1);
    t.worked_ns[TEXT] = sl_now_ns() + 900 * S;
    watch(910);
    watch(919);
    assert_int_equal(t.kills, 0);
    watch(921); /* 20 s after it was last seen to */
    killed(TEXT, "neither computed nor said anything of job a for 2");
    end();
    begin_job();
    give(IMAGE, 1);
    t.worked_ns[TEXT] = sl_now_ns() + 2000 * S;
    watch(999);
    assert_int_equal(t.kills, 0);
    watch(1001); /* supervise.piece_s */
    killed(TEXT, "said nothing of job a for 1001 s");
    end();
}

/* Time in which nothing ran is nobody's. */
static void a_pause_counts_for_nothing(void **state)
{
    (void)state;
    begin_job();
    give(IMAGE, 1);
    sl_jobs_skip(t.d, 100 * S);
    watch(119);
    assert_int_equal(t.kills, 0);
    watch(121);
    killed(TEXT, "neither computed");
    end();
}

/* ---- a crew ---- */

static void who_has_a_chunk_is_to_blame(void **state)
{
    (void)state;
    begin_frames();
    watch(21); /* nothing was sent: the decode's fault */
    killed(DECODE, "(last: nothing)");
    end();

    begin_frames();
    chunk(DECODE, 1, 0, 3);
    progress(MUX, 1, 1);
    chunk(DECODE, 1, 1, 3);
    watch(21); /* mux says something of every chunk, and has one */
    killed(MUX, "(last: PROGRESS)");
    end();

    begin_frames();
    chunk(DECODE, 1, 0, 3);
    progress(MUX, 1, 1);
    watch(21); /* mux waits for one */
    killed(DECODE, "(last: CHUNK)");
    end();

    begin_frames();
    chunk(DECODE, 1, 0, 3);
    watch(21); /* mux may be one that says nothing of chunks, and has free slots */
    killed(DECODE, "(last: CHUNK)");
    end();
}

static void chunks_are_counted(void **state)
{
    (void)state;
    begin_frames();
    chunk(DECODE, 1, 0, 3);
    chunk(DECODE, 1, 2, 3);
    killed(DECODE, "sent chunk 2 of 3 (the first is 0), want chunk 1");
    end();
    begin_frames();
    chunk(DECODE, 1, 0, 2);
    chunk(DECODE, 1, 1, 2);
    chunk(DECODE, 1, 2, 2);
    killed(DECODE, "sent chunk 2 of 2 (the first is 0), want chunk 2");
    end();
}

/* ---- ends ---- */

/* A step's length and some seconds are given to answer CANCEL. */
static void a_cancel_is_answered_or_ends_the_process(void **state)
{
    (void)state;
    begin_job();
    give(IMAGE, 1);
    sl_jobs_cancel(t.d, 1, 9);
    want(TEXT, SL_MSG_CANCEL);
    watch(4.5);
    assert_int_equal(t.kills, 0);
    watch(5.5);
    killed(TEXT, "did not answer CANCEL for 5 s");
    dies(TEXT);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_CANCELLED);
    end();
}

static void a_file_is_not_waited_for_in_vain(void **state)
{
    (void)state;
    begin_job();
    give(IMAGE, 1);
    done(TEXT, 1); /* a slot, and never SPOOLED */
    taken(DENOISE, 1);
    give(DENOISE, 1);
    done(DECODE, 1);
    done(MUX, 1);
    assert_null(next(-1, SL_MSG_FINISHED));
    watch(19);
    sl_jobs_schedule(t.d);
    assert_null(next(-1, SL_MSG_FINISHED));
    watch(21);
    sl_jobs_schedule(t.d);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
    assert_int_equal(t.kills, 0);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silence_is_told_then_ended),
        cmocka_unit_test(who_computes_is_let_be),
        cmocka_unit_test(a_pause_counts_for_nothing),
        cmocka_unit_test(who_has_a_chunk_is_to_blame),
        cmocka_unit_test(chunks_are_counted),
        cmocka_unit_test(a_cancel_is_answered_or_ends_the_process),
        cmocka_unit_test(a_file_is_not_waited_for_in_vain),
    };
    return cmocka_run_group_tests_name("watch", tests, NULL, NULL);
}
