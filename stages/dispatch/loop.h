/* loop.h - the dispatcher as a whole: seats, turns, muster, jobs and clients on one bus. */
#ifndef SL_DISPATCH_LOOP_H
#define SL_DISPATCH_LOOP_H

#include "stages/dispatch/jobs.h"
#include "stages/dispatch/muster.h"
#include "stages/dispatch/seats.h"
#include "stages/dispatch/turns.h"

#define SL_CLIENTS 64 /* most clients at a time */

typedef struct {
    uint64_t number; /* from 1, never again another's; 0: none */
    sl_bus_peer peer;
    pid_t pid; /* as it said in HELLO; 0: it said none, and hears of its jobs alone */
} sl_client;

typedef struct {
    /* The caller sets these: */
    char run_dir[SL_PATH], conf_path[SL_PATH], bin_dir[SL_PATH], model_dir[SL_PATH];
    char wire_path[SL_PATH]; /* where all messages go; "": nowhere */
    pid_t parent;         /* who started this process; when it is dead, nobody wants the results */
    bool keep;            /* but their folders stay: somebody else will go on with them */
    const char *attached; /* role of the stage that has parent's terminal; NULL: none */
    char *const *wrapper; /* words before its program, NULL-terminated */

    sl_conf conf;
    sl_model model;
    char endpoint[SL_PATH];
    int endpoint_fd; /* common/endpoint.h: closed with the process */
    sl_bus *bus;
    sl_tap *tap;
    sl_seats seats;
    sl_turns turns;
    sl_muster muster;
    sl_once once;
    sl_jobs *jobs;
    sl_client clients[SL_CLIENTS];
    uint64_t last_client;
    bool draining;
    bool orphan; /* parent is dead, or dying */
    int64_t drain_by_ns;
    bool paused;        /* parent is stopped, and the stages with it */
    int64_t ticked_ns;  /* the last tick */
    int64_t watched_ns; /* the last look for silence */
} sl_dispatch;

/* Read settings and model, bind the socket. sl_dispatch_stop, also after an error. Errors:
 * SL_ARG, SL_SYS, ... */
sl_code sl_dispatch_open(sl_dispatch *d, sl_err *err);
/* One event after the other, until drained or orphaned. */
void sl_dispatch_loop(sl_dispatch *d);
/* End the stages and close the socket; jobs that are left are still counted in d->jobs. */
void sl_dispatch_stop(sl_dispatch *d);

#endif
