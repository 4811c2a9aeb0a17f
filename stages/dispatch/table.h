/* table.h - jobs and seats as jobs.c (what is said) and schedule.c (what next) see them, and
 * how either is told something.
 *
 * A crew is named by its first role (schedule.h). What a job needs next is never stored: it
 * follows from where its deliveries are and which attempts run. For these two files alone:
 * everybody else has jobs.h. */
#ifndef SL_DISPATCH_TABLE_H
#define SL_DISPATCH_TABLE_H

#include <sys/types.h>

#include "common/conf.h"
#include "common/model.h"
#include "common/wire.h"
#include "stages/dispatch/once.h"
#include "stages/dispatch/order.h"
#include "stages/dispatch/team.h"

#define NO_JOB 0
#define NO_SEAT (-1)

typedef struct {
    const sl_conf_stage *stage; /* NULL: no such seat */
    const char *name;
    pid_t pid;
    bool ready;
    bool teamed; /* its role has teams here */
    bool rank;   /* of a role with teams: the others can reach it */
    bool loads;  /* its weights, together with other ranks: it is ready in a moment */
    struct {
        uint64_t id; /* 0: not announced */
        int slots;
    } pools[SL_HANDOVERS_MOST];
    int64_t ready_ns; /* since when it is ready */
    char fault[128];  /* what its process was killed for; "": for nothing */
    uint64_t job;     /* what the seat works on; NO_JOB: idle */
    uint64_t key;     /* of the weights it works with, where its role adapts; 0: the checkpoint's */
    sl_msg_type last; /* its last word about that; 0: none */
    uint32_t attempt; /* 0 beside a job: it is through, and others of its team are not */
} seat;

/* A hand-over of a job: where it is. */
typedef struct {
    bool has; /* the job has it, as a whole */
    bool spooled, spooling;
    int64_t spooling_ns; /* since when SPOOLED is waited for */
    bool lost;           /* its file could not be written: a dump does without it */
    uint32_t answered;   /* the newest attempt whose SPOOLED has come, before its DONE or after */
    int maker;           /* the seat that makes the hand-over, or made it last */
    int seat;            /* in whose pool the hand-over lies; NO_SEAT: in none */
    sl_ticket ticket;    /* of its slot there */
} delivery;

/* Chunks that an attempt hands on. */
typedef struct {
    uint32_t chunks, next; /* how many there are, as the sender says; the one that is to come */
    bool owed;             /* the receiver has said nothing since the last one */
    bool answers;          /* the receiver has said something in this attempt */
} chunk_flow;

/* What a crew does for a job, from JOB to the last DONE or FAILED. */
typedef struct {
    uint32_t number;                     /* 0: none runs */
    int seat[SL_ROLES_MOST];             /* of the crew; NO_SEAT: none, or through with the work */
    int makes_for[SL_HANDOVERS_MOST];    /* the seat whose pool gets it; NO_SEAT: a file does */
    bool from_slot[SL_HANDOVERS_MOST];   /* the crew was given this ticket */
    bool taken;                          /* inputs are read: their slots are free */
    bool fallen;                         /* one of the crew fell out, the others are told to stop */
    bool faulty;                         /* one of them broke the protocol, or fell silent */
    chunk_flow flows[SL_HANDOVERS_MOST]; /* of those that are chunks */
    int64_t heard_ns;   /* the last word about the attempt; at first, when JOB went out */
    int64_t piece_ns;   /* the longest time between two words */
    int64_t stopped_ns; /* when CANCEL went out; 0: it did not */
    bool told;          /* its silence is in the log */
    /* of a role that has teams: */
    int size;            /* of the team at the beginning; 0: no team */
    int mates[SL_RANKS]; /* the team without its leader, who is in `seat`; NO_SEAT: none, or through
                            with the work */
    uint32_t done, total; /* steps that the leader has finished, of how many; 0: not known */
    bool parking;         /* they are told to stop at a step */
    bool ending;          /* one is through, fell or was told to stop: the others are waited for */
    bool well;            /* the leader is through, and did not fail */
} attempt;

