/* test_jobs - what the dispatcher does next: crews, credits, instances, falls, clients. */
#include "tests/t_jobs.h"

/* ---- one job ---- */

static void a_job_goes_from_crew_to_crew(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(44, 9, "a");
    const said *s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 9);
    assert_int_equal(s->m.accepted.tag, 44);
    assert_int_equal(s->m.accepted.job, 1);
    sl_jobs_schedule(t.d);
    sl_msg_job text = job_at(TEXT, 1), image = job_at(IMAGE, 1);
    assert_int_equal(text.in.count, 0);
    by_slot(&text.to, SL_HANDOVER_TEXT, DENOISE);
    by_slot(&image.to, SL_HANDOVER_IMAGE, DENOISE);
    done(TEXT, 1);
    assert_int_equal(jobs_sent(DENOISE), 0);
    done(IMAGE, 1);
    sl_msg_job denoise = job_at(DENOISE, 1);
    by_slot(&denoise.in, SL_HANDOVER_TEXT, DENOISE);
    by_slot(&denoise.in, SL_HANDOVER_IMAGE, DENOISE);
    by_slot(&denoise.to, SL_HANDOVER_LATENTS, DECODE);
    spooled(TEXT, 1, SL_OK);
    spooled(IMAGE, 1, SL_OK);
    give(DENOISE, 1);
    t.read = 0;
    const said *mux = want(MUX, SL_MSG_JOB), *decode = want(DECODE, SL_MSG_JOB);
    assert_int_equal(mux->m.job.in.count, 0); /* chunks come by CHUNK */
    assert_int_equal(mux->m.job.attempt, decode->m.job.attempt);
    by_slot(&decode->m.job.in, SL_HANDOVER_LATENTS, DECODE);
    by_slot(&decode->m.job.to, SL_HANDOVER_FRAMES, MUX);
    done(DECODE, 1);
    want(MUX, SL_MSG_CHUNK);
    assert_null(next(-1, SL_MSG_FINISHED));
    done(MUX, 1);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 9);
    assert_int_equal(s->m.finished.tag, 44);
    assert_int_equal(s->m.finished.job, 1);
    assert_int_equal(s->m.finished.code, SL_OK);
    assert_int_equal(s->m.finished.bytes, 7);
    assert_int_equal(sl_jobs_count(t.d), 0);
    end();
}

/* ---- weights ---- */

static void submit_with(uint64_t tag, const char *name, const char *lora)
{
    submitted_lora = lora;
    submit(tag, 1, name);
    submitted_lora = "";
}

/* The job of the newest JOB that the seat got; 0: it got none. */
static uint64_t newest(int seat)
{
    for (int i = t.count - 1; i >= 0; i--)
        if (t.log[i].seat == seat && t.log[i].m.type == SL_MSG_JOB) return t.log[i].m.job.job;
    return 0;
}

/* Text and picture stages do what they are told, until there is nothing more. */
static void make_inputs(int made[2])
{
    for (bool more = true; more;) {
        more = false;
        for (int seat = TEXT; seat <= IMAGE; seat++)
            while (jobs_sent(seat) > made[seat]) {
                made[seat]++;
                spooled(seat, newest(seat), SL_OK);
                done(seat, newest(seat));
                more = true;
            }
    }
}

/* Jobs that want the weights that are there go first, but the oldest is not kept waiting for more
 * than SL_ORDER_OVERTAKEN of them. */
static void jobs_of_one_lora_follow_each_other(void **state)
{
    static const char *const LORA[] = {"", "1 a x", "", "", "1 a x", "", "", "", "1 b x"};
    /* the two with `a` come together: the fifth is the second's neighbour in weights */
    static const int WANT[] = {1, 3, 4, 6, 7, 2, 5, 8, 9};
    char name[2] = "a";
    int made[2] = {0};
    (void)state;
    begin("{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; slots = 16; }, "
          "{ name = \"decode\"; slots = 16; }, { name = \"mux\"; }",
          "");
    for (uint64_t i = 1; i <= 9; i++, name[0]++) submit_with(i, name, LORA[i - 1]);
    sl_jobs_schedule(t.d);
    make_inputs(made);
    for (int i = 0; i < 9; i++) {
        if (newest(DENOISE) != (uint64_t)WANT[i])
            fail_msg("turn %d is job %d's, want %d's", i, (int)newest(DENOISE), WANT[i]);
        taken(DENOISE, (uint64_t)WANT[i]);
        give(DENOISE, (uint64_t)WANT[i]);
    }
    end();
}

