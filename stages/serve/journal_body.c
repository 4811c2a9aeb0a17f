/* journal_body.c - the queue that survives: what is checked whoever keeps it, and the way there. */
#include "stages/serve/journal_body.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const sl_journal_states[SL_JOURNAL_STATE_COUNT] = {
#define X(NAME, name) name,
    SL_JOURNAL_STATES(X)
#undef X
};
const char *const sl_journal_codes[SL_CODE_COUNT] = {
#define X(name, text) #name,
    SL_CODES(X)
#undef X
};

const char *sl_journal_state_name(sl_journal_state state)
{
    return (unsigned)state < SL_JOURNAL_STATE_COUNT ? sl_journal_states[state] : "?";
}

void sl_journal_job_free(sl_journal_job *job)
{
    free(job->request);
    free(job->files);
    free(job->needs);
    memset(job, 0, sizeof *job);
}

void sl_journal_close(sl_journal **j)
{
    if (*j) (*j)->body->close(*j);
    *j = NULL;
}

/* ---- ids, refusals ---- */

bool sl_journal_is_id(const char *id)
{
    const size_t n = strnlen(id, SL_JOURNAL_ID);
    return n && n < SL_JOURNAL_ID && *id != '.' &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == n;
}

sl_code sl_journal_no_job(const char *id, sl_err *err)
{
    if (!sl_journal_is_id(id))
        return sl_fail(err, SL_GONE, "no job: its id is not one, want e.g. video_1f");
    return sl_fail(err, SL_GONE, "no job %s", id);
}

sl_code sl_journal_not_running(const char *id, sl_journal_state state, sl_err *err)
{
    if (state == SL_JOURNAL_REMOVED) return sl_journal_no_job(id, err);
    return sl_fail(err, SL_GONE, "job %s is %s, want running", id, sl_journal_state_name(state));
}

sl_code sl_journal_is_there(const char *id, sl_err *err)
{
    return sl_fail(err, SL_ARG, "job %s is there already", id);
}

sl_code sl_journal_full(int64_t queued, int64_t of_owner, const sl_journal_limits *limits,
                        sl_err *err)
{
    if (limits->queued && queued >= limits->queued)
        return sl_fail(err, SL_BUSY, "the queue is full: %lld jobs wait, at most %d may",
                       (long long)queued, limits->queued);
    if (limits->of_owner && of_owner >= limits->of_owner)
        return sl_fail(err, SL_BUSY,
                       "the queue is full: %lld jobs of this owner wait, at most %d may",
                       (long long)of_owner, limits->of_owner);
    return SL_OK;
}

/* ---- jobs come ---- */

static bool is_text(const char *t, size_t size)
{
    return t && strnlen(t, size) < size;
}

static sl_code check_job(const sl_journal_job *job, const char *key, sl_err *err)
{
    if (!sl_journal_is_id(job->id))
        return sl_fail(err, SL_ARG, "job: its id is not one, want e.g. video_1f");
    if (!is_text(job->owner, SL_JOURNAL_OWNER) || !is_text(key, SL_JOURNAL_KEY) ||
        !is_text(job->request, SL_JOURNAL_REQUEST))
        return sl_fail(err, SL_ARG,
                       "job %s: owner, key or request is missing or too long, want at most %d, %d, "
                       "%d bytes",
                       job->id, SL_JOURNAL_OWNER - 1, SL_JOURNAL_KEY - 1, SL_JOURNAL_REQUEST - 1);
    if (job->needs && (!is_text(job->needs, SL_JOURNAL_NEEDS) || strpbrk(job->needs, "\r\n:")))
        return sl_fail(err, SL_ARG, "job %s: its needs are no line of at most %d bytes", job->id,
                       SL_JOURNAL_NEEDS - 1);
    if (job->created_s < 0)
        return sl_fail(err, SL_ARG, "job %s: created_s is %lld, want 0 or more", job->id,
                       (long long)job->created_s);
    return SL_OK;
}

