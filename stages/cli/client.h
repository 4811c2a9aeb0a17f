/* client.h - the words of the verbs that ask a server: one table of their options, values by it,
 * and the connection that they name.
 *
 * A verb's options are those rows that name it, and, where it describes jobs (submit, run), the
 * options of stages/job/options.h. Ids may stand among options; behind "--" everything is one. */
#ifndef SL_CLI_CLIENT_H
#define SL_CLI_CLIENT_H

#include "stages/cli/remote.h"
#include "stages/cli/verbs.h"
#include "stages/job/options.h"

/* What the table's options give. */
typedef struct {
    char server[SL_PATH], token_file[SL_PATH], ca_file[SL_PATH];
    double retry_s;
    bool has_retry_s;
    char output[SL_PATH], key[128], after[72], order[8];
    int priority, limit;
    double timeout_s;
    bool has_priority, has_limit, has_timeout_s;
    bool wait, json, ids, all, follow, quiet;
    const char **words; /* the ids; the array is malloc'd, its texts are argv's */
    int count;
} sl_client;

/* The i-th option of a verb, of both tables; NULL past the last. *letter: of "-o"; 0: it has none;
 * letter may be NULL. A verb whose options are its own (SL_OPTIONS_OWN) has none here. */
const sl_option *sl_client_option_at(const sl_verb *verb, int i, char *letter);

/* An option of stages/job/options.h with its value ("" for a flag): one that describes a job, or
 * "jobs" or "quiet". */
typedef sl_code sl_client_job(void *ctx, const sl_option *o, const char *value, sl_err *err);
/* *c from the words after the verb. on_job: of verbs that describe jobs. sl_client_free, also after
 * an error. Errors: SL_ARG. */
sl_code sl_client_parse(sl_client *c, const sl_verb *verb, sl_client_job *on_job, void *ctx,
                        int argc, char **argv, sl_err *err);
void sl_client_free(sl_client *c);

/* The connection that the options name. retry_s: where --retry-s is not given. Errors:
 * sl_remote_open's; *r is to be closed. */
sl_code sl_client_connect(sl_remote *r, const sl_client *c, sl_err *err);

#define SL_RETRY_S 30.0       /* --retry-s, where it is not given */
#define SL_RETRY_WAIT_S 300.0 /* the same, while a job is waited for */

#endif
