/* gpu_lease.c - leases on a GPU: the cases of every kind, order between two processes,
 * deaths with work under way, what is left.
 *
 * gpu_lease PATTERN: only the tests whose names match (* and ? as in a shell). Each
 * process that a test starts opens the device anew.
 * After each test: how long it took. Cases of two devices are left out where there are no two that
 * can map each other. limit: 220 s; run: alone */
#include "tests/t_lease_cases.h"

#include "kernels/plugin.h"

#define MANY_HAND_OVERS "GPU_LEASE_MANY" /* set for the second process too */
#define OTHER_DEVICE "GPU_LEASE_OTHER"   /* set: the second process works on device 1 */

static const sl_plugin *gpu;
static sl_ctx ctx;

/* ---- the device ---- */

static void give_in(const char *what, const char *why)
{
    if (in_child) {
        fprintf(stderr, "child: %s: %s\n", what, why);
        _exit(91);
    }
    fail_msg("%s: %s", what, why);
}
static void device_ok(const char *what)
{
    sl_err err = {0};
    if (!sl_ok(&ctx)) {
        sl_ctx_error(&ctx, &err);
        give_in(what, err.msg);
    }
}
static void put_device(const sl_tensor *t, const void *bytes)
{
    sl_upload(&ctx, t, bytes);
    device_ok("upload");
}
static void get_device(const sl_tensor *t, void *bytes)
{
    sl_download(&ctx, bytes, t);
    device_ok("download");
}

static sl_code open_device(sl_err *err)
{
    sl_code rc;
    if (!(gpu = sl_plugin_cuda(err))) return err->code;
    if (!gpu->devices()) return sl_fail(err, SL_CUDA, "no CUDA device is here");
    if ((rc = gpu->use(getenv(OTHER_DEVICE) ? 1 : 0, err)) ||
        (rc = sl_ctx_open(&ctx, gpu->ops, 0, err)))
        return rc;
    sl_pool_use_cuda(gpu->slabs);
    return SL_OK;
}

static void kind_open(void)
{
    sl_err err = {0};
    if (!gpu && open_device(&err)) give_in("the device", err.msg);
    K.pool = SL_POOL_CUDA;
    K.stream = ctx.stream;
    K.put = put_device;
    K.get = get_device;
    K.hand_overs = getenv(MANY_HAND_OVERS) ? 1000 : 100;
    /* test_lease_device has many: here each costs a process that opens the device */
    K.kills = 3;
    K.kill_within_ns = 500000000;
    K.tell_times = true;
    K.outlives_owner = false;
}

static sl_tensor device_tensor(sl_dtype dtype, int64_t n)
{
    sl_tensor t = sl_view1(sl_device_alloc(&ctx, (size_t)n * sl_dtype_size(dtype)), dtype, n);
    device_ok("device memory");
    return t;
}
static void free_tensor(sl_tensor *t)
{
    sl_device_free(&ctx, t->data);
    t->data = NULL;
}
/* A device tensor of n floats, each `value`. */
static sl_tensor constant(int64_t n, float value)
{
    sl_tensor t = device_tensor(SL_F32, n);
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) give_in("constant", "no memory");
    for (int64_t i = 0; i < n; i++) x[i] = value;
    sl_upload(&ctx, &t, x);
    sl_sync(&ctx);
    device_ok("constant");
    free(x);
    return t;
}
static void expect_all(const sl_tensor *t, float value, const char *what)
{
    int64_t n = sl_count(t), wrong = 0, first = -1;
    float *x = malloc((size_t)n * sizeof *x);
    assert_non_null(x);
    sl_download(&ctx, x, t);
    device_ok(what);
    for (int64_t i = 0; i < n; i++)
        if (!(x[i] == value) && !wrong++) first = i;
    float found = first >= 0 ? x[first] : 0;
    free(x);
    if (wrong)
        fail_msg("%s: %lld of %lld elements differ, the first at %lld: %g, want %g", what,
                 (long long)wrong, (long long)n, (long long)first, (double)found, (double)value);
}

/* Queue about `ms` of work: copies of 512 MiB, whose time is measured once. Returns when
 * it is queued. */
