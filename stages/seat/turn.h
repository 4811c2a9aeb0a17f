/* turn.h - the stage's side of turns: stages that share a device compute one at a time,
 * and the dispatcher says whose turn is next.
 *
 * A piece of work (a denoising step, a chunk of frames, a text) stands between begin and
 * end:
 *     if ((rc = sl_turn_begin(turn, SL_TURN_STEP, "step", i + 1, err))) return rc;
 *     t0 = sl_now_ns();
 *     ...launch, and wait until the device is done...
 *     sl_control_span(control, job, SL_SPAN_COMPUTE, t0);
 *     sl_turn_end(turn, i + 1 < steps);
 * Work that still runs after the end would run beside the next stage's. Waiting for a turn
 * is a span of its own kind ("turn").
 * Whether and on which devices turns are taken is the setting dispatch.turns. Where they
 * are not, and while no other stage asks for the device, begin and end cost a lock and no
 * message. Turns make things fast, nothing is wrong without one. stages/README.md tells who
 * is next, and why. */
#ifndef SL_TURN_H
#define SL_TURN_H

#include "common/conf.h"
#include "stages/seat/control.h"

typedef struct {
    sl_control *control;
    char device[SL_STR64];
    int timeout_s;
    bool on, made;
    pthread_mutex_t lock; /* of all below; sends are done under it, no other lock is */
    pthread_cond_t heard;
    uint64_t last;     /* number of the newest turn */
    uint64_t asked;    /* number of the turn that is waited for; 0: none */
    uint64_t held;     /* number of the turn that is held; 0: none */
    bool free;         /* held until REVOKE: pieces begin and end without a message */
    bool busy;         /* held, and a piece runs or follows at once */
    sl_turn_kind kind; /* of the piece that runs */
    int64_t begun_ns;
    uint64_t lasted_ms[2]; /* the newest piece of each kind */
} sl_turn;

/* *t zeroed before. control outlives the turn. */
void sl_turn_open(sl_turn *t, sl_control *control, const sl_conf *conf, const char *device);
void sl_turn_close(sl_turn *t); /* a zeroed one is fine */

/* Wait until the device is this stage's. Main thread, while a job runs (sl_seat_begin).
 * `what` and n name the piece in logs ("step", 3). A stage that is between two pieces gives
 * its turn back by this call, and may get it again at once. After a long time (4 x
 * dispatch.turn_timeout_s) the stage goes on without a turn, and says so.
 * Errors: SL_CANCELLED the job was cancelled during the wait. */
sl_code sl_turn_begin(sl_turn *t, sl_turn_kind kind, const char *what, int n, sl_err *err);
/* The piece is over. Does nothing where no turn is held.
 *   more true    the next piece of this job follows at once: the turn is kept until that
 *                piece's begin, where others may go first. If the piece has to wait for
 *                something else (a slot), sl_turn_end is called again with false.
 *   more false   the turn is given back; sl_seat_begin, and so the end of a job, does it too */
void sl_turn_end(sl_turn *t, bool more);

/* GRANT, REVOKE or CANCEL was heard, on the socket's thread. true: *reply is to be sent.
 * A stale message changes nothing. */
bool sl_turn_hear(sl_turn *t, const sl_msg *m, sl_msg *reply);

#endif