/* A stage that was started again has the checkpoint's weights. */
static void a_restart_forgets_the_weights(void **state)
{
    int made[2] = {0};
    (void)state;
    begin(ONE_EACH, "");
    submit_with(1, "a", "1 a x");
    submit_with(2, "b", "");
    submit_with(3, "c", "1 a x");
    sl_jobs_schedule(t.d);
    make_inputs(made);
    assert_int_equal(newest(DENOISE), 1);
    taken(DENOISE, 1);
    make_inputs(made);
    give(DENOISE, 1);
    assert_int_equal(newest(DENOISE), 3); /* the weights are there */
    taken(DENOISE, 3);
    dies(DENOISE);
    announce(DENOISE);
    sl_jobs_schedule(t.d);
    assert_int_equal(newest(DENOISE), 2); /* it needs no switch now */
    end();
}

/* Two denoisers: each goes on with its weights. */
static void instances_keep_their_weights(void **state)
{
    int made[2] = {0};
    (void)state;
    begin("{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; slots = 16; team = "
          "1; }, "
          "{ name = \"decode\"; slots = 16; }, { name = \"mux\"; }, "
          "{ name = \"denoise\"; slots = 16; team = 1; }",
          "");
    submit_with(1, "a", "1 a x");
    submit_with(2, "b", "");
    submit_with(3, "c", "");
    submit_with(4, "d", "1 a x");
    sl_jobs_schedule(t.d);
    make_inputs(made);
    const int with = newest(DENOISE) == 1 ? DENOISE : DENOISE_B,
              without = DENOISE + DENOISE_B - with;
    assert_int_equal(newest(with), 1);
    assert_int_equal(newest(without), 2);
    taken(with, 1);
    taken(without, 2);
    make_inputs(made);
    give(with, 1);
    assert_int_equal(newest(with), 4);
    give(without, 2);
    assert_int_equal(newest(without), 3);
    end();
}

/* ---- credits ---- */

/* The only text slot is held by job 2, which waits for a picture; the only image slot by
 * job 1, which waits for a text. Neither lies in a file. Job 1 is the oldest. */
static void the_oldest_never_waits_for_a_credit(void **state)
{
    (void)state;
    begin("{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; slots = 1; }, "
          "{ name = \"decode\"; }, { name = \"mux\"; }",
          "");
    submit(1, 1, "a");
    submit(2, 1, "b");
    sl_jobs_schedule(t.d);
    spooled(TEXT, 1, SL_SYS); /* the disk is full */
    done(TEXT, 1);
    assert_int_equal(jobs_sent(TEXT), 1); /* job 2's would have no slot */
    spooled(IMAGE, 1, SL_SYS);
    done(IMAGE, 1);
    assert_int_equal(jobs_sent(TEXT), 1); /* the slot is read */
    dies(IMAGE);
    taken(DENOISE, 1);
    spooled(TEXT, 2, SL_SYS);
    done(TEXT, 2);
    failed(DENOISE, 1, SL_BUSY); /* and its inputs are nowhere any more */
    sl_msg_job again = job_at(TEXT, 1);
    by_file(&again.to, SL_HANDOVER_TEXT);
    announce(IMAGE);
    sl_jobs_schedule(t.d);
    gives_to(IMAGE, 1, SL_HANDOVER_IMAGE, DENOISE);
    done(IMAGE, 1);
    assert_int_equal(jobs_sent(IMAGE), 2); /* job 2's waits for the slot */
    give(TEXT, 1);
    sl_msg_job denoise = job_at(DENOISE, 1);
    by_file(&denoise.in, SL_HANDOVER_TEXT);
    by_slot(&denoise.in, SL_HANDOVER_IMAGE, DENOISE);
    taken(DENOISE, 1);
    done(IMAGE, 2);
    give(DENOISE, 1);
    takes_slot(DENOISE, 2, SL_HANDOVER_TEXT);
    end();
}