static sl_tensor work_from, work_to;
static double work_ms_each;
static void queue_copies(int n)
{
    for (int i = 0; i < n; i++) sl_copy(&ctx, &work_to, &work_from);
    device_ok("queue work");
}
static void have_work(void)
{
    if (work_ms_each > 0) return;
    work_from = device_tensor(SL_F32, (int64_t)1 << 27);
    work_to = device_tensor(SL_F32, (int64_t)1 << 27);
    queue_copies(3);
    sl_sync(&ctx);
    int64_t t0 = sl_now_ns();
    queue_copies(20);
    sl_sync(&ctx);
    work_ms_each = (double)(sl_now_ns() - t0) / 1e6 / 20;
}
static void queue_work(double ms)
{
    have_work();
    int n = 1 + (int)(ms / work_ms_each);
    /* a stream takes about a thousand launches before it makes the host wait */
    queue_copies(n < 900 ? n : 900);
}
static void end_work(void)
{
    if (!(work_ms_each > 0)) return;
    sl_sync(&ctx);
    free_tensor(&work_from);
    free_tensor(&work_to);
    work_ms_each = 0;
}

static size_t free_bytes(void)
{
    size_t left_free, total;
    sl_err err = {0};
    sl_sync(&ctx);
    T_OK(gpu->memory(0, &left_free, &total, &err));
    return left_free;
}
/* The driver gives a dead process's memory back shortly after its end. */
static void expect_free(size_t want)
{
    int64_t t0 = sl_now_ns();
    size_t now = 0;
    while ((now = free_bytes()) + ((size_t)2 << 20) < want && sl_now_ns() - t0 < 15000000000)
        usleep(10000);
    printf("    free bytes: %.1f MiB before, %.1f MiB after, back within %.0f ms\n",
           (double)want / 0x1p20, (double)now / 0x1p20, (double)(sl_now_ns() - t0) / 1e6);
    if (now + ((size_t)2 << 20) < want)
        fail_msg("%.1f MiB of the GPU did not come back", (double)(want - now) / 0x1p20);
}

enum { MANY = 1 << 24 }; /* floats: 64 MiB */
#define MANY_BYTES ((size_t)MANY * 4)

/* ---- order ---- */

typedef struct {
    sl_ticket ticket;
    int64_t seal_ns;
} late_message;

/* Seals a slot long before its device has written it. `how`: l lives on, k will be killed
 * meanwhile, f is killed unsealed. */
static void late_sender(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t, src = constant(MANY, 3);
    late_message m = {0};
    char c;
    C_OK(sl_pool_open(&p, h, &err));
    C_OK(sl_lease_reserve(&l, p, 5000, &err));
    C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    have_work();
    if (how != 'f') queue_work(how == 'l' ? 300 : 900);
    for (int i = 0; i < (how == 'f' ? 900 : 1); i++)
        sl_copy(&ctx, &t, &src); /* f: the slot is being written when the signal comes */
    device_ok("fill");
    int64_t t0 = sl_now_ns();
    if (how != 'f') C_OK(sl_lease_seal(l, ctx.stream, &m.ticket, &err));
    m.seal_ns = sl_now_ns() - t0;
    put(1, &m, sizeof m);
    if (!get(0, &c, 1)) _exit(0);
    sl_lease_drop(&l, ctx.stream);
    sl_pool_close(&p);
}

static void a_reader_waits_for_the_senders_device(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, MANY_BYTES);
    sl_lease *l;
    sl_tensor t;
    late_message m;
    child c = start("late_sender", 'l', p);
    assert_true(get(c.from, &m, sizeof m));
    int64_t t0 = sl_now_ns();
    T_OK(sl_lease_open(&l, p, &m.ticket, ctx.stream, &err));
    printf("    seal returned after %.3f ms, open after %.1f ms\n", (double)m.seal_ns / 1e6,
           (double)(sl_now_ns() - t0) / 1e6);
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    expect_all(&t, 3, "what the sender wrote");
    sl_lease_drop(&l, ctx.stream);
    tell(&c, 'q');
    assert_int_equal(finish(&c, 0), 0);
    if (m.seal_ns > 50000000)
        fail_msg("seal took %.1f ms: it waited for the device", (double)m.seal_ns / 1e6);
    sl_pool_close(&p);
}

typedef struct {
    int first; /* code of a reserve that does not wait */
    int64_t waited_ns;
    sl_ticket ticket;
} waiting_message;

