/* t_hosts.h - network namespaces as hosts, of a test of one thread (or before its others begin).
 *
 *     test process, 10.77.0.1 -- bridge --+-- host 1, 10.77.0.11
 *                                         +-- host 2, 10.77.0.12
 *                                         ...
 *
 * The test moves into a network of its own, so that nothing of the machine's is touched or reached,
 * and all of it is gone with the test. A host is a namespace, joined by a pair of veths to a bridge;
 * a child enters it by setns(net) before its exec. A host that is cut off has no link: what was
 * sent is lost, and nobody is told. It wants root, or a machine whose users may make namespaces, and
 * `ip` (iproute2). */
#ifndef T_HOSTS_H
#define T_HOSTS_H

#include "tests/t.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#define T_HOSTS_HERE "10.77.0.1" /* the test's own address, and what is started beside it */

typedef struct {
    int net; /* the namespace, which lives as long as this is open; -1: there is none */
    int number;
    char address[24];
} t_host;

static inline bool t_hosts_write(const char *path, const char *text)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    const bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0) close(fd);
    return ok;
}

static inline bool t_hosts_ip(const char *format, ...)
{
    char line[256], all[400];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    snprintf(all, sizeof all, "PATH=$PATH:/usr/sbin:/sbin ip %s", line);
    return !system(all);
}

/* Where root is not there, root of a user namespace of its own is as good. */
static inline bool t_hosts_unshare(void)
{
    char map[64];
    const unsigned uid = (unsigned)geteuid(), gid = (unsigned)getegid();
    if (!uid) return !unshare(CLONE_NEWNET);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) return false;
    snprintf(map, sizeof map, "0 %u 1", uid);
    if (!t_hosts_write("/proc/self/setgroups", "deny") || !t_hosts_write("/proc/self/uid_map", map))
        return false;
    snprintf(map, sizeof map, "0 %u 1", gid);
    return t_hosts_write("/proc/self/gid_map", map);
}

static inline bool t_hosts_lay(void)
{
    return t_hosts_unshare() && t_hosts_ip("link set lo up 2>&1") &&
           t_hosts_ip("link add hosts type bridge 2>&1") &&
           t_hosts_ip("addr add " T_HOSTS_HERE "/24 dev hosts 2>&1") &&
           t_hosts_ip("link set hosts up 2>&1");
}

/* May this machine's user have hosts? Tried in a child, which leaves nothing behind. */
static inline bool t_hosts_are_had(void)
{
    int status = 1;
    fflush(NULL);
    const pid_t pid = fork();
    if (!pid) {
        const int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        dup2(null, 2);
        _exit(!t_hosts_lay());
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

/* This process, and what it starts from now on, into a network of its own. */
static inline void t_hosts_open(void)
{
    if (!t_hosts_lay()) fail_msg("namespaces: %s", strerror(errno));
}

static inline void t_host_cut(const t_host *h)
{
    assert_true(t_hosts_ip("link set host%d down", h->number));
}

static inline void t_host_join(const t_host *h)
{
    assert_true(t_hosts_ip("link set host%d up", h->number));
}

/* number: 1 to 200. */
static inline void t_host_open(t_host *h, int number)
{
    int to[2], from[2], status;
    char c, path[64];
    *h = (t_host){.number = number};
    snprintf(h->address, sizeof h->address, "10.77.0.%d", 10 + number);
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    const pid_t pid = fork();
    if (!pid) {
        close(to[1]);
        if (unshare(CLONE_NEWNET) || write(from[1], "n", 1) != 1 || read(to[0], &c, 1) != 1)
            _exit(1);
        _exit(!(t_hosts_ip("link set lo up") && t_hosts_ip("link set eth0 up") &&
                t_hosts_ip("addr add %s/24 dev eth0", h->address)));
    }
    assert_true(pid > 0);
    close(from[1]);
    assert_int_equal(read(from[0], &c, 1), 1);
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)pid);
    h->net = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(h->net >= 0);
    assert_true(t_hosts_ip("link add host%d type veth peer name eth0 netns %d", number, (int)pid));
    assert_true(t_hosts_ip("link set host%d master hosts up", number));
    assert_int_equal(write(to[1], "g", 1), 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(to[0]);
    close(to[1]);
    close(from[0]);
}

/* Its processes have ended. */
static inline void t_host_close(t_host *h)
{
    assert_true(t_hosts_ip("link del host%d", h->number));
    close(h->net);
    h->net = -1;
}

#endif
