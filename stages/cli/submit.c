/* submit.c - `sluice submit` and `sluice run --server`: a command line or a jobs file becomes
 * forms, forms become jobs of a server, and jobs, if they are waited for, become files.
 *
 * Values are checked here as those of a run are, by the same table and in the same words; what
 * depends on the checkpoint is the server's to refuse. */
#include "stages/cli/submit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/json.h"
#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/outcome.h"
#include "stages/cli/terminal.h"
#include "stages/cli/video.h"
#include "stages/job/files.h"
#include "stages/job/params.h"
#include "stages/job/piped.h"

#define FORM_PARTS 64

/* One job, as it will be sent. */
typedef struct {
    json_t *fields; /* option's name -> text */
    char image[SL_PATH], last_image[SL_PATH], noise[SL_PATH];
    sl_outcome wanted;
    int line; /* of the jobs file; 0: none */
} task;

typedef struct {
    const sl_verb *verb;
    sl_client client;
    sl_request checked; /* takes each value, so that a wrong one is refused */
    task base, *tasks;
    int count;
    char jobs_file[SL_PATH];
    bool quiet, waits;
} submission;

/* ---- options become fields ---- */

/* Options that name files here: where the path goes. */
static char *file_of(task *t, const char *option)
{
    struct {
        const char *name;
        char *at;
    } all[] = {{"image", t->image},
               {"last-image", t->last_image},
               {"noise", t->noise},
               {"output", t->wanted.output},
               {"json", t->wanted.report},
               {"trace", t->wanted.trace},
               {"preview", t->wanted.preview},
               {"dump", t->wanted.dump}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i].name, option)) return all[i].at;
    return NULL;
}

static sl_code set_field(task *t, const char *name, const char *text, sl_err *err)
{
    if (json_object_set_new(t->fields, name, json_string(text)))
        return sl_fail(err, SL_ARG, "%s is not valid UTF-8", name);
    return SL_OK;
}

/* One more of the server's LoRA: they stand in one field, with commas between. */
static sl_code add_name(task *t, const char *field, const char *value, sl_err *err)
{
    const char *before = json_string_value(json_object_get(t->fields, field));
    char *all = NULL;
    if (asprintf(&all, "%s%s%s", before ? before : "", before && *before ? "," : "", value) < 0)
        return sl_fail(err, SL_NOMEM, "no memory");
    sl_code rc = set_field(t, field, all, err);
    free(all);
    return rc;
}

/* A key more of the server's params, which are one field. */
static sl_code add_param(task *t, const char *assignment, sl_err *err)
{
    const char *before = json_string_value(json_object_get(t->fields, "params"));
    char *all = strdup(before ? before : "");
    sl_code rc = all ? sl_params_set(&all, assignment, err) : sl_fail(err, SL_NOMEM, "no memory");
    if (!rc) rc = set_field(t, "params", all, err);
    free(all);
    return rc;
}

/* A value that the table has accepted. */
static sl_code set_value(task *t, const sl_option *o, const char *value, sl_err *err)
{
    char *path = file_of(t, o->name);
    if (o->kind == SL_OPTION_LORA) return add_name(t, o->name, value, err);
    if (o->kind == SL_OPTION_SET) return add_param(t, value, err);
    if (!path) return set_field(t, o->name, o->kind == SL_OPTION_FLAG ? "true" : value, err);
    snprintf(path, SL_PATH, "%s", value);
    return strcmp(o->name, "dump") ? SL_OK : set_field(t, "dump", "true", err);
}

static sl_code on_option(void *ctx, const sl_option *o, const char *value, sl_err *err)
{
    submission *s = ctx;
    sl_code rc;
    if (!strcmp(o->name, "quiet")) {
        s->quiet = true;
    } else if (!strcmp(o->name, "jobs")) {
        if (!*value || strlen(value) >= sizeof s->jobs_file)
            return sl_fail(err, SL_ARG, "--jobs has %zu bytes, want 1 to %zu", strlen(value),
                           sizeof s->jobs_file - 1);
        snprintf(s->jobs_file, sizeof s->jobs_file, "%s", value);
    } else {
        if ((rc = sl_option_set(&s->checked, o, value, err))) return rc;
        return set_value(&s->base, o, value, err);
    }
    return SL_OK;
}

