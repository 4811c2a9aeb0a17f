/* bench_lease.c - what a hand-over costs: the calls alone, between two processes, and 64
 * MB without a copy against memcpy.
 *
 * bench_lease --cuda: the same on GPU 0, with a second process: slots of device memory
 * and pinned host slots, 64 MB and 1 GB. */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/lease.h"
#include "common/trace.h"
#include "kernels/plugin.h"

extern char **environ;

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
    printf("%-64s p50 %8.2f us   p99 %8.2f us\n", what, (double)ns[n / 2] / 1e3,
           (double)ns[n * 99 / 100] / 1e3);
}

/* reserve, add, seal, drop, open, drop in one thread: what the state machine itself
 * costs. */
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
    printf("%-64s %12.2f us\n", "all calls of one hand-over, one process",
           (double)(sl_now_ns() - t0) / 1e3 / CALLS);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

/* The other process: first an echo of tickets as plain bytes, then each hand-over
 * answered by one in the other direction. */
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
        /* sender and receiver take turns: neither shares the memory bus */
        move(read(s, &go, 1), 1);
    }
    sl_pool_close(&p);
    _exit(0);
}

static void rate(const char *what, int64_t *ns)
{
    qsort(ns, BIG_ROUNDS, sizeof *ns, by_value);
    printf("%-64s %8.2f ms   %8.2f GB/s\n", what, (double)ns[BIG_ROUNDS / 2] / 1e6,
           (double)BIG / (double)ns[BIG_ROUNDS / 2]);
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
                          want = (uint64_t)(BIG / 8) * ((uint64_t)i + (uint64_t)(BIG / 8 - 1) / 2) +
                                 (uint64_t)(BIG / 16);
        int64_t end = sl_now_ns();
        if (got != want) {
            fprintf(stderr, "bench_lease: sum %llu, want %llu\n", (unsigned long long)got,
                    (unsigned long long)want);
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

/* ---- a GPU ---- */

static const sl_plugin *gpu;
static sl_ctx ctx;
static const size_t SIZES[] = {(size_t)64 << 20, (size_t)1 << 30};
static const char *const SIZE_NAMES[] = {"64 MB", "1 GB"};
enum { SIZE_COUNT = 2, KINDS = 2 }; /* kinds: SL_POOL_HOST, SL_POOL_CUDA */

/* false: no GPU is here. */
static bool open_gpu(void)
{
    if (!(gpu = sl_plugin_cuda(&err)) || !gpu->devices()) return false;
    check(gpu->use(0, &err), "use");
    check(sl_ctx_open(&ctx, gpu->ops, 0, &err), "context");
    sl_pool_use_cuda(gpu->slabs);
    return true;
}
static void synced(const char *what)
{
    sl_sync(&ctx);
    if (!sl_ok(&ctx)) check(sl_ctx_error(&ctx, &err), what);
}
static sl_tensor device_bytes(size_t bytes)
{
    sl_tensor t = sl_view1(sl_device_alloc(&ctx, bytes), SL_F32, (int64_t)(bytes / 4));
    synced("device memory");
    return t;
}
/* One copy between a slot of p (NULL: another device tensor) and this process's own
 * tensor; waits for it. ns. */
static int64_t copy_timed(const sl_pool *p, const sl_tensor *slot, const sl_tensor *own, bool out)
{
    synced("before the copy");
    int64_t t0 = sl_now_ns();
    if (!p || sl_pool_kind_of(p) == SL_POOL_CUDA) sl_copy(&ctx, out ? own : slot, out ? slot : own);
    else if (out) gpu->copy_in(&ctx, own->data, slot->data, sl_bytes(own));
    else gpu->copy_out(&ctx, slot->data, own->data, sl_bytes(own));
    synced("copy");
    return sl_now_ns() - t0;
}

static sl_ticket cuda_send_small(sl_pool *p)
{
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    check(sl_lease_reserve(&l, p, 1000, &err), "reserve");
    check(sl_lease_add(l, "x", SL_F32, 2, (int64_t[]){16, 16}, &t, &err), "add");
    check(sl_lease_seal(l, ctx.stream, &ticket, &err), "seal");
    sl_lease_drop(&l, ctx.stream);
    return ticket;
}
static void cuda_receive_small(sl_pool *p, const sl_ticket *ticket)
{
    sl_lease *l;
    check(sl_lease_open(&l, p, ticket, ctx.stream, &err), "open");
    sl_lease_drop(&l, ctx.stream);
}

/* The second process, socket on stdin: small hand-overs back and forth, then the big
 * ones. */
static void cuda_peer(void)
{
    sl_pool *mine, *theirs;
    sl_pool_handle h;
    sl_ticket t;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!open_gpu()) exit(1);
    check(sl_pool_create(&mine, "child", SL_POOL_CUDA, 2, 4096, &err), "create");
    move(read(0, &h, sizeof h), sizeof h);
    check(sl_pool_open(&theirs, &h, &err), "open");
    sl_pool_export(mine, &h);
    move(write(0, &h, sizeof h), sizeof h);
    for (int i = 0; i < ROUNDS + WARM; i++) {
        move(read(0, &t, sizeof t), sizeof t);
        cuda_receive_small(mine, &t);
        t = cuda_send_small(theirs);
        move(write(0, &t, sizeof t), sizeof t);
    }
    sl_pool_close(&theirs);
    sl_pool_close(&mine);
    for (int n = 0; n < SIZE_COUNT * KINDS; n++) {
        sl_tensor own = device_bytes(SIZES[n / KINDS]);
        move(read(0, &h, sizeof h), sizeof h);
        check(sl_pool_open(&theirs, &h, &err), "open");
        check(sl_pool_pin(theirs, &err), "pin");
        for (int i = 0; i < BIG_ROUNDS; i++) {
            big_message m;
            sl_lease *l;
            sl_tensor slot;
            char go;
            check(sl_lease_reserve(&l, theirs, 10000, &err), "reserve");
            check(sl_lease_add(l, "x", SL_F32, 1, own.shape, &slot, &err), "add");
            m.fill_ns = copy_timed(theirs, &slot, &own, false);
            m.sealing_ns = sl_now_ns();
            check(sl_lease_seal(l, ctx.stream, &m.ticket, &err), "seal");
            sl_lease_drop(&l, ctx.stream);
            move(write(0, &m, sizeof m), sizeof m);
            move(read(0, &go, 1), 1);
        }
        sl_pool_close(&theirs);
        sl_device_free(&ctx, own.data);
    }
    sl_ctx_close(&ctx);
    exit(0);
}

static void rate_of(const char *size, const char *what, int64_t *ns, size_t bytes)
{
    char line[96];
    qsort(ns, BIG_ROUNDS, sizeof *ns, by_value);
    snprintf(line, sizeof line, "%s %s", size, what);
    printf("%-64s %8.3f ms   %8.2f GB/s\n", line, (double)ns[BIG_ROUNDS / 2] / 1e6,
           (double)bytes / (double)ns[BIG_ROUNDS / 2]);
}

static void cuda_big(int s, int size, sl_pool_kind kind)
{
    static const char *const in[] = {"copied from the device into a pinned slot",
                                     "copied into a slot of the other process"};
    static const char *const out[] = {"copied from a pinned slot to the device",
                                      "copied out of the slot by its owner"};
    int64_t wrote[BIG_ROUNDS], handed[BIG_ROUNDS], copied[BIG_ROUNDS];
    size_t bytes = SIZES[size];
    char line[96];
    sl_tensor own = device_bytes(bytes);
    sl_pool *p;
    sl_pool_handle h;
    check(sl_pool_create(&p, "big", kind, 2, bytes, &err), "create");
    check(sl_pool_pin(p, &err), "pin");
    sl_pool_export(p, &h);
    move(write(s, &h, sizeof h), sizeof h);
    for (int i = 0; i < BIG_ROUNDS; i++) {
        big_message m;
        sl_lease *l;
        sl_tensor slot;
        move(read(s, &m, sizeof m), sizeof m);
        check(sl_lease_open(&l, p, &m.ticket, ctx.stream, &err), "open");
        handed[i] = sl_now_ns() - m.sealing_ns;
        check(sl_lease_tensor(l, "x", &slot, &err), "tensor");
        copied[i] = copy_timed(p, &slot, &own, true);
        wrote[i] = m.fill_ns;
        sl_lease_drop(&l, ctx.stream);
        move(write(s, "g", 1), 1);
    }
    sl_pool_close(&p);
    rate_of(SIZE_NAMES[size], in[kind], wrote, bytes);
    rate_of(SIZE_NAMES[size], out[kind], copied, bytes);
    snprintf(line, sizeof line, "%s seal to open, the ticket over a socket", SIZE_NAMES[size]);
    report(line, handed, BIG_ROUNDS);
    if (kind == SL_POOL_CUDA) {
        sl_tensor other = device_bytes(bytes);
        for (int i = 0; i < BIG_ROUNDS; i++) copied[i] = copy_timed(NULL, &other, &own, true);
        rate_of(SIZE_NAMES[size], "for comparison: a copy within the process", copied, bytes);
        sl_device_free(&ctx, other.data);
    }
    sl_device_free(&ctx, own.data);
}

static void cuda_calls(void)
{
    sl_pool *owner, *sender;
    sl_pool_handle h;
    check(sl_pool_create(&owner, "calls", SL_POOL_CUDA, 2, 4096, &err), "create");
    sl_pool_export(owner, &h);
    check(sl_pool_open(&sender, &h, &err), "open");
    int64_t t0 = sl_now_ns();
    for (int i = 0; i < CALLS / 20; i++) {
        sl_ticket t = cuda_send_small(sender);
        cuda_receive_small(owner, &t);
    }
    printf("%-64s %12.2f us\n", "device slots: all calls of one hand-over, one process",
           (double)(sl_now_ns() - t0) / 1e3 / (CALLS / 20));
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

static void bench_cuda(void)
{
    static int64_t ns[ROUNDS];
    sl_pool *mine, *theirs;
    sl_pool_handle h;
    sl_ticket t;
    posix_spawn_file_actions_t fa;
    char *argv[] = {"/proc/self/exe", "--cuda-peer", NULL};
    int s[2];
    pid_t pid;
    if (!open_gpu()) {
        printf("bench_lease --cuda: skipped: %s\n", gpu ? "no CUDA device is here" : err.msg);
        return;
    }
    cuda_calls();
    check(sl_pool_create(&mine, "parent", SL_POOL_CUDA, 2, 4096, &err), "create");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s)) exit(1);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, s[1], 0);
    if (posix_spawn(&pid, "/proc/self/exe", &fa, NULL, argv, environ)) exit(1);
    posix_spawn_file_actions_destroy(&fa);
    close(s[1]);
    sl_pool_export(mine, &h);
    move(write(s[0], &h, sizeof h), sizeof h);
    move(read(s[0], &h, sizeof h), sizeof h);
    check(sl_pool_open(&theirs, &h, &err), "open");
    for (int i = -WARM; i < ROUNDS; i++) {
        int64_t t0 = sl_now_ns();
        t = cuda_send_small(theirs);
        move(write(s[0], &t, sizeof t), sizeof t);
        move(read(s[0], &t, sizeof t), sizeof t);
        cuda_receive_small(mine, &t);
        if (i >= 0) ns[i] = sl_now_ns() - t0;
    }
    report("device slots: round trip of a hand-over each way over a socket", ns, ROUNDS);
    sl_pool_close(&theirs);
    sl_pool_close(&mine);
    for (int size = 0; size < SIZE_COUNT; size++)
        for (int kind = 0; kind < KINDS; kind++) cuda_big(s[0], size, (sl_pool_kind)kind);
    waitpid(pid, NULL, 0);
    close(s[0]);
    sl_ctx_close(&ctx);
}

int main(int argc, char **argv)
{
    const char *option = argc > 1 ? argv[1] : "";
    if (!strcmp(option, "--cuda-peer")) cuda_peer();
    if (!strcmp(option, "--cuda")) {
        bench_cuda();
        return 0;
    }
    bench_calls();
    bench_round_trip();
    bench_big();
    return 0;
}
