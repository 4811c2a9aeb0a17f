/* test_pinned.c - pinned memory is kept for the next job of its size, and for no other.
 *
 * The plug-in's two functions are malloc and free, counted: what is held, and how often it was
 * asked for, is what is tested. On a GPU gpu_run and gpu_lease use it. */
#include "t.h"

#include "stages/seat/pinned.h"

static int asked, held;

static void *host_alloc(size_t bytes)
{
    asked++, held++;
    return malloc(bytes);
}

static void host_free(void *p)
{
    held--;
    free(p);
}

static const sl_plugin PLUGIN = {.host_alloc = host_alloc, .host_free = host_free};

/* A job: its blocks are taken, filled, let go. */
static void job(sl_pinned *m, int n, const size_t bytes[])
{
    void *p[SL_PINNED_BLOCKS + 2];
    for (int i = 0; i < n; i++) {
        assert_non_null(p[i] = sl_pinned_alloc(m, &PLUGIN, bytes[i]));
        memset(p[i], i, bytes[i] + 1);
        for (int j = 0; j < i; j++) assert_ptr_not_equal(p[j], p[i]);
    }
    for (int i = 0; i < n; i++) sl_pinned_free(m, &PLUGIN, p[i]);
}

static void the_next_job_takes_them(void **state)
{
    (void)state;
    sl_pinned m = {0};
    asked = held = 0;
    for (int i = 0; i < 100; i++) job(&m, 3, (const size_t[]){100, 200, 100});
    assert_int_equal(asked, 3);
    assert_int_equal(held, 3);
    sl_pinned_close(&m, &PLUGIN);
    assert_int_equal(held, 0);
}

static void another_size_takes_their_place(void **state)
{
    (void)state;
    sl_pinned m = {0};
    asked = held = 0;
    for (size_t i = 0; i < 100; i++) {
        job(&m, 3, (const size_t[]){100 + i, 200 + i, 100 + i});
        assert_int_equal(held, 3);
    }
    assert_int_equal(asked, 300);
    /* one that is used stays */
    void *p = sl_pinned_alloc(&m, &PLUGIN, 7);
    assert_int_equal(held, 1);
    memset(p, 1, 7);
    job(&m, 2, (const size_t[]){8, 9});
    assert_int_equal(held, 3);
    sl_pinned_close(&m, &PLUGIN);
    assert_int_equal(held, 1);
    sl_pinned_free(&m, &PLUGIN, p);
    sl_pinned_close(&m, &PLUGIN);
    assert_int_equal(held, 0);
}

static void more_than_there_are_places(void **state)
{
    (void)state;
    sl_pinned m = {0};
    size_t bytes[SL_PINNED_BLOCKS + 2];
    asked = held = 0;
    for (size_t i = 0; i < SL_PINNED_BLOCKS + 2; i++) bytes[i] = 64;
    for (int i = 0; i < 3; i++) {
        job(&m, SL_PINNED_BLOCKS + 2, bytes);
        assert_int_equal(held, SL_PINNED_BLOCKS);
    }
    sl_pinned_free(&m, &PLUGIN, NULL);
    sl_pinned_close(&m, &PLUGIN);
    assert_int_equal(held, 0);
}

static void *none(size_t bytes)
{
    (void)bytes;
    return NULL;
}

static void no_memory(void **state)
{
    (void)state;
    sl_pinned m = {0};
    const sl_plugin empty = {.host_alloc = none, .host_free = host_free};
    asked = held = 0;
    assert_null(sl_pinned_alloc(&m, &empty, 5));
    job(&m, 2, (const size_t[]){5, 6});
    assert_int_equal(held, 2);
    sl_pinned_close(&m, &PLUGIN);
    assert_int_equal(held, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_next_job_takes_them),
        cmocka_unit_test(another_size_takes_their_place),
        cmocka_unit_test(more_than_there_are_places),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
