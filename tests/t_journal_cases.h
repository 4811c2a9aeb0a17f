/* t_journal_cases.h - what every body of the server's queue must do: every function and refusal,
 * the order of claims, lists, ages. A test program says which body (`body`) and runs
 * JOURNAL_CASES. */
#ifndef T_JOURNAL_CASES_H
#define T_JOURNAL_CASES_H

#include "tests/t_journal.h"

/* ---- a job's life ---- */

static void test_life(void **state)
{
    sl_journal_job job = named("a", "ann", -3), got;
    char same[SL_JOURNAL_ID] = "x";
    (void)state;
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    assert_string_equal(same, "");
    T_OK(sl_journal_get(j, "a", "ann", &got, &err));
    assert_string_equal(got.id, "a");
    assert_string_equal(got.owner, "ann");
    assert_string_equal(got.request, job.request);
    assert_string_equal(got.message, "");
    assert_int_equal(got.state, SL_JOURNAL_QUEUED);
    assert_int_equal(got.priority, -3);
    assert_int_equal(got.created_s, 1000);
    assert_true(!got.started_s && !got.ended_s && got.progress == 0 && !got.cancel_asked);
    assert_true(!got.attempts && got.code == SL_OK && !got.bytes);
    sl_journal_job_free(&got);
    assert_null(got.request);

    T_OK(sl_journal_claim(j, 2000, &got, &err));
    assert_string_equal(got.request, job.request);
    assert_int_equal(got.state, SL_JOURNAL_RUNNING);
    assert_int_equal(got.started_s, 2000);
    assert_int_equal(got.attempts, 1);
    sl_journal_job_free(&got);

    T_OK(sl_journal_progress(j, "a", 0.5, &err));
    T_OK(sl_journal_progress(j, "a", 0.25, &err)); /* never falls */
    T_OK(sl_journal_release(j, "a", &err));
    T_OK(sl_journal_progress(j, "a", 0.75, &err)); /* does not run */
    T_OK(sl_journal_claim(j, 2500, &got, &err));
    assert_int_equal(got.started_s, 2000); /* the first claim */
    assert_int_equal(got.attempts, 2);
    assert_true(got.progress == 0.5);
    sl_journal_job_free(&got);

    T_OK(sl_journal_finish(j, "a", SL_JOURNAL_FAILED, SL_CUDA, "no device", 77, 3000, &err));
    reopen();
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_int_equal(got.state, SL_JOURNAL_FAILED);
    assert_int_equal(got.code, SL_CUDA);
    assert_string_equal(got.message, "no device");
    assert_int_equal(got.ended_s, 3000);
    assert_int_equal(got.bytes, 77);
    assert_true(got.progress == 0.5);
    sl_journal_job_free(&got);

    T_OK(sl_journal_remove(j, "a", "ann", 4000, &err));
    T_OK(sl_journal_remove(j, "a", "ann", 4000, &err)); /* said twice */
    T_CODE(sl_journal_get(j, "a", "ann", &got, &err), SL_GONE);
    assert_string_equal(err.msg, "no job a");
    assert_int_equal(body->text_bytes("a"), 0);
}

static void test_completed(void **state)
{
    sl_journal_job got;
    (void)state;
    ended("a", 5, 3000);
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_true(got.state == SL_JOURNAL_COMPLETED && got.code == SL_OK && got.progress == 1);
    sl_journal_job_free(&got);
}

