/* mover.c - a job's files between its folder here and the one that all servers share.
 *
 * `lock` guards what each slot is at; the thread takes a slot (`busy`), works without the lock, and
 * notes what came of it, unless the pipeline has told something else meanwhile (`asked`). A slot's
 * files are the thread's alone. */
#include "stages/serve/mover.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/pipeline.h"
#include "stages/job/files.h"

#define LOOK_MS 150           /* between two looks at the folders of running jobs */
#define RETRY_NS 1000000000ll /* of a shared folder that failed */
#define STATE_FILE "state.safetensors"

typedef enum { FREE, FETCH, FETCHED, WATCH, SEND_SOME, SEND_ALL, SENT, DROP, CLEAR } work;

typedef struct file {
    struct file *next;
    char name[SL_JOURNAL_FILE], version[SL_JOURNAL_FILE]; /* version "": not in the shared folder */
    uint64_t bytes;
    struct timespec changed; /* the file here, as it was sent or fetched */
    off_t size;
    bool seen; /* in this look */
} file;

typedef struct {
    work is;
    bool busy;
    sl_code rc;
    sl_err err;
    uint64_t bytes;
    char id[SL_JOURNAL_ID];
    int64_t fence;
    unsigned count; /* of versions that were made */
    file *files;
    int64_t sent_ns; /* when some of it was sent, or it began to run */
    int64_t retry_ns;
    bool warned;
} slot;

/* A file that is in the shared folder, and of which the queue has not been told. */
typedef struct {
    file *of;
    char version[SL_JOURNAL_FILE];
    struct stat st;
    uint64_t bytes;
} change;

struct sl_mover {
    sl_mover_ends ends;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool closing, runs;
    bool asked; /* something, since the thread has begun its last look */
    pthread_t thread;
    change changes[SL_JOURNAL_CHANGES]; /* the thread's: of the slot that it is at */
    int change_count;
    slot slots[SL_MOVER_SLOTS];
};

/* ---- a slot's files ---- */

static file *find_file(slot *s, const char *name)
{
    for (file *f = s->files; f; f = f->next)
        if (!strcmp(f->name, name)) return f;
    return NULL;
}

static file *add_file(slot *s, const char *name)
{
    file *f = find_file(s, name);
    if (f || !(f = calloc(1, sizeof *f))) return f;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->next = s->files;
    return s->files = f;
}

static void free_files(slot *s)
{
    for (file *f = s->files, *next; f; f = next) {
        next = f->next;
        free(f);
    }
    s->files = NULL;
}

static uint64_t bytes_of(const slot *s)
{
    uint64_t bytes = 0;
    for (const file *f = s->files; f; f = f->next)
        if (*f->version) bytes += f->bytes;
    return bytes;
}

/* `lines` as the queue has them. */
static sl_code read_files(slot *s, const char *lines, sl_err *err)
{
    for (const char *at = lines ? lines : ""; *at; at += strcspn(at, "\n") + 1) {
        char name[SL_JOURNAL_FILE], version[SL_JOURNAL_FILE];
        unsigned long long bytes;
        if (sscanf(at, "%255s %255s %llu", name, version, &bytes) != 3 || *name == '/' ||
            strstr(name, ".."))
            return sl_fail(err, SL_FORMAT, "job %s has a file without a name", s->id);
        file *f = add_file(s, name);
        if (!f) return sl_fail(err, SL_NOMEM, "no memory for a job's files");
        snprintf(f->version, sizeof f->version, "%s", version);
        f->bytes = bytes;
    }
    return SL_OK;
}

/* ---- fetch ---- */

/* Without it the job cannot be what was asked for; all else is made again. */
static bool is_input(const char *name)
{
    const size_t n = strlen(name);
    return !strcmp(name, "job.json") || !strcmp(name, "noise.safetensors") ||
           !strcmp(name, "fork.safetensors") || (n > 6 && !strcmp(name + n - 6, ".input"));
}