/* ---- lines become tasks ---- */

static sl_code copy_task(task *to, const task *from, sl_err *err)
{
    *to = *from;
    to->fields = json_copy(from->fields);
    return to->fields ? SL_OK : sl_fail(err, SL_NOMEM, "no memory");
}

/* A key of a line; the object as a whole was accepted. */
static sl_code set_key(task *t, const char *key, const json_t *v, sl_err *err)
{
    const sl_option *o = NULL;
    char number[64];
    const char *text = json_string_value(v);
    sl_code rc = sl_option_find(&o, strcmp(key, "o") ? key : "output", SL_OPTION_OF_JOB, err);
    if (rc) return rc;
    if (o->kind == SL_OPTION_LORA) { /* a line's replace those of the command line */
        const size_t n = json_is_array(v) ? json_array_size(v) : 1;
        rc = set_field(t, o->name, "", err);
        for (size_t i = 0; i < n && !rc; i++)
            rc = add_name(t, o->name,
                          json_string_value(json_is_array(v) ? json_array_get(v, i) : v), err);
        return rc;
    }
    if (json_is_object(v)) { /* params */
        char *all = json_dumps(v, JSON_COMPACT);
        rc = all ? set_field(t, o->name, all, err) : sl_fail(err, SL_NOMEM, "no memory");
        free(all);
        return rc;
    }
    if (json_is_integer(v))
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v)), text = number;
    else if (json_is_real(v))
        snprintf(number, sizeof number, "%.17g", json_real_value(v)), text = number;
    if (json_is_false(v)) return set_field(t, o->name, "false", err);
    return set_value(t, o, text ? text : "", err);
}

static sl_code read_object(submission *s, task *t, json_t *object, sl_err *err)
{
    json_t *priority = json_incref(json_object_get(object, "priority")), *v;
    const char *key;
    char text[32];
    sl_code rc;
    json_object_del(object, "priority"); /* no option of a run */
    rc = sl_request_read_json(&s->checked, SL_OPTION_OF_JOB, object, err);
    if (!rc) json_object_foreach(object, key, v)
        {
            if ((rc = set_key(t, key, v, err))) break;
        }
    if (!rc && priority && !json_is_integer(priority))
        rc = sl_fail(err, SL_ARG, "priority is no integer, want one");
    if (!rc && priority) {
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(priority));
        rc = set_field(t, "priority", text, err);
    }
    json_decref(priority);
    return rc;
}

static sl_code read_line(submission *s, const char *line, size_t n, int number, sl_err *err)
{
    json_error_t je;
    task *t = &s->tasks[s->count];
    json_t *object = sl_json_load(line, n, JSON_REJECT_DUPLICATES, &je);
    sl_code rc = copy_task(t, &s->base, err);
    s->count++;
    t->line = number;
    if (!rc && !json_is_object(object))
        rc = sl_fail(err, SL_FORMAT, "want one JSON object a line: %.200s",
                     object ? "this is none" : je.text);
    if (!rc) rc = read_object(s, t, object, err);
    if (!rc && !*t->wanted.output) snprintf(t->wanted.output, SL_PATH, "out-%d.mp4", s->count);
    json_decref(object);
    return rc ? sl_context(err, rc, "%s:%d", s->jobs_file, number) : SL_OK;
}

static sl_code read_jobs_file(submission *s, sl_err *err)
{
    const bool piped = !strcmp(s->jobs_file, "-");
    FILE *f = piped ? stdin : fopen(s->jobs_file, "re");
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    sl_code rc = SL_OK;
    if (!f) return sl_fail_errno(err, errno, "--jobs %s", s->jobs_file);
    for (int number = 1; !rc && (n = getline(&line, &size, f)) >= 0; number++) {
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        if (s->count == SL_MAX_RUN_JOBS)
            rc = sl_fail(err, SL_ARG, "%s has more than %d jobs", s->jobs_file, SL_MAX_RUN_JOBS);
        else rc = read_line(s, line, (size_t)n, number, err);
    }
    if (!rc && ferror(f)) rc = sl_fail_errno(err, errno, "--jobs %s", s->jobs_file);
    if (!rc && !s->count) rc = sl_fail(err, SL_ARG, "%s holds no job", s->jobs_file);
    free(line);
    if (!piped) fclose(f);
    return rc;
}

