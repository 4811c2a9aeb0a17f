/* test_muster - which ranks hear of each other, and which load their weights together. */
#include "tests/t.h"

#include "common/clock.h"
#include "stages/dispatch/muster.h"

#define THREE                                                                                      \
    "stages: ( { name = \"text\"; }, { name = \"denoise\"; devices = [\"cpu\", \"cpu\", "          \
    "\"cpu\"]; "                                                                                   \
    "}, { name = \"decode\"; } );"
enum { TEXT, R0, R1, R2, DECODE }; /* seats */

static struct {
    sl_conf conf;
    sl_muster muster;
    struct {
        int seat;
        sl_msg m;
    } log[64];
    int count, read;
} t;

static void to_seat(void *self, int seat, const sl_msg *m)
{
    (void)self;
    assert_true(t.count < 64);
    t.log[t.count].seat = seat;
    t.log[t.count++].m = *m;
}

static void begin(const char *stages)
{
    sl_err err = {0};
    memset(&t, 0, sizeof t);
    sl_conf_defaults(&t.conf);
    T_OK(sl_conf_read_string(&t.conf, stages, "test", &err));
    sl_muster_open(&t.muster, NULL, to_seat);
    for (int i = 0; i < t.conf.stage_count; i++)
        sl_muster_add(&t.muster, i, &t.conf, &t.conf.stages[i]);
}

static bool announce(int seat, int rank)
{
    sl_msg_rank m = {.rank = rank, .pid = 100 + seat, .fd = 7, .window_bytes = 4096};
    memset(m.device, seat, sizeof m.device);
    return sl_muster_on_rank(&t.muster, seat, &m);
}

/* The next message is RANK of `rank`, to `seat`. */
static void hears_of(int seat, int rank)
{
    assert_true(t.read < t.count);
    const sl_msg *m = &t.log[t.read].m;
    assert_int_equal(t.log[t.read++].seat, seat);
    assert_int_equal(m->type, SL_MSG_RANK);
    assert_int_equal(m->rank.rank, rank);
    assert_int_equal(m->rank.pid, 100 + R0 + rank);
    assert_int_equal(m->rank.device[63], R0 + rank);
}

/* The next messages are LOAD, to these ranks together; returns the key. */
static uint32_t load_together(int n, const int ranks[])
{
    uint32_t key = t.read < t.count ? t.log[t.read].m.load.team.key : 0;
    for (int i = 0; i < n; i++) {
        assert_true(t.read < t.count);
        const sl_msg *m = &t.log[t.read].m;
        assert_int_equal(t.log[t.read++].seat, R0 + ranks[i]);
        assert_int_equal(m->type, SL_MSG_LOAD);
        assert_int_equal(m->load.team.size, n);
        assert_int_equal(m->load.team.me, i);
        assert_int_equal(m->load.team.key, key);
        for (int k = 0; k < n; k++) assert_int_equal(m->load.team.member[k], ranks[k]);
    }
    return key;
}
#define LOAD_TOGETHER(...)                                                                         \
    load_together((int)(sizeof(int[]){__VA_ARGS__} / sizeof(int)), (int[]){__VA_ARGS__})

static void tick_after(int ms)
{
    sl_muster_tick(&t.muster, sl_now_ns() + ms * 1000000ll);
}

static void nothing(void)
{
    assert_int_equal(t.read, t.count);
}

static void all_load_together(void **state)
{
    (void)state;
    begin(THREE);
    for (int r = 0; r < 3; r++) sl_muster_on_hello(&t.muster, R0 + r);
    nothing();
    assert_true(announce(R1, 1));
    hears_of(R0, 1), hears_of(R2, 1);
    assert_true(announce(R0, 0));
    hears_of(R1, 0), hears_of(R2, 0);
    tick_after(1000);
    nothing();
    assert_true(announce(R2, 2));
    hears_of(R0, 2), hears_of(R1, 2);
    tick_after(0);
    uint32_t key = LOAD_TOGETHER(0, 1, 2);
    assert_true(key > 0);
    assert_true(sl_muster_key(&t.muster) > key);
    tick_after(60000);
    nothing();
}

static void who_comes_later_loads_alone(void **state)
{
    (void)state;
    begin(THREE);
    announce(R0, 0), announce(R1, 1), announce(R2, 2);
    tick_after(0);
    t.read = t.count;
    uint32_t key = sl_muster_key(&t.muster);
    sl_muster_forget(&t.muster, R1, false);
    sl_muster_on_hello(&t.muster, R1);
    hears_of(R1, 0), hears_of(R1, 2);
    assert_true(announce(R1, 1));
    hears_of(R0, 1), hears_of(R2, 1);
    tick_after(0);
    assert_true(LOAD_TOGETHER(1) > key);
    nothing();
    /* all have died: together again */
    for (int r = R0; r <= R2; r++) sl_muster_forget(&t.muster, r, false);
    sl_muster_on_hello(&t.muster, R0);
    nothing(); /* the dead are not named */
    announce(R0, 0), announce(R1, 1), announce(R2, 2);
    t.read = t.count;
    tick_after(0);
    LOAD_TOGETHER(0, 1, 2);
}

static void nobody_waits_for_ever(void **state)
{
    (void)state;
    begin(THREE);
    announce(R0, 0), announce(R2, 2);
    t.read = t.count;
    tick_after(4900);
    nothing();
    tick_after(5100);
    LOAD_TOGETHER(0, 2);
    announce(R1, 1);
    hears_of(R0, 1), hears_of(R2, 1);
    tick_after(0);
    LOAD_TOGETHER(1);
    nothing();
}

static void nobody_waits_for_who_is_given_up(void **state)
{
    (void)state;
    begin(THREE);
    announce(R0, 0), announce(R2, 2);
    sl_muster_forget(&t.muster, R1, true);
    t.read = t.count;
    tick_after(0);
    LOAD_TOGETHER(0, 2);
}

static void others_are_no_ranks(void **state)
{
    (void)state;
    begin(THREE);
    assert_false(announce(TEXT, 0));
    assert_false(announce(DECODE, 0));
    assert_false(announce(R1, 0));
    assert_false(announce(R1, -1));
    begin("stages: ( { name = \"text\"; }, { name = \"denoise\"; }, { name = \"decode\"; } );");
    assert_false(announce(R0, 0)); /* one alone */
    begin(
        "stages: ( { name = \"text\"; }, { name = \"denoise\"; devices = [\"cpu\", \"cpu\"]; team "
        "= 1; } );");
    assert_false(announce(R0, 0)); /* each for itself */
    sl_muster_on_hello(&t.muster, R1);
    tick_after(9000);
    nothing();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_load_together),     cmocka_unit_test(who_comes_later_loads_alone),
        cmocka_unit_test(nobody_waits_for_ever), cmocka_unit_test(nobody_waits_for_who_is_given_up),
        cmocka_unit_test(others_are_no_ranks),
    };
    return cmocka_run_group_tests_name("muster", tests, NULL, NULL);
}
