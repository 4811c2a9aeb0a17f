/* status.c - `sluice status` and `sluice list`: how far jobs are, one in full, many in a table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "stages/cli/client.h"
#include "stages/cli/terminal.h"
#include "stages/cli/video.h"

#define PAGE 100 /* most that a server tells at once */
#define DEFAULT_LIMIT 20
#define MOST 1000000 /* with --all */
#define PROMPT_AT 94 /* column of a prompt in the table */
#define NARROW (PROMPT_AT + 10)

/* ---- one ---- */

static void print_time(const char *what, int64_t at)
{
    char text[32], age[16];
    struct tm tm;
    time_t t = (time_t)at;
    if (at <= 0 || !localtime_r(&t, &tm) || !strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm))
        return;
    sl_format_seconds(age, difftime(time(NULL), t));
    printf("  %-10s %s, %s ago\n", what, text, age);
}

static void print_text(const char *what, const char *text)
{
    if (!*text) return;
    printf("  %-10s ", what);
    sl_print_text(stdout, text, 0);
    putchar('\n');
}

static void print_status(const sl_video *v, const json_t *o)
{
    char told[64], bytes[16];
    const json_t *seed = json_object_get(o, "seed");
    sl_video_tell(v, told);
    printf("%s  %s, %d %%", v->id, told, v->progress);
    if (*v->stage && !v->ended) {
        printf(", ");
        sl_print_text(stdout, v->stage, 16);
        if (v->step >= 0) printf(" %d/%d", v->step, v->stage_steps);
    }
    putchar('\n');
    print_text("error", v->cancelled ? "" : v->error);
    print_text("prompt", v->prompt);
    print_text("negative", v->negative);
    print_text("model", v->model);
    printf("  %-10s %dx%d, %d frames at %g fps, %d steps, guidance %g", "video", v->width,
           v->height, v->frames, v->fps, v->steps, v->guidance);
    if (json_is_integer(seed)) printf(", seed %lld", (long long)json_integer_value(seed));
    else if (json_is_string(seed)) { /* one that a JSON number does not hold */ printf(", seed ");
        sl_print_text(stdout, json_string_value(seed), 24);
    }
    putchar('\n');
    if (v->priority) printf("  %-10s %d\n", "priority", v->priority);
    if (v->attempts > 1) printf("  %-10s %d\n", "attempts", v->attempts);
    print_time("created", v->created_at);
    print_time("started", v->started_at);
    print_time("ended", v->completed_at);
    if (v->bytes) {
        sl_format_bytes(bytes, (double)v->bytes);
        printf("  %-10s %s\n", "output", bytes);
    }
}

int sl_cli_status(int argc, char **argv)
{
    sl_client c;
    sl_remote r = {0};
    sl_err err = {0};
    int status = SL_EXIT_OK;
    if (sl_client_parse(&c, sl_verb_find("status"), NULL, NULL, argc, argv, &err) ||
        sl_client_connect(&r, &c, &err)) {
        sl_complain("%s", err.msg);
        status = SL_EXIT_REFUSED;
    }
    const int count = status ? 0 : c.count;
    for (int i = 0; i < count && status != SL_EXIT_NO_SERVER; i++) {
        char path[128];
        json_t *object = NULL;
        sl_video v;
        snprintf(path, sizeof path, "/v1/videos/%s", c.words[i]);
        sl_code rc = sl_remote_call(&r, "GET", path, NULL, 0, NULL, &object, &err);
        if (!rc) rc = sl_video_read(&v, object, &err);
        if (!rc && c.json) rc = sl_json_to_file(object, "-", &err);
        else if (!rc) print_status(&v, object);
        if (rc) {
            sl_complain("%s: %s", c.words[i], err.msg);
            status = sl_remote_exit(&r, rc);
        }
        json_decref(object);
    }
    sl_remote_close(&r);
    sl_client_free(&c);
    return status;
}

/* ---- many ---- */

static void print_head(int columns)
{
    if (columns && columns < NARROW) printf("%-38s %-11s %4s\n", "id", "status", "");
    else
        printf("%-38s %-11s %4s  %-18s %-9s %-7s %s\n", "id", "status", "", "waits", "size", "age",
               "prompt");
}

