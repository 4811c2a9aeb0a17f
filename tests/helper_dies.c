/* helper_dies - a stage that is killed on its first starts, at the moment a test asks
 * for, and then becomes the real program.
 *
 *   stages: ( { name = ROLE; program = ".../helper_dies";
 *               args = [MODE, TIMES, COUNTER, PROGRAM]; } );
 *
 * MODE, when the stage dies:
 *   start      before it has said anything
 *   job        as soon as it has a job
 *   sealed     when it has sealed a slot of its receiver and told nobody
 *   nonsense   not at all, but it says what is no message
 * The file COUNTER grows by a byte a start; from start TIMES + 1 on, PROGRAM runs in the
 * helper's place. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zmq.h>

#include "stages/seat/seat.h"

#define STANDARD 9 /* argv[0] and what every stage is given */

static int count_start(const char *path)
{
    struct stat st = {0};
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, ".", 1) != 1 || fstat(fd, &st)) exit(1);
    close(fd);
    return (int)st.st_size;
}

/* Wait for the job; then fill a slot of the receiver, if asked, and die. */
static void die_at_work(int argc, char **argv, sl_role role, bool sealed)
{
    sl_seat *seat = NULL;
    sl_err err = {0};
    sl_msg msg;
    sl_pool *pool = NULL;
    sl_lease *lease = NULL;
    sl_tensor t;
    sl_ticket ticket;
    int h = 0;
    while (h < SL_HANDOVER_COUNT && SL_HANDOVER[h].from != role) h++;
    if (sl_seat_open(&seat, role, argc, argv, &err)) exit(sl_seat_exit(&seat, &err));
    sl_seat_ready(seat, sl_now_ns(), 0, 0);
    do
        if (sl_control_next(&seat->control, false, &msg, &err)) exit(sl_seat_exit(&seat, &err));
    while (msg.type != SL_MSG_JOB);
    if (sealed && h < SL_HANDOVER_COUNT) {
        /* it may not be there yet */
        while (sl_pools_to(&seat->pools, &msg.job, (sl_handover)h, &pool, &err)) usleep(1000);
        if (sl_lease_reserve(&lease, pool, 5000, &err) ||
            sl_lease_add(lease, "lost", SL_U8, 1, (int64_t[]){1}, &t, &err) ||
            sl_lease_seal(lease, NULL, &ticket, &err))
            exit(sl_seat_exit(&seat, &err));
    }
    raise(SIGKILL);
}

/* A proper HELLO, then words. */
static void talk_nonsense(const char *endpoint, const char *role)
{
    void *zmq = zmq_ctx_new(), *s = zmq_socket(zmq, ZMQ_DEALER);
    sl_msg hello = {.type = SL_MSG_HELLO, .hello = {.pid = getpid(), .device = "cpu"}};
    snprintf(hello.hello.role, sizeof hello.hello.role, "%s", role);
    if (zmq_connect(s, endpoint) || sl_wire_send(s, NULL, 0, &hello, NULL) ||
        zmq_send(s, "good morning", 12, 0) < 0)
        exit(1);
    while (true) pause();
}

int main(int argc, char **argv)
{
    if (argc != STANDARD + 4) {
        fprintf(stderr,
                "helper_dies: want MODE TIMES COUNTER PROGRAM behind a stage's arguments\n");
        return 2;
    }
    const char *mode = argv[STANDARD], *program = argv[STANDARD + 3], *name = strrchr(program, '-');
    int times = (int)strtol(argv[STANDARD + 1], NULL, 10), start = count_start(argv[STANDARD + 2]);
    int role = name ? sl_role_by_name(name + 1) : -1; /* PROGRAM is .../sluice-ROLE */
    argv[STANDARD] = NULL;
    if (start <= times && !strcmp(mode, "start")) raise(SIGKILL);
    if (start <= times && role >= 0) {
        if (!strcmp(mode, "nonsense")) talk_nonsense(argv[2], name + 1);
        die_at_work(STANDARD, argv, (sl_role)role, !strcmp(mode, "sealed"));
    }
    argv[0] = (char *)program;
    execv(program, argv);
    perror(program);
    return 1;
}
