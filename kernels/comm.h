/* comm.h - ranks of one forward: processes that share the rows and heads of one job.
 *
 * GROUP   all ranks of a machine that may ever work together, each a process with the same
 *         weights. A rank opens its end once, at start, and exports a handle, plain bytes; it
 *         connects the handle of every other rank once. After that nothing is set up any more;
 *         but for nccl, where two ranks are joined when they first begin an attempt together.
 * TEAM    any subset of the group, for one attempt at a job: numbers alone, no messages.
 * WINDOW  memory of a rank that the others write to. A tensor in a window lies at the
 *         same offset on every rank of a team, since all of them lay it out by the same
 *         shapes.
 * LANE    a sequence of operations of its own; the teams of a lane that a rank is in do not
 *         overlap in time. Halves of a guided team use one lane, the whole team another.
 *
 * Every member calls the same operations of a lane in the same order with the same
 * shapes. An operation starts with sl_comm_..., which returns at once on a device, and
 * ends with sl_comm_wait: then what the others send is there and what this rank sends has
 * been read. A window's tensor that has been received may be the target of another
 * exchange as soon as every member has waited for a later operation than the last that
 * reads it: two exchanges that take turns, as rows -> heads and heads -> rows, are
 * enough. Where parts of a result travel before the operation that makes it has ended
 * (`done`), what that operation reads may be a target only behind sl_comm_signal.
 *
 * BODIES, one interface and one test:
 *   shm    CPU ranks: windows are shared memory
 *   ipc    GPU ranks: windows are device memory mapped by CUDA IPC, written by copy engines;
 *          devices that cannot map each other are refused at connect
 *   nccl   GPU ranks, a device each: NCCL moves the bytes, also between devices that cannot map
 *          each other; two ranks of one device are refused at connect. Its kernels hold some
 *          multiprocessors while a rank waits for another within an operation
 *
 * ENDS. An abort by anybody (cancel, error) or a dead rank ends every wait of every member
 * within a second, with SL_CANCELLED or SL_GONE; a rank without a sign of life for
 * timeout_ms does, with SL_TIMEOUT. Who writes to a window must be dead before another
 * attempt uses it: a stopped rank is killed first. The group outlives an attempt. Errors
 * are ctx's, sticky. While planning operations do nothing, and comm may be NULL. */
#ifndef SL_COMM_H
#define SL_COMM_H

#include "common/pipeline.h" /* SL_RANKS: most of a group */
#include "kernels/ops.h"

/* SHARD: ranks that share a forward; MEET: the two that have a branch each; TEAM: all, for weights,
 * inputs and what is agreed on between steps. */
typedef enum { SL_LANE_SHARD, SL_LANE_MEET, SL_LANE_TEAM, SL_LANES } sl_lane;

typedef struct sl_comm sl_comm; /* one rank's end of the group; one thread */

/* Plain bytes: how another process reaches a rank. */
typedef struct {
    int32_t rank, pid, fd;
    uint32_t reserved;
    uint64_t window_bytes;
    uint8_t device[64]; /* ipc: cudaIpcMemHandle_t; nccl: where the device is; zero for shm */
} sl_comm_handle;

/* Members of one attempt, the same on each of them. */
typedef struct {
    int size;             /* 1 .. SL_RANKS */
    int me;               /* index of this rank in member */
    int member[SL_RANKS]; /* ranks of the group */
    uint32_t key;         /* of the attempt: larger than any that its members have used */
    int granule;          /* rows are shared in multiples of so many; 0: as 1 */
    /* Of the members' shares of the rows, as sl_shares_fit wants them; all 0: equal shares. */
    uint8_t weight[SL_RANKS];
} sl_team;

typedef struct sl_comm_body sl_comm_body;
extern const sl_comm_body sl_comm_shm;

/* ---- the group ---- */

/* This rank's end with a window of `bytes`. *out is the caller's to close. timeout_ms:
 * longest time without a sign of life of a member that is waited for. Errors: SL_ARG,
 * SL_NOMEM, SL_SYS, SL_CUDA. */
sl_code sl_comm_open(sl_comm **out, const sl_comm_body *body, int rank, size_t bytes,
                     int timeout_ms, sl_err *err);
void sl_comm_handle_of(const sl_comm *c, sl_comm_handle *out);
/* Map another rank's window. A newer handle of a rank replaces its old one. Errors:
 * SL_GONE it is dead; SL_ARG; SL_SYS; SL_CUDA. */
sl_code sl_comm_connect(sl_comm *c, const sl_comm_handle *peer, sl_err *err);
void sl_comm_close(sl_comm **c); /* NULL is fine */

/* This rank's window and its bytes. */
void *sl_comm_window(const sl_comm *c, size_t *bytes);

/* ---- a team ---- */

typedef struct {
    int64_t first, rows;
} sl_share;
enum { SL_SHARE_EQUAL = 64, SL_SHARE_MOST = 72 }; /* weights: of an equal share, of the largest */
/* Weights of a team's shares: all 0 (equal shares), or each at most SL_SHARE_MOST and all together
 * size * SL_SHARE_EQUAL. */
