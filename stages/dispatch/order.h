/* order.h - whose turn of a device is next: the policy alone, without processes. */
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

#endif