/* A job ends once, and only where it can. */
static void test_ends_once(void **state)
{
    static const sl_journal_state ENDS[] = {SL_JOURNAL_COMPLETED, SL_JOURNAL_FAILED,
                                            SL_JOURNAL_CANCELLED};
    sl_journal_state before;
    (void)state;
    for (int i = 0; i < 3; i++) {
        const char *id = (const char *[]){"a", "b", "c"}[i];
        submit(id, "", 0);
        T_CODE(sl_journal_finish(j, id, ENDS[i], SL_OK, "", 0, 1, &err), SL_GONE);
        T_SAYS(err.msg, " is queued, want running");
        T_CODE(sl_journal_release(j, id, &err), SL_GONE);
        claims(id);
        finish(id, ENDS[i], 0, 3000);
        for (int k = 0; k < 3; k++)
            T_CODE(sl_journal_finish(j, id, ENDS[k], SL_OK, "", 0, 1, &err), SL_GONE);
        T_CODE(sl_journal_release(j, id, &err), SL_GONE);
        T_SAYS(err.msg, sl_journal_state_name(ENDS[i]));
        T_OK(sl_journal_cancel(j, id, NULL, 9, &before, &err));
        assert_int_equal(before, ENDS[i]);
        T_OK(sl_journal_progress(j, id, 0.9, &err));
        has_state(id, ENDS[i]);
    }
    T_CODE(sl_journal_finish(j, "a", SL_JOURNAL_REMOVED, SL_OK, "", 0, 1, &err), SL_ARG);
    assert_string_equal(err.msg, "an end is \"removed\", want completed, failed or cancelled");
    T_CODE(sl_journal_finish(j, "a", SL_JOURNAL_FAILED, SL_CODE_COUNT, "", 0, 1, &err), SL_ARG);
    T_CODE(sl_journal_finish(j, "a", SL_JOURNAL_FAILED, SL_SYS, "", UINT64_MAX, 1, &err), SL_ARG);
    T_CODE(sl_journal_finish(j, "zz", SL_JOURNAL_FAILED, SL_SYS, "", 0, 1, &err), SL_GONE);
    assert_string_equal(err.msg, "no job zz");
}

static void test_cancel(void **state)
{
    sl_journal_job got;
    sl_journal_state before;
    (void)state;
    submit("q", "ann", 0);
    T_CODE(sl_journal_cancel(j, "q", "bob", 3000, &before, &err), SL_GONE);
    T_OK(sl_journal_cancel(j, "q", "ann", 3000, &before, &err));
    assert_int_equal(before, SL_JOURNAL_QUEUED);
    T_OK(sl_journal_get(j, "q", NULL, &got, &err));
    assert_true(got.state == SL_JOURNAL_CANCELLED && got.code == SL_CANCELLED);
    assert_true(got.ended_s == 3000 && *got.message && !got.started_s);
    sl_journal_job_free(&got);

    submit("r", "ann", 0);
    claims("r");
    for (int i = 0; i < 2; i++) {
        T_OK(sl_journal_cancel(j, "r", NULL, 3000, &before, &err));
        assert_int_equal(before, SL_JOURNAL_RUNNING);
        T_OK(sl_journal_get(j, "r", NULL, &got, &err));
        assert_true(got.state == SL_JOURNAL_RUNNING && got.cancel_asked);
        sl_journal_job_free(&got);
    }
    T_OK(sl_journal_release(j, "r", &err)); /* the question is not lost with the process */
    T_OK(sl_journal_claim(j, 2000, &got, &err));
    assert_true(got.cancel_asked);
    sl_journal_job_free(&got);
    finish("r", SL_JOURNAL_CANCELLED, 0, 3000);
    T_OK(sl_journal_remove(j, "r", NULL, 3000, &err));
    T_CODE(sl_journal_cancel(j, "r", NULL, 3000, &before, &err), SL_GONE);
    T_CODE(sl_journal_cancel(j, "", NULL, 3000, &before, &err), SL_GONE);
}

static void test_remove(void **state)
{
    sl_journal_state before;
    (void)state;
    submit("a", "ann", 0);
    T_CODE(sl_journal_remove(j, "a", "ann", 1, &err), SL_BUSY);
    assert_string_equal(err.msg, "job a is queued, want it ended: cancel it first");
    claims("a");
    T_CODE(sl_journal_remove(j, "a", NULL, 1, &err), SL_BUSY);
    T_CODE(sl_journal_remove(j, "a", "bob", 1, &err), SL_GONE);
    T_CODE(sl_journal_remove(j, "b", "ann", 1, &err), SL_GONE);
    finish("a", SL_JOURNAL_COMPLETED, 0, 1);
    assert_true(sl_journal_knows(j, "a"));
    T_OK(sl_journal_remove(j, "a", NULL, 1, &err));
    assert_false(sl_journal_knows(j, "a"));
    T_CODE(sl_journal_remove(j, "a", "bob", 1, &err), SL_GONE);
    T_CODE(sl_journal_cancel(j, "a", "ann", 1, &before, &err), SL_GONE);
}