static bool is_shown(const char *name)
{
    return !strcmp(name, SL_STORE_PREVIEW) || !strcmp(name, SL_STORE_THUMBNAIL) ||
           !strcmp(name, SL_STORE_SPRITES);
}

static void note_stat(file *f, const struct stat *st)
{
    f->changed = st->st_mtim;
    f->size = st->st_size;
}

static sl_code fetch_one(sl_mover *m, slot *s, file *f, sl_err *err)
{
    char path[SL_PATH], *slash;
    struct stat st;
    sl_code rc = sl_store_path(path, m->ends.store, s->id, f->name, err);
    if (rc) return rc;
    if ((slash = strrchr(f->name, '/'))) {
        char dir[SL_PATH];
        snprintf(dir, sizeof dir, "%.*s", (int)(strlen(path) - strlen(slash)), path);
        if ((rc = sl_make_dirs(dir, err))) return rc;
    }
    rc = sl_blobs_get(m->ends.blobs, s->id, f->name, f->version, f->bytes, path, err);
    if (rc == SL_GONE && !is_input(f->name)) {
        sl_log_about(s->id, SL_LOG_WARN, "%s: it is made again", err->msg);
        return SL_OK;
    }
    if (!rc && !stat(path, &st)) note_stat(f, &st);
    return rc;
}

static sl_code fetch(sl_mover *m, slot *s, sl_err *err)
{
    sl_code rc;
    sl_store_remove(m->ends.store, s->id); /* of a life before */
    if ((rc = sl_store_make(m->ends.store, s->id, err))) return rc;
    for (file *f = s->files; f && !rc; f = f->next)
        if (!is_shown(f->name)) rc = fetch_one(m, s, f, err);
    return rc;
}

/* ---- watch, send ---- */

/* The queue is told of what was put, all at once; what it replaces goes. */
static sl_code tell_queue(sl_mover *m, slot *s, sl_err *err)
{
    sl_journal_change told[SL_JOURNAL_CHANGES];
    const int n = m->change_count;
    m->change_count = 0;
    if (!n) return SL_OK;
    for (int i = 0; i < n; i++)
        told[i] = (sl_journal_change){.name = m->changes[i].of->name,
                                      .version = m->changes[i].version,
                                      .bytes = m->changes[i].bytes};
    sl_code rc = sl_blobs_settle(m->ends.blobs, s->id, err);
    if (!rc) rc = sl_journal_files(m->ends.journal, s->id, n, told, err);
    for (int i = 0; i < n && rc == SL_GONE; i++)
        sl_blobs_drop(m->ends.blobs, s->id, told[i].name, told[i].version);
    if (rc) return rc; /* else they may count or not: they stay until the job goes */
    for (int i = 0; i < n; i++) {
        const change *c = &m->changes[i];
        if (*told[i].was && strcmp(told[i].was, c->version))
            sl_blobs_drop(m->ends.blobs, s->id, told[i].name, told[i].was);
        memcpy(c->of->version, c->version, sizeof c->version);
        note_stat(c->of, &c->st);
        c->of->bytes = c->bytes;
    }
    s->sent_ns = sl_now_ns();
    return SL_OK;
}

/* A new version of the file, if it is another than the last that was sent. */
static sl_code send_one(sl_mover *m, slot *s, const char *name, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc = m->change_count == SL_JOURNAL_CHANGES ? tell_queue(m, s, err) : SL_OK;
    change *c = &m->changes[m->change_count];
    if (rc || (rc = sl_store_path(path, m->ends.store, s->id, name, err))) return rc;
    if (stat(path, &c->st) || !S_ISREG(c->st.st_mode)) return SL_OK;
    file *f = c->of = add_file(s, name);
    if (!f) return sl_fail(err, SL_NOMEM, "no memory for a job's files");
    f->seen = true;
    if (*f->version && f->size == c->st.st_size && f->changed.tv_sec == c->st.st_mtim.tv_sec &&
        f->changed.tv_nsec == c->st.st_mtim.tv_nsec)
        return SL_OK;
    snprintf(c->version, sizeof c->version, "%lld.%u", (long long)s->fence, ++s->count);
    rc = sl_blobs_put(m->ends.blobs, s->id, name, c->version, path, &c->bytes, err);
    if (!rc) m->change_count++;
    return rc == SL_GONE ? SL_OK : rc; /* it went meanwhile */
}

