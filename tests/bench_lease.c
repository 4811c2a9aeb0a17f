/* bench_lease.c - what a hand-over costs: the calls alone, between two processes, and 64 MB without a copy against memcpy. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/lease.h"
#include "common/trace.h"

enum { WARM = 200, ROUNDS = 5000, CALLS = 200000, BIG_ROUNDS = 12 };
#define BIG ((int64_t)64 << 20)

static sl_err err;

static void check(sl_code rc, const char *what)
{
    if (!rc) return;
    fprintf(stderr, "bench_lease: %s: %s\n", what, err.msg);
    exit(1);
}
static void move(ssize_t n, size_t want)
{
    if (n != (ssize_t)want) exit(1);
}

static sl_pool *create(const char *name, size_t bytes)
{
    sl_pool *p;
    check(sl_pool_create(&p, name, SL_POOL_HOST, 2, bytes, &err), "create");
    return p;
}

static sl_ticket send_small(sl_pool *p)
{
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    check(sl_lease_reserve(&l, p, 1000, &err), "reserve");
    check(sl_lease_add(l, "x", SL_F32, 2, (int64_t[]){16, 16}, &t, &err), "add");
    *(float *)t.data = 1;
    check(sl_lease_seal(l, NULL, &ticket, &err), "seal");
    sl_lease_drop(&l, NULL);
    return ticket;
}
static void receive_small(sl_pool *p, const sl_ticket *ticket)
{
    sl_lease *l;
    sl_tensor t;
    check(sl_lease_open(&l, p, ticket, NULL, &err), "open");
    check(sl_lease_tensor(l, "x", &t, &err), "tensor");
    if (*(volatile float *)t.data != 1) exit(1);
    sl_lease_drop(&l, NULL);
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}
static void report(const char *what, int64_t *ns, int n)
{
    qsort(ns, (size_t)n, sizeof *ns, by_value);
    printf("%-64s p50 %8.2f us   p99 %8.2f us\n", what, (double)ns[n / 2] / 1e3, (double)ns[n * 99 / 100] / 1e3);
}

/* reserve, add, seal, drop, open, drop in one thread: what the state machine itself costs. */
static void bench_calls(void)
{
    sl_pool *owner = create("calls", 4096), *sender;
    sl_pool_handle h;
    sl_pool_export(owner, &h);
    check(sl_pool_open(&sender, &h, &err), "open");
    int64_t t0 = sl_now_ns();
    for (int i = 0; i < CALLS; i++) {
        sl_ticket t = send_small(sender);
        receive_small(owner, &t);
    }
    printf("%-64s %12.2f us\n", "all calls of one hand-over, one process", (double)(sl_now_ns() - t0) / 1e3 / CALLS);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

/* The other process: first an echo of tickets as plain bytes, then each hand-over answered by one in the other direction. */
static void echo(int s, const sl_pool_handle *to_parent)
{
    sl_pool *mine = create("child", 4096), *theirs;
    sl_pool_handle h;
    sl_ticket t;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    check(sl_pool_open(&theirs, to_parent, &err), "open");
    sl_pool_export(mine, &h);
    move(write(s, &h, sizeof h), sizeof h);
    for (int i = 0; i < ROUNDS + WARM; i++) {
        move(read(s, &t, sizeof t), sizeof t);
        move(write(s, &t, sizeof t), sizeof t);
    }
    for (int i = 0; i < ROUNDS + WARM; i++) {
        move(read(s, &t, sizeof t), sizeof t);
        receive_small(mine, &t);
        t = send_small(theirs);
        move(write(s, &t, sizeof t), sizeof t);
    }
    sl_pool_close(&theirs);
    sl_pool_close(&mine);
    _exit(0);
}

static void bench_round_trip(void)
{
    static int64_t ns[ROUNDS];
    sl_pool *mine = create("parent", 4096), *theirs;
    sl_pool_handle h;
    sl_ticket t = {0};
    int s[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s)) exit(1);
    sl_pool_export(mine, &h);
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) echo(s[1], &h);
    close(s[1]);
    move(read(s[0], &h, sizeof h), sizeof h);
    check(sl_pool_open(&theirs, &h, &err), "open");
    for (int i = -WARM; i < ROUNDS; i++) {
        int64_t t0 = sl_now_ns();
        move(write(s[0], &t, sizeof t), sizeof t);
        move(read(s[0], &t, sizeof t), sizeof t);
        if (i >= 0) ns[i] = sl_now_ns() - t0;
    }
    report("round trip of 24 plain bytes over a socket, two processes", ns, ROUNDS);
    for (int i = -WARM; i < ROUNDS; i++) {
        int64_t t0 = sl_now_ns();
        t = send_small(theirs);
        move(write(s[0], &t, sizeof t), sizeof t);
        move(read(s[0], &t, sizeof t), sizeof t);
        receive_small(mine, &t);
        if (i >= 0) ns[i] = sl_now_ns() - t0;
    }
    report("round trip of a hand-over each way over the same socket", ns, ROUNDS);
    waitpid(pid, NULL, 0);
    close(s[0]);
    sl_pool_close(&theirs);
    sl_pool_close(&mine);
}