sl_code sl_journal_submit(sl_journal *j, const sl_journal_job *job, const char *key,
                          const sl_journal_limits *limits, char same[SL_JOURNAL_ID], sl_err *err)
{
    *same = 0;
    sl_code rc = check_job(job, key, err);
    if (!rc && (rc = j->body->submit(j, job, key, limits, same, err))) *same = 0;
    return rc;
}

/* ---- jobs run ---- */

sl_code sl_journal_claim(sl_journal *j, int64_t now_s, sl_journal_job *out, sl_err *err)
{
    memset(out, 0, sizeof *out);
    sl_code rc = j->body->claim(j, now_s, out, err);
    if (rc) sl_journal_job_free(out);
    return rc;
}

sl_code sl_journal_release(sl_journal *j, const char *id, sl_err *err)
{
    return sl_journal_is_id(id) ? j->body->release(j, id, err) : sl_journal_no_job(id, err);
}

sl_code sl_journal_release_all(sl_journal *j, int *count, sl_err *err)
{
    *count = 0;
    sl_code rc = j->body->release_all(j, count, err);
    if (rc) *count = 0;
    return rc;
}

void sl_journal_retries(sl_journal *j, int most)
{
    j->body->retries(j, most > 0 ? most : 0);
}

sl_code sl_journal_kept(sl_journal *j, const char *id, sl_err *err)
{
    if (!sl_journal_is_id(id)) return sl_journal_no_job(id, err);
    return j->body->kept ? j->body->kept(j, id, err) : SL_OK;
}

sl_code sl_journal_show(sl_journal *j, const char *id, double progress, const char *live,
                        sl_err *err)
{
    if (strlen(live) >= SL_JOURNAL_LIVE || strpbrk(live, "\r\n"))
        return sl_fail(err, SL_ARG, "what is told of a job is no line of at most %d bytes",
                       SL_JOURNAL_LIVE - 1);
    if (!(progress >= 0))
        return sl_fail(err, SL_ARG, "progress is %g, want a number from 0 to 1", progress);
    if (!sl_journal_is_id(id)) return SL_OK;
    return j->body->progress(j, id, progress < 1 ? progress : 1.0, live, err);
}

sl_code sl_journal_progress(sl_journal *j, const char *id, double progress, sl_err *err)
{
    return sl_journal_show(j, id, progress, "", err);
}

/* As much of the text as fits, without half a character at the end. */
static void cut(char out[SL_JOURNAL_TEXT], const char *message)
{
    size_t n = strnlen(message, SL_JOURNAL_TEXT);
    if (n == SL_JOURNAL_TEXT)
        for (n--; n && ((unsigned char)message[n] & 0xc0) == 0x80;) n--;
    memcpy(out, message, n);
    out[n] = 0;
}

sl_code sl_journal_finish(sl_journal *j, const char *id, sl_journal_state end, sl_code code,
                          const char *message, uint64_t bytes, int64_t now_s, sl_err *err)
{
    char cut_message[SL_JOURNAL_TEXT];
    if (end != SL_JOURNAL_COMPLETED && end != SL_JOURNAL_FAILED && end != SL_JOURNAL_CANCELLED)
        return sl_fail(err, SL_ARG, "an end is \"%s\", want completed, failed or cancelled",
                       sl_journal_state_name(end));
    if ((unsigned)code >= SL_CODE_COUNT || bytes > SL_JOURNAL_BYTES)
        return sl_fail(err, SL_ARG,
                       "an end has code %d and %llu bytes, want a code and at most %lld", (int)code,
                       (unsigned long long)bytes, SL_JOURNAL_BYTES);
    if (!sl_journal_is_id(id)) return sl_journal_no_job(id, err);
    cut(cut_message, message ? message : "");
    return j->body->finish(j, id, end, code, cut_message, bytes, now_s > 0 ? now_s : 0, err);
}

/* ---- what people ask ---- */

sl_code sl_journal_get(sl_journal *j, const char *id, const char *owner, sl_journal_job *out,
                       sl_err *err)
{
    memset(out, 0, sizeof *out);
    return sl_journal_is_id(id) ? j->body->get(j, id, owner, out, err) : sl_journal_no_job(id, err);
}