/* What was put is told of, whether or not all of it could be. */
static sl_code end_sending(sl_mover *m, slot *s, sl_code rc, sl_err *err)
{
    if (!rc) return tell_queue(m, s, err);
    sl_err unused = {0};
    return tell_queue(m, s, &unused) == SL_GONE ? sl_fail(err, SL_GONE, "%s", unused.msg) : rc;
}

/* now: however short ago some of it was sent. */
static sl_code send_some(sl_mover *m, slot *s, bool now, sl_err *err)
{
    char name[64];
    if (!now && sl_now_ns() - s->sent_ns < m->ends.spool_s * 1000000000ll) return SL_OK;
    sl_code rc = send_one(m, s, STATE_FILE, err);
    for (int h = 0; h < SL_HANDOVER_COUNT && !rc; h++) {
        if (SL_HANDOVER[h].how == SL_CHUNKS) continue; /* frames: of a dump, when it is whole */
        snprintf(name, sizeof name, "%s.safetensors", SL_HANDOVER[h].file);
        rc = send_one(m, s, name, err);
    }
    if (!rc) rc = send_one(m, s, SL_STORE_PREVIEW, err);
    return end_sending(m, s, rc, err);
}

/* Every file of the folder, and of the folders in it. */
static sl_code send_folder(sl_mover *m, slot *s, const char *under, sl_err *err)
{
    char dir[SL_PATH], name[SL_PATH], path[SL_PATH];
    struct stat st;
    struct dirent *e;
    sl_code rc = sl_store_path(dir, m->ends.store, s->id, under, err);
    DIR *d = rc ? NULL : opendir(dir);
    if (!rc && !d && errno == ENOENT) return SL_OK; /* somebody has removed it */
    if (!rc && !d) return sl_fail_errno(err, errno, "%s", dir);
    while (!rc && (e = readdir(d))) {
        if (*e->d_name == '.' || strstr(e->d_name, ".tmp")) continue;
        snprintf(name, sizeof name, "%s%s%s", under, *under ? "/" : "", e->d_name);
        if ((rc = sl_path_join(path, dir, e->d_name, err)) || lstat(path, &st)) continue;
        if (S_ISDIR(st.st_mode) && !*under) rc = send_folder(m, s, name, err);
        else if (S_ISREG(st.st_mode)) rc = send_one(m, s, name, err);
    }
    if (d) closedir(d);
    return rc;
}

static sl_code send_all(sl_mover *m, slot *s, uint64_t *bytes, sl_err *err)
{
    for (file *f = s->files; f; f = f->next) f->seen = false;
    sl_code rc = end_sending(m, s, send_folder(m, s, "", err), err);
    *bytes = 0;
    for (const file *f = s->files; f && !rc; f = f->next)
        if (f->seen || is_input(f->name)) *bytes += f->bytes;
    return rc;
}

/* What was not in the folder when all of it was sent; but what was asked for stays: a Redis that
 * comes back without its last moments has the job run again. */
static void drop(sl_mover *m, slot *s)
{
    for (file *f = s->files; f;) {
        sl_journal_change gone[SL_JOURNAL_CHANGES];
        const file *from = f;
        int n = 0;
        for (; f && n < SL_JOURNAL_CHANGES; f = f->next)
            if (!f->seen && *f->version && !is_input(f->name))
                gone[n++] = (sl_journal_change){.name = f->name, .version = ""};
        if (!n || sl_journal_files(m->ends.journal, s->id, n, gone, NULL)) continue;
        for (; from != f; from = from->next)
            if (!from->seen && *from->version && !is_input(from->name))
                sl_blobs_drop(m->ends.blobs, s->id, from->name, from->version);
    }
    sl_store_remove(m->ends.store, s->id);
}