static void waiting_sender(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t, src = constant(MANY, 9);
    waiting_message m = {0};
    char c = 'o';
    (void)how;
    C_OK(sl_pool_open(&p, h, &err));
    put(1, &c, 1);
    if (!get(0, &c, 1)) _exit(0);
    int64_t t0 = sl_now_ns();
    m.first = (int)sl_lease_reserve(&l, p, 0, &err);
    if (m.first) C_OK(sl_lease_reserve(&l, p, 10000, &err));
    m.waited_ns = sl_now_ns() - t0;
    C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    sl_copy(&ctx, &t, &src);
    device_ok("fill");
    C_OK(sl_lease_seal(l, ctx.stream, &m.ticket, &err));
    sl_lease_drop(&l, ctx.stream);
    put(1, &m, sizeof m);
    (void)!get(0, &c, 1);
    sl_pool_close(&p);
}

static void a_sender_waits_for_the_readers_device(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, MANY_BYTES);
    sl_lease *l;
    sl_tensor t, five = constant(MANY, 5), copy = constant(MANY, 0);
    sl_ticket ticket;
    waiting_message m;
    child c = start("waiting_sender", '-', p);
    hear(&c, 'o');
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    sl_copy(&ctx, &t, &five);
    T_OK(sl_lease_seal(l, ctx.stream, &ticket, &err));
    sl_lease_drop(&l, ctx.stream);
    T_OK(sl_lease_open(&l, p, &ticket, ctx.stream, &err));
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    have_work();
    queue_work(300);
    sl_copy(&ctx, &copy, &t); /* reads the slot when the work before it is over */
    sl_lease_drop(&l, ctx.stream);
    tell(&c, 'g');
    assert_true(get(c.from, &m, sizeof m));
    printf("    reserve came through after %.1f ms\n", (double)m.waited_ns / 1e6);
    expect_all(&copy, 5, "what the reader had queued to read");
    T_OK(sl_lease_open(&l, p, &m.ticket, ctx.stream, &err));
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    expect_all(&t, 9, "what the sender wrote next");
    sl_lease_drop(&l, ctx.stream);
    tell(&c, 'q');
    assert_int_equal(finish(&c, 0), 0);
    if (m.first != SL_BUSY)
        fail_msg("a reserve while the slot was read gave %s, want BUSY",
                 sl_code_name((sl_code)m.first));
    free_tensor(&five);
    free_tensor(&copy);
    end_work();
    sl_pool_close(&p);
}

/* ---- death ---- */

/* The slot of a dead writer rests, then serves as before, and nobody writes it any more. */
static void serves_again(sl_pool *p)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    float x[1000];
    expect_counts(p, 1, 0, 0, 0, 0);
    T_CODE(sl_lease_reserve(&l, p, 0, &err), SL_BUSY);
    int64_t t0 = sl_now_ns();
    sl_ticket ticket = send_one(p, 4);
    printf("    the slot of the dead: sealed again after %.0f ms\n",
           (double)(sl_now_ns() - t0) / 1e6);
    t0 = sl_now_ns();
    T_OK(sl_lease_open(&l, p, &ticket, ctx.stream, &err));
    printf("    and opened after %.1f ms\n", (double)(sl_now_ns() - t0) / 1e6);
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    usleep(300000);
    K.get(&t, x);
    for (int i = 0; i < 1000; i++)
        if (!(x[i] == 4))
            fail_msg("element %d is %g, want 4: the dead process still writes", i, (double)x[i]);
    sl_lease_drop(&l, ctx.stream);
}

static void a_sender_killed_while_it_fills_gives_everything_back(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, MANY_BYTES);
    late_message m;
    size_t had = free_bytes();
    child c = start("late_sender", 'f', p);
    assert_true(get(c.from, &m, sizeof m));
    expect_counts(p, 0, 1, 0, 0, 0);
    int64_t t0 = sl_now_ns();
    finish(&c, SIGKILL);
    printf("    dead %.0f ms after the signal\n", (double)(sl_now_ns() - t0) / 1e6);
    assert_int_equal(sl_pool_reap(p, c.pid), 1);
    serves_again(p);
    expect_free(had);
    sl_pool_close(&p);
}

