/* intake.c - JSON text, jobs files and dumps become a batch's requests. */
#include "stages/job/intake.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"
#include "common/safetensors.h"
#include "stages/job/fork.h"
#include "stages/job/options.h"

/* The noise of the dump. What was kept of a job that failed has none: the seed makes it again, or
 * the file that was given then. */
static sl_code take_noise(sl_request *r, const char *dir, bool whole, sl_err *err)
{
    char path[SL_PATH];
    sl_st *st = NULL;
    sl_code rc = sl_path_join(path, dir, "denoise.safetensors", err);
    if (rc) return rc;
    const bool there = !access(path, F_OK), read = there && !sl_st_open_file(&st, path, NULL),
               lacks = read && !sl_st_find(st, "noise");
    sl_st_close(&st);
    if (!there || (lacks && !whole)) return SL_OK;
    memcpy(r->spec.noise, path, SL_PATH);
    return SL_OK;
}

sl_code sl_batch_replay(sl_batch *b, const char *dir, sl_err *err)
{
    char path[SL_PATH];
    sl_code rc;
    if (strlen(dir) >= sizeof b->replay_dir)
        return sl_fail(err, SL_ARG, "replay: path %.60s... is too long", dir);
    snprintf(b->replay_dir, sizeof b->replay_dir, "%s", dir);
    snprintf(b->base.replay_dir, sizeof b->base.replay_dir, "%s", dir);
    sl_job_free(&b->base.spec);
    if ((rc = sl_path_join(path, dir, "job.json", err))) return rc;
    if (access(path, F_OK))
        return sl_fail(err, SL_ARG,
                       "replay: %.400s is no folder that --dump wrote: no job.json in it", dir);
    if ((rc = sl_job_read(&b->base.spec, path, err))) return sl_context(err, rc, "replay");
    sl_request *r = &b->base;
    r->has_prompt = r->has_shift = r->has_steps = r->has_guidance = r->has_guidance_2 = r->has_fps =
        r->has_crf = r->has_precision = r->has_fbcache = r->has_sampler = true;
    r->has_fbcache_warmup = r->has_fbcache_max_hits = r->has_fbcache_final = true;
    *r->spec.output = *r->spec.preview = 0;
    const bool whole = r->spec.dump;
    r->spec.dump = r->spec.dump_steps = r->spec.dump_blocks = 0;
    if ((rc = sl_job_set_text(&r->spec.dump_blocks_of, "", err))) return rc;
    return take_noise(r, dir, whole, err);
}

static sl_code read_object(sl_request *r, const char *text, size_t n, const char *name, sl_err *err)
{
    json_error_t je;
    json_t *root = sl_json_load(text, n, JSON_REJECT_DUPLICATES, &je);
    sl_code rc;
    if (!root || !json_is_object(root))
        rc = sl_fail(err, SL_FORMAT, "%s: want one JSON object a line: %.200s", name,
                     root ? "this is none" : je.text);
    else if ((rc = sl_request_read_json(r, SL_OPTION_OF_JOB, root, err)))
        sl_context(err, rc, "%s", name);
    json_decref(root);
    return rc;
}

sl_code sl_batch_add_json(sl_batch *b, const char *text, size_t length, const char *name, int line,
                          sl_err *err)
{
    char where[SL_PATH + 16];
    sl_request *r = NULL;
    sl_code rc;
    snprintf(where, sizeof where, line ? "%s:%d" : "%s", name, line);
    if ((rc = sl_batch_add(b, &r, err))) return rc;
    r->line = line;
    if ((rc = read_object(r, text, length, where, err))) return rc;
    if (!*r->spec.output) snprintf(r->spec.output, SL_PATH, "out-%d.mp4", b->job_count);
    return SL_OK;
}

const char *sl_batch_jobs_name(const sl_batch *b)
{
    return strcmp(b->jobs_file, "-") ? b->jobs_file : "stdin";
}

sl_batch sl_batch_last(const sl_batch *b)
{
    sl_batch last = *b;
    last.jobs = b->jobs + b->job_count - 1;
    last.job_count = 1;
    return last;
}

static bool is_stream(const char *path)
{
    struct stat st;
    if (!strcmp(path, "-")) return true;
    return *path && !stat(path, &st) &&
           (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || S_ISCHR(st.st_mode));
}

static sl_code read_jobs_file(sl_batch *b, sl_err *err)
{
    FILE *f = fopen(b->jobs_file, "re");
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    sl_code rc = SL_OK;
    if (!f) return sl_fail_errno(err, errno, "--jobs %s", b->jobs_file);
    for (int number = 1; !rc && (n = getline(&line, &size, f)) >= 0; number++)
        if (strspn(line, " \t\r\n") != (size_t)n)
            rc = sl_batch_add_json(b, line, (size_t)n, b->jobs_file, number, err);
    if (!rc && ferror(f)) rc = sl_fail_errno(err, errno, "--jobs %s", b->jobs_file);
    if (!rc && !b->job_count) rc = sl_fail(err, SL_ARG, "%s holds no job", b->jobs_file);
    free(line);
    fclose(f);
    return rc;
}

/* The jobs are in the spool: nothing else may say what they are. */
static sl_code check_resume(const sl_batch *b, bool replay, sl_err *err)
{
    const sl_option *o;
    if (replay) return sl_fail(err, SL_ARG, "--resume belongs to sluice run");
    for (int i = 0; (o = sl_option_at(i)); i++)
        if (b->base.given >> i & 1)
            return sl_fail(err, SL_ARG, "--resume goes on with jobs as they are, found --%s",
                           o->name);
    if (*b->jobs_file || *b->results || *b->wire)
        return sl_fail(err, SL_ARG, "--resume goes on with jobs as they are, found --%s",
                       *b->jobs_file ? "jobs"
                       : *b->results ? "results"
                                     : "wire");
    if (!*b->conf)
        return sl_fail(err, SL_ARG, "--resume wants --conf FILE, whose run.spool holds the jobs");
    return SL_OK;
}

sl_code sl_batch_expand(sl_batch *b, sl_err *err)
{
    const bool replay = *b->replay_dir != 0;
    sl_request *r = NULL;
    sl_code rc;
    if (replay && b->base.has_seed && !b->base.has_noise) *b->base.spec.noise = 0;
    if (replay) b->base.has_seed = true;
    if (replay && sl_request_given(&b->base, "guidance") &&
        !sl_request_given(&b->base, "guidance-2"))
        b->base.has_guidance_2 = false; /* it follows, as in a run */
    if (b->resume) return check_resume(b, replay, err);
    if (!replay && (*b->from || b->step))
        return sl_fail(err, SL_ARG, "--%s belongs to sluice replay", *b->from ? "from" : "step");
    if (is_stream(b->jobs_file)) {
        if (b->step)
            return sl_fail(err, SL_ARG, "--step wants a jobs file, %s is a stream", b->jobs_file);
        b->jobs_stream = true;
        return SL_OK;
    }
    if (*b->jobs_file) rc = read_jobs_file(b, err);
    else if (!(rc = sl_batch_add(b, &r, err)) && !*r->spec.output)
        snprintf(r->spec.output, SL_PATH, "out.mp4");
    for (int i = 0; i < b->job_count && replay && !rc; i++) sl_fork_note(&b->jobs[i], b->step);
    return rc;
}
