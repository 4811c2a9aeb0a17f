/* test_lease_device.c - pools whose data a device writes: order, deaths and slots that
 * rest, on a slab whose work ends by hand.
 *
 * The slab is shared memory and a stream a flag: work "queued" on a busy stream is over
 * when the test says so, or never, when its process dies first. What a GPU adds, real
 * copies and events, is tests/gpu_lease.c; the cases of every kind run here too.
 * run: waits. takes: 10 s. */
#include "tests/t_lease_cases.h"

/* ---- a device ---- */

typedef struct {
    /* 1: recorded, and the work before it is not over */
    _Atomic uint32_t pending[2][SL_POOL_MAX_SLOTS];
    alignas(4096) char data[];
} memory;

struct CUstream_st {
    _Atomic bool busy, broken, stuck;
    _Atomic int count;
    _Atomic uint32_t *_Atomic recorded[256]; /* events that come when it is no longer busy */
};
static struct CUstream_st stream;
static _Atomic int pins;
static void *recent[2]; /* slabs that a stuck device keeps are no leak */

typedef struct {
    memory *m;
    size_t bytes;
    int fd;
} slab;

static void work_is_over(void)
{
    int n = atomic_load(&stream.count);
    atomic_store(&stream.busy, false);
    for (int i = 0; i < n; i++) atomic_store(atomic_load(&stream.recorded[i]), 0);
    atomic_store(&stream.count, 0);
}

static sl_code map_slab(void **out, int fd, size_t bytes, sl_err *err)
{
    slab *s = malloc(sizeof *s);
    if (!s) return sl_fail(err, SL_NOMEM, "no memory for a slab");
    *s = (slab){.m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
                .bytes = bytes,
                .fd = -1};
    if (s->m == MAP_FAILED) {
        free(s);
        return sl_fail_errno(err, errno, "map a slab");
    }
    recent[0] = recent[1];
    *out = recent[1] = s;
    return SL_OK;
}
static sl_code slab_create(void **out, int slots, size_t slot_bytes, sl_ipc_handle h,
                           sl_ipc_handle *filled, sl_ipc_handle *drained, sl_err *err)
{
    size_t bytes = sizeof(memory) + (size_t)slots * slot_bytes;
    int fd = memfd_create("a-device", MFD_CLOEXEC), pid = (int)getpid();
    sl_code rc;
    (void)filled;
    (void)drained;
    if (fd < 0 || ftruncate(fd, (off_t)bytes)) return sl_fail_errno(err, errno, "memfd");
    if ((rc = map_slab(out, fd, bytes, err))) return rc;
    ((slab *)*out)->fd = fd;
    memset(h, 0, sizeof(sl_ipc_handle));
    memcpy(h, &pid, sizeof pid);
    memcpy(h + sizeof pid, &fd, sizeof fd);
    return SL_OK;
}
static sl_code slab_open(void **out, int slots, size_t slot_bytes, const sl_ipc_handle h,
                         const sl_ipc_handle *filled, const sl_ipc_handle *drained, sl_err *err)
{
    char path[64];
    int pid, fd;
    (void)filled;
    (void)drained;
    memcpy(&pid, h, sizeof pid);
    memcpy(&fd, h + sizeof pid, sizeof fd);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", path);
    sl_code rc = map_slab(out, fd, sizeof(memory) + (size_t)slots * slot_bytes, err);
    close(fd);
    return rc;
}
static void slab_close(void *p)
{
    slab *s = p;
    munmap(s->m, s->bytes);
    if (s->fd >= 0) close(s->fd);
    free(s);
}
static char *slab_base(void *p)
{
    return ((slab *)p)->m->data;
}
static sl_code slab_record(void *p, int slot, sl_slab_event which, cudaStream_t on, sl_err *err)
{
    _Atomic uint32_t *event = &((slab *)p)->m->pending[which][slot];
    if (on && atomic_load(&on->broken))
        return sl_fail(err, SL_CUDA, "record: the device is broken");
    if (atomic_load(event))
        return sl_fail(err, SL_INTERNAL, "an event is recorded again that has not come");
    bool later = on && atomic_load(&on->busy);
    atomic_store(event, later);
    if (later) atomic_store(&on->recorded[atomic_fetch_add(&on->count, 1)], event);
    return SL_OK;
}
static sl_code slab_reached(void *p, int slot, sl_slab_event which, bool *yes, sl_err *err)
{
    (void)err;
    *yes = !atomic_load(&((slab *)p)->m->pending[which][slot]);
    return SL_OK;
}
static sl_code slab_wait(void *p, int slot, cudaStream_t on, sl_err *err)
{
    (void)on;
    if (atomic_load(&((slab *)p)->m->pending[SL_SLAB_FILLED][slot]))
        return sl_fail(err, SL_INTERNAL, "a stream would wait for an event alone");
    return SL_OK;
}
static sl_code slab_idle(cudaStream_t on, bool *yes, sl_err *err)
{
    if (on && atomic_load(&on->broken)) return sl_fail(err, SL_CUDA, "query: the device is broken");
    *yes = !on || !atomic_load(&on->busy);
    return SL_OK;
}
static sl_code slab_finish(void *p, sl_err *err)
{
    (void)p;
    if (atomic_load(&stream.broken)) return sl_fail(err, SL_CUDA, "finish: the device is broken");
    if (atomic_load(&stream.stuck))
        return sl_fail(err, SL_TIMEOUT, "finish: the device does not end");
    work_is_over();
    return SL_OK;
}
static sl_code slab_pin(void *p, size_t bytes, sl_err *err)
{
    (void)p;
    if (bytes > (size_t)1 << 30)
        return sl_fail(err, SL_NOMEM, "pin %zu bytes: out of memory", bytes);
    pins++;
    return SL_OK;
}
static void slab_unpin(void *p)
{
    (void)p;
    pins--;
}

