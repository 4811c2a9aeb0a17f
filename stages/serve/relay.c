/* relay.c - files of the store on their way to clients.
 *
 * One lock for all of them: it is held to copy at most a ring, or to change a word. A relay is
 * freed by whoever is last: its thread, or the response that reads it (`held`). */
#include "stages/serve/relay.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stages/serve/journal.h"

#define MOST 64
#define RING (256u << 10)

struct sl_relay {
    sl_relays *all;
    sl_relay *next;
    struct MHD_Connection *to;
    char id[SL_JOURNAL_ID], name[SL_JOURNAL_FILE], version[SL_JOURNAL_FILE];
    uint64_t whole, from, size;
    char *ring;
    size_t room, begin, used;
    int held;
    bool asleep; /* the connection */
    bool left;   /* nobody reads it any more */
    bool ended;  /* the thread's work; rc and err say how */
    sl_code rc;
    sl_err err;
    pthread_cond_t changed;
};

struct sl_relays {
    const sl_blobs *blobs;
    pthread_mutex_t lock;
    pthread_cond_t none; /* no thread is left */
    sl_relay *first;     /* those that have a thread */
    int count;
    bool over;
};

sl_code sl_relays_open(sl_relays **out, const sl_blobs *blobs, sl_err *err)
{
    sl_relays *all = *out = calloc(1, sizeof *all);
    if (!all) return sl_fail(err, SL_NOMEM, "serve: no memory");
    all->blobs = blobs;
    pthread_mutex_init(&all->lock, NULL);
    pthread_cond_init(&all->none, NULL);
    return SL_OK;
}

void sl_relays_close(sl_relays **out)
{
    sl_relays *all = *out;
    *out = NULL;
    if (!all) return;
    pthread_cond_destroy(&all->none);
    pthread_mutex_destroy(&all->lock);
    free(all);
}

/* ---- under the lock ---- */

static void wake_client(sl_relay *r)
{
    if (!r->asleep) return;
    r->asleep = false;
    MHD_resume_connection(r->to);
}

/* true: it was the last hold. */
static bool let_go(sl_relay *r)
{
    return !--r->held;
}

static void free_relay(sl_relay *r)
{
    pthread_cond_destroy(&r->changed);
    free(r->ring);
    free(r);
}

void sl_relays_end(sl_relays *all)
{
    if (!all) return;
    pthread_mutex_lock(&all->lock);
    all->over = true;
    for (sl_relay *r = all->first; r; r = r->next) pthread_cond_broadcast(&r->changed);
    while (all->count) pthread_cond_wait(&all->none, &all->lock);
    pthread_mutex_unlock(&all->lock);
}

/* ---- the thread ---- */

/* Into the ring what there is room for; n: of it. */
static size_t put(sl_relay *r, const char *bytes, size_t n)
{
    const size_t end = (r->begin + r->used) % r->room;
    size_t most = r->room - r->used;
    if (most > r->room - end) most = r->room - end;
    if (n > most) n = most;
    memcpy(r->ring + end, bytes, n);
    r->used += n;
    return n;
}

static bool take(void *self, const char *bytes, size_t n)
{
    sl_relay *r = self;
    pthread_mutex_lock(&r->all->lock);
    while (n && !r->left && !r->all->over) {
        const size_t k = put(r, bytes, n);
        bytes += k;
        n -= k;
        if (k) {
            wake_client(r);
            pthread_cond_broadcast(&r->changed);
        } else pthread_cond_wait(&r->changed, &r->all->lock);
    }
    pthread_mutex_unlock(&r->all->lock);
    return !n;
}

static bool is_over(void *self)
{
    sl_relay *r = self;
    pthread_mutex_lock(&r->all->lock);
    const bool over = r->left || r->all->over;
    pthread_mutex_unlock(&r->all->lock);
    return over;
}

static void leave_list(sl_relay *r)
{
    sl_relay **at = &r->all->first;
    while (*at != r) at = &(*at)->next;
    *at = r->next;
    if (!--r->all->count) pthread_cond_broadcast(&r->all->none);
}

