/* test_journal.c - the server's queue on SQLite: the cases of every body. What the disk, threads
 * and signals do to it is tests/test_journal_file.c's. */
#include "tests/t_journal_cases.h"

int main(void)
{
    const struct CMUnitTest tests[] = {JOURNAL_CASES};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
