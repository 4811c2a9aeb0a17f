/* t_schema.h - does JSON keep to docs/report.schema.json? The words of JSON Schema that it uses,
 * and no others: one that is not known fails the test. */
#ifndef T_SCHEMA_H
#define T_SCHEMA_H

#include "tests/t_run.h"

#include <jansson.h>

/* A path of keys for messages; "" the root. */
static char t_schema_why[512];

static inline bool t_schema_no(const char *at, const char *why)
{
    snprintf(t_schema_why, sizeof t_schema_why, "%s: %s", *at ? at : "the report", why);
    return false;
}

static inline bool t_is_type(const json_t *v, const char *type)
{
    if (!strcmp(type, "object")) return json_is_object(v);
    if (!strcmp(type, "array")) return json_is_array(v);
    if (!strcmp(type, "string")) return json_is_string(v);
    if (!strcmp(type, "integer")) return json_is_integer(v);
    if (!strcmp(type, "number")) return json_is_number(v);
    if (!strcmp(type, "boolean")) return json_is_boolean(v);
    if (!strcmp(type, "null")) return json_is_null(v);
    fail_msg("the schema has a type %s", type);
    return false;
}

static inline bool t_is_one_of(const json_t *v, const json_t *types)
{
    const json_t *type;
    size_t i;
    if (json_is_string(types)) return t_is_type(v, json_string_value(types));
    json_array_foreach(types, i, type)
    {
        if (t_is_type(v, json_string_value(type))) return true;
    }
    return false;
}

static inline bool t_keeps_to(const json_t *root, const json_t *schema, const json_t *v,
                              const char *at);

static inline bool t_keys_keep_to(const json_t *root, const json_t *schema, json_t *v,
                                  const char *at)
{
    const json_t *known = json_object_get(schema, "properties"),
                 *others = json_object_get(schema, "additionalProperties"), *name;
    const char *key;
    json_t *value;
    size_t i;
    json_array_foreach(json_object_get(schema, "required"), i, name)
    {
        if (!json_object_get(v, json_string_value(name)))
            return t_schema_no(at, t_format("lacks %s", json_string_value(name)));
    }
    json_object_foreach(v, key, value)
    {
        const json_t *own = json_object_get(known, key);
        char where[256];
        snprintf(where, sizeof where, "%s/%s", at, key);
        if (!own && json_is_false(others)) return t_schema_no(where, "is not in the schema");
        if (!own && !others) continue;
        if (!t_keeps_to(root, own ? own : others, value, where)) return false;
    }
    return true;
}

static inline bool t_keeps_to(const json_t *root, const json_t *schema, const json_t *v,
                              const char *at)
{
    static const char *const WORDS =
        " $schema title description anyOf $defs $ref type required additionalProperties properties "
        "enum items ";
    const char *word, *ref = json_string_value(json_object_get(schema, "$ref"));
    json_t *part, *list = json_object_get(schema, "anyOf");
    size_t i;
    json_object_foreach((json_t *)schema, word, part)
    {
        if (!strstr(WORDS, t_format(" %s ", word))) fail_msg("the schema has a word %s", word);
    }
    if (ref) {
        assert_memory_equal(ref, "#/$defs/", 8);
        return t_keeps_to(root, json_object_get(json_object_get(root, "$defs"), ref + 8), v, at);
    }
    if (list) {
        json_array_foreach(list, i, part)
        {
            if (t_keeps_to(root, part, v, at)) return true;
        }
        return false;
    }
    if ((list = json_object_get(schema, "enum"))) {
        json_array_foreach(list, i, part)
        {
            if (json_equal(part, v)) return true;
        }
        return t_schema_no(at, "is none of the values that it may have");
    }
    if (!t_is_one_of(v, json_object_get(schema, "type")))
        return t_schema_no(at, "is of another type");
    if (json_is_object(v)) return t_keys_keep_to(root, schema, (json_t *)v, at);
    json_array_foreach((json_t *)v, i, part)
    {
        char where[256];
        snprintf(where, sizeof where, "%s/%zu", at, i);
        if (!t_keeps_to(root, json_object_get(schema, "items"), part, where)) return false;
    }
    return true;
}

/* The value is a report. */
static inline void t_is_report(const json_t *v)
{
    json_error_t why;
    json_t *schema = json_load_file("docs/report.schema.json", 0, &why);
    if (!schema) fail_msg("docs/report.schema.json:%d: %s", why.line, why.text);
    /* by the part that it is of: a message about anyOf would tell nothing */
    json_t *part = json_object_get(json_object_get(schema, "$defs"),
                                   json_object_get(v, "jobs") ? "run" : "job");
    if (!t_keeps_to(schema, part, v, "") || !t_keeps_to(schema, schema, v, ""))
        fail_msg("%s", t_schema_why);
    json_decref(schema);
}

#endif
