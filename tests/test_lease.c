/* test_lease.c - hand-overs in host memory between real processes: the cases of every
 * kind, and what host pools alone promise. */
#include "tests/t_lease_cases.h"

#include <sys/stat.h>

static void kind_open(void)
{
    K.pool = SL_POOL_HOST;
    K.put = put_host;
    K.get = get_host;
    K.hand_overs = 10000;
    K.kills = 150;
    K.kill_within_ns = 4000000;
    K.outlives_owner = true;
}

static void untouched_slots_take_no_memory(void **state)
{
    (void)state;
    sl_pool *p = new_pool(8, (size_t)4 << 30);
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

static void a_slot_starts_at_a_page(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(2, 5000);
    sl_lease *l[2];
    sl_tensor t;
    for (int i = 0; i < 2; i++) {
        T_OK(sl_lease_reserve(&l[i], p, 0, &err));
        T_OK(sl_lease_add(l[i], "x", SL_U8, 1, (int64_t[]){5000}, &t, &err));
        assert_int_equal((uintptr_t)t.data % 4096, 0);
    }
    for (int i = 0; i < 2; i++) sl_lease_drop(&l[i], NULL);
    sl_pool_close(&p);
}

static void without_a_plug_in_there_is_no_device(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket;
    sl_pool_handle h;
    T_CODE(sl_pool_create(&p, "latents", SL_POOL_CUDA, 1, 4096, &err), SL_CUDA);
    assert_string_equal(err.msg,
                        "pool latents: its slots are device memory, and no CUDA plug-in is in use");
    assert_null(p);
    p = new_pool(1, 4096);
    sl_pool_export(p, &h);
    h.kind = SL_POOL_CUDA;
    sl_pool *other;
    T_CODE(sl_pool_open(&other, &h, &err), SL_CUDA);
    assert_null(other);
    T_CODE(sl_pool_pin(p, &err), SL_CUDA);
    assert_string_equal(err.msg, "pool test: to be pinned, and no CUDA plug-in is in use");
    assert_false(sl_pool_pinned(p));
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
    T_CODE(sl_lease_seal(l, (cudaStream_t)&t, &ticket, &err), SL_ARG);
    assert_string_equal(err.msg, "pool test: a stream is given, and no CUDA plug-in is in use");
    T_OK(sl_lease_seal(l, NULL, &ticket, &err));
    sl_lease_drop(&l, NULL);
    assert_true(sl_pool_discard(p, &ticket));
    sl_pool_close(&p);
}

/* ---- forks ---- */

static void a_view_does_not_survive_fork(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096), *view = open_again(p);
    for (int i = 0; i < 2; i++) {
        sl_pool *inherited = i ? view : p;
        int status;
        fflush(NULL);
        pid_t pid = fork();
        if (!pid) {
            sl_err err = {0};
            sl_lease *l;
            bool refused = sl_lease_reserve(&l, inherited, 0, &err) == SL_ARG &&
                           strstr(err.msg, "open it again after a fork");
            sl_pool_close(&inherited);
            _exit(refused ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
    sl_ticket t = send_one(view, 3); /* the child's close closed nothing here */
    assert_true(receive_one(p, &t) == 3);
    sl_pool_close(&view);
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
        while (s->taken == s->queued && s->taken < THREADS * EACH)
            pthread_cond_wait(&s->more, &s->mutex);
        int mine = s->taken < THREADS * EACH ? s->taken++ : -1;
        if (s->taken == THREADS * EACH) pthread_cond_broadcast(&s->more);
        sl_ticket ticket = mine >= 0 ? s->queue[mine] : (sl_ticket){0};
        pthread_mutex_unlock(&s->mutex);
        if (mine < 0) return NULL;
        sl_lease *l;
        sl_tensor t;
        int64_t v = 0;
        bool good =
            !sl_lease_open(&l, s->pool, &ticket, NULL, &err) && !sl_lease_tensor(l, "x", &t, &err);
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
    s.pool = new_pool(2, 4096); /* one mapping for both sides, so that TSan sees every access */
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&in[i], NULL, sender_thread, &s), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&out[i], NULL, receiver_thread, &s), 0);
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

int main(int argc, char **argv)
{
    static const child_entry children[] = {LEASE_CHILDREN};
    begin(argc, argv, children, sizeof children / sizeof *children);
    kind_open();
    alarm(240);
    const struct CMUnitTest tests[] = {
        LEASE_CASES,
        T(untouched_slots_take_no_memory),
        T(a_slot_starts_at_a_page),
        T(without_a_plug_in_there_is_no_device),
        T(a_view_does_not_survive_fork),
        T(threads_share_a_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
