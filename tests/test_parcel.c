/* test_parcel - a seat's parcels, chunks and pools, against a dispatcher that this program
 * plays: which receiver's pool a hand-over goes to, and what is refused when one is taken. */
#include "tests/t_run.h"

#include <zmq.h>

#include "common/safetensors.h"
#include "stages/seat/chunk.h"
#include "stages/seat/parcel.h"

#define JOB 7

static char dir[] = "/tmp/test-parcel-XXXXXX";
static void *zmq, *router;
static char peer[64];
static size_t peer_size;
static sl_seat *seat;
static sl_ctx ctx;
static sl_job job;
static sl_err err;
static const int64_t SHAPE[] = {16, 2, 4, 4}; /* of the latents of 5 frames of 32 x 32 */
enum { COUNT = 16 * 2 * 4 * 4 };

/* The next message of this type that the seat says. */
static sl_msg heard(sl_msg_type type)
{
    sl_msg m;
    for (double by = t_seconds() + 10; t_seconds() < by;) {
        zmq_pollitem_t item = {router, 0, ZMQ_POLLIN, 0};
        zmq_poll(&item, 1, 100);
        peer_size = sizeof peer;
        if (!sl_wire_recv(router, peer, &peer_size, &m, NULL) && m.type == type) return m;
    }
    fail_msg("the seat did not say %s", sl_wire_name(type));
    return (sl_msg){0};
}

static void say(const sl_msg *m)
{
    T_OK(sl_wire_send(router, peer, peer_size, m, &err));
}

static void open_seat(sl_role role)
{
    char endpoint[128];
    char *argv[] = {(char *)"test_parcel", (char *)"--connect", endpoint,
                    (char *)"--model",     (char *)T_MODEL,     NULL};
    assert_non_null(mkdtemp(strcpy(dir, "/tmp/test-parcel-XXXXXX")));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/ctl", dir);
    zmq = zmq_ctx_new();
    router = zmq_socket(zmq, ZMQ_ROUTER);
    assert_int_equal(zmq_bind(router, endpoint), 0);
    T_OK(sl_seat_open(&seat, role, 5, argv, &err));
    T_OK(sl_seat_context(seat, &ctx, &err));
    heard(SL_MSG_HELLO);
    T_OK(sl_job_init(&job, &err));
    job.width = job.height = 32, job.frames = 5;
}

static void close_seat(void)
{
    int linger = 0;
    sl_job_free(&job);
    sl_ctx_close(&ctx);
    sl_seat_close(&seat);
    zmq_setsockopt(router, ZMQ_LINGER, &linger, sizeof linger);
    zmq_close(router);
    zmq_ctx_term(zmq);
    if (system(t_format("rm -r %s", dir))) fail();
}

static sl_msg_job a_job(void)
{
    sl_msg_job m = {.job = JOB, .attempt = 1};
    snprintf(m.dir, sizeof m.dir, "%s", dir);
    return m;
}

/* A receiver of latents: made, and announced to the seat. */
static sl_pool *receiver(sl_handover h)
{
    sl_pool *pool = NULL;
    sl_msg m = {.type = SL_MSG_POOL};
    T_OK(sl_pool_create(&pool, SL_HANDOVER[h].name, SL_POOL_HOST, 1, 1 << 20, &err));
    snprintf(m.pool.handover, sizeof m.pool.handover, "%s", SL_HANDOVER[h].name);
    sl_pool_export(pool, &m.pool.handle);
    say(&m);
    return pool;
}

/* The seat gives to this pool, by and by; 0: to none. */
static void gives_to(const sl_msg_job *m, uint64_t id)
{
    for (double by = t_seconds() + 10; t_seconds() < by; usleep(1000)) {
        sl_pool *pool = NULL;
        sl_err why = {0};
        sl_code rc = sl_pools_to(&seat->pools, m, SL_HANDOVER_LATENTS, &pool, &why);
        if (rc ? rc == SL_GONE && !id : sl_pool_id(pool) == id) return;
    }
    fail_msg("latents do not go to pool %llx", (unsigned long long)id);
}