static void a_sender_killed_after_its_seal_is_gone_or_whole(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, MANY_BYTES);
    sl_lease *l;
    sl_tensor t;
    late_message m;
    size_t had = free_bytes();
    child c = start("late_sender", 'k', p);
    assert_true(get(c.from, &m, sizeof m));
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, &m.ticket, 1), 0);
    int64_t t0 = sl_now_ns();
    sl_code rc = sl_lease_open(&l, p, &m.ticket, ctx.stream, &err);
    printf("    open of what a dead process had queued: %s after %.0f ms (%s)\n", sl_code_name(rc),
           (double)(sl_now_ns() - t0) / 1e6, rc ? err.msg : "its device was done");
    if (rc == SL_OK) { /* the driver saw it through: then all of it is there */
        T_OK(sl_lease_tensor(l, "x", &t, &err));
        expect_all(&t, 3, "what a dead sender had queued");
        sl_lease_drop(&l, ctx.stream);
    } else {
        T_CODE(rc, SL_GONE);
        serves_again(p);
    }
    sl_ticket ticket = send_one(p, 6); /* sealed without the event that the dead left */
    assert_true(receive_one(p, &ticket) == 6);
    expect_free(had);
    sl_pool_close(&p);
}

/* An owner that is killed while its device reads. */
static void reading_owner(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    sl_pool_handle mine;
    sl_lease *l;
    sl_tensor t, copy = constant(MANY, 0);
    sl_ticket ticket;
    char c = 'r';
    (void)h;
    (void)how;
    C_OK(sl_pool_create(&p, "doomed", SL_POOL_CUDA, 2, MANY_BYTES, &err));
    sl_pool_export(p, &mine);
    put(1, &mine, sizeof mine);
    if (!get(0, &ticket, sizeof ticket)) _exit(93);
    C_OK(sl_lease_open(&l, p, &ticket, ctx.stream, &err));
    C_OK(sl_lease_tensor(l, "x", &t, &err));
    have_work();
    queue_work(600);
    sl_copy(&ctx, &copy, &t);
    device_ok("read");
    put(1, &c, 1);
    (void)!get(0, &c, 1);
}

static void an_owner_killed_while_it_reads_gives_everything_back(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p;
    sl_pool_handle h;
    sl_lease *l, *none;
    sl_tensor t, src = constant(MANY, 2);
    sl_ticket ticket;
    size_t had = free_bytes();
    child c = start("reading_owner", '-', NULL);
    assert_true(get(c.from, &h, sizeof h));
    T_OK(sl_pool_open(&p, &h, &err));
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    sl_copy(&ctx, &t, &src);
    T_OK(sl_lease_seal(l, ctx.stream, &ticket, &err));
    sl_lease_drop(&l, ctx.stream);
    T_OK(sl_lease_reserve(&l, p, 0, &err)); /* held when the owner dies */
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    put(c.to, &ticket, sizeof ticket);
    hear(&c, 'r');
    finish(&c, SIGKILL);
    T_CODE(sl_lease_seal(l, ctx.stream, &ticket, &err), SL_GONE);
    T_CODE(sl_lease_reserve(&none, p, 1000, &err), SL_GONE);
    sl_lease_drop(&l, ctx.stream);
    sl_pool_close(&p);
    assert_true(sl_ok(&ctx)); /* this process's device works on */
    expect_all(&src, 2, "this process's own memory");
    expect_free(had);
    free_tensor(&src);
}

/* ---- what is left ---- */

static void a_thousand_hand_overs_leave_nothing(void **state)
{
    size_t had = free_bytes();
    int fds = entries_of("/proc/self/fd", ""), shm = entries_of("/dev/shm", "");
    const int few = K.hand_overs;
    setenv(MANY_HAND_OVERS, "1", 1);
    K.hand_overs = 1000;
    many_hand_overs_arrive_whole(state);
    unsetenv(MANY_HAND_OVERS);
    K.hand_overs = few; /* the next sender makes so many again */
    int fds_now = entries_of("/proc/self/fd", ""), shm_now = entries_of("/dev/shm", "");
    printf("    1000 hand-overs: descriptors %d, then %d; /dev/shm %d, then %d\n", fds, fds_now,
           shm, shm_now);
    expect_free(had);
    assert_int_equal(fds_now, fds);
    assert_true(shm_now <= shm);
}

