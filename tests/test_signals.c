/* test_signals - Ctrl-Z stops the stages and fg goes on; the first Ctrl-C ends a run whatever a
 * stage does; a stage without memory is told, not waited for. */
#include "tests/t_run.h"

#include <sys/resource.h>

#include "common/process.h"

static t_run run;

static void start(const char *steps)
{
    static char output[400];
    char *args[T_ARGS] = {"sluice", "run",      "--quiet",     "--conf",   run.conf, "--model",
                          T_MODEL,  "--image",  T_IMAGE,       "--prompt", "x",      "--width",
                          "96",     "--height", "64",          "--seed",   "7",      "--frames",
                          "17",     "--steps",  (char *)steps, "--output", output};
    snprintf(output, sizeof output, "%s/a.mp4", run.out);
    t_run_start(&run, args);
}

static uint64_t ticks_of(pid_t pid)
{
    sl_process is;
    if (!sl_process_look(&is, pid)) t_run_fail(&run, "process %d is gone", (int)pid);
    return is.user_ticks + is.system_ticks;
}

/* Longer than supervise.stall_s: and nobody is killed for it. */
static void test_pause(void **state)
{
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 5, 2, "");
    start("60");
    t_run_until(&run, "stage=\"denoise\" done=3 ");
    kill(run.pid, SIGSTOP);
    usleep(500000);
    const uint64_t before = ticks_of(run.stages[3]);
    usleep(3500000);
    const uint64_t used = ticks_of(run.stages[3]) - before;
    kill(run.pid, SIGCONT);
    if (used > 2) t_run_fail(&run, "%d ticks of CPU while it was stopped", (int)used);
    t_run_ends(&run, 0);
    if (t_run_said(&run, "killed") || t_run_said(&run, "ended: signal"))
        t_run_fail(&run, "a process was killed for the pause");
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

static void test_first_interrupt(void **state)
{
    (void)state;
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    start("1000");
    t_run_until(&run, "stage=\"denoise\" done=3 ");
    kill(run.stages[3], SIGSTOP); /* it hears nothing */
    const double t0 = t_seconds();
    kill(run.pid, SIGINT);
    t_run_ends(&run, 1);
    if (t_seconds() - t0 > 6) t_run_fail(&run, "it took %.1f s", t_seconds() - t0);
    if (!t_run_said(&run, "cancelled")) t_run_fail(&run, "nobody said that it was cancelled");
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

static void test_address_space(void **state)
{
    struct rlimit old, less;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    less = old;
    less.rlim_cur = 614400000; /* below 500 MB the libraries themselves do not start */
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    assert_int_equal(setrlimit(RLIMIT_AS, &less), 0);
    const double t0 = t_seconds();
    start("2");
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    int got = t_run_end(&run);
    if (got != 1 && got != 2) t_run_fail(&run, "exit status %d, want 1 or 2", got);
    if (t_seconds() - t0 > 20) t_run_fail(&run, "it took %.1f s", t_seconds() - t0);
    if (!t_run_said(&run, "ulimit -v") && !t_run_said(&run, "no memory"))
        t_run_fail(&run, "nobody said why");
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pause),
                                       cmocka_unit_test(test_first_interrupt),
                                       cmocka_unit_test(test_address_space)};
    return cmocka_run_group_tests_name("signals", tests, NULL, NULL);
}