/* ---- checks ---- */

static sl_code check_input(const char *path, const char *option, sl_err *err)
{
    sl_code rc;
    if (!*path) return SL_OK;
    if ((rc = sl_regular_file(path, err))) return sl_context(err, SL_ARG, "--%s", option);
    if (access(path, R_OK)) {
        sl_fail_errno(err, errno, "--%s %s", option, path);
        return err->code = SL_ARG;
    }
    return SL_OK;
}

static sl_code check_task(const submission *s, task *t, sl_err *err)
{
    const sl_outcome *o = &t->wanted;
    const char *const inputs[] = {t->image, t->last_image, t->noise};
    sl_code rc;
    if (!json_object_get(t->fields, "prompt"))
        return sl_fail(err, SL_ARG, "no prompt: want --prompt TEXT (it may be empty)");
    if ((rc = check_input(t->image, "image", err)) ||
        (rc = check_input(t->last_image, "last-image", err)) ||
        (rc = check_input(t->noise, "noise", err)))
        return rc;
    if (!s->waits) return SL_OK;
    for (int i = 0; i < 3; i++)
        if (sl_same_file(o->output, inputs[i]))
            return sl_fail(err, SL_ARG, "output %s is also the input %s", o->output, inputs[i]);
    return sl_outcome_check(o, err);
}

/* What would be written goes nowhere, where nobody waits. */
static sl_code check_waits(const submission *s, sl_err *err)
{
    const sl_outcome *o = &s->base.wanted;
    const char *option = *o->output                ? "output"
                         : *o->dump                ? "dump"
                         : *o->trace               ? "trace"
                         : *o->preview             ? "preview"
                         : s->client.has_timeout_s ? "timeout"
                                                   : NULL;
    if (s->waits || !option) return SL_OK;
    return sl_fail(err, SL_ARG, "--%s wants --wait: without it nothing is fetched", option);
}

