/* test_offers.c - the queue that servers share, where they are not alike: what each offers, which
 * job it gets, what is said of a job that nobody takes; and what a claim costs then.
 * takes: 10 s. run: waits */
#include "tests/t_journal.h"
#include "tests/t_redis.h"

#include <curl/curl.h>

#include "common/clock.h"

#define LEASE_MS 600

static t_redis redis;

static double seconds(void)
{
    return (double)sl_now_ns() * 1e-9;
}

/* A number as an id, in one of eight static buffers. */
static const char *number(int n)
{
    static char all[8][16];
    static int next;
    char *out = all[next++ % 8];
    snprintf(out, sizeof all[0], "%d", n);
    return out;
}

static sl_journal *open_as(const char *name, const char *offer)
{
    sl_journal *own;
    const sl_journal_shared at = {
        .url = redis.url, .name = name, .model = "demo", .lease_ms = LEASE_MS};
    T_OK(sl_journal_open_shared(&own, &at, &err));
    char says[64];
    snprintf(says, sizeof says, "{\"name\":\"%s\"}", name);
    if (offer) T_OK(sl_journal_offer(own, offer, says, &err));
    return own;
}

static int make_redis(void **state)
{
    (void)state;
    t_redis_open(&redis);
    j = open_as("front", NULL);
    return 0;
}

static int end_redis(void **state)
{
    (void)state;
    sl_journal_close(&j);
    t_redis_close(&redis);
    return 0;
}
#define WITH_REDIS(test) cmocka_unit_test_setup_teardown(test, make_redis, end_redis)

static void submit_needs(const char *id, const char *owner, int priority, const char *needs)
{
    char same[SL_JOURNAL_ID], copy[SL_JOURNAL_NEEDS];
    sl_journal_job job = named(id, owner, priority);
    snprintf(copy, sizeof copy, "%s", needs);
    job.needs = copy;
    T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
}

/* Ids that this handle gets, one after the other, each ended before the next; "" at the end. */
static const char *gets(sl_journal *own)
{
    static char id[SL_JOURNAL_ID];
    sl_journal_job got;
    const sl_code rc = sl_journal_claim(own, 2000, &got, &err);
    if (rc == SL_BUSY) return "";
    T_CODE(rc, SL_OK);
    memcpy(id, got.id, sizeof id);
    T_OK(sl_journal_finish(own, id, SL_JOURNAL_COMPLETED, SL_OK, "", 0, 1, &err));
    sl_journal_job_free(&got);
    return id;
}

static void gets_all(sl_journal *own, const char *want)
{
    char all[200] = "";
    for (const char *id; *(id = gets(own));) strcat(all, id);
    assert_string_equal(all, want);
}

/* What is said of a job that waits. Until a beat has told what there is. */
static void waits_for(const char *id, const char *want)
{
    const double until = seconds() + 20;
    char said[200];
    do {
        sl_journal_job got;
        T_OK(sl_journal_get(j, id, NULL, &got, &err));
        assert_int_equal(got.state, SL_JOURNAL_QUEUED);
        snprintf(said, sizeof said, "%s", got.waits);
        sl_journal_job_free(&got);
        if (!strcmp(said, want)) return;
        usleep(20000);
    } while (seconds() < until);
    fail_msg("%s waits for \"%s\", want \"%s\"", id, said, want);
}

/* ---- who gets what ---- */

static void a_worker_gets_what_it_can(void **state)
{
    static const char *const SMALL = "1000 9 bf16 -", *const LARGE = "4000 81 bf16 -",
                             *const EIGHT = "4000 9 fp8-linear,fp8 a,b,b=7";
    (void)state;
    for (int round = 0; round < 2; round++) {
        submit_needs("a", "ann", 0, "4000 81 bf16 -");
        submit_needs("b", "ann", 0, "1000 9 bf16 -");
        submit_needs("c", "bob", 0, "1001 9 bf16 -");
        submit_needs("d", "bob", 0, "1000 13 bf16 -");
        submit_needs("e", "bob", 0, "900 5 bf16 -");
        submit_needs("f", "ann", 0, "1000 9 fp8 b");
        submit_needs("g", "ann", 0, "1000 9 fp8-linear b=7,a");
        submit_needs("h", "ann", 0, "1000 9 fp8 b=8");
        submit_needs("i", "cat", 5, "1000 9 bf16 c");
        submit("j", "cat", -5); /* of a program that says nothing: anybody's */
        sl_journal *small = open_as("small", SMALL), *large = open_as("large", LARGE),
                   *eight = open_as("eight", EIGHT), *any = open_as("any", NULL);
        if (round) { /* in the order of one queue, what each can */
            assert_string_equal(gets(small), "b");
            assert_string_equal(gets(small), "e");
            assert_string_equal(gets(eight), "f");
            gets_all(large, "cadj"); /* ann had the last turn */
            gets_all(eight, "g");
            gets_all(small, "");
            gets_all(any, "ih");
        } else {
            gets_all(small, "bej");
            gets_all(eight, "fg");
            gets_all(large, "cad"); /* bob's turn: ann had the last one */
            gets_all(any, "ih");
        }
        sl_journal_close(&small);
        sl_journal_close(&large);
        sl_journal_close(&eight);
        sl_journal_close(&any);
        T_REDIS(&redis, "FLUSHALL");
    }
}

