/* feed.h - lines of a stream, as they come. */
#ifndef SL_CLI_FEED_H
#define SL_CLI_FEED_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define SL_FEED_LINE ((size_t)1 << 20) /* bytes of the longest line */

typedef struct {
    int fd;    /* to poll for input; -1: all has been read, or nothing was opened */
    bool own;  /* fd is closed at the end */
    bool skip; /* up to the next newline: what came was too long */
    char *text;
    size_t at, used, room; /* [at, used) is to be handed out */
    int line;              /* number of the newest */
} sl_feed;

/* path "-": standard input. *f is filled; sl_feed_close, also after an error. Errors: SL_SYS. */
sl_code sl_feed_open(sl_feed *f, const char *path, sl_err *err);
/* There is input: take what is there, without waiting for more. At the end f->fd is -1. Errors:
 * SL_SYS, SL_NOMEM. */
sl_code sl_feed_read(sl_feed *f, sl_err *err);
/* The next line of what was read, without its newline, NUL-terminated, valid until the next call;
 * its number is f->line. *text NULL: it was longer than SL_FEED_LINE. false: there is no whole
 * line. */
bool sl_feed_next(sl_feed *f, const char **text, size_t *length);
/* There is a whole line, or more may come. */
bool sl_feed_goes_on(const sl_feed *f);
void sl_feed_close(sl_feed *f);

#endif