static void pools_opened_and_closed_leave_nothing(void **state)
{
    enum { POOLS = 30 };
    (void)state;
    size_t had = free_bytes();
    int fds = entries_of("/proc/self/fd", ""), shm = entries_of("/dev/shm", "");
    for (int i = 0; i < POOLS; i++) {
        sl_pool *p = new_pool(8, (size_t)16 << 20), *view = open_again(p);
        sl_ticket t = send_one(view, (float)i);
        assert_true(receive_one(p, &t) == (float)i);
        if (i % 2) sl_pool_close(&p);
        sl_pool_close(&view);
        sl_pool_close(&p);
    }
    int fds_now = entries_of("/proc/self/fd", ""), shm_now = entries_of("/dev/shm", "");
    printf("    %d pools: descriptors %d, then %d; /dev/shm %d, then %d\n", POOLS, fds, fds_now,
           shm, shm_now);
    expect_free(had);
    assert_int_equal(fds_now, fds);
    assert_true(shm_now <= shm);
}

static void a_pool_that_does_not_fit_says_so(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p;
    T_CODE(sl_pool_create(&p, "test", SL_POOL_CUDA, 64, (size_t)64 << 30, &err), SL_NOMEM);
    T_SAYS(err.msg, "64 slots of 68719476736 bytes want 4398046511104 of device 0, which has ");
    assert_null(p);
    p = new_pool(1, 4096); /* the failure is not found again */
    sl_ticket t = send_one(p, 1);
    assert_true(receive_one(p, &t) == 1);
    sl_pool_close(&p);
}

/* ---- pinned host memory ---- */

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 2654435761u >> 13);
}

/* Copies from its device into the slots of a host pool: what decode does with frames. */
static void pinned_sender(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    uint8_t *x = malloc(MANY_BYTES);
    sl_tensor src = device_tensor(SL_U8, (int64_t)MANY_BYTES), t;
    char c;
    (void)how;
    if (!x) _exit(94);
    for (size_t i = 0; i < MANY_BYTES; i++) x[i] = pattern(i);
    sl_upload(&ctx, &src, x);
    sl_sync(&ctx);
    have_work();
    C_OK(sl_pool_open(&p, h, &err));
    C_OK(sl_pool_pin(p, &err));
    for (int i = 0; i < 3; i++) {
        late_message m;
        sl_lease *l;
        C_OK(sl_lease_reserve(&l, p, 5000, &err));
        C_OK(sl_lease_add(l, "rgb", SL_U8, 1, (int64_t[]){(int64_t)MANY_BYTES}, &t, &err));
        if (!i) queue_work(200);
        int64_t t0 = sl_now_ns();
        gpu->copy_out(&ctx, t.data, src.data, MANY_BYTES);
        device_ok("copy_out");
        C_OK(sl_lease_seal(l, ctx.stream, &m.ticket, &err));
        m.seal_ns = sl_now_ns() - t0;
        sl_lease_drop(&l, ctx.stream);
        put(1, &m, sizeof m);
    }
    (void)!get(0, &c, 1);
    sl_pool_close(&p);
    free(x);
}

static void a_host_pool_is_filled_from_the_device_before_it_is_sent(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool_of(SL_POOL_HOST, 2, MANY_BYTES);
    child c = start("pinned_sender", '-', p);
    for (int i = 0; i < 3; i++) {
        late_message m;
        sl_lease *l;
        sl_tensor t;
        assert_true(get(c.from, &m, sizeof m));
        T_OK(sl_lease_open(&l, p, &m.ticket, NULL, &err));
        T_OK(sl_lease_tensor(l, "rgb", &t, &err));
        for (size_t at = 0; at < MANY_BYTES; at++)
            if (((uint8_t *)t.data)[at] != pattern(at))
                fail_msg("hand-over %d, byte %zu is %u, want %u", i, at, ((uint8_t *)t.data)[at],
                         pattern(at));
        sl_lease_drop(&l, NULL);
        printf("    64 MiB into the pinned slot and sealed in %.2f ms, %.1f GB/s%s\n",
               (double)m.seal_ns / 1e6, (double)MANY_BYTES / (double)m.seal_ns,
               i ? "" : " (behind 200 ms of work)");
    }
    tell(&c, 'q');
    assert_int_equal(finish(&c, 0), 0);
    sl_pool_close(&p);
}

