/* job.c - job.json: read, write and check what one job asks for. */
#include "common/job.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/json.h"
#include "common/pipeline.h"

#define MAX_FILE ((size_t)64 << 20) /* of a job.json */

sl_code sl_job_set_text(char **field, const char *value, sl_err *err)
{
    char *copy = strdup(value);
    if (!copy) return sl_fail(err, SL_NOMEM, "job: no memory for %zu bytes of text", strlen(value));
    free(*field);
    *field = copy;
    return SL_OK;
}

/* ---- defaults ---- */

#define INIT_text(field, def)                                                                      \
    if ((rc = sl_job_set_text(&job->field, def, err))) goto fail;
#define INIT_object(field, def) INIT_text(field, def)
#define INIT_path(field, def) snprintf(job->field, SL_PATH, "%s", def);
#define INIT_int(field, def) job->field = def;
#define INIT_u64(field, def) job->field = def;
#define INIT_real(field, def) job->field = def;
#define INIT_flag(field, def) job->field = def;

sl_code sl_job_init(sl_job *job, sl_err *err)
{
    sl_code rc = SL_OK;
    memset(job, 0, sizeof *job);
#define X(kind, name, def) INIT_##kind(name, def)
    SL_JOB_FIELDS(X)
#undef X
    return SL_OK;
fail:
    sl_job_free(job);
    return rc;
}

#define FREE_text(field) free(job->field);
#define FREE_object(field) FREE_text(field)
#define FREE_path(field)
#define FREE_int(field)
#define FREE_u64(field)
#define FREE_real(field)
#define FREE_flag(field)

void sl_job_free(sl_job *job)
{
#define X(kind, name, def) FREE_##kind(name)
    SL_JOB_FIELDS(X)
#undef X
    memset(job, 0, sizeof *job);
}

#define DROP_text(field) to->field = NULL;
#define DROP_object(field) DROP_text(field)
#define DROP_path(field)
#define DROP_int(field)
#define DROP_u64(field)
#define DROP_real(field)
#define DROP_flag(field)
#define COPY_text(field)                                                                           \
    if (!rc) rc = sl_job_set_text(&to->field, from->field, err);
#define COPY_object(field) COPY_text(field)
#define COPY_path(field)
#define COPY_int(field)
#define COPY_u64(field)
#define COPY_real(field)
#define COPY_flag(field)

sl_code sl_job_copy(sl_job *to, const sl_job *from, sl_err *err)
{
    sl_code rc = SL_OK;
    *to = *from;
#define X(kind, name, def) DROP_##kind(name)
    SL_JOB_FIELDS(X)
#undef X
#define X(kind, name, def) COPY_##kind(name)
    SL_JOB_FIELDS(X)
#undef X
    return rc;
}

/* ---- writing ---- */

#define PACK_text(v) json_string(v)
#define PACK_object(v) (*(v) ? json_loads(v, 0, NULL) : json_object())
#define PACK_path(v) json_string(v)
#define PACK_int(v) json_integer(v)
/* a string: JSON numbers end at 2^53 */
#define PACK_u64(v) json_sprintf("%llu", (unsigned long long)(v))
#define PACK_real(v) json_real(v)
#define PACK_flag(v) json_boolean(v)

