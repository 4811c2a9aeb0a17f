/* openapi.c - the description of the interface, made from the tables that the server works by:
 * routes, options, other clients' names. */
#include "stages/serve/routes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stages/job/options.h"
#include "stages/serve/form.h"

static json_t *ref(const char *name)
{
    return json_pack("{s:o}", "$ref", json_sprintf("#/components/schemas/%s", name));
}

static json_t *typed(const char *type)
{
    return json_pack("{s:s}", "type", type);
}

static json_t *nullable(const char *type)
{
    return json_pack("{s:[s, s]}", "type", type, "null");
}

/* ---- what is asked for ---- */

static json_t *option_schema(const sl_option *o)
{
    json_t *s = NULL;
    switch (o->kind) {
    case SL_OPTION_INT:
    case SL_OPTION_I64:
    case SL_OPTION_SEED: s = typed("integer"); break;
    case SL_OPTION_RATE:
    case SL_OPTION_REAL: s = typed("number"); break;
    case SL_OPTION_FLAG: s = typed("boolean"); break;
    case SL_OPTION_PARAMS: s = typed("object"); break;
    case SL_OPTION_LORA:
        s = json_pack("{s:[{s:s}, {s:s, s:{s:s}}]}", "anyOf", "type", "string", "type", "array",
                      "items", "type", "string");
        json_object_set_new(s, "description", json_string(SL_FORM_LORA ", or an array of them"));
        return s;
    default: s = typed("string");
    }
    json_object_set_new(s, "description", json_string(o->what));
    return s;
}

static json_t *name_schema(const char *what, const char *type, bool multipart)
{
    json_t *s;
    if (strcmp(type, "file")) s = typed(type);
    else if (multipart) s = json_pack("{s:s, s:s}", "type", "string", "format", "binary");
    else
        s = json_pack("{s:[{s:s}, {s:s, s:[s], s:{s:{s:s}}, s:b}]}", "anyOf", "type", "string",
                      "type", "object", "required", "image_url", "properties", "image_url", "type",
                      "string", "additionalProperties", 0);
    json_object_set_new(s, "description", json_string(what));
    return s;
}

static json_t *request_schema(bool multipart)
{
    json_t *all = json_object();
    const char *name, *what, *type;
    for (int i = 0; (name = sl_form_name(i, &what, &type)); i++)
        json_object_set_new(all, name, name_schema(what, type, multipart));
    for (int i = 0; sl_option_at(i); i++)
        if (sl_form_has_option(i))
            json_object_set_new(all, sl_option_at(i)->name, option_schema(sl_option_at(i)));
    return json_pack("{s:s, s:o, s:[s], s:b}", "type", "object", "properties", all, "required",
                     "prompt", "additionalProperties", 0);
}

/* ---- what is answered ---- */

/* null: it may be. */
typedef struct {
    const char *name, *type;
    bool null;
} field;
static const field VIDEO[] = {
    {"id", "string", false},
    {"object", "string", false},
    {"model", "string", false},
    {"status", "string", false},
    {"progress", "integer", false},
    {"created_at", "integer", false},
    {"started_at", "integer", true},
    {"completed_at", "integer", true},
    {"expires_at", "integer", true},
    {"prompt", "string", false},
    {"negative_prompt", "string", false},
    {"seconds", "string", false},
    {"size", "string", false},
    {"width", "integer", false},
    {"height", "integer", false},
    {"frames", "integer", false},
    {"fps", "number", false},
    {"steps", "integer", false},
    {"guidance", "number", false},
    {"priority", "integer", false},
    {"attempts", "integer", false},
    {"stage", "string", true},
    {"step", "integer", true},
    {"stage_steps", "integer", true},
    {"queue_position", "integer", true},
    {"eta_seconds", "number", true},
    {"output_bytes", "integer", true},
    {"preview", "boolean", false},
    {"remixed_from_video_id", "string", true},
    {"waiting_for", "string", true},
    {"lora", "string", false},
};

