/* artefacts.c - `sluice logs`, `trace` and `report`: what a server keeps of a job besides its
 * video. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/terminal.h"
#include "stages/cli/video.h"
#include "stages/job/report_table.h"

#define LOG_MAX ((size_t)256 << 20)
#define FOLLOW_S 1.0 /* between two looks at a log */

/* ---- logs ---- */

/* A line of JSON as a process says it on stderr; one of another shape stays as it is. */
static void print_line(const char *line, size_t n, bool json)
{
    json_t *o = json ? NULL : json_loadb(line, n, 0, NULL);
    const char *time = json_string_value(json_object_get(o, "time")),
               *process = json_string_value(json_object_get(o, "process")),
               *level = json_string_value(json_object_get(o, "level")),
               *text = json_string_value(json_object_get(o, "message"));
    if (time && process && level && text) {
        sl_print_text(stdout, time, 0);
        putchar(' ');
        sl_print_text(stdout, process, 0);
        printf("[%d] ", (int)json_integer_value(json_object_get(o, "pid")));
        sl_print_text(stdout, level, 0);
        fputs(": ", stdout);
        sl_print_text(stdout, text, 0);
    } else fwrite(line, 1, n, stdout);
    putchar('\n');
    json_decref(o);
}

/* The whole lines from *at on. */
static void print_lines(const sl_buffer *log, size_t *at, bool json, bool ended)
{
    while (*at < log->n) {
        const char *line = log->at + *at, *end = memchr(line, '\n', log->n - *at);
        if (!end && !ended) break;
        const size_t n = end ? (size_t)(end - line) : log->n - *at;
        print_line(line, n, json);
        *at += n + (end != NULL);
    }
    fflush(stdout);
}

static sl_code has_ended(sl_remote *r, const char *id, bool *ended, sl_err *err)
{
    char path[128];
    json_t *object = NULL;
    sl_video v;
    snprintf(path, sizeof path, "/v1/videos/%s", id);
    sl_code rc = sl_remote_call(r, "GET", path, NULL, 0, NULL, &object, err);
    if (!rc && !(rc = sl_video_read(&v, object, err))) *ended = v.ended;
    json_decref(object);
    return rc;
}

static sl_code logs(sl_remote *r, const char *id, const sl_client *c, sl_err *err)
{
    char path[128];
    sl_buffer log = {0};
    size_t at = 0;
    bool ended = !c->follow;
    sl_code rc = SL_OK;
    snprintf(path, sizeof path, "/v1/videos/%s/logs", id);
    while (!rc) {
        /* the state before the log: after the end nothing is added */
        if (c->follow && (rc = has_ended(r, id, &ended, err))) break;
        rc = sl_remote_get(r, path, LOG_MAX, &log, err);
        /* of a job that waits there is none yet */
        if (rc == SL_ARG && r->status == 404 && c->follow) log.n = 0, rc = SL_OK;
        if (rc) break;
        if (log.n < at) at = 0; /* another attempt's file */
        print_lines(&log, &at, c->json, ended);
        if (ended || ferror(stdout)) break;
        rc = sl_remote_sleep(r, FOLLOW_S, err);
    }
    sl_buffer_free(&log);
    return rc;
}

/* ---- trace, report ---- */

static sl_code trace(sl_remote *r, const char *id, const sl_client *c, sl_err *err)
{
    char path[128];
    if (!*c->output && isatty(1))
        return sl_fail(err, SL_ARG, "a trace is for a viewer, want -o FILE (or a pipe)");
    snprintf(path, sizeof path, "/v1/videos/%s/trace", id);
    return sl_remote_file(r, path, *c->output ? c->output : "-", 0, err);
}

static sl_code report(sl_remote *r, const char *id, const sl_client *c, sl_err *err)
{
    char path[128];
    json_t *object = NULL;
    snprintf(path, sizeof path, "/v1/videos/%s/report", id);
    sl_code rc = sl_remote_call(r, "GET", path, NULL, 0, NULL, &object, err);
    if (!rc && (*c->output || c->json))
        rc = sl_json_to_file(object, *c->output ? c->output : "-", err);
    else if (!rc) sl_report_print_json(object, id, stdout);
    json_decref(object);
    return rc;
}

static int one(const char *verb,
               sl_code (*get)(sl_remote *r, const char *id, const sl_client *c, sl_err *err),
               int argc, char **argv)
{
    sl_client c;
    sl_remote r = {0};
    sl_err err = {0};
    int status = SL_EXIT_OK;
    sl_code rc;
    if (sl_client_parse(&c, sl_verb_find(verb), NULL, NULL, argc, argv, &err) ||
        sl_client_connect(&r, &c, &err))
        status = SL_EXIT_REFUSED;
    else if ((rc = get(&r, c.words[0], &c, &err))) status = sl_remote_exit(&r, rc);
    if (status) sl_complain("%s", err.msg);
    sl_remote_close(&r);
    sl_client_free(&c);
    return status;
}

int sl_cli_logs(int argc, char **argv)
{
    return one("logs", logs, argc, argv);
}

int sl_cli_trace(int argc, char **argv)
{
    return one("trace", trace, argc, argv);
}

int sl_cli_report(int argc, char **argv)
{
    return one("report", report, argc, argv);
}