/* As many run ahead as there are slots; a slot is free once what lay there was taken. */
static void others_wait_for_a_credit(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    for (uint64_t i = 1; i <= 5; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
    give(TEXT, 1);
    give(IMAGE, 1);
    give(TEXT, 2);
    assert_int_equal(jobs_sent(TEXT), 2); /* 1 is read, 2 lies */
    taken(DENOISE, 1);
    assert_int_equal(jobs_sent(TEXT), 3);
    give(TEXT, 3);
    assert_int_equal(jobs_sent(TEXT), 3); /* 2 and 3 lie */
    give(IMAGE, 2);
    give(DENOISE, 1);
    assert_int_equal(jobs_sent(TEXT), 3);
    progress(DENOISE, 2, 1); /* a step tells as much as TAKEN */
    assert_int_equal(jobs_sent(TEXT), 4);
    end();
}

/* ---- instances ---- */

#define TWO_DENOISERS                                                                              \
    "{ name = \"text\"; }, { name = \"image\"; }, { name = \"denoise\"; team = 1; }, { name = "    \
    "\"decode\"; }, { name = \"mux\"; }, { name = \"denoise\"; team = 1; }"

static void two_denoisers_work_on_two_jobs(void **state)
{
    (void)state;
    begin(TWO_DENOISERS, "");
    for (uint64_t i = 1; i <= 3; i++) submit(i, 1, (char[]){(char)('a' + i), 0});
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1); /* for the first */
    takes_slot(DENOISE, 1, SL_HANDOVER_TEXT);
    give(TEXT, 2), give(IMAGE, 2); /* for the other, which has nothing to do */
    sl_msg_job b = job_at(DENOISE_B, 2);
    by_slot(&b.in, SL_HANDOVER_TEXT, DENOISE_B);
    by_slot(&b.in, SL_HANDOVER_IMAGE, DENOISE_B);
    taken(DENOISE, 1), taken(DENOISE_B, 2);

    /* job 3 lies at the first, which is busy; the other is idle and takes the files */
    sl_ticket text = done(TEXT, 3), image = done(IMAGE, 3);
    assert_int_equal(text.pool, pool_of(DENOISE, SL_HANDOVER_TEXT));
    assert_int_equal(image.pool, pool_of(DENOISE, SL_HANDOVER_IMAGE)); /* with the text */
    give(DENOISE_B, 2);
    taken(DECODE, 2);
    assert_int_equal(jobs_sent(DENOISE_B), 1); /* nothing is in a file yet */
    spooled(TEXT, 3, SL_OK);
    assert_int_equal(jobs_sent(DENOISE_B), 1);
    t.read = t.count;
    spooled(IMAGE, 3, SL_OK);
    b = job_at(DENOISE_B, 3);
    by_file(&b.in, SL_HANDOVER_TEXT);
    by_file(&b.in, SL_HANDOVER_IMAGE);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, text.epoch);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, image.epoch);
    end();
}

/* One of two dies: its slots and its job are lost, the other's are not touched. */
static void the_other_instance_goes_on(void **state)
{
    (void)state;
    begin(TWO_DENOISERS, "");
    submit(1, 1, "a"), submit(2, 1, "b");
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1), give(TEXT, 2), give(IMAGE, 2);
    uint32_t first = job_at(DENOISE, 1).attempt;
    job_at(DENOISE_B, 2);
    t.read = t.count;
    dies(DENOISE_B);
    for (int i = t.read; i < t.count; i++)
        if (t.log[i].seat >= 0) assert_int_equal(t.log[i].m.type, SL_MSG_REAP);
    announce(DENOISE_B);
    sl_jobs_schedule(t.d);
    sl_msg_job again = job_at(DENOISE_B, 2);
    by_file(&again.in, SL_HANDOVER_TEXT);
    assert_int_equal(job_at(DENOISE, 1).attempt, first);
    assert_int_equal(jobs_sent(DENOISE), 1);
    end();
}

