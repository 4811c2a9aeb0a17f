/* options.h - the one table of options: of the command line, of a jobs file's lines, of a
 * checkpoint's sluice.json; and a request's values set from text or JSON by it. */
#ifndef SL_OPTIONS_H
#define SL_OPTIONS_H

#include <jansson.h>

#include "stages/job/request.h"

typedef enum {
    SL_OPTION_INT,
    SL_OPTION_I64,
    SL_OPTION_SEED, /* 64 bits; -1: drawn anew for each job */
    SL_OPTION_REAL,
    SL_OPTION_RATE, /* a number or a ratio, "30000/1001" */
    SL_OPTION_PATH,
    SL_OPTION_WORD, /* a name of this program's: kept as a path is, and no file's */
    SL_OPTION_TEXT,
    SL_OPTION_FLAG,
    SL_OPTION_PARAMS, /* a JSON object, or its text */
    SL_OPTION_SET,    /* KEY=VALUE, may come several times: a key of params */
    SL_OPTION_LORA    /* FILE[:STRENGTH], may come several times; JSON: one, or an array of them */
} sl_option_kind;

/* Whose an option is: the whole run's; a job's, which may stand in a jobs file; a job's
 * that a checkpoint's sluice.json may give, too. */
typedef enum { SL_OPTION_OF_RUN, SL_OPTION_OF_JOB, SL_OPTION_OF_MODEL } sl_option_owner;

typedef struct {
    const char *name;
    sl_option_kind kind;
    sl_option_owner owner;
    size_t at, room;        /* offset and bytes of the value in sl_batch (OF_RUN) or sl_request */
    size_t given;           /* offset of a bool that becomes true; 0: none */
    const char *arg, *what; /* arg NULL: a flag */
} sl_option;

/* The i-th option; NULL past the last. */
const sl_option *sl_option_at(int i);
/* The option of this name, with '-' or '_' between words, that may stand where those of
 * `least` may. Errors: SL_ARG, with the nearest name or the names that may stand there. */
sl_code sl_option_find(const sl_option **out, const char *name, sl_option_owner least, sl_err *err);
/* `owner`: the sl_batch of an option OF_RUN, the sl_request of any other. Errors: SL_ARG
 * names the option, the value found and the value wanted. */
sl_code sl_option_set(void *owner, const sl_option *o, const char *value, sl_err *err);

/* Did whoever asks for the job say this option (r->given)? */
bool sl_request_given(const sl_request *r, const char *name);

/* A request's values from a JSON object with options as keys, those that may stand where
 * options of `least` may. Errors: SL_ARG, one line. */
sl_code sl_request_read_json(sl_request *r, sl_option_owner least, json_t *object, sl_err *err);

#endif