/* Ids that no job can have, or has, and owners that have not this one. */
static void test_gone(void **state)
{
    static const char *const IDS[] = {"",
                                      "b",
                                      ".",
                                      "..",
                                      "../a",
                                      "a/b",
                                      "a b",
                                      "a\n",
                                      "'; DROP TABLE jobs; --",
                                      "%",
                                      "\xff\xfe",
                                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    sl_journal_job got;
    sl_journal_state before;
    (void)state;
    submit("a", "ann", 0);
    for (size_t i = 0; i < sizeof IDS / sizeof *IDS; i++) {
        T_CODE(sl_journal_get(j, IDS[i], NULL, &got, &err), SL_GONE);
        assert_null(strpbrk(err.msg, "\n\xff"));
        assert_null(got.request);
        T_CODE(sl_journal_cancel(j, IDS[i], NULL, 1, &before, &err), SL_GONE);
        T_CODE(sl_journal_remove(j, IDS[i], NULL, 1, &err), SL_GONE);
        T_CODE(sl_journal_release(j, IDS[i], &err), SL_GONE);
        T_OK(sl_journal_progress(j, IDS[i], 0.5, &err));
        assert_int_equal(sl_journal_position(j, IDS[i]), -1);
        assert_false(sl_journal_knows(j, IDS[i]));
    }
    T_CODE(sl_journal_get(j, "a", "bob", &got, &err), SL_GONE);
    T_CODE(sl_journal_get(j, "a", "", &got, &err), SL_GONE);
    T_CODE(sl_journal_progress(j, "a", NAN, &err), SL_ARG);
    T_CODE(sl_journal_progress(j, "a", -1, &err), SL_ARG);
    claims("a");
    T_OK(sl_journal_progress(j, "a", 1e9, &err));
    T_OK(sl_journal_get(j, "a", "ann", &got, &err));
    assert_true(got.progress == 1);
    sl_journal_job_free(&got);
    T_CODE(sl_journal_claim(j, 1, &got, &err), SL_BUSY);
    assert_string_equal(err.msg, "no job is queued");
    assert_string_equal(sl_journal_state_name(SL_JOURNAL_RUNNING), "running");
    assert_string_equal(sl_journal_state_name((sl_journal_state)-1), "?");
}

static void test_long_message(void **state)
{
    char message[2 * SL_JOURNAL_TEXT] = "";
    sl_journal_job got;
    (void)state;
    submit("a", "", 0);
    claims("a");
    memset(message, 'x', SL_JOURNAL_TEXT - 3);
    strcpy(message + SL_JOURNAL_TEXT - 3, "\xe6\xb9\x96\xe6\xb9\x96");
    T_OK(sl_journal_finish(j, "a", SL_JOURNAL_FAILED, SL_SYS, message, 0, 1, &err));
    T_OK(sl_journal_get(j, "a", NULL, &got, &err));
    assert_int_equal(strlen(got.message), SL_JOURNAL_TEXT - 3); /* no half a character */
    sl_journal_job_free(&got);
    submit("b", "", 0);
    claims("b");
    T_OK(sl_journal_finish(j, "b", SL_JOURNAL_FAILED, SL_SYS, NULL, 0, 1, &err));
}

/* ---- submit ---- */

static void test_submit_refused(void **state)
{
    char same[SL_JOURNAL_ID], key[SL_JOURNAL_KEY + 1] = "", *big = malloc(SL_JOURNAL_REQUEST + 1);
    sl_journal_job job = named("a", "ann", 0), got;
    (void)state;
    submit("a", "ann", 0);
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    assert_string_equal(err.msg, "job a is there already");
    job = named("a b", "", 0);
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    job = named("b", "", 0);
    job.request = NULL;
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    job.request = big;
    memset(big, 'x', SL_JOURNAL_REQUEST);
    big[SL_JOURNAL_REQUEST] = 0;
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    T_SAYS(err.msg, "want at most 63, 255, 4194303 bytes");
    memset(key, 'k', SL_JOURNAL_KEY);
    job = named("b", "", 0);
    T_CODE(sl_journal_submit(j, &job, key, NULL, same, &err), SL_ARG);
    memset(job.owner, 'o', sizeof job.owner);
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    job = named("b", "", 0);
    memset(job.id, 'o', sizeof job.id);
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    job = named("b", "", 0);
    job.created_s = -1;
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);

    /* the longest that may be */
    key[SL_JOURNAL_KEY - 1] = big[SL_JOURNAL_REQUEST - 1] = 0;
    memset(&job, 0, sizeof job);
    memset(job.id, 'i', SL_JOURNAL_ID - 1);
    memset(job.owner, 'o', SL_JOURNAL_OWNER - 1);
    job.request = big;
    job.priority = INT32_MIN;
    job.created_s = INT64_MAX;
    T_OK(sl_journal_submit(j, &job, key, NULL, same, &err));
    reopen();
    T_OK(sl_journal_get(j, job.id, job.owner, &got, &err));
    assert_string_equal(got.request, big);
    assert_true(got.priority == INT32_MIN && got.created_s == INT64_MAX);
    sl_journal_job_free(&got);
    free(big);
}