/* Two decoders and one mux are one crew at a time; a second mux makes two. */
static void crews_are_made_of_who_is_idle(void **state)
{
    (void)state;
    for (int muxes = 1; muxes <= 2; muxes++) {
        begin(muxes == 1 ? ONE_EACH ", { name = \"decode\"; }"
                         : ONE_EACH ", { name = \"decode\"; }, { name = \"mux\"; }",
              "");
        enum { DECODE_B = 5, MUX_B };
        submit(1, 1, "a"), submit(2, 1, "b");
        sl_jobs_schedule(t.d);
        for (uint64_t i = 1; i <= 2; i++)
            give(TEXT, i), give(IMAGE, i), taken(DENOISE, i), give(DENOISE, i);
        gives_to(DECODE, 1, SL_HANDOVER_FRAMES, MUX);
        assert_int_equal(jobs_sent(DECODE_B), muxes - 1);
        if (muxes == 2) gives_to(DECODE_B, 2, SL_HANDOVER_FRAMES, MUX_B);
        done(DECODE, 1);
        assert_int_equal(jobs_sent(DECODE_B) + jobs_sent(DECODE), muxes); /* mux is at work */
        done(MUX, 1);
        if (muxes == 1) job_at(MUX, 2);
        end();
    }
}

/* ---- falling ---- */

static void until_decoding(void)
{
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    give(TEXT, 1), give(IMAGE, 1), give(DENOISE, 1);
}

static void a_crew_falls_together(void **state)
{
    (void)state;
    begin(ONE_EACH, "supervise: { restarts = 1; };");
    until_decoding();
    uint32_t attempt = job_at(MUX, 1).attempt;
    t.read = t.count;
    dies(DECODE);
    assert_int_equal(want(MUX, SL_MSG_CANCEL)->m.cancel.attempt, attempt);
    announce(DECODE);
    sl_jobs_schedule(t.d);
    assert_int_equal(jobs_sent(DECODE), 1); /* mux has not stopped yet */
    failed(MUX, 1, SL_CANCELLED);
    sl_msg_job again = job_at(DECODE, 1);
    assert_true(again.attempt > attempt);
    assert_int_equal(job_at(MUX, 1).attempt, again.attempt);
    by_file(&again.in, SL_HANDOVER_LATENTS);

    /* both say that they could not go on: that is one failure, not two */
    progress(DECODE, 1, 1);
    failed(MUX, 1, SL_GONE);
    failed(DECODE, 1, SL_GONE);
    assert_int_equal(jobs_sent(DECODE), 3);
    failed(DECODE, 1, SL_GONE); /* without getting further: the second */
    failed(MUX, 1, SL_CANCELLED);
    const said *s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->m.finished.code, SL_SYS);
    assert_string_equal(s->m.finished.message, "decode ended 2 times on this job without getting "
                                               "further (last: why): giving up");
    end();
}

/* The video is there: whatever becomes of decode now. */
static void the_last_of_a_crew_decides(void **state)
{
    (void)state;
    begin(ONE_EACH, "supervise: { restarts = 0; };");
    until_decoding();
    done(MUX, 1);
    dies(DECODE);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
    end();
}

static void a_cancel_after_the_end_is_late(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    until_decoding();
    done(MUX, 1);
    sl_jobs_cancel(t.d, 1, 1);
    want(DECODE, SL_MSG_CANCEL);
    failed(DECODE, 1, SL_CANCELLED);
    assert_int_equal(want(-1, SL_MSG_FINISHED)->m.finished.code, SL_OK);
    end();
}

/* Tickets that wait are named before their maker's slots are freed. */
static void keep_comes_before_reap(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    sl_ticket ticket = done(TEXT, 1);
    t.read = t.count;
    dies(TEXT);
    assert_int_equal(want(DENOISE, SL_MSG_KEEP)->m.keep.ticket.epoch, ticket.epoch);
    assert_int_equal(want(DENOISE, SL_MSG_REAP)->m.reap.pid, 100 + TEXT);
    announce(TEXT);
    done(IMAGE, 1); /* the text lies there still */
    takes_slot(DENOISE, 1, SL_HANDOVER_TEXT);
    assert_int_equal(jobs_sent(TEXT), 1);
    end();
}

