/* lora.h - a request's LoRA: files looked at before any work, and the bytes that they take. */
#ifndef SL_JOB_LORA_H
#define SL_JOB_LORA_H

#include <jansson.h>

#include "common/lora.h"
#include "common/model.h"
#include "graphs/merge.h"
#include "stages/job/request.h"

/* Paths become absolute, files are read (finite, known by their content from now on), and fit the
 * checkpoint's transformers. random: there are no weights, the configuration decides. What has no
 * place is left out with lora_lenient and told in the log. Errors: SL_ARG a second expert's file
 * for a model with one; those of sl_lora_read and sl_merge_check; one line that begins with the
 * option. */
sl_code sl_request_check_lora(sl_request *r, const sl_model *model, bool random, sl_err *err);

/* What expert e's files take when they are merged into the network that `l` has been asked for. */
sl_code sl_lora_sizes(const sl_job *job, int e, const sl_loader *l, sl_merge_sizes *out,
                      sl_err *err);

/* A field's rows as JSON: [{"file": its name without folders, "strength", "id"}]; NULL: none. */
json_t *sl_lora_json(const char *field);

#endif