static void *carry(void *arg)
{
    sl_relay *r = arg;
    sl_relays *all = r->all;
    const sl_blobs_reading reading = {.id = r->id,
                                      .name = r->name,
                                      .version = r->version,
                                      .all = r->whole,
                                      .from = r->from,
                                      .size = r->size,
                                      .take = take,
                                      .over = is_over,
                                      .self = r};
    sl_err err = {0};
    sl_code rc = sl_blobs_read(all->blobs, &reading, &err);
    pthread_mutex_lock(&all->lock);
    r->ended = true;
    r->rc = rc;
    r->err = err;
    wake_client(r);
    pthread_cond_broadcast(&r->changed);
    const bool last = let_go(r);
    leave_list(r); /* after this the lock may be the last thing that there is */
    pthread_mutex_unlock(&all->lock);
    if (last) free_relay(r);
    return NULL;
}

static sl_code start(sl_relay *r, sl_err *err)
{
    sl_relays *all = r->all;
    pthread_t thread;
    sl_code rc = SL_OK;
    pthread_mutex_lock(&all->lock);
    if (all->over || all->count == MOST)
        rc = sl_fail(err, SL_BUSY, "%d files are being sent from the store, come again in a moment",
                     all->count);
    else if (pthread_create(&thread, NULL, carry, r))
        rc = sl_fail(err, SL_BUSY, "no thread to send a file from the store");
    else {
        pthread_detach(thread); /* sl_relays_end waits for it */
        r->next = all->first;
        all->first = r;
        all->count++;
        r->held = 2;
        while (!r->used && !r->ended) pthread_cond_wait(&r->changed, &all->lock);
        if (!r->used && r->rc) {
            rc = r->rc;
            if (err) *err = r->err;
        }
    }
    pthread_mutex_unlock(&all->lock);
    return rc;
}

sl_code sl_relay_open(sl_relay **out, sl_relays *all, struct MHD_Connection *to,
                      const sl_relay_what *what, sl_err *err)
{
    sl_relay *r = *out = calloc(1, sizeof *r);
    if (!r) return sl_fail(err, SL_NOMEM, "no memory to send a file");
    pthread_cond_init(&r->changed, NULL);
    r->all = all;
    r->to = to;
    snprintf(r->id, sizeof r->id, "%s", what->id);
    snprintf(r->name, sizeof r->name, "%s", what->name);
    snprintf(r->version, sizeof r->version, "%s", what->version);
    r->whole = what->all;
    r->from = what->from;
    r->size = what->size;
    r->held = 1;
    r->room = what->size < RING ? (size_t)what->size : RING;
    sl_code rc = (r->ring = malloc(r->room)) ? start(r, err)
                                             : sl_fail(err, SL_NOMEM, "no memory to send a file");
    if (rc) {
        sl_relay_leave(r);
        *out = NULL;
    }
    return rc;
}

/* ---- MHD's ---- */

ssize_t sl_relay_more(void *self, uint64_t pos, char *buf, size_t max)
{
    sl_relay *r = self;
    ssize_t n = 0;
    (void)pos;
    pthread_mutex_lock(&r->all->lock);
    if (r->used) {
        size_t k = r->used < r->room - r->begin ? r->used : r->room - r->begin;
        if (k > max) k = max;
        memcpy(buf, r->ring + r->begin, k);
        r->begin = (r->begin + k) % r->room;
        r->used -= k;
        n = (ssize_t)k;
        pthread_cond_broadcast(&r->changed);
    } else if (r->ended)
        n = r->rc ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
    else {
        r->asleep = true;
        MHD_suspend_connection(r->to);
    }
    pthread_mutex_unlock(&r->all->lock);
    return n;
}

void sl_relay_leave(void *self)
{
    sl_relay *r = self;
    pthread_mutex_t *lock = &r->all->lock;
    pthread_mutex_lock(lock);
    r->left = true;
    r->asleep = false;
    pthread_cond_broadcast(&r->changed);
    const bool last = let_go(r);
    pthread_mutex_unlock(lock);
    if (last) free_relay(r);
}
