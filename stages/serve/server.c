/* server.c - the shared parts, opened and closed together. */
#include "stages/serve/server.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

sl_code sl_server_open(sl_server *s, sl_err *err)
{
    sl_code rc;
    if ((s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return sl_fail_errno(err, errno, "eventfd");
    if ((rc = sl_live_open(&s->live, err)) || (rc = sl_events_open(&s->events, err))) return rc;
    return sl_metrics_open(&s->metrics, err);
}

sl_code sl_server_open_state(sl_server *s, const char *dir, int wait_ms, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc;
    if ((rc = sl_store_open(&s->store, dir, wait_ms, err)) ||
        (rc = sl_path_join(path, s->store.dir, "journal.db", err)))
        return rc;
    return sl_journal_open(&s->journal, path, err);
}

void sl_server_close(sl_server *s)
{
    sl_journal_close(&s->journal);
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
}

void sl_server_wake(const sl_server *s)
{
    const uint64_t one = 1;
    while (write(s->wake, &one, sizeof one) < 0 && errno == EINTR) {
    }
}
