/* seats.h - places for processes: start, watch by pidfd and heartbeat, restart with back-off,
 * give up with a clear message.
 *
 * A seat is one entry of the configuration: a role, an instance of it, a device. The seats
 * know processes and no jobs. Pools that one announces are told to the others.
 * The process that was started may be a wrapper (gdb --args, perf record, a script): the SPEAKER,
 * which says HELLO, is that process or comes from it. Slots are the speaker's, the end is the
 * wrapper's, and both are killed. */
#ifndef SL_SEATS_H
#define SL_SEATS_H

#include "common/trace.h"
#include "stages/dispatch/bus.h"
#include "stages/dispatch/once.h"
#include "stages/dispatch/voice.h"

#define SL_SEATS_SILENT_MS 1500
#define SL_SEATS_MUTE 2        /* starts in a row without HELLO, or READY, before giving up */
#define SL_SEATS_GENERATIONS 5 /* from the process that was started to its speaker, at most */

typedef enum {
    SL_SEAT_DOWN,
    SL_SEAT_STARTING, /* there is a process, which has not said HELLO */
    SL_SEAT_LOADING,
    SL_SEAT_READY,
    SL_SEAT_BROKEN /* given up */
} sl_seat_state;

typedef struct {
    const sl_conf_stage *conf;
    char name[SL_CONF_NAME];
    sl_seat_state state;
    pid_t pid;               /* 0: none */
    sl_voice *voice;         /* reads what it prints; NULL: it prints to ours */
    int pidfd;               /* -1: none */
    pid_t speaker;           /* who said HELLO: pid, or what comes from it; 0: nobody yet */
    int speaker_fd;          /* its pidfd, where it is another than pid; -1: none */
    uint64_t oom_kills;      /* the kernel's, before the process began */
    int64_t speaker_gone_ns; /* since when that has ended; 0: it has not */
    int64_t last_beat_ns, restart_at_ns, started_ns;
    /* what the kernel says of the process, looked at every second: common/process.h */
    uint64_t system_ticks, user_ticks, faults, io_bytes;
    uint64_t offspring_ticks; /* CPU time of what comes from the process, likewise */
    int64_t asked_ns;         /* when those were last looked at */
    int64_t worked_ns;        /* when it was last seen to compute, or to read or write files */
    int64_t heard_ns;         /* its last message but for heartbeats */
    int spins;                /* looks in a row at which it did nothing but enter the kernel */
    bool hopeless;            /* it was killed for what another would do too */
    int mute;                 /* processes in a row killed before HELLO, or READY */
    int failures;             /* deaths in a row without getting further */
    char last_error[SL_TEXT]; /* what the process said before it ended */
    sl_code last_code;        /* the code of last_error; SL_OK: nothing was said */
    sl_msg_span start, load;  /* when the process started and loaded; t1 0: not yet */
    sl_msg_ready ready;
    int pool_count;
    sl_msg_pool pools[SL_HANDOVERS_MOST]; /* where the seat receives */
} sl_seats_seat;

typedef struct {
    sl_bus *bus;
    const sl_conf *conf;
    const char *conf_path, *model_dir, *bin_dir, *endpoint;
    sl_once *once;
    int attached; /* the seat whose process has the terminal, behind the words of `wrapper`
                           * (NULL-terminated); it may take its time, and is not started again.
                           * -1: none */
    char *const *wrapper;
    pid_t terminal; /* the process whose group it joins, to read the terminal */
    /* News of processes, for every client. */
    void (*tell)(void *self, const sl_msg *m);
    void *self;
    int count;
    sl_seats_seat at[SL_CONF_SEATS];
    int64_t looked_ns; /* at what the kernel says */
} sl_seats;

/* A seat for each stage of s->conf whose hand-overs some job of the model can have. The
 * caller sets all else in *s but count, at and attached; what those point to outlives *s. */
void sl_seats_open(sl_seats *s, const sl_model *model);
/* The first seat of the role has the terminal. false: there is none of it. */
bool sl_seats_attach(sl_seats *s, sl_role role, char *const wrapper[], pid_t terminal);
/* DRAIN to all, wait, SIGKILL what remains, reap all. One that has the terminal is waited for as
 * long as this process's parent lives. */
void sl_seats_close(sl_seats *s);

/* Start what is due (unless `ending`), kill what stalls. Returns a seat that is given up
 * now, for its program cannot be run; -1: none. */