static void test_limits(void **state)
{
    const sl_journal_limits limits = {.queued = 3, .of_owner = 2};
    char same[SL_JOURNAL_ID];
    static const struct {
        const char *id, *owner;
        sl_code want;
    } CASES[] = {{"a", "ann", SL_OK}, {"b", "ann", SL_OK},   {"c", "ann", SL_BUSY},
                 {"d", "bob", SL_OK}, {"e", "bob", SL_BUSY}, {"f", "", SL_BUSY}};
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        sl_journal_job job = named(CASES[i].id, CASES[i].owner, (int)i);
        T_CODE(sl_journal_submit(j, &job, "", &limits, same, &err), CASES[i].want);
        if (i == 2)
            assert_string_equal(err.msg,
                                "the queue is full: 2 jobs of this owner wait, at most 2 may");
        if (i == 4) assert_string_equal(err.msg, "the queue is full: 3 jobs wait, at most 3 may");
    }
    claims("d"); /* what runs does not wait */
    sl_journal_job job = named("e", "bob", 0);
    T_OK(sl_journal_submit(j, &job, "", &limits, same, &err));
    job = named("g", "ann", 0);
    T_OK(sl_journal_submit(j, &job, "", &(sl_journal_limits){0}, same, &err));
}

static void test_keys(void **state)
{
    const sl_journal_limits one = {.queued = 1};
    char same[SL_JOURNAL_ID], id[SL_JOURNAL_ID];
    sl_journal_job job = named("a", "ann", 0);
    (void)state;
    T_OK(sl_journal_submit(j, &job, "k", &one, same, &err));
    assert_string_equal(same, "");
    job = named("b", "ann", 0);
    T_OK(sl_journal_submit(j, &job, "k", &one, same, &err)); /* though the queue is full */
    assert_string_equal(same, "a");
    T_CODE(sl_journal_submit(j, &job, "K", &one, same, &err), SL_BUSY);
    assert_string_equal(same, "");
    job = named("c", "bob", 0); /* the same key is another one's, too */
    T_OK(sl_journal_submit(j, &job, "k", NULL, same, &err));
    assert_string_equal(same, "");
    submit("d", "ann", 0); /* without a key as often as one likes */
    submit("e", "ann", 0);
    reopen();
    job = named("f", "bob", 0);
    T_OK(sl_journal_submit(j, &job, "k", NULL, same, &err));
    assert_string_equal(same, "c");

    claims("a");
    finish("a", SL_JOURNAL_COMPLETED, 0, 3000);
    T_OK(sl_journal_remove(j, "a", NULL, 4000, &err));
    job = named("g", "ann", 0);
    T_OK(sl_journal_submit(j, &job, "k", NULL, same, &err)); /* removed, not forgotten */
    assert_string_equal(same, "a");
    T_CODE(sl_journal_expire(j, 0, 0, 4001, 5000, id, &err), SL_BUSY);
    T_OK(sl_journal_submit(j, &job, "k", NULL, same, &err));
    assert_string_equal(same, "");
}

