/* test_voice - what a program that is not Sluice's own prints: every byte of it comes to the log, a
 * line that is longer than the log's in parts. */
#include "tests/t.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/dispatch/voice.h"

/* What the log has of `n` bytes that a program printed: without what stands before each part. The
 * caller's to free. */
static char *heard(const char *printed, size_t n)
{
    char path[] = "/tmp/sluice-voice-XXXXXX", line[2 * SL_LOG_LINE];
    const int fd = mkstemp(path), was = dup(STDERR_FILENO);
    sl_voice *v;
    sl_err err = {0};
    int end;
    char *all = calloc(1, n + 1);
    assert_true(fd >= 0 && was >= 0 && all);
    unlink(path);
    fflush(stderr);
    dup2(fd, STDERR_FILENO);
    const sl_code rc = sl_voice_open(&v, &end, "mine", &err);
    if (!rc) {
        sl_voice_of(v, 4711);
        for (size_t at = 0; at < n;) {
            const ssize_t k = write(end, printed + at, n - at);
            if (k <= 0) break;
            at += (size_t)k;
        }
        close(end);
        sl_voice_close(&v);
    }
    dup2(was, STDERR_FILENO);
    close(was);
    T_OK(rc);
    lseek(fd, 0, SEEK_SET);
    FILE *f = fdopen(fd, "r");
    assert_non_null(f);
    for (size_t used = 0; fgets(line, sizeof line, f);) {
        const char *text = strstr(line, "mine[4711] info: ");
        if (!text) fail_msg("a line without its name: %.80s", line);
        text += strlen("mine[4711] info: ");
        const size_t k = strcspn(text, "\n");
        assert_true(used + k <= n);
        memcpy(all + used, text, k);
        used += k;
    }
    fclose(f);
    return all;
}

static void long_lines_come_in_parts(void **state)
{
    static const size_t LENGTHS[] = {1,    100,  SL_LOG_LINE - 128,   SL_LOG_LINE,
                                     4000, 4096, 2 * SL_LOG_LINE + 1, 20000};
    (void)state;
    for (size_t i = 0; i < sizeof LENGTHS / sizeof *LENGTHS; i++) {
        const size_t n = LENGTHS[i];
        char *line = malloc(n + 2);
        assert_non_null(line);
        for (size_t k = 0; k < n; k++) line[k] = (char)('a' + k % 26);
        memcpy(line + n, "\n", 2);
        char *got = heard(line, n + 1);
        line[n] = 0;
        if (strcmp(got, line)) fail_msg("a line of %zu: %zu of it came, or others", n, strlen(got));
        free(got);
        free(line);
    }
}

static void lines_come_apart(void **state)
{
    (void)state;
    char *got = heard("one\ntwo\rthree", 13);
    assert_string_equal(got, "onetwothree");
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(long_lines_come_in_parts),
                                       cmocka_unit_test(lines_come_apart)};
    return cmocka_run_group_tests_name("voice", tests, NULL, NULL);
}
