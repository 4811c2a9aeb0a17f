/* blobs.h - the folder that all servers of a queue share: the files of jobs.
 *
 *     BLOBS/store          a word that is this folder's alone: all servers see the same one
 *     BLOBS/ID/VERSION-NAME   one file, which never changes: a new version is a new file
 *     BLOBS/ID/new            the job is not accepted yet
 *
 * Which version of a file counts says the queue (sl_journal_file), which refuses whoever does not
 * hold the job any more: what such a server has written stands beside the others' files, and nobody
 * reads it. A file is whole when it is there under its name, and on the disk, as far as the file
 * system's fsync goes. Any thread. */
#ifndef SL_BLOBS_H
#define SL_BLOBS_H

#include <stdint.h>

#include "common/path.h"

typedef struct {
    char dir[SL_PATH];   /* "": there is none */
    char word[40];       /* which folder it is */
    int64_t bytes_per_s; /* a copy into it is no faster; 0: as fast as it goes */
} sl_blobs;

/* Make the folder (0700) where there is none, and see that it can be written to. Errors: SL_ARG,
 * SL_SYS. */
sl_code sl_blobs_open(sl_blobs *b, const char *dir, sl_err *err);
/* Where a version of a file is. Errors: SL_ARG too long. */
sl_code sl_blobs_path(char out[SL_PATH], const sl_blobs *b, const char *id, const char *name,
                      const char *version, sl_err *err);
/* The file `from` as it is now, whole, becomes this version. *bytes: its size. Errors: SL_SYS. */
sl_code sl_blobs_put(const sl_blobs *b, const char *id, const char *name, const char *version,
                     const char *from, uint64_t *bytes, sl_err *err);
/* A copy in `to`, which is there only when it is whole. Errors: SL_GONE there is no such version,
 * or it has another size; SL_SYS. */
sl_code sl_blobs_get(const sl_blobs *b, const char *id, const char *name, const char *version,
                     uint64_t bytes, const char *to, sl_err *err);
/* One version goes; it may be gone. */
void sl_blobs_drop(const sl_blobs *b, const char *id, const char *name, const char *version);
/* All of a job. */
void sl_blobs_remove(const sl_blobs *b, const char *id);
/* The job is not accepted yet, and is: between the two, a server that dies leaves a folder that is
 * known by its mark. Errors: SL_SYS. */
sl_code sl_blobs_mark(const sl_blobs *b, const char *id, sl_err *err);
void sl_blobs_unmark(const sl_blobs *b, const char *id);
/* Jobs with a mark that is so old are shown to `look`. */
void sl_blobs_each_marked(const sl_blobs *b, int64_t old_s,
                          void (*look)(void *self, const char *id), void *self);
/* Bytes that its disk has free for this user; UINT64_MAX: nobody knows. */
uint64_t sl_blobs_free(const sl_blobs *b);

#endif
