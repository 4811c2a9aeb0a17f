/* order.h - whose turn of a device is next, and which job gets a stage whose weights change with
 * the job: the policies alone, without processes. */
#ifndef SL_ORDER_H
#define SL_ORDER_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    bool step;        /* a denoising step; otherwise a piece of text, image or decode */
    int64_t since_ns; /* when the stage asked */
} sl_order_wait;

/* Index of the next among n >= 1 that wait; no two asked at one time. stages/README.md
 * tells the reasons.
 *   1. a step that has waited for more than patience_ns
 *   2. pieces, whoever asked first
 *   3. steps, whoever asked first
 * A stage asks anew for each piece, so a stage that has just had its turn stands behind the
 * others of its kind: they take turns. */
int sl_order_next(const sl_order_wait *waits, int n, int64_t now_ns, int64_t patience_ns);

/* A job that waits for a stage whose weights are merged with LoRA. */
typedef struct {
    bool ready;    /* it could begin there now */
    uint64_t key;  /* of the weights that the job wants; 0: the checkpoint's */
    int overtaken; /* how many younger jobs have begun before it since it was ready */
} sl_order_job;
#define SL_ORDER_OVERTAKEN 4 /* younger jobs that a job lets go first, at most */

/* Index of the one of n jobs, oldest first, that gets a stage whose weights now have `key`; -1:
 * none is ready.
 *   1. the oldest that is ready, if it has been overtaken SL_ORDER_OVERTAKEN times
 *   2. the oldest that is ready and wants these weights
 *   3. the oldest that is ready
 * A switch takes seconds and a job minutes, so jobs of one set in a row save a little; nobody waits
 * for more than SL_ORDER_OVERTAKEN of them. */
int sl_order_take(const sl_order_job *jobs, int n, uint64_t key);

#endif
