/* store.h - the state folder of a server: one owner at a time, a folder a job.
 *
 *     STATE/lock          held by the server, and by every process that comes of it
 *     STATE/journal.db    journal.h
 *     STATE/sluice.sock   HTTP over a UNIX socket
 *     STATE/run/          the dispatcher's socket and settings
 *     STATE/log/          what all processes say, JSON lines
 *     STATE/jobs/ID/      all that a job is (common/job.h), then all that became of it:
 *                         video.mp4 report.json trace.json log.jsonl preview.png, made when asked
 *                         for: thumbnail.jpg spritesheet.jpg; of a dump the hand-overs too
 *
 * Files that an answer was given for are on the disk, as far as fsync goes. Any thread. */
#ifndef SL_STORE_H
#define SL_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/path.h"

#define SL_STORE_VIDEO "video.mp4"
#define SL_STORE_REPORT "report.json"
#define SL_STORE_TRACE "trace.json"
#define SL_STORE_LOG "log.jsonl"
#define SL_STORE_PREVIEW "preview.png"
#define SL_STORE_THUMBNAIL "thumbnail.jpg"
#define SL_STORE_SPRITES "spritesheet.jpg"

typedef struct {
    char dir[SL_PATH], jobs[SL_PATH], run[SL_PATH], log[SL_PATH];
    int lock;    /* -1: none */
    bool copies; /* jobs' files are kept elsewhere, too: those here are not synced */
} sl_store;

/* Make the folder (0700) and what is in it, and take its lock. Processes of a server that was
 * killed hold it until the last of them is gone: waits for at most wait_ms. *s is to be closed
 * after an error too. Errors: SL_BUSY another server has it; SL_ARG it belongs to another user;
 * SL_SYS. */
sl_code sl_store_open(sl_store *s, const char *dir, int wait_ms, sl_err *err);
void sl_store_close(sl_store *s);

/* STATE/jobs/ID, or NAME in it ("" for the folder). Ids are the journal's. Errors: SL_ARG too
 * long. */
sl_code sl_store_path(char out[SL_PATH], const sl_store *s, const char *id, const char *name,
                      sl_err *err);
/* An empty folder for a new job. */
sl_code sl_store_make(const sl_store *s, const char *id, sl_err *err);
/* A new file of a job, synced unless files here are copies. */
sl_code sl_store_write(const sl_store *s, const char *id, const char *name, const void *bytes,
                       size_t size, sl_err *err);
/* The names in a job's folder, and of the folder itself, are on the disk; likewise. */
sl_code sl_store_sync(const sl_store *s, const char *id, sl_err *err);
/* Bytes of the files of a job's folder. */
uint64_t sl_store_bytes(const sl_store *s, const char *id);
/* The job has ended: what was only needed to make the video goes. dump: hand-overs and inputs
 * stay. */
void sl_store_prune(const sl_store *s, const char *id, bool dump);
/* The job is forgotten. */
void sl_store_remove(const sl_store *s, const char *id);
/* Each job's folder is shown to `look`. */
void sl_store_each(const sl_store *s, void (*look)(void *self, const char *id), void *self);
/* Bytes that the state's disk has free for this user; UINT64_MAX: nobody knows. */
uint64_t sl_store_free(const sl_store *s);

#endif
