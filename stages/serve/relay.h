/* relay.h - a file of the store on its way to a client, through this server's memory.
 *
 *   the store --> a thread: sl_blobs_read --> a ring of 256 KiB --> MHD's thread --> the client
 *
 * Nobody waits for the other but at the ring: where it is full the thread sleeps, where it is empty
 * the connection does (MHD suspends it). A connection to the store that breaks is made again by
 * sl_blobs_read; what cannot be had any more breaks the client's, too. At most 64 at a time. */
#ifndef SL_RELAY_H
#define SL_RELAY_H

#include <microhttpd.h>

#include "stages/serve/blobs.h"

typedef struct sl_relays sl_relays;
typedef struct sl_relay sl_relay;

/* Of a server: all of them. *blobs is borrowed. Errors: SL_NOMEM. */
sl_code sl_relays_open(sl_relays **out, const sl_blobs *blobs, sl_err *err);
/* Those that are under way break, and there are no others; back when no thread is left and no
 * connection sleeps. NULL is fine. */
void sl_relays_end(sl_relays *all);
void sl_relays_close(sl_relays **all); /* after the HTTP daemons have ended; NULL is fine */

/* What of which file: as of sl_blobs_reading. Texts are copied. */
typedef struct {
    const char *id, *name, *version;
    uint64_t all, from, size;
} sl_relay_what;

/* Begin; back when the first bytes are there. *out is left with sl_relay_leave. Errors: SL_BUSY too
 * many are under way, or the server ends; else those of sl_blobs_read. */
sl_code sl_relay_open(sl_relay **out, sl_relays *all, struct MHD_Connection *to,
                      const sl_relay_what *what, sl_err *err);
/* The two of a response that MHD makes from a callback (MHD_ContentReaderCallback and its free). */
ssize_t sl_relay_more(void *relay, uint64_t pos, char *buf, size_t max);
void sl_relay_leave(void *relay);

#endif