/* Released jobs go before all others that the worker can do. */
static void released_ones_go_first(void **state)
{
    sl_journal_job got;
    (void)state;
    sl_journal *large = open_as("large", "4000 81 bf16 -"), *small = open_as("small", "9 9 bf16 -");
    submit_needs("a", "", 0, "4000 81 bf16 -");
    submit_needs("b", "", 0, "9 9 bf16 -");
    submit_needs("c", "", 0, "9 9 bf16 -");
    for (int i = 0; i < 2; i++) {
        T_OK(sl_journal_claim(large, 1, &got, &err));
        sl_journal_job_free(&got);
    }
    T_OK(sl_journal_release(large, "b", &err));
    T_OK(sl_journal_release(large, "a", &err));
    submit_needs("d", "x", 0, "9 9 bf16 -");
    gets_all(small, "bdc");
    gets_all(large, "a");
    sl_journal_close(&large);
    sl_journal_close(&small);
}

/* Whatever comes, goes back and is cancelled: each worker gets a job that it can do of the largest
 * priority there is for it, and of that one's owner the oldest of its class; nothing is left. */
static void in_order_whatever_happens(void **state)
{
    static const char *const NEEDS[] = {"10 5 bf16 -", "20 5 bf16 -", "10 9 bf16 -", "10 5 bf16 a",
                                        "20 9 fp8 -"};
    static const char *const OFFERS[] = {"10 9 bf16 a", "20 5 bf16 -", "20 9 bf16,fp8 a"};
    static const bool CAN[3][5] = {{1, 0, 1, 1, 0}, {1, 1, 0, 0, 0}, {1, 1, 1, 1, 1}};
    enum { MOST = 200 };
    struct {
        int needs, priority, owner;
        bool waits, released;
    } job[MOST];
    sl_journal *own[3];
    unsigned seed = 3;
    int made = 0;
    (void)state;
    for (int w = 0; w < 3; w++) own[w] = open_as((const char *[]){"x", "y", "z"}[w], OFFERS[w]);
    for (int i = 0; i < 1500; i++) {
        const int what = rand_r(&seed) % 10, w = rand_r(&seed) % 3;
        if (what < 3 && made < MOST) {
            job[made].needs = rand_r(&seed) % 5;
            job[made].priority = rand_r(&seed) % 2;
            job[made].owner = rand_r(&seed) % 3;
            job[made].waits = true;
            job[made].released = false;
            submit_needs(number(made), (const char *[]){"", "a", "b"}[job[made].owner],
                         job[made].priority, NEEDS[job[made].needs]);
            made++;
        } else if (what < 4 && made) {
            sl_journal_state before;
            const int k = rand_r(&seed) % made;
            T_OK(sl_journal_cancel(j, number(k), NULL, 1, &before, &err));
            job[k].waits = false;
        } else if (what < 8) {
            sl_journal_job got;
            const sl_code rc = sl_journal_claim(own[w], 1, &got, &err);
            int priority = -1, released = 0;
            for (int k = 0; k < made; k++)
                if (job[k].waits && CAN[w][job[k].needs] && job[k].priority >= priority) {
                    if (job[k].priority > priority) released = 0;
                    priority = job[k].priority;
                    released += job[k].released;
                }
            if (rc == SL_BUSY) {
                assert_int_equal(priority, -1);
                continue;
            }
            T_CODE(rc, SL_OK);
            const int is = atoi(got.id);
            assert_true(job[is].waits && CAN[w][job[is].needs]);
            assert_int_equal(job[is].priority, priority);
            assert_true(job[is].released || !released);
            for (int k = 0; k < is && !released; k++)
                assert_false(job[k].waits && job[k].owner == job[is].owner &&
                             job[k].priority == priority && job[k].needs == job[is].needs);
            job[is].waits = rand_r(&seed) % 3 == 0;
            if (job[is].waits) {
                job[is].released = true;
                T_OK(sl_journal_release(own[w], got.id, &err));
            } else
                T_OK(
                    sl_journal_finish(own[w], got.id, SL_JOURNAL_COMPLETED, SL_OK, "", 0, 1, &err));
            sl_journal_job_free(&got);
        }
    }
    while (*gets(own[2])) {
    }
    assert_string_equal(
        T_REDIS(&redis, "EVAL",
                "local n = 0 for _, p in ipairs({'classes', 'can', 'turns', 'back', "
                "'wait', 'owners', 'released', 'needs', 'queued'}) do n = n + "
                "#redis.call('KEYS', 'sluice:' .. p .. '*') end return n",
                "0"),
        "0");
    for (int w = 0; w < 3; w++) sl_journal_close(&own[w]);
}

