/* record.c - a run's record in run.spool, written by the run and read by the one that goes on. */
#include "stages/job/record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/json.h"
#include "stages/job/files.h"
#include "stages/job/folder.h"
#include "stages/job/options.h"

#define VERSION 1
#define MOST_BYTES ((size_t)64 << 20)
#define END_MS 30000 /* longest wait for the processes of a run whose command is dead */

/* ---- writing ---- */

sl_code sl_record_make(sl_record *rec, const char *spool, sl_err *err)
{
    *rec = (sl_record){.fd = -1};
    sl_code rc = sl_path_join(rec->path, spool, "run-XXXXXX.json", err);
    if (rc) goto done;
    /* not closed on exec: the run's processes hold the lock too */
    if ((rec->fd = mkstemps(rec->path, 5)) < 0 || flock(rec->fd, LOCK_EX | LOCK_NB))
        rc = sl_fail_errno(err, errno, "%s", rec->path);
done:
    if (rc) {
        if (rec->fd >= 0) close(rec->fd);
        *rec = (sl_record){.fd = -1};
    }
    return rc;
}

/* A file that the run writes, so that it is found from any folder; "-" is none. */
static json_t *place_of(const char *path)
{
    char absolute[SL_PATH];
    if (!*path || !strcmp(path, "-") || sl_absolute_path(absolute, path, NULL))
        return json_string(path);
    return json_string(absolute);
}

static json_t *job_row(const sl_request *r)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:i, s:b, s:i}", "dir", r->dir, "dump",
                     place_of(r->dump_dir), "json", place_of(r->json), "trace", place_of(r->trace),
                     "line", r->line, "made_dump", r->made_dump, "stream",
                     r->streams ? r->stream : -1);
}

/* Options of the run itself that name a checkpoint's files, as `--vae FILE`. */
static bool is_file(const sl_option *o)
{
    const size_t files = offsetof(sl_batch, files);
    return o->owner == SL_OPTION_OF_RUN && o->at >= files && o->at < files + sizeof(sl_model_files);
}

static json_t *files_row(const sl_batch *b)
{
    json_t *files = json_object();
    const sl_option *o;
    for (int i = 0; (o = sl_option_at(i)); i++)
        if (is_file(o) && *((const char *)b + o->at))
            json_object_set_new(files, o->name, place_of((const char *)b + o->at));
    return files;
}

sl_code sl_record_write(sl_record *rec, const sl_batch *b, sl_err *err)
{
    json_t *jobs = json_array();
    bool bad = false;
    for (int i = 0; i < b->job_count; i++)
        bad = json_array_append_new(jobs, job_row(&b->jobs[i])) || bad;
    json_t *root =
        json_pack("{s:i, s:i, s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "version", VERSION, "pid",
                  (int)getpid(), "from", b->from, "device", b->device, "precision",
                  b->base.has_precision ? b->base.spec.precision : "", "files", files_row(b),
                  "json", place_of(b->base.json), "trace", place_of(b->base.trace), "jobs", jobs);
    char *text = root && !bad ? json_dumps(root, JSON_INDENT(1)) : NULL;
    sl_code rc = SL_OK;
    if (!text)
        rc = sl_fail(err, SL_FORMAT, "%s: a path of the run is no UTF-8, or no memory", rec->path);
    else if (pwrite(rec->fd, text, strlen(text), 0) != (ssize_t)strlen(text) || fsync(rec->fd))
        rc = sl_fail_errno(err, errno ? errno : ENOSPC, "%s", rec->path);
    rec->written = !rc;
    free(text);
    json_decref(root);
    return rc;
}

void sl_record_close(sl_record *rec, bool done)
{
    if (!*rec->path) return;
    if (done) unlink(rec->path);
    close(rec->fd);
    *rec = (sl_record){.fd = -1};
}

/* ---- reading ---- */

static int is_record(const struct dirent *e)
{
    const size_t n = strlen(e->d_name);
    return n == strlen("run-XXXXXX.json") && !strncmp(e->d_name, "run-", 4) &&
           !strcmp(e->d_name + n - 5, ".json");
}

int sl_record_list(char ***names, const char *spool)
{
    struct dirent **list = NULL;
    const int n = scandir(spool, &list, is_record, alphasort);
    *names = n > 0 ? calloc((size_t)n, sizeof **names) : NULL;
    int count = 0;
    for (int i = 0; i < n; i++) {
        if (*names && ((*names)[count] = strdup(list[i]->d_name))) count++;
        free(list[i]);
    }
    free(list);
    return count;
}