sl_code sl_journal_cancel(sl_journal *j, const char *id, const char *owner, int64_t now_s,
                          sl_journal_state *before, sl_err *err)
{
    *before = SL_JOURNAL_REMOVED;
    if (!sl_journal_is_id(id)) return sl_journal_no_job(id, err);
    return j->body->cancel(j, id, owner, now_s > 0 ? now_s : 0, before, err);
}

sl_code sl_journal_remove(sl_journal *j, const char *id, const char *owner, int64_t now_s,
                          sl_err *err)
{
    if (!sl_journal_is_id(id)) return sl_journal_no_job(id, err);
    return j->body->remove(j, id, owner, now_s > 0 ? now_s : 0, err);
}

sl_code sl_journal_list(sl_journal *j, const char *owner, const char *after, int limit,
                        bool newest_first, sl_journal_job *jobs, int *count, bool *more,
                        sl_err *err)
{
    *count = 0;
    *more = false;
    if (limit < 1) return sl_fail(err, SL_ARG, "a list of %d jobs, want at least 1", limit);
    if (*after && !sl_journal_is_id(after)) return sl_journal_no_job(after, err);
    sl_code rc = j->body->list(j, owner, after, limit, newest_first, jobs, count, more, err);
    while (rc && *count) sl_journal_job_free(&jobs[--*count]);
    if (rc) *more = false;
    return rc;
}

int sl_journal_position(sl_journal *j, const char *id)
{
    return sl_journal_is_id(id) ? j->body->position(j, id) : -1;
}

sl_code sl_journal_count(sl_journal *j, sl_journal_counts *out, sl_err *err)
{
    memset(out, 0, sizeof *out);
    return j->body->count(j, out, err);
}

/* ---- jobs go ---- */

sl_code sl_journal_expire(sl_journal *j, int64_t before_s, uint64_t quota, int64_t forget_s,
                          int64_t now_s, char id[SL_JOURNAL_ID], sl_err *err)
{
    *id = 0;
    sl_code rc = j->body->expire(j, before_s, quota, forget_s, now_s > 0 ? now_s : 0, id, err);
    if (rc) *id = 0;
    return rc;
}

bool sl_journal_knows(sl_journal *j, const char *id)
{
    return sl_journal_is_id(id) && j->body->knows(j, id);
}

sl_code sl_journal_backup(sl_journal *j, const char *path, sl_err *err)
{
    return j->body->backup(j, path, err);
}

/* ---- a queue that many servers share ---- */

const char *sl_journal_promise(const sl_journal *j, bool *safe)
{
    *safe = true;
    return j->body->promise ? j->body->promise(j, safe) : NULL;
}

static bool is_word(const char *t)
{
    const size_t n = strnlen(t, SL_JOURNAL_FILE);
    return n && n < SL_JOURNAL_FILE && strcspn(t, " \t\r\n") == n;
}

sl_code sl_journal_files(sl_journal *j, const char *id, int n, sl_journal_change *changes,
                         sl_err *err)
{
    if (!sl_journal_is_id(id)) return sl_journal_no_job(id, err);
    if (n < 0 || n > SL_JOURNAL_CHANGES)
        return sl_fail(err, SL_ARG, "job %s: %d files change at once, want at most %d", id, n,
                       SL_JOURNAL_CHANGES);
    for (int i = 0; i < n; i++) {
        sl_journal_change *c = &changes[i];
        *c->was = 0;
        if (!is_word(c->name) || (*c->version && !is_word(c->version)) ||
            c->bytes > SL_JOURNAL_BYTES)
            return sl_fail(err, SL_ARG,
                           "job %s: a file's name or version is no word of at most %d bytes, or "
                           "the file is too large",
                           id, SL_JOURNAL_FILE - 1);
    }
    if (!j->body->files)
        return sl_fail(err, SL_ARG,
                       "job %s: the queue is this machine's, its files are in its "
                       "folder",
                       id);
    return n ? j->body->files(j, id, n, changes, err) : SL_OK;
}