/* ---- a LoRA that is loaded ---- */

static void a_loaded_lora_is_preferred_but_not_for_ever(void **state)
{
    char all[200] = "";
    (void)state;
    sl_journal *own = open_as("own", "10 5 bf16 a,b");
    submit_needs("p", "", 9, "10 5 bf16 a");
    assert_string_equal(gets(own), "p"); /* now it has a loaded */
    for (char c = 'A'; c <= 'P'; c++)
        submit_needs((char[]){c, 0}, "", 0, c == 'A' ? "10 5 bf16 b" : "10 5 bf16 a");
    submit_needs("q", "", 1, "10 5 bf16 -");
    for (const char *id; *(id = gets(own));) strcat(all, id);
    /* q's priority is larger; after it none is loaded, and the order is followed */
    assert_string_equal(all, "qABCDEFGHIJKLMNOP");
    sl_journal_close(&own);
    T_REDIS(&redis, "FLUSHALL");

    *all = 0;
    own = open_as("own", "10 5 bf16 a,b");
    submit_needs("p", "", 9, "10 5 bf16 a");
    assert_string_equal(gets(own), "p");
    for (char c = 'A'; c <= 'P'; c++)
        submit_needs((char[]){c, 0}, "", 0, c == 'A' ? "10 5 bf16 b" : "10 5 bf16 a");
    for (const char *id; *(id = gets(own));) strcat(all, id);
    assert_string_equal(all, "BCDEFGHIAJKLMNOP"); /* eight go before A */
    sl_journal_close(&own);
}

/* ---- what nobody takes ---- */

static void what_nobody_takes_says_so(void **state)
{
    static const struct {
        const char *needs, *says;
    } CASES[] = {
        {"1001 5 bf16 -", "no worker that is up takes it: 1001 pixels a frame, want at most 1000"},
        {"10 85 bf16 -", "no worker that is up takes it: 85 frames, want at most 81"},
        {"10 5 fp8 -", "no worker that is up takes it: none computes in fp8"},
        {"10 5 bf16 c", "no worker that is up takes it: none has LoRA c"},
        {"1000 81 bf16 -",
         "no worker that is up takes it: none has at once 1000 pixels, 81 frames, bf16"},
        {"1000 9 bf16 a", ""},
    };
    sl_journal_counts n;
    sl_journal_job jobs[8];
    int count;
    bool more, now, known;
    (void)state;
    submit_needs("0", "", 0, CASES[0].needs);
    waits_for("0", "no worker is up");
    T_OK(sl_journal_offered(j, "1 1 * a", &now, &known, &err));
    assert_true(!now && !known);
    sl_journal *wide = open_as("wide", "1000 9 bf16 a"), *slow = open_as("long", "100 81 bf16 a");
    for (int i = 1; i < 6; i++) submit_needs(number(i), "", 0, CASES[i].needs);
    for (int i = 0; i < 6; i++) waits_for(number(i), CASES[i].says);
    T_OK(sl_journal_list(j, NULL, "", 8, false, jobs, &count, &more, &err));
    assert_int_equal(count, 6);
    for (int i = 0; i < 6; i++) {
        assert_string_equal(jobs[i].waits, CASES[i].says);
        sl_journal_job_free(&jobs[i]);
    }
    T_OK(sl_journal_count(j, &n, &err));
    assert_int_equal(n.stuck, 5);
    T_SAYS(n.why, "no worker that is up takes it: ");
    T_OK(sl_journal_offered(j, "1 1 * a", &now, &known, &err));
    assert_true(now && known);
    T_OK(sl_journal_offered(j, "1 1 * c", &now, &known, &err));
    assert_true(!now && !known);
    gets_all(wide, "5");
    gets_all(slow, "");
    /* it comes, and the jobs go on; with it goes what it offered */
    sl_journal *all = open_as("all", "1001 85 bf16,fp8 c");
    for (int i = 0; i < 5; i++) waits_for(number(i), "");
    sl_journal_close(&all);
    waits_for("3", CASES[3].says); /* within a lease */
    T_OK(sl_journal_offered(j, "1 1 * c", &now, &known, &err));
    assert_true(!now && known); /* it may be restarting */
    all = open_as("all", "1001 85 bf16,fp8 c");
    gets_all(all, "01243"); /* 4 needs no LoRA, and none is loaded */
    T_OK(sl_journal_count(j, &n, &err));
    assert_true(!n.stuck && !*n.why);
    sl_journal_close(&all);
    sl_journal_close(&wide);
    sl_journal_close(&slow);
}