/* ---- the order ---- */

/* Jobs "PRIORITY OWNER" in the order of submission; letters name them. */
static void test_order(void **state)
{
    static const struct {
        const char *jobs[8], *want;
    } CASES[] = {
        {{"0a", "0a", "0a"}, "abc"},
        {{"0a", "1a", "-1a", "1b"}, "bdac"},
        {{"0a", "0a", "0a", "0b", "0b", "0c"}, "adfbec"},
        {{"0a", "0b", "0b", "0b", "0a", "0a"}, "abecfd"},
        {{"5a", "0b", "5b", "0a", "5a", "0b"}, "acebdf"},
        {{"0b", "0a", "1", "0", "0b"}, "cabde"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        int n = 0;
        for (; CASES[i].jobs[n]; n++) {
            char *owner, id[2] = {(char)('a' + n), 0};
            long priority = strtol(CASES[i].jobs[n], &owner, 10);
            submit(id, owner, (int)priority);
        }
        for (int k = 0; k < n; k++) {
            char id[2] = {CASES[i].want[k], 0};
            if (sl_journal_position(j, id) != k)
                fail_msg("case %zu: %s has position %d, want %d", i, id, sl_journal_position(j, id),
                         k);
        }
        for (int k = 0; k < n; k++) claims((char[2]){CASES[i].want[k], 0});
        body->empty();
    }
}

/* One job runs at a time, and the next is claimed when it has ended: who has submitted a hundred
 * waits as long for each as who submits one now and then. */
static void test_in_turn(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++)
        submit(((char[8]){'a', (char)('0' + i / 10), (char)('0' + i % 10)}), "ann", 0);
    claims("a00");
    finish("a00", SL_JOURNAL_COMPLETED, 0, 1);
    submit("b0", "bob", 0);
    submit("b1", "bob", 0);
    claims("b0"); /* not a01, though it is older */
    finish("b0", SL_JOURNAL_COMPLETED, 0, 1);
    claims("a01");
    reopen(); /* whose turn it is outlives the process */
    submit("c0", "cat", 0);
    claims("c0");
    claims("b1");
    claims("a02");
    submit("d0", "ann", 1); /* a turn of another priority counts there */
    claims("d0");
    claims("a03");
}

static void test_released(void **state)
{
    int count;
    (void)state;
    submit("a0", "ann", 0);
    submit("a1", "ann", 0);
    submit("b0", "bob", 0);
    submit("b1", "bob", 0);
    claims("a0");
    claims("b0");
    T_OK(sl_journal_release(j, "b0", &err));
    T_OK(sl_journal_release(j, "a0", &err));
    assert_int_equal(sl_journal_position(j, "a0"), 0); /* as they were claimed */
    assert_int_equal(sl_journal_position(j, "b0"), 1);
    assert_int_equal(sl_journal_position(j, "a1"), 2);
    submit("c0", "cat", 0);
    submit("h", "cat", 7);
    assert_int_equal(sl_journal_position(j, "c0"), 3);
    claims("h");
    claims("a0");
    claims("b0");
    claims("c0");
    reopen();
    T_OK(sl_journal_release_all(j, &count, &err));
    assert_int_equal(count, 4);
    T_OK(sl_journal_release_all(j, &count, &err));
    assert_int_equal(count, 0);
    for (int i = 0; i < 6; i++) claims((const char *[]){"h", "a0", "b0", "c0", "a1", "b1"}[i]);
}

/* The server dies with the job, and the next one goes on. */
static void dies(int want, int retries)
{
    int count;
    reopen();
    sl_journal_retries(j, retries);
    T_OK(sl_journal_release_all(j, &count, &err));
    assert_int_equal(count, want);
}

static int deaths_of(const char *id)
{
    sl_journal_job got;
    T_OK(sl_journal_get(j, id, NULL, &got, &err));
    const int deaths = got.deaths;
    sl_journal_job_free(&got);
    return deaths;
}