/* ---- the thread ---- */

static void tell(const sl_mover *m)
{
    const uint64_t one = 1;
    while (write(m->ends.wake, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

typedef struct {
    sl_code rc;
    uint64_t bytes;
    bool failed; /* to be tried again; err says why */
    sl_err err;
} outcome;

/* What the slot is at, without the lock; what it is then. */
static work do_one(sl_mover *m, slot *s, work is, outcome *to)
{
    sl_err *err = &to->err;
    sl_code rc = SL_OK;
    switch (is) {
    case FETCH:
        rc = fetch(m, s, err);
        to->failed = rc == SL_SYS || rc == SL_NOMEM;
        if (to->failed) return FETCH;
        to->rc = rc;
        to->bytes = bytes_of(s);
        return FETCHED;
    case WATCH:
        to->rc = rc = send_some(m, s, false, err);
        to->failed = rc && rc != SL_GONE;
        return rc == SL_GONE ? SENT : WATCH; /* the pipeline hears of it from the queue, too */
    case SEND_SOME:
    case SEND_ALL:
        rc = is == SEND_ALL ? send_all(m, s, &to->bytes, err) : send_some(m, s, true, err);
        to->failed = rc && rc != SL_GONE;
        if (to->failed) return is;
        to->rc = rc;
        return SENT;
    case DROP: drop(m, s); return FREE;
    case CLEAR: sl_store_remove(m->ends.store, s->id); return FREE;
    default: return is;
    }
}

static void one_turn(sl_mover *m, slot *s)
{
    outcome to = {0};
    const work is = s->is;
    if (is == FREE || is == FETCHED || is == SENT || sl_now_ns() < s->retry_ns) return;
    s->busy = true;
    pthread_mutex_unlock(&m->lock);
    const work next = do_one(m, s, is, &to);
    const bool again = to.failed;
    if (again && !s->warned)
        sl_log_about(s->id, SL_LOG_WARN, "%s: it is tried again every second", to.err.msg);
    s->warned = again;
    pthread_mutex_lock(&m->lock);
    s->busy = false;
    s->rc = to.rc;
    s->bytes = to.bytes;
    s->err = to.err;
    s->retry_ns = again ? sl_now_ns() + RETRY_NS : 0;
    if (s->is != is) return; /* told something else meanwhile */
    s->is = next;
    if (next == FREE) free_files(s);
    if (next != is) tell(m);
}

/* Nothing is to be done until the pipeline says so. */
static bool is_idle(const sl_mover *m)
{
    for (int i = 0; i < SL_MOVER_SLOTS; i++)
        if (m->slots[i].is != FREE && m->slots[i].is != FETCHED && m->slots[i].is != SENT)
            return false;
    return true;
}

static void *move(void *arg)
{
    sl_mover *m = arg;
    pthread_mutex_lock(&m->lock);
    while (!m->closing) {
        struct timespec until;
        m->asked = false;
        for (int i = 0; i < SL_MOVER_SLOTS && !m->closing; i++) one_turn(m, &m->slots[i]);
        if (m->closing) break;
        if (m->asked) continue; /* of a slot that it was past */
        if (is_idle(m)) {
            pthread_cond_wait(&m->wake, &m->lock);
            continue;
        }
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK_MS * 1000000l;
        if (until.tv_nsec >= 1000000000l) until.tv_sec++, until.tv_nsec -= 1000000000l;
        pthread_cond_timedwait(&m->wake, &m->lock, &until);
    }
    for (int i = 0; i < SL_MOVER_SLOTS; i++) /* nobody would look at these again */
        if (m->slots[i].is == DROP || m->slots[i].is == CLEAR) one_turn(m, &m->slots[i]);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- the pipeline's ---- */

sl_code sl_mover_open(sl_mover **out, const sl_mover_ends *ends, sl_err *err)
{
    sl_mover *m = *out = calloc(1, sizeof *m);
    if (!m) return sl_fail(err, SL_NOMEM, "serve: no memory");
    m->ends = *ends;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->wake, NULL);
    m->runs = !pthread_create(&m->thread, NULL, move, m);
    return m->runs ? SL_OK : sl_fail(err, SL_SYS, "serve: no thread can be made");
}

void sl_mover_close(sl_mover **out)
{
    sl_mover *m = *out;
    if (!m) return;
    pthread_mutex_lock(&m->lock);
    m->closing = true;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
    if (m->runs) pthread_join(m->thread, NULL);
    for (int i = 0; i < SL_MOVER_SLOTS; i++) free_files(&m->slots[i]);
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
    free(m);
    *out = NULL;
}

bool sl_mover_is_free(sl_mover *m, int i)
{
    pthread_mutex_lock(&m->lock);
    const bool is = m->slots[i].is == FREE && !m->slots[i].busy;
    pthread_mutex_unlock(&m->lock);
    return is;
}

bool sl_mover_has(sl_mover *m, const char *id)
{
    bool has = false;
    pthread_mutex_lock(&m->lock);
    for (int i = 0; i < SL_MOVER_SLOTS; i++)
        has |= (m->slots[i].is != FREE || m->slots[i].busy) && !strcmp(m->slots[i].id, id);
    pthread_mutex_unlock(&m->lock);
    return has;
}

static void wake(sl_mover *m)
{
    m->asked = true;
    pthread_cond_signal(&m->wake);
}

static void ask(sl_mover *m, int i, work what)
{
    pthread_mutex_lock(&m->lock);
    m->slots[i].is = what;
    m->slots[i].retry_ns = 0;
    wake(m);
    pthread_mutex_unlock(&m->lock);
}

void sl_mover_fetch(sl_mover *m, int i, const sl_journal_job *job)
{
    pthread_mutex_lock(&m->lock);
    slot *s = &m->slots[i];
    *s = (slot){.fence = job->fence};
    memcpy(s->id, job->id, sizeof s->id);
    s->rc = read_files(s, job->files, &s->err);
    s->is = s->rc ? FETCHED : FETCH;
    wake(m);
    pthread_mutex_unlock(&m->lock);
}

void sl_mover_own(sl_mover *m, int i)
{
    char path[SL_PATH];
    struct stat st;
    pthread_mutex_lock(&m->lock);
    slot *s = &m->slots[i];
    for (file *f = s->files; f && s->is == FETCHED; f = f->next)
        if (is_input(f->name) && *f->version &&
            !sl_store_path(path, m->ends.store, s->id, f->name, NULL) && !stat(path, &st))
            note_stat(f, &st);
    pthread_mutex_unlock(&m->lock);
}

void sl_mover_watch(sl_mover *m, int i)
{
    pthread_mutex_lock(&m->lock);
    m->slots[i].is = WATCH;
    m->slots[i].sent_ns = sl_now_ns();
    wake(m);
    pthread_mutex_unlock(&m->lock);
}

void sl_mover_send(sl_mover *m, int i, bool everything)
{
    ask(m, i, everything ? SEND_ALL : SEND_SOME);
}

bool sl_mover_done(sl_mover *m, int i, sl_code *rc, uint64_t *bytes, sl_err *err)
{
    pthread_mutex_lock(&m->lock);
    const slot *s = &m->slots[i];
    const bool done = (s->is == FETCHED || s->is == SENT) && !s->busy;
    *rc = done ? s->rc : SL_OK;
    *bytes = done ? s->bytes : 0;
    if (done && s->rc) *err = s->err;
    pthread_mutex_unlock(&m->lock);
    return done;
}

void sl_mover_drop(sl_mover *m, int i)
{
    ask(m, i, DROP);
}

void sl_mover_clear(sl_mover *m, int i)
{
    ask(m, i, CLEAR);
}