static void refused_words(void **state)
{
    char text[SL_JOURNAL_NEEDS], same[SL_JOURNAL_ID];
    static const sl_journal_needs BAD[] = {
        {-1, 1, "bf16", ""}, {1, -1, "bf16", ""},  {1, 1, "", ""},         {1, 1, "a b", ""},
        {1, 1, "bf16", ","}, {1, 1, "bf16", "a,"}, {1, 1, "bf16", "a,,b"}, {1, 1, "bf16", "-"},
        {1, 1, "a:b", ""},   {1, 1, "bf16", "!"}};
    (void)state;
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        T_CODE(sl_journal_print_needs(text, &BAD[i], &err), SL_ARG);
        assert_string_equal(text, "");
    }
    T_OK(sl_journal_print_needs(text, &(sl_journal_needs){9, 5, "bf16,fp8", "a,b=7"}, &err));
    assert_string_equal(text, "9 5 bf16,fp8 a,b=7");
    T_OK(sl_journal_print_needs(text, &(sl_journal_needs){9, 5, "*", ""}, &err));
    assert_string_equal(text, "9 5 * -");
    char *big = calloc(1, SL_JOURNAL_NEEDS + 1);
    memset(big, 'a', SL_JOURNAL_NEEDS);
    T_CODE(sl_journal_print_needs(text, &(sl_journal_needs){9, 5, "*", big}, &err), SL_ARG);
    T_CODE(sl_journal_offer(j, big, "", &err), SL_ARG);
    T_CODE(sl_journal_offer(j, "1 1 a -", "a\nb", &err), SL_ARG);
    sl_journal_job job = named("a", "", 0);
    job.needs = big;
    T_CODE(sl_journal_submit(j, &job, "", NULL, same, &err), SL_ARG);
    T_SAYS(err.msg, "job a: its needs are no line of at most");
    free(big);
}

/* ---- who is there ---- */

static void a_fleet_is_told(void **state)
{
    sl_journal_fleet f = {0};
    sl_journal_job got;
    (void)state;
    sl_journal *one = open_as("one", "9 9 bf16 -"), *two = open_as("two", "9 9 bf16 -");
    submit_needs("a", "ann", 3, "9 9 bf16 -");
    submit_needs("b", "bob", 0, "10 9 bf16 -");
    T_OK(sl_journal_claim(one, 7, &got, &err));
    sl_journal_job_free(&got);
    T_OK(sl_journal_show(one, "a", 0.5, "denoise 3 12 0.1 1 2.0", &err));
    const double until = seconds() + 20;
    do {
        sl_journal_fleet_free(&f);
        T_OK(sl_journal_fleet_of(j, &f, &err));
        usleep(20000);
    } while ((f.peer_count < 3 || !*f.peers[1].says || !*f.peers[2].says) && seconds() < until);
    assert_int_equal(f.peer_count, 3);
    assert_int_equal(f.all_peers, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(f.peers[i].silent_ms < 20000);
        if (!strcmp(f.peers[i].name, "one"))
            assert_string_equal(f.peers[i].says, "{\"name\":\"one\"}");
    }
    assert_int_equal(f.job_count, 1);
    assert_string_equal(f.jobs[0].id, "a");
    assert_string_equal(f.jobs[0].owner, "ann");
    assert_string_equal(f.jobs[0].server, "one");
    assert_string_equal(f.jobs[0].live, "denoise 3 12 0.1 1 2.0");
    assert_true(f.jobs[0].since_s == 7 && f.jobs[0].attempts == 1 && f.jobs[0].progress == 0.5);
    assert_int_equal(f.waiting_count, 1);
    assert_string_equal(f.waiting[0].id, "b");
    assert_string_equal(f.waiting[0].waits,
                        "no worker that is up takes it: 10 pixels a frame, want at most 9");
    sl_journal_fleet_free(&f);
    sl_journal_close(&two); /* who ends is gone at once */
    T_OK(sl_journal_fleet_of(j, &f, &err));
    assert_int_equal(f.peer_count, 2);
    sl_journal_fleet_free(&f);
    sl_journal_close(&one);
}