/* No two jobs write to one place; the report of all of them has one. */
static sl_code check_pair(const submission *s, const task *a, const task *b, sl_err *err)
{
    const sl_outcome *x = &a->wanted, *y = &b->wanted;
    const struct {
        const char *what, *a, *b;
    } all[] = {{"output", x->output, y->output},
               {"trace", x->trace, y->trace},
               {"preview", x->preview, y->preview},
               {"dump", x->dump, y->dump}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (*all[i].a && (!strcmp(all[i].a, all[i].b) || sl_same_file(all[i].a, all[i].b)))
            return sl_fail(err, SL_ARG, "%s:%d: %s %s is also the %s of line %d", s->jobs_file,
                           a->line, all[i].what, all[i].a, all[i].what, b->line);
    return SL_OK;
}

/* Inputs of all tasks: one pipe may be several's. */
static sl_code take_pipes(const submission *s, sl_err *err)
{
    char **paths = malloc(3 * (size_t)s->count * sizeof *paths);
    if (!paths) return sl_fail(err, SL_NOMEM, "no memory for %d jobs", s->count);
    for (int i = 0; i < s->count; i++) {
        paths[3 * i] = s->tasks[i].image;
        paths[3 * i + 1] = s->tasks[i].last_image;
        paths[3 * i + 2] = s->tasks[i].noise;
    }
    sl_code rc = sl_take_pipes(paths, 3 * s->count, err);
    free(paths);
    return rc;
}

static sl_code check(submission *s, sl_err *err)
{
    sl_code rc = check_waits(s, err);
    if (!rc) rc = take_pipes(s, err);
    for (int i = 0; i < s->count && !rc; i++) {
        task *t = &s->tasks[i];
        if ((rc = check_task(s, t, err)) && t->line)
            sl_context(err, rc, "%s:%d", s->jobs_file, t->line);
        for (int k = 0; k < i && s->waits && !rc; k++) rc = check_pair(s, t, &s->tasks[k], err);
    }
    return rc;
}

static sl_code read_all(submission *s, int argc, char **argv, sl_err *err)
{
    sl_code rc;
    if (!(s->base.fields = json_object()) ||
        !(s->tasks = calloc(SL_MAX_RUN_JOBS, sizeof *s->tasks)))
        return sl_fail(err, SL_NOMEM, "no memory");
    if ((rc = sl_job_init(&s->checked.spec, err)) ||
        (rc = sl_client_parse(&s->client, s->verb, on_option, s, argc, argv, err)))
        return rc;
    s->waits = s->client.wait || !strcmp(s->verb->name, "run");
    if (s->client.has_priority) {
        char text[16];
        snprintf(text, sizeof text, "%d", s->client.priority);
        if ((rc = set_field(&s->base, "priority", text, err))) return rc;
    }
    if (*s->jobs_file) {
        if (*s->base.wanted.output)
            return sl_fail(err, SL_ARG, "--output is given beside --jobs, want it in the lines");
        if ((rc = read_jobs_file(s, err))) return rc;
    } else {
        if ((rc = copy_task(&s->tasks[0], &s->base, err))) return rc;
        s->count = 1;
        if (s->waits && !*s->tasks[0].wanted.output)
            snprintf(s->tasks[0].wanted.output, SL_PATH, "out.mp4");
    }
    return check(s, err);
}

static void free_all(submission *s)
{
    for (int i = 0; s->tasks && i < s->count; i++) {
        json_decref(s->tasks[i].fields);
        sl_outcome_free(&s->tasks[i].wanted);
    }
    free(s->tasks);
    json_decref(s->base.fields);
    sl_job_free(&s->checked.spec);
    sl_client_free(&s->client);
}

/* ---- tasks become jobs ---- */

/* A key of its own makes a submission one that can be sent again when its answer is lost. */
static sl_code make_key(char out[160], const submission *s, const task *t, sl_err *err)
{
    unsigned char random[16];
    if (*s->client.key && t->line) snprintf(out, 160, "%s:%d", s->client.key, t->line);
    else if (*s->client.key) snprintf(out, 160, "%s", s->client.key);
    else {
        if (getrandom(random, sizeof random, 0) != sizeof random)
            return sl_fail(err, SL_SYS, "no random numbers to be had; give --key");
        for (size_t i = 0; i < sizeof random; i++) sprintf(out + 2 * i, "%02x", random[i]);
    }
    return SL_OK;
}

static int make_parts(sl_remote_part parts[FORM_PARTS], const task *t)
{
    const sl_remote_part files[] = {{"input_reference", NULL, t->image},
                                    {"last_image", NULL, t->last_image},
                                    {"noise", NULL, t->noise}};
    const char *name;
    json_t *text;
    int n = 0;
    json_object_foreach(t->fields, name, text)
    {
        if (n < FORM_PARTS - 3)
            parts[n++] = (sl_remote_part){.name = name, .text = json_string_value(text)};
    }
    for (int i = 0; i < 3; i++)
        if (*files[i].file) parts[n++] = files[i];
    return n;
}

static sl_code send_task(const submission *s, sl_remote *r, task *t, json_t **object, sl_err *err)
{
    sl_remote_part parts[FORM_PARTS];
    const int n = make_parts(parts, t);
    char key[160];
    sl_video v;
    sl_code rc = make_key(key, s, t, err);
    if (!rc) rc = sl_remote_call(r, "POST", "/v1/videos", parts, n, key, object, err);
    if (!rc && (rc = sl_video_read(&v, *object, err))) {
        json_decref(*object);
        *object = NULL;
    }
    if (!rc) snprintf(t->wanted.id, sizeof t->wanted.id, "%s", v.id);
    return rc && t->line ? sl_context(err, rc, "%s:%d", s->jobs_file, t->line) : rc;
}

/* What the server will not do of it, as a run here says it. */
static void show_warnings(const json_t *object)
{
    const json_t *line;
    size_t i;
    json_array_foreach(json_object_get(object, "warnings"), i, line)
    {
        sl_log(SL_LOG_WARN, "%s", json_string_value(line) ? json_string_value(line) : "");
    }
}

/* All of them, in order; *sent are on the server, also after an error. */
static sl_code send_all(submission *s, sl_remote *r, int *sent, sl_err *err)
{
    const bool tells = strcmp(s->verb->name, "run") && !s->client.wait;
    sl_code rc = SL_OK;
    for (*sent = 0; *sent < s->count; ++*sent) {
        json_t *object = NULL;
        if ((rc = send_task(s, r, &s->tasks[*sent], &object, err))) break;
        show_warnings(object);
        if (tells && s->client.json) rc = sl_json_to_file(object, "-", err);
        else if (tells) printf("%s\n", s->tasks[*sent].wanted.id);
        else if (!s->quiet) {
            fprintf(stderr, "%s\n", s->tasks[*sent].wanted.id);
        }
        fflush(stdout);
        json_decref(object);
    }
    return rc;
}

/* One file of all reports, as a run with a jobs file writes it. */
static sl_code write_reports(const submission *s, const sl_outcome *jobs, const char *path,
                             sl_err *err)
{
    json_t *all = json_array(), *root;
    for (int i = 0; i < s->count; i++)
        json_array_append(all, jobs[i].said ? jobs[i].said : json_null());
    if (!(root = json_pack("{s:o}", "jobs", all))) return sl_fail(err, SL_NOMEM, "no memory");
    sl_code rc = sl_json_to_file(root, path, err);
    json_decref(root);
    return rc;
}

/* What is wanted of a job that was sent. The reports of a file are written together, at the end. */
static sl_outcome expect(const submission *s, const task *t)
{
    sl_outcome o = t->wanted;
    const char *all = s->base.wanted.report;
    const bool together = *s->jobs_file && *all;
    o.table = together || (!s->quiet && !s->client.json);
    if (together && !strcmp(o.report, all)) *o.report = 0;
    return o;
}

/* Send, and, where it is wanted, wait: a vigil, so that a signal cancels from the first job on. */
static int carry_out(submission *s, sl_remote *r, sl_err *err)
{
    const bool one_report = *s->jobs_file && *s->base.wanted.report;
    sl_outcome *jobs = calloc((size_t)s->count, sizeof *jobs);
    sl_vigil v = {0};
    int sent = 0, status;
    sl_code rc = jobs ? SL_OK : sl_fail(err, SL_NOMEM, "no memory");
    if (!rc && s->waits) rc = sl_vigil_open(&v, r, s->quiet, s->count > 1, true, err);
    if (!rc) rc = send_all(s, r, &sent, err);
    status = sl_remote_exit(r, rc);
    for (int i = 0; jobs && i < sent; i++) jobs[i] = expect(s, &s->tasks[i]);
    if (rc && sent) {
        sl_complain("%d of %d jobs are submitted, then: %s", sent, s->count, err->msg);
        err->code = SL_OK;
        /* as a run: all of them, or none */
        if (s->waits && rc != SL_CANCELLED) sl_vigil_cancel(&v, jobs, sent);
    }
    if (s->waits && v.remote && sent && (!rc || rc == SL_CANCELLED)) {
        r->retry_s = s->client.has_retry_s ? s->client.retry_s : SL_RETRY_WAIT_S;
        const int ended = sl_vigil_wait(&v, jobs, sent);
        if (!status) status = ended;
    }
    for (int i = 0; i < sent && s->client.wait && s->client.json; i++)
        if (jobs[i].video && sl_json_to_file(jobs[i].video, "-", err)) status = SL_EXIT_FAILED;
    if (s->waits && !rc && one_report && write_reports(s, jobs, s->base.wanted.report, err))
        status = SL_EXIT_FAILED;
    for (int i = 0; jobs && i < sent; i++) sl_outcome_free(&jobs[i]);
    free(jobs);
    const sl_vigil ended_by = v;
    sl_vigil_close(&v);
    sl_vigil_leave(&ended_by);
    return status;
}

static int submit(const char *verb, int argc, char **argv)
{
    submission *s = calloc(1, sizeof *s);
    sl_remote r = {0};
    sl_err err = {0};
    int status = SL_EXIT_REFUSED;
    if (!s) return SL_EXIT_FAILED;
    s->verb = sl_verb_find(verb);
    if (!read_all(s, argc, argv, &err) && !sl_client_connect(&r, &s->client, &err))
        status = carry_out(s, &r, &err);
    if (err.code) sl_complain("%s", err.msg);
    sl_remote_close(&r);
    free_all(s);
    free(s);
    return status;
}

int sl_cli_submit(int argc, char **argv)
{
    return submit("submit", argc, argv);
}

bool sl_submit_is_remote(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--server") || !strncmp(argv[i], "--server=", 9)) return true;
    return false;
}

int sl_submit_run(int argc, char **argv)
{
    return submit("run", argc, argv);
}
