/* test_blas - a processor that OpenBLAS does not know computes with the kernels for its
 * instructions: which those are, and that the processes of the command have them. */
#include "tests/t.h"

#include "kernels/cpu/blas.h"

static void is(const char *got, const char *want)
{
    if (!want) assert_null(got);
    if (want) assert_string_equal(got ? got : "none", want);
}

static void test_better(void **state)
{
    (void)state;
    is(sl_blas_better("Prescott", true, true), "SkylakeX");
    is(sl_blas_better("Prescott", true, false), "Haswell");
    is(sl_blas_better("Prescott", false, false), NULL);
    is(sl_blas_better("Zen", true, false), NULL);
    is(sl_blas_better("Cooperlake", true, true), NULL);
    is(sl_blas_better("SkylakeX", true, true), NULL);
}

static void test_who_asks_gets_it(void **state)
{
    (void)state;
    setenv("OPENBLAS_CORETYPE", "Nehalem", 1);
    is(sl_blas_settle(), "Nehalem");
    is(getenv("OPENBLAS_CORETYPE"), "Nehalem");
}

/* The line `kernels` of `sluice --version`, as a process of the command's has them. */
static void kernels(char name[64], const char *environment)
{
    const char *bin = getenv("SLUICE_BIN");
    char command[1024];
    snprintf(command, sizeof command, "env %s %s/sluice --version | sed -n 's/^ *kernels *//p'",
             environment, bin ? bin : "bin");
    FILE *f = popen(command, "r");
    assert_non_null(f);
    *name = 0;
    if (fgets(name, 64, f)) name[strcspn(name, "\n")] = 0;
    assert_int_equal(pclose(f), 0);
}

/* With the kernels of 2004 as the library's choice, and without a wish, the same are settled. */
static void test_command(void **state)
{
    char name[64];
    (void)state;
    kernels(name, "OPENBLAS_CORETYPE=Nehalem");
    assert_string_equal(name, "Nehalem");
    kernels(name, "-u OPENBLAS_CORETYPE");
    unsetenv("OPENBLAS_CORETYPE");
    assert_string_equal(name, sl_blas_settle());
#if defined __AVX2__ && defined __FMA__
    assert_string_not_equal(name, "Prescott"); /* built here, with -march=native */
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_better),
        cmocka_unit_test(test_who_asks_gets_it),
        cmocka_unit_test(test_command),
    };
    return cmocka_run_group_tests_name("blas", tests, NULL, NULL);
}
