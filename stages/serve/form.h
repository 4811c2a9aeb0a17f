/* form.h - what a client sent with POST /v1/videos, as a request: JSON or multipart/form-data.
 *
 * Names are those of `sluice run`'s options, of OpenAI's videos, and of vLLM-Omni's and SGLang's
 * clients (ALIASES in form.c). No path comes from a client: pictures and noise come as bytes. */
#ifndef SL_FORM_H
#define SL_FORM_H

#include <jansson.h>

#include "common/conf.h"
#include "common/lora.h"
#include "stages/job/request.h"

/* What `lora` is here, where the command line has files. */
#define SL_FORM_LORA                                                                               \
    "NAME[:STRENGTH] of LoRA that the server offers (/v1/defaults lists them), with commas "       \
    "between"

typedef struct {
    char *bytes; /* malloc'd; NULL: not given */
    size_t size;
} sl_form_file;

typedef struct {
    sl_request request; /* what the options said; pictures are not in it */
    sl_form_file image, last_image, noise;
    char model[128]; /* "": not given */
    bool dump, has_priority;
    int priority;
    double seconds; /* 0: not given */
    char *lora;     /* after sl_form_lora: "NAME[:STRENGTH],..." as it was asked for; NULL: none */
    /* set before sl_form_lora (stages/serve/offer.h): names that other servers of the queue have,
     * with commas between; another server computes in the precision that is asked for */
    char elsewhere[SL_LORA_MOST * 65];
    bool precision_elsewhere;
    char param[64]; /* after an error: the field that it is about, in UTF-8; "": none */
    char image_hosts[SL_CONF_PATH]; /* set before: from where pictures may be fetched */
    size_t file_bytes;              /* set before: most bytes of a fetched one */
} sl_form;

/* *f zeroed but for what is set before. sl_form_free, also after an error. */
sl_code sl_form_init(sl_form *f, sl_err *err);
void sl_form_free(sl_form *f);

/* A body of JSON. Errors: SL_FORMAT no JSON object; SL_ARG one line, f->param says of which
 * field. */
sl_code sl_form_json(sl_form *f, const char *text, size_t size, sl_err *err);
/* The names that the form's `lora` has become files of this configuration, in the request; those
 * that other servers have are left out. ids: of the configuration's LoRA, the contents for each
 * expert; NULL: not known yet. Errors: SL_ARG a name that is not there, with those that are. */
sl_code sl_form_lora(sl_form *f, const sl_conf *conf, const uint64_t (*ids)[2], sl_err *err);
/* A part of multipart: its name, a text; or a file's bytes, which are taken over. */
sl_code sl_form_text(sl_form *f, const char *name, const char *value, sl_err *err);
sl_code sl_form_file_of(sl_form *f, const char *name, char *bytes, size_t size, sl_err *err);
/* The name stands for bytes ("input_reference"). */
bool sl_form_is_file(const char *name);

/* The i-th name that the form has beside the options', with what it is; NULL past the last. */
const char *sl_form_name(int i, const char **what, const char **type);
/* The option of the command line may be asked for over HTTP, under its own name. */
bool sl_form_has_option(int i);

#endif
