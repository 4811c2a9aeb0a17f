/* comm_body.h - what a body of kernels/comm.h implements, and what it sees of a rank's
 * end.
 *
 * comm.c turns operations into parts, counts them, and owns control blocks, teams and
 * marks; a body moves bytes and orders them with marks. Bodies: cpu/comm_shm.c,
 * cuda/comm_ipc.cu, cuda/comm_nccl.cu. */
#ifndef SL_COMM_BODY_H
#define SL_COMM_BODY_H

#include "kernels/comm.h"

#define SL_COMM_PAGE 4096  /* bytes of a control block; a host window follows it in the file */
#define SL_COMM_BOARD 1280 /* where in it the bodies' part begins, zeros at first */

/* What one member sends to another, and what it gets from it, in one operation: bytes, in
 * rows. */
typedef struct {
    int rank;            /* of the other, in the group; may be this rank itself */
    const char *from;    /* in this process */
    size_t from_pitch;   /* bytes from row to row */
    size_t to, to_pitch; /* where it goes: bytes from the start of the other's window */
    size_t width, rows;  /* of what goes; rows 0: nothing, only the mark */
    size_t at, at_pitch; /* where the other's arrives in this rank's window */
    size_t at_width, at_rows;
    const sl_done *done; /* NULL, or what goes is there then, perhaps before ctx's stream is */
} sl_comm_part;

struct sl_comm_body {
    const char *name;
    /* Memory for the window of sl_comm_window's size, told by sl_comm_set_window; a
     * device's handle into h. */
    sl_code (*open)(sl_comm *c, sl_comm_handle *h, sl_err *err);
    sl_code (*connect)(sl_comm *c, const sl_comm_handle *peer, sl_err *err);
    void (*disconnect)(sl_comm *c, int rank); /* the other's window; fine if half connected */
    void (*close)(sl_comm *c);
    /* Send the parts, after the work now on ctx's stream or when `done` tells, then set the mark
     * `value` with each, or know by other means when they have come. parts[i] is of the team's
     * member i, n its size. */
    void (*exchange)(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value, int n,
                     const sl_comm_part parts[]);
    /* Work from now on follows the mark `value` of every other member, and this rank's
     * own sends. */
    void (*wait)(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value);
    /* As sl_comm_settle. */
    void (*settle)(sl_ctx *ctx, sl_comm *c);
    /* NULL, or what is set up between members that have not met yet. Every member has come to
     * sl_comm_begin, and nothing of this rank's is on its way. */
    void (*begin)(sl_ctx *ctx, sl_comm *c, sl_lane lane);
};

/* ---- what a body sees ---- */

int sl_comm_rank(const sl_comm *c);
int sl_comm_fd(const sl_comm *c);      /* of the file that holds the control block */
void *sl_comm_state(const sl_comm *c); /* the body's own */
void sl_comm_set_state(sl_comm *c, void *state);
void *sl_comm_block_of(const sl_comm *c, int rank); /* SL_COMM_PAGE bytes, page-aligned */
char *sl_comm_window_of(const sl_comm *c, int rank);
size_t sl_comm_window_bytes(const sl_comm *c, int rank);
void sl_comm_set_window(sl_comm *c, int rank, char *window, size_t bytes);
const sl_team *sl_comm_team(const sl_comm *c, sl_lane lane);

/* The lane was waited for so long. */
void sl_comm_add_waited(sl_comm *c, sl_lane lane, int64_t ns);

/* ---- marks: who has done how much ---- */

/* Where in the block of a rank lies the mark of rank `from`: 8 bytes, little endian. */
size_t sl_comm_mark_offset(sl_lane lane, int from);
/* Set a mark of this rank with another, and wake it. The data is there before. */
void sl_comm_set_mark(const sl_comm *c, int rank, sl_lane lane, uint64_t value);
/* Wait on the host until every other member has set `value`. Errors: sticky in ctx. */
void sl_comm_wait_marks(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value);
/* A member of any lane's team is dead or silent since t0_ns, or the attempt was given up:
 * true, and ctx has failed. Gives a sign of life. */
bool sl_comm_must_end(sl_ctx *ctx, sl_comm *c, int64_t t0_ns);
/* The attempt was given up: true, and ctx has failed. To be asked after a wait that went
 * through: the larger marks of a next attempt let it through as well. */
bool sl_comm_given_up(sl_ctx *ctx, sl_comm *c);
/* Set every mark that this rank waits for in the attempts that it has begun, and tell the
 * members. */
void sl_comm_release(sl_comm *c);

#endif