static void kind_open(void)
{
    static const sl_slab_ops ops = {slab_create, slab_open,    slab_close, slab_base,
                                    slab_record, slab_reached, slab_wait,  slab_idle,
                                    slab_finish, slab_pin,     slab_unpin};
    sl_pool_use_cuda(&ops);
    K.pool = SL_POOL_CUDA;
    K.stream = &stream;
    K.put = put_host;
    K.get = get_host;
    K.hand_overs = 3000;
    K.kills = 60;
    K.kill_within_ns = 40000000;
    K.outlives_owner = true;
}

static void *end_soon(void *arg)
{
    (void)arg;
    usleep(60000);
    work_is_over();
    return NULL;
}
static pthread_t busy_for_60_ms(void)
{
    pthread_t th;
    atomic_store(&stream.busy, true);
    assert_int_equal(pthread_create(&th, NULL, end_soon, NULL), 0);
    return th;
}

/* ---- order ---- */

/* A hand-over of 100 bytes whose work is still under way when it returns, if the stream
 * is busy. */
static sl_ticket send_busy(sl_pool *p)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){100}, &t, &err));
    memset(t.data, 5, 100);
    T_OK(sl_lease_seal(l, &stream, &ticket, &err));
    sl_lease_drop(&l, &stream);
    return ticket;
}