/* A job whose servers die is tried so often, and then it fails; a step that is kept begins the
 * count anew. Whoever died with it runs alone, and so does not fail with it. */
static void test_given_up(void **state)
{
    sl_journal_job got;
    sl_journal_state before;
    sl_journal_counts n;
    (void)state;
    submit("k", "", 0);
    submit("a", "", 0);
    for (int i = 0; i < SL_JOURNAL_ALONE; i++) {
        claims("k");
        claims("a");
        dies(2, 3);
    }
    assert_int_equal(deaths_of("k"), SL_JOURNAL_ALONE);
    claims("k");
    T_CODE(sl_journal_claim(j, 1, &got, &err), SL_BUSY); /* a waits */
    assert_int_equal(sl_journal_position(j, "a"), 0);
    body->kept("k");
    assert_int_equal(deaths_of("k"), 0);
    submit("b", "", 1);
    claims("b");                                         /* its like may run beside it again, */
    T_CODE(sl_journal_claim(j, 1, &got, &err), SL_BUSY); /* but a is to run alone itself */
    finish("b", SL_JOURNAL_COMPLETED, 0, 1);
    T_OK(sl_journal_release(j, "k", &err)); /* no death */
    assert_int_equal(deaths_of("k"), 0);
    for (int i = 0; i < 4; i++) { /* k was claimed first, and is until it is given up */
        claims("k");
        dies(1, 3);
        assert_int_equal(deaths_of("k"), i + 1);
    }
    T_OK(sl_journal_get(j, "k", NULL, &got, &err));
    assert_int_equal(got.state, SL_JOURNAL_FAILED);
    assert_int_equal(got.code, SL_GONE);
    assert_int_equal(got.attempts, SL_JOURNAL_ALONE + 5);
    assert_string_equal(got.message, "4 times its server died while it ran, and no step was kept "
                                     "between: it is not tried again (serve.retries)");
    assert_true(got.ended_s > 1000);
    sl_journal_job_free(&got);
    T_CODE(sl_journal_finish(j, "k", SL_JOURNAL_COMPLETED, SL_OK, "", 0, 1, &err), SL_GONE);
    T_OK(sl_journal_remove(j, "k", NULL, 1, &err));
    /* one that was asked to stop meanwhile is cancelled, not failed */
    claims("a");
    T_OK(sl_journal_cancel(j, "a", NULL, 1, &before, &err));
    dies(1, 3);
    claims("a");
    dies(1, 3);
    has_state("a", SL_JOURNAL_CANCELLED);
    /* without a limit */
    submit("c", "", 0);
    for (int i = 0; i < 12; i++) {
        claims("c");
        dies(1, 0);
    }
    assert_int_equal(deaths_of("c"), 12);
    reopen();
    assert_int_equal(deaths_of("c"), 12);
    T_OK(sl_journal_count(j, &n, &err));
    assert_int_equal(n.jobs[SL_JOURNAL_QUEUED], 1);
}

/* Whatever happens before, the queue is claimed as its positions say, to its end. */
static void test_positions_come_true(void **state)
{
    unsigned seed = 7;
    (void)state;
    for (int round = 0; round < 12; round++) {
        char ids[64][SL_JOURNAL_ID];
        int made = 0, queued;
        sl_journal_counts counts;
        sl_journal_job got;
        sl_journal_state before;
        for (int i = 0; i < 60; i++) {
            const int what = rand_r(&seed) % 8;
            const char *any = made ? ids[rand_r(&seed) % made] : "none";
            if (what < 4) {
                snprintf(ids[made], sizeof ids[made], "j%d-%d", round, made);
                submit(ids[made++], (const char *[]){"", "a", "b"}[rand_r(&seed) % 3],
                       rand_r(&seed) % 2);
            } else if (what < 6) {
                if (!sl_journal_claim(j, 1, &got, &err)) sl_journal_job_free(&got);
            } else if (what == 6) {
                sl_journal_release(j, any, &err);
            } else {
                sl_journal_cancel(j, any, NULL, 1, &before, &err);
            }
        }
        const char *at[64] = {0};
        T_OK(sl_journal_count(j, &counts, &err));
        queued = (int)counts.jobs[SL_JOURNAL_QUEUED];
        for (int i = 0; i < made; i++) {
            int position = sl_journal_position(j, ids[i]);
            if (position < 0) continue;
            assert_true(position < queued && !at[position]);
            at[position] = ids[i];
        }
        for (int i = 0; i < queued; i++) {
            assert_non_null(at[i]);
            claims(at[i]);
            for (int k = i + 1; k < queued; k++)
                assert_int_equal(sl_journal_position(j, at[k]), k - i - 1);
        }
        assert_int_equal(sl_journal_claim(j, 1, &got, &err), SL_BUSY);
    }
}

