/* events.h - who is waiting to hear of which job: the readers of event streams.
 *
 * A reader has marks of what is new, not a queue: a slow one misses steps and never grows. The
 * pipeline's thread tells; a reader that found nothing new is put to sleep by its owner and woken
 * by `wake`, which is called under the lock, never for a reader that is awake or gone. */
#ifndef SL_EVENTS_H
#define SL_EVENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "stages/serve/journal.h"

#define SL_EVENT_STATE 1u   /* the job's object has changed */
#define SL_EVENT_STEP 2u    /* a piece of work is finished */
#define SL_EVENT_PREVIEW 4u /* there may be a new picture */
#define SL_EVENT_ALIVE 8u   /* nothing, but time to show that the stream lives */
#define SL_EVENT_END 16u    /* the server closes */

typedef struct sl_events sl_events;
typedef struct sl_reader sl_reader;

sl_code sl_events_open(sl_events **out, sl_err *err);
void sl_events_close(sl_events **e); /* no reader is left */

/* A reader of this job's events, awake, with SL_EVENT_STATE set. wake(arg) wakes it. NULL: no
 * memory. */
sl_reader *sl_events_join(sl_events *e, const char *id, void (*wake)(void *arg), void *arg);
void sl_events_leave(sl_events *e, sl_reader *r);
/* What is new, and forget it. If nothing is, sleep(arg) is called under the lock, and 0 returned:
 * the reader will be woken. */
unsigned sl_events_take(sl_events *e, sl_reader *r, void (*sleep)(void *arg));

/* Something is new of the job; id NULL: for all readers. */
void sl_events_tell(sl_events *e, const char *id, unsigned what);
/* SL_EVENT_ALIVE to readers that heard nothing for so long. */
void sl_events_tick(sl_events *e, int64_t silent_ns);
int sl_events_count(sl_events *e);

#endif
