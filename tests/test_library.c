/* test_library.c - functions of libraries that are loaded when they are needed; one that is not
 * there is one clear line. */
#include "tests/t.h"

#include <math.h>

#include "common/av.h"

#define LIST(F) F(fabs) F(fmax)
static struct {
    LIST(SL_LIBRARY_FIELD)
    __typeof__(&fabs) other;
} m;
#define ROW(name) {#name, &m.name},
static const sl_library_function ROWS[] = {LIST(ROW)}, LACKING[] = {{"sluice_none", &m.other}};

static void test_loads(void **state)
{
    sl_library l = {"libm.so.6", "the C library", ROWS, 2, false};
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        T_OK(sl_library_load(&l, &err));
        assert_true(l.loaded);
        assert_true(m.fabs(-3) == 3);
        assert_true(m.fmax(3, 4) == 4);
    }
}

static void test_what_is_not_there(void **state)
{
    sl_library none = {"libsluice-none.so.7", "FFmpeg's libnone", ROWS, 2, false},
               lacking = {"libm.so.6", "FFmpeg's libm", LACKING, 1, false};
    sl_err err = {0};
    (void)state;
    for (int i = 0; i < 2; i++) {
        T_CODE(sl_library_load(&none, &err), SL_SYS);
        assert_string_equal(err.msg,
                            "libsluice-none.so.7: cannot open shared object file: No such file or "
                            "directory, want FFmpeg's libnone");
        T_CODE(sl_library_load(&lacking, &err), SL_SYS);
        assert_string_equal(err.msg, "libm.so.6 has no function sluice_none, want FFmpeg's libm");
    }
}

/* Every function that is called of FFmpeg's is in the version that this was built with. */
static void test_av(void **state)
{
    const sl_av *av = NULL, *again = NULL;
    sl_err err = {0};
    (void)state;
    T_OK(sl_av_load(&av, &err));
    T_OK(sl_av_load(&again, &err));
    assert_ptr_equal(av, again);
    assert_int_equal(av->avcodec_version() >> 16, LIBAVCODEC_VERSION_MAJOR);
    for (size_t i = 0; i < sizeof *av / sizeof(void *); i++)
        assert_non_null(((void *const *)av)[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loads),
                                       cmocka_unit_test(test_what_is_not_there),
                                       cmocka_unit_test(test_av)};
    return cmocka_run_group_tests_name("library", tests, NULL, NULL);
}