bool sl_shares_fit(const uint8_t weight[], int size);
/* Which of n rows are member i's, in the order of members: multiples of the team's granule (of
 * ops.h's table, where products take rows by tiles), the last rows with the granule before
 * them. Of equal weights shares are as even as may be, the first members one granule more; of
 * others as large as the weights say, down to a granule. Fewer granules than members: some have
 * none. A share begins where the one before it ends. Only size, granule and weights of the team
 * count. */
sl_share sl_share_of(const sl_team *team, int64_t n, int i);
/* The most rows that a share may have, whatever the weights. */
int64_t sl_share_most(int64_t n, int size, int granule);

/* Begin an attempt: the lane's count starts at 0, and every member is waited for, so that
 * nothing of an earlier attempt is still on its way. Device work that this rank queued
 * has been waited for. From here to sl_comm_end whatever waits for ctx on the host (sl_sync,
 * sl_download, ...) settles first. Errors, sticky in ctx: SL_GONE a member is not connected or
 * dead; SL_ARG key, members or weights. */
void sl_comm_begin(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_team *team);
/* Other shares for the lane's team, from its next operation on. Every member gives the same weights
 * after the same operation, when no operation is on its way: a barrier or sl_comm_tell of all of
 * them, on whichever lane, comes before. Errors, sticky: SL_ARG weights that do not fit. */
void sl_comm_weigh(sl_ctx *ctx, sl_comm *c, sl_lane lane, const uint8_t weight[SL_RANKS]);
/* The attempt is over, well or not, on every lane: what is queued has come to its end when this
 * returns. ctx keeps its error. An end without a beginning is fine. */
void sl_comm_end(sl_ctx *ctx, sl_comm *c);

/* End every wait of this rank's teams, and tell the members: may be called by any thread. */
void sl_comm_abort(sl_comm *c, const sl_team *team);

/* ---- operations ---- */

/* Rows to heads: x [n_me, d], y [n, d] in the window: all rows of this member's d / size columns,
 * which lie from column me * (d / size) on; the others stay as they are. n: rows of all. d divides
 * by size. own: false, and this member's own columns of its own rows are not taken from x, where
 * they need not be: who calls has written or writes them to y, or x is those rows of y. */
void sl_comm_to_heads(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                      int64_t n, bool own);
/* Heads to rows, columns [first, first + cols) of each member's share: x [n, d / size], y [n, d] in
 * the window: this member's rows of it. All columns: first 0, cols d / size. done: NULL, or for
 * each member when its rows of x are there (sl_attention_parts), for bodies that can send them
 * while x is still being computed. own: as above. */
void sl_comm_to_rows(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                     int64_t n, int64_t first, int64_t cols, const sl_done *done, bool own);
/* An operation that brings nothing: who has waited for it knows that the work that was queued on
 * every member's stream before its signal has ended. */
void sl_comm_signal(sl_ctx *ctx, sl_comm *c, sl_lane lane);
/* Rows of all: x [n_me, d] of this member's rows, y [n, d] in the window. */
void sl_comm_gather(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                    int64_t n);
/* Rows to whoever will have them: x [n_me, d] of this member's rows, y [n_me of `to`, d] in the
 * window, its rows once the lane's team has the weights of `to`. */
void sl_comm_move(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y, const sl_tensor *x,
                  int64_t n, const sl_team *to);
/* x of the member `root` to y of every other, in the window; x may be anywhere on root. */
void sl_comm_broadcast(sl_ctx *ctx, sl_comm *c, sl_lane lane, const sl_tensor *y,
                       const sl_tensor *x, int root);
/* Work on ctx's stream from now on follows all but the newest `but` operations of the
 * lane. */
void sl_comm_wait(sl_ctx *ctx, sl_comm *c, sl_lane lane, int but);
/* Every member has come here; waits on the host. */
void sl_comm_barrier(sl_ctx *ctx, sl_comm *c, sl_lane lane);
/* A barrier that brings a word of each member: all[i] is member i's `mine`, on every rank. After
 * an error they are unspecified. A member that begins its next attempt overwrites its words: where
 * others may still be reading the last ones of this attempt, a barrier comes between. */
void sl_comm_tell(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t mine, uint64_t all[SL_RANKS]);
/* Wait on the host until all that ctx and this rank have queued is over: instead of
 * sl_sync wherever the stream may wait for a member, which sl_sync would do for ever.
 * After an error, and after an abort, it ends the waits that are queued. Errors:
 * SL_CANCELLED, SL_GONE, SL_TIMEOUT, sticky. */
void sl_comm_settle(sl_ctx *ctx, sl_comm *c);
/* A sign of life, which operations and waits give by themselves; from any thread, for
 * times in which a rank computes on the host for long. A member without one for
 * timeout_ms is given up. */
void sl_comm_beat(sl_comm *c);

/* For the report: how long each lane was waited for, on the host and by the device's stream, since
 * the figures were last taken; bytes sent to others. On a device waits are measured as long as
 * events are left for it: some 250 between two calls of sl_comm_settle. */
typedef struct {
    int64_t waited_ns[SL_LANES];
    uint64_t sent_bytes, operations;
} sl_comm_stats;
sl_comm_stats sl_comm_take_stats(sl_comm *c);
sl_comm_stats sl_comm_stats_of(const sl_comm *c); /* the same, and they go on */

#endif
