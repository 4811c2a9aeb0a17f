/* helper_hangs - a stage that never comes to its job's end, in the way that a test asks for.
 *
 *   stages: ( { name = ROLE; program = ".../helper_hangs"; args = [ROLE, MODE]; } );
 *
 * MODE, what is wrong:
 *   idle      nothing is said after JOB: DONE is forgotten
 *   last      of a decode: every chunk is sent, DONE is forgotten
 *   busy      as idle, but the stage works, a twentieth of the time, in new pages
 *   attempt   DONE names another attempt
 *   short     of a decode: a chunk too few before DONE
 *   count     of a decode: the second chunk is of another count than the first
 *   returns   `work` returns without an answer
 *   deaf      CANCEL is not answered
 *   spool     DONE, and neither a ticket nor SPOOLED
 *   version   HELLO of another version of the protocol
 *   unready   no READY after HELLO
 *   poolless  of a mux: READY without a POOL
 *   thrice    HELLO as process 1 three times beside a real decode, which runs in its place */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "stages/seat/chunk.h"
#include "stages/seat/loop.h"

#define STANDARD 9 /* argv[0] and what every stage is given */

typedef struct {
    sl_seat *seat;
    sl_ctx ctx;
    const char *mode;
} hanging;

static bool is(const hanging *s, const char *mode)
{
    return !strcmp(s->mode, mode);
}

/* One black chunk. */
static sl_code send_chunk(hanging *s, const sl_msg_job *msg, const sl_job *job, uint32_t index,
                          uint32_t chunks, sl_err *err)
{
    sl_chunk c = {.msg = {.handover = SL_HANDOVER_FRAMES,
                          .index = index,
                          .chunks = chunks,
                          .frames = index ? 4 : 1}};
    sl_code rc = sl_chunk_open(&c, s->seat, &s->ctx, msg, job, err);
    if (!rc) {
        memset(c.t.data, 0, sl_bytes(&c.t));
        rc = sl_chunk_give(&c, s->seat, err);
    }
    sl_chunk_drop(&c);
    return rc;
}

static sl_code send_chunks(hanging *s, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    const uint32_t chunks = (uint32_t)sl_job_grid(&s->seat->model, job).chunks,
                   n = is(s, "short") ? chunks - 1 : chunks;
    sl_code rc = SL_OK;
    for (uint32_t i = 0; i < n && !rc; i++)
        rc = send_chunk(s, msg, job, i, is(s, "count") && i == 1 ? chunks + 1 : chunks, err);
    return rc;
}

/* 100 ms, a twentieth of them a processor's. On a busy machine it may get less than counts as work
 * in a second; the pages are had at once. */
static void work_a_little(void)
{
    const clock_t until = clock() + CLOCKS_PER_SEC / 200;
    const size_t bytes = (size_t)1 << 20;
    char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; pages != MAP_FAILED && i < bytes; i += 4096) pages[i] = 1;
    if (pages != MAP_FAILED) munmap(pages, bytes);
    while (clock() < until) continue;
    usleep(95000);
}

static void sleep_for_good(void)
{
    while (true) pause();
}

static sl_code work(void *self, const sl_msg_job *msg, const sl_job *job, sl_err *err)
{
    hanging *s = self;
    sl_msg_job other = *msg;
    sl_code rc = SL_OK;
    if (is(s, "last") || is(s, "short") || is(s, "count")) rc = send_chunks(s, msg, job, err);
    if (rc || is(s, "returns")) return rc;
    while (is(s, "busy")) work_a_little();
    if (is(s, "idle") || is(s, "deaf") || is(s, "last")) sleep_for_good();
    other.attempt += is(s, "attempt") ? 7 : 0;
    sl_seat_done(s->seat, &other, NULL, 0, 0);
    return SL_OK;
}

/* HELLO as an older program says it. */
static void say_old_hello(const char *endpoint, const char *role)
{
    uint8_t bytes[SL_WIRE_MAX];
    void *zmq = zmq_ctx_new(), *s = zmq_socket(zmq, ZMQ_DEALER);
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.pid = getpid(), .device = "cpu"}};
    snprintf(hello.hello.role, sizeof hello.hello.role, "%s", role);
    const size_t n = sl_wire_encode(bytes, &hello) - 8; /* it had a field less */
    bytes[4] = 3;                                       /* version */
    bytes[12] = (uint8_t)(bytes[12] - 8);               /* length */
    if (zmq_connect(s, endpoint) || zmq_send(s, bytes, n, 0) < 0) exit(1);
    sleep_for_good();
}

/* Three strangers' HELLO, then the real program. */
static void be_a_stranger(char **argv)
{
    void *zmq = zmq_ctx_new();
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.role = "decode", .pid = 1, .device = "cpu"}};
    char program[1024];
    for (int i = 0; i < 3; i++) {
        void *s = zmq_socket(zmq, ZMQ_DEALER);
        if (zmq_connect(s, argv[2]) || sl_wire_send(s, NULL, 0, &hello, NULL)) exit(1);
        zmq_close(s);
    }
    zmq_ctx_term(zmq);
    const char *bin = getenv("SLUICE_BIN");
    snprintf(program, sizeof program, "%s/sluice-decode", bin ? bin : "bin");
    argv[0] = program;
    argv[STANDARD] = NULL;
    execv(program, argv);
    exit(1);
}

static int serve(hanging *s, sl_role role, int argc, char **argv)
{
    sl_err err = {0};
    if (sl_seat_open(&s->seat, role, argc, argv, &err) || sl_seat_context(s->seat, &s->ctx, &err))
        return sl_seat_exit(&s->seat, &err);
    if (is(s, "unready")) sleep_for_good();
    if (!is(s, "poolless") && sl_seat_receive(s->seat, &err)) return sl_seat_exit(&s->seat, &err);
    sl_seat_ready(s->seat, sl_now_ns(), 0, 0);
    sl_seat_serve(s->seat, work, s, &err);
    sl_ctx_close(&s->ctx);
    return sl_seat_exit(&s->seat, &err);
}

int main(int argc, char **argv)
{
    if (argc != STANDARD + 2) {
        fprintf(stderr, "helper_hangs: want ROLE MODE behind a stage's arguments\n");
        return 2;
    }
    const int role = sl_role_by_name(argv[STANDARD]);
    hanging s = {.mode = argv[STANDARD + 1]};
    if (role < 0) return 2;
    if (is(&s, "version")) say_old_hello(argv[2], argv[STANDARD]);
    if (is(&s, "thrice")) be_a_stranger(argv);
    argv[STANDARD] = NULL;
    return serve(&s, (sl_role)role, STANDARD, argv);
}
