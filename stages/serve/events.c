/* events.c - marks for readers. */
#include "stages/serve/events.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

struct sl_reader {
    sl_reader *next, *before;
    char id[SL_JOURNAL_ID];
    unsigned news;
    bool asleep;
    int64_t heard_ns;
    void (*wake)(void *arg);
    void *arg;
};

struct sl_events {
    pthread_mutex_t lock;
    sl_reader *first;
    int count;
};

sl_code sl_events_open(sl_events **out, sl_err *err)
{
    sl_events *e = *out = calloc(1, sizeof *e);
    if (!e) return sl_fail(err, SL_NOMEM, "serve: no memory");
    pthread_mutex_init(&e->lock, NULL);
    return SL_OK;
}

void sl_events_close(sl_events **ep)
{
    sl_events *e = *ep;
    *ep = NULL;
    if (!e) return;
    pthread_mutex_destroy(&e->lock);
    free(e);
}

sl_reader *sl_events_join(sl_events *e, const char *id, void (*wake)(void *arg), void *arg)
{
    sl_reader *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    *r = (sl_reader){.news = SL_EVENT_STATE, .heard_ns = sl_now_ns(), .wake = wake, .arg = arg};
    strncpy(r->id, id, sizeof r->id - 1);
    pthread_mutex_lock(&e->lock);
    r->next = e->first;
    if (e->first) e->first->before = r;
    e->first = r;
    e->count++;
    pthread_mutex_unlock(&e->lock);
    return r;
}

void sl_events_leave(sl_events *e, sl_reader *r)
{
    pthread_mutex_lock(&e->lock);
    if (r->before) r->before->next = r->next;
    else e->first = r->next;
    if (r->next) r->next->before = r->before;
    e->count--;
    pthread_mutex_unlock(&e->lock);
    free(r);
}

unsigned sl_events_take(sl_events *e, sl_reader *r, void (*sleep)(void *arg))
{
    pthread_mutex_lock(&e->lock);
    const unsigned news = r->news;
    r->news = 0;
    if (news) r->heard_ns = sl_now_ns();
    else {
        r->asleep = true;
        sleep(r->arg);
    }
    pthread_mutex_unlock(&e->lock);
    return news;
}

static void tell_one(sl_reader *r, unsigned what)
{
    r->news |= what;
    if (!r->asleep) return;
    r->asleep = false;
    r->wake(r->arg);
}

void sl_events_tell(sl_events *e, const char *id, unsigned what)
{
    pthread_mutex_lock(&e->lock);
    for (sl_reader *r = e->first; r; r = r->next)
        if (!id || !strcmp(r->id, id)) tell_one(r, what);
    pthread_mutex_unlock(&e->lock);
}

void sl_events_tick(sl_events *e, int64_t silent_ns)
{
    const int64_t now = sl_now_ns();
    pthread_mutex_lock(&e->lock);
    for (sl_reader *r = e->first; r; r = r->next)
        if (now - r->heard_ns > silent_ns) tell_one(r, SL_EVENT_ALIVE);
    pthread_mutex_unlock(&e->lock);
}

int sl_events_count(sl_events *e)
{
    pthread_mutex_lock(&e->lock);
    const int n = e->count;
    pthread_mutex_unlock(&e->lock);
    return n;
}
