/* t_lease_cases.h - what every kind of pool does: exact bytes, back-pressure, stale
 * tickets, and every way to die or be revoked. */
#ifndef T_LEASE_CASES_H
#define T_LEASE_CASES_H

#include "tests/t_lease.h"

#include <pthread.h>

/* ---- in one process ---- */

static void a_hand_over_keeps_names_shapes_and_bytes(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(2, 100000), *sender = open_again(owner);
    sl_lease *w, *r;
    sl_tensor a, b, t;
    sl_ticket ticket;
    float want[5 * 7 * 11], got[5 * 7 * 11];
    uint8_t mask[9], mask_got[9];
    assert_int_equal(sl_pool_slots(sender), 2);
    assert_int_equal(sl_pool_slot_bytes(sender), 102400);
    assert_true(sl_pool_id(sender) == sl_pool_id(owner) && sl_pool_id(owner));
    assert_true(sl_pool_kind_of(sender) == K.pool && sl_pool_kind_of(owner) == K.pool);

    T_OK(sl_lease_reserve(&w, sender, 0, &err));
    expect_counts(owner, 1, 1, 0, 0, 0);
    T_OK(sl_lease_add(w, "clip", SL_F32, 3, (int64_t[]){5, 7, 11}, &a, &err));
    T_OK(sl_lease_add(w, "mask", SL_U8, 2, (int64_t[]){3, 3}, &b, &err));
    assert_int_equal((uintptr_t)a.data % 256, 0);
    assert_int_equal((uintptr_t)b.data % 256, 0);
    t_fill(want, 5 * 7 * 11, 1);
    memset(mask, 42, sizeof mask);
    K.put(&a, want);
    K.put(&b, mask);
    T_OK(sl_lease_tensor(w, "clip", &t, &err));
    assert_ptr_equal(t.data, a.data);
    T_OK(sl_lease_seal(w, K.stream, &ticket, &err));
    T_CODE(sl_lease_tensor(w, "clip", &t, &err), SL_ARG);
    T_CODE(sl_lease_seal(w, K.stream, &ticket, &err), SL_ARG);
    sl_lease_drop(&w, K.stream);
    sl_lease_drop(&w, K.stream);
    expect_counts(owner, 1, 0, 1, 0, 0);

    T_OK(sl_lease_open(&r, owner, &ticket, K.stream, &err));
    expect_counts(owner, 1, 0, 0, 1, 0);
    T_OK(sl_lease_tensor(r, "clip", &t, &err));
    assert_true(t.rank == 3 && t.dtype == SL_F32 && t.shape[0] == 5 && t.shape[1] == 7 &&
                t.shape[2] == 11 && sl_is_dense(&t));
    K.get(&t, got);
    assert_memory_equal(got, want, sizeof want);
    T_OK(sl_lease_tensor(r, "mask", &t, &err));
    K.get(&t, mask_got);
    assert_memory_equal(mask_got, mask, sizeof mask);
    T_CODE(sl_lease_tensor(r, "latents", &t, &err), SL_FORMAT);
    assert_string_equal(err.msg, "pool test: slot 0 has no tensor latents");
    T_CODE(sl_lease_add(r, "more", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    sl_lease_drop(&r, K.stream);
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
    sl_pool *owner = new_pool(1, 4096), *other = new_pool(1, 4096), *sender = open_again(owner);
    sl_lease *l;
    sl_ticket first = send_one(sender, 1), t = first;
    T_CODE(sl_lease_open(&l, sender, &first, K.stream, &err), SL_ARG);
    T_SAYS(err.msg, "only its owner");
    T_CODE(sl_lease_open(&l, other, &first, K.stream, &err), SL_GONE);
    T_SAYS(err.msg, "ticket is of pool ");
    t.slot = 7;
    T_CODE(sl_lease_open(&l, owner, &t, K.stream, &err), SL_GONE);
    assert_true(receive_one(owner, &first) == 1);
    T_CODE(sl_lease_open(&l, owner, &first, K.stream, &err), SL_GONE);
    assert_string_equal(err.msg, "pool test: ticket of slot 0, epoch 1, is stale");
    assert_null(l);
    sl_ticket second = send_one(sender, 2);
    assert_false(sl_pool_discard(owner, &first));
    T_CODE(sl_lease_open(&l, owner, &first, K.stream, &err), SL_GONE);
    expect_counts(owner, 0, 0, 1, 0, 0);
    assert_true(sl_pool_discard(owner, &second));
    assert_false(sl_pool_discard(owner, &second));
    sl_ticket third = send_one(sender, 3);
    assert_true(receive_one(owner, &third) == 3);
    expect_counts(owner, 1, 0, 0, 0, 0);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
    sl_pool_close(&other);
}

static void a_drop_before_the_seal_frees_unsent(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(1, 4096);
    sl_lease *l;
    sl_tensor t;
    T_OK(sl_lease_reserve(&l, owner, 0, &err));
    sl_lease_drop(&l, K.stream);
    expect_counts(owner, 1, 0, 0, 0, 0);
    T_OK(sl_lease_reserve(&l, owner, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    sl_lease_drop(&l, K.stream);
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
    T_CODE(sl_pool_create(&p, "test", K.pool, 0, 4096, &err), SL_ARG);
    assert_string_equal(err.msg, "pool test: pool has 0 slots, want 1 to 64");
    T_CODE(sl_pool_create(&p, "test", K.pool, 65, 4096, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", K.pool, 1, 0, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", K.pool, 1, SIZE_MAX, &err), SL_ARG);
    T_CODE(sl_pool_create(&p, "test", (sl_pool_kind)9, 1, 4096, &err), SL_ARG);
    assert_null(p);

    p = new_pool(1, 4096);
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_CODE(sl_lease_reserve(&none, p, 0, &err), SL_BUSY);
    assert_string_equal(err.msg, "pool test: none of 1 slots came free in 0 ms");
    assert_null(none);
    T_CODE(sl_lease_seal(l, K.stream, &ticket, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "a-name-of-twenty-four-by", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_SAYS(err.msg, "has 24 bytes, want 1 to 23");
    T_CODE(sl_lease_add(l, "x", SL_U8, 0, (int64_t[]){1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_U8, 7, (int64_t[]){1, 1, 1, 1, 1, 1, 1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", (sl_dtype)77, 1, (int64_t[]){1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){-1}, &t, &err), SL_SHAPE);
    T_CODE(sl_lease_add(l, "x", SL_F32, 3, (int64_t[]){INT64_MAX, INT64_MAX, 2}, &t, &err),
           SL_SHAPE);
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){3000}, &t, &err));
    T_CODE(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_ARG);
    T_CODE(sl_lease_add(l, "y", SL_F32, 1, (int64_t[]){300}, &t, &err), SL_SHAPE);
    assert_string_equal(err.msg,
                        "pool test: tensor y takes 1200 bytes, 1024 of the slot's 4096 are left");
    T_OK(sl_lease_add(l, "y", SL_U8, 1, (int64_t[]){1024}, &t, &err));
    T_OK(sl_lease_add(l, "z", SL_U8, 1, (int64_t[]){0}, &t, &err));
    T_OK(sl_lease_add(l, "u", SL_U8, 1, (int64_t[]){0}, &t, &err));
    T_CODE(sl_lease_add(l, "v", SL_U8, 1, (int64_t[]){0}, &t, &err), SL_ARG);
    T_SAYS(err.msg, "one too many");
    T_OK(sl_lease_seal(l, K.stream, &ticket, &err));
    sl_lease_drop(&l, K.stream);
    sl_pool_close(&p);
}

static void epochs_wrap(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, 4096);
    sl_block *b = scribbler(p);
    sl_lease *l;
    atomic_store(&b->slot[0].word, sl_word(SL_SLOT_FREE, 0, SL_EPOCH_MASK - 1));
    sl_ticket t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = send_one(p, (float)i);
        for (int k = 0; k < i; k++) T_CODE(sl_lease_open(&l, p, &t[k], K.stream, &err), SL_GONE);
        assert_true(receive_one(p, &t[i]) == (float)i);
    }
    assert_true(t[1].epoch == SL_EPOCH_MASK && t[2].epoch == 0 && t[3].epoch == 1);
    expect_counts(p, 1, 0, 0, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

static void a_revoked_writer_is_told_and_its_slot_comes_free(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(3, 4096), *sender = open_again(owner);
    sl_lease *a, *b, *c;
    sl_tensor t;
    sl_ticket ticket;
    uint8_t ones[4096];
    memset(ones, 1, sizeof ones);
    T_OK(sl_lease_reserve(&a, sender, 0, &err));
    T_OK(sl_lease_reserve(&b, sender, 0, &err));
    T_OK(sl_lease_reserve(&c, sender, 0, &err));
    T_OK(sl_lease_add(a, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    assert_int_equal(sl_pool_revoke(owner, getpid() + 1), 0);
    assert_int_equal(sl_pool_revoke(owner, getpid()), 3);
    assert_int_equal(sl_pool_revoke(owner, getpid()), 0);
    expect_counts(owner, 0, 0, 0, 0, 3);
    assert_int_equal(sl_pool_reap(owner, getpid()), 0); /* the writer lives: still quarantined */
    expect_counts(owner, 0, 0, 0, 0, 3);
    K.put(&t, ones); /* the late writer touches nobody else's memory */
    T_CODE(sl_lease_seal(a, K.stream, &ticket, &err), SL_GONE);
    assert_string_equal(err.msg, "pool test: slot 0 was revoked while it was being written");
    expect_counts(owner, 1, 0, 0, 0, 2);
    T_CODE(sl_lease_add(b, "x", SL_U8, 1, (int64_t[]){1}, &t, &err), SL_GONE);
    expect_counts(owner, 1, 0, 0, 0, 2);
    sl_lease_drop(&a, K.stream);
    sl_lease_drop(&b, K.stream);
    sl_lease_drop(&c, K.stream);
    expect_counts(owner, 3, 0, 0, 0, 0);
    sl_pool_close(&sender);
    sl_pool_close(&owner);
}

static void closing_a_view_ends_its_holds(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(3, 4096), *sender = open_again(owner);
    sl_lease *l;
    sl_ticket t = send_one(sender, 5);
    T_OK(sl_lease_reserve(&l, sender, 0, &err));
    sl_pool_close(&sender);
    expect_counts(owner, 2, 0, 1, 0, 0);
    assert_true(receive_one(owner, &t) == 5);
    free(l);
    /* entries are given away again, also those that a sealed slot still named at the
     * close */
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

static void a_closed_pool_says_gone(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(2, 4096), *sender = open_again(owner);
    sl_lease *held, *l;
    sl_tensor t;
    sl_ticket ticket;
    uint8_t ones[4096];
    memset(ones, 1, sizeof ones);
    T_OK(sl_lease_reserve(&held, sender, 0, &err));
    T_OK(sl_lease_add(held, "x", SL_U8, 1, (int64_t[]){4096}, &t, &err));
    sl_pool_close(&owner);
    K.put(&t, ones); /* views of one process share its mapping */
    T_CODE(sl_lease_reserve(&l, sender, 1000, &err), SL_GONE);
    T_SAYS(err.msg, "its owner, is gone");
    T_CODE(sl_lease_seal(held, K.stream, &ticket, &err), SL_GONE);
    sl_lease_drop(&held, K.stream);
    sl_pool_close(&sender);
}

/* ---- between processes ---- */

/* What hand-over i holds, by the same rule on both sides. */
typedef struct {
    int count;
    sl_dtype dtype[SL_LEASE_TENSORS];
    int rank[SL_LEASE_TENSORS];
    int64_t shape[SL_LEASE_TENSORS][SL_MAX_RANK];
} cargo;
enum { CARGO_BYTES = 7 * 7 * 7 * 7 * 8 };
static cargo cargo_of(int i)
{
    uint64_t r = mix((uint64_t)i + 1);
    cargo c = {.count = 1 + (int)(r % SL_LEASE_TENSORS)};
    for (int k = 0; k < c.count; k++) {
        r = mix(r + 1);
        c.dtype[k] = (sl_dtype)(r % SL_DTYPE_COUNT);
        c.rank[k] = 1 + (int)((r >> 8) % 4);
        for (int d = 0; d < c.rank[k]; d++) c.shape[k][d] = 1 + (int64_t)(r >> (16 + 4 * d)) % 7;
    }
    return c;
}
static uint8_t byte_of(int i, int k, size_t at)
{
    return (uint8_t)(i * 131 + k * 17 + (int)at * 7);
}

static void cargo_sender(const sl_pool_handle *h, char how)
{
    static uint8_t bytes[CARGO_BYTES];
    sl_err err = {0};
    sl_pool *p;
    (void)how;
    C_OK(sl_pool_open(&p, h, &err));
    for (int i = 0; i < K.hand_overs; i++) {
        cargo s = cargo_of(i);
        sl_lease *l;
        sl_ticket ticket;
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        for (int k = 0; k < s.count; k++) {
            char name[16];
            sl_tensor t;
            snprintf(name, sizeof name, "t%d", k);
            C_OK(sl_lease_add(l, name, s.dtype[k], s.rank[k], s.shape[k], &t, &err));
            for (size_t at = 0; at < sl_bytes(&t); at++) bytes[at] = byte_of(i, k, at);
            K.put(&t, bytes);
        }
        C_OK(sl_lease_seal(l, K.stream, &ticket, &err));
        put(1, &ticket, sizeof ticket);
        sl_lease_drop(&l, K.stream);
    }
    sl_pool_close(&p);
}

static void receive_planned(sl_pool *p, const sl_ticket *ticket, int i)
{
    static uint8_t bytes[CARGO_BYTES];
    sl_err err = {0};
    cargo s = cargo_of(i);
    sl_lease *l;
    T_OK(sl_lease_open(&l, p, ticket, K.stream, &err));
    for (int k = 0; k < s.count; k++) {
        char name[16];
        sl_tensor t;
        snprintf(name, sizeof name, "t%d", k);
        T_OK(sl_lease_tensor(l, name, &t, &err));
        sl_tensor want = sl_view(t.data, s.dtype[k], s.rank[k], s.shape[k]);
        if (t.dtype != want.dtype || !sl_same_shape(&t, &want))
            fail_msg("hand-over %d, tensor %d: another shape", i, k);
        K.get(&t, bytes);
        for (size_t at = 0; at < sl_bytes(&t); at++)
            if (bytes[at] != byte_of(i, k, at))
                fail_msg("hand-over %d, tensor %d, byte %zu is %u, want %u", i, k, at, bytes[at],
                         byte_of(i, k, at));
    }
    sl_lease_drop(&l, K.stream);
}

static void many_hand_overs_arrive_whole(void **state)
{
    (void)state;
    sl_pool *p = new_pool(4, 65536);
    child c = start("cargo_sender", '-', p);
    for (int i = 0; i < K.hand_overs; i++) {
        sl_ticket t;
        if (!get(c.from, &t, sizeof t)) fail_msg("the sender ended after %d hand-overs", i);
        receive_planned(p, &t, i);
    }
    assert_int_equal(finish(&c, 0), 0);
    expect_counts(p, 4, 0, 0, 0, 0);
    sl_pool_close(&p);
}

typedef struct {
    sl_ticket ticket;
    int64_t at_ns; /* when the reserve returned */
} eager_message;

/* Seals one hand-over after another; after each, sends the ticket and when its reserve
 * returned. */
static void eager_sender(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    char c;
    (void)how;
    C_OK(sl_pool_open(&p, h, &err));
    for (;;) {
        sl_lease *l;
        sl_tensor t;
        eager_message m;
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        m.at_ns = sl_now_ns();
        C_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1}, &t, &err));
        C_OK(sl_lease_seal(l, K.stream, &m.ticket, &err));
        sl_lease_drop(&l, K.stream);
        put(1, &m, sizeof m);
        if (fcntl(0, F_SETFL, O_NONBLOCK) || read(0, &c, 1) >= 0) _exit(0);
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
    sl_pool *p = new_pool(1, 4096);
    child c = start("eager_sender", '-', p);
    int64_t late[ROUNDS];
    eager_message m;
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
    /* a lost wake-up would cost the 50 ms after which a sender looks */
    if (late[ROUNDS / 2] > 25000000)
        fail_msg("half of the senders woke after %.1f ms, want under 25",
                 (double)late[ROUNDS / 2] / 1e6);
    tell(&c, 'q');
    sl_pool_discard(p, &m.ticket);
    finish(&c, 0);
    sl_pool_close(&p);
}

/* ---- death ---- */

/* Holds a slot in the state that `until` names: r reserved, f being filled, s sealed. */
static void holder_child(const sl_pool_handle *h, char until)
{
    sl_err err = {0};
    sl_pool *p;
    sl_lease *l;
    sl_tensor t;
    sl_ticket ticket = {0};
    float x[1000];
    char c;
    for (int i = 0; i < 1000; i++) x[i] = 7;
    C_OK(sl_pool_open(&p, h, &err));
    C_OK(sl_lease_reserve(&l, p, 5000, &err)); /* a slot may rest */
    if (until != 'r') {
        C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
        K.put(&t, x);
    }
    if (until == 's') C_OK(sl_lease_seal(l, K.stream, &ticket, &err));
    put(1, &until, 1);
    put(1, &ticket, sizeof ticket);
    if (!get(0, &c, 1)) _exit(93);
    /* told to go on: a late writer tries to seal */
    sl_code rc = sl_lease_seal(l, K.stream, &ticket, &err);
    c = rc == SL_GONE ? 'G' : rc == SL_OK ? 'O' : 'E';
    put(1, &c, 1);
    (void)!get(0, &c, 1);
    sl_lease_drop(&l, K.stream);
    sl_pool_close(&p);
}

static child hold(sl_pool *p, char until, sl_ticket *ticket)
{
    child c = start("holder_child", until, p);
    hear(&c, until);
    assert_true(get(c.from, ticket, sizeof *ticket));
    return c;
}

static void a_killed_sender_loses_what_it_was_writing(void **state)
{
    (void)state;
    sl_pool *p = new_pool(2, 4096);
    sl_ticket t;
    for (const char *until = "rf"; *until; until++) {
        child c = hold(p, *until, &t);
        expect_counts(p, 1, 1, 0, 0, 0);
        assert_int_equal(sl_pool_reap(p, c.pid), 0); /* the child lives */
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
    sl_pool *p = new_pool(2, 4096);
    sl_ticket t;
    child c = hold(p, 's', &t);
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap(p, c.pid), 0);
    expect_counts(p, 1, 0, 1, 0, 0);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, &t, 1), 0);
    assert_true(receive_one(p, &t) == 7);
    expect_counts(p, 2, 0, 0, 0, 0);
    c = hold(p, 's', &t);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, NULL, 0), 0); /* the child lives */
    finish(&c, SIGKILL);
    assert_int_equal(sl_pool_reap_unsent(p, c.pid, NULL, 0), 1); /* the ticket was never sent */
    expect_counts(p, 2, 0, 0, 0, 0);
    sl_pool_close(&p);
}

static void a_zombie_counts_as_dead(void **state)
{
    (void)state;
    sl_pool *p = new_pool(1, 4096);
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
    sl_pool *p = new_pool(2, 4096);
    sl_block *b = scribbler(p);
    sl_ticket t;
    child c = hold(p, 'f', &t);
    /* an older process of the same pid, which had started a second earlier, died while it
     * held slot 1 */
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
    sl_pool *p = new_pool(1, 4096);
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

static void busy_child(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    float x[1000];
    (void)how;
    for (int i = 0; i < 1000; i++) x[i] = 9;
    put(1, &(sl_ticket){0}, sizeof(sl_ticket));
    C_OK(sl_pool_open(&p, h, &err));
    for (;;) {
        sl_lease *l, *unused;
        sl_tensor t;
        sl_ticket ticket;
        C_OK(sl_lease_reserve(&unused, p, 20000, &err));
        C_OK(sl_lease_reserve(&l, p, 20000, &err));
        C_OK(sl_lease_add(l, "x", SL_F32, 1, (int64_t[]){1000}, &t, &err));
        K.put(&t, x);
        C_OK(sl_lease_seal(l, K.stream, &ticket, &err));
        put(1, &ticket, sizeof ticket);
        sl_lease_drop(&unused, K.stream);
        sl_lease_drop(&l, K.stream);
    }
}

/* On a device the last ticket of a dead process may name a slot that was never wholly
 * written. */
static int receive_if_whole(sl_pool *p, const sl_ticket *t)
{
    sl_err err = {0};
    sl_lease *l;
    sl_tensor x;
    float v[1000];
    sl_code rc = sl_lease_open(&l, p, t, K.stream, &err);
    if (rc == SL_GONE && K.pool == SL_POOL_CUDA) return 0;
    T_OK(rc);
    T_OK(sl_lease_tensor(l, "x", &x, &err));
    K.get(&x, v);
    for (int i = 0; i < 1000; i++)
        if (!(v[i] == 9)) fail_msg("element %d is %g, want 9", i, (double)v[i]);
    sl_lease_drop(&l, K.stream);
    return 1;
}

static void kills_at_any_instruction_lose_no_slot(void **state)
{
    (void)state;
    enum { SLOTS = 4 };
    sl_pool *p = new_pool(SLOTS, 4096);
    int received = 0;
    for (int i = 0; i < K.kills; i++) {
        child c = start("busy_child", '-', p);
        sl_ticket t;
        assert_true(get(c.from, &t, sizeof t));
        int64_t end = sl_now_ns() + (int64_t)(mix((uint64_t)i) % (uint64_t)K.kill_within_ns);
        while (sl_now_ns() < end) {
            if (fcntl(c.from, F_SETFL, O_NONBLOCK)) fail();
            if (read(c.from, &t, sizeof t) != sizeof t) continue;
            received += receive_if_whole(p, &t);
        }
        kill(c.pid, SIGKILL);
        waitpid(c.pid, NULL, 0);
        if (fcntl(c.from, F_SETFL, O_NONBLOCK)) fail();
        /* what the dead sender had sent still counts */
        while (read(c.from, &t, sizeof t) == sizeof t) received += receive_if_whole(p, &t);
        sl_pool_reap(p, c.pid);
        sl_pool_reap_unsent(p, c.pid, NULL, 0);
        close(c.to);
        close(c.from);
        expect_counts(p, SLOTS, 0, 0, 0, 0);
    }
    /* after a death on a device two slots may rest */
    assert_true(received > (K.pool == SL_POOL_HOST ? K.kills : 0));
    sl_pool_close(&p);
}

/* The owner is the child here: it makes a pool, sends the handle, and waits to be killed. */
static void owner_child(const sl_pool_handle *h, char how)
{
    sl_err err = {0};
    sl_pool *p;
    sl_pool_handle mine;
    char c;
    (void)h;
    (void)how;
    C_OK(sl_pool_create(&p, "doomed", K.pool, 1, 1 << 20, &err));
    sl_pool_export(p, &mine);
    put(1, &mine, sizeof mine);
    (void)!get(0, &c, 1);
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
    sl_pool *p;
    sl_pool_handle h;
    sl_lease *l, *second;
    sl_tensor t;
    sl_ticket ticket;
    pthread_t th;
    static uint8_t bytes[1 << 20];
    child c = start("owner_child", '-', NULL);
    assert_true(get(c.from, &h, sizeof h));
    T_OK(sl_pool_open(&p, &h, &err));
    T_OK(sl_lease_reserve(&l, p, 0, &err));
    T_OK(sl_lease_add(l, "x", SL_U8, 1, (int64_t[]){1 << 20}, &t, &err));
    K.put(&t, bytes);
    assert_int_equal(pthread_create(&th, NULL, kill_soon, &c.pid), 0);
    int64_t t0 = sl_now_ns();
    /* this process waits for a slot when the owner dies */
    T_CODE(sl_lease_reserve(&second, p, 20000, &err), SL_GONE);
    double waited = (double)(sl_now_ns() - t0) / 1e9;
    assert_true(waited < 5);
    pthread_join(th, NULL);
    finish(&c, SIGKILL);
    if (K.outlives_owner) K.put(&t, bytes); /* the memory stays until the last mapping goes */
    T_CODE(sl_lease_seal(l, K.stream, &ticket, &err), SL_GONE);
    T_SAYS(err.msg, "its owner, is gone");
    sl_lease_drop(&l, K.stream);
    T_CODE(sl_lease_reserve(&l, p, 0, &err), SL_GONE);
    sl_pool_close(&p);
    T_CODE(sl_pool_open(&p, &h, &err), SL_GONE);
}

#define LEASE_CHILDREN                                                                             \
    {"cargo_sender", cargo_sender}, {"eager_sender", eager_sender},                                \
        {"holder_child", holder_child}, {"busy_child", busy_child},                                \
    {                                                                                              \
        "owner_child", owner_child                                                                 \
    }

#define LEASE_CASES                                                                                \
    T(a_hand_over_keeps_names_shapes_and_bytes), T(tickets_work_once),                             \
        T(a_drop_before_the_seal_frees_unsent), T(bad_calls_are_refused_by_name), T(epochs_wrap),  \
        T(a_revoked_writer_is_told_and_its_slot_comes_free), T(closing_a_view_ends_its_holds),     \
        T(a_closed_pool_says_gone), T(many_hand_overs_arrive_whole),                               \
        T(a_sender_waits_for_credit_and_wakes_at_once),                                            \
        T(a_killed_sender_loses_what_it_was_writing), T(what_a_killed_sender_had_sealed_stays),    \
        T(a_zombie_counts_as_dead), T(a_reused_pid_keeps_its_slots),                               \
        T(a_revoked_live_writer_is_quarantined_until_it_seals_or_dies),                            \
        T(kills_at_any_instruction_lose_no_slot), T(the_owners_death_is_noticed_and_harmless)

#endif