/* ---- 64 MB ---- */

static void fill(uint64_t *x, uint64_t v)
{
    for (int64_t i = 0; i < BIG / 8; i++) x[i] = v + (uint64_t)i;
}
static uint64_t sum(const uint64_t *x)
{
    uint64_t s = 0;
    for (int64_t i = 0; i < BIG / 8; i++) s += x[i];
    return s;
}

typedef struct {
    sl_ticket ticket;
    int64_t fill_ns, sealing_ns; /* sealing: when seal was called */
} big_message;

static void big_sender(int s, const sl_pool_handle *h)
{
    sl_pool *p;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    check(sl_pool_open(&p, h, &err), "open");
    for (int i = 0; i < BIG_ROUNDS; i++) {
        big_message m;
        sl_lease *l;
        sl_tensor t;
        check(sl_lease_reserve(&l, p, 10000, &err), "reserve");
        check(sl_lease_add(l, "x", SL_I64, 1, (int64_t[]){BIG / 8}, &t, &err), "add");
        int64_t t0 = sl_now_ns();
        fill(t.data, (uint64_t)i);
        m.sealing_ns = sl_now_ns();
        m.fill_ns = m.sealing_ns - t0;
        check(sl_lease_seal(l, NULL, &m.ticket, &err), "seal");
        sl_lease_drop(&l, NULL);
        move(write(s, &m, sizeof m), sizeof m);
        char go;
        move(read(s, &go, 1), 1); /* sender and receiver take turns: neither shares the memory bus */
    }
    sl_pool_close(&p);
    _exit(0);
}

static void rate(const char *what, int64_t *ns)
{
    qsort(ns, BIG_ROUNDS, sizeof *ns, by_value);
    printf("%-64s %8.2f ms   %8.2f GB/s\n", what, (double)ns[BIG_ROUNDS / 2] / 1e6, (double)BIG / (double)ns[BIG_ROUNDS / 2]);
}

static void bench_big(void)
{
    int64_t wrote[BIG_ROUNDS], handed[BIG_ROUNDS], read_in_place[BIG_ROUNDS], copied[BIG_ROUNDS];
    sl_pool *p = create("big", (size_t)BIG);
    sl_pool_handle h;
    int s[2];
    uint64_t *a = malloc((size_t)BIG), *b = malloc((size_t)BIG);
    if (!a || !b || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s)) exit(1);
    sl_pool_export(p, &h);
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) big_sender(s[1], &h);
    close(s[1]);
    for (int i = 0; i < BIG_ROUNDS; i++) {
        big_message m;
        sl_lease *l;
        sl_tensor t;
        move(read(s[0], &m, sizeof m), sizeof m);
        check(sl_lease_open(&l, p, &m.ticket, NULL, &err), "open");
        check(sl_lease_tensor(l, "x", &t, &err), "tensor");
        int64_t opened = sl_now_ns();
        volatile uint64_t got = sum(t.data),
                          want = (uint64_t)(BIG / 8) * ((uint64_t)i + (uint64_t)(BIG / 8 - 1) / 2) + (uint64_t)(BIG / 16);
        int64_t end = sl_now_ns();
        if (got != want) {
            fprintf(stderr, "bench_lease: sum %llu, want %llu\n", (unsigned long long)got, (unsigned long long)want);
            exit(1);
        }
        sl_lease_drop(&l, NULL);
        wrote[i] = m.fill_ns;
        handed[i] = opened - m.sealing_ns;
        read_in_place[i] = end - opened;
        move(write(s[0], "g", 1), 1);
    }
    waitpid(pid, NULL, 0);
    close(s[0]);
    fill(a, 1);
    fill(b, 2);
    for (int i = 0; i < BIG_ROUNDS; i++) {
        int64_t t0 = sl_now_ns();
        memcpy(b, a, (size_t)BIG);
        copied[i] = sl_now_ns() - t0;
        a[0] += b[BIG / 8 - 1];
    }
    rate("64 MB written straight into the slot", wrote);
    rate("64 MB read in place by the other process", read_in_place);
    rate("for comparison: memcpy of 64 MB", copied);
    report("seal to open of 64 MB, the ticket over a socket", handed, BIG_ROUNDS);
    free(a);
    free(b);
    sl_pool_close(&p);
}

int main(void)
{
    bench_calls();
    bench_round_trip();
    bench_big();
    return 0;
}