static void a_jobs_list_names_the_pool(void **state)
{
    (void)state;
    open_seat(SL_ROLE_DENOISE);
    sl_msg_job any = a_job(), first = any, unknown = any, file = any;
    gives_to(&any, 0); /* nobody is there */
    sl_pool *a = receiver(SL_HANDOVER_LATENTS), *other = receiver(SL_HANDOVER_FRAMES),
            *b = receiver(SL_HANDOVER_LATENTS);
    sl_tickets_add(&first.to, SL_HANDOVER_LATENTS, &(sl_ticket){.pool = sl_pool_id(a)});
    sl_tickets_add(&unknown.to, SL_HANDOVER_LATENTS, &(sl_ticket){.pool = sl_pool_id(other) + 1});
    sl_tickets_add(&file.to, SL_HANDOVER_LATENTS, NULL);
    gives_to(&any, sl_pool_id(b)); /* the newest */
    gives_to(&first, sl_pool_id(a));
    gives_to(&unknown, 0);
    gives_to(&file, 0);

    sl_msg reap = {.type = SL_MSG_REAP, .reap = {.pid = getpid()}};
    say(&reap); /* their owner is gone, it says */
    gives_to(&any, 0);
    gives_to(&first, 0);
    sl_pool_close(&a);
    sl_pool_close(&b);
    sl_pool_close(&other);
    close_seat();
}

static void a_parcel_is_given_in_one_call(void **state)
{
    char path[64];
    sl_parcel p;
    sl_lease *lease = NULL;
    sl_tensor t;
    sl_st *file = NULL;
    float noise[COUNT] = {1};
    (void)state;
    open_seat(SL_ROLE_DENOISE);
    for (int by_slot = 1; by_slot >= 0; by_slot--) {
        sl_msg_job m = a_job();
        sl_pool *pool = receiver(SL_HANDOVER_LATENTS);
        if (by_slot) gives_to(&m, sl_pool_id(pool));
        else sl_tickets_add(&m.to, SL_HANDOVER_LATENTS, NULL);
        const sl_tensor more = sl_view(noise, SL_F32, 4, SHAPE);
        T_OK(sl_parcel_make(&p, seat, NULL, SL_HANDOVER_LATENTS, &job, &err));
        float *x = p.at[0].host.data;
        for (int i = 0; i < COUNT; i++) x[i] = (float)i;
        sl_parcel_add(&p, "noise", &more);
        sl_parcel_give(&p, seat, &ctx, &m);
        sl_parcel_drop(&p, seat);

        /* the slot, if it was to be one, and the file with its extra tensor */
        sl_msg done = heard(SL_MSG_DONE);
        const sl_ticket *ticket = sl_tickets_find(&done.done.out, SL_HANDOVER_LATENTS);
        assert_int_equal(done.done.job, JOB);
        assert_int_equal(done.done.out.count, by_slot);
        if (by_slot) {
            T_OK(sl_lease_open(&lease, pool, ticket, NULL, &err));
            T_OK(sl_lease_tensor(lease, "latents", &t, &err));
            for (int i = 0; i < COUNT; i++) assert_true(((float *)t.data)[i] == (float)i);
            sl_lease_drop(&lease, NULL);
        }
        T_OK(sl_spool_flush(&seat->spool, &err));
        snprintf(path, sizeof path, "%s/denoise.safetensors", dir);
        T_OK(sl_st_open_file(&file, path, &err));
        T_OK(sl_st_want(file, "latents", SL_F32, 4, SHAPE, &t, &err));
        T_OK(sl_st_want(file, "noise", SL_F32, 4, SHAPE, &t, &err));
        sl_st_close(&file);
        sl_pool_close(&pool);
    }
    close_seat();
}

/* Seal a tensor in the seat's pool and name it in the JOB's list. */
static sl_msg_job sealed(sl_pool *pool, const char *name, const int64_t *shape, float last)
{
    sl_msg_job m = a_job();
    sl_lease *lease = NULL;
    sl_tensor t;
    sl_ticket ticket;
    T_OK(sl_lease_reserve(&lease, pool, 1000, &err));
    T_OK(sl_lease_add(lease, name, SL_F32, 4, shape, &t, &err));
    memset(t.data, 0, sl_bytes(&t));
    ((float *)t.data)[sl_count(&t) - 1] = last;
    T_OK(sl_lease_seal(lease, NULL, &ticket, &err));
    sl_lease_drop(&lease, NULL);
    sl_tickets_add(&m.in, SL_HANDOVER_LATENTS, &ticket);
    return m;
}