/* A result of an attempt given up lies in a slot that nobody will open. */
static void stale_tickets_are_discarded(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 1, "a");
    sl_jobs_schedule(t.d);
    sl_msg m = {.type = SL_MSG_DONE, .done = {.job = 1, .attempt = 77}};
    sl_ticket ticket = {.pool = pool_of(DENOISE, SL_HANDOVER_TEXT), .epoch = 5};
    sl_tickets_add(&m.done.out, SL_HANDOVER_TEXT, &ticket);
    say(TEXT, m);
    assert_int_equal(want(DENOISE, SL_MSG_DISCARD)->m.discard.ticket.epoch, 5);
    say(DECODE,
        (sl_msg){.type = SL_MSG_CHUNK,
                 .chunk = {.job = 1,
                           .attempt = 3,
                           .handover = SL_HANDOVER_FRAMES,
                           .slot = {.pool = pool_of(MUX, SL_HANDOVER_FRAMES), .epoch = 6}}});
    assert_int_equal(want(MUX, SL_MSG_DISCARD)->m.discard.ticket.epoch, 6);
    end();
}

/* ---- clients ---- */

static void clients_have_their_own_jobs(void **state)
{
    (void)state;
    begin(ONE_EACH, "");
    submit(1, 5, "a");
    submit(1, 6, "b");
    assert_int_equal(want(-1, SL_MSG_ACCEPTED)->m.accepted.job, 1);
    const said *s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 6);
    assert_int_equal(s->m.accepted.tag, 1);
    assert_int_equal(s->m.accepted.job, 2);
    sl_jobs_schedule(t.d);
    sl_jobs_cancel(t.d, 1, 6); /* not its own */
    sl_jobs_schedule(t.d);
    assert_null(next(TEXT, SL_MSG_CANCEL));

    /* another client asks for the folder: it is the same job, whose news it gets */
    submit(3, 7, "a");
    s = want(-1, SL_MSG_ACCEPTED);
    assert_int_equal(s->client, 7);
    assert_int_equal(s->m.accepted.job, 1);
    progress(TEXT, 1, 1);
    assert_int_equal(want(-1, SL_MSG_PROGRESS)->client, 7);
    sl_jobs_cancel(t.d, 1, 7);
    sl_jobs_drain(t.d, 6); /* job 2 has not begun */
    sl_jobs_schedule(t.d);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 6);
    assert_int_equal(s->m.finished.code, SL_CANCELLED);
    assert_string_equal(s->m.finished.message, "not run: draining");
    failed(TEXT, 1, SL_CANCELLED);
    failed(IMAGE, 1, SL_CANCELLED);
    s = want(-1, SL_MSG_FINISHED);
    assert_int_equal(s->client, 7);
    assert_int_equal(s->m.finished.tag, 3);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_goes_from_crew_to_crew),
        cmocka_unit_test(jobs_of_one_lora_follow_each_other),
        cmocka_unit_test(a_restart_forgets_the_weights),
        cmocka_unit_test(instances_keep_their_weights),
        cmocka_unit_test(the_oldest_never_waits_for_a_credit),
        cmocka_unit_test(others_wait_for_a_credit),
        cmocka_unit_test(two_denoisers_work_on_two_jobs),
        cmocka_unit_test(the_other_instance_goes_on),
        cmocka_unit_test(crews_are_made_of_who_is_idle),
        cmocka_unit_test(a_crew_falls_together),
        cmocka_unit_test(the_last_of_a_crew_decides),
        cmocka_unit_test(a_cancel_after_the_end_is_late),
        cmocka_unit_test(keep_comes_before_reap),
        cmocka_unit_test(stale_tickets_are_discarded),
        cmocka_unit_test(clients_have_their_own_jobs),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