/* The lock, once the processes of a dead run have let go of it. */
static sl_code lock(int fd, int pid, const char *path, sl_err *err)
{
    const int64_t until = sl_now_ns() + END_MS * 1000000ll;
    while (flock(fd, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK) return sl_fail_errno(err, errno, "%s", path);
        if (pid > 0 && (!kill(pid, 0) || errno == EPERM))
            return sl_fail(err, SL_BUSY, "%s: its run is still there", path);
        if (sl_now_ns() > until)
            return sl_fail(err, SL_BUSY, "%s: the processes of its run are still there after %d s",
                           path, END_MS / 1000);
        usleep(20000);
    }
    return SL_OK;
}

static void take_path(sl_json_reader *r, const char *key, char *to, size_t room)
{
    const char *text = sl_json_string(r, key, "");
    if (strlen(text) >= room) sl_json_fail(r, key, "at most %zu bytes", room - 1);
    else snprintf(to, room, "%s", text);
}

/* A job that has not ended, as the batch's next; any other is left out. */
static sl_code take_job(sl_batch *b, const json_t *row, const char *path, sl_err *err)
{
    sl_json_reader r = {.object = row, .file = path, .err = err};
    char file[SL_PATH];
    sl_request *q;
    sl_code rc;
    if ((rc = sl_batch_add(b, &q, err))) return rc;
    take_path(&r, "dir", q->dir, sizeof q->dir);
    take_path(&r, "dump", q->dump_dir, sizeof q->dump_dir);
    take_path(&r, "json", q->json, sizeof q->json);
    take_path(&r, "trace", q->trace, sizeof q->trace);
    q->line = sl_json_int(&r, "line", 0, 0, 1 << 30);
    q->made_dump = sl_json_bool(&r, "made_dump", false);
    q->stream = sl_json_int(&r, "stream", -1, -1, 1 << 20);
    q->streams = q->stream >= 0;
    if (r.code) return r.code;
    if ((rc = sl_path_join(file, q->dir, "job.json", err))) return rc;
    if (access(file, F_OK)) {
        sl_request_close_dir(q); /* what its end had left to be removed */
        sl_job_free(&q->spec);
        b->job_count--;
        return SL_OK;
    }
    sl_job_free(&q->spec);
    return sl_job_read(&q->spec, file, err);
}

static sl_code take_batch(sl_batch *b, const json_t *root, const char *path, sl_err *err)
{
    sl_json_reader r = {.object = root, .file = path, .err = err};
    const json_t *files = json_object_get(root, "files"), *jobs = json_object_get(root, "jobs"),
                 *row;
    const sl_option *o;
    const char *key;
    json_t *value;
    size_t i;
    sl_code rc = SL_OK;
    sl_json_int(&r, "version", 0, VERSION, VERSION);
    take_path(&r, "from", b->from, sizeof b->from);
    if (!*b->device) take_path(&r, "device", b->device, sizeof b->device);
    take_path(&r, "precision", b->base.spec.precision, sizeof b->base.spec.precision);
    b->base.has_precision = *b->base.spec.precision;
    take_path(&r, "json", b->base.json, sizeof b->base.json);
    take_path(&r, "trace", b->base.trace, sizeof b->base.trace);
    if (r.code) return r.code;
    json_object_foreach((json_t *)files, key, value)
    {
        if ((rc = sl_option_find(&o, key, SL_OPTION_OF_RUN, err)) ||
            (rc = is_file(o) && json_is_string(value)
                      ? sl_option_set(b, o, json_string_value(value), err)
                      : sl_fail(err, SL_FORMAT, "%s: %.60s is no file of a checkpoint", path, key)))
            return rc;
    }
    json_array_foreach(jobs, i, row)
    {
        if ((rc = take_job(b, row, path, err))) return rc;
    }
    return SL_OK;
}

sl_code sl_record_take(sl_record *rec, sl_batch *b, const char *spool, const char *name,
                       sl_err *err)
{
    json_t *root = NULL;
    sl_err broken = {0};
    sl_code rc;
    *rec = (sl_record){.fd = -1};
    if ((rc = sl_path_join(rec->path, spool, name, err))) goto done;
    if ((rec->fd = open(rec->path, O_RDWR)) < 0) {
        rc = sl_fail_errno(err, errno, "%s", rec->path);
        goto done;
    }
    /* one that is not whole is of a run that had not begun: it makes its folders now, or is dead */
    const bool whole = !sl_json_read(&root, rec->path, MOST_BYTES, &broken);
    const json_t *pid = json_object_get(root, "pid");
    if ((rc = lock(rec->fd, whole ? (int)json_integer_value(pid) : 1, rec->path, err))) goto done;
    if (whole) rc = take_batch(b, root, rec->path, err);
    else sl_request_sweep(spool, rec->path);
    rec->written = whole;
done:
    json_decref(root);
    if (rc || !b->job_count) sl_record_close(rec, !rc);
    return rc;
}
