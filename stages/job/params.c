/* params.c - a job's params: put as a whole, or key by key. */
#include "stages/job/params.h"

#include <stdlib.h>
#include <string.h>

#include "common/job.h"
#include "common/json.h"

sl_code sl_params_put(char **field, const json_t *object, sl_err *err)
{
    char *text = json_is_object(object) ? json_dumps(object, JSON_COMPACT) : NULL;
    sl_code rc = SL_OK;
    if (!json_is_object(object)) rc = sl_fail(err, SL_ARG, "params is no object, want {...}");
    else if (!text) rc = sl_fail(err, SL_NOMEM, "params: no memory");
    else if (strlen(text) > SL_PARAMS_BYTES)
        rc = sl_fail(err, SL_ARG, "params has %zu bytes, want at most %d", strlen(text),
                     SL_PARAMS_BYTES);
    else rc = sl_job_set_text(field, text, err);
    free(text);
    return rc;
}

sl_code sl_params_parse(char **field, const char *text, sl_err *err)
{
    json_t *object = NULL;
    sl_code rc = sl_json_parse(&object, text, strlen(text), "params", err);
    if (!rc) rc = sl_params_put(field, object, err);
    json_decref(object);
    return rc ? (err->code = SL_ARG) : SL_OK;
}

sl_code sl_params_set(char **field, const char *assignment, sl_err *err)
{
    const size_t n = strcspn(assignment, "=");
    json_t *object = NULL;
    char key[64];
    sl_code rc;
    if (!n || !assignment[n] || n >= sizeof key)
        return sl_fail(err, SL_ARG, "\"%.60s\", want KEY=VALUE with a key of 1 to %zu bytes",
                       assignment, sizeof key - 1);
    memcpy(key, assignment, n);
    key[n] = 0;
    const char *before = *field && **field ? *field : "{}", *text = assignment + n + 1;
    if ((rc = sl_json_parse(&object, before, strlen(before), "params", err))) return rc;
    json_error_t ignored;
    json_t *value = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &ignored);
    if (json_object_set_new(object, key, value ? value : json_string(text)))
        rc = sl_fail(err, SL_ARG, "%s: key or value is not valid UTF-8", key);
    if (!rc) rc = sl_params_put(field, object, err);
    json_decref(object);
    return rc;
}
