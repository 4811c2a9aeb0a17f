/* mates.h - the other instances of a stage's role, with which it forms teams (kernels/comm.h).
 *
 *     open: a window, RANK to the others -> LOAD -> for each JOB join -> ... -> close
 * A stage whose deployment forms no teams has no ranks: every function then does nothing,
 * or gives a team of one. Main thread; the socket's thread gives the signs of life. A zeroed
 * sl_mates may be closed. */
#ifndef SL_SEAT_MATES_H
#define SL_SEAT_MATES_H

#include "common/conf.h"
#include "kernels/comm.h"
#include "kernels/plugin.h"
#include "stages/seat/control.h"

/* A rank without a sign of life for so long is given up by those that wait for it. */
#define SL_MATES_SILENT_MS 1200

typedef struct {
    sl_control *control;
    sl_comm *comm; /* NULL: no teams */
    int granule;   /* of the device's table */
    struct {
        bool known, connected;
        sl_comm_handle handle;
    } others[SL_RANKS];
    bool load_came;
    sl_members load;
} sl_mates;

/* How the ranks of `role` reach each other: "shm", "ipc" or "nccl", as the configuration says
 * or, where it says "auto", as their devices allow. p: NULL on a CPU. Errors: SL_ARG devices of
 * two kinds, or a way that they do not have; SL_CUDA. */
sl_code sl_mates_way(const char **out, const sl_conf *conf, sl_role role, const sl_plugin *p,
                     sl_err *err);

/* Take a window of so many bytes on ctx's device and say RANK. Errors: as sl_mates_way,
 * SL_NOMEM, SL_SYS, SL_CUDA. */
sl_code sl_mates_open(sl_mates *r, sl_control *control, const sl_conf *conf, sl_role role,
                      int instance, const sl_ctx *ctx, const sl_plugin *p, size_t bytes,
                      sl_err *err);
void sl_mates_close(sl_mates *r);

/* RANK and LOAD are remembered. true: dealt with. */
bool sl_mates_note(sl_mates *r, const sl_msg *m);

/* Wait for LOAD. If it does not come within a minute, or names others that are not to be
 * reached, the team is of this rank alone. Errors: SL_GONE drained. */
sl_code sl_mates_load_team(sl_mates *r, sl_team *out, sl_err *err);

/* The team of a JOB, its members connected. Without ranks, or of a JOB without a team: size 1.
 * Errors: SL_GONE a member is not known or dead; SL_ARG this rank is not the one that is meant;
 * SL_CUDA. */
sl_code sl_mates_join(sl_mates *r, const sl_members *m, sl_team *out, sl_err *err);

#endif
