/* test_lease.c - hand-overs between real processes: exact bytes, back-pressure, and every way to die, revoke or scribble. */
#include "tests/t.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/lease_block.h"
#include "common/trace.h"

extern char **environ;
static const char *self_path;

/* ---- helpers ---- */

static void expect_counts(const sl_pool *p, int free, int writing, int ready, int reading, int quarantined)
{
    sl_pool_counts c;
    sl_pool_count(p, &c);
    if (c.free != free || c.writing != writing || c.ready != ready || c.reading != reading || c.quarantined != quarantined)
        fail_msg("free %d writing %d ready %d reading %d quarantined %d, want %d %d %d %d %d", c.free, c.writing, c.ready,
                 c.reading, c.quarantined, free, writing, ready, reading, quarantined);
}

static void put(int fd, const void *data, size_t bytes)
{
    if (write(fd, data, bytes) != (ssize_t)bytes) _exit(90);
}
static bool get(int fd, void *data, size_t bytes)
{
    char *at = data;
    while (bytes) {
        ssize_t n = read(fd, at, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        at += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* A forked sender: it talks through `from`, hears through `to`, and ends with the test program. */
typedef struct {
    pid_t pid;
    int to, from;
} child;
typedef void child_body(const sl_pool_handle *h, int in, int out);

static child start(child_body *body, const sl_pool *pool)
{
    sl_pool_handle h;
    int to[2], from[2];
    sl_pool_export(pool, &h);
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(to[1]);
        close(from[0]);
        body(&h, to[0], from[1]);
        _exit(0);
    }
    close(to[0]);
    close(from[1]);
    return (child){pid, to[1], from[0]};
}
static int finish(child *c, int sig)
{
    int status;
    if (sig) kill(c->pid, sig);
    close(c->to);
    close(c->from);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    return status;
}
static void hear(const child *c, char want)
{
    char got = 0;
    if (!get(c->from, &got, 1) || got != want) fail_msg("the child says %d, want '%c'", got, want);
}
static void tell(const child *c, char what)
{
    put(c->to, &what, 1);
}

/* What a child does when it fails: say why and end with a status that no signal has. */
#define C_OK(call)                                                                                                                 \
    do {                                                                                                                           \
        if ((call) != SL_OK) {                                                                                                     \
            fprintf(stderr, "child: %s: %s\n", #call, err.msg);                                                                    \
            _exit(91);                                                                                                             \
        }                                                                                                                          \
    } while (0)

static sl_pool *host_pool(int slots, size_t bytes)
{
    sl_err err = {0};
    sl_pool *p;
    T_OK(sl_pool_create(&p, "test", SL_POOL_HOST, slots, bytes, &err));
    return p;
}
static sl_pool *open_again(const sl_pool *owner)
{
    sl_err err = {0};
    sl_pool_handle h;
    sl_pool *p;
    sl_pool_export(owner, &h);
    T_OK(sl_pool_open(&p, &h, &err));
    return p;
}

/* One hand-over of a small tensor holding `value`. */
static sl_ticket send_one(sl_pool *p, float value)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
    for (int i = 0; i < 1000; i++) ((float *)t.data)[i] = value;
    T_OK(sl_lease_seal(l, NULL, &ticket, &err));
    sl_lease_drop(&l, NULL);
    assert_null(l);
    return ticket;
}
static float receive_one(sl_pool *p, const sl_ticket *ticket)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    T_OK(sl_lease_open(&l, p, ticket, NULL, &err));
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    float v = ((float *)t.data)[999];
    sl_lease_drop(&l, NULL);
    return v;
}

/* A second mapping of the block, as another process of the user could have. */
static sl_block *scribbler(const sl_pool *p)
{
    sl_pool_handle h;
    sl_pool_export(p, &h);
    sl_block *b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    assert_ptr_not_equal(b, MAP_FAILED);
    return b;
}

/* ---- in one process ---- */

static void a_hand_over_keeps_names_shapes_and_bytes(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(2, 100000), *sender = open_again(owner);
    sl_lease *w, *r;
    sl_tensor a, b, t;
    sl_ticket ticket;
    assert_int_equal(sl_pool_slots(sender), 2);
    assert_int_equal(sl_pool_slot_bytes(sender), 102400);
    assert_true(sl_pool_id(sender) == sl_pool_id(owner) && sl_pool_id(owner));

    T_OK(sl_lease_reserve(&w, sender, 0, &err));
    expect_counts(owner, 1, 1, 0, 0, 0);
    T_OK(sl_lease_add(w, "clip", SL_F32, 3, (int64_t[]){5, 7, 11}, &a, &err));
    T_OK(sl_lease_add(w, "mask", SL_U8, 2, (int64_t[]){3, 3}, &b, &err));
    assert_int_equal((uintptr_t)a.data % 4096, 0);
    assert_int_equal((uintptr_t)b.data % 256, 0);
    t_fill(a.data, sl_count(&a), 1);
    memset(b.data, 42, sl_bytes(&b));
    T_OK(sl_lease_tensor(w, "clip", &t, &err));
    assert_ptr_equal(t.data, a.data);
    T_OK(sl_lease_seal(w, NULL, &ticket, &err));
    T_CODE(sl_lease_tensor(w, "clip", &t, &err), SL_ARG);
    T_CODE(sl_lease_seal(w, NULL, &ticket, &err), SL_ARG);
    sl_lease_drop(&w, NULL);
    sl_lease_drop(&w, NULL);
    expect_counts(owner, 1, 0, 1, 0, 0);

    T_OK(sl_lease_open(&r, owner, &ticket, NULL, &err));
    expect_counts(owner, 1, 0, 0, 1, 0);
    T_OK(sl_lease_tensor(r, "clip", &t, &err));
    float want[5 * 7 * 11];
    t_fill(want, 5 * 7 * 11, 1);
    assert_true(t.rank == 3 && t.dtype == SL_F32 && t.shape[0] == 5 && t.shape[1] == 7 && t.shape[2] == 11 && sl_is_dense(&t));
    assert_memory_equal(t.data, want, sizeof want);
    T_OK(sl_lease_tensor(r, "mask", &t, &err));
    assert_int_equal(((uint8_t *)t.data)[8], 42);
    T_CODE(sl_lease_tensor(r, "latents", &t, &err), SL_FORMAT);
    assert_string_equal(err.msg, "pool test: slot 0 has no tensor latents");
    T_CODE(sl_lease_add(r, "more", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    sl_lease_drop(&r, NULL);
    expect_counts(owner, 2, 0, 0, 0, 0);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
    assert_null(owner);
    sl_pool_close(&owner);
}

static void tickets_work_once(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(1, 4096), *other = host_pool(1, 4096), *sender = open_again(owner);
    sl_lease *l;
    sl_ticket first = send_one(sender, 1), t = first;
    T_CODE(sl_lease_open(&l, sender, &first, NULL, &err), SL_ARG);
    T_SAYS(err.msg, "only its owner");
    T_CODE(sl_lease_open(&l, other, &first, NULL, &err), SL_GONE);
    T_SAYS(err.msg, "ticket is of pool ");
    t.slot = 7;
    T_CODE(sl_lease_open(&l, owner, &t, NULL, &err), SL_GONE);
    assert_true(receive_one(owner, &first) == 1);
    T_CODE(sl_lease_open(&l, owner, &first, NULL, &err), SL_GONE);
    assert_string_equal(err.msg, "pool test: ticket of slot 0, epoch 1, is stale");
    assert_null(l);
    sl_ticket second = send_one(sender, 2);
    assert_false(sl_pool_discard(owner, &first));
    T_CODE(sl_lease_open(&l, owner, &first, NULL, &err), SL_GONE);
    expect_counts(owner, 0, 0, 1, 0, 0);
    assert_true(sl_pool_discard(owner, &second));
    assert_false(sl_pool_discard(owner, &second));
    expect_counts(owner, 1, 0, 0, 0, 0);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
    sl_pool_close(&other);
}

static void a_drop_before_the_seal_frees_unsent(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(1, 4096);
    sl_lease *l;
    sl_tensor t;
    T_OK(sl_lease_reserve(&l, owner, 0, &err));
    sl_lease_drop(&l, NULL);
    expect_counts(owner, 1, 0, 0, 0, 0);
    T_OK(sl_lease_reserve(&l, owner, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    sl_lease_drop(&l, NULL);
    expect_counts(owner, 1, 0, 0, 0, 0);
    sl_pool_close(&owner);
}

static void bad_calls_are_refused_by_name(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l, *none;
    sl_tensor t;
    sl_ticket ticket;
    T_CODE(sl_pool_create(&p, "test", SL_POOL_HOST, 0, 4096, &err), SL_ARG);
    assert_string_equal(err.msg, "pool test: pool has 0 slots, want 1 to 64");
    T_CODE(sl_pool_create(&p, "test", SL_POOL_HOST, 65, 4096, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", SL_POOL_HOST, 1, 0, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", SL_POOL_HOST, 1, SIZE_MAX, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", (sl_pool_kind)9, 1, 4096, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "latents", SL_POOL_CUDA, 1, 4096, &err), SL_CUDA);
    assert_string_equal(err.msg, "pool latents: its slots are device memory, and no CUDA plug-in is in use");
    assert_null(p);

    p = host_pool(1, 4096);
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_CODE(sl_lease_reserve(&none, p, 0, &err), SL_BUSY);
    assert_string_equal(err.msg, "pool test: none of 1 slots came free in 0 ms");
    assert_null(none);
    T_CODE(sl_lease_seal(l, NULL, &ticket, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "a-name-of-twenty-four-by", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_SAYS(err.msg, "has 24 bytes, want 1 to 23");
    T_CODE(sl_lease_add(l, "x", SL_U8, 0, (int64_t[]){1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_U8, 7, (int64_t[]){1, 1, 1, 1, 1, 1, 1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", (sl_dtype)77, 1, (int64_t[]){1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){-1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_F32, 3, (int64_t[]){INT64_MAX, INT64_MAX, 2}, &t, &err), SL_SHAPE);
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){3000}, &t, &err));
    T_CODE(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "y", SL_F32, 1, (int64_t[]){300}, &t, &err), SL_SHAPE);
    assert_string_equal(err.msg, "pool test: tensor y takes 1200 bytes, 1024 of the slot's 4096 are left");
    T_OK(sl_lease_add(l, "y", SL_U8, 1, (int64_t[]){1024}, &t, &err));
    T_OK(sl_lease_add(l, "z", SL_U8, 1, (int64_t[]){0}, &t, &err));
    T_OK(sl_lease_add(l, "u", SL_U8, 1, (int64_t[]){0}, &t, &err));
    T_CODE(sl_lease_add(l, "v", SL_U8, 1, (int64_t[]){0}, &t, &err), SL_ARG);
    T_SAYS(err.msg, "one too many");
    T_OK(sl_lease_seal(l, NULL, &ticket, &err));
    sl_lease_drop(&l, NULL);
    sl_pool_close(&p);
}

static void epochs_wrap(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = host_pool(1, 4096);
    sl_block *b = scribbler(p);
    sl_lease *l;
    atomic_store(&b->slot[0].word, sl_word(SL_SLOT_FREE, 0, SL_EPOCH_MASK - 1));
    sl_ticket t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = send_one(p, (float)i);
        for (int k = 0; k < i; k++) T_CODE(sl_lease_open(&l, p, &t[k], NULL, &err), SL_GONE);
        assert_true(receive_one(p, &t[i]) == (float)i);
    }
    assert_true(t[1].epoch == SL_EPOCH_MASK && t[2].epoch == 0 && t[3].epoch == 1);
    expect_counts(p, 1, 0, 0, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

static void untouched_slots_take_no_memory(void **state)
{
    (void)state;
    sl_pool *p = host_pool(8, (size_t)4 << 30);
    sl_pool_handle h;
    struct stat st;
    sl_pool_export(p, &h);
    sl_ticket t = send_one(p, 1);
    assert_int_equal(fstat(h.fd, &st), 0);
    assert_true(st.st_size > (off_t)32 << 30);
    assert_true(st.st_blocks * 512 < 1 << 22); /* a huge page more than what was touched */
    assert_true(sl_pool_discard(p, &t));
    sl_pool_close(&p);
}

static void a_revoked_writer_is_told_and_its_slot_comes_free(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(3, 4096), *sender = open_again(owner);
    sl_lease *a, *b, *c;
    sl_tensor t;
    sl_ticket ticket;
    T_OK(sl_lease_reserve(&a, sender, 0, &err));
    T_OK(sl_lease_reserve(&b, sender, 0, &err));
    T_OK(sl_lease_reserve(&c, sender, 0, &err));
    T_OK(sl_lease_add(a, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    assert_int_equal(sl_pool_revoke(owner, getpid() + 1), 0);
    assert_int_equal(sl_pool_revoke(owner, getpid()), 3);
    assert_int_equal(sl_pool_revoke(owner, getpid()), 0);
    expect_counts(owner, 0, 0, 0, 0, 3);
    assert_int_equal(sl_pool_reap(owner, getpid()), 0); /* it lives: still in quarantine */
    expect_counts(owner, 0, 0, 0, 0, 3);
    memset(t.data, 1, 4096); /* the late writer touches nobody else's memory */
    T_CODE(sl_lease_seal(a, NULL, &ticket, &err), SL_GONE);
    assert_string_equal(err.msg, "pool test: slot 0 was revoked while it was being written");
    expect_counts(owner, 1, 0, 0, 0, 2);
    T_CODE(sl_lease_add(b, "x", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_GONE);
    expect_counts(owner, 1, 0, 0, 0, 2);
    sl_lease_drop(&a, NULL);
    sl_lease_drop(&b, NULL);
    sl_lease_drop(&c, NULL);
    expect_counts(owner, 3, 0, 0, 0, 0);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

static void closing_a_view_ends_its_holds(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(3, 4096), *sender = open_again(owner);
    sl_lease *l;
    sl_ticket t = send_one(sender, 5);
    T_OK(sl_lease_reserve(&l, sender, 0, &err));
    sl_pool_close(&sender);
    expect_counts(owner, 2, 0, 1, 0, 0);
    assert_true(receive_one(owner, &t) == 5);
    free(l);
    /* entries are given away again, also those that a sealed slot still named at the close */
    for (int i = 0; i < 3 * SL_BLOCK_PEERS; i++) {
        sender = open_again(owner);
        t = send_one(sender, 5);
        sl_pool_close(&sender);
        assert_true(receive_one(owner, &t) == 5);
    }
    sl_pool *views[SL_BLOCK_PEERS - 1], *more;
    sl_pool_handle h;
    for (int i = 0; i < SL_BLOCK_PEERS - 1; i++) views[i] = open_again(owner);
    sl_pool_export(owner, &h);
    T_CODE(sl_pool_open(&more, &h, &err), SL_BUSY);
    assert_string_equal(err.msg, "pool test: 127 views of it are open, the most there may be");
    for (int i = 0; i < SL_BLOCK_PEERS - 1; i++) sl_pool_close(&views[i]);
    sl_pool_close(&owner);
}

static void bad_handles_are_refused(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(2, 4096), *p;
    sl_pool_handle good, h;
    sl_pool_export(owner, &good);
    h = good;
    h.pool ^= 1;
    T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
    assert_null(p);
    h = good;
    h.slots = 3;
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    T_SAYS(err.msg, "2 slots of 4096 bytes");
    h.slots = 1 << 30;
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    h = good;
    h.slot_bytes = 8192;
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    h.slot_bytes = UINT64_MAX - 4095;
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    h = good;
    h.kind = 77;
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    h.kind = SL_POOL_CUDA;
    T_CODE(sl_pool_open(&p, &h, &err), SL_CUDA);
    h = good;
    memset(h.name, 'x', sizeof h.name);
    T_OK(sl_pool_open(&p, &h, &err));
    sl_pool_close(&p);
    h = good;
    h.fd = 0;
    T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
    h.fd = -1;
    T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
    h = good;
    for (int pid = -1; pid < 1; pid++) {
        h.pid = pid;
        T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
    }
    /* a memfd of the right name which could be shrunk under the reader */
    h = good;
    h.fd = memfd_create("sluice-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(h.fd, 1 << 20), 0);
    T_CODE(sl_pool_open(&p, &h, &err), SL_FORMAT);
    assert_string_equal(err.msg, "pool test: its memory is not sealed against shrinking");
    close(h.fd);
    sl_pool_close(&owner);
    T_CODE(sl_pool_open(&p, &good, &err), SL_GONE);
}

static void a_closed_pool_says_gone(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = host_pool(2, 4096), *sender = open_again(owner);
    sl_lease *held, *l;
    sl_tensor t;
    sl_ticket ticket;
    T_OK(sl_lease_reserve(&held, sender, 0, &err));
    T_OK(sl_lease_add(held, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    sl_pool_close(&owner);
    memset(t.data, 1, 4096);
    T_CODE(sl_lease_reserve(&l, sender, 1000, &err), SL_GONE);
    T_SAYS(err.msg, "its owner, is gone");
    T_CODE(sl_lease_seal(held, NULL, &ticket, &err), SL_GONE);
    sl_lease_drop(&held, NULL);
    sl_pool_close(&sender);
}

/* ---- between processes ---- */

enum { MANY = 10000 };

/* What hand-over i holds, by the same rule on both sides. */
typedef struct {
    int count;
    sl_dtype dtype[SL_LEASE_TENSORS];
    int rank[SL_LEASE_TENSORS];
    int64_t shape[SL_LEASE_TENSORS][SL_MAX_RANK];
} plan;
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 31) * 0x7fb5d329728ea185u;
    x = (x ^ x >> 27) * 0x81dadef4bc2dd44du;
    return x ^ x >> 33;
}
static plan plan_of(int i)
{
    uint64_t r = mix((uint64_t)i + 1);
    plan p = {.count = 1 + (int)(r % SL_LEASE_TENSORS)};
    for (int k = 0; k < p.count; k++) {
        r = mix(r + 1);
        p.dtype[k] = (sl_dtype)(r % SL_DTYPE_COUNT);
        p.rank[k] = 1 + (int)((r >> 8) % 4);
        for (int d = 0; d < p.rank[k]; d++) p.shape[k][d] = 1 + (int64_t)(r >> (16 + 4 * d)) % 7;
    }
    return p;
}
static uint8_t byte_of(int i, int k, size_t at)
{
    return (uint8_t)(i * 131 + k * 17 + (int)at * 7);
}

/* This program run again as a sender: the handle on stdin, tickets on stdout. */
static int sender_main(void)
{
    sl_err err = {0};
    sl_pool_handle h;
    sl_pool *p;
    if (!get(0, &h, sizeof h)) return 92;
    C_OK(sl_pool_open(&p, &h, &err));
    for (int i = 0; i < MANY; i++) {
        plan s = plan_of(i);
        sl_lease *l;
        sl_ticket ticket;
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        for (int k = 0; k < s.count; k++) {
            char name[16];
            sl_tensor t;
            snprintf(name, sizeof name, "t%d", k);
            C_OK(sl_lease_add(l, name, s.dtype[k], s.rank[k], s.shape[k], &t, &err));
            for (size_t at = 0; at < sl_bytes(&t); at++) ((uint8_t *)t.data)[at] = byte_of(i, k, at);
        }
        C_OK(sl_lease_seal(l, NULL, &ticket, &err));
        put(1, &ticket, sizeof ticket);
        sl_lease_drop(&l, NULL);
    }
    sl_pool_close(&p);
    return 0;
}

static void receive_planned(sl_pool *p, const sl_ticket *ticket, int i)
{
    sl_err err = {0};
    plan s = plan_of(i);
    sl_lease *l;
    T_OK(sl_lease_open(&l, p, ticket, NULL, &err));
    for (int k = 0; k < s.count; k++) {
        char name[16];
        sl_tensor t;
        snprintf(name, sizeof name, "t%d", k);
        T_OK(sl_lease_tensor(l, name, &t, &err));
        sl_tensor want = sl_view(t.data, s.dtype[k], s.rank[k], s.shape[k]);
        if (t.dtype != want.dtype || !sl_same_shape(&t, &want)) fail_msg("hand-over %d, tensor %d: another shape", i, k);
        for (size_t at = 0; at < sl_bytes(&t); at++)
            if (((uint8_t *)t.data)[at] != byte_of(i, k, at)) fail_msg("hand-over %d, tensor %d, byte %zu is wrong", i, k, at);
    }
    sl_lease_drop(&l, NULL);
}

static void ten_thousand_hand_overs_arrive_whole(void **state)
{
    (void)state;
    sl_pool *p = host_pool(4, 65536);
    sl_pool_handle h;
    posix_spawn_file_actions_t fa;
    int in[2], out[2], status;
    pid_t pid;
    sl_pool_export(p, &h);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, in[0], 0);
    posix_spawn_file_actions_adddup2(&fa, out[1], 1);
    char *argv[] = {(char *)self_path, "--sender", NULL};
    assert_int_equal(posix_spawn(&pid, self_path, &fa, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fa);
    close(in[0]);
    close(out[1]);
    put(in[1], &h, sizeof h);
    for (int i = 0; i < MANY; i++) {
        sl_ticket t;
        if (!get(out[0], &t, sizeof t)) fail_msg("the sender ended after %d hand-overs", i);
        receive_planned(p, &t, i);
    }
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    close(in[1]);
    close(out[0]);
    expect_counts(p, 4, 0, 0, 0, 0);
    sl_pool_close(&p);
}

/* Seals one hand-over after another; after each, sends the ticket and when its reserve returned. */
static void eager_sender(const sl_pool_handle *h, int in, int out)
{
    sl_err err = {0};
    sl_pool *p;
    char c;
    C_OK(sl_pool_open(&p, h, &err));
    for (;;) {
        sl_lease *l;
        sl_tensor t;
        struct {
            sl_ticket ticket;
            int64_t at_ns;
        } m;
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        m.at_ns = sl_now_ns();
        C_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
        C_OK(sl_lease_seal(l, NULL, &m.ticket, &err));
        sl_lease_drop(&l, NULL);
        put(out, &m, sizeof m);
        if (fcntl(in, F_SETFL, O_NONBLOCK) || read(in, &c, 1) >= 0) _exit(0);
    }
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void a_sender_waits_for_credit_and_wakes_at_once(void **state)
{
    (void)state;
    enum { ROUNDS = 21 };
    sl_pool *p = host_pool(1, 4096);
    child c = start(eager_sender, p);
    int64_t late[ROUNDS];
    struct {
        sl_ticket ticket;
        int64_t at_ns;
    } m;
    assert_true(get(c.from, &m, sizeof m));
    for (int i = 0; i < ROUNDS; i++) {
        usleep(3000); /* the only slot is READY: the sender sleeps */
        expect_counts(p, 0, 0, 1, 0, 0);
        int64_t dropped = sl_now_ns();
        assert_true(sl_pool_discard(p, &m.ticket));
        assert_true(get(c.from, &m, sizeof m));
        late[i] = m.at_ns - dropped;
        assert_true(late[i] > 0); /* never before the drop */
    }
    qsort(late, ROUNDS, sizeof *late, by_value);
    if (late[ROUNDS / 2] > 25000000) /* a lost wake-up would cost the 50 ms after which a sender looks */
        fail_msg("half of the senders woke after %.1f ms, want under 25", (double)late[ROUNDS / 2] / 1e6);
    tell(&c, 'q');
    sl_pool_discard(p, &m.ticket);
    finish(&c, 0);
    sl_pool_close(&p);
}

/* ---- death ---- */

static char hold_until; /* the state in which a holder stops: r, f, s */

static void holder_child(const sl_pool_handle *h, int in, int out)
{
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket = {0};
    char c;
    C_OK(sl_pool_open(&p, h, &err));
    C_OK(sl_lease_reserve(&l, p, 1000, &err));
    if (hold_until != 'r') {
        C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
        for (int i = 0; i < 1000; i++) ((float *)t.data)[i] = 7;
    }
    if (hold_until == 's') C_OK(sl_lease_seal(l, NULL, &ticket, &err));
    put(out, &hold_until, 1);
    put(out, &ticket, sizeof ticket);
    if (!get(in, &c, 1)) _exit(93);
    /* told to go on: a late writer tries to seal */
    sl_code rc = sl_lease_seal(l, NULL, &ticket, &err);
    c = rc == SL_GONE ? 'G' : rc == SL_OK ? 'O' : 'E';
    put(out, &c, 1);
    (void)!get(in, &c, 1);
    sl_lease_drop(&l, NULL);
    sl_pool_close(&p);
}

static child hold(sl_pool *p, char until, sl_ticket *ticket)
{
    hold_until = until;
    child c = start(holder_child, p);
    hear(&c, until);
    assert_true(get(c.from, ticket, sizeof *ticket));
    return c;
}

static void a_killed_sender_loses_what_it_was_writing(void **state)
{
    (void)state;
    sl_pool *p = host_pool(2, 4096);
    sl_ticket t;
    for (const char *until = "rf"; *until; until++) {
        child c = hold(p, *until, &t);
        expect_counts(p, 1, 1, 0, 0, 0);
        assert_int_equal(sl_pool_reap(p, c.pid), 0); /* it lives */
        expect_counts(p, 1, 1, 0, 0, 0);
        finish(&c, SIGKILL);
        assert_int_equal(sl_pool_reap(p, c.pid + 1), 0);
        assert_int_equal(sl_pool_reap(p, c.pid), 1);
        expect_counts(p, 2, 0, 0, 0, 0);
    }
    sl_pool_close(&p);
}

static void what_a_killed_sender_had_sealed_stays(void **state)
{
    (void)state;
    sl_pool *p = host_pool(2, 4096);
    sl_ticket t;
    child c = hold(p, 's', &t);
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap(p, c.pid), 0);
    expect_counts(p, 1, 0, 1, 0, 0);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, &t, 1), 0);
    assert_true(receive_one(p, &t) == 7);
    expect_counts(p, 2, 0, 0, 0, 0);
    c = hold(p, 's', &t);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, NULL, 0), 0); /* it lives */
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, NULL, 0), 1); /* its ticket was never sent */
    expect_counts(p, 2, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void a_zombie_counts_as_dead(void **state)
{
    (void)state;
    sl_pool *p = host_pool(1, 4096);
    sl_ticket t;
    child c = hold(p, 'f', &t);
    siginfo_t si;
    kill(c.pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)c.pid, &si, WEXITED | WNOWAIT), 0);
    assert_int_equal(sl_pool_reap(p, c.pid), 1);
    finish(&c, 0);
    expect_counts(p, 1, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void a_reused_pid_keeps_its_slots(void **state)
{
    (void)state;
    sl_pool *p = host_pool(2, 4096);
    sl_block *b = scribbler(p);
    sl_ticket t;
    child c = hold(p, 'f', &t);
    /* an older process of the same pid, which had started a second earlier, died while it held slot 1 */
    uint64_t now = atomic_load(&b->peers[1]);
    assert_int_equal(sl_peer_pid(now), c.pid);
    atomic_store(&b->peers[2], now - 100);
    atomic_store(&b->slot[1].word, sl_word(SL_SLOT_FILLING, 2, 1));
    assert_int_equal(sl_pool_reap(p, c.pid), 1);
    expect_counts(p, 1, 1, 0, 0, 0);
    assert_int_equal(atomic_load(&b->peers[2]), 0);
    tell(&c, 'g');
    hear(&c, 'O');
    finish(&c, SIGKILL);
    expect_counts(p, 1, 0, 1, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

static void a_revoked_live_writer_is_quarantined_until_it_seals_or_dies(void **state)
{
    (void)state;
    sl_pool *p = host_pool(1, 4096);
    sl_ticket t;
    sl_lease *l;
    sl_err err = {0};
    child c = hold(p, 'f', &t);
    assert_int_equal(sl_pool_revoke(p, c.pid), 1);
    expect_counts(p, 0, 0, 0, 0, 1);
    T_CODE(sl_lease_reserve(&l, p, 0, &err), SL_BUSY);
    tell(&c, 'g');
    hear(&c, 'G');
    expect_counts(p, 1, 0, 0, 0, 0);
    tell(&c, 'q');
    assert_int_equal(finish(&c, 0), 0);

    c = hold(p, 'r', &t);
    assert_int_equal(sl_pool_revoke(p, c.pid), 1);
    finish(&c, SIGKILL);
    expect_counts(p, 0, 0, 0, 0, 1);
    assert_int_equal(sl_pool_reap(p, c.pid), 1);
    expect_counts(p, 1, 0, 0, 0, 0);

    c = hold(p, 'r', &t);
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_revoke(p, c.pid), 1); /* dead already: freed at once */
    expect_counts(p, 1, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void busy_child(const sl_pool_handle *h, int in, int out)
{
    sl_err err = {0};
    sl_pool *p;
    (void)in;
    put(out, &(sl_ticket){0}, sizeof(sl_ticket));
    C_OK(sl_pool_open(&p, h, &err));
    for (;;) {
        sl_lease *l, *unused;
        sl_tensor t;
        sl_ticket ticket;
        C_OK(sl_lease_reserve(&unused, p, 20000, &err));
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
        for (int i = 0; i < 1000; i++) ((float *)t.data)[i] = 9;
        C_OK(sl_lease_seal(l, NULL, &ticket, &err));
        put(out, &ticket, sizeof ticket);
        sl_lease_drop(&unused, NULL);
        sl_lease_drop(&l, NULL);
    }
}

static void kills_at_any_instruction_lose_no_slot(void **state)
{
    (void)state;
    enum { KILLS = 150, SLOTS = 4 };
    sl_pool *p = host_pool(SLOTS, 4096);
    int received = 0;
    for (int i = 0; i < KILLS; i++) {
        child c = start(busy_child, p);
        sl_ticket t;
        int64_t end = sl_now_ns() + (int64_t)(mix((uint64_t)i) % 4000000);
        assert_true(get(c.from, &t, sizeof t));
        while (sl_now_ns() < end) {
            if (fcntl(c.from, F_SETFL, O_NONBLOCK)) fail();
            if (read(c.from, &t, sizeof t) != sizeof t) continue;
            assert_true(receive_one(p, &t) == 9);
            received++;
        }
        kill(c.pid, SIGKILL);
        waitpid(c.pid, NULL, 0);
        while (read(c.from, &t, sizeof t) == sizeof t) { /* what it had sent still counts */
            assert_true(receive_one(p, &t) == 9);
            received++;
        }
        sl_pool_reap(p, c.pid);
        sl_pool_reap_unsent(p, c.pid, NULL, 0);
        close(c.to);
        close(c.from);
        expect_counts(p, SLOTS, 0, 0, 0, 0);
    }
    assert_true(received > KILLS);
    sl_pool_close(&p);
}

/* The owner is the child here: it makes a pool, sends the handle, and waits to be killed. */
static void owner_child(const sl_pool_handle *h, int in, int out)
{
    sl_err err = {0};
    sl_pool *p;
    sl_pool_handle mine;
    char c;
    (void)h;
    C_OK(sl_pool_create(&p, "doomed", SL_POOL_HOST, 1, 1 << 20, &err));
    sl_pool_export(p, &mine);
    put(out, &mine, sizeof mine);
    (void)!get(in, &c, 1);
}

static void *kill_soon(void *arg)
{
    usleep(30000);
    kill(*(pid_t *)arg, SIGKILL);
    return NULL;
}

static void the_owners_death_is_noticed_and_harmless(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *any = host_pool(1, 4096), *p;
    sl_pool_handle h;
    sl_lease *l, *second;
    sl_tensor t;
    sl_ticket ticket;
    pthread_t th;
    child c = start(owner_child, any);
    assert_true(get(c.from, &h, sizeof h));
    T_OK(sl_pool_open(&p, &h, &err));
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1 << 20}, &t, &err));
    memset(t.data, 1, 1 << 19);
    assert_int_equal(pthread_create(&th, NULL, kill_soon, &c.pid), 0);
    int64_t t0 = sl_now_ns();
    T_CODE(sl_lease_reserve(&second, p, 20000, &err), SL_GONE); /* it waits when the owner dies */
    double waited = (double)(sl_now_ns() - t0) / 1e9;
    assert_true(waited < 5);
    pthread_join(th, NULL);
    finish(&c, SIGKILL);
    memset(t.data, 2, 1 << 20); /* the memory stays until the last mapping goes */
    T_CODE(sl_lease_seal(l, NULL, &ticket, &err), SL_GONE);
    T_SAYS(err.msg, "its owner, is gone");
    sl_lease_drop(&l, NULL);
    T_CODE(sl_lease_reserve(&l, p, 0, &err), SL_GONE);
    sl_pool_close(&p);
    T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
    sl_pool_close(&any);
}

static void forked_child(const sl_pool_handle *h, int in, int out)
{
    (void)h;
    (void)in;
    (void)out;
}

static sl_pool *inherited;
static void inheriting_child(const sl_pool_handle *h, int in, int out)
{
    sl_err err = {0};
    sl_lease *l;
    (void)h;
    (void)in;
    char c = sl_lease_reserve(&l, inherited, 0, &err) == SL_ARG && strstr(err.msg, "open it again after a fork") ? 'y' : 'n';
    sl_pool_close(&inherited);
    put(out, &c, 1);
}

static void a_view_does_not_survive_fork(void **state)
{
    (void)state;
    sl_pool *p = host_pool(1, 4096), *view = open_again(p);
    for (int i = 0; i < 2; i++) {
        inherited = i ? view : p;
        child c = start(inheriting_child, p);
        hear(&c, 'y');
        assert_int_equal(finish(&c, 0), 0);
    }
    sl_ticket t = send_one(view, 3); /* the child's close closed nothing here */
    assert_true(receive_one(p, &t) == 3);
    sl_pool_close(&view);
    sl_pool_close(&p);
}

static void closing_frees_every_descriptor_in_children_too(void **state)
{
    (void)state;
    sl_pool *p = host_pool(1, 4096);
    child c = start(forked_child, p);
    assert_int_equal(finish(&c, 0), 0);
    sl_pool_close(&p);
}

/* ---- threads ---- */

enum { THREADS = 3, EACH = 700 };
typedef struct {
    sl_pool *pool;
    pthread_mutex_t mutex;
    pthread_cond_t more;
    sl_ticket queue[THREADS * EACH];
    int queued, taken;
    int64_t sum, failures;
} shop;

static void *sender_thread(void *arg)
{
    shop *s = arg;
    sl_err err = {0};
    for (int i = 0; i < EACH; i++) {
        sl_lease *l;
        sl_tensor t;
        sl_ticket ticket;
        if (sl_lease_reserve(&l, s->pool, 20000, &err)) return (void *)1;
        if (i % 5 == 0) { /* some change their mind */
            sl_lease_drop(&l, NULL);
            i--;
            if (sl_lease_reserve(&l, s->pool, 20000, &err)) return (void *)1;
            i++;
        }
        if (sl_lease_add(l, "x", SL_I64, 1, (int64_t[]){100}, &t, &err)) return (void *)1;
        for (int k = 0; k < 100; k++) ((int64_t *)t.data)[k] = i;
        if (sl_lease_seal(l, NULL, &ticket, &err)) return (void *)1;
        sl_lease_drop(&l, NULL);
        pthread_mutex_lock(&s->mutex);
        s->queue[s->queued++] = ticket;
        pthread_cond_signal(&s->more);
        pthread_mutex_unlock(&s->mutex);
    }
    return NULL;
}
static void *receiver_thread(void *arg)
{
    shop *s = arg;
    sl_err err = {0};
    for (;;) {
        pthread_mutex_lock(&s->mutex);
        while (s->taken == s->queued && s->taken < THREADS * EACH) pthread_cond_wait(&s->more, &s->mutex);
        int mine = s->taken < THREADS * EACH ? s->taken++ : -1;
        if (s->taken == THREADS * EACH) pthread_cond_broadcast(&s->more);
        sl_ticket ticket = mine >= 0 ? s->queue[mine] : (sl_ticket){0};
        pthread_mutex_unlock(&s->mutex);
        if (mine < 0) return NULL;
        sl_lease *l;
        sl_tensor t;
        int64_t v = 0;
        bool good = !sl_lease_open(&l, s->pool, &ticket, NULL, &err) && !sl_lease_tensor(l, "x", &t, &err);
        if (good) v = ((int64_t *)t.data)[0];
        for (int k = 0; good && k < 100; k++) good = ((int64_t *)t.data)[k] == v;
        if (l) sl_lease_drop(&l, NULL);
        pthread_mutex_lock(&s->mutex);
        s->sum += v;
        s->failures += !good;
        pthread_mutex_unlock(&s->mutex);
    }
}

static void threads_share_a_pool(void **state)
{
    (void)state;
    static shop s = {.mutex = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    pthread_t in[THREADS], out[2];
    void *rc;
    s.pool = host_pool(2, 4096); /* one mapping for both sides, so that TSan sees every access */
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_create(&in[i], NULL, sender_thread, &s), 0);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&out[i], NULL, receiver_thread, &s), 0);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(in[i], &rc);
        assert_null(rc);
    }
    for (int i = 0; i < 2; i++) pthread_join(out[i], NULL);
    assert_int_equal(s.failures, 0);
    assert_int_equal(s.sum, (int64_t)THREADS * EACH * (EACH - 1) / 2);
    expect_counts(s.pool, 2, 0, 0, 0, 0);
    sl_pool_close(&s.pool);
}

/* ---- hostile memory ---- */

static void a_wrong_table_is_refused_and_its_slot_freed(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = host_pool(1, 8192);
    sl_block *b = scribbler(p);
    sl_block_table *t = &b->slot[0].table;
    sl_lease *l;
    static const char *const says[] = {"has 0 tensors",
                                       "has 5 tensors",
                                       "no proper name",
                                       "no proper name",
                                       "dtype 6",
                                       "has 0 dimensions",
                                       "has 7 dimensions",
                                       "extent -1 is negative",
                                       "larger than 2^63",
                                       "lies at byte 0 for 16000 bytes",
                                       "lies at byte 4 for",
                                       "lies at byte 8192 for",
                                       "lies at byte 18446744073709551360 for",
                                       "has 4294967295"};
    for (int i = 0; i < (int)(sizeof says / sizeof *says); i++) {
        sl_ticket ticket = send_one(p, 1);
        switch (i) {
        case 0: t->count = 0; break;
        case 1: t->count = 5; break;
        case 2: t->tensor[0].name[0] = 0; break;
        case 3: memset(t->tensor[0].name, 'x', SL_LEASE_NAME); break;
        case 4: t->tensor[0].dtype = SL_DTYPE_COUNT; break;
        case 5: t->tensor[0].rank = 0; break;
        case 6: t->tensor[0].rank = 7; break;
        case 7: t->tensor[0].shape[0] = -1; break;
        case 8: t->tensor[0].shape[0] = INT64_MAX; break;
        case 9: t->tensor[0].shape[0] = 4000; break;
        case 10: t->tensor[0].offset = 4; break;
        case 11: t->tensor[0].offset = 8192; break;
        case 12: t->tensor[0].offset = (uint64_t)0 - 256; break;
        case 13: t->count = UINT32_MAX; break;
        }
        T_CODE(sl_lease_open(&l, p, &ticket, NULL, &err), SL_FORMAT);
        T_SAYS(err.msg, says[i]);
        assert_null(l);
        expect_counts(p, 1, 0, 0, 0, 0);
    }
    /* two that overlap */
    sl_ticket ticket = send_one(p, 1);
    t->count = 2;
    t->tensor[1] = t->tensor[0];
    T_CODE(sl_lease_open(&l, p, &ticket, NULL, &err), SL_FORMAT);
    T_SAYS(err.msg, "tensor 1 lies at byte 0");
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

/* Every call once, whatever the block says. Codes may be anything; memory must hold (ASan watches) and time must end. */
static void use_everything(sl_pool *owner, sl_pool *sender, const sl_ticket *old, uint64_t r)
{
    sl_err err = {0};
    sl_lease *w, *o;
    sl_tensor t;
    sl_ticket ticket = *old;
    sl_pool_counts n;
    sl_pool_handle h;
    sl_pool *again;
    sl_pool_count(owner, &n);
    assert_int_equal(n.free + n.writing + n.ready + n.reading + n.quarantined, 3);
    if (!sl_lease_reserve(&w, sender, (int)(r % 2), &err)) {
        if (!sl_lease_add(w, "x", SL_U8, 1, (int64_t[]){(int64_t)(r >> 8) % 5000}, &t, &err)) memset(t.data, 1, sl_bytes(&t));
        if (r & 4) sl_pool_revoke(owner, getpid());
        sl_lease_seal(w, NULL, &ticket, &err);
        sl_lease_drop(&w, NULL);
    }
    if (!sl_lease_open(&o, owner, &ticket, NULL, &err)) {
        uint8_t sum = 0;
        if (!sl_lease_tensor(o, "x", &t, &err))
            for (size_t i = 0; i < sl_bytes(&t); i++) sum ^= ((volatile uint8_t *)t.data)[i];
        (void)sum;
        sl_lease_drop(&o, NULL);
    }
    sl_pool_discard(owner, &ticket);
    sl_pool_revoke(owner, (int32_t)(r >> 40));
    sl_pool_reap(owner, (int32_t)(r >> 40) % 3 ? getpid() : 1);
    sl_pool_reap_unsent(owner, 2, &ticket, 1);
    sl_pool_export(owner, &h);
    if (r % 8 == 0 && !sl_pool_open(&again, &h, &err)) sl_pool_close(&again);
}

static void a_scribbled_block_gives_errors_never_a_crash(void **state)
{
    (void)state;
    uint64_t r = 12345;
    for (int round = 0; round < 40; round++) {
        sl_pool *owner = host_pool(3, 4096), *sender = open_again(owner);
        sl_block *b = scribbler(owner);
        uint8_t *bytes = (uint8_t *)b;
        sl_ticket t = {.pool = sl_pool_id(owner), .slot = 0, .epoch = 1};
        for (int i = 0; i < 60; i++) {
            for (int k = 0; k < 30; k++) {
                r = mix(r + 1);
                size_t last = offsetof(sl_block, slot) + 3 * sizeof(sl_block_slot);
                size_t at = r % 4 ? offsetof(sl_block, slot) + r / 4 % (3 * sizeof(sl_block_slot)) : r / 4 % last;
                bytes[at] = r & 64 ? (uint8_t)(r >> 50) : (uint8_t)(r >> 50) % 8;
            }
            if (r % 3 == 0)
                atomic_store(&b->slot[r / 3 % 3].word,
                             sl_word((sl_slot_state)(r >> 20 & 7), (unsigned)(r >> 30) % 4, 1 + (r >> 34) % 2));
            if (r % 5 == 0) atomic_store(&b->closed, 0);
            t.slot = (uint32_t)(r >> 33) % 4;
            t.epoch = sl_word_epoch(atomic_load(&b->slot[r % 3].word));
            use_everything(owner, sender, &t, mix(r));
        }
        munmap(b, sizeof *b);
        sl_pool_close(&sender);
        sl_pool_close(&owner);
    }
}

static _Atomic bool stop_scribbling;
static void *scribble_thread(void *arg)
{
    sl_block *b = arg;
    uint64_t r = 99;
    while (!atomic_load(&stop_scribbling)) {
        r = mix(r + 1);
        uint64_t *words = (uint64_t *)b->slot;
        __atomic_store_n(&words[r % (3 * sizeof(sl_block_slot) / 8)], r >> 32 & 3 ? r >> 60 : r, __ATOMIC_RELAXED);
        if (r >> 63) atomic_store(&b->slot[r % 3].word, sl_word((sl_slot_state)(r >> 20 & 7), (unsigned)(r >> 30) % 3, 1));
        atomic_store(&b->freed, (uint32_t)r);
    }
    return NULL;
}

static void a_block_scribbled_over_meanwhile_gives_errors_never_a_crash(void **state)
{
    (void)state;
    sl_pool *owner = host_pool(3, 4096), *sender = open_again(owner);
    sl_block *b = scribbler(owner);
    pthread_t th;
    uint64_t r = 1;
    assert_int_equal(pthread_create(&th, NULL, scribble_thread, b), 0);
    int64_t end = sl_now_ns() + 700000000;
    while (sl_now_ns() < end) {
        r = mix(r + 1);
        sl_ticket t = {.pool = sl_pool_id(owner), .slot = (uint32_t)r % 3, .epoch = 1};
        use_everything(owner, sender, &t, r);
    }
    atomic_store(&stop_scribbling, true);
    pthread_join(th, NULL);
    munmap(b, sizeof *b);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

static void a_scribbled_word_is_healed_by_reap(void **state)
{
    (void)state;
    sl_pool *p = host_pool(2, 4096);
    sl_block *b = scribbler(p);
    atomic_store(&b->slot[0].word, 0xdeadbeefdeadbeef);
    atomic_store(&b->slot[1].word, sl_word(SL_SLOT_FILLING, 200, 5));
    expect_counts(p, 0, 1, 0, 0, 1);
    assert_int_equal(sl_pool_reap(p, 1), 2);
    expect_counts(p, 2, 0, 0, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

/* ---- nothing is left ---- */

typedef struct {
    int fds, shm, maps;
} left;

static int entries(const char *dir, const char *part)
{
    DIR *d = opendir(dir);
    int n = 0;
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.' && strstr(e->d_name, part);
    closedir(d);
    return n;
}
static left count_left(void)
{
    left l = {.fds = entries("/proc/self/fd", ""), .shm = entries("/dev/shm", "sluice")};
    char line[4096];
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) l.maps += strstr(line, "memfd:sluice") != NULL;
    if (f) fclose(f);
    return l;
}

static left before;
static int count_before(void **state)
{
    (void)state;
    before = count_left();
    return 0;
}
static int count_after(void **state)
{
    (void)state;
    left after = count_left();
    if (after.fds == before.fds && after.shm <= before.shm && after.maps <= before.maps) return 0;
    fprintf(stderr, "left behind: descriptors %d (%d before), /dev/shm %d (%d before), mappings %d (%d before)\n", after.fds,
            before.fds, after.shm, before.shm, after.maps, before.maps);
    return -1;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--sender")) return sender_main();
    static char path[4096];
    if (!realpath("/proc/self/exe", path)) return 1;
    self_path = path;
    alarm(240);
#define T(name) cmocka_unit_test_setup_teardown(name, count_before, count_after)
    const struct CMUnitTest tests[] = {
        T(a_hand_over_keeps_names_shapes_and_bytes),
        T(tickets_work_once),
        T(a_drop_before_the_seal_frees_unsent),
        T(bad_calls_are_refused_by_name),
        T(epochs_wrap),
        T(untouched_slots_take_no_memory),
        T(a_revoked_writer_is_told_and_its_slot_comes_free),
        T(closing_a_view_ends_its_holds),
        T(bad_handles_are_refused),
        T(a_closed_pool_says_gone),
        T(ten_thousand_hand_overs_arrive_whole),
        T(a_sender_waits_for_credit_and_wakes_at_once),
        T(a_killed_sender_loses_what_it_was_writing),
        T(what_a_killed_sender_had_sealed_stays),
        T(a_zombie_counts_as_dead),
        T(a_reused_pid_keeps_its_slots),
        T(a_revoked_live_writer_is_quarantined_until_it_seals_or_dies),
        T(kills_at_any_instruction_lose_no_slot),
        T(the_owners_death_is_noticed_and_harmless),
        T(a_view_does_not_survive_fork),
        T(closing_frees_every_descriptor_in_children_too),
        T(threads_share_a_pool),
        T(a_wrong_table_is_refused_and_its_slot_freed),
        T(a_scribbled_block_gives_errors_never_a_crash),
        T(a_block_scribbled_over_meanwhile_gives_errors_never_a_crash),
        T(a_scribbled_word_is_healed_by_reap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