/* On a narrow terminal the first columns alone. */
static void print_row(const sl_video *v, int columns)
{
    char waits[40] = "", eta[16] = "", size[24] = "", age[16] = "";
    const char *status = v->cancelled                        ? "cancelled"
                         : !strcmp(v->status, "in_progress") ? "in progress"
                                                             : v->status;
    printf("%-38s %-11s %3d%%", v->id, status, v->progress);
    if (columns && columns < NARROW) {
        putchar('\n');
        return;
    }
    if (v->eta_s >= 0 && !v->ended) sl_format_seconds(eta, v->eta_s);
    if (v->position >= 0)
        snprintf(waits, sizeof waits, "%d before%s%s", v->position, *eta ? ", " : "", eta);
    else snprintf(waits, sizeof waits, "%s", eta);
    if (v->width > 0) snprintf(size, sizeof size, "%dx%d", v->width, v->height);
    if (v->created_at > 0) sl_format_seconds(age, difftime(time(NULL), (time_t)v->created_at));
    printf("  %-18s %-9s %-7s ", waits, size, age);
    sl_print_text(stdout, v->prompt, columns ? columns - PROMPT_AT : 0);
    putchar('\n');
}

/* A page of at most `limit` behind `after`; *more: there are others behind it. */
static sl_code ask_page(sl_remote *r, const sl_client *c, const char *after, int limit,
                        json_t **data, bool *more, sl_err *err)
{
    char path[256];
    json_t *page = NULL;
    snprintf(path, sizeof path, "/v1/videos?limit=%d&order=%s%s%s", limit,
             *c->order ? c->order : "desc", *after ? "&after=" : "", after);
    sl_code rc = sl_remote_call(r, "GET", path, NULL, 0, NULL, &page, err);
    if (rc) return rc;
    *data = json_incref(json_object_get(page, "data"));
    *more = json_is_true(json_object_get(page, "has_more"));
    json_decref(page);
    if (json_is_array(*data)) return SL_OK;
    json_decref(*data);
    *data = NULL;
    return sl_fail(err, SL_FORMAT, "answer: data is no array of videos");
}

static sl_code show_page(const sl_client *c, const json_t *data, json_t *all, char last[72],
                         int columns, sl_err *err)
{
    size_t i;
    json_t *o;
    sl_video v;
    sl_code rc;
    json_array_foreach(data, i, o)
    {
        if ((rc = sl_video_read(&v, o, err))) return rc;
        snprintf(last, 72, "%s", v.id);
        if (c->ids) printf("%s\n", v.id);
        else if (c->json) json_array_append(all, o);
        else print_row(&v, columns);
    }
    return SL_OK;
}

static sl_code list(sl_remote *r, const sl_client *c, sl_err *err)
{
    int left = c->all ? MOST : c->has_limit ? c->limit : DEFAULT_LIMIT;
    const int columns = sl_terminal_columns();
    char last[72];
    json_t *all = json_array(), *root;
    bool more = true, head = !c->ids && !c->json;
    sl_code rc = all ? SL_OK : sl_fail(err, SL_NOMEM, "no memory");
    snprintf(last, sizeof last, "%s", c->after);
    while (!rc && more && left > 0) {
        json_t *data = NULL;
        char before[72];
        const int limit = left > PAGE ? PAGE : left;
        memcpy(before, last, sizeof before);
        if ((rc = ask_page(r, c, last, limit, &data, &more, err))) break;
        if (head && json_array_size(data)) print_head(columns);
        head = head && !json_array_size(data);
        rc = show_page(c, data, all, last, columns, err);
        left -= (int)json_array_size(data);
        /* a page that does not get further would be the last of many */
        if (!json_array_size(data) || !strcmp(before, last)) more = false;
        json_decref(data);
    }
    if (!rc && c->json) {
        root = json_pack("{s:s, s:O, s:b}", "object", "list", "data", all, "has_more", more);
        rc = root ? sl_json_to_file(root, "-", err) : sl_fail(err, SL_NOMEM, "no memory");
        json_decref(root);
    } else if (!rc && more && !c->ids) printf("more: --all, or --after %s\n", last);
    json_decref(all);
    return rc;
}

int sl_cli_list(int argc, char **argv)
{
    sl_client c;
    sl_remote r = {0};
    sl_err err = {0};
    int status = SL_EXIT_OK;
    sl_code rc;
    if (sl_client_parse(&c, sl_verb_find("list"), NULL, NULL, argc, argv, &err) ||
        sl_client_connect(&r, &c, &err))
        status = SL_EXIT_REFUSED;
    else if ((rc = list(&r, &c, &err))) status = sl_remote_exit(&r, rc);
    if (status) sl_complain("%s", err.msg);
    sl_remote_close(&r);
    sl_client_free(&c);
    return status;
}
