/* dispatch.h - the dispatcher: one struct with the stages it supervises and the jobs it
 * drives. The only place that knows the order of stages. */
#ifndef SL_DISPATCH_H
#define SL_DISPATCH_H

#include <sys/types.h>

#include "common/conf.h"
#include "common/job.h"
#include "common/trace.h"
#include "common/wire.h"

#define MAX_JOBS 1024
#define IDENTITY 64
#define NO_JOB 0

/* ---- a stage process, or the place where one will be ---- */

/* Its turns of its device. */
typedef struct {
    bool asks;            /* it has asked for a turn since it was started */
    uint64_t newest;      /* number of the newest that it asked for */
    uint64_t asked, held; /* the one that it waits for, the one that it has; 0: none */
    bool free;            /* it has it until another stage asks */
    bool late;            /* that it has it for too long was said */
    int64_t since_ns;     /* since when it waits, or keeps others waiting */
    sl_msg_ask ask;       /* the newest */
} turn_state;

typedef enum { PEER_DOWN, PEER_STARTING, PEER_LOADING, PEER_READY, PEER_BROKEN } peer_state;

typedef struct {
    sl_role role;
    const sl_conf_stage *conf;
    peer_state state;
    pid_t pid;
    int pidfd; /* -1 when down */
    char identity[IDENTITY];
    size_t identity_size; /* 0 before HELLO */
    int64_t last_beat_ns, restart_at_ns, started_ns;
    int failures; /* deaths in a row without progress */
    uint64_t job; /* what it works on; NO_JOB: idle */
    uint32_t attempt;
    char last_error[SL_TEXT]; /* what it said before it ended */
    sl_code last_code;
    sl_msg_span start, load; /* when it started and loaded; t1 0: not yet */
    sl_msg_ready ready;
    int pool_count;
    sl_msg_pool pools[2]; /* where it receives */
    turn_state turn;
} peer;

/* ---- a job ---- */

typedef enum { HAND_TEXT, HAND_IMAGE, HAND_LATENTS, HAND_COUNT } hand_kind;

/* One finished piece of a job: in a slot of its receiver, in the spool, on its way there,
 * or not at all. */
typedef struct {
    bool ticketed, spooled, spooling;
    /* the newest attempt whose SPOOLED has come, before its DONE or after it */
    uint32_t answered;
    bool credit; /* holds one of the receiver's slots, or will */
    sl_ticket ticket;
} hand;

typedef struct {
    uint64_t id;
    char dir[SL_DIR];
    char client[IDENTITY];
    size_t client_size;
    bool takes_image, dump;
    char output[SL_PATH];
    hand hands[HAND_COUNT];
    uint32_t attempt;                /* counts every start of a stage for this job */
    uint32_t running[SL_ROLE_COUNT]; /* the attempt that runs there; 0: none */
    /* the attempt that decode and mux make together; 0: none, or one of them left it */
    uint32_t pair;
    bool decode_done, mux_done;
    /* denoising has begun, or it is the oldest: a drain waits for it */
    bool started;
    int64_t runnable_ns[SL_ROLE_COUNT]; /* since when it waits for that stage; 0: it does not */
    int deaths;                         /* of stages at work on it, since it last got further */
    uint64_t progress, best;            /* how far it is, as one number that grows */
    /* failed or cancelled: ends when nothing runs any more */
    bool ending;
    sl_code code;
    char message[SL_TEXT];
    uint64_t bytes; /* of the output */
} job;

typedef struct {
    sl_conf conf;
    sl_model model;
    char run_dir[SL_PATH], conf_path[SL_PATH], bin_dir[SL_PATH], endpoint[SL_PATH];
    void *zmq, *router;
    int signals;  /* signalfd: SIGTERM */
    pid_t parent; /* the client */
    bool orphan;  /* it is dead, or dying */
    int peer_count;
    peer peers[SL_ROLE_COUNT];
    int job_count;
    job *jobs;             /* oldest first */
    char client[IDENTITY]; /* the newest client, for news that belong to no job */
    size_t client_size;
    bool draining;
    int64_t drain_by_ns, turns_looked_ns;
} dispatcher;

/* ---- main.c ---- */

void dispatch_receive(dispatcher *d); /* everything that has come so far */

/* ---- peers.c: start, watch, restart ---- */

void peers_init(dispatcher *d);
peer *peer_of(dispatcher *d, sl_role role); /* NULL: this deployment leaves it out */
peer *peer_by_identity(dispatcher *d, const char *id, size_t size);
void peers_tick(dispatcher *d);          /* start what is due, kill what stalls */
void peer_check(dispatcher *d, peer *p); /* its pidfd is readable: it has ended */
/* it sent what is no message: another version, or no stage at all */
void peer_distrust(peer *p, const sl_err *why);
void peer_hello(dispatcher *d, peer *p, const sl_msg_hello *m, const char *id, size_t size);
void peer_ready(dispatcher *d, peer *p, const sl_msg_ready *m);
/* a client is new: what it has missed of starting and loading */
void peers_tell_all(dispatcher *d);
void peer_pool(dispatcher *d, peer *p, const sl_msg_pool *m);
sl_code peer_send(dispatcher *d, const peer *p,
                  /* to a peer that has said HELLO; SL_GONE: others, and lost ones */
                  const sl_msg *m);
void peers_stop(dispatcher *d); /* DRAIN, wait, SIGKILL what remains, reap all */

/* ---- turns.c: stages on one device compute one at a time ---- */

void turns_on_ask(dispatcher *d, peer *p, const sl_msg_ask *m);
void turns_on_give(dispatcher *d, peer *p, const sl_msg_give *m);
/* it has ended: what it held or waited for is another's */
void turns_forget(dispatcher *d, peer *p);
/* holders that keep others waiting: for too long? still there? */
void turns_tick(dispatcher *d);

/* ---- jobs.c: the state machine ---- */

job *job_find(dispatcher *d, uint64_t id);
void job_submit(dispatcher *d, const sl_msg_submit *m, const char *client, size_t client_size);
void job_cancel(dispatcher *d, uint64_t id, sl_code code, const char *why);
void jobs_fail_all(dispatcher *d, sl_code code, const char *why);
void jobs_on_taken(dispatcher *d, peer *p, const sl_msg_taken *m);
void jobs_on_progress(dispatcher *d, peer *p, const sl_msg_progress *m);
void jobs_on_chunk(dispatcher *d, peer *p, const sl_msg_chunk *m);
void jobs_on_spooled(dispatcher *d, peer *p, const sl_msg_spooled *m);
void jobs_on_done(dispatcher *d, peer *p, const sl_msg_done *m);
void jobs_on_failed(dispatcher *d, peer *p, const sl_msg_failed *m);
void jobs_on_death(dispatcher *d, peer *p, pid_t pid, const char *how);
/* give idle stages what is ready; finish what is over */
void jobs_schedule(dispatcher *d);
void job_tell(dispatcher *d, const job *j, const sl_msg *m); /* to the job's client */
void tell_client(dispatcher *d, const sl_msg *m);            /* news of no job */

#endif
