/* params.h - a job's `params`: what stages of one's own are told, free-form JSON that nothing here
 * looks into. */
#ifndef SL_PARAMS_H
#define SL_PARAMS_H

#include <jansson.h>

#include "common/err.h"

/* *field (malloc'd, of sl_job.params) becomes the object, in place of what it was. Errors: SL_ARG
 * no object, or more than SL_PARAMS_BYTES; SL_NOMEM. */
sl_code sl_params_put(char **field, const json_t *object, sl_err *err);
/* As sl_params_put, of an object's text. */
sl_code sl_params_parse(char **field, const char *text, sl_err *err);
/* "KEY=VALUE" is added to the field's object, or replaces what it had of this key. The value is
 * JSON (3, true, [1, 2], {"a": "b"}), or else the text itself. */
sl_code sl_params_set(char **field, const char *assignment, sl_err *err);

#endif
