/* test_program - a stage's program by its name in a configuration: a path, a program beside sluice,
 * a command. */
#include "tests/t.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "common/program.h"

static char dir[256];

static void touch(const char *name)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(chmod(path, 0755), 0);
}

/* The path, then every word, joined by "|". */
static void means(const char *program, const char *want)
{
    sl_program p;
    sl_err err = {0};
    char got[1024];
    T_OK(sl_program_find(&p, program, dir, &err));
    size_t n = (size_t)snprintf(got, sizeof got, "%s",
                                strncmp(p.path, dir, strlen(dir)) ? p.path : p.path + strlen(dir));
    for (int i = 0; i < p.count; i++)
        n += (size_t)snprintf(got + n, sizeof got - n, "|%s", p.word[i]);
    assert_null(p.word[p.count]);
    assert_string_equal(got, want);
}

static void test_words(void **state)
{
    char program[400], want[900], *old = strdup(getenv("PATH"));
    (void)state;
    touch("sluice-mine");
    touch("with a space");
    touch("elsewhere");
    setenv("PATH", dir, 1);
    means("sluice-mine", "/sluice-mine|sluice-mine");
    means("sluice-mine  --a  b ", "/sluice-mine|sluice-mine|--a|b");
    means("./no/such --a", "./no/such|./no/such|--a");
    means("no-such", "/no-such|no-such");
    snprintf(program, sizeof program, "%s/with a space", dir);
    snprintf(want, sizeof want, "/with a space|%s", program);
    means(program, want);
    /* beside sluice comes first, then PATH */
    char *beside = strdup(dir);
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    snprintf(want, sizeof want, "%s/elsewhere|elsewhere|mine.py", beside);
    means("elsewhere mine.py", want);
    touch("elsewhere");
    means("elsewhere mine.py", "/elsewhere|elsewhere|mine.py");
    setenv("PATH", old, 1);
    t_rmdir(dir);
    t_rmdir(beside);
    free(beside);
    free(old);
}

static void test_refused(void **state)
{
    sl_program p;
    sl_err err = {0};
    char words[256] = "";
    (void)state;
    for (int i = 0; i <= SL_PROGRAM_WORDS; i++) strcat(words, "a ");
    T_CODE(sl_program_find(&p, words, "/", &err), SL_ARG);
    assert_string_equal(err.msg, "program has more than 16 words, want args for the others");
    T_CODE(sl_program_find(&p, "  ", "/", &err), SL_ARG);
    assert_string_equal(err.msg, "program has no word");
}

static int open_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s", t_tmpdir());
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup(test_words, open_dir),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests_name("program", tests, NULL, NULL);
}