static json_t *video_schema(void)
{
    json_t *all = json_object(), *required = json_array();
    for (size_t i = 0; i < sizeof VIDEO / sizeof *VIDEO; i++) {
        json_object_set_new(all, VIDEO[i].name,
                            VIDEO[i].null ? nullable(VIDEO[i].type) : typed(VIDEO[i].type));
        json_array_append_new(required, json_string(VIDEO[i].name));
    }
    json_object_set_new(json_object_get(all, "status"), "enum",
                        json_pack("[s, s, s, s]", "queued", "in_progress", "completed", "failed"));
    json_object_set_new(json_object_get(all, "progress"), "minimum", json_integer(0));
    json_object_set_new(json_object_get(all, "progress"), "maximum", json_integer(100));
    json_object_set_new(all, "seed", json_pack("{s:[s, s]}", "type", "integer", "string"));
    json_object_set_new(all, "warnings",
                        json_pack("{s:s, s:{s:s}, s:s}", "type", "array", "items", "type", "string",
                                  "description",
                                  "what was asked for and will not be done, a line each"));
    json_array_append_new(required, json_string("warnings"));
    json_object_set_new(all, "error",
                        json_pack("{s:[s, s], s:{s:{s:s}, s:{s:s}}}", "type", "object", "null",
                                  "properties", "code", "type", "string", "message", "type",
                                  "string"));
    json_array_append_new(required, json_string("error"));
    return json_pack("{s:s, s:o, s:o}", "type", "object", "properties", all, "required", required);
}

/* null: it may be. */
static json_t *object_of(const field *of, size_t n)
{
    json_t *all = json_object(), *required = json_array();
    for (size_t i = 0; i < n; i++) {
        json_object_set_new(all, of[i].name, of[i].null ? nullable(of[i].type) : typed(of[i].type));
        json_array_append_new(required, json_string(of[i].name));
    }
    return json_pack("{s:s, s:o, s:o}", "type", "object", "properties", all, "required", required);
}

/* As stages/serve/fleet.c prints it; a server may tell more of itself. */
static json_t *fleet_schema(void)
{
    static const field QUEUE[] = {{"waiting", "integer", false},
                                  {"running", "integer", false},
                                  {"oldest_seconds", "integer", false},
                                  {"stuck", "integer", false},
                                  {"stuck_why", "string", true}},
                       SERVER[] = {{"name", "string", false},
                                   {"silent_seconds", "number", false},
                                   {"up", "boolean", false},
                                   {"role", "string", true},
                                   {"jobs", "array", false}},
                       JOB[] = {{"id", "string", true},        {"stage", "string", true},
                                {"step", "integer", true},     {"stage_steps", "integer", true},
                                {"since", "integer", true},    {"attempts", "integer", false},
                                {"progress", "integer", false}},
                       WAITING[] = {{"id", "string", true},
                                    {"created_at", "integer", false},
                                    {"priority", "integer", false},
                                    {"attempts", "integer", false},
                                    {"waiting_for", "string", true}},
                       FLEET[] = {
                           {"object", "string", false},          {"shared", "boolean", false},
                           {"servers_in_all", "integer", false}, {"lease_seconds", "number", true},
                           {"taken_over", "integer", false},     {"fenced", "integer", false},
                           {"given_up", "integer", false}};
#define OBJECT(of) object_of(of, sizeof(of) / sizeof *(of))
    json_t *fleet = OBJECT(FLEET), *server = OBJECT(SERVER),
           *all = json_object_get(fleet, "properties");
    json_object_set_new(json_object_get(json_object_get(server, "properties"), "jobs"), "items",
                        OBJECT(JOB));
    json_t *queue = OBJECT(QUEUE);
    json_object_set_new(json_object_get(queue, "properties"), "oldest",
                        json_pack("{s:s, s:o}", "type", "array", "items", OBJECT(WAITING)));
    json_object_set_new(all, "queue", queue);
    json_object_set_new(all, "data", json_pack("{s:s, s:o}", "type", "array", "items", server));
#undef OBJECT
    json_array_append_new(json_object_get(fleet, "required"), json_string("queue"));
    json_array_append_new(json_object_get(fleet, "required"), json_string("data"));
    return fleet;
}