static void takes(const sl_msg_job *m, sl_code want, const char *says)
{
    sl_parcel p = {0};
    sl_err why = {0};
    sl_code rc = sl_parcel_take(&p, seat, &ctx, m, &job, SL_HANDOVER_LATENTS, &why);
    if (rc != want) fail_msg("taken with %s: %s", sl_code_name(rc), why.msg);
    if (says) T_SAYS(why.msg, says);
    else assert_true(((float *)p.at[0].host.data)[COUNT - 1] == 3);
    sl_parcel_drop(&p, seat);
}

static void a_parcel_is_checked_when_taken(void **state)
{
    float x[COUNT] = {0};
    char path[64];
    sl_pool *pool = NULL;
    sl_msg_job m = a_job();
    (void)state;
    open_seat(SL_ROLE_DECODE);
    T_OK(sl_seat_receive(seat, &err));
    sl_msg announced = heard(SL_MSG_POOL);
    assert_string_equal(announced.pool.handover, "latents");
    T_OK(sl_pool_open(&pool, &announced.pool.handle, &err));

    sl_msg_job good = sealed(pool, "latents", SHAPE, 3);
    takes(&good, SL_OK, NULL);
    takes(&good, SL_GONE, "");
    m = sealed(pool, "latents", (int64_t[]){16, 2, 4, 6}, 3);
    takes(&m, SL_SHAPE, "latents has shape [16, 2, 4, 6], want [16, 2, 4, 4]");
    m = sealed(pool, "other", SHAPE, 3);
    takes(&m, SL_FORMAT, "latents");
    m = sealed(pool, "latents", SHAPE, NAN);
    takes(&m, SL_NUMERIC, "latents [16, 2, 4, 4] has NaN or infinity at element 511");

    /* and from the file */
    m = a_job();
    takes(&m, SL_SYS, "denoise.safetensors");
    const sl_tensor t = sl_view(x, SL_F32, 4, SHAPE);
    snprintf(path, sizeof path, "%s/denoise.safetensors", dir);
    x[COUNT - 1] = 3;
    T_OK(sl_st_save(path, 1, (const char *[]){"latents"}, &t, &err));
    takes(&m, SL_OK, NULL);
    T_OK(sl_st_save(path, 1, (const char *[]){"noise"}, &t, &err));
    takes(&m, SL_FORMAT, "tensor latents is missing");
    sl_pool_close(&pool);
    close_seat();
}

static void a_chunk_has_its_frames(void **state)
{
    sl_pool *pool = NULL;
    sl_lease *lease = NULL;
    sl_tensor t;
    sl_chunk c = {0};
    sl_msg_chunk m = {.job = JOB, .attempt = 1, .handover = SL_HANDOVER_FRAMES, .chunks = 2};
    (void)state;
    open_seat(SL_ROLE_MUX);
    T_OK(sl_seat_receive(seat, &err));
    sl_msg announced = heard(SL_MSG_POOL);
    T_OK(sl_pool_open(&pool, &announced.pool.handle, &err));
    for (uint32_t frames = 3; frames <= 4; frames++) { /* four are there */
        m.frames = frames;
        T_OK(sl_lease_reserve(&lease, pool, 1000, &err));
        T_OK(sl_lease_add(lease, "rgb", SL_U8, 4, (int64_t[]){4, 32, 32, 3}, &t, &err));
        T_OK(sl_lease_seal(lease, NULL, &m.slot, &err));
        sl_lease_drop(&lease, NULL);
        T_CODE(sl_chunk_take(&c, seat, &m, &job, &err), frames == 4 ? SL_OK : SL_SHAPE);
        sl_chunk_drop(&c);
    }
    m.handover = SL_HANDOVER_LATENTS; /* not the mux's */
    T_CODE(sl_chunk_take(&c, seat, &m, &job, &err), SL_GONE);
    m.handover = 4000000000;
    T_CODE(sl_chunk_take(&c, seat, &m, &job, &err), SL_GONE);
    sl_chunk_drop(&c);
    sl_pool_close(&pool);
    close_seat();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_jobs_list_names_the_pool),
        cmocka_unit_test(a_parcel_is_given_in_one_call),
        cmocka_unit_test(a_parcel_is_checked_when_taken),
        cmocka_unit_test(a_chunk_has_its_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