static void a_host_pool_is_read_by_the_device_before_it_is_free(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool_of(SL_POOL_HOST, 1, MANY_BYTES), *sender = open_again(p);
    sl_lease *l;
    sl_tensor t, dst = constant(MANY, 0);
    sl_ticket ticket;
    T_OK(sl_pool_pin(p, &err));
    assert_true(sl_pool_pinned(p));
    T_OK(sl_lease_reserve(&l, sender, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    for (int i = 0; i < MANY; i++) ((float *)t.data)[i] = 8;
    T_OK(sl_lease_seal(l, NULL, &ticket, &err));
    sl_lease_drop(&l, NULL);
    T_OK(sl_lease_open(&l, p, &ticket, ctx.stream, &err));
    T_OK(sl_lease_tensor(l, "x", &t, &err));
    queue_work(200);
    gpu->copy_in(&ctx, dst.data, t.data, MANY_BYTES);
    device_ok("copy_in");
    sl_lease_drop(&l, ctx.stream); /* waits: the next reserve may write at once */
    T_OK(sl_lease_reserve(&l, sender, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){MANY}, &t, &err));
    for (int i = 0; i < MANY; i++) ((float *)t.data)[i] = 1;
    expect_all(&dst, 8, "what the device read");
    sl_lease_drop(&l, NULL);
    free_tensor(&dst);
    end_work();
    sl_pool_close(&sender);
    sl_pool_close(&p);
}

/* ---- two devices ---- */

enum { ROWS = 5000, COLUMNS = 777 };

static float cell(int64_t i)
{
    return (float)(i * 2654435761u >> 9 & 0xff) - 100; /* exact in bf16 */
}

/* One tensor converted into the slot, one uploaded there from the host, one of many bytes. */
static void far_sender(const sl_pool_handle *h, char how)
{
    enum { N = ROWS * COLUMNS };
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_ticket ticket;
    float *x = malloc(N * sizeof *x);
    sl_bf16 *y = malloc(N * sizeof *y);
    char c;
    (void)how;
    if (!x || !y) _exit(94);
    for (int64_t i = 0; i < N; i++) x[i] = cell(i), y[i] = sl_to_bf16(x[i]);
    sl_tensor src = device_tensor(SL_BF16, N), big = constant(MANY, 4), converted, uploaded, whole;
    sl_upload(&ctx, &src, y);
    sl_sync(&ctx);
    C_OK(sl_pool_open(&p, h, &err));
    for (int i = 0; i < 3; i++) {
        C_OK(sl_lease_reserve(&l, p, 5000, &err));
        C_OK(sl_lease_add(l, "converted", SL_F32, 1, (int64_t[]){N}, &converted, &err));
        C_OK(sl_lease_add(l, "uploaded", SL_F32, 1, (int64_t[]){N}, &uploaded, &err));
        C_OK(sl_lease_add(l, "whole", SL_F32, 1, (int64_t[]){MANY}, &whole, &err));
        const int64_t t0 = sl_now_ns();
        sl_copy(&ctx, &converted, &src);
        sl_upload(&ctx, &uploaded, x);
        sl_copy(&ctx, &whole, &big);
        device_ok("fill");
        C_OK(sl_lease_seal(l, ctx.stream, &ticket, &err));
        sl_lease_drop(&l, ctx.stream);
        sl_sync(&ctx);
        const int64_t ns = sl_now_ns() - t0;
        put(1, &ticket, sizeof ticket);
        put(1, &ns, sizeof ns);
    }
    if (!get(0, &c, 1)) _exit(0);
    sl_pool_close(&p);
    free(x);
    free(y);
}

static void another_device_fills_the_slots(void **state)
{
    enum { N = ROWS * COLUMNS };
    static const char *const NAMES[] = {"converted", "uploaded"};
    sl_err err = {0};
    sl_pool *p = new_pool(2, MANY_BYTES + (size_t)2 * N * 4 + 4096);
    float *x = malloc(N * sizeof *x);
    size_t had = free_bytes();
    (void)state;
    assert_non_null(x);
    child c = start("far_sender", '-', p);
    for (int i = 0; i < 3; i++) {
        sl_ticket ticket;
        sl_lease *l;
        sl_tensor t;
        int64_t ns;
        assert_true(get(c.from, &ticket, sizeof ticket) && get(c.from, &ns, sizeof ns));
        T_OK(sl_lease_open(&l, p, &ticket, ctx.stream, &err));
        for (int k = 0; k < 2; k++) {
            T_OK(sl_lease_tensor(l, NAMES[k], &t, &err));
            sl_download(&ctx, x, &t);
            device_ok(NAMES[k]);
            for (int64_t e = 0; e < N; e++)
                if (!(x[e] == cell(e)))
                    fail_msg("%s, element %lld is %g, want %g", NAMES[k], (long long)e,
                             (double)x[e], (double)cell(e));
        }
        T_OK(sl_lease_tensor(l, "whole", &t, &err));
        expect_all(&t, 4, "the large one");
        sl_lease_drop(&l, ctx.stream);
        printf("    %.1f MB to the other device in %.2f ms, %.1f GB/s\n",
               (double)(MANY_BYTES + N * 8) * 1e-6, (double)ns / 1e6,
               (double)(MANY_BYTES + N * 8) / (double)ns);
    }
    tell(&c, 'q');
    assert_int_equal(finish(&c, 0), 0);
    expect_free(had);
    free(x);
    sl_pool_close(&p);
}

/* The test with its second process on another device. */
static void on_two(void (*test)(void **), void **state)
{
    bool yes = false;
    sl_err err = {0};
    if (gpu->devices() > 1) T_OK(gpu->can_map(0, 1, &yes, &err));
    if (!yes) {
        printf("    left out: no two devices that can map each other\n");
        skip();
    }
    setenv(OTHER_DEVICE, "1", 1);
    test(state);
}
static int on_one_again(void **state)
{
    (void)state;
    return unsetenv(OTHER_DEVICE);
}
#define ON_TWO(test)                                                                               \
    static void test##_on_two(void **state)                                                        \
    {                                                                                              \
        on_two(test, state);                                                                       \
    }
ON_TWO(another_device_fills_the_slots)
ON_TWO(many_hand_overs_arrive_whole)
ON_TWO(a_reader_waits_for_the_senders_device)
ON_TWO(a_sender_waits_for_the_readers_device)
ON_TWO(a_sender_killed_while_it_fills_gives_everything_back)
ON_TWO(a_sender_killed_after_its_seal_is_gone_or_whole)
ON_TWO(an_owner_killed_while_it_reads_gives_everything_back)
#define T2(test) cmocka_unit_test_teardown(test##_on_two, on_one_again)

/* What the driver opens on first use is no leak. */
static void the_first_hand_over_works(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(2, 4096), *host = new_pool_of(SL_POOL_HOST, 1, 4096);
    sl_ticket t;
    int64_t t0 = sl_now_ns();
    child c = hold(p, 's', &t);
    printf("    a second process had the device open and a slot sealed after %.0f ms\n",
           (double)(sl_now_ns() - t0) / 1e6);
    assert_true(receive_one(p, &t) == 7);
    t0 = sl_now_ns();
    finish(&c, SIGKILL);
    printf("    and was dead %.0f ms after the signal\n", (double)(sl_now_ns() - t0) / 1e6);
    T_OK(sl_pool_pin(host, &err));
    have_work();
    end_work();
    sl_pool_close(&host);
    sl_pool_close(&p);
}

int main(int argc, char **argv)
{
    static const child_entry children[] = {LEASE_CHILDREN,
                                           {"late_sender", late_sender},
                                           {"waiting_sender", waiting_sender},
                                           {"reading_owner", reading_owner},
                                           {"pinned_sender", pinned_sender},
                                           {"far_sender", far_sender}};
    sl_err err = {0};
    begin(argc, argv, children, sizeof children / sizeof *children);
    if (open_device(&err)) {
        printf("gpu_lease: skipped: %s\n", err.msg);
        return 0;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    kind_open();
    alarm(210);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_hand_over_works),
        LEASE_CASES,
        T(a_reader_waits_for_the_senders_device),
        T(a_sender_waits_for_the_readers_device),
        T(a_sender_killed_while_it_fills_gives_everything_back),
        T(a_sender_killed_after_its_seal_is_gone_or_whole),
        T(an_owner_killed_while_it_reads_gives_everything_back),
        T(a_thousand_hand_overs_leave_nothing),
        T(pools_opened_and_closed_leave_nothing),
        T(a_pool_that_does_not_fit_says_so),
        T(a_host_pool_is_filled_from_the_device_before_it_is_sent),
        T(a_host_pool_is_read_by_the_device_before_it_is_free),
        T2(another_device_fills_the_slots),
        T2(many_hand_overs_arrive_whole),
        T2(a_reader_waits_for_the_senders_device),
        T2(a_sender_waits_for_the_readers_device),
        T2(a_sender_killed_while_it_fills_gives_everything_back),
        T2(a_sender_killed_after_its_seal_is_gone_or_whole),
        T2(an_owner_killed_while_it_reads_gives_everything_back),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    sl_ctx_close(&ctx);
    return failed;
}