static json_t *schemas(void)
{
    json_t *all = json_object();
    json_object_set_new(all, "video", video_schema());
    json_object_set_new(
        all, "list",
        json_pack("{s:s, s:{s:{s:s}, s:{s:s, s:o}, s:o, s:o, s:{s:s}}, s:[s, s, s]}", "type",
                  "object", "properties", "object", "type", "string", "data", "type", "array",
                  "items", ref("video"), "first_id", nullable("string"), "last_id",
                  nullable("string"), "has_more", "type", "boolean", "required", "object", "data",
                  "has_more"));
    json_object_set_new(all, "deleted",
                        json_pack("{s:s, s:{s:{s:s}, s:{s:s}, s:{s:s}}, s:[s, s, s]}", "type",
                                  "object", "properties", "id", "type", "string", "object", "type",
                                  "string", "deleted", "type", "boolean", "required", "id",
                                  "object", "deleted"));
    json_object_set_new(
        all, "files",
        json_pack("{s:s, s:{s:{s:s}, s:{s:s, s:{s:s, s:{s:{s:s}, s:{s:s}}, s:[s, s]}}}, s:[s, s]}",
                  "type", "object", "properties", "object", "type", "string", "data", "type",
                  "array", "items", "type", "object", "properties", "name", "type", "string",
                  "bytes", "type", "integer", "required", "name", "bytes", "required", "object",
                  "data"));
    json_object_set_new(all, "fleet", fleet_schema());
    json_object_set_new(all, "object", typed("object"));
    json_object_set_new(
        all, "error",
        json_pack("{s:s, s:{s:{s:s, s:{s:{s:s}, s:{s:s}, s:o, s:{s:s}}, s:[s, s, s, s]}}, s:[s]}",
                  "type", "object", "properties", "error", "type", "object", "properties",
                  "message", "type", "string", "type", "type", "string", "param",
                  nullable("string"), "code", "type", "string", "required", "message", "type",
                  "param", "code", "required", "error"));
    return all;
}

static json_t *json_content(const char *schema)
{
    return json_pack("{s:{s:o}}", "application/json", "schema", ref(schema));
}

static const char *content_type(const sl_route *r)
{
    if (strstr(r->path, "/content")) return "video/mp4";
    if (strstr(r->path, "/events")) return "text/event-stream";
    if (strstr(r->path, "/preview")) return "image/png";
    if (strstr(r->path, "/logs")) return "application/jsonl";
    if (strstr(r->path, "/dump/")) return "application/octet-stream";
    if (strstr(r->path, "/metrics")) return "text/plain";
    return strstr(r->path, ".css")  ? "text/css"
           : strstr(r->path, ".js") ? "text/javascript"
                                    : "text/html";
}

static json_t *responses(const sl_route *r)
{
    json_t *all = json_object();
    if (!strcmp(r->path, "/favicon.ico"))
        json_object_set_new(all, "204", json_pack("{s:s}", "description", "nothing"));
    else if (r->answer)
        json_object_set_new(
            all, "200",
            json_pack("{s:s, s:o}", "description", "done", "content", json_content(r->answer)));
    else {
        json_t *content = json_pack("{s:{}}", content_type(r));
        if (strstr(r->path, "/content")) json_object_set_new(content, "image/jpeg", json_object());
        if (strstr(r->path, "/dump/{"))
            json_object_set_new(content, "application/json", json_object());
        json_object_set_new(all, "200",
                            json_pack("{s:s, s:o}", "description", "done", "content", content));
        if (strstr(r->path, "/content") || strstr(r->path, "/dump/") || strstr(r->path, "/preview"))
            json_object_set_new(all, "206", json_pack("{s:s}", "description", "the range"));
        json_object_set_new(all, "304", json_pack("{s:s}", "description", "as it was"));
        if (strstr(r->path, "/content"))
            json_object_set_new(all, "302",
                                json_pack("{s:s}", "description", "a link to the store's"));
    }
    for (const char *at = r->codes; *at; at += strcspn(at, " "), at += strspn(at, " ")) {
        char code[8];
        snprintf(code, sizeof code, "%.*s", (int)strcspn(at, " "), at);
        if (r->answer && !strcmp(r->path, "/ready"))
            json_object_set_new(all, code,
                                json_pack("{s:s, s:o}", "description", "not now", "content",
                                          json_content("object")));
        else
            json_object_set_new(all, code,
                                json_pack("{s:s, s:o}", "description", "refused", "content",
                                          json_content("error")));
    }
    return all;
}