/* ---- lists, counts ---- */

/* The whole list in pages of `limit`, ids one after the other. */
static const char *listed(const char *owner, int limit, bool newest_first)
{
    static char all[512];
    char after[SL_JOURNAL_ID] = "";
    bool more = true;
    *all = 0;
    while (more) {
        sl_journal_job jobs[8];
        int count;
        T_OK(sl_journal_list(j, owner, after, limit, newest_first, jobs, &count, &more, &err));
        assert_true(count <= limit && (count == limit || !more));
        for (int i = 0; i < count; i++) {
            strcat(all, jobs[i].id);
            strcpy(after, jobs[i].id);
            sl_journal_job_free(&jobs[i]);
        }
    }
    return all;
}

static void test_list(void **state)
{
    sl_journal_job jobs[8];
    int count;
    bool more;
    (void)state;
    assert_string_equal(listed(NULL, 1, true), "");
    for (int i = 0; i < 8; i++) submit((char[2]){(char)('a' + i), 0}, i % 3 ? "ann" : "bob", i % 2);
    for (int limit = 1; limit <= 8; limit++) {
        assert_string_equal(listed(NULL, limit, false), "abcdefgh");
        assert_string_equal(listed(NULL, limit, true), "hgfedcba");
        assert_string_equal(listed("ann", limit, false), "bcefh");
        assert_string_equal(listed("bob", limit, true), "gda");
        assert_string_equal(listed("cat", limit, true), "");
    }
    for (int i = 0; i < 8; i++) {
        sl_journal_job got;
        T_OK(sl_journal_claim(j, 1, &got, &err));
        finish(got.id, SL_JOURNAL_COMPLETED, 0, 1);
        if (strchr("adeh", *got.id)) T_OK(sl_journal_remove(j, got.id, NULL, 1, &err));
        sl_journal_job_free(&got);
    }
    for (int limit = 1; limit <= 8; limit++) {
        assert_string_equal(listed(NULL, limit, false), "bcfg");
        assert_string_equal(listed(NULL, limit, true), "gfcb");
        assert_string_equal(listed("bob", limit, true), "g");
    }
    /* a page's last job may go before the next page is asked for */
    T_OK(sl_journal_list(j, NULL, "d", 1, false, jobs, &count, &more, &err));
    assert_true(count == 1 && more && !strcmp(jobs[0].id, "f"));
    sl_journal_job_free(&jobs[0]);
    T_CODE(sl_journal_list(j, "ann", "g", 1, false, jobs, &count, &more, &err), SL_GONE);
    T_CODE(sl_journal_list(j, NULL, "x", 1, false, jobs, &count, &more, &err), SL_GONE);
    T_CODE(sl_journal_list(j, NULL, "?", 1, false, jobs, &count, &more, &err), SL_GONE);
    T_CODE(sl_journal_list(j, NULL, "", 0, false, jobs, &count, &more, &err), SL_ARG);
    assert_true(!count && !more);
}

