/* comm_block.h - what comm.c and its bodies share: the control block of a rank, in shared memory,
 * and one rank's view of all of them. Private to kernels/comm.c and the bodies. */
#ifndef SL_COMM_BLOCK_H
#define SL_COMM_BLOCK_H

#include <stdatomic.h>
#include <sys/types.h>

#include "kernels/comm.h"

#define SL_COMM_MAGIC 0x4d4d4f43u /* "COMM" */
#define SL_COMM_PAGE 4096         /* bytes of the block; a host window follows it */

/* A mark: the attempt's key, then how many operations of the lane are done. Marks of one key are
 * compared as numbers; a smaller key is an earlier attempt. */
static inline uint64_t sl_comm_mark(uint32_t key, uint32_t count)
{
    return (uint64_t)key << 32 | count;
}

/* Of one rank. The others write `arrived` and `aborted`; the rank itself waits on `woken`. */
typedef struct {
    uint32_t magic;
    int32_t rank;
    _Atomic uint32_t woken;                       /* futex: grows with each mark and abort */
    _Atomic uint32_t aborted;                     /* newest key whose attempt was given up */
    _Atomic uint64_t arrived[SL_LANES][SL_RANKS]; /* newest mark that each rank has set here */
} sl_comm_block;

typedef struct {
    sl_comm_block *block; /* NULL: not connected */
    char *window;         /* host or device, in this process */
    size_t window_bytes;
    pid_t pid;
    int pidfd;  /* -1: own rank, or unknown to the kernel */
    void *body; /* the body's own */
} sl_comm_peer;

typedef struct {
    sl_team team;
    bool begun;
    uint32_t count; /* operations started */
} sl_comm_lane;

struct sl_comm {
    const sl_comm_body *body;
    int rank, fd, timeout_ms;
    size_t bytes;
    sl_comm_peer peers[SL_RANKS]; /* own rank's too */
    sl_comm_lane lanes[SL_LANES];
    sl_comm_handle handle;
    sl_comm_stats stats;
    void *state; /* the body's own */
};

/* Set a mark of this rank with a peer, and wake it. The data is there before. */
void sl_comm_set_mark(const sl_comm *c, int rank, sl_lane lane, uint64_t value);
/* Wait on the host until every member of the lane's team but this rank has set `value`. Errors:
 * SL_CANCELLED, SL_GONE, SL_TIMEOUT, sticky in ctx. */
void sl_comm_wait_marks(sl_ctx *ctx, sl_comm *c, sl_lane lane, uint64_t value);
bool sl_comm_aborted(const sl_comm *c, uint32_t key);

#endif