/* ---- what it costs ---- */

static long calls(void)
{
    return atol(T_REDIS(&redis, "EVAL",
                        "local n = 0 for c in redis.call('INFO', "
                        "'commandstats'):gmatch('calls=(%d+)') do n = n + c end return n",
                        "0"));
}

/* Jobs that the worker cannot do, of many classes, stand before the one that it can: a claim does
 * not look at them one by one. Counted are Redis's own commands. */
static void a_claim_costs_little(void **state)
{
    char same[SL_JOURNAL_ID];
    sl_journal_job got;
    (void)state;
    sl_journal *own = open_as("own", "10 5 bf16 -");
    for (int i = 0; i < 6000; i++) {
        char id[16], needs[64], owner[16];
        snprintf(id, sizeof id, "%d", i);
        snprintf(owner, sizeof owner, "o%d", i % 50);
        snprintf(needs, sizeof needs, "%d %d bf16 -", 11 + i % 30, 5 + 4 * (i % 7));
        sl_journal_job job = named(id, owner, i % 3);
        job.needs = needs;
        T_OK(sl_journal_submit(j, &job, "", NULL, same, &err));
    }
    submit_needs("mine", "o1", 0, "10 5 bf16 -");
    T_REDIS(&redis, "CONFIG", "RESETSTAT");
    const long before = calls();
    T_OK(sl_journal_claim(own, 1, &got, &err));
    const long took = calls() - before;
    assert_string_equal(got.id, "mine");
    sl_journal_job_free(&got);
    print_message("%ld commands of Redis for a claim among 6,000 jobs of 210 classes\n", took);
    assert_true(took < 80);
    /* and one that can all looks at so many classes and no more */
    sl_journal *all = open_as("all", "1000 1000 bf16 -");
    const long second = calls();
    T_OK(sl_journal_claim(all, 1, &got, &err));
    sl_journal_job_free(&got);
    print_message("%ld for one by a worker that can all of them\n", calls() - second);
    assert_true(calls() - second < 64 * 6 + 80);
    sl_journal_close(&own);
    sl_journal_close(&all);
}

/* ---- a queue of the program before ---- */

static void an_older_queue_goes_on(void **state)
{
    (void)state;
    for (char c = 'a'; c < 'f'; c++) submit_needs((char[]){c, 0}, c % 2 ? "ann" : "bob", 0, "");
    claims("a");
    T_OK(sl_journal_release(j, "a", &err));
    sl_journal_close(&j);
    T_REDIS(&redis, "EVAL",
            "for _, p in ipairs({'classes', 'can', 'turns', 'back', 'needs'}) do for _, k in "
            "ipairs(redis.call('KEYS', 'sluice:' .. p .. '*')) do redis.call('DEL', k) end end "
            "for _, k in ipairs(redis.call('KEYS', 'sluice:job:*')) do redis.call('HDEL', k, "
            "'needs', 'deaths', 'since_s') end redis.call('SET', 'sluice:schema', '1')",
            "0");
    j = open_as("front", NULL);
    assert_string_equal(T_REDIS(&redis, "GET", "sluice:schema"), "2");
    gets_all(j, "abcde"); /* released, then in turn */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_REDIS(a_worker_gets_what_it_can),
        WITH_REDIS(released_ones_go_first),
        WITH_REDIS(in_order_whatever_happens),
        WITH_REDIS(a_loaded_lora_is_preferred_but_not_for_ever),
        WITH_REDIS(what_nobody_takes_says_so),
        WITH_REDIS(refused_words),
        WITH_REDIS(a_fleet_is_told),
        WITH_REDIS(a_claim_costs_little),
        WITH_REDIS(an_older_queue_goes_on),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (!t_redis_is_there()) {
        printf("[  SKIPPED ] no redis-server on this machine\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