static json_t *parameter(const char *name, size_t n, const char *in)
{
    json_t *schema = typed("string");
    const bool path = !strcmp(in, "path");
    if (n == 5 && !strncmp(name, "limit", n)) {
        json_decref(schema);
        schema = json_pack("{s:s, s:i, s:i}", "type", "integer", "minimum", 1, "maximum", 100);
    } else if (n == 5 && !strncmp(name, "order", n))
        json_object_set_new(schema, "enum", json_pack("[s, s]", "asc", "desc"));
    else if (!strncmp(name, "variant", n))
        json_object_set_new(schema, "enum",
                            json_pack("[s, s, s]", "video", "thumbnail", "spritesheet"));
    return json_pack("{s:o, s:s, s:b, s:o}", "name", json_stringn(name, n), "in", in, "required",
                     path, "schema", schema);
}

static json_t *parameters(const sl_route *r)
{
    json_t *all = json_array();
    if (strstr(r->path, "{id}")) json_array_append_new(all, parameter("id", 2, "path"));
    if (strstr(r->path, "{name}")) json_array_append_new(all, parameter("name", 4, "path"));
    for (const char *at = r->query ? r->query : ""; *at; at += strspn(at, " ")) {
        const size_t n = strcspn(at, " ");
        json_array_append_new(all, parameter(at, n, "query"));
        at += n;
    }
    if (r->body) json_array_append_new(all, parameter("Idempotency-Key", 15, "header"));
    return all;
}

static json_t *operation(const sl_route *r)
{
    json_t *o = json_pack("{s:s, s:o, s:o}", "summary", r->what, "parameters", parameters(r),
                          "responses", responses(r));
    if (r->body)
        json_object_set_new(o, "requestBody",
                            json_pack("{s:b, s:{s:{s:o}, s:{s:o}}}", "required", 1, "content",
                                      "application/json", "schema", request_schema(false),
                                      "multipart/form-data", "schema", request_schema(true)));
    if (r->who == SL_ROUTE_TOKEN)
        json_object_set_new(o, "security", json_pack("[{s:[]}, {}]", "token"));
    return o;
}

void sl_on_openapi(sl_ask *a)
{
    json_t *paths = json_object();
    const sl_route *r;
    for (int i = 0; (r = sl_route_at(i)); i++) {
        char method[8];
        json_t *path = json_object_get(paths, r->path);
        if (!path) json_object_set_new(paths, r->path, path = json_object());
        for (size_t k = 0; k < sizeof method; k++)
            if (!(method[k] = (char)(r->method[k] ? r->method[k] | 32 : 0))) break;
        json_object_set_new(path, method, operation(r));
    }
    sl_answer_json(a, 200,
                   json_pack("{s:s, s:{s:s, s:s, s:s}, s:o, s:{s:o, s:{s:{s:s, s:s}}}}", "openapi",
                             "3.1.0", "info", "title", "Sluice", "version", "1", "description",
                             "A picture and a prompt in, a video out.", "paths", paths,
                             "components", "schemas", schemas(), "securitySchemes", "token", "type",
                             "http", "scheme", "bearer"));
}