static void an_open_waits_for_what_the_sender_queued(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, 4096);
    sl_lease *l;
    atomic_store(&stream.busy, true);
    int64_t t0 = sl_now_ns();
    sl_ticket t = send_busy(p);
    assert_true(sl_now_ns() - t0 < 40000000); /* the seal does not wait */
    expect_counts(p, 0, 0, 1, 0, 0);
    t0 = sl_now_ns();
    pthread_t th = busy_for_60_ms();
    T_OK(sl_lease_open(&l, p, &t, NULL, &err));
    assert_true(sl_now_ns() - t0 >= 60000000);
    pthread_join(th, NULL);
    sl_lease_drop(&l, NULL);
    expect_counts(p, 1, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void a_slot_that_is_still_read_is_passed_over(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(2, 4096), *sender = open_again(p);
    sl_lease *l, *a, *b;
    sl_tensor t;
    sl_ticket ticket = send_busy(sender);
    T_OK(sl_lease_open(&l, p, &ticket, &stream, &err));
    /* the owner queues a copy out of the slot, and drops it at once */
    atomic_store(&stream.busy, true);
    sl_lease_drop(&l, &stream);
    expect_counts(p, 2, 0, 0, 0, 0);
    T_OK(sl_lease_reserve(&a, sender, 0, &err));
    T_CODE(sl_lease_reserve(&b, sender, 0, &err), SL_BUSY);
    T_CODE(sl_lease_reserve(&b, sender, 20, &err), SL_BUSY);
    int64_t t0 = sl_now_ns();
    pthread_t th = busy_for_60_ms();
    T_OK(sl_lease_reserve(&b, sender, 5000, &err));
    assert_true(sl_now_ns() - t0 >= 60000000);
    T_OK(sl_lease_add(a, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
    pthread_join(th, NULL);
    sl_lease_drop(&a, &stream);
    sl_lease_drop(&b, &stream);
    sl_pool_close(&sender);
    sl_pool_close(&p);
}

static void an_unsealed_drop_waits_for_its_work(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, 4096);
    sl_lease *l;
    sl_tensor t;
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
    int64_t t0 = sl_now_ns();
    pthread_t th = busy_for_60_ms();
    sl_lease_drop(&l, &stream);
    assert_true(sl_now_ns() - t0 >= 60000000);
    pthread_join(th, NULL);
    expect_counts(p, 1, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void a_discarded_slot_comes_free_when_its_work_is_over(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, 4096), *sender = open_again(p);
    sl_lease *l;
    atomic_store(&stream.busy, true);
    sl_ticket t = send_busy(sender);
    assert_true(sl_pool_discard(p, &t));
    assert_false(sl_pool_discard(p, &t));
    expect_counts(p, 0, 0, 0, 0, 1);
    assert_int_equal(sl_pool_reap(p, getpid()), 0); /* its sender lives */
    T_CODE(sl_lease_open(&l, p, &t, NULL, &err), SL_GONE);
    T_CODE(sl_lease_reserve(&l, sender, 0, &err), SL_BUSY);
    pthread_t th = busy_for_60_ms();
    T_OK(sl_lease_reserve(&l, sender, 5000, &err));
    pthread_join(th, NULL);
    sl_lease_drop(&l, NULL);
    expect_counts(p, 1, 0, 0, 0, 0);
    /* a table that makes no sense is refused, and its slot still written */
    sl_block *b = scribbler(p);
    atomic_store(&stream.busy, true);
    t = send_busy(sender);
    b->slot[0].table.count = 9;
    T_CODE(sl_lease_open(&l, p, &t, NULL, &err), SL_FORMAT);
    expect_counts(p, 0, 0, 0, 0, 1);
    work_is_over();
    t = send_busy(sender);
    assert_true(sl_pool_discard(p, &t));
    expect_counts(p, 1, 0, 0, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&sender);
    sl_pool_close(&p);
}

static void a_broken_device_keeps_its_slots(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(2, 4096), *sender = open_again(p);
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket = send_busy(sender);
    T_OK(sl_lease_open(&l, p, &ticket, &stream, &err));
    atomic_store(&stream.broken, true);
    /* cannot be ordered: nobody writes under a copy that may be running */
    sl_lease_drop(&l, &stream);
    expect_counts(p, 1, 0, 0, 1, 0);
    T_OK(sl_lease_reserve(&l, sender, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
    T_CODE(sl_lease_seal(l, &stream, &ticket, &err), SL_CUDA);
    assert_string_equal(err.msg, "pool test: record: the device is broken");
    sl_lease_drop(&l, &stream);
    expect_counts(p, 0, 0, 0, 1, 1);
    sl_pool_close(&sender);
    expect_counts(p, 0, 0, 0, 1, 1); /* until the process dies */
    atomic_store(&stream.broken, false);
    sl_pool_close(&p);
}

/* ---- death ---- */

/* Leaves work that will never be over: s after a seal, f while it fills. */
static void dying_child(const sl_pool_handle *h, char until)
{
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket = {0};
    C_OK(sl_pool_open(&p, h, &err));
    C_OK(sl_lease_reserve(&l, p, 5000, &err));
    C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
    atomic_store(&stream.busy, true);
    if (until == 's') C_OK(sl_lease_seal(l, &stream, &ticket, &err));
    put(1, &ticket, sizeof ticket);
    pause();
}
static sl_ticket die(sl_pool *p, char until, bool reap)
{
    sl_ticket t;
    child c = start("dying_child", until, p);
    assert_true(get(c.from, &t, sizeof t));
    finish(&c, SIGKILL);
    if (reap) sl_pool_reap_unsent(p, c.pid, &t, 1);
    return t;
}
static void rests_and_works_again(sl_pool *p)
{
    sl_err err = {0};
    sl_lease *l;
    expect_counts(p, 1, 0, 0, 0, 0);
    T_CODE(sl_lease_reserve(&l, p, 0, &err), SL_BUSY);
    int64_t t0 = sl_now_ns();
    T_OK(sl_lease_reserve(&l, p, 5000, &err));
    int64_t waited = sl_now_ns() - t0;
    if (waited < 500000000 || waited > 3000000000)
        fail_msg("the slot rested %.0f ms, want about 1000", (double)waited / 1e6);
    sl_lease_drop(&l, NULL);
    for (int i = 0; i < 2; i++) {
        sl_ticket t = send_one(p, 3);
        assert_true(receive_one(p, &t) == 3);
    }
}

/* The dead sender's event is not used any more: a seal waits for its own work, and the
 * open need not. */
static void is_sealed_when_it_is_written(sl_pool *p)
{
    sl_err err = {0};
    sl_lease *l;
    for (int discard = 0; discard < 2; discard++) {
        int64_t t0 = sl_now_ns();
        pthread_t th = busy_for_60_ms();
        sl_ticket t = send_busy(p);
        int64_t took = sl_now_ns() - t0;
        pthread_join(th, NULL);
        if (took < 60000000)
            fail_msg("the seal returned after %.1f ms, while its work was under way",
                     (double)took / 1e6);
        if (discard) assert_true(sl_pool_discard(p, &t));
        else {
            T_OK(sl_lease_open(&l, p, &t, NULL, &err));
            sl_lease_drop(&l, NULL);
        }
        expect_counts(p, 1, 0, 0, 0, 0);
    }
}

static void a_slot_rests_after_its_writer_died(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096);
    die(p, 'f', true);
    rests_and_works_again(p);
    sl_pool_close(&p);
}

static void what_a_dead_sender_never_wrote_is_gone(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_lease *l;
    for (int reap = 0; reap < 2; reap++) {
        sl_pool *p = new_pool(1, 4096);
        sl_ticket t = die(p, 's', reap);
        expect_counts(p, 0, 0, 1, 0, 0);
        T_CODE(sl_lease_open(&l, p, &t, NULL, &err), SL_GONE);
        T_SAYS(err.msg, "died before its device had written slot 0");
        assert_null(l);
        rests_and_works_again(p);
        is_sealed_when_it_is_written(p);
        sl_pool_close(&p);
    }
}

static void an_abandoned_slot_is_reaped_with_its_sender(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096);
    sl_ticket t;
    child c = start("dying_child", 's', p);
    assert_true(get(c.from, &t, sizeof t));
    assert_true(sl_pool_discard(p, &t));
    expect_counts(p, 0, 0, 0, 0, 1);
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap(p, c.pid), 1);
    rests_and_works_again(p);
    sl_pool_close(&p);
    p = new_pool(1, 4096);
    t = die(p, 's', false); /* discarded when it is dead already */
    assert_true(sl_pool_discard(p, &t));
    rests_and_works_again(p);
    is_sealed_when_it_is_written(p);
    sl_pool_close(&p);
}

static void a_rest_that_was_scribbled_over_ends(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096);
    sl_block *b = scribbler(p);
    int64_t odd[] = {INT64_MAX, INT64_MIN, -1, 1, 0};
    for (int i = 0; i < 5; i++) {
        atomic_store(&b->slot[0].rest_until_ms, odd[i]);
        sl_ticket t = send_one(p, 1);
        assert_true(receive_one(p, &t) == 1);
    }
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

/* Such a device may still write there. */
static void a_device_that_never_ends_keeps_the_mapping(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096), *sender = open_again(p);
    left had = count_left();
    atomic_store(&stream.stuck, true);
    sl_pool_close(&sender);
    sl_pool_close(&p);
    atomic_store(&stream.stuck, false);
    assert_null(p);
    assert_int_equal(count_left().maps, had.maps);
}

/* ---- host pools that a device copies to and from ---- */

static void a_host_pool_is_sealed_and_dropped_when_the_stream_is_idle(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool_of(SL_POOL_HOST, 1, 4096), *sender = open_again(p);
    sl_lease *l;
    sl_ticket t;
    T_OK(sl_pool_pin(sender, &err));
    T_OK(sl_pool_pin(sender, &err));
    assert_true(sl_pool_pinned(sender) && !sl_pool_pinned(p));
    assert_int_equal(pins, 1);
    int64_t t0 = sl_now_ns();
    pthread_t th = busy_for_60_ms();
    t = send_busy(sender);
    assert_true(sl_now_ns() - t0 >= 60000000);
    pthread_join(th, NULL);
    T_OK(sl_lease_open(&l, p, &t, NULL, &err));
    t0 = sl_now_ns();
    th = busy_for_60_ms();
    sl_lease_drop(&l, &stream);
    assert_true(sl_now_ns() - t0 >= 60000000);
    pthread_join(th, NULL);
    die(p, 'f', true);
    rests_and_works_again(p);
    sl_pool_close(&sender);
    assert_int_equal(pins, 0);
    sl_pool_close(&p);
    p = new_pool_of(SL_POOL_HOST, 2, (size_t)1 << 30);
    T_CODE(sl_pool_pin(p, &err), SL_NOMEM);
    assert_string_equal(err.msg, "pool test: pin 2147483648 bytes: out of memory");
    assert_false(sl_pool_pinned(p));
    sl_pool_close(&p);
}

int main(int argc, char **argv)
{
    static const child_entry children[] = {LEASE_CHILDREN, {"dying_child", dying_child}};
    begin(argc, argv, children, sizeof children / sizeof *children);
    kind_open();
    alarm(240);
    const struct CMUnitTest tests[] = {
        LEASE_CASES,
        T(an_open_waits_for_what_the_sender_queued),
        T(a_slot_that_is_still_read_is_passed_over),
        T(an_unsealed_drop_waits_for_its_work),
        T(a_discarded_slot_comes_free_when_its_work_is_over),
        T(a_broken_device_keeps_its_slots),
        T(a_slot_rests_after_its_writer_died),
        T(what_a_dead_sender_never_wrote_is_gone),
        T(an_abandoned_slot_is_reaped_with_its_sender),
        T(a_rest_that_was_scribbled_over_ends),
        /* and its descriptors: nothing is counted */
        cmocka_unit_test(a_device_that_never_ends_keeps_the_mapping),
        T(a_host_pool_is_sealed_and_dropped_when_the_stream_is_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