sl_code sl_journal_file(sl_journal *j, const char *id, const char *name, const char *version,
                        uint64_t bytes, char was[SL_JOURNAL_FILE], sl_err *err)
{
    sl_journal_change c = {.name = name, .version = version, .bytes = bytes};
    sl_code rc = sl_journal_files(j, id, 1, &c, err);
    memcpy(was, c.was, sizeof c.was);
    return rc;
}

bool sl_journal_find_file(const sl_journal_job *job, const char *name,
                          char version[SL_JOURNAL_FILE], uint64_t *bytes)
{
    const size_t n = strlen(name);
    *version = 0;
    *bytes = 0;
    for (const char *at = job->files ? job->files : ""; *at; at += strcspn(at, "\n") + 1) {
        unsigned long long size;
        if (strncmp(at, name, n) || at[n] != ' ') continue;
        if (sscanf(at + n, " %255s %llu", version, &size) != 2) return false;
        *bytes = size;
        return true;
    }
    return false;
}

void sl_journal_listen(sl_journal *j,
                       void (*heard)(void *self, sl_journal_heard what, const char *id), void *self)
{
    if (j->body->listen) j->body->listen(j, heard, self);
}

/* ---- who can what ---- */

/* A list of words with commas between; least: it is not empty. Alone, - and ! mean something. */
static bool is_list(const char *t, bool least)
{
    if (!*t) return !least;
    return !strpbrk(t, " \t\r\n:") && *t != ',' && !strstr(t, ",,") && t[strlen(t) - 1] != ',' &&
           strcmp(t, "-") && strcmp(t, "!");
}

sl_code sl_journal_print_needs(char out[SL_JOURNAL_NEEDS], const sl_journal_needs *n, sl_err *err)
{
    *out = 0;
    if (n->pixels < 0 || n->frames < 0 || !is_list(n->precisions, true) ||
        !is_list(n->loras, false))
        return sl_fail(
            err, SL_ARG,
            "what a job needs is no number, or no list of words: %lld pixels, %d frames, "
            "\"%.60s\", \"%.60s\"",
            (long long)n->pixels, n->frames, n->precisions, n->loras);
    const int bytes = snprintf(out, SL_JOURNAL_NEEDS, "%lld %d %s %s", (long long)n->pixels,
                               n->frames, n->precisions, *n->loras ? n->loras : "-");
    if (bytes < SL_JOURNAL_NEEDS) return SL_OK;
    *out = 0;
    return sl_fail(err, SL_ARG, "what a job needs has %d bytes, want at most %d", bytes,
                   SL_JOURNAL_NEEDS - 1);
}

sl_code sl_journal_offer(sl_journal *j, const char *offer, const char *says, sl_err *err)
{
    if (!is_text(offer, SL_JOURNAL_NEEDS) || !is_text(says, SL_JOURNAL_SAYS) ||
        strpbrk(offer, "\r\n") || strpbrk(says, "\r\n"))
        return sl_fail(err, SL_ARG,
                       "what a server offers, or tells of itself, is no line of at most %d and %d "
                       "bytes",
                       SL_JOURNAL_NEEDS - 1, SL_JOURNAL_SAYS - 1);
    return j->body->offer ? j->body->offer(j, offer, says, err) : SL_OK;
}

sl_code sl_journal_offered(sl_journal *j, const char *needs, bool *now, bool *known, sl_err *err)
{
    *now = *known = false;
    if (!is_text(needs, SL_JOURNAL_NEEDS))
        return sl_fail(err, SL_ARG, "what is needed has more than %d bytes", SL_JOURNAL_NEEDS - 1);
    return j->body->offered ? j->body->offered(j, needs, now, known, err) : SL_OK;
}

sl_code sl_journal_fleet_of(sl_journal *j, sl_journal_fleet *out, sl_err *err)
{
    *out = (sl_journal_fleet){0};
    return j->body->fleet ? j->body->fleet(j, out, err) : SL_OK;
}

void sl_journal_fleet_free(sl_journal_fleet *f)
{
    free(f->peers);
    free(f->jobs);
    free(f->waiting);
    *f = (sl_journal_fleet){0};
}
