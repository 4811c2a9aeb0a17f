/* blobs.h - what all servers of a queue share: the files of jobs, in a folder or in an
 * S3-compatible store.
 *
 *     BLOBS/store             a word that is this place's alone: all servers see the same one
 *     BLOBS/ID/VERSION-NAME   one file, which never changes: a new version is a new file
 *     BLOBS/ID/new            the job is not accepted yet (in a store: BLOBS/new/ID)
 *
 * Which version of a file counts says the queue (sl_journal_files), which refuses whoever does not
 * hold the job any more: what such a server has written stands beside the others' files, and nobody
 * reads it. A file is whole when it is there under its name; in a folder it is on the disk then, as
 * far as the file system's fsync goes (its name when the job is settled), in a store it has the
 * SHA-256 that was sent. A place that is away, or that has another word by now (an empty mount
 * point, a new bucket), is SL_SYS. Any thread. */
#ifndef SL_BLOBS_H
#define SL_BLOBS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/conf.h"
#include "common/path.h"

typedef struct sl_blobs sl_blobs;
typedef struct sl_blobs_body sl_blobs_body; /* blobs_body.h */

struct sl_blobs {
    char
        dir[SL_PATH]; /* what messages call it, a folder or s3://BUCKET/PREFIX; "": there is none */
    char word[40];    /* which place it is */
    int64_t bytes_per_s; /* a copy into it is no faster; 0: as fast as it goes */
    const sl_blobs_body *body;
    void *self; /* the body's */
};

/* `where` is a folder, which is made (0700) where there is none, or s3://BUCKET[/PREFIX]; see that
 * it can be written to. *b zeroed before. Errors: SL_ARG, SL_SYS. */
sl_code sl_blobs_open(sl_blobs *b, const char *where, const sl_conf *conf, sl_err *err);
void sl_blobs_close(sl_blobs *b); /* one without a place is fine */

/* The file `from` as it is now, whole, becomes this version; for good when the job's files are
 * settled. *bytes: its size. Errors: SL_GONE there is no `from`; SL_SYS. */
sl_code sl_blobs_put(const sl_blobs *b, const char *id, const char *name, const char *version,
                     const char *from, uint64_t *bytes, sl_err *err);
/* What was put of the job outlives a crash of the machine: to be called, once for all of them,
 * before the queue is told of them. Errors: SL_SYS. */
sl_code sl_blobs_settle(const sl_blobs *b, const char *id, sl_err *err);
/* A copy in `to`, which is there only when it is whole; a crash of this machine may take it.
 * Errors: SL_GONE there is no such version, or it has another size or other bytes; SL_SYS. */
sl_code sl_blobs_get(const sl_blobs *b, const char *id, const char *name, const char *version,
                     uint64_t bytes, const char *to, sl_err *err);

/* Where a version of a file is, of a folder. false: it is no file of this machine. */
bool sl_blobs_path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *name,
                   const char *version);
/* `size` bytes from `from` on of a version that has `all`, handed to `take` in order. over: true
 * ends it within a second. Errors: SL_GONE as sl_blobs_get's; SL_CANCELLED take or over ended it;
 * SL_SYS. */
typedef struct {
    const char *id, *name, *version;
    uint64_t all, from, size;
    bool (*take)(void *self, const char *bytes, size_t n);
    bool (*over)(void *self);
    void *self;
} sl_blobs_reading;
sl_code sl_blobs_read(const sl_blobs *b, const sl_blobs_reading *r, sl_err *err);
/* A link for whoever has it, good for so many seconds, to a file that is shown as `type` and
 * `shown`. *url is the caller's to free. Errors: SL_ARG a folder has none; SL_NOMEM. */
sl_code sl_blobs_link(char **url, const sl_blobs *b, const char *id, const char *name,
                      const char *version, int seconds, const char *type, const char *shown,
                      sl_err *err);

/* One version goes; it may be gone. */
void sl_blobs_drop(const sl_blobs *b, const char *id, const char *name, const char *version);
/* All of a job. Errors: SL_SYS some of it may be there still: to be tried again. */
sl_code sl_blobs_remove(const sl_blobs *b, const char *id, sl_err *err);
/* The job is not accepted yet, and is: between the two, a server that dies leaves files that are
 * known by their mark. Errors: SL_SYS. */
sl_code sl_blobs_mark(const sl_blobs *b, const char *id, sl_err *err);
void sl_blobs_unmark(const sl_blobs *b, const char *id);
/* Jobs with a mark that is so old are shown to `look`; what is left of files that a server which
 * died was sending, and is as old, goes. */
void sl_blobs_each_marked(const sl_blobs *b, int64_t old_s,
                          void (*look)(void *self, const char *id), void *self);
/* Bytes that its disk has free for this user; UINT64_MAX: nobody knows. */
uint64_t sl_blobs_free(const sl_blobs *b);

#endif
