/* spool.h - files of a job's folder, written in the background: disks are off the hot path.
 *
 * Tensors are copied when they are given; one thread writes file after file and says
 * SPOOLED. Functions are the main thread's. A zeroed spool may be closed. */
#ifndef SL_SPOOL_H
#define SL_SPOOL_H

#include "common/origin.h"
#include "stages/seat/control.h"

typedef struct sl_spool_item sl_spool_item;

typedef struct {
    sl_control *control; /* where SPOOLED is said */
    sl_origin origin;    /* what files say of themselves: the main thread's */
    pthread_t thread;
    bool made, runs;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t wake, idle;
    sl_spool_item *head, **tail;
    int pending; /* files that are not on disk yet */
    bool quit;
} sl_spool;

/* Start the thread. Errors: SL_SYS. */
sl_code sl_spool_open(sl_spool *s, sl_control *control, sl_err *err);
void sl_spool_close(sl_spool *s); /* waits until all is written */

/* Write n tensors (host, copied now) to DIR/NAME.safetensors; then SPOOLED is said, if
 * `announce`. If memory or disk is short, SPOOLED says so (unannounced: the log does), and
 * the job goes on without that safety, unless its dump was asked for. */
void sl_spool_write(sl_spool *s, const sl_msg_job *job, const char *name, bool announce, int n,
                    const char *const names[], const sl_tensor tensors[]);
/* A file that the stage wrote itself is there: say SPOOLED. */
void sl_spool_written(sl_spool *s, const sl_msg_job *job, const char *name);
/* Wait until every file is on disk. SL_TIMEOUT: that is not so after two minutes. */
sl_code sl_spool_flush(sl_spool *s, sl_err *err);

#endif
