/* team_load.h - pieces of files onto the devices of a team: each byte is read by one rank,
 * which passes it on to the others, device to device.
 *
 * The pieces, in the order of the files, are one long row of bytes, of which each member
 * reads a share, as even as may be, straight to its final place. The shares travel in
 * rounds: in round r every member broadcasts what it has read as its r-th batch into the
 * others' windows, and they copy it to its final place. While a batch travels the next
 * ones are read. Batches are as large as the window allows (two of each member lie in it),
 * at most 64 MiB.
 * A member that is lost, or fails, does not fail the others: each reads for itself what
 * has not come. */
#ifndef SL_TEAM_LOAD_H
#define SL_TEAM_LOAD_H

#include "kernels/comm.h"
#include "kernels/plugin.h"

/* Of the window, for each member: with less a load is refused. */
#define SL_TEAM_LOAD_MIN ((size_t)64 << 10)

/* Reads pieces on the calling thread. An error is returned, and ctx has none. */
typedef sl_code sl_team_read_fn(void *user, const sl_load_piece *pieces, int n, sl_err *err);

typedef struct {
    sl_ctx *ctx;
    sl_comm *comm; /* windows of one size on all members */
    sl_lane lane;  /* begun here, unless it is with the team's key */
    const sl_team *team;
    const sl_plugin *plugin; /* reads beside the exchange; NULL: `read` does, between rounds */
    sl_team_read_fn *read;
    void *user;
    uint64_t list; /* of what the pieces are: members with different ones do not share */
} sl_team_load;

typedef struct {
    uint64_t read;           /* bytes of files, by this rank */
    uint64_t received, sent; /* device to device */
    int64_t waited_ns;       /* in rounds, for the other members and their bytes */
    sl_err ended;            /* why sharing ended before all was there; SL_OK: it did not */
} sl_team_load_figures;

/* Bring n pieces to this rank's device; every member calls this with the same pieces in
 * the same order (fd and dst are a rank's own; each dst at a multiple of 256 bytes, all in
 * one allocation laid out alike). What figures->ended tells has been made up for by
 * reading here, and the attempt is then over (sl_comm_end). Errors: those of reading, after which
 * the team's attempt is aborted; SL_ARG the window is too small; SL_CANCELLED by
 * *ctx->cancel; SL_NOMEM. */
sl_code sl_team_load_run(const sl_team_load *t, const sl_load_piece *pieces, int n,
                         sl_team_load_figures *figures, sl_err *err);

#endif
