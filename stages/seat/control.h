/* control.h - a stage's control socket: what it says to the dispatcher and what it hears.
 *
 *   main thread                 the socket's thread              dispatcher
 *   sl_control_send ---inproc---> from_all -> dealer ----------------> ROUTER
 *   sl_control_next <--inproc---- to_main  <- dealer <---------------- ROUTER
 *   spool's thread  ---inproc---> from_all
 *
 * The socket's thread lets heartbeats out and hears a CANCEL while the main thread
 * computes. That thread asks `hear` about each message; the main thread gets what `hear`
 * does not deal with. There `note` is asked first, and the rest waits for sl_control_next.
 * Functions are the main thread's unless said otherwise. A zeroed control may be closed. */
#ifndef SL_CONTROL_H
#define SL_CONTROL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/path.h"
#include "common/pipeline.h"
#include "common/trace.h"
#include "common/wire.h"

#define SL_CONTROL_EARLY 64     /* remembered wishes about attempts that have not begun */
#define SL_CONTROL_PULSE_MS 200 /* longest time between two pulses */
#define SL_CONTROL_INBOX 256    /* messages set aside while the main thread looks for another */

/* A message came, on the socket's thread. true: dealt with; then *reply is sent, if
 * reply->type is set. */
typedef bool sl_hear_fn(void *self, const sl_msg *m, sl_msg *reply);
/* A message came to the main thread; true: dealt with. */
typedef bool sl_note_fn(void *self, const sl_msg *m);

/* Called on the socket's thread every SL_CONTROL_PULSE_MS: the process lives. */
typedef void sl_pulse_fn(void *of);

/* One attempt at a job. */
typedef struct {
    uint64_t job;
    uint32_t attempt;
} sl_attempt;

/* What the dispatcher wishes of the attempt that runs, by a message that may come before the
 * attempt has begun. */
typedef enum { SL_WISH_CANCEL, SL_WISH_PARK, SL_WISHES } sl_wish;

typedef struct {
    char role[SL_STR16], endpoint[SL_PATH];
    int beat_ms;
    sl_hear_fn *hear;
    sl_note_fn *note;
    void *self; /* of hear and note */

    bool quiet; /* spans of the job are not said: another instance says them for the team */
    void *zmq, *in, *out; /* the main thread's ends of the inproc pairs */
    pthread_t thread;
    bool made, runs;
    atomic_bool quit; /* the socket's thread is to end */
    atomic_bool draining;

    pthread_mutex_t lock; /* of all until wished */
    sl_attempt current, early[SL_WISHES][SL_CONTROL_EARLY];
    int early_count[SL_WISHES];
    sl_pulse_fn *pulse; /* NULL: nobody is to be told */
    void *pulse_of;
    volatile int wished[SL_WISHES]; /* written under the lock, read without: atomically */

    sl_msg inbox[SL_CONTROL_INBOX]; /* the main thread's */
    int inbox_count;
} sl_control;

/* SIGTERM is a DRAIN from now on. */
void sl_control_catch_term(void);
bool sl_control_term_seen(void);

/* Connect to the dispatcher and start the socket's thread, which beats every beat_ms.
 * Errors: SL_SYS. */
sl_code sl_control_open(sl_control *c, sl_role role, const char *endpoint, int beat_ms,
                        sl_hear_fn *hear, sl_note_fn *note, void *self, sl_err *err);
/* Send what was said, end the thread. Other threads' ends are closed before. */
void sl_control_close(sl_control *c);
/* A PUSH end for another thread of this process to send with (sl_wire_send). The caller's
 * to zmq_close. */
void *sl_control_open_end(sl_control *c);

/* ---- saying ---- */

/* Queue a message; never blocks, never fails. */
void sl_control_send(sl_control *c, const sl_msg *msg);
/* Say SPAN: what this stage did for the job (0: for none) from t0 until now. */
void sl_control_span(sl_control *c, uint64_t job, sl_span_kind kind, int64_t t0_ns);
void sl_control_progress(sl_control *c, const sl_msg_job *job, int done, int total, double seconds);

/* ---- hearing ---- */

/* Take all that has come: `note` is asked, the rest set aside for sl_control_next. */
void sl_control_look(sl_control *c);
/* Wait for the next JOB, CHUNK or CANCEL. `busy`: a job is under way across messages
 * (mux), so a drain waits. SL_GONE: drained, end main. */
sl_code sl_control_next(sl_control *c, bool busy, sl_msg *out, sl_err *err);

/* Name the attempt that runs (0: none) so that CANCEL and heartbeats find it. true: it has
 * been cancelled already. Stages call sl_seat_begin, which also ends the turn. */
bool sl_control_begin(sl_control *c, uint64_t job, uint32_t attempt);
/* This attempt runs: it was begun, and no other nor none since. */
bool sl_control_is_at(sl_control *c, uint64_t job, uint32_t attempt);
/* The attempt that runs has been cancelled. Any thread. */
bool sl_control_cancelled(const sl_control *c);
/* The attempt that runs is to end at the next step (PARK). Any thread. */
bool sl_control_parked(const sl_control *c);
/* Wait until something has come, for so long at most. SL_GONE: this stage is drained. */
sl_code sl_control_wait(sl_control *c, int ms, sl_err *err);
/* From now on `pulse` is called; NULL: no more, and not while this returns. */
void sl_control_pulse(sl_control *c, sl_pulse_fn *pulse, void *of);

#endif
