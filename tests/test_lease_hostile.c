/* test_lease_hostile.c - handles from outside and control blocks scribbled over: errors,
 * never a crash or a wild pointer. */
#include "tests/t_lease.h"

#include <pthread.h>

static void kind_open(void)
{
    K.pool = SL_POOL_HOST;
    K.put = put_host;
    K.get = get_host;
}

static void bad_handles_are_refused(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *owner = new_pool(2, 4096), *p;
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

static void a_wrong_table_is_refused_and_its_slot_freed(void **state)
{
    (void)state;
    sl_err err = {0};
    sl_pool *p = new_pool(1, 8192);
    sl_block *b = scribbler(p);
    sl_block_table *t = &b->slot[0].table;
    sl_lease *l;
    static const char *const says[] = {"has 0 tensors",
                                       "has 5 tensors",
                                       "no proper name",
                                       "no proper name",
                                       "dtype 7",
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

/* Every call once, whatever the block says. Codes may be anything; memory must hold (ASan
 * watches) and time must end. */
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
        if (!sl_lease_add(w, "x", SL_U8, 1, (int64_t[]){(int64_t)(r >> 8) % 5000}, &t, &err))
            memset(t.data, 1, sl_bytes(&t));
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
        sl_pool *owner = new_pool(3, 4096), *sender = open_again(owner);
        sl_block *b = scribbler(owner);
        uint8_t *bytes = (uint8_t *)b;
        sl_ticket t = {.pool = sl_pool_id(owner), .slot = 0, .epoch = 1};
        for (int i = 0; i < 60; i++) {
            for (int k = 0; k < 30; k++) {
                r = mix(r + 1);
                size_t last = offsetof(sl_block, slot) + 3 * sizeof(sl_block_slot);
                size_t at = r % 4 ? offsetof(sl_block, slot) + r / 4 % (3 * sizeof(sl_block_slot))
                                  : r / 4 % last;
                bytes[at] = r & 64 ? (uint8_t)(r >> 50) : (uint8_t)(r >> 50) % 8;
            }
            if (r % 3 == 0)
                atomic_store(&b->slot[r / 3 % 3].word,
                             sl_word((sl_slot_state)(r >> 20 & 7), (unsigned)(r >> 30) % 4,
                                     1 + (r >> 34) % 2));
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
        __atomic_store_n(&words[r % (3 * sizeof(sl_block_slot) / 8)], r >> 32 & 3 ? r >> 60 : r,
                         __ATOMIC_RELAXED);
        if (r >> 63)
            atomic_store(&b->slot[r % 3].word,
                         sl_word((sl_slot_state)(r >> 20 & 7), (unsigned)(r >> 30) % 3, 1));
        atomic_store(&b->freed, (uint32_t)r);
    }
    return NULL;
}

static void a_block_scribbled_over_meanwhile_gives_errors_never_a_crash(void **state)
{
    (void)state;
    sl_pool *owner = new_pool(3, 4096), *sender = open_again(owner);
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
    sl_pool *p = new_pool(2, 4096);
    sl_block *b = scribbler(p);
    atomic_store(&b->slot[0].word, 0xdeadbeefdeadbeef);
    atomic_store(&b->slot[1].word, sl_word(SL_SLOT_FILLING, 200, 5));
    expect_counts(p, 0, 1, 0, 0, 1);
    assert_int_equal(sl_pool_reap(p, 1), 2);
    expect_counts(p, 2, 0, 0, 0, 0);
    munmap(b, sizeof *b);
    sl_pool_close(&p);
}

int main(int argc, char **argv)
{
    begin(argc, argv, NULL, 0);
    kind_open();
    alarm(240);
    const struct CMUnitTest tests[] = {
        T(bad_handles_are_refused),
        T(a_wrong_table_is_refused_and_its_slot_freed),
        T(a_scribbled_block_gives_errors_never_a_crash),
        T(a_block_scribbled_over_meanwhile_gives_errors_never_a_crash),
        T(a_scribbled_word_is_healed_by_reap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