static void test_count(void **state)
{
    sl_journal_counts c;
    sl_journal_state before;
    (void)state;
    T_OK(sl_journal_count(j, &c, &err));
    for (int i = 0; i < SL_JOURNAL_STATE_COUNT; i++) assert_int_equal(c.jobs[i], 0);
    assert_true(!c.oldest_queued_s && !c.bytes);
    ended("a", 100, 1);
    ended("b", 20, 1);
    ended("r", 5000, 1);
    T_OK(sl_journal_remove(j, "r", NULL, 1, &err));
    submit("c", "", 0);
    claims("c");
    finish("c", SL_JOURNAL_FAILED, 3, 1);
    submit("d", "", 0);
    T_OK(sl_journal_cancel(j, "d", NULL, 1, &before, &err));
    submit("e", "", 0);
    claims("e");
    sl_journal_job job = named("f", "", 0);
    job.created_s = 500;
    char same[SL_JOURNAL_ID];
    submit("g", "", 0);
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    T_OK(sl_journal_count(j, &c, &err));
    static const int WANT[] = {2, 1, 2, 1, 1, 1};
    for (int i = 0; i < SL_JOURNAL_STATE_COUNT; i++) assert_int_equal(c.jobs[i], WANT[i]);
    assert_int_equal(c.oldest_queued_s, 500);
    assert_int_equal(c.bytes, 123);
}

/* ---- jobs go ---- */

static void test_expire(void **state)
{
    char id[SL_JOURNAL_ID] = "x";
    (void)state;
    T_CODE(sl_journal_expire(j, 9999, 1, 0, 10, id, &err), SL_BUSY);
    assert_string_equal(id, "");
    ended("b", 100, 200);
    ended("a", 100, 100);
    ended("c", 100, 300);
    submit("q", "", 0);
    /* by age: the one that ended first, and nobody at its very second */
    T_CODE(sl_journal_expire(j, 100, 0, 0, 400, id, &err), SL_BUSY);
    T_OK(sl_journal_expire(j, 101, 0, 0, 400, id, &err));
    assert_string_equal(id, "a");
    assert_false(sl_journal_knows(j, "a"));
    T_CODE(sl_journal_expire(j, 101, 0, 0, 400, id, &err), SL_BUSY);
    /* by bytes: 200 are left */
    T_CODE(sl_journal_expire(j, 0, 200, 0, 400, id, &err), SL_BUSY);
    T_OK(sl_journal_expire(j, 0, 199, 0, 500, id, &err));
    assert_string_equal(id, "b");
    T_CODE(sl_journal_expire(j, 0, 199, 0, 500, id, &err), SL_BUSY);
    assert_int_equal(body->rows("removed"), 2);
    /* forgotten: removed at 400 and 500 */
    T_CODE(sl_journal_expire(j, 0, 0, 400, 600, id, &err), SL_BUSY);
    assert_int_equal(body->rows("removed"), 2);
    T_OK(sl_journal_remove(j, "a", NULL, 600, &err)); /* keeps its time */
    T_CODE(sl_journal_expire(j, 0, 0, 401, 600, id, &err), SL_BUSY);
    assert_int_equal(body->rows("removed"), 1);
    T_CODE(sl_journal_remove(j, "a", NULL, 600, &err), SL_GONE);
    T_OK(sl_journal_remove(j, "b", NULL, 600, &err));
    T_OK(sl_journal_expire(j, 9999, 0, 9999, 600, id, &err));
    assert_string_equal(id, "c");
    assert_int_equal(body->rows(NULL), 2); /* c removed, q */
    has_state("q", SL_JOURNAL_QUEUED);
}

#define JOURNAL_CASES                                                                              \
    WITH_JOURNAL(test_life), WITH_JOURNAL(test_completed), WITH_JOURNAL(test_ends_once),           \
        WITH_JOURNAL(test_cancel), WITH_JOURNAL(test_remove), WITH_JOURNAL(test_gone),             \
        WITH_JOURNAL(test_long_message), WITH_JOURNAL(test_submit_refused),                        \
        WITH_JOURNAL(test_limits), WITH_JOURNAL(test_keys), WITH_JOURNAL(test_order),              \
        WITH_JOURNAL(test_in_turn), WITH_JOURNAL(test_released), WITH_JOURNAL(test_given_up),      \
        WITH_JOURNAL(test_positions_come_true), WITH_JOURNAL(test_list), WITH_JOURNAL(test_count), \
        WITH_JOURNAL(test_expire)

#endif