static sl_code write_all(const char *path, const char *text, size_t n, bool sync, sl_err *err)
{
    char tmp[SL_PATH + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return sl_fail_errno(err, errno, "%s", tmp);
    ssize_t put = write(fd, text, n);
    if (put != (ssize_t)n || (sync && fsync(fd)) || rename(tmp, path)) {
        int e = put >= 0 && put != (ssize_t)n ? ENOSPC : errno;
        close(fd);
        unlink(tmp);
        return sl_fail_errno(err, e, "%s", path);
    }
    close(fd);
    return SL_OK;
}

static sl_code write_job(const sl_job *job, const char *path, bool sync, sl_err *err)
{
    json_t *root = json_object();
    char *text = NULL;
    sl_code rc = SL_OK;
    int bad = !root;
#define X(kind, name, def) bad |= json_object_set_new(root, #name, PACK_##kind(job->name));
    SL_JOB_FIELDS(X)
#undef X
    if (!bad) text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    if (!text) rc = sl_fail(err, SL_FORMAT, "%s: a text field is not valid UTF-8", path);
    else rc = write_all(path, text, strlen(text), sync, err);
    free(text);
    json_decref(root);
    return rc;
}

sl_code sl_job_write(const sl_job *job, const char *path, sl_err *err)
{
    return write_job(job, path, true, err);
}

sl_code sl_job_write_copy(const sl_job *job, const char *path, sl_err *err)
{
    return write_job(job, path, false, err);
}

/* ---- reading ---- */

typedef struct {
    const char *file, *key;
    sl_err *err;
} where;

static sl_code wrong(const where *w, const json_t *v, const char *wanted)
{
    char *found = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    sl_code rc = sl_fail(w->err, SL_ARG, "%s: %s is %.100s, want %s", w->file, w->key,
                         found ? found : "?", wanted);
    free(found);
    return rc;
}

static sl_code take_text(char **out, const json_t *v, const where *w)
{
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
        return wrong(w, v, "a text");
    return sl_job_set_text(out, json_string_value(v), w->err);
}
static sl_code take_object(char **out, const json_t *v, const where *w)
{
    char *text = json_is_object(v) ? json_dumps(v, JSON_COMPACT) : NULL;
    sl_code rc = SL_OK;
    if (!json_is_object(v)) rc = wrong(w, v, "an object");
    else if (!text || strlen(text) > SL_PARAMS_BYTES)
        rc = sl_fail(w->err, SL_ARG, "%s: %s has %zu bytes, want at most %d", w->file, w->key,
                     text ? strlen(text) : 0, SL_PARAMS_BYTES);
    else rc = sl_job_set_text(out, json_object_size(v) ? text : "", w->err);
    free(text);
    return rc;
}
static sl_code take_path(char (*out)[SL_PATH], const json_t *v, const where *w)
{
    if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v) ||
        json_string_length(v) >= SL_PATH)
        return wrong(w, v, "a path of at most 1023 bytes");
    memcpy(*out, json_string_value(v), json_string_length(v) + 1);
    return SL_OK;
}
static sl_code take_int(int *out, const json_t *v, const where *w)
{
    if (!json_is_integer(v) || json_integer_value(v) < -1000000000 ||
        json_integer_value(v) > 1000000000)
        return wrong(w, v, "an integer from -1000000000 to 1000000000");
    *out = (int)json_integer_value(v);
    return SL_OK;
}
static sl_code take_u64(uint64_t *out, const json_t *v, const where *w)
{
    const char *s = json_string_value(v);
    char *end = NULL;
    errno = 0;
    if (json_is_integer(v) && json_integer_value(v) >= 0) *out = (uint64_t)json_integer_value(v);
    else if (s && *s >= '0' && *s <= '9' && (*out = strtoull(s, &end, 10), !*end && !errno))
        return SL_OK;
    else return wrong(w, v, "an integer from 0 to 18446744073709551615");
    return SL_OK;
}
static sl_code take_real(double *out, const json_t *v, const where *w)
{
    if (!json_is_number(v) || !isfinite(json_number_value(v))) return wrong(w, v, "a number");
    *out = json_number_value(v);
    return SL_OK;
}
static sl_code take_flag(int *out, const json_t *v, const where *w)
{
    if (!json_is_boolean(v)) return wrong(w, v, "true or false");
    *out = json_is_true(v);
    return SL_OK;
}

static sl_code take_all(sl_job *job, json_t *root, const char *name, sl_err *err)
{
    const char *key;
    json_t *v;
    sl_code rc = SL_OK;
    json_object_foreach(root, key, v)
    {
        where w = {name, key, err};
        if (0)
            ;
#define X(kind, field, def) else if (!strcmp(key, #field)) rc = take_##kind(&job->field, v, &w);
        SL_JOB_FIELDS(X)
#undef X
        else rc = sl_fail(err, SL_ARG, "%s: unknown key %.60s", name, key);
        if (rc) break;
    }
    if (rc) sl_one_line(err);
    return rc;
}

sl_code sl_job_parse(sl_job *job, const char *json, size_t length, const char *name, sl_err *err)
{
    json_t *root = NULL;
    sl_code rc = sl_json_parse(&root, json, length, name, err);
    if (!rc) rc = take_all(job, root, name, err);
    json_decref(root);
    return rc;
}

sl_code sl_job_read(sl_job *job, const char *path, sl_err *err)
{
    json_t *root = NULL;
    sl_code rc = sl_json_read(&root, path, MAX_FILE, err);
    memset(job, 0, sizeof *job);
    if (!rc && !(rc = sl_job_init(job, err)) && (rc = take_all(job, root, path, err)))
        sl_job_free(job);
    json_decref(root);
    return rc;
}

/* ---- checks ---- */

static sl_code range(const char *name, int v, int lo, int hi, const char *what, sl_err *err)
{
    if (v < lo || v > hi)
        return sl_fail(err, SL_ARG, "%s is %d, want %d to %d (%s)", name, v, lo, hi, what);
    return SL_OK;
}

static sl_code real_range(const char *name, double v, double lo, double hi, const char *what,
                          sl_err *err)
{
    if (!(v >= lo && v <= hi))
        return sl_fail(err, SL_ARG, "%s is %g, want %g to %g (%s)", name, v, lo, hi, what);
    return SL_OK;
}