int sl_seats_tick(sl_seats *s, bool ending);
/* Look at what the kernel says of the processes, once a second (look.c). One that computes nothing
 * and never sleeps is killed, and its seat given up: a library that asks for memory again and
 * again beats like any other stage, but spends SL_SEATS_SPINS seconds in the kernel, and touches
 * no new page and no file meanwhile. One that a debugger has stopped is let be. */
void sl_seats_look(sl_seats *s);
#define SL_SEATS_SPINS 8
/* When the seat's process, or what comes from it, was last seen to compute, or to use files. */
int64_t sl_seats_worked_ns(sl_seats *s, int seat);
/* SIGSTOP, or SIGCONT, to all processes. */
void sl_seats_pause(const sl_seats *s, bool pause);
/* Nothing ran for so long, or nothing that is to be counted: no process was silent meanwhile. */
void sl_seats_skip(sl_seats *s, int64_t ns);
/* Others wait for the seat's process: kill it, if it has given no sign of life for three of its
 * heartbeats or SL_SEATS_SILENT_MS, whichever is longer. One that is stopped gives none. */
void sl_seats_kill_silent(sl_seats *s, int seat, const char *why);
/* SIGKILL to the seat's process and what comes from it. for_good: another would be no better, and
 * the seat is given up for this reason. */
void sl_seats_kill(sl_seats *s, int seat, const char *why);
void sl_seats_kill_for_good(sl_seats *s, int seat, sl_code code, const char *why);

/* The seat that HELLO speaks for: only a process that was started here, or comes from it, may, and
 * only as the stage it was started for. -1: none, and that is in the log. */
int sl_seats_on_hello(sl_seats *s, const sl_msg_hello *m, const sl_bus_peer *from);
/* A seat whose speaker has ended beneath the process that was started, and whose last words have
 * been heard; -1: none. Another may speak for the seat once that is forgotten. `next`: a process
 * that says HELLO, and is not kept waiting; 0: none. */
int sl_seats_lost_speaker(sl_seats *s, pid_t next);
void sl_seats_forget_speaker(sl_seats *s, int seat);
/* HELLO of another version of the protocol, which `what` tells: if a seat's process said it, that
 * is killed and the seat given up. */
void sl_seats_on_foreign_hello(sl_seats *s, const sl_msg_hello *m, const sl_err *what);
/* The seat's process lives. word: it said more than that. */
void sl_seats_on_beat(sl_seats *s, int seat, bool word);
/* The seat receives in this pool; the others are told. false: one too many, ignored. */
bool sl_seats_on_pool(sl_seats *s, int seat, const sl_msg_pool *m);
void sl_seats_on_ready(sl_seats *s, int seat, const sl_msg_ready *m);
void sl_seats_on_span(sl_seats *s, int seat, const sl_msg_span *m); /* of no job */
/* FAILED of no job: why the seat's process cannot go on, kept until the process ends. */
void sl_seats_on_failed(sl_seats *s, int seat, const sl_msg_failed *m);
/* The seat's process sent what is no message: it is of another version, or no stage at all,
 * and is killed. */
void sl_seats_on_nonsense(sl_seats *s, int seat, const sl_err *what);

/* How a seat's process ended. */
typedef struct {
    pid_t pid;    /* of the speaker, where there was one */
    char how[96]; /* "signal 9 (Killed)" */
    bool broken;  /* given up: at[seat].last_error and last_code say why */
} sl_seats_end;
/* The seat's process has ended: collect it, say how, and wait before the next start or give
 * up. */
void sl_seats_on_ended(sl_seats *s, int seat, bool draining, sl_seats_end *out);

/* A job got further by this seat, whose deaths are counted anew from here. */
void sl_seats_thrive(sl_seats *s, int seat);
/* The reason why no seat of some role works any more; NULL: every role has one that may. */
const sl_seats_seat *sl_seats_broken(const sl_seats *s);
/* Tell a new client what it has missed of starting and loading. */
void sl_seats_tell_all(const sl_seats *s, void (*tell)(void *self, const sl_msg *m), void *self);

/* Start the process of a seat (start.c): its program, --connect ENDPOINT --conf FILE --model DIR
 * --device D and the configuration's arguments, with its number and threads in the environment; it
 * dies with this process. The seat that is attached has the wrapper's words before it, and the
 * terminal; of other programs than Sluice's own a voice says what they print. The seat's pid is
 * set, the caller's to collect, 0 after an error. Errors: SL_ARG the program is not there, with the
 * seat's name; SL_SYS fork. */
sl_code sl_start_process(sl_seats *s, int seat, sl_err *err);

#endif
