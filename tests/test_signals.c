/* test_signals - Ctrl-Z stops the stages and fg goes on; the first Ctrl-C ends a run whatever a
 * stage does; a stage without memory is told, not waited for, and one that the kernel kills
 * for it
 * says so. takes: 8 s. */
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

/* ---- a real kill for want of memory ---- */

static char group[600]; /* a cgroup of the test's own, within its own */

static bool put_in(const char *file, const char *text)
{
    FILE *f = fopen(t_format("%s/%s", group, file), "w");
    const bool put = f && fputs(text, f) >= 0;
    return f && !fclose(f) && put;
}

/* A cgroup that gives `bytes`, in the first of these hierarchies that lets one be made. */
static bool make_group(const char *bytes)
{
    static const struct {
        const char *root, *line, *limit;
    } KINDS[] = {{"/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes"},
                 {"/sys/fs/cgroup", "0::", "memory.max"}};
    char own[4096] = "";
    FILE *f = fopen("/proc/self/cgroup", "r");
    bool made = false;
    if (f) own[fread(own, 1, sizeof own - 1, f)] = 0, fclose(f);
    for (int i = 0; i < 2 && !made; i++) {
        char *at = strstr(own, KINDS[i].line);
        if (!at) continue;
        at += strlen(KINDS[i].line);
        const int length = (int)strcspn(at, "\n");
        /* in a container the file's path may be the host's: then its root is what is mounted */
        for (int whole = 1; whole >= 0 && !made; whole--) {
            snprintf(group, sizeof group, "%s%.*s/sluice-test-%d", KINDS[i].root,
                     whole ? length : 0, at, (int)getpid());
            if (mkdir(group, 0700)) continue;
            made = put_in(KINDS[i].limit, bytes);
            if (!made) rmdir(group);
        }
    }
    return made;
}

static int remove_group(void **state)
{
    (void)state;
    for (int i = 0; i < 100 && *group && rmdir(group) && errno == EBUSY; i++) usleep(20000);
    *group = 0;
    return 0;
}

/* The decoder, moved into a cgroup without memory, is killed by the kernel for the first frames:
 * the log says of what it died, and the next one, which has memory, makes the video. */
static void test_out_of_memory(void **state)
{
    (void)state;
    if (!make_group("2097152")) skip(); /* no cgroup may be made here */
    t_run_open(&run);
    t_run_conf(&run, 5, 30, "");
    start("20");
    t_run_until(&run, "<- decode READY");
    const pid_t decoder = run.stages[4];
    if (!put_in("cgroup.procs", t_format("%d", (int)decoder)))
        t_run_fail(&run, "the decoder cannot be moved to %s", group);
    t_run_ends(&run, 0);
    if (!t_run_said(&run, t_format("decode[%d] ended: killed by the kernel: out of memory at ",
                                   (int)decoder)))
        t_run_fail(&run, "nobody said that the decoder was killed for want of memory");
    if (t_count_files(run.out, "a.mp4") != 1) t_run_fail(&run, "there is no video");
    t_run_nothing_left(&run, 0);
    t_run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pause),
                                       cmocka_unit_test(test_first_interrupt),
                                       cmocka_unit_test(test_address_space),
                                       cmocka_unit_test_teardown(test_out_of_memory, remove_group)};
    return cmocka_run_group_tests_name("signals", tests, NULL, NULL);
}
