/* routes.c - the routes, one list. */
#include "stages/serve/routes.h"

#include <ctype.h>
#include <string.h>

#define VIDEO "/v1/videos/{id}"

static const sl_route ROUTES[] = {
    {"POST", "/v1/videos", SL_ROUTE_TOKEN, true, true, sl_on_create, "Ask for a video", NULL,
     "video", "400 401 403 409 413 415 429 500 503 507"},
    {"GET", "/v1/videos", SL_ROUTE_TOKEN, false, false, sl_on_list, "Videos, the newest first",
     "after limit order", "list", "400 401 403"},
    {"GET", VIDEO, SL_ROUTE_TOKEN, false, false, sl_on_get, "Where a video is", NULL, "video",
     "401 403 404"},
    {"DELETE", VIDEO, SL_ROUTE_TOKEN, false, true, sl_on_remove,
     "Remove a video; one that is being made is cancelled", NULL, "deleted", "401 403 404 503"},
    {"POST", VIDEO "/cancel", SL_ROUTE_TOKEN, false, true, sl_on_cancel, "Stop making a video",
     NULL, "video", "401 403 404"},
    {"GET", VIDEO "/content", SL_ROUTE_TOKEN, false, true, sl_on_content,
     "The video, a picture of its beginning, or a sheet of pictures", "variant", NULL,
     "400 401 403 404 409 416 503"},
    {"GET", VIDEO "/events", SL_ROUTE_TOKEN, false, false, sl_on_events,
     "States, steps and previews as they come (text/event-stream)", NULL, NULL, "401 403 404"},
    {"GET", VIDEO "/preview", SL_ROUTE_TOKEN, false, true, sl_on_preview,
     "A small picture of the newest latents (image/png)", NULL, NULL, "401 403 404 503"},
    {"GET", VIDEO "/report", SL_ROUTE_TOKEN, false, true, sl_on_report, "Where a video's time went",
     NULL, "object", "401 403 404 409 503"},
    {"GET", VIDEO "/trace", SL_ROUTE_TOKEN, false, true, sl_on_trace,
     "Its spans, for a trace viewer (Chrome's JSON)", NULL, "object", "401 403 404 409 503"},
    {"GET", VIDEO "/logs", SL_ROUTE_TOKEN, false, true, sl_on_logs,
     "What the stages logged of it, JSON lines", NULL, NULL, "401 403 404 503"},
    {"GET", VIDEO "/dump", SL_ROUTE_TOKEN, false, false, sl_on_dump_list,
     "What there is under /dump/, names and bytes", NULL, "files", "401 403 404 409"},
    {"GET", VIDEO "/dump/{name}", SL_ROUTE_TOKEN, false, true, sl_on_dump,
     "A hand-over of a job that was asked to keep them (dump)", NULL, NULL, "401 403 404 409 503"},
    {"GET", VIDEO "/dump/blocks/{name}", SL_ROUTE_TOKEN, false, true, sl_on_dump_block,
     "Tokens after a block of the first forward (dump_blocks)", NULL, NULL, "401 403 404 409 503"},
    {"GET", "/v1/models", SL_ROUTE_TOKEN, false, false, sl_on_models, "The model that is served",
     NULL, "object", "401 403"},
    {"GET", "/v1/models/{id}", SL_ROUTE_TOKEN, false, false, sl_on_model,
     "The model that is served", NULL, "object", "401 403 404"},
    {"GET", "/v1/defaults", SL_ROUTE_TOKEN, false, false, sl_on_defaults,
     "What a job has unless it says otherwise, and limits", NULL, "object", "401 403"},
    {"GET", "/v1/fleet", SL_ROUTE_TOKEN, false, false, sl_on_fleet,
     "Servers of the queue, what each does, and what waits", NULL, "fleet", "401 403 500 503"},
    {"GET", "/health", SL_ROUTE_OPEN, false, false, sl_on_health, "The process answers", NULL,
     "object", ""},
    {"GET", "/ready", SL_ROUTE_OPEN, false, false, sl_on_ready, "Jobs are taken", NULL, "object",
     "503"},
    {"GET", "/metrics", SL_ROUTE_TOKEN, false, false, sl_on_metrics, "Prometheus' text", NULL, NULL,
     "401 403"},
    {"GET", "/openapi.json", SL_ROUTE_OPEN, false, false, sl_on_openapi, "This description", NULL,
     "object", ""},
    {"GET", "/", SL_ROUTE_OPEN, false, false, sl_on_page, "The page", NULL, NULL, ""},
    {"GET", "/page.css", SL_ROUTE_OPEN, false, false, sl_on_page, "Its looks", NULL, NULL, ""},
    {"GET", "/base.js", SL_ROUTE_OPEN, false, false, sl_on_page, "What the pages share", NULL, NULL,
     ""},
    {"GET", "/page.js", SL_ROUTE_OPEN, false, false, sl_on_page, "Its working", NULL, NULL, ""},
    {"GET", "/fleet", SL_ROUTE_OPEN, false, false, sl_on_page, "The fleet's page", NULL, NULL, ""},
    {"GET", "/fleet.js", SL_ROUTE_OPEN, false, false, sl_on_page, "Its working", NULL, NULL, ""},
    {"GET", "/favicon.ico", SL_ROUTE_OPEN, false, false, sl_on_page, "Nothing", NULL, NULL, ""},
};
#define ROUTE_COUNT ((int)(sizeof ROUTES / sizeof *ROUTES))

const sl_route *sl_route_at(int i)
{
    return i >= 0 && i < ROUTE_COUNT ? &ROUTES[i] : NULL;
}

/* One segment of the path into out. false: another sign, or too long. */
static bool take_segment(const char **path, char *out, size_t room)
{
    size_t n = 0;
    for (; **path && **path != '/'; ++*path, n++) {
        const unsigned char c = (unsigned char)**path;
        if (n + 1 >= room || (!isalnum(c) && !strchr("_-.", c))) return false;
        out[n] = (char)c;
    }
    out[n] = 0;
    return n > 0 && *out != '.';
}

static bool fits(const sl_route *r, const char *path, char *id, size_t id_room, char *name,
                 size_t name_room)
{
    const char *want = r->path;
    while (*want) {
        if (!strncmp(want, "{id}", 4)) {
            if (!take_segment(&path, id, id_room)) return false;
            want += 4;
        } else if (!strncmp(want, "{name}", 6)) {
            if (!take_segment(&path, name, name_room)) return false;
            want += 6;
        } else if (*want++ != *path++) return false;
    }
    return !*path;
}

const sl_route *sl_route_find(const char *path, const char *method, char *id, size_t id_room,
                              char *name, size_t name_room, bool *known)
{
    *known = false;
    if (!strcmp(method, "HEAD")) method = "GET";
    for (int i = 0; i < ROUTE_COUNT; i++) {
        if (!fits(&ROUTES[i], path, id, id_room, name, name_room)) continue;
        *known = true;
        if (!strcmp(ROUTES[i].method, method)) return &ROUTES[i];
    }
    return NULL;
}
