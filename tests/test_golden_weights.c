/* test_golden_weights.c - the golden models' weights are the bytes that the reference had, and
 * helper_weights makes them. */
#include "tests/t_run.h"

static void every_file_has_its_sum(void **state)
{
    (void)state;
    /* `make golden` has made what was missing */
    assert_int_equal(system("cd tests/golden && sha256sum --quiet --check weights.sha256"), 0);
}

/* The shortest recipe: three files of bf16, in one row of numbers. */
static void they_are_made_again(void **state)
{
    char dir[256], command[2048];
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    snprintf(command, sizeof command,
             "from=tests/golden/tiny-flf2v/model/text_encoder; cp $from/weights.txt %s && %s %s && "
             "for f in $from/*.safetensors; do cmp $f %s/${f##*/} || exit 1; done && "
             "test $(ls %s/*.safetensors | wc -l) = 3",
             dir, t_helper("helper_weights"), dir, dir, dir);
    assert_int_equal(system(command), 0);
    t_rmdir(dir);
}

static void says_what_is_missing(void **state)
{
    char command[1024];
    (void)state;
    snprintf(command, sizeof command,
             "%s tests/golden/demo 2>&1 | grep -qx 'helper_weights: tests/golden/demo/weights.txt: "
             "No such file or directory'",
             t_helper("helper_weights"));
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_file_has_its_sum),
                                       cmocka_unit_test(they_are_made_again),
                                       cmocka_unit_test(says_what_is_missing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
