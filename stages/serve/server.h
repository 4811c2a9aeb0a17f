/* server.h - what the parts of a server share, and who may touch what.
 *
 *   main thread     pipeline.h: the dispatcher, the jobs that run
 *   HTTP's threads  http.h, routes: they read and write the journal, and wake the main thread
 *   janitor         ages, quota, connections that are too slow
 *   mover           mover.h: files of jobs between here and the shared folder or store
 *   relays          relay.h: one for each file of the store that a client gets
 *   the journal's   of a queue that servers share: its beats, and what others have changed
 *   logger          logger.h: what all processes say, to files
 *
 * The journal, the live jobs, metrics and events have their own locks, which are never held
 * together. `settings` is read under its lock, and changed by SIGHUP. All else is set before the
 * threads begin. */
#ifndef SL_SERVER_H
#define SL_SERVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/conf.h"
#include "common/model.h"
#include "common/tokenizer.h"
#include "stages/job/request.h"
#include "stages/serve/blobs.h"
#include "stages/serve/events.h"
#include "stages/serve/journal.h"
#include "stages/serve/live.h"
#include "stages/serve/metrics.h"
#include "stages/serve/store.h"
#include "stages/serve/tokens.h"

/* ROLE, its name: what a server of a shared queue does. */
#define SL_SERVER_ROLES(X)                                                                         \
    X(BOTH, "both")     /* takes requests, and makes videos */                                     \
    X(FRONT, "front")   /* takes requests: no GPU, no weights */                                   \
    X(WORKER, "worker") /* makes videos; over HTTP it tells of itself alone */

typedef enum {
#define X(NAME, name) SL_SERVER_##NAME,
    SL_SERVER_ROLES(X)
#undef X
        SL_SERVER_ROLE_COUNT
} sl_server_role;

typedef struct {
    char queue[600], blobs[SL_PATH]; /* "": the queue is this machine's alone */
    sl_server_role role;
} sl_server_shares;

typedef struct sl_relays sl_relays; /* relay.h */

/* A file of a job. */
typedef struct {
    char id[SL_JOURNAL_ID], name[SL_JOURNAL_FILE];
    char path[SL_PATH];            /* here, or in the shared folder; "": it is in the store, as: */
    char version[SL_JOURNAL_FILE]; /* sl_blobs_read */
    uint64_t bytes;
} sl_server_place;

typedef struct {
    char id[SL_JOURNAL_ID];
    bool lost; /* it is another server's by now; else a cancel was asked for */
} sl_server_heard;

typedef struct {
    char name[128]; /* of the model: its folder's last part */
    sl_model model; /* and the checkpoint's own defaults: */
    sl_request defaults;
    sl_tokenizer *tokenizer; /* NULL: prompts are not counted */
    sl_store store;
    sl_blobs blobs;    /* of a queue that servers share; dir "": the files are in `store` */
    sl_relays *relays; /* files of the store to clients; NULL: all files are this machine's */
    sl_server_role role;
    char id[SL_JOURNAL_SERVER]; /* of a shared queue: who this server is there */
    sl_journal *journal;
    sl_live *live;
    sl_events *events;
    sl_metrics *metrics;
    int lanes; /* jobs that may denoise at a time */
    char listen_host[256];

    pthread_rwlock_t settings; /* of these: */
    sl_conf conf;
    sl_tokens tokens; /* none: whoever reaches the server may use it */

    uint64_t lora_ids[SL_CONF_LORAS][2]; /* of conf's LoRA: contents, for each expert */
    uint64_t lora_keys[SL_CONF_LORAS];   /* contents and strengths (offer.h) */
    char lora_loaded[1100];              /* names of the LoRA of the newest job; "": none */

    atomic_bool ready;    /* the pipeline takes jobs */
    atomic_bool began;    /* it has done so: jobs are accepted, whatever dies meanwhile */
    atomic_bool draining; /* no new jobs */
    atomic_bool closing;  /* streams end */
    int wake;             /* eventfd: the journal has changed */

    pthread_mutex_t heard_lock; /* of: what was heard of jobs that may run here */
    sl_server_heard *heard;
    int heard_count;

    pthread_mutex_t left_lock; /* of: jobs whose files are to go, and could not yet */
    char (*left)[SL_JOURNAL_ID];
    int left_count;
} sl_server;

/* *s zeroed before; then, of whoever puts a server together, in this order: model, defaults, conf,
 * tokens; sl_server_open: live jobs, events, metrics, wake; sl_server_open_state: the folder
 * (sl_store_open), and the journal in it or the shared queue. sl_server_close after all threads,
 * also after an error. Errors: SL_NOMEM, SL_SYS, and those of the two. */
void sl_server_init(sl_server *s);
sl_code sl_server_open(sl_server *s, sl_err *err);
sl_code sl_server_open_state(sl_server *s, const char *dir, const sl_server_shares *shares,
                             int wait_ms, sl_err *err);
void sl_server_close(sl_server *s);

/* Where file NAME of a job is. Errors: SL_GONE it has none, as far as the journal says; SL_ARG too
 * long. */
sl_code sl_server_file(const sl_server *s, const sl_journal_job *job, const char *name,
                       sl_server_place *out, sl_err *err);
/* Bytes that are free for another job, on the disk that has least of them. */
uint64_t sl_server_free(const sl_server *s);
/* A job that is forgotten: its files go, wherever they are. Those in a shared place that is away go
 * when sl_server_remove_left meets it again. */
void sl_server_remove_files(sl_server *s, const char *id);
void sl_server_remove_left(sl_server *s);
static inline bool sl_server_shares_queue(const sl_server *s)
{
    return *s->blobs.dir;
}

/* The pipeline is to look at the journal. */
void sl_server_wake(const sl_server *s);

#endif
