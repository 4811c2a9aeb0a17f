/* stream.c - a job's events, as long as somebody reads (server-sent events).
 *
 * The reader of a connection sleeps (MHD suspends it) until events.h has news. What is sent is made
 * then, from the journal and the live jobs: the newest, not a queue of all. */
#include "stages/serve/routes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    sl_server *server;
    struct MHD_Connection *mhd;
    sl_ask ask; /* whose asker may see what */
    sl_reader *reader;
    char *text; /* what is being sent */
    size_t size, at;
    int preview; /* the newest that was told */
    uint32_t step;
    char stage[SL_STR16];
    bool last; /* the stream ends when the text is sent */
} stream;

static void wake(void *arg)
{
    stream *s = arg;
    MHD_resume_connection(s->mhd);
}

static void sleep_now(void *arg)
{
    stream *s = arg;
    MHD_suspend_connection(s->mhd);
}

static void put_event(FILE *to, const char *event, json_t *data)
{
    char *text = data ? json_dumps(data, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    if (text) fprintf(to, "event: %s\ndata: %s\n\n", event, text);
    free(text);
    json_decref(data);
}

/* Where the job is, here or on another server. */
static bool where_is(const stream *s, sl_live_job *out)
{
    sl_journal_job job = {0};
    if (sl_live_get(s->server->live, s->ask.id, out)) return true;
    if (!sl_server_shares_queue(s->server)) return false;
    const bool told = !sl_journal_get(s->server->journal, s->ask.id, NULL, &job, NULL) &&
                      sl_live_parse(out, &job);
    sl_journal_job_free(&job);
    return told;
}

static void put_live(stream *s, FILE *to, unsigned news)
{
    sl_live_job j;
    if (!where_is(s, &j)) return;
    const bool moved = j.step != s->step || strcmp(j.stage, s->stage);
    if ((news & SL_EVENT_STEP) && *j.stage && moved)
        put_event(to, "step",
                  json_pack("{s:s, s:i, s:i, s:f, s:i, s:o}", "stage", j.stage, "step", (int)j.step,
                            "steps", (int)j.steps, "seconds", j.step_s, "progress",
                            (int)fmin(99, floor(j.progress * 100)), "eta_seconds",
                            j.left_s < 0 ? json_null() : json_real(j.left_s)));
    s->step = j.step;
    memcpy(s->stage, j.stage, sizeof s->stage);
    if ((news & SL_EVENT_PREVIEW) && j.preview != s->preview)
        put_event(to, "preview",
                  json_pack("{s:i, s:o}", "step", j.preview, "url",
                            json_sprintf("/v1/videos/%s/preview?step=%d", s->ask.id, j.preview)));
    s->preview = j.preview;
}

/* The text of what is new; false: there is none, or no memory for it. */
static bool compose(stream *s, unsigned news)
{
    FILE *to;
    free(s->text);
    s->text = NULL;
    s->size = s->at = 0;
    if (!(to = open_memstream(&s->text, &s->size))) return false;
    if (news & SL_EVENT_ALIVE) fputs(":\n\n", to);
    put_live(s, to, news);
    if (news & SL_EVENT_STATE) {
        sl_journal_job job = {0};
        if (!sl_journal_get(s->server->journal, s->ask.id, s->ask.everyone ? NULL : s->ask.owner,
                            &job, NULL)) {
            put_event(to, "state", sl_video_json(s->server, &job));
            s->last = job.state != SL_JOURNAL_QUEUED && job.state != SL_JOURNAL_RUNNING;
        } else s->last = true; /* removed meanwhile */
        sl_journal_job_free(&job);
    }
    fclose(to);
    return s->size > 0;
}

static ssize_t more(void *cls, uint64_t pos, char *buf, size_t max)
{
    stream *s = cls;
    (void)pos;
    sl_ask_alive(&s->ask);
    while (s->at == s->size) {
        if (s->last || atomic_load(&s->server->closing)) return MHD_CONTENT_READER_END_OF_STREAM;
        const unsigned news = sl_events_take(s->server->events, s->reader, sleep_now);
        if (!news) return 0;
        if (news & SL_EVENT_END) return MHD_CONTENT_READER_END_OF_STREAM;
        compose(s, news);
    }
    const size_t n = s->size - s->at < max ? s->size - s->at : max;
    memcpy(buf, s->text + s->at, n);
    s->at += n;
    return (ssize_t)n;
}

static void end(void *cls)
{
    stream *s = cls;
    sl_events_leave(s->server->events, s->reader);
    free(s->text);
    free(s);
}

void sl_on_events(sl_ask *a)
{
    sl_journal_job job = {0};
    if (!sl_ask_job(a, &job)) return;
    sl_journal_job_free(&job);
    stream *s = calloc(1, sizeof *s);
    if (!s) return;
    *s = (stream){.server = a->server, .mhd = a->mhd, .ask = *a};
    if (!(s->reader = sl_events_join(a->server->events, a->id, wake, s))) {
        free(s);
        return;
    }
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, more, s, end);
    if (!r) {
        end(s);
        return;
    }
    MHD_add_response_header(r, "Content-Type", "text/event-stream");
    MHD_add_response_header(r, "X-Accel-Buffering", "no"); /* nginx: pass on at once */
    sl_answer(a, 200, r);
}