typedef struct {
    uint64_t id, tag, client;
    char dir[SL_DIR], output[SL_PATH];
    uint64_t key;  /* of the LoRA that the job wants; 0: none */
    int overtaken; /* younger jobs that began before it for the sake of their weights */
    bool dump, guided;
    bool alone; /* intermediates are dumped, which one rank must have whole */
    int want;   /* how many seats of the role that has teams are to work on it; 0: it waits */
    delivery deliveries[SL_HANDOVERS_MOST];
    attempt attempts[SL_ROLES_MOST]; /* of each crew, by its first role */
    uint32_t attempt_count;          /* numbers of attempts given so far */
    bool made[SL_ROLES_MOST];        /* of crews that hand nothing on: the work is done */
    bool started; /* a hand-over was taken, or it was the oldest: a drain waits for it */
    bool draining;
    int64_t runnable_ns[SL_ROLES_MOST]; /* since when the job waits for that crew; 0: not at all */
    int deaths;                         /* attempts that fell, since the job last got further */
    int faults;                         /* of them, those in which a stage of .. */
    sl_role faulty;                     /* .. this role was at fault */
    uint32_t furthest[SL_ROLES_MOST];   /* most finished steps of that role in an attempt */
    bool ending; /* failed or cancelled: the job ends when nothing runs any more */
    sl_code code;
    char message[SL_TEXT];
    uint64_t bytes;         /* of the output */
    char undumped[SL_TEXT]; /* the first file that a dump does without, and why; "": none */
} job;

struct sl_jobs {
    const sl_conf *conf;
    const sl_model *model;
    void *self; /* the owner's, for these: jobs.h */
    void (*to_seat)(void *self, int seat, const sl_msg *m);
    void (*to_client)(void *self, uint64_t client, const sl_msg *m);
    void (*got_further)(void *self, int seat);
    uint32_t (*new_key)(void *self);
    int64_t (*worked_ns)(void *self, int seat);
    void (*kill)(void *self, int seat, const char *why, bool for_good);
    sl_once *once;
    seat seats[SL_CONF_SEATS];
    uint64_t last_id;
    bool draining;
    int count;
    job *jobs;                /* oldest first */
    sl_order_job *order_jobs; /* room for all of them, where order.h is asked */
    sl_team_job *team_jobs;   /* room for all of them, where team.h is asked */
    int *team_jobs_of;        /* their indices in jobs */
};

typedef struct sl_jobs sl_jobs;

void sl_table_to_seat(sl_jobs *d, int number, const sl_msg *m); /* NO_SEAT: to nobody */
void sl_table_to_client(sl_jobs *d, const job *j, const sl_msg *m);
/* The delivery lies in no pool any more: its slot is freed. */
void sl_table_discard(sl_jobs *d, delivery *v);
/* The slot of a ticket that no job has is freed. */
void sl_table_discard_ticket(sl_jobs *d, uint32_t h, const sl_ticket *t);

job *sl_table_job(sl_jobs *d, uint64_t id); /* NULL: none */
/* What logs call the job. */
const char *sl_table_name(const job *j);
/* The seat leads, or is a mate, and is not through. */
bool sl_table_is_in(const attempt *a, const seat *s, int number);
/* CANCEL to the attempt's seats that are not through. They answer FAILED(CANCELLED). */
void sl_table_stop(sl_jobs *d, const job *j, attempt *a);
/* The job ends with this, when nothing runs of it any more; of several ends the first counts. */
void sl_table_end(sl_jobs *d, job *j, sl_code code, const char *why);
/* The seat that has this pool for h now; NO_SEAT: one that was restarted since, or none. */
int sl_table_owner(const sl_jobs *d, int h, uint64_t pool);

/* ---- stages that hold an attempt up: what they say wrongly, what they do not say ---- */

/* In watch.c. Words are what a seat says of the attempt that it works on; heartbeats are none. A
 * fault ends the seat's process, and with it the attempt; so many of them without the job getting
 * further end the job, with the fault as its message. */
#define SL_WATCH_FAULTS 2

/* A message of a seat about a job. false: it is of an attempt that the seat does not work on, and
 * is to be put aside: that is in the log, and an end of another attempt is a fault. */
bool sl_watch_hears(sl_jobs *d, int number, const sl_msg *m);
/* The attempt's next CHUNK, and DONE of who hands chunks on. false: a fault. */
bool sl_watch_chunk(sl_jobs *d, job *j, attempt *a, int number, const sl_msg_chunk *m);
bool sl_watch_chunks_done(sl_jobs *d, job *j, attempt *a, int number);

#endif
