/* t_beside.h - the tests of one program beside each other, each in a process of its own: for tests
 * that mostly wait. None may need what another leaves. */
#ifndef T_BESIDE_H
#define T_BESIDE_H

#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define T_BESIDE_MOST 64

/* This program with the number of a test; it says into a file without a name. */
static inline pid_t t_beside_start(size_t number, int said)
{
    char text[16];
    const pid_t parent = getpid();
    snprintf(text, sizeof text, "%zu", number);
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(127);
        dup2(said, 1);
        dup2(said, 2);
        execl("/proc/self/exe", program_invocation_name, text, (char *)NULL);
        dprintf(2, "no test %s: %s\n", text, strerror(errno));
        _exit(127);
    }
    return pid;
}

static inline void t_beside_show(int said)
{
    char bytes[4096];
    lseek(said, 0, SEEK_SET);
    for (ssize_t n; (n = read(said, bytes, sizeof bytes)) > 0;) fwrite(bytes, 1, (size_t)n, stdout);
    fflush(stdout);
    close(said);
}

/* Call it with main's arguments. Without any all n tests run, at most `at_once` at a time, those
 * that stand first begin first, and what each says is printed as it ends; with a test's number that
 * one runs alone. The number of tests that failed. */
static inline int t_beside(const char *name, const struct CMUnitTest *tests, size_t n, int at_once,
                           int argc, char **argv)
{
    pid_t pids[T_BESIDE_MOST] = {0};
    int said[T_BESIDE_MOST], running = 0, failed = 0;
    const size_t only = argc > 1 ? (size_t)atoi(argv[1]) : 0;
    if (argc > 1 && only < n) return _cmocka_run_group_tests(name, &tests[only], 1, NULL, NULL);
    if (argc > 1 || n > T_BESIDE_MOST) {
        fprintf(stderr, "%s: %zu tests of at most %d; want no argument, or a test's number\n", name,
                n, T_BESIDE_MOST);
        return 1;
    }
    for (size_t next = 0; next < n || running;) {
        if (next < n && running < at_once) {
            said[next] = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
            pids[next] = said[next] < 0 ? -1 : t_beside_start(next, said[next]);
            if (pids[next] < 0) {
                fprintf(stderr, "%s: %s: %s\n", name, tests[next].name, strerror(errno));
                return failed + 1;
            }
            next++, running++;
            continue;
        }
        int status;
        const pid_t ended = waitpid(-1, &status, 0);
        for (size_t i = 0; i < next; i++)
            if (pids[i] == ended) {
                pids[i] = 0;
                running--;
                failed += status != 0;
                t_beside_show(said[i]);
                if (WIFSIGNALED(status)) /* it had no time to say so */
                    printf("[  FAILED  ] %s: signal %d\n", tests[i].name, WTERMSIG(status));
            }
    }
    return failed;
}

#endif