/* Texts and paths travel as JSON, which is UTF-8. */
static sl_code utf8(const char *name, const char *text, sl_err *err)
{
    json_t *v = text ? json_string(text) : json_null();
    bool ok = v != NULL;
    json_decref(v);
    return ok ? SL_OK : sl_fail(err, SL_ARG, "%s is not valid UTF-8", name);
}
#define UTF8_text(name, v) || (rc = utf8(name, v, err))
#define UTF8_object(name, v)
#define UTF8_path(name, v) || (rc = utf8(name, v, err))
#define UTF8_int(name, v)
#define UTF8_u64(name, v)
#define UTF8_real(name, v)
#define UTF8_flag(name, v)

static sl_code check_size(const sl_job *job, int edge, sl_err *err)
{
    const int w = (job->width + edge / 2) / edge * edge, h = (job->height + edge / 2) / edge * edge;
    if (job->width % edge == 0 && job->height % edge == 0) return SL_OK;
    return sl_fail(err, SL_ARG,
                   "size is %dx%d, want width and height that are multiples of %d (nearest: %dx%d)",
                   job->width, job->height, edge, w ? w : edge, h ? h : edge);
}

sl_code sl_job_check_family(const sl_job *job, const sl_family *f, sl_err *err)
{
    sl_code rc = sl_job_check(job, err);
    return rc ? rc : check_size(job, sl_edge(f), err);
}

sl_code sl_job_check(const sl_job *job, sl_err *err)
{
    sl_code rc = SL_OK;
#define X(kind, field, def) UTF8_##kind(#field, job->field)
    if (rc SL_JOB_FIELDS(X)) return rc;
#undef X
    if ((rc = range("width", job->width, 16, SL_JOB_SIDE, "pixels", err)) ||
        (rc = range("height", job->height, 16, SL_JOB_SIDE, "pixels", err)))
        return rc;
    if ((rc = check_size(job, 16, err))) return rc;
    if (job->frames < 1 || job->frames > 4097 || (job->frames - 1) % 4)
        return sl_fail(err, SL_ARG, "frames is %d, want 4k + 1 (nearest: %d)", job->frames,
                       job->frames < 1      ? 1
                       : job->frames > 4097 ? 4097
                                            : (job->frames + 1) / 4 * 4 + 1);
    if ((rc = real_range("fps", job->fps, 1, 240, "frames a second", err)) ||
        (rc = range("steps", job->steps, 1, 1000, "sampler steps", err)) ||
        (rc = range("crf", job->crf, 0, 51, "x264 quality, lower is better", err)) ||
        (rc = real_range("guidance", job->guidance, 0, 1000, "classifier-free guidance", err)) ||
        (rc = real_range("guidance_2", job->guidance_2, 0, 1000, "the second expert's guidance",
                         err)) ||
        (rc = real_range("shift", job->shift, 0.01, 100, "timestep shift", err)) ||
        (rc = real_range("fbcache", job->fbcache, 0, SL_FBCACHE_MOST,
                         "First Block Cache threshold, 0 is off", err)) ||
        (rc = range("fbcache_warmup", job->fbcache_warmup, 0, 1000, "steps", err)) ||
        (rc = range("fbcache_max_hits", job->fbcache_max_hits, 0, 1000,
                    "hits in a row, 0 is no cap", err)) ||
        (rc = range("fbcache_final", job->fbcache_final, 0, 1000, "steps", err)))
        return rc;
    sl_precision precision;
    if ((rc = sl_precision_read(&precision, job->precision, err))) return rc;
    if (sl_sampler_by_name(job->sampler) < 0) {
        rc = sl_fail(err, SL_ARG, "sampler is %.40s, want unipc, euler or lightx2v", job->sampler);
        sl_one_line(err);
    }
    return rc;
}

void sl_fps_ratio(double fps, int *num, int *den)
{
    /* film and television: whole numbers times 1000 / 1001, as 23.976, 29.97 and their like mean */
    const double whole = rint(fps), ntsc = rint(fps * 1.001);
    *den = 1;
    *num = (int)whole;
    if (fabs(fps - whole) < 1e-9) return;
    if (fabs(fps - ntsc / 1.001) < 0.005 && fabs(fps - ntsc / 1.001) < fabs(fps - whole)) {
        *num = (int)ntsc * 1000;
        *den = 1001;
        return;
    }
    *num = (int)rint(fps * 1000);
    *den = 1000;
    for (int d = 2; d <= 5; d += 3)
        while (*num % d == 0 && *den % d == 0) *num /= d, *den /= d;
}

int sl_job_latent_frames(const sl_job *job)
{
    return (job->frames - 1) / 4 + 1;
}

bool sl_job_distilled(const sl_job *job)
{
    return sl_sampler_by_name(job->sampler) == SL_SAMPLER_LIGHTX2V;
}
