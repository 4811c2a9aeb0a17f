/* server.c - the shared parts, opened and closed together. */
#include "stages/serve/server.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/serve/relay.h"

#define LEFT_MOST 10000 /* jobs whose files wait to be removed */

sl_code sl_server_open(sl_server *s, sl_err *err)
{
    sl_code rc;
    if ((s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "eventfd");
    if ((rc = sl_live_open(&s->live, err)) || (rc = sl_events_open(&s->events, err))) return rc;
    return sl_metrics_open(&s->metrics, err);
}

/* Who this server is in the queue: a name that its state folder keeps. */
static sl_code read_id(sl_server *s, sl_err *err)
{
    char path[SL_PATH], host[24] = "host";
    uint32_t r = 0;
    sl_code rc = sl_path_join(path, s->store.dir, "server", err);
    if (rc) return rc;
    FILE *f = fopen(path, "re");
    const bool kept = f && fscanf(f, "%63s", s->id) == 1 && sl_journal_is_id(s->id);
    if (f) fclose(f);
    if (kept) return SL_OK;
    gethostname(host, sizeof host - 1);
    for (char *c = host; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '-';
    while (getrandom(&r, sizeof r, 0) != sizeof r) {
    }
    snprintf(s->id, sizeof s->id, "%s-%08x", host, r);
    if (!(f = fopen(path, "we"))) return sl_fail_errno(err, errno, "%s", path);
    fprintf(f, "%s\n", s->id);
    return fclose(f) ? sl_fail_errno(err, errno, "%s", path) : SL_OK;
}

static void note_heard(sl_server *s, const char *id, bool lost)
{
    pthread_mutex_lock(&s->heard_lock);
    sl_server_heard *more = realloc(s->heard, (size_t)(s->heard_count + 1) * sizeof *more);
    if (more) {
        s->heard = more;
        more[s->heard_count] = (sl_server_heard){.lost = lost};
        snprintf(more[s->heard_count++].id, SL_JOURNAL_ID, "%s", id);
    }
    pthread_mutex_unlock(&s->heard_lock);
}

/* What any server of the queue has changed. */
static void hear(void *self, sl_journal_heard what, const char *id)
{
    sl_server *s = self;
    if (s->role != SL_SERVER_FRONT &&
        (what == SL_JOURNAL_HEARD_LOST || what == SL_JOURNAL_HEARD_CANCEL))
        note_heard(s, id, what == SL_JOURNAL_HEARD_LOST);
    if (what == SL_JOURNAL_HEARD_STEP)
        sl_events_tell(s->events, id, SL_EVENT_STEP | SL_EVENT_PREVIEW);
    else if (what == SL_JOURNAL_HEARD_ALL)
        sl_events_tell(s->events, NULL, SL_EVENT_STATE | SL_EVENT_STEP);
    else if (what == SL_JOURNAL_HEARD_STATE) sl_events_tell(s->events, id, SL_EVENT_STATE);
    if (what != SL_JOURNAL_HEARD_STEP && what != SL_JOURNAL_HEARD_STATE) sl_server_wake(s);
}

static sl_code open_queue(sl_server *s, const sl_server_shares *shares, sl_err *err)
{
    bool safe;
    sl_code rc;
    s->role = shares->role;
    if (!*shares->blobs)
        return sl_fail(err, SL_ARG,
                       "--queue is given without --blobs, want the folder or s3://BUCKET that all "
                       "servers of the queue share");
    if ((rc = read_id(s, err)) || (rc = sl_blobs_open(&s->blobs, shares->blobs, &s->conf, err)) ||
        (rc = sl_relays_open(&s->relays, &s->blobs, err)))
        return rc;
    const sl_journal_shared at = {.url = shares->queue,
                                  .name = s->id,
                                  .model = s->name,
                                  .store = s->blobs.word,
                                  .shows = s->role != SL_SERVER_WORKER,
                                  .lease_ms = s->conf.queue.lease_s * 1000};
    if ((rc = sl_journal_open_shared(&s->journal, &at, err))) return rc;
    s->store.copies = true;
    sl_journal_listen(s->journal, hear, s);
    const char *promise = sl_journal_promise(s->journal, &safe);
    sl_log(safe ? SL_LOG_INFO : SL_LOG_WARN, "%s", promise);
    return SL_OK;
}

sl_code sl_server_open_state(sl_server *s, const char *dir, const sl_server_shares *shares,
                             int wait_ms, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = sl_store_open(&s->store, dir, wait_ms, err);
    if (rc) return rc;
    if (*shares->queue) return open_queue(s, shares, err);
    if (*shares->blobs || shares->role != SL_SERVER_BOTH)
        return sl_fail(err, SL_ARG,
                       "--blobs and --role are given without --queue, want the queue "
                       "that the servers share");
    if ((rc = sl_path_join(path, s->store.dir, "journal.db", err))) return rc;
    return sl_journal_open(&s->journal, path, err);
}

/* ---- files of jobs ---- */

sl_code sl_server_file(const sl_server *s, const sl_journal_job *job, const char *name,
                       sl_server_place *out, sl_err *err)
{
    struct stat st;
    sl_code rc;
    *out = (sl_server_place){0};
    memcpy(out->id, job->id, sizeof out->id);
    snprintf(out->name, sizeof out->name, "%s", name);
    if (sl_server_shares_queue(s)) {
        if (!sl_journal_find_file(job, name, out->version, &out->bytes))
            return sl_fail(err, SL_GONE, "there is no %s", name);
        sl_blobs_path(out->path, &s->blobs, job->id, name, out->version);
        return SL_OK;
    }
    if ((rc = sl_store_path(out->path, &s->store, job->id, name, err))) return rc;
    if (stat(out->path, &st)) return sl_fail(err, SL_GONE, "there is no %s", name);
    out->bytes = (uint64_t)st.st_size;
    return SL_OK;
}

uint64_t sl_server_free(const sl_server *s)
{
    const uint64_t here = sl_store_free(&s->store);
    const uint64_t there = sl_server_shares_queue(s) ? sl_blobs_free(&s->blobs) : UINT64_MAX;
    return here < there ? here : there;
}

static void note_left(sl_server *s, const char *id)
{
    pthread_mutex_lock(&s->left_lock);
    char(*more)[SL_JOURNAL_ID] = s->left_count < LEFT_MOST
                                     ? realloc(s->left, (size_t)(s->left_count + 1) * sizeof *more)
                                     : NULL;
    if (more) {
        s->left = more;
        snprintf(more[s->left_count++], sizeof *more, "%s", id);
    }
    pthread_mutex_unlock(&s->left_lock);
    if (!more) sl_log_about(id, SL_LOG_WARN, "its files stay in %s", s->blobs.dir);
}

void sl_server_remove_files(sl_server *s, const char *id)
{
    sl_err err = {0};
    sl_store_remove(&s->store, id);
    if (!sl_server_shares_queue(s) || !sl_blobs_remove(&s->blobs, id, &err)) return;
    sl_log_about(id, SL_LOG_WARN, "its files are removed later: %s", err.msg);
    note_left(s, id);
}

void sl_server_remove_left(sl_server *s)
{
    pthread_mutex_lock(&s->left_lock);
    char(*all)[SL_JOURNAL_ID] = s->left;
    const int count = s->left_count;
    s->left = NULL;
    s->left_count = 0;
    pthread_mutex_unlock(&s->left_lock);
    sl_code rc = SL_OK;
    for (int i = 0; i < count; i++)
        if (rc || (rc = sl_blobs_remove(&s->blobs, all[i], NULL))) note_left(s, all[i]);
    free(all);
}

void sl_server_close(sl_server *s)
{
    sl_journal_close(&s->journal);
    sl_relays_close(&s->relays);
    sl_blobs_close(&s->blobs);
    free(s->heard);
    free(s->left);
    pthread_mutex_destroy(&s->heard_lock);
    pthread_mutex_destroy(&s->left_lock);
    sl_store_close(&s->store);
    sl_metrics_close(&s->metrics);
    sl_events_close(&s->events);
    sl_live_close(&s->live);
    sl_tokens_free(&s->tokens);
    sl_job_free(&s->defaults.spec);
    sl_tokenizer_close(&s->tokenizer);
    pthread_rwlock_destroy(&s->settings);
    if (s->wake >= 0) close(s->wake);
}

void sl_server_init(sl_server *s)
{
    s->store.lock = s->wake = -1;
    pthread_rwlock_init(&s->settings, NULL);
    pthread_mutex_init(&s->heard_lock, NULL);
    pthread_mutex_init(&s->left_lock, NULL);
}

void sl_server_wake(const sl_server *s)
{
    const uint64_t one = 1;
    while (write(s->wake, &one, sizeof one) < 0 && errno == EINTR) {
    }
}
