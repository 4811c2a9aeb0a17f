/* pinned.h - host memory that a device reads and writes, kept from job to job.
 *
 * To pin memory and to let it go costs more than to fill it, and both stand between two jobs. So
 * what is freed is kept, and given to who wants as many bytes. Jobs of another size want other
 * blocks: what nobody uses goes as soon as a size is wanted that is not there. So never more is
 * held than one job took. Main thread. */
#ifndef SL_PINNED_H
#define SL_PINNED_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/plugin.h"

#define SL_PINNED_BLOCKS 16 /* a job's; those beyond are not kept */

/* Zeroed: nothing is held. */
typedef struct {
    struct {
        void *at; /* NULL: an empty place */
        size_t bytes;
        bool used;
    } block[SL_PINNED_BLOCKS];
} sl_pinned;

/* At least `bytes` of host memory, not filled, pinned for the plug-in's devices; NULL: none is
 * left. Freed by sl_pinned_free alone. */
void *sl_pinned_alloc(sl_pinned *m, const sl_plugin *plugin, size_t bytes);
void sl_pinned_free(sl_pinned *m, const sl_plugin *plugin, void *p); /* NULL is fine */
/* Let go of what is kept; what is used stays its owner's. */
void sl_pinned_close(sl_pinned *m, const sl_plugin *plugin);

#endif
